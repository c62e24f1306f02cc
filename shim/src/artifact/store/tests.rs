//! The store on real file systems: a disk's directory, and tmpfs mounts of the tests' own.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use sha2::{Digest as _, Sha256};
use tempfile::{TempDir, tempdir, tempfile};

use super::*;
use crate::error::expect_codes;

const CONTENT: &[u8] = b"machine code";
const KIB: u64 = 1024;
/// What an artifact with [`CONTENT`] takes of a tmpfs: its header's page and another.
const ARTIFACT_BYTES: u64 = 8 * KIB;

/// A store in a directory of its own; its tmpfs goes with it.
struct Host {
    root: TempDir,
    store: Store,
}

impl Host {
    fn new(shared_bytes_max: u64) -> Self {
        let root = tempdir().unwrap();
        let shelf = |name, bytes_max| CacheDir {
            path: root.path().join(name),
            bytes_max,
        };
        let store = Store::new(
            Some(shelf("shared", shared_bytes_max)),
            shelf("kept", 1 << 20),
        );
        Self { root, store }
    }

    fn shared(&self) -> &Path {
        &self.store.shared.as_ref().unwrap().path
    }

    fn kept(&self) -> &Path {
        &self.store.kept.path
    }

    /// As a reboot does.
    fn forget_memory(&self) {
        unmount(self.shared(), UnmountFlags::DETACH).unwrap();
    }

    /// Puts the directory for the disk on a file system of this size.
    fn small_disk(&self, bytes: u64) {
        fs::create_dir(self.kept()).unwrap();
        let options = std::ffi::CString::new(format!("size={bytes},mode=0700")).unwrap();
        let flags = MountFlags::empty();
        mount(
            "small-disk",
            self.kept(),
            c"tmpfs",
            flags,
            options.as_c_str(),
        )
        .unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for name in ["shared", "kept"] {
            // Not mounted is fine.
            let _ = unmount(self.root.path().join(name), UnmountFlags::DETACH);
        }
    }
}

fn artifact_of(content: &[u8]) -> File {
    let header = SlotHeader {
        kind: SlotKind::CoreArtifact,
        content_bytes: content.len() as u64,
        sha256: Sha256::digest(content).into(),
    };
    let file = tempfile().unwrap();
    file.write_all_at(&header.encode(), 0).unwrap();
    file.write_all_at(content, SLOT_HEADER_BYTES as u64)
        .unwrap();
    file
}

fn artifact() -> File {
    artifact_of(CONTENT)
}

fn key(digest: u8) -> ArtifactKey {
    ArtifactKey::of_parts(&[digest; 32], "c", "sse", None)
}

fn content(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(SLOT_HEADER_BYTES as u64))
        .unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Ends its use, also for the copy of a process that another test is just starting.
fn done(file: &File) {
    rustix::fs::flock(file, rustix::fs::FlockOperation::Unlock).unwrap();
}

#[test]
fn what_was_inserted_is_found() {
    let host = Host::new(1 << 20);
    assert!(host.store.find(&key(1)).unwrap().is_none());
    let inserted = host.store.insert(&key(1), &artifact()).unwrap();
    assert_eq!(content(inserted), CONTENT);
    let found = host.store.find(&key(1)).unwrap().unwrap();
    assert_eq!(content(found), CONTENT);
}

#[test]
fn a_reboot_costs_a_copy_not_a_compile() {
    let host = Host::new(1 << 20);
    host.store.insert(&key(1), &artifact()).unwrap();
    host.forget_memory();
    let found = host.store.find(&key(1)).unwrap().unwrap();
    assert_eq!(content(found), CONTENT);
    assert!(host.shared().join(key(1).as_str()).exists());
}

#[test]
fn a_damaged_file_counts_as_absent_and_goes() {
    let host = Host::new(1 << 20);
    host.store.insert(&key(1), &artifact()).unwrap();
    host.forget_memory();
    let kept = host.kept().join(key(1).as_str());
    let file = OpenOptions::new().write(true).open(&kept).unwrap();
    file.write_all_at(b"M", SLOT_HEADER_BYTES as u64).unwrap();
    assert!(host.store.find(&key(1)).unwrap().is_none());
    assert!(!kept.exists());
    host.store.insert(&key(1), &artifact()).unwrap();
    let shared = OpenOptions::new()
        .write(true)
        .open(host.shared().join(key(1).as_str()))
        .unwrap();
    shared.set_len(SLOT_HEADER_BYTES as u64 + 3).unwrap();
    let found = host.store.find(&key(1)).unwrap().unwrap();
    assert_eq!(content(found), CONTENT, "from the disk again");
}

#[test]
fn a_link_in_an_artifacts_place_is_not_followed() {
    let host = Host::new(1 << 20);
    host.store.insert(&key(1), &artifact()).unwrap();
    host.forget_memory();
    let kept = host.kept().join(key(1).as_str());
    let elsewhere = host.root.path().join("elsewhere");
    fs::rename(&kept, &elsewhere).unwrap();
    symlink(&elsewhere, &kept).unwrap();
    assert!(host.store.find(&key(1)).unwrap().is_none());
    assert!(elsewhere.exists());
}

#[test]
fn what_a_killed_writer_left_goes_with_the_next_write() {
    let host = Host::new(1 << 20);
    host.store.insert(&key(1), &artifact()).unwrap();
    // Above any pid (`PID_MAX_LIMIT` is 2^22), and our own.
    let left = |pid: u32| host.kept().join(format!(".{}.7.{pid}", key(1).as_str()));
    let (dead, alive) = (left(4_194_305), left(std::process::id()));
    fs::write(&dead, "half").unwrap();
    fs::write(&alive, "half").unwrap();
    host.store.insert(&key(1), &artifact()).unwrap();
    assert!(!dead.exists() && alive.exists());
    assert!(host.store.find(&key(1)).unwrap().is_some());
}

#[test]
fn a_running_vm_keeps_the_file_it_maps() {
    let host = Host::new(1 << 20);
    let mapped = host.store.insert(&key(1), &artifact()).unwrap();
    host.store.insert(&key(1), &artifact()).unwrap();
    assert_eq!(content(mapped), CONTENT);
}

#[test]
fn what_vms_map_cannot_be_opened_for_writing_again() {
    let host = Host::new(1 << 20);
    let mapped = host.store.insert(&key(1), &artifact()).unwrap();
    let found = host.store.find(&key(1)).unwrap().unwrap();
    for file in [&mapped, &found] {
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let error = OpenOptions::new().write(true).open(again).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
}

#[test]
fn what_was_not_used_for_longest_makes_room() {
    let mut host = Host::new(1 << 20);
    host.store.memory().unwrap();
    // Less than what is mounted already.
    host.store.shared.as_mut().unwrap().bytes_max = 2 * ARTIFACT_BYTES - 4 * KIB;
    for digest in 1..=2 {
        done(&host.store.insert(&key(digest), &artifact()).unwrap());
    }
    done(&host.store.find(&key(1)).unwrap().unwrap());
    host.store.insert(&key(3), &artifact()).unwrap();
    let shared = |digest| host.shared().join(key(digest).as_str()).exists();
    assert_eq!([1, 2, 3].map(shared), [true, false, true]);
    // From the disk, which has room.
    let found = host.store.find(&key(2)).unwrap().unwrap();
    assert_eq!(content(found), CONTENT);
}

#[test]
fn however_many_programs_start_the_memory_they_take_is_ours_and_bounded() {
    let host = Host::new(3 * ARTIFACT_BYTES);
    for digest in 1..=20 {
        let file = host.store.insert(&key(digest), &artifact()).unwrap();
        done(&file);
        assert_eq!(content(file), CONTENT);
    }
    let size = rustix::fs::statvfs(host.shared()).unwrap();
    assert_eq!(size.f_blocks * size.f_frsize, 3 * ARTIFACT_BYTES);
    let device = |path: &Path| std::os::unix::fs::MetadataExt::dev(&fs::metadata(path).unwrap());
    assert_ne!(device(host.shared()), device(host.root.path()));
    assert!((1..=3).contains(&fs::read_dir(host.shared()).unwrap().count()));
}

#[test]
fn a_memory_full_of_what_vms_map_costs_nobody_a_start() {
    let host = Host::new(2 * ARTIFACT_BYTES);
    let held: Vec<_> = (1..=2)
        .map(|digest| host.store.insert(&key(digest), &artifact()).unwrap())
        .collect();
    // What is mapped is not removed for it: that would give no room.
    let third = host.store.insert(&key(3), &artifact()).unwrap();
    assert_eq!(content(third), CONTENT);
    let found = host.store.find(&key(3)).unwrap().unwrap();
    assert_eq!(content(found), CONTENT, "from the disk");
    for digest in 1..=2 {
        assert!(host.shared().join(key(digest).as_str()).exists());
    }
    held.iter().for_each(done);
    drop(held);
    // A process that another test is just starting has copies of the descriptors until its exec.
    let start = Instant::now();
    while !host.shared().join(key(4).as_str()).exists() {
        assert!(start.elapsed() < Duration::from_secs(10), "no room yet");
        host.store.insert(&key(4), &artifact()).unwrap();
    }
}

#[test]
fn a_full_disk_costs_nobody_a_start_and_keeps_its_reserve() {
    let host = Host::new(1 << 20);
    host.small_disk(20 * ARTIFACT_BYTES);
    for digest in 1..=30 {
        host.store.insert(&key(digest), &artifact()).unwrap();
    }
    let disk = rustix::fs::statvfs(host.kept()).unwrap();
    assert!(disk.f_bavail * 10 >= disk.f_blocks);
    assert!(fs::read_dir(host.kept()).unwrap().count() > 10);
    // No room at all, also not by removing: neither on disk nor in memory.
    let large = artifact_of(&vec![7; 2 << 20]);
    let file = host.store.insert(&key(99), &large).unwrap();
    assert_eq!(content(file).len(), 2 << 20);
}

#[test]
fn a_directory_with_anything_else_in_it_is_refused_and_left_as_it_is() {
    let host = Host::new(1 << 20);
    fs::create_dir(host.kept()).unwrap();
    fs::set_permissions(host.kept(), fs::Permissions::from_mode(0o700)).unwrap();
    for name in ["customer-database", ".backup.4194305"] {
        let path = host.kept().join(name);
        fs::write(&path, vec![0; 2 << 20]).unwrap();
        for error in [
            host.store.find(&key(1)).map(drop).unwrap_err(),
            host.store
                .insert(&key(1), &artifact())
                .map(drop)
                .unwrap_err(),
        ] {
            assert_eq!(error.code(), ErrorCode::FailedPrecondition);
            let reason = format!("is refused: it holds {name:?}, which is no artifact");
            let error = error.to_string();
            assert!(
                error.starts_with("artifact_dir = ") && error.contains(&reason),
                "{error}"
            );
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), 2 << 20);
        fs::remove_file(&path).unwrap();
    }
    host.store.insert(&key(1), &artifact()).unwrap();
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    let host = Host::new(1 << 20);
    fs::create_dir(host.kept()).unwrap();
    fs::set_permissions(host.kept(), fs::Permissions::from_mode(0o770)).unwrap();
    let error = host.store.find(&key(1)).unwrap_err().to_string();
    assert!(
        error.contains("others may write to it (mode 0770)"),
        "{error}"
    );
    fs::set_permissions(host.kept(), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(host.kept(), Some(1000), None).unwrap();
    let error = host.store.find(&key(1)).unwrap_err().to_string();
    assert!(error.contains("it belongs to user 1000"), "{error}");
}

#[test]
fn an_artifact_that_is_removed_meanwhile_is_absent_not_an_error() {
    let host = Host::new(1 << 20);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                host.store.insert(&key(1), &artifact()).unwrap();
                host.store.forget(&key(1));
            }
        });
        let mut found = 0;
        while found < 20 {
            if let Some(file) = host.store.find(&key(1)).unwrap() {
                assert_eq!(content(file), CONTENT);
                found += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn what_does_not_fit_is_forgotten_everywhere() {
    let host = Host::new(1 << 20);
    host.store.insert(&key(1), &artifact()).unwrap();
    host.store.forget(&key(1));
    assert!(host.store.find(&key(1)).unwrap().is_none());
}

#[test]
fn an_installed_file_is_copied_once_for_each_owner() {
    let host = Host::new(1 << 20);
    let path = host.root.path().join("kernel");
    fs::write(&path, b"kernel").unwrap();
    let copy = |owner| host.store.installed(&path, owner).unwrap().unwrap();
    let inode = |file: File| std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
    let original = inode(File::open(&path).unwrap());
    let (a, again, b) = (inode(copy("a")), inode(copy("a")), inode(copy("b")));
    assert!(a == again && a != b && a != original);
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"another kernel").unwrap();
    let mut text = String::new();
    copy("a").read_to_string(&mut text).unwrap();
    assert_eq!(text, "another kernel");
}

#[test]
fn who_shares_with_nobody_finds_artifacts_on_disk() {
    let mut host = Host::new(1 << 20);
    host.store.shared = None;
    let inserted = host.store.insert(&key(1), &artifact()).unwrap();
    assert_eq!(content(inserted), CONTENT);
    let found = host.store.find(&key(1)).unwrap().unwrap();
    assert_eq!(content(found), CONTENT);
}

#[test]
fn every_error_has_its_code() {
    let source = || io::ErrorKind::NotFound.into();
    let refused = FolderError::Refused {
        setting: "artifact_dir",
        path: "/a".into(),
        reason: "no".into(),
    };
    let open = FolderError::Open {
        path: "/a".into(),
        source: source(),
    };
    expect_codes([
        (refused.into(), ErrorCode::FailedPrecondition),
        (open.into(), ErrorCode::Internal),
        (StoreError::Delivered(source()), ErrorCode::Internal),
    ]);
}
