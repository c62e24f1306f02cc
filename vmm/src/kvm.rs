//! The host's KVM: its descriptor, and the error of its ioctls.

use std::os::fd::OwnedFd;

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::Kvm;

use crate::descriptors;

/// Why KVM refused a call.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// KVM has another API version, or the descriptor is not /dev/kvm's (-1).
    #[error("KVM API version {0}; {KVM_API_VERSION} is needed")]
    ApiVersion(i32),
    /// An ioctl of KVM failed.
    #[error("{call} failed")]
    Ioctl {
        /// Name of the ioctl.
        call: &'static str,
        /// Errno of the ioctl.
        #[source]
        source: kvm_ioctls::Error,
    },
}

impl KvmError {
    /// The error of the ioctl `call`, for `map_err`.
    pub fn of(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Ioctl { call, source }
    }
}

/// Takes over a descriptor of /dev/kvm and checks the API version.
///
/// # Errors
/// [`KvmError::ApiVersion`], also when `fd` is not /dev/kvm's (-1).
pub fn open_kvm(fd: OwnedFd) -> Result<Kvm, KvmError> {
    let kvm = descriptors::kvm(fd);
    match kvm.get_api_version() {
        version if version.unsigned_abs() == KVM_API_VERSION => Ok(kvm),
        version => Err(KvmError::ApiVersion(version)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn what_is_not_kvm_is_refused() {
        let null = File::open("/dev/null").unwrap();
        assert!(matches!(
            open_kvm(null.into()),
            Err(KvmError::ApiVersion(-1))
        ));
    }
}
