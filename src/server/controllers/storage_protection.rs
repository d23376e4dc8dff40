//! Pure: claims, volumes and volume attributes that are being deleted go once nobody uses them.
//!
//! Admission gave each a finalizer at birth (`admission::storage_protection`); this takes it off. The three kinds differ only in
//! what counts as use: a scheduled pod that names the claim, a claim bound to the volume, a claim or volume of the class.

use crate::api::controller::{Action, Controller, Key, Touched, Turn, World};
use crate::api::resource::{PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES, PODS, Resource, VOLUMEATTRIBUTESCLASSES};
use crate::api::value::Value;
use crate::api::world::Row;

pub struct StorageProtection {
    name: &'static str,
    resource: &'static Resource,
    /// Kinds that may use it.
    users: &'static [&'static Resource],
    finalizer: &'static str,
    is_used: fn(&World, &Row) -> bool,
}

pub const CLAIMS: StorageProtection = StorageProtection {
    name: "pvc-protection-controller",
    resource: &PERSISTENTVOLUMECLAIMS,
    users: &[&PODS],
    finalizer: "kubernetes.io/pvc-protection",
    is_used: |world, claim| world.within(&PODS, &claim.name.namespace).any(|pod| uses_claim(pod, &claim.name.name)),
};

pub const VOLUMES: StorageProtection = StorageProtection {
    name: "pv-protection-controller",
    resource: &PERSISTENTVOLUMES,
    users: &[],
    finalizer: "kubernetes.io/pv-protection",
    is_used: |_, volume| volume.value().str_at(&["status", "phase"]) == "Bound",
};

pub const ATTRIBUTES: StorageProtection = StorageProtection {
    name: "volumeattributesclass-protection-controller",
    resource: &VOLUMEATTRIBUTESCLASSES,
    users: &[&PERSISTENTVOLUMECLAIMS, &PERSISTENTVOLUMES],
    finalizer: "kubernetes.io/vac-protection",
    is_used: |world, class| ATTRIBUTES.users.iter().flat_map(|kind| world.all(kind)).any(|user| is_of_class(user, &class.name.name)),
};

/// Until the users are known.
const BLIND_MS: i64 = 1000;

impl Controller for StorageProtection {
    fn name(&self) -> &'static str {
        self.name
    }

    fn resources(&self) -> Vec<&'static Resource> {
        [&[self.resource], self.users].concat()
    }

    fn touched(&self, change: &Touched, world: &World) -> Vec<Key> {
        if change.resource == self.resource {
            return vec![change.key()];
        }
        // A pod uses its claims as long as it is there; the others may change their minds.
        if *change.resource == PODS && change.new.is_some() {
            return Vec::new();
        }
        world.all(self.resource).filter(|row| row.deleting).map(|row| row.key()).collect()
    }

    fn reconcile(&self, key: &Key, world: &World, _: &Turn) -> Vec<Action> {
        let Some(row) = world.get(key).filter(|row| row.deleting && row.object.finalizers().contains(&self.finalizer)) else {
            return Vec::new();
        };
        if !self.users.iter().all(|kind| world.is_synced(kind)) {
            return vec![Action::RequeueAfter { ms: BLIND_MS }];
        }
        if (self.is_used)(world, row) {
            return Vec::new();
        }
        let mut object = row.value();
        let left = row.object.finalizers().into_iter().filter(|f| *f != self.finalizer).map(Value::from);
        object.set(&["metadata", "finalizers"], left.collect::<Vec<_>>());
        vec![Action::Update { resource: self.resource, subresource: "", object, then: None }]
    }
}

/// A pod that is not scheduled will not be started with a claim that is going.
fn uses_claim(pod: &Row, claim: &str) -> bool {
    if pod.pod().node.is_empty() {
        return false;
    }
    let names = |volume: &Value| match volume.get("ephemeral") {
        Some(_) => format!("{}-{}", pod.name.name, volume.str_at(&["name"])) == claim,
        None => volume.str_at(&["persistentVolumeClaim", "claimName"]) == claim,
    };
    pod.value().list_at(&["spec", "volumes"]).iter().any(names)
}

fn is_of_class(user: &Row, class: &str) -> bool {
    const NAMED: [&[&str]; 3] = [
        &["spec", "volumeAttributesClassName"],
        &["status", "currentVolumeAttributesClassName"],
        &["status", "modifyVolumeStatus", "targetVolumeAttributesClassName"],
    ];
    let value = user.value();
    NAMED.iter().any(|path| value.str_at(path) == class)
}
