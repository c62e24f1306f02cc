//! The tests check themselves: the same pods with runc, which is known to be right.

use wasmvm_tests::containerd::Version;

use super::walk::main_things;
use super::{RUNC, on, scenarios};

#[test]
fn the_main_things_of_a_pod_of_runc_on_1_6() {
    on(Version::Installed, RUNC, main_things);
}

/// The tests that `make pods` runs and `make test` does not.
mod more {
    use super::*;

    #[test]
    fn the_main_things_of_a_pod_of_runc_on_1_7() {
        on(Version::V1_7, RUNC, main_things);
    }

    #[test]
    fn the_main_things_of_a_pod_of_runc_on_2() {
        on(Version::V2, RUNC, main_things);
    }

    #[test]
    fn two_pods_of_runc_are_apart() {
        on(Version::Installed, RUNC, scenarios::two_pods);
    }

    #[test]
    fn a_pod_of_runc_may_be_in_the_hosts_network() {
        on(Version::Installed, RUNC, scenarios::host_network);
    }

    #[test]
    fn a_pod_of_runc_has_a_network_with_its_parameters() {
        on(Version::Installed, RUNC, scenarios::own_network);
    }

    #[test]
    fn a_log_of_runc_is_rotated() {
        on(Version::Installed, RUNC, scenarios::log_rotation);
    }

    #[test]
    fn limits_of_runc_change_while_a_container_runs() {
        on(Version::Installed, RUNC, scenarios::live_limits);
    }

    #[test]
    fn volumes_of_runc_are_live() {
        on(Version::Installed, RUNC, scenarios::volumes);
    }

    #[test]
    fn a_pod_of_runc_lives_through_upgrades_of_containerd() {
        on(Version::Installed, RUNC, scenarios::upgrades);
    }

    #[test]
    fn a_killed_container_of_runc_leaves_its_siblings_alone() {
        on(Version::Installed, RUNC, scenarios::container_killed);
    }

    #[test]
    fn a_pod_of_runc_whose_own_process_was_killed_is_removed() {
        on(Version::Installed, RUNC, scenarios::sandbox_killed);
    }

    #[test]
    fn a_container_of_runc_without_memory_is_oom_killed() {
        on(Version::Installed, RUNC, scenarios::out_of_memory);
    }

    #[test]
    fn a_container_of_runc_that_cannot_start_leaves_its_pod_ready() {
        on(Version::Installed, RUNC, scenarios::failed_start);
    }
}
