//! The compiler VM: boots, compiles one module, delivers the artifact, ends.
//!
//! The VMM and the jail are a task's, with the compiler's initramfs, an empty tree and an
//! empty network, in a cgroup of its own. The module goes in by the read-only slot; the artifact comes
//! out as one bounded stream that the compiler's VMM writes into a memfd of ours. Neither the host nor
//! the shim parses a byte of module or artifact.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::mount::{MountFlags, mount};
use wasmvm_protocol::agent::{CompileRequest, CompilerClient, ModuleKind};
use wasmvm_protocol::control::{BootConfig, Credentials, Role};
use wasmvm_protocol::ports::{AGENT_PORT, ARTIFACT_PORT};
use wasmvm_protocol::slot::{SLOT_CONTENT_BYTES_MAX, SLOT_HEADER_BYTES, SlotHeader, SlotKind};

use super::store::content_sha256;
use crate::cgroup::Birth;
use crate::error::{Coded, ErrorCode, printable};
use crate::journal::STATE_ROOT;
use crate::memory_file::memory_file;
use crate::off_thread::off_thread;
use crate::program::SealedProgram;
use crate::vm::launch::{LaunchError, LaunchRequest, VmFiles, launch};
use crate::vm::network::Network;
use crate::vm::{Vm, VmError, end_behind_silence};

/// RAM of a compiler VM, and the memory limit of its cgroup: Cranelift takes some 20 times the module.
pub(crate) const COMPILER_MEMORY_MIB: u32 = 2048;

/// A module to compile, and the VM to compile it in. Nothing of the task that wants the artifact is held.
#[derive(Debug)]
pub(crate) struct Compile {
    /// Name of the VM in the log.
    pub name: String,
    /// The VMM, the kernel and the compiler's initramfs.
    pub files: VmFiles,
    /// The features of the CPU that the artifact is for.
    pub cpu: String,
    /// Cgroup that the VMM is born in.
    pub cgroup: Birth,
    /// Path of the module in the image, for errors.
    pub path: PathBuf,
    /// The module: a sealed copy, which no process can change.
    pub module: SealedProgram,
    /// Longest time for the guest's boot.
    pub boot_limit: Duration,
    /// Longest time for the compilation itself.
    pub compile_limit: Duration,
    /// Whether to forward the guest's console.
    pub console: bool,
}

/// Why there is no artifact.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompileError {
    /// The compiler VM did not start.
    #[error("cannot start the compiler VM")]
    Launch(#[from] LaunchError),
    /// The compiler VM failed after its start.
    #[error("the compiler VM failed")]
    Vm(#[from] VmError),
    /// The module is not valid.
    #[error("{path} is not a WebAssembly program that wasmvm can run: {reason}")]
    Module {
        /// Path of the module in the image.
        path: String,
        /// Reason that the compiler gave, printable.
        reason: String,
    },
    /// The compiler failed, or ran out of memory.
    #[error("cannot compile {path}: {reason}")]
    Compiler {
        /// Path of the module in the image.
        path: String,
        /// Reason that the compiler gave, printable.
        reason: String,
    },
    /// The compiler did not answer in time.
    #[error(
        "cannot compile {path} within {limit:?}; `compile_timeout_s` in the configuration sets the limit"
    )]
    Late {
        /// Path of the module in the image.
        path: String,
        /// Longest time for the compilation.
        limit: Duration,
        /// Error of the ttrpc client.
        #[source]
        source: ttrpc::Error,
    },
    /// The compiler VM's CPU has other features than the task's: the artifact would not fit.
    #[error(
        "the compiler VM's CPU has other features than the task's VM; wasmvm needs a host whose processors have the same features"
    )]
    OtherCpu,
    /// The artifact is not what the compiler announced.
    #[error("the compiler announced {announced} bytes and sent {received}")]
    Cut {
        /// Bytes that the compiler announced in its answer.
        announced: u64,
        /// Bytes that came through the stream.
        received: u64,
    },
    /// A descriptor or file of ours could not be used.
    #[error("cannot {action}")]
    File {
        /// Action of the compile that failed.
        action: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

impl Coded for CompileError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::OtherCpu => ErrorCode::FailedPrecondition,
            Self::Launch(err) => err.code(),
            Self::Vm(err) => err.code(),
            Self::Module { .. } => ErrorCode::InvalidArgument,
            Self::Late { .. } => ErrorCode::DeadlineExceeded,
            Self::Cut { .. } => ErrorCode::Unavailable,
            Self::Compiler { .. } | Self::File { .. } => ErrorCode::Internal,
        }
    }
}

/// Compiles; returns the artifact file, header page included, sealed.
///
/// # Errors
/// [`CompileError`]; the VM has exited in any case.
pub(crate) async fn compile(request: Compile) -> Result<File, CompileError> {
    let launch_request = LaunchRequest {
        name: request.name,
        files: request.files,
        boot: BootConfig {
            role: Role::Compiler,
            ram_mib: COMPILER_MEMORY_MIB,
            huge_pages: true,
            console: request.console,
            // A compiler VM serves no files.
            credentials: Credentials::default(),
        },
        cgroup: request.cgroup,
        network: Network::Empty,
        sysctls: Vec::new(),
        oom_score_adj: 0,
    };
    let (vm, ()) = launch(launch_request, || {
        stand_in_empty_tree().map_err(CompileError::from)
    })
    .await?;
    if vm.cpu() != request.cpu {
        return Err(CompileError::OtherCpu);
    }
    vm.ready(request.boot_limit).await?;
    vm.map_slot(0, request.module.slot.as_fd()).await?;
    let path = request.path.display().to_string();
    let received = run_compiler(&vm, path, request.compile_limit).await;
    vm.kill();
    vm.ended().await;
    // Only now, with the VMM's exit, can no process change what is hashed.
    let received = received?;
    // A whole artifact is hashed.
    off_thread(move || received.into_artifact())
        .await
        .map_err(|err| failed("finish a step on a thread of its own", err))?
}

/// The error for an answer that is no artifact.
fn refused(path: String, limit: Duration, status: &ttrpc::Status) -> CompileError {
    // The compiler has parsed a tenant's bytes; its message is trusted no more than a guest's.
    let reason = printable(status.message());
    match status.code() {
        ttrpc::Code::INVALID_ARGUMENT => CompileError::Module { path, reason },
        ttrpc::Code::DEADLINE_EXCEEDED => CompileError::Late {
            path,
            limit,
            source: ttrpc::Error::RpcStatus(status.clone()),
        },
        _ => CompileError::Compiler { path, reason },
    }
}

/// File that the compiler VM has written, behind an empty header page.
struct Received {
    file: File,
    kind: SlotKind,
    bytes: u64,
}

async fn run_compiler(vm: &Vm, path: String, limit: Duration) -> Result<Received, CompileError> {
    let stream = vm.connect(AGENT_PORT).await?;
    let client = CompilerClient::new(crate::agent::client(stream));
    let context = ttrpc::context::with_duration(limit);
    let request = CompileRequest::new();
    let answer = tokio::select! {
        answer = client.compile(context, &request) => answer,
        end = vm.ended() => return Err(VmError::Ended(end).into()),
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(ttrpc::Error::RpcStatus(status)) => return Err(refused(path, limit, &status)),
        Err(source) => {
            return match end_behind_silence(vm.ended()).await {
                Some(end) => Err(VmError::Ended(end).into()),
                None => Err(CompileError::Late {
                    path,
                    limit,
                    source,
                }),
            };
        }
    };
    let kind = match answer.kind.enum_value_or_default() {
        ModuleKind::MODULE_KIND_COMPONENT => SlotKind::ComponentArtifact,
        _ => SlotKind::CoreArtifact,
    };
    let announced = answer.bytes.min(SLOT_CONTENT_BYTES_MAX);
    let mut file =
        memory_file(c"artifact").map_err(|source| failed("make a memory file", source))?;
    let start = SLOT_HEADER_BYTES as u64;
    file.seek(SeekFrom::Start(start))
        .map_err(|source| failed("seek in the artifact", source))?;
    let bytes = vm.sink(ARTIFACT_PORT, &file, announced, limit).await?;
    if bytes != answer.bytes {
        return Err(CompileError::Cut {
            announced: answer.bytes,
            received: bytes,
        });
    }
    Ok(Received { file, kind, bytes })
}

impl Received {
    /// Fills the header in and seals the file.
    fn into_artifact(mut self) -> Result<File, CompileError> {
        let length = self
            .file
            .metadata()
            .map_err(|err| failed("measure the artifact", err))?
            .len();
        // A compiler VM that was taken over may announce any number, and its VMM agree.
        if self.bytes.checked_add(SLOT_HEADER_BYTES as u64) != Some(length) {
            return Err(CompileError::Cut {
                announced: self.bytes,
                received: length,
            });
        }
        let sha256 =
            content_sha256(&mut self.file).map_err(|err| failed("hash the artifact", err))?;
        let header = SlotHeader {
            kind: self.kind,
            content_bytes: self.bytes,
            sha256,
        };
        self.file
            .write_all_at(&header.encode(), 0)
            .map_err(|err| failed("write the artifact's header", err))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        fcntl_add_seals(&self.file, seals)
            .map_err(|errno| failed("seal the artifact", errno.into()))?;
        Ok(self.file)
    }
}

/// Mounts the tree of a VM that has none: an empty, read-only tmpfs over our own state directory, visible in
/// this mount namespace only.
fn stand_in_empty_tree() -> Result<(), LaunchError> {
    let step = |errno: rustix::io::Errno| LaunchError::Step {
        action: "mount an empty tree for the compiler",
        source: errno.into(),
    };
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    mount(c"none", STATE_ROOT, c"tmpfs", flags, c"size=4k,mode=0500").map_err(step)?;
    rustix::process::chdir(STATE_ROOT).map_err(step)
}

fn failed(action: &'static str, source: io::Error) -> CompileError {
    CompileError::File { action, source }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::expect_codes;

    #[test]
    fn every_answer_of_the_compiler_has_its_code() {
        let limit = Duration::from_secs(60);
        for (answer, code, sentence) in [
            (
                ttrpc::Code::INVALID_ARGUMENT,
                ErrorCode::InvalidArgument,
                "/a is not a WebAssembly program that wasmvm can run: no",
            ),
            (
                ttrpc::Code::INTERNAL,
                ErrorCode::Internal,
                "cannot compile /a: no",
            ),
            (
                ttrpc::Code::DEADLINE_EXCEEDED,
                ErrorCode::DeadlineExceeded,
                "cannot compile /a within 60s; `compile_timeout_s` in the configuration sets the limit",
            ),
        ] {
            let error = refused("/a".into(), limit, &ttrpc::get_status(answer, "no"));
            assert_eq!((error.code(), error.to_string()), (code, sentence.into()));
        }
    }

    #[test]
    fn every_error_has_its_code() {
        let launch = LaunchError::Kvm(io::ErrorKind::NotFound.into());
        let (path, reason) = (|| "/a".to_owned(), || "no".to_owned());
        let late = CompileError::Late {
            path: path(),
            limit: Duration::ZERO,
            source: ttrpc::Error::Eof,
        };
        expect_codes([
            (launch.into(), ErrorCode::FailedPrecondition),
            (CompileError::OtherCpu, ErrorCode::FailedPrecondition),
            (VmError::Deaf.into(), ErrorCode::Unavailable),
            (
                CompileError::Module {
                    path: path(),
                    reason: reason(),
                },
                ErrorCode::InvalidArgument,
            ),
            (
                CompileError::Compiler {
                    path: path(),
                    reason: reason(),
                },
                ErrorCode::Internal,
            ),
            (late, ErrorCode::DeadlineExceeded),
            (
                CompileError::Cut {
                    announced: 2,
                    received: 1,
                },
                ErrorCode::Unavailable,
            ),
            (
                failed("open", io::ErrorKind::NotFound.into()),
                ErrorCode::Internal,
            ),
        ]);
    }
}
