//! The node: the kubelet over `runtime` and `net`.
//!
//! [`Agent::start`] is the way in: it registers the node ([`node`]), follows the pods bound to it ([`kubelet`]) and keeps
//! their logs and statistics; connections to the kubelet's own API come in through [`Agent::serve_connection`] ([`server`]).
//! It learns only by watching and acts only by writing; it knows the API only as a [`Client`].

pub mod clock;
pub mod gc;
pub mod kubelet;
pub mod logs;
pub mod node;
pub mod probes;
pub mod qos;
pub mod server;
pub mod stats;
pub mod stream;
pub mod volumes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::api::client::Client;
use crate::api::events::Recorder;
use crate::api::time::{Clock, SystemClock};
use crate::runtime::{BoxFuture, Runtime};
use crate::task::Shutdown;
use kubelet::admit::{HostPort, Room};
use kubelet::env::NodeFacts;
use kubelet::files::Dns;
use kubelet::{Kubelet, Shared};
use node::{Facts, Identity, Node};
use server::{Peer, Server};
use volumes::Volumes;
use volumes::sources::Sources;

/// What a pod needs of the network.
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects the pod's network namespace; asking again answers the same addresses. The error is for people.
    fn add_pod<'a>(&'a self, uid: &'a str, netns: &'a Path, ports: Vec<HostPort>) -> BoxFuture<'a, Result<Vec<String>, String>>;
    /// Idempotent.
    fn remove_pod<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), String>>;
    /// Addresses of a connected pod, also after a restart; empty for others.
    fn pod_ips(&self, uid: &str) -> Vec<String>;
}

#[derive(Clone, Debug)]
pub struct AgentConfig {
    pub node_name: String,
    pub node_ip: std::net::IpAddr,
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub cluster_dns: std::net::IpAddr,
    pub cluster_domain: String,
    pub kubelet_port: u16,
    pub max_pods: i64,
    pub node_labels: BTreeMap<String, String>,
    /// The range of this node's pod addresses, as the Node says it.
    pub pod_cidr: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot prepare the directories below {}", path.display())]
    Directories {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A running node.
pub struct Agent {
    kubelet: Arc<Kubelet>,
    server: Arc<Server>,
    stop: Shutdown,
}

impl Agent {
    pub async fn start(
        config: AgentConfig,
        client: Client,
        runtime: Arc<dyn Runtime>,
        network: Arc<dyn PodNetwork>,
    ) -> Result<Agent, Error> {
        Agent::start_with_clock(config, client, runtime, network, Arc::new(SystemClock)).await
    }

    pub async fn start_with_clock(
        config: AgentConfig,
        client: Client,
        runtime: Arc<dyn Runtime>,
        network: Arc<dyn PodNetwork>,
        clock: Arc<dyn Clock>,
    ) -> Result<Agent, Error> {
        let stop = Shutdown::new();
        let data_dir = config.data_dir.clone();
        let directories = |source| Error::Directories { path: data_dir.clone(), source };
        let log_root = config.data_dir.join("logs/pods");
        std::fs::create_dir_all(&log_root).map_err(directories)?;
        let (sources, changed) = Sources::new(client.clone());
        let volumes =
            Volumes::new(client.clone(), sources, config.data_dir.join("pods"), config.run_dir.join("secrets")).map_err(directories)?;
        let facts = Facts::read(&config.data_dir, runtime.version());
        let shared = Arc::new(Shared {
            runtime: runtime.clone(),
            network,
            client: client.clone(),
            recorder: Recorder::new(client.clone(), "kubelet", &config.node_name),
            clock: clock.clone(),
            volumes,
            dns: Dns {
                servers: vec![config.cluster_dns.to_string()],
                domain: config.cluster_domain.clone(),
                host: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            },
            node: NodeFacts {
                name: config.node_name.clone(),
                host_ips: vec![config.node_ip.to_string()],
                cpu_milli: facts.cpus * 1000,
                memory_bytes: facts.allocatable_memory(),
                ephemeral_bytes: facts.disk_bytes,
            },
            log_root,
            seccomp_dir: config.data_dir.join("seccomp"),
            services: kubelet::follow_services(client.clone()),
        });
        let (room, offered) = watch::channel(Room {
            cpu_milli: facts.cpus * 1000,
            memory_bytes: facts.allocatable_memory(),
            pods: config.max_pods,
            labels: BTreeMap::new(),
        });
        let identity = Identity {
            name: config.node_name.clone(),
            ips: vec![config.node_ip.to_string()],
            port: config.kubelet_port,
            max_pods: config.max_pods,
            data_dir: config.data_dir.clone(),
            labels: config.node_labels.clone(),
            pod_cidr: config.pod_cidr.clone(),
        };
        room.send_modify(|r| r.labels = node::labels(&identity));
        let node = Arc::new(Node { identity, client, runtime, clock, room });
        until(&stop, "node", node.run());
        until(&stop, "log-rotation", logs::rotate_all(shared.clone()));
        let kubelet = Arc::new(Kubelet::start(shared, changed, offered, stop.clone()));
        let server = Arc::new(Server { kubelet: kubelet.clone(), summaries: stats::Summaries::default(), data_dir: config.data_dir });
        Ok(Agent { kubelet, server, stop })
    }

    pub fn kubelet(&self) -> &Arc<Kubelet> {
        &self.kubelet
    }

    /// One connection to the kubelet's port, TLS done; returns when it has ended.
    pub async fn serve_connection<S>(&self, io: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.server.clone().serve(io, peer).await;
    }

    /// Ends the loops; pods live on.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

/// Runs `work` until the agent stops.
fn until(stop: &Shutdown, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    let stop = stop.clone();
    crate::task::spawn(name, async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    });
}

#[cfg(test)]
mod tests;
