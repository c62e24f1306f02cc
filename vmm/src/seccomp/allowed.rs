//! The lists of system calls, each call with its reason.

use kvm_bindings::{KVMIO, kvm_clock_data, kvm_regs, kvm_userspace_memory_region};
use libc::c_long;
use seccompiler::{
    BackendError, SeccompCmpArgLen as Width, SeccompCmpOp as Compare, SeccompCondition, SeccompRule,
};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

use super::Thread;

/// A system call that is allowed, with its arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowed {
    pub(super) number: i64,
    arguments: Arguments,
}

/// Arguments with which a call is allowed.
#[derive(Clone, Copy, Debug)]
enum Arguments {
    Any,
    /// The lower 32 bits of the argument with this index are one of these values.
    OneOf(u8, &'static [u64]),
    /// The argument with this index has none of these bits.
    Without(u8, u64),
}

impl Allowed {
    /// The rules of the filter; none means that the number alone decides.
    pub(super) fn rules(&self) -> Result<Vec<SeccompRule>, BackendError> {
        let rule = |index, compare, value| {
            let condition = SeccompCondition::new(index, Width::Dword, compare, value)?;
            SeccompRule::new(vec![condition])
        };
        match self.arguments {
            Arguments::Any => Ok(vec![]),
            Arguments::OneOf(index, values) => values
                .iter()
                .map(|value| rule(index, Compare::Eq, *value))
                .collect(),
            Arguments::Without(index, bits) => Ok(vec![rule(index, Compare::MaskedEq(bits), 0)?]),
        }
    }
}

const fn any(number: c_long) -> Allowed {
    Allowed {
        number,
        arguments: Arguments::Any,
    }
}

const fn one_of(number: c_long, index: u8, values: &'static [u64]) -> Allowed {
    Allowed {
        number,
        arguments: Arguments::OneOf(index, values),
    }
}

const fn without(number: c_long, index: u8, bits: u64) -> Allowed {
    Allowed {
        number,
        arguments: Arguments::Without(index, bits),
    }
}

/// Calls that the thread may make in this build.
pub(super) fn of(thread: Thread) -> impl Iterator<Item = Allowed> {
    let debug = if cfg!(debug_assertions) { DEBUG } else { &[] };
    shipped(thread).chain(debug.iter().copied())
}

/// Calls that the thread may make in a release.
pub(super) fn shipped(thread: Thread) -> impl Iterator<Item = Allowed> {
    let own = match thread {
        Thread::Main => MAIN,
        Thread::Vcpu => VCPU,
        Thread::Vsock => VSOCK,
        Thread::Fs => FS,
        Thread::FileServer => FILE_SERVER,
    };
    EVERY.iter().chain(own).copied()
}

const PROT_EXEC: u64 = 4;
const _: () = assert!(PROT_EXEC == libc::PROT_EXEC.unsigned_abs() as u64);

/// Calls of any thread: memory, locks, clocks, a line on standard error, a report to the shim, the end.
const EVERY: &[Allowed] = &[
    any(libc::SYS_futex),         // locks, channels, standing still at the gate
    any(libc::SYS_write), // standard error; event descriptors; reports to the shim, the end's among them
    any(libc::SYS_clock_gettime), // a host whose vDSO has no clock
    any(libc::SYS_brk),   // the heap
    without(libc::SYS_mmap, 2, PROT_EXEC), // large pieces of it; nothing new is ever executable
    any(libc::SYS_munmap), // and back
    any(libc::SYS_mremap), // a large piece grows
    any(libc::SYS_madvise), // the end of a thread gives its stack back
    any(libc::SYS_rt_sigprocmask), // the same
    any(libc::SYS_sigaltstack), // the end of a thread, and of the process
    any(libc::SYS_exit),  // a device's thread, when the machine cannot be built
    any(libc::SYS_exit_group), // the end
    any(libc::SYS_restart_syscall), // a wait goes on after SIGCONT
];

/// Calls for the shim's orders.
const MAIN: &[Allowed] = &[
    any(libc::SYS_recvmsg),                                    // an order
    any(libc::SYS_close), // descriptors that came with it and were used
    any(libc::SYS_fstat), // a slot's file: regular, of a length that fits
    one_of(libc::SYS_fcntl, 1, &[F_GETFL]), // opened read-only
    one_of(libc::SYS_ioctl, 1, &[KVM_SET_USER_MEMORY_REGION]), // mapped for the guest
    one_of(libc::SYS_tgkill, 2, &[KICK]), // the vCPU out of the guest; nothing else is sent
    any(libc::SYS_getpid), // pthread_kill(3) of that
    any(libc::SYS_sched_yield), // the queue of the socket device is just being read
];

/// Calls for the guest. Devices are activated over channels; their threads have their own lists.
const VCPU: &[Allowed] = &[
    one_of(libc::SYS_ioctl, 1, VCPU_IOCTLS),
    any(libc::SYS_rt_sigreturn),    // out of the guest by a signal
    any(libc::SYS_clock_nanosleep), // a bus lock is sat out
];

/// Calls for the guest's streams.
const VSOCK: &[Allowed] = &[
    any(libc::SYS_epoll_pwait), // for kicks, orders and sockets
    any(libc::SYS_epoll_ctl),   // a new stream's socket
    any(libc::SYS_read),        // the kick's event descriptor
    any(libc::SYS_recvfrom),    // bytes for the guest
    any(libc::SYS_sendto),      // bytes from it
    any(libc::SYS_shutdown),    // the end of one direction
    any(libc::SYS_close),       // of both
    any(libc::SYS_sched_yield), // an order is just being given
];

/// Calls for the guest's open files.
const FS: &[Allowed] = &[
    any(libc::SYS_ppoll),    // for kicks and the end of the file server
    any(libc::SYS_read),     // the kick's event descriptor
    any(libc::SYS_recvmsg),  // the file server's answer
    any(libc::SYS_fstat),    // the file that came with it: a regular one
    any(libc::SYS_preadv2),  // READ
    any(libc::SYS_pwritev2), // WRITE
    any(libc::SYS_close),    // RELEASE
];

/// Calls for the file tree: those of virtiofsd's `PassthroughFs` for the operations that `file_server::Tree` allows.
const FILE_SERVER: &[Allowed] = &[
    any(libc::SYS_recvmsg),                         // a message of the VMM
    any(libc::SYS_sendmsg),                         // its answer, with the file that was opened
    any(libc::SYS_openat2),                         // LOOKUP: a name below a directory
    any(libc::SYS_openat), // OPEN, OPENDIR, CREATE: by /proc/self/fd, or O_CREAT below a directory
    any(libc::SYS_close),  // RELEASE, FORGET
    one_of(libc::SYS_fcntl, 1, &[F_DUPFD_CLOEXEC]), // a file that was opened is known, open and handed over
    any(libc::SYS_statx),                           // GETATTR, LOOKUP
    any(libc::SYS_fstatfs),                         // STATFS
    any(libc::SYS_readlinkat),                      // READLINK
    any(libc::SYS_getdents64),                      // READDIR
    any(libc::SYS_lseek),                           // LSEEK, READDIR
    any(libc::SYS_ftruncate),                       // SETATTR: size
    any(libc::SYS_fchmod),                          // mode, of an open file
    any(libc::SYS_fchmodat),                        // mode
    any(libc::SYS_fchownat),                        // owner
    any(libc::SYS_utimensat),                       // times
    any(libc::SYS_fallocate),                       // FALLOCATE
    any(libc::SYS_fsync),                           // FSYNC, FSYNCDIR
    any(libc::SYS_fdatasync),                       // FSYNC of the data
    any(libc::SYS_mkdirat),                         // MKDIR
    any(libc::SYS_mknodat),                         // MKNOD
    any(libc::SYS_symlinkat),                       // SYMLINK
    any(libc::SYS_linkat),                          // LINK
    any(libc::SYS_unlinkat),                        // UNLINK, RMDIR
    any(libc::SYS_renameat2),                       // RENAME
    any(libc::SYS_geteuid),                         // who is this thread acting for
    any(libc::SYS_getegid),                         // and its group
    any(libc::SYS_setresuid),                       // becomes the one who asks, and itself again
    any(libc::SYS_setresgid),                       // his group
    any(libc::SYS_setgroups),                       // the group by which he may
    any(libc::SYS_capget),    // set-id bits go: without CAP_FSETID for one call
    any(libc::SYS_capset),    // the same
    any(libc::SYS_getrandom), // the keys of this thread's hash tables
];

/// Calls that only debug builds make.
const DEBUG: &[Allowed] = &[
    without(libc::SYS_mprotect, 2, PROT_EXEC), // heaps of threads, in tests
    one_of(libc::SYS_fcntl, 1, &[F_GETFD]),    // is it open, before close
];

const F_GETFD: u64 = libc::F_GETFD.unsigned_abs() as u64;
const F_GETFL: u64 = libc::F_GETFL.unsigned_abs() as u64;
const F_DUPFD_CLOEXEC: u64 = libc::F_DUPFD_CLOEXEC.unsigned_abs() as u64;

/// glibc's `SIGRTMIN`, the vCPU's kick.
const KICK: u64 = 34;

const KVM_SET_USER_MEMORY_REGION: u64 =
    ioctl(_IOC_WRITE, 0x46, size_of::<kvm_userspace_memory_region>());

const VCPU_IOCTLS: &[u64] = &[
    ioctl(_IOC_NONE, 0x80, 0),                            // KVM_RUN
    ioctl(_IOC_READ, 0x81, size_of::<kvm_regs>()),        // KVM_GET_REGS: where it ended
    ioctl(_IOC_READ, 0x7c, size_of::<kvm_clock_data>()),  // KVM_GET_CLOCK: paused
    ioctl(_IOC_WRITE, 0x7b, size_of::<kvm_clock_data>()), // KVM_SET_CLOCK: resumed
    ioctl(_IOC_NONE, 0xad, 0),                            // KVM_KVMCLOCK_CTRL: tells the guest
];

/// The number of an ioctl of KVM (Linux `include/uapi/linux/kvm.h`).
#[allow(
    clippy::cast_possible_truncation,
    reason = "sizes of structures of a few bytes"
)]
const fn ioctl(direction: u32, number: u32, bytes: usize) -> u64 {
    ioctl_expr(direction, KVMIO, number, bytes as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_headers() {
        assert_eq!(KVM_SET_USER_MEMORY_REGION, 0x4020_ae46);
        let meant = [0xae80, 0x8090_ae81, 0x8030_ae7c, 0x4030_ae7b, 0xaead];
        assert_eq!(VCPU_IOCTLS, meant);
        let kick = vmm_sys_util::signal::SIGRTMIN();
        assert_eq!(KICK, u64::from(kick.unsigned_abs()));
    }
}
