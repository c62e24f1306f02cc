//! For tests: how much of the heap a piece of work takes at most, on its own thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The system's allocator, which counts for each thread what is allocated.
struct Counting;

impl Counting {
    fn count(bytes: isize) {
        // A thread that is ending has no counters any more.
        let _ = LIVE.try_with(|live| {
            live.set(live.get() + bytes);
            let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
        });
    }
}

// SAFETY: every call goes to the system's allocator as it is; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size().cast_signed());
        // SAFETY: the caller keeps GlobalAlloc's contract, which is the system allocator's too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        Self::count(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // Both are there while one is copied into the other, as a rule.
        Self::count(bytes.cast_signed());
        // SAFETY: as above.
        let moved = unsafe { System.realloc(at, layout, bytes) };
        Self::count(-layout.size().cast_signed());
        moved
    }
}

/// Runs `work`: its result, and the most bytes that this thread held meanwhile beyond what it held before.
pub(crate) fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let done = work();
    (done, PEAK.get().abs_diff(before))
}

#[test]
fn the_peak_counts_and_not_the_end() {
    let ((), peak) = peak_of(|| drop(vec![0_u8; 1 << 20]));
    assert!((1 << 20..2 << 20).contains(&peak), "{peak}");
    let (_kept, peak) = peak_of(|| 7);
    assert!(peak < 1024, "{peak}");
}
