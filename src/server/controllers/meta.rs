//! Pure: owner references, object references and times, as controllers write them.

use crate::api::events::{EventType, Note, Reference};
use crate::api::time::Time;
use crate::api::value::{Map, Value};
use crate::api::world::Row;

/// The owner reference a controller puts on what it makes.
pub fn controller_ref(owner: &Row) -> Value {
    crate::value!({
        "apiVersion": owner.object.resource.api_version(), "kind": owner.object.resource.kind,
        "name": owner.name.name, "uid": owner.uid, "controller": true, "blockOwnerDeletion": true,
    })
}

/// What an event about this object refers to.
pub fn reference(row: &Row) -> Reference {
    Reference {
        api_version: row.object.resource.api_version(),
        kind: row.object.resource.kind.into(),
        namespace: row.name.namespace.clone(),
        name: row.name.name.clone(),
        uid: row.uid.clone(),
        resource_version: row.object.revision.to_string(),
        field_path: String::new(),
    }
}

pub fn normal(row: &Row, reason: &str, message: impl Into<String>) -> Note {
    Note { object: reference(row), type_: EventType::Normal, reason: reason.into(), message: message.into() }
}

pub fn warning(row: &Row, reason: &str, message: impl Into<String>) -> Note {
    Note { object: reference(row), type_: EventType::Warning, reason: reason.into(), message: message.into() }
}

/// RFC 3339 text of seconds since the epoch.
pub fn rfc3339(seconds: i64) -> String {
    Time::from_seconds(seconds).to_string()
}

/// Seconds since the epoch of RFC 3339 text.
pub fn seconds(text: &str) -> Option<i64> {
    Time::parse(text).ok().map(|t| t.seconds)
}

/// A merge patch of metadata only, good for this very revision of the object.
pub fn patch_of(row: &Row) -> Value {
    let mut metadata = Map::new();
    metadata.insert("uid", row.uid.as_str());
    metadata.insert("resourceVersion", row.object.revision.to_string());
    let mut patch = Map::new();
    patch.insert("metadata", metadata);
    Value::Map(patch)
}

/// The patch that makes `owner` the controller of `row`.
pub fn adopt(row: &Row, owner: &Row) -> Value {
    let mut owners = row.value().list_at(&["metadata", "ownerReferences"]).to_vec();
    owners.push(controller_ref(owner));
    let mut patch = patch_of(row);
    patch.set(&["metadata", "ownerReferences"], owners);
    patch
}

/// The patch that takes the references to these owners away; the last one leaves none.
pub fn disown(row: &Row, uids: &[&str]) -> Value {
    let value = row.value();
    let owners = value.list_at(&["metadata", "ownerReferences"]).iter();
    let left: Vec<Value> = owners.filter(|o| !uids.contains(&o.str_at(&["uid"]))).cloned().collect();
    let mut patch = patch_of(row);
    let left = if left.is_empty() { Value::Null } else { Value::List(left) };
    patch.set(&["metadata", "ownerReferences"], left);
    patch
}

/// `base-` with the base cut so that a five-character suffix fits a name, as `generateName` does it.
pub fn name_prefix(base: &str) -> String {
    const BASE_MAX: usize = 63 - 5;
    let mut prefix = format!("{base}-");
    prefix.truncate(BASE_MAX);
    prefix
}

/// An int-or-percent of `total`, rounded up or down.
pub fn scaled(value: Option<&Value>, total: i64, round_up: RoundUp, absent: &str) -> i64 {
    let text = match value {
        Some(Value::Int(n)) => return *n,
        Some(Value::Str(text)) => text.as_str(),
        _ => absent,
    };
    let Some(percent) = text.strip_suffix('%').and_then(|p| p.parse::<i64>().ok()) else { return text.parse().unwrap_or(0) };
    match round_up {
        RoundUp::Yes => (percent * total + 99).div_euclid(100),
        RoundUp::No => (percent * total).div_euclid(100),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundUp {
    Yes,
    No,
}
