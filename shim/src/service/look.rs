//! The look at everything: what `wasmvm inspect` and an operator's SIGUSR1 are told.
//!
//! SIGUSR1 is the signal at which containerd's own shims log their stacks. A thread of its own, with a runtime of its
//! own, waits for the signal and answers while the shim's only other thread of a runtime is stuck.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use ttrpc::asynchronous::TtrpcContext;
use wasmvm_protocol::inspect::{Inspect, Node, TREE_BYTES_MAX, Value};
use wasmvm_protocol::inspect_service::{InspectRequest, InspectResponse, InspectService};

use super::Service;
use super::requests::Request;
use crate::error::{ErrorCode, Refusal};
use crate::host_threads::HostThreads;
use crate::off_thread::off_thread_within;
use crate::task::{Task, TaskView};

/// How long the guest may take to answer `wasmvm inspect`, which answers within a second itself.
const INSPECT_MAX: Duration = Duration::from_millis(500);
/// How long the guest may take to answer an operator's SIGUSR1.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// In place of all when the shim's lists cannot be read.
const BUSY: &str = "the shim is busy: a thread holds the list of tasks";
/// Most requests in a tree, or in the log.
const REQUESTS_MAX: usize = 256;

/// The shim itself at one moment: the requests that are being worked on, and its threads.
struct ShimView {
    requests: Vec<Arc<Request>>,
    threads: HostThreads,
}

impl Inspect for ShimView {
    fn inspect(&self) -> Node {
        let requests = self.requests.iter().take(REQUESTS_MAX).enumerate();
        let requests = requests.fold(Node::new(), |node, (place, request)| {
            node.with(place.to_string(), request.inspect())
        });
        self.threads.inspect().with("requests", requests)
    }
}

impl Service {
    /// The shim and its tasks; `None` while a list is locked.
    async fn shim_view(&self) -> Option<(ShimView, Vec<Arc<Task>>)> {
        let (requests, tasks) = (self.requests.clone(), self.tasks.clone());
        let view = move || {
            let view = ShimView {
                requests: requests.list(),
                threads: HostThreads::of("shim", std::process::id()),
            };
            (view, tasks.all())
        };
        off_thread_within(INSPECT_MAX, view).await
    }

    /// Gives `tell` the id of a task and a line about it: the requests that are being worked on, the shim's threads,
    /// then each task's processes and threads. `shim` is the runtime that serves.
    async fn look(&self, shim: &Handle, tell: &impl Fn(&str, &str)) {
        let Some((view, tasks)) = self.shim_view().await else {
            tracing::info!("look: {BUSY}");
            return;
        };
        for request in view.requests.iter().take(REQUESTS_MAX) {
            tell(request.task(), &request.to_string());
        }
        for task in tasks {
            for line in view.threads.lines() {
                tell(task.id(), &line);
            }
            for line in TaskView::of(&task, shim, LOOK_MAX).await.lines() {
                tell(task.id(), &line);
            }
        }
    }

    /// The value at `path` of the tree of a task.
    async fn value_at(&self, id: &str, path: &str) -> Result<Value, Refusal> {
        let (tasks, wanted) = (self.tasks.clone(), id.to_owned());
        let task = off_thread_within(INSPECT_MAX, move || tasks.get(&wanted)).await;
        let busy = || Refusal::say(ErrorCode::Unavailable, BUSY.to_owned());
        let task = task.ok_or_else(busy)??;
        let shim = Handle::current();
        let (own, view) = tokio::join!(self.shim_view(), TaskView::of(&task, &shim, INSPECT_MAX));
        let mut tree = view.inspect();
        if let Some((mut shim, _)) = own {
            shim.requests.retain(|request| request.task() == id);
            tree.set("shim", shim.inspect());
        }
        let absent = || Refusal::say(ErrorCode::NotFound, absent(&tree, path));
        tree.find(path).ok_or_else(absent)
    }
}

#[async_trait]
impl InspectService for Service {
    async fn inspect(
        &self,
        _: &TtrpcContext,
        request: InspectRequest,
    ) -> ttrpc::Result<InspectResponse> {
        let value = self.value_at(&request.id, &request.path).await?;
        let value = serde_json::to_vec(&value)
            .map_err(|error| Refusal::new(ErrorCode::Internal, &error))?;
        if value.len() > TREE_BYTES_MAX {
            let sentence = format!("the tree has more than {TREE_BYTES_MAX} bytes; name a path");
            return Err(Refusal::say(ErrorCode::ResourceExhausted, sentence).into());
        }
        Ok(InspectResponse {
            value,
            ..Default::default()
        })
    }
}

/// The sentence that a path which is not there gets: how far it leads, and the names there.
fn absent(tree: &Node, path: &str) -> String {
    let mut node = tree;
    let mut there = String::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let Some((_, Value::Node(below))) = node.iter().find(|(known, _)| *known == name) else {
            break;
        };
        if below.guest_text().is_some() {
            break;
        }
        node = below;
        there = format!("{there}/{name}");
    }
    let place = if there.is_empty() { "the top" } else { &there };
    let names: Vec<&str> = node.iter().map(|(name, _)| name).collect();
    format!(
        "path {path:?} is not there; {place} has: {}",
        names.join(", ")
    )
}

/// Answers each SIGUSR1 from a thread of its own: `tell` gets the id of a task and a line about it. Called inside the
/// runtime that serves.
///
/// # Errors
/// When the thread or its runtime cannot be started, or the signal not be handled.
pub(crate) fn look_when_asked(
    service: Arc<Service>,
    tell: impl Fn(&str, &str) + Send + 'static,
) -> io::Result<()> {
    let shim = Handle::current();
    let (started, starts) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("diagnostics".to_owned())
        .spawn(move || {
            let looker = looker();
            let _ = started.send(looker.as_ref().map(|_| ()).map_err(io::Error::kind));
            let Ok((runtime, mut asked)) = looker else {
                return;
            };
            runtime.block_on(async {
                while asked.recv().await.is_some() {
                    service.look(&shim, &tell).await;
                }
            });
        })?;
    match starts.recv() {
        Ok(started) => started.map_err(io::Error::from),
        Err(_) => Err(io::ErrorKind::Other.into()),
    }
}

fn looker() -> io::Result<(Runtime, Signal)> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let inside = runtime.enter();
    let asked = signal(SignalKind::user_defined1())?;
    drop(inside);
    Ok((runtime, asked))
}
