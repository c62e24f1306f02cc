//! The operations allowed on the tree: an allow-list in front of virtiofsd's `PassthroughFs`.
//!
//! Every operation that is not named here answers ENOSYS, by the trait's own default; the VMM passes no other
//! operation on ([`super::message::is_served`]). A file that OPEN or CREATE has opened is handed to the VMM, which
//! does READ and WRITE itself.

use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::thread::{CapabilitySet, capabilities};
use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, OpenOptions, SetattrValid, ZeroCopyWriter,
};
use virtiofsd::fuse;
use virtiofsd::oslib::ReadvFlags;
use virtiofsd::passthrough::{CachePolicy, Config, InodeFileHandlesMode, PassthroughFs};

use super::set_id::WithoutFsetid;
use super::values;

/// Flags of `open(2)` a guest may choose. Not O_CREAT, O_TMPFILE, O_PATH, O_DIRECT, O_ASYNC.
const OPEN_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_TRUNC
    | libc::O_APPEND
    | libc::O_EXCL
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_DIRECTORY;
/// Flags every file is opened with: a lease that a host process holds must not block the server.
const OPEN_ALWAYS: i32 = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;

const O_EXCL: u32 = libc::O_EXCL.cast_unsigned();

/// Options that the driver must have (Linux ≥ 6.3 has them): to keep inodes of two file systems apart, to say when
/// set-id bits are cleared, and to name the group by which a file may be created.
const NEEDED: FsOptions = FsOptions::SUBMOUNTS
    .union(FsOptions::HANDLE_KILLPRIV_V2)
    .union(FsOptions::CREATE_SUPP_GROUP);

type Inode = <PassthroughFs as FileSystem>::Inode;
type Handle = <PassthroughFs as FileSystem>::Handle;
type Opened = (Option<Handle>, OpenOptions);

/// A directory tree of the host; clones serve the same tree.
#[derive(Clone)]
pub struct Tree(Arc<Served>);

struct Served {
    files: PassthroughFs,
    /// The file that the request under way has opened.
    opened: Mutex<Option<OwnedFd>>,
}

impl Tree {
    /// The tree below `root`. `proc_self_fd` is `/proc/self/fd`, opened `O_PATH`; `guest_fds` bounds
    /// the descriptors that the guest can make the server hold.
    ///
    /// # Errors
    /// When the working directory cannot be opened: the library keeps a descriptor of it.
    pub fn new(root: &Path, proc_self_fd: OwnedFd, guest_fds: u64) -> io::Result<Self> {
        let config = Config {
            root_dir: root.to_string_lossy().into_owned(),
            proc_sfd_rawfd: Some(proc_self_fd.into()),
            guest_fd_limit: guest_fds,
            // Handles would need CAP_DAC_READ_SEARCH on the host.
            inode_file_handles: InodeFileHandlesMode::Never,
            // Two file systems may use the same inode numbers.
            announce_submounts: true,
            // FOPEN_DIRECT_IO for files; names and attributes are asked for anew each time.
            cache_policy: CachePolicy::Never,
            entry_timeout: Duration::ZERO,
            attr_timeout: Duration::ZERO,
            // Attributes that are not kept are not worth the look-ups.
            readdirplus: false,
            // Ours: see `set_id`.
            killpriv_v2: false,
            ..Config::default()
        };
        Ok(Self(Arc::new(Served {
            files: PassthroughFs::new(config)?,
            opened: Mutex::new(None),
        })))
    }

    /// The file that the last request has opened, once: a separate descriptor of the same open file.
    pub(super) fn take_opened(&self) -> Option<OwnedFd> {
        self.opened().take()
    }

    fn opened(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        // One thread serves a tree.
        let opened = self.0.opened.lock();
        opened.unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> &PassthroughFs {
        &self.0.files
    }

    /// Keeps the file behind a new handle for [`Tree::take_opened`]. The library shows a file only to a reader of
    /// its bytes; so the "reader" here takes a descriptor of the file and no byte.
    fn hand_over(&self, ctx: Context, inode: Inode, handle: Option<Handle>) -> io::Result<()> {
        let Some(handle) = handle else { return Ok(()) };
        let mut taker = Taker(None);
        let taken = self
            .files()
            .read(ctx, inode, handle, &mut taker, 0, 0, None, 0);
        if let Err(error) = taken {
            self.files()
                .release(ctx, inode, 0, handle, false, false, None)?;
            return Err(error);
        }
        *self.opened() = taker.0;
        Ok(())
    }
}

struct Taker(Option<OwnedFd>);

impl ZeroCopyWriter for Taker {
    fn read_from_file_at(
        &mut self,
        file: &File,
        _count: usize,
        _offset: u64,
        _flags: Option<ReadvFlags>,
    ) -> io::Result<usize> {
        // The library opens directories, too; no bytes are read from one.
        if file.metadata()?.is_file() {
            self.0 = Some(file.try_clone()?.into());
        }
        Ok(0)
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").finish_non_exhaustive()
    }
}

fn errno<T>(errno: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

/// The guest's flags that are allowed, with [`OPEN_ALWAYS`].
fn open_flags(flags: u32) -> u32 {
    (flags & OPEN_FLAGS.cast_unsigned()) | OPEN_ALWAYS.cast_unsigned()
}

/// Checks that a name is one component: the guest's kernel resolves paths, the server looks up names.
fn component(name: &CStr) -> io::Result<&CStr> {
    match name.to_bytes() {
        b"" | b"." | b".." => errno(libc::EINVAL),
        bytes if bytes.contains(&b'/') => errno(libc::EINVAL),
        _ => Ok(name),
    }
}

/// The group by which a file may be created is taken for the length of the call. A file server without `CAP_SETGID`
/// has the groups of its program, and those are enough; another group that the guest names is ignored.
fn groups(mut extensions: Extensions) -> io::Result<Extensions> {
    let may_take = || capabilities(None).map(|sets| sets.effective.contains(CapabilitySet::SETGID));
    if !extensions.sup_gids.is_empty() && !may_take()? {
        extensions.sup_gids.clear();
    }
    Ok(extensions)
}

/// Operations that are passed to the library unchanged.
macro_rules! pass {
    ($(fn $name:ident(&self $(, $arg:ident: $type:ty)* $(,)?) $(-> $ret:ty)?;)*) => {
        $(fn $name(&self $(, $arg: $type)*) $(-> $ret)? {
            self.files().$name($($arg),*)
        })*
    };
}

impl FileSystem for Tree {
    type Inode = Inode;
    type Handle = Handle;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    pass! {
        fn destroy(&self);
        fn forget(&self, ctx: Context, inode: Inode, count: u64);
        fn batch_forget(&self, ctx: Context, requests: Vec<(Inode, u64)>);
        fn getattr(&self, ctx: Context, inode: Inode, handle: Option<Handle>)
            -> io::Result<(fuse::Attr, Duration)>;
        fn readlink(&self, ctx: Context, inode: Inode) -> io::Result<Vec<u8>>;
        fn statfs(&self, ctx: Context, inode: Inode) -> io::Result<libc::statvfs64>;
        fn release(&self, ctx: Context, inode: Inode, flags: u32, handle: Handle, flush: bool,
            flock_release: bool, lock_owner: Option<u64>) -> io::Result<()>;
        fn fsync(&self, ctx: Context, inode: Inode, datasync: bool, handle: Handle)
            -> io::Result<()>;
        fn fsyncdir(&self, ctx: Context, inode: Inode, datasync: bool, handle: Handle)
            -> io::Result<()>;
        fn readdir(&self, ctx: Context, inode: Inode, handle: Handle, size: u32, offset: u64)
            -> io::Result<Self::DirIter>;
        fn releasedir(&self, ctx: Context, inode: Inode, flags: u32, handle: Handle)
            -> io::Result<()>;
    }

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        if !capable.contains(NEEDED) {
            return errno(libc::EPROTO);
        }
        Ok(self.files().init(capable)? | FsOptions::HANDLE_KILLPRIV_V2)
    }

    fn lookup(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<Entry> {
        self.files().lookup(ctx, parent, component(name)?)
    }

    fn setattr(
        &self,
        ctx: Context,
        inode: Inode,
        attr: fuse::SetattrIn,
        handle: Option<Handle>,
        valid: SetattrValid,
    ) -> io::Result<(fuse::Attr, Duration)> {
        values::setattr(&attr, valid)?;
        let _guard = WithoutFsetid::when(valid.contains(SetattrValid::KILL_SUIDGID))?;
        self.files().setattr(ctx, inode, attr, handle, valid)
    }

    fn open(&self, ctx: Context, inode: Inode, kill_priv: bool, flags: u32) -> io::Result<Opened> {
        let _guard = WithoutFsetid::when(kill_priv)?;
        let (handle, options) = self.files().open(ctx, inode, false, open_flags(flags))?;
        self.hand_over(ctx, inode, handle)?;
        Ok((handle, options))
    }

    fn opendir(&self, ctx: Context, inode: Inode, flags: u32) -> io::Result<Opened> {
        self.files().opendir(ctx, inode, open_flags(flags))
    }

    /// Creates a file; opens one that exists already, as the guest's kernel would have done had it known.
    fn create(
        &self,
        ctx: Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<(Entry, Option<Handle>, OpenOptions)> {
        let name = component(name)?;
        values::maker(&ctx)?;
        let exclusive = open_flags(flags) | O_EXCL;
        let created = self.files().create(
            ctx,
            parent,
            name,
            mode,
            false,
            exclusive,
            umask,
            groups(extensions)?,
        );
        match created {
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists && flags & O_EXCL == 0 => {
                let entry = self.files().lookup(ctx, parent, name)?;
                let (handle, options) = self
                    .open(ctx, entry.inode, kill_priv, flags)
                    .inspect_err(|_| self.files().forget(ctx, entry.inode, 1))?;
                Ok((entry, handle, options))
            }
            Ok((entry, handle, options)) => {
                self.hand_over(ctx, entry.inode, handle)
                    .inspect_err(|_| self.files().forget(ctx, entry.inode, 1))?;
                Ok((entry, handle, options))
            }
            Err(err) => Err(err),
        }
    }

    fn mkdir(
        &self,
        ctx: Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        let name = component(name)?;
        values::maker(&ctx)?;
        self.files()
            .mkdir(ctx, parent, name, mode, umask, groups(extensions)?)
    }

    fn mknod(
        &self,
        ctx: Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        let name = component(name)?;
        values::maker(&ctx)?;
        // Pipes, sockets and devices of the host: the file server would open none.
        if !matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG) {
            return errno(libc::EPERM);
        }
        self.files()
            .mknod(ctx, parent, name, mode, rdev, umask, groups(extensions)?)
    }

    fn symlink(
        &self,
        ctx: Context,
        target: &CStr,
        parent: Inode,
        name: &CStr,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        let name = component(name)?;
        values::maker(&ctx)?;
        self.files()
            .symlink(ctx, target, parent, name, groups(extensions)?)
    }

    fn link(&self, ctx: Context, inode: Inode, parent: Inode, name: &CStr) -> io::Result<Entry> {
        self.files().link(ctx, inode, parent, component(name)?)
    }

    fn unlink(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<()> {
        self.files().unlink(ctx, parent, component(name)?)
    }

    fn rmdir(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<()> {
        self.files().rmdir(ctx, parent, component(name)?)
    }

    fn rename(
        &self,
        ctx: Context,
        olddir: Inode,
        oldname: &CStr,
        newdir: Inode,
        newname: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        let (oldname, newname) = (component(oldname)?, component(newname)?);
        values::rename(flags)?;
        self.files()
            .rename(ctx, olddir, oldname, newdir, newname, flags)
    }

    fn fallocate(
        &self,
        ctx: Context,
        inode: Inode,
        handle: Handle,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        values::fallocate(mode, offset, length)?;
        self.files()
            .fallocate(ctx, inode, handle, mode, offset, length)
    }

    fn lseek(
        &self,
        ctx: Context,
        inode: Inode,
        handle: Handle,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        values::lseek(offset, whence)?;
        self.files().lseek(ctx, inode, handle, offset, whence)
    }
}
