//! What the Node authorizer cannot see from a request line: a kubelet writes only its own node, its own lease, and pods
//! bound to it.

use crate::api::resource;
use crate::api::status::{Result, Status};
use crate::api::value::{Map, Value};
use crate::server::auth::node::node_of;
use crate::server::strategy::{Context, Operation, Plugin};

pub struct NodeRestriction;

impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }
    fn mutate(&self, context: &Context, object: &mut Value, old: Option<&Value>) -> Result<()> {
        if context.operation == Operation::Delete { Ok(()) } else { check(context, object, old) }
    }
    fn validate(&self, context: &Context, object: &Value, old: Option<&Value>) -> Result<()> {
        if context.operation == Operation::Delete { check(context, object, old) } else { Ok(()) }
    }
}

fn check(context: &Context, object: &Value, old: Option<&Value>) -> Result<()> {
    let Some(node) = node_of(&context.user) else { return Ok(()) };
    match (context.resource.group, context.resource.plural, context.subresource.as_str()) {
        ("", "pods", "") => pod(context, node, object),
        ("", "pods", "status") => pod_status(context, node, object, old),
        ("", "pods", "eviction") => eviction(context, node, object),
        ("", "nodes", _) => own_node(context, node, object, old),
        ("coordination.k8s.io", "leases", _) => {
            let own = name(context, object) == node;
            if own { Ok(()) } else { bare(context, object, "can only access node lease with the same name as the requesting node") }
        }
        ("storage.k8s.io", "csinodes", _) => {
            let own = name(context, object) == node;
            if own { Ok(()) } else { bare(context, object, "can only access CSINode with the same name as the requesting node") }
        }
        ("", "serviceaccounts", "token") => token(context, node, object),
        _ => Ok(()),
    }
}

fn name<'a>(context: &'a Context, object: &'a Value) -> &'a str {
    if context.name.is_empty() { object.str_at(&["metadata", "name"]) } else { &context.name }
}

/// The refusal; an object that has no name yet is `Unknown`.
fn bare(context: &Context, object: &Value, why: &str) -> Result<()> {
    let name = match name(context, object) {
        "" => "Unknown",
        name => name,
    };
    Err(Status::forbidden(context.resource, name, why))
}

fn pod(context: &Context, node: &str, pod: &Value) -> Result<()> {
    let on_node = pod.str_at(&["spec", "nodeName"]) == node;
    match context.operation {
        Operation::Create => {
            if pod.at(&["metadata", "annotations", "kubernetes.io/config.mirror"]).is_none() {
                let why =
                    format!("pod does not have \"kubernetes.io/config.mirror\" annotation, node \"{node}\" can only create mirror pods");
                return bare(context, pod, &why);
            }
            if !on_node {
                return bare(context, pod, &format!("node \"{node}\" can only create pods with spec.nodeName set to itself"));
            }
            mirror_owner(context, node, pod)
        }
        Operation::Delete if !on_node => {
            bare(context, pod, &format!("node \"{node}\" can only delete pods with spec.nodeName set to itself"))
        }
        Operation::Delete => Ok(()),
        Operation::Update | Operation::Connect => bare(context, pod, &format!("unexpected operation \"{}\"", context.operation.as_str())),
    }
}

/// A mirror pod belongs to the node that runs it, and refers to nothing in the API.
fn mirror_owner(context: &Context, node: &str, pod: &Value) -> Result<()> {
    let owners = pod.list_at(&["metadata", "ownerReferences"]);
    let [owner] = owners else {
        return bare(context, pod, &format!("node \"{node}\" can only create pods with an owner reference set to itself"));
    };
    let text = |key: &str| owner.str_at(&[key]);
    if text("apiVersion") != "v1" || text("kind") != "Node" || text("name") != node {
        return bare(context, pod, &format!("node \"{node}\" can only create pods with an owner reference set to itself"));
    }
    let uid = context.access.get(&resource::NODES, "", node).map(|n| n.uid().to_string()).unwrap_or_default();
    if text("uid") != uid {
        let why = format!("node {node} UID mismatch: expected {} got {uid}", text("uid"));
        return bare(context, pod, &why);
    }
    if !owner.bool_at(&["controller"]) {
        let why = format!("node \"{node}\" can only create pods with a controller reference set to itself");
        return bare(context, pod, &why);
    }
    if owner.bool_at(&["blockOwnerDeletion"]) {
        let why = format!("node \"{node}\" must not set blockOwnerDeletion on an owner reference");
        return bare(context, pod, &why);
    }
    Ok(())
}

fn pod_status(context: &Context, node: &str, pod: &Value, old: Option<&Value>) -> Result<()> {
    if context.operation != Operation::Update {
        return bare(context, pod, &format!("unexpected operation \"{}\"", context.operation.as_str()));
    }
    let Some(old) = old else { return Ok(()) };
    if old.str_at(&["spec", "nodeName"]) != node {
        return bare(context, pod, &format!("node \"{node}\" can only update pod status for pods with spec.nodeName set to itself"));
    }
    let empty = Map::new();
    let labels = |v: &Value| v.map_at(&["metadata", "labels"]).unwrap_or(&empty).clone();
    if labels(pod) != labels(old) {
        return bare(context, pod, &format!("node \"{node}\" cannot update labels through pod status"));
    }
    Ok(())
}

fn eviction(context: &Context, node: &str, body: &Value) -> Result<()> {
    let Some(pod) = context.access.get(&resource::PODS, &context.namespace, &context.name) else {
        let mut status = Status::not_found(&resource::PODS, &context.name);
        status.message = format!("pod \"{}\" not found", context.name);
        status.details.get_or_insert_default().kind = "pod".to_string();
        return Err(status);
    };
    if pod.str_at(&["spec", "nodeName"]) == node {
        return Ok(());
    }
    bare(context, body, &format!("node {node} can only evict pods with spec.nodeName set to itself"))
}

fn token(context: &Context, node: &str, request: &Value) -> Result<()> {
    let bound = |key: &str| request.str_at(&["spec", "boundObjectRef", key]);
    if request.at(&["spec", "boundObjectRef"]).is_none()
        || bound("apiVersion") != "v1"
        || bound("kind") != "Pod"
        || bound("name").is_empty()
    {
        return bare(context, request, "node requested token not bound to a pod");
    }
    if bound("uid").is_empty() {
        return bare(context, request, "node requested token with a pod binding without a uid");
    }
    let Some(pod) = context.access.get(&resource::PODS, &context.namespace, bound("name")) else {
        return Err(Status::not_found(&resource::PODS, bound("name")));
    };
    if pod.uid() != bound("uid") {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            bound("uid")
        );
        return Err(Status::conflict(&resource::PODS, bound("name"), &why));
    }
    if pod.str_at(&["spec", "nodeName"]) != node {
        return bare(context, request, "node requested token bound to a pod scheduled on a different node");
    }
    Ok(())
}

fn own_node(context: &Context, node: &str, object: &Value, old: Option<&Value>) -> Result<()> {
    let name = name(context, object).to_string();
    if name != node {
        return bare(context, object, &format!("node \"{node}\" is not allowed to modify node \"{name}\""));
    }
    let empty = Map::new();
    let labels = |v: Option<&Value>| v.and_then(|v| v.map_at(&["metadata", "labels"])).unwrap_or(&empty).clone();
    match context.operation {
        Operation::Create => {
            let mut forbidden = protected_changes(&labels(Some(object)), &empty);
            forbidden.retain(|key| !is_self_label(key));
            if !forbidden.is_empty() {
                let why = format!("is not allowed to set the following labels: {}", forbidden.join(", "));
                return bare(context, object, &why);
            }
            owners(context, node, object, None)
        }
        Operation::Update => {
            let was = old.unwrap_or(&Value::Null);
            if object.list_at(&["spec", "taints"]) != was.list_at(&["spec", "taints"]) && context.is_main() {
                return bare(context, object, &format!("node \"{node}\" is not allowed to modify taints"));
            }
            let forbidden: Vec<String> =
                protected_changes(&labels(Some(object)), &labels(old)).into_iter().filter(|k| !is_self_label(k)).collect();
            if !forbidden.is_empty() {
                return bare(context, object, &format!("is not allowed to modify labels: {}", forbidden.join(", ")));
            }
            owners(context, node, object, old)
        }
        Operation::Delete | Operation::Connect => Ok(()),
    }
}

fn owners(context: &Context, node: &str, object: &Value, old: Option<&Value>) -> Result<()> {
    let was = old.map_or(&[][..], |o| o.list_at(&["metadata", "ownerReferences"]));
    if object.list_at(&["metadata", "ownerReferences"]) == was {
        return Ok(());
    }
    bare(context, object, &format!("node \"{node}\" is not allowed to modify ownerReferences"))
}

/// Changed labels of the kubernetes.io and k8s.io domains, sorted.
fn protected_changes(new: &Map, old: &Map) -> Vec<String> {
    let changed = new.iter().filter(|(k, v)| old.get(k) != Some(v)).map(|(k, _)| k);
    let removed = old.keys().filter(|k| !new.contains_key(k));
    let mut keys: Vec<String> = changed.chain(removed).filter(|k| is_protected(k)).map(str::to_string).collect();
    keys.sort();
    keys
}

fn is_protected(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return false };
    ["kubernetes.io", "k8s.io"].iter().any(|d| domain == *d || domain.ends_with(&format!(".{d}")))
}

/// Labels a kubelet sets on itself.
fn is_self_label(key: &str) -> bool {
    const KNOWN: [&str; 14] = [
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "node.kubernetes.io/windows-build",
        "node.kubernetes.io/exclude-from-external-load-balancers",
        "failure-domain.kubernetes.io/zone",
    ];
    let domain = key.split_once('/').map_or("", |(d, _)| d);
    let kubelet = ["kubelet.kubernetes.io", "node.kubernetes.io"].iter().any(|d| domain == *d || domain.ends_with(&format!(".{d}")));
    KNOWN.contains(&key) || kubelet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_labels_are_protected() {
        let refused = |key: &str| is_protected(key) && !is_self_label(key);
        for (key, want) in [
            ("a", false),
            ("example.com/x", false),
            ("kubernetes.io/hostname", false),
            ("node.kubernetes.io/anything", false),
            ("node-role.kubernetes.io/x", true),
            ("node-restriction.kubernetes.io/x", true),
            ("x.k8s.io/y", true),
        ] {
            assert_eq!(refused(key), want, "{key}");
        }
    }
}
