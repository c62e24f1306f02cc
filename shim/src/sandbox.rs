//! One task's VM, from a bundle to an agent that listens, and back to nothing.
//!
//! ```text
//! TaskSpec ─► journal ─► cgroup ─► launch thread: tree, program, VMM ─┬─► guest boots ───────┬─► slot ─► ready
//!                                                                     └─► artifact resolved ─┘
//! ```
//!
//! Whatever step fails, [`crate::cleanup`] undoes those before it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixStream;
use wasmvm_protocol::control::{BootConfig, Role};

use crate::artifact::compile::{COMPILER_MEMORY_MIB, Compile, CompileError, compile};
use crate::artifact::{ArtifactKey, KeyError, Store, StoreError};
use crate::bundle::{self, BundleError, TaskSpec, ram_mib};
use crate::cgroup::{self, Cgroup, CgroupError, CgroupLimits, cgroup_path, mounted_root};
use crate::cleanup::{self, CleanupError, Outcome};
use crate::config::{Config, ConfigError, GuestFiles};
use crate::error::ErrorCode;
use crate::hooks::{self, HookError, HookState, Stage, Status};
use crate::journal::{self, ExitRecord, Journal, JournalError, STATE_ROOT, Step};
use crate::program::{Program, ProgramError};
use crate::tree::{self, RootfsMount, TreeError};
use crate::vm::launch::{LaunchError, LaunchRequest, Network, VmFiles, launch};
use crate::vm::process::start_time;
use crate::vm::{Vm, VmEnd, VmError};

/// Memory limit from which on guest RAM is backed by huge pages, bytes. Below, one touch of a huge
/// page would charge too much of the limit at once.
const HUGE_PAGES_LIMIT_BYTES_MIN: u64 = 512 << 20;

/// What containerd asks for.
#[derive(Clone, Debug)]
pub struct SandboxRequest {
    /// containerd's namespace.
    pub namespace: String,
    /// The task's id, unique within the namespace.
    pub id: String,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The mounts that make up the root file system.
    pub rootfs: Vec<RootfsMount>,
}

/// A VM whose agent listens and whose slot holds the program's artifact.
#[derive(Debug)]
pub struct Sandbox {
    namespace: String,
    id: String,
    bundle: PathBuf,
    spec: Arc<TaskSpec>,
    mounted_directories: Vec<PathBuf>,
    ram_mib: u32,
    journal: Journal,
    vm: Vm,
}

/// What comes out of [`boot`].
struct Booted {
    vm: Vm,
    mounted_directories: Vec<PathBuf>,
}

/// Why there is no sandbox, or why it does not go away.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Cleanup(#[from] CleanupError),
    #[error("cannot {action}")]
    Step {
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

impl SandboxError {
    /// containerd's code for it.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Config(err) => err.code(),
            Self::Bundle(err) => err.code(),
            Self::Journal(err) => err.code(),
            Self::Cgroup(err) => err.code(),
            Self::Tree(err) => err.code(),
            Self::Program(err) => err.code(),
            Self::Launch(err) => err.code(),
            Self::Vm(err) => err.code(),
            Self::Compile(err) => err.code(),
            Self::Hook(err) => err.code(),
            Self::Cleanup(err) => err.code(),
            Self::Key(_) => ErrorCode::FailedPrecondition,
            Self::Store(_) | Self::Step { .. } => ErrorCode::Internal,
        }
    }
}

impl Sandbox {
    /// Makes all that a task needs, up to a guest that waits for the agent's Create.
    ///
    /// # Errors
    /// [`SandboxError`]; then nothing is left.
    pub async fn create(request: SandboxRequest, config: &Config) -> Result<Self, SandboxError> {
        let guest = GuestFiles::find()?;
        let spec = Arc::new(TaskSpec::load(&request.bundle)?);
        let journal = Self::begin(&request).await?;
        let (namespace, id) = (request.namespace.clone(), request.id.clone());
        let bundle = request.bundle.clone();
        let ram_mib = ram_mib(spec.memory_bytes_max, config.default_memory_mib);
        let host = Host {
            journal: &journal,
            config,
            guest: &guest,
        };
        match boot(request, Arc::clone(&spec), ram_mib, &host).await {
            Ok(Booted {
                vm,
                mounted_directories,
            }) => Ok(Self {
                namespace,
                id,
                bundle,
                spec,
                mounted_directories,
                ram_mib,
                journal,
                vm,
            }),
            Err(err) => {
                if let Err(left) = undo(cleanup::undo, namespace, id).await {
                    tracing::error!(error = %crate::error::chain(&left), "a failed create left something");
                }
                Err(err)
            }
        }
    }

    /// Starts the journal; what a task of the same id has left after a crash goes first.
    async fn begin(request: &SandboxRequest) -> Result<Journal, SandboxError> {
        let root = Path::new(STATE_ROOT);
        let (namespace, id) = (&request.namespace, &request.id);
        let journal = match Journal::create(root, namespace, id) {
            Err(JournalError::Exists(path)) if !journal::is_held(root, namespace, id) => {
                tracing::warn!(path = %path.display(), "undoing what an earlier task has left");
                undo(cleanup::undo, namespace.clone(), id.clone()).await?;
                Journal::create(root, namespace, id)
            }
            other => other,
        }?;
        journal.record(&Step::Bundle {
            path: request.bundle.clone(),
        })?;
        Ok(journal)
    }

    /// The VMM's pid on the host: the task's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.vm.pid()
    }

    /// What the bundle says.
    #[must_use]
    pub fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    /// Directories of the tree that are mounts of their own.
    #[must_use]
    pub fn mounted_directories(&self) -> &[PathBuf] {
        &self.mounted_directories
    }

    /// The most that the instance's linear memories may take, bytes.
    #[must_use]
    pub fn wasm_memory_bytes_max(&self) -> u64 {
        bundle::wasm_memory_bytes_max(self.spec.memory_bytes_max, self.ram_mib)
    }

    /// Opens a byte stream to a port of the guest.
    ///
    /// # Errors
    /// [`VmError`].
    pub async fn connect(&self, port: u32) -> Result<UnixStream, VmError> {
        self.vm.connect(port).await
    }

    /// Waits until the VM is gone. Any number of callers.
    pub async fn vm_ended(&self) -> VmEnd {
        self.vm.ended().await
    }

    /// Kills the VM; [`Sandbox::vm_ended`] reports its end.
    pub fn kill_vm(&self) {
        self.vm.kill();
    }

    /// Runs the poststart hooks. When it is dropped the one that runs is ended.
    ///
    /// # Errors
    /// The first [`HookError`].
    pub async fn poststart(&self) -> Result<(), HookError> {
        let lists = vec![(Stage::Poststart, self.spec.hooks.poststart.clone())];
        let state = hook_state(&self.id, &self.bundle, &self.spec, self.pid());
        hooks::run_in_order(lists, state.at(Status::Running)).await
    }

    /// Writes down how init ended, for a `delete` after the shim's own death.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn record_exit(&self, exit: ExitRecord) -> Result<(), JournalError> {
        self.journal.record(&Step::Exit(exit))
    }

    /// Ends the VM and removes all that [`Sandbox::create`] has made but the journal. May be called
    /// again.
    ///
    /// # Errors
    /// [`CleanupError`]
    pub async fn release(&self) -> Result<(), SandboxError> {
        self.end(cleanup::release).await
    }

    /// Ends the VM and removes all that [`Sandbox::create`] has made. May be called again.
    ///
    /// # Errors
    /// [`CleanupError`]; the journal is kept then, so that `delete` can try again.
    pub async fn destroy(&self) -> Result<(), SandboxError> {
        self.end(cleanup::undo).await
    }

    async fn end(&self, cleanup: Cleanup) -> Result<(), SandboxError> {
        self.vm.kill();
        self.vm.ended().await;
        undo(cleanup, self.namespace.clone(), self.id.clone()).await
    }
}

/// What every step needs.
struct Host<'a> {
    journal: &'a Journal,
    config: &'a Config,
    guest: &'a GuestFiles,
}

/// [`cleanup::undo`] or [`cleanup::release`].
pub type Cleanup = fn(&Path, &str, &str) -> Result<Outcome, CleanupError>;

/// Undoes the journal off the runtime's thread: a cgroup takes a moment to empty.
///
/// # Errors
/// [`SandboxError::Cleanup`].
pub async fn undo(cleanup: Cleanup, namespace: String, id: String) -> Result<(), SandboxError> {
    off_thread(move || cleanup(Path::new(STATE_ROOT), &namespace, &id).map(drop)).await
}

/// Runs what waits for a disk or a process on a thread of its own: the runtime has one for everything,
/// containerd's other requests included.
async fn off_thread<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, SandboxError>
where
    T: Send + 'static,
    E: Send + 'static,
    SandboxError: From<E>,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(err) => Err(SandboxError::Step {
            action: "finish a step on a thread of its own",
            source: err.into(),
        }),
    }
}

/// From the first step on the host to a mapped slot and a guest that listens.
async fn boot(
    request: SandboxRequest,
    spec: Arc<TaskSpec>,
    ram_mib: u32,
    host: &Host<'_>,
) -> Result<Booted, SandboxError> {
    let SandboxRequest {
        namespace,
        id,
        rootfs,
        bundle,
    } = request;
    let task_spec = Arc::clone(&spec);
    let launch_request = LaunchRequest {
        name: id.clone(),
        files: files(host.guest, Role::Task),
        boot: BootConfig {
            role: Role::Task,
            ram_mib,
            huge_pages: spec
                .memory_bytes_max
                .is_none_or(|limit| limit >= HUGE_PAGES_LIMIT_BYTES_MIN),
            console: host.config.console,
        },
        cgroup: make_task_cgroup(&namespace, &id, &spec, host.journal)?,
        network: match &spec.network {
            bundle::Network::Host | bundle::Network::New => Network::Empty,
            bundle::Network::Path(path) => Network::Path(path.clone()),
        },
        oom_score_adj: spec.oom_score_adj.unwrap_or(0),
    };
    let (vm, (tree, program)) = launch(launch_request, move || {
        let tree = tree::assemble(&spec, &rootfs)?;
        let program = Program::open(tree.root.as_fd(), &spec)?;
        Ok::<_, SandboxError>((tree, program))
    })
    .await?;
    let start_time = start_time(vm.pid()).map_err(|source| SandboxError::Step {
        action: "read the VMM's start time",
        source,
    })?;
    host.journal.record(&Step::Vmm {
        pid: vm.pid(),
        start_time,
    })?;
    let state = hook_state(&id, &bundle, &task_spec, vm.pid());
    let hooked = run_create_hooks(&task_spec, state, host.journal);
    let booted = async { Ok::<_, SandboxError>(vm.ready(host.config.boot_timeout()).await?) };
    let resolved = async {
        tokio::select! {
            artifact = resolve(&namespace, &id, &program, host) => artifact,
            // A VM that dies while its module is compiled is not waited for.
            end = vm.ended() => Err(VmError::Ended(end).into()),
        }
    };
    let (boot_time, artifact, ()) = tokio::try_join!(booted, resolved, hooked)?;
    tracing::debug!(boot_us = boot_time.as_micros(), "the agent listens");
    vm.map_slot(0, artifact.as_fd()).await?;
    Ok(Booted {
        vm,
        mounted_directories: tree.mounted_directories,
    })
}

/// What the task's hooks are told while it is being created.
fn hook_state(id: &str, bundle: &Path, spec: &TaskSpec, pid: u32) -> HookState {
    HookState {
        oci_version: spec.oci_version.clone(),
        id: id.to_owned(),
        status: Status::Creating,
        pid: Some(pid),
        bundle: bundle.to_owned(),
        annotations: spec.annotations.clone(),
    }
}

/// The VMM holds its namespaces: now comes what sets up the network in them.
async fn run_create_hooks(
    spec: &TaskSpec,
    state: HookState,
    journal: &Journal,
) -> Result<(), SandboxError> {
    if !spec.hooks.poststop.is_empty() {
        journal.record(&Step::Poststop {
            hooks: spec.hooks.poststop.clone(),
            state: state.at(Status::Stopped),
        })?;
    }
    let lists = vec![
        (Stage::Prestart, spec.hooks.prestart.clone()),
        (Stage::CreateRuntime, spec.hooks.create_runtime.clone()),
    ];
    Ok(hooks::run_in_order(lists, state).await?)
}

/// The artifact of a program: from the store, or compiled now.
async fn resolve(
    namespace: &str,
    id: &str,
    program: &Program,
    host: &Host<'_>,
) -> Result<File, SandboxError> {
    let store = Store::new(
        Path::new(STATE_ROOT).join("artifacts"),
        host.config.artifact_dir.clone(),
    );
    let files = files(host.guest, Role::Compiler);
    let key = ArtifactKey::new(&program.sha256, &files.initramfs)?;
    let (looked, wanted) = (store.clone(), key.clone());
    if let Some(file) = off_thread(move || looked.find(&wanted)).await? {
        return Ok(file);
    }
    let path = mounted_root()?
        .join("wasmvm-compile")
        .join(format!("{namespace}-{id}"));
    let limits = CgroupLimits {
        memory_bytes_max: Some(u64::from(COMPILER_MEMORY_MIB) << 20),
        ..CgroupLimits::default()
    };
    let compiled = compile(Compile {
        name: format!("{id} (compiler)"),
        files,
        cgroup: make_cgroup(&path, &limits, host.journal)?,
        program,
        boot_limit: host.config.boot_timeout(),
        compile_limit: host.config.compile_timeout(),
        console: host.config.console,
    })
    .await;
    let removed = off_thread(move || cgroup::remove(&path, cleanup::KILL_MAX)).await;
    let compiled = compiled?;
    let artifact = off_thread(move || store.insert(&key, &compiled)).await?;
    removed?;
    Ok(artifact)
}

fn make_task_cgroup(
    namespace: &str,
    id: &str,
    spec: &TaskSpec,
    journal: &Journal,
) -> Result<OwnedFd, SandboxError> {
    let path = cgroup_path(&mounted_root()?, spec.cgroup_path.as_deref(), namespace, id)?;
    make_cgroup(&path, &CgroupLimits::from(spec), journal)
}

/// Makes a cgroup, written down before; returns its directory.
fn make_cgroup(
    path: &Path,
    limits: &CgroupLimits,
    journal: &Journal,
) -> Result<OwnedFd, SandboxError> {
    cgroup::claim(path)?;
    journal.record(&Step::Cgroup {
        path: path.to_owned(),
    })?;
    let cgroup = Cgroup::create(path, limits)?;
    cgroup
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| SandboxError::Step {
            action: "copy the cgroup's descriptor",
            source,
        })
}

fn files(guest: &GuestFiles, role: Role) -> VmFiles {
    VmFiles {
        vmm: guest.vmm.clone(),
        kernel: guest.kernel.clone(),
        initramfs: match role {
            Role::Task => guest.agent.clone(),
            Role::Compiler => guest.compiler.clone(),
        },
    }
}
