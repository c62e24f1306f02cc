//! containerd's mount options: flags of `mount(2)`, and the rest for the file system.

use rustix::mount::MountFlags;

/// Options of one mount, separated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountOptions {
    pub flags: MountFlags,
    /// Options for the file system, in order.
    pub data: Vec<String>,
    /// Whether `bind` or `rbind` is among the options.
    pub bind: bool,
}

impl MountOptions {
    /// Adds SELinux's label for all files, unless the snapshotter has given one.
    pub(super) fn label(&mut self, label: Option<&str>) {
        let labelled = self
            .data
            .iter()
            .any(|option| option.starts_with("context="));
        if let Some(label) = label.filter(|_| !labelled && !self.bind) {
            // A level may hold commas.
            self.data.push(format!("context=\"{label}\""));
        }
    }
}

/// Separates options as containerd's own `parseMountOptions`. Propagation is decided by the tree; `loop` is not
/// supported and left to the file system, which refuses it.
pub(super) fn parse(options: &[String]) -> MountOptions {
    let mut parsed = MountOptions {
        flags: MountFlags::empty(),
        data: Vec::new(),
        bind: false,
    };
    for option in options {
        match option.as_str() {
            "bind" | "rbind" => parsed.bind = true,
            "defaults" | "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave"
            | "unbindable" | "runbindable" => {}
            name => match flag(name) {
                Some((flag, on)) => parsed.flags.set(flag, on),
                None => parsed.data.push(name.to_owned()),
            },
        }
    }
    parsed
}

fn flag(name: &str) -> Option<(MountFlags, bool)> {
    Some(match name {
        "ro" => (MountFlags::RDONLY, true),
        "rw" => (MountFlags::RDONLY, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "noatime" => (MountFlags::NOATIME, true),
        "atime" => (MountFlags::NOATIME, false),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "diratime" => (MountFlags::NODIRATIME, false),
        "relatime" => (MountFlags::RELATIME, true),
        "norelatime" => (MountFlags::RELATIME, false),
        "strictatime" => (MountFlags::STRICTATIME, true),
        "nostrictatime" => (MountFlags::STRICTATIME, false),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "nosymfollow" => (MountFlags::NOSYMFOLLOW, true),
        // Set on everything that enters the tree, whatever the option says.
        "nodev" | "dev" => (MountFlags::NODEV, true),
        "nosuid" | "suid" => (MountFlags::NOSUID, true),
        "mand" | "nomand" => (MountFlags::empty(), true),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(options: &[&str]) -> Vec<String> {
        options.iter().map(|&option| option.to_owned()).collect()
    }

    #[test]
    fn overlay_as_containerd_gives_it() {
        let parsed = parse(&strings(&[
            "index=off",
            "workdir=/w",
            "upperdir=/u",
            "lowerdir=/a:/b",
        ]));
        assert!(parsed.flags.is_empty());
        assert_eq!(
            parsed.data,
            ["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b"]
        );
        assert!(!parsed.bind);
    }

    #[test]
    fn bind_as_containerd_gives_it() {
        let parsed = parse(&strings(&["rbind", "ro"]));
        assert!(parsed.bind);
        assert_eq!(parsed.flags, MountFlags::RDONLY);
        assert!(parsed.data.is_empty());
    }

    #[test]
    fn a_label_is_added_where_there_is_none() {
        let label = Some("u:object_r:container_file_t:s0:c1,c2");
        let mut parsed = parse(&strings(&["lowerdir=/a"]));
        parsed.label(None);
        assert_eq!(parsed.data, ["lowerdir=/a"]);
        parsed.label(label);
        parsed.label(Some("another"));
        let labelled = "context=\"u:object_r:container_file_t:s0:c1,c2\"";
        assert_eq!(parsed.data, ["lowerdir=/a", labelled]);
        let mut bind = parse(&strings(&["rbind"]));
        bind.label(label);
        assert!(bind.data.is_empty());
    }

    #[test]
    fn devices_cannot_be_asked_for() {
        let parsed = parse(&strings(&["dev", "suid", "ro", "rw", "rshared"]));
        assert_eq!(parsed.flags, MountFlags::NODEV | MountFlags::NOSUID);
        assert!(parsed.data.is_empty());
    }
}
