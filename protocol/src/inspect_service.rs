//! The service behind `wasmvm inspect`: a task's shim tells its tree ([`crate::inspect`]) on the socket on which
//! containerd asks.

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
    reason = "generated from inspect.proto"
)]
mod generated {
    pub mod inspect {
        include!(concat!(env!("OUT_DIR"), "/inspect.rs"));
    }
    pub mod inspect_ttrpc {
        use super::inspect;
        include!(concat!(env!("OUT_DIR"), "/inspect_ttrpc.rs"));
    }
}

pub use generated::inspect::{InspectRequest, InspectResponse};
pub use generated::inspect_ttrpc::{Inspect as InspectService, InspectClient, create_inspect};
