//! Resource and Strategy, paired: which rows are served, which behaviour stands behind each, and reads of what is stored.
//!
//! Every row of `api::resource::ALL` is served; those no kind implements get [`SchemaOnly`]. All served versions of a
//! group-resource share one strategy, that of the storage row. [`Reader`] is the [`Access`] hooks get.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::api::object::Object;
use crate::api::protobuf::Peek;
use crate::api::resource::{self, Resource};
use crate::api::schema::TypeRef;
use crate::api::status::Result;
use crate::api::{protobuf, value::Value};
use crate::store::{Entry, Range, Store};

use super::apply::Ownable;
use super::strategy::{Access, SchemaOnly, Selectable, Strategy};

/// One served version of one resource.
pub struct Row {
    pub resource: &'static Resource,
    pub storage: &'static Resource,
    pub strategy: Arc<dyn Strategy>,
}

impl Row {
    /// The schema of the served version.
    pub fn type_ref(&self) -> TypeRef {
        self.resource.type_ref()
    }

    /// Whether the served version is the stored one, so that stored bytes can be answered as they are.
    pub fn is_storage(&self) -> bool {
        std::ptr::eq(self.resource, self.storage)
    }

    /// What writes through the object or a subresource can own: what they can set.
    pub fn ownable(&self, subresource: &str) -> Ownable {
        let has_status = self.resource.subresource("status").is_some();
        match (self.storage.plural, subresource) {
            ("certificatesigningrequests", "") => Ownable::Except(&[&["spec"], &["status"]]),
            ("certificatesigningrequests", "status") => Ownable::Except(&[&["spec"], &["status", "conditions"]]),
            ("certificatesigningrequests", "approval") => Ownable::Except(&[&["spec"], &["status", "certificate"]]),
            ("deployments", "status") => Ownable::Except(&[&["spec"], &["metadata", "labels"]]),
            ("pods", "status") => Ownable::Except(&[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]),
            ("pods", "ephemeralcontainers") => Ownable::Only(&[&["spec", "ephemeralContainers"]]),
            ("pods", "resize") => Ownable::Only(&[
                &["spec", "containers", "*", "resources"],
                &["spec", "containers", "*", "resizePolicy"],
                &["spec", "initContainers", "*", "resources"],
                &["spec", "initContainers", "*", "resizePolicy"],
            ]),
            ("namespaces", "finalize") => Ownable::Except(&[&["status"]]),
            (
                "apiservices"
                | "customresourcedefinitions"
                | "flowschemas"
                | "prioritylevelconfigurations"
                | "resourceclaims"
                | "servicecidrs"
                | "validatingadmissionpolicies"
                | "volumeattachments",
                "status",
            ) => Ownable::Except(&[&["metadata"], &["spec"]]),
            (_, "") if has_status => Ownable::Except(&[&["status"]]),
            (_, "status") => Ownable::Except(&[&["spec"]]),
            _ => Ownable::Except(&[]),
        }
    }

    /// A stored object as a tree of the served version.
    pub fn serve(&self, object: &Object) -> Value {
        let mut value = object.value();
        self.to_served(&mut value);
        value
    }

    /// From the served version to the storage one.
    pub fn to_stored(&self, value: &mut Value) -> Result<()> {
        self.strategy.to_storage(self.resource, value)?;
        value.set(&["apiVersion"], self.storage.api_version());
        value.set(&["kind"], self.storage.kind);
        Ok(())
    }

    /// From the storage version to the served one.
    pub fn to_served(&self, value: &mut Value) {
        if !self.is_storage() {
            self.strategy.from_storage(self.resource, value);
            value.set(&["apiVersion"], self.resource.api_version());
            value.set(&["kind"], self.resource.kind);
        }
    }
}

/// All served rows, by plural. Immutable once made; custom resources will replace it whole.
pub struct Registry {
    rows: HashMap<&'static str, Vec<Row>>,
}

impl Registry {
    pub fn new(strategies: Vec<Box<dyn Strategy>>) -> Registry {
        let mut by_storage: HashMap<(&'static str, &'static str), Arc<dyn Strategy>> = HashMap::new();
        for strategy in strategies {
            let row = strategy.resource();
            by_storage.insert((row.storage_group, row.plural), Arc::from(strategy));
        }
        let mut rows: HashMap<&'static str, Vec<Row>> = HashMap::new();
        for resource in resource::ALL.iter().copied() {
            let storage = resource.storage();
            let strategy = by_storage.entry((resource.storage_group, resource.plural)).or_insert_with(|| Arc::new(SchemaOnly(storage)));
            rows.entry(resource.plural).or_default().push(Row { resource, storage, strategy: strategy.clone() });
        }
        Registry { rows }
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Row> {
        self.rows.get(plural)?.iter().find(|r| r.resource.group == group && r.resource.version == version)
    }

    /// The row of a served resource.
    pub fn row(&self, resource: &Resource) -> &Row {
        self.find(resource.group, resource.version, resource.plural).expect("every resource has a row")
    }

    pub fn has_group(&self, group: &str) -> bool {
        self.rows().any(|r| r.resource.group == group)
    }

    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values().flatten()
    }
}

/// The text of a scalar field in stored bytes; of lists of scalars or anything else, the text for absent.
pub fn field_text(object: &Object, field: &Selectable) -> String {
    match protobuf::peek(object.resource.type_ref(), &object.bytes, field.path) {
        Some(Peek::Str(s)) if !s.is_empty() => s.to_string(),
        Some(Peek::Int(i)) => i.to_string(),
        Some(Peek::Bool(b)) => b.to_string(),
        Some(Peek::Str(_) | Peek::Bytes(_)) | None => field.absent.to_string(),
    }
}

/// Reads of the store's applied state as objects.
#[derive(Clone)]
pub struct Reader {
    pub store: Store,
}

impl Reader {
    pub fn object(storage: &'static Resource, entry: &Entry) -> Object {
        Object { resource: storage, bytes: entry.value.clone(), revision: entry.mod_revision }
    }

    pub fn prefix(storage: &'static Resource, namespace: &str) -> Vec<u8> {
        let mut prefix = storage.prefix();
        if !namespace.is_empty() {
            prefix.extend_from_slice(namespace.as_bytes());
            prefix.push(0);
        }
        prefix
    }
}

impl Access for Reader {
    fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Option<Object> {
        let storage = resource.storage();
        self.store.get(&storage.key(namespace, name)).map(|e| Reader::object(storage, &e))
    }

    fn list(&self, resource: &'static Resource, namespace: &str) -> Vec<Object> {
        let storage = resource.storage();
        let range = Range { prefix: Bytes::from(Reader::prefix(storage, namespace)), after: None, at: None, limit: 0 };
        let page = self.store.range(range).map(|p| p.entries).unwrap_or_default();
        page.iter().map(|e| Reader::object(storage, e)).collect()
    }

    fn revision(&self) -> u64 {
        self.store.revision()
    }

    fn count(&self, resource: &'static Resource) -> usize {
        self.store.count(&resource.storage().prefix())
    }
}
