//! PATCH with an apply configuration: the object is merged and its owners settled inside the one update loop; an object that is
//! not there is made of the configuration alone.

use crate::api::object::Object;
use crate::api::request::{Body, Request, Response};
use crate::api::status::{Result, Status};
use crate::api::value::Value;
use crate::api::{json, yaml};

use super::update::{Ownership, Wanted};
use super::{ATTEMPTS_MAX, check_name, settle_namespace};
use crate::server::apply::{self, Config, Write};
use crate::server::auth::Attributes;
use crate::server::pipeline::Pipeline;
use crate::server::registry::Row;

impl Pipeline {
    pub(super) async fn apply(&self, row: &Row, request: Request, warnings: &mut Vec<String>) -> Result<Response> {
        let key = row.storage.key(&request.namespace, &request.name);
        for _ in 0..ATTEMPTS_MAX {
            let is_there = self.store.get(&key).is_some();
            if !is_there && !request.subresource.is_empty() {
                return Err(Status::not_found(row.resource, &request.name));
            }
            let (config, repeated) = parse(&request)?;
            let outcome = if is_there {
                let make = |old: &Object| self.applied(row, &request, &config, &repeated, Some(old));
                self.update_stored(row, &request, &make, warnings).await
            } else {
                self.create_applied(row, &request, &config, &repeated, warnings).await
            };
            match outcome {
                // It came or went meanwhile.
                Err(status) if is_there && status.code == 404 && self.store.get(&key).is_none() => {}
                Err(status) if !is_there && status.reason == "AlreadyExists" => {}
                outcome => return outcome,
            }
        }
        Err(super::contended(row.resource, &request.name))
    }

    async fn create_applied(
        &self,
        row: &Row,
        request: &Request,
        config: &Value,
        repeated: &[String],
        warnings: &mut Vec<String>,
    ) -> Result<Response> {
        let mut wanted = self.applied(row, request, config, repeated, None)?;
        let attributes = Attributes { verb: "create", ..Attributes::of(request, "get") };
        self.auth.require(&request.user, &attributes)?;
        super::create::wipe_system_metadata(&mut wanted.value);
        warnings.append(&mut wanted.warnings);
        let again = || Ok(wanted.value.clone());
        self.create_decoded(row, request, (wanted.value.clone(), &again), Ownership::Settled, warnings).await
    }

    /// The object as applied, in the storage version.
    fn applied(&self, row: &Row, request: &Request, config: &Value, repeated: &[String], old: Option<&Object>) -> Result<Wanted> {
        let (api_version, now) = (row.resource.api_version(), self.clock.now().to_string());
        let manager = request.options.field_manager.as_deref().unwrap_or("");
        let write = Write { manager, subresource: &request.subresource, api_version: &api_version, now: &now };
        let force = request.options.force == Some(true);
        let config = Config { tree: config, kind: row.resource.kind, force };
        let live = old.map(|o| row.serve(o));
        let mut value = apply::apply(live.as_ref(), &config, &write, &self.versions(row, &request.subresource))?;
        json::conform(row.type_ref(), &mut value).map_err(|e| unconvertible(&config, &write, &e))?;
        let warnings = field_validation(request, repeated)?;
        let uid = value.str_at(&["metadata", "uid"]);
        if old.is_none() && !uid.is_empty() {
            let why = format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
            return Err(Status::conflict(row.resource, &request.name, &why));
        }
        settle_namespace(request, &mut value)?;
        check_name(request, &value)?;
        row.to_stored(&mut value)?;
        Ok(Wanted { value, warnings, ownership: Ownership::Settled })
    }
}

/// The configuration, and one text per repeated key.
pub(super) fn parse(request: &Request) -> Result<(Value, Vec<String>)> {
    let (config, repeated) = match &request.body {
        Body::Value(value) => (value.clone(), Vec::new()),
        Body::Json(bytes) | Body::Yaml(bytes) => {
            yaml::parse(bytes).map_err(|e| Status::bad_request(format!("error decoding YAML: error converting YAML to JSON: {e}")))?
        }
        Body::Empty => (Value::Null, Vec::new()),
        Body::Protobuf(_) => return Err(Status::bad_request("an apply configuration is JSON or YAML")),
    };
    match config {
        Value::Map(_) => Ok((config, repeated)),
        Value::Null => Ok((Value::map(), repeated)),
        other => {
            let kind = match other {
                Value::List(_) => "array",
                Value::Str(_) => "string",
                Value::Bool(_) => "bool",
                _ => "number",
            };
            let why = format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}");
            Err(Status::bad_request(format!("error decoding YAML: error unmarshaling JSON: while decoding JSON: {why}")))
        }
    }
}

/// What becomes of repeated keys: an error, warnings, or nothing.
fn field_validation(request: &Request, repeated: &[String]) -> Result<Vec<String>> {
    match request.options.field_validation.as_deref() {
        Some("Strict") if !repeated.is_empty() => {
            let all = repeated.join("\n  ");
            let message = format!("error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {all}");
            Err(Status::bad_request(message))
        }
        Some("Ignore") => Ok(Vec::new()),
        _ => Ok(repeated.to_vec()),
    }
}

/// What was merged is no object of the kind.
fn unconvertible(config: &Config, write: &Write, error: &str) -> Status {
    let (namespace, name) = (config.tree.str_at(&["metadata", "namespace"]), config.tree.str_at(&["metadata", "name"]));
    let group = if write.api_version.contains('/') { "" } else { "/" };
    let (version, kind) = (write.api_version, config.kind);
    let message =
        format!("failed to convert new object ({namespace}/{name}; {group}{version}, Kind={kind}) to proper version ({version}): {error}");
    Status::new(500, "", message)
}
