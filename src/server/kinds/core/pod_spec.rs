//! Pure: what makes a pod spec valid, in upstream's words. [`pod`] checks a Pod, [`template`] the template of a workload;
//! both go through [`spec`].

use std::collections::HashSet;
use std::fmt::Display;

use crate::api::quantity::Quantity;
use crate::api::status::FieldError;
use crate::api::value::{Map, Value};
use crate::server::cursor::{self, At};
use crate::server::kinds::core::{amounts, app_armor, pod_env, pod_security, volumes as sources};
use crate::server::validation::{self as check, invalid, invalid_number, non_negative, one_of};
use crate::value;

type Errors = Vec<FieldError>;

const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];

/// A new pod.
pub fn pod(pod: &Value) -> Errors {
    let mut errors = any_pod(pod);
    app_armor::must_agree(&mut errors, pod);
    if !pod.list_at(&["spec", "ephemeralContainers"]).is_empty() {
        errors.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
    if !pod.list_at(&["spec", "schedulingGates"]).is_empty() && !pod.str_at(&["spec", "nodeName"]).is_empty() {
        errors.push(FieldError::forbidden("spec.nodeName", "cannot be set until all schedulingGates have been cleared"));
    }
    errors
}

/// A pod, new or not.
pub fn any_pod(pod: &Value) -> Errors {
    let mut errors = Errors::new();
    let empty = Value::map();
    let body = pod.get("spec").unwrap_or(&empty);
    annotations(&mut errors, pod);
    app_armor::validate(&mut errors, pod);
    spec(&mut errors, &"spec", body);
    if body.str_at(&["serviceAccountName"]).is_empty() {
        for (v, volume) in body.list_at(&["volumes"]).iter().enumerate() {
            for (i, source) in volume.list_at(&["projected", "sources"]).iter().enumerate() {
                if source.at(&["serviceAccountToken"]).is_some() {
                    let at = format_args!("spec.volumes[{v}].projected.sources[{i}].serviceAccountToken");
                    errors.push(FieldError::forbidden(at, "must not be specified when serviceAccountName is not set"));
                }
            }
        }
    }
    for list in ["containers", "initContainers"] {
        for (i, c) in body.list_at(&[list]).iter().enumerate() {
            padded(&mut errors, &format_args!("spec.{list}[{i}].image"), c.str_at(&["image"]));
        }
    }
    errors
}

/// Annotations that mean something.
fn annotations(errors: &mut Errors, pod: &Value) {
    let at = |key: &str| format!("metadata.annotations[{key}]");
    let said = |key: &str| pod.at(&["metadata", "annotations", key]).and_then(Value::as_str);
    const MIRROR: &str = "kubernetes.io/config.mirror";
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    if let Some(value) = said(MIRROR).filter(|_| pod.str_at(&["spec", "nodeName"]).is_empty()) {
        errors.push(FieldError::invalid(at(MIRROR), value, "must set spec.nodeName if mirror pod annotation is set"));
    }
    // As Go reads it, with a sign but without leading zeros.
    if let Some(cost) = said(COST) {
        let digits = cost.strip_prefix('-').unwrap_or(cost);
        if cost.parse::<i32>().is_err() || cost.starts_with('+') || (digits.starts_with('0') && digits != "0") {
            errors.push(FieldError::invalid(at(COST), cost, "must be a 32bit integer"));
        }
    }
}

/// `at` is the path of the template, such as `spec.template`.
pub fn template(errors: &mut Errors, at: &dyn Display, template: &Value) {
    let empty = Value::map();
    check::labels(errors, format_args!("{at}.labels"), template.at(&["metadata", "labels"]));
    check::annotations(errors, format_args!("{at}.annotations"), template.at(&["metadata", "annotations"]));
    let body = template.get("spec").unwrap_or(&empty);
    spec(errors, &format_args!("{at}.spec"), body);
    if !body.list_at(&["ephemeralContainers"]).is_empty() {
        let why = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(format_args!("{at}.spec.ephemeralContainers"), why));
    }
}

/// What all containers are checked against.
struct Surroundings<'a> {
    spec: &'a Value,
    volumes: Vec<(&'a str, &'a Value)>,
    grace_seconds: i64,
}

fn spec(errors: &mut Errors, at: &dyn Display, spec: &Value) {
    cursor::part(errors, "io.k8s.api.core.v1.PodSpec", at, spec, |at| body(at, spec));
}

fn body(at: &At, spec: &Value) {
    let around = Surroundings {
        spec,
        volumes: spec.list_at(&["volumes"]).iter().map(|v| (v.str_at(&["name"]), v)).collect(),
        grace_seconds: spec.i64_at(&["terminationGracePeriodSeconds"]).unwrap_or(30),
    };
    at.get("volumes").with(|errors, at| volumes(errors, at, spec.list_at(&["volumes"])));
    resource_claims(&at.get("resourceClaims"));
    containers(at, &around);
    if at.get("resources").is_set() {
        pod_resources(at);
    }
    if at.get("hostNetwork").flag() {
        host_network_ports(at);
    }
    at.get("restartPolicy").one_of(&["Always", "OnFailure", "Never"]);
    at.get("dnsPolicy").one_of(&["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    at.get("nodeSelector").labels();
    pod_security::pod_context(at);
    at.get("affinity").with(|errors, path| affinity(errors, path, spec.at(&["affinity"])));
    dns_config(at);
    at.get("readinessGates").with(|errors, at| readiness_gates(errors, at, spec.list_at(&["readinessGates"])));
    at.get("schedulingGates").with(|errors, at| scheduling_gates(errors, at, spec.list_at(&["schedulingGates"])));
    spread_constraints(&at.get("topologySpreadConstraints"));
    pod_security::host_process(at);
    pod_security::host_users(at);
    host_name(at);
    for key in ["serviceAccountName", "nodeName"] {
        at.get(key).may_be(check::subdomain);
    }
    if at.get("activeDeadlineSeconds").is_set() {
        at.get("activeDeadlineSeconds").between(1, i32::MAX.into());
    }
    for key in ["hostname", "subdomain"] {
        at.get(key).may_be(check::label);
    }
    at.get("tolerations").with(|errors, at| tolerations(errors, at, spec.list_at(&["tolerations"])));
    at.get("hostAliases").with(|errors, at| host_aliases(errors, at, spec.list_at(&["hostAliases"])));
    at.get("priorityClassName").may_be(check::subdomain);
    if at.get("runtimeClassName").is_set() {
        at.get("runtimeClassName").ok(check::subdomain);
    }
    if at.get("preemptionPolicy").is_set() {
        at.get("preemptionPolicy").must_one_of(&["PreemptLowerPriority", "Never"]);
    }
    if at.get("overhead").is_set() {
        let limits = value!({"limits": (at.get("overhead").value.clone())});
        at.get("overhead").with(|errors, at| resources(errors, at, Some(&limits)));
    }
    pod_security::os(at);
    file_key_volumes(at);
}

// --- containers

fn containers(spec: &At, around: &Surroundings) {
    const ONLY_SIDECARS: &str = "may not be set for init containers without restartPolicy=Always";
    const RESTARTS: &str = "must not be set to 'RestartContainer' for non-sidecar initContainers";
    let (main, init) = (spec.get("containers"), spec.get("initContainers"));
    main.must();
    let mut names: Vec<&str> = Vec::new();
    for c in main.each() {
        container(&c, around);
        let name = c.get("name");
        if names.contains(&name.str()) {
            name.duplicate();
        }
        names.push(name.str());
        hooks_and_probes(&c, around);
        restart_rules(&c);
    }
    main.with(|errors, at| host_ports(errors, at, around.spec.list_at(&["containers"])));
    for c in init.each() {
        container(&c, around);
        restart_rules(&c);
        let name = c.get("name");
        match names.contains(&name.str()) {
            true => name.duplicate(),
            false if name.is_empty() => {}
            false => names.push(name.str()),
        }
        init.with(|errors, at| host_ports(errors, at, std::slice::from_ref(c.value)));
        if c.get("restartPolicy").str() == "Always" {
            hooks_and_probes(&c, around);
            continue;
        }
        for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if c.get(key).is_set() {
                c.get(key).forbidden(ONLY_SIDECARS);
            }
        }
        for policy in c.get("resizePolicy").each() {
            let restart = policy.get("restartPolicy");
            if restart.str() == "RestartContainer" {
                restart.invalid(RESTARTS);
            }
        }
    }
    let others = names.clone();
    for c in spec.get("ephemeralContainers").each() {
        ephemeral(&c, around, &others, &mut names);
    }
}

fn hooks_and_probes(c: &At, around: &Surroundings) {
    c.get("lifecycle").with(|errors, at| lifecycle(errors, at, c.value.at(&["lifecycle"]), around.grace_seconds));
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        c.get(kind).with(|errors, at| probe(errors, at, c.value.at(&[kind]), kind != "readinessProbe", around.grace_seconds));
    }
}

fn restart_rules(c: &At) {
    let (policy, rules) = (c.get("restartPolicy"), c.get("restartPolicyRules"));
    if policy.is_set() {
        policy.one_of(&["Always", "Never", "OnFailure"]);
    } else if !rules.is_empty() {
        policy.required("must specify restartPolicy when restart rules are used");
    }
    if policy.is_set() || !rules.is_empty() {
        if rules.len() > 20 {
            rules.too_many(20);
        }
        for rule in rules.each() {
            rule.get("action").one_of(&["Restart", "RestartAllContainers"]);
            let codes = rule.get("exitCodes");
            if !codes.is_set() {
                codes.required("must be specified");
                continue;
            }
            codes.get("operator").one_of(&["In", "NotIn"]);
            if codes.get("values").len() > 255 {
                codes.get("values").too_many(255);
            }
        }
    }
}

fn container(c: &At, around: &Surroundings) {
    c.get("name").must_be(check::label);
    c.get("image").must();
    c.get("terminationMessagePolicy").must_one_of(&["File", "FallbackToLogsOnError"]);
    ports(&c.get("ports"));
    pod_env::env(&c.get("env"));
    pod_env::env_from(&c.get("envFrom"));
    let volume = |name: &str| {
        let (_, volume) = around.volumes.iter().find(|(v, _)| *v == name)?;
        Some(volume.at(&["persistentVolumeClaim"]).is_some() || volume.at(&["ephemeral"]).is_some())
    };
    pod_env::mounts(c, &volume);
    pod_env::devices(c, &volume);
    c.get("imagePullPolicy").must_one_of(&PULL_POLICIES);
    c.get("resources").with(|errors, at| resources(errors, at, c.value.get("resources")));
    claims(&c.get("resources").get("claims"), around.spec);
    resize_policy(&c.get("resizePolicy"), around.spec.str_at(&["restartPolicy"]));
    let host_users = around.spec.get("hostUsers").and_then(Value::as_bool) != Some(false);
    pod_security::container_context(&c.get("securityContext"), host_users);
}

fn ephemeral<'a>(c: &At<'a>, around: &Surroundings, others: &[&str], names: &mut Vec<&'a str>) {
    const WHY: &str = "cannot be set for an Ephemeral Container";
    const FORBIDDEN: [&str; 9] = [
        "ports",
        "resources",
        "resizePolicy",
        "restartPolicy",
        "restartPolicyRules",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
    ];
    container(c, around);
    c.get("image").with(|errors, at| padded(errors, at, c.value.str_at(&["image"])));
    let (name, target) = (c.get("name"), c.get("targetContainerName"));
    match names.contains(&name.str()) {
        true => name.duplicate(),
        false => names.push(name.str()),
    }
    if !target.is_empty() && !others.contains(&target.str()) {
        target.not_found("");
    }
    for key in FORBIDDEN {
        if !c.get(key).is_empty() {
            c.get(key).forbidden(WHY);
        }
    }
    for mount in c.get("volumeMounts").each() {
        for key in ["subPath", "subPathExpr"] {
            if !mount.get(key).is_empty() {
                mount.get(key).forbidden(WHY);
            }
        }
    }
}

fn padded(errors: &mut Errors, at: &dyn Display, image: &str) {
    if image.trim() != image {
        errors.push(FieldError::invalid(at, image, "must not have leading or trailing whitespace"));
    }
}

fn ports(ports: &At) {
    let mut names: Vec<&str> = Vec::new();
    for p in ports.each() {
        let name = p.get("name");
        if !name.is_empty() && name.ok(check::port_name) {
            match names.contains(&name.str()) {
                true => name.duplicate(),
                false => names.push(name.str()),
            }
        }
        match p.get("containerPort") {
            port if port.int() == 0 => port.required(""),
            port => port.between(1, 65535),
        }
        if p.get("hostPort").int() != 0 {
            p.get("hostPort").between(1, 65535);
        }
        p.get("protocol").must_one_of(&["SCTP", "TCP", "UDP"]);
    }
}

/// Containers on the host's network listen where the host does.
fn host_network_ports(spec: &At) {
    let is_template = spec.path.to_string() != "spec";
    for p in spec.get("containers").each().iter().flat_map(|c| c.get("ports").each()) {
        let (host, own) = (p.get("hostPort"), p.get("containerPort").int());
        if host.int() != own && (!is_template || host.int() != 0) {
            host.invalid_as(host.int(), "must match `containerPort` when `hostNetwork` is true");
        }
    }
}

fn claims(claims: &At, spec: &Value) {
    let mut known: Vec<&str> = spec.list_at(&["resourceClaims"]).iter().map(|c| c.str_at(&["name"])).filter(|n| !n.is_empty()).collect();
    known.sort_unstable();
    known.dedup();
    let mut seen: Vec<String> = Vec::new();
    for claim in claims.each() {
        let (name, request) = (claim.get("name").str(), claim.get("request"));
        if name.is_empty() {
            claim.required("");
            continue;
        }
        let twice = |shown: &str| claim.push(FieldError::duplicate(claim.path, shown));
        if seen.iter().any(|s| s == name) {
            twice(name);
        } else {
            request.may_be(check::label);
            let key = if request.is_empty() { name.to_string() } else { format!("{name}/{}", request.str()) };
            if seen.contains(&key) {
                twice(&key);
            } else if request.is_empty() {
                seen.iter().filter(|s| s.split_once('/').is_some_and(|(first, _)| first == name)).for_each(|_| twice(name));
            }
            seen.push(key);
        }
        if !known.contains(&name) {
            let mut error = FieldError::not_found(claim.path, name);
            error.detail = match known.as_slice() {
                [] => "must be one of the names in pod.spec.resourceClaims which is empty".to_string(),
                known => format!("must be one of the names in pod.spec.resourceClaims: {}", known.join(", ")),
            };
            claim.push(error);
        }
    }
}

fn resize_policy(policies: &At, restart: &str) {
    let mut seen: Vec<&str> = Vec::new();
    for p in policies.each() {
        let (resource, policy) = (p.get("resourceName"), p.get("restartPolicy"));
        if seen.contains(&resource.str()) {
            p.push(FieldError::duplicate(p.path, resource.str()));
        }
        seen.push(resource.str());
        resource.as_at(policies.path).must_one_of(&["cpu", "memory"]);
        let policy = policy.as_at(policies.path);
        policy.must_one_of(&["NotRequired", "RestartContainer"]);
        if restart == "Never" && policy.str() != "NotRequired" {
            policy.invalid_as(policy.str(), "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

fn resource_claims(claims: &At) {
    let mut seen: Vec<&str> = Vec::new();
    for c in claims.each() {
        let name = c.get("name");
        if name.must() {
            match seen.contains(&name.str()) {
                true => name.duplicate(),
                false => drop(name.ok(check::label)),
            }
            seen.push(name.str());
        }
        let (claim, template) = (c.get("resourceClaimName"), c.get("resourceClaimTemplateName"));
        match (claim.is_set(), template.is_set()) {
            (true, true) => c.invalid("at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"),
            (false, false) => c.invalid("must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"),
            _ => {}
        }
        for each in [claim, template] {
            if each.is_set() {
                each.ok(check::subdomain);
            }
        }
    }
}

/// Files variables come from lie in volumes that live as long as the pod.
fn file_key_volumes(spec: &At) {
    let volumes = spec.get("volumes").each();
    for container in pod_security::containers(spec) {
        for variable in container.get("env").each() {
            let file = variable.get("valueFrom").get("fileKeyRef");
            if !file.is_set() {
                continue;
            }
            let name = file.get("volumeName");
            match volumes.iter().find(|v| v.get("name").str() == name.str()) {
                None => name.push(FieldError::not_found(name.path, name.str())),
                Some(volume) if !volume.get("emptyDir").is_set() => {
                    name.invalid_as(name.str(), "referenced volume must be of type emptyDir")
                }
                Some(_) => {}
            }
        }
    }
}

fn host_name(spec: &At) {
    let name = spec.get("hostnameOverride");
    if !name.is_set() {
        return;
    }
    for (key, shown) in [("setHostnameAsFQDN", "setHostnameAsFQDN"), ("hostNetwork", "hostNetwork")] {
        if spec.get(key).flag() {
            name.forbidden(format!("may not be specified when {shown} is true"));
        }
    }
    if name.len() > 64 {
        name.too_long(64);
    }
    name.ok(check::subdomain);
}

/// `spec.resources`, which all containers share.
fn pod_resources(spec: &At) {
    let at = spec.get("resources");
    if spec.get("os").get("name").str() == "windows" {
        return at.forbidden("may not be set for a windows pod");
    }
    if at.get("claims").is_set() {
        at.get("claims").forbidden("claims may not be set for Resources at pod-level");
    }
    for list in ["limits", "requests"] {
        for (name, amount) in at.get(list).entries() {
            let fits = amounts::container_name(name).is_empty();
            if fits && !matches!(name, "cpu" | "memory") && !name.starts_with("hugepages-") {
                amount.push(FieldError::not_supported(format_args!("{}.{list}[{name}]", at.path), name, &["cpu", "hugepages-", "memory"]));
            }
        }
    }
    at.with(|errors, path| resources(errors, path, Some(at.value)));
}

fn dns_config(spec: &At) {
    const SEARCH: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start \
        and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
        '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
    let config = spec.get("dnsConfig");
    if spec.get("dnsPolicy").str() == "None" {
        if !config.is_set() {
            return config.required("must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if config.get("nameservers").is_empty() {
            return config.get("nameservers").required("must provide at least one DNS nameserver when `dnsPolicy` is None");
        }
    }
    let servers = config.get("nameservers");
    if servers.len() > 3 {
        servers.invalid("must not have more than 3 nameservers");
    }
    for server in servers.each() {
        server.ok(check::ip);
    }
    let searches = config.get("searches");
    if searches.len() > 32 {
        searches.invalid("must not have more than 32 search paths");
    }
    if searches.strings().join(" ").len() > 2048 {
        searches.invalid("must not have more than 2048 characters (including spaces) in the search list");
    }
    for search in searches.each().iter().filter(|s| s.str() != ".") {
        let bare = search.str().strip_suffix('.').unwrap_or(search.str());
        if bare.len() > 253 {
            search.invalid_as(bare, "must be no more than 253 characters");
        }
        if !bare.split('.').all(is_search_label) {
            search.invalid_as(bare, SEARCH);
        }
    }
    for option in config.get("options").each() {
        if option.get("name").is_empty() {
            option.required("must not be empty");
        }
    }
}

/// `_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?`
fn is_search_label(label: &str) -> bool {
    let b = label.strip_prefix('_').unwrap_or(label).as_bytes();
    let edge = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    !b.is_empty() && edge(&b[0]) && edge(&b[b.len() - 1]) && b.iter().all(|c| edge(c) || matches!(c, b'-' | b'_'))
}

fn spread_constraints(constraints: &At) {
    let pair = |c: &At| (c.get("topologyKey").str().to_string(), c.get("whenUnsatisfiable").str().to_string());
    let all = constraints.each();
    for (i, c) in all.iter().enumerate() {
        c.get("maxSkew").positive();
        c.get("topologyKey").must_because("can not be empty");
        c.get("whenUnsatisfiable").one_of(&["DoNotSchedule", "ScheduleAnyway"]);
        let (key, when) = pair(c);
        if all[i + 1..].iter().any(|other| pair(other) == (key.clone(), when.clone())) {
            let field = format!("{}.{{topologyKey, whenUnsatisfiable}}", c.path);
            c.push(FieldError::duplicate(field, format!("{{{key}, {when}}}")));
        }
        let domains = c.get("minDomains");
        if domains.is_set() {
            if domains.int() <= 0 {
                domains.invalid("must be greater than zero");
            }
            if when != "DoNotSchedule" {
                domains.invalid(format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}"));
            }
        }
        c.get("nodeAffinityPolicy").maybe_one_of(&["Honor", "Ignore"]);
        c.get("nodeTaintsPolicy").maybe_one_of(&["Honor", "Ignore"]);
        c.with(|errors, at| label_keys(errors, at, c.value));
        c.get("labelSelector").label_selector();
    }
}

/// `matchLabelKeys` and `mismatchLabelKeys` of a term, which the pod's own labels made part of its selector already.
fn label_keys(errors: &mut Errors, at: &dyn Display, term: &Value) {
    let keys = |list: &str| -> Vec<&str> { term.list_at(&[list]).iter().filter_map(Value::as_str).collect() };
    let selector = term.at(&["labelSelector"]);
    for list in ["matchLabelKeys", "mismatchLabelKeys"] {
        let at: &dyn Display = &format_args!("{at}.{list}");
        if selector.is_none() && !keys(list).is_empty() {
            errors.push(FieldError::forbidden(at, "must not be specified when labelSelector is not set"));
            continue;
        }
        for (i, key) in keys(list).into_iter().enumerate() {
            invalid(errors, format_args!("{at}[{i}]"), key, check::qualified_name(key));
        }
    }
    let (same, other) = (keys("matchLabelKeys"), keys("mismatchLabelKeys"));
    if let Some(selector) = selector {
        let mut seen: Vec<&str> = selector.map_at(&["matchLabels"]).into_iter().flat_map(|m| m.iter()).map(|(k, _)| k).collect();
        for key in selector.list_at(&["matchExpressions"]).iter().map(|r| r.str_at(&["key"])) {
            if let Some(i) = same.iter().rposition(|k| *k == key)
                && seen.contains(&key)
            {
                errors.push(FieldError::invalid(format_args!("{at}[{i}]"), key, "exists in both matchLabelKeys and labelSelector"));
            }
            seen.push(key);
        }
    }
    for (i, key) in same.iter().enumerate().filter(|(_, k)| other.contains(k)) {
        errors.push(FieldError::invalid(
            format_args!("{at}.matchLabelKeys[{i}]"),
            *key,
            "exists in both matchLabelKeys and mismatchLabelKeys",
        ));
    }
}

fn pod_affinity_term(errors: &mut Errors, at: &dyn Display, term: &Value) {
    check::label_selector(errors, format_args!("{at}.labelSelector"), term.at(&["labelSelector"]));
    check::label_selector(errors, format_args!("{at}.namespaceSelector"), term.at(&["namespaceSelector"]));
    for name in term.list_at(&["namespaces"]).iter().filter_map(Value::as_str) {
        invalid(errors, format_args!("{at}.namespace"), name, check::label(name));
    }
    label_keys(errors, at, term);
    let key = term.str_at(&["topologyKey"]);
    if key.is_empty() {
        errors.push(FieldError::required(format_args!("{at}.topologyKey"), "can not be empty"));
    }
    invalid(errors, format_args!("{at}.topologyKey"), key, check::qualified_name(key));
}

// --- containers

pub fn image(errors: &mut Errors, at: &dyn Display, image: &str) {
    if image.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(at, image, "must not have leading or trailing whitespace"));
    }
}

fn host_ports(errors: &mut Errors, at: &dyn Display, containers: &[Value]) {
    let mut taken = HashSet::new();
    for (i, c) in containers.iter().enumerate() {
        for (n, p) in c.list_at(&["ports"]).iter().enumerate() {
            let port = p.i64_at(&["hostPort"]).unwrap_or(0);
            if port == 0 {
                continue;
            }
            let key = format!("{}/{}/{port}", p.str_at(&["protocol"]), p.str_at(&["hostIP"]));
            if !taken.insert(key.clone()) {
                errors.push(FieldError::duplicate(format_args!("{at}[{i}].ports[{n}].hostPort"), key));
            }
        }
    }
}

// --- resources

fn amounts(map: Option<&Map>) -> Vec<(&str, Quantity)> {
    let entries = map.into_iter().flat_map(|m| m.iter());
    entries.filter_map(|(name, q)| Some((name, Quantity::parse(q.as_str()?).ok()?))).collect()
}

pub fn resources(errors: &mut Errors, at: &dyn Display, resources: Option<&Value>) {
    let Some(resources) = resources else { return };
    let (limits, requests) = (amounts(resources.map_at(&["limits"])), amounts(resources.map_at(&["requests"])));
    for (list, entries) in [("limits", &limits), ("requests", &requests)] {
        for (name, quantity) in entries {
            amount(errors, &format_args!("{at}.{list}[{name}]"), name, quantity);
        }
    }
    for (name, quantity) in &requests {
        let (requests_at, limits_at) = (format_args!("{at}.requests"), format_args!("{at}.limits"));
        match limits.iter().find(|(n, _)| n == name) {
            Some((_, limit)) if !amounts::overcommits(name) && limit != quantity => {
                errors.push(FieldError::invalid(requests_at, quantity.to_string(), format!("must be equal to {name} limit of {limit}")));
            }
            Some((_, limit)) if quantity > limit => {
                errors.push(FieldError::invalid(
                    requests_at,
                    quantity.to_string(),
                    format!("must be less than or equal to {name} limit of {limit}"),
                ));
            }
            Some(_) => {}
            None if !amounts::overcommits(name) => {
                errors.push(FieldError::required(limits_at, "Limit must be set for non overcommitable resources"));
            }
            None => {}
        }
    }
    let all = || limits.iter().chain(&requests).map(|(n, _)| *n);
    if all().any(|n| n.starts_with("hugepages-")) && !all().any(|n| matches!(n, "cpu" | "memory")) {
        errors.push(FieldError::forbidden(at, "HugePages require cpu or memory"));
    }
}

fn amount(errors: &mut Errors, at: &dyn Display, name: &str, quantity: &Quantity) {
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

pub fn resource_name(errors: &mut Errors, at: &dyn Display, name: &str) {
    invalid(errors, at, name, amounts::container_name(name));
}

// --- probes and hooks

fn lifecycle(errors: &mut Errors, at: &dyn Display, lifecycle: Option<&Value>, grace: i64) {
    let Some(lifecycle) = lifecycle else { return };
    for hook in ["postStart", "preStop"] {
        if let Some(h) = lifecycle.at(&[hook]) {
            let at: &dyn Display = &format_args!("{at}.{hook}");
            if handler(errors, at, h, &["exec", "httpGet", "tcpSocket", "sleep"], grace) == 0 {
                errors.push(FieldError::required(at, "must specify a handler type"));
            }
        }
    }
}

/// Checks the handlers among `kinds`; how many there are.
fn handler(errors: &mut Errors, at: &dyn Display, h: &Value, kinds: &[&str], grace: i64) -> usize {
    let mut count = 0;
    for kind in kinds {
        let Some(action) = h.at(&[kind]) else { continue };
        let at: &dyn Display = &format_args!("{at}.{kind}");
        count += 1;
        if count > 1 {
            errors.push(FieldError::forbidden(at, "may not specify more than 1 handler type"));
            continue;
        }
        match *kind {
            "exec" if action.list_at(&["command"]).is_empty() => {
                errors.push(FieldError::required(format_args!("{at}.command"), ""));
            }
            "httpGet" => http_get(errors, at, action),
            "tcpSocket" => port_or_name(errors, &format_args!("{at}.port"), action.get("port")),
            "grpc" => {
                let port = action.i64_at(&["port"]).unwrap_or(0);
                invalid_number(errors, format_args!("{at}.port"), port, check::port_number(port));
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

fn http_get(errors: &mut Errors, at: &dyn Display, action: &Value) {
    if action.str_at(&["path"]).is_empty() {
        errors.push(FieldError::required(format_args!("{at}.path"), ""));
    }
    port_or_name(errors, &format_args!("{at}.port"), action.get("port"));
    one_of(errors, format_args!("{at}.scheme"), action.str_at(&["scheme"]), &["HTTP", "HTTPS"]);
    for header in action.list_at(&["httpHeaders"]) {
        let name = header.str_at(&["name"]);
        invalid(errors, format_args!("{at}.httpHeaders"), name, check::http_header(name));
    }
}

fn port_or_name(errors: &mut Errors, at: &dyn Display, port: Option<&Value>) {
    match port {
        Some(Value::Str(name)) => invalid(errors, at, name, check::port_name(name)),
        Some(Value::Int(n)) => invalid_number(errors, at, *n, check::port_number(*n)),
        _ => invalid_number(errors, at, 0, check::port_number(0)),
    }
}

fn probe(errors: &mut Errors, at: &dyn Display, probe: Option<&Value>, one_success: bool, grace: i64) {
    let Some(probe) = probe else { return };
    if handler(errors, at, probe, &["exec", "httpGet", "tcpSocket", "grpc"], grace) == 0 {
        errors.push(FieldError::required(at, "must specify a handler type"));
    }
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        non_negative(errors, format_args!("{at}.{key}"), probe.i64_at(&[key]).unwrap_or(0));
    }
    if let Some(n) = probe.i64_at(&["terminationGracePeriodSeconds"]) {
        let at: &dyn Display = &format_args!("{at}.terminationGracePeriodSeconds");
        if !one_success {
            errors.push(FieldError::invalid(at, n, "must not be set for readinessProbes"));
        } else if n <= 0 {
            errors.push(FieldError::invalid(at, n, "must be greater than 0"));
        }
    }
    let successes = probe.i64_at(&["successThreshold"]).unwrap_or(0);
    if one_success && successes != 1 {
        errors.push(FieldError::invalid(format_args!("{at}.successThreshold"), successes, "must be 1"));
    }
}

// --- volumes

fn volumes(errors: &mut Errors, at: &dyn Display, volumes: &[Value]) {
    let mut names = HashSet::new();
    for (i, v) in volumes.iter().enumerate() {
        let at: &dyn Display = &format_args!("{at}[{i}]");
        let name = v.str_at(&["name"]);
        match name {
            "" => errors.push(FieldError::required(format_args!("{at}.name"), "")),
            _ => invalid(errors, format_args!("{at}.name"), name, check::label(name)),
        }
        if !name.is_empty() && !names.insert(name) {
            errors.push(FieldError::duplicate(format_args!("{at}.name"), name));
        }
        cursor::part(errors, "io.k8s.api.core.v1.Volume", at, v, |at| {
            if sources::volume_sources(at, &sources::POD_SOURCES, None) == 0 {
                at.required("must specify a volume type");
            }
        });
    }
}

// --- scheduling

pub fn tolerations(errors: &mut Errors, at: &dyn Display, tolerations: &[Value]) {
    for (i, t) in tolerations.iter().enumerate() {
        let at: &dyn Display = &format_args!("{at}[{i}]");
        let text = |key: &str| t.str_at(&[key]);
        let (key, operator, value, effect) = (text("key"), text("operator"), text("value"), text("effect"));
        if !key.is_empty() {
            invalid(errors, format_args!("{at}.key"), key, check::qualified_name(key));
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(format_args!("{at}.operator"), operator, why));
        }
        if t.i64_at(&["tolerationSeconds"]).is_some() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(format_args!("{at}.effect"), effect, why));
        }
        match operator {
            "" | "Equal" => {
                let messages = check::label_value(value);
                if !messages.is_empty() {
                    errors.push(FieldError::invalid(format_args!("{at}.operator"), value, messages.join(";")));
                }
            }
            "Lt" | "Gt" => {
                errors.push(FieldError::not_supported(format_args!("{at}.operator"), operator, &["Equal", "Exists", "Lt", "Gt"]));
            }
            "Exists" if !value.is_empty() => {
                errors.push(FieldError::invalid(format_args!("{at}.operator"), value, "value must be empty when `operator` is 'Exists'"));
            }
            "Exists" => {}
            other => errors.push(FieldError::not_supported(format_args!("{at}.operator"), other, &["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            one_of(errors, format_args!("{at}.effect"), effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        }
    }
}

fn affinity(errors: &mut Errors, at: &dyn Display, affinity: Option<&Value>) {
    let Some(affinity) = affinity else { return };
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = affinity.at(&["nodeAffinity"]) {
        let at: &dyn Display = &format_args!("{at}.nodeAffinity");
        if let Some(selector) = node.at(&[REQUIRED]) {
            let at: &dyn Display = &format_args!("{at}.{REQUIRED}.nodeSelectorTerms");
            let terms = selector.list_at(&["nodeSelectorTerms"]);
            if terms.is_empty() {
                errors.push(FieldError::required(at, "must have at least one node selector term"));
            }
            for (i, term) in terms.iter().enumerate() {
                node_selector_term(errors, &format_args!("{at}[{i}]"), term, true);
            }
        }
        for (i, p) in node.list_at(&[PREFERRED]).iter().enumerate() {
            let at: &dyn Display = &format_args!("{at}.{PREFERRED}[{i}]");
            weight(errors, at, p);
            node_selector_term(errors, &format_args!("{at}.preference"), p.get("preference").unwrap_or(&Value::Null), false);
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pod) = affinity.at(&[kind]) else { continue };
        for (i, term) in pod.list_at(&[REQUIRED]).iter().enumerate() {
            pod_affinity_term(errors, &format_args!("{at}.{kind}.{REQUIRED}[{i}]"), term);
        }
        for (i, p) in pod.list_at(&[PREFERRED]).iter().enumerate() {
            let at: &dyn Display = &format_args!("{at}.{kind}.{PREFERRED}[{i}]");
            weight(errors, at, p);
            pod_affinity_term(errors, &format_args!("{at}.podAffinityTerm"), p.get("podAffinityTerm").unwrap_or(&Value::Null));
        }
    }
}

fn weight(errors: &mut Errors, at: &dyn Display, preferred: &Value) {
    let weight = preferred.i64_at(&["weight"]).unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(format_args!("{at}.weight"), weight, "must be in the range 1-100"));
    }
}

/// Labels of preferred terms may hold anything.
pub fn node_selector_term(errors: &mut Errors, at: &dyn Display, term: &Value, required: bool) {
    for (i, r) in term.list_at(&["matchExpressions"]).iter().enumerate() {
        let at: &dyn Display = &format_args!("{at}.matchExpressions[{i}]");
        let (key, values) = (r.str_at(&["key"]), r.list_at(&["values"]));
        match r.str_at(&["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(FieldError::required(format_args!("{at}.values"), "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format_args!("{at}.values"), why));
            }
            "Gt" | "Lt" if values.len() != 1 => {
                errors.push(FieldError::required(
                    format_args!("{at}.values"),
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                ));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.push(FieldError::invalid(format_args!("{at}.operator"), other, "not a valid selector operator")),
        }
        invalid(errors, format_args!("{at}.key"), key, check::qualified_name(key));
        for (n, value) in values.iter().filter_map(Value::as_str).enumerate().filter(|_| required) {
            invalid(errors, format_args!("{at}.values[{n}]"), value, check::label_value(value));
        }
    }
    for (i, r) in term.list_at(&["matchFields"]).iter().enumerate() {
        let at: &dyn Display = &format_args!("{at}.matchFields[{i}]");
        let operator = r.str_at(&["operator"]);
        match operator {
            "In" | "NotIn" if r.list_at(&["values"]).len() != 1 => {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.push(FieldError::required(format_args!("{at}.values"), why));
            }
            "In" | "NotIn" => {}
            other => errors.push(FieldError::invalid(format_args!("{at}.operator"), other, "not a valid selector operator")),
        }
        let key = r.str_at(&["key"]);
        if key != "metadata.name" {
            errors.push(FieldError::invalid(format_args!("{at}.key"), key, "not a valid field selector key"));
            continue;
        }
        for (n, value) in r.list_at(&["values"]).iter().filter_map(Value::as_str).enumerate() {
            invalid(errors, format_args!("{at}.values[{n}]"), value, check::subdomain(value));
        }
    }
}

fn readiness_gates(errors: &mut Errors, at: &dyn Display, gates: &[Value]) {
    for (i, gate) in gates.iter().enumerate() {
        let kind = gate.str_at(&["conditionType"]);
        invalid(errors, format_args!("{at}[{i}].conditionType"), kind, check::qualified_name(kind));
    }
}

fn scheduling_gates(errors: &mut Errors, at: &dyn Display, gates: &[Value]) {
    let mut seen = HashSet::new();
    for (i, gate) in gates.iter().enumerate() {
        let name = gate.str_at(&["name"]);
        invalid(errors, format_args!("{at}[{i}]"), name, check::qualified_name(name));
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(format_args!("{at}[{i}]"), name));
        }
    }
}

// --- names and addresses

fn host_aliases(errors: &mut Errors, at: &dyn Display, aliases: &[Value]) {
    for (i, alias) in aliases.iter().enumerate() {
        let ip = alias.str_at(&["ip"]);
        invalid(errors, format_args!("{at}[{i}].ip"), ip, check::ip(ip));
        for (n, host) in alias.list_at(&["hostnames"]).iter().filter_map(Value::as_str).enumerate() {
            invalid(errors, format_args!("{at}[{i}].hostnames[{n}]"), host, check::subdomain(host));
        }
    }
}

// --- security

#[cfg(test)]
mod tests;
