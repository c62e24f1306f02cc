//! [`TaskVmMaker`]: from a `Create` request of containerd to a [`TaskVm`] whose agent waits for its Create.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;
use wasmvm_protocol::agent::containerd::api::Mount;
use wasmvm_protocol::control::{BootConfig, Role};

use super::TaskVm;
use super::error::TaskVmError;
use super::resolve::{Resolver, Wanted};
use super::run_hooks::{hook_state, run_create_hooks};
use super::slots::Slots;
use super::steps::{off_thread, undo};
use crate::accounting::Accounting;
use crate::agent::Agent;
use crate::bundle::{Network as SpecNetwork, TaskSpec, ram_mib};
use crate::cgroup::{Cgroup, Hierarchies, cgroup_path};
use crate::cleanup;
use crate::config::{GuestFiles, options};
use crate::error::{Refusal, chain};
use crate::guest_deadline::GuestClock;
use crate::host_process::start_time;
use crate::journal::{Journal, STATE_ROOT, Step, TASKS_ROOT};
use crate::program::Program;
use crate::tree::{self, RootfsMount};
use crate::vm::launch::{LaunchRequest, launch};
use crate::vm::network::Network;
use crate::vm::{Vm, VmError, credentials};
use crate::workload::{Workload, WorkloadMaker, WorkloadOrder};

/// Memory limit from which on guest RAM is backed by huge pages, bytes. With a smaller limit, one touch of
/// a huge page would charge too much of the limit at once.
const HUGE_PAGES_LIMIT_BYTES_MIN: u64 = 512 << 20;

/// Boots VMs on this host.
#[derive(Debug)]
pub(crate) struct TaskVmMaker;

#[async_trait]
impl WorkloadMaker for TaskVmMaker {
    async fn create(
        &self,
        order: WorkloadOrder,
        clock: GuestClock,
    ) -> Result<Arc<dyn Workload>, Refusal> {
        let config = options::config(&order.bundle, order.options.as_ref())?;
        let wanted = order.clone();
        let (guest, spec, journal) = off_thread(move || begin(&wanted)).await?;
        let (namespace, id) = (order.namespace.clone(), order.id.clone());
        let resolver = Resolver::new(&namespace, &id, &spec, &config, guest);
        let (spec, journal) = (Arc::new(spec), Arc::new(journal));
        match boot(order, spec, journal, resolver, clock).await {
            Ok(vm) => Ok(Arc::new(vm)),
            Err(error) => {
                if let Err(left) = undo(cleanup::undo, namespace, id).await {
                    tracing::error!(error = %chain(&left), "a failed create left something");
                }
                Err(error)
            }
        }
    }

    async fn undo(&self, order: &WorkloadOrder) -> Result<(), Refusal> {
        let (namespace, id) = (order.namespace.clone(), order.id.clone());
        undo(cleanup::undo, namespace, id).await
    }
}

/// Finds the guest's files, loads the spec and starts the journal; what a task of the same id has left
/// after a crash is removed first.
fn begin(request: &WorkloadOrder) -> Result<(GuestFiles, TaskSpec, Journal), Refusal> {
    let guest = GuestFiles::find()?;
    let spec = TaskSpec::load(&request.bundle)?;
    let [tasks, earlier] = [TASKS_ROOT, STATE_ROOT].map(Path::new);
    let (namespace, id) = (&request.namespace, &request.id);
    let journal = cleanup::begin(tasks, earlier, namespace, id, &request.bundle)?;
    Ok((guest, spec, journal))
}

/// Makes the cgroup and the VM, runs the hooks of `Create`, maps init's artifact once the guest listens, and
/// connects to the agent.
async fn boot(
    order: WorkloadOrder,
    spec: Arc<TaskSpec>,
    journal: Arc<Journal>,
    resolver: Resolver,
    clock: GuestClock,
) -> Result<TaskVm, Refusal> {
    let WorkloadOrder {
        namespace,
        id,
        bundle,
        rootfs,
        ..
    } = order;
    let config = &resolver.config;
    let ram_mib = ram_mib(spec.memory_bytes_max(), config.default_memory_mib);
    let cgroup = make_cgroup(&namespace, &id, &spec, &journal).await?;
    let request = launch_request(&id, &spec, ram_mib, &cgroup, &resolver).await?;
    let (wanted, rootfs) = (spec.clone(), rootfs.into_iter().map(rootfs_mount));
    let rootfs: Vec<_> = rootfs.collect();
    let (vm, (tree, program)) = launch(request, move || {
        let tree = tree::assemble(&wanted, &rootfs)?;
        let program = Program::open(tree.root.as_fd(), &wanted.process)?;
        Ok::<_, Refusal>((tree, Arc::new(program)))
    })
    .await?;
    record(&vm, &journal)?;

    let state = hook_state(&id, &bundle, &spec, vm.pid());
    let hooks = run_create_hooks(&spec, state, &journal);
    let booted = async { Ok::<_, Refusal>(vm.ready(config.boot_timeout()).await?) };
    let wanted = Wanted {
        program: &program,
        cpu: vm.cpu(),
        journal: &journal,
    };
    let resolved = async {
        tokio::select! {
            artifact = resolver.resolve(wanted) => artifact,
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
    let guest = Arc::new(vm.clone());
    let agent = Agent::connect(guest, &id, config.load_timeout(), clock).await?;
    Ok(TaskVm {
        namespace,
        id,
        bundle,
        accounting: Arc::new(Accounting::new(cgroup, ram_mib, spec.memory_bytes_max())),
        spec,
        devices: tree.devices,
        journal,
        resolver,
        vm,
        agent,
        slots: Mutex::new(slots),
        slot,
        found,
    })
}

async fn make_cgroup(
    namespace: &str,
    id: &str,
    spec: &Arc<TaskSpec>,
    journal: &Arc<Journal>,
) -> Result<Cgroup, Refusal> {
    let inner = cgroup_path(spec.cgroup_path.as_deref(), namespace, id)?;
    let (spec, journal) = (spec.clone(), journal.clone());
    off_thread(move || {
        let place = Hierarchies::find()?.place(&inner);
        Ok::<_, Refusal>(Cgroup::create(&place, &spec.resources, &journal)?)
    })
    .await
}

async fn launch_request(
    id: &str,
    spec: &TaskSpec,
    ram_mib: u32,
    cgroup: &Cgroup,
    resolver: &Resolver,
) -> Result<LaunchRequest, Refusal> {
    Ok(LaunchRequest {
        name: id.to_owned(),
        files: resolver.vm_files(Role::Task, cgroup).await?,
        boot: BootConfig {
            role: Role::Task,
            ram_mib,
            huge_pages: spec
                .memory_bytes_max()
                .is_none_or(|limit| limit >= HUGE_PAGES_LIMIT_BYTES_MIN),
            console: resolver.config.console,
            credentials: credentials::of_task(spec)?,
        },
        cgroup: cgroup.birth()?,
        network: match &spec.network {
            SpecNetwork::Host | SpecNetwork::New => Network::Empty,
            SpecNetwork::Path(path) => Network::Path(path.clone()),
        },
        sysctls: spec.sysctls.clone(),
        oom_score_adj: spec.oom_score_adj.unwrap_or(0),
    })
}

/// Records the VMM in the journal, so that a `delete` after the shim's death finds the VMM's process.
fn record(vm: &Vm, journal: &Journal) -> Result<(), Refusal> {
    let start_time = start_time(vm.pid()).map_err(|source| TaskVmError::Step {
        action: "read the VMM's start time",
        source,
    })?;
    let pid = vm.pid();
    Ok(journal.record(&Step::Vmm { pid, start_time })?)
}

fn rootfs_mount(mount: Mount) -> RootfsMount {
    RootfsMount {
        kind: mount.type_,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    }
}
