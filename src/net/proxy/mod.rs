//! Keeps the node's nftables table in agreement with Services and EndpointSlices.
//!
//! Keyed by owner: each Service, the built-in services and the pods of this node own a fragment ([`rules`]). What changed is
//! recomputed, whose frontends collide is settled here (first come), and all changes of one turn (at most [`TURN`]) are one
//! kernel transaction, or three where chains come or go. The first transaction waits for both lists, so that a restarted daemon never removes what it has
//! not seen yet. If somebody else damages the table it is put back whole. One task owns everything.

pub mod conntrack;
pub mod rules;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use crate::api::object::Name;
use crate::task::Shutdown;

use super::monitor::{Heard, Monitor};
use super::nft::{self, Change, Identity, Ruleset, Table};
use super::{HostPort, InEffect, Input, Kind, Protocol};
use conntrack::Stale;
use rules::{Endpoint, Facts, Fragment, Frontend, Service, Slice};

/// How long changes are collected before they are applied.
pub const TURN: Duration = Duration::from_millis(10);
const RETRY_MS_MIN: u64 = 500;
const RETRY_MS_MAX: u64 = 30_000;

/// Who a fragment belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// The node's resolver behind the cluster's DNS address.
    Builtin,
    /// Addresses and host ports of one pod of this node, by uid.
    Pod(String),
    Service(Name),
}

/// A local change, told by [`super::Network`].
#[derive(Clone, Debug, PartialEq)]
pub enum Local {
    Pod(String, Ipv4Addr, Vec<HostPort>),
    PodGone(String),
}

/// Everything known, and what the kernel holds of it. Pure: no clock, no socket.
pub struct State {
    facts: Facts,
    skeleton: Ruleset,
    builtin: Vec<(Frontend, Endpoint)>,
    services: BTreeMap<Name, Service>,
    slices: BTreeMap<Name, Slice>,
    slices_of: BTreeMap<Name, BTreeSet<Name>>,
    pods: BTreeMap<String, (Ipv4Addr, Vec<HostPort>)>,
    fragments: BTreeMap<Owner, Fragment>,
    shared: Ruleset,
    /// How many lists need each slot class.
    classes: BTreeMap<(rules::Bank, usize), usize>,
    claims: HashMap<Frontend, Owner>,
    waiting: HashMap<Frontend, BTreeSet<Owner>>,
    dirty: BTreeSet<Owner>,
}

/// What one turn does.
pub struct Turn {
    /// Transactions, one after the other.
    pub batches: Vec<nft::Batch>,
    pub stale: Vec<Stale>,
    pub fragments: usize,
}

impl State {
    pub fn new(facts: Facts, builtin: Vec<(Frontend, Endpoint)>) -> State {
        State {
            skeleton: rules::skeleton(&facts),
            facts,
            builtin,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slices_of: BTreeMap::new(),
            pods: BTreeMap::new(),
            fragments: BTreeMap::new(),
            shared: Ruleset::default(),
            classes: BTreeMap::new(),
            claims: HashMap::new(),
            waiting: HashMap::new(),
            dirty: BTreeSet::from([Owner::Builtin]),
        }
    }

    pub fn set_service(&mut self, name: Name, service: Option<Service>) {
        let same = self.services.get(&name) == service.as_ref();
        match service {
            Some(service) => self.services.insert(name.clone(), service),
            None => self.services.remove(&name),
        };
        if !same {
            self.dirty.insert(Owner::Service(name));
        }
    }

    pub fn set_slice(&mut self, name: Name, slice: Option<Slice>) {
        let old = self.slices.get(&name);
        if old == slice.as_ref() {
            return;
        }
        if let Some(service) = old.map(|s| s.service.clone()) {
            if let Some(names) = self.slices_of.get_mut(&service) {
                names.remove(&name);
                if names.is_empty() {
                    self.slices_of.remove(&service);
                }
            }
            self.dirty.insert(Owner::Service(service));
        }
        match slice {
            Some(slice) => {
                self.slices_of.entry(slice.service.clone()).or_default().insert(name.clone());
                self.dirty.insert(Owner::Service(slice.service.clone()));
                self.slices.insert(name, slice);
            }
            None => {
                self.slices.remove(&name);
            }
        }
    }

    pub fn set_local(&mut self, local: Local) {
        match local {
            Local::Pod(uid, ip, ports) => {
                self.pods.insert(uid.clone(), (ip, ports));
                self.dirty.insert(Owner::Pod(uid));
            }
            Local::PodGone(uid) => {
                self.pods.remove(&uid);
                self.dirty.insert(Owner::Pod(uid));
            }
        }
    }

    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    fn wanted(&self, owner: &Owner) -> BTreeSet<Frontend> {
        match owner {
            Owner::Builtin => self.builtin.iter().map(|(frontend, _)| *frontend).collect(),
            Owner::Pod(uid) => {
                let ports = self.pods.get(uid).map(|(ip, ports)| rules::host_ports(*ip, ports));
                ports.into_iter().flatten().map(|(frontend, _)| frontend).collect()
            }
            Owner::Service(name) => self.services.get(name).map(Service::frontends).unwrap_or_default(),
        }
    }

    /// Frees what dirty owners no longer want; those who waited for it become dirty, too.
    fn release(&mut self) {
        let owners: Vec<Owner> = self.dirty.iter().cloned().collect();
        for owner in owners {
            let wanted = self.wanted(&owner);
            let held = self.fragments.get(&owner).map(|f| f.lists.keys().map(|(_, frontend)| *frontend).collect::<BTreeSet<_>>());
            for frontend in held.unwrap_or_default().difference(&wanted) {
                if self.claims.get(frontend) == Some(&owner) {
                    self.claims.remove(frontend);
                    self.dirty.extend(self.waiting.remove(frontend).unwrap_or_default());
                }
            }
        }
    }

    /// Claims what `owner` wants; what belongs to others comes back.
    fn claim(&mut self, owner: &Owner) -> BTreeSet<Frontend> {
        let mut denied = BTreeSet::new();
        for frontend in self.wanted(owner) {
            let holder = self.claims.entry(frontend).or_insert_with(|| owner.clone());
            if holder != owner {
                if *holder != Owner::Builtin {
                    warn!(?owner, ?holder, ?frontend, "two want the same frontend, the first keeps it");
                }
                self.waiting.entry(frontend).or_default().insert(owner.clone());
                denied.insert(frontend);
            }
        }
        denied
    }

    fn compute(&self, owner: &Owner, denied: &BTreeSet<Frontend>) -> Option<Fragment> {
        match owner {
            Owner::Builtin => Some(rules::fixed(&self.builtin)),
            Owner::Pod(uid) => {
                let (ip, ports) = self.pods.get(uid)?;
                let mut allowed = rules::host_ports(*ip, ports);
                allowed.retain(|(frontend, _)| !denied.contains(frontend));
                let mut fragment = rules::fixed(&allowed);
                fragment.rules.elements.append(&mut rules::pods(std::iter::once(*ip)).rules.elements);
                Some(fragment)
            }
            Owner::Service(name) => {
                let service = self.services.get(name)?;
                let slices = self.slices_of.get(name).into_iter().flatten();
                let slices: Vec<&Slice> = slices.filter_map(|slice| self.slices.get(slice)).collect();
                let nothing = Fragment::default();
                let previous = self.fragments.get(owner).unwrap_or(&nothing);
                Some(rules::fragment(service, &slices, &self.facts, denied, previous))
            }
        }
    }

    /// Recomputes what is dirty. `table` names the table; `whole` asks for a transaction that replaces all of it.
    pub fn turn(&mut self, table: &str, whole: bool) -> Turn {
        let nothing = Fragment::default();
        let mut old: Vec<Fragment> = Vec::new();
        let mut changed: Vec<Owner> = Vec::new();
        self.release();
        for owner in std::mem::take(&mut self.dirty) {
            let denied = self.claim(&owner);
            let new = self.compute(&owner, &denied);
            let before = match new {
                Some(new) => self.fragments.insert(owner.clone(), new),
                None => self.fragments.remove(&owner),
            };
            old.push(before.unwrap_or_default());
            changed.push(owner);
        }
        let mut stale = Vec::new();
        for (owner, before) in changed.iter().zip(&old) {
            let after = self.fragments.get(owner).unwrap_or(&nothing);
            before.classes().for_each(|class| uncount(&mut self.classes, class));
            after.classes().for_each(|class| *self.classes.entry(class).or_insert(0) += 1);
            stale_flows(before, after, &mut stale);
        }
        let shared = rules::shared(&self.classes.keys().copied().collect());
        let old_shared = std::mem::replace(&mut self.shared, shared);
        let batches = if whole {
            let parts = [&self.skeleton, &self.shared].into_iter().chain(self.fragments.values().map(|f| &f.rules));
            vec![Change::whole(parts).replacement(table)]
        } else {
            let mut change = Change::default();
            change.between(&old_shared, &self.shared);
            for (owner, before) in changed.iter().zip(&old) {
                change.between(&before.rules, &self.fragments.get(owner).unwrap_or(&nothing).rules);
            }
            change.update(table)
        };
        Turn { batches, stale, fragments: changed.len() }
    }
}

fn uncount(classes: &mut BTreeMap<(rules::Bank, usize), usize>, class: (rules::Bank, usize)) {
    if let Some(n) = classes.get_mut(&class) {
        *n -= 1;
        if *n == 0 {
            classes.remove(&class);
        }
    }
}

/// Datagram flows that remember an endpoint that left, or a frontend without endpoints that has some now.
fn stale_flows(before: &Fragment, after: &Fragment, stale: &mut Vec<Stale>) {
    let remembers = |frontend: &Frontend| frontend.protocol != Protocol::Tcp;
    for ((bank, frontend), list) in before.lists.iter().filter(|((_, f), _)| remembers(f)) {
        let now = after.lists.get(&(*bank, *frontend)).map_or(&[][..], |l| &l.endpoints);
        let left = list.endpoints.iter().filter(|e| !now.contains(e));
        stale.extend(left.map(|endpoint| Stale { frontend: *frontend, endpoint: Some(*endpoint) }));
    }
    for ((bank, frontend), list) in after.lists.iter().filter(|((_, f), _)| remembers(f)) {
        let had = before.lists.get(&(*bank, *frontend)).is_some_and(|l| !l.endpoints.is_empty());
        if !had && !list.endpoints.is_empty() {
            stale.push(Stale { frontend: *frontend, endpoint: None });
        }
    }
}

/// The one task.
pub struct Proxy {
    state: State,
    table: Arc<Mutex<Table>>,
    name: nft::Name,
    own_port: u32,
    identity: Option<Identity>,
    monitor: Monitor,
    inputs: mpsc::Receiver<Input>,
    locals: mpsc::Receiver<Local>,
    listed: Listed,
    /// How far the state is, and how far the kernel is known to be.
    heard: InEffect,
    programmed: watch::Sender<InEffect>,
    /// The kernel may differ from the state: the next turn replaces everything.
    whole: bool,
    retry_ms: u64,
}

/// Which lists are complete, and what the running relist has not confirmed yet.
#[derive(Default)]
struct Listed {
    services: bool,
    slices: bool,
    unseen: HashMap<Kind, BTreeSet<Name>>,
}

impl Proxy {
    /// Opens table and monitor in this thread's network namespace. A missing table is made at once; one that is there is
    /// left as it is until the lists are complete.
    pub async fn new(table: &str, state: State, inputs: mpsc::Receiver<Input>, locals: mpsc::Receiver<Local>) -> Result<Proxy, nft::Error> {
        let monitor = Monitor::open()?;
        let mut table = Table::open(table)?;
        let identity = table.identity()?;
        let (name, own_port) = (table.name().clone(), table.port());
        let table = Arc::new(Mutex::new(table));
        let listed = Listed::default();
        let (heard, programmed) = (InEffect::default(), watch::Sender::default());
        let (whole, retry_ms) = (true, RETRY_MS_MIN);
        let mut proxy =
            Proxy { state, table, name, own_port, identity, monitor, inputs, locals, listed, heard, programmed, whole, retry_ms };
        if proxy.identity.is_none() {
            let turn = proxy.state.turn(&proxy.name, true);
            proxy.identity = proxy.commit(turn).await?;
            proxy.whole = false;
        }
        Ok(proxy)
    }

    /// Tells up to which revisions the kernel has the rules of services and slices.
    pub fn in_effect(&self) -> watch::Receiver<InEffect> {
        self.programmed.subscribe()
    }

    pub async fn run(mut self, shutdown: Shutdown) {
        let mut due: Option<Instant> = None;
        loop {
            let dirty = self.state.is_dirty() || self.whole;
            if !dirty {
                self.programmed.send_if_modified(|told| std::mem::replace(told, self.heard) != self.heard);
            }
            if dirty && self.may_apply() && due.is_none() {
                due = Some(Instant::now() + TURN);
            }
            let turn = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                input = self.inputs.recv() => match input {
                    Some(input) => self.see(input),
                    None => return,
                },
                Some(local) = self.locals.recv() => self.state.set_local(local),
                heard = self.monitor.hear(&self.name, self.own_port) => self.mind(heard).await,
                () = turn => due = self.apply().await,
            }
        }
    }

    /// Local changes apply at once to a table that is ours; replacing one from before a restart waits for the lists.
    fn may_apply(&self) -> bool {
        !self.whole || self.identity.is_none() || (self.listed.services && self.listed.slices)
    }

    fn see(&mut self, input: Input) {
        match input {
            Input::Reset(kind) => {
                let names = match kind {
                    Kind::Service => self.state.services.keys().cloned().collect(),
                    Kind::Slice => self.state.slices.keys().cloned().collect(),
                };
                self.listed.unseen.insert(kind, names);
            }
            Input::Set(kind, name, value) => {
                if let Some(unseen) = self.listed.unseen.get_mut(&kind) {
                    unseen.remove(&name);
                }
                match kind {
                    Kind::Service => self.state.set_service(name, Service::parse(&value)),
                    Kind::Slice => self.state.set_slice(name, Slice::parse(&value)),
                }
            }
            Input::Gone(kind, name) => self.forget(kind, name),
            Input::At(kind, revision) => self.heard.set(kind, revision),
            Input::Synced(kind) => {
                for name in self.listed.unseen.remove(&kind).unwrap_or_default() {
                    self.forget(kind, name);
                }
                match kind {
                    Kind::Service => self.listed.services = true,
                    Kind::Slice => self.listed.slices = true,
                }
            }
        }
    }

    fn forget(&mut self, kind: Kind, name: Name) {
        match kind {
            Kind::Service => self.state.set_service(name, None),
            Kind::Slice => self.state.set_slice(name, None),
        }
    }

    /// Applies one turn; says when to try again if that failed.
    async fn apply(&mut self) -> Option<Instant> {
        let started = Instant::now();
        let turn = self.state.turn(&self.name, self.whole);
        let (fragments, bytes) = (turn.fragments, turn.batches.iter().map(nft::Batch::len).sum::<usize>());
        match self.commit(turn).await {
            Ok(identity) => {
                self.identity = identity;
                self.whole = false;
                self.retry_ms = RETRY_MS_MIN;
                debug!(fragments, bytes, elapsed = ?started.elapsed(), "services programmed");
                None
            }
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                error!(%error, source, retry_ms = self.retry_ms, "cannot program services");
                // What the kernel holds is unknown from here on.
                self.whole = true;
                let at = Instant::now() + Duration::from_millis(self.retry_ms);
                self.retry_ms = (self.retry_ms * 2).min(RETRY_MS_MAX);
                Some(at)
            }
        }
    }

    async fn commit(&self, turn: Turn) -> Result<Option<Identity>, nft::Error> {
        if turn.batches.is_empty() {
            return Ok(self.identity);
        }
        let table = self.table.clone();
        let work = move || {
            let mut table = table.lock().expect("no panic while programming");
            turn.batches.iter().try_for_each(|batch| table.commit(batch))?;
            match conntrack::flush(&turn.stale) {
                Ok(0) => {}
                Ok(flows) => debug!(flows, "stale flows flushed"),
                // The services are right; old flows end by themselves.
                Err(error) => warn!(%error, "cannot flush stale flows"),
            }
            table.identity()
        };
        tokio::task::spawn_blocking(work).await.expect("programming does not panic")
    }

    /// Somebody changed nftables.
    async fn mind(&mut self, heard: Result<Heard, nft::Error>) {
        match heard {
            Ok(Heard::Nothing) => {}
            Ok(Heard::Damage) => {
                info!(table = %self.name, "somebody else changed our table, putting it back");
                self.whole = true;
                self.identity = None;
            }
            Ok(Heard::Lost) => {
                let table = self.table.clone();
                let look = move || table.lock().expect("no panic while looking").identity();
                match tokio::task::spawn_blocking(look).await.expect("looking does not panic") {
                    Ok(identity) if identity == self.identity => {}
                    Ok(_) | Err(_) => {
                        self.whole = true;
                        self.identity = None;
                    }
                }
            }
            Err(error) => error!(%error, "cannot hear of changes to nftables"),
        }
    }
}
