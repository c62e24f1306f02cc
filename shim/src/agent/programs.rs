//! [`Programs`]: what a task asks of its programs.

use async_trait::async_trait;
use wasmvm_protocol::agent::{Change, Instance, Program};

use super::{AgentError, TerminalSize};
use crate::stdio::{GuestStreams, Stdio};

/// The programs of a task, each named by its exec id, which is empty for init.
///
/// A request that nobody answers fails at its own deadline, which counts the time in which the programs run.
#[async_trait]
pub(crate) trait Programs: Send + Sync {
    /// Loads the program of an exec with its streams.
    ///
    /// # Errors
    /// [`AgentError`]; `Refused` carries the sentence that the user is to read.
    async fn exec(
        &self,
        exec_id: &str,
        spec: Program,
        stdio: &Stdio,
        terminal: bool,
    ) -> Result<GuestStreams, AgentError>;

    /// Lets a loaded program run; returns its pid in the guest.
    ///
    /// # Errors
    /// [`AgentError`]
    async fn start(&self, exec_id: &str) -> Result<u32, AgentError>;

    /// Sends a signal to one program, or with `all` to every program of the guest.
    ///
    /// # Errors
    /// [`AgentError`]; [`AgentError::says_ended`] when the program has ended.
    async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), AgentError>;

    /// Waits for a program's exit, as long as the program runs; returns the exit status, 0 to 255.
    ///
    /// # Errors
    /// [`AgentError`] when the guest refuses, or the agent's connection has broken.
    async fn wait(&self, exec_id: &str) -> Result<u32, AgentError>;

    /// Forgets an exec that has exited.
    ///
    /// # Errors
    /// [`AgentError`]
    async fn delete(&self, exec_id: &str) -> Result<(), AgentError>;

    /// Sets the size of a program's terminal.
    ///
    /// # Errors
    /// [`AgentError`]
    async fn resize(&self, exec_id: &str, size: TerminalSize) -> Result<(), AgentError>;

    /// Sends a change, and with it the time of day, which the guest may have missed.
    ///
    /// # Errors
    /// [`AgentError`]
    async fn update(&self, change: Change) -> Result<(), AgentError>;

    /// Whether the guest's time of day is not the host's.
    fn has_wrong_time(&self) -> bool;

    /// Counts the guest's time of day as right, whatever the guest has received.
    fn time_is_told(&self);

    /// How many programs the guest's kernel has OOM-killed, by the guest's report.
    ///
    /// # Errors
    /// [`AgentError`]
    async fn oom_kills(&self) -> Result<u64, AgentError>;

    /// The programs of the guest and their threads, by the guest's report; in no particular order.
    ///
    /// # Errors
    /// [`AgentError`]
    async fn instances(&self) -> Result<Vec<Instance>, AgentError>;
}
