//! The node's network with real packets. Needs root: every test has a network namespace of its own as "the node", pods and
//! outsiders are further namespaces, and all of it is gone when the test ends.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle::api::client::{Client, Future, Transport};
use coracle::api::request::{Outcome, Request, User};
use coracle::api::status::{Result as ApiResult, Status};
use coracle::net::{self, NetConfig, Network, netlink, pod};
use nix::sched::{CloneFlags, unshare};

/// An API that never answers: for tests that need no services.
struct Silent;
impl Transport for Silent {
    fn call(&self, _: Request) -> Future<'_, ApiResult<Outcome>> {
        Box::pin(async { Err(Status::internal("no server in this test")) })
    }
}

fn silent() -> Client {
    Client::new(Arc::new(Silent), User::master())
}

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
            resolv_conf: self.dir.join("resolv.conf"),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
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

fn at(ip: Ipv4Addr, port: u16) -> SocketAddr {
    (ip, port).into()
}

#[test]
fn pods_reach_each_other_and_links_follow_their_pods() {
    on_a_node(|node| async move {
        let _outside = node.outside().await;
        let network = Network::start(node.config(), silent()).await.unwrap();
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
        let network = Network::start(node.config(), silent()).await.unwrap();
        assert_eq!(network.pod_ip("pod-b"), Some(two.ip));
        network.remove_pod("pod-b").await.unwrap();
        assert_eq!(network.pod_ip("pod-b"), None);
        assert_eq!(node.links.find(&pod::link_name(&node.instance, "pod-b")).await.unwrap(), None);

        network.stop().await;
        Network::cleanup(&node.instance, &"10.43.0.0/16".parse().unwrap()).await.unwrap();
        let mut left: Vec<_> = node.links.list().await.unwrap().into_iter().map(|l| l.name).collect();
        left.sort();
        assert_eq!(left, ["lo", "up0"]);
        let _ = net::table_name(&node.instance);
    });
}
