//! The whole kubelet over a runtime, a network and an API in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::broadcast;

use super::*;
use crate::api::client::{Future, Transport};
use crate::api::object::Object;
use crate::api::request::{Body, Event, List, Outcome, Request, Response, User, Verb};
use crate::api::resource::{self, Resource};
use crate::api::status::{Result as ApiResult, Status};
use crate::api::value::Value;
use crate::runtime::ImageConfig;
use crate::runtime::fake::{Fake, Script};
use crate::value;

type Key = (&'static str, String, String);

/// Enough of an API server for one kubelet.
struct Api {
    state: Mutex<State>,
    events: broadcast::Sender<(&'static str, Event)>,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Key, (Value, u64, &'static Resource)>,
    status_writes: usize,
    /// A pod that is created in the same moment as another one leaves it room, as by the fastest of schedulers.
    heir: Option<Heir>,
}

struct Heir {
    of: &'static str,
    /// Told the other's latest version, null once it is gone.
    when: fn(&Value) -> bool,
    pod: Value,
}

impl Api {
    fn new() -> Arc<Api> {
        Arc::new(Api { state: Mutex::default(), events: broadcast::channel(1024).0 })
    }

    fn client(self: &Arc<Api>) -> Client {
        Client::new(self.clone(), User::node("n1"))
    }

    fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Option<Value> {
        let state = self.state.lock().unwrap();
        state.objects.get(&(resource.plural, namespace.to_string(), name.to_string())).map(|(v, _, _)| v.clone())
    }

    fn put(&self, resource: &'static Resource, object: Value) -> Object {
        let key =
            (resource.plural, object.str_at(&["metadata", "namespace"]).to_string(), object.str_at(&["metadata", "name"]).to_string());
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        let encoded = Object::from_value(resource, &object, state.revision);
        let revision = state.revision;
        let before = state.objects.insert(key, (object, revision, resource));
        let event = if before.is_some() { Event::Modified(encoded.clone()) } else { Event::Added(encoded.clone()) };
        let _ = self.events.send((resource.plural, event));
        drop(state);
        self.inherit(resource, encoded.name(), &encoded.value());
        encoded
    }

    fn inherit(&self, resource: &'static Resource, name: &str, now: &Value) {
        let is_due = |heir: &mut Heir| *resource == resource::PODS && heir.of == name && (heir.when)(now);
        let heir = self.state.lock().unwrap().heir.take_if(is_due);
        if let Some(heir) = heir {
            self.put(&resource::PODS, heir.pod);
        }
    }

    fn remove(&self, resource: &'static Resource, namespace: &str, name: &str) {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        if let Some((object, _, _)) = state.objects.remove(&(resource.plural, namespace.to_string(), name.to_string())) {
            let _ = self.events.send((resource.plural, Event::Deleted(Object::from_value(resource, &object, state.revision))));
        }
        drop(state);
        self.inherit(resource, name, &Value::Null);
    }

    fn selected(object: &Value, selector: Option<&str>) -> bool {
        selector.unwrap_or("").split(',').filter_map(|s| s.split_once('=')).all(|(field, wanted)| {
            let path: Vec<&str> = field.split('.').collect();
            object.str_at(&path) == wanted
        })
    }

    fn call_now(&self, r: Request) -> ApiResult<Outcome> {
        let found = self.get(r.resource, &r.namespace, &r.name);
        let not_found = || Status::not_found(r.resource, &r.name);
        let body = match r.body {
            Body::Value(v) => v,
            _ => Value::map(),
        };
        let object = |object: Object| Ok(Outcome::Unary(Response::Object { object, code: 200 }));
        match (r.verb, r.subresource.as_str()) {
            (Verb::Get, _) => {
                found.ok_or_else(not_found)?;
                let state = self.state.lock().unwrap();
                let (value, revision, _) = &state.objects[&(r.resource.plural, r.namespace.clone(), r.name.clone())];
                object(Object::from_value(r.resource, value, *revision))
            }
            (Verb::Create, "token") => {
                let value = value!({"status": {"token": format!("token-of-{}", r.name), "expirationTimestamp": "2099-01-01T00:00:00Z"}});
                Ok(Outcome::Unary(Response::Value { value, code: 201 }))
            }
            (Verb::Create, _) => {
                let mut body = body;
                if !r.namespace.is_empty() {
                    body.set(&["metadata", "namespace"], r.namespace.as_str());
                }
                body.make_map(&["metadata"]).insert_default("uid", "made");
                object(self.put(r.resource, body))
            }
            (Verb::Patch, sub) => {
                let mut now = found.ok_or_else(not_found)?;
                if sub == "status" && r.resource.plural == "pods" {
                    self.state.lock().unwrap().status_writes += 1;
                    let uid = body.str_at(&["metadata", "uid"]);
                    if uid != now.str_at(&["metadata", "uid"]) {
                        return Err(Status::modified(r.resource, &r.name));
                    }
                }
                merge(&mut now, &body);
                object(self.put(r.resource, now))
            }
            (Verb::Delete, _) => {
                let pod = found.ok_or_else(not_found)?;
                assert_eq!(body.i64_at(&["gracePeriodSeconds"]), Some(0));
                if body.str_at(&["preconditions", "uid"]) != pod.str_at(&["metadata", "uid"]) {
                    return Err(Status::modified(r.resource, &r.name));
                }
                self.remove(r.resource, &r.namespace, &r.name);
                Ok(Outcome::Unary(Response::Value { value: value!({"status": "Success"}), code: 200 }))
            }
            (Verb::List, _) => {
                let state = self.state.lock().unwrap();
                let items = state
                    .objects
                    .iter()
                    .filter(|(k, (v, _, _))| k.0 == r.resource.plural && Self::selected(v, r.options.field_selector.as_deref()));
                let items = items.map(|(_, (v, revision, resource))| Object::from_value(resource, v, *revision)).collect();
                let list = List { resource: r.resource, items, revision: state.revision, continue_token: String::new(), remaining: None };
                Ok(Outcome::Unary(Response::List(list)))
            }
            (Verb::Watch, _) => Ok(Outcome::Watch(self.watch(r.resource, &r.namespace, r.options.field_selector.clone()))),
            (verb, sub) => panic!("unexpected {verb:?} {sub}"),
        }
    }

    /// Initial events first, then what happens.
    fn watch(&self, resource: &'static Resource, namespace: &str, selector: Option<String>) -> crate::api::request::Events {
        let state = self.state.lock().unwrap();
        let live = self.events.subscribe();
        let namespace = namespace.to_string();
        let first: Vec<Event> = state
            .objects
            .iter()
            .filter(|(k, (v, _, _))| {
                k.0 == resource.plural && (namespace.is_empty() || k.1 == namespace) && Self::selected(v, selector.as_deref())
            })
            .map(|(_, (v, revision, resource))| Event::Added(Object::from_value(resource, v, *revision)))
            .chain([Event::Bookmark { revision: state.revision, initial_end: true }])
            .collect();
        let follow = futures_util::stream::unfold((live, namespace, selector), move |(mut live, namespace, selector)| async move {
            loop {
                let (plural, event) = live.recv().await.ok()?;
                let (Event::Added(o) | Event::Modified(o) | Event::Deleted(o)) = &event else { continue };
                let matches = plural == resource.plural
                    && (namespace.is_empty() || o.namespace() == namespace)
                    && Self::selected(&o.value(), selector.as_deref());
                if matches {
                    return Some((event, (live, namespace, selector)));
                }
            }
        });
        Box::pin(futures_util::StreamExt::chain(futures_util::stream::iter(first), follow))
    }
}

impl Transport for Api {
    fn call(&self, request: Request) -> Future<'_, ApiResult<Outcome>> {
        let answer = self.call_now(request);
        Box::pin(std::future::ready(answer))
    }
}

/// A merge patch, except that conditions merge by type.
fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_map() else { return *into = patch.clone() };
    for (key, value) in patch.iter() {
        let slot = into.make_map(&[]).slot(key);
        match (key, value) {
            ("conditions", Value::List(new)) => {
                let mut all = slot.as_list().unwrap_or(&[]).to_vec();
                all.retain(|c| !new.iter().any(|n| n.str_at(&["type"]) == c.str_at(&["type"])));
                all.extend(new.clone());
                *slot = Value::List(all);
            }
            (_, Value::Map(_)) => merge(slot, value),
            (_, Value::Null) => drop(into.remove(&[key])),
            _ => *slot = value.clone(),
        }
    }
}

#[derive(Default)]
struct Net(Mutex<BTreeMap<String, String>>);

impl PodNetwork for Net {
    fn add_pod<'a>(&'a self, uid: &'a str, _: &'a Path, _: Vec<HostPort>) -> BoxFuture<'a, Result<Vec<String>, String>> {
        let mut pods = self.0.lock().unwrap();
        let next = format!("10.42.0.{}", pods.len() + 2);
        let ip = pods.entry(uid.to_string()).or_insert(next).clone();
        Box::pin(std::future::ready(Ok(vec![ip])))
    }
    fn remove_pod<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        self.0.lock().unwrap().remove(uid);
        Box::pin(std::future::ready(Ok(())))
    }
    fn pod_ips(&self, uid: &str) -> Vec<String> {
        self.0.lock().unwrap().get(uid).cloned().into_iter().collect()
    }
}

struct World {
    api: Arc<Api>,
    runtime: Fake,
    network: Arc<Net>,
    dir: PathBuf,
    agent: Option<Agent>,
    max_pods: i64,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = volumes::empty_dir::remove_tree(&self.dir);
    }
}

impl World {
    async fn new(name: &str) -> World {
        World::of_pods(name, 110).await
    }

    async fn of_pods(name: &str, max_pods: i64) -> World {
        let dir = std::env::temp_dir().join(format!("coracle-agent-{name}-{}", std::process::id()));
        let _ = volumes::empty_dir::remove_tree(&dir);
        let runtime = Fake::new();
        runtime.set_now(std::time::SystemTime::now());
        runtime.add_image("app:1", ImageConfig::default());
        let mut world = World { api: Api::new(), runtime, network: Arc::default(), dir, agent: None, max_pods };
        world.start().await;
        world
    }

    async fn start(&mut self) {
        let config = AgentConfig {
            node_name: "n1".into(),
            node_ip: "10.0.0.1".parse().unwrap(),
            data_dir: self.dir.join("data"),
            run_dir: self.dir.join("run"),
            cluster_dns: "10.43.0.10".parse().unwrap(),
            cluster_domain: "cluster.local".into(),
            kubelet_port: 10250,
            max_pods: self.max_pods,
            node_labels: BTreeMap::new(),
            pod_cidr: "10.42.0.0/24".into(),
        };
        let agent = Agent::start(config, self.api.client(), Arc::new(self.runtime.clone()), self.network.clone()).await.unwrap();
        self.agent = Some(agent);
    }

    fn create(&self, name: &str, spec: serde_json::Value) {
        self.api.put(&resource::PODS, Self::bound(name, spec));
    }

    fn bound(name: &str, spec: serde_json::Value) -> Value {
        let mut pod = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")}, "spec": spec});
        pod.set(&["spec", "nodeName"], "n1");
        pod.set(&["status", "phase"], "Pending");
        pod
    }

    /// As a delete with a grace period of five seconds leaves it.
    fn delete(&self, name: &str) {
        let mut gone = self.pod(name).unwrap();
        gone.set(&["metadata", "deletionTimestamp"], "2099-01-01T00:00:00Z");
        gone.set(&["metadata", "deletionGracePeriodSeconds"], 5);
        self.api.put(&resource::PODS, gone);
    }

    fn pod(&self, name: &str) -> Option<Value> {
        self.api.get(&resource::PODS, "ns", name)
    }

    /// Waits until the pod (or its absence) is as told; fails with what it is after a while.
    async fn wait(&self, name: &str, what: impl Fn(&Value) -> bool) -> Value {
        let mut events = self.api.events.subscribe();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let pod = self.pod(name).unwrap_or_default();
            if what(&pod) {
                return pod;
            }
            if tokio::time::timeout_at(deadline, events.recv()).await.is_err() {
                panic!("{name} is still {pod}; runtime calls {:?}", self.runtime.calls());
            }
        }
    }

    fn started(&self) -> usize {
        self.runtime.calls().iter().filter(|c| c.starts_with("start_container")).count()
    }
}

fn phase(wanted: &'static str) -> impl Fn(&Value) -> bool {
    move |pod| pod.str_at(&["status", "phase"]) == wanted
}

fn is_ready(pod: &Value) -> bool {
    pod.list_at(&["status", "conditions"]).iter().any(|c| c.str_at(&["type"]) == "Ready" && c.str_at(&["status"]) == "True")
}

fn one() -> serde_json::Value {
    serde_json::json!({"restartPolicy": "Always", "terminationGracePeriodSeconds": 5, "containers": [{"name": "c", "image": "app:1"}]})
}

#[tokio::test]
async fn a_pod_runs_and_is_deleted_whole() {
    let world = World::new("life").await;
    world.create("p", one());
    let pod = world.wait("p", is_ready).await;
    assert_eq!((pod.str_at(&["status", "podIP"]), pod.str_at(&["status", "hostIP"])), ("10.42.0.2", "10.0.0.1"));
    world.delete("p");
    world.wait("p", Value::is_null).await;
    assert!(world.network.0.lock().unwrap().is_empty());
    assert!(world.runtime.calls().iter().any(|c| c.starts_with("kill_container") && c.ends_with(" 15")));
    assert!(!world.dir.join("data/pods/uid-p").exists());
}

#[tokio::test]
async fn init_containers_come_first_and_volumes_hold_what_they_should() {
    let world = World::new("init").await;
    world.runtime.script("i", [Script::Exit(0)]);
    world.api.put(
        &resource::CONFIGMAPS,
        value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm", "namespace": "ns"}, "data": {"k": "v1"}}),
    );
    let mut spec = one();
    spec["initContainers"] = serde_json::json!([{"name": "i", "image": "app:1"}]);
    spec["volumes"] = serde_json::json!([{"name": "cm", "configMap": {"name": "cm"}},
        {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}]}}]);
    spec["containers"][0]["volumeMounts"] = serde_json::json!([{"name": "cm", "mountPath": "/cm"}, {"name": "t", "mountPath": "/t"}]);
    spec["containers"][0]["env"] = serde_json::json!([{"name": "E", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]);
    world.create("p", spec);
    let pod = world.wait("p", is_ready).await;
    let init = &pod.list_at(&["status", "initContainerStatuses"])[0];
    assert_eq!(init.i64_at(&["state", "terminated", "exitCode"]), Some(0));
    let id = world.runtime.find("uid-p", "c").unwrap();
    let spec = world.runtime.container_spec(&id).unwrap();
    assert!(spec.env.contains(&("E".into(), "v1".into())));
    let targets: Vec<&str> = spec.mounts.iter().map(|m| m.target.as_str()).collect();
    assert_eq!(targets, ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/dev/termination-log", "/cm", "/t"]);
    let file = world.dir.join("data/pods/uid-p/volumes/cm/k");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "v1");
    assert_eq!(std::fs::read_to_string(world.dir.join("run/secrets/uid-p/t/token")).unwrap(), "token-of-default");
    // A changed ConfigMap reaches the volume in place.
    world.api.put(
        &resource::CONFIGMAPS,
        value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm", "namespace": "ns"}, "data": {"k": "v2"}}),
    );
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(&file).unwrap() != "v2" {
        assert!(tokio::time::Instant::now() < deadline, "the file was not updated");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_job_like_pod_succeeds_or_fails_and_its_sandbox_goes() {
    let world = World::new("job").await;
    world.runtime.script("good", [Script::Exit(0)]);
    world.runtime.script("bad", [Script::Exit(3)]);
    for name in ["good", "bad"] {
        world.create(name, serde_json::json!({"restartPolicy": "Never", "containers": [{"name": name, "image": "app:1"}]}));
    }
    world.wait("good", phase("Succeeded")).await;
    let bad = world.wait("bad", phase("Failed")).await;
    assert_eq!(bad.list_at(&["status", "containerStatuses"])[0].i64_at(&["state", "terminated", "exitCode"]), Some(3));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !world.runtime.list().await.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "sandboxes of finished pods stay");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(world.pod("bad").unwrap().str_at(&["status", "phase"]), "Failed");
}

#[tokio::test]
async fn a_crash_restarts_at_once_then_backs_off() {
    let world = World::new("crash").await;
    world.runtime.script("c", [Script::Exit(1)]);
    world.create("p", one());
    let waits = |pod: &Value| {
        let s = pod.list_at(&["status", "containerStatuses"]).first().cloned().unwrap_or_default();
        s.str_at(&["state", "waiting", "reason"]) == "CrashLoopBackOff" && s.i64_at(&["restartCount"]) == Some(1)
    };
    let pod = world.wait("p", waits).await;
    assert_eq!(pod.str_at(&["status", "phase"]), "Running");
    assert_eq!(world.started(), 2);
}

/// Whatever the scheduler leaves off counting has left off taking up room here.
#[tokio::test]
async fn a_pod_bound_in_the_place_of_one_that_left_is_admitted() {
    let is_gone: fn(&Value) -> bool = |pod| pod.is_null();
    let is_over: fn(&Value) -> bool = |pod| matches!(pod.str_at(&["status", "phase"]), "Succeeded" | "Failed");
    let force: fn(&World) = |world| world.api.remove(&resource::PODS, "ns", "p");
    let delete: fn(&World) = |world| world.delete("p");
    let exit: fn(&World) = |world| world.runtime.exit(&world.runtime.find("uid-p", "c").unwrap(), 3);
    for (case, policy, script, leave, when) in [
        ("deleted", "Always", Script::Run, delete, is_gone),
        ("removed-at-once", "Always", Script::Run, force, is_gone),
        ("removed-while-it-resists", "Always", Script::Stubborn, force, is_gone),
        ("ended", "Never", Script::Run, exit, is_over),
    ] {
        let world = World::of_pods(&format!("heir-{case}"), 1).await;
        world.runtime.script("c", [script, Script::Run]);
        let mut spec = one();
        spec["restartPolicy"] = policy.into();
        world.create("p", spec);
        world.wait("p", is_ready).await;
        world.create("early", one());
        let early = world.wait("early", phase("Failed")).await;
        assert_eq!(early.str_at(&["status", "reason"]), "OutOfpods", "{case}: there is room for one");
        world.api.state.lock().unwrap().heir = Some(Heir { of: "p", when, pod: World::bound("q", one()) });
        leave(&world);
        let q = world.wait("q", |pod| is_ready(pod) || phase("Failed")(pod)).await;
        assert!(is_ready(&q), "{case}: {}", q.at(&["status"]).unwrap());
    }
}

/// Every version of the pod from now until `last`.
async fn versions(world: &World, mut events: broadcast::Receiver<(&'static str, Event)>, last: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut all = Vec::new();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !all.last().is_some_and(&last) {
        match tokio::time::timeout_at(deadline, events.recv()).await {
            Ok(Ok(("pods", Event::Modified(pod)))) => all.push(pod.value()),
            Ok(Ok(_)) => {}
            end => panic!("{end:?} after {all:?}; runtime calls {:?}", world.runtime.calls()),
        }
    }
    all
}

#[tokio::test]
async fn a_container_exchanged_for_its_next_attempt_leaves_no_gap() {
    let reported = |pod: &Value| pod.list_at(&["status", "containerStatuses"]).first().cloned().unwrap_or_default();
    let has_ended = |pod: &Value| {
        reported(pod).i64_at(&["restartCount"]) == Some(1) || reported(pod).str_at(&["state", "waiting", "reason"]) == "ErrImagePull"
    };
    let probe = serde_json::json!({"exec": {"command": ["fails"]}, "initialDelaySeconds": 2, "failureThreshold": 1});
    for (case, image, probe) in
        [("image", "app:2", serde_json::Value::Null), ("liveness", "app:1", probe), ("no-image", "none:1", serde_json::Value::Null)]
    {
        let world = World::new(&format!("exchange-{case}")).await;
        world.runtime.add_image("app:2", ImageConfig::default());
        world.runtime.on_exec("fails", crate::runtime::fake::ExecAnswer { code: 1, ..Default::default() });
        let mut spec = one();
        spec["containers"][0]["livenessProbe"] = probe;
        let events = world.api.events.subscribe();
        world.create("p", spec);
        let mut pod = world.wait("p", is_ready).await;
        // When the next one starts: its probe has to wait again.
        world.runtime.set_now(std::time::SystemTime::now() + Duration::from_secs(2));
        pod.set(&["metadata", "generation"], 2);
        if let Some(container) = pod.at_mut(&["spec", "containers"]).and_then(Value::as_list_mut).and_then(|l| l.first_mut()) {
            container.set(&["image"], image);
        }
        world.api.put(&resource::PODS, pod);
        let all = versions(&world, events, has_ended).await;
        let first = all.iter().position(is_ready).unwrap();
        let unready = all[first..].iter().filter(|pod| !is_ready(pod)).count();
        let end = all.last().unwrap();
        let status = reported(end);
        if case == "no-image" {
            assert_eq!((unready, status.str_at(&["state", "waiting", "reason"])), (1, "ErrImagePull"), "{end}");
        } else {
            assert_eq!((unready, status.bool_at(&["ready"]), status.str_at(&["image"])), (0, true, image), "{case}: {all:?}");
            assert!(status.at(&["lastState", "terminated"]).is_some());
        }
    }
}

#[tokio::test]
async fn a_missing_image_is_said_and_an_imported_one_is_found() {
    let world = World::new("image").await;
    let mut spec = one();
    spec["containers"][0]["image"] = "none:1".into();
    world.create("p", spec);
    let reason =
        |pod: &Value| pod.list_at(&["status", "containerStatuses"]).first().map(|s| s.str_at(&["state", "waiting", "reason"]).to_string());
    let pod = world.wait("p", |pod| reason(pod).as_deref() == Some("ErrImagePull")).await;
    let message = pod.list_at(&["status", "containerStatuses"])[0].str_at(&["state", "waiting", "message"]).to_string();
    assert!(message.contains("coracle images import"), "{message}");
}

#[tokio::test]
async fn a_restarted_daemon_plans_nothing_for_a_pod_that_is_right() {
    let mut world = World::new("restart").await;
    world.create("p", one());
    world.create("q", one());
    world.wait("p", is_ready).await;
    world.wait("q", is_ready).await;
    let quiet = |world: &World| world.runtime.calls().len();
    world.agent.take().unwrap().stop();
    // One exits while nobody looks.
    let id = world.runtime.find("uid-q", "c").unwrap();
    world.runtime.exit(&id, 9);
    let before = quiet(&world);
    world.start().await;
    let pod =
        world.wait("q", |pod| is_ready(pod) && pod.list_at(&["status", "containerStatuses"])[0].i64_at(&["restartCount"]) == Some(1)).await;
    assert_eq!(pod.list_at(&["status", "containerStatuses"])[0].i64_at(&["lastState", "terminated", "exitCode"]), Some(9));
    let calls = world.runtime.calls()[before..].to_vec();
    assert!(calls.iter().all(|c| !c.contains("uid-p") && !c.starts_with("create_sandbox")), "{calls:?}");
    assert_eq!(calls.iter().filter(|c| c.starts_with("create_container")).count(), 1, "{calls:?}");
}

#[tokio::test]
async fn a_quiet_pod_is_not_written_again() {
    let world = World::new("quiet").await;
    world.create("p", one());
    world.wait("p", is_ready).await;
    let writes = world.api.state.lock().unwrap().status_writes;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(world.api.state.lock().unwrap().status_writes <= writes + 1);
    assert!(writes <= 4, "{writes} writes to become ready");
}

#[tokio::test]
async fn the_node_is_there_with_labels_and_lease() {
    let world = World::new("node").await;
    let mut events = world.api.events.subscribe();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while world.api.get(&resource::LEASES, "kube-node-lease", "n1").is_none() {
        tokio::time::timeout_at(deadline, events.recv()).await.expect("a lease in time").unwrap();
    }
    let node = world.api.get(&resource::NODES, "", "n1").unwrap();
    assert_eq!(node.str_at(&["metadata", "labels", "kubernetes.io/hostname"]), "n1");
    assert!(is_ready(&node));
}

#[tokio::test]
async fn logs_are_served_to_the_api_server_only() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new("logs").await;
    world.create("p", one());
    world.wait("p", is_ready).await;
    let id = world.runtime.find("uid-p", "c").unwrap();
    let log = world.runtime.container_spec(&id).unwrap().log_path;
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    std::fs::write(&log, "2023-11-14T22:13:20Z stdout F one\n2023-11-14T22:13:21Z stdout F two\n").unwrap();
    let agent = world.agent.as_ref().unwrap();
    let ask = async |peer: Peer| {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let serving = agent.serve_connection(server, peer);
        let asking = async {
            client.write_all(b"GET /containerLogs/ns/p/c?tailLines=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        tokio::join!(serving, asking).1
    };
    let answer = ask(Peer { name: server::API_SERVER.into(), groups: vec![] }).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("two\n") && !answer.contains("one\n"), "{answer}");
    assert!(ask(Peer::default()).await.starts_with("HTTP/1.1 403"));
}
