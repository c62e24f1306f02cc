//! The packet header (virtio 1.2 §5.10.6, `struct virtio_vsock_hdr` in `linux/virtio_vsock.h`).

/// Bytes of a header; all fields are little-endian and there is no padding.
pub(super) const HEADER_BYTES: usize = 44;
/// Largest payload taken from or given to the guest, bytes: Linux' `VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`.
pub(super) const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// `VIRTIO_VSOCK_TYPE_STREAM`, the only type of socket here.
pub(super) const TYPE_STREAM: u16 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender of the packet will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender of the packet will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both flags: the connection has ended.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Operation of a packet (`VIRTIO_VSOCK_OP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

/// A header, copied out of guest memory once, or to be copied into it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Length of the payload, bytes.
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Decodes a header. Any bytes are a header; the fields are checked later.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
            let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
            // Every field ends within the header.
            field.copied().unwrap_or([0; N])
        }
        let u16_at = |at| u16::from_le_bytes(field(bytes, at));
        let u32_at = |at| u32::from_le_bytes(field(bytes, at));
        let u64_at = |at| u64::from_le_bytes(field(bytes, at));
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The operation; `None` when the number is unknown.
    pub(super) fn op(&self) -> Option<Op> {
        Some(match self.op {
            1 => Op::Request,
            2 => Op::Response,
            3 => Op::Reset,
            4 => Op::Shutdown,
            5 => Op::Data,
            6 => Op::CreditUpdate,
            7 => Op::CreditRequest,
            _ => return None,
        })
    }

    /// The reset that answers this packet (§5.10.6.4), on behalf of a connection that does not exist.
    pub(super) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: TYPE_STREAM,
            op: Op::Reset as u16,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        let header = Header {
            src_cid: 2,
            dst_cid: 3,
            src_port: 0x4000_0001,
            dst_port: 1024,
            len: 5,
            kind: TYPE_STREAM,
            op: Op::Data as u16,
            flags: SHUTDOWN_BOTH,
            buf_alloc: 0x1_0000,
            fwd_cnt: 7,
        };
        let golden = b"\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x01\0\0\x40\0\x04\0\0\
            \x05\0\0\0\x01\0\x05\0\x03\0\0\0\0\0\x01\0\x07\0\0\0";
        assert_eq!(&header.encode(), golden);
        assert_eq!(Header::decode(golden), header);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header(bytes in proptest::collection::vec(any::<u8>(), HEADER_BYTES)) {
            let bytes: [u8; HEADER_BYTES] = bytes.try_into().unwrap();
            prop_assert_eq!(Header::decode(&bytes).encode(), bytes);
        }
    }
}
