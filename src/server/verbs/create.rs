//! POST: new objects, answers that are never stored, and subresources that are acts (binding, eviction, token).

use bytes::Bytes;
use tracing::debug;

use crate::api::object::Object;
use crate::api::request::{Request, Response};
use crate::api::schema;
use crate::api::status::{Result, Status};
use crate::api::value::Value;
use crate::store::{Batch, Durability, Error, Expect, Written};

use super::update::Ownership;
use super::{ATTEMPTS_MAX, Decoded, check_options, decode, decode_object, dedup_owners, put_batch, settle_namespace, store_error, uid};
use crate::server::pipeline::Pipeline;
use crate::server::registry::Row;
use crate::server::strategy::{Context, NameRule, Operation};
use crate::server::validation;

/// Tries at a free name for `generateName`, as upstream.
const NAME_ATTEMPTS_MAX: usize = 8;
/// `generateName` prefixes are cut so that the whole stays within 63.
const GENERATE_PREFIX_MAX: usize = 58;

impl Pipeline {
    pub(in crate::server) async fn create(&self, request: Request, warnings: &mut Vec<String>) -> Result<Response> {
        check_options("CreateOptions", &request.options, false)?;
        let row = self.registry.row(request.resource);
        let mut first = self.decode_create(row, &request)?;
        warnings.append(&mut first.warnings);
        let again = || self.decode_create(row, &request).map(|decoded| decoded.value);
        self.create_decoded(row, &request, (first.value, &again), Ownership::Track, warnings).await
    }

    /// The body of a POST as a tree to be stored, without what only the server may set.
    fn decode_create(&self, row: &Row, request: &Request) -> Result<Decoded> {
        let mut decoded = decode_object(row, &request.body, &request.options)?;
        let value = &mut decoded.value;
        settle_namespace(request, value)?;
        row.to_stored(value)?;
        let dry_run = !request.options.dry_run.is_empty();
        let revision = value.str_at(&["metadata", "resourceVersion"]).to_string();
        if !dry_run
            && revision.parse::<u64>().is_ok_and(|r| r > 0)
            && row.strategy.review(&self.context(Operation::Create, request), Value::Null).is_none()
        {
            return Err(Status::new(500, "", "resourceVersion should not be set on objects to be created"));
        }
        wipe_system_metadata(value);
        if dry_run && !revision.is_empty() {
            value.set(&["metadata", "resourceVersion"], revision);
        }
        Ok(decoded)
    }

    /// From the decoded, settled tree on, which is made again for every further attempt; also for updates and applies that create.
    pub(super) async fn create_decoded(
        &self,
        row: &Row,
        request: &Request,
        (first, again): (Value, &(dyn Fn() -> Result<Value> + Sync)),
        ownership: Ownership,
        warnings: &mut Vec<String>,
    ) -> Result<Response> {
        let mut names = 0;
        let name = first.str_at(&["metadata", "name"]).to_string();
        let mut first = Some(first);
        for attempt in 0..ATTEMPTS_MAX {
            let mut context = self.context(Operation::Create, request);
            context.name = name.clone();
            let value = first.take().map_or_else(again, Ok)?;
            let attempted = self.attempt_create(row, &context, value, ownership).await;
            let (object, tree, generated) = match attempted {
                // What was warned of was so, whatever else is wrong.
                Err(status) => {
                    warnings.append(&mut context.take_warnings());
                    return Err(status);
                }
                Ok(Attempted::Answer(tree)) => {
                    warnings.append(&mut context.take_warnings());
                    return Ok(Response::Value { value: tree, code: 201 });
                }
                Ok(Attempted::Object { object, tree, generated }) => (object, tree, generated),
            };
            let mut said = context.take_warnings();
            if !row.strategy.is_acted_on() && !self.cluster.is_alone {
                said.push(not_acted_on(row));
            }
            if context.dry_run {
                warnings.append(&mut said);
                if self.store.get(&super::object_key(&object)).is_some() {
                    return Err(self.exists(row, request, &object));
                }
                let mut answer = self.as_if_stored(row, &object);
                // A dry run's answer keeps what the client said.
                if let Some(sent) = tree.at(&["metadata", "resourceVersion"]) {
                    answer.set(&["metadata", "resourceVersion"], sent.clone());
                }
                return Ok(Response::Value { value: answer, code: 201 });
            }
            let key = super::object_key(&object);
            let mut batch = put_batch(&*row.strategy, key.clone(), Expect::Absent, &object, &tree);
            self.add_effects(&mut batch, context.take_effects(), &context.now.to_string());
            match self.store.write(batch).await {
                Ok(Written { revisions, .. }) => {
                    self.note_findings(row, &context, &tree).await;
                    warnings.append(&mut said);
                    let object = Object { revision: revisions[0], ..object };
                    return Ok(Response::Object { object, code: 201 });
                }
                Err(Error::Conflict { key: lost, .. }) if lost == key => {
                    names += 1;
                    if !generated || names >= NAME_ATTEMPTS_MAX {
                        warnings.append(&mut said);
                        let status = self.exists(row, request, &object);
                        return Err(if generated { status.retry_after(1) } else { status });
                    }
                }
                Err(Error::Conflict { .. }) => debug!(attempt, "a create lost a race for what it claims"),
                Err(other) => return Err(store_error(other)),
            }
        }
        Err(super::contended(row.resource, &name))
    }

    async fn attempt_create(&self, row: &Row, context: &Context, mut value: Value, ownership: Ownership) -> Result<Attempted> {
        let strategy = &*row.strategy;
        dedup_owners(context, &mut value);
        strategy.default(&mut value);
        if ownership == Ownership::Track {
            self.manage_fields(row, context, &mut value, None);
        }
        self.admit_mutating(context, &mut value, None)?;
        dedup_owners(context, &mut value);
        strategy.default(&mut value);
        // What is answered and not stored needs no name, and is nothing that came to be.
        let is_stored = row.resource.verbs != ["create"];
        let generated = is_stored && fill_system_metadata(context, &mut value);
        strategy.prepare_create(context, &mut value)?;
        let mut errors = if is_stored { super::metadata_errors(row, &value) } else { Vec::new() };
        errors.extend(strategy.validate(context, &value));
        if is_stored && errors.is_empty() {
            errors = validation::metadata(&value, NameRule::Unchecked, row.resource.namespaced);
        }
        if !errors.is_empty() {
            return Err(Status::invalid(row.storage, value.str_at(&["metadata", "name"]), &errors));
        }
        strategy.canonicalize(&mut value);
        // Reading it back would.
        strategy.default(&mut value);
        strategy.warnings(context, &value, None).into_iter().for_each(|w| context.warn(w));
        self.admit_validating(context, &value, None)?;
        if !is_stored && let Some(answer) = strategy.review(context, value.clone()) {
            return answer.await.map(|v| Attempted::Answer(self.to_answer(row, v)));
        }
        let object = Object::from_value(row.storage, &value, 0);
        Ok(Attempted::Object { object, tree: value, generated })
    }

    /// The answer of a dry run: what reading the object back would show; without a revision if there is none yet.
    pub(super) fn as_if_stored(&self, row: &Row, object: &Object) -> Value {
        let mut value = object.value();
        if object.revision == 0 {
            value.remove(&["metadata", "resourceVersion"]);
        }
        self.to_answer(row, value)
    }

    /// A tree of the storage version as the served version shows it.
    pub(super) fn to_answer(&self, row: &Row, mut value: Value) -> Value {
        row.to_served(&mut value);
        value
    }

    fn exists(&self, row: &Row, request: &Request, object: &Object) -> Status {
        let mut status = Status::already_exists(row.resource, object.name());
        let there = self.store.get(&row.storage.key(&request.namespace, object.name()));
        if there.is_some_and(|e| crate::server::registry::Reader::object(row.storage, &e).is_deleting()) {
            status.message = format!("object is being deleted: {}", status.message);
        }
        status
    }

    /// POST to a subresource.
    pub(in crate::server) async fn create_sub(&self, request: Request, warnings: &mut Vec<String>) -> Result<Response> {
        check_options("CreateOptions", &request.options, false)?;
        let row = self.registry.row(request.resource);
        let sub = row.resource.subresource(&request.subresource).ok_or_else(Status::no_such_resource)?;
        let api_version = crate::api::resource::api_version(sub.group, sub.version);
        let ty =
            schema::type_of(&api_version, sub.kind).ok_or_else(|| Status::internal(format!("no schema for {api_version} {}", sub.kind)))?;
        let mut decoded = match (&request.body, sub.kind) {
            // kubectl and others evict with nothing but the URL.
            (crate::api::request::Body::Empty, "Eviction") => super::Decoded { value: Value::map(), warnings: Vec::new() },
            (body, _) => decode(ty, &api_version, sub.kind, body, &request.options)?,
        };
        warnings.append(&mut decoded.warnings);
        let mut value = decoded.value;
        if value.str_at(&["metadata", "name"]).is_empty() {
            value.set(&["metadata", "name"], request.name.as_str());
        }
        // These are checked by whom they are for, in words of their own.
        if !matches!(sub.kind, "TokenRequest" | "Binding") {
            super::check_name(&request, &value)?;
        }
        settle_namespace(&request, &mut value)?;
        let context = self.context(Operation::Create, &request);
        row.strategy.default_subresource(sub.name, &mut value);
        if sub.kind == "TokenRequest" {
            self.manage_subresource_fields(&context, sub, ty, &mut value);
        }
        self.admit_mutating(&context, &mut value, None)?;
        self.admit_validating(&context, &value, None)?;
        let handled = row.strategy.create_subresource(&context, value).ok_or_else(Status::no_such_resource)?;
        let response = handled.await;
        warnings.append(&mut context.take_warnings());
        response
    }
}

enum Attempted {
    /// A review: never stored.
    Answer(Value),
    Object {
        object: Object,
        tree: Value,
        /// The name is ours, from `generateName`: another may be tried.
        generated: bool,
    },
}

pub(super) fn not_acted_on(row: &Row) -> String {
    format!("{} {} is stored, but nothing in Coracle acts on it yet", row.resource.api_version(), row.resource.kind)
}

/// What only the server may set.
pub(super) fn wipe_system_metadata(value: &mut Value) {
    for field in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
        value.remove(&["metadata", field]);
    }
}

/// uid, creationTimestamp and, from `generateName`, the name. True if the name was made here.
fn fill_system_metadata(context: &Context, value: &mut Value) -> bool {
    let metadata = value.make_map(&["metadata"]);
    metadata.insert("uid", uid());
    metadata.insert("creationTimestamp", context.now.to_string());
    let prefix = metadata.str("generateName").to_string();
    let generated = metadata.str("name").is_empty() && !prefix.is_empty();
    if generated {
        // No suffix makes an address a better one.
        let is_fixed = context.resource.plural == "ipaddresses";
        metadata.insert("name", if is_fixed { prefix } else { random_name(&prefix) });
    }
    generated
}

fn random_name(prefix: &str) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = [0u8; 5];
    getrandom::fill(&mut random).expect("the kernel has random bytes");
    let mut end = prefix.len().min(GENERATE_PREFIX_MAX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = prefix[..end].to_string();
    name.extend(random.iter().map(|b| LETTERS[usize::from(*b) % LETTERS.len()] as char));
    name
}

/// An empty batch, to which effects alone are added.
pub(super) fn empty_batch() -> Batch {
    Batch { checks: Vec::new(), puts: Vec::new(), deletes: Vec::<Bytes>::new(), durability: Durability::Now }
}
