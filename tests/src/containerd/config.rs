//! What a test's own containerd is told.

use std::fs;
use std::path::Path;

use serde_json::json;

/// The plugin for pods' addresses keeps a folder for each network in it.
pub(super) const LEASES: &str = "leases";
/// The bridge of pods' networks.
pub const BRIDGE: &str = "wasmvm-cni0";
/// Where Debian puts the network plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// Run by runc for a pod's namespaces, never by wasmvm: an image that is there is not fetched.
const SANDBOX_IMAGE: &str = "docker.io/library/pause:latest";
/// Plugins that need tools or devices, or ask the host for what no test is about.
const DISABLED: [&str; 9] = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.opt",
    "io.containerd.nri.v1.nri",
];
/// CRI, by the names that it has from 1.6 to 2.
const CRI: [&str; 3] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
];

/// As most tests have it, who reach it by `ctr`.
pub(super) fn without_cri(folder: &Path) {
    let disabled: Vec<_> = CRI.into_iter().chain(DISABLED).collect();
    write(folder, &common(folder, &disabled));
}

/// As a node of a cluster has it.
pub(super) fn with_cri(folder: &Path) {
    let text = common(folder, &DISABLED) + &cri(folder);
    write(folder, &text);
    let networks = folder.join("net.d");
    fs::create_dir(&networks).expect("a folder");
    fs::write(networks.join("10-pods.conflist"), network(folder)).expect("written");
}

fn write(folder: &Path, text: &str) {
    fs::write(folder.join("config.toml"), text).expect("written");
}

fn common(folder: &Path, disabled: &[&str]) -> String {
    let folder = folder.display();
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = {disabled:?}
[grpc]
address = "{folder}/sock"
"#
    )
}

/// Namespaces of networks are below the state, so that two containerds do not meet.
fn cri(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{SANDBOX_IMAGE}"
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGINS}"
conf_dir = "{folder}/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.wasmvm]
runtime_type = "io.containerd.wasmvm.v1"
privileged_without_host_devices = true
"#
    )
}

/// A bridge, whose address on the host is the pods' gateway; nothing leaves the host.
fn network(folder: &Path) -> String {
    let addresses = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": "10.244.77.0/24" }]],
        "dataDir": folder.join(LEASES),
    });
    let bridge = json!({
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": true,
        "ipMasq": false,
        "ipam": addresses,
    });
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [bridge] }).to_string()
}
