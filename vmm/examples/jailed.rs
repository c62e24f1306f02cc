//! Boots a guest by the real `wasmvm-vmm` in its jail, with a directory as its tree: stands in for the
//! shim. Needs root, `unshare` and `mount`.
//!
//! ```text
//! cargo run -p wasmvm-vmm --example jailed -- VMM KERNEL INITRAMFS TREE [RAM_MIB]
//! ```
//!
//! Prints what the VMM reports, in the order it comes; the guest's console goes to standard error. When
//! the guest is ready it is paused for two seconds: shown is what the VMM's CPU time was meanwhile, and
//! the filter of system calls of every thread. Ends when the VMM closes its end.

use std::error::Error;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use wasmvm_protocol::control::{self, BootConfig, Credentials, FromVmm, Role, ToVmm};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [vmm, kernel, initramfs, tree, rest @ ..] = arguments.as_slice() else {
        return Err("usage: jailed VMM KERNEL INITRAMFS TREE [RAM_MIB]".into());
    };
    let vmm = fs::canonicalize(vmm)?;
    let (control, vmm_end) = control::pair()?;
    let script = r#"mount --rbind . . && cd "$PWD" && exec 3<&0 && exec "$0" </dev/null"#;
    let (mut log, log_writer) = std::io::pipe()?;
    let mut outer = Command::new("unshare")
        .args(["--pid", "--fork", "--mount", "--ipc", "--uts"])
        .args(["sh", "-ec", script])
        .arg(vmm)
        .current_dir(tree)
        .stdin(Stdio::from(vmm_end))
        .stdout(log_writer.try_clone()?)
        .stderr(log_writer)
        .spawn()?;
    let started = Instant::now();
    thread::spawn(move || std::io::copy(&mut log, &mut std::io::stderr()));

    // As the shim does it: what is handed over is opened in the VMM's own mount namespace.
    let root = loop {
        if let Some(pid) = child_of(outer.id()) {
            break format!("/proc/{pid}/root");
        }
        thread::yield_now();
    };
    let inside = |path: &str| Ok::<_, std::io::Error>(root.clone() + &path_text(path)?);
    let kvm = File::options()
        .read(true)
        .write(true)
        .open(inside("/dev/kvm")?)?;
    let kernel = File::open(inside(kernel)?)?;
    let initramfs = File::open(inside(initramfs)?)?;
    let boot = ToVmm::Boot(BootConfig {
        role: Role::Task,
        ram_mib: rest.first().map_or(Ok(256), |text| text.parse())?,
        huge_pages: false,
        console: true,
        credentials: Credentials::default(),
    });
    control::send(
        &control,
        &boot,
        &[kvm.as_fd(), kernel.as_fd(), initramfs.as_fd()],
    )?;
    while let Some(message) = control::hear(&control)? {
        println!("{:>8.1?} {message:?}", started.elapsed());
        if message == FromVmm::NeedMaps {
            let pid = child_of(outer.id()).ok_or("the VMM is gone")?;
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{pid}/{map}"), "0 0 4294967295\n")?;
            }
            control::send(&control, &ToVmm::MapsWritten, &[])?;
        }
        if matches!(message, FromVmm::AgentReady { .. }) {
            let pid = child_of(outer.id()).ok_or("the VMM is gone")?;
            show_filters(&pid)?;
            pause(&control, &pid)?;
        }
    }
    println!("{}", outer.wait()?);
    Ok(())
}

fn path_text(path: &str) -> std::io::Result<String> {
    let path = fs::canonicalize(path)?;
    path.into_os_string()
        .into_string()
        .map_err(|_| std::io::ErrorKind::InvalidFilename.into())
}

/// `Seccomp` is 2 for a thread with a filter (`proc(5)`, status).
fn show_filters(pid: &str) -> Result<(), Box<dyn Error>> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let shown = ["Name:", "Seccomp:", "Seccomp_filters:"];
        let lines = status.lines();
        let lines: Vec<_> = lines
            .filter(|line| shown.iter().any(|name| line.starts_with(name)))
            .collect();
        println!("         {}", lines.join(" "));
    }
    Ok(())
}

fn pause(control: &OwnedFd, pid: &str) -> Result<(), Box<dyn Error>> {
    let since = Instant::now();
    control::send(control, &ToVmm::Pause { id: 1 }, &[])?;
    let done = control::hear(control)?;
    println!("         Pause: {done:?} after {:?}", since.elapsed());
    let before = cpu_ticks(pid)?;
    thread::sleep(Duration::from_secs(2));
    println!("         CPU ticks in 2 s: {}", cpu_ticks(pid)? - before);
    control::send(control, &ToVmm::Resume { id: 2 }, &[])?;
    let done = control::hear(control)?;
    println!("         Resume: {done:?}");
    Ok(())
}

/// User and system time are the fields 12 and 13 behind the name (`proc(5)`, stat).
fn cpu_ticks(pid: &str) -> Result<u64, Box<dyn Error>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let behind_name = stat.rsplit(") ").next().unwrap_or_default();
    let times = behind_name.split(' ').skip(11).take(2);
    Ok(times.map(str::parse::<u64>).sum::<Result<_, _>>()?)
}

/// The parent's PID is the second field behind the name (`proc(5)`, stat).
fn child_of(parent: u32) -> Option<String> {
    let parent = parent.to_string();
    let entries = fs::read_dir("/proc").ok()?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_child = |pid: &String| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let behind_name = stat.rsplit(") ").next().unwrap_or_default().to_owned();
        behind_name.split(' ').nth(1) == Some(&parent)
    };
    pids.filter(|pid| pid.starts_with(|c: char| c.is_ascii_digit()))
        .find(is_child)
}
