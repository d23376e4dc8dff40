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
