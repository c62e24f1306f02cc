//! What a guest's kernel of its own making may send costs bounded memory, and its own VM at most.

use std::io::{ErrorKind, Read, Write};

use proptest::prelude::*;

use super::super::mock::MockGuest;
use super::super::muxer::RESETS_MAX;
use super::super::packet::{Header, Op, SHUTDOWN_BOTH};
use super::tests::{connect, ready_guest};
use super::*;

/// A stream opened now carries bytes both ways.
fn still_serves(guest: &mut MockGuest, id: u32) {
    let (mut ours, request) = connect(guest, id);
    guest.answer(&request, Op::Data, 0, b"from the guest");
    let mut bytes = [0; 14];
    ours.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from the guest");
    ours.write_all(b"to the guest").unwrap();
    assert_eq!(guest.receive().1, b"to the guest");
    guest.answer(&request, Op::Shutdown, SHUTDOWN_BOTH, &[]);
    guest.expect(Op::Reset);
}

#[test]
fn a_flood_of_requests_is_answered_as_far_as_answers_are_kept() {
    let mut guest = MockGuest::without_buffers(true);
    for port in 0..20_000 {
        guest.send(guest.header(Op::Request, port, port + 5000), &[]);
    }
    (0..32).for_each(|index| guest.offer(index));
    let mut resets = 0;
    loop {
        let (header, _) = guest.receive();
        assert_eq!(header.op(), Some(Op::Reset));
        resets += 1;
        if resets == RESETS_MAX {
            break;
        }
    }
    guest.get_ready();
    still_serves(&mut guest, 1);
}

#[test]
fn a_packet_larger_than_any_is_dropped_and_its_connection_lives() {
    let mut guest = ready_guest();
    let (mut ours, request) = connect(&mut guest, 1);
    for len in [PAYLOAD_BYTES_MAX + 1, PAYLOAD_BYTES_MAX + 4096] {
        let payload = vec![7; len];
        let giant = Header {
            len: u32::try_from(len).unwrap(),
            ..guest.header(Op::Data, request.dst_port, request.src_port)
        };
        guest.send_raw(&giant.encode(), &payload);
    }
    guest.answer(&request, Op::Data, 0, b"small");
    let mut bytes = [0; 5];
    ours.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"small");
}

#[test]
fn endless_credit_does_not_make_the_device_read_ahead() {
    let mut guest = MockGuest::without_buffers(true);
    // As many as getting ready and connected takes.
    (0..2).for_each(|index| guest.offer(index));
    guest.get_ready();
    guest.buf_alloc = u32::MAX;
    let (mut ours, request) = connect(&mut guest, 1);
    ours.set_nonblocking(true).unwrap();
    let chunk = [1; 4096];
    let mut written = 0;
    // The guest offers no buffer; whoever writes has to stop at some point.
    let stopped = loop {
        guest.answer(&request, Op::CreditUpdate, 0, &[]);
        match ours.write(&chunk) {
            Ok(count) => written += count,
            Err(err) => break err.kind(),
        }
        assert!(written < 4 << 20, "nothing bounds what is held");
    };
    assert_eq!(stopped, ErrorKind::WouldBlock);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Credit that shrinks, wraps or runs backwards delays bytes, and neither loses nor repeats one.
    #[test]
    fn lies_about_credit_change_no_byte(
        lies in proptest::collection::vec((any::<u32>(), any::<u32>()), 1..40)
    ) {
        let mut guest = ready_guest();
        let (mut ours, request) = connect(&mut guest, 1);
        let sent: Vec<u8> = (0..40_000_u32).map(|at| (at % 251) as u8).collect();
        let honest = (guest.buf_alloc, guest.fwd_cnt);
        let mut got = Vec::new();
        ours.write_all(&sent).unwrap();
        for lie in lies {
            (guest.buf_alloc, guest.fwd_cnt) = lie;
            guest.answer(&request, Op::CreditUpdate, 0, &[]);
            got.extend(std::iter::from_fn(|| guest.poll()).flat_map(|(_, payload)| payload));
        }
        (guest.buf_alloc, guest.fwd_cnt) = honest;
        while got.len() < sent.len() {
            guest.fwd_cnt = u32::try_from(got.len()).unwrap();
            guest.answer(&request, Op::CreditUpdate, 0, &[]);
            got.extend(std::iter::from_fn(|| guest.poll()).flat_map(|(_, payload)| payload));
        }
        prop_assert!(got == sent);
    }
}
