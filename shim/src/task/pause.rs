//! Pausing: the VM stops as a whole, and with it every program of the task.
//!
//! ```text
//!            pause            the VMM is done
//!  Running ────────► Pausing ────────────────► Paused
//!     ▲  ▲              │ a failure              │ resume
//!     │  └──────────────┘                        ▼
//!     └──────────────────────────────────── Resuming
//! ```
//!
//! Messages for a stopped guest are kept, bounded, and sent when the guest runs again: signals as one set a
//! process, as Linux keeps signals itself; the size of a terminal; the changes of `Update`; and the time of
//! day, which has advanced meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use wasmvm_protocol::agent::Change;
use wasmvm_protocol::agent::containerd::events::task::{TaskPaused, TaskResumed};

use super::{LoadedVm, State, Task, TaskError};
use crate::error::Refusal;
use crate::events::Event;
use crate::guest_deadline::GuestClock;
use crate::signals;

/// The flow of a VM: running, paused, or on the way from one to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The VM and its programs run.
    Running,
    /// The VMM has been asked to stop the VM.
    Pausing,
    /// The VM is stopped as a whole.
    Paused,
    /// The VMM has been asked to resume the VM.
    Resuming,
}

/// The programs that a kept signal is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// Init and every exec.
    All,
    /// The exec of this id; an empty id is init's.
    One(String),
}

/// Messages that the guest gets when it runs again.
#[derive(Debug, Default)]
struct Kept {
    /// A set of signals for each target: bit n for signal n + 1.
    signals: BTreeMap<Target, u64>,
    change: Option<Change>,
}

/// The flow of one VM, and the messages kept for its guest.
#[derive(Debug)]
pub(super) struct PauseControl {
    flow: watch::Sender<Flow>,
    /// Whether the VM runs, for deadlines in the guest's time.
    runs: watch::Sender<bool>,
    /// Held while the flow is being changed, so that one change follows the other.
    changing: tokio::sync::Mutex<()>,
    kept: Mutex<Kept>,
}

impl Default for PauseControl {
    fn default() -> Self {
        Self {
            flow: watch::Sender::new(Flow::Running),
            runs: watch::Sender::new(true),
            changing: tokio::sync::Mutex::default(),
            kept: Mutex::default(),
        }
    }
}

impl PauseControl {
    /// The flow at this moment.
    pub(super) fn now(&self) -> Flow {
        *self.flow.borrow()
    }

    /// A clock for the guest's time, which stands still while the VM is stopped.
    pub(super) fn clock(&self) -> GuestClock {
        GuestClock::new(self.runs.subscribe())
    }

    fn set(&self, flow: Flow) {
        self.runs.send_replace(flow == Flow::Running);
        self.flow.send_replace(flow);
    }

    /// Waits until the flow is not `Running`.
    pub(super) async fn stopping(&self) {
        // `wait_for` fails only without a sender, and `self` holds the sender.
        let _ = self
            .flow
            .subscribe()
            .wait_for(|flow| *flow != Flow::Running)
            .await;
    }

    /// Keeps a signal for a VM that does not run; `false` when the VM runs.
    pub(super) fn keep_signal(&self, target: Target, signal: u32) -> bool {
        self.keep(|kept| {
            let bit = 1_u64.checked_shl(signal.saturating_sub(1));
            *kept.signals.entry(target).or_default() |= bit.unwrap_or_default();
        })
    }

    fn keep_change(&self, change: &Change) -> bool {
        self.keep(|kept| {
            let memory = change.memory_bytes_max;
            let kept = kept.change.get_or_insert_default();
            kept.memory_bytes_max = memory.or(kept.memory_bytes_max);
        })
    }

    fn keep(&self, what: impl FnOnce(&mut Kept)) -> bool {
        // Locked before the flow is read: a message kept before the flow is Running again is taken
        // afterwards.
        let mut kept = self.kept();
        let stopped = self.now() != Flow::Running;
        if stopped {
            what(&mut kept);
        }
        stopped
    }

    fn take(&self) -> Kept {
        std::mem::take(&mut *self.kept())
    }

    /// The kept messages are whole after every statement.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Task {
    /// Stops the VM. A running program notices nothing but the time of day.
    ///
    /// # Errors
    /// [`TaskError`], unless init and the VM run and the VMM stops the VM.
    pub(crate) async fn pause(self: &Arc<Self>) -> Result<(), TaskError> {
        let vm = self.vm()?;
        let _changing = self.flow.changing.lock().await;
        if self.flow.now() != Flow::Running {
            return Err(TaskError::Paused(self.init.name().to_owned()));
        }
        self.must_run()?;
        self.flow.set(Flow::Pausing);
        if let Err(source) = vm.workload.pause().await {
            // The VMM may have stopped the VM all the same, and a VM must not stay stopped by half.
            let left = vm.workload.resume().await;
            self.runs_again(vm).await;
            log_left(self.init.name(), left);
            return Err(self.vm_error("pause", source));
        }
        if *self.ending.borrow() {
            // Init's last output is still in the guest.
            self.let_go(vm).await;
            return Err(TaskError::InitNotRunning(self.init.name().to_owned()));
        }
        self.flow.set(Flow::Paused);
        self.events.publish(Event::Paused(TaskPaused {
            container_id: self.order.id.clone(),
            ..Default::default()
        }));
        Ok(())
    }

    /// Resumes the VM; then the guest gets the messages that were kept for it.
    ///
    /// # Errors
    /// [`TaskError`], unless the VM is paused and the VMM resumes the VM.
    pub(crate) async fn resume(self: &Arc<Self>) -> Result<(), TaskError> {
        let vm = self.vm()?;
        let _changing = self.flow.changing.lock().await;
        if self.flow.now() != Flow::Paused {
            return Err(TaskError::NotPaused(self.init.name().to_owned()));
        }
        self.flow.set(Flow::Resuming);
        if let Err(source) = vm.workload.resume().await {
            self.flow.set(Flow::Paused);
            return Err(self.vm_error("resume", source));
        }
        // Published before a kept signal ends a program.
        self.events.publish(Event::Resumed(TaskResumed {
            container_id: self.order.id.clone(),
            ..Default::default()
        }));
        self.runs_again(vm).await;
        Ok(())
    }

    /// Resumes a VM that was paused a moment before init exited: the VM has output to deliver.
    pub(super) async fn unpause(self: &Arc<Self>) {
        let Ok(vm) = self.vm() else { return };
        let _changing = self.flow.changing.lock().await;
        if self.flow.now() == Flow::Paused {
            self.let_go(vm).await;
        }
    }

    async fn let_go(&self, vm: &LoadedVm) {
        let left = vm.workload.resume().await;
        self.flow.set(Flow::Running);
        log_left(self.init.name(), left);
    }

    /// Sends a change to the guest; while the VM does not run, the change is kept until it does.
    ///
    /// # Errors
    /// [`TaskError`]
    pub(crate) async fn tell(&self, change: Change) -> Result<(), TaskError> {
        let vm = self.vm()?;
        if self.flow.keep_change(&change) {
            return Ok(());
        }
        tokio::select! {
            biased;
            told = vm.programs().update(change.clone()) => Ok(told?),
            () = self.flow.stopping() => {
                self.flow.keep_change(&change);
                Ok(())
            }
        }
    }

    /// Marks the VM as running and sends the guest the messages that it has missed.
    async fn runs_again(self: &Arc<Self>, vm: &LoadedVm) {
        self.flow.set(Flow::Running);
        let kept = self.flow.take();
        let name = self.init.name();
        let each_of =
            |signals: u64| (1..=u64::BITS).filter(move |signal| signals & (1 << (signal - 1)) != 0);
        // Deadlines begin before anything is sent: a silent guest must not gain time by the messages in
        // front.
        for (target, signals) in &kept.signals {
            for signal in each_of(*signals).filter(|signal| signals::ends_by_default(*signal)) {
                self.insist_on(target, signal);
            }
        }
        if let Err(error) = vm.programs().update(kept.change.unwrap_or_default()).await {
            tracing::warn!(name, %error, "the guest does not know the time of day");
        }
        self.tell_sizes(vm).await;
        for (target, signals) in kept.signals {
            for signal in each_of(signals) {
                let told = match &target {
                    Target::All => vm.programs().kill("", signal, true).await,
                    Target::One(exec) => vm.programs().kill(exec, signal, false).await,
                };
                if let Err(error) = told {
                    tracing::warn!(name, ?target, signal, %error, "a kept signal is lost");
                    if error.is_silence() {
                        return;
                    }
                }
            }
        }
    }

    /// Notes that `target` is to end by `signal`, and begins the deadline for it.
    fn insist_on(self: &Arc<Self>, target: &Target, signal: u32) {
        match target {
            Target::One(id) if !id.is_empty() => {
                // An exec that has been deleted meanwhile has ended.
                if let Ok(exec) = self.exec_of(id) {
                    self.insist_on_exec(&exec, signal);
                }
            }
            Target::All | Target::One(_) => self.insist(signal, signals::status_of(signal)),
        }
    }

    /// Succeeds while programs can be started: init runs, and the VM does.
    pub(super) fn must_run(&self) -> Result<(), TaskError> {
        let name = self.init.name().to_owned();
        if self.init.state() != State::Running || *self.ending.borrow() {
            return Err(TaskError::InitNotRunning(name));
        }
        match self.flow.now() {
            Flow::Running => Ok(()),
            _ => Err(TaskError::Paused(name)),
        }
    }

    fn vm_error(&self, action: &'static str, source: Refusal) -> TaskError {
        let name = self.init.name().to_owned();
        TaskError::Vm {
            action,
            name,
            source,
        }
    }
}

fn log_left(name: &str, resumed: Result<(), Refusal>) {
    // A VM that has ended is the usual reason.
    if let Err(error) = resumed {
        tracing::debug!(name, %error, "the VM may not run");
    }
}
