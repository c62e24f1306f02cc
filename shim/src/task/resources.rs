//! Limits and use of a task: Stats, Update and OOM-kills.
//!
//! An Update that lowers memory notifies the guest first, so that programs stop growing before the host
//! tightens; an Update that raises memory notifies the guest last. The guest's answer changes nothing: the
//! host's limits confine. When the host or its kernel refuses, the old values hold.

use std::sync::Arc;
use std::time::Duration;

use protobuf::well_known_types::any::Any;
use wasmvm_protocol::agent::Change as GuestChange;
use wasmvm_protocol::agent::containerd::events::task::TaskOOM;

use super::{LoadedVm, Task, TaskError};
use crate::accounting::Accounting;
use crate::bundle::Resources;
use crate::error::chain;
use crate::events::Event;
use crate::off_thread::off_thread;

/// How long the guest may take to report its OOM-kills; the report of a program's exit waits for the
/// answer.
const USAGE_MAX: Duration = Duration::from_millis(500);

impl Task {
    /// The use of the task so far, encoded for Stats. Never asks the guest.
    ///
    /// # Errors
    /// [`TaskError::Unborn`] during `Create`.
    pub(crate) async fn stats(&self) -> Result<Any, TaskError> {
        let accounting = Arc::clone(self.vm()?.workload.accounting());
        // A host with many cgroups takes a moment to sum up.
        let metrics = off_thread(move || accounting.metrics()).await;
        metrics
            .map_err(TaskError::Thread)?
            .to_any()
            .map_err(TaskError::Encode)
    }

    /// Changes the limits of the running task: all of them, or none, as the host alone decides. A paused
    /// guest is notified when it runs again.
    ///
    /// # Errors
    /// [`TaskError`]
    pub(crate) async fn update(&self, resources: Resources) -> Result<(), TaskError> {
        let vm = self.vm()?;
        let _one_at_a_time = self.updating.lock().await;
        let accounting = vm.workload.accounting();
        let before = accounting.wasm_memory_bytes_max();
        let after = accounting.would_be(&resources)?;
        if after < before {
            self.advise(after).await;
        }
        let changed = change(accounting, resources).await;
        if changed.is_err() && after < before {
            self.advise(before).await;
        } else if changed.is_ok() && after > before {
            self.advise(after).await;
        }
        changed
    }

    /// Notifies the guest how much its programs may take from now on. The host's limits hold without that.
    async fn advise(&self, memory_bytes_max: u64) {
        let change = GuestChange {
            memory_bytes_max: Some(memory_bytes_max),
            ..Default::default()
        };
        if let Err(error) = self.tell(change).await {
            let (name, error) = (self.init.name(), chain(&error));
            tracing::warn!(name, error, "the guest does not take its new limit");
        }
    }

    /// Publishes TaskOOM when a kernel, the host's or the guest's, has OOM-killed a program. To be called
    /// when a program was ended by SIGKILL, before its exit is reported.
    pub(super) async fn notice_oom(&self, vm: &LoadedVm) {
        // A guest that has ended, is paused or is silent reports nothing.
        let asked = tokio::select! {
            asked = vm.programs().oom_kills() => asked.ok(),
            _ = vm.workload.vm_ended() => None,
            () = self.init.fatal.overdue() => None,
            () = tokio::time::sleep(USAGE_MAX) => None,
        };
        if let Some(kills) = asked {
            vm.workload.accounting().set_guest_oom_kills(kills);
        }
        if vm.workload.accounting().take_oom_news() {
            self.events.publish(Event::Oom(TaskOOM {
                container_id: self.order.id.clone(),
                ..Default::default()
            }));
        }
    }
}

/// Moves the cgroup's limits.
async fn change(accounting: &Arc<Accounting>, resources: Resources) -> Result<(), TaskError> {
    let accounting = Arc::clone(accounting);
    let changed = off_thread(move || accounting.change(&resources)).await;
    Ok(changed.map_err(TaskError::Thread)??)
}

#[cfg(test)]
mod tests {
    use wasmvm_protocol::agent::Usage;

    use super::super::fakes::{Answer, FakeMaker, Recorder, Scene, soon};
    use super::*;
    use crate::bundle::Limit;
    use crate::error::Coded as _;
    use crate::error::ErrorCode;

    struct Fixture {
        maker: Arc<FakeMaker>,
        events: Arc<Recorder>,
        task: Arc<Task>,
    }

    async fn running() -> Fixture {
        let scene = Scene::new();
        let task = scene.running().await;
        let Scene { maker, events, .. } = scene;
        Fixture {
            maker,
            events,
            task,
        }
    }

    impl Fixture {
        fn file(&self, name: &str) -> String {
            let path = self.maker.workload().dir.path().join(name);
            std::fs::read_to_string(path).unwrap()
        }

        fn put(&self, name: &str, value: &str) {
            std::fs::write(self.maker.workload().dir.path().join(name), value).unwrap();
        }

        async fn update(&self, mib: u64) -> Result<(), TaskError> {
            let resources = Resources {
                memory: Some(Limit::At(mib << 20)),
                ..Resources::default()
            };
            soon(self.task.update(resources)).await
        }

        /// What the guest was told, MiB less than the limit's own overhead.
        fn told(&self) -> Vec<u64> {
            let changes = self.maker.guest.changes.lock().unwrap();
            changes
                .iter()
                .map(|change| change.memory_bytes_max.unwrap_or(0) >> 20)
                .collect()
        }
    }

    #[tokio::test]
    async fn an_update_moves_the_cgroup_and_the_guest() {
        let f = running().await;
        f.update(128).await.unwrap();
        assert_eq!(f.file("memory.max"), (128 << 20).to_string());
        f.update(32).await.unwrap();
        assert_eq!(f.file("memory.max"), (32 << 20).to_string());
        assert_eq!(f.told(), [108, 12]);
    }

    #[tokio::test]
    async fn what_fails_half_way_leaves_the_old_limits() {
        let f = running().await;
        let max = (64u64 << 20).to_string();
        let error = f.update(512).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::FailedPrecondition);
        assert!(
            error.to_string().contains("the class of 256 MiB"),
            "{error}"
        );
        // The host refuses after the guest has agreed to less.
        f.put("memory.current", "60000000");
        let error = f.update(32).await.unwrap_err();
        assert!(
            error.to_string().contains("the VM holds 60000000 bytes"),
            "{error}"
        );
        assert_eq!(
            (f.file("memory.max"), f.told()),
            (max.clone(), vec![12, 44])
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_update_is_written_whatever_the_guest_answers() {
        for answer in [Answer::Refuses(ttrpc::Code::INTERNAL), Answer::Nothing] {
            let f = running().await;
            f.maker.guest.answer("Update", answer);
            for mib in [32, 128] {
                f.update(mib).await.unwrap();
                assert_eq!(f.file("memory.max"), (mib << 20).to_string());
                let limit = f.maker.workload().accounting.wasm_memory_bytes_max();
                assert_eq!(limit >> 20, mib - 20);
            }
        }
    }

    #[tokio::test]
    async fn the_end_for_want_of_memory_is_told_before_the_exit() {
        let f = running().await;
        *f.maker.guest.usage.lock().unwrap() = Usage {
            oom_kills: 1,
            ..Default::default()
        };
        f.maker.guest.exits(137);
        soon(f.task.wait()).await.unwrap();
        let words = soon(async {
            loop {
                let words = f.events.words();
                if words.len() == 4 {
                    return words;
                }
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(words.await[2..], ["oom", "exit 137"]);
        assert_eq!(
            f.task.stats().await.unwrap().type_url,
            "io.containerd.cgroups.v2.Metrics"
        );
        let metrics = f.maker.workload().accounting.metrics();
        assert_eq!(metrics.oom_kills(), 1);
    }

    #[tokio::test]
    async fn an_ordinary_kill_is_no_want_of_memory() {
        let f = running().await;
        f.maker.guest.exits(137);
        soon(f.task.wait()).await.unwrap();
        assert!(!f.events.words().contains(&"oom".to_owned()));
    }
}
