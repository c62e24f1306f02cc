//! One request: a descriptor chain with a FUSE message in its readable and room for the answer in its
//! writable part (virtio 1.2 §5.11.6).

use virtio_queue::DescriptorChain;
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::filesystem::{Context, FileSystem};
use virtiofsd::fuse::{
    BatchForgetIn, ForgetIn, ForgetOne, InHeader, Opcode, OutHeader, ReadIn, WriteIn,
};
use virtiofsd::server::Server;
use vm_memory::GuestMemoryMmap;

use super::view::MemoryView;
use super::{REQUEST_BYTES_MAX, Tree};

/// Most inodes of one BATCH_FORGET request.
const FORGET_COUNT_MAX: u32 = 4096;

/// A message's header and arguments, names among them, without the bytes of a READ or WRITE.
const HEAD_BYTES_MAX: usize = 2 * 4096;
/// What stands before the bytes of a WRITE.
const WRITE_HEAD_BYTES: usize = size_of::<InHeader>() + size_of::<WriteIn>();
/// Longest message, either way.
const MESSAGE_BYTES_MAX: usize = REQUEST_BYTES_MAX as usize + HEAD_BYTES_MAX;

/// Decodes requests and has them carried out.
pub(super) struct RequestServer {
    server: Server<Tree>,
    tree: Tree,
}

impl RequestServer {
    pub(super) fn new(tree: Tree) -> Self {
        Self {
            server: Server::new(tree.clone()),
            tree,
        }
    }

    /// Carries out one request; answers with the number of bytes written. What makes no sense is
    /// returned unanswered: Linux's driver sends nothing of the kind.
    pub(super) fn serve(
        &self,
        memory: &MemoryView,
        chain: DescriptorChain<&GuestMemoryMmap>,
    ) -> u32 {
        let reader = Reader::new(memory.server(), chain.clone());
        let writer = Writer::new(memory.server(), chain);
        let (Ok(mut reader), Ok(mut writer)) = (reader, writer) else {
            log::warn!("virtio-fs: a request lies outside of guest memory");
            return 0;
        };
        let (request_bytes, answer_bytes) = bounds(reader.clone());
        // An error means that the message is shorter than its bound.
        let _rest = reader.split_at(request_bytes);
        let _rest = writer.split_at(answer_bytes);
        // The library takes it for granted that an answer's header fits; so only the requests that
        // have no answer may come without room for one.
        if writer.available_bytes() < size_of::<OutHeader>() {
            if self.forget(reader).is_err() {
                log::warn!("virtio-fs: a request without room for its answer");
            }
            return 0;
        }
        match self.server.handle_message(reader, writer, None::<&mut ()>) {
            Ok(written) => u32::try_from(written).unwrap_or(u32::MAX),
            Err(err) => {
                log::warn!("virtio-fs: {err}");
                0
            }
        }
    }

    /// FORGET and BATCH_FORGET, decoded here: the message is read once, so that a guest that changes
    /// it meanwhile can't have it taken for another.
    fn forget(&self, mut reader: Reader<'_>) -> std::io::Result<()> {
        let header: InHeader = reader.read_obj()?;
        let context = Context::from(header);
        if header.opcode == Opcode::Forget as u32 {
            let ForgetIn { nlookup } = reader.read_obj()?;
            self.tree.forget(context, header.nodeid, nlookup);
        } else if header.opcode == Opcode::BatchForget as u32 {
            let BatchForgetIn { count, .. } = reader.read_obj()?;
            for _ in 0..count.min(FORGET_COUNT_MAX) {
                let ForgetOne { nodeid, nlookup } = reader.read_obj()?;
                self.tree.forget(context, nodeid, nlookup);
            }
        } else {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        Ok(())
    }
}

/// Most bytes of a message that the library gets to see: of the request, and of room for its answer.
///
/// The library moves whole descriptors, and says EIO when that was more than READ or WRITE asked for. So
/// theirs are cut to what is asked for, and all others to what any message may be. A guest that changes
/// the header meanwhile gets a request that is cut elsewhere, never one that is longer.
fn bounds(mut request: Reader<'_>) -> (usize, usize) {
    let moved = |size: u32| size.min(REQUEST_BYTES_MAX) as usize;
    let header: Option<InHeader> = request.read_obj().ok();
    let opcode = header.map(|header| header.opcode);
    if opcode == Some(Opcode::Read as u32) {
        let size = request.read_obj::<ReadIn>().map_or(0, |read| read.size);
        let room = size_of::<OutHeader>().saturating_add(moved(size));
        return (HEAD_BYTES_MAX, room);
    }
    if opcode == Some(Opcode::Write as u32) {
        let size = request.read_obj::<WriteIn>().map_or(0, |write| write.size);
        let bytes = WRITE_HEAD_BYTES.saturating_add(moved(size));
        return (bytes, HEAD_BYTES_MAX);
    }
    (MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX)
}
