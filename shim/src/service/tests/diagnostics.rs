//! What an operator is told who asks what everything does.

use super::exec::program;
use super::*;

#[tokio::test]
async fn everything_of_a_task_is_told() {
    let f = fixture();
    f.running().await;
    f.exec("sh", program("sh")).await.unwrap();
    let task = f.service.tasks.get("t").unwrap();
    let lines = soon(task.diagnostics()).await;
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
    let task = f.service.tasks.get("t").unwrap();
    let lines = soon(task.diagnostics()).await;
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
    let task = f.service.tasks.get("t").unwrap();
    let stuck = "output flows, 1 of it waiting for a reader";
    soon(async { while !task.diagnostics().await[0].contains(stuck) {} }).await;
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
