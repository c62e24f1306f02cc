//! One request of the Container Runtime Interface: gRPC over containerd's socket.
//!
//! Each has a connection of its own, so none has to notice that containerd was started again.

use std::time::Duration;

use h2::RecvStream;
use http::HeaderMap;
use protobuf::Message;
use tokio::net::UnixStream;

use crate::containerd;
use crate::ctr::COMMAND_MAX;

/// gRPC's frame: whether it is compressed (never here), then the message's length.
const FRAME_HEAD_BYTES: usize = 5;
/// Beyond what a request itself waits for.
const ANSWER_MAX: Duration = COMMAND_MAX;

/// A request without its answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// containerd said no.
    #[error("{method}: {message} (code {code})")]
    Refused {
        /// Of the request.
        method: &'static str,
        /// gRPC's status code.
        code: u32,
        /// The sentence.
        message: String,
    },
    /// containerd said nothing.
    #[error("{method}: no answer: {reason}")]
    Broken {
        /// Of the request.
        method: &'static str,
        /// How the connection failed.
        reason: String,
    },
}

impl CallError {
    /// Fails the test unless containerd refused, with all of `parts` in its sentence.
    ///
    /// # Panics
    /// With the error.
    #[track_caller]
    pub fn expect_refusal(&self, parts: &[&str]) {
        let Self::Refused { message, .. } = self else {
            panic!("{self}");
        };
        for part in parts {
            assert!(message.contains(part), "no {part:?} in: {self}");
        }
    }
}

/// Sends a request, named as `Service/Method`, to the containerd in use.
///
/// # Errors
/// containerd's refusal, or that it does not answer.
///
/// # Panics
/// When the answer is not of this type.
pub fn call<Answer: Message>(
    method: &'static str,
    request: &impl Message,
) -> Result<Answer, CallError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let frame = frame(request);
    let answer = runtime.block_on(async {
        let answer = tokio::time::timeout(ANSWER_MAX, exchange(method, frame));
        let late = |_| broken(method, &format!("after {ANSWER_MAX:?}"));
        answer.await.map_err(late)?
    })?;
    let message = answer.get(FRAME_HEAD_BYTES..).expect("a whole frame");
    Ok(Answer::parse_from_bytes(message).expect("an answer to this request"))
}

fn frame(request: &impl Message) -> Vec<u8> {
    let message = request.write_to_bytes().expect("it can be written");
    let length = u32::try_from(message.len()).expect("a short message");
    let mut frame = vec![0];
    frame.extend(length.to_be_bytes());
    frame.extend(message);
    frame
}

async fn exchange(method: &'static str, frame: Vec<u8>) -> Result<Vec<u8>, CallError> {
    let stream = UnixStream::connect(containerd::address())
        .await
        .map_err(|error| broken(method, &error))?;
    let lost = |error| broken(method, &error);
    let (client, connection) = h2::client::handshake(stream).await.map_err(lost)?;
    // Ends with the runtime. Its errors are the request's too.
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://localhost/runtime.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a request");
    let mut client = client.ready().await.map_err(lost)?;
    let (answer, mut body) = client.send_request(request, false).map_err(lost)?;
    body.send_data(frame.into(), true).map_err(lost)?;
    let (head, mut body) = answer.await.map_err(lost)?.into_parts();
    let bytes = read(&mut body).await.map_err(lost)?;
    let trailers = body.trailers().await.map_err(lost)?;
    // An answer that is only a refusal has it in its head.
    refusal(method, &trailers.unwrap_or(head.headers)).map_or(Ok(bytes), Err)
}

async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(block) = body.data().await {
        let block = block?;
        bytes.extend_from_slice(&block);
        body.flow_control().release_capacity(block.len())?;
    }
    Ok(bytes)
}

fn refusal(method: &'static str, trailers: &HeaderMap) -> Option<CallError> {
    let text = |name| trailers.get(name)?.to_str().ok();
    let Some(code) = text("grpc-status") else {
        return Some(broken(method, &format!("no status in {trailers:?}")));
    };
    let code = code.parse().unwrap_or(u32::MAX);
    let message = unescaped(text("grpc-message").unwrap_or_default());
    (code != 0).then_some(CallError::Refused {
        method,
        code,
        message,
    })
}

/// gRPC writes bytes of a sentence that are not printable ASCII as `%XX`.
fn unescaped(text: &str) -> String {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let byte = piece
            .get(..2)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(&piece.as_bytes()[2..]);
            }
            None => bytes.extend([b"%", piece.as_bytes()].concat()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn broken(method: &'static str, reason: &impl ToString) -> CallError {
    CallError::Broken {
        method,
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::messages::StopContainerRequest;

    #[test]
    fn a_frame_has_the_length_of_its_message() {
        let request = StopContainerRequest {
            container_id: "abc".into(),
            ..Default::default()
        };
        assert_eq!(frame(&request), b"\0\0\0\0\x05\x0a\x03abc");
    }

    #[test]
    fn a_refusal_is_read_from_the_trailers() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "5".parse().expect("a value"));
        trailers.insert(
            "grpc-message",
            "no %E2%80%9Cx%E2%80%9D: 5%25%0A".parse().expect("a value"),
        );
        let error = refusal("RuntimeService/Status", &trailers).expect("refused");
        let said = "RuntimeService/Status: no \u{201c}x\u{201d}: 5%\n (code 5)";
        assert_eq!(error.to_string(), said);
        error.expect_refusal(&["no \u{201c}x"]);
    }

    #[test]
    fn status_0_is_no_refusal() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("a value"));
        assert!(refusal("RuntimeService/Status", &trailers).is_none());
    }
}
