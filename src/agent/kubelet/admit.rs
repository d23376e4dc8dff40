//! Pure: does a bound pod fit here, and does it ask for something this node cannot do yet.
//!
//! The scheduler has decided already; this is the last check, for pods bound by hand and for races. A pod that needs an
//! unfinished feature is not failed (its controller would replace it for ever): it waits and says what it waits for.

use super::observe::{Reason, Resize};
use super::pod::{Pod, name_of};
use crate::agent::qos;
use crate::api::value::Value;

/// What this node offers, by `status.allocatable`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Room {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub pods: i64,
    /// The node's labels.
    pub labels: std::collections::BTreeMap<String, String>,
}

/// `others` are the pods that were admitted before and have not ended.
pub fn admit(pod: Pod, others: &[Value], room: &Room) -> Result<(), Reason> {
    let refuse = |reason: &str, message: String| Err(Reason { reason: reason.to_string(), message });
    let os = pod.0.str_at(&["spec", "os", "name"]);
    if !os.is_empty() && os != "linux" {
        return refuse("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS".to_string());
    }
    let mismatch = pod.0.map_at(&["spec", "nodeSelector"]).into_iter().flat_map(|m| m.iter());
    for (key, value) in mismatch {
        if room.labels.get(key).map(String::as_str) != value.as_str() {
            return refuse(
                "NodeAffinity",
                "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".to_string(),
            );
        }
    }
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    if count + 1 > room.pods {
        return refuse("OutOfpods", short("pods", 1, count, room.pods));
    }
    let (cpu, memory) = qos::requests(pod.0);
    let used = others.iter().map(qos::requests).fold((0, 0), |sum, r| (sum.0 + r.0, sum.1 + r.1));
    if cpu > 0 && cpu > room.cpu_milli - used.0 {
        return refuse("OutOfcpu", short("cpu", cpu, used.0, room.cpu_milli));
    }
    if memory > 0 && memory > room.memory_bytes - used.1 {
        return refuse("OutOfmemory", short("memory", memory, used.1, room.memory_bytes));
    }
    sysctls(pod)?;
    let taken: Vec<HostPort> = others.iter().flat_map(|p| host_ports(Pod(p))).collect();
    if host_ports(pod).iter().any(|port| taken.iter().any(|t| t.clashes(port))) {
        let message = "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return refuse("NodePorts", message.to_string());
    }
    Ok(())
}

/// Sysctls a pod may set by itself: they are confined to its own namespaces.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

fn sysctls(pod: Pod) -> Result<(), Reason> {
    for sysctl in pod.0.list_at(&["spec", "securityContext", "sysctls"]) {
        let name = name_of(sysctl);
        let dotted = name.replace('/', ".");
        let why = if !SAFE_SYSCTLS.contains(&dotted.as_str()) {
            "not allowlisted"
        } else if dotted.starts_with("net.") && pod.host_network() {
            "not allowed with host net enabled"
        } else if dotted.starts_with("kernel.") && pod.0.bool_at(&["spec", "hostIPC"]) {
            "not allowed with host ipc enabled"
        } else {
            continue;
        };
        return Err(Reason { reason: "SysctlForbidden".into(), message: format!("forbidden sysctl: \"{name}\" {why}") });
    }
    Ok(())
}

/// May an admitted pod have the resources its spec asks for now?
pub fn resize(pod: Pod, others: &[Value], room: &Room) -> Resize {
    let (cpu, memory) = qos::requests(pod.0);
    let used = others.iter().map(qos::requests).fold((0, 0), |sum, r| (sum.0 + r.0, sum.1 + r.1));
    let kinds = [("cpu", cpu, used.0, room.cpu_milli), ("memory", memory, used.1, room.memory_bytes)];
    for (what, asked, _, all) in kinds {
        if asked > all {
            return Resize::Infeasible(format!("Node didn't have enough capacity: {what}, requested: {asked}, capacity: {all}"));
        }
    }
    for (what, asked, used, all) in kinds {
        if asked > 0 && asked > all - used {
            let message = format!("Node didn't have enough resource: {what}, requested: {asked}, used: {used}, capacity: {all}");
            return Resize::Deferred(message);
        }
    }
    Resize::Granted
}

fn short(what: &str, requested: i64, used: i64, capacity: i64) -> String {
    format!("Pod was rejected: Node didn't have enough resource: {what}, requested: {requested}, used: {used}, capacity: {capacity}")
}

/// A port of the node that a container asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct HostPort {
    pub ip: String,
    pub port: u16,
    pub container_port: u16,
    pub protocol: String,
}

impl HostPort {
    fn clashes(&self, other: &HostPort) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
        self.port == other.port && self.protocol == other.protocol && (any(&self.ip) || any(&other.ip) || self.ip == other.ip)
    }
}

pub fn host_ports(pod: Pod) -> Vec<HostPort> {
    let ports = pod.containers().iter().chain(pod.init_containers()).flat_map(|c| c.list_at(&["ports"]));
    ports
        .filter_map(|p| {
            let container_port = u16::try_from(p.i64_at(&["containerPort"]).unwrap_or(0)).ok()?;
            let asked = p.i64_at(&["hostPort"]).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
            let port = asked.or(pod.host_network().then_some(container_port)).filter(|n| *n > 0)?;
            let protocol = match p.str_at(&["protocol"]) {
                "" => "TCP",
                protocol => protocol,
            };
            Some(HostPort { ip: p.str_at(&["hostIP"]).to_string(), port, container_port, protocol: protocol.to_string() })
        })
        .collect()
}

/// Volume types this node sets up.
pub const VOLUMES: [&str; 7] = ["emptyDir", "hostPath", "configMap", "secret", "downwardAPI", "projected", "image"];

/// The first thing the pod needs that is not there yet, in words for its status.
pub fn unsupported(pod: Pod) -> Option<String> {
    let not_yet = |what: String| Some(format!("{what} not supported yet by this version of Coracle"));
    for c in pod.init_containers().iter().chain(pod.containers()) {
        let name = name_of(c);
        if !c.list_at(&["volumeDevices"]).is_empty() {
            return not_yet(format!("block volumes (volumeDevices of container \"{name}\") are"));
        }
        if !c.list_at(&["resources", "claims"]).is_empty() {
            return not_yet(format!("resource claims (container \"{name}\") are"));
        }
        if c.list_at(&["restartPolicyRules"]).iter().any(|rule| rule.str_at(&["action"]) == "RestartAllContainers") {
            return not_yet(format!("restart rules with action RestartAllContainers (container \"{name}\") are"));
        }
    }
    if pod.0.at(&["spec", "hostUsers"]) == Some(&Value::Bool(false)) {
        return not_yet("user namespaces (hostUsers: false) are".to_string());
    }
    for volume in pod.volumes() {
        let kind = volume.as_map().and_then(|m| m.iter().find(|(k, v)| *k != "name" && !v.is_null())).map_or("emptyDir", |(k, _)| k);
        if !VOLUMES.contains(&kind) {
            return not_yet(format!("volumes of type {kind} (volume \"{}\") are", name_of(volume)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    fn pod(cpu: &str, port: i64) -> Value {
        value!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}, "ports": [{"containerPort": 80, "hostPort": port}]}]}})
    }

    #[test]
    fn resources_ports_and_count_are_limits() {
        let room = Room { cpu_milli: 1000, memory_bytes: 1 << 30, pods: 2, ..Room::default() };
        let reason = |p: &Value, others: &[Value]| admit(Pod(p), others, &room).err().map(|r| r.reason);
        assert_eq!(reason(&pod("600m", 1), &[]), None);
        assert_eq!(reason(&pod("600m", 1), &[pod("600m", 2)]).as_deref(), Some("OutOfcpu"));
        assert_eq!(reason(&pod("1m", 1), &[pod("600m", 1)]).as_deref(), Some("NodePorts"));
        assert_eq!(reason(&pod("1m", 1), &[pod("1m", 2), pod("1m", 3)]).as_deref(), Some("OutOfpods"));
    }

    #[test]
    fn unsafe_sysctls_are_refused_by_name() {
        let refused = |pod: Value| admit(Pod(&pod), &[], &Room { pods: 9, ..Room::default() }).err().map(|r| (r.reason, r.message));
        let with = |name: &str, host: bool| value!({"spec": {"hostNetwork": host, "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}});
        assert_eq!(refused(with("kernel/shm_rmid_forced", false)), None);
        let text = |name: &str, why: &str| Some(("SysctlForbidden".to_string(), format!("forbidden sysctl: \"{name}\" {why}")));
        assert_eq!(refused(with("kernel.msgmax", false)), text("kernel.msgmax", "not allowlisted"));
        assert_eq!(refused(with("net.ipv4.tcp_rmem", true)), text("net.ipv4.tcp_rmem", "not allowed with host net enabled"));
    }

    #[test]
    fn a_resize_is_granted_waits_or_never_fits() {
        let room = Room { cpu_milli: 1000, memory_bytes: 1 << 30, pods: 2, ..Room::default() };
        let judged = |cpu: &str| resize(Pod(&pod(cpu, 0)), &[pod("600m", 0)], &room);
        assert_eq!(judged("400m"), Resize::Granted);
        assert!(matches!(judged("500m"), Resize::Deferred(why) if why.contains("requested: 500, used: 600, capacity: 1000")));
        assert!(matches!(judged("2"), Resize::Infeasible(_)));
    }

    #[test]
    fn what_is_missing_is_named() {
        let p = value!({"spec": {"volumes": [{"name": "v", "nfs": {"server": "s"}}], "containers": []}});
        assert_eq!(unsupported(Pod(&p)).unwrap(), "volumes of type nfs (volume \"v\") are not supported yet by this version of Coracle");
        let p = value!({"spec": {"volumes": [{"name": "v", "secret": {}}], "containers": [{"name": "c"}]}});
        assert_eq!(unsupported(Pod(&p)), None);
    }
}
