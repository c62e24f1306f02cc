//! The tasks of this shim, by id. `start` leaves a daemon behind for each task, so a shim has one task as a rule.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{Exit, Task};
use crate::error::{ErrorCode, Refusal};
use crate::events::EventSink;
use crate::workload::WorkloadMaker;

/// The tasks of this shim, those being created included.
pub(crate) struct Tasks {
    pub(super) maker: Arc<dyn WorkloadMaker>,
    pub(super) events: Arc<dyn EventSink>,
    tasks: Mutex<HashMap<String, Arc<Task>>>,
    count: watch::Sender<usize>,
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tasks")
            .field("tasks", &*self.lock())
            .finish_non_exhaustive()
    }
}

impl Tasks {
    /// An empty registry; `maker` makes the workloads of its tasks.
    #[must_use]
    pub(crate) fn new(maker: Arc<dyn WorkloadMaker>, events: Arc<dyn EventSink>) -> Self {
        Self {
            maker,
            events,
            tasks: Mutex::default(),
            count: watch::Sender::new(0),
        }
    }

    /// The number of tasks, those being created included.
    #[must_use]
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// The task of this id.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Task>, Refusal> {
        self.lock()
            .get(id)
            .cloned()
            .ok_or_else(|| Refusal::say(ErrorCode::NotFound, format!("task {id} does not exist")))
    }

    /// Every task, in no particular order.
    #[must_use]
    pub(crate) fn all(&self) -> Vec<Arc<Task>> {
        self.lock().values().cloned().collect()
    }

    /// Deletes a task and returns its pid and its exit. The caller must not drop the future.
    ///
    /// # Errors
    /// [`super::TaskError`], translated for containerd; the task stays.
    pub(crate) async fn delete(&self, id: &str) -> Result<(u32, Exit), Refusal> {
        let task = self.get(id)?;
        let exit = task.delete().await?;
        self.remove(id, &task);
        Ok((task.pid(), exit))
    }

    /// Enters a task.
    ///
    /// # Errors
    /// `AlreadyExists`, when the id is taken.
    pub(super) fn insert(&self, id: &str, task: Arc<Task>) -> Result<Arc<Task>, Refusal> {
        let mut tasks = self.lock();
        let inserted = match tasks.entry(id.to_owned()) {
            Entry::Occupied(_) => Err(Refusal::say(
                ErrorCode::AlreadyExists,
                format!("task {id} exists already; delete it first"),
            )),
            Entry::Vacant(vacant) => Ok(vacant.insert(task).clone()),
        };
        self.count.send_replace(tasks.len());
        inserted
    }

    /// Removes this task; a later task of the same id stays.
    pub(super) fn remove(&self, id: &str, task: &Arc<Task>) {
        let mut tasks = self.lock();
        if tasks.get(id).is_some_and(|there| Arc::ptr_eq(there, task)) {
            tasks.remove(id);
        }
        self.count.send_replace(tasks.len());
    }

    /// The map is whole after every statement, so a panic elsewhere has not broken it.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Task>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
