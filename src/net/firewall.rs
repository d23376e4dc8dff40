//! Finds other people's rules that refuse what pods send: a base chain on the forward hook whose policy is to drop, as Docker
//! makes one. Every base chain of every table sees a packet and any drop is final, so ours cannot accept against it.
//!
//! It is detected and said, not repaired: whose machine it is decides. A chain counts as repaired if some rule of its table
//! names the pods' range (or one around it). What the older iptables-legacy holds cannot be seen from here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tracing::{info, warn};

use crate::api::cidr::Cidr;
use crate::task::Shutdown;

use super::nft::{self, Error, Socket, Writer, attributes, is_end};

/// Docker may be started after us.
const LOOK_EVERY: Duration = Duration::from_secs(60);

// Kernel numbers: linux/netfilter/nf_tables.h.
const NFT: u16 = 10 << 8;
const GETCHAIN: u16 = 4;
const GETRULE: u16 = 7;
const REQUEST_DUMP: u16 = 1 | 0x300;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const RULE_TABLE: u16 = 1;
const HOOK_NUMBER: u16 = 1;
const DROP: u32 = 0;
const DATA_VALUE: u16 = 1;
const FAMILIES: [(u8, &str); 2] = [(1, "inet"), (2, "ip")];

/// A chain that drops what it does not know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// `ip` or `inet`.
    pub family: &'static str,
    pub table: String,
    pub chain: String,
    /// Docker leaves a chain for what others want to accept.
    pub has_docker_user: bool,
}

impl Refusal {
    /// The command that lets pods' packets through.
    pub fn remedy(&self, pods: &Cidr) -> String {
        match (self.family, self.has_docker_user) {
            ("ip", true) => format!("iptables -I DOCKER-USER -s {pods} -j ACCEPT && iptables -I DOCKER-USER -d {pods} -j ACCEPT"),
            (family, _) => {
                let insert = format!("nft insert rule {family} {} {}", self.table, self.chain);
                format!("{insert} ip saddr {pods} accept && {insert} ip daddr {pods} accept")
            }
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "chain {} of nftables table {} {} drops what is forwarded, pods' packets too", self.chain, self.family, self.table)
    }
}

/// Who refuses packets of `pods` now. Blocks.
pub fn refusals(pods: &Cidr) -> Result<Vec<Refusal>, Error> {
    let mut chains: Vec<(u8, String, String, bool)> = Vec::new();
    dump(GETCHAIN, |family, body| {
        let text = |wanted| find(body, wanted).map(|v| String::from_utf8_lossy(v.strip_suffix(&[0]).unwrap_or(v)).into_owned());
        let (Some(table), Some(name)) = (text(CHAIN_TABLE), text(CHAIN_NAME)) else { return };
        let number = |bytes: Option<&[u8]>| bytes.and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
        let hook = find(body, CHAIN_HOOK).and_then(|hook| number(find(hook, HOOK_NUMBER)));
        let drops = hook == Some(nft::FORWARD) && number(find(body, CHAIN_POLICY)) == Some(DROP);
        chains.push((family, table, name, drops));
    })?;
    let mut accepting: BTreeSet<(u8, String)> = BTreeSet::new();
    dump(GETRULE, |family, body| {
        if let Some(table) = find(body, RULE_TABLE).filter(|_| names(body, pods)) {
            accepting.insert((family, String::from_utf8_lossy(table.strip_suffix(&[0]).unwrap_or(table)).into_owned()));
        }
    })?;
    let mut found = Vec::new();
    for (family, table, chain, _) in chains.iter().filter(|(_, _, _, drops)| *drops) {
        let Some((_, shown)) = FAMILIES.iter().find(|(number, _)| number == family) else { continue };
        if !accepting.contains(&(*family, table.clone())) {
            let has_docker_user = chains.iter().any(|(f, t, name, _)| f == family && t == table && name == "DOCKER-USER");
            found.push(Refusal { family: shown, table: table.clone(), chain: chain.clone(), has_docker_user });
        }
    }
    found.sort();
    Ok(found)
}

fn dump(kind: u16, mut see: impl FnMut(u8, &[u8])) -> Result<(), Error> {
    let mut socket = Socket::open(0)?;
    let mut request = Writer::default();
    let seq = socket.next_seq();
    request.header(NFT | kind, REQUEST_DUMP, seq, 0, 0, |_| {});
    socket.send(&request.bytes)?;
    socket.receive(|kind, _, body| {
        if is_end(kind) {
            return true;
        }
        if let Some((family, rest)) = body.split_first().filter(|_| body.len() >= 4) {
            see(*family, &rest[3..]);
        }
        false
    })
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// Whether a rule compares an address with the range, or one around it on a byte's edge.
fn names(rule: &[u8], pods: &Cidr) -> bool {
    let IpAddr::V4(network) = pods.network() else { return false };
    let octets = network.octets();
    (1..=4).any(|n| {
        let mut wanted = [&[4 + n as u8, 0], &DATA_VALUE.to_ne_bytes()[..], &octets[..n]].concat();
        let whole = n == 4;
        if !whole && n * 8 > usize::from(pods.prefix()) {
            return false;
        }
        // The compared value may be padded to a register.
        let found = |wanted: &[u8]| rule.windows(wanted.len()).any(|w| w == wanted);
        let exact = found(&wanted);
        wanted[0] = 8;
        exact || whole && found(&wanted)
    })
}

/// Looks now and then, and says what it finds and what has gone.
pub async fn watch(pods: Cidr, shutdown: Shutdown) {
    let mut known = Vec::new();
    loop {
        // Looked for in the namespace of this thread, where the proxy lives, too.
        match refusals(&pods) {
            Ok(found) => {
                for refusal in found.iter().filter(|r| !known.contains(*r)) {
                    warn!(remedy = refusal.remedy(&pods), "{refusal}");
                }
                if found.is_empty() && !known.is_empty() {
                    info!("nobody drops what pods send any more");
                }
                known = found;
            }
            Err(error) => warn!(%error, "cannot look for firewalls in the way of pods"),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
    }
}
