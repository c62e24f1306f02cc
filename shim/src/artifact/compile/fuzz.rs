//! What a compiler VM, that a module has taken over, may deliver.

#![allow(clippy::unwrap_used, reason = "a panic is what a target reports by")]

use std::io::{Read as _, Write as _};

use arbitrary::{Result, Unstructured};
use sha2::{Digest as _, Sha256};
use wasmvm_protocol::slot::SLOT_HEADER_USED_BYTES;

use super::*;

/// An artifact has the length that was announced, the digest of what was delivered, and can be changed by
/// nobody any more.
pub fn compiler(input: &[u8]) {
    let _used_up = deliver(&mut Unstructured::new(input));
}

fn deliver(u: &mut Unstructured<'_>) -> Result<()> {
    let announced = if u.arbitrary()? {
        u.arbitrary()?
    } else {
        u64::from(u.arbitrary::<u8>()?)
    };
    let kind = *u.choose(&[SlotKind::CoreArtifact, SlotKind::ComponentArtifact])?;
    let page = usize::from(u.int_in_range(0..=1_u8)?) * SLOT_HEADER_BYTES;
    let bytes = [&vec![0; page][..], u.bytes(u.len())?].concat();
    let mut file = memory_file(c"artifact").unwrap();
    file.write_all(&bytes).unwrap();
    let received = Received {
        file,
        kind,
        bytes: announced,
    };
    let fits = announced.checked_add(SLOT_HEADER_BYTES as u64) == Some(bytes.len() as u64);
    let artifact = received.into_artifact();
    assert_eq!(
        artifact.is_ok(),
        fits,
        "{announced} announced, {} there",
        bytes.len()
    );
    if let Ok(mut artifact) = artifact {
        let mut head = [0; SLOT_HEADER_USED_BYTES];
        artifact.read_exact_at(&mut head, 0).unwrap();
        let header = SlotHeader::decode(&head).unwrap();
        assert_eq!((header.kind, header.content_bytes), (kind, announced));
        let digest: [u8; 32] = Sha256::digest(&bytes[SLOT_HEADER_BYTES..]).into();
        assert_eq!(header.sha256, digest);
        assert!(artifact.write_all_at(b"x", 0).is_err() && artifact.set_len(0).is_err());
        let mut whole = Vec::new();
        artifact.rewind().unwrap();
        artifact.read_to_end(&mut whole).unwrap();
        assert_eq!(whole.len(), bytes.len());
    }
    Ok(())
}
