//! The live state of a task in its two forms: sentences for the log and a tree.

use wasmvm_protocol::agent::Instance;
use wasmvm_protocol::inspect::{Inspect, Node, Value};

use crate::error::printable;
use crate::host_threads::{self, HostThreads, plain};
use crate::task::process::ProcessView;
use crate::task::{Flow, exec};

/// In place of the state whose lock is held.
pub(super) const BUSY: &str = "is busy: a thread of the shim holds its state";

/// The live state of a task at one moment.
#[derive(Debug)]
pub(crate) struct TaskView {
    pub(super) id: String,
    /// `None` when a lock is held for longer than the look waits.
    pub(super) own: Option<OwnState>,
    /// `None` before the task has a VM.
    pub(super) vm: Option<VmView>,
}

/// The shim's own state of a task.
#[derive(Debug)]
pub(super) struct OwnState {
    pub(super) init: ProcessView,
    /// The execs with their ids.
    pub(super) execs: Vec<(String, ProcessView)>,
    pub(super) flow: Flow,
}

/// A task's VM from the outside, and what the VM tells.
#[derive(Debug)]
pub(super) struct VmView {
    pub(super) vmm: Option<HostThreads>,
    pub(super) file_server: Option<HostThreads>,
    pub(super) told: Told,
}

/// The answers of guest and VMM; a sentence in the place of one that did not come.
#[derive(Debug)]
pub(super) struct Told {
    /// `None` when the VM does not run: the answer would come when the VM runs again.
    pub(super) guest: Option<Result<Vec<Instance>, NoReport>>,
    pub(super) vmm: Result<Node, String>,
}

/// Why there is no report of the guest's programs.
#[derive(Debug)]
pub(super) enum NoReport {
    /// A sentence of the shim's.
    Ours(String),
    /// The guest's refusal, in the guest's words.
    Guests(String),
}

impl TaskView {
    /// A sentence for each process, the VM, each thread of the VMM and its file server, and each thread of the
    /// programs in the guest.
    #[must_use]
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = match &self.own {
            Some(own) => own.processes().map(ToString::to_string).collect(),
            None => vec![format!("task {} {BUSY}", self.id)],
        };
        let Some(vm) = &self.vm else {
            lines.push("the task has no VM yet".to_owned());
            return lines;
        };
        if let Some(own) = &self.own {
            lines.push(format!("its VM {}", flow_words(own.flow)));
        }
        let processes = vm.vmm.iter().chain(&vm.file_server);
        lines.extend(processes.flat_map(HostThreads::lines));
        match &vm.told.guest {
            None => {}
            Some(Err(NoReport::Ours(sentence) | NoReport::Guests(sentence))) => {
                lines.push(printable(&format!("guest: {sentence}")));
            }
            Some(Ok(instances)) => lines.extend(instances.iter().flat_map(|one| self.program(one))),
        }
        lines
    }

    fn program(&self, instance: &Instance) -> impl Iterator<Item = String> {
        let task = format!("task {}", self.id);
        let name = match instance.exec_id.as_str() {
            "" => task,
            exec_id => exec::name(exec_id, &task),
        };
        let words = instance.threads.iter().map(host_threads::words);
        words.map(move |words| printable(&format!("guest: {name}: {words}")))
    }

    /// The programs by the names that the shim knows them by, and others by their place in the guest's report.
    fn guest(&self, instances: &[Instance]) -> Node {
        let known = |id: &str| {
            let own = self.own.iter();
            own.flat_map(|own| &own.execs).any(|(known, _)| known == id)
        };
        let [mut guest, mut execs, mut unknown] = [Node::new(), Node::new(), Node::new()];
        for (place, instance) in instances.iter().enumerate() {
            let threads = host_threads::tree(&instance.threads, Value::guest);
            let program = Node::new().with("threads", threads);
            match instance.exec_id.as_str() {
                "" => guest.set("init", program),
                id if known(id) => execs.set(id, program),
                id => unknown.set(place.to_string(), program.with("exec_id", Value::guest(id))),
            }
        }
        guest.with("execs", execs).with("unknown", unknown)
    }
}

impl Inspect for TaskView {
    fn inspect(&self) -> Node {
        let task = match &self.own {
            Some(own) => own.inspect(),
            None => Node::new().with("state", BUSY),
        };
        let tree = Node::new().with("task", task.with("id", self.id.as_str()));
        let Some(vm) = &self.vm else {
            return tree.with("vmm", "the task has no VM yet");
        };
        let guest = match &vm.told.guest {
            None => "is not asked, as the VM does not run".into(),
            Some(Err(NoReport::Ours(sentence))) => plain(sentence).into(),
            Some(Err(NoReport::Guests(sentence))) => Value::guest(sentence),
            Some(Ok(instances)) => Value::from(self.guest(instances)),
        };
        tree.with("vmm", vm.inspect()).with("guest", guest)
    }
}

impl OwnState {
    fn processes(&self) -> impl Iterator<Item = &ProcessView> {
        std::iter::once(&self.init).chain(self.execs.iter().map(|(_, exec)| exec))
    }
}

impl Inspect for OwnState {
    fn inspect(&self) -> Node {
        let execs = self.execs.iter().fold(Node::new(), |execs, (id, exec)| {
            execs.with(id, exec.inspect())
        });
        Node::new()
            .with("init", self.init.inspect())
            .with("execs", execs)
            .with("vm", flow_words(self.flow))
    }
}

impl Inspect for VmView {
    /// The VMM's own words, and beside them what the host knows of the VMM.
    fn inspect(&self) -> Node {
        let mut node = match &self.told.vmm {
            Ok(state) => plain_tree(state),
            Err(error) => Node::new().with("state", plain(error)),
        };
        for (name, process) in [("process", &self.vmm), ("file_server", &self.file_server)] {
            if let Some(process) = process {
                node.set(name, process.inspect());
            }
        }
        node
    }
}

fn flow_words(flow: Flow) -> &'static str {
    match flow {
        Flow::Running => "runs",
        Flow::Pausing => "is being paused",
        Flow::Paused => "is paused",
        Flow::Resuming => "is being resumed",
    }
}

/// A tree of the VMM's, for a terminal.
fn plain_tree(node: &Node) -> Node {
    node.iter().fold(Node::new(), |plainer, (name, value)| {
        let value = match value {
            Value::Text(text) => plain(text).into(),
            Value::Node(node) => plain_tree(node).into(),
            Value::Flag(_) | Value::Number(_) => value.clone(),
        };
        plainer.with(plain(name), value)
    })
}
