//! Bytes of one connection on their way in one direction.

use std::os::fd::AsFd;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::BUFFER_BYTES_MAX;

/// A bounded queue of bytes; takes no memory until it is used.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    /// Where the bytes that are not consumed yet begin.
    start: usize,
}

impl Backlog {
    /// Most bytes that a backlog holds.
    pub(super) const BYTES_MAX: usize = BUFFER_BYTES_MAX as usize;

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// The bytes, oldest first.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Appends bytes that credit was given for; so they fit.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        debug_assert!(self.bytes().len().saturating_add(bytes.len()) <= Self::BYTES_MAX);
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Removes the oldest bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.bytes.len());
        if self.is_empty() {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }

    /// Reads what a socket has, without waiting, into an empty backlog. Returns the bytes read, zero at end of file.
    ///
    /// # Errors
    /// `recv(2)`'s.
    pub(super) fn fill_from(&mut self, socket: impl AsFd) -> Result<usize, Errno> {
        debug_assert!(self.is_empty());
        self.clear();
        self.bytes.reserve_exact(Self::BYTES_MAX);
        let (read, _) = recv(socket, spare_capacity(&mut self.bytes), RecvFlags::DONTWAIT)?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order() {
        let mut backlog = Backlog::default();
        backlog.push(b"abc");
        backlog.consume(2);
        backlog.push(b"def");
        assert_eq!(backlog.bytes(), b"cdef");
        backlog.consume(4);
        assert!(backlog.is_empty());
    }

    proptest::proptest! {
        /// As a queue of bytes does; what is held stays within the credit that was given.
        #[test]
        fn behaves_as_a_queue(steps in proptest::collection::vec((0..Backlog::BYTES_MAX, 0..Backlog::BYTES_MAX), 0..12)) {
            let (mut backlog, mut model) = (Backlog::default(), std::collections::VecDeque::new());
            for (nth, (push, consume)) in (0_u8..).zip(steps) {
                let push = push.min(Backlog::BYTES_MAX - model.len());
                backlog.push(&vec![nth; push]);
                model.extend(std::iter::repeat_n(nth, push));
                backlog.consume(consume);
                model.drain(..consume.min(model.len()));
                proptest::prop_assert!(backlog.start <= backlog.bytes.len());
                proptest::prop_assert!(backlog.bytes.len() <= 2 * Backlog::BYTES_MAX);
                proptest::prop_assert!(backlog.bytes().iter().eq(&model));
            }
        }
    }
}
