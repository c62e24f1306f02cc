//! A workload whose guest is a ttrpc server in this process, and an event sink that remembers.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};
use wasmvm_protocol::agent::containerd::api as pb;
use wasmvm_protocol::agent::containerd::shim_async::{Task as TaskService, create_task};
use wasmvm_protocol::agent::{
    self, CHANGE_TYPE_URL, Change, INSTANCE_TYPE_URL, PROGRAM_TYPE_URL, Program, Thread,
    USAGE_TYPE_URL, Usage,
};
use wasmvm_protocol::inspect::Node;
use wasmvm_protocol::ports::{AGENT_PORT, STREAM_PORT};
use wasmvm_protocol::stream::{STREAM_HEADER_FIXED_BYTES, StreamHeader};

use super::{ExecOrder, Task, TaskOrder, Tasks};
use crate::accounting::Accounting;
use crate::agent::{Agent, AgentError, GuestConnector, Programs};
use crate::bundle::{PodPlace, ProcessSpec, User};
use crate::cgroup::Cgroup;
use crate::error::{ErrorCode, Refusal};
use crate::events::{Event, EventSink};
use crate::guest_deadline::GuestClock;
use crate::journal::Journal;
use crate::pod::Pod;
use crate::signals;
use crate::stdio::{GuestStreams, Stdio, StdioNames};
use crate::vm::VmEnd;
use crate::workload::{
    LoadedProgram, Membership, SlotLease, Workload, WorkloadMaker, WorkloadOrder,
};

pub(crate) const PID: u32 = 4711;
/// The pid of every program in the guest.
const GUEST_PID: u32 = 7;

/// The order to create the task `t` without streams.
pub(crate) fn order(terminal: bool) -> TaskOrder {
    TaskOrder {
        workload: WorkloadOrder {
            namespace: "ns".into(),
            id: "t".into(),
            bundle: "/bundle".into(),
            rootfs: Vec::new(),
            options: None,
            membership: Membership::Alone,
        },
        stdio: StdioNames::default(),
        terminal,
    }
}

/// The order to run a program of this name as an exec without streams.
pub(crate) fn exec_order(id: &str, program: &str) -> ExecOrder {
    ExecOrder {
        id: id.into(),
        spec: ProcessSpec {
            capabilities: None,
            args: vec![program.into()],
            env: Vec::new(),
            cwd: "/".into(),
            user: User::default(),
        },
        stdio: StdioNames::default(),
        terminal: false,
    }
}

/// A shim's tasks, the maker of their VMs and the recorder of their events.
pub(crate) struct Scene {
    pub maker: Arc<FakeMaker>,
    pub events: Arc<Recorder>,
    pub tasks: Arc<Tasks>,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let maker = Arc::new(FakeMaker::default());
        let events = Arc::new(Recorder::default());
        Self {
            tasks: Arc::new(Tasks::new(maker.clone(), events.clone())),
            maker,
            events,
        }
    }

    /// The task `t`, created and started.
    pub(crate) async fn running(&self) -> Arc<Task> {
        soon(self.tasks.create(order(false))).await.unwrap();
        let task = self.tasks.get("t").unwrap();
        soon(task.start()).await.unwrap();
        task
    }
}

/// Keeps every event that is published.
#[derive(Debug, Default)]
pub(crate) struct Recorder(pub Mutex<Vec<Event>>);

impl EventSink for Recorder {
    fn publish(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Recorder {
    /// A word for each event; an exit with its status.
    pub(crate) fn words(&self) -> Vec<String> {
        let events = self.0.lock().unwrap();
        let word = |event: &Event| match event {
            Event::Create(create) => format!("create {}", create.pid),
            Event::Start(start) => format!("start {}", start.pid),
            Event::ExecAdded(added) => format!("exec-added {}", added.exec_id),
            Event::ExecStarted(started) => {
                format!("exec-started {} {}", started.exec_id, started.pid)
            }
            Event::Paused(_) => "paused".to_owned(),
            Event::Resumed(_) => "resumed".to_owned(),
            Event::Exit(exit) if exit.id != exit.container_id => {
                format!("exit {} of {}", exit.exit_status, exit.id)
            }
            Event::Oom(_) => "oom".to_owned(),
            Event::Exit(exit) => format!("exit {}", exit.exit_status),
            Event::Delete(delete) => format!("delete {}", delete.exit_status),
        };
        events.iter().map(word).collect()
    }
}

/// How the guest takes a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Obedience {
    /// The program ends, with 128+n.
    #[default]
    Obeys,
    /// The guest answers with success and does nothing.
    Lies,
    /// The guest does not answer.
    Silent,
}

/// How the guest answers a method, whatever it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The guest answers with this status and does nothing.
    Refuses(ttrpc::Code),
    /// The guest never answers and does nothing.
    Nothing,
}

/// A program of the guest.
#[derive(Debug)]
pub(crate) struct Instance {
    /// Whether Start has come.
    pub started: watch::Sender<bool>,
    pub exit: watch::Sender<Option<u32>>,
    pub signals: Mutex<Vec<u32>>,
    pub size: Mutex<Option<(u32, u32)>>,
    /// The tokens of the streams that the program was loaded with.
    pub tokens: [String; 3],
    pub terminal: bool,
}

impl Instance {
    fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }
}

/// The guest's side: what the tests set and see.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The programs by exec id; init's is empty.
    pub instances: Mutex<BTreeMap<String, Arc<Instance>>>,
    /// Start is answered only when this is true.
    pub answers_start: watch::Sender<bool>,
    pub obedience: Mutex<Obedience>,
    /// Answers by the name of the method; other methods are answered as an agent would.
    pub answers: Mutex<HashMap<String, Answer>>,
    /// The refusal of Create and Exec.
    pub refuses_create: Mutex<Option<(ttrpc::Code, &'static str)>>,
    /// Whether a program that is compiled again is refused as well.
    pub fits_never: AtomicBool,
    pub created: Mutex<Option<pb::CreateTaskRequest>>,
    pub changes: Mutex<Vec<Change>>,
    pub usage: Mutex<Usage>,
    pub streams: Mutex<HashMap<u64, (StreamHeader, UnixStream)>>,
    /// A paused guest answers nothing.
    pub runs: watch::Sender<bool>,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            instances: Mutex::default(),
            answers_start: watch::Sender::new(true),
            obedience: Mutex::default(),
            refuses_create: Mutex::default(),
            fits_never: AtomicBool::new(false),
            created: Mutex::default(),
            changes: Mutex::default(),
            answers: Mutex::default(),
            usage: Mutex::default(),
            streams: Mutex::default(),
            runs: watch::Sender::new(true),
        }
    }
}

impl Guest {
    /// The program's end of a stream.
    pub(crate) fn take(&self, token: u64) -> UnixStream {
        self.streams.lock().unwrap().remove(&token).unwrap().1
    }

    pub(crate) fn instance(&self, exec_id: &str) -> Arc<Instance> {
        self.instances.lock().unwrap()[exec_id].clone()
    }

    /// Init ends, and its streams with it.
    pub(crate) fn exits(&self, status: u32) {
        self.ends("", status);
    }

    /// A program ends, and its streams with it. A guest that obeys has ended all execs before init.
    pub(crate) fn ends(&self, exec_id: &str, status: u32) {
        if exec_id.is_empty() && *self.obedience.lock().unwrap() == Obedience::Obeys {
            let execs = self.all().into_iter().skip(1);
            for (exec, _) in execs.filter(|(_, exec)| !exec.has_ended()) {
                self.ends(&exec, 137);
            }
        }
        let of = |header: &StreamHeader| header.exec == exec_id;
        self.streams
            .lock()
            .unwrap()
            .retain(|_, (header, _)| !of(header));
        self.instance(exec_id).exit.send_replace(Some(status));
    }

    fn load(&self, exec_id: &str, terminal: bool, tokens: [String; 3]) -> ttrpc::Result<()> {
        let mut instances = self.instances.lock().unwrap();
        if instances.contains_key(exec_id) {
            return Err(refusal(ttrpc::Code::ALREADY_EXISTS, "loaded already"));
        }
        if let Some((code, sentence)) = *self.refuses_create.lock().unwrap() {
            return Err(refusal(code, sentence));
        }
        let instance = Instance {
            started: watch::Sender::new(false),
            exit: watch::Sender::new(None),
            signals: Mutex::default(),
            size: Mutex::default(),
            tokens,
            terminal,
        };
        instances.insert(exec_id.to_owned(), Arc::new(instance));
        Ok(())
    }

    /// All programs with their exec ids, init first.
    fn all(&self) -> BTreeMap<String, Arc<Instance>> {
        self.instances.lock().unwrap().clone()
    }

    fn find(&self, task: &str, exec_id: &str) -> ttrpc::Result<Arc<Instance>> {
        let created = self.created.lock().unwrap();
        let found = match created.as_ref() {
            Some(created) if created.id == task => {
                self.instances.lock().unwrap().get(exec_id).cloned()
            }
            _ => None,
        };
        found.ok_or_else(|| refusal(ttrpc::Code::NOT_FOUND, "no such program"))
    }

    /// Sets the answer to a method from now on.
    pub(crate) fn answer(&self, method: &str, answer: Answer) {
        self.answers
            .lock()
            .unwrap()
            .insert(method.to_owned(), answer);
    }

    async fn obeys(&self, method: &str) -> ttrpc::Result<()> {
        self.awake().await;
        let answer = self.answers.lock().unwrap().get(method).copied();
        match answer {
            None => Ok(()),
            Some(Answer::Refuses(code)) => Err(refusal(code, "no")),
            Some(Answer::Nothing) => std::future::pending().await,
        }
    }

    async fn awake(&self) {
        let mut runs = self.runs.subscribe();
        runs.wait_for(|runs| *runs).await.unwrap();
    }
}

fn refusal(code: ttrpc::Code, sentence: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, sentence))
}

fn wrong_phase() -> ttrpc::Error {
    refusal(ttrpc::Code::FAILED_PRECONDITION, "not in this phase")
}

fn any(type_url: &str, message: &impl protobuf::Message) -> MessageField<Any> {
    MessageField::some(Any {
        type_url: type_url.to_owned(),
        value: message.write_to_bytes().unwrap(),
        ..Default::default()
    })
}

/// The message that a request must carry.
fn message<M: protobuf::Message>(type_url: &str, any: &Any) -> ttrpc::Result<M> {
    if any.type_url != type_url {
        return Err(refusal(ttrpc::Code::INVALID_ARGUMENT, "another message"));
    }
    Ok(M::parse_from_bytes(&any.value).unwrap())
}

/// Refuses what is no program.
fn check_program(any: &Any) -> ttrpc::Result<()> {
    match message::<Program>(PROGRAM_TYPE_URL, any)?.args.as_slice() {
        [] => Err(refusal(ttrpc::Code::INVALID_ARGUMENT, "args is empty")),
        _ => Ok(()),
    }
}

/// An agent's Task service that keeps `wasmvm_protocol::contract`, but where a test has it do otherwise.
struct Service(Arc<Guest>);

#[async_trait]
impl TaskService for Service {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: pb::CreateTaskRequest,
    ) -> ttrpc::Result<pb::CreateTaskResponse> {
        self.0.obeys("Create").await?;
        check_program(&request.options)?;
        let streams = [&request.stdin, &request.stdout, &request.stderr].map(String::clone);
        self.0.load("", request.terminal, streams)?;
        *self.0.created.lock().unwrap() = Some(request);
        Ok(pb::CreateTaskResponse::new())
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: pb::ExecProcessRequest,
    ) -> ttrpc::Result<pb::Empty> {
        self.0.obeys("Exec").await?;
        check_program(&request.spec)?;
        if request.exec_id.is_empty() {
            return Err(refusal(ttrpc::Code::INVALID_ARGUMENT, "no exec id"));
        }
        if self.0.find(&request.id, "")?.has_ended() {
            return Err(wrong_phase());
        }
        let streams = [request.stdin, request.stdout, request.stderr];
        self.0.load(&request.exec_id, request.terminal, streams)?;
        Ok(pb::Empty::new())
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: pb::StartRequest,
    ) -> ttrpc::Result<pb::StartResponse> {
        self.0.obeys("Start").await?;
        let instance = self.0.find(&request.id, &request.exec_id)?;
        if instance.has_ended() || instance.started.send_replace(true) {
            return Err(wrong_phase());
        }
        let mut answers = self.0.answers_start.subscribe();
        answers.wait_for(|answers| *answers).await.unwrap();
        Ok(pb::StartResponse {
            pid: GUEST_PID,
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: pb::KillRequest) -> ttrpc::Result<pb::Empty> {
        self.0.obeys("Kill").await?;
        if !(1..=signals::SIGNAL_MAX).contains(&request.signal) {
            return Err(refusal(ttrpc::Code::INVALID_ARGUMENT, "no signal"));
        }
        if self.0.find(&request.id, &request.exec_id)?.has_ended() {
            return Err(refusal(ttrpc::Code::NOT_FOUND, "over"));
        }
        let all = request.all && request.exec_id.is_empty();
        let obedience = *self.0.obedience.lock().unwrap();
        // Init last, whose end is everybody's.
        for (target, instance) in self.0.all().into_iter().rev() {
            if instance.has_ended() || !(all || target == request.exec_id) {
                continue;
            }
            instance.signals.lock().unwrap().push(request.signal);
            match obedience {
                Obedience::Obeys if signals::ends_by_default(request.signal) => {
                    self.0.ends(&target, 128 + request.signal);
                }
                Obedience::Obeys | Obedience::Lies => {}
                Obedience::Silent => std::future::pending().await,
            }
        }
        Ok(pb::Empty::new())
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: pb::DeleteRequest,
    ) -> ttrpc::Result<pb::DeleteResponse> {
        self.0.obeys("Delete").await?;
        if !self.0.find(&request.id, &request.exec_id)?.has_ended() {
            return Err(wrong_phase());
        }
        self.0.instances.lock().unwrap().remove(&request.exec_id);
        Ok(pb::DeleteResponse::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: pb::ResizePtyRequest,
    ) -> ttrpc::Result<pb::Empty> {
        self.0.obeys("ResizePty").await?;
        let size = (request.width, request.height);
        if size.0.max(size.1) > u16::MAX.into() {
            return Err(refusal(ttrpc::Code::INVALID_ARGUMENT, "too large"));
        }
        let instance = self.0.find(&request.id, &request.exec_id)?;
        if instance.has_ended() {
            return Err(wrong_phase());
        }
        *instance.size.lock().unwrap() = instance.terminal.then_some(size);
        Ok(pb::Empty::new())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: pb::UpdateTaskRequest,
    ) -> ttrpc::Result<pb::Empty> {
        self.0.obeys("Update").await?;
        let change = message(CHANGE_TYPE_URL, &request.resources)?;
        self.0.find(&request.id, "")?;
        self.0.changes.lock().unwrap().push(change);
        Ok(pb::Empty::new())
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: pb::PidsRequest,
    ) -> ttrpc::Result<pb::PidsResponse> {
        self.0.obeys("Pids").await?;
        self.0.find(&request.id, "")?;
        let process = |(exec_id, instance): (String, Arc<Instance>)| {
            let thread = Thread {
                id: GUEST_PID,
                name: "wasm".to_owned(),
                state: "R".to_owned(),
                cpu_ms: 50,
                ..Default::default()
            };
            let threads = if instance.has_ended() {
                vec![]
            } else {
                vec![thread]
            };
            let info = agent::Instance {
                exec_id,
                threads,
                ..Default::default()
            };
            pb::ProcessInfo {
                pid: GUEST_PID,
                info: any(INSTANCE_TYPE_URL, &info),
                ..Default::default()
            }
        };
        Ok(pb::PidsResponse {
            processes: self.0.all().into_iter().map(process).collect(),
            ..Default::default()
        })
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: pb::StatsRequest,
    ) -> ttrpc::Result<pb::StatsResponse> {
        self.0.obeys("Stats").await?;
        self.0.find(&request.id, "")?;
        Ok(pb::StatsResponse {
            stats: any(USAGE_TYPE_URL, &*self.0.usage.lock().unwrap()),
            ..Default::default()
        })
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: pb::WaitRequest,
    ) -> ttrpc::Result<pb::WaitResponse> {
        self.0.obeys("Wait").await?;
        let mut exits = self.0.find(&request.id, &request.exec_id)?.exit.subscribe();
        let status = exits.wait_for(Option::is_some).await.unwrap().unwrap();
        self.0.awake().await;
        Ok(pb::WaitResponse {
            exit_status: status,
            ..Default::default()
        })
    }
}

/// A way into the guest by the socket of its agent.
struct Sockets {
    guest: Arc<Guest>,
    agent: PathBuf,
}

#[async_trait]
impl GuestConnector for Sockets {
    async fn connect(&self, port: u32) -> Result<UnixStream, Refusal> {
        match port {
            AGENT_PORT => Ok(UnixStream::connect(&self.agent).await.unwrap()),
            STREAM_PORT => {
                let (shim, mut guest) = UnixStream::pair().unwrap();
                let streams = self.guest.clone();
                tokio::spawn(async move {
                    let mut fixed = [0; STREAM_HEADER_FIXED_BYTES];
                    guest.read_exact(&mut fixed).await.unwrap();
                    let (task, exec) = StreamHeader::id_lengths(&fixed).unwrap();
                    let mut ids = vec![0; task + exec];
                    guest.read_exact(&mut ids).await.unwrap();
                    let header = StreamHeader::from_parts(&fixed, &ids).unwrap();
                    let mut streams = streams.streams.lock().unwrap();
                    streams.insert(header.token, (header, guest));
                });
                Ok(shim)
            }
            _ => Err(Refusal::say(ErrorCode::Unavailable, "nobody listens")),
        }
    }
}

/// A VM that is a socket.
pub(crate) struct FakeWorkload {
    guest: Arc<Guest>,
    pub agent: Agent,
    pub dir: tempfile::TempDir,
    pub accounting: Arc<Accounting>,
    _server: Mutex<Server>,
    end: watch::Sender<Option<VmEnd>>,
    pub recorded: AtomicU32,
    pub released: AtomicU32,
    pub destroyed: AtomicU32,
    pub destroy_fails: AtomicBool,
    pub poststart_fails: AtomicBool,
    pub compiled_again: AtomicU32,
    pub pause_fails: AtomicBool,
    /// A program is found only when this is true.
    pub loads: watch::Sender<bool>,
    /// The pod, for a sandbox.
    pub pod: Option<Arc<Pod>>,
    pub membership: Membership,
}

impl FakeWorkload {
    async fn boot(guest: Arc<Guest>, id: &str, clock: GuestClock) -> Self {
        // A guest of its own.
        guest.instances.lock().unwrap().clear();
        guest.runs.send_replace(true);
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut server = Server::new()
            .add_listener(Listener::from(listener))
            .register_service(create_task(Arc::new(Service(guest.clone()))));
        server.start().await.unwrap();
        let sockets = Arc::new(Sockets {
            guest: guest.clone(),
            agent: socket,
        });
        let load_max = Duration::from_secs(60);
        let agent = Agent::connect(sockets, id, load_max, clock).await.unwrap();
        for (file, value) in [("memory.max", "67108864"), ("memory.current", "1")] {
            std::fs::write(dir.path().join(file), value).unwrap();
        }
        let accounting = Accounting::new(Cgroup::fake(&[(dir.path(), &[])]), 256, Some(64 << 20));
        Self {
            guest,
            agent,
            accounting: Arc::new(accounting),
            dir,
            _server: Mutex::new(server),
            end: watch::Sender::new(None),
            recorded: AtomicU32::new(u32::MAX),
            released: AtomicU32::new(0),
            destroyed: AtomicU32::new(0),
            destroy_fails: AtomicBool::new(false),
            poststart_fails: AtomicBool::new(false),
            pause_fails: AtomicBool::new(false),
            compiled_again: AtomicU32::new(0),
            pod: None,
            membership: Membership::Alone,
            loads: watch::Sender::new(true),
        }
    }

    /// The VM ends by itself.
    pub(crate) fn dies(&self, reason: &str) {
        self.guest.streams.lock().unwrap().clear();
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert(VmEnd {
                reason: reason.to_owned(),
                console_tail: String::new(),
            });
            first
        });
    }
}

#[async_trait]
impl Workload for FakeWorkload {
    fn pid(&self) -> u32 {
        PID
    }

    async fn inspect(&self, _: Duration) -> Result<Node, Refusal> {
        let machine = Node::new().with("vsock\u{1b}[2J", "a\u{202e}b");
        Ok(Node::new().with("devices", machine))
    }

    fn pod(&self) -> Option<&Arc<Pod>> {
        self.pod.as_ref()
    }

    fn accounting(&self) -> &Arc<Accounting> {
        &self.accounting
    }

    async fn create(&self, stdio: &Stdio, terminal: bool) -> Result<GuestStreams, AgentError> {
        let init = Program {
            args: vec!["/app.wasm".to_owned()],
            ..Default::default()
        };
        self.agent.create(init, stdio, terminal).await
    }

    fn programs(&self) -> &dyn Programs {
        &self.agent
    }

    async fn find(&self, process: &ProcessSpec) -> Result<LoadedProgram, Refusal> {
        let mut loads = self.loads.subscribe();
        loads.wait_for(|loads| *loads).await.unwrap();
        if process.args[0] == "/bin/sh" {
            let sentence = "program /bin/sh is an ELF program";
            return Err(Refusal::say(ErrorCode::InvalidArgument, sentence));
        }
        Ok(LoadedProgram {
            program: Program {
                args: process.args.clone(),
                slot: 3,
                ..Default::default()
            },
            slot: SlotLease::new(3, Arc::default()),
        })
    }

    async fn compile_again(&self) -> Result<(), Refusal> {
        let mut refuses = self.guest.refuses_create.lock().unwrap();
        if !self.guest.fits_never.load(Ordering::Relaxed) {
            *refuses = None;
        }
        self.compiled_again.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn pause(&self) -> Result<(), Refusal> {
        if self.pause_fails.load(Ordering::Relaxed) {
            return Err(Refusal::say(ErrorCode::DeadlineExceeded, "no answer"));
        }
        self.guest.runs.send_replace(false);
        Ok(())
    }

    async fn resume(&self) -> Result<(), Refusal> {
        self.guest.runs.send_replace(true);
        Ok(())
    }

    async fn vm_ended(&self) -> VmEnd {
        let mut ends = self.end.subscribe();
        let end = ends.wait_for(Option::is_some).await.unwrap();
        end.clone().unwrap()
    }

    fn kill_vm(&self) {
        self.dies("killed");
    }

    async fn poststart(&self) -> Result<(), Refusal> {
        if self.poststart_fails.load(Ordering::Relaxed) {
            return Err(Refusal::say(ErrorCode::FailedPrecondition, "a hook failed"));
        }
        Ok(())
    }

    fn record_exit(&self, status: u32, _: SystemTime) {
        self.recorded.store(status, Ordering::Relaxed);
    }

    async fn release(&self) -> Result<(), Refusal> {
        self.dies("released");
        self.accounting.close();
        self.released.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn destroy(&self) -> Result<(), Refusal> {
        self.dies("destroyed");
        if self.destroy_fails.load(Ordering::Relaxed) {
            return Err(Refusal::say(ErrorCode::Internal, "the cgroup is busy"));
        }
        self.destroyed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Makes one kind of workload and remembers the last.
#[derive(Default)]
pub(crate) struct FakeMaker {
    pub guest: Arc<Guest>,
    pub last: Mutex<Option<Arc<FakeWorkload>>>,
    pub never_boots: AtomicBool,
    pub undone: AtomicU32,
    /// The places among pods of the tasks that are not alone.
    pub places: Mutex<HashMap<String, PodPlace>>,
}

impl FakeMaker {
    pub(crate) fn workload(&self) -> Arc<FakeWorkload> {
        self.last.lock().unwrap().clone().unwrap()
    }
}

#[async_trait]
impl WorkloadMaker for FakeMaker {
    async fn place(&self, _: &Path, id: &str) -> Result<PodPlace, Refusal> {
        Ok(self
            .places
            .lock()
            .unwrap()
            .get(id)
            .cloned()
            .unwrap_or_default())
    }

    async fn create(
        &self,
        order: WorkloadOrder,
        clock: GuestClock,
    ) -> Result<Arc<dyn Workload>, Refusal> {
        if self.never_boots.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let mut workload = FakeWorkload::boot(self.guest.clone(), &order.id, clock).await;
        workload.pod = matches!(order.membership, Membership::Sandbox).then(|| {
            let (root, id) = (workload.dir.path(), &order.id);
            let journal = Journal::create(root, "ns", id, &order.bundle, Some(id)).unwrap();
            Arc::new(Pod::new(id, "web-0", &order.bundle, Arc::new(journal)))
        });
        workload.membership = order.membership;
        let workload = Arc::new(workload);
        *self.last.lock().unwrap() = Some(workload.clone());
        Ok(workload)
    }

    async fn undo(&self, _: &WorkloadOrder) -> Result<(), Refusal> {
        self.undone.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Far longer than anything takes, so that a hang is a failure.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work)
        .await
        .expect("hangs")
}
