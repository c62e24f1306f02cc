//! [`Holder`]: a pod's sandbox container as a [`Workload`], from a bundle to the removal of all that belongs to it.
//!
//! A sandbox has no VM and runs no program. The *holder*, a small process of ours (`shim/holder`), stands in the pod's
//! cgroup and network namespace with PID, IPC and UTS namespaces of its own: containerd's CRI plugin names
//! `/proc/<pid>/ns/…` of the sandbox in the specs of the pod's containers.
//!
//! ```text
//! TaskSpec ─► journal ─► cgroup ─► launch thread: empty root, network, host name ─► holder, confined ─► hooks
//! ```

mod launch;
mod programs;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::watch;
use wasmvm_protocol::inspect::Node;

use self::launch::{HolderProcess, HolderRequest, launch};
use crate::accounting::Accounting;
use crate::agent::{AgentError, Programs};
use crate::bundle::{ProcessSpec, RAM_MIB_MAX, TaskSpec};
use crate::cgroup::Cgroup;
use crate::cleanup::{self, Cleanup, undo_off_thread};
use crate::config::GuestFiles;
use crate::error::{ErrorCode, Refusal};
use crate::hooks::{hook_state, run_create_hooks, run_poststart};
use crate::host_process::{HostProcess, start_time};
use crate::journal::{Journal, Step};
use crate::log::spawn_in_span;
use crate::pod::Pod;
use crate::signals;
use crate::stdio::{GuestStreams, Stdio};
use crate::vm::VmEnd;
use crate::workload::{LoadedProgram, Workload, WorkloadOrder};

/// The exit status of a holder after SIGINT or SIGTERM: that of Kubernetes' pause program.
const STATUS_ASKED: u32 = 0;

/// The process that stands for a pod's sandbox container.
#[derive(Debug)]
pub(crate) struct Holder {
    order: WorkloadOrder,
    spec: Arc<TaskSpec>,
    pod: Arc<Pod>,
    accounting: Arc<Accounting>,
    journal: Arc<Journal>,
    process: HolderProcess,
    /// The exit status, once the process has exited and is reaped.
    exit: watch::Receiver<Option<u32>>,
}

impl Holder {
    /// Starts the holder of a pod in the cgroup of its spec, and runs the hooks of `Create`.
    ///
    /// # Errors
    /// [`Refusal`]; the journal has the steps to undo then.
    pub(crate) async fn create(
        order: WorkloadOrder,
        spec: Arc<TaskSpec>,
        journal: Arc<Journal>,
        files: &GuestFiles,
    ) -> Result<Self, Refusal> {
        let cgroup = Cgroup::of_task(&order.namespace, &order.id, &spec, &journal).await?;
        let process = launch(HolderRequest {
            program: files.holder.clone(),
            hostname: spec.hostname.clone(),
            network: spec.network.clone(),
            sysctls: spec.sysctls.clone(),
            cgroup: cgroup.birth()?,
            oom_score_adj: spec.oom_score_adj.unwrap_or(0),
        })
        .await?;
        // From here on the holder is reaped, whatever fails.
        let exit = watch_exit(process.host.clone());
        let pid = process.host.pid();
        let start_time = start_time(pid).map_err(|error| {
            let sentence = format!("cannot read the start time of the pod's holder: {error}");
            Refusal::say(ErrorCode::Internal, sentence)
        })?;
        journal.record(&Step::Holder { pid, start_time })?;
        let state = hook_state(&order.id, &order.bundle, &spec, pid);
        run_create_hooks(&spec, state, &journal).await?;
        let pod = Pod::new(&order.id, &spec.hostname, &order.bundle, journal.clone());
        let memory_bytes_max = spec.memory_bytes_max();
        Ok(Self {
            // A sandbox has no RAM that could be too small for a limit.
            accounting: Arc::new(Accounting::new(cgroup, RAM_MIB_MAX, memory_bytes_max)),
            exit,
            order,
            spec,
            pod: Arc::new(pod),
            journal,
            process,
        })
    }

    /// Waits until the process has exited and is reaped; returns its exit status.
    async fn exited(&self) -> u32 {
        let mut exit = self.exit.clone();
        let exited = exit.wait_for(Option::is_some).await;
        // Without a sender the runtime is ending.
        exited.ok().and_then(|exit| *exit).unwrap_or(STATUS_KILLED)
    }

    async fn end(&self, cleanup: Cleanup) -> Result<(), Refusal> {
        self.process.host.kill();
        self.pod.end_work().await;
        self.exited().await;
        self.accounting.close();
        undo_off_thread(cleanup, &self.order.namespace, &self.order.id).await
    }
}

/// The exit status of a process whose end nobody has seen.
const STATUS_KILLED: u32 = signals::status_of(signals::SIGKILL);

/// Waits for the process in a task of the runtime, which reaps it also after the last [`Holder`] was dropped.
fn watch_exit(process: HostProcess) -> watch::Receiver<Option<u32>> {
    let (exit, exited) = watch::channel(None);
    spawn_in_span(async move {
        let ended = process.wait().await.ok().flatten();
        let status = ended.and_then(|ended| {
            let by_signal = |signal: i32| signals::status_of(signal.unsigned_abs());
            let code = ended.exit_status().map(i32::unsigned_abs);
            code.or_else(|| ended.terminating_signal().map(by_signal))
        });
        exit.send_replace(Some(status.unwrap_or(STATUS_KILLED)));
    });
    exited
}

fn refused(what: &str) -> Refusal {
    let sentence = format!("the sandbox of a pod runs no program and has no VM: {what}");
    Refusal::say(ErrorCode::FailedPrecondition, sentence)
}

#[async_trait]
impl Workload for Holder {
    fn pid(&self) -> u32 {
        self.process.host.pid()
    }

    fn accounting(&self) -> &Arc<Accounting> {
        &self.accounting
    }

    fn pod(&self) -> Option<&Arc<Pod>> {
        Some(&self.pod)
    }

    async fn create(&self, _: &Stdio, _: bool) -> Result<GuestStreams, AgentError> {
        Ok(GuestStreams::default())
    }

    async fn compile_again(&self) -> Result<(), Refusal> {
        Err(refused("nothing is compiled for it"))
    }

    async fn find(&self, _: &ProcessSpec) -> Result<LoadedProgram, Refusal> {
        Err(refused("execute programs in the pod's containers"))
    }

    fn programs(&self) -> &dyn Programs {
        self
    }

    async fn pause(&self) -> Result<(), Refusal> {
        Err(refused("pause the pod's containers"))
    }

    async fn resume(&self) -> Result<(), Refusal> {
        Err(refused("it cannot be paused or resumed"))
    }

    async fn inspect(&self, _: Duration) -> Result<Node, Refusal> {
        Err(refused("there are no devices to look at"))
    }

    fn status_by(&self, signal: u32) -> Option<u32> {
        match signal {
            signals::SIGINT | signals::SIGTERM => Some(STATUS_ASKED),
            signals::SIGKILL => Some(STATUS_KILLED),
            // As with the pause program: the first process of a PID namespace ignores what it does not handle.
            _ => None,
        }
    }

    async fn vm_ended(&self) -> VmEnd {
        let status = self.exited().await;
        VmEnd {
            reason: format!("the holder of the pod exited with status {status}"),
            console_tail: String::new(),
        }
    }

    fn kill_vm(&self) {
        self.process.host.kill();
    }

    async fn poststart(&self) -> Result<(), Refusal> {
        let order = &self.order;
        let state = hook_state(&order.id, &order.bundle, &self.spec, self.pid());
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
