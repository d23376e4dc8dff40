//! Checkpoints: the current values of the applied state, in sled, so that the log can be let go.
//!
//! sled 0.34.7 as shipped loses acknowledged writes on power loss, and loses data silently on a flipped bit. What guards
//! against it here, each found by an experiment (notes/store.md 3):
//! - `sync_file_range`, which makes nothing durable, is ours and calls `fdatasync`; a probe at every open sees that it is.
//! - Segments of 2 MiB and values of at most 24 KiB: larger pages go to files that are never synced. `blobs/` stays empty.
//! - A recovery file half written by an earlier open (`snap.*.generating`) is removed, or sled calls itself corrupt.
//! - The directory is synced after creation. One thread writes, in small batches, with no transactions or subscribers.
//! - A count and a set hash over all rows, and a checksum in each: what does not add up is not trusted.
//!
//! Rows are never overwritten. A checkpoint adds rows, then the heading that makes them count, then removes those it
//! replaced; a deleted key leaves a tombstone until its rows are gone for certain. So one that is torn anywhere is either
//! the old or the new one. Start at [`Checkpoints::save`] and [`Checkpoints::load`].
// The override of a libc symbol needs `unsafe`; nothing else here does.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tracing::{error, warn};

use super::command::Input;
use super::raft::Pin;
use super::state::Row;
use super::tables::{Deflater, Head, Sum, checked, decode_row, encode_row, encode_tombstone, row_key, sealed, split_row_key};

const BATCH_BYTES: usize = 256 << 10;
const SEGMENT_BYTES: usize = 2 << 20;
const CACHE_BYTES: u64 = 2 << 20;
const HEAD: &[u8] = b"head";

/// How often sled asked for durability and got it.
static SYNCS: AtomicU64 = AtomicU64::new(0);

/// Takes the place of libc's in this program. sled believes that data is on disk when this returns, so make it so.
// SAFETY: the name and signature are libc's; the only caller in this program is sled, which passes its open log file.
#[unsafe(no_mangle)]
extern "C" fn sync_file_range(fd: libc::c_int, _offset: libc::off64_t, _bytes: libc::off64_t, _flags: libc::c_uint) -> libc::c_int {
    SYNCS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: fdatasync takes any number and answers EBADF for one that is not an open file.
    unsafe { libc::fdatasync(fd) }
}

/// The checkpoint database, owned by the thread that writes it.
pub(crate) struct Checkpoints {
    dir: PathBuf,
    db: sled::Db,
    rows: sled::Tree,
    last: Option<(Head, Sum)>,
    /// Tombstones whose keys' older rows were removed: they go with the next checkpoint.
    tombstones: Vec<Vec<u8>>,
}

fn from_sled(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}

fn config(dir: &Path) -> sled::Config {
    sled::Config::new().path(dir).segment_size(SEGMENT_BYTES).cache_capacity(CACHE_BYTES).flush_every_ms(None)
}

/// sled's own lock may be held a little longer by threads of a handle this process has just dropped. Other processes are
/// kept out by the store's lock.
fn open_patiently(dir: &Path) -> sled::Result<sled::Db> {
    let mut tries = 0;
    loop {
        match config(dir).open() {
            Err(sled::Error::Io(error)) if tries < 500 && error.to_string().contains("acquire lock") => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// Removes sled's recovery files: those half written, or all.
fn remove_recovery_files(dir: &Path, all: bool) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && (all || name.ends_with(".generating")) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl Checkpoints {
    /// Opens or makes the database in `dir`.
    pub(crate) fn open(dir: &Path) -> io::Result<Checkpoints> {
        fs::create_dir_all(dir)?;
        remove_recovery_files(dir, false)?;
        let db = match open_patiently(dir) {
            Err(sled::Error::Corruption { .. }) => {
                warn!(dir = %dir.display(), "the checkpoint database calls itself corrupt; reading all of it again");
                remove_recovery_files(dir, true)?;
                open_patiently(dir)
            }
            other => other,
        };
        let db = db.map_err(from_sled)?;
        let rows = db.open_tree("kv").map_err(from_sled)?;
        let checkpoints = Checkpoints { dir: dir.to_path_buf(), db, rows, last: None, tombstones: Vec::new() };
        checkpoints.probe()?;
        File::open(dir)?.sync_all()?;
        if let Some(parent) = dir.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(checkpoints)
    }

    /// Puts `dir` out of the way, for someone to look at, and begins anew.
    pub(crate) fn start_over(dir: &Path) -> io::Result<Checkpoints> {
        let bad = dir.with_extension("bad");
        if bad.exists() {
            fs::remove_dir_all(&bad)?;
        }
        if dir.exists() {
            fs::rename(dir, &bad)?;
        }
        Checkpoints::open(dir)
    }

    /// A flush must come by our `sync_file_range`, else nothing here is durable.
    fn probe(&self) -> io::Result<()> {
        let before = SYNCS.load(Ordering::Relaxed);
        let count = self.db.get(b"probe").map_err(from_sled)?.map_or(0, |bytes| bytes.first().copied().unwrap_or(0));
        self.db.insert(b"probe", &[count.wrapping_add(1)]).map_err(from_sled)?;
        self.flush()?;
        if SYNCS.load(Ordering::Relaxed) == before {
            return Err(io::Error::other("this build of the program cannot make checkpoints durable (sync_file_range is not ours)"));
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.db.flush().map_err(from_sled).map(|_| ())
    }

    /// The last checkpoint; `None` if there is none; an error of kind `InvalidData` if it is not to be trusted.
    pub(crate) fn load(&mut self) -> io::Result<Option<(Head, Vec<Row>)>> {
        let damaged = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", self.dir.display()));
        let Some(bytes) = self.db.get(HEAD).map_err(from_sled)? else { return Ok(None) };
        let body = checked(&bytes);
        let mut input = Input(body.unwrap_or_default());
        let heading = Head::decode(&mut input).zip(Sum::decode(&mut input));
        let (head, expected) = heading.ok_or_else(|| damaged("the heading is damaged".into()))?;
        let Scan { rows: found, stale } = self.scan(head.revision)?;
        let mut rows = Vec::with_capacity(found.len());
        let mut sum = Sum::default();
        let mut tombstones = Vec::new();
        for (key, (revision, bytes)) in found {
            match decode_row(&key, revision, &bytes).map_err(damaged)? {
                Some(row) => {
                    sum.add(&key, revision);
                    rows.push(row);
                }
                None => tombstones.push(row_key(&key, revision, 0)),
            }
        }
        if sum != expected {
            return Err(damaged(format!("{} rows were found where {} of a certain hash were written", sum.count, expected.count)));
        }
        // Durable before the tombstones go.
        self.remove(stale)?;
        self.flush()?;
        self.tombstones = tombstones;
        self.last = Some((head.clone(), sum));
        Ok(Some((head, rows)))
    }

    /// The newest row of each key at or before `revision`, its chunks joined, and all rows that are neither.
    fn scan(&self, revision: u64) -> io::Result<Scan> {
        let mut scan = Scan::default();
        for item in self.rows.iter() {
            let (raw, value) = item.map_err(from_sled)?;
            let Some((key, row_revision, chunk)) = split_row_key(&raw).filter(|(_, r, _)| *r <= revision) else {
                scan.stale.push(raw.to_vec());
                continue;
            };
            let entry = scan.rows.entry(Bytes::copy_from_slice(key)).or_insert((row_revision, Vec::new()));
            if row_revision > entry.0 {
                // Chunks of the older row: enough are named to remove what was there.
                let chunks = entry.1.len().div_ceil(super::tables::CHUNK_BYTES).max(1);
                scan.stale.extend((0..chunks as u16).map(|chunk| row_key(key, entry.0, chunk)));
                *entry = (row_revision, Vec::new());
            }
            if usize::from(chunk) * super::tables::CHUNK_BYTES == entry.1.len() && row_revision == entry.0 {
                entry.1.extend_from_slice(&value);
            } else {
                // A chunk without those before it is what an interrupted removal leaves.
                scan.stale.push(raw.to_vec());
            }
        }
        Ok(scan)
    }

    /// Makes the pinned state the checkpoint. `superseded` are the rows replaced or deleted since the last attempt.
    pub(crate) fn save(&mut self, cluster: u128, pin: &Pin, superseded: &[(Bytes, u64)]) -> io::Result<Head> {
        let (since, mut sum) = self.last.as_ref().map_or((0, Sum::default()), |(head, sum)| (head.revision, *sum));
        let head = Head { cluster, applied: pin.applied, members: pin.members.clone(), revision: pin.revision };
        let mut batch = Pending::default();
        let mut deflater = Deflater::new();
        for page in pin.rows(since) {
            for row in page {
                sum.add(&row.key, row.revision);
                for (chunk, bytes) in encode_row(&row, &mut deflater).into_iter().enumerate() {
                    batch.put(&self.rows, row_key(&row.key, row.revision, chunk as u16), bytes)?;
                }
            }
        }
        let mut tombstones = Vec::new();
        for (key, revision) in superseded {
            if *revision <= since {
                sum.remove(key, *revision);
            }
            if !pin.has(key) {
                let tombstone = row_key(key, pin.revision, 0);
                batch.put(&self.rows, tombstone.clone(), encode_tombstone())?;
                tombstones.push(tombstone);
            }
        }
        batch.apply(&self.rows)?;
        self.flush()?;
        let mut heading = Vec::new();
        head.encode(&mut heading);
        sum.encode(&mut heading);
        self.db.insert(HEAD, sealed(heading)).map_err(from_sled)?;
        self.flush()?;
        self.last = Some((head.clone(), sum));
        // From here on only rubbish is removed: failing to changes nothing.
        let old = std::mem::replace(&mut self.tombstones, tombstones);
        if let Err(error) = self.clean(superseded, old) {
            warn!(%error, "cannot remove replaced rows from the checkpoint database");
            // They must outlive the rows they stand over; the next start sorts it out.
            self.tombstones.clear();
        }
        self.check_blobs();
        Ok(head)
    }

    fn clean(&self, superseded: &[(Bytes, u64)], tombstones: Vec<Vec<u8>>) -> io::Result<()> {
        self.remove(tombstones)?;
        let mut stale = Vec::new();
        for (key, revision) in superseded {
            let from = row_key(key, *revision, 0);
            let to = row_key(key, *revision, u16::MAX);
            for raw in self.rows.range(from..=to).keys() {
                stale.push(raw.map_err(from_sled)?.to_vec());
            }
        }
        self.remove(stale)?;
        self.flush()
    }

    fn remove(&self, keys: Vec<Vec<u8>>) -> io::Result<()> {
        for chunk in keys.chunks(1024) {
            let mut batch = sled::Batch::default();
            chunk.iter().for_each(|key| batch.remove(key.as_slice()));
            self.rows.apply_batch(batch).map_err(from_sled)?;
        }
        Ok(())
    }

    fn check_blobs(&self) {
        let blobs = fs::read_dir(self.dir.join("blobs")).map_or(0, |dir| dir.count());
        if blobs > 0 {
            error!(blobs, dir = %self.dir.display(), "pages outgrew their segments and are not durable there");
        }
    }
}

/// Each key's newest row as revision and joined chunks; and row keys to be removed.
#[derive(Default)]
struct Scan {
    rows: BTreeMap<Bytes, (u64, Vec<u8>)>,
    stale: Vec<Vec<u8>>,
}

/// A batch that applies itself when it is large enough.
#[derive(Default)]
struct Pending {
    batch: sled::Batch,
    bytes: usize,
}

impl Pending {
    fn put(&mut self, tree: &sled::Tree, key: Vec<u8>, value: Vec<u8>) -> io::Result<()> {
        self.bytes += key.len() + value.len();
        self.batch.insert(key, value);
        if self.bytes >= BATCH_BYTES { self.apply(tree) } else { Ok(()) }
    }

    fn apply(&mut self, tree: &sled::Tree) -> io::Result<()> {
        self.bytes = 0;
        tree.apply_batch(std::mem::take(&mut self.batch)).map_err(from_sled)
    }
}

#[cfg(test)]
mod tests;
