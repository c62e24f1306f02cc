//! What a guest's answer may come to once it is decoded: the worst that protobuf can be made to build of a
//! frame, in bytes of the shim's heap.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream as StdStream;
use std::thread::JoinHandle;

use async_trait::async_trait;
use protobuf::CodedOutputStream;
use tokio::sync::watch;
use wasmvm_protocol::agent::REPLY_BYTES_MAX;

use super::*;
use crate::error::Refusal;
use crate::sys::heap::peak_of;

/// Most of the heap that one message may take, bytes.
const HEAP_BYTES_MAX: usize = 1 << 20;
/// Far more than is taken, and far less than ttrpc would take.
const FRAME_BYTES: usize = 256 << 10;

fn encode(write: impl FnOnce(&mut CodedOutputStream<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    {
        let mut out = CodedOutputStream::vec(&mut bytes);
        write(&mut out);
        out.flush().unwrap();
    }
    bytes
}

/// Field `number`, holding these bytes.
fn within(number: u32, bytes: &[u8]) -> Vec<u8> {
    encode(|out| out.write_bytes(number, bytes).unwrap())
}

/// Distinct fields that no message has, each with a number: 3 to 5 bytes that become a table's entry.
fn unknown_numbers(bytes_max: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 100.. {
        let field = encode(|out| out.write_uint32(number, 1).unwrap());
        if bytes.len() + field.len() > bytes_max {
            break;
        }
        bytes.extend(field);
    }
    bytes
}

/// The same field again and again, empty: 2 or 3 bytes that become a string, or a whole message.
fn empty_fields(number: u32, bytes_max: usize) -> Vec<u8> {
    let field = within(number, &[]);
    field.repeat(bytes_max / field.len())
}

/// ttrpc's Response (field 2 is the answer) of at most `bytes_max`, in every harmful shape.
fn responses(bytes_max: usize) -> Vec<(&'static str, Vec<u8>)> {
    // The lengths of up to five messages around it.
    let room = bytes_max - 32;
    let answer = |payload: &[u8]| within(2, payload);
    // PidsResponse.processes, ProcessInfo.info, Any.value
    let instance = |bytes: &[u8]| answer(&within(1, &within(2, &within(2, bytes))));
    // Field 1, of nine million bytes.
    let claim = [0x0a, 0xc0, 0xa8, 0xa5, 0x04];
    vec![
        ("unknown numbers beside the answer", unknown_numbers(room)),
        ("unknown strings beside the answer", empty_fields(100, room)),
        (
            "unknown numbers in the status",
            within(1, &unknown_numbers(room)),
        ),
        ("details in the status", within(1, &empty_fields(3, room))),
        (
            "unknown numbers in the answer",
            answer(&unknown_numbers(room)),
        ),
        (
            "unknown strings in the answer",
            answer(&empty_fields(100, room)),
        ),
        ("many pids", answer(&empty_fields(1, room))),
        ("many threads", instance(&empty_fields(2, room))),
        (
            "unknown numbers in an instance",
            instance(&unknown_numbers(room)),
        ),
        (
            "unknown numbers in a thread",
            instance(&within(2, &unknown_numbers(room))),
        ),
        // Nothing follows the length.
        ("a long claim beside the answer", claim.to_vec()),
        ("a long claim in the answer", answer(&claim)),
        ("a long claim in an instance", instance(&claim)),
    ]
}

/// A guest that answers its first request with these bytes.
fn guest(mut stream: StdStream, response: Vec<u8>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut header = [0; 10];
        stream.read_exact(&mut header).unwrap();
        let [a, b, c, d, ..] = header;
        let mut request = vec![0; u32::from_be_bytes([a, b, c, d]) as usize];
        stream.read_exact(&mut request).unwrap();
        header[..4].copy_from_slice(&u32::try_from(response.len()).unwrap().to_be_bytes());
        header[8..].copy_from_slice(&[2, 0]);
        // The shim may hang up meanwhile.
        let _cut = stream
            .write_all(&header)
            .and_then(|()| stream.write_all(&response));
    })
}

/// A guest that no second connection reaches.
struct Nobody;

#[async_trait]
impl GuestConnector for Nobody {
    async fn connect(&self, _: u32) -> Result<UnixStream, Refusal> {
        std::future::pending().await
    }
}

/// Asks as an operator's SIGUSR1 does, and for an exit status; the most bytes of heap that took.
fn peak(what: &str, response: &[u8]) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let peaks = ["Pids", "Wait"].map(|method| {
        let (ours, theirs) = StdStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let guest = guest(theirs, response.to_vec());
        let runs = watch::Sender::new(true);
        let ask = || {
            runtime.block_on(async {
                let stream = UnixStream::from_std(ours).unwrap();
                let clock = GuestClock::new(runs.subscribe());
                let agent = Agent::over(stream, Arc::new(Nobody), "t", Duration::ZERO, clock);
                match method {
                    "Pids" => agent.instances().await.map(drop),
                    _ => agent.wait("").await.map(drop),
                }
            })
        };
        let (asked, peak) = peak_of(ask);
        println!(
            "{what}: {} bytes, {method}: {peak} bytes of heap, {asked:?}",
            response.len()
        );
        drop(asked);
        guest.join().unwrap();
        peak
    });
    peaks[0].max(peaks[1])
}

#[test]
fn an_answer_takes_at_most_a_mebibyte_of_heap() {
    for bytes_max in [REPLY_BYTES_MAX, FRAME_BYTES] {
        for (what, response) in responses(bytes_max) {
            assert!(response.len() <= bytes_max, "{what}: {}", response.len());
            let peak = peak(what, &response);
            assert!(peak <= HEAP_BYTES_MAX, "{what}: {peak} bytes of heap");
        }
    }
}
