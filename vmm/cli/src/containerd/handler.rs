//! The handler's table in containerd's configuration, by the version of the file.

use toml::{Table, Value};

/// Name of the handler, which a `RuntimeClass` names.
pub(super) const NAME: &str = "wasmvm";
/// Runtime of the handler.
const RUNTIME_TYPE: &str = "io.containerd.wasmvm.v1";
/// Names of CRI's plugin in files of version 1, 2 and 3.
const PLUGINS: [&str; 3] = [
    "cri",
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime",
];

/// The plugin whose table has CRI's runtimes in a file of `version`. A file without a version is of version 1.
/// containerd 2.x moves no table of CRI of such a file to where it looks for the table, and takes the names of
/// version 3 there.
pub(super) fn plugin(version: Option<i64>, major: u64) -> &'static str {
    match version {
        None | Some(..=1) if major >= 2 => PLUGINS[2],
        None | Some(..=1) => PLUGINS[0],
        Some(2) => PLUGINS[1],
        Some(_) => PLUGINS[2],
    }
}

/// The handler's own table. A privileged pod gets no device of the host: there is no device in a VM.
fn table() -> Table {
    let mut table = Table::new();
    table.insert("runtime_type".into(), RUNTIME_TYPE.into());
    table.insert("privileged_without_host_devices".into(), true.into());
    table
}

/// The text of the handler's table, and of the tables of `others` beside it.
///
/// # Errors
/// The encoder's; tables that came from TOML are always TOML.
pub(super) fn text(plugin: &str, others: Table) -> Result<String, toml::ser::Error> {
    let mut inner = others;
    inner.insert(NAME.into(), table().into());
    for key in ["runtimes", "containerd", plugin, "plugins"] {
        let mut outer = Table::new();
        outer.insert(key.to_owned(), Value::Table(inner));
        inner = outer;
    }
    toml::to_string(&inner)
}

/// The runtimes of a configuration, under whatever name CRI's plugin has in the configuration.
pub(super) fn runtimes(configuration: &Table) -> Option<&Table> {
    let plugins = configuration.get("plugins")?;
    PLUGINS.iter().rev().find_map(|plugin| {
        let cri = plugins.get(plugin)?.get("containerd")?;
        cri.get("runtimes")?.as_table()
    })
}

/// The runtimes of a configuration, to be changed.
pub(super) fn runtimes_mut(configuration: &mut Table) -> Option<&mut Table> {
    let plugins = configuration.get_mut("plugins")?.as_table_mut()?;
    let has_runtimes = |plugins: &Table, plugin: &str| {
        let cri = plugins.get(plugin).and_then(|cri| cri.get("containerd"));
        cri.and_then(|cri| cri.get("runtimes")).is_some()
    };
    let plugin = PLUGINS
        .into_iter()
        .rev()
        .find(|plugin| has_runtimes(plugins, plugin))?;
    let cri = plugins.get_mut(plugin)?.get_mut("containerd")?;
    cri.get_mut("runtimes")?.as_table_mut()
}

/// Whether `runtime` can start anything: to containerd, a table with nothing but options is a runtime without a type.
pub(super) fn has_type(runtime: &Value) -> bool {
    let kind = runtime.get("runtime_type").and_then(Value::as_str);
    kind.is_some_and(|kind| !kind.is_empty())
}

/// Removes the handler's table where it has no type, but options; returns whether there was one. A table of runtimes
/// that is empty then goes too.
pub(super) fn remove_options(configuration: &mut Table) -> bool {
    let Some(runtimes) = runtimes_mut(configuration) else {
        return false;
    };
    if runtimes.get(NAME).is_none_or(has_type) {
        return false;
    }
    runtimes.remove(NAME);
    if runtimes.is_empty()
        && let Some(Value::Table(plugins)) = configuration.get_mut("plugins")
    {
        for plugin in PLUGINS {
            let cri = plugins
                .get_mut(plugin)
                .and_then(|cri| cri.get_mut("containerd"));
            if let Some(cri) = cri.and_then(Value::as_table_mut) {
                cri.remove("runtimes");
            }
        }
    }
    true
}

/// Whether `runtime` is the handler with our settings, whatever else containerd has filled in.
pub(super) fn is_ours(runtime: &Value) -> bool {
    table()
        .iter()
        .all(|(key, value)| runtime.get(key) == Some(value))
}

/// Whether a configuration switches CRI off, by any of the plugin's names.
pub(super) fn cri_is_off(configuration: &Table) -> bool {
    let disabled = configuration
        .get("disabled_plugins")
        .and_then(Value::as_array);
    disabled
        .into_iter()
        .flatten()
        .any(|name| name.as_str().is_some_and(|name| PLUGINS.contains(&name)))
}
