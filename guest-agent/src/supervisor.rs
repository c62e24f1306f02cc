//! The work behind containerd's requests: the instances of the guest, from load to delete.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::pipe::PipeFlags;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;
use wasmvm_protocol::agent::{Change, Program};
use wasmvm_protocol::slot::slot_address;

use crate::error::AgentError;
use crate::instance::{Instance, Phase, Runner};
use crate::instance_id::InstanceId;
use crate::log::{self, Level};
use crate::report::Report;
use crate::request::{LoadRequest, RequestError};
use crate::signal::SignalNumber;
use crate::spawn::{self, Child, RUNNER_MODE, reap};
use crate::stdio::Stdio;
use crate::streams::Streams;
use crate::table::Table;
use crate::terminal;
use crate::tree::GuestError;
use crate::work::WorkFile;

/// How long a task's end may wait for the ends of its execs, which were killed. Only one that waits for
/// the host's file server can take longer.
pub const EXECS_END_WAIT_MAX: Duration = Duration::from_secs(5);

/// Sets the guest up for a task's first program.
pub type Prepare = dyn Fn(&Program) -> Result<(), GuestError> + Send + Sync;
/// Sets the wall clock, nanoseconds since the Unix epoch.
pub type SetClock = dyn Fn(u64) -> Result<(), GuestError> + Send + Sync;

/// Where instances run: the guest, or a test's directory.
pub struct Site {
    /// The agent's own binary.
    pub exe: PathBuf,
    /// The slots' device, opened read-only; a slot begins at its [`slot_address`].
    pub slots: OwnedFd,
    /// Root of the task's file tree.
    pub root: PathBuf,
    /// Sets the guest up: clock, file tree, host name.
    pub prepare: Box<Prepare>,
    /// Sets the clock alone.
    pub set_clock: Box<SetClock>,
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site")
            .field("exe", &self.exe)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// All that runs in the guest.
#[derive(Debug)]
pub struct Supervisor {
    site: Site,
    streams: Arc<Streams>,
    table: Table,
    oom_kills: AtomicU64,
}

impl Supervisor {
    /// A supervisor of nothing yet.
    #[must_use]
    pub fn new(site: Site, streams: Arc<Streams>) -> Self {
        Self {
            site,
            streams,
            table: Table::default(),
            oom_kills: AtomicU64::new(0),
        }
    }

    /// Loads a program, which then waits for Start.
    ///
    /// # Errors
    /// [`AgentError`]; nothing is left of the instance then.
    pub async fn load(self: &Arc<Self>, request: LoadRequest) -> Result<(), AgentError> {
        let work = WorkFile::new(&request.program).map_err(failed("hold the program"))?;
        let work = Arc::new(work);
        let place = self.table.reserve(request.id.clone(), Arc::clone(&work))?;
        if request.id.is_init() {
            (self.site.prepare)(&request.program)?;
        }
        let stdio = Stdio::open(&self.streams, &request).await?;
        let (terminal, ends) = stdio.terminal.unzip();
        let (process, start) = self
            .run(&request.program, &work, stdio.runner, terminal.is_some())
            .await?;
        let pumped = terminal.clone().zip(ends);
        let runner = Runner {
            process,
            start,
            work,
            terminal,
        };
        let instance = Arc::new(Instance::new(request.id, runner));
        place.fill(Arc::clone(&instance))?;
        if let Some((terminal, ends)) = pumped {
            tokio::spawn(terminal::pump(terminal, ends));
        }
        tokio::spawn(Arc::clone(self).watch_over(instance));
        Ok(())
    }

    /// Lets a loaded program run; the runner's process id.
    ///
    /// # Errors
    /// [`AgentError::NotFound`], [`AgentError::Phase`].
    pub fn start(&self, id: &InstanceId) -> Result<u32, AgentError> {
        let instance = self.table.get(id)?;
        instance.start()?;
        Ok(instance.pid())
    }

    /// Signals a runner; with `all` and a task's first program, every runner of the task.
    ///
    /// # Errors
    /// [`AgentError::NotFound`], [`AgentError::Ended`].
    pub fn kill(&self, id: &InstanceId, signal: SignalNumber, all: bool) -> Result<(), AgentError> {
        let instance = self.table.get(id)?;
        if all && id.is_init() {
            for exec in self.table.execs(&id.task) {
                // One that has ended just now needs no signal.
                let _ = exec.kill(signal);
            }
        }
        instance.kill(signal)
    }

    /// The exit status of an instance, as soon as it has ended.
    ///
    /// # Errors
    /// [`AgentError::NotFound`].
    pub async fn wait(&self, id: &InstanceId) -> Result<u32, AgentError> {
        let instance = self.table.get(id)?;
        Ok(instance.wait().await)
    }

    /// Forgets an instance that has stopped.
    ///
    /// # Errors
    /// [`AgentError::NotFound`], [`AgentError::Phase`].
    pub fn delete(&self, id: &InstanceId) -> Result<(), AgentError> {
        let phase = self.table.get(id)?.phase();
        if !matches!(phase, Phase::Stopped(_)) {
            return Err(AgentError::Phase {
                action: "delete",
                id: id.to_string(),
                phase: phase.name(),
            });
        }
        self.table.remove(id);
        Ok(())
    }

    /// Moves the memory limit of all instances of a task, and the clock.
    ///
    /// # Errors
    /// [`AgentError::NotFound`], [`AgentError::System`], [`AgentError::Guest`].
    pub fn update(&self, id: &InstanceId, change: &Change) -> Result<(), AgentError> {
        self.table.get(id)?;
        if let Some(now) = change.wall_clock_ns {
            (self.site.set_clock)(now)?;
        }
        if let Some(bytes) = change.memory_bytes_max {
            for work in self.table.works(&id.task) {
                work.set_memory_bytes_max(bytes)
                    .map_err(failed("move the memory limit"))?;
            }
        }
        Ok(())
    }

    /// A loaded instance.
    ///
    /// # Errors
    /// [`AgentError::NotFound`].
    pub fn instance(&self, id: &InstanceId) -> Result<Arc<Instance>, AgentError> {
        self.table.get(id)
    }

    /// The loaded instances of a task, init first.
    ///
    /// # Errors
    /// [`AgentError::NotFound`].
    pub fn instances(&self, task: &str) -> Result<Vec<Arc<Instance>>, AgentError> {
        let init = self.table.get(&InstanceId {
            task: task.to_owned(),
            exec: String::new(),
        })?;
        let execs = self.table.execs(task);
        Ok(std::iter::once(init).chain(execs).collect())
    }

    /// Runners that the guest's kernel has ended for want of memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.oom_kills.load(Ordering::Relaxed)
    }

    /// Records an instance's end. With a task's first program everything else of the task ends, before
    /// anybody hears of it.
    async fn watch_over(self: Arc<Self>, instance: Arc<Instance>) {
        let end = instance.gone().await;
        if instance.ran_out_of_memory(end) {
            self.oom_kills.fetch_add(1, Ordering::Relaxed);
        }
        if instance.id().is_init() {
            self.end_execs(&instance.id().task).await;
        }
        instance.stop(end.status());
    }

    async fn end_execs(&self, task: &str) {
        let execs = self.table.execs(task);
        for exec in &execs {
            let _ = exec.kill(SignalNumber::kill());
        }
        let ends = async {
            for exec in &execs {
                exec.wait().await;
            }
        };
        if timeout(EXECS_END_WAIT_MAX, ends).await.is_err() {
            log::line(Level::Warning, "an exec does not end although it is killed");
        }
    }

    /// Spawns the runner and waits until it is ready; with the write end of its start pipe.
    async fn run(
        &self,
        program: &Program,
        work: &WorkFile,
        stdio: [OwnedFd; 3],
        terminal: bool,
    ) -> Result<(AsyncFd<Child>, OwnedFd), AgentError> {
        let prepare = failed("prepare the runner");
        let address = slot_address(program.slot).ok_or(RequestError::Slot(program.slot))?;
        let slots = self.site.slots.try_clone().map_err(prepare)?;
        let (report, report_end) = pipe().map_err(prepare)?;
        let (start_end, start) = pipe().map_err(prepare)?;
        let work = work.descriptor().map_err(prepare)?;
        let child = spawn::spawn(spawn::Start {
            exe: &self.site.exe,
            mode: RUNNER_MODE,
            args: &[address.to_string(), self.site.root.display().to_string()],
            stdio,
            passed: vec![slots, work, report_end, start_end],
            terminal,
        })?;
        let process = child.watch().map_err(failed("watch the runner"))?;
        self.await_ready(&process, report).await?;
        Ok((process, start))
    }

    /// Waits for a runner's report.
    async fn await_ready(
        &self,
        process: &AsyncFd<Child>,
        report: OwnedFd,
    ) -> Result<(), AgentError> {
        let report = Report::receive(report)
            .await
            .map_err(failed("read the runner's report"))?;
        match report {
            Some(Report::Ready(_)) => Ok(()),
            Some(Report::Refused(text)) => Err(AgentError::Refused(text)),
            Some(Report::Failed(text)) => Err(AgentError::Failed(text)),
            None => {
                let end = reap(process).await.map_err(failed("reap the runner"))?;
                // Nobody can signal what has no id yet.
                self.oom_kills
                    .fetch_add(u64::from(end.is_kill()), Ordering::Relaxed);
                Err(AgentError::silent(RUNNER_MODE, end))
            }
        }
    }
}

fn failed(what: &'static str) -> impl Fn(std::io::Error) -> AgentError + Copy {
    move |error| AgentError::System(what, error)
}

/// Read end and write end, close-on-exec.
///
/// # Errors
/// `pipe2(2)`'s.
pub fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
}
