//! The VM of one task, from a bundle to an agent that listens, and back to nothing.
//!
//! ```text
//! TaskSpec ─► journal ─► cgroup ─► launch thread: tree, program, VMM ─┬─► guest boots ───────┬─► slot ─► ready
//!                                                                     └─► artifact resolved ─┘
//! ```
//!
//! When a step fails, [`crate::cleanup`] undoes the steps before it.

mod boot;
mod compiler_cgroup;
mod error;
mod resolve;
mod run_hooks;
mod slots;

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::Mutex;

pub use self::error::TaskVmError;

use self::boot::{Booted, boot};
use self::resolve::Resolver;
use self::run_hooks::{hook_state, run_poststart};
pub use self::slots::SlotLease;
use self::slots::Slots;
use crate::bundle::{ProcessSpec, TaskSpec, ram_mib};
use crate::cleanup::{self, CleanupError, Outcome};
use crate::config::{Config, GuestFiles};
use crate::hooks::{self, HookError};
use crate::journal::{self, ExitRecord, Journal, JournalError, STATE_ROOT, Step, TASKS_ROOT};
use crate::meter::Meter;
use crate::program::{Found, Program};
use crate::tree::{DeviceMount, RootfsMount};
use crate::vm::{Vm, VmEnd, VmError};

/// The fields of a `Create` request that a task's VM is made from.
#[derive(Clone, Debug)]
pub struct TaskVmRequest {
    /// containerd's namespace of the task.
    pub namespace: String,
    /// The task's id, unique within the namespace.
    pub id: String,
    /// Path of the bundle's directory.
    pub bundle: PathBuf,
    /// The mounts that make up the root file system.
    pub rootfs: Vec<RootfsMount>,
}

/// A VM whose agent listens and whose first slot holds init's artifact.
#[derive(Debug)]
pub struct TaskVm {
    namespace: String,
    id: String,
    bundle: PathBuf,
    spec: Arc<TaskSpec>,
    devices: Vec<DeviceMount>,
    meter: Arc<Meter>,
    journal: Arc<Journal>,
    resolver: Resolver,
    load_limit: Duration,
    vm: Vm,
    slots: Mutex<Slots>,
    /// Init's slot, held as long as the VM lives.
    slot: SlotLease,
    /// The findings about init's program in the task's tree.
    found: Found,
}

impl TaskVm {
    /// Makes all that a task needs, up to a guest that waits for the agent's Create.
    ///
    /// # Errors
    /// [`TaskVmError`]; then nothing is left.
    pub async fn create(request: TaskVmRequest, config: &Config) -> Result<Self, TaskVmError> {
        let wanted = request.clone();
        let (guest, spec, journal) = off_thread(move || begin(&wanted)).await?;
        let (spec, journal) = (Arc::new(spec), Arc::new(journal));
        let (namespace, id) = (request.namespace.clone(), request.id.clone());
        let bundle = request.bundle.clone();
        let ram_mib = ram_mib(spec.memory_bytes_max(), config.default_memory_mib);
        let resolver = Resolver::new(&namespace, &id, &spec, config, guest);
        match boot(request, Arc::clone(&spec), ram_mib, &journal, &resolver).await {
            Ok(Booted {
                cgroup,
                vm,
                slots,
                slot,
                found,
                devices,
            }) => Ok(Self {
                namespace,
                id,
                bundle,
                meter: Arc::new(Meter::new(cgroup, ram_mib, spec.memory_bytes_max())),
                spec,
                devices,
                journal,
                resolver,
                load_limit: config.load_timeout(),
                vm,
                slots: Mutex::new(slots),
                slot,
                found,
            }),
            Err(err) => {
                if let Err(left) = undo(cleanup::undo, namespace, id).await {
                    tracing::error!(error = %crate::error::chain(&left), "a failed create left something");
                }
                Err(err)
            }
        }
    }

    /// How long the guest may take to load a program.
    #[must_use]
    pub fn load_limit(&self) -> Duration {
        self.load_limit
    }

    /// The VMM's pid on the host, which is the task's pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.vm.pid()
    }

    /// The task's spec, loaded from the bundle.
    #[must_use]
    pub fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    /// The findings about init's program in the task's tree.
    #[must_use]
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Files of the tree that the guest is to mount devices of its own on.
    #[must_use]
    pub fn devices(&self) -> &[DeviceMount] {
        &self.devices
    }

    /// The limits and the use of the task.
    #[must_use]
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Finds the program of an exec in the task's files, as they are now, and maps its artifact.
    ///
    /// # Errors
    /// [`TaskVmError`]; its variant `Exec` says what can be executed.
    pub async fn load(&self, process: &ProcessSpec) -> Result<(SlotLease, Found), TaskVmError> {
        let program = self.read_program(process).await?;
        let artifact = self.resolver.resolve(&program, &self.journal).await?;
        let found = program.found.clone();
        drop(program);
        let mut slots = self.slots.lock().await;
        if let Some(lease) = slots.find(&artifact.key) {
            return Ok((lease, found));
        }
        let artifact = self.resolver.own(artifact, || self.meter.birth()).await?;
        let lease = slots.lease(&self.vm, artifact).await?;
        Ok((lease, found))
    }

    /// Compiles init's program again, as the guest cannot load the artifact, and maps the new artifact in
    /// place of the old one.
    ///
    /// # Errors
    /// [`TaskVmError`].
    pub async fn compile_again(&self) -> Result<(), TaskVmError> {
        let program = self.read_program(&self.spec.process).await?;
        let again = self.resolver.compile_again(&program, &self.journal);
        let artifact = self
            .resolver
            .own(again.await?, || self.meter.birth())
            .await?;
        let mut slots = self.slots.lock().await;
        Ok(slots.replace(&self.vm, &self.slot, artifact).await?)
    }

    /// Reads one program at a time: reading takes a processor of the host's, for longer the larger the file
    /// is.
    async fn read_program(&self, process: &ProcessSpec) -> Result<Arc<Program>, TaskVmError> {
        let (vmm, wanted) = (self.vm.process().clone(), process.clone());
        let _reading = self.resolver.reading().await;
        let program = off_thread(move || {
            // `root` is dropped with this closure: an open descriptor would hold the task's mounts.
            let root = vmm.root().map_err(|source| TaskVmError::Step {
                action: "open the task's root directory",
                source,
            })?;
            Program::open(root.as_fd(), &wanted).map_err(TaskVmError::Exec)
        })
        .await?;
        Ok(Arc::new(program))
    }

    /// Stops the guest.
    ///
    /// # Errors
    /// [`VmError`].
    pub async fn pause(&self) -> Result<(), VmError> {
        self.vm.pause().await
    }

    /// Resumes a stopped guest.
    ///
    /// # Errors
    /// [`VmError`].
    pub async fn resume(&self) -> Result<(), VmError> {
        self.vm.resume().await
    }

    /// Opens a byte stream to a port of the guest.
    ///
    /// # Errors
    /// [`VmError`].
    pub async fn connect(&self, port: u32) -> Result<UnixStream, VmError> {
        self.vm.connect(port).await
    }

    /// Waits until the VM has ended. Any number of callers may wait.
    pub async fn vm_ended(&self) -> VmEnd {
        self.vm.ended().await
    }

    /// Kills the VM; [`TaskVm::vm_ended`] reports its end.
    pub fn kill_vm(&self) {
        self.vm.kill();
    }

    /// Runs the poststart hooks. Dropping the future ends the hook that runs.
    ///
    /// # Errors
    /// The first [`HookError`].
    pub async fn poststart(&self) -> Result<(), HookError> {
        let state = hook_state(&self.id, &self.bundle, &self.spec, self.pid());
        run_poststart(&self.spec, state).await
    }

    /// Records init's exit, for a `delete` after the shim's own death.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn record_exit(&self, exit: ExitRecord) -> Result<(), JournalError> {
        self.journal.record(&Step::Exit(exit))
    }

    /// Ends the VM and removes all that [`TaskVm::create`] has made but the journal. May be called
    /// again.
    ///
    /// # Errors
    /// [`CleanupError`]
    pub async fn release(&self) -> Result<(), TaskVmError> {
        self.end(cleanup::release).await
    }

    /// Ends the VM and removes all that [`TaskVm::create`] has made. May be called again.
    ///
    /// # Errors
    /// [`CleanupError`]; the journal is kept then, so that `delete` can try again.
    pub async fn destroy(&self) -> Result<(), TaskVmError> {
        self.end(cleanup::undo).await
    }

    async fn end(&self, cleanup: Cleanup) -> Result<(), TaskVmError> {
        self.vm.kill();
        self.vm.ended().await;
        self.meter.close();
        undo(cleanup, self.namespace.clone(), self.id.clone()).await
    }
}

/// Finds the guest's files, loads the spec and starts the journal; what a task of the same id has left
/// after a crash is removed first.
fn begin(request: &TaskVmRequest) -> Result<(GuestFiles, TaskSpec, Journal), TaskVmError> {
    let guest = GuestFiles::find()?;
    let spec = TaskSpec::load(&request.bundle)?;
    let [tasks, earlier] = [TASKS_ROOT, STATE_ROOT].map(Path::new);
    let (namespace, id) = (&request.namespace, &request.id);
    let journal = cleanup::begin(tasks, earlier, namespace, id, &request.bundle)?;
    Ok((guest, spec, journal))
}

/// A way to clean up: [`cleanup::undo`] or [`cleanup::release`].
pub type Cleanup = fn(&Path, &str, &str) -> Result<Outcome, CleanupError>;

/// Undoes the journal off the runtime's thread: a cgroup takes a moment to empty.
///
/// # Errors
/// [`TaskVmError::Cleanup`].
pub async fn undo(cleanup: Cleanup, namespace: String, id: String) -> Result<(), TaskVmError> {
    off_thread(move || {
        hooks::wait_for_cancelled(&id);
        let root = journal::root_of(&namespace, &id);
        cleanup(root, &namespace, &id).map(drop)
    })
    .await
}

/// A step of a task's VM, run by [`crate::off_thread`].
async fn off_thread<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, TaskVmError>
where
    T: Send + 'static,
    E: Send + 'static,
    TaskVmError: From<E>,
{
    match crate::off_thread::off_thread(work).await {
        Ok(done) => Ok(done?),
        Err(source) => Err(TaskVmError::Step {
            action: "finish a step on a thread of its own",
            source,
        }),
    }
}
