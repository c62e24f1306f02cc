//! Bad input: each a clear error that `ctr` shows, and nothing left behind.

use std::fs;
use std::path::Path;

use wasmvm_tests::task::{Run, Task, fresh_id, run_spec, spec_of};
use wasmvm_tests::{install, leftovers};

/// Runs a program of the `bad` image; it is refused with all of `parts`, and nothing stays.
fn refused(program: &str, parts: &[&str]) {
    let before = leftovers::found();
    let _ = Run::image("bad")
        .args([program])
        .to_end()
        .expect_refusal(parts);
    leftovers::expect_none_since(&before);
}

#[test]
fn a_missing_module() {
    refused("/absent", &["/absent", "not found"]);
    refused("absent", &["absent", "not found"]);
    refused("/bad/dangling", &["/bad/dangling"]);
    refused("/bad/loop", &["/bad/loop"]);
}

#[test]
fn a_directory_instead_of_a_module() {
    refused("/bad/directory", &["/bad/directory", "directory"]);
}

#[test]
fn an_empty_file() {
    refused("/bad/empty", &["/bad/empty", "empty"]);
}

#[test]
fn an_elf_program() {
    refused("/bad/elf", &["/bad/elf", "ELF"]);
}

#[test]
fn a_precompiled_artifact() {
    refused("/bad/precompiled", &["/bad/precompiled"]);
}

#[test]
fn a_script() {
    refused("/bad/script", &["/bad/script", "script"]);
}

#[test]
fn a_text_file() {
    refused("/bad/text", &["/bad/text", "WebAssembly"]);
}

#[test]
fn truncated_and_invalid_wasm() {
    refused("/bad/truncated-header", &["/bad/truncated-header"]);
    refused("/bad/unknown-version", &["/bad/unknown-version"]);
    refused("/bad/truncated", &["/bad/truncated"]);
    refused("/bad/invalid", &["/bad/invalid"]);
}

#[test]
fn a_missing_import_is_named() {
    refused("/bad/missing-import", &["imports", "::"]);
    refused("/bad/missing-import-component", &["imports"]);
}

#[test]
fn a_component_of_an_unknown_world() {
    refused("/bad/unknown-world", &["wasi:cli/run"]);
}

#[test]
fn more_memory_at_the_start_than_the_limit() {
    let _ = Run::image("bad")
        .option("--memory-limit", &(64 << 20).to_string())
        .args(["/bad/big-memory"])
        .to_end()
        .expect_refusal(&["memory"]);
}

#[test]
fn a_memory_limit_too_small_to_boot() {
    let before = leftovers::found();
    let _ = Run::image("tiny")
        .option("--memory-limit", &(4 << 20).to_string())
        .to_end()
        .expect_refusal(&["linux.resources.memory.limit", "4194304"]);
    leftovers::expect_none_since(&before);
}

/// The spec of `tiny` with `change` made to it is refused with all of `parts`.
fn spec_refused(change: impl FnOnce(&mut serde_json::Value), parts: &[&str]) {
    let mut spec = spec_of(&Run::image("tiny"));
    let folder = tempfile::tempdir().expect("a folder");
    let rootfs = folder.path().join("rootfs");
    fs::create_dir(&rootfs).expect("a folder");
    spec["root"]["path"] = rootfs.to_string_lossy().into();
    change(&mut spec);
    let before = leftovers::found();
    let _ = run_spec(
        &fresh_id(),
        folder.path(),
        spec.to_string().as_bytes(),
        Vec::new(),
    )
    .expect_refusal(parts);
    leftovers::expect_none_since(&before);
}

#[test]
fn empty_args() {
    spec_refused(
        |spec| spec["process"]["args"] = serde_json::json!([]),
        &["process.args"],
    );
}

#[test]
fn an_absent_rootfs() {
    spec_refused(
        |spec| spec["root"]["path"] = "/no/such/rootfs".into(),
        &["/no/such/rootfs"],
    );
}

#[test]
fn a_refused_field_is_named() {
    let hook = serde_json::json!({ "createContainer": [{ "path": "/bin/true" }] });
    spec_refused(move |spec| spec["hooks"] = hook, &["hooks.createContainer"]);
    let vm = serde_json::json!({ "kernel": { "path": "/boot/vmlinuz" } });
    spec_refused(move |spec| spec["vm"] = vm, &["vm"]);
}

#[test]
fn an_id_of_64_bytes_works() {
    let id = format!("{}{}", "i".repeat(64 - fresh_id().len()), fresh_id());
    let id = &id[..64];
    let before = leftovers::found();
    let outcome = Run::image("tiny").id(id).to_end().expect_status(0);
    assert_eq!(outcome.text(), "tiny\n");
    leftovers::expect_none_since(&before);
}

#[test]
fn a_second_create_of_the_same_id() {
    let task: Task = Run::image("probe")
        .args(["/probe", "loop"])
        .flag("--null-io")
        .detached();
    let pid = task.until("RUNNING");
    let _ = Run::image("probe")
        .id(task.id())
        .to_end()
        .expect_refusal(&["already exists"]);
    assert_eq!(task.until("RUNNING"), pid, "the first one is not harmed");
    task.kill("SIGKILL");
}

/// Moves a file away for the time of a test.
struct Hidden {
    path: std::path::PathBuf,
    aside: std::path::PathBuf,
}

impl Hidden {
    fn new(path: &Path) -> Self {
        let aside = path.with_extension("aside");
        fs::rename(path, &aside).expect("the file is there");
        Self {
            path: path.to_owned(),
            aside,
        }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        fs::rename(&self.aside, &self.path).expect("the file comes back");
    }
}

#[test]
fn a_missing_guest_kernel() {
    let _hidden = Hidden::new(&install::prefix().join("lib/wasmvm/kernel"));
    let before = leftovers::found();
    let _ = Run::image("tiny")
        .to_end()
        .expect_refusal(&["lib/wasmvm/kernel"]);
    leftovers::expect_none_since(&before);
}

#[test]
fn an_absent_kvm_device() {
    let _hidden = Hidden::new(Path::new("/dev/kvm"));
    let before = leftovers::found();
    let _ = Run::image("tiny")
        .to_end()
        .expect_refusal(&["/dev/kvm", "wasmvm check"]);
    leftovers::expect_none_since(&before);
}
