//! A `ctr` on a terminal, and somebody who types.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::containerd;
use crate::ctr::wait;

/// What a terminal sends for Ctrl-C.
pub const CTRL_C: &str = "\x03";
/// What a terminal sends for Ctrl-D.
pub const CTRL_D: &str = "\x04";

/// How long what is waited for may take to show, under emulation and with a compile before it.
const SHOW_MAX: Duration = Duration::from_secs(120);
/// How long `ctr` may take to end once its program has.
const END_MAX: Duration = Duration::from_secs(60);
/// Of what was shown instead, bytes that a failed test tells.
const TAIL_BYTES: usize = 2000;

/// The side of the terminal that shows and types.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    child: Child,
    /// What was shown and no [`Terminal::expect`] has passed yet, without carriage returns: `ctr` leaves
    /// its own terminal adding one to each that the program's terminal has added.
    shown: Vec<u8>,
}

impl Terminal {
    /// Runs `ctr` with the terminal as its controlling one, as in a user's window.
    ///
    /// # Panics
    /// When there is no pty or `ctr` cannot be started.
    #[must_use]
    #[track_caller]
    pub fn of_ctr(arguments: Vec<String>) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pty");
        grantpt(&master).expect("a pty");
        unlockpt(&master).expect("a pty");
        let name = ptsname(&master, Vec::new()).expect("a pty has a name");
        let slave = || {
            File::options()
                .read(true)
                .write(true)
                .open(std::ffi::OsStr::from_bytes(name.as_bytes()))
                .expect("the pty's other side")
        };
        let ctr = containerd::ctr_command();
        let told = ctr
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?)));
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(ctr.get_program())
            .args(arguments)
            .envs(told)
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .expect("setsid can be started");
        Self {
            master: master.into(),
            child,
            shown: Vec::new(),
        }
    }

    /// Types this.
    ///
    /// # Panics
    /// When the terminal is gone.
    #[track_caller]
    pub fn type_in(&mut self, text: &str) {
        self.master
            .write_all(text.as_bytes())
            .expect("the terminal takes it");
    }

    /// Waits until the text is shown, and passes it.
    ///
    /// # Panics
    /// With what was shown instead, when it takes too long or the terminal ends.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let start = Instant::now();
        let mut searched = 0;
        loop {
            let mut places = self.shown[searched..].windows(text.len());
            if let Some(at) = places.position(|bytes| bytes == text.as_bytes()) {
                self.shown.drain(..searched + at + text.len());
                return;
            }
            searched = (self.shown.len() + 1).saturating_sub(text.len());
            let more = self.read_more(SHOW_MAX.saturating_sub(start.elapsed()));
            let from = self.shown.len().saturating_sub(TAIL_BYTES);
            let shown = String::from_utf8_lossy(&self.shown[from..]);
            assert!(more, "{text:?} does not follow; shown last: {shown:?}");
        }
    }

    /// Whether something more was shown in time.
    fn read_more(&mut self, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).expect("a short time");
        let mut polled = [PollFd::new(&self.master, PollFlags::IN)];
        let mut block = [0; 4096];
        if poll(&mut polled, Some(&limit)) != Ok(1) {
            return false;
        }
        // EIO is a terminal's end.
        let count = self.master.read(&mut block).unwrap_or(0);
        self.shown
            .extend(block[..count].iter().filter(|byte| **byte != b'\r'));
        count > 0
    }

    /// Gives the window this size.
    ///
    /// # Panics
    /// When the terminal is gone.
    #[track_caller]
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).expect("the terminal has a size");
    }

    /// Waits for `ctr`'s end: its status and what was shown last.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, String) {
        while self.read_more(END_MAX) {}
        let ended = wait(&mut self.child, END_MAX);
        let shown = String::from_utf8_lossy(&self.shown).into_owned();
        assert!(ended, "ctr does not end; shown: {shown:?}");
        let status = self.child.wait().expect("the child can be waited for");
        (status.code(), shown)
    }
}
