//! Errors of making, using and removing a task's VM.

use std::io;

use super::slots::SlotsError;
use crate::artifact::compile::CompileError;
use crate::artifact::{CompileQueueError, KeyError, StoreError};
use crate::bundle::BundleError;
use crate::cgroup::CgroupError;
use crate::cleanup::CleanupError;
use crate::config::ConfigError;
use crate::error::{ErrorCode, Refusal, chain};
use crate::hooks::HookError;
use crate::journal::JournalError;
use crate::program::ProgramError;
use crate::tree::TreeError;
use crate::vm::VmError;
use crate::vm::credentials::CredentialsError;
use crate::vm::launch::LaunchError;

/// Why a task's VM cannot be made, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum TaskVmError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Turn(#[from] CompileQueueError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Cleanup(#[from] CleanupError),
    #[error(
        "{}; exec can run WebAssembly modules of the container's file system",
        chain(.0)
    )]
    Exec(ProgramError),
    #[error(transparent)]
    Slots(#[from] SlotsError),
    #[error("cannot {action}")]
    Step {
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

impl TaskVmError {
    /// The status code of containerd's answer.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Config(err) => err.code(),
            Self::Bundle(err) => err.code(),
            Self::Journal(err) => err.code(),
            Self::Cgroup(err) => err.code(),
            Self::Tree(err) => err.code(),
            Self::Program(err) | Self::Exec(err) => err.code(),
            Self::Slots(err) => err.code(),
            Self::Launch(err) => err.code(),
            Self::Vm(err) => err.code(),
            Self::Turn(err) => err.code(),
            Self::Compile(err) => err.code(),
            Self::Hook(err) => err.code(),
            Self::Cleanup(err) => err.code(),
            Self::Credentials(_) => ErrorCode::InvalidArgument,
            Self::Key(_) => ErrorCode::FailedPrecondition,
            Self::Store(err) => err.code(),
            Self::Step { .. } => ErrorCode::Internal,
        }
    }
}

impl From<TaskVmError> for Refusal {
    fn from(error: TaskVmError) -> Self {
        Self::new(error.code(), &error)
    }
}
