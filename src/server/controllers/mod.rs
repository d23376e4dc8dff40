//! The table of controllers: each file is one, decisions only (`api::controller::Controller`).
//!
//! [`start`] runs all of them over one world, each writing under its own identity
//! (`system:serviceaccount:kube-system:<name>`). They run where raft leads and stop when it does not.

use crate::api::controller::Controller;
use crate::api::driver::{Clients, Driver};

pub mod cluster_role_aggregation;
pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod endpointslicemirroring;
pub mod garbage_collector;
pub mod meta;
pub mod namespace;
pub mod node_lifecycle;
pub mod pod_gc;
pub mod replicaset;
pub mod resource_quota;
pub mod revision;
pub mod root_ca;
pub mod selector;
pub mod service_account;
pub mod storage_protection;
pub mod taint_eviction;

/// What the controllers need to know about the cluster.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// PEM of the CA that signs the API server's certificate: the content of every `kube-root-ca.crt`.
    pub root_ca: String,
}

/// Every controller of the control plane.
pub fn all(config: &Config) -> Vec<Box<dyn Controller>> {
    vec![
        Box::new(namespace::Namespaces),
        Box::new(service_account::ServiceAccounts),
        Box::new(root_ca::RootCa::new(&config.root_ca)),
        Box::new(cluster_role_aggregation::ClusterRoleAggregation),
        Box::new(deployment::Deployments),
        Box::new(replicaset::REPLICA_SETS),
        Box::new(replicaset::REPLICATION_CONTROLLERS),
        Box::new(endpointslice::EndpointSlices),
        Box::new(endpointslicemirroring::EndpointSliceMirroring),
        Box::new(endpoints::Endpoints),
        Box::new(garbage_collector::GarbageCollector::default()),
        Box::new(resource_quota::ResourceQuotas::default()),
        Box::new(node_lifecycle::NodeLifecycle),
        Box::new(taint_eviction::TaintEviction),
        Box::new(pod_gc::PodGc),
        Box::new(storage_protection::CLAIMS),
        Box::new(storage_protection::VOLUMES),
        Box::new(storage_protection::ATTRIBUTES),
    ]
}

/// Starts them; `clients` gives the client of each by name. They stop with the returned driver.
pub fn start(clients: Clients, config: &Config) -> Driver {
    // The garbage collector may read every resource, so it is the one who watches for all.
    Driver::start("controllers", clients, "generic-garbage-collector", all(config))
}
