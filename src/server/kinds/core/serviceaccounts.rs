//! ServiceAccounts and the tokens they ask for.

use std::sync::Arc;

use crate::api::client::Future;
use crate::api::object::Object;
use crate::api::request::Response;
use crate::api::resource::{self, Resource};
use crate::api::status::{FieldError, Result, Status};
use crate::api::time::Time;
use crate::api::value::Value;
use crate::server::admission::service_account::ENFORCE;
use crate::server::auth::Auth;
use crate::server::auth::token::{Claims, EXPIRATION_FOR_POD_TOKENS, Ref};
use crate::server::strategy::{Context, Strategy};
use crate::value;

pub struct ServiceAccounts {
    pub auth: Arc<Auth>,
}

impl Strategy for ServiceAccounts {
    fn resource(&self) -> &'static Resource {
        &resource::SERVICEACCOUNTS
    }
    fn warnings(&self, _: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        let annotated = |o: &Value| o.at(&["metadata", "annotations", ENFORCE]).is_some();
        let is_new = annotated(object) && !old.is_some_and(annotated);
        let why = "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
        is_new.then(|| format!("metadata.annotations[{ENFORCE}]: {why}")).into_iter().collect()
    }
    fn prepare_create(&self, _: &Context, object: &mut Value) -> Result<()> {
        clean_secrets(object);
        Ok(())
    }
    fn prepare_update(&self, _: &Context, new: &mut Value, _: &Value) -> Result<()> {
        clean_secrets(new);
        Ok(())
    }
    fn returns_deleted(&self) -> bool {
        true
    }
    fn default_subresource(&self, _: &str, body: &mut Value) {
        if body.at(&["spec", "expirationSeconds"]).is_none() {
            body.set(&["spec", "expirationSeconds"], DEFAULT_SECONDS);
        }
    }
    fn create_subresource<'a>(&'a self, context: &'a Context, body: Value) -> Option<Future<'a, Result<Response>>> {
        (context.subresource == "token").then(|| -> Future<'a, Result<Response>> { Box::pin(async move { self.token(context, body) }) })
    }
}

/// Of the secrets an account lists, only names count.
fn clean_secrets(account: &mut Value) {
    for secret in account.get_mut("secrets").and_then(Value::as_list_mut).into_iter().flatten() {
        *secret = value!({"name": secret.str_at(&["name"])});
    }
}

const DEFAULT_SECONDS: i64 = 3600;
/// What the projected volume of the ServiceAccount plugin asks for: such a token lives on for a year.
const WARNED_SECONDS: i64 = 3607;

fn invalid(name: &str, error: FieldError) -> Status {
    Status::invalid_kind("authentication.k8s.io", "TokenRequest", name, &[error])
}

impl ServiceAccounts {
    fn token(&self, context: &Context, mut request: Value) -> Result<Response> {
        let account = context.access.get(&resource::SERVICEACCOUNTS, &context.namespace, &context.name);
        let Some(account) = account else { return Err(Status::not_found(&resource::SERVICEACCOUNTS, &context.name)) };
        let named = request.str_at(&["metadata", "name"]);
        if !named.is_empty() && named != context.name {
            let why = "must match the service account name if specified";
            return Err(invalid(&context.name, FieldError::invalid("metadata.name", named, why)));
        }
        if request.list_at(&["spec", "audiences"]).is_empty() {
            request.set(&["spec", "audiences"], vec![self.auth.issuer()]);
        }
        let seconds = request.i64_at(&["spec", "expirationSeconds"]).unwrap_or(DEFAULT_SECONDS);
        request.set(&["spec", "expirationSeconds"], seconds);
        check_seconds(seconds)?;
        let mut claims = Claims {
            issuer: self.auth.issuer().to_string(),
            audiences: request.list_at(&["spec", "audiences"]).iter().filter_map(Value::as_str).map(str::to_string).collect(),
            issued_at: context.now.seconds,
            not_before: context.now.seconds,
            expires: context.now.seconds + seconds,
            id: random_uuid(),
            namespace: context.namespace.clone(),
            service_account: Ref { name: context.name.clone(), uid: account.uid().to_string() },
            ..Claims::default()
        };
        let expiration = Time::from_seconds(claims.expires);
        if let Some(bound) = request.at(&["spec", "boundObjectRef"]).cloned() {
            bind(context, &bound, &mut claims)?;
            // Clients that never read the file again keep working; the expiry they are told is the one asked for.
            if seconds == WARNED_SECONDS && claims.pod.is_some() {
                claims.expires = context.now.seconds + EXPIRATION_FOR_POD_TOKENS;
            }
        }
        request.set(&["metadata", "name"], context.name.as_str());
        request.set(&["metadata", "namespace"], context.namespace.as_str());
        request.set(&["metadata", "uid"], account.uid());
        request.set(&["metadata", "creationTimestamp"], context.now.to_string());
        request.set(&["status"], value!({"token": self.auth.issue_token(&claims), "expirationTimestamp": expiration.to_string()}));
        Ok(Response::Value { value: request, code: 201 })
    }
}

fn check_seconds(seconds: i64) -> Result<()> {
    let why = match seconds {
        ..600 => "may not specify a duration less than 10 minutes",
        4_294_967_297.. => "may not specify a duration larger than 2^32 seconds",
        600..=4_294_967_296 => return Ok(()),
    };
    Err(invalid("", FieldError::invalid("spec.expirationSeconds", seconds, why)))
}

/// Finds the pod, secret or node the token is to die with.
fn bind(context: &Context, bound: &Value, claims: &mut Claims) -> Result<()> {
    let (kind, name) = (bound.str_at(&["kind"]), bound.str_at(&["name"]));
    let find = |resource: &'static Resource, namespace: &str| -> Result<Object> {
        if name.is_empty() {
            return Err(Status::bad_request("Name parameter required."));
        }
        context.access.get(resource, namespace, name).ok_or_else(|| Status::not_found(resource, name))
    };
    let reference = |o: &Object| Some(Ref { name: name.to_string(), uid: o.uid().to_string() });
    // Of the core group any version will do.
    let version = bound.str_at(&["apiVersion"]);
    let object = match (if version.contains('/') { version } else { "" }, kind) {
        ("", "Pod") => {
            let pod = find(&resource::PODS, &context.namespace)?;
            if pod.str_at(&["spec", "serviceAccountName"]) != context.name {
                let account = &context.name;
                let why = format!("cannot bind token for serviceaccount \"{account}\" to pod running with different serviceaccount name.");
                return Err(Status::bad_request(why));
            }
            claims.pod = reference(&pod);
            let node = pod.str_at(&["spec", "nodeName"]).to_string();
            let uid = context.access.get(&resource::NODES, "", &node).map(|n| n.uid().to_string());
            claims.node = uid.map(|uid| Ref { name: node, uid });
            pod
        }
        ("", "Secret") => {
            let secret = find(&resource::SECRETS, &context.namespace)?;
            claims.secret = reference(&secret);
            secret
        }
        ("", "Node") => {
            let node = find(&resource::NODES, "")?;
            claims.node = reference(&node);
            node
        }
        (_, kind) => {
            let shown = match version.split_once('/') {
                Some((group, version)) => format!("{group}/{version}, Kind={kind}"),
                None => format!("/{version}, Kind={kind}"),
            };
            return Err(Status::bad_request(format!("cannot bind token to object of type {shown}")));
        }
    };
    let wanted = bound.str_at(&["uid"]);
    if !wanted.is_empty() && wanted != object.uid() {
        let why = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and \
             then recreated"
        );
        let message = format!("Operation cannot be fulfilled on {kind} \"{name}\": {why}");
        let mut status = Status::new(409, "Conflict", message);
        let details = status.details.get_or_insert_default();
        (details.kind, details.name) = (kind.to_string(), name.to_string());
        return Err(status);
    }
    Ok(())
}

/// A version 4 UUID.
pub fn random_uuid() -> String {
    let mut b = [0u8; 16];
    getrandom::fill(&mut b).expect("the kernel gives randomness");
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let hex: String = b.iter().map(|x| format!("{x:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
