//! The path of a task's cgroup below the hierarchies' roots.

use std::path::{Component, PathBuf};

use super::CgroupError;

/// Slice of a unit that names no slice.
const SLICE_DEFAULT: &str = "system.slice";
/// Reason why a path is refused.
const NOT_A_PATH: &str = "'..' and zero bytes are not allowed";

/// The path of a task below the root of every hierarchy: `given` (`linux.cgroupsPath`), or
/// `<namespace>/<id>`. A path in systemd's notation, `slice:prefix:name`, becomes the directory that
/// systemd would give the unit.
///
/// # Errors
/// [`CgroupError::Path`].
pub(crate) fn cgroup_path(
    given: Option<&str>,
    namespace: &str,
    id: &str,
) -> Result<PathBuf, CgroupError> {
    let refuse = |reason| CgroupError::Path {
        given: given.unwrap_or_default().to_owned(),
        reason,
    };
    let inner = match given {
        None => PathBuf::from(namespace).join(id),
        Some(given) => match given.split(':').collect::<Vec<_>>()[..] {
            [slice, prefix, name] if !given.contains('/') => {
                systemd_path(slice, prefix, name).map_err(refuse)?
            }
            _ => PathBuf::from(given),
        },
    };
    let mut path = PathBuf::new();
    for component in inner.components() {
        match component {
            Component::Normal(name) if !name.as_encoded_bytes().contains(&0) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            _ => return Err(refuse(NOT_A_PATH)),
        }
    }
    if path.as_os_str().is_empty() {
        return Err(refuse("it is the root of the hierarchy"));
    }
    Ok(path)
}

/// The path of a unit: `a-b.slice` lies in `a.slice` (systemd.slice(5)); the unit is `prefix-name.scope`.
fn systemd_path(slice: &str, prefix: &str, name: &str) -> Result<PathBuf, &'static str> {
    let slice = if slice.is_empty() {
        SLICE_DEFAULT
    } else {
        slice
    };
    let stem = slice
        .strip_suffix(".slice")
        .ok_or("its first part must end in .slice")?;
    let mut path = PathBuf::new();
    if stem != "-" {
        let mut whole = String::new();
        for part in stem.split('-') {
            if part.is_empty() {
                return Err("its first part is not the name of a slice");
            }
            whole = if whole.is_empty() {
                part.to_owned()
            } else {
                format!("{whole}-{part}")
            };
            path.push(format!("{whole}.slice"));
        }
    }
    if name.is_empty() {
        return Err("its last part is empty");
    }
    let unit = if name.ends_with(".slice") {
        name.to_owned()
    } else if prefix.is_empty() {
        format!("{name}.scope")
    } else {
        format!("{prefix}-{name}.scope")
    };
    path.push(unit);
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(given: Option<&str>) -> Result<String, CgroupError> {
        let path = cgroup_path(given, "default", "hello")?;
        Ok(path.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_plain_path_lies_below_the_root() {
        assert_eq!(path(None).unwrap(), "default/hello");
        assert_eq!(path(Some("/default/x")).unwrap(), "default/x");
        assert_eq!(path(Some("kubepods/./pod1/x")).unwrap(), "kubepods/pod1/x");
        assert_eq!(path(Some("/odd/a:b:c")).unwrap(), "odd/a:b:c");
    }

    #[test]
    fn systemds_notation_becomes_its_directories() {
        assert_eq!(
            path(Some("kubepods-burstable-pod1.slice:cri-containerd:abc")).unwrap(),
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/\
             cri-containerd-abc.scope"
        );
        assert_eq!(
            path(Some(":nerdctl:abc")).unwrap(),
            "system.slice/nerdctl-abc.scope"
        );
        assert_eq!(path(Some("-.slice::abc")).unwrap(), "abc.scope");
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for given in [
            "/a/../../b",
            "/",
            ".",
            "a:b:c",
            "-a.slice:b:c",
            "a.slice:b:",
            "a\0b",
        ] {
            let err = path(Some(given)).unwrap_err();
            assert!(
                err.to_string()
                    .starts_with("config.json: linux.cgroupsPath = "),
                "{err}"
            );
        }
    }
}
