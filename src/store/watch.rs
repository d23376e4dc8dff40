//! The watch hub: a ring of recent events per resource, a cursor per watcher.
//!
//! Events come from apply, in revision order; a ring keeps as many as its byte budget allows and never more: a watcher
//! that falls behind the ring is cut with `Compacted` and lists again. The hub marks a watcher only when an event passes
//! its filter, so a watcher of one namespace or one key costs nothing while others are busy, and is never cut for events
//! it would not have seen.
//! *Invariant: when `applied` is R, every event up to R is in its ring.* Start at [`Hub::publish`] and [`Watcher::next`].

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::Error;
use super::state::{Change, Entry, resource_prefix};

/// How many events one call of [`Watcher::next`] hands over at most.
const DELIVERY_MAX: usize = 256;
/// What an event is charged beyond its key and value.
const EVENT_OVERHEAD_BYTES: usize = 256;
/// How many of a ring's events keep their encodings: those its watchers are busy with. Kept with all, they took several times
/// what the events themselves do. Who comes later encodes for itself.
const FRAMED_MAX: usize = 256;

/// One change of one key.
#[derive(Clone, Debug)]
pub struct StoreEvent {
    pub revision: u64,
    pub key: Bytes,
    /// `None`: the key was deleted.
    pub value: Option<Bytes>,
    pub previous: Option<Entry>,
    /// Shared by everyone who holds this event while it is new: a place for its encoded frames.
    pub frames: Option<Arc<Frames>>,
}

/// Encodings of one event, made once and shared by all its watchers. What a slot means is its user's business.
#[derive(Debug, Default)]
pub struct Frames([OnceLock<Bytes>; 6]);

impl Frames {
    /// The bytes in `slot` (0..6), made by `encode` if nobody has yet.
    pub fn get_or_init(&self, slot: usize, encode: impl FnOnce() -> Bytes) -> Bytes {
        self.0[slot].get_or_init(encode).clone()
    }
}

/// What [`Watcher::next_or_progress`] found.
#[derive(Debug)]
pub enum Delivery {
    Events(Vec<StoreEvent>),
    /// Nothing at or below this revision is still to come.
    Progress(u64),
}

/// Everything published and not yet forgotten.
#[derive(Debug)]
pub(crate) struct Hub {
    rings: RwLock<HashMap<Bytes, Arc<Ring>>>,
    /// Events at or below this are in no ring: what a ring made later starts from.
    floor: AtomicU64,
    applied: AtomicU64,
    ring_bytes: usize,
    watchers: AtomicUsize,
}

#[derive(Debug)]
struct Ring(Mutex<RingInner>);

#[derive(Debug, Default)]
struct RingInner {
    events: VecDeque<StoreEvent>,
    bytes: usize,
    /// The sequence number of `events[0]`.
    base: u64,
    /// Everything after this revision is here.
    floor: u64,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots by the prefix they filter on, and the lengths of those prefixes.
    filters: HashMap<Bytes, Vec<usize>>,
    lengths: Vec<usize>,
}

#[derive(Debug, Default)]
struct Slot {
    filter: Filter,
    after: u64,
    /// Sequence number of the first event not yet handed over that passes the filter.
    pending: Option<u64>,
    waker: Option<Waker>,
}

/// Which keys a watcher wants: all under a prefix, or exactly one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Filter {
    bytes: Bytes,
    exact: bool,
}

impl Filter {
    /// A watch on a whole key (`group \0 resource \0 namespace \0 name`) is for that key alone, `web` being a prefix of `web-2`.
    fn new(prefix: &[u8]) -> Filter {
        let third = prefix.iter().enumerate().filter(|(_, b)| **b == 0).map(|(i, _)| i).nth(2);
        Filter { bytes: Bytes::copy_from_slice(prefix), exact: third.is_some_and(|i| i + 1 < prefix.len()) }
    }

    fn wants(&self, key: &[u8]) -> bool {
        if self.exact { key == self.bytes } else { key.starts_with(&self.bytes) }
    }
}

/// Watchers to be woken, once the writes that concern them have been answered.
#[derive(Debug, Default)]
pub(crate) struct Wakes(Vec<Waker>);

impl Wakes {
    pub(crate) fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }
}

impl Hub {
    /// A hub that knows nothing of what happened up to `floor`.
    pub(crate) fn new(floor: u64, ring_bytes: usize) -> Hub {
        Hub {
            rings: RwLock::default(),
            floor: AtomicU64::new(floor),
            applied: AtomicU64::new(floor),
            ring_bytes,
            watchers: AtomicUsize::new(0),
        }
    }

    fn ring(&self, prefix: &[u8]) -> Arc<Ring> {
        if let Some(ring) = self.rings.read().expect("no panic while rings are locked").get(prefix) {
            return ring.clone();
        }
        let mut rings = self.rings.write().expect("no panic while rings are locked");
        let floor = self.floor.load(Ordering::Acquire);
        let fresh = || Arc::new(Ring(Mutex::new(RingInner { floor, ..RingInner::default() })));
        rings.entry(Bytes::copy_from_slice(prefix)).or_insert_with(fresh).clone()
    }

    /// Adds events, in revision order, and says that everything up to `applied` has now been published.
    pub(crate) fn publish(&self, changes: &mut Vec<Change>, applied: u64, wakes: &mut Wakes) {
        let mut current: Option<(Bytes, Arc<Ring>)> = None;
        for change in changes.drain(..) {
            let prefix = resource_prefix(&change.key);
            if current.as_ref().is_none_or(|(known, _)| known != prefix) {
                current = Some((Bytes::copy_from_slice(prefix), self.ring(prefix)));
            }
            let (_, ring) = current.as_ref().expect("set above");
            let event = StoreEvent {
                revision: change.revision,
                key: change.key,
                value: change.value,
                previous: change.previous,
                frames: Some(Arc::default()),
            };
            ring.lock().push(event, self.ring_bytes, wakes);
        }
        self.applied.store(applied, Ordering::Release);
    }

    /// Forgets everything up to `revision`: a snapshot was installed or the revision jumped.
    pub(crate) fn reset(&self, revision: u64, wakes: &mut Wakes) {
        let rings = self.rings.write().expect("no panic while rings are locked");
        self.floor.store(revision, Ordering::Release);
        for ring in rings.values() {
            let mut ring = ring.lock();
            ring.base += ring.events.len() as u64;
            ring.events.clear();
            ring.bytes = 0;
            ring.floor = revision;
            let base = ring.base;
            for slot in ring.slots.iter_mut().filter(|slot| slot.after < revision) {
                // Before the ring's base, so the watcher finds itself cut.
                slot.pending = Some(base.saturating_sub(1));
                wakes.0.extend(slot.waker.take());
            }
            // Cut even where nothing had ever been published.
            ring.base = base.max(1);
        }
        self.applied.store(revision, Ordering::Release);
    }

    pub(crate) fn watch(self: &Arc<Self>, prefix: &[u8], after: u64) -> Result<Watcher, Error> {
        let ring = self.ring(resource_prefix(prefix));
        let slot = ring.lock().register(prefix, after)?;
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Ok(Watcher { hub: self.clone(), ring, slot, delivered: after })
    }

    pub(crate) fn watchers(&self) -> usize {
        self.watchers.load(Ordering::Relaxed)
    }

    /// Events held and their bytes, over all rings.
    pub(crate) fn held(&self) -> (usize, usize) {
        let rings = self.rings.read().expect("no panic while rings are locked");
        rings.values().fold((0, 0), |(events, bytes), ring| {
            let ring = ring.lock();
            (events + ring.events.len(), bytes + ring.bytes)
        })
    }
}

impl Ring {
    fn lock(&self) -> MutexGuard<'_, RingInner> {
        self.0.lock().expect("no panic while a ring is locked")
    }
}

fn cost(event: &StoreEvent) -> usize {
    EVENT_OVERHEAD_BYTES + event.key.len() + event.value.as_ref().map_or(0, |v| v.len())
}

impl RingInner {
    fn push(&mut self, event: StoreEvent, budget: usize, wakes: &mut Wakes) {
        let sequence = self.base + self.events.len() as u64;
        for length in self.lengths.iter().take_while(|length| **length <= event.key.len()) {
            let Some(ids) = self.filters.get(&event.key[..*length]) else { continue };
            for id in ids {
                let slot = &mut self.slots[*id];
                if event.revision > slot.after && (!slot.filter.exact || *length == event.key.len()) {
                    slot.pending.get_or_insert(sequence);
                    wakes.0.extend(slot.waker.take());
                }
            }
        }
        self.bytes += cost(&event);
        self.events.push_back(event);
        if let Some(aged) = self.events.len().checked_sub(FRAMED_MAX + 1) {
            self.events[aged].frames = None;
        }
        while self.bytes > budget && self.events.len() > 1 {
            let old = self.events.pop_front().expect("more than one");
            self.bytes -= cost(&old);
            self.base += 1;
            self.floor = old.revision;
        }
    }

    fn register(&mut self, prefix: &[u8], after: u64) -> Result<usize, Error> {
        if after < self.floor {
            return Err(Error::Compacted { requested: after, compacted: self.floor });
        }
        let filter = Filter::new(prefix);
        let first = self.events.partition_point(|event| event.revision <= after);
        let pending = self.events.iter().skip(first).position(|event| filter.wants(&event.key));
        let pending = pending.map(|i| self.base + (first + i) as u64);
        let slot = Slot { filter: filter.clone(), after, pending, waker: None };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id] = slot;
                id
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        let length = filter.bytes.len();
        if let Err(at) = self.lengths.binary_search(&length) {
            self.lengths.insert(at, length);
        }
        self.filters.entry(filter.bytes).or_default().push(id);
        Ok(id)
    }

    fn unregister(&mut self, id: usize) {
        let filter = std::mem::take(&mut self.slots[id]).filter.bytes;
        self.free.push(id);
        let Some(ids) = self.filters.get_mut(&filter) else { return };
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            self.filters.remove(&filter);
            if !self.filters.keys().any(|other| other.len() == filter.len()) {
                self.lengths.retain(|length| *length != filter.len());
            }
        }
    }

    /// Hands over what is pending for a slot.
    fn drain(&mut self, id: usize) -> Result<Vec<StoreEvent>, u64> {
        let slot = &mut self.slots[id];
        let Some(pending) = slot.pending else { return Ok(Vec::new()) };
        if pending < self.base {
            return Err(self.floor);
        }
        let mut events = Vec::new();
        slot.pending = None;
        for (i, event) in self.events.iter().enumerate().skip((pending - self.base) as usize) {
            if event.revision <= slot.after || !slot.filter.wants(&event.key) {
                continue;
            }
            if events.len() == DELIVERY_MAX {
                slot.pending = Some(self.base + i as u64);
                break;
            }
            events.push(event.clone());
        }
        Ok(events)
    }
}

/// A cursor over the events of one resource, namespace or key. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watcher {
    hub: Arc<Hub>,
    ring: Arc<Ring>,
    slot: usize,
    /// The revision of the last event handed over, or where the watch began.
    delivered: u64,
}

impl Watcher {
    /// The next events, in order, at least one. `Compacted` if this watcher fell behind the ring: list and watch again.
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Vec<StoreEvent>, Error> {
        let events = poll_fn(|context| {
            let mut ring = self.ring.lock();
            match ring.drain(self.slot) {
                Ok(events) if events.is_empty() => {
                    ring.slots[self.slot].waker = Some(context.waker().clone());
                    Poll::Pending
                }
                other => Poll::Ready(other),
            }
        })
        .await;
        let events = events.map_err(|compacted| Error::Compacted { requested: self.delivered, compacted })?;
        self.delivered = events.last().expect("never empty").revision;
        Ok(events)
    }

    /// What is there already, without waiting.
    pub fn try_next(&mut self) -> Result<Vec<StoreEvent>, Error> {
        let events = self.ring.lock().drain(self.slot);
        let events = events.map_err(|compacted| Error::Compacted { requested: self.delivered, compacted })?;
        if let Some(last) = events.last() {
            self.delivered = last.revision;
        }
        Ok(events)
    }

    /// Nothing at or below this revision is still to come.
    pub fn progress(&self) -> u64 {
        // Read first: whatever was published before this is in the ring, and pending if it is for us.
        let applied = self.hub.applied.load(Ordering::Acquire);
        let pending = self.ring.lock().slots[self.slot].pending.is_some();
        if pending { self.delivered } else { self.delivered.max(applied) }
    }

    /// As [`Watcher::next`], but says how far things are when nothing came for `wait`.
    pub async fn next_or_progress(&mut self, wait: Duration) -> Result<Delivery, Error> {
        match tokio::time::timeout(wait, self.next()).await {
            Ok(events) => events.map(Delivery::Events),
            Err(_) => Ok(Delivery::Progress(self.progress())),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.ring.lock().unregister(self.slot);
        self.hub.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
