//! The size of a terminal, on its way to the guest's pty.

use super::pause::Flow;
use super::{Exec, LoadedVm, Process, Task, TaskError};
use crate::agent::TerminalSize;

impl Task {
    /// Resizes a process' terminal to `width` columns and `height` rows; a size that cannot be sent to the
    /// guest now is sent later. A process without a terminal is left as it is.
    ///
    /// # Errors
    /// [`TaskError`]; `Size` beyond what `struct winsize` holds, `Finished` when the program has exited.
    pub(crate) async fn resize(
        &self,
        exec: Option<&Exec>,
        width: u32,
        height: u32,
    ) -> Result<(), TaskError> {
        let (Ok(columns), Ok(rows)) = (u16::try_from(width), u16::try_from(height)) else {
            return Err(TaskError::Size { width, height });
        };
        let size = TerminalSize {
            width: columns,
            height: rows,
        };
        let vm = self.vm()?;
        let process = exec.map_or(&self.init, |exec| &exec.process);
        if process.state().exit().is_some() {
            return Err(TaskError::Finished(process.name().to_owned()));
        }
        if !process.terminal {
            return Ok(());
        }
        process.keep_size(size);
        // An exec has no terminal before it has started; init has, once it is created.
        let there = exec.is_none_or(|exec| exec.pid() != 0);
        if !there || self.flow.now() != Flow::Running {
            return Ok(());
        }
        let id = exec.map_or("", |exec| exec.id());
        tokio::select! {
            biased;
            told = tell_size(vm, process, id) => match told {
                Err(TaskError::Agent(error)) => Err(self.refused(process, error).await),
                told => told,
            },
            () = self.flow.stopping() => {
                process.keep_size(size);
                Ok(())
            }
        }
    }

    /// Sends the guest every size that is kept.
    pub(super) async fn tell_sizes(&self, vm: &LoadedVm) {
        let execs = self.execs_where(|exec| exec.pid() != 0);
        let execs = execs.iter().map(|exec| (&exec.process, exec.id()));
        for (process, id) in std::iter::once((&self.init, "")).chain(execs) {
            if let Err(error) = tell_size(vm, process, id).await {
                tracing::debug!(process = process.name(), %error, "the terminal keeps its size");
                if matches!(&error, TaskError::Agent(agent) if agent.is_silence()) {
                    return;
                }
            }
        }
    }
}

/// Sends the guest the size that is kept, if any.
pub(super) async fn tell_size(vm: &LoadedVm, process: &Process, id: &str) -> Result<(), TaskError> {
    match process.take_size() {
        Some(size) => Ok(vm.programs().resize(id, size).await?),
        None => Ok(()),
    }
}
