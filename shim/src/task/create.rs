//! `Create`, from containerd's request to the event: id taken, streams opened, VM booted, program loaded.
//!
//! Cheap refusals come first. `Delete` may come at any point (`ctr` gave up) and ends the boot.

use std::sync::Arc;

use protobuf::MessageField;
use wasmvm_protocol::agent::containerd::api::CreateTaskRequest;
use wasmvm_protocol::agent::containerd::events::task::{TaskCreate, TaskIO};

use super::process::never_ran;
use super::{LoadedVm, Move, State, Task, Tasks, time_of_day, watcher};
use crate::agent::AgentError;
use crate::bundle::PodPlace;
use crate::error::{self, Coded, ErrorCode, Refusal};
use crate::events::Event;
use crate::guest_deadline::GuestClock;
use crate::log::spawn_in_span;
use crate::pod::Pod;
use crate::stdio::{GuestStreams, Pumps, Stdio, StdioError, StdioNames, StdioOwner};
use crate::vm::{VmEnd, end_behind_silence};
use crate::workload::{Membership, Workload, WorkloadOrder};

/// The fields of a `Create` request that the shim uses.
#[derive(Clone, Debug)]
pub(crate) struct TaskOrder {
    /// The request but for the streams.
    pub workload: WorkloadOrder,
    /// The client's streams, as the request names them.
    pub stdio: StdioNames,
    /// Whether the streams are a terminal's.
    pub terminal: bool,
}

impl TaskOrder {
    /// The order of a request in containerd's `namespace`.
    ///
    /// # Errors
    /// `InvalidArgument` for a request to restore a checkpoint.
    pub(crate) fn of(namespace: &str, request: CreateTaskRequest) -> Result<Self, Refusal> {
        if !request.checkpoint.is_empty() {
            let checkpoint = request.checkpoint;
            let sentence = format!("checkpoint is {checkpoint:?}; restoring is not supported yet");
            return Err(Refusal::say(ErrorCode::InvalidArgument, sentence));
        }
        let (terminal, stdin) = (request.terminal, request.stdin);
        Ok(Self {
            stdio: StdioNames::of(terminal, stdin, request.stdout, request.stderr),
            workload: WorkloadOrder {
                namespace: namespace.to_owned(),
                id: request.id,
                bundle: request.bundle.into(),
                rootfs: request.rootfs,
                options: request.options.into_option(),
                membership: Membership::Alone,
            },
            terminal,
        })
    }
}

/// Why a task was not created.
#[derive(Debug, thiserror::Error)]
pub(super) enum CreateError {
    /// A stream of the request cannot be opened.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The bundle, the rootfs, the program or the host stands against the workload.
    #[error(transparent)]
    TaskVm(Refusal),
    /// The agent did not load the program.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The VM ended before the program was loaded.
    #[error("the VM ended before the program was loaded: {}{}", .0.reason, error::console(&.0.console_tail))]
    VmEnded(VmEnd),
    /// `Delete` of the task came while the task was being created; holds its id.
    #[error("task {0} was deleted while it was being created")]
    Aborted(String),
}

impl Coded for CreateError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Stdio(error) => error.code(),
            Self::TaskVm(refusal) => refusal.code,
            Self::Agent(error) => error.code(),
            Self::VmEnded(_) => ErrorCode::Unavailable,
            Self::Aborted(_) => ErrorCode::FailedPrecondition,
        }
    }
}

impl Tasks {
    /// Creates a task and returns its pid. The caller must not drop the future.
    ///
    /// # Errors
    /// [`CreateError`], translated for containerd; then nothing is left of the task.
    pub(crate) async fn create(&self, order: TaskOrder) -> Result<u32, Refusal> {
        let id = order.workload.id.clone();
        let task = Arc::new(Task::new(order, self.events.clone()));
        let task = self.insert(&id, task)?;
        let created = task.create(self).await;
        if let Err(error) = &created {
            self.remove(&id, &task);
            // Releases a Delete that waits; no other move can have come before.
            let _ = task.init.transition(Move::CreateFailed(never_ran()));
            tracing::info!(task_id = id, error = error::chain(error), "no task");
        }
        created.map_err(Refusal::from)
    }

    /// Finds the task's place among pods, and makes its workload.
    async fn make(
        &self,
        order: &WorkloadOrder,
        clock: GuestClock,
    ) -> Result<Arc<dyn Workload>, Refusal> {
        let mut order = order.clone();
        order.membership = self.membership(&order).await?;
        self.maker.create(order, clock).await
    }

    async fn membership(&self, order: &WorkloadOrder) -> Result<Membership, Refusal> {
        let place = self.maker.place(&order.bundle, &order.id).await?;
        Ok(match place {
            PodPlace::Alone => Membership::Alone,
            PodPlace::Sandbox => Membership::Sandbox,
            PodPlace::Container { pod } => Membership::Container(self.running_pod(&pod)?),
        })
    }

    /// The pod of this id, as long as its sandbox runs.
    fn running_pod(&self, id: &str) -> Result<Arc<Pod>, PodError> {
        let absent = |_| PodError::Absent(id.to_owned());
        let sandbox = self.get(id).map_err(absent)?;
        let workload = &sandbox
            .vm()
            .map_err(|_| PodError::NotRunning(id.to_owned()))?
            .workload;
        let pod = workload
            .pod()
            .ok_or_else(|| PodError::NoPod(id.to_owned()))?;
        match sandbox.init.state() {
            State::Running => Ok(pod.clone()),
            _ => Err(PodError::NotRunning(id.to_owned())),
        }
    }
}

/// Why a container cannot join its pod; each holds the pod's id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum PodError {
    #[error("pod {0} is not this shim's: its sandbox was deleted, or another runtime has it")]
    Absent(String),
    #[error("task {0} is no pod's sandbox, so no container can join it")]
    NoPod(String),
    #[error(
        "the sandbox of pod {0} does not run: a container is created after its start and before its end"
    )]
    NotRunning(String),
}

impl Coded for PodError {
    fn code(&self) -> ErrorCode {
        ErrorCode::FailedPrecondition
    }
}

impl Task {
    /// Boots the VM, loads the program and returns the task's pid.
    async fn create(self: &Arc<Self>, tasks: &Tasks) -> Result<u32, CreateError> {
        let owner = StdioOwner {
            namespace: &self.order.namespace,
            id: &self.order.id,
        };
        let stdio = Stdio::open(&self.init.stdio, &owner).await?;
        let workload = tokio::select! {
            made = tasks.make(&self.order, self.flow.clock()) => made.map_err(CreateError::TaskVm)?,
            error = self.aborted() => {
                if let Err(left) = tasks.maker.undo(&self.order).await {
                    tracing::error!(task_id = %self.order.id, %left, "cannot undo an aborted create");
                }
                return Err(error);
            }
        };
        let loaded = tokio::select! {
            loaded = self.load(&*workload, &stdio) => loaded,
            error = self.aborted() => Err(error),
        };
        match loaded {
            Ok(streams) => Ok(self.created(workload, stdio, streams)),
            Err(error) => {
                let error = explain(&*workload, error).await;
                if let Err(left) = workload.destroy().await {
                    tracing::error!(task_id = %self.order.id, %left, "cannot undo a failed create");
                }
                Err(error)
            }
        }
    }

    async fn aborted(&self) -> CreateError {
        // `wait_for` fails only without a sender, and the task holds the sender.
        let _ = self.abort.subscribe().wait_for(|abort| *abort).await;
        CreateError::Aborted(self.order.id.clone())
    }

    async fn load(
        &self,
        workload: &dyn Workload,
        stdio: &Stdio,
    ) -> Result<GuestStreams, CreateError> {
        let load = async {
            let terminal = self.init.terminal;
            match workload.create(stdio, terminal).await {
                // Nothing of the tenant has run, so the agent's answer can still be believed.
                Err(error) if error.is_unfit() => {
                    tracing::warn!(task_id = %self.order.id, %error, "compiling it again");
                    workload
                        .compile_again()
                        .await
                        .map_err(CreateError::TaskVm)?;
                    Ok(workload.create(stdio, terminal).await?)
                }
                first => Ok(first?),
            }
        };
        tokio::select! {
            biased;
            loaded = load => loaded,
            end = workload.vm_ended() => Err(CreateError::VmEnded(end)),
        }
    }

    fn created(
        self: &Arc<Self>,
        workload: Arc<dyn Workload>,
        stdio: Stdio,
        streams: GuestStreams,
    ) -> u32 {
        let pid = workload.pid();
        let pumps = Pumps::start(stdio, streams, &self.init.switch, &self.flow.clock());
        self.init.set_flowing();
        let vm = LoadedVm {
            workload,
            destroyed: tokio::sync::Mutex::new(false),
        };
        // VM and state are set once: nothing else sets either while the task is being created.
        let set = self.vm.set(vm).is_ok();
        let told = self.init.transition_and_publish(Move::Created, |_| {
            self.events.publish(Event::Create(self.create_event(pid)));
        });
        debug_assert!(set && told.is_ok(), "a task is created once");
        spawn_in_span(watcher::watch(self.clone(), pumps));
        spawn_in_span(time_of_day::keep(self.clone()));
        pid
    }

    fn create_event(&self, pid: u32) -> TaskCreate {
        TaskCreate {
            container_id: self.order.id.clone(),
            bundle: self.bundle(),
            rootfs: self.order.rootfs.clone(),
            io: MessageField::some(TaskIO {
                stdin: self.init.stdio.stdin.clone(),
                stdout: self.init.stdio.stdout.clone(),
                stderr: self.init.stdio.stderr.clone(),
                terminal: self.init.terminal,
                ..Default::default()
            }),
            pid,
            ..Default::default()
        }
    }
}

/// Replaces the error of a silent agent by the VM's end, if the VM has ended.
async fn explain(workload: &dyn Workload, error: CreateError) -> CreateError {
    let silent = matches!(&error, CreateError::Agent(agent) if agent.is_silence());
    if !silent {
        return error;
    }
    let end = end_behind_silence(workload.vm_ended()).await;
    end.map_or(error, CreateError::VmEnded)
}

#[cfg(test)]
mod tests {
    use super::super::fakes::{Scene, order, soon};
    use super::*;
    use crate::error::expect_codes;

    fn order_of(id: &str) -> TaskOrder {
        let mut order = order(false);
        order.workload.id = id.into();
        order
    }

    /// A shim that makes the sandbox `pod` and the container `c` of the pod.
    fn scene() -> Scene {
        let scene = Scene::new();
        let container = PodPlace::Container { pod: "pod".into() };
        let places = [("pod", PodPlace::Sandbox), ("c", container)];
        let places = places.map(|(id, place)| (id.to_owned(), place));
        scene.maker.places.lock().unwrap().extend(places);
        scene
    }

    impl Scene {
        async fn create(&self, id: &str) -> Result<u32, Refusal> {
            soon(self.tasks.create(order_of(id))).await
        }

        async fn is_refused(&self, id: &str, part: &str) {
            let refusal = self.create(id).await.unwrap_err();
            assert_eq!(refusal.code, ErrorCode::FailedPrecondition, "{refusal}");
            assert!(refusal.sentence.contains(part), "{refusal}");
            assert!(self.tasks.get(id).is_err(), "nothing is left");
        }
    }

    #[tokio::test]
    async fn a_container_is_created_while_its_pod_runs() {
        let scene = scene();
        scene.is_refused("c", "not this shim's").await;
        scene.create("pod").await.unwrap();
        scene.is_refused("c", "after its start").await;
        let sandbox = scene.tasks.get("pod").unwrap();
        soon(sandbox.start()).await.unwrap();
        scene.create("c").await.unwrap();
        let container = scene.maker.workload();
        let Membership::Container(pod) = &container.membership else {
            panic!("{:?}", container.membership);
        };
        assert_eq!((pod.id(), pod.hostname()), ("pod", "web-0"));
    }

    #[tokio::test]
    async fn a_pod_that_has_ended_takes_no_container() {
        let scene = scene();
        scene.create("pod").await.unwrap();
        let sandbox = scene.tasks.get("pod").unwrap();
        soon(sandbox.start()).await.unwrap();
        scene.maker.guest.exits(0);
        soon(sandbox.wait()).await.unwrap();
        scene.is_refused("c", "before its end").await;
        soon(scene.tasks.delete("pod")).await.unwrap();
        scene.is_refused("c", "deleted").await;
    }

    #[tokio::test]
    async fn only_a_sandbox_is_a_pod() {
        let scene = scene();
        let place = |id: &str, place| scene.maker.places.lock().unwrap().insert(id.into(), place);
        place("pod", PodPlace::Alone);
        scene.create("pod").await.unwrap();
        let task = scene.tasks.get("pod").unwrap();
        soon(task.start()).await.unwrap();
        scene.is_refused("c", "no pod's sandbox").await;
    }

    #[test]
    fn every_error_has_its_code() {
        let end = VmEnd {
            reason: "the guest shut down".into(),
            console_tail: String::new(),
        };
        let refusal = Refusal::say(ErrorCode::NotFound, "no program");
        let late = AgentError::Late {
            request: "Create",
            within: std::time::Duration::ZERO,
        };
        expect_codes([
            (CreateError::TaskVm(refusal), ErrorCode::NotFound),
            (CreateError::Agent(late), ErrorCode::DeadlineExceeded),
            (CreateError::VmEnded(end), ErrorCode::Unavailable),
            (
                CreateError::Aborted("t".into()),
                ErrorCode::FailedPrecondition,
            ),
        ]);
        expect_codes([(PodError::Absent("p".into()), ErrorCode::FailedPrecondition)]);
    }
}
