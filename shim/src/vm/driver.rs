//! The one task that reads a VMM's control socket, until the VMM's process has ended.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::WaitIdStatus;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;
use wasmvm_protocol::control::{self, ControlError, FromVmm};

use crate::host_process::HostProcess;
use crate::sys::watch::watch_readable;
use crate::vm::answers::Answers;
use crate::vm::{VmEnd, VmError};

/// How long a VMM may take to exit after its control socket was closed, or carried a broken message.
const EXIT_MAX: Duration = Duration::from_secs(2);
/// How long a killed VMM may take to end. A VMM that the kernel holds for longer counts as ended, and what
/// is left of it shows when its cgroup cannot be removed.
const KILL_MAX: Duration = Duration::from_secs(10);

/// Readiness and end of a VM, as far as the driver knows.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// The boot time, once the guest listens.
    pub ready: Option<Duration>,
    /// The end, once the process is reaped, or was killed and does not end.
    pub end: Option<VmEnd>,
}

/// Reads the control socket and waits for the process.
#[derive(Debug)]
pub(super) struct Driver {
    control: AsyncFd<OwnedFd>,
    process: HostProcess,
    killed: watch::Receiver<bool>,
    state: watch::Sender<State>,
    answers: Answers,
}

impl Driver {
    pub(super) fn new(
        control: OwnedFd,
        process: HostProcess,
        killed: watch::Receiver<bool>,
    ) -> Result<(Self, watch::Receiver<State>, Answers), VmError> {
        let control = watch_readable(control).map_err(|source| VmError::Descriptor {
            action: "watch the control socket",
            source,
        })?;
        let (state, receiver) = watch::channel(State::default());
        let answers = Answers::default();
        Ok((
            Self {
                control,
                process,
                killed,
                state,
                answers: answers.clone(),
            },
            receiver,
            answers,
        ))
    }

    /// Reads the control socket until the VMM has ended; then publishes the end, once.
    pub(super) async fn run(self) {
        let mut last_words = None;
        let mut killed = self.killed.clone();
        let status = loop {
            tokio::select! {
                // The VMM's messages come before the end of its process.
                biased;
                message = next(&self.control) => match message {
                    Ok(Some(message)) => {
                        if let Some(end) = self.take_in(message) {
                            last_words = Some(end);
                        }
                        // The select never waits while messages are there: a VMM that does not stop sending
                        // must not keep the shim from all else.
                        tokio::task::consume_budget().await;
                    }
                    Ok(None) => break self.reap(EXIT_MAX).await,
                    Err(err) => {
                        last_words = Some(VmEnd {
                            reason: format!("the VMM broke the control protocol: {err}"),
                            console_tail: String::new(),
                        });
                        break self.reap(EXIT_MAX).await;
                    }
                },
                status = self.process.wait() => {
                    while let Some(message) = self.pending() {
                        last_words = self.take_in(message).or(last_words);
                    }
                    break status.ok().flatten();
                }
                () = is_killed(&mut killed) => break self.reap(Duration::ZERO).await,
            }
        };
        let end = last_words.unwrap_or_else(|| VmEnd {
            reason: process_end(status.as_ref()),
            console_tail: String::new(),
        });
        self.state.send_modify(|state| state.end = Some(end));
        // At once, as a rule; a process that the kernel holds is still to be reaped.
        let _ = self.process.wait().await;
    }

    /// A message that the VMM sent before its process ended.
    fn pending(&self) -> Option<FromVmm> {
        control::hear(self.control.get_ref()).ok().flatten()
    }

    /// Waits at most `limit` for the end of the process, then kills it; a killed process that does not end
    /// either is given up.
    async fn reap(&self, limit: Duration) -> Option<WaitIdStatus> {
        if let Ok(status) = timeout(limit, self.process.wait()).await {
            return status.ok().flatten();
        }
        self.process.kill();
        let ended = timeout(KILL_MAX, self.process.wait()).await;
        if ended.is_err() {
            let pid = self.process.pid();
            tracing::error!(pid, "the VMM was killed and does not end");
        }
        ended.ok()?.ok().flatten()
    }

    /// Takes a message in; returns the end that the message announces.
    fn take_in(&self, message: FromVmm) -> Option<VmEnd> {
        match message {
            FromVmm::AgentReady { boot_us } => {
                let boot = Duration::from_micros(boot_us);
                self.state.send_modify(|state| state.ready = Some(boot));
            }
            FromVmm::Done { .. }
            | FromVmm::Connected { .. }
            | FromVmm::Inspected { .. }
            | FromVmm::Refused { .. }
            | FromVmm::SinkDone { .. }
            | FromVmm::SinkFailed { .. } => self.answers.deliver(message),
            FromVmm::BootFailed { reason } => {
                return Some(VmEnd {
                    reason,
                    console_tail: String::new(),
                });
            }
            FromVmm::GuestEnded {
                reason,
                console_tail,
            } => {
                return Some(VmEnd {
                    reason,
                    console_tail,
                });
            }
            // `NeedMaps` and `Jailed` belong to the handshake; a VMM that repeats them gains nothing.
            FromVmm::NeedMaps | FromVmm::Jailed { .. } => {}
        }
        None
    }
}

async fn next(control: &AsyncFd<OwnedFd>) -> Result<Option<FromVmm>, ControlError> {
    loop {
        let mut ready = control.readable().await.map_err(ControlError::Socket)?;
        match control::hear(control.get_ref()) {
            Err(err) if err.is_would_block() => ready.clear_ready(),
            heard => return heard,
        }
    }
}

async fn is_killed(killed: &mut watch::Receiver<bool>) {
    // An error means that the last `Vm` was dropped, which kills the VMM as well.
    let _ = killed.wait_for(|killed| *killed).await;
}

fn process_end(status: Option<&WaitIdStatus>) -> String {
    match status {
        Some(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("the VMM exited with status {code}"),
            (None, Some(signal)) => format!("the VMM was killed by signal {signal}"),
            (None, None) => "the VMM ended".into(),
        },
        None => "the VMM ended".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use wasmvm_protocol::control::ToVmm;

    use super::*;
    use crate::host_process::start_time;
    use crate::vm::Vm;

    /// A VMM that neither reads nor answers, and its end of the control socket.
    fn deaf() -> (Child, Vm, OwnedFd) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let start = start_time(child.id()).unwrap();
        let process = HostProcess::find(child.id(), start).unwrap().unwrap();
        let (ours, theirs) = control::pair().unwrap();
        (
            child,
            Vm::new(process, ours, String::new()).unwrap(),
            theirs,
        )
    }

    #[tokio::test]
    async fn a_vm_that_nobody_holds_is_killed_and_reaped() {
        let (mut child, vm, _theirs) = deaf();
        drop(vm);
        let reaped = async {
            while start_time(child.id()).is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(20), reaped).await.unwrap();
        assert!(child.wait().is_err(), "reaped before");
    }

    #[tokio::test]
    async fn a_killed_vm_has_ended() {
        let (_child, vm, _theirs) = deaf();
        vm.kill();
        let end = timeout(Duration::from_secs(20), vm.ended()).await.unwrap();
        assert_eq!(end.reason, "the VMM was killed by signal 9");
        let late = vm.pause().await.unwrap_err();
        assert!(matches!(late, VmError::Ended(_)), "{late}");
    }

    #[tokio::test]
    async fn an_order_that_is_over_is_forgotten() {
        let (_child, vm, theirs) = deaf();
        // A VMM that connects and does nothing else.
        let vmm = std::thread::spawn(move || {
            while let Ok(Some((order, _fds))) = control::recv(&theirs) {
                if let ToVmm::Connect { id, .. } = order {
                    control::send(&theirs, &FromVmm::Connected { id }, &[]).unwrap();
                }
            }
        });
        for _ in 0..100 {
            vm.connect(1024).await.unwrap();
        }
        assert_eq!(vm.orders_pending(), 0);
        // One that nobody waits for any more.
        let given_up = timeout(Duration::from_millis(1), vm.pause()).await;
        assert!(given_up.is_err());
        assert_eq!(vm.orders_pending(), 0);
        drop(vm);
        let ended = tokio::task::spawn_blocking(|| vmm.join());
        ended.await.unwrap().unwrap();
    }

    #[test]
    fn the_end_of_a_vm_is_told_with_its_console() {
        let end = |console_tail: &str| {
            VmError::Ended(VmEnd {
                reason: "the guest has reset itself".into(),
                console_tail: console_tail.into(),
            })
        };
        assert_eq!(
            end("\n").to_string(),
            "the microVM ended: the guest has reset itself"
        );
        let told = end("Kernel panic - not syncing\n").to_string();
        assert!(
            told.ends_with("; its console ends with: Kernel panic - not syncing"),
            "{told}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_vmm_that_does_not_read_blocks_nobody() {
        let (_child, vm, _theirs) = deaf();
        let refused = loop {
            match vm.pause().await.unwrap_err() {
                VmError::Timeout { .. } => {}
                other => break other,
            }
        };
        assert_eq!(refused.to_string(), "the VMM does not take orders");
        vm.kill();
        vm.ended().await;
    }
}
