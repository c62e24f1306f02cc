//! The input of `start`: words, bootstrap parameters, options; and the names of streams.

use arbitrary::{Result, Unstructured};
use protobuf::well_known_types::any::Any;

use super::args::Args;
use super::bootstrap::Dialect;
use crate::config::options;

/// containerd's own limit for an id.
const ID_BYTES_MAX: usize = 76;

/// An id that is taken names one directory; a socket's directory is absolute and leaves room for a name;
/// options and the names of streams are read or refused.
pub fn names(input: &[u8]) {
    let _used_up = read(&mut Unstructured::new(input));
}

fn read(u: &mut Unstructured<'_>) -> Result<()> {
    let text: String = u.arbitrary()?;
    let words = text.split('\0').map(ToOwned::to_owned);
    let known = [
        "-namespace",
        "default",
        "-id",
        "-address",
        "/a",
        "-publish-binary",
        "/b",
    ];
    let known = known.into_iter().map(ToOwned::to_owned);
    if let Ok(args) = Args::parse(words.clone()) {
        is_a_name(&args.id);
    }
    let mut words: Vec<String> = known.chain(words).collect();
    words.insert(3, text.split('\0').next().unwrap_or_default().to_owned());
    if let Ok(args) = Args::parse(words.into_iter()) {
        is_a_name(&args.id);
        is_a_name(&args.namespace);
    }
    crate::stdio::fuzz::uri(&text);
    let type_url = *u.choose(&[
        "runtimeoptions.v1.Options",
        "containerd.runc.v1.Options",
        "containerd.linux.runc.CreateOptions",
        "",
    ])?;
    let rest = u.bytes(u.len())?;
    let any = Any {
        type_url: type_url.to_owned(),
        value: rest.to_vec(),
        ..Any::default()
    };
    let _cgroup = options::shim_cgroup(&any);
    let dialect = Dialect::of(rest, "default", "web");
    if let Ok(dir) = dialect.socket_dir() {
        assert!(dir.starts_with('/') && dir.len() <= 42, "{dir:?}");
    }
    let _rest = (dialect.events_address(), dialect.debug(), dialect.options());
    Ok(())
}

/// Empty for what needs none, else the name of one directory.
fn is_a_name(name: &str) {
    assert!(
        name.len() <= ID_BYTES_MAX && name != "." && name != "..",
        "{name:?}"
    );
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    assert!(name.chars().all(plain), "{name:?}");
}
