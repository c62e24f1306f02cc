//! `Kill` of init, of all programs, or of one exec. The guest gets the signal; whether the signal takes
//! effect is not the guest's decision.
//!
//! A signal that ends a program by default does so whatever the guest answers, also when the guest answers
//! that there is no such program: the shim reports only an exit that the shim has seen.

use std::sync::Arc;
use std::time::Duration;

use super::fatal::OBEYED_MAX;
use super::pause::{Flow, Target};
use super::{Exec, LoadedVm, Process, State, Task, TaskError};
use crate::agent::AgentError;
use crate::log::spawn_in_span;
use crate::signals;

/// How long the report of an exit may take to arrive after the guest has said that the program has ended.
const EXIT_SEEN_MAX: Duration = Duration::from_millis(500);

/// Refuses a number that is no signal.
fn check(signal: u32) -> Result<(), TaskError> {
    if signal > signals::SIGNAL_MAX {
        return Err(TaskError::Signal(signal));
    }
    Ok(())
}

impl Task {
    /// Sends a signal to init, or with `all` to every program. The agent gets [`crate::agent::KILL_MAX`]; a
    /// signal that ends by default ends the VM when init does not exit. SIGSTOP pauses and SIGCONT resumes.
    /// SIGKILL ends a paused VM; other signals are kept until the VM runs again.
    ///
    /// # Errors
    /// [`TaskError`]
    pub(crate) async fn kill(self: &Arc<Self>, signal: u32, all: bool) -> Result<(), TaskError> {
        let vm = self.vm()?;
        check(signal)?;
        if self.init.state().exit().is_some() {
            return Err(TaskError::Finished(self.init.name().to_owned()));
        }
        let fatal = vm.workload.status_by(signal);
        let over = *self.ending.borrow();
        match signal {
            signals::PROBE => return Ok(()),
            _ if over && fatal.is_none() => {
                return Err(TaskError::Finished(self.init.name().to_owned()));
            }
            signals::SIGSTOP => return self.stop().await,
            signals::SIGCONT if self.flow.now() != Flow::Running => return self.go_on().await,
            _ => {}
        }
        let target = if all {
            Target::All
        } else {
            Target::One(String::new())
        };
        if self.flow.now() != Flow::Running {
            if signal == signals::SIGKILL {
                self.init.fatal.ask(signal, signals::status_of(signal));
                vm.workload.kill_vm();
                return Ok(());
            }
            if self.flow.keep_signal(target.clone(), signal) {
                return Ok(());
            }
        }
        if let Some(status) = fatal {
            self.insist(signal, status);
        }
        if over {
            // The exit is being reported to containerd, and is delayed no longer than after any Kill.
            return Ok(());
        }
        tokio::select! {
            biased;
            killed = vm.programs().kill("", signal, all) => self.init_was_told(vm, signal, killed).await,
            () = self.flow.stopping() => {
                // The guest may get the signal for the second time, which a program cannot tell from the
                // first. SIGKILL need not be kept: `insist` ends a VM that stops.
                self.flow.keep_signal(target, signal);
                Ok(())
            }
        }
    }

    async fn init_was_told(
        &self,
        vm: &LoadedVm,
        signal: u32,
        killed: Result<(), AgentError>,
    ) -> Result<(), TaskError> {
        let name = self.init.name();
        match killed {
            Ok(()) => Ok(()),
            Err(error) if vm.workload.status_by(signal).is_none() => {
                Err(self.refused(&self.init, error).await)
            }
            // The program may have exited a moment ago. If not, `insist` ends the VM after OBEYED_MAX.
            Err(error) if error.says_ended() => {
                tracing::debug!(name, signal, %error, "the guest finds nothing to kill");
                Ok(())
            }
            Err(error) => {
                tracing::warn!(name, signal, %error, "the guest does not obey; ending the VM");
                vm.workload.kill_vm();
                Ok(())
            }
        }
    }

    /// Notes that init is to end by `signal` and with `status`, and ends the VM when init does not exit within
    /// [`OBEYED_MAX`].
    pub(super) fn insist(self: &Arc<Self>, signal: u32, status: u32) {
        if !self.init.fatal.ask(signal, status) {
            return;
        }
        let task = self.clone();
        spawn_in_span(async move {
            if task.ends_in_time(signal).await {
                return;
            }
            let name = task.init.name();
            tracing::warn!(name, signal, "the signal shows no effect; ending the VM");
            if let Ok(vm) = task.vm() {
                vm.workload.kill_vm();
            }
        });
    }

    async fn ends_in_time(&self, signal: u32) -> bool {
        if signal != signals::SIGKILL {
            let in_time = self.flow.clock().within(OBEYED_MAX, self.ends()).await;
            return in_time.is_some();
        }
        tokio::select! {
            biased;
            () = self.ends() => true,
            () = self.flow.stopping() => false,
            () = tokio::time::sleep(OBEYED_MAX) => false,
        }
    }

    /// Turns a refusal of the guest into containerd's answer: a program has finished only when the shim has
    /// seen its exit.
    pub(super) async fn refused(&self, process: &Process, error: AgentError) -> TaskError {
        let seen = async {
            if std::ptr::eq(process, &self.init) {
                self.ends().await;
            } else {
                process.reaches(|state| state.exit().is_some()).await;
            }
        };
        if error.says_ended() && tokio::time::timeout(EXIT_SEEN_MAX, seen).await.is_ok() {
            return TaskError::Finished(process.name().to_owned());
        }
        error.into()
    }

    /// SIGSTOP pauses the task; a task that is paused already is no error.
    async fn stop(self: &Arc<Self>) -> Result<(), TaskError> {
        match self.pause().await {
            Err(TaskError::Paused(_)) => Ok(()),
            paused => paused,
        }
    }

    /// SIGCONT resumes the task; a task that is not paused is no error.
    async fn go_on(self: &Arc<Self>) -> Result<(), TaskError> {
        match self.resume().await {
            Err(TaskError::NotPaused(_)) => Ok(()),
            resumed => resumed,
        }
    }

    /// Sends a signal to an exec. A signal that ends by default gives up an exec that is being started, and
    /// ends a running exec for containerd even when the guest does not obey.
    ///
    /// # Errors
    /// [`TaskError`]
    pub(crate) async fn kill_exec(
        self: &Arc<Self>,
        exec: &Arc<Exec>,
        signal: u32,
    ) -> Result<(), TaskError> {
        let vm = self.vm()?;
        check(signal)?;
        let name = || exec.process.name().to_owned();
        match exec.process.state() {
            State::Starting => return exec.kill_starting(signal).await,
            State::Running => {}
            state if state.exit().is_some() => return Err(TaskError::Finished(name())),
            _ => return Err(TaskError::NotStarted(name())),
        }
        match signal {
            signals::PROBE => return Ok(()),
            signals::SIGSTOP => return Err(TaskError::StopsAlone(name())),
            _ => {}
        }
        let target = Target::One(exec.id().to_owned());
        if self.flow.keep_signal(target.clone(), signal) {
            return Ok(());
        }
        let fatal = signals::ends_by_default(signal);
        if fatal {
            self.insist_on_exec(exec, signal);
        }
        let killed = tokio::select! {
            biased;
            killed = vm.programs().kill(exec.id(), signal, false) => killed,
            () = self.flow.stopping() => {
                self.flow.keep_signal(target, signal);
                return Ok(());
            }
        };
        match killed {
            Ok(()) => Ok(()),
            Err(error) if fatal => {
                tracing::warn!(exec = name(), signal, %error, "the guest does not obey");
                Ok(())
            }
            Err(error) => Err(self.refused(&exec.process, error).await),
        }
    }

    /// Notes that an exec is to end by `signal`, and gives the exec up when there is no exit within
    /// [`OBEYED_MAX`] of the guest's time. The VM keeps running, as init may be well.
    pub(super) fn insist_on_exec(self: &Arc<Self>, exec: &Arc<Exec>, signal: u32) {
        if !exec.process.fatal.ask(signal, signals::status_of(signal)) {
            return;
        }
        let (task, exec) = (self.clone(), exec.clone());
        spawn_in_span(async move {
            let ended = exec.process.reaches(|state| state.exit().is_some());
            let ended = task.flow.clock().within(OBEYED_MAX, ended).await;
            if ended.is_none() {
                let name = exec.process.name();
                tracing::warn!(exec = name, signal, "the signal shows no effect; given up");
                exec.abandon();
            }
        });
    }
}

impl Exec {
    async fn kill_starting(&self, signal: u32) -> Result<(), TaskError> {
        if signals::ends_by_default(signal) {
            self.process.fatal.ask(signal, signals::status_of(signal));
            self.abandon();
            self.process
                .reaches(|state| *state != State::Starting)
                .await;
        }
        Ok(())
    }
}
