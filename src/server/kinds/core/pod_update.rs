//! Pure: what may change in a pod that exists: little in the spec, each subresource its own part.

use super::pod_spec;
use crate::api::status::{FieldError, Result, Status};
use crate::api::value::{Map, Value};

const ONLY: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
    `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` \
    (allow it to be set to 1 if it was previously negative)";

/// Everything but the subresource's own part becomes what it was.
pub fn keep_only(subresource: &str, new: &mut Value, old: &Value) -> Result<()> {
    let mut spec = old.get("spec").cloned().unwrap_or_else(Value::map);
    match subresource {
        "ephemeralcontainers" => {
            let containers = new.at(&["spec", "ephemeralContainers"]).cloned();
            match containers {
                Some(containers) => spec.set(&["ephemeralContainers"], containers),
                None => {
                    spec.remove(&["ephemeralContainers"]);
                }
            }
        }
        "resize" => {
            for list in ["containers", "initContainers"] {
                let wanted = new.list_at(&["spec", list]).to_vec();
                for c in spec.get_mut(list).and_then(Value::as_list_mut).into_iter().flatten() {
                    let name = c.str_at(&["name"]).to_string();
                    let Some(w) = wanted.iter().find(|w| w.str_at(&["name"]) == name) else { continue };
                    for member in ["resources", "resizePolicy"] {
                        if let Some(v) = w.get(member) {
                            c.set(&[member], v.clone());
                        }
                    }
                }
            }
        }
        _ => return Err(Status::method_not_allowed()),
    }
    new.set(&["spec"], spec);
    crate::server::strategy::restore(new, old, "status");
    Ok(())
}

/// PUT and PATCH of the pod itself.
pub fn main(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (new_spec, old_spec) = (new.get("spec").cloned().unwrap_or_default(), old.get("spec").cloned().unwrap_or_default());
    for list in ["containers", "initContainers"] {
        if new_spec.list_at(&[list]).len() != old_spec.list_at(&[list]).len() {
            errors.push(FieldError::forbidden(format!("spec.{list}"), "pod updates may not add or remove containers"));
            return errors;
        }
    }
    deadline(&mut errors, &new_spec, &old_spec);
    tolerations(&mut errors, &new_spec, &old_spec);
    let gated = !old_spec.list_at(&["schedulingGates"]).is_empty();
    gates(&mut errors, &new_spec, &old_spec);
    if errors.is_empty() && frozen(&new_spec, gated) != frozen(&old_spec, gated) {
        errors.push(FieldError::forbidden("spec", ONLY));
    }
    for (list, at) in [("containers", "spec.containers"), ("initContainers", "spec.initContainers")] {
        for (i, c) in new_spec.list_at(&[list]).iter().enumerate() {
            pod_spec::image(&mut errors, &format!("{at}[{i}].image"), c.str_at(&["image"]));
        }
    }
    errors
}

/// The spec without what an update may touch, for comparison.
fn frozen(spec: &Value, gated: bool) -> Value {
    let mut spec = spec.clone();
    for list in ["containers", "initContainers"] {
        for c in spec.get_mut(list).and_then(Value::as_list_mut).into_iter().flatten() {
            c.remove(&["image"]);
        }
    }
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        spec.remove(&[key]);
    }
    let grace = spec.i64_at(&["terminationGracePeriodSeconds"]).unwrap_or(30);
    if grace < 0 {
        spec.set(&["terminationGracePeriodSeconds"], 1);
    }
    if gated {
        // A gated pod may be narrowed: its node selector and affinity are still open.
        spec.remove(&["nodeSelector"]);
        spec.remove(&["affinity", "nodeAffinity"]);
        if spec.map_at(&["affinity"]).is_some_and(Map::is_empty) {
            spec.remove(&["affinity"]);
        }
    }
    drop_empty(&mut spec);
    spec
}

/// Absent, null and empty are one to Go.
fn drop_empty(v: &mut Value) {
    match v {
        Value::Map(map) => {
            map.iter_mut().for_each(|(_, inner)| drop_empty(inner));
            map.retain(|_, inner| match inner {
                Value::Null => false,
                Value::List(l) => !l.is_empty(),
                Value::Str(s) => !s.is_empty(),
                Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Map(_) => true,
            });
        }
        Value::List(list) => list.iter_mut().for_each(drop_empty),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) => {}
    }
}

fn deadline(errors: &mut Vec<FieldError>, new: &Value, old: &Value) {
    const AT: &str = "spec.activeDeadlineSeconds";
    let (is, was) = (new.i64_at(&["activeDeadlineSeconds"]), old.i64_at(&["activeDeadlineSeconds"]));
    match (is, was) {
        (Some(n), _) if !(0..=i64::from(i32::MAX)).contains(&n) => {
            errors.push(FieldError::invalid(AT, n, "must be between 0 and 2147483647, inclusive"));
        }
        (Some(n), Some(o)) if n > o => errors.push(FieldError::invalid(AT, n, "must be less than or equal to previous value")),
        (None, Some(_)) => errors.push(FieldError::invalid(AT, Value::Null, "must not update from a positive integer to nil value")),
        (Some(_), _) | (None, None) => {}
    }
}

fn tolerations(errors: &mut Vec<FieldError>, new: &Value, old: &Value) {
    let (is, was) = (new.list_at(&["tolerations"]), old.list_at(&["tolerations"]));
    if was.iter().any(|t| !is.contains(t) && !is.iter().any(|n| same_but_seconds(n, t))) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", why));
    }
    pod_spec::tolerations(errors, "spec.tolerations", is);
}

fn same_but_seconds(a: &Value, b: &Value) -> bool {
    let bare = |v: &Value| {
        let mut v = v.clone();
        v.remove(&["tolerationSeconds"]);
        v
    };
    bare(a) == bare(b)
}

fn gates(errors: &mut Vec<FieldError>, new: &Value, old: &Value) {
    let was = old.list_at(&["schedulingGates"]);
    for gate in new.list_at(&["schedulingGates"]) {
        if !was.contains(gate) {
            let why = "only deletion is allowed, but found new scheduling gate";
            let shown = gate.str_at(&["name"]);
            errors.push(FieldError::forbidden("spec.schedulingGates", format!("{why} '{shown}'")));
        }
    }
}

/// `/status`.
pub fn status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let nominated = new.str_at(&["status", "nominatedNodeName"]);
    if !nominated.is_empty() && nominated != old.str_at(&["status", "nominatedNodeName"]) {
        crate::server::validation::invalid(
            &mut errors,
            "status.nominatedNodeName",
            nominated,
            crate::server::validation::subdomain(nominated),
        );
    }
    let ips = new.list_at(&["status", "podIPs"]);
    for (i, ip) in ips.iter().enumerate() {
        let ip = ip.str_at(&["ip"]);
        let messages = crate::server::validation::ip(ip);
        crate::server::validation::invalid(&mut errors, &format!("status.podIPs[{i}]"), ip, messages);
    }
    let (is, was) = (new.str_at(&["status", "qosClass"]), old.str_at(&["status", "qosClass"]));
    if !was.is_empty() && is != was {
        errors.push(FieldError::invalid("status.qosClass", is, crate::server::validation::IMMUTABLE));
    }
    restarts(&mut errors, new, old, "containerStatuses", "containers");
    errors
}

/// A container that may not restart cannot leave the terminated state.
fn restarts(errors: &mut Vec<FieldError>, new: &Value, old: &Value, statuses: &str, _containers: &str) {
    if old.str_at(&["spec", "restartPolicy"]) == "Always" {
        return;
    }
    for was in old.list_at(&["status", statuses]) {
        let Some(before) = was.at(&["state", "terminated"]) else { continue };
        if old.str_at(&["spec", "restartPolicy"]) == "OnFailure" && before.i64_at(&["exitCode"]).unwrap_or(0) != 0 {
            continue;
        }
        let name = was.str_at(&["name"]);
        let position = new.list_at(&["status", statuses]).iter().position(|s| s.str_at(&["name"]) == name);
        let Some(i) = position else { continue };
        if new.list_at(&["status", statuses])[i].at(&["state", "terminated"]).is_none() {
            let why = "may not be transitioned to non-terminated state";
            errors.push(FieldError::forbidden(format!("status.{statuses}[{i}].state"), why));
        }
    }
}

/// `/ephemeralcontainers`: add only.
pub fn ephemeral_containers(new: &Value, old: &Value) -> Vec<FieldError> {
    const AT: &str = "spec.ephemeralContainers";
    let mut errors = pod_spec::ephemeral_containers(new);
    let is = new.list_at(&["spec", "ephemeralContainers"]);
    for was in old.list_at(&["spec", "ephemeralContainers"]) {
        let name = was.str_at(&["name"]);
        match is.iter().position(|c| c.str_at(&["name"]) == name) {
            None => {
                errors.push(FieldError::forbidden(AT, format!("existing ephemeral containers \"{name}\" may not be removed\n")));
            }
            Some(i) if is[i] != *was => {
                let why = format!("existing ephemeral containers \"{name}\" may not be changed\n");
                errors.push(FieldError::forbidden(AT, why));
            }
            Some(_) => {}
        }
    }
    errors
}

/// `/resize`: CPU and memory of a pod whose QoS class must not change by it.
pub fn resize(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (list, at) in [("containers", "spec.containers"), ("initContainers", "spec.initContainers")] {
        for (i, c) in new.list_at(&["spec", list]).iter().enumerate() {
            let at = format!("{at}[{i}].resources");
            pod_spec::resources(&mut errors, &at, c.get("resources"));
            let before = old.list_at(&["spec", list]).get(i).and_then(|c| c.get("resources"));
            only_cpu_and_memory(&mut errors, &at, c.get("resources"), before);
        }
    }
    if super::qos::class(new) != super::qos::class(old) {
        errors.push(FieldError::invalid("spec", super::qos::class(new), "Pod QOS Class may not change as a result of resizing"));
    }
    errors
}

fn only_cpu_and_memory(errors: &mut Vec<FieldError>, at: &str, new: Option<&Value>, old: Option<&Value>) {
    let empty = Value::map();
    for list in ["limits", "requests"] {
        let others = |v: Option<&Value>| -> Map {
            let map = v.unwrap_or(&empty).map_at(&[list]).cloned().unwrap_or_default();
            map.into_iter().filter(|(name, _)| !matches!(name.as_str(), "cpu" | "memory")).collect()
        };
        if others(new) != others(old) {
            errors.push(FieldError::forbidden(format!("{at}.{list}"), "only cpu and memory resources are mutable"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    fn texts(new: Value, old: Value) -> Vec<String> {
        main(&new, &old).iter().map(FieldError::to_string).collect()
    }

    #[test]
    fn images_may_change_and_little_else() {
        let old = value!({"spec": {"containers": [{"name": "c", "image": "a:1"}], "nodeName": "n"}});
        let with = |path: &[&str], v: Value| {
            let mut new = old.clone();
            new.set(path, v);
            new
        };
        let image = with(&["spec", "containers"], value!([{"name": "c", "image": "a:2"}]));
        assert_eq!(texts(image, old.clone()), Vec::<String>::new());
        assert_eq!(texts(with(&["spec", "activeDeadlineSeconds"], value!(5)), old.clone()), Vec::<String>::new());
        let hostname = texts(with(&["spec", "hostname"], value!("h")), old.clone());
        assert_eq!(hostname, [format!("spec: Forbidden: {ONLY}")]);
        let two = with(&["spec", "containers"], value!([{"name": "c", "image": "a:1"}, {"name": "d", "image": "a:1"}]));
        assert_eq!(texts(two, old.clone()), ["spec.containers: Forbidden: pod updates may not add or remove containers"]);
        let empty = with(&["spec", "volumes"], value!([]));
        assert_eq!(texts(empty, old.clone()), Vec::<String>::new(), "an empty list is no change");
    }

    #[test]
    fn tolerations_only_grow() {
        let t = |k: &str| value!({"key": k, "operator": "Exists"});
        let pod = |ts: Vec<Value>| {
            let mut p = value!({"spec": {"containers": [{"name": "c", "image": "i:1"}]}});
            p.set(&["spec", "tolerations"], ts);
            p
        };
        assert!(texts(pod(vec![t("a"), t("b")]), pod(vec![t("a")])).is_empty());
        assert_eq!(
            texts(pod(vec![]), pod(vec![t("a")])),
            ["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"]
        );
    }
}
