//! GET of one object.

use crate::api::object::Object;
use crate::api::request::{Request, Response};
use crate::api::status::{Result, Status};
use crate::api::value::Value;

use super::list::Position;
use crate::server::pipeline::Pipeline;
use crate::server::registry::{Reader, Row};

impl Pipeline {
    pub(in crate::server) fn get(&self, request: &Request) -> Result<Response> {
        let row = self.registry.row(request.resource);
        if let Some(all) = row.strategy.synthesize(&*self.access, &self.cluster) {
            return synthesized(all, &request.name)
                .map(|value| Response::Value { value, code: 200 })
                .ok_or_else(|| not_found(row, &request.name));
        }
        if let Some(text) = &request.options.resource_version {
            let revision = super::parse_revision(text).map_err(|e| Status::new(500, "", e))?;
            self.require_revision(revision)?;
        }
        self.stored(row, &request.namespace, &request.name).map(|object| Response::Object { object, code: 200 })
    }

    /// The stored object, in the storage version.
    pub(in crate::server) fn stored(&self, row: &Row, namespace: &str, name: &str) -> Result<Object> {
        let entry = self.store.get(&row.storage.key(namespace, name));
        entry.map(|e| Reader::object(row.storage, &e)).ok_or_else(|| Status::not_found(row.resource, name))
    }

    /// Applied state is current with one voter, so a revision not reached yet has never been given out.
    pub(in crate::server) fn require_revision(&self, revision: u64) -> Result<()> {
        let current = self.store.revision();
        if revision <= current { Ok(()) } else { Err(Position::from_the_future(revision, current)) }
    }
}

fn synthesized(all: Vec<Value>, name: &str) -> Option<Value> {
    all.into_iter().find(|v| v.str_at(&["metadata", "name"]) == name)
}

/// Upstream names component statuses in the singular.
fn not_found(row: &Row, name: &str) -> Status {
    let mut status = Status::not_found(row.resource, name);
    status.message = format!("{} \"{name}\" not found", row.resource.singular);
    if let Some(details) = &mut status.details {
        details.kind = row.resource.singular.to_string();
    }
    status
}
