//! The service behind `wasmvm inspect`: a task's shim tells its tree ([`crate::inspect`]) on the socket on which
//! containerd asks.

generated!(inspect, inspect_ttrpc);

pub use generated::inspect::{InspectRequest, InspectResponse};
pub use generated::inspect_ttrpc::{Inspect as InspectService, InspectClient, create_inspect};
