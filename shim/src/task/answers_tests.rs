//! Every method answered by the guest with every status code, and with nothing at all: containerd hears
//! what the host has seen, signals end what they are sent to, limits are written.
//!
//! Time is virtual: what takes longer than it may is seen at once.

use std::time::Duration;

use protobuf::Enum as _;
use tokio::runtime::Handle;
use tokio::time::Instant;
use wasmvm_protocol::inspect::Inspect as _;

use super::fakes::{Answer, Scene, exec_order, order};
use super::*;
use crate::bundle::{Limit, Resources};
use crate::error::{Coded as _, ErrorCode};

const KILL: u32 = 9;
const TERM: u32 = 15;
const WINCH: u32 = 28;
/// From Kill until containerd hears of the exit.
const EXIT_MAX: Duration = Duration::from_secs(5);
/// How long a guest may take to tell what it does.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// Beyond every limit of the shim's, all together.
const HANG: Duration = Duration::from_secs(3600);
const METHODS: [&str; 10] = [
    "Create",
    "Exec",
    "Start",
    "Kill",
    "Wait",
    "Delete",
    "ResizePty",
    "Update",
    "Stats",
    "Pids",
];

/// Each status there is, and silence.
fn answers() -> Vec<Answer> {
    let codes = (1..=16).filter_map(ttrpc::Code::from_i32);
    codes
        .map(Answer::Refuses)
        .chain([Answer::Nothing])
        .collect()
}

/// A guest, the words for it when a test fails, and the task.
struct Case {
    what: String,
    scene: Scene,
}

impl Case {
    /// A task whose guest answers these methods so.
    fn new(methods: &[&str], answer: Answer) -> Self {
        let case = Self {
            what: format!("{methods:?} answered with {answer:?}"),
            scene: Scene::new(),
        };
        case.answer(methods, answer);
        case
    }

    fn answer(&self, methods: &[&str], answer: Answer) {
        for method in methods {
            self.scene.maker.guest.answer(method, answer);
        }
    }

    /// Waits for work that must come to an end.
    async fn done<T>(&self, step: &str, work: impl Future<Output = T>) -> T {
        let done = tokio::time::timeout(HANG, work).await;
        done.unwrap_or_else(|_| panic!("{}: {step} hangs", self.what))
    }

    async fn create(&self) -> Result<Arc<Task>, ErrorCode> {
        let created = self
            .done("Create", self.scene.tasks.create(order(true)))
            .await;
        created.map_err(|refusal| refusal.code)?;
        Ok(self.scene.tasks.get("t").unwrap())
    }

    async fn exec(&self, task: &Arc<Task>, id: &str) -> Result<Arc<Exec>, ErrorCode> {
        task.exec(exec_order(id, id))
            .map_err(|error| error.code())?;
        let exec = task.exec_of(id).unwrap();
        let started = self.done("Start", task.start_exec(&exec)).await;
        started.map(|_| exec).map_err(|error| error.code())
    }

    fn memory_max(&self) -> String {
        let path = self.scene.maker.workload().dir.path().join("memory.max");
        std::fs::read_to_string(path).unwrap()
    }

    /// No answer says of a running task that the task, or a part of the host, is not there.
    fn expect_honest(&self, step: &str, told: Result<(), ErrorCode>) {
        let honest = matches!(
            told,
            Ok(())
                | Err(ErrorCode::Internal
                    | ErrorCode::FailedPrecondition
                    | ErrorCode::DeadlineExceeded)
        );
        assert!(honest, "{}: {step} is told {told:?}", self.what);
    }

    /// Kills init and waits for its exit, which comes in time and with this status.
    async fn expect_end(&self, task: &Arc<Task>, signal: u32) {
        let asked = Instant::now();
        let kill = async {
            let killed = task.kill(signal, false).await;
            assert!(killed.is_ok(), "{}: Kill is told {killed:?}", self.what);
        };
        let exit = async { (task.wait().await.unwrap().status, asked.elapsed()) };
        let ((), (status, took)) = self
            .done("the end", async { tokio::join!(kill, exit) })
            .await;
        assert_eq!(status, 128 + signal, "{}", self.what);
        assert!(took <= EXIT_MAX, "{}: ended after {took:?}", self.what);
        let again = task.kill(signal, false).await.map_err(|error| error.code());
        assert_eq!(again, Err(ErrorCode::NotFound), "{}", self.what);
        self.done("Delete", self.scene.tasks.delete("t"))
            .await
            .unwrap();
        assert_eq!(
            self.scene
                .maker
                .workload()
                .destroyed
                .load(std::sync::atomic::Ordering::Relaxed),
            1
        );
    }
}

/// A runtime of its own, whose clock jumps when all wait.
fn run(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(work);
}

/// The sets of methods (each alone, all but Create and Start, all but these and Wait), with each answer.
fn guests() -> Vec<(Vec<&'static str>, Answer)> {
    let all = METHODS
        .iter()
        .copied()
        .filter(|name| *name != "Create" && *name != "Start");
    let mut sets: Vec<Vec<&str>> = METHODS.iter().map(|name| vec![*name]).collect();
    sets.push(all.clone().collect());
    sets.push(all.filter(|name| *name != "Wait").collect());
    let each = |set: Vec<&'static str>| {
        answers()
            .into_iter()
            .map(move |answer| (set.clone(), answer))
    };
    sets.into_iter().flat_map(each).collect()
}

async fn whole_life(methods: &[&str], answer: Answer, signal: u32, paused: bool) {
    let case = Case::new(methods, answer);
    let task = match case.create().await {
        Ok(task) => task,
        Err(code) => {
            assert_eq!(methods, ["Create"], "{}", case.what);
            let expected = match answer {
                Answer::Refuses(ttrpc::Code::INVALID_ARGUMENT) => ErrorCode::InvalidArgument,
                Answer::Refuses(ttrpc::Code::NOT_FOUND) => ErrorCode::NotFound,
                Answer::Refuses(_) => ErrorCode::Internal,
                Answer::Nothing => ErrorCode::DeadlineExceeded,
            };
            assert_eq!(code, expected, "{}", case.what);
            assert!(case.scene.events.words().is_empty() && case.scene.tasks.get("t").is_err());
            return;
        }
    };
    let started = case.done("Start", task.start()).await;
    case.expect_honest("Start", started.map(drop).map_err(|error| error.code()));
    // A guest that refuses Wait has ended its task: there is nobody left to ask.
    let runs = task.init.state() == State::Running && !methods.contains(&"Wait");
    if runs {
        let resized = case.done("ResizePty", task.resize(None, 80, 25)).await;
        case.expect_honest("ResizePty", resized.map_err(|error| error.code()));
        for mib in [32, 128] {
            let resources = Resources {
                memory: Some(Limit::At(mib << 20)),
                ..Resources::default()
            };
            let updated = case.done("Update", task.update(resources)).await;
            assert!(updated.is_ok(), "{}: {updated:?}", case.what);
            assert_eq!(case.memory_max(), (mib << 20).to_string(), "{}", case.what);
        }
        let told = case.done("Kill", task.kill(WINCH, false)).await;
        case.expect_honest("Kill", told.map_err(|error| error.code()));
        let shim = Handle::current();
        let looked = TaskView::of(&task, &shim, LOOK_MAX);
        let answered = Instant::now();
        let view = case.done("the look", looked).await;
        assert!(answered.elapsed() <= 2 * LOOK_MAX, "{}", case.what);
        let told = view.inspect();
        assert!(told.find("guest").is_some(), "{}: {told}", case.what);
    }
    if runs && paused {
        case.done("Pause", task.pause()).await.unwrap();
        if signal != KILL {
            task.kill(signal, false).await.unwrap();
            assert_eq!(task.init.state(), State::Running, "{}", case.what);
            let resumed = Instant::now();
            let resume = async { task.resume().await.unwrap() };
            let exit = async { (task.wait().await.unwrap().status, resumed.elapsed()) };
            let both = async { tokio::join!(resume, exit) };
            let ((), (status, took)) = case.done("Resume", both).await;
            assert_eq!(status, 128 + signal, "{}", case.what);
            assert!(
                took <= EXIT_MAX,
                "{}: ended {took:?} after Resume",
                case.what
            );
            return;
        }
    }
    if task.init.state().exit().is_none() && !*task.ending.borrow() {
        case.expect_end(&task, signal).await;
    }
}

#[test]
fn a_signal_that_ends_a_program_does_whatever_the_guest_answers() {
    for (methods, answer) in guests() {
        // The others have no part in what a pause keeps.
        let kill_or_more = methods.contains(&"Kill") || methods.contains(&"Update");
        let paused = [(KILL, true), (TERM, true)];
        let cases = [(KILL, false), (TERM, false)];
        for (signal, paused) in cases
            .into_iter()
            .chain(paused.into_iter().filter(|_| kill_or_more))
        {
            run(whole_life(&methods, answer, signal, paused));
        }
    }
}

#[test]
fn a_created_task_ends_whatever_the_guest_answers() {
    for answer in answers() {
        for signal in [KILL, TERM] {
            run(async {
                let case = Case::new(&["Kill", "Stats", "Start"], answer);
                let task = case.create().await.unwrap();
                case.expect_end(&task, signal).await;
            });
        }
    }
}

/// An exec in a guest that answers its methods so, and what becomes of it.
async fn exec_life(methods: &[&str], answer: Answer, signal: u32) {
    let case = Case::new(&[], answer);
    let task = case.create().await.unwrap();
    task.start().await.unwrap();
    case.answer(methods, answer);
    match case.exec(&task, "a").await {
        Ok(exec) => {
            let asked = Instant::now();
            let killed = case.done("Kill", task.kill_exec(&exec, signal)).await;
            match killed.map_err(|error| error.code()) {
                // It ended by itself: the guest refuses to wait for it.
                Err(ErrorCode::NotFound) => assert!(exec.report().state.exit().is_some()),
                told => {
                    assert_eq!(told, Ok(()), "{}", case.what);
                    let exit = case.done("the end", exec.wait()).await.unwrap();
                    let took = asked.elapsed();
                    assert_eq!(exit.status, 128 + signal, "{}", case.what);
                    assert!(took <= EXIT_MAX, "{}: ended after {took:?}", case.what);
                }
            }
            case.done("Delete", task.delete_exec(&exec)).await.unwrap();
        }
        Err(code) => {
            let expected = match (methods, answer) {
                (["Exec"], Answer::Refuses(ttrpc::Code::INVALID_ARGUMENT)) => {
                    ErrorCode::InvalidArgument
                }
                (["Exec"], Answer::Refuses(ttrpc::Code::NOT_FOUND)) => ErrorCode::NotFound,
                (_, Answer::Refuses(_)) => ErrorCode::Internal,
                (_, Answer::Nothing) => ErrorCode::DeadlineExceeded,
            };
            assert_eq!(code, expected, "{}", case.what);
        }
    }
    assert_eq!(task.init.state(), State::Running, "{}", case.what);
    case.scene.maker.guest.answers.lock().unwrap().clear();
    case.expect_end(&task, KILL).await;
}

#[test]
fn an_exec_ends_for_containerd_whatever_the_guest_answers_and_init_lives() {
    for answer in answers() {
        for methods in [
            &["Exec"][..],
            &["Start"],
            &["Kill"],
            &["Kill", "Wait"],
            &["Wait"],
            &["Delete"],
        ] {
            for signal in [KILL, TERM] {
                run(exec_life(methods, answer, signal));
            }
        }
    }
}

#[test]
fn a_status_that_the_guest_reports_after_the_signal_changes_nothing() {
    for signal in [KILL, TERM] {
        run(async {
            let case = Case::new(&["Kill"], Answer::Refuses(ttrpc::Code::NOT_FOUND));
            let task = case.create().await.unwrap();
            task.start().await.unwrap();
            let exec = case.exec(&task, "a").await.unwrap();
            task.kill_exec(&exec, signal).await.unwrap();
            case.scene.maker.guest.ends("a", 0);
            assert_eq!(exec.wait().await.unwrap().status, 128 + signal);
            let reports = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                case.scene.maker.guest.exits(0);
            };
            tokio::join!(case.expect_end(&task, signal), reports);
        });
    }
}

#[test]
fn an_exec_that_the_guest_does_not_end_stays_counted() {
    run(async {
        let case = Case::new(&[], Answer::Nothing);
        let task = case.create().await.unwrap();
        task.start().await.unwrap();
        let exec = case.exec(&task, "a").await.unwrap();
        case.answer(&["Kill"], Answer::Nothing);
        task.kill_exec(&exec, TERM).await.unwrap();
        assert_eq!(exec.wait().await.unwrap().status, 128 + TERM);
        task.delete_exec(&exec).await.unwrap();
        assert!(
            exec.has_slot(),
            "the guest may still have its artifact mapped"
        );
        let again = case.exec(&task, "a").await;
        assert_eq!(
            again.err(),
            Some(ErrorCode::FailedPrecondition),
            "its id is in use"
        );
        // Until the guest says that it has ended.
        case.scene.maker.guest.ends("a", 0);
        while exec.has_slot() {
            tokio::task::yield_now().await;
        }
        case.exec(&task, "a").await.unwrap();
    });
}
