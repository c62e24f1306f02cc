//! containerd's Task service: requests taken apart, answers put together, nothing else.
//!
//! What changes a task's state runs in a task of its own, because ttrpc drops a handler at the
//! caller's deadline: containerd repeats a Delete that it gave up, and finds it further on or done.
//! The methods that are not here are `Unimplemented`, with a sentence.

use std::sync::Arc;

use async_trait::async_trait;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{EnumOrUnknown, MessageField};
use tokio::sync::watch;
use ttrpc::asynchronous::TtrpcContext;
use wasmvm_protocol::agent::containerd::api as pb;
use wasmvm_protocol::agent::containerd::shim_async::Task as TaskService;

use crate::error::{ErrorCode, Refusal};
use crate::stdio::StdioNames;
use crate::task::{SandboxOrder, State, Task, TaskOrder, Tasks};

/// Serves `containerd.task.v2.Task` and `containerd.task.v3.Task`, which are one on the wire.
#[derive(Clone, Debug)]
pub struct Service {
    namespace: String,
    tasks: Arc<Tasks>,
    shutdown: watch::Sender<bool>,
}

impl Service {
    /// `shutdown` becomes true when containerd wants the shim to end and no task is left.
    #[must_use]
    pub fn new(namespace: &str, tasks: Arc<Tasks>, shutdown: watch::Sender<bool>) -> Self {
        Self {
            namespace: namespace.to_owned(),
            tasks,
            shutdown,
        }
    }

    /// The task, for requests about its init; an exec cannot exist yet.
    fn init_of(&self, id: &str, exec_id: &str) -> Result<Arc<Task>, Refusal> {
        let task = self.tasks.get(id)?;
        if exec_id.is_empty() {
            return Ok(task);
        }
        Err(Refusal::say(
            ErrorCode::NotFound,
            format!("task {id} has no process {exec_id}"),
        ))
    }
}

/// Runs `work` to its end, whether or not anybody still waits for the answer.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|error| Err(Refusal::new(ErrorCode::Internal, &error)))
}

fn order(namespace: &str, request: pb::CreateTaskRequest) -> Result<TaskOrder, Refusal> {
    let refused = |sentence: String| Err(Refusal::say(ErrorCode::InvalidArgument, sentence));
    if request.terminal {
        return refused("terminal is true; a terminal is not supported yet: run without -t".into());
    }
    if !request.checkpoint.is_empty() {
        let checkpoint = request.checkpoint;
        return refused(format!(
            "checkpoint is {checkpoint:?}; restoring is not supported yet"
        ));
    }
    Ok(TaskOrder {
        sandbox: SandboxOrder {
            namespace: namespace.to_owned(),
            id: request.id,
            bundle: request.bundle.into(),
            rootfs: request.rootfs,
        },
        stdio: StdioNames {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        },
    })
}

fn status(state: State) -> pb::Status {
    match state {
        State::Creating => pb::Status::UNKNOWN,
        State::Created | State::Starting => pb::Status::CREATED,
        State::Running => pb::Status::RUNNING,
        State::Stopped(_) | State::Deleting(_) | State::Deleted(_) => pb::Status::STOPPED,
    }
}

#[async_trait]
impl TaskService for Service {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: pb::CreateTaskRequest,
    ) -> ttrpc::Result<pb::CreateTaskResponse> {
        let order = order(&self.namespace, request)?;
        let tasks = self.tasks.clone();
        let pid = detached(async move { tasks.create(order).await }).await?;
        Ok(pb::CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: pb::StartRequest,
    ) -> ttrpc::Result<pb::StartResponse> {
        let task = self.init_of(&request.id, &request.exec_id)?;
        let pid = detached(async move { task.start().await.map_err(Refusal::from) }).await?;
        Ok(pb::StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn state(
        &self,
        _: &TtrpcContext,
        request: pb::StateRequest,
    ) -> ttrpc::Result<pb::StateResponse> {
        let task = self.init_of(&request.id, &request.exec_id)?;
        let report = task.report().map_err(Refusal::from)?;
        let exit = report.state.exit();
        Ok(pb::StateResponse {
            id: request.id,
            bundle: task.bundle(),
            pid: report.pid,
            status: EnumOrUnknown::new(status(report.state)),
            stdin: report.stdio.stdin,
            stdout: report.stdio.stdout,
            stderr: report.stdio.stderr,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| Timestamp::from(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: pb::WaitRequest,
    ) -> ttrpc::Result<pb::WaitResponse> {
        let task = self.init_of(&request.id, &request.exec_id)?;
        let exit = task.wait().await.map_err(Refusal::from)?;
        Ok(pb::WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(Timestamp::from(exit.at)),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: pb::KillRequest) -> ttrpc::Result<pb::Empty> {
        let task = self.init_of(&request.id, &request.exec_id)?;
        detached(async move { task.kill(request.signal).await.map_err(Refusal::from) }).await?;
        Ok(pb::Empty::new())
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: pb::DeleteRequest,
    ) -> ttrpc::Result<pb::DeleteResponse> {
        self.init_of(&request.id, &request.exec_id)?;
        let tasks = self.tasks.clone();
        let (pid, exit) = detached(async move { tasks.delete(&request.id).await }).await?;
        Ok(pb::DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(Timestamp::from(exit.at)),
            ..Default::default()
        })
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: pb::PidsRequest,
    ) -> ttrpc::Result<pb::PidsResponse> {
        let task = self.init_of(&request.id, "")?;
        let report = task.report().map_err(Refusal::from)?;
        Ok(pb::PidsResponse {
            processes: vec![pb::ProcessInfo {
                pid: report.pid,
                ..Default::default()
            }],
            ..Default::default()
        })
    }

    async fn close_io(
        &self,
        _: &TtrpcContext,
        request: pb::CloseIORequest,
    ) -> ttrpc::Result<pb::Empty> {
        let task = self.init_of(&request.id, &request.exec_id)?;
        if request.stdin {
            task.close_stdin();
        }
        Ok(pb::Empty::new())
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: pb::ConnectRequest,
    ) -> ttrpc::Result<pb::ConnectResponse> {
        // A restarting containerd asks before it knows which tasks there are: 0 is an answer.
        let report = self.tasks.get(&request.id).map(|task| task.report());
        let task_pid = report
            .ok()
            .and_then(Result::ok)
            .map_or(0, |report| report.pid);
        Ok(pb::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: pb::ShutdownRequest) -> ttrpc::Result<pb::Empty> {
        // containerd asks after every task, also while others of the pod live.
        if *self.tasks.count().borrow() == 0 {
            self.shutdown.send_replace(true);
        }
        Ok(pb::Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, _: pb::PauseRequest) -> ttrpc::Result<pb::Empty> {
        Err(absent("Pause"))
    }

    async fn resume(&self, _: &TtrpcContext, _: pb::ResumeRequest) -> ttrpc::Result<pb::Empty> {
        Err(absent("Resume"))
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        _: pb::CheckpointTaskRequest,
    ) -> ttrpc::Result<pb::Empty> {
        Err(absent("Checkpoint"))
    }

    async fn exec(&self, _: &TtrpcContext, _: pb::ExecProcessRequest) -> ttrpc::Result<pb::Empty> {
        Err(absent("Exec"))
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        _: pb::ResizePtyRequest,
    ) -> ttrpc::Result<pb::Empty> {
        Err(absent("ResizePty"))
    }

    async fn update(&self, _: &TtrpcContext, _: pb::UpdateTaskRequest) -> ttrpc::Result<pb::Empty> {
        Err(absent("Update"))
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        _: pb::StatsRequest,
    ) -> ttrpc::Result<pb::StatsResponse> {
        Err(absent("Stats"))
    }
}

fn absent(method: &str) -> ttrpc::Error {
    let sentence = format!("{method} is not supported by io.containerd.wasmvm.v1 yet");
    Refusal::say(ErrorCode::Unimplemented, sentence).into()
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
