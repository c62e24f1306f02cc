//! [`HostMaker`]: from a `Create` request of containerd to a [`TaskVm`] whose agent waits for its Create, or to the
//! [`Holder`] of a pod.

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
use super::slots::Slots;
use crate::accounting::Accounting;
use crate::agent::Agent;
use crate::bundle::{Network as SpecNetwork, PodPlace, TaskSpec, ram_mib};
use crate::cgroup::Cgroup;
use crate::cleanup::{self, undo_off_thread};
use crate::config::{Config, GuestFiles, options};
use crate::error::{Refusal, chain};
use crate::guest_deadline::GuestClock;
use crate::holder::Holder;
use crate::hooks::{hook_state, run_create_hooks};
use crate::host_process::start_time;
use crate::journal::{Journal, STATE_ROOT, Step, TASKS_ROOT};
use crate::off_thread::step_off_thread;
use crate::program::Program;
use crate::tree::{self, RootfsMount};
use crate::vm::launch::{LaunchRequest, launch};
use crate::vm::network::Network;
use crate::vm::{Vm, VmError, credentials};
use crate::workload::{Membership, Workload, WorkloadMaker, WorkloadOrder};

/// Memory limit from which on guest RAM is backed by huge pages, bytes. With a smaller limit, one touch of
/// a huge page would charge too much of the limit at once.
const HUGE_PAGES_LIMIT_BYTES_MIN: u64 = 512 << 20;

/// Makes workloads on this host: VMs, and the holders of pods.
#[derive(Debug)]
pub(crate) struct HostMaker;

#[async_trait]
impl WorkloadMaker for HostMaker {
    async fn place(&self, bundle: &Path, id: &str) -> Result<PodPlace, Refusal> {
        let (bundle, id) = (bundle.to_owned(), id.to_owned());
        step_off_thread(move || PodPlace::of_bundle(&bundle, &id)).await
    }

    async fn create(
        &self,
        order: WorkloadOrder,
        clock: GuestClock,
    ) -> Result<Arc<dyn Workload>, Refusal> {
        let kept_in = match &order.membership {
            Membership::Container(pod) => vec![pod.bundle(), order.bundle.as_path()],
            Membership::Alone | Membership::Sandbox => vec![order.bundle.as_path()],
        };
        let config = options::config(&kept_in, order.options.as_ref())?;
        let wanted = order.clone();
        let (files, spec, journal) = step_off_thread(move || begin(&wanted)).await?;
        let begun = (order.clone(), Arc::new(spec), Arc::new(journal));
        let made = make(begun, config, files, clock).await;
        if made.is_err()
            && let Err(left) = self.undo(&order).await
        {
            tracing::error!(error = %chain(&left), "a failed create left something");
        }
        made
    }

    async fn undo(&self, order: &WorkloadOrder) -> Result<(), Refusal> {
        undo_off_thread(cleanup::undo, &order.namespace, &order.id).await
    }
}

/// An order with its spec, and the journal that was begun for it.
type Begun = (WorkloadOrder, Arc<TaskSpec>, Arc<Journal>);

async fn make(
    (order, spec, journal): Begun,
    config: Config,
    files: GuestFiles,
    clock: GuestClock,
) -> Result<Arc<dyn Workload>, Refusal> {
    if let Membership::Sandbox = order.membership {
        let holder = Holder::create(order, spec, journal, &files).await?;
        return Ok(Arc::new(holder));
    }
    let resolver = Resolver::new(&order, &spec, &config, files);
    let vm = boot(order, spec, journal, resolver, clock).await?;
    Ok(Arc::new(vm))
}

/// Finds the guest's files, loads the spec and starts the journal; what a task of the same id has left
/// after a crash is removed first.
fn begin(request: &WorkloadOrder) -> Result<(GuestFiles, TaskSpec, Journal), Refusal> {
    let guest = GuestFiles::find()?;
    let mut spec = TaskSpec::load(&request.bundle)?;
    if let Membership::Container(pod) = &request.membership
        && spec.hostname.is_empty()
    {
        // CRI's specs of containers name the pod's namespace instead.
        pod.hostname().clone_into(&mut spec.hostname);
    }
    let [tasks, earlier] = [TASKS_ROOT, STATE_ROOT].map(Path::new);
    let (namespace, id) = (&request.namespace, &request.id);
    let (bundle, pod) = (&request.bundle, request.pod_id());
    let journal = cleanup::begin(tasks, earlier, namespace, id, bundle, pod)?;
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
    let cgroup = Cgroup::of_task(&namespace, &id, &spec, &journal).await?;
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
