//! Start-up: which copy of the state to trust, and whether the log goes on from it.
//!
//! The checkpoint first; if it is missing, does not add up or is older than what the log still holds, the newest snapshot
//! file that verifies. If neither meets the log, the store refuses to start and says what is missing: a store that came
//! up with holes would be worse than one that did not. Start at [`recover`].

use std::io;
use std::path::Path;
use std::sync::Arc;

use tracing::{error, info, warn};

use super::checkpoint::Checkpoints;
use super::fs::{self, Fs};
use super::keeper::Generations;
use super::raft::{Core, LogEntry, Shared};
use super::state::{Row, State};
use super::tables::Head;
use super::wal::{self, Found, Position, Wal};
use super::{Config, Error, io_error, snapshot};

/// As etcd's own restore does it.
const RESTORE_JUMP: u64 = 1_000_000_000;
const FORMAT: &str = "coracle-store 1";

/// Who this store is; written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub cluster: u128,
    pub node: u64,
}

/// Everything a store starts from.
pub(crate) struct Recovered {
    pub identity: Identity,
    pub core: Core,
    pub wal: Wal<LogEntry>,
    pub found: Found,
    pub checkpoints: Option<Checkpoints>,
    pub generations: Generations,
}

/// A copy of the state that verified.
struct Copy {
    head: Head,
    rows: Vec<Row>,
}

pub(crate) fn recover(config: &Config) -> Result<Recovered, Error> {
    let reserve = config.dir.join("reserve");
    let options = wal::Options {
        fs: config.fs.clone(),
        dir: config.dir.join("wal"),
        segment_bytes: config.wal_segment_bytes,
        reserve: (config.reserve_bytes > 0).then(|| reserve.clone()),
        on_failure: config.on_log_failure,
    };
    let identity = identity(config)?;
    make_directories(config).map_err(io_error(format!("prepare {}", config.dir.display())))?;
    let (wal, found) = Wal::open(options).map_err(io_error(format!("open the log in {}", config.dir.display())))?;
    let restored = restore(config, &identity, &wal);
    if restored.is_err() {
        wal.close();
    }
    let (core, checkpoints, generations) = restored?;
    if config.reserve_bytes > 0
        && let Err(error) = make_reserve(config.fs.as_ref(), &reserve, config.reserve_bytes)
    {
        warn!(%error, "cannot allocate the reserve for a full disk");
    }
    Ok(Recovered { identity, core, wal, found, checkpoints, generations })
}

fn restore(config: &Config, identity: &Identity, wal: &Wal<LogEntry>) -> Result<(Core, Option<Checkpoints>, Generations), Error> {
    let mut generations = Generations::default();
    let mut checkpoints = None;
    let mut copy = None;
    if config.sled {
        let (opened, found) = open_checkpoints(config, identity, wal)?;
        generations.last = found.as_ref().and_then(|copy| copy.head.applied);
        (checkpoints, copy) = (Some(opened), found);
    }
    let trusted = copy.is_some();
    let copy = match copy {
        Some(copy) => Some(copy),
        None => newest_snapshot(config, identity, wal)?,
    };
    note_snapshots(config, &mut generations);
    let applied = copy.as_ref().and_then(|copy| copy.head.applied);
    meets(wal, applied).map_err(|what| damaged(config, &what))?;
    let Some(Copy { head, rows }) = copy else { return Ok((Core::default(), checkpoints, generations)) };
    let mut state = State::restore(head.revision, rows);
    if trusted {
        state.set_checkpoint(head.revision);
    }
    info!(revision = head.revision, keys = state.live().keys, "state loaded");
    Ok((Core { state, applied: head.applied, members: head.members, has_snapshot: head.applied.is_some() }, checkpoints, generations))
}

fn damaged(config: &Config, what: &str) -> Error {
    Error::Damaged { what: format!("{}: {what}; restore a snapshot of it", config.dir.display()) }
}

/// The log must go on where the state ends.
fn meets(wal: &Wal<LogEntry>, applied: Option<Position>) -> Result<(), String> {
    let (purged, last) = (wal.purged(), wal.last());
    match (applied, purged) {
        (None, Some(purged)) => Err(format!("the log begins after entry {} and no copy of the state before it is good", purged.index)),
        (Some(applied), Some(purged)) if applied.index < purged.index => {
            Err(format!("the log begins after entry {}, the newest good copy of the state ends at {}", purged.index, applied.index))
        }
        (Some(applied), _) if last.is_none_or(|last| last.index < applied.index) => {
            Err(format!("the log ends before entry {}, which the state contains: log files are missing", applied.index))
        }
        _ => Ok(()),
    }
}

fn open_checkpoints(config: &Config, identity: &Identity, wal: &Wal<LogEntry>) -> Result<(Checkpoints, Option<Copy>), Error> {
    let dir = config.dir.join("sled");
    let doing = || format!("open the checkpoint database in {}", dir.display());
    let opened = Checkpoints::open(&dir).and_then(|mut checkpoints| checkpoints.load().map(|found| (checkpoints, found)));
    let why = match opened {
        Ok((checkpoints, None)) => return Ok((checkpoints, None)),
        Ok((checkpoints, Some((head, rows)))) => {
            if head.cluster != identity.cluster {
                return Err(damaged(config, "its checkpoint belongs to another cluster"));
            }
            match meets(wal, head.applied) {
                Ok(()) => return Ok((checkpoints, Some(Copy { head, rows }))),
                Err(why) => why,
            }
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => error.to_string(),
        Err(error) => return Err(io_error(doing())(error)),
    };
    error!(why, "the checkpoint is not to be trusted; falling back to a snapshot file and the log");
    Checkpoints::start_over(&dir).map(|checkpoints| (checkpoints, None)).map_err(io_error(doing()))
}

fn newest_snapshot(config: &Config, identity: &Identity, wal: &Wal<LogEntry>) -> Result<Option<Copy>, Error> {
    let dir = config.dir.join("snap");
    for path in snapshot::list(config.fs.as_ref(), &dir).map_err(io_error(format!("list {}", dir.display())))? {
        match snapshot::load(config.fs.as_ref(), &path) {
            Ok((head, _)) if head.cluster != identity.cluster => {
                return Err(damaged(config, &format!("{} belongs to another cluster", path.display())));
            }
            Ok((head, rows)) => match meets(wal, head.applied) {
                Ok(()) => return Ok(Some(Copy { head, rows })),
                Err(why) => warn!(path = %path.display(), why, "this snapshot file does not meet the log"),
            },
            Err(error) => error!(path = %path.display(), %error, "this snapshot file is not to be trusted"),
        }
    }
    Ok(None)
}

/// What snapshot files cover, by their names: they were verified when written, and are read only in need.
fn note_snapshots(config: &Config, generations: &mut Generations) {
    let files = snapshot::list(config.fs.as_ref(), &config.dir.join("snap")).unwrap_or_default();
    let mut heads = files.iter().filter_map(|path| snapshot::head(config.fs.as_ref(), path).ok());
    generations.snapshot = heads.next().and_then(|head| head.applied);
    generations.snapshot_previous = heads.next().and_then(|head| head.applied);
}

fn identity(config: &Config) -> Result<Identity, Error> {
    let path = config.dir.join("meta");
    let read = config.fs.open(&path).and_then(|file| fs::read_all(file.as_ref()));
    match read {
        Ok(bytes) => parse_identity(&bytes).ok_or_else(|| damaged(config, "its `meta` file is not one of this format")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !config.fs.list(&config.dir.join("wal")).unwrap_or_default().is_empty() {
                return Err(damaged(config, "its `meta` file is missing"));
            }
            new_identity(config)
        }
        Err(error) => Err(io_error(format!("read {}", path.display()))(error)),
    }
}

fn new_identity(config: &Config) -> Result<Identity, Error> {
    let path = config.dir.join("meta");
    let mut random = [0; 16];
    let source = getrandom::fill(&mut random).map_err(io::Error::other);
    source.map_err(io_error("choose a cluster id"))?;
    let identity = Identity { cluster: u128::from_le_bytes(random), node: 1 };
    let text = format!("{FORMAT}\ncluster {:032x}\nnode {}\n", identity.cluster, identity.node);
    fs::replace(config.fs.as_ref(), &path, text.as_bytes()).map_err(io_error(format!("write {}", path.display())))?;
    Ok(identity)
}

/// Begins a new store in an empty directory from a snapshot file; returns its revision. It is another cluster with the
/// same objects: the revision is moved far ahead, so that whoever still watches the old one lists again.
pub(crate) fn restore_into(config: &Config, file: &Path) -> Result<u64, Error> {
    let fs = config.fs.as_ref();
    let doing = || format!("restore {} into {}", file.display(), config.dir.display());
    fs.create_dir_all(&config.dir).map_err(io_error(doing()))?;
    if !fs.list(&config.dir).map_err(io_error(doing()))?.is_empty() {
        return Err(Error::Io { doing: doing(), source: io::Error::other("the directory is not empty") });
    }
    let (head, rows) = snapshot::load(fs, file).map_err(io_error(doing()))?;
    let state = State::restore(head.revision + RESTORE_JUMP, rows);
    let revision = state.revision();
    let identity = new_identity(config)?;
    let shared = Arc::new(Shared::new(Core { state, ..Core::default() }, 0));
    snapshot::save(fs, &config.dir.join("snap"), identity.cluster, &shared.pin()).map_err(io_error(doing()))?;
    Ok(revision)
}

fn parse_identity(bytes: &[u8]) -> Option<Identity> {
    let mut lines = std::str::from_utf8(bytes).ok()?.lines();
    if lines.next()? != FORMAT {
        return None;
    }
    let cluster = u128::from_str_radix(lines.next()?.strip_prefix("cluster ")?, 16).ok()?;
    let node = lines.next()?.strip_prefix("node ")?.parse().ok()?;
    Some(Identity { cluster, node })
}

/// The directories are there after a power cut, too.
fn make_directories(config: &Config) -> io::Result<()> {
    for dir in ["wal", "snap"] {
        config.fs.create_dir_all(&config.dir.join(dir))?;
    }
    config.fs.sync_dir(&config.dir)?;
    config.dir.parent().map_or(Ok(()), |parent| config.fs.sync_dir(parent))
}

fn make_reserve(fs: &dyn Fs, path: &Path, bytes: u64) -> io::Result<()> {
    if fs.open(path).and_then(|file| file.size()).is_ok_and(|size| size >= bytes) {
        return Ok(());
    }
    wal::make_zeroed(fs, path, bytes)
}
