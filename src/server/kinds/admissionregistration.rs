//! Webhook configurations and admission policies with their bindings: who has a say in what is written. What the CEL
//! expressions in them say is not looked at here.

use crate::api::resource;
use crate::api::status::FieldError;
use crate::api::value::{Map, Value};
use crate::server::cursor::{At, same};
use crate::server::kinds::core::pod_defaults;
use crate::server::kinds::plain::{Cell, Plain, integer, plain, string};
use crate::server::kinds::policy::conditions;
use crate::server::strategy::Column;
use crate::server::validation;

pub fn rows() -> Vec<Plain> {
    let webhooks = |resource, default, rules| Plain {
        default,
        rules,
        generation: true,
        unconditional_update: false,
        ..plain(
            resource,
            const { &[Column::NAME, integer("Webhooks"), Column::AGE] },
            &[Cell::Name, Cell::Custom(|o, _| (o.list_at(&["webhooks"]).len() as i64).into()), Cell::Age],
        )
    };
    let bindings = |resource, rules| Plain {
        default: |o| default_matching(o.make_map(&["spec"]), "matchResources"),
        rules,
        generation: true,
        unconditional_update: false,
        ..plain(
            resource,
            const { &[Column::NAME, string("PolicyName"), string("ParamRef"), Column::AGE] },
            &[Cell::Name, Cell::Text(&["spec", "policyName"]), Cell::Custom(|o, _| print_param_ref(o).into()), Cell::Age],
        )
    };
    vec![
        webhooks(&resource::VALIDATINGWEBHOOKCONFIGURATIONS, |o| default_webhooks(o, false), |new, old| webhooks_of(new, old, false)),
        webhooks(&resource::MUTATINGWEBHOOKCONFIGURATIONS, |o| default_webhooks(o, true), |new, old| webhooks_of(new, old, true)),
        Plain {
            default: default_policy,
            rules: validating_policy,
            status_rules: |new, _| policy_status(&new.get("status")),
            generation: true,
            unconditional_update: false,
            ..plain(
                &resource::VALIDATINGADMISSIONPOLICIES,
                const { &[Column::NAME, integer("Validations"), string("ParamKind"), Column::AGE] },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| (o.list_at(&["spec", "validations"]).len() as i64).into()),
                    Cell::Custom(|o, _| print_param_kind(o).into()),
                    Cell::Age,
                ],
            )
        },
        Plain {
            default: default_policy,
            rules: mutating_policy,
            generation: true,
            unconditional_update: false,
            ..plain(
                &resource::MUTATINGADMISSIONPOLICIES,
                const { &[Column::NAME, integer("Mutations"), string("ParamKind"), Column::AGE] },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| (o.list_at(&["spec", "mutations"]).len() as i64).into()),
                    Cell::Custom(|o, _| print_param_kind(o).into()),
                    Cell::Age,
                ],
            )
        },
        bindings(&resource::VALIDATINGADMISSIONPOLICYBINDINGS, |new, _| {
            binding(&new.get("spec"));
            validation_actions(&new.at(&["spec", "validationActions"]));
        }),
        bindings(&resource::MUTATINGADMISSIONPOLICYBINDINGS, |new, _| {
            binding(&new.get("spec"));
            no_deletes(&new.at(&["spec", "matchResources", "resourceRules"]));
        }),
    ]
}

fn print_param_kind(policy: &Value) -> String {
    match policy.at(&["spec", "paramKind"]) {
        None => "<unset>".to_string(),
        Some(kind) => format!("{}/{}", kind.str_at(&["apiVersion"]), kind.str_at(&["kind"])),
    }
}

fn print_param_ref(binding: &Value) -> String {
    match binding.at(&["spec", "paramRef"]) {
        None => "<unset>".to_string(),
        Some(param) => {
            let (namespace, name) = (param.str_at(&["namespace"]), param.str_at(&["name"]));
            if namespace.is_empty() { name.to_string() } else { format!("{namespace}/{name}") }
        }
    }
}

// --- defaults

fn default_rules(holder: &mut Map, list: &str) {
    pod_defaults::each(holder, list, |rule| rule.insert_default("scope", "*"));
}

fn default_webhooks(object: &mut Value, mutating: bool) {
    pod_defaults::each(object.make_map(&[]), "webhooks", |hook| {
        hook.insert_default("failurePolicy", "Fail");
        hook.insert_default("matchPolicy", "Equivalent");
        hook.insert_default("namespaceSelector", Map::new());
        hook.insert_default("objectSelector", Map::new());
        hook.insert_default("timeoutSeconds", 10);
        if mutating {
            hook.insert_default("reinvocationPolicy", "Never");
        }
        default_rules(hook, "rules");
        pod_defaults::with(hook, "clientConfig", |config| {
            pod_defaults::with(config, "service", |service| service.insert_default("port", 443));
        });
    });
}

fn default_matching(spec: &mut Map, key: &str) {
    pod_defaults::with(spec, key, |matching| {
        matching.insert_default("matchPolicy", "Equivalent");
        matching.insert_default("namespaceSelector", Map::new());
        matching.insert_default("objectSelector", Map::new());
        default_rules(matching, "resourceRules");
        default_rules(matching, "excludeResourceRules");
    });
}

fn default_policy(object: &mut Value) {
    let spec = object.make_map(&["spec"]);
    spec.insert_default("failurePolicy", "Fail");
    default_matching(spec, "matchConstraints");
}

// --- rules they share

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

fn star_alone(list: &At, what: &str) {
    if list.len() > 1 && list.strings().contains(&"*") {
        list.invalid(format!("if '*' is present, must not specify other {what}"));
    }
}

fn rule(rule: &At) {
    let operations = rule.get("operations");
    operations.must();
    star_alone(&operations, "operations");
    for operation in operations.each() {
        operation.one_of(&OPERATIONS);
    }
    let (groups, versions) = (rule.get("apiGroups"), rule.get("apiVersions"));
    groups.must();
    star_alone(&groups, "API groups");
    versions.must();
    star_alone(&versions, "API versions");
    for version in versions.each() {
        version.must();
    }
    resources(&rule.get("resources"));
    rule.get("scope").maybe_one_of(&["*", "Cluster", "Namespaced"]);
}

/// `pods`, `pods/log`, `*`, `pods/*`, `*/scale`, `*/*`: none may be said twice.
fn resources(list: &At) {
    list.must();
    let (mut whole, mut every) = (Vec::new(), Vec::new());
    let (mut double, mut single, mut plain) = (false, false, false);
    for at in list.each() {
        let text = at.str();
        if text.is_empty() {
            at.required("");
            continue;
        }
        double |= text == "*/*";
        single |= text == "*";
        let Some((resource, sub)) = text.split_once('/') else {
            plain = text != "*";
            continue;
        };
        if whole.contains(&resource) {
            at.invalid(format!("if '{resource}/*' is present, must not specify {text}"));
        }
        if every.contains(&sub) {
            at.invalid(format!("if '*/{sub}' is present, must not specify {text}"));
        }
        if sub == "*" {
            whole.push(resource);
        }
        if resource == "*" {
            every.push(sub);
        }
    }
    if list.len() > 1 && double {
        list.invalid("if '*/*' is present, must not specify other resources");
    }
    if single && plain {
        list.invalid("if '*' is present, must not specify other resources without subresources");
    }
}

fn named_rule(at: &At) {
    let mut names: Vec<&str> = Vec::new();
    for name in at.get("resourceNames").each() {
        name.ok(validation::segment);
        if names.contains(&name.str()) {
            name.duplicate();
        }
        names.push(name.str());
    }
    rule(at);
}

/// Names are unique, and there are not too many.
fn match_conditions(list: &At) {
    if list.len() > 64 {
        list.too_many(64);
    }
    let mut names: Vec<&str> = Vec::new();
    for condition in list.each() {
        let (name, expression) = (condition.get("name"), condition.get("expression"));
        if expression.str().trim().is_empty() {
            expression.required("");
        }
        name.must_be(validation::qualified_name);
        if !name.is_empty() && names.contains(&name.str()) {
            name.duplicate();
        }
        names.push(name.str());
    }
}

fn failure_policy(at: &At) {
    at.maybe_one_of(&["Fail", "Ignore"]);
}

// --- webhooks

fn webhooks_of(configuration: &At, old: Option<&At>, mutating: bool) {
    let list = configuration.get("webhooks");
    let before = old.map_or_else(Vec::new, |o| o.get("webhooks").each());
    let quiet = |h: &At| matches!(h.get("sideEffects").str(), "None" | "NoneOnDryRun");
    let no_effects = before.iter().all(quiet);
    let known = |h: &At| h.get("admissionReviewVersions").strings().iter().any(|v| REVIEW_VERSIONS.contains(v));
    let need_known = before.iter().all(|h| known(h) || h.get("admissionReviewVersions").is_empty());
    let old_names: Vec<&str> = before.iter().map(|h| h.get("name").str()).collect();
    let need_unique = (1..old_names.len()).all(|i| !old_names[..i].contains(&old_names[i]));
    let matching = |hooks: &[At]| -> Vec<Value> { hooks.iter().map(|h| h.get("matchConditions").value.clone()).collect() };
    let skip_conditions = old.is_some() && matching(&before) == matching(&list.each());
    let mut names: Vec<&str> = Vec::new();
    for hook in list.each() {
        webhook(&hook, mutating, no_effects);
        if !skip_conditions {
            match_conditions(&hook.get("matchConditions"));
        }
        review_versions(&hook.get("admissionReviewVersions"), need_known);
        let name = hook.get("name");
        if need_unique && !name.is_empty() && names.contains(&name.str()) {
            name.duplicate();
        }
        names.push(name.str());
    }
}

const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];

fn review_versions(versions: &At, need_known: bool) {
    if !versions.must_because("must specify one of v1, v1beta1") {
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for version in versions.each() {
        if seen.contains(&version.str()) {
            version.invalid("duplicate version");
            continue;
        }
        seen.push(version.str());
        version.ok(validation::label_1035);
    }
    if need_known && !seen.iter().any(|v| REVIEW_VERSIONS.contains(v)) {
        versions.invalid("must include at least one of v1, v1beta1");
    }
}

fn webhook(hook: &At, mutating: bool, no_effects: bool) {
    let name = hook.get("name");
    if name.must() {
        let messages = validation::subdomain(name.str());
        if !messages.is_empty() {
            name.invalid(messages.join(","));
        } else if name.str().split('.').count() < 3 {
            name.invalid("should be a domain with at least three segments separated by dots");
        }
    }
    hook.get("rules").each().iter().for_each(rule);
    failure_policy(&hook.get("failurePolicy"));
    hook.get("matchPolicy").maybe_one_of(&["Equivalent", "Exact"]);
    let effects = hook.get("sideEffects");
    let allowed: &[&str] = if no_effects { &["None", "NoneOnDryRun"] } else { &["None", "NoneOnDryRun", "Some", "Unknown"] };
    match effects.is_set() {
        false => effects.required(format!("must specify one of {}", allowed.join(", "))),
        true => drop(effects.one_of(allowed)),
    }
    let timeout = hook.get("timeoutSeconds");
    if timeout.is_set() && !(1..=30).contains(&timeout.int()) {
        timeout.invalid("the timeout value must be between 1 and 30 seconds");
    }
    hook.get("namespaceSelector").label_selector();
    hook.get("objectSelector").label_selector();
    if mutating {
        hook.get("reinvocationPolicy").maybe_one_of(&["IfNeeded", "Never"]);
    }
    let config = hook.get("clientConfig");
    let (url, service) = (config.get("url"), config.get("service"));
    match (url.is_set(), service.is_set()) {
        (true, false) => webhook_url(&url),
        (false, true) => webhook_service(&service),
        _ => config.required("exactly one of url or service is required"),
    }
}

/// `https://host[/path]`, nothing else.
pub fn webhook_url(at: &At) {
    const FORM: &str = "; desired format: https://host[/path]";
    let text = at.str();
    let quoted = crate::api::json::go_quote(text);
    let (before_fragment, fragment) = text.split_once('#').unwrap_or((text, ""));
    let unparsable = match () {
        () if text.bytes().any(|b| b < 32 || b == 127) => Some("net/url: invalid control character in URL"),
        () if before_fragment.starts_with(':') => Some("missing protocol scheme"),
        () if !before_fragment.contains("://")
            && before_fragment.split('/').next().is_some_and(|s| s.contains(':'))
            && !is_scheme(before_fragment) =>
        {
            Some("first path segment in URL cannot contain colon")
        }
        () => None,
    };
    if let Some(why) = unparsable {
        return at.required(format!("url must be a valid URL: parse {quoted}: {why}{FORM}"));
    }
    let scheme = if is_scheme(before_fragment) { before_fragment.split(':').next().unwrap_or("").to_lowercase() } else { String::new() };
    let rest = if scheme.is_empty() { before_fragment } else { &before_fragment[scheme.len() + 1..] };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.strip_prefix("//").map_or("", |r| r.split('/').next().unwrap_or(""));
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if scheme != "https" {
        at.invalid_as(scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if host.is_empty() {
        at.invalid_as(host, format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        at.invalid_as(user, "user information is not permitted in the URL");
    }
    if !fragment.is_empty() {
        at.invalid_as(fragment, "fragments are not permitted in the URL");
    }
    if !query.is_empty() {
        at.invalid_as(query, "query parameters are not permitted in the URL");
    }
}

/// Whether the text begins with `scheme:`.
fn is_scheme(text: &str) -> bool {
    text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    })
}

pub fn webhook_service(service: &At) {
    // Upstream takes the two for each other.
    // Upstream takes one for the other.
    for (missing, named) in [("namespace", "name"), ("name", "namespace")] {
        if service.get(missing).is_empty() {
            service.get(named).required("");
        }
    }
    let (port, path) = (service.get("port"), service.get("path"));
    let messages = validation::port_number(port.int());
    if !messages.is_empty() {
        port.invalid_as(port.int(), format!("port is not valid: {}", messages.join(", ")));
    }
    let text = path.str();
    match text {
        "" | "/" => return,
        "//" => return path.invalid("segment[0] may not be empty"),
        _ => {}
    }
    if !text.starts_with('/') {
        path.invalid("must start with a '/'");
    }
    let steps = text.get(1..).unwrap_or("");
    for (i, step) in steps.strip_suffix('/').unwrap_or(steps).split('/').enumerate() {
        if step.is_empty() {
            path.invalid(format!("segment[{i}] may not be empty"));
            continue;
        }
        validation::subdomain(step).into_iter().for_each(|m| path.invalid(format!("segment[{i}]: {m}")));
    }
}

// --- policies

/// What both kinds of policy have; whether the conditions need a look is for the caller to say.
fn policy(spec: &At, old: Option<&At>) {
    let failure = spec.get("failurePolicy");
    match failure.is_set() {
        false => failure.required(""),
        true => failure_policy(&failure),
    }
    let kind = spec.get("paramKind");
    if kind.is_set() {
        param_kind(&kind);
    }
    let constraints = spec.get("matchConstraints");
    if constraints.is_set() {
        matching(&constraints);
        constraints.get("resourceRules").must();
    } else {
        constraints.required("");
    }
    let unchanged = |key: &'static str| old.is_some_and(|o| same(o.get(key).value, spec.get(key).value));
    if !(unchanged("paramKind") && unchanged("matchConditions")) {
        match_conditions(&spec.get("matchConditions"));
    }
    for variable in spec.get("variables").each() {
        let (name, expression) = (variable.get("name"), variable.get("expression"));
        if name.str().trim().is_empty() {
            name.required("name is not specified");
        } else if !is_identifier(name.str()) {
            name.invalid("must be a valid CEL identifier");
        }
        if expression.str().trim().is_empty() {
            expression.required("expression is not specified");
        }
    }
}

/// A name CEL can use.
pub fn is_identifier(name: &str) -> bool {
    const RESERVED: [&str; 21] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ];
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit()) && !RESERVED.contains(&name)
}

fn param_kind(kind: &At) {
    let (version, name) = (kind.get("apiVersion"), kind.get("kind"));
    let text = version.str();
    if text.is_empty() {
        version.required("");
    } else if text.matches('/').count() > 1 {
        version.invalid(format!("unexpected GroupVersion string: {text}"));
    } else {
        let (group, version_name) = if text == "/" { ("", "") } else { text.split_once('/').unwrap_or(("", text)) };
        if !group.is_empty() {
            let messages = validation::subdomain(group);
            if !messages.is_empty() {
                version.invalid_as(group, messages.join(","));
            }
        }
        if version_name.is_empty() {
            version.invalid("version must be specified");
        } else {
            let messages = validation::label_1035(version_name);
            if !messages.is_empty() {
                version.invalid_as(version_name, messages.join(","));
            }
        }
    }
    if name.must() {
        let messages = validation::label_1035(&name.str().to_lowercase());
        if !messages.is_empty() {
            name.invalid(format!("may have mixed case, but should otherwise match: {}", messages.join(",")));
        }
    }
}

fn matching(at: &At) {
    let policy = at.get("matchPolicy");
    match policy.is_set() {
        false => policy.required(""),
        true => drop(policy.one_of(&["Equivalent", "Exact"])),
    }
    for key in ["namespaceSelector", "objectSelector"] {
        let selector = at.get(key);
        if !selector.is_set() {
            selector.required("");
        }
        selector.label_selector();
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        at.get(list).each().iter().for_each(named_rule);
    }
}

fn validating_policy(object: &At, old: Option<&At>) {
    let spec = object.get("spec");
    policy(&spec, old.map(|o| o.get("spec")).as_ref());
    let (validations, annotations) = (spec.get("validations"), spec.get("auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        for list in [&validations, &annotations] {
            list.required("validations or auditAnnotations must contain at least one item");
        }
        return;
    }
    validations.each().iter().for_each(self::validation);
    if annotations.len() > 20 {
        annotations.invalid("must not have more than 20 auditAnnotations");
    }
    let name = object.at(&["metadata", "name"]).str();
    let mut keys: Vec<&str> = Vec::new();
    for annotation in annotations.each() {
        let (key, expression) = (annotation.get("key"), annotation.get("valueExpression"));
        if name.is_empty() {
            key.invalid("requires metadata.name be non-empty");
        } else {
            let whole = format!("{name}/{}", key.str());
            validation::qualified_name(&whole).into_iter().for_each(|m| key.invalid_as(whole.as_str(), m));
        }
        match expression.str().trim() {
            "" => expression.required("valueExpression is not specified"),
            text if text.len() > 5 * 1024 => expression.required("must not exceed 5120 bytes in length"),
            _ => {}
        }
        if keys.contains(&key.str()) {
            key.push(FieldError::duplicate(key.path, key.str()));
        }
        keys.push(key.str());
    }
}

fn validation(at: &At) {
    let (message, words, reason) = (at.get("message"), at.get("messageExpression"), at.get("reason"));
    if at.get("expression").str().trim().is_empty() {
        at.get("expression").required("expression is not specified");
    }
    for text in [&words, &message] {
        if !text.is_empty() && text.str().trim().is_empty() {
            text.invalid("must be non-empty if specified");
        }
    }
    if message.str().trim().contains(['\n', '\r']) {
        message.invalid("must not contain line breaks");
    }
    reason.maybe_one_of(&["Forbidden", "Invalid", "RequestEntityTooLarge"]);
}

fn policy_status(status: &At) {
    for warning in status.at(&["typeChecking", "expressionWarnings"]).each() {
        warning.get("warning").must();
        let field = warning.get("fieldRef");
        if field.str().trim().is_empty() {
            field.required("");
        }
    }
    conditions(&status.get("conditions"));
}

fn mutating_policy(object: &At, old: Option<&At>) {
    let spec = object.get("spec");
    policy(&spec, old.map(|o| o.get("spec")).as_ref());
    no_deletes(&spec.at(&["matchConstraints", "resourceRules"]));
    let mutations = spec.get("mutations");
    mutations.must_because("mutations must contain at least one item");
    mutations.each().iter().for_each(mutation);
    spec.get("reinvocationPolicy").must_one_of(&["IfNeeded", "Never"]);
}

/// Deletions change nothing that could be mutated.
fn no_deletes(rules: &At) {
    for operation in rules.each().iter().flat_map(|r| r.get("operations").each()) {
        operation.called(format!("{}.operations", rules.path)).one_of(&["*", "CONNECT", "CREATE", "UPDATE"]);
    }
}

fn mutation(at: &At) {
    let kind = at.get("patchType");
    let (patch, apply) = (at.get("jsonPatch"), at.get("applyConfiguration"));
    let one = |wanted: &At, other: &At, called: &str| {
        match wanted.is_set() {
            false => wanted.required(format!("must be specified when patchType is {}", kind.str())),
            true if wanted.get("expression").str().trim().is_empty() => wanted.get("expression").required(""),
            true => {}
        }
        if other.is_set() {
            other.invalid_as(called, format!("must not be specified when patchType is {}", kind.str()));
        }
    };
    match kind.str() {
        "" => kind.required(""),
        "JSONPatch" => one(&patch, &apply, "{applyConfiguration}"),
        "ApplyConfiguration" => one(&apply, &patch, "{jsonPatch}"),
        _ => drop(kind.one_of(&["ApplyConfiguration", "JSONPatch"])),
    }
}

// --- bindings

fn binding(spec: &At) {
    spec.get("policyName").must_be(validation::subdomain);
    let param = spec.get("paramRef");
    if param.is_set() {
        let (name, selector, action) = (param.get("name"), param.get("selector"), param.get("parameterNotFoundAction"));
        const EITHER: &str = "name and selector are mutually exclusive";
        name.may_be(validation::segment);
        selector.label_selector();
        match (!name.is_empty(), selector.is_set()) {
            (true, true) => {
                name.forbidden(EITHER);
                selector.forbidden(EITHER);
            }
            (false, false) => param.required("one of name or selector must be specified"),
            _ => {}
        }
        action.must_one_of(&["Deny", "Allow"]);
    }
    let matching_at = spec.get("matchResources");
    if matching_at.is_set() {
        matching(&matching_at);
    }
}

fn validation_actions(actions: &At) {
    actions.must_because("at least one validation action is required");
    let mut seen: Vec<&str> = Vec::new();
    for action in actions.each() {
        action.one_of(&["Audit", "Deny", "Warn"]);
        if seen.contains(&action.str()) {
            action.duplicate();
        }
        seen.push(action.str());
    }
    if seen.contains(&"Deny") && seen.contains(&"Warn") {
        actions.invalid(
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves \
             no purpose)",
        );
    }
}
