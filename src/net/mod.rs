//! Packets: pod network, services, DNS of this node.
//!
//! [`Network::start`] prepares the node (forwarding, the service route), follows Services and EndpointSlices, and keeps
//! three things true: every pod added has an address and a link ([`ipam`], [`pod`]), the node's one nftables table says what
//! the services say ([`proxy`] over [`nft`]), and the node's resolver answers for them ([`dns`]). All names in the kernel
//! derive from the instance, so several instances share a machine and [`Network::cleanup`] finds what one left behind.
//!
//! Works in the network namespace of the thread that built the runtime. IPv4 only so far. Knows no containers.

pub mod announce;
pub mod dns;
pub mod firewall;
pub mod ipam;
pub mod monitor;
pub mod netlink;
pub mod nft;
pub mod pod;
pub mod proxy;

use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::api::cidr::Cidr;
use crate::api::client::Client;
use crate::api::informer::{Change, informer};
use crate::api::object::{Name, Revision};
use crate::api::request::Options;
use crate::api::resource;
use crate::api::value::Value;
use crate::task::Shutdown;

use tokio::sync::{mpsc, watch};

use crate::task;
use ipam::{Ipam, Lease};
use netlink::{Links, Route};
use proxy::Local;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    pub fn from_number(number: u8) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|p| p.number() == number)
    }

    /// An absent protocol is TCP.
    pub fn parse(name: &str) -> Option<Protocol> {
        match name {
            "" | "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// A port of the node that leads to a pod. `host_ip` none: every address of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    pub protocol: Protocol,
    pub container_port: u16,
}

/// What the loops of this module follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Service,
    Slice,
}

/// One change of a followed object, decoded once for all loops.
#[derive(Clone, Debug)]
pub enum Input {
    /// A list begins: what is not set before the next `Synced` does not exist.
    Reset(Kind),
    Set(Kind, Name, Arc<Value>),
    Gone(Kind, Name),
    Synced(Kind),
    /// All that happened to objects of the kind up to this revision has been said.
    At(Kind, Revision),
}

/// Up to which revision the objects of each kind are in effect on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InEffect {
    pub services: Revision,
    pub slices: Revision,
}

impl InEffect {
    fn slot(&mut self, kind: Kind) -> &mut Revision {
        match kind {
            Kind::Service => &mut self.services,
            Kind::Slice => &mut self.slices,
        }
    }

    pub fn set(&mut self, kind: Kind, revision: Revision) {
        *self.slot(kind) = revision;
    }

    pub fn reaches(mut self, kind: Kind, revision: Revision) -> bool {
        *self.slot(kind) >= revision
    }
}

/// What a pod's sandbox needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodNet {
    pub ip: Ipv4Addr,
    pub gateway: Ipv4Addr,
}

#[derive(Clone, Debug)]
pub struct NetConfig {
    /// 8 hex digits: names everything in the kernel.
    pub instance: String,
    pub node_name: String,
    pub node_ip: Ipv4Addr,
    pub pod_cidr: Cidr,
    pub cluster_cidr: Cidr,
    pub service_cidr: Cidr,
    pub cluster_dns: Ipv4Addr,
    pub cluster_domain: String,
    /// Where pod addresses are remembered.
    pub state_dir: PathBuf,
    /// Where sockets of this instance live; gone after a reboot. Short: their paths may not pass 107 bytes.
    pub run_dir: PathBuf,
    /// Our own executable.
    pub exe: PathBuf,
    /// The host's resolver configuration: `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Nft(#[from] nft::Error),
    #[error(transparent)]
    Link(#[from] netlink::Error),
    #[error(transparent)]
    Ipam(#[from] ipam::Error),
    #[error("network configuration: {0}")]
    Config(String),
    #[error("the pod network has stopped")]
    Stopped,
    #[error("create {path}")]
    StateDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The network of this node, running.
pub struct Network {
    config: Arc<NetConfig>,
    links: Links,
    ipam: Mutex<Ipam>,
    mtu: u32,
    locals: mpsc::Sender<Local>,
    /// How far the rules are, and the names.
    effects: [watch::Receiver<InEffect>; 2],
    shutdown: Shutdown,
}

/// Changes waiting for one loop.
const QUEUE: usize = 256;

impl Network {
    /// Starts everything over the objects `client` sees.
    pub async fn start(config: NetConfig, client: Client) -> Result<Network, Error> {
        let (to, feed) = mpsc::channel(QUEUE);
        let network = Network::start_from(config, feed).await?;
        let shutdown = network.shutdown.clone();
        let endpoint = announce::resolver_slice(&network.config.node_name, ipam::resolver(&network.config.pod_cidr));
        task::spawn("net-follow", async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = async { tokio::join!(follow(client.clone(), to), announce::resolver(client, endpoint)); } => {}
            }
        });
        Ok(network)
    }

    /// Starts everything over the objects that come through `feed`.
    pub async fn start_from(config: NetConfig, feed: mpsc::Receiver<Input>) -> Result<Network, Error> {
        check(&config)?;
        for dir in [&config.state_dir, &config.run_dir] {
            std::fs::create_dir_all(dir).map_err(|source| Error::StateDir { path: dir.clone(), source })?;
        }
        netlink::set_sysctl("net.ipv4.ip_forward", "1")?;
        let links = Links::open()?;
        links.set_up(&links.need("lo").await?).await?;
        // Without a route local connections to a cluster IP fail before any rule sees them.
        links.set_route(&service_route(&links, &config.service_cidr, Some(config.node_ip)).await?).await?;
        let uplink = links.holding(config.node_ip.into()).await?;
        let mtu = uplink.filter(|link| link.name != "lo").map_or(1500, |link| link.mtu);
        let ipam = Ipam::open(&config.state_dir.join("pods"), config.pod_cidr)?;
        let shutdown = Shutdown::new();

        let facts = proxy::rules::Facts {
            node: config.node_name.clone(),
            pod_cidr: config.pod_cidr,
            cluster_cidr: config.cluster_cidr,
            service_cidr: config.service_cidr,
        };
        let mut state = proxy::State::new(facts, resolver_frontends(&config));
        for (uid, lease) in ipam.leases() {
            state.set_local(Local::Pod(uid.clone(), lease.ip, lease.host_ports.clone()));
        }
        let (to_proxy, inputs) = mpsc::channel(QUEUE);
        let (locals, local_inputs) = mpsc::channel(QUEUE);
        let proxy = proxy::Proxy::new(&table_name(&config.instance), state, inputs, local_inputs).await?;
        let programmed = proxy.in_effect();
        task::spawn("net-proxy", proxy.run(shutdown.clone()));
        let (to_dns, inputs) = mpsc::channel(QUEUE);
        let named = dns::start(&config, &links, mtu, inputs, shutdown.clone()).await?;
        task::spawn("net-firewall", firewall::watch(config.cluster_cidr, shutdown.clone()));
        task::spawn("net-feed", fan_out(feed, vec![to_proxy, to_dns]));
        Ok(Network { config: Arc::new(config), links, ipam: Mutex::new(ipam), mtu, locals, effects: [programmed, named], shutdown })
    }

    /// Waits until the objects of a kind are in effect as of `revision`: the kernel has their rules, the resolver their names.
    pub async fn in_effect(&self, kind: Kind, revision: Revision) -> Result<(), Error> {
        for effect in &self.effects {
            effect.clone().wait_for(|now| now.reaches(kind, revision)).await.map_err(|_| Error::Stopped)?;
        }
        Ok(())
    }

    /// Gives the pod an address and connects its namespace. Repeating it is fine.
    pub async fn add_pod(&self, uid: &str, netns: &Path, host_ports: &[HostPort]) -> Result<PodNet, Error> {
        let ip = self.ipam.lock().expect("no panic while allocating").allocate(uid, host_ports)?;
        let gateway = ipam::gateway(&self.config.pod_cidr);
        let name = pod::link_name(&self.config.instance, uid);
        let netns = pod::open_netns(netns)?;
        if !pod::check(&self.links, &name, &netns, ip).await? {
            pod::add(&self.links, &name, &netns, pod::Addresses { ip, gateway, mtu: self.mtu }).await?;
        }
        self.tell(Local::Pod(uid.to_string(), ip, host_ports.to_vec())).await;
        Ok(PodNet { ip, gateway })
    }

    /// Disconnects the pod and frees its address. Fine if it is unknown.
    pub async fn remove_pod(&self, uid: &str) -> Result<(), Error> {
        self.tell(Local::PodGone(uid.to_string())).await;
        pod::remove(&self.links, &pod::link_name(&self.config.instance, uid)).await?;
        self.ipam.lock().expect("no panic while releasing").release(uid)?;
        Ok(())
    }

    /// After [`Network::stop`] nobody listens, and the next start reads the leases.
    async fn tell(&self, local: Local) {
        let _ = self.locals.send(local).await;
    }

    pub fn pod_ip(&self, uid: &str) -> Option<Ipv4Addr> {
        self.lease(uid).map(|lease| lease.ip)
    }

    fn lease(&self, uid: &str) -> Option<Lease> {
        self.ipam.lock().expect("no panic while looking").get(uid).cloned()
    }

    /// Every pod that holds an address: the agent removes those it does not know.
    pub fn pods(&self) -> Vec<(String, Ipv4Addr)> {
        let ipam = self.ipam.lock().expect("no panic while looking");
        ipam.leases().iter().map(|(uid, lease)| (uid.clone(), lease.ip)).collect()
    }

    /// Ends the loops. Pods stay connected and services stay programmed.
    pub async fn stop(&self) {
        self.shutdown.cancel();
    }

    /// Removes everything an instance made in this network namespace, running or not.
    pub async fn cleanup(instance: &str, run_dir: &Path, service_cidr: &Cidr) -> Result<(), Error> {
        dns::holder::Holder::of(run_dir).end();
        let mut table = nft::Table::open(&table_name(instance))?;
        table.delete()?;
        let links = Links::open()?;
        let prefix = pod::prefix(instance);
        // 15 bytes and our prefix: only links we named look like that.
        for link in links.list().await?.iter().filter(|l| l.name.len() == 15 && l.name.starts_with(&prefix)) {
            links.delete(link).await?;
        }
        links.delete_route(&service_route(&links, service_cidr, None).await?).await?;
        Ok(())
    }
}

/// The cluster's DNS address leads to this node's resolver, whatever the stored Service says.
fn resolver_frontends(config: &NetConfig) -> Vec<(proxy::rules::Frontend, proxy::rules::Endpoint)> {
    let endpoint = (ipam::resolver(&config.pod_cidr), 53);
    let at = |protocol| proxy::rules::Frontend { ip: Some(config.cluster_dns), protocol, port: 53 };
    vec![(at(Protocol::Udp), endpoint), (at(Protocol::Tcp), endpoint)]
}

/// Hands every input to every loop. A loop that ended is left out; ends with the last one or with the feed.
async fn fan_out(mut feed: mpsc::Receiver<Input>, mut loops: Vec<mpsc::Sender<Input>>) {
    while let Some(input) = feed.recv().await {
        for to in &loops {
            let _ = to.send(input.clone()).await;
        }
        loops.retain(|to| !to.is_closed());
        if loops.is_empty() {
            return;
        }
    }
}

/// Follows Services and EndpointSlices and decodes each object once.
async fn follow(client: Client, to: mpsc::Sender<Input>) {
    let mut services = informer(client.clone(), &resource::SERVICES, Options::default());
    let mut slices = informer(client, &resource::ENDPOINTSLICES, Options::default());
    let mut listing = HashSet::from([Kind::Service, Kind::Slice]);
    loop {
        let (kind, change) = tokio::select! {
            Some(change) = services.recv() => (Kind::Service, change),
            Some(change) = slices.recv() => (Kind::Slice, change),
            else => return,
        };
        let at = known_up_to(&mut listing, kind, &change);
        let inputs = std::iter::once(translate(kind, change)).chain(at.map(|revision| Input::At(kind, revision)));
        for input in inputs {
            if to.send(input).await.is_err() {
                return;
            }
        }
    }
}

/// How far a kind is known once `change` is: a list says so at its end. `listing` remembers which kinds are in the middle of one.
fn known_up_to(listing: &mut HashSet<Kind>, kind: Kind, change: &Change) -> Option<Revision> {
    match change {
        Change::Reset => {
            listing.insert(kind);
            None
        }
        Change::Synced(revision) => {
            listing.remove(&kind);
            Some(*revision)
        }
        Change::Set(object) | Change::Gone(object) => (!listing.contains(&kind)).then_some(object.revision),
    }
}

fn translate(kind: Kind, change: Change) -> Input {
    match change {
        Change::Reset => Input::Reset(kind),
        Change::Set(object) => Input::Set(kind, object.key(), Arc::new(object.value())),
        Change::Gone(object) => Input::Gone(kind, object.key()),
        Change::Synced(_) => Input::Synced(kind),
    }
}

pub fn table_name(instance: &str) -> String {
    format!("coracle_{instance}")
}

async fn service_route(links: &Links, service_cidr: &Cidr, source: Option<Ipv4Addr>) -> Result<Route, Error> {
    let lo = links.need("lo").await?;
    Ok(Route { to: *service_cidr, link: lo.index, gateway: None, source })
}

fn check(config: &NetConfig) -> Result<(), Error> {
    let bad = |text: String| Err(Error::Config(text));
    for (name, cidr) in [("pod", config.pod_cidr), ("cluster", config.cluster_cidr), ("service", config.service_cidr)] {
        if !cidr.is_ipv4() {
            return bad(format!("the {name} range {cidr} is not IPv4"));
        }
    }
    if config.pod_cidr.size() < 8 {
        return bad(format!("the pod range {} has less than 8 addresses", config.pod_cidr));
    }
    if !config.cluster_cidr.covers(&config.pod_cidr) {
        return bad(format!("the pod range {} is outside the cluster range {}", config.pod_cidr, config.cluster_cidr));
    }
    if config.instance.len() != 8 || !config.instance.bytes().all(|b| b.is_ascii_hexdigit()) {
        return bad(format!("the instance id {:?} is not 8 hex digits", config.instance));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::object::Object;
    use crate::value;

    #[test]
    fn a_kind_is_known_up_to_the_end_of_its_list_then_change_by_change() {
        let object = |revision| Object::from_value(&resource::SERVICES, &value!({"metadata": {"namespace": "n", "name": "s"}}), revision);
        let mut listing = HashSet::from([Kind::Service, Kind::Slice]);
        for (kind, change, known) in [
            (Kind::Service, Change::Set(object(3)), None),
            (Kind::Service, Change::Set(object(2)), None),
            (Kind::Service, Change::Synced(7), Some(7)),
            (Kind::Slice, Change::Set(object(8)), None),
            (Kind::Service, Change::Set(object(8)), Some(8)),
            (Kind::Service, Change::Gone(object(9)), Some(9)),
            (Kind::Service, Change::Reset, None),
            (Kind::Service, Change::Set(object(1)), None),
            (Kind::Service, Change::Synced(12), Some(12)),
        ] {
            assert_eq!(known_up_to(&mut listing, kind, &change), known, "{kind:?} {change:?}");
        }
        let effect = InEffect { services: 7, slices: 5 };
        assert!(effect.reaches(Kind::Service, 7) && !effect.reaches(Kind::Service, 8) && !effect.reaches(Kind::Slice, 7));
    }
}
