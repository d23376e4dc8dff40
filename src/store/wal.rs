//! The log on disk: preallocated, zero-filled, recycled segments; one thread that writes and syncs.
//!
//! Appends queue up; the thread takes all there are, writes them with one `write`, syncs once and answers in order.
//! Overwriting initialised blocks is what keeps a small write cheap on flash, hence the preallocation.
//!
//! A frame carries its segment's sequence number, so that what a recycled segment still holds is never mistaken for new,
//! and the offset up to which the segment was known to be durable when the frame was written. That decides what a bad
//! frame means: if a later frame says its place had been synced, data is lost and the log is refused; if not, the power
//! went while it was being written and the log ends before it. A file of zeroes past the end is the normal case.
//!
//! What this cannot tell: a bit that flipped on the medium in the very last synced batch, when the process then ends
//! uncleanly before anything else is written. It reads as a write torn by the power, and that batch is lost. Telling the two
//! apart takes a second sync per batch, twice the flash wear; on a node the next lease renewal's frame, at most ten seconds
//! later, says that the batch was synced.
//!
//! A failed write or sync is never retried: what is on disk is unknown from then on. Every later append fails, and the
//! owner ends the process.
//!
//! What entries mean is the caller's business: `E` is what it gets back while an entry is cached, bytes otherwise.
//! Start at [`Wal::open`] and `Writer::run`.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{error, warn};

use super::command::{Durability, Input, Relaxed};
use super::fs::{Fs, FsFile, read_all};

const MAGIC: &[u8; 8] = b"CORAWAL1";
const SEGMENT_HEADER: u64 = 40;
const FRAME_HEADER: usize = 24;
/// How long a relaxed write other than a heartbeat may stay unsynced, and how many revisions may.
const RELAXED_AGE_MAX: Duration = Duration::from_secs(60);
pub(crate) const RELAXED_CHANGES_MAX: usize = 10_000;
/// Bytes of heartbeats that are kept in memory until they are written by themselves.
const HEARTBEAT_BYTES_MAX: usize = 64 << 10;
/// Decoded entries kept for replication and apply; older ones are read back from disk.
const CACHE_BYTES: usize = 4 << 20;
const SPARE_RETRY: Duration = Duration::from_secs(5);

/// A position in the raft log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub term: u64,
    pub index: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ballot {
    pub term: u64,
    pub node: u64,
    pub committed: bool,
}

/// What a frame holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Entry {
        at: Position,
        body: Vec<u8>,
    },
    Vote(Ballot),
    Committed(Position),
    /// Entries after this are gone (all of them, if `None`).
    Truncate(Option<Position>),
    /// Entries up to this are gone.
    Purged(Position),
    /// The store was closed properly here.
    Closed,
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub fs: Arc<dyn Fs>,
    pub dir: PathBuf,
    pub segment_bytes: u64,
    /// A file to give up when the disk is full.
    pub reserve: Option<PathBuf>,
    /// Called once, from the log's thread, when a write or sync failed.
    pub on_failure: fn(&io::Error),
}

/// What was found on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// There was a log at all.
    pub existed: bool,
    /// Its last record was `Closed`.
    pub clean: bool,
    /// Bytes after the last good frame that a crash left there.
    pub torn_bytes: u64,
}

type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

struct Request {
    records: Vec<Record>,
    /// What may be lost although it was answered.
    relaxed: Option<Relaxed>,
    done: Done,
}

#[derive(Default)]
struct Queue {
    requests: Vec<Request>,
    closing: bool,
}

#[derive(Debug)]
struct Segment {
    sequence: u64,
    path: PathBuf,
    file: Arc<dyn FsFile>,
    size: u64,
}

struct Slot<E> {
    term: u64,
    /// `None` until it has been written.
    place: Option<(Arc<Segment>, u32, u32)>,
    cached: Option<(E, usize)>,
}

struct Index<E> {
    /// The index of `slots[0]`, or of the next entry.
    first: u64,
    slots: VecDeque<Slot<E>>,
    /// The first slot that may still be cached, as a log index.
    cached_from: u64,
    cached_bytes: usize,
    vote: Option<Ballot>,
    purged: Option<Position>,
    committed: Option<Position>,
}

impl<E> Default for Index<E> {
    fn default() -> Self {
        Index { first: 0, slots: VecDeque::new(), cached_from: 0, cached_bytes: 0, vote: None, purged: None, committed: None }
    }
}

struct Shared<E> {
    index: Mutex<Index<E>>,
    queue: Mutex<Queue>,
    ready: Condvar,
    spares: Mutex<Vec<PathBuf>>,
    making_spare: AtomicBool,
    no_space: AtomicBool,
    failed: AtomicBool,
    /// Bytes appended since the store was opened, and bytes of files.
    appended: AtomicU64,
    disk_bytes: AtomicU64,
}

/// The log. Clones share it.
pub(crate) struct Wal<E> {
    shared: Arc<Shared<E>>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl<E> Clone for Wal<E> {
    fn clone(&self) -> Self {
        Wal { shared: self.shared.clone(), thread: self.thread.clone() }
    }
}

/// An entry as [`Wal::read`] found it.
pub(crate) enum Read<E> {
    Cached(E),
    Encoded(Position, Vec<u8>),
}

fn corrupt(path: &std::path::Path, what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

fn failed() -> io::Error {
    io::Error::other("an earlier write to the log failed")
}

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Record::Entry { .. } => 1,
            Record::Vote(_) => 2,
            Record::Committed(_) => 3,
            Record::Truncate(_) => 4,
            Record::Purged(_) => 5,
            Record::Closed => 6,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let mut position = |at: &Position| {
            out.extend_from_slice(&at.term.to_le_bytes());
            out.extend_from_slice(&at.index.to_le_bytes());
        };
        match self {
            Record::Entry { at, body } => {
                position(at);
                out.extend_from_slice(body);
            }
            Record::Committed(at) | Record::Purged(at) | Record::Truncate(Some(at)) => position(at),
            Record::Vote(vote) => {
                position(&Position { term: vote.term, index: vote.node });
                out.push(vote.committed as u8);
            }
            Record::Truncate(None) | Record::Closed => {}
        }
    }

    fn decode(kind: u8, body: &[u8]) -> Option<Record> {
        let mut input = Input(body);
        let mut position = || Some(Position { term: input.u64()?, index: input.u64()? });
        Some(match kind {
            1 => Record::Entry { at: position()?, body: input.0.to_vec() },
            2 => {
                let at = position()?;
                Record::Vote(Ballot { term: at.term, node: at.index, committed: input.u8()? != 0 })
            }
            3 => Record::Committed(position()?),
            4 if body.is_empty() => Record::Truncate(None),
            4 => Record::Truncate(Some(position()?)),
            5 => Record::Purged(position()?),
            6 => Record::Closed,
            _ => return None,
        })
    }
}

fn frame_crc(header: &[u8], body: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&header[..4]);
    let crc = crc32c::crc32c_append(crc, &header[8..FRAME_HEADER]);
    crc32c::crc32c_append(crc, body)
}

/// Appends one frame, padded to 8 bytes; returns offset and length of the record's body within `out`.
fn push_frame(out: &mut Vec<u8>, record: &Record, sequence: u64, durable: u64) -> (usize, usize) {
    let start = out.len();
    out.resize(start + FRAME_HEADER, 0);
    record.encode(out);
    let length = out.len() - start - FRAME_HEADER;
    let header = &mut out[start..start + FRAME_HEADER];
    header[..4].copy_from_slice(&u32::try_from(length).expect("entries are bounded").to_le_bytes());
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    header[16..20].copy_from_slice(&u32::try_from(durable).expect("segments are bounded").to_le_bytes());
    header[20] = record.kind();
    let crc = frame_crc(&out[start..start + FRAME_HEADER], &out[start + FRAME_HEADER..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + (FRAME_HEADER + length).next_multiple_of(8), 0);
    (start + FRAME_HEADER, length)
}

struct Frame<'a> {
    kind: u8,
    durable: u64,
    body: &'a [u8],
    end: usize,
}

/// The frame at `at`, if there is a good one of this segment.
fn frame_at(bytes: &[u8], at: usize, sequence: u64) -> Option<Frame<'_>> {
    let header = bytes.get(at..at + FRAME_HEADER)?;
    if header[8..16] != sequence.to_le_bytes() {
        return None;
    }
    let mut input = Input(header);
    let length = input.u32()? as usize;
    let crc = input.u32()?;
    let body = bytes.get(at + FRAME_HEADER..at + FRAME_HEADER + length)?;
    if frame_crc(header, body) != crc {
        return None;
    }
    let durable = u32::from_le_bytes(header[16..20].try_into().ok()?).into();
    let end = at + (FRAME_HEADER + length).next_multiple_of(8);
    Some(Frame { kind: header[20], durable, body, end })
}

fn segment_header(sequence: u64, previous_end: u64) -> [u8; SEGMENT_HEADER as usize] {
    let mut header = [0; SEGMENT_HEADER as usize];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    header[16..24].copy_from_slice(&previous_end.to_le_bytes());
    let crc = crc32c::crc32c(&header[..32]);
    header[32..36].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Where the segment before this one ended.
fn read_segment_header(bytes: &[u8], sequence: u64) -> Option<u64> {
    let header = bytes.get(..SEGMENT_HEADER as usize)?;
    let previous_end = u64::from_le_bytes(header[16..24].try_into().ok()?);
    (header == segment_header(sequence, previous_end)).then_some(previous_end)
}

impl<E: Clone + Send + 'static> Wal<E> {
    /// Reads what is there, drops a torn tail, and starts the thread.
    pub(crate) fn open(options: Options) -> io::Result<(Wal<E>, Found)> {
        options.fs.create_dir_all(&options.dir)?;
        let mut recovery = Recovery::default();
        recovery.run(&options)?;
        let Recovery { index, segments, spares, offset, found, .. } = recovery;
        let disk_bytes = segments.iter().map(|(segment, _)| segment.size).sum::<u64>();
        let shared = Arc::new(Shared {
            index: Mutex::new(index),
            queue: Mutex::default(),
            ready: Condvar::new(),
            spares: Mutex::new(spares),
            making_spare: AtomicBool::new(false),
            no_space: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            appended: AtomicU64::new(0),
            disk_bytes: AtomicU64::new(disk_bytes),
        });
        let mut writer = Writer {
            options,
            shared: shared.clone(),
            segments,
            offset,
            durable: offset,
            buffer: Vec::new(),
            places: Vec::new(),
            committed: None,
            unsynced: 0,
            sync_by: None,
            spare_tried: None,
            spare_maker: None,
        };
        if writer.segments.is_empty() {
            writer.roll(0)?;
        }
        let thread = std::thread::Builder::new().name("store-log".into()).spawn(move || writer.run())?;
        Ok((Wal { shared, thread: Arc::new(Mutex::new(Some(thread))) }, found))
    }
}

impl<E: Clone> Wal<E> {
    fn index(&self) -> MutexGuard<'_, Index<E>> {
        self.shared.index.lock().expect("no panic while the index is locked")
    }

    fn submit(&self, request: Request) {
        if self.shared.failed.load(Ordering::Acquire) {
            return (request.done)(Err(failed()));
        }
        let mut queue = self.shared.queue.lock().expect("no panic while the queue is locked");
        if queue.closing {
            drop(queue);
            return (request.done)(Err(io::Error::other("the log is closed")));
        }
        queue.requests.push(request);
        self.shared.ready.notify_one();
    }

    /// Entries readable from now on, durable when `done` is called with `Ok`, except for what is `relaxed`.
    pub(crate) fn append(&self, entries: Vec<(Position, Vec<u8>, E)>, relaxed: Option<Relaxed>, done: Done) -> io::Result<()> {
        let mut records = Vec::with_capacity(entries.len());
        let mut index = self.index();
        for (at, body, entry) in entries {
            let next = index.first + index.slots.len() as u64;
            if index.slots.is_empty() && index.purged.is_none() && next == 0 {
                index.first = at.index;
            } else if at.index != next {
                return Err(io::Error::other(format!("entry {} appended where {next} comes next", at.index)));
            }
            let size = body.len() + 64;
            index.cached_bytes += size;
            index.slots.push_back(Slot { term: at.term, place: None, cached: Some((entry, size)) });
            records.push(Record::Entry { at, body });
        }
        drop(index);
        self.submit(Request { records, relaxed, done });
        Ok(())
    }

    /// A vote is durable when `done` is called.
    pub(crate) fn save_vote(&self, vote: Ballot, done: Done) {
        self.index().vote = Some(vote);
        self.submit(Request { records: vec![Record::Vote(vote)], relaxed: None, done });
    }

    /// Remembered in memory, and on disk with whatever is written next.
    pub(crate) fn save_committed(&self, committed: Option<Position>) {
        self.index().committed = committed;
    }

    pub(crate) fn truncate(&self, after: Option<Position>, done: Done) {
        let mut index = self.index();
        let keep = after.map_or(0, |at| (at.index + 1).saturating_sub(index.first));
        while index.slots.len() as u64 > keep {
            if let Some((_, size)) = index.slots.pop_back().and_then(|slot| slot.cached) {
                index.cached_bytes -= size;
            }
        }
        drop(index);
        self.submit(Request { records: vec![Record::Truncate(after)], relaxed: None, done });
    }

    pub(crate) fn purge(&self, upto: Position, done: Done) {
        self.index().purge(upto);
        self.submit(Request { records: vec![Record::Purged(upto)], relaxed: None, done });
    }

    /// Returns when everything appended so far is durable.
    pub(crate) fn sync_blocking(&self) -> io::Result<()> {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        let done = Box::new(move |result| {
            // The receiver waits below, whatever happens.
            let _ = send.send(result);
        });
        self.submit(Request { records: Vec::new(), relaxed: None, done });
        receive.recv().map_err(|_| io::Error::other("the log's thread is gone"))?
    }

    pub(crate) fn vote(&self) -> Option<Ballot> {
        self.index().vote
    }

    pub(crate) fn committed(&self) -> Option<Position> {
        self.index().committed
    }

    pub(crate) fn purged(&self) -> Option<Position> {
        self.index().purged
    }

    /// The last entry, or the last purged one.
    pub(crate) fn last(&self) -> Option<Position> {
        let index = self.index();
        match index.slots.back() {
            Some(slot) => Some(Position { term: slot.term, index: index.first + index.slots.len() as u64 - 1 }),
            None => index.purged,
        }
    }

    /// The entries of `start..end` that are here.
    pub(crate) fn read(&self, start: u64, end: u64) -> io::Result<Vec<Read<E>>> {
        let mut found = Vec::new();
        let index = self.index();
        let last = index.first + index.slots.len() as u64;
        for at in start.max(index.first)..end.min(last) {
            let slot = &index.slots[(at - index.first) as usize];
            match (&slot.cached, &slot.place) {
                (Some((entry, _)), _) => found.push(Ok(Read::Cached(entry.clone()))),
                (None, Some((segment, offset, length))) => found.push(Err((segment.clone(), *offset, *length))),
                (None, None) => return Err(io::Error::other(format!("entry {at} is neither in memory nor on disk"))),
            }
        }
        drop(index);
        found.into_iter().map(|slot| slot.or_else(|(segment, offset, length)| segment.read(offset, length))).collect()
    }

    /// Bytes appended since the store was opened.
    pub(crate) fn appended(&self) -> u64 {
        self.shared.appended.load(Ordering::Relaxed)
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        self.shared.disk_bytes.load(Ordering::Relaxed)
    }

    /// The next segment cannot be allocated: take nothing that is not needed to free space.
    pub(crate) fn no_space(&self) -> bool {
        self.shared.no_space.load(Ordering::Relaxed)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    /// Writes what is queued, syncs, marks the log as properly closed and ends the thread.
    pub(crate) fn close(&self) {
        self.shared.queue.lock().expect("no panic while the queue is locked").closing = true;
        self.shared.ready.notify_one();
        let thread = self.thread.lock().expect("no panic while the handle is locked").take();
        if let Some(thread) = thread {
            // A panic there has been reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

impl Segment {
    fn read<E>(&self, offset: u32, length: u32) -> io::Result<Read<E>> {
        // The frame header is read along, so that what a bad block returns is never taken for an entry.
        let start = u64::from(offset) - FRAME_HEADER as u64;
        let mut bytes = vec![0; FRAME_HEADER + length as usize];
        self.file.read_at(&mut bytes, start)?;
        let frame = frame_at(&bytes, 0, self.sequence);
        let record = frame.and_then(|frame| Record::decode(frame.kind, frame.body));
        match record {
            Some(Record::Entry { at, body }) => Ok(Read::Encoded(at, body)),
            _ => Err(corrupt(&self.path, format_args!("the entry at offset {start} is damaged"))),
        }
    }
}

impl<E> Index<E> {
    fn purge(&mut self, upto: Position) {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        while self.first <= upto.index {
            let Some(slot) = self.slots.pop_front() else {
                self.first = upto.index + 1;
                break;
            };
            if let Some((_, size)) = slot.cached {
                self.cached_bytes -= size;
            }
            self.first += 1;
        }
        self.purged = Some(upto);
    }

    /// Drops the oldest written entries from memory while there is too much of them.
    fn trim_cache(&mut self) {
        self.cached_from = self.cached_from.max(self.first);
        while self.cached_bytes > CACHE_BYTES {
            let Some(slot) = self.slots.get_mut((self.cached_from - self.first) as usize) else { return };
            if slot.place.is_none() {
                return;
            }
            if let Some((_, size)) = slot.cached.take() {
                self.cached_bytes -= size;
            }
            self.cached_from += 1;
        }
    }
}

/// Reads the segments in order.
struct Recovery<E> {
    index: Index<E>,
    /// With the index of the last entry each holds.
    segments: Vec<(Arc<Segment>, Option<u64>)>,
    spares: Vec<PathBuf>,
    offset: u64,
    found: Found,
}

impl<E> Default for Recovery<E> {
    fn default() -> Self {
        Recovery { index: Index::default(), segments: Vec::new(), spares: Vec::new(), offset: 0, found: Found::default() }
    }
}

impl<E> Recovery<E> {
    fn run(&mut self, options: &Options) -> io::Result<()> {
        let mut sequences = Vec::new();
        for name in options.fs.list(&options.dir)? {
            let path = options.dir.join(&name);
            if let Some(sequence) = name.strip_suffix(".wal").and_then(|stem| stem.parse::<u64>().ok()) {
                sequences.push((sequence, path));
            } else if name.ends_with(".spare") && options.fs.open(&path)?.size()? == options.segment_bytes {
                self.spares.push(path);
            } else if name.ends_with(".spare") || name.ends_with(".making") {
                options.fs.remove(&path)?;
            }
        }
        sequences.sort();
        self.found.existed = !sequences.is_empty();
        for (i, (sequence, path)) in sequences.iter().enumerate() {
            if i > 0 && *sequence != sequences[i - 1].0 + 1 {
                return Err(corrupt(path, "the segment before this one is missing"));
            }
            self.segment(options, *sequence, path.clone(), i + 1 == sequences.len())?;
        }
        self.check(options)
    }

    fn segment(&mut self, options: &Options, sequence: u64, path: PathBuf, last: bool) -> io::Result<()> {
        let file = options.fs.open(&path)?;
        let bytes = read_all(file.as_ref())?;
        let Some(previous_end) = read_segment_header(&bytes, sequence) else {
            return Err(corrupt(&path, "the segment header is damaged"));
        };
        if let Some((previous, _)) = self.segments.last()
            && previous_end != self.offset
        {
            return Err(corrupt(&previous.path, format_args!("damaged at offset {}; it should go on to {previous_end}", self.offset)));
        }
        let segment = Arc::new(Segment { sequence, path, file, size: bytes.len() as u64 });
        self.segments.push((segment.clone(), None));
        let mut at = SEGMENT_HEADER as usize;
        while let Some(frame) = frame_at(&bytes, at, sequence) {
            let Some(record) = Record::decode(frame.kind, frame.body) else {
                return Err(corrupt(&segment.path, format_args!("unknown record at offset {at}")));
            };
            self.found.clean = record == Record::Closed;
            self.record(record, &segment, at + FRAME_HEADER, frame.body.len())?;
            at = frame.end;
        }
        self.offset = at as u64;
        if last { self.tail(&segment, &bytes) } else { Ok(()) }
    }

    fn record(&mut self, record: Record, segment: &Arc<Segment>, offset: usize, length: usize) -> io::Result<()> {
        let index = &mut self.index;
        match record {
            Record::Entry { at, .. } => {
                let next = index.first + index.slots.len() as u64;
                if index.slots.is_empty() && at.index > next {
                    index.first = at.index;
                } else if at.index != next {
                    return Err(corrupt(&segment.path, format_args!("entry {} where {next} should be", at.index)));
                }
                let place = (segment.clone(), offset as u32, length as u32);
                index.slots.push_back(Slot { term: at.term, place: Some(place), cached: None });
                self.segments.last_mut().expect("pushed before its frames").1 = Some(at.index);
            }
            Record::Vote(vote) => index.vote = Some(vote),
            Record::Committed(at) => index.committed = Some(at),
            Record::Truncate(after) => {
                let keep = after.map_or(0, |at| (at.index + 1).saturating_sub(index.first));
                index.slots.truncate(keep as usize);
            }
            Record::Purged(upto) => index.purge(upto),
            Record::Closed => {}
        }
        Ok(())
    }

    /// Decides what the bytes after the last good frame are, and wipes what a crash left, lest it be found later.
    fn tail(&mut self, segment: &Segment, bytes: &[u8]) -> io::Result<()> {
        let end = self.offset as usize;
        let mut wipe = end;
        let mut at = end + 8;
        while at + FRAME_HEADER <= bytes.len() {
            let Some(frame) = frame_at(bytes, at, segment.sequence) else {
                at += 8;
                continue;
            };
            if frame.durable > self.offset {
                let what = format!("damaged at offset {end}, though what follows says it was synced up to {}", frame.durable);
                return Err(corrupt(&segment.path, what));
            }
            wipe = frame.end;
            at = frame.end;
        }
        // A header of this segment at the very end without a good body, too.
        let torn = bytes.get(end..end + FRAME_HEADER).is_some_and(|header| header[8..16] == segment.sequence.to_le_bytes());
        if torn {
            wipe = wipe.max(end + FRAME_HEADER);
        }
        let wipe = wipe.min(bytes.len());
        if wipe > end {
            warn!(segment = %segment.path.display(), offset = end, bytes = wipe - end, "dropped a torn write at the end of the log");
            segment.file.write_at(&vec![0; wipe - end], self.offset)?;
            segment.file.sync()?;
            self.found.torn_bytes = (wipe - end) as u64;
            self.found.clean = false;
        }
        Ok(())
    }

    fn check(&mut self, options: &Options) -> io::Result<()> {
        let index = &self.index;
        let wanted = index.purged.map_or(0, |purged| purged.index + 1);
        if index.first > wanted && !index.slots.is_empty() {
            return Err(corrupt(&options.dir, format_args!("entries {wanted} to {} are missing", index.first - 1)));
        }
        self.index.cached_from = self.index.first + self.index.slots.len() as u64;
        Ok(())
    }
}

/// Owned by the log's thread.
struct Writer<E> {
    options: Options,
    shared: Arc<Shared<E>>,
    /// With the index of the last entry each holds; the last is the one being written.
    segments: Vec<(Arc<Segment>, Option<u64>)>,
    offset: u64,
    durable: u64,
    /// Frames not yet written, to go to `offset`; and where in the segment each entry among them will be.
    buffer: Vec<u8>,
    places: Vec<(Position, Arc<Segment>, u32, u32)>,
    /// The commit position last written.
    committed: Option<Position>,
    /// Revisions of relaxed writes that are not durable.
    unsynced: usize,
    /// When they have to be.
    sync_by: Option<Instant>,
    spare_tried: Option<Instant>,
    /// The thread that makes, or made, the latest spare.
    spare_maker: Option<std::thread::JoinHandle<()>>,
}

impl<E: Clone + Send + 'static> Writer<E> {
    fn run(mut self) {
        while let Some(requests) = self.wait() {
            let mut answers = Vec::with_capacity(requests.len());
            let outcome = self.handle(requests, &mut answers);
            if let Err(error) = &outcome {
                error!(%error, "the log cannot be written; what is on disk is unknown from here on");
                self.shared.failed.store(true, Ordering::Release);
            }
            for answer in answers {
                answer(outcome.as_ref().copied().map_err(|error| io::Error::new(error.kind(), error.to_string())));
            }
            match outcome {
                Ok(()) => self.prepare_spare(),
                Err(error) => {
                    (self.options.on_failure)(&error);
                    return self.refuse();
                }
            }
        }
        if let Err(error) = self.finish() {
            error!(%error, "the log could not be closed properly");
            self.shared.failed.store(true, Ordering::Release);
        }
        // Who opens the directory next must not meet a file on its way from one name to another.
        if let Some(maker) = self.spare_maker.take() {
            let _ = maker.join();
        }
    }

    /// After a failure: answer what still comes, until the owner lets go.
    fn refuse(self) {
        while let Some(requests) = self.wait() {
            requests.into_iter().for_each(|request| (request.done)(Err(failed())));
        }
    }

    /// All that is queued; nothing, when relaxed writes have waited long enough; `None` when closing.
    fn wait(&self) -> Option<Vec<Request>> {
        let mut queue = self.shared.queue.lock().expect("no panic while the queue is locked");
        loop {
            if !queue.requests.is_empty() {
                return Some(std::mem::take(&mut queue.requests));
            }
            if queue.closing {
                return None;
            }
            let Some(by) = self.sync_by else {
                queue = self.shared.ready.wait(queue).expect("no panic while the queue is locked");
                continue;
            };
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(Vec::new());
            }
            queue = self.shared.ready.wait_timeout(queue, left).expect("no panic while the queue is locked").0;
        }
    }

    fn handle(&mut self, requests: Vec<Request>, answers: &mut Vec<Done>) -> io::Result<()> {
        let mut sync = requests.is_empty();
        let mut relaxed = Relaxed::NOTHING;
        let mut purged = false;
        let mut result = Ok(());
        for request in requests {
            match request.relaxed {
                Some(this) => relaxed = relaxed.and(this),
                None => sync = true,
            }
            purged |= matches!(request.records[..], [Record::Purged(_)]);
            if result.is_ok() {
                result = request.records.iter().try_for_each(|record| self.push(record));
            }
            answers.push(request.done);
        }
        result?;
        self.unsynced += relaxed.changes;
        sync |= self.unsynced > RELAXED_CHANGES_MAX || self.buffer.len() > HEARTBEAT_BYTES_MAX;
        if sync || relaxed.durability == Durability::Soon {
            self.push_committed()?;
            self.flush()?;
        }
        if sync {
            self.sync()?;
        } else if relaxed.durability == Durability::Soon && self.sync_by.is_none() {
            self.sync_by = Some(Instant::now() + RELAXED_AGE_MAX);
        }
        if purged {
            self.recycle();
        }
        Ok(())
    }

    /// The commit position rides along with entries; by itself it is not worth a write.
    fn push_committed(&mut self) -> io::Result<()> {
        let committed = self.shared.index.lock().expect("no panic while the index is locked").committed;
        match committed {
            Some(at) if self.committed != committed && !self.buffer.is_empty() => {
                self.committed = committed;
                self.push(&Record::Committed(at))
            }
            _ => Ok(()),
        }
    }

    fn push(&mut self, record: &Record) -> io::Result<()> {
        let size = match record {
            Record::Entry { body, .. } => (FRAME_HEADER + 16 + body.len()).next_multiple_of(8),
            _ => FRAME_HEADER + 24,
        } as u64;
        let segment = &self.segments.last().expect("there is always one").0;
        // Room is kept for the frame that closes the log.
        if self.offset + self.buffer.len() as u64 + size + 2 * FRAME_HEADER as u64 > segment.size {
            self.roll(size)?;
        }
        let (segment, last) = self.segments.last_mut().expect("there is always one");
        let (start, length) = push_frame(&mut self.buffer, record, segment.sequence, self.durable);
        if let Record::Entry { at, .. } = record {
            *last = Some(last.map_or(at.index, |last| last.max(at.index)));
            let offset = u32::try_from(self.offset + start as u64).expect("segments are bounded");
            self.places.push((*at, segment.clone(), offset, length as u32));
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let segment = &self.segments.last().expect("there is always one").0;
        segment.file.write_at(&self.buffer, self.offset)?;
        self.offset += self.buffer.len() as u64;
        self.shared.appended.fetch_add(self.buffer.len() as u64, Ordering::Relaxed);
        self.buffer.clear();
        self.buffer.shrink_to(1 << 20);
        let mut index = self.shared.index.lock().expect("no panic while the index is locked");
        for (at, segment, offset, length) in self.places.drain(..) {
            let Some(slot) = at.index.checked_sub(index.first) else { continue };
            match index.slots.get_mut(slot as usize) {
                Some(slot) if slot.term == at.term => slot.place = Some((segment, offset, length)),
                Some(_) | None => {}
            }
        }
        index.trim_cache();
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.durable < self.offset {
            self.segments.last().expect("there is always one").0.file.sync()?;
            self.durable = self.offset;
        }
        (self.unsynced, self.sync_by) = (0, None);
        Ok(())
    }

    /// Goes on in the next segment, which begins with what must outlive the purge of this one.
    fn roll(&mut self, needed: u64) -> io::Result<()> {
        let (mut sequence, mut previous_end) = (1, 0);
        if !self.segments.is_empty() {
            self.flush()?;
            self.sync()?;
            sequence = self.segments.last().expect("not empty").0.sequence + 1;
            previous_end = self.offset;
        }
        let size = self.options.segment_bytes.max(needed + 4096);
        let usable = size == self.options.segment_bytes;
        let spare = self.shared.spares.lock().expect("no panic while spares are locked").pop_if(|_| usable);
        let beside = spare.map_or_else(|| self.make_now(sequence, size), Ok)?;
        let path = self.options.dir.join(format!("{sequence:08}.wal"));
        let file = self.options.fs.open(&beside)?;
        let mut head = segment_header(sequence, previous_end).to_vec();
        {
            let index = self.shared.index.lock().expect("no panic while the index is locked");
            let vote = index.vote.map(Record::Vote);
            let records = [vote, index.purged.map(Record::Purged), self.committed.map(Record::Committed)];
            for record in records.into_iter().flatten() {
                push_frame(&mut head, &record, sequence, 0);
            }
        }
        file.write_at(&head, 0)?;
        file.sync()?;
        self.options.fs.rename(&beside, &path)?;
        self.options.fs.sync_dir(&self.options.dir)?;
        self.segments.push((Arc::new(Segment { sequence, path, file, size }), None));
        self.offset = head.len() as u64;
        self.durable = self.offset;
        self.account();
        Ok(())
    }

    /// A new file in the middle of an append: only when no spare was ready.
    fn make_now(&mut self, sequence: u64, size: u64) -> io::Result<PathBuf> {
        let path = self.options.dir.join(format!("{sequence:08}.making"));
        match make_zeroed(self.options.fs.as_ref(), &path, size) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                // The last resort the reserve is kept for.
                let Some(reserve) = self.options.reserve.take() else { return Err(error) };
                warn!(reserve = %reserve.display(), "disk full: giving up the reserve to keep the log going");
                self.options.fs.remove(&reserve)?;
                make_zeroed(self.options.fs.as_ref(), &path, size).map(|()| path)
            }
            other => other.map(|()| path),
        }
    }

    /// Segments whose entries are all purged become spares.
    fn recycle(&mut self) {
        let purged = self.shared.index.lock().expect("no panic while the index is locked").purged;
        let Some(purged) = purged else { return };
        while self.segments.len() > 1 && self.segments[0].1.is_none_or(|last| last <= purged.index) {
            let (segment, _) = self.segments.remove(0);
            let mut spares = self.shared.spares.lock().expect("no panic while spares are locked");
            let spare = self.options.dir.join(format!("{:08}.spare", segment.sequence));
            let outcome = if spares.len() < 2 && segment.size == self.options.segment_bytes {
                self.options.fs.rename(&segment.path, &spare).map(|()| Some(spare))
            } else {
                self.options.fs.remove(&segment.path).map(|()| None)
            };
            // Durable before the file is written again, and in order: a start finds the old segment or none.
            match outcome.and_then(|spare| self.options.fs.sync_dir(&self.options.dir).map(|()| spare)) {
                Ok(spare) => spares.extend(spare),
                Err(error) => warn!(segment = %segment.path.display(), %error, "cannot recycle a log segment"),
            }
        }
        self.account();
    }

    fn account(&self) {
        let spares = self.shared.spares.lock().expect("no panic while spares are locked").len() as u64;
        let bytes = self.segments.iter().map(|(segment, _)| segment.size).sum::<u64>() + spares * self.options.segment_bytes;
        self.shared.disk_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Makes the next segment, on a thread of its own, when this one is half full and none is ready.
    fn prepare_spare(&mut self) {
        let segment = &self.segments.last().expect("there is always one").0;
        if self.offset < segment.size / 2 || !self.shared.spares.lock().expect("no panic while spares are locked").is_empty() {
            return;
        }
        if self.spare_tried.is_some_and(|at| at.elapsed() < SPARE_RETRY) || self.shared.making_spare.swap(true, Ordering::AcqRel) {
            return;
        }
        self.spare_tried = Some(Instant::now());
        let (shared, options, sequence) = (self.shared.clone(), self.options.clone(), segment.sequence + 1);
        let make = move || {
            let making = options.dir.join(format!("{sequence:08}.spare.making"));
            let spare = options.dir.join(format!("{sequence:08}.spare"));
            let made = make_zeroed(options.fs.as_ref(), &making, options.segment_bytes).and_then(|()| options.fs.rename(&making, &spare));
            shared.no_space.store(made.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::StorageFull), Ordering::Relaxed);
            match made {
                Ok(()) => shared.spares.lock().expect("no panic while spares are locked").push(spare),
                Err(error) => {
                    warn!(%error, "cannot allocate the next log segment");
                    let _ = options.fs.remove(&making);
                }
            }
            shared.making_spare.store(false, Ordering::Release);
        };
        match std::thread::Builder::new().name("store-log-spare".into()).spawn(make) {
            Ok(maker) => self.spare_maker = Some(maker),
            Err(_) => self.shared.making_spare.store(false, Ordering::Release),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.shared.failed.load(Ordering::Acquire) {
            return Err(failed());
        }
        let committed = self.shared.index.lock().expect("no panic while the index is locked").committed;
        if let Some(at) = committed.filter(|_| committed != self.committed) {
            self.push(&Record::Committed(at))?;
        }
        self.flush()?;
        self.sync()?;
        self.push(&Record::Closed)?;
        self.flush()?;
        self.sync()
    }
}

/// A durable file of `size` zeroes: blocks that have been written once are overwritten without touching metadata.
pub(crate) fn make_zeroed(fs: &dyn Fs, path: &std::path::Path, size: u64) -> io::Result<()> {
    let file = fs.create(path)?;
    let zeroes = vec![0; 1 << 18];
    let mut at = 0;
    while at < size {
        let n = (size - at).min(zeroes.len() as u64);
        file.write_at(&zeroes[..n as usize], at)?;
        at += n;
    }
    file.sync()
}

#[cfg(test)]
mod tests;
