//! Pure: a container's environment: service variables, envFrom, env with references, `$(VAR)` expansion; and the downward
//! API's fields, which volumes share.

use std::collections::BTreeMap;

use super::observe::Reason;
use super::pod::{Pod, name_of};
use crate::agent::qos;
use crate::api::value::{Map, Value};

/// A ConfigMap or Secret a pod refers to by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    ConfigMap,
    Secret,
}

impl Kind {
    /// As error texts name it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::ConfigMap => "configmap",
            Kind::Secret => "secret",
        }
    }
}

/// The contents of the ConfigMaps and Secrets a pod needs; an absent key is an object that does not exist.
pub type Contents = BTreeMap<(Kind, String), BTreeMap<String, Vec<u8>>>;

/// What this node contributes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    pub name: String,
    pub host_ips: Vec<String>,
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub ephemeral_bytes: i64,
}

/// One service's variables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub ip: String,
    /// Name, port, protocol.
    pub ports: Vec<(String, i64, String)>,
}

impl Service {
    /// `None` for services without a cluster address: they have no variables.
    pub fn of(object: &Value) -> Option<Service> {
        let ip = object.str_at(&["spec", "clusterIP"]);
        if ip.is_empty() || ip == "None" {
            return None;
        }
        let ports = object.list_at(&["spec", "ports"]).iter().map(|p| {
            let protocol = match p.str_at(&["protocol"]) {
                "" => "TCP",
                protocol => protocol,
            };
            (name_of(p).to_string(), p.i64_at(&["port"]).unwrap_or(0), protocol.to_string())
        });
        let at = |key| object.str_at(&["metadata", key]).to_string();
        Some(Service { namespace: at("namespace"), name: at("name"), ip: ip.to_string(), ports: ports.collect() })
    }
}

pub struct Inputs<'a> {
    pub pod: Pod<'a>,
    pub container: &'a Value,
    pub contents: &'a Contents,
    pub services: &'a [Service],
    pub node: &'a NodeFacts,
    pub pod_ips: &'a [String],
}

/// ConfigMaps and Secrets the environment of `container` refers to.
pub fn references(container: &Value) -> Vec<(Kind, String)> {
    let mut found = Vec::new();
    for source in container.list_at(&["envFrom"]) {
        for (key, kind) in [("configMapRef", Kind::ConfigMap), ("secretRef", Kind::Secret)] {
            if let Some(r) = source.at(&[key]) {
                found.push((kind, name_of(r).to_string()));
            }
        }
    }
    for env in container.list_at(&["env"]) {
        for (key, kind) in [("configMapKeyRef", Kind::ConfigMap), ("secretKeyRef", Kind::Secret)] {
            if let Some(r) = env.at(&["valueFrom", key]) {
                found.push((kind, name_of(r).to_string()));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The whole environment, in an order where later entries win; the error is the container's waiting reason.
pub fn environment(inputs: &Inputs) -> Result<Vec<(String, String)>, Reason> {
    let mut result: BTreeMap<String, String> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut put = |result: &mut BTreeMap<String, String>, name: &str, value: String| {
        if result.insert(name.to_string(), value).is_none() {
            order.push(name.to_string());
        }
    };
    for source in inputs.container.list_at(&["envFrom"]) {
        for (name, value) in from_source(inputs, source)? {
            put(&mut result, &name, value);
        }
    }
    let services = service_variables(inputs);
    for env in inputs.container.list_at(&["env"]) {
        let value = match env.at(&["valueFrom"]) {
            Some(from) => value_from(inputs, from)?,
            None => Some(expand(env.str_at(&["value"]), &|name| result.get(name).or_else(|| services.get(name)).cloned())),
        };
        if let Some(value) = value {
            put(&mut result, name_of(env), value);
        }
    }
    // Service variables do not override what the pod says itself.
    let mut all: Vec<(String, String)> = services.into_iter().filter(|(name, _)| !result.contains_key(name)).collect();
    all.extend(order.into_iter().map(|name| {
        let value = result.remove(&name).expect("every ordered name was put");
        (name, value)
    }));
    Ok(all)
}

fn config_error(message: String) -> Reason {
    Reason { reason: "CreateContainerConfigError".to_string(), message }
}

fn from_source(inputs: &Inputs, source: &Value) -> Result<Vec<(String, String)>, Reason> {
    let prefix = source.str_at(&["prefix"]);
    let mut found = Vec::new();
    for (key, kind) in [("configMapRef", Kind::ConfigMap), ("secretRef", Kind::Secret)] {
        let Some(r) = source.at(&[key]) else { continue };
        match inputs.contents.get(&(kind, name_of(r).to_string())) {
            Some(data) => {
                found.extend(data.iter().map(|(k, v)| (format!("{prefix}{k}"), String::from_utf8_lossy(v).into_owned())));
            }
            None if r.bool_at(&["optional"]) => {}
            None => return Err(config_error(format!("{} \"{}\" not found", kind.word(), name_of(r)))),
        }
    }
    // A variable name may not hold `=`; everything else is allowed.
    found.retain(|(name, _)| !name.is_empty() && !name.contains('='));
    Ok(found)
}

/// `None` where an optional source is absent: the variable is then not set at all.
fn value_from(inputs: &Inputs, from: &Value) -> Result<Option<String>, Reason> {
    if let Some(r) = from.at(&["fieldRef"]) {
        let path = r.str_at(&["fieldPath"]);
        let text = field(inputs.pod, path, inputs.node, inputs.pod_ips);
        return text.map(Some).ok_or_else(|| config_error(format!("unsupported fieldPath: {path}")));
    }
    if let Some(r) = from.at(&["resourceFieldRef"]) {
        return resource(inputs.pod, Some(inputs.container), r, inputs.node).map(Some).map_err(config_error);
    }
    for (key, kind) in [("configMapKeyRef", Kind::ConfigMap), ("secretKeyRef", Kind::Secret)] {
        let Some(r) = from.at(&[key]) else { continue };
        let (name, wanted, optional) = (name_of(r), r.str_at(&["key"]), r.bool_at(&["optional"]));
        let data = inputs.contents.get(&(kind, name.to_string()));
        return match data.map(|d| d.get(wanted)) {
            Some(Some(bytes)) => Ok(Some(String::from_utf8_lossy(bytes).into_owned())),
            _ if optional => Ok(None),
            Some(None) => {
                let object = if kind == Kind::Secret { "Secret" } else { "ConfigMap" };
                let namespace = inputs.pod.namespace();
                Err(config_error(format!("couldn't find key {wanted} in {object} {namespace}/{name}")))
            }
            None => Err(config_error(format!("{} \"{name}\" not found", kind.word()))),
        };
    }
    if from.at(&["fileKeyRef"]).is_some() {
        return Err(config_error("env valueFrom.fileKeyRef is not supported yet by this node".to_string()));
    }
    Ok(None)
}

/// A downward API field as text; `None` for one that does not exist.
pub fn field(pod: Pod, path: &str, node: &NodeFacts, pod_ips: &[String]) -> Option<String> {
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => "labels",
            "metadata.annotations" => "annotations",
            _ => return None,
        };
        return Some(pod.0.map_at(&["metadata", map]).map_or("", |m| m.str(key)).to_string());
    }
    let ips: &[String] = if pod.host_network() { &node.host_ips } else { pod_ips };
    Some(match path {
        "metadata.name" => pod.name().to_string(),
        "metadata.namespace" => pod.namespace().to_string(),
        "metadata.uid" => pod.uid().to_string(),
        "metadata.labels" => pairs(pod.0.map_at(&["metadata", "labels"])),
        "metadata.annotations" => pairs(pod.0.map_at(&["metadata", "annotations"])),
        "spec.nodeName" => pod.0.str_at(&["spec", "nodeName"]).to_string(),
        "spec.serviceAccountName" => pod.0.str_at(&["spec", "serviceAccountName"]).to_string(),
        "status.hostIP" => node.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => node.host_ips.join(","),
        "status.podIP" => ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => ips.join(","),
        _ => return None,
    })
}

/// `metadata.labels['key']` → (`metadata.labels`, `key`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// `key="value"` lines with Go's quoting, as the downward API writes maps.
fn pairs(map: Option<&Map>) -> String {
    let lines = map.into_iter().flat_map(Map::iter).map(|(k, v)| format!("{k}={}", quoted(v.as_str().unwrap_or(""))));
    lines.collect::<Vec<_>>().join("\n")
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A `resourceFieldRef` as text: the container's request or limit (a missing limit is the node's) in units of the divisor.
pub fn resource(pod: Pod, container: Option<&Value>, reference: &Value, node: &NodeFacts) -> Result<String, String> {
    let container = match reference.str_at(&["containerName"]) {
        "" => container.ok_or_else(|| "resourceFieldRef without containerName".to_string())?,
        name => pod.container(name).ok_or_else(|| format!("container {name} not found"))?,
    };
    let path = reference.str_at(&["resource"]);
    let (kind, what) = path.split_once('.').ok_or_else(|| format!("unsupported container resource: {path}"))?;
    let own = container.at(&["resources", kind, what]);
    let divisor = reference.at(&["divisor"]);
    let (amount, divisor) = if what == "cpu" {
        let default = if kind == "limits" { node.cpu_milli } else { 0 };
        (qos::millis(own).unwrap_or(default), qos::millis(divisor).filter(|d| *d > 0).unwrap_or(1000))
    } else {
        let default = match (kind, what) {
            ("limits", "memory") => node.memory_bytes,
            ("limits", "ephemeral-storage") => node.ephemeral_bytes,
            _ => 0,
        };
        (qos::units(own).unwrap_or(default), qos::units(divisor).filter(|d| *d > 0).unwrap_or(1))
    };
    Ok((amount / divisor + i64::from(amount % divisor != 0)).to_string())
}

/// Replaces `$(NAME)` by its value where there is one; `$$` is a literal `$`; everything else stays.
pub fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(tail) = rest.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = tail;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// Variables of the pod's namespace's services and of `default/kubernetes`; only the latter with `enableServiceLinks: false`.
fn service_variables(inputs: &Inputs) -> BTreeMap<String, String> {
    let links = inputs.pod.0.at(&["spec", "enableServiceLinks"]).and_then(Value::as_bool).unwrap_or(true);
    let is_master = |s: &Service| s.namespace == "default" && s.name == "kubernetes";
    let own = |s: &&Service| links && s.namespace == inputs.pod.namespace();
    let mut all = BTreeMap::new();
    // The namespace's own service of the same name wins.
    for service in inputs.services.iter().filter(|s| is_master(s)).chain(inputs.services.iter().filter(own)) {
        variables(service, &mut all);
    }
    all
}

fn variables(service: &Service, into: &mut BTreeMap<String, String>) {
    let screaming = |s: &str| s.replace('-', "_").to_uppercase();
    let prefix = screaming(&service.name);
    let host = &service.ip;
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    into.insert(format!("{prefix}_SERVICE_HOST"), host.clone());
    for (i, (name, port, protocol)) in service.ports.iter().enumerate() {
        let low = protocol.to_lowercase();
        let url = format!("{low}://{bracketed}:{port}");
        if i == 0 {
            into.insert(format!("{prefix}_SERVICE_PORT"), port.to_string());
            into.insert(format!("{prefix}_PORT"), url.clone());
        }
        if !name.is_empty() {
            into.insert(format!("{prefix}_SERVICE_PORT_{}", screaming(name)), port.to_string());
        }
        let base = format!("{prefix}_PORT_{port}_{protocol}");
        into.insert(format!("{base}_PROTO"), low);
        into.insert(format!("{base}_PORT"), port.to_string());
        into.insert(format!("{base}_ADDR"), host.clone());
        into.insert(base, url);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    fn run(pod: &Value, contents: &Contents) -> Result<Vec<(String, String)>, Reason> {
        let node =
            NodeFacts { name: "n".into(), host_ips: vec!["10.0.0.1".into()], cpu_milli: 2000, memory_bytes: 1 << 30, ..Default::default() };
        let service = Service {
            namespace: "default".into(),
            name: "kubernetes".into(),
            ip: "10.43.0.1".into(),
            ports: vec![("https".into(), 443, "TCP".into())],
        };
        let pod = Pod(pod);
        let (container, ips) = (&pod.containers()[0], ["10.42.0.5".to_string()]);
        environment(&Inputs { pod, container, contents, services: &[service], node: &node, pod_ips: &ips })
    }

    #[test]
    fn references_expand_and_win_over_services() {
        let pod = value!({"metadata": {"name": "p", "namespace": "x", "labels": {"a": "1"}}, "spec": {"containers": [{"name": "c",
            "resources": {"limits": {"memory": "64Mi"}},
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "none", "optional": true}}],
            "env": [{"name": "A", "value": "$(P_k)-$$(B)-$(NO)-$(KUBERNETES_SERVICE_HOST)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "KUBERNETES_PORT", "value": "mine"}]}]}});
        let contents = Contents::from([((Kind::ConfigMap, "cm".to_string()), BTreeMap::from([("k".to_string(), b"v".to_vec())]))]);
        let env: BTreeMap<String, String> = run(&pod, &contents).unwrap().into_iter().collect();
        assert_eq!(env["A"], "v-$(B)-$(NO)-10.43.0.1");
        assert_eq!((env["IP"].as_str(), env["L"].as_str(), env["CPU"].as_str(), env["MEM"].as_str()), ("10.42.0.5", "1", "2", "64"));
        assert_eq!((env["KUBERNETES_PORT"].as_str(), env["KUBERNETES_PORT_443_TCP"].as_str()), ("mine", "tcp://10.43.0.1:443"));
        assert_eq!(env["KUBERNETES_SERVICE_PORT_HTTPS"], "443");
    }

    #[test]
    fn a_missing_key_is_a_config_error_unless_optional() {
        let pod = |optional: bool| {
            value!({"metadata": {"namespace": "x"}, "spec": {"containers": [{"name": "c", "env": [{"name": "A",
            "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": optional}}}]}]}})
        };
        assert_eq!(run(&pod(false), &Contents::new()).unwrap_err().message, "secret \"s\" not found");
        let contents = Contents::from([((Kind::Secret, "s".to_string()), BTreeMap::new())]);
        assert_eq!(run(&pod(false), &contents).unwrap_err().message, "couldn't find key k in Secret x/s");
        assert!(!run(&pod(true), &Contents::new()).unwrap().iter().any(|(k, _)| k == "A"));
    }

    #[test]
    fn maps_are_quoted_as_go_does() {
        let pod = value!({"metadata": {"annotations": {"a": "x\n\"y\"", "b": "é"}}});
        let text = field(Pod(&pod), "metadata.annotations", &NodeFacts::default(), &[]).unwrap();
        assert_eq!(text, "a=\"x\\n\\\"y\\\"\"\nb=\"é\"");
    }
}
