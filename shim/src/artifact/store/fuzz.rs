//! A directory in which anything lies.

#![allow(clippy::unwrap_used, reason = "a panic is what a target reports by")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use arbitrary::{Result, Unstructured};
use sha2::{Digest as _, Sha256};
use wasmvm_protocol::slot::SLOT_HEADER_BYTES;

use super::super::room::{make_all_room, make_room};
use super::*;

/// Past every process (`PID_MAX_LIMIT`): a writer that is gone.
const NO_PID: &str = "4194305";
/// Digits of a key.
const KEY_DIGITS: usize = 64;
/// Most files of one input.
const FILES_MAX: u8 = 6;

/// Only what has the name of an artifact, or of one that is being written, is removed or changed; what is
/// taken for sound has the length and the digest that its header names.
pub fn store(input: &[u8]) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let _used_up = look(&mut Unstructured::new(input), directory.path());
}

fn look(u: &mut Unstructured<'_>, path: &Path) -> Result<()> {
    for _ in 0..u.int_in_range(1..=FILES_MAX)? {
        let (name, content) = (name(u)?, content(u)?);
        fs::write(path.join(name), content).unwrap();
    }
    let before = foreign(path);
    let Ok(Some(folder)) = Folder::open("artifact_dir", path) else {
        panic!("a directory of ours cannot be opened");
    };
    let refused = folder.refuse_foreign("artifact_dir").is_err();
    assert_eq!(refused, !before.is_empty(), "{:?}", before.keys());
    for key in [key(0), key(1)] {
        if let Some(mut file) = sound(&folder, &ArtifactKey::fake(&key), check_content) {
            let header = header(&file).unwrap();
            assert_eq!(content_sha256(&mut file).unwrap(), header.sha256);
            let length = file.metadata().unwrap().len();
            assert_eq!(length, header.content_bytes + SLOT_HEADER_BYTES as u64);
        }
    }
    folder.remove_abandoned();
    let budget = Budget {
        bytes_max: u.arbitrary::<u16>()?.into(),
        reserve_percent: 0,
    };
    let room = make_room(&folder, budget, u.arbitrary::<u16>()?.into());
    let held: u64 = folder
        .artifacts()
        .iter()
        .map(|artifact| artifact.bytes)
        .sum();
    assert!(!room || held <= budget.bytes_max);
    make_all_room(&folder);
    assert!(foreign(path) == before, "what is not ours has changed");
    Ok(())
}

fn key(nth: u8) -> String {
    char::from(b'a' + nth).to_string().repeat(KEY_DIGITS)
}

fn name(u: &mut Unstructured<'_>) -> Result<String> {
    let key = key(u.int_in_range(0..=2)?);
    Ok(match u.int_in_range(0..=8)? {
        0..=2 => key,
        3 => format!(".{key}.7.{NO_PID}"),
        4 => format!(".backup.{NO_PID}"),
        5 => "customer-database".to_owned(),
        6 => key.to_uppercase(),
        7 => format!("{key}.old"),
        _ => format!(".{key}.{NO_PID}"),
    })
}

/// An artifact, or one that is nearly one.
fn content(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let length = usize::from(u.arbitrary::<u8>()?);
    let mut bytes = vec![0; SLOT_HEADER_BYTES + length];
    let header = SlotHeader {
        kind: SlotKind::CoreArtifact,
        content_bytes: if u.ratio(1, 4)? {
            u.arbitrary()?
        } else {
            length as u64
        },
        sha256: Sha256::digest(&bytes[SLOT_HEADER_BYTES..]).into(),
    };
    bytes[..SLOT_HEADER_USED_BYTES].copy_from_slice(&header.encode());
    if u.ratio(1, 4)? {
        let at = u.choose_index(bytes.len())?;
        bytes[at] = u.arbitrary()?;
    }
    if u.ratio(1, 4)? {
        bytes.truncate(u.choose_index(bytes.len())?);
    }
    Ok(bytes)
}

/// All files whose names are not ours, with their content.
fn foreign(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let is_key = |text: &str| {
        text.len() == KEY_DIGITS && !text.contains(|c: char| !"0123456789abcdef".contains(c))
    };
    let is_ours = |name: &str| match name.strip_prefix('.') {
        None => is_key(name),
        Some(hidden) => match hidden.split('.').collect::<Vec<_>>()[..] {
            [key, nth, pid] => {
                is_key(key) && nth.parse::<u64>().is_ok() && pid.parse::<u32>().is_ok()
            }
            _ => false,
        },
    };
    let files = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let files = files.map(|entry| {
        (
            entry.file_name().into_string().unwrap(),
            fs::read(entry.path()).unwrap(),
        )
    });
    files.filter(|(name, _)| !is_ours(name)).collect()
}
