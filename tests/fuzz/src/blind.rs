//! Changes of known inputs, without a look at what code they reach: for `make test`, which builds nothing
//! anew for it.

use std::time::{Duration, Instant};

use crate::bound;
use crate::targets::Target;

/// Most changes of one input.
const CHANGES_MAX: u64 = 6;
/// Longest run of bytes put in at once.
const RUN_BYTES_MAX: u64 = 64;
/// Longest input.
const INPUT_BYTES_MAX: usize = 4096;
/// Numbers at which arithmetic turns.
const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 1 << 63, u64::MAX];

/// Each known input once, then changes of them for so long.
pub(crate) fn run(
    target: &'static Target,
    known: &[Vec<u8>],
    time: Duration,
) -> Result<(), String> {
    known.iter().for_each(|input| bound::run(target, input));
    let seed = getrandom::u64().map_err(|err| format!("cannot get a seed: {err}"))?;
    let mut random = Random(seed | 1);
    let (start, mut tried) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        bound::run(target, &random.change_of(known));
        tried += 1;
    }
    println!(
        "{}: {} known inputs, {tried} changes of them",
        target.name,
        known.len()
    );
    Ok(())
}

/// xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`; 0 when that is 0.
    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % end).unwrap_or(0)
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = self.next() % RUN_BYTES_MAX;
        (0..len).map(|_| self.next().to_le_bytes()[7]).collect()
    }

    fn change_of(&mut self, known: &[Vec<u8>]) -> Vec<u8> {
        let mut input = known
            .get(self.below(known.len()))
            .cloned()
            .unwrap_or_default();
        for _ in 0..=self.next() % CHANGES_MAX {
            self.change(&mut input, known);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, known: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let end = (at + self.below(16)).min(input.len());
        match self.next() % 7 {
            0 => drop(input.splice(at..at, self.bytes())),
            1 => drop(input.splice(at..end, self.bytes())),
            2 => drop(input.drain(at..end)),
            3 => input.extend_from_within(at..end),
            4 => {
                let edge = EDGES[self.below(EDGES.len())].to_le_bytes();
                let width = 1 << self.below(4);
                let end = (at + width).min(input.len());
                drop(input.splice(at..end, edge[..width].iter().copied()));
            }
            5 => {
                let other = known
                    .get(self.below(known.len()))
                    .map_or(&[][..], Vec::as_slice);
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
        }
    }
}
