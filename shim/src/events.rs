//! Events to containerd: one ordered queue for the whole shim.
//!
//! ```text
//! task ─ publish ─► queue (bounded) ─► one worker ─ Events/Forward ─► containerd
//!                                       └ fails: wait, reconnect, the same event again
//! ```
//!
//! containerd's order is a promise: create, start, what happens to execs, exit, delete. So an event that
//! cannot be delivered holds up those behind it; it never falls behind them. While containerd is away,
//! everything waits for its return, however long that takes. An event that it keeps refusing is given up.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{MessageDyn, MessageField};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use wasmvm_protocol::agent::containerd::api::ForwardRequest;
use wasmvm_protocol::agent::containerd::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use wasmvm_protocol::agent::containerd::shim::event::Envelope;
use wasmvm_protocol::agent::containerd::shim_async::EventsClient;
use wasmvm_protocol::agent::containerd::topics;

/// Events that may wait, as in containerd's own shims.
const QUEUE_EVENTS_MAX: usize = 2048;
/// How often containerd may answer with an error before an event is given up: in some 12 s.
const REFUSALS_MAX: u32 = 16;
/// Waited before the second try; doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// The longest wait between two tries.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// containerd's own limit for taking one event.
const FORWARD_MAX: Duration = Duration::from_secs(5);
/// How long the end of the shim waits for the queue.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// A change of a task that containerd is told of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// The VM exists, the program is loaded.
    Create(TaskCreate),
    /// The agent has started init's program.
    Start(TaskStart),
    /// An exec is registered.
    ExecAdded(TaskExecAdded),
    /// The agent has started the program of an exec.
    ExecStarted(TaskExecStarted),
    /// The VM is stopped.
    Paused(TaskPaused),
    /// The VM runs again after a pause.
    Resumed(TaskResumed),
    /// The host's or the guest's kernel has OOM-killed a program.
    Oom(TaskOOM),
    /// The program of init or of an exec has exited.
    Exit(TaskExit),
    /// Nothing of the task is left.
    Delete(TaskDelete),
}

impl Event {
    fn topic(&self) -> &'static str {
        match self {
            Self::Create(_) => topics::TASK_CREATE_EVENT_TOPIC,
            Self::Start(_) => topics::TASK_START_EVENT_TOPIC,
            Self::ExecAdded(_) => topics::TASK_EXEC_ADDED_EVENT_TOPIC,
            Self::ExecStarted(_) => topics::TASK_EXEC_STARTED_EVENT_TOPIC,
            Self::Paused(_) => topics::TASK_PAUSED_EVENT_TOPIC,
            Self::Resumed(_) => topics::TASK_RESUMED_EVENT_TOPIC,
            Self::Oom(_) => topics::TASK_OOM_EVENT_TOPIC,
            Self::Exit(_) => topics::TASK_EXIT_EVENT_TOPIC,
            Self::Delete(_) => topics::TASK_DELETE_EVENT_TOPIC,
        }
    }

    fn message(&self) -> &dyn MessageDyn {
        match self {
            Self::Create(event) => event,
            Self::Start(event) => event,
            Self::ExecAdded(event) => event,
            Self::ExecStarted(event) => event,
            Self::Paused(event) => event,
            Self::Resumed(event) => event,
            Self::Oom(event) => event,
            Self::Exit(event) => event,
            Self::Delete(event) => event,
        }
    }

    /// As containerd wants it: the type's bare name is the URL.
    fn envelope(&self, namespace: &str) -> Envelope {
        let message = self.message();
        let event = Any {
            type_url: message.descriptor_dyn().full_name().to_owned(),
            // Fails only for messages beyond 2 GiB or without required fields; ours are neither.
            value: message.write_to_bytes_dyn().unwrap_or_default(),
            ..Default::default()
        };
        Envelope {
            timestamp: MessageField::some(Timestamp::from(SystemTime::now())),
            namespace: namespace.to_owned(),
            topic: self.topic().to_owned(),
            event: MessageField::some(event),
            ..Default::default()
        }
    }
}

/// Where a task's events go.
pub(crate) trait EventSink: Send + Sync {
    /// Queues an event behind those published before. Never blocks.
    fn publish(&self, event: Event);
}

/// Why one try to deliver an event failed.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    #[error("cannot connect to {0}")]
    Connect(PathBuf, #[source] std::io::Error),
    #[error("containerd did not take the event")]
    Refused(#[source] ttrpc::Error),
    #[error("containerd did not answer within {FORWARD_MAX:?}")]
    Late,
}

impl ForwardError {
    /// Whether containerd was there and said no.
    fn is_answer(&self) -> bool {
        matches!(self, Self::Refused(ttrpc::Error::RpcStatus(_)))
    }
}

enum Item {
    Event(Box<Envelope>),
    Flush(oneshot::Sender<()>),
}

/// Publishes to containerd's event socket.
#[derive(Debug)]
pub(crate) struct Publisher {
    namespace: String,
    queue: mpsc::Sender<Item>,
}

impl Publisher {
    /// Starts the worker; it connects with the first event. Must be called inside the runtime.
    #[must_use]
    pub(crate) fn new(namespace: &str, address: PathBuf) -> Self {
        let (queue, items) = mpsc::channel(QUEUE_EVENTS_MAX);
        tokio::spawn(work(address, items));
        Self {
            namespace: namespace.to_owned(),
            queue,
        }
    }

    /// Waits until everything published before is delivered or given up, at most [`FLUSH_MAX`].
    pub(crate) async fn flush(&self) {
        self.flush_within(FLUSH_MAX).await;
    }

    async fn flush_within(&self, within: Duration) {
        let (done, flushed) = oneshot::channel();
        let wait = async {
            if self.queue.send(Item::Flush(done)).await.is_ok() {
                // An error means that the worker is gone, and its queue with it.
                let _ = flushed.await;
            }
        };
        if tokio::time::timeout(within, wait).await.is_err() {
            tracing::warn!(?within, "events are left undelivered");
        }
    }
}

impl EventSink for Publisher {
    fn publish(&self, event: Event) {
        let envelope = Box::new(event.envelope(&self.namespace));
        if self.queue.try_send(Item::Event(envelope)).is_err() {
            tracing::error!(topic = event.topic(), "event lost: the queue is full");
        }
    }
}

async fn work(address: PathBuf, mut items: mpsc::Receiver<Item>) {
    let mut client = None;
    while let Some(item) = items.recv().await {
        match item {
            Item::Event(envelope) => deliver(&address, &mut client, *envelope).await,
            // Nobody waits any more when this fails.
            Item::Flush(done) => drop(done.send(())),
        }
    }
}

async fn deliver(address: &Path, client: &mut Option<EventsClient>, envelope: Envelope) {
    let topic = envelope.topic.clone();
    let mut request = ForwardRequest::new();
    request.envelope = MessageField::some(envelope);
    let mut wait = RETRY_FIRST;
    let mut refusals = 0;
    let mut told = false;
    while let Err(error) = forward(address, client, &request).await {
        *client = None;
        let reason = crate::error::chain(&error);
        if error.is_answer() {
            refusals += 1;
        }
        if refusals == REFUSALS_MAX {
            tracing::error!(topic, reason, "event lost");
            return;
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(topic, reason, "event not delivered yet");
        }
        tokio::time::sleep(wait).await;
        wait = RETRY_MAX.min(wait * 2);
    }
    if told {
        tracing::info!(topic, "event delivered");
    }
}

async fn forward(
    address: &Path,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> Result<(), ForwardError> {
    let client = match client {
        Some(client) => client,
        None => {
            let stream = UnixStream::connect(address)
                .await
                .map_err(|error| ForwardError::Connect(address.to_owned(), error))?;
            client.insert(EventsClient::new(Client::new(Socket::from(stream))))
        }
    };
    let context = ttrpc::context::with_duration(FORWARD_MAX);
    match tokio::time::timeout(FORWARD_MAX, client.forward(context, request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(ForwardError::Refused(error)),
        Err(_) => Err(ForwardError::Late),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use ttrpc::asynchronous::transport::Listener;
    use ttrpc::asynchronous::{Server, TtrpcContext};
    use wasmvm_protocol::agent::containerd::api::Empty;
    use wasmvm_protocol::agent::containerd::shim_async::{Events, create_events};

    /// Fails the first request, then keeps what it gets.
    #[derive(Default)]
    struct Containerd {
        failed: Mutex<bool>,
        got: Mutex<Vec<Envelope>>,
    }

    #[async_trait]
    impl Events for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let mut failed = self.failed.lock().unwrap();
            if !std::mem::replace(&mut *failed, true) {
                return Err(ttrpc::Error::Others("not now".into()));
            }
            self.got.lock().unwrap().push(request.envelope.unwrap());
            Ok(Empty::new())
        }
    }

    fn event(id: &str) -> Event {
        Event::Start(TaskStart {
            container_id: id.to_owned(),
            pid: 7,
            ..Default::default()
        })
    }

    async fn serve(path: &Path, containerd: &Arc<Containerd>) -> Server {
        let listener = tokio::net::UnixListener::bind(path).unwrap();
        let mut server = Server::new()
            .add_listener(Listener::from(listener))
            .register_service(create_events(containerd.clone()));
        server.start().await.unwrap();
        server
    }

    impl Containerd {
        fn ids(&self) -> Vec<String> {
            let got = self.got.lock().unwrap();
            let id = |envelope: &Envelope| {
                assert_eq!(
                    (envelope.namespace.as_str(), envelope.topic.as_str()),
                    ("ns", "/tasks/start")
                );
                assert_eq!(envelope.event.type_url, "containerd.events.TaskStart");
                let start: TaskStart =
                    protobuf::Message::parse_from_bytes(&envelope.event.value).unwrap();
                start.container_id
            };
            got.iter().map(id).collect()
        }
    }

    #[tokio::test]
    async fn events_arrive_in_order_even_when_one_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let containerd = Arc::new(Containerd::default());
        let _server = serve(&path, &containerd).await;
        let publisher = Publisher::new("ns", path);
        for id in ["a", "b", "c"] {
            publisher.publish(event(id));
        }
        publisher.flush().await;
        assert_eq!(containerd.ids(), ["a", "b", "c"]);
    }

    #[tokio::test]
    async fn what_happens_while_containerd_is_away_is_told_when_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let containerd = Arc::new(Containerd::default());
        let mut server = serve(&path, &containerd).await;
        let publisher = Publisher::new("ns", path.clone());
        publisher.publish(event("a"));
        publisher.flush().await;
        server.shutdown().await.unwrap();
        drop(server);
        // A restart leaves the socket's name behind for a while, and nobody listening; then it is gone.
        publisher.publish(event("b"));
        publisher.flush_within(Duration::from_millis(100)).await;
        std::fs::remove_file(&path).unwrap();
        publisher.publish(event("c"));
        publisher.flush_within(Duration::from_millis(100)).await;
        assert_eq!(containerd.ids(), ["a"]);
        let _server = serve(&path, &containerd).await;
        publisher.publish(event("d"));
        publisher.flush_within(Duration::from_secs(20)).await;
        assert_eq!(containerd.ids(), ["a", "b", "c", "d"]);
    }

    #[test]
    fn only_an_answer_is_a_refusal() {
        let refused = ForwardError::Refused(ttrpc::Error::RpcStatus(ttrpc::get_status(
            ttrpc::Code::INVALID_ARGUMENT,
            "no",
        )));
        assert!(refused.is_answer());
        assert!(!ForwardError::Late.is_answer());
        let closed = ttrpc::Error::Others("closed".into());
        assert!(!ForwardError::Refused(closed).is_answer());
    }

    #[tokio::test]
    async fn without_containerd_the_end_is_not_held_up_for_ever() {
        let publisher = Publisher::new("ns", "/nonexistent/events".into());
        publisher.publish(event("a"));
        publisher.flush_within(Duration::from_millis(20)).await;
        publisher.publish(event("b"));
    }
}
