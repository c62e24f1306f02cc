//! A program's terminal: a pseudo-terminal of the guest's kernel.
//!
//! ```text
//!                ┌ feed ──►┐        ┌ line discipline ┐
//!  stdin stream ─┘         master ══╡ echo, ^C, ^D, … ╞══ slave: 0, 1, 2 of the runner
//! stdout stream ◄─ drain ──┘        └─────────────────┘
//! ```
//!
//! Each direction holds at most [`PUMP_BYTES_MAX`] here (and the kernel's own buffers, 4 to 8 KiB): a
//! slow reader stops the program, a program that does not read stops the stream.
//!
//! Nobody but the runner holds the slave. So its end closes it before the kernel would hang it up and
//! with that discard output; and the master says `EIO` when, and only when, all of it has been read.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::watch::watch_for;

/// Most bytes on their way in one direction.
pub const PUMP_BYTES_MAX: usize = 16 << 10;

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Width of the terminal, characters.
    pub columns: u16,
    /// Height of the terminal, characters.
    pub rows: u16,
}

/// The master's side; 0 columns and 0 rows until somebody says otherwise, as runc's.
#[derive(Debug)]
pub struct Terminal {
    master: AsyncFd<OwnedFd>,
}

impl Terminal {
    /// A new terminal, and its slave, which belongs to `uid`.
    ///
    /// # Errors
    /// Out of terminals or descriptors.
    pub fn open(uid: u32) -> io::Result<(Self, OwnedFd)> {
        // NOCTTY: it is the runner's controlling terminal, never ours.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None::<Gid>)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let master = watch_for(master, Interest::READABLE | Interest::WRITABLE)?;
        Ok((Self { master }, slave))
    }

    /// Sets the terminal's size; the kernel tells the program by SIGWINCH.
    ///
    /// # Errors
    /// `TIOCSWINSZ`'s.
    pub fn resize(&self, size: WindowSize) -> io::Result<()> {
        let size = Winsize {
            ws_col: size.columns,
            ws_row: size.rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(rustix::termios::tcsetwinsize(&self.master, size)?)
    }
}

/// The two ends that the shim holds: non-blocking, `None` where it wants none.
#[derive(Debug)]
pub struct Ends {
    /// The stream of what is typed.
    pub stdin: Option<OwnedFd>,
    /// The stream of what is shown.
    pub stdout: Option<OwnedFd>,
}

/// Carries bytes until the last holder of the slave is gone and all of its output is delivered.
pub async fn pump(terminal: Arc<Terminal>, ends: Ends) {
    let feeding = ends.stdin.map(|stdin| {
        let terminal = Arc::clone(&terminal);
        tokio::spawn(async move { feed(stdin, &terminal.master).await })
    });
    drain(&terminal.master, ends.stdout).await;
    if let Some(feeding) = feeding {
        feeding.abort();
    }
}

/// From the stream to the program. The stream's end just ends the typing, as with runc.
async fn feed(stdin: OwnedFd, master: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let stdin = watch_for(stdin, Interest::READABLE)?;
    let mut buffer = vec![0; PUMP_BYTES_MAX];
    loop {
        let count = read(&stdin, &mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        write_all(master, &buffer[..count]).await?;
    }
}

/// From the program to the stream. Without a reader its output goes nowhere, but it goes.
async fn drain(master: &AsyncFd<OwnedFd>, stdout: Option<OwnedFd>) {
    let mut stdout = stdout.and_then(|stdout| watch_for(stdout, Interest::WRITABLE).ok());
    let mut buffer = vec![0; PUMP_BYTES_MAX];
    while let Ok(count @ 1..) = read(master, &mut buffer).await {
        if let Some(stream) = &stdout
            && write_all(stream, &buffer[..count]).await.is_err()
        {
            stdout = None;
        }
    }
}

async fn read(from: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = from.readable().await?;
        match ready.try_io(|from| Ok(rustix::io::read(from.get_ref(), &mut *buffer)?)) {
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

async fn write_all(to: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = to.writable().await?;
        match ready.try_io(|to| Ok(rustix::io::write(to.get_ref(), bytes)?)) {
            // A full terminal may say so by writing nothing.
            Ok(Ok(0)) => return Err(Errno::IO.into()),
            Ok(Ok(count)) => bytes = &bytes[count..],
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// A pumped terminal: its slave, and the shim's ends of stdin and stdout.
    fn pumped() -> (Arc<Terminal>, std::fs::File, UnixStream, UnixStream) {
        let pair = || {
            let (shim, agent) = UnixStream::pair().unwrap();
            agent.set_nonblocking(true).unwrap();
            (shim, OwnedFd::from(agent))
        };
        let (stdin, stdin_end) = pair();
        let (stdout, stdout_end) = pair();
        let (terminal, slave) = Terminal::open(rustix::process::getuid().as_raw()).unwrap();
        let terminal = Arc::new(terminal);
        let ends = Ends {
            stdin: Some(stdin_end),
            stdout: Some(stdout_end),
        };
        tokio::spawn(pump(Arc::clone(&terminal), ends));
        (terminal, slave.into(), stdin, stdout)
    }

    /// Runs blocking code beside the pump.
    async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_typed_is_echoed_and_read_line_by_line() {
        let (_terminal, mut slave, mut stdin, mut stdout) = pumped();
        beside(move || {
            stdin.write_all(b"hel\x7flo\r").unwrap();
            let mut line = [0; 64];
            let count = slave.read(&mut line).unwrap();
            assert_eq!(&line[..count], b"helo\n");
            let mut echo = [0; 10];
            stdout.read_exact(&mut echo).unwrap();
            assert_eq!(&echo, b"hel\x08 \x08lo\r\n"[..10].as_ref());
        })
        .await;
    }

    #[tokio::test]
    async fn all_output_arrives_before_the_end_however_slow_the_reader_is() {
        let (_terminal, mut slave, _stdin, mut stdout) = pumped();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|i| b'a' + (i % 26) as u8).collect();
        let expected = sent.clone();
        let writer = tokio::task::spawn_blocking(move || slave.write_all(&sent).unwrap());
        let received = beside(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).unwrap();
            bytes
        })
        .await;
        writer.await.unwrap();
        assert!(received == expected, "{} bytes", received.len());
    }

    #[tokio::test]
    async fn a_program_that_does_not_read_stops_the_stream_and_loses_nothing_raw() {
        let (_terminal, mut slave, mut stdin, _stdout) = pumped();
        let mut raw = rustix::termios::tcgetattr(&slave).unwrap();
        raw.make_raw();
        rustix::termios::tcsetattr(&slave, rustix::termios::OptionalActions::Now, &raw).unwrap();
        let sent: Vec<u8> = (0..500_000_u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let writer = tokio::task::spawn_blocking(move || stdin.write_all(&sent).unwrap());
        let received = beside(move || {
            let mut bytes = vec![0; 500_000];
            slave.read_exact(&mut bytes).unwrap();
            bytes
        })
        .await;
        writer.await.unwrap();
        assert!(received == expected);
    }

    #[tokio::test]
    async fn without_a_reader_output_goes_nowhere_but_goes() {
        let (_terminal, mut slave, _stdin, stdout) = pumped();
        drop(stdout);
        beside(move || slave.write_all(&[b'x'; 200_000]).unwrap()).await;
    }

    #[tokio::test]
    async fn the_size_is_what_was_said() {
        let (terminal, slave, _stdin, _stdout) = pumped();
        let size = |slave| rustix::termios::tcgetwinsize(slave).unwrap();
        assert_eq!((size(&slave).ws_col, size(&slave).ws_row), (0, 0));
        let (columns, rows) = (132, 43);
        terminal.resize(WindowSize { columns, rows }).unwrap();
        assert_eq!((size(&slave).ws_col, size(&slave).ws_row), (132, 43));
    }
}
