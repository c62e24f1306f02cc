//! Diagnostics: what every process and thread of a task does, in sentences for the log, at an operator's SIGUSR1.
//!
//! ```text
//! task web is running; pid 4711; standard input is open; output flows, 1 of it waiting for a reader
//! exec sh of task web is being started; pid 0; no stream is open
//! its VM runs
//! VMM: thread 4711 "wasmvm-vmm" is S, 0.09 s of CPU, in recvmsg (__skb_wait_for_more_packets)
//! VMM: thread 4714 "vcpu" is R, 17.20 s of CPU
//! file server: thread 4712 "wasmvm-files" is S, 0.02 s of CPU, in recvmsg (__skb_wait_for_more_packets)
//! guest: task web: thread 15 "exe" is R, 16.90 s of CPU
//! guest: exec sh of task web: thread 19 "exe" is S, 0.01 s of CPU, in read
//! ```
//!
//! The letters are proc(5)'s: R runs, S waits, D waits and cannot be woken. Lines that begin with `guest`
//! say what the guest reports of itself.

use std::path::PathBuf;

use syscalls::x86_64::Sysno;
use wasmvm_protocol::agent::{Instance, Thread};
use wasmvm_protocol::threads;

use super::{Flow, LoadedVm, Task, exec};
use crate::error::{chain, printable};
use crate::host_process;

/// Most lines about the guest's own report.
const GUEST_LINES_MAX: usize = 1024;

impl Task {
    /// Returns a sentence for each process, the VM, each thread of the VMM and its file server, and each
    /// thread of the programs in the guest, which has a second to answer.
    pub(crate) async fn diagnostics(&self) -> Vec<String> {
        let mut lines = vec![self.init.words(self.pid())];
        for exec in self.execs_where(|_| true) {
            lines.push(exec.process.words(exec.pid()));
        }
        let Some(vm) = self.vm.get() else {
            lines.push("it has no VM yet".to_owned());
            return lines;
        };
        let flow = match self.flow.now() {
            Flow::Running => "runs",
            Flow::Pausing => "is being paused",
            Flow::Paused => "is paused",
            Flow::Resuming => "is being resumed",
        };
        lines.push(format!("its VM {flow}"));
        lines.extend(vmm(vm.workload.pid()));
        // A VM that does not run is not asked: the answer would come when the VM runs again.
        if self.flow.now() == Flow::Running {
            lines.extend(self.guest(vm).await);
        }
        lines
    }

    async fn guest(&self, vm: &LoadedVm) -> Vec<String> {
        let told = tokio::select! {
            told = vm.programs().instances() => told,
            () = self.flow.stopping() => return Vec::new(),
        };
        match told {
            Ok(instances) => instances
                .iter()
                .flat_map(|instance| self.program(instance))
                .take(GUEST_LINES_MAX)
                .collect(),
            Err(error) => vec![format!("guest: {}", chain(&error))],
        }
    }

    fn program(&self, instance: &Instance) -> Vec<String> {
        let name = match instance.exec_id.as_str() {
            "" => self.init.name().to_owned(),
            exec_id => exec::name(exec_id, self.init.name()),
        };
        let threads = instance.threads.iter().take(threads::THREADS_MAX);
        let lines = threads.map(|thread| printable(&format!("guest: {name}: {}", words(thread))));
        lines.collect()
    }
}

/// The threads of the VMM and of its child, the file server.
fn vmm(pid: u32) -> Vec<String> {
    let mut lines = threads_of("VMM", pid);
    lines.extend(
        children(pid)
            .into_iter()
            .flat_map(|pid| threads_of("file server", pid)),
    );
    lines
}

/// The children of a process, by the fourth field of each /proc/PID/stat (proc(5)): not every kernel lists
/// a process's children.
fn children(parent: u32) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten();
    let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| host_process::parent(*pid).is_ok_and(|its| its == parent);
    pids.filter(is_child).collect()
}

fn threads_of(name: &str, pid: u32) -> Vec<String> {
    match threads::read(&PathBuf::from("/proc").join(pid.to_string())) {
        Ok(threads) => threads
            .iter()
            .map(|thread| format!("{name}: {}", words(thread)))
            .collect(),
        Err(error) => vec![format!("{name}: process {pid}: {error}")],
    }
}

fn words(thread: &Thread) -> String {
    let Thread {
        id, name, state, ..
    } = thread;
    let seconds = thread.cpu_ms / 1000;
    let hundredths = thread.cpu_ms % 1000 / 10;
    let mut words = format!("thread {id} {name:?} is {state}, {seconds}.{hundredths:02} s of CPU");
    if let Some(number) = thread.syscall {
        let known = usize::try_from(number).ok().and_then(Sysno::new);
        let name = known.map_or_else(|| number.to_string(), |known| known.name().to_owned());
        words.push_str(", in ");
        words.push_str(&name);
    }
    if !thread.wait_channel.is_empty() {
        words.push_str(" (");
        words.push_str(&thread.wait_channel);
        words.push(')');
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_in_words() {
        let mut thread = Thread {
            id: 7,
            name: "a\nb".to_owned(),
            state: "S".to_owned(),
            cpu_ms: 12_345,
            syscall: Some(202),
            wait_channel: "futex_wait_queue".to_owned(),
            ..Default::default()
        };
        assert_eq!(
            words(&thread),
            "thread 7 \"a\\nb\" is S, 12.34 s of CPU, in futex (futex_wait_queue)"
        );
        thread.syscall = Some(u32::MAX);
        thread.wait_channel.clear();
        assert!(words(&thread).ends_with(", in 4294967295"));
        thread.syscall = None;
        assert!(words(&thread).ends_with(" s of CPU"));
    }
}
