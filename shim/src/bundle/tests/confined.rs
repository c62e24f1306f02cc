//! What confines a program is honoured, replaced or refused by name; what containerd's clients write when
//! nobody asks for anything starts.

use std::path::Path;

use serde_json::{Value, json};

use super::super::fields::{self, Fate};
use super::super::{AccessTimes, MountSource, Network, Sysctl};
use super::{CRI_CONTAINER, CTR_RUN, CTR_RUN_DEVICE, CTR_RUN_OPTIONS, parse, with};
use crate::error::{Coded as _, ErrorCode, chain};

/// What ctr, nerdctl and CRI write by default, in the shape of the versions named (made by hand, from the
/// sources of containerd 1.7 and 2.x and of nerdctl 2.x).
pub(super) const DEFAULTS: [(&str, &str); 6] = [
    ("ctr 1.7", include_str!("../golden/ctr-1.7-run.json")),
    ("ctr 2", include_str!("../golden/ctr-2-run.json")),
    ("nerdctl 2", include_str!("../golden/nerdctl-2-run.json")),
    ("CRI 1.7", include_str!("../golden/cri-1.7-container.json")),
    ("CRI 2", include_str!("../golden/cri-2-container.json")),
    (
        "CRI 2, restricted",
        include_str!("../golden/cri-2-restricted.json"),
    ),
];

#[test]
fn what_is_written_by_default_starts() {
    for (who, text) in DEFAULTS {
        parse(text).unwrap_or_else(|error| panic!("{who}: {}", chain(&error)));
        let unused = fields::filter_fields(&mut serde_json::from_str(text).unwrap()).unwrap();
        let unknown: Vec<_> = unused.iter().filter(|field| !field.known).collect();
        assert!(unknown.is_empty(), "{who}: {unknown:?}");
    }
}

/// Whatever a client writes by default is never among what has no effect and no reason.
#[test]
fn nothing_that_is_written_by_default_is_lost() {
    let goldens = [CTR_RUN, CTR_RUN_OPTIONS, CTR_RUN_DEVICE, CRI_CONTAINER];
    let defaults = DEFAULTS.map(|(_, text)| text);
    for text in goldens.into_iter().chain(defaults) {
        let unused = fields::filter_fields(&mut serde_json::from_str(text).unwrap()).unwrap();
        let lost: Vec<_> = unused
            .iter()
            .filter(|field| {
                let mut fates = fields::FIELDS.iter();
                fates.any(|(name, fate)| *name == field.path && *fate == Fate::Ignored)
            })
            .map(|field| field.path.as_str())
            .collect();
        let harmless: Vec<_> = lost
            .iter()
            .filter(|path| !matches!(**path, "process.terminal" | "process.consoleSize"))
            .collect();
        assert!(harmless.is_empty(), "{harmless:?}");
    }
}

fn refusal(pointer: &str, value: Value) -> String {
    let error = with(pointer, value).expect_err("it should have been refused");
    assert_eq!(error.code(), ErrorCode::InvalidArgument);
    chain(&error)
}

#[test]
fn namespaces_of_others_are_refused_but_for_those_that_nothing_reaches() {
    for kind in ["pid", "mount", "time"] {
        let text = refusal(
            "/linux/namespaces/0",
            json!({"type": kind, "path": "/proc/7/ns/x"}),
        );
        let start = "config.json: linux.namespaces[0].path = \"/proc/7/ns/x\" is refused: ";
        assert!(text.starts_with(start), "{text}");
    }
    for kind in ["ipc", "uts", "cgroup"] {
        with(
            "/linux/namespaces/0",
            json!({"type": kind, "path": "/proc/7/ns/x"}),
        )
        .unwrap();
    }
    let shared = refusal(
        "/linux/namespaces/0",
        json!({"type": "pid", "path": "/proc/7/ns/pid"}),
    );
    assert!(shared.contains("shareProcessNamespace"), "{shared}");
}

#[test]
fn mounts_that_propagate_are_refused() {
    for option in ["shared", "rshared", "slave", "rslave"] {
        let text = refusal("/mounts/6/options", json!(["rbind", option]));
        let start =
            format!("config.json: mounts[6].options = \"{option}\" is refused: a mount made later");
        assert!(text.starts_with(&start), "{text}");
        let text = refusal("/linux/rootfsPropagation", json!(option));
        let start = format!("config.json: linux.rootfsPropagation = \"{option}\" is refused: ");
        assert!(text.starts_with(&start), "{text}");
    }
    assert!(refusal("/linux/rootfsPropagation", json!("x")).contains("no such propagation"));
    for option in ["private", "rprivate", "unbindable", "runbindable"] {
        with("/mounts/6/options", json!([option])).unwrap();
        with("/linux/rootfsPropagation", json!(option)).unwrap();
    }
    for option in ["nosymfollow", "idmap", "ridmap"] {
        refusal("/mounts/6/options", json!(["rbind", option]));
    }
}

#[test]
fn settings_of_the_tasks_own_network_are_taken_and_all_others_refused() {
    let spec = parse(DEFAULTS[2].1).unwrap();
    let port = Sysctl {
        name: "net.ipv4.ip_unprivileged_port_start".to_owned(),
        path: Path::new("net/ipv4/ip_unprivileged_port_start").to_owned(),
        value: "0".to_owned(),
    };
    assert_eq!((spec.network, spec.sysctls), (Network::New, vec![port]));
    for name in [
        "kernel.shm_rmid_forced",
        "fs.mqueue.msg_max",
        "kernel.core_pattern",
        "vm.swappiness",
        "net",
        "net/../kernel/core_pattern",
    ] {
        let text = refusal("/linux/sysctl", json!({name: "1"}));
        let start = format!("config.json: linux.sysctl[{name:?}] = \"1\" is refused: ");
        assert!(text.starts_with(&start), "{text}");
    }
    let mut host: Value = serde_json::from_str(CTR_RUN).unwrap();
    host["linux"]["namespaces"] = json!([{"type": "pid"}]);
    host["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    let text = chain(&parse(&host.to_string()).unwrap_err());
    assert!(
        text.contains("the network namespace is the host's own"),
        "{text}"
    );
}

#[test]
fn limits_that_nobody_holds_are_refused() {
    let text = refusal("/linux/resources/blockIO", json!({"weight": 10}));
    assert!(
        text.contains("linux.resources.unified[\"io.max\"]"),
        "{text}"
    );
    let text = refusal("/linux/intelRdt", json!({"closID": "a"}));
    assert!(text.contains("RDT"), "{text}");
}

#[test]
fn options_of_a_tmpfs_are_taken_or_refused() {
    let options = |options: Value| with("/mounts/6/options", options);
    let mounts = options(json!([
        "tmpcopyup",
        "noatime",
        "nodiratime",
        "noswap",
        "noexec"
    ]))
    .unwrap();
    let MountSource::Tmpfs(tmpfs) = &mounts.mounts[1].source else {
        panic!("{:?}", mounts.mounts[1]);
    };
    assert!(tmpfs.copy_up && tmpfs.no_exec && tmpfs.no_directory_times);
    assert_eq!(tmpfs.access_times, AccessTimes::Never);
    assert_eq!(tmpfs.parameters, [("noswap".to_owned(), String::new())]);
    for option in ["secret", "size=", "tmpcopydown"] {
        let text = refusal("/mounts/6/options", json!([option]));
        assert!(text.ends_with("tmpfs has no such option"), "{text}");
    }
}

#[test]
fn a_umask_is_taken_and_bounded() {
    let umask = |value| with("/process/user/umask", value);
    assert_eq!(umask(json!(0o077)).unwrap().process.user.umask, Some(0o077));
    assert_eq!(parse(CTR_RUN).unwrap().process.user.umask, None);
    let text = refusal("/process/user/umask", json!(0o1000));
    assert!(
        text.starts_with("config.json: process.user.umask = 512 is refused: "),
        "{text}"
    );
}

#[test]
fn capabilities_are_those_of_the_spec() {
    let of = |text| parse(text).unwrap().process.capabilities.unwrap();
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW,
    // SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
    assert_eq!(of(CTR_RUN).of_user(0), 0xa80425fb);
    assert_eq!(of(CTR_RUN).of_user(1000), 0);
    let restricted = of(DEFAULTS[5].1);
    assert_eq!((restricted.of_user(0), restricted.of_user(65534)), (0, 0));
    let spec = with("/process/capabilities", json!(null)).unwrap();
    assert_eq!(spec.process.capabilities.unwrap().of_user(0), 0);
}

#[test]
fn paths_to_mask_and_to_protect_are_taken() {
    let spec = parse(CTR_RUN).unwrap();
    assert!(spec.masked_paths.contains(&"/proc/kcore".into()));
    assert!(spec.readonly_paths.contains(&"/proc/sys".into()));
    for field in ["maskedPaths", "readonlyPaths"] {
        for path in ["proc", "/", "/..", "/a\0b"] {
            let text = refusal(&format!("/linux/{field}"), json!([path]));
            assert!(
                text.starts_with(&format!("config.json: linux.{field}[0] = ")),
                "{text}"
            );
        }
    }
}

#[test]
fn labels_are_taken() {
    let label = "system_u:system_r:container_t:s0:c1,c2";
    let spec = with("/process/selinuxLabel", json!(label)).unwrap();
    let of_vm = "system_u:system_r:container_kvm_t:s0:c1,c2";
    assert_eq!(spec.labels.selinux_process.as_deref(), Some(of_vm));
    let spec = with("/linux/mountLabel", json!(label)).unwrap();
    assert_eq!(spec.labels.selinux_mount.as_deref(), Some(label));
    let spec = parse(CRI_CONTAINER).unwrap();
    assert_eq!(
        spec.labels.apparmor_profile.as_deref(),
        Some("cri-containerd.apparmor.d")
    );
    assert_eq!(spec.labels.selinux_process, None);
    let unconfined = with("/process/apparmorProfile", json!("unconfined")).unwrap();
    assert_eq!(unconfined.labels.apparmor_profile, None);
    refusal("/process/apparmorProfile", json!("a\nexec b"));
    refusal("/process/selinuxLabel", json!("container_t"));
    refusal("/linux/mountLabel", json!("a\",b"));
}

#[test]
fn the_page_says_of_each_field_what_the_table_says() {
    let page = include_str!("../../../../docs/fields.md");
    let rows: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    assert_eq!(rows.len(), fields::FIELDS.len());
    for (row, (name, fate)) in rows.iter().zip(fields::FIELDS) {
        let (word, reason) = match fate {
            Fate::Honoured => ("honoured", ""),
            Fate::Ignored => ("no effect", ""),
            Fate::Replaced(reason) => ("replaced", *reason),
            Fate::Refused(reason) => ("refused", *reason),
        };
        assert!(
            row.starts_with(&format!("| `{name}` | {word} | ")),
            "{name}: {row}"
        );
        assert!(row.contains(reason), "{name}: {row}");
    }
}
