//! Persistent volume claims, alone and as templates in pods and stateful sets.

use crate::api::quantity::Quantity;
use crate::api::resource;
use crate::api::schema;
use crate::api::status::FieldError;
use crate::api::value::{Map, Value};
use crate::server::cursor::{At, same};
use crate::server::kinds::core::{pod_defaults, volumes};
use crate::server::kinds::plain::{Cell, Plain, plain, string};
use crate::server::strategy::Column;
use crate::server::validation;

pub fn rows() -> Vec<Plain> {
    vec![Plain {
        returns_deleted: true,
        default: |o| {
            pod_defaults::default_str(o.make_map(&["status"]), "phase", "Pending");
            default_spec(o.make_map(&["spec"]));
        },
        prepare: |_, o| {
            o.set(&["status", "phase"], "Pending");
            source_twice(o.make_map(&["spec"]), None);
        },
        prepare_update: |_, new, old| {
            source_twice(new.make_map(&["spec"]), Some(old));
        },
        rules: |new, old| {
            spec(&new.get("spec"), old.map(|o| o.get("spec")).as_ref());
            if let Some(old) = old {
                update(new, old);
            }
        },
        status_rules: status,
        ..plain(
            &resource::PERSISTENTVOLUMECLAIMS,
            const {
                &[
                    Column::NAME,
                    string("Status"),
                    string("Volume"),
                    string("Capacity"),
                    string("Access Modes"),
                    string("StorageClass"),
                    string("VolumeAttributesClass"),
                    Column::AGE,
                    Column::wide("VolumeMode", "string"),
                ]
            },
            &[
                Cell::Name,
                Cell::Custom(|o, _| {
                    let deleting = o.at(&["metadata", "deletionTimestamp"]).is_some();
                    if deleting { "Terminating".into() } else { o.str_at(&["status", "phase"]).into() }
                }),
                Cell::Text(&["spec", "volumeName"]),
                Cell::Custom(|o, _| {
                    let bound = !o.str_at(&["spec", "volumeName"]).is_empty();
                    let amount = o.str_at(&["status", "capacity", "storage"]);
                    if !bound {
                        "".into()
                    } else if amount.is_empty() {
                        "0".into()
                    } else {
                        amount.into()
                    }
                }),
                Cell::Custom(|o, _| {
                    let bound = !o.str_at(&["spec", "volumeName"]).is_empty();
                    if bound { volumes::print_modes(o.list_at(&["status", "accessModes"])).into() } else { "".into() }
                }),
                Cell::Custom(|o, _| volumes::print_class(o).into()),
                Cell::Custom(|o, _| volumes::or_unset(o.str_at(&["spec", "volumeAttributesClassName"]))),
                Cell::Age,
                Cell::Custom(|o, _| volumes::or_unset(o.str_at(&["spec", "volumeMode"]))),
            ],
        )
    }]
}

fn default_spec(spec: &mut Map) {
    spec.insert_default("volumeMode", "Filesystem");
}

/// A claim template of a stateful set is a whole claim.
pub fn default_template(claim: &mut Map) {
    pod_defaults::default_str(claim.map_slot("status"), "phase", "Pending");
    default_spec(claim.map_slot("spec"));
}

/// Sources in `dataSource` that are no claims or snapshots never counted and are dropped from old clients' requests. Then
/// `dataSource` is what `dataSourceRef` was before it could name other namespaces: each fills the other in.
fn source_twice(spec: &mut Map, old: Option<&Value>) {
    let get = |spec: &Map, key: &str| spec.get(key).filter(|v| !v.is_null()).cloned();
    let had_source = old.is_some_and(|o| ["dataSource", "dataSourceRef"].iter().any(|key| o.at(&["spec", key]).is_some()));
    let fits = |source: &Value| {
        let (kind, group) = (source.str_at(&["kind"]), source.str_at(&["apiGroup"]));
        matches!((kind, group), ("PersistentVolumeClaim", "") | ("VolumeSnapshot", "snapshot.storage.k8s.io"))
    };
    // Sources in other namespaces stand behind a gate that is off.
    if !had_source && get(spec, "dataSourceRef").is_some_and(|r| !r.str_at(&["namespace"]).is_empty()) {
        spec.remove("dataSourceRef");
    }
    if !had_source && get(spec, "dataSourceRef").is_none() && get(spec, "dataSource").is_some_and(|s| !fits(&s)) {
        spec.remove("dataSource");
    }
    match (get(spec, "dataSource"), get(spec, "dataSourceRef")) {
        (Some(source), None) => drop(spec.insert("dataSourceRef", source)),
        (None, Some(mut reference)) if reference.str_at(&["namespace"]).is_empty() => {
            reference.remove(&["namespace"]);
            spec.insert("dataSource", reference);
        }
        _ => {}
    }
}

/// `spec` of a claim; `old` is what it was.
pub fn spec(spec: &At, old: Option<&At>) {
    let get = |key: &'static str| spec.get(key);
    get("accessModes").must_because("at least 1 access mode is required");
    get("selector").label_selector();
    volumes::access_modes(&get("accessModes"));
    let resources = get("resources");
    let wanted = resources.at(&["requests", "storage"]).called(format!("{}[storage]", resources.path));
    match wanted.quantity() {
        None => wanted.required(""),
        Some(q) if q.sign() <= 0 => wanted.invalid("must be greater than zero"),
        Some(_) => {}
    }
    get("storageClassName").may_be(validation::subdomain);
    get("volumeMode").maybe_one_of(&["Block", "Filesystem"]);
    let has_group = |o: &At| ["dataSource", "dataSourceRef"].iter().any(|key| o.get(key).get("apiGroup").is_set());
    let tolerate = old.is_some_and(has_group);
    let (source, reference) = (get("dataSource"), get("dataSourceRef"));
    for at in [&source, &reference] {
        if at.is_set() {
            data_source(at, tolerate);
        }
    }
    let namespace = reference.get("namespace");
    namespace.may_be(validation::label);
    let shown = format!("\"{}\"", source.path);
    let wrong = |why: &str| {
        let error = FieldError::invalid(spec.path, "", why);
        spec.push(validation::shown_as(error, shown.clone()));
    };
    if source.is_set() && reference.is_set() {
        let equal = ["apiGroup", "kind", "name"].iter().all(|key| source.get(key).value == reference.get(key).value);
        if !namespace.is_empty() {
            wrong("may not be specified when dataSourceRef.namespace is specified");
        } else if !equal {
            wrong("must match dataSourceRef");
        }
    }
    get("volumeAttributesClassName").may_be(validation::subdomain);
}

fn data_source(at: &At, tolerate: bool) {
    let (group, kind) = (at.get("apiGroup"), at.get("kind"));
    at.get("name").must();
    kind.must();
    if group.is_empty() && kind.str() != "PersistentVolumeClaim" {
        at.invalid_as(kind.str(), "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
    }
    if !tolerate {
        group.may_be(validation::subdomain);
    }
}

fn update(claim: &At, old: &At) {
    const CLASS_ANNOTATION: [&str; 3] = ["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"];
    const STORAGE: [&str; 3] = ["resources", "requests", "storage"];
    let (spec, was) = (claim.get("spec"), old.get("spec"));
    let (mut new, mut before) = (spec.value.clone(), was.value.clone());
    let set = |v: &mut Value, path: &[&str], to: Option<&Value>| match to {
        Some(to) => v.set(path, to.clone()),
        None => drop(v.remove(path)),
    };
    if was.get("volumeName").is_empty() {
        set(&mut before, &["volumeName"], new.clone().at(&["volumeName"]));
    }
    let (annotated, was_annotated) = (claim.at(&CLASS_ANNOTATION), old.at(&CLASS_ANNOTATION));
    let (class, was_class) = (spec.get("storageClassName"), was.get("storageClassName"));
    let from_annotation = was_annotated.is_set()
        && !was_class.is_set()
        && class.is_set()
        && class.str() == was_annotated.str()
        && (!annotated.is_set() || annotated.str() == was_annotated.str());
    if from_annotation {
        new.remove(&["storageClassName"]);
    } else {
        if annotated.str() != was_annotated.str() {
            annotated.invalid_as(annotated.str(), validation::IMMUTABLE);
        }
        if class.is_set() && !was_class.is_set() && (!was_annotated.is_set() || class.str() == was_annotated.str()) {
            set(&mut new, &["storageClassName"], None);
        }
    }
    if claim.at(&["status", "phase"]).str() == "Bound" {
        if spec.at(&["resources", "requests"]).is_set() {
            set(&mut new, &STORAGE, was.value.at(&STORAGE));
        }
        set(&mut new, &["volumeAttributesClassName"], was.value.at(&["volumeAttributesClassName"]));
    }
    if !same(&new, &before) {
        const WHY: &str = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        let ty = schema::type_named("io.k8s.api.core.v1.PersistentVolumeClaimSpec").expect("named from the table");
        spec.forbidden(format!("{WHY}\n{}", schema::diff(ty, &before, &new, None)));
    }
    let amount = |at: &At, path: &[&'static str]| at.at(path).quantity().unwrap_or_else(|| Quantity::new(0));
    let (size, old_size) = (amount(&spec, &STORAGE), amount(&was, &STORAGE));
    if size < old_size && size <= amount(old, &["status", "capacity", "storage"]) {
        spec.at(&STORAGE).forbidden("field can not be less than status.capacity");
    }
    spec.get("volumeMode").called("volumeMode").immutable(&was.get("volumeMode"));
    let attributes = spec.get("volumeAttributesClassName");
    if attributes.value != was.get("volumeAttributesClassName").value && old.at(&["status", "currentVolumeAttributesClassName"]).is_set() {
        const WHEN: &str = "is forbidden when status.currentVolumeAttributesClassName is not nil";
        match (attributes.is_set(), attributes.is_empty()) {
            (false, _) => attributes.forbidden(format!("update to nil {WHEN}")),
            (true, true) => attributes.forbidden(format!("update to empty string {WHEN}")),
            _ => {}
        }
    }
}

fn status(claim: &At, _: &At) {
    if claim.at(&["spec", "accessModes"]).is_empty() {
        claim.at(&["spec", "accessModes"]).called("Spec.accessModes").required("");
    }
    let status = claim.get("status");
    for (_, amount) in status.get("capacity").entries() {
        basic(&amount);
    }
    let statuses = status.get("allocatedResourceStatuses");
    for (key, value) in statuses.entries() {
        resource_key(&statuses, key);
        const KNOWN: [&str; 5] = [
            "ControllerResizeInProgress",
            "ControllerResizeInfeasible",
            "NodeResizeInProgress",
            "NodeResizeInfeasible",
            "NodeResizePending",
        ];
        if !KNOWN.contains(&value.str()) {
            statuses.push(FieldError::not_supported(
                statuses.path,
                key,
                &[
                    "ControllerResizeInProgress",
                    "ControllerResizeInfeasible",
                    "NodeResizeInProgress",
                    "NodeResizeInfeasible",
                    "NodeResizePending",
                ],
            ));
        }
    }
    let allocated = status.get("allocatedResources");
    for (key, amount) in allocated.entries() {
        if resource_key(&allocated, key) {
            basic(&amount);
        }
    }
}

fn basic(amount: &At) {
    if let Some(n) = amount.quantity().map(|q| q.value()).filter(|n| *n < 0) {
        amount.invalid_as(n as i64, "must be a valid resource quantity");
    }
}

fn resource_key(at: &At, key: &str) -> bool {
    let messages = validation::qualified_name(key);
    let fine = messages.is_empty();
    messages.into_iter().for_each(|m| at.invalid_as(key, m));
    let native = !key.contains('/') || key.starts_with("kubernetes.io/") || key.contains(".kubernetes.io/");
    if fine && native && key != "storage" {
        at.push(FieldError::not_supported(at.path, key, &["storage"]));
        return false;
    }
    fine
}
