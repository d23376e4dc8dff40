//! Wiring: store → server → controllers → node, in one readable piece; the one place that sees the whole program.
//!
//! Start at [`Cluster::start`]. Everything is told to stop in the opposite order; pods keep running under their shims.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::agent::kubelet::admit::HostPort;
use crate::agent::server::Peer;
use crate::agent::{Agent, AgentConfig, PodNetwork};
use crate::api::cidr::Cidr;
use crate::api::client::Client;
use crate::api::driver::Driver;
use crate::api::informer::{Change, informer};
use crate::api::request::User;
use crate::api::resource::{self, Resource};
use crate::api::time::SystemClock;
use crate::api::value::Value;
use crate::config::{Config, Range, instance_id};
use crate::net::{Kind, NetConfig, Network, Protocol};
use crate::pki::{Identity, Kubeconfig, Pki};
use crate::runtime::linux::Linux;
use crate::runtime::{self, Runtime};
use crate::server::{Server, controllers, scheduler};
use crate::task::{self, Shutdown};
use crate::transport::{Listener, Port};
use crate::{machine, overview, pki, transport};

/// Our own version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The Kubernetes API served.
pub const KUBERNETES_VERSION: &str = "v1.36.3";

/// Threads of the one async runtime; WAL, raft and checkpoints have threads of their own.
const WORKERS_MAX: usize = 4;
/// What a kubelet takes by default, too.
const PODS_MAX: i64 = 110;
/// Remembers, in the data dir, which range [`remove_instance`] has to take out of the routes.
const SERVICE_RANGE: &str = "service-range";
/// How long `try` waits for its node before it says what is wrong.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// For a command that is over in a moment.
const EXEC_TIMEOUT: Duration = Duration::from_secs(10);
const EXEC_OUTPUT_MAX: usize = 64 * 1024;

/// Runs `fut` on a fresh runtime.
pub fn block_on<T>(fut: impl Future<Output = T>) -> T {
    let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).clamp(2, WORKERS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    runtime.expect("threads and epoll are there").block_on(fut)
}

/// `coracle server`: until SIGTERM or SIGINT.
pub fn server(config: Config) -> anyhow::Result<ExitCode> {
    block_on(async {
        let cluster = Cluster::start(config).await?;
        tracing::info!(version = VERSION, "ready to serve");
        termination().await?;
        tracing::info!("stopping; pods keep running");
        cluster.stop().await;
        Ok(ExitCode::SUCCESS)
    })
}

/// [`block_on`], also from inside a runtime (`try` imports its sample so).
fn block_in_any<T>(fut: impl Future<Output = T>) -> T {
    match tokio::runtime::Handle::try_current() {
        Ok(handle) => tokio::task::block_in_place(|| handle.block_on(fut)),
        Err(_) => block_on(fut),
    }
}

/// Completes on SIGTERM, SIGINT or SIGHUP.
pub async fn termination() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

/// Everything that runs in this process.
pub struct Cluster {
    config: Config,
    shutdown: Shutdown,
    server: Server,
    /// Controllers and scheduler; they end when dropped.
    loops: Vec<Driver>,
    node: Option<Node>,
}

struct Node {
    runtime: Arc<Linux>,
    agent: Arc<Agent>,
    network: Arc<Network>,
}

impl Cluster {
    /// Brings everything up; returns when the API answers. The node becomes Ready a moment later.
    pub async fn start(config: Config) -> anyhow::Result<Cluster> {
        machine::check(&config)?;
        // First of all: a taken port is said before anything is opened or written.
        let ports = Ports::open(&config).await?;
        let shutdown = Shutdown::new();
        let pki = Pki::load_or_create(&config.pki_dir())?;
        let identities = Identities::issue(&config, &pki)?;
        std::fs::write(config.data_dir.join(SERVICE_RANGE), config.service_cidr.to_string())?;
        let server = Server::start(&config, &pki, ports.api, Arc::new(SystemClock), &shutdown).await?;
        write_kubeconfig(&config, &pki, &identities.admin)?;

        let transport = server.transport();
        let mut loops = Vec::new();
        if !config.disable_controller_manager {
            let transport = transport.clone();
            let clients = Arc::new(move |name: &str| Client::new(transport.clone(), User::controller(name)));
            let root_ca = pki.cluster.certificate.clone();
            loops.push(controllers::start(clients, &controllers::Config { root_ca }));
        }
        if !config.disable_scheduler {
            let scheduler = User { name: "system:kube-scheduler".into(), groups: vec!["system:authenticated".into()], ..User::default() };
            loops.push(scheduler::start(Client::new(transport.clone(), scheduler)));
        }
        let node = match ports.kubelet {
            None => None,
            Some(port) => {
                let listener = Listener::new(port, &identities.kubelet_serving, &[&pki.client.certificate], &["http/1.1"])?;
                Some(Node::start(&config, listener, Client::new(transport, User::node(&config.node_name)), &shutdown).await?)
            }
        };
        Ok(Cluster { config, shutdown, server, loops, node })
    }

    /// Waits until this node is Ready.
    pub async fn ready(&self) -> anyhow::Result<()> {
        if self.node.is_some() {
            self.until(&resource::NODES, &format!("node {} to become Ready", self.config.node_name), is_ready).await?;
        }
        Ok(())
    }

    /// Waits until there is an object as wanted; `what` ends the sentence "waited 60 s for …".
    pub async fn until(&self, resource: &'static Resource, what: &str, is_wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let mut changes = informer(self.client(), resource, Default::default());
        let found = async {
            while let Some(change) = changes.recv().await {
                if let Change::Set(object) = change {
                    let value = object.value();
                    if is_wanted(&value) {
                        return Ok(value);
                    }
                }
            }
            bail!("the cluster stopped")
        };
        let seconds = READY_TIMEOUT.as_secs();
        tokio::time::timeout(READY_TIMEOUT, found).await.with_context(|| format!("waited {seconds} s for {what}"))?
    }

    /// Waits until this node acts by a Service or EndpointSlice as it is in `object`: rules are in the kernel, names are answered.
    pub async fn in_effect(&self, kind: Kind, object: &Value) -> anyhow::Result<()> {
        let node = self.node.as_ref().context("no node runs here")?;
        let revision = object.str_at(&["metadata", "resourceVersion"]).parse().context("an object without a resourceVersion")?;
        let seconds = READY_TIMEOUT.as_secs();
        let wait = tokio::time::timeout(READY_TIMEOUT, node.network.in_effect(kind, revision));
        wait.await.with_context(|| format!("waited {seconds} s for this node to program its services"))??;
        Ok(())
    }

    /// Runs a command in a container of this node and gives what it printed.
    pub async fn exec(&self, container: &str, command: &[&str]) -> anyhow::Result<String> {
        let node = self.node.as_ref().context("no node runs here")?;
        let words = command.iter().map(|word| word.to_string()).collect();
        let ran = runtime::exec_sync(&*node.runtime, container, words, EXEC_TIMEOUT, EXEC_OUTPUT_MAX).await?;
        let output = String::from_utf8_lossy(&ran.output).trim().to_string();
        anyhow::ensure!(ran.code == 0 && !ran.timed_out, "{}: {output}", command.join(" "));
        Ok(output)
    }

    fn client(&self) -> Client {
        Client::new(self.server.transport(), User::master())
    }

    /// Creates the objects of a manifest (YAML documents) in namespace `default`, as `kubectl create` would.
    pub async fn create(&self, manifest: &str) -> anyhow::Result<()> {
        let client = self.client();
        for document in manifest.split("\n---\n") {
            let (object, _) = crate::api::yaml::parse(document.as_bytes()).map_err(anyhow::Error::msg)?;
            let (version, kind) = (object.str_at(&["apiVersion"]), object.str_at(&["kind"]));
            let resource = crate::api::resource::by_kind(version, kind).with_context(|| format!("{version} {kind} is not served"))?;
            client.create(resource, "default", object).await?;
        }
        Ok(())
    }

    /// Stops serving; pods keep running under their shims.
    pub async fn stop(self) {
        self.shutdown.cancel();
        if let Some(node) = &self.node {
            node.agent.stop();
            node.network.stop().await;
        }
        drop(self.loops);
        self.server.store().close().await;
    }
}

fn is_ready(node: &Value) -> bool {
    node.list_at(&["status", "conditions"]).iter().any(|c| c.str_at(&["type"]) == "Ready" && c.str_at(&["status"]) == "True")
}

impl Node {
    async fn start(config: &Config, listener: Listener, client: Client, shutdown: &Shutdown) -> anyhow::Result<Node> {
        let runtime = Arc::new(Linux::open(runtime_config(config)).await.context("the container runtime cannot start")?);
        // As kube-proxy is known to the bootstrap policy: services and slices are not a kubelet's to read.
        let proxy = User { name: "system:kube-proxy".into(), groups: vec!["system:authenticated".into()], ..User::default() };
        let network = Arc::new(Network::start(net_config(config)?, client.as_user(proxy)).await.context("the pod network cannot start")?);
        let agent = Agent::start(agent_config(config), client, runtime.clone(), Arc::new(PodLinks(network.clone())))
            .await
            .context("the node agent cannot start")?;
        let agent = Arc::new(agent);
        task::spawn("kubelet-listener", serve_kubelet(listener, agent.clone(), shutdown.clone()));
        Ok(Node { runtime, agent, network })
    }
}

async fn serve_kubelet(listener: Listener, agent: Arc<Agent>, shutdown: Shutdown) {
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let agent = agent.clone();
        task::spawn("kubelet-connection", async move {
            if let Ok(connection) = accepted.handshake().await {
                let peer = Peer::of(&connection.peer_certificates);
                agent.serve_connection(connection.stream, peer).await;
                drop(connection.permit);
            }
        });
    }
}

/// Ports taken but not served yet: who connects meanwhile waits.
struct Ports {
    api: Port,
    /// None without a node.
    kubelet: Option<Port>,
}

impl Ports {
    async fn open(config: &Config) -> Result<Ports, transport::Error> {
        let api = Port::open(SocketAddr::new(config.bind_address, config.https_listen_port)).await?;
        let kubelet = SocketAddr::new(config.bind_address, config.kubelet_port);
        let kubelet = if config.disable_agent { None } else { Some(Port::open(kubelet).await?) };
        Ok(Ports { api, kubelet })
    }
}

/// The kubelet's serving certificate and the administrator's client certificate, issued anew at every start.
struct Identities {
    kubelet_serving: Identity,
    admin: Identity,
}

impl Identities {
    fn issue(config: &Config, pki: &Pki) -> Result<Identities, pki::Error> {
        let node = format!("system:node:{}", config.node_name);
        let addresses = [config.node_ip, Ipv4Addr::LOCALHOST.into()];
        Ok(Identities {
            kubelet_serving: pki.cluster.serving(&node, &["system:nodes"], std::slice::from_ref(&config.node_name), &addresses)?,
            admin: pki.client.client("system:admin", &["system:masters"])?,
        })
    }
}

fn write_kubeconfig(config: &Config, pki: &Pki, admin: &Identity) -> anyhow::Result<()> {
    let server = format!("https://{}", config.local_api());
    let name = kubeconfig_name(config);
    let text = Kubeconfig { name: &name, server: &server, ca: &pki.cluster.certificate, identity: admin }.to_yaml();
    pki::write_private(&config.write_kubeconfig, &text)?;
    // The data dir keeps a copy, so that `kubeconfig` and `status` need nothing but it.
    pki::write_private(&config.data_dir.join("admin.kubeconfig"), &text)?;
    pki::write_private(&config.data_dir.join("admin.crt"), &admin.certificate)?;
    pki::write_private(&config.data_dir.join("admin.key"), &admin.key)?;
    Ok(())
}

fn kubeconfig_name(config: &Config) -> String {
    if config.data_dir == Path::new("/var/lib/coracle") { "coracle".into() } else { format!("coracle-{}", config.instance) }
}

/// `coracle kubeconfig`: prints it, or merges it into the invoking user's and switches to it.
pub fn kubeconfig(config: &Config, merge: bool) -> anyhow::Result<()> {
    let text = read_admin(config, "admin.kubeconfig")?;
    if !merge {
        print!("{text}");
        return Ok(());
    }
    let target = user_kubeconfig()?;
    let old = std::fs::read_to_string(&target).unwrap_or_default();
    let merged = merge_kubeconfigs(&old, &text).with_context(|| format!("{} cannot be merged into", target.display()))?;
    let owner = target.parent().and_then(|dir| dir.parent()).and_then(|home| std::fs::metadata(home).ok());
    pki::write_private(&target, &merged)?;
    if let Some(home) = owner {
        use std::os::unix::fs::MetadataExt as _;
        let (user, group) = (Some(home.uid()), Some(home.gid()));
        std::os::unix::fs::chown(&target, user, group)?;
        std::os::unix::fs::chown(target.parent().expect("a file in a folder"), user, group)?;
    }
    println!("merged into {}; the current context is {}", target.display(), kubeconfig_name(config));
    Ok(())
}

fn read_admin(config: &Config, file: &str) -> anyhow::Result<String> {
    let path = config.data_dir.join(file);
    std::fs::read_to_string(&path).with_context(|| {
        format!("cannot read {}: has a server run with --data-dir {}? Is this the right user?", path.display(), config.data_dir.display())
    })
}

/// `$KUBECONFIG` (if it is one file), else `~/.kube/config` of the user behind sudo.
fn user_kubeconfig() -> anyhow::Result<PathBuf> {
    if let Ok(path) = std::env::var("KUBECONFIG")
        && !path.is_empty()
        && !path.contains(':')
    {
        return Ok(PathBuf::from(path));
    }
    let home = match std::env::var("SUDO_USER") {
        Ok(user) => nix::unistd::User::from_name(&user)?.with_context(|| format!("user {user} does not exist"))?.dir,
        Err(_) => PathBuf::from(std::env::var("HOME").context("HOME is not set")?),
    };
    Ok(home.join(".kube/config"))
}

/// Puts the entries of `new` into `old`, replacing those of the same name, and makes its context the current one.
fn merge_kubeconfigs(old: &str, new: &str) -> anyhow::Result<String> {
    use serde_yaml_ng::{Mapping, Value};
    let new: Mapping = serde_yaml_ng::from_str(new)?;
    let mut merged = serde_yaml_ng::from_str::<Option<Mapping>>(old)?.unwrap_or_default();
    for list in ["clusters", "users", "contexts"] {
        let added = new.get(list).and_then(Value::as_sequence).cloned().unwrap_or_default();
        let entries = merged.entry(list.into()).or_insert_with(|| Value::Sequence(Vec::new()));
        if entries.is_null() {
            *entries = Value::Sequence(Vec::new());
        }
        let entries = entries.as_sequence_mut().with_context(|| format!("{list} is not a list"))?;
        entries.retain(|entry| !added.iter().any(|a| a.get("name") == entry.get("name")));
        entries.extend(added);
    }
    for key in ["apiVersion", "kind", "current-context"] {
        merged.insert(key.into(), new.get(key).cloned().unwrap_or_default());
    }
    Ok(serde_yaml_ng::to_string(&merged)?)
}

/// `coracle status`: prints the screen; fails if something is wrong.
pub fn status(config: Config) -> anyhow::Result<ExitCode> {
    let pki_ca = config.pki_dir().join("cluster-ca.crt");
    let admin = Identity { certificate: read_admin(&config, "admin.crt")?, key: read_admin(&config, "admin.key")? };
    let ca = std::fs::read_to_string(&pki_ca).with_context(|| format!("cannot read {}", pki_ca.display()))?;
    let address = server_address(&read_admin(&config, "admin.kubeconfig")?).context("admin.kubeconfig names no server")?;
    let facts = block_on(overview::gather(&address, &ca, &admin));
    let facts = facts.with_context(|| format!("no API server answers on {address}; next: systemctl status coracle"))?;
    let (screen, well) = overview::screen(&facts);
    print!("{screen}");
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `host:port` of the first cluster in a kubeconfig of ours.
fn server_address(kubeconfig: &str) -> Option<String> {
    let line = kubeconfig.lines().find_map(|line| line.trim().strip_prefix("server: https://"))?;
    Some(line.to_string())
}

/// This node's share of the cluster's range: its first /24 (all of it, if it is smaller). More nodes will be given theirs.
fn pod_cidr(cluster: Range) -> Cidr {
    let range = Range { prefix: cluster.prefix.max(24), ..cluster };
    cidr(range)
}

fn cidr(range: Range) -> Cidr {
    range.to_string().parse().expect("checked when the settings were read")
}

fn net_config(config: &Config) -> anyhow::Result<NetConfig> {
    let v4 = |what: &str, address: IpAddr| match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => bail!("{what}: only IPv4 is supported yet"),
    };
    Ok(NetConfig {
        instance: config.instance.clone(),
        node_name: config.node_name.clone(),
        node_ip: v4("node-ip", config.node_ip)?,
        pod_cidr: pod_cidr(config.cluster_cidr),
        cluster_cidr: cidr(config.cluster_cidr),
        service_cidr: cidr(config.service_cidr),
        cluster_dns: v4("cluster-dns", config.cluster_dns)?,
        cluster_domain: config.cluster_domain.clone(),
        state_dir: config.data_dir.join("net"),
        run_dir: config.run_dir.clone(),
        exe: config.shim_exe.clone(),
        resolv_conf: PathBuf::from("/etc/resolv.conf"),
    })
}

fn agent_config(config: &Config) -> AgentConfig {
    AgentConfig {
        node_name: config.node_name.clone(),
        node_ip: config.node_ip,
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        cluster_dns: config.cluster_dns,
        cluster_domain: config.cluster_domain.clone(),
        kubelet_port: config.kubelet_port,
        max_pods: PODS_MAX,
        node_labels: Default::default(),
        pod_cidr: pod_cidr(config.cluster_cidr).to_string(),
    }
}

fn runtime_config(config: &Config) -> runtime::linux::Config {
    runtime::linux::Config {
        instance: config.instance.clone(),
        run_dir: config.run_dir.clone(),
        data_dir: config.data_dir.clone(),
        shim_exe: config.shim_exe.clone(),
    }
}

/// The agent's view of the network, which speaks of addresses as people write them.
struct PodLinks(Arc<Network>);

impl PodNetwork for PodLinks {
    fn add_pod<'a>(&'a self, uid: &'a str, netns: &'a Path, ports: Vec<HostPort>) -> runtime::BoxFuture<'a, Result<Vec<String>, String>> {
        Box::pin(async move {
            let ports = ports.iter().map(host_port).collect::<Result<Vec<_>, _>>()?;
            let pod = self.0.add_pod(uid, netns, &ports).await.map_err(|e| e.to_string())?;
            Ok(vec![pod.ip.to_string()])
        })
    }

    fn remove_pod<'a>(&'a self, uid: &'a str) -> runtime::BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { self.0.remove_pod(uid).await.map_err(|e| e.to_string()) })
    }

    fn pod_ips(&self, uid: &str) -> Vec<String> {
        self.0.pod_ip(uid).map(|ip| ip.to_string()).into_iter().collect()
    }
}

fn host_port(port: &HostPort) -> Result<crate::net::HostPort, String> {
    let host_ip = match port.ip.as_str() {
        "" | "0.0.0.0" => None,
        ip => Some(ip.parse().map_err(|_| format!("hostIP {ip} is not an IPv4 address"))?),
    };
    let protocol = Protocol::parse(&port.protocol).ok_or_else(|| format!("protocol {} is not known", port.protocol))?;
    Ok(crate::net::HostPort { host_ip, host_port: port.port, protocol, container_port: port.container_port })
}

/// Straight into the data dir; a running daemon sees the image at its next look. Answers the names it brought.
pub fn import_image(config: &Config, archive: &Path) -> anyhow::Result<Vec<String>> {
    block_in_any(async {
        let runtime = Linux::open(runtime_config(config)).await?;
        runtime.import(archive).await.with_context(|| format!("cannot import {}", archive.display()))
    })
}

/// `coracle images import`.
pub fn import_images(config: &Config, archives: &[&Path]) -> anyhow::Result<()> {
    for archive in archives {
        println!("imported {}", import_image(config, archive)?.join(", "));
    }
    Ok(())
}

/// `coracle images list`.
pub fn list_images(config: &Config) -> anyhow::Result<()> {
    block_in_any(async {
        let runtime = Linux::open(runtime_config(config)).await?;
        println!("{:<60} {:<20} {:>10}", "NAME", "ID", "SIZE");
        for image in runtime.list_images().await {
            let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
            for name in &image.names {
                println!("{name:<60} {id:<20} {:>8.1}MB", image.size as f64 / 1e6);
            }
        }
        Ok(())
    })
}

/// Removes everything the instance living in `dir` made in the kernel: pods, links, rules. Not `dir` itself.
pub fn remove_instance(dir: &Path) -> anyhow::Result<()> {
    let instance = instance_id(dir);
    let run_dir = Path::new("/run/coracle").join(&instance);
    block_on(async {
        let config = runtime::linux::Config {
            instance: instance.clone(),
            run_dir: run_dir.clone(),
            data_dir: dir.to_path_buf(),
            shim_exe: std::env::current_exe()?,
        };
        Linux::open(config).await?.teardown().await?;
        let range = std::fs::read_to_string(dir.join(SERVICE_RANGE)).unwrap_or_default();
        if let Ok(range) = range.parse::<Cidr>() {
            Network::cleanup(&instance, &run_dir, &range).await?;
        }
        match std::fs::remove_dir_all(&run_dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", run_dir.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_replaces_entries_of_the_same_name_and_keeps_others() {
        let identity = Identity { certificate: "c".into(), key: "k".into() };
        let ours = Kubeconfig { name: "coracle", server: "https://127.0.0.1:6443", ca: "ca", identity: &identity }.to_yaml();
        let old = "apiVersion: v1\nkind: Config\nclusters:\n- name: work\n  cluster: {server: https://work}\n- name: coracle\n  cluster: {server: https://old}\nusers: null\ncurrent-context: work\n";
        let merged: serde_yaml_ng::Value = serde_yaml_ng::from_str(&merge_kubeconfigs(old, &ours).unwrap()).unwrap();
        assert_eq!(merged["current-context"], "coracle");
        assert_eq!(merged["clusters"].as_sequence().unwrap().len(), 2);
        assert_eq!(merged["clusters"][1]["cluster"]["server"], "https://127.0.0.1:6443");
        assert_eq!(merged["users"].as_sequence().unwrap().len(), 1);
    }
}
