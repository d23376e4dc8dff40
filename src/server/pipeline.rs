//! The order every request passes, whoever asks: authorize, then the verb, which decodes and defaults, admits, prepares,
//! validates, admits again and stores.
//!
//! [`Pipeline`] is the [`Transport`] of in-process callers and what `http` calls; only warnings make a difference
//! ([`Pipeline::serve`] returns them). A panic in a request is a 500. The verbs are in `verbs/`.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tracing::error;

use crate::api::client::{Future, Transport};
use crate::api::json;
use crate::api::object::Object;
use crate::api::request::{Outcome, Request, Response, Verb};
use crate::api::resource::{self, Resource, Subresource};
use crate::api::schema::TypeRef;
use crate::api::status::{Result, Status};
use crate::api::time::Clock;
use crate::api::value::Value;
use crate::store::Store;

use super::apply::{self, Ownable, Versions, Write};
use super::auth::{Attributes, Auth};
use super::registry::{Reader, Registry, Row};
use super::strategy::{Access, Calls, Cluster, Context, Operation, Plugin};
use super::verbs::watch::FramedEvents;

/// Everything a request passes through.
pub struct Pipeline {
    pub(super) store: Store,
    pub(super) registry: Registry,
    pub(super) plugins: Vec<Box<dyn Plugin>>,
    pub(super) auth: Arc<Auth>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) access: Arc<dyn Access>,
    /// A permit for each watch that may be opened, over all clients.
    pub(super) watches: Arc<Semaphore>,
    this: Weak<Pipeline>,
    served: AtomicU64,
    /// No revision before this one was ever told to anybody.
    first_told: AtomicU64,
    flow: OnceLock<(String, String)>,
}

/// What a pipeline is made of.
pub struct Parts {
    pub store: Store,
    pub registry: Registry,
    pub plugins: Vec<Box<dyn Plugin>>,
    pub auth: Arc<Auth>,
    pub cluster: Arc<Cluster>,
    pub clock: Arc<dyn Clock>,
}

impl Pipeline {
    pub fn new(parts: Parts) -> Arc<Pipeline> {
        let watches_max = parts.cluster.watches_max;
        Arc::new_cyclic(|this| {
            let access: Arc<dyn Access> = Arc::new(Reader { store: parts.store.clone() });
            Pipeline {
                store: parts.store,
                registry: parts.registry,
                plugins: parts.plugins,
                auth: parts.auth,
                cluster: parts.cluster,
                clock: parts.clock,
                access,
                watches: Arc::new(Semaphore::new(watches_max)),
                this: this.clone(),
                served: AtomicU64::new(0),
                first_told: AtomicU64::new(0),
                flow: OnceLock::new(),
            }
        })
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub fn auth(&self) -> &Arc<Auth> {
        &self.auth
    }

    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    pub fn access(&self) -> &Arc<dyn Access> {
        &self.access
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Of a store that began with this process, once bootstrap is done: watches from before are too old, as they are where a cache began
    /// later than the store.
    pub(super) fn nobody_was_served_yet(&self) {
        self.first_told.store(self.store.revision(), Ordering::Relaxed);
    }

    pub(super) fn first_told(&self) -> u64 {
        self.first_told.load(Ordering::Relaxed)
    }

    /// Requests passed so far.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    pub fn watches_open(&self) -> usize {
        self.cluster.watches_max - self.watches.available_permits()
    }

    /// One request with the texts for its `Warning` headers.
    pub async fn serve(&self, request: Request) -> (Result<Outcome>, Vec<String>) {
        self.served.fetch_add(1, Ordering::Relaxed);
        let mut warnings = Vec::new();
        let verb = request.verb;
        let resource = request.resource;
        let answered = AssertUnwindSafe(self.authorized(request, &mut warnings)).catch_unwind().await;
        let outcome = answered.unwrap_or_else(|_| {
            error!(?verb, %resource, "a request panicked");
            Err(Status::new(500, "InternalError", "This request caused apiserver to panic. Look in the logs for details."))
        });
        (outcome, warnings)
    }

    async fn authorized(&self, request: Request, warnings: &mut Vec<String>) -> Result<Outcome> {
        self.auth.require(&request.user, &Attributes::of(&request, "get"))?;
        self.dispatch(request, warnings).await
    }

    /// A watch whose events come with a place for their frames.
    pub(super) fn serve_watch(&self, request: Request) -> Result<FramedEvents> {
        self.served.fetch_add(1, Ordering::Relaxed);
        self.auth.require(&request.user, &Attributes::of(&request, "get"))?;
        self.watch_framed(request)
    }

    /// The plugins' say on exec, attach, port-forward and proxy; the caller has authorized.
    pub(super) fn admit_connect(&self, request: &Request) -> Result<()> {
        let context = self.context(Operation::Connect, request);
        self.admit_validating(&context, &Value::Null, None)
    }

    /// UIDs of the flow schema and priority level requests pass under.
    pub(super) fn flow(&self) -> (String, String) {
        let uid = |resource, name| self.access.get(resource, "", name).map_or_else(String::new, |o: Object| o.uid().to_string());
        if let Some(found) = self.flow.get() {
            return found.clone();
        }
        let found = (uid(&resource::FLOWSCHEMAS, "catch-all"), uid(&resource::PRIORITYLEVELCONFIGURATIONS, "catch-all"));
        if !found.0.is_empty() && !found.1.is_empty() {
            let _ = self.flow.set(found.clone());
        }
        found
    }

    /// Whether the store still takes writes, as far as one can tell without writing.
    pub(super) fn store_works(&self) -> bool {
        self.store.revision() > 0
    }

    async fn dispatch(&self, request: Request, warnings: &mut Vec<String>) -> Result<Outcome> {
        let unary = |response: Response| Outcome::Unary(response);
        match (request.verb, request.subresource.as_str()) {
            (Verb::Watch, _) => self.watch(request).map(Outcome::Watch),
            (Verb::List, _) => self.list(&request).map(unary),
            (Verb::Get, "scale") => self.get_scale(&request).map(unary),
            (Verb::Get, _) => self.get(&request).map(unary),
            (Verb::Create, "") => self.create(request, warnings).await.map(unary),
            (Verb::Create, _) => self.create_sub(request, warnings).await.map(unary),
            (Verb::Update, "scale") | (Verb::Patch, "scale") => self.update_scale(request, warnings).await.map(unary),
            (Verb::Update, _) => self.update(request, warnings).await.map(unary),
            (Verb::Patch, _) => self.patch(request, warnings).await.map(unary),
            (Verb::Delete, _) => self.delete(request, warnings).await.map(unary),
            (Verb::DeleteCollection, _) => self.delete_collection(request, warnings).await.map(unary),
            (Verb::Connect, _) => Err(Status::bad_request("this request must be upgraded")),
        }
    }

    /// A fresh context for one attempt at a request.
    pub(super) fn context(&self, operation: Operation, request: &Request) -> Context {
        let target = (request.namespace.clone(), request.name.clone(), request.subresource.clone());
        let calls: Arc<dyn Calls> = self.this.upgrade().expect("a request holds the pipeline");
        let mut context = Context::new(
            operation,
            request.user.clone(),
            request.resource,
            target,
            request.options.clone(),
            self.clock.now(),
            self.cluster.clone(),
            self.access.clone(),
            calls,
        );
        context.manager = match request.options.field_manager.as_deref() {
            Some(manager) if !manager.is_empty() => manager.to_string(),
            _ => apply::manager_of(&request.user_agent),
        };
        context
    }

    /// Notes who owns which field from now on. Trees of the storage version; the fields are those of the requested one.
    pub(super) fn manage_fields(&self, row: &Row, context: &Context, new: &mut Value, old: Option<&Value>) {
        let (api_version, now, form) = (row.resource.api_version(), context.now.to_string(), row.storage.api_version());
        let write = Write { manager: &context.manager, subresource: &context.subresource, api_version: &api_version, now: &now };
        apply::track(old, new, &write, &form, &self.versions(row, &context.subresource));
    }

    /// What the API server itself writes into a status.
    pub(super) fn manage_own_fields(&self, row: &Row, new: &mut Value, old: &Value, now: &str) {
        let (api_version, form) = (row.resource.api_version(), row.storage.api_version());
        let write = Write { manager: "kube-apiserver", subresource: "status", api_version: &api_version, now };
        apply::track(Some(old), new, &write, &form, &self.versions(row, "status"));
    }

    /// The same for what a subresource is asked with and nothing stores.
    pub(super) fn manage_subresource_fields(&self, context: &Context, sub: &Subresource, ty: TypeRef, new: &mut Value) {
        let (api_version, now) = (resource::api_version(sub.group, sub.version), context.now.to_string());
        let write = Write { manager: &context.manager, subresource: &context.subresource, api_version: &api_version, now: &now };
        apply::track(None, new, &write, &api_version, &OneVersion(ty));
    }

    /// The versions of a row's objects, as field ownership sees them.
    pub(super) fn versions<'a>(&'a self, row: &'a Row, subresource: &'a str) -> RowVersions<'a> {
        RowVersions { registry: &self.registry, row, subresource }
    }

    pub(super) fn admit_mutating(&self, context: &Context, object: &mut Value, old: Option<&Value>) -> Result<()> {
        self.plugins.iter().try_for_each(|p| p.mutate(context, object, old))
    }

    pub(super) fn admit_validating(&self, context: &Context, object: &Value, old: Option<&Value>) -> Result<()> {
        self.plugins.iter().try_for_each(|p| p.validate(context, object, old))
    }
}

/// [`Versions`] of what has only one.
struct OneVersion(TypeRef);

impl Versions for OneVersion {
    fn type_of(&self, _: &str) -> Option<TypeRef> {
        Some(self.0)
    }
    fn convert(&self, tree: &Value, _: &str, _: &str) -> Option<Value> {
        Some(tree.clone())
    }
    fn ownable(&self) -> Ownable {
        Ownable::Except(&[])
    }
}

/// [`Versions`] of the objects behind a row, written through one of their subresources.
pub(super) struct RowVersions<'a> {
    registry: &'a Registry,
    row: &'a Row,
    subresource: &'a str,
}

impl RowVersions<'_> {
    fn find(&self, api_version: &str) -> Option<&Row> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let is_own = self.row.resource.group == group && self.row.resource.version == version;
        if is_own { Some(self.row) } else { self.registry.find(group, version, self.row.resource.plural) }
    }
}

impl Versions for RowVersions<'_> {
    fn type_of(&self, api_version: &str) -> Option<TypeRef> {
        // Another group's kind is not a version of this one, even if it shows the same objects.
        self.find(api_version).filter(|r| r.resource.group == self.row.resource.group).map(Row::type_ref)
    }

    fn convert(&self, tree: &Value, from: &str, to: &str) -> Option<Value> {
        let (from, to) = (self.find(from)?, self.find(to)?);
        let mut tree = tree.clone();
        json::conform(from.type_ref(), &mut tree).ok()?;
        from.to_stored(&mut tree).ok()?;
        to.to_served(&mut tree);
        Some(tree)
    }

    fn ownable(&self) -> Ownable {
        self.row.ownable(self.subresource)
    }
}

impl Transport for Pipeline {
    fn call(&self, request: Request) -> Future<'_, Result<Outcome>> {
        Box::pin(async move { self.serve(request).await.0 })
    }
}

impl Calls for Pipeline {
    fn modify<'a>(
        &'a self,
        context: &'a Context,
        resource: &'static Resource,
        namespace: &'a str,
        name: &'a str,
        change: &'a (dyn Fn(&mut Value) -> Result<()> + Send + Sync),
    ) -> Future<'a, Result<Object>> {
        Box::pin(self.modify_stored(context, resource, namespace, name, change))
    }

    fn transport(&self) -> Arc<dyn Transport> {
        self.this.upgrade().expect("a request holds the pipeline")
    }
}
