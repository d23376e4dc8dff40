//! Namespaces: a name label, a finalizer of their own kind, and a phase that follows deletion.

use crate::api::resource::{self, Resource};
use crate::api::status::{FieldError, Result};
use crate::api::time::Time;
use crate::api::value::Value;
use crate::server::strategy::{Column, Context, NameRule, Selectable, Strategy, begin_status_update, restore};
use crate::server::{table, validation};
use crate::value;

pub struct Namespaces;

impl Strategy for Namespaces {
    fn resource(&self) -> &'static Resource {
        &resource::NAMESPACES
    }
    fn default(&self, object: &mut Value) {
        let name = object.str_at(&["metadata", "name"]).to_string();
        if !name.is_empty() {
            object.set(&["metadata", "labels", "kubernetes.io/metadata.name"], name);
        }
    }
    fn prepare_create(&self, _: &Context, object: &mut Value) -> Result<()> {
        object.set(&["status"], value!({"phase": "Active"}));
        let finalizers = object.make_map(&["spec"]).list_slot("finalizers");
        if !finalizers.contains(&Value::from("kubernetes")) {
            finalizers.push("kubernetes".into());
        }
        Ok(())
    }
    fn prepare_update(&self, _: &Context, new: &mut Value, old: &Value) -> Result<()> {
        restore(new, old, "spec");
        restore(new, old, "status");
        Ok(())
    }
    fn prepare_status_update(&self, _: &Context, new: &mut Value, old: &Value) -> Result<()> {
        begin_status_update(new, old);
        Ok(())
    }
    /// `finalize`: only `spec.finalizers` is taken.
    fn prepare_subresource_update(&self, _: &Context, new: &mut Value, old: &Value) -> Result<()> {
        restore(new, old, "status");
        Ok(())
    }
    fn validate(&self, _: &Context, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        finalizers(&mut errors, object, |_| "spec.finalizers".to_string());
        errors
    }
    fn validate_update(&self, _: &Context, _: &Value, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
    fn validate_status_update(&self, _: &Context, new: &Value, _: &Value) -> Vec<FieldError> {
        let phase = new.str_at(&["status", "phase"]);
        let deleting = new.at(&["metadata", "deletionTimestamp"]).is_some();
        match (deleting, phase) {
            (true, "Terminating") | (false, "Active") => Vec::new(),
            (true, _) => {
                vec![FieldError::invalid("status.Phase", phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")]
            }
            (false, _) => vec![FieldError::invalid("status.Phase", phase, "may only be 'Active' if `deletionTimestamp` is empty")],
        }
    }
    fn validate_subresource_update(&self, _: &Context, new: &Value, _: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        finalizers(&mut errors, new, |i| format!("spec.finalizers[{i}]"));
        errors
    }
    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }
    fn has_generation(&self) -> bool {
        false
    }
    fn blocks_deletion(&self, object: &Value) -> bool {
        !object.list_at(&["spec", "finalizers"]).is_empty()
    }
    fn mark_deleting(&self, _: &Context, object: &mut Value) {
        object.set(&["status", "phase"], "Terminating");
        // Upstream clears what it does not mean: deletion of a namespace has no grace period to show.
        object.remove(&["metadata", "deletionGracePeriodSeconds"]);
    }
    /// The namespace itself while it has finalizers.
    fn returns_deleted(&self) -> bool {
        false
    }
    fn columns(&self) -> &'static [Column] {
        const { &[Column::NAME, Column::new("Status", "string"), Column::AGE] }
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        let text = |path: &[&str]| object.str_at(path).into();
        vec![text(&["metadata", "name"]), text(&["status", "phase"]), table::age(object, now).into()]
    }
    fn selectable(&self, _: &'static Resource) -> &'static [Selectable] {
        const { &[Selectable::new("status.phase", &["status", "phase"])] }
    }
}

fn finalizers(errors: &mut Vec<FieldError>, object: &Value, place: impl Fn(usize) -> String) {
    for (i, name) in object.list_at(&["spec", "finalizers"]).iter().enumerate() {
        let (at, name) = (place(i), name.as_str().unwrap_or(""));
        validation::invalid(errors, &at, name, validation::qualified_name(name));
        if !name.contains('/') && !matches!(name, "orphan" | "foregroundDeletion" | "kubernetes") {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(at, name, why));
        }
    }
}
