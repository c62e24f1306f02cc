//! The filters of system calls, tried: a forbidden call ends the process, and says so.
//!
//! Without libtest: this program starts itself with `--canary THREAD CALL`. The canary gives a thread the
//! filter of one of the VMM's and makes a system call that it may not, which the kernel has to end.

use std::error::Error;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Output};
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags};
use wasmvm_protocol::control::FromVmm;
use wasmvm_vmm::seccomp::{self, KILLED_STATUS, Thread};

const CANARY: &str = "--canary";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [first, name, call] if first == CANARY => canary(name, call.clone()),
        _ => look_at_canaries(),
    }
}

fn look_at_canaries() -> Result<(), Box<dyn Error>> {
    for thread in Thread::ALL {
        is_killed_at(thread, "socket", libc::SYS_socket)?;
        is_killed_at(thread, "ioctl", libc::SYS_ioctl)?;
        is_killed_at(thread, "execute", libc::SYS_mmap)?;
        if thread != Thread::FileServer {
            is_killed_at(thread, "descriptor", libc::SYS_sendmsg)?;
        }
        let output = start_canary(thread, "nothing")?;
        let text = String::from_utf8(output.stderr)?;
        assert!(output.status.success(), "{thread:?}: {text}");
    }
    println!("a call that is on no list ends the process with its number and thread ... ok");
    println!("ioctls are told apart by their number ... ok");
    println!("nothing new is executable ... ok");
    println!("the VMM passes no descriptor on ... ok");
    println!("a thread that keeps to its list ends well ... ok");
    Ok(())
}

fn is_killed_at(thread: Thread, call: &str, number: libc::c_long) -> Result<(), Box<dyn Error>> {
    let output = start_canary(thread, call)?;
    let text = String::from_utf8(output.stderr)?;
    let name = thread.name();
    let last = format!("wasmvm-vmm: thread {name} made system call {number}, which it may not\n");
    assert_eq!(text, format!("confined\n{last}"));
    assert_eq!(output.status.code(), Some(KILLED_STATUS), "{text}");
    Ok(())
}

fn start_canary(thread: Thread, call: &str) -> std::io::Result<Output> {
    let mut canary = Command::new(std::env::current_exe()?);
    canary.args([CANARY, thread.name(), call]).output()
}

fn canary(name: &str, call: String) -> Result<(), Box<dyn Error>> {
    let thread = Thread::ALL.into_iter().find(|known| known.name() == name);
    let thread = thread.ok_or("no such thread")?;
    // Closed by the main thread: not every list has that.
    let kept = Arc::new(wasmvm_protocol::control::pair()?);
    let sockets = Arc::clone(&kept);
    seccomp::enable()?;
    let confined = std::thread::spawn(move || -> Result<(), String> {
        seccomp::confine(thread).map_err(|err| err.to_string())?;
        writeln!(std::io::stderr(), "confined").map_err(|err| err.to_string())?;
        match call.as_str() {
            "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
            "ioctl" => drop(rustix::io::ioctl_fionread(std::io::stdin())),
            "execute" => executable_memory(),
            "descriptor" => pass_a_descriptor(&sockets),
            _ => {}
        }
        Ok(())
    });
    Ok(confined.join().map_err(|_| "panicked")??)
}

fn pass_a_descriptor((one, other): &(OwnedFd, OwnedFd)) {
    let message = FromVmm::NeedMaps;
    let _sent = wasmvm_protocol::control::send(one, &message, &[other.as_fd()]);
}

fn executable_memory() {
    let prot = ProtFlags::READ | ProtFlags::EXEC;
    // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
    let _mapped =
        unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), 4096, prot, MapFlags::PRIVATE) };
}
