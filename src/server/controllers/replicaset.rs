//! Pure: keeps as many pods of a ReplicaSet, or of the older ReplicationController, as it asks for.
//!
//! Adopts pods its selector matches and nobody controls, releases its own that match no more, creates under names chosen in
//! the decision, deletes in upstream's order of preference, and counts in `status`. Start at `reconcile`.

use std::collections::HashMap;
use std::sync::Arc;

use super::meta::{adopt, controller_ref, disown, name_prefix, normal, rfc3339, warning};
use super::selector::Selector;
use crate::api::conditions::{self, Condition};
use crate::api::controller::{Action, Controller, DeletePolicy, Key, Touched, Turn, World};
use crate::api::events::Note;
use crate::api::resource::{PODS, REPLICASETS, REPLICATIONCONTROLLERS, Resource};
use crate::api::status::Status;
use crate::api::value::Value;
use crate::api::world::Row;

/// One of the two kinds that ask for a number of pods alike.
#[derive(Clone, Copy)]
pub struct Replicated {
    name: &'static str,
    resource: &'static Resource,
    selector: fn(&Value) -> Selector,
    counts_terminating: bool,
}

pub const REPLICA_SETS: Replicated = Replicated {
    name: "replicaset-controller",
    resource: &REPLICASETS,
    selector: |set| Selector::of(set.at(&["spec", "selector"])),
    counts_terminating: true,
};

pub const REPLICATION_CONTROLLERS: Replicated = Replicated {
    name: "replication-controller",
    resource: &REPLICATIONCONTROLLERS,
    selector: |set| Selector::of_labels(set.at(&["spec", "selector"])),
    counts_terminating: false,
};

/// Pods created or deleted in one decision.
const BURST: usize = 500;

impl Controller for Replicated {
    fn name(&self) -> &'static str {
        self.name
    }

    fn resources(&self) -> Vec<&'static Resource> {
        vec![self.resource, &PODS]
    }

    fn touched(&self, change: &Touched, world: &World) -> Vec<Key> {
        if change.resource == self.resource {
            return vec![change.key()];
        }
        let mut keys = Vec::new();
        for row in change.rows() {
            match row.controller() {
                Some(owner) if owner.kind == self.resource.kind => {
                    keys.push(Key::new(self.resource, row.name.namespace.as_str(), owner.name.as_str()));
                }
                Some(_) => {}
                None if row.deleting => {}
                None => keys.extend(self.matching(world, row)),
            }
        }
        keys.dedup();
        keys
    }

    fn reconcile(&self, key: &Key, world: &World, turn: &Turn) -> Vec<Action> {
        let Some(row) = world.get(key) else { return Vec::new() };
        let set = row.value();
        let selector = (self.selector)(&set);
        if !selector.selects() {
            return Vec::new();
        }
        let (mut actions, claimed) = claim(world, row, &selector);
        let active: Vec<&Arc<Row>> = claimed.iter().filter(|pod| pod.pod().is_active()).copied().collect();
        let managing = if row.deleting { Vec::new() } else { manage(world, row, &set, &active, turn) };
        let status = self.status_update(row, &set, &claimed, &active, turn, !managing.is_empty());
        // A count that is about to change is not worth a write, unless what changes it failed the last time.
        if managing.is_empty() || turn.failure.is_some() {
            actions.extend(status);
        }
        actions.extend(managing);
        actions.extend(ready_soon(&set, &active, turn));
        actions
    }

    fn failed(&self, key: &Key, action: &Action, status: &Status, world: &World) -> Option<Note> {
        let row = world.get(key)?;
        match action {
            Action::Create { .. } => Some(warning(row, "FailedCreate", format!("Error creating: {status}"))),
            Action::Delete { .. } if status.code != 409 => Some(warning(row, "FailedDelete", format!("Error deleting: {status}"))),
            _ => None,
        }
    }
}

impl Replicated {
    fn matching(&self, world: &World, pod: &Row) -> Vec<Key> {
        let sets = world.within(self.resource, &pod.name.namespace);
        sets.filter(|set| (self.selector)(&set.value()).matches(&pod.labels)).map(|set| set.key()).collect()
    }

    fn status_update(
        &self,
        row: &Row,
        set: &Value,
        claimed: &[&Arc<Row>],
        active: &[&Arc<Row>],
        turn: &Turn,
        managing: bool,
    ) -> Option<Action> {
        let mut status = set.at(&["status"]).cloned().unwrap_or_else(Value::map);
        let template = Selector::of_labels(set.at(&["spec", "template", "metadata", "labels"]).or(Some(&Value::map())));
        let min_ready = set.i64_at(&["spec", "minReadySeconds"]).unwrap_or(0);
        let count = |test: &dyn Fn(&Row) -> bool| active.iter().filter(|pod| test(pod)).count() as i64;
        let ready = count(&|pod| pod.pod().ready);
        let available = count(&|pod| is_available(pod, min_ready, turn));
        let terminating = claimed.iter().filter(|pod| pod.pod().deletion.is_some() && !pod.pod().is_over()).count() as i64;
        put_count(&mut status, "replicas", active.len() as i64, Zero::Shown);
        put_count(&mut status, "fullyLabeledReplicas", count(&|pod| template.matches(&pod.labels)), Zero::Hidden);
        put_count(&mut status, "readyReplicas", ready, Zero::Hidden);
        put_count(&mut status, "availableReplicas", available, Zero::Hidden);
        if self.counts_terminating {
            put_count(&mut status, "terminatingReplicas", terminating, Zero::Shown);
        }
        status.set(&["observedGeneration"], set.i64_at(&["metadata", "generation"]).unwrap_or(0));
        let mut list = status.list_at(&["conditions"]).to_vec();
        match (&turn.failure, managing) {
            (Some(failure), true) => {
                let wanted = set.i64_at(&["spec", "replicas"]).unwrap_or(1);
                let reason = if (active.len() as i64) < wanted { "FailedCreate" } else { "FailedDelete" };
                let condition = Condition::new("ReplicaFailure", "True", reason, failure.message.as_str());
                if conditions::find(&list, "ReplicaFailure").is_none() {
                    conditions::set(&mut list, &condition, &rfc3339(turn.now()));
                }
            }
            (None, _) | (Some(_), false) => {
                conditions::remove(&mut list, "ReplicaFailure");
            }
        }
        if list.is_empty() {
            status.remove(&["conditions"]);
        } else {
            status.set(&["conditions"], list);
        }
        if set.at(&["status"]).is_some_and(|old| *old == status) {
            return None;
        }
        let mut object = set.clone();
        object.set(&["status"], status);
        Some(Action::Update { resource: row.object.resource, subresource: "status", object, then: None })
    }
}

/// The pods that are this set's, after adopting and releasing.
fn claim<'a>(world: &'a World, set: &'a Row, selector: &Selector) -> (Vec<Action>, Vec<&'a Arc<Row>>) {
    let mut actions = Vec::new();
    let mut claimed = Vec::new();
    for pod in world.within(&PODS, &set.name.namespace) {
        match pod.controller() {
            Some(owner) if owner.uid == set.uid => {
                if selector.matches(&pod.labels) {
                    claimed.push(pod);
                } else if !set.deleting {
                    actions.push(Action::Patch { key: pod.key(), subresource: "", patch: disown(pod, &[&set.uid]) });
                }
            }
            Some(_) => {}
            None => {
                if !set.deleting && pod.pod().is_active() && selector.matches(&pod.labels) {
                    actions.push(Action::Patch { key: pod.key(), subresource: "", patch: adopt(pod, set) });
                    claimed.push(pod);
                }
            }
        }
    }
    (actions, claimed)
}

fn manage(world: &World, row: &Row, set: &Value, active: &[&Arc<Row>], turn: &Turn) -> Vec<Action> {
    let wanted = set.i64_at(&["spec", "replicas"]).unwrap_or(1).max(0) as usize;
    if active.len() < wanted {
        let missing = (wanted - active.len()).min(BURST);
        return (0..missing).map(|i| create(row, set, turn, i as u64)).collect();
    }
    let excess = (active.len() - wanted).min(BURST);
    if excess == 0 {
        return Vec::new();
    }
    doomed(world, row, active, excess, turn)
        .into_iter()
        .map(|pod| Action::Delete {
            key: pod.key(),
            uid: pod.uid.clone(),
            revision: None,
            policy: DeletePolicy::Default,
            then: Some(normal(row, "SuccessfulDelete", format!("Deleted pod: {}", pod.name.name))),
        })
        .collect()
}

fn create(row: &Row, set: &Value, turn: &Turn, n: u64) -> Action {
    let prefix = name_prefix(&row.name.name);
    let name = format!("{prefix}{}", turn.suffix(n));
    let object = pod_from_template(set.at(&["spec", "template"]), row, &prefix, &name);
    let then = Some(normal(row, "SuccessfulCreate", format!("Created pod: {name}")));
    Action::Create { resource: &PODS, object, then }
}

/// A pod as a template asks for it, under `owner`'s control.
pub fn pod_from_template(template: Option<&Value>, owner: &Row, prefix: &str, name: &str) -> Value {
    let template = template.unwrap_or(&Value::Null);
    let mut pod = crate::value!({"apiVersion": "v1", "kind": "Pod"});
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template.at(&["metadata", field]) {
            pod.set(&["metadata", field], value.clone());
        }
    }
    pod.set(&["metadata", "name"], name);
    pod.set(&["metadata", "generateName"], prefix);
    pod.set(&["metadata", "namespace"], owner.name.namespace.as_str());
    pod.set(&["metadata", "ownerReferences"], vec![controller_ref(owner)]);
    pod.set(&["spec"], template.at(&["spec"]).cloned().unwrap_or_else(Value::map));
    pod
}

/// The pods to delete first: those that cost the least.
fn doomed<'a>(world: &World, set: &Row, active: &[&'a Arc<Row>], n: usize, turn: &Turn) -> Vec<&'a Arc<Row>> {
    let crowd = crowding(world, set);
    let mut ranked: Vec<&Arc<Row>> = active.to_vec();
    if n < ranked.len() {
        ranked.sort_by_key(|pod| {
            let facts = pod.pod();
            let phase = match facts.phase.as_str() {
                "Pending" | "" => 0,
                "Running" => 2,
                _ => 1,
            };
            let crowd = crowd.get(facts.node.as_str()).copied().unwrap_or(0);
            let ready_age = if facts.ready { bucket(turn.now() - facts.ready_since) } else { 0 };
            let place = (!facts.node.is_empty(), phase, facts.ready, facts.deletion_cost);
            (place, -crowd, ready_age, -facts.restarts, bucket(turn.now() - facts.created), pod.uid.clone())
        });
    }
    ranked.truncate(n);
    ranked
}

/// Ages on a logarithmic scale, so that pods of about the same age are alike.
fn bucket(seconds: i64) -> u32 {
    64 - (seconds.max(0) as u64).leading_zeros()
}

/// How many pods of this set and its siblings (sets of the same owner) are on each node.
fn crowding<'a>(world: &'a World, set: &Row) -> HashMap<&'a str, i64> {
    let siblings: Vec<String> = match set.controller() {
        Some(owner) => world.owned_rows(&owner.uid, set.object.resource).map(|s| s.uid.clone()).collect(),
        None => vec![set.uid.clone()],
    };
    let mut crowd = HashMap::new();
    for sibling in &siblings {
        for pod in world.owned_rows(sibling, &PODS).filter(|pod| pod.pod().is_active()) {
            *crowd.entry(pod.pod().node.as_str()).or_insert(0) += 1;
        }
    }
    crowd
}

/// How a count of zero is written.
pub enum Zero {
    Shown,
    Hidden,
}

pub fn put_count(status: &mut Value, field: &str, n: i64, zero: Zero) {
    match (n, zero) {
        (0, Zero::Hidden) => {
            status.remove(&[field]);
        }
        (n, _) => status.set(&[field], n),
    }
}

/// Ready for at least `min_ready` seconds.
pub fn is_available(pod: &Row, min_ready: i64, turn: &Turn) -> bool {
    let facts = pod.pod();
    facts.ready && (min_ready == 0 || facts.ready_since + min_ready <= turn.now())
}

/// Look again when the next ready pod becomes available.
fn ready_soon(set: &Value, active: &[&Arc<Row>], turn: &Turn) -> Option<Action> {
    let min_ready = set.i64_at(&["spec", "minReadySeconds"]).filter(|s| *s > 0)?;
    let waiting = active.iter().filter(|pod| pod.pod().ready && !is_available(pod, min_ready, turn));
    let next = waiting.map(|pod| pod.pod().ready_since + min_ready).min()?;
    Some(Action::RequeueAfter { ms: (next * 1000 - turn.now_ms).max(1) })
}
