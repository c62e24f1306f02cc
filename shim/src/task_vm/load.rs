//! Loads the programs of a running task: found in the task's tree, and mapped into its VM.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::TaskVm;
use super::error::TaskVmError;
use super::resolve::Wanted;
use crate::bundle::ProcessSpec;
use crate::error::Refusal;
use crate::off_thread::step_off_thread;
use crate::program::{Found, Program};
use crate::workload::SlotLease;

impl TaskVm {
    /// Finds the program of an exec in the task's files, as they are now, and maps its artifact.
    ///
    /// # Errors
    /// [`Refusal`]; the sentence of [`TaskVmError::Exec`] says what can be executed.
    pub(super) async fn find_and_map(
        &self,
        process: &ProcessSpec,
    ) -> Result<(SlotLease, Found), Refusal> {
        let program = self.read_program(process).await?;
        let artifact = self.resolver.resolve(self.wanted(&program)).await?;
        let found = program.found.clone();
        drop(program);
        let mut slots = self.slots.lock().await;
        if let Some(lease) = slots.find(&artifact.key) {
            return Ok((lease, found));
        }
        let artifact = self
            .resolver
            .own(artifact, || self.accounting.birth())
            .await?;
        let lease = slots.lease(&self.vm, artifact).await?;
        Ok((lease, found))
    }

    /// Compiles init's program again, as the guest cannot load the artifact, and maps the new artifact in
    /// place of the old one.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(super) async fn recompile(&self) -> Result<(), Refusal> {
        let program = self.read_program(&self.spec.process).await?;
        let again = self.resolver.compile_again(self.wanted(&program));
        let artifact = self
            .resolver
            .own(again.await?, || self.accounting.birth())
            .await?;
        let mut slots = self.slots.lock().await;
        Ok(slots.replace(&self.vm, &self.slot, artifact).await?)
    }

    fn wanted<'a>(&'a self, program: &'a Arc<Program>) -> Wanted<'a> {
        Wanted {
            program,
            cpu: self.vm.cpu(),
            journal: &self.journal,
        }
    }

    /// Reads one program at a time: reading takes a processor of the host's, for longer the larger the file
    /// is.
    async fn read_program(&self, process: &ProcessSpec) -> Result<Arc<Program>, Refusal> {
        let (vmm, wanted) = (self.vm.process().clone(), process.clone());
        let _reading = self.resolver.reading().await;
        let program = step_off_thread(move || {
            // `root` is dropped with this closure: an open descriptor would hold the task's mounts.
            let root = vmm.root().map_err(|source| TaskVmError::Step {
                action: "open the task's root directory",
                source,
            })?;
            Program::open(root.as_fd(), &wanted).map_err(TaskVmError::Exec)
        })
        .await?;
        Ok(Arc::new(program))
    }
}
