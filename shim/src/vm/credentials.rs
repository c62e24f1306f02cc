//! The credentials with which a VMM serves its task's files.
//!
//! A program under runc has its user, its groups and the capabilities of its spec, and the kernel decides
//! by them. Here the guest's kernel decides, but the guest's kernel may be taken over, and then only the
//! VMM's own rights are left. So the VMM's rights are the program's:
//!
//! * A bounding set with all capabilities for acting as others (containerd's default set is such a set): the VMM
//!   is root with the file capabilities of that set, because execs of other users may come.
//! * A lesser set (`drop: [ALL]`): the VMM *is* the program's user, with its groups, and the file capabilities
//!   that this program itself has. The host would refuse an exec as another user files that are the exec's own,
//!   so such an exec is refused by name.

use rustix::thread::CapabilitySet;
use wasmvm_protocol::control::{Credentials, FILE_CAPABILITIES, GROUPS_MAX};

use super::label::{self, LabelError};
use crate::bundle::{ProcessSpec, TaskSpec, User};
use crate::error::{Coded, ErrorCode};

/// The capabilities for creating and opening files as any user.
const ACT_FOR_OTHERS: u64 = CapabilitySet::DAC_OVERRIDE.bits()
    | CapabilitySet::FOWNER.bits()
    | CapabilitySet::SETUID.bits()
    | CapabilitySet::SETGID.bits();

/// Why a process cannot be served as its spec asks.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CredentialsError {
    /// A label is for a security module that the host lacks.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// The process has more groups than a message holds.
    #[error(
        "config.json: process.user.additionalGids has {0} groups; a task without CAP_SETGID may have {GROUPS_MAX}"
    )]
    Groups(usize),
    /// An exec is of another user, in a task that acts for its own user only.
    #[error(
        "the spec of the exec: process.user = {wanted} is refused: the capabilities of the container allow to act \
         as {own} only, with its groups; keep DAC_OVERRIDE, FOWNER, SETUID and SETGID for execs of others"
    )]
    OtherUser {
        /// The exec's user and group.
        wanted: String,
        /// The task's user and group.
        own: String,
    },
}

impl Coded for CredentialsError {
    fn code(&self) -> ErrorCode {
        ErrorCode::InvalidArgument
    }
}

/// The credentials for a task.
///
/// # Errors
/// [`CredentialsError`], but never [`CredentialsError::OtherUser`].
pub(crate) fn of_task(spec: &TaskSpec) -> Result<Credentials, CredentialsError> {
    label::check(&spec.labels)?;
    let (user, given) = (
        &spec.process.user,
        spec.process.capabilities.unwrap_or_default(),
    );
    let labels = Credentials {
        apparmor_profile: spec.labels.apparmor_profile.clone(),
        selinux_label: spec.labels.selinux_process.clone(),
        ..Credentials::default()
    };
    // The capabilities that root has: as whom the container may act.
    let others = given.of_user(0) & FILE_CAPABILITIES;
    if others & ACT_FOR_OTHERS == ACT_FOR_OTHERS {
        return Ok(Credentials {
            capabilities: others,
            ..labels
        });
    }
    let mut groups = user.additional_gids.clone();
    groups.sort_unstable();
    groups.dedup();
    if groups.len() > GROUPS_MAX {
        return Err(CredentialsError::Groups(groups.len()));
    }
    Ok(Credentials {
        uid: user.uid,
        gid: user.gid,
        groups,
        capabilities: given.of_user(user.uid) & FILE_CAPABILITIES,
        ..labels
    })
}

/// Checks that files can be served to an exec as its user and groups demand.
///
/// # Errors
/// [`CredentialsError::OtherUser`].
pub(crate) fn check_exec(spec: &TaskSpec, exec: &User) -> Result<(), CredentialsError> {
    let own = of_task(spec)?;
    let is_own_group = |gid: &u32| *gid == own.gid || own.groups.contains(gid);
    let serves = own.capabilities & ACT_FOR_OTHERS == ACT_FOR_OTHERS
        || (exec.uid == own.uid
            && exec.gid == own.gid
            && exec.additional_gids.iter().all(is_own_group));
    if serves {
        return Ok(());
    }
    let name = |uid, gid| format!("{uid}:{gid}");
    Err(CredentialsError::OtherUser {
        wanted: name(exec.uid, exec.gid),
        own: name(own.uid, own.gid),
    })
}

/// The capabilities that a program keeps: an exec whose spec has no set has its task's.
#[must_use]
pub(crate) fn of_program(spec: &TaskSpec, process: &ProcessSpec) -> u64 {
    let given = process.capabilities.or(spec.process.capabilities);
    given.unwrap_or_default().of_user(process.user.uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;
    use serde_json::{Value, json};

    const SIX: u64 = 0xdb;

    fn spec(user: &Value, names: &[&str]) -> TaskSpec {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("rootfs")).unwrap();
        let capabilities = json!({"bounding": names, "permitted": names, "effective": names});
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {"user": user, "args": ["/a"], "cwd": "/", "capabilities": capabilities},
            "root": {"path": "rootfs"},
        });
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        TaskSpec::load(directory.path()).unwrap()
    }

    const DEFAULT: [&str; 7] = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_KILL",
    ];

    fn user(uid: u32, gid: u32, groups: &[u32]) -> User {
        User {
            uid,
            gid,
            additional_gids: groups.to_vec(),
            umask: None,
        }
    }

    #[test]
    fn with_the_default_set_the_vmm_acts_for_everybody() {
        for given in [
            json!({"uid": 0, "gid": 0}),
            json!({"uid": 1000, "gid": 5, "additionalGids": [7]}),
        ] {
            let spec = spec(&given, &DEFAULT);
            let root = Credentials {
                capabilities: SIX,
                ..Credentials::default()
            };
            assert_eq!(of_task(&spec).unwrap(), root);
            check_exec(&spec, &user(4, 4, &[9])).unwrap();
        }
    }

    #[test]
    fn a_program_that_dropped_all_is_served_with_its_own_rights() {
        let given = json!({"uid": 1000, "gid": 5, "additionalGids": [7, 5, 7]});
        let spec = spec(&given, &[]);
        let own = Credentials {
            uid: 1000,
            gid: 5,
            groups: vec![5, 7],
            ..Credentials::default()
        };
        assert_eq!(of_task(&spec).unwrap(), own);
        check_exec(&spec, &user(1000, 5, &[7])).unwrap();
        for other in [user(0, 5, &[]), user(1000, 0, &[]), user(1000, 5, &[8])] {
            let error = check_exec(&spec, &other).unwrap_err().to_string();
            assert!(error.contains("act as 1000:5 only"), "{error}");
        }
    }

    #[test]
    fn root_keeps_of_the_file_capabilities_what_its_spec_has() {
        let root = json!({"uid": 0, "gid": 0});
        let kept = |names: &[&str]| of_task(&spec(&root, names)).unwrap().capabilities;
        assert_eq!(kept(&[]), 0);
        assert_eq!(kept(&["CAP_FOWNER", "CAP_SYS_ADMIN"]), 1 << 3);
        // Everything but CHOWN: still for everybody.
        assert_eq!(kept(&DEFAULT[1..]), SIX & !1);
        let spec = spec(&root, &["CAP_FOWNER"]);
        check_exec(&spec, &user(0, 0, &[])).unwrap();
        assert!(check_exec(&spec, &user(1, 0, &[])).is_err());
    }

    #[test]
    fn an_exec_that_says_nothing_has_its_tasks_set() {
        let spec = spec(&json!({"uid": 0, "gid": 0}), &["CAP_FOWNER"]);
        let mut exec = spec.process.clone();
        exec.capabilities = None;
        assert_eq!(of_program(&spec, &exec), 1 << 3);
        exec.capabilities = Some(crate::bundle::Capabilities::default());
        assert_eq!(of_program(&spec, &exec), 0);
        exec.capabilities = None;
        exec.user = user(9, 9, &[]);
        assert_eq!(of_program(&spec, &exec), 0);
    }

    #[test]
    fn too_many_groups_are_named() {
        let groups: Vec<u32> = (0..600).collect();
        let given = json!({"uid": 1, "gid": 1, "additionalGids": groups});
        assert_eq!(
            of_task(&spec(&given, &[])),
            Err(CredentialsError::Groups(600))
        );
        of_task(&spec(&given, &DEFAULT)).unwrap();
    }

    #[test]
    fn every_error_has_its_code() {
        let other = CredentialsError::OtherUser {
            wanted: "1:1".into(),
            own: "0:0".into(),
        };
        expect_codes([
            (CredentialsError::Groups(99), ErrorCode::InvalidArgument),
            (other, ErrorCode::InvalidArgument),
        ]);
    }
}
