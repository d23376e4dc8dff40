//! Flow schemas and priority levels: who waits with whom, and how many are served at once.

use crate::api::json::go_quote;
use crate::api::request::PatchType;
use crate::api::resource;
use crate::api::value::Value;
use crate::server::bootstrap;
use crate::server::cursor::{At, same};
use crate::server::kinds::core::pod_defaults;
use crate::server::kinds::plain::{Cell, Plain, plain, string};
use crate::server::strategy::{Column, Context, Finding};
use crate::server::validation;
use crate::value;

pub fn rows() -> Vec<Plain> {
    vec![
        Plain {
            default: |o| {
                let spec = o.make_map(&["spec"]);
                if spec.get("matchingPrecedence").and_then(Value::as_i64).unwrap_or(0) == 0 {
                    spec.insert("matchingPrecedence", 1000);
                }
            },
            rules: |new, _| flow_schema(new),
            findings: |context, o| {
                let level = o.str_at(&["spec", "priorityLevelConfiguration", "name"]);
                let exists = context.access.get(&resource::PRIORITYLEVELCONFIGURATIONS, "", level).is_some();
                dangling(context, o, exists).into_iter().collect()
            },
            status_rules: |new, _| conditions(new),
            generation: true,
            ..plain(
                &resource::FLOWSCHEMAS,
                const {
                    &[
                        Column::NAME,
                        string("PriorityLevel"),
                        string("MatchingPrecedence"),
                        string("DistinguisherMethod"),
                        Column::AGE,
                        string("MissingPL"),
                    ]
                },
                &[
                    Cell::Name,
                    Cell::Text(&["spec", "priorityLevelConfiguration", "name"]),
                    Cell::Number(&["spec", "matchingPrecedence"]),
                    Cell::OrNone(&["spec", "distinguisherMethod", "type"]),
                    Cell::Age,
                    Cell::Custom(|o, _| {
                        let found = o.list_at(&["status", "conditions"]).iter().find(|c| c.str_at(&["type"]) == "Dangling");
                        found.map_or("?", |c| c.str_at(&["status"])).into()
                    }),
                ],
            )
        },
        Plain {
            default: default_priority_level,
            rules: |new, _| priority_level(new),
            findings: |context, o| {
                let name = o.str_at(&["metadata", "name"]);
                let schemas = context.access.list(&resource::FLOWSCHEMAS, "");
                let of_it = schemas.iter().map(crate::api::object::Object::value);
                let of_it = of_it.filter(|s| s.str_at(&["spec", "priorityLevelConfiguration", "name"]) == name);
                of_it.filter_map(|schema| dangling(context, &schema, true)).collect()
            },
            status_rules: |new, _| conditions(new),
            generation: true,
            ..plain(
                &resource::PRIORITYLEVELCONFIGURATIONS,
                const {
                    &[
                        Column::NAME,
                        string("Type"),
                        string("NominalConcurrencyShares"),
                        string("Queues"),
                        string("HandSize"),
                        string("QueueLengthLimit"),
                        Column::AGE,
                    ]
                },
                &[
                    Cell::Name,
                    Cell::Text(&["spec", "type"]),
                    Cell::Custom(|o, _| number_or_none(o, &["spec", "limited", "nominalConcurrencyShares"])),
                    Cell::Custom(|o, _| number_or_none(o, &["spec", "limited", "limitResponse", "queuing", "queues"])),
                    Cell::Custom(|o, _| number_or_none(o, &["spec", "limited", "limitResponse", "queuing", "handSize"])),
                    Cell::Custom(|o, _| number_or_none(o, &["spec", "limited", "limitResponse", "queuing", "queueLengthLimit"])),
                    Cell::Age,
                ],
            )
        },
    ]
}

fn number_or_none(object: &Value, path: &[&str]) -> Value {
    object.at(path).cloned().unwrap_or_else(|| "<none>".into())
}

fn conditions(object: &At) {
    let list = object.at(&["status", "conditions"]);
    let mut seen: Vec<&str> = Vec::new();
    for kind in list.each().iter().map(|c| c.get("type")) {
        if seen.contains(&kind.str()) {
            kind.duplicate();
        }
        seen.push(kind.str());
        kind.must();
    }
}

const VERBS: [&str; 9] = ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

/// Whether a flow schema leads nowhere; nothing if it says so already.
fn dangling(context: &Context, schema: &Value, exists: bool) -> Option<Finding> {
    let level = go_quote(schema.str_at(&["spec", "priorityLevelConfiguration", "name"]));
    let what = format!("This FlowSchema references the PriorityLevelConfiguration object named {level}");
    let (status, reason, message) = match exists {
        true => ("False", "Found", format!("{what} and it exists")),
        false => ("True", "NotFound", format!("{what} but there is no such object")),
    };
    let known = schema
        .list_at(&["status", "conditions"])
        .iter()
        .any(|c| c.str_at(&["type"]) == "Dangling" && c.str_at(&["status"]) == status && c.str_at(&["message"]) == message);
    let now = context.now.truncated_to_seconds().to_string();
    let condition = value!({"type": "Dangling", "status": status, "lastTransitionTime": now, "reason": reason, "message": message});
    (!known).then(|| Finding {
        resource: &resource::FLOWSCHEMAS,
        name: schema.str_at(&["metadata", "name"]).to_string(),
        manager: "api-priority-and-fairness-config-consumer-v1",
        patch_type: PatchType::Apply,
        condition,
    })
}

fn flow_schema(schema: &At) {
    let spec = schema.get("spec");
    let name = schema.at(&["metadata", "name"]);
    let precedence = spec.get("matchingPrecedence");
    if precedence.int() <= 0 {
        precedence.invalid("must be a positive value");
    }
    if precedence.int() > 10_000 {
        precedence.invalid("must not be greater than 10000");
    }
    if precedence.int() == 1 && name.str() != "exempt" {
        precedence.invalid("only the schema named 'exempt' may have matchingPrecedence 1");
    }
    let method = spec.get("distinguisherMethod");
    if method.is_set() && !matches!(method.get("type").str(), "ByNamespace" | "ByUser") {
        method.called(format!("{}.type", method.path)).unsupported(&["ByNamespace", "ByUser"]);
    }
    let level = spec.at(&["priorityLevelConfiguration", "name"]);
    if level.must_because("must reference a priority level") {
        level.ok(validation::subdomain);
    }
    for rule in spec.get("rules").each() {
        let subjects = rule.get("subjects");
        subjects.must_because("subjects must contain at least one value");
        subjects.each().iter().for_each(subject);
        let (resources, urls) = (rule.get("resourceRules"), rule.get("nonResourceRules"));
        if resources.is_empty() && urls.is_empty() {
            rule.required("at least one of resourceRules and nonResourceRules has to be non-empty");
        }
        resources.each().iter().for_each(resource_rule);
        urls.each().iter().for_each(url_rule);
    }
    let fixed = bootstrap::mandatory_flow_control("FlowSchema", name.str());
    if fixed.is_some_and(|fixed| !same(&fixed, spec.value)) {
        spec.invalid(format!("spec of '{}' must equal the fixed value", name.str()));
    }
    conditions(schema);
}

fn subject(subject: &At) {
    let (account, user, group) = (subject.get("serviceAccount"), subject.get("user"), subject.get("group"));
    let refuse = |at: &At, what: &str, kind: &str| {
        if at.is_set() {
            at.forbidden(format!("{what} is forbidden when subject kind is not '{kind}'"));
        }
    };
    let named = |at: &At, what: &str, kind: &str| match at.is_set() {
        true => drop(at.get("name").must()),
        false => at.required(format!("{what} is required when subject kind is '{kind}'")),
    };
    match subject.get("kind").str() {
        "ServiceAccount" => {
            named(&account, "serviceAccount", "ServiceAccount");
            if account.is_set() {
                let (name, namespace) = (account.get("name"), account.get("namespace"));
                if !name.is_empty() && name.str() != "*" {
                    name.ok(validation::subdomain);
                }
                if namespace.must_because("must specify namespace for service account") {
                    namespace.ok(validation::label);
                }
            }
            refuse(&user, "user", "User");
            refuse(&group, "group", "Group");
        }
        "User" => {
            named(&user, "user", "User");
            refuse(&account, "serviceAccount", "ServiceAccount");
            refuse(&group, "group", "Group");
        }
        "Group" => {
            named(&group, "group", "Group");
            refuse(&account, "serviceAccount", "ServiceAccount");
            refuse(&user, "user", "User");
        }
        _ => drop(subject.get("kind").one_of(&["Group", "ServiceAccount", "User"])),
    }
}

/// Whether `*` is in the list; alone, it must be.
fn wildcard(list: &At, what: &str) -> bool {
    let present = list.strings().contains(&"*");
    if present && list.len() > 1 {
        list.invalid(format!("if '*' is present, must not specify other {what}"));
    }
    present
}

fn verbs(list: &At) {
    if list.must_because("verbs must contain at least one value")
        && !wildcard(list, "verbs")
        && !list.strings().iter().all(|v| VERBS.contains(v))
    {
        list.unsupported(&VERBS);
    }
}

fn resource_rule(rule: &At) {
    verbs(&rule.get("verbs"));
    let (groups, resources, namespaces) = (rule.get("apiGroups"), rule.get("resources"), rule.get("namespaces"));
    if groups.must_because("resource rules must supply at least one api group") {
        wildcard(&groups, "api groups");
    }
    if resources.must_because("resource rules must supply at least one resource") {
        wildcard(&resources, "resources");
    }
    if namespaces.is_empty() && !rule.get("clusterScope").flag() {
        namespaces.required("resource rules that are not cluster scoped must supply at least one namespace");
    } else if !wildcard(&namespaces, "namespaces") {
        for namespace in namespaces.each() {
            for message in validation::label(namespace.str()) {
                namespace.invalid(format!("each member of this list must be '*' or a DNS-1123 label; {message}"));
            }
        }
    }
}

fn url_rule(rule: &At) {
    verbs(&rule.get("verbs"));
    let urls = rule.get("nonResourceURLs");
    if !urls.must_because("nonResourceURLs must contain at least one value") || wildcard(&urls, "non-resource URLs") {
        return;
    }
    for url in urls.each() {
        let text = url.str();
        let stars = text.matches('*').count();
        let why = match () {
            () if text.is_empty() => "must not be empty",
            () if text == "/" => continue,
            () if !text.starts_with('/') => "must start with slash",
            () if text.contains(' ') => "must not contain white-space",
            () if text.contains("//") => "must not contain double slash",
            () if stars > 1 || (stars == 1 && !text.ends_with("/*")) => "wildcard can only do suffix matching",
            () => continue,
        };
        url.invalid(why);
    }
}

fn default_priority_level(object: &mut Value) {
    let spec = object.make_map(&["spec"]);
    if let Some(limited) = spec.get_mut("limited").and_then(Value::as_map_mut) {
        limited.insert_default("nominalConcurrencyShares", 30);
        limited.insert_default("lendablePercent", 0);
        let queuing = limited.get_mut("limitResponse").and_then(|r| r.get_mut("queuing")).and_then(Value::as_map_mut);
        if let Some(queuing) = queuing {
            for (key, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                pod_defaults::default_int(queuing, key, value);
            }
        }
    }
    if let Some(exempt) = spec.get_mut("exempt").and_then(Value::as_map_mut) {
        exempt.insert_default("nominalConcurrencyShares", 0);
        exempt.insert_default("lendablePercent", 0);
    }
}

fn priority_level(level: &At) {
    const PRESERVE: &str = "flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares";
    let (spec, name) = (level.get("spec"), level.at(&["metadata", "name"]));
    if level.at(&["metadata", "annotations", PRESERVE]).is_set() {
        level.at(&["metadata", "annotations"]).forbidden(format!("annotation '{PRESERVE}' is forbidden"));
    }
    let (kind, limited, exempt) = (spec.get("type"), spec.get("limited"), spec.get("exempt"));
    if (name.str() == "exempt") != (kind.str() == "Exempt") {
        kind.invalid_as(kind.str(), "must be 'Exempt' if and only if `name` is 'exempt'");
    }
    match kind.str() {
        "Exempt" => {
            if limited.is_set() {
                limited.forbidden("must be nil if the type is not Limited");
            }
            shares(&exempt);
        }
        "Limited" => {
            if exempt.is_set() {
                exempt.forbidden("must be nil if the type is Limited");
            }
            if !limited.is_set() {
                limited.required("must not be empty when type is Limited");
            } else {
                shares(&limited);
                limit_response(&limited.get("limitResponse"));
                let borrowing = limited.get("borrowingLimitPercent");
                if borrowing.int() < 0 {
                    borrowing.invalid("if specified, must be a non-negative integer");
                }
            }
        }
        _ => kind.must_one_of(&["Exempt", "Limited"]),
    }
    if let Some(mut fixed) = bootstrap::mandatory_flow_control("PriorityLevelConfiguration", name.str()) {
        let except = if name.str() == "exempt" { " except the 'spec.exempt' field" } else { "" };
        if !except.is_empty() {
            fixed.set(&["exempt"], exempt.value.clone());
        }
        if !same(&fixed, spec.value) {
            spec.invalid(format!("spec of '{}'{except} must equal the fixed value", name.str()));
        }
    }
    conditions(level);
}

fn shares(at: &At) {
    let (shares, lendable) = (at.get("nominalConcurrencyShares"), at.get("lendablePercent"));
    if shares.int() < 0 {
        shares.invalid("must be a non-negative integer");
    }
    if lendable.is_set() {
        lendable.between(0, 100);
    }
}

fn limit_response(response: &At) {
    let (kind, queuing) = (response.get("type"), response.get("queuing"));
    match kind.str() {
        "Reject" if queuing.is_set() => queuing.forbidden("must be nil if limited.limitResponse.type is not Limited"),
        "Reject" => {}
        "Queue" if !queuing.is_set() => queuing.required("must not be empty if limited.limitResponse.type is Limited"),
        "Queue" => self::queuing(&queuing),
        _ => kind.must_one_of(&["Queue", "Reject"]),
    }
}

/// Bits of a flow's hash that dealing hands of queues may use up.
const HASH_BITS: i64 = 60;

fn queuing(at: &At) {
    const QUEUES_MAX: i64 = 10_000_000;
    let (length, queues, hand) = (at.get("queueLengthLimit"), at.get("queues"), at.get("handSize"));
    for count in [&length, &queues, &hand] {
        if count.int() <= 0 {
            count.invalid_as(count.int(), "must be positive");
        }
    }
    if queues.int() > QUEUES_MAX {
        queues.invalid(format!("must not be greater than {QUEUES_MAX}"));
    }
    if hand.int() <= 0 {
        return;
    }
    let (deck, dealt) = (queues.int(), hand.int());
    if dealt > deck {
        hand.invalid(format!("should not be greater than queues ({deck})"));
    } else if entropy_bits(deck, dealt) > HASH_BITS {
        hand.invalid(format!("required entropy bits of deckSize {deck} and handSize {dealt} should not be greater than {HASH_BITS}"));
    }
}

/// About the bits it takes to deal `hand` cards of `deck`.
fn entropy_bits(deck: i64, hand: i64) -> i64 {
    ((deck as f64).log2() * hand as f64).ceil() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_cost_entropy() {
        assert_eq!(entropy_bits(64, 8), 48);
        assert!(entropy_bits(10_000_000, 8) > HASH_BITS);
    }
}
