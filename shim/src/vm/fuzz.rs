//! What a VMM says and does, that a guest may have taken over.

#![allow(clippy::unwrap_used, reason = "a panic is what a target reports by")]

use std::io::{IoSlice, Write as _};
use std::process::{Command, Stdio};

use arbitrary::{Result, Unstructured};
use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinSet, yield_now};
use wasmvm_protocol::control::{CONTROL_BYTES_MAX, FromVmm};

use super::answers::fuzz::answers;
pub(crate) use super::log::fuzz::console_line;
use super::*;
use crate::host_process::{HostProcess, pin};

/// The time limit of an order.
const LIMIT: Duration = Duration::from_secs(2);
/// Orders of the shim that are under way at once.
const ORDERS_MAX: usize = 6;
/// The most streams, and the most files, that the VMM holds.
const HELD_MAX: usize = 4;
/// The size that a file of the shim's stays below, bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Between two acts the shim gets so many turns: enough to take one message in and to answer it.
const TURNS: usize = 6;

/// Only answers with a waiter are kept, and no waiter is left in the table.
pub fn vm_answers(input: &[u8]) {
    answers(input);
}

/// Every order of the shim ends, by an answer or because the VM has ended, and leaves no place in the
/// table; the VM has one end, however often that is asked for.
pub fn vm(input: &[u8]) {
    runtime().block_on(async {
        let mut u = Unstructured::new(input);
        let (mut vmm, vm) = Vmm::new();
        let mut orders = JoinSet::new();
        let _used_up = order_and_act(&mut u, &mut vmm, &vm, &mut orders).await;
        vmm.end();
        while let Some(ended) = orders.join_next().await {
            ended.unwrap();
        }
        assert_eq!(vm.inner.answers.pending(), 0, "a place is left");
        let end = vm.ended().await;
        assert_eq!(vm.ended().await, end);
        assert!(end.reason.len() + end.console_tail.len() <= CONTROL_BYTES_MAX);
    });
}

async fn order_and_act(
    u: &mut Unstructured<'_>,
    vmm: &mut Vmm,
    vm: &Vm,
    orders: &mut JoinSet<()>,
) -> Result<()> {
    while !u.is_empty() {
        if u.arbitrary()? {
            vmm.act(u).await?;
        } else if orders.len() < ORDERS_MAX {
            orders.spawn(order(vm.clone(), u.int_in_range(0..=5)?));
        }
    }
    Ok(())
}

async fn order(vm: Vm, kind: u8) {
    let file = || crate::memory_file::memory_file(c"file").unwrap();
    let ended = match kind {
        0 => vm.pause().await,
        1 => vm.resume().await,
        2 => vm.map_slot(0, file().as_fd()).await,
        3 => vm.connect(1024).await.map(drop),
        4 => vm.sink(1025, &file(), 16, LIMIT).await.map(drop),
        _ => {
            let (told, ready) = tokio::join!(vm.inspect(LIMIT), vm.ready(LIMIT));
            told.map(drop).and(ready.map(drop))
        }
    };
    if let Err(err) = ended {
        assert!(!err.to_string().is_empty());
    }
}

/// Looks at its descriptors after every turn: what was written a moment ago is read in the next.
pub(crate) fn runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().event_interval(1).build().unwrap()
}

/// The VMM of a VM, played by an input: a process that does nothing, and its end of the control socket.
pub(crate) struct Vmm {
    process: HostProcess,
    control: Option<OwnedFd>,
    streams: Vec<std::os::unix::net::UnixStream>,
    files: Vec<File>,
}

impl Vmm {
    /// A process that sleeps, as the VMM, and its VM. Called inside the runtime.
    pub(crate) fn new() -> (Self, Vm) {
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let process = HostProcess::new(child.id(), pin(&mut child).unwrap());
        let (ours, theirs) = control::pair().unwrap();
        fcntl_setfl(&theirs, OFlags::NONBLOCK).unwrap();
        let vm = Vm::new(process.clone(), ours, String::new()).unwrap();
        let vmm = Self {
            process,
            control: Some(theirs),
            streams: Vec::new(),
            files: Vec::new(),
        };
        (vmm, vm)
    }

    /// Ends its process, and waits for that.
    pub(crate) fn end(&self) {
        self.process.kill();
        assert!(self.process.wait_blocking(LIMIT).unwrap());
    }

    /// One thing that a VMM can say or do to its shim, and turns for the shim to take it in.
    pub(crate) async fn act(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        match u.int_in_range(0..=12)? {
            0..=2 => self.hear(),
            3 | 4 => {
                let message = message(u)?;
                let control = self.control.as_ref();
                // Refused when it is too long, or when the socket is full.
                let _refused = control.map(|control| control::tell(control, &message));
            }
            5 => {
                let packet = u.arbitrary::<&[u8]>()?;
                self.send(packet, u.arbitrary()?);
            }
            6 | 7 => self.answer(u)?,
            8 => {
                let bytes = u.arbitrary::<&[u8]>()?;
                if let Some(stream) = self.streams.first_mut() {
                    let _full = stream.write(bytes);
                }
            }
            9 => {
                let bytes = u.arbitrary::<&[u8]>()?;
                if let Some(file) = self.files.first_mut() {
                    let _sealed = file.write(bytes);
                }
            }
            10 => {
                let (length, seals) = (u.arbitrary::<u64>()? % FILE_BYTES_MAX, u.arbitrary()?);
                if let Some(file) = self.files.first() {
                    let _sealed = file.set_len(length);
                    let _sealed = fcntl_add_seals(file, SealFlags::from_bits_truncate(seals));
                }
            }
            11 => match u.int_in_range(0..=3)? {
                0 => drop(self.streams.pop()),
                1 => drop(self.files.pop()),
                2 => drop(self.control.take()),
                _ => self.process.kill(),
            },
            _ => {}
        }
        for _ in 0..TURNS {
            yield_now().await;
        }
        Ok(())
    }

    /// Takes an order and what came with it.
    fn hear(&mut self) {
        let Some(control) = &self.control else {
            return;
        };
        let Ok(Some((order, fds))) = control::recv::<ToVmm>(control) else {
            return;
        };
        for fd in fds {
            match order {
                ToVmm::Connect { .. } if self.streams.len() < HELD_MAX => {
                    let stream = std::os::unix::net::UnixStream::from(fd);
                    stream.set_nonblocking(true).unwrap();
                    self.streams.push(stream);
                }
                ToVmm::Sink { .. } if self.files.len() < HELD_MAX => self.files.push(fd.into()),
                _ => {}
            }
        }
    }

    fn send(&self, packet: &[u8], with_descriptor: bool) {
        let Some(control) = &self.control else {
            return;
        };
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [control.as_fd()];
        if with_descriptor {
            let rights = rustix::net::SendAncillaryMessage::ScmRights(&fds);
            assert!(ancillary.push(rights));
        }
        let packet = [IoSlice::new(packet)];
        let _full = sendmsg(control, &packet, &mut ancillary, SendFlags::NOSIGNAL);
    }

    /// A ttrpc frame (ttrpc's PROTOCOL.md: length and stream, big-endian; type; flags) that answers the
    /// first request of a connection: a Response whose payload (field 2) says a kind and a length (the
    /// fields 1 and 2 of `CompileResponse`), or anything.
    fn answer(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let response = if u.arbitrary()? {
            let (kind, bytes) = (u.int_in_range(0..=3_u8)?, u.int_in_range(0..=0x7f_u8)?);
            let status = if u.ratio(1, 8)? {
                vec![0x0a, 2, 8, kind]
            } else {
                Vec::new()
            };
            [status, vec![0x12, 4, 8, kind, 16, bytes]].concat()
        } else {
            u.arbitrary::<&[u8]>()?.to_vec()
        };
        let stream_id = if u.ratio(1, 16)? {
            u.arbitrary()?
        } else {
            1_u32
        };
        let length = u32::try_from(response.len()).unwrap_or(0);
        let head = [&length.to_be_bytes()[..], &stream_id.to_be_bytes(), &[2, 0]];
        let frame = [head.concat(), response].concat();
        if let Some(stream) = self.streams.first_mut() {
            let _full = stream.write(&frame);
        }
        Ok(())
    }
}

fn message(u: &mut Unstructured<'_>) -> Result<FromVmm> {
    let id = u.int_in_range(0..=4)?;
    Ok(match u.int_in_range(0..=9)? {
        0 => FromVmm::NeedMaps,
        1 => FromVmm::Jailed { cpu: String::new() },
        2 => FromVmm::Done { id },
        3 => FromVmm::AgentReady {
            boot_us: u.arbitrary()?,
        },
        4 => FromVmm::Connected { id },
        5 => FromVmm::Inspected {
            id,
            state: Node::new().with("vcpus", 1_u32),
        },
        6 => FromVmm::Refused {
            id,
            reason: u.arbitrary()?,
        },
        7 => {
            let bytes = if u.arbitrary()? {
                u.arbitrary()?
            } else {
                u.int_in_range(0..=0x7f)?
            };
            FromVmm::SinkDone { id, bytes }
        }
        8 => FromVmm::SinkFailed {
            id,
            reason: u.arbitrary()?,
        },
        _ => match u.arbitrary()? {
            true => FromVmm::BootFailed {
                reason: u.arbitrary()?,
            },
            false => FromVmm::GuestEnded {
                reason: u.arbitrary()?,
                console_tail: u.arbitrary()?,
            },
        },
    })
}
