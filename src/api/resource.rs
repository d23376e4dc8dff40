//! What a resource is: group, version, kind, verbs, subresources: const data shared by server and clients.
//!
//! The rows come from `facts/resources.tsv` through `build.rs` ([`ALL`] and one constant each, such as [`PODS`]); a custom
//! resource is a leaked row made while running. Knows no behaviour: that is the server's `Strategy`.

use std::fmt;

use super::schema::{self, TypeRef};

/// One served version of one resource.
#[derive(Debug)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// The version of this row, such as `v1`.
    pub version: &'static str,
    /// The version objects of this group-resource are stored in.
    pub storage_version: &'static str,
    /// Group under which the object is stored; differs from `group` only for `events` (stored as core) and the like.
    pub storage_group: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    /// Verbs as discovery lists them, sorted.
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
}

/// A row below a resource, as discovery lists it.
#[derive(Debug)]
pub struct Subresource {
    /// `status`, `scale`, `log`, …
    pub name: &'static str,
    /// Group, version and kind of what it speaks: `autoscaling/v1 Scale` for `scale`.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
}

impl Resource {
    /// `v1` or `apps/v1`, as in an object's `apiVersion`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// `pods` or `deployments.apps`, as error messages and RBAC texts name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_string() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Pod` or `Deployment.apps`, as validation messages name it.
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_string() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// The type of its objects; `None` for a custom resource.
    pub fn known_type(&self) -> Option<TypeRef> {
        schema::type_of_gvk(self.group, self.version, self.kind)
    }

    /// The type of its objects, which are built in.
    pub fn type_ref(&self) -> TypeRef {
        self.known_type().expect("every served built-in kind is in the table")
    }

    /// The row objects of this group-resource are stored under; itself for most.
    pub fn storage(&self) -> &'static Resource {
        let stored = find(self.storage_group, self.storage_version, self.plural);
        let hidden = || HIDDEN.iter().copied().find(|r| *r == self);
        stored.or_else(hidden).expect("every storage version is served or registered")
    }

    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// The prefix of every key of this resource in the store: `group \0 resource \0`.
    pub fn prefix(&self) -> Vec<u8> {
        [self.storage_group.as_bytes(), b"\0", self.plural.as_bytes(), b"\0"].concat()
    }

    /// Store key: `group \0 resource \0 namespace \0 name`; the namespace of a cluster-scoped object is empty.
    pub fn key(&self, namespace: &str, name: &str) -> Vec<u8> {
        [self.storage_group.as_bytes(), b"\0", self.plural.as_bytes(), b"\0", namespace.as_bytes(), b"\0", name.as_bytes()].concat()
    }
}

/// Namespace and name of a store key made by [`Resource::key`].
pub fn split_key(key: &[u8]) -> Option<(&str, &str)> {
    let mut parts = key.split(|b| *b == 0).skip(2);
    let namespace = std::str::from_utf8(parts.next()?).ok()?;
    let name = std::str::from_utf8(parts.next()?).ok()?;
    Some((namespace, name))
}

pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_string() } else { format!("{group}/{version}") }
}

include!(concat!(env!("OUT_DIR"), "/resources.rs"));

/// Stored and not served: the serialization point of node port allocations.
pub static RANGEALLOCATIONS: Resource = Resource {
    group: "",
    version: "v1",
    storage_version: "v1",
    storage_group: "",
    plural: "rangeallocations",
    singular: "rangeallocation",
    kind: "RangeAllocation",
    namespaced: false,
    short_names: &[],
    categories: &[],
    verbs: &[],
    subresources: &[],
};

/// Resources that are stored and not served: discovery and routing do not know them.
static HIDDEN: &[&Resource] = &[&RANGEALLOCATIONS];

/// The built-in row of a group, version and plural.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    ALL.iter().copied().find(|r| r.plural == plural && r.group == group && r.version == version)
}

/// The built-in row of an object's `apiVersion` and `kind`.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Resource> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ALL.iter().copied().find(|r| r.kind == kind && r.group == group && r.version == version)
}

/// Resources are the same where group, version and plural are; rows are statics, so identity would do, too.
impl PartialEq for Resource {
    fn eq(&self, other: &Resource) -> bool {
        (self.group, self.version, self.plural) == (other.group, other.version, other.plural)
    }
}
impl Eq for Resource {}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.qualified())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_unique_and_their_storage_rows_exist() {
        for r in ALL {
            assert!(std::ptr::eq(find(r.group, r.version, r.plural).unwrap(), *r), "{r}");
            assert!(std::ptr::eq(by_kind(&r.api_version(), r.kind).unwrap(), *r), "{r}");
            assert_eq!(r.storage().storage().kind, r.kind);
        }
    }

    #[test]
    fn events_are_stored_as_core_and_autoscalers_as_v2() {
        assert_eq!(EVENTS.group, "");
        assert!(std::ptr::eq(EVENTS_K8S_IO_EVENTS.storage(), &EVENTS));
        assert!(std::ptr::eq(AUTOSCALING_V1_HORIZONTALPODAUTOSCALERS.storage(), &HORIZONTALPODAUTOSCALERS));
        assert_eq!(PODS.subresource("eviction").unwrap().group, "policy");
        assert_eq!(DEPLOYMENTS.subresource("scale").unwrap().kind, "Scale");
    }
}
