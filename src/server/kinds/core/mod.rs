//! The core group: pods, nodes, namespaces and what they hold.

pub mod amounts;
pub mod app_armor;
pub mod claims;
pub mod componentstatuses;
pub mod configmaps;
pub mod events;
pub mod namespaces;
pub mod nodes;
pub mod pod_defaults;
pub mod pod_env;
pub mod pod_security;
pub mod pod_spec;
pub mod pod_update;
pub mod pod_warnings;
pub mod pods;
pub mod qos;
pub mod quotas;
pub mod secrets;
pub mod serviceaccounts;
pub mod services;
pub mod services_validate;
pub mod templates;
pub mod volumes;

use crate::api::value::{Map, Value};

/// Whether a `metav1.LabelSelector` matches labels; an empty selector matches everything.
pub fn matches_selector(selector: &Value, labels: &Map) -> bool {
    let exact = selector.map_at(&["matchLabels"]).into_iter().flat_map(|m| m.iter());
    let mut exact = exact.map(|(key, value)| labels.get(key) == Some(value));
    let mut expressions = selector.list_at(&["matchExpressions"]).iter().map(|e| {
        let have = labels.get(e.str_at(&["key"]));
        match e.str_at(&["operator"]) {
            "In" => have.is_some_and(|v| e.list_at(&["values"]).contains(v)),
            "NotIn" => !have.is_some_and(|v| e.list_at(&["values"]).contains(v)),
            "Exists" => have.is_some(),
            "DoesNotExist" => have.is_none(),
            _ => false,
        }
    });
    exact.all(|m| m) && expressions.all(|m| m)
}

/// A `metav1.LabelSelector` as kubectl prints it: `app=a,app in (a,b)`.
pub fn print_selector(selector: &Value) -> String {
    let exact = selector.map_at(&["matchLabels"]).into_iter().flat_map(|m| m.iter());
    let mut terms: Vec<(String, String)> =
        exact.map(|(key, value)| (key.to_string(), format!("{key}={}", value.as_str().unwrap_or("")))).collect();
    for e in selector.list_at(&["matchExpressions"]) {
        let key = e.str_at(&["key"]);
        let mut values: Vec<&str> = e.list_at(&["values"]).iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match e.str_at(&["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_string(),
        };
        terms.push((key.to_string(), text));
    }
    terms.sort_by(|a, b| a.0.cmp(&b.0));
    let texts: Vec<String> = terms.into_iter().map(|(_, text)| text).collect();
    if texts.is_empty() { "<none>".to_string() } else { texts.join(",") }
}

/// A plain map of labels as kubectl prints it.
pub fn print_labels(labels: Option<&Map>) -> String {
    let terms: Vec<String> = labels.into_iter().flat_map(|m| m.iter()).map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))).collect();
    if terms.is_empty() { "<none>".to_string() } else { terms.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn selectors() {
        let selector = value!({"matchLabels": {"app": "a"}, "matchExpressions": [{"key": "app", "operator": "In", "values": ["b", "a"]}]});
        assert_eq!(print_selector(&selector), "app=a,app in (a,b)");
        assert_eq!(print_selector(&value!({})), "<none>");
        assert!(matches_selector(&selector, value!({"app": "a"}).as_map().unwrap()));
        assert!(!matches_selector(&selector, value!({"app": "c"}).as_map().unwrap()));
        let absent = value!({"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["a"]}]});
        assert!(matches_selector(&absent, &Map::new()), "an absent label is not in any set");
    }
}
