//! Pods stay on a node that is not ready or unreachable for five minutes unless they say otherwise.

use crate::api::status::Result;
use crate::api::value::Value;
use crate::server::strategy::{Context, Operation, Plugin};
use crate::value;

pub struct DefaultTolerationSeconds;

const SECONDS: i64 = 300;

impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }
    fn mutate(&self, context: &Context, pod: &mut Value, _: Option<&Value>) -> Result<()> {
        let pods = context.resource.group.is_empty() && context.resource.plural == "pods" && context.is_main();
        if pods && matches!(context.operation, Operation::Create | Operation::Update) {
            add(pod);
        }
        Ok(())
    }
}

fn add(pod: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerations = pod.list_at(&["spec", "tolerations"]);
        let covered = tolerations.iter().any(|t| {
            matches!(t.str_at(&["key"]), "" | "node.kubernetes.io/not-ready" | "node.kubernetes.io/unreachable")
                && (t.str_at(&["key"]).is_empty() || t.str_at(&["key"]) == key)
                && matches!(t.str_at(&["effect"]), "" | "NoExecute")
        });
        if !covered {
            let toleration = value!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS});
            pod.make_map(&["spec"]).list_slot("tolerations").push(toleration);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_added_unless_covered() {
        let keys = |mut pod: Value| {
            add(&mut pod);
            let mut keys: Vec<String> = pod.list_at(&["spec", "tolerations"]).iter().map(|t| t.str_at(&["key"]).to_string()).collect();
            keys.sort();
            keys
        };
        assert_eq!(keys(value!({"spec": {}})), ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]);
        assert_eq!(keys(value!({"spec": {"tolerations": [{"operator": "Exists"}]}})), [""]);
        let own = value!({"spec": {"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}]}});
        assert_eq!(keys(own), ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]);
    }
}
