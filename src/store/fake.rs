//! A file system in memory that can lose power: what a test, or a store without a disk, writes to. And [`Memory`], a store
//! that is only its state and its watch hub, for simulations that take their own steps.
//!
//! Bytes and names each exist twice, as programs see them and as the device holds them. [`SimFs::cut`] makes the file
//! system a machine would find after losing power now: every unsynced 4 KiB page and every unsynced name has reached the
//! device or not, as the seed decides, in no particular order. Start at [`SimFs`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::command::{Batch, Command};
use super::fs::{Fs, FsFile};
use super::state::{Entry, State};
use super::watch::{Hub, Wakes, Watcher};
use super::{Error, Written};

const PAGE: usize = 4096;

/// A simulated disk. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SimFs(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    names: BTreeMap<PathBuf, Arc<SimFile>>,
    durable_names: BTreeMap<PathBuf, Arc<SimFile>>,
    /// Paths whose name differs from the durable one.
    unsynced: BTreeSet<PathBuf>,
    syncs: u64,
    full: bool,
}

#[derive(Debug)]
struct SimFile {
    contents: Mutex<Contents>,
    disk: SimFs,
}

#[derive(Debug, Default)]
struct Contents {
    seen: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

/// A small generator of its own, so that a seed means the same for ever.
#[derive(Clone, Debug)]
pub struct Seed(u64);

impl Seed {
    pub fn new(seed: u64) -> Seed {
        Seed(seed)
    }

    /// The next number (splitmix64).
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.roll() % n.max(1)
    }
}

impl SimFs {
    pub fn new() -> SimFs {
        SimFs::default()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().expect("no panic while the disk is locked")
    }

    /// How often anything was synced.
    pub fn syncs(&self) -> u64 {
        self.disk().syncs
    }

    /// From now on files may be overwritten but not grow.
    pub fn set_full(&self, full: bool) {
        self.disk().full = full;
    }

    /// The disk as found after the power went now. This one goes on as if nothing had happened.
    pub fn cut(&self, seed: u64) -> SimFs {
        let mut seed = Seed::new(seed);
        let disk = self.disk();
        let after = SimFs::new();
        let mut names = disk.durable_names.clone();
        for path in &disk.unsynced {
            if seed.below(2) == 0 {
                continue;
            }
            match disk.names.get(path) {
                Some(file) => names.insert(path.clone(), file.clone()),
                None => names.remove(path),
            };
        }
        for (path, file) in names {
            let contents = file.lock();
            let mut bytes = contents.durable.clone();
            for page in &contents.dirty {
                if seed.below(2) == 0 {
                    continue;
                }
                let start = page * PAGE;
                let end = contents.seen.len().min(start + PAGE);
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[start..end].copy_from_slice(&contents.seen[start..end]);
            }
            drop(contents);
            let contents = Contents { seen: bytes.clone(), durable: bytes, dirty: BTreeSet::new() };
            let file = Arc::new(SimFile { contents: Mutex::new(contents), disk: after.clone() });
            let mut disk = after.disk();
            disk.names.insert(path.clone(), file.clone());
            disk.durable_names.insert(path, file);
        }
        after
    }

    /// Flips one bit of a file, behind everyone's back.
    pub fn flip(&self, path: &Path, bit: u64) {
        let disk = self.disk();
        let Some(file) = disk.names.get(path) else { return };
        let mut contents = file.lock();
        let at = (bit / 8) as usize;
        if at < contents.seen.len() {
            contents.seen[at] ^= 1 << (bit % 8);
            let byte = contents.seen[at];
            if at < contents.durable.len() {
                contents.durable[at] = byte;
            }
        }
    }
}

impl SimFile {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().expect("no panic while a file is locked")
    }
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no {}", path.display()))
}

impl Fs for SimFs {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.disk();
        let here = disk.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(here.filter_map(|path| Some(path.file_name()?.to_str()?.to_string())).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn FsFile>> {
        Ok(self.disk().names.get(path).ok_or_else(|| missing(path))?.clone())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn FsFile>> {
        let file = Arc::new(SimFile { contents: Mutex::default(), disk: self.clone() });
        let mut disk = self.disk();
        disk.names.insert(path.to_path_buf(), file.clone());
        disk.unsynced.insert(path.to_path_buf());
        Ok(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        let file = disk.names.remove(from).ok_or_else(|| missing(from))?;
        disk.names.insert(to.to_path_buf(), file);
        disk.unsynced.insert(from.to_path_buf());
        disk.unsynced.insert(to.to_path_buf());
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.names.remove(path).ok_or_else(|| missing(path))?;
        disk.unsynced.insert(path.to_path_buf());
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.syncs += 1;
        let unsynced = std::mem::take(&mut disk.unsynced);
        for path in unsynced {
            if path.parent() != Some(dir) {
                disk.unsynced.insert(path);
            } else if let Some(file) = disk.names.get(&path).cloned() {
                disk.durable_names.insert(path, file);
            } else {
                disk.durable_names.remove(&path);
            }
        }
        Ok(())
    }
}

impl FsFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let contents = self.lock();
        let start = contents.seen.len().min(offset as usize);
        let n = buffer.len().min(contents.seen.len() - start);
        buffer[..n].copy_from_slice(&contents.seen[start..start + n]);
        Ok(n)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let full = self.disk.disk().full;
        let mut contents = self.lock();
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if end > contents.seen.len() {
            if full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            contents.seen.resize(end, 0);
        }
        contents.seen[start..end].copy_from_slice(bytes);
        contents.dirty.extend(start / PAGE..end.div_ceil(PAGE));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.disk().syncs += 1;
        let mut contents = self.lock();
        let Contents { seen, durable, dirty } = &mut *contents;
        durable.resize(seen.len(), 0);
        for page in std::mem::take(dirty) {
            let (start, end) = (page * PAGE, seen.len().min(page * PAGE + PAGE));
            durable[start..end].copy_from_slice(&seen[start..end]);
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.lock().seen.len() as u64)
    }
}

/// The store's state and hub with nothing around them: no log, no raft, no threads. One owner calls it.
#[derive(Debug)]
pub struct Memory {
    state: State,
    hub: Arc<Hub>,
}

impl Memory {
    /// Keeps at most about `ring_bytes` of events per resource: who lags further behind is cut.
    pub fn new(ring_bytes: usize) -> Memory {
        Memory { state: State::default(), hub: Arc::new(Hub::new(0, ring_bytes)) }
    }

    pub fn revision(&self) -> u64 {
        self.state.revision()
    }

    pub fn get(&self, key: &[u8]) -> Option<Entry> {
        self.state.get(key)
    }

    /// All live keys under `prefix`, in order.
    pub fn range(&self, prefix: &[u8]) -> Vec<Entry> {
        self.state.range(prefix, None, self.state.revision(), usize::MAX).0
    }

    /// As [`super::Store::write`]; keys do not expire here.
    pub fn write(&mut self, batch: Batch) -> Result<Written, Error> {
        let expires = vec![0; batch.puts.len()];
        let mut changes = Vec::new();
        let outcome = self.state.apply(&Command::Batch { batch, expires }, &mut changes);
        let mut wakes = Wakes::default();
        self.hub.publish(&mut changes, self.state.revision(), &mut wakes);
        wakes.wake();
        super::written(outcome)
    }

    pub fn watch(&self, prefix: &[u8], after: u64) -> Result<Watcher, Error> {
        self.hub.watch(prefix, after)
    }

    /// Forgets history, as the store does at times.
    pub fn compact(&mut self) {
        let revision = self.state.revision();
        self.state.apply(&Command::Compact { revision }, &mut Vec::new());
    }

    /// What a restart means to watchers: nobody resumes.
    pub fn cut_watchers(&mut self) {
        let mut wakes = Wakes::default();
        self.hub.reset(self.state.revision(), &mut wakes);
        wakes.wake();
    }
}
