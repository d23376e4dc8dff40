//! Pure: what makes variables, mounts and devices of a container valid, in upstream's words.

use crate::server::cursor::At;
use crate::server::strategy::NameRule;
use crate::server::validation as check;

/// Fields of a pod that variables can take their values from.
pub const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// The same for files of downward API volumes.
pub const VOLUME_FIELDS: [&str; 5] = ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Fields the API knows by name and neither of them can use.
const OTHER_FIELDS: [&str; 3] = ["spec.restartPolicy", "spec.schedulerName", "status.phase"];
const RESOURCE_FIELDS: [&str; 6] =
    ["limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"];
const DIVISORS: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

pub fn env(env: &At) {
    for variable in env.each() {
        variable.get("name").must_be(check::env_name);
        let from = variable.get("valueFrom");
        if from.is_set() {
            value_from(&from, !variable.get("value").is_empty());
        }
    }
}

fn value_from(from: &At, has_value: bool) {
    const SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let sources: Vec<At> = SOURCES.iter().map(|key| from.get(key)).filter(At::is_set).collect();
    for source in &sources {
        match source.path.to_string().rsplit('.').next() {
            Some("fieldRef") => field_ref(source, &ENV_FIELDS),
            Some("resourceFieldRef") => resource_field_ref(source, false),
            Some("fileKeyRef") => {
                source.get("key").must_be(check::env_name);
                source.get("volumeName").must_be(check::label);
                if source.get("path").must() {
                    no_backsteps(&source.get("path"));
                }
            }
            _ => {
                source.get("name").ok(check::subdomain);
                source.get("key").must_be(check::config_key);
            }
        }
    }
    match sources.len() {
        0 => {
            let known = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
            from.invalid_as("", known);
        }
        _ if has_value => from.invalid_as("", "may not be specified when `value` is not empty"),
        1 => {}
        _ => from.invalid_as("", "may not have more than one field specified at a time"),
    }
}

/// The path and, for `metadata.labels['x']`, its subscript.
fn subscript(path: &str) -> (&str, Option<&str>) {
    match path.strip_suffix("']").and_then(|p| p.split_once("['")).filter(|(base, _)| !base.is_empty()) {
        Some((base, key)) => (base, Some(key)),
        None => (path, None),
    }
}

/// A reference to one of the pod's `fields`.
pub fn field_ref(field: &At, fields: &[&str]) {
    let (version, path) = (field.get("apiVersion"), field.get("fieldPath"));
    if !version.must() || !path.must() {
        return;
    }
    let unknown = match (version.str(), subscript(path.str())) {
        ("v1", ("metadata.annotations", Some(key))) => {
            check::qualified_name(&key.to_lowercase()).into_iter().for_each(|m| field.invalid_as(key.to_lowercase(), m));
            return;
        }
        ("v1", ("metadata.labels", Some(key))) => {
            check::qualified_name(key).into_iter().for_each(|m| field.invalid_as(key, m));
            return;
        }
        ("v1", (_, Some(_))) => format!("field label does not support subscript: {}", path.str()),
        ("v1", (text, None)) if fields.contains(&text) => return,
        ("v1", (text, None)) if [&ENV_FIELDS[..], &VOLUME_FIELDS[..], &OTHER_FIELDS[..]].concat().contains(&text) => {
            path.one_of(fields);
            return;
        }
        ("v1", (text, None)) => format!("field label not supported: {text}"),
        (other, _) => format!("unsupported pod version: {other}"),
    };
    path.invalid(format!("error converting fieldPath: {unknown}"));
}

/// A reference to an amount of one of the pod's containers.
pub fn resource_field_ref(amount: &At, in_volume: bool) {
    let resource = amount.get("resource");
    let name = resource.str();
    let huge = name.starts_with("limits.hugepages-") || name.starts_with("requests.hugepages-");
    if (!in_volume || amount.get("containerName").must()) && resource.must() && !huge {
        resource.one_of(&RESOURCE_FIELDS);
    }
    let divisor = amount.get("divisor");
    if divisor.quantity().is_none_or(|q| q.is_zero()) {
        return;
    }
    let kind = match name.split_once('.').map_or("", |(_, kind)| kind) {
        "cpu" => {
            if !["1m", "1"].contains(&divisor.str()) {
                divisor.invalid_as(name, "only divisor's values 1m and 1 are supported with the cpu resource");
            }
            return;
        }
        "memory" => "memory",
        "ephemeral-storage" => "local ephemeral storage",
        _ if huge => "hugepages",
        _ => return,
    };
    if !DIVISORS.contains(&divisor.str()) {
        divisor.invalid_as(name, format!("only divisor's values {} are supported with the {kind} resource", DIVISORS.join(", ")));
    }
}

pub fn env_from(list: &At) {
    for source in list.each() {
        source.get("prefix").may_be(check::env_name);
        let refs: Vec<At> = ["configMapRef", "secretRef"].iter().map(|k| source.get(k)).filter(At::is_set).collect();
        for each in &refs {
            let name = each.get("name");
            if name.must() {
                check::name(NameRule::Subdomain, name.str(), true).into_iter().for_each(|m| name.invalid(m));
            }
        }
        match refs.len() {
            0 => list.invalid_as("", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => list.invalid_as("", "may not have more than one field specified at a time"),
        }
    }
}

/// Whether a volume of the pod can be a device; `None`: there is no such volume.
pub type Volumes<'a> = &'a dyn Fn(&str) -> Option<bool>;

pub fn mounts(container: &At, volumes: Volumes) {
    let (list, devices) = (container.get("volumeMounts"), container.get("volumeDevices").each());
    let mut paths: Vec<&str> = Vec::new();
    for mount in list.each() {
        let (name, path) = (mount.get("name"), mount.get("mountPath"));
        name.must();
        if volumes(name.str()).is_none() {
            name.not_found("");
        }
        path.must();
        if paths.contains(&path.str()) {
            path.invalid_as(path.str(), "must be unique");
        }
        paths.push(path.str());
        if devices.iter().any(|d| d.get("name").str() == name.str()) {
            name.invalid("must not already exist in volumeDevices");
        }
        if devices.iter().any(|d| d.get("devicePath").str() == path.str()) {
            path.invalid("must not already exist as a path in volumeDevices");
        }
        // Upstream names the list, not the entry, in most of what follows.
        let listed = |key: &'static str| mount.get(key).as_at(list.path.key(key));
        if !mount.get("subPath").is_empty() {
            descending_path(&listed("subPath"));
        }
        if !mount.get("subPathExpr").is_empty() {
            if !mount.get("subPath").is_empty() {
                mount.get("subPathExpr").invalid("subPathExpr and subPath are mutually exclusive");
            }
            descending_path(&listed("subPathExpr"));
        }
        let propagation = listed("mountPropagation");
        if propagation.is_set() {
            propagation.one_of(&["Bidirectional", "HostToContainer", "None"]);
            if propagation.str() == "Bidirectional" && !container.get("securityContext").get("privileged").flag() {
                propagation.forbidden("Bidirectional mount propagation is available only to privileged containers");
            }
        }
        let recursive = listed("recursiveReadOnly");
        if recursive.is_set() && recursive.one_of(&["Disabled", "Enabled", "IfPossible"]) && recursive.str() != "Disabled" {
            if !mount.get("readOnly").flag() {
                recursive.forbidden("may only be specified when readOnly is true");
            }
            if propagation.is_set() && propagation.str() != "None" {
                recursive.forbidden("may only be specified when mountPropagation is None or not specified");
            }
        }
    }
}

pub fn devices(container: &At, volumes: Volumes) {
    let mounts = container.get("volumeMounts").each();
    let (mut names, mut paths): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for device in container.get("volumeDevices").each() {
        let (name, path) = (device.get("name"), device.get("devicePath"));
        name.must();
        if names.contains(&name.str()) {
            name.invalid("must be unique");
        }
        match volumes(name.str()) {
            Some(false) => name.invalid("can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"),
            Some(true) => {}
            None => name.not_found(""),
        }
        path.must();
        if paths.contains(&path.str()) {
            path.invalid_as(path.str(), "must be unique");
        }
        if path.str().split('/').any(|s| s == "..") {
            path.invalid("can not contain backsteps ('..')");
        } else {
            paths.push(path.str());
        }
        if mounts.iter().any(|m| m.get("name").str() == name.str()) {
            name.invalid("must not already exist in volumeMounts");
        }
        if mounts.iter().any(|m| m.get("mountPath").str() == path.str()) {
            path.invalid("must not already exist as a path in volumeMounts");
        }
        if !name.is_empty() {
            names.push(name.str());
        }
    }
}

/// A path that leads down from where it starts.
pub fn descending_path(path: &At) {
    if path.str().starts_with('/') {
        path.invalid("must be a relative path");
    }
    no_backsteps(path);
}

fn no_backsteps(path: &At) {
    if path.str().split('/').any(|segment| segment == "..") {
        path.invalid("must not contain '..'");
    }
}
