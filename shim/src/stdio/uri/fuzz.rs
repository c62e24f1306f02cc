//! Names of streams.

use super::*;

/// A name that is accepted leads to an absolute path without zero bytes; a logger's arguments come in
/// pairs, each key once.
pub(crate) fn uri(name: &str) {
    let is_a_path =
        |path: &PathBuf| assert!(path.is_absolute() && !path.to_string_lossy().contains('\0'));
    match parse("stdout", name) {
        Ok(Target::Fifo(path) | Target::File(path)) => is_a_path(&path),
        Ok(Target::Logger(command)) => {
            is_a_path(&command.program);
            assert!(command.args.len().is_multiple_of(2));
            assert!(command.args.iter().all(|argument| !argument.contains('\0')));
            let keys: Vec<_> = command.args.iter().step_by(2).collect();
            let once = |key: &&String| keys.iter().filter(|other| *other == key).count() == 1;
            assert!(keys.iter().all(once), "{keys:?}");
        }
        Ok(Target::Null) => assert!(name.is_empty()),
        Err(_) => {}
    }
    for query in [false, true] {
        let decoded = decode(name, query);
        assert!(decoded.is_none_or(|text| text.len() <= name.len() && !text.contains('\0')));
    }
}
