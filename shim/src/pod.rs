//! [`Pod`]: what the containers of a pod have from its sandbox, and the work for them that outlives any of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::error::{ErrorCode, Refusal};
use crate::journal::Journal;

/// A pod, as its containers know it.
#[derive(Debug)]
pub(crate) struct Pod {
    id: String,
    hostname: String,
    bundle: PathBuf,
    journal: Arc<Journal>,
    /// The number of compiler VMs so far.
    compilers: AtomicU32,
    /// Compiles that are under way; `None` once the pod has ended.
    work: Mutex<Option<JoinSet<()>>>,
}

impl Pod {
    /// The pod of the sandbox `id`, whose host name is empty when the spec has none.
    #[must_use]
    pub(crate) fn new(id: &str, hostname: &str, bundle: &Path, journal: Arc<Journal>) -> Self {
        Self {
            id: id.to_owned(),
            hostname: hostname.to_owned(),
            bundle: bundle.to_owned(),
            journal,
            compilers: AtomicU32::new(0),
            work: Mutex::new(Some(JoinSet::new())),
        }
    }

    /// Id of the pod's sandbox.
    #[must_use]
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Host name of the pod; empty when the sandbox's spec has none.
    #[must_use]
    pub(crate) fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Path of the sandbox's bundle, in which `start` has kept the runtime's options.
    #[must_use]
    pub(crate) fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Journal of the sandbox, which lives as long as the pod.
    #[must_use]
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The number of the pod's next compiler VM.
    #[must_use]
    pub(crate) fn next_compiler(&self) -> u32 {
        self.compilers.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs `work` until it is done or the pod ends, whether or not anybody still waits for the result: kubelet gives up
    /// a start after two minutes (`runtimeRequestTimeout`), and finds at a later attempt what was done for it.
    ///
    /// # Errors
    /// The work's; `Unavailable` when the pod ends first.
    pub(crate) async fn keep_at<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (done, waiting) = oneshot::channel();
        let work = async move {
            // The send fails when nobody waits any more.
            let _ = done.send(work.await);
        };
        match &mut *self.work() {
            Some(under_way) => {
                while under_way.try_join_next().is_some() {}
                under_way.spawn(work.in_current_span());
            }
            // With the work its end of the channel goes.
            None => drop(work),
        }
        waiting.await.unwrap_or_else(|_| {
            let sentence = format!("pod {} ended meanwhile", self.id);
            Err(Refusal::say(ErrorCode::Unavailable, sentence))
        })
    }

    /// Ends all work, and takes no more of it. Returns when nothing of it runs.
    pub(crate) async fn end_work(&self) {
        let under_way = self.work().take();
        if let Some(mut under_way) = under_way {
            under_way.shutdown().await;
        }
    }

    /// The set is whole after every statement, so a panic elsewhere has not broken it.
    fn work(&self) -> MutexGuard<'_, Option<JoinSet<()>>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;

    use super::*;

    fn pod(root: &Path) -> Arc<Pod> {
        let bundle = Path::new("/b");
        let journal = Journal::create(root, "k8s.io", "p", bundle, Some("p")).unwrap();
        Arc::new(Pod::new("p", "web-0", bundle, Arc::new(journal)))
    }

    /// Work that is done when the sender says so, and the sign of its end.
    struct Work {
        go_on: watch::Sender<bool>,
        ended: Arc<()>,
    }

    impl Work {
        fn new() -> Self {
            let (go_on, ended) = (watch::Sender::new(false), Arc::new(()));
            Self { go_on, ended }
        }

        fn run(&self) -> impl Future<Output = Result<u32, Refusal>> + Send + use<> {
            let (mut goes_on, held) = (self.go_on.subscribe(), self.ended.clone());
            async move {
                let _ = goes_on.wait_for(|goes_on| *goes_on).await;
                drop(held);
                Ok(7)
            }
        }

        fn has_ended(&self) -> bool {
            Arc::strong_count(&self.ended) == 1
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_goes_on_when_nobody_waits_for_it() {
        let root = tempfile::tempdir().unwrap();
        let (pod, work) = (pod(root.path()), Work::new());
        let given_up = tokio::time::timeout(Duration::from_secs(120), pod.keep_at(work.run()));
        assert!(given_up.await.is_err());
        assert!(!work.has_ended());
        work.go_on.send_replace(true);
        while !work.has_ended() {
            tokio::task::yield_now().await;
        }
        let again = Work::new();
        again.go_on.send_replace(true);
        assert_eq!(pod.keep_at(again.run()).await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn work_ends_with_its_pod() {
        let root = tempfile::tempdir().unwrap();
        let (pod, work) = (pod(root.path()), Work::new());
        let waiting = tokio::spawn({
            let (pod, work) = (pod.clone(), work.run());
            async move { pod.keep_at(work).await }
        });
        tokio::task::yield_now().await;
        pod.end_work().await;
        assert!(work.has_ended());
        let refusal = waiting.await.unwrap().unwrap_err();
        assert_eq!(refusal.code, ErrorCode::Unavailable);
        let late = pod.keep_at(Work::new().run()).await.unwrap_err();
        assert_eq!(late.sentence, "pod p ended meanwhile");
    }
}
