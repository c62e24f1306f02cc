//! `-info` and `-v`: answers that containerd or a human may ask for without a task.

use protobuf::well_known_types::any::Any;
use protobuf::{Message as _, MessageField};
use serde_json::{Value, json};
use wasmvm_protocol::agent::containerd::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::bundle;

/// The name under which containerd finds this program.
pub(super) const RUNTIME_NAME: &str = "io.containerd.wasmvm.v1";
/// Type URL that containerd gives to [`features`].
const FEATURES_TYPE_URL: &str =
    "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// `RuntimeInfo` as containerd 2.0 and later wants it. A failure to encode is no error: the answer is empty then,
/// and containerd continues without.
pub(super) fn runtime_info() -> Vec<u8> {
    RuntimeInfo {
        name: RUNTIME_NAME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }),
        features: MessageField::some(Any {
            type_url: FEATURES_TYPE_URL.to_owned(),
            value: features().to_string().into_bytes(),
            ..Default::default()
        }),
        ..Default::default()
    }
    .write_to_bytes()
    .unwrap_or_default()
}

/// The fields of a bundle that this runtime honours, as the OCI runtime specification's features.md has it. The
/// kubelet's containerd reads there that `rro` is offered, and that user namespaces are not.
fn features() -> Value {
    let (no, yes) = (json!({ "enabled": false }), json!({ "enabled": true }));
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": bundle::honoured_hooks(),
        "mountOptions": ["bind", "nodev", "nosuid", "rbind", "ro", "rro", "rw", "tmpcopyup"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false },
            "seccomp": no,
            "apparmor": yes,
            "selinux": yes,
            "intelRdt": no,
            "mountExtensions": { "idmap": no },
            "netDevices": no,
        },
    })
}

/// Name and version, in one line for a human.
pub(super) fn version() -> String {
    format!(
        "{} {} ({RUNTIME_NAME})\n",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_info() {
        let mut golden = b"\x0a\x17io.containerd.wasmvm.v1\x12\x07\x0a\x05".to_vec();
        golden.extend_from_slice(env!("CARGO_PKG_VERSION").as_bytes());
        assert!(runtime_info().starts_with(&golden));
    }

    #[test]
    fn features_are_told_as_the_specification_has_them() {
        let info = RuntimeInfo::parse_from_bytes(&runtime_info()).unwrap();
        let features: oci_spec::runtime::Features =
            serde_json::from_slice(&info.features.value).unwrap();
        let hooks = ["prestart", "createRuntime", "poststart", "poststop"];
        assert_eq!(features.hooks().as_deref().unwrap(), hooks);
        assert_eq!(info.features.type_url, FEATURES_TYPE_URL);
    }
}
