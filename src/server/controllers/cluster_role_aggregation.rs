//! Pure: a ClusterRole with an aggregation rule holds the rules of the roles its selectors match, and no others.

use super::selector::Selector;
use crate::api::controller::{Action, Controller, Key, Touched, Turn, World};
use crate::api::resource::{CLUSTERROLES, Resource};
use crate::api::value::Value;
use crate::api::world::Row;

pub struct ClusterRoleAggregation;

impl Controller for ClusterRoleAggregation {
    fn name(&self) -> &'static str {
        "clusterrole-aggregation-controller"
    }

    fn resources(&self) -> Vec<&'static Resource> {
        vec![&CLUSTERROLES]
    }

    /// An aggregated role may be part of another one in turn.
    fn touched(&self, _: &Touched, world: &World) -> Vec<Key> {
        world.all(&CLUSTERROLES).filter(|row| row.object.peek(&["aggregationRule"]).is_some()).map(|row| row.key()).collect()
    }

    fn reconcile(&self, key: &Key, world: &World, _: &Turn) -> Vec<Action> {
        let Some(row) = world.get(key) else { return Vec::new() };
        let mut object = row.value();
        let selectors = object.list_at(&["aggregationRule", "clusterRoleSelectors"]);
        if selectors.is_empty() {
            return Vec::new();
        }
        let rules = aggregated(row, selectors, world);
        if object.list_at(&["rules"]) == rules {
            return Vec::new();
        }
        object.set(&["rules"], rules);
        vec![Action::Update { resource: &CLUSTERROLES, subresource: "", object, then: None }]
    }
}

/// By selector and then by name, each rule once.
fn aggregated(own: &Row, selectors: &[Value], world: &World) -> Vec<Value> {
    let mut rules: Vec<Value> = Vec::new();
    for selector in selectors {
        let selector = Selector::of(Some(selector));
        let mut sources: Vec<_> = world.all(&CLUSTERROLES).filter(|row| row.name != own.name && selector.matches(&row.labels)).collect();
        sources.sort_by(|a, b| a.name.name.cmp(&b.name.name));
        for rule in sources.iter().flat_map(|row| row.value().list_at(&["rules"]).to_vec()) {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    rules
}
