//! Pure: every namespace has a ServiceAccount `default`.

use crate::api::controller::{Action, Controller, Key, Touched, Turn, World};
use crate::api::resource::{NAMESPACES, Resource, SERVICEACCOUNTS};
use crate::api::world::Row;

pub struct ServiceAccounts;

impl Controller for ServiceAccounts {
    fn name(&self) -> &'static str {
        "service-account-controller"
    }

    fn resources(&self) -> Vec<&'static Resource> {
        vec![&NAMESPACES, &SERVICEACCOUNTS]
    }

    fn touched(&self, change: &Touched, _: &World) -> Vec<Key> {
        namespace_of(change, &SERVICEACCOUNTS, "default")
    }

    fn reconcile(&self, key: &Key, world: &World, _: &Turn) -> Vec<Action> {
        let namespace = key.name.name.as_str();
        let Some(row) = world.get(key) else { return Vec::new() };
        if row.deleting || world.find(&SERVICEACCOUNTS, namespace, "default").is_some() {
            return Vec::new();
        }
        let object = crate::value!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": namespace}});
        vec![Action::Create { resource: &SERVICEACCOUNTS, object, then: None }]
    }
}

/// The namespace to look at after a change of a namespace, or of the object `name` every namespace should have.
pub fn namespace_of(change: &Touched, resource: &Resource, name: &str) -> Vec<Key> {
    let row: &Row = change.row();
    if *change.resource == NAMESPACES {
        return if change.new.is_some() { vec![change.key()] } else { Vec::new() };
    }
    if change.resource == resource && row.name.name == name {
        return vec![Key::new(&NAMESPACES, "", row.name.namespace.as_str())];
    }
    Vec::new()
}
