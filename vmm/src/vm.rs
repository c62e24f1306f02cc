//! The KVM VM: memory slots, interrupt controllers, event descriptors.
#![allow(unsafe_code, reason = "KVM gets addresses of memory")]

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use wasmvm_protocol::inspect::{Inspect, Node};
use wasmvm_protocol::slot::{SLOT_CONTENT_BYTES_MAX, SLOT_HEADER_BYTES, SLOTS_MAX, slot_address};

use crate::arch;
use crate::kvm::KvmError;
use crate::mapping::FileMapping;
use crate::units::page_ceil;

/// KVM's number for the first read-only slot; RAM has the numbers below.
const SLOT_NUMBER: u32 = 8;

/// Why a file could not become a read-only slot.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The index is not one of a slot.
    #[error("slot {0} does not exist; there are {SLOTS_MAX}")]
    Index(u32),
    /// The file's descriptor could also be written through.
    #[error("the slot's file is not opened read-only (status flags {0:#o})")]
    Writable(i32),
    /// The file is not a regular one (mode), or empty, or too long.
    #[error(
        "the slot's file has mode {mode:o} and {bytes} bytes; wanted is a regular file of 1 to {SLOT_BYTES_MAX} bytes"
    )]
    File {
        /// `st_mode` of the file.
        mode: u32,
        /// `st_size` of the file, bytes.
        bytes: i64,
    },
    /// A system call failed.
    #[error("{call} of the slot's file failed")]
    Os {
        /// Name of the system call.
        call: &'static str,
        /// Errno of the system call.
        #[source]
        source: io::Error,
    },
    /// KVM refused the memory slot.
    #[error("KVM does not map the slot")]
    Kvm(#[source] KvmError),
}

/// Longest file of a slot: header page and content.
pub const SLOT_BYTES_MAX: u64 = SLOT_HEADER_BYTES as u64 + SLOT_CONTENT_BYTES_MAX;

/// A KVM VM with its memory.
#[derive(Debug)]
pub struct Vm {
    // Dropped before the memory that it maps.
    fd: VmFd,
    kvm: Kvm,
    memory: GuestMemoryMmap,
    slots: Mutex<HashMap<u32, FileMapping>>,
}

impl Vm {
    /// A VM with in-kernel interrupt controllers and `memory`, without a PIT.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn new(kvm: Kvm, memory: GuestMemoryMmap) -> Result<Self, KvmError> {
        let fd = kvm.create_vm().map_err(KvmError::of("KVM_CREATE_VM"))?;
        arch::init_vm(&kvm, &fd)?;
        let vm = Self {
            fd,
            kvm,
            memory,
            slots: Mutex::default(),
        };
        for (number, region) in (0..).zip(vm.memory.iter()) {
            vm.map_region(kvm_userspace_memory_region {
                slot: number,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            })?;
        }
        Ok(vm)
    }

    fn map_region(&self, region: kvm_userspace_memory_region) -> Result<(), KvmError> {
        // SAFETY: every region given here is a mapping that `self` owns and that outlives the VM's
        // descriptor; the guest is the only one to read or write it but for volatile accesses.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(KvmError::of("KVM_SET_USER_MEMORY_REGION"))
    }

    /// The KVM that the VM was made with.
    #[must_use]
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// RAM of the guest.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Creates the VM's only vCPU.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn create_vcpu(&self) -> Result<VcpuFd, KvmError> {
        let vcpu = self
            .fd
            .create_vcpu(0)
            .map_err(KvmError::of("KVM_CREATE_VCPU"))?;
        arch::init_vcpu(&self.kvm, &vcpu)?;
        Ok(vcpu)
    }

    /// The VM's descriptor, for the architecture's ioctls.
    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Makes a write of the 32-bit `value` to guest-physical `address` wake `event` without an exit.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn wake_on_write(&self, event: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(KvmError::of("KVM_IOEVENTFD"))
    }

    /// Makes `event` pulse the interrupt line `gsi`.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn connect_line(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.fd
            .register_irqfd(event, gsi)
            .map_err(KvmError::of("KVM_IRQFD"))
    }

    /// Maps `file` as a read-only slot, instead of the slot's present file. Two locks keep it unwritten: the
    /// host's mapping is of a descriptor that cannot write, and the slot is `KVM_MEM_READONLY`.
    ///
    /// # Errors
    /// [`SlotError`]; the slot is then as it was, or empty when KVM refused.
    pub fn map_slot(&self, index: u32, file: &File) -> Result<(), SlotError> {
        let guest_phys_addr = slot_address(index).ok_or(SlotError::Index(index))?;
        let mapping = map_slot_file(file)?;
        let region = kvm_userspace_memory_region {
            slot: SLOT_NUMBER + index,
            flags: KVM_MEM_READONLY,
            guest_phys_addr,
            memory_size: mapping.bytes() as u64,
            userspace_addr: mapping.host_address(),
        };
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.contains_key(&index) {
            // KVM moves or re-flags a slot in place, but gives it another length only anew.
            let deleted = kvm_userspace_memory_region {
                memory_size: 0,
                ..region
            };
            self.map_region(deleted).map_err(SlotError::Kvm)?;
            slots.remove(&index);
        }
        self.map_region(region).map_err(SlotError::Kvm)?;
        slots.insert(index, mapping);
        Ok(())
    }
}

/// The mapped slots, each with its bytes.
impl Inspect for Vm {
    fn inspect(&self) -> Node {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mapped = slots.iter().fold(Node::new(), |node, (index, file)| {
            node.with(index.to_string(), file.bytes())
        });
        let ram = self.memory.iter().map(GuestMemoryRegion::len).sum::<u64>();
        Node::new()
            .with("ram_bytes", ram)
            .with("slot_bytes", mapped)
    }
}

/// Maps a file that may be a slot, in whole pages.
fn map_slot_file(file: &File) -> Result<FileMapping, SlotError> {
    let os = |call| {
        move |errno: rustix::io::Errno| SlotError::Os {
            call,
            source: errno.into(),
        }
    };
    let flags = rustix::fs::fcntl_getfl(file).map_err(os("fcntl"))?;
    if flags & rustix::fs::OFlags::ACCMODE != rustix::fs::OFlags::RDONLY {
        return Err(SlotError::Writable(flags.bits().cast_signed()));
    }
    let stat = rustix::fs::fstat(file).map_err(os("fstat"))?;
    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
    let refused = SlotError::File {
        mode: stat.st_mode,
        bytes: stat.st_size,
    };
    let bytes = match u64::try_from(stat.st_size) {
        Ok(bytes @ 1..=SLOT_BYTES_MAX) if kind.is_file() => page_ceil(bytes),
        _ => None,
    };
    let Some(bytes) = bytes.and_then(|bytes| usize::try_from(bytes).ok()) else {
        return Err(refused);
    };
    FileMapping::new(file, bytes).map_err(os("mmap"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn refused(file: &File) -> SlotError {
        map_slot_file(file).map(drop).unwrap_err()
    }

    #[test]
    fn a_read_only_file_is_mapped_in_whole_pages() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 5000]).unwrap();
        let mapping = map_slot_file(&file.reopen().unwrap());
        assert!(matches!(mapping, Err(SlotError::Writable(_))));
        let mapping = map_slot_file(&File::open(file.path()).unwrap()).unwrap();
        assert_eq!(mapping.bytes(), 8192);
    }

    #[test]
    fn a_file_that_could_be_written_through_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        assert!(matches!(refused(&file), SlotError::Writable(_)));
    }

    #[test]
    fn only_regular_files_of_a_bounded_size_are_mapped() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = File::open(file.path()).unwrap();
        for bytes in [0, SLOT_BYTES_MAX + 1] {
            file.as_file().set_len(bytes).unwrap();
            assert!(
                matches!(refused(&reader), SlotError::File { .. }),
                "{bytes}"
            );
        }
        let device = File::open("/dev/zero").unwrap();
        assert!(matches!(refused(&device), SlotError::File { .. }));
    }
}
