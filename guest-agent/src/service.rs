//! containerd's Task service for the shim, on the supervisor. No logic: parse, call, answer.

use std::sync::Arc;

use async_trait::async_trait;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use ttrpc::r#async::TtrpcContext;
use wasmvm_protocol::agent::containerd::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty,
    ExecProcessRequest, KillRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest,
    StartRequest, StartResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use wasmvm_protocol::agent::containerd::shim_async::Task;
use wasmvm_protocol::agent::{INSTANCE_TYPE_URL, REPLY_BYTES_MAX, USAGE_TYPE_URL, Usage};

use crate::error::AgentError;
use crate::instance_id::InstanceId;
use crate::request::{self, LoadRequest};
use crate::signal::SignalNumber;
use crate::supervisor::Supervisor;

/// Longest PidsResponse, bytes: what the shim takes, less the frame around it.
const PIDS_BYTES_MAX: u64 = REPLY_BYTES_MAX as u64 - 256;

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

/// The Task service of the agent, for ttrpc.
#[derive(Debug)]
pub struct TaskService {
    supervisor: Arc<Supervisor>,
}

impl TaskService {
    /// A service of the instances that `supervisor` holds.
    #[must_use]
    pub fn new(supervisor: Arc<Supervisor>) -> Self {
        Self { supervisor }
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
        self.supervisor.load(request).await?;
        Ok(CreateTaskResponse::new())
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

    async fn wait(&self, _ctx: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let id = instance_id(&request.id, &request.exec_id);
        let mut response = WaitResponse::new();
        response.exit_status = self.supervisor.wait(&id).await?;
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
        self.supervisor.delete(&id)?;
        Ok(DeleteResponse::new())
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
}
