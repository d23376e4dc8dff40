//! Figures of the release build, each printed beside its aim and upstream's, with how it was measured.
//!
//! `cargo bench` runs every section; `SECTION=<name>` one of [`SECTIONS`]; `IDLE_MINUTES` (10) is how long the idle cluster's
//! writes are counted. Root is needed. A section makes a node in namespaces of its own (the harness of the tests), then runs
//! this program once more inside them: the client is a process of its own, and only the server's CPU is reported.

#[path = "../tests/it/image.rs"]
#[allow(dead_code)]
mod image;
#[path = "../tests/it/node.rs"]
#[allow(dead_code)]
mod node;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use coracle::pki::Identity;
use coracle::transport::Connector;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use node::{EXE, Node};

const SECTIONS: &[&str] = &["binary", "ready", "create", "list", "watch", "pods", "idle"];
/// The API server without anything that reacts to what is created.
const API_ALONE: &[&str] = &["--disable-agent", "--disable-controller-manager", "--disable-scheduler"];
const READY_RUNS: usize = 5;
const CREATE_SECONDS: u64 = 5;
const LISTED: usize = 10_000;
const WATCHERS: u64 = 1_000;
const STREAMS_PER_CONNECTION: u64 = 50;
const WRITES: u64 = 200;
const PODS: usize = 20;
const IDLE_CPU: Duration = Duration::from_secs(120);
/// A fresh cluster settles (probes, checkpoints of what start wrote) before it counts as idle.
const SETTLE: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(60);

const SECTION: &str = "FIGURES_INSIDE";

fn main() {
    if let Ok(section) = std::env::var(SECTION) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(inside(&section));
    }
    let one = std::env::var("SECTION").ok();
    if let Some(one) = &one {
        assert!(SECTIONS.contains(&one.as_str()), "SECTION={one} is none of {SECTIONS:?}");
    }
    println!("load average {}", std::fs::read_to_string("/proc/loadavg").unwrap().trim());
    for section in SECTIONS.iter().filter(|s| one.as_ref().is_none_or(|one| one == *s)) {
        println!("\n{section}");
        match *section {
            "binary" => binary(),
            "ready" => ready(),
            "pods" | "idle" => with_node(section),
            _ => with_api(section),
        }
    }
}

/// One line: ours, the aim, upstream's (1.36 on a like machine), how.
fn figure(what: &str, ours: String, aim: &str, upstream: &str, how: &str) {
    println!("  {what:<34} {ours:<28} aim {aim:<10} upstream {upstream:<10} ({how})");
}

fn binary() {
    let size = std::fs::metadata(EXE).unwrap().len();
    figure("executable", format!("{:.1} MB", size as f64 / 1e6), "30 MB", "300 MB", "size of the stripped static file");
}

fn ready() {
    let mut times: Vec<f64> = (0..READY_RUNS)
        .map(|run| {
            let mut node = Node::prepare(&format!("ready{run}"));
            let child = within(&node, "ready").stdout(Stdio::piped()).spawn().unwrap();
            let start = epoch();
            node.start_daemon(&[]);
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", node.log());
            let seen: f64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
            seen - start
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let all = times.iter().map(|t| format!("{t:.2}")).collect::<Vec<_>>().join(" ");
    let how = format!("median of {READY_RUNS} on an empty data dir: {all}; node read every 5 ms");
    figure("exec to node Ready", format!("{:.2} s", times[READY_RUNS / 2]), "1 s", "4-5 s", &how);
}

fn with_node(section: &str) {
    let mut node = Node::prepare(section);
    node.import_sample();
    let has_disk = section == "idle";
    if has_disk {
        mount_disk(&node);
    }
    node.start_daemon(&[]);
    run_within(&node, section);
    if has_disk {
        assert!(node.enter("umount").arg("--lazy").arg(node.data_dir().join("store")).status().unwrap().success());
    }
}

/// Gives the store a disk of its own, whose counter nobody else moves: an ext4 on a loop device.
fn mount_disk(node: &Node) {
    let (image, store) = (node.dir.join("disk"), node.data_dir().join("store"));
    std::fs::create_dir_all(&store).unwrap();
    std::fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
    let made =
        std::process::Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&image).status();
    assert!(made.unwrap().success());
    assert!(node.enter("mount").args(["-o", "loop"]).args([&image, &store]).status().unwrap().success());
}

/// Bytes written to the device that holds the store.
fn written_to_disk() -> u64 {
    use std::os::linux::fs::MetadataExt as _;
    let dir = PathBuf::from(std::env::var("CORACLE_DATA_DIR").unwrap()).join("store");
    let device = std::fs::metadata(dir).unwrap().st_dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).unwrap();
    // Sectors are 512 bytes here whatever the device has.
    stat.split_whitespace().nth(6).unwrap().parse::<u64>().unwrap() * 512
}

fn with_api(section: &str) {
    let mut node = Node::prepare(section);
    node.start_daemon(API_ALONE);
    run_within(&node, section);
}

fn run_within(node: &Node, section: &str) {
    let status = within(node, section).status().unwrap();
    assert!(status.success(), "section {section} failed; the daemon's log:\n{}", node.log());
}

/// This program, inside the node's namespaces.
fn within(node: &Node, section: &str) -> std::process::Command {
    let mut command = node.enter(std::env::current_exe().unwrap());
    command.env(SECTION, section);
    command
}

fn epoch() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

// ---- inside the namespaces

async fn inside(section: &str) {
    let cluster = Cluster::wait().await;
    let daemon = processes(" server --node-name").pop().expect("the daemon runs");
    match section {
        "ready" => {
            cluster.node_ready().await;
            println!("{}", epoch());
        }
        "create" => create(&cluster, daemon).await,
        "list" => list(&cluster, daemon).await,
        "watch" => watch(&cluster, daemon).await,
        "pods" => pods(&cluster).await,
        "idle" => idle(&cluster, daemon).await,
        other => panic!("{other} is not a section"),
    }
}

/// How to reach the API as its administrator.
struct Cluster {
    connector: Connector,
}

impl Cluster {
    /// Waits for the credentials and for the API to answer.
    async fn wait() -> Cluster {
        let dir = PathBuf::from(std::env::var("CORACLE_DATA_DIR").unwrap());
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(connector) = connector(&dir) {
                let cluster = Cluster { connector };
                if let Some(mut http) = cluster.try_connect().await
                    && http.get("/readyz", JSON).await.0 == 200
                {
                    return cluster;
                }
            }
            assert!(Instant::now() < end, "the API does not answer");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn try_connect(&self) -> Option<Http> {
        let stream = self.connector.connect("127.0.0.1:6443", "127.0.0.1").await.ok()?;
        // Windows as client-go has them: a large answer does not wait for us.
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(4 << 20).initial_connection_window_size(64 << 20);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        Some(Http { sender })
    }

    async fn connect(&self) -> Http {
        self.try_connect().await.expect("the API accepts a connection")
    }

    async fn node_ready(&self) {
        let mut http = self.connect().await;
        let end = Instant::now() + PATIENCE;
        loop {
            let (code, body) = http.get("/api/v1/nodes/node-1", JSON).await;
            let node: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            if code == 200 && conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True") {
                return;
            }
            assert!(Instant::now() < end, "the node does not become Ready: {node}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Pods need one; with no controllers nobody makes it.
    async fn service_account(&self) {
        let body = r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default"}}"#;
        let (code, answer) = self.connect().await.post("/api/v1/namespaces/default/serviceaccounts", body.into()).await;
        assert!(code == 201 || code == 409, "{code} {}", String::from_utf8_lossy(&answer));
    }
}

fn connector(dir: &Path) -> Option<Connector> {
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).ok();
    let identity = Identity { certificate: read("admin.crt")?, key: read("admin.key")? };
    Connector::new(&read("pki/cluster-ca.crt")?, Some(&identity), &["h2"]).ok()
}

const JSON: &str = "application/json";

/// One HTTP/2 connection; answers are not decoded.
#[derive(Clone)]
struct Http {
    sender: http2::SendRequest<Full<Bytes>>,
}

impl Http {
    async fn send(&mut self, method: &str, path: &str, accept: &str, body: Bytes) -> http::Response<Incoming> {
        let request = http::Request::builder().method(method).uri(format!("https://127.0.0.1:6443{path}"));
        let request = request.header("accept", accept).header("content-type", JSON).body(Full::new(body)).unwrap();
        self.sender.ready().await.unwrap();
        self.sender.send_request(request).await.unwrap()
    }

    async fn whole(&mut self, method: &str, path: &str, accept: &str, body: Bytes) -> (u16, Bytes) {
        let answer = self.send(method, path, accept, body).await;
        (answer.status().as_u16(), answer.into_body().collect().await.unwrap().to_bytes())
    }

    async fn get(&mut self, path: &str, accept: &str) -> (u16, Bytes) {
        self.whole("GET", path, accept, Bytes::new()).await
    }

    async fn post(&mut self, path: &str, body: Bytes) -> (u16, Bytes) {
        self.whole("POST", path, JSON, body).await
    }
}

/// What /proc says of one process.
#[derive(Clone, Copy)]
struct Process(u32);

impl Process {
    /// User and system seconds, all threads.
    fn cpu(self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap();
        let after_name = stat.rsplit_once(')').unwrap().1;
        let field = |n: usize| after_name.split_whitespace().nth(n).unwrap().parse::<f64>().unwrap();
        // USER_HZ is 100 on every Linux ABI.
        (field(11) + field(12)) / 100.0
    }

    fn threads(self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.0)).unwrap().count()
    }

    /// (RSS, PSS) in MB.
    fn memory(self) -> (f64, f64) {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0)).unwrap_or_default();
        let kb = |key: &str| {
            let line = rollup.lines().find_map(|l| l.strip_prefix(key)).unwrap_or("0 kB");
            line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1e3
        };
        (kb("Rss:"), kb("Pss:"))
    }

    fn command_line(self) -> String {
        let bytes = std::fs::read(format!("/proc/{}/cmdline", self.0)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    }
}

/// A pod of some 4 KB, as real ones are.
fn pod(name: &str, node: &str) -> Bytes {
    let env: Vec<_> = (0..40)
        .map(|n| serde_json::json!({"name": format!("SETTING_{n:02}"), "value": format!("a value of ordinary length, number {n}")}))
        .collect();
    let container = |name: &str| {
        serde_json::json!({"name": name, "image": "coracle.local/echo:1", "imagePullPolicy": "IfNotPresent", "env": env[..20],
            "ports": [{"name": "http", "containerPort": 8080}], "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}}, "volumeMounts": [{"name": "config", "mountPath": "/etc/config"}]})
    };
    let mut pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "figures", "tier": "backend", "release": "stable"}, "annotations": {"figures.example/why": "a load test"}},
        "spec": {"containers": [container("main"), container("side")], "volumes": [{"name": "config", "configMap": {"name": "figures"}}]}});
    if !node.is_empty() {
        pod["spec"]["nodeName"] = node.into();
    }
    serde_json::to_vec(&pod).unwrap().into()
}

const PODS_PATH: &str = "/api/v1/namespaces/default/pods";

/// `clients` connections create pods in a closed loop until `go_on` says no; gives the latencies in ms, sorted.
async fn create_pods(
    cluster: &Cluster,
    prefix: &str,
    node: &str,
    clients: usize,
    go_on: impl Fn(usize) -> bool + Clone + 'static,
) -> Vec<f64> {
    let local = tokio::task::LocalSet::new();
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..clients {
        let (mut http, next, go_on, prefix, node) =
            (cluster.connect().await, next.clone(), go_on.clone(), prefix.to_string(), node.to_string());
        tasks.push(local.spawn_local(async move {
            let mut latencies = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if !go_on(usize::try_from(n).unwrap()) {
                    return latencies;
                }
                let body = pod(&format!("{prefix}-{n}"), &node);
                let start = Instant::now();
                let (code, answer) = http.post(PODS_PATH, body).await;
                assert_eq!(code, 201, "{}", String::from_utf8_lossy(&answer));
                latencies.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }));
    }
    let mut latencies = Vec::new();
    local
        .run_until(async {
            for task in tasks {
                latencies.extend(task.await.unwrap());
            }
        })
        .await;
    latencies.sort_by(f64::total_cmp);
    latencies
}

/// Of sorted values.
fn percentile(sorted: &[f64], of_hundred: usize) -> f64 {
    sorted[(sorted.len() * of_hundred / 100).min(sorted.len() - 1)]
}

async fn create(cluster: &Cluster, daemon: Process) {
    cluster.service_account().await;
    for clients in [1, 16, 64] {
        // Connections are made and code is warm before the clock starts.
        create_pods(cluster, &format!("warm-{clients}"), "", clients, |n| n < 200).await;
        let (start, cpu) = (Instant::now(), daemon.cpu());
        let end = start + Duration::from_secs(CREATE_SECONDS);
        let latencies = create_pods(cluster, &format!("c{clients}"), "", clients, move |_| Instant::now() < end).await;
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), daemon.cpu() - cpu);
        let many = latencies.len() as f64;
        let (aim, upstream) = if clients == 64 { ("3000/s", "336/s") } else { ("-", "-") };
        let how = format!(
            "pods of {} bytes JSON, API server alone, a TLS connection a client, closed loop, {CREATE_SECONDS} s",
            pod("c64-1000", "").len()
        );
        figure(
            &format!("create at {clients} clients"),
            format!("{:.0}/s p99 {:.1} ms", many / seconds, percentile(&latencies, 99)),
            aim,
            upstream,
            &how,
        );
        figure(
            "  CPU a create",
            format!("{:.2} ms", cpu / many * 1e3),
            "0.4 ms",
            "5.1 ms",
            "user and system time of the server, TLS and fsync included",
        );
    }
}

async fn list(cluster: &Cluster, daemon: Process) {
    cluster.service_account().await;
    create_pods(cluster, "list", "node-1", 16, |n| n < LISTED).await;
    let mut http = cluster.connect().await;
    for (what, accept) in
        [("JSON", JSON), ("protobuf", "application/vnd.kubernetes.protobuf"), ("Table", "application/json;as=Table;v=v1;g=meta.k8s.io")]
    {
        let (mut best, mut size) = (f64::MAX, 0);
        let cpu = daemon.cpu();
        for _ in 0..3 {
            let start = Instant::now();
            let (code, body) = http.get("/api/v1/pods", accept).await;
            assert_eq!(code, 200);
            best = best.min(start.elapsed().as_secs_f64());
            size = body.len();
        }
        let cpu = (daemon.cpu() - cpu) / 3.0;
        let ours = format!("{:.0} ms, {:.1} MB, CPU {:.0} ms", best * 1e3, size as f64 / 1e6, cpu * 1e3);
        figure(&format!("list of {LISTED} pods, {what}"), ours, "-", "-", "best of 3, whole body read, no compression; CPU the mean");
    }
    let (rss, _) = daemon.memory();
    figure("  RSS with them", format!("{rss:.0} MB"), "-", "-", "VmRSS of the server");
}

async fn watch(cluster: &Cluster, daemon: Process) {
    cluster.service_account().await;
    let seen = Arc::new(AtomicU64::new(0));
    let all = Arc::new(tokio::sync::Notify::new());
    for _ in 0..WATCHERS / STREAMS_PER_CONNECTION {
        let mut http = cluster.connect().await;
        for _ in 0..STREAMS_PER_CONNECTION {
            let answer = http.send("GET", &format!("{PODS_PATH}?watch=true&resourceVersion=0"), JSON, Bytes::new()).await;
            assert_eq!(answer.status().as_u16(), 200);
            let (seen, all, mut body) = (seen.clone(), all.clone(), answer.into_body());
            tokio::spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    let lines = frame.data_ref().map_or(0, |d| d.iter().filter(|b| **b == b'\n').count());
                    if seen.fetch_add(lines as u64, Ordering::Relaxed) + lines as u64 == WATCHERS * WRITES {
                        all.notify_one();
                    }
                }
            });
        }
    }
    let (start, cpu) = (Instant::now(), daemon.cpu());
    create_pods(cluster, "watched", "", 1, |n| n < usize::try_from(WRITES).unwrap()).await;
    let written = start.elapsed().as_secs_f64();
    let waited = tokio::time::timeout(PATIENCE, all.notified()).await;
    assert!(waited.is_ok(), "{} of {} events arrived", seen.load(Ordering::Relaxed), WATCHERS * WRITES);
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), daemon.cpu() - cpu);
    let each = cpu / (WATCHERS * WRITES) as f64 * 1e6;
    let how = format!(
        "server CPU over all {WATCHERS} x {WRITES} events in {seconds:.1} s (writes took {written:.1} s), the creates' own included; {STREAMS_PER_CONNECTION} streams a connection"
    );
    figure("watch event and watcher", format!("{each:.1} us CPU"), "5 us", "68 us", &how);
}

async fn pods(cluster: &Cluster) {
    cluster.node_ready().await;
    let mut http = cluster.connect().await;
    let end = Instant::now() + PATIENCE;
    while http.get("/api/v1/namespaces/default/serviceaccounts/default", JSON).await.0 != 200 {
        assert!(Instant::now() < end, "no service account");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (mut running, mut output) = (Vec::new(), Vec::new());
    for n in 0..PODS {
        let name = format!("started-{n}");
        let selector = format!("{PODS_PATH}?watch=true&fieldSelector=metadata.name%3D{name}");
        let mut events = http.send("GET", &selector, JSON, Bytes::new()).await.into_body();
        let manifest = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": "coracle.local/echo:1", "imagePullPolicy": "IfNotPresent"}]}});
        let (start, created) = (Instant::now(), epoch());
        let (code, answer) = http.post(PODS_PATH, manifest.to_string().into()).await;
        assert_eq!(code, 201, "{}", String::from_utf8_lossy(&answer));
        let mut text = Vec::new();
        let seen = tokio::time::timeout(PATIENCE, async {
            // The events' text is searched, not decoded: only this pod's are in it.
            while !String::from_utf8_lossy(&text).contains(r#""phase":"Running""#) {
                let frame = events.frame().await.expect("the watch goes on").unwrap();
                text.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
            }
        });
        assert!(seen.await.is_ok(), "{name} is not Running:\n{}", String::from_utf8_lossy(&text));
        running.push(start.elapsed().as_secs_f64() * 1e3);
        let line = loop {
            let (code, log) = http.get(&format!("{PODS_PATH}/{name}/log?timestamps=true"), "*/*").await;
            if code == 200 && log.contains(&b'\n') {
                break String::from_utf8_lossy(&log).into_owned();
            }
            assert!(start.elapsed() < PATIENCE, "{name} prints nothing: {code} {}", String::from_utf8_lossy(&log));
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let stamp: jiff::Timestamp = line.split(' ').next().unwrap().parse().unwrap();
        output.push((stamp.as_nanosecond() as f64 / 1e9 - created) * 1e3);
        http.whole("DELETE", &format!("{PODS_PATH}/{name}?gracePeriodSeconds=0"), JSON, Bytes::new()).await;
    }
    for (what, mut times, aim, upstream, how) in [
        ("pod create to Running", running, "100 ms p50", "634 ms", "seen by a watch"),
        ("pod create to first output", output, "-", "-", "the time stamp of the log's first line"),
    ] {
        times.sort_by(f64::total_cmp);
        let ours = format!("p50 {:.0} ms, p99 {:.0} ms", percentile(&times, 50), percentile(&times, 99));
        figure(what, ours, aim, upstream, &format!("{PODS} one after another, image present; {how}"));
    }
}

async fn idle(cluster: &Cluster, daemon: Process) {
    cluster.node_ready().await;
    let minutes: u64 = std::env::var("IDLE_MINUTES").ok().map_or(10, |m| m.parse().expect("IDLE_MINUTES is a number"));
    let mut http = cluster.connect().await;
    for document in coracle::sample::MANIFEST.split("\n---\n") {
        let object: serde_json::Value = serde_yaml_ng::from_str(document).unwrap();
        let path = if object["kind"] == "Service" {
            "/api/v1/namespaces/default/services"
        } else {
            "/apis/apps/v1/namespaces/default/deployments"
        };
        let (code, answer) = http.post(path, object.to_string().into()).await;
        assert_eq!(code, 201, "{}", String::from_utf8_lossy(&answer));
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let (_, body) = http.get("/apis/apps/v1/namespaces/default/deployments/echo", JSON).await;
        let deployment: serde_json::Value = serde_json::from_slice(&body).unwrap();
        if deployment["status"]["readyReplicas"] == 3 {
            break;
        }
        assert!(Instant::now() < end, "the sample does not become ready: {}", deployment["status"]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(http);
    tokio::time::sleep(SETTLE).await;
    let (start, cpu, written) = (Instant::now(), daemon.cpu(), written_to_disk());
    tokio::time::sleep(IDLE_CPU).await;
    let share = (daemon.cpu() - cpu) / start.elapsed().as_secs_f64() * 100.0;
    let (rss, pss) = daemon.memory();
    figure(
        "idle daemon memory",
        format!("RSS {rss:.0} MB, PSS {pss:.0} MB"),
        "60 MB",
        "824 MB",
        &format!("smaps_rollup; {} threads; three sample pods, each probed every second", daemon.threads()),
    );
    let shims = shims();
    let (rss, pss) = shims.iter().map(|s| s.memory()).fold((0.0, 0.0), |sum, m| (sum.0 + m.0, sum.1 + m.1));
    figure("  and its shims", format!("RSS {rss:.1} MB, PSS {pss:.1} MB"), "-", "-", &format!("sum over {} shim processes", shims.len()));
    figure(
        "idle CPU",
        format!("{share:.2} % of a core"),
        "0.2 %",
        "11 %",
        &format!("user and system time over {} s, probes included", IDLE_CPU.as_secs()),
    );
    let rest = Duration::from_secs(minutes * 60).saturating_sub(start.elapsed());
    tokio::time::sleep(rest).await;
    let (written, took) = (written_to_disk() - written, start.elapsed().as_secs_f64() / 60.0);
    let ours = format!("{:.3} MB in {took:.1} min", written as f64 / 1e6);
    figure(
        "written while idle",
        ours,
        "0.1 MB/10m",
        "38 MB/10m",
        "sectors of the loop device that holds the store's ext4, journal included",
    );
}

/// The shims of this node, by the folder they serve.
fn shims() -> Vec<Process> {
    let dir = PathBuf::from(std::env::var("CORACLE_DATA_DIR").unwrap());
    processes(&format!("/run/coracle/{}", coracle::config::instance_id(&dir)))
}

/// Processes of this node with `words` in their command line. The harness puts the data dir into everyone's environment;
/// shims may clear theirs, but their folders are named after it.
fn processes(words: &str) -> Vec<Process> {
    let dir = format!("CORACLE_DATA_DIR={}", std::env::var("CORACLE_DATA_DIR").unwrap());
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let ours = |p: &Process| {
        String::from_utf8_lossy(&std::fs::read(format!("/proc/{}/environ", p.0)).unwrap_or_default()).split('\0').any(|v| v == dir)
    };
    pids.map(Process).filter(|p| p.command_line().contains(words) && (words.starts_with("/run/") || ours(p))).collect()
}
