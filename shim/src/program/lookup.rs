//! Where `args[0]` leads inside the tree, by the rules of execvp(3).

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};

use super::seal::PROGRAM_BYTES_MAX;
use super::{ProgramError, format, seal};
use crate::bundle::ProcessSpec;
use crate::tree::open_inside;

/// Where programs are looked up when the environment has no `PATH`, as containerd gives it.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most directories of `PATH` that are looked into.
const PATH_DIRECTORIES_MAX: usize = 64;

/// The first candidate that exists: its path and its file, opened for reading.
pub(super) fn find(
    root: BorrowedFd<'_>,
    spec: &ProcessSpec,
) -> Result<(PathBuf, File), ProgramError> {
    let name = spec.args.first().map_or("", String::as_str);
    let candidates = candidates(name, spec);
    let mut unusable = None;
    for path in &candidates {
        match open_program(root, path) {
            Ok(file) => match refusal(&file, path) {
                None => return Ok((path.clone(), file)),
                // A directory or FIFO earlier in PATH hides nothing behind it.
                Some(err) => {
                    unusable.get_or_insert(err);
                }
            },
            Err(err) if is_absent(&err) => {}
            Err(source) => {
                let path = path.clone();
                unusable.get_or_insert(ProgramError::Read { path, source });
            }
        }
    }
    Err(unusable.unwrap_or_else(|| ProgramError::NotFound {
        name: name.to_owned(),
        looked: looked(&candidates),
    }))
}

/// In the order they are tried; normalised by nothing but joining.
fn candidates(name: &str, spec: &ProcessSpec) -> Vec<PathBuf> {
    if name.contains('/') {
        return vec![spec.cwd.join(name)];
    }
    let path = spec
        .env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .filter(|path| !path.is_empty())
        .unwrap_or(PATH_DEFAULT);
    // An empty or relative directory is taken from the working directory, as a shell does.
    path.split(':')
        .take(PATH_DIRECTORIES_MAX)
        .map(|dir| spec.cwd.join(dir).join(name))
        .collect()
}

fn looked(candidates: &[PathBuf]) -> String {
    let paths: Vec<_> = candidates
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}

/// Never waits for the other end of a FIFO, never becomes a controlling terminal.
fn open_program(root: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    open_inside(root, path, flags).map(File::from)
}

/// Why this file is not read at all.
fn refusal(file: &File, path: &Path) -> Option<ProgramError> {
    let stat = match rustix::fs::fstat(file) {
        Ok(stat) => stat,
        Err(errno) => {
            return Some(ProgramError::Read {
                path: path.to_owned(),
                source: errno.into(),
            });
        }
    };
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let bytes = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
            return (bytes > PROGRAM_BYTES_MAX).then(|| seal::too_large(path, bytes));
        }
        FileType::Directory => "is a directory",
        FileType::Fifo => "is a FIFO",
        _ => "is not a regular file",
    };
    Some(format::not_wasm(path, what.to_owned()))
}

fn is_absent(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
