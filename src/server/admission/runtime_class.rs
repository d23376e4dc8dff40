//! A pod's runtime class: it must exist, and brings the pod its overhead and where it can run.

use crate::api::resource;
use crate::api::status::{Result, Status};
use crate::api::value::Value;
use crate::server::strategy::{Context, Operation, Plugin};

pub struct RuntimeClass;

impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn mutate(&self, context: &Context, pod: &mut Value, _: Option<&Value>) -> Result<()> {
        match class(context, pod)? {
            Some(class) => apply(pod, &class).map_err(|why| refuse(context, pod, &why)),
            None => Ok(()),
        }
    }

    fn validate(&self, context: &Context, pod: &Value, _: Option<&Value>) -> Result<()> {
        if !is_new_pod(context) {
            return Ok(());
        }
        let class = class(context, pod)?;
        let wanted = class.as_ref().and_then(|c| c.at(&["overhead", "podFixed"])).filter(|v| !is_empty(v));
        let own = pod.at(&["spec", "overhead"]).filter(|v| !is_empty(v));
        match (own, wanted) {
            (Some(_), None) => {
                Err(refuse(context, pod, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
            }
            (own, wanted) if own != wanted => Err(refuse(context, pod, OVERHEAD)),
            _ => Ok(()),
        }
    }
}

const OVERHEAD: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

fn is_new_pod(context: &Context) -> bool {
    let pods = context.resource.group.is_empty() && context.resource.plural == "pods" && context.is_main();
    pods && context.operation == Operation::Create
}

/// The class a new pod names, if it names one.
fn class(context: &Context, pod: &Value) -> Result<Option<Value>> {
    let name = pod.str_at(&["spec", "runtimeClassName"]);
    if name.is_empty() || !is_new_pod(context) {
        return Ok(None);
    }
    match context.access.get(&resource::RUNTIMECLASSES, "", name) {
        Some(class) => Ok(Some(class.value())),
        None => Err(refuse(context, pod, &format!("pod rejected: RuntimeClass \"{name}\" not found"))),
    }
}

fn refuse(context: &Context, pod: &Value, why: &str) -> Status {
    Status::forbidden(context.resource, pod.str_at(&["metadata", "name"]), why)
}

/// Overhead and scheduling of the class become the pod's.
fn apply(pod: &mut Value, class: &Value) -> std::result::Result<(), String> {
    if let Some(overhead) = class.at(&["overhead", "podFixed"]).filter(|v| !is_empty(v)) {
        match pod.at(&["spec", "overhead"]).filter(|v| !is_empty(v)) {
            Some(own) if own != overhead => return Err(OVERHEAD.to_string()),
            _ => pod.set(&["spec", "overhead"], overhead.clone()),
        }
    }
    for (key, value) in class.map_at(&["scheduling", "nodeSelector"]).into_iter().flat_map(|m| m.iter()) {
        match pod.at(&["spec", "nodeSelector", key]) {
            Some(own) if own != value => {
                let why = format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    text(value),
                    text(own)
                );
                return Err(why);
            }
            _ => pod.set(&["spec", "nodeSelector", key], value.clone()),
        }
    }
    let tolerations = class.list_at(&["scheduling", "tolerations"]);
    if !tolerations.is_empty() {
        let have = pod.make_map(&["spec"]).list_slot("tolerations");
        let missing: Vec<Value> = tolerations.iter().filter(|t| !have.contains(t)).cloned().collect();
        have.extend(missing);
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_map().is_some_and(|m| m.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn overhead_and_scheduling_become_the_pods() {
        let class = value!({"handler": "runc", "overhead": {"podFixed": {"cpu": "10m"}},
            "scheduling": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "t"}]}});
        let mut pod = value!({"spec": {"runtimeClassName": "c", "nodeSelector": {"x": "y"}}});
        apply(&mut pod, &class).unwrap();
        let expected = value!({"spec": {"runtimeClassName": "c", "nodeSelector": {"x": "y", "a": "b"}, "overhead": {"cpu": "10m"},
            "tolerations": [{"key": "t"}]}});
        assert_eq!(pod, expected);
        apply(&mut pod, &class).unwrap();
        assert_eq!(pod, expected, "again changes nothing");
        pod.set(&["spec", "nodeSelector", "a"], "c");
        assert!(apply(&mut pod, &class).unwrap_err().starts_with("conflict:"));
        let mut pod = value!({"spec": {"overhead": {"cpu": "1"}}});
        assert_eq!(apply(&mut pod, &class).unwrap_err(), OVERHEAD);
    }
}
