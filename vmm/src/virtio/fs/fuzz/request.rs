//! Requests as `linux/fuse.h` lays them out, with any values.

use arbitrary::{Result, Unstructured};
use virtiofsd::fuse::Opcode;

/// Names that mean something in the tree, and some that must not.
const NAMES: [&[u8]; 12] = [
    b"poem",
    b"dir",
    b"inner",
    b"tool",
    b"link",
    b"out",
    b"new",
    b"..",
    b".",
    b"a/b",
    b"",
    b"out/secret",
];
/// Numbers at which arithmetic turns.
const EDGES: [u64; 9] = [
    0,
    1,
    13,
    4096,
    1 << 20,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];
/// All that the protocol has: also what is not served.
const OPCODE_MAX: u32 = 54;
/// Bytes of `struct fuse_in_header`.
const HEADER_BYTES: usize = 40;
/// Most bytes of data in a WRITE request.
const DATA_BYTES_MAX: u16 = 4096;

/// What earlier answers have named.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) nodes: Vec<u64>,
    pub(crate) handles: Vec<u64>,
}

/// A request for `node`, from root.
pub(crate) fn header(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&opcode.to_le_bytes());
    bytes.extend_from_slice(&77_u64.to_le_bytes());
    bytes.extend_from_slice(&node.to_le_bytes());
    // uid, gid, pid and the length of extensions.
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(body);
    bytes
}

/// INIT as Linux 6.12 sends it, as far as the server asks for it.
pub(crate) fn init() -> Vec<u8> {
    use virtiofsd::filesystem::FsOptions;
    let flags = FsOptions::SUBMOUNTS
        | FsOptions::HANDLE_KILLPRIV_V2
        | FsOptions::INIT_EXT
        | FsOptions::CREATE_SUPP_GROUP;
    let [a, b, c, d, e, f, g, h] = flags.bits().to_le_bytes();
    let words = [
        7,
        40,
        0x2_0000,
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ];
    let mut body: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    body.resize(64, 0);
    header(Opcode::Init as u32, 0, &body)
}

/// The offset and the size that a READ or WRITE names; zeros for all else.
pub(crate) fn moved(opcode: u32, request: &[u8]) -> (u64, u64) {
    if opcode != Opcode::Read as u32 && opcode != Opcode::Write as u32 {
        return (0, 0);
    }
    let offset = request.get(HEADER_BYTES + 8..HEADER_BYTES + 16);
    let size = request.get(HEADER_BYTES + 16..HEADER_BYTES + 20);
    let offset = offset
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_le_bytes);
    let size = size
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    (offset, size.into())
}

/// Any request: mostly one that names what there is.
pub(crate) fn any(u: &mut Unstructured<'_>, known: &Known) -> Result<(u32, Vec<u8>)> {
    let opcode = u.int_in_range(1..=OPCODE_MAX)?;
    let mut body = Body {
        u,
        known,
        bytes: Vec::new(),
    };
    body.fill(opcode)?;
    let bytes = body.bytes;
    let node = node(u, known)?;
    let mut request = header(opcode, node, &bytes);
    if u.ratio(1, 16)? {
        request[..4].copy_from_slice(&u.arbitrary::<u32>()?.to_le_bytes());
    }
    if u.ratio(1, 16)? {
        request.truncate(u.int_in_range(0..=request.len())?);
    }
    Ok((opcode, request))
}

fn node(u: &mut Unstructured<'_>, known: &Known) -> Result<u64> {
    if known.nodes.is_empty() || u.ratio(1, 16)? {
        number(u)
    } else {
        u.choose(&known.nodes).copied()
    }
}

fn number(u: &mut Unstructured<'_>) -> Result<u64> {
    if u.ratio(1, 4)? {
        u.arbitrary()
    } else {
        u.choose(&EDGES).copied()
    }
}

struct Body<'b, 'a> {
    u: &'b mut Unstructured<'a>,
    known: &'b Known,
    bytes: Vec<u8>,
}

impl Body<'_, '_> {
    fn fill(&mut self, opcode: u32) -> Result<()> {
        let is = |known: Opcode| opcode == known as u32;
        if is(Opcode::Lookup) || is(Opcode::Unlink) || is(Opcode::Rmdir) {
            self.name()
        } else if is(Opcode::Symlink) {
            self.name()?;
            self.name()
        } else if is(Opcode::Mknod) || is(Opcode::Create) {
            self.flags()?;
            self.mode()?;
            self.mode()?;
            self.small(4)?;
            self.name()
        } else if is(Opcode::Mkdir) {
            self.mode()?;
            self.mode()?;
            self.name()
        } else if is(Opcode::Rename) || is(Opcode::Rename2) {
            self.node()?;
            if is(Opcode::Rename2) {
                self.small(7)?;
                self.small(0)?;
            }
            self.name()?;
            self.name()
        } else if is(Opcode::Link) {
            self.node()?;
            self.name()
        } else if is(Opcode::Open) || is(Opcode::Opendir) {
            self.flags()?;
            self.small(1)
        } else if is(Opcode::Setattr) {
            self.setattr()
        } else if is(Opcode::BatchForget) {
            self.small(3)?;
            self.small(0)?;
            (0..3).try_for_each(|_| {
                self.node()?;
                self.number()
            })
        } else {
            self.numbers(opcode)
        }
    }

    /// What begins with a handle.
    fn numbers(&mut self, opcode: u32) -> Result<()> {
        let is = |known: Opcode| opcode == known as u32;
        if is(Opcode::Getattr) {
            self.small(1)?;
            self.small(0)?;
            return self.handle();
        }
        self.handle()?;
        self.number()?;
        if is(Opcode::Fallocate) {
            self.number()?;
            return self.small(0x7f);
        }
        // Lseek's whence, a READ's size: a small number. The rest is flags.
        if self.u.arbitrary()? {
            self.small(5)?;
        } else {
            let size = u32::from(self.u.arbitrary::<u16>()?);
            self.word(size);
        }
        self.small(7)?;
        self.number()?;
        self.small(7)?;
        self.small(0)?;
        let len = self.u.int_in_range(0..=DATA_BYTES_MAX)?;
        self.bytes.resize(self.bytes.len() + usize::from(len), b'd');
        Ok(())
    }

    fn setattr(&mut self) -> Result<()> {
        let valid = self.u.arbitrary::<u16>()?;
        self.word(valid.into());
        self.small(0)?;
        self.handle()?;
        (0..5).try_for_each(|_| self.number())?;
        (0..3).try_for_each(|_| self.small(3))?;
        self.mode()?;
        (0..4).try_for_each(|_| self.small(2))
    }

    fn word(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn small(&mut self, max: u32) -> Result<()> {
        let value = if self.u.ratio(1, 16)? {
            self.u.arbitrary()?
        } else {
            self.u.int_in_range(0..=max)?
        };
        self.word(value);
        Ok(())
    }

    /// Flags of `open(2)`, or, for MKNOD, a mode.
    fn flags(&mut self) -> Result<()> {
        let value = match self.u.int_in_range(0..=5)? {
            0 => libc::O_RDONLY.cast_unsigned(),
            1 => libc::O_WRONLY.cast_unsigned(),
            2 => libc::O_RDWR.cast_unsigned(),
            3 => (libc::O_RDWR | libc::O_APPEND | libc::O_TRUNC).cast_unsigned(),
            4 => {
                *self.u.choose(&[
                    libc::S_IFREG,
                    libc::S_IFCHR,
                    libc::S_IFBLK,
                    libc::S_IFIFO,
                    libc::S_IFSOCK,
                ])? | 0o600
            }
            _ => self.u.arbitrary()?,
        };
        self.word(value);
        Ok(())
    }

    fn mode(&mut self) -> Result<()> {
        let value = u32::from(self.u.arbitrary::<u16>()?);
        self.word(value);
        Ok(())
    }

    fn number(&mut self) -> Result<()> {
        let value = number(self.u)?;
        self.bytes.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn node(&mut self) -> Result<()> {
        let value = node(self.u, self.known)?;
        self.bytes.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn handle(&mut self) -> Result<()> {
        let known = self.known.handles.is_empty() || self.u.ratio(1, 16)?;
        let value = if known {
            number(self.u)?
        } else {
            *self.u.choose(&self.known.handles)?
        };
        self.bytes.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn name(&mut self) -> Result<()> {
        if self.u.ratio(1, 16)? {
            let len = self.u.int_in_range(0..=300)?;
            self.bytes.extend_from_slice(self.u.bytes(len)?);
        } else {
            self.bytes.extend_from_slice(self.u.choose(&NAMES)?);
        }
        self.bytes.push(0);
        Ok(())
    }
}
