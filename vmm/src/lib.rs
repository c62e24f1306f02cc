//! A KVM microVM in a jailed process, with a second process that opens its files.
//!
//! The crate knows nothing of containers or Wasm: the VMM is handed a kernel, an initramfs, a directory to serve and
//! descriptors to carry streams, all over its control socket ([`wasmvm_protocol::control`]).
//!
//! Read in this order: [`mod@set_up`] is the recipe, [`jail`] closes the process, [`file_server`] is the other process,
//! which has the directory, [`vcpu`] runs the guest, [`virtio`] holds its two devices,
//! [`control`] takes the shim's orders, [`report`] notifies the shim.

#![deny(unsafe_code)]

pub mod arch;
pub mod boot;
pub mod bus;
pub mod console;
pub mod control;
pub mod descriptors;
pub mod file_server;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
pub mod gate;
pub mod jail;
pub mod kvm;
pub mod library_log;
mod mapping;
pub mod memory;
pub mod report;
pub mod seccomp;
pub mod set_up;
pub mod units;
pub mod vcpu;
pub mod virtio;
pub mod vm;
