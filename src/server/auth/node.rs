//! Pure: what a kubelet may touch: its own node and lease, its pods, and what those pods refer to.
//!
//! The relation is looked up per question among the pods of one namespace: a field is read of each, and only pods on the
//! asking node are decoded. Rules without a relation (create events, watch services, …) are an RBAC-like table.

use super::rbac::Rule;
use super::{Attributes, Decision};
use crate::api::object::Object;
use crate::api::request::User;
use crate::api::resource;
use crate::api::value::Value;
use crate::server::strategy::Access;

/// The node this user is the kubelet of: `None` for everybody else.
pub fn node_of(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix("system:node:")?;
    (!name.is_empty() && user.is_in("system:nodes")).then_some(name)
}

/// Decision of the Node authorizer; it has no opinion on others than kubelets.
pub fn authorize(user: &User, a: &Attributes, access: &dyn Access) -> Decision {
    let Some(node) = node_of(user) else { return Decision::default() };
    if a.is_resource() {
        match (a.group, a.resource) {
            ("", "secrets" | "configmaps") => return related(a, node, access),
            ("", "persistentvolumeclaims" | "persistentvolumes") if a.subresource.is_empty() => return related(a, node, access),
            ("", "serviceaccounts") if a.subresource == "token" => return token(a, node, access),
            ("", "persistentvolumeclaims") if a.subresource == "status" && matches!(a.verb, "update" | "patch") => {
                return relation(a, node, access);
            }
            ("storage.k8s.io", "volumeattachments") if a.subresource.is_empty() => return related(a, node, access),
            ("resource.k8s.io", "resourceclaims") if a.subresource.is_empty() => return related(a, node, access),
            ("", "pods") if a.subresource.is_empty() && matches!(a.verb, "get" | "list" | "watch") => return pods(a, node, access),
            ("", "nodes") if a.subresource.is_empty() && matches!(a.verb, "get" | "list" | "watch") => return own_node(a, node),
            ("coordination.k8s.io", "leases") => return lease(a, node),
            ("storage.k8s.io", "csinodes") => return csi_node(a, node),
            _ => {}
        }
    }
    if STATIC.with(|rules| rules.iter().any(|rule| rule.allows(a))) { Decision::allow("") } else { Decision::default() }
}

thread_local! {
    static STATIC: Vec<Rule> = static_rules();
}

/// What every kubelet may do, whatever it is about.
fn static_rules() -> Vec<Rule> {
    let rule = |verbs: &str, group: &str, resources: &str| {
        let split = |s: &str| s.split(' ').map(str::to_string).collect::<Vec<_>>();
        Rule { verbs: split(verbs), groups: vec![group.to_string()], resources: split(resources), ..Rule::default() }
    };
    vec![
        rule("create", "authentication.k8s.io", "tokenreviews"),
        rule("create", "authorization.k8s.io", "subjectaccessreviews localsubjectaccessreviews"),
        rule("list watch", "", "services"),
        rule("get list watch", "", "nodes"),
        rule("create get list watch", "", "nodes"),
        rule("update patch", "", "nodes nodes/status"),
        rule("create update patch", "", "events"),
        rule("create delete", "", "pods"),
        rule("update patch", "", "pods/status"),
        rule("create", "", "pods/eviction"),
        rule("create get list watch", "certificates.k8s.io", "certificatesigningrequests"),
        rule("get list watch", "storage.k8s.io", "csidrivers"),
        rule("get list watch", "node.k8s.io", "runtimeclasses"),
        rule("get list watch deletecollection create update patch delete", "resource.k8s.io", "resourceslices"),
    ]
}

const UNRELATED: &str = "no relationship found between node";

fn no_relation(node: &str) -> Decision {
    Decision::no_opinion(format!("{UNRELATED} '{node}' and this object"))
}

/// Read-only access to one named object that a pod on the node refers to.
fn related(a: &Attributes, node: &str, access: &dyn Access) -> Decision {
    match a.verb {
        "get" | "list" | "watch" => relation(a, node, access),
        _ => Decision::no_opinion("can only read resources of this type"),
    }
}

fn relation(a: &Attributes, node: &str, access: &dyn Access) -> Decision {
    if a.name.is_empty() {
        return Decision::no_opinion("No Object name found");
    }
    let found = match a.resource {
        "secrets" | "configmaps" | "persistentvolumeclaims" | "serviceaccounts" | "resourceclaims" => {
            pods_on(node, a.namespace, access).any(|pod| refers_to(&pod.value(), a.resource, a.name))
        }
        "persistentvolumes" => pods_on(node, "", access).any(|pod| {
            claims(&pod.value()).iter().any(|claim| {
                let claim = access.get(&resource::PERSISTENTVOLUMECLAIMS, pod.namespace(), claim);
                claim.is_some_and(|c| c.str_at(&["spec", "volumeName"]) == a.name)
            })
        }),
        "volumeattachments" => {
            let attachment = resource::find("storage.k8s.io", "v1", "volumeattachments");
            attachment.and_then(|r| access.get(r, "", a.name)).is_some_and(|o| o.str_at(&["spec", "nodeName"]) == node)
        }
        _ => false,
    };
    if found { Decision::allow("") } else { no_relation(node) }
}

fn token(a: &Attributes, node: &str, access: &dyn Access) -> Decision {
    if a.verb != "create" {
        return Decision::no_opinion("can only create tokens for individual service accounts");
    }
    relation(a, node, access)
}

fn pods(a: &Attributes, node: &str, access: &dyn Access) -> Decision {
    if a.verb == "get" {
        let own = access.get(&resource::PODS, a.namespace, a.name).is_some_and(|p| p.str_at(&["spec", "nodeName"]) == node);
        return if own { Decision::allow("") } else { no_relation(node) };
    }
    let wanted = a.field_selector.split(',').filter_map(|term| term.split_once('='));
    let on_node = wanted.map(|(k, v)| (k, v.trim_start_matches('='))).find(|(k, _)| *k == "spec.nodeName");
    match on_node {
        Some((_, n)) if n == node => Decision::allow(""),
        _ => Decision::no_opinion("can only list/watch pods with spec.nodeName field selector"),
    }
}

fn own_node(a: &Attributes, node: &str) -> Decision {
    if a.verb == "get" {
        return if a.name == node {
            Decision::allow("")
        } else {
            Decision::no_opinion(format!("node '{node}' cannot read '{}', only its own Node object", a.name))
        };
    }
    let wanted = a.field_selector.split(',').filter_map(|term| term.split_once('='));
    let own = wanted.map(|(k, v)| (k, v.trim_start_matches('='))).any(|(k, v)| k == "metadata.name" && v == node);
    if own { Decision::allow("") } else { Decision::no_opinion(format!("node '{node}' cannot read all nodes, only its own Node object")) }
}

fn lease(a: &Attributes, node: &str) -> Decision {
    const VERBS: [&str; 5] = ["get", "create", "update", "patch", "delete"];
    if !VERBS.contains(&a.verb) {
        return Decision::no_opinion("can only get, create, update, patch, or delete a node lease");
    }
    if a.namespace != "kube-node-lease" {
        return Decision::no_opinion("can only access leases in the \"kube-node-lease\" system namespace");
    }
    // The name of an object to be created is checked by the NodeRestriction plugin.
    if a.verb != "create" && a.name != node {
        return Decision::no_opinion("can only access node lease with the same name as the requesting node");
    }
    Decision::allow("")
}

fn csi_node(a: &Attributes, node: &str) -> Decision {
    const VERBS: [&str; 5] = ["get", "create", "update", "patch", "delete"];
    if !VERBS.contains(&a.verb) {
        return Decision::no_opinion("can only get, create, update, patch, or delete a CSINode");
    }
    if !a.subresource.is_empty() {
        return Decision::no_opinion("cannot authorize CSINode subresources");
    }
    if a.verb != "create" && a.name != node {
        return Decision::no_opinion("can only access CSINode with the same name as the requesting node");
    }
    Decision::allow("")
}

fn pods_on<'a>(node: &'a str, namespace: &str, access: &dyn Access) -> impl Iterator<Item = Object> + 'a {
    access.list(&resource::PODS, namespace).into_iter().filter(move |p| p.str_at(&["spec", "nodeName"]) == node)
}

/// Names of the claims a pod mounts, its ephemeral ones included.
fn claims(pod: &Value) -> Vec<String> {
    let pod_name = pod.str_at(&["metadata", "name"]);
    let volumes = pod.list_at(&["spec", "volumes"]).iter();
    let named = volumes.filter_map(|v| match v.at(&["persistentVolumeClaim"]) {
        Some(claim) => Some(claim.str_at(&["claimName"]).to_string()),
        None => v.at(&["ephemeral"]).map(|_| format!("{pod_name}-{}", v.str_at(&["name"]))),
    });
    named.collect()
}

/// Whether a pod refers to an object of its namespace.
pub fn refers_to(pod: &Value, kind: &str, name: &str) -> bool {
    match kind {
        "serviceaccounts" => pod.str_at(&["spec", "serviceAccountName"]) == name,
        "persistentvolumeclaims" => claims(pod).iter().any(|c| c == name),
        "resourceclaims" => {
            let statuses = pod.list_at(&["status", "resourceClaimStatuses"]).iter();
            let direct = pod.list_at(&["spec", "resourceClaims"]).iter();
            statuses.chain(direct).any(|c| c.str_at(&["resourceClaimName"]) == name)
        }
        "secrets" => mentions(pod.get("spec").unwrap_or(&Value::Null), &SECRET_FIELDS, name),
        "configmaps" => mentions(pod.get("spec").unwrap_or(&Value::Null), &CONFIGMAP_FIELDS, name),
        _ => false,
    }
}

/// (member, key of the name in it): each place of a pod spec where such a reference can stand.
const SECRET_FIELDS: [(&str, &str); 8] = [
    ("secret", "secretName"),
    ("secret", "name"),
    ("secretRef", "name"),
    ("secretKeyRef", "name"),
    ("imagePullSecrets", "name"),
    ("nodePublishSecretRef", "name"),
    ("authSecretRef", "name"),
    ("azureFile", "secretName"),
];
const CONFIGMAP_FIELDS: [(&str, &str); 3] = [("configMap", "name"), ("configMapRef", "name"), ("configMapKeyRef", "name")];

fn mentions(v: &Value, fields: &[(&str, &str)], name: &str) -> bool {
    match v {
        Value::Map(map) => map.iter().any(|(key, inner)| {
            let here = fields.iter().any(|(member, name_key)| {
                *member == key
                    && match inner {
                        Value::List(many) => many.iter().any(|one| one.str_at(&[name_key]) == name),
                        _ => inner.str_at(&[name_key]) == name,
                    }
            });
            here || mentions(inner, fields, name)
        }),
        Value::List(many) => many.iter().any(|one| mentions(one, fields, name)),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn a_pod_refers_to_what_it_mounts_and_reads() {
        let pod = value!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "sa", "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}], "envFrom": [{"configMapRef": {"name": "cm"}}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "vol"}}, {"name": "w", "projected": {"sources": [{"secret": {"name": "proj"}}]}},
                {"name": "data", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "scratch", "ephemeral": {}}]}});
        for name in ["pull", "env", "vol", "proj"] {
            assert!(refers_to(&pod, "secrets", name), "{name}");
        }
        assert!(!refers_to(&pod, "secrets", "cm"));
        assert!(refers_to(&pod, "configmaps", "cm"));
        assert!(refers_to(&pod, "serviceaccounts", "sa"));
        assert!(refers_to(&pod, "persistentvolumeclaims", "c"));
        assert!(refers_to(&pod, "persistentvolumeclaims", "p-scratch"));
    }
}
