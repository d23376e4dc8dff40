//! Services: families, addresses and node ports are chosen here; what a change of type leaves behind is cleared.

use std::collections::HashMap;
use std::net::IpAddr;

use super::services_validate as rules;
use crate::api::cidr::Cidr;
use crate::api::resource::{self, Resource};
use crate::api::status::{FieldError, Result, Status};
use crate::api::time::Time;
use crate::api::value::{Map, Value};
use crate::server::alloc::{self, Ports, Refusal};
use crate::server::kinds::core::{pod_defaults::each, print_labels};
use crate::server::kinds::none;
use crate::server::strategy::{Column, Context, NameRule, Selectable, Strategy, begin_status_update, restore};
use crate::server::{table, validation};

pub struct Services;

impl Strategy for Services {
    fn resource(&self) -> &'static Resource {
        &resource::SERVICES
    }
    fn default(&self, object: &mut Value) {
        default(object);
    }
    fn prepare_create(&self, context: &Context, service: &mut Value) -> Result<()> {
        service.set(&["status", "loadBalancer"], Value::map());
        sync_cluster_ips(service, None);
        allocate(context, service, None)
    }
    fn prepare_update(&self, context: &Context, new: &mut Value, old: &Value) -> Result<()> {
        restore(new, old, "status");
        sync_cluster_ips(new, Some(old));
        keep_allocated(new, old);
        drop_type_dependent(new, old);
        default(new);
        allocate(context, new, Some(old))?;
        release_unused(context, new, old);
        // A Service that no longer balances loads has no balancer to report.
        if new.str_at(&["spec", "type"]) != "LoadBalancer" && old.str_at(&["spec", "type"]) == "LoadBalancer" {
            new.set(&["status", "loadBalancer"], Value::map());
        }
        Ok(())
    }
    fn prepare_status_update(&self, _: &Context, new: &mut Value, old: &Value) -> Result<()> {
        begin_status_update(new, old);
        default(new);
        Ok(())
    }
    fn validate(&self, _: &Context, service: &Value) -> Vec<FieldError> {
        rules::service(service)
    }
    fn validate_update(&self, _: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        rules::update(new, old)
    }
    fn validate_status_update(&self, _: &Context, new: &Value, _: &Value) -> Vec<FieldError> {
        rules::status(new)
    }
    fn has_generation(&self) -> bool {
        false
    }
    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }
    fn create_on_update(&self) -> bool {
        true
    }
    fn returns_deleted(&self) -> bool {
        true
    }
    fn release(&self, context: &Context, service: &Value) {
        for ip in addresses(service) {
            alloc::release_address(context, &ip);
        }
    }
    fn warnings(&self, _: &Context, service: &Value, _: Option<&Value>) -> Vec<String> {
        warnings(service)
    }
    fn columns(&self) -> &'static [Column] {
        const {
            &[
                Column::NAME,
                Column::new("Type", "string"),
                Column::new("Cluster-IP", "string"),
                Column::new("External-IP", "string"),
                Column::new("Port(s)", "string"),
                Column::AGE,
                Column::wide("Selector", "string"),
            ]
        }
    }
    fn row(&self, service: &Value, now: Time) -> Vec<Value> {
        let text = |path: &[&str]| service.str_at(path);
        vec![
            text(&["metadata", "name"]).into(),
            text(&["spec", "type"]).into(),
            none(text(&["spec", "clusterIP"])).into(),
            external(service).into(),
            ports(service).into(),
            table::age(service, now).into(),
            print_labels(service.map_at(&["spec", "selector"])).into(),
        ]
    }
    fn selectable(&self, _: &'static Resource) -> &'static [Selectable] {
        const { &[Selectable::new("spec.clusterIP", &["spec", "clusterIP"]), Selectable::new("spec.type", &["spec", "type"])] }
    }
}

// --- what a Service is

fn kind(service: &Value) -> &str {
    service.str_at(&["spec", "type"])
}
fn is_headless(service: &Value) -> bool {
    service.str_at(&["spec", "clusterIP"]) == "None"
}
/// Has an address, or `None` said explicitly.
fn needs_cluster_ip(service: &Value) -> bool {
    matches!(kind(service), "ClusterIP" | "NodePort" | "LoadBalancer")
}
fn needs_node_port(service: &Value) -> bool {
    kind(service) == "NodePort"
        || kind(service) == "LoadBalancer" && service.at(&["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false))
}
fn needs_health_port(service: &Value) -> bool {
    kind(service) == "LoadBalancer" && service.str_at(&["spec", "externalTrafficPolicy"]) == "Local"
}
/// Reachable from outside the cluster.
pub fn is_external(service: &Value) -> bool {
    matches!(kind(service), "NodePort" | "LoadBalancer")
        || kind(service) == "ClusterIP" && !service.list_at(&["spec", "externalIPs"]).is_empty()
}

/// The real addresses of a Service.
fn addresses(service: &Value) -> Vec<String> {
    let all = service.list_at(&["spec", "clusterIPs"]).iter().filter_map(Value::as_str);
    all.filter(|ip| !ip.is_empty() && *ip != "None").map(str::to_string).collect()
}

fn default(service: &mut Value) {
    let spec = service.make_map(&["spec"]);
    for (key, value) in [("sessionAffinity", "None"), ("type", "ClusterIP")] {
        if spec.str(key).is_empty() {
            spec.insert(key, value);
        }
    }
    if spec.str("sessionAffinity") == "None" {
        spec.remove("sessionAffinityConfig");
    } else if spec.str("sessionAffinity") == "ClientIP" {
        spec.map_slot("sessionAffinityConfig").map_slot("clientIP").insert_default("timeoutSeconds", 10800);
    }
    each(spec, "ports", |port| {
        if port.str("protocol").is_empty() {
            port.insert("protocol", "TCP");
        }
        let unset = matches!(port.get("targetPort"), None | Some(Value::Null | Value::Int(0)))
            || port.get("targetPort").and_then(Value::as_str) == Some("");
        if unset {
            let same = port.get("port").cloned().unwrap_or_default();
            port.insert("targetPort", same);
        }
    });
    let external = is_external(service);
    let kind = kind(service).to_string();
    let spec = service.make_map(&["spec"]);
    if external && spec.str("externalTrafficPolicy").is_empty() {
        spec.insert("externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        spec.insert_default("internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        spec.insert_default("allocateLoadBalancerNodePorts", true);
        let ingress = service.at_mut(&["status", "loadBalancer", "ingress"]).and_then(Value::as_list_mut);
        for entry in ingress.into_iter().flatten().filter_map(Value::as_map_mut) {
            if !entry.str("ip").is_empty() {
                entry.insert_default("ipMode", "VIP");
            }
        }
    }
}

// --- old and new

/// `clusterIP` is the first of `clusterIPs`; whoever changed one of them means both.
fn sync_cluster_ips(new: &mut Value, old: Option<&Value>) {
    let one = new.str_at(&["spec", "clusterIP"]).to_string();
    let many = new.list_at(&["spec", "clusterIPs"]).to_vec();
    let Some(old) = old else {
        if !one.is_empty() && many.is_empty() {
            new.set(&["spec", "clusterIPs"], vec![one]);
        }
        return;
    };
    let (was_one, was_many) = (old.str_at(&["spec", "clusterIP"]), old.list_at(&["spec", "clusterIPs"]));
    let same_many = many == was_many;
    if one.is_empty() && !was_one.is_empty() && same_many {
        new.remove(&["spec", "clusterIPs"]);
    } else if !one.is_empty() && many.is_empty() {
        let all = if one == was_one { was_many.to_vec() } else { vec![one.into()] };
        new.set(&["spec", "clusterIPs"], all);
    } else if one != was_one && same_many {
        new.set(&["spec", "clusterIPs"], vec![one]);
    }
}

/// A PUT that leaves allocated values out means them unchanged.
fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        if new.str_at(&["spec", "clusterIP"]).is_empty() {
            new.set(&["spec", "clusterIP"], old.str_at(&["spec", "clusterIP"]));
        }
        if new.list_at(&["spec", "clusterIPs"]).is_empty() && new.str_at(&["spec", "clusterIP"]) == old.str_at(&["spec", "clusterIP"]) {
            new.set(&["spec", "clusterIPs"], old.list_at(&["spec", "clusterIPs"]).to_vec());
        }
        for key in ["ipFamilyPolicy", "ipFamilies"] {
            if let (None, Some(was)) = (new.at(&["spec", key]), old.at(&["spec", key])) {
                new.set(&["spec", key], was.clone());
            }
        }
    }
    if needs_node_port(old) && needs_node_port(new) {
        let by_name: HashMap<String, i64> = old
            .list_at(&["spec", "ports"])
            .iter()
            .map(|p| (p.str_at(&["name"]).to_string(), p.i64_at(&["nodePort"]).unwrap_or(0)))
            .collect();
        let mut used: Vec<i64> = new.list_at(&["spec", "ports"]).iter().filter_map(|p| p.i64_at(&["nodePort"])).collect();
        each(new.make_map(&["spec"]), "ports", |port| {
            if port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) == 0
                && let Some(was) = by_name.get(port.str("name")).filter(|p| **p != 0 && !used.contains(p))
            {
                port.insert("nodePort", *was);
                used.push(*was);
            }
        });
    }
    if needs_health_port(old)
        && needs_health_port(new)
        && new.i64_at(&["spec", "healthCheckNodePort"]).unwrap_or(0) == 0
        && let Some(was) = old.at(&["spec", "healthCheckNodePort"])
    {
        new.set(&["spec", "healthCheckNodePort"], was.clone());
    }
}

/// What the old type needed and the new one does not goes, unless the request changed it in the same breath.
fn drop_type_dependent(new: &mut Value, old: &Value) {
    let same = |new: &Value, key: &str| new.at(&["spec", key]) == old.at(&["spec", key]);
    let drop = |new: &mut Value, keys: &[&str]| {
        for key in keys {
            if same(new, key) {
                new.remove(&["spec", key]);
            }
        }
    };
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        drop(new, &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]);
    }
    if needs_node_port(old) && !needs_node_port(new) {
        let was = alloc::ports_of(old);
        each(new.make_map(&["spec"]), "ports", |port| {
            let kept = port.get("nodePort").and_then(Value::as_i64).is_some_and(|p| was.contains(&(p as u16)));
            if kept {
                port.remove("nodePort");
            }
        });
    }
    if needs_health_port(old) && !needs_health_port(new) {
        drop(new, &["healthCheckNodePort"]);
    }
    if kind(old) == "LoadBalancer" && kind(new) != "LoadBalancer" {
        drop(new, &["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if is_external(old) && !is_external(new) {
        drop(new, &["externalTrafficPolicy"]);
    }
}

fn release_unused(context: &Context, new: &Value, old: &Value) {
    let kept = addresses(new);
    for ip in addresses(old).into_iter().filter(|ip| !kept.contains(ip)) {
        alloc::release_address(context, &ip);
    }
}

// --- allocation

fn refuse(service: &Value, error: FieldError) -> Status {
    Status::invalid(&resource::SERVICES, service.str_at(&["metadata", "name"]), &[error])
}

fn allocate(context: &Context, service: &mut Value, old: Option<&Value>) -> Result<()> {
    if needs_cluster_ip(service) {
        families(context, service)?;
    }
    // Nothing is claimed for what validation is going to refuse.
    let errors = match old {
        Some(old) => rules::update(service, old),
        None => rules::before_allocation(service),
    };
    if !errors.is_empty() {
        return Ok(());
    }
    if needs_cluster_ip(service) && !is_headless(service) {
        cluster_ips(context, service)?;
    }
    node_ports(context, service, old)
}

fn families(context: &Context, service: &mut Value) -> Result<()> {
    let has = |family: &str| context.cluster.service_cidrs.iter().any(|c| family_of(c) == family);
    let primary = context.cluster.service_cidrs.first().map_or("IPv4", |c| family_of(c));
    let dual = has("IPv4") && has("IPv6");
    let policy = service.str_at(&["spec", "ipFamilyPolicy"]).to_string();
    let mut families: Vec<String> = service.list_at(&["spec", "ipFamilies"]).iter().filter_map(Value::as_str).map(str::to_string).collect();
    let bare = is_headless(service) && service.map_at(&["spec", "selector"]).is_none_or(Map::is_empty);
    // Nothing said is not the same as saying nothing.
    if policy.is_empty() && service.at(&["spec", "ipFamilyPolicy"]).is_some() {
        return Ok(());
    }
    let policy = match policy.as_str() {
        "" if bare => "RequireDualStack".to_string(),
        "" => "SingleStack".to_string(),
        _ => policy,
    };
    service.set(&["spec", "ipFamilyPolicy"], policy.as_str());
    if !matches!(policy.as_str(), "SingleStack" | "PreferDualStack" | "RequireDualStack") {
        return Ok(());
    }
    if policy == "RequireDualStack" && !dual && !bare {
        let why = "this cluster is not configured for dual-stack services";
        return Err(refuse(service, FieldError::invalid("spec.ipFamilyPolicy", policy, why)));
    }
    // Explicit addresses say which families are meant.
    let addresses = addresses(service);
    // More of them than there are families is refused for that, not for what they would say.
    for (i, ip) in addresses.iter().enumerate().filter(|_| addresses.len() <= 2) {
        if let (Ok(ip), true) = (ip.parse::<IpAddr>(), families.len() <= i) {
            families.push(if ip.is_ipv4() { "IPv4" } else { "IPv6" }.to_string());
        }
    }
    if !bare && let Some(i) = families.iter().position(|f| matches!(f.as_str(), "IPv4" | "IPv6") && !has(f)) {
        let why = "not configured on this cluster";
        return Err(refuse(service, FieldError::invalid(format!("spec.ipFamilies[{i}]"), families[i].as_str(), why)));
    }
    if families.is_empty() {
        families.push(primary.to_string());
    }
    let both = policy != "SingleStack" && (dual || bare);
    if both && families.len() == 1 {
        families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }.to_string());
    }
    service.set(&["spec", "ipFamilies"], families);
    Ok(())
}

pub fn family_of(cidr: &str) -> &'static str {
    if cidr.contains(':') { "IPv6" } else { "IPv4" }
}

fn cluster_ips(context: &Context, service: &mut Value) -> Result<()> {
    let families: Vec<String> = service.list_at(&["spec", "ipFamilies"]).iter().filter_map(Value::as_str).map(str::to_string).collect();
    let given = addresses(service);
    let (namespace, name) = (context.namespace.clone(), service.str_at(&["metadata", "name"]).to_string());
    let own = context.access.get(&resource::SERVICES, &namespace, &name).map(|s| addresses(&s.value())).unwrap_or_default();
    let mut all = Vec::new();
    for (i, family) in families.iter().enumerate() {
        let wanted = given.get(i).cloned();
        if let Some(ip) = wanted.as_ref().filter(|ip| own.contains(ip)) {
            all.push(ip.clone());
            continue;
        }
        let range = context.cluster.service_cidrs.iter().find(|c| family_of(c) == *family).and_then(|c| c.parse::<Cidr>().ok());
        let Some(range) = range else { return Err(Status::internal(format!("no service CIDR for {family}"))) };
        let ip = wanted.as_ref().and_then(|ip| ip.parse().ok());
        match alloc::claim_address(context, &range, ip, &namespace, &name) {
            Ok(ip) => all.push(ip.to_string()),
            Err(refusal) => {
                let shown = service.at(&["spec", "clusterIPs"]).cloned().unwrap_or_default();
                let why = match refusal {
                    Refusal::Taken => "provided IP is already allocated",
                    Refusal::OutOfRange => "the provided network does not match the current range",
                    Refusal::Full => {
                        let text = "failed to allocate a serviceIP: range is full";
                        return Err(Status::internal(text));
                    }
                };
                let why = format!("failed to allocate IP {}: {why}", wanted.unwrap_or_default());
                return Err(refuse(service, FieldError::invalid("spec.clusterIPs", shown, why)));
            }
        }
    }
    if let Some(first) = all.first() {
        service.set(&["spec", "clusterIP"], first.as_str());
        service.set(&["spec", "clusterIPs"], all);
    }
    Ok(())
}

fn node_ports(context: &Context, service: &mut Value, old: Option<&Value>) -> Result<()> {
    let wants = needs_node_port(service) || kind(service) == "LoadBalancer";
    if !wants && !needs_health_port(service) {
        return Ok(());
    }
    let kept: Vec<u16> = old.map(alloc::ports_of).unwrap_or_default();
    let missing = |p: Option<i64>| p.unwrap_or(0) == 0;
    let allocating = needs_node_port(service);
    let new_ports = service.list_at(&["spec", "ports"]).iter().any(|p| {
        let port = p.i64_at(&["nodePort"]);
        if missing(port) { allocating } else { !kept.contains(&(port.unwrap_or(0) as u16)) }
    });
    let health = service.i64_at(&["spec", "healthCheckNodePort"]);
    let new_health = needs_health_port(service) && (missing(health) || !kept.contains(&(health.unwrap_or(0) as u16)));
    if !new_ports && !new_health {
        return Ok(());
    }
    let name = service.str_at(&["metadata", "name"]).to_string();
    let mut ports = Ports::read(context, &context.namespace, &name);
    // One number serves several protocols of this Service, as long as they differ.
    let mut mine: Vec<(u16, i64, String)> = Vec::new();
    let mut entries = service.list_at(&["spec", "ports"]).to_vec();
    for (i, entry) in entries.iter_mut().enumerate() {
        let (asked, number, protocol) =
            (entry.i64_at(&["nodePort"]).unwrap_or(0), entry.i64_at(&["port"]).unwrap_or(0), entry.str_at(&["protocol"]).to_string());
        if asked == 0 && !allocating {
            continue;
        }
        let shared = mine
            .iter()
            .find(|(node, port, proto)| *proto != protocol && if asked == 0 { *port == number } else { i64::from(*node) == asked });
        let port = match shared {
            Some((node, ..)) => *node,
            None => ports
                .claim(asked as u16)
                .map_err(|refusal| port_refused(service, &format!("spec.ports[{i}].nodePort"), asked, refusal, context))?,
        };
        mine.push((port, number, protocol));
        entry.set(&["nodePort"], i64::from(port));
    }
    service.set(&["spec", "ports"], entries);
    if needs_health_port(service) {
        let asked = health.unwrap_or(0);
        let port = ports.claim(asked as u16).map_err(|r| port_refused(service, "spec.healthCheckNodePort", asked, r, context))?;
        service.set(&["spec", "healthCheckNodePort"], i64::from(port));
    }
    ports.commit(context);
    Ok(())
}

fn port_refused(service: &Value, at: &str, asked: i64, refusal: Refusal, context: &Context) -> Status {
    let (first, last) = context.cluster.node_ports;
    let why = match refusal {
        Refusal::Taken => "provided port is already allocated".to_string(),
        Refusal::OutOfRange => format!("provided port is not in the valid range. The range of valid ports is {first}-{last}"),
        Refusal::Full => return Status::internal("failed to allocate a nodePort: range is full"),
    };
    refuse(service, FieldError::invalid(at, asked, why))
}

// --- the row kubectl prints

fn external(service: &Value) -> String {
    let external: Vec<&str> = service.list_at(&["spec", "externalIPs"]).iter().filter_map(Value::as_str).collect();
    match kind(service) {
        "ExternalName" => service.str_at(&["spec", "externalName"]).to_string(),
        "LoadBalancer" => {
            let ingress = service.list_at(&["status", "loadBalancer", "ingress"]).iter();
            let points = ingress.map(|i| if i.str_at(&["ip"]).is_empty() { i.str_at(&["hostname"]) } else { i.str_at(&["ip"]) });
            let all: Vec<&str> = points.filter(|p| !p.is_empty()).chain(external).collect();
            if all.is_empty() { "<pending>".to_string() } else { all.join(",") }
        }
        _ => none(&external.join(",")),
    }
}

fn ports(service: &Value) -> String {
    let ports = service.list_at(&["spec", "ports"]).iter().map(|p| {
        let (port, protocol) = (p.i64_at(&["port"]).unwrap_or(0), p.str_at(&["protocol"]));
        match p.i64_at(&["nodePort"]).unwrap_or(0) {
            0 => format!("{port}/{protocol}"),
            node => format!("{port}:{node}/{protocol}"),
        }
    });
    none(&ports.collect::<Vec<_>>().join(","))
}

/// What is set and will not do what it looks like.
fn warnings(service: &Value) -> Vec<String> {
    let text = |key: &str| service.str_at(&["spec", key]);
    let list = |key: &str| service.list_at(&["spec", key]).iter().filter_map(Value::as_str).enumerate().map(|(i, s)| (i, s.to_string()));
    let headless = text("type") == "ClusterIP" && text("clusterIP") == "None";
    let (external_name, has_external) = (text("type") == "ExternalName", list("externalIPs").next().is_some());
    let mut out = Vec::new();
    let mut say = |when: bool, what: &str| out.extend(when.then(|| what.to_string()));
    let hints = service.at(&["metadata", "annotations", "service.kubernetes.io/topology-aware-hints"]).is_some();
    say(
        hints,
        "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead",
    );
    say(headless && !text("loadBalancerIP").is_empty(), "spec.loadBalancerIP is ignored for headless services");
    say(headless && has_external, "spec.externalIPs is ignored for headless services");
    say(headless && text("sessionAffinity") != "None", "spec.SessionAffinity is ignored for headless services");
    for (i, ip) in list("externalIPs") {
        out.extend(validation::ip_warning(&format!("spec.externalIPs[{i}]"), &ip));
    }
    if has_external && !headless && !external_name {
        out.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_string());
    }
    out.extend(validation::ip_warning("spec.loadBalancerIP", text("loadBalancerIP")));
    for (i, range) in list("loadBalancerSourceRanges") {
        out.extend(validation::cidr_warning(&format!("spec.loadBalancerSourceRanges[{i}]"), range.trim()));
    }
    if external_name && has_external {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_string());
    }
    if !external_name && !text("externalName").is_empty() {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_string());
    }
    if text("trafficDistribution") == "PreferClose" {
        out.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_string());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    fn service(spec: Value) -> Value {
        let mut s = value!({"metadata": {"name": "s"}});
        s.set(&["spec"], spec);
        default(&mut s);
        s
    }

    #[test]
    fn defaults() {
        let s = service(value!({"ports": [{"port": 80}]}));
        let want = value!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]});
        assert_eq!(s.get("spec"), Some(&want));
        let lb = service(value!({"type": "LoadBalancer", "ports": [{"port": 80}], "sessionAffinity": "ClientIP"}));
        assert_eq!(lb.str_at(&["spec", "externalTrafficPolicy"]), "Cluster");
        assert!(lb.bool_at(&["spec", "allocateLoadBalancerNodePorts"]));
        assert_eq!(lb.i64_at(&["spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds"]), Some(10800));
    }

    #[test]
    fn changing_the_type_clears_what_belonged_to_it() {
        let mut old = service(value!({"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "ports": [{"port": 80, "nodePort": 30001}]}));
        default(&mut old);
        let mut new = service(value!({"ports": [{"port": 80}]}));
        sync_cluster_ips(&mut new, Some(&old));
        keep_allocated(&mut new, &old);
        drop_type_dependent(&mut new, &old);
        assert_eq!(new.str_at(&["spec", "clusterIP"]), "10.0.0.1");
        assert_eq!(alloc::ports_of(&new), Vec::<u16>::new());
        let mut patched = old.clone();
        patched.set(&["spec", "type"], "ClusterIP");
        drop_type_dependent(&mut patched, &old);
        assert_eq!(alloc::ports_of(&patched), Vec::<u16>::new());
        assert_eq!(patched.at(&["spec", "externalTrafficPolicy"]), None);
        let mut same_type = service(value!({"type": "NodePort", "ports": [{"port": 81}]}));
        keep_allocated(&mut same_type, &old);
        assert_eq!(alloc::ports_of(&same_type), [30001], "ports are matched by name");
    }

    #[test]
    fn clearing_the_address_is_no_change() {
        let old = service(value!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}));
        let mut new = old.clone();
        new.set(&["spec", "clusterIP"], "");
        sync_cluster_ips(&mut new, Some(&old));
        keep_allocated(&mut new, &old);
        assert_eq!(new, old);
    }

    #[test]
    fn rows() {
        let s = service(value!({"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30001}]}));
        assert_eq!((external(&s).as_str(), ports(&s).as_str()), ("<pending>", "80:30001/TCP"));
    }
}
