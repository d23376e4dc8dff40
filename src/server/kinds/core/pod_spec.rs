//! Pure: what makes a pod spec valid, in upstream's words. [`pod`] checks a Pod, [`template`] the template of a workload;
//! both go through [`spec`].

use std::collections::HashSet;

use crate::api::quantity::Quantity;
use crate::api::status::FieldError;
use crate::api::value::{Map, Value};
use crate::server::cursor;
use crate::server::kinds::core::{amounts, volumes as sources};
use crate::server::validation::{self as check, between, invalid, invalid_number, non_negative, one_of};

type Errors = Vec<FieldError>;

const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];

pub fn pod(pod: &Value) -> Errors {
    let mut errors = Errors::new();
    let empty = Value::map();
    let body = pod.get("spec").unwrap_or(&empty);
    spec(&mut errors, "spec", body);
    if pod.at(&["metadata", "annotations", "kubernetes.io/config.mirror"]).is_some() && body.str_at(&["nodeName"]).is_empty() {
        let at = "metadata.annotations[kubernetes.io/config.mirror]";
        let value = pod.str_at(&["metadata", "annotations", "kubernetes.io/config.mirror"]);
        errors.push(FieldError::invalid(at, value, "must set spec.nodeName if mirror pod annotation is set"));
    }
    if !body.list_at(&["ephemeralContainers"]).is_empty() {
        errors.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
    if !body.list_at(&["schedulingGates"]).is_empty() && !body.str_at(&["nodeName"]).is_empty() {
        errors.push(FieldError::forbidden("spec.nodeName", "cannot be set until all schedulingGates have been cleared"));
    }
    errors
}

/// `at` is the path of the template, such as `spec.template`.
pub fn template(errors: &mut Errors, at: &str, template: &Value) {
    let empty = Value::map();
    check::labels(errors, &format!("{at}.labels"), template.at(&["metadata", "labels"]));
    check::annotations(errors, &format!("{at}.annotations"), template.at(&["metadata", "annotations"]));
    let body = template.get("spec").unwrap_or(&empty);
    spec(errors, &format!("{at}.spec"), body);
    if !body.list_at(&["ephemeralContainers"]).is_empty() {
        let why = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(format!("{at}.spec.ephemeralContainers"), why));
    }
}

/// What all containers are checked against.
struct Surroundings<'a> {
    spec: &'a Value,
    host_network: bool,
    volumes: Vec<(&'a str, &'a Value)>,
    claims: Vec<&'a str>,
    grace_seconds: i64,
    is_template: bool,
}

fn spec(errors: &mut Errors, at: &str, spec: &Value) {
    let text = |key: &str| spec.str_at(&[key]);
    let around = Surroundings {
        spec,
        host_network: spec.bool_at(&["hostNetwork"]),
        volumes: spec.list_at(&["volumes"]).iter().map(|v| (v.str_at(&["name"]), v)).collect(),
        claims: spec.list_at(&["resourceClaims"]).iter().map(|c| c.str_at(&["name"])).collect(),
        grace_seconds: spec.i64_at(&["terminationGracePeriodSeconds"]).unwrap_or(30),
        is_template: at != "spec",
    };
    volumes(errors, &format!("{at}.volumes"), spec.list_at(&["volumes"]));
    resource_claims(errors, &format!("{at}.resourceClaims"), spec.list_at(&["resourceClaims"]));
    containers(errors, at, &around);
    one_of(errors, &format!("{at}.restartPolicy"), text("restartPolicy"), &["Always", "OnFailure", "Never"]);
    one_of(errors, &format!("{at}.dnsPolicy"), text("dnsPolicy"), &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    node_selector_labels(errors, &format!("{at}.nodeSelector"), spec.at(&["nodeSelector"]));
    security_context(errors, at, spec);
    affinity(errors, &format!("{at}.affinity"), spec.at(&["affinity"]));
    dns_config(errors, &format!("{at}.dnsConfig"), spec);
    readiness_gates(errors, &format!("{at}.readinessGates"), spec.list_at(&["readinessGates"]));
    scheduling_gates(errors, &format!("{at}.schedulingGates"), spec.list_at(&["schedulingGates"]));
    spread_constraints(errors, &format!("{at}.topologySpreadConstraints"), spec.list_at(&["topologySpreadConstraints"]));
    if let Some(r) = spec.at(&["resources"]) {
        resources(errors, &format!("{at}.resources"), Some(r));
    }
    for key in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        let name = text(key);
        if !name.is_empty() {
            invalid(errors, &format!("{at}.{key}"), name, check::subdomain(name));
        }
    }
    if let Some(n) = spec.i64_at(&["activeDeadlineSeconds"]) {
        invalid_number(errors, &format!("{at}.activeDeadlineSeconds"), n, between(n, 1, i32::MAX.into()));
    }
    for key in ["hostname", "subdomain"] {
        if !text(key).is_empty() {
            invalid(errors, &format!("{at}.{key}"), text(key), check::label(text(key)));
        }
    }
    tolerations(errors, &format!("{at}.tolerations"), spec.list_at(&["tolerations"]));
    host_aliases(errors, &format!("{at}.hostAliases"), spec.list_at(&["hostAliases"]));
    let policy = text("preemptionPolicy");
    if !policy.is_empty() {
        one_of(errors, &format!("{at}.preemptionPolicy"), policy, &["PreemptLowerPriority", "Never"]);
    }
    if let Some(os) = spec.at(&["os"]) {
        match os.str_at(&["name"]) {
            "" => errors.push(FieldError::required(format!("{at}.os.name"), "cannot be empty")),
            name => one_of(errors, &format!("{at}.os"), name, &["linux", "windows"]),
        }
        if os.str_at(&["name"]) == "linux" && spec.at(&["securityContext", "windowsOptions"]).is_some() {
            let why = "windows options cannot be set for a linux pod";
            errors.push(FieldError::forbidden(format!("{at}.securityContext.windowsOptions"), why));
        }
    }
}

// --- containers

fn containers(errors: &mut Errors, at: &str, around: &Surroundings) {
    let spec = around.spec;
    let (main, init) = (spec.list_at(&["containers"]), spec.list_at(&["initContainers"]));
    let at_main = format!("{at}.containers");
    if main.is_empty() {
        errors.push(FieldError::required(at_main.clone(), ""));
    }
    let mut names = HashSet::new();
    for (i, c) in main.iter().enumerate() {
        let at = format!("{at_main}[{i}]");
        container(errors, &at, c, around, &mut names);
        lifecycle(errors, &format!("{at}.lifecycle"), c.at(&["lifecycle"]), around.grace_seconds);
        for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
            probe(errors, &format!("{at}.{kind}"), c.at(&[kind]), kind != "readinessProbe", around.grace_seconds);
        }
        if let Some(policy) = c.at(&["restartPolicy"]).and_then(Value::as_str) {
            one_of(errors, &format!("{at}.restartPolicy"), policy, &["Always", "OnFailure", "Never"]);
        }
    }
    host_ports(errors, &at_main, main);
    let at_init = format!("{at}.initContainers");
    for (i, c) in init.iter().enumerate() {
        let at = format!("{at_init}[{i}]");
        container(errors, &at, c, around, &mut names);
        let sidecar = c.str_at(&["restartPolicy"]) == "Always";
        if sidecar {
            lifecycle(errors, &format!("{at}.lifecycle"), c.at(&["lifecycle"]), around.grace_seconds);
        } else if c.at(&["lifecycle"]).is_some() {
            let why = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(format!("{at}.lifecycle"), why));
        }
        for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
            if sidecar {
                probe(errors, &format!("{at}.{kind}"), c.at(&[kind]), kind != "readinessProbe", around.grace_seconds);
            } else if c.at(&[kind]).is_some() {
                let why = "may not be set for init containers without restartPolicy=Always";
                errors.push(FieldError::forbidden(format!("{at}.{kind}"), why));
            }
        }
        host_ports(errors, &at_init, std::slice::from_ref(c));
    }
}

fn container<'a>(errors: &mut Errors, at: &str, c: &'a Value, around: &Surroundings, names: &mut HashSet<&'a str>) {
    let name = c.str_at(&["name"]);
    match name {
        "" => errors.push(FieldError::required(format!("{at}.name"), "")),
        _ => invalid(errors, &format!("{at}.name"), name, check::label(name)),
    }
    if !name.is_empty() && !names.insert(name) {
        errors.push(FieldError::duplicate(format!("{at}.name"), name));
    }
    let name_of_image = c.str_at(&["image"]);
    // A template may still be wrong about white space: it is the pod that is refused.
    image(errors, &format!("{at}.image"), if around.is_template { name_of_image.trim() } else { name_of_image });
    match c.str_at(&["terminationMessagePolicy"]) {
        "" => errors.push(FieldError::required(format!("{at}.terminationMessagePolicy"), "")),
        policy => one_of(errors, &format!("{at}.terminationMessagePolicy"), policy, &["File", "FallbackToLogsOnError"]),
    }
    ports(errors, &format!("{at}.ports"), c.list_at(&["ports"]), around.host_network);
    env(errors, &format!("{at}.env"), c.list_at(&["env"]));
    env_from(errors, &format!("{at}.envFrom"), c.list_at(&["envFrom"]));
    mounts(errors, at, c, around);
    match c.str_at(&["imagePullPolicy"]) {
        "" => errors.push(FieldError::required(format!("{at}.imagePullPolicy"), "")),
        policy => one_of(errors, &format!("{at}.imagePullPolicy"), policy, &PULL_POLICIES),
    }
    resources(errors, &format!("{at}.resources"), c.get("resources"));
    claims(errors, &format!("{at}.resources.claims"), c.list_at(&["resources", "claims"]), &around.claims);
    resize_policy(errors, &format!("{at}.resizePolicy"), c.list_at(&["resizePolicy"]), around.spec.str_at(&["restartPolicy"]));
    container_security(errors, &format!("{at}.securityContext"), c.at(&["securityContext"]));
}

pub fn image(errors: &mut Errors, at: &str, image: &str) {
    if image.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(at, image, "must not have leading or trailing whitespace"));
    }
}

fn ports(errors: &mut Errors, at: &str, ports: &[Value], host_network: bool) {
    let mut names = HashSet::new();
    for (i, p) in ports.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let name = p.str_at(&["name"]);
        if !name.is_empty() {
            let messages = check::port_name(name);
            if messages.is_empty() && !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), name));
            }
            invalid(errors, &format!("{at}.name"), name, messages);
        }
        let (container, host) = (p.i64_at(&["containerPort"]).unwrap_or(0), p.i64_at(&["hostPort"]).unwrap_or(0));
        match container {
            0 => errors.push(FieldError::required(format!("{at}.containerPort"), "")),
            n => invalid_number(errors, &format!("{at}.containerPort"), n, check::port_number(n)),
        }
        if host != 0 {
            invalid_number(errors, &format!("{at}.hostPort"), host, check::port_number(host));
            if host_network && host != container {
                errors.push(FieldError::invalid(format!("{at}.hostPort"), host, "must match `containerPort` when `hostNetwork` is true"));
            }
        }
        match p.str_at(&["protocol"]) {
            "" => errors.push(FieldError::required(format!("{at}.protocol"), "")),
            protocol => one_of(errors, &format!("{at}.protocol"), protocol, &["SCTP", "TCP", "UDP"]),
        }
    }
}

fn host_ports(errors: &mut Errors, at: &str, containers: &[Value]) {
    let mut taken = HashSet::new();
    for (i, c) in containers.iter().enumerate() {
        for (n, p) in c.list_at(&["ports"]).iter().enumerate() {
            let port = p.i64_at(&["hostPort"]).unwrap_or(0);
            if port == 0 {
                continue;
            }
            let key = format!("{}/{}/{port}", p.str_at(&["protocol"]), p.str_at(&["hostIP"]));
            if !taken.insert(key.clone()) {
                errors.push(FieldError::duplicate(format!("{at}[{i}].ports[{n}].hostPort"), key));
            }
        }
    }
}

const ENV_FIELDS: [&str; 8] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
];
const VOLUME_FIELDS: [&str; 5] = ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const RESOURCE_FIELDS: [&str; 6] =
    ["limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"];

fn env(errors: &mut Errors, at: &str, env: &[Value]) {
    for (i, e) in env.iter().enumerate() {
        let at = format!("{at}[{i}]");
        match e.str_at(&["name"]) {
            "" => errors.push(FieldError::required(format!("{at}.name"), "")),
            name => invalid(errors, &format!("{at}.name"), name, check::env_name(name)),
        }
        if let Some(from) = e.at(&["valueFrom"]) {
            value_from(errors, &format!("{at}.valueFrom"), from, !e.str_at(&["value"]).is_empty());
        }
    }
}

fn value_from(errors: &mut Errors, at: &str, from: &Value, has_value: bool) {
    let sources: Vec<&str> = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"]
        .into_iter()
        .filter(|key| from.at(&[key]).is_some())
        .collect();
    for source in &sources {
        let (at, r) = (format!("{at}.{source}"), from.get(source).expect("filtered on it"));
        match *source {
            "fieldRef" => env_field_ref(errors, &at, r),
            "resourceFieldRef" => resource_field_ref(errors, &at, r, false),
            "fileKeyRef" => {
                for key in ["key", "path", "volumeName"] {
                    if r.str_at(&[key]).is_empty() {
                        errors.push(FieldError::required(format!("{at}.{key}"), ""));
                    }
                }
            }
            _ => key_ref(errors, &at, r),
        }
    }
    match sources.len() {
        0 => {
            let known = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
            errors.push(FieldError::invalid(at, "", known));
        }
        _ if has_value => errors.push(FieldError::invalid(at, "", "may not be specified when `value` is not empty")),
        1 => {}
        _ => errors.push(FieldError::invalid(at, "", "may not have more than one field specified at a time")),
    }
}

fn key_ref(errors: &mut Errors, at: &str, r: &Value) {
    let (name, key) = (r.str_at(&["name"]), r.str_at(&["key"]));
    if name.is_empty() {
        invalid(errors, &format!("{at}.name"), name, check::subdomain(name));
    }
    match key {
        "" => errors.push(FieldError::required(format!("{at}.key"), "")),
        key => invalid(errors, &format!("{at}.key"), key, check::config_key(key)),
    }
}

/// The path and, for `metadata.labels['x']`, its subscript.
fn subscript(path: &str) -> (&str, Option<&str>) {
    match path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        Some((base, key)) => (base, Some(key)),
        None => (path, None),
    }
}

fn env_field_ref(errors: &mut Errors, at: &str, r: &Value) {
    let path = r.str_at(&["fieldPath"]);
    if r.str_at(&["apiVersion"]).is_empty() {
        errors.push(FieldError::required(format!("{at}.apiVersion"), ""));
        return;
    }
    if path.is_empty() {
        errors.push(FieldError::required(format!("{at}.fieldPath"), ""));
        return;
    }
    let at = format!("{at}.fieldPath");
    match subscript(path) {
        ("metadata.labels" | "metadata.annotations", Some(key)) => {
            invalid(errors, &at, key, check::qualified_name(&key.to_lowercase()));
        }
        (base, Some(_)) => {
            errors.push(FieldError::invalid(at, base, "does not support subscript"));
        }
        (path, None) if ENV_FIELDS.contains(&path) || path == "status.podIPs" => {}
        // Known to the API, but of no use in a variable.
        ("metadata.labels" | "metadata.annotations" | "spec.restartPolicy" | "spec.schedulerName" | "status.phase", None) => {
            let known: Vec<&str> = ENV_FIELDS.iter().copied().chain(["status.podIPs"]).collect();
            errors.push(FieldError::not_supported(at, path, &known));
        }
        (path, None) => {
            let why = format!("error converting fieldPath: field label not supported: {path}");
            errors.push(FieldError::invalid(at, path, why));
        }
    }
}

pub fn resource_field_ref(errors: &mut Errors, at: &str, r: &Value, in_volume: bool) {
    let resource = r.str_at(&["resource"]);
    if in_volume && r.str_at(&["containerName"]).is_empty() {
        errors.push(FieldError::required(format!("{at}.containerName"), ""));
        return;
    }
    if resource.is_empty() {
        errors.push(FieldError::required(format!("{at}.resource"), ""));
        return;
    }
    let hugepages = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if !hugepages && !RESOURCE_FIELDS.contains(&resource) {
        errors.push(FieldError::not_supported(format!("{at}.resource"), resource, &RESOURCE_FIELDS));
    }
    let divisor = r.str_at(&["divisor"]);
    let zero = Quantity::parse(divisor).map_or(true, |q| q.is_zero());
    if zero {
        return;
    }
    let at = format!("{at}.divisor");
    if resource.ends_with(".cpu") {
        if !matches!(divisor, "1m" | "1") {
            errors.push(FieldError::invalid(at, resource, "only divisor's values 1m and 1 are supported with the cpu resource"));
        }
    } else if !["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"].contains(&divisor) {
        let kind = if resource.ends_with(".memory") { "memory" } else { "local ephemeral storage" };
        let why =
            format!("only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the {kind} resource");
        errors.push(FieldError::invalid(at, resource, why));
    }
}

fn env_from(errors: &mut Errors, at: &str, list: &[Value]) {
    for (i, e) in list.iter().enumerate() {
        let each = format!("{at}[{i}]");
        let prefix = e.str_at(&["prefix"]);
        if !prefix.is_empty() {
            invalid(errors, &format!("{each}.prefix"), prefix, check::env_name(prefix));
        }
        let refs: Vec<&str> = ["configMapRef", "secretRef"].into_iter().filter(|k| e.at(&[k]).is_some()).collect();
        match refs.as_slice() {
            [] => errors.push(FieldError::invalid(at, "", "must specify one of: `configMapRef` or `secretRef`")),
            [_, _] => errors.push(FieldError::invalid(at, "", "may not have more than one field specified at a time")),
            _ => {}
        }
        for key in refs {
            if e.str_at(&[key, "name"]).is_empty() {
                errors.push(FieldError::required(format!("{each}.{key}.name"), ""));
            }
        }
    }
}

fn mounts(errors: &mut Errors, at: &str, c: &Value, around: &Surroundings) {
    let mut paths = HashSet::new();
    for (i, m) in c.list_at(&["volumeMounts"]).iter().enumerate() {
        let each = format!("{at}.volumeMounts[{i}]");
        let (name, path) = (m.str_at(&["name"]), m.str_at(&["mountPath"]));
        if name.is_empty() {
            errors.push(FieldError::required(format!("{each}.name"), ""));
        }
        if !around.volumes.iter().any(|(v, _)| *v == name) {
            errors.push(FieldError::not_found(format!("{each}.name"), name));
        }
        if path.is_empty() {
            errors.push(FieldError::required(format!("{each}.mountPath"), ""));
        }
        if !paths.insert(path) {
            errors.push(FieldError::invalid(format!("{each}.mountPath"), path, "must be unique"));
        }
        for key in ["subPath", "subPathExpr"] {
            let sub = m.str_at(&[key]);
            if !sub.is_empty() {
                // Upstream names the list, not the entry.
                relative_path(errors, &format!("{at}.volumeMounts.{key}"), sub);
            }
        }
        if !m.str_at(&["subPath"]).is_empty() && !m.str_at(&["subPathExpr"]).is_empty() {
            let at = format!("{at}.volumeMounts.subPathExpr");
            errors.push(FieldError::invalid(at, m.str_at(&["subPathExpr"]), "subPathExpr and subPath are mutually exclusive"));
        }
        let propagation = m.str_at(&["mountPropagation"]);
        if !propagation.is_empty() {
            let known = ["None", "HostToContainer", "Bidirectional"];
            one_of(errors, &format!("{each}.mountPropagation"), propagation, &known);
            if propagation == "Bidirectional" && !c.bool_at(&["securityContext", "privileged"]) {
                let why = "Bidirectional mount propagation is available only to privileged containers";
                errors.push(FieldError::forbidden(format!("{each}.mountPropagation"), why));
            }
        }
        let recursive = m.str_at(&["recursiveReadOnly"]);
        if !recursive.is_empty() && recursive != "Disabled" {
            let at = format!("{at}.volumeMounts.recursiveReadOnly");
            if !matches!(recursive, "IfPossible" | "Enabled") {
                errors.push(FieldError::not_supported(at, recursive, &["Disabled", "Enabled", "IfPossible"]));
            } else if !m.bool_at(&["readOnly"]) {
                errors.push(FieldError::forbidden(at, "may only be specified when readOnly is true"));
            }
        }
    }
    devices(errors, at, c, around);
}

fn devices(errors: &mut Errors, at: &str, c: &Value, around: &Surroundings) {
    let mut names = HashSet::new();
    for (i, d) in c.list_at(&["volumeDevices"]).iter().enumerate() {
        let each = format!("{at}.volumeDevices[{i}]");
        let (name, path) = (d.str_at(&["name"]), d.str_at(&["devicePath"]));
        if name.is_empty() {
            errors.push(FieldError::required(format!("{each}.name"), ""));
        }
        if !names.insert(name) {
            errors.push(FieldError::invalid(format!("{each}.name"), name, "must be unique"));
        }
        match around.volumes.iter().find(|(v, _)| *v == name) {
            Some((_, volume)) if volume.at(&["persistentVolumeClaim"]).is_none() && volume.at(&["ephemeral"]).is_none() => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(FieldError::invalid(format!("{each}.name"), name, why));
            }
            Some(_) => {}
            None => errors.push(FieldError::not_found(format!("{each}.name"), name)),
        }
        if path.is_empty() {
            errors.push(FieldError::required(format!("{each}.devicePath"), ""));
        } else if path.split('/').any(|s| s == "..") {
            errors.push(FieldError::invalid(format!("{each}.devicePath"), path, "can not contain backsteps ('..')"));
        }
    }
}

fn relative_path(errors: &mut Errors, at: &str, path: &str) {
    if path.starts_with('/') {
        errors.push(FieldError::invalid(at, path, "must be a relative path"));
    }
    if path.split('/').any(|segment| segment == "..") {
        errors.push(FieldError::invalid(at, path, "must not contain '..'"));
    }
}

// --- resources

fn amounts(map: Option<&Map>) -> Vec<(&str, Quantity)> {
    let entries = map.into_iter().flat_map(|m| m.iter());
    entries.filter_map(|(name, q)| Some((name, Quantity::parse(q.as_str()?).ok()?))).collect()
}

pub fn resources(errors: &mut Errors, at: &str, resources: Option<&Value>) {
    let Some(resources) = resources else { return };
    let (limits, requests) = (amounts(resources.map_at(&["limits"])), amounts(resources.map_at(&["requests"])));
    for (list, entries) in [("limits", &limits), ("requests", &requests)] {
        for (name, quantity) in entries {
            amount(errors, &format!("{at}.{list}[{name}]"), name, quantity);
        }
    }
    for (name, quantity) in &requests {
        let at = format!("{at}.requests");
        match limits.iter().find(|(n, _)| n == name) {
            Some((_, limit)) if !amounts::overcommits(name) && limit != quantity => {
                errors.push(FieldError::invalid(at, quantity.to_string(), format!("must be equal to {name} limit of {limit}")));
            }
            Some((_, limit)) if quantity > limit => {
                errors.push(FieldError::invalid(
                    at,
                    quantity.to_string(),
                    format!("must be less than or equal to {name} limit of {limit}"),
                ));
            }
            Some(_) => {}
            None if !amounts::overcommits(name) => {
                errors.push(FieldError::required(at.replace(".requests", ".limits"), "Limit must be set for non overcommitable resources"));
            }
            None => {}
        }
    }
    let all = || limits.iter().chain(&requests).map(|(n, _)| *n);
    if all().any(|n| n.starts_with("hugepages-")) && !all().any(|n| matches!(n, "cpu" | "memory")) {
        errors.push(FieldError::forbidden(at, "HugePages require cpu or memory"));
    }
}

fn amount(errors: &mut Errors, at: &str, name: &str, quantity: &Quantity) {
    resource_name(errors, at, name);
    if quantity.sign() < 0 {
        errors.push(FieldError::invalid(at, quantity.to_string(), "must be greater than or equal to 0"));
    }
    let whole = amounts::is_counted(name);
    if whole && quantity.milli_value() % 1000 != 0 {
        errors.push(FieldError::invalid(at, quantity.to_string(), "must be an integer"));
    }
    if let Some(size) = name.strip_prefix("hugepages-").and_then(|s| Quantity::parse(s).ok()) {
        let (size, value) = (size.value(), quantity.value());
        if size > 0 && value % size != 0 {
            let shown = quantity.to_string();
            errors.push(FieldError::invalid(at, shown.clone(), format!("{shown} is not positive integer multiple of {name}")));
        }
    }
}

pub fn resource_name(errors: &mut Errors, at: &str, name: &str) {
    invalid(errors, at, name, amounts::container_name(name));
}

fn claims(errors: &mut Errors, at: &str, claims: &[Value], known: &[&str]) {
    let mut seen = HashSet::new();
    for (i, c) in claims.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let (name, request) = (c.str_at(&["name"]), c.str_at(&["request"]));
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
            continue;
        }
        if !seen.insert((name, request)) {
            errors.push(FieldError::duplicate(at.clone(), name));
        }
        if !known.contains(&name) {
            let mut error = FieldError::not_found(at, name);
            error.detail = match known {
                [] => "must be one of the names in pod.spec.resourceClaims which is empty".to_string(),
                known => format!("must be one of the names in pod.spec.resourceClaims: {}", known.join(", ")),
            };
            errors.push(error);
        }
    }
}

fn resize_policy(errors: &mut Errors, at: &str, policies: &[Value], restart: &str) {
    let mut seen = HashSet::new();
    for (i, p) in policies.iter().enumerate() {
        let (resource, policy) = (p.str_at(&["resourceName"]), p.str_at(&["restartPolicy"]));
        one_of(errors, at, resource, &["cpu", "memory"]);
        if !seen.insert(resource) {
            errors.push(FieldError::duplicate(format!("{at}[{i}]"), resource));
        }
        match policy {
            "" => errors.push(FieldError::required(at, "")),
            _ => one_of(errors, at, policy, &["NotRequired", "RestartContainer"]),
        }
        if restart == "Never" && policy == "RestartContainer" {
            errors.push(FieldError::invalid(at, policy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'"));
        }
    }
}

fn resource_claims(errors: &mut Errors, at: &str, claims: &[Value]) {
    let mut seen = HashSet::new();
    for (i, c) in claims.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let name = c.str_at(&["name"]);
        match name {
            "" => errors.push(FieldError::required(format!("{at}.name"), "")),
            _ if !seen.insert(name) => errors.push(FieldError::duplicate(format!("{at}.name"), name)),
            _ => invalid(errors, &format!("{at}.name"), name, check::label(name)),
        }
        match (c.at(&["resourceClaimName"]).is_some(), c.at(&["resourceClaimTemplateName"]).is_some()) {
            (true, true) => {
                let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.push(check::shown_as(FieldError::invalid(at, "", why), show_claim(c)));
            }
            (false, false) => {
                let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errors.push(check::shown_as(FieldError::invalid(at, "", why), show_claim(c)));
            }
            _ => {}
        }
    }
}

fn show_claim(claim: &Value) -> String {
    let member = |key: &str| claim.get(key).unwrap_or(&Value::Null).to_string();
    let (claim, template) = (member("resourceClaimName"), member("resourceClaimTemplateName"));
    format!("{{\"Name\":{},\"ResourceClaimName\":{claim},\"ResourceClaimTemplateName\":{template}}}", member("name"))
}

// --- probes and hooks

fn lifecycle(errors: &mut Errors, at: &str, lifecycle: Option<&Value>, grace: i64) {
    let Some(lifecycle) = lifecycle else { return };
    for hook in ["postStart", "preStop"] {
        if let Some(h) = lifecycle.at(&[hook]) {
            let at = format!("{at}.{hook}");
            if handler(errors, &at, h, &["exec", "httpGet", "tcpSocket", "sleep"], grace) == 0 {
                errors.push(FieldError::required(at, "must specify a handler type"));
            }
        }
    }
}

/// Checks the handlers among `kinds`; how many there are.
fn handler(errors: &mut Errors, at: &str, h: &Value, kinds: &[&str], grace: i64) -> usize {
    let mut count = 0;
    for kind in kinds {
        let Some(action) = h.at(&[kind]) else { continue };
        let at = format!("{at}.{kind}");
        count += 1;
        if count > 1 {
            errors.push(FieldError::forbidden(at, "may not specify more than 1 handler type"));
            continue;
        }
        match *kind {
            "exec" if action.list_at(&["command"]).is_empty() => {
                errors.push(FieldError::required(format!("{at}.command"), ""));
            }
            "httpGet" => http_get(errors, &at, action),
            "tcpSocket" => port_or_name(errors, &format!("{at}.port"), action.get("port")),
            "grpc" => {
                let port = action.i64_at(&["port"]).unwrap_or(0);
                invalid_number(errors, &format!("{at}.port"), port, check::port_number(port));
            }
            "sleep" => {
                let seconds = action.i64_at(&["seconds"]).unwrap_or(0);
                if seconds < 0 || seconds > grace {
                    let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    errors.push(FieldError::invalid(at, seconds, why));
                }
            }
            _ => {}
        }
    }
    count
}

fn http_get(errors: &mut Errors, at: &str, action: &Value) {
    if action.str_at(&["path"]).is_empty() {
        errors.push(FieldError::required(format!("{at}.path"), ""));
    }
    port_or_name(errors, &format!("{at}.port"), action.get("port"));
    one_of(errors, &format!("{at}.scheme"), action.str_at(&["scheme"]), &["HTTP", "HTTPS"]);
    for header in action.list_at(&["httpHeaders"]) {
        let name = header.str_at(&["name"]);
        invalid(errors, &format!("{at}.httpHeaders"), name, check::http_header(name));
    }
}

fn port_or_name(errors: &mut Errors, at: &str, port: Option<&Value>) {
    match port {
        Some(Value::Str(name)) => invalid(errors, at, name, check::port_name(name)),
        Some(Value::Int(n)) => invalid_number(errors, at, *n, check::port_number(*n)),
        _ => invalid_number(errors, at, 0, check::port_number(0)),
    }
}

fn probe(errors: &mut Errors, at: &str, probe: Option<&Value>, one_success: bool, grace: i64) {
    let Some(probe) = probe else { return };
    if handler(errors, at, probe, &["exec", "httpGet", "tcpSocket", "grpc"], grace) == 0 {
        errors.push(FieldError::required(at, "must specify a handler type"));
    }
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        non_negative(errors, &format!("{at}.{key}"), probe.i64_at(&[key]).unwrap_or(0));
    }
    if let Some(n) = probe.i64_at(&["terminationGracePeriodSeconds"]) {
        let at = format!("{at}.terminationGracePeriodSeconds");
        if !one_success {
            errors.push(FieldError::invalid(at, n, "must not be set for readinessProbes"));
        } else if n <= 0 {
            errors.push(FieldError::invalid(at, n, "must be greater than 0"));
        }
    }
    let successes = probe.i64_at(&["successThreshold"]).unwrap_or(0);
    if one_success && successes != 1 {
        errors.push(FieldError::invalid(format!("{at}.successThreshold"), successes, "must be 1"));
    }
}

// --- volumes

fn volumes(errors: &mut Errors, at: &str, volumes: &[Value]) {
    let mut names = HashSet::new();
    for (i, v) in volumes.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let name = v.str_at(&["name"]);
        match name {
            "" => errors.push(FieldError::required(format!("{at}.name"), "")),
            _ => invalid(errors, &format!("{at}.name"), name, check::label(name)),
        }
        if !name.is_empty() && !names.insert(name) {
            errors.push(FieldError::duplicate(format!("{at}.name"), name));
        }
        cursor::part(errors, "io.k8s.api.core.v1.Volume", &at, v, |at| {
            if sources::volume_sources(at, &sources::POD_SOURCES, None) == 0 {
                at.required("must specify a volume type");
            }
        });
    }
}

pub fn volume_field_ref(errors: &mut Errors, at: &str, r: &Value) {
    let path = r.str_at(&["fieldPath"]);
    if path.is_empty() {
        errors.push(FieldError::required(format!("{at}.fieldPath"), ""));
        return;
    }
    let at = format!("{at}.fieldPath");
    match subscript(path) {
        ("metadata.labels" | "metadata.annotations", Some(_)) => {}
        (base, Some(_)) => errors.push(FieldError::invalid(at, base, "does not support subscript")),
        (path, None) if VOLUME_FIELDS.contains(&path) => {}
        (path, None) if ENV_FIELDS.contains(&path) => errors.push(FieldError::not_supported(at, path, &VOLUME_FIELDS)),
        (path, None) => {
            let why = format!("error converting fieldPath: field label not supported: {path}");
            errors.push(FieldError::invalid(at, path, why));
        }
    }
}

// --- scheduling

fn node_selector_labels(errors: &mut Errors, at: &str, selector: Option<&Value>) {
    check::labels(errors, at, selector);
}

pub fn tolerations(errors: &mut Errors, at: &str, tolerations: &[Value]) {
    for (i, t) in tolerations.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let text = |key: &str| t.str_at(&[key]);
        let (key, operator, value, effect) = (text("key"), text("operator"), text("value"), text("effect"));
        if !key.is_empty() {
            invalid(errors, &format!("{at}.key"), key, check::qualified_name(key));
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(format!("{at}.operator"), operator, why));
        }
        if t.i64_at(&["tolerationSeconds"]).is_some() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(format!("{at}.effect"), effect, why));
        }
        match operator {
            "" | "Equal" => invalid(errors, &format!("{at}.operator"), value, check::label_value(value)),
            "Exists" if !value.is_empty() => {
                let why = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(format!("{at}.operator"), t.clone(), why));
            }
            "Exists" => {}
            other => errors.push(FieldError::not_supported(format!("{at}.operator"), other, &["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            one_of(errors, &format!("{at}.effect"), effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        }
    }
}

fn affinity(errors: &mut Errors, at: &str, affinity: Option<&Value>) {
    let Some(affinity) = affinity else { return };
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = affinity.at(&["nodeAffinity"]) {
        let at = format!("{at}.nodeAffinity");
        if let Some(selector) = node.at(&[REQUIRED]) {
            let at = format!("{at}.{REQUIRED}.nodeSelectorTerms");
            let terms = selector.list_at(&["nodeSelectorTerms"]);
            if terms.is_empty() {
                errors.push(FieldError::required(at.clone(), "must have at least one node selector term"));
            }
            for (i, term) in terms.iter().enumerate() {
                node_selector_term(errors, &format!("{at}[{i}]"), term, true);
            }
        }
        for (i, p) in node.list_at(&[PREFERRED]).iter().enumerate() {
            let at = format!("{at}.{PREFERRED}[{i}]");
            weight(errors, &at, p);
            node_selector_term(errors, &format!("{at}.preference"), p.get("preference").unwrap_or(&Value::Null), false);
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pod) = affinity.at(&[kind]) else { continue };
        for (i, term) in pod.list_at(&[REQUIRED]).iter().enumerate() {
            pod_affinity_term(errors, &format!("{at}.{kind}.{REQUIRED}[{i}]"), term);
        }
        for (i, p) in pod.list_at(&[PREFERRED]).iter().enumerate() {
            let at = format!("{at}.{kind}.{PREFERRED}[{i}]");
            weight(errors, &at, p);
            pod_affinity_term(errors, &format!("{at}.podAffinityTerm"), p.get("podAffinityTerm").unwrap_or(&Value::Null));
        }
    }
}

fn weight(errors: &mut Errors, at: &str, preferred: &Value) {
    let weight = preferred.i64_at(&["weight"]).unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(format!("{at}.weight"), weight, "must be in the range 1-100"));
    }
}

/// Labels of preferred terms may hold anything.
pub fn node_selector_term(errors: &mut Errors, at: &str, term: &Value, required: bool) {
    for (i, r) in term.list_at(&["matchExpressions"]).iter().enumerate() {
        let at = format!("{at}.matchExpressions[{i}]");
        let (key, values) = (r.str_at(&["key"]), r.list_at(&["values"]));
        match r.str_at(&["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(FieldError::required(format!("{at}.values"), "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format!("{at}.values"), why));
            }
            "Gt" | "Lt" if values.len() != 1 => {
                errors.push(FieldError::required(format!("{at}.values"), "must be specified single value when `operator` is 'Lt' or 'Gt'"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.push(FieldError::invalid(format!("{at}.operator"), other, "not a valid selector operator")),
        }
        invalid(errors, &format!("{at}.key"), key, check::qualified_name(key));
        for (n, value) in values.iter().filter_map(Value::as_str).enumerate().filter(|_| required) {
            invalid(errors, &format!("{at}.values[{n}]"), value, check::label_value(value));
        }
    }
    for (i, r) in term.list_at(&["matchFields"]).iter().enumerate() {
        let at = format!("{at}.matchFields[{i}]");
        let operator = r.str_at(&["operator"]);
        match operator {
            "In" | "NotIn" if r.list_at(&["values"]).len() != 1 => {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.push(FieldError::required(format!("{at}.values"), why));
            }
            "In" | "NotIn" => {}
            other => errors.push(FieldError::invalid(format!("{at}.operator"), other, "not a valid selector operator")),
        }
        let key = r.str_at(&["key"]);
        if key != "metadata.name" {
            errors.push(FieldError::invalid(format!("{at}.key"), key, "not a valid field selector key"));
            continue;
        }
        for (n, value) in r.list_at(&["values"]).iter().filter_map(Value::as_str).enumerate() {
            invalid(errors, &format!("{at}.values[{n}]"), value, check::subdomain(value));
        }
    }
}

fn pod_affinity_term(errors: &mut Errors, at: &str, term: &Value) {
    check::label_selector(errors, &format!("{at}.labelSelector"), term.at(&["labelSelector"]));
    check::label_selector(errors, &format!("{at}.namespaceSelector"), term.at(&["namespaceSelector"]));
    for name in term.list_at(&["namespaces"]).iter().filter_map(Value::as_str) {
        invalid(errors, &format!("{at}.namespace"), name, check::label(name));
    }
    let key = term.str_at(&["topologyKey"]);
    if key.is_empty() {
        errors.push(FieldError::required(format!("{at}.topologyKey"), "can not be empty"));
    }
    invalid(errors, &format!("{at}.topologyKey"), key, check::qualified_name(key));
}

fn spread_constraints(errors: &mut Errors, at: &str, constraints: &[Value]) {
    let mut seen = HashSet::new();
    for (i, c) in constraints.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let (key, when) = (c.str_at(&["topologyKey"]), c.str_at(&["whenUnsatisfiable"]));
        let skew = c.i64_at(&["maxSkew"]).unwrap_or(0);
        if skew <= 0 {
            errors.push(FieldError::invalid(format!("{at}.maxSkew"), skew, "must be greater than zero"));
        }
        if key.is_empty() {
            errors.push(FieldError::required(format!("{at}.topologyKey"), "can not be empty"));
        }
        one_of(errors, &format!("{at}.whenUnsatisfiable"), when, &["DoNotSchedule", "ScheduleAnyway"]);
        if !seen.insert((key, when)) {
            errors.push(FieldError::duplicate(format!("{at}.{{topologyKey, whenUnsatisfiable}}"), format!("{{{key}, {when}}}")));
        }
        if let Some(domains) = c.i64_at(&["minDomains"]) {
            if domains <= 0 {
                errors.push(FieldError::invalid(format!("{at}.minDomains"), domains, "must be greater than zero"));
            }
            if when != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}");
                errors.push(FieldError::invalid(format!("{at}.minDomains"), domains, why));
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if let Some(p) = c.at(&[policy]).and_then(Value::as_str) {
                one_of(errors, &format!("{at}.{policy}"), p, &["Honor", "Ignore"]);
            }
        }
        check::label_selector(errors, &format!("{at}.labelSelector"), c.at(&["labelSelector"]));
    }
}

fn readiness_gates(errors: &mut Errors, at: &str, gates: &[Value]) {
    for (i, gate) in gates.iter().enumerate() {
        let kind = gate.str_at(&["conditionType"]);
        invalid(errors, &format!("{at}[{i}].conditionType"), kind, check::qualified_name(kind));
    }
}

fn scheduling_gates(errors: &mut Errors, at: &str, gates: &[Value]) {
    let mut seen = HashSet::new();
    for (i, gate) in gates.iter().enumerate() {
        let name = gate.str_at(&["name"]);
        invalid(errors, &format!("{at}[{i}]"), name, check::qualified_name(name));
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(format!("{at}[{i}]"), name));
        }
    }
}

// --- names and addresses

fn host_aliases(errors: &mut Errors, at: &str, aliases: &[Value]) {
    for (i, alias) in aliases.iter().enumerate() {
        let ip = alias.str_at(&["ip"]);
        invalid(errors, &format!("{at}[{i}].ip"), ip, check::ip(ip));
        for (n, host) in alias.list_at(&["hostnames"]).iter().filter_map(Value::as_str).enumerate() {
            invalid(errors, &format!("{at}[{i}].hostnames[{n}]"), host, check::subdomain(host));
        }
    }
}

fn dns_config(errors: &mut Errors, at: &str, spec: &Value) {
    let config = spec.at(&["dnsConfig"]);
    if spec.str_at(&["dnsPolicy"]) == "None" {
        match config {
            None => errors.push(FieldError::required(at, "must provide `dnsConfig` when `dnsPolicy` is None")),
            Some(c) if c.list_at(&["nameservers"]).is_empty() => {
                let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
                errors.push(FieldError::required(format!("{at}.nameservers"), why));
            }
            Some(_) => {}
        }
    }
    let Some(config) = config else { return };
    let servers = config.list_at(&["nameservers"]);
    if servers.len() > 3 {
        errors.push(FieldError::invalid(format!("{at}.nameservers"), servers.to_vec(), "must not have more than 3 nameservers"));
    }
    for (i, ip) in servers.iter().filter_map(Value::as_str).enumerate() {
        invalid(errors, &format!("{at}.nameservers[{i}]"), ip, check::ip(ip));
    }
    let searches = config.list_at(&["searches"]);
    if searches.len() > 32 {
        errors.push(FieldError::invalid(format!("{at}.searches"), searches.to_vec(), "must not have more than 32 search paths"));
    }
    for (i, search) in searches.iter().filter_map(Value::as_str).enumerate() {
        let bare = search.strip_suffix('.').unwrap_or(search);
        if search != "." && !bare.split('.').all(|s| check::label(s.trim_start_matches('_').trim_start_matches('-')).is_empty()) {
            let why = check::SUBDOMAIN
                .replace("characters, '-' or '.',", "characters, '_', '-' or '.',")
                .replace("'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*'", SEARCH_REGEX);
            errors.push(FieldError::invalid(format!("{at}.searches[{i}]"), search, why));
        }
    }
    for (i, option) in config.list_at(&["options"]).iter().enumerate() {
        if option.str_at(&["name"]).is_empty() {
            errors.push(FieldError::required(format!("{at}.options[{i}]"), "must not be empty"));
        }
    }
}

const SEARCH_REGEX: &str = "'_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*'";

// --- security

fn id(errors: &mut Errors, at: &str, holder: &Value, key: &str) {
    if let Some(n) = holder.i64_at(&[key]) {
        invalid_number(errors, &format!("{at}.{key}"), n, between(n, 0, i32::MAX.into()));
    }
}

fn security_context(errors: &mut Errors, at: &str, spec: &Value) {
    if spec.get("hostUsers").and_then(Value::as_bool) == Some(false) {
        for (key, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
            if spec.bool_at(&[key]) {
                errors.push(FieldError::forbidden(format!("{at}.{shown}"), "when `hostUsers` is false"));
            }
        }
    }
    if spec.bool_at(&["hostPID"]) && spec.bool_at(&["shareProcessNamespace"]) {
        let at = format!("{at}.securityContext.shareProcessNamespace");
        errors.push(FieldError::invalid(at, true, "ShareProcessNamespace and HostPID cannot both be enabled"));
    }
    let Some(context) = spec.at(&["securityContext"]) else { return };
    let at = format!("{at}.securityContext");
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(errors, &at, context, key);
    }
    for (i, n) in context.list_at(&["supplementalGroups"]).iter().filter_map(Value::as_i64).enumerate() {
        invalid_number(errors, &format!("{at}.supplementalGroups[{i}]"), n, between(n, 0, i32::MAX.into()));
    }
    let mut names = HashSet::new();
    for (i, sysctl) in context.list_at(&["sysctls"]).iter().enumerate() {
        let at = format!("{at}.sysctls[{i}].name");
        let name = sysctl.str_at(&["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(at, ""));
        } else if name.len() > 253 || !is_sysctl(name) {
            let why = "must have at most 253 characters and match regex \
                ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(FieldError::invalid(at, name, why));
        } else if !names.insert(name.replace('/', ".")) {
            errors.push(FieldError::duplicate(at, name));
        }
    }
    if let Some(policy) = context.at(&["fsGroupChangePolicy"]).and_then(Value::as_str) {
        one_of(errors, &format!("{at}.fsGroupChangePolicy"), policy, &["Always", "OnRootMismatch"]);
    }
    profile(errors, &format!("{at}.seccompProfile"), context.at(&["seccompProfile"]), "seccomp");
    profile(errors, &format!("{at}.appArmorProfile"), context.at(&["appArmorProfile"]), "AppArmor");
    if context.bool_at(&["windowsOptions", "hostProcess"]) && !spec.bool_at(&["hostNetwork"]) {
        let at = at.replace(".securityContext", ".hostNetwork");
        errors.push(FieldError::invalid(at, false, "hostNetwork must be true if pod contains any hostProcess containers"));
    }
}

fn is_sysctl(name: &str) -> bool {
    name.split(['.', '/']).all(|part| {
        let b = part.as_bytes();
        let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        !b.is_empty() && edge(b[0]) && edge(b[b.len() - 1]) && b.iter().all(|c| edge(*c) || matches!(c, b'-' | b'_'))
    })
}

fn profile(errors: &mut Errors, at: &str, profile: Option<&Value>, what: &str) {
    let Some(profile) = profile else { return };
    let kind = profile.str_at(&["type"]);
    let local = profile.at(&["localhostProfile"]).is_some();
    match kind {
        "" => {
            let field = at.rsplit('.').next().unwrap_or("");
            errors.push(FieldError::required(format!("{at}.type"), format!("type is required when {field} is set")));
        }
        "Localhost" if !local => {
            errors.push(FieldError::required(format!("{at}.localhostProfile"), format!("must be set when {what} type is Localhost")));
        }
        "Localhost" => {}
        "RuntimeDefault" | "Unconfined" if local => {
            let why = format!("can only be set when {what} type is Localhost");
            errors.push(FieldError::invalid(format!("{at}.localhostProfile"), profile.str_at(&["localhostProfile"]), why));
        }
        "RuntimeDefault" | "Unconfined" => {}
        other => errors.push(FieldError::not_supported(format!("{at}.type"), other, &["Localhost", "RuntimeDefault", "Unconfined"])),
    }
}

fn container_security(errors: &mut Errors, at: &str, context: Option<&Value>) {
    let Some(context) = context else { return };
    for key in ["runAsUser", "runAsGroup"] {
        id(errors, at, context, key);
    }
    profile(errors, &format!("{at}.seccompProfile"), context.at(&["seccompProfile"]), "seccomp");
    profile(errors, &format!("{at}.appArmorProfile"), context.at(&["appArmorProfile"]), "AppArmor");
    if context.get("allowPrivilegeEscalation").and_then(Value::as_bool) == Some(false) {
        let at = format!("{at}.allowPrivilegeEscalation");
        if context.bool_at(&["privileged"]) {
            errors.push(FieldError::invalid(at.clone(), false, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"));
        }
        let admin = context.list_at(&["capabilities", "add"]).iter().any(|c| matches!(c.as_str(), Some("CAP_SYS_ADMIN" | "SYS_ADMIN")));
        if context.list_at(&["capabilities", "add"]).iter().any(|c| c.as_str() == Some("CAP_SYS_ADMIN")) && admin {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(at, false, why));
        }
    }
}

/// `spec.ephemeralContainers` of a pod.
pub fn ephemeral_containers(pod: &Value) -> Errors {
    let mut errors = Errors::new();
    let empty = Value::map();
    let spec = pod.get("spec").unwrap_or(&empty);
    let others: HashSet<&str> =
        ["containers", "initContainers"].into_iter().flat_map(|l| spec.list_at(&[l])).map(|c| c.str_at(&["name"])).collect();
    let mut names: HashSet<&str> = others.clone();
    let around = Surroundings {
        spec,
        host_network: spec.bool_at(&["hostNetwork"]),
        volumes: spec.list_at(&["volumes"]).iter().map(|v| (v.str_at(&["name"]), v)).collect(),
        claims: Vec::new(),
        grace_seconds: 0,
        is_template: false,
    };
    const FORBIDDEN: [&str; 7] = ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources", "resizePolicy"];
    for (i, c) in spec.list_at(&["ephemeralContainers"]).iter().enumerate() {
        let at = format!("spec.ephemeralContainers[{i}]");
        container(&mut errors, &at, c, &around, &mut names);
        let target = c.str_at(&["targetContainerName"]);
        if !target.is_empty() && !others.contains(target) {
            errors.push(FieldError::not_found(format!("{at}.targetContainerName"), target));
        }
        for key in FORBIDDEN {
            let set = match c.get(key) {
                None | Some(Value::Null) => false,
                Some(Value::Map(m)) => key != "resources" || !m.is_empty(),
                Some(Value::List(l)) => !l.is_empty(),
                Some(Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_)) => true,
            };
            if set {
                errors.push(FieldError::forbidden(format!("{at}.{key}"), "cannot be set for an Ephemeral Container"));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests;
