//! Spawns a VMM, or a pod's holder: `clone3(CLONE_INTO_CGROUP | CLONE_PIDFD | new namespaces)`, then exec.
//!
//! `std::process` can do none of the three, and moving a process into its cgroup afterwards costs an
//! RCU grace period. The child is a copy of a multi-threaded process, so between `clone3` and exec it
//! may only make system calls: everything that it needs is allocated before, and it never returns.
//!
//! The calling thread's mount namespace and working directory become the child's: the caller has left
//! the host's (`unshare(CLONE_FS | CLONE_NEWNS)`), stands in the root of the task's tree, and ends
//! afterwards, so that the VMM's exit is the unmount.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use wasmvm_protocol::control::CONTROL_FD;

/// Descriptors are first moved above this number, out of the way of the child's fixed ones.
const FD_FLOOR: RawFd = 16;

/// Flag of `clone3(2)`, `linux/sched.h`; libc's type for it overflows.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
/// Flag of `clone3(2)`, `linux/sched.h`.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Descriptors and settings that the child inherits.
#[derive(Debug)]
pub(crate) struct SpawnRequest<'a> {
    /// Name of the program: its first argument.
    pub name: &'static CStr,
    /// Executable of the program.
    pub executable: BorrowedFd<'a>,
    /// Descriptor that becomes standard input; the null device without one.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Descriptor that becomes standard output and standard error.
    pub log: BorrowedFd<'a>,
    /// Socket that becomes [`CONTROL_FD`], for a program that takes one.
    pub control: Option<BorrowedFd<'a>>,
    /// Directory of the cgroup to be born in, in the unified hierarchy.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// `cgroup.procs` of the cgroups to enter before all else, in hierarchies of version 1.
    pub cgroup_procs: &'a [OwnedFd],
    /// Gives the child a network namespace of its own, with nothing in it.
    pub new_network: bool,
    /// Gives the child a cookie of core scheduling: it shares a processor's core with no other process at
    /// the same time (`Documentation/admin-guide/hw-vuln/core-scheduling.rst`).
    pub own_core: bool,
}

/// A child process, while it runs.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// Number of the child in the shim's PID namespace.
    pub pid: u32,
    /// Descriptor of the child, for waiting and killing without the races of a number.
    pub pidfd: OwnedFd,
}

/// Why no process was spawned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// A step before the child existed failed.
    #[error("cannot prepare the descriptors of a process")]
    Prepare(#[source] io::Error),
    /// `clone3(2)` made no child.
    #[error("cannot clone a process into the task's namespaces and cgroup")]
    Clone(#[source] io::Error),
    /// The child could not enter its cgroup (version 1).
    #[error("cannot move a process into the task's cgroup")]
    Cgroup(#[source] io::Error),
    /// The kernel has no core scheduling.
    #[error(
        "cannot give the task's process a core of its own, which containerd asks for (SCHED_CORE, sched_core = true): \
         the kernel needs CONFIG_SCHED_CORE"
    )]
    CoreScheduling(#[source] io::Error),
    /// A system call of the child failed, up to exec.
    #[error("cannot execute {0:?}")]
    Exec(&'static CStr, #[source] io::Error),
}

/// Everything that the child touches, allocated before it exists.
struct Child {
    name: &'static CStr,
    executable: OwnedFd,
    stdin: OwnedFd,
    log: OwnedFd,
    control: Option<OwnedFd>,
    cgroup_procs: Vec<OwnedFd>,
    own_core: bool,
    failure: OwnedFd,
}

/// Why the child did not execute: the step, and its errno.
type Failure = [i32; 2];
/// Step of entering the cgroup of version 1.
const ENTER: i32 = 1;
/// Step of taking a cookie of core scheduling.
const OWN_CORE: i32 = 3;
/// Every other step up to exec.
const EXECUTE: i32 = 2;

/// Spawns the process and waits until the process has executed its program.
///
/// # Errors
/// [`SpawnError`]; then no process is left.
pub(crate) fn spawn(request: &SpawnRequest<'_>) -> Result<Spawned, SpawnError> {
    let prepare = |errno: rustix::io::Errno| SpawnError::Prepare(errno.into());
    let above = |fd: BorrowedFd<'_>| fcntl_dupfd_cloexec(fd, FD_FLOOR).map_err(prepare);
    let null = rustix::fs::open(
        c"/dev/null",
        rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::empty(),
    )
    .map_err(prepare)?;
    let (failure_reader, failure) = pipe_with(PipeFlags::CLOEXEC).map_err(prepare)?;
    let child = Child {
        name: request.name,
        executable: above(request.executable)?,
        stdin: above(request.stdin.unwrap_or(null.as_fd()))?,
        log: above(request.log)?,
        control: request.control.map(above).transpose()?,
        cgroup_procs: request
            .cgroup_procs
            .iter()
            .map(|procs| above(procs.as_fd()))
            .collect::<Result<_, _>>()?,
        own_core: request.own_core,
        failure: above(failure.as_fd())?,
    };
    drop(failure);
    let spawned = clone_child(request, &child)?;
    drop(child);
    let mut failure_reader = File::from(failure_reader);
    let (mut step, mut errno) = ([0; 4], [0; 4]);
    let failed = failure_reader.read_exact(&mut step);
    match failed.and_then(|()| failure_reader.read_exact(&mut errno)) {
        // The pipe was closed by exec.
        Err(_) => Ok(spawned),
        Ok(()) => {
            let error = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
            wait_for(&spawned.pidfd);
            match i32::from_ne_bytes(step) {
                ENTER => Err(SpawnError::Cgroup(error)),
                OWN_CORE => Err(SpawnError::CoreScheduling(error)),
                _ => Err(SpawnError::Exec(request.name, error)),
            }
        }
    }
}

/// Gives the calling thread a mount namespace, root and working directory of its own: nothing mounted by it reaches
/// the host, nor the reverse. The other threads keep the host's.
///
/// # Errors
/// `unshare(2)`'s and `mount(2)`'s.
pub(crate) fn leave_host_mounts() -> io::Result<()> {
    let flags = UnshareFlags::FS | UnshareFlags::NEWNS;
    // SAFETY: FILES is not among the flags, so the descriptor table stays shared.
    unsafe { unshare_unsafe(flags) }?;
    Ok(mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?)
}

/// Gives the calling thread a host name of its own, at first the present one.
///
/// # Errors
/// `unshare(2)`'s.
pub(crate) fn unshare_hostname() -> io::Result<()> {
    // SAFETY: FILES is not among the flags, so the descriptor table stays shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWUTS) }?;
    Ok(())
}

/// Gives the calling thread a network namespace of its own, with nothing in it.
///
/// # Errors
/// `unshare(2)`'s.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: FILES is not among the flags, so the descriptor table stays shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

fn clone_child(request: &SpawnRequest<'_>, child: &Child) -> Result<Spawned, SpawnError> {
    let namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let network = if request.new_network {
        libc::CLONE_NEWNET
    } else {
        0
    };
    // SAFETY: the child runs `run_child` only.
    let spawned = unsafe { clone_process(namespaces | network, request.cgroup) };
    match spawned.map_err(SpawnError::Clone)? {
        Some(spawned) => Ok(spawned),
        None => run_child(child),
    }
}

/// Calls `clone3(2)`, which returns a descriptor of the child besides its pid. The child has these namespaces of its
/// own and is born into this cgroup; `None` in the child.
///
/// # Safety
/// The child is a copy of a process with other threads: it may only make system calls, on what was
/// allocated before, and has to end or execute without returning to its caller.
pub(super) unsafe fn clone_process(
    namespaces: i32,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Option<Spawned>> {
    let into_cgroup = cgroup.map_or(0, |_| CLONE_INTO_CGROUP);
    let flags = u64::from((namespaces | libc::CLONE_PIDFD).unsigned_abs())
        | into_cgroup
        | CLONE_CLEAR_SIGHAND;
    let mut pidfd: RawFd = -1;
    let mut args = libc::clone_args {
        flags,
        pidfd: (&raw mut pidfd).addr() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |cgroup| u64::from(cgroup.as_raw_fd().unsigned_abs())),
    };
    // SAFETY: `args` is a valid clone_args that outlives the call, `pidfd` receives the descriptor.
    // Without CLONE_VM the child runs on its own copy of this stack.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => {
            // SAFETY: the kernel has just created this descriptor for us (CLONE_PIDFD).
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = u32::try_from(pid)
                .map_err(|_| io::Error::other(format!("clone3 returned pid {pid}")))?;
            Ok(Some(Spawned { pid, pidfd }))
        }
    }
}

/// The child between `clone3` and exec: system calls only, no allocation, no return.
fn run_child(child: &Child) -> ! {
    let failure: Failure = match (
        enter_cgroups(&child.cgroup_procs),
        take_core(child.own_core),
    ) {
        (0, 0) => [EXECUTE, exec_child(child)],
        (0, errno) => [OWN_CORE, errno],
        (errno, _) => [ENTER, errno],
    };
    // SAFETY: writes the bytes of a local to our own pipe.
    unsafe {
        libc::write(
            child.failure.as_raw_fd(),
            (&raw const failure).cast(),
            size_of::<Failure>(),
        )
    };
    // SAFETY: ends the child without running the parent's exit handlers.
    unsafe { libc::_exit(127) }
}

/// Moves this process, before it holds anything, into the cgroups of version 1, where 0 means the writer
/// (cgroup-v1/cgroups.rst); returns 0 or the errno of the write that failed.
pub(super) fn enter_cgroups(cgroup_procs: &[OwnedFd]) -> i32 {
    for procs in cgroup_procs {
        // SAFETY: writes one byte of a constant to an open descriptor.
        if unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) } != 1 {
            return errno();
        }
    }
    0
}

/// Takes a new cookie for this process and all its threads to come; returns 0 or the errno of the call.
/// `ENODEV` means a host without SMT, on which no core is shared.
fn take_core(wanted: bool) -> i32 {
    if !wanted {
        return 0;
    }
    // SAFETY: only numbers go in and out.
    let taken = unsafe {
        libc::prctl(
            libc::PR_SCHED_CORE,
            libc::PR_SCHED_CORE_CREATE,
            0,
            libc::PR_SCHED_CORE_SCOPE_THREAD_GROUP,
            0,
        )
    };
    match taken {
        0 => 0,
        _ => core_failure(errno()),
    }
}

/// The errno of `prctl(PR_SCHED_CORE_CREATE)`, or 0 where that is no failure.
const fn core_failure(errno: i32) -> i32 {
    match errno {
        libc::ENODEV => 0,
        errno => errno,
    }
}

/// Sets up the descriptors and the signal mask, executes; returns the errno of the call that failed.
fn exec_child(child: &Child) -> i32 {
    let moves = [(&child.stdin, 0), (&child.log, 1), (&child.log, 2)];
    let control = child.control.as_ref().map(|control| (control, CONTROL_FD));
    for (fd, number) in moves.into_iter().chain(control) {
        // SAFETY: `fd` is an open descriptor; `number` is below FD_FLOOR, so none of ours is hit.
        if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
            return errno();
        }
    }
    let unnamed = control.map_or(3, |(_, number)| number.unsigned_abs() + 1);
    // SAFETY: marks every other descriptor close-on-exec; closes none that this function still uses.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            unnamed,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if marked != 0 {
        return errno();
    }
    // SAFETY: an all-zero sigset_t is the empty set on Linux.
    let empty: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: a valid set; the old mask is not wanted.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut()) };
    let argv = [child.name.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    // SAFETY: the path is empty and AT_EMPTY_PATH set, argv and envp are null-terminated arrays that
    // live until the call replaces this process image, or fails.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            child.executable.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    errno()
}

pub(super) fn errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// Reaps a child that is about to end.
fn wait_for(pidfd: &OwnedFd) {
    let id = rustix::process::WaitId::PidFd(pidfd.as_fd());
    // A failure means that there is nothing to reap.
    let _ = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child that ends at once tells how its spawn went.
    fn spawned(own_core: bool) -> Result<Spawned, SpawnError> {
        let program = File::open("/bin/true").unwrap();
        let null = File::open("/dev/null").unwrap();
        let spawned = spawn(&SpawnRequest {
            name: c"true",
            executable: program.as_fd(),
            stdin: None,
            log: null.as_fd(),
            control: None,
            cgroup: None,
            cgroup_procs: &[],
            new_network: false,
            own_core,
        })?;
        wait_for(&spawned.pidfd);
        Ok(spawned)
    }

    /// Needs root. A kernel without core scheduling is told apart from a host without SMT.
    #[test]
    fn a_core_of_its_own_is_had_or_the_kernel_lacks_it() {
        spawned(false).unwrap();
        match (spawned(true), core_scheduling()) {
            (Ok(_), 0 | libc::ENODEV) => {}
            (Err(SpawnError::CoreScheduling(error)), errno) => {
                assert_eq!(error.raw_os_error(), Some(errno));
            }
            (other, errno) => panic!("{other:?}, and the kernel says {errno}"),
        }
        assert_eq!(core_failure(libc::ENODEV), 0);
        assert_eq!(core_failure(libc::EINVAL), libc::EINVAL);
    }

    /// What the kernel says to a thread of this test that wants a cookie: 0 or an errno.
    fn core_scheduling() -> i32 {
        let ask = || {
            // SAFETY: only numbers go in and out; the thread ends with its cookie.
            let taken = unsafe {
                libc::prctl(
                    libc::PR_SCHED_CORE,
                    libc::PR_SCHED_CORE_CREATE,
                    0,
                    libc::PR_SCHED_CORE_SCOPE_THREAD,
                    0,
                )
            };
            if taken == 0 { 0 } else { errno() }
        };
        std::thread::scope(|scope| scope.spawn(ask).join().unwrap())
    }
}
