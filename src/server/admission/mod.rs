//! Admission: the ordered table of plugins between decoding and storing.
//!
//! Each plugin is one file: it looks at the request and the applied state, and changes the object, refuses, or adds writes
//! to the batch. The order is upstream's.

pub mod claim_resize;
pub mod default_class;
pub mod default_tolerations;
pub mod limit_ranger;
pub mod namespace_lifecycle;
pub mod node_restriction;
pub mod pod_security;
pub mod priority;
pub mod resource_quota;
pub mod runtime_class;
pub mod service_account;
pub mod storage_protection;
pub mod taint_nodes;

use std::sync::Arc;

use crate::server::auth::Auth;
use crate::server::strategy::Plugin;

/// All plugins, in order.
pub fn plugins(_auth: &Arc<Auth>) -> Vec<Box<dyn Plugin>> {
    vec![
        Box::new(namespace_lifecycle::NamespaceLifecycle),
        Box::new(limit_ranger::LimitRanger),
        Box::new(service_account::ServiceAccount),
        Box::new(node_restriction::NodeRestriction),
        Box::new(taint_nodes::TaintNodesByCondition),
        Box::new(pod_security::PodSecurity),
        Box::new(priority::Priority),
        Box::new(default_tolerations::DefaultTolerationSeconds),
        Box::new(default_class::DefaultStorageClass),
        Box::new(storage_protection::StorageProtection),
        Box::new(claim_resize::ClaimResize),
        Box::new(runtime_class::RuntimeClass),
        Box::new(default_class::DefaultIngressClass),
        // Last: it charges what all others let pass.
        Box::new(resource_quota::ResourceQuota),
    ]
}
