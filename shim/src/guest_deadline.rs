//! Deadlines for a guest that can be paused: time counts only while the guest runs.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The clock of the deadlines: whether the guest runs, and so whether time counts.
#[derive(Clone, Debug)]
pub(crate) struct GuestClock(watch::Receiver<bool>);

impl GuestClock {
    /// The clock of a guest that runs while `runs` is true.
    #[must_use]
    pub(crate) fn new(runs: watch::Receiver<bool>) -> Self {
        Self(runs)
    }

    /// Waits for `work`, at most `limit` of the guest's time; `None` when `work` has taken longer.
    pub(crate) async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        GuestDeadline::new(self.clone(), limit).wait(work).await
    }
}

/// A limit of the guest's time that several waits share.
#[derive(Debug)]
pub(crate) struct GuestDeadline {
    clock: GuestClock,
    left: Duration,
}

impl GuestDeadline {
    /// A deadline that is `left` of the guest's time away.
    #[must_use]
    pub(crate) fn new(clock: GuestClock, left: Duration) -> Self {
        Self { clock, left }
    }

    /// Waits for `work` until the deadline; `None` when the deadline has passed before.
    pub(crate) async fn wait<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        let runs = &mut self.clock.0;
        loop {
            let counts = *runs.borrow_and_update();
            let since = Instant::now();
            let waited = tokio::select! {
                biased;
                done = &mut work => Some(Some(done)),
                () = tokio::time::sleep(self.left), if counts => Some(None),
                changed = runs.changed() => match changed {
                    Ok(()) => None,
                    // Nobody is left who could pause or resume the guest: from now on the host's time counts.
                    Err(_) => Some(tokio::time::timeout(self.left, &mut work).await.ok()),
                },
            };
            if counts {
                self.left = self.left.saturating_sub(since.elapsed());
            }
            if let Some(waited) = waited {
                return waited;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[tokio::test(start_paused = true)]
    async fn a_limit_holds_while_the_guest_runs() {
        let runs = watch::Sender::new(true);
        let clock = GuestClock::new(runs.subscribe());
        let limit = Duration::from_secs(5);
        assert_eq!(clock.within(limit, async { 7 }).await, Some(7));
        let start = Instant::now();
        assert_eq!(clock.within(limit, pending::<()>()).await, None);
        assert_eq!(start.elapsed(), limit);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_does_not_count() {
        let runs = watch::Sender::new(true);
        let mut deadline =
            GuestDeadline::new(GuestClock::new(runs.subscribe()), Duration::from_secs(5));
        let start = Instant::now();
        let pause = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            runs.send_replace(false);
            tokio::time::sleep(Duration::from_secs(3600)).await;
            runs.send_replace(true);
        };
        let (late, ()) = tokio::join!(deadline.wait(pending::<()>()), pause);
        assert_eq!(late, None);
        assert_eq!(start.elapsed(), Duration::from_secs(3605));
        assert_eq!(
            deadline.wait(async {}).await,
            Some(()),
            "what is ready is taken"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn several_waits_share_a_limit() {
        let runs = watch::Sender::new(true);
        let mut deadline =
            GuestDeadline::new(GuestClock::new(runs.subscribe()), Duration::from_secs(5));
        let nap = Duration::from_secs(3);
        assert_eq!(deadline.wait(tokio::time::sleep(nap)).await, Some(()));
        assert_eq!(deadline.wait(tokio::time::sleep(nap)).await, None);
    }
}
