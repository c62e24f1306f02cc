//! Configurations of any client, mostly those that are nearly right.

#![allow(clippy::unwrap_used, reason = "a panic is what a target reports by")]

use std::path::Path;

use arbitrary::{Result, Unstructured};
use serde_json::{Value, json};

use super::*;
use crate::error::chain;

/// A configuration as containerd writes it.
const BASE: &str = include_str!("golden/ctr-1.6-run.json");
/// Where one is changed.
const FIELDS: [&str; 40] = [
    "/ociVersion",
    "/process/args",
    "/process/args/0",
    "/process/env",
    "/process/env/0",
    "/process/cwd",
    "/process/user",
    "/process/user/uid",
    "/process/user/additionalGids",
    "/process/rlimits",
    "/process/capabilities",
    "/process/oomScoreAdj",
    "/process/terminal",
    "/root",
    "/root/path",
    "/root/readonly",
    "/hostname",
    "/mounts",
    "/mounts/1",
    "/mounts/1/destination",
    "/mounts/1/type",
    "/mounts/1/source",
    "/mounts/1/options",
    "/mounts/1/options/0",
    "/hooks",
    "/hooks/poststop",
    "/hooks/poststop/0/path",
    "/hooks/poststop/0/timeout",
    "/hooks/poststop/0/env",
    "/linux/cgroupsPath",
    "/linux/namespaces",
    "/linux/resources",
    "/linux/resources/memory",
    "/linux/resources/memory/limit",
    "/linux/resources/memory/swap",
    "/linux/resources/cpu/shares",
    "/linux/resources/cpu/quota",
    "/linux/resources/cpu/cpus",
    "/linux/resources/unified",
    "/annotations",
];

/// A configuration is refused in a sentence, or is what a task can be made of; a hook's time can be
/// waited for, however long it is; so for the spec of an exec and the resources of an Update.
pub fn bundle(input: &[u8]) {
    let _used_up = parse(&mut Unstructured::new(input));
}

fn parse(u: &mut Unstructured<'_>) -> Result<()> {
    let bytes = if u.ratio(1, 8)? {
        u.bytes(u.len())?.to_vec()
    } else {
        edited(u)?.to_string().into_bytes()
    };
    let at = Path::new("/run/b");
    match TaskSpec::parse(&bytes, &at.join("config.json"), at) {
        Ok(spec) => check(&spec),
        Err(error) => assert!(chain(&error).len() < 64 * 1024),
    }
    let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let part = |at: &str| {
        document
            .pointer(at)
            .cloned()
            .unwrap_or_default()
            .to_string()
    };
    if let Ok(process) = ProcessSpec::parse(part("/process").as_bytes()) {
        check_process(&process);
    }
    let _resources = Resources::of_update(part("/linux/resources").as_bytes());
    Ok(())
}

fn check(spec: &TaskSpec) {
    check_process(&spec.process);
    assert!(spec.rootfs.is_absolute() && spec.rootfs != Path::new("/"));
    assert!(!spec.hostname.contains('\0'));
    for hook in [
        &spec.hooks.prestart,
        &spec.hooks.create_runtime,
        &spec.hooks.poststart,
        &spec.hooks.poststop,
    ]
    .into_iter()
    .flatten()
    {
        crate::hooks::fuzz::arm(hook);
    }
    let limit = spec.memory_bytes_max();
    let ram = ram_mib(limit, 256);
    assert!(ram.is_power_of_two() && ram <= RAM_MIB_MAX, "{ram} MiB");
    assert!(wasm_memory_bytes_max(limit, ram) > 0);
}

fn check_process(process: &ProcessSpec) {
    assert!(!process.args.is_empty() && process.cwd.is_absolute());
    let strings = process.args.iter().chain(&process.env);
    assert!(strings.into_iter().all(|text| !text.contains('\0')));
}

/// The base with some fields replaced.
fn edited(u: &mut Unstructured<'_>) -> Result<Value> {
    let mut document: Value = serde_json::from_str(BASE).unwrap();
    document["hooks"] = json!({"poststop": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 1}]});
    document["linux"]["resources"] = json!({"memory": {"limit": 1 << 26, "swap": 1 << 26}, "cpu": {"shares": 2, "quota": 1000, "period": 1000, "cpus": "0"}, "unified": {"memory.high": "max"}});
    for _ in 0..u.int_in_range(0..=4)? {
        let at = *u.choose(&FIELDS)?;
        let new = value(u)?;
        if let Some(place) = document.pointer_mut(at) {
            *place = new;
        }
    }
    Ok(document)
}

fn value(u: &mut Unstructured<'_>) -> Result<Value> {
    Ok(match u.int_in_range(0..=9)? {
        0 => Value::Null,
        1 => u.arbitrary::<bool>()?.into(),
        2 => u.arbitrary::<i8>()?.into(),
        3 => u.arbitrary::<i64>()?.into(),
        4 => (*u.choose(&[
            u64::MAX,
            i64::MAX.unsigned_abs(),
            1 << 63,
            u64::from(u32::MAX),
            1 << 20,
        ])?)
        .into(),
        5 => text(u)?.into(),
        6 => (0..u.int_in_range(0..=3)?)
            .map(|_| text(u))
            .collect::<Result<Vec<_>>>()?
            .into(),
        7 => {
            json!([{"type": text(u)?, "path": text(u)?, "destination": text(u)?, "options": [text(u)?]}])
        }
        8 => json!({text(u)?: text(u)?, "limit": u.arbitrary::<i64>()?}),
        _ => json!([value(u)?]),
    })
}

fn text(u: &mut Unstructured<'_>) -> Result<String> {
    let known = [
        "",
        "/",
        "..",
        "../..",
        "/a/../..",
        "a\0b",
        "A=b",
        "bind",
        "tmpfs",
        "rbind",
        "ro",
        "mode=9",
        "size=1k",
        "size=99999999999g",
        "network",
        "user",
        "mount",
        "/proc/1/ns/net",
        "a.slice:b:c",
        "1-3,9999",
    ];
    if u.ratio(1, 3)? {
        u.arbitrary()
    } else {
        Ok((*u.choose(&known)?).to_owned())
    }
}
