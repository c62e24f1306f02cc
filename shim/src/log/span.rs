//! The task that a line is about, for lines that do not name it: a span, which follows a request into tasks of the
//! runtime and onto threads.

use tokio::task::JoinHandle;
use tracing::{Instrument as _, Span};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::{Fields, TASK_ID};

/// The span of what is done for a task.
pub(crate) fn span_of(task_id: &str) -> Span {
    tracing::info_span!("task", task_id)
}

/// Spawns a task of the runtime, whose lines are about the same task as the caller's.
pub(crate) fn spawn_in_span<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    tokio::spawn(work.in_current_span())
}

/// Work for another thread, whose lines are about the same task as the caller's.
pub(crate) fn in_span<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let span = Span::current();
    move || span.in_scope(work)
}

/// Keeps of a span's fields the task's id.
#[derive(Debug)]
pub(super) struct TaskOfSpan;

impl<'writer> FormatFields<'writer> for TaskOfSpan {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        recorded: R,
    ) -> std::fmt::Result {
        let mut fields = Fields::default();
        recorded.record(&mut fields);
        match fields.take(TASK_ID) {
            Some(task_id) => writer.write_str(&task_id),
            None => Ok(()),
        }
    }
}

/// The task of the innermost span around an event that names one.
pub(super) fn task_around<S, N>(context: &FmtContext<'_, S, N>) -> Option<String>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let mut spans = context.event_scope()?;
    spans.find_map(|span| {
        let extensions = span.extensions();
        let task_id = &extensions.get::<FormattedFields<N>>()?.fields;
        (!task_id.is_empty()).then(|| task_id.clone())
    })
}
