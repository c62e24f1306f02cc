//! The descriptors 0, 1 and 2 of a runner: the streams themselves, or a terminal between them and
//! the runner.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use wasmvm_protocol::stream::StdioFd;

use crate::error::AgentError;
use crate::request::LoadRequest;
use crate::streams::Streams;
use crate::terminal::{Ends, Terminal};

/// A runner's standard descriptors.
#[derive(Debug)]
pub struct Stdio {
    /// The descriptors to be the runner's 0, 1 and 2.
    pub runner: [OwnedFd; 3],
    /// The terminal, and the streams that it is to be pumped from and to.
    pub terminal: Option<(Arc<Terminal>, Ends)>,
}

impl Stdio {
    /// Claims the streams that a request names.
    ///
    /// # Errors
    /// [`AgentError::Stream`], [`AgentError::System`].
    pub async fn open(streams: &Streams, request: &LoadRequest) -> Result<Self, AgentError> {
        if request.terminal {
            return Self::with_terminal(streams, request).await;
        }
        let stream = async |fd| match claim(streams, request, fd).await? {
            Some(socket) => {
                let failed = |errno: rustix::io::Errno| system("use a stream")(errno.into());
                rustix::io::ioctl_fionbio(&socket, false).map_err(failed)?;
                Ok(socket)
            }
            None => null_device(),
        };
        let runner = [
            stream(StdioFd::Stdin).await?,
            stream(StdioFd::Stdout).await?,
            stream(StdioFd::Stderr).await?,
        ];
        Ok(Self {
            runner,
            terminal: None,
        })
    }

    async fn with_terminal(streams: &Streams, request: &LoadRequest) -> Result<Self, AgentError> {
        let ends = Ends {
            stdin: claim(streams, request, StdioFd::Stdin).await?,
            stdout: claim(streams, request, StdioFd::Stdout).await?,
        };
        let failed = system("open a terminal");
        let (terminal, slave) = Terminal::open(request.program.uid).map_err(failed)?;
        let copy = || slave.try_clone().map_err(failed);
        let runner = [copy()?, copy()?, slave];
        Ok(Self {
            runner,
            terminal: Some((Arc::new(terminal), ends)),
        })
    }
}

async fn claim(
    streams: &Streams,
    request: &LoadRequest,
    fd: StdioFd,
) -> Result<Option<OwnedFd>, AgentError> {
    Ok(match request.stdio[fd as usize] {
        Some(token) => Some(streams.claim(token, &request.id, fd).await?),
        None => None,
    })
}

fn system(what: &'static str) -> impl Fn(io::Error) -> AgentError + Copy {
    move |error| AgentError::System(what, error)
}

fn null_device() -> Result<OwnedFd, AgentError> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| system("open the null device")(errno.into()))
}
