//! The two directions of a connection: bytes, credit and how far each has come.
//!
//! Nothing here waits, and nothing is held that credit was not given for: a host that does not read
//! leaves the guest without credit, a guest that does not read leaves the host's socket full.

use super::BUFFER_BYTES_MAX;
use super::backlog::Backlog;
use super::credit::{ReceiveCredit, SendCredit};
use super::handle::CutReason;
use super::host::{Host, HostRead, HostWriteError};
use super::packet::Header;

/// How far one direction has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flow {
    /// There may be more.
    #[default]
    Flowing,
    /// The source is dry, but bytes may be under way.
    Ended,
    /// Nothing is under way, or nobody wants it.
    Closed,
}

/// From the host's end to the guest.
#[derive(Debug, Default)]
pub(super) struct ToGuest {
    flow: Flow,
    bytes: Backlog,
    credit: SendCredit,
    /// Credit was asked for and not given yet.
    asked: bool,
}

impl ToGuest {
    /// Takes over the credit that every header tells.
    pub(super) fn learn(&mut self, header: &Header) {
        let had_none = self.credit.available() == 0;
        self.credit.update(header.buf_alloc, header.fwd_cnt);
        if had_none && self.credit.available() > 0 {
            self.asked = false;
        }
    }

    /// Reads from the host once all it sent before is with the guest.
    pub(super) fn refill(&mut self, host: &mut Host) {
        let wanted = self.flow == Flow::Flowing && self.bytes.is_empty();
        if wanted && host.read(&mut self.bytes) == HostRead::Ended {
            self.flow = Flow::Ended;
        }
    }

    /// Whether to ask for credit: once, when bytes are there and the guest does not let us send.
    pub(super) fn should_ask(&mut self) -> bool {
        let blocked = !self.bytes.is_empty() && self.credit.available() == 0;
        blocked && !std::mem::replace(&mut self.asked, true)
    }

    /// Whether there is something to send that may be sent.
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

    /// The guest wants no more, or there is nobody to send more.
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

/// From the guest to the host's end.
#[derive(Debug, Default)]
pub(super) struct ToHost {
    flow: Flow,
    bytes: Backlog,
    credit: ReceiveCredit,
}

impl ToHost {
    /// Passes on what the guest sent; what the host does not take at once is kept.
    ///
    /// # Errors
    /// As writing to the host's end; [`HostWriteError::Cut`] also when the guest had no credit.
    pub(super) fn receive(
        &mut self,
        payload: &[u8],
        host: &mut Host,
    ) -> Result<(), HostWriteError> {
        // A guest that sends after it said it would not, or after it was told that nobody reads.
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

    /// Passes on what the host did not take before.
    ///
    /// # Errors
    /// As writing to the host's end.
    pub(super) fn flush(&mut self, host: &mut Host) -> Result<(), HostWriteError> {
        if !self.bytes.is_empty() {
            let written = host.write(self.bytes.bytes())?;
            self.bytes.consume(written);
            self.credit.forward(count(written));
        }
        Ok(())
    }

    /// Whether the guest is to be told of its credit by a packet of its own.
    pub(super) fn update_due(&self) -> bool {
        self.flow == Flow::Flowing && self.credit.update_due()
    }

    /// `buf_alloc` and `fwd_cnt` of a header that is about to be sent.
    pub(super) fn tell_credit(&mut self) -> (u32, u32) {
        (BUFFER_BYTES_MAX, self.credit.tell())
    }

    /// The guest sends no more. True when it had not said so before.
    pub(super) fn end(&mut self) -> bool {
        let flowing = self.flow == Flow::Flowing;
        if flowing {
            self.flow = Flow::Ended;
        }
        flowing
    }

    /// The host reads no more. True when that is news.
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
