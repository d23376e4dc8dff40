//! Pure: the pods behind each Service, as EndpointSlices.
//!
//! Endpoints are grouped by the ports they resolve to; each group has slices of at most 100. An endpoint stays in the
//! slice it is in, so a change of one pod rewrites one slice. Start at `reconcile`; how endpoints are laid out in slices is
//! [`Plan`], which mirroring shares.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::meta::{controller_ref, name_prefix};
use super::selector::Selector;
use crate::api::controller::{Action, Controller, DeletePolicy, Key, Touched, Turn, World};
use crate::api::resource::{ENDPOINTSLICES, NODES, PODS, Resource, SERVICES};
use crate::api::value::{Map, Value};
use crate::api::world::Row;

pub struct EndpointSlices;

const ENDPOINTS_MAX: usize = 100;
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";
const US: &str = "endpointslice-controller.k8s.io";

impl Controller for EndpointSlices {
    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn resources(&self) -> Vec<&'static Resource> {
        vec![&SERVICES, &PODS, &ENDPOINTSLICES, &NODES]
    }

    fn touched(&self, change: &Touched, world: &World) -> Vec<Key> {
        if *change.resource == ENDPOINTSLICES {
            let row = change.row();
            let ours = row.label(MANAGED_BY) == Some(US);
            return row
                .label(SERVICE_NAME)
                .filter(|_| ours)
                .map(|name| Key::new(&SERVICES, row.name.namespace.as_str(), name))
                .into_iter()
                .collect();
        }
        services_touched(change, world)
    }

    fn reconcile(&self, key: &Key, world: &World, turn: &Turn) -> Vec<Action> {
        let Some(row) = world.get(key) else { return Vec::new() };
        let service = row.value();
        let selects = service.map_at(&["spec", "selector"]).is_some_and(|s| !s.is_empty());
        if row.deleting || !selects || service.str_at(&["spec", "type"]) == "ExternalName" {
            return Vec::new();
        }
        let mut plan = Plan::new(row, slice_labels(&service), turn);
        for family in families(&service) {
            let wanted = groups(world, row, &service, family);
            let existing = slices(world, row, US, family);
            // One empty slice stands for a service without endpoints.
            plan.family(family, wanted, existing, WhenEmpty::Keep);
        }
        plan.actions
    }
}

/// The services to look at after a change of a service or a pod.
pub fn services_touched(change: &Touched, world: &World) -> Vec<Key> {
    if *change.resource == SERVICES {
        return vec![change.key()];
    }
    if *change.resource != PODS || !matters(change) {
        return Vec::new();
    }
    let services = world.within(&SERVICES, &change.row().name.namespace);
    let behind = services.filter(|service| {
        let selector = Selector::of_labels(service.value().at(&["spec", "selector"]));
        selector.selects() && change.rows().any(|pod| selector.matches(&pod.labels))
    });
    behind.map(|service| service.key()).collect()
}

/// Whether a change of a pod can change an endpoint.
fn matters(change: &Touched) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return !change.row().pod().ips.is_empty() };
    let seen = |row: &Row| {
        let pod = row.pod();
        (pod.ips.clone(), pod.node.clone(), pod.ready, pod.is_over(), row.deleting, row.uid.clone())
    };
    seen(old) != seen(new) || old.labels != new.labels
}

/// The address families of a service: `IPv4`, `IPv6`.
pub fn families(service: &Value) -> Vec<&'static str> {
    let stated = service.list_at(&["spec", "ipFamilies"]).iter().filter_map(Value::as_str);
    let families: Vec<&str> = stated.map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    if families.is_empty() { vec!["IPv4"] } else { families }
}

fn slice_labels(service: &Value) -> Map {
    let own = service.map_at(&["metadata", "labels"]).cloned().unwrap_or_default();
    let mut labels = own;
    labels.retain(|key, _| !matches!(key, SERVICE_NAME | MANAGED_BY | HEADLESS));
    labels.insert(SERVICE_NAME, service.str_at(&["metadata", "name"]));
    labels.insert(MANAGED_BY, US);
    if service.str_at(&["spec", "clusterIP"]) == "None" {
        labels.insert(HEADLESS, "");
    }
    labels
}

/// Endpoints by the ports they serve on (as JSON text, for grouping): the ports, the endpoints.
pub type Groups = BTreeMap<String, (Vec<Value>, Vec<Value>)>;

/// The pods of a service that may be listed: with an address, not over.
pub fn pods_of<'a>(world: &'a World, row: &'a Row, service: &Value) -> Vec<&'a Arc<Row>> {
    let selector = Selector::of_labels(service.at(&["spec", "selector"]));
    let all = world.within(&PODS, &row.name.namespace);
    all.filter(|pod| selector.matches(&pod.labels) && !pod.pod().is_over() && !pod.pod().ips.is_empty()).collect()
}

fn groups(world: &World, row: &Row, service: &Value, family: &str) -> Groups {
    let mut groups = Groups::new();
    for pod in pods_of(world, row, service) {
        let Some(ip) = address(pod, family) else { continue };
        let ports = ports_of(service, pod);
        let entry = groups.entry(Value::List(ports.clone()).to_string()).or_insert_with(|| (ports, Vec::new()));
        entry.1.push(endpoint(world, service, pod, ip));
    }
    groups
}

pub fn address<'a>(pod: &'a Row, family: &str) -> Option<&'a str> {
    pod.pod().ips.iter().map(String::as_str).find(|ip| ip.contains(':') == (family == "IPv6"))
}

/// The service's ports as this pod serves them; a named port the pod lacks is left out.
pub fn ports_of(service: &Value, pod: &Row) -> Vec<Value> {
    let mut decoded = None;
    let ports = service.list_at(&["spec", "ports"]).iter().filter_map(|port| {
        let protocol = match port.str_at(&["protocol"]) {
            "" => "TCP",
            protocol => protocol,
        };
        let number = match port.at(&["targetPort"]) {
            Some(Value::Str(name)) if !name.is_empty() => named_port(decoded.get_or_insert_with(|| pod.value()), name, protocol)?,
            Some(Value::Int(n)) if *n != 0 => *n,
            _ => port.i64_at(&["port"])?,
        };
        let mut made = crate::value!({"name": port.str_at(&["name"]), "port": number, "protocol": protocol});
        if let Some(app) = port.at(&["appProtocol"]) {
            made.set(&["appProtocol"], app.clone());
        }
        Some(made)
    });
    ports.collect()
}

fn named_port(pod: &Value, name: &str, protocol: &str) -> Option<i64> {
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    let sidecars = pod.list_at(&["spec", "initContainers"]).iter().filter(|c| c.str_at(&["restartPolicy"]) == "Always");
    let containers = pod.list_at(&["spec", "containers"]).iter().chain(sidecars);
    let mut ports = containers.flat_map(|c| c.list_at(&["ports"]));
    let found = ports.find(|p| p.str_at(&["name"]) == name && matches!(p.str_at(&["protocol"]), p if p == protocol || p.is_empty()));
    found.and_then(|p| p.i64_at(&["containerPort"]))
}

fn endpoint(world: &World, service: &Value, pod: &Row, ip: &str) -> Value {
    let facts = pod.pod();
    let ready = service.bool_at(&["spec", "publishNotReadyAddresses"]) || facts.ready && !pod.deleting;
    let mut made = crate::value!({
        "addresses": [ip],
        "conditions": {"ready": ready, "serving": facts.ready, "terminating": pod.deleting},
        "targetRef": {"kind": "Pod", "namespace": pod.name.namespace, "name": pod.name.name, "uid": pod.uid},
    });
    if !facts.node.is_empty() {
        made.set(&["nodeName"], facts.node.as_str());
        let node = world.find(&NODES, "", &facts.node);
        if let Some(zone) = node.and_then(|n| n.label("topology.kubernetes.io/zone")) {
            made.set(&["zone"], zone);
        }
    }
    if !facts.hostname.is_empty() && facts.subdomain == service.str_at(&["metadata", "name"]) {
        made.set(&["hostname"], facts.hostname.as_str());
    }
    made
}

/// The slices `manager` keeps for a service in this family, by name.
pub fn slices<'a>(world: &'a World, row: &'a Row, manager: &str, family: &str) -> Vec<(&'a Arc<Row>, Value)> {
    let all = world.within(&ENDPOINTSLICES, &row.name.namespace);
    let ours = all.filter(|s| s.label(SERVICE_NAME) == Some(&row.name.name) && s.label(MANAGED_BY) == Some(manager) && !s.deleting);
    ours.map(|s| (s, s.value())).filter(|(_, value)| value.str_at(&["addressType"]) == family).collect()
}

/// What becomes of the last slice of a service without endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenEmpty {
    Keep,
    Drop,
}

/// Lays endpoints out in slices that belong to `row`.
pub struct Plan<'a> {
    row: &'a Row,
    labels: Map,
    annotations: Map,
    turn: &'a Turn,
    made: u64,
    pub actions: Vec<Action>,
}

impl<'a> Plan<'a> {
    pub fn new(row: &'a Row, labels: Map, turn: &'a Turn) -> Plan<'a> {
        Plan { row, labels, annotations: Map::new(), turn, made: 0, actions: Vec::new() }
    }

    pub fn with_annotations(self, annotations: Map) -> Plan<'a> {
        Plan { annotations, ..self }
    }

    pub fn family(&mut self, family: &str, wanted: Groups, existing: Vec<(&Arc<Row>, Value)>, when_empty: WhenEmpty) {
        let mut spare: Vec<(&Arc<Row>, Value)> = Vec::new();
        let mut by_ports: BTreeMap<String, Vec<(&Arc<Row>, Value)>> = BTreeMap::new();
        for (row, value) in existing {
            let ports = Value::List(value.list_at(&["ports"]).iter().map(plain_port).collect()).to_string();
            if wanted.contains_key(&ports) {
                by_ports.entry(ports).or_default().push((row, value));
            } else {
                spare.push((row, value));
            }
        }
        let nothing = wanted.is_empty();
        for (key, (ports, endpoints)) in wanted {
            let slices = by_ports.remove(&key).unwrap_or_default();
            self.group(family, &ports, endpoints, slices, &mut spare);
        }
        if nothing && when_empty == WhenEmpty::Keep {
            match spare.pop() {
                Some((_, slice)) => self.update(slice, &[], &[]),
                None => self.create(family, &[], &[]),
            }
        }
        for (row, _) in spare {
            let policy = DeletePolicy::Default;
            self.actions.push(Action::Delete { key: row.key(), uid: row.uid.clone(), revision: None, policy, then: None });
        }
    }

    /// Places the endpoints of one group: where they are, then where there is room, then into spare and new slices.
    fn group<'r>(
        &mut self,
        family: &str,
        ports: &[Value],
        endpoints: Vec<Value>,
        slices: Vec<(&'r Arc<Row>, Value)>,
        spare: &mut Vec<(&'r Arc<Row>, Value)>,
    ) {
        let identity = |e: &Value| (e.str_at(&["targetRef", "uid"]).to_string(), e.list_at(&["addresses"]).first().map(Value::to_string));
        let mut left: BTreeMap<_, Value> = endpoints.into_iter().map(|e| (identity(&e), e)).collect();
        let mut kept: Vec<(&Arc<Row>, Value, Vec<Value>)> = slices
            .into_iter()
            .map(|(row, value)| {
                let stay = value.list_at(&["endpoints"]).iter().filter_map(|e| left.remove(&identity(e))).collect();
                (row, value, stay)
            })
            .collect();
        let mut rest: Vec<Value> = left.into_values().collect();
        for (_, _, endpoints) in &mut kept {
            let room = ENDPOINTS_MAX.saturating_sub(endpoints.len()).min(rest.len());
            endpoints.extend(rest.drain(..room));
        }
        for (row, value, endpoints) in kept {
            if endpoints.is_empty() {
                spare.push((row, value));
            } else {
                self.update(value, ports, &endpoints);
            }
        }
        for chunk in rest.chunks(ENDPOINTS_MAX) {
            match spare.pop() {
                Some((_, slice)) => self.update(slice, ports, chunk),
                None => self.create(family, ports, chunk),
            }
        }
    }

    fn update(&mut self, slice: Value, ports: &[Value], endpoints: &[Value]) {
        let same_ports = slice.list_at(&["ports"]).iter().map(plain_port).eq(ports.iter().cloned());
        let same_labels = slice.map_at(&["metadata", "labels"]) == Some(&self.labels);
        let annotations = slice.map_at(&["metadata", "annotations"]);
        let annotated = self.annotations.iter().all(|(key, value)| annotations.and_then(|a| a.get(key)) == Some(value));
        if same_ports && same_labels && annotated && slice.list_at(&["endpoints"]) == endpoints {
            return;
        }
        let mut object = slice;
        object.set(&["metadata", "labels"], self.labels.clone());
        self.annotate(&mut object);
        object.set(&["ports"], ports.to_vec());
        object.set(&["endpoints"], endpoints.to_vec());
        self.actions.push(Action::Update { resource: &ENDPOINTSLICES, subresource: "", object, then: None });
    }

    fn create(&mut self, family: &str, ports: &[Value], endpoints: &[Value]) {
        let prefix = name_prefix(&self.row.name.name);
        let name = format!("{prefix}{}", self.turn.suffix(self.made));
        self.made += 1;
        let mut object = crate::value!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": name, "generateName": prefix, "namespace": self.row.name.namespace}});
        object.set(&["metadata", "labels"], self.labels.clone());
        self.annotate(&mut object);
        object.set(&["metadata", "ownerReferences"], vec![controller_ref(self.row)]);
        object.set(&["ports"], ports.to_vec());
        object.set(&["endpoints"], endpoints.to_vec());
        self.actions.push(Action::Create { resource: &ENDPOINTSLICES, object, then: None });
    }

    fn annotate(&self, object: &mut Value) {
        for (key, value) in self.annotations.iter() {
            object.set(&["metadata", "annotations", key], value.clone());
        }
    }
}

/// A stored port in the form [`ports_of`] makes: name and protocol always there.
fn plain_port(port: &Value) -> Value {
    let mut port = port.clone();
    if let Some(map) = port.as_map_mut() {
        map.insert_default("name", "");
        map.insert_default("protocol", "TCP");
    }
    port
}

/// Uids listed by some slices, for tests and the simulator.
pub fn listed(slices: &[Value]) -> HashSet<String> {
    slices.iter().flat_map(|s| s.list_at(&["endpoints"])).map(|e| e.str_at(&["targetRef", "uid"]).to_string()).collect()
}
