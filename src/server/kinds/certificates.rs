//! CertificateSigningRequests: who asks is whoever sent the request; conditions and the certificate come through subresources.

use crate::api::json::{decode_base64, go_quote};
use crate::api::request::PatchType;
use crate::api::resource::{self, Resource};
use crate::api::status::{FieldError, Result};
use crate::api::time::Time;
use crate::api::value::{Map, Value};
use crate::server::cursor::{self, At};
use crate::server::kinds::none;
use crate::server::strategy::{Column, Context, Finding, NameRule, Selectable, Strategy, begin_status_update, restore};
use crate::server::{table, validation};
use crate::value;

pub struct SigningRequests;

const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::AGE,
    Column::new("SignerName", "string"),
    Column::new("Requestor", "string"),
    Column::new("RequestedDuration", "string"),
    Column::new("Condition", "string"),
];

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

impl Strategy for SigningRequests {
    fn resource(&self) -> &'static Resource {
        &resource::CERTIFICATESIGNINGREQUESTS
    }
    fn is_acted_on(&self) -> bool {
        false
    }
    fn prepare_create(&self, context: &Context, object: &mut Value) -> Result<()> {
        object.remove(&["status"]);
        let spec = object.make_map(&["spec"]);
        ["username", "uid", "groups", "extra"].iter().for_each(|member| drop(spec.remove(member)));
        let user = &context.user;
        spec.insert("username", user.name.as_str());
        if !user.uid.is_empty() {
            spec.insert("uid", user.uid.as_str());
        }
        spec.insert("groups", user.groups.iter().map(|g| Value::from(g.as_str())).collect::<Vec<Value>>());
        let extra: Map =
            user.extra.iter().map(|(key, values)| (key.clone(), Value::List(values.iter().map(|v| v.as_str().into()).collect()))).collect();
        if !extra.is_empty() {
            spec.insert("extra", Value::Map(extra));
        }
        Ok(())
    }
    fn prepare_update(&self, _: &Context, new: &mut Value, old: &Value) -> Result<()> {
        restore(new, old, "spec");
        restore(new, old, "status");
        Ok(())
    }
    /// Whether a request is approved is said elsewhere.
    fn prepare_status_update(&self, context: &Context, new: &mut Value, old: &Value) -> Result<()> {
        begin_status_update(new, old);
        for kind in ["Approved", "Denied"] {
            let kept: Vec<Value> = of_type(old, kind).cloned().collect();
            let conditions = new.at_mut(&["status", "conditions"]).and_then(Value::as_list_mut);
            let mine: Vec<&mut Value> = conditions.into_iter().flatten().filter(|c| c.str_at(&["type"]) == kind).collect();
            if mine.len() == kept.len() {
                mine.into_iter().zip(kept).for_each(|(slot, was)| *slot = was);
            }
        }
        stamp(context, new, old);
        Ok(())
    }
    fn prepare_subresource_update(&self, context: &Context, new: &mut Value, old: &Value) -> Result<()> {
        stamp(context, new, old);
        let conditions = new.at(&["status", "conditions"]).cloned();
        restore(new, old, "spec");
        restore(new, old, "status");
        match conditions {
            Some(conditions) => new.set(&["status", "conditions"], conditions),
            None => drop(new.remove(&["status", "conditions"])),
        }
        Ok(())
    }
    fn validate(&self, _: &Context, object: &Value) -> Vec<FieldError> {
        self.rules(object, None)
    }
    fn validate_update(&self, _: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.rules(new, Some(old));
        changes(&mut errors, new, old, false, false);
        errors
    }
    fn validate_status_update(&self, _: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.rules(new, Some(old));
        changes(&mut errors, new, old, false, true);
        errors
    }
    fn validate_subresource_update(&self, _: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.rules(new, Some(old));
        changes(&mut errors, new, old, true, false);
        errors
    }
    fn name_rule(&self) -> NameRule {
        NameRule::Custom(|_, _| Vec::new())
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        let duration = object.i64_at(&["spec", "expirationSeconds"]).map_or("<none>".to_string(), table::duration);
        vec![
            object.str_at(&["metadata", "name"]).into(),
            table::age(object, now).into(),
            none(object.str_at(&["spec", "signerName"])).into(),
            object.str_at(&["spec", "username"]).into(),
            duration.into(),
            state(object).into(),
        ]
    }
    fn selectable(&self, _: &'static Resource) -> &'static [Selectable] {
        const { &[Selectable::new("spec.signerName", &["spec", "signerName"])] }
    }
}

fn of_type<'a>(object: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    object.list_at(&["status", "conditions"]).iter().filter(move |c| c.str_at(&["type"]) == kind)
}

fn state(object: &Value) -> String {
    let has = |kind: &str| of_type(object, kind).next().is_some();
    let mut text = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_string();
    if has("Failed") {
        text.push_str(",Failed");
    }
    if !object.str_at(&["status", "certificate"]).is_empty() {
        text.push_str(",Issued");
    }
    text
}

/// Times of conditions that say none.
fn stamp(context: &Context, new: &mut Value, old: &Value) {
    let now = context.now.to_string();
    for condition in new.at_mut(&["status", "conditions"]).and_then(Value::as_list_mut).into_iter().flatten() {
        if condition.str_at(&["lastUpdateTime"]).is_empty() {
            condition.set(&["lastUpdateTime"], now.as_str());
        }
        if condition.str_at(&["lastTransitionTime"]).is_empty() {
            let same = |was: &&Value| ["type", "status"].iter().all(|m| was.str_at(&[m]) == condition.str_at(&[m]));
            let was = old.list_at(&["status", "conditions"]).iter().filter(same).map(|c| c.str_at(&["lastTransitionTime"]));
            let since = was.into_iter().find(|t| !t.is_empty()).unwrap_or(&now).to_string();
            condition.set(&["lastTransitionTime"], since);
        }
    }
}

impl SigningRequests {
    fn rules(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        cursor::validate(self.resource().type_ref(), object, |at| rules(at, old))
    }
}

fn rules(object: &At, old: Option<&Value>) {
    let spec = object.get("spec");
    let request = spec.get("request");
    if let Some(why) = refuse_request(request.str()) {
        request.invalid(why);
    }
    let usages = spec.get("usages");
    usages.must();
    let of_old: Vec<&str> = old.map_or(&[][..], |o| o.list_at(&["spec", "usages"])).iter().filter_map(Value::as_str).collect();
    if of_old.iter().all(|u| USAGES.contains(u)) {
        for usage in usages.each() {
            usage.one_of(&USAGES);
        }
    }
    if !of_old.iter().enumerate().any(|(i, u)| of_old[..i].contains(u)) {
        usages.unique(|u| u.str().to_string());
    }
    const LEGACY: &str = "kubernetes.io/legacy-unknown";
    let signer = spec.get("signerName");
    if signer.str() == LEGACY && old.is_none_or(|o| o.str_at(&["spec", "signerName"]) != LEGACY) {
        signer.invalid("the legacy signerName is not allowed via this API version");
    } else {
        signer_name(&signer);
    }
    let seconds = spec.get("expirationSeconds");
    if seconds.is_set() && seconds.int() < 600 {
        seconds.invalid("may not specify a duration less than 600 seconds (10 minutes)");
    }
    conditions(&object.at(&["status", "conditions"]), old.unwrap_or(&Value::Null));
    let (certificate, was) = (object.at(&["status", "certificate"]), old.map_or("", |o| o.str_at(&["status", "certificate"])));
    if certificate.str() != was
        && let Some(why) = refuse_certificate(certificate.str())
        && refuse_certificate(was).is_none()
    {
        certificate.invalid_as("<certificate data>", why);
    }
}

/// `example.com/name`.
fn signer_name(at: &At) {
    if !at.must() {
        return;
    }
    let parts: Vec<&str> = at.str().split('/').collect();
    let &[domain, path] = parts.as_slice() else {
        return at.invalid("must be a fully qualified domain and path of the form 'example.com/signer-name'");
    };
    if domain.len() > 253 {
        at.too_long(253);
    }
    let first_bad = |text: &str, rule: fn(&str) -> Vec<String>| {
        let bad = text.split('.').map(|l| (l.to_string(), rule(l))).find(|(_, messages)| !messages.is_empty());
        for (label, message) in bad.into_iter().flat_map(|(l, messages)| messages.into_iter().map(move |m| (l.clone(), m))) {
            at.invalid_as(text, format!("validating label {}: {message}", go_quote(&label)));
        }
    };
    first_bad(domain, validation::label);
    if !domain.contains('.') {
        at.invalid_as(domain, "should be a domain with at least two segments separated by dots");
    }
    first_bad(path, validation::subdomain);
    const LENGTH_MAX: usize = 253 + 253 + 63 + 1 + 1;
    if at.len() > LENGTH_MAX {
        at.too_long(LENGTH_MAX);
    }
}

fn conditions(list: &At, old: &Value) {
    let types =
        |v: &Value| -> Vec<String> { v.list_at(&["status", "conditions"]).iter().map(|c| c.str_at(&["type"]).to_string()).collect() };
    let was = types(old);
    let had = |kind: &str| was.iter().any(|t| t == kind);
    let had_both = had("Approved") && had("Denied");
    let had_twice = was.iter().enumerate().any(|(i, t)| was[..i].contains(t));
    let mut seen: Vec<&str> = Vec::new();
    for c in list.each() {
        let (kind, status) = (c.get("type"), c.get("status"));
        if !had("") {
            kind.must();
        }
        let decides = matches!(kind.str(), "Approved" | "Denied" | "Failed");
        status.must_one_of(if decides { &["True"] } else { &["False", "True", "Unknown"] });
        let other = match kind.str() {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "-",
        };
        if !had_both && seen.contains(&other) {
            list.invalid_as(kind.str(), "Approved and Denied conditions are mutually exclusive");
        }
        if !had_twice && seen.contains(&kind.str()) {
            kind.duplicate();
        }
        seen.push(kind.str());
    }
}

/// What may become of conditions and the certificate.
fn changes(errors: &mut Vec<FieldError>, new: &Value, old: &Value, approves: bool, signs: bool) {
    const CONDITIONS: &str = "status.conditions";
    let list = |object: &Value, kind: &str| -> Vec<Value> { of_type(object, kind).cloned().collect() };
    for kind in ["Approved", "Denied", "Failed"] {
        if list(new, kind).len() < list(old, kind).len() {
            errors.push(FieldError::forbidden(CONDITIONS, format!("updates may not remove a condition of type \"{kind}\"")));
        }
    }
    for kind in ["Approved", "Denied"].into_iter().filter(|_| !approves) {
        let (is, was) = (list(new, kind), list(old, kind));
        let verb = match is.len().cmp(&was.len()) {
            std::cmp::Ordering::Greater => "add",
            std::cmp::Ordering::Equal if is != was => "modify",
            std::cmp::Ordering::Equal | std::cmp::Ordering::Less => continue,
        };
        errors.push(FieldError::forbidden(CONDITIONS, format!("updates may not {verb} a condition of type \"{kind}\"")));
    }
    let certificate = |object: &Value| object.str_at(&["status", "certificate"]).to_string();
    let (is, was) = (certificate(new), certificate(old));
    if is != was && !signs {
        errors.push(FieldError::forbidden("status.certificate", "updates may not set certificate content"));
    } else if is != was && !was.is_empty() {
        errors.push(FieldError::forbidden("status.certificate", "updates may not modify existing certificate content"));
    }
}

/// The blocks of PEM in base64: their labels and contents.
fn blocks(base64: &str) -> Vec<x509_parser::pem::Pem> {
    let bytes = decode_base64(base64).unwrap_or_default();
    x509_parser::pem::Pem::iter_from_buffer(&bytes).filter_map(std::result::Result::ok).collect()
}

fn refuse_request(base64: &str) -> Option<String> {
    use x509_parser::prelude::FromDer;
    let blocks = blocks(base64);
    let Some(block) = blocks.first().filter(|b| b.label == "CERTIFICATE REQUEST") else {
        return Some("PEM block type must be CERTIFICATE REQUEST".to_string());
    };
    let parsed = x509_parser::certification_request::X509CertificationRequest::from_der(&block.contents);
    parsed.is_err().then(|| "asn1: structure error: not a certificate request".to_string())
}

fn refuse_certificate(base64: &str) -> Option<String> {
    if base64.is_empty() {
        return None;
    }
    let blocks = blocks(base64);
    if blocks.is_empty() {
        return Some("must contain at least one CERTIFICATE PEM block".to_string());
    }
    blocks.iter().find_map(|block| {
        if block.label != "CERTIFICATE" {
            return Some(format!("only CERTIFICATE PEM blocks are allowed, found {}", go_quote(&block.label)));
        }
        x509_parser::parse_x509_certificate(&block.contents).is_err().then(|| "x509: malformed certificate".to_string())
    })
}

/// An APIService: which server answers for a group and version.
pub struct ApiServices;

impl Strategy for ApiServices {
    fn resource(&self) -> &'static Resource {
        &resource::APISERVICES
    }
    fn is_acted_on(&self) -> bool {
        false
    }
    fn default(&self, object: &mut Value) {
        if let Some(service) = object.at_mut(&["spec", "service"]).and_then(Value::as_map_mut) {
            service.insert_default("port", 443);
        }
    }
    fn prepare_create(&self, context: &Context, object: &mut Value) -> Result<()> {
        object.remove(&["status"]);
        if object.at(&["spec", "service"]).is_none() {
            let condition = value!({"type": "Available", "status": "True", "lastTransitionTime": (context.now.to_string()),
                "reason": "Local", "message": "Local APIServices are always available"});
            object.set(&["status", "conditions"], Value::List(vec![condition]));
        }
        Ok(())
    }
    fn validate(&self, _: &Context, object: &Value) -> Vec<FieldError> {
        cursor::validate(self.resource().type_ref(), object, api_service)
    }
    /// Nobody is asked yet, so all there is to find out is that there is nobody to ask.
    fn findings(&self, context: &Context, object: &Value) -> Vec<Finding> {
        let Some(service) = object.at(&["spec", "service"]) else { return Vec::new() };
        let (namespace, name) = (service.str_at(&["namespace"]), service.str_at(&["name"]));
        let known = of_type(object, "Available").next().is_some();
        if known || context.access.get(&resource::SERVICES, namespace, name).is_some() {
            return Vec::new();
        }
        let now = context.now.truncated_to_seconds().to_string();
        let message = format!("service/{name} in {} is not present", go_quote(namespace));
        let condition =
            value!({"type": "Available", "status": "False", "lastTransitionTime": now, "reason": "ServiceNotFound", "message": message});
        let (name, manager) = (object.str_at(&["metadata", "name"]).to_string(), "kube-apiserver");
        vec![Finding { resource: self.resource(), name, manager, patch_type: PatchType::Merge, condition }]
    }
    /// The name is checked among the rules: it follows from what is in the object.
    fn name_rule(&self) -> NameRule {
        NameRule::Unchecked
    }
    fn unconditional_update(&self) -> bool {
        false
    }
    fn columns(&self) -> &'static [Column] {
        const { &[Column::NAME, Column::new("Service", "string"), Column::new("Available", "string"), Column::AGE] }
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        let service = match object.at(&["spec", "service"]) {
            Some(s) => format!("{}/{}", s.str_at(&["namespace"]), s.str_at(&["name"])),
            None => "Local".to_string(),
        };
        let available = of_type(object, "Available").next();
        let text = match available.map(|c| (c.str_at(&["status"]), c.str_at(&["reason"]))) {
            Some(("True", _)) => "True".to_string(),
            Some((status, reason)) => format!("{status} ({reason})"),
            None => "Unknown".to_string(),
        };
        vec![object.str_at(&["metadata", "name"]).into(), service.into(), text.into(), table::age(object, now).into()]
    }
}

fn api_service(object: &At) {
    let spec = object.get("spec");
    let (group, version) = (spec.get("group"), spec.get("version"));
    let required = format!("{}.{}", version.str(), group.str());
    let name = object.at(&["metadata", "name"]);
    let other = |text: &str, is_prefix: bool| match validation::path_segment(text, is_prefix) {
        messages if messages.is_empty() && text != required => {
            vec![format!("must be `spec.version+\".\"+spec.group`: {}", go_quote(&required))]
        }
        messages => messages,
    };
    // Everything else about the metadata first: its errors have the places of those of the name.
    let mut errors = validation::metadata(object.value, NameRule::Custom(|_, _| Vec::new()), false);
    let mut names: Vec<FieldError> = Vec::new();
    let prefix = object.at(&["metadata", "generateName"]);
    if !prefix.is_empty() {
        validation::invalid(&mut names, prefix.path, prefix.str(), other(prefix.str(), true));
    }
    if !name.is_empty() {
        validation::invalid(&mut names, name.path, name.str(), other(name.str(), false));
    }
    names.append(&mut errors);
    names.into_iter().for_each(|e| object.push(e));
    if group.is_empty() && version.str() != "v1" {
        group.required("only v1 may have an empty group and it better be legacy kube");
    }
    group.may_be(validation::subdomain);
    version.ok(validation::label_1035);
    for (key, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let priority = spec.get(key);
        if !(1..=max).contains(&priority.int()) {
            priority.invalid_as(priority.int(), format!("must be positive and less than {max}"));
        }
    }
    let (service, bundle, skip) = (spec.get("service"), spec.get("caBundle"), spec.get("insecureSkipTLSVerify"));
    if !service.is_set() {
        if !bundle.is_empty() {
            let bytes = decode_base64(bundle.str()).map_or(0, |b| b.len());
            bundle.invalid_as(format!("{bytes} bytes"), "local APIServices may not have a caBundle");
        }
        if skip.flag() {
            skip.invalid("local APIServices may not have insecureSkipTLSVerify");
        }
        return;
    }
    service.get("namespace").must();
    service.get("name").must();
    let port = service.get("port");
    let messages = validation::port_number(port.int());
    if !messages.is_empty() {
        port.invalid(format!("port is not valid: {}", messages.join(", ")));
    }
    if skip.flag() && !bundle.is_empty() {
        skip.invalid("may not be true if caBundle is present");
    }
}
