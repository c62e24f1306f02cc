//! What the fuzz targets of `tests/fuzz` enter by (feature `fuzzing`, which nothing that ships has).
//!
//! Each takes any bytes, makes a guest's doings of them, and panics where something that must hold does
//! not: what that is stands with the function. The inputs are read by [`arbitrary`], which gives zeros
//! when they are used up, so that no input is invalid.

pub use crate::console::fuzz::console;
pub use crate::file_server::fuzz::{file_answers, file_server};
pub use crate::report::fuzz::console_tail;
pub use crate::vcpu::fuzz::exits;
pub use crate::virtio::fuzz::{
    chain, fs_ring, fuse, mmio, prepare_fuse, queue_setup, vsock_connection, vsock_worker,
};
