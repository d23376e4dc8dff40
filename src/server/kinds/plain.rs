//! Kinds whose behaviour is a row of facts: what kubectl shows of them, a few defaults, and how verbs treat them.

use crate::api::resource::{self, Resource};
use crate::api::time::Time;
use crate::api::value::Value;
use crate::server::kinds::apps::containers;
use crate::server::kinds::core::{pod_defaults, print_selector};
use crate::server::kinds::none;
use crate::server::strategy::{Column, NameRule, Propagation, Strategy};
use crate::server::table;

/// One cell of a row, computed from the object.
enum Cell {
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
    resource: &'static Resource,
    columns: &'static [Column],
    cells: &'static [Cell],
    default: fn(&mut Value),
    generation: bool,
    returns_deleted: bool,
    create_on_update: bool,
    unconditional_update: bool,
    acted_on: bool,
    propagation: Propagation,
    name_rule: NameRule,
}

const fn plain(resource: &'static Resource, columns: &'static [Column], cells: &'static [Cell]) -> Plain {
    Plain {
        resource,
        columns,
        cells,
        default: |_| {},
        generation: false,
        returns_deleted: false,
        create_on_update: false,
        unconditional_update: true,
        acted_on: false,
        propagation: Propagation::Background,
        name_rule: NameRule::Subdomain,
    }
}

const fn string(name: &'static str) -> Column {
    Column::new(name, "string")
}
const fn integer(name: &'static str) -> Column {
    Column::new(name, "integer")
}

/// The rows, in reading order.
pub fn rows() -> Vec<Box<dyn Strategy>> {
    let rows = vec![
        Plain {
            default: replicated,
            generation: true,
            acted_on: true,
            ..plain(
                &resource::STATEFULSETS,
                const { &[Column::NAME, string("Ready"), Column::AGE, Column::wide("Containers", "string"), Column::wide("Images", "string")] },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| {
                        let count = |path: &[&str]| o.i64_at(path).unwrap_or(0);
                        format!("{}/{}", count(&["status", "readyReplicas"]), count(&["spec", "replicas"])).into()
                    }),
                    Cell::Age,
                    Cell::Containers,
                    Cell::Images,
                ],
            )
        },
        Plain {
            default: daemon,
            generation: true,
            acted_on: true,
            ..plain(
                &resource::DAEMONSETS,
                const {
                    &[
                        Column::NAME,
                        integer("Desired"),
                        integer("Current"),
                        integer("Ready"),
                        integer("Up-to-date"),
                        integer("Available"),
                        string("Node Selector"),
                        Column::AGE,
                        Column::wide("Containers", "string"),
                        Column::wide("Images", "string"),
                        Column::wide("Selector", "string"),
                    ]
                },
                &[
                    Cell::Name,
                    Cell::Number(&["status", "desiredNumberScheduled"]),
                    Cell::Number(&["status", "currentNumberScheduled"]),
                    Cell::Number(&["status", "numberReady"]),
                    Cell::Number(&["status", "updatedNumberScheduled"]),
                    Cell::Number(&["status", "numberAvailable"]),
                    Cell::Custom(|o, _| super::core::print_labels(o.map_at(&["spec", "template", "spec", "nodeSelector"])).into()),
                    Cell::Age,
                    Cell::Containers,
                    Cell::Images,
                    Cell::Selector,
                ],
            )
        },
        Plain {
            default: replication_controller,
            generation: true,
            acted_on: true,
            propagation: Propagation::Orphan,
            ..plain(
                &resource::REPLICATIONCONTROLLERS,
                const {
                    &[
                        Column::NAME,
                        integer("Desired"),
                        integer("Current"),
                        integer("Ready"),
                        Column::AGE,
                        Column::wide("Containers", "string"),
                        Column::wide("Images", "string"),
                        Column::wide("Selector", "string"),
                    ]
                },
                &[
                    Cell::Name,
                    Cell::Number(&["spec", "replicas"]),
                    Cell::Number(&["status", "replicas"]),
                    Cell::Number(&["status", "readyReplicas"]),
                    Cell::Age,
                    Cell::Containers,
                    Cell::Images,
                    Cell::Custom(|o, _| super::core::print_labels(o.map_at(&["spec", "selector"])).into()),
                ],
            )
        },
        Plain {
            default: priority_class,
            generation: true,
            acted_on: true,
            ..plain(
                &resource::PRIORITYCLASSES,
                const { &[Column::NAME, integer("Value"), Column::new("Global-Default", "boolean"), Column::AGE, string("PreemptionPolicy")] },
                &[Cell::Name, Cell::Number(&["value"]), Cell::Bool(&["globalDefault"]), Cell::Age, Cell::Text(&["preemptionPolicy"])],
            )
        },
        Plain {
            generation: true,
            unconditional_update: false,
            acted_on: true,
            name_rule: NameRule::PathSegment,
            ..plain(
                &resource::PODDISRUPTIONBUDGETS,
                const { &[Column::NAME, string("Min Available"), string("Max Unavailable"), integer("Allowed Disruptions"), Column::AGE] },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| count_or(o, "minAvailable")),
                    Cell::Custom(|o, _| count_or(o, "maxUnavailable")),
                    Cell::Number(&["status", "disruptionsAllowed"]),
                    Cell::Age,
                ],
            )
        },
        Plain {
            acted_on: true,
            ..plain(
                &resource::IPADDRESSES,
                const { &[Column::NAME, string("ParentRef")] },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| {
                        let part = |key: &str| o.str_at(&["spec", "parentRef", key]);
                        let parts = [part("resource"), part("namespace"), part("name")];
                        parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("/").into()
                    }),
                ],
            )
        },
        Plain {
            acted_on: true,
            ..plain(
                &resource::SERVICECIDRS,
                const { &[Column::NAME, string("CIDRs"), Column::AGE] },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| {
                        let all: Vec<&str> = o.list_at(&["spec", "cidrs"]).iter().filter_map(Value::as_str).collect();
                        all.join(",").into()
                    }),
                    Cell::Age,
                ],
            )
        },
        Plain {
            generation: true,
            ..plain(
                &resource::INGRESSCLASSES,
                const { &[Column::NAME, string("Controller"), string("Parameters"), Column::AGE] },
                &[
                    Cell::Name,
                    Cell::Text(&["spec", "controller"]),
                    Cell::Custom(|o, _| match o.at(&["spec", "parameters"]) {
                        None => "<none>".into(),
                        Some(p) => format!("{}/{}", p.str_at(&["kind"]), p.str_at(&["name"])).into(),
                    }),
                    Cell::Age,
                ],
            )
        },
        Plain {
            create_on_update: true,
            unconditional_update: false,
            ..plain(
                &resource::RUNTIMECLASSES,
                const { &[Column::NAME, string("Handler"), Column::AGE] },
                &[Cell::Name, Cell::Text(&["handler"]), Cell::Age],
            )
        },
        Plain {
            create_on_update: true,
            ..plain(
                &resource::LIMITRANGES,
                const { &[Column::NAME, Column::new("Created At", "date")] },
                &[Cell::Name, Cell::Text(&["metadata", "creationTimestamp"])],
            )
        },
        Plain {
            returns_deleted: true,
            default: |o| {
                o.make_map(&[]).insert_default("reclaimPolicy", "Delete");
                o.make_map(&[]).insert_default("volumeBindingMode", "Immediate");
            },
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
            generation: true,
            default: network_policy,
            ..plain(
                &resource::NETWORKPOLICIES,
                const { &[Column::NAME, string("Pod-Selector"), Column::AGE] },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| print_selector(o.at(&["spec", "podSelector"]).unwrap_or(&Value::Null)).into()),
                    Cell::Age,
                ],
            )
        },
        Plain {
            generation: true,
            default: cron_job,
            ..plain(
                &resource::CRONJOBS,
                const {
                    &[
                        Column::NAME,
                        string("Schedule"),
                        string("Timezone"),
                        Column::new("Suspend", "boolean"),
                        integer("Active"),
                        string("Last Schedule"),
                        Column::AGE,
                    ]
                },
                &[
                    Cell::Name,
                    Cell::Text(&["spec", "schedule"]),
                    Cell::OrNone(&["spec", "timeZone"]),
                    Cell::Custom(|o, _| if o.bool_at(&["spec", "suspend"]) { "True".into() } else { "False".into() }),
                    Cell::Custom(|o, _| (o.list_at(&["status", "active"]).len() as i64).into()),
                    Cell::Custom(|o, now| match o.str_at(&["status", "lastScheduleTime"]) {
                        "" => "<none>".into(),
                        time => table::since(time, now).into(),
                    }),
                    Cell::Age,
                ],
            )
        },
    ];
    rows.into_iter().map(|row| Box::new(row) as Box<dyn Strategy>).collect()
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

fn count_or(object: &Value, key: &str) -> Value {
    match object.at(&["spec", key]) {
        Some(Value::Int(n)) => n.to_string().into(),
        Some(Value::Str(s)) => s.as_str().into(),
        _ => "N/A".into(),
    }
}

fn replicated(object: &mut Value) {
    let spec = object.make_map(&["spec"]);
    spec.insert_default("replicas", 1);
    spec.insert_default("revisionHistoryLimit", 10);
    spec.insert_default("podManagementPolicy", "OrderedReady");
    let strategy = spec.map_slot("updateStrategy");
    strategy.insert_default("type", "RollingUpdate");
    if strategy.str("type") == "RollingUpdate" {
        strategy.map_slot("rollingUpdate").insert_default("partition", 0);
    }
    let retention = spec.map_slot("persistentVolumeClaimRetentionPolicy");
    retention.insert_default("whenDeleted", "Retain");
    retention.insert_default("whenScaled", "Retain");
    pod_defaults::template(spec.slot("template"));
}

fn daemon(object: &mut Value) {
    let spec = object.make_map(&["spec"]);
    spec.insert_default("revisionHistoryLimit", 10);
    let strategy = spec.map_slot("updateStrategy");
    strategy.insert_default("type", "RollingUpdate");
    if strategy.str("type") == "RollingUpdate" {
        let rolling = strategy.map_slot("rollingUpdate");
        rolling.insert_default("maxUnavailable", 1);
        rolling.insert_default("maxSurge", 0);
    }
    pod_defaults::template(spec.slot("template"));
}

fn replication_controller(object: &mut Value) {
    let labels = object.at(&["spec", "template", "metadata", "labels"]).cloned();
    let spec = object.make_map(&["spec"]);
    spec.insert_default("replicas", 1);
    if let Some(labels) = labels {
        spec.insert_default("selector", labels.clone());
        object.make_map(&["metadata"]).insert_default("labels", labels);
    }
    pod_defaults::template(object.make_map(&["spec"]).slot("template"));
}

fn network_policy(object: &mut Value) {
    let mut types = vec!["Ingress"];
    if !object.list_at(&["spec", "egress"]).is_empty() {
        types.push("Egress");
    }
    object.make_map(&["spec"]).insert_default("policyTypes", types);
}

fn cron_job(object: &mut Value) {
    let spec = object.make_map(&["spec"]);
    spec.insert_default("concurrencyPolicy", "Allow");
    spec.insert_default("suspend", false);
    spec.insert_default("successfulJobsHistoryLimit", 3);
    spec.insert_default("failedJobsHistoryLimit", 1);
    pod_defaults::template(spec.map_slot("jobTemplate").map_slot("spec").slot("template"));
}

fn priority_class(object: &mut Value) {
    object.make_map(&[]).insert_default("preemptionPolicy", "PreemptLowerPriority");
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
            assert_eq!(row.row(&object, Time::from_seconds(0)).len(), row.columns().len(), "{}", row.resource());
        }
    }
}
