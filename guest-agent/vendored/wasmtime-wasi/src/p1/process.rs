//! WASIp1 with [`WasiCtxBuilder::process_paths`]: what needs the program's own
//! descriptors, and what WASIp2's interfaces can't tell.
//!
//! [`WasiCtxBuilder::process_paths`]: crate::WasiCtxBuilder::process_paths

use super::{BlockingMode, Descriptor, File, Result, Transaction, WasiP1Ctx, filesystem, types};
use crate::cli::WasiCliView as _;
use crate::filesystem::process::{self, OpenHow};
use crate::filesystem::{self as host, DescriptorStat, ErrorCode};
use crate::p1::wasi_snapshot_preview1::WasiSnapshotPreview1;
use crate::p2::bindings::cli::{stderr::Host as _, stdin::Host as _, stdout::Host as _};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use wasmtime::error::Context as _;
use wiggle::GuestMemory;

/// Most descriptors of the program's own on the way of one path.
const OWN_DESCRIPTORS_MAX: usize = 40;

/// One entry of a directory, as `fd_readdir` tells it.
#[derive(Debug)]
pub(super) struct Listed {
    inode: u64,
    type_: types::Filetype,
    name: Vec<u8>,
}

/// The three kinds of flags of `path_open`, as one.
pub(super) fn how(
    dirflags: types::Lookupflags,
    oflags: types::Oflags,
    flags: filesystem::DescriptorFlags,
) -> OpenHow {
    OpenHow {
        flags: flags.into(),
        oflags: filesystem::OpenFlags::from(oflags).into(),
        follow: dirflags.contains(types::Lookupflags::SYMLINK_FOLLOW),
    }
}

/// What the operating system says of a file, its own numbers among it.
pub(super) fn filestat(stat: DescriptorStat) -> Result<types::Filestat> {
    let (dev, ino) = stat.identity.unwrap_or_default();
    let stat = filesystem::DescriptorStat::try_from(stat)?;
    let time = |time: Option<filesystem::Datetime>| match time {
        Some(time) => types::Timestamp::try_from(time),
        None => Ok(0),
    };
    Ok(types::Filestat {
        dev,
        ino,
        filetype: stat.type_.try_into().map_err(types::Error::trap)?,
        nlink: stat.link_count,
        size: stat.size,
        atim: time(stat.data_access_timestamp)?,
        mtim: time(stat.data_modification_timestamp)?,
        ctim: time(stat.status_change_timestamp)?,
    })
}

impl Transaction<'_> {
    /// The directory behind `fd`, to be used without the transaction.
    fn dir(&self, fd: types::Fd) -> Result<host::Dir> {
        match self.get_descriptor(fd)? {
            Descriptor::Directory { fd, .. } => Ok(self.view.table.get(fd)?.dir()?.clone()),
            Descriptor::File(_) => Err(types::Errno::Notdir.into()),
            _ => Err(types::Errno::Badf.into()),
        }
    }

    /// The same for a path that goes on behind a descriptor of the program.
    fn own_dir(&self, number: u32) -> Result<host::Dir> {
        match self.descriptors.used.get(&number) {
            Some(Descriptor::Directory { fd, .. }) => Ok(self.view.table.get(fd)?.dir()?.clone()),
            Some(_) => Err(types::Errno::Notdir.into()),
            None => Err(types::Errno::Noent.into()),
        }
    }
}

impl WasiP1Ctx {
    pub(super) async fn process_open(
        &mut self,
        dirfd: types::Fd,
        mut path: String,
        how: OpenHow,
        fdflags: types::Fdflags,
    ) -> Result<types::Fd> {
        let mut dir = self.transact()?.dir(dirfd)?;
        for _ in 0..OWN_DESCRIPTORS_MAX {
            let error = match open_at(&dir, path.clone(), how).await {
                Ok(opened) => return self.push_opened(opened, fdflags),
                Err(error) => error,
            };
            match dir.own_descriptor(&path, how.follow, &error).await {
                Some((number, rest)) if rest.is_empty() => {
                    return self.open_own(number, how, fdflags).await;
                }
                Some((number, rest)) => {
                    dir = self.transact()?.own_dir(number)?;
                    path = rest;
                }
                None => return Err(error.into()),
            }
        }
        Err(types::Errno::Loop.into())
    }

    /// Opens what the program has open as `number`.
    async fn open_own(
        &mut self,
        number: u32,
        how: OpenHow,
        fdflags: types::Fdflags,
    ) -> Result<types::Fd> {
        let stream = |what| move || format!("failed to call `get-{what}`");
        let t = self.transact()?;
        let desc = match t.descriptors.used.get(&number) {
            None => return Err(types::Errno::Noent.into()),
            Some(Descriptor::Directory { fd, .. }) => {
                let dir = t.view.table.get(fd)?.dir()?.clone();
                drop(t);
                let opened = open_at(&dir, ".".to_owned(), how).await?;
                return self.push_opened(opened, fdflags);
            }
            Some(Descriptor::File(File { fd, .. })) => {
                let file = t.view.table.get(fd)?.file()?.clone();
                drop(t);
                let (reopened, _) = file
                    .run_blocking(move |f| process::reopen(f, how))
                    .await
                    .map_err(ErrorCode::from)?;
                let blocking = file.as_blocking_file().is_some();
                let file = host::File::new(reopened, file.perms, how.open_mode(), blocking);
                return self.push_opened(host::Descriptor::File(file), fdflags);
            }
            _ if how.oflags.contains(host::OpenFlags::DIRECTORY) => {
                return Err(types::Errno::Notdir.into());
            }
            Some(Descriptor::Stdin { isatty, .. }) => Descriptor::Stdin {
                isatty: *isatty,
                stream: t
                    .view
                    .cli()
                    .get_stdin()
                    .with_context(stream("stdin"))
                    .map_err(types::Error::trap)?,
            },
            Some(Descriptor::Stdout { isatty, .. }) => Descriptor::Stdout {
                isatty: *isatty,
                stream: t
                    .view
                    .cli()
                    .get_stdout()
                    .with_context(stream("stdout"))
                    .map_err(types::Error::trap)?,
            },
            Some(Descriptor::Stderr { isatty, .. }) => Descriptor::Stderr {
                isatty: *isatty,
                stream: t
                    .view
                    .cli()
                    .get_stderr()
                    .with_context(stream("stderr"))
                    .map_err(types::Error::trap)?,
            },
        };
        let mut t = t;
        Ok(t.descriptors.push(desc)?.into())
    }

    fn push_opened(
        &mut self,
        opened: host::Descriptor,
        fdflags: types::Fdflags,
    ) -> Result<types::Fd> {
        let is_dir = matches!(opened, host::Descriptor::Dir(_));
        let mut t = self.transact()?;
        let fd = t.view.table.push(opened)?;
        let desc = if is_dir {
            Descriptor::Directory {
                fd,
                preopen_path: None,
                listing: None,
            }
        } else {
            Descriptor::File(File {
                fd,
                position: Default::default(),
                append: fdflags.contains(types::Fdflags::APPEND),
                blocking_mode: BlockingMode::from_fdflags(&fdflags),
            })
        };
        Ok(t.descriptors.push(desc)?.into())
    }

    pub(super) async fn process_filestat(
        &mut self,
        memory: &mut GuestMemory<'_>,
        dirfd: types::Fd,
        flags: types::Lookupflags,
        mut path: String,
    ) -> Result<types::Filestat> {
        let follow = flags.contains(types::Lookupflags::SYMLINK_FOLLOW);
        let mut dir = self.transact()?.dir(dirfd)?;
        for _ in 0..OWN_DESCRIPTORS_MAX {
            let path_flags = filesystem::PathFlags::from(flags).into();
            let error = match dir.stat_at(path_flags, path.clone()).await {
                Ok(stat) => return filestat(stat),
                Err(error) => error,
            };
            match dir.own_descriptor(&path, follow, &error).await {
                Some((number, rest)) if rest.is_empty() => {
                    if !self.transact()?.descriptors.used.contains_key(&number) {
                        return Err(types::Errno::Noent.into());
                    }
                    return self.fd_filestat_get(memory, number.into()).await;
                }
                Some((number, rest)) => {
                    dir = self.transact()?.own_dir(number)?;
                    path = rest;
                }
                None => return Err(error.into()),
            }
        }
        Err(types::Errno::Loop.into())
    }

    pub(super) async fn process_read_link(
        &mut self,
        dirfd: types::Fd,
        path: String,
    ) -> Result<Vec<u8>> {
        let dir = self.transact()?.dir(dirfd)?;
        let link = dir
            .run_blocking(move |d| match process::own_link(d, path.as_ref()) {
                Ok(Some(number)) => Ok(Err(number)),
                _ => process::read_link(d, path.as_ref()).map(Ok),
            })
            .await
            .map_err(ErrorCode::from)?;
        let number = match link {
            Ok(link) => return Ok(link),
            Err(number) => number,
        };
        let t = self.transact()?;
        let descriptor = match t.descriptors.used.get(&number) {
            None => return Err(types::Errno::Noent.into()),
            Some(Descriptor::Stdin { .. }) => 0,
            Some(Descriptor::Stdout { .. }) => 1,
            Some(Descriptor::Stderr { .. }) => 2,
            Some(Descriptor::Directory { fd, .. }) => t.view.table.get(fd)?.dir()?.dir.as_raw_fd(),
            Some(Descriptor::File(File { fd, .. })) => {
                t.view.table.get(fd)?.file()?.file.as_raw_fd()
            }
        };
        Ok(process::descriptor_link(descriptor).map_err(ErrorCode::from)?)
    }

    /// What `fd_readdir` writes, at most `size` bytes, from the entry number
    /// `cookie` on. A directory is read when the first entry is asked for: what's
    /// made or removed afterwards moves no entry.
    pub(super) async fn process_readdir(
        &mut self,
        fd: types::Fd,
        size: types::Size,
        cookie: types::Dircookie,
    ) -> Result<Vec<u8>> {
        let first = usize::try_from(cookie)?;
        let size = usize::try_from(size)?;
        let kept = match self.transact()?.get_descriptor(fd)? {
            Descriptor::Directory { listing, .. } if first > 0 => listing.clone(),
            Descriptor::Directory { .. } => None,
            _ => return Err(types::Errno::Badf.into()),
        };
        let listing = match kept {
            Some(listing) => listing,
            None => self.list(fd).await?,
        };
        let mut told = Vec::new();
        for (next, entry) in (1_u64..).zip(listing.iter()).skip(first) {
            told.extend_from_slice(&next.to_le_bytes());
            told.extend_from_slice(&entry.inode.to_le_bytes());
            told.extend_from_slice(&u32::try_from(entry.name.len())?.to_le_bytes());
            told.push(entry.type_ as u8);
            // The structure is as long as a multiple of its alignment.
            told.extend_from_slice(&[0; 3]);
            told.extend_from_slice(&entry.name);
            if told.len() >= size {
                break;
            }
        }
        told.truncate(size);
        let mut t = self.transact()?;
        if let Some(Descriptor::Directory { listing: kept, .. }) =
            t.descriptors.used.get_mut(&fd.into())
        {
            *kept = Some(listing);
        }
        Ok(told)
    }

    async fn list(&mut self, fd: types::Fd) -> Result<Arc<[Listed]>> {
        let dir = self.transact()?.dir(fd)?;
        let read = dir.run_blocking(|d| -> std::io::Result<_> {
            Ok((process::read_dir(d)?, process::is_own_descriptors(d)))
        });
        let (entries, own) = read.await.map_err(ErrorCode::from)?;
        let dots = |name: &[u8]| matches!(name, b"." | b"..");
        let mut listing = Vec::with_capacity(entries.len());
        for entry in entries {
            if own && !dots(&entry.name) {
                continue;
            }
            let type_ = filesystem::DescriptorType::from(entry.type_);
            listing.push(Listed {
                inode: entry.inode,
                type_: type_.try_into().map_err(types::Error::trap)?,
                name: entry.name,
            });
        }
        if own {
            let t = self.transact()?;
            listing.extend(t.descriptors.used.keys().map(|number| Listed {
                inode: u64::from(*number) + 1,
                type_: types::Filetype::SymbolicLink,
                name: number.to_string().into_bytes(),
            }));
        }
        Ok(listing.into())
    }
}

async fn open_at(
    dir: &host::Dir,
    path: String,
    how: OpenHow,
) -> Result<host::Descriptor, ErrorCode> {
    let mut path_flags = host::PathFlags::empty();
    path_flags.set(host::PathFlags::SYMLINK_FOLLOW, how.follow);
    let blocking = dir.allow_blocking_current_thread;
    dir.open_at(path_flags, path, how.oflags, how.flags, blocking)
        .await
}
