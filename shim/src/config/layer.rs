//! A TOML text, laid over the configuration so far.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{
    ARTIFACTS_MIB_MAX, COMPILERS_MAX, Config, ConfigError, MEMORY_MIB_MAX, Sharing, TIMEOUT_S_MAX,
};

/// Settings that one text may have. The keys with capitals come from containerd's CRI plugin, which passes its
/// whole `options` table on when there is no `ConfigPath` in it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Layer {
    default_memory_mib: Option<Spanned<u32>>,
    console: Option<bool>,
    boot_timeout_s: Option<Spanned<u64>>,
    load_timeout_s: Option<Spanned<u64>>,
    compile_timeout_s: Option<Spanned<u64>>,
    compilers_max: Option<Spanned<u64>>,
    artifact_dir: Option<Spanned<PathBuf>>,
    artifact_dir_mib_max: Option<Spanned<u64>>,
    artifact_memory_mib_max: Option<Spanned<u64>>,
    sharing: Option<Sharing>,
    /// Accepted and ignored: the form of `linux.cgroupsPath` says how it is meant.
    #[serde(rename = "SystemdCgroup")]
    _systemd_cgroup: Option<bool>,
    /// Accepted and ignored: a key of containerd's own, as are the next two.
    #[serde(rename = "TypeUrl")]
    _type_url: Option<String>,
    #[serde(rename = "ConfigPath")]
    _config_path: Option<String>,
    #[serde(rename = "ConfigBody")]
    _config_body: Option<toml::Value>,
}

/// A text and its name, for errors.
struct Text<'a> {
    text: &'a str,
    path: &'a Path,
}

/// `config` with the settings of `text` laid over it; `path` names the text in errors.
pub(super) fn apply_layer(config: Config, text: &str, path: &Path) -> Result<Config, ConfigError> {
    let layer: Layer = toml::from_str(text).map_err(|err| ConfigError::Parse {
        path: path.to_owned(),
        line: err.span().map_or(1, |span| line_of(text, span.start)),
        message: err.message().replace('\n', " "),
    })?;
    let text = Text { text, path };
    let mut config = config;
    if let Some(mib) = layer.default_memory_mib {
        let range = (1, u64::from(MEMORY_MIB_MAX));
        text.check("default_memory_mib", &mib, u64::from(*mib.get_ref()), range)?;
        config.default_memory_mib = mib.into_inner();
    }
    config.console = layer.console.unwrap_or(config.console);
    config.sharing = layer.sharing.unwrap_or(config.sharing);
    for (key, value, max, target) in [
        (
            "boot_timeout_s",
            layer.boot_timeout_s,
            TIMEOUT_S_MAX,
            &mut config.boot_timeout_s,
        ),
        (
            "load_timeout_s",
            layer.load_timeout_s,
            TIMEOUT_S_MAX,
            &mut config.load_timeout_s,
        ),
        (
            "compile_timeout_s",
            layer.compile_timeout_s,
            TIMEOUT_S_MAX,
            &mut config.compile_timeout_s,
        ),
        (
            "compilers_max",
            layer.compilers_max,
            COMPILERS_MAX,
            &mut config.compilers_max,
        ),
        (
            "artifact_dir_mib_max",
            layer.artifact_dir_mib_max,
            ARTIFACTS_MIB_MAX,
            &mut config.artifact_dir_mib_max,
        ),
        (
            "artifact_memory_mib_max",
            layer.artifact_memory_mib_max,
            ARTIFACTS_MIB_MAX,
            &mut config.artifact_memory_mib_max,
        ),
    ] {
        if let Some(value) = value {
            text.check(key, &value, *value.get_ref(), (1, max))?;
            *target = value.into_inner();
        }
    }
    if let Some(dir) = layer.artifact_dir {
        if !dir.get_ref().is_absolute() {
            let value = format!("{:?}", dir.get_ref());
            let reason = "the path must be absolute".to_owned();
            return Err(text.refused("artifact_dir", &dir, value, reason));
        }
        config.artifact_dir = dir.into_inner();
    }
    Ok(config)
}

impl Text<'_> {
    fn check<T>(
        &self,
        key: &'static str,
        at: &Spanned<T>,
        value: u64,
        (min, max): (u64, u64),
    ) -> Result<(), ConfigError> {
        if (min..=max).contains(&value) {
            return Ok(());
        }
        let reason = format!("it lies between {min} and {max}");
        Err(self.refused(key, at, value.to_string(), reason))
    }

    fn refused<T>(
        &self,
        key: &'static str,
        at: &Spanned<T>,
        value: String,
        reason: String,
    ) -> ConfigError {
        ConfigError::Value {
            path: self.path.to_owned(),
            line: line_of(self.text, at.span().start),
            key,
            value,
            reason,
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1
}
