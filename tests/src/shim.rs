//! A task's shim, asked as containerd asks it: for the requests that `ctr` has no command for.

use std::fs;

use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use tempfile::TempDir;
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;
use wasmvm_protocol::agent::containerd::api::{
    ConnectRequest, CreateTaskRequest, DeleteRequest, KillRequest, PidsRequest, StartRequest,
    UpdateTaskRequest, WaitRequest,
};
use wasmvm_protocol::agent::containerd::shim_async::TaskClient;

use crate::containerd;
use crate::ctr::{COMMAND_MAX, ctr};
use crate::task::{Run, Task, spec_of};

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
    let request = UpdateTaskRequest {
        id: id.to_owned(),
        resources: MessageField::some(Any {
            type_url: RESOURCES_TYPE_URL.to_owned(),
            value: resources.to_string().into_bytes(),
            ..Default::default()
        }),
        ..Default::default()
    };
    ask(id, async |shim, context| {
        shim.update(context, &request).await
    })
    .map(drop)
}

/// Asks the shim that serves the task of this id.
fn ask<T>(
    id: &str,
    request: impl AsyncFnOnce(TaskClient, Context) -> ttrpc::Result<T>,
) -> Result<T, String> {
    let bundle = containerd::state().join(BUNDLES).join(id);
    let address = fs::read_to_string(bundle.join("address")).expect("a shim's address");
    let path = address
        .trim()
        .strip_prefix("unix://")
        .expect("a socket")
        .to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let stream = UnixStream::connect(path).await.expect("the shim listens");
        let client = TaskClient::new(Client::new(Socket::from(stream)));
        let context = ttrpc::context::with_duration(COMMAND_MAX);
        match request(client, context).await {
            Ok(answer) => Ok(answer),
            Err(ttrpc::Error::RpcStatus(status)) => Err(status.message().to_owned()),
            Err(error) => panic!("the shim broke: {error}"),
        }
    })
}

/// A container that comes to the shim of its pod by Create alone, as containerd 2.3 and later send it: neither `start`
/// nor `delete` is executed for it, and containerd here does not know it.
#[derive(Debug)]
pub struct Joined {
    id: String,
    pod: String,
    pid: u32,
    bundle: TempDir,
}

impl Joined {
    /// Creates and starts the container of this `ctr run` in the shim of the sandbox `pod`. Its root file system is the
    /// image's, mounted as long as the value lives.
    ///
    /// # Panics
    /// When the shim refuses.
    #[must_use]
    #[track_caller]
    pub fn start(run: &Run, pod: &Task) -> Self {
        let bundle = tempfile::tempdir().expect("a folder");
        let rootfs = bundle.path().join("rootfs");
        fs::create_dir(&rootfs).expect("a folder");
        fs::write(bundle.path().join("config.json"), spec_of(run).to_string()).expect("written");
        let rootfs = rootfs.to_str().expect("a path of ours is text");
        ctr(["images", "mount", "--rw", run.image_name(), rootfs]).expect_status(0);
        let mut joined = Self {
            id: run.task_id().to_owned(),
            pod: pod.id().to_owned(),
            pid: 0,
            bundle,
        };
        let create = CreateTaskRequest {
            id: joined.id.clone(),
            bundle: joined.bundle.path().display().to_string(),
            ..Default::default()
        };
        let start = StartRequest {
            id: joined.id.clone(),
            ..Default::default()
        };
        let started = ask(&joined.pod, async |shim, context| {
            shim.create(context.clone(), &create).await?;
            shim.start(context, &start).await
        });
        joined.pid = started.expect("the shim starts it").pid;
        joined
    }

    /// The pid of the container's VMM.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What a containerd that was restarted asks: the pid that Connect tells, and all that Pids does.
    ///
    /// # Panics
    /// When the shim refuses.
    #[must_use]
    #[track_caller]
    pub fn asked_again(&self) -> (u32, Vec<u32>) {
        let (connect, pids) = (
            ConnectRequest {
                id: self.id.clone(),
                ..Default::default()
            },
            PidsRequest {
                id: self.id.clone(),
                ..Default::default()
            },
        );
        let asked = ask(&self.pod, async |shim, context| {
            let connected = shim.connect(context.clone(), &connect).await?;
            let listed = shim.pids(context, &pids).await?;
            let pids = listed.processes.iter().map(|process| process.pid);
            Ok((connected.task_pid, pids.collect()))
        });
        asked.expect("the shim answers")
    }

    /// Kills the container, waits for its end and deletes it; returns its exit status.
    ///
    /// # Panics
    /// When the shim refuses.
    #[must_use]
    #[track_caller]
    pub fn end(self) -> u32 {
        const SIGKILL: u32 = 9;
        let kill = KillRequest {
            id: self.id.clone(),
            signal: SIGKILL,
            ..Default::default()
        };
        let wait = WaitRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let delete = DeleteRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let ended = ask(&self.pod, async |shim, context| {
            shim.kill(context.clone(), &kill).await?;
            shim.wait(context.clone(), &wait).await?;
            shim.delete(context, &delete).await
        });
        ended.expect("the shim ends it").exit_status
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let rootfs = self.bundle.path().join("rootfs");
        ctr([
            "images".as_ref(),
            "unmount".as_ref(),
            "--rm".as_ref(),
            rootfs.as_os_str(),
        ]);
    }
}
