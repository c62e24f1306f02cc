//! The parts of an exit that init's watcher and the execs' watchers share.

use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use wasmvm_protocol::agent::containerd::events::task::TaskExit;

use super::{Exit, Process, Task};
use crate::cleanup::STATUS_KILLED;
use crate::stdio::Pumps;

/// Whether a program was ended by SIGKILL, perhaps a kernel's, or with its VM.
pub(super) fn is_kill(reported: Option<u32>) -> bool {
    reported.is_none_or(|status| status == STATUS_KILLED)
}

pub(super) async fn finish_output(process: &Process, pumps: &mut Pumps) {
    if !pumps.drain().await {
        let name = process.name();
        tracing::warn!(name, "the client did not read all output in time");
    }
}

pub(super) fn exit_event(task: &Task, id: &str, pid: u32, exit: Exit) -> TaskExit {
    TaskExit {
        container_id: task.order.id.clone(),
        id: id.to_owned(),
        pid,
        exit_status: exit.status,
        exited_at: MessageField::some(Timestamp::from(exit.at)),
        ..Default::default()
    }
}
