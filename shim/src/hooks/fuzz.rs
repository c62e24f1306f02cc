//! The time of a hook.

use super::run::{Call, Running};
use crate::bundle::{Hook, HookState, HookStatus, Stage};

/// Limits below this are not armed, seconds: they have nothing to show.
const SHORT_S: u64 = 1000;

/// Runs a harmless program in the hook's place, with the hook's own time.
///
/// # Panics
/// When that time cannot be waited for.
pub(crate) fn arm(hook: &Hook) {
    if hook.timeout.is_none_or(|timeout| timeout < SHORT_S) {
        return;
    }
    let hook = Hook {
        path: "/bin/true".into(),
        args: Vec::new(),
        env: Vec::new(),
        ..hook.clone()
    };
    let call = Call {
        stage: Stage::Poststop,
        index: 0,
        hook: &hook,
    };
    let state = HookState {
        oci_version: "1.0.2".into(),
        id: "fuzz".into(),
        status: HookStatus::Stopped,
        pid: None,
        bundle: "/".into(),
        annotations: std::collections::BTreeMap::new(),
    };
    let ended = Running::spawn(call, &state).and_then(|running| running.finish(None));
    assert!(ended.is_ok(), "{ended:?}");
}
