//! Execs and their terminals, as containerd sees them.

use super::*;
use crate::bundle::PROCESS_TYPE_URL;

const GUEST_PID: u32 = 7;
const EXEC_PID: u32 = 4_194_304 + GUEST_PID;

fn spec(json: &str) -> Any {
    Any {
        type_url: PROCESS_TYPE_URL.into(),
        value: json.as_bytes().to_vec(),
        ..Default::default()
    }
}

/// Runs a program of this name.
pub(super) fn program(name: &str) -> pb::ExecProcessRequest {
    let json = format!(r#"{{"args":["{name}"],"cwd":"/","user":{{"uid":0,"gid":0}}}}"#);
    pb::ExecProcessRequest {
        spec: MessageField::some(spec(&json)),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_exec_runs_beside_init_and_is_deleted() {
    let f = fixture();
    f.running().await;
    f.exec("e", program("echo")).await.unwrap();
    let state = f.state_of("e").await.unwrap();
    assert_eq!((state.status(), state.pid), (pb::Status::CREATED, 0));
    assert_eq!((state.id.as_str(), state.exec_id.as_str()), ("t", "e"));
    assert_eq!(f.pids().await.unwrap(), [PID]);
    let early = code(&f.kill_process("e", 9, true).await.unwrap_err());
    assert_eq!(early.0, ErrorCode::FailedPrecondition);
    assert_eq!(f.start_exec("e").await.unwrap(), EXEC_PID);
    assert_eq!(f.state_of("e").await.unwrap().status(), pb::Status::RUNNING);
    assert_eq!(f.pids().await.unwrap(), [PID, EXEC_PID]);
    let running = code(&f.delete_exec("e").await.unwrap_err());
    assert_eq!(running.0, ErrorCode::FailedPrecondition);
    f.maker.guest.ends("e", 4);
    assert_eq!(f.wait_for("e").await.unwrap(), 4);
    assert_eq!(f.state().await.unwrap().status(), pb::Status::RUNNING);
    let finished = code(&f.kill_process("e", 9, false).await.unwrap_err());
    assert_eq!(finished.0, ErrorCode::NotFound);
    let deleted = f.delete_exec("e").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (EXEC_PID, 4));
    assert!(deleted.exited_at.is_some());
    assert_eq!(
        code(&f.state_of("e").await.unwrap_err()).0,
        ErrorCode::NotFound
    );
    // The guest has forgotten it too: the id is free.
    f.run_exec("e").await;
    f.kill_process("e", 15, true).await.unwrap();
    assert_eq!(f.wait_for("e").await.unwrap(), 143);
    assert_eq!(f.state().await.unwrap().status(), pb::Status::RUNNING);
    let started = format!("exec-started e {EXEC_PID}");
    let words = [
        "create 4711",
        "start 4711",
        "exec-added e",
        &started,
        "exit 4 of e",
        "exec-added e",
        &started,
        "exit 143 of e",
    ];
    assert_eq!(f.events.words(), words);
}

#[tokio::test]
async fn pids_tell_which_is_which_exec() {
    let f = fixture();
    f.running().await;
    f.run_exec("e").await;
    let processes = f.processes().await.unwrap();
    assert!(processes[0].info.is_none());
    let info = &processes[1].info;
    assert_eq!(info.type_url, "containerd.runc.v1.ProcessDetails");
    assert_eq!(info.value, b"\x0a\x01e");
}

#[tokio::test]
async fn what_cannot_be_an_exec_is_refused() {
    let f = fixture();
    f.create(Default::default()).await.unwrap();
    let early = code(&f.exec("e", program("echo")).await.unwrap_err());
    assert_eq!(early.0, ErrorCode::FailedPrecondition);
    assert!(
        early
            .1
            .starts_with("the init process of task t is not running")
    );
    f.start().await.unwrap();
    f.exec("e", program("echo")).await.unwrap();
    let twice = code(&f.exec("e", program("echo")).await.unwrap_err());
    assert_eq!(twice.0, ErrorCode::AlreadyExists);
    let mut foreign = program("echo");
    foreign.spec.as_mut().unwrap().type_url = "x".into();
    let wrong = [
        ("", program("echo"), "the exec id has 0 bytes"),
        (
            "f",
            pb::ExecProcessRequest::default(),
            "the exec has no spec",
        ),
        ("f", foreign, "the spec of the exec is of type \"x\""),
    ];
    for (id, request, sentence) in wrong {
        let (refused, said) = code(&f.exec(id, request).await.unwrap_err());
        assert_eq!(refused, ErrorCode::InvalidArgument);
        assert!(said.starts_with(sentence), "{said}");
    }
    f.kill(9).await.unwrap();
    f.wait().await.unwrap();
    let late = code(&f.start_exec("e").await.unwrap_err());
    assert_eq!(late.0, ErrorCode::FailedPrecondition);
    let late = code(&f.exec("f", program("echo")).await.unwrap_err());
    assert_eq!(late.0, ErrorCode::FailedPrecondition);
}

#[tokio::test]
async fn a_program_that_cannot_be_loaded_fails_its_start() {
    let f = fixture();
    f.running().await;
    let stdout = fifo(f.dir.path(), "out");
    let request = pb::ExecProcessRequest {
        stdout: stdout.clone(),
        ..program("/bin/sh")
    };
    f.exec("e", request).await.unwrap();
    let mut reader = open_reader(Path::new(&stdout));
    let (started, waited) = tokio::join!(f.start_exec("e"), f.wait_for("e"));
    let (refused, sentence) = code(&started.unwrap_err());
    assert_eq!(refused, ErrorCode::InvalidArgument);
    assert_eq!(sentence, "program /bin/sh is an ELF program");
    assert_eq!(waited.unwrap(), 255, "who waits is released");
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!(f.state_of("e").await.unwrap().status(), pb::Status::STOPPED);
    assert_eq!(f.delete_exec("e").await.unwrap().pid, 0);
    // The agent's refusal is no different.
    *f.maker.guest.refuses_create.lock().unwrap() = Some((ttrpc::Code::NOT_FOUND, "no import"));
    f.exec("e", program("echo")).await.unwrap();
    let refused = code(&f.start_exec("e").await.unwrap_err());
    assert_eq!(refused, (ErrorCode::NotFound, "no import".into()));
    let words = f.events.words();
    assert_eq!(words[2..], ["exec-added e", "exec-added e"]);
}

#[tokio::test]
async fn an_exec_has_streams_of_its_own() {
    let f = fixture();
    f.running().await;
    let request = pb::ExecProcessRequest {
        stdin: fifo(f.dir.path(), "in"),
        stdout: fifo(f.dir.path(), "out"),
        ..program("cat")
    };
    let (stdin, stdout) = (request.stdin.clone(), request.stdout.clone());
    f.exec("e", request).await.unwrap();
    let client = tokio::task::spawn_blocking(move || {
        // Opens when the shim does.
        let mut client = std::fs::File::options().write(true).open(stdin).unwrap();
        client.write_all(b"question").unwrap();
        client
    });
    f.start_exec("e").await.unwrap();
    let reader = read_out(&stdout);
    let tokens = f.maker.guest.instance("e").tokens.clone();
    assert_eq!(tokens, ["1", "2", ""]);
    let header = f.maker.guest.streams.lock().unwrap()[&2].0.clone();
    assert_eq!((header.task.as_str(), header.exec.as_str()), ("t", "e"));
    let _client = soon(client).await.unwrap();
    f.answers("e").await;
    f.maker.guest.ends("e", 0);
    assert_eq!(soon(reader).await.unwrap(), b"answer");
    f.delete_exec("e").await.unwrap();
}

#[tokio::test]
async fn execs_end_before_init() {
    let f = fixture();
    f.running().await;
    for id in ["a", "b", "c"] {
        f.exec(id, program("sleep")).await.unwrap();
    }
    f.start_exec("a").await.unwrap();
    f.start_exec("b").await.unwrap();
    f.maker.guest.exits(0);
    assert_eq!(f.wait().await.unwrap(), 0);
    assert_eq!(f.wait_for("a").await.unwrap(), 137);
    assert_eq!(f.wait_for("b").await.unwrap(), 137);
    let mut exits = f.events.words().split_off(7);
    assert_eq!(exits.pop().unwrap(), "exit 0");
    exits.sort();
    assert_eq!(exits, ["exit 137 of a", "exit 137 of b"]);
    // Who waits for one that never began is released with the task.
    let (waited, deleted) = tokio::join!(f.wait_for("c"), f.delete());
    assert_eq!((waited.unwrap(), deleted.unwrap().exit_status), (0, 0));
    assert_eq!(
        code(&f.state_of("a").await.unwrap_err()).0,
        ErrorCode::NotFound
    );
}

#[tokio::test]
async fn execs_of_a_vm_that_dies_are_not_lost() {
    let f = fixture();
    f.running().await;
    f.run_exec("e").await;
    f.maker.workload().dies("triple fault");
    assert_eq!(f.wait_for("e").await.unwrap(), 137);
    assert_eq!(f.wait().await.unwrap(), 137);
    assert_eq!(f.events.words()[4..], ["exit 137 of e", "exit 137"]);
}

#[tokio::test]
async fn an_exec_that_the_guest_does_not_end_is_given_up() {
    let f = fixture();
    f.running().await;
    f.run_exec("e").await;
    *f.maker.guest.obedience.lock().unwrap() = Obedience::Lies;
    f.kill_process("e", 9, false).await.unwrap();
    assert_eq!(f.wait_for("e").await.unwrap(), 137);
    assert_eq!(f.state().await.unwrap().status(), pb::Status::RUNNING);
    // Nor can it hold up init's end.
    f.run_exec("f").await;
    f.maker.guest.exits(1);
    assert_eq!(f.wait().await.unwrap(), 1);
    assert_eq!(f.wait_for("f").await.unwrap(), 137);
}

/// Waits until the start of an exec has begun.
async fn being_started(f: &Fixture, exec_id: &str) {
    let exec = f.service.tasks.get("t").unwrap().exec_of(exec_id).unwrap();
    while !exec.report().state.is_live() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_start_that_takes_long_can_be_killed() {
    let f = fixture();
    f.running().await;
    f.maker.workload().loads.send_replace(false);
    f.exec("e", program("sleep")).await.unwrap();
    let kill = async {
        let starting = || async { f.state_of("e").await.unwrap().status() };
        assert_eq!(starting().await, pb::Status::CREATED);
        being_started(&f, "e").await;
        f.kill_process("e", 28, false).await.unwrap();
        f.kill_process("e", 15, false).await.unwrap();
    };
    let (started, ()) = tokio::join!(f.start_exec("e"), kill);
    let (refused, sentence) = code(&started.unwrap_err());
    assert_eq!(refused, ErrorCode::FailedPrecondition);
    assert_eq!(sentence, "exec e of task t was killed before it ran");
    assert_eq!(f.wait_for("e").await.unwrap(), 143);
    // The end of init is as good.
    f.exec("f", program("sleep")).await.unwrap();
    let end = async {
        being_started(&f, "f").await;
        f.maker.guest.exits(0);
    };
    let (started, ()) = tokio::join!(f.start_exec("f"), end);
    assert_eq!(code(&started.unwrap_err()).0, ErrorCode::FailedPrecondition);
    assert_eq!(f.wait().await.unwrap(), 0);
}

#[tokio::test]
async fn kill_all_reaches_every_program() {
    let f = fixture();
    f.running().await;
    f.run_exec("e").await;
    f.kill_process("", 28, true).await.unwrap();
    assert_eq!((f.heard(""), f.heard("e")), (vec![28], vec![28]));
    f.kill_process("", 10, false).await.unwrap();
    assert_eq!(f.wait().await.unwrap(), 138);
}

#[tokio::test]
async fn a_terminal_is_resized_when_it_is_there() {
    let f = fixture();
    let request = pb::CreateTaskRequest {
        terminal: true,
        ..Default::default()
    };
    f.create(request).await.unwrap();
    assert!(f.maker.guest.instance("").terminal);
    assert!(f.state().await.unwrap().terminal);
    f.resize("", 80, 24).await.unwrap();
    let size = |id: &str| *f.maker.guest.instance(id).size.lock().unwrap();
    assert_eq!(size(""), Some((80, 24)));
    let huge = code(&f.resize("", 65_536, 24).await.unwrap_err());
    assert_eq!(huge.0, ErrorCode::InvalidArgument);
    f.start().await.unwrap();
    let terminal = pb::ExecProcessRequest {
        terminal: true,
        ..program("sh")
    };
    f.exec("tty", terminal).await.unwrap();
    f.exec("pipe", program("sh")).await.unwrap();
    f.resize("tty", 100, 30).await.unwrap();
    f.start_exec("tty").await.unwrap();
    assert_eq!(size("tty"), Some((100, 30)), "before it runs");
    f.start_exec("pipe").await.unwrap();
    f.resize("pipe", 1, 1).await.unwrap();
    assert_eq!(
        size("pipe"),
        None,
        "without a terminal there is nothing to do"
    );
    f.maker.guest.ends("tty", 0);
    f.wait_for("tty").await.unwrap();
    let late = code(&f.resize("tty", 1, 1).await.unwrap_err());
    assert_eq!(late.0, ErrorCode::NotFound);
}

#[tokio::test]
async fn the_257th_exec_is_refused_until_one_is_deleted() {
    let f = fixture();
    f.running().await;
    for number in 0..256 {
        f.exec(&number.to_string(), program("echo")).await.unwrap();
    }
    let (refused, sentence) = code(&f.exec("more", program("echo")).await.unwrap_err());
    assert_eq!(refused, ErrorCode::ResourceExhausted);
    assert!(sentence.contains("256 execs"), "{sentence}");
    f.delete_exec("0").await.unwrap();
    f.exec("more", program("echo")).await.unwrap();
}
