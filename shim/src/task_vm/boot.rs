//! Boots a task's VM, from the first step on the host to a guest that listens and a mapped slot.

use std::os::fd::AsFd;
use std::sync::Arc;

use wasmvm_protocol::agent::containerd::api::Mount;
use wasmvm_protocol::control::{BootConfig, Role};

use super::error::TaskVmError;
use super::resolve::Resolver;
use super::run_hooks::{hook_state, run_create_hooks};
use super::slots::Slots;
use super::steps::off_thread;
use crate::bundle::{Network as SpecNetwork, TaskSpec};
use crate::cgroup::{Cgroup, Hierarchies, cgroup_path};
use crate::error::Refusal;
use crate::host_process::start_time;
use crate::journal::{Journal, Step};
use crate::program::{Found, Program};
use crate::tree::{self, DeviceMount, RootfsMount};
use crate::vm::launch::{LaunchRequest, launch};
use crate::vm::network::Network;
use crate::vm::{Vm, VmError, credentials};
use crate::workload::{SlotLease, WorkloadOrder};

/// Memory limit from which on guest RAM is backed by huge pages, bytes. With a smaller limit, one touch of
/// a huge page would charge too much of the limit at once.
const HUGE_PAGES_LIMIT_BYTES_MIN: u64 = 512 << 20;

/// A VM whose agent listens and whose first slot holds init's artifact.
pub(super) struct Booted {
    pub cgroup: Cgroup,
    pub vm: Vm,
    pub slots: Slots,
    /// Init's slot, held as long as the VM lives.
    pub slot: SlotLease,
    /// The findings about init's program in the task's tree.
    pub found: Found,
    pub devices: Vec<DeviceMount>,
}

/// Makes the cgroup and the VM, runs the hooks of `Create`, and maps init's artifact once the guest
/// listens.
pub(super) async fn boot(
    order: WorkloadOrder,
    spec: Arc<TaskSpec>,
    ram_mib: u32,
    journal: &Arc<Journal>,
    resolver: &Resolver,
) -> Result<Booted, Refusal> {
    let WorkloadOrder {
        namespace,
        id,
        rootfs,
        bundle,
        ..
    } = order;
    let rootfs: Vec<_> = rootfs.into_iter().map(rootfs_mount).collect();
    let task_spec = Arc::clone(&spec);
    let config = &resolver.config;
    let (wanted, kept) = (Arc::clone(&spec), Arc::clone(journal));
    let task = id.clone();
    let cgroup = off_thread(move || make_task_cgroup(&namespace, &task, &wanted, &kept)).await?;
    let launch_request = LaunchRequest {
        name: id.clone(),
        files: resolver.vm_files(Role::Task, &cgroup).await?,
        boot: BootConfig {
            role: Role::Task,
            ram_mib,
            huge_pages: spec
                .memory_bytes_max()
                .is_none_or(|limit| limit >= HUGE_PAGES_LIMIT_BYTES_MIN),
            console: config.console,
            credentials: credentials::of_task(&spec)?,
        },
        cgroup: cgroup.birth()?,
        network: match &spec.network {
            SpecNetwork::Host | SpecNetwork::New => Network::Empty,
            SpecNetwork::Path(path) => Network::Path(path.clone()),
        },
        sysctls: spec.sysctls.clone(),
        oom_score_adj: spec.oom_score_adj.unwrap_or(0),
    };
    let (vm, (tree, program)) = launch(launch_request, move || {
        let tree = tree::assemble(&spec, &rootfs)?;
        let program = Program::open(tree.root.as_fd(), &spec.process)?;
        Ok::<_, Refusal>((tree, Arc::new(program)))
    })
    .await?;
    let start_time = start_time(vm.pid()).map_err(|source| TaskVmError::Step {
        action: "read the VMM's start time",
        source,
    })?;
    journal.record(&Step::Vmm {
        pid: vm.pid(),
        start_time,
    })?;
    let state = hook_state(&id, &bundle, &task_spec, vm.pid());
    let hooks = run_create_hooks(&task_spec, state, journal);
    let booted = async { Ok::<_, Refusal>(vm.ready(config.boot_timeout()).await?) };
    let resolved = async {
        tokio::select! {
            artifact = resolver.resolve(&program, journal) => artifact,
            // A VM that ends while its module is compiled is not waited for.
            end = vm.ended() => Err(VmError::Ended(end).into()),
        }
    };
    let (boot_time, artifact, ()) = tokio::try_join!(booted, resolved, hooks)?;
    tracing::debug!(boot_us = boot_time.as_micros(), "the agent listens");
    // The program's descriptor would hold the task's mounts.
    let found = program.found.clone();
    drop(program);
    let mut slots = Slots::default();
    let artifact = resolver.own(artifact, || cgroup.birth()).await?;
    let slot = slots.lease(&vm, artifact).await?;
    debug_assert_eq!(slot.index(), 0, "init's program comes first");
    Ok(Booted {
        cgroup,
        vm,
        slots,
        slot,
        found,
        devices: tree.devices,
    })
}

fn make_task_cgroup(
    namespace: &str,
    id: &str,
    spec: &TaskSpec,
    journal: &Arc<Journal>,
) -> Result<Cgroup, Refusal> {
    let inner = cgroup_path(spec.cgroup_path.as_deref(), namespace, id)?;
    let place = Hierarchies::find()?.place(&inner);
    Ok(Cgroup::create(&place, &spec.resources, journal)?)
}

fn rootfs_mount(mount: Mount) -> RootfsMount {
    RootfsMount {
        kind: mount.type_,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    }
}
