//! The files of the compile queue. All reads and changes are made under the lock of `queue`, for microseconds.
//!
//! | file | locked by | what |
//! |---|---|---|
//! | `queue` | the shim that looks | the round that was served last, and the next number |
//! | `wait.ROUND.NUMBER.TENANT.KEY` | the shim that waits | a ticket; the file's time is that of the shim's last look |
//! | `compiler-N` | the shim that compiles | the turn: round, number, tenant and key |
//!
//! Tickets are served by round, then by number. A tenant has one ticket a round: the tenant's first ticket gets
//! the round that is being served, each further ticket the round after the tenant's last. So between two turns of one
//! tenant every other tenant that waits gets a turn (start-time fair queueing).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::{CompileQueueError, WAITING_MAX, Want};
use crate::sha256::hex;

/// Time after which a ticket is passed over whose owner, a stopped shim, has not looked; until the owner looks again.
const SILENT_MAX: Duration = Duration::from_secs(10);
/// How long a shim waits for the queue's own lock before the look fails.
const LOCK_MAX: Duration = Duration::from_secs(30);
/// Time between two tries to take the queue's own lock.
const LOCK_RETRY: Duration = Duration::from_millis(1);
/// Longest record in a file of the queue, bytes.
const RECORD_BYTES_MAX: usize = 256;

/// A turn: a compiler that is taken until the turn is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    lock: File,
}

impl Drop for Turn {
    fn drop(&mut self) {
        unlock(&self.lock);
    }
}

/// A place in the queue, which is given up when the ticket is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    path: PathBuf,
    place: Place,
    lock: File,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // A ticket that is left without its lock is removed by the next shim that looks.
        let _ = fs::remove_file(&self.path);
        unlock(&self.lock);
    }
}

/// State of a want, as one look at the queue finds it.
#[derive(Debug)]
pub(super) enum Seen {
    /// The want may compile now.
    Turn(Turn),
    /// Another task compiles the artifact, or is about to.
    Compiled {
        /// Whether the task is another tenant's.
        stranger: bool,
    },
    /// The want has a place in the queue.
    Waits {
        /// The place, to be shown at the next look.
        own: Ticket,
        /// Tickets ahead, beyond those for which a compiler is free.
        ahead: usize,
    },
}

/// A place in the queue, or a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    round: u64,
    number: u64,
    tenant: String,
    key: String,
}

impl Place {
    fn encode(&self) -> String {
        let Self {
            round,
            number,
            tenant,
            key,
        } = self;
        format!("{round:016x}.{number:016x}.{tenant}.{key}")
    }

    fn decode(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let mut part = || parts.next();
        let place = Self {
            round: u64::from_str_radix(part()?, 16).ok()?,
            number: u64::from_str_radix(part()?, 16).ok()?,
            tenant: part()?.to_owned(),
            key: part()?.to_owned(),
        };
        Some(place)
    }

    fn order(&self) -> (u64, u64) {
        (self.round, self.number)
    }
}

/// Content of the directory, read while the queue is locked.
struct State {
    waiting: Vec<(Place, bool)>,
    running: Vec<Place>,
    free: Vec<(PathBuf, File)>,
}

/// The queue's directory, and the number of compilers.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    directory: PathBuf,
    compilers_max: u64,
}

impl Queue {
    pub(super) fn new(directory: PathBuf, compilers_max: u64) -> Self {
        Self {
            directory,
            compilers_max: compilers_max.max(1),
        }
    }

    /// Takes a turn, if the want is next; else gets the want a ticket, or keeps its present one.
    pub(super) fn look(
        &self,
        want: &Want,
        ticket: Option<Ticket>,
    ) -> Result<Seen, CompileQueueError> {
        let counters = self.lock()?;
        let mut state = self.read(ticket.as_ref())?;
        if let Some(stranger) = state.compiled_by(want, ticket.is_some()) {
            return Ok(Seen::Compiled { stranger });
        }
        let own = match ticket {
            Some(ticket) => ticket,
            None => self.enqueue(want, &state, &counters)?,
        };
        let before =
            |(place, silent): &&(Place, bool)| !silent && place.order() < own.place.order();
        let ahead = state.waiting.iter().filter(before).count();
        if ahead >= state.free.len() {
            let times = fs::FileTimes::new().set_modified(SystemTime::now());
            own.lock
                .set_times(times)
                .map_err(|source| failed(&own.path, source))?;
            let ahead = ahead - state.free.len();
            return Ok(Seen::Waits { own, ahead });
        }
        let (path, lock) = state.free.swap_remove(0);
        let record = format!("{:RECORD_BYTES_MAX$}", own.place.encode());
        lock.write_all_at(record.as_bytes(), 0)
            .map_err(|source| failed(&path, source))?;
        counters.served(own.place.round)?;
        Ok(Seen::Turn(Turn { lock }))
    }

    /// Whether to follow another task that compiles the artifact, or is about to; and whether that task is another
    /// tenant's.
    pub(super) fn compiled_by(&self, want: &Want) -> Result<Option<bool>, CompileQueueError> {
        let _counters = self.lock()?;
        Ok(self.read(None)?.compiled_by(want, false))
    }

    fn enqueue(
        &self,
        want: &Want,
        state: &State,
        counters: &Counters,
    ) -> Result<Ticket, CompileQueueError> {
        let tenant = tenant_name(&want.tenant);
        let waiting = state.waiting.iter().map(|(place, _)| place);
        if waiting
            .clone()
            .filter(|place| place.tenant == tenant)
            .count()
            >= WAITING_MAX
        {
            return Err(CompileQueueError::Full {
                tenant: want.tenant.clone(),
            });
        }
        let (served, number) = counters.next()?;
        let own = waiting
            .chain(&state.running)
            .filter(|place| place.tenant == tenant);
        let after_own = own.map(|place| place.round.saturating_add(1)).max();
        let place = Place {
            round: served.max(after_own.unwrap_or(0)),
            number,
            tenant,
            key: want.key.as_str().to_owned(),
        };
        let path = self.directory.join(format!("wait.{}", place.encode()));
        let lock = open(&path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| failed(&path, errno.into()))?;
        Ok(Ticket { path, place, lock })
    }

    fn lock(&self) -> Result<Counters, CompileQueueError> {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&self.directory);
        made.map_err(|source| failed(&self.directory, source))?;
        let path = self.directory.join("queue");
        let file = open(&path)?;
        let start = std::time::Instant::now();
        while let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if errno != Errno::WOULDBLOCK && errno != Errno::INTR {
                return Err(failed(&path, errno.into()));
            }
            if start.elapsed() > LOCK_MAX {
                return Err(failed(&path, io::ErrorKind::TimedOut.into()));
            }
            std::thread::sleep(LOCK_RETRY);
        }
        Ok(Counters { path, file })
    }

    /// Reads the directory; removes tickets whose owners have exited.
    fn read(&self, own: Option<&Ticket>) -> Result<State, CompileQueueError> {
        let mut waiting = Vec::new();
        let mut compilers: Vec<PathBuf> = (0..self.compilers_max)
            .map(|number| self.directory.join(format!("compiler-{number}")))
            .collect();
        let entries =
            fs::read_dir(&self.directory).map_err(|source| failed(&self.directory, source))?;
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_str().unwrap_or_default();
            if let Some(place) = name.strip_prefix("wait.").and_then(Place::decode) {
                if own.is_some_and(|own| own.place == place) {
                    continue;
                }
                waiting.extend(waits(&path)?.map(|silent| (place, silent)));
            } else if name.starts_with("compiler-") && !compilers.contains(&path) {
                // Compilers of a shim with a larger `compilers_max`: never free for this one.
                compilers.push(path);
            }
        }
        let (mut running, mut free) = (Vec::new(), Vec::new());
        for (number, path) in (0..).zip(compilers) {
            let file = open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if number < self.compilers_max => free.push((path, file)),
                Ok(()) => unlock(&file),
                Err(Errno::WOULDBLOCK) => running.extend(record(&file)),
                Err(errno) => return Err(failed(&path, errno.into())),
            }
        }
        Ok(State {
            waiting,
            running,
            free,
        })
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.free.iter().for_each(|(_, lock)| unlock(lock));
    }
}

impl State {
    /// Whether to follow another task, and whether that task is another tenant's: a task of the same tenant that
    /// compiles or waits, or a task of any tenant that compiles if the want follows strangers.
    fn compiled_by(&self, want: &Want, has_ticket: bool) -> Option<bool> {
        let tenant = tenant_name(&want.tenant);
        let same = |place: &&Place| place.key == want.key.as_str();
        let own = |place: &Place| place.tenant == tenant;
        let mut running = self.running.iter().filter(same);
        let followed = running.find(|place| own(place) || want.follows_strangers);
        let mut waiting = self.waiting.iter().map(|(place, _)| place).filter(same);
        match followed {
            Some(place) => Some(!own(place)),
            None => (!has_ticket && waiting.any(own)).then_some(false),
        }
    }
}

/// The `queue` file, locked.
struct Counters {
    path: PathBuf,
    file: File,
}

impl Drop for Counters {
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

impl Counters {
    /// The round that was served last, and a number that no ticket had before.
    fn next(&self) -> Result<(u64, u64), CompileQueueError> {
        let (round, number) = self.read();
        self.write(round, number.wrapping_add(1))?;
        Ok((round, number))
    }

    fn served(&self, round: u64) -> Result<(), CompileQueueError> {
        let (before, number) = self.read();
        self.write(before.max(round), number)
    }

    /// Round and number; zeros at the host's first compile.
    fn read(&self) -> (u64, u64) {
        let place = record(&self.file);
        place.map_or((0, 0), |place| (place.round, place.number))
    }

    fn write(&self, round: u64, number: u64) -> Result<(), CompileQueueError> {
        let place = Place {
            round,
            number,
            tenant: String::new(),
            key: String::new(),
        };
        let record = format!("{:RECORD_BYTES_MAX$}", place.encode());
        self.file
            .write_all_at(record.as_bytes(), 0)
            .map_err(|source| failed(&self.path, source))
    }
}

/// Whether the ticket's owner lives, and if so, whether the owner has been silent for [`SILENT_MAX`].
fn waits(path: &Path) -> Result<Option<bool>, CompileQueueError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(path, source)),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            // Another shim's removal of the ticket is as good.
            let _ = fs::remove_file(path);
            return Ok(None);
        }
        Err(Errno::WOULDBLOCK) => {}
        Err(errno) => return Err(failed(path, errno.into())),
    }
    let looked = file.metadata().and_then(|metadata| metadata.modified());
    let silence = looked.map(|looked| SystemTime::now().duration_since(looked));
    Ok(Some(
        matches!(silence, Ok(Ok(silence)) if silence > SILENT_MAX),
    ))
}

/// Releases a lock. A child that is just being started has a copy of the descriptor, and with it the lock, a moment
/// longer.
fn unlock(file: &File) {
    // The descriptor is open, so this cannot fail.
    let _ = flock(file, FlockOperation::Unlock);
}

fn record(file: &File) -> Option<Place> {
    let mut bytes = [0; RECORD_BYTES_MAX];
    let read = file.read_at(&mut bytes, 0).ok()?;
    Place::decode(std::str::from_utf8(&bytes[..read]).ok()?.trim_end())
}

/// The tenant's part of a file name: a hash, so that no tenant chooses what a name looks like.
fn tenant_name(tenant: &str) -> String {
    hex(&Sha256::digest(tenant)[..8])
}

fn open(path: &Path) -> Result<File, CompileQueueError> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    options.open(path).map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: io::Error) -> CompileQueueError {
    CompileQueueError::File {
        path: path.to_owned(),
        source,
    }
}
