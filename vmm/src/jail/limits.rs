//! Limits of the jail: descriptors, resource limits, signals.

use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

use wasmvm_protocol::control::Role;

use super::syscalls::exit_on_sigterm;
use super::{JailError, Step};
use crate::vm::SLOT_BYTES_MAX;

/// Most descriptors that the guest can make the file server hold: one for each file it knows, one more
/// for each it has open. The host may allow less.
pub const GUEST_FDS_MAX: u64 = 65_536;
/// Descriptors beyond [`GUEST_FDS_MAX`], so that the process always has some for itself.
pub const OWN_FDS_MAX: u64 = 512;

/// Limit of core files: too short for any, and the one value that the kernel takes for "none" also
/// where cores are piped to a program (Linux `fs/coredump.c`; 0 would not keep one from a pipe). The file
/// server changes its user for every file it makes, which sets "dumpable" back to the value of
/// `fs.suid_dumpable`; so a guest that crashes its VMM must be stopped here from filling the
/// host's disk.
pub(super) const CORE_BYTES: u64 = 1;

/// Sets limits and umask, and makes SIGTERM end the process: PID 1 of a namespace gets no signal without a handler.
///
/// Returns the number of descriptors that the guest may make the file server hold.
pub(super) fn set(role: Role) -> Result<u64, JailError> {
    forbid_cores().step("forbid core files")?;
    if let Some(bytes) = file_bytes_max(role) {
        set_limit(Resource::Fsize, bytes).step("limit the length of files")?;
    }
    let guest_fds = limit_open_files()?;
    forbid_dumps()?;
    // The guest's kernel has applied its own umask to every mode it sends.
    rustix::process::umask(Mode::empty());
    exit_on_sigterm().step("handle SIGTERM")?;
    Ok(guest_fds)
}

/// Longest file that a VMM may write. A compiler's VMM writes one, the artifact, which later is a slot; a
/// task's writes its tenant's, whose length the file system bounds.
fn file_bytes_max(role: Role) -> Option<u64> {
    match role {
        Role::Compiler => Some(SLOT_BYTES_MAX),
        Role::Task => None,
    }
}

fn limit_open_files() -> Result<u64, JailError> {
    let meant = GUEST_FDS_MAX + OWN_FDS_MAX;
    // More than was inherited takes CAP_SYS_RESOURCE on the host, which not every host gives.
    let allowed = getrlimit(Resource::Nofile).maximum.unwrap_or(meant);
    let files = if set_limit(Resource::Nofile, meant).is_ok() {
        meant
    } else {
        allowed.min(meant)
    };
    set_limit(Resource::Nofile, files).step("limit open files")?;
    Ok(files.saturating_sub(OWN_FDS_MAX))
}

/// Sets the limit of core files, to 0 where 1 is more than was inherited (that takes CAP_SYS_RESOURCE on the host).
fn forbid_cores() -> rustix::io::Result<()> {
    set_limit(Resource::Core, CORE_BYTES).or_else(|_| set_limit(Resource::Core, 0))
}

/// Forbids ptrace by anyone without capabilities on the host. Changes of credentials set "dumpable" back to
/// `fs.suid_dumpable`, so this function is called again after the last change of the jail.
pub(super) fn forbid_dumps() -> Result<(), JailError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step("forbid memory dumps")
}

fn set_limit(resource: Resource, value: u64) -> rustix::io::Result<()> {
    setrlimit(
        resource,
        Rlimit {
            current: Some(value),
            maximum: Some(value),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Limits are the whole process's; this one only goes down, and no test wants a core.
    #[test]
    fn the_limit_of_core_files_is_the_one_that_pipes_respect() {
        let inherited = getrlimit(Resource::Core).maximum;
        forbid_cores().unwrap();
        let core = getrlimit(Resource::Core);
        assert_eq!(core.current, core.maximum);
        assert!(core.maximum == Some(1) || inherited == Some(0), "{core:?}");
    }
}
