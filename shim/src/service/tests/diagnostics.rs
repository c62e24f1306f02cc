//! What an operator is told who asks what everything does.

use tokio::runtime::Handle;
use wasmvm_protocol::inspect_service::{InspectRequest, InspectService};

use super::exec::program;
use super::*;
use crate::task::TaskView;

const LIMIT: Duration = Duration::from_secs(1);

impl Fixture {
    async fn look(&self) -> TaskView {
        let task = self.service.tasks.get("t").unwrap();
        soon(TaskView::of(&task, &Handle::current(), LIMIT)).await
    }

    async fn lines(&self) -> Vec<String> {
        self.look().await.lines()
    }

    /// The answer to `wasmvm inspect`, as text.
    async fn inspect(&self, id: &str, path: &str) -> ttrpc::Result<String> {
        let request = InspectRequest {
            id: id.into(),
            path: path.into(),
            ..Default::default()
        };
        let context = TtrpcContext::default();
        let asked = InspectService::inspect(&self.service, &context, request);
        let answer = soon(asked).await?;
        let value: wasmvm_protocol::inspect::Value = serde_json::from_slice(&answer.value).unwrap();
        Ok(value.to_string())
    }
}

#[tokio::test]
async fn everything_of_a_task_is_told() {
    let f = fixture();
    f.running().await;
    f.exec("sh", program("sh")).await.unwrap();
    let lines = f.lines().await;
    assert_eq!(
        lines[0],
        "task t is running; pid 4711; standard input is open; output flows"
    );
    assert_eq!(
        lines[1],
        "exec sh of task t is created; pid 0; no stream is open"
    );
    assert_eq!(lines[2], "its VM runs");
    assert!(lines[3].starts_with("VMM: "), "{}", lines[3]);
    let program = "guest: task t: thread 7 \"wasm\" is R, 0.05 s of CPU";
    assert_eq!(lines.last().unwrap(), program);
}

#[tokio::test]
async fn a_paused_guest_is_not_asked() {
    let f = fixture();
    f.running().await;
    f.pause().await.unwrap();
    let lines = f.lines().await;
    assert!(lines.contains(&"its VM is paused".to_owned()), "{lines:?}");
    assert!(
        lines.iter().all(|line| !line.starts_with("guest")),
        "{lines:?}"
    );
}

#[tokio::test]
async fn what_holds_a_task_up_is_told() {
    let f = fixture();
    let request = pb::CreateTaskRequest {
        stdout: fifo(f.dir.path(), "out"),
        ..Default::default()
    };
    f.create(request).await.unwrap();
    f.start().await.unwrap();
    // More than a FIFO holds, and nobody reads.
    let mut output = f.maker.guest.take(1);
    let flood = vec![b'x'; 1 << 20];
    tokio::spawn(async move { output.write_all(&flood).await });
    let stuck = "output flows, 1 of it waiting for a reader";
    soon(async { while !f.lines().await[0].contains(stuck) {} }).await;
    f.maker.guest.answers_start.send_replace(false);
    f.exec("sh", program("sh")).await.unwrap();
    let service = f.service.clone();
    tokio::spawn(async move {
        let request = pb::StartRequest {
            id: "t".into(),
            exec_id: "sh".into(),
            ..Default::default()
        };
        service.start(&TtrpcContext::default(), request).await
    });
    let listed = || f.service.requests.list();
    soon(async {
        while listed().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let words = listed()[0].to_string();
    assert!(words.starts_with("Start of exec sh has taken "), "{words}");
}

#[tokio::test]
async fn the_tree_tells_what_the_lines_tell() {
    let f = fixture();
    f.running().await;
    f.exec("sh", program("sh")).await.unwrap();
    for (path, value) in [
        ("task/id", "t\n"),
        ("task/init/pid", "4711\n"),
        ("task/init/state", "running\n"),
        ("task/init/streams/output", "flows\n"),
        ("task/execs/sh/state", "created\n"),
        ("task/execs/sh/streams", "no stream is open\n"),
        ("task/vm", "runs\n"),
        ("vmm/process/pid", "4711\n"),
        ("guest/init/threads/7/name", "(guest) wasm\n"),
        ("guest/init/threads/7/cpu_ms", "50\n"),
    ] {
        assert_eq!(f.inspect("t", path).await.unwrap(), value, "{path}");
    }
    let shim = f.inspect("t", "shim/pid").await.unwrap();
    assert_eq!(shim, format!("{}\n", std::process::id()));
    // Nothing of the program's command line, and nothing of the VMM's that a terminal would obey.
    let all = f.inspect("t", "").await.unwrap();
    assert!(!all.contains("app.wasm"), "{all}");
    assert!(all.contains("    vsock?[2J: a?b\n"), "{all}");
}

#[tokio::test]
async fn a_paused_task_is_told_but_for_its_guest() {
    let f = fixture();
    f.running().await;
    f.pause().await.unwrap();
    assert_eq!(f.inspect("t", "task/vm").await.unwrap(), "is paused\n");
    let guest = f.inspect("t", "guest").await.unwrap();
    assert_eq!(guest, "is not asked, as the VM does not run\n");
    assert!(f.inspect("t", "vmm/devices").await.is_ok());
}

#[tokio::test]
async fn a_silent_guest_costs_the_tree_half_a_second_and_its_own_place() {
    let f = fixture();
    f.running().await;
    f.maker.guest.answer("Pids", Answer::Nothing);
    let asked = Instant::now();
    let guest = f.inspect("t", "guest").await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert_eq!(guest, "does not answer within 500ms\n");
}

#[tokio::test]
async fn a_guest_is_not_asked_faster_than_it_may_answer() {
    let f = fixture();
    f.running().await;
    let asked = Instant::now();
    for _ in 0..4 {
        assert!(f.inspect("t", "guest/init/threads/7").await.is_ok());
    }
    assert!(asked.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn what_is_not_there_is_refused_by_what_is() {
    let f = fixture();
    f.running().await;
    for (id, path, sentence) in [
        ("u", "", "task u does not exist"),
        (
            "t",
            "nothing",
            "path \"nothing\" is not there; the top has: guest, shim, task, vmm",
        ),
        (
            "t",
            "task/init/exit",
            "path \"task/init/exit\" is not there; /task/init has: pid, state, streams, terminal",
        ),
        (
            "t",
            "task/init/pid/x",
            "path \"task/init/pid/x\" is not there; /task/init has: pid, state, streams, terminal",
        ),
    ] {
        let refused = code(&f.inspect(id, path).await.unwrap_err());
        assert_eq!(refused, (ErrorCode::NotFound, sentence.to_owned()));
    }
}

#[tokio::test]
async fn a_task_that_is_being_created_has_a_tree() {
    let f = fixture();
    f.maker.never_boots.store(true, Ordering::Relaxed);
    let tasks = f.service.tasks.clone();
    tokio::spawn(async move { tasks.create(crate::task::fakes::order(false)).await });
    soon(async {
        while f.service.tasks.get("t").is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(
        f.inspect("t", "vmm").await.unwrap(),
        "the task has no VM yet\n"
    );
    let lines = f.lines().await;
    assert!(
        lines[0].starts_with("task t is being created; "),
        "{lines:?}"
    );
    assert_eq!(lines[1], "the task has no VM yet");
}

/// The signal comes while the runtime's thread waits for something that never ends by itself.
#[test]
fn a_signal_is_answered_while_the_shims_own_thread_is_stuck() {
    let (told, tells) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (stuck, is_stuck) = std::sync::mpsc::channel();
    let runtime = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let f = fixture();
            f.running().await;
            let tell = move |id: &str, line: &str| drop(told.send(format!("{id}: {line}")));
            look_when_asked(Arc::new(f.service.clone()), tell).unwrap();
            stuck.send(()).unwrap();
            released.recv().unwrap();
        });
    });
    is_stuck.recv().unwrap();
    let ask = || {
        let us = rustix::process::getpid();
        rustix::process::kill_process(us, rustix::process::Signal::USR1).unwrap();
        let mut lines = Vec::new();
        while lines
            .last()
            .is_none_or(|line| line != "t: guest: the shim's own thread does not answer")
        {
            lines.push(tells.recv_timeout(Duration::from_secs(20)).unwrap());
        }
        lines
    };
    for _ in 0..2 {
        let lines = ask();
        assert!(lines[0].starts_with("t: shim: thread "), "{lines:?}");
        for part in [
            "t: task t is running; pid 4711; ",
            "t: its VM runs",
            "t: VMM: ",
        ] {
            assert!(lines.iter().any(|line| line.starts_with(part)), "{lines:?}");
        }
    }
    release.send(()).unwrap();
    runtime.join().unwrap();
}
