//! Bundles as containerd writes them, and as nobody should.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::fields::{self, Unused};
use super::{
    BundleError, CpuLimits, MEMORY_BYTES_MIN, MountSource, Network, TaskSpec, TmpfsOptions, User,
};
use crate::error::{ErrorCode, chain};

const BUNDLE: &str = "/bundle";

/// As written by `ctr run` of Debian 12's containerd 1.6.20.
const CTR_RUN: &str = include_str!("golden/ctr-1.6-run.json");
/// `--net-host --memory-limit 67108864 --cpus 0.5 --read-only --mount … --env --cwd --seccomp --label`.
const CTR_RUN_OPTIONS: &str = include_str!("golden/ctr-1.6-run-options.json");
/// `--seccomp --allow-new-privs --cgroup "" --rdt-class --device --cpu-quota --cpu-period`.
const CTR_RUN_DEVICE: &str = include_str!("golden/ctr-1.6-run-device.json");
/// `-t`.
const CTR_RUN_TERMINAL: &str = include_str!("golden/ctr-1.6-run-terminal.json");
/// `--uidmap --gidmap`.
const CTR_RUN_UIDMAP: &str = include_str!("golden/ctr-1.6-run-uidmap.json");

fn parse(text: &str) -> Result<TaskSpec, BundleError> {
    TaskSpec::parse(
        text.as_bytes(),
        Path::new("/bundle/config.json"),
        Path::new(BUNDLE),
    )
}

/// The golden spec with one place changed.
fn with(pointer: &str, value: Value) -> Result<TaskSpec, BundleError> {
    let mut document: Value = serde_json::from_str(CTR_RUN).unwrap();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = document
        .pointer_mut(parent)
        .unwrap_or_else(|| panic!("no {parent}"));
    match parent {
        Value::Array(list) => list[name.parse::<usize>().unwrap()] = value,
        other => other[name] = value,
    }
    parse(&document.to_string())
}

fn refusal(pointer: &str, value: Value) -> String {
    let error = with(pointer, value).expect_err("it should have been refused");
    assert_eq!(error.code(), ErrorCode::InvalidArgument);
    chain(&error)
}

fn tmpfs(destination: &str, parameters: &[(&str, &str)], no_exec: bool) -> super::TreeMount {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    super::TreeMount {
        destination: destination.into(),
        source: MountSource::Tmpfs(TmpfsOptions {
            parameters: parameters.iter().map(owned).collect(),
            no_exec,
        }),
        read_only: false,
    }
}

fn bind(destination: &str, path: &str, read_only: bool) -> super::TreeMount {
    super::TreeMount {
        destination: destination.into(),
        source: MountSource::Bind {
            path: path.into(),
            recursive: true,
        },
        read_only,
    }
}

#[test]
fn what_ctr_run_writes_is_understood() {
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let expected = TaskSpec {
        args: vec!["/hello".to_owned()],
        env: vec![path.to_owned()],
        cwd: "/".into(),
        user: User {
            uid: 0,
            gid: 0,
            additional_gids: vec![0],
        },
        hostname: String::new(),
        memory_bytes_max: None,
        memory_swap_bytes_max: None,
        cpu: CpuLimits {
            shares: Some(1024),
            ..CpuLimits::default()
        },
        pids_max: None,
        cgroup_files: BTreeMap::new(),
        cgroup_path: Some("/default/hello".to_owned()),
        oom_score_adj: None,
        network: Network::New,
        mounts: vec![
            tmpfs("/dev/shm", &[("mode", "1777"), ("size", "65536k")], true),
            tmpfs("/run", &[("mode", "755"), ("size", "65536k")], false),
        ],
        guest_dev: true,
        rootfs: "/bundle/rootfs".into(),
        rootfs_readonly: false,
        annotations: BTreeMap::new(),
    };
    assert_eq!(parse(CTR_RUN).unwrap(), expected);
}

#[test]
fn options_of_ctr_run_are_honoured() {
    let spec = parse(CTR_RUN_OPTIONS).unwrap();
    assert_eq!(spec.args, ["/hello", "a", "b"]);
    assert!(spec.env.contains(&"A=b".to_owned()));
    assert_eq!(spec.cwd, PathBuf::from("/x"));
    assert_eq!(spec.memory_bytes_max, Some(64 << 20));
    assert_eq!(
        (spec.cpu.quota_us, spec.cpu.period_us),
        (Some(50_000), Some(100_000))
    );
    assert_eq!(spec.network, Network::Host);
    assert!(spec.rootfs_readonly);
    assert_eq!(spec.annotations["k"], "v");
    assert_eq!(
        spec.mounts[2..],
        [
            bind("/mnt/x", "/tmp", true),
            bind("/etc/hosts", "/etc/hosts", true),
            bind("/etc/resolv.conf", "/etc/resolv.conf", true),
        ]
    );
}

#[test]
fn what_means_nothing_to_wasm_is_accepted() {
    let spec = parse(CTR_RUN_DEVICE).unwrap();
    assert_eq!(spec.cgroup_path, None);
    // Names that no version of any library knows yet.
    for (pointer, value) in [
        (
            "/process/capabilities",
            json!({"bounding": ["CAP_OF_THE_FUTURE"]}),
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NEW", "hard": -1, "soft": "x"}]),
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NEW", "architectures": ["SCMP_X"]}),
        ),
        ("/linux/resources/blockIO", json!({"weight": "heavy"})),
        ("/linux/newSection", json!({"a": [1, 2]})),
        ("/process/scheduler", json!({"policy": "SCHED_NEW"})),
    ] {
        with(pointer, value).unwrap();
    }
}

#[test]
fn a_terminal_is_refused_with_what_to_do() {
    let error = parse(CTR_RUN_TERMINAL).unwrap_err();
    assert_eq!(
        error.to_string(),
        "config.json: process.terminal = true is refused: \
         terminals are not supported yet; run without -t"
    );
    assert_eq!(error.code(), ErrorCode::InvalidArgument);
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
            json!({"createRuntime": hook}),
            "hooks.createRuntime = [{\"path\":\"/bin/true\"}]",
        ),
        (
            "/hooks",
            json!({"startContainer": hook}),
            "hooks.startContainer = ",
        ),
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
            "/mounts/6/destination",
            json!("/a/../b"),
            "mounts[6].destination = \"/a/../b\"",
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
        ("/mounts/6/type", json!("bind"), "mounts[6]"),
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
        if start == "mounts[6]" {
            // A tmpfs' options on a bind mount mean nothing; its source is a relative path.
            assert_eq!(
                with(pointer, value).unwrap().mounts[1],
                bind("/run", "/bundle/tmpfs", false)
            );
            continue;
        }
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
            .memory_bytes_max
    };
    assert_eq!(
        limit(i64::try_from(MEMORY_BYTES_MIN).unwrap()),
        Some(MEMORY_BYTES_MIN)
    );
    assert_eq!(limit(32 << 20), Some(32 << 20));
    assert_eq!((limit(0), limit(-1)), (None, None));
}

#[test]
fn swap_counts_memory_too() {
    let memory = |limit: i64, swap: i64| {
        with(
            "/linux/resources/memory",
            json!({"limit": limit, "swap": swap}),
        )
    };
    assert_eq!(
        memory(64 << 20, 96 << 20).unwrap().memory_swap_bytes_max,
        Some(96 << 20)
    );
    assert_eq!(memory(64 << 20, -1).unwrap().memory_swap_bytes_max, None);
    assert!(
        memory(64 << 20, 32 << 20)
            .unwrap_err()
            .to_string()
            .contains("at least 67108864")
    );
    assert!(
        memory(-1, 32 << 20)
            .unwrap_err()
            .to_string()
            .contains("but memory is not")
    );
}

#[test]
fn namespaces_decide_the_network() {
    let network = |namespaces| with("/linux/namespaces", namespaces).unwrap().network;
    assert_eq!(network(json!([{"type": "pid"}])), Network::Host);
    assert_eq!(
        network(json!([{"type": "network", "path": ""}])),
        Network::New
    );
    let path = "/var/run/netns/cni-1";
    assert_eq!(
        network(json!([{"type": "network", "path": path}])),
        Network::Path(path.into())
    );
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

#[test]
fn unused_fields_are_reported_with_their_path() {
    let mut document = json!({
        "process": {"rlimits": [{"type": "RLIMIT_NOFILE"}], "capabilities": {}, "args": ["x"]},
        "mounts": [{"destination": "/a", "novelty": 1}],
        "linux": {"resources": {"cpu": {"idle": 1, "shares": 2}}},
        "extension": {"a": 1},
    });
    let mut unused = fields::sift(&mut document).unwrap();
    unused.sort_by(|a, b| a.path.cmp(&b.path));
    let unused_field = |path: &str, known| Unused {
        path: path.to_owned(),
        known,
    };
    let expected = [
        unused_field("extension", false),
        unused_field("linux.resources.cpu.idle", true),
        unused_field("mounts[0].novelty", false),
        unused_field("process.rlimits", true),
    ];
    assert_eq!(unused, expected);
    let left = json!({
        "process": {"args": ["x"]},
        "mounts": [{"destination": "/a"}],
        "linux": {"resources": {"cpu": {"shares": 2}}},
    });
    assert_eq!(document, left);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z]{1,8}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Every place of the golden spec, as a JSON pointer.
fn places() -> Vec<String> {
    fn walk(value: &Value, path: &str, places: &mut Vec<String>) {
        let children: Vec<(String, &Value)> = match value {
            Value::Object(members) => members.iter().map(|(k, v)| (k.clone(), v)).collect(),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .map(|(i, v)| (i.to_string(), v))
                .collect(),
            _ => Vec::new(),
        };
        for (name, child) in children {
            let path = format!("{path}/{name}");
            walk(child, &path, places);
            places.push(path);
        }
    }
    let mut places = Vec::new();
    walk(
        &serde_json::from_str(CTR_RUN_OPTIONS).unwrap(),
        "",
        &mut places,
    );
    places
}

proptest! {
    #[test]
    fn any_change_of_a_spec_is_taken_or_refused_with_its_field(
        place in prop::sample::select(places()),
        value in any_json(),
    ) {
        let mut document: Value = serde_json::from_str(CTR_RUN_OPTIONS).unwrap();
        *document.pointer_mut(&place).unwrap() = value;
        match parse(&document.to_string()) {
            Ok(spec) => {
                prop_assert!(!spec.args[0].is_empty());
                prop_assert!(spec.cwd.is_absolute() && spec.rootfs.is_absolute());
                prop_assert!(spec.memory_bytes_max.is_none_or(|limit| limit >= MEMORY_BYTES_MIN));
                for mount in &spec.mounts {
                    prop_assert!(mount.destination.is_absolute());
                    prop_assert!(!mount.destination.to_string_lossy().contains(".."));
                }
            }
            Err(error) => {
                let top = place.split('/').nth(1).unwrap();
                let text = error.to_string();
                prop_assert!(text.starts_with(&format!("config.json: {top}")), "{}: {}", place, text);
            }
        }
    }

    #[test]
    fn any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let path = Path::new("/bundle/config.json");
        prop_assert!(TaskSpec::parse(&bytes, path, Path::new(BUNDLE)).is_err());
    }
}
