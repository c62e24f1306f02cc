//! The spec's mounts.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use super::super::assemble;
use super::{Bundle, host_mount, in_namespace, inside, mount_flags, read, refused};
use crate::error::ErrorCode;
use crate::mountinfo;

#[test]
fn a_file_is_bound_on_a_file_that_is_made_for_it() {
    let bundle = Bundle::new();
    fs::write(bundle.host("hosts"), "127.0.0.1 localhost").unwrap();
    let mounts = serde_json::json!([bundle.bind("hosts", "/etc/hosts", &["rbind", "ro"])]);
    let spec = bundle.spec(&mounts, false);
    in_namespace(|| {
        assemble(&spec, &[]).unwrap();
        assert_eq!(read("/etc/hosts"), "127.0.0.1 localhost");
        let err = fs::write(inside("/etc/hosts"), "x").unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::ReadOnlyFilesystem);
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
fn a_bind_of_dev_null_is_left_to_the_guests_own() {
    let bundle = Bundle::new();
    fs::create_dir(bundle.rootfs().join("etc")).unwrap();
    fs::write(bundle.rootfs().join("etc/hostname"), "web").unwrap();
    let bind = |source: &str, destination: &str| serde_json::json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro"]});
    let mounts = serde_json::json!([
        bind("/dev/null", "/etc/hostname"),
        bind("/dev/null", "/var/log/new"),
        bind("/dev/urandom", "/etc/../chroot/dev/urandom"),
    ]);
    let spec = bundle.spec(&mounts, false);
    in_namespace(|| {
        let tree = assemble(&spec, &[]).unwrap();
        let devices: Vec<_> = tree
            .devices
            .iter()
            .map(|mount| (mount.device, mount.destination.to_str().unwrap()))
            .collect();
        assert_eq!(
            devices,
            [
                ("null", "/etc/hostname"),
                ("null", "/var/log/new"),
                ("urandom", "/chroot/dev/urandom")
            ]
        );
        assert!(inside("/var/log/new").is_file());
    });
    // Any other device is the host kernel's own still.
    let spec = bundle.spec(&serde_json::json!([bind("/dev/kmsg", "/kmsg")]), false);
    in_namespace(|| {
        let (_, text) = refused(assemble(&spec, &[]));
        assert!(text.contains("/dev/kmsg"), "{text}");
    });
}

#[test]
fn a_missing_working_directory_is_made() {
    let bundle = Bundle::new();
    fs::create_dir(bundle.host("data")).unwrap();
    fs::write(bundle.rootfs().join("file"), "x").unwrap();
    let mounts = serde_json::json!([bundle.bind("data", "/data", &["rbind", "ro"])]);
    let spec = |cwd: &str, read_only: bool| {
        let mut spec = bundle.spec(&mounts, read_only);
        spec.process.cwd = cwd.into();
        spec
    };
    for (cwd, read_only) in [("/work/deep", false), ("/late", true)] {
        let spec = spec(cwd, read_only);
        in_namespace(|| {
            assemble(&spec, &[]).unwrap();
            let made = fs::metadata(inside(cwd)).unwrap();
            assert!(made.is_dir());
            assert_eq!(
                (made.uid(), made.gid(), made.mode() & 0o7777),
                (0, 0, 0o755)
            );
        });
    }
    for (cwd, code) in [
        ("/file", ErrorCode::InvalidArgument),
        ("/file/below", ErrorCode::InvalidArgument),
        ("/data/new", ErrorCode::FailedPrecondition),
    ] {
        let spec = spec(cwd, false);
        in_namespace(|| {
            let (refused, text) = refused(assemble(&spec, &[]));
            assert_eq!(refused, code, "{text}");
            assert!(
                text.starts_with(&format!("process.cwd = \"{cwd}\"")),
                "{text}"
            );
        });
    }
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
        assemble(&spec, &[]).unwrap();
        assert!(inside("/dev/null").is_file());
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ] {
            let link = fs::read_link(inside("/dev").join(name)).unwrap();
            assert_eq!(link, Path::new(target));
        }
        assert_eq!(
            fs::metadata(inside("/dev/shm")).unwrap().mode() & 0o7777,
            0o1777
        );
        assert!(!inside("/dev/pts").exists());
        // A place for the guest's own.
        assert!(fs::read_dir(inside("/proc")).unwrap().next().is_none());
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
    spec.resources.memory = Some(crate::bundle::Limit::At(32 << 20));
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
