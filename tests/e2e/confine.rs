//! What a spec takes from a program, as program, host and network namespace see it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use serde_json::json;
use wasmvm_tests::leftovers;
use wasmvm_tests::task::Run;

/// Writes what the file server and the VMM may do, and a setting of their network namespace, into a file of the host.
fn look(file: &str) -> serde_json::Value {
    let script = format!(
        "state=$(cat); pid=${{state#*\\\"pid\\\":}}; pid=${{pid%%[!0-9]*}}; \
         files=$(grep -l \"^PPid:[[:space:]]$pid$\" /proc/[0-9]*/status); \
         {{ grep -E '^(Uid|Groups|CapPrm|CapBnd):' $files; \
         grep -E '^(Uid|CapBnd):' /proc/$pid/status; \
         nsenter -t $pid -n cat /proc/sys/net/ipv4/ip_unprivileged_port_start; }} >{file}"
    );
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] })
}

/// A restricted container that shares a volume: `drop: [ALL]` of a user other than root, in a group of the
/// volume's.
#[test]
fn a_program_that_dropped_all_has_its_own_files_and_nothing_else() {
    let before = leftovers::found();
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("volume")).expect("a folder");
    for (name, owner, group, mode) in [
        ("volume/own", 1000, 1000, 0o600),
        ("volume/groups", 0, 2000, 0o640),
        ("volume/others", 0, 0, 0o600),
        ("volume/masked", 1000, 1000, 0o600),
        ("volume", 1000, 2000, 0o770),
    ] {
        if name != "volume" {
            fs::write(at(name), format!("{name}\n")).expect("written");
        }
        chown(at(name), Some(owner), Some(group)).expect("root");
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).expect("root");
    }
    let host = at("processes");
    let script = "cat /data/own; cat /data/groups; cat /data/others; cat /data/masked /proc/version; \
                  echo new > /data/new; echo x > /etc/new; grep Cap /proc/self/status";
    let outcome = Run::image("busybox").with_spec(|spec| {
        let process = &mut spec["process"];
        process["args"] = json!(["sh", "-c", script]);
        process["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [2000], "umask": 0o027});
        process["capabilities"] = json!({});
        let volume = at("volume");
        let mount = json!({"destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "rprivate"]});
        spec["mounts"].as_array_mut().expect("a list").push(mount);
        spec["linux"]["maskedPaths"] = json!(["/data/masked", "/proc/version", "/proc/no-such-file"]);
        spec["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "81"});
        spec["hooks"] = json!({"createRuntime": [look(&host.to_string_lossy())]});
    });
    let text = outcome.text();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("volume/own"), "{outcome}");
    assert_eq!(lines.next(), Some("volume/groups"), "{outcome}");
    assert!(
        lines.all(|line| line.starts_with("Cap") && line.ends_with("0000000000000000")),
        "{outcome}"
    );
    assert!(outcome.error().contains("others"), "{outcome}");
    let new = fs::metadata(at("volume/new"))
        .expect("made")
        .permissions()
        .mode();
    assert_eq!(new & 0o777, 0o640);
    let none = "0000000000000000";
    let files =
        format!("Uid:\t1000\t1000\t1000\t1000\nGroups:\t2000 \nCapPrm:\t{none}\nCapBnd:\t{none}\n");
    let nobody = "2002875245";
    let vmm = format!("Uid:\t{nobody}\t{nobody}\t{nobody}\t{nobody}\nCapBnd:\t{none}\n");
    let seen = format!("{files}{vmm}81\n");
    assert_eq!(fs::read_to_string(&host).expect("the hook has run"), seen);
    leftovers::expect_none_since(&before);
}

/// The same for root, and an image's directory under a tmpfs.
#[test]
fn root_that_dropped_all_is_an_owner_like_others_and_changes_a_copy() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "x").expect("written");
    chown(&file, Some(1000), Some(1000)).expect("root");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("root");
    let script = "cat /data/file; grep root /etc/passwd | wc -l; echo changed > /etc/passwd; cat /etc/passwd";
    let outcome = Run::image("busybox").with_spec(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["process"]["capabilities"] = json!({"bounding": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]});
        spec["root"]["readonly"] = json!(true);
        let mounts = spec["mounts"].as_array_mut().expect("a list");
        mounts.push(json!({"destination": "/data", "type": "bind", "source": folder.path(), "options": ["bind"]}));
        mounts.push(json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}));
    });
    assert_eq!(outcome.text(), "1\nchanged\n", "{outcome}");
    assert!(outcome.error().contains("/data/file"), "{outcome}");
}
