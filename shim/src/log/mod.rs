//! The daemon's log: lines into the bundle's `log` FIFO, which containerd copies to its own log.
//!
//! ```text
//! guest's console ─► VMM ┐
//!                 VMM ───┴► tracing ──► LogFifo (non-blocking) ──► <bundle>/log ──► containerd's standard error
//! ```
//!
//! Every line has a time and the task, as `time="2026-01-01T00:00:00.000000Z" level=info task_id="web" msg="…"`,
//! so that containerd's log, in which all of them end up, can be searched for one task. Words of a guest, of a
//! hook or of an image stand in quotes and escaped: none begins a line, a field or another task's name.
//!
//! A log never stops the shim: when containerd does not read, what does not fit into the FIFO is
//! dropped. It is opened for reading too, so that a restart of containerd is no error.

mod span;

use self::span::{TaskOfSpan, task_around};
pub(crate) use self::span::{in_span, span_of, spawn_in_span};

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// Longest line with its end, bytes. What is written at once into a pipe is never mixed with what other
/// shims write up to this length (`PIPE_BUF`, pipe(7)).
const LINE_BYTES_MAX: usize = 4096;
/// Name of the field with the id of the task that a line or a span is about.
const TASK_ID: &str = "task_id";
/// The FIFO that containerd creates in every bundle.
const LOG_FIFO: &str = "log";

/// Where lines go; nowhere when there is no FIFO.
#[derive(Clone, Debug)]
struct LogFifo(Option<Arc<File>>);

impl LogFifo {
    fn open(bundle: &Path) -> Self {
        let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags.bits().cast_signed())
            .open(bundle.join(LOG_FIFO));
        Self(file.ok().map(Arc::new))
    }
}

impl Write for LogFifo {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(mut file) = self.0.as_deref() {
            // Full: the line is lost, the task is not.
            let _ = file.write(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFifo {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// containerd's own form, as far as an operator searches for it.
#[derive(Debug)]
struct TaskLine {
    task_id: String,
}

impl<S, N> FormatEvent<S, N> for TaskLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let task_id = fields.take(TASK_ID).or_else(|| task_around(context));
        let message = fields.take("message");
        let mut line = Line::default();
        line.quoted("time", &time);
        line.bare("level", level);
        line.quoted(TASK_ID, task_id.as_deref().unwrap_or(&self.task_id));
        if let Some(message) = message {
            line.quoted("msg", &message);
        }
        for (name, value) in fields.0 {
            match value {
                Value::Text(text) => line.quoted(name, &text),
                Value::Number(number) => line.bare(name, &number),
            }
        }
        writeln!(writer, "{}", line.0)
    }
}

/// The value of a log event's field, as the field is printed.
#[derive(Debug)]
enum Value {
    /// A text, perhaps the guest's, which is quoted and escaped.
    Text(String),
    /// A number or a boolean, which needs no quotes.
    Number(String),
}

/// The fields of an event, in their order.
#[derive(Debug, Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn number(&mut self, field: &Field, value: impl fmt::Display) {
        let number = Value::Number(value.to_string());
        self.0.push((field.name(), number));
    }

    fn text(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let mut text = Bounded::default();
        // Stops where a line could not hold more.
        let _ = text.write_fmt(value);
        self.0.push((field.name(), Value::Text(text.0)));
    }

    /// Takes a field out; `None` when it is not there.
    fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(known, _)| *known == name)?;
        let (Value::Text(text) | Value::Number(text)) = self.0.remove(index).1;
        Some(text)
    }
}

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.number(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.number(field, value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.number(field, value);
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.number(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.number(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format_args!("{value:?}"));
    }
}

/// Takes as much text as a line can hold.
#[derive(Debug, Default)]
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LINE_BYTES_MAX.saturating_sub(self.0.len());
        let end = text.floor_char_boundary(room.min(text.len()));
        self.0.push_str(&text[..end]);
        if end < text.len() {
            return Err(fmt::Error);
        }
        Ok(())
    }
}

/// A line in the making, without its end; never longer than [`LINE_BYTES_MAX`] with it.
#[derive(Debug, Default)]
struct Line(String);

impl Line {
    /// A value that is ours or a number.
    fn bare(&mut self, name: &str, value: &str) {
        if self.room() > name.len() + value.len() + 2 {
            self.begin(name);
            self.0.push_str(value);
        }
    }

    /// A value that may be anybody's words: in quotes, its own quotes and all that does not print
    /// escaped, so that it ends where it says, and cut where the line is full.
    fn quoted(&mut self, name: &str, value: &str) {
        const END: &str = "…\"";
        if self.room() < name.len() + 3 + END.len() {
            return;
        }
        self.begin(name);
        self.0.push('"');
        for c in value.chars() {
            let escaped = match c {
                '\'' => c.to_string(),
                c => c.escape_debug().to_string(),
            };
            if self.room() < escaped.len() + END.len() {
                self.0.push_str(END);
                return;
            }
            self.0.push_str(&escaped);
        }
        self.0.push('"');
    }

    fn begin(&mut self, name: &str) {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        self.0.push_str(name);
        self.0.push('=');
    }

    /// Bytes that may follow, the end of the line taken off.
    fn room(&self) -> usize {
        LINE_BYTES_MAX.saturating_sub(self.0.len() + 1)
    }
}

/// Sends every `tracing` line of this process, and the message of a panic, to the bundle's FIFO. Lines outside of every
/// span ([`span_of`]) are about `task_id`.
pub(crate) fn init(bundle: &Path, task_id: &str, debug: bool) {
    let level = if debug { Level::DEBUG } else { Level::INFO };
    let subscriber = tracing_subscriber::fmt()
        .with_writer(LogFifo::open(bundle))
        .with_max_level(level)
        .with_ansi(false)
        .fmt_fields(TaskOfSpan)
        .event_format(TaskLine {
            task_id: task_id.to_owned(),
        })
        .finish();
    // Only fails when called twice; the first one stays.
    let _ = tracing::subscriber::set_global_default(subscriber);
    std::panic::set_hook(Box::new(
        |panic| tracing::error!(%panic, "the shim panicked"),
    ));
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use tracing::Instrument as _;

    #[test]
    fn lines_reach_the_fifo_and_a_full_one_blocks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join(LOG_FIFO),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let log = LogFifo::open(dir.path());
        let mut first = [0; 6];
        log.make_writer().write_all(b"first\n").unwrap();
        log.0.as_deref().unwrap().read_exact(&mut first).unwrap();
        assert_eq!(&first, b"first\n");
        for _ in 0..1000 {
            log.make_writer().write_all(&[b'x'; 1024]).unwrap();
        }
    }

    /// What is logged by a shim of the task "web".
    fn logged(log: impl FnOnce()) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        tracing::subscriber::with_default(subscriber_of("web", &path), log);
        std::fs::read_to_string(path).unwrap()
    }

    fn subscriber_of(task_id: &str, path: &Path) -> impl Subscriber + Send + Sync + use<> {
        tracing_subscriber::fmt()
            .with_writer(Arc::new(File::create(path).unwrap()))
            .with_ansi(false)
            .fmt_fields(TaskOfSpan)
            .event_format(TaskLine {
                task_id: task_id.into(),
            })
            .finish()
    }

    #[test]
    fn every_line_names_its_task_once() {
        let text = logged(|| {
            tracing::info!(vm = "web (compiler)", "vmm: {}", "hello");
            tracing::warn!(task_id = "db", pid = 7_u32, "gone");
            tracing::error!(task_id = %"db", error = %io::Error::other("no"), in_order = true, "left");
        });
        let after_time = |line: &str| -> String {
            let rest = line.strip_prefix("time=\"20").unwrap();
            rest.split_once("Z\" ").unwrap().1.to_owned()
        };
        let lines: Vec<_> = text.lines().map(after_time).collect();
        let expected = [
            "level=info task_id=\"web\" msg=\"vmm: hello\" vm=\"web (compiler)\"",
            "level=warning task_id=\"db\" msg=\"gone\" pid=7",
            "level=error task_id=\"db\" msg=\"left\" error=\"no\" in_order=true",
        ];
        assert_eq!(lines, expected);
    }

    /// A shim has the lines of all containers of a pod.
    #[tokio::test]
    async fn a_line_is_about_the_task_that_it_is_logged_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        let _log = tracing::subscriber::set_default(subscriber_of("pod", &path));
        let work = async {
            tracing::info!("request");
            let spawned = spawn_in_span(async { tracing::info!("spawned") });
            spawned.await.unwrap();
            tracing::info_span!("other", n = 1).in_scope(|| tracing::info!("within"));
            tracing::info!(task_id = "db", "named");
            let log = tracing::dispatcher::get_default(Clone::clone);
            let thread = in_span(|| tracing::info!("thread"));
            let thread = move || tracing::dispatcher::with_default(&log, thread);
            std::thread::spawn(thread).join().unwrap();
        };
        work.instrument(span_of("web")).await;
        tracing::info!("shim");
        let text = std::fs::read_to_string(path).unwrap();
        let about: Vec<_> = text
            .lines()
            .map(|line| {
                line.split('"')
                    .skip(3)
                    .step_by(2)
                    .take(2)
                    .collect::<Vec<_>>()
            })
            .collect();
        let expected = [
            ["web", "request"],
            ["web", "spawned"],
            ["web", "within"],
            ["db", "named"],
            ["web", "thread"],
            ["pod", "shim"],
        ];
        assert_eq!(about, expected);
    }

    #[test]
    fn nobody_s_words_are_another_task_s_line() {
        let forged = "x\" task_id=\"db\" msg=\"look: \ntime=\"2026\" task_id=\"db\" \u{1b}[2J\u{2028}\u{202e}\\";
        let text = logged(|| {
            tracing::info!("vmm: guest: {forged}");
            tracing::info!(error = forged, "refused");
            tracing::info!(error = %forged, "refused");
            tracing::info!(error = ?forged, "refused");
        });
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(!text.contains("task_id=\"db\""), "{text}");
        assert_eq!(text.matches("task_id=\"web\"").count(), 4, "{text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
        assert!(!text.contains(['\u{2028}', '\u{202e}']), "{text}");
    }

    #[test]
    fn a_long_line_is_cut_and_whole_at_its_end() {
        for (word, fields) in [("a", 1), ("\"", 1), ("é", 1), ("\u{1}", 1), ("a", 300)] {
            let words = word.repeat(3 * LINE_BYTES_MAX);
            let text = logged(|| match fields {
                1 => tracing::info!("{words}"),
                _ => tracing::info!(a = words, b = words, c = 1, "short"),
            });
            assert!(text.len() <= LINE_BYTES_MAX, "{}", text.len());
            assert!(text.len() > LINE_BYTES_MAX - 20, "{}", text.len());
            assert!(text.ends_with("…\"\n"), "{text}");
            assert!(text.contains("task_id=\"web\""), "{text}");
            // Every quote but those of time, task, message and field is escaped.
            let quotes = text.replace("\\\"", "").matches('"').count();
            assert_eq!(quotes % 2, 0, "{text}");
        }
    }

    #[test]
    fn a_bundle_without_a_fifo_is_silent() {
        let dir = tempfile::tempdir().unwrap();
        let log = LogFifo::open(dir.path());
        log.make_writer().write_all(b"lost\n").unwrap();
    }
}
