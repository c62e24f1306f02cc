//! Keeps a directory of artifacts below a size: the least recently used artifact is removed first, and room is
//! made before an artifact is written.
//!
//! An artifact that a VM maps stays: its pages would live on until the VM's end, so that its removal gives no room.

use rustix::fs::fstatvfs;

use super::folder::Folder;

/// Bounds on a directory of artifacts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Most bytes of all artifacts together.
    pub bytes_max: u64,
    /// Part of the file system that is left to others, per cent.
    pub reserve_percent: u64,
}

/// Removes artifacts until `bytes` more fit; returns whether they do.
pub(super) fn make_room(folder: &Folder, budget: Budget, bytes: u64) -> bool {
    if bytes > budget.bytes_max {
        return false;
    }
    let mut artifacts = folder.artifacts();
    let mut held: u64 = artifacts.iter().map(|artifact| artifact.bytes).sum();
    artifacts.sort_by_key(|artifact| artifact.used);
    let mut candidates = artifacts.into_iter();
    loop {
        let fits = held.saturating_add(bytes) <= budget.bytes_max;
        if fits && fits_on_disk(folder, budget, bytes) {
            return true;
        }
        let Some(artifact) = candidates.next() else {
            return false;
        };
        if folder.remove_unused(&artifact.name) {
            held = held.saturating_sub(artifact.bytes);
            let path = folder.path().join(&artifact.name);
            tracing::info!(path = %path.display(), bytes = artifact.bytes, "an artifact made room");
        }
    }
}

/// Removes every artifact that no VM maps.
pub(super) fn make_all_room(folder: &Folder) {
    for artifact in folder.artifacts() {
        folder.remove_unused(&artifact.name);
    }
}

/// Whether so many bytes may still be written; always, where the file system does not count.
fn fits_on_disk(folder: &Folder, budget: Budget, bytes: u64) -> bool {
    let Ok(stat) = fstatvfs(folder.directory()) else {
        return true;
    };
    let percent = budget.reserve_percent;
    let reserve = stat.f_blocks.saturating_mul(percent).div_ceil(100);
    let free = stat.f_bavail.saturating_sub(reserve);
    stat.f_blocks == 0 || bytes.div_ceil(stat.f_frsize.max(1)) <= free
}
