//! Nothing is created in a namespace that is missing or going away, and three namespaces never go.

use crate::api::resource;
use crate::api::status::{Result, Status};
use crate::api::value::Value;
use crate::server::strategy::{Context, Operation, Plugin};

pub struct NamespaceLifecycle;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }
    fn mutate(&self, context: &Context, object: &mut Value, _: Option<&Value>) -> Result<()> {
        check(context, object)
    }
    fn validate(&self, context: &Context, object: &Value, _: Option<&Value>) -> Result<()> {
        if context.operation == Operation::Delete { check(context, object) } else { Ok(()) }
    }
}

fn check(context: &Context, object: &Value) -> Result<()> {
    let is_namespace = context.resource.group.is_empty() && context.resource.plural == "namespaces";
    if is_namespace {
        let immortal = context.operation == Operation::Delete && IMMORTAL.contains(&context.name.as_str());
        return if immortal {
            Err(Status::forbidden(context.resource, &context.name, "this namespace may not be deleted"))
        } else {
            Ok(())
        };
    }
    // Questions are not things: they may be asked about any namespace.
    let question = matches!(context.resource.plural, "localsubjectaccessreviews");
    if context.namespace.is_empty() || context.operation == Operation::Delete || question {
        return Ok(());
    }
    let Some(namespace) = context.access.get(&resource::NAMESPACES, "", &context.namespace) else {
        return Err(Status::not_found(&resource::NAMESPACES, &context.namespace));
    };
    if context.operation == Operation::Create && namespace.is_deleting() {
        let name = match context.name.as_str() {
            "" => object.str_at(&["metadata", "name"]),
            name => name,
        };
        let why = format!("unable to create new content in namespace {} because it is being terminated", context.namespace);
        let cause = format!("namespace {} is being terminated", context.namespace);
        return Err(Status::forbidden(context.resource, name, &why).with_cause("NamespaceTerminating", cause, "metadata.namespace"));
    }
    Ok(())
}
