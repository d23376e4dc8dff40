//! The way everything of ours reaches the API: one trait, implemented in process by the server's pipeline and over HTTPS
//! by `remote`. Nothing above can tell which it has (DESIGN 2.3).

use std::pin::Pin;
use std::sync::Arc;

use super::object::Object;
use super::request::{Body, Events, List, Options, Outcome, PatchType, Request, Response, User, Verb};
use super::resource::Resource;
use super::status::{Result, Status};
use super::value::Value;

/// A boxed future, so that the trait stays object safe.
pub type Future<'a, T> = Pin<Box<dyn std::future::Future<Output = T> + Send + 'a>>;

/// Carries one request through the whole pipeline.
pub trait Transport: Send + Sync + 'static {
    fn call(&self, request: Request) -> Future<'_, Result<Outcome>>;
}

/// A transport with an identity, and typed helpers over it. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    user: User,
}

impl Client {
    pub fn new(transport: Arc<dyn Transport>, user: User) -> Client {
        Client { transport, user }
    }

    pub fn user(&self) -> &User {
        &self.user
    }

    /// The same transport under another identity.
    pub fn as_user(&self, user: User) -> Client {
        Client { transport: self.transport.clone(), user }
    }

    /// A request under this client's identity.
    pub fn request(&self, verb: Verb, resource: &'static Resource, namespace: &str, name: &str) -> Request {
        Request::new(&self.user, verb, resource, namespace, name)
    }

    pub async fn call(&self, request: Request) -> Result<Response> {
        match self.transport.call(request).await? {
            Outcome::Unary(response) => Ok(response),
            Outcome::Watch(_) => Err(Status::internal("a watch answered a unary request")),
        }
    }

    async fn object(&self, request: Request) -> Result<Object> {
        match self.call(request).await? {
            Response::Object { object, .. } => Ok(object),
            Response::Value { .. } | Response::List(_) => Err(Status::internal("expected one stored object as the answer")),
        }
    }

    pub async fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Result<Object> {
        self.object(self.request(Verb::Get, resource, namespace, name)).await
    }

    pub async fn list(&self, resource: &'static Resource, namespace: &str, options: Options) -> Result<List> {
        let request = Request { options, ..self.request(Verb::List, resource, namespace, "") };
        match self.call(request).await? {
            Response::List(list) => Ok(list),
            Response::Object { .. } | Response::Value { .. } => Err(Status::internal("expected a list as the answer")),
        }
    }

    pub async fn watch(&self, resource: &'static Resource, namespace: &str, options: Options) -> Result<Events> {
        let request = Request { options, ..self.request(Verb::Watch, resource, namespace, "") };
        match self.transport.call(request).await? {
            Outcome::Watch(events) => Ok(events),
            Outcome::Unary(_) => Err(Status::internal("a unary answer to a watch")),
        }
    }

    pub async fn create(&self, resource: &'static Resource, namespace: &str, object: Value) -> Result<Object> {
        let request = Request { body: Body::Value(object), ..self.request(Verb::Create, resource, namespace, "") };
        self.object(request).await
    }

    /// PUT: `object` carries name and, for optimistic concurrency, `metadata.resourceVersion`.
    pub async fn update(&self, resource: &'static Resource, subresource: &str, object: Value) -> Result<Object> {
        let namespace = object.str_at(&["metadata", "namespace"]).to_string();
        let name = object.str_at(&["metadata", "name"]).to_string();
        let request = self.request(Verb::Update, resource, &namespace, &name);
        self.object(Request { subresource: subresource.into(), body: Body::Value(object), ..request }).await
    }

    pub async fn patch(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch_type: PatchType,
        patch: Value,
    ) -> Result<Object> {
        let request = self.request(Verb::Patch, resource, namespace, name);
        let patch_type = Some(patch_type);
        self.object(Request { subresource: subresource.into(), patch_type, body: Body::Value(patch), ..request }).await
    }

    /// DELETE with a `DeleteOptions` body such as `{"gracePeriodSeconds": 0, "preconditions": {"uid": …}}`.
    pub async fn delete(&self, resource: &'static Resource, namespace: &str, name: &str, options: Value) -> Result<()> {
        let request = Request { body: Body::Value(options), ..self.request(Verb::Delete, resource, namespace, name) };
        self.call(request).await.map(|_| ())
    }

    /// POST to a subresource (`binding`, `eviction`, `token`); the answer is often not a stored object.
    pub async fn create_sub(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        body: Value,
    ) -> Result<Response> {
        let request = self.request(Verb::Create, resource, namespace, name);
        self.call(Request { subresource: subresource.into(), body: Body::Value(body), ..request }).await
    }
}
