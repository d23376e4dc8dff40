//! Pure: resource amounts, and what is requested on each node.

use std::collections::{BTreeSet, HashMap};

use super::pod::{PodFacts, Port};
use crate::api::object::Name;
use crate::api::quantity::Quantity;
use crate::api::value::Value;

/// Amounts by resource: cpu in thousandths, everything else in whole units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pub cpu: i64,
    pub memory: i64,
    pub storage: i64,
    pub pods: i64,
    /// Extended and huge-page resources, sorted by name.
    pub others: Vec<(String, i64)>,
}

impl Amounts {
    /// From a resource list such as `requests` or `allocatable`.
    pub fn of(list: Option<&Value>) -> Amounts {
        let mut amounts = Amounts::default();
        for (name, quantity) in list.and_then(Value::as_map).into_iter().flat_map(|m| m.iter()) {
            let Some(quantity) = quantity.as_str().and_then(|q| Quantity::parse(q).ok()) else { continue };
            let whole = i64::try_from(quantity.value()).unwrap_or(i64::MAX);
            match name {
                "cpu" => amounts.cpu = i64::try_from(quantity.milli_value()).unwrap_or(i64::MAX),
                "memory" => amounts.memory = whole,
                "ephemeral-storage" => amounts.storage = whole,
                "pods" => amounts.pods = whole,
                other => amounts.others.push((other.to_string(), whole)),
            }
        }
        amounts
    }

    pub fn other(&self, name: &str) -> i64 {
        self.others.iter().find(|(n, _)| n == name).map_or(0, |(_, v)| *v)
    }

    pub fn add(&mut self, more: &Amounts) {
        self.merge(more, |a, b| a.saturating_add(b));
    }

    pub fn sub(&mut self, less: &Amounts) {
        self.merge(less, |a, b| a.saturating_sub(b));
        self.others.retain(|(_, v)| *v != 0);
    }

    /// The larger of both, by resource.
    pub fn raise(&mut self, to: &Amounts) {
        self.merge(to, i64::max);
    }

    /// Takes over what `by` states.
    pub fn override_with(&mut self, by: &Amounts) {
        self.merge(by, |a, b| if b != 0 { b } else { a });
    }

    fn merge(&mut self, with: &Amounts, f: impl Fn(i64, i64) -> i64) {
        self.cpu = f(self.cpu, with.cpu);
        self.memory = f(self.memory, with.memory);
        self.storage = f(self.storage, with.storage);
        self.pods = f(self.pods, with.pods);
        for (name, value) in &with.others {
            match self.others.binary_search_by(|(n, _)| n.cmp(name)) {
                Ok(i) => self.others[i].1 = f(self.others[i].1, *value),
                Err(i) => self.others.insert(i, (name.clone(), f(0, *value))),
            }
        }
    }
}

/// What is requested on each node, kept incrementally.
#[derive(Default)]
pub struct Usage {
    nodes: HashMap<String, OnNode>,
    /// Where each counted pod is counted.
    placed: HashMap<Name, Placed>,
    /// Counted pods with required anti-affinity.
    anti_affinity: BTreeSet<Name>,
    /// Pods without a node that are to get one as soon as there is room on it.
    nominated: BTreeSet<Name>,
}

/// The sums of one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OnNode {
    pub requests: Amounts,
    /// Requests with upstream's stand-ins for containers that state none: what scoring uses.
    pub scored_cpu: i64,
    pub scored_memory: i64,
    pub pods: i64,
    pub ports: Vec<Port>,
}

struct Placed {
    node: String,
    requests: Amounts,
    ports: Vec<Port>,
    assumed: bool,
}

const SCORED_CPU: i64 = 100;
const SCORED_MEMORY: i64 = 200 << 20;

/// Requests as scoring sees them.
pub fn scored(requests: &Amounts) -> (i64, i64) {
    let cpu = if requests.cpu == 0 { SCORED_CPU } else { requests.cpu };
    let memory = if requests.memory == 0 { SCORED_MEMORY } else { requests.memory };
    (cpu, memory)
}

impl Usage {
    pub fn on(&self, node: &str) -> Option<&OnNode> {
        self.nodes.get(node)
    }

    /// Where the pod counts, bound or about to be.
    pub fn node_of(&self, pod: &Name) -> Option<&str> {
        self.placed.get(pod).map(|p| p.node.as_str())
    }

    /// Counted pods with required anti-affinity: newcomers are checked against them.
    pub fn anti_affinity(&self) -> impl Iterator<Item = &Name> {
        self.anti_affinity.iter()
    }

    /// Pods room is being made for: nobody less important may take it.
    pub fn nominated(&self) -> impl Iterator<Item = &Name> {
        self.nominated.iter()
    }

    /// Pods that are about to be bound to a node.
    pub fn assumed(&self) -> impl Iterator<Item = (&Name, &str)> {
        self.placed.iter().filter(|(_, p)| p.assumed).map(|(name, p)| (name, p.node.as_str()))
    }

    pub(super) fn set(&mut self, pod: &Name, facts: &PodFacts) {
        // A binding under way stays counted until the watch shows it.
        if facts.node.is_empty() && facts.deletion.is_none() && self.placed.get(pod).is_some_and(|p| p.assumed) {
            return;
        }
        self.remove(pod);
        if !facts.node.is_empty() && !facts.is_over() {
            self.place(pod, &facts.node, facts, false);
        } else if !facts.nominated.is_empty() && facts.is_active() {
            self.nominated.insert(pod.clone());
        }
    }

    pub(super) fn assume(&mut self, pod: &Name, node: &str, facts: &PodFacts) {
        self.remove(pod);
        self.place(pod, node, facts, true);
    }

    pub(super) fn forget(&mut self, pod: &Name) {
        if self.placed.get(pod).is_some_and(|p| p.assumed) {
            self.remove(pod);
        }
    }

    fn place(&mut self, pod: &Name, node: &str, facts: &PodFacts, assumed: bool) {
        let on = self.nodes.entry(node.to_string()).or_default();
        on.requests.add(&facts.requests);
        let (cpu, memory) = scored(&facts.requests);
        on.scored_cpu += cpu;
        on.scored_memory += memory;
        on.pods += 1;
        on.ports.extend(facts.host_ports.iter().cloned());
        if facts.has_anti_affinity {
            self.anti_affinity.insert(pod.clone());
        }
        let placed = Placed { node: node.to_string(), requests: facts.requests.clone(), ports: facts.host_ports.clone(), assumed };
        self.placed.insert(pod.clone(), placed);
    }

    pub(super) fn remove(&mut self, pod: &Name) {
        self.nominated.remove(pod);
        let Some(placed) = self.placed.remove(pod) else { return };
        self.anti_affinity.remove(pod);
        let Some(on) = self.nodes.get_mut(&placed.node) else { return };
        on.requests.sub(&placed.requests);
        let (cpu, memory) = scored(&placed.requests);
        on.scored_cpu -= cpu;
        on.scored_memory -= memory;
        on.pods -= 1;
        for port in &placed.ports {
            if let Some(i) = on.ports.iter().position(|p| p == port) {
                on.ports.swap_remove(i);
            }
        }
        if on.pods == 0 {
            self.nodes.remove(&placed.node);
        }
    }
}
