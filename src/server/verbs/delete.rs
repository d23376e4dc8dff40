//! DELETE: preconditions, grace, finalizers and propagation; and DELETE of collections.
//!
//! An object that must wait (grace) or is held (finalizers) is marked and stays; later deletes can only shorten the wait.

use crate::api::object::Object;
use crate::api::request::{Body, List, Options, Request, Response, Verb};
use crate::api::schema;
use crate::api::status::{FieldError, Result, Status};
use crate::api::value::Value;
use crate::api::{json, yaml};
use crate::store::{Error, Expect};
use std::time::Duration;

use super::{ATTEMPTS_MAX, put_batch, store_error};
use crate::server::pipeline::Pipeline;
use crate::server::registry::Row;
use crate::server::strategy::{Context, Operation, Propagation};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// DeleteOptions, wherever they came from.
#[derive(Clone, Debug, Default)]
struct DeleteOptions {
    grace_seconds: Option<i64>,
    propagation: Option<String>,
    orphan: Option<bool>,
    uid: Option<String>,
    revision: Option<String>,
    dry_run: Vec<String>,
}

impl Pipeline {
    pub(in crate::server) async fn delete(&self, mut request: Request, warnings: &mut Vec<String>) -> Result<Response> {
        let row = self.registry.row(request.resource);
        let options = delete_options(&request)?;
        warnings.extend(orphans(row, &request, &options));
        request.options.dry_run = options.dry_run.clone();
        self.delete_one(row, &request, &options, warnings).await
    }

    async fn delete_one(&self, row: &Row, request: &Request, options: &DeleteOptions, warnings: &mut Vec<String>) -> Result<Response> {
        let mut marked: Option<Object> = None;
        for _ in 0..ATTEMPTS_MAX {
            let context = self.context(Operation::Delete, request);
            let stored = self.stored(row, &request.namespace, &request.name);
            if let Some(ours) = marked.as_ref().filter(|ours| is_gone(ours, &stored)) {
                return Ok(removed(row, ours, ours.value(), &context, ours.revision));
            }
            let old = stored?;
            check_preconditions(row, &old, options)?;
            let tree = old.value();
            self.admit_validating(&context, &tree, Some(&tree))?;
            let step = decide(row, &context, &tree, options);
            let said = context.take_warnings();
            let answered = match step {
                Step::Nothing => Some(Response::Object { object: old, code: accepted(options) }),
                Step::Mark(value) => self.mark(row, &context, &old, value, options).await?,
                Step::Remove(value) => self.remove(row, &context, old, value, options, &mut marked).await?,
            };
            if let Some(response) = answered {
                warnings.extend(said);
                return Ok(response);
            }
        }
        Err(super::contended(row.resource, &request.name))
    }

    /// What could have waited is first seen not to wait any longer, then gone. `None`: somebody else wrote first.
    async fn remove(
        &self,
        row: &Row,
        context: &Context,
        old: Object,
        value: Value,
        options: &DeleteOptions,
        marked: &mut Option<Object>,
    ) -> Result<Option<Response>> {
        if context.dry_run {
            return Ok(Some(removed(row, &old, value, context, old.revision)));
        }
        let tree = old.value();
        let waits = row.strategy.grace_seconds(&tree, None).is_some();
        let last = match waits && value != tree {
            false => old,
            true => match self.mark(row, context, &old, value.clone(), options).await? {
                Some(Response::Object { object, .. }) => marked.insert(object).clone(),
                _ => return Ok(None),
            },
        };
        let gone = self.remove_finished(row, context, &last, &value).await?;
        Ok(gone.map(|revision| removed(row, &last, value, context, revision)))
    }

    /// `None`: somebody else wrote first.
    async fn mark(&self, row: &Row, context: &Context, old: &Object, value: Value, options: &DeleteOptions) -> Result<Option<Response>> {
        let object = Object { revision: old.revision, ..Object::from_value(row.storage, &value, 0) };
        if object.bytes == old.bytes {
            return Ok(Some(Response::Object { object: old.clone(), code: accepted(options) }));
        }
        if context.dry_run {
            return Ok(Some(Response::Value { value: self.to_answer(row, value), code: accepted(options) }));
        }
        let mut batch = put_batch(&*row.strategy, super::object_key(old), Expect::At(old.revision), &object, &value);
        self.add_effects(&mut batch, context.take_effects(), &context.now.to_string());
        match self.store.write(batch).await {
            Ok(written) => {
                Ok(Some(Response::Object { object: Object { revision: written.revisions[0], ..object }, code: accepted(options) }))
            }
            Err(Error::Conflict { .. }) => Ok(None),
            Err(other) => Err(store_error(other)),
        }
    }

    pub(in crate::server) async fn delete_collection(&self, mut request: Request, warnings: &mut Vec<String>) -> Result<Response> {
        let row = self.registry.row(request.resource);
        let options = delete_options(&request)?;
        warnings.extend(orphans(row, &request, &options));
        request.options.dry_run = options.dry_run.clone();
        let read = Request { verb: Verb::List, ..request.clone() };
        let Response::List(list) = self.list(&read)? else { return Err(Status::internal("a list answered something else")) };
        let mut items = Vec::with_capacity(list.items.len());
        for object in list.items {
            let (namespace, name) = (object.namespace().to_string(), object.name().to_string());
            let one = Request { verb: Verb::Delete, namespace, name, ..request.clone() };
            match self.delete_one(row, &one, &options, warnings).await {
                // Shown as they were listed.
                Ok(_) => items.push(object),
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        // A limit is what may go at once; the token goes on behind it.
        Ok(Response::List(List { items, ..list }))
    }
}

/// What a delete comes to.
enum Step {
    /// It is already being deleted, and this request changes nothing about that.
    Nothing,
    /// Mark it, or mark it more urgently.
    Mark(Value),
    /// Remove it; the tree is its last state.
    Remove(Value),
}

fn decide(row: &Row, context: &Context, old: &Value, options: &DeleteOptions) -> Step {
    let strategy = &*row.strategy;
    let requested = options.grace_seconds.map(|g| if g < 0 { 1 } else { g });
    let mut value = old.clone();
    let finalizers = wanted_finalizers(row, context, old, options);
    let held = !finalizers.is_empty() || strategy.blocks_deletion(old);
    if finalizers.is_empty() {
        value.remove(&["metadata", "finalizers"]);
    } else {
        value.set(&["metadata", "finalizers"], finalizers.clone());
    }
    let is_deleting = old.at(&["metadata", "deletionTimestamp"]).is_some();
    let grace = strategy.grace_seconds(old, requested);
    // Namespaces wait for what is in them to go, and hear of nothing else meanwhile.
    if is_deleting && strategy.blocks_deletion(old) {
        return Step::Nothing;
    }
    if is_deleting {
        let left = old.i64_at(&["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0);
        return match grace {
            // Only a shorter wait than before counts.
            Some(_) if left > 0 && requested.is_none_or(|g| g >= left) => changed(old, value),
            Some(g) if left > 0 => {
                shorten(&mut value, left, g);
                if g == 0 && !held { Step::Remove(value) } else { Step::Mark(value) }
            }
            _ if held => changed(old, value),
            _ => Step::Remove(value),
        };
    }
    let seconds = grace.unwrap_or(0);
    let graceful = grace.is_some();
    if held || seconds > 0 {
        mark_deleting(&mut value, context, seconds);
        strategy.mark_deleting(context, &mut value);
        return Step::Mark(value);
    }
    if graceful {
        mark_deleting(&mut value, context, 0);
    }
    Step::Remove(value)
}

fn changed(old: &Value, value: Value) -> Step {
    if *old == value { Step::Nothing } else { Step::Mark(value) }
}

fn mark_deleting(value: &mut Value, context: &Context, seconds: i64) {
    let when = context.now.truncated_to_seconds() + Duration::from_secs(seconds.max(0) as u64);
    value.set(&["metadata", "deletionTimestamp"], when.to_string());
    value.set(&["metadata", "deletionGracePeriodSeconds"], seconds);
    count_generation(value);
}

fn shorten(value: &mut Value, left: i64, seconds: i64) {
    let before = crate::api::time::Time::parse(value.str_at(&["metadata", "deletionTimestamp"])).unwrap_or_default();
    let when = before - Duration::from_secs((left - seconds).max(0) as u64);
    value.set(&["metadata", "deletionTimestamp"], when.to_string());
    value.set(&["metadata", "deletionGracePeriodSeconds"], seconds);
}

fn count_generation(value: &mut Value) {
    if let Some(generation) = value.i64_at(&["metadata", "generation"]).filter(|g| *g > 0) {
        value.set(&["metadata", "generation"], generation + 1);
    }
}

/// The object's finalizers with those of the propagation policy added or taken away.
fn wanted_finalizers(row: &Row, context: &Context, old: &Value, options: &DeleteOptions) -> Vec<Value> {
    let now: Vec<&str> = old.list_at(&["metadata", "finalizers"]).iter().filter_map(Value::as_str).collect();
    let has = |f: &str| now.contains(&f);
    let is_supported = row.strategy.propagation(context.resource) != Propagation::Unsupported;
    let orphan = is_supported
        && match (options.orphan, options.propagation.as_deref()) {
            (Some(orphan), _) => orphan,
            (None, Some(policy)) => policy == "Orphan",
            (None, None) if has(ORPHAN) => true,
            (None, None) if has(FOREGROUND) => false,
            (None, None) => row.strategy.propagation(context.resource) == Propagation::Orphan,
        };
    let foreground = is_supported
        && match (options.orphan, options.propagation.as_deref()) {
            (Some(_), _) => false,
            (None, Some(policy)) => policy == "Foreground",
            (None, None) => has(FOREGROUND),
        };
    let mut wanted: Vec<&str> = now.iter().copied().filter(|f| !matches!(*f, ORPHAN | FOREGROUND)).collect();
    if orphan {
        wanted.push(ORPHAN);
    }
    if foreground {
        wanted.push(FOREGROUND);
    }
    // Order alone is no change.
    if wanted.len() == now.len() && wanted.iter().all(|f| now.contains(f)) {
        wanted = now;
    }
    wanted.into_iter().map(Value::from).collect()
}

/// Whether somebody else, a controller or the node, removed what we marked to go at once: then it went as it should.
fn is_gone(marked: &Object, stored: &Result<Object>) -> bool {
    match stored {
        Err(status) => status.code == 404,
        Ok(stored) => stored.uid() != marked.uid(),
    }
}

fn accepted(options: &DeleteOptions) -> u16 {
    if options.orphan == Some(false) { 202 } else { 200 }
}

fn removed(row: &Row, old: &Object, value: Value, context: &Context, revision: u64) -> Response {
    if row.strategy.returns_deleted() {
        if context.dry_run {
            let mut value = value;
            row.to_served(&mut value);
            return Response::Value { value, code: 200 };
        }
        let object = Object { revision, ..Object::from_value(row.storage, &value, 0) };
        return Response::Object { object, code: 200 };
    }
    let mut details = crate::value!({"name": old.name(), "kind": row.resource.plural, "uid": old.uid()});
    if !row.resource.group.is_empty() {
        details.set(&["group"], row.resource.group);
    }
    let mut value = crate::value!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    value.set(&["details"], details);
    Response::Value { value, code: 200 }
}

/// Deleting a job leaves its pods, unless told otherwise.
fn orphans(row: &Row, request: &Request, options: &DeleteOptions) -> Option<String> {
    let is_job = row.storage.group == "batch" && row.storage.plural == "jobs";
    let by_default = options.propagation.is_none() && options.orphan.is_none();
    (is_job && by_default && row.strategy.propagation(request.resource) == Propagation::Orphan).then(|| {
        "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set \
         propagationPolicy=Orphan to suppress this warning"
            .to_string()
    })
}

/// Namespaces have words of their own for it.
fn namespace_preconditions(row: &Row, old: &Object, options: &DeleteOptions) -> Result<()> {
    let differ = |what: &str, wanted: &str, stored: &str| {
        let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {stored}");
        Err(Status::conflict(row.resource, old.name(), &why))
    };
    let revision = old.revision.to_string();
    match (options.uid.as_deref(), options.revision.as_deref()) {
        (Some(uid), _) if uid != old.uid() => differ("UID", uid, old.uid()),
        (_, Some(wanted)) if wanted != revision => differ("ResourceVersion", wanted, &revision),
        _ => Ok(()),
    }
}

fn check_preconditions(row: &Row, old: &Object, options: &DeleteOptions) -> Result<()> {
    let conflict = |what: &str, wanted: &str, stored: &str, tail: &str| {
        let why = format!("the {what} in the precondition ({wanted}) does not match the {what} in record ({stored}). {tail}");
        let mut status = Status::conflict(row.resource, old.name(), &why);
        status.message = format!("Operation cannot be fulfilled on {} \"{}\": {why}", row.storage.qualified_kind(), old.name());
        if let Some(details) = &mut status.details {
            details.kind = row.storage.kind.to_string();
            details.group = row.storage.group.to_string();
        }
        status
    };
    if row.storage.group.is_empty() && row.storage.plural == "namespaces" {
        return namespace_preconditions(row, old, options);
    }
    if let Some(uid) = options.uid.as_deref().filter(|u| *u != old.uid()) {
        return Err(conflict("UID", uid, old.uid(), "The object might have been deleted and then recreated"));
    }
    let stored = old.revision.to_string();
    if let Some(revision) = options.revision.as_deref().filter(|r| *r != stored) {
        return Err(conflict("ResourceVersion", revision, &stored, "The object might have been modified"));
    }
    Ok(())
}

/// The body's options if there is a body, else the query's.
fn delete_options(request: &Request) -> Result<DeleteOptions> {
    let ty = schema::type_of("v1", "DeleteOptions").expect("the table has DeleteOptions");
    let syntax = |e: String| Status::bad_request(format!("couldn't get version/kind; json parse error: {e}"));
    let body = match &request.body {
        Body::Empty => None,
        Body::Json(bytes) if bytes.is_empty() => None,
        Body::Json(bytes) => match json::decode(ty, bytes) {
            Ok((value, _)) => Some(value),
            Err(e) => {
                json::parse(bytes).map_err(syntax)?;
                return Err(Status::bad_request(e));
            }
        },
        Body::Yaml(bytes) => {
            let (mut value, _) = yaml::parse(bytes).map_err(Status::bad_request)?;
            json::conform(ty, &mut value).map_err(Status::bad_request)?;
            Some(value)
        }
        Body::Protobuf(bytes) => {
            let (_, _, raw) = crate::api::protobuf::open(bytes).map_err(Status::bad_request)?;
            Some(crate::api::protobuf::decode(ty, raw).map_err(Status::bad_request)?)
        }
        Body::Value(value) if value.is_null() => None,
        Body::Value(value) => {
            let mut value = value.clone();
            json::conform(ty, &mut value).map_err(Status::bad_request)?;
            Some(value)
        }
    };
    let options = match body {
        Some(value) => from_body(&value)?,
        None => from_query(&request.options),
    };
    check(&options)?;
    Ok(options)
}

fn from_query(options: &Options) -> DeleteOptions {
    DeleteOptions {
        grace_seconds: options.grace_period_seconds,
        propagation: options.propagation_policy.clone(),
        orphan: options.orphan_dependents,
        uid: None,
        revision: None,
        dry_run: options.dry_run.clone(),
    }
}

fn from_body(value: &Value) -> Result<DeleteOptions> {
    let (version, kind) = (value.str_at(&["apiVersion"]), value.str_at(&["kind"]));
    if !kind.is_empty() && kind != "DeleteOptions" {
        return Err(Status::bad_request(format!(
            "no kind \"{kind}\" is registered for version \"{version}\" in scheme \"pkg/runtime/scheme.go:111\""
        )));
    }
    let text = |path: &[&str]| value.at(path).and_then(Value::as_str).map(str::to_string);
    Ok(DeleteOptions {
        grace_seconds: value.i64_at(&["gracePeriodSeconds"]),
        propagation: text(&["propagationPolicy"]),
        orphan: value.at(&["orphanDependents"]).and_then(Value::as_bool),
        uid: text(&["preconditions", "uid"]),
        revision: text(&["preconditions", "resourceVersion"]),
        dry_run: value.list_at(&["dryRun"]).iter().filter_map(Value::as_str).map(str::to_string).collect(),
    })
}

fn check(options: &DeleteOptions) -> Result<()> {
    let mut errors = Vec::new();
    let policy = options.propagation.as_deref();
    if let (Some(_), Some(policy)) = (options.orphan, policy) {
        errors.push(FieldError::invalid("propagationPolicy", policy, "orphanDependents and deletionPropagation cannot be both set"));
    } else if let Some(policy) = policy.filter(|p| !matches!(*p, "Foreground" | "Background" | "Orphan")) {
        errors.push(FieldError::not_supported("propagationPolicy", policy, &["Foreground", "Background", "Orphan", "nil"]));
    }
    errors.extend(super::dry_run_error(&options.dry_run));
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid_kind("meta.k8s.io", "DeleteOptions", "", &errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::resource;

    #[test]
    fn what_was_marked_to_go_at_once_went_whoever_removed_it() {
        let pod = |uid: &str, revision| {
            let value = crate::value!({"metadata": {"name": "p", "namespace": "n", "uid": uid}});
            Object::from_value(&resource::PODS, &value, revision)
        };
        let marked = pod("a", 5);
        for (stored, gone) in [
            (Err(Status::not_found(&resource::PODS, "p")), true),
            (Ok(pod("b", 9)), true),
            (Ok(pod("a", 7)), false),
            (Err(Status::internal("not read")), false),
        ] {
            assert_eq!(is_gone(&marked, &stored), gone, "{stored:?}");
        }
    }
}
