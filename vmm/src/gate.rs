//! Pause: the gate at which every thread of the machine stands still.
//!
//! ```text
//! control thread   Pause ──► close ──────kick──────┐                Resume ──► open
//!                                                  ▼                             │
//! vCPU             KVM_RUN … signal, EINTR ──► clock saved, parked ──────────────┴─► clock set, KVM_RUN
//! vsock            epoll … wake ──────────────────► parked ──────────────────────┴─► deadlines moved
//! fs               poll … wake ───────────────────► parked ──────────────────────┴─► poll
//!                                                  └ the last one to park sends Done
//! ```
//!
//! No thread waits for another one to park: the last thread that parks notifies the shim. So the control thread
//! carries out orders all the time. A slot is mapped at once; a connection waits in the queue of the
//! socket device, and the shim's own deadline decides how long; end of file ends the process. A thread
//! in the middle of its work finishes that first: the file device the requests at hand, which may mean a
//! slow disk, the socket device the packets of one turn. Every thread enters before it works for the
//! first time, so a thread that starts while the gate is closed parks at once.
//!
//! # What the guest notices
//!
//! The guest's monotonic clock stands still. The clock is kvm-clock (invariant TSC is masked, see [`crate::arch::x86_64::cpuid`]):
//! the vCPU's thread reads the clock when the thread has left the guest (`KVM_GET_CLOCK`) and sets it to the same
//! value before entering again (`KVM_SET_CLOCK`, without `KVM_CLOCK_REALTIME`, which would add the time that
//! passed). `KVM_KVMCLOCK_CTRL` notifies the guest that it was stopped, which keeps its watchdogs quiet (Linux
//! Documentation/virt/kvm/api.rst).
//!
//! The TSC keeps counting, and so does the deadline of the local APIC's timer, which is a value of the TSC. So after
//! a pause that timer fires early, at the end of the pause at the latest, and never late. Linux looks at its clock
//! in the interrupt, finds nothing due, and sets the timer anew for what is left (`hrtimer_interrupt`): a sleep of
//! 5 s, paused for 10, takes 5 s of the guest's time. The guest's kernel may print that its watchdog of clock sources
//! skipped a check after a long interval. `vmm/examples/pause.rs` shows all of this on a real kernel.
//!
//! The shim and the agent set the guest's wall time after a pause.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wasmvm_protocol::inspect::{Inspect, Node};

/// Outcome of a call of [`Gate::close`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Every thread is parked.
    Done,
    /// The gate was opened before every thread was parked.
    Cancelled,
}

/// Called once with the outcome of [`Gate::close`], on the thread that decided the outcome. Must not
/// use the gate.
type OnClosed = Box<dyn FnOnce(Closing) + Send>;
/// Makes a thread look at the gate soon.
type Kick = Box<dyn Fn() + Send>;

/// The gate of one machine: see the module's documentation. Clones are the same gate.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    opened: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    entered: u64,
    threads: Vec<Thread>,
    closings: Vec<OnClosed>,
}

struct Thread {
    number: u64,
    name: String,
    kick: Kick,
    parked: bool,
}

/// A thread's right of way through the gate; dropped when the thread ends.
#[derive(Debug)]
pub struct Pass {
    gate: Gate,
    number: u64,
}

impl Gate {
    /// Closes the gate; calls `on_closed` when every thread is parked, at once if all are.
    pub fn close(&self, on_closed: impl FnOnce(Closing) + Send + 'static) {
        let mut state = self.lock();
        state.closed = true;
        state.closings.push(Box::new(on_closed));
        state.settle();
        for thread in state.threads.iter().filter(|thread| !thread.parked) {
            (thread.kick)();
        }
    }

    /// Opens the gate. Does nothing when the gate is open.
    pub fn open(&self) {
        let mut state = self.lock();
        state.closed = false;
        for on_closed in state.closings.drain(..) {
            on_closed(Closing::Cancelled);
        }
        for thread in &mut state.threads {
            thread.parked = false;
        }
        self.shared.opened.notify_all();
    }

    /// Counts the calling thread in, before it works for the first time. `kick` is called from other
    /// threads, never after the pass is dropped.
    pub fn enter(&self, kick: impl Fn() + Send + 'static) -> Pass {
        let mut state = self.lock();
        state.entered += 1;
        let number = state.entered;
        state.threads.push(Thread {
            number,
            name: std::thread::current().name().unwrap_or("?").to_owned(),
            kick: Box::new(kick),
            parked: false,
        });
        Pass {
            gate: self.clone(),
            number,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the gate is closed, and the threads that have entered, parked or not.
impl Inspect for Gate {
    fn inspect(&self) -> Node {
        let state = self.lock();
        let mut threads = Node::new();
        for thread in &state.threads {
            let doing = if thread.parked { "parked" } else { "runs" };
            threads.set(&thread.name, doing);
        }
        Node::new()
            .with("closed", state.closed)
            .with("threads", threads)
    }
}

impl Pass {
    /// Whether the thread is to call [`Pass::park`].
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.gate.lock().closed
    }

    /// Blocks the thread until the gate is open; returns for how long.
    pub fn park(&self) -> Duration {
        let since = Instant::now();
        let mut state = self.gate.lock();
        while state.closed {
            let threads = &mut state.threads;
            if let Some(own) = threads.iter_mut().find(|own| own.number == self.number) {
                own.parked = true;
            }
            state.settle();
            let opened = self.gate.shared.opened.wait(state);
            state = opened.unwrap_or_else(PoisonError::into_inner);
        }
        since.elapsed()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.threads.retain(|thread| thread.number != self.number);
        state.settle();
    }
}

impl State {
    /// Reports that every thread is parked. Under the lock, so that no pause is reported after its end.
    fn settle(&mut self) {
        if self.closed && self.threads.iter().all(|thread| thread.parked) {
            for on_closed in self.closings.drain(..) {
                on_closed(Closing::Done);
            }
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("closed", &self.closed)
            .field("threads", &self.threads.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
    use std::thread;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A thread that counts, looking at the gate between two steps, until the test is over. It has
    /// entered when this returns.
    fn count_in(gate: &Gate, ticks: &Arc<AtomicU64>) {
        let (gate, ticks) = (gate.clone(), Arc::clone(ticks));
        let (told, entered) = channel();
        thread::spawn(move || {
            let pass = gate.enter(|| {});
            told.send(()).unwrap();
            while Arc::strong_count(&ticks) > 1 {
                if pass.is_closed() {
                    pass.park();
                }
                ticks.fetch_add(1, Ordering::SeqCst);
            }
        });
        assert_eq!(entered.recv_timeout(PATIENCE), Ok(()));
    }

    fn close(gate: &Gate) -> Receiver<Closing> {
        let (told, tellings): (Sender<_>, _) = channel();
        gate.close(move |closing| told.send(closing).unwrap());
        tellings
    }

    #[test]
    fn nothing_moves_between_done_and_open() {
        let (gate, ticks) = (Gate::default(), Arc::default());
        for _ in 0..3 {
            count_in(&gate, &ticks);
        }
        for _ in 0..100 {
            assert_eq!(close(&gate).recv_timeout(PATIENCE), Ok(Closing::Done));
            let at_rest = ticks.load(Ordering::SeqCst);
            // Closed already: reported at once, by this thread.
            assert_eq!(close(&gate).try_recv(), Ok(Closing::Done));
            thread::yield_now();
            assert_eq!(ticks.load(Ordering::SeqCst), at_rest);
            gate.open();
        }
        let open = ticks.load(Ordering::SeqCst);
        while ticks.load(Ordering::SeqCst) == open {
            thread::yield_now();
        }
    }

    #[test]
    fn a_thread_that_does_not_park_holds_up_done_and_an_open_cancels_it() {
        let gate = Gate::default();
        let (kicked, kicks) = channel();
        let pass = gate.enter(move || {
            let _over = kicked.send(());
        });
        let tellings = close(&gate);
        assert_eq!(kicks.recv_timeout(PATIENCE), Ok(()));
        let none = tellings.recv_timeout(Duration::ZERO);
        assert_eq!(none, Err(RecvTimeoutError::Timeout));
        gate.open();
        assert_eq!(tellings.try_recv(), Ok(Closing::Cancelled));
        assert!(!pass.is_closed());
    }

    #[test]
    fn who_looks_sees_which_thread_has_parked() {
        let gate = Gate::default();
        let ticks = Arc::default();
        count_in(&gate, &ticks);
        assert_eq!(gate.inspect().find("closed"), Some(false.into()));
        assert_eq!(close(&gate).recv_timeout(PATIENCE), Ok(Closing::Done));
        let closed = gate.inspect();
        assert_eq!(closed.find("closed"), Some(true.into()));
        assert_eq!(closed.find("threads/?"), Some("parked".into()));
        gate.open();
    }

    #[test]
    fn a_thread_that_ends_is_waited_for_no_more() {
        let gate = Gate::default();
        let pass = gate.enter(|| {});
        let tellings = close(&gate);
        drop(pass);
        assert_eq!(tellings.try_recv(), Ok(Closing::Done));
    }

    #[test]
    fn a_thread_that_comes_to_a_closed_gate_does_nothing_before_it_opens() {
        let (gate, ticks) = (Gate::default(), Arc::default());
        assert_eq!(close(&gate).try_recv(), Ok(Closing::Done));
        count_in(&gate, &ticks);
        // Parked or on its way there: either way it has not counted.
        let tellings = close(&gate);
        assert_eq!(tellings.recv_timeout(PATIENCE), Ok(Closing::Done));
        assert_eq!(ticks.load(Ordering::SeqCst), 0);
        gate.open();
        while ticks.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
    }
}
