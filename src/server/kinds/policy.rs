//! Small kinds that bound what pods may do: disruption budgets, priority classes, runtime classes.

use crate::api::resource;
use crate::api::value::Value;
use crate::server::cursor::At;
use crate::server::kinds::core::pod_spec;
use crate::server::kinds::plain::{Cell, Plain, integer, plain, string};
use crate::server::kinds::workload;
use crate::server::strategy::{Column, NameRule};
use crate::server::validation;

pub fn rows() -> Vec<Plain> {
    vec![
        Plain {
            generation: true,
            unconditional_update: false,
            acted_on: true,
            name_rule: NameRule::PathSegment,
            rules: |budget, _| disruption_budget(&budget.get("spec")),
            status_rules: |new, _| {
                let status = new.get("status");
                conditions(&status.get("conditions"));
                workload::counts(&status, &["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"]);
            },
            ..plain(
                &resource::PODDISRUPTIONBUDGETS,
                const { &[Column::NAME, string("Min Available"), string("Max Unavailable"), integer("Allowed Disruptions"), Column::AGE] },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| count_or(o, "minAvailable")),
                    Cell::Custom(|o, _| count_or(o, "maxUnavailable")),
                    Cell::Number(&["status", "disruptionsAllowed"]),
                    Cell::Age,
                ],
            )
        },
        Plain {
            default: |o| o.make_map(&[]).insert_default("preemptionPolicy", "PreemptLowerPriority"),
            // The first generation is the last: nothing counts on.
            prepare: |_, o| o.set(&["metadata", "generation"], 1),
            acted_on: true,
            rules: priority_class,
            ..plain(
                &resource::PRIORITYCLASSES,
                const { &[Column::NAME, integer("Value"), Column::new("Global-Default", "boolean"), Column::AGE, string("PreemptionPolicy")] },
                &[Cell::Name, Cell::Number(&["value"]), Cell::Bool(&["globalDefault"]), Cell::Age, Cell::Text(&["preemptionPolicy"])],
            )
        },
        Plain {
            create_on_update: true,
            unconditional_update: false,
            rules: runtime_class,
            ..plain(
                &resource::RUNTIMECLASSES,
                const { &[Column::NAME, string("Handler"), Column::AGE] },
                &[Cell::Name, Cell::Text(&["handler"]), Cell::Age],
            )
        },
    ]
}

fn count_or(object: &Value, key: &str) -> Value {
    match object.at(&["spec", key]) {
        Some(Value::Int(n)) => n.to_string().into(),
        Some(Value::Str(s)) => s.as_str().into(),
        _ => "N/A".into(),
    }
}

fn disruption_budget(spec: &At) {
    let (min, max) = (spec.get("minAvailable"), spec.get("maxUnavailable"));
    if min.is_set() && max.is_set() {
        spec.invalid("minAvailable and maxUnavailable cannot be both set");
    }
    for count in [&min, &max] {
        count.int_or_percent();
        if count.percent().is_some_and(|p| p > 100) {
            count.invalid("must not be greater than 100%");
        }
    }
    spec.get("selector").label_selector();
    spec.get("unhealthyPodEvictionPolicy").maybe_one_of(&["AlwaysAllow", "IfHealthyBudget"]);
}

/// `metav1.Condition`s.
pub fn conditions(list: &At) {
    const REASON: &str = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric \
        characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or \
        'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";
    let mut seen: Vec<&str> = Vec::new();
    for condition in list.each() {
        let (kind, status, reason) = (condition.get("type"), condition.get("status"), condition.get("reason"));
        if kind.must() {
            kind.ok(validation::qualified_name);
        }
        if !seen.contains(&kind.str()) {
            seen.push(kind.str());
        } else {
            kind.duplicate();
        }
        status.one_of(&["False", "True", "Unknown"]);
        condition.get("observedGeneration").not_negative();
        if !condition.get("lastTransitionTime").is_set() {
            condition.get("lastTransitionTime").required("must be set");
        }
        if reason.must() {
            let text = reason.str().as_bytes();
            let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b',' | b':');
            let last = text[text.len() - 1];
            if !(text[0].is_ascii_alphabetic() && text.iter().all(inner) && (last.is_ascii_alphanumeric() || last == b'_')) {
                reason.invalid(REASON);
            }
            if text.len() > 1024 {
                reason.too_long(1024);
            }
        }
        if condition.get("message").len() > 32 * 1024 {
            condition.get("message").too_long(32 * 1024);
        }
    }
}

/// Name, value, whether it is the default.
const SYSTEM_CLASSES: [(&str, i64); 2] = [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
const USER_PRIORITY_MAX: i64 = 1_000_000_000;

fn priority_class(class: &At, old: Option<&At>) {
    let (name, value, policy) = (class.at(&["metadata", "name"]), class.get("value"), class.get("preemptionPolicy"));
    if let Some(old) = old {
        if value.int() != old.get("value").int() {
            value.forbidden("may not be changed in an update.");
        }
        return policy.immutable(&old.get("preemptionPolicy"));
    }
    if name.str().starts_with("system-") {
        let why = match SYSTEM_CLASSES.iter().find(|(known, _)| *known == name.str()) {
            None => Some(format!("{} is not a known system priority class", name.str())),
            Some((known, wanted)) if *wanted != value.int() => Some(format!("value of {known} PriorityClass must be {wanted}")),
            Some((known, _)) if class.get("globalDefault").flag() => Some(format!("globalDefault of {known} PriorityClass must be false")),
            Some(_) => None,
        };
        if let Some(why) = why {
            name.forbidden(format!("priority class names with 'system-' prefix are reserved for system use only. error: {why}"));
        }
    } else if value.int() > USER_PRIORITY_MAX {
        value.forbidden(format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}"));
    }
    preemption_policy(&policy);
}

pub fn preemption_policy(policy: &At) {
    if policy.is_set() && policy.must() {
        policy.one_of(&["PreemptLowerPriority", "Never"]);
    }
}

fn runtime_class(class: &At, old: Option<&At>) {
    let handler = class.get("handler");
    if let Some(old) = old {
        return handler.immutable(&old.get("handler"));
    }
    handler.must_be(validation::label);
    let fixed = class.at(&["overhead", "podFixed"]);
    if fixed.is_set() {
        let mut limits = Value::map();
        limits.set(&["limits"], fixed.value.clone());
        class.with(|errors, _| pod_spec::resources(errors, &"overhead", Some(&limits)));
    }
    let scheduling = class.get("scheduling");
    scheduling.get("nodeSelector").labels();
    let tolerations = scheduling.get("tolerations");
    tolerations.with(|errors, at| pod_spec::tolerations(errors, at, tolerations.value.as_list().unwrap_or(&[])));
    tolerations.unique(|t| ["key", "operator", "value", "effect"].map(|key| t.get(key).str()));
}
