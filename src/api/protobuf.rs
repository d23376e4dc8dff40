//! Pure: protobuf bytes to tree and back, canonical, from the field table.
//!
//! [`encode`] writes what upstream's generated marshallers write, byte for byte: fields by number, map entries by key,
//! every non-pointer scalar and struct even when zero, lists element by element. So equal objects have equal bytes. [`decode`]
//! makes the tree Go would print. [`peek`] reads one field of stored bytes without decoding. The top-level `apiVersion` and
//! `kind` are not in the message but in the envelope ([`seal`], [`open`]).

pub mod transcode;

use super::json;
use super::object::Revision;
use super::quantity::Quantity;
use super::schema::{self, Field, Kind, Slots, Type, TypeRef, Wire};
use super::time::Time;
use super::value::{Map, Value};

/// What stands before the envelope.
pub const MAGIC: &[u8; 4] = b"k8s\0";

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// Number of `resourceVersion` in `ObjectMeta`.
const RESOURCE_VERSION: u32 = 6;

/// The message of type `ty` that says what `value` says.
pub fn encode(ty: TypeRef, value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    if let Value::Map(map) = value {
        message(ty.get(), map, &mut out);
    } else {
        message(ty.get(), &Map::new(), &mut out);
    }
    out
}

fn message(ty: &'static Type, map: &Map, out: &mut Vec<u8>) {
    steps(&ty.wire, ty, map, out);
}

fn steps(wire: &'static [Wire], ty: &'static Type, map: &Map, out: &mut Vec<u8>) {
    for step in wire {
        match step {
            Wire::Inline(number, inner) => nested(*number, out, |out| steps(inner, ty, map, out)),
            Wire::Field(number, index) => {
                let field = &ty.fields[usize::from(*index)];
                match map.get(field.json_name).filter(|v| !v.is_null()) {
                    Some(value) => present(*number, field, value, out),
                    None if field.pointer || !field.is_single() => {}
                    None => zero(*number, field.kind, out),
                }
            }
        }
    }
}

fn present(number: u32, field: &'static Field, value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::List(items) if field.repeated => items.iter().for_each(|item| single(number, field.kind, item, out)),
        Value::Map(entries) if field.map => {
            for (key, item) in entries.iter() {
                nested(number, out, |out| {
                    string(1, key, out);
                    single(2, field.kind, item, out);
                });
            }
        }
        _ if !field.is_single() => {}
        value => single(number, field.kind, value, out),
    }
}

/// Go's zero value of a non-pointer field, which its marshallers write.
fn zero(number: u32, kind: Kind, out: &mut Vec<u8>) {
    match kind {
        // Nil slices are left out.
        Kind::Bytes | Kind::Strings | Kind::Any => {}
        kind => single(number, kind, &Value::Null, out),
    }
}

fn single(number: u32, kind: Kind, value: &Value, out: &mut Vec<u8>) {
    match kind {
        Kind::Bool => {
            tag(number, VARINT, out);
            varint(value.as_bool().unwrap_or(false).into(), out);
        }
        Kind::Int32 | Kind::Int64 => int(number, value.as_i64().unwrap_or(0), out),
        Kind::Float64 => {
            tag(number, FIXED64, out);
            let f = match value {
                Value::Float(f) => *f,
                Value::Int(i) => *i as f64,
                _ => 0.0,
            };
            out.extend_from_slice(&f.to_le_bytes());
        }
        Kind::String => string(number, value.as_str().unwrap_or(""), out),
        Kind::Bytes => bytes(number, &json::decode_base64(value.as_str().unwrap_or("")).unwrap_or_default(), out),
        Kind::Time | Kind::MicroTime => nested(number, out, |out| time(kind, value, out)),
        Kind::Quantity => nested(number, out, |out| string(1, value.as_str().unwrap_or("0"), out)),
        Kind::IntOrString => nested(number, out, |out| {
            let text = value.as_str();
            int(1, text.is_some().into(), out);
            int(2, value.as_i64().unwrap_or(0), out);
            string(3, text.unwrap_or(""), out);
        }),
        Kind::RawExtension | Kind::FieldsV1 | Kind::Json => nested(number, out, |out| {
            if !value.is_null() {
                nested(1, out, |out| json::write(value, out));
            }
        }),
        Kind::Any => {}
        Kind::Strings => nested(number, out, |out| {
            for item in value.as_list().unwrap_or(&[]) {
                string(1, item.as_str().unwrap_or(""), out);
            }
        }),
        Kind::SchemaOrBool => nested(number, out, |out| {
            int(1, i64::from(value.as_bool().unwrap_or(matches!(value, Value::Map(_)))), out);
            if let Value::Map(map) = value {
                nested(2, out, |out| message(schema::schema_props().get(), map, out));
            }
        }),
        Kind::SchemaOrArray | Kind::SchemaOrStrings => nested(number, out, |out| match value {
            Value::Map(map) => nested(1, out, |out| message(schema::schema_props().get(), map, out)),
            Value::List(items) => {
                let kind = if kind == Kind::SchemaOrArray { Kind::Message(schema::schema_props()) } else { Kind::String };
                items.iter().for_each(|item| single(2, kind, item, out));
            }
            _ => {}
        }),
        Kind::Message(ty) => nested(number, out, |out| match value {
            Value::Map(map) => message(ty.get(), map, out),
            _ => message(ty.get(), &Map::new(), out),
        }),
    }
}

fn time(kind: Kind, value: &Value, out: &mut Vec<u8>) {
    let Some(text) = value.as_str() else { return };
    let parsed = if kind == Kind::MicroTime { Time::parse_micro(text) } else { Time::parse(text) };
    let Ok(t) = parsed else { return };
    if !t.is_go_zero() {
        int(1, t.seconds, out);
        int(2, if kind == Kind::MicroTime { (t.nanos / 1000 * 1000).into() } else { 0 }, out);
    }
}

fn tag(number: u32, wire: u64, out: &mut Vec<u8>) {
    varint(u64::from(number) << 3 | wire, out);
}

fn varint(mut v: u64, out: &mut Vec<u8>) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn int(number: u32, i: i64, out: &mut Vec<u8>) {
    tag(number, VARINT, out);
    varint(i as u64, out);
}

fn string(number: u32, text: &str, out: &mut Vec<u8>) {
    bytes(number, text.as_bytes(), out);
}

fn bytes(number: u32, content: &[u8], out: &mut Vec<u8>) {
    tag(number, BYTES, out);
    varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

/// A length-delimited field filled by `content`: one byte is kept for the length, more are made room for if needed.
fn nested(number: u32, out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    tag(number, BYTES, out);
    let at = out.len();
    out.push(0);
    content(out);
    let length = out.len() - at - 1;
    if length < 0x80 {
        out[at] = length as u8;
        return;
    }
    let end = out.len();
    let more = (usize::BITS - length.leading_zeros()).div_ceil(7) as usize - 1;
    out.resize(end + more, 0);
    out.copy_within(at + 1..end, at + 1 + more);
    for (i, byte) in out[at..=at + more].iter_mut().enumerate() {
        *byte = (length >> (7 * i) & 0x7f) as u8 | if i < more { 0x80 } else { 0 };
    }
}

// ---- reading

/// Bytes of a message, read field by field.
#[derive(Clone, Copy)]
struct Cursor<'a>(&'a [u8]);

/// One field as it stands in the bytes.
#[derive(Clone, Copy)]
enum Scalar<'a> {
    Int(u64),
    Bytes(&'a [u8]),
}

impl<'a> Cursor<'a> {
    fn varint(&mut self) -> Option<u64> {
        // Tags and lengths mostly fit in one byte.
        if let [byte @ ..0x80, rest @ ..] = self.0 {
            self.0 = rest;
            return Some((*byte).into());
        }
        let mut v = 0u64;
        for (i, &b) in self.0.iter().enumerate().take(10) {
            v |= u64::from(b & 0x7f) << (7 * i);
            if b < 0x80 {
                self.0 = &self.0[i + 1..];
                return Some(v);
            }
        }
        None
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    /// The next field; `Some(Err)` if the bytes are no message.
    fn next(&mut self) -> Option<Result<(u32, Scalar<'a>), String>> {
        if self.0.is_empty() {
            return None;
        }
        Some(self.field().ok_or_else(|| "proto: unexpected EOF or illegal tag".to_string()))
    }

    fn field(&mut self) -> Option<(u32, Scalar<'a>)> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| *n > 0)?;
        let scalar = match tag & 7 {
            VARINT => Scalar::Int(self.varint()?),
            BYTES => {
                let length = usize::try_from(self.varint()?).ok()?;
                Scalar::Bytes(self.take(length)?)
            }
            FIXED64 => Scalar::Int(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            FIXED32 => Scalar::Int(u32::from_le_bytes(self.take(4)?.try_into().ok()?).into()),
            _ => return None,
        };
        Some((number, scalar))
    }
}

impl<'a> Scalar<'a> {
    fn int(self) -> Result<i64, String> {
        match self {
            Scalar::Int(v) => Ok(v as i64),
            Scalar::Bytes(_) => Err("proto: wrong wireType = 2 for an integer field".to_string()),
        }
    }

    fn bytes(self) -> Result<&'a [u8], String> {
        match self {
            Scalar::Bytes(b) => Ok(b),
            Scalar::Int(_) => Err("proto: wrong wireType = 0 for a length-delimited field".to_string()),
        }
    }

    fn text(self) -> Result<String, String> {
        // Go strings may hold any bytes; JSON output replaces what is not UTF-8, so the tree has that already.
        self.bytes().map(|b| String::from_utf8_lossy(b).into_owned())
    }
}

/// The tree Go would print of the message; unknown fields are passed over.
pub fn decode(ty: TypeRef, bytes: &[u8]) -> Result<Value, String> {
    read_message(ty, bytes, 0, ALL).map(Value::Map)
}

/// Fields to decode: the named ones, each with what is wanted below it, and all others or none.
#[derive(Clone, Copy, Debug)]
pub struct Only {
    named: &'static [(&'static str, Only)],
    rest: bool,
}

/// Everything below.
pub const ALL: Only = Only { named: &[], rest: true };

impl Only {
    /// These fields, by JSON name, and no others.
    pub const fn these(named: &'static [(&'static str, Only)]) -> Only {
        Only { named, rest: false }
    }

    /// All fields, but of these only so much. `these(&[])` is nothing.
    pub const fn all_but(named: &'static [(&'static str, Only)]) -> Only {
        Only { named, rest: true }
    }

    /// What is wanted of the field, if anything is.
    fn of(self, name: &str) -> Option<Only> {
        match self.named.iter().find(|(named, _)| *named == name) {
            Some((_, below)) => Some(*below).filter(|below| below.rest || !below.named.is_empty()),
            None => self.rest.then_some(ALL),
        }
    }
}

/// As [`decode`], of some fields; the others are as if they were absent.
pub fn decode_only(ty: TypeRef, bytes: &[u8], only: Only) -> Result<Value, String> {
    read_message(ty, bytes, 0, only).map(Value::Map)
}

fn read_message(ty: TypeRef, bytes: &[u8], depth: usize, only: Only) -> Result<Map, String> {
    if depth > json::DEPTH_MAX {
        return Err("exceeded max depth".to_string());
    }
    let mut slots = Slots::new(ty);
    read_steps(&ty.get().wire, ty.get(), bytes, (depth, only), &mut slots)?;
    Ok(slots.finish())
}

/// How deep a value is, and what is wanted of it.
type Place = (usize, Only);

fn read_steps(wire: &'static [Wire], ty: &'static Type, bytes: &[u8], place: Place, slots: &mut Slots) -> Result<(), String> {
    let mut cursor = Cursor(bytes);
    let mut guess = 0;
    while let Some(next) = cursor.next() {
        let (number, scalar) = next?;
        let Some(step) = find_step(wire, number, &mut guess) else { continue };
        match step {
            Wire::Inline(_, inner) => read_steps(inner, ty, scalar.bytes()?, place, slots)?,
            Wire::Field(_, index) => {
                let field = &ty.fields[usize::from(*index)];
                let Some(only) = place.1.of(field.json_name) else { continue };
                read_field(field, scalar, (place.0, only), slots.slot(*index)).map_err(|e| format!("{}: {e}", field.json_name))?;
            }
        }
    }
    Ok(())
}

/// Fields mostly come in order, so the next step is tried first.
fn find_step(wire: &'static [Wire], number: u32, guess: &mut usize) -> Option<&'static Wire> {
    while wire.get(*guess).is_some_and(|s| s.number() < number) {
        *guess += 1;
    }
    match wire.get(*guess) {
        Some(step) if step.number() == number => Some(step),
        _ => wire.binary_search_by_key(&number, Wire::number).ok().map(|i| &wire[i]),
    }
}

fn read_field(field: &'static Field, scalar: Scalar<'_>, place: Place, slot: &mut Option<Value>) -> Result<(), String> {
    if field.repeated {
        let list = slot.get_or_insert_with(|| Value::List(Vec::new())).as_list_mut().expect("repeated fields hold lists");
        if let (Scalar::Bytes(packed), Kind::Int32 | Kind::Int64) = (scalar, field.kind) {
            let mut cursor = Cursor(packed);
            while !cursor.0.is_empty() {
                list.push(Value::Int(cursor.varint().ok_or("proto: unexpected EOF")? as i64));
            }
            return Ok(());
        }
        list.push(read_single(field.kind, scalar, place)?);
    } else if field.map {
        let map = slot.get_or_insert_with(Value::map).as_map_mut().expect("map fields hold maps");
        let (key, value) = read_entry(field.kind, scalar.bytes()?, place)?;
        map.insert(key, value);
    } else {
        let value = read_single(field.kind, scalar, place)?;
        *slot = Some(value);
    }
    Ok(())
}

fn read_entry(kind: Kind, bytes: &[u8], place: Place) -> Result<(String, Value), String> {
    let (mut key, mut value) = (String::new(), None);
    let mut cursor = Cursor(bytes);
    while let Some(next) = cursor.next() {
        match next? {
            (1, scalar) => key = scalar.text()?,
            (2, scalar) => value = Some(read_single(kind, scalar, place)?),
            _ => {}
        }
    }
    let zero = || if kind == Kind::Bytes { Value::Str(String::new()) } else { kind.zero() };
    Ok((key, value.unwrap_or_else(zero)))
}

fn read_single(kind: Kind, scalar: Scalar<'_>, place: Place) -> Result<Value, String> {
    let (depth, only) = place;
    Ok(match kind {
        Kind::Bool => Value::Bool(scalar.int()? != 0),
        Kind::Int32 => Value::Int((scalar.int()? as i32).into()),
        Kind::Int64 => Value::Int(scalar.int()?),
        Kind::Float64 => Value::Float(f64::from_bits(scalar.int()? as u64)),
        Kind::String => Value::Str(scalar.text()?),
        Kind::Bytes => Value::Str(base64::Engine::encode(&base64::engine::general_purpose::STANDARD, scalar.bytes()?)),
        Kind::Time | Kind::MicroTime => read_time(kind, scalar.bytes()?)?,
        Kind::Quantity => read_quantity(scalar.bytes()?)?,
        Kind::IntOrString => read_int_or_string(scalar.bytes()?)?,
        Kind::RawExtension | Kind::FieldsV1 | Kind::Json => match first(scalar.bytes()?, 1)? {
            Some(raw) => json::parse(raw.bytes()?).map_err(|e| format!("raw JSON: {e}"))?,
            None => Value::Null,
        },
        Kind::Any => Value::Null,
        Kind::Strings => Value::List(repeated(scalar.bytes()?, 1, Kind::String, depth)?),
        Kind::SchemaOrBool => match first(scalar.bytes()?, 2)? {
            Some(props) => Value::Map(read_message(schema::schema_props(), props.bytes()?, depth + 1, ALL)?),
            None => Value::Bool(first(scalar.bytes()?, 1)?.is_some_and(|b| matches!(b, Scalar::Int(1..)))),
        },
        Kind::SchemaOrArray | Kind::SchemaOrStrings => {
            let item = if kind == Kind::SchemaOrArray { Kind::Message(schema::schema_props()) } else { Kind::String };
            let list = repeated(scalar.bytes()?, 2, item, depth)?;
            match first(scalar.bytes()?, 1)? {
                _ if !list.is_empty() => Value::List(list),
                Some(props) => Value::Map(read_message(schema::schema_props(), props.bytes()?, depth + 1, ALL)?),
                None => Value::Null,
            }
        }
        Kind::Message(ty) => Value::Map(read_message(ty, scalar.bytes()?, depth + 1, only)?),
    })
}

/// The last field with this number: scalars are overwritten by repetition.
fn first<'a>(bytes: &'a [u8], wanted: u32) -> Result<Option<Scalar<'a>>, String> {
    let mut found = None;
    let mut cursor = Cursor(bytes);
    while let Some(next) = cursor.next() {
        let (number, scalar) = next?;
        if number == wanted {
            found = Some(scalar);
        }
    }
    Ok(found)
}

fn repeated(bytes: &[u8], wanted: u32, kind: Kind, depth: usize) -> Result<Vec<Value>, String> {
    let mut items = Vec::new();
    let mut cursor = Cursor(bytes);
    while let Some(next) = cursor.next() {
        let (number, scalar) = next?;
        if number == wanted {
            items.push(read_single(kind, scalar, (depth, ALL))?);
        }
    }
    Ok(items)
}

fn read_time(kind: Kind, bytes: &[u8]) -> Result<Value, String> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut cursor = Cursor(bytes);
    while let Some(next) = cursor.next() {
        match next? {
            (1, scalar) => seconds = scalar.int()?,
            (2, scalar) => nanos = scalar.int()?,
            _ => {}
        }
    }
    let nanos = if kind == Kind::MicroTime { u32::try_from(nanos).unwrap_or(0).min(999_999_999) } else { 0 };
    let time = Time { seconds, nanos };
    Ok(match kind {
        _ if time.is_go_zero() => Value::Null,
        Kind::MicroTime => Value::Str(time.micro()),
        _ => Value::Str(time.to_string()),
    })
}

fn read_quantity(bytes: &[u8]) -> Result<Value, String> {
    let Some(scalar) = first(bytes, 1)? else { return Ok(Kind::Quantity.zero()) };
    let text = scalar.text()?;
    let quantity = Quantity::parse(&text).map_err(|e| e.to_string())?;
    Ok(Value::Str(quantity.to_string()))
}

fn read_int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let kind = first(bytes, 1)?.map_or(Ok(0), Scalar::int)?;
    if kind == 1 {
        return Ok(Value::Str(first(bytes, 3)?.map_or(Ok(String::new()), Scalar::text)?));
    }
    Ok(Value::Int((first(bytes, 2)?.map_or(Ok(0), Scalar::int)? as i32).into()))
}

/// The fields of a message in their order: number and content, whatever it means.
pub fn fields(bytes: &[u8]) -> impl Iterator<Item = (u32, Raw<'_>)> {
    let mut cursor = Cursor(bytes);
    std::iter::from_fn(move || {
        let (number, scalar) = cursor.next()?.ok()?;
        Some((number, Raw(scalar)))
    })
}

/// The content of one field.
#[derive(Clone, Copy)]
pub struct Raw<'a>(Scalar<'a>);

impl<'a> Raw<'a> {
    /// Of a message, string or byte string; else empty.
    pub fn bytes(self) -> &'a [u8] {
        self.0.bytes().unwrap_or(&[])
    }

    pub fn str(self) -> &'a str {
        std::str::from_utf8(self.bytes()).unwrap_or("")
    }

    pub fn bool(self) -> bool {
        matches!(self.0, Scalar::Int(1..))
    }

    /// Of an entry of a map of strings: key and value.
    pub fn entry(self) -> (&'a str, &'a str) {
        let (mut key, mut value) = ("", "");
        for (number, raw) in fields(self.bytes()) {
            match number {
                1 => key = raw.str(),
                2 => value = raw.str(),
                _ => {}
            }
        }
        (key, value)
    }
}

// ---- envelope

/// Puts a message into the envelope protobuf travels in: magic, type, raw bytes.
pub fn seal(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + api_version.len() + kind.len() + 24);
    out.extend_from_slice(MAGIC);
    nested(1, &mut out, |out| {
        string(1, api_version, out);
        string(2, kind, out);
    });
    bytes(2, raw, &mut out);
    string(3, "", &mut out);
    string(4, "", &mut out);
    out
}

/// The beginning of an envelope around a message that starts with `first` and goes on for `more` bytes; after those its end
/// is still to come: fields 3 and 4, empty.
pub fn seal_head(api_version: &str, kind: &str, first: &[u8], more: usize) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    nested(1, &mut out, |out| {
        string(1, api_version, out);
        string(2, kind, out);
    });
    tag(2, BYTES, &mut out);
    varint((first.len() + more) as u64, &mut out);
    out.extend_from_slice(first);
    out
}

/// `apiVersion`, `kind` and raw bytes of an envelope.
pub fn open(bytes: &[u8]) -> Result<(String, String, &[u8]), String> {
    let body = bytes.strip_prefix(MAGIC).ok_or("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")?;
    if body.is_empty() {
        return Err("empty body".to_string());
    }
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut cursor = Cursor(body);
    while let Some(next) = cursor.next() {
        match next.map_err(|_| "unexpected EOF")? {
            (1, scalar) => {
                let meta = scalar.bytes()?;
                api_version = first(meta, 1)?.map_or(Ok(String::new()), Scalar::text)?;
                kind = first(meta, 2)?.map_or(Ok(String::new()), Scalar::text)?;
            }
            (2, scalar) => raw = scalar.bytes()?,
            _ => {}
        }
    }
    Ok((api_version, kind, raw))
}

/// The message with `metadata.resourceVersion` set.
pub fn with_revision(ty: TypeRef, raw: &[u8], revision: Revision) -> Vec<u8> {
    let number = ty.field("metadata").map_or(1, |f| f.number);
    let mut out = Vec::with_capacity(raw.len() + 24);
    let mut cursor = Cursor(raw);
    while !cursor.0.is_empty() {
        let before = cursor.0;
        let Some((field, scalar)) = cursor.field() else {
            out.extend_from_slice(before);
            break;
        };
        match scalar {
            Scalar::Bytes(meta) if field == number => nested(number, &mut out, |out| meta_with_revision(meta, revision, out)),
            _ => out.extend_from_slice(&before[..before.len() - cursor.0.len()]),
        }
    }
    out
}

fn meta_with_revision(meta: &[u8], revision: Revision, out: &mut Vec<u8>) {
    let mut written = false;
    let mut cursor = Cursor(meta);
    while !cursor.0.is_empty() {
        let before = cursor.0;
        let field = cursor.field();
        if field.is_none_or(|(number, _)| number >= RESOURCE_VERSION) && !written {
            string(RESOURCE_VERSION, &revision.to_string(), out);
            written = true;
        }
        match field {
            Some((RESOURCE_VERSION, _)) => {}
            Some(_) => out.extend_from_slice(&before[..before.len() - cursor.0.len()]),
            None => return out.extend_from_slice(before),
        }
    }
    if !written {
        string(RESOURCE_VERSION, &revision.to_string(), out);
    }
}

// ---- peeking

/// One field of stored bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Peek<'a> {
    Str(&'a str),
    Int(i64),
    Bool(bool),
    /// Messages, lists' last elements, byte strings.
    Bytes(&'a [u8]),
}

impl<'a> Peek<'a> {
    pub fn str(self) -> &'a str {
        match self {
            Peek::Str(s) => s,
            _ => "",
        }
    }
}

/// The field at `path` (JSON names; a map's key counts as one) of a message, without decoding the rest. Lists are not entered.
pub fn peek<'a>(ty: TypeRef, bytes: &'a [u8], path: &[&str]) -> Option<Peek<'a>> {
    let (name, rest) = path.split_first()?;
    let index = ty.get().index(name)?;
    let field = &ty.get().fields[usize::from(index)];
    let mut holder = bytes;
    let mut wire = &ty.get().wire[..];
    'descend: loop {
        for step in wire {
            match step {
                Wire::Field(_, i) if *i == index => break 'descend,
                Wire::Inline(number, inner) if holds(inner, index) => {
                    holder = first(holder, *number).ok()??.bytes().ok()?;
                    wire = inner;
                    continue 'descend;
                }
                _ => {}
            }
        }
        return None;
    }
    if field.map {
        let (key, rest) = rest.split_first()?;
        let value = entries(holder, field.number).find(|(k, _)| k == key)?.1;
        return follow(field.kind, value, rest);
    }
    follow(field.kind, first(holder, field.number).ok()??, rest)
}

fn holds(wire: &[Wire], index: u16) -> bool {
    wire.iter().any(|step| match step {
        Wire::Field(_, i) => *i == index,
        Wire::Inline(_, inner) => holds(inner, index),
    })
}

fn follow<'a>(kind: Kind, scalar: Scalar<'a>, rest: &[&str]) -> Option<Peek<'a>> {
    match (kind, scalar) {
        (Kind::Message(ty), Scalar::Bytes(bytes)) if !rest.is_empty() => peek(ty, bytes, rest),
        _ if !rest.is_empty() => None,
        (Kind::Bool, Scalar::Int(v)) => Some(Peek::Bool(v != 0)),
        (_, Scalar::Int(v)) => Some(Peek::Int(v as i64)),
        (Kind::String, Scalar::Bytes(b)) => std::str::from_utf8(b).ok().map(Peek::Str),
        // A quantity is a message around its text.
        (Kind::Quantity, Scalar::Bytes(b)) => std::str::from_utf8(first(b, 1).ok()??.bytes().ok()?).ok().map(Peek::Str),
        (_, Scalar::Bytes(b)) => Some(Peek::Bytes(b)),
    }
}

/// The entries of the map field `number` of a message.
fn entries(bytes: &[u8], number: u32) -> impl Iterator<Item = (&str, Scalar<'_>)> {
    elements(bytes, number).filter_map(|entry| {
        let key = std::str::from_utf8(first(entry, 1).ok()??.bytes().ok()?).ok()?;
        Some((key, first(entry, 2).ok()??))
    })
}

/// The entries of a map of strings.
pub fn string_entries(bytes: &[u8], number: u32) -> impl Iterator<Item = (&str, &str)> {
    entries(bytes, number).filter_map(|(key, value)| Some((key, std::str::from_utf8(value.bytes().ok()?).ok()?)))
}

/// The length-delimited fields with `number`: elements of a list of messages or strings.
pub fn elements(bytes: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    let mut cursor = Cursor(bytes);
    std::iter::from_fn(move || {
        loop {
            let (found, scalar) = cursor.next()?.ok()?;
            if let (true, Scalar::Bytes(b)) = (found == number, scalar) {
                return Some(b);
            }
        }
    })
}

#[cfg(test)]
mod tests;
