//! Pod addresses of this node: allocated from the node's pod range, remembered in one small file.
//!
//! The first address of the range is the gateway on every pod link, the second belongs to the node's resolver. Addresses
//! are given in turn, so a released one rests for a whole round. The file is rewritten (temporary file, rename) on every
//! change and read at start: pods outlive the daemon. It is not synced: a power failure takes the pods' links with it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use crate::api::cidr::{AllocError, Allocator, Cidr};

use super::HostPort;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read pod addresses from {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("write pod addresses to {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no free pod address in {cidr}")]
    Full { cidr: Cidr },
}

/// What one pod holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub ip: Ipv4Addr,
    pub host_ports: Vec<HostPort>,
}

pub struct Ipam {
    path: PathBuf,
    free: Allocator,
    cursor: u64,
    leases: BTreeMap<String, Lease>,
}

fn v4(ip: IpAddr) -> Ipv4Addr {
    match ip {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => unreachable!("the pod range is IPv4, checked at start"),
    }
}

/// The gateway's address in a node's pod range.
pub fn gateway(pod_cidr: &Cidr) -> Ipv4Addr {
    v4(pod_cidr.nth(1).expect("a pod range has at least 8 addresses, checked at start"))
}

/// The resolver's address in a node's pod range.
pub fn resolver(pod_cidr: &Cidr) -> Ipv4Addr {
    v4(pod_cidr.nth(2).expect("a pod range has at least 8 addresses, checked at start"))
}

impl Ipam {
    /// Reads what was given before. A lease outside the range (the range changed) is forgotten.
    pub fn open(path: &Path, pod_cidr: Cidr) -> Result<Ipam, Error> {
        let mut free = Allocator::pods(pod_cidr);
        for reserved in [gateway(&pod_cidr), resolver(&pod_cidr)] {
            free.take(reserved.into()).expect("the range is new and has at least 8 addresses");
        }
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(Error::Read { path: path.into(), source }),
        };
        let mut ipam = Ipam { path: path.into(), free, cursor: 0, leases: BTreeMap::new() };
        for (uid, lease) in text.lines().filter_map(parse_line) {
            if ipam.free.take(lease.ip.into()).is_ok() {
                ipam.cursor = ipam.cursor.max(ipam.free.after(lease.ip.into()));
                ipam.leases.insert(uid, lease);
            }
        }
        Ok(ipam)
    }

    pub fn get(&self, uid: &str) -> Option<&Lease> {
        self.leases.get(uid)
    }

    pub fn leases(&self) -> &BTreeMap<String, Lease> {
        &self.leases
    }

    /// The pod's address: the one it has, or a new one.
    pub fn allocate(&mut self, uid: &str, host_ports: &[HostPort]) -> Result<Ipv4Addr, Error> {
        if let Some(lease) = self.leases.get_mut(uid) {
            let ip = lease.ip;
            if lease.host_ports != host_ports {
                lease.host_ports = host_ports.to_vec();
                self.save()?;
            }
            return Ok(ip);
        }
        let ip = match self.free.allocate(self.cursor) {
            Ok(ip) => v4(ip),
            Err(AllocError::Full | AllocError::Allocated(_) | AllocError::NotInRange { .. }) => {
                return Err(Error::Full { cidr: self.free.cidr() });
            }
        };
        self.leases.insert(uid.to_string(), Lease { ip, host_ports: host_ports.to_vec() });
        match self.save() {
            Ok(()) => {
                self.cursor = self.free.after(ip.into());
                Ok(ip)
            }
            Err(error) => {
                self.leases.remove(uid);
                self.free.release(ip.into());
                Err(error)
            }
        }
    }

    pub fn release(&mut self, uid: &str) -> Result<Option<Lease>, Error> {
        let Some(lease) = self.leases.remove(uid) else { return Ok(None) };
        self.free.release(lease.ip.into());
        self.save()?;
        Ok(Some(lease))
    }

    fn save(&self) -> Result<(), Error> {
        let failed = |source| Error::Write { path: self.path.clone(), source };
        let text: String = self.leases.iter().map(|(uid, lease)| format_line(uid, lease)).collect();
        let temporary = self.path.with_extension("tmp");
        std::fs::write(&temporary, text).map_err(failed)?;
        std::fs::rename(&temporary, &self.path).map_err(failed)
    }
}

/// `<uid> <ip> [<hostIP>:<hostPort>:<protocol>:<containerPort>…]`
fn format_line(uid: &str, lease: &Lease) -> String {
    let ports: String = lease
        .host_ports
        .iter()
        .map(|p| format!(" {}:{}:{}:{}", p.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED), p.host_port, p.protocol.number(), p.container_port))
        .collect();
    format!("{uid} {}{ports}\n", lease.ip)
}

fn parse_line(line: &str) -> Option<(String, Lease)> {
    let mut words = line.split(' ');
    let uid = words.next()?.to_string();
    let ip = words.next()?.parse().ok()?;
    let host_ports = words.map(parse_port).collect::<Option<Vec<_>>>()?;
    Some((uid, Lease { ip, host_ports }))
}

fn parse_port(word: &str) -> Option<HostPort> {
    let mut parts = word.split(':');
    let host_ip: Ipv4Addr = parts.next()?.parse().ok()?;
    let host_port = parts.next()?.parse().ok()?;
    let protocol = super::Protocol::from_number(parts.next()?.parse().ok()?)?;
    let container_port = parts.next()?.parse().ok()?;
    Some(HostPort { host_ip: (!host_ip.is_unspecified()).then_some(host_ip), host_port, protocol, container_port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Protocol;

    struct Dir(PathBuf);
    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("coracle-ipam-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Dir(dir)
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn addresses_survive_a_restart_and_rest_after_release() {
        let dir = Dir::new("restart");
        let file = dir.0.join("pods");
        let cidr: Cidr = "10.42.3.0/29".parse().unwrap();
        let port = HostPort { host_ip: None, host_port: 80, protocol: Protocol::Udp, container_port: 8080 };
        let mut ipam = Ipam::open(&file, cidr).unwrap();
        assert_eq!(ipam.allocate("a", &[port]).unwrap().to_string(), "10.42.3.3");
        assert_eq!(ipam.allocate("b", &[]).unwrap().to_string(), "10.42.3.4");
        assert_eq!(ipam.allocate("a", &[port]).unwrap().to_string(), "10.42.3.3");
        ipam.release("a").unwrap();
        let mut ipam = Ipam::open(&file, cidr).unwrap();
        assert_eq!(ipam.allocate("c", &[port]).unwrap().to_string(), "10.42.3.5");
        assert_eq!(ipam.allocate("d", &[]).unwrap().to_string(), "10.42.3.6");
        assert_eq!(ipam.allocate("e", &[]).unwrap().to_string(), "10.42.3.3");
        assert!(matches!(ipam.allocate("f", &[]), Err(Error::Full { .. })));
        let again = Ipam::open(&file, cidr).unwrap();
        assert_eq!(again.leases(), ipam.leases());
        assert_eq!(again.get("c").unwrap().host_ports, [port]);
    }
}
