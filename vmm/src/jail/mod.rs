//! The process jail: it bounds a guest that has taken over its VMM, or the VMM's file server.
//!
//! ```text
//! shim, root                                    VMM, PID 1 of its own PID namespace
//!  │ clone3(NEWPID|NEWIPC|NEWUTS), exec            │ cwd = root of the assembled file tree
//!  ├──────────────────────────────────────────────►│ 1  close every descriptor but the known ones
//!  │                                               │ 2  a detached /proc; inherited files' mounts read-only
//!  │                                               │ 3  the tree becomes /, all other mounts go
//!  │                                               │ 4  limits, keyring, no core dump, SIGTERM, no speculation
//!  │                                      NeedMaps │ 5  a user namespace
//!  │◄──────────────────────────────────────────────┤
//!  │ MapsWritten: 0 0 4294967295                   │
//!  ├──────────────────────────────────────────────►│ 6  the label of the spec
//!                                                  │
//!                          VMM                     ├── fork ──► file server
//!   7  nobody's user, no capability                │            the user of the spec, where that is enough, and
//!                                                  │            its file capabilities; no descriptor of the VMM's
//!   8  no new privileges                           │
//!   9  each reads back that all of this is true    │
//!  10  Landlock, where the host has it: no file    │            the files of the tree
//! ```
//!
//! [`close`] does 1 to 6, [`Jail::enter`] the rest. The order matters. The mount namespace belongs to the
//! *initial* user namespace, so that a process with all capabilities of its own user namespace still can't mount
//! or unmount anything: hence the user namespace comes last. By the identity map files of every owner can be
//! served; uid 0 in the map is the host's uid 0 without a capability outside, which is why no proc, sysfs or cgroup
//! file may be in reach: the tree holds none, and the one /proc is `subset=pid` and read-only.
//!
//! After the last step only the file server opens paths, in the tree, which belongs to the tenant.

mod check;
mod inherited;
mod label;
mod landlock;
mod limits;
mod merging;
mod privileges;
mod speculation;
mod syscalls;
mod tree;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use wasmvm_protocol::control::{self, BootConfig, ControlError, Credentials, FromVmm, ToVmm};

pub use landlock::Landlock;
pub use limits::{GUEST_FDS_MAX, OWN_FDS_MAX};
pub use syscalls::close_unknown_fds;

/// User and group of every VMM, which have no name and own nothing: in a range that no tool gives out (systemd's
/// `UIDS-GIDS.md`, "unused"; the bytes spell "wasm").
const VMM_ID: u32 = 0x7761_736d;

/// A closed jail, which no inmate has entered yet.
#[derive(Debug)]
pub struct Jail {
    proc_root: OwnedFd,
    guest_fds: u64,
}

/// The process that enters a jail.
#[derive(Clone, Copy, Debug)]
pub enum Inmate<'a> {
    /// The VMM: parses the guest's queues as a user that owns nothing, without a capability or a path.
    Vmm,
    /// The file server: opens the task's files with these credentials.
    FileServer(&'a Credentials),
}

impl Inmate<'_> {
    fn credentials(self) -> Credentials {
        match self {
            Self::Vmm => Credentials {
                uid: VMM_ID,
                gid: VMM_ID,
                ..Credentials::default()
            },
            Self::FileServer(credentials) => credentials.clone(),
        }
    }

    /// The inmate's place among the processes of the namespace, as a field of /proc/PID/status (`proc(5)`) and its
    /// value: the VMM is the first process, with which all others end, and the file server is the VMM's child.
    fn place(self) -> (&'static str, &'static str) {
        match self {
            Self::Vmm => ("NSpid", "1"),
            Self::FileServer(_) => ("PPid", "1"),
        }
    }

    /// The directory below which the inmate may open files; `None` when no file may be opened.
    fn files(self) -> Option<&'static Path> {
        match self {
            Self::Vmm => None,
            Self::FileServer(_) => Some(Path::new("/")),
        }
    }
}

/// Descriptors that the jail leaves to an inmate, and the state of Landlock.
#[derive(Debug)]
pub struct Inside {
    /// `/proc/self/fd` of the process, opened `O_PATH`: the file server turns its `O_PATH` descriptors into open
    /// files by it.
    pub proc_self_fd: OwnedFd,
    /// Descriptors that the guest may make the file server hold, at most [`GUEST_FDS_MAX`].
    pub guest_fds: u64,
    /// State of Landlock on this host.
    pub landlock: Landlock,
}

/// Why the jail could not be closed.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A system call failed.
    #[error("jail: cannot {step}")]
    Step {
        /// Step of closing or entering that failed.
        step: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The control socket failed while waiting for the identity maps.
    #[error("jail: waiting for the identity maps")]
    Control(#[source] ControlError),
    /// Something else than [`ToVmm::MapsWritten`] came, or the end of the control socket.
    #[error("jail: expected MapsWritten, got {0}")]
    Unexpected(String),
    /// The host cannot give the process a label of the spec.
    #[error("jail: cannot take the label {label:?} by {file}")]
    Label {
        /// The AppArmor profile or SELinux label of the spec.
        label: String,
        /// Name of the label's file below /proc/self/attr.
        file: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// Every step succeeded, and still a property of the process is not as meant.
    #[error("jail: {what} is {found:?}, meant was {meant:?}")]
    NotAsMeant {
        /// Name of the property.
        what: &'static str,
        /// Value as read back.
        found: String,
        /// Value that the property must have.
        meant: String,
    },
}

/// Names a failed step.
trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, JailError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, JailError> {
        self.map_err(|source| JailError::Step {
            step,
            source: source.into(),
        })
    }
}

/// Closes the jail round this process, whose working directory is the root of a mount, as tightly as the role
/// allows.
///
/// Needs root, and a process of one thread that was started in PID and mount namespaces of its own.
/// Unknown descriptors are closed before, by [`close_unknown_fds`].
///
/// # Errors
/// [`JailError`]. The process is then half jailed and must end.
pub fn close(control: BorrowedFd<'_>, config: &BootConfig) -> Result<Jail, JailError> {
    let labels = label::open(&config.credentials)?;
    let proc_root = tree::detached_proc()?;
    inherited::protect(&proc_root)?;
    tree::make_root()?;
    check::root_is_the_end()?;
    let guest_fds = limits::set(config.role)?;
    speculation::forbid()?;
    merging::forbid().step("turn the merging of memory pages off")?;
    privileges::leave_session_keyring()?;
    privileges::enter_user_namespace()?;
    await_maps(control)?;
    labels.take()?;
    Ok(Jail {
        proc_root,
        guest_fds,
    })
}

impl Jail {
    /// Makes this process the inmate, for ever. The process must have one thread.
    ///
    /// # Errors
    /// [`JailError`]. The process is then half jailed and must end.
    pub fn enter(&self, inmate: Inmate<'_>) -> Result<Inside, JailError> {
        let credentials = inmate.credentials();
        let proc_self_fd = tree::proc_self_fd(&self.proc_root)?;
        privileges::become_inmate(&credentials)?;
        limits::forbid_dumps()?;
        check::all(&self.proc_root, &credentials, inmate.place())?;
        let landlock = landlock::restrict(inmate.files()).step("restrict itself by Landlock")?;
        check::executable_out_of_reach(&proc_self_fd, landlock)?;
        Ok(Inside {
            proc_self_fd,
            guest_fds: self.guest_fds,
            landlock,
        })
    }
}

fn await_maps(control: BorrowedFd<'_>) -> Result<(), JailError> {
    control::tell(control, &FromVmm::NeedMaps).map_err(JailError::Control)?;
    match control::recv::<ToVmm>(control).map_err(JailError::Control)? {
        Some((ToVmm::MapsWritten, _)) => Ok(()),
        Some((other, _)) => Err(JailError::Unexpected(format!("{other:?}"))),
        None => Err(JailError::Unexpected("end of file".into())),
    }
}
