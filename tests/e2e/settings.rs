//! Settings that come with the runtime's options.

use std::fs;

use wasmvm_tests::leftovers;
use wasmvm_tests::task::Run;

#[test]
fn a_mistake_in_the_runtimes_options_is_named_with_file_line_and_key() {
    let before = leftovers::found();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("wasmvm.toml");
    let name = path.to_str().expect("a path of ours is text");
    let run = |text: &str| {
        fs::write(&path, text).expect("written");
        let run = Run::image("tiny").option("--runtime-config-path", name);
        run.to_end()
    };
    let outcome = run("boot_timeout_s = 100\n\nmemory = 3\n");
    outcome.expect_refusal(&[&format!("{name}:3: unknown field `memory`")]);
    let outcome = run("# none\nboot_timeout_s = 0\n");
    outcome.expect_refusal(&[&format!("{name}:2: boot_timeout_s = 0 is refused")]);
    let outcome = run("boot_timeout_s = 100\nconsole = true\n").expect_status(0);
    assert_eq!(outcome.text(), "tiny\n");
    leftovers::expect_none_since(&before);
}
