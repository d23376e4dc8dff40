//! Pure: what loops ask of a node.

use super::usage::Amounts;
use crate::api::conditions;
use crate::api::protobuf::{ALL, Only};
use crate::api::value::Value;

/// The fields of a node the scheduler and the node controllers read again and again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    pub unschedulable: bool,
    pub taints: Vec<Taint>,
    pub allocatable: Amounts,
    pub ready: String,
    /// Names of images already there, with their size.
    pub images: Vec<(String, i64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
    pub added: String,
}

impl Taint {
    pub fn of(taint: &Value) -> Taint {
        Taint {
            key: taint.str_at(&["key"]).into(),
            value: taint.str_at(&["value"]).into(),
            effect: taint.str_at(&["effect"]).into(),
            added: taint.str_at(&["timeAdded"]).into(),
        }
    }
}

impl NodeFacts {
    /// Everything [`NodeFacts::of`] reads.
    pub const FIELDS: Only = Only::these(&[
        ("spec", Only::these(&[("unschedulable", ALL), ("taints", ALL)])),
        ("status", Only::these(&[("images", ALL), ("allocatable", ALL), ("conditions", ALL)])),
    ]);

    pub fn of(node: &Value) -> NodeFacts {
        let images = node.list_at(&["status", "images"]).iter().flat_map(|image| {
            let size = image.i64_at(&["sizeBytes"]).unwrap_or(0);
            image.list_at(&["names"]).iter().filter_map(move |name| Some((name.as_str()?.to_string(), size)))
        });
        NodeFacts {
            unschedulable: node.bool_at(&["spec", "unschedulable"]),
            taints: node.list_at(&["spec", "taints"]).iter().map(Taint::of).collect(),
            allocatable: Amounts::of(node.at(&["status", "allocatable"])),
            ready: conditions::status(node.list_at(&["status", "conditions"]), "Ready").into(),
            images: images.collect(),
        }
    }
}
