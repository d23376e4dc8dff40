//! Claims and ingresses that name no class get the one that is marked as the default; of several the newest.

use crate::api::object::Object;
use crate::api::resource::{self, Resource};
use crate::api::status::Result;
use crate::api::value::Value;
use crate::server::strategy::{Context, Operation, Plugin};

pub struct DefaultStorageClass;

impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn mutate(&self, context: &Context, claim: &mut Value, _: Option<&Value>) -> Result<()> {
        const MARKS: [&str; 2] = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
        const FIELD: [&str; 2] = ["spec", "storageClassName"];
        if is_new(context, &resource::PERSISTENTVOLUMECLAIMS)
            && claim.at(&FIELD).is_none()
            && annotation(claim, "volume.beta.kubernetes.io/storage-class").is_none()
            && let Some(class) = default_of(context, &resource::STORAGECLASSES, &MARKS)
        {
            claim.set(&FIELD, class);
        }
        Ok(())
    }
}

pub struct DefaultIngressClass;

impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn mutate(&self, context: &Context, ingress: &mut Value, _: Option<&Value>) -> Result<()> {
        const FIELD: [&str; 2] = ["spec", "ingressClassName"];
        if is_new(context, &resource::INGRESSES)
            && ingress.at(&FIELD).is_none()
            && annotation(ingress, "kubernetes.io/ingress.class").is_none()
            && let Some(class) = default_of(context, &resource::INGRESSCLASSES, &["ingressclass.kubernetes.io/is-default-class"])
        {
            ingress.set(&FIELD, class);
        }
        Ok(())
    }
}

fn is_new(context: &Context, resource: &Resource) -> bool {
    let is_it = context.resource.group == resource.group && context.resource.plural == resource.plural;
    is_it && context.is_main() && context.operation == Operation::Create
}

fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.at(&["metadata", "annotations", key]).and_then(Value::as_str)
}

fn default_of(context: &Context, classes: &'static Resource, marks: &[&str]) -> Option<String> {
    let all = context.access.list(classes, "");
    let marked = |class: &&Object| {
        let class = class.value();
        marks.iter().any(|mark| annotation(&class, mark) == Some("true"))
    };
    let age = |class: &Object| std::cmp::Reverse(class.str_at(&["metadata", "creationTimestamp"]).to_string());
    all.iter().filter(marked).min_by_key(|c| (age(c), c.name().to_string())).map(|c| c.name().to_string())
}
