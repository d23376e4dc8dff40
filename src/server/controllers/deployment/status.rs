//! Pure: the status of a Deployment.

use super::{Rollout, Set};
use crate::api::conditions::{self, Condition};
use crate::api::resource::PODS;
use crate::api::value::Value;
use crate::server::controllers::meta::{rfc3339, seconds};
use crate::server::controllers::replicaset::{Zero, put_count};

/// All replicas are updated, available and seen.
pub fn is_complete(deployment: &Value, status: &Value) -> bool {
    let replicas = deployment.i64_at(&["spec", "replicas"]).unwrap_or(1);
    let count = |field| status.i64_at(&[field]).unwrap_or(0);
    count("updatedReplicas") == replicas
        && count("replicas") == replicas
        && count("availableReplicas") == replicas
        && count("observedGeneration") >= deployment.i64_at(&["metadata", "generation"]).unwrap_or(0)
}

pub(super) fn new_status(rollout: &mut Rollout) -> Value {
    let mut status = rollout.deployment.at(&["status"]).cloned().unwrap_or_else(Value::map);
    counts(rollout, &mut status);
    available(rollout, &status);
    if !rollout.row.deleting && !rollout.paused() {
        progress(rollout, &status);
        failure(rollout);
    }
    if rollout.collided {
        let collisions = status.i64_at(&["collisionCount"]).unwrap_or(0);
        status.set(&["collisionCount"], collisions + 1);
    }
    if !rollout.conditions.is_empty() {
        status.set(&["conditions"], rollout.conditions.clone());
    }
    status
}

fn counts(rollout: &Rollout, status: &mut Value) {
    let total = |field: &str| rollout.sets.iter().map(|set| set.count(field)).sum::<i64>();
    let wanted: i64 = rollout.sets.iter().map(|set| set.replicas).sum();
    let available = total("availableReplicas");
    let updated = rollout.new.map_or(0, |i| rollout.sets[i].count("replicas"));
    let pods = rollout.sets.iter().flat_map(|set| rollout.world.owned_rows(&set.row.uid, &PODS));
    let terminating = pods.filter(|pod| pod.deleting && !pod.pod().is_over()).count() as i64;
    put_count(status, "replicas", total("replicas"), Zero::Hidden);
    put_count(status, "updatedReplicas", updated, Zero::Hidden);
    put_count(status, "readyReplicas", total("readyReplicas"), Zero::Hidden);
    put_count(status, "availableReplicas", available, Zero::Hidden);
    put_count(status, "unavailableReplicas", (wanted - available).max(0), Zero::Hidden);
    put_count(status, "terminatingReplicas", terminating, Zero::Shown);
    status.set(&["observedGeneration"], rollout.deployment.i64_at(&["metadata", "generation"]).unwrap_or(0));
}

fn available(rollout: &mut Rollout, status: &Value) {
    let enough = status.i64_at(&["availableReplicas"]).unwrap_or(0) >= rollout.replicas - rollout.unavailable;
    let condition = if enough {
        Condition::new("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        Condition::new("Available", "False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    let now = rfc3339(rollout.turn.now());
    if conditions::set(&mut rollout.conditions, &condition, &now)
        && let Some(c) = rollout.conditions.iter_mut().find(|c| c.str_at(&["type"]) == "Available")
    {
        c.set(&["lastUpdateTime"], now);
    }
}

fn progress(rollout: &mut Rollout, status: &Value) {
    let Some(deadline) = rollout.deadline() else {
        conditions::remove(&mut rollout.conditions, "Progressing");
        return;
    };
    let count = |field| status.i64_at(&[field]).unwrap_or(0);
    let current = conditions::find(&rollout.conditions, "Progressing").cloned();
    let reason = current.as_ref().map_or("", |c| c.str_at(&["reason"]));
    if count("replicas") == count("updatedReplicas") && reason == "NewReplicaSetAvailable" {
        return;
    }
    let what = match rollout.new {
        Some(i) => format!("ReplicaSet \"{}\"", rollout.sets[i].row.name.name),
        None => format!("Deployment \"{}\"", rollout.row.name.name),
    };
    if is_complete(&rollout.deployment, status) {
        rollout.progressing("True", "NewReplicaSetAvailable", format!("{what} has successfully progressed."));
    } else if is_moving(&rollout.deployment, status) {
        rollout.progressing("True", "ReplicaSetUpdated", format!("{what} is progressing."));
    } else if reason == "ProgressDeadlineExceeded" {
    } else if let Some(since) = current.as_ref().and_then(|c| seconds(c.str_at(&["lastUpdateTime"])))
        && reason != "NewReplicaSetAvailable"
        && rollout.turn.now() > since + deadline
    {
        rollout.progressing("False", "ProgressDeadlineExceeded", format!("{what} has timed out progressing."));
    }
}

/// More updated, ready or available pods than before, or fewer old ones.
fn is_moving(deployment: &Value, status: &Value) -> bool {
    let new = |field| status.i64_at(&[field]).unwrap_or(0);
    let old = |field| deployment.i64_at(&["status", field]).unwrap_or(0);
    new("updatedReplicas") > old("updatedReplicas")
        || new("replicas") - new("updatedReplicas") < old("replicas") - old("updatedReplicas")
        || new("readyReplicas") > old("readyReplicas")
        || new("availableReplicas") > old("availableReplicas")
}

/// What keeps a set from creating pods shows on the Deployment.
fn failure(rollout: &mut Rollout) {
    let failing = |set: &Set| conditions::find(set.value.list_at(&["status", "conditions"]), "ReplicaFailure").cloned();
    let new = rollout.new.and_then(|i| failing(&rollout.sets[i]));
    match new.or_else(|| rollout.sets.iter().find_map(failing)) {
        Some(found) => {
            let condition = Condition::new("ReplicaFailure", "True", found.str_at(&["reason"]), found.str_at(&["message"]));
            let now = rfc3339(rollout.turn.now());
            if conditions::set(&mut rollout.conditions, &condition, &now)
                && let Some(c) = rollout.conditions.iter_mut().find(|c| c.str_at(&["type"]) == "ReplicaFailure")
            {
                c.set(&["lastUpdateTime"], now);
            }
        }
        None => {
            conditions::remove(&mut rollout.conditions, "ReplicaFailure");
        }
    }
}
