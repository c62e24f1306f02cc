//! More programs in the task's guest.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ttrpc::Code;

use crate::guest::{Guest, Program, Streams};
use crate::programs;

/// A guest whose init runs for ever, with `wat` in slot 3.
async fn busy_guest(wat: &str) -> Guest {
    let guest = Guest::with(programs::LOOP).await;
    guest.fill_slot(3, wat);
    guest.create(|_| {}, Streams::none()).await.unwrap();
    guest.start().await.unwrap();
    guest
}

fn in_slot_3(program: &mut Program) {
    program.slot = 3;
}

async fn read_all(mut stream: UnixStream) -> String {
    let read = move || {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[tokio::test]
async fn another_program_runs_beside_init_with_its_own_streams() {
    let guest = busy_guest(programs::CAT).await;
    let (streams, [mut stdin, stdout, _stderr]) = guest.streams_of("cat").await;
    guest.exec("cat", in_slot_3, streams).await.unwrap();
    let cat = guest.process("cat");
    assert!(cat.is("created").await);
    assert!(cat.start().await.unwrap() > 0);
    stdin.write_all(b"for the exec").unwrap();
    stdin.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(stdout).await, "for the exec");
    assert_eq!(cat.wait().await, 0);
    assert!(guest.is("running").await);
    cat.delete().await.unwrap();
    assert_eq!(cat.delete().await.unwrap_err().0, Code::NOT_FOUND);
}

#[tokio::test]
async fn execs_of_one_program_share_its_slot_and_differ_in_user_and_code() {
    let guest = busy_guest(programs::COUNTS).await;
    for exec in ["a", "b"] {
        let edit = |program: &mut Program| {
            program.slot = 3;
            program.uid = 1000;
            program.args.resize(4, "more".into());
        };
        guest.exec(exec, edit, Streams::none()).await.unwrap();
        guest.process(exec).start().await.unwrap();
        // Four arguments, and PWD.
        assert_eq!(guest.process(exec).wait().await, 4 * 16 + 1);
    }
}

#[tokio::test]
async fn a_signal_reaches_the_exec_alone() {
    let guest = busy_guest(programs::LOOP).await;
    guest
        .exec("loop", in_slot_3, Streams::none())
        .await
        .unwrap();
    let exec = guest.process("loop");
    exec.start().await.unwrap();
    exec.kill(15).await.unwrap();
    assert_eq!(exec.wait().await, 143);
    assert_eq!(exec.kill(15).await.unwrap_err().0, Code::NOT_FOUND);
    assert!(guest.is("running").await);
}

#[tokio::test]
async fn a_signal_to_all_reaches_all() {
    let guest = busy_guest(programs::LOOP).await;
    guest
        .exec("loop", in_slot_3, Streams::none())
        .await
        .unwrap();
    guest.process("loop").start().await.unwrap();
    guest.kill_all(2).await.unwrap();
    assert_eq!(guest.process("loop").wait().await, 130);
    assert_eq!(guest.wait().await, 130);
}

#[tokio::test]
async fn the_end_of_init_ends_all_execs_and_is_told_last() {
    let guest = busy_guest(programs::LOOP).await;
    for exec in ["started", "loaded"] {
        guest.exec(exec, in_slot_3, Streams::none()).await.unwrap();
    }
    guest.process("started").start().await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    // Tasks of their own, as these wake in the order of the answers. Init is asked for first.
    let waits = ["", "started", "loaded"].map(|exec| {
        let (wait, order) = (guest.process(exec).wait_apart(), Arc::clone(&order));
        tokio::spawn(async move {
            let status = wait.await;
            order.lock().unwrap().push((exec, status));
        })
    });
    guest.kill(15).await.unwrap();
    for wait in waits {
        wait.await.unwrap();
    }
    let mut order = order.lock().unwrap().clone();
    assert_eq!(order.pop(), Some(("", 143)));
    order.sort_unstable();
    assert_eq!(order, [("loaded", 137), ("started", 137)]);
    assert_eq!(guest.oom_kills().await, 0);
}

#[tokio::test]
async fn after_the_end_of_init_nothing_joins() {
    let guest = busy_guest(programs::LOOP).await;
    guest.kill(9).await.unwrap();
    guest.wait().await;
    let refusal = guest.exec("late", in_slot_3, Streams::none()).await;
    let (code, text) = refusal.unwrap_err();
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert_eq!(text, "cannot exec in task \"web\": it is stopped");
}

#[tokio::test]
async fn an_exec_that_cannot_be_leaves_nothing() {
    let guest = Guest::with(programs::LOOP).await;
    let none = guest.exec("early", |_| {}, Streams::none()).await;
    assert_eq!(none.unwrap_err().0, Code::NOT_FOUND);
    guest.fill_slot(3, programs::IMPORTS_FOO);
    guest.create(|_| {}, Streams::none()).await.unwrap();
    let (code, text) = guest
        .exec("one", in_slot_3, Streams::none())
        .await
        .unwrap_err();
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(text.contains("env::foo"), "{text}");
    // Init need not be started, and the id is free.
    guest.exec("one", |_| {}, Streams::none()).await.unwrap();
    let twice = guest.exec("one", |_| {}, Streams::none()).await;
    assert_eq!(twice.unwrap_err().0, Code::ALREADY_EXISTS);
    let far = |program: &mut Program| program.slot = 16;
    let (code, text) = guest.exec("far", far, Streams::none()).await.unwrap_err();
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert_eq!(text, "there is no slot 16; they are numbered 0 to 15");
}

#[tokio::test]
async fn an_update_reaches_the_execs() {
    let guest = busy_guest(programs::GROW_WHEN_TOLD).await;
    let (streams, [mut stdin, _stdout, _stderr]) = guest.streams_of("grow").await;
    guest.exec("grow", in_slot_3, streams).await.unwrap();
    guest.process("grow").start().await.unwrap();
    let change = |change: &mut crate::guest::Change| change.memory_bytes_max = Some(1 << 20);
    guest.update(change).await.unwrap();
    stdin.write_all(b"!").unwrap();
    assert_eq!(guest.process("grow").wait().await, 15);
}

#[tokio::test]
async fn what_the_programs_do_can_be_seen() {
    let guest = busy_guest(programs::LOOP).await;
    guest
        .exec("waits", in_slot_3, Streams::none())
        .await
        .unwrap();
    // Ready, and soon reading its start pipe.
    let waits = async {
        loop {
            let programs = guest.look().await;
            let [(_, init), (pid, exec)] = programs.as_slice() else {
                panic!("{programs:?}");
            };
            assert_eq!(init.exec_id, "");
            assert!(!init.threads.is_empty());
            assert_eq!(exec.exec_id, "waits");
            let first = &exec.threads[0];
            assert_eq!(first.id, *pid);
            if (first.state.as_str(), first.syscall) == ("S", Some(0)) {
                break;
            }
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waits).await;
    waited.expect("it waits for its start");
    guest.process("waits").kill(9).await.unwrap();
    assert_eq!(guest.process("waits").wait().await, 137);
    let ended = guest.look().await.pop().unwrap().1;
    assert_eq!(ended.threads, []);
}
