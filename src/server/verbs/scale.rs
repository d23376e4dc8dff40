//! `/scale`: a view of an object's replicas that can be read, put and patched.

use crate::api::json;
use crate::api::object::Object;
use crate::api::request::{PatchType, Request, Response, Verb};
use crate::api::resource::Subresource;
use crate::api::schema::{self, TypeRef};
use crate::api::selector::Selector;
use crate::api::status::{FieldError, Result, Status};
use crate::api::value::Value;

use super::update::{Ownership, Wanted};
use super::{check_options, decode};
use crate::server::apply::{self as ownership, Config, Ownable, Versions, Write, scale as owners};
use crate::server::patch;
use crate::server::pipeline::Pipeline;
use crate::server::registry::Row;

impl Pipeline {
    pub(in crate::server) fn get_scale(&self, request: &Request) -> Result<Response> {
        let row = self.registry.row(request.resource);
        let object = self.stored(row, &request.namespace, &request.name)?;
        Ok(Response::Value { value: scale_of(row, sub(row)?, &object), code: 200 })
    }

    pub(in crate::server) async fn update_scale(&self, request: Request, warnings: &mut Vec<String>) -> Result<Response> {
        let row = self.registry.row(request.resource);
        let sub = sub(row)?;
        let paths = row.strategy.scale();
        let is_patch = request.verb == Verb::Patch;
        let kind = if is_patch { "PatchOptions" } else { "UpdateOptions" };
        check_options(kind, &request.options, request.patch_type == Some(PatchType::Apply))?;
        let api_version = crate::api::resource::api_version(sub.group, sub.version);
        let ty = schema::type_of(&api_version, sub.kind).ok_or_else(|| Status::internal("no schema for Scale"))?;
        let is_apply = request.patch_type == Some(PatchType::Apply);
        let sent = if is_apply {
            super::apply::parse(&request)?.0
        } else if is_patch {
            super::update::parse_patch(&request, request.patch_type.ok_or_else(|| Status::bad_request("a patch needs a type"))?)?
        } else {
            let mut decoded = decode(ty, &api_version, sub.kind, &request.body, &request.options)?;
            warnings.append(&mut decoded.warnings);
            super::check_name(&request, &decoded.value)?;
            decoded.value
        };
        let make = |old: &Object| -> Result<Wanted> {
            let old_tree = old.value();
            let managed = old_tree.at(MANAGED);
            let is_known = |version: &str| self.versions(row, "scale").type_of(version).is_some();
            let mut before = scale_of_tree(row, sub, &old_tree);
            before.set(MANAGED, owners::of_object(managed, paths.replicas, &is_known));
            let (versions, now) = (ScaleVersions { ty, api_version: &api_version }, self.clock.now().to_string());
            let named = request.options.field_manager.as_deref().filter(|m| !m.is_empty());
            let manager = named.map_or_else(|| ownership::manager_of(&request.user_agent), str::to_string);
            let write = Write { manager: &manager, subresource: "scale", api_version: &api_version, now: &now };
            let scale = if is_apply {
                let config = Config { tree: &sent, kind: sub.kind, force: request.options.force == Some(true) };
                let mut scale = ownership::apply(Some(&before), &config, &write, &versions)?;
                conform(ty, &mut scale)?;
                scale
            } else {
                let mut scale = if is_patch { before.clone() } else { sent.clone() };
                if is_patch {
                    match request.patch_type {
                        Some(PatchType::Json) => patch::json_patch(&mut scale, &sent)?,
                        Some(PatchType::Strategic) => patch::strategic(&mut scale, &sent, ty)?,
                        _ => patch::merge_patch(&mut scale, &sent)?,
                    }
                    conform(ty, &mut scale)?;
                }
                ownership::track(Some(&before), &mut scale, &write, &api_version, &versions);
                scale
            };
            let replicas = scale.i64_at(&["spec", "replicas"]).unwrap_or(0);
            if replicas < 0 {
                let why = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
                return Err(Status::invalid_kind("autoscaling", "Scale", &request.name, &[why]));
            }
            let uid = scale.str_at(&["metadata", "uid"]);
            if !uid.is_empty() && uid != old.uid() {
                return Err(super::wrong_uid(row.resource, (&request.namespace, &request.name), uid, old.uid()));
            }
            let row_version = row.resource.api_version();
            let managed = owners::to_object(managed, scale.at(MANAGED), paths.replicas, &row_version, &is_known);
            let mut value = old_tree;
            value.set(paths.replicas, replicas);
            value.set(&["metadata", "resourceVersion"], scale.str_at(&["metadata", "resourceVersion"]));
            value.remove(MANAGED);
            if !managed.as_list().unwrap_or(&[]).is_empty() {
                value.set(MANAGED, managed);
            }
            Ok(Wanted { value, warnings: Vec::new(), ownership: Ownership::Settled })
        };
        let response = self.update_stored(row, &request, &make, warnings).await?;
        Ok(match response {
            Response::Object { object, code } => Response::Value { value: scale_of(row, sub, &object), code },
            Response::Value { value, code } => Response::Value { value: scale_of_tree(row, sub, &value), code },
            Response::List(list) => Response::List(list),
        })
    }
}

const MANAGED: &[&str] = &["metadata", "managedFields"];

/// A Scale has one version, and everything in it can be owned.
struct ScaleVersions<'a> {
    ty: TypeRef,
    api_version: &'a str,
}

impl Versions for ScaleVersions<'_> {
    fn type_of(&self, api_version: &str) -> Option<TypeRef> {
        (api_version == self.api_version).then_some(self.ty)
    }

    fn convert(&self, tree: &Value, _: &str, _: &str) -> Option<Value> {
        Some(tree.clone())
    }

    fn ownable(&self) -> Ownable {
        Ownable::Except(&[])
    }
}

fn conform(ty: TypeRef, scale: &mut Value) -> Result<()> {
    let refused = json::conform(ty, scale);
    refused.map(drop).map_err(|e| Status::invalid_kind("", "", "", &[FieldError::invalid("patch", scale.to_string(), e)]))
}

fn sub(row: &Row) -> Result<&'static Subresource> {
    row.resource.subresource("scale").ok_or_else(Status::no_such_resource)
}

fn scale_of(row: &Row, sub: &Subresource, object: &Object) -> Value {
    scale_of_tree(row, sub, &object.value())
}

fn scale_of_tree(row: &Row, sub: &Subresource, object: &Value) -> Value {
    let paths = row.strategy.scale();
    let selector = object.at(paths.selector);
    let is_label_selector =
        selector.is_some_and(|s| s.get("matchLabels").is_some_and(|m| m.as_map().is_some()) || s.get("matchExpressions").is_some());
    let selector = if is_label_selector { Selector::from_value(selector).unwrap_or_default() } else { Selector::from_map(selector) };
    let mut metadata = Value::map();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(v) = object.at(&["metadata", field]) {
            metadata.set(&[field], v.clone());
        }
    }
    let api_version = crate::api::resource::api_version(sub.group, sub.version);
    let mut scale = crate::value!({"kind": sub.kind, "apiVersion": api_version, "spec": {}, "status": {}});
    scale.set(&["metadata"], metadata);
    if let Some(replicas) = object.i64_at(paths.replicas).filter(|r| *r != 0) {
        scale.set(&["spec", "replicas"], replicas);
    }
    scale.set(&["status", "replicas"], object.i64_at(paths.status_replicas).unwrap_or(0));
    let text = selector.to_string();
    if !text.is_empty() {
        scale.set(&["status", "selector"], text);
    }
    scale
}
