//! The two directions of a connection: bytes, credit and the state of each.
//!
//! No call here waits, and no byte is held that credit was not given for: a host that does not read
//! leaves the guest without credit, a guest that does not read leaves the host's socket full.

use wasmvm_protocol::inspect::{Inspect, Node};

use super::BUFFER_BYTES_MAX;
use super::backlog::Backlog;
use super::credit::{ReceiveCredit, SendCredit};
use super::handle::CutReason;
use super::host::{Host, HostRead, HostWriteError};
use super::packet::Header;

/// State of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flow {
    /// More bytes may come.
    #[default]
    Flowing,
    /// The source is dry, but bytes may be under way.
    Ended,
    /// No byte is under way, or no side wants one.
    Closed,
}

/// The direction from the host's end to the guest.
#[derive(Debug, Default)]
pub(super) struct ToGuest {
    flow: Flow,
    bytes: Backlog,
    credit: SendCredit,
    /// Whether credit was asked for and not given yet.
    asked: bool,
}

impl Flow {
    fn name(self) -> &'static str {
        match self {
            Self::Flowing => "flowing",
            Self::Ended => "ended",
            Self::Closed => "closed",
        }
    }
}

/// `bytes` are those under way, `credit` those that the guest takes beside them.
impl Inspect for ToGuest {
    fn inspect(&self) -> Node {
        Node::new()
            .with("flow", self.flow.name())
            .with("bytes", self.bytes.bytes().len())
            .with("credit", self.credit.available())
    }
}

/// `bytes` are those that the host has not taken yet.
impl Inspect for ToHost {
    fn inspect(&self) -> Node {
        Node::new()
            .with("flow", self.flow.name())
            .with("bytes", self.bytes.bytes().len())
    }
}

impl ToGuest {
    /// Takes over the credit that every header has.
    pub(super) fn learn(&mut self, header: &Header) {
        let had_none = self.credit.available() == 0;
        self.credit.update(header.buf_alloc, header.fwd_cnt);
        if had_none && self.credit.available() > 0 {
            self.asked = false;
        }
    }

    /// Reads from the host once the guest has got all bytes that were read before.
    pub(super) fn refill(&mut self, host: &mut Host) {
        let wanted = self.flow == Flow::Flowing && self.bytes.is_empty();
        if wanted && host.read(&mut self.bytes) == HostRead::Ended {
            self.flow = Flow::Ended;
        }
    }

    /// Whether to ask for credit: once, when bytes are waiting and the guest gave no credit for them.
    pub(super) fn should_ask(&mut self) -> bool {
        let blocked = !self.bytes.is_empty() && self.credit.available() == 0;
        blocked && !std::mem::replace(&mut self.asked, true)
    }

    /// Whether bytes are waiting that the guest gave credit for.
    pub(super) fn has_data(&self) -> bool {
        !self.bytes.is_empty() && self.credit.available() > 0
    }

    /// Moves bytes into a packet; returns how many.
    pub(super) fn take(&mut self, payload: &mut [u8]) -> u32 {
        let room = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let bytes = self.bytes.bytes();
        let have = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let len = have.min(room).min(self.credit.available());
        payload[..len as usize].copy_from_slice(&bytes[..len as usize]);
        self.bytes.consume(len as usize);
        self.credit.spend(len);
        len
    }

    /// Closes the direction: the guest wants no more, or no more will be sent.
    pub(super) fn close(&mut self) {
        self.flow = Flow::Closed;
        self.bytes.clear();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.flow == Flow::Closed
    }

    /// Closes a direction that has ended and run empty; true when that happened now.
    pub(super) fn settle(&mut self) -> bool {
        settle(&mut self.flow, &self.bytes)
    }
}

/// The direction from the guest to the host's end.
#[derive(Debug, Default)]
pub(super) struct ToHost {
    flow: Flow,
    bytes: Backlog,
    credit: ReceiveCredit,
}

impl ToHost {
    /// Passes the guest's bytes on; bytes that the host does not take at once are kept.
    ///
    /// # Errors
    /// Those of [`Host::write`]; [`HostWriteError::Cut`] also when the guest had no credit.
    pub(super) fn receive(
        &mut self,
        payload: &[u8],
        host: &mut Host,
    ) -> Result<(), HostWriteError> {
        // A guest that sends after its own SHUTDOWN of sending, or after ours of receiving.
        if self.flow != Flow::Flowing {
            return Ok(());
        }
        if !self.credit.receive(count(payload.len())) {
            return Err(HostWriteError::Cut(CutReason::Credit));
        }
        let written = if self.bytes.is_empty() {
            host.write(payload)?
        } else {
            0
        };
        self.bytes.push(&payload[written..]);
        self.credit.forward(count(written));
        Ok(())
    }

    /// Passes on bytes that the host did not take before.
    ///
    /// # Errors
    /// Those of [`Host::write`].
    pub(super) fn flush(&mut self, host: &mut Host) -> Result<(), HostWriteError> {
        if !self.bytes.is_empty() {
            let written = host.write(self.bytes.bytes())?;
            self.bytes.consume(written);
            self.credit.forward(count(written));
        }
        Ok(())
    }

    /// Whether the guest should get a `CREDIT_UPDATE`.
    pub(super) fn update_due(&self) -> bool {
        self.flow == Flow::Flowing && self.credit.update_due()
    }

    /// `buf_alloc` and `fwd_cnt` of a header that is about to be sent.
    pub(super) fn tell_credit(&mut self) -> (u32, u32) {
        (BUFFER_BYTES_MAX, self.credit.tell())
    }

    /// Ends the direction: the guest sends no more. True when the direction was flowing.
    pub(super) fn end(&mut self) -> bool {
        let flowing = self.flow == Flow::Flowing;
        if flowing {
            self.flow = Flow::Ended;
        }
        flowing
    }

    /// Closes the direction: the host reads no more. True when the direction was not closed before.
    pub(super) fn close(&mut self) -> bool {
        self.bytes.clear();
        std::mem::replace(&mut self.flow, Flow::Closed) != Flow::Closed
    }

    pub(super) fn is_flowing(&self) -> bool {
        self.flow == Flow::Flowing
    }

    pub(super) fn is_closed(&self) -> bool {
        self.flow == Flow::Closed
    }

    /// Closes a direction that has ended and run empty; true when that happened now.
    pub(super) fn settle(&mut self) -> bool {
        settle(&mut self.flow, &self.bytes)
    }
}

fn settle(flow: &mut Flow, bytes: &Backlog) -> bool {
    let settles = *flow == Flow::Ended && bytes.is_empty();
    if settles {
        *flow = Flow::Closed;
    }
    settles
}

/// A number of bytes that is at most [`super::packet::PAYLOAD_BYTES_MAX`].
fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
