//! The four RBAC kinds. Nobody hands out what they do not hold: the escalation check runs on every write of a role or
//! binding, before validation, as upstream's policy-based storage does.

use std::sync::Arc;

use crate::api::resource::{self, Resource};
use crate::api::status::{FieldError, Result, Status};
use crate::api::time::Time;
use crate::api::value::Value;
use crate::server::auth::rbac::{self, Rule};
use crate::server::auth::{Attributes, Auth, quoted};
use crate::server::cursor;
use crate::server::strategy::{Column, Context, NameRule, Strategy};
use crate::server::{table, validation};

pub fn rows(auth: &Arc<Auth>) -> Vec<Box<dyn Strategy>> {
    vec![
        Box::new(Roles { auth: auth.clone(), resource: &resource::ROLES }),
        Box::new(Roles { auth: auth.clone(), resource: &resource::CLUSTERROLES }),
        Box::new(Bindings { auth: auth.clone(), resource: &resource::ROLEBINDINGS }),
        Box::new(Bindings { auth: auth.clone(), resource: &resource::CLUSTERROLEBINDINGS }),
    ]
}

const GROUP: &str = "rbac.authorization.k8s.io";

/// Roles and ClusterRoles.
pub struct Roles {
    auth: Arc<Auth>,
    resource: &'static Resource,
}

impl Strategy for Roles {
    fn resource(&self) -> &'static Resource {
        self.resource
    }
    fn prepare_create(&self, context: &Context, object: &mut Value) -> Result<()> {
        self.check_escalation(context, object, None)
    }
    fn prepare_update(&self, context: &Context, new: &mut Value, old: &Value) -> Result<()> {
        self.check_escalation(context, new, Some(old))
    }
    fn validate(&self, _: &Context, role: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (i, rule) in role.list_at(&["rules"]).iter().enumerate() {
            check_rule(&mut errors, &format!("rules[{i}]"), rule, self.resource.namespaced);
        }
        if let Some(aggregation) = role.at(&["aggregationRule"]) {
            let selectors = aggregation.list_at(&["clusterRoleSelectors"]);
            let at = "aggregationRule.clusterRoleSelectors";
            if selectors.is_empty() {
                let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
                errors.push(FieldError::required(at, why));
            }
            for (i, selector) in selectors.iter().enumerate() {
                let at = format!("{at}[{i}]");
                let before = errors.len();
                validation::label_selector(&mut errors, &at, Some(selector));
                if errors.len() > before {
                    errors.push(FieldError::invalid(at, Value::Null, "invalid label selector."));
                }
            }
        }
        errors
    }
    fn create_on_update(&self) -> bool {
        true
    }
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }
    fn columns(&self) -> &'static [Column] {
        const { &[Column::NAME, Column::new("Created At", "date")] }
    }
    fn row(&self, object: &Value, _: Time) -> Vec<Value> {
        let text = |path: &[&str]| object.str_at(path).into();
        vec![text(&["metadata", "name"]), text(&["metadata", "creationTimestamp"])]
    }
}

impl Roles {
    fn check_escalation(&self, context: &Context, role: &Value, old: Option<&Value>) -> Result<()> {
        let name = role.str_at(&["metadata", "name"]);
        if old.is_some_and(|old| rbac::rules(old) == rbac::rules(role) && old.get("aggregationRule") == role.get("aggregationRule")) {
            return Ok(());
        }
        if held(&self.auth, context, "escalate", self.resource.plural, &context.namespace, name) {
            return Ok(());
        }
        let mut wanted = rbac::rules(role);
        if role.at(&["aggregationRule"]).is_some() {
            // The rules of whoever matches the selectors in future: all there are.
            let all = || vec!["*".to_string()];
            wanted = vec![
                Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() },
                Rule { verbs: all(), urls: all(), ..Rule::default() },
            ];
        }
        refuse_missing(&self.auth, context, self.resource, name, &wanted)
    }
}

/// RoleBindings and ClusterRoleBindings.
pub struct Bindings {
    auth: Arc<Auth>,
    resource: &'static Resource,
}

impl Strategy for Bindings {
    fn resource(&self) -> &'static Resource {
        self.resource
    }
    fn default(&self, object: &mut Value) {
        if object.str_at(&["roleRef", "apiGroup"]).is_empty() {
            object.set(&["roleRef", "apiGroup"], GROUP);
        }
        for subject in object.get_mut("subjects").and_then(Value::as_list_mut).into_iter().flatten() {
            let named = matches!(subject.str_at(&["kind"]), "User" | "Group");
            if named && subject.str_at(&["apiGroup"]).is_empty() {
                subject.set(&["apiGroup"], GROUP);
            }
        }
    }
    fn prepare_create(&self, context: &Context, object: &mut Value) -> Result<()> {
        self.check_escalation(context, object, None)
    }
    fn prepare_update(&self, context: &Context, new: &mut Value, old: &Value) -> Result<()> {
        self.check_escalation(context, new, Some(old))
    }
    fn validate(&self, _: &Context, binding: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let role = |key: &str| binding.str_at(&["roleRef", key]);
        validation::one_of(&mut errors, "roleRef.apiGroup", role("apiGroup"), &[GROUP]);
        let kinds: &[&str] = if self.resource.namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
        validation::one_of(&mut errors, "roleRef.kind", role("kind"), kinds);
        match role("name") {
            "" => errors.push(FieldError::required("roleRef.name", "")),
            name => validation::invalid(&mut errors, "roleRef.name", name, validation::path_segment(name, false)),
        }
        for (i, subject) in binding.list_at(&["subjects"]).iter().enumerate() {
            check_subject(&mut errors, &format!("subjects[{i}]"), subject, self.resource.namespaced);
        }
        errors
    }
    fn validate_update(&self, context: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(context, new);
        if new.get("roleRef") != old.get("roleRef") {
            let type_ref = self.resource().type_ref();
            errors.extend(cursor::validate(type_ref, new, |at| at.get("roleRef").invalid("cannot change roleRef")));
        }
        errors
    }
    fn create_on_update(&self) -> bool {
        true
    }
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }
    fn columns(&self) -> &'static [Column] {
        const {
            &[
                Column::NAME,
                Column::new("Role", "string"),
                Column::AGE,
                Column::wide("Users", "string"),
                Column::wide("Groups", "string"),
                Column::wide("ServiceAccounts", "string"),
            ]
        }
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        let subjects = object.list_at(&["subjects"]);
        let of = |kind: &str| {
            let names = subjects.iter().filter(|s| s.str_at(&["kind"]) == kind).map(|s| match s.str_at(&["namespace"]) {
                namespace if kind == "ServiceAccount" => format!("{namespace}/{}", s.str_at(&["name"])),
                _ => s.str_at(&["name"]).to_string(),
            });
            Value::from(names.collect::<Vec<_>>().join(", "))
        };
        let role = format!("{}/{}", object.str_at(&["roleRef", "kind"]), object.str_at(&["roleRef", "name"]));
        let name = object.str_at(&["metadata", "name"]);
        vec![name.into(), role.into(), table::age(object, now).into(), of("User"), of("Group"), of("ServiceAccount")]
    }
}

impl Bindings {
    fn check_escalation(&self, context: &Context, binding: &Value, old: Option<&Value>) -> Result<()> {
        if old.is_some_and(|old| old.get("roleRef") == binding.get("roleRef") && old.get("subjects") == binding.get("subjects")) {
            return Ok(());
        }
        let (kind, role) = (binding.str_at(&["roleRef", "kind"]), binding.str_at(&["roleRef", "name"]));
        let plural = if kind == "Role" { "roles" } else { "clusterroles" };
        if held(&self.auth, context, "bind", plural, &context.namespace, role) {
            return Ok(());
        }
        let Some(rules) = self.auth.rbac().role(&context.namespace, kind, role) else {
            let row: &'static Resource = if kind == "Role" { &resource::ROLES } else { &resource::CLUSTERROLES };
            return Err(Status::not_found(row, role));
        };
        refuse_missing(&self.auth, context, self.resource, binding.str_at(&["metadata", "name"]), &rules)
    }
}

fn held(auth: &Auth, context: &Context, verb: &str, plural: &str, namespace: &str, name: &str) -> bool {
    let question = Attributes { verb, group: GROUP, version: "v1", resource: plural, namespace, name, ..Attributes::default() };
    auth.authorize(&context.user, &question).allowed
}

fn refuse_missing(auth: &Auth, context: &Context, resource: &'static Resource, name: &str, wanted: &[Rule]) -> Result<()> {
    let held = auth.rbac().rules_for(&context.user, &context.namespace);
    let missing = rbac::missing(&held, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let user = &context.user;
    let groups: Vec<String> = user.groups.iter().map(|g| quoted(g)).collect();
    let rules: Vec<String> = missing.iter().map(show_rule).collect();
    let (name_shown, groups, rules) = (quoted(&user.name), groups.join(" "), rules.join("\n"));
    let why = format!("user {name_shown} (groups=[{groups}]) is attempting to grant RBAC permissions not currently held:\n{rules}");
    Err(Status::forbidden(resource, name, &why))
}

/// `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get"]}`
fn show_rule(rule: &Rule) -> String {
    let mut parts = Vec::new();
    let mut part = |label: &str, list: &[String]| {
        if !list.is_empty() {
            let quoted: Vec<String> = list.iter().map(|s| quoted(s)).collect();
            parts.push(format!("{label}:[{}]", quoted.join(" ")));
        }
    };
    part("APIGroups", &rule.groups);
    part("Resources", &rule.resources);
    part("ResourceNames", &rule.names);
    part("NonResourceURLs", &rule.urls);
    part("Verbs", &rule.verbs);
    format!("{{{}}}", parts.join(", "))
}

fn check_rule(errors: &mut Vec<FieldError>, at: &str, rule: &Value, namespaced: bool) {
    let list = |key: &str| rule.list_at(&[key]);
    if list("verbs").is_empty() {
        errors.push(FieldError::required(format!("{at}.verbs"), "verbs must contain at least one value"));
    }
    if !list("nonResourceURLs").is_empty() {
        let urls = format!("{at}.nonResourceURLs");
        if namespaced {
            let why = "namespaced rules cannot apply to non-resource URLs";
            errors.push(FieldError::invalid(urls.clone(), list("nonResourceURLs").to_vec(), why));
        }
        if !list("apiGroups").is_empty() || !list("resources").is_empty() || !list("resourceNames").is_empty() {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            errors.push(FieldError::invalid(urls, list("nonResourceURLs").to_vec(), why));
        }
        return;
    }
    if list("apiGroups").is_empty() {
        errors.push(FieldError::required(format!("{at}.apiGroups"), "resource rules must supply at least one api group"));
    }
    if list("resources").is_empty() {
        errors.push(FieldError::required(format!("{at}.resources"), "resource rules must supply at least one resource"));
    }
}

fn check_subject(errors: &mut Vec<FieldError>, at: &str, subject: &Value, in_namespace: bool) {
    let text = |key: &str| subject.str_at(&[key]);
    let name = text("name");
    if name.is_empty() {
        errors.push(FieldError::required(format!("{at}.name"), ""));
    }
    match text("kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                validation::invalid(errors, format_args!("{at}.name"), name, validation::subdomain(name));
            }
            validation::one_of(errors, format_args!("{at}.apiGroup"), text("apiGroup"), &[""]);
            if !in_namespace && text("namespace").is_empty() {
                errors.push(FieldError::required(format!("{at}.namespace"), ""));
            }
        }
        "User" | "Group" => validation::one_of(errors, format_args!("{at}.apiGroup"), text("apiGroup"), &[GROUP]),
        other => validation::one_of(errors, format_args!("{at}.kind"), other, &["ServiceAccount", "User", "Group"]),
    }
}
