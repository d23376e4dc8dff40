//! Limit ranges: what a namespace's pods request where they do not say, and what they and their claims may ask for.
//!
//! Every LimitRange of the namespace is looked at in turn. Texts are upstream's.

use crate::api::quantity::Quantity;
use crate::api::resource;
use crate::api::status::{Result, Status};
use crate::api::value::{Map, Value};
use crate::server::kinds::core::qos::{self, Amounts};
use crate::server::strategy::{Context, Operation, Plugin};

pub struct LimitRanger;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn mutate(&self, context: &Context, object: &mut Value, _: Option<&Value>) -> Result<()> {
        if subject(context) == Some(Subject::Pod) && context.operation == Operation::Create {
            ranges(context).iter().for_each(|range| fill(object, range));
        }
        Ok(())
    }

    fn validate(&self, context: &Context, object: &Value, old: Option<&Value>) -> Result<()> {
        let leaving = old.is_some_and(|o| !o.str_at(&["metadata", "deletionTimestamp"]).is_empty());
        let Some(subject) = subject(context).filter(|_| !leaving) else { return Ok(()) };
        for range in ranges(context) {
            let broken = match subject {
                Subject::Pod => pod_breaks(&range, object),
                Subject::Claim => claim_breaks(&range, object),
            };
            let why = match broken.as_slice() {
                [] => continue,
                [one] => one.clone(),
                many => format!("[{}]", many.join(", ")),
            };
            return Err(Status::forbidden(context.resource, object.str_at(&["metadata", "name"]), &why));
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Pod,
    Claim,
}

/// Containers of a stored pod change by `resize` alone; claims are looked at whenever they are written.
fn subject(context: &Context) -> Option<Subject> {
    let core = context.resource.group.is_empty();
    match (context.resource.plural, context.subresource.as_str(), context.operation) {
        ("pods", "", Operation::Create) | ("pods", "resize", Operation::Update) if core => Some(Subject::Pod),
        ("persistentvolumeclaims", "", Operation::Create | Operation::Update) if core => Some(Subject::Claim),
        _ => None,
    }
}

fn ranges(context: &Context) -> Vec<Value> {
    context.access.list(&resource::LIMITRANGES, &context.namespace).iter().map(|range| range.value()).collect()
}

fn limits_of<'a>(range: &'a Value, type_: &'a str) -> impl Iterator<Item = &'a Value> {
    range.list_at(&["spec", "limits"]).iter().filter(move |limit| limit.str_at(&["type"]) == type_)
}

/// Requests and limits a container does not state are the range's defaults; an annotation says which.
fn fill(pod: &mut Value, range: &Value) {
    let (mut requests, mut limits) = (Map::new(), Map::new());
    for limit in limits_of(range, "Container") {
        for (into, key) in [(&mut requests, "defaultRequest"), (&mut limits, "default")] {
            for (name, quantity) in limit.map_at(&[key]).into_iter().flat_map(Map::iter) {
                into.insert(name.to_string(), quantity.clone());
            }
        }
    }
    let mut notes = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        let Some(containers) = pod.at_mut(&["spec", list]).and_then(Value::as_list_mut) else { continue };
        for container in containers {
            let limited = fill_in(container, "limits", &limits);
            let requested = fill_in(container, "requests", &requests);
            let name = container.str_at(&["name"]);
            for (set, kind) in [(requested, "request"), (limited, "limit")] {
                if !set.is_empty() {
                    notes.push(format!("{} {kind} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        pod.set(&["metadata", "annotations", ANNOTATION], format!("LimitRanger plugin set: {}", notes.join("; ")));
    }
}

/// The names that were missing, sorted.
fn fill_in(container: &mut Value, member: &str, defaults: &Map) -> Vec<String> {
    let missing = |name: &str| container.at(&["resources", member, name]).is_none();
    let set: Vec<String> = defaults.keys().filter(|name| missing(name)).map(str::to_string).collect();
    for name in &set {
        container.set(&["resources", member, name], defaults.get(name).cloned().unwrap_or_default());
    }
    set
}

/// What somebody asks for.
struct Asked {
    requests: Amounts,
    limits: Amounts,
}

fn amounts(list: Option<&Value>) -> Amounts {
    let all = list.and_then(Value::as_map).into_iter().flat_map(Map::iter);
    all.filter_map(|(name, q)| Some((name.to_string(), Quantity::parse(q.as_str()?).ok()?))).collect()
}

fn pod_breaks(range: &Value, pod: &Value) -> Vec<String> {
    let mut broken = Vec::new();
    for limit in range.list_at(&["spec", "limits"]) {
        let type_ = limit.str_at(&["type"]);
        match type_ {
            "Container" => {
                let containers = pod.list_at(&["spec", "containers"]).iter().chain(pod.list_at(&["spec", "initContainers"]));
                containers.for_each(|c| {
                    check(&mut broken, type_, limit, &Asked { requests: qos::amounts(c, "requests"), limits: qos::amounts(c, "limits") })
                });
            }
            "Pod" => {
                let asked = Asked { requests: qos::of_pod(pod, "requests"), limits: qos::of_pod(pod, "limits") };
                check(&mut broken, type_, limit, &asked);
            }
            _ => {}
        }
    }
    broken
}

fn check(broken: &mut Vec<String>, type_: &str, limit: &Value, asked: &Asked) {
    let of = |member| amounts(limit.at(&[member]));
    broken.extend(of("min").iter().filter_map(|(name, least)| below(type_, name, least, asked)));
    broken.extend(of("max").iter().filter_map(|(name, most)| above(type_, name, most, asked)));
    broken.extend(of("maxLimitRequestRatio").iter().filter_map(|(name, most)| stretched(type_, name, most, asked)));
}

fn claim_breaks(range: &Value, claim: &Value) -> Vec<String> {
    let type_ = "PersistentVolumeClaim";
    let asked = Asked { requests: amounts(claim.at(&["spec", "resources", "requests"])), limits: Amounts::new() };
    let mut broken = Vec::new();
    for limit in limits_of(range, type_) {
        broken.extend(amounts(limit.at(&["min"])).iter().filter_map(|(name, least)| below(type_, name, least, &asked)));
        broken.extend(amounts(limit.at(&["max"])).iter().filter_map(|(name, most)| match asked.requests.get(name) {
            None => Some(format!("maximum {name} usage per {type_} is {most}.  No request is specified")),
            Some(request) if exceeds(request, most) => {
                Some(format!("maximum {name} usage per {type_} is {most}, but request is {request}"))
            }
            Some(_) => None,
        }));
    }
    broken
}

fn exceeds(a: &Quantity, b: &Quantity) -> bool {
    a.milli_value() > b.milli_value()
}

fn below(type_: &str, name: &str, least: &Quantity, asked: &Asked) -> Option<String> {
    let rule = format!("minimum {name} usage per {type_} is {least}");
    let limit = asked.limits.get(name).filter(|limit| exceeds(least, limit));
    match (asked.requests.get(name), limit) {
        (None, _) => Some(format!("{rule}.  No request is specified")),
        (Some(request), _) if exceeds(least, request) => Some(format!("{rule}, but request is {request}")),
        (Some(_), Some(limit)) => Some(format!("{rule}, but limit is {limit}")),
        (Some(_), None) => None,
    }
}

fn above(type_: &str, name: &str, most: &Quantity, asked: &Asked) -> Option<String> {
    let rule = format!("maximum {name} usage per {type_} is {most}");
    let request = asked.requests.get(name).filter(|request| exceeds(request, most));
    match (asked.limits.get(name), request) {
        (None, _) => Some(format!("{rule}.  No limit is specified")),
        (Some(limit), _) if exceeds(limit, most) => Some(format!("{rule}, but limit is {limit}")),
        (Some(_), Some(request)) => Some(format!("{rule}, but request is {request}")),
        (Some(_), None) => None,
    }
}

fn stretched(type_: &str, name: &str, most: &Quantity, asked: &Asked) -> Option<String> {
    let rule = format!("{name} max limit to request ratio per {type_} is {most}");
    let stated = |list: &Amounts| list.get(name).map(Quantity::milli_value).filter(|v| *v != 0);
    let Some(request) = stated(&asked.requests) else { return Some(format!("{rule}, but no request is specified or request is 0")) };
    let Some(limit) = stated(&asked.limits) else { return Some(format!("{rule}, but no limit is specified or limit is 0")) };
    let ratio = limit as f64 / request as f64;
    (ratio * 1000.0 > most.milli_value() as f64).then(|| format!("{rule}, but provided ratio is {ratio:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    fn range() -> Value {
        value!({"spec": {"limits": [
            {"type": "Container", "min": {"cpu": "50m"}, "max": {"cpu": "500m"}, "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m", "memory": "200Mi"},
                "maxLimitRequestRatio": {"cpu": "4"}},
            {"type": "Pod", "max": {"memory": "1Gi"}}]}})
    }

    #[test]
    fn what_is_not_stated_is_filled_in_and_said() {
        let mut pod = value!({"metadata": {}, "spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "300m"}}}],
            "initContainers": [{"name": "i", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1", "memory": "1"}}}]}});
        fill(&mut pod, &range());
        assert_eq!(
            pod.str_at(&["metadata", "annotations", ANNOTATION]),
            "LimitRanger plugin set: cpu, memory request for container a; cpu limit for container a; memory request for container b; \
             cpu limit for container b"
        );
        assert_eq!(pod.list_at(&["spec", "containers"])[1].str_at(&["resources", "requests", "cpu"]), "300m");
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let pod = value!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "10m", "memory": "900Mi"}, "limits": {"cpu": "600m", "memory": "900Mi"}}},
            {"name": "b", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "100m", "memory": "900Mi"}}}]}});
        assert_eq!(
            pod_breaks(&range(), &pod),
            [
                "minimum cpu usage per Container is 50m, but request is 10m",
                "maximum cpu usage per Container is 500m, but limit is 600m",
                "cpu max limit to request ratio per Container is 4, but provided ratio is 60.000000",
                "maximum memory usage per Pod is 1Gi, but limit is 1800Mi",
            ]
        );
        let claims =
            value!({"spec": {"limits": [{"type": "PersistentVolumeClaim", "min": {"storage": "2Gi"}, "max": {"storage": "4Gi"}}]}});
        let claim = value!({"spec": {"resources": {"requests": {"storage": "5Gi"}}}});
        assert_eq!(claim_breaks(&claims, &claim), ["maximum storage usage per PersistentVolumeClaim is 4Gi, but request is 5Gi"]);
    }
}
