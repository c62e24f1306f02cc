//! vsock addresses and ports. All connections but one are made by the host.

/// The guest's vsock context id. One guest per VMM, so it need not be unique on the host.
pub const GUEST_CID: u32 = 3;

/// ttrpc: containerd's Task service; in the compiler VM the Compiler service.
pub const AGENT_PORT: u32 = 1024;

/// Stdio streams; each connection opens with a [`crate::stream::StreamHeader`].
pub const STREAM_PORT: u32 = 1025;

/// Compiler VM only: delivers the artifact's bytes to one connection, then closes it.
pub const ARTIFACT_PORT: u32 = 1026;

/// On the host's context id (2). The guest dials it once when it listens on its own ports; the VMM
/// resets the connection and reports [`crate::control::FromVmm::AgentReady`]. Every other
/// guest-initiated connection is reset without meaning anything.
pub const READY_PORT: u32 = 1024;
