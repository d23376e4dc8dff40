//! Recorded answers: every scenario of `tests/oracle/` replayed against an API server in this process, over real connections.
//!
//! `make oracle` runs this alone. `ORACLE=<prefix>[,<prefix>…]` replays just the scenarios whose names start so, with full diffs;
//! `UPDATE_EXPECT=1` adds new passes to `tests/oracle/expected.txt`; `ORACLE_DATA=<folder>` adds the scenario files in it. Rules: `tests/oracle/README.md`.
//! What fails is in `target/oracle/`, a file per category.

mod client;

mod normal;

mod ordered;

mod scenario;

mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use coracle::api::driver::Driver;
use coracle::api::request::User;
use coracle::api::time::SystemClock;
use coracle::config::{Config, Settings};
use coracle::pki::Pki;
use coracle::server::{self, controllers};
use coracle::task::Shutdown;
use coracle::transport::Connector;
use coracle::transport::Port;
use serde::Deserialize;
use serde_json::{Value, json};

use client::{Client, Outgoing};
use scenario::Scenario;

/// Scenarios in flight: many of them wait for something.
const WORKERS: usize = 24;
/// Stands for the token of the corpus in this run's names; the server is fresh, so any will do.
const RUN: &str = "ab01";
/// Failures shown on the terminal, unless they were asked for by name.
const SHOWN_MAX: usize = 20;

/// A plain GET whose answer is compared after `transform`.
#[derive(Deserialize)]
struct Plain {
    name: String,
    #[serde(rename = "do")]
    request: String,
    accept: String,
    transform: String,
    want: Value,
}

enum Case {
    Plain(Plain),
    Scenario(Scenario),
}

impl Case {
    fn name(&self) -> &str {
        match self {
            Case::Plain(plain) => &plain.name,
            Case::Scenario(scenario) => &scenario.name,
        }
    }

    /// `first`: before all others, one by one; `serial`: after them; `kcm:<controller>`: then, beside that controller; else together.
    fn phase(&self) -> Phase {
        match self {
            Case::Plain(_) => Phase::First,
            Case::Scenario(s) if s.flags.iter().any(|f| f == "first") => Phase::First,
            Case::Scenario(s) if s.flags.iter().any(|f| f == "serial") => Phase::Serial,
            Case::Scenario(s) if s.flags.iter().any(|f| f.starts_with(BESIDE)) => Phase::Beside,
            Case::Scenario(_) => Phase::Together,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    First,
    Together,
    Serial,
    Beside,
}

/// Flags of scenarios that need a controller beside the API server.
const BESIDE: &str = "kcm:";

/// What differed, by name; nothing for those that passed.
type Results = BTreeMap<String, Vec<String>>;

#[test]
fn recorded_answers_are_given() {
    let wanted: Vec<String> = std::env::var("ORACLE").unwrap_or_default().split(',').map(str::trim).map(str::to_string).collect();
    let is_all = wanted.iter().all(String::is_empty);
    let mut cases = load(&folder("scenarios"));
    if let Ok(more) = std::env::var("ORACLE_DATA") {
        cases.extend(load(Path::new(&more)));
    }
    cases.retain(|case| wanted.iter().any(|prefix| case.name().starts_with(prefix.as_str())));
    assert!(!cases.is_empty(), "no scenario is called {wanted:?}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let started = Instant::now();
    let shown = if is_all { SHOWN_MAX } else { usize::MAX };
    let mut results = runtime.block_on(replay(cases, shown, if is_all { 8 } else { 400 }));
    // Some scenarios wait for something with a deadline, and this machine may be doing other things. What is lost must be lost alone, too.
    let lost = lost(&results, &expected());
    if !lost.is_empty() {
        let mut again = load(&folder("scenarios"));
        again.retain(|case| lost.contains(case.name()));
        for (name, problems) in runtime.block_on(replay(again, shown, 400)) {
            if problems.is_empty() {
                say(&format!("{name} passed only when tried again: {}", results[&name].join("\n    ")));
            }
            results.insert(name, problems);
        }
    }
    say(&format!("\n{}{:>40.1}s\n", table(&results), started.elapsed().as_secs_f64()));
    keep(&results);
    ratchet(&results);
}

/// To the terminal, also where the test harness captures what is printed.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle").join(name)
}

/// Every scenario under a folder, and the plain answers beside the project's own.
fn load(root: &Path) -> Vec<Case> {
    fn files(at: &Path, out: &mut Vec<PathBuf>) {
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(at).unwrap_or_else(|e| panic!("{}: {e}", at.display())).map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            match path.is_dir() {
                true => files(&path, out),
                false => out.push(path),
            }
        }
    }
    let mut paths = Vec::new();
    files(root, &mut paths);
    let is_lines = |p: &&PathBuf| p.to_string_lossy().trim_end_matches(".gz").ends_with(".jsonl");
    let parse = |line: &str, path: &Path| serde_json::from_str(line).unwrap_or_else(|e| panic!("{}: {e}: {line:.200}", path.display()));
    let mut cases = Vec::new();
    for path in paths.iter().filter(is_lines) {
        cases.extend(lines(path).iter().map(|line| Case::Scenario(parse(line, path))));
    }
    if root == folder("scenarios") {
        let plain = |line: &String| Case::Plain(serde_json::from_str(line).expect("a plain answer"));
        cases.extend(lines(&folder("files.jsonl.gz")).iter().map(plain));
    }
    cases
}

fn lines(path: &Path) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut text = String::new();
    match path.extension().is_some_and(|e| e == "gz") {
        true => flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).map(|_| ()).unwrap(),
        false => text = String::from_utf8(bytes).unwrap(),
    }
    text.lines().filter(|l| !l.trim().is_empty()).map(str::to_string).collect()
}

/// Starts a server, replays, stops it.
async fn replay(cases: Vec<Case>, shown: usize, limit: usize) -> Results {
    let bench = Bench::start().await;
    let results = Arc::new(Mutex::new(Results::new()));
    let (first, rest): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(|c| c.phase() == Phase::First);
    let (together, rest): (Vec<Case>, Vec<Case>) = rest.into_iter().partition(|c| c.phase() == Phase::Together);
    let (serial, beside): (Vec<Case>, Vec<Case>) = rest.into_iter().partition(|c| c.phase() == Phase::Serial);
    let mut running = None;
    for (cases, workers) in [(first, 1), (together, WORKERS), (serial, 1), (beside, WORKERS)] {
        let flags = cases.iter().flat_map(|case| if let Case::Scenario(scenario) = case { &scenario.flags[..] } else { &[] });
        let wanted: BTreeSet<String> = flags.filter_map(|flag| flag.strip_prefix(BESIDE)).map(str::to_string).collect();
        if !wanted.is_empty() {
            running = Some(bench.beside(&wanted));
        }
        let queue = Arc::new(Mutex::new(cases.into_iter()));
        let work = (0..workers).map(|_| {
            let (queue, results, server) = (queue.clone(), results.clone(), bench.server.clone());
            tokio::spawn(async move {
                let mut client = Client::new(&server);
                while let Some(case) = { queue.lock().unwrap().next() } {
                    let problems = match &case {
                        Case::Plain(plain) => check_plain(&mut client, plain, limit).await,
                        Case::Scenario(scenario) => scenario::run(&mut client, scenario, RUN, limit).await,
                    };
                    let mut results = results.lock().unwrap();
                    if !problems.is_empty() && results.values().filter(|p| !p.is_empty()).count() < shown {
                        say(&format!("FAIL {}\n    {}", case.name(), problems.join("\n    ")));
                    }
                    results.insert(case.name().to_string(), problems);
                }
            })
        });
        for worker in work.collect::<Vec<_>>() {
            worker.await.expect("a worker works to its end");
        }
    }
    if let Some(running) = running {
        running.stop().await;
    }
    bench.stop().await;
    Arc::into_inner(results).expect("the workers are gone").into_inner().unwrap()
}

/// An API server alone, set up as the recorded one was.
struct Bench {
    server: Arc<client::Server>,
    running: server::Server,
    shutdown: Shutdown,
    _dir: Scratch,
}

/// A folder that goes with this.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Bench {
    async fn start() -> Bench {
        // The port clients see is recorded, too: each run has a loopback address of its own instead.
        let id = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 100 + (id[1] & 63), id[2], id[3]);
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let dir = Scratch(base.join(format!("coracle-oracle-{}", std::process::id())));
        let mut settings = Settings::load(Some(Path::new("/dev/null")), std::iter::empty()).unwrap();
        for (key, value) in [
            ("data-dir", dir.0.to_str().unwrap()),
            ("bind-address", &address.to_string()),
            ("https-listen-port", "6443"),
            ("service-cidr", "10.96.0.0/16,fd00:10:96::/112"),
            ("advertise-address", "192.0.2.1"),
            ("node-name", "oracle"),
            ("node-ip", "192.0.2.1"),
            ("disable-agent", "true"),
            ("disable-controller-manager", "true"),
            ("disable-scheduler", "true"),
        ] {
            settings.set(key, value.to_string(), "the oracle".to_string());
        }
        let config = Config::from_settings(&settings).unwrap();
        let pki = Pki::load_or_create(&config.pki_dir()).unwrap();
        let shutdown = Shutdown::new();
        let port = Port::open(std::net::SocketAddr::new(config.bind_address, config.https_listen_port)).await.unwrap();
        let running = server::Server::start(&config, &pki, port, Arc::new(SystemClock), &shutdown).await.unwrap();
        let identity = pki.client.client("admin", &["system:masters"]).unwrap();
        let connector = |identity| Connector::new(&pki.cluster.certificate, identity, &["http/1.1"]).unwrap();
        let server = client::Server {
            address: format!("{}:{}", IpAddr::V4(address), running.address().port()),
            admin: connector(Some(&identity)),
            nobody: connector(None),
        };
        Bench { server: Arc::new(server), running, shutdown, _dir: dir }
    }

    /// Starts these controllers, those of them there are.
    fn beside(&self, names: &BTreeSet<String>) -> Driver {
        let transport = self.running.transport();
        let clients = Arc::new(move |name: &str| coracle::api::client::Client::new(transport.clone(), User::controller(name)));
        let mut all = controllers::all(&controllers::Config::default());
        all.retain(|controller| names.contains(controller.name()));
        Driver::start("controllers", clients, "generic-garbage-collector", all)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.store().close().await;
    }
}

async fn check_plain(client: &mut Client<'_>, plain: &Plain, limit: usize) -> Vec<String> {
    let path = plain.request.strip_prefix("GET ").unwrap_or(&plain.request).to_string();
    let headers = vec![("Accept".to_string(), plain.accept.clone()), ("User-Agent".to_string(), "oracle/1".to_string())];
    let answer = match client.send(&Outgoing { method: "GET".into(), path, headers, body: None, anonymous: false }).await {
        Ok(answer) => answer,
        Err(error) => return vec![error],
    };
    if answer.status != 200 {
        return vec![format!("{} -> {}", plain.request, answer.status)];
    }
    let text = normal::hide_hashes(String::from_utf8_lossy(&answer.body).into_owned());
    let mut got: Value = match serde_json::from_str(&text) {
        Ok(got) => got,
        Err(error) => return vec![format!("{}: {error}", plain.request)],
    };
    hide_addresses(&mut got);
    match plain.transform.as_str() {
        "strip-descriptions" => strip_descriptions(&mut got),
        "facts" => {
            let key = |fact: &Value| (fact["metadata"]["namespace"].to_string(), fact["metadata"]["name"].to_string());
            let wanted: BTreeSet<_> = plain.want.as_array().into_iter().flatten().map(key).collect();
            got = facts(&got).into_iter().filter(|fact| wanted.contains(&key(fact))).collect();
        }
        _ => {}
    }
    if got == plain.want {
        return Vec::new();
    }
    let mut lines = vec![plain.request.clone()];
    scenario::differences(&plain.want, &got, "", &mut lines, limit);
    lines
}

fn hide_addresses(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, member) in map {
                match member {
                    Value::String(s) if key == "serverAddress" => *s = "<address>".into(),
                    other => hide_addresses(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_addresses),
        _ => {}
    }
}

fn strip_descriptions(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, member| !(key == "description" && member.is_string()));
            map.values_mut().for_each(strip_descriptions);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_descriptions),
        _ => {}
    }
}

/// What is constant of the objects of a list, by namespace and name.
fn facts(list: &Value) -> Vec<Value> {
    let mut out = Vec::new();
    for object in list["items"].as_array().into_iter().flatten() {
        let metadata = object["metadata"].as_object().cloned().unwrap_or_default();
        let kept = ["name", "namespace", "labels", "annotations", "finalizers"];
        let metadata: serde_json::Map<String, Value> = metadata.into_iter().filter(|(k, _)| kept.contains(&k.as_str())).collect();
        let mut fact = json!({"metadata": metadata});
        for (key, member) in object.as_object().into_iter().flatten() {
            if !["metadata", "status", "apiVersion", "kind"].contains(&key.as_str()) {
                fact[key] = member.clone();
            }
        }
        if fact["metadata"]["namespace"] == "default" && fact["metadata"]["name"] == "kubernetes" {
            let port = fact.pointer_mut("/spec/ports/0").and_then(Value::as_object_mut);
            port.map(|port| port.remove("targetPort"));
        }
        out.push(fact);
    }
    let text = |fact: &Value, member: &str| fact["metadata"][member].as_str().unwrap_or("").to_string();
    out.sort_by_key(|fact| (text(fact, "namespace"), text(fact, "name")));
    out
}

fn category(name: &str) -> &str {
    name.split('/').next().unwrap_or(name)
}

fn table(results: &Results) -> String {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (name, problems) in results {
        for row in [category(name), "total"] {
            let count = counts.entry(row).or_default();
            count.0 += usize::from(problems.is_empty());
            count.1 += 1;
        }
    }
    let total = counts.remove("total").unwrap_or_default();
    let line = |name: &str, (passed, all): (usize, usize)| {
        format!("{name:<14} {passed:>5} / {all:<5} {:>6.2}%\n", 100.0 * passed as f64 / all.max(1) as f64)
    };
    counts.into_iter().map(|(name, count)| line(name, count)).collect::<String>() + line("total", total).trim_end()
}

/// What failed and why, for reading: a file per category.
fn keep(results: &Results) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/oracle");
    std::fs::create_dir_all(&folder).unwrap();
    let mut texts: BTreeMap<&str, String> = BTreeMap::new();
    for (name, problems) in results {
        let text = texts.entry(category(name)).or_default();
        if !problems.is_empty() {
            *text += &format!("FAIL {name}\n    {}\n", problems.join("\n    "));
        }
    }
    for (category, text) in texts {
        std::fs::write(folder.join(format!("{category}.txt")), text).unwrap();
    }
}

fn expected() -> BTreeSet<String> {
    let text = std::fs::read_to_string(folder("expected.txt")).unwrap_or_default();
    text.lines().filter(|l| !l.is_empty()).map(str::to_string).collect()
}

/// What passed before and does not now.
fn lost(results: &Results, expected: &BTreeSet<String>) -> BTreeSet<String> {
    let failed = results.iter().filter(|(_, problems)| !problems.is_empty()).map(|(name, _)| name);
    failed.filter(|name| expected.contains(*name)).cloned().collect()
}

/// What passed once has to pass; new passes are added on demand.
fn ratchet(results: &Results) {
    let path = folder("expected.txt");
    let mut expected = expected();
    let lost = lost(results, &expected);
    let passed = results.iter().filter(|(_, problems)| problems.is_empty()).map(|(name, _)| name);
    let new: Vec<String> = passed.filter(|name| !expected.contains(*name)).cloned().collect();
    if !new.is_empty() && std::env::var("UPDATE_EXPECT").is_ok_and(|v| v == "1") {
        say(&format!("{} new passes added to {}", new.len(), path.display()));
        expected.extend(new);
        std::fs::write(&path, expected.iter().map(|name| format!("{name}\n")).collect::<String>()).unwrap();
    } else if !new.is_empty() {
        say(&format!("{} new passes; UPDATE_EXPECT=1 adds them to {}", new.len(), path.display()));
    }
    assert!(lost.is_empty(), "{} scenarios passed before and fail now: {lost:#?}\nsee target/oracle/", lost.len());
}
