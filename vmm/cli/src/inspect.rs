//! `wasmvm inspect`: the live state of a task, asked of its shim.
//!
//! The shim's socket is found by what the shim itself has written: the journal of the task
//! (`/run/wasmvm/tasks/NAMESPACE/ID/journal`) begins with the bundle, and the bundle has the socket's address. Both
//! are root's.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::runtime::Builder;
use tokio::time::timeout;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;
use wasmvm_protocol::error_chain;
use wasmvm_protocol::inspect::Value;
use wasmvm_protocol::inspect_service::{InspectClient, InspectRequest};

/// Directory with the state of all tasks.
const TASKS: &str = "/run/wasmvm/tasks";
/// Longest first line of a journal, and longest address, bytes.
const LINE_BYTES_MAX: u64 = 8 << 10;
/// How long the shim may take; it answers within one second unless it is stuck.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Exit status when there is nothing to show.
const FAILED: u8 = 1;

/// The question that a command line asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    namespace: String,
    json: bool,
    id: String,
    path: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum InspectError {
    /// There is no state of such a task.
    #[error(
        "no task {id:?} runs in namespace {namespace:?}; `ctr -n {namespace} task ls` lists the tasks"
    )]
    NoTask { namespace: String, id: String },
    /// An id or a namespace that cannot be a directory's name.
    #[error(
        "{what} is {name:?}; it has letters, digits, dashes, underscores and dots, and begins with no dot"
    )]
    Name { what: &'static str, name: String },
    /// A file of the task cannot be read.
    #[error("cannot read {}{}", .0.display(), for_root(.1))]
    File(PathBuf, #[source] io::Error),
    /// A file of the task has other content than the shim writes.
    #[error("{} does not say {what}", .path.display())]
    Content { path: PathBuf, what: &'static str },
    /// The shim does not listen.
    #[error(
        "cannot connect to the shim at {}{}; `ctr -n {namespace} task delete {id}` removes what a dead one has left",
        .socket.display(), for_root(.source)
    )]
    Connect {
        socket: PathBuf,
        namespace: String,
        id: String,
        #[source]
        source: io::Error,
    },
    /// The shim is stuck.
    #[error(
        "the shim of task {0:?} does not answer within {ANSWER_MAX:?}; SIGUSR1 to the parent of the task's pid makes the shim log its state"
    )]
    Late(String),
    /// The shim refuses; holds its sentence.
    #[error("{0}")]
    Refused(String),
    /// The shim was started by a version that tells nothing.
    #[error("the shim of task {0:?} is of a version without `wasmvm inspect`; start the task anew")]
    Old(String),
    /// The shim's answer does not arrive.
    #[error("cannot ask the shim of task {0:?}")]
    Ask(String, #[source] ttrpc::Error),
    /// The shim's answer is not JSON.
    #[error("the shim's answer cannot be read")]
    Answer(#[source] serde_json::Error),
    /// No runtime to ask by.
    #[error("cannot make an event loop")]
    Runtime(#[source] io::Error),
}

impl Question {
    /// Reads the words behind `inspect`; `None` when they are no question.
    pub(crate) fn of(words: &[&str]) -> Option<Self> {
        let mut question = Self {
            namespace: "default".to_owned(),
            json: false,
            id: String::new(),
            path: String::new(),
        };
        let (mut words, mut names) = (words.iter(), Vec::new());
        while let Some(word) = words.next() {
            match *word {
                "--json" => question.json = true,
                "--namespace" | "-n" => question.namespace = (*words.next()?).to_owned(),
                option if option.starts_with('-') => return None,
                name => names.push(name),
            }
        }
        let (id, path) = match names.as_slice() {
            [id] if !id.is_empty() => (*id, ""),
            [id, path] if !id.is_empty() => (*id, *path),
            _ => return None,
        };
        (question.id, question.path) = (id.to_owned(), path.to_owned());
        Some(question)
    }

    fn answer(&self) -> Result<Value, InspectError> {
        self.ask_within(self.socket(Path::new(TASKS))?)
    }

    fn ask_within(&self, socket: PathBuf) -> Result<Value, InspectError> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(InspectError::Runtime)?;
        let asked = runtime.block_on(async { timeout(ANSWER_MAX, self.ask(socket)).await });
        asked.map_err(|_| InspectError::Late(self.id.clone()))?
    }

    async fn ask(&self, socket: PathBuf) -> Result<Value, InspectError> {
        let stream = UnixStream::connect(&socket).await;
        let stream = stream.map_err(|source| InspectError::Connect {
            socket,
            namespace: self.namespace.clone(),
            id: self.id.clone(),
            source,
        })?;
        let client = InspectClient::new(Client::new(Socket::from(stream)));
        let request = InspectRequest {
            id: self.id.clone(),
            path: self.path.clone(),
            ..Default::default()
        };
        match client.inspect(context::Context::default(), &request).await {
            Ok(answer) => serde_json::from_slice(&answer.value).map_err(InspectError::Answer),
            // ttrpc's answer for a service that nobody has registered.
            Err(ttrpc::Error::RpcStatus(status))
                if status.message().ends_with("service does not exist") =>
            {
                Err(InspectError::Old(self.id.clone()))
            }
            Err(ttrpc::Error::RpcStatus(status)) => {
                Err(InspectError::Refused(status.message().to_owned()))
            }
            Err(error) => Err(InspectError::Ask(self.id.clone(), error)),
        }
    }

    /// The path of the shim's socket.
    fn socket(&self, tasks: &Path) -> Result<PathBuf, InspectError> {
        for (what, name) in [("the namespace", &self.namespace), ("the id", &self.id)] {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if !name.chars().all(allowed) || name.starts_with('.') {
                let name = name.clone();
                return Err(InspectError::Name { what, name });
            }
        }
        let journal = tasks.join(&self.namespace).join(&self.id).join("journal");
        let line = first_line(&journal).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => InspectError::NoTask {
                namespace: self.namespace.clone(),
                id: self.id.clone(),
            },
            _ => InspectError::File(journal.clone(), error),
        })?;
        let step: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let Some(bundle) = step["bundle"]["path"].as_str() else {
            let what = "which bundle the task has";
            return Err(InspectError::Content {
                path: journal,
                what,
            });
        };
        let path = Path::new(bundle).join("address");
        let address = first_line(&path).map_err(|error| InspectError::File(path.clone(), error))?;
        match address.trim().strip_prefix("unix://") {
            Some(socket) => Ok(PathBuf::from(socket)),
            None => {
                let what = "where the shim listens";
                Err(InspectError::Content { path, what })
            }
        }
    }
}

fn for_root(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (`wasmvm inspect` is for root)",
        _ => "",
    }
}

fn first_line(path: &Path) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(File::open(path)?.take(LINE_BYTES_MAX)).read_line(&mut line)?;
    Ok(line)
}

/// Writes the answer to `out`; returns the exit status.
///
/// # Errors
/// `out`'s, when the answer cannot be written.
pub(crate) fn run(question: &Question, out: &mut impl Write) -> io::Result<ExitCode> {
    let value = match question.answer() {
        Ok(value) => value,
        Err(error) => {
            eprintln!("wasmvm: {}", error_chain(&error));
            return Ok(ExitCode::from(FAILED));
        }
    };
    if question.json {
        serde_json::to_writer_pretty(&mut *out, &value)?;
        writeln!(out)?;
    } else {
        write!(out, "{value}")?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_question_is_read_in_any_order_of_its_options() {
        let question = |words: &str| Question::of(&words.split(' ').collect::<Vec<_>>());
        let expected = Question {
            namespace: "k8s.io".into(),
            json: true,
            id: "web".into(),
            path: "vmm/devices".into(),
        };
        for words in [
            "--json --namespace k8s.io web vmm/devices",
            "-n k8s.io --json web vmm/devices",
            "web vmm/devices --json -n k8s.io",
        ] {
            assert_eq!(question(words).as_ref(), Some(&expected), "{words}");
        }
        let plain = question("web").unwrap();
        assert_eq!((plain.namespace.as_str(), plain.json), ("default", false));
        for words in ["", "--json", "-n web", "web a b", "--yaml web", "web -n"] {
            assert_eq!(question(words), None, "{words}");
        }
    }

    #[test]
    fn the_socket_is_found_by_journal_and_bundle() {
        let dir = tempfile::tempdir().unwrap();
        let question = Question::of(&["web"]).unwrap();
        let asked = || {
            question
                .socket(dir.path())
                .map_err(|error| error_chain(&error))
        };
        assert_eq!(
            asked().unwrap_err(),
            "no task \"web\" runs in namespace \"default\"; `ctr -n default task ls` lists the tasks"
        );
        let task = dir.path().join("default/web");
        fs::create_dir_all(&task).unwrap();
        let step = serde_json::json!({ "bundle": { "path": dir.path() } });
        fs::write(task.join("journal"), format!("{step}\n{{\"released\"")).unwrap();
        assert!(asked().unwrap_err().starts_with("cannot read /"));
        fs::write(dir.path().join("address"), "unix:///run/containerd/s/1\n").unwrap();
        assert_eq!(asked().unwrap(), Path::new("/run/containerd/s/1"));
        fs::write(task.join("journal"), "\"released\"\n").unwrap();
        assert!(
            asked()
                .unwrap_err()
                .ends_with("does not say which bundle the task has")
        );
    }

    #[test]
    fn a_name_is_never_a_path() {
        for id in ["..", "../web", "a/b", "a\u{1b}[2J"] {
            let refused = Question::of(&[id]).unwrap().socket(Path::new("/"));
            assert!(matches!(refused, Err(InspectError::Name { .. })), "{id}");
        }
    }

    #[test]
    fn a_shim_that_does_not_answer_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let question = Question::of(&["web"]).unwrap();
        let late = question.ask_within(path).unwrap_err().to_string();
        assert!(
            late.starts_with("the shim of task \"web\" does not answer within 2s; "),
            "{late}"
        );
    }
}
