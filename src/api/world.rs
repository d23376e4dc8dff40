//! What controllers see: the latest known state of some resources, indexed.
//!
//! Objects stay encoded (their bytes are shared with whoever else holds them); beside each stand the few fields indexes
//! need ([`Row`]) and, for pods and nodes, the facts every loop asks for ([`PodFacts`], [`NodeFacts`]). Indexes: by owner
//! uid, by uid, by namespace (the order of names), pods by node; derived: what is requested on each node, which includes
//! bindings under way (the overlay). Fed by [`Change`]s through [`World::apply`], which answers with what was touched.
//!
//! *Invariant: the overlay holds only what a job under way will do; it ends with the job's failure or the watch event.*

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

pub use super::informer::Change;
pub use super::object::Name;
use super::object::{Object, Owner, Revision};
use super::resource::{self, Resource};
use super::value::Value;

pub use node::{NodeFacts, Taint};
pub use pod::{PodFacts, Port};
pub use usage::{Amounts, Usage, scored};

mod node;
mod pod;
mod usage;

/// One object of one resource.
#[derive(Clone, Debug)]
pub struct Key {
    pub resource: &'static Resource,
    pub name: Name,
}

impl Key {
    pub fn new(resource: &'static Resource, namespace: impl Into<String>, name: impl Into<String>) -> Key {
        Key { resource, name: Name::new(namespace, name) }
    }

    fn order(&self) -> (&'static str, &'static str, &Name) {
        (self.resource.storage_group, self.resource.plural, &self.name)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.order() == other.order()
    }
}
impl Eq for Key {}
impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Key {
    fn cmp(&self, other: &Key) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.order().hash(state);
    }
}
impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.resource.qualified(), self.name)
    }
}

/// One object and what indexes need of it.
#[derive(Debug)]
pub struct Row {
    pub object: Object,
    pub name: Name,
    pub uid: String,
    pub labels: Vec<(String, String)>,
    pub owners: Vec<Owner>,
    pub deleting: bool,
    /// When this state was taken in, milliseconds since the epoch.
    pub seen_ms: i64,
    pub facts: Facts,
}

/// What loops ask of a kind often enough to keep it at hand.
#[derive(Debug)]
pub enum Facts {
    None,
    Pod(Box<PodFacts>),
    Node(Box<NodeFacts>),
}

impl Row {
    pub fn new(object: Object, seen_ms: i64) -> Row {
        let facts = if *object.resource == resource::PODS {
            Facts::Pod(Box::new(PodFacts::of(&object.decode_only(PodFacts::FIELDS))))
        } else if *object.resource == resource::NODES {
            Facts::Node(Box::new(NodeFacts::of(&object.decode_only(NodeFacts::FIELDS))))
        } else {
            Facts::None
        };
        let meta = object.metadata();
        Row {
            name: Name::new(meta.namespace, meta.name),
            uid: meta.uid.to_string(),
            labels: meta.labels.into_iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            owners: meta.owners,
            deleting: meta.is_deleting,
            seen_ms,
            facts,
            object,
        }
    }

    pub fn key(&self) -> Key {
        Key { resource: self.object.resource, name: self.name.clone() }
    }

    /// Decodes the object.
    pub fn value(&self) -> Value {
        self.object.value()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The owner that manages it.
    pub fn controller(&self) -> Option<&Owner> {
        self.owners.iter().find(|o| o.controller)
    }

    /// The facts of a pod; asking another kind is a bug.
    pub fn pod(&self) -> &PodFacts {
        match &self.facts {
            Facts::Pod(facts) => facts,
            Facts::None | Facts::Node(_) => panic!("{} is not a pod", self.name),
        }
    }

    /// The facts of a node; asking another kind is a bug.
    pub fn node(&self) -> &NodeFacts {
        match &self.facts {
            Facts::Node(facts) => facts,
            Facts::None | Facts::Pod(_) => panic!("{} is not a node", self.name),
        }
    }
}

/// One change of the world: at least one side is there.
#[derive(Debug)]
pub struct Touched {
    pub resource: &'static Resource,
    pub old: Option<Arc<Row>>,
    pub new: Option<Arc<Row>>,
}

impl Touched {
    /// The newest known state.
    pub fn row(&self) -> &Arc<Row> {
        self.new.as_ref().or(self.old.as_ref()).expect("a change has a side")
    }

    pub fn key(&self) -> Key {
        self.row().key()
    }

    pub fn rows(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.old.iter().chain(self.new.iter())
    }
}

/// What must be seen before a key is decided again.
#[derive(Clone, Debug, PartialEq)]
pub enum Gate {
    /// The write that made this revision of this object.
    Seen { key: Key, revision: Revision },
    /// Anything newer of this object, or its end: a write from this revision was refused because there is.
    Moved { key: Key, revision: Revision },
    /// The object with this uid is deleted or being deleted.
    Deleted { key: Key, uid: String },
    /// The pod with this uid has a node, or is gone.
    Bound { pod: Key, uid: String },
}

impl Gate {
    pub fn resource(&self) -> &'static Resource {
        match self {
            Gate::Seen { key, .. } | Gate::Moved { key, .. } | Gate::Deleted { key, .. } => key.resource,
            Gate::Bound { pod, .. } => pod.resource,
        }
    }
}

/// See the module's header.
#[derive(Default)]
pub struct World {
    kinds: BTreeMap<(&'static str, &'static str), Kind>,
    owned: HashMap<String, BTreeSet<Key>>,
    by_uid: HashMap<String, Key>,
    pods_on: HashMap<String, BTreeSet<Name>>,
    usage: Usage,
    version: u64,
    now_ms: i64,
    /// When nodes were last seen to be missing.
    missing: HashMap<Name, i64>,
}

struct Kind {
    resource: &'static Resource,
    rows: BTreeMap<Name, Arc<Row>>,
    seen: Revision,
    synced: bool,
    /// During a relist: what was not set again yet.
    stale: Option<BTreeSet<Name>>,
}

fn slot(resource: &Resource) -> (&'static str, &'static str) {
    (resource.storage_group, resource.plural)
}

impl World {
    pub fn new(resources: &[&'static Resource]) -> World {
        let mut world = World::default();
        for resource in resources {
            let kind = Kind { resource, rows: BTreeMap::new(), seen: 0, synced: false, stale: None };
            world.kinds.insert(slot(resource), kind);
        }
        world
    }

    /// The time at which the next changes are taken in.
    pub fn tick(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
    }

    /// Since when a node that is not there has been missing; `None` if it was never asked for or known.
    pub fn missing_since(&self, node: &str) -> Option<i64> {
        self.missing.get(&Name::new("", node)).copied()
    }

    /// Grows with every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn follows(&self, resource: &Resource) -> bool {
        self.kinds.contains_key(&slot(resource))
    }

    pub fn is_synced(&self, resource: &Resource) -> bool {
        self.kinds.get(&slot(resource)).is_some_and(|k| k.synced)
    }

    pub fn resources(&self) -> impl Iterator<Item = &'static Resource> {
        self.kinds.values().map(|k| k.resource)
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<Row>> {
        self.kinds.get(&slot(key.resource))?.rows.get(&key.name)
    }

    pub fn find(&self, resource: &Resource, namespace: &str, name: &str) -> Option<&Arc<Row>> {
        self.kinds.get(&slot(resource))?.rows.get(&Name::new(namespace, name))
    }

    pub fn all(&self, resource: &Resource) -> impl Iterator<Item = &Arc<Row>> {
        self.kinds.get(&slot(resource)).into_iter().flat_map(|k| k.rows.values())
    }

    pub fn count(&self, resource: &Resource) -> usize {
        self.kinds.get(&slot(resource)).map_or(0, |k| k.rows.len())
    }

    /// The objects of one namespace, by name.
    pub fn within<'a>(&'a self, resource: &Resource, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Row>> {
        let rows = self.kinds.get(&slot(resource)).map(|k| k.rows.range(Name::new(namespace, "")..));
        rows.into_iter().flatten().take_while(move |(name, _)| name.namespace == namespace).map(|(_, row)| row)
    }

    /// Everything that names `uid` as an owner.
    pub fn owned<'a>(&'a self, uid: &str) -> impl Iterator<Item = &'a Key> + use<'a> {
        self.owned.get(uid).into_iter().flatten()
    }

    /// The objects of `resource` that name `uid` as an owner.
    pub fn owned_rows<'a>(&'a self, uid: &str, resource: &'static Resource) -> impl Iterator<Item = &'a Arc<Row>> + use<'a> {
        self.owned(uid).filter(move |key| slot(key.resource) == slot(resource)).filter_map(|key| self.get(key))
    }

    pub fn by_uid(&self, uid: &str) -> Option<&Arc<Row>> {
        self.get(self.by_uid.get(uid)?)
    }

    /// The pods assigned to a node; those of node `""` are assigned to none.
    pub fn pods_on<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<Row>> + use<'a> {
        let names = self.pods_on.get(node).into_iter().flatten();
        names.filter_map(|name| self.find(&resource::PODS, &name.namespace, &name.name))
    }

    /// What is requested on each node, bindings under way included.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Whether the world shows what the gate asks for.
    pub fn passed(&self, gate: &Gate) -> bool {
        let Some(kind) = self.kinds.get(&slot(gate.resource())) else { return true };
        match gate {
            Gate::Seen { revision, .. } => kind.seen >= *revision,
            Gate::Moved { key, revision } => kind.rows.get(&key.name).is_none_or(|row| row.object.revision > *revision),
            Gate::Deleted { key, uid } => kind.rows.get(&key.name).is_none_or(|row| row.uid != *uid || row.deleting),
            Gate::Bound { pod, uid } => kind.rows.get(&pod.name).is_none_or(|row| row.uid != *uid || !row.pod().node.is_empty()),
        }
    }

    /// Takes one change in; what it touched comes back (more than one object only at the end of a relist).
    pub fn apply(&mut self, resource: &'static Resource, change: Change) -> Vec<Touched> {
        let Some(kind) = self.kinds.get_mut(&slot(resource)) else { return Vec::new() };
        self.version += 1;
        match change {
            Change::Reset => {
                kind.stale = Some(kind.rows.keys().cloned().collect());
                Vec::new()
            }
            Change::Set(object) => self.set(resource, object),
            Change::Gone(object) => {
                kind.seen = kind.seen.max(object.revision);
                self.gone(resource, &object.key()).into_iter().collect()
            }
            Change::Synced(revision) => {
                kind.synced = true;
                // What was written up to here and is not listed is gone again.
                kind.seen = kind.seen.max(revision);
                let stale = kind.stale.take().unwrap_or_default();
                stale.iter().filter_map(|name| self.gone(resource, name)).collect()
            }
        }
    }

    fn set(&mut self, resource: &'static Resource, object: Object) -> Vec<Touched> {
        let name = object.key();
        let Some(kind) = self.kinds.get_mut(&slot(resource)) else { return Vec::new() };
        if let Some(stale) = &mut kind.stale {
            stale.remove(&name);
        }
        let known = kind.rows.get(&name);
        if known.is_some_and(|row| row.object.revision >= object.revision) {
            return Vec::new();
        }
        kind.seen = kind.seen.max(object.revision);
        // A list may show another object under the name: then the one before is gone, although nobody said so.
        let replaced = known.is_some_and(|row| row.uid != object.uid());
        let gone = if replaced { self.gone(resource, &name) } else { None };
        let kind = self.kinds.get_mut(&slot(resource)).expect("seen above");
        let old = kind.rows.get(&name).cloned();
        if *resource == resource::NODES {
            self.missing.remove(&name);
        }
        let new = Arc::new(Row::new(object, self.now_ms));
        kind.rows.insert(name, new.clone());
        if let Some(old) = &old {
            self.unindex(old);
        }
        self.index(&new);
        gone.into_iter().chain([Touched { resource, old, new: Some(new) }]).collect()
    }

    fn gone(&mut self, resource: &'static Resource, name: &Name) -> Option<Touched> {
        let old = self.kinds.get_mut(&slot(resource))?.rows.remove(name)?;
        self.unindex(&old);
        if *resource == resource::NODES {
            self.missing.insert(name.clone(), self.now_ms);
        }
        Some(Touched { resource, old: Some(old), new: None })
    }

    fn index(&mut self, row: &Arc<Row>) {
        self.by_uid.insert(row.uid.clone(), row.key());
        for owner in &row.owners {
            self.owned.entry(owner.uid.clone()).or_default().insert(row.key());
        }
        if let Facts::Pod(facts) = &row.facts {
            self.usage.set(&row.name, facts);
            if !facts.node.is_empty() && self.find(&resource::NODES, "", &facts.node).is_none() {
                self.missing.entry(Name::new("", facts.node.as_str())).or_insert(self.now_ms);
            }
            self.pods_on.entry(facts.node.clone()).or_default().insert(row.name.clone());
        }
    }

    fn unindex(&mut self, row: &Arc<Row>) {
        let key = row.key();
        if self.by_uid.get(&row.uid) == Some(&key) {
            self.by_uid.remove(&row.uid);
        }
        for owner in &row.owners {
            remove_from(&mut self.owned, &owner.uid, &key);
        }
        if let Facts::Pod(facts) = &row.facts {
            if self.find(&resource::PODS, &row.name.namespace, &row.name.name).is_none() {
                self.usage.remove(&row.name);
            }
            remove_from(&mut self.pods_on, &facts.node, &row.name);
        }
    }

    /// An action is under way: reckon with it.
    pub(super) fn assume(&mut self, action: &super::controller::Action) {
        if let super::controller::Action::Bind { pod, node, .. } = action
            && let Some(row) = self.get(pod).cloned()
        {
            self.usage.assume(&row.name, node, row.pod());
        }
    }

    /// It will not happen after all.
    pub(super) fn forget(&mut self, action: &super::controller::Action) {
        if let super::controller::Action::Bind { pod, .. } = action {
            self.usage.forget(&pod.name);
            self.version += 1;
        }
    }
}

fn remove_from<V: Ord>(index: &mut HashMap<String, BTreeSet<V>>, key: &str, value: &V) {
    if let Some(set) = index.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    fn secret(uid: &str, revision: Revision) -> Object {
        Object::from_value(&resource::SECRETS, &value!({"metadata": {"name": "s", "namespace": "n", "uid": uid}}), revision)
    }

    #[test]
    fn a_list_that_shows_another_object_says_the_one_before_is_gone() {
        let mut world = World::new(&[&resource::SECRETS]);
        world.apply(&resource::SECRETS, Change::Set(secret("a", 1)));
        world.apply(&resource::SECRETS, Change::Reset);
        let touched = world.apply(&resource::SECRETS, Change::Set(secret("b", 4)));
        let uids: Vec<_> = touched.iter().map(|t| (t.old.as_ref().map(|r| &*r.uid), t.new.as_ref().map(|r| &*r.uid))).collect();
        assert_eq!(uids, [(Some("a"), None), (None, Some("b"))]);
        assert!(world.by_uid("a").is_none() && world.by_uid("b").is_some());
    }

    #[test]
    fn a_list_shows_what_was_written_before_it_and_deleted_again() {
        let mut world = World::new(&[&resource::SECRETS]);
        let gate = Gate::Seen { key: Key::new(&resource::SECRETS, "n", "s"), revision: 5 };
        world.apply(&resource::SECRETS, Change::Reset);
        assert!(!world.passed(&gate));
        world.apply(&resource::SECRETS, Change::Synced(4));
        assert!(!world.passed(&gate), "the list is older than the write");
        world.apply(&resource::SECRETS, Change::Reset);
        world.apply(&resource::SECRETS, Change::Synced(6));
        assert!(world.passed(&gate));
    }
}
