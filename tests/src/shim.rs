//! A task's shim, asked as containerd asks it: for the requests that `ctr` has no command for.

use std::fs;

use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use wasmvm_protocol::agent::containerd::api::UpdateTaskRequest;
use wasmvm_protocol::agent::containerd::shim_async::TaskClient;

use crate::containerd;
use crate::ctr::COMMAND_MAX;

/// Where containerd keeps the bundles of the namespace `default`, below its state.
const BUNDLES: &str = "io.containerd.runtime.v2.task/default";
/// containerd's name for the type.
const RESOURCES_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// Updates a task; the sentence when the shim refuses.
///
/// # Errors
/// What the shim says.
///
/// # Panics
/// When the shim cannot be reached.
pub fn update(id: &str, resources: &serde_json::Value) -> Result<(), String> {
    let bundle = containerd::state().join(BUNDLES).join(id);
    let address = fs::read_to_string(bundle.join("address")).expect("a shim's address");
    let path = address
        .trim()
        .strip_prefix("unix://")
        .expect("a socket")
        .to_owned();
    let request = UpdateTaskRequest {
        id: id.to_owned(),
        resources: MessageField::some(Any {
            type_url: RESOURCES_TYPE_URL.to_owned(),
            value: resources.to_string().into_bytes(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let stream = UnixStream::connect(path).await.expect("the shim listens");
        let client = TaskClient::new(Client::new(Socket::from(stream)));
        let context = ttrpc::context::with_duration(COMMAND_MAX);
        match client.update(context, &request).await {
            Ok(_) => Ok(()),
            Err(ttrpc::Error::RpcStatus(status)) => Err(status.message().to_owned()),
            Err(error) => panic!("the shim broke: {error}"),
        }
    })
}
