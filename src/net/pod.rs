//! A pod's link: one veth pair, routed, no bridge.
//!
//! Inside: `eth0` with the pod's address as /32 and a default route via the node's pod gateway. Outside: a link named after
//! instance and pod, carrying the gateway address, and a /32 route to the pod. The same gateway address stands on every
//! pod link; it is also what masqueraded traffic comes from (notes/net.md 2.1, 2.3).

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::api::cidr::Cidr;

use super::netlink::{self, Error, Link, Links, Route, in_netns, with_links};

const INSIDE: &str = "eth0";

/// What a link connects.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub ip: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub mtu: u32,
}

/// The prefix of every link of an instance.
pub fn prefix(instance: &str) -> String {
    format!("c{}", &instance[..instance.len().min(4)])
}

/// The host side's name: 15 bytes at most.
pub fn link_name(instance: &str, uid: &str) -> String {
    let digest = Sha256::digest(format!("{instance}/{uid}"));
    let hash: String = digest.iter().take(5).map(|b| format!("{b:02x}")).collect();
    format!("{}{hash}", prefix(instance))
}

pub fn open_netns(path: &Path) -> Result<OwnedFd, Error> {
    File::open(path).map(OwnedFd::from).map_err(|e| Error::new(format!("open network namespace {}", path.display()), e))
}

/// Connects `netns`. Whatever link of this name is left from an earlier namespace is replaced.
pub async fn add(links: &Links, name: &str, netns: &OwnedFd, addresses: Addresses) -> Result<(), Error> {
    if let Some(old) = links.find(name).await? {
        links.delete(&old).await?;
    }
    let host = links.add_veth(name, INSIDE, netns.as_fd(), addresses.mtu).await?;
    let result = connect(links, &host, netns, addresses).await;
    if result.is_err() {
        // Leave nothing half-made; the first error is the one to report.
        let _ = links.delete(&host).await;
    }
    result
}

async fn connect(links: &Links, host: &Link, netns: &OwnedFd, addresses: Addresses) -> Result<(), Error> {
    let Addresses { ip, gateway, .. } = addresses;
    in_netns(duplicate(netns)?, "set up the pod's side", move || with_links(|inside| set_up_inside(inside, ip, gateway))).await?;
    links.add_address(host, gateway, 32).await?;
    // So that the node's ports can be dialled at 127.0.0.1; the proxy's table guards it. Where it cannot be set, they cannot.
    if let Err(error) = netlink::set_sysctl(&format!("net.ipv4.conf.{}.route_localnet", host.name), "1") {
        tracing::debug!(link = host.name, %error, "the node's loopback does not lead to this pod");
    }
    links.set_route(&Route { to: Cidr::host(ip.into()), link: host.index, gateway: None, source: None }).await
}

async fn set_up_inside(links: Links, ip: Ipv4Addr, gateway: Ipv4Addr) -> Result<(), Error> {
    links.set_up(&links.need("lo").await?).await?;
    let eth0 = links.need(INSIDE).await?;
    links.add_address(&eth0, ip, 32).await?;
    links.set_up(&eth0).await?;
    links.set_route(&Route { to: Cidr::host(gateway.into()), link: eth0.index, gateway: None, source: None }).await?;
    let everywhere = Cidr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    links.set_route(&Route { to: everywhere, link: eth0.index, gateway: Some(gateway), source: None }).await
}

/// Whether `netns` is connected with this address: so a repeated add has nothing to do.
pub async fn check(links: &Links, name: &str, netns: &OwnedFd, ip: Ipv4Addr) -> Result<bool, Error> {
    if links.find(name).await?.is_none() {
        return Ok(false);
    }
    in_netns(duplicate(netns)?, "check the pod's side", move || {
        with_links(|inside| async move {
            match inside.find(INSIDE).await? {
                Some(eth0) => inside.has_address(&eth0, ip.into()).await,
                None => Ok(false),
            }
        })
    })
    .await
}

/// Usually the kernel was faster: the link goes with the pod's namespace.
pub async fn remove(links: &Links, name: &str) -> Result<(), Error> {
    match links.find(name).await? {
        Some(link) => links.delete(&link).await,
        None => Ok(()),
    }
}

pub(super) fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, netlink::Error> {
    fd.try_clone().map_err(|e| Error::new("duplicate a descriptor", e))
}
