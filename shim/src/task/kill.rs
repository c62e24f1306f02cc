//! `Kill`: of init, of all, of one exec; also of what does not hear it.

use std::sync::Arc;
use std::time::Duration;

use super::pause::{Flow, Target};
use super::{Exec, State, Task, TaskError, Vm, signals};
use crate::agent::AgentError;
use crate::error::ErrorCode;

/// How long after its acknowledgement a SIGKILL may take to show. Then the VM is ended.
const KILL_SHOWS_MAX: Duration = Duration::from_secs(3);

impl Task {
    /// Sends a signal to init, or with `all` to every program. The agent gets
    /// [`crate::agent::KILL_MAX`]; what is meant to end init ends the VM when the agent does not answer.
    /// SIGSTOP and SIGCONT pause and resume. A paused VM is ended by SIGKILL; other signals are
    /// delivered when it runs again.
    ///
    /// # Errors
    /// [`TaskError`]
    pub async fn kill(self: &Arc<Self>, signal: u32, all: bool) -> Result<(), TaskError> {
        let vm = self.vm()?;
        signals::check(signal)?;
        if self.init.state().exit().is_some() {
            return Err(TaskError::Finished(self.init.name().to_owned()));
        }
        match signal {
            signals::PROBE => return Ok(()),
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
                vm.sandbox.kill_vm();
                return Ok(());
            }
            if self.flow.keep_signal(target.clone(), signal) {
                return Ok(());
            }
        }
        tokio::select! {
            biased;
            killed = vm.agent.kill("", signal, all) => self.init_was_told(vm, signal, killed),
            () = self.flow.stopping() => {
                if signal == signals::SIGKILL {
                    vm.sandbox.kill_vm();
                } else {
                    // Perhaps for the second time, which a program cannot tell from the first.
                    self.flow.keep_signal(target, signal);
                }
                Ok(())
            }
        }
    }

    fn init_was_told(
        self: &Arc<Self>,
        vm: &Vm,
        signal: u32,
        killed: Result<(), AgentError>,
    ) -> Result<(), TaskError> {
        let name = self.init.name();
        match killed {
            Ok(()) if signal == signals::SIGKILL => {
                tokio::spawn(self.clone().insist());
                Ok(())
            }
            Ok(()) => Ok(()),
            Err(error) if is_over(&error) => Err(TaskError::Finished(name.to_owned())),
            Err(error)
                if signal == signals::SIGKILL
                    || error.is_silence() && signals::ends_by_default(signal) =>
            {
                tracing::warn!(name, signal, %error, "the guest does not obey; ending the VM");
                vm.sandbox.kill_vm();
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A guest that acknowledges SIGKILL and goes on is ended from outside.
    async fn insist(self: Arc<Self>) {
        let ended = self.init.reaches(|state| state.exit().is_some());
        if tokio::time::timeout(KILL_SHOWS_MAX, ended).await.is_err() {
            tracing::warn!(
                name = self.init.name(),
                "SIGKILL shows no effect; ending the VM"
            );
            if let Ok(vm) = self.vm() {
                vm.sandbox.kill_vm();
            }
        }
    }

    /// SIGSTOP: what is stopped already is no error.
    async fn stop(&self) -> Result<(), TaskError> {
        match self.pause().await {
            Err(TaskError::Paused(_)) => Ok(()),
            paused => paused,
        }
    }

    /// SIGCONT, likewise.
    async fn go_on(&self) -> Result<(), TaskError> {
        match self.resume().await {
            Err(TaskError::NotPaused(_)) => Ok(()),
            resumed => resumed,
        }
    }

    /// Sends a signal to an exec. One that is being started is given up by a signal that would end it.
    /// SIGKILL ends it for containerd even when the guest does not answer.
    ///
    /// # Errors
    /// [`TaskError`]
    pub async fn kill_exec(
        self: &Arc<Self>,
        exec: &Arc<Exec>,
        signal: u32,
    ) -> Result<(), TaskError> {
        let vm = self.vm()?;
        signals::check(signal)?;
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
        let killed = tokio::select! {
            biased;
            killed = vm.agent.kill(exec.id(), signal, false) => killed,
            () = self.flow.stopping() => {
                self.flow.keep_signal(target, signal);
                return Ok(());
            }
        };
        match killed {
            Err(error) if is_over(&error) => Err(TaskError::Finished(name())),
            Err(error) if signal != signals::SIGKILL => Err(error.into()),
            killed => {
                if let Err(error) = killed {
                    tracing::warn!(exec = name(), %error, "the guest does not obey SIGKILL");
                }
                tokio::spawn(insist_on_exec(self.clone(), exec.clone()));
                Ok(())
            }
        }
    }
}

impl Exec {
    async fn kill_starting(&self, signal: u32) -> Result<(), TaskError> {
        if signals::ends_by_default(signal) && signal != signals::PROBE {
            self.abandon();
            self.process
                .reaches(|state| *state != State::Starting)
                .await;
        }
        Ok(())
    }
}

/// What a SIGKILL has not ended in the guest's own time is given up: its init may be well.
async fn insist_on_exec(task: Arc<Task>, exec: Arc<Exec>) {
    let ended = exec.process.reaches(|state| state.exit().is_some());
    let ended = task.flow.clock().within(KILL_SHOWS_MAX, ended).await;
    if ended.is_none() {
        tracing::warn!(
            exec = exec.process.name(),
            "SIGKILL shows no effect; given up"
        );
        exec.abandon();
    }
}

fn is_over(error: &AgentError) -> bool {
    matches!(
        error,
        AgentError::Refused {
            code: ErrorCode::NotFound,
            ..
        }
    )
}
