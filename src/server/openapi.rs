//! OpenAPI documents of both versions, built from the schema and resource tables when asked for and kept compressed for a while.
//!
//! [`paths`] says what operations there are, [`schemas`] what objects look like, [`gnostic`] is v2 in protobuf. Documents differ
//! only by what is served, so a document's hash stays known after the document is forgotten. Start at [`v3`], [`v2`].

mod gnostic;
mod paths;
mod schemas;
mod texts;

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{LazyLock, Mutex};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha512};

use paths::{Answer, Body, Item, Operation, PATCHES, Parameter, Part};
use schemas::{Dialect, Scope, Texts};

/// Requests for other documents after which one nobody asked for is forgotten.
const KEPT_REQUESTS: u64 = 64;

/// One form of one document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    V2Json,
    V2Protobuf,
    /// By its path below `/openapi/v3/`.
    V3(String),
    V3Protobuf(String),
}

/// A document as it is kept.
#[derive(Clone)]
pub struct Document {
    pub gzip: Bytes,
    pub hash: String,
}

#[derive(Default)]
struct Kept {
    requests: u64,
    documents: BTreeMap<Form, (Bytes, u64)>,
    hashes: BTreeMap<Form, String>,
}

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

/// `/openapi/v3`: where each part is, with the hash that makes it cacheable.
pub fn index() -> Vec<u8> {
    let texts = Words::new(texts::load);
    let entry = |(path, _): (String, Part)| {
        let url = format!("/openapi/v3/{path}?hash={}", hash_of(Form::V3(path.clone()), &texts));
        (path, json!({"serverRelativeURL": url}))
    };
    let paths: Map<String, Value> = paths::parts().into_iter().map(entry).collect();
    json!({"paths": paths}).to_string().into_bytes()
}

/// The part at `api/v1`, `apis/apps/v1`, …
pub fn v3(path: &str) -> Option<Document> {
    paths::parts().iter().any(|(p, _)| p == path).then(|| document(Form::V3(path.to_string())))
}

/// The same as gnostic's protobuf, and the hash of the JSON.
pub fn v3_protobuf(path: &str) -> Option<Document> {
    let json = v3(path)?;
    Some(Document { hash: json.hash, ..document(Form::V3Protobuf(path.to_string())) })
}

/// `/openapi/v2` as JSON.
pub fn v2() -> Document {
    document(Form::V2Json)
}

/// `/openapi/v2` as gnostic's protobuf.
pub fn v2_protobuf() -> Document {
    document(Form::V2Protobuf)
}

/// The document as it was before compression.
pub fn inflated(gzip: &[u8]) -> Vec<u8> {
    use std::io::Read as _;
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(gzip).read_to_end(&mut out).expect("we compressed it");
    out
}

/// Descriptions, unpacked when the first document needs them.
type Words = LazyCell<texts::Descriptions>;

/// Making a document only to know its hash keeps nothing else of it.
fn hash_of(form: Form, texts: &Words) -> String {
    let known = KEPT.lock().expect("no panic under this lock").hashes.get(&form).cloned();
    known.unwrap_or_else(|| {
        let hash = hash(&build(&form, texts));
        KEPT.lock().expect("no panic under this lock").hashes.insert(form, hash.clone());
        hash
    })
}

fn hash(body: &[u8]) -> String {
    Sha512::digest(body).iter().map(|b| format!("{b:02X}")).collect()
}

fn document(form: Form) -> Document {
    let mut kept = KEPT.lock().expect("no panic under this lock");
    kept.requests += 1;
    let now = kept.requests;
    kept.documents.retain(|_, (_, asked)| now - *asked < KEPT_REQUESTS);
    if let Some((gzip, asked)) = kept.documents.get_mut(&form) {
        *asked = now;
        let gzip = gzip.clone();
        return Document { gzip, hash: kept.hashes[&form].clone() };
    }
    drop(kept);
    let body = build(&form, &Words::new(texts::load));
    let (hash, gzip) = (hash(&body), Bytes::from(compressed(&body)));
    let mut kept = KEPT.lock().expect("no panic under this lock");
    kept.documents.insert(form.clone(), (gzip.clone(), now));
    kept.hashes.insert(form, hash.clone());
    Document { gzip, hash }
}

fn compressed(body: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 8), flate2::Compression::new(6));
    encoder.write_all(body).and_then(|()| encoder.finish()).expect("memory takes all bytes")
}

fn build(form: &Form, texts: &Words) -> Vec<u8> {
    match form {
        Form::V2Json => swagger(&**texts).to_string().into_bytes(),
        Form::V2Protobuf => gnostic::encode(&swagger(&**texts)),
        Form::V3(path) => part_v3(part_at(path), &**texts).to_string().into_bytes(),
        Form::V3Protobuf(path) => gnostic::encode_3(&part_v3(part_at(path), &**texts)),
    }
}

// --- v3

fn part_at(path: &str) -> Part {
    paths::parts().into_iter().find(|(p, _)| p == path).map(|(_, part)| part).expect("only parts there are are asked for")
}

fn part_v3(part: Part, texts: &dyn Texts) -> Value {
    let items = paths::items(part);
    let (roots, with_patch) = roots(&items);
    let own = match part {
        Part::Version(group, version) => crate::api::resource::api_version(group, version),
        _ => String::new(),
    };
    let group_versions: Vec<&str> = if matches!(own.as_str(), "" | "v1") { vec!["v1"] } else { vec!["v1", &own] };
    let scope = Scope { dialect: Dialect::V3, group_versions: &group_versions, texts };
    let schemas = schemas::closure(&scope, &roots, with_patch);
    let mut components = json!({"securitySchemes": security()});
    if !schemas.is_empty() {
        components["schemas"] = schemas.into();
    }
    json!({"openapi": "3.0.0", "info": info(), "paths": render(&items, &item_v3), "components": components})
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "1.36"})
}

fn security() -> Value {
    json!({"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication"}})
}

/// The types the operations name, and whether one of them takes patches.
fn roots(items: &[Item]) -> (BTreeSet<&'static str>, bool) {
    let mut roots = BTreeSet::new();
    let mut with_patch = false;
    for operation in items.iter().flat_map(|i| &i.operations) {
        if let Answer::Type(ty) = operation.answer {
            roots.insert(ty.name());
        }
        match operation.body {
            Body::Of(ty) => drop(roots.insert(ty.name())),
            Body::Delete => drop(roots.insert(delete_options())),
            Body::Patch => with_patch = true,
            Body::None => {}
        }
    }
    (roots, with_patch)
}

fn delete_options() -> &'static str {
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"
}

fn render(items: &[Item], item: &dyn Fn(&Item) -> Value) -> Map<String, Value> {
    items.iter().map(|i| (i.path.clone(), item(i))).collect()
}

fn item_v3(item: &Item) -> Value {
    let mut out: Map<String, Value> = item.operations.iter().map(|o| (o.method.to_string(), operation_v3(o))).collect();
    if !item.parameters.is_empty() {
        out.insert("parameters".into(), item.parameters.iter().map(|p| parameter_v3(p)).collect::<Vec<_>>().into());
    }
    out.into()
}

fn parameter_v3(p: &Parameter) -> Value {
    let schema = json!({"type": p.kind, "uniqueItems": true});
    match p.is_path {
        true => json!({"name": p.name, "in": "path", "required": true, "schema": schema}),
        false => json!({"name": p.name, "in": "query", "schema": schema}),
    }
}

fn operation_v3(o: &Operation) -> Value {
    let mut out = operation_head(o);
    let answer = match o.answer {
        Answer::Type(ty) => Dialect::V3.reference(ty.name()),
        Answer::Text => json!({"type": "string"}),
    };
    let content: Map<String, Value> = o.media.produces().iter().map(|m| (m.to_string(), json!({"schema": answer}))).collect();
    let mut responses = Map::new();
    for code in o.codes {
        responses.insert(code.to_string(), json!({"description": said(*code), "content": content}));
    }
    responses.insert("401".into(), json!({"description": said(401)}));
    out.insert("responses".into(), responses.into());
    if !o.parameters.is_empty() {
        out.insert("parameters".into(), o.parameters.iter().map(|p| parameter_v3(p)).collect::<Vec<_>>().into());
    }
    let any = |name: &str| json!({"*/*": {"schema": Dialect::V3.reference(name)}});
    match o.body {
        Body::None => {}
        Body::Of(ty) => drop(out.insert("requestBody".into(), json!({"content": any(ty.name()), "required": true}))),
        Body::Delete => drop(out.insert("requestBody".into(), json!({"content": any(delete_options())}))),
        Body::Patch => {
            let schema = json!({"schema": Dialect::V3.reference(&schemas::patch_name())});
            let content: Map<String, Value> = PATCHES.iter().map(|m| (m.to_string(), schema.clone())).collect();
            out.insert("requestBody".into(), json!({"content": content, "required": true}));
        }
    }
    out.into()
}

/// What both versions say the same way.
fn operation_head(o: &Operation) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("tags".into(), json!([o.tag]));
    out.insert("operationId".into(), o.id.as_str().into());
    if !o.action.is_empty() {
        out.insert("x-kubernetes-action".into(), o.action.into());
    }
    if let Some((group, version, kind)) = o.gvk {
        out.insert("x-kubernetes-group-version-kind".into(), json!({"group": group, "version": version, "kind": kind}));
    }
    out
}

fn said(code: u16) -> &'static str {
    match code {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        _ => "Unauthorized",
    }
}

// --- v2

fn swagger(texts: &dyn Texts) -> Value {
    let items: Vec<Item> = paths::parts().into_iter().flat_map(|(_, part)| paths::items(part)).collect();
    let (roots, with_patch) = roots(&items);
    let scope = Scope { dialect: Dialect::V2, group_versions: crate::api::schema::group_versions(), texts };
    let definitions = schemas::closure(&scope, &roots, with_patch);
    let mut parameters = Map::new();
    let all = items.iter().flat_map(|i| i.parameters.iter().chain(i.operations.iter().flat_map(|o| &o.parameters)));
    for p in all.filter(|p| !p.shared.is_empty()) {
        parameters.entry(shared_name(p)).or_insert_with(|| written_out(p));
    }
    parameters.insert(DELETE_BODY.into(), json!({"name": "body", "in": "body", "schema": Dialect::V2.reference(delete_options())}));
    let patch = Dialect::V2.reference(&schemas::patch_name());
    parameters.insert(PATCH_BODY.into(), json!({"name": "body", "in": "body", "required": true, "schema": patch}));
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": render(&items, &item_v2),
        "definitions": definitions,
        "parameters": parameters,
        "securityDefinitions": security(),
        "security": [{"BearerToken": []}],
    })
}

/// Under which v2 shares the bodies of DELETE and PATCH.
const DELETE_BODY: &str = "body-2Y1dVQaQ";
const PATCH_BODY: &str = "body-78PwaGsr";

fn shared_name(p: &Parameter) -> String {
    format!("{}-{}", p.name, p.shared)
}

fn shared(name: &str) -> Value {
    json!({"$ref": format!("#/parameters/{name}")})
}

fn written_out(p: &Parameter) -> Value {
    match p.is_path {
        true => json!({"uniqueItems": true, "type": p.kind, "name": p.name, "in": "path", "required": true}),
        false => json!({"uniqueItems": true, "type": p.kind, "name": p.name, "in": "query"}),
    }
}

fn parameter_v2(p: &Parameter) -> Value {
    if p.shared.is_empty() { written_out(p) } else { shared(&shared_name(p)) }
}

fn item_v2(item: &Item) -> Value {
    let mut out: Map<String, Value> = item.operations.iter().map(|o| (o.method.to_string(), operation_v2(o))).collect();
    if !item.parameters.is_empty() {
        out.insert("parameters".into(), item.parameters.iter().map(|p| parameter_v2(p)).collect::<Vec<_>>().into());
    }
    out.into()
}

fn operation_v2(o: &Operation) -> Value {
    let mut out = operation_head(o);
    let consumes = if matches!(o.body, Body::Patch) { PATCHES } else { o.media.consumes() };
    if !consumes.is_empty() {
        out.insert("consumes".into(), json!(consumes));
    }
    out.insert("produces".into(), json!(o.media.produces()));
    out.insert("schemes".into(), json!(["https"]));
    let answer = match o.answer {
        Answer::Type(ty) => Dialect::V2.reference(ty.name()),
        Answer::Text => json!({"type": "string"}),
    };
    let mut responses = Map::new();
    for code in o.codes {
        responses.insert(code.to_string(), json!({"description": said(*code), "schema": answer}));
    }
    responses.insert("401".into(), json!({"description": said(401)}));
    out.insert("responses".into(), responses.into());
    let body = match o.body {
        Body::None => None,
        Body::Of(ty) => Some(json!({"name": "body", "in": "body", "required": true, "schema": Dialect::V2.reference(ty.name())})),
        Body::Delete => Some(shared(DELETE_BODY)),
        Body::Patch => Some(shared(PATCH_BODY)),
    };
    let parameters: Vec<Value> = body.into_iter().chain(o.parameters.iter().map(|p| parameter_v2(p))).collect();
    if !parameters.is_empty() {
        out.insert("parameters".into(), parameters.into());
    }
    out.into()
}

#[cfg(test)]
mod tests;
