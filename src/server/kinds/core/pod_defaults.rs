//! Pure: what the API server fills into a pod spec: the values a client left out, exactly those upstream writes.
//!
//! [`pod`] is for a Pod itself, [`template`] for the pod template of a workload: fewer defaults apply there. Both are
//! idempotent and touch nothing that is set.

use crate::api::quantity::Quantity;
use crate::api::value::{Map, Value};

/// Defaults of a whole Pod.
pub fn pod(pod: &mut Value) {
    let spec = pod.make_map(&["spec"]);
    requests_from_limits(spec);
    spec.insert_default("enableServiceLinks", true);
    if spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false) {
        for list in ["containers", "initContainers"] {
            each(spec, list, |c| each(c, "ports", host_port));
        }
    }
    pod_spec(spec);
    status_ips(pod);
}

/// Defaults of the template of a workload (`spec.template`).
pub fn template(template: &mut Value) {
    pod_spec(template.make_map(&["spec"]));
}

/// The image tag decides: `latest`, or none at all, is pulled always. What is no image reference has no tag.
pub fn pull_policy(image: &str) -> &'static str {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(rest, digest)| (rest, Some(digest)));
    let slash = rest.rfind('/').map_or(0, |i| i + 1);
    let (name, tag) = match rest[slash..].rfind(':') {
        Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
        None => (rest, None),
    };
    let tagged = |tag: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        (1..=128).contains(&tag.len()) && !tag.starts_with(['.', '-']) && tag.bytes().all(inner)
    };
    let digested = |digest: &str| digest.split_once(':').is_some_and(|(kind, hex)| !kind.is_empty() && hex.len() >= 32);
    if !is_repository(name) || !tag.is_none_or(tagged) || !digest.is_none_or(digested) {
        return "IfNotPresent";
    }
    match (tag, digest) {
        (None, None) | (Some("latest"), _) => "Always",
        _ => "IfNotPresent",
    }
}

/// `[domain/]path/to/name` of an image reference.
fn is_repository(name: &str) -> bool {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase()) => {
            (Some(first), rest)
        }
        _ => (None, name),
    };
    let is_domain =
        |d: &str| !d.is_empty() && d.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'-' | b'[' | b']'));
    let is_part = |part: &str| {
        let b = part.as_bytes();
        let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        !b.is_empty() && edge(b[0]) && edge(b[b.len() - 1]) && b.iter().all(|c| edge(*c) || matches!(c, b'.' | b'_' | b'-'))
    };
    domain.is_none_or(is_domain) && path.split('/').all(is_part)
}

/// Runs `f` over the maps of the list `key`, if there is one.
pub fn each(map: &mut Map, key: &str, mut f: impl FnMut(&mut Map)) {
    let list = map.get_mut(key).and_then(Value::as_list_mut);
    list.into_iter().flatten().filter_map(Value::as_map_mut).for_each(&mut f);
}

/// What stands behind feature gates that are off: dropped from new objects.
pub fn drop_disabled(spec: &mut Map) {
    for list in ["containers", "initContainers"] {
        each(spec, list, |c| {
            with(c, "lifecycle", |l| {
                l.remove("stopSignal");
            });
        });
    }
}

/// Runs `f` over the map under `key`, if there is one.
pub fn with(map: &mut Map, key: &str, f: impl FnOnce(&mut Map)) {
    if let Some(inner) = map.get_mut(key).and_then(Value::as_map_mut) {
        f(inner);
    }
}

/// An empty string counts as absent, as it does in Go.
pub fn default_str(map: &mut Map, key: &'static str, value: &str) {
    if map.str(key).is_empty() {
        map.insert(key, value);
    }
}

/// Zero counts as absent.
pub fn default_int(map: &mut Map, key: &'static str, value: i64) {
    if map.get(key).and_then(Value::as_i64).unwrap_or(0) == 0 {
        map.insert(key, value);
    }
}

fn pod_spec(spec: &mut Map) {
    default_str(spec, "dnsPolicy", "ClusterFirst");
    default_str(spec, "restartPolicy", "Always");
    default_str(spec, "schedulerName", "default-scheduler");
    spec.insert_default("terminationGracePeriodSeconds", 30);
    spec.insert_default("securityContext", Map::new());
    service_account_alias(spec);
    for list in ["containers", "initContainers"] {
        each(spec, list, container);
    }
    each(spec, "ephemeralContainers", container);
    each(spec, "volumes", volume);
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are always written.
pub fn service_account_alias(spec: &mut Map) {
    if spec.str("serviceAccountName").is_empty() && !spec.str("serviceAccount").is_empty() {
        let name = spec.str("serviceAccount").to_string();
        spec.insert("serviceAccountName", name);
    }
    let name = spec.str("serviceAccountName").to_string();
    if !name.is_empty() {
        spec.insert("serviceAccount", name);
    }
}

fn container(c: &mut Map) {
    let policy = pull_policy(c.str("image"));
    default_str(c, "imagePullPolicy", policy);
    default_str(c, "terminationMessagePath", "/dev/termination-log");
    default_str(c, "terminationMessagePolicy", "File");
    c.insert_default("resources", Map::new());
    with(c, "resources", resources);
    each(c, "ports", |p| default_str(p, "protocol", "TCP"));
    each(c, "env", |env| with(env, "valueFrom", |v| with(v, "fieldRef", |f| default_str(f, "apiVersion", "v1"))));
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        with(c, name, probe);
    }
    with(c, "lifecycle", |l| {
        for hook in ["postStart", "preStop"] {
            with(l, hook, |h| with(h, "httpGet", http_get));
        }
    });
}

/// Quantities finer than a thousandth are rounded up to it.
fn resources(r: &mut Map) {
    for list in ["limits", "requests"] {
        with(r, list, |amounts| {
            for (_, amount) in amounts.iter_mut() {
                if let Some(Ok(mut q)) = amount.as_str().map(Quantity::parse) {
                    q.round_up(-3);
                    *amount = Value::Str(q.to_string());
                }
            }
        });
    }
}

fn probe(p: &mut Map) {
    for (key, value) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)] {
        default_int(p, key, value);
    }
    with(p, "httpGet", http_get);
    with(p, "grpc", |g| g.insert_default("service", ""));
}

fn http_get(h: &mut Map) {
    default_str(h, "path", "/");
    default_str(h, "scheme", "HTTP");
}

fn host_port(port: &mut Map) {
    let container_port = port.get("containerPort").and_then(Value::as_i64).unwrap_or(0);
    default_int(port, "hostPort", container_port);
}

fn volume(v: &mut Map) {
    if !v.iter().any(|(key, source)| key != "name" && !source.is_null()) {
        v.insert("emptyDir", Map::new());
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        with(v, source, |s| {
            s.insert_default("defaultMode", 0o644);
            each(s, "items", field_ref);
            each(s, "sources", projection);
        });
    }
    volume_sources(v);
    with(v, "ephemeral", |s| {
        with(s, "volumeClaimTemplate", |t| t.map_slot("spec").insert_default("volumeMode", "Filesystem"));
    });
    with(v, "image", |s| {
        let policy = pull_policy(s.str("reference"));
        default_str(s, "pullPolicy", policy);
    });
}

/// Of sources persistent volumes have, too.
pub fn volume_sources(v: &mut Map) {
    with(v, "hostPath", |s| s.insert_default("type", ""));
    with(v, "iscsi", |s| default_str(s, "iscsiInterface", "default"));
    with(v, "rbd", |s| {
        default_str(s, "pool", "rbd");
        default_str(s, "user", "admin");
        default_str(s, "keyring", "/etc/ceph/keyring");
    });
    with(v, "azureDisk", |s| {
        s.insert_default("cachingMode", "ReadWrite");
        s.insert_default("kind", "Shared");
        s.insert_default("fsType", "ext4");
        s.insert_default("readOnly", false);
    });
    with(v, "scaleIO", |s| {
        default_str(s, "storageMode", "ThinProvisioned");
        default_str(s, "fsType", "xfs");
    });
}

fn projection(source: &mut Map) {
    with(source, "serviceAccountToken", |t| t.insert_default("expirationSeconds", 3600));
    with(source, "downwardAPI", |d| each(d, "items", field_ref));
}

fn field_ref(item: &mut Map) {
    with(item, "fieldRef", |f| default_str(f, "apiVersion", "v1"));
}

/// A limit without a request is also the request; of the pod as a whole only if it has any resources.
fn requests_from_limits(spec: &mut Map) {
    fn fill(holder: &mut Map) {
        with(holder, "resources", |r| {
            let Some(limits) = r.get("limits").and_then(Value::as_map).filter(|l| !l.is_empty()).cloned() else { return };
            let requests = r.map_slot("requests");
            for (name, amount) in limits {
                requests.insert_default(name, amount);
            }
        });
    }
    for list in ["containers", "initContainers"] {
        each(spec, list, fill);
    }
    pod_level_requests(spec);
}

/// Pod-level requests left out are the sum over the containers where every container states one, else the pod-level limit.
fn pod_level_requests(spec: &mut Map) {
    let Some(limits) = spec.get("resources").and_then(|r| r.map_at(&["limits"])).cloned() else { return };
    let summed = super::qos::requests(spec);
    let requests = spec.map_slot("resources").map_slot("requests");
    for (name, amount) in &summed {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-") {
            requests.insert_default(name.clone(), amount.to_string());
        }
    }
    for (name, amount) in limits {
        requests.insert_default(name, amount);
    }
    if requests.is_empty() {
        spec.map_slot("resources").remove("requests");
    }
}

/// `podIP` is the first of `podIPs`, whichever was given.
fn status_ips(pod: &mut Value) {
    let Some(status) = pod.get_mut("status").and_then(Value::as_map_mut) else { return };
    let first = status.get("podIPs").and_then(Value::as_list).and_then(|l| l.first()).map(|ip| ip.str_at(&["ip"]).to_string());
    let ip = status.str("podIP").to_string();
    match first {
        Some(first) if ip.is_empty() => {
            status.insert("podIP", first);
        }
        None if !ip.is_empty() => {
            status.insert("podIPs", vec![crate::value!({"ip": ip})]);
        }
        // An old client that changed only `podIP` means it.
        Some(first) if first != ip => {
            status.insert("podIPs", vec![crate::value!({"ip": ip})]);
        }
        Some(_) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn tags_decide_the_pull_policy() {
        let cases = [
            ("img", "Always"),
            ("img:latest", "Always"),
            ("img:1", "IfNotPresent"),
            ("host:5000/img", "Always"),
            ("host:5000/img:1", "IfNotPresent"),
            ("img@sha256:00", "IfNotPresent"),
        ];
        for (image, policy) in cases {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn a_minimal_pod() {
        let mut p = value!({"spec": {"containers": [{"name": "c", "image": "img:1", "livenessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "s"}}], "serviceAccount": "sa"}});
        pod(&mut p);
        let want = value!({"spec": {
            "containers": [{"name": "c", "image": "img:1", "imagePullPolicy": "IfNotPresent", "resources": {},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
                    "successThreshold": 1, "failureThreshold": 3}}],
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "s", "defaultMode": 420}}],
            "serviceAccount": "sa", "serviceAccountName": "sa", "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst", "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true}});
        assert_eq!(p, want);
        let once = p.clone();
        pod(&mut p);
        assert_eq!(p, once, "defaulting twice changes nothing");
    }

    #[test]
    fn limits_become_requests() {
        let mut p = value!({"spec": {"containers": [{"name": "c", "image": "i:1", "resources": {"limits": {"cpu": "1", "memory": "1Gi"},
            "requests": {"cpu": "500m"}}}]}});
        pod(&mut p);
        let requests = p.list_at(&["spec", "containers"])[0].at(&["resources", "requests"]).cloned();
        assert_eq!(requests, Some(value!({"cpu": "500m", "memory": "1Gi"})));
    }
}
