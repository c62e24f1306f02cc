//! `enable` and `disable` on files as they are found, before a containerd that is only as clever as its merging.
//!
//! The real containerds are asked by `make deb-test`.

use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::edit::{EditError, disable, enable};
use super::program::{Containerd, ProgramError, Version};
use super::site::Site;
use super::status;

const DEFAULT_16: &str = include_str!("golden/default-1.6.toml");
const DEFAULT_17: &str = include_str!("golden/default-1.7.toml");
const DEFAULT_21: &str = include_str!("golden/default-2.1.toml");
const DEBIAN: &str = include_str!("golden/debian-12.toml");
const USER_1: &str = include_str!("golden/user-1.toml");
const USER_2: &str = include_str!("golden/user-2.toml");
const USER_3: &str = include_str!("golden/user-3.toml");

/// A containerd of a version with its defaults.
struct Fake(&'static str, &'static str);

const ALL: [Fake; 3] = [
    Fake("1.6.20", DEFAULT_16),
    Fake("1.7.24", DEFAULT_17),
    Fake("2.1.9", DEFAULT_21),
];

impl Fake {
    fn is_1(&self) -> bool {
        self.0.starts_with('1')
    }

    /// The name of a plugin of a file of `version`, as this containerd has it inside.
    fn renamed(&self, plugin: &str, version: Option<i64>) -> String {
        match plugin {
            "cri" if self.is_1() => "io.containerd.grpc.v1.cri".into(),
            "io.containerd.grpc.v1.cri" if !self.is_1() && version == Some(2) => {
                "io.containerd.cri.v1.runtime".into()
            }
            other => other.into(),
        }
    }

    fn read(&self, file: &Path, merged: &mut Table) {
        let mut read: Table = toml::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        let imports = read.get("imports").and_then(Value::as_array).cloned();
        let version = read.get("version").and_then(Value::as_integer);
        if let Some(Value::Table(plugins)) = read.get_mut("plugins") {
            let renamed = plugins.clone().into_iter();
            *plugins = renamed
                .map(|(name, table)| (self.renamed(&name, version), table))
                .collect();
        }
        self.merge(merged, read);
        for import in imports.unwrap_or_default() {
            let pattern = file.parent().unwrap().join(import.as_str().unwrap());
            let name = pattern.file_name().unwrap().to_str().unwrap();
            let (begin, end) = name.split_once('*').unwrap_or((name, ""));
            let entries = fs::read_dir(pattern.parent().unwrap())
                .into_iter()
                .flatten();
            for path in entries.map(|entry| entry.unwrap().path()) {
                let name = path.file_name().unwrap().to_str().unwrap();
                if name.starts_with(begin) && name.ends_with(end) {
                    self.read(&path, merged);
                }
            }
        }
    }

    fn merge(&self, into: &mut Table, from: Table) {
        for (key, value) in from {
            match (into.get_mut(&key), value) {
                (Some(Value::Table(old)), Value::Table(new)) => {
                    if self.is_1() && key == "runtimes" {
                        old.clear();
                    }
                    self.merge(old, new);
                }
                (_, value) => drop(into.insert(key, value)),
            }
        }
    }
}

impl Containerd for Fake {
    fn version(&self) -> Result<Version, ProgramError> {
        Ok(Version::of(&format!("containerd x {}", self.0)).unwrap())
    }

    fn configuration(&self, file: Option<&Path>) -> Result<Table, ProgramError> {
        let mut merged = toml::from_str(self.1).unwrap();
        if let Some(file) = file {
            self.read(file, &mut merged);
        }
        Ok(merged)
    }
}

/// A folder with a containerd's files.
struct Host {
    dir: tempfile::TempDir,
    site: Site,
}

impl Host {
    fn new(config: &str, text: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(config);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if let Some(text) = text {
            fs::write(&path, text).unwrap();
        }
        let site = Site::find(dir.path(), Some(&path)).unwrap();
        Self { dir, site }
    }

    /// All files with their contents, without the name of the folder.
    fn files(&self) -> Vec<(PathBuf, String)> {
        let (mut found, mut folders) = (Vec::new(), vec![self.dir.path().to_owned()]);
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().path())
            {
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let text = fs::read_to_string(&path).unwrap();
                    let text = text.replace(self.dir.path().to_str().unwrap(), "ROOT");
                    found.push((path.strip_prefix(self.dir.path()).unwrap().to_owned(), text));
                }
            }
        }
        found.sort();
        found
    }

    fn text(&self, file: &str) -> String {
        let files = self.files();
        let found = files.into_iter().find(|(path, _)| path == Path::new(file));
        found.unwrap_or_else(|| panic!("no {file}")).1
    }
}

fn handler_is_there(host: &Host, containerd: &Fake) -> bool {
    status::look(&host.site, containerd).unwrap().is_enabled()
}

#[test]
fn every_containerd_gets_the_handler_once_and_all_files_are_as_before_in_the_end() {
    let own = [DEFAULT_16, DEFAULT_17, DEFAULT_21];
    for (containerd, default) in ALL.iter().zip(own) {
        let user = if containerd.is_1() { USER_2 } else { USER_3 };
        let version_1 = format!("version = 1\n{USER_1}");
        for text in [
            None,
            Some(""),
            Some(default),
            Some(DEBIAN),
            Some(USER_1),
            Some(&version_1),
            Some(USER_2),
            Some(user),
        ] {
            let host = Host::new("etc/containerd/config.toml", text);
            let before = host.files();
            assert!(!handler_is_there(&host, containerd));
            let done = enable(&host.site, containerd).unwrap().to_string();
            assert!(done.ends_with("systemctl restart containerd"), "{done}");
            assert!(handler_is_there(&host, containerd));
            let enabled = host.files();
            let done = enable(&host.site, containerd).unwrap().to_string();
            assert!(done.ends_with("already"), "{done}");
            assert_eq!(host.files(), enabled);
            disable(&host.site, containerd).unwrap();
            assert_eq!(host.files(), before, "{} {text:?}", containerd.0);
            let done = disable(&host.site, containerd).unwrap().to_string();
            assert!(done.starts_with("there is nothing of"), "{done}");
        }
    }
}

#[test]
fn what_is_written_is_what_is_kept_here() {
    for (containerd, text, golden) in [
        (
            0,
            Some(DEBIAN),
            include_str!("golden/debian-12.enabled-1.6.toml"),
        ),
        (
            1,
            Some(USER_1),
            include_str!("golden/user-1.enabled-1.7.toml"),
        ),
        (
            1,
            Some(USER_2),
            include_str!("golden/user-2.enabled-1.7.toml"),
        ),
        (1, None, include_str!("golden/none.enabled-1.7.toml")),
        (
            2,
            Some(USER_2),
            include_str!("golden/user-2.enabled-2.1.toml"),
        ),
        (
            2,
            Some(USER_3),
            include_str!("golden/user-3.enabled-2.1.toml"),
        ),
        (2, None, include_str!("golden/none.enabled-2.1.toml")),
    ] {
        let host = Host::new("etc/containerd/config.toml", text);
        enable(&host.site, &ALL[containerd]).unwrap();
        assert_eq!(host.text("etc/containerd/config.toml"), golden);
    }
    let drop_in = |text| {
        let host = Host::new("etc/containerd/config.toml", Some(text));
        enable(&host.site, &ALL[2]).unwrap();
        host.text("etc/containerd/conf.d/wasmvm.toml")
    };
    assert_eq!(drop_in(USER_2), include_str!("golden/drop-in-2.toml"));
    assert_eq!(drop_in(USER_3), include_str!("golden/drop-in-3.toml"));
}

#[test]
fn a_folder_that_is_imported_already_gets_the_drop_in_alone() {
    let text = "version = 3\nimports = ['conf.d/*.toml']\n";
    let host = Host::new("etc/containerd/config.toml", Some(text));
    enable(&host.site, &ALL[2]).unwrap();
    assert_eq!(host.text("etc/containerd/config.toml"), text);
    assert!(handler_is_there(&host, &ALL[2]));
    disable(&host.site, &ALL[2]).unwrap();
    assert_eq!(host.files().len(), 1);
    assert!(!host.dir.path().join("etc/containerd/conf.d").exists());
}

#[test]
fn an_import_that_replaces_cri_in_containerd_1_is_told_and_nothing_changes() {
    let text = USER_2.replace("imports = []", "imports = ['site.toml']");
    let host = Host::new("etc/containerd/config.toml", Some(&text));
    let site = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\nruntime_type = 'x'\n";
    fs::write(host.dir.path().join("etc/containerd/site.toml"), site).unwrap();
    let before = host.files();
    let refused = enable(&host.site, &ALL[1]).unwrap_err();
    assert!(matches!(refused, EditError::Unproved(..)), "{refused:?}");
    assert_eq!(host.files(), before);
}

#[test]
fn a_handler_that_somebody_else_has_made_is_left_alone() {
    let handler = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.wasmvm]\nruntime_type = 'io.containerd.wasmvm.v1'\n";
    let text = format!("version = 3\nimports = ['conf.d/*.toml']\n{handler}");
    let host = Host::new("etc/containerd/config.toml", Some(&text));
    let before = host.files();
    assert!(matches!(
        enable(&host.site, &ALL[2]),
        Err(EditError::Foreign(_))
    ));
    // The other's file may have the name of ours.
    let moved = Host::new(
        "etc/containerd/config.toml",
        Some("version = 3\nimports = ['conf.d/*.toml']\n"),
    );
    fs::create_dir(moved.dir.path().join("etc/containerd/conf.d")).unwrap();
    fs::write(
        moved.dir.path().join("etc/containerd/conf.d/wasmvm.toml"),
        handler,
    )
    .unwrap();
    assert!(matches!(
        enable(&moved.site, &ALL[2]),
        Err(EditError::Foreign(_))
    ));
    assert_eq!(host.files(), before);
}

#[test]
fn options_of_the_operators_beside_ours_stay_and_cost_nobody_a_runtime() {
    for (containerd, plugin, text) in [
        (&ALL[1], "io.containerd.grpc.v1.cri", DEBIAN),
        (&ALL[2], "io.containerd.cri.v1.runtime", DEFAULT_21),
    ] {
        let host = Host::new("etc/containerd/config.toml", Some(text));
        enable(&host.site, containerd).unwrap();
        let options = format!(
            "\n[plugins.'{plugin}'.containerd.runtimes.wasmvm.options]\nboot_timeout_s = 20\n"
        );
        let enabled = fs::read_to_string(&host.site.config).unwrap();
        fs::write(&host.site.config, format!("{enabled}{options}")).unwrap();
        enable(&host.site, containerd).unwrap();
        let dump = containerd.configuration(Some(&host.site.config)).unwrap();
        let runtimes = super::handler::runtimes(&dump).unwrap();
        assert_eq!(runtimes.keys().collect::<Vec<_>>(), ["runc", "wasmvm"]);
        assert_eq!(
            runtimes["wasmvm"]["options"]["boot_timeout_s"].as_integer(),
            Some(20)
        );
        // Without the handler the options alone would be a runtime, beside which 1.x forgets runc.
        let before = host.files();
        assert!(matches!(
            disable(&host.site, containerd),
            Err(EditError::Unproved(..))
        ));
        assert_eq!(host.files(), before);
    }
}

#[test]
fn without_cri_there_is_nothing_to_add_to() {
    for text in [
        "disabled_plugins = [\"cri\"]\n",
        "version = 2\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n",
    ] {
        let host = Host::new("etc/containerd/config.toml", Some(text));
        assert!(matches!(
            enable(&host.site, &ALL[1]),
            Err(EditError::CriIsOff(_))
        ));
        assert_eq!(host.text("etc/containerd/config.toml"), text);
    }
}

#[test]
fn a_newer_containerd_moves_what_an_older_one_had() {
    let host = Host::new("etc/containerd/config.toml", Some(DEBIAN));
    enable(&host.site, &ALL[0]).unwrap();
    enable(&host.site, &ALL[2]).unwrap();
    assert_eq!(
        host.text("etc/containerd/config.toml")
            .matches("wasmvm")
            .count(),
        2
    );
    assert!(handler_is_there(&host, &ALL[2]));
    disable(&host.site, &ALL[2]).unwrap();
    assert_eq!(host.text("etc/containerd/config.toml"), DEBIAN);
}

const K3S: &str = "var/lib/rancher/k3s/agent/etc/containerd/config.toml";
const FOLDER: &str = "var/lib/rancher/k3s/agent/etc/containerd";

#[test]
fn k3s_that_imports_a_folder_gets_a_drop_in() {
    let text = USER_3.replace("/etc/containerd/site.d", "config-v3.toml.d");
    let host = Host::new(K3S, Some(&text));
    let before = host.files();
    let done = enable(&host.site, &ALL[2]).unwrap().to_string();
    assert!(done.ends_with("systemctl restart k3s (or k3s-agent)"));
    assert_eq!(host.text(K3S), text);
    assert_eq!(
        host.text(&format!("{FOLDER}/config-v3.toml.d/wasmvm.toml")),
        include_str!("golden/drop-in-3.toml")
    );
    disable(&host.site, &ALL[2]).unwrap();
    assert_eq!(host.files(), before);
}

#[test]
fn k3s_that_imports_nothing_gets_a_template() {
    for (containerd, generated, name) in [
        (1, USER_2, "config.toml.tmpl"),
        (2, USER_3, "config-v3.toml.tmpl"),
    ] {
        let host = Host::new(K3S, Some(generated));
        let before = host.files();
        enable(&host.site, &ALL[containerd]).unwrap();
        let template = host.text(&format!("{FOLDER}/{name}"));
        let status = status::look(&host.site, &ALL[containerd]).unwrap();
        assert!(status.is_enabled() && status.to_string().ends_with("at the next start"));
        assert_eq!(host.text(K3S), generated);
        // K3s starts anew and generates its file from the template.
        let now = template.replace("{{ template \"base\" . }}", generated);
        assert!(now.len() > template.len(), "{template}");
        fs::write(&host.site.config, &now).unwrap();
        assert!(handler_is_there(&host, &ALL[containerd]));
        let done = enable(&host.site, &ALL[containerd]).unwrap().to_string();
        assert!(done.ends_with("already"), "{done}");
        fs::write(&host.site.config, generated).unwrap();
        disable(&host.site, &ALL[containerd]).unwrap();
        assert_eq!(host.files(), before);
    }
}

#[test]
fn a_template_of_the_operators_is_added_to() {
    let host = Host::new(K3S, Some(USER_2));
    let path = format!("{FOLDER}/config.toml.tmpl");
    fs::write(
        host.dir.path().join(&path),
        "{{ template \"base\" . }}\n# ours\n",
    )
    .unwrap();
    enable(&host.site, &ALL[2]).unwrap();
    let template = host.text(&path);
    assert!(
        template.starts_with("{{ template \"base\" . }}\n# ours\n\n# >>> wasmvm"),
        "{template}"
    );
    disable(&host.site, &ALL[2]).unwrap();
    assert!(host.text(&path).ends_with("# ours\n"));
}

/// A containerd that is not there any more.
struct Gone;

impl Containerd for Gone {
    fn version(&self) -> Result<Version, ProgramError> {
        Err(ProgramError::NoVersion("containerd".into(), String::new()))
    }

    fn configuration(&self, _: Option<&Path>) -> Result<Table, ProgramError> {
        Err(ProgramError::NoVersion("containerd".into(), String::new()))
    }
}

#[test]
fn the_handler_goes_when_containerd_is_gone() {
    let host = Host::new("etc/containerd/config.toml", Some(DEBIAN));
    enable(&host.site, &ALL[0]).unwrap();
    let done = disable(&host.site, &Gone).unwrap().to_string();
    assert!(done.contains("could not be asked"), "{done}");
    assert_eq!(host.text("etc/containerd/config.toml"), DEBIAN);
}
