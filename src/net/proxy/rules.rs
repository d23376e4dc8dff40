//! Pure: one service and its endpoints in, its fragment of the node's table out.
//!
//! "Slot maps" (notes/net.md 1.4). A *frontend* is what clients dial: address, protocol, port; or protocol and port on every
//! address of the node. Each frontend carries its own list of endpoints, so traffic policies are nothing but "which list".
//! Endpoint `i` of a frontend is the frontend's element in slot map `i`; the frontend's verdict sends a new connection to
//! the class chain of its list's length, which picks a slot at random. So a service is only elements, and a list keeps its
//! surviving endpoints in their slots ([`assign`]).
//!
//! Two things need more. External traffic with policy Local differs for clients near (pods, the node itself) and far, so
//! near clients have maps of their own. Client affinity needs a chain and a remembered set of clients per endpoint.
//! Start at [`fragment`]; the constant part is in `skeleton`. Knows no other service: whose a frontend is if two want it,
//! the caller says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use sha2::{Digest, Sha256};

use crate::api::cidr::Cidr;
use crate::api::object::Name;
use crate::api::value::Value;
use crate::net::nft::{self, Base, Chain, Data, Datum, Expr, Field, Ruleset, Set, Verdict};
use crate::net::{HostPort, Protocol};

/// An endpoint's address and port.
pub type Endpoint = (Ipv4Addr, u16);

/// What clients dial. `ip` none: every address of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    pub ip: Option<Ipv4Addr>,
    pub protocol: Protocol,
    pub port: u16,
}

/// The four groups of maps: by address or by port alone, for everybody or for near clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bank {
    Address,
    NearAddress,
    Port,
    NearPort,
}

impl Bank {
    pub const ALL: [Bank; 4] = [Bank::Address, Bank::NearAddress, Bank::Port, Bank::NearPort];

    /// Frontend to verdict.
    pub fn verdicts(self) -> nft::Name {
        match self {
            Bank::Address => "svc4",
            Bank::NearAddress => "near4",
            Bank::Port => "nodeports4",
            Bank::NearPort => "near_nodeports4",
        }
        .into()
    }

    fn short(self) -> &'static str {
        match self {
            Bank::Address => "a4",
            Bank::NearAddress => "na4",
            Bank::Port => "p4",
            Bank::NearPort => "np4",
        }
    }

    /// Frontend to its endpoint in slot `i`.
    pub fn slot_map(self, i: usize) -> nft::Name {
        format!("eps_{}_{i}", self.short()).into()
    }

    pub fn slot_chain(self, i: usize) -> nft::Name {
        format!("slot_{}_{i}", self.short()).into()
    }

    /// Picks one of `k` slots; with one there is nothing to pick.
    pub fn class_chain(self, k: usize) -> nft::Name {
        if k == 1 { self.slot_chain(0) } else { format!("class_{}_{k}", self.short()).into() }
    }

    pub fn key(self) -> &'static [Field] {
        match self {
            Bank::Address | Bank::NearAddress => &[Field::Ipv4, Field::Proto, Field::Port],
            Bank::Port | Bank::NearPort => &[Field::Proto, Field::Port],
        }
    }
}

/// More endpoints than this behind one frontend get no traffic.
pub const SLOTS_MAX: usize = 4096;

fn port_bytes(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

impl Frontend {
    pub fn key(&self) -> nft::Key {
        let mut key = Vec::with_capacity(12);
        if let Some(ip) = self.ip {
            key.extend_from_slice(&ip.octets());
        }
        key.extend_from_slice(&[self.protocol.number(), 0, 0, 0]);
        key.extend_from_slice(&port_bytes(self.port));
        key.into()
    }

    fn bank(&self, near: Near) -> Bank {
        match (self.ip, near) {
            (Some(_), Near::No) => Bank::Address,
            (Some(_), Near::Yes) => Bank::NearAddress,
            (None, Near::No) => Bank::Port,
            (None, Near::Yes) => Bank::NearPort,
        }
    }
}

#[derive(Clone, Copy)]
enum Near {
    Yes,
    No,
}

pub fn endpoint_bytes((ip, port): Endpoint) -> Box<[u8]> {
    [ip.octets(), port_bytes(port)].concat().into()
}

/// A Service as far as the proxy cares.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Service {
    pub name: Name,
    pub cluster_ips: Vec<Ipv4Addr>,
    pub external_ips: Vec<Ipv4Addr>,
    pub load_balancer_ips: Vec<Ipv4Addr>,
    /// Empty: everybody may.
    pub source_ranges: Vec<Cidr>,
    pub ports: Vec<ServicePort>,
    pub affinity_seconds: Option<u32>,
    pub external_local: bool,
    pub internal_local: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

fn port_number(value: Option<i64>) -> Option<u16> {
    value.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0)
}

fn addresses(values: &[Value]) -> Vec<Ipv4Addr> {
    values.iter().filter_map(Value::as_str).filter_map(|s| s.parse().ok()).collect()
}

impl Service {
    /// None: nothing for the proxy (headless, ExternalName, another proxy's, no IPv4 address).
    pub fn parse(value: &Value) -> Option<Service> {
        let labels = value.map_at(&["metadata", "labels"]);
        if value.str_at(&["spec", "type"]) == "ExternalName"
            || labels.is_some_and(|l| l.contains_key("service.kubernetes.io/service-proxy-name"))
        {
            return None;
        }
        let mut cluster_ips = addresses(value.list_at(&["spec", "clusterIPs"]));
        if cluster_ips.is_empty() {
            cluster_ips.extend(value.str_at(&["spec", "clusterIP"]).parse::<Ipv4Addr>());
        }
        if cluster_ips.is_empty() {
            return None;
        }
        let is_load_balancer = value.str_at(&["spec", "type"]) == "LoadBalancer";
        let ingress = value.list_at(&["status", "loadBalancer", "ingress"]).iter();
        // With ipMode Proxy the balancer itself answers; its address is not ours to translate.
        let ours = ingress.filter(|i| is_load_balancer && i.str_at(&["ipMode"]) != "Proxy");
        let seconds = value.i64_at(&["spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds"]);
        let affine = value.str_at(&["spec", "sessionAffinity"]) == "ClientIP";
        Some(Service {
            name: Name::new(value.str_at(&["metadata", "namespace"]), value.str_at(&["metadata", "name"])),
            cluster_ips,
            external_ips: addresses(value.list_at(&["spec", "externalIPs"])),
            load_balancer_ips: ours.filter_map(|i| i.str_at(&["ip"]).parse().ok()).collect(),
            source_ranges: if is_load_balancer { source_ranges(value) } else { Vec::new() },
            ports: value.list_at(&["spec", "ports"]).iter().filter_map(ServicePort::parse).collect(),
            affinity_seconds: affine.then(|| seconds.and_then(|s| u32::try_from(s).ok()).filter(|s| *s > 0).unwrap_or(10_800)),
            external_local: value.str_at(&["spec", "externalTrafficPolicy"]) == "Local",
            internal_local: value.str_at(&["spec", "internalTrafficPolicy"]) == "Local",
        })
    }

    /// Everything it wants to answer for.
    pub fn frontends(&self) -> BTreeSet<Frontend> {
        let mut all = BTreeSet::new();
        for port in &self.ports {
            let ServicePort { protocol, port: number, .. } = *port;
            let addresses = self.cluster_ips.iter().chain(&self.external_ips).chain(&self.load_balancer_ips);
            all.extend(addresses.map(|ip| Frontend { ip: Some(*ip), protocol, port: number }));
            all.extend(port.node_port.map(|port| Frontend { ip: None, protocol, port }));
        }
        all
    }
}

/// Ranges inside another are left out: the kernel refuses overlapping elements.
fn source_ranges(value: &Value) -> Vec<Cidr> {
    let texts = value.list_at(&["spec", "loadBalancerSourceRanges"]).iter().filter_map(Value::as_str);
    let mut ranges: Vec<Cidr> = texts.filter_map(|s| s.trim().parse().ok()).filter(Cidr::is_ipv4).collect();
    ranges.sort_by_key(|c| (c.prefix(), *c));
    let mut kept: Vec<Cidr> = Vec::new();
    for range in ranges {
        if !kept.iter().any(|k| k.covers(&range)) {
            kept.push(range);
        }
    }
    kept
}

impl ServicePort {
    fn parse(value: &Value) -> Option<ServicePort> {
        Some(ServicePort {
            name: value.str_at(&["name"]).to_string(),
            protocol: Protocol::parse(value.str_at(&["protocol"]))?,
            port: port_number(value.i64_at(&["port"]))?,
            node_port: port_number(value.i64_at(&["nodePort"])),
        })
    }
}

/// An EndpointSlice as far as the proxy cares.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Slice {
    pub service: Name,
    /// Name, protocol, number.
    pub ports: Vec<(String, Protocol, u16)>,
    pub endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    pub ip: Ipv4Addr,
    pub ready: bool,
    /// Serving and terminating: the fallback when nothing is ready.
    pub draining: bool,
    pub node: String,
}

impl Slice {
    /// None: of no service, or not IPv4.
    pub fn parse(value: &Value) -> Option<Slice> {
        let service = value.map_at(&["metadata", "labels"])?.str("kubernetes.io/service-name");
        if service.is_empty() || value.str_at(&["addressType"]) != "IPv4" {
            return None;
        }
        let ports = value.list_at(&["ports"]).iter().filter_map(|p| {
            let protocol = Protocol::parse(p.str_at(&["protocol"]))?;
            Some((p.str_at(&["name"]).to_string(), protocol, port_number(p.i64_at(&["port"]))?))
        });
        Some(Slice {
            service: Name::new(value.str_at(&["metadata", "namespace"]), service),
            ports: ports.collect(),
            endpoints: value.list_at(&["endpoints"]).iter().filter_map(SliceEndpoint::parse).collect(),
        })
    }
}

impl SliceEndpoint {
    fn parse(value: &Value) -> Option<SliceEndpoint> {
        let condition = |name: &str| value.at(&["conditions", name]).and_then(Value::as_bool);
        let ready = condition("ready").unwrap_or(true);
        let serving = condition("serving").unwrap_or(ready);
        // All addresses of one endpoint are the same endpoint: consumers take the first.
        let ip = value.list_at(&["addresses"]).first()?.as_str()?.parse().ok()?;
        let draining = serving && condition("terminating").unwrap_or(false);
        Some(SliceEndpoint { ip, ready, draining, node: value.str_at(&["nodeName"]).to_string() })
    }
}

/// What a service's port leads to, cluster-wide and on this node.
#[derive(Debug, Default, PartialEq, Eq)]
struct Choice {
    all: BTreeSet<Endpoint>,
    local: BTreeSet<Endpoint>,
}

impl Choice {
    fn of(&self, scope: Scope) -> &BTreeSet<Endpoint> {
        match scope {
            Scope::All => &self.all,
            Scope::Local => &self.local,
        }
    }
}

/// Ready endpoints; if there is none, those still serving while they terminate. The same again among this node's own.
fn choose(port: &ServicePort, slices: &[&Slice], node: &str) -> Choice {
    let mut ready = Choice::default();
    let mut draining = Choice::default();
    for slice in slices {
        let Some((_, _, number)) = slice.ports.iter().find(|(name, protocol, _)| *name == port.name && *protocol == port.protocol) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let choice = match (endpoint.ready, endpoint.draining) {
                (true, _) => &mut ready,
                (false, true) => &mut draining,
                (false, false) => continue,
            };
            choice.all.insert((endpoint.ip, *number));
            if endpoint.node == node {
                choice.local.insert((endpoint.ip, *number));
            }
        }
    }
    let first = |a: BTreeSet<Endpoint>, b: BTreeSet<Endpoint>| if a.is_empty() { b } else { a };
    Choice { all: first(ready.all, draining.all), local: first(ready.local, draining.local) }
}

/// Puts `wanted` into slots: survivors keep theirs, newcomers fill holes, the last slots move into holes that remain.
pub fn assign(previous: &[Endpoint], wanted: &BTreeSet<Endpoint>) -> Vec<Endpoint> {
    let mut slots: Vec<Option<Endpoint>> = previous.iter().map(|e| wanted.contains(e).then_some(*e)).collect();
    let kept: BTreeSet<Endpoint> = slots.iter().flatten().copied().collect();
    let mut fresh = wanted.iter().filter(|e| !kept.contains(e)).copied();
    for hole in slots.iter_mut().filter(|s| s.is_none()) {
        *hole = fresh.next();
    }
    slots.extend(fresh.map(Some));
    let mut next = 0;
    while next < slots.len() {
        if slots[next].is_none() {
            slots.swap_remove(next);
        } else {
            next += 1;
        }
    }
    slots.into_iter().flatten().take(SLOTS_MAX).collect()
}

/// Where a frontend leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    pub endpoints: Vec<Endpoint>,
    /// Reached through affinity chains, not through slots.
    pub affine: bool,
}

/// One owner's part of the table.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Fragment {
    pub rules: Ruleset,
    pub lists: BTreeMap<(Bank, Frontend), List>,
}

impl Fragment {
    /// The slot classes it needs: bank and length of each list.
    pub fn classes(&self) -> impl Iterator<Item = (Bank, usize)> {
        self.lists
            .iter()
            .filter(|(_, list)| !list.affine && !list.endpoints.is_empty())
            .map(|((bank, _), list)| (*bank, list.endpoints.len()))
    }
}

/// What is the same for every service of this node.
#[derive(Clone, Debug)]
pub struct Facts {
    pub node: String,
    pub pod_cidr: Cidr,
    pub cluster_cidr: Cidr,
    pub service_cidr: Cidr,
}

/// A frontend that leads to exactly these endpoints, whoever asks: built-in services and host ports.
pub fn fixed(frontends: &[(Frontend, Endpoint)]) -> Fragment {
    let mut fragment = Fragment::default();
    for (frontend, endpoint) in frontends {
        fragment.slots(frontend.bank(Near::No), *frontend, vec![*endpoint]);
    }
    fragment
}

/// The pods of this node: a pod that reaches itself through a service must see another source address.
pub fn pods(pods: impl Iterator<Item = Ipv4Addr>) -> Fragment {
    let mut fragment = Fragment::default();
    for ip in pods {
        fragment.rules.element(&"hairpin4".into(), [ip.octets(), ip.octets()].concat(), Datum::Nothing);
    }
    fragment
}

pub fn host_ports(ip: Ipv4Addr, ports: &[HostPort]) -> Vec<(Frontend, Endpoint)> {
    let frontend = |p: &HostPort| Frontend { ip: p.host_ip, protocol: p.protocol, port: p.host_port };
    ports.iter().map(|p| (frontend(p), (ip, p.container_port))).collect()
}

/// The fragment of `service`. `denied` are its frontends that belong to somebody else; `previous` gives the slots so far.
pub fn fragment(service: &Service, slices: &[&Slice], facts: &Facts, denied: &BTreeSet<Frontend>, previous: &Fragment) -> Fragment {
    let mut fragment = Fragment::default();
    for ip in &service.cluster_ips {
        fragment.rules.element(&"cluster_ips4".into(), ip.octets(), Datum::Nothing);
    }
    for port in &service.ports {
        let choice = choose(port, slices, &facts.node);
        let mut builder = PortBuilder { service, port, choice, denied, previous, fragment: &mut fragment };
        builder.build();
    }
    fragment
}

struct PortBuilder<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    choice: Choice,
    denied: &'a BTreeSet<Frontend>,
    previous: &'a Fragment,
    fragment: &'a mut Fragment,
}

/// Which of a port's two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    All,
    Local,
}

impl Scope {
    fn of(local: bool) -> Scope {
        if local { Scope::Local } else { Scope::All }
    }
}

impl PortBuilder<'_> {
    fn build(&mut self) {
        let protocol = self.port.protocol;
        let at = |ip: &Ipv4Addr, port: u16| Frontend { ip: Some(*ip), protocol, port };
        for ip in &self.service.cluster_ips {
            self.frontend(at(ip, self.port.port), Near::No, Scope::of(self.service.internal_local));
        }
        for ip in &self.service.external_ips {
            self.external(at(ip, self.port.port));
        }
        for ip in &self.service.load_balancer_ips {
            let frontend = at(ip, self.port.port);
            self.external(frontend);
            self.restrict(frontend);
        }
        if let Some(port) = self.port.node_port {
            self.external(Frontend { ip: None, protocol, port });
        }
        if self.service.affinity_seconds.is_some() {
            self.affinity_chains();
        }
    }

    /// Traffic from outside. With policy Local far clients keep their address and see local endpoints only; pods and the
    /// node itself may use all, as if they had asked inside.
    fn external(&mut self, frontend: Frontend) {
        if self.denied.contains(&frontend) {
            return;
        }
        if self.service.external_local {
            self.frontend(frontend, Near::Yes, Scope::All);
            self.frontend(frontend, Near::No, Scope::Local);
            return;
        }
        self.frontend(frontend, Near::No, Scope::All);
        let (set, key) = match frontend.ip {
            Some(ip) => (format!("masq_{}4", frontend.protocol.name()), [ip.octets(), port_bytes(frontend.port)].concat()),
            None => (format!("masq_nodeports_{}4", frontend.protocol.name()), frontend.port.to_be_bytes().to_vec()),
        };
        self.fragment.rules.element(&set.as_str().into(), key, Datum::Nothing);
    }

    fn frontend(&mut self, frontend: Frontend, near: Near, scope: Scope) {
        if self.denied.contains(&frontend) {
            return;
        }
        let bank = frontend.bank(near);
        let wanted = self.choice.of(scope);
        if wanted.is_empty() {
            self.nobody(bank, frontend);
        } else if self.service.affinity_seconds.is_some() {
            let endpoints = wanted.iter().copied().take(SLOTS_MAX).collect();
            self.fragment.lists.insert((bank, frontend), List { endpoints, affine: true });
            let chain = self.pick_name(scope);
            self.fragment.lead(bank, frontend, chain);
        } else {
            let before = self.previous.lists.get(&(bank, frontend)).filter(|l| !l.affine).map_or(&[][..], |l| &l.endpoints);
            let endpoints = assign(before, wanted);
            self.fragment.slots(bank, frontend, endpoints);
        }
    }

    /// Nobody anywhere: refuse, so that clients hear it. Only nobody here: be silent, as if this node had no such port.
    fn nobody(&mut self, bank: Bank, frontend: Frontend) {
        self.fragment.lists.insert((bank, frontend), List { endpoints: Vec::new(), affine: false });
        if self.choice.all.is_empty() {
            let set = if frontend.ip.is_some() { "no_endpoints4" } else { "no_endpoints_nodeports4" };
            self.fragment.rules.element(&set.into(), frontend.key(), Datum::Verdict(Verdict::Goto("refuse".into())));
        } else {
            self.fragment.rules.element(&bank.verdicts(), frontend.key(), Datum::Verdict(Verdict::Drop));
        }
    }

    fn restrict(&mut self, frontend: Frontend) {
        if self.service.source_ranges.is_empty() || self.denied.contains(&frontend) {
            return;
        }
        let rules = &mut self.fragment.rules;
        rules.element(&"lb_restricted4".into(), frontend.key(), Datum::Nothing);
        for range in &self.service.source_ranges {
            let (IpAddr::V4(first), IpAddr::V4(last)) = (range.network(), range.last()) else { continue };
            let with = |ip: Ipv4Addr| [&frontend.key()[..], &ip.octets()].concat();
            rules.element(&"lb_allow4".into(), with(first), Datum::Until(with(last).into()));
        }
    }

    /// A name of our own for this port: the hash makes it unique, the rest is for the reader.
    fn chain_name(&self, what: &str, detail: &str) -> nft::Name {
        let Name { namespace, name } = &self.service.name;
        let (port, protocol) = (&self.port.name, self.port.protocol.name());
        let seconds = self.service.affinity_seconds.unwrap_or(0);
        let digest = Sha256::digest(format!("{namespace}/{name}/{port}/{protocol}/{seconds}/{detail}"));
        let hash: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
        let mut text = format!("{what}_{hash}_{namespace}/{name}/{protocol}");
        text.truncate(100);
        text.into()
    }

    /// Of the chain that picks among the endpoints of `scope`: other endpoints make another chain.
    fn pick_name(&self, scope: Scope) -> nft::Name {
        self.chain_name("pick", &format!("{scope:?} {:?}", self.choice.of(scope)))
    }

    /// One chain and one set of clients per endpoint; one chain per list that first looks for the client, then picks.
    fn affinity_chains(&mut self) {
        let timeout_ms = u64::from(self.service.affinity_seconds.expect("only called with affinity")) * 1000;
        let mut rules = Ruleset::default();
        for (ip, port) in self.choice.all.union(&self.choice.local) {
            let detail = format!("{ip}:{port}");
            let (chain, clients) = (self.chain_name("to", &detail), self.chain_name("clients", &detail));
            rules.sets.insert(clients.clone(), Set { timeout_ms: Some(timeout_ms), ..Set::plain(&[Field::Ipv4]) });
            let remember = [&v4()[..], &[saddr(0), Expr::Update { set: clients, reg: 0, timeout_ms }]].concat();
            let address: Box<[u8]> = ip.octets().into();
            let translate = [
                &v4()[..],
                &[
                    Expr::Meta { key: META_L4PROTO, to: 0 },
                    Expr::Equal { reg: 0, value: [self.port.protocol.number()].into() },
                    Expr::Load { value: address, to: 0 },
                    Expr::Load { value: port.to_be_bytes().into(), to: 1 },
                    Expr::Dnat { addr: 0, port: 1 },
                ],
            ]
            .concat();
            rules.chains.insert(chain, Chain { hook: None, rules: vec![remember, translate] });
        }
        for scope in [Scope::All, Scope::Local] {
            if !self.fragment_uses(scope) {
                continue;
            }
            let name = |what: &str, e: &Endpoint| self.chain_name(what, &format!("{}:{}", e.0, e.1));
            let endpoints: Vec<&Endpoint> = self.choice.of(scope).iter().take(SLOTS_MAX).collect();
            let mut chain = Chain::default();
            for endpoint in &endpoints {
                let known = Expr::In { set: name("clients", endpoint), reg: 0 };
                let go = Expr::Verdict(Verdict::Goto(name("to", endpoint)));
                chain.rules.push([&v4()[..], &[saddr(0), known, go]].concat());
            }
            chain.rules.push(pick(endpoints.iter().map(|e| Verdict::Goto(name("to", e))).collect()));
            rules.chains.insert(self.pick_name(scope), chain);
        }
        self.fragment.rules.sets.append(&mut rules.sets);
        self.fragment.rules.chains.append(&mut rules.chains);
    }

    fn fragment_uses(&self, scope: Scope) -> bool {
        let goto = Datum::Verdict(Verdict::Goto(self.pick_name(scope)));
        self.fragment.rules.elements.values().any(|datum| *datum == goto)
    }
}

impl Fragment {
    fn lead(&mut self, bank: Bank, frontend: Frontend, chain: nft::Name) {
        self.rules.element(&bank.verdicts(), frontend.key(), Datum::Verdict(Verdict::Goto(chain)));
        if frontend.ip.is_some() && frontend.protocol == Protocol::Tcp {
            self.rules.element(&"served4".into(), frontend.key(), Datum::Nothing);
        }
    }

    fn slots(&mut self, bank: Bank, frontend: Frontend, endpoints: Vec<Endpoint>) {
        let key = frontend.key();
        for (i, endpoint) in endpoints.iter().enumerate() {
            self.rules.element(&bank.slot_map(i), key.clone(), Datum::Value(endpoint_bytes(*endpoint)));
        }
        self.lead(bank, frontend, bank.class_chain(endpoints.len()));
        self.lists.insert((bank, frontend), List { endpoints, affine: false });
    }
}

fn pick(mut verdicts: Vec<Verdict>) -> nft::Rule {
    match verdicts.len() {
        1 => vec![Expr::Verdict(verdicts.remove(0))],
        n => {
            let modulus = u32::try_from(n).expect("slots are few");
            vec![Expr::Numgen { modulus, to: 0 }, Expr::Switch { reg: 0, verdicts }]
        }
    }
}

// Kernel numbers: linux/netfilter/nf_tables.h.
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const META_IIF: u32 = 4;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const CT_PROTO_DST: u32 = 12;
const CT_DST_IP: u32 = 20;
const STATE_NEW: u32 = 8;
const STATUS_DNAT: u32 = 32;
const LOCAL: u32 = 2;
/// The loopback link is the first of every network namespace.
const LO_INDEX: u32 = 1;

fn v4() -> [Expr; 2] {
    [Expr::Meta { key: META_NFPROTO, to: 0 }, Expr::Equal { reg: 0, value: [2].into() }]
}

fn saddr(to: nft::Reg) -> Expr {
    Expr::Payload { base: Base::Network, offset: 12, len: 4, to }
}

fn daddr(to: nft::Reg) -> Expr {
    Expr::Payload { base: Base::Network, offset: 16, len: 4, to }
}

/// Destination address, protocol and port: registers 0 to 2.
fn address_key() -> [Expr; 3] {
    let [protocol, port] = port_key(1);
    [daddr(0), protocol, port]
}

/// Protocol and destination port from register `to` on.
fn port_key(to: nft::Reg) -> [Expr; 2] {
    [Expr::Meta { key: META_L4PROTO, to }, Expr::Payload { base: Base::Transport, offset: 2, len: 2, to: to + 1 }]
}

fn key_of(bank: Bank) -> Vec<Expr> {
    match bank {
        Bank::Address | Bank::NearAddress => address_key().into(),
        Bank::Port | Bank::NearPort => port_key(0).into(),
    }
}

fn masked(load: Expr, cidr: &Cidr, inside: bool) -> Vec<Expr> {
    let IpAddr::V4(network) = cidr.network() else { unreachable!("ranges are IPv4, checked at start") };
    let mask = u32::MAX.checked_shl(u32::from(32 - cidr.prefix())).unwrap_or(0).to_be_bytes();
    let value: Box<[u8]> = network.octets().into();
    let compare = if inside { Expr::Equal { reg: 0, value } } else { Expr::Differs { reg: 0, value } };
    vec![load, Expr::And { reg: 0, mask: mask.into() }, compare]
}

fn local(of_source: bool) -> [Expr; 2] {
    [Expr::FibType { of_source, to: 0 }, Expr::Equal { reg: 0, value: LOCAL.to_ne_bytes().into() }]
}

fn is_new() -> [Expr; 3] {
    let bits = |n: u32| -> Box<[u8]> { n.to_ne_bytes().into() };
    [
        Expr::Ct { key: CT_STATE, original: false, to: 0 },
        Expr::And { reg: 0, mask: bits(STATE_NEW) },
        Expr::Differs { reg: 0, value: bits(0) },
    ]
}

fn rule(parts: &[&[Expr]]) -> nft::Rule {
    parts.concat()
}

fn goto(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.into()))
}

fn drop() -> Expr {
    Expr::Verdict(Verdict::Drop)
}

/// The slot maps and chains for lists up to the lengths in use, and the class chains of exactly those lengths.
pub fn shared(classes: &BTreeSet<(Bank, usize)>) -> Ruleset {
    let mut rules = Ruleset::default();
    for bank in Bank::ALL {
        let longest = classes.iter().filter(|(b, _)| *b == bank).map(|(_, k)| *k).max().unwrap_or(0);
        for i in 0..longest {
            let map = bank.slot_map(i);
            rules.sets.insert(map.clone(), Set::map(bank.key(), &[Field::Ipv4, Field::Port]));
            let translate = [Expr::Map { set: map, reg: 0, to: 0 }, Expr::Dnat { addr: 0, port: 1 }];
            // A packet may meet a new verdict and an old slot. It must not leave untranslated: its connection would be
            // pinned to that. Dropped, it comes again.
            let missed = vec![Expr::Counter, drop()];
            let translate = rule(&[&v4(), &key_of(bank), &translate]);
            rules.chains.insert(bank.slot_chain(i), Chain { hook: None, rules: vec![translate, missed] });
        }
    }
    for (bank, k) in classes.iter().filter(|(_, k)| *k > 1) {
        let pick = pick((0..*k).map(|i| Verdict::Goto(bank.slot_chain(i))).collect());
        rules.chains.insert(bank.class_chain(*k), Chain { hook: None, rules: vec![pick] });
    }
    rules
}

/// The constant part of the table.
pub fn skeleton(facts: &Facts) -> Ruleset {
    let mut rules = Ruleset::default();
    let address_key_type = Bank::Address.key();
    for bank in Bank::ALL {
        rules.sets.insert(bank.verdicts(), Set::vmap(bank.key()));
    }
    rules.sets.insert("no_endpoints4".into(), Set::vmap(address_key_type));
    rules.sets.insert("no_endpoints_nodeports4".into(), Set::vmap(Bank::Port.key()));
    rules.sets.insert("cluster_ips4".into(), Set::plain(&[Field::Ipv4]));
    // Addresses of the cluster with endpoints, over TCP: other protocols do not send again by themselves.
    rules.sets.insert("served4".into(), Set::plain(address_key_type));
    rules.sets.insert("hairpin4".into(), Set::plain(&[Field::Ipv4, Field::Ipv4]));
    rules.sets.insert("lb_restricted4".into(), Set::plain(address_key_type));
    let allow = Set { key: &[Field::Ipv4, Field::Proto, Field::Port, Field::Ipv4], data: Data::Nothing, interval: true, timeout_ms: None };
    rules.sets.insert("lb_allow4".into(), allow);
    for protocol in Protocol::ALL {
        let name = protocol.name();
        rules.sets.insert(format!("masq_{name}4").into(), Set::plain(&[Field::Ipv4, Field::Port]));
        rules.sets.insert(format!("masq_nodeports_{name}4").into(), Set::plain(&[Field::Port]));
    }
    let mut chain = |name: &str, hook: Option<(&'static str, u32, i32)>, list: Vec<nft::Rule>| {
        let hook = hook.map(|(kind, number, priority)| nft::Hook { kind, number, priority });
        rules.chains.insert(name.into(), Chain { hook, rules: list });
    };
    chain(
        "refuse",
        None,
        vec![
            vec![Expr::Meta { key: META_L4PROTO, to: 0 }, Expr::Equal { reg: 0, value: [6].into() }, Expr::RejectTcp],
            vec![Expr::RejectPort],
        ],
    );
    chain("services", None, services(facts));
    chain("early", None, early());
    chain("guard", None, guard());
    chain("stray", None, stray(facts));
    let jump = |to: &str| vec![vec![Expr::Verdict(Verdict::Jump(to.into()))]];
    chain("pre_guard", Some(("filter", nft::PREROUTING, -300)), jump("guard"));
    chain("pre_early", Some(("filter", nft::PREROUTING, -110)), jump("early"));
    chain("out_early", Some(("filter", nft::OUTPUT, -110)), jump("early"));
    chain("pre_nat", Some(("nat", nft::PREROUTING, -100)), jump("services"));
    chain("out_nat", Some(("nat", nft::OUTPUT, -100)), jump("services"));
    chain("fwd_stray", Some(("filter", nft::FORWARD, 0)), jump("stray"));
    chain("out_stray", Some(("filter", nft::OUTPUT, 0)), jump("stray"));
    chain("post_nat", Some(("nat", nft::POSTROUTING, 100)), masquerade(facts));
    rules
}

/// First packets to their endpoints.
fn services(facts: &Facts) -> Vec<nft::Rule> {
    let look = |bank: Bank| rule(&[&v4(), &key_of(bank), &[Expr::Vmap { set: bank.verdicts(), reg: 0 }]]);
    let pods = [&v4()[..], &masked(saddr(0), &facts.cluster_cidr, true)].concat();
    let here = [&v4()[..], &local(false)].concat();
    vec![
        rule(&[&pods, &look(Bank::NearAddress)]),
        rule(&[&local(true), &look(Bank::NearAddress)]),
        look(Bank::Address),
        rule(&[&pods, &here, &look(Bank::NearPort)]),
        rule(&[&local(true), &here, &look(Bank::NearPort)]),
        rule(&[&here, &look(Bank::Port)]),
    ]
}

fn loopback() -> Cidr {
    Cidr::new(Ipv4Addr::LOCALHOST.into(), 8)
}

/// Ports of the node answer on 127.0.0.1, too, for which pod links may carry loopback addresses (`route_localnet`). Only
/// translated packets of our own ever do: from outside nobody may reach what listens on the node's loopback alone.
fn guard() -> Vec<nft::Rule> {
    let foreign = [Expr::Meta { key: META_IIF, to: 0 }, Expr::Differs { reg: 0, value: LO_INDEX.to_ne_bytes().into() }];
    let rule_of = |address| rule(&[&foreign, &v4(), &masked(address, &loopback(), true), &[drop()]]);
    vec![rule_of(daddr(0)), rule_of(saddr(0))]
}

/// What must be refused before anything is translated.
fn early() -> Vec<nft::Rule> {
    let new: Box<[u8]> = STATE_NEW.to_ne_bytes().into();
    let old = [Expr::Ct { key: CT_STATE, original: false, to: 0 }, Expr::Differs { reg: 0, value: new }, Expr::Verdict(Verdict::Return)];
    let restricted = [Expr::In { set: "lb_restricted4".into(), reg: 0 }];
    let forbidden = [saddr(3), Expr::NotIn { set: "lb_allow4".into(), reg: 0 }, drop()];
    let vmap = |set: &str| [Expr::Vmap { set: set.into(), reg: 0 }];
    vec![
        old.into(),
        rule(&[&v4(), &address_key(), &restricted, &address_key(), &forbidden]),
        rule(&[&v4(), &address_key(), &vmap("no_endpoints4")]),
        rule(&[&local(false), &v4(), &port_key(0), &vmap("no_endpoints_nodeports4")]),
    ]
}

/// What was dialled but belongs to nobody: a wrong port is refused, a wrong address is silent. What is here although it has
/// endpoints met a table in change: dropped, the client's kernel sends it again; refused, its program would fail.
fn stray(facts: &Facts) -> Vec<nft::Rule> {
    let untranslated = [Expr::In { set: "served4".into(), reg: 0 }, Expr::Counter, drop()];
    let known = [daddr(0), Expr::In { set: "cluster_ips4".into(), reg: 0 }, goto("refuse")];
    vec![
        rule(&[&is_new(), &v4(), &address_key(), &untranslated]),
        rule(&[&is_new(), &v4(), &known]),
        rule(&[&is_new(), &v4(), &masked(daddr(0), &facts.service_cidr, true), &[drop()]]),
    ]
}

fn masquerade(facts: &Facts) -> Vec<nft::Rule> {
    let bits = |n: u32| -> Box<[u8]> { n.to_ne_bytes().into() };
    let original = || Expr::Ct { key: CT_DST_IP, original: true, to: 0 };
    let original_port = |to| Expr::Ct { key: CT_PROTO_DST, original: true, to };
    let multicast = Cidr::new(Ipv4Addr::new(224, 0, 0, 0).into(), 4);
    let status = Expr::Ct { key: CT_STATUS, original: false, to: 0 };
    let untranslated =
        [status, Expr::And { reg: 0, mask: bits(STATUS_DNAT) }, Expr::Equal { reg: 0, value: bits(0) }, Expr::Verdict(Verdict::Return)];
    let mut rules = vec![
        // Pods leave the cluster under the node's address.
        rule(&[
            &v4(),
            &masked(saddr(0), &facts.pod_cidr, true),
            &masked(daddr(0), &facts.cluster_cidr, false),
            &masked(daddr(0), &multicast, false),
            &[Expr::Masquerade],
        ]),
        untranslated.into(),
        rule(&[&v4(), &[saddr(0), daddr(1), Expr::In { set: "hairpin4".into(), reg: 0 }, Expr::Masquerade]]),
        // From the node's loopback: a pod could not answer that.
        rule(&[&v4(), &masked(saddr(0), &loopback(), true), &[Expr::Masquerade]]),
        // Whoever reaches a cluster IP from outside the cluster's pods: the answer must come back this way.
        rule(&[&v4(), &masked(original(), &facts.service_cidr, true), &masked(saddr(0), &facts.cluster_cidr, false), &[Expr::Masquerade]]),
    ];
    // One rule per protocol: other versions of nft can reload it so (notes/net.md 1.5).
    for protocol in Protocol::ALL {
        let name = protocol.name();
        let is = [Expr::Meta { key: META_L4PROTO, to: 0 }, Expr::Equal { reg: 0, value: [protocol.number()].into() }];
        let by_address = [original(), original_port(1), Expr::In { set: format!("masq_{name}4").into(), reg: 0 }, Expr::Masquerade];
        rules.push(rule(&[&v4(), &is, &by_address]));
        let by_port = [original_port(0), Expr::In { set: format!("masq_nodeports_{name}4").into(), reg: 0 }, Expr::Masquerade];
        rules.push(rule(&[&v4(), &masked(original(), &facts.service_cidr, false), &is, &by_port]));
    }
    rules
}

#[cfg(test)]
mod tests;
