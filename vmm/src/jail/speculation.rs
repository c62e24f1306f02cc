//! No speculation across what the processor was told by others, where the host leaves that to its
//! processes (Linux Documentation/userspace-api/spec_ctrl.rst).
//!
//! A VMM reads what a hostile guest wrote, next to memory that the guest must not see; so its threads take
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

/// For this thread and all that it will start, for ever.
pub(super) fn forbid() -> Result<(), JailError> {
    for feature in FEATURES.into_iter().filter(is_a_choice) {
        control_speculative_feature(feature, Control::FORCE_DISABLE)
            .step("forbid speculation across indirect branches and stores")?;
    }
    Ok(())
}

/// Whether there is something to switch off, and a process may. A kernel that does not know the feature
/// has no switch either.
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
