//! Requests through the HTTP handler of a whole API server over a store in memory: transcripts as data.
//!
//! A step is a request and what its answer must be: the code, and JSON pointers into the body. `$x` in paths and bodies stands for
//! what an earlier step kept under that name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use coracle::api::client::Client;
use coracle::api::request::User;
use coracle::api::time::{Clock, ManualClock, Time};
use coracle::config::{Config, Settings};
use coracle::pki::Pki;
use coracle::server::http::{Front, Peer, ResponseBody};
use coracle::server::{self, bootstrap};
use coracle::store::{self, Store};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

const MERGE: &str = "application/merge-patch+json";
const CM: &str = "/api/v1/namespaces/default/configmaps";

struct Api {
    front: Arc<Front>,
    pki: Pki,
    store: Store,
    dir: std::path::PathBuf,
    kept: BTreeMap<String, String>,
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Api {
    async fn start(test: &str) -> Api {
        Api::start_with(test, &[]).await
    }

    async fn start_with(test: &str, more: &[(&str, &str)]) -> Api {
        let dir = std::env::temp_dir().join(format!("coracle-api-{test}-{}", std::process::id()));
        let mut settings = Settings::load(None, std::iter::empty()).unwrap();
        for (key, value) in
            [("data-dir", dir.to_str().unwrap()), ("node-name", "n"), ("node-ip", "127.0.0.1"), ("advertise-address", "192.0.2.1")]
        {
            settings.set(key, value.to_string(), "test".to_string());
        }
        for (key, value) in more {
            settings.set(key, value.to_string(), "test".to_string());
        }
        let config = Config::from_settings(&settings).unwrap();
        let pki = Pki::load_or_create(&config.pki_dir()).unwrap();
        let store = Store::open(store::Config::memory()).await.unwrap();
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Time::from_seconds(1_800_000_000)));
        let pipeline = server::assemble(store.clone(), server::cluster(&config, &pki), clock).unwrap();
        let master = Client::new(pipeline.clone(), User::master());
        bootstrap::run(&master, pipeline.cluster(), "10.43.0.10").await.unwrap();
        let front = Front::new(pipeline, server::kubelet_connector(&pki).unwrap());
        Api { front, pki, store, dir, kept: BTreeMap::new() }
    }

    /// The peer of a connection with a client certificate for this user and group.
    fn peer(&self, name: &str, group: &str) -> Peer {
        let pem = self.pki.client.client(name, &[group]).unwrap().certificate;
        let body: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
        let der = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
        Peer { certificates: vec![der], remote: ([127, 0, 0, 1], 1).into() }
    }

    fn fill(&self, text: &str) -> String {
        self.kept.iter().fold(text.to_string(), |t, (k, v)| t.replace(&format!("${k}"), v))
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str, peer: Peer) -> Response<ResponseBody> {
        let mut request = Request::builder().method(method).uri(self.fill(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Full::new(Bytes::from(self.fill(body)));
        self.front.handle(request.body(body).unwrap(), peer).await
    }

    async fn json(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let response = self.send(method, path, headers, body, self.peer("admin", "system:masters")).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::String(String::from_utf8_lossy(&bytes).into_owned())))
    }

    async fn run(&mut self, steps: &[Step<'_>]) {
        for step in steps {
            let kind = if step.content.is_empty() { "application/json" } else { step.content };
            let body = if step.body.is_null() { String::new() } else { step.body.to_string() };
            let (code, answer) = self.json(step.method, step.path, &[("content-type", kind), ("accept", step.accept)], &body).await;
            let what = format!("{} {} {}", step.method, self.fill(step.path), body);
            assert_eq!(code, step.code, "{what}: {answer}");
            for (pointer, want) in &step.want {
                assert_eq!(answer.pointer(pointer).unwrap_or(&Value::Null), want, "{what} {pointer}: {answer}");
            }
            for (name, pointer) in &step.keep {
                let found = answer.pointer(pointer).unwrap_or_else(|| panic!("{what} {pointer}: {answer}"));
                self.kept.insert(name.to_string(), found.as_str().map_or(found.to_string(), str::to_string));
            }
        }
    }
}

/// One request and its answer.
#[derive(Clone, Default)]
struct Step<'a> {
    method: &'a str,
    path: &'a str,
    body: Value,
    content: &'a str,
    accept: &'a str,
    code: u16,
    want: Vec<(&'a str, Value)>,
    keep: Vec<(&'a str, &'a str)>,
}

fn step<'a>(method: &'a str, path: &'a str, body: Value, code: u16) -> Step<'a> {
    Step { method, path, body, code, ..Step::default() }
}

impl<'a> Step<'a> {
    fn want(mut self, pointer: &'a str, value: impl Into<Value>) -> Self {
        self.want.push((pointer, value.into()));
        self
    }
    fn keep(mut self, name: &'a str, pointer: &'a str) -> Self {
        self.keep.push((name, pointer));
        self
    }
    fn patch(mut self, content: &'a str) -> Self {
        self.content = content;
        self
    }
    fn accept(mut self, accept: &'a str) -> Self {
        self.accept = accept;
        self
    }
}

fn cm(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"i": name}}, "data": {"k": "v"}})
}

const A: &str = "/api/v1/namespaces/default/configmaps/a";

#[tokio::test]
async fn an_object_lives() {
    let mut api = Api::start("life").await;
    let modified = "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest \
                    version and try again";
    api.run(&[
        step("POST", CM, cm("a"), 201)
            .want("/metadata/creationTimestamp", "2027-01-15T08:00:00Z")
            .keep("first", "/metadata/resourceVersion")
            .keep("uid", "/metadata/uid"),
        step("POST", CM, cm("a"), 409).want("/message", "configmaps \"a\" already exists").want("/details/kind", "configmaps"),
        step("GET", A, Value::Null, 200).want("/kind", "ConfigMap").want("/data/k", "v"),
        step("PATCH", A, json!({"data": {"l": "w"}}), 200)
            .patch(MERGE)
            .want("/data", json!({"k": "v", "l": "w"}))
            .keep("second", "/metadata/resourceVersion"),
        // What changes nothing writes nothing.
        step("PATCH", A, json!({"data": {"l": "w"}}), 200).patch(MERGE).keep("third", "/metadata/resourceVersion"),
        step("PUT", A, json!({"metadata": {"name": "a", "resourceVersion": "$first"}}), 409).want("/message", modified),
        step("PUT", A, json!({"metadata": {"name": "b"}}), 400)
            .want("/message", "the name of the object (b) does not match the name on the URL (a)"),
        step("PUT", A, json!({"metadata": {"name": "a", "resourceVersion": "$second"}, "data": {"n": "1"}}), 200)
            .want("/data", json!({"n": "1"})),
        step("DELETE", A, json!({"preconditions": {"uid": "x"}}), 409),
        step("DELETE", &format!("{A}?dryRun=All"), Value::Null, 200).want("/status", "Success"),
        step("DELETE", A, Value::Null, 200).want("/status", "Success").want("/details/name", "a"),
        step("GET", A, Value::Null, 404).want("/message", "configmaps \"a\" not found").want("/reason", "NotFound"),
        step("POST", CM, json!({"metadata": {"generateName": "g-"}}), 201).keep("name", "/metadata/name"),
        step("GET", &format!("{CM}/$name"), Value::Null, 200),
        step("POST", "/api/v1/namespaces/nope/configmaps", cm("a"), 404).want("/message", "namespaces \"nope\" not found"),
    ])
    .await;
    assert_eq!(api.kept["second"], api.kept["third"]);
    assert_eq!(api.kept["name"].len(), 7);
}

#[tokio::test]
async fn finalizers_and_propagation_hold_deletion() {
    let mut api = Api::start("finalizers").await;
    let with = json!({"metadata": {"name": "a", "finalizers": ["example.com/f"]}});
    api.run(&[
        step("POST", CM, with, 201),
        step("DELETE", A, Value::Null, 200)
            .want("/metadata/deletionGracePeriodSeconds", 0)
            .want("/metadata/finalizers", json!(["example.com/f"])),
        step("POST", CM, cm("a"), 409).want("/message", "object is being deleted: configmaps \"a\" already exists"),
        step("PATCH", A, json!({"metadata": {"finalizers": ["example.com/f", "example.com/g"]}}), 422).patch(MERGE),
        step("PATCH", A, json!({"metadata": {"finalizers": null}}), 200).patch(MERGE),
        step("GET", A, Value::Null, 404),
        step("POST", CM, cm("a"), 201),
        step("DELETE", &format!("{A}?propagationPolicy=Foreground"), Value::Null, 200)
            .want("/metadata/finalizers", json!(["foregroundDeletion"])),
    ])
    .await;
}

#[tokio::test]
async fn lists_page_at_one_revision() {
    let mut api = Api::start("paging").await;
    for name in ["a", "b", "c", "d", "e"] {
        api.run(&[step("POST", CM, cm(name), 201)]).await;
    }
    let ns = "labelSelector=i";
    api.run(&[
        step("GET", &format!("{CM}?limit=2&{ns}"), Value::Null, 200).want("/items/1/metadata/name", "b").want("/items/0/kind", Value::Null),
        step("GET", &format!("{CM}?limit=2"), Value::Null, 200)
            .keep("token", "/metadata/continue")
            .keep("list", "/metadata/resourceVersion"),
        step("DELETE", &format!("{CM}/d"), Value::Null, 200),
        step("GET", &format!("{CM}?limit=9&continue=$token"), Value::Null, 200).keep("list2", "/metadata/resourceVersion"),
        step("GET", &format!("{CM}?labelSelector=i+in+(a,e)"), Value::Null, 200)
            .want("/items/1/metadata/name", "e")
            .want("/items/2", Value::Null),
        step("GET", &format!("{CM}?fieldSelector=metadata.name%3Dc"), Value::Null, 200)
            .want("/items/0/metadata/name", "c")
            .want("/items/1", Value::Null),
        step("GET", &format!("{CM}?fieldSelector=x%3Dc"), Value::Null, 400),
        step("GET", &format!("{CM}?resourceVersion=999999999"), Value::Null, 504)
            .want("/details/causes/0/reason", "ResourceVersionTooLarge"),
        step("GET", &format!("{CM}?resourceVersionMatch=Exact"), Value::Null, 422),
        step("GET", "/api/v1/namespaces/zz/configmaps", Value::Null, 200).want("/items", json!([])),
    ])
    .await;
    assert_eq!(api.kept["list"], api.kept["list2"]);
    // Compacted: the rest can still be had, inconsistently.
    api.store.compact(api.store.revision()).await.unwrap();
    api.run(&[
        step("GET", &format!("{CM}?limit=2&continue=$token"), Value::Null, 410)
            .want("/reason", "Expired")
            .keep("fresh", "/metadata/continue"),
        step("GET", &format!("{CM}?limit=2&continue=$fresh"), Value::Null, 200),
    ])
    .await;
}

#[tokio::test]
async fn views_and_encodings() {
    let mut api = Api::start("views").await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    api.run(&[
        step("POST", CM, cm("a"), 201),
        step("GET", CM, Value::Null, 200).accept(table).want("/kind", "Table").want("/columnDefinitions/1/name", "Data"),
        step("GET", A, Value::Null, 200).accept(table).want("/rows/0/cells/0", "a").want("/rows/0/object/kind", "PartialObjectMetadata"),
        step("GET", A, Value::Null, 200)
            .accept("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io")
            .want("/data", Value::Null)
            .want("/metadata/name", "a"),
        step("GET", A, Value::Null, 406).accept("text/html"),
        step("GET", &format!("{CM}?watch=1"), Value::Null, 406).accept("application/yaml"),
        step(
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}}),
            406,
        )
        .accept("application/json;as=Table;v=v1;g=meta.k8s.io"),
        step("GET", "/api/v1/foos", Value::Null, 404).want("/message", "the server could not find the requested resource"),
        step("POST", "/api/v1/pods", Value::Null, 405),
        step("GET", "/apis/nope/v1", Value::Null, 404),
        step("POST", CM, json!({"metadata": {"name": "u"}, "zz": 1}), 201),
        step("POST", &format!("{CM}?fieldValidation=Strict"), json!({"metadata": {"name": "s"}, "zz": 1}), 400)
            .want("/message", "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"zz\""),
        step("PATCH", A, json!({"data": {}}), 415).patch("application/json"),
    ])
    .await;
    let master = api.peer("admin", "system:masters");
    let response = api.send("GET", A, &[("accept", "application/vnd.kubernetes.protobuf")], "", master.clone()).await;
    assert_eq!(response.headers()["cache-control"], "no-cache, private");
    assert!(response.into_body().collect().await.unwrap().to_bytes().starts_with(b"k8s\0"));
    let big = "x".repeat(4 << 20);
    assert_eq!(api.send("POST", CM, &[], &big, master).await.status(), 413);
}

#[tokio::test]
async fn strangers_are_refused() {
    let api = Api::start("strangers").await;
    let anonymous = Peer { certificates: Vec::new(), remote: ([127, 0, 0, 1], 1).into() };
    let response = api.send("GET", CM, &[], "", anonymous.clone()).await;
    assert_eq!(response.status(), 403);
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let message = "configmaps is forbidden: User \\\"system:anonymous\\\" cannot list resource \\\"configmaps\\\" in API group \\\"\\\" in the namespace \\\"default\\\"";
    assert!(String::from_utf8_lossy(&text).contains(message), "{text:?}");
    assert_eq!(api.send("GET", "/healthz", &[], "", anonymous.clone()).await.status(), 200);
    assert_eq!(api.send("GET", CM, &[("authorization", "Bearer nonsense")], "", anonymous).await.status(), 401);
    let master = api.peer("admin", "system:masters");
    assert_eq!(api.send("GET", CM, &[("impersonate-user", "bob")], "", master).await.status(), 403);
}

/// Reads whole lines of a watch until `n` came.
async fn events(body: &mut ResponseBody, n: usize) -> Vec<Value> {
    let mut text = Vec::new();
    while text.iter().filter(|b| **b == b'\n').count() < n {
        let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.expect("an event in time");
        text.extend_from_slice(frame.expect("the watch goes on").unwrap().data_ref().unwrap());
    }
    let lines = text.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    lines.map(|l| serde_json::from_slice(l).unwrap()).collect()
}

#[tokio::test]
async fn watches_follow_and_translate() {
    let mut api = Api::start("watch").await;
    api.run(&[step("POST", CM, cm("a"), 201).keep("first", "/metadata/resourceVersion")]).await;
    let master = api.peer("admin", "system:masters");
    let mut all = api.send("GET", &format!("{CM}?watch=1&resourceVersion=$first"), &[], "", master.clone()).await.into_body();
    let mut some =
        api.send("GET", &format!("{CM}?watch=1&resourceVersion=$first&labelSelector=i%3Da"), &[], "", master.clone()).await.into_body();
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&fieldSelector=metadata.name%3Da";
    let mut initial = api.send("GET", &format!("{CM}?{query}"), &[], "", master.clone()).await.into_body();
    let first = events(&mut initial, 2).await;
    assert_eq!((&first[0]["type"], &first[1]["type"]), (&json!("ADDED"), &json!("BOOKMARK")));
    assert_eq!(first[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    api.run(&[
        step("PATCH", A, json!({"metadata": {"labels": {"i": "z"}}}), 200).patch(MERGE),
        step("POST", CM, cm("b"), 201),
        step("DELETE", A, Value::Null, 200),
    ])
    .await;
    let names = |events: Vec<Value>| -> Vec<String> {
        events.iter().map(|e| format!("{} {}", e["type"].as_str().unwrap(), e["object"]["metadata"]["name"].as_str().unwrap())).collect()
    };
    assert_eq!(names(events(&mut all, 3).await), ["MODIFIED a", "ADDED b", "DELETED a"]);
    // It left the selection: for this watcher it is gone.
    assert_eq!(names(events(&mut some, 1).await), ["DELETED a"]);
    api.store.compact(api.store.revision()).await.unwrap();
    let (code, answer) = api.json("GET", &format!("{CM}?watch=1&resourceVersion=abc"), &[], "").await;
    assert_eq!(
        (code, &answer["message"]),
        (500, &json!("resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax"))
    );
}

#[tokio::test]
async fn concurrent_patches_all_land() {
    let mut api = Api::start("concurrent").await;
    api.run(&[step("POST", CM, cm("a"), 201)]).await;
    let patches = (0..16).map(|i| {
        let body = json!({"data": {format!("k{i}"): "1"}}).to_string();
        let api = &api;
        async move { api.json("PATCH", A, &[("content-type", MERGE)], &body).await.0 }
    });
    let codes = futures_util::future::join_all(patches).await;
    assert!(codes.iter().all(|c| *c == 200), "{codes:?}");
    let (_, object) = api.json("GET", A, &[], "").await;
    assert_eq!(object["data"].as_object().unwrap().len(), 17);
}

#[tokio::test]
async fn one_watch_too_many_is_told_to_come_back() {
    let api = Api::start_with("watches", &[("watches-max", "2")]).await;
    let open = async || api.send("GET", "/api/v1/pods?watch=1", &[], "", api.peer("admin", "system:masters")).await;
    let (first, _second) = (open().await, open().await);
    assert_eq!(first.status(), 200);
    let refused = open().await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status["reason"], "TooManyRequests");
    assert!(status["message"].as_str().unwrap().starts_with("2 watches are open, which is as many as watches-max allows"), "{status}");
    // Requests of other kinds are not concerned, and the place of a watch that ended is free again.
    assert_eq!(api.json("GET", "/api/v1/pods", &[], "").await.0, 200);
    drop(first);
    assert_eq!(open().await.status(), 200);
}

/// A list too long to be assembled is the same list, in every encoding and view, compressed or not.
#[tokio::test]
async fn long_lists_are_streamed() {
    let api = Api::start("long").await;
    for i in 0..40 {
        let body = json!({"metadata": {"name": format!("c{i:02}")}, "data": {"k": "v".repeat(8000)}});
        assert_eq!(api.json("POST", CM, &[], &body.to_string()).await.0, 201);
    }
    let get = async |accept: &str, more: &[(&str, &str)], query: &str| {
        let headers = [&[("accept", accept)], more].concat();
        let response = api.send("GET", &format!("{CM}{query}"), &headers, "", api.peer("admin", "system:masters")).await;
        assert_eq!(response.status(), 200, "{accept}");
        let whole = response.headers().contains_key("content-length");
        (whole, response.into_body().collect().await.unwrap().to_bytes())
    };
    let names = |list: &Value, pointer: &str| -> Vec<String> {
        let items = list["items"].as_array().or(list["rows"].as_array()).unwrap();
        items.iter().filter_map(|i| i.pointer(pointer)?.as_str()).filter(|n| n.starts_with('c')).map(str::to_string).collect()
    };
    let expected: Vec<String> = (0..40).map(|i| format!("c{i:02}")).collect();
    let (whole, body) = get("application/json", &[], "").await;
    assert!(!whole && body.ends_with(b"]}\n"));
    let plain: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((names(&plain, "/metadata/name"), &plain["kind"]), (expected.clone(), &json!("ConfigMapList")));
    let (whole, packed) = get("application/json", &[("accept-encoding", "gzip")], "").await;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&packed[..]), &mut text).unwrap();
    assert!(!whole && text.as_bytes() == body);
    let (_, table) = get("application/json;as=Table;v=v1;g=meta.k8s.io", &[], "").await;
    let table: Value = serde_json::from_slice(&table).unwrap();
    assert_eq!((names(&table, "/cells/0"), names(&table, "/object/metadata/name")), (expected.clone(), expected.clone()));
    let (_, partial) = get("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", &[], "").await;
    let partial: Value = serde_json::from_slice(&partial).unwrap();
    assert_eq!((names(&partial, "/metadata/name"), &partial["kind"]), (expected, &json!("PartialObjectMetadataList")));
    // What is not streamed says the same.
    let (whole, pretty) = get("application/json", &[], "?pretty=true").await;
    assert!(whole && serde_json::from_slice::<Value>(&pretty).unwrap() == plain);
    let (_, protobuf) = get("application/vnd.kubernetes.protobuf", &[], "").await;
    let (version, kind, raw) = coracle::api::protobuf::open(&protobuf).unwrap();
    let ty = coracle::api::schema::type_of(&version, &kind).unwrap();
    let mut decoded = coracle::api::protobuf::decode(ty, raw).unwrap();
    decoded.set(&["kind"], kind.as_str());
    decoded.set(&["apiVersion"], version.as_str());
    assert_eq!(serde_json::Value::from(&decoded), plain);
}
