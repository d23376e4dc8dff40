//! PUT and PATCH of objects and of the subresources that speak the object's own kind: one read, decide, compare-and-swap loop.
//!
//! A request without a resourceVersion is done over when others get in between: patch, admission and validation included.
//! What changes nothing writes nothing. An update that takes a deleting object's last finalizer removes the object.

use crate::api::object::Object;
use crate::api::request::{Body, PatchType, Request, Response};
use crate::api::resource::Resource;
use crate::api::schema;
use crate::api::status::{FieldError, Result, Status};
use crate::api::value::Value;
use crate::api::{json, yaml};
use crate::store::{Error, Expect, Written};

use super::create::{empty_batch, not_acted_on};
use super::{ATTEMPTS_MAX, check_name, check_options, decode_object, dedup_owners, put_batch, settle_namespace, store_error};
use crate::server::apply::{self, Ownable};
use crate::server::auth::Attributes;
use crate::server::patch;
use crate::server::pipeline::Pipeline;
use crate::server::registry::{Reader, Row};
use crate::server::strategy::{Context, Operation};

/// A wanted new state: the tree in the storage version, and texts for warnings.
pub(super) struct Wanted {
    pub value: Value,
    pub warnings: Vec<String>,
    pub ownership: Ownership,
}

/// Whether the tree's managed fields are still to be found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ownership {
    Track,
    Settled,
}

impl Pipeline {
    pub(in crate::server) async fn update(&self, request: Request, warnings: &mut Vec<String>) -> Result<Response> {
        check_options("UpdateOptions", &request.options, false)?;
        let row = self.registry.row(request.resource);
        let mut decoded = decode_object(row, &request.body, &request.options)?;
        warnings.append(&mut decoded.warnings);
        let mut value = decoded.value;
        check_name(&request, &value)?;
        settle_namespace(&request, &mut value)?;
        row.to_stored(&mut value)?;
        if self.store.get(&row.storage.key(&request.namespace, &request.name)).is_none() {
            return self.create_on_update(row, &request, value, warnings).await;
        }
        let lacks_revision = value.str_at(&["metadata", "resourceVersion"]).is_empty() && !row.strategy.unconditional_update();
        let expected_uid = value.str_at(&["metadata", "uid"]).to_string();
        let make = |old: &Object| -> Result<Wanted> {
            if !expected_uid.is_empty() && expected_uid != old.uid() {
                return Err(super::wrong_uid(row.resource, (&request.namespace, &request.name), &expected_uid, old.uid()));
            }
            if lacks_revision {
                let why = FieldError::invalid("metadata.resourceVersion", 0i64, "must be specified for an update");
                return Err(Status::invalid_kind(row.storage.group, row.storage.plural, &request.name, &[why]));
            }
            Ok(Wanted { value: value.clone(), warnings: Vec::new(), ownership: Ownership::Track })
        };
        self.update_stored(row, &request, &make, warnings).await
    }

    async fn create_on_update(&self, row: &Row, request: &Request, mut value: Value, warnings: &mut Vec<String>) -> Result<Response> {
        if !row.strategy.create_on_update() || !request.subresource.is_empty() {
            return Err(Status::not_found(row.resource, &request.name));
        }
        let attributes = Attributes { verb: "create", ..Attributes::of(request, "get") };
        self.auth.require(&request.user, &attributes)?;
        super::create::wipe_system_metadata(&mut value);
        let again = || Ok(value.clone());
        self.create_decoded(row, request, (value.clone(), &again), Ownership::Track, warnings).await
    }

    pub(in crate::server) async fn patch(&self, request: Request, warnings: &mut Vec<String>) -> Result<Response> {
        let row = self.registry.row(request.resource);
        let patch_type = request.patch_type.ok_or_else(|| Status::bad_request("a patch needs a type"))?;
        check_options("PatchOptions", &request.options, patch_type == PatchType::Apply)?;
        if patch_type == PatchType::Apply {
            return self.apply(row, request, warnings).await;
        }
        let patch = parse_patch(&request, patch_type)?;
        let make = |old: &Object| -> Result<Wanted> {
            let mut value = row.serve(old);
            let refuse = |why: &str| unpatchable(row, old, patch_type, &patch, why);
            let mut texts = apply(row, patch_type, &mut value, &patch)?;
            if patch_type == PatchType::Strategic {
                patch::restorable(row.type_ref(), &value).map_err(|e| refuse(&e))?;
            }
            let unknown = json::conform(row.type_ref(), &mut value).map_err(|e| refuse(&e))?;
            texts.extend(unknown);
            let warnings = super::field_validation(&request.options, texts, refuse)?;
            check_patched_kind(row, patch_type, &value, || patched_bytes(row, old, patch_type, &patch)).map_err(|e| refuse(&e))?;
            value.set(&["apiVersion"], row.resource.api_version());
            value.set(&["kind"], row.resource.kind);
            check_name(&request, &value)?;
            settle_namespace(&request, &mut value)?;
            row.to_stored(&mut value)?;
            Ok(Wanted { value, warnings, ownership: Ownership::Track })
        };
        self.update_stored(row, &request, &make, warnings).await
    }

    /// The one loop. `make` sees the stored object and is called again after every lost race.
    pub(super) async fn update_stored(
        &self,
        row: &Row,
        request: &Request,
        make: &(dyn Fn(&Object) -> Result<Wanted> + Send + Sync),
        warnings: &mut Vec<String>,
    ) -> Result<Response> {
        // A PUT that names the revision it was made from must not be redone on another.
        let conditional = matches!(request.verb, crate::api::request::Verb::Update);
        for _ in 0..ATTEMPTS_MAX {
            let old = self.stored(row, &request.namespace, &request.name)?;
            let mut wanted = make(&old)?;
            let sent = wanted.value.str_at(&["metadata", "resourceVersion"]).to_string();
            let has_revision = !matches!(sent.as_str(), "" | "0");
            if has_revision && sent != old.revision.to_string() {
                return Err(Status::modified(row.resource, &request.name));
            }
            let context = self.context(Operation::Update, request);
            let old_tree = old.value();
            let attempted = self.attempt_update(row, &context, wanted.value, wanted.ownership, &old_tree);
            let mut said = std::mem::take(&mut wanted.warnings);
            said.append(&mut context.take_warnings());
            // What was warned of was so, whatever else is wrong.
            let value = match attempted {
                Ok(value) => value,
                Err(status) => {
                    warnings.append(&mut said);
                    return Err(status);
                }
            };
            if !row.strategy.is_acted_on() && !self.cluster.is_alone {
                said.push(not_acted_on(row));
            }
            let written = match self.write_update(row, &context, &old, value).await? {
                Some(response) => response,
                None if conditional && has_revision => return Err(Status::modified(row.resource, &request.name)),
                None => continue,
            };
            warnings.append(&mut said);
            return Ok(written);
        }
        Err(super::contended(row.resource, &request.name))
    }

    fn attempt_update(&self, row: &Row, context: &Context, mut value: Value, ownership: Ownership, old: &Value) -> Result<Value> {
        let strategy = &*row.strategy;
        let is_status = context.subresource == "status";
        dedup_owners(context, &mut value);
        strategy.default(&mut value);
        restore_metadata(&mut value, old);
        if ownership == Ownership::Track {
            self.manage_fields(row, context, &mut value, Some(old));
        }
        self.admit_mutating(context, &mut value, Some(old))?;
        strategy.default(&mut value);
        restore_metadata(&mut value, old);
        match context.subresource.as_str() {
            "" | "scale" => strategy.prepare_update(context, &mut value, old)?,
            "status" => {
                strategy.prepare_status_update(context, &mut value, old)?;
                restore_unownable(row, &mut value, old);
            }
            _ => strategy.prepare_subresource_update(context, &mut value, old)?,
        }
        // Rules for what is not the spec have no eye for the whole of it.
        let mut looks = strategy.metadata_looks(context.resource);
        if !matches!(context.subresource.as_str(), "" | "scale" | "ephemeralcontainers" | "resize") {
            looks.whole = 0;
        }
        let mut errors = super::metadata_update_errors(row, looks, &value, old);
        errors.extend(match context.subresource.as_str() {
            "" | "scale" => strategy.validate_update(context, &value, old),
            _ if is_status => strategy.validate_status_update(context, &value, old),
            _ => strategy.validate_subresource_update(context, &value, old),
        });
        if !errors.is_empty() {
            return Err(Status::invalid(row.storage, &context.name, &errors));
        }
        strategy.canonicalize(&mut value);
        // Reading it back would.
        strategy.default(&mut value);
        if apply::differ_in_times_only(&value, old)
            && let Some(kept) = old.at(&["metadata", "managedFields"])
        {
            value.set(&["metadata", "managedFields"], kept.clone());
        }
        strategy.warnings(context, &value, Some(old)).into_iter().for_each(|w| context.warn(w));
        self.admit_validating(context, &value, Some(old))?;
        Ok(value)
    }

    /// `None`: somebody else wrote first.
    async fn write_update(&self, row: &Row, context: &Context, old: &Object, value: Value) -> Result<Option<Response>> {
        let object = Object { revision: old.revision, ..Object::from_value(row.storage, &value, 0) };
        let dry = |object: &Object| Response::Value { value: self.as_if_stored(row, object), code: 200 };
        if self.is_finished(row, &value) {
            if context.dry_run {
                return Ok(Some(dry(&object)));
            }
            return self.remove_finished(row, context, old, &value).await.map(|gone| gone.map(|_| Response::Object { object, code: 200 }));
        }
        let effects = context.take_effects();
        if object.bytes == old.bytes && effects.is_empty() {
            return Ok(Some(if context.dry_run { dry(old) } else { Response::Object { object: old.clone(), code: 200 } }));
        }
        if context.dry_run {
            return Ok(Some(dry(&object)));
        }
        let key = super::object_key(old);
        let mut batch = put_batch(&*row.strategy, key.clone(), Expect::At(old.revision), &object, &value);
        self.add_effects(&mut batch, effects, &context.now.to_string());
        match self.store.write(batch).await {
            Ok(Written { revisions, .. }) => {
                self.note_findings(row, context, &value).await;
                Ok(Some(Response::Object { object: Object { revision: revisions[0], ..object }, code: 200 }))
            }
            Err(Error::Conflict { .. }) => Ok(None),
            Err(other) => Err(store_error(other)),
        }
    }

    /// A deleting object that nothing holds any more: no finalizers, no grace left to wait.
    pub(super) fn is_finished(&self, row: &Row, value: &Value) -> bool {
        let deleting = value.at(&["metadata", "deletionTimestamp"]).is_some();
        let waits = value.i64_at(&["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) > 0;
        deleting && !waits && value.list_at(&["metadata", "finalizers"]).is_empty() && !row.strategy.blocks_deletion(value)
    }

    /// The revision of the deletion. `None`: somebody else wrote first.
    pub(super) async fn remove_finished(&self, row: &Row, context: &Context, old: &Object, value: &Value) -> Result<Option<u64>> {
        row.strategy.release(context, value);
        let key = super::object_key(old);
        let mut batch = empty_batch();
        batch.checks.push(crate::store::Check { key: key.clone(), expect: Expect::At(old.revision) });
        batch.deletes.push(key);
        self.add_effects(&mut batch, context.take_effects(), &context.now.to_string());
        let puts = batch.puts.len();
        match self.store.write(batch).await {
            // Ours is the first of the deletions, which come after the puts.
            Ok(written) => Ok(written.revisions.get(puts).copied()),
            Err(Error::Conflict { .. }) => Ok(None),
            Err(other) => Err(store_error(other)),
        }
    }

    /// [`crate::server::strategy::Calls::modify`].
    pub(in crate::server) async fn modify_stored(
        &self,
        context: &Context,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        change: &(dyn Fn(&mut Value) -> Result<()> + Send + Sync),
    ) -> Result<Object> {
        let storage = resource.storage();
        let row = self.registry.row(storage);
        for _ in 0..ATTEMPTS_MAX {
            let entry = self.store.get(&storage.key(namespace, name)).ok_or_else(|| Status::not_found(resource, name))?;
            let old = Reader::object(storage, &entry);
            let mut value = old.value();
            change(&mut value)?;
            let object = Object { revision: old.revision, ..Object::from_value(storage, &value, 0) };
            if context.dry_run || object.bytes == old.bytes {
                return Ok(object);
            }
            if self.is_finished(row, &value) {
                if self.remove_finished(row, context, &old, &value).await?.is_some() {
                    return Ok(object);
                }
                continue;
            }
            let mut batch = put_batch(&*row.strategy, super::object_key(&old), Expect::At(old.revision), &object, &value);
            self.add_effects(&mut batch, context.effects(), &context.now.to_string());
            match self.store.write(batch).await {
                Ok(Written { revisions, .. }) => return Ok(Object { revision: revisions[0], ..object }),
                Err(Error::Conflict { .. }) => {}
                Err(other) => return Err(store_error(other)),
            }
        }
        Err(super::contended(resource, name))
    }
}

/// What clients cannot change is what it was; left out, it counts as unchanged. A deletion cannot be taken back.
fn restore_metadata(new: &mut Value, old: &Value) {
    let kept = |field: &str| old.at(&["metadata", field]).cloned();
    let metadata = new.make_map(&["metadata"]);
    metadata.remove("selfLink");
    for field in ["generation", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        match kept(field) {
            Some(value) => drop(metadata.insert(field, value)),
            None => drop(metadata.remove(field)),
        }
    }
    for field in ["uid", "creationTimestamp", "resourceVersion"] {
        let is_absent = metadata.get(field).is_none_or(|v| v.is_null() || v.as_str() == Some(""));
        if let Some(value) = kept(field).filter(|_| is_absent || field != "uid") {
            metadata.insert(field, value);
        }
    }
}

/// Metadata that cannot be owned through `/status` cannot be changed through it either.
fn restore_unownable(row: &Row, new: &mut Value, old: &Value) {
    let Ownable::Except(paths) = row.ownable("status") else { return };
    for path in paths {
        let members: &[&str] = match path {
            ["metadata"] => &["deletionTimestamp", "generation", "labels", "annotations", "finalizers", "ownerReferences"],
            ["metadata", member] => &[*member],
            _ => continue,
        };
        for member in members {
            match old.at(&["metadata", member]) {
                Some(value) => new.set(&["metadata", member], value.clone()),
                None => drop(new.remove(&["metadata", member])),
            }
        }
    }
}

pub(super) fn parse_patch(request: &Request, patch_type: PatchType) -> Result<Value> {
    let prefix = if patch_type == PatchType::Strategic { "" } else { "error decoding patch: " };
    let patch = match &request.body {
        Body::Value(value) => value.clone(),
        Body::Json(bytes) => json::parse(bytes).map_err(|e| Status::bad_request(format!("{prefix}{e}")))?,
        Body::Yaml(bytes) => {
            yaml::parse(bytes).map_err(|e| Status::bad_request(format!("error decoding YAML: error converting YAML to JSON: {e}")))?.0
        }
        Body::Empty => return Err(Status::bad_request(format!("{prefix}unexpected end of JSON input"))),
        Body::Protobuf(_) => return Err(Status::bad_request("a patch is JSON or YAML")),
    };
    Ok(patch)
}

/// Texts for unknown members of the patch itself come back.
fn apply(row: &Row, patch_type: PatchType, value: &mut Value, patch: &Value) -> Result<Vec<String>> {
    match patch_type {
        PatchType::Json => patch::json_patch(value, patch).map(|()| patch::unknown_operation_members(patch)),
        PatchType::Merge => patch::merge_patch(value, patch).map(|()| Vec::new()),
        PatchType::Strategic => patch::strategic(value, patch, row.type_ref()).map(|()| Vec::new()),
        PatchType::Apply => Err(Status::internal("an apply configuration is no patch")),
    }
}

/// The patched object does not fit the schema; the answer shows it, or of strategic merge the patch.
fn unpatchable(row: &Row, old: &Object, patch_type: PatchType, patch: &Value, why: &str) -> Status {
    let shown = match patch_type {
        PatchType::Strategic => patch::go(patch),
        PatchType::Json | PatchType::Merge | PatchType::Apply => {
            String::from_utf8(patched_bytes(row, old, patch_type, patch)).expect("JSON is UTF-8")
        }
    };
    Status::invalid_kind("", "", "", &[FieldError::invalid("patch", shown, why)])
}

/// The object after a patch, as upstream has it between patch and decoder.
fn patched_bytes(row: &Row, old: &Object, patch_type: PatchType, patch: &Value) -> Vec<u8> {
    let mut value = row.serve(old);
    // It was applied once already.
    let _ = apply(row, patch_type, &mut value, patch);
    let touched = if patch_type == PatchType::Json { patch::touched(patch) } else { patch.clone() };
    json::to_vec_in_go_order(row.type_ref(), &value, &touched)
}

fn check_patched_kind(row: &Row, patch_type: PatchType, value: &Value, bytes: impl FnOnce() -> Vec<u8>) -> std::result::Result<(), String> {
    let (version, kind) = (value.str_at(&["apiVersion"]), value.str_at(&["kind"]));
    let (own, own_kind) = (row.resource.api_version(), row.resource.kind);
    if (version.is_empty() || version == own) && (kind.is_empty() || kind == own_kind) {
        return Ok(());
    }
    let Some(ty) = schema::type_of(version, kind) else {
        return Err(format!("no kind \"{kind}\" is registered for version \"{version}\" in scheme \"pkg/runtime/scheme.go:111\""));
    };
    // It is decoded as what it says it is.
    if patch_type != PatchType::Strategic {
        json::decode(ty, &bytes())?;
    }
    Err(format!("unable to decode {kind} as {own_kind}"))
}
