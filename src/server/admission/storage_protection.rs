//! Volumes, claims and volume attributes in use stay until nobody uses them: a finalizer from the start.

use crate::api::status::Result;
use crate::api::value::Value;
use crate::server::strategy::{Context, Operation, Plugin};

pub struct StorageProtection;

impl Plugin for StorageProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn mutate(&self, context: &Context, object: &mut Value, _: Option<&Value>) -> Result<()> {
        let finalizer = match (context.resource.group, context.resource.plural) {
            ("", "persistentvolumeclaims") => "kubernetes.io/pvc-protection",
            ("", "persistentvolumes") => "kubernetes.io/pv-protection",
            ("storage.k8s.io", "volumeattributesclasses") => "kubernetes.io/vac-protection",
            _ => return Ok(()),
        };
        if context.operation == Operation::Create && context.is_main() {
            let finalizers = object.make_map(&["metadata"]).list_slot("finalizers");
            if !finalizers.iter().any(|f| f.as_str() == Some(finalizer)) {
                finalizers.push(finalizer.into());
            }
        }
        Ok(())
    }
}
