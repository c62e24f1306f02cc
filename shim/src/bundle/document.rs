//! Reads parts of a JSON document, `config.json` or the spec of an exec, into their types.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::BundleError;
use super::error::CONFIG;
use super::fields;

/// Takes fields without effect out, and logs each of them.
pub(super) fn filter_fields(document: &mut Value, name: &'static str) -> Result<(), BundleError> {
    for unused in fields::filter_fields(document)? {
        let field = unused.path;
        if unused.known {
            tracing::debug!(document = name, field, "the field has no effect here");
        } else {
            tracing::warn!(document = name, field, "the field is unknown and ignored");
        }
    }
    Ok(())
}

/// The part of the document at a dotted path, typed; `None` when it is absent or `null`.
pub(super) fn section<T: DeserializeOwned>(
    document: &Value,
    field: &str,
) -> Result<Option<T>, BundleError> {
    let found = field
        .split('.')
        .try_fold(document, |value, name| value.get(name));
    match found {
        None | Some(Value::Null) => Ok(None),
        Some(value) => typed(value, field).map(Some),
    }
}

/// A list, element by element, so that an error names the element that is wrong.
pub(super) fn list<T: DeserializeOwned>(
    document: &Value,
    field: &str,
) -> Result<Vec<T>, BundleError> {
    let elements: Vec<Value> = section(document, field)?.unwrap_or_default();
    elements
        .iter()
        .enumerate()
        .map(|(i, element)| typed(element, &format!("{field}[{i}]")))
        .collect()
}

/// A value in its type; `field` names the value in the error.
pub(super) fn typed<T: DeserializeOwned>(value: &Value, field: &str) -> Result<T, BundleError> {
    T::deserialize(value).map_err(|source| BundleError::Type {
        document: CONFIG,
        field: field.to_owned(),
        source,
    })
}

/// The error of a document without a field that no task can do without.
pub(super) fn missing(field: &'static str, reason: &'static str) -> BundleError {
    BundleError::Missing {
        document: CONFIG,
        field,
        reason,
    }
}
