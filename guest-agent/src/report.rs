//! The answer of a child process to PID 1 over its report pipe: one message, then end of file.
//!
//! ```text
//! 'c' | 'm'        ready: a core module, a component
//! 'i' | 'f' text   refused: the input's fault, our own or the system's
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use wasmvm_protocol::agent::ModuleKind;

use crate::log::clip;
use crate::watch::watch;

/// Longest sentence of a refusal, bytes.
pub const SENTENCE_BYTES_MAX: usize = 4096;
/// Longest report, bytes: a tag and a sentence.
pub const REPORT_BYTES_MAX: usize = 1 + SENTENCE_BYTES_MAX;

/// A child's one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The program is loaded, or the module compiled.
    Ready(ModuleKind),
    /// The input is at fault; the sentence is for its author.
    Refused(String),
    /// Something of ours failed.
    Failed(String),
}

impl Report {
    /// Sends the report and closes the pipe.
    ///
    /// # Errors
    /// `write(2)`'s: PID 1 is gone.
    pub fn send(&self, mut pipe: File) -> io::Result<()> {
        let (tag, text) = match self {
            Self::Ready(ModuleKind::MODULE_KIND_COMPONENT) => (b'm', ""),
            Self::Ready(_) => (b'c', ""),
            Self::Refused(text) => (b'i', text.as_str()),
            Self::Failed(text) => (b'f', text.as_str()),
        };
        let mut bytes = vec![tag];
        bytes.extend_from_slice(clip(text, SENTENCE_BYTES_MAX).as_bytes());
        pipe.write_all(&bytes)
    }

    /// Waits for the child's answer or its end; `None` if the child ended without an answer.
    ///
    /// # Errors
    /// `read(2)`'s.
    pub async fn receive(pipe: OwnedFd) -> io::Result<Option<Self>> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let pipe = watch(pipe)?;
        let mut bytes = vec![0; REPORT_BYTES_MAX];
        let mut length = 0;
        while length < bytes.len() {
            let mut ready = pipe.readable().await?;
            let rest = &mut bytes[length..];
            match ready.try_io(|pipe| Ok(rustix::io::read(pipe.get_ref(), rest)?)) {
                Ok(Ok(0)) => break,
                Ok(Ok(count)) => length += count,
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(Self::parse(&bytes[..length]))
    }

    /// Reads what [`Report::send`] wrote; `None` if the child ended without an answer.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (tag, text) = bytes.split_first()?;
        let text = || {
            let text = String::from_utf8_lossy(text);
            clip(&text, SENTENCE_BYTES_MAX).to_owned()
        };
        match tag {
            b'c' => Some(Self::Ready(ModuleKind::MODULE_KIND_CORE)),
            b'm' => Some(Self::Ready(ModuleKind::MODULE_KIND_COMPONENT)),
            b'i' => Some(Self::Refused(text())),
            b'f' => Some(Self::Failed(text())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    fn through_a_pipe(report: &Report) -> Option<Report> {
        let (read, write) = rustix::pipe::pipe().unwrap();
        report.send(File::from(write)).unwrap();
        let mut bytes = Vec::new();
        File::from(read).read_to_end(&mut bytes).unwrap();
        Report::parse(&bytes)
    }

    #[test]
    fn every_report_survives_the_pipe() {
        for report in [
            Report::Ready(ModuleKind::MODULE_KIND_CORE),
            Report::Ready(ModuleKind::MODULE_KIND_COMPONENT),
            Report::Refused("no".into()),
            Report::Failed("oh".into()),
        ] {
            assert_eq!(through_a_pipe(&report), Some(report));
        }
    }

    #[test]
    fn sentences_are_cut() {
        let long = Report::Refused("x".repeat(10_000));
        let Some(Report::Refused(text)) = through_a_pipe(&long) else {
            panic!("not a refusal");
        };
        assert_eq!(text.len(), SENTENCE_BYTES_MAX);
    }

    #[test]
    fn silence_and_noise_are_no_report() {
        assert_eq!(Report::parse(b""), None);
        assert_eq!(Report::parse(b"?"), None);
    }

    /// What arrives, and no more of it than a report may have.
    fn received(pieces: &[Vec<u8>]) -> Option<Report> {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut write = File::from(write);
        pieces
            .iter()
            .for_each(|piece| write.write_all(piece).unwrap());
        drop(write);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build();
        runtime.unwrap().block_on(Report::receive(read)).unwrap()
    }

    proptest! {
        /// A program that has taken over its runner writes to PID 1 what it likes.
        #[test]
        fn any_bytes_are_a_bounded_report_or_none(
            tag in prop::option::of(prop::sample::select(&b"cmif?"[..])),
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..4),
        ) {
            let pieces = [vec![tag.into_iter().collect()], pieces].concat();
            let bytes = pieces.concat();
            let report = received(&pieces);
            prop_assert_eq!(&report, &Report::parse(&bytes[..bytes.len().min(REPORT_BYTES_MAX)]));
            match report {
                None => prop_assert!(!bytes.first().is_some_and(|tag| b"cmif".contains(tag))),
                Some(Report::Ready(_)) => prop_assert!(b"cm".contains(&bytes[0])),
                Some(Report::Refused(text) | Report::Failed(text)) => {
                    prop_assert!(b"if".contains(&bytes[0]) && text.len() <= SENTENCE_BYTES_MAX);
                }
            }
        }
    }
}
