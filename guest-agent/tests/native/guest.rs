//! A guest without a VM.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use tempfile::TempDir;
use ttrpc::Code;
use wasmvm_guest_agent::compiler::{CompilerService, compile};
use wasmvm_guest_agent::engine::ARTIFACT_VERSION;
use wasmvm_guest_agent::service::TaskService;
use wasmvm_guest_agent::streams::{self, Streams as Unclaimed};
use wasmvm_guest_agent::supervisor::{Site, Supervisor};
use wasmvm_protocol::agent::containerd::api::{
    CreateTaskRequest, ExecProcessRequest, KillRequest, PidsRequest, StatsRequest,
    UpdateTaskRequest,
};
use wasmvm_protocol::agent::containerd::shim_async::{TaskClient, create_task};
use wasmvm_protocol::agent::{
    CHANGE_TYPE_URL, CompileRequest, CompilerClient, Instance, ModuleKind, PROGRAM_TYPE_URL, Usage,
    create_compiler,
};
pub(crate) use wasmvm_protocol::agent::{Change, Program};
use wasmvm_protocol::slot::{SLOT_HEADER_BYTES, SlotHeader, SlotKind, slot_address};
use wasmvm_protocol::stream::{StdioFd, StreamHeader};

use crate::process::Process;

pub(crate) const TASK: &str = "web";
pub(crate) const EXE: &str = env!("CARGO_BIN_EXE_wasmvm-agent");

pub(crate) type Refusal = (Code, String);
type Artifact = (ModuleKind, Vec<u8>);

/// What a Create or Exec request says of stdio: tokens, and whether it is a terminal.
#[derive(Default)]
pub(crate) struct Streams {
    tokens: [String; 3],
    terminal: bool,
}

impl Streams {
    pub(crate) fn none() -> Self {
        Self::default()
    }

    pub(crate) fn terminal(self) -> Self {
        Self {
            terminal: true,
            ..self
        }
    }
}

pub(crate) struct Ended {
    pub status: u32,
    pub stdout: String,
    pub stdout_bytes: Vec<u8>,
    pub stderr: String,
}

pub(crate) struct Guest {
    directory: TempDir,
    pub client: TaskClient,
    tokens: AtomicU64,
    /// What the clock was last set to.
    pub clock: Arc<AtomicU64>,
    _server: ttrpc::r#async::Server,
}

/// Code and sentence of an RPC's refusal.
pub(crate) fn refusal(error: ttrpc::Error) -> Refusal {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("not a status: {other:?}"),
    }
}

/// Into a file with holes: slots are gibibytes apart.
fn write_slot(path: &Path, at: u64, kind: SlotKind, content: &[u8]) {
    let header = SlotHeader {
        kind,
        content_bytes: content.len() as u64,
        sha256: [0; 32],
    };
    let mut bytes = header.encode().to_vec();
    bytes.resize(SLOT_HEADER_BYTES, 0);
    bytes.extend_from_slice(content);
    let mut file = File::options();
    let file = file.write(true).create(true).truncate(false).open(path);
    file.unwrap().write_all_at(&bytes, at).unwrap();
}

fn write_artifact(path: &Path, slot: u32, (kind, artifact): &Artifact) {
    let kind = match kind {
        ModuleKind::MODULE_KIND_COMPONENT => SlotKind::ComponentArtifact,
        _ => SlotKind::CoreArtifact,
    };
    write_slot(path, slot_address(slot).unwrap(), kind, artifact);
}

fn any(type_url: &str, message: &impl Message) -> MessageField<Any> {
    let mut any = Any::new();
    any.type_url = type_url.into();
    any.value = message.write_to_bytes().unwrap();
    MessageField::some(any)
}

fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

impl Guest {
    /// With a program in text format.
    pub(crate) async fn with(wat: &str) -> Self {
        Self::of_artifact(compile(&wat::parse_str(wat).unwrap()).unwrap()).await
    }

    pub(crate) async fn of_artifact(artifact: Artifact) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        write_artifact(&at("slots"), 0, &artifact);
        fs::create_dir(at("tree")).unwrap();
        let streams = Arc::new(Unclaimed::default());
        let listener = UnixListener::bind(at("streams")).unwrap();
        let listener = streams::listener(listener.into()).unwrap();
        tokio::spawn(Arc::clone(&streams).serve(listener));
        let clock = Arc::new(AtomicU64::new(0));
        let set_clock = Arc::clone(&clock);
        let site = Site {
            exe: EXE.into(),
            slots: File::open(at("slots")).unwrap().into(),
            root: at("tree"),
            prepare: Box::new(|_| Ok(())),
            set_clock: Box::new(move |now| {
                set_clock.store(now, Ordering::Relaxed);
                Ok(())
            }),
        };
        let service = TaskService::new(Arc::new(Supervisor::new(site, streams)));
        let mut server = ttrpc::r#async::Server::new()
            .bind(&address(&at("agent")))
            .unwrap()
            .register_service(create_task(Arc::new(service)));
        server.start().await.unwrap();
        let client = ttrpc::r#async::Client::connect(&address(&at("agent")))
            .await
            .unwrap();
        Self {
            client: TaskClient::new(client),
            directory,
            tokens: AtomicU64::new(1),
            clock,
            _server: server,
        }
    }

    /// Fills another slot.
    pub(crate) fn fill_slot(&self, slot: u32, wat: &str) {
        let artifact = compile(&wat::parse_str(wat).unwrap()).unwrap();
        write_artifact(&self.directory.path().join("slots"), slot, &artifact);
    }

    pub(crate) fn tree(&self, name: &str) -> PathBuf {
        self.directory.path().join("tree").join(name)
    }

    pub(crate) fn write_file(&self, name: &str, content: &[u8], mode: u32) {
        fs::write(self.tree(name), content).unwrap();
        fs::set_permissions(self.tree(name), fs::Permissions::from_mode(mode)).unwrap();
        // Other users may enter the tree.
        fs::set_permissions(self.tree(""), fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn make_directory(&self, name: &str) {
        fs::create_dir(self.tree(name)).unwrap();
    }

    /// Permission bits.
    pub(crate) fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.tree(name)).unwrap().permissions().mode() & 0o7777
    }

    pub(crate) fn chown(&self, name: &str, uid: u32) {
        std::os::unix::fs::chown(self.tree(name), Some(uid), Some(uid)).unwrap();
    }

    /// Overwrites the version that wasmtime writes into an artifact.
    pub(crate) fn spoil_artifact(&self) {
        let path = self.directory.path().join("slots");
        // The open descriptor of the site must see it: same file.
        let mut file = File::options().read(true).write(true).open(path).unwrap();
        let start = slot_address(0).unwrap();
        file.seek(SeekFrom::Start(start)).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        let version = ARTIFACT_VERSION.as_bytes();
        let at = bytes
            .windows(version.len())
            .position(|window| window == version)
            .expect("the artifact names its version");
        let last = at + version.len() - 1;
        file.write_all_at(&[bytes[last] ^ 1], start + last as u64)
            .unwrap();
    }

    /// Opens three streams; the shim's ends of stdin, stdout and stderr.
    pub(crate) async fn streams(&self) -> (Streams, [UnixStream; 3]) {
        self.streams_of("").await
    }

    pub(crate) async fn streams_of(&self, exec: &str) -> (Streams, [UnixStream; 3]) {
        let mut streams = Streams::none();
        let ends = [StdioFd::Stdin, StdioFd::Stdout, StdioFd::Stderr].map(|fd| {
            let token = self.tokens.fetch_add(1, Ordering::Relaxed);
            let header = StreamHeader {
                token,
                task: TASK.into(),
                exec: exec.into(),
                fd,
            };
            let mut socket = UnixStream::connect(self.directory.path().join("streams")).unwrap();
            socket.write_all(&header.encode().unwrap()).unwrap();
            streams.tokens[fd as usize] = token.to_string();
            socket
        });
        (streams, ends)
    }

    pub(crate) async fn create(
        &self,
        edit: impl FnOnce(&mut Program),
        streams: Streams,
    ) -> Result<(), Refusal> {
        let mut request = CreateTaskRequest::new();
        request.id = TASK.into();
        request.terminal = streams.terminal;
        [request.stdin, request.stdout, request.stderr] = streams.tokens;
        request.options = any(PROGRAM_TYPE_URL, &program(edit));
        let response = self.client.create(context(), &request).await;
        response.map(drop).map_err(refusal)
    }

    pub(crate) async fn exec(
        &self,
        exec: &str,
        edit: impl FnOnce(&mut Program),
        streams: Streams,
    ) -> Result<(), Refusal> {
        let mut request = ExecProcessRequest::new();
        request.id = TASK.into();
        request.exec_id = exec.into();
        request.terminal = streams.terminal;
        [request.stdin, request.stdout, request.stderr] = streams.tokens;
        request.spec = any(PROGRAM_TYPE_URL, &program(edit));
        let response = self.client.exec(context(), &request).await;
        response.map(drop).map_err(refusal)
    }

    /// The task's first program.
    pub(crate) fn init(&self) -> Process<'_> {
        self.process("")
    }

    pub(crate) fn process<'a>(&'a self, exec: &'a str) -> Process<'a> {
        Process::new(&self.client, exec)
    }

    pub(crate) async fn start(&self) -> Result<u32, Refusal> {
        self.init().start().await
    }

    pub(crate) async fn kill(&self, signal: u32) -> Result<(), Refusal> {
        self.init().kill(signal).await
    }

    pub(crate) async fn kill_all(&self, signal: u32) -> Result<(), Refusal> {
        let mut request = KillRequest::new();
        request.id = TASK.into();
        request.signal = signal;
        request.all = true;
        let response = self.client.kill(context(), &request).await;
        response.map(drop).map_err(refusal)
    }

    pub(crate) async fn wait(&self) -> u32 {
        self.init().wait().await
    }

    pub(crate) async fn is(&self, phase: &str) -> bool {
        self.init().is(phase).await
    }

    pub(crate) async fn delete(&self) -> Result<(), Refusal> {
        self.init().delete().await
    }

    pub(crate) async fn update(&self, edit: impl FnOnce(&mut Change)) -> Result<(), Refusal> {
        let mut change = Change::new();
        edit(&mut change);
        let mut request = UpdateTaskRequest::new();
        request.id = TASK.into();
        request.resources = any(CHANGE_TYPE_URL, &change);
        let response = self.client.update(context(), &request).await;
        response.map(drop).map_err(refusal)
    }

    pub(crate) async fn oom_kills(&self) -> u64 {
        let mut request = StatsRequest::new();
        request.id = TASK.into();
        let stats = self.client.stats(context(), &request).await.unwrap().stats;
        Usage::parse_from_bytes(&stats.value).unwrap().oom_kills
    }

    /// What each program does, with its pid.
    pub(crate) async fn look(&self) -> Vec<(u32, Instance)> {
        let mut request = PidsRequest::new();
        request.id = TASK.into();
        let response = self.client.pids(context(), &request).await.unwrap();
        let processes = response.processes.iter();
        let instance = |info: &Any| Instance::parse_from_bytes(&info.value).unwrap();
        processes
            .map(|process| (process.pid, instance(&process.info)))
            .collect()
    }

    /// Create, Start, everything read, Wait.
    pub(crate) async fn run(&self, edit: impl FnOnce(&mut Program)) -> Ended {
        self.run_with_input(edit, Vec::new()).await
    }

    pub(crate) async fn run_with_input(
        &self,
        edit: impl FnOnce(&mut Program),
        input: Vec<u8>,
    ) -> Ended {
        let (streams, [mut stdin, stdout, stderr]) = self.streams().await;
        self.create(edit, streams).await.unwrap();
        self.start().await.unwrap();
        let feed = thread::spawn(move || {
            let _ = stdin.write_all(&input);
            let _ = stdin.shutdown(Shutdown::Write);
        });
        let drain = |mut stream: UnixStream| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                bytes
            })
        };
        let (stdout, stderr) = (drain(stdout), drain(stderr));
        let status = self.wait().await;
        feed.join().unwrap();
        let stdout_bytes = stdout.join().unwrap();
        Ended {
            status,
            stdout: String::from_utf8_lossy(&stdout_bytes).into_owned(),
            stdout_bytes,
            stderr: String::from_utf8_lossy(&stderr.join().unwrap()).into_owned(),
        }
    }
}

fn program(edit: impl FnOnce(&mut Program)) -> Program {
    let mut program = Program::new();
    program.args = vec!["prog.wasm".into()];
    edit(&mut program);
    program
}

pub(crate) fn context() -> ttrpc::context::Context {
    ttrpc::context::with_timeout(30_000_000_000)
}

/// Through the service of the compiler VM.
pub(crate) async fn compile_by_service(wasm: &[u8]) -> Result<Artifact, Refusal> {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    write_slot(&at("slot"), 0, SlotKind::Wasm, wasm);
    let listener = UnixListener::bind(at("artifact")).unwrap();
    let service = CompilerService::new(
        EXE.into(),
        File::open(at("slot")).unwrap().into(),
        0,
        streams::listener(listener.into()).unwrap(),
    );
    let mut server = ttrpc::r#async::Server::new()
        .bind(&address(&at("agent")))
        .unwrap()
        .register_service(create_compiler(Arc::new(service)));
    server.start().await.unwrap();
    let client = ttrpc::r#async::Client::connect(&address(&at("agent")))
        .await
        .unwrap();
    let response = CompilerClient::new(client)
        .compile(context(), &CompileRequest::new())
        .await
        .map_err(refusal)?;
    let mut socket = UnixStream::connect(at("artifact")).unwrap();
    let artifact = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let artifact = artifact.await.unwrap();
    assert_eq!(artifact.len() as u64, response.bytes);
    Ok((response.kind.enum_value().unwrap(), artifact))
}
