//! Core modules: WASI preview 1 commands (and their predecessor `wasi_unstable`).

use wasmtime::{Engine, ExternType, InstancePre, Linker, Module, Store, UnknownImportError};
use wasmtime_wasi::{I32Exit, p0, p1};

use crate::slot::SlotContent;

use super::failure::LoadError;
use super::limits::Limits;
use super::wasi::State;

/// What a command exports (WASI `legacy/application-abi.md`).
const ENTRY: &str = "_start";

/// A linked core module.
pub struct CoreProgram {
    linked: InstancePre<State>,
}

impl CoreProgram {
    /// Takes the artifact from the slot and links it.
    ///
    /// # Errors
    /// [`LoadError`], one sentence for the module's author.
    pub fn load(engine: &Engine, slot: &SlotContent, limits: &Limits) -> Result<Self, LoadError> {
        // SAFETY: the content was made by this version's compiler in a VM of its own and is mapped,
        // unchanging, as long as the process lives.
        let module = unsafe { Module::deserialize_raw(engine, slot.memory()) }
            .map_err(LoadError::Artifact)?;
        let linker = linker(engine).map_err(LoadError::Engine)?;
        check_entry(&module)?;
        limits.check_initial(module.resources_required().max_initial_memory_size)?;
        let linked = linker.instantiate_pre(&module).map_err(link_error)?;
        Ok(Self { linked })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// A trap, or [`I32Exit`] for `proc_exit`.
    pub async fn run(self, mut store: Store<State>) -> wasmtime::Result<()> {
        let instance = self.linked.instantiate_async(&mut store).await?;
        let entry = instance.get_typed_func::<(), ()>(&mut store, ENTRY)?;
        entry.call_async(&mut store, ()).await
    }
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    p0::add_to_linker_async(&mut linker, State::p1)?;
    p1::add_to_linker_async(&mut linker, State::p1)?;
    linker.allow_shadowing(true);
    super::batch::add_to_linker(&mut linker)?;
    for module in ["wasi_snapshot_preview1", "wasi_unstable"] {
        // wasmtime-wasi's own traps on codes above 125; a program may end with any.
        linker.func_wrap(module, "proc_exit", |code: i32| -> wasmtime::Result<()> {
            Err(I32Exit(code).into())
        })?;
    }
    Ok(linker)
}

/// The linker's error, or our own sentence when something is missing.
fn link_error(error: wasmtime::Error) -> LoadError {
    match error.downcast_ref::<UnknownImportError>() {
        Some(missing) => LoadError::Import {
            what: "module",
            name: format!("{}::{}", missing.module(), missing.name()),
        },
        None => LoadError::Link(error),
    }
}

fn check_entry(module: &Module) -> Result<(), LoadError> {
    match module.get_export(ENTRY) {
        Some(ExternType::Func(_)) => Ok(()),
        _ if module.get_export("_initialize").is_some() => Err(LoadError::NoStart(
            " (it exports `_initialize`: it is a reactor, a library for other programs)",
        )),
        _ => Err(LoadError::NoStart("")),
    }
}
