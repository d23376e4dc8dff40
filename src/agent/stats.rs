//! What node, pods and containers use: the summary that `kubectl top`'s server and the eviction rules read.

use std::collections::HashMap;
use std::sync::Mutex;

use super::clock::{self, Millis};
use super::kubelet::Shared;
use super::node::Facts;
use crate::api::object::Object;
use crate::api::value::Value;
use crate::runtime::Stats;
use crate::value;

/// The CPU counter of something at an earlier moment: a rate needs two.
#[derive(Clone, Copy)]
struct Sample {
    at: Millis,
    nanoseconds: u64,
}

#[derive(Default)]
pub struct Summaries {
    samples: Mutex<HashMap<String, Sample>>,
}

impl Summaries {
    pub async fn summary(&self, shared: &Shared, pods: Vec<Object>, data_dir: &std::path::Path) -> Value {
        let now = shared.now();
        let (dir, version) = (data_dir.to_path_buf(), shared.runtime.version());
        let facts = tokio::task::spawn_blocking(move || Facts::read(&dir, version)).await.unwrap_or_default();
        let images = shared.runtime.image_usage().await;
        let fs = value!({"time": clock::text(now), "capacityBytes": facts.disk_bytes, "availableBytes": facts.disk_available_bytes,
            "usedBytes": facts.disk_bytes - facts.disk_available_bytes});
        let mut image_fs = fs.clone();
        image_fs.set(&["usedBytes"], i64::try_from(images.bytes).unwrap_or(i64::MAX));
        let mut summary = value!({"node": {"nodeName": shared.node.name,
            "memory": {"time": clock::text(now), "availableBytes": facts.memory_available_bytes,
                "usageBytes": facts.memory_bytes - facts.memory_available_bytes, "workingSetBytes": facts.memory_bytes - facts.memory_available_bytes}}});
        summary.set(&["node", "cpu"], self.cpu("node", node_cpu(), now));
        summary.set(&["node", "fs"], fs);
        summary.set(&["node", "runtime", "imageFs"], image_fs);
        let mut list = Vec::new();
        for pod in pods {
            list.extend(self.pod(shared, &pod, now).await);
        }
        self.samples.lock().expect("nothing panics while holding it").retain(|_, s| now - s.at < 600_000);
        summary.set(&["pods"], list);
        summary
    }

    async fn pod(&self, shared: &Shared, pod: &Object, now: Millis) -> Option<Value> {
        let uid = pod.uid();
        let stats = shared.runtime.stats(uid).await.ok()?;
        let sandbox = shared.runtime.sandbox(uid).await?;
        let mut out = value!({"podRef": {"name": pod.name(), "namespace": pod.namespace(), "uid": uid},
            "startTime": clock::text(clock::of_system(sandbox.created_at))});
        out.set(&["cpu"], self.cpu(uid, stats.total.cpu_nanoseconds, now));
        out.set(&["memory"], memory(&stats.total, now));
        out.set(&["process_stats", "process_count"], i64::try_from(stats.total.processes).unwrap_or(0));
        let mut containers = Vec::new();
        for (id, stats) in &stats.containers {
            let Some(c) = sandbox.containers.iter().find(|c| c.id == *id) else { continue };
            let started = c.started_at.unwrap_or(c.created_at);
            let mut one = value!({"name": c.name, "startTime": clock::text(clock::of_system(started))});
            one.set(&["cpu"], self.cpu(id, stats.cpu_nanoseconds, now));
            one.set(&["memory"], memory(stats, now));
            one.set(
                &["rootfs"],
                value!({"time": clock::text(now), "usedBytes": stats.writable.bytes, "inodesUsed": stats.writable.inodes}),
            );
            let log_bytes = std::fs::metadata(&c.log_path).map_or(0, |m| m.len());
            one.set(&["logs"], value!({"time": clock::text(now), "usedBytes": log_bytes}));
            containers.push(one);
        }
        out.set(&["containers"], containers);
        Some(out)
    }

    fn cpu(&self, key: &str, nanoseconds: u64, now: Millis) -> Value {
        let mut cpu = value!({"time": clock::text(now), "usageCoreNanoSeconds": nanoseconds});
        let previous =
            self.samples.lock().expect("nothing panics while holding it").insert(key.to_string(), Sample { at: now, nanoseconds });
        if let Some(before) = previous.filter(|s| s.at < now) {
            let used = nanoseconds.saturating_sub(before.nanoseconds);
            let elapsed = u64::try_from(now - before.at).unwrap_or(1);
            cpu.set(&["usageNanoCores"], i64::try_from(used.saturating_mul(1000) / elapsed.max(1)).unwrap_or(i64::MAX));
        }
        cpu
    }
}

fn memory(stats: &Stats, now: Millis) -> Value {
    value!({"time": clock::text(now), "usageBytes": stats.memory_usage_bytes, "workingSetBytes": stats.memory_working_set_bytes,
        "rssBytes": stats.memory_rss_bytes})
}

/// Busy time of all processors since boot, from `/proc/stat` (in hundredths of a second).
fn node_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers: Vec<u64> = text.lines().next().unwrap_or("").split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let idle = numbers.get(3).copied().unwrap_or(0) + numbers.get(4).copied().unwrap_or(0);
    numbers.iter().take(8).sum::<u64>().saturating_sub(idle) * 10_000_000
}
