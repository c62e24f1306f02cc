//! A task's standard streams: the client's FIFOs on one side, streams to the guest on the other.
//!
//! ```text
//! stdin  FIFO ──► 64 KiB ──► guest    from Start until CloseIO and the FIFO is drained, then half-close
//! stdout FIFO ◄── 64 KiB ◄── guest    until the guest's end of file
//! stderr FIFO ◄── 64 KiB ◄── guest
//! ```
//!
//! A slow reader stops the writer in the guest, never the shim: one buffer per stream, and the copy
//! waits. Nothing here opens a FIFO in a way that waits for the other side.

mod fifo;
mod pump;

pub use fifo::{InputFifo, OutputFifo, StdioError};
#[cfg(test)]
pub use pump::tests::open_reader;
pub use pump::{GuestStreams, Pumps, StdinSwitch};

/// The streams of one instance as containerd names them: paths of FIFOs, or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StdioNames {
    /// Read until `CloseIO`.
    pub stdin: String,
    /// Written.
    pub stdout: String,
    /// Written.
    pub stderr: String,
}

/// The opened FIFOs; `None` where the program gets the null device.
#[derive(Debug, Default)]
pub struct Stdio {
    /// What the client writes.
    pub stdin: Option<InputFifo>,
    /// What the client reads.
    pub stdout: Option<OutputFifo>,
    /// What the client reads.
    pub stderr: Option<OutputFifo>,
}

impl Stdio {
    /// Opens what the names say. Must be called inside the runtime.
    ///
    /// # Errors
    /// [`StdioError`], naming the stream and its path.
    pub fn open(names: &StdioNames) -> Result<Self, StdioError> {
        Ok(Self {
            stdin: fifo::path("stdin", &names.stdin)?
                .map(InputFifo::open)
                .transpose()?,
            stdout: fifo::path("stdout", &names.stdout)?
                .map(|path| OutputFifo::open("stdout", path))
                .transpose()?,
            stderr: fifo::path("stderr", &names.stderr)?
                .map(|path| OutputFifo::open("stderr", path))
                .transpose()?,
        })
    }
}
