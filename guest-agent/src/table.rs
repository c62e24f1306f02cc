//! The guest's instances by task and exec id, and which may join them.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::AgentError;
use crate::instance::{Instance, Phase};
use crate::instance_id::InstanceId;
use crate::work::WorkFile;

/// Instances that have not been deleted.
pub const INSTANCES_MAX: usize = 64;

#[derive(Debug)]
enum Entry {
    /// A Create or an Exec is under way.
    Loading(Arc<WorkFile>),
    Loaded(Arc<Instance>),
}

type Entries = HashMap<InstanceId, Entry>;

/// All instances of the guest.
#[derive(Debug, Default)]
pub struct Table {
    entries: Mutex<Entries>,
}

impl Table {
    /// Reserves the id of an instance that is being loaded from `work`.
    ///
    /// # Errors
    /// [`AgentError::Exists`]; for an exec also whatever [`Place::fill`] says.
    pub fn reserve(&self, id: InstanceId, work: Arc<WorkFile>) -> Result<Place<'_>, AgentError> {
        self.with(|entries| {
            may_join(entries, &id)?;
            if entries.contains_key(&id) {
                return Err(AgentError::Exists(id.to_string()));
            }
            if entries.len() >= INSTANCES_MAX {
                let error = io::ErrorKind::QuotaExceeded.into();
                return Err(AgentError::System("hold more instances", error));
            }
            entries.insert(id.clone(), Entry::Loading(work));
            Ok(())
        })?;
        Ok(Place {
            table: self,
            id,
            filled: false,
        })
    }

    /// A loaded instance.
    ///
    /// # Errors
    /// [`AgentError::NotFound`].
    pub fn get(&self, id: &InstanceId) -> Result<Arc<Instance>, AgentError> {
        self.with(|entries| match entries.get(id) {
            Some(Entry::Loaded(instance)) => Ok(Arc::clone(instance)),
            Some(Entry::Loading(_)) | None => Err(AgentError::NotFound(id.to_string())),
        })
    }

    /// The loaded execs of a task.
    #[must_use]
    pub fn execs(&self, task: &str) -> Vec<Arc<Instance>> {
        let is_exec = |id: &InstanceId| id.task == task && !id.is_init();
        self.with(|entries| {
            let loaded = entries.iter().filter_map(|(id, entry)| match entry {
                Entry::Loaded(instance) if is_exec(id) => Some(Arc::clone(instance)),
                Entry::Loaded(_) | Entry::Loading(_) => None,
            });
            loaded.collect()
        })
    }

    /// The files that the instances of a task work on, those that are being loaded included.
    #[must_use]
    pub fn works(&self, task: &str) -> Vec<Arc<WorkFile>> {
        self.with(|entries| {
            let of_task = entries.iter().filter(|(id, _)| id.task == task);
            let works = of_task.map(|(_, entry)| match entry {
                Entry::Loading(work) => Arc::clone(work),
                Entry::Loaded(instance) => Arc::clone(instance.work()),
            });
            works.collect()
        })
    }

    /// Forgets an instance, whatever its phase.
    pub fn remove(&self, id: &InstanceId) {
        self.with(|entries| entries.remove(id));
    }

    fn with<T>(&self, change: impl FnOnce(&mut Entries) -> T) -> T {
        change(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An exec joins a task whose first program is there and has not ended.
fn may_join(entries: &Entries, id: &InstanceId) -> Result<(), AgentError> {
    if id.is_init() {
        return Ok(());
    }
    let init = id.init();
    let Some(Entry::Loaded(instance)) = entries.get(&init) else {
        return Err(AgentError::NotFound(init.to_string()));
    };
    match instance.phase() {
        Phase::Created | Phase::Running => Ok(()),
        phase @ (Phase::Ending | Phase::Stopped(_)) => Err(AgentError::Phase {
            action: "exec in",
            id: init.to_string(),
            phase: phase.name(),
        }),
    }
}

/// A reserved id, free again if its request fails or is cancelled.
#[derive(Debug)]
pub struct Place<'a> {
    table: &'a Table,
    id: InstanceId,
    filled: bool,
}

impl Place<'_> {
    /// The instance is loaded.
    ///
    /// # Errors
    /// For an exec: [`AgentError::NotFound`] without an init, [`AgentError::Phase`] when it has ended.
    pub fn fill(mut self, instance: Arc<Instance>) -> Result<(), AgentError> {
        let id = self.id.clone();
        self.table.with(|entries| {
            may_join(entries, &id)?;
            entries.insert(id, Entry::Loaded(instance));
            Ok::<_, AgentError>(())
        })?;
        self.filled = true;
        Ok(())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.table.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmvm_protocol::agent::Program;

    fn id(exec: &str) -> InstanceId {
        InstanceId {
            task: "web".into(),
            exec: exec.into(),
        }
    }

    fn work() -> Arc<WorkFile> {
        Arc::new(WorkFile::new(&Program::new()).unwrap())
    }

    #[test]
    fn a_place_that_is_not_filled_is_free_again() {
        let table = Table::default();
        let place = table.reserve(id(""), work()).unwrap();
        let error = table.reserve(id(""), work()).unwrap_err();
        assert!(matches!(error, AgentError::Exists(_)));
        assert_eq!(table.works("web").len(), 1);
        drop(place);
        assert!(table.reserve(id(""), work()).is_ok());
        assert!(table.works("web").is_empty());
    }

    #[test]
    fn an_exec_needs_a_loaded_init() {
        let table = Table::default();
        let _place = table.reserve(id(""), work()).unwrap();
        let error = table.reserve(id("sh"), work()).unwrap_err();
        assert_eq!(error.to_string(), "task \"web\" not found");
    }
}
