//! Who is asking, and may they: the chain of authenticators and authorizers.
//!
//! [`Auth::authenticate`] turns a client certificate or bearer token into a [`User`]; [`Auth::authorize`] asks
//! `system:masters`, then the Node authorizer, then RBAC. Decisions are pure functions in `rbac`, `node` and `token`; this
//! file feeds them from the store's applied state. Refusals are worded in [`forbidden`] only.
//! Start at [`Auth`] and [`Attributes`].

pub mod impersonation;
pub mod node;
pub mod oidc;
pub mod rbac;
pub mod token;
pub mod x509;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

use crate::api::request::{Request, User, Verb};
use crate::api::resource::{self, Resource};
use crate::api::status::{Result, Status};
use crate::api::time::Time;
use crate::server::strategy::{Access, Cluster};
use crate::store::Store;

/// What authorizers look at. Borrowed: made per question.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    /// `get`, `list`, …; lower-case HTTP method for paths that are no resources.
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    /// Plural; empty if this is about a path.
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// Of a request that is not about a resource.
    pub path: &'a str,
    pub field_selector: &'a str,
}

impl<'a> Attributes<'a> {
    pub fn of_path(verb: &'a str, path: &'a str) -> Attributes<'a> {
        Attributes { verb, path, ..Attributes::default() }
    }

    /// Of a routed request. `connect_verb` is the verb of a [`Verb::Connect`] request: `get` or `create` by its method.
    pub fn of(request: &'a Request, connect_verb: &'a str) -> Attributes<'a> {
        let verb = match request.verb {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
            Verb::Connect => connect_verb,
        };
        // A namespace is authorized within itself.
        let is_namespace = request.resource.group.is_empty() && request.resource.plural == "namespaces";
        // A collection narrowed to one name is authorized as that name.
        let selector = request.options.field_selector.as_deref().unwrap_or("");
        let pinned = selector.split(',').find_map(|term| term.strip_prefix("metadata.name=")).map_or("", |n| n.trim_start_matches('='));
        Attributes {
            verb,
            group: request.resource.group,
            version: request.resource.version,
            resource: request.resource.plural,
            subresource: &request.subresource,
            namespace: if is_namespace { &request.name } else { &request.namespace },
            name: if request.name.is_empty() { pinned } else { &request.name },
            path: "",
            field_selector: request.options.field_selector.as_deref().unwrap_or(""),
        }
    }

    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }

    /// `pods` or `pods/log`.
    pub fn combined_resource(&self) -> String {
        if self.subresource.is_empty() { self.resource.to_string() } else { format!("{}/{}", self.resource, self.subresource) }
    }
}

/// What one authorizer, or all of them, say. There is no explicit refusal: nobody allowing is one.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Decision {
    pub allowed: bool,
    /// Who allowed it, or why nobody did; may be empty.
    pub reason: String,
}

impl Decision {
    pub fn allow(reason: impl Into<String>) -> Decision {
        Decision { allowed: true, reason: reason.into() }
    }
    pub fn no_opinion(reason: impl Into<String>) -> Decision {
        Decision { allowed: false, reason: reason.into() }
    }
}

/// What a connection or request brought to identify itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credentials<'a> {
    /// Leaf certificate of a connection whose chain the listener has verified against the client CA; DER.
    pub certificate: Option<&'a [u8]>,
    /// Value of the `Authorization` header.
    pub authorization: Option<&'a str>,
}

/// The authenticators and authorizers of one server.
pub struct Auth {
    cluster: Cluster,
    access: Arc<dyn Access>,
    signer: token::Signer,
    rbac: ArcSwap<rbac::Rbac>,
    refresh: Mutex<rbac::Cache>,
    /// Writes of roles and bindings that [`Auth::follow`] saw, and how many of them the last refresh took in.
    written: AtomicU64,
    taken_in: AtomicU64,
    followed: AtomicBool,
    /// By which mode of impersonation a requester was last allowed.
    modes: Mutex<HashMap<String, impersonation::Mode>>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the service account signing key")]
    SigningKey(#[source] token::KeyError),
}

impl Auth {
    pub fn new(cluster: &Cluster, access: Arc<dyn Access>) -> std::result::Result<Arc<Auth>, Error> {
        let signer = token::Signer::new(&cluster.service_account_key.private).map_err(Error::SigningKey)?;
        let rbac = ArcSwap::from_pointee(rbac::Rbac::default());
        Ok(Arc::new(Auth {
            cluster: cluster.clone(),
            access,
            signer,
            rbac,
            refresh: Mutex::default(),
            written: AtomicU64::new(1),
            taken_in: AtomicU64::new(0),
            followed: AtomicBool::new(false),
            modes: Mutex::default(),
        }))
    }

    /// The user behind a request. No credentials at all: anonymous. Bad ones: 401.
    pub fn authenticate(&self, credentials: &Credentials, now: Time) -> Result<User> {
        if let Some(user) = credentials.certificate.and_then(x509::user) {
            return Ok(user);
        }
        let bearer = credentials.authorization.map(str::trim).and_then(|header| {
            let (scheme, token) = header.split_once(' ')?;
            let token = token.trim();
            (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
        });
        match bearer {
            Some(token) => match self.verify_token(token, &[], now) {
                Ok(verified) => Ok(verified.user),
                Err(_) => Err(Status::unauthorized()),
            },
            None => Ok(anonymous()),
        }
    }

    /// Checks a service account token for one of `audiences` (none: the API server's own), and that what it is bound to
    /// still exists.
    pub fn verify_token(&self, token: &str, audiences: &[String], now: Time) -> std::result::Result<token::Verified, String> {
        let claims = self.signer.verify(token).ok_or("invalid bearer token")?;
        let own = [self.cluster.issuer.clone()];
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        token::check(&claims, &self.cluster.issuer, wanted, now, &*self.access).map_err(|why| format!("[invalid bearer token, {why}]"))
    }

    pub fn issue_token(&self, claims: &token::Claims) -> String {
        self.signer.sign(claims)
    }

    pub fn issuer(&self) -> &str {
        &self.cluster.issuer
    }

    /// The body of `/.well-known/openid-configuration`.
    pub fn openid_configuration(&self) -> crate::api::value::Value {
        oidc::configuration(&self.cluster)
    }

    /// The body of `/openid/v1/jwks`.
    pub fn jwks(&self) -> crate::api::value::Value {
        oidc::jwks(&self.signer)
    }

    pub fn authorize(&self, user: &User, attributes: &Attributes) -> Decision {
        if user.is_in("system:masters") {
            return Decision::allow("");
        }
        let node = node::authorize(user, attributes, &*self.access);
        if node.allowed {
            return node;
        }
        let rbac = self.rbac().authorize(user, attributes);
        if rbac.allowed || node.reason.is_empty() {
            return rbac;
        }
        let reasons: Vec<&str> = [node.reason.as_str(), rbac.reason.as_str()].into_iter().filter(|r| !r.is_empty()).collect();
        Decision::no_opinion(reasons.join("\n"))
    }

    /// 403 unless allowed.
    pub fn require(&self, user: &User, attributes: &Attributes) -> Result<()> {
        match self.authorize(user, attributes) {
            Decision { allowed: true, .. } => Ok(()),
            Decision { reason, .. } => Err(forbidden(user, attributes, &reason)),
        }
    }

    /// Watches roles and bindings, so that questions need not look for changes themselves. Until it is called they do.
    pub fn follow(self: &Arc<Auth>, store: &Store) {
        for resource in rbac::resources() {
            let (auth, store) = (self.clone(), store.clone());
            crate::task::spawn("rbac-follow", async move {
                while let Ok(mut watcher) = store.watch(&resource.prefix(), store.revision()) {
                    // What was written before the watch began counts, too.
                    auth.written.fetch_add(1, Ordering::AcqRel);
                    while watcher.next().await.is_ok() {
                        auth.written.fetch_add(1, Ordering::AcqRel);
                    }
                }
                auth.followed.store(false, Ordering::Release);
            });
        }
        self.followed.store(true, Ordering::Release);
    }

    /// Roles and bindings as of now (followed: as of a moment ago); decoded again only where one changed.
    pub fn rbac(&self) -> Arc<rbac::Rbac> {
        let written = self.written.load(Ordering::Acquire);
        if self.followed.load(Ordering::Acquire) && self.taken_in.load(Ordering::Acquire) == written {
            return self.rbac.load_full();
        }
        let revision = self.access.revision();
        let current = self.rbac.load_full();
        if current.revision == revision && revision > 0 {
            self.taken_in.fetch_max(written, Ordering::AcqRel);
            return current;
        }
        let mut cache = self.refresh.lock().expect("no panic under this lock");
        if let Some(fresh) = cache.refresh(revision, &*self.access, &current) {
            self.rbac.store(Arc::new(fresh));
        }
        // Only after the refresh: who asks meanwhile waits for it instead of deciding by what was.
        self.taken_in.fetch_max(written, Ordering::AcqRel);
        self.rbac.load_full()
    }

    pub fn access(&self) -> &dyn Access {
        &*self.access
    }
}

pub fn anonymous() -> User {
    User { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..User::default() }
}

/// The refusal, worded as upstream does.
pub fn forbidden(user: &User, attributes: &Attributes, reason: &str) -> Status {
    let suffix = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let (name, verb) = (quoted(&user.name), attributes.verb);
    if !attributes.is_resource() {
        let message = format!("forbidden: User {name} cannot {verb} path {}{suffix}", quoted(attributes.path));
        let mut status = Status::new(403, "Forbidden", message);
        status.details = Some(Box::default());
        return status;
    }
    let place = match attributes.namespace {
        "" => "at the cluster scope".to_string(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    let what = attributes.combined_resource();
    let group = attributes.group;
    let why = format!("User {name} cannot {verb} resource \"{what}\" in API group \"{group}\" {place}{suffix}");
    let qualified = resource::find(group, attributes.version, attributes.resource);
    match qualified {
        Some(row) => Status::forbidden(row, attributes.name, &why),
        None => forbidden_unknown(attributes, &why),
    }
}

/// For resources no row describes (authorization runs before routing finds that out).
fn forbidden_unknown(attributes: &Attributes, why: &str) -> Status {
    let (group, plural, name) = (attributes.group, attributes.resource, attributes.name);
    let qualified = if group.is_empty() { plural.to_string() } else { format!("{plural}.{group}") };
    let message = match name {
        "" => format!("{qualified} is forbidden: {why}"),
        name => format!("{qualified} \"{name}\" is forbidden: {why}"),
    };
    let mut status = Status::new(403, "Forbidden", message);
    let details = status.details.get_or_insert_default();
    (details.group, details.kind, details.name) = (group.to_string(), plural.to_string(), name.to_string());
    status
}

/// A string as Go's `%q` writes it.
pub fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// Whether `resource` is `plural` of `group`, whatever the version.
pub fn is_resource(resource: &Resource, group: &str, plural: &str) -> bool {
    resource.group == group && resource.plural == plural
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_worded_as_upstream_does() {
        let bob = User { name: "bob".into(), ..User::default() };
        let cases = [
            (Attributes::of_path("get", "/api"), "forbidden: User \"bob\" cannot get path \"/api\""),
            (
                Attributes {
                    verb: "get",
                    resource: "pods",
                    subresource: "log",
                    namespace: "d",
                    name: "x",
                    version: "v1",
                    ..Attributes::default()
                },
                "pods \"x\" is forbidden: User \"bob\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"d\"",
            ),
            (
                Attributes { verb: "list", resource: "things", group: "nope.example.com", version: "v1", ..Attributes::default() },
                "things.nope.example.com is forbidden: User \"bob\" cannot list resource \"things\" in API group \
                 \"nope.example.com\" at the cluster scope",
            ),
        ];
        for (attributes, want) in cases {
            assert_eq!(forbidden(&bob, &attributes, "").message, want);
        }
    }
}
