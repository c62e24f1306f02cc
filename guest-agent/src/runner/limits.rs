//! The bound on everything WebAssembly can grow: linear memories and tables together.

use wasmtime::ResourceLimiter;

use super::failure::LoadError;

/// Wasm page, bytes (core specification 4.2.8).
const PAGE_BYTES: u64 = 64 << 10;
/// What a table costs per element, bytes (wasmtime's `ResourceLimiter::table_growing`).
const ELEMENT_BYTES: usize = size_of::<usize>();

/// Counts what all memories and tables of an instance have taken.
#[derive(Debug)]
pub struct Limits {
    used: usize,
    max: usize,
}

impl Limits {
    /// At most `max` bytes; 0 is no bound.
    #[must_use]
    pub fn new(max: u64) -> Self {
        let max = match max {
            0 => usize::MAX,
            max => usize::try_from(max).unwrap_or(usize::MAX),
        };
        Self { used: 0, max }
    }

    fn grow(&mut self, current: usize, desired: usize) -> bool {
        let used = self.used.saturating_add(desired.saturating_sub(current));
        let allowed = used <= self.max;
        if allowed {
            self.used = used;
        }
        allowed
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(self.grow(current, desired))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let bytes = |elements: usize| elements.saturating_mul(ELEMENT_BYTES);
        Ok(self.grow(bytes(current), bytes(desired)))
    }
}

/// Refuses a program whose largest memory cannot even begin: better at Create than as a failed start.
///
/// # Errors
/// [`LoadError::Memory`], naming both numbers.
pub fn check_initial(pages: Option<u64>, max: u64) -> Result<(), LoadError> {
    let wanted = pages.unwrap_or(0).saturating_mul(PAGE_BYTES);
    if max != 0 && wanted > max {
        return Err(LoadError::Memory { wanted, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_and_tables_share_one_bound() {
        let mut limits = Limits::new(100);
        assert!(limits.memory_growing(0, 60, None).unwrap());
        assert!(limits.table_growing(0, 5, None).unwrap());
        assert!(!limits.memory_growing(60, 61, None).unwrap());
        assert!(!limits.table_growing(5, usize::MAX, None).unwrap());
    }

    #[test]
    fn zero_is_no_bound() {
        let mut limits = Limits::new(0);
        assert!(limits.memory_growing(0, usize::MAX, None).unwrap());
    }

    #[test]
    fn a_memory_too_large_to_begin_is_named() {
        assert!(check_initial(Some(2), 2 * PAGE_BYTES).is_ok());
        assert!(check_initial(Some(99), 0).is_ok());
        let error = check_initial(Some(2), PAGE_BYTES).unwrap_err().to_string();
        assert!(error.contains("131072") && error.contains("65536"));
    }
}
