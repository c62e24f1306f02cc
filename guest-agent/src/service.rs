//! containerd's Task service on the supervisor. No logic: parse, call, answer.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use ttrpc::r#async::TtrpcContext;
use wasmvm_protocol::agent::containerd::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use wasmvm_protocol::agent::containerd::shim_async::Task;

use crate::error::AgentError;
use crate::instance::{Exit, Phase, SignalNumber};
use crate::request::CreateRequest;
use crate::supervisor::Supervisor;

/// What the agent says to every method it does not offer.
fn unimplemented<T>(method: &'static str) -> ttrpc::Result<T> {
    Err(AgentError::Unimplemented(method).into())
}

/// The task's id, unless the request is about an exec.
fn init_of<'a>(id: &'a str, exec_id: &str) -> Result<&'a str, AgentError> {
    if exec_id.is_empty() {
        Ok(id)
    } else {
        Err(AgentError::NotFound(format!("exec {exec_id:?} of {id:?}")))
    }
}

fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut stamp = Timestamp::new();
    stamp.seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    stamp.nanos = i32::try_from(since.subsec_nanos()).unwrap_or(0);
    MessageField::some(stamp)
}

/// The ttrpc service.
#[derive(Debug)]
pub struct TaskService {
    supervisor: Arc<Supervisor>,
}

impl TaskService {
    /// Serves what `supervisor` holds.
    #[must_use]
    pub fn new(supervisor: Arc<Supervisor>) -> Self {
        Self { supervisor }
    }

    fn stopped(response: &mut StateResponse, exit: Exit) {
        response.status = Status::STOPPED.into();
        response.exit_status = exit.status;
        response.exited_at = timestamp(exit.at);
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _ctx: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let request = CreateRequest::parse(&request).map_err(AgentError::from)?;
        let mut response = CreateTaskResponse::new();
        response.pid = self.supervisor.create(request).await?;
        Ok(response)
    }

    async fn start(
        &self,
        _ctx: &TtrpcContext,
        request: StartRequest,
    ) -> ttrpc::Result<StartResponse> {
        let task = init_of(&request.id, &request.exec_id)?;
        let mut response = StartResponse::new();
        response.pid = self.supervisor.start(task)?;
        Ok(response)
    }

    async fn state(
        &self,
        _ctx: &TtrpcContext,
        request: StateRequest,
    ) -> ttrpc::Result<StateResponse> {
        let instance = self
            .supervisor
            .instance(init_of(&request.id, &request.exec_id)?)?;
        let mut response = StateResponse::new();
        response.id = request.id;
        response.pid = instance.pid();
        match instance.phase() {
            Phase::Created => response.status = Status::CREATED.into(),
            Phase::Running => response.status = Status::RUNNING.into(),
            Phase::Stopped(exit) => Self::stopped(&mut response, exit),
        }
        Ok(response)
    }

    async fn wait(&self, _ctx: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let task = init_of(&request.id, &request.exec_id)?;
        let exit = self.supervisor.wait(task).await?;
        let mut response = WaitResponse::new();
        response.exit_status = exit.status;
        response.exited_at = timestamp(exit.at);
        Ok(response)
    }

    async fn kill(&self, _ctx: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let task = init_of(&request.id, &request.exec_id)?;
        let signal = SignalNumber::new(request.signal).ok_or(AgentError::Signal(request.signal))?;
        self.supervisor.kill(task, signal)?;
        Ok(Empty::new())
    }

    async fn delete(
        &self,
        _ctx: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let task = init_of(&request.id, &request.exec_id)?;
        let (pid, exit) = self.supervisor.delete(task)?;
        let mut response = DeleteResponse::new();
        response.pid = pid;
        response.exit_status = exit.status;
        response.exited_at = timestamp(exit.at);
        Ok(response)
    }

    /// The end of stdin is the stream's half-close, which the shim does.
    async fn close_io(&self, _ctx: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let task = init_of(&request.id, &request.exec_id)?;
        self.supervisor.instance(task)?;
        Ok(Empty::new())
    }

    async fn pids(&self, _: &TtrpcContext, _: PidsRequest) -> ttrpc::Result<PidsResponse> {
        unimplemented("Pids")
    }

    async fn pause(&self, _: &TtrpcContext, _: PauseRequest) -> ttrpc::Result<Empty> {
        unimplemented("Pause")
    }

    async fn resume(&self, _: &TtrpcContext, _: ResumeRequest) -> ttrpc::Result<Empty> {
        unimplemented("Resume")
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        unimplemented("Checkpoint")
    }

    async fn exec(&self, _: &TtrpcContext, _: ExecProcessRequest) -> ttrpc::Result<Empty> {
        unimplemented("Exec")
    }

    async fn resize_pty(&self, _: &TtrpcContext, _: ResizePtyRequest) -> ttrpc::Result<Empty> {
        unimplemented("ResizePty")
    }

    async fn update(&self, _: &TtrpcContext, _: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        unimplemented("Update")
    }

    async fn stats(&self, _: &TtrpcContext, _: StatsRequest) -> ttrpc::Result<StatsResponse> {
        unimplemented("Stats")
    }

    async fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        unimplemented("Connect")
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        unimplemented("Shutdown")
    }
}
