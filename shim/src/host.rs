//! The real sandbox behind the seam of [`crate::task`]: loads a task's configuration, says what the agent is
//! told of a program, and translates types and errors.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::net::UnixStream;
use wasmvm_protocol::agent::{DeviceMount, Program};

use crate::bundle::ProcessSpec;
use crate::cleanup;
use crate::error::{Refusal, chain};
use crate::journal::ExitRecord;
use crate::launch::options;
use crate::meter::Meter;
use crate::sandbox::{self, Sandbox, SandboxError, SandboxRequest};
use crate::task::{LoadedProgram, SandboxMaker, SandboxOrder, TaskSandbox, VmEnding};
use crate::tree::RootfsMount;

/// Boots VMs on this host.
#[derive(Debug)]
pub struct Host;

fn refuse(error: &SandboxError) -> Refusal {
    Refusal::new(error.code(), error)
}

/// What the spec says, and the host name, which WASI has no other way to tell.
fn environment(given: &[String], hostname: &str) -> Vec<String> {
    let mut env = given.to_vec();
    if !hostname.is_empty() && !env.iter().any(|variable| variable.starts_with("HOSTNAME=")) {
        env.push(format!("HOSTNAME={hostname}"));
    }
    env
}

/// What the agent is told of a program whose artifact lies in `slot`.
fn program(sandbox: &Sandbox, process: &ProcessSpec, slot: u32) -> Program {
    let spec = sandbox.spec();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let devices = sandbox.devices().iter().map(|mount| DeviceMount {
        device: mount.device.to_owned(),
        destination: text(&mount.destination),
        ..Default::default()
    });
    Program {
        args: process.args.clone(),
        env: environment(&process.env, &spec.hostname),
        cwd: text(&process.cwd),
        uid: process.user.uid,
        gid: process.user.gid,
        additional_gids: process.user.additional_gids.clone(),
        memory_bytes_max: sandbox.meter().wasm_memory_bytes_max(),
        guest_dev: spec.guest_dev,
        guest_proc: spec.guest_proc,
        hostname: spec.hostname.clone(),
        slot,
        preopen_cwd: spec.preopen_cwd,
        devices: devices.collect(),
        ..Default::default()
    }
}

impl From<SandboxOrder> for SandboxRequest {
    fn from(order: SandboxOrder) -> Self {
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
impl SandboxMaker for Host {
    async fn create(&self, order: SandboxOrder) -> Result<Arc<dyn TaskSandbox>, Refusal> {
        let config = options::config(&order.bundle, order.options.as_ref())
            .map_err(|error| Refusal::new(error.code(), &error))?;
        match Sandbox::create(order.into(), &config).await {
            Ok(sandbox) => Ok(Arc::new(sandbox)),
            Err(error) => Err(refuse(&error)),
        }
    }

    async fn undo(&self, order: &SandboxOrder) -> Result<(), Refusal> {
        let (namespace, id) = (order.namespace.clone(), order.id.clone());
        let undone = sandbox::undo(cleanup::undo, namespace, id).await;
        undone.map_err(|error| refuse(&error))
    }
}

#[async_trait]
impl TaskSandbox for Sandbox {
    fn pid(&self) -> u32 {
        Self::pid(self)
    }

    fn program(&self) -> Program {
        program(self, &self.spec().process, 0)
    }

    fn load_limit(&self) -> Duration {
        Self::load_limit(self)
    }

    async fn load(&self, process: &ProcessSpec) -> Result<LoadedProgram, Refusal> {
        let slot = Self::load(self, process)
            .await
            .map_err(|error| refuse(&error))?;
        let program = program(self, process, slot.index());
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

    async fn vm_ended(&self) -> VmEnding {
        let end = Self::vm_ended(self).await;
        VmEnding {
            reason: end.reason,
            console_tail: end.console_tail,
        }
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
        let given = ["A=b".to_owned()];
        assert_eq!(environment(&given, "web-1"), ["A=b", "HOSTNAME=web-1"]);
        assert_eq!(environment(&given, ""), ["A=b"]);
        let own = ["HOSTNAME=own".to_owned()];
        assert_eq!(environment(&own, "web-1"), ["HOSTNAME=own"]);
    }
}
