//! ConfigMaps and Secrets of the pods here, each watched by name while a pod needs it.
//!
//! The first asker of an object starts its watch; the last pod to leave ends it. A change is told as the uids of the pods
//! that use the object.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::agent::kubelet::env::Kind;
use crate::api::client::Client;
use crate::api::informer::{Change, informer_in};
use crate::api::object::Object;
use crate::api::request::Options;
use crate::api::resource::{self, Resource};
use crate::api::value::Value;

/// Kind, namespace, name.
pub type Key = (Kind, String, String);

/// `None` until the first list is in; then the object, if it exists.
type Latest = Option<Option<Object>>;

#[derive(Clone)]
pub struct Sources {
    client: Client,
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
    changed: mpsc::Sender<Vec<String>>,
}

struct Entry {
    latest: watch::Receiver<Latest>,
    users: BTreeSet<String>,
    task: JoinHandle<()>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How long the first list may take.
const SYNC: Duration = Duration::from_secs(30);

impl Sources {
    /// The receiver hears the uids of pods whose objects changed.
    pub fn new(client: Client) -> (Sources, mpsc::Receiver<Vec<String>>) {
        let (changed, receiver) = mpsc::channel(64);
        (Sources { client, entries: Arc::default(), changed }, receiver)
    }

    /// The object's data, `None` if it does not exist; from now on pod `uid` hears of its changes.
    pub async fn data(&self, uid: &str, kind: Kind, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, Vec<u8>>>, String> {
        let mut latest = self.follow(uid, (kind, namespace.to_string(), name.to_string()));
        let synced = tokio::time::timeout(SYNC, latest.wait_for(Option::is_some)).await;
        match synced {
            Ok(Ok(latest)) => Ok(latest.clone().flatten().map(|object| data(kind, &object.value()))),
            Ok(Err(_)) | Err(_) => Err(format!("failed to sync {} cache: timed out waiting for the condition", kind.word())),
        }
    }

    fn follow(&self, uid: &str, key: Key) -> watch::Receiver<Latest> {
        let mut entries = self.entries.lock().expect("nothing panics while holding it");
        let entry = entries.entry(key.clone()).or_insert_with(|| {
            let (to, latest) = watch::channel(None);
            let task = crate::task::spawn("agent-source", self.clone().watch(key, to));
            Entry { latest, users: BTreeSet::new(), task }
        });
        entry.users.insert(uid.to_string());
        entry.latest.clone()
    }

    /// Pod `uid` needs nothing any more.
    pub fn release(&self, uid: &str) {
        let mut entries = self.entries.lock().expect("nothing panics while holding it");
        entries.retain(|_, entry| {
            entry.users.remove(uid);
            !entry.users.is_empty()
        });
    }

    fn users(&self, key: &Key) -> Vec<String> {
        let entries = self.entries.lock().expect("nothing panics while holding it");
        entries.get(key).map(|e| e.users.iter().cloned().collect()).unwrap_or_default()
    }

    async fn watch(self, key: Key, to: watch::Sender<Latest>) {
        let (kind, namespace, name) = &key;
        let options = Options { field_selector: Some(format!("metadata.name={name}")), ..Options::default() };
        let mut changes = informer_in(self.client.clone(), resource_of(*kind), namespace, options);
        let mut listed: Option<Object> = None;
        let mut synced = false;
        while let Some(change) = changes.recv().await {
            let now = match change {
                Change::Reset => {
                    (listed, synced) = (None, false);
                    continue;
                }
                Change::Set(object) if !synced => {
                    listed = Some(object);
                    continue;
                }
                Change::Synced(_) => {
                    synced = true;
                    listed.take()
                }
                Change::Set(object) => Some(object),
                Change::Gone(_) => None,
            };
            let first = to.borrow().is_none();
            let differs = to.send_if_modified(|latest| {
                let differs = latest.as_ref() != Some(&now);
                *latest = Some(now);
                differs
            });
            if differs && !first && self.changed.send(self.users(&key)).await.is_err() {
                return;
            }
        }
    }
}

fn resource_of(kind: Kind) -> &'static Resource {
    match kind {
        Kind::ConfigMap => &resource::CONFIGMAPS,
        Kind::Secret => &resource::SECRETS,
    }
}

/// Keys and bytes, from `data` and `binaryData`.
pub fn data(kind: Kind, object: &Value) -> BTreeMap<String, Vec<u8>> {
    use base64::Engine;
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    let entries = |field: &str| object.map_at(&[field]).into_iter().flat_map(|m| m.iter()).collect::<Vec<_>>();
    let mut all: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (key, value) in entries("data") {
        let text = value.as_str().unwrap_or("");
        all.insert(key.to_string(), if kind == Kind::Secret { decode(text) } else { text.as_bytes().to_vec() });
    }
    for (key, value) in entries("binaryData") {
        all.insert(key.to_string(), decode(value.as_str().unwrap_or("")));
    }
    all
}
