//! The file server under messages that no VMM sends, and the VMM under answers that no file server gives.

#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "a panic is what a target reports by"
)]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use arbitrary::{Result, Unstructured};
use rustix::fs::FileType;
use virtiofsd::fuse::{InHeader, Opcode, OutHeader, ROOT_ID};
use vm_memory::ByteValued;

use super::message::{self, BYTES_MAX, is_answered, object};
use super::serve::serve_apart;
use super::{FileServer, pair};
use crate::virtio::fs::fuzz::{GUEST_FDS, Host, Known, request};
use crate::virtio::fs::{Client, tree_for_test};

/// Most messages of one input.
const MESSAGES_MAX: usize = 64;

/// Whatever the VMM sends: nothing outside of the tree changes; no device, pipe or socket is made; each message has
/// its one answer or none; only regular files are handed over; the end of the socket ends the server.
pub fn file_server(input: &[u8]) {
    let host = Host::new();
    let tree = tree_for_test(&host.tree(), GUEST_FDS);
    let (vmm, socket) = pair().unwrap();
    let serving = thread::spawn(move || serve_apart(&socket, &tree, || ()));
    let _used_up = converse(&mut Unstructured::new(input), &vmm);
    drop(vmm);
    serving.join().unwrap();
    host.check();
}

fn converse(u: &mut Unstructured<'_>, vmm: &OwnedFd) -> Result<()> {
    let mut known = Known::default();
    let mut answer = vec![0; BYTES_MAX];
    known.nodes.push(ROOT_ID);
    exchange(vmm, &request::init(), &mut answer);
    for _ in 0..MESSAGES_MAX {
        if u.is_empty() {
            break;
        }
        let (opcode, mut bytes) = request::any(u, &known)?;
        match u.int_in_range(0..=15)? {
            0 => bytes.truncate(u.int_in_range(1..=bytes.len().max(1))?),
            1 => bytes.resize(u.int_in_range(1..=BYTES_MAX)?, u.arbitrary()?),
            _ => {}
        }
        // An empty packet looks like the end of the socket, and ends the server as that does.
        if bytes.is_empty() {
            break;
        }
        if let Some(length) = exchange(vmm, &bytes, &mut answer) {
            known.learn(opcode, answer.get(..length).unwrap_or_default());
        }
    }
    Ok(())
}

/// Sends a message and takes its answer, if it has one.
fn exchange(vmm: &OwnedFd, bytes: &[u8], answer: &mut [u8]) -> Option<usize> {
    message::send(vmm, bytes, None).unwrap();
    let header: InHeader = object(bytes, 0).unwrap_or_default();
    if !is_answered(header.opcode) {
        return None;
    }
    let (length, file) = message::receive(vmm, answer).unwrap();
    assert!(length >= size_of::<OutHeader>(), "{length} bytes of answer");
    if let Some(file) = file {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(file).unwrap().st_mode);
        assert_eq!(kind, FileType::RegularFile);
    }
    Some(length)
}

/// Whatever the file server answers: the call ends, and what is taken is an answer to the request, with a regular
/// file where one was opened.
pub fn file_answers(input: &[u8]) {
    let _used_up = answers(&mut Unstructured::new(input));
}

fn answers(u: &mut Unstructured<'_>) -> Result<()> {
    let (server, other) = FileServer::played();
    let mut client = Client::new(server);
    while !u.is_empty() {
        let opcode = *u.choose(&[
            Opcode::Open,
            Opcode::Create,
            Opcode::Getattr,
            Opcode::Readdir,
        ])?;
        let header = InHeader {
            opcode: opcode as u32,
            unique: u.int_in_range(0..=3)?,
            ..InHeader::default()
        };
        let body: Vec<u8> = u.arbitrary()?;
        let whole = size_of::<OutHeader>() + body.len().min(BYTES_MAX);
        let out = OutHeader {
            len: if u.ratio(1, 8)? {
                u.arbitrary()?
            } else {
                u32::try_from(whole).unwrap()
            },
            error: u.arbitrary()?,
            unique: if u.ratio(1, 8)? {
                u.arbitrary()?
            } else {
                header.unique
            },
        };
        let mut answer = [out.as_slice(), &body].concat();
        answer.truncate(if u.ratio(1, 8)? {
            u.int_in_range(1..=17)?
        } else {
            whole
        });
        let beside = match u.int_in_range(0..=3)? {
            0 => Some(File::open("/dev/null").unwrap()),
            1 => Some(File::open("/").unwrap()),
            2 => Some(File::open(std::env::current_exe().unwrap()).unwrap()),
            _ => None,
        };
        let is_regular = beside
            .as_ref()
            .is_some_and(|file| file.metadata().unwrap().is_file());
        message::send(&other, &answer, beside.as_ref().map(AsFd::as_fd)).unwrap();
        match client.ask(&header, &[0]) {
            Ok((taken, opened)) => {
                assert_eq!(taken.len(), answer.len());
                assert_eq!(
                    (out.len as usize, out.unique),
                    (answer.len(), header.unique)
                );
                let opens = matches!(opcode, Opcode::Open | Opcode::Create);
                assert_eq!(opened.is_some(), beside.is_some());
                assert!(opened.is_none() || (opens && is_regular));
            }
            // The VM ends.
            Err(_) => break,
        }
        let mut request = [0; 2];
        message::receive(&other, &mut request).unwrap();
    }
    Ok(())
}
