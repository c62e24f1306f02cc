//! Copies a file by a process in another cgroup.
//!
//! The pages of a memory file are charged to the cgroup of the process that writes them first, and the
//! memory controller knows processes only, no threads (cgroup-v2.rst, "Threads"). So a child is cloned
//! into the cgroup, which does nothing but read and write.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::spawn::{clone_process, enter_cgroups, errno};
use super::watch::readable_within;

/// Bytes copied at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// A copy: its source and target, and the cgroup that pays for the pages.
#[derive(Debug)]
pub(crate) struct CopyRequest<'a> {
    /// File to read, from its start to its end, whatever its own position.
    pub source: BorrowedFd<'a>,
    /// File to write, whatever its own position.
    pub target: BorrowedFd<'a>,
    /// Offset in the target at which the copy begins, bytes.
    pub target_offset: u64,
    /// Most bytes that are copied.
    pub bytes_max: u64,
    /// Directory of the cgroup that pays, in the unified hierarchy.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// `cgroup.procs` of the cgroups that pay, in hierarchies of version 1.
    pub cgroup_procs: &'a [OwnedFd],
}

/// Copies, and waits until the child has exited.
///
/// # Errors
/// The child's errno, or an error when a signal ended the child: it was OOM-killed, or `limit` had passed.
pub(crate) fn copy_in_cgroup(request: &CopyRequest<'_>, limit: Duration) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    // SAFETY: the child runs `run_child` only, which makes system calls on what is allocated here and
    // never returns.
    let child = unsafe { clone_process(0, request.cgroup) }?;
    let Some(child) = child else {
        run_child(request, &mut buffer)
    };
    let in_time = readable_within(&child.pidfd, limit);
    if !matches!(in_time, Ok(true)) {
        // The child may have exited a moment ago.
        let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
    }
    let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)?;
    if !in_time? {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("it took longer than {limit:?}"),
        ));
    }
    match status.map(|status| (status.exit_status(), status.terminating_signal())) {
        Some((Some(0), _)) => Ok(()),
        Some((Some(errno), _)) => Err(io::Error::from_raw_os_error(errno)),
        Some((_, Some(signal))) => Err(io::Error::other(format!(
            "it was ended by signal {signal}; signal 9 says that its cgroup ran out of memory"
        ))),
        _ => Err(io::Error::other("its process ended in an unknown way")),
    }
}

/// The child: system calls only, no allocation, no return. Its exit status is the errno of the call that failed.
fn run_child(request: &CopyRequest<'_>, buffer: &mut [u8]) -> ! {
    // SAFETY: takes numbers only. The parent's thread waits for this process and has no other end.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let status = match enter_cgroups(request.cgroup_procs) {
        0 => {
            close_all_but(request.source.as_raw_fd(), request.target.as_raw_fd());
            copy(request, buffer)
        }
        errno => errno,
    };
    // SAFETY: ends the child without running the parent's exit handlers.
    unsafe { libc::_exit(status) }
}

/// Closes the copies of the shim's other descriptors: locks and sockets live as long as one is open.
fn close_all_but(one: RawFd, other: RawFd) {
    let (low, high) = (one.min(other).unsigned_abs(), one.max(other).unsigned_abs());
    // Each range without its end; the last range is open.
    for (first, end) in [(0, low), (low + 1, high), (high + 1, u32::MAX)] {
        if first < end {
            // SAFETY: this process uses the two others only, and ends without returning to their owners.
            unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) };
        }
    }
}

fn copy(request: &CopyRequest<'_>, buffer: &mut [u8]) -> i32 {
    let (source, target) = (request.source.as_raw_fd(), request.target.as_raw_fd());
    let mut done: u64 = 0;
    while done < request.bytes_max {
        let wanted = usize::try_from(request.bytes_max - done)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let Ok(from) = libc::off_t::try_from(done) else {
            return libc::EFBIG;
        };
        // SAFETY: reads into a live buffer, no more than its length.
        let read = unsafe { libc::pread(source, buffer.as_mut_ptr().cast(), wanted, from) };
        let Ok(read) = usize::try_from(read) else {
            match errno() {
                libc::EINTR => continue,
                errno => return errno,
            }
        };
        if read == 0 {
            break;
        }
        let written = write_all(target, &buffer[..read], request.target_offset + done);
        if written != 0 {
            return written;
        }
        done += read as u64;
    }
    0
}

fn write_all(target: i32, bytes: &[u8], offset: u64) -> i32 {
    let mut done = 0;
    while done < bytes.len() {
        let Ok(to) = libc::off_t::try_from(offset + done as u64) else {
            return libc::EFBIG;
        };
        let rest = &bytes[done..];
        // SAFETY: writes from a live buffer, no more than its length.
        let written = unsafe { libc::pwrite(target, rest.as_ptr().cast(), rest.len(), to) };
        match usize::try_from(written) {
            Ok(written) => done += written,
            Err(_) => match errno() {
                libc::EINTR => {}
                errno => return errno,
            },
        }
    }
    0
}
