//! Replication controllers and pod templates: the first workload there was, and the template on its own.

use crate::api::resource;
use crate::api::value::Value;
use crate::server::cursor::At;
use crate::server::kinds::core::{pod_defaults, print_labels};
use crate::server::kinds::plain::{Cell, Plain, integer, plain, string};
use crate::server::kinds::workload;
use crate::server::strategy::{Column, NameRule, Propagation, Selectable};
use crate::server::validation;

pub fn rows() -> Vec<Plain> {
    vec![
        Plain {
            name_rule: NameRule::Custom(validation::long_name),
            default: default_controller,
            prepare: |_, o| {
                o.set(&["status", "replicas"], 0);
                drop_from_template(o);
            },
            prepare_update: |_, new, _| drop_from_template(new),
            rules: |new, _| controller(&new.get("spec")),
            status_rules: |new, _| {
                let status = new.get("status");
                workload::counts(
                    &status,
                    &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"],
                );
                for key in ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
                    workload::at_most(&status, key, "replicas", "status.replicas");
                }
                workload::at_most(&status, "availableReplicas", "readyReplicas", "readyReplicas");
            },
            warnings: |new, old| {
                let name = workload::name_warning(new).filter(|_| old.is_none());
                name.into_iter().chain(workload::template_warnings(new, old, &["spec", "template"])).collect()
            },
            selectable: const { &[Selectable { label: "status.replicas", path: &["status", "replicas"], absent: "0" }] },
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
                    Cell::Custom(|o, _| print_labels(o.map_at(&["spec", "selector"])).into()),
                ],
            )
        },
        Plain {
            default: |o| pod_defaults::template(o.make_map(&[]).slot("template")),
            prepare: |_, o| pod_defaults::drop_disabled(o.make_map(&["template", "spec"])),
            prepare_update: |_, new, _| pod_defaults::drop_disabled(new.make_map(&["template", "spec"])),
            rules: |new, _| workload::template(&new.get("template")),
            warnings: |new, old| workload::template_warnings(new, old, &["template"]),
            generation: true,
            returns_deleted: true,
            ..plain(
                &resource::PODTEMPLATES,
                const { &[Column::NAME, string("Containers"), string("Images"), string("Pod Labels")] },
                &[
                    Cell::Name,
                    Cell::Custom(|o, _| containers(o, "name").into()),
                    Cell::Custom(|o, _| containers(o, "image").into()),
                    Cell::Custom(|o, _| print_labels(o.map_at(&["template", "metadata", "labels"])).into()),
                ],
            )
        },
    ]
}

fn containers(template: &Value, key: &str) -> String {
    template.list_at(&["template", "spec", "containers"]).iter().map(|c| c.str_at(&[key])).collect::<Vec<_>>().join(",")
}

fn drop_from_template(controller: &mut Value) {
    if controller.at(&["spec", "template"]).is_some() {
        pod_defaults::drop_disabled(controller.make_map(&["spec", "template", "spec"]));
    }
}

fn default_controller(object: &mut Value) {
    let labels = object.at(&["spec", "template", "metadata", "labels"]).cloned();
    let is_empty = |v: &Value, path: &[&str]| v.map_at(path).is_none_or(|m| m.is_empty());
    if let Some(labels) = labels {
        if is_empty(object, &["spec", "selector"]) {
            object.set(&["spec", "selector"], labels.clone());
        }
        if is_empty(object, &["metadata", "labels"]) {
            object.set(&["metadata", "labels"], labels);
        }
    }
    let spec = object.make_map(&["spec"]);
    spec.insert_default("replicas", 1);
    if spec.get("template").is_some_and(|t| !t.is_null()) {
        pod_defaults::template(spec.slot("template"));
    }
}

fn controller(spec: &At) {
    let (selector, template) = (spec.get("selector"), spec.get("template"));
    workload::counts(spec, &["minReadySeconds", "replicas"]);
    selector.must();
    if !template.is_set() {
        return template.required("");
    }
    let labels = template.at(&["metadata", "labels"]);
    let matches = selector.entries().iter().all(|(key, value)| labels.member(key).value == value.value);
    if !selector.is_empty() && !matches {
        labels.invalid("`selector` does not match template `labels`");
    }
    workload::template(&template);
    workload::runs_for_good(&template, "ReplicationController");
}
