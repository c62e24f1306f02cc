//! A container's place among pods: containerd's CRI plugin says it by annotations in `config.json`
//! (`internal/cri/annotations/annotations.go`).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::Deserialize;

use super::BundleError;
use super::error::CONFIG;
use super::fields::refused;
use super::load::read_config;

/// The annotation with the container's kind: [`SANDBOX`] or [`CONTAINER`].
const KIND: &str = "io.kubernetes.cri.container-type";
/// The annotation with the id of the pod's sandbox.
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// Kind of the container that stands for a pod.
const SANDBOX: &str = "sandbox";
/// Kind of a pod's other containers.
const CONTAINER: &str = "container";
/// Longest id, bytes (containerd, `pkg/identifiers/validate.go`).
const ID_BYTES_MAX: usize = 76;

/// A container's place among pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum PodPlace {
    /// The container belongs to no pod.
    #[default]
    Alone,
    /// The container stands for a pod of the same id, and runs no program.
    Sandbox,
    /// The container belongs to a pod.
    Container {
        /// Id of the pod's sandbox, which is a file name.
        pod: String,
    },
}

#[derive(Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl PodPlace {
    /// The place of the container `id`, by its bundle. A bundle without `config.json` is that of a sandbox that has
    /// no container, and stands alone.
    ///
    /// # Errors
    /// [`BundleError`], with the annotation and its value.
    pub(crate) fn of_bundle(bundle: &Path, id: &str) -> Result<Self, BundleError> {
        let path = bundle.join(CONFIG);
        let bytes = match read_config(&path) {
            Err(BundleError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::Alone);
            }
            read => read?,
        };
        let parse = |source| BundleError::Parse { path, source };
        let annotated: Annotated = serde_json::from_slice(&bytes).map_err(parse)?;
        Self::of_annotations(&annotated.annotations.unwrap_or_default(), id)
    }

    fn of_annotations(
        annotations: &BTreeMap<String, String>,
        id: &str,
    ) -> Result<Self, BundleError> {
        let value = |name| annotations.get(name).map(String::as_str);
        let refuse = |name, reason| {
            let value = format!("{:?}", value(name).unwrap_or_default());
            Err(refused(&format!("annotations[{name:?}]"), &value, reason))
        };
        match (value(KIND), value(SANDBOX_ID)) {
            (None, _) => Ok(Self::Alone),
            (Some(SANDBOX), pod) if pod.is_none_or(|pod| pod == id) => Ok(Self::Sandbox),
            (Some(SANDBOX), _) => refuse(SANDBOX_ID, "a sandbox has its own id here"),
            (Some(CONTAINER), None) => refuse(
                SANDBOX_ID,
                "a container of a pod names the pod's sandbox here",
            ),
            (Some(CONTAINER), Some(pod)) if pod == id => {
                refuse(SANDBOX_ID, "a container cannot be its own pod's sandbox")
            }
            (Some(CONTAINER), Some(pod)) if is_id(pod) => Ok(Self::Container { pod: pod.into() }),
            (Some(CONTAINER), Some(_)) => refuse(
                SANDBOX_ID,
                "an id has at most 76 letters, digits and single '.', '_', '-' between them",
            ),
            (Some(_), _) => refuse(KIND, "it is either \"sandbox\" or \"container\""),
        }
    }
}

/// Whether containerd takes the text for an id, which then is a file name too.
fn is_id(text: &str) -> bool {
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric());
    text.len() <= ID_BYTES_MAX && text.split(['.', '_', '-']).all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(annotations: &[(&str, &str)]) -> Result<PodPlace, String> {
        let annotations = annotations
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        PodPlace::of_annotations(&annotations.collect(), "web").map_err(|error| error.to_string())
    }

    #[test]
    fn the_annotations_of_cri_name_the_pod() {
        let container = PodPlace::Container { pod: "p-1".into() };
        assert_eq!(place(&[]), Ok(PodPlace::Alone));
        assert_eq!(place(&[(SANDBOX_ID, "p-1")]), Ok(PodPlace::Alone));
        assert_eq!(place(&[(KIND, "sandbox")]), Ok(PodPlace::Sandbox));
        let own = [(KIND, "sandbox"), (SANDBOX_ID, "web")];
        assert_eq!(place(&own), Ok(PodPlace::Sandbox));
        let member = [(KIND, "container"), (SANDBOX_ID, "p-1")];
        assert_eq!(place(&member), Ok(container));
    }

    #[test]
    fn an_annotation_that_makes_no_sense_is_named() {
        let long = "a".repeat(ID_BYTES_MAX + 1);
        for (kind, pod, wrong) in [
            ("pause", Some("p"), KIND),
            ("", Some("p"), KIND),
            ("sandbox", Some("p"), SANDBOX_ID),
            ("container", None, SANDBOX_ID),
            ("container", Some("web"), SANDBOX_ID),
            ("container", Some(""), SANDBOX_ID),
            ("container", Some("../p"), SANDBOX_ID),
            ("container", Some(".."), SANDBOX_ID),
            ("container", Some("a--b"), SANDBOX_ID),
            ("container", Some("a/b"), SANDBOX_ID),
            ("container", Some("a\0"), SANDBOX_ID),
            ("container", Some(&long), SANDBOX_ID),
        ] {
            let mut annotations = vec![(KIND, kind)];
            annotations.extend(pod.map(|pod| (SANDBOX_ID, pod)));
            let sentence = place(&annotations).unwrap_err();
            let field = format!("annotations[{wrong:?}]");
            assert!(sentence.contains(&field), "{annotations:?}: {sentence}");
        }
    }

    #[test]
    fn a_bundle_without_a_spec_stands_alone() {
        let bundle = tempfile::tempdir().unwrap();
        let of = || PodPlace::of_bundle(bundle.path(), "web");
        assert_eq!(of().unwrap(), PodPlace::Alone);
        let config = r#"{"annotations": {"io.kubernetes.cri.container-type": "sandbox"}}"#;
        std::fs::write(bundle.path().join(CONFIG), config).unwrap();
        assert_eq!(of().unwrap(), PodPlace::Sandbox);
        std::fs::write(bundle.path().join(CONFIG), "{").unwrap();
        of().unwrap_err();
    }
}
