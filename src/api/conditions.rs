//! Pure: status conditions, set and merged with their transition times.
//!
//! Works on the `conditions` list of any kind as a [`Value`]; the transition time moves only when the status does.

use super::value::{Map, Value};

/// A condition as our loops state it.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    pub type_: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    pub reason: String,
    pub message: String,
}

impl Condition {
    pub fn new(type_: &'static str, status: &'static str, reason: impl Into<String>, message: impl Into<String>) -> Condition {
        Condition { type_, status, reason: reason.into(), message: message.into() }
    }
}

/// The condition of this type.
pub fn find<'a>(conditions: &'a [Value], type_: &str) -> Option<&'a Value> {
    conditions.iter().find(|c| c.str_at(&["type"]) == type_)
}

/// The status of the condition of this type; `""` where there is none.
pub fn status<'a>(conditions: &'a [Value], type_: &str) -> &'a str {
    find(conditions, type_).map_or("", |c| c.str_at(&["status"]))
}

pub fn is_true(conditions: &[Value], type_: &str) -> bool {
    status(conditions, type_) == "True"
}

/// States `new`; true if anything but a time would change. `now` is RFC 3339 text.
pub fn set(conditions: &mut Vec<Value>, new: &Condition, now: &str) -> bool {
    match conditions.iter_mut().find(|c| c.str_at(&["type"]) == new.type_) {
        Some(old) => merge(old, new, now),
        None => {
            let mut made = Map::new();
            made.insert("type", new.type_);
            conditions.push(Value::Map(made));
            merge(conditions.last_mut().expect("just pushed"), new, now)
        }
    }
}

fn merge(old: &mut Value, new: &Condition, now: &str) -> bool {
    let moved = old.str_at(&["status"]) != new.status;
    let reworded = old.str_at(&["reason"]) != new.reason || old.str_at(&["message"]) != new.message;
    if moved {
        old.set(&["status"], new.status);
        old.set(&["lastTransitionTime"], now);
    }
    if reworded {
        for (key, text) in [("reason", &new.reason), ("message", &new.message)] {
            if text.is_empty() {
                old.remove(&[key]);
            } else {
                old.set(&[key], text.as_str());
            }
        }
    }
    moved || reworded
}

/// Drops the condition of this type; true if there was one.
pub fn remove(conditions: &mut Vec<Value>, type_: &str) -> bool {
    let before = conditions.len();
    conditions.retain(|c| c.str_at(&["type"]) != type_);
    conditions.len() != before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_time_moves_with_status_only() {
        let mut list = Vec::new();
        assert!(set(&mut list, &Condition::new("Ready", "False", "A", "m"), "t1"));
        assert!(!set(&mut list, &Condition::new("Ready", "False", "A", "m"), "t2"));
        assert!(set(&mut list, &Condition::new("Ready", "False", "B", ""), "t3"));
        assert_eq!(list[0].str_at(&["lastTransitionTime"]), "t1");
        assert!(list[0].get("message").is_none());
        assert!(set(&mut list, &Condition::new("Ready", "True", "B", ""), "t4"));
        assert_eq!(list[0].str_at(&["lastTransitionTime"]), "t4");
        assert!(is_true(&list, "Ready"));
        assert!(remove(&mut list, "Ready"));
        assert!(!remove(&mut list, "Ready"));
    }
}
