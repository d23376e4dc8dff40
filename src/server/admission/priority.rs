//! Turns a pod's priority class into its priority, and guards the system classes.

use crate::api::resource;
use crate::api::status::{Result, Status};
use crate::api::value::Value;
use crate::server::strategy::{Context, Operation, Plugin};

pub struct Priority;

const DEFAULT_POLICY: &str = "PreemptLowerPriority";

impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }
    fn mutate(&self, context: &Context, pod: &mut Value, old: Option<&Value>) -> Result<()> {
        let pods = context.resource.group.is_empty() && context.resource.plural == "pods" && context.is_main();
        match context.operation {
            Operation::Create if pods => assign(context, pod),
            // An update that leaves the computed fields out means them unchanged.
            Operation::Update if pods => {
                for key in ["priority", "preemptionPolicy"] {
                    if let (None, Some(was)) = (pod.at(&["spec", key]), old.and_then(|o| o.at(&["spec", key]))) {
                        pod.set(&["spec", key], was.clone());
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
    fn validate(&self, context: &Context, class: &Value, _: Option<&Value>) -> Result<()> {
        let classes = context.resource.group == "scheduling.k8s.io" && context.resource.plural == "priorityclasses";
        let write = matches!(context.operation, Operation::Create | Operation::Update);
        if !classes || !write || !class.bool_at(&["globalDefault"]) {
            return Ok(());
        }
        let name = class.str_at(&["metadata", "name"]);
        let others = context.access.list(&resource::PRIORITYCLASSES, "");
        let other = others.iter().find(|c| c.name() != name && c.bool_at(&["globalDefault"]));
        match other {
            Some(other) => {
                let why = format!("PriorityClass {} is already marked as default. Only one default can exist", other.name());
                Err(Status::forbidden(context.resource, name, &why))
            }
            None => Ok(()),
        }
    }
}

fn assign(context: &Context, pod: &mut Value) -> Result<()> {
    let name = pod.str_at(&["spec", "priorityClassName"]).to_string();
    let refuse = |pod: &Value, why: String| Err(Status::forbidden(context.resource, pod.str_at(&["metadata", "name"]), &why));
    let class = match name.as_str() {
        "" => {
            let classes = context.access.list(&resource::PRIORITYCLASSES, "").into_iter();
            let default = classes.filter(|c| c.bool_at(&["globalDefault"])).min_by_key(|c| c.i64_at(&["value"]).unwrap_or(0));
            default.map(|c| c.value())
        }
        name => match context.access.get(&resource::PRIORITYCLASSES, "", name) {
            Some(class) => Some(class.value()),
            None => return refuse(pod, format!("no PriorityClass with name {name} was found")),
        },
    };
    let priority = class.as_ref().and_then(|c| c.i64_at(&["value"])).unwrap_or(0);
    let policy = class.as_ref().map(|c| c.str_at(&["preemptionPolicy"])).filter(|p| !p.is_empty()).unwrap_or(DEFAULT_POLICY);
    if let Some(own) = pod.i64_at(&["spec", "priority"]).filter(|own| *own != priority) {
        let why = format!(
            "the integer value of priority ({own}) must not be provided in pod spec; priority admission controller computed {priority} from \
             the given PriorityClass name"
        );
        return refuse(pod, why);
    }
    let own = pod.str_at(&["spec", "preemptionPolicy"]).to_string();
    if !own.is_empty() && own != policy {
        let why = format!(
            "the string value of PreemptionPolicy ({own}) must not be provided in pod spec; priority admission controller computed {policy} \
             from the given PriorityClass name"
        );
        return refuse(pod, why);
    }
    if let (true, Some(class)) = (name.is_empty(), &class) {
        pod.set(&["spec", "priorityClassName"], class.str_at(&["metadata", "name"]));
    }
    pod.set(&["spec", "priority"], priority);
    pod.set(&["spec", "preemptionPolicy"], policy);
    Ok(())
}
