//! Which lists, refusals and masquerades a service becomes.

use super::*;

fn ip(s: &str) -> Ipv4Addr {
    s.parse().unwrap()
}

fn ep(s: &str) -> Endpoint {
    let (ip, port) = s.split_once(':').unwrap();
    (ip.parse().unwrap(), port.parse().unwrap())
}

fn set(list: &[&str]) -> BTreeSet<Endpoint> {
    list.iter().map(|s| ep(s)).collect()
}

#[test]
fn survivors_keep_their_slots() {
    let before = [ep("1.0.0.1:1"), ep("1.0.0.2:1"), ep("1.0.0.3:1"), ep("1.0.0.4:1")];
    // A hole is filled by a newcomer.
    let after = assign(&before, &set(&["1.0.0.1:1", "1.0.0.3:1", "1.0.0.4:1", "1.0.0.9:1"]));
    assert_eq!(after, [before[0], ep("1.0.0.9:1"), before[2], before[3]]);
    // A hole without a newcomer takes the last.
    let after = assign(&before, &set(&["1.0.0.1:1", "1.0.0.3:1", "1.0.0.4:1"]));
    assert_eq!(after, [before[0], before[3], before[2]]);
    let after = assign(&before, &set(&["1.0.0.2:1"]));
    assert_eq!(after, [before[1]]);
    assert!(assign(&before, &set(&[])).is_empty());
    assert_eq!(assign(&[], &set(&["1.0.0.2:1", "1.0.0.1:1"])), [before[0], before[1]]);
}

fn facts() -> Facts {
    let cidr = |s: &str| s.parse().unwrap();
    Facts { node: "n1".into(), pod_cidr: cidr("10.42.0.0/24"), cluster_cidr: cidr("10.42.0.0/16"), service_cidr: cidr("10.43.0.0/16") }
}

fn service() -> Service {
    Service {
        name: Name::new("default", "web"),
        cluster_ips: vec![ip("10.43.0.9")],
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        ..Service::default()
    }
}

fn slice(endpoints: &[(&str, &str, &str)]) -> Slice {
    let endpoint = |(address, state, node): &(&str, &str, &str)| SliceEndpoint {
        ip: ip(address),
        ready: *state == "ready",
        draining: *state == "draining",
        node: node.to_string(),
    };
    Slice {
        service: Name::new("default", "web"),
        ports: vec![("http".into(), Protocol::Tcp, 8080), ("http".into(), Protocol::Udp, 9999)],
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

/// One line per list: bank, frontend, endpoints; plus lines for refused and dropped frontends and masqueraded ones.
fn show(fragment: &Fragment) -> Vec<String> {
    let mut lines: Vec<String> = fragment
        .lists
        .iter()
        .map(|((bank, f), list)| {
            let to: Vec<String> = list.endpoints.iter().map(|(ip, port)| format!("{ip}:{port}")).collect();
            let at = f.ip.map_or("*".to_string(), |ip| ip.to_string());
            format!("{bank:?} {at}:{} -> {}", f.port, to.join(" "))
        })
        .collect();
    for ((set, _), datum) in &fragment.rules.elements {
        match datum {
            Datum::Verdict(Verdict::Goto(chain)) if **chain == *"refuse" => lines.push(format!("{set} refuses")),
            Datum::Verdict(Verdict::Drop) => lines.push(format!("{set} drops")),
            Datum::Nothing if set.starts_with("masq") => lines.push(format!("in {set}")),
            Datum::Nothing | Datum::Verdict(_) | Datum::Value(_) | Datum::Until(_) => {}
        }
    }
    lines
}

fn fragment_of(service: &Service, slices: &[Slice]) -> Fragment {
    let slices: Vec<&Slice> = slices.iter().collect();
    fragment(service, &slices, &facts(), &BTreeSet::new(), &Fragment::default())
}

#[test]
fn ready_endpoints_win_then_draining_ones_then_refusal() {
    let s = service();
    let all = slice(&[("10.42.0.2", "ready", "n1"), ("10.42.1.2", "draining", "n2"), ("10.42.0.3", "dead", "n1")]);
    assert_eq!(show(&fragment_of(&s, &[all])), ["Address 10.43.0.9:80 -> 10.42.0.2:8080"]);
    let draining = slice(&[("10.42.1.2", "draining", "n2"), ("10.42.0.3", "dead", "n1")]);
    assert_eq!(show(&fragment_of(&s, &[draining])), ["Address 10.43.0.9:80 -> 10.42.1.2:8080"]);
    assert_eq!(show(&fragment_of(&s, &[])), ["Address 10.43.0.9:80 -> ", "no_endpoints4 refuses"]);
}

#[test]
fn slices_add_up_and_ports_match_by_name_and_protocol() {
    let mut s = service();
    s.ports[0].name = "other".into();
    assert_eq!(show(&fragment_of(&s, &[slice(&[("10.42.0.2", "ready", "n1")])]))[1], "no_endpoints4 refuses");
    let one = slice(&[("10.42.0.2", "ready", "n1"), ("10.42.0.4", "ready", "n1")]);
    let two = slice(&[("10.42.0.4", "ready", "n1"), ("10.42.0.3", "ready", "n1")]);
    let lines = show(&fragment_of(&service(), &[one, two]));
    assert_eq!(lines, ["Address 10.43.0.9:80 -> 10.42.0.2:8080 10.42.0.3:8080 10.42.0.4:8080"]);
}

#[test]
fn external_local_keeps_far_clients_on_this_node() {
    let mut s = service();
    s.external_local = true;
    s.load_balancer_ips = vec![ip("192.0.2.1")];
    s.ports[0].node_port = Some(30080);
    let both = [slice(&[("10.42.0.2", "ready", "n1"), ("10.42.1.2", "ready", "n2")])];
    assert_eq!(
        show(&fragment_of(&s, &both)),
        [
            "Address 10.43.0.9:80 -> 10.42.0.2:8080 10.42.1.2:8080",
            "Address 192.0.2.1:80 -> 10.42.0.2:8080",
            "NearAddress 192.0.2.1:80 -> 10.42.0.2:8080 10.42.1.2:8080",
            "Port *:30080 -> 10.42.0.2:8080",
            "NearPort *:30080 -> 10.42.0.2:8080 10.42.1.2:8080",
        ]
    );
    let far = [slice(&[("10.42.1.2", "ready", "n2")])];
    let lines = show(&fragment_of(&s, &far));
    assert!(lines.contains(&"svc4 drops".to_string()) && lines.contains(&"nodeports4 drops".to_string()), "{lines:?}");
    assert!(!lines.iter().any(|l| l.ends_with("refuses")), "{lines:?}");
}

#[test]
fn external_cluster_is_masqueraded_and_internal_local_is_not_external() {
    let mut s = service();
    s.internal_local = true;
    s.external_ips = vec![ip("192.0.2.7")];
    s.ports[0].node_port = Some(30080);
    let far = [slice(&[("10.42.1.2", "ready", "n2")])];
    assert_eq!(
        show(&fragment_of(&s, &far)),
        [
            "Address 10.43.0.9:80 -> ",
            "Address 192.0.2.7:80 -> 10.42.1.2:8080",
            "Port *:30080 -> 10.42.1.2:8080",
            "in masq_nodeports_tcp4",
            "in masq_tcp4",
            "svc4 drops",
        ]
    );
}

#[test]
fn affinity_needs_a_chain_per_endpoint_and_no_slots() {
    let mut s = service();
    s.affinity_seconds = Some(60);
    let f = fragment_of(&s, &[slice(&[("10.42.0.2", "ready", "n1"), ("10.42.1.2", "ready", "n2")])]);
    assert_eq!((f.rules.sets.len(), f.rules.chains.len(), f.classes().count()), (2, 3, 0));
    assert!(f.rules.sets.values().all(|set| set.timeout_ms == Some(60_000)));
    // Another timeout makes other sets: declarations never change in place.
    s.affinity_seconds = Some(61);
    let g = fragment_of(&s, &[slice(&[("10.42.0.2", "ready", "n1")])]);
    assert!(g.rules.sets.keys().all(|name| !f.rules.sets.contains_key(name)));
}

#[test]
fn what_belongs_to_another_is_left_alone() {
    let s = service();
    let slices = slice(&[("10.42.0.2", "ready", "n1")]);
    let f = fragment(&s, &[&slices], &facts(), &s.frontends(), &Fragment::default());
    assert!(f.lists.is_empty());
}

fn parse(yaml: &str) -> Value {
    fn convert(v: serde_json::Value) -> Value {
        match v {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(b) => b.into(),
            serde_json::Value::Number(n) => n.as_i64().unwrap().into(),
            serde_json::Value::String(s) => s.into(),
            serde_json::Value::Array(l) => Value::List(l.into_iter().map(convert).collect()),
            serde_json::Value::Object(m) => Value::Map(m.into_iter().map(|(k, v)| (k, convert(v))).collect()),
        }
    }
    convert(serde_json::from_str(yaml).unwrap())
}

#[test]
fn objects_are_read() {
    let v = parse(
        r#"{"metadata":{"namespace":"a","name":"b"},"spec":{"type":"LoadBalancer","clusterIPs":["10.43.1.1","fd00::1"],
        "ports":[{"port":80,"nodePort":30001},{"name":"d","protocol":"UDP","port":53}],"externalIPs":["192.0.2.9"],
        "sessionAffinity":"ClientIP","externalTrafficPolicy":"Local","loadBalancerSourceRanges":["10.0.0.0/8","10.1.0.0/16"]},
        "status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"},{"ip":"192.0.2.2","ipMode":"Proxy"},{"hostname":"x"}]}}}"#,
    );
    let s = Service::parse(&v).unwrap();
    assert_eq!(s.name, Name::new("a", "b"));
    assert_eq!((s.affinity_seconds, s.external_local, s.internal_local), (Some(10_800), true, false));
    assert_eq!((s.load_balancer_ips.len(), s.source_ranges.len(), s.ports.len()), (1, 1, 2));
    assert_eq!(s.frontends().len(), 7);
    assert_eq!(Service::parse(&parse(r#"{"spec":{"clusterIP":"None"}}"#)), None);
    assert_eq!(Service::parse(&parse(r#"{"spec":{"type":"ExternalName","clusterIP":""}}"#)), None);
    let v = parse(
        r#"{"metadata":{"namespace":"a","name":"b-1","labels":{"kubernetes.io/service-name":"b"}},"addressType":"IPv4",
        "ports":[{"name":"","port":8080,"protocol":"TCP"},{"name":"all"}],"endpoints":[
        {"addresses":["10.42.0.5"]},{"addresses":["10.42.0.6"],"conditions":{"ready":false,"serving":true,"terminating":true},"nodeName":"n1"},
        {"addresses":["10.42.0.7"],"conditions":{"ready":false}}]}"#,
    );
    let s = Slice::parse(&v).unwrap();
    assert_eq!((s.service, s.ports.len()), (Name::new("a", "b"), 1));
    let states: Vec<_> = s.endpoints.iter().map(|e| (e.ready, e.draining)).collect();
    assert_eq!(states, [(true, false), (false, true), (false, false)]);
}
