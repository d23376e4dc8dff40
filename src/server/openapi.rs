//! OpenAPI v3 documents, built from the schema and resource tables when first asked for and kept compressed.
//!
//! They carry what clients read (`notes/schema.md` section 4): group-version-kinds on operations and schemas, `fieldValidation`
//! and `dryRun` parameters, patch media types, list and patch metadata, defaults. Texts (descriptions) are not there yet, so
//! `kubectl explain` shows fields without prose. Start at [`index`] and [`document`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{LazyLock, OnceLock};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::api::resource::{ALL, Resource, Subresource};
use crate::api::schema::{Field, Kind, ListType, MapType, TypeRef, type_of};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// One document: built once, on demand.
struct Slot {
    group: &'static str,
    version: &'static str,
    built: OnceLock<Document>,
}

#[derive(Clone)]
struct Document {
    json: bytes::Bytes,
    hash: String,
}

static SLOTS: LazyLock<BTreeMap<String, Slot>> = LazyLock::new(|| {
    let slot = |r: &&'static Resource| (path_of(r), Slot { group: r.group, version: r.version, built: OnceLock::new() });
    ALL.iter().map(slot).collect()
});

/// `api/v1` or `apis/apps/v1`.
fn path_of(resource: &Resource) -> String {
    match resource.group {
        "" => format!("api/{}", resource.version),
        group => format!("apis/{group}/{}", resource.version),
    }
}

impl Slot {
    fn get(&self) -> &Document {
        self.built.get_or_init(|| {
            let json = build(self.group, self.version).to_string();
            let hash = Sha256::digest(&json).iter().map(|b| format!("{b:02X}")).collect();
            Document { json: json.into(), hash }
        })
    }
}

/// `/openapi/v3`: where each group version's document is, with the hash that makes it cacheable.
pub fn index() -> bytes::Bytes {
    static INDEX: LazyLock<bytes::Bytes> = LazyLock::new(|| {
        let entry = |(path, slot): (&String, &Slot)| {
            (path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={}", slot.get().hash)}))
        };
        let paths: Map<String, Value> = SLOTS.iter().map(entry).collect();
        json!({"paths": paths}).to_string().into()
    });
    INDEX.clone()
}

/// The document of `api/v1`, `apis/apps/v1`, … as JSON, and its hash.
pub fn document(path: &str) -> Option<(bytes::Bytes, String)> {
    let document = SLOTS.get(path)?.get();
    Some((document.json.clone(), document.hash.clone()))
}

fn build(group: &str, version: &str) -> Value {
    let mut paths = Map::new();
    let mut types = BTreeSet::new();
    let options = type_of("v1", "DeleteOptions").into_iter().chain(type_of("v1", "Status"));
    types.extend(options.chain(type_of("v1", "APIResourceList")).map(|t| t.name()));
    let prefix = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    for resource in ALL.iter().filter(|r| r.group == group && r.version == version) {
        resource_paths(&prefix, resource, &mut paths, &mut types);
    }
    let schemas = schemas(&types);
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "1.36"},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header"}}},
    })
}

fn resource_paths(prefix: &str, resource: &'static Resource, paths: &mut Map<String, Value>, types: &mut BTreeSet<&'static str>) {
    let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{prefix}{scope}/{}", resource.plural);
    let gvk = (resource.group, resource.version, resource.kind);
    let Some(ty) = type_of(&resource.api_version(), resource.kind) else { return };
    types.insert(ty.name());
    let list = type_of(&resource.api_version(), &resource.list_kind());
    types.extend(list.map(|t| t.name()));
    let has = |verb: &str| resource.verbs.contains(&verb);

    let mut item = Map::new();
    if has("list") {
        item.insert("get".into(), operation("list", gvk, LIST, None, list));
    }
    if has("create") {
        item.insert("post".into(), operation("post", gvk, WRITE, Some(Body::Of(ty)), Some(ty)));
    }
    if has("deletecollection") {
        item.insert("delete".into(), operation("deletecollection", gvk, LIST, Some(Body::Delete), type_of("v1", "Status")));
    }
    put(paths, collection.clone(), item, resource.namespaced.then_some("namespace"));
    if has("list") && resource.namespaced {
        let mut all = Map::new();
        all.insert("get".into(), operation("list", gvk, LIST, None, list));
        put(paths, format!("{prefix}/{}", resource.plural), all, None);
    }
    let mut item = Map::new();
    if has("get") {
        item.insert("get".into(), operation("get", gvk, &[], None, Some(ty)));
    }
    if has("update") {
        item.insert("put".into(), operation("put", gvk, WRITE, Some(Body::Of(ty)), Some(ty)));
    }
    if has("patch") {
        item.insert("patch".into(), operation("patch", gvk, PATCH, Some(Body::Patch), Some(ty)));
    }
    if has("delete") {
        item.insert("delete".into(), operation("delete", gvk, DELETE, Some(Body::Delete), type_of("v1", "Status")));
    }
    let one = format!("{collection}/{{name}}");
    put(paths, one.clone(), item, resource.namespaced.then_some("namespace"));
    for sub in resource.subresources {
        subresource_path(&one, resource, sub, paths, types);
    }
}

fn subresource_path(one: &str, resource: &Resource, sub: &Subresource, paths: &mut Map<String, Value>, types: &mut BTreeSet<&'static str>) {
    let gvk = (sub.group, sub.version, sub.kind);
    let ty = type_of(&crate::api::resource::api_version(sub.group, sub.version), sub.kind);
    types.extend(ty.map(|t| t.name()));
    let body = ty.map(Body::Of);
    let mut item = Map::new();
    for verb in sub.verbs {
        let (method, operation) = match *verb {
            "get" => ("get", operation("get", gvk, &[], None, ty)),
            "create" => ("post", operation("post", gvk, WRITE, body, ty)),
            "update" => ("put", operation("put", gvk, WRITE, body, ty)),
            "patch" => ("patch", operation("patch", gvk, PATCH, Some(Body::Patch), ty)),
            "delete" => ("delete", operation("delete", gvk, DELETE, Some(Body::Delete), type_of("v1", "Status"))),
            _ => continue,
        };
        item.insert(method.into(), operation);
    }
    put(paths, format!("{one}/{}", sub.name), item, resource.namespaced.then_some("namespace"));
}

fn put(paths: &mut Map<String, Value>, path: String, mut item: Map<String, Value>, namespace: Option<&str>) {
    if item.is_empty() {
        return;
    }
    let in_path = |name: &str| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}});
    let mut parameters: Vec<Value> = Vec::new();
    if path.contains("{name}") {
        parameters.push(in_path("name"));
    }
    parameters.extend(namespace.map(in_path));
    parameters.push(query(&("pretty", "string")));
    item.insert("parameters".into(), parameters.into());
    paths.insert(path, item.into());
}

type Parameter = (&'static str, &'static str);
const WRITE: &[Parameter] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH: &[Parameter] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE: &[Parameter] =
    &[("dryRun", "string"), ("gracePeriodSeconds", "integer"), ("orphanDependents", "boolean"), ("propagationPolicy", "string")];
const LIST: &[Parameter] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];

fn query((name, kind): &Parameter) -> Value {
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}

#[derive(Clone, Copy)]
enum Body {
    Of(TypeRef),
    Patch,
    Delete,
}

fn operation(
    action: &str,
    (group, version, kind): (&str, &str, &str),
    parameters: &[Parameter],
    body: Option<Body>,
    answer: Option<TypeRef>,
) -> Value {
    let mut operation = Map::new();
    let schema = |name: &str| json!({"schema": reference(name)});
    let content = |name: &str| -> Value {
        let types = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
        types.iter().map(|t| (t.to_string(), schema(name))).collect::<Map<_, _>>().into()
    };
    let mut responses = json!({"401": {"description": "Unauthorized"}});
    if let Some(answer) = answer {
        responses["200"] = json!({"description": "OK", "content": content(answer.name())});
    }
    operation.insert("responses".into(), responses);
    if !parameters.is_empty() {
        operation.insert("parameters".into(), parameters.iter().map(query).collect::<Vec<_>>().into());
    }
    let patch = || schema(&format!("{META}.Patch"));
    match body {
        Some(Body::Of(ty)) => {
            drop(operation.insert("requestBody".into(), json!({"content": {"*/*": schema(ty.name())}, "required": true})))
        }
        Some(Body::Delete) => {
            drop(operation.insert("requestBody".into(), json!({"content": {"*/*": schema(&format!("{META}.DeleteOptions"))}})))
        }
        Some(Body::Patch) => {
            let types = ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];
            let content: Map<String, Value> = types.iter().map(|t| (t.to_string(), patch())).collect();
            operation.insert("requestBody".into(), json!({"content": content, "required": true}));
        }
        None => {}
    }
    operation.insert("x-kubernetes-action".into(), action.into());
    operation.insert("x-kubernetes-group-version-kind".into(), json!({"group": group, "version": version, "kind": kind}));
    Value::Object(operation)
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// The schemas of `roots` and of all they refer to.
fn schemas(roots: &BTreeSet<&'static str>) -> Map<String, Value> {
    let mut schemas = Map::new();
    schemas.insert(format!("{META}.Patch"), json!({"type": "object"}));
    let mut open: Vec<&'static str> = roots.iter().copied().collect();
    while let Some(name) = open.pop() {
        if schemas.contains_key(name) {
            continue;
        }
        let Some(ty) = crate::api::schema::type_named(name) else { continue };
        schemas.insert(name.to_string(), type_schema(ty));
        open.extend(ty.fields().filter_map(Field::message).map(TypeRef::name));
        for field in ty.fields() {
            if let Some((name, schema)) = special(field.kind) {
                schemas.entry(name).or_insert(schema);
            }
        }
    }
    schemas
}

fn type_schema(ty: TypeRef) -> Value {
    let mut schema = Map::new();
    schema.insert("type".into(), "object".into());
    let properties: Map<String, Value> = ty.fields().map(|f| (f.json_name.to_string(), field_schema(f))).collect();
    schema.insert("properties".into(), properties.into());
    let gvks: Vec<Value> = ty
        .get()
        .kinds
        .iter()
        .map(|(api_version, kind)| {
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            json!({"group": group, "version": version, "kind": kind})
        })
        .collect();
    if !gvks.is_empty() {
        schema.insert("x-kubernetes-group-version-kind".into(), gvks.into());
    }
    if ty.get().map_atomic {
        schema.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    Value::Object(schema)
}

fn field_schema(field: &Field) -> Value {
    let element = element_schema(field.kind);
    let mut schema = match (field.repeated, field.map) {
        (true, _) => json!({"type": "array", "items": element}),
        (_, true) => json!({"type": "object", "additionalProperties": element}),
        _ => match element.get("$ref") {
            // Siblings of a $ref are ignored by readers, so it goes into an allOf.
            Some(_) => json!({"allOf": [element]}),
            None => element,
        },
    };
    let members = schema.as_object_mut().expect("made an object");
    if let Ok(default) = serde_json::from_str::<Value>(field.default) {
        members.insert("default".into(), default);
    }
    if !field.enum_values.is_empty() {
        members.insert("enum".into(), field.enum_values.clone().into());
    }
    let list_type = match field.list_type {
        ListType::Unset => "",
        ListType::Atomic => "atomic",
        ListType::Set => "set",
        ListType::Map => "map",
    };
    let texts = [
        ("x-kubernetes-list-type", list_type),
        ("x-kubernetes-patch-merge-key", field.patch_merge_key),
        ("x-kubernetes-patch-strategy", field.patch_strategy),
        (
            "x-kubernetes-map-type",
            match field.map_type {
                MapType::Unset => "",
                MapType::Atomic => "atomic",
                MapType::Granular => "granular",
            },
        ),
    ];
    for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        members.insert(key.into(), text.into());
    }
    if !field.list_map_keys.is_empty() {
        members.insert("x-kubernetes-list-map-keys".into(), field.list_map_keys.clone().into());
    }
    schema
}

fn element_schema(kind: Kind) -> Value {
    match kind {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Int32 => json!({"type": "integer", "format": "int32"}),
        Kind::Int64 => json!({"type": "integer", "format": "int64"}),
        Kind::Float64 => json!({"type": "number", "format": "double"}),
        Kind::String => json!({"type": "string"}),
        Kind::Bytes => json!({"type": "string", "format": "byte"}),
        Kind::Strings => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Message(ty) => reference(ty.name()),
        Kind::Any => json!({}),
        Kind::Time
        | Kind::MicroTime
        | Kind::Quantity
        | Kind::IntOrString
        | Kind::RawExtension
        | Kind::FieldsV1
        | Kind::Json
        | Kind::SchemaOrBool
        | Kind::SchemaOrArray
        | Kind::SchemaOrStrings => special(kind).map_or(json!({}), |(name, _)| reference(&name)),
    }
}

/// Name and schema of the types with a JSON form of their own.
fn special(kind: Kind) -> Option<(String, Value)> {
    let extensions = |name: &str| format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.{name}");
    Some(match kind {
        Kind::Time => (format!("{META}.Time"), json!({"type": "string", "format": "date-time"})),
        Kind::MicroTime => (format!("{META}.MicroTime"), json!({"type": "string", "format": "date-time"})),
        Kind::Quantity => {
            ("io.k8s.apimachinery.pkg.api.resource.Quantity".into(), json!({"oneOf": [{"type": "string"}, {"type": "number"}]}))
        }
        Kind::IntOrString => (
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString".into(),
            json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"}),
        ),
        Kind::RawExtension => ("io.k8s.apimachinery.pkg.runtime.RawExtension".into(), json!({"type": "object"})),
        Kind::FieldsV1 => (format!("{META}.FieldsV1"), json!({"type": "object"})),
        Kind::Json => (extensions("JSON"), json!({})),
        Kind::SchemaOrBool => (extensions("JSONSchemaPropsOrBool"), json!({})),
        Kind::SchemaOrArray => (extensions("JSONSchemaPropsOrArray"), json!({})),
        Kind::SchemaOrStrings => (extensions("JSONSchemaPropsOrStringArray"), json!({})),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_says_what_kubectl_looks_for() {
        let (json, _) = document("apis/apps/v1").unwrap();
        let document: Value = serde_json::from_slice(&json).unwrap();
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        assert!(patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation"));
        assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
        let containers = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let refs: BTreeSet<&str> = document_refs(&document);
        let dangling: Vec<_> = refs.iter().filter(|r| !schemas.contains_key(**r)).collect();
        assert!(dangling.is_empty(), "{dangling:?}");
    }

    fn document_refs(value: &Value) -> BTreeSet<&str> {
        match value {
            Value::Object(map) => map
                .iter()
                .flat_map(|(k, v)| match (k.as_str(), v) {
                    ("$ref", Value::String(r)) => BTreeSet::from([r.trim_start_matches("#/components/schemas/")]),
                    _ => document_refs(v),
                })
                .collect(),
            Value::Array(list) => list.iter().flat_map(document_refs).collect(),
            _ => BTreeSet::new(),
        }
    }
}
