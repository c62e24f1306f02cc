//! One connection against a model of it: what was sent, what was given credit for, how far it has come.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "a panic is what a target reports by"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use arbitrary::{Result, Unstructured};

use super::*;
use crate::virtio::vsock::BUFFER_BYTES_MAX;

/// Never more is sent than there is credit for, and what is granted is never more than the buffer; bytes
/// arrive in order on both sides, none twice; `Done` is final, Connected and Refused are told once; the
/// state moves only along the diagram.
pub fn vsock_connection(input: &[u8]) {
    let mut u = Unstructured::new(input);
    let mut scene = Scene::new();
    while !u.is_empty() && scene.step(&mut u).is_ok() {}
}

/// The nth byte of a stream: two bytes in the wrong place are seldom the same.
fn byte(at: u32) -> u8 {
    at.wrapping_mul(167).wrapping_add(at >> 8).to_le_bytes()[0]
}

struct Scene {
    connection: Connection,
    far: Option<UnixStream>,
    now: Instant,
    /// The guest's last word on its credit.
    buf_alloc: u32,
    fwd_cnt: u32,
    /// Bytes of each stream, counted at each end.
    host_wrote: u32,
    guest_got: u32,
    guest_sent: u32,
    host_got: u32,
    answers: u32,
}

impl Scene {
    fn new() -> Self {
        let (connection, far) = Connection::waiting();
        Self {
            connection,
            far: Some(far),
            now: Instant::now(),
            buf_alloc: 0,
            fwd_cnt: 0,
            host_wrote: 0,
            guest_got: 0,
            guest_sent: 0,
            host_got: 0,
            answers: 0,
        }
    }

    fn step(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let before = self.connection.state.phase;
        match u.int_in_range(0..=7)? {
            0 => self.connection.start(self.now),
            1..=2 => self.packet(u)?,
            3 => self.speak(u)?,
            4 => self.host(u)?,
            5 => {
                let [read, write, hang_up] = u.arbitrary()?;
                let hang_up = hang_up && self.far.is_none();
                self.connection
                    .on_host_event(read, write, hang_up, self.now);
            }
            6 => {
                self.now += Duration::from_millis(u.arbitrary::<u16>()?.into());
                let event = self.connection.expire(self.now);
                self.told(event);
            }
            _ => self
                .connection
                .postpone(Duration::from_millis(u.arbitrary::<u8>()?.into())),
        }
        may_become(before, self.connection.state.phase);
        Ok(())
    }

    /// The guest sends a packet.
    fn packet(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let op = if u.ratio(1, 3)? {
            Op::Data as u16
        } else {
            u.int_in_range(0..=9)?
        };
        let len = u.arbitrary::<u32>()? >> u.int_in_range(16..=31)?;
        if u.arbitrary()? {
            // As it is: all that was sent is taken.
            (self.buf_alloc, self.fwd_cnt) = (BUFFER_BYTES_MAX, self.guest_got);
        } else if u.ratio(1, 3)? {
            (self.buf_alloc, self.fwd_cnt) = (u.arbitrary()?, u.arbitrary()?);
        }
        let header = Header {
            op,
            len,
            flags: u.int_in_range(0..=3)?,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        };
        let data = op == Op::Data as u16;
        let from = self.guest_sent;
        let payload: Vec<u8> = (from..from + if data { len } else { 0 })
            .map(byte)
            .collect();
        // What comes after the end of the stream, or after its reader, is dropped.
        let wanted = data
            && self.connection.state.phase == Phase::Open
            && self.connection.state.to_host.is_flowing();
        let event = self.connection.on_packet(&header, &payload, self.now);
        if wanted && self.connection.state.phase == Phase::Open {
            self.guest_sent += len;
        }
        self.told(event);
        Ok(())
    }

    fn told(&mut self, event: Option<VsockEvent>) {
        match event {
            Some(VsockEvent::Connected { id: 1 } | VsockEvent::Refused { id: 1, .. }) => {
                self.answers += 1;
                assert_eq!(self.answers, 1, "answered twice");
            }
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }

    /// The guest gets a packet, if there is one.
    fn speak(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let done = self.connection.state.phase == Phase::Done;
        let mut payload = vec![0; 1 + usize::from(u.arbitrary::<u16>()?)];
        let has = self.connection.has_packet(self.now);
        let packet = self.connection.next_packet(&mut payload, self.now);
        assert_eq!(has, packet.is_some());
        let Some(header) = packet else {
            return Ok(());
        };
        assert!(
            !done || header.op() == Some(Op::Reset),
            "Done says {header:?}"
        );
        let held = self.guest_sent.wrapping_sub(header.fwd_cnt);
        if !matches!(self.connection.state.phase, Phase::Done | Phase::Draining) {
            assert_eq!(header.buf_alloc, BUFFER_BYTES_MAX);
            assert!(
                held <= BUFFER_BYTES_MAX,
                "more granted than the buffer holds"
            );
        }
        assert!(header.op() == Some(Op::Data) || header.len == 0);
        let on_the_way = self.guest_got.wrapping_sub(self.fwd_cnt);
        let credit = self.buf_alloc.saturating_sub(on_the_way);
        assert!(
            header.len <= credit,
            "{} sent, credit for {credit}",
            header.len
        );
        let sent = &payload[..header.len as usize];
        let right = (self.guest_got..)
            .map(byte)
            .zip(sent)
            .all(|(model, got)| model == *got);
        assert!(right, "the guest gets other bytes");
        self.guest_got += header.len;
        assert!(self.guest_got <= self.host_wrote);
        Ok(())
    }

    /// The host's far end does something.
    fn host(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let len = u32::from(u.arbitrary::<u16>()?);
        let Some(mut far) = self.far.as_ref() else {
            return Ok(());
        };
        match u.int_in_range(0..=7)? {
            0..=2 => {
                let bytes: Vec<u8> = (self.host_wrote..self.host_wrote + len).map(byte).collect();
                let wrote = far.write(&bytes).unwrap_or(0);
                self.host_wrote += u32::try_from(wrote).unwrap();
            }
            3..=5 => {
                let mut bytes = vec![0; len as usize];
                let got = match far.read(&mut bytes) {
                    Err(err) if err.kind() == ErrorKind::WouldBlock => 0,
                    other => other.unwrap_or(0),
                };
                let right = (self.host_got..)
                    .map(byte)
                    .zip(&bytes[..got])
                    .all(|(model, got)| model == *got);
                assert!(right, "the host gets other bytes");
                self.host_got += u32::try_from(got).unwrap();
                assert!(self.host_got <= self.guest_sent);
            }
            6 => drop(far.shutdown(*u.choose(&[Shutdown::Read, Shutdown::Write])?)),
            _ => self.far = None,
        }
        Ok(())
    }
}

fn may_become(before: Phase, after: Phase) {
    let moves = match (before, after) {
        (from, to) if from == to => true,
        (Phase::Waiting, Phase::Connecting | Phase::Done)
        | (Phase::Connecting, Phase::Open | Phase::Done)
        | (Phase::Open, Phase::Closing | Phase::Draining | Phase::Done)
        | (Phase::Closing, Phase::Draining | Phase::Done)
        | (Phase::Draining, Phase::Done) => true,
        // Both ends over before the guest had answered: settled in the same breath.
        (Phase::Connecting, Phase::Closing) => true,
        _ => false,
    };
    assert!(moves, "{before:?} to {after:?}");
}
