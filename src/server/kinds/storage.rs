//! The storage group: classes, CSI drivers and nodes, attachments, capacities.

use crate::api::resource;
use crate::api::value::Value;
use crate::server::cursor::{At, same};
use crate::server::kinds::core::volumes;
use crate::server::kinds::plain::{Cell, Plain, integer, plain, string};
use crate::server::strategy::Column;
use crate::server::validation;

pub fn rows() -> Vec<Plain> {
    vec![
        Plain {
            returns_deleted: true,
            default: |o| {
                o.make_map(&[]).insert_default("reclaimPolicy", "Delete");
                o.make_map(&[]).insert_default("volumeBindingMode", "Immediate");
            },
            rules: storage_class,
            ..plain(
                &resource::STORAGECLASSES,
                const {
                    &[
                        Column::NAME,
                        string("Provisioner"),
                        string("ReclaimPolicy"),
                        string("VolumeBindingMode"),
                        string("AllowVolumeExpansion"),
                        Column::AGE,
                    ]
                },
                &[
                    Cell::Custom(|o, _| {
                        let name = o.str_at(&["metadata", "name"]);
                        let default = o.str_at(&["metadata", "annotations", "storageclass.kubernetes.io/is-default-class"]) == "true";
                        if default { format!("{name} (default)").into() } else { name.into() }
                    }),
                    Cell::Text(&["provisioner"]),
                    Cell::Text(&["reclaimPolicy"]),
                    Cell::Text(&["volumeBindingMode"]),
                    Cell::Bool(&["allowVolumeExpansion"]),
                    Cell::Age,
                ],
            )
        },
        Plain {
            returns_deleted: true,
            unconditional_update: false,
            default: default_csi_driver,
            prepare: |_, o| drop(o.remove(&["spec", "preventPodSchedulingIfMissing"])),
            prepare_update: |_, new, old| {
                if old.at(&["spec", "preventPodSchedulingIfMissing"]).is_none() {
                    new.remove(&["spec", "preventPodSchedulingIfMissing"]);
                }
                // Changes are counted from the first on.
                if !same(new.at(&["spec"]).unwrap_or(&Value::Null), old.at(&["spec"]).unwrap_or(&Value::Null)) {
                    let generation = old.i64_at(&["metadata", "generation"]).unwrap_or(0);
                    new.set(&["metadata", "generation"], generation + 1);
                }
            },
            rules: csi_driver,
            ..plain(
                &resource::CSIDRIVERS,
                const {
                    &[
                        Column::NAME,
                        Column::new("AttachRequired", "boolean"),
                        Column::new("PodInfoOnMount", "boolean"),
                        Column::new("StorageCapacity", "boolean"),
                        string("TokenRequests"),
                        Column::new("RequiresRepublish", "boolean"),
                        string("Modes"),
                        Column::AGE,
                    ]
                },
                &[
                    Cell::Name,
                    Cell::Bool(&["spec", "attachRequired"]),
                    Cell::Bool(&["spec", "podInfoOnMount"]),
                    Cell::Bool(&["spec", "storageCapacity"]),
                    Cell::Custom(|o, _| {
                        let audiences: Vec<&str> = o.list_at(&["spec", "tokenRequests"]).iter().map(|t| t.str_at(&["audience"])).collect();
                        if audiences.is_empty() { "<unset>".into() } else { audiences.join(",").into() }
                    }),
                    Cell::Bool(&["spec", "requiresRepublish"]),
                    Cell::Custom(|o, _| {
                        let modes: Vec<&str> = o.list_at(&["spec", "volumeLifecycleModes"]).iter().filter_map(Value::as_str).collect();
                        if modes.is_empty() { "<none>".into() } else { modes.join(",").into() }
                    }),
                    Cell::Age,
                ],
            )
        },
        Plain {
            returns_deleted: true,
            unconditional_update: false,
            rules: csi_node,
            ..plain(
                &resource::CSINODES,
                const { &[Column::NAME, integer("Drivers"), Column::AGE] },
                &[Cell::Name, Cell::Custom(|o, _| (o.list_at(&["spec", "drivers"]).len() as i64).into()), Cell::Age],
            )
        },
        Plain {
            unconditional_update: false,
            rules: storage_capacity,
            ..plain(
                &resource::CSISTORAGECAPACITIES,
                const { &[Column::NAME, Column::new("Created At", "date")] },
                &[Cell::Name, Cell::Text(&["metadata", "creationTimestamp"])],
            )
        },
        Plain {
            returns_deleted: true,
            unconditional_update: false,
            rules: |new, old| {
                volume_attachment(new);
                if let Some(old) = old {
                    new.get("spec").immutable(&old.get("spec"));
                }
            },
            status_rules: |new, old| {
                volume_attachment(new);
                new.get("spec").immutable(&old.get("spec"));
            },
            ..plain(
                &resource::VOLUMEATTACHMENTS,
                const {
                    &[
                        Column::NAME,
                        Column { format: "name", ..string("Attacher") },
                        string("PV"),
                        string("Node"),
                        Column::new("Attached", "boolean"),
                        Column::AGE,
                    ]
                },
                &[
                    Cell::Name,
                    Cell::Text(&["spec", "attacher"]),
                    Cell::Text(&["spec", "source", "persistentVolumeName"]),
                    Cell::Text(&["spec", "nodeName"]),
                    Cell::Bool(&["status", "attached"]),
                    Cell::Age,
                ],
            )
        },
        Plain {
            returns_deleted: true,
            rules: attributes_class,
            ..plain(
                &resource::VOLUMEATTRIBUTESCLASSES,
                const { &[Column::NAME, string("DriverName"), Column::AGE] },
                &[
                    Cell::Custom(|o, _| {
                        let name = o.str_at(&["metadata", "name"]);
                        let default = o.str_at(&["metadata", "annotations", "volumeattributesclass.alpha.kubernetes.io/is-default-class"]);
                        if default == "true" { format!("{name} (default)").into() } else { name.into() }
                    }),
                    Cell::Text(&["driverName"]),
                    Cell::Age,
                ],
            )
        },
    ]
}

fn storage_class(class: &At, old: Option<&At>) {
    provisioner(&class.get("provisioner"));
    parameters(&class.get("parameters"), true);
    let reclaim = class.get("reclaimPolicy");
    if !reclaim.is_empty() {
        reclaim.one_of(&["Delete", "Retain"]);
    }
    class.get("volumeBindingMode").one_of(&["Immediate", "WaitForFirstConsumer"]);
    let topologies = class.get("allowedTopologies").each();
    for (i, term) in topologies.iter().enumerate() {
        volumes::topology_term(term);
        let expressions = term.get("matchLabelExpressions");
        // Upstream compares with as many terms as there are, of which those yet to come are empty.
        if expressions.is_empty() || topologies[..i].iter().any(|t| same(t.get("matchLabelExpressions").value, expressions.value)) {
            expressions.over(Some(&Value::Str(String::new()))).duplicate();
        }
    }
    if let Some(old) = old {
        for key in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
            class.get(key).immutable(&old.get(key));
        }
    }
}

fn provisioner(at: &At) {
    if at.must() {
        validation::qualified_name(&at.str().to_lowercase()).into_iter().for_each(|m| at.invalid_as(at.str().to_lowercase(), m));
    }
}

const PARAMETERS_BYTES_MAX: usize = 256 * 1024;
const PARAMETERS_MAX: usize = 512;

fn parameters(at: &At, may_be_empty: bool) {
    if at.len() > PARAMETERS_MAX {
        return at.too_long(PARAMETERS_MAX);
    }
    let mut bytes = 0;
    for (key, value) in at.entries() {
        if key.is_empty() {
            at.invalid_as(key, "field can not be empty.");
        }
        bytes += key.len() + value.len();
    }
    if bytes > PARAMETERS_BYTES_MAX {
        at.too_long(PARAMETERS_BYTES_MAX);
    }
    if !may_be_empty && at.is_empty() {
        at.required("must contain at least one key/value pair");
    }
}

fn default_csi_driver(object: &mut Value) {
    let spec = object.make_map(&["spec"]);
    spec.insert_default("attachRequired", true);
    spec.insert_default("podInfoOnMount", false);
    spec.insert_default("storageCapacity", false);
    spec.insert_default("fsGroupPolicy", "ReadWriteOnceWithFSType");
    if spec.get("volumeLifecycleModes").and_then(Value::as_list).is_none_or(<[Value]>::is_empty) {
        spec.insert("volumeLifecycleModes", vec!["Persistent"]);
    }
    spec.insert_default("requiresRepublish", false);
    spec.insert_default("seLinuxMount", false);
}

fn csi_driver(driver: &At, old: Option<&At>) {
    let spec = driver.get("spec");
    let policy = spec.get("fsGroupPolicy");
    policy.maybe_one_of(&["File", "None", "ReadWriteOnceWithFSType"]);
    let requests = spec.get("tokenRequests");
    let mut audiences: Vec<&str> = Vec::new();
    for request in requests.each() {
        let (audience, seconds) = (request.get("audience"), request.get("expirationSeconds"));
        if audiences.contains(&audience.str()) {
            audience.over(Some(audience.value)).push(crate::api::status::FieldError::duplicate(audience.path, audience.str()));
            continue;
        }
        audiences.push(audience.str());
        if seconds.is_set() && seconds.int() < 600 {
            seconds.invalid("may not specify a duration less than 10 minutes");
        }
        if seconds.int() > 1 << 32 {
            seconds.invalid("may not specify a duration larger than 2^32 seconds");
        }
    }
    let modes = spec.get("volumeLifecycleModes");
    for mode in modes.each() {
        mode.called(modes.path).one_of(&["Persistent", "Ephemeral"]);
    }
    let period = spec.get("nodeAllocatableUpdatePeriodSeconds");
    if period.is_set() && period.int() < 10 {
        period.invalid("must be greater than or equal to 10 seconds");
    }
    let in_secrets = spec.get("serviceAccountTokenInSecrets");
    if in_secrets.is_set() && requests.is_empty() {
        in_secrets.invalid("serviceAccountTokenInSecrets is set but no tokenRequests are specified");
    }
    if let Some(old) = old.map(|o| o.get("spec")) {
        spec.get("attachRequired").called("spec.attachedRequired").immutable(&old.get("attachRequired"));
        modes.immutable(&old.get("volumeLifecycleModes"));
    }
}

fn csi_node(node: &At, old: Option<&At>) {
    let drivers = node.at(&["spec", "drivers"]);
    let mut names: Vec<&str> = Vec::new();
    for driver in drivers.each() {
        let (name, id) = (driver.get("name"), driver.get("nodeID"));
        volumes::csi_driver_name(&name);
        id.must();
        if id.len() > 256 {
            id.invalid("must be 256 characters or less");
        }
        driver.at(&["allocatable", "count"]).not_negative();
        if names.contains(&name.str()) {
            name.duplicate();
        }
        names.push(name.str());
        let mut keys: Vec<&str> = Vec::new();
        for key in driver.get("topologyKeys").each() {
            let key = key.called(driver.path);
            if key.is_empty() {
                key.required("");
            }
            if keys.contains(&key.str()) {
                key.duplicate();
            }
            keys.push(key.str());
            key.ok(validation::qualified_name);
        }
    }
    let before = old.map_or_else(Vec::new, |o| o.at(&["spec", "drivers"]).each());
    let fixed = |driver: &At| -> Value {
        let mut value = driver.value.clone();
        value.remove(&["allocatable"]);
        value
    };
    for was in &before {
        for driver in drivers.each().iter().filter(|d| d.get("name").str() == was.get("name").str()) {
            let (new, old) = (fixed(driver), fixed(was));
            if !same(&new, &old) {
                let shown = driver.over(Some(&new)).shown();
                drivers
                    .push(validation::shown_as(crate::api::status::FieldError::invalid("spec.drivers", "", validation::IMMUTABLE), shown));
            }
        }
    }
}

fn storage_capacity(capacity: &At, old: Option<&At>) {
    let (topology, class, amount) = (capacity.get("nodeTopology"), capacity.get("storageClassName"), capacity.get("capacity"));
    if let Some(old) = old {
        topology.immutable(&old.get("nodeTopology"));
        return class.immutable(&old.get("storageClassName"));
    }
    topology.label_selector();
    class.ok(validation::subdomain);
    if amount.quantity().is_some_and(|q| q.sign() < 0) {
        amount.invalid("must be greater than or equal to 0");
    }
}

fn volume_attachment(attachment: &At) {
    let (spec, status) = (attachment.get("spec"), attachment.get("status"));
    volumes::csi_driver_name(&spec.get("attacher"));
    let source = spec.get("source");
    let (inline, name) = (source.get("inlineVolumeSpec"), source.get("persistentVolumeName"));
    match (inline.is_set(), name.is_set()) {
        (false, false) => source.required("must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
        (true, true) => source.forbidden("must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
        (false, true) if name.is_empty() => name.required("must specify non empty persistentVolumeName"),
        (false, true) => {}
        (true, false) => volumes::spec(&inline, "", true, None),
    }
    spec.get("nodeName").ok(validation::subdomain);
    let metadata = status.get("attachmentMetadata");
    let bytes: usize = metadata.entries().iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > PARAMETERS_BYTES_MAX {
        metadata.too_long(PARAMETERS_BYTES_MAX);
    }
    for key in ["attachError", "detachError"] {
        let (message, code) = (status.at(&[key, "message"]), status.at(&[key, "errorCode"]));
        if message.len() > 1024 {
            message.too_long(PARAMETERS_BYTES_MAX);
        }
        if code.int() < 0 {
            code.invalid("must be between 0 and 2147483647, inclusive");
        }
    }
    if name.is_set() {
        name.ok(validation::subdomain);
    }
}

fn attributes_class(class: &At, old: Option<&At>) {
    let (driver, given) = (class.get("driverName"), class.get("parameters"));
    if let Some(old) = old {
        if driver.str() != old.get("driverName").str() {
            driver.forbidden("updates to driverName are forbidden.");
        }
        if !same(given.value, old.get("parameters").value) {
            given.forbidden("updates to parameters are forbidden.");
        }
    }
    provisioner(&driver);
    parameters(&given, false);
}
