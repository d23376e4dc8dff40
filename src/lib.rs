//! Coracle: a whole Kubernetes cluster in one executable.
//!
//! The map, in reading order; who may import whom is kept by `tests/it/tidy.rs` (DESIGN 2.1).
//!
//! - [`api`]: the vocabulary server and agent both speak.
//! - [`store`]: replicated, revisioned, watchable bytes. Knows no kinds.
//! - [`server`]: the control plane over `store`.
//! - [`runtime`]: containers; speaks OCI, not Kubernetes.
//! - [`net`]: pod network, services, DNS.
//! - [`agent`]: the node: kubelet over `runtime` and `net`.
//! - root leaves ([`config`], [`memory`], [`pki`], [`transport`], [`task`], [`telemetry`]) import nothing of ours.

pub mod config;
pub mod memory;
pub mod pki;
pub mod sample;
pub mod task;
pub mod telemetry;
pub mod transport;

pub mod api;

pub mod store;

pub mod server;

pub mod runtime;

pub mod net;

pub mod agent;

pub mod overview;

mod machine;

pub mod run;

pub mod trial;

pub mod cli;
