//! Pure: roles and bindings in, may this user do that out.
//!
//! Bindings are indexed by subject, so a question costs what the user is bound to, not what the cluster has. The cache
//! re-reads only objects whose revision changed. [`missing`] is the escalation check: which of these rules does the user not
//! hold already. Start at [`Rbac::authorize`].

use std::collections::HashMap;
use std::sync::Arc;

use super::{Attributes, Decision, quoted};
use crate::api::object::{Object, Revision};
use crate::api::request::User;
use crate::api::resource::{self, Resource};
use crate::api::value::Value;
use crate::server::strategy::Access;

/// `rbac.authorization.k8s.io/v1 PolicyRule`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub urls: Vec<String>,
}

/// Who a binding names. Service accounts are users with a long name; what they were is kept for messages.
#[derive(Clone, Debug)]
struct Subject {
    /// `u:<user>` or `g:<group>`.
    index: String,
    described: String,
}

#[derive(Debug)]
struct Binding {
    /// Empty for a ClusterRoleBinding.
    namespace: String,
    name: String,
    role_kind: String,
    role_name: String,
    subjects: Vec<Subject>,
}

/// Namespace (empty for ClusterRoles) and name of a role.
type RoleKey = (String, String);

/// A consistent view of all roles and bindings.
#[derive(Default)]
pub struct Rbac {
    pub revision: Revision,
    roles: Arc<HashMap<RoleKey, Arc<Vec<Rule>>>>,
    /// By subject index; cluster bindings first, each group in order of name.
    by_subject: Arc<HashMap<String, Vec<Arc<Binding>>>>,
}

impl Rule {
    pub fn from_value(v: &Value) -> Rule {
        let list = |key: &str| v.list_at(&[key]).iter().filter_map(Value::as_str).map(str::to_string).collect();
        Rule {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            urls: list("nonResourceURLs"),
        }
    }

    pub fn allows(&self, a: &Attributes) -> bool {
        if !has(&self.verbs, a.verb) {
            return false;
        }
        if !a.is_resource() {
            return self.urls.iter().any(|url| url_matches(url, a.path));
        }
        has(&self.groups, a.group)
            && self.resources.iter().any(|r| resource_matches(r, a))
            && (self.names.is_empty() || self.names.iter().any(|n| n == a.name))
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|x| x == "*" || x == wanted)
}

fn resource_matches(rule: &str, a: &Attributes) -> bool {
    match rule.split_once('/') {
        _ if rule == "*" => true,
        None => a.subresource.is_empty() && rule == a.resource,
        Some(("*", sub)) => !a.subresource.is_empty() && sub == a.subresource,
        Some((resource, sub)) => resource == a.resource && sub == a.subresource && !sub.is_empty(),
    }
}

fn url_matches(rule: &str, path: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => rule == path,
    }
}

/// The rules of a Role or ClusterRole.
pub fn rules(role: &Value) -> Vec<Rule> {
    role.list_at(&["rules"]).iter().map(Rule::from_value).collect()
}

impl Binding {
    fn from_value(v: &Value) -> Binding {
        let namespace = v.str_at(&["metadata", "namespace"]).to_string();
        let subjects = v.list_at(&["subjects"]).iter().filter_map(|s| Subject::from_value(s, &namespace)).collect();
        let text = |path: &[&str]| v.str_at(path).to_string();
        Binding {
            name: text(&["metadata", "name"]),
            role_kind: text(&["roleRef", "kind"]),
            role_name: text(&["roleRef", "name"]),
            namespace,
            subjects,
        }
    }

    fn role(&self) -> RoleKey {
        let namespace = if self.role_kind == "Role" { self.namespace.clone() } else { String::new() };
        (namespace, self.role_name.clone())
    }

    fn describe(&self, subject: &Subject) -> String {
        let (kind, name) = match self.namespace.as_str() {
            "" => ("ClusterRoleBinding", self.name.clone()),
            namespace => ("RoleBinding", format!("{}/{namespace}", self.name)),
        };
        format!("{kind} {} of {} {} to {}", quoted(&name), self.role_kind, quoted(&self.role_name), subject.described)
    }
}

impl Subject {
    fn from_value(v: &Value, binding_namespace: &str) -> Option<Subject> {
        let (kind, name) = (v.str_at(&["kind"]), v.str_at(&["name"]));
        match kind {
            "User" => Some(Subject { index: format!("u:{name}"), described: format!("User {}", quoted(name)) }),
            "Group" => Some(Subject { index: format!("g:{name}"), described: format!("Group {}", quoted(name)) }),
            "ServiceAccount" => {
                let own = v.str_at(&["namespace"]);
                let namespace = if own.is_empty() { binding_namespace } else { own };
                let shown = if own.is_empty() { name.to_string() } else { format!("{name}/{own}") };
                (!namespace.is_empty()).then(|| Subject {
                    index: format!("u:system:serviceaccount:{namespace}:{name}"),
                    described: format!("ServiceAccount {}", quoted(&shown)),
                })
            }
            _ => None,
        }
    }
}

impl Rbac {
    /// From trees, for tests and the cache.
    pub fn new<'a>(roles: impl Iterator<Item = &'a Value>, bindings: impl Iterator<Item = &'a Value>) -> Rbac {
        let roles = roles.map(|v| (role_key(v), Arc::new(rules(v)))).collect();
        Rbac::index(0, roles, bindings.map(|v| Arc::new(Binding::from_value(v))))
    }

    fn index(revision: Revision, roles: HashMap<RoleKey, Arc<Vec<Rule>>>, bindings: impl Iterator<Item = Arc<Binding>>) -> Rbac {
        let mut by_subject: HashMap<String, Vec<Arc<Binding>>> = HashMap::new();
        for binding in bindings {
            for subject in &binding.subjects {
                by_subject.entry(subject.index.clone()).or_default().push(binding.clone());
            }
        }
        Rbac { revision, roles: Arc::new(roles), by_subject: Arc::new(by_subject) }
    }

    /// Every binding of this user that counts in `namespace`, with the subject it was found by.
    fn bindings<'a>(&'a self, user: &User, namespace: &'a str) -> impl Iterator<Item = (&'a Binding, String)> + 'a {
        let mut keys: Vec<String> = user.groups.iter().map(|g| format!("g:{g}")).collect();
        keys.insert(0, format!("u:{}", user.name));
        keys.into_iter().flat_map(move |key| {
            let found = self.by_subject.get(&key).map(Vec::as_slice).unwrap_or(&[]);
            let here = found.iter().filter(move |b| b.namespace.is_empty() || (!namespace.is_empty() && b.namespace == namespace));
            here.map(move |b| (&**b, key.clone()))
        })
    }

    pub fn authorize(&self, user: &User, a: &Attributes) -> Decision {
        let mut missing: Vec<String> = Vec::new();
        for (binding, key) in self.bindings(user, if a.is_resource() { a.namespace } else { "" }) {
            match self.roles.get(&binding.role()) {
                Some(rules) if rules.iter().any(|rule| rule.allows(a)) => {
                    let subject = binding.subjects.iter().find(|s| s.index == key).expect("the index was made from it");
                    return Decision::allow(format!("RBAC: allowed by {}", binding.describe(subject)));
                }
                Some(_) => {}
                None => {
                    let kind = if binding.role_kind == "Role" { "role" } else { "clusterrole" };
                    let text = format!("{kind}.rbac.authorization.k8s.io {} not found", quoted(&binding.role_name));
                    if !missing.contains(&text) {
                        missing.push(text);
                    }
                }
            }
        }
        match missing.as_slice() {
            [] => Decision::no_opinion(""),
            [one] => Decision::no_opinion(format!("RBAC: {one}")),
            many => Decision::no_opinion(format!("RBAC: [{}]", many.join(", "))),
        }
    }

    /// All rules a user holds in a namespace (empty: cluster-wide ones only).
    pub fn rules_for(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (binding, _) in self.bindings(user, namespace) {
            if let Some(found) = self.roles.get(&binding.role()) {
                rules.extend(found.iter().cloned());
            }
        }
        rules
    }

    /// The rules behind a `roleRef`, if there is such a role.
    pub fn role(&self, namespace: &str, kind: &str, name: &str) -> Option<Arc<Vec<Rule>>> {
        let namespace = if kind == "Role" { namespace } else { "" };
        self.roles.get(&(namespace.to_string(), name.to_string())).cloned()
    }
}

/// The single-verb, single-resource parts of `wanted` that `held` does not cover: what a role write would escalate to.
pub fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted.iter().flat_map(break_down).filter(|part| !held.iter().any(|rule| covers(rule, part))).collect()
}

fn break_down(rule: &Rule) -> Vec<Rule> {
    let mut parts = Vec::new();
    for verb in &rule.verbs {
        let verbs = vec![verb.clone()];
        for group in &rule.groups {
            for resource in &rule.resources {
                let base = Rule { verbs: verbs.clone(), groups: vec![group.clone()], resources: vec![resource.clone()], ..Rule::default() };
                if rule.names.is_empty() {
                    parts.push(base);
                } else {
                    parts.extend(rule.names.iter().map(|n| Rule { names: vec![n.clone()], ..base.clone() }));
                }
            }
        }
        parts.extend(rule.urls.iter().map(|url| Rule { verbs: verbs.clone(), urls: vec![url.clone()], ..Rule::default() }));
    }
    parts
}

/// Whether `owner` grants all of `part`, which [`break_down`] made.
fn covers(owner: &Rule, part: &Rule) -> bool {
    let all = |held: &[String], wanted: &[String]| wanted.iter().all(|w| has(held, w));
    let resources = part.resources.iter().all(|w| {
        owner.resources.iter().any(|held| {
            held == "*" || held == w || matches!((held.split_once('/'), w.split_once('/')), (Some(("*", h)), Some((_, s))) if h == s)
        })
    });
    let names = owner.names.is_empty() || (!part.names.is_empty() && part.names.iter().all(|n| owner.names.contains(n)));
    let urls = part.urls.iter().all(|w| owner.urls.iter().any(|held| held == "*" || url_matches(held, w)));
    all(&owner.verbs, &part.verbs) && all(&owner.groups, &part.groups) && resources && names && urls
}

fn role_key(v: &Value) -> RoleKey {
    (v.str_at(&["metadata", "namespace"]).to_string(), v.str_at(&["metadata", "name"]).to_string())
}

/// Decoded roles and bindings by key, with the revision they were decoded at.
#[derive(Default)]
pub struct Cache {
    seen: Revision,
    roles: HashMap<RoleKey, (Revision, Arc<Vec<Rule>>)>,
    bindings: HashMap<RoleKey, (Revision, Arc<Binding>)>,
}

/// Which of the four resources hold roles, which bindings.
fn role_resources() -> [&'static Resource; 2] {
    [&resource::CLUSTERROLES, &resource::ROLES]
}
fn binding_resources() -> [&'static Resource; 2] {
    [&resource::CLUSTERROLEBINDINGS, &resource::ROLEBINDINGS]
}

/// The four resources a [`Cache`] is made of.
pub fn resources() -> impl Iterator<Item = &'static Resource> {
    role_resources().into_iter().chain(binding_resources())
}

impl Cache {
    /// A new view if `revision` is news; a cheap copy of `current` if no role or binding changed.
    pub fn refresh(&mut self, revision: Revision, access: &dyn Access, current: &Rbac) -> Option<Rbac> {
        if self.seen >= revision && self.seen > 0 {
            return None;
        }
        self.seen = revision;
        let role_objects: Vec<Object> = role_resources().iter().flat_map(|r| access.list(r, "")).collect();
        let binding_objects: Vec<Object> = binding_resources().iter().flat_map(|r| access.list(r, "")).collect();
        let roles_changed = update(&mut self.roles, &role_objects, |v| Arc::new(rules(v)));
        let bindings_changed = update(&mut self.bindings, &binding_objects, |v| Arc::new(Binding::from_value(v)));
        if !roles_changed && !bindings_changed {
            return Some(Rbac { revision, roles: current.roles.clone(), by_subject: current.by_subject.clone() });
        }
        let roles = self.roles.iter().map(|(key, (_, rules))| (key.clone(), rules.clone())).collect();
        let mut bindings: Vec<_> = self.bindings.values().map(|(_, b)| b.clone()).collect();
        bindings.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Some(Rbac::index(revision, roles, bindings.into_iter()))
    }
}

/// Brings `map` in line with `objects`, decoding only what changed; whether anything did.
fn update<T>(map: &mut HashMap<RoleKey, (Revision, T)>, objects: &[Object], decode: impl Fn(&Value) -> T) -> bool {
    let before = map.len();
    let mut changed = false;
    let mut present = std::collections::HashSet::with_capacity(objects.len());
    for object in objects {
        let key = (object.namespace().to_string(), object.name().to_string());
        if map.get(&key).is_none_or(|(revision, _)| *revision != object.revision) {
            map.insert(key.clone(), (object.revision, decode(&object.value())));
            changed = true;
        }
        present.insert(key);
    }
    if map.len() != objects.len() {
        map.retain(|key, _| present.contains(key));
    }
    changed || map.len() != before
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    fn rbac() -> Rbac {
        let roles = [
            value!({"metadata": {"name": "view"}, "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]}]}),
            value!({"metadata": {"name": "scaler"}, "rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*/scale"]}]}),
            value!({"metadata": {"name": "one"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["s"]}]}),
            value!({"metadata": {"name": "paths"}, "rules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/api/*"]}]}),
            value!({"metadata": {"name": "r", "namespace": "a"}, "rules": [{"verbs": ["create"], "apiGroups": ["apps"], "resources": ["deployments"]}]}),
        ];
        let bind = |name: &str, namespace: &str, kind: &str, role: &str, subject: Value| {
            let mut b = value!({"metadata": {"name": name}, "roleRef": {"kind": kind, "name": role}});
            if !namespace.is_empty() {
                b.set(&["metadata", "namespace"], namespace);
            }
            b.set(&["subjects"], vec![subject]);
            b
        };
        let bindings = [
            bind("b1", "a", "ClusterRole", "view", value!({"kind": "User", "name": "ann"})),
            bind("b2", "", "ClusterRole", "scaler", value!({"kind": "Group", "name": "ops"})),
            bind("b3", "a", "ClusterRole", "one", value!({"kind": "ServiceAccount", "name": "sa", "namespace": "b"})),
            bind("b4", "", "ClusterRole", "paths", value!({"kind": "Group", "name": "system:authenticated"})),
            bind("b5", "a", "Role", "r", value!({"kind": "User", "name": "ann"})),
            bind("b6", "a", "Role", "gone", value!({"kind": "User", "name": "eve"})),
        ];
        Rbac::new(roles.iter(), bindings.iter())
    }

    #[test]
    fn questions() {
        let user = |name: &str, groups: &[&str]| User {
            name: name.into(),
            groups: groups.iter().map(|g| g.to_string()).collect(),
            ..User::default()
        };
        let (ann, ops) = (user("ann", &[]), user("x", &["ops", "system:authenticated"]));
        let sa = User::service_account("b", "sa");
        fn on<'a>(verb: &'a str, group: &'a str, resource: &'a str, sub: &'a str, namespace: &'a str, name: &'a str) -> Attributes<'a> {
            Attributes { verb, group, resource, subresource: sub, namespace, name, ..Attributes::default() }
        }
        let cases = [
            (&ann, on("get", "", "pods", "", "a", "p"), true),
            (&ann, on("get", "", "pods", "log", "a", "p"), true),
            (&ann, on("get", "", "pods", "exec", "a", "p"), false),
            (&ann, on("get", "", "pods", "", "b", "p"), false),
            (&ann, on("list", "", "pods", "", "", ""), false),
            (&ann, on("create", "apps", "deployments", "", "a", ""), true),
            (&ops, on("patch", "apps", "deployments", "scale", "zz", "d"), true),
            (&ops, on("patch", "apps", "deployments", "", "zz", "d"), false),
            (&ops, Attributes::of_path("get", "/api/v1"), true),
            (&ops, Attributes::of_path("get", "/apis"), false),
            (&sa, on("get", "", "secrets", "", "a", "s"), true),
            (&sa, on("get", "", "secrets", "", "a", "t"), false),
            (&sa, on("list", "", "secrets", "", "a", ""), false),
        ];
        let rbac = rbac();
        for (user, attributes, want) in cases {
            assert_eq!(rbac.authorize(user, &attributes).allowed, want, "{} {attributes:?}", user.name);
        }
        let why = rbac.authorize(&ann, &on("get", "", "pods", "", "a", "p")).reason;
        assert_eq!(why, "RBAC: allowed by RoleBinding \"b1/a\" of ClusterRole \"view\" to User \"ann\"");
        let why = rbac.authorize(&user("eve", &[]), &on("get", "", "pods", "", "a", "p")).reason;
        assert_eq!(why, "RBAC: role.rbac.authorization.k8s.io \"gone\" not found");
    }

    #[test]
    fn escalation_is_what_is_not_held() {
        let rule = |verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]| {
            let own = |l: &[&str]| l.iter().map(|s| s.to_string()).collect::<Vec<_>>();
            Rule { verbs: own(verbs), groups: own(groups), resources: own(resources), names: own(names), urls: vec![] }
        };
        let held = [rule(&["get", "list"], &[""], &["pods", "*/status"], &[])];
        assert!(missing(&held, &[rule(&["get"], &[""], &["pods"], &["x"])]).is_empty());
        assert!(missing(&held, &[rule(&["get"], &[""], &["nodes/status"], &[])]).is_empty());
        assert_eq!(missing(&held, &[rule(&["get", "create"], &[""], &["pods"], &[])]), [rule(&["create"], &[""], &["pods"], &[])]);
        assert_eq!(missing(&held, &[rule(&["get"], &["", "apps"], &["pods"], &[])]), [rule(&["get"], &["apps"], &["pods"], &[])]);
        assert_eq!(missing(&[], &[rule(&["*"], &["*"], &["*"], &[])]).len(), 1);
    }
}
