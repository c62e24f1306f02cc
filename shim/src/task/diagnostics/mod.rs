//! Diagnostics: the live state of a task, gathered once and told in two forms: as sentences for the log, at an
//! operator's SIGUSR1, and as the tree of `wasmvm inspect`.
//!
//! ```text
//! task web is running; pid 4711; standard input is open; output flows, 1 of it waiting for a reader
//! exec sh of task web is being started; pid 0; no stream is open
//! its VM runs
//! VMM: thread 4711 "wasmvm-vmm" is S, 0.09 s of CPU, in recvmsg (__skb_wait_for_more_packets)
//! VMM: thread 4714 "vcpu" is R, 17.20 s of CPU
//! file server: thread 4712 "wasmvm-files" is S, 0.02 s of CPU, in recvmsg (__skb_wait_for_more_packets)
//! guest: task web: thread 15 "exe" is R, 16.90 s of CPU
//! guest: exec sh of task web: thread 19 "exe" is S, 0.01 s of CPU, in read
//! ```
//!
//! The letters are proc(5)'s: R runs, S waits, D waits and cannot be woken. Lines that begin with `guest`
//! say what the guest reports of itself.
//!
//! No part of a look waits for another one: a lock that is held, a runtime thread that is stuck, a VMM and a guest
//! that do not answer are told in the place of what they keep back. Whatever the parts hold, a task's tree has less than
//! half of `TREE_BYTES_MAX` (`wasmvm_protocol::inspect`).

mod view;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use wasmvm_protocol::agent::Instance;
use wasmvm_protocol::threads::THREADS_MAX;

use super::{Flow, LoadedVm, Task, exec};
use crate::agent::AgentError;
use crate::error::chain;
use crate::host_process;
use crate::host_threads::HostThreads;
use crate::off_thread::off_thread_within;
pub(crate) use view::TaskView;
use view::{NoReport, OwnState, Told, VmView};

/// Most threads of the guest's own report that are told.
const GUEST_THREADS_MAX: usize = 1024;
/// Least time between two questions to the guest, whose answers have 8 KiB and 128 KiB/s (`agent/bounded.rs`).
const LOOKS_APART: Duration = Duration::from_millis(100);
/// How long a look waits for its turn to ask the guest.
const TURN_MAX: Duration = Duration::from_millis(150);
/// How long after the guest's limit, and the wait for a turn, the shim's own thread counts as stuck.
const STUCK_AFTER: Duration = Duration::from_millis(250);
/// In place of what the runtime's thread would have to ask.
const STUCK: &str = "the shim's own thread does not answer";
/// In place of a report, when others have just asked for one.
const ASKED_JUST_NOW: &str = "is not asked, as other looks ask at the same time";

impl TaskView {
    /// Looks at a task, from any runtime; `shim` is the runtime that has the task's connections. Takes hardly longer
    /// than `limit`, within which the guest has to answer.
    pub(crate) async fn of(task: &Arc<Task>, shim: &Handle, limit: Duration) -> Self {
        let [for_own, for_vmm, for_told] = [task.clone(), task.clone(), task.clone()];
        let mut telling = shim.spawn(async move { for_told.told(limit).await });
        let (own, processes, told) = tokio::join!(
            off_thread_within(limit, move || for_own.own_state()),
            off_thread_within(limit, move || for_vmm.host_processes()),
            timeout(limit + STUCK_AFTER, &mut telling),
        );
        telling.abort();
        let vm = task.vm.get().map(|_| {
            let (vmm, file_server) = processes.flatten().unzip();
            VmView {
                vmm,
                file_server: file_server.flatten(),
                told: told
                    .ok()
                    .and_then(Result::ok)
                    .flatten()
                    .unwrap_or_else(stuck),
            }
        });
        Self {
            id: task.id().to_owned(),
            own,
            vm,
        }
    }
}

impl Task {
    fn own_state(&self) -> OwnState {
        let exec = |exec: &Arc<exec::Exec>| (exec.id.clone(), exec.process.view(exec.pid()));
        OwnState {
            init: self.init.view(self.pid()),
            execs: self.execs_where(|_| true).iter().map(exec).collect(),
            flow: self.flow.now(),
        }
    }

    /// The threads of the VMM and of its child, the file server, by /proc alone.
    fn host_processes(&self) -> Option<(HostThreads, Option<HostThreads>)> {
        let pid = self.vm.get()?.workload.pid();
        let file_server = child(pid).map(|pid| HostThreads::of("file server", pid));
        Some((HostThreads::of("VMM", pid), file_server))
    }

    async fn told(&self, limit: Duration) -> Option<Told> {
        let vm = self.vm.get()?;
        let (guest, vmm) = tokio::join!(self.guest(vm, limit), vm.workload.inspect(limit));
        Some(Told {
            guest,
            vmm: vmm.map_err(|refusal| refusal.sentence),
        })
    }

    async fn guest(
        &self,
        vm: &LoadedVm,
        limit: Duration,
    ) -> Option<Result<Vec<Instance>, NoReport>> {
        if self.flow.now() != Flow::Running {
            return None;
        }
        // The guest is asked now and then, however often operators ask: answers beyond their rate would cost the task.
        let Ok(turn) = timeout(TURN_MAX, self.looking.clone().lock_owned()).await else {
            return Some(Err(NoReport::Ours(ASKED_JUST_NOW.to_owned())));
        };
        tokio::spawn(async move {
            sleep(LOOKS_APART).await;
            drop(turn);
        });
        tokio::select! {
            told = timeout(limit, vm.programs().instances()) => Some(match told {
                Ok(Ok(instances)) => Ok(bounded(instances)),
                Ok(Err(error @ AgentError::Refused { .. })) => Err(NoReport::Guests(chain(&error))),
                Ok(Err(error)) => Err(NoReport::Ours(chain(&error))),
                Err(_) => Err(NoReport::Ours(format!("does not answer within {limit:?}"))),
            }),
            () = self.flow.stopping() => None,
        }
    }
}

/// At most [`THREADS_MAX`] threads of an instance and [`GUEST_THREADS_MAX`] of all.
fn bounded(mut instances: Vec<Instance>) -> Vec<Instance> {
    let mut left = GUEST_THREADS_MAX;
    for instance in &mut instances {
        instance.threads.truncate(THREADS_MAX.min(left));
        left -= instance.threads.len();
    }
    instances
}

/// The answers in place of those that the shim's own thread, which has the connections, does not fetch.
fn stuck() -> Told {
    Told {
        guest: Some(Err(NoReport::Ours(STUCK.to_owned()))),
        vmm: Err(STUCK.to_owned()),
    }
}

/// A child of a process, by the fourth field of each /proc/PID/stat (proc(5)): not every kernel lists
/// a process's children.
fn child(parent: u32) -> Option<u32> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten();
    let mut pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.find(|pid: &u32| host_process::parent(*pid).is_ok_and(|its| its == parent))
}

#[cfg(test)]
mod tests {
    use wasmvm_protocol::agent::Thread;
    use wasmvm_protocol::inspect::{Inspect as _, Node, TREE_BYTES_MAX, Value};

    use super::view::BUSY;
    use super::*;
    use crate::stdio::StdioNames;
    use crate::task::State;
    use crate::task::fakes::{Answer, Scene, soon};
    use crate::task::process::Process;

    #[tokio::test]
    async fn state_that_is_held_costs_a_look_its_own_place() {
        let scene = Scene::new();
        let task = scene.running().await;
        let (held, is_held) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let holder = {
            let task = task.clone();
            std::thread::spawn(move || {
                let _execs = task.execs();
                held.send(()).unwrap();
                let _ = released.recv();
            })
        };
        is_held.recv().unwrap();
        let view = soon(TaskView::of(&task, &Handle::current(), STUCK_AFTER)).await;
        let lines = view.lines();
        assert_eq!(
            lines[0],
            "task t is busy: a thread of the shim holds its state"
        );
        assert!(lines[1].starts_with("VMM: "), "{lines:?}");
        let tree = view.inspect();
        assert_eq!(tree.find("task/state"), Some(BUSY.into()));
        assert!(tree.find("guest/init/threads/7").is_some(), "{tree}");
        drop(release);
        holder.join().unwrap();
    }

    #[tokio::test]
    async fn a_guests_refusal_is_marked_as_the_guests_words() {
        let scene = Scene::new();
        let task = scene.running().await;
        let refuses = Answer::Refuses(ttrpc::Code::INTERNAL);
        scene.maker.guest.answer("Pids", refuses);
        let view = soon(TaskView::of(&task, &Handle::current(), STUCK_AFTER)).await;
        let told = Value::guest("the guest refused Pids: no");
        assert_eq!(view.inspect().find("guest"), Some(told));
        let line = "guest: the guest refused Pids: no".to_owned();
        assert!(view.lines().contains(&line), "{:?}", view.lines());
    }

    /// Threads of this name with the longest numbers.
    fn threads(count: u32, name: &str) -> Vec<Thread> {
        let thread = |id| Thread {
            id: u32::MAX - id,
            name: name.to_owned(),
            state: "R".to_owned(),
            cpu_ms: u64::MAX,
            syscall: Some(u32::MAX),
            ..Default::default()
        };
        (0..count).map(thread).collect()
    }

    #[test]
    fn the_largest_tree_is_below_half_of_what_it_may_be() {
        let process = || Process::new(String::new(), StdioNames::default(), true, State::Running);
        let exec = |number: u32| {
            let process = process();
            process.set_flowing();
            (format!("{number:x>76}"), process.view(u32::MAX))
        };
        // An answer of 8 KiB: names of control characters, which are escaped twice.
        let instance = |number| Instance {
            exec_id: format!("{number}"),
            threads: threads(64, &"\u{1}".repeat(8)),
            ..Default::default()
        };
        let host = || HostThreads::fake(threads(64, &"x".repeat(15)));
        let view = TaskView {
            id: "x".repeat(76),
            own: Some(OwnState {
                init: process().view(7),
                execs: (0..256).map(exec).collect(),
                flow: Flow::Resuming,
            }),
            vm: Some(VmView {
                vmm: Some(host()),
                file_server: Some(host()),
                told: Told {
                    guest: Some(Ok(bounded((0..1000).map(instance).collect()))),
                    vmm: Ok(Node::new().with("x", "x".repeat(16 << 10))),
                },
            }),
        };
        let tree = serde_json::to_vec(&view.inspect()).unwrap();
        assert!(tree.len() > TREE_BYTES_MAX / 8, "{}", tree.len());
        assert!(tree.len() < TREE_BYTES_MAX / 2, "{}", tree.len());
    }
}
