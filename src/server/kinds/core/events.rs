//! Events: one storage (core/v1) behind two APIs, gone after an hour.

use crate::api::resource::{self, Resource};
use crate::api::status::{FieldError, Result};
use crate::api::time::Time;
use crate::api::value::Value;
use crate::server::cursor;
use crate::server::strategy::{Column, Context, MetadataLooks, NameRule, Propagation, Selectable, Strategy};
use crate::server::{table, validation};
use crate::store::Durability;

pub struct Events;

/// Member of events.k8s.io/v1 and of core/v1.
const RENAMED: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

const COLUMNS: &[Column] = &[
    Column::new("Last Seen", "string"),
    Column::new("Type", "string"),
    Column::new("Reason", "string"),
    Column::new("Object", "string"),
    Column::wide("Subobject", "string"),
    Column::wide("Source", "string"),
    Column::new("Message", "string"),
    Column::wide("First Seen", "string"),
    Column::wide("Count", "string"),
    Column { priority: 1, ..Column::NAME },
];

macro_rules! selectable {
    ($object:literal, $reporter:literal $(, $source:expr)?) => {
        const {
            &[
                Selectable::new(concat!($object, ".kind"), &["involvedObject", "kind"]),
                Selectable::new(concat!($object, ".namespace"), &["involvedObject", "namespace"]),
                Selectable::new(concat!($object, ".name"), &["involvedObject", "name"]),
                Selectable::new(concat!($object, ".uid"), &["involvedObject", "uid"]),
                Selectable::new(concat!($object, ".apiVersion"), &["involvedObject", "apiVersion"]),
                Selectable::new(concat!($object, ".resourceVersion"), &["involvedObject", "resourceVersion"]),
                Selectable::new(concat!($object, ".fieldPath"), &["involvedObject", "fieldPath"]),
                Selectable::new("reason", &["reason"]),
                Selectable::new($reporter, &["reportingComponent"]),
                Selectable::new("type", &["type"]),
                $($source)?
            ]
        }
    };
}

impl Strategy for Events {
    fn resource(&self) -> &'static Resource {
        &resource::EVENTS
    }
    fn to_storage(&self, from: &'static Resource, object: &mut Value) -> Result<()> {
        if !from.group.is_empty() {
            rename(object, RENAMED.iter().copied());
        }
        Ok(())
    }
    fn from_storage(&self, to: &'static Resource, object: &mut Value) {
        if !to.group.is_empty() {
            rename(object, RENAMED.iter().map(|(new, old)| (*old, *new)));
        }
    }
    fn validate(&self, context: &Context, event: &Value) -> Vec<FieldError> {
        let mut errors = legacy(context, event);
        if !context.resource.group.is_empty() {
            errors.extend(validation::metadata(event, NameRule::Subdomain, true));
            strict(&mut errors, event);
        }
        errors
    }
    fn validate_update(&self, context: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = legacy(context, new);
        if context.resource.group.is_empty() {
            return errors;
        }
        let metadata = validation::metadata_update(new, old);
        errors.extend(metadata);
        if new.at(&["series"]) != old.at(&["series"]) {
            series(&mut errors, new);
        }
        errors.extend(cursor::validate(self.resource().type_ref(), new, |event| {
            for (member, field) in [
                ("involvedObject", "involvedObject"),
                ("reason", "reason"),
                ("message", "message"),
                ("source", "source"),
                ("firstTimestamp", "firstTimestamp"),
                ("lastTimestamp", "lastTimestamp"),
                ("count", "count"),
                ("reason", "reason"),
                ("type", "type"),
                ("eventTime", "eventTime"),
                ("action", "action"),
                ("related", "related"),
                ("reportingComponent", "reportingController"),
                ("reportingInstance", "reportingInstance"),
            ] {
                let at = event.get(member);
                at.called(field).immutable(&at.over(old.get(member)));
            }
        }));
        errors
    }
    /// The core API checks no metadata of its own; events.k8s.io does so among its rules.
    fn name_rule(&self) -> NameRule {
        NameRule::Unchecked
    }
    fn ttl_seconds(&self, _: &Value) -> Option<u32> {
        Some(3600)
    }
    fn durability(&self, _: &Value) -> Durability {
        Durability::Soon
    }
    fn create_on_update(&self) -> bool {
        true
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn row(&self, event: &Value, now: Time) -> Vec<Value> {
        row(event, now)
    }
    /// Those of `events.k8s.io` look as an update does among their rules.
    fn metadata_looks(&self, _: &'static Resource) -> MetadataLooks {
        MetadataLooks { as_update: 0, whole: 0 }
    }
    fn propagation(&self, _: &'static Resource) -> Propagation {
        Propagation::Unsupported
    }
    fn selectable(&self, as_: &'static Resource) -> &'static [Selectable] {
        if as_.group.is_empty() {
            selectable!("involvedObject", "reportingComponent", Selectable::new("source", &["source", "component"]))
        } else {
            selectable!("regarding", "reportingController")
        }
    }
    fn selectable_value(&self, object: &crate::api::object::Object, field: &Selectable) -> String {
        let text = object.str_at(field.path);
        // An event of the new API has no source; its reporter stands in.
        if field.label == "source" && text.is_empty() { object.str_at(&["reportingComponent"]).to_string() } else { text.to_string() }
    }
}

fn rename<'a>(object: &mut Value, pairs: impl Iterator<Item = (&'a str, &'a str)>) {
    let Some(map) = object.as_map_mut() else { return };
    for (from, to) in pairs {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_string(), value);
        }
    }
}

/// What every event must be, in whichever API it came.
fn legacy(context: &Context, event: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (own, about) = (event.str_at(&["metadata", "namespace"]), event.str_at(&["involvedObject", "namespace"]));
    let is_new = event.at(&["eventTime"]).is_some();
    // Events about cluster-scoped objects live in `default`.
    let fits = match (is_new, about) {
        (false, "") => matches!(own, "" | "default"),
        (false, about) => own == about,
        (true, "") => matches!(own, "default" | "kube-system"),
        (true, _) => true,
    };
    if !fits {
        errors.push(FieldError::invalid("involvedObject.namespace", about, "does not match event.namespace"));
    }
    if is_new {
        reported(&mut errors, event, if context.resource.group.is_empty() { "reportingComponent" } else { "reportingController" });
    }
    errors
}

/// What events.k8s.io asks of new events beyond that.
fn strict(errors: &mut Vec<FieldError>, event: &Value) {
    series(errors, event);
    if event.at(&["eventTime"]).is_none() {
        errors.push(FieldError::required("eventTime", ""));
    }
    let kind = event.str_at(&["type"]);
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(FieldError::invalid("type", "", format!("has invalid value: {kind}")));
    }
    let source = ["component", "host"].iter().any(|m| !event.str_at(&["source", m]).is_empty());
    for (field, is_set) in [
        ("firstTimestamp", event.at(&["firstTimestamp"]).is_some()),
        ("lastTimestamp", event.at(&["lastTimestamp"]).is_some()),
        ("count", event.i64_at(&["count"]).unwrap_or(0) != 0),
        ("source", source),
    ] {
        if is_set {
            errors.push(FieldError::invalid(field, "", "needs to be unset"));
        }
    }
}

fn series(errors: &mut Vec<FieldError>, event: &Value) {
    let Some(series) = event.at(&["series"]) else { return };
    if series.i64_at(&["count"]).unwrap_or(0) < 2 {
        errors.push(FieldError::invalid("series.count", "", "should be at least 2"));
    }
    if series.at(&["lastObservedTime"]).is_none() {
        errors.push(FieldError::required("series.lastObservedTime", ""));
    }
}

fn reported(errors: &mut Vec<FieldError>, event: &Value, controller_field: &str) {
    let controller = event.str_at(&["reportingComponent"]);
    if controller.is_empty() {
        errors.push(FieldError::required(controller_field, ""));
    }
    validation::invalid(errors, controller_field, controller, validation::qualified_name(controller));
    for (member, max) in [("reportingInstance", 128), ("action", 128), ("reason", 128), ("message", 1024)] {
        let text = event.str_at(&[member]);
        if text.is_empty() && member != "message" {
            errors.push(FieldError::required(member, ""));
        }
        if text.len() > max {
            errors.push(FieldError::invalid(member, "", format!("can have at most {max} characters")));
        }
    }
}

fn row(event: &Value, now: Time) -> Vec<Value> {
    let text = |path: &[&str]| event.str_at(path);
    let first = match text(&["firstTimestamp"]) {
        "" => table::since(text(&["eventTime"]), now),
        time => table::since(time, now),
    };
    let (mut last, mut count) = match text(&["lastTimestamp"]) {
        "" => (first.clone(), event.i64_at(&["count"]).unwrap_or(0)),
        time => (table::since(time, now), event.i64_at(&["count"]).unwrap_or(0)),
    };
    if let Some(series) = event.at(&["series"]) {
        last = table::since(series.str_at(&["lastObservedTime"]), now);
        count = series.i64_at(&["count"]).unwrap_or(0);
    } else if count == 0 {
        count = 1;
    }
    let object = format!("{}/{}", text(&["involvedObject", "kind"]).to_lowercase(), text(&["involvedObject", "name"]));
    let (component, host) = match text(&["source", "component"]) {
        "" => (text(&["reportingComponent"]), text(&["reportingInstance"])),
        component => (component, text(&["source", "host"])),
    };
    let source = if host.is_empty() { component.to_string() } else { format!("{component}, {host}") };
    vec![
        last.into(),
        text(&["type"]).into(),
        text(&["reason"]).into(),
        object.into(),
        text(&["involvedObject", "fieldPath"]).into(),
        source.into(),
        text(&["message"]).trim().into(),
        first.into(),
        count.into(),
        text(&["metadata", "name"]).into(),
    ]
}
