//! The guest's agent, as the shim talks to it: ttrpc and stdio streams over vsock.
//!
//! [`bounded`] bounds the guest's messages in size and rate, this module bounds the time to answer; a
//! guest's status code is reduced to an [`error::Meaning`], and the guest's numbers and sentences are checked before
//! the shim uses them. A paused guest answers nothing, so the deadlines count the guest's time ([`GuestClock`]).

mod bounded;
mod connector;
mod error;
mod programs;
mod terminal_size;
pub(crate) mod wall_clock;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use ttrpc::context::Context;
use wasmvm_protocol::agent::containerd::api::{
    CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest, PidsRequest,
    ResizePtyRequest, StartRequest, StatsRequest, UpdateTaskRequest, WaitRequest,
};
use wasmvm_protocol::agent::containerd::shim_async::TaskClient;
use wasmvm_protocol::agent::{CHANGE_TYPE_URL, Change, Instance, PROGRAM_TYPE_URL, Program, Usage};
use wasmvm_protocol::ports::{AGENT_PORT, STREAM_PORT};
use wasmvm_protocol::stream::{StdioFd, StreamHeader};

pub(crate) use self::bounded::client;
pub(crate) use self::connector::GuestConnector;
use self::connector::connect;
pub(crate) use self::error::{AgentError, Meaning, Method};
pub(crate) use self::programs::Programs;
pub(crate) use self::terminal_size::TerminalSize;
use self::wall_clock::{Moment, Told};
use crate::guest_deadline::GuestClock;
use crate::stdio::{GuestStreams, Stdio};

/// How long the guest may take to let a program run.
const START_MAX: Duration = Duration::from_secs(10);
/// How long the guest may take to deliver a signal. When a fatal signal for init gets no answer, the VM is
/// ended from outside.
pub(crate) const KILL_MAX: Duration = Duration::from_secs(1);
/// How long the guest may take to apply a change; a guest that is merely short of CPU must not fail.
const CHANGE_MAX: Duration = Duration::from_secs(5);
/// How long the guest may take to answer from its own knowledge.
const TELL_MAX: Duration = Duration::from_secs(1);
/// The largest exit status: a status is a byte.
const STATUS_MAX: u32 = 255;
/// The largest number of OOM-kills that the guest is believed.
const OOM_KILLS_MAX: u64 = 1 << 20;
/// Beyond every pid of Linux (`PID_MAX_LIMIT`): the sum with a guest's pid is no live host pid.
pub(crate) const EXEC_PID_BASE: u32 = 4_194_304;

/// A connection to the agent of one task.
#[derive(Clone)]
pub(crate) struct Agent {
    client: TaskClient,
    guest: Arc<dyn GuestConnector>,
    id: String,
    /// How long the guest may take to load a program, in the guest's time.
    load_max: Duration,
    clock: GuestClock,
    /// The token of the next stream, unique within the VM.
    next_token: Arc<AtomicU64>,
    /// The time of day that the guest was sent last.
    told: Told,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The streams of one instance, and the tokens by which requests name them.
struct Opened {
    tokens: [String; 3],
    streams: GuestStreams,
}

/// Requests name an instance by its exec id, which is empty for init.
impl Agent {
    /// Connects to the agent of a booted VM.
    ///
    /// # Errors
    /// [`AgentError`]
    pub(crate) async fn connect(
        guest: Arc<dyn GuestConnector>,
        id: &str,
        load_max: Duration,
        clock: GuestClock,
    ) -> Result<Self, AgentError> {
        let stream = connect(&*guest, AGENT_PORT, &clock).await?;
        Ok(Self::over(stream, guest, id, load_max, clock))
    }

    fn over(
        stream: UnixStream,
        guest: Arc<dyn GuestConnector>,
        id: &str,
        load_max: Duration,
        clock: GuestClock,
    ) -> Self {
        Self {
            client: TaskClient::new(client(stream)),
            guest,
            id: id.to_owned(),
            load_max,
            clock,
            next_token: Arc::new(AtomicU64::new(1)),
            told: Told::default(),
        }
    }

    /// Loads init with its streams, which are open from here on.
    ///
    /// # Errors
    /// [`AgentError`]; `Refused` carries the sentence that the user is to read.
    pub(crate) async fn create(
        &self,
        init: Program,
        stdio: &Stdio,
        terminal: bool,
    ) -> Result<GuestStreams, AgentError> {
        let Opened { tokens, streams } = self.open_streams(stdio, "").await?;
        let [stdin, stdout, stderr] = tokens;
        let now = Moment::now();
        let request = CreateTaskRequest {
            id: self.id.clone(),
            terminal,
            stdin,
            stdout,
            stderr,
            options: MessageField::some(program(init, now)?),
            ..Default::default()
        };
        let call = self.client.create(Context::default(), &request);
        self.answer(Method::Create, self.load_max, call).await?;
        self.told.set(now);
        Ok(streams)
    }

    /// The time of day that the guest was sent last.
    #[cfg(test)]
    pub(crate) fn told(&self) -> &Told {
        &self.told
    }

    async fn open_streams(&self, stdio: &Stdio, exec_id: &str) -> Result<Opened, AgentError> {
        let open = |wanted: bool, fd: StdioFd| async move {
            if !wanted {
                return Ok::<_, AgentError>((String::new(), None));
            }
            let (token, stream) = self.open_stream(exec_id, fd).await?;
            Ok((token, Some(stream)))
        };
        let (stdin_token, stdin) = open(stdio.stdin.is_some(), StdioFd::Stdin).await?;
        let (stdout_token, stdout) = open(stdio.stdout.is_some(), StdioFd::Stdout).await?;
        let (stderr_token, stderr) = open(stdio.stderr.is_some(), StdioFd::Stderr).await?;
        Ok(Opened {
            tokens: [stdin_token, stdout_token, stderr_token],
            streams: GuestStreams {
                stdin,
                stdout,
                stderr,
            },
        })
    }

    async fn open_stream(
        &self,
        exec_id: &str,
        fd: StdioFd,
    ) -> Result<(String, UnixStream), AgentError> {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let header = StreamHeader {
            token,
            task: self.id.clone(),
            exec: exec_id.to_owned(),
            fd,
        };
        let mut stream = connect(&*self.guest, STREAM_PORT, &self.clock).await?;
        stream
            .write_all(&header.encode()?)
            .await
            .map_err(AgentError::StreamBroken)?;
        Ok((token.to_string(), stream))
    }

    async fn answer<T>(
        &self,
        method: Method,
        within: Duration,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, AgentError> {
        match self.clock.within(within, call).await {
            Some(Ok(response)) => Ok(response),
            Some(Err(error)) => Err(AgentError::of(method, error)),
            None => Err(AgentError::Late {
                request: method.name(),
                within,
            }),
        }
    }
}

#[async_trait]
impl Programs for Agent {
    async fn exec(
        &self,
        exec_id: &str,
        spec: Program,
        stdio: &Stdio,
        terminal: bool,
    ) -> Result<GuestStreams, AgentError> {
        let Opened { tokens, streams } = self.open_streams(stdio, exec_id).await?;
        let [stdin, stdout, stderr] = tokens;
        let request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            terminal,
            stdin,
            stdout,
            stderr,
            spec: MessageField::some(program(spec, Moment::now())?),
            ..Default::default()
        };
        let call = self.client.exec(Context::default(), &request);
        self.answer(Method::Exec, self.load_max, call).await?;
        Ok(streams)
    }

    async fn start(&self, exec_id: &str) -> Result<u32, AgentError> {
        let request = StartRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        let call = self.client.start(Context::default(), &request);
        let started = self.answer(Method::Start, START_MAX, call).await?;
        // A guest that names another pid deceives only its own users.
        Ok(started.pid.min(EXEC_PID_BASE - 1))
    }

    async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), AgentError> {
        let request = KillRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        let call = self.client.kill(Context::default(), &request);
        self.answer(Method::Kill, KILL_MAX, call).await.map(drop)
    }

    async fn wait(&self, exec_id: &str) -> Result<u32, AgentError> {
        let request = WaitRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        match self.client.wait(Context::default(), &request).await {
            Ok(response) => Ok(response.exit_status.min(STATUS_MAX)),
            Err(error) => Err(AgentError::of(Method::Wait, error)),
        }
    }

    async fn delete(&self, exec_id: &str) -> Result<(), AgentError> {
        let request = DeleteRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        let call = self.client.delete(Context::default(), &request);
        self.answer(Method::Delete, TELL_MAX, call).await.map(drop)
    }

    async fn resize(&self, exec_id: &str, size: TerminalSize) -> Result<(), AgentError> {
        let request = ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            width: size.width.into(),
            height: size.height.into(),
            ..Default::default()
        };
        let call = self.client.resize_pty(Context::default(), &request);
        self.answer(Method::ResizePty, CHANGE_MAX, call)
            .await
            .map(drop)
    }

    async fn update(&self, mut change: Change) -> Result<(), AgentError> {
        let now = Moment::now();
        change.wall_clock_ns = Some(now.wall_ns);
        let request = UpdateTaskRequest {
            id: self.id.clone(),
            resources: MessageField::some(any(CHANGE_TYPE_URL, &change)?),
            ..Default::default()
        };
        let call = self.client.update(Context::default(), &request);
        self.answer(Method::Update, CHANGE_MAX, call).await?;
        self.told.set(now);
        Ok(())
    }

    fn has_wrong_time(&self) -> bool {
        self.told.is_wrong()
    }

    fn time_is_told(&self) {
        self.told.set(Moment::now());
    }

    async fn oom_kills(&self) -> Result<u64, AgentError> {
        let request = StatsRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let call = self.client.stats(Context::default(), &request);
        let response = self.answer(Method::Stats, TELL_MAX, call).await?;
        // A message that is no Usage counts as an empty one.
        let usage = wire::decoded::<Usage>(&response.stats.value).unwrap_or_default();
        Ok(usage.oom_kills.min(OOM_KILLS_MAX))
    }

    async fn instances(&self) -> Result<Vec<Instance>, AgentError> {
        let request = PidsRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let call = self.client.pids(Context::default(), &request);
        let response = self.answer(Method::Pids, TELL_MAX, call).await?;
        let infos = response.processes.iter().map(|process| &process.info.value);
        // A process whose message is no Instance is left out.
        Ok(infos
            .filter_map(|info| wire::decoded::<Instance>(info))
            .collect())
    }
}

fn program(mut program: Program, now: Moment) -> Result<Any, AgentError> {
    program.wall_clock_ns = now.wall_ns;
    any(PROGRAM_TYPE_URL, &program)
}

fn any(type_url: &str, message: &impl Message) -> Result<Any, AgentError> {
    Ok(Any {
        type_url: type_url.to_owned(),
        value: message.write_to_bytes().map_err(AgentError::Encode)?,
        ..Default::default()
    })
}

#[cfg(test)]
mod decoded_tests;

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_travels_with_the_hosts_time() {
        let any = program(Program::new(), Moment::now()).unwrap();
        let program = Program::parse_from_bytes(&any.value).unwrap();
        assert_eq!(any.type_url, "wasmvm.agent.v1.Program");
        assert!(program.wall_clock_ns > 1_700_000_000_000_000_000);
    }
}
