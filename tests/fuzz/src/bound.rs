//! What holds around every target: how much heap and CPU one input may take, and what is kept of an input
//! that shows a fault.

use std::path::PathBuf;
use std::process::abort;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::allocator;
use crate::inputs;
use crate::targets::Target;

/// One input takes no longer by the wall's clock, whatever it waits for.
const WALL_MAX: Duration = Duration::from_secs(30);
/// How much more than a released program these builds take: nothing is optimised in a test's, all of
/// ours is instrumented and checked in a hunt's.
const SLOWER: u32 = if cfg!(feature = "coverage") { 4 } else { 20 };

/// Where an input that shows a fault is kept.
const FOUND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/fuzz");

/// The input at hand, with its target and its start.
static AT_HAND: Mutex<Option<AtHand>> = Mutex::new(None);

struct AtHand {
    target: &'static str,
    input: Vec<u8>,
    since: Instant,
}

/// Calls the target with one input.
///
/// # Panics
/// When the target does, or when it took more than it may.
pub(crate) fn run(target: &'static Target, input: &[u8]) {
    *at_hand() = Some(AtHand {
        target: target.name,
        input: input.to_vec(),
        since: Instant::now(),
    });
    let (before, cpu) = (allocator::mark(), cpu_time());
    (target.run)(input);
    let heap = allocator::most() - before;
    let cpu = cpu_time().saturating_sub(cpu);
    let name = target.name;
    assert!(
        heap <= target.heap_bytes_max,
        "{name}: {heap} bytes of heap; the bound is {}",
        target.heap_bytes_max
    );
    let cpu_max = Duration::from_millis(target.cpu_ms_max.into()) * SLOWER;
    assert!(
        cpu <= cpu_max,
        "{name}: {cpu:?} of CPU; the bound is {cpu_max:?}"
    );
    *at_hand() = None;
}

/// From here on an input that shows a fault is kept, and named with the command that repeats it.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        keep();
        abort();
    }));
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let since = at_hand().as_ref().map(|at_hand| at_hand.since);
            if since.is_some_and(|since| since.elapsed() > WALL_MAX) {
                eprintln!("an input takes more than {WALL_MAX:?}");
                keep();
                abort();
            }
        }
    });
}

fn keep() {
    let Some(at_hand) = at_hand().take() else {
        return;
    };
    let folder = PathBuf::from(FOUND);
    match inputs::write(&folder, at_hand.target, &at_hand.input) {
        Ok(path) => {
            let path = path.display();
            eprintln!(
                "repeat it: cargo run -p wasmvm-fuzz -- replay {} {path}",
                at_hand.target
            );
        }
        Err(reason) => eprintln!("{reason}; the input was {:02x?}", at_hand.input),
    }
}

fn at_hand() -> std::sync::MutexGuard<'static, Option<AtHand>> {
    AT_HAND.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
