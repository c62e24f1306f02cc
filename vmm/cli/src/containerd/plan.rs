//! The plan: the new content of each file of a site, worked out before any file is changed.

use std::path::{Path, PathBuf};

use toml::Table;

use super::block::{self, Unclosed};
use super::files::{self, FileError};
use super::handler;
use super::imports::{self, Head};
use super::program::Version;
use super::site::Site;

/// The template that is made where K3s and RKE2 have none; without our lines it adds nothing to what they generate.
const BASE: &str = "# wasmvm containerd enable made this file.\n{{ template \"base\" . }}\n";
/// Why runtimes stand in our lines that are not ours.
const LOST: &str = "# containerd 1.x drops its default runtimes where a file names a runtime: here they are again.\n";
/// Version of the file that is made where containerd 1.x and 2.x have none.
const NEW_VERSION: [i64; 2] = [2, 3];

/// Newest version of a file that containerd 1.x reads.
const VERSION_MAX_OF_1: i64 = 2;

/// Why no plan can be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlanError {
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is no TOML.
    #[error("{} is no TOML", .0.display())]
    Toml(PathBuf, #[source] toml::de::Error),
    /// A part of what we have added is missing.
    #[error("{}", .0.display())]
    Block(PathBuf, #[source] Unclosed),
    /// The generated file is missing.
    #[error("{} does not exist; it is generated at the first start, so start K3s or RKE2 once", .0.display())]
    NotGenerated(PathBuf),
    /// The file is newer than containerd.
    #[error("{} is of version {version}, which containerd {containerd} does not read; give it the version and the tables that this containerd reads", .file.display())]
    Version {
        file: PathBuf,
        version: i64,
        containerd: Version,
    },
    /// The handler's table cannot be written.
    #[error("cannot write the handler's table")]
    Encode(#[from] toml::ser::Error),
}

/// Where the handler is to go.
enum Way {
    DropIn(PathBuf),
    Block(PathBuf),
}

/// The files of a site as they are to be; `None` is a file that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The file that containerd reads.
    pub(super) config: Option<String>,
    /// Our files in the folders of drop-ins.
    pub(super) drop_ins: Vec<(PathBuf, Option<String>)>,
    /// Templates, where `config` is generated from one.
    pub(super) templates: Vec<(PathBuf, Option<String>)>,
}

impl Plan {
    /// The files without anything that we have added.
    pub(super) fn without(site: &Site) -> Result<Self, PlanError> {
        let mut config = stripped(&site.config)?;
        for drop_in in &site.drop_ins {
            let without = config.map(|text| imports::without(&text, &imports::entry(drop_in)));
            let without = without.transpose();
            config = without.map_err(|error| PlanError::Toml(site.config.clone(), error))?;
        }
        let mut plan = Self {
            config,
            drop_ins: all_stripped(&site.drop_ins)?,
            templates: all_stripped(
                site.templates
                    .as_ref()
                    .map_or(&[], |paths| paths.as_slice()),
            )?,
        };
        for (_, text) in &mut plan.templates {
            *text = text.take().filter(|text| text != BASE);
        }
        Ok(plan)
    }

    /// The file that containerd reads, without the options that the operator may have given the handler beside our lines: what
    /// the handler's coming is compared with.
    pub(super) fn base(&self, site: &Site) -> Result<Option<String>, PlanError> {
        let Some(text) = &self.config else {
            return Ok(None);
        };
        let toml = |error| PlanError::Toml(site.config.clone(), error);
        let mut table: Table = toml::from_str(text).map_err(toml)?;
        Ok(Some(if handler::remove_options(&mut table) {
            toml::to_string(&table)?
        } else {
            text.clone()
        }))
    }

    /// The files with the handler added to what [`Self::without`] has left; `before` is what containerd makes of that.
    pub(super) fn with(
        mut self,
        site: &Site,
        version: &Version,
        before: &Table,
    ) -> Result<Self, PlanError> {
        let text = self.config.clone().unwrap_or_default();
        let toml = |error| PlanError::Toml(site.config.clone(), error);
        let head = Head::of(&text).map_err(toml)?;
        refuse_newer(site, version, &head)?;
        let plugin = handler::plugin(self.version(&head, version), version.major);
        match self.way(site, version, &head)? {
            Way::DropIn(path) => {
                let lines = handler::text(plugin, Table::new())?;
                let lines = match self.version(&head, version) {
                    Some(number) if number > 1 => format!("version = {number}\n\n{lines}"),
                    _ => lines,
                };
                self.add_drop_in(&path, &lines);
                let folder = path.parent().unwrap_or(Path::new("/"));
                if !head.covers(folder, &site.config) {
                    self.config = Some(self.importing(&path, version).map_err(toml)?);
                }
            }
            Way::Block(path) => {
                let lost = self.lost(plugin, version, before).map_err(toml)?;
                let note = if lost.is_empty() { "" } else { LOST };
                let lines = note.to_owned() + &handler::text(plugin, lost)?;
                self.add_block(&path, &lines, version);
            }
        }
        Ok(self)
    }

    /// The version of the file, or of the one that is to be made.
    fn version(&self, head: &Head, version: &Version) -> Option<i64> {
        match self.config {
            Some(_) => head.version(),
            None => Some(new_version(version)),
        }
    }

    fn way(&self, site: &Site, version: &Version, head: &Head) -> Result<Way, PlanError> {
        let Some([v3, v2]) = &site.templates else {
            return Ok(match site.drop_ins.first() {
                Some(path) if version.major >= 2 => Way::DropIn(path.clone()),
                _ => Way::Block(site.config.clone()),
            });
        };
        if self.config.is_none() {
            return Err(PlanError::NotGenerated(site.config.clone()));
        }
        let covered = site.drop_ins.iter().find(|path| {
            path.parent()
                .is_some_and(|folder| head.covers(folder, &site.config))
        });
        if let Some(path) = covered {
            return Ok(Way::DropIn(path.clone()));
        }
        // K3s takes the first template that exists, and its own where there is none.
        let exists = self.templates.iter().find(|(_, text)| text.is_some());
        let own = if head.version() > Some(2) { v3 } else { v2 };
        Ok(Way::Block(exists.map_or(own, |(path, _)| path).clone()))
    }

    /// The runtimes that containerd 1.x has by default and forgets once the file names a runtime.
    fn lost(
        &self,
        plugin: &str,
        version: &Version,
        before: &Table,
    ) -> Result<Table, toml::de::Error> {
        let mut runtimes = handler::runtimes(before).cloned().unwrap_or_default();
        if version.major >= 2 {
            return Ok(Table::new());
        }
        let text: Table = toml::from_str(self.config.as_deref().unwrap_or_default())?;
        let named = text.get("plugins").and_then(|plugins| plugins.get(plugin));
        let named = named.and_then(|cri| cri.get("containerd")?.get("runtimes")?.as_table());
        runtimes.retain(|name, _| !named.is_some_and(|named| named.contains_key(name)));
        Ok(runtimes)
    }

    fn add_drop_in(&mut self, path: &Path, lines: &str) {
        for (_, text) in self.drop_ins.iter_mut().filter(|(other, _)| other == path) {
            *text = Some(block::with(text.as_deref(), lines));
        }
    }

    fn importing(&self, drop_in: &Path, version: &Version) -> Result<String, toml::de::Error> {
        let entry = imports::entry(drop_in);
        match &self.config {
            Some(text) => imports::with(text, &entry),
            None => {
                let lines = format!(
                    "version = {}\nimports = [{entry:?}]\n",
                    new_version(version)
                );
                Ok(block::with(None, &lines))
            }
        }
    }

    fn add_block(&mut self, path: &Path, lines: &str, version: &Version) {
        let config = match self.config.as_deref() {
            None => block::with(
                None,
                &format!("version = {}\n\n{lines}", new_version(version)),
            ),
            Some(text) => block::with(Some(text), lines),
        };
        self.config = Some(config);
        for (_, text) in self.templates.iter_mut().filter(|(other, _)| other == path) {
            *text = Some(block::with(Some(text.as_deref().unwrap_or(BASE)), lines));
        }
    }
}

fn refuse_newer(site: &Site, version: &Version, head: &Head) -> Result<(), PlanError> {
    match head.version() {
        Some(number) if version.major < 2 && number > VERSION_MAX_OF_1 => Err(PlanError::Version {
            file: site.config.clone(),
            version: number,
            containerd: version.clone(),
        }),
        _ => Ok(()),
    }
}

fn new_version(version: &Version) -> i64 {
    NEW_VERSION[usize::from(version.major >= 2)]
}

fn all_stripped(paths: &[PathBuf]) -> Result<Vec<(PathBuf, Option<String>)>, PlanError> {
    let strip = |path: &PathBuf| Ok((path.clone(), stripped(path)?));
    paths.iter().map(strip).collect()
}

fn stripped(path: &Path) -> Result<Option<String>, PlanError> {
    let without = files::read(path)?
        .map(|text| block::without(&text))
        .transpose();
    let without = without.map_err(|error| PlanError::Block(path.to_owned(), error))?;
    Ok(without.flatten())
}
