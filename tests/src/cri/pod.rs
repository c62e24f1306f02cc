//! Pods.

use std::net::IpAddr;

use protobuf::{EnumOrUnknown, MessageField};
use tempfile::TempDir;

use crate::cri::client::{CallError, call};
use crate::cri::messages::{
    DNSConfig, LinuxContainerResources, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PodSandboxState,
    PodSandboxStatusRequest, PodSandboxStatusResponse, RemovePodSandboxRequest,
    RemovePodSandboxResponse, RunPodSandboxRequest, RunPodSandboxResponse, StopPodSandboxRequest,
    StopPodSandboxResponse,
};
use crate::cri::pod_cgroup::PodCgroup;
use crate::task::fresh_id;

/// Who runs a pod and its containers: what a RuntimeClass names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// As a check of these tests themselves.
    Runc,
    /// The runtime under test.
    Wasmvm,
}

impl Handler {
    fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Wasmvm => "wasmvm",
        }
    }
}

/// A pod in the making.
#[derive(Clone, Debug)]
pub struct PodSpec {
    config: PodSandboxConfig,
    handler: Handler,
}

impl PodSpec {
    /// A pod of a fresh name, with a network of its own.
    #[must_use]
    pub fn new(handler: Handler) -> Self {
        let name = fresh_id();
        let metadata = PodSandboxMetadata {
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            name: name.clone(),
            ..Default::default()
        };
        let dns = DNSConfig {
            servers: vec!["10.244.77.1".into()],
            searches: vec!["default.svc.cluster.local".into()],
            ..Default::default()
        };
        let config = PodSandboxConfig {
            metadata: MessageField::some(metadata),
            hostname: name,
            dns_config: MessageField::some(dns),
            linux: MessageField::some(LinuxPodSandboxConfig::new()),
            ..Default::default()
        };
        Self { config, handler }.namespaces(NamespaceMode::POD, NamespaceMode::CONTAINER)
    }

    /// In the host's network, and with the host's name: a kubelet tells no other.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.config.hostname.clear();
        self.namespaces(NamespaceMode::NODE, NamespaceMode::CONTAINER)
    }

    /// Containers that see each other's processes (`shareProcessNamespace`).
    #[must_use]
    pub fn shared_processes(self) -> Self {
        self.namespaces(NamespaceMode::POD, NamespaceMode::POD)
    }

    fn namespaces(mut self, network: NamespaceMode, pid: NamespaceMode) -> Self {
        let namespaces = NamespaceOption {
            network: EnumOrUnknown::new(network),
            pid: EnumOrUnknown::new(pid),
            ..Default::default()
        };
        self.linux().security_context = MessageField::some(LinuxSandboxSecurityContext {
            namespace_options: MessageField::some(namespaces),
            ..Default::default()
        });
        self
    }

    /// Names its host.
    #[must_use]
    pub fn hostname(mut self, hostname: &str) -> Self {
        self.config.hostname = hostname.into();
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        let annotations = &mut self.config.annotations;
        annotations.insert(key.into(), value.into());
        self
    }

    /// Sets a kernel parameter.
    #[must_use]
    pub fn sysctl(mut self, key: &str, value: &str) -> Self {
        self.linux().sysctls.insert(key.into(), value.into());
        self
    }

    /// The sum of its containers' resources, and a RuntimeClass' overhead, as a kubelet tells them.
    #[must_use]
    pub fn resources(
        mut self,
        sum: LinuxContainerResources,
        overhead: LinuxContainerResources,
    ) -> Self {
        self.linux().resources = MessageField::some(sum);
        self.linux().overhead = MessageField::some(overhead);
        self
    }

    fn linux(&mut self) -> &mut LinuxPodSandboxConfig {
        self.config.linux.mut_or_insert_default()
    }

    /// Runs it.
    ///
    /// # Panics
    /// With containerd's refusal.
    #[must_use]
    #[track_caller]
    pub fn run(self) -> Pod {
        self.try_run().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs it, if containerd lets it.
    ///
    /// # Errors
    /// containerd's refusal.
    ///
    /// # Panics
    /// When there is no cgroup for it.
    #[track_caller]
    pub fn try_run(mut self) -> Result<Pod, CallError> {
        let logs = tempfile::tempdir().expect("a folder");
        self.config.log_directory = logs.path().display().to_string();
        let mut cgroup = PodCgroup::make(&self.config.metadata.uid);
        self.linux().cgroup_parent = cgroup.parent().to_owned();
        let request = RunPodSandboxRequest {
            config: MessageField::some(self.config.clone()),
            runtime_handler: self.handler.name().into(),
            ..Default::default()
        };
        match call::<RunPodSandboxResponse>("RuntimeService/RunPodSandbox", &request) {
            Ok(answer) => Ok(Pod {
                id: answer.pod_sandbox_id,
                config: self.config,
                cgroup,
                _logs: logs,
                removed: false,
            }),
            Err(error) => {
                cgroup.remove();
                Err(error)
            }
        }
    }
}

/// A running pod, or one that has stopped; removed when the test is done with it.
#[derive(Debug)]
pub struct Pod {
    id: String,
    config: PodSandboxConfig,
    cgroup: PodCgroup,
    _logs: TempDir,
    removed: bool,
}

impl Pod {
    /// CRI's id of the sandbox.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The pod's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.metadata.name
    }

    /// What containers are created with, besides their own.
    #[must_use]
    pub fn config(&self) -> &PodSandboxConfig {
        &self.config
    }

    /// Whether CRI says that it is ready.
    #[must_use]
    #[track_caller]
    pub fn is_ready(&self) -> bool {
        self.answer().status.state.enum_value() == Ok(PodSandboxState::SANDBOX_READY)
    }

    /// The address in its network; none in the host's.
    #[must_use]
    #[track_caller]
    pub fn ip(&self) -> Option<IpAddr> {
        let answer = self.answer();
        let address = &answer.status.network.ip;
        (!address.is_empty()).then(|| address.parse().expect("an address"))
    }

    /// The pid of the sandbox' own process.
    ///
    /// # Panics
    /// When CRI tells none.
    #[must_use]
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let info = &self.answer().info["info"];
        let info: serde_json::Value = serde_json::from_str(info).expect("JSON");
        let pid = info["pid"].as_u64().expect("a pid");
        u32::try_from(pid).expect("a pid")
    }

    #[track_caller]
    fn answer(&self) -> PodSandboxStatusResponse {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: true,
            ..Default::default()
        };
        call("RuntimeService/PodSandboxStatus", &request).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Ends its containers and its network; what it was stays known.
    ///
    /// # Errors
    /// containerd's refusal.
    pub fn stop(&self) -> Result<(), CallError> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
            ..Default::default()
        };
        call::<StopPodSandboxResponse>("RuntimeService/StopPodSandbox", &request).map(drop)
    }

    /// Removes it as a kubelet does: stop, remove, and the cgroup, in which nothing may be left.
    ///
    /// # Panics
    /// With containerd's refusal, or what is left.
    #[track_caller]
    pub fn remove(mut self) {
        self.removed = true;
        let ended = self.stop().and_then(|()| self.forget());
        ended.unwrap_or_else(|error| panic!("{error}"));
        self.cgroup.remove();
    }

    fn forget(&self) -> Result<(), CallError> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
            ..Default::default()
        };
        call::<RemovePodSandboxResponse>("RuntimeService/RemovePodSandbox", &request).map(drop)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        if let Err(error) = self.stop().and_then(|()| self.forget()) {
            eprintln!("{error}");
        }
        // A test that has failed has its own message.
        if !std::thread::panicking() {
            self.cgroup.remove();
        }
    }
}
