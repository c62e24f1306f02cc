//! Pausing: the VM stops as a whole, and with it every program of the task.
//!
//! ```text
//!            pause            the VMM is done
//!  Running ────────► Pausing ────────────────► Paused
//!     ▲  ▲              │ it failed              │ resume
//!     │  └──────────────┘                        ▼
//!     └──────────────────────────────────── Resuming
//! ```
//!
//! What a stopped guest cannot be told is kept, bounded, and told when it runs again: signals as one set
//! a process, as Linux keeps them itself; the size of a terminal; what `Update` has changed; and the time
//! of day, which has gone on without it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use wasmvm_protocol::agent::Change;
use wasmvm_protocol::agent::containerd::events::task::{TaskPaused, TaskResumed};

use super::{State, Task, TaskError, Vm, signals};
use crate::error::Refusal;
use crate::events::Event;
use crate::patience::Clock;

/// Whether the VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It does.
    Running,
    /// The VMM has been told to stop it.
    Pausing,
    /// It does not.
    Paused,
    /// The VMM has been told to let it go on.
    Resuming,
}

/// Whom a kept signal is for: an exec, by its id, or init, or with init all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Every program.
    All,
    /// One; init's id is empty.
    One(String),
}

/// What the guest is to be told when it runs again.
#[derive(Debug, Default)]
struct Kept {
    /// Bit n for signal n + 1.
    signals: BTreeMap<Target, u64>,
    change: Option<Change>,
}

/// The flow of one VM.
#[derive(Debug)]
pub struct FlowControl {
    flow: watch::Sender<Flow>,
    /// For the guest's deadlines.
    runs: watch::Sender<bool>,
    /// Held by who changes the flow.
    turn: tokio::sync::Mutex<()>,
    kept: Mutex<Kept>,
}

impl Default for FlowControl {
    fn default() -> Self {
        Self {
            flow: watch::Sender::new(Flow::Running),
            runs: watch::Sender::new(true),
            turn: tokio::sync::Mutex::default(),
            kept: Mutex::default(),
        }
    }
}

impl FlowControl {
    /// Now.
    pub fn now(&self) -> Flow {
        *self.flow.borrow()
    }

    /// The guest's time.
    pub fn clock(&self) -> Clock {
        Clock::new(self.runs.subscribe())
    }

    fn set(&self, flow: Flow) {
        self.runs.send_replace(flow == Flow::Running);
        self.flow.send_replace(flow);
    }

    /// Waits until it does not.
    pub async fn stopping(&self) {
        // As above.
        let _ = self
            .flow
            .subscribe()
            .wait_for(|flow| *flow != Flow::Running)
            .await;
    }

    /// Keeps a signal for a VM that does not run; `false` when it does.
    pub fn keep_signal(&self, target: Target, signal: u32) -> bool {
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
        // Locked first: what is kept before the flow is Running again is taken after.
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

    /// Whole after every statement.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Task {
    /// Stops the VM. The program of a task that runs does not notice, but for the time of day.
    ///
    /// # Errors
    /// [`TaskError`], unless init runs and the VM does.
    pub async fn pause(self: &Arc<Self>) -> Result<(), TaskError> {
        let vm = self.vm()?;
        let _turn = self.flow.turn.lock().await;
        if self.flow.now() != Flow::Running {
            return Err(TaskError::Paused(self.init.name().to_owned()));
        }
        self.must_run()?;
        self.flow.set(Flow::Pausing);
        if let Err(source) = vm.sandbox.pause().await {
            // It may have been done all the same; and what runs is not to be stopped by half.
            let left = vm.sandbox.resume().await;
            self.runs_again(vm).await;
            log_left(self.init.name(), left);
            return Err(self.vm_error("pause", source));
        }
        if *self.ending.borrow() {
            // What it has written is still in the guest.
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

    /// Lets the VM go on.
    ///
    /// # Errors
    /// [`TaskError`], unless it is paused.
    pub async fn resume(self: &Arc<Self>) -> Result<(), TaskError> {
        let vm = self.vm()?;
        let _turn = self.flow.turn.lock().await;
        if self.flow.now() != Flow::Paused {
            return Err(TaskError::NotPaused(self.init.name().to_owned()));
        }
        self.flow.set(Flow::Resuming);
        if let Err(source) = vm.sandbox.resume().await {
            self.flow.set(Flow::Paused);
            return Err(self.vm_error("resume", source));
        }
        // Before a kept signal ends a program.
        self.events.publish(Event::Resumed(TaskResumed {
            container_id: self.order.id.clone(),
            ..Default::default()
        }));
        self.runs_again(vm).await;
        Ok(())
    }

    /// Init is over: a VM that was paused a moment before has output to deliver.
    pub(super) async fn unpause(self: &Arc<Self>) {
        let Ok(vm) = self.vm() else { return };
        let _turn = self.flow.turn.lock().await;
        if self.flow.now() == Flow::Paused {
            self.let_go(vm).await;
        }
    }

    async fn let_go(&self, vm: &Vm) {
        let left = vm.sandbox.resume().await;
        self.flow.set(Flow::Running);
        log_left(self.init.name(), left);
    }

    /// Tells the guest what has changed; when it does not run, as soon as it does.
    ///
    /// # Errors
    /// [`TaskError`]
    pub async fn tell(&self, change: Change) -> Result<(), TaskError> {
        let vm = self.vm()?;
        if self.flow.keep_change(&change) {
            return Ok(());
        }
        tokio::select! {
            biased;
            told = vm.agent.change(change.clone()) => Ok(told?),
            () = self.flow.stopping() => {
                self.flow.keep_change(&change);
                Ok(())
            }
        }
    }

    /// The VM runs again: tells the guest what it has missed.
    async fn runs_again(self: &Arc<Self>, vm: &Vm) {
        self.flow.set(Flow::Running);
        let kept = self.flow.take();
        let name = self.init.name();
        let each_of =
            |signals: u64| (1..=u64::BITS).filter(move |signal| signals & (1 << (signal - 1)) != 0);
        // Before the guest is told anything: a silent one must not gain time by what comes first.
        for (target, signals) in &kept.signals {
            for signal in each_of(*signals).filter(|signal| signals::ends_by_default(*signal)) {
                self.insist_on(target, signal);
            }
        }
        if let Err(error) = vm.agent.change(kept.change.unwrap_or_default()).await {
            tracing::warn!(name, %error, "the guest does not know the time of day");
        }
        self.tell_sizes(vm).await;
        for (target, signals) in kept.signals {
            for signal in each_of(signals) {
                let told = match &target {
                    Target::All => vm.agent.kill("", signal, true).await,
                    Target::One(exec) => vm.agent.kill(exec, signal, false).await,
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

    /// From here on who is meant ends by `signal`.
    fn insist_on(self: &Arc<Self>, target: &Target, signal: u32) {
        match target {
            Target::One(id) if !id.is_empty() => {
                // One that has been deleted meanwhile has ended.
                if let Ok(exec) = self.exec_of(id) {
                    self.insist_on_exec(&exec, signal);
                }
            }
            Target::All | Target::One(_) => self.insist(signal),
        }
    }

    /// Whether programs can be started.
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
