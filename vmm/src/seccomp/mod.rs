//! System calls that each thread may make: one list for each thread; any other call ends the VMM.
//!
//! | thread | does | its list |
//! |---|---|---|
//! | main | the shim's orders | `allowed::MAIN` |
//! | vcpu | `KVM_RUN` and its exits | `VCPU` |
//! | vsock | streams | `VSOCK` |
//! | fs | READ and WRITE of files, and their server's answers | `FS` |
//! | file server | the file tree; its process has no other thread | `FILE_SERVER` |
//!
//! A filter is for ever and applies to the threads that the thread starts, too. So
//! every thread is started by its process's main thread, and gets its filter as the last step of its own start; the
//! main thread gets its own as the last step before the guest runs.
//!
//! A call that is not on the list is not made: the kernel raises `SIGSYS`, whose handler writes one line
//! with the thread and the number, and ends the process with status [`KILLED_STATUS`]. Where the signal
//! is blocked the kernel kills the process itself (`SECCOMP_RET_TRAP`, `seccomp(2)`). `rt_sigaction` is on
//! no list, so the handler stays. Foreign architectures' system calls kill at once.

mod allowed;
mod forbidden_call;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::arch::SECCOMP_ARCH;

pub use forbidden_call::KILLED_STATUS;

/// A thread of the VMM, or the one of its file server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// Takes the shim's orders.
    Main,
    /// Runs the guest's vCPU.
    Vcpu,
    /// Carries the guest's streams.
    Vsock,
    /// Reads and writes files for the guest.
    Fs,
    /// Opens the guest's files, in a process of its own.
    FileServer,
}

impl Thread {
    /// Every thread, in the order of the lists.
    pub const ALL: [Self; 5] = [
        Self::Main,
        Self::Vcpu,
        Self::Vsock,
        Self::Fs,
        Self::FileServer,
    ];

    /// The thread's name here, which the kernel also shows, but for the main thread and the file server.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vcpu => "vcpu",
            Self::Vsock => "vsock",
            Self::Fs => "fs",
            Self::FileServer => "file server",
        }
    }
}

/// Why a thread could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The handler of `SIGSYS` could not be installed.
    #[error("cannot handle SIGSYS")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// seccompiler could not make a filter of the list.
    #[error("the list of system calls of thread {thread} cannot be compiled")]
    Compile {
        /// Name of the thread.
        thread: &'static str,
        /// Error of seccompiler's backend.
        #[source]
        source: seccompiler::BackendError,
    },
    /// The kernel did not take the filter.
    #[error("the filter of system calls of thread {thread} cannot be installed")]
    Install {
        /// Name of the thread.
        thread: &'static str,
        /// Error of seccompiler, with the kernel's inside.
        #[source]
        source: seccompiler::Error,
    },
}

/// Whether [`confine`] confines: set in a VMM, not in the tests and examples that run its parts.
static ENABLED: AtomicBool = AtomicBool::new(false);

/// Makes [`confine`] confine from now on. Called before the first thread is started.
///
/// # Errors
/// [`SeccompError::Signal`].
pub fn enable() -> Result<(), SeccompError> {
    forbidden_call::use_one_heap();
    forbidden_call::handle().map_err(SeccompError::Signal)?;
    ENABLED.store(true, Ordering::SeqCst);
    Ok(())
}

/// Confines the calling thread to its list, for ever. Does nothing before [`enable`].
///
/// # Errors
/// [`SeccompError`].
pub fn confine(thread: Thread) -> Result<(), SeccompError> {
    if ENABLED.load(Ordering::SeqCst) {
        apply(thread)
    } else {
        Ok(())
    }
}

pub(crate) fn apply(thread: Thread) -> Result<(), SeccompError> {
    forbidden_call::set_thread_name(thread.name());
    let program = compile(thread).map_err(|source| SeccompError::Compile {
        thread: thread.name(),
        source,
    })?;
    seccompiler::apply_filter(&program).map_err(|source| SeccompError::Install {
        thread: thread.name(),
        source,
    })
}

fn compile(thread: Thread) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = BTreeMap::<_, Vec<_>>::new();
    for call in allowed::of(thread) {
        rules.entry(call.number).or_default().extend(call.rules()?);
    }
    SeccompFilter::new(
        rules,
        SeccompAction::Trap,
        SeccompAction::Allow,
        SECCOMP_ARCH,
    )?
    .try_into()
}

#[cfg(test)]
mod interpreter;
#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_list_makes_a_filter() {
        for thread in Thread::ALL {
            let program = compile(thread).unwrap();
            assert!(program.len() < 1000, "{thread:?}: {}", program.len());
        }
    }

    /// The goal is 25; the file server has as many calls as there are things to do to a file.
    #[test]
    fn lists_are_short_and_name_a_call_once() {
        for (thread, most) in Thread::ALL.into_iter().zip([25, 25, 25, 25, 50]) {
            let calls: Vec<_> = allowed::shipped(thread).collect();
            let numbers: BTreeSet<_> = calls.iter().map(|call| call.number).collect();
            assert_eq!(numbers.len(), calls.len(), "{thread:?}");
            assert!(calls.len() <= most, "{thread:?}: {}", calls.len());
        }
    }

    #[test]
    fn nobody_may_start_programs_or_threads_or_reach_the_network_and_the_vmm_passes_no_descriptor()
    {
        let never = [
            libc::SYS_execve,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_rt_sigaction,
            libc::SYS_io_uring_setup,
            libc::SYS_bpf,
            libc::SYS_sendmmsg,
            libc::SYS_io_uring_enter,
            libc::SYS_pidfd_getfd,
        ];
        for thread in Thread::ALL {
            assert!(!allowed::of(thread).any(|call| never.contains(&call.number)));
            // Descriptors go with nothing else: from the file server, whose one socket ends in the VMM.
            let passes = allowed::of(thread).any(|call| call.number == libc::SYS_sendmsg);
            assert_eq!(passes, thread == Thread::FileServer, "{thread:?}");
        }
    }
}
