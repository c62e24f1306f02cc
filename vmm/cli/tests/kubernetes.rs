//! The manifests of `deploy/kubernetes`: they are what Kubernetes takes, and the policy refuses what wasmvm refuses.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cel::{Context, Program, Value};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::json;
use serde_yaml_ng::{Deserializer, Value as Yaml};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kubernetes")
}

/// The documents of a file.
fn documents(file: &str) -> Vec<Yaml> {
    let text = fs::read_to_string(folder().join(file)).unwrap();
    let documents = Deserializer::from_str(&text).map(|each| Yaml::deserialize(each).unwrap());
    documents.collect()
}

/// A document as Kubernetes' type. The type leaves out a field that it does not know: what it has read must be all.
fn typed<T: DeserializeOwned + serde::Serialize>(document: &Yaml) -> T {
    let read: T = serde_yaml_ng::from_value(document.clone()).unwrap();
    assert_eq!(&serde_yaml_ng::to_value(&read).unwrap(), document);
    read
}

fn only<T: DeserializeOwned + serde::Serialize>(file: &str) -> T {
    let documents = documents(file);
    assert_eq!(documents.len(), 1, "{file}");
    typed(&documents[0])
}

fn policy() -> (ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding) {
    let documents = documents("admission.yaml");
    assert_eq!(documents.len(), 2);
    (typed(&documents[0]), typed(&documents[1]))
}

fn examples() -> Vec<Pod> {
    let files = fs::read_dir(folder().join("examples")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names
        .map(|name| only(&format!("examples/{name}")))
        .collect()
}

#[test]
fn the_kustomization_names_all_manifests() {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Kustomization {
        api_version: String,
        kind: String,
        resources: Vec<String>,
    }
    let document = documents("kustomization.yaml").remove(0);
    let found: Kustomization = serde_yaml_ng::from_value(document).unwrap();
    assert_eq!(found.api_version, "kustomize.config.k8s.io/v1beta1");
    assert_eq!(found.kind, "Kustomization");
    let mut named = found.resources;
    let files = fs::read_dir(folder()).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut there: Vec<_> = names
        .filter(|name| name.ends_with(".yaml") && name != "kustomization.yaml")
        .collect();
    named.sort();
    there.sort();
    assert_eq!(named, there);
}

#[test]
fn the_runtime_class_leads_to_the_handler_on_nodes_with_the_feature() {
    let class: RuntimeClass = only("runtimeclass.yaml");
    assert!(
        include_str!("../src/containerd/handler.rs")
            .contains(&format!("NAME: &str = {:?};", class.handler))
    );
    let selector = class.scheduling.unwrap().node_selector.unwrap();
    let (label, value) = selector.first_key_value().unwrap();
    assert_eq!((selector.len(), value.as_str()), (1, "true"));
    assert!(include_str!("../src/node/feature.rs").contains(&format!("NAME: &str = {label:?};")));
    let overhead = class.overhead.unwrap().pod_fixed.unwrap();
    assert!(overhead.contains_key("memory") && overhead.contains_key("cpu"));
}

#[test]
fn the_daemon_set_runs_this_version_with_words_that_it_understands() {
    let set: DaemonSet = only("daemonset.yaml");
    let namespace: Namespace = only("namespace.yaml");
    assert_eq!(set.metadata.namespace, namespace.metadata.name);
    let spec = set.spec.unwrap();
    let labels = spec.template.metadata.unwrap().labels;
    assert_eq!(spec.selector.match_labels, labels);
    let pod = spec.template.spec.unwrap();
    assert_eq!(pod.host_pid, Some(true));
    let container = &pod.containers[0];
    let tag = concat!("wasmvm.example/wasmvm-node:", env!("CARGO_PKG_VERSION"));
    assert_eq!(container.image.as_deref(), Some(tag));
    let mounts = container.volume_mounts.as_ref().unwrap();
    let feature = mounts
        .iter()
        .find(|mount| mount.name == "features")
        .unwrap();
    assert!(
        include_str!("../src/node/feature.rs")
            .contains(&format!("FOLDER: &str = {:?};", feature.mount_path))
    );
    // There is no such folder here: the words are understood, and what they ask for fails.
    let said = Command::new(env!("CARGO_BIN_EXE_wasmvm"))
        .args(container.args.as_ref().unwrap())
        .output()
        .unwrap();
    assert_eq!(said.status.code(), Some(1), "{said:?}");
}

/// The messages by which the policy refuses `object`.
fn refusals(policy: &ValidatingAdmissionPolicy, object: &serde_json::Value) -> Vec<String> {
    let spec = policy.spec.as_ref().unwrap();
    let object = cel::to_value(object).unwrap();
    let mut variables: HashMap<String, Value> = HashMap::new();
    let evaluate = |expression: &str, variables: &HashMap<String, Value>| {
        let mut context = Context::default();
        context.add_variable_from_value("object", object.clone());
        context.add_variable_from_value("variables", variables.clone());
        let program = Program::compile(expression).unwrap();
        program
            .execute(&context)
            .unwrap_or_else(|error| panic!("{expression}: {error}"))
    };
    for condition in spec.match_conditions.iter().flatten() {
        if evaluate(&condition.expression, &variables) != Value::Bool(true) {
            return Vec::new();
        }
    }
    for variable in spec.variables.iter().flatten() {
        let value = evaluate(&variable.expression, &variables);
        variables.insert(variable.name.clone(), value);
    }
    let validations = spec.validations.iter().flatten();
    let refused =
        validations.filter(|each| evaluate(&each.expression, &variables) == Value::Bool(false));
    refused.map(|each| each.message.clone().unwrap()).collect()
}

/// Each refused setting as a patch of a pod's spec, with a word of the sentence.
fn refused_settings() -> Vec<(serde_json::Value, &'static str)> {
    let container = |extra: serde_json::Value| {
        let mut container = json!({ "name": "a", "image": "b" });
        merge(&mut container, &extra);
        json!([container])
    };
    let propagating = json!({ "volumeMounts": [
        { "name": "c", "mountPath": "/c" }, { "name": "d", "mountPath": "/d", "mountPropagation": "HostToContainer" },
    ] });
    let bidirectional = json!({ "volumeMounts": [{ "name": "d", "mountPath": "/d", "mountPropagation": "Bidirectional" }] });
    let device = json!({ "volumeDevices": [{ "name": "c", "devicePath": "/dev/c" }] });
    vec![
        (
            json!({ "shareProcessNamespace": true }),
            "shareProcessNamespace",
        ),
        (json!({ "hostPID": true }), "hostPID"),
        (json!({ "hostUsers": false }), "hostUsers"),
        (
            json!({ "containers": container(propagating.clone()) }),
            "mountPropagation",
        ),
        (
            json!({ "initContainers": container(bidirectional) }),
            "mountPropagation",
        ),
        (
            json!({ "ephemeralContainers": container(propagating) }),
            "mountPropagation",
        ),
        (
            json!({ "containers": container(device.clone()) }),
            "volumeDevices",
        ),
        (
            json!({ "initContainers": container(device) }),
            "volumeDevices",
        ),
        (
            json!({ "securityContext": { "sysctls": [{ "name": "net.core.somaxconn", "value": "1" }, { "name": "kernel.msgmax", "value": "1" }] } }),
            "sysctls",
        ),
    ]
}

/// Settings that are near to a refused one.
fn accepted_settings() -> Vec<serde_json::Value> {
    vec![
        json!({}),
        json!({ "shareProcessNamespace": false, "hostPID": false, "hostUsers": true, "hostNetwork": true }),
        json!({ "securityContext": { "runAsUser": 1 } }),
        json!({ "securityContext": { "sysctls": [{ "name": "net.core.somaxconn", "value": "1" }, { "name": "net/ipv4/ip_forward", "value": "1" }] } }),
        json!({ "containers": [{ "name": "a", "image": "b", "volumeDevices": [], "volumeMounts": [{ "name": "d", "mountPath": "/d", "mountPropagation": "None" }] }] }),
    ]
}

fn merge(into: &mut serde_json::Value, from: &serde_json::Value) {
    for (key, value) in from.as_object().unwrap() {
        into[key] = value.clone();
    }
}

/// A pod's spec with `patch`, in each object that has one.
fn objects(patch: &serde_json::Value, class: Option<&str>) -> Vec<serde_json::Value> {
    let mut spec = json!({ "containers": [{ "name": "a", "image": "b" }] });
    merge(&mut spec, patch);
    if let Some(class) = class {
        spec["runtimeClassName"] = json!(class);
    }
    let metadata = json!({ "name": "a" });
    vec![
        json!({ "kind": "Pod", "metadata": metadata, "spec": spec }),
        json!({ "kind": "Deployment", "metadata": metadata, "spec": { "template": { "spec": spec } } }),
        json!({ "kind": "CronJob", "metadata": metadata, "spec": { "jobTemplate": { "spec": { "template": { "spec": spec } } } } }),
    ]
}

#[test]
fn the_policy_refuses_what_wasmvm_refuses_and_nothing_near_to_it() {
    let (policy, _) = policy();
    for (patch, word) in refused_settings() {
        for object in objects(&patch, Some("wasmvm")) {
            let said = refusals(&policy, &object);
            assert!(
                said.len() == 1 && said[0].contains(word),
                "{object}: {said:?}"
            );
            assert!(
                said[0].starts_with("wasmvm: ") && said[0].contains("; "),
                "{said:?}"
            );
        }
    }
    for patch in accepted_settings() {
        for object in objects(&patch, Some("wasmvm")) {
            assert_eq!(refusals(&policy, &object), Vec::<String>::new(), "{object}");
        }
    }
}

#[test]
fn the_policy_is_for_pods_of_its_class_that_are_not_going() {
    let (policy, binding) = policy();
    let spec = binding.spec.unwrap();
    assert_eq!(spec.policy_name, policy.metadata.name);
    assert_eq!(spec.validation_actions, Some(vec!["Deny".to_owned()]));
    for (patch, _) in refused_settings() {
        for class in [None, Some("gvisor")] {
            for object in objects(&patch, class) {
                assert_eq!(refusals(&policy, &object), Vec::<String>::new(), "{object}");
            }
        }
        for mut object in objects(&patch, Some("wasmvm")) {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            assert_eq!(refusals(&policy, &object), Vec::<String>::new(), "{object}");
        }
    }
}

#[test]
fn the_examples_are_pods_of_the_class_that_the_policy_accepts() {
    let class: RuntimeClass = only("runtimeclass.yaml");
    let (policy, _) = policy();
    let examples = examples();
    assert_eq!(examples.len(), 2);
    for pod in examples {
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.runtime_class_name, class.metadata.name);
        let mut object = serde_json::to_value(&pod).unwrap();
        object["kind"] = json!("Pod");
        assert_eq!(refusals(&policy, &object), Vec::<String>::new());
    }
}
