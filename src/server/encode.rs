//! Answers and watch events to bytes, in the encoding and view negotiated.
//!
//! Stored bytes go out without being decoded wherever the served version is the stored one and the view is plain: JSON by
//! `json::transcode`, protobuf by splicing the revision in. What a watch event shows of its object is encoded once per
//! encoding and kept with the event ([`Frames`]). Lists are written item by item, so that large ones need not be assembled.
//! Start at [`Encoder`].

use crate::api::object::Object;
use crate::api::protobuf::Only;
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

/// What columns may read of an object: who owns which field is most of its bytes and never shown.
const SHOWN: Only = Only::all_but(&[("metadata", Only::all_but(&[("managedFields", Only::these(&[]))]))]);

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
            View::Partial(version) => table::partial(stored, version),
            View::PartialList(version) => {
                let mut list =
                    crate::value!({"kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": {}});
                list.set(&["items"], Value::List(vec![table::partial(stored, version)]));
                list
            }
            View::Table(version) => {
                let mut metadata = Value::map();
                if let Some(revision) = shown.at(&["metadata", "resourceVersion"]) {
                    metadata.set(&["resourceVersion"], revision.clone());
                }
                let mut table = table::table(version, metadata, Some(self.row.strategy.columns()));
                let row = table::row(&*self.row.strategy, stored, &shown, self.include, version, self.now);
                table.set(&["rows"], Value::List(vec![row]));
                table
            }
        }
    }

    /// A tree that is not stored. Views are of objects of the row's own kind (a dry run's, say) and of scales; anything else is plain.
    fn value(&self, value: &Value) -> Vec<u8> {
        let is_own = value.str_at(&["kind"]) == self.row.resource.kind;
        match self.accepted.view {
            _ if is_own => {
                let mut stored = value.clone();
                let stored = if self.row.to_stored(&mut stored).is_ok() { &stored } else { value };
                self.tree(&self.view_of(stored, value.clone()))
            }
            View::Table(version) if value.str_at(&["kind"]) == "Scale" => {
                self.tree(&table::of_scale(value, self.include, version, self.now))
            }
            View::Partial(version) if value.str_at(&["kind"]) == "Scale" => self.tree(&table::partial(value, version)),
            _ => self.tree(value),
        }
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

    /// Whether a list can be written one item after the other.
    pub fn streams_lists(&self) -> bool {
        match self.accepted.encoding {
            Encoding::Json => !self.accepted.pretty,
            Encoding::Protobuf => self.is_direct(),
            Encoding::Yaml => false,
        }
    }

    fn list(&self, list: &List) -> Vec<u8> {
        if !self.streams_lists() {
            let whole = Encoder { accepted: Accepted { encoding: Encoding::Json, pretty: false, ..self.accepted }, ..*self };
            let document = json::parse(&whole.list(list)).expect("what is written here is JSON");
            return self.tree(&document);
        }
        let mut out = self.list_head(list);
        for (i, object) in list.items.iter().enumerate() {
            self.list_item(object, i == 0, &mut out);
        }
        out.extend_from_slice(self.list_tail(list));
        out
    }

    /// Everything before the items.
    pub fn list_head(&self, list: &List) -> Vec<u8> {
        if self.accepted.encoding == Encoding::Protobuf {
            return self.protobuf_list_head(list);
        }
        let metadata = Self::list_metadata(list);
        let head = match self.accepted.view {
            View::Table(version) => table::table(version, metadata, Some(self.row.strategy.columns())),
            View::Partial(version) | View::PartialList(version) => {
                crate::value!({"kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": serde_json::Value::from(&metadata)})
            }
            View::Plain | View::Discovery => {
                crate::value!({"kind": self.row.resource.list_kind(), "apiVersion": self.row.resource.api_version(), "metadata": serde_json::Value::from(&metadata)})
            }
        };
        let mut out = vec![b'{'];
        for (name, value) in head.as_map().expect("made a map").iter().filter(|(name, _)| *name != "rows") {
            json::write_str(name, &mut out);
            out.push(b':');
            json::write(value, &mut out);
            out.push(b',');
        }
        out.extend_from_slice(match self.accepted.view {
            View::Table(_) => b"\"rows\":[",
            View::Partial(_) | View::PartialList(_) if list.items.is_empty() => b"\"items\":null",
            _ => &b"\"items\":["[..],
        });
        out
    }

    /// One item, with what parts it from the one before.
    pub fn list_item(&self, object: &Object, is_first: bool, out: &mut Vec<u8>) {
        if self.accepted.encoding == Encoding::Protobuf {
            return put_bytes(2, &protobuf::with_revision(self.row.type_ref(), &object.bytes, object.revision), out);
        }
        if !is_first {
            out.push(b',');
        }
        match self.accepted.view {
            View::Table(version) => self.table_row(object, version, out),
            View::Partial(version) | View::PartialList(version) => self.partial(object, version, out),
            View::Plain | View::Discovery if self.row.is_storage() => json::transcode_item(object, out),
            View::Plain | View::Discovery => {
                let mut value = self.row.serve(object);
                value.remove(&["apiVersion"]);
                value.remove(&["kind"]);
                json::write(&value, out);
            }
        }
    }

    /// Everything after the items.
    pub fn list_tail(&self, list: &List) -> &'static [u8] {
        match (self.accepted.encoding, self.accepted.view) {
            // The last two fields of the envelope, both empty.
            (Encoding::Protobuf, _) => &[3 << 3 | 2, 0, 4 << 3 | 2, 0],
            (_, View::Partial(_) | View::PartialList(_)) if list.items.is_empty() => b"}\n",
            _ => b"]}\n",
        }
    }

    /// `PartialObjectMetadata`; metadata is the same in every version of a kind.
    fn partial(&self, object: &Object, version: &str, out: &mut Vec<u8>) {
        if self.row.storage.plural == "daemonsets" {
            // These have one annotation less.
            return json::write(&table::partial(&object.value(), version), out);
        }
        out.extend_from_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/");
        out.extend_from_slice(version.as_bytes());
        out.extend_from_slice(b"\",\"metadata\":");
        json::transcode_metadata(object, out);
        out.push(b'}');
    }

    fn table_row(&self, object: &Object, version: &str, out: &mut Vec<u8>) {
        let cells = self.row.strategy.row(&object.decode_only(SHOWN), self.now);
        out.extend_from_slice(b"{\"cells\":");
        json::write(&Value::List(cells), out);
        out.extend_from_slice(b",\"object\":");
        match self.include {
            Include::None => out.extend_from_slice(b"null"),
            Include::Metadata => self.partial(object, version, out),
            Include::Object if self.row.is_storage() => json::transcode(object, self.row.resource, out),
            Include::Object => json::write(&self.row.serve(object), out),
        }
        out.push(b'}');
    }

    fn protobuf_list_head(&self, list: &List) -> Vec<u8> {
        let meta = schema::type_named("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta").expect("the table has ListMeta");
        let mut first = Vec::new();
        put_bytes(1, &protobuf::encode(meta, &Self::list_metadata(list)), &mut first);
        // The envelope says how long all of it is before the first item.
        let mut item = Vec::new();
        let items: usize = list
            .items
            .iter()
            .map(|object| {
                item.clear();
                self.list_item(object, false, &mut item);
                item.len()
            })
            .sum();
        protobuf::seal_head(&self.row.resource.api_version(), &self.row.resource.list_kind(), &first, items)
    }

    /// One watch event as it goes on the wire. `frames` is where it may already be; `is_first` decides whether a Table says
    /// its columns.
    pub fn event(&self, event: &Event, frames: Option<&Frames>, is_first: bool) -> Bytes {
        let (kind, object, slot) = match event {
            Event::Added(o) => ("ADDED", o, 0),
            Event::Modified(o) => ("MODIFIED", o, 2),
            Event::Deleted(o) => ("DELETED", o, 4),
            Event::Bookmark { revision, initial_end } => {
                return self.framed("BOOKMARK", |out| out.extend(self.watch_tree(self.bookmark(*revision, *initial_end, is_first))));
            }
            Event::Error(status) => return self.framed("ERROR", |out| out.extend(self.watch_tree(status.to_value()))),
        };
        if !self.is_direct() {
            return self.framed(kind, |out| out.extend(self.watch_tree(self.watch_view(object, is_first))));
        }
        let encode = || self.framed(kind, |out| self.direct(object, out));
        match frames {
            Some(frames) => frames.get_or_init(slot + usize::from(self.accepted.encoding == Encoding::Protobuf), encode),
            None => encode(),
        }
    }

    /// The frame of an event whose object `body` appends.
    fn framed(&self, kind: &str, body: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        let mut out = Vec::with_capacity(4096);
        match self.accepted.encoding {
            Encoding::Protobuf => {
                body(&mut out);
                protobuf_frame(kind, &out).into()
            }
            Encoding::Json | Encoding::Yaml => {
                out.extend_from_slice(b"{\"type\":\"");
                out.extend_from_slice(kind.as_bytes());
                out.extend_from_slice(b"\",\"object\":");
                body(&mut out);
                out.truncate(out.trim_ascii_end().len());
                out.extend_from_slice(b"}\n");
                // Frames are kept for a while: without room to spare.
                out.shrink_to_fit();
                out.into()
            }
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
