//! Further programs in a running task, as `ctr task exec` starts them.

use std::process::Child;

use crate::ctr::{Outcome, ctr_in_background, ctr_with_stdin};
use crate::task::{Task, fresh_id};
use crate::terminal::Terminal;

/// A `ctr task exec` in the making.
#[derive(Clone, Debug)]
pub struct Exec {
    task: String,
    id: String,
    options: Vec<String>,
    arguments: Vec<String>,
    stdin: Vec<u8>,
}

impl Exec {
    /// Runs this command line in the task.
    #[must_use]
    pub fn of<const N: usize>(task: &Task, arguments: [&str; N]) -> Self {
        Self {
            task: task.id().to_owned(),
            id: fresh_id(),
            options: Vec::new(),
            arguments: arguments.map(String::from).to_vec(),
            stdin: Vec::new(),
        }
    }

    /// The id of the exec.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Adds an option of `ctr task exec`.
    #[must_use]
    pub fn option(mut self, option: &str, value: &str) -> Self {
        self.options.extend([option.into(), value.into()]);
        self
    }

    /// Gives it a standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// To the end.
    #[must_use]
    #[track_caller]
    pub fn to_end(self) -> Outcome {
        ctr_with_stdin(self.line(), self.stdin)
    }

    /// In the background of this test, its streams piped.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    #[track_caller]
    pub fn in_background(self) -> Child {
        ctr_in_background(self.line())
    }

    /// Starts it and leaves it to itself.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn detached(mut self) {
        self.options.push("--detach".into());
        let _ = self.to_end().expect_status(0);
    }

    /// On a terminal of its own.
    #[must_use]
    #[track_caller]
    pub fn on_terminal(mut self) -> Terminal {
        self.options.push("--tty".into());
        Terminal::of_ctr(self.line())
    }

    fn line(&self) -> Vec<String> {
        let mut line = ["task", "exec", "--exec-id", &self.id]
            .map(String::from)
            .to_vec();
        line.extend(self.options.iter().cloned());
        line.push(self.task.clone());
        line.extend(self.arguments.iter().cloned());
        line
    }
}
