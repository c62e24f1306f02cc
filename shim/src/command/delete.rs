//! `delete`: undo a task from outside.
//!
//! containerd runs `delete` after *every* task, crashed or not, for that task's id only; the task's daemon may still
//! be alive. The journal has the steps to undo.

use std::io;

use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message as _, MessageField};
use wasmvm_protocol::agent::containerd::api::DeleteResponse;

use super::args::Args;
use super::{bootstrap, socket};
use crate::cleanup::{self, CleanupError, Outcome};
use crate::journal;

/// Why a task could not be deleted from outside.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeleteError {
    /// There is neither `-bundle` nor a working directory.
    #[error("cannot find the bundle: -bundle is missing, and so is the working directory")]
    Bundle(#[source] io::Error),
    /// A step could not be undone, and something is left.
    #[error(transparent)]
    Cleanup(#[from] CleanupError),
    /// The reply cannot be encoded.
    #[error("cannot encode the reply to delete")]
    Encode(#[source] protobuf::Error),
}

/// Removes everything that is left of the task and returns the reply to print.
pub(super) fn delete(args: &Args) -> Result<Vec<u8>, DeleteError> {
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().map_err(DeleteError::Bundle)?,
    };
    // Standard error would become part of the reply.
    crate::log::init(&bundle, &args.id, args.debug);
    let root = journal::root_of(&args.namespace, &args.id);
    let outcome = cleanup::undo_of_bundle(root, &args.namespace, &args.id, &bundle);
    // The socket was noted before the daemon ran; without a note `start` itself was killed, and the name is known.
    let path = socket::noted(&bundle).unwrap_or_else(|| {
        socket::path(
            bootstrap::SOCKET_DIR,
            &args.address,
            &args.namespace,
            &args.id,
        )
    });
    socket::remove_dead(&path);
    encode(&outcome?)
}

fn encode(outcome: &Outcome) -> Result<Vec<u8>, DeleteError> {
    DeleteResponse {
        pid: outcome.pid,
        exit_status: outcome.exit.status,
        exited_at: MessageField::some(timestamp(outcome.exit.exited_at_ns)),
        ..Default::default()
    }
    .write_to_bytes()
    .map_err(DeleteError::Encode)
}

fn timestamp(ns: u64) -> Timestamp {
    const NS_PER_S: u64 = 1_000_000_000;
    Timestamp {
        // Both fit: 2^64 ns are 584 years, and the remainder is below 10^9.
        seconds: i64::try_from(ns / NS_PER_S).unwrap_or_default(),
        nanos: i32::try_from(ns % NS_PER_S).unwrap_or_default(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::ExitRecord;

    #[test]
    fn golden_reply() {
        let outcome = Outcome {
            pid: 300,
            exit: ExitRecord {
                status: 137,
                exited_at_ns: 1_000_000_002,
            },
        };
        let golden = b"\x08\xac\x02\x10\x89\x01\x1a\x04\x08\x01\x10\x02";
        assert_eq!(encode(&outcome).unwrap(), golden);
    }
}
