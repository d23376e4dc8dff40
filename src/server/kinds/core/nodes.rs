//! Nodes.

use crate::api::resource::{self, Resource};
use crate::api::status::{FieldError, Result};
use crate::api::time::Time;
use crate::api::value::Value;
use crate::server::cursor::{self, At};
use crate::server::kinds::core::amounts;
use crate::server::kinds::none;
use crate::server::strategy::{Column, Context, Selectable, Strategy, begin_status_update, restore};
use crate::server::{table, validation};

pub struct Nodes;

/// What a node says it has.
fn resources(node: &At) {
    for list in ["capacity", "allocatable"] {
        for (name, amount) in node.at(&["status", list]).entries() {
            amounts::amount(&amount.called(format!("status.{list}.{name}")), name);
        }
    }
}

const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::new("Status", "string"),
    Column::new("Roles", "string"),
    Column::AGE,
    Column::new("Version", "string"),
    Column::wide("Internal-IP", "string"),
    Column::wide("External-IP", "string"),
    Column::wide("OS-Image", "string"),
    Column::wide("Kernel-Version", "string"),
    Column::wide("Container-Runtime", "string"),
];

impl Strategy for Nodes {
    fn resource(&self) -> &'static Resource {
        &resource::NODES
    }
    fn default(&self, object: &mut Value) {
        let capacity = object.at(&["status", "capacity"]).cloned();
        if let (Some(capacity), None) = (capacity, object.at(&["status", "allocatable"])) {
            object.set(&["status", "allocatable"], capacity);
        }
        pod_cidrs(object);
    }
    /// A kubelet registers with its status: it is kept.
    fn prepare_create(&self, _: &Context, node: &mut Value) -> Result<()> {
        // Dynamic kubelet configuration is gone; its field is dropped.
        node.remove(&["spec", "configSource"]);
        Ok(())
    }
    fn prepare_update(&self, _: &Context, new: &mut Value, old: &Value) -> Result<()> {
        restore(new, old, "status");
        if old.at(&["spec", "configSource"]).is_none() {
            new.remove(&["spec", "configSource"]);
        }
        Ok(())
    }
    fn prepare_status_update(&self, _: &Context, new: &mut Value, old: &Value) -> Result<()> {
        begin_status_update(new, old);
        Ok(())
    }
    fn validate(&self, _: &Context, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        taints(&mut errors, object);
        for (i, cidr) in object.list_at(&["spec", "podCIDRs"]).iter().enumerate() {
            let cidr = cidr.as_str().unwrap_or("");
            if cidr.parse::<crate::api::cidr::Cidr>().is_err() {
                let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.push(FieldError::invalid(format!("spec.podCIDRs[{i}]"), cidr, why));
            }
        }
        let ranges = object.list_at(&["spec", "podCIDRs"]);
        let is_v4 = |range: &Value| !range.as_str().unwrap_or("").contains(':');
        if ranges.len() > 2 || (ranges.len() == 2 && is_v4(&ranges[0]) == is_v4(&ranges[1])) {
            let why = "may specify no more than one CIDR for each IP family";
            errors.push(FieldError::invalid("spec.podCIDRs", ranges.to_vec(), why));
        }
        errors.extend(cursor::validate(self.resource().type_ref(), object, resources));
        errors
    }
    fn validate_status_update(&self, _: &Context, new: &Value, _: &Value) -> Vec<FieldError> {
        cursor::validate(self.resource().type_ref(), new, |node| {
            resources(node);
            node.at(&["status", "addresses"]).unique(|at| at.value.clone());
        })
    }
    fn validate_update(&self, _: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        // As a node, and as a changed one.
        taints(&mut errors, new);
        taints(&mut errors, new);
        let changed = |key: &str| {
            let (was, is) = (old.at(&["spec", key]), new.at(&["spec", key]));
            was.is_some() && was != is
        };
        for (key, path, shown) in [("podCIDRs", "spec.podCIDRs", "podCIDR"), ("providerID", "spec.providerID", "providerID")] {
            if changed(key) {
                let why = format!("node updates may not change {shown} except from \"\" to valid");
                errors.push(FieldError::forbidden(path, why));
            }
        }
        if new.str_at(&["spec", "externalID"]) != old.str_at(&["spec", "externalID"]) {
            errors.push(FieldError::forbidden("spec.externalID", "may not be updated"));
        }
        errors
    }
    fn has_generation(&self) -> bool {
        false
    }
    fn warnings(&self, _: &Context, node: &Value, _: Option<&Value>) -> Vec<String> {
        let old = node.at(&["spec", "configSource"]).map(|_| "spec.configSource: the feature is no longer supported".to_string());
        let external = !node.str_at(&["spec", "externalID"]).is_empty();
        let external = external.then(|| "spec.externalID: this field is deprecated, and is unused by Kubernetes".to_string());
        let ranges = node.list_at(&["spec", "podCIDRs"]).iter().filter_map(Value::as_str).enumerate();
        let ranges = ranges.filter_map(|(i, range)| validation::cidr_warning(&format!("spec.podCIDRs[{i}]"), range));
        old.into_iter().chain(external).chain(ranges).collect()
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        let info = |key: &str| {
            let text = object.str_at(&["status", "nodeInfo", key]);
            Value::from(if text.is_empty() { "<unknown>" } else { text })
        };
        vec![
            object.str_at(&["metadata", "name"]).into(),
            status(object).into(),
            roles(object).into(),
            table::age(object, now).into(),
            object.str_at(&["status", "nodeInfo", "kubeletVersion"]).into(),
            address(object, "InternalIP").into(),
            address(object, "ExternalIP").into(),
            info("osImage"),
            info("kernelVersion"),
            info("containerRuntimeVersion"),
        ]
    }
    fn selectable(&self, _: &'static Resource) -> &'static [Selectable] {
        const { &[Selectable { label: "spec.unschedulable", path: &["spec", "unschedulable"], absent: "false" }] }
    }
}

/// `podCIDR` is the first of `podCIDRs`, whichever was given.
fn pod_cidrs(node: &mut Value) {
    let one = node.str_at(&["spec", "podCIDR"]).to_string();
    let first = node.list_at(&["spec", "podCIDRs"]).first().map(|c| c.as_str().unwrap_or("").to_string());
    match first {
        Some(first) if one.is_empty() => node.set(&["spec", "podCIDR"], first),
        None if !one.is_empty() => node.set(&["spec", "podCIDRs"], vec![one]),
        Some(_) | None => {}
    }
}

fn status(node: &Value) -> String {
    let ready = node.list_at(&["status", "conditions"]).iter().find(|c| c.str_at(&["type"]) == "Ready");
    let word = match ready.map(|c| c.str_at(&["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if node.bool_at(&["spec", "unschedulable"]) { format!("{word},SchedulingDisabled") } else { word.to_string() }
}

fn roles(node: &Value) -> String {
    let labels = node.map_at(&["metadata", "labels"]).into_iter().flat_map(|m| m.iter());
    let mut roles: Vec<String> = labels
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role.to_string()),
            Some(_) => None,
            None if key == "kubernetes.io/role" => value.as_str().filter(|v| !v.is_empty()).map(str::to_string),
            None => None,
        })
        .collect();
    roles.sort();
    roles.dedup();
    none(&roles.join(","))
}

fn address(node: &Value, kind: &str) -> String {
    let found = node.list_at(&["status", "addresses"]).iter().find(|a| a.str_at(&["type"]) == kind);
    none(found.map_or("", |a| a.str_at(&["address"])))
}

/// Upstream calls them `metadata.taints`.
fn taints(errors: &mut Vec<FieldError>, node: &Value) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, taint) in node.list_at(&["spec", "taints"]).iter().enumerate() {
        let at = format!("metadata.taints[{i}]");
        let (key, value, effect) = (taint.str_at(&["key"]), taint.str_at(&["value"]), taint.str_at(&["effect"]));
        validation::invalid(errors, format_args!("{at}.key"), key, validation::qualified_name(key));
        validation::invalid(errors, format_args!("{at}.value"), value, validation::label_value(value));
        match effect {
            "" => errors.push(FieldError::required(format!("{at}.effect"), "")),
            _ => validation::one_of(errors, format_args!("{at}.effect"), effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]),
        }
        if seen.contains(&(key, effect)) {
            cursor::part(errors, "io.k8s.api.core.v1.Taint", &at, taint, |taint| {
                taint.duplicate_because("taints must be unique by key and effect pair");
            });
        }
        seen.push((key, effect));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn what_a_node_has_is_no_less_than_nothing_and_in_whole_pieces() {
        let node = value!({"status": {"capacity": {"cpu": "-1", "memory": "1Gi"}, "allocatable": {"pods": "1500m"}}});
        let found = cursor::validate(resource::NODES.type_ref(), &node, resources);
        assert_eq!(
            found.iter().map(FieldError::to_string).collect::<Vec<_>>(),
            [
                "status.capacity.cpu: Invalid value: \"-1\": must be greater than or equal to 0",
                "status.allocatable.pods: Invalid value: \"1500m\": must be an integer",
            ]
        );
    }

    #[test]
    fn what_kubectl_shows() {
        let node = value!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "edge"}},
            "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
        assert_eq!(status(&node), "Ready,SchedulingDisabled");
        assert_eq!(roles(&node), "control-plane,edge");
        assert_eq!(address(&node, "InternalIP"), "192.0.2.1");
        assert_eq!(address(&node, "ExternalIP"), "<none>");
    }
}
