//! Component statuses: made up on reading. What answers and what is asked about are one process, so all of it is well.

use crate::api::resource::{self, Resource};
use crate::api::time::Time;
use crate::api::value::Value;
use crate::server::strategy::{Access, Cluster, Column, Strategy};
use crate::value;

pub struct ComponentStatuses;

impl Strategy for ComponentStatuses {
    fn resource(&self) -> &'static Resource {
        &resource::COMPONENTSTATUSES
    }
    fn synthesize(&self, _: &dyn Access, cluster: &Cluster) -> Option<Vec<Value>> {
        let names: &[&str] = if cluster.is_alone { &["etcd-0"] } else { &["controller-manager", "etcd-0", "scheduler"] };
        let status = |name: &&str| {
            value!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": *name},
                "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]})
        };
        Some(names.iter().map(status).collect())
    }
    fn columns(&self) -> &'static [Column] {
        const { &[Column::NAME, Column::new("Status", "string"), Column::new("Message", "string"), Column::new("Error", "string")] }
    }
    fn row(&self, object: &Value, _: Time) -> Vec<Value> {
        let healthy = object.list_at(&["conditions"]).iter().find(|c| c.str_at(&["type"]) == "Healthy");
        let text = |key: &str| healthy.map_or("", |c| c.str_at(&[key]));
        let word = if text("status") == "True" { "Healthy" } else { "Unhealthy" };
        vec![object.str_at(&["metadata", "name"]).into(), word.into(), text("message").into(), text("error").into()]
    }
}
