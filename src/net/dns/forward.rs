//! What is not the cluster's goes to the host's resolvers.
//!
//! The client's own packet is relayed with a new id from a fresh socket (so a random port), answers are checked against
//! the question, and a small cache keeps them for as long as they say, [`CACHE_SECONDS_MAX`] at most. Resolvers come from
//! the host's `resolv.conf`, read again when the file changes; loopback ones are the host's stub and would not know what it
//! knows from us, so systemd's file with the real ones is taken then. Queries in flight are bounded.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hickory_server::proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_server::proto::rr::RData;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

const TRY: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
const SERVERS_MAX: usize = 3;
const IN_FLIGHT_MAX: usize = 500;
const CACHE_ENTRIES_MAX: usize = 2000;
const CACHE_SECONDS_MAX: u32 = 30;
const STUB_BEHIND: &str = "/run/systemd/resolve/resolv.conf";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the host has no resolver that is not on a loopback address")]
    NoServer,
    #[error("too many queries are waiting for the host's resolvers")]
    Busy,
    #[error("no resolver of the host answered")]
    Silent(#[source] io::Error),
    #[error("a query that cannot be relayed")]
    Malformed,
}

/// How the client asked: over TCP it wants all of a long answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Udp,
    Tcp,
}

type CacheKey = (Query, bool);

pub struct Forwarder {
    resolv_conf: PathBuf,
    /// Addresses that lead back to ourselves.
    own: Vec<IpAddr>,
    servers: Mutex<(Option<SystemTime>, Arc<[SocketAddr]>)>,
    cache: Mutex<HashMap<CacheKey, (Instant, Arc<Message>)>>,
    in_flight: Semaphore,
}

/// The resolvers a `resolv.conf` names.
fn parse(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        // A zone (`fe80::1%eth0`) has no address of its own to parse: left out.
        words.next()?.parse().ok()
    })
}

fn usable(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    let other = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified() && !own.contains(ip);
    parse(text).filter(other).take(SERVERS_MAX).map(|ip| (ip, 53).into()).collect()
}

fn read_servers(path: &Path, own: &[IpAddr]) -> Vec<SocketAddr> {
    let read = |path: &Path| usable(&std::fs::read_to_string(path).unwrap_or_default(), own);
    let servers = read(path);
    if servers.is_empty() { read(Path::new(STUB_BEHIND)) } else { servers }
}

impl Forwarder {
    pub fn new(resolv_conf: &Path, own: Vec<IpAddr>) -> Forwarder {
        Forwarder {
            resolv_conf: resolv_conf.into(),
            own,
            servers: Mutex::new((None, [].into())),
            cache: Mutex::new(HashMap::new()),
            in_flight: Semaphore::new(IN_FLIGHT_MAX),
        }
    }

    fn servers(&self) -> Arc<[SocketAddr]> {
        let changed = std::fs::metadata(&self.resolv_conf).and_then(|m| m.modified()).ok();
        let mut servers = self.servers.lock().expect("no panic while reading resolvers");
        if servers.1.is_empty() || servers.0 != changed {
            *servers = (changed, read_servers(&self.resolv_conf, &self.own).into());
        }
        servers.1.clone()
    }

    /// Relays `packet`, one query as a client sent it.
    pub async fn relay(&self, packet: &[u8], via: Via) -> Result<Arc<Message>, Error> {
        let query = Message::from_vec(packet).map_err(|_| Error::Malformed)?;
        let [question] = &query.queries[..] else { return Err(Error::Malformed) };
        let wants_dnssec = query.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok);
        let key = (question.clone(), wants_dnssec);
        if let Some(known) = self.cached(&key) {
            return Ok(known);
        }
        let _slot = self.in_flight.try_acquire().map_err(|_| Error::Busy)?;
        let answer = Arc::new(self.ask(packet, question, via).await?);
        self.remember(key, &answer);
        Ok(answer)
    }

    /// The same for a question of our own.
    pub async fn resolve(&self, question: Query, via: Via) -> Result<Arc<Message>, Error> {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(question);
        let packet = message.to_vec().map_err(|_| Error::Malformed)?;
        self.relay(&packet, via).await
    }

    async fn ask(&self, packet: &[u8], question: &Query, via: Via) -> Result<Message, Error> {
        let servers = self.servers();
        let mut last = None;
        for server in std::iter::repeat_n(servers.iter(), ROUNDS).flatten() {
            match timeout(TRY, exchange(*server, packet, question, via)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => last = Some(error),
                Err(_) => last = Some(io::ErrorKind::TimedOut.into()),
            }
        }
        Err(last.map_or(Error::NoServer, Error::Silent))
    }

    fn cached(&self, key: &CacheKey) -> Option<Arc<Message>> {
        let cache = self.cache.lock().expect("no panic while looking");
        cache.get(key).filter(|(until, _)| Instant::now() < *until).map(|(_, answer)| answer.clone())
    }

    fn remember(&self, key: CacheKey, answer: &Arc<Message>) {
        let seconds = keep_seconds(answer);
        if seconds == 0 {
            return;
        }
        let now = Instant::now();
        let mut cache = self.cache.lock().expect("no panic while remembering");
        if cache.len() >= CACHE_ENTRIES_MAX {
            cache.retain(|_, (until, _)| now < *until);
        }
        if cache.len() >= CACHE_ENTRIES_MAX {
            cache.clear();
        }
        cache.insert(key, (now + Duration::from_secs(seconds.into()), answer.clone()));
    }
}

/// How long an answer may be kept: failures and cut ones not at all, negative ones as their SOA says.
fn keep_seconds(answer: &Message) -> u32 {
    if answer.metadata.truncation || !matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return 0;
    }
    let negative = answer.authorities.iter().filter_map(|r| match &r.data {
        RData::SOA(soa) => Some(r.ttl.min(soa.minimum)),
        _ => None,
    });
    let positive = answer.answers.iter().map(|r| r.ttl);
    let shortest = if answer.answers.is_empty() { negative.min().unwrap_or(0) } else { positive.min().unwrap_or(0) };
    shortest.min(CACHE_SECONDS_MAX)
}

/// One try with one server.
async fn exchange(server: SocketAddr, packet: &[u8], question: &Query, via: Via) -> io::Result<Message> {
    let mut packet = packet.to_vec();
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    packet[..2].copy_from_slice(&id);
    let id = u16::from_be_bytes(id);
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&packet).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let n = socket.recv(&mut buffer).await?;
        // Somebody guessing our port: keep waiting for the real one.
        let Some(answer) = matching(&buffer[..n], id, question) else { continue };
        if answer.metadata.truncation && via == Via::Tcp {
            return over_tcp(server, &packet, id, question).await;
        }
        return Ok(answer);
    }
}

async fn over_tcp(server: SocketAddr, packet: &[u8], id: u16, question: &Query) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(packet.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes()[..], packet].concat()).await?;
    let mut buffer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut buffer).await?;
    matching(&buffer, id, question).ok_or_else(|| io::Error::other("the answer does not match the question"))
}

fn matching(bytes: &[u8], id: u16, question: &Query) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let same = |q: &Query| q.name() == question.name() && q.query_type() == question.query_type();
    let ours = answer.metadata.id == id && answer.metadata.message_type == MessageType::Response;
    // Some servers leave the question out of an error.
    (ours && answer.queries.first().is_none_or(same)).then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_own_resolvers_are_skipped() {
        let own = ["10.43.0.10".parse().unwrap()];
        let text = "# made by hand\nsearch a b\nnameserver 127.0.0.53\nnameserver\t192.0.2.1 # x\nnameserver 10.43.0.10\n\
                    nameserver ::1\nnameserver 2001:db8::1\nnameserver nonsense\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let servers: Vec<String> = usable(text, &own).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.2:53"]);
    }
}
