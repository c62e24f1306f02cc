//! The host's wall clock, and when a guest has to be sent the time again.
//!
//! A guest counts on from the time that it was sent by the host's raw clock (kvm-clock,
//! `get_kvmclock_base_ns` in the kernel's `arch/x86/kvm/x86.c`), so the guest notices neither that the wall
//! clock is set nor that NTP makes the wall clock run faster or slower. A timer reports a clock that is
//! set: the kernel cancels the timer then (timerfd_create(2)). Against NTP's steering the shim compares two
//! clocks each [`LOOK_EVERY`]; an idle guest is woken only when its time would be wrong by [`DRIFT_MAX`].

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::watch::watch_readable;

/// The time between two looks at a clock that is not set. chrony, the fastest of the usual time services,
/// slews by a twelfth at most, which is 5 s in that time.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How far a guest's clock may be off before the guest is sent the time. With the usual crystal, wrong by
/// 50 millionths, that is a message in half an hour.
const DRIFT_MAX: Duration = Duration::from_millis(100);

/// A reading of the host's clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Nanoseconds since the Unix epoch.
    pub wall_ns: u64,
    /// The wall clock minus the raw clock, nanoseconds; changes as the wall clock is set or steered.
    offset_ns: i64,
}

impl Moment {
    /// Reads the wall clock and the raw clock.
    pub(crate) fn now() -> Self {
        let (wall_ns, raw_ns) = (ns(ClockId::Realtime), ns(ClockId::MonotonicRaw));
        Self {
            wall_ns: u64::try_from(wall_ns).unwrap_or_default(),
            offset_ns: wall_ns.saturating_sub(raw_ns),
        }
    }
}

fn ns(clock: ClockId) -> i64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    tv_sec.saturating_mul(1_000_000_000).saturating_add(tv_nsec)
}

/// The offset of the two clocks when a guest was sent the time last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told(Arc<AtomicI64>);

impl Told {
    /// Notes that the guest was sent the time of this moment.
    pub(crate) fn set(&self, moment: Moment) {
        self.0.store(moment.offset_ns, Ordering::Relaxed);
    }

    /// Whether the guest's time is off by [`DRIFT_MAX`] or more.
    pub(crate) fn is_wrong(&self) -> bool {
        self.is_wrong_at(Moment::now())
    }

    fn is_wrong_at(&self, now: Moment) -> bool {
        let told_ns = self.0.load(Ordering::Relaxed);
        let off_ns = now.offset_ns.abs_diff(told_ns);
        u128::from(off_ns) >= DRIFT_MAX.as_nanos()
    }

    /// As if the guest had been sent a time that is wrong by `by`.
    #[cfg(test)]
    pub(crate) fn spoil(&self, by: Duration) {
        let by = i64::try_from(by.as_nanos()).unwrap();
        self.0.fetch_sub(by, Ordering::Relaxed);
    }
}

/// The times to look at the clock; the tests have their own.
#[async_trait]
pub(crate) trait Looks: Send {
    /// Returns when the clock may differ from what it was.
    async fn next(&mut self) -> io::Result<()>;
}

/// Looks when the wall clock was set, and each [`LOOK_EVERY`]. No step in between is missed.
#[derive(Debug)]
pub(crate) struct ClockTimer(AsyncFd<OwnedFd>);

impl ClockTimer {
    /// Starts the timer: the first look is due in [`LOOK_EVERY`], or when the clock is set.
    ///
    /// # Errors
    /// The timer cannot be made, or its descriptor not watched.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        let timer = Self(watch_readable(timer)?);
        timer.arm()?;
        Ok(timer)
    }

    fn arm(&self) -> io::Result<()> {
        let mut at = clock_gettime(ClockId::Realtime);
        at.tv_sec = at.tv_sec.saturating_add(LOOK_EVERY.as_secs().cast_signed());
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: at,
        };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        match timerfd_settime(self.0.get_ref(), flags, &once) {
            // The clock was set just before: the timer runs all the same, and a look follows in any case.
            Ok(_) | Err(Errno::CANCELED) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[async_trait]
impl Looks for ClockTimer {
    async fn next(&mut self) -> io::Result<()> {
        let expired = |timer: &OwnedFd| match rustix::io::read(timer, &mut [0_u8; 8]) {
            // The kernel cancels the timer when the clock is set.
            Ok(_) | Err(Errno::CANCELED) => Ok(()),
            Err(error) => Err(error.into()),
        };
        self.0.async_io(Interest::READABLE, expired).await?;
        self.arm()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_just_now_is_right_and_an_hour_ago_wrong() {
        let (told, now) = (Told::default(), Moment::now());
        assert!(told.is_wrong_at(now), "nothing was told");
        told.set(now);
        assert!(!told.is_wrong_at(now));
        told.spoil(DRIFT_MAX);
        assert!(told.is_wrong_at(now));
        assert!(now.wall_ns > 1_700_000_000_000_000_000);
    }
}
