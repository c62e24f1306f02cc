//! From a program to its artifact: out of the store, or compiled now.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use wasmvm_protocol::control::Role;

use super::{SandboxError, off_thread};
use crate::artifact::compile::{COMPILER_MEMORY_MIB, Compile, compile};
use crate::artifact::{ArtifactKey, Store};
use crate::cgroup::{self, Cgroup, CgroupLimits, mounted_root};
use crate::cleanup;
use crate::config::{Config, GuestFiles};
use crate::journal::{Journal, STATE_ROOT, Step};
use crate::program::Program;
use crate::vm::launch::VmFiles;

/// A program as VMs map it.
#[derive(Debug)]
pub struct Artifact {
    /// Names it, and with it its slot.
    pub key: ArtifactKey,
    /// Read-only.
    pub file: File,
}

/// Resolves the programs of one task: init's and those of its execs.
#[derive(Debug)]
pub struct Resolver {
    pub namespace: String,
    pub id: String,
    pub config: Config,
    pub guest: GuestFiles,
    /// Compiler VMs so far: two execs may compile at the same time.
    compilers: AtomicU32,
}

impl Resolver {
    pub fn new(namespace: &str, id: &str, config: &Config, guest: GuestFiles) -> Self {
        Self {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            config: config.clone(),
            guest,
            compilers: AtomicU32::new(0),
        }
    }

    /// The artifact of a program. When the future is dropped the compiler VM ends with it.
    ///
    /// # Errors
    /// [`SandboxError`]
    pub async fn resolve(
        &self,
        program: &Program,
        journal: &Journal,
    ) -> Result<Artifact, SandboxError> {
        let store = Store::new(
            Path::new(STATE_ROOT).join("artifacts"),
            self.config.artifact_dir.clone(),
        );
        let files = vm_files(&self.guest, Role::Compiler);
        let (looked, sha256, compiler) = (store.clone(), program.sha256, files.initramfs.clone());
        let (key, found) = off_thread(move || {
            let key = ArtifactKey::new(&sha256, &compiler)?;
            let found = looked.find(&key)?;
            Ok::<_, SandboxError>((key, found))
        })
        .await?;
        let file = match found {
            Some(file) => file,
            None => self.compile(program, files, journal, &store, &key).await?,
        };
        Ok(Artifact { key, file })
    }

    async fn compile(
        &self,
        program: &Program,
        files: VmFiles,
        journal: &Journal,
        store: &Store,
        key: &ArtifactKey,
    ) -> Result<File, SandboxError> {
        let Self { namespace, id, .. } = self;
        let name = match self.compilers.fetch_add(1, Ordering::Relaxed) {
            0 => format!("{namespace}-{id}"),
            n => format!("{namespace}-{id}.{n}"),
        };
        let path = mounted_root()?.join("wasmvm-compile").join(name);
        let limits = CgroupLimits {
            memory_bytes_max: Some(u64::from(COMPILER_MEMORY_MIB) << 20),
            ..CgroupLimits::default()
        };
        let compiled = compile(Compile {
            name: format!("{id} (compiler)"),
            files,
            cgroup: make_cgroup(&path, &limits, journal)?,
            program,
            boot_limit: self.config.boot_timeout(),
            compile_limit: self.config.compile_timeout(),
            console: self.config.console,
        })
        .await;
        let removed = off_thread(move || cgroup::remove(&path, cleanup::KILL_MAX)).await;
        let compiled = compiled?;
        let (store, key) = (store.clone(), key.clone());
        let file = off_thread(move || store.insert(&key, &compiled)).await?;
        removed?;
        Ok(file)
    }
}

/// Makes a cgroup, written down before; returns its directory.
pub(super) fn make_cgroup(
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

pub(super) fn vm_files(guest: &GuestFiles, role: Role) -> VmFiles {
    VmFiles {
        vmm: guest.vmm.clone(),
        kernel: guest.kernel.clone(),
        initramfs: match role {
            Role::Task => guest.agent.clone(),
            Role::Compiler => guest.compiler.clone(),
        },
    }
}
