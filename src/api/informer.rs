//! List and watch as one stream of changes.
//!
//! [`informer`] keeps a receiver up to date with one resource: `Reset, Set…, Synced` on every (re)list, then `Set` and
//! `Gone` as they happen. It streams the initial list through the watch (`sendInitialEvents`) where the server can, pages
//! through a list where it cannot, resumes broken watches from the last revision seen (bookmarks included) and lists again
//! on 410. The channel is bounded: a slow receiver slows the watch, and a watch cut for being slow is resumed or relisted.
//! Ends when the receiver is dropped.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::client::Client;
use super::object::{Object, Revision};
use super::request::{Event, Events, Options};
use super::resource::Resource;
use super::status::Status;

/// What an informer's receiver sees.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A (re)list begins: what is not `Set` before the next `Synced` does not exist any more.
    Reset,
    /// The object is now this.
    Set(Object),
    /// The object was deleted; this is its last state, with the revision of the deletion.
    Gone(Object),
    /// The (re)list is complete, as of this revision.
    Synced(Revision),
}

const QUEUE: usize = 256;
const PAGE: i64 = 500;
const BACKOFF_MS_MIN: u64 = 50;
const BACKOFF_MS_MAX: u64 = 15_000;
/// A server that takes `sendInitialEvents` but stays silent this long does not know it.
const FIRST_EVENT: Duration = Duration::from_secs(15);

/// Follows `resource` in all namespaces; `options` carries label and field selectors.
pub fn informer(client: Client, resource: &'static Resource, options: Options) -> mpsc::Receiver<Change> {
    informer_in(client, resource, "", options)
}

/// [`informer`] for one namespace.
pub fn informer_in(client: Client, resource: &'static Resource, namespace: &str, options: Options) -> mpsc::Receiver<Change> {
    let (to, changes) = mpsc::channel(QUEUE);
    let follower = Follower { client, resource, namespace: namespace.to_string(), options, to, streams_lists: true };
    crate::task::spawn("informer", follower.run());
    changes
}

struct Follower {
    client: Client,
    resource: &'static Resource,
    namespace: String,
    options: Options,
    to: mpsc::Sender<Change>,
    /// Whether the server understands `sendInitialEvents`, as far as we know.
    streams_lists: bool,
}

/// Why following stopped.
enum Stop {
    /// The receiver is gone.
    Closed,
    /// The position is too old, or unknown: list again.
    Relist(Option<Status>),
    /// The stream ended or failed; it may go on from the revision seen.
    Broken(Option<Status>),
}

/// The receiver is gone.
struct Closed;
impl From<Closed> for Stop {
    fn from(_: Closed) -> Stop {
        Stop::Closed
    }
}

impl Follower {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut at: Option<Revision> = None;
        loop {
            let before = at;
            let to = self.to.clone();
            let stop = tokio::select! {
                () = to.closed() => return,
                stop = self.turn(&mut at) => stop,
            };
            if at != before {
                backoff.reset();
            }
            match stop {
                Stop::Closed => return,
                Stop::Relist(why) => {
                    at = None;
                    self.note(why, "listing again");
                }
                Stop::Broken(why) => self.note(why, "watching again"),
            }
            tokio::select! {
                () = to.closed() => return,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    fn note(&self, why: Option<Status>, what: &str) {
        match why {
            Some(status) if status.code != 410 => warn!(resource = %self.resource, error = %status, "informer: {what}"),
            Some(status) => debug!(resource = %self.resource, error = %status, "informer: {what}"),
            None => debug!(resource = %self.resource, "informer: {what}"),
        }
    }

    /// One attempt: from nothing, list and watch; from a revision, watch.
    async fn turn(&mut self, at: &mut Option<Revision>) -> Stop {
        let result = match *at {
            None if self.streams_lists => self.watch_list(at).await,
            None => self.list_then_watch(at).await,
            Some(revision) => self.resume(revision, at).await,
        };
        match result {
            Ok(never) => match never {},
            Err(stop) => stop,
        }
    }

    async fn send(&self, change: Change) -> Result<(), Closed> {
        self.to.send(change).await.map_err(|_| Closed)
    }

    fn watch_options(&self) -> Options {
        Options { allow_watch_bookmarks: true, ..self.options.clone() }
    }

    async fn open(&self, options: Options) -> Result<Events, Status> {
        self.client.watch(self.resource, &self.namespace, options).await
    }

    async fn watch_list(&mut self, at: &mut Option<Revision>) -> Result<std::convert::Infallible, Stop> {
        let options = Options {
            send_initial_events: Some(true),
            resource_version_match: Some("NotOlderThan".into()),
            resource_version: Some(String::new()),
            ..self.watch_options()
        };
        let mut events = match self.open(options).await {
            Ok(events) => events,
            Err(status) if matches!(status.code, 400 | 403 | 405 | 422) => {
                debug!(resource = %self.resource, error = %status, "informer: no streamed lists here");
                self.streams_lists = false;
                return self.list_then_watch(at).await;
            }
            Err(status) => return Err(Stop::Broken(Some(status))),
        };
        self.send(Change::Reset).await?;
        loop {
            let event = match tokio::time::timeout(FIRST_EVENT, events.next()).await {
                Ok(Some(event)) => event,
                Ok(None) => return Err(Stop::Relist(None)),
                Err(_) => {
                    self.streams_lists = false;
                    return Err(Stop::Relist(None));
                }
            };
            match event {
                Event::Bookmark { revision, initial_end } => {
                    if initial_end {
                        *at = Some(revision);
                        self.send(Change::Synced(revision)).await?;
                        return self.follow(events, at).await;
                    }
                }
                Event::Added(object) | Event::Modified(object) => self.send(Change::Set(object)).await?,
                Event::Deleted(object) => self.send(Change::Gone(object)).await?,
                Event::Error(status) => return Err(Stop::Relist(Some(status))),
            }
        }
    }

    async fn list_then_watch(&mut self, at: &mut Option<Revision>) -> Result<std::convert::Infallible, Stop> {
        let mut token: Option<String> = None;
        let revision = loop {
            let options = Options { limit: Some(PAGE), continue_token: token.clone(), ..self.options.clone() };
            let page = self.client.list(self.resource, &self.namespace, options).await.map_err(|status| Stop::Relist(Some(status)))?;
            if token.is_none() {
                self.send(Change::Reset).await?;
            }
            for object in page.items {
                self.send(Change::Set(object)).await?;
            }
            if page.continue_token.is_empty() {
                break page.revision;
            }
            token = Some(page.continue_token);
        };
        *at = Some(revision);
        self.send(Change::Synced(revision)).await?;
        self.resume(revision, at).await
    }

    async fn resume(&mut self, revision: Revision, at: &mut Option<Revision>) -> Result<std::convert::Infallible, Stop> {
        let options = Options { resource_version: Some(revision.to_string()), ..self.watch_options() };
        let events = self.open(options).await.map_err(|status| match status.code {
            410 => Stop::Relist(Some(status)),
            _ => Stop::Broken(Some(status)),
        })?;
        self.follow(events, at).await
    }

    async fn follow(&self, mut events: Events, at: &mut Option<Revision>) -> Result<std::convert::Infallible, Stop> {
        while let Some(event) = events.next().await {
            let (revision, change) = match event {
                Event::Added(object) | Event::Modified(object) => (object.revision, Some(Change::Set(object))),
                Event::Deleted(object) => (object.revision, Some(Change::Gone(object))),
                Event::Bookmark { revision, .. } => (revision, None),
                Event::Error(status) if status.code == 410 => return Err(Stop::Relist(Some(status))),
                Event::Error(status) => return Err(Stop::Broken(Some(status))),
            };
            if let Some(change) = change {
                self.send(change).await?;
            }
            *at = Some(revision);
        }
        Err(Stop::Broken(None))
    }
}

/// Doubling delays with jitter, from [`BACKOFF_MS_MIN`] to [`BACKOFF_MS_MAX`].
struct Backoff {
    next_ms: u64,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { next_ms: BACKOFF_MS_MIN }
    }
}

impl Backoff {
    fn reset(&mut self) {
        self.next_ms = BACKOFF_MS_MIN;
    }

    fn next(&mut self) -> Duration {
        let ms = self.next_ms;
        self.next_ms = (ms * 2).min(BACKOFF_MS_MAX);
        let jitter = u64::from(getrandom::u32().unwrap_or(0)) % (ms / 2 + 1);
        Duration::from_millis(ms + jitter)
    }
}
