//! [`TaskVm`]: the VM of one task as its [`Workload`], from a bundle to an agent that listens, to the removal of all
//! that belongs to the VM.
//!
//! ```text
//! TaskSpec ─► journal ─► cgroup ─► launch thread: tree, program, VMM ─┬─► guest boots ───────┬─► slot ─► ready
//!                                                                     └─► artifact resolved ─┘
//! ```
//!
//! When a step fails, [`crate::cleanup`] undoes the steps before it.

mod boot;
mod compiler_cgroup;
mod description;
mod error;
mod load;
mod resolve;
mod slots;

pub(crate) use self::boot::HostMaker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::Mutex;
use wasmvm_protocol::inspect::Node;

use self::description::describe;
use self::resolve::Resolver;
use self::slots::Slots;
use crate::accounting::Accounting;
use crate::agent::{Agent, AgentError, Programs};
use crate::bundle::{ProcessSpec, TaskSpec};
use crate::cleanup::{self, Cleanup, undo_off_thread};
use crate::error::Refusal;
use crate::hooks::{hook_state, run_poststart};
use crate::journal::Journal;
use crate::program::Found;
use crate::stdio::{GuestStreams, Stdio};
use crate::tree::DeviceMount;
use crate::vm::{Vm, VmEnd, credentials};
use crate::workload::{LoadedProgram, SlotLease, Workload};

/// A VM whose agent listens and whose first slot holds init's artifact.
#[derive(Debug)]
pub(crate) struct TaskVm {
    namespace: String,
    id: String,
    bundle: PathBuf,
    spec: Arc<TaskSpec>,
    devices: Vec<DeviceMount>,
    accounting: Arc<Accounting>,
    journal: Arc<Journal>,
    resolver: Resolver,
    vm: Vm,
    agent: Agent,
    slots: Mutex<Slots>,
    /// Init's slot, held as long as the VM lives.
    slot: SlotLease,
    /// The findings about init's program in the task's tree.
    found: Found,
}

impl TaskVm {
    async fn end(&self, cleanup: Cleanup) -> Result<(), Refusal> {
        self.vm.kill();
        self.vm.ended().await;
        self.accounting.close();
        undo_off_thread(cleanup, &self.namespace, &self.id).await
    }
}

#[async_trait]
impl Workload for TaskVm {
    fn pid(&self) -> u32 {
        self.vm.pid()
    }

    fn accounting(&self) -> &Arc<Accounting> {
        &self.accounting
    }

    async fn create(&self, stdio: &Stdio, terminal: bool) -> Result<GuestStreams, AgentError> {
        let init = describe(self, &self.spec.process, &self.found, 0);
        self.agent.create(init, stdio, terminal).await
    }

    async fn compile_again(&self) -> Result<(), Refusal> {
        self.recompile().await
    }

    async fn find(&self, process: &ProcessSpec) -> Result<LoadedProgram, Refusal> {
        credentials::check_exec(&self.spec, &process.user)?;
        let (slot, found) = self.find_and_map(process).await?;
        let program = describe(self, process, &found, slot.index());
        Ok(LoadedProgram { program, slot })
    }

    fn programs(&self) -> &dyn Programs {
        &self.agent
    }

    async fn pause(&self) -> Result<(), Refusal> {
        Ok(self.vm.pause().await?)
    }

    async fn resume(&self) -> Result<(), Refusal> {
        Ok(self.vm.resume().await?)
    }

    async fn inspect(&self, limit: Duration) -> Result<Node, Refusal> {
        Ok(self.vm.inspect(limit).await?)
    }

    async fn vm_ended(&self) -> VmEnd {
        self.vm.ended().await
    }

    fn kill_vm(&self) {
        self.vm.kill();
    }

    async fn poststart(&self) -> Result<(), Refusal> {
        let state = hook_state(&self.id, &self.bundle, &self.spec, self.pid());
        Ok(run_poststart(&self.spec, state).await?)
    }

    fn record_exit(&self, status: u32, exited_at: SystemTime) {
        self.journal.record_exit(status, exited_at);
    }

    async fn release(&self) -> Result<(), Refusal> {
        self.end(cleanup::release).await
    }

    async fn destroy(&self) -> Result<(), Refusal> {
        self.end(cleanup::undo).await
    }
}
