//! Components: the world `wasi:cli/command` of preview 2.

use wasmtime::component::{Component, Linker};
use wasmtime::{Engine, Store};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p2::{self, bindings::CommandPre};

use crate::slot::SlotContent;

use super::failure::LoadError;
use super::limits::Limits;
use super::wasi::State;

/// The export that makes a component a command, without its version.
const ENTRY: &str = "wasi:cli/run";

/// Worlds that are told apart by what they export (without versions), and their names.
const KNOWN_WORLDS: [(&str, &str); 3] = [
    ("wasi:http/incoming-handler", "wasi:http/proxy"),
    ("wasi:http/handler", "wasi:http/service"),
    ("wasi:messaging/messaging-guest", "wasi:messaging"),
];

/// A component, linked to WASI.
pub(super) struct ComponentProgram {
    linked: CommandPre<State>,
}

impl ComponentProgram {
    /// Takes the artifact from the slot and links the component.
    ///
    /// # Errors
    /// [`LoadError`], one sentence for the component's author.
    pub(super) fn load(
        engine: &Engine,
        slot: &SlotContent,
        limits: &Limits,
    ) -> Result<Self, LoadError> {
        let component = slot.component(engine).map_err(LoadError::Artifact)?;
        check_entry(engine, &component)?;
        let pages = component
            .resources_required()
            .and_then(|resources| resources.max_initial_memory_size);
        limits.check_initial(pages)?;
        let mut linker = Linker::new(engine);
        p2::add_to_linker_async(&mut linker).map_err(LoadError::Engine)?;
        let linked = linker
            .instantiate_pre(&component)
            .map_err(|error| link_error(engine, &component, error))?;
        let linked = CommandPre::new(linked).map_err(LoadError::Link)?;
        Ok(Self { linked })
    }

    /// Runs the component to its end.
    ///
    /// # Errors
    /// A trap, or [`I32Exit`] for `wasi:cli/exit` and for a run that returns an error.
    pub(super) async fn run(self, mut store: Store<State>) -> wasmtime::Result<()> {
        let command = self.linked.instantiate_async(&mut store).await?;
        match command.wasi_cli_run().call_run(&mut store).await? {
            Ok(()) => Ok(()),
            Err(()) => Err(I32Exit(1).into()),
        }
    }
}

/// The linker's error, or our own sentence when an import is missing as a whole.
fn link_error(engine: &Engine, component: &Component, error: wasmtime::Error) -> LoadError {
    let text = error.to_string();
    let ty = component.component_type();
    let missing = ty
        .imports(engine)
        .map(|(name, _)| name)
        .find(|name| text.contains(&format!("`{name}`")) && text.contains("not found"));
    match missing {
        Some(name) => LoadError::Import {
            what: "component",
            name: name.to_owned(),
        },
        None => LoadError::Link(error),
    }
}

fn check_entry(engine: &Engine, component: &Component) -> Result<(), LoadError> {
    let ty = component.component_type();
    let exports: Vec<&str> = ty.exports(engine).map(|(name, _)| name).collect();
    let plain = |name: &'static str| move |export: &&str| export.split('@').next() == Some(name);
    if exports.iter().any(|export| plain(ENTRY)(export)) {
        return Ok(());
    }
    for (export, world) in KNOWN_WORLDS {
        if exports.iter().any(|name| plain(export)(name)) {
            return Err(LoadError::NoRun(format!(
                ": it looks like {world}, which wasmvm does not offer"
            )));
        }
    }
    Err(LoadError::NoRun(match exports.as_slice() {
        [] => ": it exports nothing".to_owned(),
        some => format!(": it exports {}", some.join(", ")),
    }))
}
