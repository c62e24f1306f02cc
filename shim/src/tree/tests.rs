//! Trees of real mounts, each in a mount namespace that ends with its thread.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use tempfile::TempDir;

use super::{AssembledTree, RootfsMount, TreeError, assemble, mountinfo};
use crate::bundle::TaskSpec;
use crate::error::{ErrorCode, chain};

/// A bundle directory with an empty rootfs, and a directory of the host beside it.
struct Bundle {
    directory: TempDir,
}

impl Bundle {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("rootfs")).unwrap();
        fs::create_dir(directory.path().join("host")).unwrap();
        Self { directory }
    }

    fn rootfs(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    fn host(&self, name: &str) -> PathBuf {
        self.directory.path().join("host").join(name)
    }

    /// The spec with these mounts, through the real parser.
    fn spec(&self, mounts: &serde_json::Value, readonly: bool) -> TaskSpec {
        let config = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/a"], "cwd": "/"},
            "root": {"path": "rootfs", "readonly": readonly},
            "mounts": mounts,
        });
        fs::write(
            self.directory.path().join("config.json"),
            config.to_string(),
        )
        .unwrap();
        TaskSpec::load(self.directory.path()).unwrap()
    }

    fn bind(&self, name: &str, destination: &str, options: &[&str]) -> serde_json::Value {
        serde_json::json!({
            "destination": destination, "type": "bind", "source": self.host(name), "options": options,
        })
    }
}

/// Runs `test` on a thread with its own mounts and working directory, and checks that the host saw
/// nothing of it.
fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let before = mountinfo::read().unwrap();
    let result = std::thread::scope(|scope| {
        let run = || {
            unshare_mounts();
            test()
        };
        scope
            .spawn(run)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let ours = std::env::temp_dir();
    let left: Vec<_> = mountinfo::read()
        .unwrap()
        .into_iter()
        .filter(|mount| mount.point.starts_with(&ours) && !before.contains(mount))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    result
}

#[allow(
    deprecated,
    reason = "its successor is unsafe for the sake of CLONE_FILES alone"
)]
fn unshare_mounts() {
    use rustix::thread::{UnshareFlags, unshare};
    unshare(UnshareFlags::FS | UnshareFlags::NEWNS).expect("these tests need root");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
}

/// Mounts a file system on a directory of the test's namespace.
fn host_mount(kind: &str, path: &Path) {
    rustix::mount::mount(kind, path, kind, MountFlags::empty(), None).unwrap();
}

/// A path of the tree, seen from its root, where `assemble` has left the thread.
fn inside(path: &str) -> PathBuf {
    Path::new(".").join(path.trim_start_matches('/'))
}

fn read(path: &str) -> String {
    fs::read_to_string(inside(path)).unwrap()
}

fn mount_flags(path: &str) -> rustix::fs::StatVfsMountFlags {
    rustix::fs::statvfs(inside(path)).unwrap().f_flag
}

fn refused(result: Result<AssembledTree, TreeError>) -> (ErrorCode, String) {
    let error = result.expect_err("it should have been refused");
    (error.code(), chain(&error))
}

#[test]
fn a_directory_becomes_the_root_and_the_host_sees_nothing() {
    let bundle = Bundle::new();
    fs::write(bundle.rootfs().join("a.wasm"), "module").unwrap();
    let spec = bundle.spec(&serde_json::json!([]), false);
    in_namespace(|| {
        let tree = assemble(&spec, &[]).unwrap();
        assert_eq!(read("/a.wasm"), "module");
        let cwd = rustix::process::getcwd(Vec::new()).unwrap();
        assert_eq!(cwd.to_str().unwrap(), spec.rootfs.to_str().unwrap());
        // A mount point, as pivot_root wants it.
        let parent = mountinfo::mount_id(fs::File::open("..").unwrap()).unwrap();
        assert_ne!(mountinfo::mount_id(&tree.root).unwrap(), parent);
        let flags = mount_flags("/");
        assert!(flags.contains(rustix::fs::StatVfsMountFlags::NODEV));
        assert!(flags.contains(rustix::fs::StatVfsMountFlags::NOSUID));
        assert!(!flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    });
}

#[test]
fn containerds_overlay_becomes_the_root() {
    let bundle = Bundle::new();
    in_namespace(|| {
        // Overlayfs does not work on every file system: on tmpfs it does.
        let top = bundle.directory.path().join("host");
        host_mount("tmpfs", &top);
        for name in ["low1", "low2", "up", "work"] {
            fs::create_dir(top.join(name)).unwrap();
        }
        fs::write(top.join("low1/a"), "upper layer").unwrap();
        fs::write(top.join("low2/a"), "lower layer").unwrap();
        fs::write(top.join("low2/b"), "lower layer").unwrap();
        let top = top.to_str().unwrap();
        let mount = RootfsMount {
            kind: "overlay".to_owned(),
            source: "overlay".to_owned(),
            target: String::new(),
            options: vec![
                "index=off".to_owned(),
                format!("workdir={top}/work"),
                format!("upperdir={top}/up"),
                format!("lowerdir={top}/low1:{top}/low2"),
            ],
        };
        let spec = bundle.spec(&serde_json::json!([]), false);
        assemble(&spec, &[mount]).unwrap();
        assert_eq!(
            (read("/a"), read("/b")),
            ("upper layer".into(), "lower layer".into())
        );
        fs::write(inside("/new"), "x").unwrap();
        assert!(Path::new(top).join("up/new").exists());
    });
    assert!(
        fs::read_dir(bundle.rootfs()).unwrap().next().is_none(),
        "the bundle stays empty"
    );
}

#[test]
fn an_image_of_many_layers_has_options_longer_than_a_page() {
    let bundle = Bundle::new();
    in_namespace(|| {
        let top = bundle.directory.path().join("host");
        host_mount("tmpfs", &top);
        let deep = top.join("var-lib-containerd-io.containerd.snapshotter.v1.overlayfs-snapshots");
        fs::create_dir(&deep).unwrap();
        let mut dirs = Vec::new();
        for layer in 0..60 {
            let dir = deep.join(format!("{layer}"));
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join(format!("file{layer}")), "x").unwrap();
            dirs.push(dir.to_str().unwrap().to_owned());
        }
        let options = vec![format!("lowerdir={}", dirs.join(":"))];
        assert!(options[0].len() > 4096);
        let mount = RootfsMount {
            kind: "overlay".to_owned(),
            source: "overlay".to_owned(),
            target: String::new(),
            options,
        };
        assemble(&bundle.spec(&serde_json::json!([]), false), &[mount]).unwrap();
        assert_eq!((read("/file0"), read("/file59")), ("x".into(), "x".into()));
    });
}

#[test]
fn a_read_only_snapshot_stays_read_only() {
    let bundle = Bundle::new();
    fs::create_dir(bundle.host("snapshot")).unwrap();
    fs::write(bundle.host("snapshot/a"), "layer").unwrap();
    let mount = RootfsMount {
        kind: "bind".to_owned(),
        source: bundle.host("snapshot").to_str().unwrap().to_owned(),
        target: String::new(),
        options: vec!["rbind".to_owned(), "ro".to_owned()],
    };
    let spec = bundle.spec(&serde_json::json!([]), false);
    in_namespace(|| {
        assemble(&spec, &[mount]).unwrap();
        assert_eq!(read("/a"), "layer");
        let err = fs::write(inside("/a"), "x").unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::ReadOnlyFilesystem);
    });
}

#[test]
fn rootfs_mounts_of_the_kernels_own_are_refused() {
    let bundle = Bundle::new();
    let spec = bundle.spec(&serde_json::json!([]), false);
    let mount = |kind: &str, source: &str| RootfsMount {
        kind: kind.to_owned(),
        source: source.to_owned(),
        target: String::new(),
        options: Vec::new(),
    };
    in_namespace(|| {
        let (code, text) = refused(assemble(&spec, &[mount("proc", "proc")]));
        assert_eq!(code, ErrorCode::InvalidArgument);
        assert!(text.contains("interface to the host's kernel"), "{text}");
        let (_, text) = refused(assemble(&spec, &[mount("bind", "/proc")]));
        assert!(text.contains("lies on proc"), "{text}");
        let (code, text) = refused(assemble(&spec, &[mount("bind", "/no/such/snapshot")]));
        assert_eq!(code, ErrorCode::NotFound);
        assert!(text.contains("/no/such/snapshot"), "{text}");
        let (_, text) = refused(assemble(&spec, &[mount("nosuchfs", "x")]));
        assert!(
            text.contains("rootfs mount 0 (nosuchfs of x) failed"),
            "{text}"
        );
    });
}

#[test]
fn a_read_only_root_keeps_its_mounts_writable() {
    let bundle = Bundle::new();
    fs::create_dir(bundle.host("data")).unwrap();
    let mounts = serde_json::json!([
        bundle.bind("data", "/data", &["rbind"]),
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["mode=700"]},
    ]);
    let spec = bundle.spec(&mounts, true);
    in_namespace(|| {
        let tree = assemble(&spec, &[]).unwrap();
        fs::write(inside("/data/x"), "written").unwrap();
        fs::write(inside("/run/x"), "written").unwrap();
        assert_eq!(
            fs::metadata(inside("/run")).unwrap().permissions().mode() & 0o777,
            0o700
        );
        let err = fs::write(inside("/x"), "x").unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(
            tree.mounted_directories,
            [Path::new("/data"), Path::new("/run")]
        );
    });
    assert_eq!(
        fs::read_to_string(bundle.host("data/x")).unwrap(),
        "written"
    );
}

#[test]
fn a_file_is_bound_on_a_file_that_is_made_for_it() {
    let bundle = Bundle::new();
    fs::write(bundle.host("hosts"), "127.0.0.1 localhost").unwrap();
    let mounts = serde_json::json!([bundle.bind("hosts", "/etc/hosts", &["rbind", "ro"])]);
    let spec = bundle.spec(&mounts, false);
    in_namespace(|| {
        let tree = assemble(&spec, &[]).unwrap();
        assert_eq!(read("/etc/hosts"), "127.0.0.1 localhost");
        let err = fs::write(inside("/etc/hosts"), "x").unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert!(tree.mounted_directories.is_empty());
    });
    assert_eq!(fs::read(bundle.rootfs().join("etc/hosts")).unwrap(), b"");
}

#[test]
fn mount_points_never_leave_the_tree() {
    let bundle = Bundle::new();
    let outside = bundle.host("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(bundle.host("data")).unwrap();
    fs::write(bundle.host("data/secret"), "x").unwrap();
    // An image's symlinks: one by absolute path, one by many steps up, one to nowhere.
    symlink(&outside, bundle.rootfs().join("abs")).unwrap();
    let up = "../".repeat(40) + outside.to_str().unwrap();
    symlink(up, bundle.rootfs().join("rel")).unwrap();
    let mounts = serde_json::json!([
        bundle.bind("data", "/abs/a", &["rbind"]),
        bundle.bind("data", "/rel/b", &["rbind"]),
    ]);
    let spec = bundle.spec(&mounts, false);
    in_namespace(|| {
        let (code, text) = refused(assemble(&spec, &[]));
        assert_eq!(code, ErrorCode::NotFound);
        assert!(
            text.starts_with("mount on /abs/a: cannot make the mount point"),
            "{text}"
        );
    });
    assert!(fs::read_dir(&outside).unwrap().next().is_none());
    // The same, where the target exists inside.
    let target = bundle.rootfs().join(outside.strip_prefix("/").unwrap());
    fs::create_dir_all(&target).unwrap();
    in_namespace(|| {
        assemble(&spec, &[]).unwrap();
        let target = outside.to_str().unwrap();
        assert_eq!(read(&format!("{target}/a/secret")), "x");
        assert_eq!(read(&format!("{target}/b/secret")), "x");
    });
    assert!(fs::read_dir(&outside).unwrap().next().is_none());
    assert!(target.join("a").is_dir());
}

#[test]
fn a_directory_on_a_file_is_named() {
    let bundle = Bundle::new();
    fs::create_dir(bundle.host("data")).unwrap();
    fs::write(bundle.rootfs().join("file"), "x").unwrap();
    let spec = bundle.spec(
        &serde_json::json!([bundle.bind("data", "/file", &[])]),
        false,
    );
    in_namespace(|| {
        let (code, text) = refused(assemble(&spec, &[]));
        assert_eq!(code, ErrorCode::InvalidArgument);
        assert_eq!(
            text,
            "mount on /file: the source is a directory, the place inside the rootfs is not"
        );
    });
}

#[test]
fn a_missing_source_is_named() {
    let bundle = Bundle::new();
    let spec = bundle.spec(
        &serde_json::json!([bundle.bind("gone", "/data", &["rbind"])]),
        false,
    );
    in_namespace(|| {
        let (code, text) = refused(assemble(&spec, &[]));
        assert_eq!(code, ErrorCode::NotFound);
        assert!(
            text.contains("/host/gone: No such file or directory"),
            "{text}"
        );
    });
}

#[test]
fn sources_on_the_kernels_file_systems_are_refused() {
    for source in [
        "/proc",
        "/proc/sys/kernel/core_pattern",
        "/sys",
        "/dev",
        "/dev/pts",
    ] {
        let bundle = Bundle::new();
        let mounts = serde_json::json!([
            {"destination": "/x", "type": "bind", "source": source, "options": ["rbind", "ro"]},
        ]);
        let spec = bundle.spec(&mounts, false);
        in_namespace(|| {
            let (code, text) = refused(assemble(&spec, &[]));
            assert_eq!(code, ErrorCode::InvalidArgument);
            assert!(
                text.contains(&format!("the source {source} lies on")),
                "{text}"
            );
        });
    }
}

#[test]
fn a_recursive_bind_leaves_the_kernels_file_systems_behind() {
    let bundle = Bundle::new();
    for name in ["data", "data/proc", "data/disk", "data/both"] {
        fs::create_dir(bundle.host(name)).unwrap();
    }
    let mounts = serde_json::json!([
        bundle.bind("data", "/data", &["rbind"]),
        bundle.bind("data", "/flat", &["bind"]),
        bundle.bind("data", "/locked", &["rbind", "ro"]),
        {"destination": "/host", "type": "bind", "source": "/", "options": ["rbind", "ro"]},
    ]);
    let spec = bundle.spec(&mounts, false);
    in_namespace(|| {
        host_mount("proc", &bundle.host("data/proc"));
        host_mount("tmpfs", &bundle.host("data/disk"));
        fs::write(bundle.host("data/disk/file"), "disk").unwrap();
        // A kernel's file system below another mount of the same place.
        host_mount("proc", &bundle.host("data/both"));
        host_mount("tmpfs", &bundle.host("data/both"));
        let tree = assemble(&spec, &[]).unwrap();
        assert_eq!(read("/data/disk/file"), "disk");
        assert!(!inside("/data/proc/self").exists());
        assert!(!inside("/data/both/self").exists());
        assert!(!inside("/flat/disk/file").exists());
        assert!(!inside("/host/proc/self").exists());
        assert!(!inside("/host/sys/kernel").exists());
        assert!(inside("/host/etc").exists());
        let err = fs::write(inside("/locked/disk/file"), "x").unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::ReadOnlyFilesystem);
        fs::write(inside("/data/disk/file"), "new").unwrap();
        let mounts = mountinfo::read().unwrap();
        let below = mountinfo::below(&mounts, mountinfo::mount_id(&tree.root).unwrap());
        assert!(below.len() > 4);
        assert!(below.iter().all(|mount| !mount.is_kernels()), "{below:?}");
        // The host's own mounts are still there for the next task.
        assert!(bundle.host("data/proc/self").exists());
    });
}

#[test]
fn nothing_mounted_is_a_device_or_setuid() {
    let bundle = Bundle::new();
    fs::create_dir(bundle.host("data")).unwrap();
    let mounts = serde_json::json!([
        bundle.bind("data", "/data", &["rbind", "dev", "suid"]),
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["dev", "suid"]},
    ]);
    let spec = bundle.spec(&mounts, false);
    in_namespace(|| {
        assemble(&spec, &[]).unwrap();
        for path in ["/", "/data", "/tmp"] {
            let flags = mount_flags(path);
            assert!(
                flags.contains(rustix::fs::StatVfsMountFlags::NODEV),
                "{path}"
            );
            assert!(
                flags.contains(rustix::fs::StatVfsMountFlags::NOSUID),
                "{path}"
            );
        }
    });
}

#[test]
fn the_guests_dev_has_its_places_outside_the_rootfs() {
    let bundle = Bundle::new();
    let mounts = serde_json::json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["mode=1777"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
    ]);
    let spec = bundle.spec(&mounts, false);
    in_namespace(|| {
        let tree = assemble(&spec, &[]).unwrap();
        assert!(tree.mounted_directories.is_empty());
        assert!(inside("/dev/null").is_file());
        assert_eq!(
            fs::metadata(inside("/dev/shm")).unwrap().mode() & 0o7777,
            0o1777
        );
        assert!(!inside("/dev/pts").exists());
        assert!(!inside("/proc").exists());
    });
    assert!(
        fs::read_dir(bundle.rootfs().join("dev"))
            .unwrap()
            .next()
            .is_none()
    );
}

#[test]
fn a_tmpfs_is_as_large_as_asked_or_as_the_task() {
    let bundle = Bundle::new();
    let mounts = serde_json::json!([
        {"destination": "/small", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]},
        {"destination": "/task", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/bad", "type": "tmpfs", "source": "tmpfs", "options": ["size=much"]},
    ]);
    let mut spec = bundle.spec(&mounts, false);
    spec.memory_bytes_max = Some(32 << 20);
    in_namespace(|| {
        let (code, text) = refused(assemble(&spec, &[]));
        assert_eq!(code, ErrorCode::InvalidArgument);
        assert!(
            text.starts_with("mount on /bad: tmpfs refuses size=much"),
            "{text}"
        );
    });
    spec.mounts.pop();
    in_namespace(|| {
        assemble(&spec, &[]).unwrap();
        let bytes = |path| {
            let stat = rustix::fs::statvfs(inside(path)).unwrap();
            stat.f_blocks * stat.f_frsize
        };
        assert_eq!((bytes("/small"), bytes("/task")), (64 << 10, 32 << 20));
    });
}

#[test]
fn the_root_can_be_pivoted_into() {
    let bundle = Bundle::new();
    fs::write(bundle.rootfs().join("a.wasm"), "module").unwrap();
    let spec = bundle.spec(&serde_json::json!([]), false);
    in_namespace(|| {
        assemble(&spec, &[]).unwrap();
        // What the VMM does first.
        rustix::process::pivot_root(".", ".").unwrap();
        rustix::mount::unmount(".", UnmountFlags::DETACH).unwrap();
        assert_eq!(fs::read_to_string("/a.wasm").unwrap(), "module");
        assert!(!Path::new("/proc").exists());
    });
}
