//! What each kind of name answers.

use super::*;

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

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local", vec!["10.43.0.0/16".parse().unwrap()]);
    let mut service = |name: &str, spec: serde_json::Value| {
        let value = convert(serde_json::json!({"spec": spec}));
        zone.set_service(&Name::new("default", name), Some(&value));
    };
    let ports = serde_json::json!([{"name": "http", "port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}]);
    service("web", serde_json::json!({"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"], "ports": ports}));
    service("db", serde_json::json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "sql", "port": 5432}]}));
    service("empty", serde_json::json!({"clusterIP": "None"}));
    service("out", serde_json::json!({"type": "ExternalName", "externalName": "Example.COM."}));
    let slice = serde_json::json!({
        "metadata": {"namespace": "default", "labels": {"kubernetes.io/service-name": "db"}}, "ports": [{"name": "sql", "port": 5432}],
        "endpoints": [{"addresses": ["10.42.0.5"], "hostname": "db-0"}, {"addresses": ["10.42.0.6"]},
            {"addresses": ["10.42.0.7"], "conditions": {"ready": false}}]
    });
    zone.set_slice(&Name::new("default", "db-1"), Some(&convert(slice)));
    zone
}

/// The data of the answer, one word each; a trailing `+` part for additional records.
fn show(name: &str, kind: Type) -> String {
    let word = |r: &Record| match &r.data {
        Data::Address(ip) => ip.to_string(),
        Data::Srv { weight, port, target } => format!("{weight}/{port}/{target}"),
        Data::Ptr(target) | Data::Ns(target) => target.clone(),
        Data::Txt(text) => text.clone(),
        Data::Soa => "soa".into(),
    };
    match zone().answer(name, kind) {
        Answer::Found { records, additional } => {
            let mut words: Vec<String> = records.iter().map(word).collect();
            words.extend(additional.iter().map(|r| format!("+{}={}", r.name, word(r))));
            words.join(" ")
        }
        Answer::Alias(to) => format!("-> {to}"),
        Answer::NoSuchName => "nxdomain".into(),
        Answer::Outside => "outside".into(),
    }
}

#[test]
fn names_follow_the_specification() {
    use Type::*;
    let web = "web.default.svc.cluster.local";
    for (name, kind, answer) in [
        (web, A, "10.43.0.9"),
        ("WEB.Default.svc.Cluster.Local", A, "10.43.0.9"),
        (web, Aaaa, ""),
        (web, Txt, ""),
        ("_http._tcp.web.default.svc.cluster.local", Srv, "100/80/web.default.svc.cluster.local +web.default.svc.cluster.local=10.43.0.9"),
        ("_dns._udp.web.default.svc.cluster.local", A, ""),
        ("_dns._tcp.web.default.svc.cluster.local", Srv, "nxdomain"),
        ("_tcp.web.default.svc.cluster.local", Srv, ""),
        ("nope.default.svc.cluster.local", A, "nxdomain"),
        ("web.other.svc.cluster.local", A, "nxdomain"),
        ("default.svc.cluster.local", A, ""),
        ("other.svc.cluster.local", A, "nxdomain"),
        ("svc.cluster.local", A, ""),
        ("db.default.svc.cluster.local", A, "10.42.0.5 10.42.0.6"),
        ("db-0.db.default.svc.cluster.local", A, "10.42.0.5"),
        ("10-42-0-6.db.default.svc.cluster.local", A, "10.42.0.6"),
        ("10-42-0-5.db.default.svc.cluster.local", A, "nxdomain"),
        ("empty.default.svc.cluster.local", A, "nxdomain"),
        ("out.default.svc.cluster.local", A, "-> example.com"),
        ("10-42-0-7.default.pod.cluster.local", A, "10.42.0.7"),
        ("10-42-0-7.default.pod.cluster.local", Aaaa, ""),
        ("nonsense.default.pod.cluster.local", A, "nxdomain"),
        ("9.0.43.10.in-addr.arpa", Ptr, "web.default.svc.cluster.local"),
        ("5.0.42.10.in-addr.arpa", Ptr, "db-0.db.default.svc.cluster.local"),
        ("8.0.43.10.in-addr.arpa", Ptr, "nxdomain"),
        ("1.1.1.1.in-addr.arpa", Ptr, "outside"),
        ("cluster.local", Soa, "soa"),
        ("cluster.local", A, ""),
        ("dns-version.cluster.local", Txt, "1.1.0"),
        ("mycluster.local", A, "outside"),
        ("example.com", A, "outside"),
        ("a.b.c.d.e.svc.cluster.local", A, "nxdomain"),
    ] {
        assert_eq!(show(name, kind), answer, "{name} {kind:?}");
    }
    assert_eq!(
        show("_sql._tcp.db.default.svc.cluster.local", Srv),
        "50/5432/10-42-0-6.db.default.svc.cluster.local 50/5432/db-0.db.default.svc.cluster.local \
         +10-42-0-6.db.default.svc.cluster.local=10.42.0.6 +db-0.db.default.svc.cluster.local=10.42.0.5"
    );
}

#[test]
fn what_is_removed_is_forgotten_everywhere() {
    let mut zone = zone();
    zone.set_service(&Name::new("default", "web"), None);
    zone.set_slice(&Name::new("default", "db-1"), None);
    for name in ["web.default.svc.cluster.local", "db.default.svc.cluster.local", "9.0.43.10.in-addr.arpa"] {
        assert_eq!(zone.answer(name, Type::Any), Answer::NoSuchName, "{name}");
    }
    assert_eq!(zone.answer("5.0.42.10.in-addr.arpa", Type::Ptr), Answer::Outside);
    for service in zone.service_names() {
        zone.set_service(&service, None);
    }
    assert!(zone.services.is_empty() && zone.service_at.is_empty() && zone.slices_of.is_empty() && zone.slices_at.is_empty());
}
