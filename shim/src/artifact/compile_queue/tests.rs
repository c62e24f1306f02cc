//! CompileQueue as shims take them: each has a queue of its own over the same directory.

use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::{TempDir, tempdir};
use tokio::time::timeout;

use super::fair_queue::Queue;
use super::*;
use crate::error::expect_codes;

const LONG: Duration = Duration::from_secs(60);

struct Host {
    root: TempDir,
    compilers_max: u64,
}

impl Host {
    fn new(compilers_max: u64) -> Self {
        let root = tempdir().unwrap();
        Self {
            root,
            compilers_max,
        }
    }

    fn turns(&self) -> CompileQueue {
        CompileQueue::new(self.root.path().join("compile"), self.compilers_max)
    }

    fn queue(&self) -> Queue {
        Queue::new(self.root.path().join("compile"), self.compilers_max)
    }

    /// Looks once, with the ticket of the last look.
    fn look(&self, want: &Want, ticket: Option<Ticket>) -> Seen {
        self.queue().look(want, ticket).unwrap()
    }

    fn turn(&self, want: &Want, ticket: Option<Ticket>) -> Turn {
        match self.look(want, ticket) {
            Seen::Turn(turn) => turn,
            other => panic!("{other:?}"),
        }
    }

    fn ticket(&self, want: &Want, ticket: Option<Ticket>) -> Ticket {
        match self.look(want, ticket) {
            Seen::Waits { own, .. } => own,
            other => panic!("{other:?}"),
        }
    }

    fn files(&self, prefix: &str) -> usize {
        let entries = fs::read_dir(self.root.path().join("compile")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(prefix)).count()
    }
}

fn key(digest: u8) -> ArtifactKey {
    ArtifactKey::of_parts(&[digest; 32], "c", "sse", None)
}

fn want(tenant: &str, digest: u8) -> Want {
    Want {
        tenant: tenant.to_owned(),
        key: key(digest),
        follows_strangers: true,
    }
}

fn is_compiled(seen: &Seen, by_stranger: bool) -> bool {
    matches!(seen, Seen::Compiled { stranger } if *stranger == by_stranger)
}

#[test]
fn a_tenants_queue_is_not_waited_for_by_another() {
    let host = Host::new(1);
    let running = host.turn(&want("a", 0), None);
    let a: Vec<_> = (1..=10)
        .map(|digest| (want("a", digest), host.ticket(&want("a", digest), None)))
        .collect();
    let b = host.ticket(&want("b", 100), None);
    drop(running);
    let (first, ticket) = a.into_iter().next().unwrap();
    let ticket = host.ticket(&first, Some(ticket));
    let running = host.turn(&want("b", 100), Some(b));
    // And then they take turns, whoever comes later.
    let b = host.ticket(&want("b", 101), None);
    drop(running);
    let b = host.ticket(&want("b", 101), Some(b));
    let running = host.turn(&first, Some(ticket));
    drop(running);
    host.turn(&want("b", 101), Some(b));
}

#[test]
fn who_waits_takes_whichever_compiler_gets_free() {
    for freed in 0..3 {
        let host = Host::new(3);
        let mut turns: Vec<_> = (0..3)
            .map(|digest| host.turn(&want("a", digest), None))
            .collect();
        let ticket = host.ticket(&want("b", 9), None);
        turns.remove(freed);
        let _turn = host.turn(&want("b", 9), Some(ticket));
        assert_eq!((host.files("compiler-"), host.files("wait.")), (3, 0));
    }
}

#[test]
fn no_program_holds_up_another() {
    let host = Host::new(2);
    let _running = host.turn(&want("a", 0), None);
    // Whatever digits its key begins with: a lock is of one program.
    for digest in 1..=255 {
        drop(host.turn(&want("b", digest), None));
    }
    assert_eq!(host.files(""), 3, "two compilers and the queue");
}

#[test]
fn one_program_is_compiled_once_at_a_time() {
    let host = Host::new(2);
    let other = host.turn(&want("a", 9), None);
    let running = host.turn(&want("a", 1), None);
    assert!(is_compiled(&host.look(&want("a", 1), None), false));
    assert!(is_compiled(&host.look(&want("b", 1), None), true));
    drop(running);
    // One that waits is followed by its own tenant's only.
    let running = host.turn(&want("a", 2), None);
    let waiting = host.ticket(&want("a", 1), None);
    assert!(is_compiled(&host.look(&want("a", 1), None), false));
    let stranger = host.ticket(&want("b", 1), None);
    drop(running);
    // As soon as one of them compiles it, the other waits for that.
    let running = host.turn(&want("b", 1), Some(stranger));
    drop(other);
    assert!(is_compiled(&host.look(&want("a", 1), Some(waiting)), true));
    assert_eq!(host.files("wait."), 0);
    drop(running);
}

#[test]
fn a_stranger_who_gives_up_each_time_is_followed_once() {
    let host = Host::new(2);
    let _running = host.turn(&want("a", 1), None);
    let impatient = Want {
        follows_strangers: false,
        ..want("b", 1)
    };
    host.turn(&impatient, None);
}

#[test]
fn a_tenant_has_a_bounded_number_of_programs_waiting_and_others_none_the_less() {
    let host = Host::new(1);
    let _running = host.turn(&want("a", 255), None);
    let waiting = u8::try_from(WAITING_MAX).unwrap();
    let _tickets: Vec<_> = (0..waiting)
        .map(|digest| host.ticket(&want("a", digest), None))
        .collect();
    let error = host.queue().look(&want("a", waiting), None).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ResourceExhausted);
    assert!(
        error
            .to_string()
            .contains("64 other programs of tenant a wait already")
    );
    // As many as want one of them again: they follow it.
    assert!(is_compiled(&host.look(&want("a", 3), None), false));
    host.ticket(&want("b", waiting), None);
}

#[test]
fn who_was_killed_or_stopped_holds_nobody_up() {
    let host = Host::new(1);
    let running = host.turn(&want("a", 0), None);
    let killed = host.ticket(&want("b", 1), None);
    let path = fs::read_dir(host.root.path().join("compile"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_str().unwrap().contains("wait."))
        .unwrap();
    let copy = host.root.path().join("copy");
    fs::hard_link(&path, &copy).unwrap();
    drop(killed);
    fs::rename(&copy, &path).unwrap();
    let stopped = host.ticket(&want("c", 2), None);
    let mine = host.ticket(&want("d", 3), None);
    assert_eq!(
        host.files("wait."),
        2,
        "the ticket without an owner is gone"
    );
    drop(running);
    let mine = host.ticket(&want("d", 3), Some(mine));
    let (_, silence) = (&stopped, Duration::from_secs(11));
    let long_ago = std::time::SystemTime::now() - silence;
    for entry in fs::read_dir(host.root.path().join("compile")).unwrap() {
        let file = fs::File::open(entry.unwrap().path()).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(long_ago))
            .unwrap();
    }
    host.turn(&want("d", 3), Some(mine));
}

#[tokio::test]
async fn a_follower_is_told_when_whoever_compiled_has_ended() {
    let host = Host::new(1);
    let turns = host.turns();
    let Next::Turn(turn) = turns.next("a", &key(1), true).await.unwrap() else {
        panic!("nobody else compiles");
    };
    let key = key(1);
    let following = turns.next("b", &key, true);
    let (followed, ()) = tokio::join!(timeout(LONG, following), async { drop(turn) });
    // It may also have come late enough to find nobody.
    match followed.unwrap().unwrap() {
        Next::Followed { stranger } => assert!(stranger),
        Next::Turn(_) => {}
    }
}

#[tokio::test]
async fn many_shims_are_all_served_one_after_the_other() {
    let host = Host::new(1);
    let mut tasks = tokio::task::JoinSet::new();
    let running = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for n in 0..12_u8 {
        let (turns, running) = (host.turns(), running.clone());
        tasks.spawn(async move {
            let tenant = format!("t{}", n % 3);
            let Next::Turn(turn) = turns.next(&tenant, &key(n), true).await.unwrap() else {
                panic!("all programs are different");
            };
            assert_eq!(running.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
            tokio::task::yield_now().await;
            running.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            drop(turn);
        });
    }
    while let Some(done) = timeout(LONG, tasks.join_next()).await.unwrap() {
        done.unwrap();
    }
    assert_eq!(host.files("wait."), 0);
}

/// What happens on a host: a tenant wants a program, or one of those that compile ends.
#[derive(Clone, Debug)]
enum Event {
    Want(u8),
    End(usize),
}

/// One who waits.
struct Waiter {
    want: Want,
    ticket: Ticket,
    /// Of all turns that there were, how many before it came.
    since: usize,
    /// The tenant had nothing else running or waiting when it came.
    alone: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn who_comes_alone_waits_for_one_program_of_each_tenant(
        compilers_max in 1..3_u64,
        events in proptest::collection::vec(
            prop_oneof![2 => (0..4_u8).prop_map(Event::Want), 1 => any::<usize>().prop_map(Event::End)],
            1..40,
        ),
        backwards: bool,
    ) {
        let host = Host::new(compilers_max);
        let tenant = |want: &Want| want.tenant.parse::<usize>().unwrap();
        let mut running: Vec<(usize, Turn)> = Vec::new();
        let mut waiting: Vec<Waiter> = Vec::new();
        let mut turns: Vec<usize> = Vec::new();
        for (number, event) in (0..).zip(events) {
            match event {
                Event::Want(of) => {
                    let want = want(&of.to_string(), number);
                    let own = |other: usize| other == usize::from(of);
                    let alone = !running.iter().any(|(other, _)| own(*other))
                        && !waiting.iter().any(|waiter| own(tenant(&waiter.want)));
                    match host.look(&want, None) {
                        Seen::Turn(turn) => {
                            turns.push(usize::from(of));
                            running.push((of.into(), turn));
                        }
                        Seen::Waits { own: ticket, .. } => {
                            waiting.push(Waiter { want, ticket, since: turns.len(), alone });
                        }
                        Seen::Compiled { .. } => panic!("all programs are different"),
                    }
                }
                Event::End(_) if running.is_empty() => {}
                Event::End(which) => drop(running.swap_remove(which % running.len())),
            }
            // Everybody looks until nobody gets a turn any more, in whatever order.
            let mut again = true;
            while again {
                again = false;
                if backwards {
                    waiting.reverse();
                }
                let mut still = Vec::new();
                for mut waiter in std::mem::take(&mut waiting) {
                    match host.look(&waiter.want, Some(waiter.ticket)) {
                        Seen::Turn(turn) => {
                            let of = tenant(&waiter.want);
                            let before = &turns[waiter.since..];
                            let most = (0..4).map(|of| before.iter().filter(|turn| **turn == of).count());
                            prop_assert!(!waiter.alone || most.max() <= Some(1), "{before:?}");
                            turns.push(of);
                            running.push((of, turn));
                            again = true;
                        }
                        Seen::Waits { own, .. } => {
                            waiter.ticket = own;
                            still.push(waiter);
                        }
                        Seen::Compiled { .. } => panic!("all programs are different"),
                    }
                }
                waiting = still;
            }
            prop_assert!(running.len() <= usize::try_from(compilers_max).unwrap());
            prop_assert!(waiting.is_empty() || running.len() == usize::try_from(compilers_max).unwrap());
        }
    }
}

#[test]
fn every_error_has_its_code() {
    let source = || io::ErrorKind::NotFound.into();
    expect_codes([
        (
            CompileQueueError::Full { tenant: "a".into() },
            ErrorCode::ResourceExhausted,
        ),
        (
            CompileQueueError::File {
                path: "/q".into(),
                source: source(),
            },
            ErrorCode::Internal,
        ),
        (CompileQueueError::Look(source()), ErrorCode::Internal),
    ]);
}
