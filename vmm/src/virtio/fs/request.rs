//! A request: a descriptor chain with a FUSE message in its readable and room for the answer in its
//! writable part (virtio 1.2 §5.11.6).

use std::io::{self, Read as _, Write as _};

use virtio_queue::DescriptorChain;
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::fuse::{InHeader, Opcode, OutHeader, ReadIn, ReleaseIn, WriteIn};
use virtiofsd::server::Server;
use vm_memory::{ByteValued, GuestMemoryMmap};

use super::client::{Client, ClientError};
use super::open_files::{OpenFiles, REQUEST_BYTES_MAX};
use super::view::MemoryView;
use crate::file_server::FileServer;
use crate::file_server::message::{BYTES_MAX, bare_answer, is_answered, is_served, object};

/// Most bytes of a message's header and arguments, names among them, without the bytes of a READ or WRITE.
const HEAD_BYTES_MAX: usize = 2 * 4096;
/// Bytes of a WRITE's header and arguments, before the bytes to be written.
const WRITE_HEAD_BYTES: usize = size_of::<InHeader>() + size_of::<WriteIn>();
/// Offset of the size that a READDIR takes: behind the header, the handle and the offset.
const READDIR_SIZE_AT: usize = size_of::<InHeader>() + 16;
const READDIR_SIZE_END: usize = READDIR_SIZE_AT + size_of::<u32>();

/// Most bytes of names that one READDIR answers.
const READDIR_BYTES_MAX: u32 = 28 * 1024;
const _: () = assert!(READDIR_BYTES_MAX as usize + size_of::<OutHeader>() <= BYTES_MAX);

/// Decodes requests and has them carried out: READ and WRITE here, by virtiofsd's library, requests that need a path
/// or an owner by the file server.
pub(super) struct RequestServer {
    moves: Server<OpenFiles>,
    files: OpenFiles,
    client: Client,
    request: Vec<u8>,
}

impl RequestServer {
    pub(super) fn new(server: FileServer) -> Self {
        let files = OpenFiles::default();
        Self {
            moves: Server::new(files.clone()),
            files,
            client: Client::new(server),
            request: Vec::with_capacity(BYTES_MAX),
        }
    }

    /// The client, whose socket shows when the file server has exited.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The number of files that the guest has open.
    pub(super) fn open_files(&self) -> usize {
        self.files.count()
    }

    /// Carries out one request; returns the number of bytes written. A malformed request is
    /// returned unanswered: Linux's driver sends none.
    ///
    /// # Errors
    /// [`ClientError`]: no request can be carried out any more.
    pub(super) fn serve(
        &mut self,
        memory: &MemoryView,
        chain: DescriptorChain<&GuestMemoryMmap>,
    ) -> Result<u32, ClientError> {
        let reader = Reader::new(memory.server(), chain.clone());
        let writer = Writer::new(memory.server(), chain);
        let (Ok(reader), Ok(writer)) = (reader, writer) else {
            log::warn!("virtio-fs: a request lies outside of guest memory");
            return Ok(0);
        };
        let header: Option<InHeader> = reader.clone().read_obj().ok();
        let Some(header) = header else {
            log::warn!("virtio-fs: a request without a header");
            return Ok(0);
        };
        // An answer's header is taken for granted; so only the requests that have no answer may come without room
        // for one.
        if is_answered(header.opcode) && writer.available_bytes() < size_of::<OutHeader>() {
            log::warn!("virtio-fs: a request without room for its answer");
            return Ok(0);
        }
        let written = match header.opcode {
            opcode if moves(opcode) => self.move_bytes(reader, writer),
            opcode if is_served(opcode) => self.pass_on(reader, writer)?,
            _ => answer(writer, bare_answer(header.unique, -libc::ENOSYS).as_slice()),
        };
        Ok(written.unwrap_or_else(|error| {
            log::warn!("virtio-fs: {error}");
            0
        }))
    }

    /// Carries out a READ or WRITE, cut to its [`bounds`].
    fn move_bytes(&self, mut reader: Reader<'_>, mut writer: Writer<'_>) -> io::Result<u32> {
        let (request_bytes, answer_bytes) = bounds(reader.clone());
        // An error means that the message is shorter than its bound.
        let _rest = reader.split_at(request_bytes);
        let _rest = writer.split_at(answer_bytes);
        let written = self.moves.handle_message(reader, writer, None::<&mut ()>);
        let written = written.map_err(io::Error::other)?;
        u32::try_from(written).map_err(io::Error::other)
    }

    /// Has the file server carry a request out. The message is copied out of the guest's memory once and the copy is
    /// passed on, so that a guest that changes the message meanwhile cannot have it taken for another.
    fn pass_on(
        &mut self,
        mut reader: Reader<'_>,
        writer: Writer<'_>,
    ) -> Result<io::Result<u32>, ClientError> {
        let is_too_long = reader.available_bytes() > BYTES_MAX;
        let length = reader.available_bytes().min(BYTES_MAX);
        self.request.resize(length, 0);
        if let Err(error) = reader.read_exact(&mut self.request) {
            return Ok(Err(error));
        }
        let header: InHeader = object(&self.request, 0).unwrap_or_default();
        let served = is_served(header.opcode);
        if !served || !is_answered(header.opcode) {
            if served && !is_too_long {
                self.client.tell(&self.request)?;
            }
            return Ok(Ok(0));
        }
        if is_too_long {
            let too_long = bare_answer(header.unique, -libc::E2BIG);
            return Ok(answer(writer, too_long.as_slice()));
        }
        self.follow(&header);
        let (bytes, opened) = self.client.ask(&header, &self.request)?;
        let written = answer(writer, bytes);
        if let (Ok(_), Some((handle, file))) = (&written, opened) {
            self.files.insert(handle, file);
        }
        Ok(written)
    }

    /// Forgets files that the request closes, and cuts the size that a READDIR asks for.
    fn follow(&mut self, header: &InHeader) {
        let is = |opcode: Opcode| header.opcode == opcode as u32;
        if is(Opcode::Destroy) {
            self.files.clear();
        }
        // The file server knows one kind of handle.
        if is(Opcode::Release) || is(Opcode::Releasedir) {
            let release: Option<ReleaseIn> = object(&self.request, size_of::<InHeader>());
            self.files.remove(release.unwrap_or_default().fh);
        }
        if is(Opcode::Readdir) {
            let size: Option<u32> = object(&self.request, READDIR_SIZE_AT);
            let size = size.unwrap_or_default().min(READDIR_BYTES_MAX);
            let field = self.request.get_mut(READDIR_SIZE_AT..READDIR_SIZE_END);
            if let Some(field) = field {
                field.copy_from_slice(&size.to_le_bytes());
            }
        }
    }
}

fn moves(opcode: u32) -> bool {
    opcode == Opcode::Read as u32 || opcode == Opcode::Write as u32
}

/// Writes an answer whole, or fails.
fn answer(mut writer: Writer<'_>, bytes: &[u8]) -> io::Result<u32> {
    if writer.available_bytes() < bytes.len() {
        return Err(io::Error::other("an answer without enough room"));
    }
    writer.write_all(bytes)?;
    u32::try_from(bytes.len()).map_err(io::Error::other)
}

/// Most bytes of a READ or WRITE that the library gets: of the request, and of room for its answer.
///
/// The library moves whole descriptors, and answers EIO when they have more bytes than READ or WRITE asked for. So
/// the descriptors are cut to what is asked for. A guest that changes the header meanwhile gets a request that is
/// cut elsewhere, never one that is longer.
fn bounds(mut request: Reader<'_>) -> (usize, usize) {
    let moved = |size: u32| size.min(REQUEST_BYTES_MAX) as usize;
    let header: Option<InHeader> = request.read_obj().ok();
    if header.is_some_and(|header| header.opcode == Opcode::Read as u32) {
        let size = request.read_obj::<ReadIn>().map_or(0, |read| read.size);
        let room = size_of::<OutHeader>().saturating_add(moved(size));
        return (HEAD_BYTES_MAX, room);
    }
    let size = request.read_obj::<WriteIn>().map_or(0, |write| write.size);
    let bytes = WRITE_HEAD_BYTES.saturating_add(moved(size));
    (bytes, HEAD_BYTES_MAX)
}
