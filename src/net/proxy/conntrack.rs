//! Flushes connection-tracking entries that would keep sending datagrams to where they should not go any more.
//!
//! The kernel translates the first datagram of a flow and remembers the answer. Two memories are wrong after a change: flows
//! to an endpoint that left, and flows that went untranslated while a frontend had no endpoint. The table is dumped once
//! per change and the matching entries are deleted one by one: the kernel's filtered delete is too new to rely on.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;

use crate::net::nft::{Error, Socket, Writer, attributes, error_code, is_end};

use super::rules::{Endpoint, Frontend};

/// Flows to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    pub frontend: Frontend,
    /// Those translated to this endpoint; none: those not translated.
    pub endpoint: Option<Endpoint>,
}

// Kernel numbers: linux/netfilter/nfnetlink_conntrack.h.
const CONNTRACK: u16 = 1 << 8;
const GET: u16 = 1;
const DELETE: u16 = 2;
const REQUEST_DUMP: u16 = 1 | 0x300;
const REQUEST_ACK: u16 = 1 | 4;
const INET4: u8 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    source: Endpoint,
    destination: Endpoint,
    protocol: u8,
}

fn parse(tuple: &[u8]) -> Option<Tuple> {
    let nest = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let (ip, protocol) = (nest(tuple, 1)?, nest(tuple, 2)?);
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(nest(ip, kind)?).ok()?));
    let port = |kind| Some(u16::from_be_bytes(nest(protocol, kind)?.try_into().ok()?));
    Some(Tuple { source: (address(1)?, port(2)?), destination: (address(2)?, port(3)?), protocol: *nest(protocol, 1)?.first()? })
}

fn is_stale(original: &Tuple, reply: &Tuple, stale: &Stale) -> bool {
    let frontend = &stale.frontend;
    frontend.protocol.number() == original.protocol
        && frontend.port == original.destination.1
        && frontend.ip.is_none_or(|ip| ip == original.destination.0)
        && match stale.endpoint {
            Some(endpoint) => reply.source == endpoint,
            None => reply.source == original.destination,
        }
}

/// Deletes the entries that match any of `stale`; says how many. Blocks.
pub fn flush(stale: &[Stale]) -> Result<usize, Error> {
    if stale.is_empty() {
        return Ok(0);
    }
    let mut by_port: BTreeMap<u16, Vec<&Stale>> = BTreeMap::new();
    for one in stale {
        by_port.entry(one.frontend.port).or_default().push(one);
    }
    let mut socket = Socket::open(0)?;
    let mut request = Writer::default();
    let seq = socket.next_seq();
    request.header(CONNTRACK | GET, REQUEST_DUMP, seq, INET4, 0, |_| {});
    socket.send(&request.bytes)?;
    let mut doomed: Vec<Vec<u8>> = Vec::new();
    socket.receive(|kind, _, body| {
        if is_end(kind) {
            return true;
        }
        let nest = |wanted| attributes(&body[4..]).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        let (Some(original), Some(reply)) = (nest(TUPLE_ORIGINAL), nest(TUPLE_REPLY)) else { return false };
        if let (Some(there), Some(back)) = (parse(original), parse(reply))
            && by_port.get(&there.destination.1).is_some_and(|list| list.iter().any(|s| is_stale(&there, &back, s)))
        {
            doomed.push(original.to_vec());
        }
        false
    })?;
    for tuple in &doomed {
        delete(&mut socket, tuple)?;
    }
    Ok(doomed.len())
}

fn delete(socket: &mut Socket, tuple: &[u8]) -> Result<(), Error> {
    let mut request = Writer::default();
    let seq = socket.next_seq();
    request.header(CONNTRACK | DELETE, REQUEST_ACK, seq, INET4, 0, |m| m.nest(TUPLE_ORIGINAL, |m| m.bytes.extend_from_slice(tuple)));
    socket.send(&request.bytes)?;
    let mut code = 0;
    socket.receive(|kind, their_seq, body| {
        let ours = is_end(kind) && their_seq == seq;
        if ours {
            code = error_code(body);
        }
        ours
    })?;
    match code {
        0 => Ok(()),
        // It ended by itself.
        code if code == nix::Error::ENOENT as i32 => Ok(()),
        code => Err(Error::Refused { what: "delete a connection-tracking entry".into(), source: io::Error::from_raw_os_error(code) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Protocol;

    #[test]
    fn only_flows_of_the_lost_endpoint_or_untranslated_ones_are_stale() {
        let ip = |s: &str| s.parse::<Ipv4Addr>().unwrap();
        let frontend = Frontend { ip: Some(ip("10.43.0.9")), protocol: Protocol::Udp, port: 53 };
        let there = Tuple { source: (ip("10.42.0.5"), 4000), destination: (ip("10.43.0.9"), 53), protocol: 17 };
        let back = |source| Tuple { source, destination: there.source, protocol: 17 };
        let gone = (ip("10.42.0.7"), 5353);
        let lost = Stale { frontend, endpoint: Some(gone) };
        let fresh = Stale { frontend, endpoint: None };
        assert!(is_stale(&there, &back(gone), &lost) && !is_stale(&there, &back((gone.0, 5354)), &lost));
        assert!(is_stale(&there, &back(there.destination), &fresh) && !is_stale(&there, &back(gone), &fresh));
        let anywhere = Stale { frontend: Frontend { ip: None, ..frontend }, ..lost };
        assert!(is_stale(&there, &back(gone), &anywhere));
        let tcp = Tuple { protocol: 6, ..there };
        assert!(!is_stale(&tcp, &back(gone), &lost));
    }
}
