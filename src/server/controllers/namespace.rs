//! Pure: empties a namespace that is being deleted, pods first, then lets it go.
//!
//! What is left is deleted kind by kind through delete-collection ([`Action::Empty`] asks the API, not our cache); the
//! `kubernetes` finalizer goes only when nothing answered. While something is left the conditions say what.

use std::collections::BTreeMap;

use super::meta::rfc3339;
use crate::api::conditions::{self, Condition};
use crate::api::controller::{Action, Controller, Key, Touched, Turn, World};
use crate::api::driver::{collectable, deletable_in_namespaces};
use crate::api::resource::{NAMESPACES, PODS, Resource};
use crate::api::value::Value;
use crate::api::world::Row;

pub struct Namespaces;

impl Controller for Namespaces {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn resources(&self) -> Vec<&'static Resource> {
        let mut all = collectable();
        all.retain(|r| **r == NAMESPACES || r.namespaced && r.plural != "events");
        all
    }

    /// What is in a namespace is asked at the API; the cache only says what to wait for, and pods take longest to go.
    fn needs(&self) -> Vec<&'static Resource> {
        vec![&NAMESPACES, &PODS]
    }

    fn touched(&self, change: &Touched, world: &World) -> Vec<Key> {
        if *change.resource == NAMESPACES {
            return vec![change.key()];
        }
        // Something left a namespace that waits for it.
        let key = Key::new(&NAMESPACES, "", change.row().name.namespace.as_str());
        let waits = change.new.is_none() && world.get(&key).is_some_and(|row| row.deleting);
        if waits { vec![key] } else { Vec::new() }
    }

    fn reconcile(&self, key: &Key, world: &World, turn: &Turn) -> Vec<Action> {
        let Some(row) = world.get(key) else { return Vec::new() };
        if !row.deleting {
            return Vec::new();
        }
        let namespace = row.value();
        if namespace.list_at(&["spec", "finalizers"]).is_empty() {
            return Vec::new();
        }
        let left = remaining(world, &row.name.name);
        let mut actions: Vec<Action> = conditions_update(row, &namespace, &left, turn).into_iter().collect();
        let name = row.name.name.clone();
        actions.push(Action::Empty { namespace: name.clone(), resources: vec![&PODS] });
        if left.contains_key("pods") && actions.len() == 1 && left["pods"].deleting == left["pods"].count {
            // All pods are on their way out; their leaving will tell.
            return vec![Action::RequeueAfter { ms: 5_000 }];
        }
        actions.push(Action::Empty { namespace: name, resources: deletable_in_namespaces() });
        if actions.len() == 2 {
            actions.push(finalize(namespace));
        }
        actions
    }

    fn jobs_max(&self) -> usize {
        10
    }
}

fn finalize(mut namespace: Value) -> Action {
    let finalizers = namespace.list_at(&["spec", "finalizers"]).iter();
    let others: Vec<Value> = finalizers.filter(|f| f.as_str() != Some("kubernetes")).cloned().collect();
    namespace.set(&["spec", "finalizers"], others);
    Action::Update { resource: &NAMESPACES, subresource: "finalize", object: namespace, then: None }
}

#[derive(Default)]
struct Left {
    count: usize,
    deleting: usize,
    finalizers: BTreeMap<String, usize>,
}

/// What our cache still shows in the namespace, by resource.
fn remaining(world: &World, namespace: &str) -> BTreeMap<String, Left> {
    let mut left: BTreeMap<String, Left> = BTreeMap::new();
    for resource in world.resources().filter(|r| r.namespaced) {
        for row in world.within(resource, namespace) {
            let entry = left.entry(resource.qualified()).or_default();
            entry.count += 1;
            if row.deleting {
                entry.deleting += 1;
                for finalizer in row.value().list_at(&["metadata", "finalizers"]).iter().filter_map(Value::as_str) {
                    *entry.finalizers.entry(finalizer.to_string()).or_insert(0) += 1;
                }
            }
        }
    }
    left
}

/// Says what is left, once something stays: objects that wait for their finalizers or their grace.
fn conditions_update(row: &Row, namespace: &Value, left: &BTreeMap<String, Left>, turn: &Turn) -> Option<Action> {
    if left.values().all(|l| l.deleting == 0) && namespace.list_at(&["status", "conditions"]).is_empty() {
        return None;
    }
    let counts: Vec<String> = left.iter().map(|(name, l)| format!("{} has {} resource instances", dotted(name), l.count)).collect();
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, n) in left.values().flat_map(|l| &l.finalizers) {
        *finalizers.entry(name).or_insert(0) += n;
    }
    let held: Vec<String> = finalizers.iter().map(|(name, n)| format!("{name} in {n} resource instances")).collect();
    let content = if counts.is_empty() {
        Condition::new("NamespaceContentRemaining", "False", "ContentRemoved", "All content successfully removed")
    } else {
        let message = format!("Some resources are remaining: {}", counts.join(", "));
        Condition::new("NamespaceContentRemaining", "True", "SomeResourcesRemain", message)
    };
    let finalizing = if held.is_empty() {
        let message = "All content-preserving finalizers finished";
        Condition::new("NamespaceFinalizersRemaining", "False", "ContentHasNoFinalizers", message)
    } else {
        let message = format!("Some content in the namespace has finalizers remaining: {}", held.join(", "));
        Condition::new("NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain", message)
    };
    let stated = [
        Condition::new("NamespaceDeletionDiscoveryFailure", "False", "ResourcesDiscovered", "All resources successfully discovered"),
        Condition::new(
            "NamespaceDeletionGroupVersionParsingFailure",
            "False",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        Condition::new(
            "NamespaceDeletionContentFailure",
            "False",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        content,
        finalizing,
    ];
    let mut list = namespace.list_at(&["status", "conditions"]).to_vec();
    let now = rfc3339(turn.now());
    let mut changed = false;
    for condition in &stated {
        changed |= conditions::set(&mut list, condition, &now);
    }
    changed.then(|| {
        let mut object = namespace.clone();
        object.set(&["status", "conditions"], list);
        Action::Update { resource: row.object.resource, subresource: "status", object, then: None }
    })
}

/// `pods.` and `deployments.apps`, as upstream prints a resource with its group.
fn dotted(resource: &str) -> String {
    if resource.contains('.') { resource.to_string() } else { format!("{resource}.") }
}
