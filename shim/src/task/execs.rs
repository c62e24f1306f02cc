//! The execs of a task: registered, started, deleted.
//!
//! containerd registers an exec (`Exec`) and starts the exec later (`Start`): whatever can fail with the
//! program fails in `Start`, as with runc. Only the record of a failed exec stays.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use wasmvm_protocol::agent::containerd::events::task::{TaskExecAdded, TaskExecStarted};
use wasmvm_protocol::stream::ID_BYTES_MAX;

use super::exec::{Exec, ExecOrder};
use super::process::never_ran;
use super::terminal::tell_size;
use super::{Claim, Exit, LoadedVm, Move, Task, TaskError, exec_watcher};
use crate::agent::EXEC_PID_BASE;
use crate::events::Event;
use crate::log::spawn_in_span;
use crate::signals;
use crate::stdio::{GuestStreams, Pumps, Stdio, StdioOwner};

/// Execs of one task: those not deleted, and deleted ones that the guest may still run.
const EXECS_MAX: usize = 256;
/// The exit status of a program that could not be started: containerd's value for an unknown status.
const STATUS_UNKNOWN: u32 = 255;

impl Task {
    /// Registers an exec.
    ///
    /// # Errors
    /// [`TaskError`]
    pub(crate) fn exec(&self, order: ExecOrder) -> Result<(), TaskError> {
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
    pub(crate) async fn start_exec(self: &Arc<Self>, exec: &Arc<Exec>) -> Result<u32, TaskError> {
        let vm = self.vm()?;
        self.must_run()?;
        exec.process.transition(Move::Start)?;
        let started = tokio::select! {
            biased;
            () = exec.abandoned() => Err(TaskError::Abandoned(exec.process.name().to_owned())),
            () = self.ends() => Err(TaskError::InitNotRunning(self.init.name().to_owned())),
            started = self.load_and_start(vm, exec) => started,
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
                    spawn_in_span(discard(self.clone(), exec.clone()));
                }
                exec.process.transition(Move::NeverRan(Exit::now(status)))?;
                Err(error)
            }
        }
    }

    async fn load_and_start(&self, vm: &LoadedVm, exec: &Exec) -> Result<Started, TaskError> {
        let process = &exec.process;
        let owner = StdioOwner {
            namespace: &self.order.namespace,
            id: &exec.id,
        };
        let stdio = Stdio::open(&process.stdio, &owner).await?;
        let loaded = vm
            .workload
            .find(&exec.spec)
            .await
            .map_err(TaskError::Program)?;
        exec.keep_slot(loaded.slot);
        exec.loaded.store(true, Ordering::Relaxed);
        let streams = vm
            .programs()
            .exec(&exec.id, loaded.program, &stdio, process.terminal)
            .await?;
        // The size goes before `Start`: a program asks once for the size of its terminal.
        if let Err(error) = tell_size(vm, process, &exec.id).await {
            tracing::debug!(exec = process.name(), %error, "the terminal has no size");
        }
        let guest_pid = vm.programs().start(&exec.id).await?;
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
        exec.process.transition_and_publish(Move::Started, |_| {
            self.events.publish(Event::ExecStarted(TaskExecStarted {
                container_id: self.order.id.clone(),
                exec_id: exec.id.clone(),
                pid,
                ..Default::default()
            }));
        })?;
        spawn_in_span(exec_watcher::watch(self.clone(), exec.clone(), pumps));
        if exec.process.terminal {
            spawn_in_span(tell_late_size(self.clone(), exec.clone()));
        }
        Ok(pid)
    }

    /// Forgets an exec that has exited or was never started, once its output is drained; returns its pid
    /// and its exit.
    ///
    /// # Errors
    /// [`TaskError`]; then the exec stays.
    pub(crate) async fn delete_exec(&self, exec: &Arc<Exec>) -> Result<(u32, Exit), TaskError> {
        if let Claim::Done(exit) = exec.process.claim_delete().await? {
            return Ok((exec.pid(), exit));
        }
        exec.process.switch.begin_drain();
        exec.process.drained().await;
        let mut execs = self.execs();
        if execs
            .get(&exec.id)
            .is_some_and(|there| Arc::ptr_eq(there, exec))
        {
            execs.remove(&exec.id);
        }
        drop(execs);
        let state = exec.process.transition(Move::DeleteDone)?;
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
    if let Err(error) = vm.programs().kill(&exec.id, signals::SIGKILL, false).await {
        tracing::debug!(exec = exec.process.name(), %error, "nothing to discard");
    }
    exec_watcher::linger(task.clone(), exec).await;
}
