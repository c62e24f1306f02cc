//! A guest that answers with any bytes, as many as a message may have.

#![allow(clippy::unwrap_used, reason = "a panic is what a target reports by")]

use arbitrary::{Result, Unstructured};
use async_trait::async_trait;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;

use super::*;
use crate::error::Refusal;

/// Bytes before every message (ttrpc's PROTOCOL.md): length and stream, big-endian; type; flags.
const FRAME_HEADER_BYTES: usize = 10;
/// ttrpc's limit of a message.
const MESSAGE_BYTES_MAX: u32 = 4 << 20;
/// A piece of an answer that is said again and again.
const UNIT_BYTES_MAX: usize = 64;
/// Written at once.
const PIECE_BYTES: usize = 4096;

/// However large, deep or numerous what is answered is, a call ends; the caller measures what it costs.
pub fn agent(input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (ours, guest) = UnixStream::pair().unwrap();
        let (_runs, clock) = watch::channel(true);
        let clock = GuestClock::new(clock);
        let agent = Agent::over(ours, Arc::new(Nobody), "web", Duration::ZERO, clock);
        let mut u = Unstructured::new(input);
        let method = u.int_in_range(0..=7).unwrap_or_default();
        // The guest has said all: its end closes, which ends the call at the latest.
        let (called, _used_up) = tokio::join!(call(&agent, method), answer(&mut u, guest));
        drop(called);
    });
}

/// A guest that no second connection reaches.
struct Nobody;

#[async_trait]
impl GuestConnector for Nobody {
    async fn connect(&self, _: u32) -> std::result::Result<UnixStream, Refusal> {
        std::future::pending().await
    }
}

async fn call(agent: &Agent, method: u8) -> std::result::Result<(), AgentError> {
    match method {
        0 => agent
            .start("")
            .await
            .map(|pid| assert!(pid < EXEC_PID_BASE)),
        1 => agent.kill("", 9, false).await,
        2 => agent
            .wait("")
            .await
            .map(|status| assert!(status <= STATUS_MAX)),
        3 => agent.delete("x").await,
        4 => {
            agent
                .resize(
                    "",
                    TerminalSize {
                        width: 1,
                        height: 1,
                    },
                )
                .await
        }
        5 => agent.update(Change::default()).await,
        6 => agent
            .oom_kills()
            .await
            .map(|kills| assert!(kills <= OOM_KILLS_MAX)),
        _ => agent.instances().await.map(drop),
    }
}

async fn answer(u: &mut Unstructured<'_>, mut guest: UnixStream) -> Result<()> {
    // The request: its stream is what answers have to name.
    let mut request = [0; FRAME_HEADER_BYTES];
    if guest.read_exact(&mut request).await.is_err() {
        return Ok(());
    }
    let stream = [request[4], request[5], request[6], request[7]];
    while !u.is_empty() {
        let unit_bytes = u.int_in_range(0..=UNIT_BYTES_MAX)?.min(u.len());
        let unit = u.bytes(unit_bytes)?;
        let times: u32 = if u.ratio(1, 4)? {
            u.int_in_range(0..=MESSAGE_BYTES_MAX)?
        } else {
            1
        };
        // A body in `payload` (field 2 of ttrpc's Response), or a Response by hand.
        let wrapped = u.arbitrary()?;
        let repeated = u32::try_from(unit.len())
            .unwrap_or(0)
            .saturating_mul(times)
            .min(MESSAGE_BYTES_MAX - 16);
        let mut head = Vec::new();
        if wrapped {
            head.push(0x12);
            let mut rest = repeated;
            while rest >= 0x80 {
                head.push(rest.to_le_bytes()[0] | 0x80);
                rest >>= 7;
            }
            head.push(rest.to_le_bytes()[0]);
        }
        let len = if u.ratio(1, 16)? {
            u.arbitrary()?
        } else {
            repeated + u32::try_from(head.len()).unwrap_or(0)
        };
        let stream = if u.ratio(1, 16)? {
            u.arbitrary()?
        } else {
            stream
        };
        let kind = if u.ratio(1, 16)? { u.arbitrary()? } else { 2 };
        let frame = [&len.to_be_bytes()[..], &stream, &[kind, 0], &head].concat();
        if guest.write_all(&frame).await.is_err()
            || repeat(&mut guest, unit, repeated).await.is_err()
        {
            break;
        }
    }
    Ok(())
}

async fn repeat(guest: &mut UnixStream, unit: &[u8], bytes: u32) -> std::io::Result<()> {
    let piece = unit.repeat(PIECE_BYTES / unit.len().max(1));
    let mut left = usize::try_from(bytes).unwrap_or(0);
    while left > 0 && !piece.is_empty() {
        let now = left.min(piece.len());
        guest.write_all(&piece[..now]).await?;
        left -= now;
    }
    Ok(())
}
