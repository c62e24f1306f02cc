//! One request: a descriptor chain with a FUSE message in its readable and room for the answer in its
//! writable part (virtio 1.2 §5.11.6).

use virtio_queue::DescriptorChain;
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::filesystem::{Context, FileSystem};
use virtiofsd::fuse::{BatchForgetIn, ForgetIn, ForgetOne, InHeader, Opcode, OutHeader};
use virtiofsd::server::Server;
use vm_memory::GuestMemoryMmap;

use super::Tree;
use super::view::MemoryView;

/// Most inodes of one BATCH_FORGET request.
const FORGET_COUNT_MAX: u32 = 4096;

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
        let (Ok(reader), Ok(writer)) = (reader, writer) else {
            log::warn!("virtio-fs: a request lies outside of guest memory");
            return 0;
        };
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
