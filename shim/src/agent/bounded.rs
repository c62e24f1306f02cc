//! The byte stream under a ttrpc client, with bounds on what the guest may send.
//!
//! ```text
//! vsock stream ──► Bounded ──► ttrpc client ──► protobuf
//!                    │
//!                    └─ a frame beyond REPLY_BYTES_MAX, or too many of them: an error, once and for all
//! ```
//!
//! ttrpc itself takes frames of 4 MiB, and protobuf keeps fields that it does not know: a few bytes on the
//! wire become some fifty times as many in memory. So the bounds are on the size that a frame may have when
//! it is decoded ([`REPLY_BYTES_MAX`] says why that is so small), on the lengths that are claimed in a
//! frame ([`wire`]), and on the work that frames make in a second. The client takes the error for the end
//! of the connection, and so does the task: a guest that floods its agent's connection loses the
//! connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use wasmvm_protocol::agent::REPLY_BYTES_MAX;

use super::wire;

/// ttrpc's frame header: length (u32, big endian), stream id (u32), type, flags.
const HEADER_BYTES: usize = 10;
/// The cost of any frame, in bytes of a large one: a wake-up, a look into the table of requests.
const FRAME_COST_BYTES: u64 = 64;
/// The sustained rate, bytes per second: twenty times what 30 execs that start and end in a second make.
const RATE_BYTES_PER_S_MAX: u64 = 128 << 10;
/// The burst, bytes: all 256 execs of a task that end at the same time make less than half of it.
const BURST_BYTES_MAX: u64 = 512 << 10;

/// A ttrpc client of a guest that is not trusted.
pub(crate) fn client<S>(stream: S) -> Client
where
    S: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
{
    Client::new(Socket::new(Bounded::new(stream)))
}

/// Why a guest's connection is not read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum FloodError {
    #[error("the guest sent a message of {0} bytes; the limit is {REPLY_BYTES_MAX}")]
    Frame(u32),
    #[error("the guest sent a message in which a field claims more bytes than there are")]
    Claim,
    #[error(
        "the guest sends more than {RATE_BYTES_PER_S_MAX} bytes of messages per second, or more small \
         messages than that is for"
    )]
    Rate,
}

/// A stream whose incoming frames are bounded, one by one and per second.
#[derive(Debug)]
struct Bounded<S> {
    stream: S,
    frames: Frames,
    budget: Budget,
    flooded: Option<FloodError>,
}

impl<S> Bounded<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            frames: Frames::default(),
            budget: Budget::full(),
            flooded: None,
        }
    }

    fn admit(&mut self, bytes: &[u8]) -> Result<(), FloodError> {
        let frames = self.frames.pass(bytes)?;
        let bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let cost = bytes.saturating_add(frames.saturating_mul(FRAME_COST_BYTES));
        self.budget.spend(cost, Instant::now())
    }
}

/// The position of the stream within a frame.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; HEADER_BYTES],
    /// Bytes of the header that have arrived.
    have: usize,
    /// Bytes of the payload that are still to come.
    payload: usize,
    /// The part of the payload that has arrived.
    body: Vec<u8>,
}

impl Frames {
    /// Walks over bytes that have arrived; returns how many frame headers end in them.
    fn pass(&mut self, mut bytes: &[u8]) -> Result<u64, FloodError> {
        let mut begun = 0;
        while !bytes.is_empty() {
            if self.payload > 0 {
                let step = self.payload.min(bytes.len());
                self.payload -= step;
                self.body.extend_from_slice(&bytes[..step]);
                bytes = &bytes[step..];
                // The client has not got the frame's last byte yet, so it has not decoded the frame.
                if self.payload == 0 && !wire::response_holds(&self.body) {
                    return Err(FloodError::Claim);
                }
                continue;
            }
            let step = (HEADER_BYTES - self.have).min(bytes.len());
            self.header[self.have..self.have + step].copy_from_slice(&bytes[..step]);
            self.have += step;
            bytes = &bytes[step..];
            if self.have == HEADER_BYTES {
                let [a, b, c, d, ..] = self.header;
                let length = u32::from_be_bytes([a, b, c, d]);
                let payload = usize::try_from(length).unwrap_or(usize::MAX);
                if payload > REPLY_BYTES_MAX {
                    return Err(FloodError::Frame(length));
                }
                (self.have, self.payload) = (0, payload);
                self.body.clear();
                begun += 1;
            }
        }
        Ok(begun)
    }
}

/// A token bucket, counted in bytes of messages.
#[derive(Debug)]
struct Budget {
    bytes: u64,
    since: Instant,
}

impl Budget {
    fn full() -> Self {
        Self {
            bytes: BURST_BYTES_MAX,
            since: Instant::now(),
        }
    }

    fn spend(&mut self, cost: u64, now: Instant) -> Result<(), FloodError> {
        let passed = now.saturating_duration_since(self.since);
        let refill = refill(passed);
        if refill > 0 {
            self.bytes = self.bytes.saturating_add(refill).min(BURST_BYTES_MAX);
            self.since = now;
        }
        self.bytes = self.bytes.checked_sub(cost).ok_or(FloodError::Rate)?;
        Ok(())
    }
}

fn refill(passed: Duration) -> u64 {
    let bytes = passed.as_micros() * u128::from(RATE_BYTES_PER_S_MAX) / 1_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(flooded) = this.flooded {
            return Poll::Ready(Err(io::Error::other(flooded)));
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        if let Err(flooded) = this.admit(&buf.filled()[before..]) {
            this.flooded = Some(flooded);
            buf.set_filled(before);
            return Poll::Ready(Err(io::Error::other(flooded)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn frame(length: usize) -> Vec<u8> {
        let mut bytes = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        bytes.resize(HEADER_BYTES + length, 0);
        bytes
    }

    proptest! {
        #[test]
        fn frames_are_found_however_they_are_cut(
            lengths in proptest::collection::vec(0..=REPLY_BYTES_MAX, 1..8),
            cut in 1_usize..4096,
        ) {
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| frame(*length)).collect();
            let mut frames = Frames::default();
            let begun: u64 = bytes.chunks(cut).map(|part| frames.pass(part).unwrap()).sum();
            prop_assert_eq!(begun, lengths.len() as u64);
            prop_assert_eq!((frames.have, frames.payload), (0, 0));
            let beyond = frame(REPLY_BYTES_MAX + 1);
            let refused = beyond.chunks(cut).find_map(|part| frames.pass(part).err());
            prop_assert_eq!(refused, Some(FloodError::Frame(8193)));
        }
    }

    #[tokio::test]
    async fn a_stream_that_broke_a_bound_stays_broken() {
        let (mut guest, shim) = tokio::io::duplex(1 << 20);
        let mut shim = Bounded::new(shim);
        guest.write_all(&frame(3)).await.unwrap();
        let mut taken = [0; HEADER_BYTES + 3];
        shim.read_exact(&mut taken).await.unwrap();
        guest.write_all(&frame(REPLY_BYTES_MAX + 1)).await.unwrap();
        for _ in 0..2 {
            let error = shim.read(&mut [0; 64]).await.unwrap_err().to_string();
            let expected = "the guest sent a message of 8193 bytes; the limit is 8192";
            assert_eq!(error, expected);
            guest.write_all(&frame(3)).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_a_flood_does_not() {
        // The smallest frames, and the largest.
        for length in [0, REPLY_BYTES_MAX] {
            let cost = FRAME_COST_BYTES + (HEADER_BYTES + length) as u64;
            let mut frames = 0;
            let mut bounded = Bounded::new(tokio::io::empty());
            while bounded.admit(&frame(length)).is_ok() {
                frames += 1;
            }
            assert_eq!(frames, BURST_BYTES_MAX / cost);
            // At the rate that is allowed it goes on for ever.
            let mut bounded = Bounded::new(tokio::io::empty());
            let pace = Duration::from_micros(cost * 1_000_000 / RATE_BYTES_PER_S_MAX + 1);
            for _ in 0..4 * frames {
                tokio::time::advance(pace).await;
                bounded.admit(&frame(length)).unwrap();
            }
        }
    }
}
