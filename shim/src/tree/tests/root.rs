//! The rootfs.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mount::UnmountFlags;

use super::super::{RootfsMount, assemble};
use super::{Bundle, host_mount, in_namespace, inside, mount_flags, read, refused};
use crate::error::ErrorCode;
use crate::mountinfo;

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
        assemble(&spec, &[]).unwrap();
        fs::write(inside("/data/x"), "written").unwrap();
        fs::write(inside("/run/x"), "written").unwrap();
        assert_eq!(fs::metadata(inside("/run")).unwrap().mode() & 0o777, 0o700);
        let err = fs::write(inside("/x"), "x").unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::ReadOnlyFilesystem);
    });
    assert_eq!(
        fs::read_to_string(bundle.host("data/x")).unwrap(),
        "written"
    );
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
