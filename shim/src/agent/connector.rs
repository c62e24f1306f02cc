//! Connections to the ports of a guest.

use std::time::Duration;

use async_trait::async_trait;
use tokio::net::UnixStream;

use super::AgentError;
use crate::error::Refusal;
use crate::guest_deadline::GuestClock;
use crate::vm::Vm;

/// How long a connection to the guest may take to open.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// The way into a guest: the guest's VM, or a fake in tests.
#[async_trait]
pub(crate) trait GuestConnector: Send + Sync {
    /// Opens a byte stream to a vsock port of the guest.
    async fn connect(&self, port: u32) -> Result<UnixStream, Refusal>;
}

#[async_trait]
impl GuestConnector for Vm {
    async fn connect(&self, port: u32) -> Result<UnixStream, Refusal> {
        Ok(Self::connect(self, port).await?)
    }
}

/// Connects to a port of the guest within [`CONNECT_MAX`] of the guest's time.
///
/// # Errors
/// [`AgentError::Connect`], [`AgentError::Late`].
pub(super) async fn connect(
    guest: &dyn GuestConnector,
    port: u32,
    clock: &GuestClock,
) -> Result<UnixStream, AgentError> {
    match clock.within(CONNECT_MAX, guest.connect(port)).await {
        Some(Ok(stream)) => Ok(stream),
        Some(Err(source)) => Err(AgentError::Connect { port, source }),
        None => Err(AgentError::Late {
            request: "a connection",
            within: CONNECT_MAX,
        }),
    }
}
