//! Secrets: like ConfigMaps, with a type that demands certain keys, and a write-only `stringData`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::configmaps::{BYTES_MAX, decoded_len, frozen};
use crate::api::resource::{self, Resource};
use crate::api::status::FieldError;
use crate::api::time::Time;
use crate::api::value::{Map, Value};
use crate::server::strategy::{Column, Context, Selectable, Strategy};
use crate::server::{table, validation};

pub struct Secrets;

const REDACTED: &str = "<secret contents redacted>";

impl Strategy for Secrets {
    fn resource(&self) -> &'static Resource {
        &resource::SECRETS
    }
    fn default(&self, object: &mut Value) {
        if object.str_at(&["type"]).is_empty() {
            object.set(&["type"], "Opaque");
        }
        let Some(Value::Map(strings)) = object.remove(&["stringData"]) else { return };
        for (key, text) in strings {
            object.set(&["data", &key], STANDARD.encode(text.as_str().unwrap_or("")));
        }
    }
    fn validate(&self, _: &Context, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut bytes = 0;
        for (key, value) in object.map_at(&["data"]).into_iter().flat_map(|m| m.iter()) {
            validation::invalid(&mut errors, format_args!("data[{key}]"), key, validation::config_key(key));
            bytes += decoded_len(value);
        }
        if bytes > BYTES_MAX {
            errors.push(FieldError::too_long("data", BYTES_MAX));
        }
        demanded(&mut errors, object);
        errors
    }
    fn validate_update(&self, context: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        validation::immutable(&mut errors, "type", new.get("type"), old.get("type"));
        errors.extend(frozen(new, old, &["data"]));
        errors.extend(self.validate(context, new));
        errors
    }
    fn columns(&self) -> &'static [Column] {
        const { &[Column::NAME, Column::new("Type", "string"), Column::new("Data", "string"), Column::AGE] }
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        let count = object.map_at(&["data"]).map_or(0, Map::len) as i64;
        let text = |path: &[&str]| object.str_at(path).into();
        vec![text(&["metadata", "name"]), text(&["type"]), count.into(), table::age(object, now).into()]
    }
    fn selectable(&self, _: &'static Resource) -> &'static [Selectable] {
        const { &[Selectable::new("type", &["type"])] }
    }
}

/// The keys (or annotation) a type asks for.
fn demanded(errors: &mut Vec<FieldError>, object: &Value) {
    let has = |key: &str| object.map_at(&["data"]).is_some_and(|d| d.contains_key(key));
    let mut need = |keys: &[&str]| {
        for key in keys.iter().filter(|k| !has(k)) {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match object.str_at(&["type"]) {
        "kubernetes.io/tls" => need(&["tls.crt", "tls.key"]),
        "kubernetes.io/ssh-auth" => need(&["ssh-privatekey"]),
        // Either will do; upstream names both if neither is there.
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => need(&["username", "password"]),
        "kubernetes.io/dockercfg" => need_json(errors, object, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => need_json(errors, object, ".dockerconfigjson"),
        "kubernetes.io/service-account-token" => {
            const NAME: &str = "kubernetes.io/service-account.name";
            if object.str_at(&["metadata", "annotations", NAME]).is_empty() {
                errors.push(FieldError::required(format!("metadata.annotations[{NAME}]"), ""));
            }
        }
        _ => {}
    }
}

fn need_json(errors: &mut Vec<FieldError>, object: &Value, key: &str) {
    let at = format!("data[{key}]");
    let Some(text) = object.at(&["data", key]).and_then(Value::as_str) else {
        errors.push(FieldError::required(at, ""));
        return;
    };
    let bytes = STANDARD.decode(text).unwrap_or_default();
    if serde_json::from_slice::<serde_json::Value>(&bytes).is_err() {
        errors.push(FieldError::invalid(at, REDACTED, json_complaint(&bytes)));
    }
}

/// Go's words for the first thing wrong.
fn json_complaint(bytes: &[u8]) -> String {
    let start = bytes.iter().position(|b| !b.is_ascii_whitespace());
    match start.map(|i| bytes[i] as char) {
        None => "unexpected end of JSON input".to_string(),
        Some(c) if !matches!(c, '{' | '[' | '"' | '-' | '0'..='9' | 't' | 'f' | 'n') => {
            format!("invalid character '{c}' looking for beginning of value")
        }
        Some(_) => "unexpected end of JSON input".to_string(),
    }
}
