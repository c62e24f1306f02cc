//! What can be asked of one instance.

use ttrpc::Code;
use wasmvm_protocol::agent::containerd::api::{
    DeleteRequest, KillRequest, ResizePtyRequest, StartRequest, WaitRequest,
};
use wasmvm_protocol::agent::containerd::shim_async::TaskClient;

use crate::guest::{Refusal, TASK, context, refusal};

/// One instance of the guest's task.
#[derive(Clone, Copy)]
pub(crate) struct Process<'a> {
    client: &'a TaskClient,
    exec: &'a str,
}

impl<'a> Process<'a> {
    pub(crate) fn new(client: &'a TaskClient, exec: &'a str) -> Self {
        Self { client, exec }
    }

    pub(crate) async fn start(self) -> Result<u32, Refusal> {
        let mut request = StartRequest::new();
        request.id = TASK.into();
        request.exec_id = self.exec.into();
        let response = self.client.start(context(), &request).await;
        response.map(|response| response.pid).map_err(refusal)
    }

    pub(crate) async fn kill(self, signal: u32) -> Result<(), Refusal> {
        let mut request = KillRequest::new();
        request.id = TASK.into();
        request.exec_id = self.exec.into();
        request.signal = signal;
        let response = self.client.kill(context(), &request).await;
        response.map(drop).map_err(refusal)
    }

    pub(crate) async fn wait(self) -> u32 {
        self.wait_apart().await
    }

    /// To be awaited in a task of its own.
    pub(crate) fn wait_apart(self) -> impl Future<Output = u32> + Send + 'static {
        let client = self.client.clone();
        let mut request = WaitRequest::new();
        request.id = TASK.into();
        request.exec_id = self.exec.into();
        async move {
            let response = client.wait(context(), &request).await.unwrap();
            response.exit_status
        }
    }

    /// Whether it stands in a phase that is not its last, by the refusal to forget it.
    pub(crate) async fn is(self, phase: &str) -> bool {
        let (code, text) = self.delete().await.unwrap_err();
        code == Code::FAILED_PRECONDITION && text.ends_with(&format!("it is {phase}"))
    }

    pub(crate) async fn delete(self) -> Result<(), Refusal> {
        let mut request = DeleteRequest::new();
        request.id = TASK.into();
        request.exec_id = self.exec.into();
        let response = self.client.delete(context(), &request).await;
        response.map(drop).map_err(refusal)
    }

    pub(crate) async fn resize(self, width: u32, height: u32) -> Result<(), Refusal> {
        let mut request = ResizePtyRequest::new();
        request.id = TASK.into();
        request.exec_id = self.exec.into();
        request.width = width;
        request.height = height;
        let response = self.client.resize_pty(context(), &request).await;
        response.map(drop).map_err(refusal)
    }
}
