//! Pure: what a node's silence and conditions mean for the node: Ready Unknown, and taints.
//!
//! A heartbeat is a change of the node's Lease as we saw it (our clock, not the node's). Taints follow conditions: not-ready
//! and unreachable with NoSchedule and NoExecute, pressure and cordoning with NoSchedule. Who is evicted is
//! `taint_eviction`'s matter.

use super::meta::{normal, patch_of, rfc3339, seconds};
use crate::api::conditions::{self, Condition};
use crate::api::controller::{Action, Controller, Key, Touched, Turn, World};
use crate::api::resource::{LEASES, NODES, PODS, Resource};
use crate::api::value::Value;
use crate::api::world::{Row, Taint};

pub struct NodeLifecycle;

/// Silence longer than this makes a node's state unknown.
const GRACE_MS: i64 = 40_000;
/// A node that never spoke has longer.
const STARTUP_GRACE_MS: i64 = 60_000;
const LEASE_NAMESPACE: &str = "kube-node-lease";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const OURS: &[&str] = &[
    NOT_READY,
    UNREACHABLE,
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/network-unavailable",
];

impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn resources(&self) -> Vec<&'static Resource> {
        vec![&NODES, &LEASES, &PODS]
    }

    fn touched(&self, change: &Touched, world: &World) -> Vec<Key> {
        if *change.resource == NODES {
            return vec![change.key()];
        }
        let name = &change.row().name;
        let of_node = *change.resource == LEASES && name.namespace == LEASE_NAMESPACE;
        // A heartbeat of a node that is well says nothing new.
        let node = of_node.then(|| Key::new(&NODES, "", name.name.as_str()));
        node.filter(|key| world.get(key).is_some_and(|row| row.node().ready != "True")).into_iter().collect()
    }

    fn reconcile(&self, key: &Key, world: &World, turn: &Turn) -> Vec<Action> {
        let Some(row) = world.get(key) else { return Vec::new() };
        if row.deleting {
            return Vec::new();
        }
        let node = row.value();
        let (last, grace) = heartbeat(world, row, &node);
        let silent = turn.now_ms - last > grace;
        let mut list = node.list_at(&["status", "conditions"]).to_vec();
        let spoke = !list.is_empty();
        let mut actions = Vec::new();
        if silent && set_unknown(&mut list, spoke, turn) {
            let mut object = node.clone();
            object.set(&["status", "conditions"], list.clone());
            let note = normal(row, "NodeNotReady", format!("Node {} status is now: NodeNotReady", row.name.name));
            actions.push(Action::Update { resource: &NODES, subresource: "status", object, then: Some(note) });
        }
        // The status write makes the taints' revision stale: they follow with the change it causes.
        if actions.is_empty() {
            actions.extend(retaint(row, &node, &list, turn));
        }
        if conditions::status(&list, "Ready") != "True" {
            actions.extend(not_ready_pods(world, row, turn));
        }
        if !silent {
            actions.push(Action::RequeueAfter { ms: (last + grace - turn.now_ms).max(0) + 500 });
        }
        actions
    }
}

/// When the node was last heard of (as we saw it), and how long that is good for.
fn heartbeat(world: &World, row: &Row, node: &Value) -> (i64, i64) {
    if let Some(lease) = world.find(&LEASES, LEASE_NAMESPACE, &row.name.name) {
        return (lease.seen_ms, GRACE_MS);
    }
    let beats = node.list_at(&["status", "conditions"]).iter().filter_map(|c| seconds(c.str_at(&["lastHeartbeatTime"])));
    match beats.max() {
        Some(beat) => (beat * 1000, GRACE_MS),
        None => (seconds(node.str_at(&["metadata", "creationTimestamp"])).unwrap_or(0) * 1000, STARTUP_GRACE_MS),
    }
}

fn set_unknown(list: &mut Vec<Value>, spoke: bool, turn: &Turn) -> bool {
    let (reason, message) = if spoke {
        ("NodeStatusUnknown", "Kubelet stopped posting node status.")
    } else {
        ("NodeStatusNeverUpdated", "Kubelet never posted node status.")
    };
    let now = rfc3339(turn.now());
    let mut changed = false;
    for type_ in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        if conditions::status(list, type_) != "Unknown" {
            changed |= conditions::set(list, &Condition::new(type_, "Unknown", reason, message), &now);
        }
    }
    changed
}

/// The taints the conditions ask for, as (key, effect).
fn wanted_taints(node: &Value, list: &[Value]) -> Vec<(&'static str, &'static str)> {
    let mut wanted = Vec::new();
    match conditions::status(list, "Ready") {
        "False" => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        "Unknown" | "" => wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
        _ => {}
    }
    if node.bool_at(&["spec", "unschedulable"]) {
        wanted.push(("node.kubernetes.io/unschedulable", "NoSchedule"));
    }
    for (type_, key) in [
        ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
        ("DiskPressure", "node.kubernetes.io/disk-pressure"),
        ("PIDPressure", "node.kubernetes.io/pid-pressure"),
        ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
    ] {
        if conditions::is_true(list, type_) {
            wanted.push((key, "NoSchedule"));
        }
    }
    wanted
}

fn retaint(row: &Row, node: &Value, list: &[Value], turn: &Turn) -> Option<Action> {
    // A node that has not reported yet keeps the taint it registered with; silence is judged by time.
    let fresh = conditions::find(list, "Ready").is_none();
    let mut wanted = wanted_taints(node, list);
    if fresh {
        wanted.retain(|(key, _)| *key != UNREACHABLE);
        wanted.push((NOT_READY, "NoSchedule"));
    }
    let have = node.list_at(&["spec", "taints"]);
    let mut taints: Vec<Value> = have
        .iter()
        .filter(|t| {
            let taint = Taint::of(t);
            !OURS.contains(&taint.key.as_str()) || wanted.iter().any(|(k, e)| *k == taint.key && *e == taint.effect)
        })
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|t| t.str_at(&["key"]) == key && t.str_at(&["effect"]) == effect) {
            let mut taint = crate::value!({"key": key, "effect": effect});
            taint.set(&["timeAdded"], rfc3339(turn.now()));
            taints.push(taint);
        }
    }
    if taints == have {
        return None;
    }
    let mut patch = patch_of(row);
    patch.set(&["spec", "taints"], if taints.is_empty() { Value::Null } else { Value::List(taints) });
    Some(Action::Patch { key: row.key(), subresource: "", patch })
}

/// Pods of a node that is not well are not ready, whatever they said last.
fn not_ready_pods(world: &World, row: &Row, turn: &Turn) -> Vec<Action> {
    if row.node().ready != "Unknown" {
        return Vec::new();
    }
    let now = rfc3339(turn.now());
    let ready = world.pods_on(&row.name.name).filter(|pod| pod.pod().ready && !pod.pod().is_over());
    ready
        .map(|pod| {
            let mut object = pod.value();
            let mut list = object.list_at(&["status", "conditions"]).to_vec();
            if let Some(c) = list.iter_mut().find(|c| c.str_at(&["type"]) == "Ready") {
                c.set(&["status"], "False");
                c.set(&["lastTransitionTime"], now.as_str());
            }
            object.set(&["status", "conditions"], list);
            Action::Update { resource: &PODS, subresource: "status", object, then: None }
        })
        .collect()
}
