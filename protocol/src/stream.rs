//! The header that opens a stdio stream on [`crate::ports::STREAM_PORT`].
//!
//! ```text
//!  0      4    5        6         7               8          16
//!  ┌──────┬────┬────────┬─────────┬───────────────┬──────────┬──────┬──────┐
//!  │ WVS1 │ fd │ task n │ exec n  │ reserved, 0   │ token LE │ task │ exec │
//!  └──────┴────┴────────┴─────────┴───────────────┴──────────┴──────┴──────┘
//! ```
//!
//! The shim writes it first, before the request that names the stream by its token; after it the
//! connection carries the bytes of that one descriptor, in one direction, and nothing else.

use std::io;

/// First bytes of every stream; the digit is the version.
pub const STREAM_MAGIC: [u8; 4] = *b"WVS1";
/// Bytes before the two ids.
pub const STREAM_HEADER_FIXED_BYTES: usize = 16;
/// Longest task or exec id, bytes. containerd allows 76 characters (`pkg/identifiers`).
pub const ID_BYTES_MAX: usize = 76;

/// The one of an instance's three descriptors that a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StdioFd {
    /// Standard input, from the host to the guest.
    Stdin = 0,
    /// Standard output, from the guest to the host.
    Stdout = 1,
    /// Standard error, from the guest to the host.
    Stderr = 2,
}

/// The opening of a stream: the descriptor and the instance that the stream is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// A number that the shim chose, unique within the VM; repeated in decimal in the request that uses the stream.
    pub token: u64,
    /// Task id, 1 to [`ID_BYTES_MAX`] bytes.
    pub task: String,
    /// Exec id, empty for init.
    pub exec: String,
    /// The descriptor that the stream carries.
    pub fd: StdioFd,
}

/// Why a stream header was refused.
#[derive(Debug, thiserror::Error)]
pub enum StreamHeaderError {
    /// The connection ended or failed inside the header.
    #[error("cannot read the stream header")]
    Read(#[source] io::Error),
    /// Not one of our streams, or another version.
    #[error("stream header starts with {0:02x?}, not {STREAM_MAGIC:02x?}")]
    Magic([u8; 4]),
    /// Not 0, 1 or 2.
    #[error("stream header names descriptor {0}; only 0, 1 and 2 exist")]
    Fd(u8),
    /// An id of length 0 or beyond [`ID_BYTES_MAX`].
    #[error(
        "stream header gives the {field} id {bytes} bytes; allowed are {min} to {ID_BYTES_MAX}"
    )]
    IdLength {
        /// The id's field: `task` or `exec`.
        field: &'static str,
        /// The refused length, bytes.
        bytes: usize,
        /// The shortest allowed one.
        min: usize,
    },
    /// An id that is not UTF-8.
    #[error("stream header's {0} id is not UTF-8")]
    IdText(&'static str),
}

impl StreamHeader {
    /// The bytes on the wire.
    ///
    /// # Errors
    /// [`StreamHeaderError::IdLength`] for an id that does not fit.
    pub fn encode(&self) -> Result<Vec<u8>, StreamHeaderError> {
        let task_len = id_length("task", self.task.len(), 1)?;
        let exec_len = id_length("exec", self.exec.len(), 0)?;
        let mut bytes = Vec::with_capacity(STREAM_HEADER_FIXED_BYTES + 2 * ID_BYTES_MAX);
        bytes.extend_from_slice(&STREAM_MAGIC);
        bytes.extend_from_slice(&[self.fd as u8, task_len, exec_len, 0]);
        bytes.extend_from_slice(&self.token.to_le_bytes());
        bytes.extend_from_slice(self.task.as_bytes());
        bytes.extend_from_slice(self.exec.as_bytes());
        Ok(bytes)
    }

    /// Lengths of the task and the exec id that follow the fixed part.
    ///
    /// # Errors
    /// [`StreamHeaderError`] when the fixed part is not a valid one.
    pub fn id_lengths(
        fixed: &[u8; STREAM_HEADER_FIXED_BYTES],
    ) -> Result<(usize, usize), StreamHeaderError> {
        let [m0, m1, m2, m3, _, task_len, exec_len, ..] = *fixed;
        let magic = [m0, m1, m2, m3];
        if magic != STREAM_MAGIC {
            return Err(StreamHeaderError::Magic(magic));
        }
        let task_len = usize::from(id_length("task", usize::from(task_len), 1)?);
        let exec_len = usize::from(id_length("exec", usize::from(exec_len), 0)?);
        Ok((task_len, exec_len))
    }

    /// Puts a header together from its fixed part and the two ids behind it.
    ///
    /// # Errors
    /// [`StreamHeaderError`], naming the field and its value.
    pub fn from_parts(
        fixed: &[u8; STREAM_HEADER_FIXED_BYTES],
        ids: &[u8],
    ) -> Result<Self, StreamHeaderError> {
        let (task_len, exec_len) = Self::id_lengths(fixed)?;
        let fd = match fixed[4] {
            0 => StdioFd::Stdin,
            1 => StdioFd::Stdout,
            2 => StdioFd::Stderr,
            other => return Err(StreamHeaderError::Fd(other)),
        };
        let short = || StreamHeaderError::Read(io::ErrorKind::UnexpectedEof.into());
        let (task, rest) = ids.split_at_checked(task_len).ok_or_else(short)?;
        let exec = rest.get(..exec_len).ok_or_else(short)?;
        let mut token = [0; 8];
        token.copy_from_slice(&fixed[8..]);
        Ok(Self {
            token: u64::from_le_bytes(token),
            task: id_text("task", task)?,
            exec: id_text("exec", exec)?,
            fd,
        })
    }
}

fn id_length(field: &'static str, bytes: usize, min: usize) -> Result<u8, StreamHeaderError> {
    match u8::try_from(bytes) {
        Ok(len) if (min..=ID_BYTES_MAX).contains(&bytes) => Ok(len),
        _ => Err(StreamHeaderError::IdLength { field, bytes, min }),
    }
}

fn id_text(field: &'static str, bytes: &[u8]) -> Result<String, StreamHeaderError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| StreamHeaderError::IdText(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> StreamHeader {
        StreamHeader {
            token: 0x0102_0304_0506_0708,
            task: "web".into(),
            exec: "sh".into(),
            fd: StdioFd::Stderr,
        }
    }

    /// As the agent reads it: the fixed part, then as much as that says.
    fn read(bytes: &[u8]) -> Result<StreamHeader, StreamHeaderError> {
        let (fixed, rest) = bytes.split_first_chunk().unwrap();
        let (task_len, exec_len) = StreamHeader::id_lengths(fixed)?;
        let ids = rest.get(..task_len + exec_len).unwrap_or(rest);
        StreamHeader::from_parts(fixed, ids)
    }

    #[test]
    fn golden_bytes() {
        let golden = b"WVS1\x02\x03\x02\x00\x08\x07\x06\x05\x04\x03\x02\x01websh";
        assert_eq!(header().encode().unwrap(), golden);
        assert_eq!(read(golden).unwrap(), header());
    }

    #[test]
    fn refuses_what_is_not_a_header() {
        let refusal = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        assert!(refusal(b"HTTP/1.1 GET / 0123456").contains("starts with"));
        assert!(refusal(b"WVS1\x03\x01\x00\x0000000000x").contains("descriptor 3"));
        assert!(refusal(b"WVS1\x00\x00\x00\x0000000000").contains("task id 0 bytes"));
        assert!(refusal(b"WVS1\x00\x01\x4d\x0000000000").contains("exec id 77 bytes"));
        assert!(refusal(b"WVS1\x00\x05\x00\x0000000000web").contains("cannot read"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), STREAM_HEADER_FIXED_BYTES..256)
        ) {
            if let Ok(header) = read(&bytes) {
                let encoded = header.encode().unwrap();
                prop_assert_eq!(&read(&encoded).unwrap(), &header);
            }
        }
    }
}
