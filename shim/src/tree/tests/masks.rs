//! Masked and read-only paths, and what a tmpfs shows of what it hides.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use rustix::fs::StatVfsMountFlags;
use serde_json::json;

use super::super::assemble;
use super::{Bundle, in_namespace, inside, mount_flags, read};

fn write_error(path: &str) -> ErrorKind {
    fs::write(inside(path), "x").unwrap_err().kind()
}

#[test]
fn masked_paths_show_nothing_wherever_they_lead_inside_the_tree() {
    let bundle = Bundle::new();
    let at = |name: &str| bundle.rootfs().join(name);
    for name in ["secret", "other"] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("file"), "kept from the program").unwrap();
    }
    fs::write(bundle.host("volume"), "a key").unwrap();
    symlink("/other/file", at("link")).unwrap();
    symlink("..", at("other/up")).unwrap();
    let linux = json!({"maskedPaths": [
        "/secret", "/link", "/data", "/not/there", "/link/below", "/other/up",
    ]});
    let spec = bundle.spec_with(
        &json!([bundle.bind("volume", "/data", &["bind"])]),
        false,
        &linux,
    );
    in_namespace(|| {
        assemble(&spec, &[]).unwrap();
        assert_eq!(fs::read_dir(inside("/secret")).unwrap().count(), 0);
        assert_eq!(write_error("/secret/new"), ErrorKind::ReadOnlyFilesystem);
        for file in ["/other/file", "/data"] {
            assert_eq!(read(file), "", "{file}");
            assert_eq!(write_error(file), ErrorKind::ReadOnlyFilesystem, "{file}");
            let harmless = StatVfsMountFlags::NODEV | StatVfsMountFlags::NOSUID;
            assert!(mount_flags(file).contains(harmless), "{file}");
        }
        // A link of the image to the root masks nothing, and the rest can be written.
        fs::write(inside("/other/new"), "x").unwrap();
        assert!(!inside("/not").exists());
    });
    assert_eq!(
        fs::read_to_string(at("secret/file")).unwrap(),
        "kept from the program"
    );
    assert_eq!(fs::read_to_string(bundle.host("volume")).unwrap(), "a key");
}

#[test]
fn nothing_can_be_changed_at_read_only_paths() {
    let bundle = Bundle::new();
    let at = |name: &str| bundle.rootfs().join(name);
    fs::create_dir_all(at("etc/app")).unwrap();
    fs::write(at("etc/app/config"), "as it is").unwrap();
    fs::write(at("file"), "as it is").unwrap();
    let linux = json!({"readonlyPaths": ["/etc", "/file", "/not/there"]});
    // A volume below stays what its mount says.
    fs::create_dir(bundle.host("volume")).unwrap();
    let mounts = json!([bundle.bind("volume", "/etc/volume", &["rbind"])]);
    let spec = bundle.spec_with(&mounts, false, &linux);
    in_namespace(|| {
        assemble(&spec, &[]).unwrap();
        for path in ["/etc/app/config", "/etc/new", "/file"] {
            assert_eq!(write_error(path), ErrorKind::ReadOnlyFilesystem, "{path}");
        }
        assert_eq!(read("/etc/app/config"), "as it is");
        fs::write(inside("/etc/volume/new"), "x").unwrap();
        fs::write(inside("/elsewhere"), "x").unwrap();
    });
}

#[test]
fn a_tmpfs_shows_what_it_hides_when_it_is_asked_to() {
    let bundle = Bundle::new();
    let etc = bundle.rootfs().join("etc");
    fs::create_dir_all(etc.join("below")).unwrap();
    fs::write(etc.join("passwd"), "root").unwrap();
    fs::write(etc.join("below/file"), "x").unwrap();
    fs::set_permissions(&etc, fs::Permissions::from_mode(0o750)).unwrap();
    chown(&etc, Some(7), Some(8)).unwrap();
    let mount = |options: &[&str]| json!([{"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": options}]);
    let spec = bundle.spec(
        &mount(&["tmpcopyup", "size=64k", "noatime", "noexec"]),
        true,
    );
    in_namespace(|| {
        assemble(&spec, &[]).unwrap();
        assert_eq!(
            (read("/etc/passwd"), read("/etc/below/file")),
            ("root".into(), "x".into())
        );
        fs::write(inside("/etc/passwd"), "changed").unwrap();
        fs::remove_file(inside("/etc/below/file")).unwrap();
        fs::write(inside("/etc/new"), "x").unwrap();
        assert_eq!(read("/etc/passwd"), "changed");
        let top = fs::metadata(inside("/etc")).unwrap();
        assert_eq!((top.mode() & 0o7777, top.uid(), top.gid()), (0o750, 7, 8));
        let flags = mount_flags("/etc");
        let meant =
            StatVfsMountFlags::NOEXEC | StatVfsMountFlags::NOATIME | StatVfsMountFlags::NODEV;
        assert!(flags.contains(meant), "{flags:?}");
        // What is written is bounded by the tmpfs's size.
        let error = fs::write(inside("/etc/large"), vec![0; 128 << 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    });
    assert_eq!(fs::read_to_string(etc.join("passwd")).unwrap(), "root");
    assert_eq!(fs::read_to_string(etc.join("below/file")).unwrap(), "x");
    // Without the option it hides; a read-only one cannot be changed.
    let hides = bundle.spec(&mount(&[]), false);
    let read_only = bundle.spec(&mount(&["tmpcopyup", "ro"]), false);
    in_namespace(|| {
        assemble(&hides, &[]).unwrap();
        assert_eq!(fs::read_dir(inside("/etc")).unwrap().count(), 0);
        assert_eq!(fs::metadata(inside("/etc")).unwrap().mode() & 0o7777, 0o750);
    });
    in_namespace(|| {
        assemble(&read_only, &[]).unwrap();
        assert_eq!(read("/etc/passwd"), "root");
        assert_eq!(write_error("/etc/passwd"), ErrorKind::ReadOnlyFilesystem);
    });
}
