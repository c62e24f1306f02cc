//! The fake agent by which the shim is tested keeps the contract that the guest's agent keeps.

use wasmvm_protocol::agent::containerd::shim_async::TaskClient;
use wasmvm_protocol::contract;
use wasmvm_protocol::ports::AGENT_PORT;

use super::fakes::{FakeMaker, order};
use crate::agent::client;
use crate::workload::WorkloadMaker as _;

#[tokio::test]
async fn the_fake_agent_keeps_the_agents_contract() {
    let maker = FakeMaker::default();
    let workload = maker.create(order(false).workload).await.unwrap();
    let stream = workload.connect(AGENT_PORT).await.unwrap();
    contract::check(&TaskClient::new(client(stream))).await;
}
