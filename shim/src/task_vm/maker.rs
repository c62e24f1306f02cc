//! [`TaskVmMaker`]: from a `Create` request of containerd to a [`TaskVm`] whose guest waits for the agent's Create.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::TaskVm;
use super::boot::{Booted, boot};
use super::resolve::Resolver;
use super::steps::{off_thread, undo};
use crate::accounting::Accounting;
use crate::bundle::{TaskSpec, ram_mib};
use crate::cleanup;
use crate::config::{Config, GuestFiles, options};
use crate::error::{Refusal, chain};
use crate::journal::{Journal, STATE_ROOT, TASKS_ROOT};
use crate::workload::{Workload, WorkloadMaker, WorkloadOrder};

/// Boots VMs on this host.
#[derive(Debug)]
pub(crate) struct TaskVmMaker;

#[async_trait]
impl WorkloadMaker for TaskVmMaker {
    async fn create(&self, order: WorkloadOrder) -> Result<Arc<dyn Workload>, Refusal> {
        let config = options::config(&order.bundle, order.options.as_ref())?;
        Ok(Arc::new(create(order, &config).await?))
    }

    async fn undo(&self, order: &WorkloadOrder) -> Result<(), Refusal> {
        let (namespace, id) = (order.namespace.clone(), order.id.clone());
        undo(cleanup::undo, namespace, id).await
    }
}

/// Makes all that a task needs. When a step fails, nothing is left.
async fn create(order: WorkloadOrder, config: &Config) -> Result<TaskVm, Refusal> {
    let wanted = order.clone();
    let (guest, spec, journal) = off_thread(move || begin(&wanted)).await?;
    let (spec, journal) = (Arc::new(spec), Arc::new(journal));
    let (namespace, id) = (order.namespace.clone(), order.id.clone());
    let bundle = order.bundle.clone();
    let ram_mib = ram_mib(spec.memory_bytes_max(), config.default_memory_mib);
    let resolver = Resolver::new(&namespace, &id, &spec, config, guest);
    match boot(order, Arc::clone(&spec), ram_mib, &journal, &resolver).await {
        Ok(Booted {
            cgroup,
            vm,
            slots,
            slot,
            found,
            devices,
        }) => Ok(TaskVm {
            namespace,
            id,
            bundle,
            accounting: Arc::new(Accounting::new(cgroup, ram_mib, spec.memory_bytes_max())),
            spec,
            devices,
            journal,
            resolver,
            load_limit: config.load_timeout(),
            vm,
            slots: Mutex::new(slots),
            slot,
            found,
        }),
        Err(err) => {
            if let Err(left) = undo(cleanup::undo, namespace, id).await {
                tracing::error!(error = %chain(&left), "a failed create left something");
            }
            Err(err)
        }
    }
}

/// Finds the guest's files, loads the spec and starts the journal; what a task of the same id has left
/// after a crash is removed first.
fn begin(request: &WorkloadOrder) -> Result<(GuestFiles, TaskSpec, Journal), Refusal> {
    let guest = GuestFiles::find()?;
    let spec = TaskSpec::load(&request.bundle)?;
    let [tasks, earlier] = [TASKS_ROOT, STATE_ROOT].map(Path::new);
    let (namespace, id) = (&request.namespace, &request.id);
    let journal = cleanup::begin(tasks, earlier, namespace, id, &request.bundle)?;
    Ok((guest, spec, journal))
}
