//! Core modules: WASI preview 1 commands (and their predecessor `wasi_unstable`).

use wasmtime::{Engine, ExternType, InstancePre, Linker, Module, Store, UnknownImportError};
use wasmtime_wasi::{I32Exit, p0, p1};

use crate::slot::SlotContent;

use super::failure::LoadError;
use super::limits::Limits;
use super::wasi::State;

/// The export that makes a module a command (WASI `legacy/application-abi.md`).
const COMMAND: &str = "_start";
/// The entry of a module whose toolchain takes the default export for it.
const DEFAULT: &str = "";
/// The function that is called before anything else of a module that exports it.
const INITIALIZE: &str = "_initialize";
/// Most functions of a module that are named where another one is missed.
const EXPORTS_NAMED_MAX: usize = 10;

/// A core module, linked to WASI.
pub(super) struct CoreProgram {
    linked: InstancePre<State>,
    /// The functions that are called, in this order.
    calls: Vec<String>,
}

impl CoreProgram {
    /// Takes the artifact from the slot and links the module. `function` is the export to call; empty: the entry of
    /// a command.
    ///
    /// # Errors
    /// [`LoadError`], one sentence for the module's author.
    pub(super) fn load(
        engine: &Engine,
        slot: &SlotContent,
        function: &str,
        limits: &Limits,
    ) -> Result<Self, LoadError> {
        let module = slot.module(engine).map_err(LoadError::Artifact)?;
        let linker = linker(engine).map_err(LoadError::Engine)?;
        let calls = calls(&module, function)?;
        limits.check_initial(module.resources_required().max_initial_memory_size)?;
        let linked = linker.instantiate_pre(&module).map_err(link_error)?;
        Ok(Self { linked, calls })
    }

    /// Runs the module to its end.
    ///
    /// # Errors
    /// A trap, or [`I32Exit`] for `proc_exit`.
    pub(super) async fn run(self, mut store: Store<State>) -> wasmtime::Result<()> {
        let instance = self.linked.instantiate_async(&mut store).await?;
        for name in &self.calls {
            let function = instance.get_typed_func::<(), ()>(&mut store, name)?;
            function.call_async(&mut store, ()).await?;
        }
        Ok(())
    }
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    p0::add_to_linker_async(&mut linker, State::p1)?;
    p1::add_to_linker_async(&mut linker, State::p1)?;
    linker.allow_shadowing(true);
    super::fd_write::add_to_linker(&mut linker)?;
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

/// The exports that make up a run of the module.
fn calls(module: &Module, function: &str) -> Result<Vec<String>, LoadError> {
    let entry = if function.is_empty() {
        command_entry(module)?
    } else {
        is_callable(module, function)?
            .then_some(function)
            .ok_or_else(|| no_function(module, function))?
    };
    let mut calls = Vec::new();
    if entry != INITIALIZE && is_callable(module, INITIALIZE)? {
        calls.push(INITIALIZE.to_owned());
    }
    calls.push(entry.to_owned());
    Ok(calls)
}

fn command_entry(module: &Module) -> Result<&'static str, LoadError> {
    for name in [COMMAND, DEFAULT] {
        if is_callable(module, name)? {
            return Ok(name);
        }
    }
    Err(LoadError::NoStart(
        if module.get_export(INITIALIZE).is_some() {
            " (it exports `_initialize`: it is a reactor, a library for other programs; to call one of its \
             functions, name it behind the file, as in `app.wasm#function`)"
        } else {
            ""
        },
    ))
}

/// Whether the module exports a function of this name; it must be one that can be called with nothing.
fn is_callable(module: &Module, name: &str) -> Result<bool, LoadError> {
    match module.get_export(name) {
        Some(ExternType::Func(ty)) if ty.params().len() + ty.results().len() == 0 => Ok(true),
        Some(ExternType::Func(ty)) => Err(LoadError::Signature {
            function: name.to_owned(),
            params: ty.params().len(),
            results: ty.results().len(),
        }),
        _ => Ok(false),
    }
}

fn no_function(module: &Module, function: &str) -> LoadError {
    let functions = module
        .exports()
        .filter(|export| matches!(export.ty(), ExternType::Func(_)));
    let names: Vec<_> = functions
        .map(|export| format!("`{}`", export.name()))
        .take(EXPORTS_NAMED_MAX)
        .collect();
    LoadError::NoFunction {
        function: function.to_owned(),
        exports: names.join(", "),
    }
}
