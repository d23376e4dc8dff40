//! Pure: the schema table as OpenAPI schemas, of either version.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::api::schema::{self, Field, Kind, ListType, MapType, TypeRef};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    V2,
    V3,
}

/// Texts about types and their members, if there are any.
pub trait Texts {
    /// About a type, or with a member's name about that.
    fn about(&self, type_name: &str, member: &str) -> Option<&str>;
}

impl Dialect {
    pub fn reference(self, name: &str) -> Value {
        let place = match self {
            Dialect::V2 => "#/definitions/",
            Dialect::V3 => "#/components/schemas/",
        };
        json!({"$ref": format!("{place}{name}")})
    }
}

/// The name of what PATCH takes.
pub fn patch_name() -> String {
    format!("{META}.Patch")
}

/// What a document's schemas are made for.
pub struct Scope<'a> {
    pub dialect: Dialect,
    /// The group versions whose common kinds it names.
    pub group_versions: &'a [&'a str],
    pub texts: &'a dyn Texts,
}

/// The schemas of `roots` and of all they refer to.
pub fn closure(scope: &Scope, roots: &BTreeSet<&'static str>, with_patch: bool) -> Map<String, Value> {
    let (dialect, texts) = (scope.dialect, scope.texts);
    let mut schemas = Map::new();
    if with_patch {
        schemas.insert(patch_name(), described(json!({"type": "object"}), texts.about(&patch_name(), "")));
    }
    let mut open: Vec<&'static str> = roots.iter().copied().collect();
    while let Some(name) = open.pop() {
        if schemas.contains_key(name) {
            continue;
        }
        let Some(ty) = schema::type_named(name) else { continue };
        schemas.insert(name.to_string(), of_type(scope, ty));
        open.extend(ty.fields().filter_map(Field::message).map(TypeRef::name));
        for field in ty.fields() {
            if let Some((name, schema)) = special(dialect, field.kind) {
                let about = texts.about(&name, "");
                schemas.entry(name).or_insert_with(|| described(schema, about));
            }
            if matches!(field.kind, Kind::SchemaOrBool | Kind::SchemaOrArray | Kind::SchemaOrStrings) {
                open.push(schema::schema_props().name());
            }
        }
    }
    schemas
}

fn described(mut schema: Value, text: Option<&str>) -> Value {
    if let (Some(text), Some(members)) = (text, schema.as_object_mut()) {
        members.insert("description".into(), text.into());
    }
    schema
}

fn of_type(scope: &Scope, ty: TypeRef) -> Value {
    let (dialect, texts) = (scope.dialect, scope.texts);
    let table = ty.get();
    let mut schema = Map::new();
    schema.insert("type".into(), "object".into());
    if let Some(text) = texts.about(table.name, "") {
        schema.insert("description".into(), text.into());
    }
    let properties: Map<String, Value> =
        ty.fields().map(|f| (f.json_name.to_string(), of_field(dialect, table.name, f, texts.about(table.name, f.json_name)))).collect();
    if !properties.is_empty() {
        schema.insert("properties".into(), properties.into());
    }
    let declared = table.declared.iter().map(|i| &table.fields[usize::from(*i)]);
    let required: Vec<&str> = declared.filter(|f| f.required).map(|f| f.json_name).collect();
    if !required.is_empty() {
        schema.insert("required".into(), required.into());
    }
    let gvks = group_version_kinds(scope, ty);
    if !gvks.is_empty() {
        schema.insert("x-kubernetes-group-version-kind".into(), gvks.into());
    }
    if table.map_atomic {
        schema.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    if let Ok(unions) = serde_json::from_str::<Value>(table.unions) {
        schema.insert("x-kubernetes-unions".into(), unions);
    }
    Value::Object(schema)
}

/// The kinds every group has are published under all the document is about, the others under their own.
fn group_version_kinds(scope: &Scope, ty: TypeRef) -> Vec<Value> {
    let gvk = |api_version: &str, kind: &str| {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        json!({"group": group, "version": version, "kind": kind})
    };
    let table = ty.get();
    if matches!(table.go_name, "DeleteOptions" | "WatchEvent") {
        return scope.group_versions.iter().map(|v| gvk(v, table.go_name)).collect();
    }
    table.kinds.iter().map(|(api_version, kind)| gvk(api_version, kind)).collect()
}

/// Members upstream says nothing about in words, so that a reference needs nothing around it.
fn is_wordless(type_name: &str, field: &Field) -> bool {
    match type_name.rsplit('.').next() {
        Some("JSONSchemaProps") => field.json_name != "default",
        Some("IngressRule") => field.json_name == "http",
        _ => false,
    }
}

fn of_field(dialect: Dialect, type_name: &str, field: &Field, text: Option<&str>) -> Value {
    let mut schema = match (field.repeated, field.map) {
        (true, _) => json!({"type": "array", "items": of_element(dialect, field)}),
        (_, true) => json!({"type": "object", "additionalProperties": of_element(dialect, field)}),
        _ => of_kind(dialect, field.kind),
    };
    let is_reference = schema.get("$ref").is_some();
    let default = if dialect == Dialect::V3 { serde_json::from_str::<Value>(field.default).ok() } else { None };
    if dialect == Dialect::V3 && is_reference && (default.is_some() || !is_wordless(type_name, field)) {
        // Siblings of a reference are ignored by readers, so it goes into an allOf.
        schema = json!({"allOf": [schema]});
    }
    let members = schema.as_object_mut().expect("made an object");
    if let Some(default) = default {
        members.insert("default".into(), default);
    }
    if let Some(text) = text {
        members.insert("description".into(), text.into());
    }
    if !field.enum_values.is_empty() && field.is_single() {
        members.insert("enum".into(), field.enum_values.clone().into());
    }
    let list_type = match field.list_type {
        ListType::Unset => "",
        ListType::Atomic => "atomic",
        ListType::Set => "set",
        ListType::Map => "map",
    };
    let map_type = match field.map_type {
        MapType::Unset => "",
        MapType::Atomic => "atomic",
        MapType::Granular => "granular",
    };
    let texts = [
        ("x-kubernetes-list-type", list_type),
        ("x-kubernetes-patch-merge-key", field.patch_merge_key),
        ("x-kubernetes-patch-strategy", field.patch_strategy),
        ("x-kubernetes-map-type", map_type),
    ];
    for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        members.insert(key.into(), text.into());
    }
    if !field.list_map_keys.is_empty() {
        members.insert("x-kubernetes-list-map-keys".into(), field.list_map_keys.clone().into());
    }
    schema
}

/// One element of a list or map.
fn of_element(dialect: Dialect, field: &Field) -> Value {
    let mut schema = of_kind(dialect, field.kind);
    let zero = match field.kind {
        Kind::Bool => json!(false),
        Kind::Int32 | Kind::Int64 => json!(0),
        Kind::String => json!(""),
        Kind::Message(_) => json!({}),
        _ => Value::Null,
    };
    if dialect == Dialect::V3 && !zero.is_null() {
        if schema.get("$ref").is_some() {
            schema = json!({"allOf": [schema]});
        }
        schema["default"] = zero;
    }
    if !field.enum_values.is_empty() {
        schema["enum"] = field.enum_values.clone().into();
    }
    schema
}

fn of_kind(dialect: Dialect, kind: Kind) -> Value {
    match kind {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Int32 => json!({"type": "integer", "format": "int32"}),
        Kind::Int64 => json!({"type": "integer", "format": "int64"}),
        Kind::Float64 => json!({"type": "number", "format": "double"}),
        Kind::String => json!({"type": "string"}),
        Kind::Bytes => json!({"type": "string", "format": "byte"}),
        Kind::Strings => match dialect {
            Dialect::V2 => json!({"type": "array", "items": {"type": "string"}}),
            Dialect::V3 => json!({"type": "array", "items": {"type": "string", "default": ""}}),
        },
        Kind::Message(ty) => dialect.reference(ty.name()),
        Kind::Any => json!({}),
        _ => special(dialect, kind).map_or(json!({}), |(name, _)| dialect.reference(&name)),
    }
}

/// Name and schema of the types with a JSON form of their own.
fn special(dialect: Dialect, kind: Kind) -> Option<(String, Value)> {
    let extensions = |name: &str| format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.{name}");
    let either = |v2: Value, v3: Value| if dialect == Dialect::V2 { v2 } else { v3 };
    Some(match kind {
        Kind::Time => (format!("{META}.Time"), json!({"type": "string", "format": "date-time"})),
        Kind::MicroTime => (format!("{META}.MicroTime"), json!({"type": "string", "format": "date-time"})),
        Kind::Quantity => (
            "io.k8s.apimachinery.pkg.api.resource.Quantity".into(),
            either(json!({"type": "string"}), json!({"oneOf": [{"type": "string"}, {"type": "number"}]})),
        ),
        Kind::IntOrString => (
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString".into(),
            either(
                json!({"type": "string", "format": "int-or-string"}),
                json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"}),
            ),
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
