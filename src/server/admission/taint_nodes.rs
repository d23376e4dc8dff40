//! A node starts out not ready: nothing is scheduled to it before its lifecycle is known.

use crate::api::status::Result;
use crate::api::value::Value;
use crate::server::strategy::{Context, Operation, Plugin};
use crate::value;

pub struct TaintNodesByCondition;

impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }
    fn mutate(&self, context: &Context, node: &mut Value, _: Option<&Value>) -> Result<()> {
        let nodes = context.resource.group.is_empty() && context.resource.plural == "nodes" && context.is_main();
        if !nodes || context.operation != Operation::Create {
            return Ok(());
        }
        let taint = value!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let taints = node.make_map(&["spec"]).list_slot("taints");
        if !taints.iter().any(|t| t.str_at(&["key"]) == taint.str_at(&["key"]) && t.str_at(&["effect"]) == "NoSchedule") {
            taints.push(taint);
        }
        Ok(())
    }
}
