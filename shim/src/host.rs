//! The real workload of a [`crate::task`]: loads a task's configuration, says what the agent is
//! told of a program, and translates types and errors.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::net::UnixStream;
use wasmvm_protocol::agent::{DeviceMount, Program};

use crate::bundle::{ProcessSpec, TaskSpec, cleaned};
use crate::cleanup;
use crate::error::{Refusal, chain};
use crate::journal::ExitRecord;
use crate::launch::options;
use crate::meter::Meter;
use crate::program::Found;
use crate::task_vm::{self, TaskVm, TaskVmError, TaskVmRequest};
use crate::tree::RootfsMount;
use crate::vm::{VmEnd, credentials};
use crate::workload::{LoadedProgram, Workload, WorkloadMaker, WorkloadOrder};

/// Boots VMs on this host.
#[derive(Debug)]
pub struct Host;

fn refuse(error: &TaskVmError) -> Refusal {
    Refusal::new(error.code(), error)
}

/// What the spec says, and what it leaves to the runtime: `HOME`, as runc sets it, and the host name,
/// which WASI has no other way to tell.
fn environment(given: &[String], hostname: &str, found: &Found) -> Vec<String> {
    let mut env = given.to_vec();
    if let Some(home) = &found.home {
        // It may be there and empty.
        env.retain(|variable| !variable.starts_with("HOME="));
        env.push(format!("HOME={home}"));
    }
    if !hostname.is_empty() && !env.iter().any(|variable| variable.starts_with("HOSTNAME=")) {
        env.push(format!("HOSTNAME={hostname}"));
    }
    env
}

/// The masked paths that lie below a file system of the guest's own, without `..`.
fn guests_own(spec: &TaskSpec) -> impl Iterator<Item = PathBuf> {
    let own = [("/proc", spec.guest_proc), ("/dev", spec.guest_dev)];
    let paths = spec.masked_paths.iter().map(|path| cleaned(path));
    paths.filter(move |path| {
        own.iter()
            .any(|(top, is_own)| *is_own && path.starts_with(top))
    })
}

/// What the agent is told of a program whose artifact lies in `slot`.
fn program(vm: &TaskVm, process: &ProcessSpec, found: &Found, slot: u32) -> Program {
    let spec = vm.spec();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let devices = vm.devices().iter().map(|mount| DeviceMount {
        device: mount.device.to_owned(),
        destination: text(&mount.destination),
        ..Default::default()
    });
    Program {
        args: process.args.clone(),
        env: environment(&process.env, &spec.hostname, found),
        cwd: text(&process.cwd),
        uid: process.user.uid,
        gid: process.user.gid,
        additional_gids: process.user.additional_gids.clone(),
        memory_bytes_max: vm.meter().wasm_memory_bytes_max(),
        guest_dev: spec.guest_dev,
        guest_proc: spec.guest_proc,
        hostname: spec.hostname.clone(),
        slot,
        preopen_cwd: spec.preopen_cwd,
        devices: devices.collect(),
        function: found.function.clone().unwrap_or_default(),
        umask: process.user.umask,
        capabilities: credentials::of_program(spec, process),
        masked_paths: guests_own(spec).map(|path| text(&path)).collect(),
        ..Default::default()
    }
}

impl From<WorkloadOrder> for TaskVmRequest {
    fn from(order: WorkloadOrder) -> Self {
        let rootfs = order.rootfs.into_iter().map(|mount| RootfsMount {
            kind: mount.type_,
            source: mount.source,
            target: mount.target,
            options: mount.options,
        });
        Self {
            rootfs: rootfs.collect(),
            namespace: order.namespace,
            id: order.id,
            bundle: order.bundle,
        }
    }
}

#[async_trait]
impl WorkloadMaker for Host {
    async fn create(&self, order: WorkloadOrder) -> Result<Arc<dyn Workload>, Refusal> {
        let config = options::config(&order.bundle, order.options.as_ref())
            .map_err(|error| Refusal::new(error.code(), &error))?;
        match TaskVm::create(order.into(), &config).await {
            Ok(vm) => Ok(Arc::new(vm)),
            Err(error) => Err(refuse(&error)),
        }
    }

    async fn undo(&self, order: &WorkloadOrder) -> Result<(), Refusal> {
        let (namespace, id) = (order.namespace.clone(), order.id.clone());
        let undone = task_vm::undo(cleanup::undo, namespace, id).await;
        undone.map_err(|error| refuse(&error))
    }
}

#[async_trait]
impl Workload for TaskVm {
    fn pid(&self) -> u32 {
        Self::pid(self)
    }

    fn program(&self) -> Program {
        program(self, &self.spec().process, self.found(), 0)
    }

    fn load_limit(&self) -> Duration {
        Self::load_limit(self)
    }

    async fn load(&self, process: &ProcessSpec) -> Result<LoadedProgram, Refusal> {
        credentials::check_exec(self.spec(), &process.user)
            .map_err(|error| refuse(&error.into()))?;
        let (slot, found) = Self::load(self, process)
            .await
            .map_err(|error| refuse(&error))?;
        let program = program(self, process, &found, slot.index());
        Ok(LoadedProgram { program, slot })
    }

    async fn compile_again(&self) -> Result<(), Refusal> {
        Self::compile_again(self)
            .await
            .map_err(|error| refuse(&error))
    }

    async fn pause(&self) -> Result<(), Refusal> {
        Self::pause(self)
            .await
            .map_err(|error| Refusal::new(error.code(), &error))
    }

    async fn resume(&self) -> Result<(), Refusal> {
        Self::resume(self)
            .await
            .map_err(|error| Refusal::new(error.code(), &error))
    }

    fn meter(&self) -> &Arc<Meter> {
        Self::meter(self)
    }

    async fn connect(&self, port: u32) -> Result<UnixStream, Refusal> {
        Self::connect(self, port)
            .await
            .map_err(|error| Refusal::new(error.code(), &error))
    }

    async fn vm_ended(&self) -> VmEnd {
        Self::vm_ended(self).await
    }

    fn kill_vm(&self) {
        Self::kill_vm(self);
    }

    async fn poststart(&self) -> Result<(), Refusal> {
        Self::poststart(self)
            .await
            .map_err(|error| Refusal::new(error.code(), &error))
    }

    fn record_exit(&self, status: u32, exited_at: SystemTime) {
        let since_epoch = exited_at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let record = ExitRecord {
            status,
            exited_at_ns: u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX),
        };
        if let Err(error) = Self::record_exit(self, record) {
            // The exit is told all the same; only a `delete` after our own death would not know it.
            tracing::warn!(error = chain(&error), "cannot keep the exit");
        }
    }

    async fn release(&self) -> Result<(), Refusal> {
        Self::release(self).await.map_err(|error| refuse(&error))
    }

    async fn destroy(&self) -> Result<(), Refusal> {
        Self::destroy(self).await.map_err(|error| refuse(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_told_the_host_name() {
        let environment = |given: &[&str], hostname| {
            let given: Vec<_> = given.iter().map(ToString::to_string).collect();
            environment(&given, hostname, &Found::default())
        };
        assert_eq!(environment(&["A=b"], "web-1"), ["A=b", "HOSTNAME=web-1"]);
        assert_eq!(environment(&["A=b"], ""), ["A=b"]);
        assert_eq!(environment(&["HOSTNAME=own"], "web-1"), ["HOSTNAME=own"]);
    }

    #[test]
    fn a_program_is_told_its_home_once() {
        let found = Found {
            home: Some("/root".to_owned()),
            ..Found::default()
        };
        let given = ["HOME=".to_owned(), "A=b".to_owned()];
        assert_eq!(environment(&given, "", &found), ["A=b", "HOME=/root"]);
        let given = ["HOME=/own".to_owned()];
        assert_eq!(environment(&given, "", &Found::default()), ["HOME=/own"]);
    }
}
