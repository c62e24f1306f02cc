//! The control socket between the shim and its VMM.
//!
//! A `SOCK_SEQPACKET` socket pair, inherited by the VMM as descriptor [`CONTROL_FD`]. One packet is
//! one message in JSON; descriptors travel beside it (`SCM_RIGHTS`). The life of a VM:
//!
//! ```text
//! shim                                            VMM
//!  │ Boot {…} + kvm, kernel, initramfs              │
//!  ├───────────────────────────────────────────────►│ pivot_root, /proc, user namespace
//!  │                                       NeedMaps │
//!  │◄───────────────────────────────────────────────┤
//!  │ MapsWritten                                    │
//!  ├───────────────────────────────────────────────►│ drops capabilities, builds the VM
//!  │                                         Jailed │
//!  │◄───────────────────────────────────────────────┤ vCPU runs
//!  │ MapSlot {id, index} + file (before its use)    │
//!  ├───────────────────────────────────────────────►│
//!  │                              Done {id}, AgentReady
//!  │◄───────────────────────────────────────────────┤
//!  │ Connect {id, port} + one end of a socket pair  │
//!  ├───────────────────────────────────────────────►│ vsock connection to the guest's port
//!  │             Connected {id} or Refused {id, …}  │
//!  │◄───────────────────────────────────────────────┤
//!  │ Pause {id}, Resume {id}                        │
//!  ├───────────────────────────────────────────────►│ vCPUs out of the guest, workers parked
//!  │                                      Done {id} │
//!  │◄───────────────────────────────────────────────┤
//!  │ end of file                                    │ ends itself at once
//! ```
//!
//! Descriptors go one way only. The VMM answers by `write(2)`, which cannot carry any, and the shim makes
//! no room for them ([`hear`]): a VMM that was taken over has nothing to hand to its shim, which would
//! have to close it, and a file of a slow volume can take long to close.
//!
//! When the guest ends by itself the VMM sends [`FromVmm::GuestEnded`] and exits with status 1.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::inspect::Node;

/// The descriptor number under which the VMM inherits its end.
pub const CONTROL_FD: i32 = 3;
/// Largest control message, bytes.
pub const CONTROL_BYTES_MAX: usize = 16 * 1024;
/// Most descriptors beside one message.
pub const CONTROL_FDS_MAX: usize = 4;
/// Most bytes of the guest's console kept for [`FromVmm::GuestEnded`].
pub const CONSOLE_TAIL_BYTES_MAX: usize = 4096;

/// The purpose of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs a tenant's program; the working directory is its file tree, served by virtio-fs.
    Task,
    /// Compiles one module; the working directory is an empty directory, served to nobody.
    Compiler,
}

/// How to build the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// The purpose of the VM.
    pub role: Role,
    /// Guest RAM, MiB, a power of two: address space, touched on demand.
    pub ram_mib: u32,
    /// Back guest RAM by huge pages where the host offers them; off for small limits.
    pub huge_pages: bool,
    /// Forward the guest's early-printk console to standard error, line by line.
    pub console: bool,
    /// The identity with which the VMM touches the task's files.
    pub credentials: Credentials,
}

/// The capabilities that a file server may keep, capability n (`capabilities(7)`) as bit n: CHOWN, DAC_OVERRIDE,
/// DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID.
pub const FILE_CAPABILITIES: u64 = 0xdf;
/// Most supplementary groups of [`Credentials`].
pub const GROUPS_MAX: usize = 512;

/// The identity that a VMM has for the host's kernel while it serves files; by default root without any capability.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// User id, on the host.
    pub uid: u32,
    /// Group id, on the host.
    pub gid: u32,
    /// Supplementary groups, at most [`GROUPS_MAX`].
    pub groups: Vec<u32>,
    /// Capabilities out of [`FILE_CAPABILITIES`], in the VMM's own user namespace; other bits are not kept.
    pub capabilities: u64,
    /// The AppArmor profile that the VMM enters after its last mount.
    pub apparmor_profile: Option<String>,
    /// The SELinux label that the VMM takes at the same place.
    pub selinux_label: Option<String>,
}

/// From the shim to the VMM. The comment names the descriptors that travel beside the message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToVmm {
    /// First message. Descriptors: /dev/kvm, the kernel (ELF), the initramfs (cpio), both read-only.
    Boot(BootConfig),
    /// The user namespace's identity maps are written. No descriptor.
    MapsWritten,
    /// Map a file as a read-only slot ([`crate::slot`]), instead of what is there. One descriptor,
    /// opened read-only. Answered by [`FromVmm::Done`].
    MapSlot {
        /// The order's number, as in [`ToVmm::Connect`].
        id: u32,
        /// The slot's number, below [`crate::slot::SLOTS_MAX`].
        index: u32,
    },
    /// Stop the guest: when [`FromVmm::Done`] comes no vCPU runs and no device works. The control
    /// socket stays served. Not an error when the guest is stopped already. No descriptor.
    Pause {
        /// The order's number, as in [`ToVmm::Connect`].
        id: u32,
    },
    /// Let a stopped guest go on. Not an error when it runs. Answered by [`FromVmm::Done`].
    Resume {
        /// The order's number, as in [`ToVmm::Connect`].
        id: u32,
    },
    /// Connect a byte stream to a port of the guest. One descriptor: a stream socket.
    Connect {
        /// A number that the shim chose and no other connection has, named in the answer.
        id: u32,
        /// The vsock port of the guest.
        port: u32,
    },
    /// Connect to a port of the guest and write what the guest sends into a file. One descriptor, writable;
    /// bytes are appended at its current offset.
    Sink {
        /// The order's number, as in [`ToVmm::Connect`].
        id: u32,
        /// The vsock port of the guest.
        port: u32,
        /// The connection is cut when the guest sends more.
        bytes_max: u64,
    },
    /// Tell the state of the machine and its devices, of a stopped one too. Answered by [`FromVmm::Inspected`].
    /// No descriptor.
    Inspect {
        /// The order's number, as in [`ToVmm::Connect`].
        id: u32,
    },
}

/// From the VMM to the shim; never with descriptors. Untrusted as soon as the guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromVmm {
    /// The VMM is in its user namespace, waiting for the identity maps.
    NeedMaps,
    /// The jail is closed and the VM is built; the guest starts now.
    Jailed {
        /// The features of the guest's CPU, in hexadecimal: an artifact that was compiled for one CPU fits every CPU
        /// of the same text.
        cpu: String,
    },
    /// The state that [`ToVmm::Inspect`] asks for.
    Inspected {
        /// The number that the order had.
        id: u32,
        /// The machine and its devices; the whole message fits into [`CONTROL_BYTES_MAX`].
        state: Node,
    },
    /// The order is carried out.
    Done {
        /// The number that the order had.
        id: u32,
    },
    /// The guest listens on its ports.
    AgentReady {
        /// From the first vCPU entry, microseconds of the host's monotonic clock.
        boot_us: u64,
    },
    /// The guest accepted the connection.
    Connected {
        /// The number from [`ToVmm::Connect`] or [`ToVmm::Sink`].
        id: u32,
    },
    /// No connection came about.
    Refused {
        /// The number from [`ToVmm::Connect`] or [`ToVmm::Sink`].
        id: u32,
        /// The reason, in one sentence.
        reason: String,
    },
    /// The guest closed the sink's connection in order.
    SinkDone {
        /// The number from [`ToVmm::Sink`].
        id: u32,
        /// Bytes that were written to the file.
        bytes: u64,
    },
    /// The sink's connection was cut.
    SinkFailed {
        /// The number from [`ToVmm::Sink`].
        id: u32,
        /// The reason, in one sentence.
        reason: String,
    },
    /// Set-up failed before the guest ran; the VMM exits.
    BootFailed {
        /// The chain of errors in one sentence.
        reason: String,
    },
    /// The guest runs no more; the VMM exits.
    GuestEnded {
        /// The reason, in one sentence.
        reason: String,
        /// The last of the guest's console, at most [`CONSOLE_TAIL_BYTES_MAX`] bytes.
        console_tail: String,
    },
}

/// Why a message was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket failed; `WouldBlock` on a non-blocking one means try later.
    #[error("control socket")]
    Socket(#[source] io::Error),
    /// A message longer than [`CONTROL_BYTES_MAX`].
    #[error("control message of {0} bytes exceeds {CONTROL_BYTES_MAX}")]
    TooLong(usize),
    /// More descriptors than [`CONTROL_FDS_MAX`].
    #[error("control message with {0} descriptors; at most {CONTROL_FDS_MAX} are allowed")]
    TooManyFds(usize),
    /// Cut off by the kernel: longer, or with more descriptors, than the receiver accepts.
    #[error("control message arrived truncated")]
    Truncated,
    /// Not a message of this version.
    #[error("control message cannot be read: {text}")]
    Decode {
        /// The start of the message.
        text: String,
        /// The error of the JSON decoder.
        #[source]
        source: serde_json::Error,
    },
    /// A value that cannot be encoded.
    #[error("control message cannot be encoded")]
    Encode(#[source] serde_json::Error),
}

impl ControlError {
    /// Whether the call is to be repeated when the socket is ready.
    #[must_use]
    pub fn is_would_block(&self) -> bool {
        matches!(self, Self::Socket(err) if err.kind() == io::ErrorKind::WouldBlock)
    }
}

/// A new control socket: the shim's end and the VMM's, both close-on-exec.
///
/// # Errors
/// `socketpair(2)`'s.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(pair)
}

/// Sends one message with the descriptors that belong to it. Never raises `SIGPIPE`.
///
/// # Errors
/// [`ControlError`]; `EPIPE` when the other end is gone.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ControlError> {
    let bytes = encode(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CONTROL_FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(ControlError::TooManyFds(fds.len()));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
    .map_err(|errno| ControlError::Socket(errno.into()))
}

/// Sends one message of the VMM's, which has no descriptors. A process that has not left `SIGPIPE` to its
/// default, as Rust's have not, gets `EPIPE` when the other end is gone.
///
/// # Errors
/// [`ControlError`].
pub fn tell(socket: impl AsFd, message: &FromVmm) -> Result<(), ControlError> {
    let bytes = encode(message)?;
    // One call is one packet, whole or not at all (`unix(7)`, SOCK_SEQPACKET).
    rustix::io::write(socket, &bytes)
        .map(drop)
        .map_err(|errno| ControlError::Socket(errno.into()))
}

/// Receives one message of the VMM's; `None` at end of file. Descriptors beside it are not taken: the
/// kernel drops them before they have a number.
///
/// # Errors
/// [`ControlError`]; [`ControlError::Truncated`] when there were descriptors beside the message.
pub fn hear(socket: impl AsFd) -> Result<Option<FromVmm>, ControlError> {
    let mut bytes = vec![0; CONTROL_BYTES_MAX];
    let mut nothing = RecvAncillaryBuffer::default();
    let length = receive(socket, &mut bytes, &mut nothing)?;
    decode(bytes.get(..length).unwrap_or_default())
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ControlError> {
    let bytes = serde_json::to_vec(message).map_err(ControlError::Encode)?;
    if bytes.len() > CONTROL_BYTES_MAX {
        return Err(ControlError::TooLong(bytes.len()));
    }
    Ok(bytes)
}

/// Receives one packet and what is beside it, both whole; answers with the packet's length.
fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
    ancillary: &mut RecvAncillaryBuffer<'_>,
) -> Result<usize, ControlError> {
    let mut parts = [IoSliceMut::new(bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut parts, ancillary, flags)
        .map_err(|errno| ControlError::Socket(errno.into()))?;
    let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    if received.flags.intersects(cut) {
        return Err(ControlError::Truncated);
    }
    Ok(received.bytes)
}

/// A packet of no bytes is the end of the file.
fn decode<T: DeserializeOwned>(text: &[u8]) -> Result<Option<T>, ControlError> {
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(text)
        .map(Some)
        .map_err(|source| ControlError::Decode {
            text: String::from_utf8_lossy(text).chars().take(80).collect(),
            source,
        })
}

/// Receives one message of the shim's with its descriptors (close-on-exec); `None` at end of file.
///
/// # Errors
/// [`ControlError`]; a message that is refused takes its descriptors with it.
pub fn recv<T: DeserializeOwned>(
    socket: impl AsFd,
) -> Result<Option<(T, Vec<OwnedFd>)>, ControlError> {
    let mut bytes = vec![0; CONTROL_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CONTROL_FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let length = receive(socket, &mut bytes, &mut ancillary)?;
    let fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let message = decode(bytes.get(..length).unwrap_or_default())?;
    Ok(message.map(|message| (message, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    fn connect() -> ToVmm {
        ToVmm::Connect {
            id: 7,
            port: crate::ports::STREAM_PORT,
        }
    }

    #[test]
    fn a_message_brings_its_descriptors() {
        let (shim, vmm) = pair().unwrap();
        let mut file = File::from(rustix_memfd());
        file.write_all(b"inside").unwrap();
        send(&shim, &connect(), &[file.as_fd()]).unwrap();
        let (message, mut fds) = recv::<ToVmm>(&vmm).unwrap().unwrap();
        assert_eq!(message, connect());
        let mut other = File::from(fds.pop().unwrap());
        other.rewind().unwrap();
        let mut text = String::new();
        other.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), fds.len()), ("inside", 0));
    }

    #[test]
    fn the_end_of_the_peer_is_the_end_of_the_file() {
        let (shim, vmm) = pair().unwrap();
        drop(shim);
        assert!(recv::<ToVmm>(&vmm).unwrap().is_none());
        assert!(matches!(
            tell(&vmm, &FromVmm::NeedMaps),
            Err(ControlError::Socket(_))
        ));
    }

    #[test]
    fn what_is_too_long_or_foreign_is_refused() {
        let (shim, vmm) = pair().unwrap();
        let reason = "x".repeat(CONTROL_BYTES_MAX);
        let long = tell(&vmm, &FromVmm::BootFailed { reason });
        assert!(matches!(long, Err(ControlError::TooLong(_))));
        send(&vmm, &"what is this", &[]).unwrap();
        let foreign = hear(&shim).unwrap_err().to_string();
        assert!(foreign.contains("what is this"), "{foreign}");
    }

    #[test]
    fn the_vmm_has_no_descriptors_to_give() {
        let (shim, vmm) = pair().unwrap();
        tell(&vmm, &FromVmm::Done { id: 1 }).unwrap();
        assert_eq!(hear(&shim).unwrap(), Some(FromVmm::Done { id: 1 }));
        // One that was taken over, and has a system call for it.
        let (mut reader, writer) = io::pipe().unwrap();
        send(&vmm, &FromVmm::Done { id: 2 }, &[writer.as_fd()]).unwrap();
        drop(writer);
        assert!(matches!(hear(&shim), Err(ControlError::Truncated)));
        // Nobody holds the other end any more.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        tell(&vmm, &FromVmm::Done { id: 3 }).unwrap();
        assert_eq!(hear(&shim).unwrap(), Some(FromVmm::Done { id: 3 }));
    }

    #[test]
    fn golden_messages() {
        let boot = ToVmm::Boot(BootConfig {
            role: Role::Task,
            ram_mib: 256,
            huge_pages: false,
            console: true,
            credentials: Credentials {
                groups: vec![5],
                ..Credentials::default()
            },
        });
        assert_eq!(
            serde_json::to_string(&boot).unwrap(),
            concat!(
                r#"{"boot":{"role":"task","ram_mib":256,"huge_pages":false,"console":true,"credentials":"#,
                r#"{"uid":0,"gid":0,"groups":[5],"capabilities":0,"apparmor_profile":null,"selinux_label":null}}}"#
            )
        );
        assert_eq!(
            serde_json::to_string(&connect()).unwrap(),
            r#"{"connect":{"id":7,"port":1025}}"#
        );
    }

    fn rustix_memfd() -> OwnedFd {
        rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
    }
}
