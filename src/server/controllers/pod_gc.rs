//! Pure: removes pods nobody else will: of nodes that are gone, of nodes taken out of service, deleted before they were
//! scheduled, and the oldest ended ones when there are too many.

use super::meta::{patch_of, rfc3339};
use crate::api::conditions::{self, Condition};
use crate::api::controller::{Action, Controller, DeletePolicy, Key, Touched, Turn, World};
use crate::api::resource::{NODES, PODS, Resource};
use crate::api::world::Row;

pub struct PodGc;

/// Ended pods kept.
const ENDED_MAX: usize = 12_500;
/// A node that comes back within this time finds its pods.
const QUARANTINE_MS: i64 = 40_000;

impl Controller for PodGc {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn resources(&self) -> Vec<&'static Resource> {
        vec![&PODS, &NODES]
    }

    fn touched(&self, change: &Touched, world: &World) -> Vec<Key> {
        if *change.resource == NODES {
            let gone_or_out = change.new.as_ref().is_none_or(|node| is_out_of_service(node));
            let pods = world.pods_on(&change.row().name.name).filter(|_| gone_or_out);
            return pods.map(|pod| pod.key()).collect();
        }
        let Some(pod) = &change.new else { return Vec::new() };
        let facts = pod.pod();
        let unscheduled = facts.node.is_empty() && pod.deleting;
        let stray =
            !facts.node.is_empty() && world.find(&NODES, "", &facts.node).is_none_or(|node| pod.deleting && is_out_of_service(node));
        let ended = facts.is_over() && world.count(&PODS) > ENDED_MAX;
        if unscheduled || stray || ended { vec![pod.key()] } else { Vec::new() }
    }

    fn reconcile(&self, key: &Key, world: &World, turn: &Turn) -> Vec<Action> {
        let Some(pod) = world.get(key) else { return Vec::new() };
        let facts = pod.pod();
        if facts.node.is_empty() {
            return if pod.deleting { vec![force_delete(pod)] } else { ended(world, pod) };
        }
        match world.find(&NODES, "", &facts.node) {
            Some(node) if pod.deleting && is_out_of_service(node) => fail_and_delete(pod, "Pod node is out of service", turn),
            Some(_) => ended(world, pod),
            None => {
                let since = world.missing_since(&facts.node).unwrap_or(turn.now_ms);
                let left = since + QUARANTINE_MS - turn.now_ms;
                if left > 0 {
                    return vec![Action::RequeueAfter { ms: left }];
                }
                let node = Key::new(&NODES, "", facts.node.as_str());
                let mut actions = vec![Action::Absent { owner: node, uid: String::new() }];
                actions.extend(fail_and_delete(pod, "PodGC: node no longer exists", turn));
                actions
            }
        }
    }
}

fn is_out_of_service(node: &Row) -> bool {
    node.node().ready != "True" && node.node().taints.iter().any(|t| t.key == "node.kubernetes.io/out-of-service")
}

fn force_delete(pod: &Row) -> Action {
    Action::Delete { key: pod.key(), uid: pod.uid.clone(), revision: None, policy: DeletePolicy::Force, then: None }
}

/// Nobody will report its end any more: say it failed, then remove it.
fn fail_and_delete(pod: &Row, why: &str, turn: &Turn) -> Vec<Action> {
    let mut actions = Vec::new();
    if !pod.pod().is_over() {
        let mut list = pod.value().list_at(&["status", "conditions"]).to_vec();
        conditions::set(&mut list, &Condition::new("DisruptionTarget", "True", "DeletionByPodGC", why), &rfc3339(turn.now()));
        let mut patch = patch_of(pod);
        patch.set(&["status", "conditions"], list);
        patch.set(&["status", "phase"], "Failed");
        actions.push(Action::Patch { key: pod.key(), subresource: "status", patch });
    }
    actions.push(force_delete(pod));
    actions
}

/// Beyond the limit the oldest ended pods go.
fn ended(world: &World, pod: &Row) -> Vec<Action> {
    if !pod.pod().is_over() || pod.deleting || world.count(&PODS) <= ENDED_MAX {
        return Vec::new();
    }
    let over = world.all(&PODS).filter(|p| p.pod().is_over() && !p.deleting);
    let (mut total, mut older) = (0, 0);
    for other in over {
        total += 1;
        older += usize::from((other.pod().created, &other.name) < (pod.pod().created, &pod.name));
    }
    if older < total.max(ENDED_MAX) - ENDED_MAX { vec![force_delete(pod)] } else { Vec::new() }
}
