//! Pure: the applied state — an ordered map of version chains — and what each command does to it.
//!
//! Applying the same commands in the same order gives the same state, revisions and events everywhere: no clock, no
//! randomness, no iteration over unordered maps. Every changed key takes a revision of its own. The current version of a
//! key stands inline, older ones wait in its chain until compaction, or longer while a pin needs them (a pin holds bytes,
//! never answers: what may be *asked for* is decided by `compacted` alone). Start at [`State::apply`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::mem;
use std::ops::Bound;

use bytes::Bytes;

use super::command::{Batch, Check, Command, Expect};

/// One key with its value, as of some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Bytes,
    pub value: Bytes,
    pub mod_revision: u64,
    pub create_revision: u64,
}

/// A version of a key; a deleted one has no value.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub value: Option<Bytes>,
    pub revision: u64,
    pub created: u64,
    /// Unix second at which the key goes, or 0.
    pub expires: u64,
}

impl Version {
    fn entry(&self, key: &Bytes) -> Option<Entry> {
        let value = self.value.clone()?;
        Some(Entry { key: key.clone(), value, mod_revision: self.revision, create_revision: self.created })
    }
}

#[derive(Debug)]
struct Chain {
    current: Version,
    /// Oldest first; empty for most keys, and an empty `Vec` allocates nothing.
    older: Vec<Version>,
}

impl Chain {
    fn at(&self, revision: u64) -> Option<&Version> {
        if self.current.revision <= revision {
            return Some(&self.current);
        }
        self.older.iter().rev().find(|v| v.revision <= revision)
    }
}

/// One change, for the watch hub.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub revision: u64,
    pub key: Bytes,
    pub value: Option<Bytes>,
    pub previous: Option<Entry>,
}

/// What applying a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The revisions of the batch's puts, then of its deletes (0 for a key that was not there).
    Written(Vec<u64>),
    Conflict {
        key: Bytes,
        current: Option<Entry>,
    },
    Done,
}

/// How much one resource holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tally {
    pub keys: usize,
    pub bytes: usize,
}

/// A row of the current state, as checkpoints and snapshots keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub key: Bytes,
    pub value: Bytes,
    pub revision: u64,
    pub created: u64,
    pub expires: u64,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    keys: BTreeMap<Bytes, Chain>,
    revision: u64,
    compacted: u64,
    /// Which key got a version at which revision, oldest first: compaction's work list.
    history: VecDeque<(u64, Bytes)>,
    history_bytes: usize,
    expiry: BTreeSet<(u64, Bytes)>,
    tallies: HashMap<Bytes, Tally>,
    live: Tally,
    pins: BTreeMap<u64, usize>,
    /// The revision of the last checkpoint, and its rows that have been replaced or deleted since.
    checkpoint: u64,
    superseded: Vec<(Bytes, u64)>,
}

/// `group \0 resource \0`: the part of a key that names its watch ring and its tally. A key without two NULs is its own.
pub(crate) fn resource_prefix(key: &[u8]) -> &[u8] {
    let mut nuls = key.iter().enumerate().filter(|(_, b)| **b == 0).map(|(i, _)| i);
    nuls.next();
    nuls.next().map_or(key, |second| &key[..=second])
}

impl State {
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn compacted(&self) -> u64 {
        self.compacted
    }

    pub(crate) fn live(&self) -> Tally {
        self.live
    }

    pub(crate) fn history_bytes(&self) -> usize {
        self.history_bytes
    }

    pub(crate) fn tallies(&self) -> Vec<(Bytes, Tally)> {
        let mut all: Vec<_> = self.tallies.iter().filter(|(_, t)| t.keys > 0).map(|(k, t)| (k.clone(), *t)).collect();
        all.sort();
        all
    }

    /// The state a checkpoint or snapshot of `revision` described. History before it is gone, so it is compacted to it.
    pub(crate) fn restore(revision: u64, rows: impl IntoIterator<Item = Row>) -> State {
        let mut state = State { revision, compacted: revision, ..State::default() };
        for row in rows {
            let version = Version { value: Some(row.value), revision: row.revision, created: row.created, expires: row.expires };
            state.account(&row.key, &version);
            state.keys.insert(row.key, Chain { current: version, older: Vec::new() });
        }
        state
    }

    pub(crate) fn apply(&mut self, command: &Command, events: &mut Vec<Change>) -> Outcome {
        match command {
            Command::Batch { batch, expires } => self.apply_batch(batch, expires, events),
            Command::Expire { keys } => {
                for (key, revision) in keys {
                    if self.current(key).is_some_and(|v| v.revision == *revision) {
                        self.delete(key, events);
                    }
                }
                Outcome::Done
            }
            Command::Compact { revision } => {
                self.compact(*revision);
                Outcome::Done
            }
            Command::Jump { revision } => {
                self.revision = self.revision.max(*revision);
                self.compact(self.revision);
                Outcome::Done
            }
        }
    }

    fn apply_batch(&mut self, batch: &Batch, expires: &[u64], events: &mut Vec<Change>) -> Outcome {
        if let Some(conflict) = self.conflict(&batch.checks) {
            return conflict;
        }
        let mut revisions = Vec::with_capacity(batch.changes());
        for (put, expires) in batch.puts.iter().zip(expires) {
            revisions.push(self.put(&put.key, &put.value, *expires, events));
        }
        for key in &batch.deletes {
            revisions.push(self.delete(key, events));
        }
        Outcome::Written(revisions)
    }

    /// The first check that does not hold.
    pub(crate) fn conflict(&self, checks: &[Check]) -> Option<Outcome> {
        let failed = checks.iter().find(|check| {
            let current = self.current(&check.key);
            match check.expect {
                Expect::Absent => current.is_some(),
                Expect::At(revision) => current.is_none_or(|v| v.revision != revision),
                Expect::Present => current.is_none(),
            }
        })?;
        Some(Outcome::Conflict { key: failed.key.clone(), current: self.get(&failed.key) })
    }

    fn current(&self, key: &[u8]) -> Option<&Version> {
        self.keys.get(key).map(|chain| &chain.current).filter(|v| v.value.is_some())
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Entry> {
        let (key, chain) = self.keys.get_key_value(key)?;
        chain.current.entry(key)
    }

    pub(crate) fn get_at(&self, key: &[u8], revision: u64) -> Option<Entry> {
        let (key, chain) = self.keys.get_key_value(key)?;
        chain.at(revision)?.entry(key)
    }

    fn put(&mut self, key: &Bytes, value: &Bytes, expires: u64, events: &mut Vec<Change>) -> u64 {
        self.revision += 1;
        let revision = self.revision;
        let mut version = Version { value: Some(value.clone()), revision, created: revision, expires };
        let (key, previous) = match self.keys.get_key_value(key.as_ref()) {
            // The key of the map is used from here on, so that one allocation serves the key's whole life.
            Some((key, chain)) => (key.clone(), chain.current.entry(key)),
            None => (key.clone(), None),
        };
        if let Some(previous) = &previous {
            version.created = previous.create_revision;
        }
        self.push(&key, version);
        events.push(Change { revision, key, value: Some(value.clone()), previous });
        revision
    }

    fn delete(&mut self, key: &[u8], events: &mut Vec<Change>) -> u64 {
        let Some(previous) = self.get(key) else { return 0 };
        self.revision += 1;
        let revision = self.revision;
        let key = previous.key.clone();
        self.push(&key, Version { value: None, revision, created: 0, expires: 0 });
        events.push(Change { revision, key, value: None, previous: Some(previous) });
        revision
    }

    /// Makes `version` the current one of `key`; the one it replaces becomes history.
    fn push(&mut self, key: &Bytes, version: Version) {
        self.account(key, &version);
        let revision = version.revision;
        let Some(chain) = self.keys.get_mut(key) else {
            self.keys.insert(key.clone(), Chain { current: version, older: Vec::new() });
            return;
        };
        let old = mem::replace(&mut chain.current, version);
        let (old_revision, old_expires, old_size) = (old.revision, old.expires, old.value.as_ref().map(|v| v.len()));
        chain.older.push(old);
        self.history.push_back((revision, key.clone()));
        if let Some(size) = old_size {
            self.history_bytes += size;
            self.unaccount(key, size, old_expires);
            if old_revision <= self.checkpoint {
                self.superseded.push((key.clone(), old_revision));
            }
        }
    }

    fn account(&mut self, key: &Bytes, version: &Version) {
        let Some(value) = &version.value else { return };
        if version.expires > 0 {
            self.expiry.insert((version.expires, key.clone()));
        }
        let prefix = resource_prefix(key);
        if !self.tallies.contains_key(prefix) {
            self.tallies.insert(Bytes::copy_from_slice(prefix), Tally::default());
        }
        let tally = self.tallies.get_mut(prefix).expect("inserted above");
        for tally in [tally, &mut self.live] {
            tally.keys += 1;
            tally.bytes += value.len();
        }
    }

    fn unaccount(&mut self, key: &Bytes, size: usize, expires: u64) {
        if expires > 0 && self.current(key).is_none_or(|v| v.expires != expires) {
            self.expiry.remove(&(expires, key.clone()));
        }
        let tally = self.tallies.get_mut(resource_prefix(key)).expect("a live key was counted when it came");
        for tally in [tally, &mut self.live] {
            tally.keys -= 1;
            tally.bytes -= size;
        }
    }

    fn compact(&mut self, revision: u64) {
        self.compacted = self.compacted.max(revision.min(self.revision));
        self.collect();
    }

    /// Frees every version that neither a reader at `compacted` or later nor a pin can see.
    fn collect(&mut self) {
        let floor = self.pins.keys().next().map_or(self.compacted, |pin| self.compacted.min(*pin));
        while self.history.front().is_some_and(|(revision, _)| *revision <= floor) {
            let (_, key) = self.history.pop_front().expect("seen above");
            let Some(chain) = self.keys.get_mut(&key) else { continue };
            // A version is still visible if its successor came after the floor.
            let visible = chain.older.iter().skip(1).chain([&chain.current]).take_while(|next| next.revision <= floor).count();
            for old in chain.older.drain(..visible.min(chain.older.len())) {
                self.history_bytes -= old.value.map_or(0, |v| v.len());
            }
            if chain.older.is_empty() && chain.current.value.is_none() && chain.current.revision <= floor {
                self.keys.remove(&key);
            }
        }
    }

    /// Keeps everything visible at `revision` in memory until [`State::unpin`].
    pub(crate) fn pin(&mut self, revision: u64) {
        *self.pins.entry(revision).or_default() += 1;
    }

    pub(crate) fn unpin(&mut self, revision: u64) {
        let count = self.pins.get_mut(&revision).expect("unpin follows a pin");
        *count -= 1;
        if *count == 0 {
            self.pins.remove(&revision);
            self.collect();
        }
    }

    /// Up to `limit` live keys under `prefix`, after `after`, as of `revision`; and whether there are more.
    pub(crate) fn range(&self, prefix: &[u8], after: Option<&[u8]>, revision: u64, limit: usize) -> (Vec<Entry>, bool) {
        let mut entries = Vec::new();
        for (key, chain) in self.scan(prefix, after) {
            let Some(entry) = chain.at(revision).and_then(|v| v.entry(key)) else { continue };
            if entries.len() == limit {
                return (entries, true);
            }
            entries.push(entry);
        }
        (entries, false)
    }

    fn scan<'a>(&'a self, prefix: &'a [u8], after: Option<&'a [u8]>) -> impl Iterator<Item = (&'a Bytes, &'a Chain)> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            Some(_) | None => Bound::Included(prefix),
        };
        self.keys.range::<[u8], _>((start, Bound::Unbounded)).take_while(move |(key, _)| key.starts_with(prefix))
    }

    pub(crate) fn count(&self, prefix: &[u8]) -> usize {
        if prefix.is_empty() {
            return self.live.keys;
        }
        if prefix.ends_with(&[0]) && resource_prefix(prefix) == prefix {
            return self.tallies.get(prefix).map_or(0, |t| t.keys);
        }
        self.scan(prefix, None).filter(|(_, chain)| chain.current.value.is_some()).count()
    }

    /// How many of the next `limit` keys under `prefix` after `after` were live at `revision`; and the last of them if there
    /// may be more.
    pub(crate) fn count_some(&self, prefix: &[u8], after: Option<&[u8]>, revision: u64, limit: usize) -> (usize, Option<Bytes>) {
        let (mut live, mut last) = (0, None);
        for (seen, (key, chain)) in self.scan(prefix, after).enumerate() {
            if seen == limit {
                return (live, last);
            }
            live += usize::from(chain.at(revision).is_some_and(|v| v.value.is_some()));
            last = Some(key.clone());
        }
        (live, None)
    }

    /// Up to `limit` keys, with their revisions, that expire at or before `now`.
    pub(crate) fn due(&self, now: u64, limit: usize) -> Vec<(Bytes, u64)> {
        let due = self.expiry.iter().take_while(|(expires, _)| *expires <= now).take(limit);
        due.filter_map(|(_, key)| Some((key.clone(), self.current(key)?.revision))).collect()
    }

    #[cfg(test)]
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.expiry.first().map(|(expires, _)| *expires)
    }

    /// Up to `limit` rows as of `revision` written after `since`, from `after` on; and where to go on, if anywhere.
    /// The work per call is bounded in keys looked at, so that a reader never holds the state for long.
    pub(crate) fn rows(&self, after: Option<&[u8]>, revision: u64, since: u64, limit: usize) -> (Vec<Row>, Option<Bytes>) {
        let mut rows = Vec::new();
        for (seen, (key, chain)) in self.scan(&[], after).enumerate() {
            if let Some(row) = chain.at(revision).filter(|v| v.revision > since).and_then(|v| row(key, v)) {
                rows.push(row);
            }
            if rows.len() == limit || seen == limit * 16 {
                return (rows, Some(key.clone()));
            }
        }
        (rows, None)
    }

    /// Begins a checkpoint at the current revision: hands over the rows replaced since the last one and counts afresh.
    pub(crate) fn begin_checkpoint(&mut self) -> Vec<(Bytes, u64)> {
        self.checkpoint = self.revision;
        mem::take(&mut self.superseded)
    }

    /// Gives back what a failed checkpoint took. What it wrote may be there, so all newer replacements stay listed too.
    pub(crate) fn abandon_checkpoint(&mut self, mut superseded: Vec<(Bytes, u64)>) {
        superseded.append(&mut self.superseded);
        self.superseded = superseded;
    }

    /// The revision the last checkpoint was begun at.
    pub(crate) fn checkpoint(&self) -> u64 {
        self.checkpoint
    }

    /// Says that a checkpoint of `revision` exists (after loading it).
    pub(crate) fn set_checkpoint(&mut self, revision: u64) {
        self.checkpoint = revision;
    }
}

fn row(key: &Bytes, version: &Version) -> Option<Row> {
    let value = version.value.clone()?;
    Some(Row { key: key.clone(), value, revision: version.revision, created: version.created, expires: version.expires })
}

#[cfg(test)]
mod tests;
