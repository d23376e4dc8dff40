//! Pure: what may change in a pod that exists: little in the spec, each subresource its own part.

use super::pod_spec;
use crate::api::schema;
use crate::api::status::{FieldError, Result, Status};
use crate::api::value::{Map, Value};
use crate::server::cursor::{self, At};
use crate::server::validation as check;

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
        for (i, c) in new_spec.list_at(&[list]).iter().enumerate() {
            pod_spec::image(&mut errors, &format!("spec.{list}[{i}].image"), c.str_at(&["image"]));
        }
    }
    deadline(&mut errors, &new_spec, &old_spec);
    tolerations(&mut errors, &new_spec, &old_spec);
    let gated = !old_spec.list_at(&["schedulingGates"]).is_empty();
    gates(&mut errors, &new_spec, &old_spec);
    let wanted = as_allowed(&new_spec, &old_spec, gated);
    if bare(&wanted) != bare(&old_spec) {
        let ty = schema::type_named("io.k8s.api.core.v1.PodSpec").expect("named from the table");
        errors.push(FieldError::forbidden("spec", format!("{ONLY}\n{}", schema::diff(ty, &old_spec, &wanted, None))));
    }
    errors
}

/// The new spec with what an update may touch as it was: nothing else may differ.
fn as_allowed(new: &Value, old: &Value, gated: bool) -> Value {
    let mut spec = new.clone();
    let as_was = |spec: &mut Value, path: &[&str]| match old.at(path) {
        Some(was) => spec.set(path, was.clone()),
        None => drop(spec.remove(path)),
    };
    for list in ["containers", "initContainers"] {
        let now = spec.get_mut(list).and_then(Value::as_list_mut);
        for (c, was) in now.into_iter().flatten().zip(old.list_at(&[list])) {
            c.set(&["image"], was.str_at(&["image"]));
        }
    }
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        as_was(&mut spec, &[key]);
    }
    let grace = |v: &Value| v.i64_at(&["terminationGracePeriodSeconds"]);
    if grace(old).is_some_and(|g| g < 0) && grace(&spec) == Some(1) {
        as_was(&mut spec, &["terminationGracePeriodSeconds"]);
    }
    if gated {
        // A gated pod may be narrowed: its node selector and affinity are still open.
        as_was(&mut spec, &["nodeSelector"]);
        as_was(&mut spec, &["affinity", "nodeAffinity"]);
        if spec.map_at(&["affinity"]).is_some_and(Map::is_empty) {
            as_was(&mut spec, &["affinity"]);
        }
    }
    spec
}

fn bare(spec: &Value) -> Value {
    let mut spec = spec.clone();
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
        return errors.push(FieldError::forbidden("spec.tolerations", why));
    }
    pod_spec::tolerations(errors, &"spec.tolerations", is);
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
    for (i, gate) in new.list_at(&["schedulingGates"]).iter().enumerate() {
        if !was.contains(gate) {
            let why = "only deletion is allowed, but found new scheduling gate";
            let shown = gate.str_at(&["name"]);
            errors.push(FieldError::forbidden(format!("spec.schedulingGates[{i}].name"), format!("{why} '{shown}'")));
        }
    }
}

/// `/status`: what can hardly be so.
pub fn status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = annotations(new, old);
    let ty = schema::type_of("v1", "Pod").expect("the table has pods");
    errors.extend(cursor::validate(ty, new, |pod| {
        let status = pod.get("status");
        for condition in status.get("conditions").each() {
            let kind = condition.get("type");
            if !matches!(kind.str(), "PodScheduled" | "Ready" | "Initialized") {
                kind.called(format!("{}.Type", condition.path)).ok(check::qualified_name);
            }
        }
        let nominated = status.get("nominatedNodeName");
        if nominated.str() != old.str_at(&["status", "nominatedNodeName"]) {
            nominated.may_be(check::subdomain);
        }
        let (is, was) = (status.get("qosClass"), old.str_at(&["status", "qosClass"]));
        if !was.is_empty() && is.str() != was {
            is.invalid(check::IMMUTABLE);
        }
        for (list, spec) in [("containerStatuses", "containers"), ("initContainerStatuses", "initContainers")] {
            restarts(&status.get(list), old, list, old.str_at(&["spec", "restartPolicy"]), spec);
        }
        // Those never restart.
        restarts(&status.get("ephemeralContainerStatuses"), old, "ephemeralContainerStatuses", "Never", "ephemeralContainers");
        claim_statuses(&status.get("resourceClaimStatuses"), new);
        addresses(&status.get("podIPs"));
        let hosts = status.get("hostIPs");
        if let Some(first) = hosts.each().first()
            && first.get("ip").str() != status.get("hostIP").str()
        {
            first.get("ip").invalid("must be equal to `hostIP`");
        }
        addresses(&hosts);
        for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
            status.get(list).each().iter().for_each(|one| user(one, new.str_at(&["spec", "os", "name"]) == "windows"));
        }
        if status.get("observedGeneration").int() < 0 {
            status.get("observedGeneration").invalid("must be a non-negative integer");
        }
    }));
    errors
}

/// A container that may not restart cannot leave the terminated state. Places are those of the old list.
fn restarts(statuses: &At, old: &Value, list: &str, policy: &str, spec: &str) {
    if policy == "Always" {
        return;
    }
    let may_restart = |name: &str| {
        let containers = old.list_at(&["spec", spec]);
        containers.iter().any(|c| c.str_at(&["name"]) == name && c.str_at(&["restartPolicy"]) == "Always")
    };
    for (i, was) in old.list_at(&["status", list]).iter().enumerate() {
        let name = was.str_at(&["name"]);
        let Some(before) = was.at(&["state", "terminated"]) else { continue };
        let failed = before.i64_at(&["exitCode"]).unwrap_or(0) != 0;
        if failed && policy == "OnFailure" || spec == "initContainers" && may_restart(name) {
            continue;
        }
        for _ in statuses.each().iter().filter(|is| is.get("name").str() == name && !is.at(&["state", "terminated"]).is_set()) {
            let why = "may not be transitioned to non-terminated state";
            statuses.push(FieldError::forbidden(format!("{}[{i}].state", statuses.path), why));
        }
    }
}

/// Each is about one of the pod's claims.
fn claim_statuses(statuses: &At, pod: &Value) {
    let claims: Vec<&str> = pod.list_at(&["spec", "resourceClaims"]).iter().map(|c| c.str_at(&["name"])).collect();
    let mut seen = Vec::new();
    for status in statuses.each() {
        let name = status.get("name");
        if !claims.contains(&name.str()) {
            name.invalid("must match the name of an entry in `spec.resourceClaims`");
        }
        if seen.contains(&name.str()) {
            name.duplicate();
        }
        seen.push(name.str());
        let claim = status.get("resourceClaimName");
        if claim.is_set() {
            check::subdomain(claim.str()).into_iter().for_each(|why| name.invalid_as(claim.str(), why));
        }
    }
}

/// At most one of each family.
fn addresses(ips: &At) {
    let all = ips.each();
    all.iter().for_each(|ip| check::ip(ip.get("ip").str()).into_iter().for_each(|why| ip.invalid_as(ip.get("ip").str(), why)));
    let is_v4 = |ip: &At| !ip.get("ip").str().contains(':');
    if all.len() > 2 || (all.len() == 2 && is_v4(&all[0]) == is_v4(&all[1])) {
        ips.invalid("may specify no more than one IP for each IP family");
    }
}

/// As whom a container runs.
fn user(status: &At, on_windows: bool) {
    let linux = status.at(&["user", "linux"]);
    // Upstream leaves `user` out of the place.
    let at = linux.called(format!("{}.linux", status.path));
    match (linux.is_set(), on_windows) {
        (true, true) => at.forbidden("cannot be set for a windows pod"),
        (true, false) => {
            let groups = at.get("supplementalGroups").each();
            for id in [at.get("uid"), at.get("gid")].iter().chain(&groups) {
                id.between(0, i64::from(i32::MAX));
            }
        }
        (false, _) => {}
    }
}

/// `/ephemeralcontainers`: add only.
pub fn ephemeral_containers(new: &Value, old: &Value) -> Vec<FieldError> {
    const AT: &str = "spec.ephemeralContainers";
    let mut errors = Vec::new();
    let is = new.list_at(&["spec", "ephemeralContainers"]);
    for was in old.list_at(&["spec", "ephemeralContainers"]) {
        let name = was.str_at(&["name"]);
        match is.iter().position(|c| c.str_at(&["name"]) == name) {
            None => {
                errors.push(FieldError::forbidden(AT, format!("existing ephemeral containers \"{name}\" may not be removed\n")));
            }
            Some(i) if is[i] != *was => {
                let ty = schema::type_named("io.k8s.api.core.v1.EphemeralContainer").expect("named from the table");
                let why = format!("existing ephemeral containers \"{name}\" may not be changed\n{}", schema::diff(ty, was, &is[i], None));
                errors.push(FieldError::forbidden(AT, why));
            }
            Some(_) => {}
        }
    }
    errors
}

/// `/resize`: CPU and memory of a pod whose QoS class must not change by it.
pub fn resize(new: &Value, old: &Value) -> Vec<FieldError> {
    const ONLY: &str = "only cpu and memory resources are mutable";
    let mut errors = Vec::new();
    if super::qos::class(new) != super::qos::class(old) {
        let shown = new.str_at(&["status", "qosClass"]);
        errors.push(FieldError::invalid("spec", shown, "Pod QOS Class may not change as a result of resizing"));
    }
    let running = old.list_at(&["status", "containerStatuses"]).iter().find(|c| c.at(&["state", "running"]).is_some());
    if running.is_some_and(|c| c.at(&["resources"]).is_none()) {
        errors.push(FieldError::forbidden("spec", "Pod running on node without support for resize"));
    }
    let before = errors.len();
    ["containers", "initContainers"].iter().for_each(|list| same_containers(&mut errors, list, new, old));
    if errors.len() > before {
        return errors;
    }
    for list in ["initContainers", "containers"] {
        for (i, was) in old.list_at(&["spec", list]).iter().enumerate() {
            let now = &new.list_at(&["spec", list])[i];
            for amounts in ["requests", "limits"] {
                let names = |v: &Value| -> Vec<String> {
                    let map = v.map_at(&["resources", amounts]).into_iter().flat_map(|m| m.iter());
                    map.map(|(name, _)| name.to_string()).collect()
                };
                if names(was).iter().any(|name| !names(now).contains(name)) {
                    let why = format!("resource {amounts} cannot be removed");
                    errors.push(FieldError::forbidden(format!("spec.{list}[{i}].resources.{amounts}"), why));
                }
            }
        }
    }
    for (i, was) in old.list_at(&["spec", "containers"]).iter().enumerate() {
        if !same_but_cpu_and_memory(&new.list_at(&["spec", "containers"])[i], was) {
            errors.push(FieldError::forbidden("spec", ONLY));
        }
    }
    for (i, was) in old.list_at(&["spec", "initContainers"]).iter().enumerate() {
        let now = &new.list_at(&["spec", "initContainers"])[i];
        let at = format!("spec.initContainers[{i}]");
        if !same_but_cpu_and_memory(now, was) {
            errors.push(FieldError::forbidden(at.clone(), "only cpu and memory resources for init or sidecar containers are mutable"));
        }
        if now != was && now.str_at(&["restartPolicy"]) != "Always" {
            let restarts = |p: &&Value| p.str_at(&["restartPolicy"]) == "RestartContainer";
            for _ in now.list_at(&["resizePolicy"]).iter().filter(restarts) {
                let why = "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
                errors.push(FieldError::forbidden(at.clone(), why));
            }
        }
    }
    errors
}

fn same_containers(errors: &mut Vec<FieldError>, list: &str, new: &Value, old: &Value) {
    let (is, was) = (new.list_at(&["spec", list]), old.list_at(&["spec", list]));
    if is.len() != was.len() {
        let why = format!("{list} may not be added or removed on resize");
        return errors.push(FieldError::forbidden(format!("spec.{list}"), why));
    }
    for (i, _) in is.iter().zip(was).enumerate().filter(|(_, (n, o))| n.str_at(&["name"]) != o.str_at(&["name"])) {
        let why = format!("{list} may not be renamed or reordered on resize");
        errors.push(FieldError::forbidden(format!("spec.{list}[{i}].name"), why));
    }
}

fn same_but_cpu_and_memory(a: &Value, b: &Value) -> bool {
    let others = |v: &Value| {
        let mut v = v.clone();
        for list in ["requests", "limits"] {
            for name in ["cpu", "memory"] {
                v.remove(&["resources", list, name]);
            }
            if v.map_at(&["resources", list]).is_some_and(Map::is_empty) {
                v.remove(&["resources", list]);
            }
        }
        v.remove(&["resizePolicy"]);
        drop_empty(&mut v);
        v
    };
    others(a) == others(b)
}

/// Annotations that may neither come, nor change, nor go.
pub fn annotations(new: &Value, old: &Value) -> Vec<FieldError> {
    let empty = Map::new();
    let of = |pod: &Value| pod.map_at(&["metadata", "annotations"]).unwrap_or(&empty).clone();
    let (is, was) = (of(new), of(old));
    let kind = |key: &str| match key {
        "kubernetes.io/config.mirror" => Some("mirror pod annotation"),
        key if key.starts_with("container.apparmor.security.beta.kubernetes.io/") => Some("AppArmor annotations"),
        _ => None,
    };
    let refuse =
        |key: &str, verb: &str, what: &str| FieldError::forbidden(format!("metadata.annotations[{key}]"), format!("may not {verb} {what}"));
    let gone = was.iter().filter(|(k, v)| is.get(k) != Some(*v)).filter_map(|(k, _)| Some(refuse(k, "remove or update", kind(k)?)));
    let come = is.iter().filter(|(k, _)| was.get(k).is_none()).filter_map(|(k, _)| Some(refuse(k, "add", kind(k)?)));
    gone.chain(come).collect()
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
        assert!(hostname[0].starts_with(&format!("spec: Forbidden: {ONLY}\n@@")), "{hostname:?}");
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
