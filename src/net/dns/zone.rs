//! Pure: Services and EndpointSlices in, answers out.
//!
//! Names follow Kubernetes' DNS specification: `<service>.<namespace>.svc.<domain>`, `_port._proto` below it, one name per
//! endpoint (its hostname, or its address with dashes), `<a-b-c-d>.<namespace>.pod.<domain>`, and reverse names. Nothing
//! is flattened into a table of names: an answer is looked up in the objects, so a change costs what it changes.
//! A name that exists with other types is no data; one that does not is NXDOMAIN; a headless service without a ready
//! endpoint does not exist. Start at [`Zone::answer`]. Knows no wire format.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::api::cidr::Cidr;
use crate::api::object::Name;
use crate::api::value::Value;

/// Of every answer of ours, positive or negative.
pub const TTL_SECONDS: u32 = 5;
/// The specification's version, as `dns-version` says it.
const VERSION: &str = "1.1.0";

/// The types the zone tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    A,
    Aaaa,
    Srv,
    Ptr,
    Cname,
    Txt,
    Ns,
    Soa,
    Any,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    Address(IpAddr),
    Srv { weight: u16, port: u16, target: String },
    Ptr(String),
    Txt(String),
    Ns(String),
    Soa,
}

/// A record; names have no trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    pub name: String,
    pub data: Data,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Empty records: the name exists, this type does not.
    Found {
        records: Vec<Record>,
        additional: Vec<Record>,
    },
    /// The name is another's: to be looked up in turn.
    Alias(String),
    NoSuchName,
    /// Not ours to answer.
    Outside,
}

impl Answer {
    fn found(records: Vec<Record>) -> Answer {
        Answer::Found { records, additional: Vec::new() }
    }

    fn no_data() -> Answer {
        Answer::found(Vec::new())
    }
}

/// A Service as far as names care.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Service {
    /// Empty for a headless service.
    ips: Vec<IpAddr>,
    /// Lower-case name and protocol, number.
    ports: Vec<(String, String, u16)>,
    alias: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Slice {
    service: Name,
    ports: Vec<(String, String, u16)>,
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    ips: Vec<IpAddr>,
    /// Empty: named after its address.
    hostname: String,
}

impl Endpoint {
    fn labels(&self) -> impl Iterator<Item = (String, IpAddr)> {
        let label = |ip: &IpAddr| if self.hostname.is_empty() { dashed(*ip) } else { self.hostname.clone() };
        self.ips.iter().map(move |ip| (label(ip), *ip))
    }
}

fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

fn lower(text: &str) -> String {
    text.to_ascii_lowercase()
}

fn ports(values: &[Value]) -> Vec<(String, String, u16)> {
    let port = |p: &Value| {
        let protocol = p.str_at(&["protocol"]);
        let number = u16::try_from(p.i64_at(&["port"])?).ok()?;
        Some((lower(p.str_at(&["name"])), lower(if protocol.is_empty() { "TCP" } else { protocol }), number))
    };
    values.iter().filter_map(port).collect()
}

fn ips(values: &[Value]) -> Vec<IpAddr> {
    values.iter().filter_map(|v| v.as_str()?.parse().ok()).collect()
}

impl Service {
    fn parse(value: &Value) -> Service {
        let external = value.str_at(&["spec", "externalName"]);
        let alias = (value.str_at(&["spec", "type"]) == "ExternalName").then(|| lower(external.trim_end_matches('.')));
        let mut addresses = ips(value.list_at(&["spec", "clusterIPs"]));
        if addresses.is_empty() {
            addresses.extend(value.str_at(&["spec", "clusterIP"]).parse::<IpAddr>());
        }
        Service { ips: addresses, ports: ports(value.list_at(&["spec", "ports"])), alias }
    }
}

impl Slice {
    fn parse(value: &Value) -> Option<Slice> {
        let service = value.map_at(&["metadata", "labels"])?.str("kubernetes.io/service-name");
        let ready = |e: &&Value| e.at(&["conditions", "ready"]).and_then(Value::as_bool).unwrap_or(true);
        let endpoint = |e: &Value| Endpoint { ips: ips(e.list_at(&["addresses"])), hostname: lower(e.str_at(&["hostname"])) };
        (!service.is_empty()).then(|| Slice {
            service: Name::new(value.str_at(&["metadata", "namespace"]), service),
            ports: ports(value.list_at(&["ports"])),
            endpoints: value.list_at(&["endpoints"]).iter().filter(ready).map(endpoint).collect(),
        })
    }
}

/// Everything the resolver knows.
#[derive(Clone, Debug)]
pub struct Zone {
    domain: String,
    /// Reverse names inside these are ours even where nothing has the address.
    ranges: Vec<Cidr>,
    /// By namespace, then name.
    services: BTreeMap<String, BTreeMap<String, Service>>,
    slices: BTreeMap<Name, Slice>,
    slices_of: HashMap<Name, BTreeSet<Name>>,
    /// Cluster addresses to services.
    service_at: HashMap<IpAddr, Name>,
    /// Endpoint addresses to slices.
    slices_at: HashMap<IpAddr, BTreeSet<Name>>,
}

impl Zone {
    pub fn new(domain: &str, ranges: Vec<Cidr>) -> Zone {
        Zone {
            domain: lower(domain.trim_matches('.')),
            ranges,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slices_of: HashMap::new(),
            service_at: HashMap::new(),
            slices_at: HashMap::new(),
        }
    }

    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub fn set_service(&mut self, name: &Name, value: Option<&Value>) {
        let of_namespace = self.services.entry(name.namespace.clone()).or_default();
        if let Some(old) = of_namespace.remove(&name.name) {
            for ip in &old.ips {
                // Another may have taken the address in the meantime.
                if self.service_at.get(ip) == Some(name) {
                    self.service_at.remove(ip);
                }
            }
        }
        if let Some(value) = value {
            let service = Service::parse(value);
            self.service_at.extend(service.ips.iter().map(|ip| (*ip, name.clone())));
            of_namespace.insert(name.name.clone(), service);
        } else if of_namespace.is_empty() {
            self.services.remove(&name.namespace);
        }
    }

    pub fn set_slice(&mut self, name: &Name, value: Option<&Value>) {
        if let Some(old) = self.slices.remove(name) {
            remove_from(&mut self.slices_of, &old.service, name);
            for ip in old.endpoints.iter().flat_map(|e| &e.ips) {
                remove_from(&mut self.slices_at, ip, name);
            }
        }
        if let Some(slice) = value.and_then(Slice::parse) {
            self.slices_of.entry(slice.service.clone()).or_default().insert(name.clone());
            for ip in slice.endpoints.iter().flat_map(|e| &e.ips) {
                self.slices_at.entry(*ip).or_default().insert(name.clone());
            }
            self.slices.insert(name.clone(), slice);
        }
    }

    pub fn service_names(&self) -> Vec<Name> {
        self.services.iter().flat_map(|(namespace, of)| of.keys().map(move |name| Name::new(namespace, name))).collect()
    }

    pub fn slice_names(&self) -> Vec<Name> {
        self.slices.keys().cloned().collect()
    }

    /// What `name` (no trailing dot, any case) has of type `kind`.
    pub fn answer(&self, name: &str, kind: Type) -> Answer {
        let asked = lower(name);
        if let Some(reverse) = reverse_address(&asked) {
            return self.reverse(name, reverse, kind);
        }
        let rest = match asked.strip_suffix(&self.domain) {
            Some("") => return self.apex(name, kind),
            Some(rest) => match rest.strip_suffix('.') {
                Some(rest) => rest,
                None => return Answer::Outside,
            },
            None => return Answer::Outside,
        };
        let labels: Vec<&str> = rest.split('.').collect();
        let one = |wanted: Type, data: Data| {
            let matches = kind == wanted || kind == Type::Any;
            Answer::found(if matches { vec![Record { name: name.into(), data }] } else { Vec::new() })
        };
        match labels[..] {
            ["dns-version"] => one(Type::Txt, Data::Txt(VERSION.into())),
            ["svc" | "pod"] => Answer::no_data(),
            ["ns", "dns"] | ["dns"] => Answer::no_data(),
            [namespace, "svc"] if self.services.contains_key(namespace) => Answer::no_data(),
            [namespace, "pod"] if self.services.contains_key(namespace) => Answer::no_data(),
            [address, _, "pod"] => match undashed(address) {
                Some(ip) => Answer::found(addresses(name, kind, std::iter::once(ip))),
                None => Answer::NoSuchName,
            },
            [service, namespace, "svc"] => self.service(name, kind, namespace, service),
            ["_tcp" | "_udp" | "_sctp", service, namespace, "svc"] => match self.find(namespace, service) {
                Some(_) => Answer::no_data(),
                None => Answer::NoSuchName,
            },
            [endpoint, service, namespace, "svc"] => self.endpoint(name, kind, namespace, service, endpoint),
            [port, protocol, service, namespace, "svc"] => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
                (Some(port), Some(protocol)) => self.named_port(name, kind, (namespace, service), (port, protocol)),
                _ => Answer::NoSuchName,
            },
            _ => Answer::NoSuchName,
        }
    }

    fn find(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(namespace)?.get(name)
    }

    fn slices_of(&self, namespace: &str, service: &str) -> impl Iterator<Item = &Slice> {
        self.slices_of.get(&Name::new(namespace, service)).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    fn full_name(&self, namespace: &str, service: &str) -> String {
        format!("{service}.{namespace}.svc.{}", self.domain)
    }

    fn apex(&self, name: &str, kind: Type) -> Answer {
        let server = format!("ns.dns.{}", self.domain);
        match kind {
            Type::Ns => Answer::found(vec![Record { name: name.into(), data: Data::Ns(server) }]),
            Type::Soa | Type::Any => Answer::found(vec![Record { name: name.into(), data: Data::Soa }]),
            Type::A | Type::Aaaa | Type::Srv | Type::Ptr | Type::Cname | Type::Txt | Type::Other => Answer::no_data(),
        }
    }

    fn service(&self, name: &str, kind: Type, namespace: &str, service_name: &str) -> Answer {
        let Some(service) = self.find(namespace, service_name) else { return Answer::NoSuchName };
        if let Some(alias) = &service.alias {
            return Answer::Alias(alias.clone());
        }
        if service.ips.is_empty() {
            let endpoints: BTreeSet<IpAddr> =
                self.slices_of(namespace, service_name).flat_map(|s| &s.endpoints).flat_map(|e| e.ips.iter().copied()).collect();
            return match (endpoints.is_empty(), kind) {
                (true, _) => Answer::NoSuchName,
                (false, Type::Srv) => self.srv(name, (namespace, service_name), service, None),
                (false, _) => Answer::found(addresses(name, kind, endpoints.into_iter())),
            };
        }
        match kind {
            Type::Srv => self.srv(name, (namespace, service_name), service, None),
            _ => Answer::found(addresses(name, kind, service.ips.iter().copied())),
        }
    }

    fn endpoint(&self, name: &str, kind: Type, namespace: &str, service: &str, label: &str) -> Answer {
        let all = self.slices_of(namespace, service).flat_map(|s| &s.endpoints).flat_map(Endpoint::labels);
        let ips: BTreeSet<IpAddr> = all.filter(|(l, _)| l == label).map(|(_, ip)| ip).collect();
        match self.find(namespace, service) {
            Some(_) if !ips.is_empty() => Answer::found(addresses(name, kind, ips.into_iter())),
            _ => Answer::NoSuchName,
        }
    }

    fn named_port(&self, name: &str, kind: Type, service: (&str, &str), port: (&str, &str)) -> Answer {
        let Some(found) = self.find(service.0, service.1) else { return Answer::NoSuchName };
        if let Some(alias) = &found.alias {
            return Answer::Alias(alias.clone());
        }
        match (self.srv(name, service, found, Some(port)), kind) {
            (Answer::Found { records, .. }, _) if records.is_empty() => Answer::NoSuchName,
            (found, Type::Srv | Type::Any) => found,
            (_, _) => Answer::no_data(),
        }
    }

    /// The SRV records of a service's ports (all, or the one named), with their targets' addresses.
    fn srv(&self, name: &str, (namespace, service_name): (&str, &str), service: &Service, only: Option<(&str, &str)>) -> Answer {
        let matches = |p: &&(String, String, u16)| only.is_none_or(|(port, protocol)| p.0 == port && p.1 == protocol);
        let full = self.full_name(namespace, service_name);
        let mut targets: BTreeSet<(u16, String)> = BTreeSet::new();
        let mut additional: BTreeSet<Record> = BTreeSet::new();
        let mut add = |port: u16, target: &str, ip: IpAddr| {
            targets.insert((port, target.to_string()));
            additional.insert(Record { name: target.to_string(), data: Data::Address(ip) });
        };
        for (_, _, number) in service.ports.iter().filter(matches).filter(|_| !service.ips.is_empty()) {
            service.ips.iter().for_each(|ip| add(*number, &full, *ip));
        }
        if service.ips.is_empty() {
            for slice in self.slices_of(namespace, service_name) {
                for (_, _, number) in slice.ports.iter().filter(matches) {
                    let endpoints = slice.endpoints.iter().flat_map(Endpoint::labels);
                    endpoints.for_each(|(label, ip)| add(*number, &format!("{label}.{full}"), ip));
                }
            }
        }
        let weight = u16::try_from(100 / targets.len().max(1)).expect("at most 100").max(1);
        let record = |(port, target)| Record { name: name.into(), data: Data::Srv { weight, port, target } };
        Answer::Found { records: targets.into_iter().map(record).collect(), additional: additional.into_iter().collect() }
    }

    fn reverse(&self, name: &str, ip: IpAddr, kind: Type) -> Answer {
        let mut names: BTreeSet<String> = self.service_at.get(&ip).map(|n| self.full_name(&n.namespace, &n.name)).into_iter().collect();
        for slice in self.slices_at.get(&ip).into_iter().flatten().filter_map(|name| self.slices.get(name)) {
            let full = self.full_name(&slice.service.namespace, &slice.service.name);
            let labels = slice.endpoints.iter().flat_map(Endpoint::labels).filter(|(_, its)| *its == ip);
            names.extend(labels.map(|(label, _)| format!("{label}.{full}")));
        }
        if names.is_empty() {
            return if self.ranges.iter().any(|r| r.contains(ip)) { Answer::NoSuchName } else { Answer::Outside };
        }
        if !matches!(kind, Type::Ptr | Type::Any) {
            return Answer::no_data();
        }
        Answer::found(names.into_iter().map(|target| Record { name: name.into(), data: Data::Ptr(target) }).collect())
    }
}

fn remove_from<K: std::hash::Hash + Eq + Clone>(index: &mut HashMap<K, BTreeSet<Name>>, key: &K, name: &Name) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

fn addresses(name: &str, kind: Type, ips: impl Iterator<Item = IpAddr>) -> Vec<Record> {
    let wanted = |ip: &IpAddr| match kind {
        Type::A => ip.is_ipv4(),
        Type::Aaaa => ip.is_ipv6(),
        Type::Any => true,
        Type::Srv | Type::Ptr | Type::Cname | Type::Txt | Type::Ns | Type::Soa | Type::Other => false,
    };
    ips.filter(wanted).map(|ip| Record { name: name.into(), data: Data::Address(ip) }).collect()
}

/// `10-42-0-7`, or an IPv6 address with dashes for colons.
fn undashed(label: &str) -> Option<IpAddr> {
    let v4: Option<Ipv4Addr> = label.replace('-', ".").parse().ok();
    v4.map(IpAddr::V4).or_else(|| label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}

/// The address of `4.3.2.1.in-addr.arpa`, or of 32 nibbles below `ip6.arpa`.
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<&str> = rest.rsplit('.').collect();
        return (octets.len() == 4).then(|| octets.join(".").parse::<Ipv4Addr>().ok())?.map(IpAddr::V4);
    }
    let nibbles: Vec<&str> = name.strip_suffix(".ip6.arpa")?.rsplit('.').collect();
    let digit = |n: &&str| (n.len() == 1).then(|| u8::from_str_radix(n, 16).ok())?;
    let digits: Vec<u8> = nibbles.iter().map(digit).collect::<Option<_>>()?;
    (digits.len() == 32).then(|| Ipv6Addr::from(digits.iter().fold(0u128, |n, d| n << 4 | u128::from(*d))).into())
}

#[cfg(test)]
mod tests;
