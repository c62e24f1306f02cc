//! A sandbox as the one program that it seems to run: its start, signals to it, and its exit.

use async_trait::async_trait;
use wasmvm_protocol::agent::{Change, Instance, Program};

use super::Holder;
use crate::agent::{AgentError, Meaning, Method, Programs, TerminalSize};
use crate::signals;
use crate::stdio::{GuestStreams, Stdio};

/// The error of a request that a sandbox gets for no exec, as none can be found in it.
fn no_exec(method: Method) -> AgentError {
    AgentError::Refused {
        method,
        meaning: Meaning::Failed,
        sentence: "the sandbox of a pod has no exec".into(),
    }
}

#[async_trait]
impl Programs for Holder {
    async fn exec(
        &self,
        _: &str,
        _: Program,
        _: &Stdio,
        _: bool,
    ) -> Result<GuestStreams, AgentError> {
        Err(no_exec(Method::Exec))
    }

    /// Succeeds: the holder runs from the sandbox's creation on.
    async fn start(&self, _: &str) -> Result<u32, AgentError> {
        Ok(0)
    }

    async fn kill(&self, _: &str, signal: u32, _: bool) -> Result<(), AgentError> {
        if let Some(signal) = signals::named(signal) {
            self.process.host.signal(signal);
        }
        Ok(())
    }

    async fn wait(&self, _: &str) -> Result<u32, AgentError> {
        Ok(self.exited().await)
    }

    async fn delete(&self, _: &str) -> Result<(), AgentError> {
        Err(no_exec(Method::Delete))
    }

    async fn resize(&self, _: &str, _: TerminalSize) -> Result<(), AgentError> {
        Ok(())
    }

    async fn update(&self, _: Change) -> Result<(), AgentError> {
        Ok(())
    }

    fn has_wrong_time(&self) -> bool {
        false
    }

    fn time_is_told(&self) {}

    /// The guest's count, which is 0: only the host can OOM-kill a holder.
    async fn oom_kills(&self) -> Result<u64, AgentError> {
        Ok(0)
    }

    async fn instances(&self) -> Result<Vec<Instance>, AgentError> {
        Ok(Vec::new())
    }
}
