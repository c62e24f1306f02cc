//! The fake agent by which the shim is tested keeps the contract that the guest's agent keeps.

use tokio::net::UnixStream;
use tokio::sync::watch;
use wasmvm_protocol::agent::containerd::shim_async::TaskClient;
use wasmvm_protocol::contract;

use super::fakes::{FakeMaker, order};
use crate::agent::client;
use crate::guest_deadline::GuestClock;
use crate::workload::WorkloadMaker as _;

#[tokio::test]
async fn the_fake_agent_keeps_the_agents_contract() {
    let (maker, runs) = (FakeMaker::default(), watch::Sender::new(true));
    let clock = GuestClock::new(runs.subscribe());
    let _workload = maker.create(order(false).workload, clock).await.unwrap();
    let socket = maker.workload().dir.path().join("agent");
    let stream = UnixStream::connect(socket).await.unwrap();
    contract::check(&TaskClient::new(client(stream))).await;
}
