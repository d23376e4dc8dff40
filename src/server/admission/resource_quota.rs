//! Charges what is about to be written to the quotas of its namespace, or refuses it.
//!
//! The charge is a write of the quota's status in the same batch: of two requests that would both take the last of it, one is
//! tried again and sees the other's. Quotas that were not added up yet refuse. Texts are upstream's.

use crate::api::object::Object;
use crate::api::resource;
use crate::api::status::{Result, Status};
use crate::api::value::{Map, Value};
use crate::server::quota::{self, Amounts, Counted};
use crate::server::strategy::{Context, Effect, Operation, Plugin};

pub struct ResourceQuota;

impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn validate(&self, context: &Context, object: &Value, old: Option<&Value>) -> Result<()> {
        if context.namespace.is_empty() || !is_charged(context, object, old) {
            return Ok(());
        }
        context.access.list(&resource::RESOURCEQUOTAS, &context.namespace).into_iter().try_for_each(|q| charge(context, q, object, old))
    }
}

/// Counted by number alone: only creations matter.
fn is_charged(context: &Context, object: &Value, old: Option<&Value>) -> bool {
    let counted = Counted::of(context.resource);
    let deadline = |pod: &Value| pod.i64_at(&["spec", "activeDeadlineSeconds"]).is_some_and(|s| s >= 0);
    match (context.operation, context.subresource.as_str(), counted) {
        (Operation::Create, "", _) => context.resource.plural != "events",
        (Operation::Update, "", Counted::Services | Counted::Claims) | (Operation::Update, "resize", Counted::Pods) => true,
        (Operation::Update, "", Counted::Pods) => old.is_some_and(|old| deadline(old) != deadline(object)),
        _ => false,
    }
}

fn charge(context: &Context, stored: Object, object: &Value, old: Option<&Value>) -> Result<()> {
    let quota = stored.value();
    let none = Map::new();
    let hard = quota.map_at(&["status", "hard"]).unwrap_or(&none);
    let names = quota::concerned(&quota, hard, context.resource, object);
    if names.is_empty() {
        return Ok(());
    }
    let refuse = |why: String| Err(Status::forbidden(context.resource, object.str_at(&["metadata", "name"]), &why));
    let title = stored.name().to_string();
    if Counted::of(context.resource) == Counted::Pods
        && let Some(why) = quota::unstated(object, &names)
    {
        return refuse(format!("failed quota: {title}: {why}"));
    }
    let used = quota::amounts_of(quota.map_at(&["status", "used"]));
    if names.iter().any(|name| !used.contains_key(name)) {
        return refuse(format!("status unknown for quota: {title}, resources: {}", names.join(",")));
    }
    let mut asked = quota::usage(context.resource, object, context.now);
    if let Some(old) = old.filter(|old| quota::in_scopes(&quota, context.resource, old)) {
        let before = quota::usage(context.resource, old, context.now);
        for (name, amount) in &mut asked {
            *amount = before.get(name).map_or_else(|| amount.clone(), |was| amount.sub(was));
        }
    }
    asked.retain(|name, amount| amount.sign() > 0 && names.contains(name));
    if asked.is_empty() {
        return Ok(());
    }
    let limits = quota::amounts_of(Some(hard));
    let after: Amounts = asked.iter().map(|(name, amount)| (name.clone(), used[name].add(amount))).collect();
    let exceeded: Vec<&String> =
        after.iter().filter(|(name, sum)| limits.get(*name).is_some_and(|most| *sum > most)).map(|(n, _)| n).collect();
    if !exceeded.is_empty() {
        let print = |amounts| quota::print(amounts, &exceeded);
        return refuse(format!(
            "exceeded quota: {title}, requested: {}, used: {}, limited: {}",
            print(&asked),
            print(&used),
            print(&limits)
        ));
    }
    let mut charged = quota.clone();
    let mut total = used;
    total.extend(after);
    charged.set(&["status", "used"], quota::to_value(&total));
    context.also(Effect::UpdateStatus { old: stored, object: charged });
    Ok(())
}
