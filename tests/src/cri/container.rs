//! Containers of a pod.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use protobuf::{EnumOrUnknown, MessageField};

use crate::cri::client::{CallError, call};
use crate::cri::image;
use crate::cri::log::{self, LogLine};
use crate::cri::messages::{
    AttachRequest, AttachResponse, ContainerConfig, ContainerMetadata, ContainerState,
    ContainerStats, ContainerStatsRequest, ContainerStatsResponse, ContainerStatus,
    ContainerStatusRequest, ContainerStatusResponse, CreateContainerRequest,
    CreateContainerResponse, ExecRequest, ExecResponse, ExecSyncRequest, ExecSyncResponse,
    Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, Mount, MountPropagation, RemoveContainerRequest,
    RemoveContainerResponse, ReopenContainerLogRequest, ReopenContainerLogResponse,
    StartContainerRequest, StartContainerResponse, StopContainerRequest, StopContainerResponse,
    UpdateContainerResourcesRequest, UpdateContainerResourcesResponse,
};
use crate::cri::pod::Pod;
use crate::cri::stream::Stream;

/// How long a container may take to reach a state, under emulation and with a compile before it.
const STATE_MAX: Duration = Duration::from_secs(120);
/// How long an exec probe may take.
const EXEC_SECONDS_MAX: i64 = 120;
const POLL: Duration = Duration::from_millis(100);

/// A container in the making.
#[derive(Clone, Debug)]
pub struct ContainerSpec<'pod> {
    pod: &'pod Pod,
    config: ContainerConfig,
}

impl<'pod> ContainerSpec<'pod> {
    /// Of this name and image, in this pod.
    #[must_use]
    pub fn of(pod: &'pod Pod, name: &str, image: &str) -> Self {
        let metadata = ContainerMetadata {
            name: name.into(),
            ..Default::default()
        };
        let namespaces = &pod.config().linux.security_context.namespace_options;
        let security = LinuxContainerSecurityContext {
            namespace_options: namespaces.clone(),
            ..Default::default()
        };
        let linux = LinuxContainerConfig {
            resources: MessageField::some(LinuxContainerResources::new()),
            security_context: MessageField::some(security),
            ..Default::default()
        };
        let config = ContainerConfig {
            metadata: MessageField::some(metadata),
            image: MessageField::some(image::spec(image)),
            linux: MessageField::some(linux),
            ..Default::default()
        };
        Self { pod, config }
    }

    /// Replaces the image's command line.
    #[must_use]
    pub fn args<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.config.args = arguments.map(String::from).to_vec();
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.config.envs.push(KeyValue {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        });
        self
    }

    /// Mounts a file or folder of the host, as volumes are.
    #[must_use]
    pub fn mount(mut self, host: &Path, inside: &str, readonly: bool) -> Self {
        self.config.mounts.push(Mount {
            host_path: host.display().to_string(),
            container_path: inside.into(),
            readonly,
            ..Default::default()
        });
        self
    }

    /// Has what the host mounts later, below the last mount of these, show inside.
    #[must_use]
    pub fn propagated(mut self, how: MountPropagation) -> Self {
        if let Some(mount) = self.config.mounts.last_mut() {
            mount.propagation = EnumOrUnknown::new(how);
        }
        self
    }

    /// Limits its memory, bytes.
    #[must_use]
    pub fn memory_limit(mut self, bytes: i64) -> Self {
        self.resources().memory_limit_in_bytes = bytes;
        self
    }

    /// Runs as this user.
    #[must_use]
    pub fn user(mut self, uid: i64) -> Self {
        self.security().run_as_user = MessageField::some(Int64Value {
            value: uid,
            ..Default::default()
        });
        self
    }

    /// What may be said of its security besides.
    #[must_use]
    pub fn secured(mut self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        change(self.security());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        let annotations = &mut self.config.annotations;
        annotations.insert(key.into(), value.into());
        self
    }

    /// With a standard input, for who attaches.
    #[must_use]
    pub fn stdin(mut self) -> Self {
        self.config.stdin = true;
        self
    }

    /// On a terminal, with a standard input.
    #[must_use]
    pub fn tty(mut self) -> Self {
        self.config.tty = true;
        self.stdin()
    }

    /// As the container of this name that was started so often before.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.config.metadata.mut_or_insert_default().attempt = attempt;
        self
    }

    fn resources(&mut self) -> &mut LinuxContainerResources {
        let linux = self.config.linux.mut_or_insert_default();
        linux.resources.mut_or_insert_default()
    }

    fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        let linux = self.config.linux.mut_or_insert_default();
        linux.security_context.mut_or_insert_default()
    }

    /// Creates and starts it.
    ///
    /// # Panics
    /// With containerd's refusal.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> Container {
        let container = self.create().unwrap_or_else(|error| panic!("{error}"));
        container.start().unwrap_or_else(|error| panic!("{error}"));
        container
    }

    /// Creates it, which the runtime hears nothing of.
    ///
    /// # Errors
    /// containerd's refusal.
    ///
    /// # Panics
    /// When there is no place for its log.
    pub fn create(mut self) -> Result<Container, CallError> {
        let metadata = &self.config.metadata;
        self.config.log_path = format!("{}/{}.log", metadata.name, metadata.attempt);
        let log = Path::new(&self.pod.config().log_directory).join(&self.config.log_path);
        fs::create_dir_all(log.parent().expect("a folder")).expect("made");
        let request = CreateContainerRequest {
            pod_sandbox_id: self.pod.id().to_owned(),
            config: MessageField::some(self.config),
            sandbox_config: MessageField::some(self.pod.config().clone()),
            ..Default::default()
        };
        let answer: CreateContainerResponse = call("RuntimeService/CreateContainer", &request)?;
        let id = answer.container_id;
        Ok(Container { id, log })
    }
}

/// A container; its pod's removal removes it.
#[derive(Debug)]
pub struct Container {
    id: String,
    log: PathBuf,
}

impl Container {
    /// CRI's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Starts it, once.
    ///
    /// # Errors
    /// containerd's refusal.
    pub fn start(&self) -> Result<(), CallError> {
        let request = StartContainerRequest {
            container_id: self.id.clone(),
            ..Default::default()
        };
        call::<StartContainerResponse>("RuntimeService/StartContainer", &request).map(drop)
    }

    /// Ends it: its stop signal, and SIGKILL after so many seconds.
    ///
    /// # Errors
    /// containerd's refusal.
    pub fn stop(&self, grace_seconds: i64) -> Result<(), CallError> {
        let request = StopContainerRequest {
            container_id: self.id.clone(),
            timeout: grace_seconds,
            ..Default::default()
        };
        call::<StopContainerResponse>("RuntimeService/StopContainer", &request).map(drop)
    }

    /// Removes it.
    ///
    /// # Errors
    /// containerd's refusal.
    pub fn remove(&self) -> Result<(), CallError> {
        let request = RemoveContainerRequest {
            container_id: self.id.clone(),
            ..Default::default()
        };
        call::<RemoveContainerResponse>("RuntimeService/RemoveContainer", &request).map(drop)
    }

    /// What CRI knows of it.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> ContainerStatus {
        self.answer().status.unwrap_or_default()
    }

    /// The pid of its program, while that runs; for a VM the VMM's.
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
    fn answer(&self) -> ContainerStatusResponse {
        let request = ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: true,
            ..Default::default()
        };
        expect(call("RuntimeService/ContainerStatus", &request))
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When that takes too long.
    #[track_caller]
    pub fn until_exited(&self) -> ContainerStatus {
        let start = Instant::now();
        loop {
            let status = self.status();
            if status.state.enum_value() == Ok(ContainerState::CONTAINER_EXITED) {
                return status;
            }
            assert!(start.elapsed() < STATE_MAX, "no end: {status:?}");
            thread::sleep(POLL);
        }
    }

    /// Whether it runs.
    #[must_use]
    #[track_caller]
    pub fn is_running(&self) -> bool {
        self.status().state.enum_value() == Ok(ContainerState::CONTAINER_RUNNING)
    }

    /// Runs a program in it to the program's end, as an exec probe does.
    ///
    /// # Errors
    /// containerd's refusal.
    pub fn exec_sync<const N: usize>(
        &self,
        command: [&str; N],
    ) -> Result<ExecSyncResponse, CallError> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.map(String::from).to_vec(),
            timeout: EXEC_SECONDS_MAX,
            ..Default::default()
        };
        call("RuntimeService/ExecSync", &request)
    }

    /// Runs a program in it with all streams, as `kubectl exec -i` does; on a terminal with `-it`.
    ///
    /// # Panics
    /// With containerd's refusal.
    #[must_use]
    #[track_caller]
    pub fn exec<const N: usize>(&self, tty: bool, command: [&str; N]) -> Stream {
        let request = ExecRequest {
            container_id: self.id.clone(),
            cmd: command.map(String::from).to_vec(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
            ..Default::default()
        };
        let answer: ExecResponse = expect(call("RuntimeService/Exec", &request));
        Stream::open(&answer.url)
    }

    /// Joins its own streams, as `kubectl attach -i` does.
    ///
    /// # Panics
    /// With containerd's refusal.
    #[must_use]
    #[track_caller]
    pub fn attach(&self, tty: bool) -> Stream {
        let request = AttachRequest {
            container_id: self.id.clone(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
            ..Default::default()
        };
        let answer: AttachResponse = expect(call("RuntimeService/Attach", &request));
        Stream::open(&answer.url)
    }

    /// What it has used.
    ///
    /// # Panics
    /// With containerd's refusal.
    #[must_use]
    #[track_caller]
    pub fn stats(&self) -> ContainerStats {
        let request = ContainerStatsRequest {
            container_id: self.id.clone(),
            ..Default::default()
        };
        let answer = call("RuntimeService/ContainerStats", &request);
        let answer: ContainerStatsResponse = expect(answer);
        answer.stats.unwrap_or_default()
    }

    /// Changes its resources while it runs, as an in-place resize does.
    ///
    /// # Errors
    /// containerd's refusal.
    pub fn update(&self, resources: LinuxContainerResources) -> Result<(), CallError> {
        let request = UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: MessageField::some(resources),
            ..Default::default()
        };
        let method = "RuntimeService/UpdateContainerResources";
        call::<UpdateContainerResourcesResponse>(method, &request).map(drop)
    }

    /// Has containerd open the log file anew, as a kubelet does that has moved it away.
    ///
    /// # Errors
    /// containerd's refusal.
    pub fn reopen_log(&self) -> Result<(), CallError> {
        let request = ReopenContainerLogRequest {
            container_id: self.id.clone(),
            ..Default::default()
        };
        call::<ReopenContainerLogResponse>("RuntimeService/ReopenContainerLog", &request).map(drop)
    }

    /// Where its log is.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its log so far.
    #[must_use]
    #[track_caller]
    pub fn log(&self) -> Vec<LogLine> {
        log::read(&self.log)
    }

    /// Waits until a line of its log holds the text.
    ///
    /// # Panics
    /// With the log, when that takes too long.
    #[track_caller]
    pub fn until_logged(&self, text: &str) {
        let start = Instant::now();
        loop {
            let log = self.log();
            if log.iter().any(|line| line.text.contains(text)) {
                return;
            }
            let late = start.elapsed() > STATE_MAX;
            assert!(!late, "no {text:?} in {log:?}: {:?}", self.status());
            thread::sleep(POLL);
        }
    }
}

#[track_caller]
fn expect<Answer>(answer: Result<Answer, CallError>) -> Answer {
    answer.unwrap_or_else(|error| panic!("{error}"))
}
