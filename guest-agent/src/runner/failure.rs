//! Why a program could not be loaded, and how it ended when it ran.

use std::io;

use wasmtime_wasi::I32Exit;
use wasmvm_protocol::agent::UNFIT;
use wasmvm_protocol::error_chain;

use crate::report::Report;
use crate::slot::SlotError;

use super::TRAPPED;

/// Why there is nothing to start.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// A call that the system refused; the first field is what it was for.
    #[error("the runner cannot {0}")]
    System(&'static str, #[source] io::Error),
    /// A directory that the program is to begin with cannot be opened.
    #[error("the program's directory {path:?} cannot be opened")]
    Directory {
        /// `/`, or the working directory.
        path: String,
        /// The error of opening the directory.
        #[source]
        source: io::Error,
    },
    /// The slot cannot be read.
    #[error("the runner finds no artifact")]
    Slot(#[source] SlotError),
    /// A Wasm module where an artifact belongs.
    #[error("the slot holds a module that was not compiled")]
    NotCompiled,
    /// wasmtime does not start.
    #[error("the runner's engine does not start: {0:#}")]
    Engine(wasmtime::Error),
    /// An artifact that was compiled by another version or for another processor.
    #[error("{UNFIT}: {0:#}")]
    Artifact(wasmtime::Error),
    /// An import that wasmvm does not have.
    #[error("{what} imports {name}, which wasmvm does not offer{}", advice(.name))]
    Import {
        /// The kind of program: `module` or `component`.
        what: &'static str,
        /// The import: `module::name`, or an interface.
        name: String,
    },
    /// An import whose type is not the one that the program expects.
    #[error("program does not link: {0:#}")]
    Link(wasmtime::Error),
    /// A core module that is no command.
    #[error(
        "module exports no function `_start` (nor one named ``), so it is not a WASI command{0}"
    )]
    NoStart(&'static str),
    /// A core module without the function that was named behind its file.
    #[error("module exports no function `{function}`; the first that it exports: {}", or_none(.exports))]
    NoFunction {
        /// The name behind the `#`.
        function: String,
        /// Some of those that there are; empty without any.
        exports: String,
    },
    /// A function that nobody could call with the right values.
    #[error(
        "function `{function}` has {params} parameters and {results} results; a program is entered by a function \
         with none of either"
    )]
    Signature {
        /// The name of the function.
        function: String,
        /// Number of values that the function takes.
        params: usize,
        /// Number of values that the function returns.
        results: usize,
    },
    /// A component that is no command.
    #[error("component does not export wasi:cli/run, so it is not a command{0}")]
    NoRun(String),
    /// The first memory is beyond the bound.
    #[error("program begins with a memory of {wanted} bytes; the task's limit allows {max}")]
    Memory {
        /// Bytes that the program begins with.
        wanted: u64,
        /// Bytes that the task may have.
        max: u64,
    },
}

impl LoadError {
    /// The error as it is told to PID 1.
    #[must_use]
    pub(super) fn report(&self) -> Report {
        match self {
            Self::System(..) | Self::Slot(_) | Self::NotCompiled | Self::Engine(_) => {
                Report::Failed(error_chain(self))
            }
            Self::Directory { .. } => Report::Refused(error_chain(self)),
            Self::Artifact(_)
            | Self::Import { .. }
            | Self::Link(_)
            | Self::NoStart(_)
            | Self::NoFunction { .. }
            | Self::Signature { .. }
            | Self::NoRun(_)
            | Self::Memory { .. } => Report::Refused(self.to_string()),
        }
    }
}

/// Advice for the author of a program with a well-known import.
fn advice(name: &str) -> &'static str {
    match name.split_once("::") {
        Some(("wasi", "thread-spawn") | ("env", "memory")) => {
            ": it was built for wasi-threads; build it without threads, for wasm32-wasip1"
        }
        Some(("wasi_snapshot_preview1", call)) if call.starts_with("sock_") => {
            ": it was built for WasmEdge's sockets, which are that runtime's own"
        }
        Some(("env", call)) if call.starts_with("emscripten_") || call.starts_with("invoke_") => {
            ": it was built for JavaScript hosts; build it for WASI (emcc -sSTANDALONE_WASM, or wasi-sdk)"
        }
        Some(("wbg" | "__wbindgen_placeholder__", _)) => {
            ": it was built for JavaScript hosts by wasm-bindgen; build it for wasm32-wasip1"
        }
        _ => "",
    }
}

fn or_none(exports: &str) -> &str {
    match exports {
        "" => "none",
        some => some,
    }
}

/// The process' exit status; a trap's message and backtrace go to stderr as `wasmtime run` prints them.
#[must_use]
pub(super) fn status(name: &str, ended: wasmtime::Result<()>) -> i32 {
    let error = match ended {
        Ok(()) => return 0,
        Err(error) => error,
    };
    if let Some(exit) = error.downcast_ref::<I32Exit>() {
        return exit.0;
    }
    let error = error.context(format!("failed to run main module `{name}`"));
    super::descriptors::write_stderr(format!("Error: {error:?}\n").as_bytes());
    TRAPPED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_known_imports_come_with_advice() {
        for (name, part) in [
            ("wasi::thread-spawn", "wasi-threads"),
            ("env::memory", "wasi-threads"),
            ("wasi_snapshot_preview1::sock_open", "WasmEdge"),
            ("env::emscripten_memcpy_js", "emcc"),
            ("wbg::__wbindgen_throw", "wasm-bindgen"),
        ] {
            let text = LoadError::Import {
                what: "module",
                name: name.to_owned(),
            }
            .to_string();
            let start =
                format!("module imports {name}, which wasmvm does not offer: it was built for ");
            assert!(text.starts_with(&start) && text.contains(part), "{text}");
        }
    }
}
