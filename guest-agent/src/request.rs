//! The door: containerd's requests, parsed once into types.

use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use wasmvm_protocol::agent::containerd::api::{
    CreateTaskRequest, ExecProcessRequest, ResizePtyRequest, UpdateTaskRequest,
};
use wasmvm_protocol::agent::{CHANGE_TYPE_URL, Change, PROGRAM_TYPE_URL, Program};
use wasmvm_protocol::slot::SLOTS_MAX;
use wasmvm_protocol::stream::ID_BYTES_MAX;

use crate::instance_id::InstanceId;
use crate::terminal::WindowSize;
use crate::tree::TASK_DEVICES;

/// Largest umask: all permission bits.
const UMASK_MAX: u32 = 0o777;

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// An id of length 0 or beyond [`ID_BYTES_MAX`].
    #[error("{field} id of {bytes} bytes; allowed are 1 to {ID_BYTES_MAX}")]
    IdLength {
        /// The id's field: `task` or `exec`.
        field: &'static str,
        /// The refused length, bytes.
        bytes: usize,
    },
    /// No message of ours at all.
    #[error("the request carries no {wanted} in its {field}")]
    Absent {
        /// The message's field: `options`, `spec` or `resources`.
        field: &'static str,
        /// Type URL of the message that belongs there.
        wanted: &'static str,
    },
    /// A message of a type we do not know.
    #[error("the request carries {found:?} in its {field}, not {wanted}")]
    Type {
        /// The message's field: `options`, `spec` or `resources`.
        field: &'static str,
        /// Type URL of the message that belongs there.
        wanted: &'static str,
        /// Type URL of the message that is there.
        found: String,
    },
    /// A message that cannot be decoded.
    #[error("{wanted} cannot be decoded: {source}")]
    Decode {
        /// Type URL of the message.
        wanted: &'static str,
        /// The error of the protobuf decoder.
        #[source]
        source: protobuf::Error,
    },
    /// A program without a name.
    #[error("args is empty")]
    NoArgs,
    /// A string that cannot reach a program.
    #[error("{field} {value:?} contains a zero byte")]
    ZeroByte {
        /// The program's field: `args` or `env`.
        field: &'static str,
        /// The value that was refused.
        value: String,
    },
    /// An environment entry without a name.
    #[error("env entry {0:?} is not of the form KEY=value")]
    Env(String),
    /// A mask of modes that has other bits.
    #[error("umask {0:o} is not between 0 and 777")]
    Umask(u32),
    /// A path that is not one.
    #[error("{field} {value:?} is not an absolute path without `..`")]
    Path {
        /// The program's field: `cwd`, `devices` or `masked_paths`.
        field: &'static str,
        /// The value that was refused.
        value: String,
    },
    /// A device that the guest does not give.
    #[error("the guest has no device {0:?} for a program")]
    Device(String),
    /// A stream that is not named by a token.
    #[error("{field} {value:?} is not a stream's token")]
    Token {
        /// The request's field: `stdin`, `stdout` or `stderr`.
        field: &'static str,
        /// The value that was refused.
        value: String,
    },
    /// A slot that no VM has.
    #[error("there is no slot {slot}; they are numbered 0 to {last}", slot = .0, last = SLOTS_MAX - 1)]
    Slot(u32),
    /// A terminal that cannot be so large.
    #[error("a terminal cannot have {columns} columns and {rows} rows; 65535 is the most of each")]
    WindowSize {
        /// The wanted width, characters.
        columns: u32,
        /// The wanted height, characters.
        rows: u32,
    },
    /// Checkpoints are not the agent's.
    #[error("restoring a checkpoint is not offered")]
    Checkpoint,
}

/// A program to load: a task's init, or an exec.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// The instance that the program becomes.
    pub id: InstanceId,
    /// The program to load.
    pub program: Program,
    /// Whether the program gets a terminal; then it has no stderr of its own.
    pub terminal: bool,
    /// Tokens of stdin, stdout and stderr; `None` is no stream.
    pub stdio: [Option<u64>; 3],
}

impl LoadRequest {
    /// Checks everything of a Create that can be checked without touching the guest.
    ///
    /// # Errors
    /// [`RequestError`], naming the field and its value.
    pub fn create(request: &CreateTaskRequest) -> Result<Self, RequestError> {
        if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
            return Err(RequestError::Checkpoint);
        }
        Ok(Self {
            id: InstanceId {
                task: id("task", &request.id)?,
                exec: String::new(),
            },
            program: program("options", &request.options)?,
            terminal: request.terminal,
            stdio: tokens(&request.stdin, &request.stdout, &request.stderr)?,
        })
    }

    /// Checks everything of an Exec that can be checked without touching the guest.
    ///
    /// # Errors
    /// [`RequestError`], naming the field and its value.
    pub fn exec(request: &ExecProcessRequest) -> Result<Self, RequestError> {
        Ok(Self {
            id: InstanceId {
                task: id("task", &request.id)?,
                exec: id("exec", &request.exec_id)?,
            },
            program: program("spec", &request.spec)?,
            terminal: request.terminal,
            stdio: tokens(&request.stdin, &request.stdout, &request.stderr)?,
        })
    }
}

/// The change that an Update asks for.
///
/// # Errors
/// [`RequestError`], naming what is wrong.
pub fn change(request: &UpdateTaskRequest) -> Result<Change, RequestError> {
    message("resources", CHANGE_TYPE_URL, &request.resources)
}

/// The size that a `ResizePty` asks for.
///
/// # Errors
/// [`RequestError::WindowSize`].
pub fn window_size(request: &ResizePtyRequest) -> Result<WindowSize, RequestError> {
    match (request.width.try_into(), request.height.try_into()) {
        (Ok(columns), Ok(rows)) => Ok(WindowSize { columns, rows }),
        _ => Err(RequestError::WindowSize {
            columns: request.width,
            rows: request.height,
        }),
    }
}

fn id(field: &'static str, id: &str) -> Result<String, RequestError> {
    match id.len() {
        1..=ID_BYTES_MAX => Ok(id.to_owned()),
        bytes => Err(RequestError::IdLength { field, bytes }),
    }
}

fn message<M: Message>(
    field: &'static str,
    wanted: &'static str,
    any: &MessageField<Any>,
) -> Result<M, RequestError> {
    let any = any.as_ref().ok_or(RequestError::Absent { field, wanted })?;
    if any.type_url != wanted {
        let found = any.type_url.clone();
        return Err(RequestError::Type {
            field,
            wanted,
            found,
        });
    }
    M::parse_from_bytes(&any.value).map_err(|source| RequestError::Decode { wanted, source })
}

fn program(field: &'static str, any: &MessageField<Any>) -> Result<Program, RequestError> {
    let program = message(field, PROGRAM_TYPE_URL, any)?;
    check(&program)?;
    Ok(program)
}

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
    if program.slot >= SLOTS_MAX {
        return Err(RequestError::Slot(program.slot));
    }
    if !program.cwd.is_empty() {
        path("cwd", &program.cwd)?;
    }
    for mount in &program.devices {
        path("devices", &mount.destination)?;
        if !TASK_DEVICES.iter().any(|(name, ..)| *name == mount.device) {
            return Err(RequestError::Device(mount.device.clone()));
        }
    }
    if let Some(umask) = program.umask.filter(|umask| *umask > UMASK_MAX) {
        return Err(RequestError::Umask(umask));
    }
    for value in &program.masked_paths {
        path("masked_paths", value)?;
    }
    Ok(())
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

fn tokens(stdin: &str, stdout: &str, stderr: &str) -> Result<[Option<u64>; 3], RequestError> {
    Ok([
        token("stdin", stdin)?,
        token("stdout", stdout)?,
        token("stderr", stderr)?,
    ])
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
    use proptest::prelude::{any as anything, *};
    use wasmvm_protocol::agent::DeviceMount;

    fn any(type_url: &str, message: &impl Message) -> MessageField<Any> {
        let mut any = Any::new();
        any.type_url = type_url.into();
        any.value = message.write_to_bytes().unwrap();
        MessageField::some(any)
    }

    fn program_of_a_task() -> Program {
        let mut program = Program::new();
        program.args = vec!["hello.wasm".into()];
        program.env = vec!["A=b=c".into()];
        program.cwd = "/work".into();
        program
    }

    fn request(edit: impl FnOnce(&mut CreateTaskRequest, &mut Program)) -> CreateTaskRequest {
        let mut program = program_of_a_task();
        let mut request = CreateTaskRequest::new();
        request.id = "web".into();
        request.stdout = "7".into();
        edit(&mut request, &mut program);
        request.options = any(PROGRAM_TYPE_URL, &program);
        request
    }

    fn refusal(edit: impl FnOnce(&mut CreateTaskRequest, &mut Program)) -> String {
        LoadRequest::create(&request(edit)).unwrap_err().to_string()
    }

    #[test]
    fn a_whole_create() {
        let parsed = LoadRequest::create(&request(|_, _| {})).unwrap();
        assert_eq!(parsed.id.to_string(), "task \"web\"");
        assert_eq!(parsed.stdio, [None, Some(7), None]);
        assert_eq!(parsed.program.args, ["hello.wasm"]);
        assert!(!parsed.terminal);
    }

    #[test]
    fn a_whole_exec() {
        let mut exec = ExecProcessRequest::new();
        exec.id = "web".into();
        exec.exec_id = "sh".into();
        exec.terminal = true;
        exec.stdin = "1".into();
        exec.spec = any(PROGRAM_TYPE_URL, &program_of_a_task());
        let parsed = LoadRequest::exec(&exec).unwrap();
        assert_eq!(parsed.id.to_string(), "exec \"sh\" of task \"web\"");
        assert!(parsed.terminal);
        exec.exec_id.clear();
        let error = LoadRequest::exec(&exec).unwrap_err().to_string();
        assert_eq!(error, "exec id of 0 bytes; allowed are 1 to 76");
    }

    #[test]
    fn refusals_name_the_field() {
        assert_eq!(refusal(|_, program| program.args.clear()), "args is empty");
        assert!(refusal(|request, _| request.id = String::new()).contains("0 bytes"));
        assert!(refusal(|request, _| request.id = "x".repeat(77)).contains("77 bytes"));
        assert!(refusal(|request, _| request.stdin = "fifo".into()).contains("stdin \"fifo\""));
        assert!(refusal(|_, program| program.env.push("=x".into())).contains("\"=x\""));
        assert!(refusal(|_, program| program.args.push("a\0".into())).contains("zero byte"));
        assert!(refusal(|_, program| program.cwd = "work".into()).contains("cwd \"work\""));
        let device = |device: &str, destination: &str| DeviceMount {
            device: device.into(),
            destination: destination.into(),
            ..Default::default()
        };
        let mount = device("null", "/a/../b");
        assert!(refusal(|_, program| program.devices.push(mount)).contains("devices \"/a/../b\""));
        let mount = device("kmsg", "/a");
        assert!(refusal(|_, program| program.devices.push(mount)).contains("no device \"kmsg\""));
        assert!(
            refusal(|_, program| program.masked_paths.push("proc".into())).contains("masked_paths")
        );
        let umask = refusal(|_, program| program.umask = Some(0o1022));
        assert_eq!(umask, "umask 1022 is not between 0 and 777");
        assert_eq!(
            refusal(|_, program| program.slot = 16),
            "there is no slot 16; they are numbered 0 to 15"
        );
    }

    #[test]
    fn options_of_another_type_are_refused() {
        let mut other = request(|_, _| {});
        other.options.as_mut().unwrap().type_url = "x".into();
        let error = LoadRequest::create(&other).unwrap_err().to_string();
        let expected = "the request carries \"x\" in its options, not wasmvm.agent.v1.Program";
        assert_eq!(error, expected);
        other.options = MessageField::none();
        let error = LoadRequest::create(&other).unwrap_err().to_string();
        let expected = "the request carries no wasmvm.agent.v1.Program in its options";
        assert_eq!(error, expected);
    }

    #[test]
    fn changes_and_sizes() {
        let mut update = UpdateTaskRequest::new();
        assert!(change(&update).is_err());
        let mut wanted = Change::new();
        wanted.memory_bytes_max = Some(5);
        update.resources = any(CHANGE_TYPE_URL, &wanted);
        assert_eq!(change(&update).unwrap().memory_bytes_max, Some(5));
        let mut resize = ResizePtyRequest::new();
        (resize.width, resize.height) = (80, 24);
        let (columns, rows) = (80, 24);
        assert_eq!(window_size(&resize).unwrap(), WindowSize { columns, rows });
        resize.height = 65536;
        assert!(window_size(&resize).is_err());
    }

    /// Strings at which a check turns, and any others.
    fn text() -> impl Strategy<Value = String> {
        const EDGES: [&str; 10] = [
            "",
            "A=b",
            "=",
            "/",
            "/a/../b",
            "/..",
            "a\0",
            "7",
            "18446744073709551616",
            "null",
        ];
        prop_oneof![
            prop::sample::select(&EDGES[..]).prop_map(str::to_owned),
            anything::<String>()
        ]
    }

    fn texts() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec(text(), 0..4)
    }

    prop_compose! {
        fn any_program()(
            args in texts(), env in texts(), masked_paths in texts(), cwd in text(),
            devices in prop::collection::vec((text(), text()), 0..3),
            umask in prop::option::of(anything::<u32>()), slot in prop_oneof![0..SLOTS_MAX + 2, anything::<u32>()],
        ) -> Program {
            let devices = devices.into_iter().map(|(device, destination)| DeviceMount {
                device, destination, ..Default::default()
            });
            Program {
                args, env, masked_paths, cwd, umask, slot,
                devices: devices.collect(),
                ..Default::default()
            }
        }
    }

    /// A program's bytes, some of them changed; or any bytes.
    fn encoded() -> impl Strategy<Value = Vec<u8>> {
        let change = (anything::<prop::sample::Index>(), anything::<u8>());
        let changed = (any_program(), prop::option::of(change)).prop_map(|(program, change)| {
            let mut bytes = program.write_to_bytes().unwrap();
            if let Some((at, byte)) = change.filter(|_| !bytes.is_empty()) {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        });
        prop_oneof![3 => changed, 1 => prop::collection::vec(anything::<u8>(), 0..200)]
    }

    fn is_plain(path: &str) -> bool {
        path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == "..")
    }

    /// What a request must be for the agent to act on it.
    fn expect_sound(request: &LoadRequest) {
        let LoadRequest { id, program, .. } = request;
        assert!((1..=ID_BYTES_MAX).contains(&id.task.len()) && id.exec.len() <= ID_BYTES_MAX);
        assert!(!program.args.is_empty());
        assert!(
            ![&program.args, &program.env]
                .iter()
                .any(|all| all.concat().contains('\0'))
        );
        assert!(
            program
                .env
                .iter()
                .all(|entry| entry.find('=').is_some_and(|at| at > 0))
        );
        assert!(program.slot < SLOTS_MAX && program.umask.is_none_or(|umask| umask <= 0o777));
        let destinations = program.devices.iter().map(|mount| &mount.destination);
        let mut paths = destinations.chain(&program.masked_paths);
        assert!(
            paths.all(|path| is_plain(path)) && (program.cwd.is_empty() || is_plain(&program.cwd))
        );
        let known = |name: &str| TASK_DEVICES.iter().any(|(device, ..)| *device == name);
        assert!(program.devices.iter().all(|mount| known(&mount.device)));
    }

    proptest! {
        #[test]
        fn any_request_is_sound_or_refused(
            value in encoded(), type_url in prop_oneof![3 => Just(PROGRAM_TYPE_URL.to_owned()), 1 => text()],
            id in text(), exec_id in text(), stdio in prop::array::uniform3(text()),
        ) {
            let any = Any { type_url, value, ..Default::default() };
            let [stdin, stdout, stderr] = stdio;
            let create = CreateTaskRequest {
                id: id.clone(), stdin: stdin.clone(), stdout: stdout.clone(), stderr: stderr.clone(),
                options: MessageField::some(any.clone()),
                ..Default::default()
            };
            let exec = ExecProcessRequest {
                id, exec_id, stdin, stdout, stderr,
                spec: MessageField::some(any.clone()),
                ..Default::default()
            };
            for request in [LoadRequest::create(&create), LoadRequest::exec(&exec)] {
                match request {
                    Ok(request) => expect_sound(&request),
                    Err(refused) => prop_assert!(!refused.to_string().is_empty()),
                }
            }
            let update = UpdateTaskRequest { resources: MessageField::some(any), ..Default::default() };
            let _changed_or_refused = change(&update);
        }

        /// As ttrpc hands them over: whatever it is, it is decoded or it is not.
        #[test]
        fn any_bytes_of_a_request_are_sound_or_refused(bytes in prop::collection::vec(anything::<u8>(), 0..300)) {
            if let Ok(create) = CreateTaskRequest::parse_from_bytes(&bytes)
                && let Ok(request) = LoadRequest::create(&create)
            {
                expect_sound(&request);
            }
            if let Ok(resize) = ResizePtyRequest::parse_from_bytes(&bytes) {
                let fits = resize.width <= 0xffff && resize.height <= 0xffff;
                prop_assert_eq!(window_size(&resize).is_ok(), fits);
            }
        }
    }
}
