//! Carries streams to and from a real guest kernel: the machine with the socket device alone.
//!
//! ```text
//! cc -O2 -static -o init vmm/examples/streams-init.c && images/initramfs init init.cpio
//! cargo run -p wasmvm-vmm --example streams -- KERNEL init.cpio [MIB]
//! ```
//!
//! Each check is a sentence; the first that fails ends the run with status 1. MIB (16) are sent each
//! way, byte for byte.

mod listening;

use std::io::{self, Read, Seek, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Instant;

use listening::{Outcome, PATIENCE, boot, check};
use wasmvm_vmm::gate::Gate;
use wasmvm_vmm::virtio::vsock::{VsockEvent, VsockHandle};

/// The guest's servers (`streams-init.c`).
const ECHO: u32 = 2001;
const SOURCE: u32 = 2002;
const DIGEST: u32 = 2003;
const FLOOD: u32 = 2004;
const LAST_ERRNO: u32 = 2005;
const HALF: u32 = 2006;

struct Guest {
    handle: VsockHandle,
    events: Receiver<VsockEvent>,
    id: u32,
}

impl Guest {
    fn event(&self) -> Outcome<VsockEvent> {
        Ok(self.events.recv_timeout(PATIENCE)?)
    }

    fn connect(&mut self, port: u32) -> Outcome<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        ours.set_write_timeout(Some(PATIENCE))?;
        self.id += 1;
        self.handle.connect(self.id, port, theirs.into())?;
        match self.event()? {
            VsockEvent::Connected { id } if id == self.id => Ok(ours),
            event => Err(format!("{event:?}").into()),
        }
    }

    fn last_errno(&mut self) -> Outcome<i32> {
        let mut bytes = [0; 4];
        self.connect(LAST_ERRNO)?.read_exact(&mut bytes)?;
        Ok(i32::from_le_bytes(bytes))
    }
}

fn pattern(len: usize) -> Vec<u8> {
    let byte = |at: usize| (at * 31 + (at >> 12)) % 251;
    (0..len)
        .map(|at| u8::try_from(byte(at)).unwrap_or_default())
        .collect()
}

fn speed(what: &str, bytes: usize, since: Instant) {
    let elapsed = since.elapsed();
    let rate = bytes as f64 / elapsed.as_secs_f64() / f64::from(1 << 20);
    println!("   {what}: {bytes} bytes in {elapsed:?}, {rate:.1} MiB/s");
}

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs, rest @ ..] = arguments.as_slice() else {
        return Err("usage: streams KERNEL INITRAMFS [MIB]".into());
    };
    let bytes = rest.first().map_or(Ok(16), |text| text.parse::<usize>())? << 20;
    let started = Instant::now();
    let (_machine, handle, events) = boot(kernel, initramfs, &Gate::default())?;
    let mut guest = Guest {
        handle,
        events,
        id: 0,
    };
    println!("   ready after {:?}", started.elapsed());
    short_streams(&mut guest)?;
    endings(&mut guest)?;
    bulk(&mut guest, bytes)?;
    slow_reader(&mut guest)?;
    many(&mut guest)
}

fn short_streams(guest: &mut Guest) -> Outcome {
    let mut stream = guest.connect(ECHO)?;
    let mut echo = [0; 5];
    let since = Instant::now();
    for _ in 0..100 {
        stream.write_all(b"hello")?;
        stream.read_exact(&mut echo)?;
    }
    println!("   round trip: {:?}", since.elapsed() / 100);
    stream.shutdown(Shutdown::Write)?;
    let end = stream.read(&mut echo)?;
    check(
        &echo == b"hello" && end == 0,
        "an echo comes back, and the end of file after it",
    )?;
    let refused = guest.connect(4711).map_err(|err| err.to_string());
    let refused = refused.is_err_and(|text| text.contains("Reset(4711)"));
    check(refused, "a port nobody listens on is refused")
}

fn endings(guest: &mut Guest) -> Outcome {
    let mut stream = guest.connect(HALF)?;
    let mut bye = Vec::new();
    stream.read_to_end(&mut bye)?;
    stream.write_all(&[0; 100_000])?;
    stream.shutdown(Shutdown::Write)?;
    let mut count = 0;
    for _ in 0..1000 {
        count = guest.last_errno()?;
        if count == 100_000 {
            break;
        }
    }
    check(
        bye == b"bye" && count == 100_000,
        "a guest that ended its output still gets its input",
    )?;

    let mut stream = guest.connect(FLOOD)?;
    stream.read_exact(&mut [0; 100_000])?;
    drop(stream);
    let mut errno = 0;
    for _ in 0..1000 {
        errno = guest.last_errno()?;
        if errno != 100_000 {
            break;
        }
    }
    check(errno == 32, "a guest that writes to nobody gets EPIPE")
}

fn bulk(guest: &mut Guest, bytes: usize) -> Outcome {
    let expected = pattern(bytes);
    let mut stream = guest.connect(SOURCE)?;
    let since = Instant::now();
    stream.write_all(&(bytes as u64).to_le_bytes())?;
    let mut got = Vec::with_capacity(bytes);
    stream.read_to_end(&mut got)?;
    speed("guest to host", bytes, since);
    check(
        got == expected,
        "bytes from the guest arrive whole, then end",
    )?;

    let mut stream = guest.connect(DIGEST)?;
    let since = Instant::now();
    stream.write_all(&expected)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    speed("host to guest", bytes, since);
    let whole = [(bytes as u64).to_le_bytes(), (bytes as u64).to_le_bytes()].concat();
    check(
        answer == whole,
        "bytes from the host arrive whole, then end",
    )?;

    let mut stream = guest.connect(ECHO)?;
    let mut writer = stream.try_clone()?;
    let to_write = expected.clone();
    let since = Instant::now();
    let writing = thread::spawn(move || -> io::Result<()> {
        writer.write_all(&to_write)?;
        writer.shutdown(Shutdown::Write)
    });
    got.clear();
    stream.read_to_end(&mut got)?;
    writing.join().map_err(|_| "writer")??;
    speed("both ways at once", bytes, since);
    check(got == expected, "an echo of it all arrives whole")?;

    let mut file = tempfile::tempfile()?;
    guest.id += 1;
    guest.handle.sink(guest.id, HALF, file.try_clone()?, 3)?;
    let connected = matches!(guest.event()?, VsockEvent::Connected { .. });
    let done = matches!(guest.event()?, VsockEvent::SinkDone { bytes: 3, .. });
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    check(connected && done && text == "bye", "a sink is filled")
}

fn slow_reader(guest: &mut Guest) -> Outcome {
    let mut slow = guest.connect(SOURCE)?;
    slow.write_all(&(4_u64 << 20).to_le_bytes())?;
    // By the time another connection is served, the first one is out of credit.
    let mut stream = guest.connect(SOURCE)?;
    stream.write_all(&(1_u64 << 20).to_le_bytes())?;
    let mut got = Vec::new();
    stream.read_to_end(&mut got)?;
    check(
        got == pattern(1 << 20),
        "a reader that does not read holds up no other stream",
    )?;
    got.clear();
    slow.read_to_end(&mut got)?;
    check(
        got == pattern(4 << 20),
        "and finds everything when it comes back",
    )
}

fn many(guest: &mut Guest) -> Outcome {
    let since = Instant::now();
    for _ in 0..200 {
        let mut stream = guest.connect(ECHO)?;
        stream.write_all(b"x")?;
        stream.shutdown(Shutdown::Write)?;
        let mut got = Vec::new();
        stream.read_to_end(&mut got)?;
        if got != b"x" {
            return check(false, "two hundred connections, one after the other");
        }
    }
    println!("   connect, echo, close: {:?} each", since.elapsed() / 200);
    check(true, "two hundred connections, one after the other")?;
    let streams = (0..60)
        .map(|_| guest.connect(ECHO))
        .collect::<Result<Vec<_>, _>>()?;
    check(streams.len() == 60, "sixty connections at a time")
}
