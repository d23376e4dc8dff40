//! The node's network with real packets. Needs root: every test has a network namespace of its own as "the node", pods and
//! outsiders are further namespaces, and all of it is gone when the test ends.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;
use tokio::sync::mpsc;

use coracle::api::client::{Client, Future, Transport};
use coracle::api::object::{Name, Object};
use coracle::api::request::{Body, Event, Outcome, Request, Response, User, Verb};
use coracle::api::resource;
use coracle::api::status::{Result as ApiResult, Status};
use coracle::api::value::Value;
use coracle::net::{HostPort, Input, Kind, NetConfig, Network, Protocol, netlink, pod};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` with an async runtime inside a fresh network namespace: the node.
fn on_a_node<F: std::future::Future<Output = ()>>(test: impl FnOnce(Node) -> F + Send + 'static) {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async { test(Node::new().await).await });
    };
    std::thread::spawn(body).join().unwrap();
}

struct Node {
    dir: PathBuf,
    instance: String,
    links: netlink::Links,
}

impl Node {
    /// With an uplink: `up0` 192.168.50.1/24 to an outside namespace made by [`Node::outside`].
    async fn new() -> Node {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let instance = format!("{:04x}{n:04x}", std::process::id() & 0xffff);
        let dir = std::env::temp_dir().join(format!("coracle-net-{instance}"));
        let links = netlink::Links::open().unwrap();
        links.set_up(&links.need("lo").await.unwrap()).await.unwrap();
        Node { dir, instance, links }
    }

    /// The world outside the node, 192.168.50.2.
    async fn outside(&self) -> Namespace {
        let outside = Namespace::new().await;
        let up = self.links.add_veth("up0", "eth0", &outside.fd, 1500).await.unwrap();
        self.links.add_address(&up, Ipv4Addr::new(192, 168, 50, 1), 24).await.unwrap();
        outside
            .run(|| {
                netlink::with_links(|links| async move {
                    links.set_up(&links.need("lo").await?).await?;
                    let eth0 = links.need("eth0").await?;
                    links.add_address(&eth0, Ipv4Addr::new(192, 168, 50, 2), 24).await?;
                    links.set_up(&eth0).await?;
                    let node = Some(Ipv4Addr::new(192, 168, 50, 1));
                    let services = netlink::Route { to: "10.43.0.0/16".parse().unwrap(), link: eth0.index, gateway: node, source: None };
                    links.set_route(&services).await
                })
                .unwrap();
            })
            .await;
        outside
    }

    fn config(&self) -> NetConfig {
        NetConfig {
            instance: self.instance.clone(),
            node_name: "node-1".into(),
            node_ip: Ipv4Addr::new(192, 168, 50, 1),
            pod_cidr: "10.42.0.0/24".parse().unwrap(),
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            cluster_dns: Ipv4Addr::new(10, 43, 0, 10),
            cluster_domain: "cluster.local".into(),
            state_dir: self.dir.clone(),
            run_dir: self.dir.clone(),
            exe: PathBuf::from(crate::node::EXE),
            resolv_conf: self.dir.join("resolv.conf"),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        coracle::net::dns::holder::Holder::of(&self.dir).end();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A network namespace standing for a pod or for the outside.
struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    async fn new() -> Namespace {
        Namespace { fd: netlink::new_netns().await.unwrap() }
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd()).into()
    }

    /// Runs blocking `work` inside.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        netlink::in_netns(self.fd.try_clone().unwrap(), "test", move || Ok(work())).await.unwrap()
    }

    /// Answers every TCP connection with `name` and the peer's address, until the namespace's last user ends.
    async fn serve_tcp(&self, port: u16, name: &'static str) {
        let listener = self.run(move || TcpListener::bind(("0.0.0.0", port)).unwrap()).await;
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let peer = stream.peer_addr().unwrap().ip();
                let _ = stream.write_all(format!("{name} {peer}").as_bytes());
            }
        });
    }

    /// Answers every datagram with `name` and the peer's address.
    async fn serve_udp(&self, port: u16, name: &'static str) {
        let socket = self.run(move || UdpSocket::bind(("0.0.0.0", port)).unwrap()).await;
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
            }
        });
    }

    /// A connected UDP socket inside.
    async fn udp(&self, to: SocketAddr) -> UdpSocket {
        self.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket.connect(to).unwrap();
            socket
        })
        .await
    }

    /// Asks `n` times; how often each server answered, and what they saw as our address.
    async fn spread(&self, to: SocketAddr, n: usize) -> BTreeMap<(String, IpAddr), usize> {
        let ask = move || (0..n).map(|_| ask_tcp(to).unwrap()).collect::<Vec<_>>();
        let mut counts = BTreeMap::new();
        for answer in self.run(ask).await {
            *counts.entry(answer).or_insert(0) += 1;
        }
        counts
    }

    /// What a TCP server says: (name, our address as it saw it).
    async fn ask_tcp(&self, to: SocketAddr) -> std::io::Result<(String, IpAddr)> {
        self.run(move || ask_tcp(to)).await
    }
}

fn ask_tcp(to: SocketAddr) -> std::io::Result<(String, IpAddr)> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (name, peer) = text.split_once(' ').ok_or_else(|| std::io::Error::other(format!("odd answer {text:?}")))?;
    Ok((name.to_string(), peer.parse().unwrap()))
}

/// Runs the `nft` of the machine in the node's namespace: what other people see of our table.
async fn nft(arguments: &'static [&'static str]) -> String {
    let run = move || std::process::Command::new("nft").args(arguments).output().expect("tests read the kernel with nft: install nftables");
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The objects a network follows.
struct Feed {
    to: mpsc::Sender<Input>,
}

impl Feed {
    fn new() -> (Feed, mpsc::Receiver<Input>) {
        let (to, feed) = mpsc::channel(16);
        (Feed { to }, feed)
    }

    async fn synced(&self) {
        for kind in [Kind::Service, Kind::Slice] {
            self.to.send(Input::Reset(kind)).await.unwrap();
            self.to.send(Input::Synced(kind)).await.unwrap();
        }
    }

    async fn set(&self, kind: Kind, json: serde_json::Value) {
        let value = convert(json);
        let name = Name::new(value.str_at(&["metadata", "namespace"]), value.str_at(&["metadata", "name"]));
        self.to.send(Input::Set(kind, name, Arc::new(value))).await.unwrap();
    }

    async fn at(&self, kind: Kind, revision: u64) {
        self.to.send(Input::At(kind, revision)).await.unwrap();
    }

    async fn gone(&self, kind: Kind, name: &str) {
        self.to.send(Input::Gone(kind, Name::new("default", name))).await.unwrap();
    }

    /// A Service `name` on `ip` with `extra` merged into its spec.
    async fn service(&self, name: &str, ip: &str, ports: serde_json::Value, extra: serde_json::Value) {
        let mut spec = json!({"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ports": ports});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let ingress = spec["lb"].take();
        let status = json!({"loadBalancer": {"ingress": ingress}});
        let metadata = json!({"namespace": "default", "name": name});
        self.set(Kind::Service, json!({"metadata": metadata, "spec": spec, "status": status})).await;
    }

    /// Its slice: endpoints are (address, node).
    async fn slice(&self, service: &str, ports: serde_json::Value, endpoints: &[(Ipv4Addr, &str)]) {
        let endpoints: Vec<_> = endpoints.iter().map(|(ip, node)| json!({"addresses": [ip.to_string()], "nodeName": node})).collect();
        let metadata = json!({"namespace": "default", "name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}});
        self.set(Kind::Slice, json!({"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": endpoints})).await;
    }
}

fn convert(v: serde_json::Value) -> Value {
    match v {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(b) => b.into(),
        serde_json::Value::Number(n) => n.as_i64().unwrap().into(),
        serde_json::Value::String(s) => s.into(),
        serde_json::Value::Array(l) => Value::List(l.into_iter().map(convert).collect()),
        serde_json::Value::Object(m) => Value::Map(m.into_iter().map(|(k, v)| (k, convert(v))).collect()),
    }
}

/// Waits until `check` holds; the change it waits for was already sent.
async fn eventually<F: std::future::Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let started = std::time::Instant::now();
    while !check().await {
        assert!(started.elapsed() < Duration::from_secs(10), "not in ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn at(ip: Ipv4Addr, port: u16) -> SocketAddr {
    (ip, port).into()
}

#[test]
fn pods_reach_each_other_and_links_follow_their_pods() {
    on_a_node(|node| async move {
        let _outside = node.outside().await;
        let network = Network::start_from(node.config(), Feed::new().1).await.unwrap();
        let (a, b) = (Namespace::new().await, Namespace::new().await);
        let started = std::time::Instant::now();
        let one = network.add_pod("pod-a", &a.path(), &[]).await.unwrap();
        println!("first pod connected in {:?}", started.elapsed());
        let two = network.add_pod("pod-b", &b.path(), &[]).await.unwrap();
        assert_eq!((one.ip.to_string(), two.ip.to_string()), ("10.42.0.3".to_string(), "10.42.0.4".to_string()));
        assert_eq!(network.add_pod("pod-a", &a.path(), &[]).await.unwrap(), one, "adding twice is fine");
        a.serve_tcp(80, "a").await;
        assert_eq!(b.ask_tcp(at(one.ip, 80)).await.unwrap(), ("a".to_string(), two.ip.into()));
        let from_node = tokio::task::spawn_blocking(move || ask_tcp(at(one.ip, 80))).await.unwrap().unwrap();
        assert_eq!(from_node.0, "a");

        // A restarted daemon knows its pods.
        network.stop().await;
        let network = Network::start_from(node.config(), Feed::new().1).await.unwrap();
        assert_eq!(network.pod_ip("pod-b"), Some(two.ip));
        network.remove_pod("pod-b").await.unwrap();
        assert_eq!(network.pod_ip("pod-b"), None);
        assert_eq!(node.links.find(&pod::link_name(&node.instance, "pod-b")).await.unwrap(), None);

        network.stop().await;
        Network::cleanup(&node.instance, &node.dir, &"10.43.0.0/16".parse().unwrap()).await.unwrap();
        let mut left: Vec<_> = node.links.list().await.unwrap().into_iter().map(|l| l.name).collect();
        left.sort();
        assert_eq!(left, ["lo", "up0"]);
        assert_eq!(nft(&["list", "tables"]).await, "");
    });
}

fn ask_udp(socket: &UdpSocket) -> Option<String> {
    let mut buffer = [0; 64];
    socket.send(b"who").ok()?;
    let n = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..n]).split(' ').next().unwrap().to_string())
}

/// A node with an outside, a started network, and pods `a`, `b`, `c` that serve TCP and UDP 8080 under their names.
struct Cluster {
    network: Network,
    feed: Feed,
    outside: Namespace,
    pods: Vec<(Namespace, Ipv4Addr)>,
    node: Node,
}

const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 2);

impl Cluster {
    async fn new(node: Node) -> Cluster {
        let outside = node.outside().await;
        let (feed, inputs) = Feed::new();
        let network = Network::start_from(node.config(), inputs).await.unwrap();
        feed.synced().await;
        let mut pods = Vec::new();
        for name in ["a", "b", "c"] {
            let pod = Namespace::new().await;
            let ip = network.add_pod(name, &pod.path(), &[]).await.unwrap().ip;
            pod.serve_tcp(8080, name).await;
            pod.serve_udp(8080, name).await;
            pods.push((pod, ip));
        }
        Cluster { network, feed, outside, pods, node }
    }

    fn ip(&self, i: usize) -> Ipv4Addr {
        self.pods[i].1
    }

    fn on_node(&self, pods: &[usize]) -> Vec<(Ipv4Addr, &'static str)> {
        pods.iter().map(|i| (self.ip(*i), "node-1")).collect()
    }

    async fn ask_from_node(&self, to: SocketAddr) -> std::io::Result<(String, IpAddr)> {
        tokio::task::spawn_blocking(move || ask_tcp(to)).await.unwrap()
    }

    /// Waits until the service answers (or, with `no`, stops answering) the node.
    async fn until(&self, to: SocketAddr, answers: bool) {
        eventually("the service follows its endpoints", || async move {
            tokio::task::spawn_blocking(move || ask_tcp(to).is_ok() == answers).await.unwrap()
        })
        .await;
    }

    async fn end(self) {
        self.network.stop().await;
        Network::cleanup(&self.node.instance, &self.node.dir, &"10.43.0.0/16".parse().unwrap()).await.unwrap();
        assert_eq!(nft(&["list", "tables"]).await, "");
    }
}

#[test]
fn cluster_ip_node_port_and_hairpin_carry_traffic() {
    on_a_node(|node| async move {
        let c = Cluster::new(node).await;
        let vip = Ipv4Addr::new(10, 43, 0, 20);
        let ports = json!([{"name": "t", "port": 80, "nodePort": 30080}, {"name": "u", "protocol": "UDP", "port": 80, "nodePort": 30080}]);
        c.feed.service("web", "10.43.0.20", ports, json!({"type": "NodePort"})).await;
        c.until(at(vip, 80), false).await;
        let refused = c.ask_from_node(at(vip, 80)).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "no endpoints: {refused}");
        let slice_ports = json!([{"name": "t", "port": 8080}, {"name": "u", "protocol": "UDP", "port": 8080}]);
        c.feed.slice("web", slice_ports.clone(), &c.on_node(&[0, 1, 2])).await;
        c.until(at(vip, 80), true).await;

        // From a pod: all endpoints are used and see the pod's own address, except itself.
        let (pod, ip) = (&c.pods[0].0, c.ip(0));
        let spread = pod.spread(at(vip, 80), 60).await;
        let names: Vec<_> = spread.keys().map(|(name, seen)| (name.as_str(), *seen == IpAddr::from(ip))).collect();
        assert_eq!(names, [("a", false), ("b", true), ("c", true)], "{spread:?}");
        // From the node and from outside, by cluster address and node port.
        assert!(c.ask_from_node(at(NODE, 30080)).await.is_ok());
        let spread = c.outside.spread(at(vip, 80), 30).await;
        assert!(spread.keys().all(|(_, seen)| *seen != IpAddr::from(OUTSIDE)) && spread.len() == 3, "{spread:?}");
        assert_eq!(c.outside.spread(at(NODE, 30080), 30).await.len(), 3);
        assert_eq!(pod.spread(at(NODE, 30080), 30).await.len(), 3);
        // Unknown port: refused. Unknown address: silent.
        let wrong = pod.ask_tcp(at(vip, 81)).await.unwrap_err();
        assert_eq!(wrong.kind(), std::io::ErrorKind::ConnectionRefused);
        // Pods leave under the node's address.
        c.outside.serve_tcp(7000, "world").await;
        assert_eq!(pod.ask_tcp(at(OUTSIDE, 7000)).await.unwrap(), ("world".to_string(), NODE.into()));

        // A datagram flow follows its endpoint away.
        c.feed.slice("web", slice_ports.clone(), &c.on_node(&[1])).await;
        let outside = c.outside.udp(at(vip, 80)).await;
        eventually("only b answers", || async { c.outside.spread(at(vip, 80), 5).await.len() == 1 }).await;
        assert_eq!(ask_udp(&outside), Some("b".into()));
        c.feed.slice("web", slice_ports, &c.on_node(&[2])).await;
        eventually("the flow moved to c", || async { ask_udp(&outside) == Some("c".into()) }).await;

        // What others read of us is well-formed: it can be loaded again.
        let dump = nft(&["list", "ruleset"]).await;
        assert!(dump.contains("dnat ip to ip daddr . meta l4proto . th dport map @eps_a4_0"), "{dump}");
        let file = c.node.dir.join("dump.nft");
        std::fs::write(&file, &dump).unwrap();
        let check = std::process::Command::new("nft").args(["-c", "-f"]).arg(&file).output().unwrap();
        assert!(check.status.success(), "{}\n{dump}", String::from_utf8_lossy(&check.stderr));

        // Seen without waiting: the node says when it acts by what it was told.
        c.feed.gone(Kind::Service, "web").await;
        c.feed.at(Kind::Service, 9).await;
        c.network.in_effect(Kind::Service, 9).await.unwrap();
        assert!(c.ask_from_node(at(vip, 80)).await.is_err());
        c.feed.service("web", "10.43.0.20", json!([{"name": "t", "port": 80}]), json!({})).await;
        c.feed.at(Kind::Service, 12).await;
        c.network.in_effect(Kind::Service, 12).await.unwrap();
        assert_eq!(c.ask_from_node(at(vip, 80)).await.unwrap().0, "c");
        c.end().await;
    });
}

#[test]
fn affinity_policies_ranges_and_host_ports() {
    on_a_node(|node| async move {
        let c = Cluster::new(node).await;
        let slice_ports = json!([{"name": "t", "port": 8080}]);
        let all = c.on_node(&[0, 1, 2]);

        // A client stays with its endpoint, by cluster address and node port alike, until that is gone.
        let (vip, client) = (Ipv4Addr::new(10, 43, 0, 21), &c.pods[0].0);
        let affinity = json!({"type": "NodePort", "sessionAffinity": "ClientIP"});
        c.feed.slice("sticky", slice_ports.clone(), &all).await;
        c.feed.service("sticky", "10.43.0.21", json!([{"name": "t", "port": 80, "nodePort": 30081}]), affinity).await;
        c.until(at(vip, 80), true).await;
        let first = client.spread(at(vip, 80), 30).await;
        assert_eq!(first.len(), 1, "{first:?}");
        let name = first.keys().next().unwrap().0.clone();
        let by_port = client.spread(at(NODE, 30081), 10).await;
        assert!(by_port.len() == 1 && by_port.keys().next().unwrap().0 == name, "{by_port:?} {name}");
        let rest: Vec<_> = [0, 1, 2].into_iter().filter(|i| ["a", "b", "c"][*i] != name).collect();
        c.feed.slice("sticky", slice_ports.clone(), &c.on_node(&rest)).await;
        eventually("another endpoint takes over", || async {
            let spread = client.spread(at(vip, 80), 5).await;
            spread.len() == 1 && spread.keys().next().unwrap().0 != name
        })
        .await;
        let off = json!({"type": "NodePort"});
        c.feed.service("sticky", "10.43.0.21", json!([{"name": "t", "port": 80, "nodePort": 30081}]), off).await;
        eventually("without affinity all are used", || async { client.spread(at(vip, 80), 20).await.len() == 2 }).await;
        c.feed.gone(Kind::Service, "sticky").await;
        c.feed.gone(Kind::Slice, "sticky-1").await;

        // Policy Local: far clients keep their address and see this node's endpoints, near ones see all.
        let near = Ipv4Addr::new(192, 168, 50, 77);
        let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "lb": [{"ip": "192.168.50.77"}]});
        c.feed.slice("lb", slice_ports.clone(), &[(c.ip(0), "node-1"), (c.ip(1), "node-2")]).await;
        c.feed.service("lb", "10.43.0.22", json!([{"name": "t", "port": 80}]), local).await;
        c.until(at(near, 80), true).await;
        let via_node = || async {
            c.outside
                .run(|| {
                    netlink::with_links(|links| async move {
                        let link = links.need("eth0").await?;
                        let to = "192.168.50.77/32".parse().unwrap();
                        links.set_route(&netlink::Route { to, link: link.index, gateway: Some(NODE), source: None }).await
                    })
                    .unwrap()
                })
                .await;
        };
        via_node().await;
        let far = c.outside.spread(at(near, 80), 20).await;
        assert_eq!(far.keys().collect::<Vec<_>>(), [&("a".to_string(), IpAddr::from(OUTSIDE))]);
        assert_eq!(c.pods[2].0.spread(at(near, 80), 30).await.len(), 2);
        // Only some sources may: the rest is silence.
        let ranges = json!({"type": "LoadBalancer", "lb": [{"ip": "192.168.50.77"}],
            "loadBalancerSourceRanges": ["10.0.0.0/8", "10.42.0.0/16", "192.168.50.0/31"]});
        c.feed.service("lb", "10.43.0.22", json!([{"name": "t", "port": 80}]), ranges).await;
        eventually("outside is kept out", || async {
            c.outside.ask_tcp(at(near, 80)).await.is_err_and(|e| e.kind() == std::io::ErrorKind::TimedOut)
        })
        .await;
        assert!(c.pods[2].0.ask_tcp(at(near, 80)).await.is_ok());

        // A host port leads to its pod, and goes with it.
        let pod = Namespace::new().await;
        let port = HostPort { host_ip: None, host_port: 8888, protocol: Protocol::Tcp, container_port: 9000 };
        c.network.add_pod("d", &pod.path(), &[port]).await.unwrap();
        pod.serve_tcp(9000, "d").await;
        c.until(at(NODE, 8888), true).await;
        assert_eq!(c.outside.ask_tcp(at(NODE, 8888)).await.unwrap(), ("d".to_string(), OUTSIDE.into()));
        assert_eq!(pod.ask_tcp(at(NODE, 8888)).await.unwrap().0, "d");
        c.network.remove_pod("d").await.unwrap();
        c.until(at(NODE, 8888), false).await;

        // Somebody flushes everything: it is back at once.
        nft(&["flush", "ruleset"]).await;
        let started = std::time::Instant::now();
        c.until(at(Ipv4Addr::new(10, 43, 0, 22), 80), true).await;
        println!("healed in {:?}", started.elapsed());
        c.end().await;
    });
}

/// The node's own ports answer on its loopback, where users look for them; nobody else gets there.
#[test]
fn ports_of_the_node_answer_on_its_loopback_and_nowhere_else() {
    on_a_node(|node| async move {
        let c = Cluster::new(node).await;
        let slice_ports = json!([{"name": "t", "port": 8080}, {"name": "u", "protocol": "UDP", "port": 8080}]);
        c.feed.slice("web", slice_ports, &c.on_node(&[0])).await;
        let ports = json!([{"name": "t", "port": 80, "nodePort": 30085}, {"name": "u", "protocol": "UDP", "port": 80, "nodePort": 30085}]);
        c.feed.service("web", "10.43.0.23", ports, json!({"type": "NodePort"})).await;
        c.until(at(NODE, 30085), true).await;
        let loopback = Ipv4Addr::LOCALHOST;
        assert_eq!(c.ask_from_node(at(loopback, 30085)).await.unwrap().0, "a");
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        udp.connect(at(loopback, 30085)).unwrap();
        assert_eq!(ask_udp(&udp), Some("a".into()));

        // One port, three pods: by address and by protocol.
        let mut pods = Vec::new();
        for (name, host_ip, protocol) in [("d", loopback, Protocol::Tcp), ("e", NODE, Protocol::Tcp), ("f", NODE, Protocol::Udp)] {
            let pod = Namespace::new().await;
            let port = HostPort { host_ip: Some(host_ip), host_port: 54323, protocol, container_port: 9000 };
            c.network.add_pod(name, &pod.path(), &[port]).await.unwrap();
            match protocol {
                Protocol::Udp => pod.serve_udp(9000, name).await,
                _ => pod.serve_tcp(9000, name).await,
            }
            pods.push(pod);
        }
        c.until(at(NODE, 54323), true).await;
        assert_eq!(c.ask_from_node(at(NODE, 54323)).await.unwrap().0, "e");
        assert_eq!(c.outside.ask_tcp(at(NODE, 54323)).await.unwrap().0, "e");
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        udp.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        udp.connect(at(NODE, 54323)).unwrap();
        eventually("the datagrams have a pod, too", || async { ask_udp(&udp) == Some("f".into()) }).await;
        // From the loopback, and from the node's own address as a source.
        assert_eq!(c.ask_from_node(at(loopback, 54323)).await.unwrap().0, "d");
        let curl = ["--silent", "--interface", "192.168.50.1", "--http0.9", "--max-time", "3", "http://127.0.0.1:54323/"];
        let output = tokio::task::spawn_blocking(move || std::process::Command::new("curl").args(curl).output()).await.unwrap();
        if let Ok(output) = output {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.starts_with("d "), "{text} {}", String::from_utf8_lossy(&output.stderr));
        }

        // A pod that sends to the node's loopback does not get there, though its link would carry it.
        let secret = UdpSocket::bind("127.0.0.1:7777").unwrap();
        secret.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        c.pods[0]
            .0
            .run(|| {
                netlink::with_links(|links| async move {
                    let (lo, eth0) = (links.need("lo").await?, links.need("eth0").await?);
                    netlink::set_sysctl("net.ipv4.conf.all.route_localnet", "1")?;
                    std::process::Command::new("ip")
                        .args(["route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local"])
                        .status()
                        .unwrap();
                    std::process::Command::new("ip")
                        .args(["route", "del", "local", "127.0.0.1", "dev", "lo", "table", "local"])
                        .status()
                        .unwrap();
                    let _ = lo;
                    let to = "127.0.0.1/32".parse().unwrap();
                    links
                        .set_route(&netlink::Route { to, link: eth0.index, gateway: Some(Ipv4Addr::new(10, 42, 0, 1)), source: None })
                        .await
                })
                .unwrap();
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.send_to(b"let me in", "127.0.0.1:7777").unwrap();
            })
            .await;
        let heard = tokio::task::spawn_blocking(move || secret.recv(&mut [0; 16])).await.unwrap();
        assert!(heard.is_err(), "the pod reached the node's loopback");
        c.end().await;
    });
}

/// A firewall that drops what is forwarded, as Docker makes one, is found and said, until it lets pods through.
#[test]
fn a_firewall_in_the_way_of_pods_is_found() {
    on_a_node(|node| async move {
        let pods = "10.42.0.0/24".parse().unwrap();
        let look = || coracle::net::firewall::refusals(&pods).unwrap();
        assert_eq!(look(), []);
        nft(&["add", "table", "ip", "filter"]).await;
        nft(&["add", "chain", "ip", "filter", "FORWARD", "{ type filter hook forward priority 0; policy drop; }"]).await;
        nft(&["add", "chain", "ip", "filter", "DOCKER-USER"]).await;
        let found = look();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].to_string().contains("chain FORWARD of nftables table ip filter drops"), "{}", found[0]);
        assert!(found[0].remedy(&pods).contains("iptables -I DOCKER-USER -s 10.42.0.0/24 -j ACCEPT"));
        nft(&["add", "rule", "ip", "filter", "FORWARD", "ip", "saddr", "10.42.0.0/16", "accept"]).await;
        assert_eq!(look(), [], "somebody took care of it");
        drop(node);
    });
}

/// Churn under constant load: endpoints come and go, no connection fails.
#[test]
fn endpoints_change_under_load_without_a_failed_connection() {
    on_a_node(|node| async move {
        let c = Cluster::new(node).await;
        let slice_ports = json!([{"name": "t", "port": 8080}]);
        c.feed.service("web", "10.43.0.30", json!([{"name": "t", "port": 80}]), json!({})).await;
        c.feed.slice("web", slice_ports.clone(), &c.on_node(&[0, 1, 2])).await;
        let vip = at(Ipv4Addr::new(10, 43, 0, 30), 80);
        c.until(vip, true).await;
        let load = c.pods[0].0.fd.try_clone().unwrap();
        let load =
            tokio::spawn(netlink::in_netns(load, "load", move || Ok((0..2000).map(|_| ask_tcp(vip)).filter(|a| a.is_err()).count())));
        let mut turn = 0;
        while !load.is_finished() {
            let sets: [&[usize]; 4] = [&[0, 1], &[1], &[1, 2], &[0, 1, 2]];
            c.feed.slice("web", slice_ports.clone(), &c.on_node(sets[turn % 4])).await;
            turn += 1;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        println!("{turn} changes under load");
        assert_eq!(load.await.unwrap().unwrap(), 0);
        c.end().await;
    });
}

/// Ten thousand services with three endpoints each: how long a whole load and one change take.
#[test]
fn many_services_load_in_one_transaction() {
    on_a_node(|node| async move {
        let c = Cluster::new(node).await;
        let slice_ports = json!([{"name": "t", "port": 8080}]);
        let n = 10_000u32;
        let ip = |i: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 43, 16, 0)) + i);
        let started = std::time::Instant::now();
        for i in 0..n {
            let (name, service_ip) = (format!("s{i}"), ip(i).to_string());
            let endpoints: Vec<_> =
                (0..3).map(|e| (Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 42, 1, 0)) + 3 * i + e), "node-2")).collect();
            c.feed.service(&name, &service_ip, json!([{"name": "t", "port": 80}]), json!({})).await;
            c.feed.slice(&name, slice_ports.clone(), &endpoints).await;
        }
        c.feed.service("last", "10.43.0.99", json!([{"name": "t", "port": 80}]), json!({})).await;
        c.feed.slice("last", slice_ports.clone(), &c.on_node(&[0])).await;
        let vip = at(Ipv4Addr::new(10, 43, 0, 99), 80);
        c.until(vip, true).await;
        println!("{n} services fed and programmed in {:?}", started.elapsed());
        let started = std::time::Instant::now();
        nft(&["flush", "ruleset"]).await;
        c.until(vip, true).await;
        println!("all of it put back in {:?} (flush included)", started.elapsed());
        let started = std::time::Instant::now();
        c.feed.gone(Kind::Slice, "last-1").await;
        c.until(vip, false).await;
        println!("one change seen in {:?}", started.elapsed());
        c.end().await;
    });
}

/// Asks the cluster's DNS from a pod with `dig`; the answer's lines.
async fn dig(pod: &Namespace, arguments: &'static [&'static str]) -> (String, Vec<String>) {
    let run = move || {
        let base = ["@10.43.0.10", "+time=2", "+tries=2", "+noall", "+comments", "+answer"];
        std::process::Command::new("dig").args(base).args(arguments).output().expect("tests ask with dig: install dnsutils")
    };
    let text = String::from_utf8(pod.run(run).await.stdout).unwrap();
    let status = text.split("status: ").nth(1).and_then(|t| t.split(',').next()).unwrap_or("none").to_string();
    let answers = text.lines().filter(|l| !l.starts_with(';') && !l.is_empty());
    (status, answers.map(|l| l.split_whitespace().skip(3).collect::<Vec<_>>().join(" ")).collect())
}

#[test]
fn names_resolve_from_pods_and_the_rest_is_forwarded() {
    on_a_node(|node| async move {
        std::fs::create_dir_all(&node.dir).unwrap();
        std::fs::write(node.dir.join("resolv.conf"), "nameserver 127.0.0.53\nnameserver 192.168.50.2\n").unwrap();
        let (feed, inputs) = Feed::new();
        let outside = node.outside().await;
        let network = Network::start_from(node.config(), inputs).await.unwrap();
        let pod = Namespace::new().await;
        let ip = network.add_pod("a", &pod.path(), &[]).await.unwrap().ip;
        assert_eq!(dig(&pod, &["web.default.svc.cluster.local"]).await.0, "SERVFAIL", "nothing is known before the lists are complete");
        feed.synced().await;
        feed.service("web", "10.43.0.40", json!([{"name": "http", "port": 80}]), json!({})).await;
        feed.service("db", "None", json!([{"name": "sql", "port": 5432}]), json!({})).await;
        let many: Vec<_> = (1..=100u8).map(|i| (Ipv4Addr::new(10, 42, 9, i), "node-2")).collect();
        feed.slice("db", json!([{"name": "sql", "port": 5432}]), &many).await;
        feed.service("out", "", json!([]), json!({"type": "ExternalName", "externalName": "www.example.test"})).await;
        eventually("the name is known", || async { dig(&pod, &["web.default.svc.cluster.local"]).await.0 == "NOERROR" }).await;

        let yes = |answers: &[&str]| ("NOERROR".to_string(), answers.iter().map(|a| a.to_string()).collect::<Vec<_>>());
        assert_eq!(dig(&pod, &["WEB.default.svc.cluster.local"]).await, yes(&["A 10.43.0.40"]));
        assert_eq!(dig(&pod, &["+tcp", "web.default.svc.cluster.local"]).await, yes(&["A 10.43.0.40"]));
        assert_eq!(dig(&pod, &["AAAA", "web.default.svc.cluster.local"]).await, yes(&[]));
        assert_eq!(dig(&pod, &["web.nowhere.svc.cluster.local"]).await.0, "NXDOMAIN");
        assert_eq!(
            dig(&pod, &["SRV", "_http._tcp.web.default.svc.cluster.local"]).await,
            yes(&["SRV 0 100 80 web.default.svc.cluster.local."])
        );
        assert_eq!(dig(&pod, &["-x", "10.43.0.40"]).await, yes(&["PTR web.default.svc.cluster.local."]));
        // A long answer is cut over UDP and whole over TCP.
        assert_eq!(dig(&pod, &["db.default.svc.cluster.local"]).await.1.len(), 100);
        let run = || std::process::Command::new("dig").args(["@10.43.0.10", "+ignore", "+noedns", "db.default.svc.cluster.local"]).output();
        let cut = String::from_utf8(pod.run(run).await.unwrap().stdout).unwrap();
        assert!(cut.contains(" tc ") && cut.contains("MSG SIZE  rcvd: 5") || cut.contains("MSG SIZE  rcvd: 4"), "{cut}");

        // The world's resolver: every name is 203.0.113.7, except one it refuses.
        let socket = outside.run(|| UdpSocket::bind(("0.0.0.0", 53)).unwrap()).await;
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((n, peer)) = socket.recv_from(&mut buffer) {
                let end = 12 + buffer[12..n].iter().position(|b| *b == 0).unwrap() + 5;
                let refused = buffer[12..end].windows(7).any(|w| w == b"refused");
                let mut answer = buffer[..end].to_vec();
                answer[2..12].copy_from_slice(&[0x81, if refused { 0x85 } else { 0x80 }, 0, 1, 0, u8::from(!refused), 0, 0, 0, 0]);
                if !refused {
                    answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 7]);
                }
                let _ = socket.send_to(&answer, peer);
            }
        });
        assert_eq!(dig(&pod, &["www.example.test"]).await, yes(&["A 203.0.113.7"]));
        assert_eq!(dig(&pod, &["refused.example.test"]).await.0, "REFUSED");
        assert_eq!(dig(&pod, &["out.default.svc.cluster.local"]).await, yes(&["CNAME www.example.test.", "A 203.0.113.7"]));
        let _ = ip;
        network.stop().await;
        Network::cleanup(&node.instance, &node.dir, &"10.43.0.0/16".parse().unwrap()).await.unwrap();
        assert_eq!(nft(&["list", "tables"]).await, "");
    });
}

/// A query asked while no daemon is there waits for the next one.
#[test]
fn names_asked_for_while_nobody_serves_are_answered_by_the_next() {
    const PATIENT: &[&str] = &["+time=8", "+tries=1", "web.default.svc.cluster.local"];
    const BRIEF: &[&str] = &["+time=1", "+tries=1", "web.default.svc.cluster.local"];
    on_a_node(|node| async move {
        let _outside = node.outside().await;
        let pod = Namespace::new().await;
        for protocol in ["+notcp", "+tcp"] {
            let (feed, inputs) = Feed::new();
            let network = Network::start_from(node.config(), inputs).await.unwrap();
            network.add_pod("a", &pod.path(), &[]).await.unwrap();
            feed.service("web", "10.43.0.40", json!([{"name": "http", "port": 80}]), json!({})).await;
            feed.synced().await;
            feed.service("web", "10.43.0.40", json!([{"name": "http", "port": 80}]), json!({})).await;
            eventually("the name is known", || async { dig(&pod, BRIEF).await.0 == "NOERROR" }).await;
            network.stop().await;
            eventually("the resolver has let go", || async { dig(&pod, BRIEF).await.0 == "none" }).await;

            let asking = pod.run(move || {
                let base = ["@10.43.0.10", "+noall", "+comments", "+answer", protocol];
                std::process::Command::new("dig").args(base).args(PATIENT).output().unwrap()
            });
            let serving = async {
                let (feed, inputs) = Feed::new();
                let network = Network::start_from(node.config(), inputs).await.unwrap();
                feed.set(Kind::Service, json!({"metadata": {"namespace": "default", "name": "web"}, "spec": {"clusterIP": "10.43.0.41"}}))
                    .await;
                for kind in [Kind::Service, Kind::Slice] {
                    feed.to.send(Input::Synced(kind)).await.unwrap();
                }
                (network, feed)
            };
            let (answer, (network, _feed)) = tokio::join!(asking, serving);
            let text = String::from_utf8(answer.stdout).unwrap();
            assert!(text.contains("status: NOERROR") && text.contains("10.43.0.41"), "{protocol}: {text}");
            network.stop().await;
            eventually("the resolver has let go again", || async { dig(&pod, BRIEF).await.0 == "none" }).await;
        }
        Network::cleanup(&node.instance, &node.dir, &"10.43.0.0/16".parse().unwrap()).await.unwrap();
        assert!(!node.dir.join("resolver.sock").exists(), "the holder is gone");
    });
}

/// An API with one list of objects per resource, told through watches; what is created is remembered.
struct Fake {
    objects: Vec<Object>,
    created: std::sync::Mutex<Vec<Value>>,
}

impl Transport for Fake {
    fn call(&self, request: Request) -> Future<'_, ApiResult<Outcome>> {
        let answer = match (request.verb, request.body) {
            (Verb::Watch, _) => {
                let of = self.objects.iter().filter(|o| o.resource == request.resource);
                let mut events: Vec<Event> = of.cloned().map(Event::Added).collect();
                events.push(Event::Bookmark { revision: 9, initial_end: true });
                Ok(Outcome::Watch(Box::pin(futures_util::stream::iter(events).chain(futures_util::stream::pending()))))
            }
            (Verb::Create, Body::Value(value)) => {
                let object = Object::from_value(request.resource, &value, 10);
                self.created.lock().unwrap().push(value);
                Ok(Outcome::Unary(Response::Object { object, code: 201 }))
            }
            _ => Err(Status::not_found(request.resource, &request.name)),
        };
        Box::pin(async { answer })
    }
}

#[test]
fn stored_objects_are_followed_and_the_resolver_is_shown() {
    on_a_node(|node| async move {
        let _outside = node.outside().await;
        let pod = Namespace::new().await;
        let service = json!({"metadata": {"namespace": "default", "name": "web"}, "spec": {"type": "ClusterIP", "clusterIP": "10.43.0.50",
            "clusterIPs": ["10.43.0.50"], "ports": [{"name": "t", "port": 80, "protocol": "TCP", "targetPort": 8080}]}});
        let slice = json!({"metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "t", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.42.0.3"], "conditions": {"ready": true}, "nodeName": "node-1"}]});
        let objects = vec![
            Object::from_value(&resource::SERVICES, &convert(service), 7),
            Object::from_value(&resource::ENDPOINTSLICES, &convert(slice), 8),
        ];
        let fake = Arc::new(Fake { objects, created: Default::default() });
        let network = Network::start(node.config(), Client::new(fake.clone(), User::master())).await.unwrap();
        assert_eq!(network.add_pod("a", &pod.path(), &[]).await.unwrap().ip.to_string(), "10.42.0.3");
        pod.serve_tcp(8080, "a").await;
        eventually("the stored service carries traffic", || async {
            tokio::task::spawn_blocking(|| ask_tcp(at(Ipv4Addr::new(10, 43, 0, 50), 80)).is_ok()).await.unwrap()
        })
        .await;
        assert_eq!(dig(&pod, &["web.default.svc.cluster.local"]).await.1, ["A 10.43.0.50"]);
        eventually("the resolver is shown", || async { !fake.created.lock().unwrap().is_empty() }).await;
        let shown = fake.created.lock().unwrap()[0].clone();
        assert_eq!(shown.str_at(&["metadata", "name"]), "kube-dns-node-1");
        assert_eq!(shown.list_at(&["endpoints"])[0].list_at(&["addresses"]), [Value::from("10.42.0.2")]);
        network.stop().await;
        Network::cleanup(&node.instance, &node.dir, &"10.43.0.0/16".parse().unwrap()).await.unwrap();
    });
}

/// The API server listens on the node itself: pods and the node reach it through its service. A restarted daemon finds the
/// table of the last one in place and does not take away what it has not heard of yet.
#[test]
fn the_node_is_an_endpoint_and_a_restart_keeps_the_services() {
    on_a_node(|node| async move {
        let mut c = Cluster::new(node).await;
        let listener = TcpListener::bind((NODE, 6443)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let _ = stream.write_all(format!("api {}", stream.peer_addr().unwrap().ip()).as_bytes());
            }
        });
        let vip = at(Ipv4Addr::new(10, 43, 0, 1), 443);
        let ports = json!([{"name": "https", "port": 443}]);
        c.feed.service("kubernetes", "10.43.0.1", ports, json!({})).await;
        let slice_ports = json!([{"name": "https", "port": 6443}]);
        c.feed.slice("kubernetes", slice_ports.clone(), &[(NODE, "node-1")]).await;
        c.until(vip, true).await;
        assert_eq!(c.pods[0].0.ask_tcp(vip).await.unwrap(), ("api".to_string(), c.ip(0).into()));
        assert_eq!(c.ask_from_node(vip).await.unwrap().0, "api");

        c.network.stop().await;
        let (feed, inputs) = Feed::new();
        c.network = Network::start_from(c.node.config(), inputs).await.unwrap();
        c.feed = feed;
        for _ in 0..20 {
            assert!(c.pods[0].0.ask_tcp(vip).await.is_ok(), "services of before the restart stay");
        }
        // The lists say the service is gone: now it goes.
        c.feed.synced().await;
        c.until(vip, false).await;
        c.end().await;
    });
}
