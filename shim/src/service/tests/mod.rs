//! The life of a task as containerd sees it, against a fake workload with a fake agent.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use wasmvm_protocol::stream::StdioFd;

use super::*;
use crate::stdio::open_reader;
use crate::task::fakes::{Answer, FakeMaker, Obedience, PID, Recorder, Scene, soon};
use crate::workload::Workload as _;

mod diagnostics;
mod exec;
mod pause;

struct Fixture {
    service: Service,
    maker: Arc<FakeMaker>,
    events: Arc<Recorder>,
    dir: tempfile::TempDir,
    shutdown: watch::Receiver<bool>,
}

fn fixture() -> Fixture {
    let Scene {
        maker,
        events,
        tasks,
    } = Scene::new();
    let (shutdown, wanted) = watch::channel(false);
    Fixture {
        service: Service::new("ns", tasks, shutdown),
        maker,
        events,
        dir: tempfile::tempdir().unwrap(),
        shutdown: wanted,
    }
}

fn fifo(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    path.to_str().unwrap().to_owned()
}

fn code(error: &ttrpc::Error) -> (ErrorCode, String) {
    let ttrpc::Error::RpcStatus(status) = error else {
        panic!("{error} is no status");
    };
    (
        ErrorCode::from_ttrpc(status.code()),
        status.message().to_owned(),
    )
}

/// Requests for task `t`, with the fields that matter here.
impl Fixture {
    async fn create(&self, request: pb::CreateTaskRequest) -> ttrpc::Result<u32> {
        let request = pb::CreateTaskRequest {
            id: "t".into(),
            bundle: "/bundle".into(),
            ..request
        };
        let created = soon(self.service.create(&TtrpcContext::default(), request)).await?;
        Ok(created.pid)
    }

    async fn start(&self) -> ttrpc::Result<u32> {
        self.start_exec("").await
    }

    async fn state(&self) -> ttrpc::Result<pb::StateResponse> {
        self.state_of("").await
    }

    async fn wait(&self) -> ttrpc::Result<u32> {
        self.wait_for("").await
    }

    async fn kill(&self, signal: u32) -> ttrpc::Result<pb::Empty> {
        self.kill_process("", signal, false).await
    }

    async fn delete(&self) -> ttrpc::Result<pb::DeleteResponse> {
        self.delete_exec("").await
    }

    async fn processes(&self) -> ttrpc::Result<Vec<pb::ProcessInfo>> {
        let request = pb::PidsRequest {
            id: "t".into(),
            ..Default::default()
        };
        let pids = soon(self.service.pids(&TtrpcContext::default(), request)).await?;
        Ok(pids.processes)
    }

    async fn pids(&self) -> ttrpc::Result<Vec<u32>> {
        let processes = self.processes().await?;
        Ok(processes.iter().map(|process| process.pid).collect())
    }

    async fn exec(
        &self,
        exec_id: &str,
        request: pb::ExecProcessRequest,
    ) -> ttrpc::Result<pb::Empty> {
        let request = pb::ExecProcessRequest {
            id: "t".into(),
            exec_id: exec_id.into(),
            ..request
        };
        soon(self.service.exec(&TtrpcContext::default(), request)).await
    }

    async fn start_exec(&self, exec_id: &str) -> ttrpc::Result<u32> {
        let request = pb::StartRequest {
            id: "t".into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        let started = soon(self.service.start(&TtrpcContext::default(), request)).await?;
        Ok(started.pid)
    }

    async fn state_of(&self, exec_id: &str) -> ttrpc::Result<pb::StateResponse> {
        let request = pb::StateRequest {
            id: "t".into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        soon(self.service.state(&TtrpcContext::default(), request)).await
    }

    async fn wait_for(&self, exec_id: &str) -> ttrpc::Result<u32> {
        let request = pb::WaitRequest {
            id: "t".into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        let waited = soon(self.service.wait(&TtrpcContext::default(), request)).await?;
        assert!(waited.exited_at.seconds > 1_700_000_000);
        Ok(waited.exit_status)
    }

    async fn kill_process(
        &self,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> ttrpc::Result<pb::Empty> {
        let request = pb::KillRequest {
            id: "t".into(),
            exec_id: exec_id.into(),
            signal,
            all,
            ..Default::default()
        };
        soon(self.service.kill(&TtrpcContext::default(), request)).await
    }

    async fn delete_exec(&self, exec_id: &str) -> ttrpc::Result<pb::DeleteResponse> {
        let request = pb::DeleteRequest {
            id: "t".into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        soon(self.service.delete(&TtrpcContext::default(), request)).await
    }

    async fn resize(&self, exec_id: &str, width: u32, height: u32) -> ttrpc::Result<pb::Empty> {
        let request = pb::ResizePtyRequest {
            id: "t".into(),
            exec_id: exec_id.into(),
            width,
            height,
            ..Default::default()
        };
        soon(self.service.resize_pty(&TtrpcContext::default(), request)).await
    }

    async fn running(&self) {
        assert_eq!(self.create(Default::default()).await.unwrap(), PID);
        assert_eq!(self.start().await.unwrap(), PID);
    }

    /// Adds an exec and starts it.
    async fn run_exec(&self, exec_id: &str) {
        self.exec(exec_id, exec::program("sleep")).await.unwrap();
        self.start_exec(exec_id).await.unwrap();
    }

    /// The signals that a program of the guest has got.
    fn heard(&self, exec_id: &str) -> Vec<u32> {
        let instance = self.maker.guest.instance(exec_id);
        instance.signals.lock().unwrap().clone()
    }

    /// Has a program whose streams are 1 and 2 read "question" to the end, which its client has written,
    /// and say "answer".
    async fn answers(&self, exec_id: &str) {
        let (mut input, mut output) = (self.maker.guest.take(1), self.maker.guest.take(2));
        let close = pb::CloseIORequest {
            id: "t".into(),
            exec_id: exec_id.into(),
            stdin: true,
            ..Default::default()
        };
        let context = TtrpcContext::default();
        self.service.close_io(&context, close).await.unwrap();
        let mut question = String::new();
        soon(input.read_to_string(&mut question)).await.unwrap();
        assert_eq!(question, "question");
        output.write_all(b"answer").await.unwrap();
    }
}

/// Reads all that comes out of a FIFO.
fn read_out(path: &str) -> JoinHandle<Vec<u8>> {
    let mut reader = open_reader(Path::new(path));
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

#[tokio::test]
async fn a_failing_poststart_hook_fails_the_start_and_ends_the_task() {
    let f = fixture();
    f.create(Default::default()).await.unwrap();
    let workload = f.maker.workload();
    workload.poststart_fails.store(true, Ordering::Relaxed);
    let refused = code(&f.start().await.unwrap_err());
    assert_eq!(
        refused,
        (ErrorCode::FailedPrecondition, "a hook failed".into())
    );
    assert_eq!(f.wait().await.unwrap(), 137);
    f.delete().await.unwrap();
    let words = f.events.words();
    assert_eq!(words[1..], ["start 4711", "exit 137", "delete 137"]);
}

#[tokio::test]
async fn a_task_runs_to_its_exit_and_is_deleted() {
    let f = fixture();
    assert_eq!(code(&f.state().await.unwrap_err()).0, ErrorCode::NotFound);
    assert_eq!(f.create(Default::default()).await.unwrap(), PID);
    assert_eq!(f.state().await.unwrap().status(), pb::Status::CREATED);
    assert_eq!(f.start().await.unwrap(), PID);
    assert_eq!(f.state().await.unwrap().status(), pb::Status::RUNNING);
    let running = code(&f.delete().await.unwrap_err());
    assert_eq!(running.0, ErrorCode::FailedPrecondition);
    assert!(
        running.1.contains("task t is running; kill it"),
        "{}",
        running.1
    );
    f.maker.guest.exits(3);
    assert_eq!(f.wait().await.unwrap(), 3);
    let state = f.state().await.unwrap();
    assert_eq!(
        (state.status(), state.exit_status),
        (pb::Status::STOPPED, 3)
    );
    assert_eq!(f.pids().await.unwrap(), [PID], "until Delete");
    let workload = f.maker.workload();
    soon(async {
        while workload.released.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // A shim killed now leaves the record of the exit to `delete`.
    assert_eq!(workload.destroyed.load(Ordering::Relaxed), 0);
    let deleted = f.delete().await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (PID, 3));
    assert!(deleted.exited_at.is_some());
    assert_eq!(workload.recorded.load(Ordering::Relaxed), 3);
    assert_eq!(workload.destroyed.load(Ordering::Relaxed), 1);
    let words = f.events.words();
    assert_eq!(words, ["create 4711", "start 4711", "exit 3", "delete 3"]);
    for gone in [
        f.delete().await.unwrap_err(),
        f.state().await.unwrap_err(),
        f.start().await.unwrap_err(),
        f.wait().await.unwrap_err(),
        f.kill(9).await.unwrap_err(),
        f.pids().await.unwrap_err(),
    ] {
        assert_eq!(code(&gone).0, ErrorCode::NotFound);
    }
}

#[tokio::test]
async fn output_and_input_pass_through_the_fifos() {
    let f = fixture();
    let request = pb::CreateTaskRequest {
        stdin: fifo(f.dir.path(), "in"),
        stdout: fifo(f.dir.path(), "out"),
        ..Default::default()
    };
    let (stdin, stdout) = (request.stdin.clone(), request.stdout.clone());
    f.create(request).await.unwrap();
    let created = f.maker.guest.created.lock().unwrap().clone().unwrap();
    let tokens = (
        created.stdin.as_str(),
        created.stdout.as_str(),
        created.stderr.as_str(),
    );
    assert_eq!(tokens, ("1", "2", ""));
    assert_eq!(created.options.type_url, "wasmvm.agent.v1.Program");
    let header = f.maker.guest.streams.lock().unwrap()[&2].0.clone();
    assert_eq!((header.task.as_str(), header.fd), ("t", StdioFd::Stdout));
    let mut client = std::fs::File::options().write(true).open(stdin).unwrap();
    f.start().await.unwrap();
    let reader = read_out(&stdout);
    client.write_all(b"question").unwrap();
    f.answers("").await;
    f.maker.guest.exits(0);
    // ctr reads to the end first, and only then deletes.
    assert_eq!(soon(reader).await.unwrap(), b"answer");
    assert_eq!(f.delete().await.unwrap().exit_status, 0);
}

#[tokio::test]
async fn a_refused_program_is_a_sentence_and_leaves_nothing() {
    let f = fixture();
    *f.maker.guest.refuses_create.lock().unwrap() =
        Some((ttrpc::Code::NOT_FOUND, "import env.foo is missing"));
    let refused = code(&f.create(Default::default()).await.unwrap_err());
    assert_eq!(
        refused,
        (ErrorCode::NotFound, "import env.foo is missing".into())
    );
    assert_eq!(f.maker.workload().destroyed.load(Ordering::Relaxed), 1);
    assert!(f.events.words().is_empty());
    *f.maker.guest.refuses_create.lock().unwrap() = None;
    assert_eq!(f.create(Default::default()).await.unwrap(), PID);
    let twice = code(&f.create(Default::default()).await.unwrap_err());
    assert_eq!(twice.0, ErrorCode::AlreadyExists);
}

#[tokio::test]
async fn an_artifact_that_does_not_fit_is_compiled_again_once() {
    let f = fixture();
    let unfit = "the compiled module does not fit this agent: it was made for another processor";
    *f.maker.guest.refuses_create.lock().unwrap() = Some((ttrpc::Code::INVALID_ARGUMENT, unfit));
    assert_eq!(f.create(Default::default()).await.unwrap(), PID);
    assert_eq!(f.maker.workload().compiled_again.load(Ordering::Relaxed), 1);
    let f = fixture();
    f.maker.guest.fits_never.store(true, Ordering::Relaxed);
    *f.maker.guest.refuses_create.lock().unwrap() = Some((ttrpc::Code::INVALID_ARGUMENT, unfit));
    let refused = code(&f.create(Default::default()).await.unwrap_err());
    assert_eq!(refused, (ErrorCode::InvalidArgument, unfit.into()));
    assert_eq!(f.maker.workload().compiled_again.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_a_client_says_of_a_terminals_stderr_is_ignored() {
    let f = fixture();
    let terminal = pb::CreateTaskRequest {
        terminal: true,
        stderr: "/nonexistent/fifo".into(),
        ..Default::default()
    };
    f.create(terminal).await.unwrap();
    f.start().await.unwrap();
    let terminal = pb::ExecProcessRequest {
        terminal: true,
        stderr: "/nonexistent/fifo".into(),
        ..exec::program("tty")
    };
    f.exec("e", terminal).await.unwrap();
    f.start_exec("e").await.unwrap();
}

#[tokio::test]
async fn what_is_not_supported_yet_is_refused_by_name() {
    let f = fixture();
    let missing = pb::CreateTaskRequest {
        stdout: "/nonexistent/fifo".into(),
        ..Default::default()
    };
    let (refused, sentence) = code(&f.create(missing).await.unwrap_err());
    assert_eq!(refused, ErrorCode::NotFound);
    assert!(
        sentence.contains("/nonexistent/fifo as stdout: No such"),
        "{sentence}"
    );
    let context = TtrpcContext::default();
    let asked = f.service.checkpoint(&context, Default::default()).await;
    let (refused, sentence) = code(&asked.unwrap_err());
    assert_eq!(refused, ErrorCode::Unimplemented);
    assert!(sentence.contains("is not supported by io.containerd.wasmvm.v1 yet"));
}

#[tokio::test]
async fn signals_end_a_task_created_or_running() {
    let f = fixture();
    f.running().await;
    f.kill(0).await.unwrap();
    assert_eq!(
        code(&f.kill(65).await.unwrap_err()).0,
        ErrorCode::InvalidArgument
    );
    f.kill(15).await.unwrap();
    assert_eq!(f.wait().await.unwrap(), 143);
    assert_eq!(code(&f.kill(9).await.unwrap_err()).0, ErrorCode::NotFound);
    let f = fixture();
    f.create(Default::default()).await.unwrap();
    f.kill(9).await.unwrap();
    assert_eq!(f.wait().await.unwrap(), 137);
    let late = code(&f.start().await.unwrap_err());
    assert_eq!(late.0, ErrorCode::FailedPrecondition);
    f.delete().await.unwrap();
    assert_eq!(f.events.words(), ["create 4711", "exit 137", "delete 137"]);
}

#[tokio::test]
async fn a_guest_that_does_not_answer_is_killed_from_outside() {
    for signal in [9, 15] {
        let f = fixture();
        f.running().await;
        *f.maker.guest.obedience.lock().unwrap() = Obedience::Silent;
        let harmless = code(&f.kill(28).await.unwrap_err());
        assert_eq!(harmless.0, ErrorCode::DeadlineExceeded);
        let start = Instant::now();
        f.kill(signal).await.unwrap();
        assert_eq!(f.wait().await.unwrap(), 128 + signal);
        assert!(start.elapsed() < Duration::from_secs(2));
        f.delete().await.unwrap();
    }
}

#[tokio::test]
async fn a_guest_that_only_claims_to_obey_sigkill_is_killed_too() {
    let f = fixture();
    f.running().await;
    *f.maker.guest.obedience.lock().unwrap() = Obedience::Lies;
    f.kill(9).await.unwrap();
    assert_eq!(f.wait().await.unwrap(), 137);
}

#[tokio::test]
async fn the_vm_of_a_killed_task_has_ended_when_its_exit_is_told() {
    let f = fixture();
    f.running().await;
    f.kill(9).await.unwrap();
    assert_eq!(f.wait().await.unwrap(), 137);
    // Not by the release that follows an exit.
    let workload = f.maker.workload();
    assert_eq!(workload.vm_ended().await.reason, "killed");
}

#[tokio::test]
async fn the_end_of_the_vm_is_exit_137() {
    let f = fixture();
    f.running().await;
    f.maker.workload().dies("triple fault");
    assert_eq!(f.wait().await.unwrap(), 137);
    assert_eq!(f.delete().await.unwrap().exit_status, 137);
    let words = f.events.words();
    assert_eq!(
        words,
        ["create 4711", "start 4711", "exit 137", "delete 137"]
    );
}

#[tokio::test]
async fn the_start_is_told_before_the_exit() {
    let f = fixture();
    f.create(Default::default()).await.unwrap();
    f.maker.guest.answers_start.send_replace(false);
    let mut begun = f.maker.guest.instance("").started.subscribe();
    let finish = async {
        begun.wait_for(|begun| *begun).await.unwrap();
        f.maker.guest.exits(0);
        // The exit is known to the shim long before the start is.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(f.events.words(), ["create 4711"]);
        f.maker.guest.answers_start.send_replace(true);
    };
    let (started, ()) = tokio::join!(f.start(), finish);
    assert_eq!(started.unwrap(), PID);
    assert_eq!(f.wait().await.unwrap(), 0);
    assert_eq!(f.events.words(), ["create 4711", "start 4711", "exit 0"]);
}

#[tokio::test]
async fn a_task_that_never_ran_is_deleted_without_an_exit() {
    let f = fixture();
    f.create(Default::default()).await.unwrap();
    assert_eq!(f.delete().await.unwrap().exit_status, 0);
    assert_eq!(f.events.words(), ["create 4711", "delete 0"]);
}

#[tokio::test]
async fn delete_during_create_ends_the_boot() {
    let f = fixture();
    f.maker.never_boots.store(true, Ordering::Relaxed);
    let delete = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        f.delete().await
    };
    let (created, deleted) = tokio::join!(f.create(Default::default()), delete);
    let (refused, sentence) = code(&created.unwrap_err());
    assert_eq!(refused, ErrorCode::FailedPrecondition);
    assert!(
        sentence.contains("deleted while it was being created"),
        "{sentence}"
    );
    assert_eq!(deleted.unwrap().pid, 0);
    assert_eq!(f.maker.undone.load(Ordering::Relaxed), 1);
    assert!(f.events.words().is_empty());
}

#[tokio::test]
async fn a_delete_that_failed_can_be_repeated() {
    let f = fixture();
    f.running().await;
    f.maker
        .workload()
        .destroy_fails
        .store(true, Ordering::Relaxed);
    f.maker.guest.exits(1);
    f.wait().await.unwrap();
    let (failed, sentence) = code(&f.delete().await.unwrap_err());
    assert_eq!(failed, ErrorCode::Internal);
    assert!(
        sentence.ends_with("left of task t: the cgroup is busy"),
        "{sentence}"
    );
    f.maker
        .workload()
        .destroy_fails
        .store(false, Ordering::Relaxed);
    let (first, second) = tokio::join!(f.delete(), f.delete());
    assert_eq!(first.unwrap().exit_status, 1);
    match second {
        Ok(deleted) => assert_eq!(deleted.exit_status, 1),
        Err(late) => assert_eq!(code(&late).0, ErrorCode::NotFound),
    }
    assert_eq!(f.maker.workload().destroyed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_delete_whose_caller_gave_up_goes_on() {
    let f = fixture();
    f.running().await;
    f.maker.guest.exits(1);
    f.wait().await.unwrap();
    {
        let delete = f.delete();
        // Polled once, as by a caller with no patience.
        let _ = tokio::time::timeout(Duration::ZERO, delete).await;
    }
    let mut count = f.service.tasks.count();
    soon(count.wait_for(|count| *count == 0)).await.unwrap();
}

#[tokio::test]
async fn shutdown_waits_for_the_last_task() {
    let f = fixture();
    f.running().await;
    let context = TtrpcContext::default();
    f.service
        .shutdown(&context, Default::default())
        .await
        .unwrap();
    assert!(!*f.shutdown.borrow());
    f.kill(9).await.unwrap();
    f.wait().await.unwrap();
    f.delete().await.unwrap();
    f.service
        .shutdown(&context, Default::default())
        .await
        .unwrap();
    assert!(*f.shutdown.borrow());
}

#[tokio::test]
async fn connect_answers_for_unknown_tasks_and_execs_do_not_exist() {
    let f = fixture();
    let request = pb::ConnectRequest {
        id: "other".into(),
        ..Default::default()
    };
    let connected = f
        .service
        .connect(&TtrpcContext::default(), request)
        .await
        .unwrap();
    assert_eq!(
        (connected.shim_pid, connected.task_pid),
        (std::process::id(), 0)
    );
    f.running().await;
    let exec = f.state_of("sh").await.unwrap_err();
    assert_eq!(
        code(&exec),
        (ErrorCode::NotFound, "task t has no process sh".into())
    );
}

#[tokio::test]
async fn a_reader_that_reads_has_all_output_before_the_exit_is_told() {
    let f = fixture();
    let request = pb::CreateTaskRequest {
        stdout: fifo(f.dir.path(), "out"),
        ..Default::default()
    };
    let mut reader = open_reader(Path::new(&request.stdout));
    f.create(request).await.unwrap();
    f.start().await.unwrap();
    // A FIFO holds 64 KiB: what lies in it at the exit is the last quarter.
    const QUARTER: usize = 64 << 10;
    let mut output = f.maker.guest.take(1);
    tokio::spawn(async move {
        for _ in 0..4 {
            output.write_all(&[b'x'; QUARTER]).await.unwrap();
        }
    });
    let (half, told) = std::sync::mpsc::channel();
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = vec![0; 2 * QUARTER];
        reader.read_exact(&mut bytes).unwrap();
        half.send(()).unwrap();
        reader.read_exact(&mut bytes).unwrap();
    });
    f.maker.guest.exits(0);
    assert_eq!(f.wait().await.unwrap(), 0);
    assert!(told.try_recv().is_ok(), "the exit came first");
    read.await.unwrap();
}

#[tokio::test]
async fn the_exit_does_not_wait_for_a_reader_that_does_not_read() {
    let f = fixture();
    let request = pb::CreateTaskRequest {
        stdout: fifo(f.dir.path(), "out"),
        ..Default::default()
    };
    let _reader = open_reader(Path::new(&request.stdout));
    f.create(request).await.unwrap();
    f.start().await.unwrap();
    let mut output = f.maker.guest.take(1);
    tokio::spawn(async move { output.write_all(&vec![b'x'; 1 << 20]).await });
    f.maker.guest.exits(0);
    // Within the time that a test may take, and before anything was read.
    assert_eq!(f.wait().await.unwrap(), 0);
}
