//! Pure: what a pod asks for in total, and the QoS class that follows from it.

use std::collections::BTreeMap;

use crate::api::quantity::Quantity;
use crate::api::value::{Map, Value};

pub type Amounts = BTreeMap<String, Quantity>;

/// `requests` or `limits` of a container (or of what holds `resources` as one does).
pub fn amounts(holder: &Value, list: &str) -> Amounts {
    let map = holder.map_at(&["resources", list]);
    let parsed = map.into_iter().flat_map(|m| m.iter()).filter_map(|(name, amount)| {
        let text = amount.as_str()?;
        Some((name.to_string(), Quantity::parse(text).ok()?))
    });
    parsed.collect()
}

fn is_sidecar(container: &Value) -> bool {
    container.str_at(&["restartPolicy"]) == "Always"
}

/// Requests of all containers together: the larger of what runs at the end and the peak while initializing.
pub fn requests(spec: &Map) -> Amounts {
    total(spec, "requests")
}

/// The same for `requests` or `limits`.
pub fn total(spec: &Map, member: &str) -> Amounts {
    let list = |key: &str| spec.get(key).and_then(Value::as_list).unwrap_or(&[]);
    let mut running = Amounts::new();
    for c in list("containers") {
        add(&mut running, &amounts(c, member));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for c in list("initContainers") {
        let mut now = amounts(c, member);
        if is_sidecar(c) {
            add(&mut running, &now);
            add(&mut sidecars, &now);
            now = sidecars.clone();
        } else {
            add(&mut now, &sidecars);
        }
        raise(&mut peak, &now);
    }
    raise(&mut running, &peak);
    running
}

/// What the pod as a whole asks for: what is stated for all of it wins over the sum of its containers.
pub fn of_pod(pod: &Value, member: &str) -> Amounts {
    let Some(spec) = pod.map_at(&["spec"]) else { return Amounts::new() };
    let mut all = total(spec, member);
    all.extend(amounts(pod.get("spec").expect("just seen"), member));
    all
}

pub fn add(to: &mut Amounts, what: &Amounts) {
    for (name, amount) in what {
        match to.get_mut(name) {
            Some(sum) => *sum = sum.add(amount),
            None => {
                to.insert(name.clone(), amount.clone());
            }
        }
    }
}

fn raise(to: &mut Amounts, at_least: &Amounts) {
    for (name, amount) in at_least {
        if to.get(name).is_none_or(|have| have < amount) {
            to.insert(name.clone(), amount.clone());
        }
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`. Only CPU and memory count, and only where positive.
pub fn class(pod: &Value) -> &'static str {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let relevant = |list: Amounts| -> Amounts {
        list.into_iter().filter(|(name, q)| matches!(name.as_str(), "cpu" | "memory") && q.sign() > 0).collect()
    };
    if spec.at(&["resources"]).is_some_and(|r| r.map_at(&["requests"]).is_some() || r.map_at(&["limits"]).is_some()) {
        return classify(&relevant(amounts(spec, "requests")), &relevant(amounts(spec, "limits")), true);
    }
    let (mut requests, mut limits, mut all_limited) = (Amounts::new(), Amounts::new(), true);
    for c in spec.list_at(&["containers"]).iter().chain(spec.list_at(&["initContainers"])) {
        let own = relevant(amounts(c, "limits"));
        all_limited &= own.len() == 2;
        add(&mut requests, &relevant(amounts(c, "requests")));
        add(&mut limits, &own);
    }
    classify(&requests, &limits, all_limited)
}

fn classify(requests: &Amounts, limits: &Amounts, all_limited: bool) -> &'static str {
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    let equal = requests.len() == limits.len() && limits.len() == 2 && requests.iter().all(|(name, q)| limits.get(name) == Some(q));
    if all_limited && equal { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn classes() {
        let cases = [
            (value!([{}]), "BestEffort"),
            (value!([{"resources": {"requests": {"cpu": "1"}}}]), "Burstable"),
            (
                value!([{"resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1024Mi"}}}]),
                "Guaranteed",
            ),
            (
                value!([{"resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}}, {}]),
                "Burstable",
            ),
            (value!([{"resources": {"requests": {"example.com/x": "1"}}}]), "BestEffort"),
        ];
        for (containers, want) in cases {
            let mut pod = value!({"spec": {}});
            pod.set(&["spec", "containers"], containers.clone());
            assert_eq!(class(&pod), want, "{containers}");
        }
    }

    #[test]
    fn sidecars_add_and_init_containers_peak() {
        let spec = value!({"containers": [{"resources": {"requests": {"cpu": "1"}}}], "initContainers": [
            {"restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
            {"resources": {"requests": {"cpu": "2"}}}]});
        let total = requests(spec.as_map().unwrap());
        assert_eq!(total["cpu"].milli_value(), 2500);
    }
}
