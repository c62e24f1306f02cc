//! Loading the guest: [`kernel`] and the initramfs are mapped from their files, [`crate::arch`] describes the machine to
//! the kernel.

pub mod kernel;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use vm_memory::GuestMemoryMmap;
use wasmvm_protocol::control::BootConfig;

use crate::arch::{self, BootTablesError, Entry, Initramfs, SEED_BYTES, low_ram_end};
use crate::memory::{self, MemoryError};
use crate::units::{page_ceil, page_floor};
use kernel::{KernelError, load_kernel};

/// Size of the largest initramfs, bytes.
pub const INITRAMFS_BYTES_MAX: u64 = 256 << 20;

/// The descriptors a machine is made of.
#[derive(Debug)]
pub struct BootParts {
    /// Descriptor of /dev/kvm, open for reading and writing.
    pub kvm: OwnedFd,
    /// Guest kernel: uncompressed ELF, opened read-only.
    pub kernel: File,
    /// Initramfs: cpio, opened read-only.
    pub initramfs: File,
}

/// Why the guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel's ELF file cannot be read, placed or mapped.
    #[error("the kernel cannot be loaded")]
    Kernel(#[source] KernelError),
    /// The initramfs file cannot be looked at.
    #[error("cannot stat the initramfs")]
    InitramfsStat(#[source] io::Error),
    /// The initramfs is empty, too long, or as large as RAM.
    #[error(
        "an initramfs of {bytes} bytes does not fit ({INITRAMFS_BYTES_MAX} at most, RAM below {ram_end:#x})"
    )]
    InitramfsSize {
        /// Length of the initramfs.
        bytes: u64,
        /// Guest-physical address of low RAM's end.
        ram_end: u64,
    },
    /// The initramfs cannot be mapped.
    #[error("the initramfs cannot be mapped")]
    Initramfs(#[source] MemoryError),
    /// `getrandom(2)` gave no bytes for the guest's seed.
    #[error("cannot get random bytes")]
    Random(#[source] io::Error),
    /// The machine cannot be described to the kernel.
    #[error(transparent)]
    Tables(#[from] BootTablesError),
}

/// Loads kernel and initramfs and writes the tables of the boot protocol, for a machine with
/// `devices` virtio devices.
///
/// # Errors
/// [`BootError`].
pub fn load(
    memory: &GuestMemoryMmap,
    kernel: &File,
    initramfs: &File,
    config: &BootConfig,
    devices: usize,
) -> Result<Entry, BootError> {
    let initramfs = place_initramfs(memory, initramfs)?;
    let rip =
        load_kernel(memory, kernel, u64::from(initramfs.address)).map_err(BootError::Kernel)?;
    arch::write_boot_tables(memory, config, devices, initramfs, &random_seed()?)?;
    Ok(Entry { rip })
}

/// Maps the initramfs at the top of low RAM: the kernel is linked to a low address and grows upwards.
fn place_initramfs(memory: &GuestMemoryMmap, file: &File) -> Result<Initramfs, BootError> {
    let bytes = file.metadata().map_err(BootError::InitramfsStat)?.len();
    let ram_end = low_ram_end(memory);
    let refused = || BootError::InitramfsSize { bytes, ram_end };
    if bytes == 0 || bytes > INITRAMFS_BYTES_MAX {
        return Err(refused());
    }
    let address = page_ceil(bytes)
        .and_then(|span| ram_end.checked_sub(span))
        .ok_or_else(refused)?;
    memory::map_file(memory, page_floor(address), file, 0, bytes).map_err(BootError::Initramfs)?;
    let narrow = |value: u64| u32::try_from(value).map_err(|_| refused());
    Ok(Initramfs {
        address: narrow(address)?,
        bytes: narrow(bytes)?,
    })
}

fn random_seed() -> Result<[u8; SEED_BYTES], BootError> {
    let mut seed = [0; SEED_BYTES];
    // Up to 256 bytes come whole or not at all (getrandom(2)).
    let flags = rustix::rand::GetRandomFlags::empty();
    rustix::rand::getrandom(&mut seed[..], flags)
        .map_err(|errno| BootError::Random(errno.into()))?;
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MIB;
    use std::io::Write;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn the_initramfs_ends_where_low_ram_ends() {
        let memory = memory::allocate(64, false).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[b'0'; 5000]).unwrap();
        let placed = place_initramfs(&memory, &file).unwrap();
        assert_eq!(u64::from(placed.address), 64 * MIB - 0x2000);
        let mut found = [0; 5001];
        memory
            .read_slice(&mut found, GuestAddress(placed.address.into()))
            .unwrap();
        assert_eq!((found[4999], found[5000]), (b'0', 0));
    }

    #[test]
    fn an_initramfs_beyond_ram_is_refused() {
        let memory = memory::allocate(32, false).unwrap();
        let file = tempfile::tempfile().unwrap();
        for bytes in [0, 33 * MIB, INITRAMFS_BYTES_MAX + 1] {
            file.set_len(bytes).unwrap();
            let refused = place_initramfs(&memory, &file).unwrap_err();
            assert!(
                matches!(refused, BootError::InitramfsSize { .. }),
                "{refused}"
            );
        }
    }

    #[test]
    fn every_seed_is_new() {
        assert_ne!(random_seed().unwrap(), random_seed().unwrap());
    }
}
