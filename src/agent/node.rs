//! This node in the API: registration, heartbeat, status.
//!
//! The heartbeat is the Lease, every 10 s, on a task of its own that does nothing else: a slow status or a slow pod must not
//! make the node look dead. The Node's status is written when it changed, and every five minutes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use super::clock::{self, Millis};
use super::kubelet::admit::Room;
use crate::api::client::Client;
use crate::api::object::Object;
use crate::api::request::PatchType;
use crate::api::resource;
use crate::api::status::Status;
use crate::api::time::Clock;
use crate::api::value::{Map, Value};
use crate::runtime::{Image, Runtime};
use crate::value;

const LEASE_EVERY: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i64 = 40;
const LOOK_EVERY: Duration = Duration::from_secs(10);
const WRITE_EVERY_MS: Millis = 300_000;
const IMAGES_MAX: usize = 50;
const LEASES: &str = "kube-node-lease";
/// Memory kept free for the node itself.
const RESERVED_BYTES: i64 = 100 << 20;
const KUBELET_VERSION: &str = "v1.36.3";

/// What does not change while the node runs.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    pub name: String,
    pub ips: Vec<String>,
    pub port: u16,
    pub max_pods: i64,
    pub data_dir: PathBuf,
    pub labels: BTreeMap<String, String>,
    /// The range of its pods' addresses; empty if somebody else gives them.
    pub pod_cidr: String,
}

/// What the machine says of itself at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub cpus: i64,
    pub memory_bytes: i64,
    pub memory_available_bytes: i64,
    pub disk_bytes: i64,
    pub disk_available_bytes: i64,
    pub kernel: String,
    pub os_image: String,
    pub machine_id: String,
    pub boot_id: String,
    pub system_uuid: String,
    pub runtime_version: String,
}

/// `amd64`, `arm64`: as Kubernetes calls them.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Facts {
    pub fn read(data_dir: &std::path::Path, runtime_version: String) -> Facts {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_string();
        let memory = text("/proc/meminfo");
        let kilobytes = |key: &str| {
            let line = memory.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<i64>().ok()).unwrap_or(0) * 1024
        };
        let disk = nix::sys::statvfs::statvfs(data_dir).ok();
        let blocks = |n: u64, size: u64| i64::try_from(n.saturating_mul(size)).unwrap_or(i64::MAX);
        let release = text("/etc/os-release");
        let pretty = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).map(|n| n.trim_matches('"').to_string());
        Facts {
            cpus: std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1)),
            memory_bytes: kilobytes("MemTotal"),
            memory_available_bytes: kilobytes("MemAvailable"),
            disk_bytes: disk.as_ref().map_or(0, |d| blocks(d.blocks(), d.fragment_size())),
            disk_available_bytes: disk.as_ref().map_or(0, |d| blocks(d.blocks_available(), d.fragment_size())),
            kernel: text("/proc/sys/kernel/osrelease"),
            os_image: pretty.unwrap_or_else(|| "Linux".to_string()),
            machine_id: text("/etc/machine-id"),
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            system_uuid: text("/sys/class/dmi/id/product_uuid"),
            runtime_version,
        }
    }

    /// What pods may use.
    pub fn allocatable_memory(&self) -> i64 {
        (self.memory_bytes - RESERVED_BYTES).max(0)
    }
}

/// The labels every node has, and the configured ones.
pub fn labels(identity: &Identity) -> BTreeMap<String, String> {
    let arch = architecture();
    let mut labels = identity.labels.clone();
    for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
        labels.insert(format!("{prefix}/os"), "linux".into());
        labels.insert(format!("{prefix}/arch"), arch.into());
    }
    labels.insert("kubernetes.io/hostname".into(), identity.name.clone());
    labels
}

/// The status the node ought to have; conditions keep their transition times from `old`.
pub fn node_status(identity: &Identity, facts: &Facts, images: &[Image], old: &Value, now: Millis) -> Value {
    let mut addresses: Vec<Value> = identity.ips.iter().map(|ip| value!({"type": "InternalIP", "address": ip})).collect();
    addresses.push(value!({"type": "Hostname", "address": identity.name}));
    let resources = |memory: i64| {
        value!({"cpu": facts.cpus.to_string(), "memory": format!("{}Ki", memory / 1024),
            "ephemeral-storage": format!("{}Ki", facts.disk_bytes / 1024), "pods": identity.max_pods.to_string()})
    };
    let mut status = value!({
        "daemonEndpoints": {"kubeletEndpoint": {"Port": identity.port}},
        "nodeInfo": {"architecture": architecture(), "bootID": facts.boot_id, "containerRuntimeVersion": facts.runtime_version,
            "kernelVersion": facts.kernel, "kubeProxyVersion": "", "kubeletVersion": KUBELET_VERSION, "machineID": facts.machine_id,
            "operatingSystem": "linux", "osImage": facts.os_image, "systemUUID": facts.system_uuid},
    });
    status.set(&["addresses"], addresses);
    status.set(&["capacity"], merge_resources(old, "capacity", resources(facts.memory_bytes)));
    status.set(&["allocatable"], merge_resources(old, "allocatable", resources(facts.allocatable_memory())));
    status.set(&["conditions"], conditions(facts, old, now));
    status.set(&["images"], image_list(images));
    status
}

/// Extended resources others have put there stay.
fn merge_resources(old: &Value, key: &str, ours: Value) -> Value {
    let mut all = old.map_at(&[key]).cloned().unwrap_or_default();
    for (name, amount) in ours.as_map().into_iter().flat_map(Map::iter) {
        all.insert(name.to_string(), amount.clone());
    }
    Value::Map(all)
}

fn conditions(facts: &Facts, old: &Value, now: Millis) -> Vec<Value> {
    let little_memory = facts.memory_bytes > 0 && facts.memory_available_bytes < RESERVED_BYTES;
    // k3s's threshold: a tenth, the kubelet's own, is a lot of an SD card.
    let little_disk = facts.disk_bytes > 0 && facts.disk_available_bytes < facts.disk_bytes / 20;
    let pressure = |is: bool, bad: (&'static str, &'static str), good: (&'static str, &'static str)| {
        let (reason, message) = if is { bad } else { good };
        (if is { "True" } else { "False" }, reason, message)
    };
    let memory = pressure(
        little_memory,
        ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
        ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    );
    let disk = pressure(
        little_disk,
        ("KubeletHasDiskPressure", "kubelet has disk pressure"),
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    );
    let wanted = [
        ("MemoryPressure", memory),
        ("DiskPressure", disk),
        ("PIDPressure", ("False", "KubeletHasSufficientPID", "kubelet has sufficient PID available")),
        ("Ready", ("True", "KubeletReady", "kubelet is posting ready status")),
    ];
    let at = clock::text(now);
    let had = old.list_at(&["conditions"]);
    let ours = wanted.into_iter().map(|(kind, (status, reason, message))| {
        let was = had.iter().find(|c| c.str_at(&["type"]) == kind && c.str_at(&["status"]) == status);
        let since = was.map(|c| c.str_at(&["lastTransitionTime"])).filter(|t| !t.is_empty()).unwrap_or(&at);
        value!({"type": kind, "status": status, "reason": reason, "message": message, "lastHeartbeatTime": at, "lastTransitionTime": since})
    });
    let mut all: Vec<Value> = ours.collect();
    let is_ours = |c: &Value| wanted.iter().any(|(kind, _)| c.str_at(&["type"]) == *kind);
    all.extend(had.iter().filter(|c| !is_ours(c)).cloned());
    all
}

fn image_list(images: &[Image]) -> Vec<Value> {
    let mut images: Vec<&Image> = images.iter().collect();
    images.sort_by(|a, b| b.size.cmp(&a.size).then(a.id.cmp(&b.id)));
    let entry = |i: &&Image| {
        let names: Vec<&String> = i.digests.iter().chain(&i.names).take(5).collect();
        value!({"names": names, "sizeBytes": i.size})
    };
    images.iter().take(IMAGES_MAX).map(entry).collect()
}

/// Is there a difference worth a write? Heartbeat times are not.
pub fn differs(old: &Value, new: &Value) -> bool {
    let plain = |status: &Value| {
        let mut status = status.clone();
        if let Some(conditions) = status.get_mut("conditions").and_then(Value::as_list_mut) {
            conditions.iter_mut().for_each(|c| drop(c.remove(&["lastHeartbeatTime"])));
        }
        status
    };
    let (old, new) = (plain(old), plain(new));
    // Compared member by member: what others add to the status is not ours to judge, and empty members may be dropped.
    let empty = Map::new();
    new.as_map().unwrap_or(&empty).iter().any(|(key, value)| match old.get(key) {
        Some(had) => !covers(had, value),
        None => !is_empty(value),
    })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Str(s) => s.is_empty(),
        Value::List(l) => l.is_empty(),
        Value::Map(m) => m.iter().all(|(_, v)| is_empty(v)),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => false,
    }
}

/// Does `had` say everything `wanted` says? Quantities are equal as amounts.
fn covers(had: &Value, wanted: &Value) -> bool {
    match (had, wanted) {
        (Value::Map(h), Value::Map(w)) => w.iter().all(|(k, v)| h.get(k).map_or(is_empty(v), |have| covers(have, v))),
        (Value::List(h), Value::List(w)) => h.len() == w.len() && h.iter().zip(w).all(|(h, w)| covers(h, w)),
        (Value::Str(h), Value::Str(w)) if h != w => {
            use crate::api::quantity::Quantity;
            matches!((Quantity::parse(h), Quantity::parse(w)), (Ok(h), Ok(w)) if h.sub(&w).is_zero())
        }
        (had, wanted) => had == wanted,
    }
}

pub struct Node {
    pub identity: Identity,
    pub client: Client,
    pub runtime: Arc<dyn Runtime>,
    pub clock: Arc<dyn Clock>,
    pub room: watch::Sender<Room>,
}

impl Node {
    fn now(&self) -> Millis {
        clock::millis(self.clock.now())
    }

    async fn facts(&self) -> Facts {
        let (dir, version) = (self.identity.data_dir.clone(), self.runtime.version());
        tokio::task::spawn_blocking(move || Facts::read(&dir, version)).await.unwrap_or_default()
    }

    /// Registers the node (trying until it succeeds), then keeps its status and its lease.
    pub async fn run(self: Arc<Self>) {
        let uid = self.register().await.uid().to_string();
        info!(node = %self.identity.name, "node registered");
        let lease = self.clone();
        crate::task::spawn("node-lease", async move { lease.heartbeat(uid).await });
        self.keep_status().await;
    }

    async fn register(&self) -> Object {
        let mut wait = Duration::from_millis(100);
        loop {
            match self.register_once().await {
                Ok(node) => return node,
                Err(error) => warn!(node = %self.identity.name, %error, "node not registered yet"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(7));
        }
    }

    async fn register_once(&self) -> Result<Object, Status> {
        let name = &self.identity.name;
        let labels: Map = labels(&self.identity).into_iter().collect();
        match self.client.get(&resource::NODES, "", name).await {
            Ok(known) => {
                let mut patch = value!({"metadata": {"labels": serde_json::Value::from(&Value::Map(labels))}});
                // Once said it stays.
                if !self.identity.pod_cidr.is_empty() && known.str_at(&["spec", "podCIDR"]).is_empty() {
                    patch.set(&["spec", "podCIDR"], self.identity.pod_cidr.as_str());
                    patch.set(&["spec", "podCIDRs"], vec![Value::from(self.identity.pod_cidr.as_str())]);
                }
                self.client.patch(&resource::NODES, "", name, "", PatchType::Merge, patch).await
            }
            Err(status) if status.code == 404 => {
                let mut node = value!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name,
                    "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}, "spec": {}});
                node.set(&["metadata", "labels"], labels);
                if !self.identity.pod_cidr.is_empty() {
                    node.set(&["spec", "podCIDR"], self.identity.pod_cidr.as_str());
                }
                let status = node_status(&self.identity, &self.facts().await, &[], &Value::Null, self.now());
                node.set(&["status"], status);
                self.client.create(&resource::NODES, "", node).await
            }
            Err(status) => Err(status),
        }
    }

    async fn keep_status(&self) {
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut written: Option<Millis> = None;
        loop {
            every.tick().await;
            let facts = self.facts().await;
            let images = self.runtime.list_images().await;
            // Always against the newest node: others write labels, taints and extended resources.
            let node = match self.client.get(&resource::NODES, "", &self.identity.name).await {
                Ok(latest) => latest,
                Err(status) if status.code == 404 => {
                    warn!(node = %self.identity.name, "node object is gone; registering again");
                    written = None;
                    self.register().await
                }
                Err(_) => continue,
            };
            let value = node.value();
            self.offer(&value, &facts);
            let (old, now) = (value.at(&["status"]).cloned().unwrap_or_default(), self.now());
            let new = node_status(&self.identity, &facts, &images, &old, now);
            let due = written.is_none_or(|at| now - at >= WRITE_EVERY_MS);
            if !due && !differs(&old, &new) {
                continue;
            }
            let mut patch = Value::map();
            patch.set(&["status"], new);
            match self.client.patch(&resource::NODES, "", &self.identity.name, "status", PatchType::Strategic, patch).await {
                Ok(_) => written = Some(now),
                Err(error) => warn!(node = %self.identity.name, %error, "node status not written"),
            }
        }
    }

    fn offer(&self, node: &Value, facts: &Facts) {
        let labels = node.map_at(&["metadata", "labels"]).into_iter().flat_map(Map::iter);
        let room = Room {
            cpu_milli: facts.cpus * 1000,
            memory_bytes: facts.allocatable_memory(),
            pods: self.identity.max_pods,
            labels: labels.map(|(k, v)| (k.to_string(), v.as_str().unwrap_or("").to_string())).collect(),
        };
        self.room.send_replace(room);
    }

    async fn heartbeat(&self, uid: String) {
        let mut every = tokio::time::interval(LEASE_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failures = 0;
        loop {
            every.tick().await;
            match self.renew(&uid).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    warn!(node = %self.identity.name, %error, failures, "lease not renewed");
                }
            }
        }
    }

    async fn renew(&self, uid: &str) -> Result<(), Status> {
        let name = &self.identity.name;
        let time = clock::micro_text(self.now());
        let patch = value!({"spec": {"renewTime": time, "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS}});
        match self.client.patch(&resource::LEASES, LEASES, name, "", PatchType::Merge, patch).await {
            Err(status) if status.code == 404 => {
                let lease = value!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": LEASES,
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}]},
                    "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": time}});
                self.client.create(&resource::LEASES, LEASES, lease).await.map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { name: "n1".into(), ips: vec!["10.0.0.1".into()], port: 10250, max_pods: 110, ..Identity::default() }
    }

    fn facts() -> Facts {
        Facts {
            cpus: 2,
            memory_bytes: 4 << 30,
            memory_available_bytes: 2 << 30,
            disk_bytes: 100 << 30,
            disk_available_bytes: 50 << 30,
            ..Facts::default()
        }
    }

    #[test]
    fn a_status_is_written_for_a_change_not_for_a_heartbeat() {
        let first = node_status(&identity(), &facts(), &[], &Value::Null, 1_700_000_000_000);
        assert_eq!(first.str_at(&["capacity", "memory"]), "4194304Ki");
        assert_eq!(first.i64_at(&["daemonEndpoints", "kubeletEndpoint", "Port"]), Some(10250));
        let mut stored = first.clone();
        stored.set(&["capacity", "memory"], "4Gi");
        stored.set(&["capacity", "example.com/thing"], "3");
        stored.remove(&["images"]);
        let later = node_status(&identity(), &facts(), &[], &stored, 1_700_000_060_000);
        assert!(!differs(&stored, &later));
        assert_eq!(later.str_at(&["capacity", "example.com/thing"]), "3");
        let full = Facts { disk_available_bytes: 1, ..facts() };
        let pressed = node_status(&identity(), &full, &[], &stored, 1_700_000_060_000);
        assert!(differs(&stored, &pressed));
        let disk = pressed.list_at(&["conditions"]).iter().find(|c| c.str_at(&["type"]) == "DiskPressure").unwrap();
        assert_eq!((disk.str_at(&["status"]), disk.str_at(&["lastTransitionTime"])), ("True", "2023-11-14T22:14:20Z"));
    }

    #[test]
    fn the_machine_is_read() {
        let facts = Facts::read(std::path::Path::new("/"), String::new());
        assert!(facts.cpus > 0 && facts.memory_bytes > 0 && facts.disk_bytes > 0 && !facts.kernel.is_empty());
    }
}
