//! Pods, as a kubelet makes them: through containerd's Container Runtime Interface.
//!
//! [`node`] starts a containerd with it, [`pod`] makes pods, [`container`] the containers in them, [`stream`] is an
//! exec or an attach, [`log`] what containerd has written down of a container's output, [`client`] one request.
//! Images are the examples and two for runc ([`image`]). What a kubelet does for a pod beside its requests is done
//! here too: the pod's cgroup ([`pod_cgroup`]), and folders for its logs.

pub mod client;
pub mod container;
pub mod image;
pub mod log;
pub mod messages;
pub mod node;
pub mod pod;
pub mod pod_cgroup;
pub mod stream;
