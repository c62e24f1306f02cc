//! Execs: further programs of a task, in the VM that runs.
//!
//! containerd registers an exec (`Exec`) and starts the exec later (`Start`): whatever can fail with the
//! program fails in `Start`, as with runc. Only the record of a failed exec stays.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;
use wasmvm_protocol::agent::containerd::events::task::{TaskExecAdded, TaskExecStarted};
use wasmvm_protocol::stream::ID_BYTES_MAX;

use super::process::never_ran;
use super::terminal::tell_size;
use super::{Claim, Exit, Move, Process, Report, State, Task, TaskError, Vm, life, signals};
use crate::agent::EXEC_PID_BASE;
use crate::bundle::ProcessSpec;
use crate::events::Event;
use crate::stdio::{GuestStreams, Pumps, Stdio, StdioNames, StdioOwner};
use crate::workload::SlotLease;

/// Execs of one task: those not deleted, and deleted ones that the guest may still run.
const EXECS_MAX: usize = 256;
/// The exit status of a program that could not be started: containerd's value for an unknown status.
const STATUS_UNKNOWN: u32 = 255;

/// The fields of an `Exec` request that the shim uses.
#[derive(Clone, Debug)]
pub struct ExecOrder {
    /// Unique within the task.
    pub id: String,
    /// The OCI process: arguments, environment, user and working directory.
    pub spec: ProcessSpec,
    /// The client's streams, as the request names them.
    pub stdio: StdioNames,
    /// Whether the streams are a terminal's.
    pub terminal: bool,
}

/// A further program of a task, from `Exec` until the exec is deleted.
#[derive(Debug)]
pub struct Exec {
    pub(super) process: Process,
    id: String,
    spec: ProcessSpec,
    pid: OnceLock<u32>,
    /// Whether the guest has been asked to load the program.
    loaded: AtomicBool,
    /// The program's slot, held as long as the guest may have the artifact mapped.
    slot: Mutex<Option<SlotLease>>,
    /// True once the exec is given up: the guest's report of the exit is not awaited any more.
    abandoned: watch::Sender<bool>,
}

/// The streams of a running exec, handed to its watcher.
pub(super) struct Running {
    pub pumps: Pumps,
}

/// The name of an exec in messages, as in "exec b of task a"; `task` is the task's name.
pub(super) fn name(exec_id: &str, task: &str) -> String {
    format!("exec {exec_id} of {task}")
}

impl Exec {
    fn new(task: &str, order: ExecOrder) -> Self {
        let name = name(&order.id, task);
        Self {
            process: Process::new(name, order.stdio, order.terminal, State::Created),
            id: order.id,
            spec: order.spec,
            pid: OnceLock::new(),
            loaded: AtomicBool::new(false),
            slot: Mutex::default(),
            abandoned: watch::Sender::new(false),
        }
    }

    /// The exec id, unique within the task.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The pid that containerd sees; 0 before the exec has started.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.get().copied().unwrap_or(0)
    }

    /// Pid, state and streams, as State, Pids and Connect report them.
    #[must_use]
    pub fn report(&self) -> Report {
        Report {
            pid: self.pid(),
            state: self.process.state(),
            stdio: self.process.stdio.clone(),
            terminal: self.process.terminal,
        }
    }

    /// Waits for the exec's exit, also before the start.
    ///
    /// # Errors
    /// None: every registered exec reaches an exit.
    pub async fn wait(&self) -> Result<Exit, TaskError> {
        self.process.wait().await
    }

    /// Ends standard input once what the client wrote has been read.
    pub fn close_stdin(&self) {
        self.process.switch.close_stdin();
    }

    fn keep_slot(&self, slot: SlotLease) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(slot);
    }

    /// Frees the slot, as the guest does not run the program any more.
    pub(super) fn free_slot(&self) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    #[cfg(test)]
    pub(super) fn has_slot(&self) -> bool {
        let slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.is_some()
    }

    /// Gives the exec up: the guest's report of the exit is not awaited any more.
    pub(super) fn abandon(&self) {
        self.abandoned.send_replace(true);
    }

    pub(super) async fn abandoned(&self) {
        // `wait_for` fails only without a sender, and the exec holds the sender.
        let _ = self
            .abandoned
            .subscribe()
            .wait_for(|given_up| *given_up)
            .await;
    }
}

impl Task {
    /// Registers an exec.
    ///
    /// # Errors
    /// [`TaskError`]
    pub fn exec(&self, order: ExecOrder) -> Result<(), TaskError> {
        let bytes = order.id.len();
        if bytes == 0 || bytes > ID_BYTES_MAX {
            let bytes_max = ID_BYTES_MAX;
            return Err(TaskError::ExecId { bytes, bytes_max });
        }
        self.must_run()?;
        let mut execs = self.execs();
        let lingering = self.lingering();
        let id = order.id.clone();
        let exec = Arc::new(Exec::new(self.init.name(), order));
        if execs.contains_key(&id) {
            return Err(TaskError::Exists(exec.process.name().to_owned()));
        }
        if lingering.contains_key(&id) {
            return Err(TaskError::Lingers(exec.process.name().to_owned()));
        }
        let deleted = |id: &&String| !execs.contains_key(*id);
        if execs.len() + lingering.keys().filter(deleted).count() >= EXECS_MAX {
            let name = self.init.name().to_owned();
            let execs_max = EXECS_MAX;
            return Err(TaskError::TooMany { name, execs_max });
        }
        execs.insert(id.clone(), exec);
        // `execs` is still locked: no request can start the exec before the event is queued.
        self.events.publish(Event::ExecAdded(TaskExecAdded {
            container_id: self.order.id.clone(),
            exec_id: id,
            ..Default::default()
        }));
        Ok(())
    }

    /// Finds, loads and starts an exec's program; returns the pid that containerd sees.
    ///
    /// # Errors
    /// [`TaskError`]; an exec that was `Starting` by then has ended without running.
    pub async fn start_exec(self: &Arc<Self>, exec: &Arc<Exec>) -> Result<u32, TaskError> {
        let vm = self.vm()?;
        self.must_run()?;
        exec.process.make(Move::Start)?;
        let started = tokio::select! {
            biased;
            () = exec.abandoned() => Err(TaskError::Abandoned(exec.process.name().to_owned())),
            () = self.ends() => Err(TaskError::InitNotRunning(self.init.name().to_owned())),
            started = self.launch(vm, exec) => started,
        };
        match started {
            Ok(started) => self.exec_runs(exec, started),
            Err(error) => {
                let status = match &error {
                    TaskError::Abandoned(_) | TaskError::InitNotRunning(_) => {
                        exec.process.fatal.status(None)
                    }
                    _ => STATUS_UNKNOWN,
                };
                if matches!(&error, TaskError::Agent(agent) if agent.refuses_exec()) {
                    exec.free_slot();
                } else if exec.loaded.load(Ordering::Relaxed) {
                    self.keep_lingering(exec);
                    tokio::spawn(discard(self.clone(), exec.clone()));
                }
                let at = SystemTime::now();
                exec.process.make(Move::NeverRan(Exit { status, at }))?;
                Err(error)
            }
        }
    }

    async fn launch(&self, vm: &Vm, exec: &Exec) -> Result<Started, TaskError> {
        let process = &exec.process;
        let owner = StdioOwner {
            namespace: &self.order.namespace,
            id: &exec.id,
        };
        let stdio = Stdio::open(&process.stdio, &owner).await?;
        let loaded = vm
            .workload
            .load(&exec.spec)
            .await
            .map_err(TaskError::Program)?;
        exec.keep_slot(loaded.slot);
        exec.loaded.store(true, Ordering::Relaxed);
        let streams = vm
            .agent
            .exec(
                &*vm.workload,
                &exec.id,
                loaded.program,
                &stdio,
                process.terminal,
            )
            .await?;
        // The size goes before `Start`: a program asks once for the size of its terminal.
        if let Err(error) = tell_size(vm, process, &exec.id).await {
            tracing::debug!(exec = process.name(), %error, "the terminal has no size");
        }
        let guest_pid = vm.agent.start(&exec.id).await?;
        Ok(Started {
            stdio,
            streams,
            guest_pid,
        })
    }

    fn exec_runs(self: &Arc<Self>, exec: &Arc<Exec>, started: Started) -> Result<u32, TaskError> {
        let pid = EXEC_PID_BASE + started.guest_pid;
        // Only one start comes this far: the start that made the move to Starting.
        let _ = exec.pid.set(pid);
        exec.process.set_flowing();
        let (switch, clock) = (&exec.process.switch, self.flow.clock());
        let pumps = Pumps::start(started.stdio, started.streams, switch, &clock);
        switch.open_stdin();
        exec.process.make_telling(Move::Started, |_| {
            self.events.publish(Event::ExecStarted(TaskExecStarted {
                container_id: self.order.id.clone(),
                exec_id: exec.id.clone(),
                pid,
                ..Default::default()
            }));
        })?;
        tokio::spawn(life::live_exec(
            self.clone(),
            exec.clone(),
            Running { pumps },
        ));
        if exec.process.terminal {
            tokio::spawn(tell_late_size(self.clone(), exec.clone()));
        }
        Ok(pid)
    }

    /// Forgets an exec that has exited or was never started, once its output is drained; returns its pid
    /// and its exit.
    ///
    /// # Errors
    /// [`TaskError`]; then the exec stays.
    pub async fn delete_exec(&self, exec: &Arc<Exec>) -> Result<(u32, Exit), TaskError> {
        if let Claim::Done(exit) = exec.process.claim_delete().await? {
            return Ok((exec.pid(), exit));
        }
        exec.process.switch.leave();
        exec.process.drained().await;
        let mut execs = self.execs();
        if execs
            .get(&exec.id)
            .is_some_and(|there| Arc::ptr_eq(there, exec))
        {
            execs.remove(&exec.id);
        }
        drop(execs);
        let state = exec.process.make(Move::DeleteDone)?;
        Ok((exec.pid(), state.exit().unwrap_or_else(never_ran)))
    }
}

/// The streams of a program that the guest has started, and its pid there.
struct Started {
    stdio: Stdio,
    streams: GuestStreams,
    guest_pid: u32,
}

/// Sends a terminal's size that came while the exec was being started.
async fn tell_late_size(task: Arc<Task>, exec: Arc<Exec>) {
    let Ok(vm) = task.vm() else { return };
    if let Err(error) = tell_size(vm, &exec.process, &exec.id).await {
        tracing::debug!(exec = exec.process.name(), %error, "the terminal keeps its size");
    }
}

/// Kills a program that the guest may have loaded, or may even run, and waits for its end.
async fn discard(task: Arc<Task>, exec: Arc<Exec>) {
    let Ok(vm) = task.vm() else { return };
    if let Err(error) = vm.agent.kill(&exec.id, signals::SIGKILL, false).await {
        tracing::debug!(exec = exec.process.name(), %error, "nothing to discard");
    }
    life::linger(task.clone(), exec).await;
}
