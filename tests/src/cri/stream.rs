//! The streams of an exec or an attach: a WebSocket to containerd's streaming server.
//!
//! Each message is a channel's number and its bytes (k8s.io/apimachinery, pkg/util/remotecommand): the channels of
//! `v4.channel.k8s.io`, to which `v5` adds that a channel may end.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use tungstenite::{ClientRequestBuilder, Message, WebSocket};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// A message of `v5`: the channel in the next byte ends.
const CLOSE: u8 = 255;
const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";

/// How long what is waited for may take to come, under emulation and with a compile before it.
const COME_MAX: Duration = Duration::from_secs(120);

/// An open exec or attach.
#[derive(Debug)]
pub struct Stream {
    socket: WebSocket<TcpStream>,
    /// The server knows the end of a channel.
    has_close: bool,
    said: Ended,
    /// Bytes of standard output that [`Stream::expect`] has passed.
    passed: usize,
}

/// What a program has said on an ended stream.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// Standard output; on a terminal, all there is.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// What the server says about the end: a `Status` of Kubernetes as JSON.
    pub verdict: Vec<u8>,
}

impl Stream {
    /// Connects to the URL that CRI has answered.
    ///
    /// # Panics
    /// When that is refused.
    #[must_use]
    #[track_caller]
    pub(super) fn open(url: &str) -> Self {
        let (_, rest) = url.split_once("://").expect("a URL");
        let (host, _) = rest.split_once('/').expect("a URL with a path");
        let connection = TcpStream::connect(host).expect("the streaming server listens");
        let uri = format!("ws://{rest}").parse().expect("a URL");
        let request = ClientRequestBuilder::new(uri)
            .with_sub_protocol(V5)
            .with_sub_protocol(V4);
        let (socket, answer) = tungstenite::client(request, connection)
            .unwrap_or_else(|error| panic!("{url}: {error}"));
        let protocol = answer.headers().get("sec-websocket-protocol");
        Self {
            has_close: protocol.is_some_and(|protocol| protocol == V5),
            socket,
            said: Ended::default(),
            passed: 0,
        }
    }

    /// Gives the program input, or types it.
    ///
    /// # Panics
    /// When the stream is gone.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        self.send(STDIN, bytes);
    }

    /// Ends the program's input; false when the server has no word for it (before `v5`).
    ///
    /// # Panics
    /// When the stream is gone.
    #[track_caller]
    pub fn close_stdin(&mut self) -> bool {
        if self.has_close {
            self.send(CLOSE, &[STDIN]);
        }
        self.has_close
    }

    /// Gives the terminal this size.
    ///
    /// # Panics
    /// When the stream is gone.
    #[track_caller]
    pub fn resize(&mut self, columns: u16, rows: u16) {
        let size = serde_json::json!({ "Width": columns, "Height": rows });
        self.send(RESIZE, size.to_string().as_bytes());
    }

    #[track_caller]
    fn send(&mut self, channel: u8, bytes: &[u8]) {
        let message = [&[channel], bytes].concat();
        let sent = self.socket.send(Message::binary(message));
        sent.expect("the server takes it");
    }

    /// Waits until standard output has the text, and passes it.
    ///
    /// # Panics
    /// With what came instead, when it takes too long or the stream ends.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let start = Instant::now();
        loop {
            let rest = &self.said.stdout[self.passed..];
            let mut places = rest.windows(text.len());
            if let Some(at) = places.position(|bytes| bytes == text.as_bytes()) {
                self.passed += at + text.len();
                return;
            }
            let more = self.read(start);
            assert!(more, "{text:?} does not follow: {}", self.said);
        }
    }

    /// Reads to the end.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    #[track_caller]
    pub fn end(mut self) -> Ended {
        let start = Instant::now();
        while self.read(start) {}
        let late = start.elapsed() > COME_MAX;
        assert!(!late, "no end of the stream: {}", self.said);
        self.said
    }

    /// Goes away, as a client does that is killed.
    pub fn hang_up(self) {
        drop(self);
    }

    /// One message; false at the end, or when it takes too long.
    fn read(&mut self, start: Instant) -> bool {
        let left = COME_MAX.saturating_sub(start.elapsed());
        let waits = self.socket.get_ref().set_read_timeout(Some(left));
        let (Ok(()), Ok(message)) = (waits, self.socket.read()) else {
            return false;
        };
        let bytes = match &message {
            Message::Binary(bytes) => &bytes[..],
            Message::Text(text) => text.as_bytes(),
            Message::Close(_) => return false,
            _ => return true,
        };
        match bytes.split_first() {
            Some((&STDOUT, output)) => self.said.stdout.extend(output),
            Some((&STDERR, output)) => self.said.stderr.extend(output),
            Some((&ERROR, verdict)) => self.said.verdict.extend(verdict),
            _ => {}
        }
        true
    }
}

impl Ended {
    /// The program's exit code.
    ///
    /// # Panics
    /// When the server says none.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> i32 {
        let verdict: serde_json::Value =
            serde_json::from_slice(&self.verdict).unwrap_or_else(|error| panic!("{error}: {self}"));
        if verdict["status"] == "Success" {
            return 0;
        }
        let causes = verdict["details"]["causes"].as_array();
        causes
            .into_iter()
            .flatten()
            .find(|cause| cause["reason"] == "ExitCode")
            .and_then(|cause| cause["message"].as_str()?.parse().ok())
            .unwrap_or_else(|| panic!("no exit code: {self}"))
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn error(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = String::from_utf8_lossy(&self.verdict);
        let (text, error) = (self.text(), self.error());
        write!(f, "stdout {text:?}, stderr {error:?}, end {verdict:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_read_from_the_verdict() {
        let ended = |verdict: &str| Ended {
            verdict: verdict.into(),
            ..Default::default()
        };
        let success = r#"{"metadata":{},"status":"Success"}"#;
        assert_eq!(ended(success).status(), 0);
        let failure = r#"{"metadata":{},"status":"Failure","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
        assert_eq!(ended(failure).status(), 3);
    }
}
