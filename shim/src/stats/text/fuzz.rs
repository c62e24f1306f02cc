//! Counters.

use super::*;

/// What is asked for is found or 0, in any text.
pub(crate) fn counters(text: &str) {
    let keyed = Keyed(text.to_owned());
    for line in text.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        // The first line of a key counts, where there are more.
        let found = keyed.get(key);
        assert!(found == count(value) || text.matches(key).count() > 1);
        if let Some((major, minor)) = device(key) {
            assert_eq!(device(&format!("{major}:{minor}")), Some((major, minor)));
        }
    }
}
