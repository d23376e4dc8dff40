//! Events: one storage (core/v1) behind two APIs, gone after an hour.

use crate::api::resource::{self, Resource};
use crate::api::status::{FieldError, Result};
use crate::api::time::Time;
use crate::api::value::Value;
use crate::server::strategy::{Column, Context, NameRule, Selectable, Strategy};
use crate::server::{table, validation};

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
    ($object:literal, $reporter:literal) => {
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
                Selectable::new("source", &["source", "component"]),
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
        if context.resource.group.is_empty() { legacy(event) } else { strict(event) }
    }
    fn validate_update(&self, context: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.resource.group.is_empty() {
            return legacy(new);
        }
        let mut errors = strict(new);
        for (member, field) in [
            ("involvedObject", "involvedObject"),
            ("reason", "reason"),
            ("message", "message"),
            ("source", "source"),
            ("firstTimestamp", "firstTimestamp"),
            ("lastTimestamp", "lastTimestamp"),
            ("count", "count"),
            ("type", "type"),
            ("eventTime", "eventTime"),
            ("action", "action"),
            ("related", "related"),
            ("reportingComponent", "reportingController"),
            ("reportingInstance", "reportingInstance"),
        ] {
            validation::immutable(&mut errors, field, new.get(member), old.get(member));
        }
        errors
    }
    /// The core API takes any name; events.k8s.io checks it in [`strict`].
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }
    fn ttl_seconds(&self, _: &Value) -> Option<u32> {
        Some(3600)
    }
    fn is_relaxed(&self, _: &Value) -> bool {
        true
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
    fn selectable(&self, as_: &'static Resource) -> &'static [Selectable] {
        if as_.group.is_empty() {
            selectable!("involvedObject", "reportingComponent")
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
            map.insert(to, value);
        }
    }
}

/// The namespace of an event is that of what it is about; events about cluster-scoped objects live in `default`.
fn namespace_matches(errors: &mut Vec<FieldError>, event: &Value) {
    let (own, about) = (event.str_at(&["metadata", "namespace"]), event.str_at(&["involvedObject", "namespace"]));
    let fits = if about.is_empty() { matches!(own, "default" | "kube-system") } else { own == about };
    if !fits {
        errors.push(FieldError::invalid("involvedObject.namespace", about, "does not match event.namespace"));
    }
}

fn legacy(event: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    namespace_matches(&mut errors, event);
    if event.at(&["eventTime"]).is_some() {
        reported(&mut errors, event, "reportingComponent");
    }
    errors
}

fn strict(event: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    namespace_matches(&mut errors, event);
    let name = event.str_at(&["metadata", "name"]);
    if !name.is_empty() {
        validation::invalid(&mut errors, "metadata.name", name, validation::subdomain(name));
    }
    match event.at(&["eventTime"]) {
        None => errors.push(FieldError::required("eventTime", "")),
        Some(_) => reported(&mut errors, event, "reportingController"),
    }
    let kind = event.str_at(&["type"]);
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(FieldError::invalid("type", "", format!("has invalid value: {kind}")));
    }
    if let Some(series) = event.at(&["series"]) {
        if series.i64_at(&["count"]).unwrap_or(0) < 2 {
            errors.push(FieldError::invalid("series.count", "", "should be at least 2"));
        }
        if series.at(&["lastObservedTime"]).is_none() {
            errors.push(FieldError::required("series.lastObservedTime", ""));
        }
    }
    errors
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
