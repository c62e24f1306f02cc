//! A task's standard streams: the client's FIFOs on one side, streams to the guest on the other.
//!
//! ```text
//! stdin  FIFO ──► 64 KiB ──► guest    from Start until CloseIO and the FIFO is drained, then half-close
//! stdout FIFO ◄── 64 KiB ◄── guest    until the guest's end of file
//! stderr FIFO ◄── 64 KiB ◄── guest
//! ```
//!
//! A slow reader stops the writer in the guest, never the shim: one buffer per stream, and the copy waits.
//! No FIFO is opened in a way that waits for the other side. After the program's exit its output waits for
//! the reader until `Delete` comes, and then ten seconds more; the guest, which only has to hand over what
//! it holds, is given ten seconds of its own time.

mod fifo;
mod log_file;
mod logger;
mod pump;
mod sinks;
mod switch;
mod uri;

pub(crate) use fifo::{InputFifo, OutputFifo, StdioError};
#[cfg(test)]
pub(crate) use pump::tests::open_reader;
use sinks::Outputs;
pub(crate) use sinks::Sinks;
#[cfg(feature = "fuzzing")]
pub(crate) use uri::fuzz;

pub(crate) use pump::{GuestStreams, Pumps};
pub(crate) use switch::{StdioSwitch, StreamsView};

/// The streams of one instance as containerd names them (see [`uri`]); an empty name is the null device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StdioNames {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

impl StdioNames {
    /// The names of a request. A terminal has one output: where its errors should go is ignored, as by runc's shim
    /// (containerd's own clients name a FIFO all the same).
    #[must_use]
    pub(crate) fn of(terminal: bool, stdin: String, stdout: String, stderr: String) -> Self {
        Self {
            stdin,
            stdout,
            stderr: if terminal { String::new() } else { stderr },
        }
    }
}

/// The opened streams; `None` where the program gets the null device.
#[derive(Debug, Default)]
pub(crate) struct Stdio {
    pub stdin: Option<InputFifo>,
    pub stdout: Option<OutputFifo>,
    pub stderr: Option<OutputFifo>,
    /// Log files and logger behind the outputs, which end after the outputs.
    pub sinks: Sinks,
}

/// The owner of streams, as a logger finds it in its environment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StdioOwner<'a> {
    /// containerd's namespace, a logger's `CONTAINER_NAMESPACE`.
    pub namespace: &'a str,
    /// The task's id, or an exec's own as runc's shim has it: a logger's `CONTAINER_ID`.
    pub id: &'a str,
}

impl Stdio {
    /// Opens the streams that the names describe, and starts a logger.
    ///
    /// # Errors
    /// [`StdioError`], naming the stream and its path.
    pub(crate) async fn open(
        names: &StdioNames,
        owner: &StdioOwner<'_>,
    ) -> Result<Self, StdioError> {
        let stdin = uri::input_path(&names.stdin)?
            .map(|path| InputFifo::open(&path))
            .transpose()?;
        let outputs = Outputs::open(names, owner).await?;
        Ok(Self {
            stdin,
            stdout: outputs.stdout,
            stderr: outputs.stderr,
            sinks: outputs.sinks,
        })
    }
}
