//! Takes everything from the process that a holder does not need: files, rights, system calls.

use std::collections::BTreeMap;
use std::io;

use rustix::mount::UnmountFlags;
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::CapabilitySet;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::end::end_by_signals;

/// User and group of all holders: they own nothing on the host. Not the overflow ids, as any process of user nobody may
/// signal another one; and not the VMMs', which are the number before.
const HOLDER_ID: u32 = 0x7761_736e;
/// The system calls of a holder: to tell the shim, to wait for its end, to exit, and to return from a stop.
const CALLS: [libc::c_long; 5] = [
    libc::SYS_write,
    libc::SYS_read,
    libc::SYS_exit_group,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
];

/// Why the process is not confined.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfineError {
    /// A system call failed.
    #[error("the holder cannot {step}")]
    Step {
        /// The step, to stand behind "cannot".
        step: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The list of system calls makes no filter, or the kernel does not take the filter.
    #[error("the holder cannot filter its system calls")]
    Filter(#[source] seccompiler::Error),
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |source| ConfineError::Step {
        step,
        source: source.into(),
    }
}

/// Confines the process, for ever: its working directory becomes the root, of which alone it sees files.
///
/// # Errors
/// [`ConfineError`]; the process must end then.
pub(super) fn confine() -> Result<(), ConfineError> {
    rustix::process::pivot_root(c".", c".").map_err(step("change its root"))?;
    // The old root lies on the new one now (pivot_root(2)).
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(step("leave the old root"))?;
    rustix::process::chdir(c"/").map_err(step("enter its root"))?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none).map_err(step("forbid core files"))?;
    end_by_signals().map_err(step("handle signals"))?;
    drop_rights()?;
    rustix::thread::set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    let filter = filter().map_err(ConfineError::Filter)?;
    seccompiler::apply_filter(&filter).map_err(ConfineError::Filter)
}

/// Gives up every capability, also as a bound, and takes the holders' user and group.
fn drop_rights() -> Result<(), ConfineError> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Beyond the kernel's last capability.
            Err(rustix::io::Errno::INVAL) => break,
            Err(errno) => return Err(step("bound its capabilities")(errno)),
        }
    }
    rustix::thread::set_thread_groups(&[]).map_err(step("leave its groups"))?;
    let (uid, gid) = (Uid::from_raw(HOLDER_ID), Gid::from_raw(HOLDER_ID));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(step("take its group"))?;
    // The step from uid 0 clears all sets of capabilities (capabilities(7)).
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(step("take its user"))
}

fn filter() -> Result<BpfProgram, seccompiler::Error> {
    let rules: BTreeMap<i64, _> = CALLS.into_iter().map(|call| (call, Vec::new())).collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}
