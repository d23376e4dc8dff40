//! What workloads share: a selector that must match a template, counts, `Warning` texts about names.

use crate::api::value::{Map, Value};
use crate::server::cursor::At;
use crate::server::kinds::core::{matches_selector, pod_spec, pod_warnings};
use crate::server::validation;

/// What a `metav1.LabelSelector` selects, as far as it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selects {
    /// There is none.
    Nothing,
    /// It has no terms.
    Everything,
    Some,
    Unreadable,
}

pub fn selects(selector: &At) -> Selects {
    if !selector.is_set() {
        return Selects::Nothing;
    }
    let mut errors = Vec::new();
    validation::label_selector(&mut errors, "", Some(selector.value));
    match () {
        () if !errors.is_empty() => Selects::Unreadable,
        () if selector.get("matchLabels").is_empty() && selector.get("matchExpressions").is_empty() => Selects::Everything,
        () => Selects::Some,
    }
}

/// A readable selector must match the labels of the template. With none, nothing matches.
pub fn selector_matches(selector: &At, template: &At) {
    let labels = template.at(&["metadata", "labels"]);
    let empty = Map::new();
    let matches = match selects(selector) {
        Selects::Nothing => false,
        Selects::Everything | Selects::Unreadable => true,
        Selects::Some => matches_selector(selector.value, labels.value.as_map().unwrap_or(&empty)),
    };
    if !matches {
        labels.invalid("`selector` does not match template `labels`");
    }
}

/// A pod template.
pub fn template(template: &At) {
    let empty = Value::map();
    let value = if template.is_set() { template.value } else { &empty };
    template.with(|errors, at| pod_spec::template(errors, at, value));
}

/// A template whose pods run for good.
pub fn runs_for_good(template: &At, kind: &str) {
    template.at(&["spec", "restartPolicy"]).one_of(&["Always"]);
    let deadline = template.at(&["spec", "activeDeadlineSeconds"]);
    if deadline.is_set() {
        deadline.forbidden(format!("activeDeadlineSeconds in {kind} is not Supported"));
    }
}

/// None of these members may be below zero.
pub fn counts(holder: &At, members: &[&'static str]) {
    members.iter().for_each(|key| holder.get(key).not_negative());
}

/// `key` may not be more than `limit` is.
pub fn at_most(holder: &At, key: &'static str, limit: &'static str, words: &str) {
    if holder.get(key).int() > holder.get(limit).int() {
        holder.get(key).invalid_as(holder.get(key).int(), format!("cannot be greater than {words}"));
    }
}

/// A count of collisions only grows.
pub fn collisions_grow(status: &At, old: &At) {
    let (new, old) = (status.get("collisionCount"), old.get("collisionCount"));
    if old.is_set() && (!new.is_set() || new.int() < old.int()) {
        new.invalid_as(new.int(), "cannot be decremented");
    }
}

/// Pods get this name with something appended, and it becomes their host name.
pub fn name_warning(object: &Value) -> Option<String> {
    let messages = validation::label(object.str_at(&["metadata", "name"]));
    let text =
        "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended";
    (!messages.is_empty()).then(|| format!("{text}: [{}]", messages.join(" ")))
}

/// Warnings about a template, of a new object or one whose generation was counted up.
pub fn template_warnings(object: &Value, old: Option<&Value>, path: &[&str]) -> Vec<String> {
    let generation = |o: &Value| o.i64_at(&["metadata", "generation"]);
    if old.is_some_and(|old| generation(old) == generation(object)) {
        return Vec::new();
    }
    object.at(path).map_or_else(Vec::new, |t| pod_warnings::warnings(&path.join("."), t))
}
