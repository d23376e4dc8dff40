//! The cluster's DNS, on every node.
//!
//! The sockets live in a small network namespace of their own with a pod address, reached through the cluster's DNS address
//! like any endpoint (notes/net.md 3, B): the host's INPUT chain is not in the way and port 53 of the host stays free.
//! Served from this process all the same: a socket stays where it was opened. A process that does nothing else holds a copy
//! of each ([`holder`]), so they and their namespace outlive this one and queries wait in them for the next.
//!
//! Names come from [`zone`], everything else goes to the host's resolvers through [`forward`]. Until the first lists are
//! complete queries wait unread; what is read before (none, unless lists never come) is a server failure, so that nobody
//! remembers an absence that is none.

pub mod forward;
pub mod holder;
pub mod zone;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Edns, Header, HeaderCounts, Message, Metadata, OpCode, Query, ResponseCode};
use hickory_server::proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_server::proto::rr::{DNSClass, Name as DnsName, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, warn};

use crate::api::object::Name;
use crate::task::{self, Shutdown};

use super::netlink::{Error, Links, in_netns, new_netns};
use super::{InEffect, Input, Kind, NetConfig, ipam, pod};
use forward::{Forwarder, Via};
use holder::Holder;
use zone::{Answer, Data, TTL_SECONDS, Type, Zone};

const PORT: u16 = 53;
/// What we offer and honour over UDP: safe against fragmentation.
const UDP_BYTES_MAX: u16 = 1232;
const TCP_IDLE: Duration = Duration::from_secs(10);
const TCP_QUEUE: usize = 32;
/// Queries wait this long for the first lists: less than resolvers wait for an answer.
const WAIT_FOR_LISTS: Duration = Duration::from_secs(3);
const ALIASES_MAX: usize = 8;

/// Opens the resolver's namespace and sockets, or finds those of the last daemon, and serves until `shutdown`. Tells up to which
/// revisions names are answered.
pub async fn start(
    config: &NetConfig,
    links: &Links,
    mtu: u32,
    inputs: mpsc::Receiver<Input>,
    shutdown: Shutdown,
) -> Result<watch::Receiver<InEffect>, Error> {
    let ip = ipam::resolver(&config.pod_cidr);
    let Sockets { udp, tcp, .. } = sockets(config, links, mtu, ip).await?;
    let zone = Zone::new(&config.cluster_domain, vec![config.service_cidr, config.cluster_cidr]);
    let shared = Arc::new(RwLock::new(Known { zone, complete: false, serial: 1 }));
    let own = vec![IpAddr::V4(config.cluster_dns), IpAddr::V4(ip)];
    let resolver = Resolver { known: shared.clone(), forwarder: Forwarder::new(&config.resolv_conf, own) };
    let failed = |e| Error::new("register the resolver's sockets", e);
    let udp = tokio::net::UdpSocket::from_std(udp).map_err(failed)?;
    let tcp = tokio::net::TcpListener::from_std(tcp).map_err(failed)?;
    let (complete, ready) = oneshot::channel();
    let (named, in_effect) = watch::channel(InEffect::default());
    task::spawn("net-dns-zone", follow(shared, inputs, complete, named));
    task::spawn("net-dns", serve(resolver, udp, tcp, ready, shutdown));
    Ok(in_effect)
}

async fn serve(
    resolver: Resolver,
    udp: tokio::net::UdpSocket,
    tcp: tokio::net::TcpListener,
    ready: oneshot::Receiver<()>,
    shutdown: Shutdown,
) {
    // What cannot be answered yet waits a little: a client asks again anyway.
    tokio::select! {
        _ = tokio::time::timeout(WAIT_FOR_LISTS, ready) => {}
        () = shutdown.cancelled() => return,
    }
    let mut server = Server::new(resolver);
    server.register_socket(udp);
    server.register_listener(tcp, TCP_IDLE, TCP_QUEUE);
    shutdown.cancelled().await;
    if let Err(error) = server.shutdown_gracefully().await {
        debug!(%error, "the resolver ended early");
    }
}

/// Where the resolver listens.
struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
    netns: OwnedFd,
}

impl Sockets {
    /// From what a holder held, in the order of [`Sockets::fds`].
    fn from_held(held: Vec<OwnedFd>, ip: Ipv4Addr) -> Option<Sockets> {
        let [udp, tcp, netns] = <[OwnedFd; 3]>::try_from(held).ok()?;
        let sockets = Sockets { udp: udp.into(), tcp: tcp.into(), netns };
        let address = std::net::SocketAddr::from((ip, PORT));
        let right = sockets.udp.local_addr().is_ok_and(|a| a == address) && sockets.tcp.local_addr().is_ok_and(|a| a == address);
        right.then_some(sockets)
    }

    fn fds(&self) -> [BorrowedFd<'_>; 3] {
        [self.udp.as_fd(), self.tcp.as_fd(), self.netns.as_fd()]
    }
}

async fn sockets(config: &NetConfig, links: &Links, mtu: u32, ip: Ipv4Addr) -> Result<Sockets, Error> {
    let holder = Holder::of(&config.run_dir);
    let link = pod::link_name(&config.instance, "dns");
    if let Some(sockets) = Sockets::from_held(blocking(&holder, Holder::take).await, ip)
        && pod::check(links, &link, &sockets.netns, ip).await?
    {
        debug!("the resolver's sockets outlived the last daemon");
        return Ok(sockets);
    }
    blocking(&holder, Holder::end).await;
    let netns = new_netns().await?;
    let gateway = ipam::gateway(&config.pod_cidr);
    pod::add(links, &link, &netns, pod::Addresses { ip, gateway, mtu }).await?;
    let (udp, tcp) = in_netns(pod::duplicate(&netns)?, "open the resolver's sockets", move || open(ip)).await?;
    let sockets = Sockets { udp, tcp, netns };
    let exe = config.exe.clone();
    let held = blocking(&holder, move |h| h.start(&exe)).await.and_then(|()| holder.put(&sockets.fds()));
    if let Err(error) = held {
        warn!(%error, "nobody holds the resolver's sockets: names will not resolve while the daemon is down");
    }
    Ok(sockets)
}

/// A word with the holder, which may have to be waited for.
async fn blocking<T: Send + 'static>(holder: &Holder, say: impl FnOnce(&Holder) -> T + Send + 'static) -> T {
    let holder = holder.clone();
    tokio::task::spawn_blocking(move || say(&holder)).await.expect("talking to the holder does not panic")
}

fn open(ip: Ipv4Addr) -> Result<(UdpSocket, TcpListener), Error> {
    let failed = |what: &'static str| move |e: std::io::Error| Error::new(format!("listen on {ip}:{PORT}/{what}"), e);
    let udp = UdpSocket::bind((ip, PORT)).map_err(failed("udp"))?;
    let tcp = TcpListener::bind((ip, PORT)).map_err(failed("tcp"))?;
    udp.set_nonblocking(true).map_err(failed("udp"))?;
    tcp.set_nonblocking(true).map_err(failed("tcp"))?;
    Ok((udp, tcp))
}

/// The zone, and whether it is all of it.
struct Known {
    zone: Zone,
    complete: bool,
    /// Grows with every change: the SOA's serial.
    serial: u32,
}

async fn follow(
    known: Arc<RwLock<Known>>,
    mut inputs: mpsc::Receiver<Input>,
    complete: oneshot::Sender<()>,
    named: watch::Sender<InEffect>,
) {
    let mut complete = Some(complete);
    let mut unseen: [Option<BTreeSet<Name>>; 2] = [None, None];
    let mut synced = [false; 2];
    let index = |kind: Kind| match kind {
        Kind::Service => 0,
        Kind::Slice => 1,
    };
    while let Some(input) = inputs.recv().await {
        if let Input::At(kind, revision) = input {
            named.send_modify(|now| now.set(kind, revision));
            continue;
        }
        let mut known = known.write().expect("no panic while changing names");
        known.serial = known.serial.wrapping_add(1);
        match input {
            Input::Reset(kind) => {
                let names = match kind {
                    Kind::Service => known.zone.service_names(),
                    Kind::Slice => known.zone.slice_names(),
                };
                unseen[index(kind)] = Some(names.into_iter().collect());
            }
            Input::Set(kind, name, value) => {
                if let Some(unseen) = &mut unseen[index(kind)] {
                    unseen.remove(&name);
                }
                match kind {
                    Kind::Service => known.zone.set_service(&name, Some(&value)),
                    Kind::Slice => known.zone.set_slice(&name, Some(&value)),
                }
            }
            Input::Gone(kind, name) => forget(&mut known.zone, kind, &name),
            Input::At(..) => {}
            Input::Synced(kind) => {
                for name in unseen[index(kind)].take().unwrap_or_default() {
                    forget(&mut known.zone, kind, &name);
                }
                synced[index(kind)] = true;
                known.complete = synced == [true; 2];
                if known.complete
                    && let Some(complete) = complete.take()
                {
                    // Nobody waits any more: the wait was too long, or we are being stopped.
                    let _ = complete.send(());
                }
            }
        }
    }
}

fn forget(zone: &mut Zone, kind: Kind, name: &Name) {
    match kind {
        Kind::Service => zone.set_service(name, None),
        Kind::Slice => zone.set_slice(name, None),
    }
}

struct Resolver {
    known: Arc<RwLock<Known>>,
    forwarder: Forwarder,
}

/// An answer ready to be sent.
struct Reply {
    code: ResponseCode,
    authoritative: bool,
    truncated: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Reply {
    fn failure(code: ResponseCode) -> Reply {
        Reply { code, authoritative: false, truncated: false, answers: Vec::new(), authorities: Vec::new(), additionals: Vec::new() }
    }

    fn relayed(message: &Message) -> Reply {
        Reply {
            code: message.metadata.response_code,
            authoritative: false,
            truncated: message.metadata.truncation,
            answers: message.answers.clone(),
            authorities: message.authorities.clone(),
            additionals: message.additionals.clone(),
        }
    }
}

fn kind_of(record_type: RecordType) -> Type {
    match record_type {
        RecordType::A => Type::A,
        RecordType::AAAA => Type::Aaaa,
        RecordType::SRV => Type::Srv,
        RecordType::PTR => Type::Ptr,
        RecordType::CNAME => Type::Cname,
        RecordType::TXT => Type::Txt,
        RecordType::NS => Type::Ns,
        RecordType::SOA => Type::Soa,
        RecordType::ANY => Type::Any,
        _ => Type::Other,
    }
}

/// A name of ours. Ours are valid; an alias a user wrote may not be.
fn dns_name(text: &str) -> Option<DnsName> {
    DnsName::from_ascii(format!("{}.", text.trim_end_matches('.'))).ok()
}

fn soa(domain: &str, serial: u32) -> Option<Record> {
    let soa = SOA::new(dns_name(&format!("ns.dns.{domain}"))?, dns_name(&format!("hostmaster.{domain}"))?, serial, 7200, 1800, 86400, 5);
    Some(Record::from_rdata(dns_name(domain)?, TTL_SECONDS, RData::SOA(soa)))
}

/// `owner` stands in for the asked name, in the asker's spelling.
fn record(domain: &str, serial: u32, owner: Option<&DnsName>, record: zone::Record) -> Option<Record> {
    let name = owner.cloned().or_else(|| dns_name(&record.name))?;
    let data = match record.data {
        Data::Address(IpAddr::V4(ip)) => RData::A(A(ip)),
        Data::Address(IpAddr::V6(ip)) => RData::AAAA(AAAA(ip)),
        Data::Srv { weight, port, target } => RData::SRV(SRV::new(0, weight, port, dns_name(&target)?)),
        Data::Ptr(target) => RData::PTR(PTR(dns_name(&target)?)),
        Data::Ns(target) => RData::NS(NS(dns_name(&target)?)),
        Data::Txt(text) => RData::TXT(TXT::new(vec![text])),
        Data::Soa => soa(domain, serial)?.data,
    };
    Some(Record::from_rdata(name, TTL_SECONDS, data))
}

impl Resolver {
    /// What the zone says, in wire terms.
    fn local(&self, name: &DnsName, kind: Type) -> Local {
        let known = self.known.read().expect("no panic while looking up names");
        let text = name.to_ascii();
        let (domain, serial) = (known.zone.domain(), known.serial);
        let answer = known.zone.answer(text.trim_end_matches('.'), kind);
        let reply = |code, answers: Vec<Record>, additionals| {
            let authorities = if answers.is_empty() { soa(domain, serial).into_iter().collect() } else { Vec::new() };
            Reply { code, authoritative: true, truncated: false, answers, authorities, additionals }
        };
        match answer {
            Answer::Outside => Local::Outside,
            _ if !known.complete => Local::Reply(Reply::failure(ResponseCode::ServFail)),
            Answer::NoSuchName => Local::Reply(reply(ResponseCode::NXDomain, Vec::new(), Vec::new())),
            Answer::Alias(target) => match dns_name(&target) {
                Some(target) => Local::Alias(target),
                None => Local::Reply(Reply::failure(ResponseCode::ServFail)),
            },
            Answer::Found { records, additional } => {
                let turn = usize::try_from(rotation()).unwrap_or(0);
                let mut answers: Vec<Record> = records.into_iter().filter_map(|r| record(domain, serial, Some(name), r)).collect();
                if !answers.is_empty() {
                    let by = turn % answers.len();
                    answers.rotate_left(by);
                }
                let additionals = additional.into_iter().filter_map(|r| record(domain, serial, None, r)).collect();
                Local::Reply(reply(ResponseCode::NoError, answers, additionals))
            }
        }
    }

    async fn reply(&self, request: &Request, query: &Query, via: Via) -> Reply {
        if query.query_class() != DNSClass::IN {
            return Reply::failure(ResponseCode::Refused);
        }
        let kind = kind_of(query.query_type());
        match self.local(query.name(), kind) {
            Local::Reply(reply) => reply,
            Local::Outside => relayed(self.forwarder.relay(request.as_slice(), via).await, query),
            Local::Alias(target) => self.chase(query, kind, target, via).await,
        }
    }

    /// Follows aliases, in the zone and out of it.
    async fn chase(&self, query: &Query, kind: Type, mut target: DnsName, via: Via) -> Reply {
        let mut owner = query.name().clone();
        let mut chain = Vec::new();
        for _ in 0..ALIASES_MAX {
            chain.push(Record::from_rdata(owner, TTL_SECONDS, RData::CNAME(CNAME(target.clone()))));
            if matches!(kind, Type::Cname | Type::Any) {
                return Reply { authoritative: true, answers: chain, ..Reply::failure(ResponseCode::NoError) };
            }
            let mut end = match self.local(&target, kind) {
                Local::Alias(next) => {
                    owner = std::mem::replace(&mut target, next);
                    continue;
                }
                Local::Reply(reply) => reply,
                Local::Outside => {
                    let question = Query::query(target, query.query_type());
                    match self.forwarder.resolve(question, via).await {
                        Ok(message) => Reply::relayed(&message),
                        // The alias itself is true.
                        Err(error) => {
                            debug!(name = %query.name(), %error, "cannot resolve the target of an alias");
                            Reply::failure(ResponseCode::NoError)
                        }
                    }
                }
            };
            chain.append(&mut end.answers);
            return Reply { authoritative: true, answers: chain, ..end };
        }
        Reply::failure(ResponseCode::ServFail)
    }

    async fn answer(&self, request: &Request, mut to: impl ResponseHandler) -> ResponseInfo {
        let via = if request.protocol() == Protocol::Udp { Via::Udp } else { Via::Tcp };
        let reply = match request.request_info() {
            Err(_) => Reply::failure(ResponseCode::FormErr),
            Ok(_) if request.metadata.op_code != OpCode::Query => Reply::failure(ResponseCode::NotImp),
            Ok(info) => self.reply(request, info.query.original(), via).await,
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.truncation = reply.truncated;
        metadata.recursion_available = true;
        let mut builder = MessageResponseBuilder::from_message_request(request);
        let edns = request.edns.as_ref().map(|theirs| {
            let mut ours = Edns::new();
            ours.set_max_payload(theirs.max_payload().clamp(512, UDP_BYTES_MAX)).set_version(0);
            ours.set_dnssec_ok(theirs.flags().dnssec_ok);
            ours
        });
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(metadata, &reply.answers, &reply.authorities, [], &reply.additionals);
        match to.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                warn!(%error, "cannot send a DNS answer");
                metadata.response_code = ResponseCode::ServFail;
                ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
            }
        }
    }
}

enum Local {
    Reply(Reply),
    Alias(DnsName),
    Outside,
}

fn relayed(answer: Result<Arc<Message>, forward::Error>, query: &Query) -> Reply {
    match answer {
        Ok(message) => Reply::relayed(&message),
        Err(error) => {
            debug!(name = %query.name(), %error, "cannot relay a DNS query");
            Reply::failure(ResponseCode::ServFail)
        }
    }
}

/// Spreads clients that take the first address.
fn rotation() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// `async_trait`'s shape written out: the macro is not worth a dependency for one function.
impl RequestHandler for Resolver {
    fn handle_request<'a, 'b, 'c, R, T>(
        &'a self,
        request: &'b Request,
        response_handle: R,
    ) -> Pin<Box<dyn Future<Output = ResponseInfo> + Send + 'c>>
    where
        R: ResponseHandler + 'c,
        T: Time + 'c,
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(self.answer(request, response_handle))
    }
}
