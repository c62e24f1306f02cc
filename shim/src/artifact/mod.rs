//! From a module to an artifact: the store, and the compiler VM behind it.
//!
//! ```text
//! program, hashed ─► key ─► Store::find ──found──► file, mapped as the task VM's slot
//!                              └─not─► turn ─► sealed copy, its key ─► compile (one-shot VM) ─► Store::insert ─┘
//! ```
//!
//! Before the turn no memory is kept that has the size of a tenant's file; after it such memory is charged to
//! the compiler's cgroup. The store's own memory is a tmpfs of bounded size.
//!
//! Tenant code is never compiled on the host nor in a VM that runs a tenant: [`compile`] boots a VM of
//! its own for each module. The artifact that the VM returns is kept under a key that names everything the
//! compilation depends on, so that all tasks of one image share its pages.

pub(crate) mod compile;
mod compile_queue;
mod folder;
mod memory;
mod private;
mod room;
mod store;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sha2::{Digest, Sha256};

pub(crate) use compile_queue::{CompileQueue, Next, Turn};
pub(crate) use private::private_copy;
#[cfg(feature = "fuzzing")]
pub(crate) use store::fuzz;
pub(crate) use store::{CacheDir, Store};

use crate::error::{Coded, ErrorCode};
use crate::sha256::hex;

/// Name of an artifact: 64 hexadecimal digits, fit for a file name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ArtifactKey(String);

/// Why no key can be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    /// The compiler image's digest is not installed.
    #[error("cannot read {path}, the digest of the compiler image; `make install` puts it there")]
    Compiler {
        /// File beside the compiler image, `<compiler>.sha256`.
        path: String,
        /// Error of reading the file.
        #[source]
        source: io::Error,
    },
    /// The file holds something else than a digest.
    #[error("{path} does not begin with a SHA-256 digest; `make install` puts one there")]
    Digest {
        /// File beside the compiler image, `<compiler>.sha256`.
        path: String,
    },
}

impl Coded for KeyError {
    fn code(&self) -> ErrorCode {
        ErrorCode::FailedPrecondition
    }
}

impl ArtifactKey {
    /// The key of a module of this digest, compiled by `compiler` (its initramfs; the digest lies
    /// beside it in `<compiler>.sha256`, as `sha256sum` writes it) for the `cpu` of a guest. The compiler
    /// image pins the wasmtime version and all its settings. Only the same `owner` gets the same key.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(crate) fn new(
        module_sha256: &[u8; 32],
        compiler: &Path,
        cpu: &str,
        owner: Option<&str>,
    ) -> Result<Self, KeyError> {
        let digest_path = format!("{}.sha256", compiler.display());
        let digest = match fs::read_to_string(&digest_path) {
            Ok(digest) => digest,
            Err(source) => {
                let path = digest_path;
                return Err(KeyError::Compiler { path, source });
            }
        };
        let compiler_sha256 = digest.split_ascii_whitespace().next().unwrap_or_default();
        let is_digest = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if compiler_sha256.len() != 64 || !is_digest(compiler_sha256) {
            return Err(KeyError::Digest { path: digest_path });
        }
        Ok(Self::of_parts(module_sha256, compiler_sha256, cpu, owner))
    }

    fn of_parts(
        module_sha256: &[u8; 32],
        compiler_sha256: &str,
        cpu: &str,
        owner: Option<&str>,
    ) -> Self {
        let texts = [compiler_sha256, cpu].into_iter().chain(owner);
        Self::of_texts(module_sha256, texts)
    }

    /// The key of an owner's copy of an installed file, which only root can change: a change of the file changes the
    /// key.
    fn of_installed(metadata: &fs::Metadata, owner: &str) -> Self {
        let identity = [metadata.dev(), metadata.ino(), metadata.len()].map(|n| n.to_string());
        let [changed, nanos] = [metadata.ctime(), metadata.ctime_nsec()].map(|n| n.to_string());
        let texts = ["installed file", &changed, &nanos, owner];
        let identity = identity.iter().map(String::as_str);
        Self::of_texts(&[], texts.into_iter().chain(identity))
    }

    fn of_texts<'a>(start: &[u8], texts: impl Iterator<Item = &'a str>) -> Self {
        let mut hash = Sha256::new();
        hash.update(start);
        for text in texts {
            hash.update(text.len().to_le_bytes());
            hash.update(text);
        }
        Self(hex(&hash.finalize()))
    }

    /// A key of no module.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn fake(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The key as a file name.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_all_its_parts() {
        let key = ArtifactKey::of_parts(&[1; 32], "c", "sse", None);
        assert_eq!(key.as_str().len(), 64);
        let of_owner = |owner| ArtifactKey::of_parts(&[1; 32], "c", "sse", Some(owner));
        assert_ne!(key, of_owner(""));
        assert_ne!(of_owner("a"), of_owner("b"));
        assert_eq!(of_owner("a"), of_owner("a"));
        assert_ne!(key, ArtifactKey::of_parts(&[2; 32], "c", "sse", None));
        assert_ne!(key, ArtifactKey::of_parts(&[1; 32], "d", "sse", None));
        assert_ne!(key, ArtifactKey::of_parts(&[1; 32], "c", "avx", None));
        assert_ne!(key, ArtifactKey::of_parts(&[1; 32], "cs", "se", None));
    }

    #[test]
    fn a_compiler_without_a_digest_names_no_artifact() {
        let directory = tempfile::tempdir().unwrap();
        let compiler = directory.path().join("compiler.cpio");
        let digest = directory.path().join("compiler.cpio.sha256");
        let key = || ArtifactKey::new(&[1; 32], &compiler, "sse", None);
        let missing = key().unwrap_err();
        assert!(matches!(missing, KeyError::Compiler { .. }));
        assert_eq!(missing.code(), ErrorCode::FailedPrecondition);
        let wrong = "z".repeat(64);
        for text in ["", "\n", "abc", &wrong] {
            fs::write(&digest, text).unwrap();
            assert!(matches!(key(), Err(KeyError::Digest { .. })), "{text:?}");
        }
        fs::write(&digest, format!("{}  compiler.cpio\n", "a1".repeat(32))).unwrap();
        key().unwrap();
    }
}
