//! One nftables table as a value, its difference to another, and the nfnetlink messages that make the kernel agree.
//!
//! A [`Ruleset`] is a part of the table: the constant skeleton, the shared slot chains, one service's fragment. Parts never
//! name the same object twice, so the table is their union and a [`Change`] is the sum of the parts' differences. One
//! [`Change`] is one kernel transaction in one `send`: all of it or nothing (notes/net.md 1.1). Errors come back by
//! sequence number and are mapped to what the message was about. Nothing is ever read back except the table's identity;
//! tests read the kernel with the `nft` binary, as other people will.
//!
//! Only plain fixed-size key types are used, no comments and no `typeof`: other people's `nft` must be able to list and
//! reload what we leave in the kernel (notes/net.md 1.5). Start at [`Ruleset`] and [`Table`].

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt};
use nix::sys::time::TimeVal;

pub type Name = Arc<str>;

/// One component of a concatenated key or datum. Each takes whole 4-byte registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Ipv4,
    Proto,
    Port,
    /// A host-order number, as `numgen` makes it.
    Number,
}

impl Field {
    /// The data type number `nft` uses to print elements; the kernel ignores it.
    fn type_id(self) -> u32 {
        match self {
            Field::Ipv4 => 7,
            Field::Proto => 12,
            Field::Port => 13,
            Field::Number => 4,
        }
    }
}

impl Field {
    fn size(self) -> u32 {
        match self {
            Field::Ipv4 | Field::Number => 4,
            Field::Proto => 1,
            Field::Port => 2,
        }
    }
}

fn type_id(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |id, f| id << 6 | f.type_id())
}

/// What a set maps its keys to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    Nothing,
    Verdict,
    Value(&'static [Field]),
}

/// The declaration of a named set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub key: &'static [Field],
    pub data: Data,
    /// Elements are ranges in the last field (an interval concatenation).
    pub interval: bool,
    /// Filled by rules, each entry lives this long.
    pub timeout_ms: Option<u64>,
}

impl Set {
    pub const fn plain(key: &'static [Field]) -> Set {
        Set { key, data: Data::Nothing, interval: false, timeout_ms: None }
    }
    pub const fn vmap(key: &'static [Field]) -> Set {
        Set { key, data: Data::Verdict, interval: false, timeout_ms: None }
    }
    pub const fn map(key: &'static [Field], data: &'static [Field]) -> Set {
        Set { key, data: Data::Value(data), interval: false, timeout_ms: None }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Drop,
    Accept,
    Return,
    Jump(Name),
    Goto(Name),
}

/// What an element carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datum {
    Nothing,
    /// The upper end of an interval element.
    Until(Box<[u8]>),
    Value(Box<[u8]>),
    Verdict(Verdict),
}

/// Where a base chain is attached. Numbers are the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    pub kind: &'static str,
    pub number: u32,
    pub priority: i32,
}

pub const PREROUTING: u32 = 0;
pub const INPUT: u32 = 1;
pub const FORWARD: u32 = 2;
pub const OUTPUT: u32 = 3;
pub const POSTROUTING: u32 = 4;

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Chain {
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

pub type Rule = Vec<Expr>;

/// A 32-bit register: 0..=15.
pub type Reg = u32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    Payload {
        base: Base,
        offset: u32,
        len: u32,
        to: Reg,
    },
    Meta {
        key: u32,
        to: Reg,
    },
    /// `original` asks for the original direction's value.
    Ct {
        key: u32,
        original: bool,
        to: Reg,
    },
    /// The address type (local, unicast, …) of source or destination.
    FibType {
        of_source: bool,
        to: Reg,
    },
    Numgen {
        modulus: u32,
        to: Reg,
    },
    Equal {
        reg: Reg,
        value: Box<[u8]>,
    },
    Differs {
        reg: Reg,
        value: Box<[u8]>,
    },
    And {
        reg: Reg,
        mask: Box<[u8]>,
    },
    In {
        set: Name,
        reg: Reg,
    },
    NotIn {
        set: Name,
        reg: Reg,
    },
    Map {
        set: Name,
        reg: Reg,
        to: Reg,
    },
    Vmap {
        set: Name,
        reg: Reg,
    },
    /// An anonymous verdict map over one number.
    Switch {
        reg: Reg,
        verdicts: Vec<Verdict>,
    },
    Load {
        value: Box<[u8]>,
        to: Reg,
    },
    /// Adds or refreshes `reg` in a dynamic set.
    Update {
        set: Name,
        reg: Reg,
        timeout_ms: u64,
    },
    Dnat {
        addr: Reg,
        port: Reg,
    },
    Masquerade,
    RejectTcp,
    RejectPort,
    Counter,
    Verdict(Verdict),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    Network,
    Transport,
}

pub type Key = Box<[u8]>;

/// A part of the table.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Ruleset {
    pub sets: BTreeMap<Name, Set>,
    pub chains: BTreeMap<Name, Chain>,
    pub elements: BTreeMap<(Name, Key), Datum>,
}

impl Ruleset {
    pub fn element(&mut self, set: &Name, key: impl Into<Key>, datum: Datum) {
        self.elements.insert((set.clone(), key.into()), datum);
    }

    pub fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.chains.is_empty() && self.elements.is_empty()
    }
}

/// What turns one ruleset into another. Borrows from the rulesets it came from.
///
/// A packet reads which generation of rules holds when it enters a base chain, and which generation of elements holds at
/// every lookup (`nft_do_chain`, `nft_genmask_cur`): one under way during a commit may follow a new element by old rules. So
/// a chain's rules never change, what leads elsewhere leads to a chain of another name; chains are made in a transaction
/// before the one whose elements lead to them, and removed in one after.
#[derive(Debug, Default)]
pub struct Change<'a> {
    new_sets: Vec<(&'a Name, &'a Set)>,
    new_chains: Vec<(&'a Name, &'a Chain)>,
    gone_elements: Vec<(&'a Name, &'a Key, &'a Datum)>,
    put_elements: Vec<(&'a Name, &'a Key, &'a Datum)>,
    gone_chains: Vec<&'a Name>,
    gone_sets: Vec<&'a Name>,
}

impl<'a> Change<'a> {
    /// Adds what turns `old` into `new`. A changed set or chain needs a new name.
    pub fn between(&mut self, old: &'a Ruleset, new: &'a Ruleset) {
        for (name, set) in &new.sets {
            match old.sets.get(name) {
                None => self.new_sets.push((name, set)),
                Some(was) => assert_eq!(was, set, "set {name} changed its declaration"),
            }
        }
        for (name, chain) in &new.chains {
            match old.chains.get(name) {
                None => self.new_chains.push((name, chain)),
                Some(was) => assert_eq!(was, chain, "chain {name} changed"),
            }
        }
        for ((set, key), datum) in &old.elements {
            match new.elements.get(&(set.clone(), key.clone())) {
                Some(is) if is == datum => {}
                // The elements of a set that goes go with it.
                _ if !new.sets.contains_key(set) && old.sets.contains_key(set) => {}
                _ => self.gone_elements.push((set, key, datum)),
            }
        }
        for ((set, key), datum) in &new.elements {
            if old.elements.get(&(set.clone(), key.clone())) != Some(datum) {
                self.put_elements.push((set, key, datum));
            }
        }
        self.gone_chains.extend(old.chains.keys().filter(|name| !new.chains.contains_key(*name)));
        self.gone_sets.extend(old.sets.keys().filter(|name| !new.sets.contains_key(*name)));
    }

    /// The change that makes the union of `parts` from nothing.
    pub fn whole(parts: impl Iterator<Item = &'a Ruleset>) -> Change<'a> {
        static EMPTY: Ruleset = Ruleset { sets: BTreeMap::new(), chains: BTreeMap::new(), elements: BTreeMap::new() };
        let mut change = Change::default();
        for part in parts {
            change.between(&EMPTY, part);
        }
        change
    }

    /// The transactions that apply this change to `table`, none of them empty.
    pub fn update(&self, table: &str) -> Vec<Batch> {
        let mut batches = Vec::new();
        let mut transaction = |write: &dyn Fn(&mut Batch)| {
            let mut batch = Batch::begin();
            write(&mut batch);
            batch.end();
            batches.push(batch);
        };
        if !(self.new_sets.is_empty() && self.new_chains.is_empty()) {
            transaction(&|batch| self.make(table, batch));
        }
        if !(self.gone_elements.is_empty() && self.put_elements.is_empty()) {
            transaction(&|batch| self.lead(table, batch));
        }
        if !(self.gone_chains.is_empty() && self.gone_sets.is_empty()) {
            transaction(&|batch| self.remove(table, batch));
        }
        batches
    }

    /// The transaction that puts a fresh `table` with this content in the place of whatever is there, without a gap.
    pub fn replacement(&self, table: &str) -> Batch {
        let mut batch = Batch::begin();
        batch.table(NEWTABLE, table);
        batch.table(DELTABLE, table);
        batch.table(NEWTABLE, table);
        self.make(table, &mut batch);
        self.lead(table, &mut batch);
        batch.end();
        batch
    }

    fn make(&self, table: &str, batch: &mut Batch) {
        for (name, set) in &self.new_sets {
            batch.new_set(table, name, set);
        }
        for (name, chain) in &self.new_chains {
            batch.new_chain(table, name, chain.hook);
        }
        for (name, chain) in &self.new_chains {
            for rule in &chain.rules {
                batch.new_rule(table, name, rule);
            }
        }
    }

    fn lead(&self, table: &str, batch: &mut Batch) {
        batch.elements(DELSETELEM, table, &self.gone_elements);
        batch.elements(NEWSETELEM, table, &self.put_elements);
    }

    fn remove(&self, table: &str, batch: &mut Batch) {
        // Chains that go may name each other: empty them first.
        for name in &self.gone_chains {
            batch.message(DELRULE, 0, format!("empty chain {name}"), |m| {
                m.string(1, table);
                m.string(2, name);
            });
        }
        for name in &self.gone_chains {
            batch.message(DELCHAIN, 0, format!("delete chain {name}"), |m| {
                m.string(1, table);
                m.string(3, name);
            });
        }
        for name in &self.gone_sets {
            batch.message(DELSET, 0, format!("delete set {name}"), |m| {
                m.string(1, table);
                m.string(2, name);
            });
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open an nfnetlink socket")]
    Open(#[source] io::Error),
    #[error("send {bytes} bytes to nftables")]
    Send {
        bytes: usize,
        #[source]
        source: io::Error,
    },
    #[error("read the answer of nftables")]
    Receive(#[source] io::Error),
    /// The kernel refused the transaction; nothing of it took place.
    #[error("nftables refused to {what}")]
    Refused {
        what: String,
        #[source]
        source: io::Error,
    },
}

/// Our table in the network namespace of the thread that opened it. Calls block: keep them off the async workers.
pub struct Table {
    socket: Socket,
    name: Name,
}

/// What tells one incarnation of a table from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub handle: u64,
    /// How many objects it holds.
    pub objects: u32,
}

impl Table {
    pub fn open(name: &str) -> Result<Table, Error> {
        Ok(Table { socket: Socket::open(0)?, name: name.into() })
    }

    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The netlink port of our changes, for telling them from other people's.
    pub fn port(&self) -> u32 {
        self.socket.port
    }

    /// All of the transaction or nothing.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), Error> {
        self.socket.commit(batch)
    }

    /// Removes the table; fine if there is none.
    pub fn delete(&mut self) -> Result<(), Error> {
        let mut batch = Batch::begin();
        batch.table(NEWTABLE, &self.name);
        batch.table(DELTABLE, &self.name);
        batch.end();
        self.socket.commit(&batch)
    }

    pub fn identity(&mut self) -> Result<Option<Identity>, Error> {
        let seq = self.socket.next_seq();
        let name = self.name.clone();
        let mut message = Writer::default();
        message.header(NFT | GETTABLE, REQUEST, seq, INET, 0, |m| m.string(1, &name));
        self.socket.send(&message.bytes)?;
        let mut found = None;
        self.socket.receive(|kind, their_seq, body| {
            if their_seq != seq {
                return false;
            }
            if kind == NFT | NEWTABLE {
                let number = |id: u16| attributes(&body[4..]).find(|(k, _)| *k == id).map(|(_, v)| v);
                let objects = number(3).and_then(|v| v.try_into().ok()).map_or(0, u32::from_be_bytes);
                let handle = number(4).and_then(|v| v.try_into().ok()).map_or(0, u64::from_be_bytes);
                found = Some(Identity { handle, objects });
            }
            true
        })?;
        Ok(found)
    }
}

/// Whether this message removes something of `table`, on behalf of another port than `own`.
pub(super) fn is_damage(message: &Message<'_>, table: &str, own: u32) -> bool {
    message.port != own
        && REMOVALS.contains(&message.kind)
        && message.body.len() >= 4
        && attributes(&message.body[4..]).any(|(kind, value)| kind == 1 && value.strip_suffix(&[0]) == Some(table.as_bytes()))
}

// Kernel numbers: linux/netfilter/{nfnetlink,nf_tables}.h.
/// The multicast group of table changes, as a bit.
pub(super) const CHANGES: u32 = 1 << 6;
const INET: u8 = 1;
const NFT: u16 = 10 << 8;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;
const REMOVALS: [u16; 5] = [NFT | DELTABLE, NFT | DELCHAIN, NFT | DELRULE, NFT | DELSET, NFT | DELSETELEM];
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NESTED: u16 = 0x8000;
/// A nested list must stay below the 16-bit attribute length.
const LIST_BYTES_MAX: usize = 60_000;

/// Writes netlink messages and attributes; also used for conntrack.
#[derive(Default)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn header(&mut self, kind: u16, flags: u16, seq: u32, family: u8, resource: u16, body: impl FnOnce(&mut Writer)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&seq.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        body(self);
        let len = u32::try_from(self.bytes.len() - start).expect("a message is below 4 GB");
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).expect("an attribute is below 64 kB");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Writer)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(self);
        let len = u16::try_from(self.bytes.len() - start).expect("a nested attribute is below 64 kB");
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    fn string(&mut self, kind: u16, text: &str) {
        let mut value = Vec::with_capacity(text.len() + 1);
        value.extend_from_slice(text.as_bytes());
        value.push(0);
        self.attr(kind, &value);
    }

    fn u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    fn u64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    fn reg(&mut self, kind: u16, reg: Reg) {
        self.u32(kind, 8 + reg);
    }

    fn value(&mut self, kind: u16, value: &[u8]) {
        self.nest(kind, |m| m.attr(1, value));
    }

    fn verdict(&mut self, kind: u16, verdict: &Verdict) {
        let (code, chain): (i32, Option<&Name>) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Return => (-5, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
        };
        self.nest(kind, |m| {
            m.nest(2, |m| {
                m.attr(1, &code.to_be_bytes());
                if let Some(chain) = chain {
                    m.string(2, chain);
                }
            });
        });
    }

    fn expr(&mut self, name: &str, body: impl FnOnce(&mut Writer)) {
        self.nest(1, |m| {
            m.string(1, name);
            m.nest(2, body);
        });
    }

    fn lookup(&mut self, set: &str, reg: Reg, to: Option<u32>, inverted: bool) {
        self.expr("lookup", |m| {
            m.string(1, set);
            m.reg(2, reg);
            if let Some(to) = to {
                m.u32(3, to);
            }
            if inverted {
                m.u32(5, 1);
            }
        });
    }

    fn compare(&mut self, reg: Reg, op: u32, value: &[u8]) {
        self.expr("cmp", |m| {
            m.reg(1, reg);
            m.u32(2, op);
            m.value(3, value);
        });
    }

    /// One expression; `switch` is the id of the anonymous map that was announced for it.
    fn rule_expr(&mut self, expr: &Expr, switch: u32) {
        match expr {
            Expr::Payload { base, offset, len, to } => self.expr("payload", |m| {
                m.reg(1, *to);
                m.u32(2, if *base == Base::Network { 1 } else { 2 });
                m.u32(3, *offset);
                m.u32(4, *len);
            }),
            Expr::Meta { key, to } => self.expr("meta", |m| {
                m.reg(1, *to);
                m.u32(2, *key);
            }),
            Expr::Ct { key, original, to } => self.expr("ct", |m| {
                m.reg(1, *to);
                m.u32(2, *key);
                if *original {
                    m.attr(3, &[0]);
                }
            }),
            Expr::FibType { of_source, to } => self.expr("fib", |m| {
                m.reg(1, *to);
                m.u32(2, 3);
                m.u32(3, if *of_source { 1 } else { 2 });
            }),
            Expr::Numgen { modulus, to } => self.expr("numgen", |m| {
                m.reg(1, *to);
                m.u32(2, *modulus);
                m.u32(3, 1);
                m.u32(4, 0);
            }),
            Expr::Equal { reg, value } => self.compare(*reg, 0, value),
            Expr::Differs { reg, value } => self.compare(*reg, 1, value),
            Expr::And { reg, mask } => self.expr("bitwise", |m| {
                m.reg(1, *reg);
                m.reg(2, *reg);
                m.u32(3, u32::try_from(mask.len()).expect("a mask is short"));
                m.value(4, mask);
                m.value(5, &vec![0; mask.len()]);
            }),
            Expr::In { set, reg } => self.lookup(set, *reg, None, false),
            Expr::NotIn { set, reg } => self.lookup(set, *reg, None, true),
            Expr::Map { set, reg, to } => self.lookup(set, *reg, Some(8 + to), false),
            Expr::Vmap { set, reg } => self.lookup(set, *reg, Some(0), false),
            Expr::Switch { reg, .. } => self.expr("lookup", |m| {
                m.string(1, "__map%d");
                m.reg(2, *reg);
                m.u32(3, 0);
                m.u32(4, switch);
            }),
            Expr::Load { value, to } => self.expr("immediate", |m| {
                m.reg(1, *to);
                m.value(2, value);
            }),
            Expr::Update { set, reg, timeout_ms } => self.expr("dynset", |m| {
                m.string(1, set);
                m.u32(3, 1);
                m.reg(4, *reg);
                m.u64(6, *timeout_ms);
            }),
            Expr::Dnat { addr, port } => self.expr("nat", |m| {
                m.u32(1, 1);
                m.u32(2, 2);
                m.reg(3, *addr);
                m.reg(5, *port);
            }),
            Expr::Masquerade => self.expr("masq", |m| m.u32(1, 16)),
            Expr::RejectTcp => self.expr("reject", |m| m.u32(1, 1)),
            Expr::RejectPort => self.expr("reject", |m| {
                m.u32(1, 2);
                m.attr(2, &[1]);
            }),
            Expr::Counter => self.expr("counter", |m| {
                m.u64(1, 0);
                m.u64(2, 0);
            }),
            Expr::Verdict(verdict) => self.expr("immediate", |m| {
                m.u32(1, 0);
                m.verdict(2, verdict);
            }),
        }
    }
}

/// One transaction: messages numbered from 0, and what each was about.
pub struct Batch {
    out: Writer,
    about: Vec<String>,
    /// Where the last message's flags stand: only it asks for an acknowledgement.
    last_flags: usize,
}

impl Batch {
    /// In bytes.
    pub fn len(&self) -> usize {
        self.out.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.about.len() <= 1
    }

    fn begin() -> Batch {
        let mut batch = Batch { out: Writer::default(), about: Vec::new(), last_flags: 0 };
        batch.out.header(BATCH_BEGIN, REQUEST, 0, 0, 10, |_| {});
        batch.about.push("begin a transaction".into());
        batch
    }

    fn end(&mut self) {
        let flags =
            (REQUEST | ACK | u16::from_ne_bytes([self.out.bytes[self.last_flags], self.out.bytes[self.last_flags + 1]])).to_ne_bytes();
        self.out.bytes[self.last_flags..self.last_flags + 2].copy_from_slice(&flags);
        let seq = self.next();
        self.out.header(BATCH_END, REQUEST, seq, 0, 10, |_| {});
    }

    fn next(&self) -> u32 {
        u32::try_from(self.about.len()).expect("a batch has less than 2^32 messages")
    }

    fn message(&mut self, kind: u16, flags: u16, about: String, body: impl FnOnce(&mut Writer)) {
        let seq = self.next();
        self.last_flags = self.out.bytes.len() + 6;
        self.out.header(NFT | kind, REQUEST | flags, seq, INET, 0, body);
        self.about.push(about);
    }

    fn table(&mut self, kind: u16, table: &str) {
        let (flags, verb) = if kind == NEWTABLE { (CREATE, "create") } else { (0, "delete") };
        self.message(kind, flags, format!("{verb} table {table}"), |m| {
            m.string(1, table);
            if kind == NEWTABLE {
                m.u32(2, 0);
            }
        });
    }

    fn new_set(&mut self, table: &str, name: &str, set: &Set) {
        let id = self.next();
        self.message(NEWSET, CREATE, format!("create set {name}"), |m| {
            m.string(1, table);
            m.string(2, name);
            let (data_flag, data_type, data_len) = match set.data {
                Data::Nothing => (0, None, 0),
                Data::Verdict => (8, Some(0xffff_ff00), 16),
                Data::Value(fields) => (8, Some(type_id(fields)), 4 * fields.len()),
            };
            let interval = if set.interval { 4 | 0x80 } else { 0 };
            let dynamic = if set.timeout_ms.is_some() { 0x10 | 0x20 } else { 0 };
            m.u32(3, data_flag | interval | dynamic);
            m.u32(4, type_id(set.key));
            // A single field keeps its natural length, concatenated ones take whole registers.
            let key_len = if let [field] = set.key { field.size() } else { u32::try_from(4 * set.key.len()).expect("keys are short") };
            m.u32(5, key_len);
            if let Some(data_type) = data_type {
                m.u32(6, data_type);
                m.u32(7, u32::try_from(data_len).expect("data are short"));
            }
            if set.interval {
                m.nest(9, |m| {
                    m.nest(2, |m| {
                        for field in set.key {
                            m.nest(1, |m| m.u32(1, field.size()));
                        }
                    });
                });
            }
            m.u32(10, id);
            if let Some(timeout_ms) = set.timeout_ms {
                m.u64(11, timeout_ms);
            }
        });
    }

    fn new_chain(&mut self, table: &str, name: &str, hook: Option<Hook>) {
        self.message(NEWCHAIN, CREATE, format!("create chain {name}"), |m| {
            m.string(1, table);
            m.string(3, name);
            if let Some(hook) = hook {
                m.nest(4, |m| {
                    m.u32(1, hook.number);
                    m.attr(2, &hook.priority.to_be_bytes());
                });
                m.u32(5, 1);
                m.string(7, hook.kind);
            }
        });
    }

    /// At most one anonymous map per rule: it is announced in messages of its own before the rule.
    fn new_rule(&mut self, table: &str, chain: &str, rule: &Rule) {
        let mut id = 0;
        for expr in rule {
            if let Expr::Switch { verdicts, .. } = expr {
                assert_eq!(id, 0, "two switches in one rule of chain {chain}");
                id = self.switch(table, chain, verdicts);
            }
        }
        self.message(NEWRULE, CREATE | APPEND, format!("add a rule to chain {chain}"), |m| {
            m.string(1, table);
            m.string(2, chain);
            m.nest(4, |m| rule.iter().for_each(|expr| m.rule_expr(expr, id)));
        });
    }

    fn switch(&mut self, table: &str, chain: &str, verdicts: &[Verdict]) -> u32 {
        let id = self.next();
        self.message(NEWSET, CREATE, format!("create the map of chain {chain}"), |m| {
            m.string(1, table);
            m.string(2, "__map%d");
            m.u32(3, 1 | 2 | 8);
            m.u32(4, type_id(&[Field::Number]));
            m.u32(5, 4);
            m.u32(6, 0xffff_ff00);
            m.u32(7, 16);
            m.u32(10, id);
        });
        // About 60 bytes an element: well below the list limit for as many slots as we allow at once.
        for (chunk, part) in verdicts.chunks(512).enumerate() {
            self.message(NEWSETELEM, CREATE, format!("fill the map of chain {chain}"), |m| {
                m.string(1, table);
                m.string(2, "__map%d");
                m.u32(4, id);
                m.nest(3, |m| {
                    for (i, verdict) in part.iter().enumerate() {
                        let number = u32::try_from(chunk * 512 + i).expect("slots are few");
                        m.nest(1, |m| {
                            m.value(1, &number.to_ne_bytes());
                            m.verdict(2, verdict);
                        });
                    }
                });
            });
        }
        id
    }

    /// Elements in as few messages as fit, one set after the other.
    fn elements(&mut self, kind: u16, table: &str, elements: &[(&Name, &Key, &Datum)]) {
        let mut order: Vec<_> = elements.iter().collect();
        order.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        let (verb, flags) = if kind == NEWSETELEM { ("add", CREATE) } else { ("remove", 0) };
        let mut rest = &order[..];
        while let Some((set, ..)) = rest.first() {
            let mut taken = 0;
            let mut list = Writer::default();
            while let Some((other, key, datum)) = rest.get(taken)
                && other == set
                && list.bytes.len() < LIST_BYTES_MAX
            {
                list.nest(1, |m| element(m, key, datum, kind == NEWSETELEM));
                taken += 1;
            }
            self.message(kind, flags, format!("{verb} {taken} elements of set {set}"), |m| {
                m.string(1, table);
                m.string(2, set);
                m.nest(3, |m| m.bytes.extend_from_slice(&list.bytes));
            });
            rest = &rest[taken..];
        }
    }
}

fn element(m: &mut Writer, key: &Key, datum: &Datum, with_data: bool) {
    m.value(1, key);
    match datum {
        Datum::Nothing => {}
        Datum::Until(end) => m.value(10, end),
        Datum::Value(value) if with_data => m.value(2, value),
        Datum::Verdict(verdict) if with_data => m.verdict(2, verdict),
        Datum::Value(_) | Datum::Verdict(_) => {}
    }
}

/// A NETLINK_NETFILTER socket in the network namespace of the opening thread.
pub(crate) struct Socket {
    pub(crate) fd: OwnedFd,
    port: u32,
    seq: u32,
    pub(super) buffer: Vec<u8>,
}

impl Socket {
    pub(crate) fn open(groups: u32) -> Result<Socket, Error> {
        Socket::try_open(groups).map_err(|e| Error::Open(e.into()))
    }

    fn try_open(groups: u32) -> nix::Result<Socket> {
        let fd = socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
        // Multicast is delivered only to a bound socket. Port 0 lets the kernel choose.
        socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        let port = socket::getsockname::<NetlinkAddr>(fd.as_raw_fd())?.pid();
        // One transaction is one datagram: the send buffer must hold the largest. Memory is charged only while sending.
        socket::setsockopt(&fd, sockopt::SndBufForce, &(256 << 20))?;
        socket::setsockopt(&fd, sockopt::RcvBufForce, &(8 << 20))?;
        // The kernel always answers; this is for the day it does not.
        socket::setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(20, 0))?;
        Ok(Socket { fd, port, seq: 0, buffer: vec![0; 64 << 10] })
    }

    pub(crate) fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    pub(super) fn fill(&mut self, flags: MsgFlags) -> nix::Result<usize> {
        socket::recv(self.fd.as_raw_fd(), &mut self.buffer, flags)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        loop {
            match socket::send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(Error::Send { bytes: bytes.len(), source: error.into() }),
            }
        }
    }

    /// Hands every message (kind, sequence, body) to `take` until it says that was the last.
    pub(crate) fn receive(&mut self, mut take: impl FnMut(u16, u32, &[u8]) -> bool) -> Result<(), Error> {
        loop {
            let n = match self.fill(MsgFlags::empty()) {
                Ok(n) => n,
                Err(nix::Error::EINTR) => continue,
                Err(error) => return Err(Error::Receive(error.into())),
            };
            for message in messages(&self.buffer[..n]) {
                if take(message.kind, message.seq, message.body) {
                    return Ok(());
                }
            }
        }
    }

    /// Runs one transaction: all errors are read up to the acknowledgement, the first one is the answer.
    fn commit(&mut self, batch: &Batch) -> Result<(), Error> {
        let last = batch.next() - 1;
        self.send(&batch.out.bytes)?;
        let mut refused: Option<(u32, i32)> = None;
        self.receive(|kind, seq, body| {
            let code = if kind == NLMSG_ERROR { error_code(body) } else { 0 };
            if code != 0 && refused.is_none() {
                refused = Some((seq, code));
            }
            // Sequence 0 is the begin message: refused as a whole.
            kind == NLMSG_ERROR && (seq == last || seq == 0)
        })?;
        match refused {
            None => Ok(()),
            Some((seq, code)) => {
                let what = batch.about.get(seq as usize).cloned().unwrap_or_else(|| "run a transaction".into());
                Err(Error::Refused { what, source: io::Error::from_raw_os_error(code) })
            }
        }
    }
}

/// The positive errno inside an NLMSG_ERROR body; 0 is an acknowledgement.
pub(crate) fn error_code(body: &[u8]) -> i32 {
    body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, |b| -i32::from_ne_bytes(b))
}

pub(crate) fn is_end(kind: u16) -> bool {
    kind == NLMSG_ERROR || kind == NLMSG_DONE
}

pub(super) struct Message<'a> {
    kind: u16,
    seq: u32,
    port: u32,
    body: &'a [u8],
}

pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let u32_at = |i: usize| Some(u32::from_ne_bytes(bytes.get(i..i + 4)?.try_into().ok()?));
        let len = u32_at(0)? as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let (seq, port) = (u32_at(8)?, u32_at(12)?);
        let body = bytes.get(16..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Message { kind, seq, port, body })
    })
}

/// The attributes (kind without flags, value) of a message or nest.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(set: &str, key: &[u8], datum: Datum) -> Ruleset {
        let mut r = Ruleset::default();
        r.element(&set.into(), key, datum);
        r
    }

    #[test]
    fn an_unchanged_part_sends_nothing() {
        let part = one("a", &[1, 0, 0, 0], Datum::Nothing);
        let mut change = Change::default();
        let same = part.clone();
        change.between(&part, &same);
        assert!(change.update("t").is_empty());
    }

    #[test]
    fn a_changed_element_is_removed_and_put_in_one_transaction() {
        let (old, new) = (one("a", &[1], Datum::Verdict(Verdict::Drop)), one("a", &[1], Datum::Verdict(Verdict::Accept)));
        let mut change = Change::default();
        change.between(&old, &new);
        let [batch] = &change.update("t")[..] else { panic!("more than one transaction") };
        assert_eq!(batch.about[1..], ["remove 1 elements of set a", "add 1 elements of set a"]);
    }

    /// Whether it follows the old element or the new one, a packet finds the chain whole.
    #[test]
    fn a_chain_is_there_before_and_after_what_leads_to_it() {
        let to = |chain: &str| {
            let mut part = one("a", &[1], Datum::Verdict(Verdict::Goto(chain.into())));
            part.chains.insert(chain.into(), Chain { hook: None, rules: vec![vec![Expr::Counter]] });
            part
        };
        let (old, new) = (to("three"), to("two"));
        let mut change = Change::default();
        change.between(&old, &new);
        let about: Vec<_> = change.update("t").into_iter().map(|batch| batch.about[1..].to_vec()).collect();
        let expected = [
            ["create chain two", "add a rule to chain two"],
            ["remove 1 elements of set a", "add 1 elements of set a"],
            ["empty chain three", "delete chain three"],
        ];
        assert_eq!(about, expected);
    }

    #[test]
    fn many_elements_are_cut_into_lists_below_the_attribute_limit() {
        let mut part = Ruleset::default();
        for i in 0..5000u32 {
            part.element(&"m".into(), i.to_be_bytes(), Datum::Value(Box::new([0; 8])));
        }
        let empty = Ruleset::default();
        let mut change = Change::default();
        change.between(&empty, &part);
        let [batch] = &change.update("t")[..] else { panic!("more than one transaction") };
        assert!(batch.about.len() > 3, "{:?}", batch.about);
        let flags = messages(&batch.out.bytes).filter(|m| m.kind == NFT | NEWSETELEM).count();
        assert_eq!(flags, batch.about.len() - 1);
    }
}
