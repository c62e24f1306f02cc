//! Forbids speculation across indirect branches and stores, where the host leaves that choice to its
//! processes (Linux Documentation/userspace-api/spec_ctrl.rst).
//!
//! A VMM reads bytes of a hostile guest, next to memory that the guest must not see; so the VMM's threads take
//! the mitigations that cost the rest of the host too much. A vCPU has its own controls in the guest.

use rustix::process::{
    SpeculationFeature, SpeculationFeatureControl as Control, SpeculationFeatureState as State,
    control_speculative_feature, speculative_feature_state,
};

use super::{JailError, Step};

const FEATURES: [SpeculationFeature; 2] = [
    SpeculationFeature::SpeculativeStoreBypass,
    SpeculationFeature::IndirectBranchSpeculation,
];

/// Forbids it for this thread and all threads that the thread will start, for ever.
pub(super) fn forbid() -> Result<(), JailError> {
    for feature in FEATURES.into_iter().filter(is_a_choice) {
        control_speculative_feature(feature, Control::FORCE_DISABLE)
            .step("forbid speculation across indirect branches and stores")?;
    }
    Ok(())
}

/// Whether the kernel can switch the feature off for a process, and has not yet for ever. A kernel that does not
/// know the feature has no switch either.
fn is_a_choice(feature: &SpeculationFeature) -> bool {
    let state = speculative_feature_state(*feature).ok().flatten();
    state.is_some_and(|state| state.contains(State::PRCTL) && !state.contains(State::FORCE_DISABLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is a thread's own.
    #[test]
    fn what_can_be_forbidden_is() {
        let choices: Vec<_> = FEATURES.into_iter().filter(is_a_choice).collect();
        forbid().unwrap();
        for feature in choices {
            let state = speculative_feature_state(feature).unwrap().unwrap();
            assert!(
                state.contains(State::FORCE_DISABLE),
                "{feature:?}: {state:?}"
            );
        }
        // Twice is once.
        forbid().unwrap();
    }
}
