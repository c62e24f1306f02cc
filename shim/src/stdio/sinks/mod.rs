//! The log files and loggers behind the outputs, which must be waited for.

use std::time::Duration;

use tokio::time::Instant;

use super::fifo::OutputFifo;
use super::log_file::LogFile;
use super::logger::Logger;
use super::uri::{self, Target};
use super::{StdioError, StdioNames, StdioOwner};

/// The log files and the logger of one instance; FIFOs need no sink.
#[derive(Debug, Default)]
pub(crate) struct Sinks {
    files: Vec<LogFile>,
    logger: Option<Logger>,
}

/// The opened outputs of one instance, and the sinks behind them.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    pub stdout: Option<OutputFifo>,
    pub stderr: Option<OutputFifo>,
    pub sinks: Sinks,
}

impl Outputs {
    /// Opens the outputs that the names describe.
    ///
    /// # Errors
    /// [`StdioError`]; then nothing is left running.
    pub(super) async fn open(
        names: &StdioNames,
        owner: &StdioOwner<'_>,
    ) -> Result<Self, StdioError> {
        let stdout = uri::parse("stdout", &names.stdout)?;
        let stderr = uri::parse("stderr", &names.stderr)?;
        if let Some(command) = uri::shared(&stdout, &stderr) {
            let started = Logger::start(command, owner).await?;
            let wanted = |target: &Target| *target != Target::Null;
            return Ok(Self {
                stdout: Some(started.stdout).filter(|_| wanted(&stdout)),
                stderr: Some(started.stderr).filter(|_| wanted(&stderr)),
                sinks: Sinks {
                    files: Vec::new(),
                    logger: Some(started.logger),
                },
            });
        }
        let mut sinks = Sinks::default();
        Ok(Self {
            stdout: sinks.open("stdout", &stdout, names).await?,
            stderr: sinks.open("stderr", &stderr, names).await?,
            sinks,
        })
    }
}

impl Sinks {
    async fn open(
        &mut self,
        stream: &'static str,
        target: &Target,
        names: &StdioNames,
    ) -> Result<Option<OutputFifo>, StdioError> {
        match target {
            Target::Null => Ok(None),
            Target::Fifo(path) => OutputFifo::open(stream, path).map(Some),
            Target::File(path) => {
                let (file, fifo) = LogFile::open(stream, path).await?;
                self.files.push(file);
                Ok(Some(fifo))
            }
            Target::Logger(_) => Err(StdioError::TwoLoggers {
                stdout: crate::error::printable(&names.stdout),
                stderr: crate::error::printable(&names.stderr),
            }),
        }
    }

    /// Waits, once the outputs are closed, until the sinks have taken everything, at most until `deadline`
    /// and, for a logger that does not end, a little more.
    pub(crate) async fn finish(&mut self, deadline: Instant) {
        let left = || deadline.saturating_duration_since(Instant::now());
        for file in &mut self.files {
            file.finish(left()).await;
        }
        self.files.clear();
        if let Some(mut logger) = self.logger.take() {
            logger.finish(left().max(Duration::from_millis(1))).await;
        }
    }
}

#[cfg(test)]
mod tests;
