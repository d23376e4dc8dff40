//! Pure: what makes a Service valid, in upstream's words.

use std::collections::HashSet;
use std::net::IpAddr;

use super::services::is_external;
use crate::api::status::FieldError;
use crate::api::value::Value;
use crate::server::validation::{self as check, invalid, invalid_number, one_of};

type Errors = Vec<FieldError>;

const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

pub fn service(service: &Value) -> Errors {
    let mut errors = Errors::new();
    body(&mut errors, service);
    errors
}

/// The same: allocation only fills gaps validation does not ask about.
pub fn before_allocation(service: &Value) -> Errors {
    self::service(service)
}

pub fn update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    // Addresses are seen to before anything else is looked at.
    if let Some(spec) = new.get("spec").filter(|s| s.str_at(&["type"]) != "ExternalName") {
        cluster_ips(&mut errors, spec, spec.str_at(&["type"]));
        families(&mut errors, spec, spec.str_at(&["type"]));
        if !errors.is_empty() {
            return errors;
        }
    }
    let kind = |s: &Value| s.str_at(&["spec", "type"]).to_string();
    let (was, is) = (old.list_at(&["spec", "clusterIPs"]), new.list_at(&["spec", "clusterIPs"]));
    let keeps = kind(old) != "ExternalName" && kind(new) != "ExternalName";
    if let (true, Some(first)) = (keeps, was.first()) {
        if !is.is_empty() && is.first() != Some(first) {
            errors.push(FieldError::invalid("spec.clusterIPs[0]", is.to_vec(), "may not change once set"));
        }
        if was.len() == 2 && is.len() == 2 && was[1] != is[1] {
            errors.push(FieldError::invalid("spec.clusterIPs[1]", is.to_vec(), "may not change once set"));
        }
    }
    let balanced = kind(new) == "LoadBalancer" && kind(old) == "LoadBalancer";
    if balanced && new.at(&["spec", "loadBalancerClass"]) != old.at(&["spec", "loadBalancerClass"]) {
        let class = new.str_at(&["spec", "loadBalancerClass"]);
        errors.push(FieldError::invalid("spec.loadBalancerClass", class, "may not change once set"));
    }
    body(&mut errors, new);
    errors
}

fn body(errors: &mut Errors, service: &Value) {
    let empty = Value::map();
    let spec = service.get("spec").unwrap_or(&empty);
    let text = |key: &str| spec.str_at(&[key]);
    let kind = text("type");
    let headless = text("clusterIP") == "None";
    if spec.list_at(&["ports"]).is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    match kind {
        "NodePort" | "LoadBalancer" if headless => {
            errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", format!("may not be set to 'None' for {kind} services")));
        }
        "ExternalName" => {
            if text("externalName").is_empty() {
                errors.push(FieldError::required("spec.externalName", ""));
            } else {
                let name = text("externalName").strip_suffix('.').unwrap_or(text("externalName"));
                invalid(errors, "spec.externalName", name, check::subdomain(name));
            }
            if !text("clusterIP").is_empty() {
                errors.push(FieldError::forbidden("spec.clusterIPs", "may not be set for ExternalName services"));
            }
        }
        _ => {}
    }
    ports(errors, spec, kind, headless);
    check::labels(errors, "spec.selector", spec.at(&["selector"]));
    one_of(errors, "spec.sessionAffinity", text("sessionAffinity"), &["ClientIP", "None"]);
    affinity(errors, spec);
    cluster_ips(errors, spec, kind);
    families(errors, spec, kind);
    external_ips(errors, spec.list_at(&["externalIPs"]));
    one_of(errors, "spec.type", kind, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    load_balancer(errors, spec, kind);
    traffic(errors, service, spec, kind);
}

fn ports(errors: &mut Errors, spec: &Value, kind: &str, headless: bool) {
    let ports = spec.list_at(&["ports"]);
    let (mut names, mut numbers, mut nodes) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (i, p) in ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        let (name, protocol) = (p.str_at(&["name"]), p.str_at(&["protocol"]));
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(FieldError::required(format!("{at}.name"), ""));
            }
        } else {
            invalid(errors, format_args!("{at}.name"), name, check::label(name));
            if !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), name));
            }
        }
        let port = p.i64_at(&["port"]).unwrap_or(0);
        invalid_number(errors, format_args!("{at}.port"), port, check::port_number(port));
        match protocol {
            "" => errors.push(FieldError::required(format!("{at}.protocol"), "")),
            _ => one_of(errors, format_args!("{at}.protocol"), protocol, &["SCTP", "TCP", "UDP"]),
        }
        match p.get("targetPort") {
            Some(Value::Int(n)) => invalid_number(errors, format_args!("{at}.targetPort"), *n, check::port_number(*n)),
            Some(Value::Str(s)) => invalid(errors, format_args!("{at}.targetPort"), s, check::port_name(s)),
            _ => {}
        }
        let application = p.str_at(&["appProtocol"]);
        if !application.is_empty() {
            invalid(errors, format_args!("{at}.appProtocol"), application, check::qualified_name(application));
        }
        let node = p.i64_at(&["nodePort"]).unwrap_or(0);
        if node != 0 {
            if matches!(kind, "ClusterIP" | "ExternalName") {
                let why = format!("may not be used when `type` is '{kind}'");
                errors.push(FieldError::forbidden(format!("{at}.nodePort"), why));
            } else if !nodes.insert((protocol, node)) {
                errors.push(FieldError::duplicate(format!("{at}.nodePort"), node));
            }
        }
        if !numbers.insert((protocol, port)) && !headless {
            // Only what makes ports the same is compared; the rest is shown as nothing.
            let shown = format!(
                "{{\"Name\":\"\",\"Protocol\":{},\"AppProtocol\":null,\"Port\":{port},\"TargetPort\":0,\"NodePort\":0}}",
                Value::from(protocol)
            );
            errors.push(check::shown_as(FieldError::duplicate(at, ""), shown));
        }
    }
}

fn affinity(errors: &mut Errors, spec: &Value) {
    if spec.str_at(&["sessionAffinity"]) != "ClientIP" {
        return;
    }
    const AT: &str = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    match spec.i64_at(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"]) {
        Some(1..=86400) => {}
        Some(n) => errors.push(FieldError::invalid(AT, n, "must be greater than 0 and less than 86400")),
        None => errors.push(FieldError::required(AT, "")),
    }
}

fn cluster_ips(errors: &mut Errors, spec: &Value, kind: &str) {
    if kind == "ExternalName" {
        return;
    }
    let one = spec.str_at(&["clusterIP"]);
    let many: Vec<&str> = spec.list_at(&["clusterIPs"]).iter().filter_map(Value::as_str).collect();
    let list = || spec.at(&["clusterIPs"]).cloned().unwrap_or_default();
    if many.is_empty() {
        return;
    }
    if one.is_empty() {
        errors.push(FieldError::invalid("spec.clusterIPs", list(), "must be empty when `clusterIP` is not specified"));
    } else if many[0] != one {
        errors.push(FieldError::invalid("spec.clusterIPs", list(), "first value must match `clusterIP`"));
    }
    let before = errors.len();
    for (i, ip) in many.iter().enumerate() {
        match (i, *ip) {
            (0, "None") if many.len() > 1 => {
                errors.push(FieldError::invalid("spec.clusterIPs", list(), "'None' must be the first and only value"));
            }
            (0, "None") => {}
            (i, ip) => invalid(errors, format_args!("spec.clusterIPs[{i}]"), ip, address(ip)),
        }
    }
    let are_addresses = errors.len() == before;
    if many.len() > 2 {
        errors.push(FieldError::invalid("spec.clusterIPs", list(), "may only hold up to 2 values"));
    }
    // Families can be told of addresses only.
    if !are_addresses {
        return;
    }
    let parsed: Vec<(&str, &str)> =
        many.iter().filter_map(|text| Some((*text, if text.parse::<IpAddr>().ok()?.is_ipv4() { "IPv4" } else { "IPv6" }))).collect();
    if parsed.len() > 1 && parsed.iter().all(|(_, family)| *family == parsed[0].1) {
        let why = "may specify no more than one IP for each IP family, i.e. at most one IPv4 and at most one IPv6 address";
        errors.push(FieldError::invalid("spec.clusterIPs", list(), why));
    }
    let families = spec.list_at(&["ipFamilies"]).iter().filter_map(Value::as_str);
    for (i, ((ip, is), wanted)) in parsed.iter().zip(families).enumerate() {
        if matches!(wanted, "IPv4" | "IPv6") && *is != wanted {
            let why = format!("expected an {wanted} value as indicated by `ipFamilies[{i}]`");
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{i}]"), *ip, why));
        }
    }
}

/// Like [`check::ip`], with a word on leading zeros.
pub fn address(ip: &str) -> Vec<String> {
    let relaxed: String =
        ip.split('.').map(|part| part.trim_start_matches('0')).map(|p| if p.is_empty() { "0" } else { p }).collect::<Vec<_>>().join(".");
    if ip.parse::<IpAddr>().is_err() && !ip.contains(':') && ip.split('.').count() == 4 && relaxed.parse::<IpAddr>().is_ok() {
        return vec!["must not have leading 0s".to_string()];
    }
    check::ip(ip)
}

fn families(errors: &mut Errors, spec: &Value, kind: &str) {
    let policy = spec.str_at(&["ipFamilyPolicy"]);
    let families: Vec<&str> = spec.list_at(&["ipFamilies"]).iter().filter_map(Value::as_str).collect();
    if kind == "ExternalName" {
        if !policy.is_empty() {
            errors.push(FieldError::forbidden("spec.ipFamilyPolicy", "may not be set for ExternalName services"));
        }
        if !families.is_empty() {
            errors.push(FieldError::forbidden("spec.ipFamilies", "may not be set for ExternalName services"));
        }
        return;
    }
    let mut seen = HashSet::new();
    for (i, family) in families.iter().enumerate() {
        let at = format!("spec.ipFamilies[{i}]");
        if !matches!(*family, "IPv4" | "IPv6") {
            errors.push(FieldError::not_supported(at, *family, &["IPv4", "IPv6"]));
        } else if !seen.insert(family) {
            errors.push(FieldError::duplicate(at, *family));
        }
    }
    if spec.at(&["ipFamilyPolicy"]).is_some() {
        one_of(errors, "spec.ipFamilyPolicy", policy, &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    }
    if policy == "SingleStack" && families.len() == 2 && seen.len() == 2 {
        let why = "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", policy, why));
    }
}

fn external_ips(errors: &mut Errors, ips: &[Value]) {
    for (i, ip) in ips.iter().enumerate() {
        let (at, ip) = (format!("spec.externalIPs[{i}]"), ip.as_str().unwrap_or(""));
        let messages = address(ip);
        if messages.is_empty() {
            invalid(errors, &at, ip, not_special(ip));
        } else {
            invalid(errors, &at, ip, messages);
        }
    }
}

/// Addresses that mean this machine, or no machine.
pub fn not_special(ip: &str) -> Vec<String> {
    let Ok(parsed) = ip.parse::<IpAddr>() else { return Vec::new() };
    let link_local = match parsed {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    };
    let link_local_multicast = match parsed {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let mut messages = Vec::new();
    if parsed.is_unspecified() {
        messages.push(format!("may not be unspecified ({ip})"));
    }
    if parsed.is_loopback() {
        messages.push("may not be in the loopback range (127.0.0.0/8, ::1/128)".to_string());
    }
    if link_local {
        messages.push("may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_string());
    }
    if link_local_multicast {
        messages.push("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_string());
    }
    messages
}

fn load_balancer(errors: &mut Errors, spec: &Value, kind: &str) {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let ranges = spec.list_at(&["loadBalancerSourceRanges"]);
    if kind != "LoadBalancer" {
        if !ranges.is_empty() {
            errors.push(FieldError::forbidden("spec.LoadBalancerSourceRanges", ONLY));
        }
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec.at(&[key]).is_some() {
                errors.push(FieldError::forbidden(format!("spec.{key}"), ONLY));
            }
        }
        return;
    }
    for (i, range) in ranges.iter().enumerate() {
        let range = range.as_str().unwrap_or("").trim();
        if range.parse::<crate::api::cidr::Cidr>().is_err() {
            errors.push(FieldError::invalid(format!("spec.LoadBalancerSourceRanges[{i}]"), range, CIDR));
        }
    }
    if spec.at(&["allocateLoadBalancerNodePorts"]).is_none() {
        errors.push(FieldError::required("spec.allocateLoadBalancerNodePorts", ""));
    }
    if let Some(class) = spec.at(&["loadBalancerClass"]).and_then(Value::as_str) {
        invalid(errors, "spec.loadBalancerClass", class, check::qualified_name(class));
    }
}

fn traffic(errors: &mut Errors, service: &Value, spec: &Value, kind: &str) {
    let external = spec.str_at(&["externalTrafficPolicy"]);
    if is_external(service) {
        match external {
            "" => errors.push(FieldError::required("spec.externalTrafficPolicy", "")),
            policy => one_of(errors, "spec.externalTrafficPolicy", policy, &["Cluster", "Local"]),
        }
    } else if !external.is_empty() {
        errors.push(FieldError::invalid("spec.externalTrafficPolicy", external, "may only be set for externally-accessible services"));
    }
    let health = spec.i64_at(&["healthCheckNodePort"]).unwrap_or(0);
    if health != 0 && !(kind == "LoadBalancer" && external == "Local") {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid("spec.healthCheckNodePort", health, why));
    }
    if kind != "ExternalName" {
        match spec.at(&["internalTrafficPolicy"]).and_then(Value::as_str) {
            None if matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") => {
                errors.push(FieldError::required("spec.internalTrafficPolicy", ""));
            }
            None => {}
            Some(policy) => one_of(errors, "spec.internalTrafficPolicy", policy, &["Cluster", "Local"]),
        }
    }
    if let Some(distribution) = spec.at(&["trafficDistribution"]).and_then(Value::as_str) {
        let known = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        one_of(errors, "spec.trafficDistribution", distribution, &known);
    }
}

/// `/status`.
pub fn status(service: &Value) -> Errors {
    let mut errors = Errors::new();
    let ingress = service.list_at(&["status", "loadBalancer", "ingress"]);
    if !ingress.is_empty() && service.str_at(&["spec", "type"]) != "LoadBalancer" {
        errors.push(FieldError::forbidden("status.loadBalancer.ingress", "may only be used when `spec.type` is 'LoadBalancer'"));
        return errors;
    }
    for (i, entry) in ingress.iter().enumerate() {
        let at = format!("status.loadBalancer.ingress[{i}]");
        let (ip, host) = (entry.str_at(&["ip"]), entry.str_at(&["hostname"]));
        let mode = entry.at(&["ipMode"]).and_then(Value::as_str);
        if !ip.is_empty() {
            invalid(&mut errors, format_args!("{at}.ip"), ip, address(ip));
        }
        match (mode, ip) {
            (Some(_), "") => errors.push(FieldError::forbidden(format!("{at}.ipMode"), "may not be specified when `ip` is not set")),
            (None, "") => {}
            (None, _) => errors.push(FieldError::required(format!("{at}.ipMode"), "must be specified when `ip` is set")),
            (Some(mode), _) => one_of(&mut errors, format_args!("{at}.ipMode"), mode, &["Proxy", "VIP"]),
        }
        if !host.is_empty() {
            invalid(&mut errors, format_args!("{at}.hostname"), host, check::subdomain(host));
            if host.parse::<IpAddr>().is_ok() {
                errors.push(FieldError::invalid(format!("{at}.hostname"), host, "must be a DNS name, not an IP address"));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn complaints() {
        let texts = |extra: Value| {
            let mut s = value!({"spec": {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}});
            for (key, v) in extra.as_map().unwrap().iter() {
                s.set(&["spec", key], v.clone());
            }
            service(&s).iter().map(FieldError::to_string).collect::<Vec<_>>()
        };
        assert_eq!(texts(value!({})), Vec::<String>::new());
        let cases = [
            (value!({"ports": []}), "spec.ports: Required value"),
            (
                value!({"clusterIP": "x", "clusterIPs": ["x"]}),
                "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
            (
                value!({"clusterIP": "10.0.008.9", "clusterIPs": ["10.0.008.9"]}),
                "spec.clusterIPs[0]: Invalid value: \"10.0.008.9\": must not have leading 0s",
            ),
            (
                value!({"type": "X"}),
                "spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ),
            (
                value!({"externalTrafficPolicy": "Local"}),
                "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
            ),
            (
                value!({"ports": [{"port": 80, "protocol": "TCP", "nodePort": 31999}]}),
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            ),
            (
                value!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6", "IPv4"]}),
                "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
            ),
        ];
        for (extra, want) in cases {
            assert_eq!(texts(extra.clone()), [want], "{extra}");
        }
    }
}
