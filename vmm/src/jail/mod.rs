//! The process jail: what is left to a guest that has taken over its VMM.
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
//!  ├──────────────────────────────────────────────►│ 6  the label of the spec, its user where that is enough,
//!  │                                               │    file capabilities as the spec has them, no new privileges
//!                                                  │ 7  reads back that all of this is true
//!                                                  │ 8  Landlock, where the host has it
//! ```
//!
//! The order matters. The mount namespace belongs to the *initial* user namespace, so that a VMM with
//! all capabilities of its own user namespace still can't mount or unmount anything: hence the user
//! namespace comes last. The identity map is what lets files of every owner be served; uid 0 in it is
//! the host's uid 0 without a capability outside, which is why no proc, sysfs or cgroup file may be in reach:
//! the tree holds none, and the one /proc is `subset=pid` and read-only.
//!
//! From here on the VMM opens no path of its own: the tree belongs to the tenant.

mod check;
mod inherited;
mod label;
mod landlock;
mod limits;
mod merging;
mod privileges;
mod speculation;
mod tree;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use wasmvm_protocol::control::{self, BootConfig, ControlError, FromVmm, ToVmm};

pub use landlock::Landlock;
pub use limits::{GUEST_FDS_MAX, OWN_FDS_MAX, close_unknown_fds};

/// What the rest of the VMM gets out of the jail.
#[derive(Debug)]
pub struct Jail {
    /// `/proc/self/fd` of this process, opened `O_PATH`: the file server turns its `O_PATH`
    /// descriptors into open files by it.
    pub proc_self_fd: OwnedFd,
    /// Descriptors that the guest may make the file server hold, at most [`GUEST_FDS_MAX`].
    pub guest_fds: u64,
    /// What Landlock adds on this host.
    pub landlock: Landlock,
}

/// Why the jail could not be closed.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A system call failed.
    #[error("jail: cannot {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The control socket failed while waiting for the identity maps.
    #[error("jail: waiting for the identity maps")]
    Control(#[source] ControlError),
    /// Something else than [`ToVmm::MapsWritten`] came, or the end of the control socket.
    #[error("jail: expected MapsWritten, got {0}")]
    Unexpected(String),
    /// A label that the host cannot give.
    #[error("jail: cannot take the label {label:?} by {file}")]
    Label {
        /// The AppArmor profile or SELinux label of the spec.
        label: String,
        /// Below /proc/self/attr.
        file: &'static str,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// Every step succeeded and still something is not as meant.
    #[error("jail: {what} is {found:?}, meant was {meant:?}")]
    NotAsMeant {
        /// Which property.
        what: &'static str,
        /// As read back.
        found: String,
        /// As it must be.
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

/// Closes the jail round this process, whose working directory is the root of a mount, as tightly as
/// the role allows. From here on the process is what the credentials say.
///
/// Needs root, and a process of one thread that was started in PID and mount namespaces of its own.
/// Unknown descriptors are closed before, by [`close_unknown_fds`].
///
/// # Errors
/// [`JailError`]. The process is then half jailed and must end.
pub fn close(control: BorrowedFd<'_>, config: &BootConfig) -> Result<Jail, JailError> {
    let credentials = &config.credentials;
    let labels = label::open(credentials)?;
    let proc_root = tree::detached_proc()?;
    let proc_self_fd = tree::proc_self_fd(&proc_root)?;
    inherited::protect(&proc_root)?;
    tree::make_root()?;
    let guest_fds = limits::set(config.role)?;
    speculation::forbid()?;
    merging::forbid().step("turn the merging of memory pages off")?;
    privileges::leave_session_keyring()?;
    privileges::enter_user_namespace()?;
    await_maps(control)?;
    labels.take()?;
    privileges::become_server(credentials)?;
    limits::forbid_dumps()?;
    check::all(&proc_root, credentials)?;
    let landlock = landlock::restrict(Path::new("/")).step("restrict itself by Landlock")?;
    check::executable_out_of_reach(&proc_self_fd, landlock)?;
    Ok(Jail {
        proc_self_fd,
        guest_fds,
        landlock,
    })
}

fn await_maps(control: BorrowedFd<'_>) -> Result<(), JailError> {
    control::tell(control, &FromVmm::NeedMaps).map_err(JailError::Control)?;
    match control::recv::<ToVmm>(control).map_err(JailError::Control)? {
        Some((ToVmm::MapsWritten, _)) => Ok(()),
        Some((other, _)) => Err(JailError::Unexpected(format!("{other:?}"))),
        None => Err(JailError::Unexpected("end of file".into())),
    }
}
