//! Flow control (virtio 1.2 §5.10.6.3): how much each side may send ahead.
//!
//! Each side counts the bytes that it took out of its buffer (`fwd_cnt`) and sends the count, and the
//! size of the buffer (`buf_alloc`), in every header. A sender may have `buf_alloc` bytes on the way.
//! All counters are free-running 32-bit numbers.

use super::BUFFER_BYTES_MAX;

/// Bytes taken out of our buffer before the guest gets an update that it did not ask for.
const UPDATE_BYTES: u32 = BUFFER_BYTES_MAX / 2;

/// Credit for sending to the guest.
#[derive(Debug, Default)]
pub(super) struct SendCredit {
    sent: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl SendCredit {
    /// Takes over the credit in a header.
    pub(super) fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.buf_alloc = buf_alloc;
        self.fwd_cnt = fwd_cnt;
    }

    /// Bytes that may be sent now. Nonsense in `fwd_cnt` reads as a full buffer.
    pub(super) fn available(&self) -> u32 {
        self.buf_alloc
            .saturating_sub(self.sent.wrapping_sub(self.fwd_cnt))
    }

    /// Counts bytes as sent.
    pub(super) fn spend(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }
}

/// Credit that the guest has for sending to us.
#[derive(Debug, Default)]
pub(super) struct ReceiveCredit {
    received: u32,
    forwarded: u32,
    told: u32,
}

impl ReceiveCredit {
    /// Counts bytes as received; false when the guest had no credit for them.
    #[must_use]
    pub(super) fn receive(&mut self, bytes: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        if bytes > BUFFER_BYTES_MAX.saturating_sub(held) {
            return false;
        }
        self.received = self.received.wrapping_add(bytes);
        true
    }

    /// Counts bytes as taken out of the buffer.
    pub(super) fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// The `fwd_cnt` of a header that is about to be sent.
    pub(super) fn tell(&mut self) -> u32 {
        self.told = self.forwarded;
        self.told
    }

    /// Whether the guest should get a `CREDIT_UPDATE`: often enough that it never waits for
    /// credit it has, seldom enough that not every packet causes one.
    pub(super) fn update_due(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= UPDATE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_guest_may_shrink_its_buffer_or_lie() {
        let mut credit = SendCredit::default();
        assert_eq!(credit.available(), 0);
        credit.update(100, 0);
        credit.spend(80);
        assert_eq!(credit.available(), 20);
        credit.update(50, 0);
        assert_eq!(credit.available(), 0);
        credit.update(50, 80);
        assert_eq!(credit.available(), 50);
        credit.update(50, 81);
        assert_eq!(credit.available(), 0);
    }

    #[test]
    fn counters_wrap() {
        let mut credit = SendCredit {
            sent: u32::MAX - 9,
            buf_alloc: 100,
            fwd_cnt: u32::MAX - 19,
        };
        assert_eq!(credit.available(), 90);
        credit.spend(30);
        assert_eq!(credit.available(), 60);
        credit.update(100, 20);
        assert_eq!(credit.available(), 100);
    }

    proptest! {
        /// Whatever a guest says it took, over all wraps of the counters.
        #[test]
        fn what_may_be_sent_fits_the_guests_buffer(sent: u32, buf_alloc: u32, fwd_cnt: u32, spent: u32) {
            let mut credit = SendCredit { sent, buf_alloc, fwd_cnt };
            let available = credit.available();
            prop_assert!(available <= buf_alloc);
            let spent = spent.min(available);
            credit.spend(spent);
            prop_assert_eq!(credit.available(), available - spent);
        }

        #[test]
        fn never_holds_more_than_the_buffer(
            start: u32,
            steps in proptest::collection::vec((0..2 * BUFFER_BYTES_MAX, 0..BUFFER_BYTES_MAX), 0..64),
        ) {
            let mut credit = ReceiveCredit { received: start, forwarded: start, told: start };
            let mut held = 0;
            for (bytes, out) in steps {
                let fits = held + bytes <= BUFFER_BYTES_MAX;
                prop_assert_eq!(credit.receive(bytes), fits);
                held += if fits { bytes } else { 0 };
                let out = out.min(held);
                credit.forward(out);
                held -= out;
            }
            // A guest that used up its credit is told as soon as the buffer is empty again.
            credit.tell();
            prop_assert!(credit.receive(BUFFER_BYTES_MAX - held));
            credit.forward(BUFFER_BYTES_MAX);
            prop_assert!(credit.update_due());
        }
    }
}
