//! Pure: pods that do not tolerate a NoExecute taint of their node leave, at once or after their `tolerationSeconds`.

use super::meta::{normal, rfc3339, seconds};
use crate::api::conditions::{self, Condition};
use crate::api::controller::{Action, Controller, DeletePolicy, Key, Touched, Turn, World};
use crate::api::resource::{NODES, PODS, Resource};
use crate::api::value::Value;
use crate::api::world::{Row, Taint};

pub struct TaintEviction;

impl Controller for TaintEviction {
    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn identity(&self) -> &'static str {
        "node-controller"
    }

    fn resources(&self) -> Vec<&'static Resource> {
        vec![&NODES, &PODS]
    }

    fn touched(&self, change: &Touched, world: &World) -> Vec<Key> {
        if *change.resource == NODES {
            let taints = |row: &Row| no_execute(row).cloned().collect::<Vec<Taint>>();
            let before = change.old.as_deref().map(taints).unwrap_or_default();
            let after = change.new.as_deref().map(taints).unwrap_or_default();
            if before == after {
                return Vec::new();
            }
            return world.pods_on(&change.row().name.name).map(|pod| pod.key()).collect();
        }
        let Some(pod) = &change.new else { return Vec::new() };
        let tainted = world.find(&NODES, "", &pod.pod().node).is_some_and(|node| no_execute(node).next().is_some());
        if tainted { vec![pod.key()] } else { Vec::new() }
    }

    fn reconcile(&self, key: &Key, world: &World, turn: &Turn) -> Vec<Action> {
        let Some(pod) = world.get(key) else { return Vec::new() };
        let facts = pod.pod();
        if !facts.is_active() {
            return Vec::new();
        }
        let Some(node) = world.find(&NODES, "", &facts.node) else { return Vec::new() };
        let value = pod.value();
        let due = no_execute(node).filter_map(|taint| due(taint, value.list_at(&["spec", "tolerations"]), turn)).min();
        match due {
            None => Vec::new(),
            Some(at) if at > turn.now() => vec![Action::RequeueAfter { ms: at * 1000 - turn.now_ms }],
            Some(_) => evict(pod, value, turn),
        }
    }
}

fn no_execute(node: &Row) -> impl Iterator<Item = &Taint> {
    node.node().taints.iter().filter(|taint| taint.effect == "NoExecute")
}

/// When a pod with these tolerations has to go because of this taint; `None` if it may stay.
fn due(taint: &Taint, tolerations: &[Value], turn: &Turn) -> Option<i64> {
    let added = seconds(&taint.added).unwrap_or(turn.now());
    let mut matching = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
    if matching.peek().is_none() {
        return Some(turn.now());
    }
    matching.filter_map(|t| t.i64_at(&["tolerationSeconds"])).min().map(|s| added + s.max(0))
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Value, taint: &Taint) -> bool {
    let effect = toleration.str_at(&["effect"]);
    let key = toleration.str_at(&["key"]);
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.str_at(&["operator"]) {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && toleration.str_at(&["value"]) == taint.value,
        _ => false,
    }
}

fn evict(pod: &Row, mut object: Value, turn: &Turn) -> Vec<Action> {
    let mut list = object.list_at(&["status", "conditions"]).to_vec();
    let text = "Taint manager: deleting due to NoExecute taint";
    let condition = Condition::new("DisruptionTarget", "True", "DeletionByTaintManager", text);
    let mut actions = Vec::new();
    if conditions::set(&mut list, &condition, &rfc3339(turn.now())) {
        object.set(&["status", "conditions"], list);
        actions.push(Action::Update { resource: &PODS, subresource: "status", object, then: None });
    }
    actions.push(Action::Delete {
        key: pod.key(),
        uid: pod.uid.clone(),
        revision: None,
        policy: DeletePolicy::Default,
        then: Some(normal(pod, "TaintManagerEviction", format!("Marking for deletion Pod {}", pod.name))),
    });
    actions
}
