//! Whose turn it is to compile, among all shims of the host: one compile per artifact, and a bounded
//! number of compiler VMs at once.
//!
//! Both are locks (flock(2)) on files in one directory of a tmpfs. The kernel gives them up with the
//! process, so a killed shim holds nobody up. A lock is waited for on a thread of its own, as it can
//! neither be polled nor given a deadline: whoever stops waiting leaves the thread behind, which gives
//! the lock back as soon as it gets it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::ArtifactKey;
use crate::error::ErrorCode;

/// Files for the locks of keys; keys that share one wait for each other without need, which is rare.
const KEY_LOCKS: u64 = 256;

/// Why it is nobody's turn.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// Others compile, for too long.
    #[error(
        "cannot compile within {waited:?}: {what}; `compile_timeout_s` in the configuration sets how \
         long is waited, `compilers_max` how many compile at once"
    )]
    Late {
        /// What others do.
        what: &'static str,
        /// How long it was waited.
        waited: Duration,
    },
    /// A lock file.
    #[error("cannot lock {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
}

impl TurnError {
    /// containerd's code for it.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Late { .. } => ErrorCode::ResourceExhausted,
            Self::File { .. } => ErrorCode::Internal,
        }
    }
}

/// A turn: as long as it lives, nobody else has it.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
}

/// The locks of a host.
#[derive(Clone, Debug)]
pub struct Turns {
    directory: PathBuf,
    compilers_max: u64,
}

impl Turns {
    /// Locks in `directory`, which is made when needed; at most `compilers_max` compile at once.
    #[must_use]
    pub fn new(directory: PathBuf, compilers_max: u64) -> Self {
        Self {
            directory,
            compilers_max,
        }
    }

    /// Waits until nobody else compiles this artifact. Who waited finds it in the store, perhaps.
    ///
    /// # Errors
    /// [`TurnError`].
    pub async fn of_key(&self, key: &ArtifactKey, limit: Duration) -> Result<Turn, TurnError> {
        let number = key.bucket() % KEY_LOCKS;
        let path = self.directory.join(format!("key-{number}"));
        wait(vec![path], "another task compiles the same program", limit).await
    }

    /// Waits for one of the host's compilers. To be called with the turn of the key, never before.
    ///
    /// # Errors
    /// [`TurnError`].
    pub async fn of_compiler(&self, limit: Duration) -> Result<Turn, TurnError> {
        let count = self.compilers_max.max(1);
        // Each shim has its own favourite, so that those who wait spread out.
        let first = u64::from(std::process::id()) % count;
        let numbers = (first..count).chain(0..first);
        let paths = numbers.map(|number| self.directory.join(format!("compiler-{number}")));
        wait(paths.collect(), "all compilers of the host are busy", limit).await
    }
}

/// Takes the first free lock; when none is, waits for the first.
async fn wait(paths: Vec<PathBuf>, what: &'static str, limit: Duration) -> Result<Turn, TurnError> {
    let files = paths
        .iter()
        .map(|path| open(path))
        .collect::<Result<Vec<_>, _>>()?;
    for (file, path) in files.iter().zip(&paths) {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let lock = file.try_clone().map_err(|err| failed(path, err))?;
                return Ok(Turn { _lock: lock });
            }
            Err(Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(failed(path, errno.into())),
        }
    }
    let late = TurnError::Late {
        what,
        waited: limit,
    };
    let Some((file, path)) = files.into_iter().zip(paths).next() else {
        return Err(late);
    };
    tracing::debug!(?path, what, "waiting for a turn");
    let (sender, receiver) = oneshot::channel();
    let lock = move || {
        let locked = match flock(&file, FlockOperation::LockExclusive) {
            Ok(()) => Ok(Turn { _lock: file }),
            Err(errno) => Err(failed(&path, errno.into())),
        };
        // Nobody waits any more: the turn ends here.
        let _ = sender.send(locked);
    };
    std::thread::Builder::new()
        .name("turn".into())
        .spawn(lock)
        .map_err(|source| failed(Path::new("(thread)"), source))?;
    match tokio::time::timeout(limit, receiver).await {
        Ok(Ok(turn)) => turn,
        _ => Err(late),
    }
}

fn open(path: &Path) -> Result<File, TurnError> {
    let made = path.parent().map_or(Ok(()), |directory| {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
    });
    made.and_then(|()| {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
    })
    .map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: io::Error) -> TurnError {
    TurnError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::{TempDir, tempdir};

    const SOON: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    fn turns(compilers_max: u64) -> (TempDir, Turns) {
        let root = tempdir().unwrap();
        let turns = Turns::new(root.path().join("compile"), compilers_max);
        (root, turns)
    }

    fn key(digest: u8) -> ArtifactKey {
        ArtifactKey::of_parts(&[digest; 32], "c", "sse")
    }

    #[tokio::test]
    async fn one_program_is_compiled_once_at_a_time() {
        let (_root, turns) = turns(4);
        let first = turns.of_key(&key(1), LONG).await.unwrap();
        let other = (2..)
            .map(key)
            .find(|other| other.bucket() % KEY_LOCKS != key(1).bucket() % KEY_LOCKS);
        let _other = turns.of_key(&other.unwrap(), SOON).await.unwrap();
        let error = turns.of_key(&key(1), SOON).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::ResourceExhausted);
        let start = "cannot compile within 50ms: another task compiles the same program; ";
        assert!(error.to_string().starts_with(start), "{error}");
        let same = key(1);
        let waiting = turns.of_key(&same, LONG);
        let (turn, ()) = tokio::join!(waiting, async { drop(first) });
        turn.unwrap();
    }

    #[tokio::test]
    async fn compilers_are_counted() {
        let (_root, turns) = turns(2);
        let first = turns.of_compiler(LONG).await.unwrap();
        let _second = turns.of_compiler(LONG).await.unwrap();
        let error = turns.of_compiler(SOON).await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("all compilers of the host are busy")
        );
        let (turn, ()) = tokio::join!(turns.of_compiler(LONG), async { drop(first) });
        turn.unwrap();
    }
}
