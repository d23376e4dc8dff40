//! The annotations that named AppArmor profiles before there was a field: a new pod has their meaning written into the field.

use crate::api::json::go_quote;
use crate::api::status::FieldError;
use crate::api::value::Value;
use crate::server::strategy::Context;
use crate::value;

const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
const PROFILE_BYTES_MAX: usize = 4095;

/// The field that says what an annotation says, if it says something.
fn profile(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(value!({"type": "Unconfined"})),
        "runtime/default" => Some(value!({"type": "RuntimeDefault"})),
        other => {
            let local = other.strip_prefix("localhost/").filter(|local| !local.is_empty())?;
            let is_valid = local.trim() == local && local.len() <= PROFILE_BYTES_MAX;
            is_valid.then(|| value!({"type": "Localhost", "localhostProfile": local}))
        }
    }
}

fn annotation<'a>(pod: &'a Value, container: &str) -> Option<&'a str> {
    pod.at(&["metadata", "annotations", &format!("{PREFIX}{container}")])?.as_str()
}

/// Fills the field of a new pod's containers. It is said what should have been used.
pub fn from_annotations(context: &Context, pod: &mut Value) {
    let is_used = pod.map_at(&["metadata", "annotations"]).is_some_and(|m| m.iter().any(|(key, _)| key.starts_with(PREFIX)));
    if !is_used || pod.str_at(&["spec", "os", "name"]) == "windows" {
        return;
    }
    let of_pod = pod.at(&["spec", "securityContext", "appArmorProfile"]).cloned();
    let before = pod.clone();
    for list in LISTS {
        for container in pod.at_mut(&["spec", list]).and_then(Value::as_list_mut).into_iter().flatten() {
            let name = container.str_at(&["name"]).to_string();
            let Some(said) = annotation(&before, &name) else { continue };
            if container.at(&["securityContext", "appArmorProfile"]).is_some() {
                continue;
            }
            let profile = profile(said);
            if profile.is_some() && profile == of_pod {
                continue;
            }
            if let Some(profile) = profile {
                container.set(&["securityContext", "appArmorProfile"], profile);
            }
            context
                .warn(format!("metadata.annotations[{PREFIX}{name}]: deprecated since v1.30; use the \"appArmorProfile\" field instead"));
        }
    }
}

/// What the annotations may say.
pub fn validate(errors: &mut Vec<FieldError>, pod: &Value) {
    for (key, said) in pod.map_at(&["metadata", "annotations"]).into_iter().flat_map(|m| m.iter()) {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        let (at, said) = (format!("metadata.annotations[{key}]"), said.as_str().unwrap_or(""));
        let is_there = LISTS.iter().any(|list| pod.list_at(&["spec", list]).iter().any(|c| c.str_at(&["name"]) == name));
        if !is_there {
            errors.push(FieldError::invalid(at.as_str(), name, "container not found"));
        }
        if !matches!(said, "" | "runtime/default" | "unconfined") && !said.starts_with("localhost/") {
            errors.push(FieldError::invalid(at, said, format!("invalid AppArmor profile name: {}", go_quote(said))));
        }
    }
}

/// Where a new pod says it both ways, it says the same.
pub fn must_agree(errors: &mut Vec<FieldError>, pod: &Value) {
    if pod.str_at(&["spec", "os", "name"]) == "windows" {
        return;
    }
    let of_pod = pod.at(&["spec", "securityContext", "appArmorProfile"]);
    for list in LISTS {
        for (i, container) in pod.list_at(&["spec", list]).iter().enumerate() {
            let field = container.at(&["securityContext", "appArmorProfile"]).or(of_pod);
            let (Some(field), Some(said)) = (field, annotation(pod, container.str_at(&["name"]))) else { continue };
            let at = format!("spec.{list}[{i}].securityContext.appArmorProfile");
            let (kind, local) = (field.str_at(&["type"]), field.str_at(&["localhostProfile"]));
            let means = match said {
                "unconfined" => "Unconfined",
                "runtime/default" => "RuntimeDefault",
                said if said.starts_with("localhost/") => "Localhost",
                _ => "",
            };
            if !matches!(kind, "Unconfined" | "RuntimeDefault" | "Localhost") {
                continue;
            }
            if kind != means {
                errors.push(FieldError::forbidden(format!("{at}.type"), "apparmor type in annotation and field must match"));
            } else if kind == "Localhost" && said.strip_prefix("localhost/") != Some(local) {
                errors.push(FieldError::forbidden(format!("{at}.localhostProfile"), "apparmor profile in annotation and field must match"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_have_fields() {
        for (said, wanted) in [
            ("unconfined", Some(value!({"type": "Unconfined"}))),
            ("runtime/default", Some(value!({"type": "RuntimeDefault"}))),
            ("localhost/a", Some(value!({"type": "Localhost", "localhostProfile": "a"}))),
            ("localhost/", None),
            ("localhost/ a", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(profile(said), wanted, "{said:?}");
        }
    }

    #[test]
    fn what_is_said_twice() {
        let pod = |said: &str, profile: Value| {
            let mut pod = value!({"spec": {"containers": [{"name": "c"}]}});
            pod.set(&["metadata", "annotations", &format!("{PREFIX}c")], said);
            pod.set(&["spec", "securityContext", "appArmorProfile"], profile);
            let mut errors = Vec::new();
            validate(&mut errors, &pod);
            must_agree(&mut errors, &pod);
            errors.iter().map(FieldError::to_string).collect::<Vec<_>>().join("; ")
        };
        let local = value!({"type": "Localhost", "localhostProfile": "a"});
        let at = "spec.containers[0].securityContext.appArmorProfile";
        assert_eq!(pod("localhost/a", local.clone()), "");
        assert_eq!(
            pod("localhost/b", local.clone()),
            format!("{at}.localhostProfile: Forbidden: apparmor profile in annotation and field must match")
        );
        assert_eq!(pod("unconfined", local), format!("{at}.type: Forbidden: apparmor type in annotation and field must match"));
        assert_eq!(
            pod("x", Value::Null),
            format!("metadata.annotations[{PREFIX}c]: Invalid value: \"x\": invalid AppArmor profile name: \"x\"")
        );
    }
}
