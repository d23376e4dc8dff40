//! Deployments and ReplicaSets: a template, a selector that must match it, and how many.

use crate::api::resource::{self, Resource};
use crate::api::status::{FieldError, Result};
use crate::api::time::Time;
use crate::api::value::{Map, Value};
use crate::server::cursor;
use crate::server::kinds::core::{matches_selector, pod_defaults, pod_spec, print_selector};
use crate::server::kinds::workload;
use crate::server::strategy::{Column, Context, Strategy, begin_create, begin_update};
use crate::server::{table, validation};
use crate::value;

pub struct Deployments;

impl Strategy for Deployments {
    fn resource(&self) -> &'static Resource {
        &resource::DEPLOYMENTS
    }
    fn default(&self, object: &mut Value) {
        let spec = object.make_map(&["spec"]);
        spec.insert_default("replicas", 1);
        spec.insert_default("revisionHistoryLimit", 10);
        spec.insert_default("progressDeadlineSeconds", 600);
        let strategy = spec.map_slot("strategy");
        if strategy.str("type").is_empty() {
            strategy.insert("type", "RollingUpdate");
        }
        if strategy.str("type") == "RollingUpdate" {
            let rolling = strategy.map_slot("rollingUpdate");
            rolling.insert_default("maxUnavailable", "25%");
            rolling.insert_default("maxSurge", "25%");
        }
        pod_defaults::template(spec.slot("template"));
    }
    fn prepare_create(&self, _: &Context, object: &mut Value) -> Result<()> {
        begin_create(self, object);
        pod_defaults::drop_disabled(object.make_map(&["spec", "template", "spec"]));
        Ok(())
    }
    /// Annotations are part of what the controller acts on: they count as a new generation.
    fn prepare_update(&self, _: &Context, new: &mut Value, old: &Value) -> Result<()> {
        pod_defaults::drop_disabled(new.make_map(&["spec", "template", "spec"]));
        begin_update(self, new, old);
        let annotations = |v: &Value| v.map_at(&["metadata", "annotations"]).cloned().unwrap_or_default();
        let generation = old.i64_at(&["metadata", "generation"]).unwrap_or(0);
        if annotations(new) != annotations(old) {
            new.set(&["metadata", "generation"], generation + 1);
        }
        Ok(())
    }
    fn validate(&self, _: &Context, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let empty = Value::map();
        let spec = object.get("spec").unwrap_or(&empty);
        replicas_and_template(&mut errors, spec);
        rollout(&mut errors, spec.get("strategy").unwrap_or(&empty));
        let number = |key: &str| spec.i64_at(&[key]);
        let ready = number("minReadySeconds").unwrap_or(0);
        validation::non_negative(&mut errors, "spec.minReadySeconds", ready);
        if let Some(n) = number("revisionHistoryLimit") {
            validation::non_negative(&mut errors, "spec.revisionHistoryLimit", n);
        }
        if let Some(n) = number("progressDeadlineSeconds") {
            validation::non_negative(&mut errors, "spec.progressDeadlineSeconds", n);
            if n <= ready {
                errors.push(FieldError::invalid("spec.progressDeadlineSeconds", n, "must be greater than minReadySeconds"));
            }
        }
        errors
    }
    fn validate_update(&self, context: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(context, new);
        immutable_selector(&mut errors, new, old);
        errors
    }
    fn warnings(&self, _: &Context, new: &Value, old: Option<&Value>) -> Vec<String> {
        workload::template_warnings(new, old, &["spec", "template"])
    }
    fn validate_status_update(&self, _: &Context, new: &Value, _: &Value) -> Vec<FieldError> {
        let counts = ["observedGeneration", "replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas"];
        status(new, &counts)
    }
    fn columns(&self) -> &'static [Column] {
        const {
            &[
                Column::NAME,
                Column::new("Ready", "string"),
                Column::new("Up-to-date", "string"),
                Column::new("Available", "string"),
                Column::AGE,
                Column::wide("Containers", "string"),
                Column::wide("Images", "string"),
                Column::wide("Selector", "string"),
            ]
        }
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        let count = |path: &[&str]| object.i64_at(path).unwrap_or(0);
        let ready = format!("{}/{}", count(&["status", "readyReplicas"]), count(&["spec", "replicas"]));
        let (containers, images) = containers(object);
        vec![
            object.str_at(&["metadata", "name"]).into(),
            ready.into(),
            count(&["status", "updatedReplicas"]).into(),
            count(&["status", "availableReplicas"]).into(),
            table::age(object, now).into(),
            containers.into(),
            images.into(),
            print_selector(object.at(&["spec", "selector"]).unwrap_or(&Value::Null)).into(),
        ]
    }
}

pub struct ReplicaSets;

impl Strategy for ReplicaSets {
    fn resource(&self) -> &'static Resource {
        &resource::REPLICASETS
    }
    fn default(&self, object: &mut Value) {
        let spec = object.make_map(&["spec"]);
        spec.insert_default("replicas", 1);
        pod_defaults::template(spec.slot("template"));
    }
    fn prepare_create(&self, _: &Context, object: &mut Value) -> Result<()> {
        object.set(&["status"], value!({"replicas": 0}));
        object.set(&["metadata", "generation"], 1);
        pod_defaults::drop_disabled(object.make_map(&["spec", "template", "spec"]));
        Ok(())
    }
    fn prepare_update(&self, _: &Context, new: &mut Value, old: &Value) -> Result<()> {
        pod_defaults::drop_disabled(new.make_map(&["spec", "template", "spec"]));
        begin_update(self, new, old);
        Ok(())
    }
    fn validate(&self, _: &Context, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let empty = Value::map();
        let spec = object.get("spec").unwrap_or(&empty);
        replicas_and_template(&mut errors, spec);
        validation::non_negative(&mut errors, "spec.minReadySeconds", spec.i64_at(&["minReadySeconds"]).unwrap_or(0));
        errors
    }
    fn validate_update(&self, context: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(context, new);
        immutable_selector(&mut errors, new, old);
        errors
    }
    fn warnings(&self, _: &Context, new: &Value, old: Option<&Value>) -> Vec<String> {
        let name = workload::name_warning(new).filter(|_| old.is_none());
        name.into_iter().chain(workload::template_warnings(new, old, &["spec", "template"])).collect()
    }
    fn validate_status_update(&self, _: &Context, new: &Value, _: &Value) -> Vec<FieldError> {
        status(new, &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"])
    }
    fn columns(&self) -> &'static [Column] {
        const {
            &[
                Column::NAME,
                Column::new("Desired", "integer"),
                Column::new("Current", "integer"),
                Column::new("Ready", "integer"),
                Column::AGE,
                Column::wide("Containers", "string"),
                Column::wide("Images", "string"),
                Column::wide("Selector", "string"),
            ]
        }
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        let count = |path: &[&str]| object.i64_at(path).unwrap_or(0);
        let (containers, images) = containers(object);
        vec![
            object.str_at(&["metadata", "name"]).into(),
            count(&["spec", "replicas"]).into(),
            count(&["status", "replicas"]).into(),
            count(&["status", "readyReplicas"]).into(),
            table::age(object, now).into(),
            containers.into(),
            images.into(),
            print_selector(object.at(&["spec", "selector"]).unwrap_or(&Value::Null)).into(),
        ]
    }
}

/// Names and images of a template's containers, each joined by commas.
pub fn containers(object: &Value) -> (String, String) {
    let all = object.list_at(&["spec", "template", "spec", "containers"]);
    let join = |key: &str| all.iter().map(|c| c.str_at(&[key])).collect::<Vec<_>>().join(",");
    (join("name"), join("image"))
}

fn replicas_and_template(errors: &mut Vec<FieldError>, spec: &Value) {
    validation::non_negative(errors, "spec.replicas", spec.i64_at(&["replicas"]).unwrap_or(0));
    let Some(selector) = spec.at(&["selector"]) else {
        errors.push(FieldError::required("spec.selector", ""));
        // No selector selects nothing: the template cannot match it.
        let nothing = value!({"matchExpressions": [{"key": "", "operator": "Exists"}]});
        template(errors, spec, Some(&nothing));
        return;
    };
    let before = errors.len();
    validation::label_selector(errors, "spec.selector", Some(selector));
    let readable = errors.len() == before;
    let empty = selector.map_at(&["matchLabels"]).is_none_or(Map::is_empty) && selector.list_at(&["matchExpressions"]).is_empty();
    if empty {
        let error = FieldError::invalid("spec.selector", "", "empty selector is invalid for deployment");
        errors.push(validation::shown_as(error, validation::show_selector(selector)));
    }
    if !readable {
        let error = FieldError::invalid("spec.selector", "", "invalid label selector");
        errors.push(validation::shown_as(error, validation::show_selector(selector)));
        return;
    }
    template(errors, spec, (!empty).then_some(selector));
}

fn template(errors: &mut Vec<FieldError>, spec: &Value, selector: Option<&Value>) {
    let empty = Value::map();
    let template = spec.get("template").unwrap_or(&empty);
    let labels = template.map_at(&["metadata", "labels"]).cloned().unwrap_or_default();
    if selector.is_some_and(|s| !matches_selector(s, &labels)) {
        let why = "`selector` does not match template `labels`";
        let shown = if labels.is_empty() { Value::Null } else { labels.into() };
        errors.push(FieldError::invalid("spec.template.metadata.labels", shown, why));
    }
    pod_spec::template(errors, &"spec.template", template);
    let policy = template.str_at(&["spec", "restartPolicy"]);
    if policy != "Always" {
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if template.at(&["spec", "activeDeadlineSeconds"]).is_some() {
        let why = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(FieldError::forbidden("spec.template.spec.activeDeadlineSeconds", why));
    }
}

/// A count or percentage: how much it is in percent, if it is one; what is wrong with it otherwise.
fn int_or_percent(errors: &mut Vec<FieldError>, at: &str, value: Option<&Value>) -> Option<i64> {
    match value {
        Some(Value::Int(n)) => {
            validation::non_negative(errors, at, *n);
            None
        }
        Some(Value::Str(s)) => {
            let digits = s.strip_suffix('%').filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
            if digits.is_none() {
                let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used \
                    for validation is '[0-9]+%')";
                errors.push(FieldError::invalid(at, s.as_str(), why));
            }
            digits.and_then(|d| d.parse().ok())
        }
        _ => None,
    }
}

fn rollout(errors: &mut Vec<FieldError>, strategy: &Value) {
    const AT: &str = "spec.strategy.rollingUpdate";
    let rolling = strategy.at(&["rollingUpdate"]);
    match strategy.str_at(&["type"]) {
        "Recreate" => {
            if rolling.is_some() {
                errors.push(FieldError::forbidden(AT, "may not be specified when strategy `type` is 'Recreate'"));
            }
        }
        "RollingUpdate" => {
            let Some(rolling) = rolling else {
                errors.push(FieldError::required(AT, "this should be defaulted and never be nil"));
                return;
            };
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            let at = format!("{AT}.maxUnavailable");
            let percent = int_or_percent(errors, &at, unavailable);
            int_or_percent(errors, &format!("{AT}.maxSurge"), surge);
            let zero = |v: Option<&Value>| {
                matches!(v, Some(Value::Int(0))) || v.and_then(Value::as_str).is_some_and(|s| s.trim_start_matches('0') == "%")
            };
            if zero(unavailable) && zero(surge) {
                let shown = unavailable.cloned().unwrap_or_default();
                errors.push(FieldError::invalid(at.clone(), shown, "may not be 0 when `maxSurge` is 0"));
            }
            if percent.is_some_and(|p| p > 100) {
                errors.push(FieldError::invalid(at, unavailable.cloned().unwrap_or_default(), "must not be greater than 100%"));
            }
        }
        kind => {
            let rolling = rolling.map_or("null".to_string(), |r| {
                let member = |key: &str| r.get(key).unwrap_or(&Value::Null).to_string();
                format!("{{\"MaxUnavailable\":{},\"MaxSurge\":{}}}", member("maxUnavailable"), member("maxSurge"))
            });
            let error = FieldError::not_supported("spec.strategy", "", &["Recreate", "RollingUpdate"]);
            errors.push(validation::shown_as(error, format!("{{\"Type\":{},\"RollingUpdate\":{rolling}}}", Value::from(kind))));
        }
    }
}

fn status(object: &Value, counts: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let count = |key: &str| object.i64_at(&["status", key]).unwrap_or(0);
    for key in counts {
        validation::non_negative(&mut errors, format_args!("status.{key}"), count(key));
    }
    let mut at_most = |key: &str, limit: &str, words: &str| {
        if counts.contains(&key) && count(key) > count(limit) {
            errors.push(FieldError::invalid(format!("status.{key}"), count(key), format!("cannot be greater than {words}")));
        }
    };
    at_most("updatedReplicas", "replicas", "status.replicas");
    at_most("fullyLabeledReplicas", "replicas", "status.replicas");
    at_most("readyReplicas", "replicas", "status.replicas");
    at_most("availableReplicas", "replicas", "status.replicas");
    at_most("availableReplicas", "readyReplicas", "readyReplicas");
    errors
}

/// What a workload selects never changes.
fn immutable_selector(errors: &mut Vec<FieldError>, new: &Value, old: &Value) {
    let (new, old) = (new.at(&["spec", "selector"]).unwrap_or(&Value::Null), old.at(&["spec", "selector"]));
    cursor::part(errors, "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector", "spec.selector", new, |selector| {
        selector.immutable(&selector.over(old));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(extra: Value) -> Vec<String> {
        let mut d = value!({"spec": {"selector": {"matchLabels": {"app": "a"}}, "template": {"metadata": {"labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
        for (key, v) in extra.as_map().unwrap().iter() {
            d.set(&["spec", key], v.clone());
        }
        Deployments.default(&mut d);
        let once = d.clone();
        Deployments.default(&mut d);
        assert_eq!(d, once);
        let mut errors = Vec::new();
        let spec = d.get("spec").unwrap();
        replicas_and_template(&mut errors, spec);
        rollout(&mut errors, spec.get("strategy").unwrap());
        errors.iter().map(FieldError::to_string).collect()
    }

    #[test]
    fn deployments() {
        assert_eq!(complaints(value!({})), Vec::<String>::new());
        let cases = [
            (value!({"replicas": -1}), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
            (
                value!({"selector": {"matchLabels": {"app": "b"}}}),
                "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`",
            ),
            (
                value!({"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}}}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ),
            (
                value!({"strategy": {"type": "Recreate", "rollingUpdate": {}}}),
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ),
        ];
        for (extra, want) in cases {
            assert_eq!(complaints(extra.clone()), [want], "{extra}");
        }
        assert_eq!(complaints(value!({"selector": null}))[0], "spec.selector: Required value");
    }
}
