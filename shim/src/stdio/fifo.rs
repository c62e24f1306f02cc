//! Opening the client's FIFOs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tokio::net::unix::pipe;

use crate::error::{Coded, ErrorCode};

/// Why a stream was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    /// The name has no known form, or a form that this stream cannot have.
    #[error(
        "{stream} is {uri:?}; known are the path of a FIFO, fifo://, file:// and binary://, each with an absolute path"
    )]
    Scheme {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// The name in the request, printable.
        uri: String,
    },
    /// The outputs name a logger and something else.
    #[error("stdout is {stdout:?}, but stderr is {stderr:?}; a logger takes both")]
    TwoLoggers {
        /// The name of stdout in the request, printable.
        stdout: String,
        /// The name of stderr in the request, printable.
        stderr: String,
    },
    /// Output cannot be appended to the log file.
    #[error("cannot append {stream} to {}", path.display())]
    LogFile {
        /// The output: `stdout` or `stderr`.
        stream: &'static str,
        /// The path in the request.
        path: PathBuf,
        source: io::Error,
    },
    /// The logger cannot be run, or did not become ready.
    #[error("cannot run the logger {}", program.display())]
    Logger {
        /// The path in the request.
        program: PathBuf,
        source: io::Error,
    },
    /// The path leads to something that is no FIFO.
    #[error("{stream} is {path}, which is not a FIFO")]
    NotFifo {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// The path in the request.
        path: PathBuf,
    },
    /// The FIFO cannot be opened.
    #[error("cannot open {path} as {stream}")]
    Open {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// The path in the request.
        path: PathBuf,
        source: io::Error,
    },
}

impl Coded for StdioError {
    fn code(&self) -> ErrorCode {
        match self {
            // Not Unimplemented: on that containerd 2.x repeats the request in an older dialect.
            Self::Scheme { .. } | Self::TwoLoggers { .. } | Self::NotFifo { .. } => {
                ErrorCode::InvalidArgument
            }
            Self::Open { source, .. } | Self::Logger { source, .. }
                if source.kind() == io::ErrorKind::NotFound =>
            {
                ErrorCode::NotFound
            }
            Self::Open { .. } | Self::Logger { .. } | Self::LogFile { .. } => ErrorCode::Internal,
        }
    }
}

/// The FIFO that a client writes.
#[derive(Debug)]
pub(crate) struct InputFifo {
    pub(super) reader: pipe::Receiver,
    path: PathBuf,
    /// The shim's own writing end: without it a client that disconnects would be the end of the file.
    /// Dropped by `CloseIO`.
    pub(super) writer: Option<File>,
}

impl InputFifo {
    /// Opens the reading end, without waiting for a client.
    ///
    /// # Errors
    /// [`StdioError`], naming the path.
    pub(crate) fn open(path: &Path) -> Result<Self, StdioError> {
        let reader = open("stdin", path, OpenOptions::new().read(true))?;
        let reader = pipe::Receiver::from_file(reader).map_err(|source| StdioError::Open {
            stream: "stdin",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            reader,
            path: path.to_owned(),
            writer: None,
        })
    }

    /// Opens the shim's own writing end.
    pub(super) fn hold(&mut self) -> Result<(), StdioError> {
        self.writer = Some(open("stdin", &self.path, OpenOptions::new().write(true))?);
        Ok(())
    }
}

/// A FIFO that a client reads.
#[derive(Debug)]
pub(crate) struct OutputFifo {
    pub(super) stream: &'static str,
    pub(super) writer: pipe::Sender,
    /// The shim's own reading end: with it a client may disconnect and come back, and the FIFO's content
    /// stays there until somebody reads it.
    pub(super) reader: Option<File>,
}

impl OutputFifo {
    /// Opens both ends, without waiting for a client.
    ///
    /// # Errors
    /// [`StdioError`], naming the path.
    pub(crate) fn open(stream: &'static str, path: &Path) -> Result<Self, StdioError> {
        // In this order: opening a FIFO for writing fails as long as the FIFO has no reader.
        let reader = open(stream, path, OpenOptions::new().read(true))?;
        let writer = open(stream, path, OpenOptions::new().write(true))?;
        let writer = pipe::Sender::from_file(writer).map_err(|source| StdioError::Open {
            stream,
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            stream,
            writer,
            reader: Some(reader),
        })
    }

    /// The writing end of a pipe, in place of a FIFO: the reader of a pipe does not come back.
    pub(super) fn of_pipe(stream: &'static str, pipe: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            stream,
            writer: pipe::Sender::from_owned_fd(pipe)?,
            reader: None,
        })
    }
}

fn open(stream: &'static str, path: &Path, options: &mut OpenOptions) -> Result<File, StdioError> {
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
    let error = |source| StdioError::Open {
        stream,
        path: path.to_owned(),
        source,
    };
    let file = options
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(error)?;
    if file.metadata().map_err(error)?.file_type().is_fifo() {
        return Ok(file);
    }
    Err(StdioError::NotFifo {
        stream,
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;

    #[tokio::test]
    async fn what_is_no_fifo_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = OutputFifo::open("stderr", &file).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        let error = InputFifo::open(&dir.path().join("absent")).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NotFound);
        let directory = OutputFifo::open("stdout", dir.path()).unwrap_err();
        assert_eq!(directory.code(), ErrorCode::InvalidArgument);
    }

    #[test]
    fn every_error_has_its_code() {
        let (stream, path) = ("stdout", || PathBuf::from("/a"));
        let (absent, denied) = (io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied);
        let open = |kind: io::ErrorKind| StdioError::Open {
            stream,
            path: path(),
            source: kind.into(),
        };
        let logger = |kind: io::ErrorKind| StdioError::Logger {
            program: path(),
            source: kind.into(),
        };
        expect_codes([
            (
                StdioError::Scheme {
                    stream,
                    uri: "a".into(),
                },
                ErrorCode::InvalidArgument,
            ),
            (
                StdioError::TwoLoggers {
                    stdout: "a".into(),
                    stderr: "b".into(),
                },
                ErrorCode::InvalidArgument,
            ),
            (
                StdioError::NotFifo {
                    stream,
                    path: path(),
                },
                ErrorCode::InvalidArgument,
            ),
            (open(absent), ErrorCode::NotFound),
            (logger(absent), ErrorCode::NotFound),
            (open(denied), ErrorCode::Internal),
            (logger(denied), ErrorCode::Internal),
            (
                StdioError::LogFile {
                    stream,
                    path: path(),
                    source: absent.into(),
                },
                ErrorCode::Internal,
            ),
        ]);
    }
}
