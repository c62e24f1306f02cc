//! Pauses a real guest kernel and looks what its clock, its timers and the host's CPU make of it.
//!
//! ```text
//! cc -O2 -static -o init vmm/examples/pause-init.c && images/initramfs init init.cpio
//! cargo run -p wasmvm-vmm --example pause -- KERNEL init.cpio
//! ```
//!
//! Each check is a sentence; the first that fails ends the run with status 1.

mod listening;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use listening::{Outcome, PATIENCE, boot, check};
use wasmvm_vmm::gate::{Closing, Gate};
use wasmvm_vmm::virtio::vsock::{VsockEvent, VsockHandle};

/// The guest's server (`pause-init.c`).
const PORT: u32 = 2010;
const NOW: u8 = b'n';
const SLEEP: u8 = b's';
const BUSY: u8 = b'b';

fn pause(gate: &Gate) -> Outcome<Duration> {
    let (told, tellings) = channel();
    let since = Instant::now();
    gate.close(move |closing| {
        let _gone = told.send(closing);
    });
    match tellings.recv_timeout(PATIENCE)? {
        Closing::Done => Ok(since.elapsed()),
        Closing::Cancelled => Err("the pause was cancelled".into()),
    }
}

fn ask(stream: &mut UnixStream, question: u8) -> Outcome<Duration> {
    stream.write_all(&[question])?;
    answer(stream)
}

fn answer(stream: &mut UnixStream) -> Outcome<Duration> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(Duration::from_nanos(u64::from_le_bytes(bytes)))
}

/// What the threads of the machine have run, all but this one.
fn machine_cpu() -> Outcome<Duration> {
    let mut total = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        if task.file_name().to_string_lossy() != std::process::id().to_string() {
            let schedstat = fs::read_to_string(task.path().join("schedstat"))?;
            let ran = schedstat.split(' ').next().unwrap_or_default();
            total += ran.parse::<u64>()?;
        }
    }
    Ok(Duration::from_nanos(total))
}

fn cpu_over(wall: Duration) -> Outcome<Duration> {
    let before = machine_cpu()?;
    thread::sleep(wall);
    Ok(machine_cpu()? - before)
}

fn connect(vsock: &VsockHandle, id: u32) -> Outcome<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(PATIENCE))?;
    vsock.connect(id, PORT, theirs.into())?;
    Ok(ours)
}

fn connected(events: &Receiver<VsockEvent>) -> Outcome<bool> {
    Ok(matches!(
        events.recv_timeout(PATIENCE)?,
        VsockEvent::Connected { .. }
    ))
}

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs] = arguments.as_slice() else {
        return Err("usage: pause KERNEL INITRAMFS".into());
    };
    let gate = Gate::default();
    let (machine, vsock, events) = boot(kernel, initramfs, &gate)?;
    let mut stream = connect(&vsock, 1)?;
    check(connected(&events)?, "and accepts a connection")?;

    clock(&gate, &mut stream)?;
    sleep(&gate, &mut stream)?;
    println!("   the vCPU is busy from now on");
    ask(&mut stream, BUSY)?;
    cpu(&gate, &mut stream)?;

    pause(&gate)?;
    machine.map_slot(0, &File::open(kernel)?)?;
    check(true, "a slot is mapped while the guest is paused")?;
    drop(stream);
    let mut late = connect(&vsock, 2)?;
    let nothing = events.recv_timeout(Duration::from_secs(6)).is_err();
    check(nothing, "a connection to a paused guest waits")?;
    gate.open();
    check(connected(&events)?, "and comes about afterwards")?;
    ask(&mut late, NOW)?;
    Ok(())
}

fn clock(gate: &Gate, stream: &mut UnixStream) -> Outcome {
    let before = ask(stream, NOW)?;
    let paused = pause(gate)?;
    pause(gate)?;
    thread::sleep(Duration::from_secs(3));
    gate.open();
    gate.open();
    let went = ask(stream, NOW)? - before;
    println!("   paused within {paused:?}; the guest's clock went on by {went:?}");
    check(
        went < Duration::from_secs(1),
        "the guest's clock stands still while it is paused",
    )
}

fn sleep(gate: &Gate, stream: &mut UnixStream) -> Outcome {
    for (before, paused) in [(2, 10), (1, 1)] {
        let since = Instant::now();
        stream.write_all(&[SLEEP])?;
        thread::sleep(Duration::from_secs(before));
        pause(gate)?;
        thread::sleep(Duration::from_secs(paused));
        gate.open();
        let (slept, took) = (answer(stream)?, since.elapsed());
        println!(
            "   paused {paused} s in the middle: {slept:?} to the guest, {took:?} to the host"
        );
        let (slept, took) = (slept.as_secs_f64(), took.as_secs());
        check(
            (5.0..5.5).contains(&slept) && took >= 5 + paused - 1,
            "a sleep of 5 s takes 5 s of the guest's time",
        )?;
    }
    Ok(())
}

fn cpu(gate: &Gate, stream: &mut UnixStream) -> Outcome {
    let wall = Duration::from_secs(2);
    let running = cpu_over(wall)?;
    let within = pause(gate)?;
    let paused = cpu_over(wall)?;
    println!("   CPU time of vCPU and devices in {wall:?}: {running:?} running, {paused:?} paused");
    println!("   paused within {within:?}");
    // The thread that parked last may still have been on its way to sleep.
    check(
        running > wall / 2 && paused < Duration::from_millis(1),
        "a busy guest that is paused costs nothing",
    )?;
    gate.open();
    ask(stream, NOW)?;
    check(true, "and goes on")
}
