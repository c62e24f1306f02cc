//! Pods, as a kubelet makes them: through containerd's Container Runtime Interface.
//!
//! What is tested is written once, for both handlers: [`walk`] has the main things of a pod, [`scenarios`] the rest.
//! [`runc`] checks the tests themselves, [`wasmvm`] has what is ours alone besides. Each test starts a containerd with CRI. What is not
//! needed in every run stands in a module `more`: `make pods` runs it all.

use wasmvm_tests::containerd::Version;
use wasmvm_tests::cri::container::ContainerSpec;
use wasmvm_tests::cri::image;
use wasmvm_tests::cri::node::Node;
use wasmvm_tests::cri::pod::{Handler, Pod, PodSpec};
use wasmvm_tests::leftovers;

mod runc;
mod scenarios;
mod walk;
mod wasmvm;

/// A handler, and an image with a shell for it.
#[derive(Clone, Copy, Debug)]
struct Kind {
    handler: Handler,
    image: fn() -> String,
    /// The exit code of a shell that was asked to stop: the first process of runc's takes no SIGTERM.
    stopped: i32,
}

const RUNC: Kind = Kind {
    handler: Handler::Runc,
    image: || image::NATIVE.to_owned(),
    stopped: 137,
};

const WASMVM: Kind = Kind {
    handler: Handler::Wasmvm,
    image: || image::example("busybox"),
    stopped: 143,
};

impl Kind {
    /// Begins a pod.
    fn pod(self) -> PodSpec {
        PodSpec::new(self.handler)
    }

    /// Begins a container that runs a script.
    fn shell<'pod>(self, pod: &'pod Pod, name: &str, script: &str) -> ContainerSpec<'pod> {
        ContainerSpec::of(pod, name, &(self.image)()).args(["/bin/sh", "-c", script])
    }
}

/// Runs something with a containerd of this version, after which nothing of a pod may be left.
fn on(version: Version, kind: Kind, scenario: fn(Kind, &mut Node)) {
    let mut node = Node::start(version);
    let before = leftovers::found();
    scenario(kind, &mut node);
    assert_eq!(node.containers(), []);
    assert_eq!(node.pods(), []);
    leftovers::expect_none_since(&before);
}
