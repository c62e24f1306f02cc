//! The state machine alone: packets by hand, a socket pair as the host, and a clock of its own.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::super::BUFFER_BYTES_MAX;
use super::*;

const MS: Duration = Duration::from_millis(1);

/// A connection, the host's far end and a clock.
struct Setup {
    connection: Connection,
    far: UnixStream,
    now: Instant,
}

impl Setup {
    fn waiting() -> Self {
        let (connection, far) = Connection::waiting();
        Self {
            connection,
            far,
            now: Instant::now(),
        }
    }

    fn open() -> Self {
        let mut setup = Self::waiting();
        setup.connection.start(setup.now);
        assert_eq!(setup.sent(), [(Op::Request, 0, 0)]);
        let event = setup.receive(Op::Response, 0, &[]);
        assert!(matches!(event, Some(VsockEvent::Connected { id: 1 })));
        setup
    }

    fn receive(&mut self, op: Op, flags: u32, payload: &[u8]) -> Option<VsockEvent> {
        let header = Header {
            op: op as u16,
            flags,
            buf_alloc: 1000,
            ..Header::default()
        };
        self.connection.on_packet(&header, payload, self.now)
    }

    /// All packets the connection sends now: operation, flags, payload bytes.
    fn sent(&mut self) -> Vec<(Op, u32, u32)> {
        let mut payload = [0; 400];
        let mut sent = Vec::new();
        while self.connection.has_packet(self.now) {
            let header = self.connection.next_packet(&mut payload, self.now).unwrap();
            sent.push((header.op().unwrap(), header.flags, header.len));
            assert!(sent.len() < 1000, "never falls silent");
        }
        assert!(
            self.connection
                .next_packet(&mut payload, self.now)
                .is_none()
        );
        sent
    }
}

#[test]
fn asks_when_started_and_gives_up_in_time() {
    let mut setup = Setup::waiting();
    assert_eq!(setup.sent(), []);
    setup.connection.start(setup.now);
    assert_eq!(setup.sent(), [(Op::Request, 0, 0)]);
    let limit = Duration::from_millis(CONNECT_MS_MAX);
    assert_eq!(setup.connection.deadline(), Some(setup.now + limit));
    assert!(setup.connection.expire(setup.now + limit - MS).is_none());
    let event = setup.connection.expire(setup.now + limit);
    let reason = RefusedReason::TimedOut(1025).to_string();
    assert!(
        matches!(event, Some(VsockEvent::Refused { id: 1, reason: r }) if r.to_string() == reason)
    );
    assert!(!setup.connection.is_over());
    assert_eq!(setup.sent(), [(Op::Reset, 0, 0)]);
    assert!(setup.connection.is_over());
    assert_eq!(setup.far.read(&mut [0]).unwrap(), 0);
}

#[test]
fn an_answer_before_the_question_is_refused() {
    let mut setup = Setup::waiting();
    let event = setup.receive(Op::Response, 0, &[]);
    assert!(matches!(event, Some(VsockEvent::Refused { id: 1, .. })));
    assert_eq!(setup.sent(), [(Op::Reset, 0, 0)]);
    assert!(setup.connection.is_over());
}

#[test]
fn sends_within_credit_and_asks_once() {
    let mut setup = Setup::open();
    setup.far.write_all(&[7; 1500]).unwrap();
    let data = |len| (Op::Data, 0, len);
    let ask = (Op::CreditRequest, 0, 0);
    assert_eq!(setup.sent(), [data(400), data(400), data(200), ask]);
    // An answer that gives nothing is not asked about again.
    setup.receive(Op::CreditUpdate, 0, &[]);
    assert_eq!(setup.sent(), []);
    let header = Header {
        op: Op::CreditUpdate as u16,
        buf_alloc: 1000,
        fwd_cnt: 1000,
        ..Header::default()
    };
    setup.connection.on_packet(&header, &[], setup.now);
    assert_eq!(setup.sent(), [data(400), data(100)]);
}

#[test]
fn end_of_file_follows_the_last_byte() {
    let mut setup = Setup::open();
    setup.far.write_all(&[7; 10]).unwrap();
    setup.far.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(
        setup.sent(),
        [(Op::Data, 0, 10), (Op::Shutdown, SHUTDOWN_SEND, 0)]
    );
    // The other direction goes on.
    setup.receive(Op::Data, 0, b"on");
    let mut bytes = [0; 2];
    setup.far.read_exact(&mut bytes).unwrap();
    setup.receive(Op::Shutdown, SHUTDOWN_SEND, &[]);
    assert_eq!(setup.far.read(&mut bytes).unwrap(), 0);
    assert_eq!(setup.sent(), [(Op::Shutdown, SHUTDOWN_BOTH, 0)]);
    setup.receive(Op::Reset, 0, &[]);
    assert!(setup.connection.is_over());
}

#[test]
fn a_guest_that_stops_reading_stops_the_host_writer() {
    let mut setup = Setup::open();
    setup.far.write_all(&[7; 10]).unwrap();
    setup.receive(Op::Shutdown, SHUTDOWN_RECEIVE, &[]);
    assert_eq!(setup.sent(), []);
    let err = setup.far.write(&[7]).unwrap_err();
    assert_eq!(err.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn closing_waits_for_the_guest_but_not_for_ever() {
    let mut setup = Setup::open();
    setup.connection.on_host_event(true, true, true, setup.now);
    drop(std::mem::replace(
        &mut setup.far,
        UnixStream::pair().unwrap().0,
    ));
    assert_eq!(setup.sent(), [(Op::Shutdown, SHUTDOWN_BOTH, 0)]);
    assert!(setup.receive(Op::Data, 0, b"under way").is_none());
    let limit = Duration::from_millis(CLOSE_MS_MAX);
    assert!(setup.connection.expire(setup.now + limit).is_none());
    assert_eq!(setup.sent(), [(Op::Reset, 0, 0)]);
    assert!(setup.connection.is_over());
}

#[test]
fn what_a_closed_guest_sent_outlives_it() {
    let mut setup = Setup::open();
    // Fill the socket first, so that something has to be kept.
    let mut held = 0;
    while setup.connection.host().is_some() && held < 100 {
        setup.receive(Op::Data, 0, &[held; 32 * 1024]);
        let updated = setup.sent().contains(&(Op::CreditUpdate, 0, 0));
        held += 1;
        if !updated {
            break;
        }
    }
    setup.receive(Op::Shutdown, SHUTDOWN_BOTH, &[]);
    assert_eq!(setup.sent(), [(Op::Reset, 0, 0)]);
    assert!(!setup.connection.is_over());
    let mut bytes = Vec::new();
    while !setup.connection.is_over() {
        let mut chunk = [0; 8192];
        let count = setup.far.read(&mut chunk).unwrap();
        bytes.extend_from_slice(&chunk[..count]);
        setup
            .connection
            .on_host_event(false, true, false, setup.now);
    }
    let _ = setup.far.read_to_end(&mut bytes);
    let chunks: Vec<_> = bytes.chunks(32 * 1024).collect();
    assert_eq!(chunks.len(), usize::from(held));
    assert!(
        chunks
            .iter()
            .enumerate()
            .all(|(at, chunk)| chunk.iter().all(|b| usize::from(*b) == at))
    );
}

#[test]
fn a_reset_delivers_what_came_before_it() {
    let mut setup = Setup::open();
    setup.receive(Op::Data, 0, b"last words");
    assert!(setup.receive(Op::Reset, 0, &[]).is_none());
    assert_eq!(setup.sent(), []);
    assert!(setup.connection.is_over());
    let mut bytes = Vec::new();
    setup.far.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"last words");
}

#[test]
fn nothing_comes_after_the_end() {
    let mut setup = Setup::open();
    setup.receive(Op::Data, 0, b"all");
    setup.receive(Op::Shutdown, SHUTDOWN_SEND, &[]);
    setup.receive(Op::Data, 0, b"more");
    assert_eq!(setup.sent(), []);
    let mut bytes = Vec::new();
    setup.far.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"all");
}

#[test]
fn a_packet_out_of_place_ends_the_connection() {
    let mut setup = Setup::open();
    setup.receive(Op::Response, 0, &[]);
    assert_eq!(setup.sent(), [(Op::Reset, 0, 0)]);
    assert!(setup.connection.is_over());
}

fn op() -> impl Strategy<Value = Op> {
    use Op::{CreditRequest, CreditUpdate, Data, Request, Reset, Response, Shutdown};
    // Data most often, and what kills at once seldom.
    prop_oneof![
        6 => Just(Data), 2 => Just(Shutdown), 2 => Just(CreditUpdate), 2 => Just(CreditRequest),
        1 => Just(Response), 1 => Just(Request), 1 => Just(Reset),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Packet {
        op: Op,
        flags: u32,
        len: usize,
        buf_alloc: u32,
        fwd_cnt: u32,
    },
    HostWrites(usize),
    HostReads(usize),
    HostEnds,
    Later,
}

fn step() -> impl Strategy<Value = Step> {
    let len = 0..=BUFFER_BYTES_MAX as usize;
    let packet = (op(), 0..4_u32, len.clone(), 0..5000_u32, 0..2000_u32).prop_map(
        |(op, flags, len, buf_alloc, fwd_cnt)| Step::Packet {
            op,
            flags,
            len,
            buf_alloc,
            fwd_cnt,
        },
    );
    prop_oneof![
        4 => packet,
        2 => len.clone().prop_map(Step::HostWrites),
        2 => len.prop_map(Step::HostReads),
        1 => Just(Step::HostEnds),
        1 => Just(Step::Later),
    ]
}

proptest! {
    /// Whatever happens, in whatever order: it never panics, always falls silent, and ends when the
    /// guest resets it and the host has read all.
    #[test]
    fn any_sequence_is_survived(steps in proptest::collection::vec(step(), 0..40)) {
        let mut setup = Setup::open();
        for step in steps {
            match step {
                Step::Packet { op, flags, len, buf_alloc, fwd_cnt } => {
                    let header =
                        Header { op: op as u16, flags, buf_alloc, fwd_cnt, ..Header::default() };
                    setup.connection.on_packet(&header, &vec![1; len], setup.now);
                }
                Step::HostWrites(len) => drop(setup.far.write(&vec![2; len])),
                Step::HostReads(len) => drop(setup.far.read(&mut vec![0; len])),
                Step::HostEnds => drop(setup.far.shutdown(std::net::Shutdown::Write)),
                Step::Later => {
                    setup.now += Duration::from_secs(1);
                    setup.connection.expire(setup.now);
                }
            }
            setup.connection.on_host_event(true, true, false, setup.now);
            setup.sent();
        }
        setup.receive(Op::Reset, 0, &[]);
        for _ in 0..100 {
            let _ = setup.far.read(&mut vec![0; 1 << 20]);
            setup.connection.on_host_event(true, true, false, setup.now);
        }
        prop_assert!(setup.connection.is_over());
    }
}
