//! Linux signal numbers, as far as the shim has to tell them apart (signal(7)).

use rustix::process::Signal;

/// The highest real-time signal.
pub(crate) const SIGNAL_MAX: u32 = 64;
/// Not a signal: kill(2) with 0 asks whether the program is there.
pub(crate) const PROBE: u32 = 0;
/// Interrupts a program, as a terminal's Ctrl-C does.
pub(crate) const SIGINT: u32 = 2;
/// Asks a program to end.
pub(crate) const SIGTERM: u32 = 15;
/// Ends a program; cannot be caught.
pub(crate) const SIGKILL: u32 = 9;

/// Stops a program; cannot be caught.
pub(crate) const SIGSTOP: u32 = 19;
/// Resumes a stopped program.
pub(crate) const SIGCONT: u32 = 18;

/// Numbers that do not end a program: the probe is no signal; SIGCHLD, SIGCONT, SIGURG and SIGWINCH are
/// ignored; SIGSTOP, SIGTSTP, SIGTTIN and SIGTTOU stop.
const HARMLESS: [u32; 9] = [PROBE, 17, 18, 23, 28, 19, 20, 21, 22];

/// Whether the signal ends a program that does not handle it.
pub(crate) fn ends_by_default(signal: u32) -> bool {
    !HARMLESS.contains(&signal)
}

/// The exit status of a program that does not handle the signal; `None` for a signal that ends no program.
pub(crate) fn default_status(signal: u32) -> Option<u32> {
    ends_by_default(signal).then(|| status_of(signal))
}

/// The signal of this number, as system calls take it; `None` for real-time signals, which have no name.
pub(crate) fn named(signal: u32) -> Option<Signal> {
    Signal::from_named_raw(i32::try_from(signal).ok()?)
}

/// The exit status of a program that a signal has ended.
pub(crate) const fn status_of(signal: u32) -> u32 {
    128 + signal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_ones_end_a_program() {
        for signal in [1, 2, 9, 15, 34, 64] {
            assert_eq!(default_status(signal), Some(128 + signal));
        }
        for signal in [PROBE, 17, 19, 28] {
            assert_eq!(default_status(signal), None);
        }
    }
}
