//! The vocabulary server and agent both speak: objects, resources, requests, the schema table and its codecs, caches and
//! the controller engine. Knows neither HTTP servers, nor storage, nor the kernel.
//!
//! *The revision contract*: one `u64`, the raft-applied write counter, is `resourceVersion` of objects and lists, watch
//! position and cache progress. Every changed key takes a revision of its own, also inside a batch. Revisions only grow.
//!
//! The modules are in reading order.

pub mod value;

pub mod resource;

pub mod object;

pub mod status;

pub mod request;

pub mod client;

pub mod schema;

pub mod json;

pub mod yaml;

pub mod protobuf;

pub mod types;

pub mod quantity;

pub mod time;

pub mod selector;

pub mod cidr;

pub mod conditions;

pub mod remote;

pub mod informer;

pub mod world;

pub mod controller;

pub mod driver;

pub mod events;
