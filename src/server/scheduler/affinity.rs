//! Pure: pod affinity, anti-affinity and topology spread.
//!
//! [`Terms`] is made once per decision: the pods that matter are counted by topology value, so that checking a node is a
//! look-up per term.

use std::collections::{BTreeMap, BTreeSet};

use super::filter::{Eligible, Reason};
use crate::api::resource::{NAMESPACES, NODES, PODS};
use crate::api::value::Value;
use crate::api::world::{Row, World};
use crate::server::controllers::selector::Selector;

/// What other pods mean for this one.
#[derive(Default)]
pub struct Terms {
    affinity: Vec<Required>,
    anti_affinity: Vec<Required>,
    /// (topology key, value) pairs that pods already there do not share with this one.
    forbidden: BTreeSet<(String, String)>,
    spread: Vec<Spread>,
    preferred: Vec<(i64, Required)>,
}

struct Required {
    key: String,
    values: BTreeSet<String>,
    /// No pod matches yet but the pod itself: the first of its kind may go anywhere.
    first: bool,
}

struct Spread {
    key: String,
    max_skew: i64,
    /// Matching pods by topology value; values without any are there with zero.
    counts: BTreeMap<String, i64>,
    own: i64,
    least: i64,
}

/// One affinity term.
struct Term {
    key: String,
    selector: Selector,
    namespaces: Option<BTreeSet<String>>,
}

impl Term {
    fn of(world: &World, namespace: &str, term: &Value) -> Term {
        let mut names: BTreeSet<String> = term.list_at(&["namespaces"]).iter().filter_map(Value::as_str).map(str::to_string).collect();
        let mut namespaces = None;
        match term.at(&["namespaceSelector"]) {
            Some(all) if all.as_map().is_some_and(|m| m.is_empty()) => {}
            Some(selector) => {
                let selector = Selector::of(Some(selector));
                names.extend(world.all(&NAMESPACES).filter(|n| selector.matches(&n.labels)).map(|n| n.name.name.clone()));
                namespaces = Some(names);
            }
            None => {
                if names.is_empty() {
                    names.insert(namespace.to_string());
                }
                namespaces = Some(names);
            }
        }
        Term { key: term.str_at(&["topologyKey"]).into(), selector: Selector::of(term.at(&["labelSelector"])), namespaces }
    }

    fn matches(&self, pod: &Row) -> bool {
        self.namespaces.as_ref().is_none_or(|names| names.contains(&pod.name.namespace)) && self.selector.matches(&pod.labels)
    }

    /// The topology values where matching pods are, other than `but`.
    fn values(&self, world: &World, but: &Row) -> BTreeSet<String> {
        let mut values = BTreeSet::new();
        for pod in self.candidates(world).filter(|pod| pod.name != but.name && self.matches(pod)) {
            values.extend(topology(world, pod, &self.key));
        }
        values
    }

    fn candidates<'a>(&'a self, world: &'a World) -> Box<dyn Iterator<Item = &'a Row> + 'a> {
        match &self.namespaces {
            Some(names) => Box::new(names.iter().flat_map(|n| world.within(&PODS, n)).map(|row| &**row)),
            None => Box::new(world.all(&PODS).map(|row| &**row)),
        }
    }
}

/// The value of a topology key on the node a pod counts on.
fn topology(world: &World, pod: &Row, key: &str) -> Option<String> {
    let node = world.usage().node_of(&pod.name)?;
    world.find(&NODES, "", node)?.label(key).map(str::to_string)
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

impl Terms {
    pub fn of(world: &World, row: &Row, pod: &Value, eligible: &Eligible) -> Terms {
        let mut terms = Terms { forbidden: forbidden(world, row), ..Terms::default() };
        // Soft ones are left to the spreading score.
        let hard = |c: &&Value| c.str_at(&["whenUnsatisfiable"]) == "DoNotSchedule";
        let hard: Vec<&Value> = pod.list_at(&["spec", "topologySpreadConstraints"]).iter().filter(hard).collect();
        let keys: Vec<&str> = hard.iter().map(|c| c.str_at(&["topologyKey"])).collect();
        terms.spread = hard.iter().map(|c| Spread::of(world, row, c, &keys, eligible)).collect();
        let Some(affinity) = pod.at(&["spec", "affinity"]) else { return terms };
        let namespace = row.name.namespace.as_str();
        let required = |kind: &str| -> Vec<Required> {
            let list = affinity.list_at(&[kind, REQUIRED]);
            list.iter().map(|t| Required::of(world, row, &Term::of(world, namespace, t))).collect()
        };
        terms.affinity = required("podAffinity");
        terms.anti_affinity = required("podAntiAffinity");
        for (kind, sign) in [("podAffinity", 1), ("podAntiAffinity", -1)] {
            for weighted in affinity.list_at(&[kind, PREFERRED]) {
                let Some(term) = weighted.at(&["podAffinityTerm"]) else { continue };
                let weight = sign * weighted.i64_at(&["weight"]).unwrap_or(1);
                terms.preferred.push((weight, Required::of(world, row, &Term::of(world, namespace, term))));
            }
        }
        terms
    }

    /// The first rule the node breaks.
    pub fn check(&self, node: &Row) -> Option<Reason> {
        for spread in &self.spread {
            match node.label(&spread.key) {
                None => return Some(Reason::SpreadLabel),
                Some(value) => {
                    let here = spread.counts.get(value).copied().unwrap_or(0);
                    if here + spread.own - spread.least > spread.max_skew {
                        return Some(Reason::Spread);
                    }
                }
            }
        }
        if !self.affinity.iter().all(|term| term.allows(node)) {
            return Some(Reason::Affinity);
        }
        if self.anti_affinity.iter().any(|term| term.holds(node)) {
            return Some(Reason::AntiAffinity);
        }
        let barred = |(key, value): &(String, String)| node.label(key) == Some(value);
        self.forbidden.iter().any(barred).then_some(Reason::ExistingAntiAffinity)
    }

    /// The summed weights of preferred terms.
    pub fn preference(&self, node: &Row) -> i64 {
        self.preferred.iter().filter(|(_, term)| term.holds(node)).map(|(weight, _)| weight).sum()
    }
}

impl Required {
    fn of(world: &World, row: &Row, term: &Term) -> Required {
        let values = term.values(world, row);
        Required { key: term.key.clone(), first: values.is_empty() && term.matches(row), values }
    }

    /// A matching pod is in the node's domain.
    fn holds(&self, node: &Row) -> bool {
        node.label(&self.key).is_some_and(|value| self.values.contains(value))
    }

    fn allows(&self, node: &Row) -> bool {
        self.holds(node) || self.first && node.label(&self.key).is_some()
    }
}

impl Spread {
    /// Only nodes with all the keys count.
    fn of(world: &World, row: &Row, constraint: &Value, keys: &[&str], eligible: &Eligible) -> Spread {
        let key = constraint.str_at(&["topologyKey"]).to_string();
        let mut selector = Selector::of(constraint.at(&["labelSelector"]));
        for label in constraint.list_at(&["matchLabelKeys"]).iter().filter_map(Value::as_str) {
            if let Some(value) = row.label(label) {
                selector = selector.and(label, value);
            }
        }
        let counts_in = |node: &Row| keys.iter().all(|k| node.label(k).is_some()) && eligible.holds(node, constraint);
        let nodes = world.all(&NODES).filter(|node| counts_in(node)).filter_map(|node| node.label(&key));
        let mut counts: BTreeMap<String, i64> = nodes.map(|value| (value.to_string(), 0)).collect();
        let pods = world.within(&PODS, &row.name.namespace).filter(|pod| !pod.deleting && selector.matches(&pod.labels));
        for pod in pods {
            let node = world.usage().node_of(&pod.name).and_then(|node| world.find(&NODES, "", node));
            if let Some(value) = node.filter(|node| counts_in(node)).and_then(|node| node.label(&key)) {
                *counts.entry(value.to_string()).or_insert(0) += 1;
            }
        }
        let domains = counts.len() as i64;
        let few = constraint.i64_at(&["minDomains"]).is_some_and(|min| domains < min);
        let least = if few { 0 } else { counts.values().min().copied().unwrap_or(0) };
        let own = i64::from(selector.matches(&row.labels));
        Spread { key, max_skew: constraint.i64_at(&["maxSkew"]).unwrap_or(1), counts, own, least }
    }
}

/// Domains that pods with anti-affinity against this one hold.
fn forbidden(world: &World, row: &Row) -> BTreeSet<(String, String)> {
    let mut forbidden = BTreeSet::new();
    for name in world.usage().anti_affinity() {
        let Some(pod) = world.find(&PODS, &name.namespace, &name.name).filter(|pod| pod.name != row.name) else { continue };
        let value = pod.value();
        for term in value.list_at(&["spec", "affinity", "podAntiAffinity", REQUIRED]) {
            let term = Term::of(world, &pod.name.namespace, term);
            if term.matches(row)
                && let Some(there) = topology(world, pod, &term.key)
            {
                forbidden.insert((term.key, there));
            }
        }
    }
    forbidden
}
