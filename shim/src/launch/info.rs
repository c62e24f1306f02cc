//! `-info` and `-v`: what containerd or a human may ask without a task.

use protobuf::{Message as _, MessageField};
use wasmvm_protocol::agent::containerd::types::introspection::{RuntimeInfo, RuntimeVersion};

/// The name under which containerd finds this program.
pub const RUNTIME_NAME: &str = "io.containerd.wasmvm.v1";

/// `RuntimeInfo` as containerd 2.2 and later wants it. A failure is not worth one: then it is empty,
/// and containerd goes on without.
pub fn runtime_info() -> Vec<u8> {
    RuntimeInfo {
        name: RUNTIME_NAME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
    .write_to_bytes()
    .unwrap_or_default()
}

/// One line for a human.
pub fn version() -> String {
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
        assert_eq!(runtime_info(), golden);
    }
}
