//! The contract between the shim and the agent's Task service, as a sequence of calls with their codes and fields.
//!
//! Both sides run [`check`] in their tests: the guest agent against its service, the shim against the fake by which
//! the shim is tested.
//!
//! ```text
//! nothing ─► init and an exec are loaded ─► they run ─► the exec exits ─► init exits, and all execs with it ─► nothing
//! ```

use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use ttrpc::Code;
use ttrpc::context::{Context, with_timeout};

use crate::agent::containerd::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, Empty, ExecProcessRequest, KillRequest,
    PidsRequest, ResizePtyRequest, StartRequest, StatsRequest, UpdateTaskRequest, WaitRequest,
};
use crate::agent::containerd::shim_async::TaskClient;
use crate::agent::{
    CHANGE_TYPE_URL, Change, INSTANCE_TYPE_URL, Instance, PROGRAM_TYPE_URL, Program,
    USAGE_TYPE_URL, Usage,
};

const TASK: &str = "task";
const INIT: &str = "";
const EXEC: &str = "exec";
/// How long an answer may take, in nanoseconds: far longer than any takes, so that a hang is a failure.
const ANSWER_NS_MAX: i64 = 60_000_000_000;

const SIGINT: u32 = 2;
const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;
const SIGWINCH: u32 = 28;
/// Numbers that no signal has.
const NO_SIGNALS: [u32; 2] = [0, 65];

const INVALID: Code = Code::INVALID_ARGUMENT;
const NOT_FOUND: Code = Code::NOT_FOUND;
const EXISTS: Code = Code::ALREADY_EXISTS;
const WRONG_PHASE: Code = Code::FAILED_PRECONDITION;

/// Calls the service and compares what it answers.
///
/// The service has no instances. Slot 0 holds a program that runs until a signal ends it.
///
/// # Panics
/// At the first answer that breaks the contract.
pub async fn check(client: &TaskClient) {
    let task = Caller { client, task: TASK };
    task.without_init().await;
    task.loads().await;
    task.runs().await;
    task.ends_an_exec().await;
    task.ends_unstarted().await;
    task.ends_init().await;
    task.ends_all().await;
}

type Answer<T = ()> = Result<T, Code>;

/// The client of one task.
#[derive(Clone, Copy)]
struct Caller<'a> {
    client: &'a TaskClient,
    task: &'a str,
}

/// The parts of the sequence.
impl Caller<'_> {
    /// Nothing is found of an instance that is not there.
    async fn lacks(self, exec: &str) {
        assert_eq!(self.start(exec).await, Err(NOT_FOUND));
        assert_eq!(self.kill(exec, SIGTERM).await, Err(NOT_FOUND));
        assert_eq!(self.wait(exec).await, Err(NOT_FOUND));
        assert_eq!(self.resize(exec, 80).await, Err(NOT_FOUND));
        assert_eq!(self.delete(exec).await, Err(NOT_FOUND));
    }

    /// Without an init there is no task, before Create as after Delete.
    async fn without_init(self) {
        self.lacks(INIT).await;
        self.lacks(EXEC).await;
        assert_eq!(self.exec(EXEC).await, Err(NOT_FOUND));
        assert_eq!(self.update(change()).await, Err(NOT_FOUND));
        assert_eq!(self.oom_kills().await, Err(NOT_FOUND));
        assert_eq!(self.pids().await, Err(NOT_FOUND));
    }

    /// Create and Exec: an id is used once, and a request that is refused uses none.
    async fn loads(self) {
        let nameless = any(PROGRAM_TYPE_URL, &Program::new());
        for program in [MessageField::none(), change(), nameless] {
            assert_eq!(self.create(program).await, Err(INVALID));
        }
        assert_eq!(self.create(program()).await, Ok(()));
        assert_eq!(self.create(program()).await, Err(EXISTS));
        assert_eq!(self.exec("").await, Err(INVALID));
        assert_eq!(self.exec(EXEC).await, Ok(()));
        assert_eq!(self.exec(EXEC).await, Err(EXISTS));
        for exec in [INIT, EXEC] {
            assert_eq!(self.delete(exec).await, Err(WRONG_PHASE));
        }
        self.lacks("other").await;
        let other = Caller {
            task: "other",
            ..self
        };
        other.without_init().await;
    }

    /// Start once, and what can be asked of programs that run.
    async fn runs(self) {
        let mut started = Vec::new();
        for exec in [INIT, EXEC] {
            let pid = self.start(exec).await;
            assert!(pid.is_ok_and(|pid| pid > 0), "{pid:?}");
            assert_eq!(self.start(exec).await, Err(WRONG_PHASE));
            assert_eq!(self.resize(exec, 80).await, Ok(()), "without a terminal");
            assert_eq!(self.resize(exec, 1 << 16).await, Err(INVALID));
            assert_eq!(self.kill(exec, SIGWINCH).await, Ok(()));
            for number in NO_SIGNALS {
                assert_eq!(self.kill(exec, number).await, Err(INVALID));
            }
            assert_eq!(self.delete(exec).await, Err(WRONG_PHASE));
            started.push((pid.unwrap_or_default(), exec.to_owned(), true));
        }
        assert_eq!(self.pids().await, Ok(started));
        assert_eq!(self.update(change()).await, Ok(()));
        assert_eq!(self.update(program()).await, Err(INVALID));
        assert_eq!(self.update(MessageField::none()).await, Err(INVALID));
        assert_eq!(self.oom_kills().await, Ok(0));
    }

    /// An exec that has exited is told again and again, until Delete; then its id is free.
    async fn ends_an_exec(self) {
        assert_eq!(self.kill(EXEC, SIGTERM).await, Ok(()));
        self.has_exited(EXEC, 143).await;
        let pids = self.pids().await.unwrap_or_default();
        let running = pids.iter().map(|(_, exec, runs)| (exec.as_str(), *runs));
        assert!(running.eq([(INIT, true), (EXEC, false)]), "{pids:?}");
        assert_eq!(self.delete(EXEC).await, Ok(()));
        self.lacks(EXEC).await;
        assert_eq!(self.exec(EXEC).await, Ok(()));
    }

    /// A signal ends an exec that was loaded and not started.
    async fn ends_unstarted(self) {
        assert_eq!(self.kill(EXEC, SIGKILL).await, Ok(()));
        self.has_exited(EXEC, 137).await;
        assert_eq!(self.delete(EXEC).await, Ok(()));
    }

    /// With init every exec ends; a SIGKILL that was asked for is no OOM-kill.
    async fn ends_init(self) {
        assert_eq!(self.exec(EXEC).await, Ok(()));
        assert_eq!(self.exec("ended").await, Ok(()));
        assert_eq!(self.kill("ended", SIGINT).await, Ok(()));
        assert_eq!(self.wait("ended").await, Ok(130));
        assert_eq!(self.kill(INIT, SIGKILL).await, Ok(()));
        self.has_exited(INIT, 137).await;
        self.has_exited(EXEC, 137).await;
        self.has_exited("ended", 130).await;
        assert_eq!(self.kill_all(SIGKILL).await, Err(NOT_FOUND));
        assert_eq!(self.oom_kills().await, Ok(0));
        assert_eq!(self.exec("late").await, Err(WRONG_PHASE));
        assert_eq!(self.create(program()).await, Err(EXISTS));
        for exec in ["ended", EXEC, INIT] {
            assert_eq!(self.delete(exec).await, Ok(()));
        }
        self.without_init().await;
    }

    /// A signal to all ends all that run, of a task whose id was used before.
    async fn ends_all(self) {
        assert_eq!(self.create(program()).await, Ok(()));
        for exec in [EXEC, "ended"] {
            assert_eq!(self.exec(exec).await, Ok(()));
        }
        assert_eq!(self.kill("ended", SIGKILL).await, Ok(()));
        assert_eq!(self.wait("ended").await, Ok(137));
        for exec in [INIT, EXEC] {
            assert!(self.start(exec).await.is_ok());
        }
        assert_eq!(self.kill_all(SIGINT).await, Ok(()));
        self.has_exited(INIT, 130).await;
        self.has_exited(EXEC, 130).await;
    }

    /// From the exit until Delete the status is told, and nothing else can be done.
    async fn has_exited(self, exec: &str, status: u32) {
        assert_eq!(self.wait(exec).await, Ok(status));
        assert_eq!(self.kill(exec, SIGKILL).await, Err(NOT_FOUND));
        assert_eq!(self.start(exec).await, Err(WRONG_PHASE));
        assert_eq!(self.resize(exec, 80).await, Err(WRONG_PHASE));
        assert_eq!(self.wait(exec).await, Ok(status));
    }
}

/// The calls, one for each method.
impl Caller<'_> {
    async fn create(self, options: MessageField<Any>) -> Answer {
        let request = CreateTaskRequest {
            id: self.task.to_owned(),
            options,
            ..Default::default()
        };
        let created = code(self.client.create(context(), &request).await)?;
        assert_eq!(created, CreateTaskResponse::new());
        Ok(())
    }

    async fn exec(self, exec: &str) -> Answer {
        let mut request = ExecProcessRequest {
            spec: program(),
            ..Default::default()
        };
        (request.id, request.exec_id) = self.names(exec);
        empty(self.client.exec(context(), &request).await)
    }

    async fn start(self, exec: &str) -> Answer<u32> {
        let mut request = StartRequest::new();
        (request.id, request.exec_id) = self.names(exec);
        Ok(code(self.client.start(context(), &request).await)?.pid)
    }

    async fn kill(self, exec: &str, signal: u32) -> Answer {
        let mut request = KillRequest {
            signal,
            ..Default::default()
        };
        (request.id, request.exec_id) = self.names(exec);
        empty(self.client.kill(context(), &request).await)
    }

    async fn kill_all(self, signal: u32) -> Answer {
        let request = KillRequest {
            id: self.task.to_owned(),
            signal,
            all: true,
            ..Default::default()
        };
        empty(self.client.kill(context(), &request).await)
    }

    async fn wait(self, exec: &str) -> Answer<u32> {
        let mut request = WaitRequest::new();
        (request.id, request.exec_id) = self.names(exec);
        Ok(code(self.client.wait(context(), &request).await)?.exit_status)
    }

    async fn delete(self, exec: &str) -> Answer {
        let mut request = DeleteRequest::new();
        (request.id, request.exec_id) = self.names(exec);
        code(self.client.delete(context(), &request).await).map(drop)
    }

    async fn resize(self, exec: &str, width: u32) -> Answer {
        let mut request = ResizePtyRequest {
            width,
            height: 24,
            ..Default::default()
        };
        (request.id, request.exec_id) = self.names(exec);
        empty(self.client.resize_pty(context(), &request).await)
    }

    async fn update(self, resources: MessageField<Any>) -> Answer {
        let request = UpdateTaskRequest {
            id: self.task.to_owned(),
            resources,
            ..Default::default()
        };
        empty(self.client.update(context(), &request).await)
    }

    async fn oom_kills(self) -> Answer<u64> {
        let request = StatsRequest {
            id: self.task.to_owned(),
            ..Default::default()
        };
        let answer = code(self.client.stats(context(), &request).await)?;
        Ok(message::<Usage>(USAGE_TYPE_URL, &answer.stats).oom_kills)
    }

    /// Pid and exec id of each instance, and whether it has threads; init first.
    async fn pids(self) -> Answer<Vec<(u32, String, bool)>> {
        let request = PidsRequest {
            id: self.task.to_owned(),
            ..Default::default()
        };
        let answer = code(self.client.pids(context(), &request).await)?;
        let instances = answer.processes.iter().map(|process| {
            let instance: Instance = message(INSTANCE_TYPE_URL, &process.info);
            if let Some(thread) = instance.threads.first() {
                assert_eq!(thread.id, process.pid);
            }
            (process.pid, instance.exec_id, !instance.threads.is_empty())
        });
        Ok(instances.collect())
    }

    fn names(self, exec: &str) -> (String, String) {
        (self.task.to_owned(), exec.to_owned())
    }
}

fn context() -> Context {
    with_timeout(ANSWER_NS_MAX)
}

fn code<T>(answer: ttrpc::Result<T>) -> Answer<T> {
    answer.map_err(|error| match error {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("not an answer: {other}"),
    })
}

fn empty(answer: ttrpc::Result<Empty>) -> Answer {
    code(answer).map(drop)
}

fn program() -> MessageField<Any> {
    let program = Program {
        args: vec!["loop.wasm".to_owned()],
        ..Default::default()
    };
    any(PROGRAM_TYPE_URL, &program)
}

fn change() -> MessageField<Any> {
    let change = Change {
        memory_bytes_max: Some(1 << 20),
        ..Default::default()
    };
    any(CHANGE_TYPE_URL, &change)
}

fn any(type_url: &str, message: &impl Message) -> MessageField<Any> {
    MessageField::some(Any {
        type_url: type_url.to_owned(),
        value: message.write_to_bytes().expect("a message of ours"),
        ..Default::default()
    })
}

fn message<M: Message>(type_url: &str, any: &Any) -> M {
    assert_eq!(any.type_url, type_url);
    M::parse_from_bytes(&any.value).expect("the message that its type says")
}
