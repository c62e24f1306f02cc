//! The table of instances, and what containerd's requests do to it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use protobuf::Message;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::pipe::PipeFlags;
use tokio::io::unix::AsyncFd;
use wasmvm_protocol::agent::Program;

use crate::error::AgentError;
use crate::init::GuestError;
use crate::instance::{self, Exit, Instance, Phase, SignalNumber};
use crate::report::Report;
use crate::request::{CreateRequest, STDIO};
use crate::spawn::{self, Child, RUNNER_MODE};
use crate::streams::Streams;
use crate::watch::watch_child;

/// Instances that have not been deleted.
pub const INSTANCES_MAX: usize = 64;

/// Sets the guest up for a program.
pub type Prepare = dyn Fn(&Program) -> Result<(), GuestError> + Send + Sync;

/// Where instances run: the guest, or a test's directory.
pub struct Site {
    /// This binary.
    pub exe: PathBuf,
    /// The slot's device, opened read-only.
    pub slot: OwnedFd,
    /// Where the slot begins in it.
    pub slot_offset: u64,
    /// Root of the task's file tree.
    pub root: PathBuf,
    /// Sets the guest up for a program: clock, file tree, host name.
    pub prepare: Box<Prepare>,
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site")
            .field("exe", &self.exe)
            .field("slot_offset", &self.slot_offset)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Entry {
    /// A Create is under way.
    Loading,
    Loaded(Arc<Instance>),
}

/// All instances of the guest.
#[derive(Debug)]
pub struct Supervisor {
    site: Site,
    streams: Arc<Streams>,
    instances: Mutex<HashMap<String, Entry>>,
}

impl Supervisor {
    /// An empty table.
    #[must_use]
    pub fn new(site: Site, streams: Arc<Streams>) -> Self {
        Self {
            site,
            streams,
            instances: Mutex::default(),
        }
    }

    /// Loads a program, which then waits for Start; the runner's process id.
    ///
    /// # Errors
    /// [`AgentError`]; nothing is left of the instance then.
    pub async fn create(&self, request: CreateRequest) -> Result<u32, AgentError> {
        let place = self.reserve(&request.task)?;
        (self.site.prepare)(&request.program)?;
        let stdio = self.stdio(&request).await?;
        let (child, start) = self.load(&request.program, stdio).await?;
        let name = name(&request.task);
        let instance = Arc::new(Instance::new(name, child, start));
        let pid = instance.pid();
        place.fill(Arc::clone(&instance));
        tokio::spawn(async move { instance.reap().await });
        Ok(pid)
    }

    /// Lets a created program run; the runner's process id.
    ///
    /// # Errors
    /// [`AgentError::NotFound`], [`AgentError::Phase`].
    pub fn start(&self, task: &str) -> Result<u32, AgentError> {
        let instance = self.instance(task)?;
        instance.start()?;
        Ok(instance.pid())
    }

    /// Signals a runner.
    ///
    /// # Errors
    /// [`AgentError::NotFound`], [`AgentError::Ended`].
    pub fn kill(&self, task: &str, signal: SignalNumber) -> Result<(), AgentError> {
        self.instance(task)?.kill(signal)
    }

    /// How an instance ended, as soon as it has.
    ///
    /// # Errors
    /// [`AgentError::NotFound`].
    pub async fn wait(&self, task: &str) -> Result<Exit, AgentError> {
        let instance = self.instance(task)?;
        Ok(instance.wait().await)
    }

    /// Forgets an instance that has stopped; its process id and its end.
    ///
    /// # Errors
    /// [`AgentError::NotFound`], [`AgentError::Phase`].
    pub fn delete(&self, task: &str) -> Result<(u32, Exit), AgentError> {
        let instance = self.instance(task)?;
        let Phase::Stopped(exit) = instance.phase() else {
            return Err(AgentError::Phase {
                action: "delete",
                id: name(task),
                phase: instance.phase().name(),
            });
        };
        self.with(|instances| instances.remove(task));
        Ok((instance.pid(), exit))
    }

    /// The instance of a task.
    ///
    /// # Errors
    /// [`AgentError::NotFound`].
    pub fn instance(&self, task: &str) -> Result<Arc<Instance>, AgentError> {
        self.with(|instances| match instances.get(task) {
            Some(Entry::Loaded(instance)) => Ok(Arc::clone(instance)),
            Some(Entry::Loading) | None => Err(AgentError::NotFound(name(task))),
        })
    }

    fn reserve(&self, task: &str) -> Result<Place<'_>, AgentError> {
        self.with(|instances| {
            if instances.contains_key(task) {
                return Err(AgentError::Exists(name(task)));
            }
            if instances.len() >= INSTANCES_MAX {
                let error = io::ErrorKind::QuotaExceeded.into();
                return Err(AgentError::System("hold more instances", error));
            }
            instances.insert(task.to_owned(), Entry::Loading);
            Ok(())
        })?;
        Ok(Place {
            supervisor: self,
            task: task.to_owned(),
            filled: false,
        })
    }

    async fn stdio(&self, request: &CreateRequest) -> Result<[OwnedFd; 3], AgentError> {
        let mut fds = Vec::with_capacity(STDIO.len());
        for (token, fd) in request.stdio.into_iter().zip(STDIO) {
            fds.push(match token {
                Some(token) => self.streams.claim(token, &request.task, fd).await?,
                None => null_device()?,
            });
        }
        // Three went in.
        fds.try_into()
            .map_err(|_| AgentError::System("order stdio", io::ErrorKind::InvalidInput.into()))
    }

    /// Spawns the runner and waits until it is ready; with the write end of its start pipe.
    async fn load(
        &self,
        program: &Program,
        stdio: [OwnedFd; 3],
    ) -> Result<(AsyncFd<Child>, OwnedFd), AgentError> {
        let prepare = |error| AgentError::System("prepare the runner", error);
        let slot = self.site.slot.try_clone().map_err(prepare)?;
        let program = encode(program).map_err(prepare)?;
        let (report, report_end) = pipe().map_err(prepare)?;
        let (start_end, start) = pipe().map_err(prepare)?;
        let args = [
            self.site.slot_offset.to_string(),
            self.site.root.display().to_string(),
        ];
        let passed = vec![slot, program, report_end, start_end];
        let child = spawn::spawn(&self.site.exe, RUNNER_MODE, &args, stdio, passed)?;
        let child = await_ready(RUNNER_MODE, child, report).await?;
        Ok((child, start))
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashMap<String, Entry>) -> T) -> T {
        change(
            &mut self
                .instances
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

/// A reserved id, free again if its Create fails or is cancelled.
struct Place<'a> {
    supervisor: &'a Supervisor,
    task: String,
    filled: bool,
}

impl Place<'_> {
    fn fill(mut self, instance: Arc<Instance>) {
        self.filled = true;
        let task = self.task.clone();
        self.supervisor
            .with(|instances| instances.insert(task, Entry::Loaded(instance)));
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.supervisor
                .with(|instances| instances.remove(&self.task));
        }
    }
}

/// Waits for a child's report; dropped on the way, the child is ended.
async fn await_ready(
    mode: &'static str,
    child: Child,
    report: OwnedFd,
) -> Result<AsyncFd<Child>, AgentError> {
    let failed = |what| move |error| AgentError::System(what, error);
    let process = watch_child(child).map_err(failed("watch the runner"))?;
    let report = Report::receive(report)
        .await
        .map_err(failed("read the runner's report"))?;
    match report {
        Some(Report::Ready(_)) => Ok(process),
        Some(Report::Refused(text)) => Err(AgentError::Refused(text)),
        Some(Report::Failed(text)) => Err(AgentError::Failed(text)),
        None => {
            let status = instance::reap(&process)
                .await
                .map_err(failed("reap the runner"))?;
            Err(AgentError::silent(mode, status))
        }
    }
}

/// A task's id as it stands in sentences.
fn name(task: &str) -> String {
    format!("task {task:?}")
}

fn null_device() -> Result<OwnedFd, AgentError> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| AgentError::System("open the null device", errno.into()))
}

/// The program in a file of memory, to be read from its start.
fn encode(program: &Program) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("program", MemfdFlags::CLOEXEC)?);
    let bytes = program.write_to_bytes().map_err(io::Error::other)?;
    file.write_all(&bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// Read end and write end, close-on-exec.
///
/// # Errors
/// `pipe2(2)`'s.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
}
