//! `status`: whether containerd's configuration has the handler, and where it comes from.

use std::fmt;
use std::path::PathBuf;

use super::block;
use super::edit::{EditError, dump};
use super::files;
use super::handler;
use super::imports;
use super::program::{Containerd, Version};
use super::site::Site;

/// The handler as the configuration has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handler {
    Absent,
    Ours,
    Foreign,
    Generated,
    CriIsOff,
}

/// The state of one containerd's configuration.
#[derive(Debug)]
pub(super) struct Status {
    version: Version,
    config: PathBuf,
    handler: Handler,
    /// Files with something that we have added.
    files: Vec<PathBuf>,
}

impl Status {
    /// Whether pods can name the handler, once containerd has read the configuration.
    pub(super) fn is_enabled(&self) -> bool {
        matches!(
            self.handler,
            Handler::Ours | Handler::Foreign | Handler::Generated
        )
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "containerd {}, configured by {}",
            self.version,
            self.config.display()
        )?;
        for file in &self.files {
            writeln!(
                f,
                "{} has what `wasmvm containerd enable` adds",
                file.display()
            )?;
        }
        f.write_str(match self.handler {
            Handler::Ours => "enabled: the configuration has the handler `wasmvm`",
            Handler::Foreign => "enabled: the configuration has a handler `wasmvm`, which `wasmvm containerd enable` has not written",
            Handler::Generated => {
                "enabled: the template has the handler `wasmvm`, and the configuration is generated from it at the next start"
            }
            Handler::Absent => "not enabled: the configuration has no handler `wasmvm`",
            Handler::CriIsOff => "not enabled: the configuration switches containerd's CRI plugin off",
        })
    }
}

/// Asks containerd for its configuration as it is, and looks for what we have added.
///
/// # Errors
/// [`EditError`], when containerd or a file cannot be read.
pub(super) fn look(site: &Site, containerd: &impl Containerd) -> Result<Status, EditError> {
    let text = files::read(&site.config)?;
    let dump = dump(site, containerd, text.as_deref())?;
    let mut files = Vec::new();
    let templates = site.templates.iter().flatten();
    for path in [&site.config]
        .into_iter()
        .chain(&site.drop_ins)
        .chain(templates)
    {
        let text = files::read(path)?.unwrap_or_default();
        let imports = site
            .drop_ins
            .iter()
            .any(|drop_in| text.contains(&imports::entry(drop_in)));
        if block::is_in(&text) || imports {
            files.push(path.clone());
        }
    }
    let mut templates = site.templates.iter().flatten();
    let in_template = templates.any(|template| files.contains(template));
    let there = handler::runtimes(&dump).and_then(|runtimes| runtimes.get(handler::NAME));
    let there = there.is_some_and(handler::has_type);
    let handler = match (there, files.is_empty()) {
        _ if handler::cri_is_off(&dump) => Handler::CriIsOff,
        (false, false) if in_template => Handler::Generated,
        (false, _) => Handler::Absent,
        (true, false) => Handler::Ours,
        (true, true) => Handler::Foreign,
    };
    Ok(Status {
        version: containerd.version()?,
        config: site.config.clone(),
        handler,
        files,
    })
}
