//! The networking group: ingresses and their classes, network policies, service CIDRs and the addresses taken from them.

use crate::api::resource;
use crate::api::value::Value;
use crate::server::cursor::At;
use crate::server::kinds::core::print_selector;
use crate::server::kinds::plain::{Cell, Plain, plain, string};
use crate::server::kinds::{core::pod_defaults, none};
use crate::server::strategy::{Column, NameRule};
use crate::server::validation;

pub fn rows() -> Vec<Plain> {
    vec![
        Plain {
            rules: ingress,
            status_rules: |new, old| {
                let known: Vec<&str> = ingress_points(old).iter().map(|i| i.get("ip").str()).collect();
                for point in ingress_points(new) {
                    let (ip, host) = (point.get("ip"), point.get("hostname"));
                    if !known.contains(&ip.str()) {
                        ip.may_be(validation::ip);
                    }
                    host.may_be(validation::subdomain);
                    no_address(&host);
                }
            },
            generation: true,
            warnings: |new, old| {
                const KEY: &str = "kubernetes.io/ingress.class";
                let annotated = old.is_none() && new.at(&["metadata", "annotations", KEY]).is_some();
                let text = || format!("annotation \"{KEY}\" is deprecated, please use 'spec.ingressClassName' instead");
                annotated.then(text).into_iter().collect()
            },
            ..plain(
                &resource::INGRESSES,
                const { &[Column::NAME, string("Class"), string("Hosts"), string("Address"), string("Ports"), Column::AGE] },
                &[
                    Cell::Name,
                    Cell::OrNone(&["spec", "ingressClassName"]),
                    Cell::Custom(|o, _| print_hosts(o).into()),
                    Cell::Custom(|o, _| print_addresses(o).into()),
                    Cell::Custom(|o, _| if o.list_at(&["spec", "tls"]).is_empty() { "80".into() } else { "80, 443".into() }),
                    Cell::Age,
                ],
            )
        },
        Plain {
            default: |o| {
                if let Some(parameters) = o.at_mut(&["spec", "parameters"]).and_then(Value::as_map_mut) {
                    parameters.insert_default("scope", "Cluster");
                }
            },
            rules: ingress_class,
            generation: true,
            ..plain(
                &resource::INGRESSCLASSES,
                const { &[Column::NAME, string("Controller"), string("Parameters"), Column::AGE] },
                &[
                    Cell::Name,
                    Cell::Text(&["spec", "controller"]),
                    Cell::Custom(|o, _| match o.at(&["spec", "parameters"]) {
                        None => "<none>".into(),
                        Some(p) => {
                            let (kind, group) = (p.str_at(&["kind"]), p.str_at(&["apiGroup"]));
                            let dot = if group.is_empty() { "" } else { "." };
                            format!("{kind}{dot}{group}/{}", p.str_at(&["name"])).into()
                        }
                    }),
                    Cell::Age,
                ],
            )
        },
        Plain {
            default: network_policy_defaults,
            rules: network_policy,
            generation: true,
            ..plain(
                &resource::NETWORKPOLICIES,
                const { &[Column::NAME, string("Pod-Selector"), Column::AGE] },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| print_selector(o.at(&["spec", "podSelector"]).unwrap_or(&Value::Null)).into()),
                    Cell::Age,
                ],
            )
        },
        Plain {
            rules: ip_address,
            name_rule: NameRule::Custom(|name, _| validation::canonical_ip(name)),
            acted_on: true,
            ..plain(
                &resource::IPADDRESSES,
                const { &[Column::NAME, string("ParentRef")] },
                &[Cell::Name, Cell::Custom(|o, _| print_parent(o).into()), Cell::Age],
            )
        },
        Plain {
            rules: service_cidr,
            acted_on: true,
            ..plain(
                &resource::SERVICECIDRS,
                const { &[Column::NAME, string("CIDRs"), Column::AGE] },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| {
                        let all: Vec<&str> = o.list_at(&["spec", "cidrs"]).iter().filter_map(Value::as_str).collect();
                        all.join(",").into()
                    }),
                    Cell::Age,
                ],
            )
        },
    ]
}

// --- what kubectl shows

fn print_hosts(ingress: &Value) -> String {
    const SHOWN_MAX: usize = 3;
    let hosts: Vec<&str> = ingress.list_at(&["spec", "rules"]).iter().map(|r| r.str_at(&["host"])).filter(|h| !h.is_empty()).collect();
    match hosts.len() {
        0 => "*".to_string(),
        n if n > SHOWN_MAX => format!("{} + {} more...", hosts[..SHOWN_MAX].join(","), n - SHOWN_MAX),
        _ => hosts.join(","),
    }
}

fn print_addresses(ingress: &Value) -> String {
    let points = ingress.list_at(&["status", "loadBalancer", "ingress"]);
    let text = |p: &Value| if p.str_at(&["ip"]).is_empty() { p.str_at(&["hostname"]).to_string() } else { p.str_at(&["ip"]).to_string() };
    points.iter().map(text).filter(|t| !t.is_empty()).collect::<Vec<_>>().join(",")
}

/// `services/default/web`.
fn print_parent(address: &Value) -> String {
    let part = |key: &str| address.str_at(&["spec", "parentRef", key]);
    let dot = if part("group").is_empty() { "" } else { "." };
    let resource = format!("{}{dot}{}", part("resource"), part("group"));
    let parts = [resource.as_str(), part("namespace"), part("name")];
    none(&parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("/"))
}

// --- ingresses

fn ingress_points<'a>(ingress: &At<'a>) -> Vec<At<'a>> {
    ingress.at(&["status", "loadBalancer", "ingress"]).each()
}

fn no_address(host: &At) {
    if validation::parse_ip(host.str()).is_some() {
        host.invalid("must be a DNS name, not an IP address");
    }
}

fn ingress(ingress: &At, old: Option<&At>) {
    let spec = ingress.get("spec");
    let (rules, backend, class) = (spec.get("rules"), spec.get("defaultBackend"), spec.get("ingressClassName"));
    if rules.is_empty() && !backend.is_set() {
        rules.called(spec.path).invalid("either `defaultBackend` or `rules` must be specified");
    }
    if backend.is_set() {
        ingress_backend(&backend);
    }
    for rule in rules.each() {
        let host = rule.get("host");
        if !host.is_empty() {
            no_address(&host);
            host.ok(if host.str().contains('*') { validation::wildcard_subdomain } else { validation::subdomain });
        }
        let http = rule.get("http");
        if http.is_set() {
            http.get("paths").must();
            http.get("paths").each().iter().for_each(ingress_path);
        }
    }
    let bad_secret = |o: &At| o.at(&["spec", "tls"]).each().iter().any(|t| !is_secret_name(t.get("secretName").str()));
    let tolerate = old.is_some_and(bad_secret);
    for tls in spec.get("tls").each() {
        for host in tls.get("hosts").each() {
            host.ok(if host.str().contains('*') { validation::wildcard_subdomain } else { validation::subdomain });
        }
        if !tolerate {
            tls.get("secretName").may_be(validation::subdomain);
        }
    }
    if class.is_set() {
        class.ok(validation::subdomain);
    }
    let annotated = ingress.at(&["metadata", "annotations", "kubernetes.io/ingress.class"]);
    if old.is_none() && annotated.is_set() && class.is_set() && annotated.str() != class.str() {
        let at = annotated.called("annotations.kubernetes.io/ingress.class");
        at.invalid("must match `ingressClassName` when both are specified");
    }
}

fn is_secret_name(name: &str) -> bool {
    name.is_empty() || validation::subdomain(name).is_empty()
}

fn ingress_path(at: &At) {
    let (kind, path) = (at.get("pathType"), at.get("path"));
    if !kind.is_set() {
        return kind.required("pathType must be specified");
    }
    let absolute = path.str().starts_with('/');
    match kind.str() {
        "Exact" | "Prefix" => {
            if !absolute {
                path.invalid_as(path.str(), "must be an absolute path");
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|s| path.str().contains(**s)) {
                path.invalid(format!("must not contain '{sequence}'"));
            }
            for suffix in ["/..", "/."].iter().filter(|s| path.str().ends_with(**s)) {
                path.invalid(format!("cannot end with '{suffix}'"));
            }
        }
        "ImplementationSpecific" if !path.is_empty() && !absolute => path.invalid("must be an absolute path"),
        "ImplementationSpecific" => {}
        _ => drop(kind.one_of(&["Exact", "ImplementationSpecific", "Prefix"])),
    }
    ingress_backend(&at.get("backend"));
}

fn ingress_backend(backend: &At) {
    let (resource, service) = (backend.get("resource"), backend.get("service"));
    match (resource.is_set(), service.is_set()) {
        (true, true) => backend.invalid_as("", "cannot set both resource and service backends"),
        (true, false) => typed_reference(&resource),
        (false, true) => {
            service.get("name").must_be(validation::label);
            let (name, number) = (service.at(&["port", "name"]), service.at(&["port", "number"]));
            match (!name.is_empty(), number.int() != 0) {
                (true, true) => backend.invalid_as("", "cannot set both port name & port number"),
                (true, false) => drop(name.ok(validation::port_name)),
                (false, true) => number.between(1, 65535),
                (false, false) => backend.required("port name or number is required"),
            }
        }
        (false, false) => backend.invalid_as("", "resource or service backend is required"),
    }
}

fn typed_reference(at: &At) {
    let group = at.get("apiGroup");
    if group.is_set() {
        group.ok(validation::subdomain);
    }
    at.get("kind").must_be(validation::segment);
    at.get("name").must_be(validation::segment);
}

fn ingress_class(class: &At, old: Option<&At>) {
    let spec = class.get("spec");
    let (controller, parameters) = (spec.get("controller"), spec.get("parameters"));
    if let Some(old) = old {
        controller.immutable(&old.at(&["spec", "controller"]));
    }
    if controller.len() > 250 {
        controller.too_long(250);
    }
    controller.domain_prefixed_path();
    if !parameters.is_set() {
        return;
    }
    typed_reference(&parameters);
    let (scope, namespace) = (parameters.get("scope"), parameters.get("namespace"));
    if !scope.is_set() {
        return scope.required("");
    }
    match scope.str() {
        "Namespace" if !namespace.is_set() => namespace.required("`parameters.scope` is set to 'Namespace'"),
        "Namespace" => drop(namespace.ok(validation::label)),
        "Cluster" if namespace.is_set() => namespace.forbidden("`parameters.scope` is set to 'Cluster'"),
        "Cluster" => {}
        _ => drop(scope.one_of(&["Cluster", "Namespace"])),
    }
}

// --- network policies

fn network_policy_defaults(object: &mut Value) {
    let has_egress = !object.list_at(&["spec", "egress"]).is_empty();
    let spec = object.make_map(&["spec"]);
    if spec.get("policyTypes").and_then(Value::as_list).is_none_or(<[Value]>::is_empty) {
        spec.insert("policyTypes", if has_egress { vec!["Ingress", "Egress"] } else { vec!["Ingress"] });
    }
    for direction in ["ingress", "egress"] {
        pod_defaults::each(spec, direction, |rule| {
            pod_defaults::each(rule, "ports", |port| port.insert_default("protocol", "TCP"));
        });
    }
}

fn network_policy(policy: &At, old: Option<&At>) {
    let spec = policy.get("spec");
    spec.get("podSelector").label_selector();
    let known: Vec<&str> = old.map_or_else(Vec::new, |o| {
        let peers = policy_peers(&o.get("spec"));
        let blocks = peers.iter().map(|p| p.get("ipBlock"));
        blocks.flat_map(|b| [b.get("cidr").str()].into_iter().chain(b.get("except").strings())).collect()
    });
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.get(direction).each() {
            rule.get("ports").each().iter().for_each(policy_port);
            rule.get(peers).each().iter().for_each(|p| policy_peer(p, &known));
        }
    }
    let types = spec.get("policyTypes");
    if types.len() > 2 {
        return types.invalid("may not specify more than two policyTypes");
    }
    for kind in types.each() {
        kind.one_of(&["Ingress", "Egress"]);
    }
}

fn policy_peers<'a>(spec: &At<'a>) -> Vec<At<'a>> {
    let of = |(direction, peers): (&'static str, &'static str)| -> Vec<At<'a>> {
        spec.get(direction).each().iter().flat_map(|r| r.get(peers).each()).collect()
    };
    [("ingress", "from"), ("egress", "to")].into_iter().flat_map(of).collect()
}

fn policy_port(at: &At) {
    let (port, end) = (at.get("port"), at.get("endPort"));
    at.get("protocol").maybe_one_of(&["TCP", "UDP", "SCTP"]);
    match port.value {
        Value::Int(n) => {
            port.between(1, 65535);
            if end.is_set() {
                if end.int() < *n {
                    end.invalid_as(*n, "must be greater than or equal to `port`");
                }
                end.between(1, 65535);
            }
        }
        Value::Str(name) => {
            if end.is_set() {
                end.invalid("may not be specified when `port` is non-numeric");
            }
            validation::port_name(name).into_iter().for_each(|m| port.invalid(m));
        }
        _ if end.is_set() => end.invalid("may not be specified when `port` is not specified"),
        _ => {}
    }
}

fn policy_peer(peer: &At, known: &[&str]) {
    let (pods, namespaces, block) = (peer.get("podSelector"), peer.get("namespaceSelector"), peer.get("ipBlock"));
    pods.label_selector();
    namespaces.label_selector();
    if block.is_set() {
        ip_block(&block, known);
    }
    let count = [&pods, &namespaces, &block].iter().filter(|p| p.is_set()).count();
    if count == 0 {
        peer.required("must specify a peer");
    } else if count > 1 && block.is_set() {
        peer.forbidden("may not specify both ipBlock and another peer");
    }
}

fn ip_block(block: &At, known: &[&str]) {
    let range = block.get("cidr");
    if !range.must() {
        return;
    }
    let check = |at: &At| {
        if !known.contains(&at.str()) {
            at.ok(validation::cidr);
        }
    };
    check(&range);
    let Some((address, length)) = validation::parse_cidr(range.str()) else { return };
    for except in block.get("except").each() {
        check(&except);
        let Some((inner, inner_length)) = validation::parse_cidr(except.str()) else { continue };
        let within = inner.is_ipv4() == address.is_ipv4()
            && validation::first_address(inner, length) == validation::first_address(address, length)
            && length < inner_length;
        if !within {
            except.invalid("must be a strict subset of `cidr`");
        }
    }
}

// --- service addresses

fn ip_address(address: &At, old: Option<&At>) {
    let parent = address.at(&["spec", "parentRef"]);
    if let Some(old) = old {
        return parent.immutable(&old.at(&["spec", "parentRef"]));
    }
    if !parent.is_set() {
        return parent.required("");
    }
    parent.get("group").may_be(validation::subdomain);
    parent.get("resource").must_be(validation::segment);
    parent.get("name").must_be(validation::segment);
    parent.get("namespace").may_be(validation::segment);
}

fn service_cidr(object: &At, old: Option<&At>) {
    let ranges = object.at(&["spec", "cidrs"]);
    let Some(old) = old else { return service_ranges(&ranges) };
    let before = old.at(&["spec", "cidrs"]);
    let changed = |at: &At, was: &str| {
        if at.str() != was {
            at.invalid(validation::IMMUTABLE);
        }
    };
    match (before.len(), ranges.len()) {
        (a, b) if a == b => ranges.each().iter().zip(before.strings()).for_each(|(at, was)| changed(at, was)),
        (1, 2) => {
            changed(&ranges.each()[0], before.strings()[0]);
            service_ranges(&ranges);
        }
        _ => ranges.invalid(validation::IMMUTABLE),
    }
}

fn service_ranges(ranges: &At) {
    ranges.must_because("at least one CIDR required");
    if ranges.len() > 2 {
        ranges.invalid("may only hold up to 2 values");
    }
    for range in ranges.each() {
        range.ok(validation::canonical_cidr);
    }
    let families: Vec<Option<bool>> = ranges.strings().iter().map(|r| validation::parse_cidr(r).map(|(ip, _)| ip.is_ipv4())).collect();
    if let [Some(a), Some(b)] = families[..]
        && a == b
    {
        ranges.invalid("may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64");
    }
}
