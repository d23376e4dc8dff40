//! One request and its answer, with no HTTP in it: what the front end builds from bytes and what in-process callers build
//! directly. Both pass the same pipeline (DESIGN 2.3).

use std::collections::BTreeMap;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;

use super::object::{Object, Revision};
use super::resource::Resource;
use super::status::Status;
use super::value::Value;

/// Who is asking. Made by authentication, or by wiring for in-process identities.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct User {
    pub name: String,
    pub uid: String,
    /// Includes `system:authenticated` or `system:unauthenticated`.
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// `system:serviceaccount:<namespace>:<name>` with its three groups.
    pub fn service_account(namespace: &str, name: &str) -> User {
        User {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            groups: vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}"), "system:authenticated".into()],
            ..User::default()
        }
    }

    /// The identity of one of our controllers.
    pub fn controller(name: &str) -> User {
        User::service_account("kube-system", name)
    }

    /// The kubelet of `node`.
    pub fn node(node: &str) -> User {
        let groups = vec!["system:nodes".into(), "system:authenticated".into()];
        User { name: format!("system:node:{node}"), groups, ..User::default() }
    }

    /// Bypasses authorization, as upstream's group does.
    pub fn master() -> User {
        let groups = vec!["system:masters".into(), "system:authenticated".into()];
        User { name: "system:admin".into(), groups, ..User::default() }
    }

    /// The User-Agent of requests this process makes as the user: what upstream's component of that identity calls itself.
    pub fn agent(&self) -> &'static str {
        match self.name.as_str() {
            // The API server's own requests.
            "system:admin" => "kube-apiserver",
            "system:kube-scheduler" => "kube-scheduler",
            "system:kube-controller-manager" => "kube-controller-manager",
            name if name.starts_with("system:serviceaccount:kube-system:") => "kube-controller-manager",
            name if name.starts_with("system:node:") => "kubelet",
            _ => "coracle",
        }
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    /// Subresources that are spliced to a kubelet: exec, attach, log, portforward, proxy.
    Connect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

/// A request body: bytes as they came (HTTP) or a tree (in-process).
#[derive(Clone, Debug, Default)]
pub enum Body {
    #[default]
    Empty,
    Json(Bytes),
    Yaml(Bytes),
    /// With the `k8s\0` envelope.
    Protobuf(Bytes),
    Value(Value),
}

/// The query parameters and delete options the generic verbs understand, as strings were parsed; absent ones are `None`.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    pub resource_version: Option<String>,
    pub resource_version_match: Option<String>,
    pub limit: Option<i64>,
    pub continue_token: Option<String>,
    pub timeout_seconds: Option<i64>,
    pub allow_watch_bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub dry_run: Vec<String>,
    pub field_manager: Option<String>,
    pub field_validation: Option<String>,
    pub force: Option<bool>,
    pub pretty: bool,
    // Delete options given in the query; a DeleteOptions body wins over them.
    pub grace_period_seconds: Option<i64>,
    pub propagation_policy: Option<String>,
    pub orphan_dependents: Option<bool>,
    /// Every query parameter as it came, in order: for connect subresources.
    pub raw: Vec<(String, String)>,
}

/// One request, after routing and authentication.
#[derive(Clone, Debug)]
pub struct Request {
    pub user: User,
    pub verb: Verb,
    pub resource: &'static Resource,
    /// Empty for cluster-scoped resources and for requests across all namespaces.
    pub namespace: String,
    /// Empty for collections.
    pub name: String,
    /// Empty for the resource itself; for `proxy` the first path element (`proxy`), the rest in `path`.
    pub subresource: String,
    pub path: String,
    pub options: Options,
    /// Of a PATCH.
    pub patch_type: Option<PatchType>,
    pub body: Body,
    pub user_agent: String,
}

impl Request {
    /// A request with nothing but its target; fill the rest with struct update syntax.
    pub fn new(user: &User, verb: Verb, resource: &'static Resource, namespace: &str, name: &str) -> Request {
        Request {
            user: user.clone(),
            verb,
            resource,
            namespace: namespace.to_string(),
            name: name.to_string(),
            subresource: String::new(),
            path: String::new(),
            options: Options::default(),
            patch_type: None,
            body: Body::Empty,
            user_agent: user.agent().to_string(),
        }
    }
}

/// The answer of one unary request.
#[derive(Debug)]
pub enum Response {
    /// A stored object; `created` makes it 201, `accepted` 202.
    Object { object: Object, code: u16 },
    /// A tree that is not stored: subresource kinds (Scale, TokenRequest), reviews, `Status` success, dry-run results.
    Value { value: Value, code: u16 },
    /// One page of a list, at one revision.
    List(List),
}

#[derive(Debug)]
pub struct List {
    pub resource: &'static Resource,
    pub items: Vec<Object>,
    pub revision: Revision,
    pub continue_token: String,
    pub remaining: Option<i64>,
}

/// One watch event.
#[derive(Clone, Debug)]
pub enum Event {
    Added(Object),
    Modified(Object),
    /// The last state, with the revision of the deletion.
    Deleted(Object),
    /// Nothing older than `revision` will follow. `initial_end` marks the end of the initial events.
    Bookmark {
        revision: Revision,
        initial_end: bool,
    },
    /// The watch cannot go on (410 and the like); the last event.
    Error(Status),
}

/// Watch events as they happen; ends when the watch times out.
pub type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// What a request's handler gives back besides an error.
pub enum Outcome {
    Unary(Response),
    Watch(Events),
}
