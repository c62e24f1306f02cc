//! The state of a process' threads, from `/proc/<pid>/task` (proc(5)); read on the host and in the guest.

use std::fs;
use std::io;
use std::path::Path;

use crate::agent::Thread;

/// Threads told of one process; the rest is left out.
pub const THREADS_MAX: usize = 64;
/// Milliseconds of a clock tick: `USER_HZ` is 100, part of x86-64's ABI.
const TICK_MS: u64 = 10;

/// The threads of the process that `proc` (as `/proc/7`) stands for, by id. What ends meanwhile is left out.
///
/// # Errors
/// Of reading `proc` itself: `NotFound` when there is no such process.
pub fn read(proc: &Path) -> io::Result<Vec<Thread>> {
    let mut threads: Vec<Thread> = fs::read_dir(proc.join("task"))?
        .filter_map(|entry| thread(&entry.ok()?.path()))
        .take(THREADS_MAX)
        .collect();
    threads.sort_by_key(|thread| thread.id);
    Ok(threads)
}

fn thread(folder: &Path) -> Option<Thread> {
    let mut thread = parse_stat(&fs::read_to_string(folder.join("stat")).ok()?)?;
    // Either may be kept from us, or not be there at all.
    let file = |name| fs::read_to_string(folder.join(name)).unwrap_or_default();
    thread.syscall = parse_syscall(&file("syscall"));
    thread.wait_channel = match file("wchan").as_str() {
        "0" => String::new(),
        function => function.to_owned(),
    };
    Some(thread)
}

/// `id (name) state …`, of which the name may hold anything; fields 14 and 15 are times in ticks.
fn parse_stat(line: &str) -> Option<Thread> {
    let (id, rest) = line.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The first of `fields` is the third of the line.
    let ticks = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Thread {
        id: id.parse().ok()?,
        name: name.to_owned(),
        state: (*fields.first()?).to_owned(),
        cpu_ms: ticks(14)?
            .saturating_add(ticks(15)?)
            .saturating_mul(TICK_MS),
        ..Default::default()
    })
}

/// `number arguments…`; `running`, or a negative number outside of a system call.
fn parse_syscall(line: &str) -> Option<u32> {
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat() {
        let line = "12 (a) (b c) S 1 12 12 0 -1 64 85 0 0 0 17 4 0 0 20 0 1 0 7 4096 3\n";
        let thread = parse_stat(line).unwrap();
        assert_eq!((thread.id, thread.name.as_str()), (12, "a) (b c"));
        assert_eq!((thread.state.as_str(), thread.cpu_ms), ("S", 210));
        for bad in ["", "12 (a", "12 (a) ", "12 (a) S 1", "x (a) S 1"] {
            assert_eq!(parse_stat(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn lines_of_syscall() {
        assert_eq!(
            parse_syscall("202 0x7f 0x80 0x0 0x0 0x0 0x0 0x1 0x2\n"),
            Some(202)
        );
        assert_eq!(parse_syscall("running\n"), None);
        assert_eq!(parse_syscall("-1 0x7ffd 0x7f\n"), None);
        assert_eq!(parse_syscall(""), None);
    }

    #[test]
    fn our_own_threads() {
        let (asleep, wake) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::Builder::new().name("sleeper".into());
        let sleeper = sleeper.spawn(move || wake.recv().is_err()).unwrap();
        let proc = Path::new("/proc/self");
        // Its name is set by itself, once it runs.
        let found = loop {
            let threads = read(proc).unwrap();
            let found = threads.into_iter().find(|thread| thread.name == "sleeper");
            if let Some(thread) = found
                && thread.state == "S"
            {
                break thread;
            }
            std::thread::yield_now();
        };
        assert_ne!(found.id, std::process::id());
        drop(asleep);
        assert!(sleeper.join().unwrap());
        let nobody = read(Path::new("/proc/0")).unwrap_err();
        assert_eq!(nobody.kind(), io::ErrorKind::NotFound);
    }
}
