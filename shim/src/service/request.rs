//! Requests of containerd, parsed once into the types that the tasks use.

use wasmvm_protocol::agent::containerd::api as pb;

use crate::bundle::{PROCESS_TYPE_URL, ProcessSpec};
use crate::error::{ErrorCode, Refusal};
use crate::stdio::StdioNames;
use crate::task::{ExecOrder, TaskOrder};
use crate::workload::WorkloadOrder;

/// Parses a Create into the order of a task in `namespace`.
pub(super) fn order(namespace: &str, request: pb::CreateTaskRequest) -> Result<TaskOrder, Refusal> {
    let refused = |sentence: String| Err(Refusal::say(ErrorCode::InvalidArgument, sentence));
    if !request.checkpoint.is_empty() {
        let checkpoint = request.checkpoint;
        return refused(format!(
            "checkpoint is {checkpoint:?}; restoring is not supported yet"
        ));
    }
    let stdio = stdio(
        request.terminal,
        request.stdin,
        request.stdout,
        request.stderr,
    );
    Ok(TaskOrder {
        workload: WorkloadOrder {
            namespace: namespace.to_owned(),
            id: request.id,
            bundle: request.bundle.into(),
            rootfs: request.rootfs,
            options: request.options.into_option(),
        },
        stdio,
        terminal: request.terminal,
    })
}

/// A terminal has one output: where its errors should go is ignored, as by runc's shim (containerd's own
/// clients name a FIFO all the same).
fn stdio(terminal: bool, stdin: String, stdout: String, stderr: String) -> StdioNames {
    StdioNames {
        stdin,
        stdout,
        stderr: if terminal { String::new() } else { stderr },
    }
}

/// Parses an Exec, whose spec is an OCI process.
pub(super) fn exec_order(request: pb::ExecProcessRequest) -> Result<ExecOrder, Refusal> {
    let refused = |sentence: String| Refusal::say(ErrorCode::InvalidArgument, sentence);
    let spec = request
        .spec
        .into_option()
        .ok_or_else(|| refused("the exec has no spec".into()))?;
    if spec.type_url != PROCESS_TYPE_URL {
        let sentence = format!(
            "the spec of the exec is of type {:?}, not {PROCESS_TYPE_URL}",
            spec.type_url
        );
        return Err(refused(sentence));
    }
    let stdio = stdio(
        request.terminal,
        request.stdin,
        request.stdout,
        request.stderr,
    );
    Ok(ExecOrder {
        id: request.exec_id,
        spec: ProcessSpec::parse(&spec.value)?,
        stdio,
        terminal: request.terminal,
    })
}
