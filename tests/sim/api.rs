//! An API server of a few verbs over the real state and watch hub: compare-and-swap, uid preconditions, finalizers,
//! graceful deletion. It is the [`Transport`] the simulated controllers' actions go through, and the place where invariants
//! about writes are checked.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use coracle::api::client::{Future, Transport};
use coracle::api::object::Object;
use coracle::api::request::{Body, List, Outcome, Request, Response, Verb};
use coracle::api::resource::{self, Resource};
use coracle::api::status::Status;
use coracle::api::time::Time;
use coracle::api::value::Value;
use coracle::api::world::{Key, PodFacts};
use coracle::store::fake::Memory;
use coracle::store::{Batch, Expect};
use coracle::value;

pub struct Api(pub Mutex<State>);

/// Everything that exists in the simulation; of other kinds there is nothing.
pub const KINDS: [&Resource; 9] = [
    &resource::NAMESPACES,
    &resource::NODES,
    &resource::PODS,
    &resource::SERVICES,
    &resource::SERVICEACCOUNTS,
    &resource::DEPLOYMENTS,
    &resource::REPLICASETS,
    &resource::ENDPOINTS,
    &resource::ENDPOINTSLICES,
];

/// Little enough that who lags behind is cut at times.
const RING_BYTES: usize = 32 << 10;

pub struct State {
    pub store: Memory,
    /// The newest version of everything, decoded once.
    pub objects: BTreeMap<Key, Stored>,
    /// The revision of every change ever, by the place of its kind in [`KINDS`].
    pub ledger: [Vec<u64>; KINDS.len()],
    pub now_ms: i64,
    uids: u64,
    /// The largest `spec.replicas` each ReplicaSet ever had, and the largest total each Deployment allowed.
    asked: HashMap<String, i64>,
    allowed: HashMap<String, i64>,
    pub broken: Vec<String>,
    pub writes: usize,
}

#[derive(Clone)]
pub struct Stored {
    pub value: Value,
    pub object: Object,
    /// Of pods.
    pub facts: Option<PodFacts>,
}

impl Stored {
    fn pod(&self) -> &PodFacts {
        self.facts.as_ref().expect("asked of pods")
    }
}

type Answer = Result<Response, Status>;

impl Transport for Api {
    fn call(&self, request: Request) -> Future<'_, Result<Outcome, Status>> {
        let answer = self.0.lock().unwrap().call(request).map(Outcome::Unary);
        Box::pin(async move { answer })
    }
}

impl State {
    fn call(&mut self, request: Request) -> Answer {
        let key = Key::new(request.resource, request.namespace.as_str(), request.name.as_str());
        let body = match request.body {
            Body::Value(value) => value,
            _ => Value::map(),
        };
        match (request.verb, request.subresource.as_str()) {
            (Verb::Get, _) => self.stored(&key).map(|s| answer(s.object.clone())),
            (Verb::List, _) => Ok(self.list(request.resource, &request.namespace)),
            (Verb::Create, "binding") => self.bind(&key, &body),
            (Verb::Create, _) => self.create(request.resource, &request.namespace, body).map(answer),
            (Verb::Update, sub) => self.update(&key, sub, body).map(answer),
            (Verb::Patch, sub) => self.patch(&key, sub, body).map(answer),
            (Verb::Delete, _) => self.delete(&key, &body).map(|()| answer_value()),
            (Verb::DeleteCollection, _) => {
                let inside: Vec<Key> = self.keys(request.resource, &request.namespace);
                inside.iter().for_each(|key| drop(self.delete(key, &body)));
                Ok(answer_value())
            }
            (Verb::Watch | Verb::Connect, _) => Err(Status::bad_request("not simulated")),
        }
    }

    fn stored(&self, key: &Key) -> Result<&Stored, Status> {
        self.objects.get(key).ok_or_else(|| Status::not_found(key.resource, &key.name.name))
    }

    pub fn keys(&self, resource: &'static Resource, namespace: &str) -> Vec<Key> {
        let from = Key::new(resource, namespace, "");
        let inside = self.objects.range(from..).take_while(|(key, _)| key.resource == resource);
        inside.filter(|(key, _)| namespace.is_empty() || key.name.namespace == namespace).map(|(key, _)| key.clone()).collect()
    }

    pub fn all(&self, resource: &'static Resource) -> impl Iterator<Item = &Value> {
        self.rows(resource).map(|(_, stored)| &stored.value)
    }

    pub fn rows(&self, resource: &'static Resource) -> impl Iterator<Item = (&Key, &Stored)> {
        let from = Key::new(resource, "", "");
        self.objects.range(from..).take_while(move |(key, _)| key.resource == resource)
    }

    pub fn pods(&self) -> impl Iterator<Item = (&Key, &Value, &PodFacts)> {
        self.rows(&resource::PODS).map(|(key, stored)| (key, &stored.value, stored.pod()))
    }

    fn list(&self, resource: &'static Resource, namespace: &str) -> Response {
        let items = self.keys(resource, namespace).iter().map(|key| self.objects[key].object.clone()).collect();
        Response::List(List { resource, items, revision: self.store.revision(), continue_token: String::new(), remaining: None })
    }

    /// One write through the store, at the revision the caller read.
    fn write(&mut self, key: &Key, batch: Batch) -> u64 {
        let expect = self.objects.get(key).map_or(Expect::Absent, |stored| Expect::At(stored.object.revision));
        let before = self.store.revision();
        let written = self.store.write(batch.check(path(key), expect)).expect("nobody else writes");
        let revision = written.revisions[0];
        if revision <= before {
            self.broken.push(format!("revision {revision} after {before}"));
        }
        let kind = KINDS.iter().position(|k| *k == key.resource).expect("a kind of the simulation");
        self.ledger[kind].push(revision);
        self.writes += 1;
        revision
    }

    fn put(&mut self, key: Key, mut value: Value) -> Object {
        let mut object = Object::from_value(key.resource, &value, 0);
        object.revision = self.write(&key, Batch::put(path(&key), object.bytes.clone()));
        value.set(&["metadata", "resourceVersion"], object.revision.to_string());
        let plural = key.resource.plural;
        let facts = (plural == "pods").then(|| PodFacts::of(&value));
        let before = self.objects.insert(key, Stored { value: value.clone(), object: object.clone(), facts });
        match plural {
            "replicasets" => self.sized(&value, before.is_some_and(|b| controller_of(&b.value) != controller_of(&value))),
            "pods" => {
                self.counted(&value);
                self.addressed(&value, before.as_ref());
            }
            "deployments" => self.allow(value.str_at(&["metadata", "uid"]), value.i64_at(&["spec", "replicas"]).unwrap_or(1)),
            _ => {}
        }
        object
    }

    fn remove(&mut self, key: &Key) {
        if self.objects.contains_key(key) {
            self.write(key, Batch::delete(path(key)));
            self.objects.remove(key);
        }
    }

    pub fn create(&mut self, resource: &'static Resource, namespace: &str, mut value: Value) -> Result<Object, Status> {
        let name = value.str_at(&["metadata", "name"]).to_string();
        let key = Key::new(resource, namespace, name.as_str());
        if self.objects.contains_key(&key) {
            return Err(Status::already_exists(resource, &name));
        }
        let home = self.objects.get(&Key::new(&resource::NAMESPACES, "", namespace));
        if resource.namespaced && home.is_none_or(|ns| is_deleting(&ns.value)) {
            return Err(Status::forbidden(resource, &name, "the namespace is not there or being terminated"));
        }
        self.uids += 1;
        value.set(&["metadata", "uid"], format!("uid-{}", self.uids));
        value.set(&["metadata", "generation"], 1);
        value.set(&["metadata", "creationTimestamp"], Time::from_seconds(self.now_ms / 1000).to_string());
        match resource.plural {
            "namespaces" => value.set(&["spec", "finalizers"], vec!["kubernetes"]),
            "pods" => value.set(&["status", "phase"], "Pending"),
            _ => {}
        }
        Ok(self.put(key, value))
    }

    fn update(&mut self, key: &Key, subresource: &str, new: Value) -> Result<Object, Status> {
        let old = self.stored(key)?.value.clone();
        let stated = new.str_at(&["metadata", "resourceVersion"]);
        if !stated.is_empty() && stated != old.str_at(&["metadata", "resourceVersion"]) {
            return Err(Status::modified(key.resource, &key.name.name));
        }
        let mut next = old.clone();
        match subresource {
            // Beside the status, annotations are taken; labels are not.
            "status" => {
                next.set(&["status"], new.at(&["status"]).cloned().unwrap_or_else(Value::map));
                if let Some(annotations) = new.at(&["metadata", "annotations"]) {
                    next.set(&["metadata", "annotations"], annotations.clone());
                }
            }
            "finalize" => next.set(&["spec", "finalizers"], new.list_at(&["spec", "finalizers"]).to_vec()),
            _ => {
                next = new;
                if let Some(status) = old.at(&["status"]) {
                    next.set(&["status"], status.clone());
                }
            }
        }
        self.replace(key, old, next)
    }

    fn patch(&mut self, key: &Key, subresource: &str, patch: Value) -> Result<Object, Status> {
        let old = self.stored(key)?.value.clone();
        for field in ["uid", "resourceVersion"] {
            let wanted = patch.str_at(&["metadata", field]);
            if !wanted.is_empty() && wanted != old.str_at(&["metadata", field]) {
                return Err(Status::modified(key.resource, &key.name.name));
            }
        }
        assert!(matches!(subresource, "" | "status"), "no controller patches another subresource");
        let mut next = old.clone();
        let mut patch = patch;
        if subresource == "status" {
            // Of the rest nothing is taken.
            let status = patch.at(&["status"]).cloned().unwrap_or_else(Value::map);
            patch = Value::map();
            patch.set(&["status"], status);
        }
        merge(&mut next, &patch);
        self.replace(key, old, next)
    }

    fn replace(&mut self, key: &Key, old: Value, mut next: Value) -> Result<Object, Status> {
        if old.at(&["spec"]) != next.at(&["spec"]) {
            let generation = old.i64_at(&["metadata", "generation"]).unwrap_or(0);
            next.set(&["metadata", "generation"], generation + 1);
        }
        if is_deleting(&next) && self.may_go(&next) {
            self.remove(key);
            return Ok(Object::from_value(key.resource, &next, self.store.revision()));
        }
        if old == next {
            return Ok(self.objects[key].object.clone());
        }
        Ok(self.put(key.clone(), next))
    }

    /// Nothing holds an object that is being deleted: no finalizers, and for a pod on a node no kubelet.
    fn may_go(&self, value: &Value) -> bool {
        let held = !value.list_at(&["metadata", "finalizers"]).is_empty();
        let namespace = value.str_at(&["kind"]) == "Namespace" && !value.list_at(&["spec", "finalizers"]).is_empty();
        let grace = value.i64_at(&["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) > 0;
        !held && !namespace && !grace
    }

    pub fn delete(&mut self, key: &Key, options: &Value) -> Result<(), Status> {
        let old = self.stored(key)?.value.clone();
        for field in ["uid", "resourceVersion"] {
            let wanted = options.str_at(&["preconditions", field]);
            if !wanted.is_empty() && wanted != old.str_at(&["metadata", field]) {
                return Err(Status::conflict(key.resource, &key.name.name, "precondition failed"));
            }
        }
        let mut next = old.clone();
        let mut finalizers = old.list_at(&["metadata", "finalizers"]).to_vec();
        match options.str_at(&["propagationPolicy"]) {
            "Foreground" => finalizers.push("foregroundDeletion".into()),
            "Orphan" => finalizers.push("orphan".into()),
            _ => {}
        }
        finalizers.dedup();
        let bound = key.resource.plural == "pods" && !old.str_at(&["spec", "nodeName"]).is_empty();
        let grace = if bound { options.i64_at(&["gracePeriodSeconds"]).unwrap_or(30) } else { 0 };
        if !is_deleting(&old) {
            next.set(&["metadata", "deletionTimestamp"], Time::from_seconds(self.now_ms / 1000 + grace).to_string());
            next.set(&["metadata", "deletionGracePeriodSeconds"], grace);
            if !finalizers.is_empty() {
                next.set(&["metadata", "finalizers"], finalizers);
            }
            if key.resource.plural == "namespaces" {
                next.set(&["status", "phase"], "Terminating");
            }
        } else if grace == 0 {
            next.set(&["metadata", "deletionGracePeriodSeconds"], 0);
        }
        self.replace(key, old, next).map(|_| ())
    }

    fn bind(&mut self, key: &Key, body: &Value) -> Answer {
        let mut pod = self.stored(key)?.value.clone();
        let node = body.str_at(&["target", "name"]).to_string();
        if pod.str_at(&["metadata", "uid"]) != body.str_at(&["metadata", "uid"]) || is_deleting(&pod) {
            return Err(Status::conflict(key.resource, &key.name.name, "another pod, or being deleted"));
        }
        if !pod.str_at(&["spec", "nodeName"]).is_empty() {
            return Err(Status::conflict(key.resource, &key.name.name, "already assigned to a node"));
        }
        pod.set(&["spec", "nodeName"], node.as_str());
        self.put(key.clone(), pod);
        self.check_node(&node);
        Ok(answer_value())
    }

    // Invariants.

    fn check_node(&mut self, node: &str) {
        let Some(there) = self.objects.get(&Key::new(&resource::NODES, "", node)) else { return };
        let room = there.value.str_at(&["status", "allocatable", "cpu"]).parse::<i64>().unwrap_or(0) * 1000;
        let here = self.pods().filter(|(_, _, pod)| pod.node == node && !pod.is_over());
        let used: i64 = here.map(|(_, _, pod)| pod.requests.cpu).sum();
        if used > room {
            self.broken.push(format!("node {node} has {room}m cpu and {used}m of pods"));
        }
    }

    /// An adopted set brings the size it has; from then on the rule holds.
    fn sized(&mut self, set: &Value, adopted: bool) {
        let uid = set.str_at(&["metadata", "uid"]).to_string();
        let replicas = set.i64_at(&["spec", "replicas"]).unwrap_or(1);
        let most = self.asked.entry(uid).or_insert(0);
        *most = replicas.max(*most);
        let Some(owner) = controller_of(set) else { return };
        let sets = self.all(&resource::REPLICASETS).filter(|s| controller_of(s).as_ref() == Some(&owner));
        let total: i64 = sets.map(|s| s.i64_at(&["spec", "replicas"]).unwrap_or(1)).sum();
        let deployment = self.all(&resource::DEPLOYMENTS).find(|d| d.str_at(&["metadata", "uid"]) == owner);
        let Some(replicas) = deployment.and_then(|d| d.i64_at(&["spec", "replicas"])) else { return };
        let surge = (replicas + 3) / 4;
        let most = self.allowed.entry(owner).or_insert(0);
        *most = (replicas + surge).max(*most);
        if adopted {
            *most = total.max(*most);
        }
        if total > *most {
            let most = *most;
            self.broken.push(format!("the sets of a deployment ask for {total} pods, more than {most}"));
        }
    }

    /// Remembers how many pods a Deployment may have at most.
    fn allow(&mut self, uid: &str, replicas: i64) {
        let most = self.allowed.entry(uid.to_string()).or_insert(0);
        *most = (replicas + (replicas + 3) / 4).max(*most);
    }

    fn counted(&mut self, pod: &Value) {
        let Some(owner) = controller_of(pod) else { return };
        let Some(most) = self.asked.get(&owner).copied() else { return };
        let live = self.pods().filter(|(_, p, facts)| facts.is_active() && controller_of(p).as_ref() == Some(&owner));
        let count = live.count() as i64;
        if count > most {
            self.broken.push(format!("{count} live pods of a set that never asked for more than {most}"));
        }
    }

    /// A new address is no other running pod's, and no slice lists it for another.
    fn addressed(&mut self, pod: &Value, before: Option<&Stored>) {
        let (ip, uid) = (pod.str_at(&["status", "podIP"]), pod.str_at(&["metadata", "uid"]));
        if ip.is_empty() || before.is_some_and(|b| b.value.str_at(&["status", "podIP"]) == ip) {
            return;
        }
        let other =
            |p: &Value, facts: &PodFacts| !facts.is_over() && p.str_at(&["metadata", "uid"]) != uid && facts.ips.iter().any(|i| i == ip);
        let theirs = self.pods().find(|(_, p, facts)| other(p, facts)).map(|(key, _, _)| key.to_string());
        let lists = |slice: &&Value| {
            let mut endpoints = slice.list_at(&["endpoints"]).iter();
            endpoints.any(|e| e.list_at(&["addresses"])[0].as_str() == Some(ip) && e.str_at(&["targetRef", "uid"]) != uid)
        };
        let listed = self.all(&resource::ENDPOINTSLICES).find(lists).map(|slice| slice.str_at(&["metadata", "name"]).to_string());
        self.broken.extend(theirs.map(|key| format!("{ip} is given to a pod while it is that of {key}")));
        self.broken.extend(listed.map(|slice| format!("{ip} is given out again while slice {slice} lists it")));
    }
}

/// The key of an object in the store.
fn path(key: &Key) -> String {
    format!("{}{}\0{}", prefix(key.resource), key.name.namespace, key.name.name)
}

/// What the keys of a kind begin with.
pub fn prefix(resource: &Resource) -> String {
    format!("{}\0{}\0", resource.storage_group, resource.plural)
}

pub fn is_deleting(value: &Value) -> bool {
    !value.str_at(&["metadata", "deletionTimestamp"]).is_empty()
}

pub fn controller_of(value: &Value) -> Option<String> {
    let mut owners = value.list_at(&["metadata", "ownerReferences"]).iter();
    owners.find(|o| o.bool_at(&["controller"])).map(|o| o.str_at(&["uid"]).to_string())
}

fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_map() else {
        *into = patch.clone();
        return;
    };
    for (key, value) in patch.iter() {
        if value.is_null() {
            into.remove(&[key]);
        } else if value.as_map().is_some() {
            merge(into.make_map(&[]).slot(key), value);
        } else {
            into.set(&[key], value.clone());
        }
    }
}

fn answer(object: Object) -> Response {
    Response::Object { object, code: 200 }
}

fn answer_value() -> Response {
    Response::Value { value: value!({"kind": "Status", "status": "Success"}), code: 200 }
}

pub fn new() -> Arc<Api> {
    Arc::new(Api(Mutex::new(State {
        store: Memory::new(RING_BYTES),
        objects: BTreeMap::new(),
        ledger: Default::default(),
        now_ms: 1_700_000_000_000,
        uids: 0,
        asked: HashMap::new(),
        allowed: HashMap::new(),
        broken: Vec::new(),
        writes: 0,
    })))
}
