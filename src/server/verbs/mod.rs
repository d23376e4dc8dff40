//! One generic verb each, over any row. Here: what they share: options and bodies in, conditions on writes, store errors out.

mod apply;
mod create;
mod delete;
mod get;
mod list;
mod scale;
mod update;
pub(in crate::server) mod watch;

use bytes::Bytes;

use crate::api::client::Transport;
use crate::api::object::Object;
use crate::api::request::{Body, Options, PatchType, Request, User, Verb};
use crate::api::resource::Resource;
use crate::api::schema::{self, TypeRef};
use crate::api::status::{FieldError, Result, Status};
use crate::api::value::Value;
use crate::api::{json, protobuf, yaml};
use crate::store::{self, Batch, Check, Expect, Put};

use super::pipeline::Pipeline;
use super::registry::Row;
use super::strategy::{Context, Effect, MetadataLooks, NameRule, Strategy};
use super::validation;

/// How often a write is tried anew when others get in between.
const ATTEMPTS_MAX: usize = 64;

/// Which options kind a request's parameters are complaints about.
fn check_options(kind: &str, options: &Options, is_apply: bool) -> Result<()> {
    let mut errors = Vec::new();
    if kind == "PatchOptions" && options.force.is_some() && !is_apply {
        errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
    }
    if is_apply && options.field_manager.is_none() {
        errors.push(FieldError::required("fieldManager", "is required for apply patch"));
    }
    if let Some(manager) = &options.field_manager {
        if manager.len() > 128 {
            errors.push(FieldError::too_long("fieldManager", 128));
        }
        for (i, c) in manager.chars().enumerate().filter(|(_, c)| c.is_control()) {
            let detail = format!("invalid character U+{:04X} (at position {i})", c as u32);
            errors.push(FieldError::invalid("fieldManager", manager.as_str(), detail));
        }
    }
    errors.extend(dry_run_error(&options.dry_run));
    if let Some(v) = options.field_validation.as_deref().filter(|v| !matches!(*v, "Ignore" | "Warn" | "Strict")) {
        errors.push(FieldError::not_supported("fieldValidation", v, &["", "Ignore", "Strict", "Warn"]));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid_kind("meta.k8s.io", kind, "", &errors)) }
}

fn dry_run_error(dry_run: &[String]) -> Option<FieldError> {
    if dry_run.iter().all(|d| d == "All") {
        return None;
    }
    let shown: Vec<Value> = dry_run.iter().map(|d| d.as_str().into()).collect();
    Some(FieldError::not_supported("dryRun", Value::List(shown), &["All"]))
}

/// A decoded body: the tree with `apiVersion` and `kind` set, and texts for warnings.
struct Decoded {
    value: Value,
    warnings: Vec<String>,
}

/// Decodes a body as `kind` of `api_version`, with upstream's complaints.
fn decode(ty: TypeRef, api_version: &str, kind: &str, body: &Body, options: &Options) -> Result<Decoded> {
    let mut texts = Vec::new();
    let mut value = match body {
        Body::Empty => return Err(unrecognized(kind, "couldn't get version/kind; json parse error: unexpected end of JSON input", b"")),
        Body::Json(bytes) => decode_json(ty, api_version, kind, bytes, &mut texts)?,
        Body::Yaml(bytes) => {
            let (mut value, duplicates) = yaml::parse(bytes).map_err(|e| unrecognized(kind, &e, bytes))?;
            check_kind(&value, api_version, kind, bytes)?;
            texts = duplicates;
            let unknown = json::conform(ty, &mut value).map_err(|e| unhandled(kind, version_of(api_version), kind, &e))?;
            texts.extend(unknown);
            value
        }
        Body::Protobuf(bytes) => decode_protobuf(ty, api_version, kind, bytes)?,
        Body::Value(value) => {
            let mut value = value.clone();
            texts = json::conform(ty, &mut value).map_err(|e| unhandled(kind, version_of(api_version), kind, &e))?;
            check_kind(&value, api_version, kind, b"")?;
            value
        }
    };
    if let Body::Json(bytes) = body {
        check_kind(&value, api_version, kind, bytes)?;
    }
    if !matches!(value, Value::Map(_)) {
        value = Value::map();
    }
    value.set(&["apiVersion"], api_version);
    value.set(&["kind"], kind);
    let warnings = field_validation(options, texts, |text| unhandled(kind, version_of(api_version), kind, text))?;
    Ok(Decoded { value, warnings })
}

/// What becomes of unknown and duplicate fields: an error made of them, warnings, or nothing.
fn field_validation(options: &Options, texts: Vec<String>, refuse: impl Fn(&str) -> Status) -> Result<Vec<String>> {
    match options.field_validation.as_deref() {
        Some("Strict") if !texts.is_empty() => Err(refuse(&format!("strict decoding error: {}", texts.join(", ")))),
        Some("Ignore") => Ok(Vec::new()),
        _ => Ok(texts),
    }
}

fn decode_json(ty: TypeRef, api_version: &str, kind: &str, bytes: &Bytes, texts: &mut Vec<String>) -> Result<Value> {
    match json::decode(ty, bytes) {
        Ok((value, unknown)) => {
            *texts = unknown;
            Ok(value)
        }
        Err(error) => Err(explain(api_version, kind, bytes, &error)),
    }
}

/// Tells a body that is no JSON object with a kind from one whose fields have wrong types.
fn explain(api_version: &str, kind: &str, bytes: &[u8], error: &str) -> Status {
    const HEAD: &str = "struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }";
    let json_error = |e: &str| unrecognized(kind, &format!("couldn't get version/kind; json parse error: {e}"), bytes);
    let tree = match json::parse(bytes) {
        Err(e) => return json_error(&e),
        Ok(tree) => tree,
    };
    let type_name = |v: &Value| match v {
        Value::List(_) => "array",
        Value::Str(_) => "string",
        Value::Bool(_) => "bool",
        Value::Map(_) => "object",
        Value::Int(_) | Value::Float(_) | Value::Null => "number",
    };
    if !matches!(tree, Value::Map(_) | Value::Null) {
        return json_error(&format!("json: cannot unmarshal {} into Go value of type {HEAD}", type_name(&tree)));
    }
    for field in ["kind", "apiVersion"] {
        if let Some(v) = tree.get(field).filter(|v| !matches!(v, Value::Str(_) | Value::Null)) {
            return json_error(&format!("json: cannot unmarshal {} into Go struct field .{field} of type string", type_name(v)));
        }
    }
    if let Err(other) = check_kind(&tree, api_version, kind, bytes) {
        return other;
    }
    let sent = tree.str_at(&["kind"]);
    let version = tree.str_at(&["apiVersion"]);
    unhandled(if sent.is_empty() { kind } else { sent }, if version.is_empty() { "v1" } else { version_of(version) }, kind, error)
}

fn version_of(api_version: &str) -> &str {
    api_version.rsplit('/').next().unwrap_or(api_version)
}

fn unhandled(sent: &str, version: &str, kind: &str, error: &str) -> Status {
    Status::bad_request(format!("{sent} in version \"{version}\" cannot be handled as a {kind}: {error}"))
}

fn unrecognized(kind: &str, error: &str, bytes: &[u8]) -> Status {
    const SHOWN_MAX: usize = 30;
    let (head, more) = if bytes.len() > SHOWN_MAX { (&bytes[..SHOWN_MAX], " ...") } else { (bytes, "") };
    let shown = match head {
        [] => "<empty>".to_string(),
        [b'{', ..] => String::from_utf8_lossy(head).into_owned(),
        _ => head.iter().map(|b| format!("{b:02x}")).collect(),
    };
    Status::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {error} ({shown}{more})"))
}

fn decode_protobuf(ty: TypeRef, api_version: &str, kind: &str, bytes: &Bytes) -> Result<Value> {
    let (sent_version, sent_kind, raw) = protobuf::open(bytes).map_err(|e| unrecognized(kind, &e, bytes))?;
    let head = crate::value!({"apiVersion": sent_version, "kind": sent_kind});
    check_kind(&head, api_version, kind, bytes)?;
    protobuf::decode(ty, raw).map_err(|e| unhandled(kind, version_of(api_version), kind, &e))
}

/// The body's own idea of what it is must be the URL's; empty members take it over.
fn check_kind(value: &Value, api_version: &str, kind: &str, bytes: &[u8]) -> Result<()> {
    let or = |text: &str, default: &str| if text.is_empty() { default.to_string() } else { text.to_string() };
    let sent_version = or(value.str_at(&["apiVersion"]), api_version);
    let sent_kind = or(value.str_at(&["kind"]), kind);
    if sent_version == api_version && sent_kind == kind {
        return Ok(());
    }
    if sent_version.matches('/').count() > 1 {
        return Err(unrecognized(kind, &format!("unexpected GroupVersion string: {sent_version}"), bytes));
    }
    let version = version_of(&sent_version).to_string();
    if schema::type_of(&sent_version, &sent_kind).is_none() {
        let why = format!("no kind \"{sent_kind}\" is registered for version \"{sent_version}\" in scheme \"pkg/runtime/scheme.go:111\"");
        return Err(unhandled(&sent_kind, &version, kind, &why));
    }
    let group = |v: &str| v.split_once('/').map_or(String::new(), |(g, _)| g.to_string());
    if sent_kind == kind && group(&sent_version) == group(api_version) {
        let why = format!("the API version in the data ({sent_version}) does not match the expected API version ({api_version})");
        return Err(Status::bad_request(why));
    }
    // Events are of the core group, whoever serves them.
    let group = group(api_version);
    let package = match group.split('.').next() {
        Some("" | "events") | None => "core",
        Some(first) => first,
    };
    let why = format!("converting ({version}.{sent_kind}) to ({package}.{kind}): unknown conversion");
    Err(unhandled(&sent_kind, &version, kind, &why))
}

impl Pipeline {
    /// Says in the status of objects what follows from one that was just stored; a failure is no concern of who stored it.
    async fn note_findings(&self, row: &Row, context: &Context, stored: &Value) {
        for finding in row.strategy.findings(context, stored) {
            let mut body = crate::value!({"apiVersion": (finding.resource.api_version()), "kind": (finding.resource.kind)});
            body.set(&["metadata", "name"], finding.name.as_str());
            body.set(&["status", "conditions"], Value::List(vec![finding.condition]));
            let is_apply = finding.patch_type == PatchType::Apply;
            let options =
                Options { field_manager: Some(finding.manager.to_string()), force: is_apply.then_some(true), ..Options::default() };
            let target = Request::new(&User::master(), Verb::Patch, finding.resource, "", &finding.name);
            let subresource = "status".to_string();
            let request = Request { subresource, options, patch_type: Some(finding.patch_type), body: Body::Value(body), ..target };
            if let Err(status) = self.call(request).await {
                tracing::debug!(%status.message, "a finding was not noted");
            }
        }
    }

    /// Adds what hooks asked for to a batch. Deletions of the request itself were put in before.
    fn add_effects(&self, batch: &mut Batch, effects: Vec<Effect>, now: &str) {
        for effect in effects {
            match effect {
                Effect::Create { resource, namespace, name, mut object } => {
                    object.set(&["metadata", "name"], name.as_str());
                    if resource.namespaced {
                        object.set(&["metadata", "namespace"], namespace.as_str());
                    }
                    let metadata = object.make_map(&["metadata"]);
                    metadata.insert_default("uid", uid());
                    metadata.insert_default("creationTimestamp", now);
                    let key = Bytes::from(resource.key(&namespace, &name));
                    let value = Object::from_value(resource.storage(), &object, 0).bytes;
                    batch.checks.push(Check { key: key.clone(), expect: Expect::Absent });
                    batch.puts.push(Put { key, value, ttl_seconds: None });
                }
                Effect::Update { old, object } => replace(batch, &old, &object),
                Effect::UpdateStatus { old, mut object } => {
                    self.manage_own_fields(self.registry.row(old.resource), &mut object, &old.value(), now);
                    replace(batch, &old, &object);
                }
                Effect::Delete { resource, namespace, name } => batch.deletes.push(Bytes::from(resource.key(&namespace, &name))),
                Effect::Unchanged { object } => {
                    batch.checks.push(Check { key: object_key(&object), expect: Expect::At(object.revision) });
                }
            }
        }
    }
}

fn replace(batch: &mut Batch, old: &Object, object: &Value) {
    let key = object_key(old);
    batch.checks.push(Check { key: key.clone(), expect: Expect::At(old.revision) });
    batch.puts.push(Put { key, value: Object::from_value(old.resource, object, 0).bytes, ttl_seconds: None });
}

/// Decodes the body of a request for the main resource or a subresource that speaks the same kind.
fn decode_object(row: &Row, body: &Body, options: &Options) -> Result<Decoded> {
    decode(row.type_ref(), &row.resource.api_version(), row.resource.kind, body, options)
}

/// The namespace of the body must be the URL's; an absent one takes it over.
fn settle_namespace(request: &Request, value: &mut Value) -> Result<()> {
    let sent = value.str_at(&["metadata", "namespace"]);
    if !request.resource.namespaced {
        if !sent.is_empty() {
            value.remove(&["metadata", "namespace"]);
        }
        return Ok(());
    }
    if sent == request.namespace {
        return Ok(());
    }
    if sent.is_empty() {
        value.set(&["metadata", "namespace"], request.namespace.as_str());
        return Ok(());
    }
    Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request"))
}

/// The name of the body must be the URL's.
fn check_name(request: &Request, value: &Value) -> Result<()> {
    let (sent, wanted) = (value.str_at(&["metadata", "name"]), request.name.as_str());
    if sent.is_empty() {
        let message = format!("the name of the object ({wanted} based on URL) was undeterminable: name must be provided");
        return Err(Status::bad_request(message));
    }
    if sent != wanted {
        let message = format!("the name of the object ({sent}) does not match the name on the URL ({wanted})");
        return Err(Status::bad_request(message));
    }
    Ok(())
}

/// Owner references said twice count once, and a warning tells.
fn dedup_owners(context: &Context, value: &mut Value) {
    let Some(Value::List(owners)) = value.at_mut(&["metadata", "ownerReferences"]) else { return };
    let mut seen: Vec<Value> = Vec::with_capacity(owners.len());
    let mut uids: Vec<String> = Vec::new();
    for owner in owners.iter() {
        if seen.contains(owner) {
            let uid = owner.str_at(&["uid"]).to_string();
            if !uids.contains(&uid) {
                uids.push(uid);
            }
        } else {
            seen.push(owner.clone());
        }
    }
    if !uids.is_empty() {
        *owners = seen;
        context.warn(format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests \
             as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            uids.join(", ")
        ));
    }
}

/// A resourceVersion that is not a number, or a number too many.
fn parse_revision(text: &str) -> std::result::Result<u64, String> {
    text.parse().map_err(|_| {
        let go = if text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() { "value out of range" } else { "invalid syntax" };
        format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: {go}")
    })
}

fn object_key(object: &Object) -> Bytes {
    Bytes::from(object.resource.key(object.namespace(), object.name()))
}

/// A random (version 4) UUID.
pub fn uid() -> String {
    let mut b = [0u8; 16];
    getrandom::fill(&mut b).expect("the kernel has random bytes");
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(36);
    for (i, byte) in b.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push(HEX[usize::from(byte >> 4)] as char);
        text.push(HEX[usize::from(byte & 15)] as char);
    }
    text
}

/// A store error other than a lost race.
fn store_error(error: store::Error) -> Status {
    match error {
        store::Error::Compacted { .. } => Status::expired("The resourceVersion for the provided list is too old."),
        store::Error::TooLarge => {
            Status::new(413, "RequestEntityTooLarge", "Request entity too large: the object is too large to be stored")
        }
        store::Error::Busy => Status::too_many_requests("the store is busy, please try again later", 1),
        store::Error::Future { requested, current } => list::Position::from_the_future(requested, current),
        store::Error::NoSpace => Status::new(507, "", "the store is full"),
        other => Status::internal(other),
    }
}

/// Too many rounds lost in a row.
fn contended(resource: &Resource, name: &str) -> Status {
    let mut status = Status::modified(resource, name);
    status.details.get_or_insert_default().retry_after_seconds = 1;
    status
}

/// A batch with one put for the object itself.
fn put_batch(strategy: &dyn Strategy, key: Bytes, expect: Expect, object: &Object, value: &Value) -> Batch {
    Batch {
        checks: vec![Check { key: key.clone(), expect }],
        puts: vec![Put { key, value: object.bytes.clone(), ttl_seconds: strategy.ttl_seconds(value) }],
        deletes: Vec::new(),
        durability: strategy.durability(value),
    }
}

/// What is wrong with a new object's metadata.
fn metadata_errors(row: &Row, value: &Value) -> Vec<FieldError> {
    match row.strategy.name_rule() {
        NameRule::Unchecked => Vec::new(),
        rule => validation::metadata(value, rule, row.resource.namespaced),
    }
}

/// A write named another object of the same name; in the words of upstream's store.
pub(in crate::server) fn wrong_uid(resource: &Resource, place: (&str, &str), sent: &str, stored: &str) -> Status {
    let (namespace, name) = place;
    // Where upstream keeps these is not where they are served.
    let folder = match (resource.group, resource.plural) {
        ("", "services") => "services/specs",
        ("", "endpoints") => "services/endpoints",
        ("", "replicationcontrollers") => "controllers",
        ("", "nodes") => "minions",
        ("networking.k8s.io", "ingresses") => "ingress",
        ("apiextensions.k8s.io", "customresourcedefinitions") => "apiextensions.k8s.io/customresourcedefinitions",
        ("apiregistration.k8s.io", "apiservices") => "apiregistration.k8s.io/apiservices",
        (_, plural) => plural,
    };
    let path = [folder, namespace, name].into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("/");
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: /registry/{path}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in \
         precondition: {sent}, UID in object meta: {stored}"
    );
    Status::conflict(resource, name, &why)
}

/// What is wrong with the change of an object's metadata: the general look at every kind, then the kind's own.
fn metadata_update_errors(row: &Row, looks: MetadataLooks, new: &Value, old: &Value) -> Vec<FieldError> {
    let namespaced = row.resource.namespaced;
    let mut errors = validation::metadata(new, NameRule::Unchecked, namespaced);
    let as_update = validation::metadata_update(new, old);
    errors.extend(as_update.iter().cycle().take(as_update.len() * (1 + looks.as_update)).cloned());
    if looks.whole > 0 {
        let whole = validation::metadata(new, row.strategy.name_rule(), namespaced);
        errors.extend(whole.iter().cycle().take(whole.len() * looks.whole).cloned());
    }
    errors
}
