//! Pure: discovery documents, derived from the resource table: legacy lists and the aggregated form (`apidiscovery.k8s.io/v2`).
//!
//! Rows come in upstream's order of groups. Start at [`versions`], [`groups`], [`resources`], [`aggregated`].

use std::sync::LazyLock;

use base64::Engine as _;
use sha2::{Digest as _, Sha256};

use crate::api::resource::{ALL, Resource, Subresource, api_version};
use crate::api::value::{Map, Value};
use crate::value;

/// Group names in discovery order, the core group first, each with its versions, preferred first.
static GROUPS: LazyLock<Vec<(&str, Vec<&str>)>> = LazyLock::new(|| {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for resource in ALL {
        match groups.iter_mut().find(|(g, _)| *g == resource.group) {
            Some((_, versions)) if !versions.contains(&resource.version) => versions.push(resource.version),
            Some(_) => {}
            None => groups.push((resource.group, vec![resource.version])),
        }
    }
    groups
});

fn of(group: &str, version: &str) -> impl Iterator<Item = &'static &'static Resource> {
    ALL.iter().filter(move |r| r.group == group && r.version == version)
}

/// `/api`: `server_address` is host and port as clients reach us.
pub fn versions(server_address: &str) -> Value {
    value!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]})
}

/// `/apis`.
pub fn groups() -> Value {
    let list: Vec<Value> =
        GROUPS.iter().filter(|(g, _)| !g.is_empty()).map(|(g, versions)| Value::Map(group_members(g, versions))).collect();
    let mut document = value!({"kind": "APIGroupList", "apiVersion": "v1"});
    document.set(&["groups"], list);
    document
}

/// `/apis/<group>`.
pub fn group(name: &str) -> Option<Value> {
    let (_, versions) = GROUPS.iter().find(|(g, _)| !g.is_empty() && *g == name)?;
    let mut document = group_members(name, versions);
    document.insert("kind", "APIGroup");
    document.insert("apiVersion", "v1");
    Some(Value::Map(document))
}

fn group_members(name: &str, versions: &[&str]) -> Map {
    let version = |v: &&str| value!({"groupVersion": api_version(name, v), "version": *v});
    let list: Vec<Value> = versions.iter().map(version).collect();
    Map::from_iter([("name", Value::from(name)), ("preferredVersion", list[0].clone()), ("versions", Value::List(list))])
}

/// `/api/v1` (with an empty group) and `/apis/<group>/<version>`.
pub fn resources(group: &str, version: &str) -> Option<Value> {
    let mut list: Vec<(String, Value)> = Vec::new();
    for resource in of(group, version) {
        list.push((resource.plural.to_string(), Value::Map(legacy_row(resource))));
        for sub in resource.subresources {
            let name = format!("{}/{}", resource.plural, sub.name);
            list.push((name.clone(), Value::Map(legacy_subrow(resource, sub, &name))));
        }
    }
    if list.is_empty() {
        return None;
    }
    list.sort_by(|a, b| a.0.cmp(&b.0));
    let mut document = value!({"kind": "APIResourceList", "groupVersion": api_version(group, version)});
    if !group.is_empty() {
        // The core group's list carries no apiVersion: a quirk clients live with.
        document.set(&["apiVersion"], "v1");
    }
    document.set(&["resources"], Value::List(list.into_iter().map(|(_, row)| row).collect()));
    Some(document)
}

fn legacy_row(resource: &Resource) -> Map {
    let mut row: Map = Map::from_iter([
        ("name", Value::from(resource.plural)),
        ("singularName", resource.singular.into()),
        ("namespaced", resource.namespaced.into()),
        ("kind", resource.kind.into()),
        ("verbs", resource.verbs.to_vec().into()),
    ]);
    lists(&mut row, resource);
    if resource.verbs.contains(&"list") && resource.verbs.contains(&"create") {
        row.insert("storageVersionHash", storage_version_hash(resource));
    }
    row
}

fn lists(row: &mut Map, resource: &Resource) {
    for (key, list) in [("shortNames", resource.short_names), ("categories", resource.categories)] {
        if !list.is_empty() {
            row.insert(key, list.to_vec());
        }
    }
}

fn legacy_subrow(resource: &Resource, sub: &Subresource, name: &str) -> Map {
    let mut row: Map = Map::from_iter([
        ("name", Value::from(name)),
        ("singularName", "".into()),
        ("namespaced", resource.namespaced.into()),
        ("kind", sub.kind.into()),
        ("verbs", sub.verbs.to_vec().into()),
    ]);
    if (sub.group, sub.version) != (resource.group, resource.version) {
        row.insert("group", sub.group);
        row.insert("version", sub.version);
    }
    row
}

/// Kinds upstream stores in a version it does not serve by default, so that older servers can read what newer ones wrote. Clients compare
/// the hash to find out that objects have to be written anew; ours stays the one they know.
const HASHED_AS_V1BETA1: &[&str] = &["CustomResourceDefinition", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"];

/// First eight bytes of the SHA-256 of the storage group, version and kind, base64.
fn storage_version_hash(resource: &Resource) -> String {
    let version = if HASHED_AS_V1BETA1.contains(&resource.kind) { "v1beta1" } else { resource.storage_version };
    let text = format!("{}/{}/{}", resource.storage_group, version, resource.kind);
    base64::engine::general_purpose::STANDARD.encode(&Sha256::digest(text)[..8])
}

/// Aggregated discovery: of the core group (`/api`) or of all others (`/apis`).
pub fn aggregated(core: bool) -> Value {
    let groups = GROUPS.iter().filter(|(g, _)| g.is_empty() == core);
    let items: Vec<Value> = groups
        .map(|(name, versions)| {
            let metadata = if core { value!({}) } else { value!({"name": *name}) };
            let versions: Vec<Value> = versions.iter().map(|v| aggregated_version(name, v)).collect();
            Value::Map(Map::from_iter([("metadata", metadata), ("versions", Value::List(versions))]))
        })
        .collect();
    let mut document = value!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}});
    document.set(&["items"], Value::List(items));
    document
}

fn aggregated_version(group: &str, version: &str) -> Value {
    let mut rows: Vec<&Resource> = of(group, version).copied().collect();
    rows.sort_by_key(|r| r.plural);
    let rows: Vec<Value> = rows.into_iter().map(|r| Value::Map(aggregated_row(r))).collect();
    let mut document = value!({"version": version, "freshness": "Current"});
    document.set(&["resources"], Value::List(rows));
    document
}

fn aggregated_row(resource: &Resource) -> Map {
    let mut row: Map = Map::from_iter([
        ("resource", Value::from(resource.plural)),
        ("responseKind", value!({"group": "", "version": "", "kind": resource.kind})),
        ("scope", if resource.namespaced { "Namespaced" } else { "Cluster" }.into()),
        ("singularResource", resource.singular.into()),
        ("verbs", resource.verbs.to_vec().into()),
    ]);
    lists(&mut row, resource);
    let mut subs: Vec<&Subresource> = resource.subresources.iter().collect();
    subs.sort_by_key(|s| s.name);
    let subs: Vec<Value> = subs
        .into_iter()
        .map(|sub| {
            // Same group and version as the resource are left empty, as upstream does.
            let own = (sub.group, sub.version) == (resource.group, resource.version);
            let (group, version) = if own { ("", "") } else { (sub.group, sub.version) };
            value!({"subresource": sub.name, "responseKind": {"group": group, "version": version, "kind": sub.kind}, "verbs": sub.verbs})
        })
        .collect();
    if !subs.is_empty() {
        row.insert("subresources", Value::List(subs));
    }
    row
}

/// What `ETag` carries for a document: any stable hash will do for clients.
pub fn etag(body: &[u8]) -> String {
    let digest: String = Sha256::digest(body).iter().map(|b| format!("{b:02X}")).collect();
    format!("\"{digest}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_have_upstreams_shape() {
        let core = resources("", "v1").unwrap();
        let pods = core.list_at(&["resources"]).iter().find(|r| r.str_at(&["name"]) == "pods").unwrap();
        assert_eq!(pods.str_at(&["storageVersionHash"]), "xPOwRZ+Yhw8=");
        let eviction = core.list_at(&["resources"]).iter().find(|r| r.str_at(&["name"]) == "pods/eviction").unwrap();
        assert_eq!((eviction.str_at(&["group"]), eviction.str_at(&["version"])), ("policy", "v1"));
        assert!(resources("apps", "v9").is_none());
        assert_eq!(group("autoscaling").unwrap().str_at(&["preferredVersion", "version"]), "v2");
        assert_eq!(aggregated(false).list_at(&["items"])[0].str_at(&["metadata", "name"]), "apiregistration.k8s.io");
    }
}
