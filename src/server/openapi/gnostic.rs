//! Pure: OpenAPI documents of both versions in gnostic's protobuf form, which older clients ask for.
//!
//! Messages are tables of (member, number, form). Values of extensions and enums travel as YAML text, and JSON is YAML.

use serde_json::{Map, Value};

/// How a member is written.
#[derive(Clone, Copy)]
enum Form {
    /// One string, or each of a list.
    Text,
    Flag,
    /// Any values, as YAML.
    Any,
    /// One message, or each of a list.
    Message(&'static Message),
    /// A message whose field 1 repeats pairs of name and message.
    Named(&'static Message),
    /// The pairs themselves, in this message.
    Pairs(&'static Message),
    /// A list of strings in a message of its own.
    Texts,
    /// A message chosen by what the value is.
    Choice(fn(&Value, &mut Vec<u8>)),
    /// Like `Named`, of such messages.
    NamedChoice(fn(&Value, &mut Vec<u8>)),
}

type Row = (&'static str, u32, Form);

struct Message {
    members: &'static [Row],
    /// Where members beginning with `x-` go, as pairs of name and YAML.
    extensions: u32,
}

static DOCUMENT: Message = Message {
    members: &[
        ("swagger", 1, Form::Text),
        ("info", 2, Form::Message(&INFO)),
        ("paths", 8, Form::Choice(paths)),
        ("definitions", 9, Form::Named(&SCHEMA)),
        ("parameters", 10, Form::NamedChoice(parameter)),
        ("security", 12, Form::Choice(requirement)),
        ("securityDefinitions", 13, Form::NamedChoice(api_key)),
    ],
    extensions: 16,
};
static INFO: Message = Message { members: &[("title", 1, Form::Text), ("version", 2, Form::Text)], extensions: 7 };
static PATH_ITEM: Message = Message {
    members: &[
        ("get", 2, Form::Message(&OPERATION)),
        ("put", 3, Form::Message(&OPERATION)),
        ("post", 4, Form::Message(&OPERATION)),
        ("delete", 5, Form::Message(&OPERATION)),
        ("options", 6, Form::Message(&OPERATION)),
        ("head", 7, Form::Message(&OPERATION)),
        ("patch", 8, Form::Message(&OPERATION)),
        ("parameters", 9, Form::Choice(parameter_or_reference)),
    ],
    extensions: 10,
};
static OPERATION: Message = Message {
    members: &[
        ("tags", 1, Form::Text),
        ("description", 3, Form::Text),
        ("operationId", 5, Form::Text),
        ("produces", 6, Form::Text),
        ("consumes", 7, Form::Text),
        ("parameters", 8, Form::Choice(parameter_or_reference)),
        ("responses", 9, Form::NamedChoice(response)),
        ("schemes", 10, Form::Text),
    ],
    extensions: 13,
};
static BODY: Message = Message {
    members: &[
        ("description", 1, Form::Text),
        ("name", 2, Form::Text),
        ("in", 3, Form::Text),
        ("required", 4, Form::Flag),
        ("schema", 5, Form::Message(&SCHEMA)),
    ],
    extensions: 6,
};
static QUERY: Message = Message {
    members: &[
        ("required", 1, Form::Flag),
        ("in", 2, Form::Text),
        ("description", 3, Form::Text),
        ("name", 4, Form::Text),
        ("type", 6, Form::Text),
        ("uniqueItems", 20, Form::Flag),
    ],
    extensions: 23,
};
static PATH: Message = Message {
    members: &[
        ("required", 1, Form::Flag),
        ("in", 2, Form::Text),
        ("description", 3, Form::Text),
        ("name", 4, Form::Text),
        ("type", 5, Form::Text),
        ("uniqueItems", 19, Form::Flag),
    ],
    extensions: 22,
};
static REFERENCE: Message = Message { members: &[("$ref", 1, Form::Text), ("description", 2, Form::Text)], extensions: 0 };
static RESPONSE: Message =
    Message { members: &[("description", 1, Form::Text), ("schema", 2, Form::Choice(answer_schema))], extensions: 5 };
static SCHEMA: Message = Message {
    members: &[
        ("$ref", 1, Form::Text),
        ("format", 2, Form::Text),
        ("description", 4, Form::Text),
        ("default", 5, Form::Any),
        ("required", 19, Form::Text),
        ("enum", 20, Form::Any),
        ("additionalProperties", 21, Form::Choice(additional)),
        ("type", 22, Form::Texts),
        ("items", 23, Form::Choice(items)),
        ("properties", 25, Form::Named(&SCHEMA)),
    ],
    extensions: 31,
};
static API_KEY: Message = Message {
    members: &[("type", 1, Form::Text), ("name", 2, Form::Text), ("in", 3, Form::Text), ("description", 4, Form::Text)],
    extensions: 5,
};

pub fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_message(&DOCUMENT, document, &mut out);
    out
}

// --- version 3

static DOCUMENT_3: Message = Message {
    members: &[
        ("openapi", 1, Form::Text),
        ("info", 2, Form::Message(&INFO_3)),
        ("paths", 4, Form::Named(&PATH_ITEM_3)),
        ("components", 5, Form::Message(&COMPONENTS)),
    ],
    extensions: 9,
};
static INFO_3: Message = Message { members: &[("title", 1, Form::Text), ("version", 6, Form::Text)], extensions: 7 };
static PATH_ITEM_3: Message = Message {
    members: &[
        ("get", 4, Form::Message(&OPERATION_3)),
        ("put", 5, Form::Message(&OPERATION_3)),
        ("post", 6, Form::Message(&OPERATION_3)),
        ("delete", 7, Form::Message(&OPERATION_3)),
        ("options", 8, Form::Message(&OPERATION_3)),
        ("head", 9, Form::Message(&OPERATION_3)),
        ("patch", 10, Form::Message(&OPERATION_3)),
        ("parameters", 13, Form::Choice(parameter_3)),
    ],
    extensions: 14,
};
static OPERATION_3: Message = Message {
    members: &[
        ("tags", 1, Form::Text),
        ("description", 3, Form::Text),
        ("operationId", 5, Form::Text),
        ("parameters", 6, Form::Choice(parameter_3)),
        ("requestBody", 7, Form::Choice(request_body)),
        ("responses", 8, Form::Choice(responses_3)),
    ],
    extensions: 13,
};
static PARAMETER_3: Message = Message {
    members: &[
        ("name", 1, Form::Text),
        ("in", 2, Form::Text),
        ("description", 3, Form::Text),
        ("required", 4, Form::Flag),
        ("schema", 10, Form::Choice(schema_or_reference)),
    ],
    extensions: 14,
};
static REQUEST_BODY: Message = Message { members: &[("content", 2, Form::Named(&MEDIA_TYPE)), ("required", 3, Form::Flag)], extensions: 4 };
static MEDIA_TYPE: Message = Message { members: &[("schema", 1, Form::Choice(schema_or_reference))], extensions: 5 };
static RESPONSE_3: Message =
    Message { members: &[("description", 1, Form::Text), ("content", 3, Form::Named(&MEDIA_TYPE))], extensions: 5 };
static COMPONENTS: Message = Message {
    members: &[("schemas", 1, Form::NamedChoice(schema_or_reference)), ("securitySchemes", 7, Form::NamedChoice(security_scheme))],
    extensions: 10,
};
static SECURITY_SCHEME: Message = Message {
    members: &[("type", 1, Form::Text), ("description", 2, Form::Text), ("name", 3, Form::Text), ("in", 4, Form::Text)],
    extensions: 9,
};
static SCHEMA_3: Message = Message {
    members: &[
        ("uniqueItems", 20, Form::Flag),
        ("required", 23, Form::Text),
        ("enum", 24, Form::Any),
        ("type", 25, Form::Text),
        ("allOf", 26, Form::Choice(schema_or_reference)),
        ("oneOf", 27, Form::Choice(schema_or_reference)),
        ("items", 30, Form::Choice(items_3)),
        ("properties", 31, Form::NamedChoice(schema_or_reference)),
        ("additionalProperties", 32, Form::Choice(additional_3)),
        ("default", 33, Form::Choice(default_3)),
        ("description", 34, Form::Text),
        ("format", 35, Form::Text),
    ],
    extensions: 36,
};

/// A document of version 3.
pub fn encode_3(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_message(&DOCUMENT_3, document, &mut out);
    out
}

fn parameter_3(value: &Value, out: &mut Vec<u8>) {
    write_nested(1, out, |inner| write_message(&PARAMETER_3, value, inner));
}

fn request_body(value: &Value, out: &mut Vec<u8>) {
    write_nested(1, out, |inner| write_message(&REQUEST_BODY, value, inner));
}

fn responses_3(value: &Value, out: &mut Vec<u8>) {
    for (code, value) in value.as_object().into_iter().flat_map(Map::iter) {
        write_nested(2, out, |pair| {
            write_text(1, code, pair);
            write_nested(2, pair, |choice| write_nested(1, choice, |inner| write_message(&RESPONSE_3, value, inner)));
        });
    }
}

fn security_scheme(value: &Value, out: &mut Vec<u8>) {
    write_nested(1, out, |inner| write_message(&SECURITY_SCHEME, value, inner));
}

fn schema_or_reference(value: &Value, out: &mut Vec<u8>) {
    match value.get("$ref") {
        Some(_) => write_nested(2, out, |inner| write_message(&REFERENCE, value, inner)),
        None => write_nested(1, out, |inner| write_message(&SCHEMA_3, value, inner)),
    }
}

fn items_3(value: &Value, out: &mut Vec<u8>) {
    write_nested(1, out, |inner| schema_or_reference(value, inner));
}

fn additional_3(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Bool(flag) => {
            write_varint(2 << 3, out);
            out.push(u8::from(*flag));
        }
        schema => write_nested(1, out, |inner| schema_or_reference(schema, inner)),
    }
}

/// Only scalars have a place in it.
fn default_3(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Number(n) => {
            write_varint(1 << 3 | 1, out);
            out.extend_from_slice(&n.as_f64().unwrap_or(0.0).to_le_bytes());
        }
        Value::Bool(flag) => {
            write_varint(2 << 3, out);
            out.push(u8::from(*flag));
        }
        Value::String(text) => write_text(3, text, out),
        Value::Null | Value::Array(_) | Value::Object(_) => {}
    }
}

// --- messages

fn write_message(message: &Message, value: &Value, out: &mut Vec<u8>) {
    let Some(map) = value.as_object() else { return };
    for (name, number, form) in message.members {
        if let Some(value) = map.get(*name) {
            write_member(*number, *form, value, out);
        }
    }
    for (name, value) in map.iter().filter(|(name, _)| message.extensions > 0 && name.starts_with("x-")) {
        let mut pair = Vec::new();
        write_text(1, name, &mut pair);
        write_bytes(2, &any(value), &mut pair);
        write_bytes(message.extensions, &pair, out);
    }
}

fn write_member(number: u32, form: Form, value: &Value, out: &mut Vec<u8>) {
    let each = |write: &mut dyn FnMut(&Value)| match value {
        Value::Array(list) => list.iter().for_each(write),
        one => write(one),
    };
    match form {
        Form::Text => each(&mut |v| write_text(number, v.as_str().unwrap_or(""), out)),
        Form::Flag => {
            if value == &Value::Bool(true) {
                write_varint(u64::from(number) << 3, out);
                out.push(1);
            }
        }
        Form::Any => each(&mut |v| write_bytes(number, &any(v), out)),
        Form::Message(message) => each(&mut |v| write_nested(number, out, |inner| write_message(message, v, inner))),
        Form::Named(message) => write_nested(number, out, |inner| write_pairs(1, message, value, inner)),
        Form::Pairs(message) => write_pairs(number, message, value, out),
        Form::Texts => write_nested(number, out, |inner| write_member(1, Form::Text, value, inner)),
        Form::NamedChoice(write) => write_nested(number, out, |inner| {
            for (name, value) in value.as_object().into_iter().flat_map(Map::iter) {
                write_nested(1, inner, |pair| {
                    write_text(1, name, pair);
                    write_nested(2, pair, |choice| write(value, choice));
                });
            }
        }),
        Form::Choice(write) => each(&mut |v| write_nested(number, out, |inner| write(v, inner))),
    }
}

fn write_pairs(number: u32, message: &Message, value: &Value, out: &mut Vec<u8>) {
    for (name, value) in value.as_object().into_iter().flat_map(Map::iter) {
        write_nested(number, out, |pair| {
            write_text(1, name, pair);
            write_nested(2, pair, |inner| write_message(message, value, inner));
        });
    }
}

fn any(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_text(2, &format!("{value}\n"), &mut out);
    out
}

fn paths(value: &Value, out: &mut Vec<u8>) {
    write_member(2, Form::Pairs(&PATH_ITEM), value, out);
}

/// `ParametersItem`.
fn parameter_or_reference(value: &Value, out: &mut Vec<u8>) {
    match value.get("$ref") {
        Some(_) => write_nested(2, out, |inner| write_message(&REFERENCE, value, inner)),
        None => write_nested(1, out, |inner| parameter(value, inner)),
    }
}

/// `Parameter`: a body, or one of the others.
fn parameter(value: &Value, out: &mut Vec<u8>) {
    match value.get("in").and_then(Value::as_str) {
        Some("body") => write_nested(1, out, |inner| write_message(&BODY, value, inner)),
        Some("path") => write_nested(2, out, |inner| write_nested(4, inner, |i| write_message(&PATH, value, i))),
        _ => write_nested(2, out, |inner| write_nested(3, inner, |i| write_message(&QUERY, value, i))),
    }
}

/// `ResponseValue`: never a reference.
fn response(value: &Value, out: &mut Vec<u8>) {
    write_nested(1, out, |inner| write_message(&RESPONSE, value, inner));
}

/// `SchemaItem`: never a file.
fn answer_schema(value: &Value, out: &mut Vec<u8>) {
    write_nested(1, out, |inner| write_message(&SCHEMA, value, inner));
}

fn additional(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Bool(flag) => {
            write_varint(2 << 3, out);
            out.push(u8::from(*flag));
        }
        schema => write_nested(1, out, |inner| write_message(&SCHEMA, schema, inner)),
    }
}

fn items(value: &Value, out: &mut Vec<u8>) {
    write_nested(1, out, |inner| write_message(&SCHEMA, value, inner));
}

/// `SecurityRequirement`: names without scopes.
fn requirement(value: &Value, out: &mut Vec<u8>) {
    for (name, scopes) in value.as_object().into_iter().flat_map(Map::iter) {
        write_nested(1, out, |pair| {
            write_text(1, name, pair);
            write_nested(2, pair, |inner| write_member(1, Form::Text, scopes, inner));
        });
    }
}

fn api_key(value: &Value, out: &mut Vec<u8>) {
    write_nested(2, out, |inner| write_message(&API_KEY, value, inner));
}

fn write_nested(number: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    write_bytes(number, &inner, out);
}

fn write_text(number: u32, text: &str, out: &mut Vec<u8>) {
    write_bytes(number, text.as_bytes(), out);
}

fn write_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    write_varint(u64::from(number) << 3 | 2, out);
    write_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_schema_as_clients_read_it() {
        let schema = json!({"type": "object", "properties": {"a": {"$ref": "#/d"}}, "x-k": ["v"]});
        let document = json!({"swagger": "2.0", "definitions": {"n": schema}});
        let bytes = encode(&document);
        assert!(bytes.starts_with(b"\x0a\x032.0\x4a"));
        let has = |part: &[u8]| bytes.windows(part.len()).any(|w| w == part);
        assert!(has(b"\xb2\x01\x08\x0a\x06object"), "a type is a message of texts");
        assert!(has(b"\x0a\x01a\x12\x05\x0a\x03#/d"), "properties are pairs");
        assert!(has(b"\x0a\x03x-k\x12\x08\x12\x06[\"v\"]\n"), "extensions are YAML");
    }
}
