//! Resource quotas and limit ranges: how much a namespace, and each thing in it, may have.

use std::collections::BTreeSet;

use crate::api::quantity::Quantity;
use crate::api::resource;
use crate::api::value::Value;
use crate::server::cursor::At;
use crate::server::kinds::core::{amounts, pod_defaults};
use crate::server::kinds::plain::{Cell, Plain, plain, string};
use crate::server::strategy::Column;
use crate::server::validation;

pub fn rows() -> Vec<Plain> {
    vec![
        Plain {
            returns_deleted: true,
            rules: resource_quota,
            status_rules: |new, _| {
                hard(&new.at(&["status", "hard"]));
                hard(&new.at(&["status", "used"]));
            },
            ..plain(
                &resource::RESOURCEQUOTAS,
                const { &[Column::NAME, string("Request"), string("Limit"), Column::AGE] },
                &[Cell::Name, Cell::Custom(|o, _| print_used(o, false).into()), Cell::Custom(|o, _| print_used(o, true).into()), Cell::Age],
            )
        },
        Plain {
            create_on_update: true,
            default: |o| pod_defaults::each(o.make_map(&["spec"]), "limits", default_limits),
            // The one kind that needs no name.
            prepare: |_, o| {
                if o.str_at(&["metadata", "name"]).is_empty() {
                    o.set(&["metadata", "name"], crate::server::verbs::uid());
                }
            },
            rules: |new, _| limit_range(new),
            ..plain(
                &resource::LIMITRANGES,
                const { &[Column::NAME, Column::new("Created At", "date")] },
                &[Cell::Name, Cell::Text(&["metadata", "creationTimestamp"])],
            )
        },
    ]
}

/// `pods: 1/10, requests.cpu: 0/2`; limits apart from the rest.
fn print_used(quota: &Value, limits: bool) -> String {
    let hard = quota.map_at(&["status", "hard"]).into_iter().flat_map(|m| m.iter());
    let text = |v: Option<&Value>| v.and_then(Value::as_str).unwrap_or("0").to_string();
    let part = |(name, amount): (&str, &Value)| format!("{name}: {}/{}", text(quota.at(&["status", "used", name])), text(Some(amount)));
    hard.filter(|(name, _)| name.starts_with("limits") == limits).map(part).collect::<Vec<_>>().join(", ")
}

// --- quotas

fn hard(amounts_of: &At) {
    for (name, amount) in amounts_of.entries() {
        amounts::quota_name(name).into_iter().for_each(|m| amount.invalid_as(name, m));
        amounts::amount(&amount, name);
    }
}

const SCOPES: [&str; 7] =
    ["Terminating", "NotTerminating", "BestEffort", "NotBestEffort", "PriorityClass", "VolumeAttributesClass", "CrossNamespacePodAffinity"];

/// Whether amounts of the resource can be told apart by the scope.
fn applies(scope: &str, resource: &str) -> bool {
    const COMPUTE: [&str; 6] = ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
    match scope {
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            resource == "pods" || COMPUTE.contains(&resource)
        }
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => true,
    }
}

fn resource_quota(quota: &At, old: Option<&At>) {
    let spec = quota.get("spec");
    hard(&spec.get("hard"));
    let names: Vec<&str> = spec.get("hard").entries().into_iter().map(|(name, _)| name).collect();
    let misapplied = |scope: &str| names.iter().filter(|n| amounts::is_standard_for_quota(n) && !applies(scope, n)).count();
    let scopes = spec.get("scopes");
    let conflicts = |at: &At, set: &[&str]| {
        for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
            if pair.iter().all(|s| set.contains(s)) {
                at.over(Some(scopes.value)).invalid("conflicting scopes");
            }
        }
    };
    for scope in scopes.strings() {
        if !SCOPES.contains(&scope) {
            scopes.invalid("unsupported scope");
        }
        (0..misapplied(scope)).for_each(|_| scopes.invalid("unsupported scope applied to resource"));
    }
    conflicts(&scopes, &scopes.strings());
    let selector = spec.get("scopeSelector");
    let terms = selector.get("matchExpressions");
    let mut seen: Vec<&str> = Vec::new();
    for term in terms.each() {
        // Upstream names the list, not the entry.
        let term = term.called(terms.path);
        let (scope, operator, values) = (term.get("scopeName"), term.get("operator"), term.get("values"));
        if !SCOPES.contains(&scope.str()) {
            scope.invalid_as(scope.str(), "unsupported scope");
        }
        (0..misapplied(scope.str())).for_each(|_| selector.called(terms.path).invalid("unsupported scope applied to resource"));
        let valueless = !matches!(scope.str(), "PriorityClass" | "VolumeAttributesClass") && SCOPES.contains(&scope.str());
        if valueless && operator.str() != "Exists" {
            operator.invalid_as(
                operator.str(),
                "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, \
                 ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
            );
        }
        match operator.str() {
            "In" | "NotIn" => drop(values.must_because("must be at least one value when `operator` is 'In' or 'NotIn' for scope selector")),
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                values.invalid("must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector");
            }
            "Exists" | "DoesNotExist" => {}
            _ => operator.invalid_as(operator.str(), "not a valid selector operator"),
        }
        seen.push(scope.str());
    }
    conflicts(&terms, &seen);
    if let Some(old) = old {
        let set = |at: &At| -> BTreeSet<String> { at.at(&["spec", "scopes"]).strings().into_iter().map(str::to_string).collect() };
        if set(quota) != set(old) {
            scopes.invalid(validation::IMMUTABLE);
        }
    }
}

// --- limits

/// A container's default limit is its maximum, its default request the default limit, or else the minimum.
fn default_limits(limit: &mut crate::api::value::Map) {
    if limit.str("type") != "Container" {
        return;
    }
    let fill = |limit: &mut crate::api::value::Map, from: &str, to: &str| {
        let amounts = limit.get(from).and_then(Value::as_map).cloned().unwrap_or_default();
        for (name, amount) in amounts {
            limit.map_slot(to).insert_default(name, amount);
        }
    };
    fill(limit, "max", "default");
    fill(limit, "default", "defaultRequest");
    fill(limit, "min", "defaultRequest");
}

fn limit_range(range: &At) {
    let limits = range.at(&["spec", "limits"]).each();
    let mut kinds: Vec<&str> = Vec::new();
    for limit in &limits {
        let kind = limit.get("type");
        let messages = validation::qualified_name(kind.str());
        let readable = messages.is_empty();
        messages.into_iter().for_each(|m| kind.invalid_as(kind.str(), m));
        if readable && !kind.str().contains('/') && !matches!(kind.str(), "Pod" | "Container" | "PersistentVolumeClaim") {
            kind.invalid("must be a standard limit type or fully qualified");
        }
        if kinds.contains(&kind.str()) {
            kind.over(Some(kind.value)).push(crate::api::status::FieldError::duplicate(kind.path, kind.str()));
        }
        kinds.push(kind.str());
        limit_item(limit, kind.str());
    }
}

fn limit_item(limit: &At, kind: &str) {
    let of_containers = matches!(kind, "Pod" | "Container");
    let name_rule = if of_containers { amounts::container_name } else { amounts::any_name };
    let lists: &[&str] = if kind == "Pod" {
        for list in ["default", "defaultRequest"].iter().map(|key| limit.get(key)).filter(|l| !l.is_empty()) {
            list.forbidden("may not be specified when `type` is 'Pod'");
        }
        &["max", "min", "maxLimitRequestRatio"]
    } else {
        &["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"]
    };
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for (name, at) in lists.iter().flat_map(|list| limit.get(list).entries()) {
        name_rule(name).into_iter().for_each(|m| at.invalid_as(name, m));
        names.insert(name);
    }
    if kind == "PersistentVolumeClaim" && !["min", "max"].iter().any(|list| limit.at(&[list, "storage"]).is_set()) {
        limit.get("limits").required("either minimum or maximum storage value is required, but neither was provided");
    }
    for name in names {
        bounds(limit, lists, name);
    }
}

/// min ≤ default request ≤ default ≤ max, of one resource.
fn bounds(limit: &At, lists: &[&'static str], name: &str) {
    let at = |list: &'static str| {
        let list_at = limit.get(list);
        let entry = list_at.member(name);
        entry.called(format!("{}[{name}]", list_at.path))
    };
    let amount = |list: &'static str| at(list).quantity().filter(|_| lists.contains(&list));
    let (min, max) = (amount("min"), amount("max"));
    let (default, request, ratio) = (amount("default"), amount("defaultRequest"), amount("maxLimitRequestRatio"));
    let above = |a: &Option<Quantity>, b: &Option<Quantity>| matches!((a, b), (Some(a), Some(b)) if a > b);
    let text = |q: &Option<Quantity>| q.as_ref().map_or_else(String::new, Quantity::to_string);
    let complain = |list: &'static str, shown: &Option<Quantity>, why: String| at(list).invalid_as(text(shown), why);
    if above(&min, &max) {
        complain("min", &min, format!("min value {} is greater than max value {}", text(&min), text(&max)));
    }
    if above(&min, &request) {
        complain("defaultRequest", &request, format!("min value {} is greater than default request value {}", text(&min), text(&request)));
    }
    if above(&request, &max) {
        complain("defaultRequest", &request, format!("default request value {} is greater than max value {}", text(&request), text(&max)));
    }
    if above(&request, &default) {
        let why = format!("default request value {} is greater than default limit value {}", text(&request), text(&default));
        complain("defaultRequest", &request, why);
    }
    if above(&min, &default) {
        complain("default", &min, format!("min value {} is greater than default value {}", text(&min), text(&default)));
    }
    if above(&default, &max) {
        complain("default", &max, format!("default value {} is greater than max value {}", text(&default), text(&max)));
    }
    if let Some(r) = &ratio {
        if *r < Quantity::new(1) {
            complain("maxLimitRequestRatio", &ratio, format!("ratio {} is less than 1", text(&ratio)));
        }
        if let (Some(min), Some(max)) = (&min, &max) {
            let most = max.as_f64() / min.as_f64();
            if r.as_f64() > most {
                complain("maxLimitRequestRatio", &ratio, format!("ratio {} is greater than max/min = {most:.6}", text(&ratio)));
            }
        }
    }
    if !amounts::overcommits(name)
        && let (Some(d), Some(r)) = (&default, &request)
        && d != r
    {
        let why = format!("default value {} must equal to defaultRequest value {} in {name}", text(&default), text(&request));
        complain("defaultRequest", &request, why);
    }
}
