//! Compiling the module in the slot, in a process of its own, and delivering the artifact.
//!
//! ```text
//! Compile() ─► `compile` process: slot ─► artifact (memfd) ─► report ─► answer {kind, bytes}
//! ARTIFACT_PORT ─► one connection gets the artifact's bytes, then end of file
//! ```
//!
//! The module is hostile: a crash or a want of memory ends the child, and PID 1 has a sentence to say.
//! Time is bounded by the shim, memory by the VM.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use rustix::fs::MemfdFlags;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;
use ttrpc::r#async::TtrpcContext;
use wasmtime::Engine;
use wasmvm_protocol::agent::{CompileRequest, CompileResponse, Compiler, ModuleKind};
use wasmvm_protocol::error_chain;
use wasmvm_protocol::slot::{SLOT_CONTENT_BYTES_MAX, SlotKind};

use crate::engine::engine_config;
use crate::error::AgentError;
use crate::log::{self, Level};
use crate::report::Report;
use crate::slot::{SlotContent, SlotError};
use crate::spawn::{self, COMPILE_MODE, REPORT_FD, SLOT_FD, WORK_FD, reap};
use crate::streams::accept;
use crate::supervisor::pipe;

/// Bytes per write of the delivery.
const DELIVERY_BYTES: usize = 64 << 10;

/// Why there is no artifact.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The slot cannot be read.
    #[error("the compiler finds no module")]
    Slot(#[source] SlotError),
    /// Something else lies in the slot.
    #[error("the slot holds an artifact, not a module")]
    NotWasm,
    /// The compiler does not start.
    #[error("the compiler does not start: {0:#}")]
    Engine(wasmtime::Error),
    /// Not a module at all.
    #[error("the program is not WebAssembly: {0}")]
    Format(&'static str),
    /// Not a valid one.
    #[error("the program is not valid WebAssembly: {0:#}")]
    Invalid(wasmtime::Error),
    /// More than a slot holds.
    #[error("the compiled program has {0} bytes; the limit is {SLOT_CONTENT_BYTES_MAX}")]
    TooLong(usize),
    /// The artifact cannot be kept.
    #[error("the compiled program cannot be kept")]
    Write(#[source] io::Error),
}

impl CompileError {
    fn report(&self) -> Report {
        match self {
            Self::Format(_) | Self::Invalid(_) | Self::TooLong(_) => {
                Report::Refused(self.to_string())
            }
            Self::Slot(_) | Self::NotWasm | Self::Engine(_) | Self::Write(_) => {
                Report::Failed(error_chain(self))
            }
        }
    }
}

/// The mode `compile SLOT_OFFSET`; the descriptors are [`spawn`]'s.
#[must_use]
pub fn main(mut args: impl Iterator<Item = String>) -> i32 {
    let Some(offset) = args.next().and_then(|text| text.parse().ok()) else {
        log::line(Level::Error, "usage: compile SLOT_OFFSET");
        return 2;
    };
    let [Ok(slot), Ok(artifact), Ok(report)] = [SLOT_FD, WORK_FD, REPORT_FD].map(spawn::take)
    else {
        log::line(Level::Error, "compile: its descriptors are not there");
        return 2;
    };
    let answer = match compile_slot(slot, offset, File::from(artifact)) {
        Ok(kind) => Report::Ready(kind),
        Err(error) => error.report(),
    };
    i32::from(answer.send(File::from(report)).is_err())
}

fn compile_slot(slot: OwnedFd, offset: u64, mut out: File) -> Result<ModuleKind, CompileError> {
    let slot = SlotContent::map(slot, offset, false).map_err(CompileError::Slot)?;
    if slot.header.kind != SlotKind::Wasm {
        return Err(CompileError::NotWasm);
    }
    let (kind, artifact) = compile(slot.bytes())?;
    if artifact.len() as u64 > SLOT_CONTENT_BYTES_MAX {
        return Err(CompileError::TooLong(artifact.len()));
    }
    out.write_all(&artifact).map_err(CompileError::Write)?;
    Ok(kind)
}

/// Compiles a module or a component for this processor.
///
/// # Errors
/// [`CompileError`], one sentence for the module's author.
pub fn compile(wasm: &[u8]) -> Result<(ModuleKind, Vec<u8>), CompileError> {
    let kind = kind_of(wasm)?;
    let engine = engine_config()
        .and_then(|config| Engine::new(&config))
        .map_err(CompileError::Engine)?;
    let artifact = match kind {
        ModuleKind::MODULE_KIND_COMPONENT => engine.precompile_component(wasm),
        _ => engine.precompile_module(wasm),
    };
    Ok((kind, artifact.map_err(CompileError::Invalid)?))
}

/// The first eight bytes decide (core specification 5.5.16, component model `Binary.md`).
fn kind_of(wasm: &[u8]) -> Result<ModuleKind, CompileError> {
    let format = CompileError::Format;
    match wasm.get(..8) {
        Some(b"\0asm\x01\0\0\0") => Ok(ModuleKind::MODULE_KIND_CORE),
        Some(b"\0asm\x0d\0\x01\0") => Ok(ModuleKind::MODULE_KIND_COMPONENT),
        Some([b'\0', b'a', b's', b'm', ..]) => Err(format("it has an unknown version")),
        _ if wasm.is_empty() => Err(format("it is empty")),
        _ if wasm.starts_with(b"\x7fELF") => Err(format("it is an ELF file")),
        _ if wasm.starts_with(b"#!") => Err(format("it is a script")),
        _ if b"\0asm".starts_with(wasm) || wasm.starts_with(b"\0asm") => {
            Err(format("it ends within its header"))
        }
        _ => Err(format("it does not begin with `\\0asm`")),
    }
}

/// The ttrpc service of the compiler VM.
#[derive(Debug)]
pub struct CompilerService {
    exe: PathBuf,
    slot: OwnedFd,
    slot_offset: u64,
    artifacts: Arc<Mutex<AsyncFd<OwnedFd>>>,
}

impl CompilerService {
    /// Compiles what lies in `slot`; `artifacts` listens on the artifact port.
    #[must_use]
    pub fn new(exe: PathBuf, slot: OwnedFd, slot_offset: u64, artifacts: AsyncFd<OwnedFd>) -> Self {
        Self {
            exe,
            slot,
            slot_offset,
            artifacts: Arc::new(Mutex::new(artifacts)),
        }
    }

    /// Runs one compile; the artifact in a file of memory.
    async fn run(&self) -> Result<(ModuleKind, File), AgentError> {
        let prepare = |error| AgentError::System("prepare the compiler", error);
        let artifact = rustix::fs::memfd_create("artifact", MemfdFlags::CLOEXEC)
            .map_err(|errno| prepare(errno.into()))?;
        let passed_artifact = artifact.try_clone().map_err(prepare)?;
        let (report, report_end) = pipe().map_err(prepare)?;
        let stdio = || io::stderr().as_fd().try_clone_to_owned().map_err(prepare);
        let child = spawn::spawn(spawn::Start {
            exe: &self.exe,
            mode: COMPILE_MODE,
            args: &[self.slot_offset.to_string()],
            stdio: [stdio()?, stdio()?, stdio()?],
            passed: vec![
                self.slot.try_clone().map_err(prepare)?,
                passed_artifact,
                report_end,
            ],
            terminal: false,
        })?;
        let answer = Report::receive(report)
            .await
            .map_err(|error| AgentError::System("read the report", error))?;
        let process = child.watch().map_err(prepare)?;
        let end = reap(&process).await.map_err(prepare)?;
        match answer {
            Some(Report::Ready(kind)) => Ok((kind, artifact.into())),
            Some(Report::Refused(text)) => Err(AgentError::Refused(text)),
            Some(Report::Failed(text)) => Err(AgentError::Failed(text)),
            None => Err(AgentError::silent(COMPILE_MODE, end)),
        }
    }
}

#[async_trait]
impl Compiler for CompilerService {
    async fn compile(
        &self,
        _ctx: &TtrpcContext,
        _request: CompileRequest,
    ) -> ttrpc::Result<CompileResponse> {
        let (kind, artifact) = self.run().await?;
        let bytes = artifact
            .metadata()
            .map_err(|error| AgentError::System("measure the artifact", error))?
            .len();
        let listener = Arc::clone(&self.artifacts);
        tokio::spawn(async move {
            if let Err(error) = deliver(&listener, artifact).await {
                log::line(Level::Error, &format!("artifact not delivered: {error}"));
            }
        });
        let mut response = CompileResponse::new();
        response.kind = kind.into();
        response.bytes = bytes;
        Ok(response)
    }
}

/// Writes the whole artifact into the next connection.
async fn deliver(listener: &Mutex<AsyncFd<OwnedFd>>, artifact: File) -> io::Result<()> {
    let socket = accept(&*listener.lock().await).await?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    tokio::task::spawn_blocking(move || copy(&artifact, File::from(socket))).await?
}

fn copy(artifact: &File, mut socket: File) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; DELIVERY_BYTES];
    let mut offset = 0;
    loop {
        match artifact.read_at(&mut bytes, offset)? {
            0 => return Ok(()),
            count => {
                socket.write_all(&bytes[..count])?;
                offset += count as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::runner_config;
    use wasmtime::Module;

    fn refusal(wasm: &[u8]) -> String {
        compile(wasm).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_wasm_is_called_by_its_name() {
        assert!(refusal(b"").contains("empty"));
        assert!(refusal(b"\x7fELF\x02\x01\x01").contains("ELF"));
        assert!(refusal(b"#!/bin/sh\n").contains("script"));
        assert!(refusal(b"\0as").contains("ends within its header"));
        assert!(refusal(b"\0asm\x01").contains("ends within its header"));
        assert!(refusal(b"\0asm\x09\0\0\0").contains("unknown version"));
        assert!(refusal(b"hello world").contains("does not begin"));
    }

    #[test]
    fn a_truncated_module_is_invalid() {
        let wasm = wat::parse_str("(module (func (export \"_start\")))").unwrap();
        assert!(refusal(&wasm[..wasm.len() - 3]).contains("not valid WebAssembly"));
    }

    #[test]
    #[allow(unsafe_code, reason = "an artifact is trusted code")]
    fn the_runner_loads_what_the_compiler_makes() {
        let wasm = wat::parse_str("(module (func (export \"_start\")))").unwrap();
        let (kind, artifact) = compile(&wasm).unwrap();
        assert_eq!(kind, ModuleKind::MODULE_KIND_CORE);
        let engine = Engine::new(&runner_config().unwrap()).unwrap();
        // Without custom code memory, as this artifact lies on the heap.
        let plain = Engine::new(&engine_config().unwrap()).unwrap();
        // SAFETY: made by this very build.
        unsafe { Module::deserialize(&plain, &artifact) }.unwrap();
        let hash = |engine: &Engine| {
            use std::hash::{DefaultHasher, Hash, Hasher};
            let mut hasher = DefaultHasher::new();
            engine.precompile_compatibility_hash().hash(&mut hasher);
            hasher.finish()
        };
        assert_eq!(hash(&engine), hash(&plain));
    }

    #[test]
    fn every_proposal_of_the_command_line_compiles() {
        // Exceptions, typed function references, tail calls, threads' atomics.
        let wasm = wat::parse_str(
            "(module (tag $e) (memory 1 1 shared)
               (func (export \"_start\") (block $b (try_table (catch $e $b) (throw $e))))
               (func $t (param (ref func)) (return_call $t (local.get 0)))
               (func (drop (i32.atomic.load (i32.const 0)))))",
        )
        .unwrap();
        compile(&wasm).unwrap();
    }
}
