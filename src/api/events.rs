//! Event recording: what happened to an object, for people to read (`kubectl describe`, `kubectl get events`).
//!
//! [`Recorder::event`] never blocks and never fails: it puts the note into a bounded queue; one task per recorder writes
//! core/v1 Events. Repetitions raise `count` of the same Event, many similar ones are combined, and each object has an
//! allowance (25 at once, then one in five minutes), as client-go's recorder does. What to write is decided by the pure
//! [`Correlator`].

use std::collections::{HashMap, VecDeque};

use tokio::sync::mpsc;
use tracing::debug;

use super::client::Client;
use super::request::PatchType;
use super::resource::EVENTS;
use super::time::{Clock, SystemClock, Time};
use super::value::Value;

/// Which object an event is about: `involvedObject`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Reference {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    /// `spec.containers{name}` where it is about a container.
    pub field_path: String,
}

impl Reference {
    /// From an object as a tree, with its `apiVersion` and `kind` in place.
    pub fn of(object: &Value) -> Reference {
        Reference {
            api_version: object.str_at(&["apiVersion"]).into(),
            kind: object.str_at(&["kind"]).into(),
            namespace: object.str_at(&["metadata", "namespace"]).into(),
            name: object.str_at(&["metadata", "name"]).into(),
            uid: object.str_at(&["metadata", "uid"]).into(),
            resource_version: object.str_at(&["metadata", "resourceVersion"]).into(),
            field_path: String::new(),
        }
    }

    pub fn with_field_path(mut self, path: impl Into<String>) -> Reference {
        self.field_path = path.into();
        self
    }

    fn to_value(&self) -> Value {
        let fields = [
            ("apiVersion", &self.api_version),
            ("kind", &self.kind),
            ("namespace", &self.namespace),
            ("name", &self.name),
            ("uid", &self.uid),
            ("resourceVersion", &self.resource_version),
            ("fieldPath", &self.field_path),
        ];
        Value::Map(fields.into_iter().filter(|(_, text)| !text.is_empty()).map(|(k, text)| (k, text.as_str())).collect())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn text(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub object: Reference,
    pub type_: EventType,
    pub reason: String,
    pub message: String,
}

/// Takes events for one component. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    to: mpsc::Sender<Note>,
}

const QUEUE: usize = 1024;

impl Recorder {
    /// Events from `component` (`replicaset-controller`, `kubelet`, …) on `host` (the node's name, or empty). Must be called
    /// inside a runtime; the writing task ends with the last clone.
    pub fn new(client: Client, component: &str, host: &str) -> Recorder {
        let (to, notes) = mpsc::channel(QUEUE);
        crate::task::spawn("events", write(client, notes, Correlator::new(component, host)));
        Recorder { to }
    }

    pub fn event(&self, object: &Reference, type_: EventType, reason: &str, message: impl Into<String>) {
        let note = Note { object: object.clone(), type_, reason: reason.into(), message: message.into() };
        if self.to.try_send(note).is_err() {
            debug!(object = %object.name, reason, "event dropped: queue full");
        }
    }
}

async fn write(client: Client, mut notes: mpsc::Receiver<Note>, mut correlator: Correlator) {
    while let Some(note) = notes.recv().await {
        let now = SystemClock.now();
        let unique = (now.seconds as u64).wrapping_mul(1_000_000_000) + u64::from(now.nanos);
        let Some(write) = correlator.correlate(note, now.seconds, unique) else { continue };
        let result = match &write {
            Write::Create { namespace, event } => client.create(&EVENTS, namespace, event.clone()).await.map(|_| ()),
            Write::Patch { namespace, name, patch, event } => {
                match client.patch(&EVENTS, namespace, name, "", PatchType::Merge, patch.clone()).await {
                    // It expired: begin again under the same name.
                    Err(status) if status.code == 404 => client.create(&EVENTS, namespace, event.clone()).await.map(|_| ()),
                    other => other.map(|_| ()),
                }
            }
        };
        if let Err(status) = result {
            debug!(error = %status, "event not written");
        }
    }
}

/// What the recorder's task is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Create { namespace: String, event: Value },
    Patch { namespace: String, name: String, patch: Value, event: Value },
}

/// Pure part: merges repetitions and holds each object to its allowance.
pub struct Correlator {
    component: String,
    host: String,
    seen: HashMap<Identity, Seen>,
    order: VecDeque<Identity>,
    similar: HashMap<Similar, (i64, Vec<String>)>,
    allowance: HashMap<Reference, (f64, i64)>,
}

type Identity = (Reference, EventType, String, String);
type Similar = (Reference, EventType, String);

struct Seen {
    name: String,
    first: i64,
    count: i64,
}

const REMEMBERED: usize = 4096;
const SIMILAR_MAX: usize = 10;
const SIMILAR_SECONDS: i64 = 600;
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;

impl Correlator {
    pub fn new(component: &str, host: &str) -> Correlator {
        Correlator {
            component: component.into(),
            host: host.into(),
            seen: HashMap::new(),
            order: VecDeque::new(),
            similar: HashMap::new(),
            allowance: HashMap::new(),
        }
    }

    /// `now` in seconds; `unique` makes the name of a new Event (nanoseconds since the epoch, as upstream does).
    pub fn correlate(&mut self, mut note: Note, now: i64, unique: u64) -> Option<Write> {
        note.message.truncate(floor_char(&note.message, 1024));
        // The revision of the object is not part of what makes two events the same.
        let about = Reference { resource_version: String::new(), ..note.object.clone() };
        if !self.allowed(&about, now) {
            return None;
        }
        let (message, key_message) = self.combine(&about, &note, now);
        let identity = (about, note.type_, note.reason.clone(), key_message);
        let namespace = match note.object.namespace.as_str() {
            "" => "default".to_string(),
            namespace => namespace.to_string(),
        };
        if let Some(seen) = self.seen.get_mut(&identity) {
            seen.count += 1;
            let (name, first, count) = (seen.name.clone(), seen.first, seen.count);
            let last = rfc3339(now);
            let patch = crate::value!({"count": count, "lastTimestamp": last, "message": message});
            let event = self.event(&note, &namespace, &name, &message, first, now, count);
            return Some(Write::Patch { namespace, name, patch, event });
        }
        let name = format!("{}.{unique:x}", note.object.name);
        let event = self.event(&note, &namespace, &name, &message, now, now, 1);
        self.remember(identity, Seen { name, first: now, count: 1 });
        Some(Write::Create { namespace, event })
    }

    fn allowed(&mut self, about: &Reference, now: i64) -> bool {
        if self.allowance.len() > REMEMBERED {
            self.allowance.retain(|_, (tokens, at)| *tokens + (now - *at) as f64 / REFILL_SECONDS < BURST);
            if self.allowance.len() > REMEMBERED {
                self.allowance.clear();
            }
        }
        let (tokens, at) = self.allowance.entry(about.clone()).or_insert((BURST, now));
        *tokens = (*tokens + (now - *at) as f64 / REFILL_SECONDS).min(BURST);
        *at = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    /// More than ten different messages for the same reason in ten minutes become one Event.
    fn combine(&mut self, about: &Reference, note: &Note, now: i64) -> (String, String) {
        if self.similar.len() > REMEMBERED {
            self.similar.retain(|_, (at, _)| now - *at < SIMILAR_SECONDS);
        }
        let key = (about.clone(), note.type_, note.reason.clone());
        let (at, messages) = self.similar.entry(key).or_insert((now, Vec::new()));
        if now - *at > SIMILAR_SECONDS {
            messages.clear();
        }
        *at = now;
        if messages.contains(&note.message) {
            return (note.message.clone(), note.message.clone());
        }
        if messages.len() < SIMILAR_MAX {
            messages.push(note.message.clone());
            return (note.message.clone(), note.message.clone());
        }
        (format!("(combined from similar events): {}", note.message), "(combined)".into())
    }

    fn remember(&mut self, identity: Identity, seen: Seen) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        self.order.push_back(identity.clone());
        self.seen.insert(identity, seen);
    }

    #[allow(clippy::too_many_arguments)]
    fn event(&self, note: &Note, namespace: &str, name: &str, message: &str, first: i64, last: i64, count: i64) -> Value {
        let mut event = crate::value!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "reason": note.reason, "message": message, "type": note.type_.text(),
            "firstTimestamp": rfc3339(first), "lastTimestamp": rfc3339(last), "count": count,
            "source": {"component": self.component},
            "reportingComponent": self.component, "reportingInstance": self.host,
        });
        if !self.host.is_empty() {
            event.set(&["source", "host"], self.host.as_str());
        }
        event.set(&["involvedObject"], note.object.to_value());
        event
    }
}

fn rfc3339(seconds: i64) -> String {
    Time::from_seconds(seconds).to_string()
}

fn floor_char(text: &str, max: usize) -> usize {
    if text.len() <= max {
        return text.len();
    }
    (0..=max).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(message: &str) -> Note {
        let object = Reference { kind: "Pod".into(), namespace: "ns".into(), name: "p".into(), ..Reference::default() };
        Note { object, type_: EventType::Normal, reason: "R".into(), message: message.into() }
    }

    #[test]
    fn repetition_raises_the_count() {
        let mut c = Correlator::new("x", "");
        let Some(Write::Create { namespace, event }) = c.correlate(note("m"), 0, 0xab) else { panic!("not created") };
        assert_eq!((namespace.as_str(), event.str_at(&["metadata", "name"])), ("ns", "p.ab"));
        assert_eq!(event.str_at(&["firstTimestamp"]), "1970-01-01T00:00:00Z");
        let Some(Write::Patch { name, patch, .. }) = c.correlate(note("m"), 5, 0xcd) else { panic!("not patched") };
        assert_eq!((name.as_str(), patch.i64_at(&["count"])), ("p.ab", Some(2)));
    }

    #[test]
    fn many_similar_are_combined_and_then_refused() {
        let mut c = Correlator::new("x", "");
        let writes: Vec<_> = (0..40).map(|i| c.correlate(note(&format!("m{i}")), 0, i)).collect();
        assert!(matches!(writes[9], Some(Write::Create { .. })));
        let Some(Write::Create { event, .. }) = &writes[10] else { panic!("first combined is created") };
        assert_eq!(event.str_at(&["message"]), "(combined from similar events): m10");
        assert!(matches!(writes[11], Some(Write::Patch { .. })));
        assert!(writes[25].is_none());
        assert!(c.correlate(note("m0"), 300, 99).is_some());
    }
}
