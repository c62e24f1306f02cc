//! The threads of a host process, and any thread in words and as a part of a tree.

use std::path::PathBuf;

use syscalls::x86_64::Sysno;
use wasmvm_protocol::agent::Thread;
use wasmvm_protocol::inspect::{Inspect, Node, Value};
use wasmvm_protocol::threads;

/// The threads of a host process at one moment.
#[derive(Debug)]
pub(crate) struct HostThreads {
    /// The process in a word, as in "VMM".
    name: &'static str,
    pid: u32,
    threads: Result<Vec<Thread>, String>,
}

impl HostThreads {
    /// Reads the threads of the process `pid`.
    #[must_use]
    pub(crate) fn of(name: &'static str, pid: u32) -> Self {
        let threads = threads::read(&PathBuf::from("/proc").join(pid.to_string()));
        Self {
            name,
            pid,
            threads: threads.map_err(|error| error.to_string()),
        }
    }

    #[cfg(test)]
    pub(crate) fn fake(threads: Vec<Thread>) -> Self {
        Self {
            name: "VMM",
            pid: u32::MAX,
            threads: Ok(threads),
        }
    }

    /// A sentence for each thread.
    #[must_use]
    pub(crate) fn lines(&self) -> Vec<String> {
        let Self { name, pid, .. } = self;
        match &self.threads {
            Ok(threads) => threads
                .iter()
                .map(|thread| format!("{name}: {}", words(thread)))
                .collect(),
            Err(error) => vec![format!("{name}: process {pid}: {error}")],
        }
    }
}

impl Inspect for HostThreads {
    fn inspect(&self) -> Node {
        let threads = match &self.threads {
            Ok(threads) => tree(threads, |text| plain(text).into()).into(),
            Err(error) => Value::from(error.as_str()),
        };
        Node::new().with("pid", self.pid).with("threads", threads)
    }
}

/// Threads by their ids; `said` makes values of the texts that the process chose.
pub(crate) fn tree(threads: &[Thread], said: fn(&str) -> Value) -> Node {
    threads.iter().fold(Node::new(), |node, thread| {
        let mut told = Node::new()
            .with("cpu_ms", thread.cpu_ms)
            .with("name", said(&thread.name))
            .with("state", said(&thread.state));
        if let Some(number) = thread.syscall {
            told.set("syscall", syscall(number));
        }
        if !thread.wait_channel.is_empty() {
            told.set("wait_channel", said(&thread.wait_channel));
        }
        node.with(thread.id.to_string(), told)
    })
}

/// Text that a VMM chose, which its guest may have taken over, for a terminal: ASCII in one line.
pub(crate) fn plain(text: &str) -> String {
    let printable = |c: &char| matches!(c, ' '..='~');
    text.chars()
        .map(|c| if printable(&c) { c } else { '?' })
        .collect()
}

/// A thread as in `thread 7 "vcpu" is R, 1.20 s of CPU`.
pub(crate) fn words(thread: &Thread) -> String {
    let Thread {
        id, name, state, ..
    } = thread;
    let seconds = thread.cpu_ms / 1000;
    let hundredths = thread.cpu_ms % 1000 / 10;
    let mut words = format!("thread {id} {name:?} is {state}, {seconds}.{hundredths:02} s of CPU");
    if let Some(number) = thread.syscall {
        words.push_str(", in ");
        words.push_str(&syscall(number));
    }
    if !thread.wait_channel.is_empty() {
        words.push_str(" (");
        words.push_str(&thread.wait_channel);
        words.push(')');
    }
    words
}

fn syscall(number: u32) -> String {
    let known = usize::try_from(number).ok().and_then(Sysno::new);
    known.map_or_else(|| number.to_string(), |known| known.name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread() -> Thread {
        Thread {
            id: 7,
            name: "a\nb".to_owned(),
            state: "S".to_owned(),
            cpu_ms: 12_345,
            syscall: Some(202),
            wait_channel: "futex_wait_queue".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn a_thread_in_words() {
        let mut thread = thread();
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

    #[test]
    fn a_thread_in_a_tree_marks_what_a_guest_chose() {
        let guests = tree(&[thread()], Value::guest).to_string();
        let lines = [
            "7",
            "  cpu_ms: 12345",
            "  name: (guest) a\\nb",
            "  state: (guest) S",
            "  syscall: futex",
            "  wait_channel: (guest) futex_wait_queue",
        ];
        assert_eq!(guests.lines().collect::<Vec<_>>(), lines);
        let hosts = tree(&[thread()], |text| plain(text).into());
        assert_eq!(hosts.find("7/name").unwrap().to_string(), "a?b\n");
    }
}
