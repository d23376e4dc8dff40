//! The scheduler, as a controller: an unassigned pod in, a binding out, or the reasons why not.
//!
//! One decision at a time over the world's node usage, which counts bindings under way; so two decisions never give the same
//! room away. [`filter`] says which nodes can take the pod and why others cannot, [`score`] which of them is best.
//! [`preempt`] finds whom a more important pod may replace. A pod that fits nowhere is looked at again when a node changes
//! or a pod leaves.

use std::sync::Arc;

use self::filter::{Reason, Wants};
use self::preempt::Victim;
use crate::api::client::Client;
use crate::api::conditions::{self, Condition};
use crate::api::controller::{Action, Controller, DeletePolicy, Key, Touched, Turn, World};
use crate::api::driver::Driver;
use crate::api::events::Note;
use crate::api::resource::{NAMESPACES, NODES, PODS, Resource};
use crate::api::value::Value;
use crate::api::world::Row;
use crate::server::controllers::meta::{normal, rfc3339, warning};

pub mod affinity;
pub mod filter;
pub mod preempt;
pub mod score;

/// The scheduler of pods with `schedulerName: default-scheduler`.
pub struct Scheduler;

/// Its name, as pods ask for it and events show it.
pub const NAME: &str = "default-scheduler";
/// Pods that fit nowhere are tried again at least this often.
const RETRY_MS: i64 = 300_000;

/// Starts it, acting as `client` (upstream: `system:kube-scheduler`).
pub fn start(client: Client) -> Driver {
    let clients = Arc::new(move |_: &str| client.clone());
    Driver::start("scheduler", clients, NAME, vec![Box::new(Scheduler)])
}

impl Controller for Scheduler {
    fn name(&self) -> &'static str {
        NAME
    }

    fn resources(&self) -> Vec<&'static Resource> {
        vec![&PODS, &NODES, &NAMESPACES]
    }

    fn touched(&self, change: &Touched, world: &World) -> Vec<Key> {
        if *change.resource == PODS {
            let mut keys: Vec<Key> = change.new.iter().filter(|pod| waits(pod)).map(|pod| pod.key()).collect();
            if makes_room(change) {
                keys.extend(waiting(world));
            }
            return keys;
        }
        let helps = *change.resource == NODES && node_helps(change);
        if helps { waiting(world).collect() } else { Vec::new() }
    }

    fn reconcile(&self, key: &Key, world: &World, turn: &Turn) -> Vec<Action> {
        let Some(row) = world.get(key).filter(|row| waits(row)) else { return Vec::new() };
        let pod = row.value();
        match decide(world, row, &pod, turn) {
            Decision::Bind(node) => {
                let then = Some(normal(row, "Scheduled", format!("Successfully assigned {} to {node}", row.name)));
                vec![Action::Bind { pod: key.clone(), uid: row.uid.clone(), node, then }]
            }
            Decision::Preempt { node, victims, message } => replace(world, row, pod, Replacement { node, victims, message }, turn),
            Decision::Unschedulable(message) => unschedulable(row, pod, message, turn),
        }
    }

    fn priority(&self, key: &Key, world: &World) -> i64 {
        world.get(key).map_or(0, |pod| pod.pod().priority)
    }

    fn jobs_max(&self) -> usize {
        64
    }

    fn failed(&self, key: &Key, action: &Action, status: &crate::api::status::Status, world: &World) -> Option<Note> {
        let row = world.get(key)?;
        let bind = matches!(action, Action::Bind { .. }) && status.code != 404 && status.code != 409;
        bind.then(|| warning(row, "FailedScheduling", format!("running Bind plugin \"DefaultBinder\": {status}")))
    }
}

/// It asks for a node, and for us to find it.
fn waits(row: &Row) -> bool {
    let pod = row.pod();
    pod.node.is_empty() && pod.is_active() && !pod.gated && (pod.scheduler == NAME || pod.scheduler.is_empty())
}

fn waiting(world: &World) -> impl Iterator<Item = Key> {
    world.pods_on("").filter(|row| waits(row)).map(|row| row.key())
}

/// A pod left its node, or came to one (which may be what an affinity asks for), or changed labels there.
fn makes_room(change: &Touched) -> bool {
    let used = |row: &Arc<Row>| !row.pod().node.is_empty() && !row.pod().is_over();
    let before = change.old.as_ref().is_some_and(used);
    let after = change.new.as_ref().is_some_and(used);
    let relabelled = matches!((&change.old, &change.new), (Some(old), Some(new)) if old.labels != new.labels);
    before && !after || after && relabelled
}

fn node_helps(change: &Touched) -> bool {
    match (&change.old, &change.new) {
        (None, Some(_)) => true,
        (Some(old), Some(new)) => {
            let (a, b) = (old.node(), new.node());
            a.allocatable != b.allocatable || a.taints != b.taints || a.unschedulable != b.unschedulable || old.labels != new.labels
        }
        (_, None) => false,
    }
}

/// What to do with one pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    Bind(String),
    Preempt {
        node: String,
        victims: Vec<Victim>,
        /// Why it fits nowhere as things are.
        message: String,
    },
    /// The message of the condition and the event.
    Unschedulable(String),
}

/// Nodes looked at closely: enough for a good choice, few enough to stay cheap.
fn enough(nodes: usize) -> usize {
    if nodes <= 100 {
        return nodes;
    }
    let percent = (50 - nodes as i64 / 125).max(5) as usize;
    (nodes * percent / 100).max(100)
}

pub fn decide(world: &World, row: &Row, pod: &Value, turn: &Turn) -> Decision {
    let total = world.count(&NODES);
    if total == 0 {
        return Decision::Unschedulable("no nodes available to schedule pods".into());
    }
    let wants = Wants::of(world, row, pod);
    let start = (turn.seed % total as u64) as usize;
    let mut fitting: Vec<&Arc<Row>> = Vec::new();
    let mut refused: Vec<(&Arc<Row>, Vec<Reason>)> = Vec::new();
    let limit = enough(total);
    for node in world.all(&NODES).skip(start).chain(world.all(&NODES).take(start)) {
        let reasons = filter::check(world, &wants, node);
        if reasons.is_empty() {
            fitting.push(node);
            if fitting.len() >= limit {
                break;
            }
        } else {
            refused.push((node, reasons));
        }
    }
    if let Some(node) = score::best(world, &wants, &fitting, turn) {
        return Decision::Bind(node.name.name.clone());
    }
    let message = filter::message(total, &refused);
    match preempt::plan(world, &wants, &refused) {
        Ok((node, victims)) => Decision::Preempt { node, victims, message },
        Err(why) => Decision::Unschedulable(format!("{message} {why}")),
    }
}

fn unschedulable(row: &Row, mut pod: Value, message: String, turn: &Turn) -> Vec<Action> {
    let mut actions = Vec::new();
    if let Some(note) = state(row, &mut pod, message, turn) {
        actions.push(Action::Event(note));
        actions.push(Action::Update { resource: &PODS, subresource: "status", object: pod, then: None });
    }
    actions.push(Action::RequeueAfter { ms: RETRY_MS });
    actions
}

/// States in the pod's status why it is not scheduled; says so if that is news.
fn state(row: &Row, pod: &mut Value, message: String, turn: &Turn) -> Option<Note> {
    let mut list = pod.list_at(&["status", "conditions"]).to_vec();
    let condition = Condition::new("PodScheduled", "False", "Unschedulable", message.clone());
    let news = conditions::set(&mut list, &condition, &rfc3339(turn.now()));
    observe(&mut list, "PodScheduled", pod);
    pod.set(&["status", "conditions"], list);
    news.then(|| warning(row, "FailedScheduling", message))
}

/// The condition is about the pod as it is now. No generation, no member: zero is left out on the wire.
fn observe(conditions: &mut [Value], kind: &str, pod: &Value) {
    let Some(generation) = pod.i64_at(&["metadata", "generation"]).filter(|g| *g > 0) else { return };
    conditions.iter_mut().filter(|c| c.str_at(&["type"]) == kind).for_each(|c| c.set(&["observedGeneration"], generation));
}

struct Replacement {
    node: String,
    victims: Vec<Victim>,
    message: String,
}

/// Says where the pod is to go, and makes room there.
fn replace(world: &World, row: &Row, mut pod: Value, to: Replacement, turn: &Turn) -> Vec<Action> {
    let Replacement { node, victims, message } = to;
    let mut actions: Vec<Action> = state(row, &mut pod, message, turn).map(Action::Event).into_iter().collect();
    if !actions.is_empty() || pod.str_at(&["status", "nominatedNodeName"]) != node {
        pod.set(&["status", "nominatedNodeName"], node.as_str());
        actions.push(Action::Update { resource: &PODS, subresource: "status", object: pod, then: None });
    }
    actions.extend(victims.iter().filter_map(|victim| disrupted(world.get(&victim.key)?, turn)));
    for Victim { key, uid } in &victims {
        let text = format!("Preempted by pod {} on node {node}", row.uid);
        let then = world.get(key).map(|victim| normal(victim, "Preempted", text));
        actions.push(Action::Delete { key: key.clone(), uid: uid.clone(), revision: None, policy: DeletePolicy::Default, then });
    }
    actions.push(Action::RequeueAfter { ms: 10_000 });
    actions
}

/// A victim's status says why it goes, for whoever counts failures.
fn disrupted(victim: &Row, turn: &Turn) -> Option<Action> {
    let mut pod = victim.value();
    let mut list = pod.list_at(&["status", "conditions"]).to_vec();
    let text = format!("{NAME}: preempting to accommodate a higher priority pod");
    let condition = Condition::new("DisruptionTarget", "True", "PreemptionByScheduler", text);
    conditions::set(&mut list, &condition, &rfc3339(turn.now())).then(|| {
        observe(&mut list, "DisruptionTarget", &pod);
        pod.set(&["status", "conditions"], list);
        Action::Update { resource: &PODS, subresource: "status", object: pod, then: None }
    })
}
