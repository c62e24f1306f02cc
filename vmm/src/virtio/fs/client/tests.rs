//! A file server that was taken over: whatever it answers, nothing but the VM ends.

use super::*;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use rustix::fs::{CWD, Mode, mknodat};
use vm_memory::ByteValued;

const UNIQUE: u64 = 7;

fn header(opcode: Opcode) -> InHeader {
    InHeader {
        opcode: opcode as u32,
        unique: UNIQUE,
        ..InHeader::default()
    }
}

/// What the VMM makes of an answer with a file beside it, or of none.
fn asked(
    opcode: Opcode,
    answer: Option<(&[u8], Option<BorrowedFd<'_>>)>,
) -> Result<Option<Opened>, String> {
    let (server, other) = FileServer::played();
    let mut client = Client::new(server);
    match answer {
        Some((bytes, file)) => message::send(&other, bytes, file).unwrap(),
        None => drop(other),
    }
    let result = client.ask(&header(opcode), b"request");
    result
        .map(|(_, opened)| opened)
        .map_err(|error| error.to_string())
}

fn answer(length: u32, unique: u64, body: &[u8]) -> Vec<u8> {
    let out = OutHeader {
        len: length,
        error: 0,
        unique,
    };
    [out.as_slice(), body].concat()
}

#[test]
fn an_answer_belongs_to_its_request_and_has_the_length_that_it_names() {
    let good = answer(20, UNIQUE, &[1; 4]);
    assert!(
        asked(Opcode::Getattr, Some((&good, None)))
            .unwrap()
            .is_none()
    );
    let senseless = |bytes: &[u8]| asked(Opcode::Getattr, Some((bytes, None))).unwrap_err();
    for (bytes, what) in [
        (
            answer(20, UNIQUE + 1, &[1; 4]),
            "it belongs to another request",
        ),
        (answer(21, UNIQUE, &[1; 4]), "its length is another"),
        (vec![0; 15], "it has no header"),
    ] {
        assert_eq!(
            senseless(&bytes),
            format!("the file server's answer makes no sense: {what}")
        );
    }
    assert_eq!(
        asked(Opcode::Getattr, None).unwrap_err(),
        "the file server has ended"
    );
}

#[test]
fn a_file_comes_only_where_one_is_opened_and_is_a_regular_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, "x").unwrap();
    let file = File::open(&path).unwrap();
    let open = answer(
        32,
        UNIQUE,
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    let beside = |opcode, file: &File| asked(opcode, Some((&open, Some(file.as_fd()))));
    assert_eq!(beside(Opcode::Open, &file).unwrap().unwrap().0, 5);
    let error = beside(Opcode::Getattr, &file).unwrap_err();
    assert!(error.ends_with("a file came with it"), "{error}");
    let error = beside(Opcode::Create, &file).unwrap_err();
    assert!(error.ends_with("its file has no number"), "{error}");

    let pipe = directory.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let pipe = File::options().read(true).write(true).open(pipe).unwrap();
    let error = beside(Opcode::Open, &pipe).unwrap_err();
    assert!(error.ends_with("its file is not a regular one"), "{error}");
}

#[test]
fn the_end_of_the_file_server_is_noticed_while_nothing_is_asked() {
    let (server, other) = FileServer::played();
    let client = Client::new(server);
    let ended = thread::spawn(move || {
        let socket = client.socket();
        let mut ends = [rustix::event::PollFd::from_borrowed_fd(
            socket.as_fd(),
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut ends, None).unwrap()
    });
    drop(other);
    assert_eq!(ended.join().unwrap(), 1);
}
