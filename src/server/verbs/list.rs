//! LIST: pages at a pinned revision, selectors, and the rules about resourceVersion and continue tokens.
//!
//! A token is upstream's: base64url of `{"v":"meta.k8s.io/v1","rv":R,"start":"ns/name\u0000"}`. When its revision is compacted the
//! answer is 410 with a fresh token of revision -1, which goes on at the latest state.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use crate::api::object::Object;
use crate::api::request::{List, Options, Request, Response};
use crate::api::resource::{Resource, split_key};
use crate::api::selector::{FieldSelector, Selector};
use crate::api::status::{FieldError, Result, Status};
use crate::api::{json, value::Value};
use crate::store::{self, Range};

use crate::server::pipeline::Pipeline;
use crate::server::registry::{Reader, Row};
use crate::server::strategy::{Selectable, Strategy};

/// Objects read from the store at a time where selectors may drop most of them.
const CHUNK: usize = 500;

/// Both selectors of a request, parsed and checked against the kind.
pub(in crate::server) struct Filter {
    strategy: Arc<dyn Strategy>,
    resource: &'static Resource,
    pub labels: Selector,
    pub fields: FieldSelector,
    /// Pinned by `metadata.name=` and `metadata.namespace=`, and by the path of old watches.
    pub name: Option<String>,
    pub namespace: Option<String>,
    /// At most one object can be meant.
    is_single: bool,
}

impl Filter {
    pub(in crate::server) fn new(row: &Row, request: &Request) -> Result<Filter> {
        let options = &request.options;
        let labels = Selector::parse(options.label_selector.as_deref().unwrap_or("")).map_err(Status::bad_request)?;
        let mut fields = FieldSelector::parse(options.field_selector.as_deref().unwrap_or("")).map_err(Status::bad_request)?;
        let known = row.strategy.selectable(row.resource);
        for term in &fields.terms {
            let is_known =
                matches!(term.field.as_str(), "metadata.name" | "metadata.namespace") || known.iter().any(|s| s.label == term.field);
            if !is_known {
                return Err(Status::bad_request(unknown_field(row, &term.field, known)));
            }
        }
        let name = fields.required("metadata.name").map(str::to_string);
        let namespace = fields.required("metadata.namespace").map(str::to_string);
        fields.terms.retain(|t| {
            !(t.equals && matches!(t.field.as_str(), "metadata.name" | "metadata.namespace")) || is_doubled(&name, &namespace, t)
        });
        let path_name = Some(request.name.clone()).filter(|n| !n.is_empty());
        if path_name.is_some() && name.is_some() && name != path_name {
            return Err(Status::bad_request("fieldSelector metadata.name doesn't match requested name"));
        }
        let name = name.or(path_name);
        let is_single = name.is_some() && (!row.resource.namespaced || !request.namespace.is_empty());
        Ok(Filter { strategy: row.strategy.clone(), resource: row.resource, labels, fields, name, namespace, is_single })
    }

    pub(in crate::server) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && self.name.is_none() && self.namespace.is_none()
    }

    pub(in crate::server) fn matches_key(&self, key: &[u8]) -> bool {
        if self.name.is_none() && self.namespace.is_none() {
            return true;
        }
        let (namespace, name) = split_key(key).unwrap_or(("", ""));
        self.name.as_deref().is_none_or(|n| n == name) && self.namespace.as_deref().is_none_or(|n| n == namespace)
    }

    /// Beside [`Filter::matches_key`].
    pub(in crate::server) fn matches(&self, object: &Object) -> bool {
        if !self.labels.is_everything() && !self.labels.matches_labels(&object.labels()) {
            return false;
        }
        self.fields.is_everything() || self.fields.matches(|field| self.text(object, field))
    }

    fn text(&self, object: &Object, field: &str) -> String {
        match field {
            "metadata.name" => object.name().to_string(),
            "metadata.namespace" => object.namespace().to_string(),
            field => {
                let known = self.strategy.selectable(self.resource);
                let found = known.iter().find(|s| s.label == field).expect("checked when the filter was made");
                self.strategy.selectable_value(object, found)
            }
        }
    }
}

/// A second, different demand on the same field stays a term and then matches nothing.
fn is_doubled(name: &Option<String>, namespace: &Option<String>, term: &crate::api::selector::FieldTerm) -> bool {
    let pinned = if term.field == "metadata.name" { name } else { namespace };
    pinned.as_ref() != Some(&term.value)
}

fn unknown_field(row: &Row, field: &str, known: &[Selectable]) -> String {
    match (row.resource.group, row.resource.kind) {
        _ if known.is_empty() => format!("\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""),
        ("batch", "Job") => format!("field label \"{field}\" not supported for Job"),
        ("resource.k8s.io", kind) => format!("field label not supported for {}, Kind={kind}: {field}", row.resource.api_version()),
        _ => format!("field label not supported: {field}"),
    }
}

/// Where a list starts and at which revision it is read.
#[derive(Debug, PartialEq)]
pub(in crate::server) struct Position {
    /// `None`: the latest.
    at: Option<u64>,
    after: Option<Bytes>,
}

impl Position {
    pub(in crate::server) fn from_the_future(revision: u64, current: u64) -> Status {
        Status::timeout(format!("Timeout: Too large resource version: {revision}, current: {current}"), 1).with_cause(
            "ResourceVersionTooLarge",
            "Too large resource version",
            "",
        )
    }
}

/// The rules that need no store: which of these parameters go together.
pub(in crate::server) fn check_list_options(options: &Options, is_watch: bool) -> Result<()> {
    let mut errors = Vec::new();
    let rv = options.resource_version.as_deref().unwrap_or("");
    let matching = options.resource_version_match.as_deref().unwrap_or("");
    let field = "resourceVersionMatch";
    if is_watch {
        match options.send_initial_events {
            Some(_) => {
                if matching != "NotOlderThan" {
                    errors.push(FieldError::forbidden(field, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
                }
                if !matching.is_empty() && matching != "NotOlderThan" {
                    errors.push(FieldError::not_supported(field, matching, &["NotOlderThan"]));
                }
            }
            None if !matching.is_empty() => {
                errors
                    .push(FieldError::forbidden(field, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"));
            }
            None => {}
        }
    } else {
        if options.send_initial_events.is_some() {
            errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        if !matching.is_empty() {
            if rv.is_empty() {
                errors.push(FieldError::forbidden(field, "resourceVersionMatch is forbidden unless resourceVersion is provided"));
            }
            if options.continue_token.is_some() {
                errors.push(FieldError::forbidden(field, "resourceVersionMatch is forbidden when continue is provided"));
            }
            if !matches!(matching, "Exact" | "NotOlderThan") {
                errors.push(FieldError::not_supported(field, matching, &["Exact", "NotOlderThan", ""]));
            }
            if matching == "Exact" && rv == "0" {
                errors.push(FieldError::forbidden(field, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid_kind("meta.k8s.io", "ListOptions", "", &errors)) }
}

impl Pipeline {
    pub(in crate::server) fn list(&self, request: &Request) -> Result<Response> {
        let row = self.registry.row(request.resource);
        check_list_options(&request.options, false)?;
        let filter = Filter::new(row, request)?;
        if let Some(all) = row.strategy.synthesize(&*self.access, &self.cluster) {
            return Ok(self.synthesized_list(row, all, &filter));
        }
        let prefix = Bytes::from(Reader::prefix(row.storage, &request.namespace));
        let position = self.position(&request.options, &prefix)?;
        // A list from "any" state ignores the limit, as one served from upstream's cache does.
        let unlimited = request.options.resource_version.as_deref() == Some("0");
        let limit = request.options.limit.filter(|l| *l > 0 && !unlimited).map_or(usize::MAX, |l| l as usize);
        self.page(row, &filter, prefix, position, limit).map(Response::List)
    }

    fn synthesized_list(&self, row: &Row, all: Vec<Value>, filter: &Filter) -> Response {
        let revision = self.store.revision();
        let objects = all.iter().map(|v| Object::from_value(row.storage, v, 0));
        let items = objects.filter(|o| filter.matches(o) && filter.name.as_deref().is_none_or(|n| n == o.name())).collect();
        Response::List(List { resource: row.resource, items, revision, continue_token: String::new(), remaining: None })
    }

    fn position(&self, options: &Options, prefix: &Bytes) -> Result<Position> {
        let rv = options.resource_version.as_deref().unwrap_or("");
        if let Some(token) = &options.continue_token {
            let (revision, start) = decode_token(token).map_err(|e| Status::bad_request(format!("invalid continue token: {e}")))?;
            if !rv.is_empty() && rv != "0" {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            let mut after = prefix.to_vec();
            after.extend(start.trim_end_matches('\0').bytes().map(|b| if b == b'/' { 0 } else { b }));
            let at = u64::try_from(revision).ok();
            if let Some(at) = at {
                self.require_revision(at)?;
            }
            return Ok(Position { at, after: Some(Bytes::from(after)) });
        }
        if rv.is_empty() {
            return Ok(Position { at: None, after: None });
        }
        let revision = super::parse_revision(rv).map_err(|e| Status::bad_request(format!("invalid resource version: {e}")))?;
        self.require_revision(revision)?;
        let is_exact = options.resource_version_match.as_deref() == Some("Exact");
        // Upstream reads a limited list of an old revision at that revision, too.
        let is_limited = options.resource_version_match.is_none() && options.limit.is_some_and(|l| l > 0) && revision > 0;
        Ok(Position { at: (is_exact || is_limited).then_some(revision), after: None })
    }

    fn page(&self, row: &Row, filter: &Filter, prefix: Bytes, position: Position, limit: usize) -> Result<List> {
        let mut items = Vec::new();
        let (mut at, mut after) = (position.at, position.after);
        let first_after = after.clone();
        let chunk = if filter.is_everything() { limit } else { limit.max(CHUNK) };
        loop {
            let range = Range { prefix: prefix.clone(), after: after.clone(), at, limit: if chunk == usize::MAX { 0 } else { chunk } };
            let page = self.store.range(range).map_err(|e| self.list_error(e, at, first_after.as_ref(), &prefix))?;
            let revision = at.unwrap_or(page.revision);
            at = Some(revision);
            let mut rest = page.entries.len();
            for entry in &page.entries {
                rest -= 1;
                after = Some(entry.key.clone());
                if !filter.matches_key(&entry.key) {
                    continue;
                }
                let object = Reader::object(row.storage, entry);
                if filter.matches(&object) {
                    items.push(object);
                    if items.len() == limit {
                        break;
                    }
                }
            }
            let more = (page.more || rest > 0) && !(filter.is_single && items.len() == limit);
            if items.len() == limit || !more {
                let full = items.len() == limit && more;
                let token = after.as_ref().filter(|_| full).map(|key| encode_token(revision as i64, &start(&prefix, key)));
                let remaining = (full && filter.is_everything()).then(|| self.remaining(&prefix, after.as_ref(), revision)).flatten();
                return Ok(List { resource: row.resource, items, revision, continue_token: token.unwrap_or_default(), remaining });
            }
        }
    }

    /// How many follow a page, at its revision.
    fn remaining(&self, prefix: &Bytes, after: Option<&Bytes>, revision: u64) -> Option<i64> {
        self.store.count_after(prefix, after?, revision).ok().map(|n| n as i64)
    }

    fn list_error(&self, error: store::Error, at: Option<u64>, after: Option<&Bytes>, prefix: &Bytes) -> Status {
        let store::Error::Compacted { .. } = error else { return super::store_error(error) };
        match (at, after) {
            (Some(_), Some(after)) => {
                let token = encode_token(-1, &start(prefix, after));
                let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
                               the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
                               Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
                               deleted between the time the first chunk was returned and now may show up in the list.";
                Status::expired(message).with_continue(token)
            }
            _ => Status::expired("The resourceVersion for the provided list is too old."),
        }
    }
}

/// The part of a key a token carries: `namespace/name` or, within one namespace, `name`.
fn start(prefix: &[u8], key: &[u8]) -> String {
    let rest = key.get(prefix.len()..).unwrap_or_default();
    let text: Vec<u8> = rest.iter().map(|b| if *b == 0 { b'/' } else { *b }).collect();
    format!("{}\0", String::from_utf8_lossy(&text))
}

fn encode_token(revision: i64, start: &str) -> String {
    let token = crate::value!({"v": "meta.k8s.io/v1", "rv": revision, "start": start});
    URL_SAFE_NO_PAD.encode(json::to_vec(&token))
}

fn decode_token(token: &str) -> std::result::Result<(i64, String), String> {
    let bad = |why: &str| format!("continue key is not valid: {why}");
    let bytes = json::Base64::UrlUnpadded.decode(token).map_err(|at| bad(&format!("illegal base64 data at input byte {at}")))?;
    let value = json::parse(&bytes).map_err(|e| bad(&e))?;
    let version = value.str_at(&["v"]);
    if version != "meta.k8s.io/v1" {
        return Err(bad(&format!("server does not recognize this encoded version {version}")));
    }
    let revision = value.i64_at(&["rv"]).unwrap_or(0);
    if revision == 0 {
        return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
    }
    let start = value.str_at(&["start"]);
    if start.is_empty() {
        return Err(bad("encoded start key empty (version meta.k8s.io/v1)"));
    }
    // Upstream cleans the path and refuses what cleaning changes.
    if start.split('/').any(|p| matches!(p, ".." | ".")) || start.starts_with('/') || start.contains("//") {
        return Err(bad(start));
    }
    Ok((revision, start.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_upstreams() {
        assert_eq!(encode_token(-1, "c00\0"), "eyJydiI6LTEsInN0YXJ0IjoiYzAwXHUwMDAwIiwidiI6Im1ldGEuazhzLmlvL3YxIn0");
        assert_eq!(decode_token("eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTEsInN0YXJ0IjoiYzAwXHUwMDAwIn0"), Ok((-1, "c00\0".into())));
        for (token, why) in [
            (
                "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MCwic3RhcnQiOiJjMDBcdTAwMDAifQ",
                "incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
            ),
            (
                "eyJ2IjoibWV0YS5rOHMuaW8vdjIiLCJydiI6NSwic3RhcnQiOiJjMDBcdTAwMDAifQ",
                "server does not recognize this encoded version meta.k8s.io/v2",
            ),
            ("eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NSwic3RhcnQiOiIifQ", "encoded start key empty (version meta.k8s.io/v1)"),
            ("eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NSwic3RhcnQiOiIuLi94In0", "../x"),
            ("==", "illegal base64 data at input byte 0"),
            ("z", "illegal base64 data at input byte 0"),
            ("zzz", "invalid character 'Ï' looking for beginning of value"),
        ] {
            assert_eq!(decode_token(token), Err(format!("continue key is not valid: {why}")));
        }
    }
}
