//! Horizontal pod autoscalers, as `autoscaling/v2` has them; `autoscaling/v1` keeps the rest in annotations.

use crate::api::resource::{self, Resource};
use crate::api::status::{FieldError, Result};
use crate::api::time::Time;
use crate::api::value::{Map, Value};
use crate::server::cursor::{self, At};
use crate::server::kinds::plain::{Cell, Plain, plain, string};
use crate::server::kinds::workload;
use crate::server::strategy::{Column, Context, Strategy};
use crate::server::validation;
use crate::value;

pub struct Autoscalers;

impl Strategy for Autoscalers {
    fn resource(&self) -> &'static Resource {
        resource::HORIZONTALPODAUTOSCALERS.storage()
    }
    fn is_acted_on(&self) -> bool {
        false
    }
    fn to_storage(&self, from: &'static Resource, object: &mut Value) -> Result<()> {
        if from.version == "v1" {
            from_v1(object);
        }
        Ok(())
    }
    fn from_storage(&self, to: &'static Resource, object: &mut Value) {
        if to.version == "v1" {
            to_v1(object);
        }
    }
    fn default(&self, object: &mut Value) {
        default(object);
    }
    fn validate(&self, _: &Context, object: &Value) -> Vec<FieldError> {
        cursor::validate(self.resource().type_ref(), object, |at| rules(at, None))
    }
    fn validate_update(&self, _: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        cursor::validate(self.resource().type_ref(), new, |at| rules(at, Some(&at.over(Some(old)))))
    }
    fn validate_status_update(&self, _: &Context, new: &Value, _: &Value) -> Vec<FieldError> {
        cursor::validate(self.resource().type_ref(), new, |at| {
            workload::counts(&at.get("status"), &["currentReplicas", "desiredReplicas"]);
        })
    }
    fn columns(&self) -> &'static [Column] {
        ROW.columns
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        ROW.row(object, now)
    }
}

static ROW: Plain = plain(
    &resource::HORIZONTALPODAUTOSCALERS,
    const { &[Column::NAME, string("Reference"), string("Targets"), string("MinPods"), string("MaxPods"), string("Replicas"), Column::AGE] },
    &[
        Cell::Name,
        Cell::Custom(|o, _| {
            let target = |key: &str| o.str_at(&["spec", "scaleTargetRef", key]);
            format!("{}/{}", target("kind"), target("name")).into()
        }),
        Cell::Custom(|o, _| print_metrics(o).into()),
        Cell::Custom(|o, _| o.i64_at(&["spec", "minReplicas"]).map_or_else(|| "<unset>".to_string(), |n| n.to_string()).into()),
        Cell::Number(&["spec", "maxReplicas"]),
        Cell::Number(&["status", "currentReplicas"]),
        Cell::Age,
    ],
);

fn print_metrics(object: &Value) -> String {
    let specs = object.list_at(&["spec", "metrics"]);
    let statuses = object.list_at(&["status", "currentMetrics"]);
    if specs.is_empty() {
        return "<none>".to_string();
    }
    let mut shown: Vec<String> = specs.iter().enumerate().take(2).map(|(i, m)| print_metric(m, statuses.get(i))).collect();
    if specs.len() > 2 {
        let last = shown.len() - 1;
        shown[last] = format!("{} + {} more...", shown[last], specs.len() - 2);
    }
    shown.join(", ")
}

fn print_metric(spec: &Value, status: Option<&Value>) -> String {
    let (source, name) = match spec.str_at(&["type"]) {
        "External" => ("external", ""),
        "Pods" => ("pods", ""),
        "Object" => ("object", ""),
        "Resource" => ("resource", spec.str_at(&["resource", "name"])),
        "ContainerResource" => ("containerResource", spec.str_at(&["containerResource", "name"])),
        _ => return "<unknown type>".to_string(),
    };
    let current = |key: &str| match status.and_then(|s| s.at(&[source, "current", key])) {
        Some(Value::Int(n)) => format!("{n}%"),
        Some(Value::Str(s)) => s.clone(),
        _ => "<unknown>".to_string(),
    };
    let target = |key: &str| spec.at(&[source, "target", key]);
    let text = |v: &Value| v.as_str().unwrap_or("").to_string();
    let average = target("averageValue").map(|v| format!("{}/{}", current("averageValue"), text(v)));
    match source {
        "resource" | "containerResource" => average.map(|a| format!("{name}: {a}")).unwrap_or_else(|| {
            let wanted = target("averageUtilization").and_then(Value::as_i64).map_or_else(|| "<auto>".to_string(), |n| format!("{n}%"));
            format!("{name}: {}/{wanted}", current("averageUtilization"))
        }),
        "pods" => average.unwrap_or_default(),
        _ => match average {
            Some(average) => format!("{average} (avg)"),
            None => format!("{}/{}", current("value"), target("value").map_or_else(|| "<auto>".to_string(), text)),
        },
    }
}

// --- defaults

fn default(object: &mut Value) {
    let spec = object.make_map(&["spec"]);
    spec.insert_default("minReplicas", 1);
    if spec.get("metrics").and_then(Value::as_list).is_none_or(<[Value]>::is_empty) {
        let cpu = value!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}});
        spec.insert("metrics", vec![cpu]);
    }
    let Some(behavior) = spec.get_mut("behavior").and_then(Value::as_map_mut) else { return };
    let percent = value!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = value!({"type": "Pods", "value": 4, "periodSeconds": 15});
    for (direction, policies) in [("scaleUp", vec![pods, percent.clone()]), ("scaleDown", vec![percent])] {
        let rules = behavior.map_slot(direction);
        rules.insert_default("selectPolicy", "Max");
        rules.insert_default("policies", policies);
        if direction == "scaleUp" {
            rules.insert_default("stabilizationWindowSeconds", 0);
        }
    }
}

// --- autoscaling/v1

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// The CPU utilization of v1 is a metric; the annotations hold what v1 has no fields for.
fn from_v1(object: &mut Value) {
    let mut annotations = object.map_at(&["metadata", "annotations"]).cloned().unwrap_or_default();
    let mut read = |key: &str| annotations.remove(key).and_then(|v| crate::api::json::parse(v.as_str()?.as_bytes()).ok());
    let mut metrics = match read(METRICS) {
        Some(Value::List(list)) => list.into_iter().map(metric_from_v1).collect(),
        _ => Vec::new(),
    };
    let current = read(CURRENT_METRICS);
    let conditions = read(CONDITIONS);
    let behavior = read(BEHAVIOR);
    if let Some(percent) = object.remove(&["spec", "targetCPUUtilizationPercentage"]).filter(|v| !v.is_null()) {
        let cpu = value!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}});
        metrics.insert(0, cpu);
        metrics[0].set(&["resource", "target", "averageUtilization"], percent);
    }
    if !metrics.is_empty() {
        object.set(&["spec", "metrics"], metrics);
    }
    if let Some(behavior) = behavior {
        object.set(&["spec", "behavior"], lower_keys(behavior));
    }
    let now = object.remove(&["status", "currentCPUUtilizationPercentage"]).filter(|v| !v.is_null());
    let mut statuses = match current {
        Some(Value::List(list)) => list.into_iter().map(status_from_v1).collect(),
        _ => Vec::new(),
    };
    if let Some(percent) = now {
        let mut cpu = value!({"type": "Resource", "resource": {"name": "cpu", "current": {}}});
        cpu.set(&["resource", "current", "averageUtilization"], percent);
        statuses.insert(0, cpu);
    }
    if !statuses.is_empty() {
        object.set(&["status", "currentMetrics"], statuses);
    }
    if let Some(conditions) = conditions {
        object.set(&["status", "conditions"], conditions);
    }
    match annotations.is_empty() {
        true => drop(object.remove(&["metadata", "annotations"])),
        false => object.set(&["metadata", "annotations"], annotations),
    }
}

fn to_v1(object: &mut Value) {
    let mut annotations = object.map_at(&["metadata", "annotations"]).cloned().unwrap_or_default();
    let mut metrics = match object.remove(&["spec", "metrics"]) {
        Some(Value::List(list)) => list,
        _ => Vec::new(),
    };
    // The first CPU utilization has a field of its own.
    let is_cpu = |m: &Value, holder: &str| {
        m.str_at(&["type"]) == "Resource"
            && m.str_at(&["resource", "name"]) == "cpu"
            && m.at(&["resource", holder, "averageUtilization"]).is_some()
    };
    if let Some(i) = metrics.iter().position(|m| is_cpu(m, "target")) {
        let cpu = metrics.remove(i);
        let percent = cpu.at(&["resource", "target", "averageUtilization"]).cloned().unwrap_or_default();
        object.set(&["spec", "targetCPUUtilizationPercentage"], percent);
    }
    if !metrics.is_empty() {
        annotations.insert(METRICS, written(&Value::List(metrics.into_iter().map(metric_to_v1).collect())));
    }
    if let Some(behavior) = object.remove(&["spec", "behavior"]).filter(|v| !v.is_null()) {
        annotations.insert(BEHAVIOR, written(&upper_keys(whole_behavior(behavior))));
    }
    if let Some(Value::List(mut statuses)) = object.remove(&["status", "currentMetrics"]) {
        if let Some(i) = statuses.iter().position(|m| is_cpu(m, "current")) {
            let cpu = statuses.remove(i);
            let percent = cpu.at(&["resource", "current", "averageUtilization"]).cloned().unwrap_or_default();
            object.set(&["status", "currentCPUUtilizationPercentage"], percent);
        }
        if !statuses.is_empty() {
            annotations.insert(CURRENT_METRICS, written(&Value::List(statuses.into_iter().map(status_to_v1).collect())));
        }
    }
    if let Some(conditions) = object.remove(&["status", "conditions"]).filter(|v| !v.is_null()) {
        annotations.insert(CONDITIONS, written(&conditions));
    }
    for count in ["currentReplicas", "desiredReplicas"] {
        object.make_map(&["status"]).insert_default(count, 0);
    }
    if !annotations.is_empty() {
        object.set(&["metadata", "annotations"], annotations);
    }
}

/// The members of everything in the annotations, in the order upstream's types have them; no two disagree.
#[rustfmt::skip]
const WRITTEN_ORDER: [&str; 39] = [
    "type", "status", "lastTransitionTime", "reason", "message", "object", "pods", "resource", "containerResource", "external", "target",
    "kind", "name", "apiVersion", "metricName", "metricSelector", "targetValue", "currentValue", "targetAverageUtilization",
    "currentAverageUtilization", "targetAverageValue", "currentAverageValue", "selector", "averageValue", "container", "matchLabels",
    "matchExpressions", "key", "operator", "values", "ScaleUp", "ScaleDown", "StabilizationWindowSeconds", "SelectPolicy", "Policies",
    "Tolerance", "Type", "Value", "PeriodSeconds",
];

/// JSON with members in that order.
fn written(value: &Value) -> String {
    match value {
        Value::Map(map) => {
            let mut members: Vec<(&str, &Value)> = map.iter().collect();
            members.sort_by_key(|(key, _)| WRITTEN_ORDER.iter().position(|k| k == key));
            // Labels are no members.
            let text = |key: &str, v: &Value| if key == "matchLabels" { v.to_string() } else { written(v) };
            let all: Vec<String> = members.iter().map(|(key, v)| format!("{}:{}", Value::from(*key), text(key, v))).collect();
            format!("{{{}}}", all.join(","))
        }
        Value::List(list) => format!("[{}]", list.iter().map(written).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

/// Upstream writes the internal type, which leaves nothing out.
fn whole_behavior(mut behavior: Value) -> Value {
    for direction in ["scaleUp", "scaleDown"] {
        let rules = behavior.make_map(&[direction]);
        for member in ["stabilizationWindowSeconds", "selectPolicy", "policies", "tolerance"] {
            rules.insert_default(member, Value::Null);
        }
    }
    behavior
}

/// Moves `from` to `to` within a map, if it is there.
fn rename(map: &mut Map, from: &str, to: &'static str) {
    if let Some(v) = map.remove(from) {
        map.insert(to, v);
    }
}

/// v2's metric as v1's annotation has it: one flat map per source.
fn metric_to_v1(mut metric: Value) -> Value {
    let Some(map) = metric.as_map_mut() else { return metric };
    for (source, names) in SOURCES {
        let Some(inner) = map.get_mut(source).and_then(Value::as_map_mut) else { continue };
        let identifier = inner.remove("metric").unwrap_or_default();
        let target = inner.remove("target").unwrap_or_default();
        for (from, to) in [("name", names.name), ("selector", names.selector)] {
            if let Some(v) = identifier.get(from) {
                inner.insert(to, v.clone());
            }
        }
        for (from, to) in [("value", names.value), ("averageValue", names.average), ("averageUtilization", "targetAverageUtilization")] {
            if let Some(v) = target.get(from) {
                inner.insert(to, v.clone());
            }
        }
        rename(inner, "describedObject", "target");
        if source == "object" {
            inner.insert_default("targetValue", "0");
        }
    }
    metric
}

fn metric_from_v1(mut metric: Value) -> Value {
    let Some(map) = metric.as_map_mut() else { return metric };
    for (source, names) in SOURCES {
        let Some(inner) = map.get_mut(source).and_then(Value::as_map_mut) else { continue };
        rename(inner, "target", "describedObject");
        let (mut identifier, mut target) = (Map::new(), Map::new());
        if source != "resource" && source != "containerResource" {
            for (from, to) in [(names.name, "name"), (names.selector, "selector")] {
                if let Some(v) = inner.remove(from) {
                    identifier.insert(to, v);
                }
            }
            inner.insert("metric", identifier);
        }
        for (from, to, kind) in [
            (names.value, "value", "Value"),
            (names.average, "averageValue", "AverageValue"),
            ("targetAverageUtilization", "averageUtilization", "Utilization"),
        ] {
            if let Some(v) = inner.remove(from).filter(|v| !v.is_null()) {
                target.insert(to, v);
                target.insert("type", kind);
            }
        }
        inner.insert("target", target);
    }
    metric
}

fn status_to_v1(mut status: Value) -> Value {
    let Some(map) = status.as_map_mut() else { return status };
    for (source, names) in SOURCES {
        let Some(inner) = map.get_mut(source).and_then(Value::as_map_mut) else { continue };
        let identifier = inner.remove("metric").unwrap_or_default();
        let current = inner.remove("current").unwrap_or_default();
        for (from, to) in [("name", names.name), ("selector", names.selector)] {
            if let Some(v) = identifier.get(from) {
                inner.insert(to, v.clone());
            }
        }
        for (from, to) in
            [("value", "currentValue"), ("averageValue", "currentAverageValue"), ("averageUtilization", "currentAverageUtilization")]
        {
            if let Some(v) = current.get(from) {
                inner.insert(to, v.clone());
            }
        }
        rename(inner, "describedObject", "target");
    }
    status
}

fn status_from_v1(mut status: Value) -> Value {
    let Some(map) = status.as_map_mut() else { return status };
    for (source, names) in SOURCES {
        let Some(inner) = map.get_mut(source).and_then(Value::as_map_mut) else { continue };
        rename(inner, "target", "describedObject");
        let (mut identifier, mut current) = (Map::new(), Map::new());
        if source != "resource" && source != "containerResource" {
            for (from, to) in [(names.name, "name"), (names.selector, "selector")] {
                if let Some(v) = inner.remove(from) {
                    identifier.insert(to, v);
                }
            }
            inner.insert("metric", identifier);
        }
        for (from, to) in
            [("currentValue", "value"), ("currentAverageValue", "averageValue"), ("currentAverageUtilization", "averageUtilization")]
        {
            if let Some(v) = inner.remove(from).filter(|v| !v.is_null()) {
                current.insert(to, v);
            }
        }
        inner.insert("current", current);
    }
    status
}

/// How v1's annotation names the parts of a source.
struct Names {
    name: &'static str,
    selector: &'static str,
    value: &'static str,
    average: &'static str,
}

const SOURCES: [(&str, Names); 5] = [
    ("object", Names { name: "metricName", selector: "selector", value: "targetValue", average: "averageValue" }),
    ("pods", Names { name: "metricName", selector: "selector", value: "", average: "targetAverageValue" }),
    ("resource", Names { name: "name", selector: "", value: "", average: "targetAverageValue" }),
    ("containerResource", Names { name: "name", selector: "", value: "", average: "targetAverageValue" }),
    ("external", Names { name: "metricName", selector: "metricSelector", value: "targetValue", average: "targetAverageValue" }),
];

/// The behaviour annotation is upstream's internal type, which has no JSON names.
fn upper_keys(value: Value) -> Value {
    map_keys(value, &|key| key[..1].to_uppercase() + &key[1..])
}

fn lower_keys(value: Value) -> Value {
    map_keys(value, &|key| key[..1].to_lowercase() + &key[1..])
}

fn map_keys(value: Value, name: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::Map(map) => map.into_iter().map(|(key, v)| (name(&key), map_keys(v, name))).collect::<Map>().into(),
        Value::List(list) => Value::List(list.into_iter().map(|v| map_keys(v, name)).collect()),
        other => other,
    }
}

// --- rules

fn rules(hpa: &At, old: Option<&At>) {
    let spec = hpa.get("spec");
    let was = old.map(|o| o.get("spec"));
    let (min, max) = (spec.get("minReplicas"), spec.get("maxReplicas"));
    let lowest = i64::from(was.as_ref().is_none_or(|w| !w.get("minReplicas").is_set() || w.get("minReplicas").int() != 0));
    if min.is_set() && min.int() < lowest {
        min.invalid(format!("must be greater than or equal to {lowest}"));
    }
    match max.int() {
        0 => max.required("must be set and greater than 0"),
        ..0 => max.invalid("must be greater than or equal to 1"),
        _ => {}
    }
    if min.is_set() && max.int() < min.int() {
        max.invalid_as(max.int(), "must be greater than or equal to `minReplicas`");
    }
    let target = spec.get("scaleTargetRef");
    let unchanged = was.as_ref().is_some_and(|w| {
        let before = w.get("scaleTargetRef");
        ["apiVersion", "kind"].iter().all(|key| before.get(key).str() == target.get(key).str())
    });
    let group = if unchanged { Group::Any } else { Group::Required };
    reference(
        &target,
        if group == Group::Required && target.get("kind").str() == "ReplicationController" { Group::Optional } else { group },
    );
    metrics(&spec, was.as_ref());
    for direction in ["scaleUp", "scaleDown"] {
        let rules = spec.at(&["behavior", direction]);
        if rules.is_set() {
            scaling_rules(&rules);
        }
    }
}

/// What an apiVersion must have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Required,
    Optional,
    /// Whatever it is.
    Any,
}

fn bad_api_version(text: &str, group: Group) -> Option<String> {
    match text.matches('/').count() {
        _ if group == Group::Any => None,
        0 | 1 => (group == Group::Required && !text.contains('/')).then(|| "apiVersion must specify API group".to_string()),
        _ => Some(format!("unexpected GroupVersion string: {text}")),
    }
}

fn reference(at: &At, group: Group) {
    at.get("kind").must_be(segment);
    at.get("name").must_be(segment);
    let version = at.get("apiVersion");
    if let Some(why) = bad_api_version(version.str(), group) {
        version.invalid_as(version.str(), why);
    }
}

fn segment(text: &str) -> Vec<String> {
    validation::path_segment(text, false)
}

const TYPES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];

fn metrics(spec: &At, was: Option<&At>) {
    let list = spec.get("metrics");
    let old_object = |m: &At| {
        let object = m.get("object");
        m.get("type").str() == "Object" && bad_api_version(object.at(&["describedObject", "apiVersion"]).str(), Group::Optional).is_some()
    };
    let tolerated = was.is_some_and(|w| w.get("metrics").each().iter().any(old_object));
    let group = if tolerated { Group::Any } else { Group::Optional };
    for metric in list.each() {
        self::metric(&metric, group);
    }
    let min = spec.get("minReplicas");
    let scales_to_zero = list.each().iter().any(|m| matches!(m.get("type").str(), "Object" | "External"));
    if min.is_set() && min.int() == 0 && !scales_to_zero {
        list.forbidden("must specify at least one Object or External metric to support scaling to zero replicas");
    }
}

fn metric(metric: &At, group: Group) {
    let kind = metric.get("type");
    kind.must_because("must specify a metric source type");
    kind.one_of(&TYPES);
    let mut present = Vec::new();
    for source in ["object", "external", "pods", "resource", "containerResource"] {
        let at = metric.get(source);
        if !at.is_set() {
            continue;
        }
        present.push(source);
        if present.len() == 1 {
            metric_source(source, &at, group);
        }
    }
    let expected = match kind.str() {
        "Object" => "object",
        "Pods" => "pods",
        "Resource" => "resource",
        "External" => "external",
        "ContainerResource" => "containerResource",
        _ => "",
    };
    if expected.is_empty() {
        kind.one_of(&TYPES);
    } else if !metric.get(expected).is_set() {
        metric.get(expected).required("must populate information for the given metric source");
    }
    if present.len() != 1 {
        for other in present.into_iter().filter(|p| *p != expected) {
            metric.get(other).forbidden("must populate the given metric source only");
        }
    }
}

fn metric_source(source: &str, at: &At, group: Group) {
    let target = at.get("target");
    let (value, average) = (target.get("value"), target.get("averageValue"));
    let utilization = target.get("averageUtilization");
    let identifier = || {
        let name = at.at(&["metric", "name"]);
        if name.must_because("must specify a metric name") {
            name.ok(segment);
        }
    };
    match source {
        "object" => {
            reference(&at.get("describedObject"), group);
            identifier();
            metric_target(&target);
            if !value.is_set() && !average.is_set() {
                average.required("must set either a target value or averageValue");
            }
        }
        "external" => {
            identifier();
            metric_target(&target);
            match (value.is_set(), average.is_set()) {
                (false, false) => average.required("must set either a target value for metric or a per-pod target"),
                (true, true) => value.forbidden("may not set both a target value for metric and a per-pod target"),
                _ => {}
            }
        }
        "pods" => {
            identifier();
            metric_target(&target);
            if !average.is_set() {
                average.required("must specify a positive target averageValue");
            }
        }
        _ => {
            let name = at.get("name");
            let named = name.must_because("must specify a resource name");
            if source == "containerResource" {
                if named {
                    name.with(|errors, path| crate::server::kinds::core::pod_spec::resource_name(errors, path, name.str()));
                }
                let container = at.get("container");
                if container.must_because("must specify a container") {
                    container.ok(validation::label);
                }
            }
            metric_target(&target);
            match (utilization.is_set(), average.is_set()) {
                (false, false) => utilization.required("must set either a target raw value or a target utilization"),
                (true, true) => average.forbidden("may not set both a target raw value and a target utilization"),
                _ => {}
            }
        }
    }
}

fn metric_target(target: &At) {
    let kind = target.get("type");
    kind.must_because("must specify a metric target type");
    if !matches!(kind.str(), "Utilization" | "Value" | "AverageValue") {
        kind.invalid_as(kind.str(), "must be either Utilization, Value, or AverageValue");
    }
    for key in ["value", "averageValue"] {
        let amount = target.get(key);
        if amount.quantity().is_some_and(|q| q.sign() <= 0) {
            amount.invalid("must be positive");
        }
    }
    let utilization = target.get("averageUtilization");
    if utilization.is_set() && utilization.int() < 1 {
        utilization.invalid("must be greater than 0");
    }
}

fn scaling_rules(rules: &At) {
    let window = rules.get("stabilizationWindowSeconds");
    if window.int() < 0 {
        window.invalid("must be greater than or equal to zero");
    }
    if window.int() > 3600 {
        window.invalid("must be less than or equal to 3600");
    }
    rules.get("selectPolicy").maybe_one_of(&["Disabled", "Max", "Min"]);
    let policies = rules.get("policies");
    policies.must_because("must specify at least one Policy");
    for policy in policies.each() {
        policy.get("type").one_of(&["Percent", "Pods"]);
        policy.get("value").positive();
        let period = policy.get("periodSeconds");
        period.positive();
        if period.int() > 1800 {
            period.invalid("must be less than or equal to 1800");
        }
    }
    let tolerance = rules.get("tolerance");
    if tolerance.quantity().is_some_and(|q| q.sign() < 0) {
        tolerance.invalid("must be greater than or equal to 0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_v1_cannot_say_survives_in_annotations() {
        let mut hpa = value!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 3, "metrics": [
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
            {"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "1"}}}]}});
        let before = hpa.clone();
        to_v1(&mut hpa);
        assert_eq!(hpa.i64_at(&["spec", "targetCPUUtilizationPercentage"]), Some(50));
        hpa.remove(&["status"]);
        from_v1(&mut hpa);
        assert_eq!(hpa, before);
    }
}
