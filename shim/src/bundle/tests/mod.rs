//! Bundles as containerd writes them ([`confined`]: what they take from a program; [`refused`]: as nobody
//! should; [`any`]: as anybody could).

mod any;
mod confined;
mod refused;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::fields::{self, Unused};
use super::{
    AccessTimes, BundleError, CpuLimits, Hooks, Labels, Limit, MountSource, Network, ProcessSpec,
    Resources, TaskSpec, TmpfsOptions, User,
};

const BUNDLE: &str = "/bundle";

/// As written by `ctr run` of Debian 12's containerd 1.6.20.
const CTR_RUN: &str = include_str!("../golden/ctr-1.6-run.json");
/// `--net-host --memory-limit 67108864 --cpus 0.5 --read-only --mount … --env --cwd --seccomp --label`.
const CTR_RUN_OPTIONS: &str = include_str!("../golden/ctr-1.6-run-options.json");
/// `--seccomp --allow-new-privs --cgroup "" --device --cpu-quota --cpu-period`.
const CTR_RUN_DEVICE: &str = include_str!("../golden/ctr-1.6-run-device.json");
/// In the shape of a pod's container from containerd's CRI plugin (made by hand).
const CRI_CONTAINER: &str = include_str!("../golden/cri-container.json");

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

fn tmpfs(
    destination: &str,
    parameters: &[(&str, &str)],
    no_exec: bool,
    access_times: AccessTimes,
) -> super::TreeMount {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    super::TreeMount {
        destination: destination.into(),
        source: MountSource::Tmpfs(TmpfsOptions {
            parameters: parameters.iter().map(owned).collect(),
            no_exec,
            access_times,
            ..TmpfsOptions::default()
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
        oci_version: "1.0.2-dev".into(),
        process: ProcessSpec {
            args: vec!["/hello".to_owned()],
            env: vec![path.to_owned()],
            cwd: "/".into(),
            user: User {
                uid: 0,
                gid: 0,
                additional_gids: vec![0],
                umask: None,
            },
            capabilities: parse(CTR_RUN).unwrap().process.capabilities,
        },
        hostname: String::new(),
        resources: Resources {
            cpu: CpuLimits {
                shares: Some(1024),
                ..CpuLimits::default()
            },
            ..Resources::default()
        },
        cgroup_path: Some("/default/hello".to_owned()),
        oom_score_adj: None,
        network: Network::New,
        sysctls: Vec::new(),
        mounts: vec![
            tmpfs(
                "/dev/shm",
                &[("mode", "1777"), ("size", "65536k")],
                true,
                AccessTimes::Relative,
            ),
            tmpfs(
                "/run",
                &[("mode", "755"), ("size", "65536k")],
                false,
                AccessTimes::Always,
            ),
        ],
        masked_paths: parse(CTR_RUN).unwrap().masked_paths,
        readonly_paths: parse(CTR_RUN).unwrap().readonly_paths,
        labels: Labels::default(),
        guest_dev: true,
        guest_proc: true,
        preopen_cwd: false,
        rootfs: "/bundle/rootfs".into(),
        rootfs_readonly: false,
        hooks: Hooks::default(),
        annotations: BTreeMap::new(),
    };
    assert_eq!(parse(CTR_RUN).unwrap(), expected);
}

#[test]
fn paths_of_the_tree_are_cleaned() {
    let spec = with("/process/cwd", json!("/tmp/../tmp/./new/")).unwrap();
    assert_eq!(spec.process.cwd, Path::new("/tmp/new"));
    let mount = json!({"destination": "/mnt/../data", "type": "bind", "source": "/x", "options": ["rbind"]});
    let spec = with("/mounts", json!([mount])).unwrap();
    assert_eq!(spec.mounts[0].destination, Path::new("/data"));
}

#[test]
fn an_annotation_asks_for_the_working_directory_as_a_preopen() {
    for (value, expected) in [("true", true), ("false", false)] {
        let annotations = json!({"io.wasmvm.preopen-cwd": value});
        let spec = with("/annotations", annotations).unwrap();
        assert_eq!(spec.preopen_cwd, expected);
    }
}

#[test]
fn options_of_ctr_run_are_honoured() {
    let spec = parse(CTR_RUN_OPTIONS).unwrap();
    assert_eq!(spec.process.args, ["/hello", "a", "b"]);
    assert!(spec.process.env.contains(&"A=b".to_owned()));
    assert_eq!(spec.process.cwd, PathBuf::from("/x"));
    assert_eq!(spec.memory_bytes_max(), Some(64 << 20));
    assert_eq!(
        (spec.resources.cpu.quota_us, spec.resources.cpu.period_us),
        (Some(Limit::At(50_000)), Some(100_000))
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
        ("/linux/newSection", json!({"a": [1, 2]})),
        ("/process/scheduler", json!({"policy": "SCHED_NEW"})),
    ] {
        with(pointer, value).unwrap();
    }
}

#[test]
fn swap_counts_memory_too() {
    let memory = |limit: i64, swap: i64| {
        with(
            "/linux/resources/memory",
            json!({"limit": limit, "swap": swap}),
        )
    };
    let swap = |limit, swap| memory(limit, swap).unwrap().resources.memory_swap;
    assert_eq!(swap(64 << 20, 96 << 20), Some(Limit::At(96 << 20)));
    assert_eq!(swap(64 << 20, -1), Some(Limit::Unlimited));
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
fn the_option_makes_a_bind_whatever_the_type_says() {
    let mount = json!({"destination": "/a", "source": "data", "options": ["bind", "ro", "rw"]});
    let spec = with("/mounts/6", mount).unwrap();
    let source = MountSource::Bind {
        path: "/bundle/data".into(),
        recursive: false,
    };
    assert_eq!(
        (&spec.mounts[1].source, spec.mounts[1].read_only),
        (&source, false)
    );
    // A type of "bind" alone brings the mounts below, as runc has it.
    let spec = with("/mounts/6/type", json!("bind")).unwrap();
    assert_eq!(spec.mounts[1], bind("/run", "/bundle/tmpfs", false));
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
fn unused_fields_are_reported_with_their_path() {
    let mut document = json!({
        "process": {"rlimits": [{"type": "RLIMIT_NOFILE"}], "scheduler": {}, "args": ["x"]},
        "mounts": [{"destination": "/a", "novelty": 1}],
        "linux": {"resources": {"cpu": {"idle": 1, "shares": 2}}},
        "extension": {"a": 1},
    });
    let mut unused = fields::filter_fields(&mut document).unwrap();
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

#[test]
fn what_kubernetes_asks_for_is_understood() {
    let spec = parse(CRI_CONTAINER).unwrap();
    let user = User {
        uid: 1000,
        gid: 1000,
        additional_gids: vec![1000, 2000],
        umask: None,
    };
    assert_eq!(spec.process.user, user);
    assert_eq!(spec.oom_score_adj, Some(968));
    assert_eq!(spec.memory_bytes_max(), Some(128 << 20));
    assert_eq!(spec.resources.memory_swap, Some(Limit::At(128 << 20)));
    assert_eq!(spec.resources.files["memory.oom.group"], "1");
    assert_eq!(spec.network, Network::Path("/proc/1234/ns/net".into()));
    assert!(spec.rootfs_readonly && spec.guest_dev && spec.guest_proc);
    assert_eq!(
        spec.annotations["io.kubernetes.cri.container-type"],
        "container"
    );
    let destinations: Vec<_> = spec
        .mounts
        .iter()
        .map(|m| m.destination.to_str().unwrap())
        .collect();
    let expected = [
        "/etc/hosts",
        "/dev/termination-log",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/dev/shm",
        "/config",
        "/var/run/secrets/kubernetes.io/serviceaccount",
    ];
    assert_eq!(destinations, expected);
    let read_only: Vec<_> = spec.mounts.iter().map(|m| m.read_only).collect();
    assert_eq!(read_only, [false, false, false, false, false, true, true]);
}

#[test]
fn the_hosts_queues_stay_outside() {
    let bind = serde_json::json!([
        {"destination": "/dev/mqueue", "type": "bind", "source": "/dev/mqueue", "options": ["rbind"]},
    ]);
    assert_eq!(with("/mounts", bind).unwrap().mounts, []);
}

#[test]
fn the_table_knows_every_field_of_the_specification() {
    // oci-spec's own defaults, with whatever they hold.
    let mut document = serde_json::to_value(oci_spec::runtime::Spec::default()).unwrap();
    let unused = fields::filter_fields(&mut document).unwrap();
    let unknown: Vec<_> = unused.iter().filter(|field| !field.known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    for golden in [CTR_RUN, CTR_RUN_OPTIONS, CTR_RUN_DEVICE, CRI_CONTAINER] {
        let unused = fields::filter_fields(&mut serde_json::from_str(golden).unwrap()).unwrap();
        assert!(unused.iter().all(|field| field.known), "{unused:?}");
    }
}

#[test]
fn the_table_says_one_thing_of_each_field() {
    for (i, (name, _)) in fields::FIELDS.iter().enumerate() {
        for (other, _) in &fields::FIELDS[i + 1..] {
            assert_ne!(name, other);
            assert!(
                !other.starts_with(&format!("{name}.")),
                "{other} lies below {name}"
            );
            assert!(
                !name.starts_with(&format!("{other}.")),
                "{name} lies below {other}"
            );
        }
    }
}
