//! The workloads of the apps group nothing of ours runs yet: stateful sets, daemon sets, and controller revisions.

use crate::api::resource;
use crate::api::value::{Map, Value};
use crate::server::cursor::{At, same};
use crate::server::kinds::core::{claims, pod_defaults, print_labels};
use crate::server::kinds::plain::{Cell, Plain, integer, plain, string};
use crate::server::kinds::workload::{self, Selects, selects};
use crate::server::strategy::{Column, Context, NameRule};
use crate::server::validation;
use crate::value;

pub fn rows() -> Vec<Plain> {
    vec![
        Plain {
            default: default_stateful_set,
            prepare: |_, o| {
                o.remove(&MAX_UNAVAILABLE);
                pod_defaults::drop_disabled(o.make_map(&["spec", "template", "spec"]));
            },
            prepare_update: |_, new, old| {
                if old.at(&MAX_UNAVAILABLE).is_none() {
                    new.remove(&MAX_UNAVAILABLE);
                }
                pod_defaults::drop_disabled(new.make_map(&["spec", "template", "spec"]));
            },
            rules: stateful_set,
            status_rules: |new, old| {
                let (status, was) = (new.get("status"), old.get("status"));
                let counts = ["replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
                workload::counts(&status, &counts);
                workload::counts(&status, &["observedGeneration", "collisionCount"]);
                for key in &counts[1..] {
                    workload::at_most(&status, key, "replicas", "status.replicas");
                }
                workload::at_most(&status, "availableReplicas", "readyReplicas", "status.readyReplicas");
                workload::collisions_grow(&status, &was);
            },
            warnings: |new, old| {
                let mut warnings = workload::template_warnings(new, old, &["spec", "template"]);
                warnings.extend(negative_history(new));
                warnings
            },
            name_rule: NameRule::Label,
            generation: true,
            acted_on: true,
            ..plain(
                &resource::STATEFULSETS,
                const { &[Column::NAME, string("Ready"), Column::AGE, Column::wide("Containers", "string"), Column::wide("Images", "string")] },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| {
                        let count = |path: &[&str]| o.i64_at(path).unwrap_or(0);
                        format!("{}/{}", count(&["status", "readyReplicas"]), count(&["spec", "replicas"])).into()
                    }),
                    Cell::Age,
                    Cell::Containers,
                    Cell::Images,
                ],
            )
        },
        Plain {
            default: default_daemon_set,
            prepare: |_, o| {
                pod_defaults::drop_disabled(o.make_map(&["spec", "template", "spec"]));
                let generation: i64 = o.str_at(&TEMPLATE_GENERATION).parse().unwrap_or(0);
                o.set(&TEMPLATE_GENERATION, generation.max(1).to_string());
            },
            prepare_update: count_template_generation,
            rules: daemon_set,
            status_rules: |new, old| {
                let (status, was) = (new.get("status"), old.get("status"));
                let counts = [
                    "currentNumberScheduled",
                    "numberMisscheduled",
                    "desiredNumberScheduled",
                    "numberReady",
                    "observedGeneration",
                    "updatedNumberScheduled",
                    "numberAvailable",
                    "numberUnavailable",
                    "collisionCount",
                ];
                workload::counts(&status, &counts);
                workload::collisions_grow(&status, &was);
            },
            warnings: |new, old| workload::template_warnings(new, old, &["spec", "template"]),
            generation: true,
            acted_on: true,
            ..plain(
                &resource::DAEMONSETS,
                const {
                    &[
                        Column::NAME,
                        integer("Desired"),
                        integer("Current"),
                        integer("Ready"),
                        integer("Up-to-date"),
                        integer("Available"),
                        string("Node Selector"),
                        Column::AGE,
                        Column::wide("Containers", "string"),
                        Column::wide("Images", "string"),
                        Column::wide("Selector", "string"),
                    ]
                },
                &[
                    Cell::Name,
                    Cell::Number(&["status", "desiredNumberScheduled"]),
                    Cell::Number(&["status", "currentNumberScheduled"]),
                    Cell::Number(&["status", "numberReady"]),
                    Cell::Number(&["status", "updatedNumberScheduled"]),
                    Cell::Number(&["status", "numberAvailable"]),
                    Cell::Custom(|o, _| print_labels(o.map_at(&["spec", "template", "spec", "nodeSelector"])).into()),
                    Cell::Age,
                    Cell::Containers,
                    Cell::Images,
                    Cell::Selector,
                ],
            )
        },
        Plain {
            rules: controller_revision,
            acted_on: true,
            ..plain(
                &resource::CONTROLLERREVISIONS,
                const { &[Column::NAME, string("Controller"), string("Revision"), Column::AGE] },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| {
                        let owners = o.list_at(&["metadata", "ownerReferences"]);
                        owners.iter().find(|r| r.bool_at(&["controller"])).map_or_else(|| "<none>".into(), |r| print_owner(r).into())
                    }),
                    Cell::Number(&["revision"]),
                    Cell::Age,
                ],
            )
        },
    ]
}

/// `statefulset.apps/web`.
fn print_owner(owner: &Value) -> String {
    let kind = owner.str_at(&["kind"]).to_lowercase();
    let group = owner.str_at(&["apiVersion"]).split_once('/').map_or("", |(group, _)| group);
    let dot = if group.is_empty() { "" } else { "." };
    format!("{kind}{dot}{group}/{}", owner.str_at(&["name"]))
}

fn negative_history(object: &Value) -> Option<String> {
    let text = "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended";
    object.i64_at(&["spec", "revisionHistoryLimit"]).filter(|n| *n < 0).map(|_| text.to_string())
}

// --- stateful sets

/// Behind a gate that is off.
const MAX_UNAVAILABLE: [&str; 4] = ["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"];

fn default_stateful_set(object: &mut Value) {
    let spec = object.make_map(&["spec"]);
    spec.insert_default("replicas", 1);
    spec.insert_default("revisionHistoryLimit", 10);
    if spec.str("podManagementPolicy").is_empty() {
        spec.insert("podManagementPolicy", "OrderedReady");
    }
    let strategy = spec.map_slot("updateStrategy");
    if strategy.str("type").is_empty() {
        strategy.insert("type", "RollingUpdate");
        strategy.map_slot("rollingUpdate");
    }
    if strategy.str("type") == "RollingUpdate"
        && let Some(rolling) = strategy.get_mut("rollingUpdate").and_then(Value::as_map_mut)
    {
        rolling.insert_default("partition", 0);
    }
    let retention = spec.map_slot("persistentVolumeClaimRetentionPolicy");
    for key in ["whenDeleted", "whenScaled"] {
        if retention.str(key).is_empty() {
            retention.insert(key, "Retain");
        }
    }
    pod_defaults::each(spec, "volumeClaimTemplates", claims::default_template);
    pod_defaults::template(spec.slot("template"));
}

fn stateful_set(set: &At, old: Option<&At>) {
    stateful_set_spec(set, old);
    let Some(old) = old else { return };
    const FREE: [&str; 7] = [
        "replicas",
        "template",
        "updateStrategy",
        "minReadySeconds",
        "ordinals",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
    ];
    let fixed = |at: &At| -> Value {
        let kept = at.get("spec").value.as_map().into_iter().flat_map(|m| m.iter()).filter(|(key, _)| !FREE.contains(key));
        kept.map(|(key, v)| (key.to_string(), v.clone())).collect::<Map>().into()
    };
    if !same(&fixed(set), &fixed(old)) {
        set.get("spec").forbidden(
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
}

fn stateful_set_spec(set: &At, old: Option<&At>) {
    let spec = set.get("spec");
    let policy = spec.get("podManagementPolicy");
    match policy.str() {
        "" => policy.required(""),
        "OrderedReady" | "Parallel" => {}
        _ => policy.invalid("must be 'OrderedReady' or 'Parallel'"),
    }
    let strategy = spec.get("updateStrategy");
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").str() {
        "" => strategy.required(""),
        "OnDelete" if rolling.is_set() => rolling.invalid("only allowed for updateStrategy 'RollingUpdate'"),
        "OnDelete" => {}
        "RollingUpdate" => {
            rolling.get("partition").not_negative();
            let unavailable = rolling.get("maxUnavailable");
            if unavailable.is_set() {
                unavailable.int_or_percent();
                if int_or_percent(&unavailable) == 0 {
                    unavailable.invalid("cannot be 0");
                }
                not_over_100_percent(&unavailable);
            }
        }
        _ => strategy.invalid("must be 'RollingUpdate' or 'OnDelete'"),
    }
    let retention = spec.get("persistentVolumeClaimRetentionPolicy");
    if retention.is_set() {
        retention.get("whenDeleted").one_of(&["Retain", "Delete"]);
        retention.get("whenScaled").one_of(&["Retain", "Delete"]);
    }
    if old.is_none() {
        for claim in spec.get("volumeClaimTemplates").each() {
            claims::spec(&claim.get("spec"), None);
        }
    }
    workload::counts(&spec, &["replicas", "minReadySeconds"]);
    spec.at(&["ordinals", "start"]).not_negative();
    if old.is_none() {
        spec.get("serviceName").may_be(validation::label);
    }
    let selector = spec.get("selector");
    if !selector.is_set() {
        selector.required("");
    }
    selector.label_selector();
    match selects(&selector) {
        Selects::Everything => selector.invalid("empty selector is invalid for statefulset"),
        Selects::Unreadable => selector.invalid(""),
        Selects::Nothing | Selects::Some => {}
    }
    let template = spec.get("template");
    if selects(&selector) != Selects::Unreadable {
        if selects(&selector) != Selects::Everything {
            workload::selector_matches(&selector, &template);
        }
        if old.is_none() || !same(template.value, old.expect("not none").at(&["spec", "template"]).value) {
            pod_template(&spec);
        }
        template.get("metadata").get("labels").called(format!("{}.labels", template.path)).labels();
        let annotations = template.at(&["metadata", "annotations"]);
        annotations.with(|errors, _| validation::annotations(errors, "spec.template.annotations", Some(annotations.value)));
    }
    workload::runs_for_good(&template, "StatefulSet");
}

/// The template as pods will be made of it: with a volume per claim template, and host name and subdomain of our own.
fn pod_template(spec: &At) {
    let claims: Vec<&str> = spec.get("volumeClaimTemplates").each().iter().map(|c| c.at(&["metadata", "name"]).str()).collect();
    let template = spec.get("template");
    let mut as_made = template.value.clone();
    let pod = as_made.make_map(&["spec"]);
    pod.remove("subdomain");
    pod.remove("hostname");
    if !claims.is_empty() {
        let mut volumes: Vec<Value> =
            claims.iter().map(|name| value!({"name": name, "persistentVolumeClaim": {"claimName": name}})).collect();
        let own = pod.list_slot("volumes");
        volumes.extend(own.iter().filter(|v| !claims.contains(&v.str_at(&["name"]))).cloned());
        *own = volumes;
    }
    template.with(|errors, at| crate::server::kinds::core::pod_spec::template(errors, at, &as_made));
}

/// The number, or how much a percentage is.
fn int_or_percent(at: &At) -> i64 {
    at.percent().unwrap_or(at.int())
}

fn not_over_100_percent(at: &At) {
    if at.percent().is_some_and(|p| p > 100) {
        at.invalid("must not be greater than 100%");
    }
}

// --- daemon sets

fn default_daemon_set(object: &mut Value) {
    // Ever there, for whoever keeps track of fields.
    if object.at(&TEMPLATE_GENERATION).is_none() {
        object.set(&TEMPLATE_GENERATION, "0");
    }
    let spec = object.make_map(&["spec"]);
    spec.insert_default("revisionHistoryLimit", 10);
    let strategy = spec.map_slot("updateStrategy");
    if strategy.str("type").is_empty() {
        strategy.insert("type", "RollingUpdate");
    }
    if strategy.str("type") == "RollingUpdate" {
        let rolling = strategy.map_slot("rollingUpdate");
        rolling.insert_default("maxUnavailable", 1);
        rolling.insert_default("maxSurge", 0);
    }
    pod_defaults::template(spec.slot("template"));
}

const TEMPLATE_GENERATION: [&str; 3] = ["metadata", "annotations", "deprecated.daemonset.template.generation"];

/// The generation of the template lives in an annotation since it left the spec.
fn count_template_generation(_: &Context, new: &mut Value, old: &Value) {
    pod_defaults::drop_disabled(new.make_map(&["spec", "template", "spec"]));
    let before: i64 = old.str_at(&TEMPLATE_GENERATION).parse().unwrap_or(1);
    let template = |o: &Value| o.at(&["spec", "template"]).cloned().unwrap_or_default();
    let changed = !same(&template(new), &template(old));
    new.set(&TEMPLATE_GENERATION, (before + i64::from(changed)).to_string());
}

fn daemon_set(set: &At, old: Option<&At>) {
    let spec = set.get("spec");
    if let Some(old) = old {
        spec.get("selector").immutable(&old.at(&["spec", "selector"]));
    }
    let (selector, template) = (spec.get("selector"), spec.get("template"));
    selector.label_selector();
    workload::selector_matches(&selector, &template);
    if selects(&selector) == Selects::Everything {
        selector.invalid("empty selector is invalid for daemonset");
    }
    workload::template(&template);
    workload::runs_for_good(&template, "DaemonSet");
    workload::counts(&spec, &["minReadySeconds", "revisionHistoryLimit"]);
    let strategy = spec.get("updateStrategy");
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").str() {
        "OnDelete" => {}
        "RollingUpdate" if !rolling.is_set() => rolling.required(""),
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            for at in [&unavailable, &surge] {
                at.int_or_percent();
                not_over_100_percent(at);
            }
            match (int_or_percent(&unavailable) != 0, int_or_percent(&surge) != 0) {
                (true, true) => surge.invalid("may not be set when maxUnavailable is non-zero"),
                (false, false) => unavailable.required("cannot be 0 when maxSurge is 0"),
                _ => {}
            }
        }
        _ => strategy.unsupported(&["RollingUpdate", "OnDelete"]),
    }
}

// --- controller revisions

fn controller_revision(revision: &At, old: Option<&At>) {
    let data = revision.get("data");
    revision.get("revision").not_negative();
    match old {
        Some(old) => data.immutable(&old.get("data")),
        None if !data.is_set() => data.required("data is mandatory"),
        None if !matches!(data.value, Value::Map(_)) => data.required("data must be a valid JSON object"),
        None => {}
    }
}
