//! Pure: Endpoints somebody wrote by hand, mirrored as EndpointSlices.
//!
//! A Service without selector is led by the Endpoints object of its name. Everybody reads slices, so what that object says is
//! copied into slices that belong to it. What endpoints say in subsets is grouped by ports, as slices are. Start at
//! `reconcile`; keyed by the Endpoints object.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::endpointslice::{Groups, MANAGED_BY, Plan, SERVICE_NAME, WhenEmpty, slices};
use super::meta::warning;
use crate::api::controller::{Action, Controller, DeletePolicy, Key, Touched, Turn, World};
use crate::api::resource::{ENDPOINTS, ENDPOINTSLICES, Resource, SERVICES};
use crate::api::value::{Map, Value};
use crate::api::world::Row;

pub struct EndpointSliceMirroring;

const US: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints once were locks, too.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// What says something about the Endpoints object only.
const NOT_MIRRORED: &[&str] = &["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];
/// Addresses taken of one subset.
const ADDRESSES_MAX: usize = 1000;
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

impl Controller for EndpointSliceMirroring {
    fn name(&self) -> &'static str {
        "endpointslicemirroring-controller"
    }

    fn resources(&self) -> Vec<&'static Resource> {
        vec![&SERVICES, &ENDPOINTS, &ENDPOINTSLICES]
    }

    fn touched(&self, change: &Touched, _: &World) -> Vec<Key> {
        let row = change.row();
        let name = match change.resource {
            slice if *slice == ENDPOINTSLICES => row.label(SERVICE_NAME).filter(|_| row.label(MANAGED_BY) == Some(US)),
            _ => Some(row.name.name.as_str()),
        };
        name.map(|name| Key::new(&ENDPOINTS, row.name.namespace.as_str(), name)).into_iter().collect()
    }

    fn reconcile(&self, key: &Key, world: &World, turn: &Turn) -> Vec<Action> {
        let service = world.find(&SERVICES, &key.name.namespace, &key.name.name);
        let led_by_hand = service.is_some_and(|s| s.value().map_at(&["spec", "selector"]).is_none());
        let endpoints = world.get(key).filter(|row| led_by_hand && !row.deleting);
        let Some((row, value)) = endpoints.map(|row| (row, row.value())).filter(|(_, value)| is_mirrored(value)) else {
            return forget(key, world);
        };
        let mut plan = Plan::new(row, labels(&value), turn).with_annotations(annotations(&value));
        let (mut groups, invalid) = groups(&value);
        for family in FAMILIES {
            let wanted = groups.remove(family).unwrap_or_default();
            plan.family(family, wanted, slices(world, row, US, family), WhenEmpty::Drop);
        }
        if invalid > 0 && !plan.actions.is_empty() {
            let text = format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
            plan.actions.push(Action::Event(warning(row, "InvalidIPAddress", text)));
        }
        plan.actions
    }
}

fn is_mirrored(endpoints: &Value) -> bool {
    let annotations = endpoints.map_at(&["metadata", "annotations"]);
    endpoints.str_at(&["metadata", "labels", SKIP]) != "true" && !annotations.is_some_and(|a| a.contains_key(LEADER))
}

/// Nothing is to be mirrored (any more).
fn forget(key: &Key, world: &World) -> Vec<Action> {
    let ours = |row: &Row| row.label(SERVICE_NAME) == Some(&key.name.name) && row.label(MANAGED_BY) == Some(US) && !row.deleting;
    let all = world.within(&ENDPOINTSLICES, &key.name.namespace).filter(|row| ours(row));
    let delete =
        |row: &Row| Action::Delete { key: row.key(), uid: row.uid.clone(), revision: None, policy: DeletePolicy::Default, then: None };
    all.map(|row| delete(row)).collect()
}

fn labels(endpoints: &Value) -> Map {
    let mut labels = endpoints.map_at(&["metadata", "labels"]).cloned().unwrap_or_default();
    labels.insert(SERVICE_NAME, endpoints.str_at(&["metadata", "name"]));
    labels.insert(MANAGED_BY, US);
    labels
}

fn annotations(endpoints: &Value) -> Map {
    let mut annotations = endpoints.map_at(&["metadata", "annotations"]).cloned().unwrap_or_default();
    annotations.retain(|key, _| !NOT_MIRRORED.contains(&key));
    annotations
}

/// The addresses by family and ports, and how many are none.
fn groups(endpoints: &Value) -> (BTreeMap<&'static str, Groups>, usize) {
    let mut families: BTreeMap<&'static str, Groups> = BTreeMap::new();
    let mut invalid = 0;
    for subset in endpoints.list_at(&["subsets"]) {
        let ports: Vec<Value> = subset.list_at(&["ports"]).iter().map(port).collect();
        let ready = subset.list_at(&["addresses"]).iter().map(|a| (a, true));
        let not_ready = subset.list_at(&["notReadyAddresses"]).iter().map(|a| (a, false));
        for (address, ready) in ready.chain(not_ready).take(ADDRESSES_MAX) {
            let Ok(ip) = address.str_at(&["ip"]).parse::<IpAddr>() else {
                invalid += 1;
                continue;
            };
            let family = if ip.is_ipv4() { FAMILIES[0] } else { FAMILIES[1] };
            let key = Value::List(ports.clone()).to_string();
            let group = families.entry(family).or_default().entry(key).or_insert_with(|| (ports.clone(), Vec::new()));
            group.1.push(endpoint(address, ip, ready));
        }
    }
    (families, invalid)
}

fn port(port: &Value) -> Value {
    let protocol = match port.str_at(&["protocol"]) {
        "" => "TCP",
        protocol => protocol,
    };
    let mut made = crate::value!({"name": port.str_at(&["name"]), "port": port.i64_at(&["port"]).unwrap_or(0), "protocol": protocol});
    if let Some(app) = port.at(&["appProtocol"]) {
        made.set(&["appProtocol"], app.clone());
    }
    made
}

fn endpoint(address: &Value, ip: IpAddr, ready: bool) -> Value {
    let mut made = crate::value!({"addresses": [ip.to_string()], "conditions": {"ready": ready}});
    for field in ["targetRef", "nodeName"] {
        if let Some(value) = address.at(&[field]) {
            made.set(&[field], value.clone());
        }
    }
    if !address.str_at(&["hostname"]).is_empty() {
        made.set(&["hostname"], address.str_at(&["hostname"]));
    }
    made
}
