//! Pure: an OpenAPI v2 document in gnostic's protobuf form, which older clients ask for.
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
        ("parameters", 10, Form::Choice(parameter_definitions)),
        ("security", 12, Form::Choice(requirement)),
        ("securityDefinitions", 13, Form::Choice(security_definitions)),
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
        ("responses", 9, Form::Choice(responses)),
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

fn parameter_definitions(value: &Value, out: &mut Vec<u8>) {
    for (name, value) in value.as_object().into_iter().flat_map(Map::iter) {
        write_nested(1, out, |pair| {
            write_text(1, name, pair);
            write_nested(2, pair, |inner| parameter(value, inner));
        });
    }
}

fn responses(value: &Value, out: &mut Vec<u8>) {
    for (name, value) in value.as_object().into_iter().flat_map(Map::iter) {
        write_nested(1, out, |pair| {
            write_text(1, name, pair);
            write_nested(2, pair, |choice| write_nested(1, choice, |inner| write_message(&RESPONSE, value, inner)));
        });
    }
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

fn security_definitions(value: &Value, out: &mut Vec<u8>) {
    for (name, value) in value.as_object().into_iter().flat_map(Map::iter) {
        write_nested(1, out, |pair| {
            write_text(1, name, pair);
            write_nested(2, pair, |choice| write_nested(2, choice, |inner| write_message(&API_KEY, value, inner)));
        });
    }
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
