//! Pure: what counts against resource quotas, and which quotas an object counts against.
//!
//! Everything namespaced counts as `count/<plural>[.<group>]`; pods, services and claims count as more. Shared by admission, which
//! charges what is about to be written, and the controller, which adds up what is there. Start at [`usage`] and [`concerned`].

use std::collections::BTreeMap;

use crate::api::quantity::Quantity;
use crate::api::resource::Resource;
use crate::api::time::Time;
use crate::api::value::{Map, Value};
use crate::server::kinds::core::{amounts, qos};

pub use crate::server::kinds::core::qos::Amounts;

const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
/// Resources that once had names of their own.
const ALIASES: [&str; 4] = ["configmaps", "resourcequotas", "replicationcontrollers", "secrets"];
const POD_NAMES: [&str; 10] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
/// Every container has to state these where a quota limits them.
const STATED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// What a resource counts as, apart from its number of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    Pods,
    Services,
    Claims,
    Plain,
}

impl Counted {
    pub fn of(resource: &Resource) -> Counted {
        match (resource.storage_group, resource.plural) {
            ("", "pods") => Counted::Pods,
            ("", "services") => Counted::Services,
            ("", "persistentvolumeclaims") => Counted::Claims,
            _ => Counted::Plain,
        }
    }
}

fn count_name(resource: &Resource) -> String {
    match resource.storage_group {
        "" => format!("count/{}", resource.plural),
        group => format!("count/{}.{group}", resource.plural),
    }
}

/// Whether amounts of this name are about objects of the resource.
pub fn is_about(resource: &Resource, name: &str) -> bool {
    if name == count_name(resource) {
        return true;
    }
    match Counted::of(resource) {
        Counted::Pods => {
            let extended = name.strip_prefix("requests.").is_some_and(amounts::is_extended);
            POD_NAMES.contains(&name) || name.starts_with("hugepages-") || name.starts_with("requests.hugepages-") || extended
        }
        Counted::Services => matches!(name, "services" | "services.loadbalancers" | "services.nodeports"),
        Counted::Claims => {
            let base = name.split_once(STORAGE_CLASS).map_or(name, |(_, base)| base);
            matches!(base, "persistentvolumeclaims" | "requests.storage")
        }
        Counted::Plain => resource.storage_group.is_empty() && ALIASES.contains(&resource.plural) && name == resource.plural,
    }
}

/// What one object uses.
pub fn usage(resource: &Resource, object: &Value, now: Time) -> Amounts {
    let mut used = Amounts::from([(count_name(resource), Quantity::new(1))]);
    match Counted::of(resource) {
        Counted::Pods if is_over(object, now) => {}
        Counted::Pods => {
            let (requests, limits) = (qos::of_pod(object, "requests"), qos::of_pod(object, "limits"));
            used.extend(of_pod(&requests, &limits, object.map_at(&["spec", "overhead"])));
        }
        Counted::Services => used.extend(of_service(object)),
        Counted::Claims => used.extend(of_claim(object)),
        Counted::Plain if resource.storage_group.is_empty() && ALIASES.contains(&resource.plural) => {
            used.insert(resource.plural.to_string(), Quantity::new(1));
        }
        Counted::Plain => {}
    }
    used
}

/// Ended, or past its time to end: its resources are free.
fn is_over(pod: &Value, now: Time) -> bool {
    if matches!(pod.str_at(&["status", "phase"]), "Failed" | "Succeeded") {
        return true;
    }
    // The deletion's time has the grace in it already; upstream waits for it once more.
    let grace = pod.i64_at(&["metadata", "deletionGracePeriodSeconds"]);
    let deletion = Time::parse(pod.str_at(&["metadata", "deletionTimestamp"])).ok();
    matches!((deletion, grace), (Some(at), Some(grace)) if now.seconds > at.seconds + grace)
}

fn of_pod(requests: &Amounts, limits: &Amounts, overhead: Option<&Map>) -> Amounts {
    let (mut requests, mut limits) = (requests.clone(), limits.clone());
    let overhead: Amounts =
        overhead.into_iter().flat_map(Map::iter).filter_map(|(n, q)| Some((n.into(), Quantity::parse(q.as_str()?).ok()?))).collect();
    qos::add(&mut requests, &overhead);
    let limited: Amounts = overhead.into_iter().filter(|(name, _)| limits.contains_key(name)).collect();
    qos::add(&mut limits, &limited);
    let mut used = Amounts::from([("pods".to_string(), Quantity::new(1))]);
    for (name, amount) in &requests {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            used.insert(name.clone(), amount.clone());
            used.insert(format!("requests.{name}"), amount.clone());
        } else if amounts::is_extended(name) {
            used.insert(format!("requests.{name}"), amount.clone());
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            used.insert(format!("limits.{name}"), amount.clone());
        }
    }
    used
}

fn of_service(service: &Value) -> Amounts {
    let ports = service.list_at(&["spec", "ports"]);
    let all = ports.len() as i64;
    let (balancers, node_ports) = match service.str_at(&["spec", "type"]) {
        "NodePort" => (0, all),
        "LoadBalancer" => {
            let stated = ports.iter().filter(|p| p.i64_at(&["nodePort"]).unwrap_or(0) != 0).count() as i64;
            let allocated = service.at(&["spec", "allocateLoadBalancerNodePorts"]).and_then(Value::as_bool) != Some(false);
            (1, if allocated { all } else { stated })
        }
        _ => (0, 0),
    };
    [("services", 1), ("services.loadbalancers", balancers), ("services.nodeports", node_ports)]
        .map(|(name, n)| (name.to_string(), Quantity::new(n)))
        .into()
}

fn of_claim(claim: &Value) -> Amounts {
    let mut used = Amounts::from([("persistentvolumeclaims".to_string(), Quantity::new(1))]);
    let parse = |text: &str| Quantity::parse(text).ok();
    let requested = parse(claim.str_at(&["spec", "resources", "requests", "storage"]));
    let allocated = parse(claim.str_at(&["status", "allocatedResources", "storage"]));
    if let Some(mut storage) = requested.max(allocated) {
        storage.round_up(0);
        used.insert("requests.storage".into(), storage);
    }
    let annotated = claim.str_at(&["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"]);
    let class = if annotated.is_empty() { claim.str_at(&["spec", "storageClassName"]) } else { annotated };
    if !class.is_empty() {
        let by_class = used.iter().map(|(name, amount)| (format!("{class}{STORAGE_CLASS}{name}"), amount.clone()));
        let by_class: Vec<_> = by_class.collect();
        used.extend(by_class);
    }
    used
}

/// The names of `hard` this object counts towards, if the quota's scopes include it.
pub fn concerned(quota: &Value, hard: &Map, resource: &Resource, object: &Value) -> Vec<String> {
    let names: Vec<String> = hard.keys().filter(|name| is_about(resource, name)).map(str::to_string).collect();
    if names.is_empty() || in_scopes(quota, resource, object) { names } else { Vec::new() }
}

/// All scopes of a quota have to hold; most resources have none.
pub fn in_scopes(quota: &Value, resource: &Resource, object: &Value) -> bool {
    let scopes = quota.list_at(&["spec", "scopes"]).iter().filter_map(Value::as_str).map(|scope| (scope, "Exists", &[][..]));
    let selected = quota.list_at(&["spec", "scopeSelector", "matchExpressions"]).iter();
    let selected = selected.map(|e| (e.str_at(&["scopeName"]), e.str_at(&["operator"]), e.list_at(&["values"])));
    scopes.chain(selected).all(|(scope, operator, values)| match Counted::of(resource) {
        Counted::Pods => pod_in_scope(object, scope, operator, values),
        Counted::Claims if scope == "VolumeAttributesClass" => {
            named(object.str_at(&["spec", "volumeAttributesClassName"]), operator, values)
        }
        Counted::Claims | Counted::Services | Counted::Plain => false,
    })
}

fn pod_in_scope(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    let terminating = pod.i64_at(&["spec", "activeDeadlineSeconds"]).is_some_and(|s| s >= 0);
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => qos::class(pod) == "BestEffort",
        "NotBestEffort" => qos::class(pod) != "BestEffort",
        "PriorityClass" => named(pod.str_at(&["spec", "priorityClassName"]), operator, values),
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

fn named(name: &str, operator: &str, values: &[Value]) -> bool {
    let listed = !name.is_empty() && values.iter().any(|v| v.as_str() == Some(name));
    match operator {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => !name.is_empty(),
        "DoesNotExist" => name.is_empty(),
        _ => false,
    }
}

fn crosses_namespaces(pod: &Value) -> bool {
    let crosses = |term: &Value| !term.list_at(&["namespaces"]).is_empty() || term.at(&["namespaceSelector"]).is_some();
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let terms = |list: &str| pod.list_at(&["spec", "affinity", kind, list]).to_vec();
        let preferred = terms("preferredDuringSchedulingIgnoredDuringExecution");
        terms("requiredDuringSchedulingIgnoredDuringExecution").iter().any(crosses)
            || preferred.iter().filter_map(|t| t.at(&["podAffinityTerm"])).any(crosses)
    })
}

/// What a pod fails to state although quotas limit it, as the refusal says it.
pub fn unstated(pod: &Value, names: &[String]) -> Option<String> {
    if pod.at(&["spec", "resources", "requests"]).or(pod.at(&["spec", "resources", "limits"])).is_some() {
        return None;
    }
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for container in pod.list_at(&["spec", "containers"]).iter().chain(pod.list_at(&["spec", "initContainers"])) {
        let stated = of_pod(&qos::amounts(container, "requests"), &qos::amounts(container, "limits"), None);
        for name in names.iter().filter(|name| STATED.contains(&name.as_str()) && !stated.contains_key(*name)) {
            missing.entry(name).or_default().push(container.str_at(&["name"]));
        }
    }
    let parts = missing.into_iter().map(|(name, mut containers)| {
        containers.sort_unstable();
        format!("{name} for: {}", containers.join(","))
    });
    let parts: Vec<String> = parts.collect();
    (!parts.is_empty()).then(|| format!("must specify {}", parts.join("; ")))
}

/// `a=1,b=2`, of these names.
pub fn print(amounts: &Amounts, names: &[&String]) -> String {
    let parts = amounts.iter().filter(|(name, _)| names.contains(name)).map(|(name, amount)| format!("{name}={amount}"));
    parts.collect::<Vec<_>>().join(",")
}

/// A resource list of an object.
pub fn amounts_of(list: Option<&Map>) -> Amounts {
    let all = list.into_iter().flat_map(Map::iter);
    all.filter_map(|(name, q)| Some((name.to_string(), Quantity::parse(q.as_str()?).ok()?))).collect()
}

/// As objects hold it.
pub fn to_value(amounts: &Amounts) -> Value {
    Value::Map(amounts.iter().map(|(name, amount)| (name.clone(), Value::from(amount.to_string()))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::resource::{CONFIGMAPS, DEPLOYMENTS, PERSISTENTVOLUMECLAIMS, PODS, SERVICES};
    use crate::value;

    fn shown(resource: &Resource, object: &Value) -> String {
        let used = usage(resource, object, Time::from_seconds(1_700_000_000));
        print(&used, &used.keys().collect::<Vec<_>>())
    }

    #[test]
    fn what_objects_use() {
        assert_eq!(shown(&CONFIGMAPS, &value!({})), "configmaps=1,count/configmaps=1");
        assert_eq!(shown(&DEPLOYMENTS, &value!({})), "count/deployments.apps=1");
        let pod = value!({"spec": {"overhead": {"cpu": "10m"}, "containers": [{"resources": {"requests": {"cpu": "100m", "example.com/a": "2"}, "limits": {"memory": "1Gi"}}}]}});
        assert_eq!(shown(&PODS, &pod), "count/pods=1,cpu=110m,limits.memory=1Gi,pods=1,requests.cpu=110m,requests.example.com/a=2");
        assert_eq!(shown(&PODS, &value!({"status": {"phase": "Succeeded"}})), "count/pods=1");
        let service =
            value!({"spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"nodePort": 30000}, {}]}});
        assert_eq!(shown(&SERVICES, &service), "count/services=1,services=1,services.loadbalancers=1,services.nodeports=1");
        let claim = value!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(
            shown(&PERSISTENTVOLUMECLAIMS, &claim),
            "count/persistentvolumeclaims=1,fast.storageclass.storage.k8s.io/persistentvolumeclaims=1,\
             fast.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=1,requests.storage=1Gi"
        );
    }

    #[test]
    fn scopes_choose_pods() {
        let pod = value!({"spec": {"priorityClassName": "high", "activeDeadlineSeconds": 5, "containers": [{}]}});
        let holds = |spec: serde_json::Value| {
            let mut quota = Value::map();
            quota.set(&["spec"], crate::api::json::parse(spec.to_string().as_bytes()).unwrap());
            in_scopes(&quota, &PODS, &pod)
        };
        assert!(holds(serde_json::json!({"scopes": ["Terminating", "BestEffort"]})));
        assert!(!holds(serde_json::json!({"scopes": ["NotTerminating"]})));
        let class = |operator: &str| serde_json::json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": ["high"]}]}});
        assert!(holds(class("In")) && !holds(class("NotIn")));
        let scoped = value!({"spec": {"scopes": ["BestEffort"]}});
        assert!(!in_scopes(&scoped, &CONFIGMAPS, &value!({})), "only pods have scopes");
    }

    #[test]
    fn containers_must_state_what_is_limited() {
        let pod = value!({"spec": {"containers": [{"name": "b"}, {"name": "a"}, {"name": "c", "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1"}}}]}});
        let names = ["requests.cpu", "limits.memory", "pods"].map(str::to_string);
        assert_eq!(unstated(&pod, &names).unwrap(), "must specify limits.memory for: a,b; requests.cpu for: a,b");
    }
}
