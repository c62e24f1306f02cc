//! Answers to orders.

use arbitrary::{Result, Unstructured};

use super::*;

pub(crate) fn answers(input: &[u8]) {
    let _used_up = deliver(&mut Unstructured::new(input));
}

/// The waiters for an answer.
#[derive(Default)]
struct Waiting {
    plain: Vec<Awaited<Answer<()>>>,
    sinks: Vec<Awaited<Answer<u64>>>,
    looks: Vec<Awaited<Answer<Node>>>,
}

fn deliver(u: &mut Unstructured<'_>) -> Result<()> {
    let answers = Answers::default();
    let mut waiting = Waiting::default();
    let mut next_id = 0;
    while !u.is_empty() {
        let id = u.int_in_range(0..=8)?;
        match u.int_in_range(0..=8)? {
            0 => waiting.plain.push(answers.done(next_id)),
            1 if id > 6 => waiting.looks.push(answers.inspected(next_id)),
            1 => waiting.plain.push(answers.connected(next_id)),
            2 => waiting.sinks.push(answers.written(next_id)),
            3 => drop(waiting.plain.pop()),
            4 => drop(waiting.sinks.pop()),
            5 if id > 6 => answers.deliver(FromVmm::Inspected {
                id,
                state: Node::new().with("vcpus", 1_u32),
            }),
            5 => answers.deliver(FromVmm::Connected { id }),
            6 => answers.deliver(FromVmm::Done { id: u.arbitrary()? }),
            7 => answers.deliver(FromVmm::SinkDone {
                id,
                bytes: u.arbitrary()?,
            }),
            _ => answers.deliver(FromVmm::Refused {
                id,
                reason: u.arbitrary()?,
            }),
        }
        // As the shim numbers them: no two orders have the same.
        next_id += 1;
        let held = answers.table().len();
        assert!(
            held <= waiting.plain.len() + waiting.sinks.len() + waiting.looks.len(),
            "{held} are kept"
        );
    }
    drop(waiting);
    assert!(
        answers.table().is_empty(),
        "an answer is waited for by nobody"
    );
    Ok(())
}
