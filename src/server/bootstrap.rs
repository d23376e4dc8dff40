//! What a cluster has from the first moment: namespaces, RBAC policy, priority classes, flow control, the `kubernetes` and
//! DNS Services. Written through the ordinary pipeline as `system:masters`, before controllers start.
//!
//! Everything is created only if missing; RBAC is reconciled (rules and subjects we ship are added back unless the object
//! opts out), and the endpoints of Service `kubernetes` are made to say where this server is. The facts stand in
//! `bootstrap/*.tsv`. Start at [`run`].

use futures_util::stream::{self, StreamExt};

use crate::api::client::Client;
use crate::api::resource::{self, Resource};
use crate::api::status::{Result, Status};
use crate::api::value::Value;
use crate::server::auth::rbac::{self, Rule};
use crate::server::strategy::Cluster;
use crate::value;

const RBAC: &str = include_str!("bootstrap/rbac.tsv");
const FLOW_CONTROL: &str = include_str!("bootstrap/flowcontrol.tsv");
const API_SERVICES: &str = include_str!("bootstrap/apiservices.tsv");
const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// Requests in flight at once: raft's group commit shares their fsyncs.
const CONCURRENCY: usize = 32;

/// One object to be there.
#[derive(Clone, Debug)]
struct Wanted {
    resource: &'static Resource,
    object: Value,
}

/// Makes everything be there. `client` acts for a member of `system:masters`; `dns` is the address of the DNS Service.
pub async fn run(client: &Client, cluster: &Cluster, dns: &str) -> Result<()> {
    // Others need their namespaces, and the Services their addresses before anybody else takes them.
    create_all(client, namespaces()).await?;
    if let Some(range) = service_cidr(cluster) {
        create_all(client, vec![range]).await?;
    }
    create_all(client, services(cluster, dns)).await?;
    create_all(client, rbac_objects(RBAC)).await?;
    let mut rest = priority_classes();
    rest.extend(flow_control());
    rest.extend(api_services());
    rest.push(authentication_config(cluster));
    create_all(client, rest).await?;
    reconcile_endpoints(client, cluster).await
}

async fn create_all(client: &Client, wanted: Vec<Wanted>) -> Result<()> {
    let mut results = stream::iter(wanted).map(|w| ensure(client, w)).buffer_unordered(CONCURRENCY);
    while let Some(result) = results.next().await {
        result?;
    }
    Ok(())
}

async fn ensure(client: &Client, wanted: Wanted) -> Result<()> {
    let (namespace, name) = place(&wanted.object);
    match client.get(wanted.resource, &namespace, &name).await {
        Err(status) if status.code == 404 => {}
        Err(status) => return Err(status),
        Ok(found) => {
            return match reconciled(&wanted, &found.value()) {
                Some(better) => client.update(wanted.resource, "", better).await.map(|_| ()),
                None => Ok(()),
            };
        }
    }
    match client.create(wanted.resource, &namespace, wanted.object).await {
        Ok(_) => Ok(()),
        // Another server was faster.
        Err(status) if status.reason == "AlreadyExists" => Ok(()),
        Err(status) => Err(Status::internal(format!("creating {} {name}: {status}", wanted.resource))),
    }
}

fn place(object: &Value) -> (String, String) {
    let text = |key: &str| object.str_at(&["metadata", key]).to_string();
    (text("namespace"), text("name"))
}

/// What an existing RBAC object should be instead, if anything: rules and subjects are only ever added.
fn reconciled(wanted: &Wanted, found: &Value) -> Option<Value> {
    if wanted.resource.group != RBAC_GROUP || found.str_at(&["metadata", "annotations", AUTOUPDATE]) != "true" {
        return None;
    }
    let mut better = found.clone();
    let aggregated = found.at(&["aggregationRule"]).is_some();
    if !aggregated {
        let (have, want) = (rbac::rules(found), rbac::rules(&wanted.object));
        if !rbac::missing(&have, &want).is_empty() {
            let rules = better.make_map(&[]).list_slot("rules");
            let lacking = wanted.object.list_at(&["rules"]).iter();
            rules.extend(lacking.filter(|r| !rbac::missing(&have, &[Rule::from_value(r)]).is_empty()).cloned());
        }
    }
    for subject in wanted.object.list_at(&["subjects"]) {
        let subjects = better.make_map(&[]).list_slot("subjects");
        if !subjects.contains(subject) {
            subjects.push(subject.clone());
        }
    }
    if better.get("subjects").and_then(Value::as_list).is_some_and(<[Value]>::is_empty) {
        better.remove(&["subjects"]);
    }
    (better != *found).then_some(better)
}

fn namespaces() -> Vec<Wanted> {
    let names = ["default", "kube-system", "kube-public", "kube-node-lease"];
    let object = |name: &str| value!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    names.iter().map(|name| Wanted { resource: &resource::NAMESPACES, object: object(name) }).collect()
}

fn service_cidr(cluster: &Cluster) -> Option<Wanted> {
    let resource = resource::find("networking.k8s.io", "v1", "servicecidrs")?;
    let object = value!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": cluster.service_cidrs}});
    Some(Wanted { resource, object })
}

/// The first address of the primary range.
pub fn kubernetes_address(cluster: &Cluster) -> String {
    let first = cluster.service_cidrs.first().map_or("", String::as_str);
    let base: Option<std::net::IpAddr> = first.split('/').next().and_then(|ip| ip.parse().ok());
    match base {
        Some(std::net::IpAddr::V4(ip)) => std::net::Ipv4Addr::from(u32::from(ip).wrapping_add(1)).to_string(),
        Some(std::net::IpAddr::V6(ip)) => std::net::Ipv6Addr::from(u128::from(ip).wrapping_add(1)).to_string(),
        None => String::new(),
    }
}

fn services(cluster: &Cluster, dns: &str) -> Vec<Wanted> {
    let api = value!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"type": "ClusterIP", "clusterIP": kubernetes_address(cluster), "sessionAffinity": "None", "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": i64::from(cluster.port)}]}});
    let dns_service = value!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns",
            "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}},
        "spec": {"type": "ClusterIP", "clusterIP": dns, "sessionAffinity": "None", "ipFamilyPolicy": "SingleStack", "ports": [
            {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 53},
            {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": 53}]}});
    let mut wanted = vec![Wanted { resource: &resource::SERVICES, object: api }];
    if !dns.is_empty() {
        wanted.push(Wanted { resource: &resource::SERVICES, object: dns_service });
    }
    wanted
}

fn priority_classes() -> Vec<Wanted> {
    let class = |name: &str, value: i64, description: &str| Wanted {
        resource: &resource::PRIORITYCLASSES,
        object: value!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value,
            "description": description}),
    };
    vec![
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        class("system-node-critical", 2_000_001_000, "Used for system critical pods that must not be moved from their current node."),
    ]
}

fn rows(table: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    table.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).map(|l| l.split('\t').collect())
}

/// The spec a flow schema or priority level must have that no cluster can do without.
pub fn mandatory_flow_control(kind: &str, name: &str) -> Option<Value> {
    if !matches!(name, "exempt" | "catch-all") {
        return None;
    }
    let row = rows(FLOW_CONTROL).find(|row| row[0] == kind && row[1] == name)?;
    let spec: serde_json::Value = serde_json::from_str(row[2]).expect("specs of flowcontrol.tsv are JSON");
    Some(spec.into())
}

fn flow_control() -> Vec<Wanted> {
    let wanted = rows(FLOW_CONTROL).filter_map(|row| {
        let [kind, name, spec] = row[..] else { panic!("a row of flowcontrol.tsv has three columns: {row:?}") };
        let resource = resource::by_kind("flowcontrol.apiserver.k8s.io/v1", kind)?;
        let spec: serde_json::Value = serde_json::from_str(spec).expect("specs of flowcontrol.tsv are JSON");
        let object = value!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": kind,
            "metadata": {"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}}, "spec": spec});
        Some(Wanted { resource, object })
    });
    wanted.collect()
}

/// What this server serves itself, for whoever asks the aggregator.
fn api_services() -> Vec<Wanted> {
    let wanted = rows(API_SERVICES).map(|row| {
        let [group, version, group_priority, version_priority] = row[..] else {
            panic!("a row of apiservices.tsv has four columns: {row:?}")
        };
        let group = if group == "-" { "" } else { group };
        let number = |text: &str| text.parse::<i64>().expect("priorities of apiservices.tsv are numbers");
        let mut object = value!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": format!("{version}.{group}"), "labels": {"kube-aggregator.kubernetes.io/automanaged": "onstart"}},
            "spec": {"version": version, "groupPriorityMinimum": number(group_priority), "versionPriority": number(version_priority)}});
        if !group.is_empty() {
            object.set(&["spec", "group"], group);
        }
        Wanted { resource: &resource::APISERVICES, object }
    });
    wanted.collect()
}

fn authentication_config(cluster: &Cluster) -> Wanted {
    let object = value!({"apiVersion": "v1", "kind": "ConfigMap",
    "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
    "data": {
        "client-ca-file": cluster.client_ca.public,
        "requestheader-allowed-names": "[\"front-proxy-client\"]",
        "requestheader-client-ca-file": cluster.front_proxy_ca.public,
        "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
        "requestheader-group-headers": "[\"X-Remote-Group\"]",
        "requestheader-username-headers": "[\"X-Remote-User\"]",
    }});
    Wanted { resource: &resource::CONFIGMAPS, object }
}

// --- RBAC

fn metadata(namespace: &str, name: &str, labels: &str) -> Value {
    let mut meta = value!({"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}});
    meta.set(&["annotations", AUTOUPDATE], "true");
    if namespace != "-" {
        meta.set(&["namespace"], namespace);
    }
    for (key, value) in labels.split(',').filter_map(|l| l.split_once('=')) {
        meta.set(&["labels", key], value);
    }
    meta
}

fn list(cell: &str) -> Vec<Value> {
    let items = cell.split(',').filter(|s| *s != "-" && !s.is_empty());
    items.map(|s| Value::from(if s == "core" { "" } else { s })).collect()
}

/// Roles first, in the order of the table, then bindings. What is aggregated is left to the controller.
fn rbac_objects(table: &'static str) -> Vec<Wanted> {
    let (mut roles, mut bindings): (Vec<Value>, Vec<Wanted>) = (Vec::new(), Vec::new());
    for row in rows(table) {
        match row[..] {
            ["role", namespace, name, labels, aggregates] => {
                let kind = if namespace == "-" { "ClusterRole" } else { "Role" };
                let mut role = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind});
                role.set(&["metadata"], metadata(namespace, name, labels));
                if let Some((key, value)) = aggregates.split_once('=') {
                    let mut selector = Value::map();
                    selector.set(&["matchLabels", key], value);
                    role.set(&["aggregationRule", "clusterRoleSelectors"], vec![selector]);
                }
                roles.push(role);
            }
            ["", verbs, "@", urls] => {
                let mut rule = Value::map();
                rule.set(&["verbs"], list(verbs));
                rule.set(&["nonResourceURLs"], list(urls));
                add_rule(&mut roles, rule);
            }
            ["", verbs, groups, resources, names] => {
                let mut rule = Value::map();
                rule.set(&["verbs"], list(verbs));
                rule.set(&["apiGroups"], list(groups));
                rule.set(&["resources"], list(resources));
                if names != "-" {
                    rule.set(&["resourceNames"], list(names));
                }
                add_rule(&mut roles, rule);
            }
            ["binding", namespace, name, role_kind, role, subjects] => bindings.push(binding(namespace, name, role_kind, role, subjects)),
            _ => panic!("a row of rbac.tsv that is neither role, rule nor binding: {row:?}"),
        }
    }
    let of = |role: Value| Wanted {
        resource: if role.str_at(&["kind"]) == "Role" { &resource::ROLES } else { &resource::CLUSTERROLES },
        object: role,
    };
    roles.into_iter().map(of).chain(bindings).collect()
}

fn add_rule(roles: &mut [Value], rule: Value) {
    let role = roles.last_mut().expect("rules stand below a role");
    role.make_map(&[]).list_slot("rules").push(rule);
}

fn binding(namespace: &str, name: &str, role_kind: &str, role: &str, subjects: &str) -> Wanted {
    let kind = if namespace == "-" { "ClusterRoleBinding" } else { "RoleBinding" };
    let subjects = subjects.split(',').filter_map(|s| s.split_once(':').filter(|(kind, _)| !kind.is_empty()));
    let subjects: Vec<Value> = subjects
        .map(|(kind, name)| match (kind, name.split_once('/')) {
            ("ServiceAccount", Some((namespace, name))) => value!({"kind": kind, "name": name, "namespace": namespace}),
            _ => value!({"kind": kind, "apiGroup": RBAC_GROUP, "name": name}),
        })
        .collect();
    let mut object = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
        "roleRef": {"apiGroup": RBAC_GROUP, "kind": role_kind, "name": role}});
    object.set(&["metadata"], metadata(namespace, name, "-"));
    if !subjects.is_empty() {
        object.set(&["subjects"], subjects);
    }
    let resource: &'static Resource = if namespace == "-" { &resource::CLUSTERROLEBINDINGS } else { &resource::ROLEBINDINGS };
    Wanted { resource, object }
}

// --- where the API server is

/// Endpoints and EndpointSlice of Service `kubernetes` name this server, and nobody else writes them.
async fn reconcile_endpoints(client: &Client, cluster: &Cluster) -> Result<()> {
    if cluster.advertise_address.is_empty() {
        return Ok(());
    }
    let port = i64::from(cluster.port);
    let family = if cluster.advertise_address.contains(':') { "IPv6" } else { "IPv4" };
    let slice = value!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family, "endpoints": [{"addresses": [cluster.advertise_address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}]});
    let endpoints = value!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": cluster.advertise_address}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]});
    for (resource, wanted, members) in [
        (&resource::ENDPOINTSLICES, slice, &["endpoints", "ports", "addressType"][..]),
        (&resource::ENDPOINTS, endpoints, &["subsets"][..]),
    ] {
        place_endpoints(client, resource, wanted, members).await?;
    }
    Ok(())
}

async fn place_endpoints(client: &Client, resource: &'static Resource, wanted: Value, members: &[&str]) -> Result<()> {
    let found = match client.get(resource, "default", "kubernetes").await {
        Ok(found) => found.value(),
        Err(status) if status.code == 404 => return client.create(resource, "default", wanted).await.map(|_| ()),
        Err(status) => return Err(status),
    };
    if members.iter().all(|m| found.get(m) == wanted.get(m)) {
        return Ok(());
    }
    if found.get("addressType") != wanted.get("addressType") {
        client.delete(resource, "default", "kubernetes", Value::map()).await?;
        return client.create(resource, "default", wanted).await.map(|_| ());
    }
    let mut better = found;
    for member in members {
        better.set(&[member], wanted.get(member).cloned().unwrap_or_default());
    }
    client.update(resource, "", better).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_table_is_whole() {
        let wanted = rbac_objects(RBAC);
        let named = |kind: &str, name: &str| {
            wanted.iter().find(|w| w.object.str_at(&["kind"]) == kind && w.object.str_at(&["metadata", "name"]) == name).unwrap()
        };
        let admin = &named("ClusterRole", "cluster-admin").object;
        assert_eq!(rbac::rules(admin).len(), 2);
        let roles: Vec<&Value> = wanted.iter().map(|w| &w.object).filter(|o| o.str_at(&["kind"]).ends_with("Role")).collect();
        let bindings: Vec<&Value> = wanted.iter().map(|w| &w.object).filter(|o| o.str_at(&["kind"]).ends_with("Binding")).collect();
        // Every role says what it allows, or from whom it learns that.
        for role in &roles {
            assert_eq!(role.at(&["aggregationRule"]).is_some(), rbac::rules(role).is_empty(), "{role}");
        }
        // Every binding names a role that is there.
        let rbac = rbac::Rbac::new(roles.into_iter(), bindings.iter().copied());
        for binding in bindings {
            let (namespace, kind, name) =
                (binding.str_at(&["metadata", "namespace"]), binding.str_at(&["roleRef", "kind"]), binding.str_at(&["roleRef", "name"]));
            assert!(rbac.role(namespace, kind, name).is_some(), "{name}");
        }
        let scheduler = crate::api::request::User { name: "system:kube-scheduler".into(), ..Default::default() };
        let bind = crate::server::auth::Attributes { verb: "create", resource: "pods", subresource: "binding", ..Default::default() };
        assert!(rbac.authorize(&scheduler, &bind).allowed);
    }

    #[test]
    fn reconciling_adds_what_is_missing_and_leaves_the_rest() {
        let want = value!({"metadata": {"name": "r"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]});
        let wanted = Wanted { resource: &resource::CLUSTERROLES, object: want };
        let mut found = value!({"metadata": {"name": "r", "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}},
            "rules": [{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}]});
        let better = reconciled(&wanted, &found).unwrap();
        assert_eq!(better.list_at(&["rules"]).len(), 2);
        assert_eq!(reconciled(&wanted, &better), None);
        found.set(&["metadata", "annotations", AUTOUPDATE], "false");
        assert_eq!(reconciled(&wanted, &found), None, "the user opted out");
    }

    #[test]
    fn every_group_version_has_an_api_service() {
        let told: std::collections::BTreeSet<String> =
            api_services().iter().map(|w| w.object.str_at(&["metadata", "name"]).to_string()).collect();
        // The aggregator does not stand behind itself.
        let served = resource::ALL.iter().filter(|r| r.group != "apiregistration.k8s.io").map(|r| format!("{}.{}", r.version, r.group));
        assert_eq!(told, served.collect());
    }

    #[test]
    fn flow_control_and_addresses() {
        assert_eq!(flow_control().len(), rows(FLOW_CONTROL).count());
        let cluster = Cluster { service_cidrs: vec!["10.43.0.0/16".into()], ..Cluster::default() };
        assert_eq!(kubernetes_address(&cluster), "10.43.0.1");
    }

    /// Bootstrap through the real pipeline and store, twice, and then a first pod.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_cluster_begins() {
        use crate::api::request::User;
        let dir = std::env::temp_dir().join(format!("coracle-bootstrap-{}", std::process::id()));
        let store = crate::store::Store::open(crate::store::Config::new(dir.clone())).await.unwrap();
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let cluster = Cluster {
            service_cidrs: vec!["10.43.0.0/16".into()],
            node_ports: (30000, 32767),
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            advertise_address: "192.0.2.1".into(),
            port: 6443,
            service_account_key: crate::server::strategy::Pair { public: String::new(), private: key },
            ..Cluster::default()
        };
        let clock = std::sync::Arc::new(crate::api::time::SystemClock);
        let pipeline = crate::server::assemble(store.clone(), cluster.clone(), clock).unwrap();
        let master = Client::new(pipeline, User::master());
        run(&master, &cluster, "10.43.0.10").await.unwrap();
        let revision = store.revision();
        run(&master, &cluster, "10.43.0.10").await.unwrap();
        assert_eq!(store.revision(), revision, "a second time changes nothing");

        let api = master.get(&resource::SERVICES, "default", "kubernetes").await.unwrap().value();
        assert_eq!(api.str_at(&["spec", "clusterIP"]), "10.43.0.1");
        let taken = value!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"clusterIP": "10.43.0.10", "ports": [{"port": 80}]}});
        let refused = master.create(&resource::SERVICES, "default", taken).await.unwrap_err();
        assert!(refused.message.contains("provided IP is already allocated"), "{refused}");
        let node_port = value!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "n"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        let node_port = master.create(&resource::SERVICES, "default", node_port).await.unwrap().value();
        assert!((30000..=32767).contains(&node_port.list_at(&["spec", "ports"])[0].i64_at(&["nodePort"]).unwrap()));

        let account = value!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        master.create(&resource::SERVICEACCOUNTS, "default", account).await.unwrap();
        let pod =
            value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
        let pod = master.create(&resource::PODS, "default", pod).await.unwrap().value();
        assert_eq!(pod.str_at(&["status", "qosClass"]), "BestEffort");
        // The scheduler may bind it; a stranger may not even look.
        let scheduler =
            master.as_user(User { name: "system:kube-scheduler".into(), groups: vec!["system:authenticated".into()], ..User::default() });
        let binding = value!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
        scheduler.create_sub(&resource::PODS, "default", "p", "binding", binding).await.unwrap();
        assert_eq!(master.get(&resource::PODS, "default", "p").await.unwrap().str_at(&["spec", "nodeName"]), "n1");
        let stranger = master.as_user(User { name: "eve".into(), groups: vec!["system:authenticated".into()], ..User::default() });
        let refused = stranger.get(&resource::PODS, "default", "p").await.unwrap_err();
        assert_eq!(
            refused.message,
            "pods \"p\" is forbidden: User \"eve\" cannot get resource \"pods\" in API group \"\" in the namespace \"default\""
        );
        let kubelet = master.as_user(User::node("n1"));
        assert!(kubelet.get(&resource::PODS, "default", "p").await.is_ok(), "its own pod");
        let token = value!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3607}});
        let answer = master.create_sub(&resource::SERVICEACCOUNTS, "default", "default", "token", token).await;
        assert!(answer.is_ok(), "{answer:?}");
        store.close().await;
        let _ = std::fs::remove_dir_all(dir);
    }
}
