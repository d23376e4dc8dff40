//! Pure: a pod's quality of service and what follows from it for the kernel: cgroup parent, shares, quota, memory, oom score.

use crate::api::quantity::Quantity;
use crate::api::value::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Class {
    pub fn name(self) -> &'static str {
        match self {
            Class::Guaranteed => "Guaranteed",
            Class::Burstable => "Burstable",
            Class::BestEffort => "BestEffort",
        }
    }

    /// The parent of the pod's cgroup; guaranteed pods stand beside the class directories, as upstream has it.
    pub fn cgroup_parent(self) -> &'static str {
        match self {
            Class::Guaranteed => "",
            Class::Burstable => "burstable",
            Class::BestEffort => "besteffort",
        }
    }
}

/// Bytes, or whole units, of a quantity; absent or unreadable is `None`.
pub fn units(quantity: Option<&Value>) -> Option<i64> {
    parse(quantity?).map(|q| i64::try_from(q.value()).unwrap_or(i64::MAX))
}

/// Thousandths of a quantity: what CPU is counted in.
pub fn millis(quantity: Option<&Value>) -> Option<i64> {
    parse(quantity?).map(|q| i64::try_from(q.milli_value()).unwrap_or(i64::MAX))
}

fn parse(value: &Value) -> Option<Quantity> {
    match value {
        Value::Str(s) => Quantity::parse(s).ok(),
        Value::Int(i) => Quantity::parse(&i.to_string()).ok(),
        Value::Float(f) => Quantity::parse(&f.to_string()).ok(),
        Value::Null | Value::Bool(_) | Value::List(_) | Value::Map(_) => None,
    }
}

/// The class by the rules for `status.qosClass`; only cpu and memory count. Resources of the pod itself come before its containers'.
pub fn class(pod: &Value) -> Class {
    if let Some(own) = pod.at(&["spec", "resources"]).filter(|r| r.as_map().is_some_and(|m| !m.is_empty())) {
        return class_of_pod_level(own);
    }
    let lists = [pod.list_at(&["spec", "containers"]), pod.list_at(&["spec", "initContainers"])];
    let containers = || lists.iter().flat_map(|l| l.iter());
    let set = |c: &Value, kind: &str, what: &str| units_any(c.at(&["resources", kind, what]));
    let any = containers()
        .any(|c| ["requests", "limits"].iter().any(|kind| ["cpu", "memory"].iter().any(|what| set(c, kind, what).is_some_and(|n| n > 0))));
    if !any {
        return Class::BestEffort;
    }
    let guaranteed = containers().all(|c| {
        ["cpu", "memory"].iter().all(|what| {
            let limit = set(c, "limits", what).filter(|n| *n > 0);
            limit.is_some() && set(c, "requests", what).is_none_or(|request| Some(request) == limit)
        })
    });
    if guaranteed { Class::Guaranteed } else { Class::Burstable }
}

fn class_of_pod_level(resources: &Value) -> Class {
    let set = |kind: &str, what: &str| millis(resources.at(&[kind, what])).filter(|n| *n > 0);
    let each = ["cpu", "memory"].map(|what| (set("requests", what), set("limits", what)));
    if each.iter().all(|(request, limit)| limit.is_some() && (request.is_none() || request == limit)) {
        return Class::Guaranteed;
    }
    if each.iter().any(|(request, limit)| request.is_some() || limit.is_some()) { Class::Burstable } else { Class::BestEffort }
}

fn units_any(quantity: Option<&Value>) -> Option<i64> {
    millis(quantity)
}

/// cgroup v1 `cpu.shares` of a request in milli-CPUs.
pub fn shares(milli_cpu: i64) -> u64 {
    u64::try_from(milli_cpu * 1024 / 1000).unwrap_or(0).clamp(2, 262_144)
}

/// CFS quota in microseconds for a 100 ms period; `None` is no limit.
pub fn quota(milli_cpu: Option<i64>) -> Option<i64> {
    milli_cpu.filter(|m| *m > 0).map(|m| (m * 100_000 / 1000).max(1000))
}

/// `oom_score_adj` of a container, as upstream weighs memory requests against the node's memory.
pub fn oom_score(class: Class, memory_request: i64, node_memory: i64, critical: bool) -> i32 {
    match class {
        _ if critical => -997,
        Class::Guaranteed => -997,
        Class::BestEffort => 1000,
        Class::Burstable => {
            let score = 1000 - 1000 * memory_request / node_memory.max(1);
            i32::try_from(score.clamp(3, 999)).expect("clamped")
        }
    }
}

/// Milli-CPUs and bytes the pod asks for: its own, else the sum of its containers and sidecars or the largest init container
/// with the sidecars before it; plus overhead.
pub fn requests(pod: &Value) -> (i64, i64) {
    (request(pod, "cpu", millis), request(pod, "memory", units))
}

fn request(pod: &Value, what: &str, unit: fn(Option<&Value>) -> Option<i64>) -> i64 {
    let overhead = unit(pod.at(&["spec", "overhead", what])).unwrap_or(0);
    if let Some(own) = unit(pod.at(&["spec", "resources", "requests", what])) {
        return own + overhead;
    }
    total(pod, |c| Some(unit(c.at(&["resources", "requests", what])).unwrap_or(0))).unwrap_or(0) + overhead
}

/// What the containers come to at most at one time; `None` if one of them has no bound.
fn total(pod: &Value, of: impl Fn(&Value) -> Option<i64>) -> Option<i64> {
    let (mut sidecars, mut most) = (0, 0);
    for c in pod.list_at(&["spec", "initContainers"]) {
        let own = of(c)?;
        if c.str_at(&["restartPolicy"]) == "Always" {
            sidecars += own;
            most = most.max(sidecars);
        } else {
            most = most.max(sidecars + own);
        }
    }
    let sum = pod.list_at(&["spec", "containers"]).iter().map(of).sum::<Option<i64>>()?;
    Some((sum + sidecars).max(most))
}

/// The pod's own limit, else the sum of its containers', if each has one.
pub fn pod_limit(pod: &Value, what: &str, unit: fn(Option<&Value>) -> Option<i64>) -> Option<i64> {
    let overhead = unit(pod.at(&["spec", "overhead", what])).unwrap_or(0);
    let own = unit(pod.at(&["spec", "resources", "limits", what])).filter(|n| *n > 0);
    let of = |c: &Value| unit(c.at(&["resources", "limits", what])).filter(|n| *n > 0);
    Some(own.or_else(|| total(pod, of))? + overhead)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    fn pod(resources: serde_json::Value) -> Value {
        value!({"spec": {"containers": [{"name": "a", "resources": resources}]}})
    }

    #[test]
    fn classes() {
        assert_eq!(class(&pod(serde_json::json!({}))), Class::BestEffort);
        assert_eq!(class(&pod(serde_json::json!({"requests": {"cpu": "100m"}}))), Class::Burstable);
        assert_eq!(class(&pod(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}))), Class::Guaranteed);
        let half = serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}});
        assert_eq!(class(&pod(half)), Class::Burstable);
    }

    #[test]
    fn sidecars_count_beside_the_others() {
        let c = |cpu: &str, policy: &str| serde_json::json!({"restartPolicy": policy, "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}});
        let pod =
            value!({"spec": {"initContainers": [c("1", "Always"), c("5", ""), c("1", "Always")], "containers": [c("2", ""), c("1", "")]}});
        assert_eq!((requests(&pod).0, pod_limit(&pod, "cpu", millis)), (6000, Some(6000)));
        let pod = value!({"spec": {"initContainers": [c("1", "Always")], "containers": [c("2", "")], "overhead": {"cpu": "10m"}}});
        assert_eq!(requests(&pod).0, 3010);
    }

    #[test]
    fn kernel_values() {
        assert_eq!((shares(100), shares(0), shares(2000)), (102, 2, 2048));
        assert_eq!((quota(Some(250)), quota(Some(1)), quota(None)), (Some(25_000), Some(1000), None));
        assert_eq!(oom_score(Class::Burstable, 1 << 30, 4 << 30, false), 750);
        assert_eq!(oom_score(Class::BestEffort, 0, 1, false), 1000);
    }
}
