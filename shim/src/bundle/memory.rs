//! From a memory limit to the guest's RAM and to WebAssembly's own limit.
//!
//! The cgroup's `memory.max` is the OCI limit, exactly. It covers the VMM, the guest's kernel and
//! agent, and the module. Guest RAM is address space, touched on demand, so its size is a class, and
//! `memory.grow` fails before the cgroup's limit OOM-kills.

const MIB: u64 = 1 << 20;

/// Smallest memory limit that is accepted, bytes: what a guest with a small program needs.
pub(super) const MEMORY_BYTES_MIN: u64 = 24 * MIB;
/// Smallest guest RAM, MiB.
const RAM_MIB_MIN: u64 = 256;
/// Largest guest RAM, MiB: below the artifact slot (`wasmvm_protocol::slot::SLOT_ADDRESS`).
pub(crate) const RAM_MIB_MAX: u32 = 16 * 1024;
/// Memory of VMM, guest kernel and agent besides the module, bytes, in the smallest guest.
const OVERHEAD_BYTES: u64 = 16 * MIB;
/// The guest kernel keeps 64 bytes for each page of 4096 of its RAM.
const RAM_BYTES_PER_MAP_BYTE: u64 = 4096 / 64;

/// Guest RAM, MiB: a power of two, at least 256 and twice the limit; `default_mib` rounded up
/// without a limit. At most 16 GiB.
#[must_use]
pub(crate) fn ram_mib(limit_bytes: Option<u64>, default_mib: u32) -> u32 {
    let wanted = limit_bytes.map_or(u64::from(default_mib), |limit| {
        limit.div_ceil(MIB).saturating_mul(2)
    });
    let class = wanted
        .clamp(RAM_MIB_MIN, u64::from(RAM_MIB_MAX))
        .next_power_of_two()
        .min(u64::from(RAM_MIB_MAX));
    u32::try_from(class).unwrap_or(u32::MAX)
}

/// The most that an instance's linear memories and tables may take together, bytes: the limit (or the
/// guest's RAM without one) less the overhead. Never zero, which would mean "no bound".
#[must_use]
pub(crate) fn wasm_memory_bytes_max(limit_bytes: Option<u64>, ram_mib: u32) -> u64 {
    let ram_bytes = u64::from(ram_mib) * MIB;
    let room = limit_bytes.map_or(ram_bytes, |limit| limit.min(ram_bytes));
    let overhead = OVERHEAD_BYTES + ram_bytes / RAM_BYTES_PER_MAP_BYTE;
    room.saturating_sub(overhead).max(64 * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_a_class() {
        assert_eq!(ram_mib(None, 1024), 1024);
        assert_eq!(ram_mib(None, 1000), 1024);
        assert_eq!(ram_mib(None, 1), 256);
        assert_eq!(ram_mib(Some(32 * MIB), 1024), 256);
        assert_eq!(ram_mib(Some(128 * MIB), 1024), 256);
        assert_eq!(ram_mib(Some(128 * MIB + 1), 1024), 512);
        assert_eq!(ram_mib(Some(1 << 40), 1024), 16 * 1024);
        assert_eq!(ram_mib(Some(u64::MAX), 1024), 16 * 1024);
    }

    #[test]
    fn wasm_gets_what_the_guest_leaves() {
        let ram = ram_mib(Some(64 * MIB), 1024);
        let wasm = wasm_memory_bytes_max(Some(64 * MIB), ram);
        assert!((32 * MIB..64 * MIB).contains(&wasm), "{wasm}");
        assert!(wasm_memory_bytes_max(Some(MEMORY_BYTES_MIN), 256) >= 2 * MIB);
        assert!(wasm_memory_bytes_max(None, 1024) < 1024 * MIB);
        assert!(wasm_memory_bytes_max(Some(u64::MAX), 256) < 256 * MIB);
        assert_eq!(wasm_memory_bytes_max(Some(0), 256), 64 * 1024);
    }

    proptest::proptest! {
        /// A class that a VMM has, and a bound that is one.
        #[test]
        fn every_limit_has_its_class_and_its_bound(limit: Option<u64>, default: u32, small in 0_u64..1 << 35) {
            for limit in [limit, limit.map(|_| small)] {
                let ram = ram_mib(limit, default);
                proptest::prop_assert!(ram.is_power_of_two() && u64::from(ram) >= RAM_MIB_MIN && ram <= RAM_MIB_MAX);
                let wasm = wasm_memory_bytes_max(limit, ram);
                proptest::prop_assert!(wasm > 0 && wasm < u64::from(ram) * MIB);
                if let Some(limit) = limit.filter(|limit| *limit >= MEMORY_BYTES_MIN) {
                    proptest::prop_assert!(wasm < limit);
                    proptest::prop_assert!(ram == RAM_MIB_MAX || u64::from(ram) * MIB >= limit);
                }
            }
        }
    }
}
