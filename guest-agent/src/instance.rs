//! An instance: a runner process and what became of it.
//!
//! ```text
//!            start                process gone             execs gone
//!  Created ─────────► Running ──────────────────► Ending ─────────────► Stopped
//!     └──────────────────────────────────────────►
//!              process gone (killed before Start)
//! ```
//!
//! Only [`Instance::start`] and the one task that watches over the process change the phase. Ending is
//! over at once but for an init, which has its execs to end.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use wasmvm_protocol::threads;

use crate::error::AgentError;
use crate::instance_id::InstanceId;
use crate::signal::SignalNumber;
use crate::spawn::{Child, ProcessEnd, reap};
use crate::terminal::{Terminal, WindowSize};
use crate::work::WorkFile;

/// The phase of an instance's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Loaded, waiting for Start.
    Created,
    /// Start was called: the program runs.
    Running,
    /// The process is gone, what depends on it not yet.
    Ending,
    /// All over, with this exit status, 0 to 255.
    Stopped(u32),
}

impl Phase {
    /// The phase as it stands in sentences.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Ending => "stopping",
            Self::Stopped(_) => "stopped",
        }
    }

    /// The one place where phases change; `None` if the event does not fit.
    fn after(self, event: Event) -> Option<Self> {
        match (self, event) {
            (Self::Created, Event::Start) => Some(Self::Running),
            (Self::Created | Self::Running, Event::Gone) => Some(Self::Ending),
            (Self::Ending, Event::Over(status)) => Some(Self::Stopped(status)),
            (Self::Running | Self::Ending | Self::Stopped(_), Event::Start)
            | (Self::Ending | Self::Stopped(_), Event::Gone)
            | (Self::Created | Self::Running | Self::Stopped(_), Event::Over(_)) => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Start,
    Gone,
    Over(u32),
}

/// A runner that has reported to be ready.
#[derive(Debug)]
pub struct Runner {
    /// The process, in the event loop.
    pub process: AsyncFd<Child>,
    /// Write end of the runner's start pipe.
    pub start: OwnedFd,
    /// The file that the runner works on.
    pub work: Arc<WorkFile>,
    /// The runner's terminal, if it has one.
    pub terminal: Option<Arc<Terminal>>,
}

/// A loaded program and its process.
#[derive(Debug)]
pub struct Instance {
    id: InstanceId,
    process: AsyncFd<Child>,
    start: Mutex<Option<OwnedFd>>,
    work: Arc<WorkFile>,
    terminal: Option<Arc<Terminal>>,
    phase: watch::Sender<Phase>,
    /// The agent sent a SIGKILL; without that, only the kernel's want of memory ends a runner so.
    killed: AtomicBool,
}

impl Instance {
    /// An instance whose runner waits for the start.
    #[must_use]
    pub fn new(id: InstanceId, runner: Runner) -> Self {
        Self {
            id,
            process: runner.process,
            start: Mutex::new(Some(runner.start)),
            work: runner.work,
            terminal: runner.terminal,
            phase: watch::Sender::new(Phase::Created),
            killed: AtomicBool::new(false),
        }
    }

    /// The name of the instance.
    #[must_use]
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// The runner's process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.get_ref().pid()
    }

    /// The state of the instance's process; without threads when the process is over.
    #[must_use]
    pub fn look(&self) -> wasmvm_protocol::agent::Instance {
        let proc = PathBuf::from("/proc").join(self.pid().to_string());
        let threads = match self.phase() {
            Phase::Created | Phase::Running => threads::read(&proc),
            // Its id may be another's by now.
            Phase::Ending | Phase::Stopped(_) => Ok(Vec::new()),
        };
        wasmvm_protocol::agent::Instance {
            exec_id: self.id.exec.clone(),
            threads: threads.unwrap_or_default(),
            ..Default::default()
        }
    }

    /// The file that the runner works on.
    #[must_use]
    pub fn work(&self) -> &Arc<WorkFile> {
        &self.work
    }

    /// The phase that the instance is in.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Lets the program run.
    ///
    /// # Errors
    /// [`AgentError::Phase`] unless the instance waits for that.
    pub fn start(&self) -> Result<(), AgentError> {
        if !self.advance(Event::Start) {
            return Err(self.wrong_phase("start"));
        }
        let pipe = self.lock_start().take();
        // A runner that was just killed cannot be told; its exit tells.
        if let Some(pipe) = pipe {
            let _ = rustix::io::write(pipe, b"!");
        }
        Ok(())
    }

    /// Sends a signal to the runner; the default actions end a runner, whatever its module does.
    ///
    /// # Errors
    /// [`AgentError::Ended`] when there is nothing left to signal.
    pub fn kill(&self, signal: SignalNumber) -> Result<(), AgentError> {
        if matches!(self.phase(), Phase::Ending | Phase::Stopped(_)) {
            return Err(AgentError::Ended(self.id.to_string()));
        }
        match signal.send(self.process.get_ref().as_fd()) {
            Ok(()) => {
                self.killed.fetch_or(signal.is_kill(), Ordering::Relaxed);
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                Err(AgentError::Ended(self.id.to_string()))
            }
            Err(error) => Err(AgentError::System("signal the runner", error)),
        }
    }

    /// Sets the size of the instance's terminal; without one there is nothing to do, as with runc.
    ///
    /// # Errors
    /// [`AgentError::Phase`] when the instance has ended.
    pub fn resize(&self, size: WindowSize) -> Result<(), AgentError> {
        if matches!(self.phase(), Phase::Ending | Phase::Stopped(_)) {
            return Err(self.wrong_phase("resize the terminal of"));
        }
        let Some(terminal) = &self.terminal else {
            return Ok(());
        };
        let failed = |error| AgentError::System("resize the terminal", error);
        terminal.resize(size).map_err(failed)
    }

    /// The exit status, as soon as there is one.
    pub async fn wait(&self) -> u32 {
        let mut phases = self.phase.subscribe();
        loop {
            if let Phase::Stopped(status) = *phases.borrow_and_update() {
                return status;
            }
            // The sender lives in `self`, so there is always another change to wait for.
            let _ = phases.changed().await;
        }
    }

    /// Waits for the process, which is [`Phase::Ending`] then; to be called once per instance.
    pub async fn gone(&self) -> ProcessEnd {
        let end = reap(&self.process).await.unwrap_or(ProcessEnd::KILLED);
        self.lock_start().take();
        self.advance(Event::Gone);
        end
    }

    /// Whether a process that ended so was ended by the guest's kernel, for want of memory.
    #[must_use]
    pub fn ran_out_of_memory(&self, end: ProcessEnd) -> bool {
        end.is_kill() && !self.killed.load(Ordering::Relaxed)
    }

    /// Notes that nothing of the instance is left; answers every [`Instance::wait`].
    pub fn stop(&self, status: u32) {
        self.advance(Event::Over(status));
    }

    fn wrong_phase(&self, action: &'static str) -> AgentError {
        AgentError::Phase {
            action,
            id: self.id.to_string(),
            phase: self.phase().name(),
        }
    }

    fn advance(&self, event: Event) -> bool {
        self.phase.send_if_modified(|phase| {
            let next = phase.after(event);
            if let Some(next) = next {
                *phase = next;
            }
            next.is_some()
        })
    }

    fn lock_start(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        self.start.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use wasmvm_protocol::agent::Program;

    fn signal(number: u32) -> SignalNumber {
        SignalNumber::new(number).unwrap()
    }

    fn instance(script: &str) -> (Arc<Instance>, OwnedFd) {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let child = crate::spawn::spawn(crate::spawn::Start {
            exe: Path::new("/bin/sh"),
            mode: "-c",
            args: &[script.to_owned()],
            stdio: [null(), null(), null()],
            passed: vec![],
            terminal: false,
        })
        .unwrap();
        let runner = Runner {
            process: child.watch().unwrap(),
            start: write,
            work: Arc::new(WorkFile::new(&Program::new()).unwrap()),
            terminal: None,
        };
        let id = InstanceId {
            task: "web".into(),
            exec: String::new(),
        };
        (Arc::new(Instance::new(id, runner)), read)
    }

    /// As the supervisor watches over an instance without execs.
    fn watched(script: &str) -> (Arc<Instance>, OwnedFd) {
        let (instance, start) = instance(script);
        let watcher = Arc::clone(&instance);
        tokio::spawn(async move {
            watcher.stop(watcher.gone().await.status());
        });
        (instance, start)
    }

    #[tokio::test]
    async fn every_waiter_hears_the_exit_code() {
        let (instance, _start) = watched("exit 7");
        let (first, second) = tokio::join!(instance.wait(), instance.wait());
        assert_eq!((first, second), (7, 7));
        assert_eq!(instance.wait().await, first);
    }

    #[tokio::test]
    async fn a_signal_before_start_ends_it() {
        let (instance, _start) = watched("sleep 100");
        instance.kill(signal(15)).unwrap();
        assert_eq!(instance.wait().await, 143);
        assert!(matches!(
            instance.kill(signal(15)),
            Err(AgentError::Ended(_))
        ));
        assert!(matches!(instance.start(), Err(AgentError::Phase { .. })));
    }

    #[tokio::test]
    async fn it_starts_once() {
        let (instance, start) = watched("sleep 100");
        instance.start().unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&start, &mut byte).unwrap(), 1);
        assert_eq!(instance.phase(), Phase::Running);
        assert!(instance.start().is_err());
        instance.kill(signal(9)).unwrap();
        assert_eq!(instance.wait().await, 137);
    }

    #[tokio::test]
    async fn a_kill_nobody_sent_is_want_of_memory() {
        let (victim, _start) = instance("kill -KILL $$");
        let end = victim.gone().await;
        assert!(victim.ran_out_of_memory(end));
        let (killed, _start) = instance("sleep 100");
        killed.kill(signal(9)).unwrap();
        let end = killed.gone().await;
        assert_eq!(end.status(), 137);
        assert!(!killed.ran_out_of_memory(end));
        let (own_code, _start) = instance("exit 137");
        let end = own_code.gone().await;
        assert!(!own_code.ran_out_of_memory(end));
    }

    #[tokio::test]
    async fn between_the_process_end_and_the_last_word_nothing_can_be_asked_of_it() {
        let (instance, _start) = instance("exit 3");
        let status = instance.gone().await.status();
        assert_eq!(instance.phase(), Phase::Ending);
        assert!(matches!(
            instance.kill(signal(15)),
            Err(AgentError::Ended(_))
        ));
        assert!(instance.start().is_err());
        instance.stop(status);
        assert_eq!(instance.wait().await, 3);
    }
}
