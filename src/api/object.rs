//! `Object`: an API object kept encoded, shared by everyone in the process.
//!
//! Built-in kinds are stored as the bare protobuf message of their storage version (no `k8s\0` envelope, no
//! resourceVersion inside: the revision stands beside the bytes and is spliced in when encoding). Decoding happens where
//! it is needed, with [`Object::value`] or [`Object::typed`], and the result is not kept.
//! *Invariant: no long-lived decoded copy of an object.*

use std::fmt;

use bytes::Bytes;

use super::resource::Resource;

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

// STANDIN
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Owner {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub controller: bool,
    pub block: bool,
}
use super::value::Value;
impl Object {
    pub fn from_value(resource: &'static Resource, value: &Value, revision: Revision) -> Object {
        let mut v = value.clone();
        v.remove(&["metadata", "resourceVersion"]);
        Object { resource, bytes: Bytes::from(v.to_string()), revision }
    }
    pub fn value(&self) -> Value {
        let v: serde_json::Value = serde_json::from_slice(&self.bytes).unwrap();
        let mut v = Value::from(v);
        v.set(&["apiVersion"], self.resource.api_version());
        v.set(&["kind"], self.resource.kind);
        v.set(&["metadata", "resourceVersion"], self.revision.to_string());
        v
    }
    pub fn name(&self) -> &str {
        self.leak(&["metadata", "name"])
    }
    pub fn namespace(&self) -> &str {
        self.leak(&["metadata", "namespace"])
    }
    pub fn uid(&self) -> &str {
        self.leak(&["metadata", "uid"])
    }
    fn leak(&self, p: &[&str]) -> &str {
        let v = self.value();
        Box::leak(v.str_at(p).to_string().into_boxed_str())
    }
    pub fn key(&self) -> Name {
        Name::new(self.namespace(), self.name())
    }
    pub fn labels(&self) -> Vec<(&str, &str)> {
        let v: &'static Value = Box::leak(Box::new(self.value()));
        v.map_at(&["metadata", "labels"]).into_iter().flat_map(|m| m.iter()).map(|(k, v)| (k, v.as_str().unwrap_or(""))).collect()
    }
    pub fn is_deleting(&self) -> bool {
        !self.value().str_at(&["metadata", "deletionTimestamp"]).is_empty()
    }
    pub fn owners(&self) -> Vec<Owner> {
        let v = self.value();
        v.list_at(&["metadata", "ownerReferences"]).iter().map(|o| Owner {
            api_version: o.str_at(&["apiVersion"]).into(),
            kind: o.str_at(&["kind"]).into(),
            name: o.str_at(&["name"]).into(),
            uid: o.str_at(&["uid"]).into(),
            controller: o.bool_at(&["controller"]),
            block: o.bool_at(&["blockOwnerDeletion"]),
        }).collect()
    }
}
