//! Files as a native program in the tree sees them: links, `..`, mounts, errors, its own descriptors.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

use crate::guest::{Guest, Streams};
use crate::programs;
use crate::script::errno::{
    ACCES, BADF, EXIST, INVAL, LOOP, NAMETOOLONG, NOENT, NOTDIR, NOTEMPTY, PERM, ROFS, SUCCESS,
    XDEV,
};
use crate::script::{Fd, How, ROOT, Script, Told};

/// What this thread, and with it the guest, mounts from now on ends with it.
fn own_mounts() {
    // SAFETY: no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
}

fn mount(guest: &Guest, kind: &str, name: &str) {
    fs::create_dir(guest.tree(name)).unwrap();
    rustix::mount::mount(kind, guest.tree(name), kind, MountFlags::empty(), None).unwrap();
}

/// The guest's own proc, as the agent gives it.
fn give_proc(guest: &Guest) {
    fs::create_dir(guest.tree("proc")).unwrap();
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = Some(c"hidepid=ptraceable");
    rustix::mount::mount("proc", guest.tree("proc"), "proc", flags, options).unwrap();
}

/// `/dev` as the shim makes it.
fn give_dev_links(guest: &Guest) {
    fs::create_dir(guest.tree("dev")).unwrap();
    for (name, target) in [
        ("fd", ""),
        ("stdin", "/0"),
        ("stdout", "/1"),
        ("stderr", "/2"),
    ] {
        let target = format!("/proc/self/fd{target}");
        symlink(target, guest.tree("dev").join(name)).unwrap();
    }
}

fn secret(guest: &Guest) {
    fs::create_dir(guest.tree("root")).unwrap();
    guest.write_file("root/secret", b"secret\n", 0o600);
}

#[tokio::test]
async fn links_and_dots_lead_where_they_do_under_chroot() {
    let mut script = Script::new();
    for path in [
        "data/absolute",
        "data/relative",
        "data/../root/secret",
        "data/root/secret",
        "../../root/secret",
    ] {
        script.cat(ROOT, path);
    }
    let data = script.open(ROOT, "data", How::Directory);
    for path in [
        "absolute",
        "../root/secret",
        "../../../root/secret",
        "root/secret",
    ] {
        script.cat(data, path);
    }
    script.symlink("/root/secret", data, "made");
    script.read_link(data, "made");
    script.cat(ROOT, "data/made");
    script.open(ROOT, "data/made", How::ReadNoFollow);
    let guest = script.guest().await;
    own_mounts();
    secret(&guest);
    mount(&guest, "tmpfs", "data");
    symlink("/root/secret", guest.tree("data/absolute")).unwrap();
    symlink("../root/secret", guest.tree("data/relative")).unwrap();
    symlink("/root", guest.tree("data/root")).unwrap();
    let mut told = Told::by(&guest, |_| {}).await;
    for _ in 0..5 {
        assert_eq!(told.cat(), "secret\n");
    }
    assert_eq!(told.errno(), SUCCESS);
    for _ in 0..4 {
        assert_eq!(told.cat(), "secret\n");
    }
    assert_eq!(told.errno(), SUCCESS);
    assert_eq!(told.text(), "/root/secret");
    assert_eq!(told.cat(), "secret\n");
    assert_eq!(told.errno(), LOOP);
    told.assert_end();
}

#[tokio::test]
async fn one_directory_is_preopened_whatever_is_mounted() {
    let mut script = Script::new();
    script.prestat(3);
    script.prestat(4);
    script.stat(ROOT, "data", true);
    script.stat(ROOT, "file", true);
    let guest = script.guest().await;
    own_mounts();
    mount(&guest, "tmpfs", "data");
    guest.write_file("file", b"x", 0o644);
    let mut told = Told::by(&guest, |_| {}).await;
    assert_eq!(told.text(), "/");
    assert_eq!(told.errno(), BADF);
    for name in ["data", "file"] {
        let (device, inode, _) = told.stat();
        let expected = fs::metadata(guest.tree(name)).unwrap();
        assert_eq!((device, inode), (expected.dev(), expected.ino()));
    }
    told.assert_end();
}

#[tokio::test]
async fn errors_are_told_as_themselves() {
    for interface in ["wasi_snapshot_preview1", "wasi_unstable"] {
        let mut script = Script::of(interface);
        script.rename("file", "data/file");
        script.link("file", "data/link");
        script.mkdir("fixed/new");
        script.open(ROOT, "fixed/new", How::Write);
        script.rename("fixed/a", "fixed/b");
        script.rmdir("full");
        script.open(ROOT, "loop", How::Read);
        script.rename("full", "full/below");
        script.mkdir(&"n".repeat(256));
        script.open(ROOT, "file/below", How::Read);
        script.open(ROOT, "file", How::Directory);
        script.open(ROOT, "absent", How::Read);
        script.mkdir("full");
        script.open(ROOT, "/file", How::Read);
        let guest = script.guest().await;
        own_mounts();
        guest.write_file("file", b"x", 0o644);
        mount(&guest, "tmpfs", "data");
        mount(&guest, "tmpfs", "fixed");
        fs::write(guest.tree("fixed/a"), "x").unwrap();
        let read_only = MountFlags::RDONLY;
        rustix::mount::mount_remount(guest.tree("fixed"), read_only, "").unwrap();
        fs::create_dir_all(guest.tree("full/entry")).unwrap();
        symlink("loop", guest.tree("loop")).unwrap();
        let mut told = Told::by(&guest, |_| {}).await;
        assert_eq!(told.errnos(), [XDEV, XDEV, ROFS, ROFS, ROFS, NOTEMPTY]);
        assert_eq!(told.errnos(), [LOOP, INVAL, NAMETOOLONG]);
        assert_eq!(told.errnos(), [NOTDIR, NOTDIR, NOENT, EXIST, PERM]);
        told.assert_end();
    }
}

#[tokio::test]
async fn magic_links_are_never_followed() {
    let mut script = Script::new();
    for path in [
        "proc/self/exe",
        "proc/self/root/root/secret",
        "proc/self/cwd/root/secret",
        "proc/thread-self/root/root/secret",
        "proc/self/task/../root/root/secret",
        "proc/self/ns/mnt",
    ] {
        script.open(ROOT, path, How::Read);
        script.stat(ROOT, path, true);
    }
    for path in ["mem", "maps", "smaps", "pagemap", "auxv"] {
        script.open(ROOT, &format!("proc/self/{path}"), How::Read);
    }
    script.open(ROOT, "proc/self/mem", How::Write);
    script.mkdir("proc/self/root/new");
    script.symlink("x", ROOT, "proc/self/cwd/new");
    script.unlink(ROOT, "proc/self/root/root/secret");
    script.rename("proc/self/root/root/secret", "stolen");
    script.link("proc/self/root/root/secret", "stolen");
    script.read_link(ROOT, "proc/self/root/root/secret");
    script.open(ROOT, "proc/1/root", How::Directory);
    script.cat(ROOT, "proc/self/comm");
    let guest = script.guest().await;
    own_mounts();
    secret(&guest);
    give_proc(&guest);
    let mut told = Told::by(&guest, |_| {}).await;
    for _ in 0..6 {
        assert_eq!(told.errnos(), [LOOP, LOOP]);
    }
    assert_eq!(told.errnos(), [ACCES; 5]);
    let write = told.errno();
    assert!([ACCES, ROFS].contains(&write), "{write}");
    assert_eq!(told.errnos(), [LOOP; 6]);
    let others = told.errno();
    assert!([ACCES, LOOP, NOENT, PERM].contains(&others), "{others}");
    assert_eq!(told.cat(), "wasmvm-agent\n");
    told.assert_end();
    assert!(guest.tree("root/secret").exists());
}

#[tokio::test]
async fn standard_streams_are_reached_by_their_names() {
    let mut script = Script::new();
    for (path, text) in [
        ("dev/stdout", "by name\n"),
        ("dev/fd/1", "by number\n"),
        ("proc/self/fd/1", "by proc\n"),
        ("log", "by a link of the image's\n"),
        ("dev/stderr", "to stderr\n"),
    ] {
        let file = script.open(ROOT, path, How::Write);
        script.write(file, text);
    }
    script.cat(ROOT, "dev/stdin");
    script.stat(ROOT, "dev/stdout", true);
    script.read_link(ROOT, "dev/stdout");
    script.open(ROOT, "dev/stdout", How::ReadNoFollow);
    let guest = script.guest().await;
    own_mounts();
    give_proc(&guest);
    give_dev_links(&guest);
    symlink("/dev/stdout", guest.tree("log")).unwrap();
    let mut told = Told::with_input(&guest, |_| {}, "from stdin\n").await;
    for _ in 0..5 {
        assert_eq!(told.errnos(), [SUCCESS, SUCCESS]);
    }
    assert_eq!(told.cat(), "from stdin\n");
    told.stat();
    assert_eq!(told.text(), "/proc/self/fd/1");
    assert_eq!(told.errno(), LOOP);
    told.assert_end();
    let written = "by name\nby number\nby proc\nby a link of the image's\n\0told";
    assert!(
        told.ended.stdout.starts_with(written),
        "{}",
        told.ended.stdout
    );
    assert_eq!(told.ended.stderr, "to stderr\n");
}

#[tokio::test]
async fn numbers_below_proc_self_fd_are_the_programs_own() {
    let mut script = Script::new();
    // The first free number: 4.
    let file = script.open(ROOT, "file", How::Read);
    script.read(file);
    script.cat(ROOT, "proc/self/fd/4");
    script.read_link(ROOT, "proc/self/fd/4");
    script.read_link(ROOT, "proc/self/fd/3");
    script.cat(ROOT, "dev/fd/3/root/secret");
    script.open(ROOT, "dev/fd/4/below", How::Read);
    script.open(ROOT, "dev/fd/77", How::Read);
    script.stat(ROOT, "dev/fd/77", true);
    script.stat(ROOT, "dev/fd/4", true);
    let own = script.open(ROOT, "proc/self/fd", How::Directory);
    script.cat(own, "4");
    script.read_dir(own, 4096, 0);
    let guest = script.guest().await;
    own_mounts();
    give_proc(&guest);
    give_dev_links(&guest);
    secret(&guest);
    guest.write_file("file", b"content\n", 0o644);
    let mut told = Told::by(&guest, |_| {}).await;
    assert_eq!(told.cat(), "content\n");
    // Opened anew, so from its start.
    assert_eq!(told.cat(), "content\n");
    assert_eq!(told.text(), "/file");
    assert_eq!(told.text(), "/");
    assert_eq!(told.cat(), "secret\n");
    assert_eq!(told.errnos(), [NOTDIR, NOENT, NOENT]);
    let file = fs::metadata(guest.tree("file")).unwrap();
    assert_eq!(told.stat(), (file.dev(), file.ino(), 4));
    assert_eq!(told.errno(), SUCCESS);
    assert_eq!(told.cat(), "content\n");
    let names: Vec<String> = told.entries().into_iter().map(|(.., name)| name).collect();
    assert_eq!(names[..7], [".", "..", "0", "1", "2", "3", "4"]);
    told.assert_end();
}

#[tokio::test]
async fn a_directory_is_listed_once_whatever_is_removed_meanwhile() {
    const FILES: u64 = 300;
    let mut script = Script::new();
    let directory = script.open(ROOT, "many", How::Directory);
    // A whole entry of 24 + 5 bytes at the least, so never more than three at once.
    for cookie in 0..FILES + 2 {
        script.read_dir(directory, 100, cookie);
        if cookie > 0 && cookie <= FILES {
            script.unlink(directory, &format!("n-{:03}", cookie - 1));
        }
    }
    script.read_dir(directory, 4096, 0);
    let guest = script.guest().await;
    fs::create_dir(guest.tree("many")).unwrap();
    for number in 0..FILES {
        guest.write_file(&format!("many/n-{number:03}"), b"", 0o644);
    }
    let inode = fs::metadata(guest.tree("many/n-000")).unwrap().ino();
    let mut told = Told::by(&guest, |_| {}).await;
    assert_eq!(told.errno(), SUCCESS);
    let mut seen = Vec::new();
    for cookie in 0..FILES + 2 {
        let (next, inode, name) = told.entries().swap_remove(0);
        assert_eq!(next, cookie + 1);
        seen.push((name, inode));
        if cookie > 0 && cookie <= FILES {
            assert_eq!(told.errno(), SUCCESS);
        }
    }
    let left: Vec<String> = told.entries().into_iter().map(|(.., name)| name).collect();
    told.assert_end();
    assert_eq!(left.len(), 2, "{left:?}");
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len() as u64, FILES + 2);
    assert!(seen.contains(&("n-000".to_owned(), inode)));
}

#[tokio::test]
async fn a_container_may_ask_for_its_working_directory_as_a_preopen() {
    let mut script = Script::new();
    script.prestat(3);
    script.prestat(4);
    script.cat(ROOT, "file");
    script.cat(Fd::Number(4), "work/file");
    let guest = script.guest().await;
    fs::create_dir(guest.tree("work")).unwrap();
    guest.write_file("work/file", b"content\n", 0o644);
    let asked = |program: &mut crate::guest::Program| {
        program.cwd = "/work".into();
        program.preopen_cwd = true;
    };
    let mut told = Told::by(&guest, asked).await;
    assert_eq!((told.text(), told.text()), (".".into(), "/".into()));
    assert_eq!(
        (told.cat(), told.cat()),
        ("content\n".into(), "content\n".into())
    );
    told.assert_end();
}

#[tokio::test]
async fn a_program_does_not_begin_in_a_directory_that_is_not_there() {
    let guest = Guest::with(programs::HELLO).await;
    let edit = |program: &mut crate::guest::Program| program.cwd = "/absent".into();
    let (code, text) = guest.create(edit, Streams::none()).await.unwrap_err();
    assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT);
    assert!(
        text.contains("\"/absent\" cannot be opened: No such file"),
        "{text}"
    );
}
