//! Any document at all.

use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;

use super::super::TaskSpec;
use super::super::memory::MEMORY_BYTES_MIN;
use super::{BUNDLE, CTR_RUN_OPTIONS, parse};

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z]{1,8}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Every place of the golden spec, as a JSON pointer.
fn places() -> Vec<String> {
    fn walk(value: &Value, path: &str, places: &mut Vec<String>) {
        let children: Vec<(String, &Value)> = match value {
            Value::Object(members) => members.iter().map(|(k, v)| (k.clone(), v)).collect(),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .map(|(i, v)| (i.to_string(), v))
                .collect(),
            _ => Vec::new(),
        };
        for (name, child) in children {
            let path = format!("{path}/{name}");
            walk(child, &path, places);
            places.push(path);
        }
    }
    let mut places = Vec::new();
    walk(
        &serde_json::from_str(CTR_RUN_OPTIONS).unwrap(),
        "",
        &mut places,
    );
    places
}

proptest! {
    #[test]
    fn any_change_of_a_spec_is_taken_or_refused_with_its_field(
        place in prop::sample::select(places()),
        value in any_json(),
    ) {
        let mut document: Value = serde_json::from_str(CTR_RUN_OPTIONS).unwrap();
        *document.pointer_mut(&place).unwrap() = value;
        match parse(&document.to_string()) {
            Ok(spec) => {
                prop_assert!(!spec.process.args[0].is_empty());
                prop_assert!(spec.process.cwd.is_absolute() && spec.rootfs.is_absolute());
                prop_assert!(spec.memory_bytes_max().is_none_or(|limit| limit >= MEMORY_BYTES_MIN));
                for mount in &spec.mounts {
                    prop_assert!(mount.destination.is_absolute());
                    prop_assert!(!mount.destination.to_string_lossy().contains(".."));
                }
            }
            Err(error) => {
                let top = place.split('/').nth(1).unwrap();
                let text = error.to_string();
                prop_assert!(text.starts_with(&format!("config.json: {top}")), "{}: {}", place, text);
            }
        }
    }

    #[test]
    fn any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let path = Path::new("/bundle/config.json");
        prop_assert!(TaskSpec::parse(&bytes, path, Path::new(BUNDLE)).is_err());
    }
}
