//! Hands each answer of the VMM to the waiter of its order.
//!
//! Each order has an id and one waiter. The place of an answer exists as long as its [`Awaited`]: a
//! waiter that gives up, by a deadline or because its future is dropped, leaves nothing behind.
//!
//! | order | answers |
//! |---|---|
//! | MapSlot, Pause, Resume | `Done` |
//! | Connect | `Connected` or `Refused` |
//! | Inspect | `Inspected` |
//! | Sink | perhaps `Connected`; then `SinkDone`, `SinkFailed` or `Refused` |

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use wasmvm_protocol::control::FromVmm;
use wasmvm_protocol::inspect::Node;

/// An answer, or a sentence that says why there is none.
pub(super) type Answer<T> = Result<T, String>;

/// Orders that are not answered yet, by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers(Arc<Mutex<HashMap<u32, Waiter>>>);

/// The waiter for an order, by the answer that the order can have.
#[derive(Debug)]
enum Waiter {
    Done(oneshot::Sender<Answer<()>>),
    Connected(oneshot::Sender<Answer<()>>),
    /// The number of bytes written.
    Written(oneshot::Sender<Answer<u64>>),
    /// The state of the machine.
    Inspected(oneshot::Sender<Answer<Node>>),
}

/// The waiting end of an order; its drop removes the order's place.
#[derive(Debug)]
pub(super) struct Awaited<T> {
    id: u32,
    answers: Answers,
    answer: oneshot::Receiver<T>,
}

impl<T> Awaited<T> {
    /// Waits for the answer; `None` when the driver has ended.
    pub(super) async fn answer(mut self) -> Option<T> {
        (&mut self.answer).await.ok()
    }
}

impl<T> Drop for Awaited<T> {
    fn drop(&mut self) {
        self.answers.table().remove(&self.id);
    }
}

impl Answers {
    /// Registers an order whose answer says no more than that the order is carried out.
    pub(super) fn done(&self, id: u32) -> Awaited<Answer<()>> {
        self.expect(id, Waiter::Done)
    }

    /// Registers an order for a connection to the guest.
    pub(super) fn connected(&self, id: u32) -> Awaited<Answer<()>> {
        self.expect(id, Waiter::Connected)
    }

    /// Registers an order for a sink; the answer is the number of bytes in the file.
    pub(super) fn written(&self, id: u32) -> Awaited<Answer<u64>> {
        self.expect(id, Waiter::Written)
    }

    /// Registers an order to tell the state of the machine.
    pub(super) fn inspected(&self, id: u32) -> Awaited<Answer<Node>> {
        self.expect(id, Waiter::Inspected)
    }

    fn expect<T>(&self, id: u32, waiter: impl FnOnce(oneshot::Sender<T>) -> Waiter) -> Awaited<T> {
        let (sender, answer) = oneshot::channel();
        self.table().insert(id, waiter(sender));
        Awaited {
            id,
            answers: self.clone(),
            answer,
        }
    }

    /// Hands an answer to its waiter; an answer without a waiter is dropped.
    pub(super) fn deliver(&self, message: FromVmm) {
        let (FromVmm::Done { id }
        | FromVmm::Connected { id }
        | FromVmm::Inspected { id, .. }
        | FromVmm::Refused { id, .. }
        | FromVmm::SinkDone { id, .. }
        | FromVmm::SinkFailed { id, .. }) = message
        else {
            return;
        };
        let Some(waiter) = self.take(id, &message) else {
            return;
        };
        // A send fails when the waiter has just given up.
        let _given_up = match (waiter, message) {
            (Waiter::Done(to), FromVmm::Done { .. })
            | (Waiter::Connected(to), FromVmm::Connected { .. }) => to.send(Ok(())).is_err(),
            (Waiter::Connected(to), FromVmm::Refused { reason, .. }) => {
                to.send(Err(reason)).is_err()
            }
            (Waiter::Written(to), FromVmm::SinkDone { bytes, .. }) => to.send(Ok(bytes)).is_err(),
            (
                Waiter::Written(to),
                FromVmm::Refused { reason, .. } | FromVmm::SinkFailed { reason, .. },
            ) => to.send(Err(reason)).is_err(),
            (Waiter::Inspected(to), FromVmm::Inspected { state, .. }) => {
                to.send(Ok(state)).is_err()
            }
            (Waiter::Inspected(to), other) => to.send(unexpected(&other)).is_err(),
            (Waiter::Done(to) | Waiter::Connected(to), other) => {
                to.send(unexpected(&other)).is_err()
            }
            (Waiter::Written(to), other) => to.send(unexpected(&other)).is_err(),
        };
    }

    /// Takes the waiter out, unless the last answer to its order is still to come.
    fn take(&self, id: u32, message: &FromVmm) -> Option<Waiter> {
        let mut table = self.table();
        let is_sink = matches!(table.get(&id)?, Waiter::Written(_));
        // A sink's connection is open: the answer about the file is still to come.
        if is_sink && matches!(message, FromVmm::Connected { .. }) {
            return None;
        }
        table.remove(&id)
    }

    /// The map is whole after every statement, so a panic elsewhere has not broken it.
    fn table(&self) -> MutexGuard<'_, HashMap<u32, Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many orders are not answered yet.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn pending(&self) -> usize {
        self.table().len()
    }
}

fn unexpected<T>(answer: &FromVmm) -> Answer<T> {
    Err(format!("the VMM answered {answer:?}"))
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_order_gets_its_own_answer() {
        let answers = Answers::default();
        let (done, connected) = (answers.done(1), answers.connected(2));
        let (refused, inspected) = (answers.connected(3), answers.inspected(4));
        let state = Node::new().with("vcpus", 1_u32);
        answers.deliver(FromVmm::Inspected {
            id: 4,
            state: state.clone(),
        });
        answers.deliver(FromVmm::Connected { id: 2 });
        answers.deliver(FromVmm::Refused {
            id: 3,
            reason: "nobody listens".into(),
        });
        answers.deliver(FromVmm::Done { id: 1 });
        assert_eq!(done.answer().await, Some(Ok(())));
        assert_eq!(connected.answer().await, Some(Ok(())));
        assert_eq!(refused.answer().await, Some(Err("nobody listens".into())));
        assert_eq!(inspected.answer().await, Some(Ok(state)));
        assert_eq!(answers.pending(), 0);
    }

    #[tokio::test]
    async fn a_sink_is_answered_when_it_is_full_not_when_it_is_connected() {
        let answers = Answers::default();
        let written = answers.written(1);
        answers.deliver(FromVmm::Connected { id: 1 });
        answers.deliver(FromVmm::SinkDone { id: 1, bytes: 7 });
        assert_eq!(written.answer().await, Some(Ok(7)));
        assert_eq!(answers.pending(), 0);
    }

    #[tokio::test]
    async fn an_answer_of_another_kind_is_a_sentence() {
        let answers = Answers::default();
        let done = answers.done(1);
        answers.deliver(FromVmm::SinkDone { id: 1, bytes: 7 });
        let sentence = done.answer().await.unwrap().unwrap_err();
        assert!(
            sentence.starts_with("the VMM answered SinkDone"),
            "{sentence}"
        );
    }

    #[test]
    fn who_gives_up_leaves_no_place() {
        let answers = Answers::default();
        drop((answers.done(1), answers.connected(2), answers.written(3)));
        assert_eq!(answers.pending(), 0);
        // Nor does an answer that comes late, or that nobody asked for, make one.
        for id in 1..100 {
            answers.deliver(FromVmm::Connected { id });
        }
        assert_eq!(answers.pending(), 0);
    }
}
