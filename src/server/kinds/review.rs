//! Questions that are answered and never stored: token reviews and the access review family.

use std::sync::Arc;

use crate::api::client::Future;
use crate::api::request::User;
use crate::api::resource::{self, Resource};
use crate::api::schema::{self, Shape};
use crate::api::status::{FieldError, Result, Status};
use crate::api::value::Value;
use crate::server::auth::rbac::Rule;
use crate::server::auth::{Attributes, Auth, node};
use crate::server::strategy::{Context, Strategy};
use crate::server::validation::shown_as;
use crate::value;

pub fn rows(auth: &Arc<Auth>) -> Vec<Box<dyn Strategy>> {
    let review = |resource, kind| Box::new(Review { auth: auth.clone(), resource, kind }) as Box<dyn Strategy>;
    vec![
        review(&resource::TOKENREVIEWS, Kind::Token),
        review(&resource::SELFSUBJECTREVIEWS, Kind::SelfSubject),
        review(&resource::SUBJECTACCESSREVIEWS, Kind::SubjectAccess),
        review(&resource::LOCALSUBJECTACCESSREVIEWS, Kind::LocalSubjectAccess),
        review(&resource::SELFSUBJECTACCESSREVIEWS, Kind::SelfSubjectAccess),
        review(&resource::SELFSUBJECTRULESREVIEWS, Kind::SelfSubjectRules),
    ]
}

#[derive(Clone, Copy)]
enum Kind {
    Token,
    SelfSubject,
    SubjectAccess,
    LocalSubjectAccess,
    SelfSubjectAccess,
    SelfSubjectRules,
}

struct Review {
    auth: Arc<Auth>,
    resource: &'static Resource,
    kind: Kind,
}

impl Strategy for Review {
    fn resource(&self) -> &'static Resource {
        self.resource
    }
    fn has_generation(&self) -> bool {
        false
    }
    fn review<'a>(&'a self, context: &'a Context, object: Value) -> Option<Future<'a, Result<Value>>> {
        Some(Box::pin(async move { self.answer(context, object) }))
    }
}

impl Review {
    fn answer(&self, context: &Context, mut object: Value) -> Result<Value> {
        let status = match self.kind {
            Kind::Token => self.token(context, &object)?,
            Kind::SelfSubject => {
                object.set(&["metadata", "creationTimestamp"], context.now.to_string());
                value!({"userInfo": user_value(&context.user)})
            }
            Kind::SubjectAccess | Kind::LocalSubjectAccess => {
                self.check_access(context, &object)?;
                self.access(&subject(&object), &object)
            }
            Kind::SelfSubjectAccess => {
                self.check_access(context, &object)?;
                self.access(&context.user, &object)
            }
            Kind::SelfSubjectRules => self.rules(&context.user, &object)?,
        };
        object.set(&["status"], status);
        Ok(object)
    }

    fn token(&self, context: &Context, object: &Value) -> Result<Value> {
        let token = object.str_at(&["spec", "token"]);
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let audiences: Vec<String> = object.list_at(&["spec", "audiences"]).iter().filter_map(Value::as_str).map(str::to_string).collect();
        Ok(match self.auth.verify_token(token, &audiences, context.now) {
            Ok(verified) => {
                let mut status = value!({"authenticated": true, "audiences": verified.audiences});
                status.set(&["user"], user_value(&verified.user));
                status
            }
            Err(why) => value!({"user": {}, "error": why}),
        })
    }

    /// Upstream's Invalid for these kinds names no kind.
    fn check_access(&self, context: &Context, object: &Value) -> Result<()> {
        let mut errors = Vec::new();
        let spec = object.get("spec").cloned().unwrap_or_default();
        let (resource, path) = (spec.at(&["resourceAttributes"]), spec.at(&["nonResourceAttributes"]));
        if resource.is_some() && path.is_some() {
            let why = "cannot be specified in combination with resourceAttributes";
            let shape = Shape::of(self.resource.type_ref()).member("spec").member("nonResourceAttributes");
            let shown = schema::show(shape, path.unwrap_or(&Value::Null));
            errors.push(shown_as(FieldError::invalid("spec.nonResourceAttributes", Value::Null, why), shown));
        }
        if resource.is_none() && path.is_none() {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.push(FieldError::invalid("spec.resourceAttributes", Value::Null, why));
        }
        let is_self = matches!(self.kind, Kind::SelfSubjectAccess);
        if !is_self && spec.str_at(&["user"]).is_empty() && spec.list_at(&["groups"]).is_empty() {
            errors.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
        }
        if matches!(self.kind, Kind::LocalSubjectAccess) {
            let namespace = spec.str_at(&["resourceAttributes", "namespace"]);
            if resource.is_some() && namespace != context.namespace {
                errors.push(FieldError::invalid("spec.resourceAttributes.namespace", namespace, "must match metadata.namespace"));
            }
            if let Some(path) = path {
                let shown = value!({"Path": path.str_at(&["path"]), "Verb": path.str_at(&["verb"])});
                errors.push(FieldError::invalid("spec.nonResourceAttributes", shown, "disallowed on this kind of request"));
            }
        }
        let raw = spec.str_at(&["resourceAttributes", "fieldSelector", "rawSelector"]);
        if !raw.is_empty() && !spec.list_at(&["resourceAttributes", "fieldSelector", "requirements"]).is_empty() {
            let why = "may not specified at the same time as requirements";
            errors.push(FieldError::invalid("spec.resourceAttributes.fieldSelector.rawSelector", raw, why));
        }
        errors.extend(self.check_metadata(object));
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid_kind("authorization.k8s.io", "", "", &errors)) }
    }

    /// Nothing but what the server itself puts there.
    fn check_metadata(&self, object: &Value) -> Option<FieldError> {
        let is_local = matches!(self.kind, Kind::LocalSubjectAccess);
        let metadata = object.get("metadata")?;
        let is_own = |key: &str| key == "managedFields" || (is_local && key == "namespace");
        let said = metadata.as_map()?.iter().any(|(key, value)| !is_own(key) && !value.is_null() && value.as_str() != Some(""));
        let why = if is_local { "must be empty except for namespace" } else { "must be empty" };
        let shown = || schema::show(Shape::of(self.resource.type_ref()).member("metadata"), metadata);
        said.then(|| shown_as(FieldError::invalid("metadata", Value::Null, why), shown()))
    }

    fn access(&self, user: &User, object: &Value) -> Value {
        let empty = Value::map();
        let decision = match object.at(&["spec", "nonResourceAttributes"]) {
            Some(path) => self.auth.authorize(user, &Attributes::of_path(path.str_at(&["verb"]), path.str_at(&["path"]))),
            None => {
                let r = object.at(&["spec", "resourceAttributes"]).unwrap_or(&empty);
                let text = |key: &str| r.str_at(&[key]);
                let selector = field_selector(r);
                self.auth.authorize(
                    user,
                    &Attributes {
                        verb: text("verb"),
                        group: text("group"),
                        version: text("version"),
                        resource: text("resource"),
                        subresource: text("subresource"),
                        namespace: text("namespace"),
                        name: text("name"),
                        path: "",
                        field_selector: &selector,
                    },
                )
            }
        };
        let mut status = value!({"allowed": decision.allowed});
        if !decision.reason.is_empty() {
            status.set(&["reason"], decision.reason);
        }
        status
    }

    fn rules(&self, user: &User, object: &Value) -> Result<Value> {
        let namespace = object.str_at(&["spec", "namespace"]);
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let rules = if user.is_in("system:masters") {
            let all = || vec!["*".to_string()];
            vec![
                Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() },
                Rule { verbs: all(), urls: all(), ..Rule::default() },
            ]
        } else {
            self.auth.rbac().rules_for(user, namespace)
        };
        let mut status = value!({"incomplete": false});
        let (paths, resources): (Vec<&Rule>, Vec<&Rule>) = rules.iter().partition(|r| !r.urls.is_empty());
        let resource_rules: Vec<Value> = resources
            .iter()
            .map(|r| {
                let mut v = value!({"verbs": r.verbs, "apiGroups": r.groups, "resources": r.resources});
                if !r.names.is_empty() {
                    v.set(&["resourceNames"], r.names.clone());
                }
                v
            })
            .collect();
        status.set(&["resourceRules"], resource_rules);
        let path_rules: Vec<Value> = paths.iter().map(|r| value!({"verbs": r.verbs, "nonResourceURLs": r.urls})).collect();
        status.set(&["nonResourceRules"], path_rules);
        if node::node_of(user).is_some() {
            status.set(&["incomplete"], true);
            status.set(&["evaluationError"], "node authorizer does not support user rule resolution");
        }
        Ok(status)
    }
}

fn field_selector(resource: &Value) -> String {
    let raw = resource.str_at(&["fieldSelector", "rawSelector"]);
    if !raw.is_empty() {
        return raw.to_string();
    }
    let requirements = resource.list_at(&["fieldSelector", "requirements"]).iter();
    let exact = requirements.filter(|r| r.str_at(&["operator"]) == "In" && r.list_at(&["values"]).len() == 1);
    let terms: Vec<String> =
        exact.map(|r| format!("{}={}", r.str_at(&["key"]), r.list_at(&["values"])[0].as_str().unwrap_or(""))).collect();
    terms.join(",")
}

/// The user a SubjectAccessReview asks about.
fn subject(object: &Value) -> User {
    let texts = |v: &[Value]| v.iter().filter_map(Value::as_str).map(str::to_string).collect::<Vec<_>>();
    let extra = object.map_at(&["spec", "extra"]).into_iter().flat_map(|m| m.iter());
    User {
        name: object.str_at(&["spec", "user"]).to_string(),
        uid: object.str_at(&["spec", "uid"]).to_string(),
        groups: texts(object.list_at(&["spec", "groups"])),
        extra: extra.map(|(key, values)| (key.to_string(), texts(values.as_list().unwrap_or(&[])))).collect(),
    }
}

/// `authentication.k8s.io/v1 UserInfo`.
pub fn user_value(user: &User) -> Value {
    let mut v = value!({"username": user.name});
    if !user.uid.is_empty() {
        v.set(&["uid"], user.uid.as_str());
    }
    if !user.groups.is_empty() {
        v.set(&["groups"], user.groups.clone());
    }
    for (key, values) in &user.extra {
        v.set(&["extra", key], values.clone());
    }
    v
}
