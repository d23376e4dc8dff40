//! Replicated, revisioned, watchable bytes: what etcd is to Kubernetes, in process.
//!
//! Keys are `group \0 resource \0 namespace \0 name`; the store knows nothing more about them than their order and that
//! the first two parts name a watch ring. Every changed key takes a revision of its own. A write is answered when it is
//! durable, applied and published to watchers; reads are of the applied state, which with one voter is linearizable.
//!
//! `write` → raft (`raft`) → log on disk (`wal`) → `state` → `watch`. The applied state lives in memory; `checkpoint` and
//! `snapshot`, written by `keeper`, bound what the log must hold; `recover` puts things together at start. Files go through `fs`, so that `fake` can lose power.
//! Start at [`Store`].

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

mod checkpoint;
mod command;
pub mod fake;
pub mod fs;
mod keeper;
mod raft;
mod recover;
mod snapshot;
mod state;
mod tables;
mod wal;
mod watch;

pub use command::{Batch, Check, Durability, Expect, Put};
pub use state::Entry;
pub use watch::{Delivery, Frames, StoreEvent, Watcher};

use command::Command;
use fs::{Fs, Native};
use keeper::Keeper;
use raft::{Core, LogEntry, Node, Parts, Shared};
use recover::Recovered;
use state::Outcome;
use wal::{Found, RELAXED_CHANGES_MAX, Wal};

/// The largest value, as in etcd.
pub const VALUE_BYTES_MAX: usize = 3 << 19;
/// The largest batch.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Bytes of writes not yet answered; beyond it new ones are refused with `Busy`.
const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;
/// Lists longer than this are read page by page, so that apply never waits for them.
const PAGE: usize = 512;

/// Where and how to keep the store.
#[derive(Clone, Debug)]
pub struct Config {
    pub dir: PathBuf,
    pub wal_segment_bytes: u64,
    /// Watch history per resource.
    pub ring_bytes: usize,
    /// Log bytes after which the state is checkpointed.
    pub checkpoint_bytes: u64,
    /// History (superseded values) beyond this is compacted without being asked.
    pub history_bytes: usize,
    /// Checkpoints in sled; without, snapshot files alone (a simulated file system cannot hold a sled).
    pub sled: bool,
    /// Ballast given up when the disk is full.
    pub reserve_bytes: u64,
    pub fs: Arc<dyn Fs>,
    /// Seconds since the epoch; what TTLs are reckoned by.
    pub now: fn() -> u64,
    /// What to do when the log cannot be written. The default ends the process, for what is on disk is then unknown.
    pub on_log_failure: fn(&io::Error),
}

impl Config {
    pub fn new(dir: impl Into<PathBuf>) -> Config {
        Config {
            dir: dir.into(),
            wal_segment_bytes: 8 << 20,
            ring_bytes: 8 << 20,
            checkpoint_bytes: 16 << 20,
            history_bytes: 64 << 20,
            sled: true,
            reserve_bytes: 8 << 20,
            fs: Arc::new(Native),
            now: unix_now,
            on_log_failure: |_| std::process::abort(),
        }
    }

    /// A store that forgets everything with the process: for tests, and where nothing need last.
    pub fn memory() -> Config {
        let fs = Arc::new(fake::SimFs::new());
        let config = Config::new("/nonexistent/coracle-in-memory");
        Config { fs, wal_segment_bytes: 1 << 20, checkpoint_bytes: 4 << 20, sled: false, reserve_bytes: 0, ..config }
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct Range {
    pub prefix: Bytes,
    /// Keys after this one only.
    pub after: Option<Bytes>,
    /// As of this revision; now, if `None`.
    pub at: Option<u64>,
    /// At most so many; all, if 0.
    pub limit: usize,
}

impl Range {
    /// Everything under `prefix`, now.
    pub fn all(prefix: impl Into<Bytes>) -> Range {
        Range { prefix: prefix.into(), ..Range::default() }
    }
}

/// What a list found.
#[derive(Clone, Debug)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// What the entries are as of; a watch from here misses nothing.
    pub revision: u64,
    pub more: bool,
}

/// The revisions of a batch's puts, then of its deletes (0 for a key that was not there).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub revisions: Vec<u64>,
}

/// How things are.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub revision: u64,
    pub compacted: u64,
    pub keys: usize,
    pub bytes: usize,
    pub history_bytes: usize,
    pub watchers: usize,
    pub ring_events: usize,
    pub ring_bytes: usize,
    /// Log segments on disk, and bytes appended since the store was opened.
    pub wal_bytes: u64,
    pub wal_appended_bytes: u64,
    /// Everything in the store's directory.
    pub disk_bytes: u64,
    /// The revision of the last checkpoint made since the store was opened, and how many there were.
    pub checkpoint_revision: u64,
    pub checkpoints: u64,
    /// Why the last checkpoint failed, if it did.
    pub checkpoint_error: Option<String>,
    /// Keys and value bytes per resource prefix, sorted.
    pub prefixes: Vec<(Bytes, usize, usize)>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} was changed or is not as expected", show(key))]
    Conflict { key: Bytes, current: Option<Entry> },
    #[error("revision {requested} is compacted; the oldest is {compacted}")]
    Compacted { requested: u64, compacted: u64 },
    #[error("revision {requested} is not there yet; the latest is {current}")]
    Future { requested: u64, current: u64 },
    #[error("too many bytes of writes are waiting")]
    Busy,
    #[error("the disk holding the store is full")]
    NoSpace,
    #[error("a value may have {VALUE_BYTES_MAX} bytes and a batch {BATCH_BYTES_MAX}")]
    TooLarge,
    #[error("this server does not lead the store")]
    NotLeader,
    #[error("the store is closed")]
    Closed,
    #[error("{} is in use by another process", dir.display())]
    Locked { dir: PathBuf },
    #[error("the store is damaged: {what}")]
    Damaged { what: String },
    #[error("cannot {doing}")]
    Io { doing: String, source: io::Error },
    #[error("raft: {0}")]
    Raft(String),
}

/// A key as people read it.
fn show(key: &[u8]) -> String {
    String::from_utf8_lossy(key).replace('\0', "/")
}

/// Keys looked at by [`Store::count_after`] while nobody may write.
const COUNTED_AT_ONCE: usize = 4096;

/// The store. Clones share it; the last one dropped stops it, [`Store::close`] waits for that: only then may the directory
/// be opened again.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    shared: Arc<Shared>,
    wal: Wal<LogEntry>,
    node: Arc<Node>,
    keeper: Keeper,
    cluster: u128,
    in_flight: AtomicUsize,
    closed: AtomicBool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("dir", &self.inner.config.dir).field("revision", &self.revision()).finish()
    }
}

/// Bytes charged while a write is under way.
struct Charge<'a> {
    inner: &'a Inner,
    bytes: usize,
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.inner.in_flight.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Inner {
    fn charge(&self, bytes: usize) -> Result<Charge<'_>, Error> {
        let charge = Charge { inner: self, bytes };
        if self.in_flight.fetch_add(bytes, Ordering::Relaxed) + bytes > IN_FLIGHT_BYTES_MAX {
            return Err(Error::Busy);
        }
        Ok(charge)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The raft thread closes the log; nobody waits for the threads here, `close` does.
        self.keeper.stop();
        self.node.stop();
    }
}

fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    move |source| match source.kind() {
        io::ErrorKind::InvalidData => Error::Damaged { what: source.to_string() },
        _ => Error::Io { doing: doing.into(), source },
    }
}

impl Store {
    /// Opens the store in `config.dir`, or begins one there, with this process as the only voter.
    pub async fn open(config: Config) -> Result<Store, Error> {
        let dir = config.dir.clone();
        config.fs.create_dir_all(&dir).map_err(io_error(format!("create {}", dir.display())))?;
        let lock = lock(&config)?;
        let opening = config.clone();
        // Reading the checkpoint and the log is work for the disk.
        let recovered = tokio::task::spawn_blocking(move || recover::recover(&opening)).await;
        let Recovered { identity, core, wal, found, checkpoints, generations } =
            recovered.map_err(|error| Error::Raft(format!("recovery ended early: {error}")))??;
        let shared = Arc::new(Shared::new(core, config.ring_bytes));
        let (id, address) = (identity.node, String::new());
        let node = Node::start(Parts { id, address, wal: wal.clone(), shared: shared.clone(), lock }).await?;
        let node = Arc::new(node);
        let work = keeper::Work::new(&config, identity.cluster, shared.clone(), wal.clone(), node.clone(), checkpoints, generations);
        let keeper = Keeper::start(work).map_err(io_error("start the checkpoint thread"))?;
        let (in_flight, closed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let store = Store { inner: Arc::new(Inner { config, shared, wal, node, keeper, cluster: identity.cluster, in_flight, closed }) };
        store.skip_lost_revisions(found).await?;
        Ok(store)
    }

    /// After an unclean end, relaxed writes may be lost whose revisions were already published: none is issued twice.
    async fn skip_lost_revisions(&self, found: Found) -> Result<(), Error> {
        if !found.existed || found.clean {
            return Ok(());
        }
        let revision = self.revision() + RELAXED_CHANGES_MAX as u64;
        tracing::info!(revision, "the store was not closed properly; moving the revision past what may be lost");
        self.inner.node.propose(Arc::new(Command::Jump { revision })).await.map(|_| ())
    }

    /// The revision of the last write.
    pub fn revision(&self) -> u64 {
        self.inner.shared.read().state.revision()
    }

    /// The oldest revision that can be read at.
    pub fn compacted(&self) -> u64 {
        self.inner.shared.read().state.compacted()
    }

    pub fn get(&self, key: &[u8]) -> Option<Entry> {
        self.inner.shared.read().state.get(key)
    }

    pub fn get_at(&self, key: &[u8], revision: u64) -> Result<Option<Entry>, Error> {
        let core = self.inner.shared.read();
        check_revision(&core, revision)?;
        Ok(core.state.get_at(key, revision))
    }

    /// Live keys in order, all as of one revision.
    pub fn range(&self, range: Range) -> Result<Page, Error> {
        let after = range.after.as_deref();
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        let core = self.inner.shared.read();
        let revision = range.at.unwrap_or(core.state.revision());
        check_revision(&core, revision)?;
        let (entries, more) = core.state.range(&range.prefix, after, revision, limit.min(PAGE));
        drop(core);
        if !more || limit <= PAGE {
            return Ok(Page { entries, revision, more });
        }
        self.range_paged(range)
    }

    /// A long list: the state is let go between pages, a pin keeps what the list needs.
    fn range_paged(&self, range: Range) -> Result<Page, Error> {
        let pin = match range.at {
            Some(revision) => {
                check_revision(&self.inner.shared.read(), revision)?;
                self.inner.shared.pin_at(revision)
            }
            None => self.inner.shared.pin(),
        };
        // Compaction may have come in between; from here on it cannot take anything away.
        check_revision(&self.inner.shared.read(), pin.revision).or_else(|e| if range.at.is_some() { Err(e) } else { Ok(()) })?;
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        let mut entries: Vec<Entry> = Vec::new();
        let mut after = range.after;
        loop {
            let wanted = PAGE.min(limit - entries.len());
            let (page, more) = self.inner.shared.read().state.range(&range.prefix, after.as_deref(), pin.revision, wanted);
            entries.extend(page);
            if !more || entries.len() == limit {
                return Ok(Page { entries, revision: pin.revision, more });
            }
            after = entries.last().map(|entry| entry.key.clone());
        }
    }

    /// How many live keys begin with `prefix`. Whole resources are counted without looking.
    pub fn count(&self, prefix: &[u8]) -> usize {
        self.inner.shared.read().state.count(prefix)
    }

    /// How many keys under `prefix` come after `after` as of `revision`. The state is let go every now and then.
    pub fn count_after(&self, prefix: &[u8], after: &[u8], revision: u64) -> Result<usize, Error> {
        let mut total = 0;
        let mut after = Some(Bytes::copy_from_slice(after));
        while let Some(from) = after {
            let core = self.inner.shared.read();
            check_revision(&core, revision)?;
            let (live, last) = core.state.count_some(prefix, Some(&from), revision, COUNTED_AT_ONCE);
            total += live;
            after = last;
        }
        Ok(total)
    }

    /// All of the batch or nothing of it. `Conflict` if a check does not hold.
    pub async fn write(&self, batch: Batch) -> Result<Written, Error> {
        let inner = &*self.inner;
        if inner.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let size = batch.size();
        if size > BATCH_BYTES_MAX || batch.puts.iter().any(|put| put.value.len() > VALUE_BYTES_MAX) {
            return Err(Error::TooLarge);
        }
        if inner.wal.no_space() && !batch.puts.is_empty() && batch.durability == Durability::Now {
            return Err(Error::NoSpace);
        }
        let _charge = inner.charge(size)?;
        // A check that fails already is refused here and costs no flash; the check that counts is in apply.
        let conflict = inner.shared.read().state.conflict(&batch.checks);
        if let Some(conflict) = conflict {
            return written(conflict);
        }
        let expiry = |ttl: Option<u32>| ttl.map_or(0, |seconds| (inner.config.now)() + u64::from(seconds));
        let expires = batch.puts.iter().map(|put| expiry(put.ttl_seconds)).collect();
        written(inner.node.propose(Arc::new(Command::Batch { batch, expires })).await?)
    }

    /// Events after revision `after` for every key under `prefix`; for that key alone, if it is a whole one.
    pub fn watch(&self, prefix: &[u8], after: u64) -> Result<Watcher, Error> {
        self.inner.shared.hub.watch(prefix, after)
    }

    /// Forgets history: nothing can be read as of revisions before this one.
    pub async fn compact(&self, revision: u64) -> Result<(), Error> {
        let current = self.revision();
        if revision > current {
            return Err(Error::Future { requested: revision, current });
        }
        if revision <= self.compacted() {
            return Ok(());
        }
        self.inner.node.propose(Arc::new(Command::Compact { revision })).await.map(|_| ())
    }

    /// Stops taking writes, makes everything durable and waits for the store's threads. A second call waits for nothing.
    pub async fn close(&self) {
        self.inner.closed.store(true, Ordering::Release);
        // The keeper first, as it writes through raft. A thread's panic, if any, was reported when it happened.
        if let Some(thread) = self.inner.keeper.stop() {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        if let Some(thread) = self.inner.node.stop() {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    /// Why the store cannot do its work, if it cannot.
    pub fn health(&self) -> Result<(), Error> {
        if self.inner.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        if self.inner.wal.has_failed() {
            return Err(Error::Raft("the log cannot be written".into()));
        }
        if self.inner.wal.no_space() || self.inner.keeper.report().no_space {
            return Err(Error::NoSpace);
        }
        self.inner.node.health()
    }

    /// Makes a checkpoint and a snapshot file now, whatever the log's size. Returns when they are durable.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        self.inner.keeper.checkpoint().await
    }

    /// Writes the present state as one verified file, for [`Store::restore`].
    pub async fn save_snapshot(&self, file: PathBuf) -> Result<(), Error> {
        let inner = self.inner.clone();
        let doing = format!("write the snapshot {}", file.display());
        let save = move || snapshot::write(inner.config.fs.as_ref(), &file, inner.cluster, &inner.shared.pin()).map(|_| ());
        let saved = tokio::task::spawn_blocking(save).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        saved.map_err(io_error(doing))
    }

    /// Begins a store in `config.dir`, which must be empty, from a snapshot file; returns its revision, which is far ahead
    /// of the snapshot's, so that whoever watched the old store lists again.
    pub fn restore(config: &Config, file: &std::path::Path) -> Result<u64, Error> {
        recover::restore_into(config, file)
    }

    /// This process may run what only the leader runs.
    pub fn is_leader(&self) -> bool {
        self.inner.node.is_leader()
    }

    pub fn stats(&self) -> Stats {
        let core = self.inner.shared.read();
        let live = core.state.live();
        let prefixes = core.state.tallies().into_iter().map(|(prefix, t)| (prefix, t.keys, t.bytes)).collect();
        let (revision, compacted) = (core.state.revision(), core.state.compacted());
        let history_bytes = core.state.history_bytes();
        drop(core);
        let (ring_events, ring_bytes) = self.inner.shared.hub.held();
        let report = self.inner.keeper.report();
        Stats {
            revision,
            compacted,
            keys: live.keys,
            bytes: live.bytes,
            history_bytes,
            watchers: self.inner.shared.hub.watchers(),
            ring_events,
            ring_bytes,
            wal_bytes: self.inner.wal.disk_bytes(),
            wal_appended_bytes: self.inner.wal.appended(),
            disk_bytes: disk_bytes(&self.inner.config.dir),
            checkpoint_revision: report.revision,
            checkpoints: report.count,
            checkpoint_error: report.error,
            prefixes,
        }
    }
}

/// Bytes of files under `dir`.
fn disk_bytes(dir: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

fn written(outcome: Outcome) -> Result<Written, Error> {
    match outcome {
        Outcome::Written(revisions) => Ok(Written { revisions }),
        Outcome::Conflict { key, current } => Err(Error::Conflict { key, current }),
        Outcome::Done => Ok(Written { revisions: Vec::new() }),
    }
}

fn check_revision(core: &Core, requested: u64) -> Result<(), Error> {
    let (current, compacted) = (core.state.revision(), core.state.compacted());
    if requested > current {
        return Err(Error::Future { requested, current });
    }
    if requested < compacted {
        return Err(Error::Compacted { requested, compacted });
    }
    Ok(())
}

/// Takes the directory for this process. A simulated file system has no other process to fear.
fn lock(config: &Config) -> Result<Option<File>, Error> {
    if !config.dir.is_dir() {
        return Ok(None);
    }
    let path = config.dir.join("LOCK");
    let file = File::create(&path).map_err(io_error(format!("create {}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::Locked { dir: config.dir.clone() }),
        Err(std::fs::TryLockError::Error(source)) => Err(Error::Io { doing: format!("lock {}", path.display()), source }),
    }
}

#[cfg(test)]
mod tests;
