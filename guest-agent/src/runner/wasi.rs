//! The world a program sees: arguments, environment, directories, standard streams.

use wasmtime::ResourceLimiter;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmvm_protocol::agent::Program;

use super::failure::LoadError;
use super::limits::Limits;
use super::stdio::{Output, Stdin};

/// The data of a store: WASI's state and the bound on growth.
pub(super) struct State {
    wasi: WasiP1Ctx,
    limits: Limits,
}

impl State {
    /// The world of `program`; the process is in its tree and is its user already.
    ///
    /// # Errors
    /// [`LoadError::System`] when `/` cannot be opened.
    pub(super) fn new(
        program: &Program,
        limits: Limits,
        component: bool,
    ) -> Result<Self, LoadError> {
        let mut builder = WasiCtxBuilder::new();
        builder
            .args(&program.args)
            .stdin(Stdin)
            .stdout(Output::new(rustix::stdio::stdout(), component))
            .stderr(Output::new(rustix::stdio::stderr(), component))
            // One program per process: there is nothing else that could run meanwhile.
            .allow_blocking_current_thread(true)
            // The runner is confined to the tree, so that the tree's own links and `..` may lead anywhere.
            .process_paths(true);
        for entry in &program.env {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            builder.env(key, value);
        }
        working_directory(&mut builder, program, component);
        preopen(&mut builder, program, component)?;
        Ok(Self {
            wasi: builder.build_p1(),
            limits,
        })
    }

    /// The state of preview 1, for its host functions.
    pub(super) fn p1(&mut self) -> &mut WasiP1Ctx {
        &mut self.wasi
    }

    /// The bound on growth, for the store.
    pub(super) fn limits(&mut self) -> &mut dyn ResourceLimiter {
        &mut self.limits
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.wasi.ctx()
    }
}

/// Seeds the generator that every program's random numbers come from.
///
/// To be called outside the tree: in a static binary the `getrandom` crate finds no system call by
/// `dlsym` and reads `/dev/urandom`, which a tree may not have, or may have something else as.
pub(super) fn seed_random() {
    drop(wasmtime_wasi::thread_rng());
}

/// All of the tree is below one preopened directory, `/`: a path means the same whatever is mounted on the
/// way. A preview 1 module can have `.` before it, where its container says so.
fn preopen(
    builder: &mut WasiCtxBuilder,
    program: &Program,
    component: bool,
) -> Result<(), LoadError> {
    let cwd = (program.preopen_cwd && !component).then(|| (directory(program), "."));
    for (path, name) in cwd.into_iter().chain([("/", "/")]) {
        builder
            .preopened_dir(path, name, FsPerms::ReadWrite)
            .map_err(|error| LoadError::Directory {
                path: path.to_owned(),
                source: std::io::Error::other(format!("{error:#}")),
            })?;
    }
    Ok(())
}

/// The program's working directory.
pub(super) fn directory(program: &Program) -> &str {
    match program.cwd.as_str() {
        "" => "/",
        cwd => cwd,
    }
}

/// Tells a component its working directory; a preview 1 module has no such notion and gets `PWD`, unless it is set.
fn working_directory(builder: &mut WasiCtxBuilder, program: &Program, component: bool) {
    let cwd = directory(program);
    if component {
        builder.initial_cwd(cwd);
    } else if !program.env.iter().any(|entry| entry.starts_with("PWD=")) {
        builder.env("PWD", cwd);
    }
}
