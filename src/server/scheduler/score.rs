//! Pure: which of the fitting nodes is best. Each score is 0 to 100; weights are upstream's.

use std::collections::HashMap;
use std::sync::Arc;

use super::filter::{NodeTerm, Wants};
use crate::api::controller::{Turn, mix};
use crate::api::resource::PODS;
use crate::api::value::Value;
use crate::api::world::{Row, World};
use crate::server::controllers::taint_eviction::tolerates;

const SPREAD_WEIGHT: i64 = 2;
const AFFINITY_WEIGHT: i64 = 2;
const TAINT_WEIGHT: i64 = 3;

/// The best of `nodes`; among equals the seed picks one.
pub fn best<'a>(world: &World, wants: &Wants, nodes: &[&'a Arc<Row>], turn: &Turn) -> Option<&'a Arc<Row>> {
    if nodes.len() <= 1 {
        return nodes.first().copied();
    }
    let affinity = normalized(nodes, |node| preferred(wants, node));
    let taints = normalized(nodes, |node| soft_taints(wants, node));
    let siblings = siblings(world, wants);
    let spread = normalized(nodes, |node| siblings.get(node.name.name.as_str()).copied().unwrap_or(0));
    let pods = normalized(nodes, |node| wants.terms.preference(node));
    let total = |i: usize| {
        let (least, balanced) = resources(world, wants, nodes[i]);
        let repelled = TAINT_WEIGHT * (100 - taints[i]) + SPREAD_WEIGHT * (100 - spread[i]);
        least + balanced + AFFINITY_WEIGHT * (affinity[i] + pods[i]) + repelled
    };
    let scores: Vec<i64> = (0..nodes.len()).map(total).collect();
    let top = *scores.iter().max()?;
    let winners: Vec<usize> = (0..nodes.len()).filter(|i| scores[*i] == top).collect();
    let pick = winners[(mix(turn.seed) % winners.len() as u64) as usize];
    Some(nodes[pick])
}

/// Raw values stretched to 0..=100.
fn normalized(nodes: &[&Arc<Row>], raw: impl Fn(&Row) -> i64) -> Vec<i64> {
    let values: Vec<i64> = nodes.iter().map(|node| raw(node)).collect();
    let (low, high) = (values.iter().min().copied().unwrap_or(0), values.iter().max().copied().unwrap_or(0));
    let low = low.min(0);
    if high == low { vec![0; values.len()] } else { values.into_iter().map(|v| (v - low) * 100 / (high - low)).collect() }
}

/// How much stays free, and how evenly cpu and memory are used.
fn resources(world: &World, wants: &Wants, node: &Row) -> (i64, i64) {
    let have = &node.node().allocatable;
    let (cpu, memory) = crate::api::world::scored(&wants.facts.requests);
    let (used_cpu, used_memory) = world.usage().on(&node.name.name).map_or((0, 0), |on| (on.scored_cpu, on.scored_memory));
    let free = |have: i64, used: i64| if have <= 0 || used > have { 0 } else { (have - used) * 100 / have };
    let least = (free(have.cpu, used_cpu + cpu) + free(have.memory, used_memory + memory)) / 2;
    let real = world.usage().on(&node.name.name).map(|on| &on.requests);
    let share = |have: i64, used: i64| if have <= 0 { 1.0 } else { (used as f64 / have as f64).min(1.0) };
    let a = share(have.cpu, real.map_or(0, |r| r.cpu) + wants.facts.requests.cpu);
    let b = share(have.memory, real.map_or(0, |r| r.memory) + wants.facts.requests.memory);
    let balanced = ((1.0 - ((a - b) / 2.0).abs()) * 100.0) as i64;
    (least, balanced)
}

fn preferred(wants: &Wants, node: &Row) -> i64 {
    let terms = wants.pod.list_at(&["spec", "affinity", "nodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution"]);
    let matching = terms.iter().filter(|t| NodeTerm::of(t.at(&["preference"]).unwrap_or(&Value::Null)).matches(node));
    matching.filter_map(|t| t.i64_at(&["weight"])).sum()
}

fn soft_taints(wants: &Wants, node: &Row) -> i64 {
    let soft = node.node().taints.iter().filter(|t| t.effect == "PreferNoSchedule");
    soft.filter(|taint| !wants.tolerations.iter().any(|t| tolerates(t, taint))).count() as i64
}

/// How many pods of the same controller each node has (or is about to have).
fn siblings<'a>(world: &'a World, wants: &Wants) -> HashMap<&'a str, i64> {
    let mut counts = HashMap::new();
    let Some(owner) = wants.row.controller() else { return counts };
    for pod in world.owned_rows(&owner.uid, &PODS) {
        if let Some(node) = world.usage().node_of(&pod.name) {
            *counts.entry(node).or_insert(0) += 1;
        }
    }
    counts
}
