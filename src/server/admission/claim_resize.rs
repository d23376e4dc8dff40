//! Only bound claims grow, and only if their class says so.

use crate::api::quantity::Quantity;
use crate::api::resource;
use crate::api::status::{Result, Status};
use crate::api::value::Value;
use crate::server::strategy::{Context, Operation, Plugin};

pub struct ClaimResize;

impl Plugin for ClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn validate(&self, context: &Context, claim: &Value, old: Option<&Value>) -> Result<()> {
        let is_claim = context.resource.group.is_empty() && context.resource.plural == "persistentvolumeclaims" && context.is_main();
        let Some(old) = old.filter(|_| is_claim && context.operation == Operation::Update) else { return Ok(()) };
        let size = |o: &Value| Quantity::parse(o.str_at(&["spec", "resources", "requests", "storage"])).ok();
        let (Some(is), Some(was)) = (size(claim), size(old)) else { return Ok(()) };
        if is <= was {
            return Ok(());
        }
        let refuse = |why: &str| Err(Status::forbidden(context.resource, &context.name, why));
        if old.str_at(&["status", "phase"]) != "Bound" {
            return refuse("Only bound persistent volume claims can be expanded");
        }
        let class = |o: &Value| match o.str_at(&["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"]) {
            "" => o.str_at(&["spec", "storageClassName"]).to_string(),
            annotated => annotated.to_string(),
        };
        let name = class(claim);
        let found = context.access.get(&resource::STORAGECLASSES, "", &name).filter(|_| !name.is_empty() && name == class(old));
        if found.is_some_and(|c| c.value().bool_at(&["allowVolumeExpansion"])) {
            return Ok(());
        }
        refuse("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize")
    }
}
