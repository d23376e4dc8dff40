//! Pure: rolls a Deployment's template out over ReplicaSets.
//!
//! A decision reads the Deployment and its ReplicaSets into [`Rollout`], works out the sizes the sets should have now
//! (rolling update, recreate, proportional scaling, clean-up), and writes the differences: patches of ReplicaSets first,
//! then the status with the revision annotation. A set is *new* if its template is the Deployment's. All arithmetic is on
//! `spec.replicas`, which only we write. Start at `reconcile`; the rolling arithmetic is in `rolling`.

use std::cmp::Reverse;
use std::sync::Arc;

use self::status::new_status;
use super::meta::{RoundUp, adopt, controller_ref, disown, normal, patch_of, rfc3339, scaled, seconds, warning};
use super::revision::{canonical, surge_and_unavailable, template_hash};
use super::selector::Selector;
use crate::api::conditions::{self, Condition};
use crate::api::controller::{Action, Controller, DeletePolicy, Key, Touched, Turn, World};
use crate::api::events::Note;
use crate::api::resource::{DEPLOYMENTS, PODS, REPLICASETS, Resource};
use crate::api::status::Status;
use crate::api::value::{Map, Value};
use crate::api::world::Row;

mod rolling;
mod status;

pub struct Deployments;

const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that are not its ReplicaSets'.
const NOT_COPIED: &[&str] =
    &["kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAX, "deprecated.deployment.rollback.to"];

impl Controller for Deployments {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn resources(&self) -> Vec<&'static Resource> {
        vec![&DEPLOYMENTS, &REPLICASETS, &PODS]
    }

    fn touched(&self, change: &Touched, world: &World) -> Vec<Key> {
        if *change.resource == DEPLOYMENTS {
            return vec![change.key()];
        }
        if *change.resource == PODS {
            return of_pod(change, world).into_iter().collect();
        }
        let mut keys = Vec::new();
        for row in change.rows() {
            match row.controller() {
                Some(owner) if owner.kind == "Deployment" => {
                    keys.push(Key::new(&DEPLOYMENTS, row.name.namespace.as_str(), owner.name.as_str()));
                }
                Some(_) => {}
                None => {
                    let all = world.within(&DEPLOYMENTS, &row.name.namespace);
                    let matching = all.filter(|d| Selector::of(d.value().at(&["spec", "selector"])).matches(&row.labels));
                    keys.extend(matching.map(|d| d.key()));
                }
            }
        }
        keys.dedup();
        keys
    }

    fn reconcile(&self, key: &Key, world: &World, turn: &Turn) -> Vec<Action> {
        let Some(row) = world.get(key) else { return Vec::new() };
        let deployment = row.value();
        let selector = Selector::of(deployment.at(&["spec", "selector"]));
        if !selector.selects() {
            return Vec::new();
        }
        let (claims, mine) = claim(world, row, &selector);
        if !claims.is_empty() {
            return claims;
        }
        Rollout::new(world, row, deployment, &mine, turn).decide()
    }

    fn failed(&self, key: &Key, action: &Action, status: &Status, world: &World) -> Option<Note> {
        let row = world.get(key)?;
        match action {
            Action::Create { object, .. } if status.reason != "AlreadyExists" => {
                let name = object.str_at(&["metadata", "name"]);
                Some(warning(row, "ReplicaSetCreateError", format!("Failed to create new replica set \"{name}\": {status}")))
            }
            _ => None,
        }
    }
}

/// A pod that ended may be what a Recreate rollout waits for.
fn of_pod(change: &Touched, world: &World) -> Option<Key> {
    let over = change.new.as_ref().is_none_or(|pod| pod.pod().is_over());
    let pod = change.row();
    let set = pod.controller().filter(|owner| over && owner.kind == "ReplicaSet")?;
    let set = world.find(&REPLICASETS, &pod.name.namespace, &set.name)?;
    let owner = set.controller().filter(|owner| owner.kind == "Deployment")?;
    Some(Key::new(&DEPLOYMENTS, pod.name.namespace.as_str(), owner.name.as_str()))
}

fn claim<'a>(world: &'a World, row: &'a Row, selector: &Selector) -> (Vec<Action>, Vec<&'a Arc<Row>>) {
    let mut actions = Vec::new();
    let mut mine = Vec::new();
    for set in world.within(&REPLICASETS, &row.name.namespace) {
        match set.controller() {
            Some(owner) if owner.uid == row.uid => {
                if selector.matches(&set.labels) || row.deleting {
                    mine.push(set);
                } else {
                    actions.push(Action::Patch { key: set.key(), subresource: "", patch: disown(set, &[&row.uid]) });
                }
            }
            Some(_) => {}
            None => {
                if !row.deleting && !set.deleting && selector.matches(&set.labels) {
                    actions.push(Action::Patch { key: set.key(), subresource: "", patch: adopt(set, row) });
                }
            }
        }
    }
    (actions, mine)
}

/// One ReplicaSet as a rollout sees it, and what should become of it.
struct Set<'a> {
    row: &'a Row,
    value: Value,
    created: i64,
    replicas: i64,
    /// Its size after this decision.
    size: i64,
    annotations: Vec<(&'static str, String)>,
    copied: Vec<(String, Value)>,
    min_ready: Option<i64>,
}

impl<'a> Set<'a> {
    fn new(row: &'a Row) -> Set<'a> {
        let value = row.value();
        let replicas = value.i64_at(&["spec", "replicas"]).unwrap_or(1);
        let created = seconds(value.str_at(&["metadata", "creationTimestamp"])).unwrap_or(0);
        Set { row, created, replicas, size: replicas, value, annotations: Vec::new(), copied: Vec::new(), min_ready: None }
    }

    fn annotation(&self, key: &str) -> &str {
        self.value.str_at(&["metadata", "annotations", key])
    }

    fn revision(&self) -> i64 {
        self.annotation(REVISION).parse().unwrap_or(0)
    }

    fn count(&self, field: &str) -> i64 {
        self.value.i64_at(&["status", field]).unwrap_or(0)
    }

    fn available(&self) -> i64 {
        self.count("availableReplicas")
    }

    /// The patch that makes it what was decided.
    fn patch(&self) -> Option<Value> {
        let mut patch = patch_of(self.row);
        let before = patch.clone();
        if self.size != self.replicas {
            patch.set(&["spec", "replicas"], self.size);
        }
        if let Some(min_ready) = self.min_ready {
            patch.set(&["spec", "minReadySeconds"], min_ready);
        }
        for (key, text) in &self.annotations {
            if self.annotation(key) != text {
                patch.set(&["metadata", "annotations", key], text.as_str());
            }
        }
        for (key, value) in &self.copied {
            patch.set(&["metadata", "annotations", key], value.clone());
        }
        (patch != before).then_some(patch)
    }
}

/// One decision about one Deployment.
struct Rollout<'a> {
    world: &'a World,
    row: &'a Row,
    deployment: Value,
    turn: &'a Turn,
    /// By creation, oldest first.
    sets: Vec<Set<'a>>,
    /// Position in `sets` of the one with our template.
    new: Option<usize>,
    template: Value,
    replicas: i64,
    surge: i64,
    unavailable: i64,
    create: Option<(Value, i64)>,
    collided: bool,
    doomed: Vec<usize>,
    conditions: Vec<Value>,
}

impl<'a> Rollout<'a> {
    fn new(world: &'a World, row: &'a Row, deployment: Value, mine: &[&'a Arc<Row>], turn: &'a Turn) -> Rollout<'a> {
        let mut sets: Vec<Set> = mine.iter().map(|set| Set::new(set)).collect();
        sets.sort_by_key(|set| (set.created, set.row.name.name.clone()));
        let template = canonical(deployment.at(&["spec", "template"]).unwrap_or(&Value::Null));
        let new = sets.iter().position(|set| set.value.at(&["spec", "template"]).is_some_and(|t| canonical(t) == template));
        let replicas = deployment.i64_at(&["spec", "replicas"]).unwrap_or(1);
        let null = Value::Null;
        let strategy = deployment.at(&["spec", "strategy", "rollingUpdate"]).unwrap_or(&null);
        let (surge, unavailable) = match deployment.str_at(&["spec", "strategy", "type"]) {
            "Recreate" => (0, replicas),
            _ => surge_and_unavailable(strategy, replicas),
        };
        let conditions = deployment.list_at(&["status", "conditions"]).to_vec();
        Rollout {
            world,
            row,
            deployment,
            turn,
            sets,
            new,
            template,
            replicas,
            surge,
            unavailable: unavailable.min(replicas),
            create: None,
            collided: false,
            doomed: Vec::new(),
            conditions,
        }
    }

    fn is_recreate(&self) -> bool {
        self.deployment.str_at(&["spec", "strategy", "type"]) == "Recreate"
    }

    fn paused(&self) -> bool {
        self.deployment.bool_at(&["spec", "paused"])
    }

    /// `None` where there is none.
    fn deadline(&self) -> Option<i64> {
        self.deployment.i64_at(&["spec", "progressDeadlineSeconds"]).filter(|s| *s != i64::from(i32::MAX))
    }

    fn decide(mut self) -> Vec<Action> {
        if self.row.deleting {
            return self.write();
        }
        self.note_pause();
        if self.paused() || self.is_scaling() {
            self.sync_revisions(Missing::Leave);
            self.scale();
            if self.paused() && self.new.is_some() {
                self.clean_up();
            }
        } else if self.is_recreate() {
            self.recreate();
        } else {
            self.roll();
        }
        self.write()
    }

    fn note_pause(&mut self) {
        if self.deadline().is_none() {
            return;
        }
        let reason = conditions::find(&self.conditions, "Progressing").map_or("", |c| c.str_at(&["reason"])).to_string();
        if reason == "ProgressDeadlineExceeded" {
            return;
        }
        if self.paused() && reason != "DeploymentPaused" {
            self.progressing("Unknown", "DeploymentPaused", "Deployment is paused".into());
        } else if !self.paused() && reason == "DeploymentPaused" {
            self.progressing("Unknown", "DeploymentResumed", "Deployment is resumed".into());
        }
    }

    /// States the Progressing condition, with its update time.
    fn progressing(&mut self, status: &'static str, reason: &str, message: String) {
        let now = rfc3339(self.turn.now());
        let condition = Condition::new("Progressing", status, reason, message);
        conditions::set(&mut self.conditions, &condition, &now);
        if let Some(c) = self.conditions.iter_mut().find(|c| c.str_at(&["type"]) == "Progressing") {
            c.set(&["lastUpdateTime"], now);
        }
    }

    /// Some active set was sized for another number of replicas.
    fn is_scaling(&self) -> bool {
        let active = self.sets.iter().filter(|set| set.replicas > 0);
        active.map(|set| set.annotation(DESIRED).parse::<i64>()).any(|desired| desired.is_ok_and(|d| d != self.replicas))
    }

    fn max_revision(&self) -> i64 {
        let old = self.sets.iter().enumerate().filter(|(i, _)| Some(*i) != self.new);
        old.map(|(_, set)| set.revision()).max().unwrap_or(0)
    }

    /// Gives the new set its revision and annotations, or makes one.
    fn sync_revisions(&mut self, missing: Missing) {
        let revision = self.max_revision() + 1;
        let Some(new) = self.new else {
            if missing == Missing::Create {
                self.make_set(revision);
            }
            return;
        };
        let copied = self.copied_annotations();
        let min_ready = self.deployment.i64_at(&["spec", "minReadySeconds"]).unwrap_or(0);
        let set = &mut self.sets[new];
        if set.revision() < revision {
            if set.revision() > 0 {
                let old = set.revision().to_string();
                let history = match set.annotation(REVISION_HISTORY) {
                    "" => old,
                    before => format!("{before},{old}"),
                };
                set.annotations.push((REVISION_HISTORY, history));
            }
            set.annotations.push((REVISION, revision.to_string()));
        }
        let differs = |(key, value): &(String, Value)| set.value.at(&["metadata", "annotations", key]) != Some(value);
        set.copied = copied.into_iter().filter(differs).collect();
        if set.value.i64_at(&["spec", "minReadySeconds"]).unwrap_or(0) != min_ready {
            set.min_ready = Some(min_ready);
        }
        let name = set.row.name.name.clone();
        if self.deadline().is_some() && conditions::find(&self.conditions, "Progressing").is_none() {
            self.progressing("True", "FoundNewReplicaSet", format!("Found new replica set \"{name}\""));
        }
    }

    fn copied_annotations(&self) -> Vec<(String, Value)> {
        let all = self.deployment.map_at(&["metadata", "annotations"]).into_iter().flat_map(Map::iter);
        all.filter(|(key, _)| !NOT_COPIED.contains(key)).map(|(key, value)| (key.to_string(), value.clone())).collect()
    }

    fn make_set(&mut self, revision: i64) {
        let collisions = self.deployment.i64_at(&["status", "collisionCount"]).unwrap_or(0);
        let hash = template_hash(&self.template, collisions);
        let name = format!("{}-{hash}", self.row.name.name);
        if self.world.find(&REPLICASETS, &self.row.name.namespace, &name).is_some() {
            // Another template, or another owner, has this name.
            self.collided = true;
            return;
        }
        let size = self.new_size(0);
        let mut template = self.deployment.at(&["spec", "template"]).cloned().unwrap_or_else(Value::map);
        template.set(&["metadata", "labels", "pod-template-hash"], hash.as_str());
        let labels = template.at(&["metadata", "labels"]).cloned().unwrap_or_else(Value::map);
        let mut selector = self.deployment.at(&["spec", "selector"]).cloned().unwrap_or_else(Value::map);
        selector.set(&["matchLabels", "pod-template-hash"], hash.as_str());
        let mut annotations: Map = self.copied_annotations().into_iter().collect();
        annotations.insert(REVISION, revision.to_string());
        annotations.insert(DESIRED, self.replicas.to_string());
        annotations.insert(MAX, (self.replicas + self.surge).to_string());
        let mut set = crate::value!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": name, "namespace": self.row.name.namespace}, "spec": {"replicas": size}});
        set.set(&["metadata", "labels"], labels);
        set.set(&["metadata", "annotations"], annotations);
        set.set(&["metadata", "ownerReferences"], vec![controller_ref(self.row)]);
        set.set(&["spec", "selector"], selector);
        set.set(&["spec", "template"], template);
        if let Some(min_ready) = self.deployment.i64_at(&["spec", "minReadySeconds"]).filter(|s| *s > 0) {
            set.set(&["spec", "minReadySeconds"], min_ready);
        }
        if self.deadline().is_some() {
            match &self.turn.failure {
                Some(failure) if failure.reason != "AlreadyExists" && failure.reason != "Conflict" => {
                    let text = failure.message.clone();
                    self.progressing("False", "ReplicaSetCreateError", text);
                }
                _ => self.progressing("True", "NewReplicaSetCreated", format!("Created new replica set \"{name}\"")),
            }
        }
        self.create = Some((set, size));
    }

    fn recreate(&mut self) {
        self.sync_revisions(Missing::Leave);
        let mut scaled = false;
        for (i, set) in self.sets.iter_mut().enumerate() {
            if Some(i) != self.new && set.replicas > 0 {
                set.size = 0;
                scaled = true;
            }
        }
        if scaled || self.old_pods_run() {
            return;
        }
        match self.new {
            Some(new) => self.sets[new].size = self.replicas,
            None => self.sync_revisions(Missing::Create),
        }
        self.clean_up_if_complete();
    }

    fn old_pods_run(&self) -> bool {
        let old = self.sets.iter().enumerate().filter(|(i, _)| Some(*i) != self.new);
        old.map(|(_, set)| set)
            .any(|set| set.count("replicas") > 0 || self.world.owned_rows(&set.row.uid, &PODS).any(|pod| !pod.pod().is_over()))
    }

    fn clean_up_if_complete(&mut self) {
        let status = self.deployment.at(&["status"]).cloned().unwrap_or(Value::Null);
        if status::is_complete(&self.deployment, &status) {
            self.clean_up();
        }
    }

    /// Drops the oldest empty sets beyond the history limit.
    fn clean_up(&mut self) {
        let Some(limit) = self.deployment.i64_at(&["spec", "revisionHistoryLimit"]).filter(|n| *n != i64::from(i32::MAX)) else { return };
        let mut old: Vec<usize> = (0..self.sets.len()).filter(|i| Some(*i) != self.new && !self.sets[*i].row.deleting).collect();
        let excess = old.len().saturating_sub(limit.max(0) as usize);
        old.sort_by_key(|i| self.sets[*i].revision());
        let idle = |set: &Set| {
            let settled = set.value.i64_at(&["metadata", "generation"]) <= set.value.i64_at(&["status", "observedGeneration"]);
            set.count("replicas") == 0 && set.replicas == 0 && settled
        };
        self.doomed = old.into_iter().take(excess).filter(|i| idle(&self.sets[*i])).collect();
    }

    /// The decided differences, as actions.
    fn write(mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for set in self.sets.iter_mut().filter(|set| set.size != set.replicas) {
            set.annotations.push((DESIRED, self.replicas.to_string()));
            set.annotations.push((MAX, (self.replicas + self.surge).to_string()));
        }
        for set in &self.sets {
            let Some(patch) = set.patch() else { continue };
            actions.push(Action::Patch { key: set.row.key(), subresource: "", patch });
            if set.size != set.replicas {
                actions.push(Action::Event(self.scaled_note(&set.row.name.name, set.replicas, set.size)));
            }
        }
        if let Some((set, size)) = self.create.take() {
            let then = (size > 0).then(|| self.scaled_note(set.str_at(&["metadata", "name"]), 0, size));
            // The status goes first after a failure, so that the failure shows.
            if self.turn.failure.is_some() {
                actions.extend(self.status_action());
            }
            actions.push(Action::Create { resource: &REPLICASETS, object: set, then });
            if self.turn.failure.is_none() {
                actions.extend(self.status_action());
            }
        } else {
            actions.extend(self.status_action());
        }
        for i in &self.doomed {
            let row = self.sets[*i].row;
            let policy = DeletePolicy::Background;
            actions.push(Action::Delete { key: row.key(), uid: row.uid.clone(), revision: Some(row.object.revision), policy, then: None });
        }
        actions.extend(self.check_again());
        actions
    }

    fn scaled_note(&self, set: &str, from: i64, to: i64) -> Note {
        let verb = if to > from { "up" } else { "down" };
        normal(self.row, "ScalingReplicaSet", format!("Scaled {verb} replica set {set} from {from} to {to}"))
    }

    /// The status, and in the same write the revision: annotations are all a status may change beside itself.
    fn status_action(&mut self) -> Option<Action> {
        let mut object = self.deployment.clone();
        object.set(&["status"], new_status(self));
        if let Some(revision) = self.revision() {
            object.set(&["metadata", "annotations", REVISION], revision);
        }
        (object != self.deployment).then_some(Action::Update { resource: &DEPLOYMENTS, subresource: "status", object, then: None })
    }

    /// The revision of the new set.
    fn revision(&self) -> Option<String> {
        let set = &self.sets[self.new?];
        let decided = set.annotations.iter().find(|(key, _)| *key == REVISION).map(|(_, text)| text.as_str());
        Some(decided.unwrap_or(set.annotation(REVISION)).to_string()).filter(|revision| !revision.is_empty())
    }

    /// Look again when the progress deadline may have passed.
    fn check_again(&self) -> Option<Action> {
        let deadline = self.deadline()?;
        let condition = conditions::find(&self.conditions, "Progressing")?;
        if matches!(condition.str_at(&["reason"]), "NewReplicaSetAvailable" | "ProgressDeadlineExceeded") || self.paused() {
            return None;
        }
        let since = seconds(condition.str_at(&["lastUpdateTime"]))?;
        Some(Action::RequeueAfter { ms: ((since + deadline + 1) * 1000 - self.turn.now_ms).max(1000) })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Create,
    Leave,
}

fn by_size_newest_first(set: &Set) -> (Reverse<i64>, Reverse<i64>) {
    (Reverse(set.replicas), Reverse(set.created))
}

fn max_surge(deployment: &Value, replicas: i64) -> i64 {
    match deployment.str_at(&["spec", "strategy", "type"]) {
        "Recreate" => 0,
        _ => scaled(deployment.at(&["spec", "strategy", "rollingUpdate", "maxSurge"]), replicas, RoundUp::Yes, "25%"),
    }
}
