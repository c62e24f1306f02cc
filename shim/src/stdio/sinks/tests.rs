//! Log files, and loggers that are shell scripts.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::error::{Coded as _, ErrorCode, chain};

const OWNER: StdioOwner<'static> = StdioOwner {
    namespace: "ns",
    id: "web",
};

fn names(stdout: &str, stderr: &str) -> StdioNames {
    StdioNames {
        stdout: stdout.to_owned(),
        stderr: stderr.to_owned(),
        ..Default::default()
    }
}

fn script(dir: &Path, body: &str) -> PathBuf {
    let path = dir.join("logger");
    fs::write(&path, format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

async fn write(fifo: Option<OutputFifo>, text: &str) {
    fifo.unwrap()
        .writer
        .write_all(text.as_bytes())
        .await
        .unwrap();
}

#[tokio::test]
async fn both_outputs_are_appended_to_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b c/log");
    let name = format!("file://{}", path.display()).replace(' ', "%20");
    for round in ["1", "2"] {
        let mut outputs = Outputs::open(&names(&name, &name), &OWNER).await.unwrap();
        write(outputs.stdout, &format!("out{round} ")).await;
        drop(outputs.stderr);
        outputs.sinks.finish(soon()).await;
        let mut outputs = Outputs::open(&names(&name, &name), &OWNER).await.unwrap();
        write(outputs.stderr, &format!("err{round} ")).await;
        drop(outputs.stdout);
        outputs.sinks.finish(soon()).await;
    }
    assert_eq!(fs::read_to_string(path).unwrap(), "out1 err1 out2 err2 ");
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_named() {
    let error = Outputs::open(&names("file:///proc/none/log", ""), &OWNER).await;
    let error = error.unwrap_err();
    assert!(error.to_string().contains("/proc/none/log"), "{error}");
}

#[tokio::test]
async fn a_logger_reads_both_outputs_and_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let body = format!(
        "exec 5>&-\n{{ echo \"$# $1 $2\"; env | sort | grep CONT; cat <&3; cat <&4; ls -l /proc/$$/fd | grep -cF $(readlink /proc/$$/fd/4); }} >{0}.tmp\n\
         sleep 0.2; mv {0}.tmp {0}",
        log.display()
    );
    let name = format!(
        "binary://{}?key=a+value",
        script(dir.path(), &body).display()
    );
    let mut outputs = Outputs::open(&names(&name, &name), &OWNER).await.unwrap();
    write(outputs.stdout, "out\n").await;
    write(outputs.stderr, "err\n").await;
    outputs.sinks.finish(soon()).await;
    let text = fs::read_to_string(log).unwrap();
    let golden = "2 key a value\nCONTAINER_ID=web\nCONTAINER_NAMESPACE=ns\nout\nerr\n1\n";
    assert_eq!(text, golden);
}

#[tokio::test]
async fn a_terminals_logger_has_one_output() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let body = format!("echo >&5; cat <&3 >{}; cat <&4 >&2", log.display());
    let name = format!("binary-v2://{}", script(dir.path(), &body).display());
    let mut outputs = Outputs::open(&names(&name, ""), &OWNER).await.unwrap();
    assert!(outputs.stderr.is_none());
    write(outputs.stdout, "out").await;
    outputs.sinks.finish(soon()).await;
    assert_eq!(fs::read_to_string(log).unwrap(), "out");
}

#[tokio::test]
async fn a_logger_that_goes_on_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    for trap in ["", "trap '' TERM\n"] {
        let body = format!(
            "{trap}echo $$ >{}\nexec 5>&-\nexec sleep 300",
            pid.display()
        );
        let name = format!("binary://{}", script(dir.path(), &body).display());
        let mut outputs = Outputs::open(&names(&name, &name), &OWNER).await.unwrap();
        let pid = fs::read_to_string(&pid).unwrap();
        let process = Path::new("/proc").join(pid.trim());
        assert!(process.exists());
        outputs.sinks.finish(Instant::now()).await;
        assert!(!process.exists());
    }
}

#[tokio::test]
async fn a_fifo_named_as_a_log_file_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let name = format!("file://{}", fifo.display());
    let error = Outputs::open(&names(&name, ""), &OWNER).await.unwrap_err();
    assert!(chain(&error).contains("No such device"), "{error}");
    // One that is read is a file like any other.
    let reader = crate::stdio::open_reader(&fifo);
    let mut outputs = Outputs::open(&names(&name, ""), &OWNER).await.unwrap();
    write(outputs.stdout, "out").await;
    outputs.sinks.finish(soon()).await;
    drop(reader);
}

#[tokio::test]
async fn a_dropped_logger_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let body = format!("echo $$ >{}\nexec 5>&-\nexec sleep 300", pid.display());
    let name = format!("binary://{}", script(dir.path(), &body).display());
    drop(Outputs::open(&names(&name, &name), &OWNER).await.unwrap());
    let pid = fs::read_to_string(&pid).unwrap();
    // Reaped by the runtime.
    let reaped = async {
        while Path::new("/proc").join(pid.trim()).exists() {
            tokio::task::yield_now().await;
        }
    };
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, reaped).await.expect("ended");
}

#[tokio::test]
async fn a_logger_that_cannot_be_is_named() {
    let name = "binary:///nonexistent/logger";
    let error = Outputs::open(&names(name, name), &OWNER).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound);
    let text = chain(&error);
    assert!(
        text.starts_with("cannot run the logger /nonexistent/logger: No such"),
        "{text}"
    );
    let dir = tempfile::tempdir().unwrap();
    let name = format!("binary-v2://{}", script(dir.path(), "exit 0").display());
    let error = Outputs::open(&names(&name, ""), &OWNER).await.unwrap_err();
    assert!(
        chain(&error).ends_with("it ended before it was ready"),
        "{error}"
    );
    let error = Outputs::open(&names("binary:///a", "file:///b"), &OWNER).await;
    assert_eq!(error.unwrap_err().code(), ErrorCode::InvalidArgument);
}
