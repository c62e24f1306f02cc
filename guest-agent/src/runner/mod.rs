//! The process of one instance.
//!
//! ```text
//! read the program ─► map its slot ─► chroot, drop privileges ─► load, link ─► report ─► wait for Start ─► run
//! ```
//!
//! Everything that needs root happens before the first byte of the artifact is looked at. One thread:
//! the program runs on a fibre of a current-thread runtime, so that waiting for a clock and for input
//! at once works, and blocking calls simply block.
//!
//! A module cannot hear signals, so the default actions end it: SIGTERM is 143 however busy it is.

mod batch;
mod component;
mod core;
mod descriptors;
mod failure;
mod fd_write;
mod limits;
mod privileges;
mod stdio;
mod wasi;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use wasmtime::{Engine, Store};
use wasmvm_protocol::agent::{ModuleKind, Program};
use wasmvm_protocol::slot::SlotKind;

use crate::engine::runner_config;
use crate::log::{self, Level};
use crate::report::Report;
use crate::slot::SlotContent;
use crate::spawn::{self, REPORT_FD, SLOT_FD, START_FD, WORK_FD};
use crate::work::MemoryLimit;

use self::failure::LoadError;
use self::limits::Limits;
use self::wasi::State;

/// Status of a process that a trap ended: 128 + SIGABRT, as `wasmtime run`'s.
pub const TRAPPED: i32 = 134;
/// Status of a runner that could not do its work; PID 1 has the sentence.
const UNLOADED: i32 = 1;

/// A program, linked to WASI.
enum Loaded {
    Core(core::CoreProgram),
    Component(component::ComponentProgram),
}

/// The arguments and descriptors that the parent passed.
struct Inherited {
    slots: OwnedFd,
    slot_address: u64,
    root: String,
    work: File,
    report: File,
    start: File,
}

/// An argument or a descriptor that the parent did not pass.
#[derive(Debug, thiserror::Error)]
#[error("a runner is started by the agent alone; this one was started without {0}")]
struct NotPassed(String);

/// The mode `runner SLOT_ADDRESS ROOT`; the descriptors are [`spawn`]'s.
#[must_use]
pub fn main(args: impl Iterator<Item = String>) -> i32 {
    let inherited = match Inherited::take(args) {
        Ok(inherited) => inherited,
        Err(error) => {
            log::line(Level::Error, &error.to_string());
            return 2;
        }
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
    else {
        return UNLOADED;
    };
    runtime.block_on(run(inherited))
}

async fn run(inherited: Inherited) -> i32 {
    let Inherited {
        slots,
        slot_address,
        root,
        work,
        report,
        mut start,
    } = inherited;
    let loaded = read_work(work).and_then(|(program, limit)| {
        let slot = map_slot(slots, slot_address)?;
        wasi::seed_random();
        privileges::drop_to(&program, &root)?;
        let kind = kind_of(&slot)?;
        let (store, loaded) = load(&program, limit, &slot)?;
        Ok((program, kind, store, loaded))
    });
    let (program, kind, store, loaded) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            let _ = error.report().send(report);
            return UNLOADED;
        }
    };
    let mut go = [0];
    if Report::Ready(kind).send(report).is_err() || start.read_exact(&mut go).is_err() {
        return UNLOADED;
    }
    drop(start);
    let name = program.args.first().map_or("", String::as_str);
    let ended = match loaded {
        Loaded::Core(core) => core.run(store).await,
        Loaded::Component(component) => component.run(store).await,
    };
    failure::status(name, ended)
}

impl Inherited {
    fn take(mut args: impl Iterator<Item = String>) -> Result<Self, NotPassed> {
        let absent = |what: &str| NotPassed(what.to_owned());
        let address = args.next().and_then(|text| text.parse().ok());
        let descriptor = |number, what| {
            spawn::take(number).map_err(|_| NotPassed(format!("descriptor {number}, {what}")))
        };
        Ok(Self {
            slot_address: address.ok_or_else(|| absent("the address of its slot"))?,
            root: args.next().ok_or_else(|| absent("the root of its tree"))?,
            slots: descriptor(SLOT_FD, "the slots' device")?,
            work: descriptor(WORK_FD, "its program")?.into(),
            report: descriptor(REPORT_FD, "the report pipe")?.into(),
            start: descriptor(START_FD, "the start pipe")?.into(),
        })
    }
}

fn read_work(file: File) -> Result<(Program, MemoryLimit), LoadError> {
    MemoryLimit::open(file).map_err(|error| LoadError::System("read the program", error))
}

/// Maps the artifact; the device is closed for good.
fn map_slot(slots: OwnedFd, address: u64) -> Result<SlotContent, LoadError> {
    SlotContent::map(slots, address, true).map_err(LoadError::Slot)
}

fn kind_of(slot: &SlotContent) -> Result<ModuleKind, LoadError> {
    match slot.header.kind {
        SlotKind::CoreArtifact => Ok(ModuleKind::MODULE_KIND_CORE),
        SlotKind::ComponentArtifact => Ok(ModuleKind::MODULE_KIND_COMPONENT),
        SlotKind::Wasm => Err(LoadError::NotCompiled),
    }
}

fn load(
    program: &Program,
    limit: MemoryLimit,
    slot: &SlotContent,
) -> Result<(Store<State>, Loaded), LoadError> {
    let engine = runner_config()
        .and_then(|config| Engine::new(&config))
        .map_err(LoadError::Engine)?;
    let component = slot.header.kind == SlotKind::ComponentArtifact;
    let limits = Limits::new(limit)?;
    let loaded = if component {
        Loaded::Component(component::ComponentProgram::load(&engine, slot, &limits)?)
    } else {
        Loaded::Core(core::CoreProgram::load(
            &engine,
            slot,
            &program.function,
            &limits,
        )?)
    };
    let state = State::new(program, limits, component)?;
    let mut store = Store::new(&engine, state);
    store.limiter(State::limits);
    Ok((store, loaded))
}
