//! The thin async shell of the controller engine.
//!
//! One task owns a [`World`] and the [`Engine`]s over it: it takes changes from one informer per resource, asks the engines
//! for jobs, carries each job out in a task of its own under the controller's identity, and hands back one outcome per
//! action. It makes no choices: what a failure means is the engine's matter. A job whose task dies counts as silent, so no
//! outcome is ever lost. Start at [`Driver::start`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, SelectAll};
use futures_util::{Stream, StreamExt};
use tokio::task::{Id, JoinSet};
use tracing::{debug, info};

use super::client::Client;
use super::controller::{Action, Controller, DeletePolicy, Engine, Gate, Job, Key, Outcome, World};
use super::events::{Note, Recorder};
use super::informer::{Change, informer};
use super::object::Object;
use super::request::{Body, Options, PatchType, Request, Verb};
use super::resource::{self, Resource};
use super::status::Status;
use super::time::{Clock, SystemClock};
use super::value::Value;
use crate::task::{self, Shutdown};

/// Gives the client of a controller by its name.
pub type Clients = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// A running set of controllers; stops when told to or dropped.
#[derive(Debug)]
pub struct Driver {
    shutdown: Shutdown,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Driver {
    /// Starts `controllers` over one world that follows all their resources as `watcher`.
    pub fn start(name: &'static str, clients: Clients, watcher: &str, controllers: Vec<Box<dyn Controller>>) -> Driver {
        let shutdown = Shutdown::new();
        let seed = getrandom::u64().unwrap_or(0x5eed);
        let watcher = clients(watcher);
        let lanes: Vec<Lane> = controllers
            .into_iter()
            .map(|controller| {
                let name = controller.name();
                let client = clients(controller.identity());
                let recorder = Recorder::new(client.clone(), name, "");
                Lane { engine: Engine::new(controller, seed), doer: Doer { client, recorder } }
            })
            .collect();
        let stop = shutdown.clone();
        let task = task::spawn(name, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = Shell::new(watcher, lanes).run() => {}
            }
        });
        Driver { shutdown, task: Some(task) }
    }

    /// Stops deciding; jobs under way are dropped (their preconditions make that harmless).
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            // A panic in the task ended the process already.
            let _ = task.await;
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

struct Lane {
    engine: Engine,
    doer: Doer,
}

type Changes = SelectAll<std::pin::Pin<Box<dyn Stream<Item = (&'static Resource, Change)> + Send>>>;

struct Shell {
    world: World,
    lanes: Vec<Lane>,
    changes: Changes,
    jobs: JoinSet<Vec<Outcome>>,
    running: HashMap<Id, (usize, Job)>,
}

/// How many changes are taken in before decisions are made.
const BATCH: usize = 512;

impl Shell {
    fn new(watcher: Client, lanes: Vec<Lane>) -> Shell {
        let mut resources: Vec<&'static Resource> = Vec::new();
        for resource in lanes.iter().flat_map(|lane| lane.engine.resources()) {
            if !resources.contains(resource) {
                resources.push(resource);
            }
        }
        let changes = stream::select_all(resources.iter().map(|r| follow(&watcher, r)));
        Shell { world: World::new(&resources), lanes, changes, jobs: JoinSet::new(), running: HashMap::new() }
    }

    async fn run(mut self) {
        loop {
            self.decide();
            let due = self.lanes.iter().filter_map(|lane| lane.engine.due_ms()).min();
            let wait = due.map_or(Duration::from_secs(3600), |at| Duration::from_millis((at - now_ms()).max(0) as u64));
            tokio::select! {
                change = self.changes.next() => match change {
                    Some((resource, change)) => self.take_in(resource, change),
                    None => return info!("controllers end: no informers left"),
                },
                Some(done) = self.jobs.join_next_with_id() => self.finish(done),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Takes in this change and what else is already there.
    fn take_in(&mut self, resource: &'static Resource, change: Change) {
        self.world.tick(now_ms());
        let mut next = Some((resource, change));
        let mut left = BATCH;
        while let Some((resource, change)) = next {
            for touched in self.world.apply(resource, change) {
                for lane in &mut self.lanes {
                    lane.engine.changed(&touched, &self.world);
                }
            }
            left -= 1;
            next = if left == 0 { None } else { futures_util::FutureExt::now_or_never(self.changes.next()).flatten() };
        }
    }

    fn decide(&mut self) {
        let now_ms = now_ms();
        for (i, lane) in self.lanes.iter_mut().enumerate() {
            while let Some(job) = lane.engine.poll(&mut self.world, now_ms) {
                let doer = lane.doer.clone();
                let handle = self.jobs.spawn(carry_out(doer, job.clone()));
                self.running.insert(handle.id(), (i, job));
            }
        }
    }

    fn finish(&mut self, done: Result<(Id, Vec<Outcome>), tokio::task::JoinError>) {
        let (id, outcomes) = match done {
            Ok((id, outcomes)) => (id, Some(outcomes)),
            Err(error) => (error.id(), None),
        };
        let Some((i, job)) = self.running.remove(&id) else { return };
        let silent = || job.actions.iter().map(|_| Outcome::Unknown(Status::internal("the job's task died"))).collect();
        let outcomes = outcomes.unwrap_or_else(silent);
        let lane = &mut self.lanes[i];
        for (action, outcome) in job.actions.iter().zip(&outcomes) {
            if let Outcome::Failed(status) | Outcome::Unknown(status) = outcome {
                debug!(controller = lane.engine.name(), key = %job.key, action = action_name(action), error = %status, "action failed");
            }
        }
        lane.engine.done(&job.key, job.id, outcomes, &mut self.world, now_ms());
        for note in lane.engine.take_notes() {
            lane.doer.note(&note);
        }
    }
}

fn now_ms() -> i64 {
    let now = SystemClock.now();
    now.seconds * 1000 + i64::from(now.nanos / 1_000_000)
}

fn follow(watcher: &Client, resource: &'static Resource) -> std::pin::Pin<Box<dyn Stream<Item = (&'static Resource, Change)> + Send>> {
    let mut changes = informer(watcher.clone(), resource, Options::default());
    Box::pin(stream::poll_fn(move |cx| changes.poll_recv(cx)).map(move |change| (resource, change)))
}

fn action_name(action: &Action) -> &'static str {
    match action {
        Action::Create { .. } => "create",
        Action::Update { .. } => "update",
        Action::Patch { .. } => "patch",
        Action::Delete { .. } => "delete",
        Action::Empty { .. } => "empty",
        Action::Absent { .. } => "absent",
        Action::Bind { .. } => "bind",
        Action::Event(_) => "event",
        Action::RequeueAfter { .. } => "requeue",
    }
}

/// Carries actions out as one controller.
#[derive(Clone)]
struct Doer {
    client: Client,
    recorder: Recorder,
}

/// Longest run of independent actions done at once; runs start with one and double while all is well.
const AT_ONCE: usize = 16;
const TIMEOUT: Duration = Duration::from_secs(30);

async fn carry_out(doer: Doer, job: Job) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(job.actions.len());
    let mut pace = Pace::of(&job);
    let mut rest = job.actions.as_slice();
    while !rest.is_empty() {
        let (run, after) = rest.split_at(pace.next(rest));
        let results = futures_util::future::join_all(run.iter().map(|action| doer.timed(action, job.attempt))).await;
        let stop = results.iter().any(|outcome| !matches!(outcome, Outcome::Landed(_)));
        outcomes.extend(results);
        rest = after;
        if stop {
            break;
        }
    }
    outcomes.resize_with(job.actions.len(), || Outcome::Skipped);
    outcomes
}

/// How many actions of a job go at once. What does not land ends the job, but what went with it was sent. Public for the
/// simulator.
pub struct Pace {
    width: usize,
}

impl Pace {
    /// What is in doubt of an earlier attempt went at once then, too.
    pub fn of(job: &Job) -> Pace {
        Pace { width: if job.attempt == 0 { 1 } else { AT_ONCE } }
    }

    /// The length of the run that begins `rest`, which is not empty.
    pub fn next(&mut self, rest: &[Action]) -> usize {
        let same = rest.iter().take_while(|a| is_parallel(&rest[0], a)).count().clamp(1, self.width);
        self.width = (self.width * 2).min(AT_ONCE);
        same
    }
}

/// Creations of one kind, and deletions of one kind, do not depend on each other.
fn is_parallel(first: &Action, other: &Action) -> bool {
    match (first, other) {
        (Action::Create { resource: a, .. }, Action::Create { resource: b, .. }) => a == b,
        (Action::Delete { key: a, .. }, Action::Delete { key: b, .. }) => a.resource == b.resource,
        (Action::Patch { key: a, .. }, Action::Patch { key: b, .. }) => a.resource == b.resource && a != b,
        _ => false,
    }
}

impl Doer {
    fn note(&self, note: &Note) {
        self.recorder.event(&note.object, note.type_, &note.reason, note.message.clone());
    }

    async fn timed(&self, action: &Action, attempt: u32) -> Outcome {
        if let Action::Event(note) = action {
            self.note(note);
        }
        let hand = Hand { client: &self.client, attempt };
        let outcome = match tokio::time::timeout(TIMEOUT, hand.act(action)).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Unknown(Status::timeout("no answer in time", 1)),
        };
        if let (Outcome::Landed(_), Some(note)) = (&outcome, success_note(action)) {
            self.note(note);
        }
        outcome
    }
}

/// Carries one action out over a client. Public for the simulator, which brings its own transport.
pub struct Hand<'a> {
    pub client: &'a Client,
    /// Of the job: from the second on, what is already there may be our own.
    pub attempt: u32,
}

impl Hand<'_> {
    pub async fn act(&self, action: &Action) -> Outcome {
        match self.perform(action).await {
            Ok(gate) => Outcome::Landed(gate),
            Err(status) if is_silence(&status, self.attempt) => Outcome::Unknown(status),
            Err(status) => Outcome::Failed(status),
        }
    }

    async fn perform(&self, action: &Action) -> Result<Option<Gate>, Status> {
        match action {
            Action::Create { resource, object, .. } => self.create(resource, object).await,
            Action::Update { resource, subresource, object, .. } => {
                self.client.update(resource, subresource, object.clone()).await.map(|o| seen(resource, &o))
            }
            Action::Patch { key, subresource, patch } => {
                let Key { resource, name } = key;
                let patched = self.client.patch(resource, &name.namespace, &name.name, subresource, PatchType::Merge, patch.clone()).await;
                match patched {
                    // Nothing left to patch.
                    Err(status) if status.code == 404 => Ok(None),
                    other => other.map(|o| seen(resource, &o)),
                }
            }
            Action::Delete { key, uid, revision, policy, .. } => self.delete(key, uid, *revision, *policy).await,
            Action::Empty { namespace, resources } => self.empty(namespace, resources).await.map(|()| None),
            Action::Absent { owner, uid } => self.absent(owner, uid).await.map(|()| None),
            Action::Bind { pod, uid, node, .. } => self.bind(pod, uid, node).await,
            Action::Event(_) | Action::RequeueAfter { .. } => Ok(None),
        }
    }

    async fn create(&self, resource: &'static Resource, object: &Value) -> Result<Option<Gate>, Status> {
        let namespace = object.str_at(&["metadata", "namespace"]);
        match self.client.create(resource, namespace, object.clone()).await {
            Ok(made) => Ok(seen(resource, &made)),
            Err(status) if status.reason == "AlreadyExists" && self.attempt > 0 => {
                let there = self.client.get(resource, namespace, object.str_at(&["metadata", "name"])).await?;
                if is_ours(&there, object) { Ok(seen(resource, &there)) } else { Err(status) }
            }
            Err(status) => Err(status),
        }
    }

    async fn delete(&self, key: &Key, uid: &str, revision: Option<u64>, policy: DeletePolicy) -> Result<Option<Gate>, Status> {
        let mut options = crate::value!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}});
        if let Some(revision) = revision {
            options.set(&["preconditions", "resourceVersion"], revision.to_string());
        }
        match policy {
            DeletePolicy::Default => {}
            DeletePolicy::Background => options.set(&["propagationPolicy"], "Background"),
            DeletePolicy::Foreground => options.set(&["propagationPolicy"], "Foreground"),
            DeletePolicy::Orphan => options.set(&["propagationPolicy"], "Orphan"),
            DeletePolicy::Force => options.set(&["gracePeriodSeconds"], 0),
        }
        match self.client.delete(key.resource, &key.name.namespace, &key.name.name, options).await {
            Ok(()) => Ok(Some(Gate::Deleted { key: key.clone(), uid: uid.to_string() })),
            Err(status) if status.code == 404 => Ok(Some(Gate::Deleted { key: key.clone(), uid: uid.to_string() })),
            Err(status) => Err(status),
        }
    }

    async fn bind(&self, pod: &Key, uid: &str, node: &str) -> Result<Option<Gate>, Status> {
        let Key { resource, name } = pod;
        let body = crate::value!({"apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": name.name, "namespace": name.namespace, "uid": uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
        let bound = Gate::Bound { pod: pod.clone(), uid: uid.to_string() };
        match self.client.create_sub(resource, &name.namespace, &name.name, "binding", body).await {
            Ok(_) => Ok(Some(bound)),
            Err(status) if status.code == 409 && self.attempt > 0 => {
                let there = self.client.get(resource, &name.namespace, &name.name).await?;
                let landed = there.uid() == uid && there.value().str_at(&["spec", "nodeName"]) == node;
                if landed { Ok(Some(bound)) } else { Err(status) }
            }
            Err(status) => Err(status),
        }
    }

    async fn empty(&self, namespace: &str, resources: &[&'static Resource]) -> Result<(), Status> {
        let mut left = Vec::new();
        for resource in resources {
            if self.remaining(namespace, resource).await? == 0 {
                continue;
            }
            let body = crate::value!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
            let request = self.client.request(Verb::DeleteCollection, resource, namespace, "");
            self.client.call(Request { body: Body::Value(body), ..request }).await?;
            if self.remaining(namespace, resource).await? > 0 {
                left.push(resource.qualified());
            }
        }
        if left.is_empty() { Ok(()) } else { Err(Status::new(409, "Conflict", format!("still there: {}", left.join(", ")))) }
    }

    async fn remaining(&self, namespace: &str, resource: &'static Resource) -> Result<usize, Status> {
        let options = Options { limit: Some(1), ..Options::default() };
        match self.client.list(resource, namespace, options).await {
            Ok(list) => Ok(list.items.len()),
            Err(status) if matches!(status.code, 404 | 405) => Ok(0),
            Err(status) => Err(status),
        }
    }

    async fn absent(&self, owner: &Key, uid: &str) -> Result<(), Status> {
        match self.client.get(owner.resource, &owner.name.namespace, &owner.name.name).await {
            Err(status) if status.code == 404 => Ok(()),
            Err(status) => Err(status),
            Ok(there) if !uid.is_empty() && there.uid() != uid => Ok(()),
            Ok(_) => Err(Status::conflict(owner.resource, &owner.name.name, "the owner is alive")),
        }
    }
}

fn seen(resource: &'static Resource, object: &Object) -> Option<Gate> {
    Some(Gate::Seen { key: Key { resource, name: object.key() }, revision: object.revision })
}

/// Whether what is there under our name is what we tried to create: same controller, same marks, not on its way out.
fn is_ours(there: &Object, wanted: &Value) -> bool {
    let there = there.value();
    let controller = |v: &Value| {
        let owners = v.list_at(&["metadata", "ownerReferences"]).iter();
        owners.filter(|o| o.bool_at(&["controller"])).map(|o| o.str_at(&["uid"]).to_string()).next()
    };
    let labels = |v: &Value| v.at(&["metadata", "labels"]).cloned();
    there.str_at(&["metadata", "deletionTimestamp"]).is_empty()
        && controller(&there) == controller(wanted)
        && labels(&there) == labels(wanted)
}

fn success_note(action: &Action) -> Option<&Note> {
    match action {
        Action::Create { then, .. } | Action::Update { then, .. } | Action::Delete { then, .. } | Action::Bind { then, .. } => {
            then.as_ref()
        }
        Action::Patch { .. } | Action::Empty { .. } | Action::Absent { .. } | Action::Event(_) | Action::RequeueAfter { .. } => None,
    }
}

/// Answers that leave open whether the write happened. An error of the server's own that does not go away is an answer.
fn is_silence(status: &Status, attempt: u32) -> bool {
    match status.code {
        500 => attempt < 5,
        502..=504 => true,
        _ => false,
    }
}

/// The resources a delete-collection applies to, namespaced ones, each once: what a namespace may hold.
pub fn deletable_in_namespaces() -> Vec<&'static Resource> {
    let deletable = |r: &&&Resource| r.namespaced && ["deletecollection", "list"].iter().all(|v| r.verbs.contains(v)) && is_storage(r);
    resource::ALL.iter().filter(deletable).copied().collect()
}

/// The row objects are stored in, of the resources that can be deleted and followed.
pub fn collectable() -> Vec<&'static Resource> {
    let usable = |r: &&&Resource| ["delete", "list", "watch"].iter().all(|v| r.verbs.contains(v)) && is_storage(r);
    resource::ALL.iter().filter(usable).copied().collect()
}

fn is_storage(r: &Resource) -> bool {
    r.version == r.storage_version && r.group == r.storage_group
}
