//! The messages, generated from `tests/proto/cri.proto`.

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
    include!(concat!(env!("OUT_DIR"), "/cri.rs"));
}

pub use generated::*;
