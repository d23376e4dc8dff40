//! `Object`: an API object kept encoded, shared by everyone in the process.
//!
//! Built-in kinds are stored as the bare protobuf message of their storage version (no `k8s\0` envelope, no
//! resourceVersion inside: the revision stands beside the bytes and is spliced in when encoding). Decoding happens where
//! it is needed, with [`Object::value`] or [`Object::typed`], and the result is not kept.
//! *Invariant: no long-lived decoded copy of an object.*

use std::fmt;

use bytes::Bytes;

use super::protobuf::{self, Peek};
use super::resource::Resource;
use super::value::Value;
use super::{json, schema, types};

/// The raft-applied write counter: `resourceVersion` on the wire (see `api` for the contract).
pub type Revision = u64;

/// Namespace and name; the namespace of a cluster-scoped object is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Name {
    pub namespace: String,
    pub name: String,
}

impl Name {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Name {
        Name { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// One version of one object: storage-version resource, encoded bytes, the revision of its last write. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Object {
    pub resource: &'static Resource,
    pub bytes: Bytes,
    pub revision: Revision,
}

impl PartialEq for Object {
    fn eq(&self, other: &Object) -> bool {
        self.revision == other.revision && self.resource == other.resource && self.bytes == other.bytes
    }
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Owner {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub controller: bool,
    /// `blockOwnerDeletion`.
    pub block: bool,
}

/// What indexes need of metadata, read in one pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub uid: &'a str,
    pub labels: Vec<(&'a str, &'a str)>,
    pub owners: Vec<Owner>,
    pub is_deleting: bool,
}

// Numbers in ObjectMeta and OwnerReference that are read without the table.
const METADATA: u32 = 1;
const META_NAME: u32 = 1;
const META_NAMESPACE: u32 = 3;
const META_UID: u32 = 5;
const META_DELETION: u32 = 9;
const META_LABELS: u32 = 11;
const META_ANNOTATIONS: u32 = 12;
const META_OWNERS: u32 = 13;
const META_FINALIZERS: u32 = 14;
const OWNER_KIND: u32 = 1;
const OWNER_NAME: u32 = 3;
const OWNER_UID: u32 = 4;
const OWNER_API_VERSION: u32 = 5;
const OWNER_CONTROLLER: u32 = 6;
const OWNER_BLOCK: u32 = 7;

impl Owner {
    fn read(bytes: &[u8]) -> Owner {
        let mut owner = Owner::default();
        for (number, raw) in protobuf::fields(bytes) {
            match number {
                OWNER_API_VERSION => owner.api_version = raw.str().to_string(),
                OWNER_KIND => owner.kind = raw.str().to_string(),
                OWNER_NAME => owner.name = raw.str().to_string(),
                OWNER_UID => owner.uid = raw.str().to_string(),
                OWNER_CONTROLLER => owner.controller = raw.bool(),
                OWNER_BLOCK => owner.block = raw.bool(),
                _ => {}
            }
        }
        owner
    }
}

impl Object {
    /// Encodes a tree: built-in kinds as protobuf, custom resources as JSON. `apiVersion`, `kind` and resourceVersion are
    /// not stored.
    pub fn from_value(resource: &'static Resource, value: &Value, revision: Revision) -> Object {
        let has_version = value.at(&["metadata", "resourceVersion"]).is_some();
        let bytes = match (resource.known_type(), has_version) {
            (Some(ty), false) => protobuf::encode(ty, value),
            (Some(ty), true) => {
                let mut value = value.clone();
                value.remove(&["metadata", "resourceVersion"]);
                protobuf::encode(ty, &value)
            }
            (None, _) => {
                let mut value = value.clone();
                value.remove(&["metadata", "resourceVersion"]);
                value.remove(&["apiVersion"]);
                value.remove(&["kind"]);
                json::to_vec(&value)
            }
        };
        Object { resource, bytes: bytes.into(), revision }
    }

    /// Custom resources are JSON; no message of ours begins with a brace.
    pub(super) fn is_json(&self) -> bool {
        self.bytes.first() == Some(&b'{')
    }

    /// The whole object with `apiVersion`, `kind` and resourceVersion. Stored bytes are ours, so they decode.
    pub fn value(&self) -> Value {
        let decoded = match self.resource.known_type() {
            Some(ty) if !self.is_json() => protobuf::decode(ty, &self.bytes),
            _ => json::parse(&self.bytes),
        };
        let mut value = decoded.unwrap_or_else(|e| panic!("stored {} does not decode: {e}", self.resource));
        value.set(&["apiVersion"], self.resource.api_version());
        value.set(&["kind"], self.resource.kind);
        if self.revision > 0 {
            value.set(&["metadata", "resourceVersion"], self.revision.to_string());
        }
        value
    }

    /// A typed view of the whole object.
    pub fn typed<T: serde::de::DeserializeOwned>(&self) -> Result<T, String> {
        types::from_value(&self.value()).map_err(|e| format!("{} {}: {e}", self.resource, self.key()))
    }

    /// A string of the stored bytes; `""` if it is absent or no string. Map keys count as path elements; lists are not entered.
    pub fn str_at(&self, path: &[&str]) -> &str {
        if self.is_json() {
            return json::raw_str(&self.bytes, path).unwrap_or("");
        }
        self.peek(path).map_or("", Peek::str)
    }

    /// A field of a built-in object's stored bytes.
    pub fn peek(&self, path: &[&str]) -> Option<Peek<'_>> {
        match path {
            // Where metadata is and what it is, is the same for every kind.
            ["metadata", rest @ ..] if !rest.is_empty() => protobuf::peek(schema::object_meta(), self.meta(), rest),
            path => protobuf::peek(self.resource.known_type()?, &self.bytes, path),
        }
    }

    /// A number of the stored bytes.
    pub fn i64_at(&self, path: &[&str]) -> Option<i64> {
        if self.is_json() {
            return std::str::from_utf8(json::raw_at(&self.bytes, path)?).ok()?.parse().ok();
        }
        match self.peek(path)? {
            Peek::Int(i) => Some(i),
            Peek::Str(_) | Peek::Bool(_) | Peek::Bytes(_) => None,
        }
    }

    /// A flag of the stored bytes; absent is false.
    pub fn bool_at(&self, path: &[&str]) -> bool {
        if self.is_json() {
            return json::raw_at(&self.bytes, path) == Some(b"true");
        }
        matches!(self.peek(path), Some(Peek::Bool(true)))
    }

    /// Some fields of the whole object, as a tree; those of custom resources may be more.
    pub fn decode_only(&self, only: protobuf::Only) -> Value {
        match self.resource.known_type() {
            Some(ty) if !self.is_json() => {
                let decoded = protobuf::decode_only(ty, &self.bytes, only);
                decoded.unwrap_or_else(|e| panic!("stored {} does not decode: {e}", self.resource))
            }
            _ => self.value(),
        }
    }

    pub fn metadata(&self) -> Meta<'_> {
        if self.is_json() {
            let (name, namespace, uid) = (self.name(), self.namespace(), self.uid());
            return Meta { name, namespace, uid, labels: self.labels(), owners: self.owners(), is_deleting: self.is_deleting() };
        }
        let mut meta = Meta::default();
        for (number, raw) in protobuf::fields(self.meta()) {
            match number {
                META_NAME => meta.name = raw.str(),
                META_NAMESPACE => meta.namespace = raw.str(),
                META_UID => meta.uid = raw.str(),
                META_DELETION => meta.is_deleting = !raw.bytes().is_empty(),
                META_LABELS => meta.labels.push(raw.entry()),
                META_OWNERS => meta.owners.push(Owner::read(raw.bytes())),
                _ => {}
            }
        }
        meta
    }

    fn meta(&self) -> &[u8] {
        protobuf::elements(&self.bytes, METADATA).next().unwrap_or(&[])
    }

    pub fn name(&self) -> &str {
        self.str_at(&["metadata", "name"])
    }

    pub fn namespace(&self) -> &str {
        self.str_at(&["metadata", "namespace"])
    }

    pub fn uid(&self) -> &str {
        self.str_at(&["metadata", "uid"])
    }

    pub fn key(&self) -> Name {
        Name::new(self.namespace(), self.name())
    }

    pub fn generation(&self) -> i64 {
        self.i64_at(&["metadata", "generation"]).unwrap_or(0)
    }

    pub fn labels(&self) -> Vec<(&str, &str)> {
        self.strings(META_LABELS, "labels")
    }

    pub fn annotations(&self) -> Vec<(&str, &str)> {
        self.strings(META_ANNOTATIONS, "annotations")
    }

    /// Members of a map of strings in metadata; of JSON, those without escapes.
    fn strings(&self, number: u32, name: &str) -> Vec<(&str, &str)> {
        if !self.is_json() {
            return protobuf::string_entries(self.meta(), number).collect();
        }
        let Some(raw) = json::raw_at(&self.bytes, &["metadata", name]) else { return Vec::new() };
        let members = json::raw_members(raw).filter_map(|(key, value)| match key {
            std::borrow::Cow::Borrowed(key) => Some((key, json::raw_str(value, &[])?)),
            std::borrow::Cow::Owned(_) => None,
        });
        members.collect()
    }

    pub fn is_deleting(&self) -> bool {
        if self.is_json() {
            return json::raw_str(&self.bytes, &["metadata", "deletionTimestamp"]).is_some();
        }
        matches!(self.peek(&["metadata", "deletionTimestamp"]), Some(Peek::Bytes(time)) if !time.is_empty())
    }

    pub fn finalizers(&self) -> Vec<&str> {
        if self.is_json() {
            let raw = json::raw_at(&self.bytes, &["metadata", "finalizers"]).unwrap_or(b"[]");
            return json::raw_elements(raw).filter_map(|item| json::raw_str(item, &[])).collect();
        }
        protobuf::elements(self.meta(), META_FINALIZERS).filter_map(|item| std::str::from_utf8(item).ok()).collect()
    }

    pub fn owners(&self) -> Vec<Owner> {
        let read = |v: Value| Owner {
            api_version: v.str_at(&["apiVersion"]).to_string(),
            kind: v.str_at(&["kind"]).to_string(),
            name: v.str_at(&["name"]).to_string(),
            uid: v.str_at(&["uid"]).to_string(),
            controller: v.bool_at(&["controller"]),
            block: v.bool_at(&["blockOwnerDeletion"]),
        };
        if self.is_json() {
            let raw = json::raw_at(&self.bytes, &["metadata", "ownerReferences"]).unwrap_or(b"[]");
            return json::raw_elements(raw).filter_map(|item| json::parse(item).ok()).map(read).collect();
        }
        protobuf::elements(self.meta(), META_OWNERS).map(Owner::read).collect()
    }

    /// The owner that controls this object, if one does.
    pub fn controller(&self) -> Option<Owner> {
        self.owners().into_iter().find(|o| o.controller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::resource;
    use crate::value;

    fn pod() -> Value {
        value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "9", "generation": 3,
            "labels": {"app": "x", "b": ""}, "annotations": {"k": "v"}, "finalizers": ["f/1", "f/2"], "deletionTimestamp": "2020-01-01T00:00:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "ru", "controller": true}]},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]}, "status": {"phase": "Running"}})
    }

    fn check(object: &Object) {
        assert_eq!((object.name(), object.namespace(), object.uid(), object.generation()), ("a", "n", "u", 3));
        assert_eq!(object.labels(), [("app", "x"), ("b", "")]);
        assert_eq!(object.annotations(), [("k", "v")]);
        assert_eq!(object.finalizers(), ["f/1", "f/2"]);
        assert!(object.is_deleting());
        let owner = object.controller().unwrap();
        assert_eq!((owner.kind.as_str(), owner.name.as_str(), owner.block), ("ReplicaSet", "r", false));
        assert_eq!((owner.api_version.as_str(), owner.uid.as_str()), ("apps/v1", "ru"));
        let (labels, owners) = (object.labels(), object.owners());
        assert_eq!(object.metadata(), Meta { name: "a", namespace: "n", uid: "u", labels, owners, is_deleting: true });
        assert_eq!(object.value().str_at(&["metadata", "resourceVersion"]), "7");
        assert_eq!(object.str_at(&["metadata", "labels", "app"]), "x");
        assert_eq!(object.str_at(&["spec", "nodeName"]), "n1");
        assert_eq!(object.str_at(&["status", "phase"]), "Running");
        assert_eq!(object.str_at(&["spec", "nothing"]), "");
    }

    #[test]
    fn peeks_agree_for_stored_protobuf_and_json() {
        check(&Object::from_value(&resource::PODS, &pod(), 7));
        static CUSTOM: Resource = Resource {
            group: "example.com",
            version: "v1",
            storage_version: "v1",
            storage_group: "example.com",
            plural: "pods",
            singular: "pod",
            kind: "Pod",
            namespaced: true,
            short_names: &[],
            categories: &[],
            verbs: &[],
            subresources: &[],
        };
        check(&Object::from_value(&CUSTOM, &pod(), 7));
    }

    #[test]
    fn a_live_object_is_not_deleting() {
        let mut live = pod();
        live.remove(&["metadata", "deletionTimestamp"]);
        assert!(!Object::from_value(&resource::PODS, &live, 1).is_deleting());
    }
}
