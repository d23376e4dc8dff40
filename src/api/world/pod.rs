//! Pure: what loops ask of a pod.

use super::usage::Amounts;
use crate::api::conditions;
use crate::api::protobuf::{ALL, Only};
use crate::api::time::Time;
use crate::api::value::Value;

/// The fields of a pod that indexes, controllers and scheduler read again and again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodFacts {
    pub node: String,
    pub phase: String,
    pub ips: Vec<String>,
    pub hostname: String,
    pub subdomain: String,
    /// Seconds since the epoch, as all times here.
    pub created: i64,
    /// When it is (or was) to be gone.
    pub deletion: Option<i64>,
    pub ready: bool,
    pub ready_since: i64,
    pub restarts: i64,
    pub priority: i64,
    pub scheduler: String,
    /// `spec.schedulingGates` is not empty.
    pub gated: bool,
    pub nominated: String,
    pub requests: Amounts,
    pub host_ports: Vec<Port>,
    /// Has required pod anti-affinity: newcomers have to be checked against it.
    pub has_anti_affinity: bool,
    /// `pod-deletion-cost`.
    pub deletion_cost: i64,
}

/// One claimed port of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Empty for all addresses.
    pub ip: String,
    pub protocol: String,
    pub port: i64,
}

impl Port {
    /// Two pods cannot have both on one node.
    pub fn clashes(&self, other: &Port) -> bool {
        self.port == other.port && self.protocol == other.protocol && (self.ip.is_empty() || other.ip.is_empty() || self.ip == other.ip)
    }
}

const CONTAINERS: Only = Only::these(&[("resources", Only::these(&[("requests", ALL)])), ("ports", ALL), ("restartPolicy", ALL)]);

impl PodFacts {
    /// Everything [`PodFacts::of`] reads.
    pub const FIELDS: Only = Only::these(&[
        ("metadata", Only::these(&[("creationTimestamp", ALL), ("deletionTimestamp", ALL), ("annotations", ALL)])),
        (
            "spec",
            Only::these(&[
                ("nodeName", ALL),
                ("hostname", ALL),
                ("subdomain", ALL),
                ("priority", ALL),
                ("schedulerName", ALL),
                ("schedulingGates", ALL),
                ("containers", CONTAINERS),
                ("initContainers", CONTAINERS),
                ("resources", Only::these(&[("requests", ALL)])),
                ("overhead", ALL),
                ("affinity", Only::these(&[("podAntiAffinity", ALL)])),
            ]),
        ),
        (
            "status",
            Only::these(&[
                ("phase", ALL),
                ("podIP", ALL),
                ("podIPs", ALL),
                ("conditions", ALL),
                ("containerStatuses", Only::these(&[("restartCount", ALL)])),
                ("nominatedNodeName", ALL),
            ]),
        ),
    ]);

    pub fn of(pod: &Value) -> PodFacts {
        let spec = pod.at(&["spec"]).unwrap_or(&Value::Null);
        let status = pod.at(&["status"]).unwrap_or(&Value::Null);
        let ready = conditions::find(status.list_at(&["conditions"]), "Ready");
        let statuses = status.list_at(&["containerStatuses"]);
        let mut ips: Vec<String> = status.list_at(&["podIPs"]).iter().map(|ip| ip.str_at(&["ip"]).to_string()).collect();
        if ips.is_empty() && !status.str_at(&["podIP"]).is_empty() {
            ips.push(status.str_at(&["podIP"]).to_string());
        }
        PodFacts {
            node: spec.str_at(&["nodeName"]).into(),
            phase: status.str_at(&["phase"]).into(),
            ips,
            hostname: spec.str_at(&["hostname"]).into(),
            subdomain: spec.str_at(&["subdomain"]).into(),
            created: seconds(pod.str_at(&["metadata", "creationTimestamp"])).unwrap_or(0),
            deletion: seconds(pod.str_at(&["metadata", "deletionTimestamp"])),
            ready: ready.is_some_and(|c| c.str_at(&["status"]) == "True"),
            ready_since: ready.and_then(|c| seconds(c.str_at(&["lastTransitionTime"]))).unwrap_or(0),
            restarts: statuses.iter().filter_map(|s| s.i64_at(&["restartCount"])).max().unwrap_or(0),
            priority: spec.i64_at(&["priority"]).unwrap_or(0),
            scheduler: spec.str_at(&["schedulerName"]).into(),
            gated: !spec.list_at(&["schedulingGates"]).is_empty(),
            nominated: status.str_at(&["nominatedNodeName"]).into(),
            requests: requests(spec),
            host_ports: host_ports(spec),
            has_anti_affinity: !spec.list_at(&["affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"]).is_empty(),
            deletion_cost: pod
                .at(&["metadata", "annotations", "controller.kubernetes.io/pod-deletion-cost"])
                .and_then(Value::as_str)
                .and_then(|s| s.parse().ok())
                .unwrap_or(0),
        }
    }

    /// Succeeded or Failed: it runs no more and uses nothing.
    pub fn is_over(&self) -> bool {
        self.phase == "Succeeded" || self.phase == "Failed"
    }

    /// Counts as one of its owner's pods.
    pub fn is_active(&self) -> bool {
        !self.is_over() && self.deletion.is_none()
    }
}

/// Requests of the containers together; of init containers the largest at any moment, restartable ones staying on.
fn requests(spec: &Value) -> Amounts {
    let mut total = Amounts::default();
    for container in spec.list_at(&["containers"]) {
        total.add(&Amounts::of(container.at(&["resources", "requests"])));
    }
    let mut sidecars = Amounts::default();
    let mut peak = Amounts::default();
    for container in spec.list_at(&["initContainers"]) {
        let own = Amounts::of(container.at(&["resources", "requests"]));
        let mut here = own.clone();
        here.add(&sidecars);
        if container.str_at(&["restartPolicy"]) == "Always" {
            sidecars.add(&own);
        }
        peak.raise(&here);
    }
    total.add(&sidecars);
    total.raise(&peak);
    if let Some(level) = spec.at(&["resources", "requests"]) {
        total.override_with(&Amounts::of(Some(level)));
    }
    total.add(&Amounts::of(spec.at(&["overhead"])));
    total
}

fn host_ports(spec: &Value) -> Vec<Port> {
    let all = spec.list_at(&["containers"]).iter().chain(spec.list_at(&["initContainers"]));
    let ports = all.flat_map(|c| c.list_at(&["ports"]).iter());
    ports
        .filter_map(|p| {
            let port = p.i64_at(&["hostPort"]).filter(|n| *n > 0)?;
            let ip = match p.str_at(&["hostIP"]) {
                "0.0.0.0" | "::" => "",
                ip => ip,
            };
            let protocol = match p.str_at(&["protocol"]) {
                "" => "TCP",
                protocol => protocol,
            };
            Some(Port { ip: ip.into(), protocol: protocol.into(), port })
        })
        .collect()
}

fn seconds(text: &str) -> Option<i64> {
    Time::parse(text).ok().map(|t| t.seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::object::Object;
    use crate::api::resource;
    use crate::value;

    #[test]
    fn the_facts_need_only_some_of_a_pod() {
        let pod = value!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "creationTimestamp": "2020-01-01T00:00:00Z", "deletionTimestamp": "2020-01-01T00:00:30Z",
                "annotations": {"controller.kubernetes.io/pod-deletion-cost": "7"}},
            "spec": {"nodeName": "n", "hostname": "h", "subdomain": "s", "priority": 5, "schedulerName": "x", "schedulingGates": [{"name": "g"}],
                "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "2"}}, "ports": [{"containerPort": 80, "hostPort": 80}]}],
                "initContainers": [{"name": "i", "restartPolicy": "Always", "resources": {"requests": {"memory": "1Gi"}}}],
                "resources": {"requests": {"cpu": "3"}}, "overhead": {"cpu": "100m"},
                "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "k"}]}}},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "nominatedNodeName": "m",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:10Z"}],
                "containerStatuses": [{"name": "c", "restartCount": 4}]}});
        let object = Object::from_value(&resource::PODS, &pod, 1);
        let facts = PodFacts::of(&object.value());
        assert_eq!(PodFacts::of(&object.decode_only(PodFacts::FIELDS)), facts);
        let empty = PodFacts { created: facts.created, ..PodFacts::default() };
        assert!(facts.restarts == 4 && facts.deletion_cost == 7 && facts.requests.cpu == 3100 && facts != empty, "{facts:?}");
    }
}
