//! The forms in which cgroup files are written (cgroup-v2.rst, "Format").

use crate::cgroup::Cgroup;

/// A file of `key value` lines.
#[derive(Debug)]
pub(super) struct Keyed(String);

impl Keyed {
    pub(super) fn read(cgroup: &Cgroup, controller: &str, file: &str) -> Self {
        Self(cgroup.read(controller, file).unwrap_or_default())
    }

    /// The value of a key; 0 when the file does not have it.
    pub(super) fn get(&self, key: &str) -> u64 {
        let mut pairs = self.0.lines().filter_map(|line| line.split_once(' '));
        pairs
            .find(|(name, _)| *name == key)
            .map_or(0, |(_, value)| count(value))
    }
}

/// The number in a file: 0 without a file, the largest for `max`.
pub(super) fn number(cgroup: &Cgroup, controller: &str, file: &str) -> u64 {
    let text = cgroup.read(controller, file);
    text.map_or(0, |text| count(&text))
}

pub(super) fn count(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or(0),
    }
}

/// Major and minor number of a device, written as `253:16`.
pub(super) fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_words() {
        let file = Keyed("anon_thp 1\nanon 2\nodd\nfile x\n".to_owned());
        assert_eq!((file.get("anon"), file.get("anon_thp")), (2, 1));
        assert_eq!((file.get("odd"), file.get("file")), (0, 0));
    }

    #[test]
    fn a_number_may_have_no_bound() {
        assert_eq!(count("max\n"), u64::MAX);
        assert_eq!(count(" 7\n"), 7);
        assert_eq!(count("-1"), 0);
        assert_eq!(device("253:16"), Some((253, 16)));
        assert_eq!(device("x:1"), None);
    }
}
