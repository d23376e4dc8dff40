//! Cluster IPs and node ports: which are free, and the claim that commits in the same batch as the Service.
//!
//! An address is claimed by an `IPAddress` object of its name: of two Services that want one address, one fails and is tried
//! again with another. Node ports have no objects of their own; they are counted off the Services, and one hidden
//! `RangeAllocation` that every allocation rewrites makes sure that two of them never decide on the same state.
//! The choice itself ([`pick`]) is pure: a random start above a reserved band, then the first that is free.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::api::cidr::Cidr;
use crate::api::object::Object;
use crate::api::resource;
use crate::api::value::Value;
use crate::server::strategy::{Context, Effect};
use crate::value;

/// Why an address or port cannot be had; the text follows `failed to allocate …` or stands alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The asked-for one belongs to somebody.
    Taken,
    /// The asked-for one is none of ours.
    OutOfRange,
    /// None is free.
    Full,
}

/// Addresses or ports handed out without being asked for by name leave a low band free for those who do ask.
fn band(size: u128) -> u128 {
    match size {
        0..16 => 0,
        _ => (size / 16).clamp(16, 256),
    }
}

/// Index of a free slot below `size`: the first free one from a random start above the band, then in the band.
pub fn pick(size: u128, random: u128, is_free: impl Fn(u128) -> bool) -> Option<u128> {
    let (band, upper) = (band(size), size - band(size));
    let start = if upper == 0 { 0 } else { random % upper };
    // Large ranges are never nearly full: a bounded probe finds a hole or says no.
    const PROBES_MAX: u128 = 65_536;
    let above = (0..upper.min(PROBES_MAX)).map(|i| band + (start + i) % upper);
    above.chain(0..band).find(|slot| is_free(*slot))
}

fn random() -> u128 {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).expect("the kernel gives randomness");
    u64::from_le_bytes(bytes).into()
}

/// Claims an address of `range` for a Service: `wanted`, or any.
pub fn claim_address(context: &Context, range: &Cidr, wanted: Option<IpAddr>, namespace: &str, name: &str) -> Result<IpAddr, Refusal> {
    let taken = |ip: IpAddr| context.access.get(&resource::IPADDRESSES, "", &ip.to_string()).is_some() || claimed_here(context, ip);
    // The network address and, for IPv4, the broadcast address are nobody's.
    let usable = range.size().saturating_sub(if range.is_ipv4() { 2 } else { 1 });
    let ip = match wanted {
        Some(ip) => {
            let index = range.index_of(ip).filter(|i| (1..=usable).contains(i));
            index.ok_or(Refusal::OutOfRange)?;
            // A dry run gives the same answer whenever it is asked.
            if !context.dry_run && taken(ip) {
                return Err(Refusal::Taken);
            }
            ip
        }
        None if context.dry_run => return Ok(range.network()),
        None => {
            let nth = |slot: u128| range.nth(slot + 1);
            let slot = pick(usable, random(), |slot| nth(slot).is_some_and(|ip| !taken(ip))).ok_or(Refusal::Full)?;
            nth(slot).expect("picked within the range")
        }
    };
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let object = value!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": ip.to_string(), "labels": {
        "ipaddress.kubernetes.io/ip-family": family, "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": name}}});
    context.also(Effect::Create { resource: &resource::IPADDRESSES, namespace: String::new(), name: ip.to_string(), object });
    Ok(ip)
}

fn claimed_here(context: &Context, ip: IpAddr) -> bool {
    let text = ip.to_string();
    context.effects().iter().any(|e| matches!(e, Effect::Create { name, .. } if *name == text))
}

/// Gives an address back with the batch.
pub fn release_address(context: &Context, ip: &str) {
    let (namespace, name) = (String::new(), ip.to_string());
    context.also(Effect::Delete { resource: &resource::IPADDRESSES, namespace, name });
}

/// The node ports in use, and the claim on the next state of them.
pub struct Ports {
    first: u16,
    last: u16,
    used: HashSet<u16>,
    changed: bool,
    /// Of a dry run: the port that stands for the next one, always the same.
    dummy: Option<u16>,
}

/// Above the usual range, so that nobody takes it for a real one.
const DUMMY_FIRST: u16 = 32_769;

impl Ports {
    /// As of now, without those of Service `namespace/name` itself (its old ones are its own to keep).
    pub fn read(context: &Context, namespace: &str, name: &str) -> Ports {
        let (first, last) = context.cluster.node_ports;
        let mut used = HashSet::new();
        for service in context.access.list(&resource::SERVICES, "") {
            if (service.namespace(), service.name()) != (namespace, name) && service.str_at(&["spec", "type"]) != "ClusterIP" {
                used.extend(ports_of(&service.value()));
            }
        }
        Ports { first, last, used, changed: false, dummy: context.dry_run.then_some(DUMMY_FIRST) }
    }

    /// Takes `wanted`, or any.
    pub fn claim(&mut self, wanted: u16) -> Result<u16, Refusal> {
        let port = match wanted {
            0 if self.dummy.is_some() => {
                let dummy = self.dummy.expect("just seen");
                self.dummy = Some(dummy.saturating_add(1));
                return Ok(dummy);
            }
            0 => {
                let size = u128::from(self.last - self.first) + 1;
                let nth = |slot: u128| self.first + slot as u16;
                nth(pick(size, random(), |slot| !self.used.contains(&nth(slot))).ok_or(Refusal::Full)?)
            }
            port if !(self.first..=self.last).contains(&port) => return Err(Refusal::OutOfRange),
            port if self.used.contains(&port) => return Err(Refusal::Taken),
            port => port,
        };
        self.used.insert(port);
        self.changed = true;
        Ok(port)
    }

    /// Makes the batch fail if anybody else claimed a port since [`Ports::read`].
    pub fn commit(&self, context: &Context) {
        if !self.changed {
            return;
        }
        const NAME: &str = "servicenodeports";
        let range = format!("{}-{}", self.first, self.last);
        // The content differs each time, or the write would be none.
        let mark = value!({"apiVersion": "v1", "kind": "RangeAllocation", "metadata": {"name": NAME, "annotations": {
            "coracle.io/claim": format!("{:x}", random())}}, "range": range});
        let effect = match context.access.get(&resource::RANGEALLOCATIONS, "", NAME) {
            Some(old) => Effect::Update { object: with_identity(mark, &old), old },
            None => {
                Effect::Create { resource: &resource::RANGEALLOCATIONS, namespace: String::new(), name: NAME.to_string(), object: mark }
            }
        };
        context.also(effect);
    }
}

fn with_identity(mut mark: Value, old: &Object) -> Value {
    mark.set(&["metadata", "uid"], old.uid());
    mark.set(&["metadata", "creationTimestamp"], old.str_at(&["metadata", "creationTimestamp"]));
    mark
}

/// Every node port of a Service.
pub fn ports_of(service: &Value) -> Vec<u16> {
    let listed = service.list_at(&["spec", "ports"]).iter().map(|p| p.i64_at(&["nodePort"]));
    let health = service.i64_at(&["spec", "healthCheckNodePort"]);
    listed.chain([health]).flatten().filter_map(|p| u16::try_from(p).ok()).filter(|p| *p != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_avoid_the_band_until_they_must_not() {
        assert_eq!(pick(1000, 0, |_| true), Some(62));
        assert_eq!(pick(1000, 937, |_| true), Some(999));
        assert_eq!(pick(1000, 937, |slot| slot != 999), Some(62), "around the end");
        assert_eq!(pick(1000, 0, |slot| slot < 5), Some(0), "the band last");
        assert_eq!(pick(8, 3, |slot| slot == 1), Some(1), "small ranges have no band");
        assert_eq!(pick(8, 3, |_| false), None);
    }

    #[test]
    fn ports_are_claimed_once() {
        let mut ports = Ports { first: 30000, last: 30001, used: HashSet::new(), changed: false, dummy: None };
        assert_eq!(ports.claim(30001), Ok(30001));
        assert_eq!(ports.claim(30001), Err(Refusal::Taken));
        assert_eq!(ports.claim(80), Err(Refusal::OutOfRange));
        assert_eq!(ports.claim(0), Ok(30000));
        assert_eq!(ports.claim(0), Err(Refusal::Full));
        let mut dry = Ports { dummy: Some(DUMMY_FIRST), ..ports };
        assert_eq!((dry.claim(0), dry.claim(0), dry.claim(30000)), (Ok(32769), Ok(32770), Err(Refusal::Taken)));
    }
}
