//! WATCH: where the stream starts, which events pass the selectors, bookmarks, and how it ends.
//!
//! Nothing is queued here: events wait in the store's ring, and a reader too slow for the ring gets a 410 and has to list again.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::api::object::Object;
use crate::api::request::{Event, Events, Request};
use crate::api::resource::Resource;
use crate::api::status::{Result, Status};
use crate::store::{self, Frames, Range, StoreEvent, Watcher};

use super::list::{Filter, Position, check_list_options};
use crate::server::pipeline::Pipeline;
use crate::server::registry::{Reader, Row};

/// Between bookmarks, if asked for.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long before its end a watch sends a last bookmark.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// A watch lasts this long to twice this long, unless it says otherwise.
const LASTS_SECONDS_MIN: u64 = 1800;
/// How long a watch from a future revision that promises a complete start may wait for it.
const FUTURE_WAIT: Duration = Duration::from_secs(3);

/// A running watch.
struct Stream {
    storage: &'static Resource,
    filter: Filter,
    /// Ready to be sent, in order; filled from one batch of the store at a time.
    ready: VecDeque<Framed>,
    watcher: Option<Watcher>,
    /// The revision everything sent so far amounts to.
    seen: u64,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    /// Goes off at the next bookmark or the end; set again only when that changes, not for every event.
    timer: Pin<Box<Sleep>>,
    /// A bookmark before the end was sent.
    closing: bool,
    _permit: OwnedSemaphorePermit,
}

/// An event and, where it came out of the store as it is, the place its encodings are kept.
pub(in crate::server) struct Framed {
    pub event: Event,
    pub frames: Option<Arc<Frames>>,
}

impl From<Event> for Framed {
    fn from(event: Event) -> Framed {
        Framed { event, frames: None }
    }
}

pub(in crate::server) type FramedEvents = Pin<Box<dyn futures_util::Stream<Item = Framed> + Send>>;

impl Pipeline {
    pub(in crate::server) fn watch(&self, request: Request) -> Result<Events> {
        let framed = self.watch_framed(request)?;
        Ok(Box::pin(framed.map(|f| f.event)))
    }

    fn too_many_watches(&self) -> String {
        format!("{} watches are open, which is as many as watches-max allows; please try again later", self.cluster.watches_max)
    }

    /// The same with frames: for the HTTP front end.
    pub(in crate::server) fn watch_framed(&self, request: Request) -> Result<FramedEvents> {
        let row = self.registry.row(request.resource);
        check_list_options(&request.options, true)?;
        let filter = Filter::new(row, &request)?;
        let rv = request.options.resource_version.as_deref().unwrap_or("");
        let revision = if rv.is_empty() { 0 } else { super::parse_revision(rv).map_err(|e| Status::new(500, "", e))? };
        let permit = self.watches.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Status::too_many_requests(self.too_many_watches(), 1))?;
        let started = self.start(row, &filter, &request, revision);
        let lasts = request.options.timeout_seconds.filter(|s| *s > 0).map_or_else(random_lifetime, |s| Duration::from_secs(s as u64));
        let now = Instant::now();
        let bookmarks = request.options.allow_watch_bookmarks;
        let deadline = now + lasts;
        let (ready, watcher, seen) = match started {
            Start::Live { ready, watcher, seen } => (ready, Some(watcher), seen),
            Start::Failed(status) => (VecDeque::from([Event::Error(status).into()]), None, 0),
            Start::Future { revision, complete } => return Ok(self.future(revision, complete, deadline, permit)),
        };
        let next_bookmark = now + BOOKMARK_EVERY;
        let storage = row.storage;
        let timer = Box::pin(sleep_until(next_bookmark.min(deadline)));
        let state =
            Stream { storage, filter, ready, watcher, seen, bookmarks, next_bookmark, deadline, timer, closing: false, _permit: permit };
        Ok(Box::pin(stream::unfold(state, |mut state| async move { state.next().await.map(|event| (event, state)) })))
    }

    fn start(&self, row: &Row, filter: &Filter, request: &Request, revision: u64) -> Start {
        let prefix = Bytes::from(Reader::prefix(row.storage, &request.namespace));
        let initial = request.options.send_initial_events;
        let current = self.store.revision();
        if revision > current {
            return Start::Future { revision, complete: initial == Some(true) };
        }
        if (1..self.first_told()).contains(&revision) {
            return Start::Failed(watch_error(store::Error::Compacted { requested: revision, compacted: self.first_told() }));
        }
        if revision > 0 && initial != Some(true) {
            return match self.store.watch(&prefix, revision) {
                Ok(watcher) => Start::Live { ready: VecDeque::new(), watcher, seen: revision },
                Err(e) => Start::Failed(watch_error(e)),
            };
        }
        let wants_state = initial.unwrap_or(true);
        let mut ready = VecDeque::new();
        let mut seen = current;
        if wants_state {
            let range = Range { prefix: prefix.clone(), after: None, at: None, limit: 0 };
            let page = match self.store.range(range) {
                Ok(page) => page,
                Err(e) => return Start::Failed(watch_error(e)),
            };
            seen = page.revision;
            let entries = page.entries.iter().filter(|e| filter.matches_key(&e.key));
            ready = entries.map(|e| Reader::object(row.storage, e)).filter(|o| filter.matches(o)).map(|o| Event::Added(o).into()).collect();
            if initial == Some(true) && request.options.allow_watch_bookmarks {
                ready.push_back(Event::Bookmark { revision: seen, initial_end: true }.into());
            }
        }
        match self.store.watch(&prefix, seen) {
            Ok(watcher) => Start::Live { ready, watcher, seen },
            Err(e) => Start::Failed(watch_error(e)),
        }
    }

    /// A revision nobody has been given yet: nothing happens, except that a promise of a complete start is taken back.
    fn future(&self, revision: u64, complete: bool, deadline: Instant, permit: OwnedSemaphorePermit) -> FramedEvents {
        let current = self.store.revision();
        Box::pin(stream::unfold(Some(permit), move |permit| async move {
            let _permit = permit?;
            let until = if complete { deadline.min(Instant::now() + FUTURE_WAIT) } else { deadline };
            tokio::time::sleep_until(until).await;
            complete.then(|| (Event::Error(Position::from_the_future(revision, current)).into(), None))
        }))
    }
}

enum Start {
    Live { ready: VecDeque<Framed>, watcher: Watcher, seen: u64 },
    Failed(Status),
    Future { revision: u64, complete: bool },
}

fn random_lifetime() -> Duration {
    let mut b = [0u8; 8];
    getrandom::fill(&mut b).expect("the kernel has random bytes");
    Duration::from_secs(LASTS_SECONDS_MIN + u64::from_ne_bytes(b) % LASTS_SECONDS_MIN)
}

fn watch_error(error: store::Error) -> Status {
    match error {
        store::Error::Compacted { requested, compacted } => Status::expired(format!("too old resource version: {requested} ({compacted})")),
        other => super::store_error(other),
    }
}

impl Stream {
    /// The next event; `None` ends the watch.
    async fn next(&mut self) -> Option<Framed> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let watcher = self.watcher.as_mut()?;
            let last_call = self.deadline.checked_sub(BOOKMARK_BEFORE_END).unwrap_or(self.deadline);
            let wake = match (self.bookmarks, self.closing) {
                (false, _) | (true, true) => self.deadline,
                (true, false) => self.next_bookmark.min(last_call.max(Instant::now())),
            };
            if self.timer.deadline() != wake {
                self.timer.as_mut().reset(wake);
            }
            let events = tokio::select! {
                biased;
                events = watcher.next() => Some(events),
                () = self.timer.as_mut() => None,
            };
            match events {
                Some(Ok(events)) => self.take(events),
                Some(Err(error)) => {
                    self.watcher = None;
                    return Some(Event::Error(watch_error(error)).into());
                }
                None if Instant::now() >= self.deadline => return None,
                None => return Some(self.bookmark(last_call).into()),
            }
        }
    }

    fn bookmark(&mut self, last_call: Instant) -> Event {
        let now = Instant::now();
        self.next_bookmark = now + BOOKMARK_EVERY;
        self.closing = now >= last_call;
        let progress = self.watcher.as_ref().map_or(self.seen, Watcher::progress);
        self.seen = self.seen.max(progress);
        Event::Bookmark { revision: self.seen, initial_end: false }
    }

    fn take(&mut self, events: Vec<StoreEvent>) {
        for event in events {
            self.seen = event.revision;
            if self.filter.matches_key(&event.key) {
                self.ready.extend(translate(self.storage, &self.filter, event));
            }
        }
    }
}

/// What an event in the store is to someone who sees only what the filter lets pass.
fn translate(storage: &'static Resource, filter: &Filter, event: StoreEvent) -> Option<Framed> {
    let object = |bytes: Bytes, revision: u64| Object { resource: storage, bytes, revision };
    let new = event.value.map(|v| object(v, event.revision));
    // Of the old object only a deletion shows anything, and that with the revision of the event.
    let old = event.previous.map(|p| object(p.value, event.revision));
    let all = filter.is_everything();
    let (new, old) = (new.filter(|o| all || filter.matches(o)), old.filter(|o| all || filter.matches(o)));
    let translated = match (old, new) {
        (None, Some(new)) => Event::Added(new),
        (Some(_), Some(new)) => Event::Modified(new),
        (Some(old), None) => Event::Deleted(old),
        (None, None) => return None,
    };
    Some(Framed { event: translated, frames: event.frames })
}
