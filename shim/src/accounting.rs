//! The limits and the use of one task, from the task's creation until `Delete`.
//!
//! The cgroup is removed once the VM has ended; the counters that were read last stay.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bundle::{Limit, RAM_MIB_MAX, Resources, wasm_memory_bytes_max};
use crate::cgroup::{Birth, Cgroup, CgroupError};
use crate::error::{Coded, ErrorCode};
use crate::stats::Metrics;

/// Why the limits of a task do not change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    /// The limit is above the guest's RAM, which was fixed when the VM was made.
    #[error(
        "linux.resources.memory.limit = {bytes} cannot be held: the VM was made with the class of {ram_mib} MiB \
         of RAM, which cannot grow; create the task with a limit above {} MiB",
        ram_mib / 2
    )]
    Class {
        /// The memory limit that was asked for, bytes.
        bytes: u64,
        /// RAM of the VM, MiB.
        ram_mib: u32,
    },
    /// The VM has ended, and the counters were read for the last time.
    #[error("the VM has ended; its limits are gone")]
    Ended,
    /// The kernel refuses the limit, or the VM uses more than the limit already.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl Coded for ChangeError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Class { .. } | Self::Ended => ErrorCode::FailedPrecondition,
            Self::Cgroup(err) => err.code(),
        }
    }
}

/// The cgroup of one task, and the counters that outlive the cgroup.
#[derive(Debug)]
pub(crate) struct Accounting {
    cgroup: Cgroup,
    ram_mib: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    memory_bytes_max: Option<u64>,
    guest_oom_kills: u64,
    /// The OOM-kills, the guest's and the host's, that containerd has been told of.
    told_oom_kills: u64,
    /// The last counters, set when the cgroup is about to be removed.
    last: Option<Metrics>,
}

impl Accounting {
    /// The descriptors by which a process is born into the task's cgroup, so that the task is charged.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub(crate) fn birth(&self) -> Result<Birth, CgroupError> {
        self.cgroup.birth()
    }

    /// The accounting of a VM with `ram_mib` of RAM, in a cgroup that was made with the limit `memory_bytes_max`.
    #[must_use]
    pub(crate) fn new(cgroup: Cgroup, ram_mib: u32, memory_bytes_max: Option<u64>) -> Self {
        let state = Mutex::new(State {
            memory_bytes_max,
            guest_oom_kills: 0,
            told_oom_kills: 0,
            last: None,
        });
        Self {
            cgroup,
            ram_mib,
            state,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is changed in two steps, so a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters that Stats reports. Reads the cgroup's files while the cgroup is there.
    #[must_use]
    pub(crate) fn metrics(&self) -> Metrics {
        let state = self.state();
        let last = state.last.clone();
        let mut metrics = last.unwrap_or_else(|| Metrics::read(&self.cgroup));
        metrics.add_oom_kills(state.guest_oom_kills);
        metrics
    }

    /// Reads the counters for the last time. To be called once the VM has ended.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        if state.last.is_none() {
            state.last = Some(Metrics::read(&self.cgroup));
        }
    }

    /// Whether the host's or the guest's kernel has OOM-killed a program since the last call.
    pub(crate) fn take_oom_news(&self) -> bool {
        let mut state = self.state();
        let host = match &state.last {
            Some(last) => last.oom_kills(),
            None => self.cgroup.oom_kills(),
        };
        let kills = host.saturating_add(state.guest_oom_kills);
        std::mem::replace(&mut state.told_oom_kills, kills) < kills
    }

    /// Notes how many programs the guest's kernel has OOM-killed, by the guest's report.
    pub(crate) fn set_guest_oom_kills(&self, kills: u64) {
        self.state().guest_oom_kills = kills;
    }

    /// The most that an instance's linear memories may take under the present limit, bytes.
    #[must_use]
    pub(crate) fn wasm_memory_bytes_max(&self) -> u64 {
        wasm_memory_bytes_max(self.state().memory_bytes_max, self.ram_mib)
    }

    /// The most that an instance's linear memories could take under these limits, bytes. Changes nothing.
    ///
    /// # Errors
    /// [`ChangeError::Class`].
    pub(crate) fn would_be(&self, resources: &Resources) -> Result<u64, ChangeError> {
        let present = self.state().memory_bytes_max;
        let wanted = after(present, resources);
        let ram_bytes = u64::from(self.ram_mib) << 20;
        match wanted {
            // The largest class holds larger limits from the start.
            Some(bytes) if bytes > ram_bytes && wanted != present && self.ram_mib < RAM_MIB_MAX => {
                let ram_mib = self.ram_mib;
                Err(ChangeError::Class { bytes, ram_mib })
            }
            _ => Ok(wasm_memory_bytes_max(wanted, self.ram_mib)),
        }
    }

    /// Changes the limits: all of them or none. Writes files, and may wait for the kernel to reclaim.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub(crate) fn change(&self, resources: &Resources) -> Result<(), ChangeError> {
        self.would_be(resources)?;
        let mut state = self.state();
        if state.last.is_some() {
            return Err(ChangeError::Ended);
        }
        self.cgroup.change(resources)?;
        state.memory_bytes_max = after(state.memory_bytes_max, resources);
        Ok(())
    }
}

fn after(present: Option<u64>, resources: &Resources) -> Option<u64> {
    resources.memory.map_or(present, Limit::at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;
    use std::fs;
    use tempfile::{TempDir, tempdir};

    const MIB: u64 = 1 << 20;

    fn accounting(ram_mib: u32, memory: u64) -> (TempDir, Accounting) {
        let directory = tempdir().unwrap();
        let put = |file, value: String| fs::write(directory.path().join(file), value).unwrap();
        put("memory.max", memory.to_string());
        put("memory.current", "1".to_owned());
        put("memory.events", "oom_kill 1\n".to_owned());
        let cgroup = Cgroup::fake(&[(directory.path(), &[])]);
        let accounting = Accounting::new(cgroup, ram_mib, Some(memory));
        (directory, accounting)
    }

    fn memory(limit: Limit) -> Resources {
        Resources {
            memory: Some(limit),
            ..Resources::default()
        }
    }

    #[test]
    fn a_limit_moves_the_program_s_own() {
        let (directory, accounting) = accounting(256, 64 * MIB);
        let before = accounting.wasm_memory_bytes_max();
        let change = memory(Limit::At(128 * MIB));
        assert!(accounting.would_be(&change).unwrap() > before);
        accounting.change(&change).unwrap();
        let more = before + 64 * MIB;
        assert_eq!(accounting.wasm_memory_bytes_max(), more);
        let max = fs::read_to_string(directory.path().join("memory.max")).unwrap();
        assert_eq!(max, (128 * MIB).to_string());
        accounting.change(&Resources::default()).unwrap();
        assert_eq!(accounting.wasm_memory_bytes_max(), more);
    }

    #[test]
    fn more_than_the_class_is_refused_by_name() {
        let (_directory, accounting) = accounting(256, 64 * MIB);
        let error = accounting
            .change(&memory(Limit::At(257 * MIB)))
            .unwrap_err();
        assert_eq!(error.code(), ErrorCode::FailedPrecondition);
        let expected = "linux.resources.memory.limit = 269484032 cannot be held: the VM was made with \
                        the class of 256 MiB of RAM, which cannot grow; create the task with a limit \
                        above 128 MiB";
        assert_eq!(error.to_string(), expected);
        accounting.change(&memory(Limit::At(256 * MIB))).unwrap();
        accounting.change(&memory(Limit::Unlimited)).unwrap();
    }

    #[test]
    fn a_limit_above_the_largest_class_may_stay() {
        let (_directory, accounting) = accounting(RAM_MIB_MAX, 1 << 40);
        accounting.change(&memory(Limit::At(1 << 40))).unwrap();
        accounting.change(&memory(Limit::At(1 << 41))).unwrap();
    }

    #[test]
    fn what_was_counted_last_stays() {
        let (directory, accounting) = accounting(256, 64 * MIB);
        assert!(accounting.take_oom_news() && !accounting.take_oom_news());
        accounting.set_guest_oom_kills(2);
        accounting.close();
        assert!(accounting.take_oom_news() && !accounting.take_oom_news());
        let counted = accounting.metrics();
        drop(directory);
        accounting.close();
        assert_eq!(accounting.metrics(), counted);
        assert_eq!(counted.oom_kills(), 3);
        let error = accounting.change(&Resources::default()).unwrap_err();
        assert!(matches!(error, ChangeError::Ended), "{error}");
    }

    #[test]
    fn every_error_has_its_code() {
        let cgroup = CgroupError::Swap {
            both: 1,
            reason: "no",
        };
        expect_codes([
            (
                ChangeError::Class {
                    bytes: 1,
                    ram_mib: 1,
                },
                ErrorCode::FailedPrecondition,
            ),
            (ChangeError::Ended, ErrorCode::FailedPrecondition),
            (cgroup.into(), ErrorCode::InvalidArgument),
        ]);
    }
}
