//! `Create`: streams opened, VM booted, program loaded.
//!
//! Cheap refusals come first. `Delete` may come at any point (`ctr` gave up) and ends the boot.

use std::sync::Arc;

use protobuf::MessageField;
use wasmvm_protocol::agent::containerd::events::task::{TaskCreate, TaskIO};

use super::{LoadedVm, Move, Task, time_of_day, watcher};
use crate::agent::{Agent, AgentError};
use crate::error::{self, Coded, ErrorCode, Refusal};
use crate::events::Event;
use crate::stdio::{GuestStreams, Pumps, Stdio, StdioError, StdioOwner};
use crate::vm::{VmEnd, end_behind_silence};
use crate::workload::{Workload, WorkloadMaker};

/// Why a task was not created.
#[derive(Debug, thiserror::Error)]
pub(super) enum CreateError {
    /// A stream of the request cannot be opened.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The bundle, the rootfs, the program or the host stands against the workload.
    #[error(transparent)]
    TaskVm(Refusal),
    /// The agent did not load the program.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The VM ended before the program was loaded.
    #[error("the VM ended before the program was loaded: {}{}", .0.reason, error::console(&.0.console_tail))]
    VmEnded(VmEnd),
    /// `Delete` of the task came while the task was being created; holds its id.
    #[error("task {0} was deleted while it was being created")]
    Aborted(String),
}

impl Coded for CreateError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Stdio(error) => error.code(),
            Self::TaskVm(refusal) => refusal.code,
            Self::Agent(error) => error.code(),
            Self::VmEnded(_) => ErrorCode::Unavailable,
            Self::Aborted(_) => ErrorCode::FailedPrecondition,
        }
    }
}

impl Task {
    /// Boots the VM, loads the program and returns the task's pid.
    pub(super) async fn create(
        self: &Arc<Self>,
        maker: &dyn WorkloadMaker,
    ) -> Result<u32, CreateError> {
        let owner = StdioOwner {
            namespace: &self.order.namespace,
            id: &self.order.id,
        };
        let stdio = Stdio::open(&self.init.stdio, &owner).await?;
        let workload = tokio::select! {
            made = maker.create(self.order.clone()) => made.map_err(CreateError::TaskVm)?,
            error = self.aborted() => {
                if let Err(left) = maker.undo(&self.order).await {
                    tracing::error!(task_id = %self.order.id, %left, "cannot undo an aborted create");
                }
                return Err(error);
            }
        };
        let loaded = tokio::select! {
            loaded = self.load(&*workload, &stdio) => loaded,
            error = self.aborted() => Err(error),
        };
        match loaded {
            Ok((agent, streams)) => Ok(self.created(workload, agent, stdio, streams)),
            Err(error) => {
                let error = explain(&*workload, error).await;
                if let Err(left) = workload.destroy().await {
                    tracing::error!(task_id = %self.order.id, %left, "cannot undo a failed create");
                }
                Err(error)
            }
        }
    }

    async fn aborted(&self) -> CreateError {
        // `wait_for` fails only without a sender, and the task holds the sender.
        let _ = self.abort.subscribe().wait_for(|abort| *abort).await;
        CreateError::Aborted(self.order.id.clone())
    }

    async fn load(
        &self,
        workload: &dyn Workload,
        stdio: &Stdio,
    ) -> Result<(Agent, GuestStreams), CreateError> {
        let load = async {
            let agent = Agent::connect(workload, &self.order.id, self.flow.clock()).await?;
            let streams = match agent.create(workload, stdio, self.init.terminal).await {
                // Nothing of the tenant has run, so the agent's answer can still be believed.
                Err(error) if error.is_unfit() => {
                    tracing::warn!(task_id = %self.order.id, %error, "compiling it again");
                    workload
                        .compile_again()
                        .await
                        .map_err(CreateError::TaskVm)?;
                    agent.create(workload, stdio, self.init.terminal).await
                }
                first => first,
            };
            Ok::<_, CreateError>((agent, streams?))
        };
        tokio::select! {
            biased;
            loaded = load => loaded,
            end = workload.vm_ended() => Err(CreateError::VmEnded(end)),
        }
    }

    fn created(
        self: &Arc<Self>,
        workload: Arc<dyn Workload>,
        agent: Agent,
        stdio: Stdio,
        streams: GuestStreams,
    ) -> u32 {
        let pid = workload.pid();
        let pumps = Pumps::start(stdio, streams, &self.init.switch, &self.flow.clock());
        self.init.set_flowing();
        let vm = LoadedVm {
            workload,
            agent,
            destroyed: tokio::sync::Mutex::new(false),
        };
        // VM and state are set once: nothing else sets either while the task is being created.
        let set = self.vm.set(vm).is_ok();
        let told = self.init.transition_and_publish(Move::Created, |_| {
            self.events.publish(Event::Create(self.create_event(pid)));
        });
        debug_assert!(set && told.is_ok(), "a task is created once");
        tokio::spawn(watcher::watch(self.clone(), pumps));
        tokio::spawn(time_of_day::keep(self.clone()));
        pid
    }

    fn create_event(&self, pid: u32) -> TaskCreate {
        TaskCreate {
            container_id: self.order.id.clone(),
            bundle: self.bundle(),
            rootfs: self.order.rootfs.clone(),
            io: MessageField::some(TaskIO {
                stdin: self.init.stdio.stdin.clone(),
                stdout: self.init.stdio.stdout.clone(),
                stderr: self.init.stdio.stderr.clone(),
                terminal: self.init.terminal,
                ..Default::default()
            }),
            pid,
            ..Default::default()
        }
    }
}

/// Replaces the error of a silent agent by the VM's end, if the VM has ended.
async fn explain(workload: &dyn Workload, error: CreateError) -> CreateError {
    let silent = matches!(&error, CreateError::Agent(agent) if agent.is_silence());
    if !silent {
        return error;
    }
    let end = end_behind_silence(workload.vm_ended()).await;
    end.map_or(error, CreateError::VmEnded)
}
