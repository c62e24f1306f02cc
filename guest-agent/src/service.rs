//! containerd's Task service on the supervisor. No logic: parse, call, answer.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField};
use ttrpc::r#async::TtrpcContext;
use wasmvm_protocol::agent::containerd::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use wasmvm_protocol::agent::containerd::shim_async::Task;
use wasmvm_protocol::agent::{INSTANCE_TYPE_URL, REPLY_BYTES_MAX, USAGE_TYPE_URL, Usage};

use crate::error::AgentError;
use crate::instance::{Exit, Phase};
use crate::request::{self, LoadRequest};
use crate::signal::SignalNumber;
use crate::supervisor::Supervisor;
use crate::table::InstanceId;

/// Of a PidsResponse, bytes: what the shim takes, less the frame around it.
const PIDS_BYTES_MAX: u64 = REPLY_BYTES_MAX as u64 - 256;

/// What the agent says to every method that is the shim's or the VMM's alone.
fn unimplemented<T>(method: &'static str) -> ttrpc::Result<T> {
    Err(AgentError::Unimplemented(method).into())
}

fn instance_id(task: &str, exec: &str) -> InstanceId {
    InstanceId {
        task: task.to_owned(),
        exec: exec.to_owned(),
    }
}

fn any(type_url: &str, message: &impl Message) -> Result<Any, AgentError> {
    let mut any = Any::new();
    any.type_url = type_url.into();
    any.value = message
        .write_to_bytes()
        .map_err(|error| AgentError::System("encode the answer", error.into()))?;
    Ok(any)
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
        let request = LoadRequest::create(&request).map_err(AgentError::from)?;
        let mut response = CreateTaskResponse::new();
        response.pid = self.supervisor.load(request).await?;
        Ok(response)
    }

    async fn start(
        &self,
        _ctx: &TtrpcContext,
        request: StartRequest,
    ) -> ttrpc::Result<StartResponse> {
        let id = instance_id(&request.id, &request.exec_id);
        let mut response = StartResponse::new();
        response.pid = self.supervisor.start(&id)?;
        Ok(response)
    }

    async fn state(
        &self,
        _ctx: &TtrpcContext,
        request: StateRequest,
    ) -> ttrpc::Result<StateResponse> {
        let id = instance_id(&request.id, &request.exec_id);
        let instance = self.supervisor.instance(&id)?;
        let mut response = StateResponse::new();
        response.id = request.id;
        response.exec_id = request.exec_id;
        response.pid = instance.pid();
        response.terminal = instance.has_terminal();
        match instance.phase() {
            Phase::Created => response.status = Status::CREATED.into(),
            Phase::Running | Phase::Ending => response.status = Status::RUNNING.into(),
            Phase::Stopped(exit) => Self::stopped(&mut response, exit),
        }
        Ok(response)
    }

    async fn wait(&self, _ctx: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let id = instance_id(&request.id, &request.exec_id);
        let exit = self.supervisor.wait(&id).await?;
        let mut response = WaitResponse::new();
        response.exit_status = exit.status;
        response.exited_at = timestamp(exit.at);
        Ok(response)
    }

    async fn kill(&self, _ctx: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let id = instance_id(&request.id, &request.exec_id);
        let signal = SignalNumber::new(request.signal).ok_or(AgentError::Signal(request.signal))?;
        self.supervisor.kill(&id, signal, request.all)?;
        Ok(Empty::new())
    }

    async fn delete(
        &self,
        _ctx: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let id = instance_id(&request.id, &request.exec_id);
        let (pid, exit) = self.supervisor.delete(&id)?;
        let mut response = DeleteResponse::new();
        response.pid = pid;
        response.exit_status = exit.status;
        response.exited_at = timestamp(exit.at);
        Ok(response)
    }

    /// The end of stdin is the stream's half-close, which the shim does.
    async fn close_io(&self, _ctx: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let id = instance_id(&request.id, &request.exec_id);
        self.supervisor.instance(&id)?;
        Ok(Empty::new())
    }

    /// Loads the program; Start lets it run.
    async fn exec(&self, _ctx: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let request = LoadRequest::exec(&request).map_err(AgentError::from)?;
        self.supervisor.load(request).await?;
        Ok(Empty::new())
    }

    async fn resize_pty(
        &self,
        _ctx: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let size = request::window_size(&request).map_err(AgentError::from)?;
        let id = instance_id(&request.id, &request.exec_id);
        self.supervisor.instance(&id)?.resize(size)?;
        Ok(Empty::new())
    }

    async fn update(
        &self,
        _ctx: &TtrpcContext,
        request: UpdateTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let change = request::change(&request).map_err(AgentError::from)?;
        let id = instance_id(&request.id, "");
        self.supervisor.update(&id, &change)?;
        Ok(Empty::new())
    }

    async fn stats(
        &self,
        _ctx: &TtrpcContext,
        request: StatsRequest,
    ) -> ttrpc::Result<StatsResponse> {
        self.supervisor.instance(&instance_id(&request.id, ""))?;
        let mut usage = Usage::new();
        usage.oom_kills = self.supervisor.oom_kills();
        let mut response = StatsResponse::new();
        response.stats = MessageField::some(any(USAGE_TYPE_URL, &usage)?);
        Ok(response)
    }

    /// The pids of what runs in the guest, with what it does there: as many as one answer holds.
    async fn pids(&self, _ctx: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let mut response = PidsResponse::new();
        for instance in self.supervisor.instances(&request.id)? {
            let mut process = ProcessInfo::new();
            process.pid = instance.pid();
            let info = any(INSTANCE_TYPE_URL, &instance.look());
            process.info = MessageField::some(info?);
            response.processes.push(process);
            if response.compute_size() > PIDS_BYTES_MAX {
                response.processes.pop();
                break;
            }
        }
        Ok(response)
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

    async fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        unimplemented("Connect")
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        unimplemented("Shutdown")
    }
}
