//! What is refused, and how it is said.

use std::fs;

use serde_json::{Value, json};

use super::super::TaskSpec;
use super::super::memory::MEMORY_BYTES_MIN;
use super::{CTR_RUN, parse, with};
use crate::error::{Coded as _, ErrorCode, chain};

/// `-t`.
const CTR_RUN_TERMINAL: &str = include_str!("../golden/ctr-1.6-run-terminal.json");
/// `--uidmap --gidmap`.
const CTR_RUN_UIDMAP: &str = include_str!("../golden/ctr-1.6-run-uidmap.json");

fn refusal(pointer: &str, value: Value) -> String {
    let error = with(pointer, value).expect_err("it should have been refused");
    assert_eq!(error.code(), ErrorCode::InvalidArgument);
    chain(&error)
}

#[test]
fn a_terminal_is_the_requests_to_ask_for() {
    parse(CTR_RUN_TERMINAL).unwrap();
}

#[test]
fn user_namespaces_are_refused() {
    let text = parse(CTR_RUN_UIDMAP).unwrap_err().to_string();
    assert!(
        text.starts_with("config.json: linux.gidMappings = [{"),
        "{text}"
    );
    let text = refusal("/linux/namespaces/0/type", json!("user"));
    assert!(text.starts_with("config.json: linux.namespaces[0].type = \"user\" is refused"));
}

#[test]
fn every_refusal_names_its_field() {
    let hook = json!([{"path": "/bin/true"}]);
    for (pointer, value, start) in [
        (
            "/hooks",
            json!({"createContainer": hook}),
            "hooks.createContainer = [{\"path\":\"/bin/true\"}]",
        ),
        (
            "/hooks",
            json!({"startContainer": hook}),
            "hooks.startContainer = ",
        ),
        ("/root/path", json!("/"), "root.path = \"/\""),
        ("/vm", json!({"kernel": {"path": "/k"}}), "vm = "),
        ("/windows", json!({"layerFolders": ["x"]}), "windows = "),
        (
            "/linux/timeOffsets",
            json!({"boottime": {"secs": 1}}),
            "linux.timeOffsets = ",
        ),
        (
            "/linux/netDevices",
            json!({"eth0": {"name": "e"}}),
            "linux.netDevices = ",
        ),
        (
            "/mounts/1/uidMappings",
            json!([{"hostID": 1}]),
            "mounts[1].uidMappings = ",
        ),
        ("/mounts/6/type", json!("nfs"), "mounts[6].type = \"nfs\""),
        (
            "/annotations",
            json!({"io.wasmvm.preopen-cwd": "yes"}),
            "annotations[\"io.wasmvm.preopen-cwd\"] = \"yes\"",
        ),
        (
            "/mounts/6/destination",
            json!("/a/.."),
            "mounts[6].destination = \"/a/..\"",
        ),
        (
            "/mounts/6/destination",
            json!("/"),
            "mounts[6].destination = \"/\"",
        ),
        (
            "/mounts/6/options/1",
            json!("secret=1"),
            "mounts[6].options = \"secret=1\"",
        ),
        ("/process/args", json!(["", "x"]), "process.args[0] = \"\""),
        (
            "/process/args",
            json!(["a", "b\0c"]),
            "process.args[1] = \"b\\u0000c\"",
        ),
        (
            "/process/env",
            json!(["A=1", "B"]),
            "process.env[1] = \"B\"",
        ),
        ("/process/env", json!(["=1"]), "process.env[0] = \"=1\""),
        ("/process/cwd", json!("x"), "process.cwd = \"x\""),
        (
            "/process/oomScoreAdj",
            json!(1001),
            "process.oomScoreAdj = 1001",
        ),
        ("/ociVersion", json!("2.0.0"), "ociVersion = \"2.0.0\""),
        ("/hostname", json!("h".repeat(65)), "hostname = \"hhh"),
        (
            "/linux/namespaces/4/path",
            json!("netns/x"),
            "linux.namespaces[4].path = \"netns/x\"",
        ),
        (
            "/linux/resources/cpu/cpus",
            json!("all"),
            "linux.resources.cpu.cpus = \"all\"",
        ),
        (
            "/linux/resources/unified",
            json!({"memory.max": "1"}),
            "linux.resources.unified.memory.max",
        ),
        (
            "/linux/resources/unified",
            json!({"cgroup.procs": "1"}),
            "linux.resources.unified.cgroup.",
        ),
        (
            "/linux/resources/unified",
            json!({"../memory.high": "1"}),
            "linux.resources.unified.../",
        ),
    ] {
        let text = refusal(pointer, value);
        assert!(text.starts_with(&format!("config.json: {start}")), "{text}");
        assert!(text.contains(" is refused: "), "{text}");
    }
}

#[test]
fn what_says_nothing_is_never_refused() {
    for (pointer, value) in [
        ("/hooks", json!({})),
        ("/hooks", json!({"prestart": [], "createContainer": null})),
        ("/process/terminal", json!(false)),
        ("/vm", json!(null)),
        ("/linux/uidMappings", json!([])),
        ("/linux/namespaces", json!(null)),
        ("/annotations", json!(null)),
        ("/mounts", json!(null)),
    ] {
        with(pointer, value).unwrap();
    }
}

#[test]
fn a_memory_limit_too_small_to_boot_names_the_minimum() {
    let text = refusal("/linux/resources/memory", json!({"limit": 1 << 20}));
    let start = "config.json: linux.resources.memory.limit = 1048576 is refused: \
                 too small to boot a guest; the minimum is ";
    assert!(text.starts_with(start), "{text}");
    let limit = |value: i64| {
        with("/linux/resources/memory", json!({"limit": value}))
            .unwrap()
            .memory_bytes_max()
    };
    assert_eq!(
        limit(i64::try_from(MEMORY_BYTES_MIN).unwrap()),
        Some(MEMORY_BYTES_MIN)
    );
    assert_eq!(limit(32 << 20), Some(32 << 20));
    assert_eq!((limit(0), limit(-1)), (None, None));
}

#[test]
fn what_is_missing_is_named() {
    for (pointer, value, field) in [
        ("/process", json!(null), "process"),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!(null), "process.args"),
        ("/root", json!(null), "root.path"),
        ("/root", json!({"path": ""}), "root.path"),
    ] {
        let text = refusal(pointer, value);
        assert!(
            text.starts_with(&format!("config.json: {field} is missing: ")),
            "{text}"
        );
    }
}

#[test]
fn a_wrong_type_names_its_section() {
    for (pointer, value, field) in [
        ("/process/args", json!("hello"), "process"),
        ("/process/user/uid", json!(-1), "process"),
        ("/process", json!([]), "process"),
        ("/mounts/3/options", json!("ro"), "mounts[3]"),
        ("/mounts", json!({"a": 1}), "mounts"),
        (
            "/linux/namespaces/2/type",
            json!("galaxy"),
            "linux.namespaces[2]",
        ),
        (
            "/linux/resources/memory",
            json!({"limit": "much"}),
            "linux.resources",
        ),
        ("/hostname", json!(7), "hostname"),
    ] {
        let text = refusal(pointer, value);
        let start = format!("config.json: {field} is not as the OCI specification has it: ");
        assert!(text.starts_with(&start), "{text}");
    }
}

#[test]
fn garbage_is_not_a_spec() {
    for text in [
        "", "{", "garbage", "[1, 2", "\u{0}", "[]", "3", "{\"a\":", "null",
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        assert!(
            error.to_string().starts_with("/bundle/config.json: not "),
            "{error}"
        );
    }
    // An object that says nothing.
    assert!(
        parse("{}")
            .unwrap_err()
            .to_string()
            .starts_with("config.json: ociVersion")
    );
    let deep = "[".repeat(100_000);
    assert!(chain(&parse(&deep).unwrap_err()).contains("recursion limit"));
}

#[test]
fn the_file_itself_may_be_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path();
    let error = TaskSpec::load(bundle).unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound);
    assert!(
        chain(&error)
            .ends_with("config.json: cannot be read: No such file or directory (os error 2)")
    );

    fs::write(bundle.join("config.json"), CTR_RUN).unwrap();
    let error = TaskSpec::load(bundle).unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound);
    assert!(
        error.to_string().ends_with("rootfs: no such directory"),
        "{error}"
    );

    fs::write(bundle.join("rootfs"), "").unwrap();
    let error = TaskSpec::load(bundle).unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidArgument);

    fs::remove_file(bundle.join("rootfs")).unwrap();
    fs::create_dir(bundle.join("rootfs")).unwrap();
    assert_eq!(
        TaskSpec::load(bundle).unwrap().rootfs,
        bundle.join("rootfs")
    );

    fs::write(bundle.join("config.json"), " ".repeat((4 << 20) + 1)).unwrap();
    let error = TaskSpec::load(bundle).unwrap_err();
    assert!(
        error.to_string().ends_with("more than 4194304 bytes"),
        "{error}"
    );
}
