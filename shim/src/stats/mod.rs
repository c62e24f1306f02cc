//! A task's usage of resources, as containerd, the kubelet and `ctr task metrics` read it.
//!
//! The type follows the host: `io.containerd.cgroups.v2.Metrics` where the host has cgroup v2 alone, and
//! `io.containerd.cgroups.v1.Metrics` beside v1 hierarchies. Every number comes from the task's cgroup, so
//! the guest is not asked and a paused VM has its numbers. A file that the host's kernel lacks counts as
//! zeros; no section is ever left out, since readers follow them unchecked.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod text;
mod v1;
mod v2;

use protobuf::well_known_types::any::Any;
use protobuf::{Message as _, MessageField};
use wasmvm_protocol::agent::containerd::{cgroups, cgroups_v2};

use crate::cgroup::{Cgroup, Version};

/// Type URLs of containerd's metrics, which have no `type.googleapis.com/` before the name.
const V1_TYPE_URL: &str = "io.containerd.cgroups.v1.Metrics";
const V2_TYPE_URL: &str = "io.containerd.cgroups.v2.Metrics";

/// Usage of a task at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Metrics {
    /// Metrics of a host with v1 hierarchies.
    V1(Box<cgroups::metrics::Metrics>),
    /// Metrics of a host with cgroup v2 alone.
    V2(Box<cgroups_v2::metrics::Metrics>),
}

impl Metrics {
    /// Reads a task's cgroup.
    #[must_use]
    pub(crate) fn read(cgroup: &Cgroup) -> Self {
        match cgroup.version() {
            Version::V1 => Self::V1(Box::new(v1::read(cgroup))),
            Version::V2 => Self::V2(Box::new(v2::read(cgroup))),
        }
    }

    /// Adds the number of processes that the guest's own kernel has OOM-killed.
    pub(crate) fn add_oom_kills(&mut self, kills: u64) {
        let count = match self {
            Self::V1(metrics) => &mut filled(&mut metrics.memory_oom_control).oom_kill,
            Self::V2(metrics) => &mut filled(&mut metrics.memory_events).oom_kill,
        };
        *count = count.saturating_add(kills);
    }

    /// Number of OOM-kills: the host kernel's, and the guest's as far as they were added.
    #[must_use]
    pub(crate) fn oom_kills(&self) -> u64 {
        match self {
            Self::V1(metrics) => metrics.memory_oom_control.oom_kill,
            Self::V2(metrics) => metrics.memory_events.oom_kill,
        }
    }

    /// The metrics as the reply carries them.
    ///
    /// # Errors
    /// protobuf's, when the message is too long.
    pub(crate) fn to_any(&self) -> Result<Any, protobuf::Error> {
        let (type_url, value) = match self {
            Self::V1(metrics) => (V1_TYPE_URL, metrics.write_to_bytes()?),
            Self::V2(metrics) => (V2_TYPE_URL, metrics.write_to_bytes()?),
        };
        Ok(Any {
            type_url: type_url.to_owned(),
            value,
            ..Default::default()
        })
    }
}

fn filled<T: protobuf::Message>(field: &mut MessageField<T>) -> &mut T {
    field.mut_or_insert_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    #[test]
    fn the_type_follows_the_host() {
        let directory = tempdir().unwrap();
        for (names, type_url) in [(&[][..], V2_TYPE_URL), (&["memory"], V1_TYPE_URL)] {
            let mut metrics = Metrics::read(&Cgroup::fake(&[(directory.path(), names)]));
            metrics.add_oom_kills(2);
            metrics.add_oom_kills(u64::MAX);
            let any = metrics.to_any().unwrap();
            assert_eq!(any.type_url, type_url);
            assert_eq!(metrics.oom_kills(), u64::MAX);
        }
    }
}
