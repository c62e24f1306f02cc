//! The whole device against a mock driver, with real sockets on the host's side.

use std::io::{Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::thread;

use proptest::prelude::*;
use wasmvm_protocol::control::CONTROL_BYTES_MAX;

use super::super::CONNECTIONS_MAX;
use super::super::handle::{CutReason, RefusedReason};
use super::super::mock::{MockGuest, PATIENCE};
use super::super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use crate::gate::Closing;
use crate::report::sentence;
use crate::virtio::VirtioDevice;

const PORT: u32 = 1025;

/// A stream through the device: the host's far end and the request it was opened by.
pub(super) fn connect(guest: &mut MockGuest, id: u32) -> (UnixStream, Header) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    ours.set_write_timeout(Some(PATIENCE)).unwrap();
    guest.handle.connect(id, PORT, theirs.into()).unwrap();
    let request = guest.accept(id);
    assert_eq!(request.dst_port, PORT);
    (ours, request)
}

pub(super) fn ready_guest() -> MockGuest {
    let mut guest = MockGuest::new(true);
    guest.get_ready();
    guest
}

fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len)
        .map(|at| u8::try_from((at * 31 + (at >> 12)) % 251).unwrap())
        .collect()
}

/// A stream socket pair's end that ends with the expected bytes.
fn expect_to_end(mut stream: &UnixStream, expected: &[u8]) {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert!(
        bytes == expected,
        "{} bytes, not the {} sent",
        bytes.len(),
        expected.len()
    );
}

#[test]
fn orders_wait_until_the_guest_is_ready() {
    let mut guest = MockGuest::new(true);
    let (_ours, theirs) = UnixStream::pair().unwrap();
    guest.handle.connect(7, PORT, theirs.into()).unwrap();
    guest.get_ready();
    guest.accept(7);
    // A second word means nothing.
    guest.send(guest.header(Op::Request, 1000, 1024), &[]);
    assert_eq!(guest.expect(Op::Reset).dst_port, 1000);
    connect(&mut guest, 8);
}

#[test]
fn both_directions_close_one_by_one() {
    let mut guest = ready_guest();
    let (mut ours, request) = connect(&mut guest, 1);
    ours.write_all(b"question").unwrap();
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    let (data, payload) = guest.receive();
    assert_eq!(
        (data.op(), &payload[..]),
        (Some(Op::Data), &b"question"[..])
    );
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_SEND);

    guest.answer(&request, Op::Data, 0, b"answer");
    let mut answer = [0; 6];
    ours.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    guest.answer(&request, Op::Shutdown, SHUTDOWN_SEND, &[]);
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
    guest.answer(&request, Op::Reset, 0, &[]);
    expect_to_end(&ours, b"");
}

#[test]
fn a_guest_that_closes_is_answered_and_all_it_sent_delivered() {
    let mut guest = ready_guest();
    let (ours, request) = connect(&mut guest, 1);
    let bytes = pattern(0, 60_000);
    guest.answer(&request, Op::Data, 0, &bytes);
    guest.answer(&request, Op::Shutdown, SHUTDOWN_BOTH, &[]);
    while guest.receive().0.op() != Some(Op::Reset) {}
    expect_to_end(&ours, &bytes);
}

#[test]
fn a_host_that_does_not_read_stops_that_guest_writer_only() {
    let mut guest = ready_guest();
    let (slow, slow_request) = connect(&mut guest, 1);
    let (mut quick, quick_request) = connect(&mut guest, 2);
    // As a guest's kernel: as much as there is credit for.
    let chunk = pattern(0, 4096);
    let mut sent = 0_u32;
    let mut fwd_cnt = 0;
    loop {
        while let Some((header, _)) = guest.poll() {
            assert_eq!(header.op(), Some(Op::CreditUpdate));
            fwd_cnt = header.fwd_cnt;
        }
        if sent - fwd_cnt + 4096 > super::super::BUFFER_BYTES_MAX {
            // Out of credit: is it for good?
            guest.answer(&slow_request, Op::CreditRequest, 0, &[]);
            let update = guest.expect(Op::CreditUpdate);
            if update.fwd_cnt == fwd_cnt {
                break;
            }
            fwd_cnt = update.fwd_cnt;
            continue;
        }
        guest.answer(&slow_request, Op::Data, 0, &chunk);
        sent += 4096;
        assert!(sent < 16 << 20, "nothing stops the writer");
    }
    guest.answer(&quick_request, Op::Data, 0, b"still here");
    let mut bytes = [0; 10];
    quick.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
    // The reader comes back: all of it is there, and the guest may go on.
    let mut bytes = vec![0; sent as usize];
    (&slow).read_exact(&mut bytes).unwrap();
    assert!(bytes.chunks(4096).all(|got| got == chunk));
    assert!(guest.expect(Op::CreditUpdate).fwd_cnt > fwd_cnt);
}

#[test]
fn a_host_reader_that_is_gone_stops_the_guest_writer() {
    let mut guest = ready_guest();
    let (ours, request) = connect(&mut guest, 1);
    drop(ours);
    let mut flags = 0;
    while flags != SHUTDOWN_BOTH {
        flags |= guest.expect(Op::Shutdown).flags;
    }
    assert_eq!(flags & SHUTDOWN_RECEIVE, SHUTDOWN_RECEIVE);
    // Bytes that were under way are of no use to anybody.
    guest.answer(&request, Op::Data, 0, b"too late");
    // A guest that does not agree is reset.
    assert_eq!(guest.expect(Op::Reset).dst_port, request.dst_port);
}

#[test]
fn a_guest_without_credit_or_buffers_gets_nothing() {
    let mut guest = MockGuest::without_buffers(true);
    guest.buf_alloc = 10;
    (0..4).for_each(|index| guest.offer(index));
    guest.get_ready();
    let (mut ours, request) = connect(&mut guest, 1);
    ours.write_all(&pattern(0, 25)).unwrap();
    let (_, mut got) = guest.receive();
    assert_eq!(got.len(), 10);
    guest.expect(Op::CreditRequest);
    while got.len() < 25 {
        guest.fwd_cnt = u32::try_from(got.len()).unwrap();
        guest.answer(&request, Op::CreditUpdate, 0, &[]);
        let (header, payload) = guest.receive();
        if header.op() == Some(Op::Data) {
            got.extend(payload);
        }
    }
    assert_eq!(got, pattern(0, 25));
}

#[test]
fn a_refused_connection_closes_its_socket() {
    let mut guest = ready_guest();
    let (ours, theirs) = UnixStream::pair().unwrap();
    guest.handle.connect(9, 4711, theirs.into()).unwrap();
    let request = guest.expect(Op::Request);
    guest.answer(&request, Op::Reset, 0, &[]);
    let event = guest.event();
    let reset = matches!(
        event,
        VsockEvent::Refused {
            id: 9,
            reason: RefusedReason::Reset(4711)
        }
    );
    assert!(reset, "{event:?}");
    expect_to_end(&ours, b"");
}

#[test]
fn a_file_is_no_stream_socket() {
    let guest = ready_guest();
    guest
        .handle
        .connect(9, PORT, tempfile::tempfile().unwrap().into())
        .unwrap();
    let event = guest.event();
    let refused = matches!(
        event,
        VsockEvent::Refused {
            id: 9,
            reason: RefusedReason::Descriptor { port: PORT, .. }
        }
    );
    assert!(refused, "{event:?}");
}

#[test]
fn a_full_table_refuses_and_recovers() {
    let mut guest = ready_guest();
    let mut streams = Vec::new();
    for id in 0..u32::try_from(CONNECTIONS_MAX).unwrap() {
        streams.push(connect(&mut guest, id));
    }
    let (_ours, theirs) = UnixStream::pair().unwrap();
    guest.handle.connect(99, PORT, theirs.into()).unwrap();
    let event = guest.event();
    assert!(matches!(
        event,
        VsockEvent::Refused {
            id: 99,
            reason: RefusedReason::TableFull
        }
    ));
    let (_, request) = streams.pop().unwrap();
    guest.answer(&request, Op::Shutdown, SHUTDOWN_BOTH, &[]);
    while guest.receive().0.op() != Some(Op::Reset) {}
    connect(&mut guest, 100);
}

#[test]
fn a_sink_takes_all_bytes_behind_the_offset() {
    let mut guest = ready_guest();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"head").unwrap();
    guest
        .handle
        .sink(3, 1026, file.try_clone().unwrap(), 200_000)
        .unwrap();
    let request = guest.accept(3);
    let bytes = pattern(0, 200_000);
    for chunk in bytes.chunks(30_000) {
        guest.answer(&request, Op::Data, 0, chunk);
    }
    guest.answer(&request, Op::Shutdown, SHUTDOWN_BOTH, &[]);
    assert!(matches!(
        guest.event(),
        VsockEvent::SinkDone {
            id: 3,
            bytes: 200_000
        }
    ));
    let mut written = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut written).unwrap();
    assert!(written[..4] == *b"head" && written[4..] == bytes);
}

#[test]
fn a_sink_is_cut_when_it_overflows_or_is_reset() {
    let mut guest = ready_guest();
    guest
        .handle
        .sink(3, 1026, tempfile::tempfile().unwrap(), 10)
        .unwrap();
    let request = guest.accept(3);
    guest.answer(&request, Op::Data, 0, b"0123456789");
    guest.answer(&request, Op::Data, 0, b"x");
    let event = guest.event();
    let reason = CutReason::Overflow(10);
    assert!(
        matches!(&event, VsockEvent::SinkFailed { id: 3, reason: r } if r.to_string() == reason.to_string())
    );
    guest.expect(Op::Reset);

    guest
        .handle
        .sink(4, 1026, tempfile::tempfile().unwrap(), 10)
        .unwrap();
    let request = guest.accept(4);
    guest.answer(&request, Op::Data, 0, b"012");
    guest.answer(&request, Op::Reset, 0, &[]);
    let event = guest.event();
    assert!(matches!(
        event,
        VsockEvent::SinkFailed {
            id: 4,
            reason: CutReason::Reset(3)
        }
    ));
}

#[test]
fn a_guest_that_dials_is_reset() {
    let mut guest = ready_guest();
    guest.send(guest.header(Op::Request, 5, 80), &[]);
    let reset = guest.expect(Op::Reset);
    assert_eq!((reset.src_port, reset.dst_port), (80, 5));
    // Not even a datagram socket, and no answer to another machine or to a reset.
    guest.send(
        Header {
            kind: 3,
            ..guest.header(Op::Data, 6, 80)
        },
        b"datagram",
    );
    assert_eq!(guest.expect(Op::Reset).dst_port, 6);
    guest.send(
        Header {
            src_cid: 4,
            ..guest.header(Op::Request, 7, 80)
        },
        &[],
    );
    guest.send(guest.header(Op::Reset, 8, 80), &[]);
    guest.send(guest.header(Op::CreditUpdate, 9, 80), &[]);
    assert_eq!(guest.expect(Op::Reset).dst_port, 9);
}

#[test]
fn a_guest_that_takes_more_than_its_credit_is_cut() {
    let mut guest = ready_guest();
    let (_ours, request) = connect(&mut guest, 1);
    let chunk = vec![0; PAYLOAD_BYTES_MAX];
    let mut chunks = 0;
    let reset = loop {
        guest.answer(&request, Op::Data, 0, &chunk);
        chunks += 1;
        assert!(chunks < 100, "nothing bounds what is held");
        if let Some(found) = std::iter::from_fn(|| guest.poll()).find(|(h, _)| h.op == 3) {
            break found;
        }
    };
    assert_eq!(reset.0.dst_port, request.dst_port);
}

#[test]
fn a_broken_ring_is_the_end_with_its_reason() {
    let mut guest = ready_guest();
    let (ours, _) = connect(&mut guest, 1);
    guest.tx.set_avail_idx(40_000);
    guest.tx.kick.write(1).unwrap();
    let VsockEvent::Stopped(reason) = guest.event() else {
        panic!("the worker goes on");
    };
    assert!(matches!(reason, StoppedReason::Ring { queue: 1, .. }));
    assert!(sentence(&reason).starts_with("the guest's vsock queue 1 is not a valid ring: "));
    // The worker goes with its connections.
    expect_to_end(&ours, b"");
    let state = guest.device.inspect_worker().find("state");
    assert_eq!(state, Some("has ended".into()));
}

#[test]
fn a_paused_device_does_nothing_and_then_goes_on() {
    let mut guest = ready_guest();
    let (mut ours, request) = connect(&mut guest, 1);
    let (done, is_done) = channel();
    guest.gate.close(move |closing| done.send(closing).unwrap());
    assert_eq!(is_done.recv_timeout(PATIENCE).unwrap(), Closing::Done);
    ours.write_all(b"for later").unwrap();
    guest.answer(&request, Op::Data, 0, b"from before");
    let (waiting, theirs) = UnixStream::pair().unwrap();
    guest.handle.connect(2, PORT, theirs.into()).unwrap();
    assert!(guest.poll().is_none());
    guest.gate.open();
    let (mut data, mut asked) = (false, false);
    while !data || !asked {
        let (header, payload) = guest.receive();
        data |= payload == b"for later";
        asked |= header.op() == Some(Op::Request);
    }
    let mut bytes = [0; 11];
    ours.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from before");
    drop(waiting);
}

#[test]
fn who_looks_sees_the_connections_of_a_paused_device_in_bounded_words() {
    let mut guest = ready_guest();
    let streams: Vec<_> = (0..u32::try_from(CONNECTIONS_MAX).unwrap())
        .map(|id| connect(&mut guest, id))
        .collect();
    let (done, is_done) = channel();
    guest.gate.close(move |closing| done.send(closing).unwrap());
    assert_eq!(is_done.recv_timeout(PATIENCE).unwrap(), Closing::Done);
    let seen = guest.device.inspect_worker();
    assert_eq!(seen.find("connection_count"), Some(CONNECTIONS_MAX.into()));
    let first = format!("connections/{}", streams[0].1.src_port);
    let first = |name: &str| seen.find(&format!("{first}/{name}"));
    assert_eq!(first("guest_port"), Some(PORT.into()));
    assert_eq!(first("phase"), Some("open".into()));
    assert_eq!(first("to_guest/credit"), Some(guest.buf_alloc.into()));
    let json = serde_json::to_string(&seen).unwrap();
    assert!(json.len() < CONTROL_BYTES_MAX / 2, "{} bytes", json.len());
}

#[test]
fn chains_that_are_no_packets_come_back() {
    let mut guest = ready_guest();
    guest.send_raw(&[1; 43], &[]);
    let lying = Header {
        len: 100,
        ..guest.header(Op::Data, 5, 80)
    };
    guest.send_raw(&lying.encode(), b"short");
    guest.send_raw(
        &Header {
            len: u32::MAX,
            ..lying
        }
        .encode(),
        b"long",
    );
    guest.tx.describe(0, u64::MAX - 20, 44, 0, 0);
    guest.send(guest.header(Op::Request, 5, 80), &[]);
    assert_eq!(guest.expect(Op::Reset).dst_port, 5);
}

/// Megabytes both ways at once, byte for byte, with and without `VIRTIO_F_EVENT_IDX`.
#[test]
fn bulk_arrives_whole() {
    const BYTES: usize = 8 << 20;
    for event_idx in [false, true] {
        let mut guest = MockGuest::new(event_idx);
        guest.get_ready();
        let (ours, request) = connect(&mut guest, 1);
        let bytes = pattern(0, BYTES);
        let writer = {
            let (mut ours, bytes) = (ours.try_clone().unwrap(), bytes.clone());
            thread::spawn(move || {
                ours.write_all(&bytes).unwrap();
                ours.shutdown(std::net::Shutdown::Write).unwrap();
            })
        };
        let reader = {
            let bytes = bytes.clone();
            thread::spawn(move || expect_to_end(&ours, &bytes))
        };
        let (mut got, mut sent, mut fwd_cnt, mut ended) = (Vec::new(), 0, 0, false);
        while !ended || sent < BYTES {
            let credit = super::super::BUFFER_BYTES_MAX as usize - (sent - fwd_cnt);
            let len = credit.min(BYTES - sent).min(PAYLOAD_BYTES_MAX);
            if len > 0 {
                guest.answer(&request, Op::Data, 0, &bytes[sent..sent + len]);
                sent += len;
            }
            let (header, payload) = match guest.poll() {
                Some(packet) => packet,
                None if len > 0 => continue,
                None => guest.receive(),
            };
            fwd_cnt = header.fwd_cnt as usize;
            ended |= header.op() == Some(Op::Shutdown);
            got.extend(payload);
            let taken = u32::try_from(got.len()).unwrap();
            if taken - guest.fwd_cnt > 64 * 1024 {
                guest.fwd_cnt = taken;
                guest.answer(&request, Op::CreditUpdate, 0, &[]);
            }
        }
        assert!(got == bytes);
        guest.answer(&request, Op::Shutdown, SHUTDOWN_BOTH, &[]);
        writer.join().unwrap();
        reader.join().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest sends, others are served and the worker lives.
    #[test]
    fn garbage_harms_nobody_else(
        packets in proptest::collection::vec(
            (0..9_u16, 0..3_u16, 0..4_u32, any::<u32>(), any::<u32>(), 0..5000_usize, 0..4_u32),
            1..60,
        )
    ) {
        let mut guest = ready_guest();
        let (_victim, request) = connect(&mut guest, 1);
        let (_victim, other) = connect(&mut guest, 2);
        // The last one names a slot that stays free.
        let ports = [request.src_port, other.src_port, 80, request.src_port + 62];
        for (op, kind, flags, buf_alloc, fwd_cnt, len, port) in packets {
            let header = Header {
                op, kind, flags, buf_alloc, fwd_cnt,
                len: u32::try_from(len).unwrap(),
                ..guest.header(Op::Data, PORT, ports[port as usize])
            };
            guest.send_raw(&header.encode(), &vec![7; len]);
        }
        while let Some((header, _)) = guest.poll() {
            prop_assert!(header.op().is_some());
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        guest.handle.connect(3, PORT, theirs.into()).unwrap();
        let request = loop {
            let (header, _) = guest.receive();
            if header.op() == Some(Op::Request) {
                break header;
            }
        };
        guest.answer(&request, Op::Response, 0, &[]);
        guest.answer(&request, Op::Data, 0, b"fine");
        guest.answer(&request, Op::Shutdown, SHUTDOWN_BOTH, &[]);
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        expect_to_end(&ours, b"fine");
    }
}
