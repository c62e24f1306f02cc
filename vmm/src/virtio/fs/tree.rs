//! What may be done to the tree: an allow-list in front of virtiofsd's `PassthroughFs`.
//!
//! Every operation that is not named here answers ENOSYS, by the trait's own default: extended
//! attributes and ACLs, locks (the guest's kernel keeps its own), ioctl, poll, bmap, copies within the
//! host and `syncfs`, which would reach beyond the tree, and `flush`, a round trip for every `close`
//! without a use where nothing is cached.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::{CapabilitySet, capabilities};
use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, OpenOptions, SetattrValid, ZeroCopyReader,
    ZeroCopyWriter,
};
use virtiofsd::fuse;
use virtiofsd::passthrough::{CachePolicy, Config, InodeFileHandlesMode, PassthroughFs};

use super::set_id::WithoutFsetid;
use super::values;

/// Most bytes that one READ or WRITE request moves.
pub const REQUEST_BYTES_MAX: u32 = 1 << 20;

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

/// What the driver must know (Linux ≥ 6.3 does): to keep inodes of two file systems apart, to say when
/// set-id bits go, and to name the group by which a file may be created.
const NEEDED: FsOptions = FsOptions::SUBMOUNTS
    .union(FsOptions::HANDLE_KILLPRIV_V2)
    .union(FsOptions::CREATE_SUPP_GROUP);

type Inode = <PassthroughFs as FileSystem>::Inode;
type Handle = <PassthroughFs as FileSystem>::Handle;
type Opened = (Option<Handle>, OpenOptions);

/// A directory tree of the host; clones serve the same one.
#[derive(Clone)]
pub struct Tree(Arc<PassthroughFs>);

impl Tree {
    /// The tree below `root`. `proc_self_fd` is `/proc/self/fd`, opened `O_PATH`; `guest_fds` bounds
    /// the descriptors that the guest can make the server hold.
    ///
    /// # Errors
    /// When the working directory cannot be opened.
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
        Ok(Self(Arc::new(PassthroughFs::new(config)?)))
    }

    #[cfg(test)]
    pub(super) fn for_test(root: &Path) -> Self {
        use rustix::fs::{Mode, OFlags, open};
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let proc_self_fd = open("/proc/self/fd", flags, Mode::empty()).unwrap();
        Self::new(root, proc_self_fd, 512).unwrap()
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

/// The guest's flags as far as they are allowed, with those that always hold.
fn open_flags(flags: u32) -> u32 {
    (flags & OPEN_FLAGS.cast_unsigned()) | OPEN_ALWAYS.cast_unsigned()
}

/// A name of one component: the guest's kernel resolves paths, the server looks up names.
fn component(name: &CStr) -> io::Result<&CStr> {
    match name.to_bytes() {
        b"" | b"." | b".." => errno(libc::EINVAL),
        bytes if bytes.contains(&b'/') => errno(libc::EINVAL),
        _ => Ok(name),
    }
}

/// The group by which a file may be created is taken for the length of the call. A VMM without `CAP_SETGID` has
/// the groups of its program, and those are enough; the guest's word for another counts for nothing.
fn groups(mut extensions: Extensions) -> io::Result<Extensions> {
    let may_take = || capabilities(None).map(|sets| sets.effective.contains(CapabilitySet::SETGID));
    if !extensions.sup_gids.is_empty() && !may_take()? {
        extensions.sup_gids.clear();
    }
    Ok(extensions)
}

/// Operations that go through as they are.
macro_rules! pass {
    ($(fn $name:ident(&self $(, $arg:ident: $type:ty)* $(,)?) $(-> $ret:ty)?;)*) => {
        $(fn $name(&self $(, $arg: $type)*) $(-> $ret)? {
            self.0.$name($($arg),*)
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
        Ok(self.0.init(capable)? | FsOptions::HANDLE_KILLPRIV_V2)
    }

    fn lookup(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<Entry> {
        self.0.lookup(ctx, parent, component(name)?)
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
        self.0.setattr(ctx, inode, attr, handle, valid)
    }

    fn open(&self, ctx: Context, inode: Inode, kill_priv: bool, flags: u32) -> io::Result<Opened> {
        let _guard = WithoutFsetid::when(kill_priv)?;
        self.0.open(ctx, inode, false, open_flags(flags))
    }

    fn opendir(&self, ctx: Context, inode: Inode, flags: u32) -> io::Result<Opened> {
        self.0.opendir(ctx, inode, open_flags(flags))
    }

    /// A file that exists already is opened, as the guest's kernel would have done had it known.
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
        let created = self.0.create(
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
                let entry = self.0.lookup(ctx, parent, name)?;
                let (handle, options) = self
                    .open(ctx, entry.inode, kill_priv, flags)
                    .inspect_err(|_| self.0.forget(ctx, entry.inode, 1))?;
                Ok((entry, handle, options))
            }
            other => other,
        }
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        ctx: Context,
        inode: Inode,
        handle: Handle,
        w: W,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let size = size.min(REQUEST_BYTES_MAX);
        values::range(offset, size)?;
        self.0
            .read(ctx, inode, handle, w, size, offset, lock_owner, flags)
    }

    fn write<R: ZeroCopyReader>(
        &self,
        ctx: Context,
        inode: Inode,
        handle: Handle,
        r: R,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        let size = size.min(REQUEST_BYTES_MAX);
        values::range(offset, size)?;
        let _guard = WithoutFsetid::when(kill_priv)?;
        self.0.write(
            ctx,
            inode,
            handle,
            r,
            size,
            offset,
            lock_owner,
            delayed_write,
            false,
            flags,
        )
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
        self.0
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
        // Pipes, sockets and devices of the host would be opened by nobody here.
        if !matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG) {
            return errno(libc::EPERM);
        }
        self.0
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
        self.0
            .symlink(ctx, target, parent, name, groups(extensions)?)
    }

    fn link(&self, ctx: Context, inode: Inode, parent: Inode, name: &CStr) -> io::Result<Entry> {
        self.0.link(ctx, inode, parent, component(name)?)
    }

    fn unlink(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<()> {
        self.0.unlink(ctx, parent, component(name)?)
    }

    fn rmdir(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<()> {
        self.0.rmdir(ctx, parent, component(name)?)
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
        self.0.rename(ctx, olddir, oldname, newdir, newname, flags)
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
        self.0.fallocate(ctx, inode, handle, mode, offset, length)
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
        self.0.lseek(ctx, inode, handle, offset, whence)
    }
}
