//! Units of memory: MiB, GiB and pages.

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes in a GiB.
pub const GIB: u64 = 1 << 30;
/// Size of a page, bytes.
pub const PAGE_BYTES: u64 = 4096;

/// `value` rounded down to a page.
#[must_use]
pub fn page_floor(value: u64) -> u64 {
    value & !(PAGE_BYTES - 1)
}

/// `value` rounded up to a page; `None` when that does not fit.
#[must_use]
pub fn page_ceil(value: u64) -> Option<u64> {
    value.checked_add(PAGE_BYTES - 1).map(page_floor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_round_both_ways() {
        assert_eq!(
            (page_floor(0x1fff), page_ceil(0x1001)),
            (0x1000, Some(0x2000))
        );
        assert_eq!(
            (page_ceil(0x1000), page_ceil(u64::MAX)),
            (Some(0x1000), None)
        );
    }

    proptest::proptest! {
        /// Both ends of the page that a value lies in, or its own.
        #[test]
        fn a_value_lies_between_its_pages_ends(value: u64) {
            let floor = page_floor(value);
            proptest::prop_assert!(floor <= value && value - floor < PAGE_BYTES && floor.is_multiple_of(PAGE_BYTES));
            match page_ceil(value) {
                Some(ceil) => proptest::prop_assert!(
                    ceil >= value && ceil - value < PAGE_BYTES && ceil.is_multiple_of(PAGE_BYTES)
                ),
                None => proptest::prop_assert!(value > u64::MAX - (PAGE_BYTES - 1)),
            }
        }
    }
}
