//! The agent without a VM: the real binary as runner, the real services on Unix sockets, a file as the
//! slot, a directory as the task's tree. Needs root (the runner enters the tree by `chroot`).
#![cfg(feature = "compiler")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on fails"
)]

mod alone;
mod contract;
mod execs;
mod files;
mod guest;
mod process;
mod programs;
mod script;
mod terminals;

use std::io::{Read, Write};
use std::sync::atomic::Ordering;

use guest::{Guest, Streams};
use ttrpc::Code;

#[tokio::test]
async fn a_module_prints_and_ends_with_zero() {
    let guest = Guest::with(programs::HELLO).await;
    let ended = guest.run(|_| {}).await;
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "hello\n"));
    assert_eq!(ended.stderr, "");
}

#[tokio::test]
async fn exit_codes_are_the_modules_own_modulo_256() {
    for (code, status) in [(7, 7), (200, 200), (256 + 9, 9)] {
        let guest = Guest::with(&programs::exits_with(code)).await;
        assert_eq!(guest.run(|_| {}).await.status, status);
    }
}

#[tokio::test]
async fn a_trap_is_134_with_message_and_backtrace() {
    let guest = Guest::with(programs::TRAP).await;
    let ended = guest.run(|_| {}).await;
    assert_eq!(ended.status, 134);
    for part in [
        "failed to run main module `prog.wasm`",
        "wasm `unreachable` instruction executed",
        "wasm backtrace",
        "!deep_inside",
        "!_start",
    ] {
        assert!(ended.stderr.contains(part), "{part} in {}", ended.stderr);
    }
}

#[tokio::test]
async fn stack_overflow_is_a_trap() {
    let guest = Guest::with(programs::RECURSION).await;
    let ended = guest.run(|_| {}).await;
    assert_eq!(ended.status, 134);
    assert!(
        ended.stderr.contains("call stack exhausted"),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn signals_end_an_endless_loop() {
    for (signal, status) in [(15, 143), (2, 130), (9, 137), (1, 129), (13, 141)] {
        let guest = Guest::with(programs::LOOP).await;
        guest.create(|_| {}, Streams::none()).await.unwrap();
        guest.start().await.unwrap();
        guest.kill(signal).await.unwrap();
        assert_eq!(guest.wait().await, status);
        assert_eq!(guest.kill(signal).await.unwrap_err().0, Code::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_signal_before_start_ends_it_and_start_says_so() {
    let guest = Guest::with(programs::HELLO).await;
    guest.create(|_| {}, Streams::none()).await.unwrap();
    guest.kill(9).await.unwrap();
    assert_eq!(guest.wait().await, 137);
    let (code, text) = guest.start().await.unwrap_err();
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(text.contains("it is stopped"), "{text}");
}

#[tokio::test]
async fn phases_follow_the_life() {
    let guest = Guest::with(programs::LOOP).await;
    assert_eq!(guest.delete().await.unwrap_err().0, Code::NOT_FOUND);
    guest.create(|_| {}, Streams::none()).await.unwrap();
    assert!(guest.is("created").await);
    guest.start().await.unwrap();
    assert!(guest.is("running").await);
    guest.kill(9).await.unwrap();
    guest.wait().await;
    guest.delete().await.unwrap();
    assert_eq!(guest.delete().await.unwrap_err().0, Code::NOT_FOUND);
}

#[tokio::test]
async fn a_second_create_of_the_same_id_is_refused() {
    let guest = Guest::with(programs::HELLO).await;
    guest.create(|_| {}, Streams::none()).await.unwrap();
    let (code, _) = guest.create(|_| {}, Streams::none()).await.unwrap_err();
    assert_eq!(code, Code::ALREADY_EXISTS);
}

#[tokio::test]
async fn memory_grows_to_its_bound_and_then_fails_as_wasm_says() {
    // One page at the start, so 15 more fit into 1 MiB and the 16th does not.
    let guest = Guest::with(programs::GROW).await;
    let ended = guest
        .run(|program| program.memory_bytes_max = 1 << 20)
        .await;
    assert_eq!(ended.status, 15);
}

#[tokio::test]
async fn a_memory_beyond_the_bound_is_refused_with_both_numbers() {
    let guest = Guest::with(programs::GROW).await;
    let edit = |program: &mut guest::Program| program.memory_bytes_max = 4096;
    let (code, text) = guest.create(edit, Streams::none()).await.unwrap_err();
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(text.contains("65536") && text.contains("4096"), "{text}");
    // Nothing is left: the id is free.
    guest.create(|_| {}, Streams::none()).await.unwrap();
}

#[tokio::test]
async fn a_missing_import_is_named() {
    let guest = Guest::with(programs::IMPORTS_FOO).await;
    let (code, text) = guest.create(|_| {}, Streams::none()).await.unwrap_err();
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert_eq!(text, "module imports env::foo, which wasmvm does not offer");
    let guest = Guest::with("(component (import \"acme:a/b\" (instance (export \"f\" (func)))) (instance $r) (export \"wasi:cli/run@0.2.0\" (instance $r)))").await;
    let (code, text) = guest.create(|_| {}, Streams::none()).await.unwrap_err();
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert_eq!(
        text,
        "component imports acme:a/b, which wasmvm does not offer"
    );
}

#[tokio::test]
async fn what_is_no_command_is_refused() {
    for (wat, part) in [
        ("(module)", "no function `_start`"),
        ("(module (func (export \"_initialize\")))", "reactor"),
        (
            "(module (func (export \"_start\") (param i32)))",
            "`_start` has 1 parameters and 0 results",
        ),
        ("(component)", "exports nothing"),
        (programs::PROXY, "wasi:http/proxy"),
    ] {
        let guest = Guest::with(wat).await;
        let (code, text) = guest.create(|_| {}, Streams::none()).await.unwrap_err();
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[tokio::test]
async fn a_command_is_entered_by_start_or_the_default_export() {
    // Each call exits with its own status, or leaves it to the next.
    for (exports, status) in [
        (&["_start", ""][..], 1),
        (&[""], 2),
        (&["_initialize", "_start"], 11),
        (&["_initialize", ""], 12),
        (&["_initialize", "run", ""], 12),
    ] {
        let guest = Guest::with(&programs::exporting(exports)).await;
        assert_eq!(guest.run(|_| {}).await.status, status, "{exports:?}");
    }
}

#[tokio::test]
async fn a_function_that_is_named_is_called() {
    let run = |program: &mut guest::Program| program.function = "run".into();
    for (exports, status) in [
        (&["_start", "run"][..], 3),
        (&["_initialize", "run"], 13),
        (&["run"], 3),
    ] {
        let guest = Guest::with(&programs::exporting(exports)).await;
        assert_eq!(guest.run(run).await.status, status, "{exports:?}");
    }
    let guest = Guest::with(&programs::exporting(&["_start"])).await;
    let (code, text) = guest.create(run, Streams::none()).await.unwrap_err();
    assert_eq!(code, Code::INVALID_ARGUMENT);
    let expected = "module exports no function `run`; the first that it exports: `_start`";
    assert_eq!(text, expected);
    // Of a library it can be what prepares it.
    let guest = Guest::with(&programs::exporting(&["_initialize"])).await;
    let prepare = |program: &mut guest::Program| program.function = "_initialize".into();
    assert_eq!(guest.run(prepare).await.status, 0);
}

#[tokio::test]
async fn an_artifact_of_another_build_is_refused() {
    let guest = Guest::with(programs::HELLO).await;
    guest.spoil_artifact();
    let (code, text) = guest.create(|_| {}, Streams::none()).await.unwrap_err();
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(text.contains("does not fit this agent"), "{text}");
}

#[tokio::test]
async fn components_run_and_print() {
    let guest = Guest::with(programs::COMPONENT).await;
    let ended = guest.run(|_| {}).await;
    assert_eq!(ended.stderr, "");
    assert_eq!(
        (ended.status, ended.stdout.as_str()),
        (0, "hello component\n")
    );
}

#[tokio::test]
async fn a_component_whose_run_fails_ends_with_one() {
    let guest = Guest::with(programs::FAILING_COMPONENT).await;
    assert_eq!(guest.run(|_| {}).await.status, 1);
}

#[tokio::test]
async fn stdin_reaches_stdout_whole_and_ends() {
    let guest = Guest::with(programs::CAT).await;
    let input: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let ended = guest.run_with_input(|_| {}, input.clone()).await;
    assert_eq!(ended.status, 0);
    assert!(
        ended.stdout_bytes == input,
        "{} bytes",
        ended.stdout_bytes.len()
    );
}

#[tokio::test]
async fn a_write_to_a_gone_reader_is_epipe() {
    let guest = Guest::with(programs::WRITES_UNTIL_ERROR).await;
    let (streams, ends) = guest.streams().await;
    guest.create(|_| {}, streams).await.unwrap();
    drop(ends);
    guest.start().await.unwrap();
    // WASI's errno `pipe`.
    assert_eq!(guest.wait().await, 64);
}

#[tokio::test]
async fn waiting_for_input_and_a_clock_ends_by_the_clock() {
    let guest = Guest::with(programs::POLL).await;
    let (streams, _ends) = guest.streams().await;
    guest.create(|_| {}, streams).await.unwrap();
    guest.start().await.unwrap();
    // One event, of the clock.
    assert_eq!(guest.wait().await, 10);
}

#[tokio::test]
async fn two_waits_for_input_are_as_patient_as_one() {
    let guest = Guest::with(programs::POLL_TWICE).await;
    let (streams, _ends) = guest.streams().await;
    guest.create(|_| {}, streams).await.unwrap();
    guest.start().await.unwrap();
    assert_eq!(guest.wait().await, 10);
}

#[tokio::test]
async fn signals_that_are_ignored_by_default_end_nothing() {
    let guest = Guest::with(programs::LOOP).await;
    guest.create(|_| {}, Streams::none()).await.unwrap();
    guest.start().await.unwrap();
    // SIGCHLD, SIGCONT, SIGURG, SIGWINCH
    for signal in [17, 18, 23, 28] {
        guest.kill(signal).await.unwrap();
    }
    guest.kill(15).await.unwrap();
    assert_eq!(guest.wait().await, 143);
}

#[tokio::test]
async fn sigstop_stops_and_sigcont_continues() {
    let guest = Guest::with(programs::LOOP).await;
    guest.create(|_| {}, Streams::none()).await.unwrap();
    let pid = guest.start().await.unwrap();
    let process_state = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        rest.chars().next().unwrap()
    };
    guest.kill(19).await.unwrap();
    while process_state() != 'T' {
        tokio::task::yield_now().await;
    }
    // Pending until it continues.
    guest.kill(15).await.unwrap();
    assert!(guest.is("running").await);
    guest.kill(18).await.unwrap();
    assert_eq!(guest.wait().await, 143);
}

#[tokio::test]
async fn a_sigkill_that_nobody_sent_counts_as_want_of_memory() {
    let guest = Guest::with(programs::LOOP).await;
    guest.create(|_| {}, Streams::none()).await.unwrap();
    let pid = guest.start().await.unwrap();
    assert_eq!(guest.oom_kills().await, 0);
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(guest.wait().await, 137);
    assert_eq!(guest.oom_kills().await, 1);
}

#[tokio::test]
async fn a_sigkill_that_was_sent_does_not() {
    let guest = Guest::with(programs::LOOP).await;
    guest.create(|_| {}, Streams::none()).await.unwrap();
    guest.start().await.unwrap();
    guest.kill(9).await.unwrap();
    assert_eq!(guest.wait().await, 137);
    assert_eq!(guest.oom_kills().await, 0);
}

#[tokio::test]
async fn a_memory_limit_moves_while_the_program_runs() {
    // What a program of one page, at first allowed 16, can add when it may have so many bytes.
    for (bytes, pages) in [(2 << 20, 31), (1 << 19, 7), (4096, 0)] {
        let guest = Guest::with(programs::GROW_WHEN_TOLD).await;
        let (streams, [mut stdin, mut stdout, _stderr]) = guest.streams().await;
        let limited = |program: &mut guest::Program| program.memory_bytes_max = 1 << 20;
        guest.create(limited, streams).await.unwrap();
        guest.start().await.unwrap();
        stdout.read_exact(&mut [0]).unwrap();
        let change = |change: &mut guest::Change| change.memory_bytes_max = Some(bytes);
        guest.update(change).await.unwrap();
        stdin.write_all(b"!").unwrap();
        assert_eq!(guest.wait().await, pages);
        assert_eq!(guest.clock.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test]
async fn an_update_sets_the_clock() {
    let guest = Guest::with(programs::LOOP).await;
    let at_noon = |change: &mut guest::Change| change.wall_clock_ns = Some(12);
    assert_eq!(guest.update(at_noon).await.unwrap_err().0, Code::NOT_FOUND);
    guest.create(|_| {}, Streams::none()).await.unwrap();
    guest.update(at_noon).await.unwrap();
    assert_eq!(guest.clock.load(Ordering::Relaxed), 12);
}

#[tokio::test]
async fn files_of_the_tree_are_read_as_the_programs_user() {
    let guest = Guest::with(programs::READS_FILE).await;
    guest.write_file("file", b"content\n", 0o600);
    let ended = guest.run(|_| {}).await;
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "content\n"));
    let other = Guest::with(programs::READS_FILE).await;
    other.write_file("file", b"content\n", 0o600);
    let ended = other
        .run(|program| {
            program.uid = 1000;
            program.gid = 1000;
        })
        .await;
    // WASI's errno `acces`.
    assert_eq!(ended.status, 2);
}

#[tokio::test]
async fn root_opens_files_of_other_users() {
    let guest = Guest::with(programs::READS_FILE).await;
    guest.write_file("file", b"content\n", 0o600);
    guest.chown("file", 1000);
    let ended = guest
        .run(|program| program.capabilities = DAC_OVERRIDE)
        .await;
    assert_eq!(ended.status, 0);
}

/// `CAP_DAC_OVERRIDE` and `CAP_DAC_READ_SEARCH`, capabilities(7).
const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;

#[tokio::test]
async fn a_program_has_the_capabilities_that_it_is_given_whoever_it_is() {
    for (uid, capabilities, status) in [
        // `drop: [ALL]`: WASI's errno `acces`.
        (0, 0, 2),
        // What is no file's never counts.
        (0, 1 << 21, 2),
        (0, DAC_READ_SEARCH, 0),
        (1001, 0, 2),
        (1001, DAC_OVERRIDE, 0),
    ] {
        let guest = Guest::with(programs::READS_FILE).await;
        guest.write_file("file", b"content\n", 0o600);
        guest.chown("file", 1000);
        let ended = guest
            .run(|program| {
                program.uid = uid;
                program.capabilities = capabilities;
            })
            .await;
        assert_eq!(
            ended.status, status,
            "uid {uid}, capabilities {capabilities:#x}"
        );
    }
}

#[tokio::test]
async fn new_files_have_the_mode_that_the_umask_leaves() {
    for (umask, mode) in [(None, 0o644), (Some(0o077), 0o600), (Some(0), 0o666)] {
        let guest = Guest::with(programs::MAKES_FILE).await;
        guest.write_file("other", b"", 0o644);
        let ended = guest.run(|program| program.umask = umask).await;
        assert_eq!(ended.status, 0, "{}", ended.stderr);
        assert_eq!(guest.mode("new"), mode, "umask {umask:?}");
    }
}

#[tokio::test]
async fn arguments_and_environment_arrive() {
    // argc * 16 + envc
    let guest = Guest::with(programs::COUNTS).await;
    guest.make_directory("work");
    let ended = guest
        .run(|program| {
            program.args.push("second".into());
            program.env = vec!["A=1".into(), "B=".into()];
            program.cwd = "/work".into();
        })
        .await;
    // Two arguments; A, B and PWD.
    assert_eq!(ended.status, 2 * 16 + 3);
}

#[tokio::test]
async fn the_compiler_service_compiles_and_delivers() {
    let compiled = guest::compile_by_service(&wat::parse_str(programs::HELLO).unwrap())
        .await
        .unwrap();
    let guest = Guest::of_artifact(compiled).await;
    assert_eq!(guest.run(|_| {}).await.stdout, "hello\n");
}

#[tokio::test]
async fn the_compiler_service_says_what_is_wrong() {
    let (code, text) = guest::compile_by_service(b"#!/bin/sh\n").await.unwrap_err();
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(text.contains("it is a script"), "{text}");
    let broken = b"\0asm\x01\0\0\0\xff";
    let (code, text) = guest::compile_by_service(broken).await.unwrap_err();
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(text.contains("not valid WebAssembly"), "{text}");
}
