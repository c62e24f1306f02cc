//! All targets, with their bounds: the table of `docs/fuzzing.md` in code.

use containerd_shim_wasmvm_v1::fuzz as shim;
use wasmvm_vmm::fuzz as vmm;

use crate::protocol;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// One function to be called with any bytes.
pub(crate) struct Target {
    /// Its name, and that of its folder in `corpus`.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
    /// Before the first call, with the process' only thread.
    pub prepare: Option<fn() -> Result<(), String>>,
    /// The most that one input may have on the heap, bytes; what the target itself needs included.
    pub heap_bytes_max: usize,
    /// The most CPU that one input may take in a released program, milliseconds.
    pub cpu_ms_max: u32,
}

const fn target(name: &'static str, run: fn(&[u8]), heap_bytes_max: usize) -> Target {
    Target {
        name,
        run,
        prepare: None,
        heap_bytes_max,
        cpu_ms_max: 50,
    }
}

/// In the order of `docs/fuzzing.md`.
pub(crate) const TARGETS: &[Target] = &[
    target("mmio", vmm::mmio, 64 * KIB),
    target("queue_setup", vmm::queue_setup, 64 * KIB),
    target("chain", vmm::chain, MIB),
    target("vsock_worker", vmm::vsock_worker, 10 * MIB),
    target("vsock_connection", vmm::vsock_connection, MIB),
    Target {
        prepare: Some(vmm::prepare_fuse),
        cpu_ms_max: 1000,
        ..target("fuse", vmm::fuse, 4 * MIB)
    },
    Target {
        prepare: Some(vmm::prepare_fuse),
        cpu_ms_max: 1000,
        ..target("fs_ring", vmm::fs_ring, 4 * MIB)
    },
    Target {
        prepare: Some(vmm::prepare_fuse),
        cpu_ms_max: 1000,
        ..target("file_server", vmm::file_server, 4 * MIB)
    },
    target("file_answers", vmm::file_answers, 256 * KIB),
    target("exits", vmm::exits, 64 * KIB),
    target("console", vmm::console, 64 * KIB),
    target("console_tail", vmm::console_tail, 64 * KIB),
    target("control", protocol::control, 64 * KIB),
    target("vm_answers", shim::vm_answers, 64 * KIB),
    target("vm", shim::vm, MIB),
    target("agent", shim::agent, MIB),
    target("program", shim::program, 64 * KIB),
    target("seal", shim::seal, 8 * MIB),
    target("bundle", shim::bundle, 2 * MIB),
    target("proc_files", shim::proc_files, 256 * KIB),
    target("journal", shim::journal, 256 * KIB),
    target("undo", shim::undo, 256 * KIB),
    target("names", shim::names, 16 * MIB),
    target("log", shim::log, 256 * KIB),
    target("tree_race", shim::tree_race, 64 * KIB),
    target("store", shim::store, 512 * KIB),
    target("compiler", shim::compiler, 256 * KIB),
    target("compiler_run", shim::compiler_run, MIB),
    target("slot", protocol::slot, 64 * KIB),
    target("stream", protocol::stream, 64 * KIB),
];
