//! The signal that ends a process, and how long its end may take.
//!
//! ```text
//! 0 s     containerd asks; the guest gets the signal, and has agent::KILL_MAX to answer
//! 3 s     the guest has not reported the end: init's VM is killed, an exec is given up
//! 4.4 s   what is left of the output delays TaskExit no longer
//! 4.8 s   and neither does the VMM's pid (watcher::GONE_MAX)
//! ```
//!
//! The guest's answer, or its silence, changes none of these times: containerd hears of the exit within
//! 5 s, with 128+n.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::cleanup::STATUS_KILLED;
use crate::signals;

/// How long the guest may take to end a program: by the host's clock for SIGKILL, and no longer than the VM
/// runs; in the guest's own time for other signals.
pub(super) const OBEYED_MAX: Duration = Duration::from_secs(3);
/// How long after the request the output may delay TaskExit; from then on only the VM's end does.
const EXIT_TOLD_MAX: Duration = Duration::from_millis(4400);

/// The signal that is to end one process, once containerd has asked for it.
#[derive(Debug, Default)]
pub(super) struct FatalSignal(watch::Sender<Option<Asked>>);

#[derive(Clone, Copy, Debug)]
struct Asked {
    signal: u32,
    status: u32,
    at: Instant,
}

impl FatalSignal {
    /// Notes the signal, and the exit status of a process that the signal ends; whether the process has to be
    /// watched for its exit. True for the first signal, and for SIGKILL after another signal.
    pub(super) fn ask(&self, signal: u32, status: u32) -> bool {
        let at = Instant::now();
        self.0.send_if_modified(|asked| {
            let stronger = asked
                .is_none_or(|asked| signal == signals::SIGKILL && asked.signal != signals::SIGKILL);
            if stronger {
                *asked = Some(Asked { signal, status, at });
            }
            stronger
        })
    }

    /// The exit status of a process: that of the signal that was asked for, whatever the guest reports
    /// afterwards. Without such a signal it is the guest's report, or the status of SIGKILL without a report.
    pub(super) fn status(&self, reported: Option<u32>) -> u32 {
        let asked = *self.0.borrow();
        let reported = reported.unwrap_or(STATUS_KILLED);
        asked.map_or(reported, |asked| asked.status)
    }

    /// Waits until the exit has to be reported, whatever else is still awaited; for ever without a signal.
    pub(super) async fn overdue(&self) {
        let mut asked = self.0.subscribe();
        // `wait_for` fails only without a sender, and `self` holds the sender.
        let at = asked.wait_for(Option::is_some).await.map(|asked| *asked);
        if let Ok(Some(Asked { at, .. })) = at {
            tokio::time::sleep_until(at + EXIT_TOLD_MAX).await;
        }
    }
}

/// Whether a program was ended by SIGKILL, perhaps a kernel's, or with its VM.
pub(super) fn is_kill(reported: Option<u32>) -> bool {
    reported.is_none_or(|status| status == STATUS_KILLED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_counts_and_sigkill_after_it() {
        let fatal = FatalSignal::default();
        assert_eq!((fatal.status(None), fatal.status(Some(3))), (137, 3));
        assert!(fatal.ask(15, 143) && !fatal.ask(2, 130) && !fatal.ask(15, 143));
        assert_eq!((fatal.status(None), fatal.status(Some(3))), (143, 143));
        assert!(fatal.ask(9, 137) && !fatal.ask(9, 137) && !fatal.ask(15, 143));
        assert_eq!(fatal.status(Some(0)), 137);
    }

    #[tokio::test(start_paused = true)]
    async fn an_exit_is_overdue_some_time_after_the_signal() {
        let fatal = FatalSignal::default();
        let hour = Duration::from_secs(3600);
        let waited = tokio::time::timeout(hour, fatal.overdue()).await;
        assert!(waited.is_err(), "no signal, no limit");
        fatal.ask(15, 143);
        let start = Instant::now();
        fatal.overdue().await;
        assert_eq!(start.elapsed(), EXIT_TOLD_MAX);
    }
}
