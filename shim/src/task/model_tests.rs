//! Requests in any order, on init and execs, against a model: codes, states, events, waiters.
//!
//! The model knows no states of the shim's: only what containerd may rely on. Time is virtual, so a
//! request that waits for something that never comes is seen at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::task::JoinHandle;

use super::fakes::{Scene, exec_order, order};
use super::*;
use crate::error::{Coded as _, ErrorCode};

const KILL: u32 = 9;
const TERM: u32 = 15;
const WINCH: u32 = 28;
/// Beyond every limit of the shim's, all together.
const HANG: Duration = Duration::from_secs(3600);
/// Enough for everything that waits for no limit, as time only passes when all are idle.
const SETTLE: Duration = Duration::from_millis(5);

/// A request of containerd's, or an event in the guest. Execs are named by a letter, init by none.
#[derive(Clone, Debug)]
enum Step {
    Create,
    Start,
    Exec(&'static str),
    StartExec(&'static str),
    Kill(&'static str, u32),
    KillAll(u32),
    Pause,
    Resume,
    Delete(&'static str),
    Exits(&'static str, u32),
    Dies,
}

fn exec_id() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("b"), Just("sh")]
}

fn any_id() -> impl Strategy<Value = &'static str> {
    prop_oneof![2 => Just(""), 3 => exec_id()]
}

fn any_step() -> impl Strategy<Value = Step> {
    let signal = prop_oneof![Just(0), Just(KILL), Just(TERM), Just(WINCH)];
    prop_oneof![
        2 => Just(Step::Create),
        3 => Just(Step::Start),
        4 => exec_id().prop_map(Step::Exec),
        4 => exec_id().prop_map(Step::StartExec),
        3 => (any_id(), signal).prop_map(|(id, signal)| Step::Kill(id, signal)),
        1 => prop_oneof![Just(KILL), Just(WINCH)].prop_map(Step::KillAll),
        2 => Just(Step::Pause),
        2 => Just(Step::Resume),
        3 => any_id().prop_map(Step::Delete),
        3 => (any_id(), 0_u32..4).prop_map(|(id, status)| Step::Exits(id, status)),
        1 => Just(Step::Dies),
    ]
}

/// The phase of a process, as the model has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Created,
    Runs,
    Ended(u32),
}

/// The task, as the model has it; `None` when there is none.
#[derive(Debug, Default)]
struct Model {
    init: Option<Phase>,
    execs: BTreeMap<&'static str, Phase>,
    paused: bool,
    /// Execs that SIGTERM waits for.
    termed: Vec<&'static str>,
    /// The events of this step; exits of execs in any order.
    events: Vec<String>,
}

type Verdict = Result<(), ErrorCode>;

impl Model {
    fn take(&mut self, step: &Step) -> Verdict {
        if matches!(step, Step::Create) {
            return match self.init {
                Some(_) => Err(ErrorCode::AlreadyExists),
                None => {
                    self.init = Some(Phase::Created);
                    self.event("create 4711");
                    Ok(())
                }
            };
        }
        let init = self.init.ok_or(ErrorCode::NotFound)?;
        let runs = init == Phase::Runs && !self.paused;
        let need = |met: bool| met.then_some(()).ok_or(ErrorCode::FailedPrecondition);
        match *step {
            Step::Create => {}
            Step::Start => {
                need(init == Phase::Created)?;
                self.init = Some(Phase::Runs);
                self.event("start 4711");
            }
            Step::Exec(id) => {
                need(runs)?;
                if self.execs.contains_key(id) {
                    return Err(ErrorCode::AlreadyExists);
                }
                self.execs.insert(id, Phase::Created);
                self.event(&format!("exec-added {id}"));
            }
            Step::StartExec(id) => {
                let exec = *self.execs.get(id).ok_or(ErrorCode::NotFound)?;
                need(runs && exec == Phase::Created)?;
                if id == "sh" {
                    self.execs.insert(id, Phase::Ended(255));
                    return Err(ErrorCode::InvalidArgument);
                }
                self.execs.insert(id, Phase::Runs);
                self.event(&format!("exec-started {id} 4194311"));
            }
            Step::Kill("", signal) | Step::KillAll(signal) => {
                if matches!(init, Phase::Ended(_)) {
                    return Err(ErrorCode::NotFound);
                }
                if self.paused && signal == KILL {
                    self.die();
                } else if signal == KILL || signal == TERM {
                    self.end("", 128 + signal);
                }
            }
            Step::Kill(id, signal) => match *self.execs.get(id).ok_or(ErrorCode::NotFound)? {
                Phase::Created => return Err(ErrorCode::FailedPrecondition),
                Phase::Ended(_) => return Err(ErrorCode::NotFound),
                Phase::Runs if signal == KILL || signal == TERM => {
                    if self.paused {
                        self.termed.push(id);
                    } else {
                        self.end(id, 128 + signal);
                    }
                }
                Phase::Runs => {}
            },
            Step::Pause => {
                need(runs)?;
                self.paused = true;
                self.event("paused");
            }
            Step::Resume => {
                need(self.paused)?;
                self.paused = false;
                self.event("resumed");
                for id in std::mem::take(&mut self.termed) {
                    self.end(id, 128 + TERM);
                }
            }
            Step::Delete("") => {
                need(init != Phase::Runs)?;
                let status = match init {
                    Phase::Ended(status) => status,
                    _ => 0,
                };
                *self = Self::default();
                self.event(&format!("delete {status}"));
            }
            Step::Delete(id) => {
                let exec = *self.execs.get(id).ok_or(ErrorCode::NotFound)?;
                need(exec != Phase::Runs)?;
                self.execs.remove(id);
            }
            Step::Exits(id, status) => self.end(id, status),
            Step::Dies => self.die(),
        }
        Ok(())
    }

    fn event(&mut self, word: &str) {
        self.events.push(word.to_owned());
    }

    /// A program ends, and with init all others.
    fn end(&mut self, id: &'static str, status: u32) {
        if id.is_empty() {
            let running: Vec<_> = self.execs.keys().copied().collect();
            for exec in running {
                self.end(exec, 128 + KILL);
            }
            self.init = Some(Phase::Ended(status));
            self.paused = false;
            self.event(&format!("exit {status}"));
        } else if self.execs.get(id) == Some(&Phase::Runs) {
            self.execs.insert(id, Phase::Ended(status));
            self.event(&format!("exit {status} of {id}"));
        }
    }

    fn die(&mut self) {
        if !matches!(self.init, Some(Phase::Ended(_))) {
            self.end("", 128 + KILL);
        }
    }

    /// Whether the step says something about the guest that can happen now.
    fn can_happen(&self, step: &Step) -> bool {
        match step {
            Step::Exits("", _) => self.init == Some(Phase::Runs) && !self.paused,
            Step::Exits(id, _) => self.execs.get(id) == Some(&Phase::Runs) && !self.paused,
            Step::Dies => self.init.is_some(),
            // Init's SIGTERM would race with the signals kept for execs.
            Step::Kill("", signal) => !(self.paused && *signal == TERM),
            Step::Kill(_, signal) => !(self.paused && *signal == KILL),
            _ => true,
        }
    }
}

/// The shim, and what it was seen to do.
struct Shim {
    scene: Scene,
    seen: usize,
    waiters: Vec<JoinHandle<Result<Exit, TaskError>>>,
}

impl Shim {
    fn new() -> Self {
        Self {
            scene: Scene::new(),
            seen: 0,
            waiters: Vec::new(),
        }
    }

    async fn take(&mut self, step: &Step) -> Verdict {
        let code = |refusal: Refusal| refusal.code;
        if matches!(step, Step::Create) {
            self.scene.tasks.create(order(false)).await.map_err(code)?;
            let task = self.scene.tasks.get("t").map_err(code)?;
            self.waiters
                .push(tokio::spawn(async move { task.wait().await }));
            return Ok(());
        }
        let task = self.scene.tasks.get("t").map_err(code)?;
        let done = match *step {
            Step::Create => Ok(()),
            Step::Start => task.start().await.map(drop),
            Step::Exec(id) => self.exec(&task, id),
            Step::StartExec(id) => match task.exec_of(id) {
                Ok(exec) => task.start_exec(&exec).await.map(drop),
                Err(error) => Err(error),
            },
            Step::Kill("", signal) => task.kill(signal, false).await,
            Step::KillAll(signal) => task.kill(signal, true).await,
            Step::Kill(id, signal) => match task.exec_of(id) {
                Ok(exec) => task.kill_exec(&exec, signal).await,
                Err(error) => Err(error),
            },
            Step::Pause => task.pause().await,
            Step::Resume => task.resume().await,
            Step::Delete("") => return self.scene.tasks.delete("t").await.map(drop).map_err(code),
            Step::Delete(id) => match task.exec_of(id) {
                Ok(exec) => task.delete_exec(&exec).await.map(drop),
                Err(error) => Err(error),
            },
            Step::Exits(id, status) => {
                self.scene.maker.guest.ends(id, status);
                Ok(())
            }
            Step::Dies => {
                self.scene.maker.workload().dies("triple fault");
                Ok(())
            }
        };
        done.map_err(|error| error.code())
    }

    fn exec(&mut self, task: &Arc<Task>, id: &'static str) -> Result<(), TaskError> {
        let name = if id == "sh" { "/bin/sh" } else { id };
        task.exec(exec_order(id, name))?;
        let exec = task.exec_of(id)?;
        self.waiters
            .push(tokio::spawn(async move { exec.wait().await }));
        Ok(())
    }

    /// The events since the last look, exits of execs in order.
    fn news(&mut self) -> Vec<String> {
        let words = self.scene.events.words();
        let mut news = words[self.seen..].to_vec();
        self.seen = words.len();
        in_order(&mut news);
        news
    }

    fn phases(&self) -> Option<(Phase, BTreeMap<String, Phase>, bool)> {
        let phase = |state: State| match (state, state.exit()) {
            (_, Some(exit)) => Phase::Ended(exit.status),
            (State::Running, None) => Phase::Runs,
            (_, None) => Phase::Created,
        };
        let task = self.scene.tasks.get("t").ok()?;
        let execs = task.execs_where(|_| true);
        let execs = execs
            .iter()
            .map(|exec| (exec.id().to_owned(), phase(exec.report().state)));
        let init = phase(task.report().ok()?.state);
        Some((init, execs.collect(), task.flow() == Flow::Paused))
    }
}

/// Sorts the events that may come in any order, and no others.
fn in_order(events: &mut [String]) {
    for exits in events.chunk_by_mut(|a, b| a.contains(" of ") && b.contains(" of ")) {
        exits.sort();
    }
}

async fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (mut shim, mut model) = (Shim::new(), Model::default());
    let end = [Step::Kill("", KILL), Step::Delete(""), Step::Delete("")];
    for step in steps.into_iter().chain(end) {
        if !model.can_happen(&step) {
            continue;
        }
        let wanted = model.take(&step);
        let Ok(got) = tokio::time::timeout(HANG, shim.take(&step)).await else {
            return Err(TestCaseError::fail(format!("{step:?} hangs")));
        };
        prop_assert_eq!(got, wanted, "{:?}", step);
        tokio::time::sleep(SETTLE).await;
        in_order(&mut model.events);
        prop_assert_eq!(shim.news(), std::mem::take(&mut model.events), "{:?}", step);
        let execs = model
            .execs
            .iter()
            .map(|(id, phase)| ((*id).to_owned(), *phase));
        let wanted = model.init.map(|init| (init, execs.collect(), model.paused));
        prop_assert_eq!(shim.phases(), wanted, "after {:?}", step);
    }
    for waiter in shim.waiters {
        let Ok(waited) = tokio::time::timeout(HANG, waiter).await else {
            return Err(TestCaseError::fail("a waiter hangs"));
        };
        prop_assert!(waited.is_ok_and(|exit| exit.is_ok()));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_sequence_of_requests_does_what_the_model_says(
        started: bool,
        steps in proptest::collection::vec(any_step(), 1..40)
    ) {
        let before = [Step::Create, Step::Start].into_iter().filter(|_| started);
        let steps = before.chain(steps).collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(steps))?;
    }
}
