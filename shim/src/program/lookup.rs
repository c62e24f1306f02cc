//! Where `args[0]` leads inside the tree: by the rules of execvp(3), then into the working directory.

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
/// Most `#` of a name, from its end, that are tried as the place before a function's name.
const FUNCTION_SPLITS_MAX: usize = 4;

/// A program's file, and how it is entered.
pub(super) struct Located {
    pub path: PathBuf,
    /// The program's file, opened for reading.
    pub file: File,
    /// The part of `args[0]` behind the `#`.
    pub function: Option<String>,
}

/// The file that `args[0]` names. `FILE#FUNCTION` names a function of the file as well, as containerd's
/// other runtimes for WebAssembly have it; a file that exists by the longer name is that file.
pub(super) fn find(root: BorrowedFd<'_>, spec: &ProcessSpec) -> Result<Located, ProgramError> {
    let name = spec.args.first().map_or("", String::as_str);
    let mut looked = Vec::new();
    for (file_name, function) in readings(name) {
        let candidates = candidates(file_name, spec);
        if let Some((path, file)) = first(root, &candidates)? {
            let function = function.filter(|function| !function.is_empty());
            return Ok(Located {
                path,
                file,
                function: function.map(str::to_owned),
            });
        }
        looked.extend(candidates);
    }
    Err(ProgramError::NotFound {
        name: name.to_owned(),
        looked: joined(&looked),
    })
}

/// The readings of a name: a file, and the function behind one of its last `#`. Longest file name first.
fn readings(name: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let splits = name.rmatch_indices('#').take(FUNCTION_SPLITS_MAX);
    let split = splits.map(|(at, _)| (&name[..at], Some(&name[at + 1..])));
    let whole = std::iter::once((name, None));
    whole.chain(split.filter(|(file, _)| !file.is_empty()))
}

/// The first candidate that exists, if any does.
fn first(
    root: BorrowedFd<'_>,
    candidates: &[PathBuf],
) -> Result<Option<(PathBuf, File)>, ProgramError> {
    let mut unusable = None;
    for path in candidates {
        match open_program(root, path) {
            Ok(file) => match refusal(&file, path) {
                None => return Ok(Some((path.clone(), file))),
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
    unusable.map_or(Ok(None), Err)
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
    let in_path = path.split(':').take(PATH_DIRECTORIES_MAX);
    // Last the working directory itself: images for WebAssembly name their module so (`ENTRYPOINT
    // ["app.wasm"]`), and containerd's other runtimes for it look there. What PATH has comes first.
    let mut candidates: Vec<_> = in_path.map(|dir| spec.cwd.join(dir).join(name)).collect();
    let here = spec.cwd.join(name);
    if !candidates.contains(&here) {
        candidates.push(here);
    }
    candidates
}

fn joined(candidates: &[PathBuf]) -> String {
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

/// No file has a name that is too long for one (`InvalidFilename`), so it may yet be one with a function.
fn is_absent(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename
    )
}
