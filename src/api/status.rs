//! `Status`: the one error a client sees, made only by the constructors here so that every text exists once.
//!
//! Shapes and texts follow `metav1.Status` as kube-apiserver 1.36 writes it (`notes/api-machinery.md` 2.2); clients
//! compare reason, code and often the whole message.

use std::fmt::Display;

use super::resource::Resource;
use super::value::{Map, Value};

/// `metav1.Status` with status Failure.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub code: u16,
    /// `NotFound`, `Conflict`, …; empty where upstream leaves it unknown.
    pub reason: &'static str,
    pub message: String,
    /// Boxed: a `Status` travels in every `Result`.
    pub details: Option<Box<Details>>,
}

#[derive(Clone, Debug, PartialEq, Default)]
pub struct Details {
    pub name: String,
    pub group: String,
    /// Upstream writes the plural resource here for most errors and the kind for Invalid.
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: u32,
    /// `metadata.continue` of the answer: where an expired list may go on.
    pub continue_token: String,
}

/// One entry of `details.causes`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for Status {}

/// The result of anything that may be answered to a client.
pub type Result<T> = std::result::Result<T, Status>;

impl Status {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Status {
        Status { code, reason, message: message.into(), details: None }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Status {
        let details = self.details.get_or_insert_default();
        details.group = resource.group.to_string();
        details.kind = resource.plural.to_string();
        details.name = name.to_string();
        self
    }

    pub fn with_cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> Status {
        let cause = Cause { reason: reason.to_string(), message: message.into(), field: field.to_string() };
        self.details.get_or_insert_default().causes.push(cause);
        self
    }

    pub fn retry_after(mut self, seconds: u32) -> Status {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    pub fn with_continue(mut self, token: impl Into<String>) -> Status {
        self.details.get_or_insert_default().continue_token = token.into();
        self
    }

    pub fn not_found(resource: &Resource, name: &str) -> Status {
        Status::new(404, "NotFound", format!("{} \"{name}\" not found", resource.qualified())).about(resource, name)
    }

    /// The path names no served resource.
    pub fn no_such_resource() -> Status {
        let mut status = Status::new(404, "NotFound", "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    pub fn already_exists(resource: &Resource, name: &str) -> Status {
        Status::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", resource.qualified())).about(resource, name)
    }

    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Status {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified());
        Status::new(409, "Conflict", message).about(resource, name)
    }

    /// The conflict every optimistic writer knows.
    pub fn modified(resource: &Resource, name: &str) -> Status {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Status::conflict(resource, name, why)
    }

    pub fn forbidden(resource: &Resource, name: &str, why: &str) -> Status {
        let message = match name {
            "" => format!("{} is forbidden: {why}", resource.qualified()),
            name => format!("{} \"{name}\" is forbidden: {why}", resource.qualified()),
        };
        Status::new(403, "Forbidden", message).about(resource, name)
    }

    pub fn bad_request(message: impl Into<String>) -> Status {
        Status::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> Status {
        Status::new(401, "Unauthorized", "Unauthorized")
    }

    pub fn internal(message: impl std::fmt::Display) -> Status {
        let message = message.to_string();
        Status::new(500, "InternalError", format!("Internal error occurred: {message}")).with_cause("", message, "")
    }

    pub fn method_not_allowed() -> Status {
        let mut status = Status::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
        status.details = Some(Box::default());
        status
    }

    pub fn too_large(limit: usize) -> Status {
        Status::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Status {
        let list = accepted.join(", ");
        let message = format!("the body of the request was in an unknown format - accepted media types include: {list}");
        Status::new(415, "UnsupportedMediaType", message)
    }

    pub fn not_acceptable(accepted: &[&str]) -> Status {
        let list = accepted.join(", ");
        Status::new(406, "NotAcceptable", format!("only the following media types are accepted: {list}"))
    }

    pub fn expired(message: impl Into<String>) -> Status {
        Status::new(410, "Expired", message)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Status {
        Status::new(429, "TooManyRequests", message).retry_after(retry_after_seconds)
    }

    pub fn service_unavailable(message: impl Into<String>) -> Status {
        Status::new(503, "ServiceUnavailable", message)
    }

    pub fn timeout(message: impl Into<String>, retry_after_seconds: u32) -> Status {
        Status::new(504, "Timeout", message).retry_after(retry_after_seconds)
    }

    /// 422 with one cause per field error; `errors` is not empty.
    pub fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> Status {
        Status::invalid_kind(resource.group, resource.kind, name, errors)
    }

    /// [`Status::invalid`] for things that are not resources (ListOptions, DeleteOptions, …).
    pub fn invalid_kind(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Status {
        let qualified = if group.is_empty() { kind.to_string() } else { format!("{kind}.{group}") };
        // The message says everything once; the causes may repeat themselves.
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        for text in errors.iter().map(FieldError::to_string) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let joined = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes =
            errors.iter().map(|e| Cause { reason: e.reason.cause().to_string(), message: e.text(), field: e.field.clone() }).collect();
        let details = Details { name: name.to_string(), group: group.to_string(), kind: kind.to_string(), causes, ..Details::default() };
        let mut status = Status::new(422, "Invalid", format!("{qualified} \"{name}\" is invalid: {joined}"));
        status.details = Some(Box::new(details));
        status
    }

    /// The JSON shape, `kind: Status` and all.
    pub fn to_value(&self) -> Value {
        let mut v = crate::value!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code});
        if !self.reason.is_empty() {
            v.set(&["reason"], self.reason);
        }
        if let Some(d) = &self.details {
            if !d.continue_token.is_empty() {
                v.set(&["metadata", "continue"], d.continue_token.as_str());
            }
            let details = d.to_map();
            if d.continue_token.is_empty() || !details.is_empty() {
                v.set(&["details"], details);
            }
        }
        v
    }
}

impl Details {
    fn to_map(&self) -> Map {
        let mut m = Map::new();
        for (key, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !text.is_empty() {
                m.insert(key, text.as_str());
            }
        }
        if !self.causes.is_empty() {
            m.insert("causes", self.causes.iter().map(Cause::to_map).collect::<Vec<_>>());
        }
        if self.retry_after_seconds > 0 {
            m.insert("retryAfterSeconds", i64::from(self.retry_after_seconds));
        }
        m
    }
}

impl Cause {
    fn to_map(&self) -> Map {
        let fields = [("reason", &self.reason), ("message", &self.message), ("field", &self.field)];
        fields.into_iter().filter(|(_, text)| !text.is_empty()).map(|(k, text)| (k, text.as_str())).collect()
    }
}

/// One validation error, as upstream's `field.Error`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub reason: FieldReason,
    /// Path such as `spec.containers[0].image`.
    pub field: String,
    /// The offending value as the message shows it: strings quoted, others as JSON. Empty for Required, Forbidden, TooMany …
    pub shown: String,
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldReason {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    Forbidden,
    NotFound,
    TooLong,
    TooMany,
    TypeInvalid,
    Internal,
}

impl FieldReason {
    /// `FieldValueRequired` and its siblings, as in `details.causes[].reason`.
    pub fn cause(self) -> &'static str {
        match self {
            FieldReason::Required => "FieldValueRequired",
            FieldReason::Invalid => "FieldValueInvalid",
            FieldReason::NotSupported => "FieldValueNotSupported",
            FieldReason::Duplicate => "FieldValueDuplicate",
            FieldReason::Forbidden => "FieldValueForbidden",
            FieldReason::NotFound => "FieldValueNotFound",
            FieldReason::TooLong => "FieldValueTooLong",
            FieldReason::TooMany => "FieldValueTooMany",
            FieldReason::TypeInvalid => "FieldValueTypeInvalid",
            FieldReason::Internal => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            FieldReason::Required => "Required value",
            FieldReason::Invalid | FieldReason::TypeInvalid => "Invalid value",
            FieldReason::NotSupported => "Unsupported value",
            FieldReason::Duplicate => "Duplicate value",
            FieldReason::Forbidden => "Forbidden",
            FieldReason::NotFound => "Not found",
            FieldReason::TooLong => "Too long",
            FieldReason::TooMany => "Too many",
            FieldReason::Internal => "Internal error",
        }
    }
}

impl FieldError {
    fn make(reason: FieldReason, field: impl Display, shown: String, detail: impl Into<String>) -> FieldError {
        FieldError { reason, field: field.to_string(), shown, detail: detail.into() }
    }
    pub fn required(field: impl Display, detail: impl Into<String>) -> FieldError {
        FieldError::make(FieldReason::Required, field, String::new(), detail)
    }
    pub fn invalid(field: impl Display, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
        FieldError::make(FieldReason::Invalid, field, show(&value.into()), detail)
    }
    pub fn type_invalid(field: impl Display, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
        FieldError::make(FieldReason::TypeInvalid, field, show(&value.into()), detail)
    }
    /// `Unsupported value: "x": supported values: "A", "B"`; the values are listed in the order given.
    pub fn not_supported(field: impl Display, value: impl Into<Value>, supported: &[&str]) -> FieldError {
        let list: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        FieldError::make(FieldReason::NotSupported, field, show(&value.into()), detail)
    }
    pub fn duplicate(field: impl Display, value: impl Into<Value>) -> FieldError {
        FieldError::make(FieldReason::Duplicate, field, show(&value.into()), "")
    }
    pub fn forbidden(field: impl Display, detail: impl Into<String>) -> FieldError {
        FieldError::make(FieldReason::Forbidden, field, String::new(), detail)
    }
    pub fn not_found(field: impl Display, value: impl Into<Value>) -> FieldError {
        FieldError::make(FieldReason::NotFound, field, show(&value.into()), "")
    }
    pub fn too_long(field: impl Display, max_bytes: usize) -> FieldError {
        let detail = format!("may not be more than {max_bytes} bytes");
        FieldError::make(FieldReason::TooLong, field, String::new(), detail)
    }
    pub fn too_many(field: impl Display, actual: usize, max: usize) -> FieldError {
        let items = if max == 1 { "item" } else { "items" };
        let detail = format!("must have at most {max} {items}");
        FieldError::make(FieldReason::TooMany, field, actual.to_string(), detail)
    }

    /// The message without the field: what a cause carries.
    pub fn text(&self) -> String {
        let mut text = self.reason.words().to_string();
        if !self.shown.is_empty() {
            text = format!("{text}: {}", self.shown);
        }
        if !self.detail.is_empty() {
            text = format!("{text}: {}", self.detail);
        }
        text
    }
}

impl Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.text())
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Str(s) => super::json::go_quote(s),
        other => String::from_utf8_lossy(&super::json::to_vec(other)).into_owned(),
    }
}
