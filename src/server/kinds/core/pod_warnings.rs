//! Pure: what upstream warns of in pods and their templates: things that are valid and hardly meant.

use std::fmt::Display;

use crate::api::json::go_quote;
use crate::api::quantity::Quantity;
use crate::api::value::Value;
use crate::server::kinds::core::volumes;
use crate::server::validation::ip_warning;

/// Texts about a pod (`path` is empty) or a template at `path`, in upstream's order.
pub fn warnings(path: &str, pod: &Value) -> Vec<String> {
    let at = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
    let (meta, spec) = (at("metadata"), at("spec"));
    let mut out = Vec::new();
    node_labels(&mut out, &spec, pod);
    for (i, c) in pod.list_at(&["spec", "topologySpreadConstraints"]).iter().enumerate() {
        let each = format!("{spec}.topologySpreadConstraints[{i}]");
        if let Some(why) = renamed_label(c.str_at(&["topologyKey"])) {
            out.push(format!("{each}.topologyKey: {} is {why}", c.str_at(&["topologyKey"])));
        }
        no_selector(&mut out, &each, c);
    }
    annotations(&mut out, &meta, pod);
    for (i, v) in pod.list_at(&["spec", "volumes"]).iter().enumerate() {
        let each = format!("{spec}.volumes[{i}]");
        out.extend(volumes::source_warnings(&each, v));
    }
    overlaps(&mut out, pod);
    repeated(&mut out, &format!("{spec}.hostAliases"), pod.list_at(&["spec", "hostAliases"]), "ip");
    let secrets = pod.list_at(&["spec", "imagePullSecrets"]);
    repeated(&mut out, &format!("{spec}.imagePullSecrets"), secrets, "name");
    for (i, _) in secrets.iter().enumerate().filter(|(_, s)| s.str_at(&["name"]).is_empty()) {
        out.push(format!("{spec}.imagePullSecrets[{i}].name: invalid empty name \"\""));
    }
    fractions(&mut out, &format_args!("{spec}.overhead"), pod.at(&["spec", "overhead"]));
    containers(&mut out, path, &meta, &spec, pod);
    ports(&mut out, &spec, pod);
    if pod.i64_at(&["spec", "terminationGracePeriodSeconds"]).is_some_and(|n| n < 0) {
        out.push(format!("{spec}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = pod.at(&["spec", "affinity", kind]) else { continue };
        let at = format!("{spec}.affinity.{kind}");
        for (i, t) in affinity.list_at(&["requiredDuringSchedulingIgnoredDuringExecution"]).iter().enumerate() {
            no_selector(&mut out, &format!("{at}.requiredDuringSchedulingIgnoredDuringExecution[{i}]"), t);
        }
        for (i, t) in affinity.list_at(&["preferredDuringSchedulingIgnoredDuringExecution"]).iter().enumerate() {
            let at = format!("{at}.preferredDuringSchedulingIgnoredDuringExecution[{i}].podAffinityTerm");
            no_selector(&mut out, &at, t.get("podAffinityTerm").unwrap_or(&Value::Null));
        }
    }
    for (i, ip) in pod.list_at(&["spec", "dnsConfig", "nameservers"]).iter().filter_map(Value::as_str).enumerate() {
        out.extend(ip_warning(&format!("{spec}.dnsConfig.nameservers[{i}]"), ip));
    }
    for (i, alias) in pod.list_at(&["spec", "hostAliases"]).iter().enumerate() {
        out.extend(ip_warning(&format!("{spec}.hostAliases[{i}].ip"), alias.str_at(&["ip"])));
    }
    out
}

fn no_selector(out: &mut Vec<String>, at: &str, holder: &Value) {
    if holder.at(&["labelSelector"]).is_none() {
        out.push(format!("{at}.labelSelector: a null labelSelector results in matching no pod"));
    }
}

/// Labels that have another name now, or none.
pub fn renamed_label(key: &str) -> Option<&'static str> {
    Some(match key {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
        "failure-domain.beta.kubernetes.io/zone" => "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
        "beta.kubernetes.io/instance-type" => "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
        _ => return None,
    })
}

fn node_labels(out: &mut Vec<String>, spec: &str, pod: &Value) {
    for (key, _) in pod.map_at(&["spec", "nodeSelector"]).into_iter().flat_map(|m| m.iter()) {
        out.extend(renamed_label(key).map(|why| format!("{spec}.nodeSelector[{key}]: {why}")));
    }
    let Some(affinity) = pod.at(&["spec", "affinity", "nodeAffinity"]) else { return };
    let mut term = |at: String, term: &Value, weighted: bool| {
        let (expressions, fields) = (term.list_at(&["matchExpressions"]), term.list_at(&["matchFields"]));
        if weighted && expressions.is_empty() && fields.is_empty() {
            out.push(format!("{at}: an empty preferred scheduling term matches all objects with implicit weight 0"));
        }
        for (i, e) in expressions.iter().enumerate() {
            let key = e.str_at(&["key"]);
            out.extend(renamed_label(key).map(|why| format!("{at}.matchExpressions[{i}].key: {key} is {why}")));
        }
    };
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    for (i, t) in affinity.list_at(&[REQUIRED, "nodeSelectorTerms"]).iter().enumerate() {
        term(format!("{spec}.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[{i}]"), t, false);
    }
    for (i, p) in affinity.list_at(&[PREFERRED]).iter().enumerate() {
        term(format!("{spec}.affinity.nodeAffinity.{PREFERRED}[{i}].preference"), p.get("preference").unwrap_or(&Value::Null), true);
    }
}

fn annotations(out: &mut Vec<String>, meta: &str, pod: &Value) {
    const GONE: [(&str, &str); 3] = [
        ("scheduler.alpha.kubernetes.io/critical-pod", "non-functional in v1.16+; use the \"priorityClassName\" field instead"),
        ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
        ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ];
    for (key, why) in GONE.iter().filter(|(key, _)| pod.at(&["metadata", "annotations", key]).is_some()) {
        out.push(format!("{meta}.annotations[{key}]: {why}"));
    }
}

/// `key` of an item was that of one before it.
fn repeated(out: &mut Vec<String>, at: &str, items: &[Value], key: &str) {
    for (i, item) in items.iter().enumerate() {
        let text = item.str_at(&[key]);
        if items[..i].iter().any(|other| other.str_at(&[key]) == text) {
            out.push(format!("{at}[{i}].{key}: duplicate {key} {}", go_quote(text)));
        }
    }
}

/// Bytes come in whole numbers.
fn fractions(out: &mut Vec<String>, at: &dyn Display, amounts: Option<&Value>) {
    for name in ["memory", "ephemeral-storage"] {
        fraction(out, at, name, amounts);
    }
}

fn fraction(out: &mut Vec<String>, at: &dyn Display, name: &str, amounts: Option<&Value>) {
    let Some(text) = amounts.and_then(|a| a.get(name)).and_then(Value::as_str) else { return };
    if Quantity::parse(text).is_ok_and(|q| q.value() < i128::from(i64::MAX) / 1000 && q.milli_value() % 1000 != 0) {
        out.push(format!("{at}[{name}]: fractional byte value {} is invalid, must be an integer", go_quote(text)));
    }
}

/// Every container with the list it is in and its place there, in upstream's order.
fn each_container<'a>(pod: &'a Value, mut f: impl FnMut(&'static str, usize, &'a Value)) {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, c) in pod.list_at(&["spec", list]).iter().enumerate() {
            f(list, i, c);
        }
    }
}

fn containers(out: &mut Vec<String>, path: &str, meta: &str, spec: &str, pod: &Value) {
    const SECCOMP: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    let annotated = |key: &str| pod.at(&["metadata", "annotations", key]).is_some();
    let key = "seccomp.security.alpha.kubernetes.io/pod";
    if pod.at(&["spec", "securityContext", "seccompProfile"]).is_none() && annotated(key) {
        out.push(format!("{meta}.annotations[{key}]: {SECCOMP}"));
    }
    let pod_profile = pod.at(&["spec", "securityContext", "appArmorProfile"]).is_some();
    each_container(pod, |list, i, c| {
        let at = format_args!("{spec}.{list}[{i}]");
        let name = c.str_at(&["name"]);
        let key = format!("container.seccomp.security.alpha.kubernetes.io/{name}");
        if c.at(&["securityContext", "seccompProfile"]).is_none() && annotated(&key) {
            out.push(format!("{meta}.annotations[{key}]: {SECCOMP}"));
        }
        let key = format!("container.apparmor.security.beta.kubernetes.io/{name}");
        if !path.is_empty() && c.at(&["securityContext", "appArmorProfile"]).is_none() && !pod_profile && annotated(&key) {
            out.push(format!("{meta}.annotations[{key}]: deprecated since v1.30; use the \"appArmorProfile\" field instead"));
        }
        for name in ["memory", "ephemeral-storage"] {
            for list in ["limits", "requests"] {
                fraction(out, &format_args!("{at}.resources.{list}"), name, c.at(&["resources", list]));
            }
        }
        let mut names: Vec<&str> = Vec::new();
        for (i, e) in c.list_at(&["env"]).iter().enumerate() {
            let name = e.str_at(&["name"]);
            if !names.contains(&name) {
                names.push(name);
                continue;
            }
            // A value that builds on the one before is meant.
            let (value, reference) = (e.str_at(&["value"]), format!("$({name})"));
            if e.at(&["valueFrom"]).is_some() || value == reference || !value.contains(&reference) {
                let text = "hides previous definition of";
                out.push(format!("{at}.env[{i}]: {text} {}, which may be dropped when using apply", go_quote(name)));
            }
        }
    });
}

fn ports(out: &mut Vec<String>, spec: &str, pod: &Value) {
    let mut all: Vec<((&str, usize, usize), &Value)> = Vec::new();
    let place = |(list, c, i): (&str, usize, usize)| format!("{spec}.{list}[{c}].ports[{i}]");
    each_container(pod, |list, n, c| {
        for (i, p) in c.list_at(&["ports"]).iter().enumerate() {
            let at = (list, n, i);
            let (ip, host) = (p.str_at(&["hostIP"]), p.i64_at(&["hostPort"]).unwrap_or(0));
            let (number, protocol) = (p.i64_at(&["containerPort"]).unwrap_or(0), p.str_at(&["protocol"]));
            if !ip.is_empty() && host == 0 {
                let name = p.str_at(&["name"]);
                let shown = format!("{{Name:{name} HostPort:0 ContainerPort:{number} Protocol:{protocol} HostIP:{ip}}}");
                out.push(format!("{}: hostIP set without hostPort: {shown}", place(at)));
            }
            let same = |o: &Value| o.i64_at(&["containerPort"]).unwrap_or(0) == number && o.str_at(&["protocol"]) == protocol;
            for (other, o) in all.iter().filter(|(_, o)| same(o)) {
                let (other_ip, other_host) = (o.str_at(&["hostIP"]), o.i64_at(&["hostPort"]).unwrap_or(0));
                if ip == other_ip && host == other_host {
                    out.push(format!("{}: duplicate port definition with {}", place(at), place(*other)));
                } else if host == 0 || other_host == 0 {
                    out.push(format!("{}: overlapping port definition with {}", place(at), place(*other)));
                } else if host == other_host && ip.is_empty() != other_ip.is_empty() {
                    out.push(format!("{}: dangerously ambiguous port definition with {}", place(at), place(*other)));
                }
            }
            all.push((at, p));
        }
    });
    for (i, (at, p)) in all.iter().enumerate() {
        let name = p.str_at(&["name"]);
        let first = all[..i].iter().find(|(_, o)| !name.is_empty() && o.str_at(&["name"]) == name);
        if let Some((first, _)) = first {
            let (at, first) = (place(*at), place(*first));
            out.push(format!(
                "{at}: duplicate port name {} with {first}, services and probes that select ports by name will use {first}",
                go_quote(name)
            ));
        }
    }
}

// --- files of one volume at or below each other's paths

fn overlaps(out: &mut Vec<String>, pod: &Value) {
    for v in pod.list_at(&["spec", "volumes"]) {
        let name = go_quote(v.str_at(&["name"]));
        let items = |source: &Value, label: &str| -> Vec<(String, String)> {
            let paths = source.list_at(&["items"]).iter().map(|i| i.str_at(&["path"]).trim_end_matches('/').to_string());
            paths.map(|p| (p, label.to_string())).collect()
        };
        for (kind, called, key) in
            [("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName"), ("downwardAPI", "DownwardAPI", "")]
        {
            let Some(source) = v.at(&[kind]) else { continue };
            let label = if key.is_empty() { called.to_string() } else { format!("{called} {}", go_quote(source.str_at(&[key]))) };
            for pair in collisions(&items(source, "")) {
                out.push(format!("volume {name} ({label}): overlapping paths: {pair}"));
            }
        }
        let Some(projected) = v.at(&["projected"]) else { continue };
        let mut all = Vec::new();
        for source in projected.list_at(&["sources"]) {
            if source.as_map().is_none_or(|m| m.iter().all(|(_, s)| s.is_null())) {
                out.push(format!("volume {name} (Projected) has no sources provided"));
                continue;
            }
            for (kind, called) in [("configMap", "ConfigMap"), ("secret", "Secret")] {
                if let Some(s) = source.at(&[kind]) {
                    all.extend(items(s, &format!("{called} {}", go_quote(s.str_at(&["name"])))));
                }
            }
            if let Some(s) = source.at(&["downwardAPI"]) {
                all.extend(items(s, "DownwardAPI"));
            }
            if let Some(s) = source.at(&["serviceAccountToken"]) {
                all.push((s.str_at(&["path"]).trim_end_matches('/').to_string(), "ServiceAccountToken".to_string()));
            }
            if let Some(s) = source.at(&["clusterTrustBundle"]) {
                let bundle = if s.at(&["name"]).is_some() { s.str_at(&["name"]) } else { s.str_at(&["signerName"]) };
                all.push((s.str_at(&["path"]).trim_end_matches('/').to_string(), format!("ClusterTrustBundle {}", go_quote(bundle))));
            }
            if let Some(s) = source.at(&["podCertificate"]) {
                let parts = [("certificateChainPath", "chain"), ("keyPath", "key"), ("credentialBundlePath", "credential bundle")];
                for (key, called) in parts.iter().filter(|(key, _)| !s.str_at(&[key]).is_empty()) {
                    all.push((s.str_at(&[key]).trim_end_matches('/').to_string(), format!("PodCertificate {called}")));
                }
            }
        }
        for pair in collisions(&all) {
            out.push(format!("volume {name} (Projected): overlapping paths: {pair}"));
        }
    }
}

fn collisions(paths: &[(String, String)]) -> Vec<String> {
    let shown = |(path, source): &(String, String)| {
        if source.is_empty() { go_quote(path) } else { format!("{} ({source})", go_quote(path)) }
    };
    let below = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let mut pairs = Vec::new();
    for (i, path) in paths.iter().enumerate().filter(|(_, p)| !p.0.is_empty()) {
        for other in paths[..i].iter().filter(|o| !o.0.is_empty() && (below(&o.0, &path.0) || below(&path.0, &o.0))) {
            pairs.push(format!("{} with {}", shown(path), shown(other)));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn texts() {
        let pod = value!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1, "protocol": "TCP", "hostIP": "x"},
            {"containerPort": 1, "protocol": "TCP", "hostIP": "x"}], "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"},
            {"name": "A", "value": "$(A)3"}]}], "volumes": [{"name": "v", "configMap": {"name": "m", "items": [{"path": "a"}, {"path": "a/b"}]}}]}});
        assert_eq!(
            warnings("spec.template", &pod),
            [
                "volume \"v\" (ConfigMap \"m\"): overlapping paths: \"a/b\" with \"a\"",
                "spec.template.spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.template.spec.containers[0].ports[0]: hostIP set without hostPort: {Name: HostPort:0 ContainerPort:1 Protocol:TCP HostIP:x}",
                "spec.template.spec.containers[0].ports[1]: hostIP set without hostPort: {Name: HostPort:0 ContainerPort:1 Protocol:TCP HostIP:x}",
                "spec.template.spec.containers[0].ports[1]: duplicate port definition with spec.template.spec.containers[0].ports[0]",
            ]
        );
    }
}
