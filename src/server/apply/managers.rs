//! Pure: `metadata.managedFields` as entries with identities, and back.
//!
//! An entry is its manager's: by name, operation, subresource and, for updates, apiVersion. Field sets are decoded only where a
//! write touches them; all others keep the tree they came in.

use std::collections::BTreeMap;

use crate::api::value::{Map, Value};

use super::set::Set;

/// Entries of operation Update an object carries before the oldest are merged.
const UPDATERS_MAX: usize = 10;
/// The manager the oldest are merged into.
const MERGED_MANAGER: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// Whose an entry is. In upstream's order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    pub manager: String,
    pub operation: Operation,
    /// Of updates only: who applies in another version is still the same.
    pub api_version: String,
    pub subresource: String,
}

/// One entry of `metadata.managedFields`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub identity: Identity,
    /// The version the fields are of.
    pub api_version: String,
    pub time: String,
    fields: Fields,
}

#[derive(Clone, Debug)]
enum Fields {
    Encoded(Value),
    Set(Set),
}

impl Identity {
    pub fn new(manager: &str, operation: Operation, api_version: &str, subresource: &str) -> Identity {
        let api_version = if operation == Operation::Apply { "" } else { api_version };
        Identity { manager: manager.to_string(), operation, api_version: api_version.to_string(), subresource: subresource.to_string() }
    }

    /// As conflicts name it.
    pub fn shown(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

impl Entry {
    pub fn new(identity: Identity, api_version: &str, time: &str, set: Set) -> Entry {
        Entry { identity, api_version: api_version.to_string(), time: time.to_string(), fields: Fields::Set(set) }
    }

    pub fn set(&self) -> Set {
        match &self.fields {
            Fields::Set(set) => set.clone(),
            // Entries are accepted only if their fields can be read.
            Fields::Encoded(value) => Set::decode(value).unwrap_or_default(),
        }
    }

    pub fn is_empty(&self) -> bool {
        match &self.fields {
            Fields::Set(set) => set.is_empty(),
            Fields::Encoded(value) => value.as_map().is_none_or(Map::is_empty),
        }
    }

    pub fn replace(&mut self, set: Set) {
        self.fields = Fields::Set(set);
    }

    pub fn add(&mut self, set: Set) {
        let mut own = self.set();
        own.add(set);
        self.replace(own);
    }

    pub fn subtract(&mut self, set: &Set) {
        let is_touched = match &self.fields {
            Fields::Set(_) => true,
            Fields::Encoded(value) => set.touches(value),
        };
        if is_touched {
            let mut own = self.set();
            own.subtract(set);
            self.replace(own);
        }
    }
}

/// Whether this is something somebody could have been given as managed fields.
pub fn are_well_formed(list: &Value) -> bool {
    let fields = |item: &Value| item.get("fieldsV1").filter(|f| !f.is_null()).is_none_or(|f| Set::decode(f).is_some());
    decode(Some(list)).is_some() && list.as_list().is_some_and(|items| items.iter().all(fields))
}

/// Field sets are taken as they are: stored ones are well-formed, and others were looked at before. Of entries with the same
/// identity the last counts. `None`: these are no entries.
pub fn decode(list: Option<&Value>) -> Option<Vec<Entry>> {
    let Some(list) = list else { return Some(Vec::new()) };
    let mut entries: Vec<Entry> = Vec::new();
    for item in list.as_list()? {
        let operation = match item.str_at(&["operation"]) {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        let api_version = item.str_at(&["apiVersion"]);
        if api_version.is_empty() || item.str_at(&["fieldsType"]) != "FieldsV1" {
            return None;
        }
        let fields = item.get("fieldsV1").filter(|f| !f.is_null()).cloned().unwrap_or_else(Value::map);
        let identity = Identity::new(item.str_at(&["manager"]), operation, api_version, item.str_at(&["subresource"]));
        let time = item.str_at(&["time"]).to_string();
        let entry = Entry { identity, api_version: api_version.to_string(), time, fields: Fields::Encoded(fields) };
        match entries.iter_mut().find(|e| e.identity == entry.identity) {
            Some(earlier) => *earlier = entry,
            None => entries.push(entry),
        }
    }
    Some(entries)
}

pub fn encode(mut entries: Vec<Entry>) -> Value {
    entries.sort_by(|a, b| {
        let by_age = (a.identity.operation, &a.time).cmp(&(b.identity.operation, &b.time));
        let by_name = || {
            (&a.identity.manager, &a.api_version, &a.identity.subresource).cmp(&(
                &b.identity.manager,
                &b.api_version,
                &b.identity.subresource,
            ))
        };
        by_age.then_with(by_name)
    });
    let encoded = entries.into_iter().map(|e| {
        let mut item = Map::with_capacity(7);
        item.insert("apiVersion", e.api_version);
        item.insert("fieldsType", "FieldsV1");
        item.insert(
            "fieldsV1",
            match e.fields {
                Fields::Encoded(value) => value,
                Fields::Set(set) => set.encode(),
            },
        );
        let Identity { manager, operation, subresource, .. } = e.identity;
        for (field, text) in
            [("manager", manager), ("operation", operation.as_str().into()), ("subresource", subresource), ("time", e.time)]
        {
            if !text.is_empty() {
                item.insert(field, text);
            }
        }
        Value::Map(item)
    });
    Value::List(encoded.collect())
}

/// Merges the oldest updaters, per apiVersion, until there are few enough.
pub fn cap(entries: &mut Vec<Entry>) {
    let is_update = |e: &Entry| e.identity.operation == Operation::Update;
    let mut left = entries.iter().filter(|e| is_update(e)).count();
    if left <= UPDATERS_MAX {
        return;
    }
    entries.sort_by(|a, b| (&a.time, &a.identity).cmp(&(&b.time, &b.identity)));
    let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
    // Per apiVersion the oldest entry, which becomes the merged one with the second.
    let mut oldest: BTreeMap<String, usize> = BTreeMap::new();
    for entry in entries.drain(..) {
        if !is_update(&entry) || left <= UPDATERS_MAX {
            kept.push(entry);
            continue;
        }
        match oldest.get(&entry.api_version) {
            Some(first) => {
                let first = &mut kept[*first];
                first.identity = Identity::new(MERGED_MANAGER, Operation::Update, &entry.api_version, "");
                first.add(entry.set());
                first.time = entry.time;
                left -= 1;
            }
            None => {
                oldest.insert(entry.api_version.clone(), kept.len());
                kept.push(entry);
            }
        }
    }
    *entries = kept;
}
