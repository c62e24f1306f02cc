//! The requests that are being worked on, whether or not anybody still waits for the answer.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use wasmvm_protocol::inspect::{Inspect, Node};

/// A request that is being worked on, as diagnostics name it.
#[derive(Debug)]
pub(super) struct Request {
    method: &'static str,
    task: String,
    exec: String,
    since: Instant,
}

impl Request {
    /// A request that begins now; `exec` is empty for a request about init.
    #[must_use]
    pub(super) fn new(method: &'static str, task: &str, exec: &str) -> Self {
        Self {
            method,
            task: task.to_owned(),
            exec: exec.to_owned(),
            since: Instant::now(),
        }
    }

    /// The id of the task that the request is about.
    #[must_use]
    pub(super) fn task(&self) -> &str {
        &self.task
    }
}

/// Prints a request as in "Delete of exec a has taken 2.5 s".
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, exec, .. } = self;
        let of = if exec.is_empty() { "" } else { " of exec " };
        let seconds = self.since.elapsed().as_secs_f64();
        write!(f, "{method}{of}{exec} has taken {seconds:.1} s")
    }
}

impl Inspect for Request {
    fn inspect(&self) -> Node {
        let mut node = Node::new().with("method", self.method);
        if !self.exec.is_empty() {
            node.set("exec", self.exec.as_str());
        }
        let ms = self.since.elapsed().as_millis();
        node.with("ms", u64::try_from(ms).unwrap_or(u64::MAX))
    }
}

/// All requests that are being worked on, the oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Requests(Arc<Mutex<Vec<Arc<Request>>>>);

impl Requests {
    /// Lists a request as long as the result lives.
    #[must_use]
    pub(super) fn begin(&self, request: Request) -> RequestEntry {
        let request = Arc::new(request);
        self.lock().push(request.clone());
        RequestEntry {
            requests: self.clone(),
            request,
        }
    }

    /// The requests that have not come to their end.
    #[must_use]
    pub(super) fn list(&self) -> Vec<Arc<Request>> {
        self.lock().clone()
    }

    /// The list is whole after every statement, so a panic elsewhere has not broken it.
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Request>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is listed.
#[derive(Debug)]
pub(super) struct RequestEntry {
    requests: Requests,
    request: Arc<Request>,
}

impl Drop for RequestEntry {
    fn drop(&mut self) {
        let ours = |listed: &Arc<Request>| Arc::ptr_eq(listed, &self.request);
        self.requests.lock().retain(|listed| !ours(listed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_listed_until_its_end() {
        let requests = Requests::default();
        let first = requests.begin(Request::new("Start", "web", "sh"));
        let second = requests.begin(Request::new("Delete", "web", ""));
        let words = || -> Vec<String> { requests.list().iter().map(ToString::to_string).collect() };
        assert!(words()[0].starts_with("Start of exec sh has taken 0."));
        assert!(words()[1].starts_with("Delete has taken 0."));
        drop(first);
        assert_eq!(words().len(), 1);
        drop(second);
        assert_eq!(words().len(), 0);
    }
}
