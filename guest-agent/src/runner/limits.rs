//! The bound on everything WebAssembly can grow: linear memories and tables together.

use wasmtime::ResourceLimiter;

use crate::work::MemoryLimit;

use super::failure::LoadError;

/// Wasm page, bytes (core specification 4.2.8).
const PAGE_BYTES: u64 = 64 << 10;
/// Bytes that a table costs per element (wasmtime's `ResourceLimiter::table_growing`).
const ELEMENT_BYTES: usize = size_of::<usize>();

/// Counts what all memories and tables of an instance have taken.
#[derive(Debug)]
pub(super) struct Limits {
    used: usize,
    limit: MemoryLimit,
    /// The bytes that `limit` said last; 0 is no bound.
    bytes_max: u64,
}

impl Limits {
    /// A bound that follows `limit`, now and whenever something grows.
    ///
    /// # Errors
    /// [`LoadError::System`] when the limit cannot be read.
    pub(super) fn new(limit: MemoryLimit) -> Result<Self, LoadError> {
        let bytes_max = limit
            .bytes_max()
            .map_err(|error| LoadError::System("read its memory limit", error))?;
        Ok(Self {
            used: 0,
            limit,
            bytes_max,
        })
    }

    /// Refuses a program whose largest memory cannot even begin: better at Create than as a failed start.
    ///
    /// # Errors
    /// [`LoadError::Memory`], naming both numbers.
    pub(super) fn check_initial(&self, pages: Option<u64>) -> Result<(), LoadError> {
        let wanted = pages.unwrap_or(0).saturating_mul(PAGE_BYTES);
        let max = self.bytes_max;
        if max != 0 && wanted > max {
            return Err(LoadError::Memory { wanted, max });
        }
        Ok(())
    }

    fn grow(&mut self, current: usize, desired: usize) -> bool {
        let used = self.used.saturating_add(desired.saturating_sub(current));
        // A limit that cannot be read is the last one that could.
        self.bytes_max = self.limit.bytes_max().unwrap_or(self.bytes_max);
        let max = match self.bytes_max {
            0 => usize::MAX,
            max => usize::try_from(max).unwrap_or(usize::MAX),
        };
        // What does not grow is allowed, also beyond a limit that was lowered meanwhile.
        let allowed = used <= max || desired <= current;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::WorkFile;
    use wasmvm_protocol::agent::Program;

    fn limits(bytes_max: u64) -> (Limits, WorkFile) {
        let mut program = Program::new();
        program.memory_bytes_max = bytes_max;
        let work = WorkFile::new(&program).unwrap();
        let (_, limit) = MemoryLimit::open(work.descriptor().unwrap().into()).unwrap();
        (Limits::new(limit).unwrap(), work)
    }

    #[test]
    fn memories_and_tables_share_one_bound() {
        let (mut limits, _work) = limits(100);
        assert!(limits.memory_growing(0, 60, None).unwrap());
        assert!(limits.table_growing(0, 5, None).unwrap());
        assert!(!limits.memory_growing(60, 61, None).unwrap());
        assert!(!limits.table_growing(5, usize::MAX, None).unwrap());
    }

    #[test]
    fn zero_is_no_bound() {
        let (mut limits, _work) = limits(0);
        assert!(limits.memory_growing(0, usize::MAX, None).unwrap());
    }

    #[test]
    fn the_bound_moves_and_what_was_taken_stays() {
        let (mut limits, work) = limits(100);
        assert!(limits.memory_growing(0, 100, None).unwrap());
        work.set_memory_bytes_max(50).unwrap();
        assert!(!limits.memory_growing(100, 101, None).unwrap());
        assert!(limits.memory_growing(100, 100, None).unwrap());
        work.set_memory_bytes_max(200).unwrap();
        assert!(limits.memory_growing(100, 200, None).unwrap());
    }

    #[test]
    fn a_memory_too_large_to_begin_is_named() {
        assert!(limits(2 * PAGE_BYTES).0.check_initial(Some(2)).is_ok());
        assert!(limits(0).0.check_initial(Some(99)).is_ok());
        let (limits, _work) = limits(PAGE_BYTES);
        let error = limits.check_initial(Some(2)).unwrap_err().to_string();
        assert!(error.contains("131072") && error.contains("65536"));
    }
}
