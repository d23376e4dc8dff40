//! Links, addresses and routes: a thin typed face of `rtnetlink`, and work inside other network namespaces.
//!
//! A netlink socket belongs to the network namespace of the thread that opens it and stays there. So everything that
//! happens inside a pod's namespace runs in [`in_netns`]: a short-lived thread of its own, never a worker of the async
//! runtime. Names the operation in every error.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteProtocol, RouteScope};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::sync::oneshot;

use crate::api::cidr::Cidr;
use crate::task;

#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    pub what: String,
    #[source]
    pub source: io::Error,
}

impl Error {
    pub fn new(what: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error { what: what.into(), source: source.into() }
    }

    fn is(&self, errno: nix::Error) -> bool {
        self.source.raw_os_error() == Some(errno as i32)
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    let what = what.into();
    |error| match error {
        rtnetlink::Error::NetlinkError(answer) => Error::new(what, io::Error::from_raw_os_error(-answer.raw_code())),
        other => Error::new(what, io::Error::other(other.to_string())),
    }
}

/// A link as far as we care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
}

/// Speaks rtnetlink in the namespace it was opened in. Cheap to clone.
#[derive(Clone)]
pub struct Links {
    handle: Handle,
}

impl Links {
    /// Must run inside a tokio runtime: the connection is a task of it and ends with the last clone.
    pub fn open() -> Result<Links, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| Error::new("open a netlink socket", e))?;
        task::spawn("net-netlink", connection);
        Ok(Links { handle })
    }

    pub async fn find(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut found = self.handle.link().get().match_name(name.to_string()).execute();
        match found.try_next().await.map_err(failed(format!("look up link {name}"))) {
            Ok(link) => Ok(link.as_ref().map(parse)),
            Err(error) if error.is(nix::Error::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn need(&self, name: &str) -> Result<Link, Error> {
        self.find(name).await?.ok_or_else(|| Error::new(format!("look up link {name}"), nix::Error::ENODEV))
    }

    pub async fn list(&self) -> Result<Vec<Link>, Error> {
        let links: Vec<_> = self.handle.link().get().execute().try_collect().await.map_err(failed("list links"))?;
        Ok(links.iter().map(parse).collect())
    }

    /// The link that holds `address`.
    pub async fn holding(&self, address: IpAddr) -> Result<Option<Link>, Error> {
        let found: Vec<_> = self.handle.address().get().execute().try_collect().await.map_err(failed("list addresses"))?;
        let holder = found.iter().find(|m| m.attributes.iter().any(|a| matches!(a, AddressAttribute::Local(ip) if *ip == address)));
        let Some(holder) = holder else { return Ok(None) };
        let index = holder.header.index;
        Ok(self.list().await?.into_iter().find(|link| link.index == index))
    }

    pub async fn has_address(&self, link: &Link, address: IpAddr) -> Result<bool, Error> {
        let request = self.handle.address().get().set_link_index_filter(link.index);
        let found: Vec<_> = request.execute().try_collect().await.map_err(failed(format!("list addresses of {}", link.name)))?;
        Ok(found.iter().any(|m| m.attributes.iter().any(|a| matches!(a, AddressAttribute::Local(ip) if *ip == address))))
    }

    /// A veth pair: `host` here and up, `peer` in `netns`. The peer cannot be born up.
    pub async fn add_veth(&self, host: &str, peer: &str, netns: impl AsFd, mtu: u32) -> Result<Link, Error> {
        let fd = netns.as_fd().as_raw_fd();
        let far = LinkMessageBuilder::<LinkUnspec>::new().name(peer).mtu(mtu).setns_by_fd(fd).build();
        let pair = LinkVeth::new(host, peer).set_info_data(InfoData::Veth(InfoVeth::Peer(far))).mtu(mtu).up().build();
        self.handle.link().add(pair).execute().await.map_err(failed(format!("create veth {host}")))?;
        self.need(host).await
    }

    /// Fine if it is gone already.
    pub async fn delete(&self, link: &Link) -> Result<(), Error> {
        match self.handle.link().del(link.index).execute().await.map_err(failed(format!("delete link {}", link.name))) {
            Err(error) if error.is(nix::Error::ENODEV) => Ok(()),
            other => other,
        }
    }

    pub async fn set_up(&self, link: &Link) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(link.index).up().build();
        self.handle.link().set(message).execute().await.map_err(failed(format!("set link {} up", link.name)))
    }

    /// Fine if it is there already.
    pub async fn add_address(&self, link: &Link, address: Ipv4Addr, prefix: u8) -> Result<(), Error> {
        let add = self.handle.address().add(link.index, address.into(), prefix);
        match add.execute().await.map_err(failed(format!("add address {address}/{prefix} to {}", link.name))) {
            Err(error) if error.is(nix::Error::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Puts the route in the place of one to the same destination.
    pub async fn set_route(&self, route: &Route) -> Result<(), Error> {
        let add = self.handle.route().add(route.message()).replace();
        add.execute().await.map_err(failed(format!("set route to {}", route.to)))
    }

    /// Fine if it is gone already.
    pub async fn delete_route(&self, route: &Route) -> Result<(), Error> {
        match self.handle.route().del(route.message()).execute().await.map_err(failed(format!("delete route to {}", route.to))) {
            Err(error) if error.is(nix::Error::ESRCH) || error.is(nix::Error::ENODEV) => Ok(()),
            other => other,
        }
    }
}

fn parse(message: &LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, name: String::new(), mtu: 1500 };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name.clone(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    link
}

/// An IPv4 route through a link.
#[derive(Clone, Debug)]
pub struct Route {
    pub to: Cidr,
    pub link: u32,
    /// None: the destination is on the link.
    pub gateway: Option<Ipv4Addr>,
    /// The source address local connections take.
    pub source: Option<Ipv4Addr>,
}

impl Route {
    fn message(&self) -> rtnetlink::packet_route::route::RouteMessage {
        let IpAddr::V4(to) = self.to.network() else { unreachable!("routes are IPv4 so far") };
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to, self.to.prefix())
            .output_interface(self.link)
            .protocol(RouteProtocol::Static);
        route = match self.gateway {
            Some(gateway) => route.gateway(gateway),
            None => route.scope(RouteScope::Link),
        };
        if let Some(source) = self.source {
            route = route.pref_source(source);
        }
        let mut message = route.build();
        message.header.address_family = AddressFamily::Inet;
        message
    }
}

/// Runs `work` on a thread of its own inside `netns` and hands its result back.
pub async fn in_netns<T: Send + 'static>(
    netns: OwnedFd,
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    on_thread(what, move || {
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(|e| Error::new(format!("{what}: enter the network namespace"), e))?;
        work()
    })
    .await
}

/// A new network namespace that lives as long as somebody holds the descriptor, a socket or a process in it.
pub async fn new_netns() -> Result<OwnedFd, Error> {
    on_thread("create a network namespace", || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Error::new("create a network namespace", e))?;
        let file = std::fs::File::open("/proc/thread-self/ns/net").map_err(|e| Error::new("open the new network namespace", e))?;
        Ok(file.into())
    })
    .await
}

async fn on_thread<T: Send + 'static>(what: &'static str, work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            // The one who asked may have been cancelled; the work is done all the same.
            let _ = done.send(work());
        })
        .map_err(|e| Error::new(format!("{what}: start a thread"), e))?;
    result.await.map_err(|_| Error::new(what, io::Error::other("the thread ended early")))?
}

/// Runs `work` with a netlink connection of this thread's namespace, to its end. For threads of [`in_netns`].
pub fn with_links<T, F: Future<Output = Result<T, Error>>>(work: impl FnOnce(Links) -> F) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(|e| Error::new("start a runtime", e))?;
    runtime.block_on(async { work(Links::open()?).await })
}

/// Writes `/proc/sys/net/…` of this thread's namespace.
pub fn set_sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    // A read-only /proc/sys (a container) is fine if the value is right already.
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|e| Error::new(format!("set sysctl {name} to {value}"), e))
}
