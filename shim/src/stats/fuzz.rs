//! The kernel's text files: mounts, hierarchies and counters.

use arbitrary::{Result, Unstructured};

use super::text;

/// No path of a cgroup climbs; what the kernel escapes comes back; a counter is a number or 0.
pub fn proc_files(input: &[u8]) {
    let _used_up = read(&mut Unstructured::new(input));
}

fn read(u: &mut Unstructured<'_>) -> Result<()> {
    let given: Option<String> = u.arbitrary()?;
    let id = *u.choose(&["web", "a-b", "..", "x/y"])?;
    let place = crate::cgroup::cgroup_path(given.as_deref(), "default", id);
    if let Ok(path) = &place {
        crate::cgroup::fuzz::stays_below(path);
    }
    let rest = u.bytes(u.len())?;
    crate::mountinfo::fuzz::lines(rest);
    if let Ok(path) = place {
        crate::cgroup::fuzz::hierarchies(rest, &path);
    }
    text::fuzz::counters(&String::from_utf8_lossy(rest));
    Ok(())
}
