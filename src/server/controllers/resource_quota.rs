//! Pure: adds up what a namespace uses of its quotas.
//!
//! Creations are charged as they are admitted; this gives back what went, and counts anew when a quota changes and now and
//! then. What counts as what is `server::quota`'s matter.

use crate::api::controller::{Action, Controller, Key, Touched, Turn, World};
use crate::api::driver::collectable;
use crate::api::quantity::Quantity;
use crate::api::resource::{PODS, RESOURCEQUOTAS, Resource};
use crate::api::time::Time;
use crate::api::value::{Map, Value};
use crate::api::world::Row;
use crate::server::quota::{self, Amounts, Counted};

pub struct ResourceQuotas {
    counted: Vec<&'static Resource>,
}

impl Default for ResourceQuotas {
    fn default() -> ResourceQuotas {
        let mut counted = collectable();
        counted.retain(|r| r.namespaced && r.plural != "events");
        ResourceQuotas { counted }
    }
}

const COUNT_AGAIN_MS: i64 = 300_000;

impl Controller for ResourceQuotas {
    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    fn resources(&self) -> Vec<&'static Resource> {
        self.counted.clone()
    }

    fn touched(&self, change: &Touched, world: &World) -> Vec<Key> {
        let row = change.row();
        let mut keys = Vec::new();
        if *change.resource == RESOURCEQUOTAS && change.new.as_ref().is_some_and(|new| is_news(change.old.as_deref(), new)) {
            keys.push(row.key());
        }
        if frees(change) {
            keys.extend(world.within(&RESOURCEQUOTAS, &row.name.namespace).map(|quota| quota.key()));
        }
        keys
    }

    fn reconcile(&self, key: &Key, world: &World, turn: &Turn) -> Vec<Action> {
        let Some(row) = world.get(key).filter(|row| !row.deleting) else { return Vec::new() };
        let mut quota = row.value();
        let hard = quota.map_at(&["spec", "hard"]).cloned().unwrap_or_default();
        let used = self.used(&quota, &hard, world, &key.name.namespace, turn);
        let mut actions = Vec::new();
        let before = quota.at(&["status"]).cloned();
        quota.set(&["status", "hard"], hard);
        quota.set(&["status", "used"], quota::to_value(&used));
        if same(before.as_ref(), &used, &quota) {
            return vec![Action::RequeueAfter { ms: COUNT_AGAIN_MS }];
        }
        actions.push(Action::Update { resource: &RESOURCEQUOTAS, subresource: "status", object: quota, then: None });
        actions.push(Action::RequeueAfter { ms: COUNT_AGAIN_MS });
        actions
    }
}

/// What is charged by admission changes the status only.
fn is_news(old: Option<&Row>, new: &Row) -> bool {
    let value = new.value();
    let uncounted = value.at(&["status", "hard"]) != value.at(&["spec", "hard"]);
    uncounted || old.is_none_or(|old| old.value().at(&["spec"]) != value.at(&["spec"]))
}

/// Something went, or uses less than it did.
fn frees(change: &Touched) -> bool {
    match (&change.old, &change.new) {
        (Some(_), None) => true,
        (Some(old), Some(new)) if *change.resource == PODS => !old.pod().is_over() && new.pod().is_over(),
        (Some(old), Some(new)) => match Counted::of(change.resource) {
            Counted::Services => old.value().at(&["spec"]) != new.value().at(&["spec"]),
            Counted::Pods | Counted::Claims | Counted::Plain => false,
        },
        (None, _) => false,
    }
}

/// Amounts may be written in other ways than ours.
fn same(status: Option<&Value>, used: &Amounts, new: &Value) -> bool {
    let of = |member: &str| status.and_then(|s| s.map_at(&[member]));
    of("hard") == new.map_at(&["status", "hard"]) && of("used").is_some_and(|had| quota::amounts_of(Some(had)) == *used)
}

impl ResourceQuotas {
    fn used(&self, quota: &Value, hard: &Map, world: &World, namespace: &str, turn: &Turn) -> Amounts {
        let now = Time::from_seconds(turn.now());
        let mut used: Amounts = hard.keys().map(|name| (name.to_string(), Quantity::new(0))).collect();
        for resource in &self.counted {
            if !hard.keys().any(|name| quota::is_about(resource, name)) {
                continue;
            }
            let plain = Counted::of(resource) == Counted::Plain;
            for row in world.within(resource, namespace) {
                // What counts by number alone need not be read.
                let object = if plain { Value::Null } else { row.value() };
                if !quota::in_scopes(quota, resource, &object) {
                    continue;
                }
                for (name, amount) in quota::usage(resource, &object, now) {
                    if let Some(sum) = used.get_mut(&name) {
                        *sum = if sum.is_zero() { amount } else { sum.add(&amount) };
                    }
                }
            }
        }
        used
    }
}
