//! Kinds whose behaviour is a row of facts: what kubectl shows of them, a few defaults, and how verbs treat them.

use crate::api::resource::Resource;
use crate::api::status::{FieldError, Result};
use crate::api::time::Time;
use crate::api::value::Value;
use crate::server::cursor::{self, At};
use crate::server::kinds::apps::containers;
use crate::server::kinds::core::{self, print_selector};
use crate::server::kinds::{admissionregistration, batch, devices, flowcontrol, networking, none, policy, sets, storage};
use crate::server::strategy::{
    Column, Context, Finding, NameRule, Propagation, Selectable, Strategy, begin_create, begin_status_update, begin_update,
};
use crate::server::table;

/// One cell of a row, computed from the object.
pub enum Cell {
    Name,
    Age,
    /// Text at a path, as it is.
    Text(&'static [&'static str]),
    /// Text at a path, or `<none>`.
    OrNone(&'static [&'static str]),
    /// A number at a path; absent is zero.
    Number(&'static [&'static str]),
    Bool(&'static [&'static str]),
    Containers,
    Images,
    Selector,
    Custom(fn(&Value, Time) -> Value),
}

/// A kind as facts.
pub struct Plain {
    pub resource: &'static Resource,
    pub columns: &'static [Column],
    pub cells: &'static [Cell],
    pub default: fn(&mut Value),
    /// What becomes of a new object before it is checked; status is dropped and the generation is set.
    pub prepare: fn(&Context, &mut Value),
    /// The same for an update: the new object and the old one.
    pub prepare_update: fn(&Context, &mut Value, &Value),
    /// The same for a new status.
    pub prepare_status: fn(&Context, &mut Value, &Value),
    /// What makes an object valid; the old one, if this is an update.
    pub rules: fn(&At, Option<&At>),
    /// What makes a new status valid: the new object and the old one.
    pub status_rules: fn(&At, &At),
    /// What the API server finds out once an object is stored.
    pub findings: fn(&Context, &Value) -> Vec<Finding>,
    /// Texts for `Warning` headers.
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    pub selectable: &'static [Selectable],
    pub generation: bool,
    pub returns_deleted: bool,
    pub create_on_update: bool,
    pub unconditional_update: bool,
    pub acted_on: bool,
    pub propagation: Propagation,
    pub name_rule: NameRule,
}

pub const fn plain(resource: &'static Resource, columns: &'static [Column], cells: &'static [Cell]) -> Plain {
    Plain {
        resource,
        columns,
        cells,
        default: |_| {},
        prepare: |_, _| {},
        prepare_update: |_, _, _| {},
        prepare_status: |_, _, _| {},
        rules: |_, _| {},
        status_rules: |_, _| {},
        findings: |_, _| Vec::new(),
        warnings: |_, _| Vec::new(),
        selectable: &[],
        generation: false,
        returns_deleted: false,
        create_on_update: false,
        unconditional_update: true,
        acted_on: false,
        propagation: Propagation::Background,
        name_rule: NameRule::Subdomain,
    }
}

pub const fn string(name: &'static str) -> Column {
    Column::new(name, "string")
}
pub const fn integer(name: &'static str) -> Column {
    Column::new(name, "integer")
}

/// The rows, in reading order.
pub fn rows() -> Vec<Box<dyn Strategy>> {
    let groups = [
        core::templates::rows(),
        core::volumes::rows(),
        core::claims::rows(),
        core::quotas::rows(),
        sets::rows(),
        batch::rows(),
        policy::rows(),
        networking::rows(),
        storage::rows(),
        flowcontrol::rows(),
        admissionregistration::rows(),
        devices::rows(),
    ];
    groups.into_iter().flatten().map(|row| Box::new(row) as Box<dyn Strategy>).collect()
}

impl Strategy for Plain {
    fn resource(&self) -> &'static Resource {
        self.resource
    }
    fn is_acted_on(&self) -> bool {
        self.acted_on
    }
    fn default(&self, object: &mut Value) {
        (self.default)(object);
    }
    fn prepare_create(&self, context: &Context, object: &mut Value) -> Result<()> {
        begin_create(self, object);
        (self.prepare)(context, object);
        Ok(())
    }
    fn prepare_status_update(&self, context: &Context, new: &mut Value, old: &Value) -> Result<()> {
        begin_status_update(new, old);
        (self.prepare_status)(context, new, old);
        Ok(())
    }
    fn prepare_update(&self, context: &Context, new: &mut Value, old: &Value) -> Result<()> {
        (self.prepare_update)(context, new, old);
        begin_update(self, new, old);
        Ok(())
    }
    fn validate(&self, _: &Context, object: &Value) -> Vec<FieldError> {
        cursor::validate(self.resource.type_ref(), object, |at| (self.rules)(at, None))
    }
    fn validate_update(&self, _: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        cursor::validate(self.resource.type_ref(), new, |at| (self.rules)(at, Some(&at.over(Some(old)))))
    }
    fn validate_status_update(&self, _: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        cursor::validate(self.resource.type_ref(), new, |at| (self.status_rules)(at, &at.over(Some(old))))
    }
    fn findings(&self, context: &Context, object: &Value) -> Vec<Finding> {
        (self.findings)(context, object)
    }
    fn warnings(&self, _: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        (self.warnings)(object, old)
    }
    fn selectable(&self, _: &'static Resource) -> &'static [Selectable] {
        self.selectable
    }
    fn has_generation(&self) -> bool {
        self.generation
    }
    fn returns_deleted(&self) -> bool {
        self.returns_deleted
    }
    fn create_on_update(&self) -> bool {
        self.create_on_update
    }
    fn unconditional_update(&self) -> bool {
        self.unconditional_update
    }
    fn name_rule(&self) -> NameRule {
        self.name_rule
    }
    fn propagation(&self, _: &'static Resource) -> Propagation {
        self.propagation
    }
    fn columns(&self) -> &'static [Column] {
        self.columns
    }
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        self.cells.iter().map(|cell| cell.of(object, now)).collect()
    }
}

impl Cell {
    fn of(&self, object: &Value, now: Time) -> Value {
        match self {
            Cell::Name => object.str_at(&["metadata", "name"]).into(),
            Cell::Age => table::age(object, now).into(),
            Cell::Text(path) => object.str_at(path).into(),
            Cell::OrNone(path) => none(object.str_at(path)).into(),
            Cell::Number(path) => object.i64_at(path).unwrap_or(0).into(),
            Cell::Bool(path) => object.bool_at(path).into(),
            Cell::Containers => containers(object).0.into(),
            Cell::Images => containers(object).1.into(),
            Cell::Selector => print_selector(object.at(&["spec", "selector"]).unwrap_or(&Value::Null)).into(),
            Cell::Custom(f) => f(object, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_a_cell_for_each_column() {
        let all = super::rows();
        for row in &all {
            let mut object = Value::map();
            row.default(&mut object);
            let once = object.clone();
            row.default(&mut object);
            assert_eq!(object, once, "{}: defaulting twice changes nothing", row.resource());
            // Upstream prints the age of IP addresses in a column it does not announce.
            let unannounced = usize::from(row.resource().plural == "ipaddresses");
            let cells = row.row(&object, Time::from_seconds(0)).len();
            assert_eq!(cells, row.columns().len() + unannounced, "{}", row.resource());
        }
    }
}
