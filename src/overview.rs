//! `coracle status`: how the cluster is, on one screen: version, nodes, store, queues, pods by state, what is wrong and
//! the next command to type.
//!
//! [`gather`] asks the running API server as the administrator; [`screen`] is a plain function from what it answered.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context as _;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::api::cidr::Cidr;
use crate::net::firewall;
use crate::pki::Identity;
use crate::transport::Connector;

/// An answer larger than this is not shown on one screen anyway.
const ANSWER_MAX: u64 = 64 << 20;

/// What the API server said.
#[derive(Default)]
pub struct Facts {
    pub version: Value,
    pub nodes: Vec<Value>,
    pub pods: Vec<Value>,
    pub metrics: String,
    /// What on this machine is in the way of pods, and the command that helps.
    pub in_the_way: Vec<(String, String)>,
}

/// Asks the API server at `address` (`host:port`), on this machine.
pub async fn gather(address: &str, ca: &str, identity: &Identity) -> anyhow::Result<Facts> {
    let connector = Connector::new(ca, Some(identity), &["http/1.1"])?;
    let get = async |path: &str| -> anyhow::Result<String> {
        let mut stream = connector.connect(address, "localhost").await?;
        // HTTP/1.0: the answer ends with the connection, so nothing needs to be parsed but the blank line.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        // A server that closes without a TLS goodbye still said everything: HTTP/1.0 bodies end that way.
        match stream.take(ANSWER_MAX).read_to_end(&mut answer).await {
            Err(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => return Err(e.into()),
            Ok(_) | Err(_) => {}
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        anyhow::ensure!(head.contains(" 200 "), "{path}: {}", head.lines().next().unwrap_or_default());
        Ok(body.to_string())
    };
    let items = |text: String| -> anyhow::Result<Vec<Value>> {
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    };
    let nodes = items(get("/api/v1/nodes").await?)?;
    Ok(Facts {
        version: serde_json::from_str(&get("/version").await?)?,
        in_the_way: nodes.iter().flat_map(in_the_way).collect(),
        nodes,
        pods: items(get("/api/v1/pods").await?)?,
        metrics: get("/metrics").await?,
    })
}

/// Firewalls of this machine that refuse the pods of `node`; none if we may not look.
fn in_the_way(node: &Value) -> Vec<(String, String)> {
    let Ok(pods) = text(&node["spec"]["podCIDR"]).parse::<Cidr>() else { return Vec::new() };
    let refusals = firewall::refusals(&pods).unwrap_or_default();
    refusals.iter().map(|refusal| (refusal.to_string(), refusal.remedy(&pods))).collect()
}

/// The screen, and whether all is well.
pub fn screen(facts: &Facts) -> (String, bool) {
    let mut out = String::new();
    let mut wrong = Vec::new();
    let _ = writeln!(out, "Coracle {} (Kubernetes {})", crate::run::VERSION, text(&facts.version["gitVersion"]));
    nodes(facts, &mut out, &mut wrong);
    store(facts, &mut out);
    queues(facts, &mut out);
    pods(facts, &mut out, &mut wrong);
    wrong.extend(facts.in_the_way.iter().cloned());
    for (problem, next) in &wrong {
        let _ = write!(out, "\n! {problem}\n  next: {next}\n");
    }
    if wrong.is_empty() {
        let _ = writeln!(out, "\nAll is well.");
    }
    (out, wrong.is_empty())
}

fn nodes(facts: &Facts, out: &mut String, wrong: &mut Vec<(String, String)>) {
    for node in &facts.nodes {
        let name = text(&node["metadata"]["name"]);
        let conditions = node["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        let bad = |c: &&Value| match text(&c["type"]) {
            "Ready" => text(&c["status"]) != "True",
            _ => text(&c["status"]) == "True",
        };
        let ready = conditions.iter().any(|c| text(&c["type"]) == "Ready" && text(&c["status"]) == "True");
        let _ = writeln!(out, "Node     {name}: {}", if ready { "Ready" } else { "NotReady" });
        for c in conditions.iter().filter(bad) {
            let problem = format!("node {name}: {}={}: {}", text(&c["type"]), text(&c["status"]), text(&c["message"]));
            wrong.push((problem, format!("kubectl describe node {name}")));
        }
    }
    if facts.nodes.is_empty() {
        wrong.push(("no node has registered".into(), "journalctl -u coracle".into()));
    }
}

fn store(facts: &Facts, out: &mut String) {
    let metric = |name: &str| metric(&facts.metrics, name);
    let (Some(revision), Some(bytes)) = (metric("coracle_store_revision"), metric("coracle_store_disk_bytes")) else { return };
    let _ = writeln!(out, "Store    revision {revision}, {:.1} MB on disk", bytes / 1e6);
}

/// `coracle_queue_depth{name="deployment"} 3` → one entry each.
fn queues(facts: &Facts, out: &mut String) {
    let depths = facts.metrics.lines().filter_map(|line| {
        let (name, depth) = line.strip_prefix("workqueue_depth{name=\"")?.split_once("\"} ")?;
        Some((name, depth.trim()))
    });
    let busy: Vec<String> = depths.filter(|(_, depth)| *depth != "0").map(|(name, depth)| format!("{name} {depth}")).collect();
    let _ = writeln!(out, "Queues   {}", if busy.is_empty() { "empty".to_string() } else { busy.join(", ") });
}

fn pods(facts: &Facts, out: &mut String, wrong: &mut Vec<(String, String)>) {
    let mut phases: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in &facts.pods {
        let deleting = !pod["metadata"]["deletionTimestamp"].is_null();
        *phases.entry(if deleting { "Terminating" } else { text(&pod["status"]["phase"]) }).or_default() += 1;
        if let Some(why) = waiting(pod) {
            let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
            wrong.push((format!("pod {namespace}/{name}: {why}"), format!("kubectl describe pod -n {namespace} {name}")));
        }
    }
    let counts: Vec<String> = phases.iter().map(|(phase, n)| format!("{n} {phase}")).collect();
    let _ = writeln!(out, "Pods     {}", if counts.is_empty() { "none".to_string() } else { counts.join(", ") });
}

/// Why a pod makes no progress, if it does not: a container that waits with an error, or no node that fits.
fn waiting(pod: &Value) -> Option<String> {
    let statuses =
        ["initContainerStatuses", "containerStatuses"].into_iter().flat_map(|k| pod["status"][k].as_array().into_iter().flatten());
    for status in statuses {
        let reason = text(&status["state"]["waiting"]["reason"]);
        if !matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
            return Some(format!("container {} waits: {reason}", text(&status["name"])));
        }
    }
    let conditions = pod["status"]["conditions"].as_array()?;
    let unschedulable = conditions.iter().find(|c| text(&c["reason"]) == "Unschedulable")?;
    Some(text(&unschedulable["message"]).to_string())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn metric(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_screen_names_what_is_wrong_and_the_next_command() {
        let ready = json!({"metadata": {"name": "n1"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let stuck = json!({"metadata": {"namespace": "default", "name": "web"}, "status": {"phase": "Pending",
            "containerStatuses": [{"name": "c", "state": {"waiting": {"reason": "ErrImagePull"}}}]}});
        let facts = Facts {
            nodes: vec![ready],
            pods: vec![stuck],
            metrics: "coracle_store_revision 7\ncoracle_store_disk_bytes 1500000\nworkqueue_depth{name=\"deployment\"} 2\n".into(),
            ..Facts::default()
        };
        let (screen, well) = screen(&facts);
        assert!(!well);
        for line in [
            "Node     n1: Ready",
            "Store    revision 7, 1.5 MB on disk",
            "Queues   deployment 2",
            "Pods     1 Pending",
            "! pod default/web: container c waits: ErrImagePull\n  next: kubectl describe pod -n default web",
        ] {
            assert!(screen.contains(line), "{line:?} is not in\n{screen}");
        }
    }
}
