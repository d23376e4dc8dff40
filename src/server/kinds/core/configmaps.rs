//! ConfigMaps, and what they share with Secrets: keys, the size limit, `immutable`.

use crate::api::resource::{self, Resource};
use crate::api::status::FieldError;
use crate::api::time::Time;
use crate::api::value::{Map, Value};
use crate::server::strategy::{Column, Context, Strategy};
use crate::server::{table, validation};

/// Bytes a ConfigMap or Secret may hold.
pub const BYTES_MAX: usize = 1024 * 1024;

pub struct ConfigMaps;

impl Strategy for ConfigMaps {
    fn resource(&self) -> &'static Resource {
        &resource::CONFIGMAPS
    }
    fn validate(&self, _: &Context, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let empty = Map::new();
        let (data, binary) = (object.map_at(&["data"]).unwrap_or(&empty), object.map_at(&["binaryData"]).unwrap_or(&empty));
        let mut bytes = 0;
        for (key, value) in data.iter() {
            let at = format!("data[{key}]");
            validation::invalid(&mut errors, &at, key, validation::config_key(key));
            if binary.contains_key(key) {
                errors.push(FieldError::invalid(at, key, "duplicate of key present in binaryData"));
            }
            bytes += value.as_str().map_or(0, str::len);
        }
        for (key, value) in binary.iter() {
            validation::invalid(&mut errors, format_args!("binaryData[{key}]"), key, validation::config_key(key));
            bytes += decoded_len(value);
        }
        if bytes > BYTES_MAX {
            errors.push(FieldError::too_long("", BYTES_MAX));
        }
        errors
    }
    fn validate_update(&self, context: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = frozen(new, old, &["data", "binaryData"]);
        errors.extend(self.validate(context, new));
        errors
    }
    fn columns(&self) -> &'static [Column] {
        const { &[Column::NAME, Column::new("Data", "string"), Column::AGE] }
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        let count = |key: &str| object.map_at(&[key]).map_or(0, Map::len) as i64;
        let name = object.str_at(&["metadata", "name"]);
        vec![name.into(), (count("data") + count("binaryData")).into(), table::age(object, now).into()]
    }
}

/// Bytes behind a base64 text.
pub fn decoded_len(value: &Value) -> usize {
    let text = value.as_str().unwrap_or("").trim_end_matches('=');
    text.len() * 3 / 4
}

/// What `immutable: true` forbids to change, `immutable` itself first.
pub fn frozen(new: &Value, old: &Value, members: &[&str]) -> Vec<FieldError> {
    const WHY: &str = "field is immutable when `immutable` is set";
    if !old.bool_at(&["immutable"]) {
        return Vec::new();
    }
    let mut errors = Vec::new();
    if !new.bool_at(&["immutable"]) {
        errors.push(FieldError::forbidden("immutable", WHY));
    }
    let content = |v: &Value, member: &str| v.map_at(&[member]).filter(|m| !m.is_empty()).cloned();
    for member in members {
        if content(new, member) != content(old, member) {
            errors.push(FieldError::forbidden(*member, WHY));
        }
    }
    errors
}
