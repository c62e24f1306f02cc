//! The protocols that the shim, the VMM and the guest agent speak with each other.
//!
//! ```text
//! containerd ──ttrpc──► shim ──control (SEQPACKET, JSON)──► VMM ──virtio-vsock──► agent
//!                        └──────── ttrpc and byte streams, carried by the VMM ───────┘
//! ```
//!
//! * [`control`]: the messages on the socket pair between the shim and its VMM, and the socket itself.
//! * [`inspect`]: the live state of a task as a tree.
//! * [`inspect_service`] (feature `inspect`): how the tree is asked for.
//! * [`ports`]: the vsock ports of the guest.
//! * [`stream`]: the header that opens every stdio stream.
//! * [`slot`]: the read-only memory slot through which a module or an artifact reaches the guest.
//! * [`tree`]: what the file tree of a task never holds.
//! * [`agent`] (feature `agent`): containerd's Task service and the agent's own messages.
//! * `contract` (feature `contract`): what the agent's Task service promises the shim, for the tests of both.
//! * [`threads`] (feature `agent`): what the threads of a process do, of the VMM's and of a program's.
//!
//! The protocol belongs to neither end: no crate of ours stands below this one.
#![forbid(unsafe_code)]

/// The messages and the service that the build makes of a proto file, in a module `generated`.
#[cfg(any(feature = "agent", feature = "inspect"))]
macro_rules! generated {
    ($messages:ident, $service:ident) => {
        #[allow(
            missing_docs,
            nonstandard_style,
            unreachable_pub,
            unused,
            missing_debug_implementations,
            unused_qualifications,
            clippy::all,
            clippy::allow_attributes_without_reason,
            clippy::pedantic,
            clippy::unwrap_used,
            reason = "generated from a proto file"
        )]
        mod generated {
            pub mod $messages {
                include!(concat!(env!("OUT_DIR"), "/", stringify!($messages), ".rs"));
            }
            pub mod $service {
                use super::$messages;
                include!(concat!(env!("OUT_DIR"), "/", stringify!($service), ".rs"));
            }
        }
    };
}

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "contract")]
pub mod contract;
pub mod control;
mod error_chain;
pub mod inspect;
#[cfg(feature = "inspect")]
pub mod inspect_service;
pub mod ports;
pub mod slot;
pub mod stream;
#[cfg(feature = "agent")]
pub mod threads;
pub mod tree;

pub use error_chain::error_chain;
