//! The tree of `wasmvm inspect`: the live state of a task as names and values.
//!
//! Whoever owns state says what there is by [`Inspect`]: the shim for the task, its processes, streams and
//! threads, the VMM for the machine and its devices. The tree has no schema that others may build on: names come
//! and go with the code.
//!
//! ```text
//! task
//!   id: web
//!   init
//!     pid: 4711
//!     state: running
//! vmm
//!   devices
//!     vsock
//!       …
//! guest
//!   init
//!     threads
//!       15
//!         name: (guest) exe
//! ```
//!
//! Words of the guest, which may be false, are [`Value::guest`]: escaped, cut at [`GUEST_TEXT_BYTES_MAX`] and marked
//! in either form of the tree. No environment and no argument of a program belongs into the tree.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest text of a guest in the tree, bytes before it is escaped.
pub const GUEST_TEXT_BYTES_MAX: usize = 256;
/// Largest tree in JSON, bytes.
pub const TREE_BYTES_MAX: usize = 1 << 20;
/// The one name of a node that stands for a guest's text.
const GUEST: &str = "guest says";

/// State that can be looked at while it is in use.
pub trait Inspect {
    /// The state at this moment. Waits for nobody but the holder of a short lock.
    fn inspect(&self) -> Node;
}

/// Named values, ordered by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Node(BTreeMap<String, Value>);

/// A leaf of the tree, or a tree below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// A condition that holds or does not hold.
    Flag(bool),
    /// A count, a size in bytes or a number of the kernel's.
    Number(u64),
    /// A word or a sentence of ours.
    Text(String),
    /// A node with values of its own.
    Node(Node),
}

impl Node {
    /// A node without any value.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The node with one more value; an earlier value of this name is replaced.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.set(name, value);
        self
    }

    /// Adds a value; an earlier value of this name is replaced.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.0.insert(name.into(), value.into());
    }

    /// Names and values, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The value at `path`, names joined by `/`; an empty path is the node itself.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<Value> {
        let mut names = path.split('/').filter(|name| !name.is_empty());
        let Some(first) = names.next() else {
            return Some(Value::Node(self.clone()));
        };
        let found = names.try_fold(self.0.get(first)?, |value, name| match value {
            Value::Node(node) if node.guest_text().is_none() => node.0.get(name),
            _ => None,
        });
        found.cloned()
    }

    /// The guest's text that this node stands for, if it stands for one: then it is a leaf.
    #[must_use]
    pub fn guest_text(&self) -> Option<&str> {
        match self.0.get(GUEST) {
            Some(Value::Text(text)) if self.0.len() == 1 => Some(text),
            _ => None,
        }
    }
}

impl Value {
    /// Text of a guest: control characters, quotes and whatever is not ASCII are escaped, the rest is cut.
    #[must_use]
    pub fn guest(text: &str) -> Self {
        let mut end = text.len().min(GUEST_TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let escaped = text.get(..end).unwrap_or_default().escape_default();
        Self::Node(Node::new().with(GUEST, escaped.to_string()))
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, name: &str, depth: usize) -> fmt::Result {
        let indent = depth * 2;
        match self {
            Self::Flag(flag) => writeln!(f, "{:indent$}{name}: {flag}", ""),
            Self::Number(number) => writeln!(f, "{:indent$}{name}: {number}", ""),
            Self::Text(text) => writeln!(f, "{:indent$}{name}: {text}", ""),
            Self::Node(node) => match node.guest_text() {
                Some(text) => writeln!(f, "{:indent$}{name}: (guest) {text}", ""),
                None => {
                    writeln!(f, "{:indent$}{name}", "")?;
                    node.iter()
                        .try_for_each(|(name, value)| value.write(f, name, depth + 1))
                }
            },
        }
    }
}

/// The tree as text, a line for each value, indented by two blanks for each level.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter()
            .try_for_each(|(name, value)| value.write(f, name, 0))
    }
}

/// A leaf as its value, a node as its tree.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => writeln!(f, "{flag}"),
            Self::Number(number) => writeln!(f, "{number}"),
            Self::Text(text) => writeln!(f, "{text}"),
            Self::Node(node) => match node.guest_text() {
                Some(text) => writeln!(f, "(guest) {text}"),
                None => node.fmt(f),
            },
        }
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(u64::try_from(number).unwrap_or(u64::MAX))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Node> for Value {
    fn from(node: Node) -> Self {
        Self::Node(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Node {
        let thread = Node::new().with("name", Value::guest("a\nb\u{fc}"));
        let threads = Node::new().with("15", thread);
        Node::new()
            .with("guest", Node::new().with("threads", threads))
            .with("pid", 7_u32)
            .with("paused", false)
    }

    #[test]
    fn a_tree_reads_the_same_after_json() {
        let json = serde_json::to_string(&tree()).unwrap();
        assert_eq!(
            json,
            r#"{"guest":{"threads":{"15":{"name":{"guest says":"a\\nb\\u{fc}"}}}},"paused":false,"pid":7}"#
        );
        assert_eq!(serde_json::from_str::<Node>(&json).unwrap(), tree());
    }

    #[test]
    fn a_tree_as_text_marks_what_the_guest_says() {
        let text =
            "guest\n  threads\n    15\n      name: (guest) a\\nb\\u{fc}\npaused: false\npid: 7\n";
        assert_eq!(tree().to_string(), text);
    }

    #[test]
    fn a_path_finds_a_leaf_a_node_or_nothing() {
        let tree = tree();
        assert_eq!(tree.find("pid"), Some(Value::Number(7)));
        assert_eq!(tree.find("").unwrap().to_string(), tree.to_string());
        let name = tree.find("/guest/threads/15/name/").unwrap();
        assert_eq!(name.to_string(), "(guest) a\\nb\\u{fc}\n");
        assert_eq!(tree.find("pid/of"), None);
        assert_eq!(tree.find("guest/nothing"), None);
        assert_eq!(tree.find("guest/threads/15/name/guest says"), None);
    }

    #[test]
    fn a_guests_text_is_cut_between_characters() {
        let long = "\u{fc}".repeat(GUEST_TEXT_BYTES_MAX);
        let Value::Node(node) = Value::guest(&long) else {
            panic!("a node")
        };
        let escaped = "\\u{fc}".repeat(GUEST_TEXT_BYTES_MAX / 2);
        assert_eq!(node.guest_text(), Some(escaped.as_str()));
    }
}
