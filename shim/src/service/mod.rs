//! containerd's Task service: requests taken apart, answers put together, nothing else.
//!
//! What changes a task's state runs in a task of its own, because ttrpc drops a handler at the
//! caller's deadline: containerd repeats a Delete that it gave up, and finds it further on or done.
//! The methods that are not here are `Unimplemented`, with a sentence.

mod look;
mod requests;

use std::sync::Arc;

use async_trait::async_trait;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{CodedOutputStream, EnumOrUnknown, MessageField};
use tokio::sync::watch;
use tracing::Instrument as _;
use ttrpc::asynchronous::TtrpcContext;
use wasmvm_protocol::agent::containerd::api as pb;
use wasmvm_protocol::agent::containerd::shim_async::Task as TaskService;

pub(crate) use self::look::look_when_asked;
use self::requests::{Request, Requests};
use crate::bundle::Resources;
use crate::error::{ErrorCode, Refusal};
use crate::log;
use crate::task::{Exec, ExecOrder, Exit, Flow, Report, State, Task, TaskError, TaskOrder, Tasks};

/// Serves `containerd.task.v2.Task` and `containerd.task.v3.Task`, which are one on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    namespace: String,
    tasks: Arc<Tasks>,
    requests: Requests,
    shutdown: watch::Sender<bool>,
}

impl Service {
    /// `shutdown` becomes true when containerd wants the shim to end and no task is left.
    #[must_use]
    pub(crate) fn new(namespace: &str, tasks: Arc<Tasks>, shutdown: watch::Sender<bool>) -> Self {
        Self {
            namespace: namespace.to_owned(),
            tasks,
            requests: Requests::default(),
            shutdown,
        }
    }

    /// Runs `work` to its end, whether or not anybody still waits for the answer.
    async fn detached<T: Send + 'static>(
        &self,
        request: Request,
        work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
    ) -> Result<T, Refusal> {
        let span = log::span_of(request.task());
        let listed = self.requests.begin(request);
        let work = async move {
            let done = work.await;
            drop(listed);
            done
        };
        tokio::spawn(work.instrument(span))
            .await
            .unwrap_or_else(|error| Err(Refusal::new(ErrorCode::Internal, &error)))
    }

    fn process(&self, id: &str, exec_id: &str) -> Result<Found, Refusal> {
        let task = self.tasks.get(id)?;
        let exec = match exec_id {
            "" => None,
            exec_id => Some(task.exec_of(exec_id)?),
        };
        Ok(Found { task, exec })
    }
}

/// The process that a request is about: a task's init, or one of the task's execs.
struct Found {
    task: Arc<Task>,
    exec: Option<Arc<Exec>>,
}

impl Found {
    fn report(&self) -> Result<Report, TaskError> {
        match &self.exec {
            None => self.task.report(),
            Some(exec) => Ok(exec.report()),
        }
    }

    async fn start(&self) -> Result<u32, TaskError> {
        match &self.exec {
            None => self.task.start().await,
            Some(exec) => self.task.start_exec(exec).await,
        }
    }

    async fn wait(&self) -> Result<Exit, TaskError> {
        match &self.exec {
            None => self.task.wait().await,
            Some(exec) => exec.wait().await,
        }
    }

    /// `all` means nothing for an exec: kubelet's containerd asks for it all the same.
    async fn kill(&self, signal: u32, all: bool) -> Result<(), TaskError> {
        match &self.exec {
            None => self.task.kill(signal, all).await,
            Some(exec) => self.task.kill_exec(exec, signal).await,
        }
    }

    fn close_stdin(&self) {
        match &self.exec {
            None => self.task.close_stdin(),
            Some(exec) => exec.close_stdin(),
        }
    }
}

/// The status of a process in containerd's words: a running process of a VM that is stopped is paused.
fn status(state: State, flow: Flow) -> pb::Status {
    match (state, flow) {
        (State::Creating, _) => pb::Status::UNKNOWN,
        (State::Running, Flow::Pausing) => pb::Status::PAUSING,
        (State::Running, Flow::Paused | Flow::Resuming) => pb::Status::PAUSED,
        (State::Running, Flow::Running) => pb::Status::RUNNING,
        (State::Created | State::Starting, _) => pb::Status::CREATED,
        (State::Stopped(_) | State::Deleting(_) | State::Deleted(_), _) => pb::Status::STOPPED,
    }
}

/// How containerd tells an exec from init in a list of pids.
fn process_details(exec_id: &str) -> Any {
    // containerd.runc.v1.ProcessDetails, whose one field is the exec's id.
    let mut value = Vec::new();
    {
        let mut details = CodedOutputStream::vec(&mut value);
        // Writing to a Vec cannot fail.
        let _ = details.write_string(1, exec_id);
        let _ = details.flush();
    }
    Any {
        type_url: "containerd.runc.v1.ProcessDetails".to_owned(),
        value,
        ..Default::default()
    }
}

#[async_trait]
impl TaskService for Service {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: pb::CreateTaskRequest,
    ) -> ttrpc::Result<pb::CreateTaskResponse> {
        let listed = Request::new("Create", &request.id, "");
        let order = TaskOrder::of(&self.namespace, request)?;
        let tasks = self.tasks.clone();
        let create = async move { tasks.create(order).await };
        let pid = self.detached(listed, create).await?;
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
        let found = self.process(&request.id, &request.exec_id)?;
        let listed = Request::new("Start", &request.id, &request.exec_id);
        let start = async move { Ok(found.start().await?) };
        let pid = self.detached(listed, start).await?;
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
        let found = self.process(&request.id, &request.exec_id)?;
        let report = found.report().map_err(Refusal::from)?;
        let exit = report.state.exit();
        Ok(pb::StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: found.task.bundle(),
            pid: report.pid,
            status: EnumOrUnknown::new(status(report.state, found.task.flow())),
            terminal: report.terminal,
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
        let found = self.process(&request.id, &request.exec_id)?;
        let exit = found.wait().await.map_err(Refusal::from)?;
        Ok(pb::WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(Timestamp::from(exit.at)),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: pb::KillRequest) -> ttrpc::Result<pb::Empty> {
        let found = self.process(&request.id, &request.exec_id)?;
        let listed = Request::new("Kill", &request.id, &request.exec_id);
        let kill = async move { Ok(found.kill(request.signal, request.all).await?) };
        self.detached(listed, kill).await?;
        Ok(pb::Empty::new())
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: pb::DeleteRequest,
    ) -> ttrpc::Result<pb::DeleteResponse> {
        let Found { task, exec } = self.process(&request.id, &request.exec_id)?;
        let tasks = self.tasks.clone();
        let listed = Request::new("Delete", &request.id, &request.exec_id);
        let delete = async move {
            match exec {
                None => tasks.delete(&request.id).await,
                Some(exec) => Ok(task.delete_exec(&exec).await?),
            }
        };
        let (pid, exit) = self.detached(listed, delete).await?;
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
        let task = self.tasks.get(&request.id)?;
        let init = task.report().map_err(Refusal::from)?;
        let init = pb::ProcessInfo {
            pid: init.pid,
            ..Default::default()
        };
        let running = task.execs_where(|exec| exec.report().state == State::Running);
        let execs = running.iter().map(|exec| pb::ProcessInfo {
            pid: exec.pid(),
            info: MessageField::some(process_details(exec.id())),
            ..Default::default()
        });
        Ok(pb::PidsResponse {
            processes: std::iter::once(init).chain(execs).collect(),
            ..Default::default()
        })
    }

    async fn close_io(
        &self,
        _: &TtrpcContext,
        request: pb::CloseIORequest,
    ) -> ttrpc::Result<pb::Empty> {
        let found = self.process(&request.id, &request.exec_id)?;
        if request.stdin {
            found.close_stdin();
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
        // containerd asks after every task, also while the shim has another one.
        if *self.tasks.count().borrow() == 0 {
            self.shutdown.send_replace(true);
        }
        Ok(pb::Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, request: pb::PauseRequest) -> ttrpc::Result<pb::Empty> {
        let task = self.tasks.get(&request.id)?;
        let listed = Request::new("Pause", &request.id, "");
        let pause = async move { Ok(task.pause().await?) };
        self.detached(listed, pause).await?;
        Ok(pb::Empty::new())
    }

    async fn resume(
        &self,
        _: &TtrpcContext,
        request: pb::ResumeRequest,
    ) -> ttrpc::Result<pb::Empty> {
        let task = self.tasks.get(&request.id)?;
        let listed = Request::new("Resume", &request.id, "");
        let resume = async move { Ok(task.resume().await?) };
        self.detached(listed, resume).await?;
        Ok(pb::Empty::new())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        _: pb::CheckpointTaskRequest,
    ) -> ttrpc::Result<pb::Empty> {
        Err(absent("Checkpoint"))
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: pb::ExecProcessRequest,
    ) -> ttrpc::Result<pb::Empty> {
        let task = self.tasks.get(&request.id)?;
        task.exec(ExecOrder::of(request)?).map_err(Refusal::from)?;
        Ok(pb::Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: pb::ResizePtyRequest,
    ) -> ttrpc::Result<pb::Empty> {
        let found = self.process(&request.id, &request.exec_id)?;
        let (exec, width, height) = (found.exec.as_deref(), request.width, request.height);
        let resized = found.task.resize(exec, width, height).await;
        resized.map_err(Refusal::from)?;
        Ok(pb::Empty::new())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: pb::UpdateTaskRequest,
    ) -> ttrpc::Result<pb::Empty> {
        let task = self.tasks.get(&request.id)?;
        let resources = Resources::of_update(&request.resources.value).map_err(Refusal::from)?;
        let listed = Request::new("Update", &request.id, "");
        let update = async move { Ok(task.update(resources).await?) };
        self.detached(listed, update).await?;
        Ok(pb::Empty::new())
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: pb::StatsRequest,
    ) -> ttrpc::Result<pb::StatsResponse> {
        let task = self.tasks.get(&request.id)?;
        let stats = task.stats().await.map_err(Refusal::from)?;
        Ok(pb::StatsResponse {
            stats: MessageField::some(stats),
            ..Default::default()
        })
    }
}

fn absent(method: &str) -> ttrpc::Error {
    let sentence = format!("{method} is not supported by io.containerd.wasmvm.v1 yet");
    Refusal::say(ErrorCode::Unimplemented, sentence).into()
}

#[cfg(test)]
mod tests;
