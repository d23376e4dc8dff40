//! Pure: the pods behind each Service, as the older Endpoints object that `kubectl get endpoints` shows.

use std::collections::BTreeMap;

use super::endpointslice::{address, families, pods_of, ports_of, services_touched};
use crate::api::controller::{Action, Controller, DeletePolicy, Key, Touched, Turn, World};
use crate::api::resource::{ENDPOINTS, PODS, Resource, SERVICES};
use crate::api::value::{Map, Value};
use crate::api::world::Row;

pub struct Endpoints;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";
const US: &str = "endpoint-controller";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const ADDRESSES_MAX: usize = 1000;

impl Controller for Endpoints {
    fn name(&self) -> &'static str {
        "endpoint-controller"
    }

    fn resources(&self) -> Vec<&'static Resource> {
        vec![&SERVICES, &PODS, &ENDPOINTS]
    }

    fn touched(&self, change: &Touched, world: &World) -> Vec<Key> {
        if *change.resource == ENDPOINTS {
            let ours = change.row().label(MANAGED_BY) == Some(US);
            let name = &change.row().name;
            return if ours { vec![Key::new(&SERVICES, name.namespace.as_str(), name.name.as_str())] } else { Vec::new() };
        }
        services_touched(change, world)
    }

    fn reconcile(&self, key: &Key, world: &World, _: &Turn) -> Vec<Action> {
        let there = world.find(&ENDPOINTS, &key.name.namespace, &key.name.name);
        let Some(row) = world.get(key) else {
            // Whoever wrote them: they go with their service. Locks of old never had one.
            let left = there.filter(|e| !e.deleting && e.object.annotations().iter().all(|(key, _)| *key != LEADER));
            return left.map(|e| delete(e)).into_iter().collect();
        };
        let service = row.value();
        let selects = service.map_at(&["spec", "selector"]).is_some_and(|s| !s.is_empty());
        if row.deleting || !selects || service.str_at(&["spec", "type"]) == "ExternalName" {
            return Vec::new();
        }
        let subsets = subsets(world, row, &service);
        let labels = labels(&service);
        match there {
            Some(there) => update(there, labels, subsets).into_iter().collect(),
            None => {
                let mut object = crate::value!({"apiVersion": "v1", "kind": "Endpoints",
                    "metadata": {"name": key.name.name, "namespace": key.name.namespace}});
                object.set(&["metadata", "labels"], labels);
                if !subsets.is_empty() {
                    object.set(&["subsets"], subsets);
                }
                vec![Action::Create { resource: &ENDPOINTS, object, then: None }]
            }
        }
    }
}

fn delete(row: &Row) -> Action {
    Action::Delete { key: row.key(), uid: row.uid.clone(), revision: None, policy: DeletePolicy::Default, then: None }
}

fn labels(service: &Value) -> Map {
    let mut labels = service.map_at(&["metadata", "labels"]).cloned().unwrap_or_default();
    labels.remove(HEADLESS);
    if service.str_at(&["spec", "clusterIP"]) == "None" {
        labels.insert(HEADLESS, "");
    }
    labels.insert(MANAGED_BY, US);
    labels
}

/// Addresses by the ports they serve on, ready and not ready apart.
fn subsets(world: &World, row: &Row, service: &Value) -> Vec<Value> {
    let publish_all = service.bool_at(&["spec", "publishNotReadyAddresses"]);
    let family = families(service)[0];
    let mut groups: BTreeMap<String, (Vec<Value>, Vec<Value>, Vec<Value>)> = BTreeMap::new();
    let mut listed = 0;
    for pod in pods_of(world, row, service) {
        if pod.deleting && !publish_all || listed >= ADDRESSES_MAX {
            continue;
        }
        let Some(ip) = address(pod, family) else { continue };
        listed += 1;
        let ports: Vec<Value> = ports_of(service, pod).into_iter().map(plain).collect();
        let group = groups.entry(Value::List(ports.clone()).to_string()).or_insert_with(|| (ports, Vec::new(), Vec::new()));
        let entry = entry(service, pod, ip);
        if publish_all || pod.pod().ready { group.1.push(entry) } else { group.2.push(entry) }
    }
    groups.into_values().filter_map(|(ports, ready, not_ready)| subset(ports, ready, not_ready)).collect()
}

/// An unnamed port has no name member here.
fn plain(mut port: Value) -> Value {
    if port.str_at(&["name"]).is_empty() {
        port.remove(&["name"]);
    }
    port
}

fn entry(service: &Value, pod: &Row, ip: &str) -> Value {
    let facts = pod.pod();
    let mut entry = crate::value!({"ip": ip,
        "targetRef": {"kind": "Pod", "namespace": pod.name.namespace, "name": pod.name.name, "uid": pod.uid}});
    if !facts.node.is_empty() {
        entry.set(&["nodeName"], facts.node.as_str());
    }
    if !facts.hostname.is_empty() && facts.subdomain == service.str_at(&["metadata", "name"]) {
        entry.set(&["hostname"], facts.hostname.as_str());
    }
    entry
}

fn subset(ports: Vec<Value>, mut ready: Vec<Value>, mut not_ready: Vec<Value>) -> Option<Value> {
    let headless_without_ports = ports.is_empty();
    let mut made = Map::new();
    for (field, list) in [("addresses", &mut ready), ("notReadyAddresses", &mut not_ready)] {
        if !list.is_empty() {
            list.sort_by_key(|a| a.str_at(&["ip"]).to_string());
            made.insert(field, std::mem::take(list));
        }
    }
    if !headless_without_ports {
        made.insert("ports", ports);
    }
    (!made.is_empty()).then_some(Value::Map(made))
}

fn update(there: &Row, labels: Map, subsets: Vec<Value>) -> Option<Action> {
    let value = there.value();
    if value.map_at(&["metadata", "labels"]) == Some(&labels) && value.list_at(&["subsets"]) == subsets.as_slice() {
        return None;
    }
    let mut object = value;
    object.set(&["metadata", "labels"], labels);
    if subsets.is_empty() {
        object.remove(&["subsets"]);
    } else {
        object.set(&["subsets"], subsets);
    }
    Some(Action::Update { resource: &ENDPOINTS, subresource: "", object, then: None })
}
