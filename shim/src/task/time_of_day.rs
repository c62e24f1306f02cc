//! Keeps the guest's wall clock with the host's, from `Create` to init's end.
//!
//! A paused guest gets the time at Resume, with everything else that it has missed.

use std::io;
use std::sync::Arc;

use wasmvm_protocol::agent::Change;

use super::Task;
use crate::agent::wall_clock::{ClockTimer, Looks};

/// How often a guest that does not answer is sent the time for one and the same change of the clock.
const TELLS_MAX: u32 = 3;

/// Sends the guest the time when its clock is wrong, until init has exited. Runs once per task.
pub(super) async fn keep(task: Arc<Task>) {
    let mut looks = match ClockTimer::new() {
        Ok(timer) => timer,
        Err(error) => {
            let name = task.init.name();
            tracing::warn!(name, %error, "the guest will not hear when the host's clock is set");
            return;
        }
    };
    tokio::select! {
        () = task.ends() => {}
        error = follow(&task, &mut looks) => {
            let name = task.init.name();
            tracing::warn!(name, %error, "the guest does not hear any more when the host's clock is set");
        }
    }
}

/// Sends the guest the time whenever its clock is wrong at a look; returns the error that ends the looks.
async fn follow(task: &Task, looks: &mut dyn Looks) -> io::Error {
    let mut tells = 0;
    loop {
        if let Err(error) = looks.next().await {
            return error;
        }
        let Ok(vm) = task.vm() else { continue };
        if !vm.programs().has_wrong_time() {
            tells = 0;
            continue;
        }
        // Every change carries the time.
        let Err(error) = task.tell(Change::default()).await else {
            tells = 0;
            continue;
        };
        tells += 1;
        let name = task.init.name();
        tracing::debug!(name, %error, tells, "the guest does not know the time of day");
        if tells == TELLS_MAX {
            // Nothing more is sent to a silent guest until the clock changes again.
            vm.programs().time_is_told();
            tells = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_trait::async_trait;
    use tokio::sync::mpsc;

    use super::super::fakes::{Answer, FakeMaker, Scene, soon};
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Looks when the test says so, and says when it waits for that.
    struct Ordered {
        waiting: mpsc::Sender<()>,
        looks: mpsc::Receiver<()>,
    }

    #[async_trait]
    impl Looks for Ordered {
        async fn next(&mut self) -> io::Result<()> {
            let closed = || io::Error::from(io::ErrorKind::UnexpectedEof);
            self.waiting.send(()).await.map_err(|_| closed())?;
            self.looks.recv().await.ok_or_else(closed)
        }
    }

    struct Fixture {
        maker: Arc<FakeMaker>,
        task: Arc<Task>,
        look: mpsc::Sender<()>,
        waits: mpsc::Receiver<()>,
    }

    /// A running task whose looks at the clock are the test's.
    async fn running() -> Fixture {
        let scene = Scene::new();
        let task = scene.running().await;
        let (look, looks) = mpsc::channel(1);
        let (waiting, mut waits) = mpsc::channel(1);
        tokio::spawn({
            let task = task.clone();
            async move { follow(&task, &mut Ordered { waiting, looks }).await }
        });
        soon(waits.recv()).await.unwrap();
        Fixture {
            maker: scene.maker,
            task,
            look,
            waits,
        }
    }

    impl Fixture {
        fn spoil(&self) {
            self.maker.workload().agent.told().spoil(HOUR);
        }

        /// One look, and what follows from it.
        async fn look(&mut self) {
            soon(self.look.send(())).await.unwrap();
            soon(self.waits.recv()).await.unwrap();
        }

        fn changes(&self) -> usize {
            self.maker.guest.changes.lock().unwrap().len()
        }
    }

    #[tokio::test]
    async fn a_guest_is_told_the_time_only_when_what_it_knows_is_wrong() {
        let mut f = running().await;
        f.look().await;
        assert_eq!(f.changes(), 0, "it was told with Create");
        f.spoil();
        f.look().await;
        assert_eq!(f.changes(), 1);
        f.look().await;
        assert_eq!(f.changes(), 1, "once is enough");
        let changes = f.maker.guest.changes.lock().unwrap();
        assert!(changes[0].wall_clock_ns > Some(1_700_000_000_000_000_000));
        assert_eq!(changes[0].memory_bytes_max, None);
    }

    #[tokio::test]
    async fn a_paused_guest_is_told_at_resume() {
        let mut f = running().await;
        soon(f.task.pause()).await.unwrap();
        f.spoil();
        f.look().await;
        assert_eq!(f.changes(), 0);
        soon(f.task.resume()).await.unwrap();
        assert_eq!(f.changes(), 1);
        f.look().await;
        assert_eq!(f.changes(), 1);
    }

    #[tokio::test]
    async fn a_guest_that_refuses_is_told_a_few_times_and_again_when_the_clock_changes() {
        let mut f = running().await;
        let refuses = Answer::Refuses(ttrpc::Code::INTERNAL);
        f.maker.guest.answer("Update", refuses);
        f.spoil();
        for _ in 0..TELLS_MAX {
            f.look().await;
        }
        f.maker.guest.answers.lock().unwrap().clear();
        f.look().await;
        assert_eq!(f.changes(), 0, "it was given up");
        f.spoil();
        f.look().await;
        assert_eq!(f.changes(), 1);
    }
}
