//! The contract that the shim's tests hold its fake of the agent to.

use wasmvm_protocol::contract;

use crate::guest::Guest;
use crate::programs;

#[tokio::test]
async fn the_service_keeps_the_contract() {
    let guest = Guest::with(programs::LOOP).await;
    contract::check(&guest.client).await;
}
