//! Leases: heartbeats of nodes and locks of leader election.

use crate::api::resource::{self, Resource};
use crate::api::status::{FieldError, Result};
use crate::api::time::Time;
use crate::api::value::Value;
use crate::server::strategy::{Column, Context, Strategy};
use crate::server::{table, validation};
use crate::store::Durability;

pub struct Leases;

impl Strategy for Leases {
    fn resource(&self) -> &'static Resource {
        &resource::LEASES
    }
    /// Elections the control plane coordinates stand behind a gate that is off.
    fn prepare_create(&self, _: &Context, object: &mut Value) -> Result<()> {
        for field in ["strategy", "preferredHolder"] {
            object.remove(&["spec", field]);
        }
        Ok(())
    }
    fn prepare_update(&self, _: &Context, new: &mut Value, old: &Value) -> Result<()> {
        for field in ["strategy", "preferredHolder"] {
            if old.at(&["spec", field]).is_none() {
                new.remove(&["spec", field]);
            }
        }
        Ok(())
    }
    fn validate(&self, _: &Context, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if let Some(n) = object.i64_at(&["spec", "leaseDurationSeconds"]).filter(|n| *n <= 0) {
            errors.push(FieldError::invalid("spec.leaseDurationSeconds", n, "must be greater than 0"));
        }
        validation::non_negative(&mut errors, "spec.leaseTransitions", object.i64_at(&["spec", "leaseTransitions"]).unwrap_or(0));
        errors
    }
    /// A heartbeat that is lost is followed by the next.
    fn durability(&self, object: &Value) -> Durability {
        let heartbeat = object.str_at(&["metadata", "namespace"]) == "kube-node-lease";
        if heartbeat { Durability::Heartbeat } else { Durability::Now }
    }
    fn create_on_update(&self) -> bool {
        true
    }
    fn unconditional_update(&self) -> bool {
        false
    }
    fn columns(&self) -> &'static [Column] {
        const { &[Column::NAME, Column::new("Holder", "string"), Column::AGE] }
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        let text = |path: &[&str]| object.str_at(path).into();
        vec![text(&["metadata", "name"]), text(&["spec", "holderIdentity"]), table::age(object, now).into()]
    }
}
