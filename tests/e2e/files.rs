//! Files as a program of the container sees them, which is as under runc.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use wasmvm_tests::exec::Exec;
use wasmvm_tests::process;
use wasmvm_tests::task::Run;

/// What a file server is left with of its descriptors (`vmm/src/jail/limits.rs`): a walk over as many files as it
/// may have without that takes minutes under emulation.
const DESCRIPTORS: u64 = 1_000;
/// Twice as many.
const FILES: usize = 2_000;

fn bind(source: &Path, destination: &str) -> String {
    let source = source.display();
    format!("type=bind,src={source},dst={destination},options=rbind:rw")
}

/// A volume with links out of it.
fn volume() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    symlink("/data/greeting", folder.path().join("absolute")).expect("a link");
    symlink("../data/greeting", folder.path().join("relative")).expect("a link");
    folder
}

#[test]
fn paths_lead_where_they_do_under_runc() {
    for image in ["probe", "probe-component"] {
        let folder = volume();
        let outcome = Run::image(image)
            .option("--mount", &bind(folder.path(), "/mnt/../volume"))
            .option(
                "--mount",
                "type=bind,src=/dev/null,dst=/scratch/masked,options=rbind:ro",
            )
            .option("--cwd", "/made/../work/deep")
            .args([
                "/probe",
                "each", //
                "read",
                "/volume/absolute",
                ",", //
                "read",
                "/volume/relative",
                ",", //
                "read",
                "/volume/../data/greeting",
                ",", //
                "ln",
                "/data/greeting",
                "/scratch/link",
                ",", //
                "read",
                "/scratch/link",
                ",", //
                "stat",
                "/work/deep",
                ",", //
                "read",
                "/scratch/masked",
                ",", //
                "write",
                "/scratch/masked",
                "gone",
                ",", //
                "read",
                "/scratch/masked",
                ",", //
                "write",
                "/dev/stdout",
                "by name\n",
                ",", //
                "write",
                "/dev/stderr",
                "to stderr\n",
                ",", //
                "read",
                "/dev/fd/0",
                ",", //
                "mv",
                "/data/greeting",
                "/volume/moved",
                ",", //
                "read",
                "/proc/self/exe",
                ",", //
                "read",
                "/proc/self/root/data/greeting",
                ",", //
                "read",
                "/proc/self/mem",
            ])
            .stdin("from stdin\n")
            .to_end()
            .expect_status(1);
        let greeting = "from the image\n".repeat(4);
        let expected = format!("{greeting}d /work/deep\nby name\nfrom stdin\n");
        assert_eq!(outcome.text(), expected, "{outcome}");
        let expected = "to stderr\n\
            probe: /data/greeting: Cross-device link\n\
            probe: /proc/self/exe: Symbolic link loop\n\
            probe: /proc/self/root/data/greeting: Symbolic link loop\n\
            probe: /proc/self/mem: Permission denied\n";
        assert_eq!(outcome.error(), expected, "{outcome}");
    }
}

#[test]
fn a_working_directory_that_the_image_lacks_is_made_for_the_task() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("for everybody");
    let outcome = Run::image("probe")
        .option("--mount", &bind(folder.path(), "/volume"))
        .args([
            "/probe",
            "each",
            "pwd",
            ",",
            "stat",
            "/volume/new/deep",
            ",",
            "write",
            "/volume/new/deep/file",
            "x",
        ])
        .with_spec(|spec| {
            spec["process"]["cwd"] = "/volume/new/deep".into();
            spec["process"]["user"] = serde_json::json!({ "uid": 1000, "gid": 1000 });
        })
        .expect_status(1);
    let text = outcome.text();
    assert!(text.starts_with("PWD=/volume/new/deep\n"), "{outcome}");
    assert!(text.ends_with("\nd /volume/new/deep\n"), "{outcome}");
    assert!(
        outcome.error().contains("file: Permission denied"),
        "{outcome}"
    );
    let made = fs::metadata(folder.path().join("new/deep")).expect("it was made");
    assert_eq!(
        (made.uid(), made.gid(), made.mode() & 0o7777),
        (0, 0, 0o755)
    );
}

#[test]
fn more_files_than_descriptors_are_walked_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    for directory in 0..FILES / 1000 {
        let directory = folder.path().join(format!("d-{directory}"));
        fs::create_dir(&directory).expect("a directory");
        for file in 0..1000 {
            fs::write(directory.join(format!("f-{file}")), "").expect("a file");
        }
    }
    let task = Run::image("probe")
        .option("--mount", &bind(folder.path(), "/volume"))
        .args(["/probe", "loop"])
        .detached();
    let few = Rlimit {
        current: Some(DESCRIPTORS),
        maximum: Some(DESCRIPTORS),
    };
    let server = process::file_server_of(task.until("RUNNING"));
    let server = i32::try_from(server).ok().and_then(Pid::from_raw);
    prlimit(server, Resource::Nofile, few).expect("the file server has a limit");
    let outcome = Exec::of(&task, ["/probe", "walk", "/volume", "2"])
        .to_end()
        .expect_status(0);
    let seen = 2 * (1 + FILES / 1000 + FILES);
    assert_eq!(outcome.text(), format!("{seen} seen\n"));
}
