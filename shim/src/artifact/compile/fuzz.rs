//! What a compiler VM, that a module has taken over, may deliver.

#![allow(clippy::unwrap_used, reason = "a panic is what a target reports by")]

use std::io::{Read as _, Write as _};

use arbitrary::{Result, Unstructured};
use sha2::{Digest as _, Sha256};
use wasmvm_protocol::slot::SLOT_HEADER_USED_BYTES;

use super::*;
use crate::vm::fuzz::{Vmm, runtime};

/// Most that the compile of one input is given.
const LIMIT: Duration = Duration::from_secs(2);

/// Whatever the VMM and the guest say, in whatever order, the run ends; what it takes for an artifact is
/// one, once the VMM is gone, or is refused.
pub fn compiler_run(input: &[u8]) {
    runtime().block_on(async {
        let (mut vmm, vm) = Vmm::new();
        let run = run_compiler(&vm, "/app.wasm".into(), LIMIT);
        let (received, ()) = tokio::join!(run, async {
            let mut u = Unstructured::new(input);
            while !u.is_empty() && vmm.act(&mut u).await.is_ok() {}
            // As `compile` does, at the latest.
            vm.kill();
        });
        let _end = vm.ended().await;
        vmm.end();
        if let Ok(received) = received {
            let (kind, bytes) = (received.kind, received.bytes);
            if let Ok(artifact) = received.into_artifact() {
                expect_sealed(artifact, kind, bytes);
            }
        }
    });
}

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
    if let Ok(artifact) = artifact {
        expect_sealed(artifact, kind, announced);
    }
    Ok(())
}

/// The file has the length and the digest that its header names, and nobody changes it any more.
fn expect_sealed(mut artifact: File, kind: SlotKind, announced: u64) {
    let mut whole = Vec::new();
    artifact.rewind().unwrap();
    artifact.read_to_end(&mut whole).unwrap();
    let (page, content) = whole.split_at(SLOT_HEADER_BYTES);
    let header = SlotHeader::decode(&page[..SLOT_HEADER_USED_BYTES]).unwrap();
    assert_eq!((header.kind, header.content_bytes), (kind, announced));
    assert_eq!(content.len() as u64, announced);
    let digest: [u8; 32] = Sha256::digest(content).into();
    assert_eq!(header.sha256, digest);
    assert!(artifact.write_all_at(b"x", 0).is_err() && artifact.set_len(0).is_err());
}
