//! From root of the guest to the program's user, with no way back.

use std::io;

use rustix::fs::Mode;
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use wasmvm_protocol::agent::Program;

use super::failure::LoadError;

/// The capabilities over files of others that a program keeps, as far as its spec grants them; all others
/// are dropped for everybody.
///
/// The guest's kernel checks permissions of the tree itself (virtio-fs mounts have
/// `default_permissions`), so without these a program run as root could not open the files of another
/// user, which it can under runc. They reach nothing but the tree: the runner is chrooted into it.
const FILE_CAPABILITIES: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID);
/// Mask of new files' modes where the spec has none, as runc's.
const UMASK: u32 = 0o022;

/// Enters the tree at `root` and becomes the program's user.
///
/// Called while the process has one thread: credentials are the thread's.
///
/// # Errors
/// [`LoadError::System`], naming the step.
pub(super) fn drop_to(program: &Program, root: &str) -> Result<(), LoadError> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    step(
        "set the core limit",
        rustix::process::setrlimit(Resource::Core, none),
    )?;
    rustix::process::umask(Mode::from_raw_mode(program.umask.unwrap_or(UMASK)));
    step("enter the file tree", rustix::process::chroot(root))?;
    step("enter the file tree", rustix::process::chdir("/"))?;
    enter_working_directory(program)?;
    let kept = CapabilitySet::from_bits_truncate(program.capabilities) & FILE_CAPABILITIES;
    for capability in CapabilitySet::all().difference(kept).iter() {
        // Numbers that this kernel does not know are refused with EINVAL.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let groups: Vec<Gid> = program
        .additional_gids
        .iter()
        .map(|&gid| Gid::from_raw(gid))
        .collect();
    step("set the groups", rustix::thread::set_thread_groups(&groups))?;
    let gid = Gid::from_raw(program.gid);
    step(
        "set the group",
        rustix::thread::set_thread_res_gid(gid, gid, gid),
    )?;
    // Leaving uid 0 would take every capability along.
    step(
        "keep capabilities",
        rustix::thread::set_keep_capabilities(true),
    )?;
    let uid = Uid::from_raw(program.uid);
    step(
        "set the user",
        rustix::thread::set_thread_res_uid(uid, uid, uid),
    )?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    step(
        "drop capabilities",
        rustix::thread::set_capabilities(None, sets),
    )?;
    step(
        "keep capabilities no further",
        rustix::thread::set_keep_capabilities(false),
    )?;
    step(
        "give up new privileges",
        rustix::thread::set_no_new_privs(true),
    )
}

/// Before the user is the program's, as a directory that only root may enter does for runc too.
fn enter_working_directory(program: &Program) -> Result<(), LoadError> {
    let path = super::wasi::directory(program);
    rustix::process::chdir(path).map_err(|errno| LoadError::Directory {
        path: path.to_owned(),
        source: errno.into(),
    })
}

fn step(what: &'static str, result: rustix::io::Result<()>) -> Result<(), LoadError> {
    result.map_err(|errno| LoadError::System(what, io::Error::from(errno)))
}
