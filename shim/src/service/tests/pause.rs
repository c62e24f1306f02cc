//! A task whose VM does not run.

use super::exec::program;
use super::*;

impl Fixture {
    pub(super) async fn pause(&self) -> ttrpc::Result<pb::Empty> {
        let request = pb::PauseRequest {
            id: "t".into(),
            ..Default::default()
        };
        soon(self.service.pause(&TtrpcContext::default(), request)).await
    }

    async fn resume(&self) -> ttrpc::Result<pb::Empty> {
        let request = pb::ResumeRequest {
            id: "t".into(),
            ..Default::default()
        };
        soon(self.service.resume(&TtrpcContext::default(), request)).await
    }
}

#[tokio::test]
async fn a_paused_task_answers_and_goes_on() {
    let f = fixture();
    f.create(Default::default()).await.unwrap();
    assert_eq!(
        code(&f.pause().await.unwrap_err()).0,
        ErrorCode::FailedPrecondition
    );
    f.start().await.unwrap();
    assert_eq!(
        code(&f.resume().await.unwrap_err()).0,
        ErrorCode::FailedPrecondition
    );
    f.exec("e", program("sleep")).await.unwrap();
    f.exec("late", program("sleep")).await.unwrap();
    f.start_exec("e").await.unwrap();
    f.pause().await.unwrap();
    let twice = code(&f.pause().await.unwrap_err());
    assert_eq!(twice.0, ErrorCode::FailedPrecondition);
    assert_eq!(twice.1, "task t is paused; resume it first");
    assert_eq!(f.state().await.unwrap().status(), pb::Status::PAUSED);
    assert_eq!(f.state_of("e").await.unwrap().status(), pb::Status::PAUSED);
    assert_eq!(f.pids().await.unwrap().len(), 2);
    let refused = code(&f.delete().await.unwrap_err());
    assert_eq!(refused.0, ErrorCode::FailedPrecondition);
    let refused = code(&f.start_exec("late").await.unwrap_err());
    assert_eq!(refused.0, ErrorCode::FailedPrecondition);
    f.resume().await.unwrap();
    assert_eq!(f.state().await.unwrap().status(), pb::Status::RUNNING);
    let changes = f.maker.guest.changes.lock().unwrap().clone();
    assert_eq!(changes.len(), 1);
    assert!(changes[0].wall_clock_ns > Some(1_700_000_000_000_000_000));
    assert_eq!(changes[0].memory_bytes_max, None);
    let words = f.events.words();
    assert_eq!(words[words.len() - 2..], ["paused", "resumed"]);
    f.start_exec("late").await.unwrap();
}

#[tokio::test]
async fn signals_wait_for_the_guest_to_run_but_sigkill_does_not() {
    let f = fixture();
    f.running().await;
    f.run_exec("e").await;
    f.pause().await.unwrap();
    f.kill(28).await.unwrap();
    f.kill(28).await.unwrap();
    f.kill(17).await.unwrap();
    f.kill_process("e", 15, false).await.unwrap();
    f.resize("", 1, 1).await.unwrap();
    assert!(f.heard("").is_empty());
    f.resume().await.unwrap();
    assert_eq!(f.heard(""), [17, 28], "each once");
    assert_eq!(f.wait_for("e").await.unwrap(), 143);
    f.pause().await.unwrap();
    let start = Instant::now();
    f.kill(9).await.unwrap();
    assert_eq!(f.wait().await.unwrap(), 137);
    assert!(start.elapsed() < Duration::from_secs(1));
    f.delete().await.unwrap();
}

#[tokio::test]
async fn sigstop_and_sigcont_pause_and_resume() {
    let f = fixture();
    f.running().await;
    f.kill(19).await.unwrap();
    f.kill(19).await.unwrap();
    assert_eq!(f.state().await.unwrap().status(), pb::Status::PAUSED);
    f.kill(18).await.unwrap();
    assert_eq!(f.state().await.unwrap().status(), pb::Status::RUNNING);
    f.kill(18).await.unwrap();
    assert_eq!(f.heard(""), [18], "a program may have stopped itself");
    f.run_exec("e").await;
    let (refused, sentence) = code(&f.kill_process("e", 19, false).await.unwrap_err());
    assert_eq!(refused, ErrorCode::FailedPrecondition);
    assert!(sentence.contains("pause the task instead"), "{sentence}");
}

#[tokio::test]
async fn a_vmm_that_does_not_pause_leaves_a_running_task() {
    let f = fixture();
    f.running().await;
    f.maker
        .workload()
        .pause_fails
        .store(true, Ordering::Relaxed);
    let (failed, sentence) = code(&f.pause().await.unwrap_err());
    assert_eq!(failed, ErrorCode::DeadlineExceeded);
    assert_eq!(sentence, "cannot pause task t: no answer");
    assert_eq!(f.state().await.unwrap().status(), pb::Status::RUNNING);
    f.kill(15).await.unwrap();
    assert_eq!(f.wait().await.unwrap(), 143);
}

#[tokio::test]
async fn a_kill_that_meets_a_pause_does_not_end_the_vm() {
    let f = fixture();
    f.running().await;
    f.maker.guest.runs.send_replace(false);
    let pause = async {
        tokio::task::yield_now().await;
        f.pause().await.unwrap();
    };
    let (killed, ()) = tokio::join!(f.kill(12), pause);
    killed.unwrap();
    // Longer than the guest has for a signal.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(f.state().await.unwrap().status(), pb::Status::PAUSED);
    f.resume().await.unwrap();
    assert_eq!(f.wait().await.unwrap(), 140);
}

#[tokio::test]
async fn an_exec_that_a_kept_signal_ends_is_told_after_the_resume() {
    let f = fixture();
    f.running().await;
    f.run_exec("e").await;
    f.pause().await.unwrap();
    f.kill_process("e", 15, false).await.unwrap();
    f.resume().await.unwrap();
    assert_eq!(f.wait_for("e").await.unwrap(), 143);
    let words = f.events.words();
    let ends = words.iter().skip_while(|word| *word != "paused").skip(1);
    assert_eq!(ends.collect::<Vec<_>>(), ["resumed", "exit 143 of e"]);
}
