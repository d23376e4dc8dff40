//! Answers and watch events to bytes, in the encoding and view negotiated.
//!
//! Stored bytes go out without being decoded wherever the served version is the stored one and the view is plain: JSON by
//! `json::transcode`, protobuf by splicing the revision in. What a watch event shows of its object is encoded once per
//! encoding and kept with the event ([`Frames`]). Start at [`Encoder`].

use crate::api::object::Object;
use crate::api::request::{Event, List, Response};
use crate::api::status::Status;
use crate::api::time::Time;
use crate::api::value::Value;
use crate::api::{json, protobuf, schema};
use crate::store::Frames;
use bytes::Bytes;

use super::negotiate::{self, Accepted, Encoding, View};
use super::registry::Row;
use super::table::{self, Include};

/// How the answers to one request are written.
#[derive(Clone, Copy)]
pub struct Encoder<'a> {
    pub row: &'a Row,
    pub accepted: Accepted,
    pub include: Include,
    pub now: Time,
}

/// A status code and a body.
pub struct Answer {
    pub code: u16,
    pub body: Vec<u8>,
}

impl Encoder<'_> {
    pub fn response(&self, response: &Response) -> Answer {
        match response {
            Response::Object { object, code } => Answer { code: *code, body: self.object(object) },
            Response::Value { value, code } => Answer { code: *code, body: self.value(value) },
            Response::List(list) => Answer { code: 200, body: self.list(list) },
        }
    }

    /// Whether stored bytes can be answered without a tree in between.
    fn is_direct(&self) -> bool {
        self.row.is_storage() && self.accepted.view == View::Plain && !self.accepted.pretty && self.accepted.encoding != Encoding::Yaml
    }

    fn tree(&self, value: &Value) -> Vec<u8> {
        negotiate::encode(value, self.accepted.encoding, self.accepted.pretty)
    }

    fn object(&self, object: &Object) -> Vec<u8> {
        if self.is_direct() {
            let mut out = Vec::with_capacity(object.bytes.len() * 3);
            self.direct(object, &mut out);
            return out;
        }
        self.tree(&self.view(object))
    }

    fn direct(&self, object: &Object, out: &mut Vec<u8>) {
        match self.accepted.encoding {
            Encoding::Protobuf => out.extend(sealed(self.row, object)),
            Encoding::Json | Encoding::Yaml => {
                json::transcode(object, self.row.resource, out);
                out.push(b'\n');
            }
        }
    }

    /// One object in the view asked for.
    fn view(&self, object: &Object) -> Value {
        let stored = object.value();
        let mut shown = stored.clone();
        self.row.to_served(&mut shown);
        self.view_of(&stored, shown)
    }

    fn view_of(&self, stored: &Value, shown: Value) -> Value {
        match self.accepted.view {
            View::Plain | View::Discovery => shown,
            View::Partial(version) => table::partial(&shown, version),
            View::PartialList(version) => {
                let mut list =
                    crate::value!({"kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": {}});
                list.set(&["items"], Value::List(vec![table::partial(&shown, version)]));
                list
            }
            View::Table(version) => {
                let metadata = crate::value!({"resourceVersion": shown.str_at(&["metadata", "resourceVersion"])});
                let mut table = table::table(version, metadata, Some(self.row.strategy.columns()));
                let row = table::row(&*self.row.strategy, stored, &shown, self.include, version, self.now);
                table.set(&["rows"], Value::List(vec![row]));
                table
            }
        }
    }

    /// A tree that is not stored. Views are of objects of the row's own kind (a dry run's, say); anything else is plain.
    fn value(&self, value: &Value) -> Vec<u8> {
        let is_own = value.str_at(&["kind"]) == self.row.resource.kind;
        if is_own { self.tree(&self.view_of(value, value.clone())) } else { self.tree(value) }
    }

    fn list_metadata(list: &List) -> Value {
        let mut metadata = crate::value!({"resourceVersion": list.revision.to_string()});
        if !list.continue_token.is_empty() {
            metadata.set(&["continue"], list.continue_token.as_str());
        }
        if let Some(remaining) = list.remaining {
            metadata.set(&["remainingItemCount"], remaining);
        }
        metadata
    }

    fn list(&self, list: &List) -> Vec<u8> {
        if self.is_direct() {
            return match self.accepted.encoding {
                Encoding::Protobuf => self.protobuf_list(list),
                Encoding::Json | Encoding::Yaml => self.json_list(list),
            };
        }
        let metadata = Self::list_metadata(list);
        let served = |o: &Object| self.row.serve(o);
        let document = match self.accepted.view {
            View::Table(version) => {
                let mut table = table::table(version, metadata, Some(self.row.strategy.columns()));
                let rows = list.items.iter().map(|o| {
                    let stored = o.value();
                    let mut shown = stored.clone();
                    self.row.to_served(&mut shown);
                    table::row(&*self.row.strategy, &stored, &shown, self.include, version, self.now)
                });
                table.set(&["rows"], Value::List(rows.collect()));
                table
            }
            View::Partial(version) | View::PartialList(version) => {
                let items: Vec<Value> = list.items.iter().map(|o| table::partial(&served(o), version)).collect();
                let mut document = crate::value!({"kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}")});
                document.set(&["metadata"], metadata);
                document.set(&["items"], if items.is_empty() { Value::Null } else { Value::List(items) });
                document
            }
            View::Plain | View::Discovery => {
                let without_kind = |o: &Object| {
                    let mut value = served(o);
                    value.remove(&["apiVersion"]);
                    value.remove(&["kind"]);
                    value
                };
                let items: Vec<Value> = list.items.iter().map(without_kind).collect();
                let mut document = crate::value!({"kind": self.row.resource.list_kind(), "apiVersion": self.row.resource.api_version()});
                document.set(&["metadata"], metadata);
                document.set(&["items"], items);
                document
            }
        };
        self.tree(&document)
    }

    fn json_list(&self, list: &List) -> Vec<u8> {
        let bytes: usize = list.items.iter().map(|o| o.bytes.len() * 2 + 128).sum();
        let mut out = Vec::with_capacity(bytes + 256);
        out.extend_from_slice(b"{\"kind\":\"");
        out.extend_from_slice(self.row.resource.list_kind().as_bytes());
        out.extend_from_slice(b"\",\"apiVersion\":\"");
        out.extend_from_slice(self.row.resource.api_version().as_bytes());
        out.extend_from_slice(b"\",\"metadata\":");
        json::write(&Self::list_metadata(list), &mut out);
        out.extend_from_slice(b",\"items\":[");
        for (i, object) in list.items.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            json::transcode_item(object, &mut out);
        }
        out.extend_from_slice(b"]}\n");
        out
    }

    fn protobuf_list(&self, list: &List) -> Vec<u8> {
        let meta = schema::type_named("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta").expect("the table has ListMeta");
        let mut raw = Vec::new();
        put_bytes(1, &protobuf::encode(meta, &Self::list_metadata(list)), &mut raw);
        for object in &list.items {
            put_bytes(2, &protobuf::with_revision(self.row.type_ref(), &object.bytes, object.revision), &mut raw);
        }
        protobuf::seal(&self.row.resource.api_version(), &self.row.resource.list_kind(), &raw)
    }

    /// One watch event as it goes on the wire. `frames` is where the event's encoding may already be; `is_first` decides
    /// whether a Table says its columns.
    pub fn event(&self, event: &Event, frames: Option<&Frames>, is_first: bool) -> Vec<u8> {
        let (kind, body) = match event {
            Event::Added(o) => ("ADDED", self.event_object(o, frames, 0, is_first)),
            Event::Modified(o) => ("MODIFIED", self.event_object(o, frames, 0, is_first)),
            Event::Deleted(o) => ("DELETED", self.event_object(o, frames, 2, is_first)),
            Event::Bookmark { revision, initial_end } => {
                let body = self.watch_tree(self.bookmark(*revision, *initial_end, is_first));
                ("BOOKMARK", body.into())
            }
            Event::Error(status) => ("ERROR", self.watch_tree(status.to_value()).into()),
        };
        match self.accepted.encoding {
            Encoding::Protobuf => protobuf_frame(kind, &body),
            Encoding::Json | Encoding::Yaml => {
                let mut out = Vec::with_capacity(body.len() + 40);
                out.extend_from_slice(b"{\"type\":\"");
                out.extend_from_slice(kind.as_bytes());
                out.extend_from_slice(b"\",\"object\":");
                out.extend_from_slice(body.trim_ascii_end());
                out.extend_from_slice(b"}\n");
                out
            }
        }
    }

    /// `slot` is 0 for the new state of an event, 2 for the old one; protobuf takes the slot after.
    fn event_object(&self, object: &Object, frames: Option<&Frames>, slot: usize, is_first: bool) -> Bytes {
        let encode =
            || Bytes::from(if self.is_direct() { self.object(object) } else { self.watch_tree(self.watch_view(object, is_first)) });
        match frames.filter(|_| self.is_direct()) {
            Some(frames) => frames.get_or_init(slot + usize::from(self.accepted.encoding == Encoding::Protobuf), encode),
            None => encode(),
        }
    }

    fn watch_tree(&self, value: Value) -> Vec<u8> {
        let encoding = if self.accepted.encoding == Encoding::Yaml { Encoding::Json } else { self.accepted.encoding };
        negotiate::encode(&value, encoding, false)
    }

    fn watch_view(&self, object: &Object, is_first: bool) -> Value {
        let view = self.view(object);
        self.columns_once(view, is_first)
    }

    fn columns_once(&self, mut view: Value, is_first: bool) -> Value {
        if matches!(self.accepted.view, View::Table(_)) && !is_first {
            view.set(&["columnDefinitions"], Value::Null);
        }
        view
    }

    /// An object of the kind with nothing but a resourceVersion, in the view asked for.
    fn bookmark(&self, revision: u64, initial_end: bool, is_first: bool) -> Value {
        let resource = self.row.resource;
        let mut value = crate::value!({"kind": resource.kind, "apiVersion": resource.api_version()});
        value.set(&["metadata", "resourceVersion"], revision.to_string());
        if initial_end {
            value.set(&["metadata", "annotations"], crate::value!({"k8s.io/initial-events-end": "true"}));
        }
        let mut shown = value.clone();
        if json::conform(self.row.type_ref(), &mut shown).is_ok() {
            shown.set(&["kind"], resource.kind);
            shown.set(&["apiVersion"], resource.api_version());
        }
        let view = self.view_of(&value, shown);
        self.columns_once(view, is_first)
    }
}

fn sealed(row: &Row, object: &Object) -> Vec<u8> {
    let raw = protobuf::with_revision(row.type_ref(), &object.bytes, object.revision);
    protobuf::seal(&row.resource.api_version(), row.resource.kind, &raw)
}

/// A status in the encoding errors are written in.
pub fn status(status: &Status, encoding: Encoding) -> Vec<u8> {
    negotiate::encode(&status.to_value(), encoding, false)
}

fn put_varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A length-delimited field.
fn put_bytes(number: u64, bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(number << 3 | 2, out);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// `WatchEvent{1: type, 2: RawExtension{1: raw}}` behind its length in four bytes.
fn protobuf_frame(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(object.len() + 8);
    put_bytes(1, object, &mut raw);
    let mut event = Vec::with_capacity(raw.len() + 24);
    event.extend_from_slice(&[0; 4]);
    put_bytes(1, kind.as_bytes(), &mut event);
    put_bytes(2, &raw, &mut event);
    let length = (event.len() - 4) as u32;
    event[..4].copy_from_slice(&length.to_be_bytes());
    event
}
