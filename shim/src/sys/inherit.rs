//! Descriptors that a program finds under fixed numbers.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::io::fcntl_dupfd_cloexec;

/// The first number after the standard streams.
const FIRST: RawFd = 3;

/// Guard: holds the fixed numbers until the command has been spawned.
#[derive(Debug)]
pub(crate) struct Held(#[expect(dead_code, reason = "held, never read")] Vec<OwnedFd>);

/// Makes `fds` the descriptors 3, 4, … of the program that `command` runs. The command owns them from now on. The
/// guard that is returned is to be dropped after the spawn.
///
/// # Errors
/// `fcntl(2)`'s.
pub(crate) fn pass_descriptors<const N: usize>(
    command: &mut Command,
    fds: [OwnedFd; N],
) -> io::Result<Held> {
    let above = FIRST + RawFd::try_from(N).map_err(io::Error::other)?;
    let mut sources = Vec::with_capacity(N);
    for fd in fds {
        sources.push(fcntl_dupfd_cloexec(fd, above)?);
    }
    let held = occupy(&sources, above)?;
    let move_all = move || {
        for (number, source) in (FIRST..).zip(&sources) {
            // SAFETY: both are numbers; what lies at the target is a copy in this child only.
            if unsafe { libc::dup2(source.as_raw_fd(), number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only; it allocates nothing.
    unsafe { command.pre_exec(move_all) };
    Ok(held)
}

/// Takes every free number below `above`: the pipe on which std's child reports a failed exec must not
/// get a number of `fds`.
fn occupy(sources: &[OwnedFd], above: RawFd) -> io::Result<Held> {
    let mut held = Vec::new();
    let Some(any) = sources.first() else {
        return Ok(Held(held));
    };
    loop {
        let taken = fcntl_dupfd_cloexec(any, FIRST)?;
        if taken.as_raw_fd() >= above {
            return Ok(Held(held));
        }
        held.push(taken);
    }
}
