//! containerd's Task service, as the agent serves it, and the agent's own messages.
//!
//! The Task types are containerd's (`api/runtime/task/v3/shim.proto`), re-exported so that both ends
//! share one version. Streams are named in `stdin`, `stdout` and `stderr` by their token in decimal
//! ([`crate::stream::StreamHeader::token`]); empty means no stream (null device).

pub use containerd_shim_protos as containerd;

/// `type_url` of a [`Program`] in `CreateTaskRequest.options` and `ExecProcessRequest.spec`.
pub const PROGRAM_TYPE_URL: &str = "wasmvm.agent.v1.Program";
/// `type_url` of a [`Change`] in `UpdateTaskRequest.resources`.
pub const CHANGE_TYPE_URL: &str = "wasmvm.agent.v1.Change";
/// `type_url` of a [`Usage`] in `StatsResponse.stats`.
pub const USAGE_TYPE_URL: &str = "wasmvm.agent.v1.Usage";
/// `type_url` of an [`Instance`] in `ProcessInfo.info` of a `PidsResponse`.
pub const INSTANCE_TYPE_URL: &str = "wasmvm.agent.v1.Instance";
/// How an agent's refusal of Create begins when the artifact was made for another processor or by another
/// version: the shim has it compiled again, once.
pub const UNFIT: &str = "the compiled module does not fit this agent";

/// Largest ttrpc message of an agent, bytes: what the shim accepts, and what the agent keeps to.
///
/// The worst that protobuf makes of it is below 1 MiB: two bytes can become an empty `Thread` of 112, three
/// an unknown field of some 150.
pub const REPLY_BYTES_MAX: usize = 8 << 10;
/// Longest sentence of a refusal in it, bytes.
pub const SENTENCE_BYTES_MAX: usize = 4 << 10;

generated!(agent, agent_ttrpc);

pub use generated::agent::{
    Change, CompileRequest, CompileResponse, DeviceMount, Instance, ModuleKind, Program, Thread,
    Usage,
};
pub use generated::agent_ttrpc::{Compiler, CompilerClient, create_compiler};
