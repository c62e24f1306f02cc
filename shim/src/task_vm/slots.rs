//! The artifacts in the slots of a VM, and the leases of the instances that run them.
//!
//! Instances of one program share one slot. A slot without users keeps its artifact, as the next exec is
//! likely to want the same artifact, until another artifact needs the place.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use wasmvm_protocol::slot::SLOTS_MAX;

use crate::artifact::ArtifactKey;
use crate::error::{Coded, ErrorCode};
use crate::vm::{Vm, VmError};
use crate::workload::SlotLease;

/// A compiled program, as VMs map it into a slot.
#[derive(Debug)]
pub(super) struct Artifact {
    /// The key of the artifact, by which its slot is found.
    pub key: ArtifactKey,
    /// The artifact itself, opened read-only.
    pub file: File,
}

/// Why an artifact cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub(super) enum SlotsError {
    /// All slots are in use.
    #[error(
        "the task runs {SLOTS_MAX} different programs already, the most a VM can hold; end one first"
    )]
    Full,
    /// The VMM did not map the artifact.
    #[error(transparent)]
    Map(#[from] VmError),
}

impl Coded for SlotsError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Full => ErrorCode::ResourceExhausted,
            Self::Map(err) => err.code(),
        }
    }
}

/// An artifact that is mapped in a slot.
#[derive(Debug)]
struct Mapped {
    key: ArtifactKey,
    /// Held here and by every lease: the count says whether the slot is in use.
    user: Arc<()>,
}

/// The slots of one VM, in order.
#[derive(Debug, Default)]
pub(super) struct Slots(Vec<Option<Mapped>>);

impl Slots {
    /// Maps an artifact, unless it is mapped already.
    ///
    /// # Errors
    /// [`SlotsError`]
    pub(super) async fn lease(
        &mut self,
        vm: &Vm,
        artifact: Artifact,
    ) -> Result<SlotLease, SlotsError> {
        if let Some(lease) = self.find(&artifact.key) {
            return Ok(lease);
        }
        let index = self.vacate().ok_or(SlotsError::Full)?;
        vm.map_slot(index, artifact.file.as_fd()).await?;
        Ok(self.fill(index, artifact.key))
    }

    /// Maps another artifact in the slot of this lease, for all holders of a lease.
    ///
    /// # Errors
    /// [`VmError`].
    pub(super) async fn replace(
        &mut self,
        vm: &Vm,
        lease: &SlotLease,
        artifact: Artifact,
    ) -> Result<(), VmError> {
        vm.map_slot(lease.index(), artifact.file.as_fd()).await?;
        if let Some(Some(mapped)) = self.0.get_mut(lease.index() as usize) {
            mapped.key = artifact.key;
        }
        Ok(())
    }

    /// The artifact's slot, if the artifact is mapped.
    pub(super) fn find(&self, key: &ArtifactKey) -> Option<SlotLease> {
        let mapped = (0..).zip(&self.0).find_map(|(index, slot)| {
            let mapped = slot.as_ref().filter(|mapped| mapped.key == *key)?;
            Some((index, mapped.user.clone()))
        });
        mapped.map(|(index, user)| SlotLease::new(index, user))
    }

    /// Finds a slot without users and empties it: a mapping that fails leaves nothing to rely on.
    fn vacate(&mut self) -> Option<u32> {
        let unused = |slot: &Option<Mapped>| {
            let user = slot.as_ref().map(|mapped| &mapped.user);
            user.is_none_or(|user| Arc::strong_count(user) == 1)
        };
        let empty = self.0.iter().position(Option::is_none);
        let room = u32::try_from(self.0.len()).is_ok_and(|slots| slots < SLOTS_MAX);
        if empty.is_none() && room {
            self.0.push(None);
        }
        let index = empty
            .or_else(|| self.0.iter().position(Option::is_none))
            .or_else(|| self.0.iter().position(unused))?;
        self.0[index] = None;
        u32::try_from(index).ok()
    }

    fn fill(&mut self, index: u32, key: ArtifactKey) -> SlotLease {
        let user = Arc::new(());
        let lease = SlotLease::new(index, user.clone());
        if let Some(slot) = self.0.get_mut(index as usize) {
            *slot = Some(Mapped { key, user });
        }
        lease
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;

    fn key(name: u32) -> ArtifactKey {
        ArtifactKey::fake(&name.to_string())
    }

    /// As [`Slots::lease`], without a VM.
    fn lease(slots: &mut Slots, name: u32) -> Option<SlotLease> {
        slots.find(&key(name)).or_else(|| {
            let index = slots.vacate()?;
            Some(slots.fill(index, key(name)))
        })
    }

    #[test]
    fn every_error_has_its_code() {
        expect_codes([
            (SlotsError::Full, ErrorCode::ResourceExhausted),
            (SlotsError::Map(VmError::Deaf), ErrorCode::Unavailable),
        ]);
    }

    #[test]
    fn one_program_has_one_slot() {
        let mut slots = Slots::default();
        let init = lease(&mut slots, 7).unwrap();
        let exec = lease(&mut slots, 7).unwrap();
        assert_eq!((init.index(), exec.index()), (0, 0));
        assert_eq!(lease(&mut slots, 8).unwrap().index(), 1);
    }

    #[test]
    fn a_slot_is_reused_when_nobody_runs_its_program() {
        let mut slots = Slots::default();
        let mut held: Vec<_> = (0..SLOTS_MAX)
            .map(|name| lease(&mut slots, name).unwrap())
            .collect();
        let indices: Vec<_> = held.iter().map(SlotLease::index).collect();
        assert_eq!(indices, (0..SLOTS_MAX).collect::<Vec<_>>());
        assert!(lease(&mut slots, 99).is_none(), "all are in use");
        let second = lease(&mut slots, 5).unwrap();
        drop(held.remove(5));
        assert!(lease(&mut slots, 99).is_none(), "still used once");
        drop(second);
        assert_eq!(lease(&mut slots, 5).unwrap().index(), 5, "kept");
        assert_eq!(lease(&mut slots, 99).unwrap().index(), 5);
    }

    #[test]
    fn a_mapping_that_failed_is_not_found_again() {
        let mut slots = Slots::default();
        drop(lease(&mut slots, 1).unwrap());
        for name in 2..=SLOTS_MAX {
            drop(lease(&mut slots, name).unwrap());
        }
        let index = slots.vacate().unwrap();
        assert_eq!(index, 0);
        assert!(slots.find(&key(1)).is_none());
        assert_eq!(lease(&mut slots, 50).unwrap().index(), 0);
    }
}
