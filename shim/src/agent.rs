//! The guest's agent, as the shim talks to it: ttrpc and stdio streams over vsock.
//!
//! Whatever the guest answers is bounded in time here and in size by ttrpc; its numbers and sentences
//! are checked before they go on.

use std::time::{Duration, SystemTime};

use protobuf::well_known_types::any::Any;
use protobuf::{Message as _, MessageField};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;
use wasmvm_protocol::agent::containerd::api::{
    CreateTaskRequest, KillRequest, StartRequest, WaitRequest,
};
use wasmvm_protocol::agent::containerd::shim_async::TaskClient;
use wasmvm_protocol::agent::{PROGRAM_TYPE_URL, Program};
use wasmvm_protocol::ports::{AGENT_PORT, STREAM_PORT};
use wasmvm_protocol::stream::{StdioFd, StreamHeader, StreamHeaderError};

use crate::error::{ErrorCode, Refusal, printable};
use crate::stdio::{GuestStreams, Stdio};
use crate::task::TaskSandbox;

/// To open one connection to the guest.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// To load the program. Nothing is compiled meanwhile, but its files may be cold.
const CREATE_MAX: Duration = Duration::from_secs(60);
/// To let it run.
const START_MAX: Duration = Duration::from_secs(10);
/// To deliver a signal. Beyond it the VM is ended from outside.
pub const KILL_MAX: Duration = Duration::from_secs(1);
/// Beyond the deadline, so that it is ours that is noticed first.
const GRACE: Duration = Duration::from_secs(1);
/// A byte, as every exit status.
const STATUS_MAX: u32 = 255;

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It said no; the sentence is its own.
    #[error("{sentence}")]
    Refused {
        /// Its status code.
        code: ErrorCode,
        /// Its sentence.
        sentence: String,
    },
    /// It said nothing.
    #[error("the guest did not answer {request} within {within:?}")]
    Late {
        /// The request.
        request: &'static str,
        /// Its deadline.
        within: Duration,
    },
    /// Its connection ended.
    #[error("the connection to the guest broke during {request}")]
    Gone {
        /// The request.
        request: &'static str,
        /// What ttrpc says.
        source: ttrpc::Error,
    },
    /// No connection came about.
    #[error("cannot connect to port {port} of the guest")]
    Connect {
        /// The vsock port.
        port: u32,
        /// What the VMM says.
        source: Refusal,
    },
    /// A stream cannot be named.
    #[error("cannot open a stream of the task")]
    Stream(#[from] StreamHeaderError),
    /// A stream broke before it was used.
    #[error("cannot open a stream of the task")]
    StreamBroken(#[source] std::io::Error),
    /// The program cannot be encoded.
    #[error("cannot encode the program for the guest")]
    Encode(#[source] protobuf::Error),
}

impl AgentError {
    /// How containerd is answered.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Refused { code, .. } => *code,
            Self::Late { .. } => ErrorCode::DeadlineExceeded,
            Self::Gone { .. } | Self::StreamBroken(_) => ErrorCode::Unavailable,
            Self::Connect { source, .. } => source.code,
            Self::Stream(_) => ErrorCode::InvalidArgument,
            Self::Encode(_) => ErrorCode::Internal,
        }
    }

    /// Whether the guest is at fault beyond one request: silent, or gone.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }
}

/// A connection to the agent of one task.
#[derive(Clone)]
pub struct Agent {
    client: TaskClient,
    id: String,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// Connects to the agent of a booted VM.
    ///
    /// # Errors
    /// [`AgentError`]
    pub async fn connect(sandbox: &dyn TaskSandbox, id: &str) -> Result<Self, AgentError> {
        let stream = connect(sandbox, AGENT_PORT).await?;
        Ok(Self {
            client: TaskClient::new(Client::new(Socket::from(stream))),
            id: id.to_owned(),
        })
    }

    /// Loads the program with its streams, which are open from here on.
    ///
    /// # Errors
    /// [`AgentError`]; `Refused` carries the sentence that the user is to read.
    pub async fn create(
        &self,
        sandbox: &dyn TaskSandbox,
        stdio: &Stdio,
    ) -> Result<GuestStreams, AgentError> {
        let open = |wanted: bool, fd: StdioFd| async move {
            if !wanted {
                return Ok::<_, AgentError>((String::new(), None));
            }
            let (token, stream) = self.open_stream(sandbox, fd).await?;
            Ok((token, Some(stream)))
        };
        let (stdin_token, stdin) = open(stdio.stdin.is_some(), StdioFd::Stdin).await?;
        let (stdout_token, stdout) = open(stdio.stdout.is_some(), StdioFd::Stdout).await?;
        let (stderr_token, stderr) = open(stdio.stderr.is_some(), StdioFd::Stderr).await?;
        let request = CreateTaskRequest {
            id: self.id.clone(),
            stdin: stdin_token,
            stdout: stdout_token,
            stderr: stderr_token,
            options: MessageField::some(encode(sandbox.program())?),
            ..Default::default()
        };
        let call = self.client.create(context(CREATE_MAX), &request);
        answer("Create", CREATE_MAX, call).await?;
        Ok(GuestStreams {
            stdin,
            stdout,
            stderr,
        })
    }

    /// Lets the program run.
    ///
    /// # Errors
    /// [`AgentError`]
    pub async fn start(&self) -> Result<(), AgentError> {
        let request = StartRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let call = self.client.start(context(START_MAX), &request);
        answer("Start", START_MAX, call).await.map(drop)
    }

    /// Sends a signal to the program.
    ///
    /// # Errors
    /// [`AgentError`]; `Refused` with `NotFound` when it is over.
    pub async fn kill(&self, signal: u32) -> Result<(), AgentError> {
        let request = KillRequest {
            id: self.id.clone(),
            signal,
            ..Default::default()
        };
        let call = self.client.kill(context(KILL_MAX), &request);
        answer("Kill", KILL_MAX, call).await.map(drop)
    }

    /// Waits for the program's end, as long as it takes: its exit status.
    ///
    /// # Errors
    /// [`AgentError`] when the agent is gone, which is the end of the program as well.
    pub async fn wait(&self) -> Result<u32, AgentError> {
        let request = WaitRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        match self.client.wait(Context::default(), &request).await {
            Ok(response) => Ok(response.exit_status.min(STATUS_MAX)),
            Err(error) => Err(failed("Wait", error)),
        }
    }

    async fn open_stream(
        &self,
        sandbox: &dyn TaskSandbox,
        fd: StdioFd,
    ) -> Result<(String, UnixStream), AgentError> {
        // Unique within the VM: init is its only instance.
        let token = fd as u64 + 1;
        let header = StreamHeader {
            token,
            task: self.id.clone(),
            exec: String::new(),
            fd,
        };
        let mut stream = connect(sandbox, STREAM_PORT).await?;
        stream
            .write_all(&header.encode()?)
            .await
            .map_err(AgentError::StreamBroken)?;
        Ok((token.to_string(), stream))
    }
}

async fn connect(sandbox: &dyn TaskSandbox, port: u32) -> Result<UnixStream, AgentError> {
    match tokio::time::timeout(CONNECT_MAX, sandbox.connect(port)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(AgentError::Connect { port, source }),
        Err(_) => Err(AgentError::Late {
            request: "a connection",
            within: CONNECT_MAX,
        }),
    }
}

fn encode(mut program: Program) -> Result<Any, AgentError> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    program.wall_clock_ns = u64::try_from(now.as_nanos()).unwrap_or_default();
    Ok(Any {
        type_url: PROGRAM_TYPE_URL.to_owned(),
        value: program.write_to_bytes().map_err(AgentError::Encode)?,
        ..Default::default()
    })
}

fn context(deadline: Duration) -> Context {
    ttrpc::context::with_duration(deadline + GRACE)
}

async fn answer<T>(
    request: &'static str,
    within: Duration,
    call: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AgentError> {
    match tokio::time::timeout(within, call).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(failed(request, error)),
        Err(_) => Err(AgentError::Late { request, within }),
    }
}

fn failed(request: &'static str, error: ttrpc::Error) -> AgentError {
    match error {
        ttrpc::Error::RpcStatus(status) => AgentError::Refused {
            code: ErrorCode::from_ttrpc(status.code()),
            // The guest's own words, also on their way to the log.
            sentence: printable(&status.message),
        },
        source => AgentError::Gone { request, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SENTENCE_BYTES_MAX;

    #[test]
    fn every_failure_has_its_code() {
        let refused = failed(
            "Start",
            ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::NOT_FOUND, "no")),
        );
        assert_eq!(refused.code(), ErrorCode::NotFound);
        assert!(!refused.is_silence());
        let gone = failed("Start", ttrpc::Error::RemoteClosed);
        assert_eq!(gone.code(), ErrorCode::Unavailable);
        assert!(gone.is_silence());
        let late = AgentError::Late {
            request: "Kill",
            within: KILL_MAX,
        };
        assert_eq!(late.code(), ErrorCode::DeadlineExceeded);
        assert_eq!(late.to_string(), "the guest did not answer Kill within 1s");
    }

    #[test]
    fn what_a_guest_answers_is_one_bounded_line() {
        let long = "a\n".repeat(SENTENCE_BYTES_MAX);
        let status = ttrpc::get_status(ttrpc::Code::INTERNAL, long);
        let said = failed("Create", ttrpc::Error::RpcStatus(status)).to_string();
        assert!(said.starts_with("a a ") && said.len() <= SENTENCE_BYTES_MAX);
    }

    #[test]
    fn the_program_travels_with_the_hosts_time() {
        let any = encode(Program::new()).unwrap();
        let program = Program::parse_from_bytes(&any.value).unwrap();
        assert_eq!(any.type_url, "wasmvm.agent.v1.Program");
        assert!(program.wall_clock_ns > 1_700_000_000_000_000_000);
    }
}
