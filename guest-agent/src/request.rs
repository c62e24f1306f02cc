//! The door: containerd's Create request, parsed once into types.

use protobuf::Message;
use wasmvm_protocol::agent::containerd::api::CreateTaskRequest;
use wasmvm_protocol::agent::{PROGRAM_TYPE_URL, Program};
use wasmvm_protocol::stream::{ID_BYTES_MAX, StdioFd};

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// An id of length 0 or beyond [`ID_BYTES_MAX`].
    #[error("task id of {0} bytes; allowed are 1 to {ID_BYTES_MAX}")]
    IdLength(usize),
    /// No options at all.
    #[error("Create carries no {PROGRAM_TYPE_URL} in its options")]
    NoProgram,
    /// Options of a type we do not know.
    #[error("Create carries options of type {0:?}, not {PROGRAM_TYPE_URL}")]
    ProgramType(String),
    /// Options that cannot be decoded.
    #[error("the program cannot be decoded: {0}")]
    Program(#[source] protobuf::Error),
    /// A program without a name.
    #[error("args is empty")]
    NoArgs,
    /// A string that cannot reach a program.
    #[error("{field} {value:?} contains a zero byte")]
    ZeroByte {
        /// `args`, `env` or `cwd`.
        field: &'static str,
        /// The refused value.
        value: String,
    },
    /// An environment entry without a name.
    #[error("env entry {0:?} is not of the form KEY=value")]
    Env(String),
    /// A path that is not one.
    #[error("{field} {value:?} is not an absolute path without `..`")]
    Path {
        /// `cwd` or `preopens`.
        field: &'static str,
        /// The refused value.
        value: String,
    },
    /// A stream that is not named by a token.
    #[error("{field} {value:?} is not a stream's token")]
    Token {
        /// `stdin`, `stdout` or `stderr`.
        field: &'static str,
        /// The refused value.
        value: String,
    },
    /// Terminals do not exist yet.
    #[error("a terminal is not offered")]
    Terminal,
    /// Checkpoints are not the agent's.
    #[error("restoring a checkpoint is not offered")]
    Checkpoint,
}

/// A program to create.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// The task's id.
    pub task: String,
    /// The program.
    pub program: Program,
    /// Tokens of stdin, stdout and stderr; `None` is the null device.
    pub stdio: [Option<u64>; 3],
}

impl CreateRequest {
    /// Checks everything that can be checked without touching the guest.
    ///
    /// # Errors
    /// [`RequestError`], naming the field and its value.
    pub fn parse(request: &CreateTaskRequest) -> Result<Self, RequestError> {
        let bytes = request.id.len();
        if bytes == 0 || bytes > ID_BYTES_MAX {
            return Err(RequestError::IdLength(bytes));
        }
        if request.terminal {
            return Err(RequestError::Terminal);
        }
        if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
            return Err(RequestError::Checkpoint);
        }
        let options = request.options.as_ref().ok_or(RequestError::NoProgram)?;
        if options.type_url != PROGRAM_TYPE_URL {
            return Err(RequestError::ProgramType(options.type_url.clone()));
        }
        let program = Program::parse_from_bytes(&options.value).map_err(RequestError::Program)?;
        check(&program)?;
        Ok(Self {
            task: request.id.clone(),
            program,
            stdio: [
                token("stdin", &request.stdin)?,
                token("stdout", &request.stdout)?,
                token("stderr", &request.stderr)?,
            ],
        })
    }
}

/// The descriptor of each position of [`CreateRequest::stdio`].
pub const STDIO: [StdioFd; 3] = [StdioFd::Stdin, StdioFd::Stdout, StdioFd::Stderr];

fn check(program: &Program) -> Result<(), RequestError> {
    if program.args.is_empty() {
        return Err(RequestError::NoArgs);
    }
    for (field, values) in [("args", &program.args), ("env", &program.env)] {
        if let Some(value) = values.iter().find(|value| value.contains('\0')) {
            let value = value.clone();
            return Err(RequestError::ZeroByte { field, value });
        }
    }
    if let Some(entry) = program
        .env
        .iter()
        .find(|entry| !matches!(entry.split_once('='), Some((key, _)) if !key.is_empty()))
    {
        return Err(RequestError::Env(entry.clone()));
    }
    if !program.cwd.is_empty() {
        path("cwd", &program.cwd)?;
    }
    program
        .preopens
        .iter()
        .try_for_each(|preopen| path("preopens", preopen))
}

fn path(field: &'static str, value: &str) -> Result<(), RequestError> {
    let plain = value.starts_with('/')
        && !value.contains('\0')
        && value.split('/').all(|part| part != "..");
    if plain {
        return Ok(());
    }
    let value = value.to_owned();
    Err(RequestError::Path { field, value })
}

fn token(field: &'static str, value: &str) -> Result<Option<u64>, RequestError> {
    if value.is_empty() {
        return Ok(None);
    }
    match value.parse() {
        Ok(token) => Ok(Some(token)),
        Err(_) => Err(RequestError::Token {
            field,
            value: value.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::MessageField;
    use protobuf::well_known_types::any::Any;

    fn request(edit: impl FnOnce(&mut CreateTaskRequest, &mut Program)) -> CreateTaskRequest {
        let mut program = Program::new();
        program.args = vec!["hello.wasm".into()];
        program.env = vec!["A=b=c".into()];
        program.cwd = "/work".into();
        let mut request = CreateTaskRequest::new();
        request.id = "web".into();
        request.stdout = "7".into();
        edit(&mut request, &mut program);
        let mut options = Any::new();
        options.type_url = PROGRAM_TYPE_URL.into();
        options.value = program.write_to_bytes().unwrap();
        request.options = MessageField::some(options);
        request
    }

    fn refusal(edit: impl FnOnce(&mut CreateTaskRequest, &mut Program)) -> String {
        CreateRequest::parse(&request(edit))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_whole_request() {
        let parsed = CreateRequest::parse(&request(|_, _| {})).unwrap();
        assert_eq!(parsed.task, "web");
        assert_eq!(parsed.stdio, [None, Some(7), None]);
        assert_eq!(parsed.program.args, ["hello.wasm"]);
    }

    #[test]
    fn refusals_name_the_field() {
        assert_eq!(refusal(|_, program| program.args.clear()), "args is empty");
        assert!(refusal(|request, _| request.id = String::new()).contains("0 bytes"));
        assert!(refusal(|request, _| request.id = "x".repeat(77)).contains("77 bytes"));
        assert!(refusal(|request, _| request.stdin = "fifo".into()).contains("stdin \"fifo\""));
        assert!(refusal(|request, _| request.terminal = true).contains("terminal"));
        assert!(refusal(|_, program| program.env.push("=x".into())).contains("\"=x\""));
        assert!(refusal(|_, program| program.args.push("a\0".into())).contains("zero byte"));
        assert!(refusal(|_, program| program.cwd = "work".into()).contains("cwd \"work\""));
        assert!(refusal(|_, program| program.preopens.push("/a/../b".into())).contains("preopens"));
    }

    #[test]
    fn options_of_another_type_are_refused() {
        let mut other = request(|_, _| {});
        other.options.as_mut().unwrap().type_url = "x".into();
        let error = CreateRequest::parse(&other).unwrap_err();
        assert!(matches!(error, RequestError::ProgramType(_)));
        other.options = MessageField::none();
        let error = CreateRequest::parse(&other).unwrap_err();
        assert!(matches!(error, RequestError::NoProgram));
    }
}
