//! Begins and ends the streams of one instance, from wherever that is decided.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::watch;
use wasmvm_protocol::inspect::{Inspect, Node};

/// The phase of standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StdinPhase {
    /// Before `Start`: the client's input stays in the FIFO.
    Held,
    /// After `Start`: input flows to the guest.
    Open,
    /// After `CloseIO`: the input in the FIFO is the last.
    Closing,
}

/// The phase of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum OutputPhase {
    /// The program runs and may write more.
    Flowing,
    /// The program has exited: its last output is on its way.
    Ended,
    /// `Delete` waits: a connected reader gets [`super::pump::DRAIN_MAX`], an absent one nothing.
    Leaving,
}

/// Begins and ends the streams of one instance; the switch exists before the streams do.
#[derive(Clone, Debug)]
pub(crate) struct StdioSwitch {
    pub(super) stdin: watch::Sender<StdinPhase>,
    pub(super) output: watch::Sender<OutputPhase>,
    /// Outputs whose FIFO is full.
    unread: Arc<AtomicUsize>,
    /// Bytes that the FIFOs have taken.
    read: Arc<AtomicU64>,
}

/// The streams of one instance at one moment.
#[derive(Debug)]
pub(crate) struct StreamsView {
    stdin: &'static str,
    output: &'static str,
    /// Outputs that wait for a reader.
    unread: usize,
    /// Output that has been read, or lies in a FIFO.
    bytes_read: u64,
}

/// Prints streams as in "standard input is open; output flows, 1 of it waiting for a reader".
impl fmt::Display for StreamsView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stdin, output, .. } = self;
        write!(f, "standard input {stdin}; output {output}")?;
        match self.unread {
            0 => Ok(()),
            streams => write!(f, ", {streams} of it waiting for a reader"),
        }
    }
}

impl Inspect for StreamsView {
    fn inspect(&self) -> Node {
        Node::new()
            .with("stdin", self.stdin)
            .with("output", self.output)
            .with("output_bytes", self.bytes_read)
            .with("waiting_for_reader", self.unread)
    }
}

/// Counts an output as waiting for its reader, until dropped.
#[derive(Debug)]
pub(super) struct Unread(Arc<AtomicUsize>);

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for StdioSwitch {
    fn default() -> Self {
        Self {
            stdin: watch::Sender::new(StdinPhase::Held),
            output: watch::Sender::new(OutputPhase::Flowing),
            unread: Arc::default(),
            read: Arc::default(),
        }
    }
}

impl StdioSwitch {
    /// Lets standard input flow, at `Start`.
    pub(crate) fn open_stdin(&self) {
        self.stdin.send_if_modified(|phase| {
            let held = *phase == StdinPhase::Held;
            if held {
                *phase = StdinPhase::Open;
            }
            held
        });
    }

    /// Ends standard input with what is in the FIFO, at `CloseIO`; any number of times.
    pub(crate) fn close_stdin(&self) {
        self.stdin.send_replace(StdinPhase::Closing);
    }

    /// Begins the last wait for readers, at `Delete`; any number of times.
    pub(crate) fn begin_drain(&self) {
        self.advance(OutputPhase::Leaving);
    }

    /// The phases of the streams, for diagnostics.
    #[must_use]
    pub(crate) fn view(&self) -> StreamsView {
        let stdin = match *self.stdin.borrow() {
            StdinPhase::Held => "waits for the start",
            StdinPhase::Open => "is open",
            StdinPhase::Closing => "is being closed",
        };
        let output = match *self.output.borrow() {
            OutputPhase::Flowing => "flows",
            OutputPhase::Ended => "of an ended program is being read",
            OutputPhase::Leaving => "is waited for by Delete",
        };
        StreamsView {
            stdin,
            output,
            unread: self.unread.load(Ordering::Relaxed),
            bytes_read: self.bytes_read(),
        }
    }

    /// Output that has been read, or lies in a FIFO, bytes.
    #[must_use]
    pub(crate) fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    pub(super) fn count_read(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn waits_for_reader(&self) -> Unread {
        self.unread.fetch_add(1, Ordering::Relaxed);
        Unread(self.unread.clone())
    }

    pub(super) fn advance(&self, to: OutputPhase) {
        self.output.send_if_modified(|phase| {
            let forward = *phase < to;
            *phase = to.max(*phase);
            forward
        });
    }
}
