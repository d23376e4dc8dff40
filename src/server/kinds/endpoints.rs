//! Endpoints and EndpointSlices: which addresses stand behind a Service.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::api::resource::{self, Resource};
use crate::api::status::{FieldError, Result};
use crate::api::time::Time;
use crate::api::value::Value;
use crate::server::kinds::core::pod_defaults::each;
use crate::server::kinds::core::services_validate::{address, not_special};
use crate::server::strategy::{Column, Context, Strategy, count_generation};
use crate::server::table;
use crate::server::validation::{self as check, invalid, invalid_number, one_of};

pub struct Endpoints;

impl Strategy for Endpoints {
    fn resource(&self) -> &'static Resource {
        &resource::ENDPOINTS
    }
    fn default(&self, object: &mut Value) {
        each(object.make_map(&[]), "subsets", |subset| {
            each(subset, "ports", |port| {
                if port.str("protocol").is_empty() {
                    port.insert("protocol", "TCP");
                }
            });
        });
    }
    fn validate(&self, _: &Context, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (i, subset) in object.list_at(&["subsets"]).iter().enumerate() {
            self::subset(&mut errors, &format!("subsets[{i}]"), subset);
        }
        errors
    }
    fn create_on_update(&self) -> bool {
        true
    }
    fn columns(&self) -> &'static [Column] {
        const { &[Column::NAME, Column::new("Endpoints", "string"), Column::AGE] }
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        let mut points = Vec::new();
        for subset in object.list_at(&["subsets"]) {
            let ips: Vec<&str> = subset.list_at(&["addresses"]).iter().map(|a| a.str_at(&["ip"])).collect();
            let ports = subset.list_at(&["ports"]);
            if ports.is_empty() {
                points.extend(ips.iter().map(|ip| ip.to_string()));
            }
            for port in ports {
                let port = port.i64_at(&["port"]).unwrap_or(0);
                points.extend(ips.iter().map(|ip| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }));
            }
        }
        vec![object.str_at(&["metadata", "name"]).into(), some_of(&points, "<none>").into(), table::age(object, now).into()]
    }
}

/// The first three, and how many more.
fn some_of(list: &[String], nothing: &str) -> String {
    match list {
        list if list.iter().all(String::is_empty) => nothing.to_string(),
        [first @ .., _] if first.len() < 3 => list.join(","),
        _ => format!("{} + {} more...", list[..3].join(","), list.len() - 3),
    }
}

fn subset(errors: &mut Vec<FieldError>, at: &str, subset: &Value) {
    let (ready, rest) = (subset.list_at(&["addresses"]), subset.list_at(&["notReadyAddresses"]));
    if ready.is_empty() && rest.is_empty() {
        errors.push(FieldError::required(at, "must specify `addresses` or `notReadyAddresses`"));
    }
    for (list, addresses) in [("addresses", ready), ("notReadyAddresses", rest)] {
        for (i, a) in addresses.iter().enumerate() {
            let at = format!("{at}.{list}[{i}]");
            let (ip, host, node) = (a.str_at(&["ip"]), a.str_at(&["hostname"]), a.at(&["nodeName"]).and_then(Value::as_str));
            let messages = address(ip);
            let bad = !messages.is_empty();
            invalid(errors, format_args!("{at}.ip"), ip, messages);
            if !host.is_empty() {
                invalid(errors, format_args!("{at}.hostname"), host, check::label(host));
            }
            if let Some(node) = node {
                invalid(errors, format_args!("{at}.nodeName"), node, check::subdomain(node));
            }
            if bad {
                errors.push(FieldError::invalid(format!("{at}.ip"), ip, "must be a valid IP address"));
            } else {
                invalid(errors, format_args!("{at}.ip"), ip, not_special(ip));
            }
        }
    }
    let ports = subset.list_at(&["ports"]);
    for (i, p) in ports.iter().enumerate() {
        let at = format!("{at}.ports[{i}]");
        match p.str_at(&["name"]) {
            "" if ports.len() > 1 => errors.push(FieldError::required(format!("{at}.name"), "")),
            "" => {}
            name => invalid(errors, format_args!("{at}.name"), name, check::label(name)),
        }
        let port = p.i64_at(&["port"]).unwrap_or(0);
        invalid_number(errors, format_args!("{at}.port"), port, check::port_number(port));
        match p.str_at(&["protocol"]) {
            "" => errors.push(FieldError::required(format!("{at}.protocol"), "")),
            protocol => one_of(errors, format_args!("{at}.protocol"), protocol, &["SCTP", "TCP", "UDP"]),
        }
        if let Some(application) = p.at(&["appProtocol"]).and_then(Value::as_str) {
            invalid(errors, format_args!("{at}.appProtocol"), application, check::qualified_name(application));
        }
    }
}

pub struct EndpointSlices;

impl Strategy for EndpointSlices {
    fn resource(&self) -> &'static Resource {
        &resource::ENDPOINTSLICES
    }
    fn default(&self, object: &mut Value) {
        each(object.make_map(&[]), "ports", |port| {
            port.insert_default("name", "");
            port.insert_default("protocol", "TCP");
        });
    }
    fn has_generation(&self) -> bool {
        true
    }
    fn prepare_create(&self, _: &Context, object: &mut Value) -> Result<()> {
        object.set(&["metadata", "generation"], 1);
        drop_hostname(object);
        Ok(())
    }
    fn prepare_update(&self, _: &Context, new: &mut Value, old: &Value) -> Result<()> {
        drop_hostname(new);
        count_generation(new, old);
        // Labels say which service a slice is of: they count too.
        let labels = |o: &Value| o.map_at(&["metadata", "labels"]).filter(|m| !m.is_empty()).cloned();
        let generation = old.i64_at(&["metadata", "generation"]).unwrap_or(0);
        if labels(new) != labels(old) {
            new.set(&["metadata", "generation"], generation + 1);
        }
        Ok(())
    }
    fn validate(&self, _: &Context, object: &Value) -> Vec<FieldError> {
        slice(object, None)
    }
    fn warnings(&self, _: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        let kind = object.str_at(&["addressType"]);
        let is_new = old.is_none_or(|o| o.str_at(&["addressType"]) != kind);
        if kind == "FQDN" && is_new { vec!["spec.addressType: FQDN endpoints are deprecated".to_string()] } else { Vec::new() }
    }
    fn validate_update(&self, _: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = slice(new, Some(old));
        check::immutable(&mut errors, "addressType", new.get("addressType"), old.get("addressType"));
        errors
    }
    fn columns(&self) -> &'static [Column] {
        const {
            &[
                Column::NAME,
                Column::new("AddressType", "string"),
                Column::new("Ports", "string"),
                Column::new("Endpoints", "string"),
                Column::AGE,
            ]
        }
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        let ports: Vec<String> = object
            .list_at(&["ports"])
            .iter()
            .map(|p| match (p.i64_at(&["port"]), p.str_at(&["name"])) {
                (Some(port), _) => port.to_string(),
                (None, _) if p.at(&["name"]).is_none() => "*".to_string(),
                (None, name) => name.to_string(),
            })
            .collect();
        let addresses = object.list_at(&["endpoints"]).iter().flat_map(|e| e.list_at(&["addresses"]));
        let addresses: Vec<String> = addresses.filter_map(Value::as_str).map(str::to_string).collect();
        vec![
            object.str_at(&["metadata", "name"]).into(),
            object.str_at(&["addressType"]).into(),
            some_of(&ports, "<unset>").into(),
            some_of(&addresses, "<unset>").into(),
            table::age(object, now).into(),
        ]
    }
}

/// `nodeName` took the place of this topology key.
fn drop_hostname(slice: &mut Value) {
    each(slice.make_map(&[]), "endpoints", |endpoint| {
        let Some(topology) = endpoint.get_mut("deprecatedTopology").and_then(Value::as_map_mut) else { return };
        topology.remove("kubernetes.io/hostname");
        if topology.is_empty() {
            endpoint.remove("deprecatedTopology");
        }
    });
}

const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;

/// Endpoints as they were in the old slice are not judged again.
fn slice(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = object.str_at(&["addressType"]);
    match kind {
        "" => errors.push(FieldError::required("addressType", "")),
        kind => one_of(&mut errors, "addressType", kind, &["FQDN", "IPv4", "IPv6"]),
    }
    let endpoints = object.list_at(&["endpoints"]);
    if endpoints.len() > ENDPOINTS_MAX {
        errors.push(FieldError::too_many("endpoints", endpoints.len(), ENDPOINTS_MAX));
    }
    let before = old.map_or(&[][..], |o| o.list_at(&["endpoints"]));
    for (i, endpoint) in endpoints.iter().take(ENDPOINTS_MAX).enumerate().filter(|(_, e)| !before.contains(e)) {
        self::endpoint(&mut errors, &format!("endpoints[{i}]"), endpoint, kind);
    }
    slice_ports(&mut errors, object.list_at(&["ports"]));
    errors
}

fn endpoint(errors: &mut Vec<FieldError>, at: &str, endpoint: &Value, kind: &str) {
    let addresses = endpoint.list_at(&["addresses"]);
    if addresses.is_empty() {
        errors.push(FieldError::required(format!("{at}.addresses"), "must contain at least 1 address"));
    } else if addresses.len() > ADDRESSES_MAX {
        errors.push(FieldError::too_many(format!("{at}.addresses"), addresses.len(), ADDRESSES_MAX));
    }
    for (i, a) in addresses.iter().enumerate() {
        let (each, a) = (format!("{at}.addresses[{i}]"), a.as_str().unwrap_or(""));
        match kind {
            "IPv4" | "IPv6" => {
                let messages = match address(a) {
                    messages if messages.is_empty() => check::canonical_ip(a),
                    messages => messages,
                };
                let valid = messages.is_empty();
                invalid(errors, &each, a, messages);
                let fits = a.parse::<IpAddr>().map_or(true, |ip| ip.is_ipv4() == (kind == "IPv4"));
                if valid && !fits {
                    errors.push(FieldError::invalid(format!("{at}.addresses"), a, format!("must be an {kind} address")));
                }
                if valid {
                    invalid(errors, &each, a, not_special(a));
                }
            }
            "FQDN" => invalid(errors, &each, a, check::subdomain(a)),
            _ => {}
        }
    }
    if let Some(node) = endpoint.at(&["nodeName"]).and_then(Value::as_str) {
        invalid(errors, format_args!("{at}.nodeName"), node, check::subdomain(node));
    }
    if let Some(host) = endpoint.at(&["hostname"]).and_then(Value::as_str) {
        invalid(errors, format_args!("{at}.hostname"), host, check::label(host));
    }
    check::labels(errors, format_args!("{at}.deprecatedTopology"), endpoint.at(&["deprecatedTopology"]));
    for (list, label) in [("forZones", true), ("forNodes", false)] {
        let mut seen = HashSet::new();
        for (i, hint) in endpoint.list_at(&["hints", list]).iter().enumerate() {
            let (at, name) = (format!("{at}.hints.{list}[{i}].name"), hint.str_at(&["name"]));
            if !seen.insert(name) {
                errors.push(FieldError::duplicate(at, name));
            } else {
                invalid(errors, &at, name, if label { check::label_value(name) } else { check::subdomain(name) });
            }
        }
    }
}

fn slice_ports(errors: &mut Vec<FieldError>, ports: &[Value]) {
    if ports.len() > PORTS_MAX {
        errors.push(FieldError::too_many("ports", ports.len(), PORTS_MAX));
        return;
    }
    let mut names = HashSet::new();
    for (i, p) in ports.iter().enumerate() {
        let (at, name) = (format!("ports[{i}]"), p.str_at(&["name"]));
        if !name.is_empty() {
            invalid(errors, format_args!("{at}.name"), name, check::label(name));
        }
        if !names.insert(name) {
            errors.push(FieldError::duplicate(format!("{at}.name"), name));
        }
        match p.at(&["protocol"]).and_then(Value::as_str) {
            None => errors.push(FieldError::required(format!("{at}.protocol"), "")),
            Some(protocol) => one_of(errors, format_args!("{at}.protocol"), protocol, &["SCTP", "TCP", "UDP"]),
        }
        if let Some(port) = p.i64_at(&["port"]) {
            invalid_number(errors, format_args!("{at}.port"), port, check::port_number(port));
        }
        if let Some(application) = p.at(&["appProtocol"]).and_then(Value::as_str) {
            invalid(errors, format_args!("{at}.appProtocol"), application, check::qualified_name(application));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn lists_are_cut_after_three() {
        let list = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
        assert_eq!(some_of(&list(0), "<unset>"), "<unset>");
        assert_eq!(some_of(&list(3), ""), "0,1,2");
        assert_eq!(some_of(&list(5), ""), "0,1,2 + 2 more...");
    }

    #[test]
    fn slices() {
        let texts = |object: Value| slice(&object, None).iter().map(FieldError::to_string).collect::<Vec<_>>();
        assert!(texts(value!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]})).is_empty());
        assert_eq!(texts(value!({"endpoints": []})), ["addressType: Required value"]);
        assert_eq!(
            texts(value!({"addressType": "IPv4", "endpoints": [{"addresses": []}]})),
            ["endpoints[0].addresses: Required value: must contain at least 1 address"]
        );
        assert_eq!(
            texts(value!({"addressType": "IPv4", "endpoints": [{"addresses": ["127.0.0.1"]}]})),
            ["endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)"]
        );
    }
}
