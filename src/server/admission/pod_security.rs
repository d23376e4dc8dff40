//! Pods keep to the Pod Security Standard their namespace's labels ask for; what makes pods is warned about it.
//!
//! `pod-security.kubernetes.io/{enforce,audit,warn}` with `-version` each. Labels must make sense, and who asks a namespace for
//! more than before hears which of its pods would not pass. What is to be audited is checked as a label and has nowhere to go yet.

mod checks;

use std::collections::{BTreeMap, HashSet};

use crate::api::object::Object;
use crate::api::resource;
use crate::api::status::{FieldError, Result, Status};
use crate::api::value::Value;
use crate::server::strategy::{Context, Operation, Plugin};
use checks::{Level, Pod, Standard, Version};

pub struct PodSecurity;

/// Pods of a namespace that are looked at when its labels change.
const LOOKED_AT_MAX: usize = 3000;

/// Subresources of pods that leave their specs alone.
const HARMLESS: [&str; 8] = ["attach", "binding", "eviction", "exec", "log", "portforward", "proxy", "status"];

impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn validate(&self, context: &Context, object: &Value, old: Option<&Value>) -> Result<()> {
        if !matches!(context.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        match (context.resource.group, context.resource.plural) {
            ("", "namespaces") if context.is_main() => namespace(context, object, old),
            ("", "pods") if !HARMLESS.contains(&context.subresource.as_str()) => pod(context, object, old),
            (group, plural) if context.is_main() => {
                if let Some(template) = template(group, plural).and_then(|path| object.at(path)) {
                    warn(context, policy_of(context).warn, template);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Where a kind has the template of its pods.
fn template(group: &str, plural: &str) -> Option<&'static [&'static str]> {
    match (group, plural) {
        ("", "podtemplates") => Some(&["template"]),
        ("", "replicationcontrollers") | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets") | ("batch", "jobs") => {
            Some(&["spec", "template"])
        }
        ("batch", "cronjobs") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

// --- labels

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policy {
    enforce: Standard,
    warn: Standard,
}

const FREE: Standard = Standard { level: Level::Privileged, version: Version::Latest };

/// The policy, and what is wrong with the labels. What makes no sense is enforced as the strictest there is, and not warned of.
fn policy<'a>(label: impl Fn(&str) -> Option<&'a str>) -> (Policy, Vec<FieldError>) {
    let mut errors = Vec::new();
    let mut standard = |mode: &str, otherwise: Level| {
        let mut standard = FREE;
        let (level, version) = (format!("pod-security.kubernetes.io/{mode}"), format!("pod-security.kubernetes.io/{mode}-version"));
        let mut refuse = |key: &str, text: &str, why: &str| errors.push(FieldError::invalid(format!("metadata.labels[{key}]"), text, why));
        if let Some(text) = label(&level) {
            standard.level = Level::parse(text).unwrap_or_else(|| {
                refuse(&level, text, "must be one of privileged, baseline, restricted");
                otherwise
            });
        }
        if let Some(text) = label(&version) {
            standard.version = Version::parse(text).unwrap_or_else(|| {
                refuse(&version, text, "must be \"latest\" or \"v1.x\"");
                Version::Latest
            });
        }
        standard
    };
    let enforce = standard("enforce", Level::Restricted);
    standard("audit", Level::Privileged);
    let warn = standard("warn", Level::Privileged);
    (Policy { enforce, warn }, errors)
}

fn labelled(object: &Value) -> (Policy, Vec<FieldError>) {
    let labels = object.map_at(&["metadata", "labels"]);
    policy(|key| labels?.get(key)?.as_str())
}

/// What the request's namespace asks for.
fn policy_of(context: &Context) -> Policy {
    let namespace = context.access.get(&resource::NAMESPACES, "", &context.namespace);
    let labels = namespace.as_ref().map(Object::labels).unwrap_or_default();
    policy(|key| labels.iter().find(|(k, _)| *k == key).map(|(_, text)| *text)).0
}

// --- pods

fn pod(context: &Context, pod: &Value, old: Option<&Value>) -> Result<()> {
    let policy = policy_of(context);
    let is_free = policy.enforce.level == Level::Privileged && policy.warn.level == Level::Privileged;
    if is_free || old.is_some_and(|old| !is_significant(pod, old)) {
        return Ok(());
    }
    let found = checks::violations(policy.enforce, &Pod::of(pod));
    if !found.is_empty() {
        let name = pod.str_at(&["metadata", "name"]);
        let why = format!("violates PodSecurity \"{}\": {}", policy.enforce, checks::in_detail(&found));
        return Err(Status::forbidden(context.resource, name, &why));
    }
    warn(context, policy.warn, pod);
    Ok(())
}

fn warn(context: &Context, standard: Standard, pod: &Value) {
    let found = checks::violations(standard, &Pod::of(pod));
    if !found.is_empty() {
        context.warn(format!("would violate PodSecurity \"{standard}\": {}", checks::in_detail(&found)));
    }
}

/// Whether a change touches what the standards are about; of a pod's spec little can change at all.
fn is_significant(new: &Value, old: &Value) -> bool {
    let annotation = |pod: &Value, key: &str| pod.str_at(&["metadata", "annotations", key]).to_string();
    let differs = |key: &str| annotation(new, key) != annotation(old, key);
    let changed = |is: &Value, was: &Value| {
        let name = is.str_at(&["name"]);
        is.at(&["image"]) != was.at(&["image"]) || differs(&format!("container.seccomp.security.alpha.kubernetes.io/{name}"))
    };
    if differs("seccomp.security.alpha.kubernetes.io/pod") {
        return true;
    }
    for list in [["spec", "containers"], ["spec", "initContainers"]] {
        let (is, was) = (new.list_at(&list), old.list_at(&list));
        if is.len() != was.len() || is.iter().zip(was).any(|(is, was)| changed(is, was)) {
            return true;
        }
    }
    let before = old.list_at(&["spec", "ephemeralContainers"]);
    new.list_at(&["spec", "ephemeralContainers"]).iter().any(|is| {
        let was = before.iter().find(|was| was.str_at(&["name"]) == is.str_at(&["name"]));
        was.is_none_or(|was| changed(is, was))
    })
}

// --- namespaces

fn namespace(context: &Context, new: &Value, old: Option<&Value>) -> Result<()> {
    let (policy, errors) = labelled(new);
    let before = old.map(labelled);
    // What was wrong before may stay so.
    let is_known = before.as_ref().is_some_and(|(_, known)| texts(known) == texts(&errors));
    if !errors.is_empty() && !is_known {
        return Err(Status::invalid(&resource::NAMESPACES, new.str_at(&["metadata", "name"]), &errors));
    }
    if let Some((before, _)) = before
        && asks_for_more(policy.enforce, before.enforce)
    {
        let name = new.str_at(&["metadata", "name"]);
        let pods = context.access.list(&resource::PODS, name);
        existing(name, policy.enforce, &pods).into_iter().for_each(|text| context.warn(text));
    }
    Ok(())
}

fn texts(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(FieldError::to_string).collect()
}

fn asks_for_more(new: Standard, old: Standard) -> bool {
    new != old && new.level != Level::Privileged && !(new.version == old.version && new.level <= old.level)
}

/// Warnings about pods that are there already. Pods of one controller are alike, so one of each comes first.
fn existing(namespace: &str, standard: Standard, pods: &[Object]) -> Vec<String> {
    let mut seen = HashSet::new();
    let (mut first, alike): (Vec<&Object>, Vec<&Object>) =
        pods.iter().partition(|pod| pod.controller().is_none_or(|owner| seen.insert(owner.uid.to_string())));
    first.extend(alike);
    first.truncate(LOOKED_AT_MAX);
    // The first name and how many, by what is wrong.
    let mut told: BTreeMap<String, (&str, usize)> = BTreeMap::new();
    for pod in &first {
        let found = checks::violations(standard, &Pod::of(&pod.value()));
        if !found.is_empty() {
            let (name, count) = told.entry(checks::in_short(&found)).or_insert((pod.name(), 0));
            *name = (*name).min(pod.name());
            *count += 1;
        }
    }
    let mut warnings = Vec::new();
    if first.len() < pods.len() {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {} of {} existing pods",
            first.len(),
            pods.len()
        ));
    }
    if !told.is_empty() {
        warnings.push(format!("existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level \"{standard}\""));
    }
    let line = |(what, (name, count)): (String, (&str, usize))| match count {
        1 => format!("{name}: {what}"),
        2 => format!("{name} (and 1 other pod): {what}"),
        count => format!("{name} (and {} other pods): {what}", count - 1),
    };
    let mut lines: Vec<String> = told.into_iter().map(line).collect();
    lines.sort();
    warnings.extend(lines);
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::value::Map;
    use crate::value;

    fn of(labels: Value) -> (Policy, Vec<String>) {
        let (policy, errors) = labelled(&value!({"metadata": {"labels": (labels)}}));
        (policy, texts(&errors))
    }

    #[test]
    fn labels() {
        assert_eq!(of(Map::new().into()), (Policy { enforce: FREE, warn: FREE }, Vec::new()));
        let (policy, errors) =
            of(value!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted",
            "pod-security.kubernetes.io/warn-version": "v1.30"}));
        assert_eq!(
            (policy.enforce.to_string(), policy.warn.to_string(), errors),
            ("baseline:latest".into(), "restricted:v1.30".into(), Vec::new())
        );
        // Open where nothing is lost by it, shut where something is.
        let (policy, errors) = of(
            value!({"pod-security.kubernetes.io/enforce": "x", "pod-security.kubernetes.io/audit": "y", "pod-security.kubernetes.io/warn": "z"}),
        );
        assert_eq!((policy.enforce.level, policy.warn.level, errors.len()), (Level::Restricted, Level::Privileged, 3));
    }

    #[test]
    fn only_more_than_before_is_looked_into() {
        let standard = |level, version| Standard { level, version };
        let (v1, v2) = (Version::Minor(1), Version::Minor(2));
        assert!(asks_for_more(standard(Level::Baseline, v1), FREE));
        assert!(asks_for_more(standard(Level::Baseline, v2), standard(Level::Restricted, v1)), "another version may ask for other things");
        assert!(!asks_for_more(standard(Level::Baseline, v1), standard(Level::Restricted, v1)));
        assert!(!asks_for_more(standard(Level::Privileged, v2), standard(Level::Restricted, v1)));
    }

    #[test]
    fn pods_that_are_there() {
        let pod = |name: &str, owner: &str, spec: Value| {
            let mut pod = value!({"metadata": {"name": name, "namespace": "n"}, "spec": (spec)});
            if !owner.is_empty() {
                let reference = value!({"apiVersion": "v1", "kind": "X", "name": "x", "uid": owner, "controller": true});
                pod.set(&["metadata", "ownerReferences"], vec![reference]);
            }
            Object::from_value(&resource::PODS, &pod, 1)
        };
        let network = value!({"hostNetwork": true});
        let pods = [
            pod("a", "u", network.clone()),
            pod("b", "u", network.clone()),
            pod("c", "", network),
            pod("d", "", value!({"hostPID": true, "volumes": [{"name": "v", "hostPath": {"path": "/"}}]})),
            pod("e", "", Value::map()),
        ];
        let standard = Standard { level: Level::Baseline, version: Version::Latest };
        assert_eq!(
            existing("n", standard, &pods),
            [
                "existing pods in namespace \"n\" violate the new PodSecurity enforce level \"baseline:latest\"",
                "a (and 2 other pods): host namespaces",
                "d: host namespaces, hostPath volumes",
            ]
        );
    }

    #[test]
    fn significant_changes() {
        let pod = value!({"spec": {"containers": [{"name": "c", "image": "i"}]}});
        let with = |path: &[&str], v: Value| {
            let mut pod = pod.clone();
            pod.set(path, v);
            pod
        };
        assert!(!is_significant(&with(&["metadata", "labels", "a"], "b".into()), &pod));
        assert!(is_significant(&with(&["spec", "containers"], value!([{"name": "c", "image": "j"}])), &pod));
        assert!(is_significant(&with(&["spec", "ephemeralContainers"], value!([{"name": "e"}])), &pod));
        assert!(is_significant(&with(&["metadata", "annotations", "seccomp.security.alpha.kubernetes.io/pod"], "x".into()), &pod));
    }
}
