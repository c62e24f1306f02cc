//! Where the containerd of this host is configured, and by whom.

use std::path::{Path, PathBuf};

/// The file that a containerd of its own reads.
const CONFIG: &str = "etc/containerd/config.toml";
/// The end of the folder in which K3s and RKE2 generate their containerd's file.
const GENERATED: &str = "agent/etc/containerd";
/// Data folders of K3s and RKE2.
const RANCHER: [&str; 2] = ["var/lib/rancher/k3s", "var/lib/rancher/rke2"];
/// Name of our file in a folder of drop-ins.
const DROP_IN: &str = "wasmvm.toml";

/// The files of one containerd's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    /// The program of containerd.
    pub(super) program: PathBuf,
    /// The file that containerd reads.
    pub(super) config: PathBuf,
    /// Our files in the folders of drop-ins, the preferred one first.
    pub(super) drop_ins: Vec<PathBuf>,
    /// The templates from which `config` is generated, by the version of the file: 3 and 2; none for a file that the
    /// operator has written.
    pub(super) templates: Option<[PathBuf; 2]>,
    /// The command that starts containerd anew.
    pub(super) restart: &'static str,
}

/// Why it is not clear which containerd is meant.
#[derive(Debug, thiserror::Error)]
pub(super) enum SiteError {
    /// There is more than one.
    #[error("more than one containerd is configured here; name one with --config: {}", list(.0))]
    Several(Vec<PathBuf>),
}

fn list(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    names.join(", ")
}

impl Site {
    /// The containerd that reads `config`, else the only one below `root`.
    pub(super) fn find(root: &Path, config: Option<&Path>) -> Result<Self, SiteError> {
        if let Some(config) = config {
            let config = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
            return Ok(Self::of(&config));
        }
        let rancher = RANCHER.map(|data| root.join(data).join(GENERATED).join("config.toml"));
        let plain = root.join(CONFIG);
        let all = rancher.into_iter().chain([plain.clone()]);
        let found: Vec<_> = all.filter(|config| config.exists()).collect();
        match found.as_slice() {
            [] => Ok(Self::of(&plain)),
            [config] => Ok(Self::of(config)),
            _ => Err(SiteError::Several(found)),
        }
    }

    fn of(config: &Path) -> Self {
        let folder = config.parent().unwrap_or(Path::new("/"));
        let data = folder
            .ends_with(GENERATED)
            .then(|| folder.ancestors().nth(3))
            .flatten();
        match data {
            Some(data) => Self::generated(config, folder, data),
            None => Self {
                program: "containerd".into(),
                config: config.to_owned(),
                drop_ins: vec![folder.join("conf.d").join(DROP_IN)],
                templates: None,
                restart: "systemctl restart containerd",
            },
        }
    }

    fn generated(config: &Path, folder: &Path, data: &Path) -> Self {
        let is_rke2 = data.ends_with("rke2");
        let (program, restart) = if is_rke2 {
            (
                "bin/containerd",
                "systemctl restart rke2-server (or rke2-agent)",
            )
        } else {
            (
                "data/current/bin/containerd",
                "systemctl restart k3s (or k3s-agent)",
            )
        };
        let drop_ins = ["config-v3.toml.d", "config.toml.d"];
        Self {
            program: data.join(program),
            config: config.to_owned(),
            drop_ins: drop_ins.map(|name| folder.join(name).join(DROP_IN)).into(),
            templates: Some(
                ["config-v3.toml.tmpl", "config.toml.tmpl"].map(|name| folder.join(name)),
            ),
            restart,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn touch(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    #[test]
    fn the_only_containerd_is_found_and_several_are_named() {
        let root = tempfile::tempdir().unwrap();
        let find = || Site::find(root.path(), None);
        let plain = root.path().join("etc/containerd/config.toml");
        assert_eq!(find().unwrap().config, plain);
        let k3s = root
            .path()
            .join("var/lib/rancher/k3s/agent/etc/containerd/config.toml");
        touch(&k3s);
        assert_eq!(find().unwrap().config, k3s);
        touch(&plain);
        let several = find().unwrap_err().to_string();
        assert!(several.ends_with(&format!("{}, {}", k3s.display(), plain.display())));
        assert_eq!(
            Site::find(root.path(), Some(&plain)).unwrap().templates,
            None
        );
    }

    #[test]
    fn a_generated_file_is_known_by_its_folder() {
        let find = |path: &str| Site::find(Path::new("/"), Some(Path::new(path))).unwrap();
        let rke2 = find("/var/lib/rancher/rke2/agent/etc/containerd/config.toml");
        assert_eq!(
            rke2.program,
            Path::new("/var/lib/rancher/rke2/bin/containerd")
        );
        assert!(rke2.restart.contains("rke2-agent"));
        let moved = find("/srv/k3s/agent/etc/containerd/config.toml");
        assert_eq!(
            moved.program,
            Path::new("/srv/k3s/data/current/bin/containerd")
        );
        assert_eq!(
            moved.templates.unwrap()[0],
            Path::new("/srv/k3s/agent/etc/containerd/config-v3.toml.tmpl")
        );
    }
}
