//! The name of an instance.

use std::fmt;

/// Names an instance, as containerd's requests do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InstanceId {
    /// Id of the task.
    pub task: String,
    /// Id of the exec; empty for the task's first program, init.
    pub exec: String,
}

impl InstanceId {
    /// Whether the instance is the task's first program.
    #[must_use]
    pub fn is_init(&self) -> bool {
        self.exec.is_empty()
    }

    /// The name of the task's first program.
    #[must_use]
    pub fn init(&self) -> Self {
        Self {
            task: self.task.clone(),
            exec: String::new(),
        }
    }
}

/// The name as it stands in sentences.
impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_init() {
            write!(f, "exec {:?} of ", self.exec)?;
        }
        write!(f, "task {:?}", self.task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(exec: &str) -> InstanceId {
        InstanceId {
            task: "web".into(),
            exec: exec.into(),
        }
    }

    #[test]
    fn ids_in_sentences() {
        assert_eq!(id("").to_string(), "task \"web\"");
        assert_eq!(id("sh").to_string(), "exec \"sh\" of task \"web\"");
        assert_eq!(id("sh").init(), id(""));
    }
}
