//! From a program to its artifact: out of the store, or compiled now.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use wasmvm_protocol::control::Role;

use super::{SandboxError, off_thread};
use crate::artifact::compile::{COMPILER_MEMORY_MIB, Compile, compile};
use crate::artifact::{ArtifactKey, Shelf, Store, Turns};
use crate::bundle::{Limit, Resources};
use crate::cgroup::{Cgroup, Hierarchies, Place};
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
        let store = self.store();
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

    fn store(&self) -> Store {
        let shelf = |path, mib: u64| Shelf {
            path,
            bytes_max: mib << 20,
        };
        let (config, shared) = (&self.config, Path::new(STATE_ROOT).join("artifacts"));
        Store::new(
            shelf(shared, config.artifact_memory_mib_max),
            shelf(config.artifact_dir.clone(), config.artifact_dir_mib_max),
        )
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
        let limit = self.config.compile_timeout();
        let turns = Turns::new(
            Path::new(STATE_ROOT).join("compile"),
            self.config.compilers_max,
        );
        let _key_turn = turns.of_key(key, limit).await?;
        let (looked, wanted) = (store.clone(), key.clone());
        if let Some(file) = off_thread(move || looked.find(&wanted)).await? {
            return Ok(file);
        }
        let _compiler_turn = turns.of_compiler(limit).await?;
        let name = match self.compilers.fetch_add(1, Ordering::Relaxed) {
            0 => format!("{namespace}-{id}"),
            n => format!("{namespace}-{id}.{n}"),
        };
        let place = Hierarchies::find()?.place(&Path::new("wasmvm-compile").join(name));
        let limits = Resources {
            memory: Some(Limit::At(u64::from(COMPILER_MEMORY_MIB) << 20)),
            ..Resources::default()
        };
        let compiled = compile(Compile {
            name: format!("{id} (compiler)"),
            files,
            cgroup: make_cgroup(&place, &limits, journal)?.birth()?,
            program,
            boot_limit: self.config.boot_timeout(),
            compile_limit: limit,
            console: self.config.console,
        })
        .await;
        let removed = off_thread(move || place.remove(cleanup::KILL_MAX)).await;
        let compiled = compiled?;
        let (store, key) = (store.clone(), key.clone());
        let file = off_thread(move || store.insert(&key, &compiled)).await?;
        removed?;
        Ok(file)
    }
}

/// Makes a cgroup, written down before.
pub(super) fn make_cgroup(
    place: &Place,
    limits: &Resources,
    journal: &Journal,
) -> Result<Cgroup, SandboxError> {
    place.claim()?;
    for path in place.paths() {
        journal.record(&Step::Cgroup {
            path: path.to_owned(),
        })?;
    }
    Ok(Cgroup::create(place, limits)?)
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
