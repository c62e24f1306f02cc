//! The seam below a task: [`Workload`], programs in a VM of their own, the holder of a pod's namespaces, or a fake in
//! tests.
//!
//! The task decides what containerd is told and when; the workload knows where programs run, and [`Programs`] what
//! may be asked of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use protobuf::well_known_types::any::Any;
use wasmvm_protocol::agent::Program;
use wasmvm_protocol::agent::containerd::api::Mount;
use wasmvm_protocol::inspect::Node;

use crate::accounting::Accounting;
use crate::agent::{AgentError, Programs};
use crate::bundle::{PodPlace, ProcessSpec};
use crate::error::Refusal;
use crate::guest_deadline::GuestClock;
use crate::pod::Pod;
use crate::signals;
use crate::stdio::{GuestStreams, Stdio};
use crate::vm::VmEnd;

/// The fields of a `Create` request but for the streams.
#[derive(Clone, Debug)]
pub(crate) struct WorkloadOrder {
    /// containerd's namespace, within which the id is unique.
    pub namespace: String,
    pub id: String,
    /// Path of the bundle's directory.
    pub bundle: PathBuf,
    /// Mounts that make the rootfs, in their order.
    pub rootfs: Vec<Mount>,
    /// The runtime's options, of whatever type.
    pub options: Option<Any>,
    /// The task's place among pods.
    pub membership: Membership,
}

/// A task's place among pods: [`PodPlace`], with the pod itself.
#[derive(Clone, Debug, Default)]
pub(crate) enum Membership {
    /// The task belongs to no pod.
    #[default]
    Alone,
    /// The task is a pod's sandbox.
    Sandbox,
    /// The task is a container of this pod.
    Container(Arc<Pod>),
}

impl WorkloadOrder {
    /// Id of the pod that the task belongs to, or is the sandbox of.
    #[must_use]
    pub(crate) fn pod_id(&self) -> Option<&str> {
        match &self.membership {
            Membership::Alone => None,
            Membership::Sandbox => Some(&self.id),
            Membership::Container(pod) => Some(pod.id()),
        }
    }
}

/// The program of an exec, ready to be loaded.
#[derive(Debug)]
pub(crate) struct LoadedProgram {
    /// The description of the program that the agent gets.
    pub program: Program,
    /// The lease that keeps the program's slot.
    pub slot: SlotLease,
}

/// An instance's use of a slot; the slot is free when all its leases are dropped.
#[derive(Clone, Debug)]
pub(crate) struct SlotLease {
    index: u32,
    /// Held for the count of its holders: the slot is free when no lease is left.
    _user: Arc<()>,
}

impl SlotLease {
    /// A lease of slot `index`, which counts the holders of `user` as the users of the slot.
    #[must_use]
    pub(crate) fn new(index: u32, user: Arc<()>) -> Self {
        Self { index, _user: user }
    }

    /// The slot's number, from 0.
    #[must_use]
    pub(crate) fn index(&self) -> u32 {
        self.index
    }
}

/// The maker of workloads: this host, or a fake in tests.
#[async_trait]
pub(crate) trait WorkloadMaker: Send + Sync + 'static {
    /// The place among pods that a bundle claims for the task of this id.
    async fn place(&self, bundle: &Path, id: &str) -> Result<PodPlace, Refusal>;

    /// Boots a VM and connects to its agent, whose deadlines count by `clock`. A failure leaves nothing; after
    /// a future that was dropped, [`WorkloadMaker::undo`] has to follow.
    async fn create(
        &self,
        order: WorkloadOrder,
        clock: GuestClock,
    ) -> Result<Arc<dyn Workload>, Refusal>;

    /// Removes all that a dropped [`WorkloadMaker::create`] has left of this order.
    async fn undo(&self, order: &WorkloadOrder) -> Result<(), Refusal>;
}

/// The programs of one task, the VM that they run in, and everything on the host that belongs to either.
#[async_trait]
pub(crate) trait Workload: Send + Sync + 'static {
    /// The VMM's pid on the host, which containerd knows as the task's.
    fn pid(&self) -> u32;
    /// The limits and the use of the task.
    fn accounting(&self) -> &Arc<Accounting>;
    /// The pod whose sandbox this is; `None` for programs.
    fn pod(&self) -> Option<&Arc<Pod>> {
        None
    }

    /// Loads init with its streams, which are open from then on.
    async fn create(&self, stdio: &Stdio, terminal: bool) -> Result<GuestStreams, AgentError>;
    /// Has init's program compiled again and mapped, for a guest that cannot load the present artifact.
    async fn compile_again(&self) -> Result<(), Refusal>;
    /// The programs that are loaded.
    fn programs(&self) -> &dyn Programs;
    /// Finds the program of an exec and has it mapped.
    async fn find(&self, process: &ProcessSpec) -> Result<LoadedProgram, Refusal>;
    /// Stops the VM: afterwards nothing of the guest runs.
    async fn pause(&self) -> Result<(), Refusal>;
    /// Lets the guest run again. A guest that runs is not an error.
    async fn resume(&self) -> Result<(), Refusal>;
    /// The state of the machine and its devices, in the VMM's words, which has `limit` to answer.
    async fn inspect(&self, limit: Duration) -> Result<Node, Refusal>;
    /// The status with which init exits by this signal; `None` for a signal that does not end init.
    fn status_by(&self, signal: u32) -> Option<u32> {
        signals::default_status(signal)
    }
    /// Waits for the end of the VM; any number of callers may wait.
    async fn vm_ended(&self) -> VmEnd;
    /// Ends the VM at once, whatever the guest does.
    fn kill_vm(&self);

    /// Runs the poststart hooks, once init's program has started.
    async fn poststart(&self) -> Result<(), Refusal>;
    /// Keeps the exit for a `delete` after the shim's death.
    fn record_exit(&self, status: u32, exited_at: SystemTime);
    /// Ends the VM, waits for its end and removes all that belongs to the VM but the record of the exit.
    /// Idempotent.
    async fn release(&self) -> Result<(), Refusal>;
    /// Removes the record of the exit too, after all that [`Workload::release`] does: nothing is known
    /// of the task any more. Idempotent.
    async fn destroy(&self) -> Result<(), Refusal>;
}
