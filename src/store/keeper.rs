//! The store's housekeeping thread: checkpoints, snapshot files, letting go of the log, expiry, forced compaction.
//!
//! It looks once a second and writes nothing while nothing changes. A checkpoint that fails (a full disk) is reported and
//! tried again; only the log keeps growing meanwhile. *Invariant: the log is let go only up to what both the checkpoint
//! before the last and the newest verified snapshot file cover*, so that either may turn out bad.
//! Start at [`Work::turn`].

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::checkpoint::Checkpoints;
use super::command::Command;
use super::fs::Fs;
use super::raft::{LogEntry, Node, Shared};
use super::snapshot::{self, Saved};
use super::wal::{Position, Wal};
use super::{Config, Error, io_error};

const LOOK: Duration = Duration::from_secs(1);
/// Expired keys are collected this long, for one entry per batch.
const EXPIRY_EVERY: Duration = Duration::from_secs(10);
const EXPIRY_BATCH: usize = 1000;
/// A store that is written to is checkpointed this often, if there are at least so many bytes of log to save replaying.
const CHECKPOINT_AGE: Duration = Duration::from_secs(600);
const CHECKPOINT_AGED_BYTES: u64 = 1 << 20;
const RETRY: Duration = Duration::from_secs(30);

/// How far durable copies of the state reach, oldest first.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Generations {
    pub previous: Option<Position>,
    pub last: Option<Position>,
    /// Of the snapshot files, the newest and the one before.
    pub snapshot: Option<Position>,
    pub snapshot_previous: Option<Position>,
}

/// What became of checkpoints.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub count: u64,
    pub revision: u64,
    pub error: Option<String>,
    pub no_space: bool,
}

#[derive(Default)]
struct Orders {
    stop: bool,
    checkpoint: Vec<oneshot::Sender<Result<(), Error>>>,
}

#[derive(Default)]
struct Desk {
    orders: Mutex<Orders>,
    changed: Condvar,
    report: Mutex<Report>,
}

impl Desk {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().expect("no panic while orders are locked")
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().expect("no panic while the report is locked")
    }
}

/// The thread's handle.
pub(crate) struct Keeper {
    desk: Arc<Desk>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    pub(crate) fn start(mut work: Work) -> io::Result<Keeper> {
        let desk = Arc::new(Desk::default());
        let theirs = desk.clone();
        let run = move || {
            while let Some(orders) = wait(&theirs) {
                work.turn(&theirs, orders);
            }
        };
        let thread = std::thread::Builder::new().name("store-keeper".into()).spawn(run)?;
        Ok(Keeper { desk, thread: Mutex::new(Some(thread)) })
    }

    pub(crate) fn report(&self) -> Report {
        self.desk.report().clone()
    }

    pub(crate) async fn checkpoint(&self) -> Result<(), Error> {
        let (send, receive) = oneshot::channel();
        {
            let mut orders = self.desk.orders();
            if orders.stop {
                return Err(Error::Closed);
            }
            orders.checkpoint.push(send);
        }
        self.desk.changed.notify_one();
        receive.await.map_err(|_| Error::Closed)?
    }

    /// Asks the thread to end after what it is doing.
    pub(crate) fn stop(&self) -> Option<JoinHandle<()>> {
        self.desk.orders().stop = true;
        self.desk.changed.notify_one();
        self.thread.lock().expect("no panic while the handle is locked").take()
    }
}

/// The checkpoints asked for; `None` when it is time to stop.
fn wait(desk: &Desk) -> Option<Vec<oneshot::Sender<Result<(), Error>>>> {
    let orders = desk.orders();
    let idle = |orders: &mut Orders| !orders.stop && orders.checkpoint.is_empty();
    let (mut orders, _) = desk.changed.wait_timeout_while(orders, LOOK, idle).expect("no panic while orders are locked");
    (!orders.stop).then(|| std::mem::take(&mut orders.checkpoint))
}

/// What the thread works with.
pub(crate) struct Work {
    fs: Arc<dyn Fs>,
    snapshots: PathBuf,
    reserve: PathBuf,
    checkpoint_bytes: u64,
    history_bytes: usize,
    now: fn() -> u64,
    cluster: u128,
    shared: Arc<Shared>,
    wal: Wal<LogEntry>,
    node: Arc<Node>,
    checkpoints: Option<Checkpoints>,
    generations: Generations,
    /// Log bytes appended when the last checkpoint, and the last snapshot, was begun.
    checkpoint_at: u64,
    snapshot_at: u64,
    checkpointed: Instant,
    retry_after: Option<Instant>,
    expired: Option<Instant>,
}

impl Work {
    pub(crate) fn new(
        config: &Config,
        cluster: u128,
        shared: Arc<Shared>,
        wal: Wal<LogEntry>,
        node: Arc<Node>,
        checkpoints: Option<Checkpoints>,
        generations: Generations,
    ) -> Work {
        Work {
            fs: config.fs.clone(),
            snapshots: config.dir.join("snap"),
            reserve: config.dir.join("reserve"),
            checkpoint_bytes: config.checkpoint_bytes,
            history_bytes: config.history_bytes,
            now: config.now,
            cluster,
            shared,
            wal,
            node,
            checkpoints,
            generations,
            checkpoint_at: 0,
            snapshot_at: 0,
            checkpointed: Instant::now(),
            retry_after: None,
            expired: None,
        }
    }

    fn turn(&mut self, desk: &Desk, orders: Vec<oneshot::Sender<Result<(), Error>>>) {
        self.expire();
        self.compact();
        let forced = !orders.is_empty();
        if !forced && !self.due() {
            return;
        }
        let outcome = self.checkpoint(forced);
        let mut report = desk.report();
        report.no_space = outcome.as_ref().is_err_and(|error| matches!(error, Error::NoSpace));
        report.error = outcome.as_ref().err().map(|error| error.to_string());
        self.retry_after = outcome.as_ref().err().map(|_| Instant::now() + RETRY);
        if outcome.is_ok() {
            report.count += 1;
            report.revision = self.shared.read().state.checkpoint();
        }
        drop(report);
        let answer = |outcome: &Result<(), Error>| match outcome {
            Ok(()) => Ok(()),
            Err(Error::NoSpace) => Err(Error::NoSpace),
            Err(error) => Err(Error::Io { doing: "checkpoint the state".into(), source: io::Error::other(error.to_string()) }),
        };
        for order in orders {
            // Whoever asked may have gone.
            let _ = order.send(answer(&outcome));
        }
        if let Err(error) = outcome {
            error!(%error, "the state could not be checkpointed; the log grows until it can");
        }
    }

    fn due(&self) -> bool {
        if self.retry_after.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        let grown = self.wal.appended() - self.checkpoint_at;
        grown >= self.checkpoint_bytes || (grown >= CHECKPOINT_AGED_BYTES && self.checkpointed.elapsed() >= CHECKPOINT_AGE)
    }

    fn expire(&mut self) {
        if self.expired.is_some_and(|at| at.elapsed() < EXPIRY_EVERY) || !self.node.is_leader() {
            return;
        }
        self.expired = Some(Instant::now());
        loop {
            let keys = self.shared.read().state.due((self.now)(), EXPIRY_BATCH);
            let full = keys.len() == EXPIRY_BATCH;
            if keys.is_empty() {
                return;
            }
            if let Err(error) = self.node.propose_blocking(Command::Expire { keys }) {
                return warn!(%error, "cannot expire keys");
            }
            if !full {
                return;
            }
        }
    }

    /// History that grows faster than the five-minute compaction is cut short.
    fn compact(&mut self) {
        let (history, revision) = {
            let core = self.shared.read();
            (core.state.history_bytes(), core.state.revision())
        };
        if history > self.history_bytes && self.node.is_leader() {
            info!(history, revision, "too much history; compacting now");
            if let Err(error) = self.node.propose_blocking(Command::Compact { revision }) {
                warn!(%error, "cannot compact");
            }
        }
    }

    fn checkpoint(&mut self, forced: bool) -> Result<(), Error> {
        let begun = self.wal.appended();
        let (pin, superseded) = self.shared.begin_checkpoint();
        // What a checkpoint holds must be in the log for good, or a lost tail would leave the log behind the state.
        let synced = self.wal.sync_blocking();
        let mut saved = synced.and_then(|()| self.save(&pin, &superseded));
        if saved.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull) && self.fs.remove(&self.reserve).is_ok() {
            warn!("disk full: gave up the reserve to finish a checkpoint");
            saved = self.save(&pin, &superseded);
        }
        if let Err(error) = saved {
            self.shared.write().state.abandon_checkpoint(superseded);
            return Err(storage("checkpoint the state", error));
        }
        self.checkpoint_at = begun;
        self.checkpointed = Instant::now();
        if self.checkpoints.is_some() {
            self.generations.previous = self.generations.last;
            self.generations.last = pin.applied;
        }
        let grown = begun - self.snapshot_at;
        // A snapshot writes and reads all of the state: it waits until as much was logged.
        let size = self.shared.read().state.live().bytes as u64;
        let enough = grown >= self.checkpoint_bytes.max(size);
        if forced || enough || self.generations.snapshot.is_none() {
            let saved = snapshot::save(self.fs.as_ref(), &self.snapshots, self.cluster, &pin);
            let Saved { path, head, bytes } = saved.map_err(|error| storage("write a snapshot file", error))?;
            info!(path = %path.display(), bytes, revision = head.revision, "snapshot written");
            self.snapshot_at = begun;
            self.generations.snapshot_previous = self.generations.snapshot;
            self.generations.snapshot = head.applied;
        }
        drop(pin);
        self.let_go()
    }

    fn save(&mut self, pin: &super::raft::Pin, superseded: &[(bytes::Bytes, u64)]) -> io::Result<()> {
        match &mut self.checkpoints {
            Some(checkpoints) => checkpoints.save(self.cluster, pin, superseded).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Purges the log up to what two durable copies cover.
    fn let_go(&self) -> Result<(), Error> {
        let generations = &self.generations;
        let older = if self.checkpoints.is_some() { generations.previous } else { generations.snapshot_previous };
        let Some(upto) = older.zip(generations.snapshot).map(|(a, b)| a.min(b)) else { return Ok(()) };
        if self.wal.purged().is_some_and(|purged| purged >= upto) {
            return Ok(());
        }
        self.node.purge_blocking(upto)
    }
}

fn storage(doing: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull => Error::NoSpace,
        _ => io_error(doing)(error),
    }
}
