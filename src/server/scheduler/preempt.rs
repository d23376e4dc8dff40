//! Pure: whom a more important pod may replace: on the node where that costs least.
//!
//! Lower-priority pods of a node are removed in thought until the pod fits, then put back one by one, most important first,
//! where they still fit. The node whose most important victim matters least wins, then the one with fewest victims.

use std::sync::Arc;

use super::filter::{Reason, Reserved, Wants, histogram, shortages};
use crate::api::controller::Key;
use crate::api::world::{Amounts, Port, Row, World};

const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// A pod to be replaced.
#[derive(Clone, Debug, PartialEq)]
pub struct Victim {
    pub key: Key,
    pub uid: String,
}

/// The node and the victims, or why not, as the message says it.
pub fn plan(world: &World, wants: &Wants, refused: &[(&Arc<Row>, Vec<Reason>)]) -> Result<(String, Vec<Victim>), String> {
    if wants.pod.str_at(&["spec", "preemptionPolicy"]) == "Never" {
        return Err("preemption: not eligible due to preemptionPolicy=Never.".into());
    }
    if let Some(node) = waits_for_victims(world, wants) {
        return Err(format!("preemption: not eligible due to a terminating pod on the nominated node {node}."));
    }
    let mut whys = Vec::new();
    let mut best: Option<(Cost, String, Vec<Victim>)> = None;
    for (node, reasons) in refused {
        if !reasons.iter().all(is_curable) {
            let helpless = !reasons.iter().all(Reason::is_resolvable);
            whys.push(if helpless { NOT_HELPFUL } else { NO_VICTIMS });
            continue;
        }
        match victims(world, wants, node) {
            Some((cost, victims)) if best.as_ref().is_none_or(|(least, _, _)| cost < *least) => {
                best = Some((cost, node.name.name.clone(), victims));
            }
            Some(_) => {}
            None => whys.push(NO_VICTIMS),
        }
    }
    match best {
        Some((_, node, victims)) => Ok((node, victims)),
        None => {
            let total = refused.len();
            let parts = histogram(whys.into_iter().map(str::to_string));
            Err(format!("preemption: 0/{total} nodes are available: {parts}."))
        }
    }
}

/// Most important victim, sum of importance, number.
type Cost = (i64, i64, usize);

/// What taking pods away cures for certain.
fn is_curable(reason: &Reason) -> bool {
    matches!(reason, Reason::Ports | Reason::TooManyPods | Reason::Insufficient(_))
}

fn waits_for_victims<'a>(world: &World, wants: &Wants<'a>) -> Option<&'a str> {
    let node = wants.facts.nominated.as_str();
    let leaving = |pod: &&Arc<Row>| pod.deleting && pod.pod().priority < wants.facts.priority;
    (!node.is_empty() && world.pods_on(node).any(|pod| leaving(&pod))).then_some(node)
}

fn victims(world: &World, wants: &Wants, node: &Row) -> Option<(Cost, Vec<Victim>)> {
    world.usage().on(&node.name.name)?;
    let lower = world.pods_on(&node.name.name).filter(|pod| !pod.pod().is_over() && pod.pod().priority < wants.facts.priority);
    let mut candidates: Vec<&Arc<Row>> = lower.collect();
    candidates.sort_by_key(|pod| (-pod.pod().priority, pod.pod().created));
    let Reserved { requests: mut used, pods: mut count, mut ports } = wants.used(world, node);
    for pod in &candidates {
        used.sub(&pod.pod().requests);
        count -= 1;
        ports.retain(|port| !pod.pod().host_ports.contains(port));
    }
    let fits = |used: &Amounts, count: i64, ports: &[Port]| {
        let clash = wants.facts.host_ports.iter().any(|port| ports.iter().any(|taken| taken.clashes(port)));
        !clash && shortages(&wants.facts.requests, &node.node().allocatable, used, count).is_empty()
    };
    if !fits(&used, count, &ports) {
        return None;
    }
    let mut doomed = Vec::new();
    for pod in candidates {
        let mut with = used.clone();
        with.add(&pod.pod().requests);
        let mut with_ports = ports.clone();
        with_ports.extend(pod.pod().host_ports.iter().cloned());
        if fits(&with, count + 1, &with_ports) {
            (used, count, ports) = (with, count + 1, with_ports);
        } else {
            doomed.push(pod);
        }
    }
    let highest = doomed.iter().map(|pod| pod.pod().priority).max()?;
    let sum = doomed.iter().map(|pod| pod.pod().priority + (1 << 32)).sum();
    Some(((highest, sum, doomed.len()), doomed.into_iter().map(|pod| Victim { key: pod.key(), uid: pod.uid.clone() }).collect()))
}
