//! Pure: deletes what only absent owners own, and carries out foreground deletion and orphaning.
//!
//! The world is the graph: every object with its owner references, indexed by owner uid. An owner that our cache does not
//! show is asked for at the API before a dependent is deleted ([`Action::Absent`]), and the deletion is good for the very
//! revision that was judged: the cache alone never decides that something is to go.

use std::sync::Arc;

use super::meta::{disown, patch_of};
use crate::api::controller::{Action, Controller, DeletePolicy, Key, Touched, Turn, World};
use crate::api::driver::collectable;
use crate::api::object::Owner;
use crate::api::resource::{self, Resource};
use crate::api::value::Value;
use crate::api::world::Row;

pub struct GarbageCollector {
    resources: Vec<&'static Resource>,
}

impl Default for GarbageCollector {
    fn default() -> GarbageCollector {
        let mut resources = collectable();
        resources.retain(|r| r.plural != "events");
        GarbageCollector { resources }
    }
}

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

impl Controller for GarbageCollector {
    fn name(&self) -> &'static str {
        "generic-garbage-collector"
    }

    fn resources(&self) -> Vec<&'static Resource> {
        self.resources.clone()
    }

    /// One kind that does not come in sync holds up only what depends on it: see [`is_blind`].
    fn needs(&self) -> Vec<&'static Resource> {
        Vec::new()
    }

    fn touched(&self, change: &Touched, world: &World) -> Vec<Key> {
        let mut keys = Vec::new();
        match &change.new {
            Some(row) => {
                if row.deleting || row.owners.iter().any(|owner| world.by_uid(&owner.uid).is_none_or(|o| o.deleting)) {
                    keys.push(row.key());
                }
                // Dependents of an object that began to be deleted in the foreground go now.
                if row.deleting && change.old.as_ref().is_none_or(|old| !old.deleting) {
                    keys.extend(world.owned(&row.uid).cloned());
                }
            }
            None => {
                let old = change.row();
                keys.extend(world.owned(&old.uid).cloned());
            }
        }
        // Owners that wait for this object to go, or to name them no more.
        let owners = change.old.iter().flat_map(|old| &old.owners);
        let waiting = owners.filter_map(|owner| world.by_uid(&owner.uid)).filter(|owner| owner.deleting);
        keys.extend(waiting.map(|owner| owner.key()));
        keys
    }

    fn reconcile(&self, key: &Key, world: &World, _: &Turn) -> Vec<Action> {
        let Some(row) = world.get(key) else { return Vec::new() };
        if is_blind(world, row) {
            return vec![Action::RequeueAfter { ms: BLIND_MS }];
        }
        if row.deleting {
            return finish(world, row);
        }
        judge(world, row)
    }

    fn jobs_max(&self) -> usize {
        20
    }
}

/// How long until something is looked at again whose surroundings are not known yet.
const BLIND_MS: i64 = 1000;

/// The world does not show yet what is to be known for a decision: dependents may be of any kind, owners are of theirs.
fn is_blind(world: &World, row: &Row) -> bool {
    if row.deleting {
        let waits = has_finalizer(row, ORPHAN) || has_finalizer(row, FOREGROUND);
        return waits && !world.resources().all(|r| world.is_synced(r));
    }
    let kinds = row.owners.iter().filter_map(|o| resource::by_kind(&o.api_version, &o.kind)).map(Resource::storage);
    kinds.into_iter().any(|r| world.follows(r) && !world.is_synced(r))
}

fn has_finalizer(row: &Row, name: &str) -> bool {
    row.deleting && row.object.finalizers().contains(&name)
}

/// An object being deleted: orphan its dependents, or wait for them, as its finalizers ask.
fn finish(world: &World, row: &Row) -> Vec<Action> {
    if has_finalizer(row, ORPHAN) {
        let dependents: Vec<&Arc<Row>> = world.owned(&row.uid).filter_map(|key| world.get(key)).collect();
        if dependents.is_empty() {
            return vec![drop_finalizer(row, ORPHAN)];
        }
        let patch = |dependent: &Arc<Row>| Action::Patch { key: dependent.key(), subresource: "", patch: disown(dependent, &[&row.uid]) };
        return dependents.into_iter().map(patch).collect();
    }
    if has_finalizer(row, FOREGROUND) {
        let blocks = |key: &&Key| world.get(key).is_some_and(|d| d.owners.iter().any(|o| o.uid == row.uid && o.block));
        if !world.owned(&row.uid).any(|key| blocks(&key)) {
            return vec![drop_finalizer(row, FOREGROUND)];
        }
    }
    Vec::new()
}

fn drop_finalizer(row: &Row, name: &str) -> Action {
    let left: Vec<Value> = row.object.finalizers().into_iter().filter(|f| *f != name).map(Value::from).collect();
    let mut patch = patch_of(row);
    patch.set(&["metadata", "finalizers"], if left.is_empty() { Value::Null } else { Value::List(left) });
    Action::Patch { key: row.key(), subresource: "", patch }
}

enum Standing {
    /// It is there.
    Solid,
    /// It is being deleted in the foreground and waits for its dependents.
    Waiting,
    /// Our cache does not show it.
    Dangling(Key),
    /// We do not follow its kind: not ours to judge.
    Unknown,
}

fn standing(world: &World, row: &Row, owner: &Owner) -> Standing {
    let Some(resource) = resource::by_kind(&owner.api_version, &owner.kind).map(Resource::storage) else { return Standing::Unknown };
    let namespace = if resource.namespaced { row.name.namespace.as_str() } else { "" };
    let key = Key::new(resource, namespace, owner.name.as_str());
    if !world.follows(resource) {
        return Standing::Unknown;
    }
    match world.get(&key).filter(|there| there.uid == owner.uid) {
        Some(there) if has_finalizer(there, FOREGROUND) => Standing::Waiting,
        Some(_) => Standing::Solid,
        None => Standing::Dangling(key),
    }
}

/// A living object with owners: it goes if none of them stays.
fn judge(world: &World, row: &Row) -> Vec<Action> {
    let standings: Vec<(&Owner, Standing)> = row.owners.iter().map(|owner| (owner, standing(world, row, owner))).collect();
    let dangling = standings.iter().filter_map(|(owner, s)| match s {
        Standing::Dangling(key) => Some(Action::Absent { owner: key.clone(), uid: owner.uid.clone() }),
        Standing::Solid | Standing::Waiting | Standing::Unknown => None,
    });
    let mut actions: Vec<Action> = dangling.collect();
    let waiting = standings.iter().filter(|(_, s)| matches!(s, Standing::Waiting)).count();
    if actions.is_empty() && waiting == 0 {
        return actions;
    }
    let stays = standings.iter().any(|(_, s)| matches!(s, Standing::Solid | Standing::Unknown));
    if stays {
        let gone: Vec<&str> = standings
            .iter()
            .filter(|(_, s)| matches!(s, Standing::Dangling(_) | Standing::Waiting))
            .map(|(owner, _)| owner.uid.as_str())
            .collect();
        actions.push(Action::Patch { key: row.key(), subresource: "", patch: disown(row, &gone) });
        return actions;
    }
    if waiting > 0 && closes_circle(world, row) {
        actions.push(Action::Patch { key: row.key(), subresource: "", patch: unblock(row) });
        return actions;
    }
    let policy = if waiting > 0 && world.owned(&row.uid).next().is_some() { DeletePolicy::Foreground } else { policy(row) };
    actions.push(Action::Delete { key: row.key(), uid: row.uid.clone(), revision: Some(row.object.revision), policy, then: None });
    actions
}

/// Its owners wait for it while a dependent of its own waits for dependents: were it to hold up its owners, all of them might
/// wait for each other for ever.
fn closes_circle(world: &World, row: &Row) -> bool {
    let mut dependents = world.owned(&row.uid).filter_map(|key| world.get(key));
    row.owners.iter().any(|owner| owner.block) && dependents.any(|dependent| has_finalizer(dependent, FOREGROUND))
}

/// The patch after which no owner waits for the object.
fn unblock(row: &Row) -> Value {
    let mut owners = row.value().list_at(&["metadata", "ownerReferences"]).to_vec();
    for owner in &mut owners {
        owner.set(&["blockOwnerDeletion"], false);
    }
    let mut patch = patch_of(row);
    patch.set(&["metadata", "ownerReferences"], owners);
    patch
}

/// As the object's own finalizers ask.
fn policy(row: &Row) -> DeletePolicy {
    let finalizers = row.object.finalizers();
    let has = |name: &str| finalizers.contains(&name);
    match (has(ORPHAN), has(FOREGROUND)) {
        (true, _) => DeletePolicy::Orphan,
        (false, true) => DeletePolicy::Foreground,
        (false, false) => DeletePolicy::Background,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::object::Object;
    use crate::api::world::Change;
    use crate::value;

    fn pod(uid: &str, metadata: Value) -> Object {
        let mut pod = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": uid, "namespace": "n", "uid": uid,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true, "blockOwnerDeletion": true}]}});
        for (field, value) in metadata.as_map().expect("fields").iter() {
            pod.set(&["metadata", field], value.clone());
        }
        Object::from_value(&resource::PODS, &pod, 5)
    }

    /// A world with these pods in which `synced` are in sync.
    fn world(pods: &[Object], synced: &[&'static Resource]) -> World {
        let mut world = World::new(&[&resource::PODS, &resource::REPLICASETS, &resource::SECRETS]);
        for pod in pods {
            world.apply(&resource::PODS, Change::Set(pod.clone()));
        }
        for resource in synced {
            world.apply(resource, Change::Synced(5));
        }
        world
    }

    fn decide(world: &World, name: &str) -> Vec<Action> {
        GarbageCollector::default().reconcile(&Key::new(&resource::PODS, "n", name), world, &Turn::default())
    }

    #[test]
    fn an_owner_counts_as_absent_only_once_its_kind_is_known() {
        let orphan = pod("a", value!({}));
        let blind = decide(&world(std::slice::from_ref(&orphan), &[&resource::PODS]), "a");
        assert_eq!(blind, [Action::RequeueAfter { ms: BLIND_MS }]);
        // Secrets are not in sync, and that is no matter.
        let seeing = decide(&world(&[orphan], &[&resource::PODS, &resource::REPLICASETS]), "a");
        assert!(matches!(&seeing[..], [Action::Absent { .. }, Action::Delete { revision: Some(5), .. }]), "{seeing:?}");
    }

    #[test]
    fn dependents_may_be_of_any_kind() {
        let deleting = value!({"deletionTimestamp": "2020-01-01T00:00:00Z", "finalizers": ["foregroundDeletion"]});
        let going = pod("a", deleting);
        let most = [&resource::PODS, &resource::REPLICASETS];
        assert_eq!(decide(&world(std::slice::from_ref(&going), &most), "a"), [Action::RequeueAfter { ms: BLIND_MS }]);
        let all = decide(&world(&[going], &[&resource::PODS, &resource::REPLICASETS, &resource::SECRETS]), "a");
        assert!(matches!(&all[..], [Action::Patch { .. }]), "{all:?}");
    }
}
