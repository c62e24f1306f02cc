//! The daemon's log: lines into the bundle's `log` FIFO, which containerd copies to its own log.
//!
//! ```text
//! guest's console ─► VMM ┐
//!                 VMM ───┴► tracing ──► LogFifo (non-blocking) ──► <bundle>/log ──► containerd's standard error
//! ```
//!
//! Every line has a time and the task, as `time="2026-01-01T00:00:00.000000Z" level=info task_id=web …`, so
//! that containerd's log, in which all of them end up, can be searched for one task.
//!
//! A log never stops the shim: when containerd does not read, what does not fit into the FIFO is
//! dropped. It is opened for reading too, so that a restart of containerd is no error.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

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
    ) -> std::fmt::Result {
        let metadata = event.metadata();
        writer.write_str("time=\"")?;
        SystemTime.format_time(&mut writer)?;
        let level = match *metadata.level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        write!(writer, "\" level={level} ")?;
        if metadata.fields().field("task_id").is_none() {
            write!(writer, "task_id=\"{}\" ", self.task_id)?;
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Sends every `tracing` line of this process, and the message of a panic, to the bundle's FIFO. `task_id`
/// is what lines are about that name no other.
pub fn init(bundle: &Path, task_id: &str, debug: bool) {
    let level = if debug { Level::DEBUG } else { Level::INFO };
    let subscriber = tracing_subscriber::fmt()
        .with_writer(LogFifo::open(bundle))
        .with_max_level(level)
        .with_ansi(false)
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

    #[test]
    fn every_line_names_its_task_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        let subscriber = tracing_subscriber::fmt()
            .with_writer(Arc::new(File::create(&path).unwrap()))
            .with_ansi(false)
            .event_format(TaskLine {
                task_id: "web".into(),
            })
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(vm = "web (compiler)", "vmm: {}", "hello");
            tracing::warn!(task_id = "db", "gone");
        });
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<_> = text
            .lines()
            .map(|line| {
                line.strip_prefix("time=\"20")
                    .unwrap()
                    .split_once("Z\" ")
                    .unwrap()
                    .1
            })
            .collect();
        assert_eq!(
            lines,
            [
                "level=info task_id=\"web\" vmm: hello vm=\"web (compiler)\"",
                "level=warning gone task_id=\"db\"",
            ]
        );
    }

    #[test]
    fn a_bundle_without_a_fifo_is_silent() {
        let dir = tempfile::tempdir().unwrap();
        let log = LogFifo::open(dir.path());
        log.make_writer().write_all(b"lost\n").unwrap();
    }
}
