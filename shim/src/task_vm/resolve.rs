//! Resolves a program to its artifact: out of the store, or compiled now.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{Mutex, MutexGuard};
use wasmvm_protocol::control::Role;

use super::compiler_cgroup::{CompilerCgroup, compiler_cgroup_path};
use super::error::TaskVmError;
use super::slots::Artifact;
use crate::artifact::compile::{COMPILER_MEMORY_MIB, Compile, compile};
use crate::artifact::{ArtifactKey, CacheDir, CompileQueue, Next, Store, Turn, private_copy};
use crate::bundle::{Limit, Resources, TaskSpec};
use crate::cgroup::{Birth, Cgroup, CgroupError};
use crate::config::{Config, GuestFiles, Sharing};
use crate::error::Refusal;
use crate::journal::{Journal, STATE_ROOT};
use crate::off_thread::step_off_thread;
use crate::pod::Pod;
use crate::program::Program;
use crate::vm::launch::VmFiles;
use crate::workload::{Membership, WorkloadOrder};

/// The annotation with a pod's namespace, in the specs that CRI makes (containerd, `pkg/cri/annotations`).
const POD_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";

/// A program to resolve, for the VM that is to run the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub program: &'a Arc<Program>,
    /// The features of the VM's CPU, as [`crate::vm::Vm::cpu`] names them.
    pub cpu: &'a str,
    pub journal: &'a Journal,
}

/// Resolves the programs of one task: init's and those of its execs.
#[derive(Debug)]
pub(super) struct Resolver {
    pub namespace: String,
    pub id: String,
    pub config: Config,
    pub guest: GuestFiles,
    /// The task's tenant, which waits for other tenants' compiles only as long as is fair.
    tenant: String,
    /// The pod that the task belongs to: its compiles go on when the task is given up.
    pod: Option<Arc<Pod>>,
    /// The number of compiler VMs so far, of a task without a pod.
    compilers: AtomicU32,
    /// Held while a program of the task is read; `compiling`, while a program is compiled: one at a time.
    reading: Mutex<()>,
    compiling: Mutex<()>,
}

impl Resolver {
    pub(super) fn new(
        order: &WorkloadOrder,
        spec: &TaskSpec,
        config: &Config,
        guest: GuestFiles,
    ) -> Self {
        Self {
            namespace: order.namespace.clone(),
            id: order.id.clone(),
            config: config.clone(),
            guest,
            tenant: tenant(&order.namespace, spec.annotations.get(POD_NAMESPACE)),
            pod: match &order.membership {
                Membership::Container(pod) => Some(pod.clone()),
                Membership::Alone | Membership::Sandbox => None,
            },
            compilers: AtomicU32::new(0),
            reading: Mutex::new(()),
            compiling: Mutex::new(()),
        }
    }

    /// The lock to hold while a program of the running task is read.
    pub(super) async fn reading(&self) -> MutexGuard<'_, ()> {
        self.reading.lock().await
    }

    /// Finds or compiles the artifact of a program. Dropping the future ends the compiler VM.
    ///
    /// # Errors
    /// [`Refusal`]
    pub(super) async fn resolve(&self, wanted: Wanted<'_>) -> Result<Artifact, Refusal> {
        let key = self.key(wanted.program.sha256, wanted.cpu).await?;
        match self.find(&key).await? {
            Some(file) => Ok(Artifact { key, file }),
            None => self.compile_in_turn(wanted, key).await,
        }
    }

    /// Compiles a program whose stored artifact does not fit this host any more.
    ///
    /// # Errors
    /// [`Refusal`]
    pub(super) async fn compile_again(&self, wanted: Wanted<'_>) -> Result<Artifact, Refusal> {
        let key = self.key(wanted.program.sha256, wanted.cpu).await?;
        let (store, unfit) = (self.store(), key.clone());
        step_off_thread(move || {
            store.forget(&unfit);
            Ok::<_, Refusal>(())
        })
        .await?;
        self.compile_in_turn(wanted, key).await
    }

    /// The artifact as the VM of `cgroup` maps it: where no memory is shared, a copy that is charged to
    /// `cgroup`.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(super) async fn own(
        &self,
        artifact: Artifact,
        cgroup: impl FnOnce() -> Result<Birth, CgroupError>,
    ) -> Result<Artifact, Refusal> {
        if self.config.sharing != Sharing::None {
            return Ok(artifact);
        }
        let cgroup = cgroup()?;
        let Artifact { key, file } = artifact;
        let file = step_off_thread(move || own_copy(&file, &cgroup)).await?;
        Ok(Artifact { key, file })
    }

    /// The files that the VM of `cgroup` is made of, shared with those VMs with which it may share memory.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(super) async fn vm_files(&self, role: Role, cgroup: &Cgroup) -> Result<VmFiles, Refusal> {
        let mut files = vm_files(&self.guest, role);
        let Some(owner) = self.owner() else {
            return Ok(files);
        };
        let (store, cgroup) = (self.store(), cgroup.birth()?);
        step_off_thread(move || {
            for path in [&mut files.kernel, &mut files.initramfs] {
                let failed = |source| TaskVmError::Step {
                    action: "open the guest's kernel and initramfs",
                    source,
                };
                let copy = match store.installed(path, &owner).map_err(failed)? {
                    Some(copy) => copy,
                    None => own_copy(&File::open(&path).map_err(failed)?, &cgroup)?,
                };
                *path = format!("/proc/self/fd/{}", copy.as_raw_fd()).into();
                files.held.push(Arc::new(copy));
            }
            Ok::<_, Refusal>(files)
        })
        .await
    }

    /// The owner of the artifacts, where not all tasks of the host share them.
    fn owner(&self) -> Option<String> {
        (self.config.sharing != Sharing::Host).then(|| self.tenant.clone())
    }

    async fn key(&self, sha256: [u8; 32], cpu: &str) -> Result<ArtifactKey, Refusal> {
        let (compiler, owner) = (self.guest.compiler.clone(), self.owner());
        let cpu = cpu.to_owned();
        step_off_thread(move || ArtifactKey::new(&sha256, &compiler, &cpu, owner.as_deref())).await
    }

    async fn find(&self, key: &ArtifactKey) -> Result<Option<File>, Refusal> {
        let (store, key) = (self.store(), key.clone());
        step_off_thread(move || store.find(&key)).await
    }

    fn store(&self) -> Store {
        let shelf = |path, mib: u64| CacheDir {
            path,
            bytes_max: mib << 20,
        };
        let (config, shared) = (&self.config, Path::new(STATE_ROOT).join("artifacts"));
        let shares = config.sharing != Sharing::None;
        Store::new(
            shares.then(|| shelf(shared, config.artifact_memory_mib_max)),
            shelf(config.artifact_dir.clone(), config.artifact_dir_mib_max),
        )
    }

    async fn compile_in_turn(
        &self,
        wanted: Wanted<'_>,
        key: ArtifactKey,
    ) -> Result<Artifact, Refusal> {
        let _alone = self.compiling.lock().await;
        let turns = CompileQueue::new(
            Path::new(STATE_ROOT).join("compile"),
            self.config.compilers_max,
        );
        let mut follows_strangers = true;
        loop {
            let next = turns.next(&self.tenant, &key, follows_strangers).await?;
            if let Some(file) = self.find(&key).await? {
                return Ok(Artifact { key, file });
            }
            match next {
                Next::Turn(turn) => return self.compile(wanted, key, turn).await,
                Next::Followed { stranger } => follows_strangers &= !stranger,
            }
        }
    }

    /// Compiles a sealed copy of the program, and keeps the result under the digest of that copy. All data
    /// of the program's size is charged to the compiler's cgroup. From the copy on nothing of the task is held, so a
    /// container's compile may be left to its pod.
    async fn compile(
        &self,
        wanted: Wanted<'_>,
        looked_up: ArtifactKey,
        turn: Turn,
    ) -> Result<Artifact, Refusal> {
        let program = wanted.program;
        let (path, bytes, kind) = (&program.path, program.bytes, program.kind);
        tracing::info!(?path, bytes, ?kind, "a program is compiled");
        let cgroup = self.make_cgroup(wanted.journal).await?;
        let turn = Arc::new(turn);
        let prepared = self
            .prepare(cgroup.cgroup(), wanted, looked_up, turn.clone())
            .await;
        let work = async move {
            let compiled = match prepared {
                Ok(prepared) => prepared.finish().await,
                Err(error) => Err(error),
            };
            let removed = cgroup.remove().await;
            drop(turn);
            let artifact = compiled?;
            removed?;
            Ok(artifact)
        };
        match &self.pod {
            Some(pod) => pod.keep_at(work).await,
            None => work.await,
        }
    }

    async fn make_cgroup(&self, journal: &Journal) -> Result<CompilerCgroup, Refusal> {
        let (journal, owner, number) = match &self.pod {
            Some(pod) => (pod.journal(), pod.id(), pod.next_compiler()),
            None => {
                let number = self.compilers.fetch_add(1, Ordering::Relaxed);
                (journal, &*self.id, number)
            }
        };
        let part = journal.part(&number.to_string())?;
        let memory = Limit::At(u64::from(COMPILER_MEMORY_MIB) << 20);
        let limits = Resources {
            memory: Some(memory),
            // No swap.
            memory_swap: Some(memory),
            ..Resources::default()
        };
        let inner = compiler_cgroup_path(&self.namespace, owner, number);
        step_off_thread(move || CompilerCgroup::make(&inner, &limits, part)).await
    }

    /// Copies the program; what was looked up by a digest that is wrong by now may be in the store after all.
    async fn prepare(
        &self,
        cgroup: &Cgroup,
        wanted: Wanted<'_>,
        looked_up: ArtifactKey,
        turn: Arc<Turn>,
    ) -> Result<Prepared, Refusal> {
        let program = wanted.program;
        let compile_limit = self.config.compile_timeout();
        let birth: Birth = cgroup.birth()?;
        let source = program.clone();
        // The copy is made under the turn even when the request is dropped meanwhile.
        let module = step_off_thread(move || {
            let sealed = source.seal(&birth, compile_limit);
            drop(turn);
            sealed
        })
        .await?;
        let key = self.key(module.sha256, wanted.cpu).await?;
        if key != looked_up {
            tracing::warn!(path = %program.path.display(), "the program was changed while it was read");
            if let Some(file) = self.find(&key).await? {
                return Ok(Prepared::Found(Artifact { key, file }));
            }
        }
        let wanted = Compile {
            name: format!("{} (compiler)", self.id),
            files: self.vm_files(Role::Compiler, cgroup).await?,
            cpu: wanted.cpu.to_owned(),
            cgroup: cgroup.birth()?,
            path: program.path.clone(),
            module,
            boot_limit: self.config.boot_timeout(),
            compile_limit,
            console: self.config.console,
        };
        Ok(Prepared::Wanted(Box::new(wanted), self.store(), key))
    }
}

/// The state of a compile once the program is copied.
enum Prepared {
    /// The artifact is in the store.
    Found(Artifact),
    /// The artifact is still to be made, and kept in this store under this key.
    Wanted(Box<Compile>, Store, ArtifactKey),
}

impl Prepared {
    async fn finish(self) -> Result<Artifact, Refusal> {
        let (wanted, store, key) = match self {
            Self::Found(artifact) => return Ok(artifact),
            Self::Wanted(wanted, store, key) => (wanted, store, key),
        };
        let compiled = compile(*wanted).await?;
        let kept = key.clone();
        let file = step_off_thread(move || store.insert(&kept, &compiled)).await?;
        Ok(Artifact { key, file })
    }
}

fn own_copy(file: &File, cgroup: &Birth) -> Result<File, TaskVmError> {
    private_copy(file, cgroup).map_err(|source| TaskVmError::Step {
        action: "make the VM's own copy of a file, as sharing = \"none\" wants",
        source,
    })
}

/// The tenant of a task: containerd's namespace, and below it the pod's where the task is part of a pod.
fn tenant(namespace: &str, pod_namespace: Option<&String>) -> String {
    match pod_namespace {
        Some(pod) => format!("{namespace}/{pod}"),
        None => namespace.to_owned(),
    }
}

fn vm_files(guest: &GuestFiles, role: Role) -> VmFiles {
    VmFiles {
        vmm: guest.vmm.clone(),
        kernel: guest.kernel.clone(),
        initramfs: match role {
            Role::Task => guest.agent.clone(),
            Role::Compiler => guest.compiler.clone(),
        },
        held: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_a_pods_namespace_or_containerds() {
        assert_eq!(tenant("default", None), "default");
        let pod = "shop".to_owned();
        assert_eq!(tenant("k8s.io", Some(&pod)), "k8s.io/shop");
    }
}
