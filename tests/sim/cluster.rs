//! The simulated cluster: controllers with lagging worlds, jobs under way, nodes, users, and the order of it all by seed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use futures_util::FutureExt;

use coracle::api::cidr::Allocator;
use coracle::api::client::Client;
use coracle::api::controller::{Action, Controller, Engine, Job, Outcome, World};
use coracle::api::driver::{Hand, Pace};
use coracle::api::informer::Change;
use coracle::api::object::Object;
use coracle::api::request::User;
use coracle::api::resource::{self, Resource};
use coracle::api::status::Status;
use coracle::api::time::Time;
use coracle::api::value::Value;
use coracle::api::world::{Key, PodFacts};
use coracle::server::{controllers, scheduler};
use coracle::store::{StoreEvent, Watcher};
use coracle::value;

use super::api::{self, Api, KINDS, State, Stored, is_deleting};

pub struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// One controller process: an engine over a world of its own.
struct Lane {
    make: fn() -> Box<dyn Controller>,
    engine: Engine,
    world: World,
    follows: Vec<Follow>,
    /// Jobs under way.
    jobs: Vec<Running>,
}

/// One watch of a controller.
struct Follow {
    /// The place of its resource in [`KINDS`].
    kind: usize,
    watcher: Watcher,
    /// Sent, but not seen yet.
    arrived: VecDeque<StoreEvent>,
    /// The revision the world has seen.
    at: u64,
}

/// A node's addresses, given in turn, and whose they are.
struct Addresses {
    free: Allocator,
    cursor: u64,
    leases: BTreeMap<String, std::net::IpAddr>,
}

struct Running {
    job: Job,
    outcomes: Vec<Outcome>,
    pace: Pace,
    /// How many more actions of the current run are to be sent.
    run: usize,
    /// Something did not land: this run is the last.
    stopped: bool,
}

pub struct Cluster {
    api: Arc<Api>,
    client: Client,
    lanes: Vec<Lane>,
    rng: Rng,
    addresses: BTreeMap<&'static str, Addresses>,
    template: i64,
    storm: bool,
    trace: VecDeque<String>,
}

const NODES: [(&str, i64); 3] = [("n1", 8), ("n2", 4), ("n3", 4)];
const STORM_STEPS: usize = 400;
const CALM_STEPS: usize = 30_000;

fn lanes() -> Vec<fn() -> Box<dyn Controller>> {
    vec![
        || Box::new(controllers::deployment::Deployments),
        || Box::new(controllers::replicaset::REPLICA_SETS),
        || Box::new(scheduler::Scheduler),
        || Box::new(controllers::endpointslice::EndpointSlices),
        || Box::new(controllers::endpoints::Endpoints),
        || Box::new(controllers::namespace::Namespaces),
        || Box::new(controllers::service_account::ServiceAccounts),
        || Box::new(controllers::garbage_collector::GarbageCollector::default()),
        || Box::new(controllers::pod_gc::PodGc),
    ]
}

impl Cluster {
    pub fn new(seed: u64) -> Cluster {
        let api = api::new();
        let client = Client::new(api.clone(), User::master());
        let mut rng = Rng(seed);
        {
            let mut state = api.0.lock().unwrap();
            for (node, cpu) in NODES {
                let node = value!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node},
                    "status": {"allocatable": {"cpu": cpu.to_string(), "memory": "8Gi", "pods": "110"},
                        "conditions": [{"type": "Ready", "status": "True"}]}});
                state.create(&resource::NODES, "", node).unwrap();
            }
            for namespace in ["a", "b"] {
                make_namespace(&mut state, namespace);
            }
        }
        let lanes = lanes().into_iter().map(|make| Lane::start(make, &api, rng.next())).collect();
        let node = |i: usize| Addresses {
            free: Allocator::pods(format!("10.42.{i}.0/27").parse().expect("a range")),
            cursor: 0,
            leases: BTreeMap::new(),
        };
        let addresses = NODES.iter().enumerate().map(|(i, (name, _))| (*name, node(i))).collect();
        Cluster { api, client, lanes, rng, addresses, template: 0, storm: true, trace: VecDeque::new() }
    }

    fn state<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.api.0.lock().unwrap())
    }

    fn now_ms(&self) -> i64 {
        self.state(|s| s.now_ms)
    }

    pub fn run(mut self) -> Result<(), String> {
        for _ in 0..STORM_STEPS {
            self.step();
            self.check()?;
        }
        self.storm = false;
        for _ in 0..CALM_STEPS {
            let busy = self.step();
            self.check()?;
            if !busy && self.is_quiet() {
                return self.settled();
            }
        }
        Err(self.story(format!("not quiet after {CALM_STEPS} steps of calm: {}", self.who_is_busy())))
    }

    fn story(&self, why: String) -> String {
        if std::env::var("SIM_SEED").is_ok() {
            format!("{why}\n{}", self.trace.iter().cloned().collect::<Vec<_>>().join("\n"))
        } else {
            why
        }
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if std::env::var("SIM_SEED").is_ok() {
            self.trace.push_back(text());
            if self.trace.len() > 400 {
                self.trace.pop_front();
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        let broken = self.state(|s| s.broken.first().cloned());
        broken.map_or(Ok(()), |why| Err(self.story(why)))
    }

    /// One thing happens; false if nothing could.
    fn step(&mut self) -> bool {
        let ms = 1 + self.rng.below(50) as i64;
        self.state(|s| s.now_ms += ms);
        if self.storm {
            match self.rng.below(100) {
                0..4 => return self.user(),
                4..6 => return self.misfortune(),
                6..7 if self.rng.chance(80) => return self.crash(),
                6..7 => return self.restart(),
                _ => {}
            }
        }
        let first = self.rng.below(4);
        for i in 0..4 {
            let did = match (first + i) % 4 {
                0 => self.watch(),
                1 => self.decide(),
                2 => self.act(),
                _ => self.kubelet(),
            };
            if did {
                return true;
            }
        }
        // Nothing to do now: let time pass to the next timer, but not to distant retries.
        let due = self.lanes.iter().filter_map(|lane| lane.engine.due_ms()).min();
        match due {
            Some(at) if at < self.now_ms() + 120_000 => {
                self.state(|s| s.now_ms = s.now_ms.max(at));
                true
            }
            _ => false,
        }
    }

    /// Some world sees a little more.
    fn watch(&mut self) -> bool {
        let offset = self.rng.below(self.lanes.len());
        for i in 0..self.lanes.len() {
            let n = (i + offset) % self.lanes.len();
            let most = 1 + self.rng.below(4);
            let lane = &mut self.lanes[n];
            let mut state = self.api.0.lock().unwrap();
            let behind: Vec<usize> = lane.behind(&state);
            if behind.is_empty() {
                continue;
            }
            let follow = behind[self.rng.below(behind.len())];
            if let Err(why) = lane.take(&state, follow, most) {
                state.broken.push(why);
            }
            return true;
        }
        false
    }

    /// The API server starts again: no watch goes on.
    fn restart(&mut self) -> bool {
        self.state(|s| {
            s.store.compact();
            s.store.cut_watchers();
        });
        self.note(|| "the API server restarts".to_string());
        true
    }

    fn decide(&mut self) -> bool {
        let offset = self.rng.below(self.lanes.len());
        let now_ms = self.now_ms();
        for i in 0..self.lanes.len() {
            let n = (i + offset) % self.lanes.len();
            let lane = &mut self.lanes[n];
            if let Some(job) = lane.engine.poll(&mut lane.world, now_ms) {
                let text = format!("{} decides {} (attempt {}): {}", lane.engine.name(), job.key, job.attempt, brief(&job));
                let pace = Pace::of(&job);
                lane.jobs.push(Running { job, outcomes: Vec::new(), pace, run: 0, stopped: false });
                self.note(|| text);
                return true;
            }
        }
        false
    }

    /// The next action of some job meets the API, or gets lost on the way there or back.
    fn act(&mut self) -> bool {
        let busy: Vec<usize> = (0..self.lanes.len()).filter(|n| !self.lanes[*n].jobs.is_empty()).collect();
        let Some(n) = busy.get(self.rng.below(busy.len())).copied() else { return false };
        let j = self.rng.below(self.lanes[n].jobs.len());
        let fate = if self.storm { self.rng.below(20) } else { 20 };
        let now_ms = self.now_ms();
        let running = &mut self.lanes[n].jobs[j];
        let rest = &running.job.actions[running.outcomes.len()..];
        if running.run == 0 && !running.stopped {
            running.run = running.pace.next(rest);
        }
        let action = &rest[0];
        let lost = || Outcome::Unknown(Status::timeout("lost", 1));
        let outcome = if running.run == 0 {
            Outcome::Skipped
        } else if fate == 0 {
            lost()
        } else {
            let hand = Hand { client: &self.client, attempt: running.job.attempt };
            let done = hand.act(action).now_or_never().expect("the simulated API answers at once");
            if fate == 1 { lost() } else { done }
        };
        running.run = running.run.saturating_sub(1);
        running.stopped |= !matches!(outcome, Outcome::Landed(_));
        let text = format!("  {} {}: {}", running.job.key, running.outcomes.len(), tell(&outcome));
        running.outcomes.push(outcome);
        if running.outcomes.len() == running.job.actions.len() {
            let lane = &mut self.lanes[n];
            let Running { job, outcomes, .. } = lane.jobs.swap_remove(j);
            lane.engine.done(&job.key, job.id, outcomes, &mut lane.world, now_ms);
            lane.engine.take_notes();
        }
        self.note(|| text);
        true
    }

    /// Some pod on a node moves on: started, or stopped because it is being deleted.
    fn kubelet(&mut self) -> bool {
        let moves = |pod: &PodFacts| {
            let waits = pod.phase == "Pending" || pod.phase == "Running" && !pod.ready;
            !pod.node.is_empty() && (pod.deletion.is_some() || waits)
        };
        let able: Vec<Key> = self.state(|s| s.pods().filter(|(_, _, pod)| moves(pod)).map(|(key, _, _)| key.clone()).collect());
        let Some(key) = able.get(self.rng.below(able.len())).cloned() else { return false };
        let mut pod = self.state(|s| s.objects[&key].value.clone());
        let uid = pod.str_at(&["metadata", "uid"]).to_string();
        if is_deleting(&pod) {
            self.release_addresses(Some(&uid));
            self.state(|s| s.delete(&key, &value!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}))).expect("the pod is there");
            return true;
        }
        if pod.str_at(&["status", "podIP"]).is_empty() {
            self.release_addresses(None);
            let node = self.addresses.get_mut(pod.str_at(&["spec", "nodeName"])).expect("a node of ours");
            let Some(ip) = node.give(&uid) else { return false };
            pod.set(&["status", "podIP"], ip.to_string());
        }
        self.report(&key, pod, "Running", "True");
        true
    }

    /// Takes back the addresses of pods that are over or gone, and of `stopped`.
    fn release_addresses(&mut self, stopped: Option<&str>) {
        let state = self.api.0.lock().unwrap();
        let live: BTreeMap<&str, bool> = state.pods().map(|(_, pod, facts)| (pod.str_at(&["metadata", "uid"]), !facts.is_over())).collect();
        for node in self.addresses.values_mut() {
            let Addresses { free, leases, .. } = node;
            leases.retain(|uid, ip| {
                let keeps = Some(uid.as_str()) != stopped && live.get(uid.as_str()) == Some(&true);
                keeps || !free.release(*ip)
            });
        }
    }

    fn report(&mut self, key: &Key, mut pod: Value, phase: &str, ready: &str) {
        let now = Time::from_seconds(self.now_ms() / 1000).to_string();
        pod.set(&["status", "phase"], phase);
        let mut condition = value!({"type": "Ready", "status": ready});
        condition.set(&["lastTransitionTime"], now);
        pod.set(&["status", "conditions"], vec![condition]);
        self.put_status(key, pod);
    }

    fn put_status(&mut self, key: &Key, object: Value) {
        let sent = self.client.update(key.resource, "status", object).now_or_never().expect("answers at once");
        assert!(sent.is_ok() || sent.is_err_and(|e| e.code == 404 || e.code == 409));
        let _ = key;
    }

    /// Pods fail, become unready, vanish.
    fn misfortune(&mut self) -> bool {
        let keys = self.state(|s| s.keys(&resource::PODS, ""));
        let Some(key) = keys.get(self.rng.below(keys.len())).cloned() else { return false };
        let Stored { value: pod, facts, .. } = self.state(|s| s.objects[&key].clone());
        let facts = facts.expect("a pod");
        if facts.node.is_empty() || facts.is_over() {
            return false;
        }
        match self.rng.below(3) {
            0 => self.report(&key, pod, "Failed", "False"),
            1 => self.report(&key, pod, "Running", "False"),
            _ => drop(self.state(|s| s.delete(&key, &Value::map()))),
        }
        true
    }

    /// A controller dies; what it had under way lands or not; a new one lists everything.
    fn crash(&mut self) -> bool {
        let n = self.rng.below(self.lanes.len());
        for running in std::mem::take(&mut self.lanes[n].jobs) {
            if let Some(action) = running.job.actions.get(running.outcomes.len())
                && !running.stopped
                && self.rng.chance(50)
            {
                let hand = Hand { client: &self.client, attempt: running.job.attempt };
                hand.act(action).now_or_never().expect("answers at once");
            }
        }
        let seed = self.rng.next();
        let name = self.lanes[n].engine.name();
        self.lanes[n] = Lane::start(self.lanes[n].make, &self.api, seed);
        self.note(|| format!("{name} crashes"));
        true
    }

    fn user(&mut self) -> bool {
        let namespace = ["a", "b"][self.rng.below(2)];
        let name = ["web", "db"][self.rng.below(2)];
        let key = Key::new(&resource::DEPLOYMENTS, namespace, name);
        let replicas = self.rng.below(5) as i64;
        let there = self.state(|s| s.objects.get(&key).map(|d| d.value.clone()));
        let choice = self.rng.below(12);
        self.note(|| format!("user: {choice} on {key}, {replicas}"));
        match (choice, there) {
            (0, _) => self.state(|s| {
                let home = Key::new(&resource::NAMESPACES, "", namespace);
                if s.objects.contains_key(&home) { drop(s.delete(&home, &Value::map())) } else { make_namespace(s, namespace) }
            }),
            (1, Some(_)) => {
                let policy = ["Background", "Foreground", "Orphan"][self.rng.below(3)];
                drop(self.state(|s| s.delete(&key, &value!({"propagationPolicy": policy}))));
            }
            (_, None) => {
                let made =
                    self.state(|s| s.create(&resource::DEPLOYMENTS, namespace, deployment(namespace, name, replicas, self.template)));
                if made.is_ok() {
                    self.state(|s| drop(s.create(&resource::SERVICES, namespace, service(namespace, name))));
                }
            }
            (choice, Some(mut d)) => {
                if choice < 7 {
                    d.set(&["spec", "replicas"], replicas);
                } else {
                    self.template = (self.template + 1) % 5;
                    d.set(&["spec", "template", "metadata", "annotations", "version"], self.template.to_string());
                }
                drop(self.client.update(&resource::DEPLOYMENTS, "", d).now_or_never().expect("answers at once"));
            }
        }
        true
    }

    fn is_quiet(&self) -> bool {
        let state = self.api.0.lock().unwrap();
        self.lanes.iter().all(|lane| lane.jobs.is_empty() && lane.engine.is_idle() && lane.behind(&state).is_empty())
    }

    fn who_is_busy(&self) -> String {
        let state = self.api.0.lock().unwrap();
        let busy = self.lanes.iter().map(|lane| {
            let jobs: Vec<String> = lane.jobs.iter().map(|r| format!("{} {}", r.job.key, brief(&r.job))).collect();
            format!("{}: idle {}, behind {}, jobs {jobs:?}", lane.engine.name(), lane.engine.is_idle(), lane.behind(&state).len())
        });
        busy.collect::<Vec<_>>().join("; ")
    }

    /// What calm must have led to.
    fn settled(&self) -> Result<(), String> {
        let state = self.api.0.lock().unwrap();
        let fail = |why: String| Err(self.story(why));
        for (key, stored) in &state.objects {
            if is_deleting(&stored.value) {
                return fail(format!("{key} is still being deleted: {}", stored.value));
            }
        }
        let uids: BTreeMap<String, &Key> =
            state.objects.iter().map(|(key, s)| (s.value.str_at(&["metadata", "uid"]).to_string(), key)).collect();
        for (key, stored) in &state.objects {
            let owners = stored.value.list_at(&["metadata", "ownerReferences"]);
            if !owners.is_empty() && !owners.iter().any(|o| uids.contains_key(o.str_at(&["uid"]))) {
                return fail(format!("{key} has only absent owners"));
            }
        }
        let mut ips = BTreeMap::new();
        for pod in state.all(&resource::PODS) {
            let ip = pod.str_at(&["status", "podIP"]);
            if !ip.is_empty() && ips.insert(ip.to_string(), pod.str_at(&["metadata", "name"])).is_some() {
                return fail(format!("two pods have {ip}"));
            }
        }
        for d in state.all(&resource::DEPLOYMENTS) {
            let (name, wanted) = (d.str_at(&["metadata", "name"]), d.i64_at(&["spec", "replicas"]).unwrap());
            let count = |field| d.i64_at(&["status", field]).unwrap_or(0);
            let counts = (count("replicas"), count("updatedReplicas"), count("availableReplicas"));
            if counts != (wanted, wanted, wanted) {
                return fail(format!("deployment {name} wants {wanted} and has (all, updated, available) {counts:?}"));
            }
            let version = |v: &Value| v.str_at(&["metadata", "annotations", "version"]).to_string();
            let namespace = d.str_at(&["metadata", "namespace"]);
            let live = |p: &&Value| p.str_at(&["metadata", "namespace"]) == namespace && p.str_at(&["metadata", "labels", "app"]) == name;
            let active = state.pods().filter(|(_, _, facts)| facts.is_active()).map(|(_, pod, _)| pod);
            let pods: Vec<&Value> = active.filter(live).collect();
            let template = version(d.at(&["spec", "template"]).unwrap());
            if pods.len() as i64 != wanted || pods.iter().any(|p| version(p) != template) {
                return fail(format!("deployment {name} wants {wanted} pods of version {template}; {} live", pods.len()));
            }
            let mut here = state.all(&resource::ENDPOINTSLICES).filter(|s| {
                s.str_at(&["metadata", "namespace"]) == namespace && s.str_at(&["metadata", "labels", "kubernetes.io/service-name"]) == name
            });
            let listed: usize = here.by_ref().map(|s| s.list_at(&["endpoints"]).len()).sum();
            if listed as i64 != wanted {
                return fail(format!("service {name} lists {listed} endpoints for {wanted} pods"));
            }
        }
        for namespace in state.all(&resource::NAMESPACES) {
            let name = namespace.str_at(&["metadata", "name"]);
            if !state.objects.contains_key(&Key::new(&resource::SERVICEACCOUNTS, name, "default")) {
                return fail(format!("namespace {name} has no default service account"));
            }
        }
        Ok(())
    }
}

impl Addresses {
    fn give(&mut self, uid: &str) -> Option<std::net::IpAddr> {
        let ip = self.free.allocate(self.cursor).ok()?;
        self.cursor = self.free.after(ip);
        self.leases.insert(uid.to_string(), ip);
        Some(ip)
    }
}

impl Follow {
    fn start(state: &State, kind: usize) -> Follow {
        let at = state.store.revision();
        let watcher = state.store.watch(api::prefix(KINDS[kind]).as_bytes(), at).expect("the present is there");
        Follow { kind, watcher, arrived: VecDeque::new(), at }
    }

    fn is_behind(&self, state: &State) -> bool {
        state.ledger[self.kind].last().is_some_and(|last| *last > self.at)
    }
}

impl Lane {
    fn start(make: fn() -> Box<dyn Controller>, api: &Arc<Api>, seed: u64) -> Lane {
        let state = api.0.lock().unwrap();
        let engine = Engine::new(make(), seed);
        let follows = (0..KINDS.len()).filter(|k| engine.resources().contains(&KINDS[*k])).map(|k| Follow::start(&state, k)).collect();
        let mut lane = Lane { make, world: World::new(engine.resources()), engine, follows, jobs: Vec::new() };
        lane.world.tick(state.now_ms);
        for resource in lane.engine.resources().to_vec() {
            lane.list(&state, resource);
        }
        lane
    }

    fn list(&mut self, state: &State, resource: &'static Resource) {
        self.feed(resource, Change::Reset);
        for (_, stored) in state.rows(resource) {
            self.feed(resource, Change::Set(stored.object.clone()));
        }
        self.feed(resource, Change::Synced(state.store.revision()));
    }

    fn feed(&mut self, resource: &'static Resource, change: Change) {
        for touched in self.world.apply(resource, change) {
            self.engine.changed(&touched, &self.world);
        }
    }

    /// The watches that have something to tell.
    fn behind(&self, state: &State) -> Vec<usize> {
        (0..self.follows.len()).filter(|f| self.follows[*f].is_behind(state)).collect()
    }

    /// Sees up to `most` more events, or lists again if the watch was cut. Each revision comes once, in order, none is missing.
    fn take(&mut self, state: &State, follow: usize, most: usize) -> Result<(), String> {
        self.world.tick(state.now_ms);
        let Follow { kind, watcher, arrived, .. } = &mut self.follows[follow];
        let resource = KINDS[*kind];
        if arrived.is_empty() {
            match watcher.try_next() {
                Ok(events) => arrived.extend(events),
                Err(_) => {
                    self.follows[follow] = Follow::start(state, *kind);
                    self.list(state, resource);
                    return Ok(());
                }
            }
        }
        if arrived.is_empty() {
            return Err(format!("the {resource} watch of {} stays silent", self.engine.name()));
        }
        let ledger = &state.ledger[*kind];
        for _ in 0..most {
            let Follow { arrived, at, .. } = &mut self.follows[follow];
            let expected = ledger.get(ledger.partition_point(|revision| revision <= at));
            let Some(event) = arrived.pop_front() else { break };
            if Some(&event.revision) != expected {
                let (name, saw) = (self.engine.name(), event.revision);
                return Err(format!("the {resource} watch of {name} saw {saw} after {at}, where {expected:?} was next"));
            }
            *at = event.revision;
            let object = |bytes| Object { resource, bytes, revision: event.revision };
            let change = match (event.value, event.previous) {
                (Some(value), _) => Change::Set(object(value)),
                (None, Some(previous)) => Change::Gone(object(previous.value)),
                (None, None) => return Err(format!("{resource} {} was deleted, but never there", event.revision)),
            };
            self.feed(resource, change);
        }
        Ok(())
    }
}

fn make_namespace(state: &mut State, name: &str) {
    let namespace = value!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "status": {"phase": "Active"}});
    drop(state.create(&resource::NAMESPACES, "", namespace));
}

fn deployment(namespace: &str, name: &str, replicas: i64, template: i64) -> Value {
    value!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "revisionHistoryLimit": 2, "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"type": if name == "db" { "Recreate" } else { "RollingUpdate" }},
            "template": {"metadata": {"labels": {"app": name}, "annotations": {"version": template.to_string()}},
                "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "500m"}}}]}}}})
}

fn service(namespace: &str, name: &str) -> Value {
    value!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "protocol": "TCP"}], "clusterIP": "10.43.0.9"}})
}

fn brief(job: &Job) -> String {
    job.actions.iter().map(one).collect::<Vec<_>>().join(" | ")
}

fn one(action: &Action) -> String {
    match action {
        Action::Create { resource, object, .. } => format!("create {resource} {}", object.str_at(&["metadata", "name"])),
        Action::Update { resource, subresource, object, .. } => {
            let status =
                if *subresource == "status" { object.at(&["status"]).map_or(String::new(), Value::to_string) } else { String::new() };
            format!("update {resource} {} {subresource} {status}", object.str_at(&["metadata", "name"]))
        }
        Action::Patch { key, patch, .. } => format!("patch {key} {patch}"),
        Action::Delete { key, policy, .. } => format!("delete {key} {policy:?}"),
        Action::Empty { namespace, resources } => format!("empty {namespace} of {} kinds", resources.len()),
        Action::Absent { owner, uid } => format!("if absent {owner} {uid}"),
        Action::Bind { pod, node, .. } => format!("bind {pod} to {node}"),
        Action::Event(note) => format!("event {}", note.reason),
        Action::RequeueAfter { ms } => format!("again in {ms} ms"),
    }
}

fn tell(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Landed(_) => "landed".into(),
        Outcome::Failed(status) => format!("failed: {status}"),
        Outcome::Unknown(status) => format!("unknown: {status}"),
        Outcome::Skipped => "skipped".into(),
    }
}
