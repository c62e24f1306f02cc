//! The file server's process: a child of the VMM, made when the jail is closed and before either process becomes
//! the jail's inmate.
#![allow(unsafe_code, reason = "fork(2), and closing of descriptors")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use wasmvm_protocol::control::Credentials;

use super::message::{self, BYTES_MAX};
use super::serve::serve;
use super::{FileServer, Tree, pair};
use crate::jail::{Inmate, Jail, JailError};
use crate::report::{note, sentence};
use crate::seccomp::{self, SeccompError, Thread};

/// The process's name in `/proc/PID/comm`.
const NAME: &CStr = c"wasmvm-files";
/// First message of a file server that is ready; any other first message is the reason why it cannot serve.
const READY: &[u8] = b"ready";
/// Exit status of a file server that could not serve.
const FAILED_STATUS: libc::c_int = 1;

/// Why there is no file server.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No socket, no process, or the socket failed before the first message.
    #[error("file server: cannot {step}")]
    Os {
        /// Step of the start that failed.
        step: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The process reported why it cannot serve, or exited without a report.
    #[error("file server: {0}")]
    Failed(String),
}

/// Why the process cannot serve: what the first message says.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    /// The jail could not be entered.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The list of system calls could not be installed.
    #[error(transparent)]
    Confine(#[from] SeccompError),
    /// The root of the tree could not be opened.
    #[error("cannot open the tree")]
    Tree(#[source] io::Error),
    /// The socket to the VMM failed.
    #[error("the socket to the VMM")]
    Socket(#[source] io::Error),
}

/// A file server that is entering its jail, or has entered it: both processes start at the same time.
#[derive(Debug)]
pub struct Starting {
    socket: OwnedFd,
}

/// Starts the process, with `credentials`. The calling process must have one thread, the caller's.
///
/// # Errors
/// [`StartError::Os`].
pub fn start(jail: &Jail, credentials: &Credentials) -> Result<Starting, StartError> {
    let failed = |step| move |source| StartError::Os { step, source };
    let (socket, server) = pair().map_err(failed("make its socket"))?;
    // SAFETY: there is no other thread, so that the child may do what this process may.
    match unsafe { libc::fork() } {
        -1 => Err(failed("start its process")(io::Error::last_os_error())),
        0 => live(jail, credentials, &server),
        _ => Ok(Starting { socket }),
    }
}

impl Starting {
    /// Waits until the file server is confined and can serve.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn ready(self) -> Result<FileServer, StartError> {
        let mut bytes = vec![0; BYTES_MAX];
        let step = "hear whether it is ready";
        let (length, _no_file) = message::receive(&self.socket, &mut bytes)
            .map_err(|source| StartError::Os { step, source })?;
        match bytes.get(..length) {
            Some(READY) => Ok(FileServer::new(self.socket)),
            Some([]) | None => Err(StartError::Failed("the process has ended".into())),
            Some(reason) => Err(StartError::Failed(
                String::from_utf8_lossy(reason).into_owned(),
            )),
        }
    }
}

/// The child's whole life. The VMM's descriptors, the control socket among them, are closed and never used.
fn live(jail: &Jail, credentials: &Credentials, socket: &OwnedFd) -> ! {
    std::panic::set_hook(Box::new(|panic| {
        note(&format!("the file server has a bug: {panic}").replace('\n', " "));
        std::process::exit(FAILED_STATUS)
    }));
    // A name that is not taken changes nothing.
    let _unnamed = rustix::thread::set_name(NAME);
    let status = match serve_in(jail, credentials, socket) {
        Ok(()) => 0,
        Err(error) => {
            let reason = sentence(&error);
            note(&format!("file server: {reason}"));
            // A VMM that has exited needs no reason.
            let _gone = message::send(socket, reason.as_bytes(), None);
            FAILED_STATUS
        }
    };
    std::process::exit(status)
}

fn serve_in(jail: &Jail, credentials: &Credentials, socket: &OwnedFd) -> Result<(), ServeError> {
    // SAFETY: all that is used from here on is the jail, the socket and what is opened below; the process ends
    // without a drop of what the VMM owns.
    unsafe { jail.close_all_but(&[socket.as_fd()]) }?;
    let inside = jail.enter(Inmate::FileServer(credentials))?;
    let tree = Tree::new(Path::new("/"), inside.proc_self_fd, inside.guest_fds)
        .map_err(ServeError::Tree)?;
    seccomp::enable()?;
    seccomp::confine(Thread::FileServer)?;
    message::send(socket, READY, None).map_err(ServeError::Socket)?;
    serve(socket, &tree).map_err(ServeError::Socket)
}
