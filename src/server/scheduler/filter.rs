//! Pure: which nodes can take a pod, and in upstream's words why others cannot.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use super::affinity::Terms;
use crate::api::resource::PODS;
use crate::api::value::Value;
use crate::api::world::{Amounts, PodFacts, Port, Row, Taint, World};
use crate::server::controllers::selector::Selector;
use crate::server::controllers::taint_eviction::tolerates;

/// What a pod asks of a node, read once per decision.
pub struct Wants<'a> {
    pub row: &'a Row,
    pub facts: &'a PodFacts,
    pub pod: &'a Value,
    pub tolerations: &'a [Value],
    choice: NodeChoice,
    pub terms: Terms,
    /// By node: what is kept for pods at least as important.
    reserved: HashMap<String, Reserved>,
}

/// Room being made on a node.
#[derive(Default)]
pub struct Reserved {
    pub requests: Amounts,
    pub pods: i64,
    pub ports: Vec<Port>,
}

/// Node selector and required node affinity.
pub struct NodeChoice {
    selector: Selector,
    /// One of these has to match. A required field match of the name is how daemon sets pin their pods.
    terms: Option<Vec<NodeTerm>>,
}

impl NodeChoice {
    fn of(pod: &Value) -> NodeChoice {
        let required = pod.at(&["spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"]);
        NodeChoice {
            selector: Selector::of_labels(pod.at(&["spec", "nodeSelector"]).or(Some(&Value::map()))),
            terms: required.map(|r| r.list_at(&["nodeSelectorTerms"]).iter().map(NodeTerm::of).collect()),
        }
    }

    pub fn matches(&self, node: &Row) -> bool {
        self.selector.matches(&node.labels) && self.terms.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(node)))
    }
}

/// One `nodeSelectorTerm`.
pub struct NodeTerm {
    labels: Selector,
    names: Selector,
}

impl NodeTerm {
    pub fn of(term: &Value) -> NodeTerm {
        NodeTerm {
            labels: Selector::of_requirements(term.list_at(&["matchExpressions"])),
            names: Selector::of_requirements(term.list_at(&["matchFields"])),
        }
    }

    /// An empty term matches nothing.
    pub fn matches(&self, node: &Row) -> bool {
        if self.labels.is_empty() && self.names.is_empty() {
            return false;
        }
        let name = [("metadata.name".to_string(), node.name.name.clone())];
        self.labels.matches(&node.labels) && (self.names.is_empty() || self.names.matches(&name))
    }
}

impl<'a> Wants<'a> {
    pub fn of(world: &World, row: &'a Row, pod: &'a Value) -> Wants<'a> {
        let choice = NodeChoice::of(pod);
        let tolerations = pod.list_at(&["spec", "tolerations"]);
        let terms = Terms::of(world, row, pod, &Eligible { choice: &choice, tolerations });
        Wants { row, facts: row.pod(), pod, tolerations, choice, terms, reserved: reserved(world, row) }
    }

    /// What is used on a node, as far as this pod is concerned: what runs there, and what is kept for others.
    pub fn used(&self, world: &World, node: &Row) -> Reserved {
        let on = world.usage().on(&node.name.name);
        let mut used =
            on.map_or_else(Reserved::default, |on| Reserved { requests: on.requests.clone(), pods: on.pods, ports: on.ports.clone() });
        if let Some(kept) = self.reserved.get(&node.name.name) {
            used.requests.add(&kept.requests);
            used.pods += kept.pods;
            used.ports.extend(kept.ports.iter().cloned());
        }
        used
    }
}

fn reserved(world: &World, row: &Row) -> HashMap<String, Reserved> {
    let mut by_node: HashMap<String, Reserved> = HashMap::new();
    let others = world.usage().nominated().filter(|name| **name != row.name);
    for pod in others.filter_map(|name| world.find(&PODS, &name.namespace, &name.name)) {
        let facts = pod.pod();
        if facts.priority >= row.pod().priority {
            let kept = by_node.entry(facts.nominated.clone()).or_default();
            kept.requests.add(&facts.requests);
            kept.pods += 1;
            kept.ports.extend(facts.host_ports.iter().cloned());
        }
    }
    by_node
}

/// Why a node cannot take a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    Unschedulable,
    Taint,
    NodeAffinity,
    Ports,
    TooManyPods,
    Insufficient(String),
    Affinity,
    AntiAffinity,
    ExistingAntiAffinity,
    Spread,
    SpreadLabel,
}

impl Reason {
    /// Whether removing pods from the node could help.
    pub fn is_resolvable(&self) -> bool {
        match self {
            Reason::Ports
            | Reason::TooManyPods
            | Reason::Insufficient(_)
            | Reason::AntiAffinity
            | Reason::ExistingAntiAffinity
            | Reason::Spread => true,
            Reason::Unschedulable | Reason::Taint | Reason::NodeAffinity | Reason::Affinity | Reason::SpreadLabel => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Unschedulable => "node(s) were unschedulable",
            Reason::Taint => "node(s) had untolerated taint(s)",
            Reason::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Reason::Ports => "node(s) didn't have free ports for the requested pod ports",
            Reason::TooManyPods => "Too many pods",
            Reason::Insufficient(resource) => return write!(f, "Insufficient {resource}"),
            Reason::Affinity => "node(s) didn't match pod affinity rules",
            Reason::AntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Reason::ExistingAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
            Reason::Spread => "node(s) didn't match pod topology spread constraints",
            Reason::SpreadLabel => "node(s) didn't match pod topology spread constraints (missing required label)",
        })
    }
}

/// The reasons of the first filter that refuses the node; none if it can take the pod.
pub fn check(world: &World, wants: &Wants, node: &Row) -> Vec<Reason> {
    let facts = node.node();
    if facts.unschedulable && !wants.tolerations.iter().any(|t| tolerates(t, &unschedulable_taint())) {
        return vec![Reason::Unschedulable];
    }
    if is_tainted(node, wants.tolerations) {
        return vec![Reason::Taint];
    }
    if !wants.choice.matches(node) {
        return vec![Reason::NodeAffinity];
    }
    let on = world.usage().on(&node.name.name);
    let none = Amounts::default();
    let whole;
    // Hardly ever is anything kept for others: then nothing needs to be copied.
    let (used, pods, ports) = match (wants.reserved.contains_key(&node.name.name), on) {
        (true, _) => {
            whole = wants.used(world, node);
            (&whole.requests, whole.pods, &whole.ports[..])
        }
        (false, Some(on)) => (&on.requests, on.pods, &on.ports[..]),
        (false, None) => (&none, 0, &[][..]),
    };
    if wants.facts.host_ports.iter().any(|port| ports.iter().any(|taken| taken.clashes(port))) {
        return vec![Reason::Ports];
    }
    let short = shortages(&wants.facts.requests, &facts.allocatable, used, pods);
    if !short.is_empty() {
        return short;
    }
    wants.terms.check(node).into_iter().collect()
}

fn unschedulable_taint() -> Taint {
    Taint { key: "node.kubernetes.io/unschedulable".into(), value: String::new(), effect: "NoSchedule".into(), added: String::new() }
}

/// Some taint of the node bars pods with these tolerations.
fn is_tainted(node: &Row, tolerations: &[Value]) -> bool {
    let bars = |taint: &&Taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute";
    node.node().taints.iter().filter(bars).any(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
}

/// Which nodes count when pods are spread.
pub struct Eligible<'a> {
    choice: &'a NodeChoice,
    tolerations: &'a [Value],
}

impl Eligible<'_> {
    /// As the constraint's node policies say.
    pub fn holds(&self, node: &Row, constraint: &Value) -> bool {
        let by_choice = constraint.str_at(&["nodeAffinityPolicy"]) == "Ignore" || self.choice.matches(node);
        let by_taints = constraint.str_at(&["nodeTaintsPolicy"]) != "Honor" || !is_tainted(node, self.tolerations);
        by_choice && by_taints
    }
}

/// What is missing for these requests beside what is used.
pub fn shortages(wanted: &Amounts, allocatable: &Amounts, used: &Amounts, pods: i64) -> Vec<Reason> {
    let mut short = Vec::new();
    if pods + 1 > allocatable.pods {
        short.push(Reason::TooManyPods);
    }
    let mut check = |name: &str, want: i64, have: i64, taken: i64| {
        if want > 0 && want > have - taken {
            short.push(Reason::Insufficient(name.to_string()));
        }
    };
    check("cpu", wanted.cpu, allocatable.cpu, used.cpu);
    check("memory", wanted.memory, allocatable.memory, used.memory);
    check("ephemeral-storage", wanted.storage, allocatable.storage, used.storage);
    for (name, want) in &wanted.others {
        check(name, *want, allocatable.other(name), used.other(name));
    }
    short
}

/// `0/2 nodes are available: 1 Insufficient cpu, 1 Too many pods.`
pub fn message(total: usize, refused: &[(&Arc<Row>, Vec<Reason>)]) -> String {
    let reasons = refused.iter().flat_map(|(_, reasons)| reasons.iter().map(Reason::to_string));
    format!("0/{total} nodes are available: {}.", histogram(reasons))
}

/// Counts of texts, as upstream sorts and joins them.
pub fn histogram(texts: impl Iterator<Item = String>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for text in texts {
        *counts.entry(text).or_insert(0) += 1;
    }
    let mut parts: Vec<String> = counts.into_iter().map(|(text, n)| format!("{n} {text}")).collect();
    parts.sort();
    parts.join(", ")
}
