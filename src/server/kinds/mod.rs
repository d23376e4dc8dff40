//! The kinds with behaviour of their own, one page each; every other resource is nothing but its schema.
//!
//! [`rows`] is the table. A kind's page says everything the API server knows about it: defaults, validation, columns,
//! selectable fields, subresources. The pages know nothing of HTTP and little of each other.

pub mod admissionregistration;
pub mod apps;
pub mod autoscaling;
pub mod batch;
pub mod certificates;
pub mod coordination;
pub mod core;
pub mod devices;
pub mod endpoints;
pub mod flowcontrol;
pub mod networking;
pub mod plain;
pub mod policy;
pub mod rbac;
pub mod review;
pub mod sets;
pub mod storage;
pub mod workload;

use std::sync::Arc;

use crate::api::value::Value;
use crate::server::auth::Auth;
use crate::server::strategy::Strategy;
use crate::value;

/// Every kind with behaviour.
pub fn rows(auth: &Arc<Auth>) -> Vec<Box<dyn Strategy>> {
    let mut rows: Vec<Box<dyn Strategy>> = vec![
        Box::new(core::pods::Pods),
        Box::new(core::pods::Bindings),
        Box::new(core::namespaces::Namespaces),
        Box::new(core::configmaps::ConfigMaps),
        Box::new(core::secrets::Secrets),
        Box::new(core::serviceaccounts::ServiceAccounts { auth: auth.clone() }),
        Box::new(core::nodes::Nodes),
        Box::new(core::componentstatuses::ComponentStatuses),
        Box::new(core::services::Services),
        Box::new(core::events::Events),
        Box::new(coordination::Leases),
        Box::new(endpoints::Endpoints),
        Box::new(endpoints::EndpointSlices),
        Box::new(apps::Deployments),
        Box::new(apps::ReplicaSets),
        Box::new(autoscaling::Autoscalers),
        Box::new(certificates::SigningRequests),
        Box::new(certificates::ApiServices),
    ];
    rows.extend(rbac::rows(auth));
    rows.extend(plain::rows());
    rows.extend(review::rows(auth));
    rows
}

/// `<none>` for nothing, as kubectl prints it.
pub fn none(text: &str) -> String {
    if text.is_empty() { "<none>".to_string() } else { text.to_string() }
}

/// The Status that says it worked.
pub fn success(code: i64) -> Value {
    value!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}
