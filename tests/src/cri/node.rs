//! A node of a cluster, without its kubelet: a containerd with CRI.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use protobuf::Message;

use crate::containerd::{self, Containerd, Version};
use crate::cri::client::{self, CallError};
use crate::cri::image;
use crate::cri::messages::{
    Container, ContainerStats, ListContainerStatsRequest, ListContainerStatsResponse,
    ListContainersRequest, ListContainersResponse, ListPodSandboxRequest, ListPodSandboxResponse,
    ListPodSandboxStatsRequest, ListPodSandboxStatsResponse, PodSandbox, PodSandboxStats,
    StatusRequest, StatusResponse,
};

/// From containerd's first answer to CRI's, under emulation.
const READY_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// Its containerd is in use until the node is dropped.
#[derive(Debug)]
pub struct Node {
    containerd: Containerd,
}

impl Node {
    /// Starts a containerd, waits for CRI and the pods' network, and imports the image for pods themselves.
    ///
    /// # Panics
    /// When CRI does not become ready.
    #[must_use]
    #[track_caller]
    pub fn start(version: Version) -> Self {
        let node = Self {
            containerd: Containerd::start_with_cri(version),
        };
        until_ready();
        image::import_native();
        node
    }

    /// Stops containerd as a service manager does; pods live on.
    pub fn stop(&mut self) {
        self.containerd.stop();
    }

    /// `kill -9` of containerd.
    pub fn kill(&mut self) {
        self.containerd.kill();
    }

    /// Starts containerd again, and waits for CRI.
    ///
    /// # Panics
    /// When CRI does not become ready.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.containerd.start_again();
        until_ready();
    }

    /// Starts another version of containerd in its place.
    ///
    /// # Panics
    /// As [`Self::start_again`].
    #[track_caller]
    pub fn start_as(&mut self, version: Version) {
        self.containerd.start_as(version);
        until_ready();
    }

    /// All that containerd and its shims have logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.containerd.log()
    }

    /// The pods that CRI knows.
    #[must_use]
    #[track_caller]
    pub fn pods(&self) -> Vec<PodSandbox> {
        let request = ListPodSandboxRequest::new();
        ask::<ListPodSandboxResponse>("RuntimeService/ListPodSandbox", &request).items
    }

    /// The containers that CRI knows.
    #[must_use]
    #[track_caller]
    pub fn containers(&self) -> Vec<Container> {
        let request = ListContainersRequest::new();
        ask::<ListContainersResponse>("RuntimeService/ListContainers", &request).containers
    }

    /// What every running container has used.
    #[must_use]
    #[track_caller]
    pub fn container_stats(&self) -> Vec<ContainerStats> {
        let request = ListContainerStatsRequest::new();
        ask::<ListContainerStatsResponse>("RuntimeService/ListContainerStats", &request).stats
    }

    /// What every pod has used.
    #[must_use]
    #[track_caller]
    pub fn pod_stats(&self) -> Vec<PodSandboxStats> {
        let request = ListPodSandboxStatsRequest::new();
        ask::<ListPodSandboxStatsResponse>("RuntimeService/ListPodSandboxStats", &request).stats
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Not there when no pod had a network of its own.
        let _ = Command::new("ip")
            .args(["link", "delete", containerd::BRIDGE])
            .output();
    }
}

#[track_caller]
fn until_ready() {
    let start = Instant::now();
    loop {
        let found = conditions();
        if found.as_ref().is_ok_and(Vec::is_empty) {
            return;
        }
        assert!(start.elapsed() < READY_MAX, "CRI is not ready: {found:?}");
        thread::sleep(POLL);
    }
}

/// What is missing, by CRI's own account.
fn conditions() -> Result<Vec<String>, CallError> {
    let request = StatusRequest::new();
    let answer: StatusResponse = client::call("RuntimeService/Status", &request)?;
    let conditions = answer.status.unwrap_or_default().conditions;
    let missing = conditions.into_iter().filter(|each| !each.status);
    // 2 has a condition besides that is about deprecated settings.
    let missing = missing.filter(|each| ["RuntimeReady", "NetworkReady"].contains(&&*each.type_));
    let told = missing.map(|each| format!("{}: {} {}", each.type_, each.reason, each.message));
    Ok(told.collect())
}

/// A request that has no reason to fail.
#[track_caller]
fn ask<Answer: Message>(method: &'static str, request: &impl Message) -> Answer {
    client::call(method, request).unwrap_or_else(|error| panic!("{error}"))
}
