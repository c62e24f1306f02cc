//! protobuf's wire format, as far as the lengths that a message claims.
//!
//! protobuf 3.7 reserves memory for what a field claims to hold, up to 10 MB, before it looks whether that
//! came (`READ_RAW_BYTES_MAX_ALLOC` in its `coded_input_stream`). So a guest's message is walked over
//! first: a claim beyond the message's end is refused. The decoder finds for itself whatever else is wrong
//! in a message. In a field that is decoded as a message in place, the decoder knows where the field ends.

use protobuf::Message;

/// The field of ttrpc's Response with the answer, which is decoded as a message of its own.
const RESPONSE_PAYLOAD: u64 = 2;
/// Longest varint, bytes (protobuf's encoding guide, "Base 128 Varints").
const VARINT_BYTES_MAX: usize = 10;

/// Whether no length in a ttrpc Response, or in the answer within it, is beyond its message.
pub(super) fn response_holds(response: &[u8]) -> bool {
    Fields(response).all(|field| match field {
        Field::Bytes(RESPONSE_PAYLOAD, answer) => lengths_hold(answer),
        Field::Bytes(..) | Field::Other => true,
        Field::Beyond => false,
    })
}

/// Decodes a message that a guest sent; `None` for bytes that are no such message.
pub(super) fn decoded<M: Message>(bytes: &[u8]) -> Option<M> {
    lengths_hold(bytes).then(|| M::parse_from_bytes(bytes).ok())?
}

fn lengths_hold(message: &[u8]) -> bool {
    Fields(message).all(|field| field != Field::Beyond)
}

#[derive(Debug, PartialEq, Eq)]
enum Field<'a> {
    /// The number of a field, and the bytes behind a length that holds.
    Bytes(u64, &'a [u8]),
    /// A length beyond the end of the message.
    Beyond,
    /// A number, or the begin or end of a group.
    Other,
}

/// The fields of a message, as far as the bytes are well-formed.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (index, byte) in (0..).zip(self.0.iter().take(VARINT_BYTES_MAX)) {
            value |= u64::from(byte & 0x7f).wrapping_shl(7 * index);
            if byte & 0x80 == 0 {
                self.0 = self.0.get(index as usize + 1..)?;
                return Some(value);
            }
        }
        None
    }

    fn skip(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (skipped, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(skipped)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let tag = self.varint()?;
        match tag & 7 {
            0 => self.varint().map(drop)?,
            1 => self.skip(8).map(drop)?,
            2 => {
                let length = self.varint()?;
                let bytes = usize::try_from(length).ok().and_then(|all| self.skip(all));
                return Some(bytes.map_or(Field::Beyond, |bytes| Field::Bytes(tag >> 3, bytes)));
            }
            5 => self.skip(4).map(drop)?,
            3 | 4 => {}
            _ => return None,
        }
        Some(Field::Other)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wasmvm_protocol::agent::Instance;
    use wasmvm_protocol::agent::containerd::api::{PidsResponse, ProcessInfo};

    use super::*;

    #[test]
    fn a_length_beyond_its_message_is_found_wherever_it_is_decoded() {
        let claims = [0x0a, 0xc0, 0x84, 0x3d];
        assert!(!lengths_hold(&claims) && !response_holds(&claims));
        assert!(decoded::<Instance>(&claims).is_none());
        let answer = [&[0x12, 4][..], &claims].concat();
        assert!(lengths_hold(&answer) && !response_holds(&answer));
        assert!(response_holds(&[0x0a, 1, b'x', 0x12, 0]));
    }

    #[test]
    fn an_honest_message_holds() {
        let process = ProcessInfo {
            pid: 7,
            ..Default::default()
        };
        let pids = PidsResponse {
            processes: vec![process; 30],
            ..Default::default()
        };
        let bytes = pids.write_to_bytes().unwrap();
        assert!(lengths_hold(&bytes));
        assert_eq!(decoded::<PidsResponse>(&bytes), Some(pids));
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_over(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _either = (response_holds(&bytes), decoded::<PidsResponse>(&bytes));
        }
    }
}
