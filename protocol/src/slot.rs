//! The read-only memory slots: how a module reaches the compiler and artifacts reach the runners.
//!
//! A KVM memory slot (`KVM_MEM_READONLY`) at a fixed guest-physical address outside RAM, backed by a
//! file that host and guest can only read. All VMs of one image share its pages on the host. Slot 0
//! holds the task's own program; the others are filled when an exec runs another one.
//!
//! ```text
//! slot_address(index)     + 4096
//! ├─ SlotHeader, zeros ───┼─ content (artifact or module), zeros to the next page ─┤
//! ```

/// Guest-physical address of the first slot. Above every RAM class, within 36 address bits.
pub const SLOT_ADDRESS: u64 = 32 << 30;
/// The header's page. Content starts at this offset, so that code is page aligned.
pub const SLOT_HEADER_BYTES: usize = 4096;
/// Largest content, bytes: an artifact is 2-4 times its module.
pub const SLOT_CONTENT_BYTES_MAX: u64 = 1 << 30;
/// From one slot to the next, bytes.
pub const SLOT_STRIDE_BYTES: u64 = 2 << 30;
/// Slots of a VM: distinct programs that it runs at the same time.
pub const SLOTS_MAX: u32 = 16;
/// First bytes of the header; the digit is the version.
pub const SLOT_MAGIC: [u8; 8] = *b"WVSLOT01";
/// Bytes of the header that carry meaning.
pub const SLOT_HEADER_USED_BYTES: usize = 56;

/// Guest-physical address of slot `index`; `None` from [`SLOTS_MAX`] on.
#[must_use]
pub fn slot_address(index: u32) -> Option<u64> {
    (index < SLOTS_MAX).then(|| SLOT_ADDRESS + u64::from(index) * SLOT_STRIDE_BYTES)
}

/// The kind of a slot's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// A WebAssembly module or component, for the compiler.
    Wasm = 1,
    /// A compiled core module, for a runner.
    CoreArtifact = 2,
    /// A compiled component, for a runner.
    ComponentArtifact = 3,
}

/// First page of the slot: magic, kind (u32 LE), zero (u32), length (u64 LE), SHA-256 of the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotHeader {
    /// The kind of the content that follows.
    pub kind: SlotKind,
    /// Length of the content, bytes.
    pub content_bytes: u64,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}

/// Why a slot header was refused.
#[derive(Debug, thiserror::Error)]
pub enum SlotHeaderError {
    /// Too short to hold a header.
    #[error("slot header has {0} bytes, not {SLOT_HEADER_USED_BYTES}")]
    Short(usize),
    /// Nothing mapped (all ones), or another version.
    #[error("slot starts with {0:02x?}, not {SLOT_MAGIC:02x?}")]
    Magic([u8; 8]),
    /// A kind this version does not know.
    #[error("slot content has kind {0}; known are 1 (Wasm), 2 (core), 3 (component)")]
    Kind(u32),
    /// Content longer than [`SLOT_CONTENT_BYTES_MAX`].
    #[error("slot content of {0} bytes exceeds {SLOT_CONTENT_BYTES_MAX}")]
    Length(u64),
}

impl SlotHeader {
    /// The header as it lies at the start of the slot; the rest of the page is zero.
    #[must_use]
    pub fn encode(&self) -> [u8; SLOT_HEADER_USED_BYTES] {
        let mut bytes = [0; SLOT_HEADER_USED_BYTES];
        bytes[..8].copy_from_slice(&SLOT_MAGIC);
        bytes[8..12].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.content_bytes.to_le_bytes());
        bytes[24..].copy_from_slice(&self.sha256);
        bytes
    }

    /// Reads the header from the first bytes of a slot.
    ///
    /// # Errors
    /// [`SlotHeaderError`], naming the field and its value.
    pub fn decode(bytes: &[u8]) -> Result<Self, SlotHeaderError> {
        let bytes: &[u8; SLOT_HEADER_USED_BYTES] = bytes
            .first_chunk()
            .ok_or(SlotHeaderError::Short(bytes.len()))?;
        let (magic, rest) = bytes.split_at(8);
        if magic != SLOT_MAGIC {
            let mut found = [0; 8];
            found.copy_from_slice(magic);
            return Err(SlotHeaderError::Magic(found));
        }
        let kind = match u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) {
            1 => SlotKind::Wasm,
            2 => SlotKind::CoreArtifact,
            3 => SlotKind::ComponentArtifact,
            other => return Err(SlotHeaderError::Kind(other)),
        };
        let mut length = [0; 8];
        length.copy_from_slice(&rest[8..16]);
        let content_bytes = u64::from_le_bytes(length);
        if content_bytes > SLOT_CONTENT_BYTES_MAX {
            return Err(SlotHeaderError::Length(content_bytes));
        }
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(&rest[16..]);
        Ok(Self {
            kind,
            content_bytes,
            sha256,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn header_survives_the_slot() {
        let header = SlotHeader {
            kind: SlotKind::ComponentArtifact,
            content_bytes: 0x1234_5678,
            sha256: [7; 32],
        };
        assert_eq!(SlotHeader::decode(&header.encode()).unwrap(), header);
    }

    #[test]
    fn an_empty_slot_is_refused() {
        let unmapped = SlotHeader::decode(&[0xff; 4096]).unwrap_err();
        assert!(unmapped.to_string().contains("starts with"));
        assert!(matches!(
            SlotHeader::decode(&[]),
            Err(SlotHeaderError::Short(0))
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in proptest::array::uniform32(any::<u8>())) {
            bytes[..8].copy_from_slice(&SLOT_MAGIC);
            let mut slot = bytes.to_vec();
            slot.resize(SLOT_HEADER_BYTES, 0);
            if let Ok(header) = SlotHeader::decode(&slot) {
                prop_assert!(header.content_bytes <= SLOT_CONTENT_BYTES_MAX);
            }
        }
    }

    #[test]
    fn every_slot_has_room_for_the_largest_content() {
        let mut before = 0;
        for index in 0..SLOTS_MAX {
            let address = slot_address(index).unwrap();
            assert!(address >= SLOT_ADDRESS && address >= before);
            before = address + SLOT_HEADER_BYTES as u64 + SLOT_CONTENT_BYTES_MAX;
            assert!(before <= address + SLOT_STRIDE_BYTES);
        }
        for index in [SLOTS_MAX, SLOTS_MAX + 1, u32::MAX / 2, u32::MAX] {
            assert_eq!(slot_address(index), None);
        }
    }
}
