//! The description of a program that the agent gets.

use std::path::{Path, PathBuf};

use wasmvm_protocol::agent::{DeviceMount, Program};

use super::TaskVm;
use crate::bundle::{ProcessSpec, TaskSpec, cleaned};
use crate::program::Found;
use crate::vm::credentials;

/// The environment of a program: the spec's, and the variables that the spec leaves to the runtime: `HOME`, as runc
/// sets it, and `HOSTNAME`, as WASI has no other way to tell the host name.
fn environment(given: &[String], hostname: &str, found: &Found) -> Vec<String> {
    let mut env = given.to_vec();
    if let Some(home) = &found.home {
        // The spec may set `HOME`, but empty.
        env.retain(|variable| !variable.starts_with("HOME="));
        env.push(format!("HOME={home}"));
    }
    if !hostname.is_empty() && !env.iter().any(|variable| variable.starts_with("HOSTNAME=")) {
        env.push(format!("HOSTNAME={hostname}"));
    }
    env
}

/// The masked paths that lie below a file system of the guest's own, without `..`.
fn guests_own(spec: &TaskSpec) -> impl Iterator<Item = PathBuf> {
    let own = [("/proc", spec.guest_proc), ("/dev", spec.guest_dev)];
    let paths = spec.masked_paths.iter().map(|path| cleaned(path));
    paths.filter(move |path| {
        own.iter()
            .any(|(top, is_own)| *is_own && path.starts_with(top))
    })
}

/// The description of a program whose artifact lies in `slot`.
pub(super) fn describe(vm: &TaskVm, process: &ProcessSpec, found: &Found, slot: u32) -> Program {
    let spec = &vm.spec;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let devices = vm.devices.iter().map(|mount| DeviceMount {
        device: mount.device.to_owned(),
        destination: text(&mount.destination),
        ..Default::default()
    });
    Program {
        args: process.args.clone(),
        env: environment(&process.env, &spec.hostname, found),
        cwd: text(&process.cwd),
        uid: process.user.uid,
        gid: process.user.gid,
        additional_gids: process.user.additional_gids.clone(),
        memory_bytes_max: vm.accounting.wasm_memory_bytes_max(),
        guest_dev: spec.guest_dev,
        guest_proc: spec.guest_proc,
        hostname: spec.hostname.clone(),
        slot,
        preopen_cwd: spec.preopen_cwd,
        devices: devices.collect(),
        function: found.function.clone().unwrap_or_default(),
        umask: process.user.umask,
        capabilities: credentials::of_program(spec, process),
        masked_paths: guests_own(spec).map(|path| text(&path)).collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_told_the_host_name() {
        let environment = |given: &[&str], hostname| {
            let given: Vec<_> = given.iter().map(ToString::to_string).collect();
            environment(&given, hostname, &Found::default())
        };
        assert_eq!(environment(&["A=b"], "web-1"), ["A=b", "HOSTNAME=web-1"]);
        assert_eq!(environment(&["A=b"], ""), ["A=b"]);
        assert_eq!(environment(&["HOSTNAME=own"], "web-1"), ["HOSTNAME=own"]);
    }

    #[test]
    fn a_program_is_told_its_home_once() {
        let found = Found {
            home: Some("/root".to_owned()),
            ..Found::default()
        };
        let given = ["HOME=".to_owned(), "A=b".to_owned()];
        assert_eq!(environment(&given, "", &found), ["A=b", "HOME=/root"]);
        let given = ["HOME=/own".to_owned()];
        assert_eq!(environment(&given, "", &Found::default()), ["HOME=/own"]);
    }
}
