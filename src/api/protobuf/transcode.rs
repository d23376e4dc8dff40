//! Pure: stored protobuf to JSON without a tree in between, for answers that show objects as they are stored.
//!
//! Says exactly what [`super::decode`] followed by `json::write` would say, with members in the order of their numbers: what
//! Go leaves out is left out, what it always shows is shown. It relies on the bytes being [`super::encode`]'s: fields of one
//! number stand together, raw JSON is compact. Start at [`object`].

use super::{ALL, Cursor, RESOURCE_VERSION, Scalar, find_step, first, read_single, read_time};
use crate::api::json;
use crate::api::object::Revision;
use crate::api::schema::{self, Field, Kind, Type, TypeRef, Wire};
use crate::api::value::Value;

/// What stands in an object's JSON and not in its bytes.
#[derive(Clone, Copy, Default)]
pub struct Head<'a> {
    /// `apiVersion` and `kind`; items of lists have none.
    pub type_meta: Option<(&'a str, &'a str)>,
    /// 0: none.
    pub revision: Revision,
}

/// Appends the object as JSON. On an error `out` is as it was.
pub fn object(ty: TypeRef, bytes: &[u8], head: Head<'_>, out: &mut Vec<u8>) -> Result<(), String> {
    let start = out.len();
    let mut writer = Writer { out, revision: head.revision };
    writer.out.push(b'{');
    if let Some((api_version, kind)) = head.type_meta {
        writer.type_meta(api_version, kind);
    }
    let written = writer.members(ty, bytes, 0);
    if written.is_err() {
        out.truncate(start);
    } else {
        out.push(b'}');
    }
    written
}

/// Appends one member of the object, without its name; `null` if it is absent.
pub fn member(ty: TypeRef, bytes: &[u8], name: &str, revision: Revision, out: &mut Vec<u8>) -> Result<(), String> {
    let found = ty.field(name).and_then(|field| Some((field, first(bytes, field.number).transpose()?)));
    match found {
        Some((field, scalar)) => Writer { out, revision }.value(field.kind, scalar?, 0),
        None => {
            out.extend_from_slice(b"null");
            Ok(())
        }
    }
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    revision: Revision,
}

/// Which fields of a struct were shown, by index.
type Shown = u128;

/// A list or map that is being written.
#[derive(Clone, Copy, PartialEq)]
enum Open {
    No,
    List(u16),
    Map(u16),
}

impl Writer<'_> {
    fn type_meta(&mut self, api_version: &str, kind: &str) {
        self.key("kind");
        json::write_str(kind, self.out);
        self.key("apiVersion");
        json::write_str(api_version, self.out);
    }

    /// A comma where there is something before, and the name.
    fn key(&mut self, name: &str) {
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn message(&mut self, ty: TypeRef, bytes: &[u8], depth: usize) -> Result<(), String> {
        self.out.push(b'{');
        self.members(ty, bytes, depth)?;
        self.out.push(b'}');
        Ok(())
    }

    fn members(&mut self, ty: TypeRef, bytes: &[u8], depth: usize) -> Result<(), String> {
        if depth > json::DEPTH_MAX {
            return Err("exceeded max depth".to_string());
        }
        let mut shown = 0;
        self.steps(&ty.get().wire, ty.get(), bytes, depth, &mut shown)?;
        for index in &ty.get().always {
            if shown & (1 << index) == 0 {
                let field = &ty.get().fields[usize::from(*index)];
                self.key(field.json_name);
                json::write(&field.zero(), self.out);
            }
        }
        Ok(())
    }

    fn steps(&mut self, wire: &'static [Wire], ty: &'static Type, bytes: &[u8], depth: usize, shown: &mut Shown) -> Result<(), String> {
        let is_meta = depth == 1 && std::ptr::eq(ty, schema::object_meta().get());
        let mut cursor = Cursor(bytes);
        let mut guess = 0;
        let mut open = Open::No;
        while let Some(next) = cursor.next() {
            let (number, scalar) = next?;
            let Some(step) = find_step(wire, number, &mut guess) else { continue };
            let Wire::Field(_, index) = step else {
                self.close(&mut open);
                if let Wire::Inline(_, inner) = step {
                    self.steps(inner, ty, scalar.bytes()?, depth, shown)?;
                }
                continue;
            };
            let field = &ty.fields[usize::from(*index)];
            let shows = if is_meta && number == RESOURCE_VERSION {
                self.close(&mut open);
                self.resource_version(field)
            } else if field.repeated {
                self.open(&mut open, Open::List(*index), field);
                self.list_item(field, scalar, depth)?;
                true
            } else if field.map {
                self.open(&mut open, Open::Map(*index), field);
                self.entry(field.kind, scalar.bytes()?, depth)?;
                true
            } else {
                self.close(&mut open);
                self.single(field, scalar, depth)?
            };
            *shown |= Shown::from(shows) << index;
        }
        self.close(&mut open);
        Ok(())
    }

    fn open(&mut self, open: &mut Open, wanted: Open, field: &'static Field) {
        if *open == wanted {
            return;
        }
        self.close(open);
        self.key(field.json_name);
        self.out.push(if matches!(wanted, Open::List(_)) { b'[' } else { b'{' });
        *open = wanted;
    }

    fn close(&mut self, open: &mut Open) {
        match std::mem::replace(open, Open::No) {
            Open::No => {}
            Open::List(_) => self.out.push(b']'),
            Open::Map(_) => self.out.push(b'}'),
        }
    }

    /// The place of the revision is that of the field it fills.
    fn resource_version(&mut self, field: &'static Field) -> bool {
        if self.revision > 0 {
            self.key(field.json_name);
            self.out.push(b'"');
            json::write_int(self.revision as i64, self.out);
            self.out.push(b'"');
        }
        self.revision > 0
    }

    fn list_item(&mut self, field: &'static Field, scalar: Scalar<'_>, depth: usize) -> Result<(), String> {
        if let (Scalar::Bytes(packed), Kind::Int32 | Kind::Int64) = (scalar, field.kind) {
            let mut cursor = Cursor(packed);
            while !cursor.0.is_empty() {
                self.comma();
                json::write_int(cursor.varint().ok_or("proto: unexpected EOF")? as i64, self.out);
            }
            return Ok(());
        }
        self.comma();
        match (field.implied, field.kind) {
            (Some((api_version, kind)), Kind::Message(ty)) => {
                self.out.push(b'{');
                self.type_meta(api_version, kind);
                self.members(ty, scalar.bytes()?, depth + 1)?;
                self.out.push(b'}');
                Ok(())
            }
            (_, kind) => self.value(kind, scalar, depth),
        }
    }

    fn comma(&mut self) {
        if self.out.last() != Some(&b'[') {
            self.out.push(b',');
        }
    }

    fn entry(&mut self, kind: Kind, bytes: &[u8], depth: usize) -> Result<(), String> {
        let key = first(bytes, 1)?.map_or(Ok(&b""[..]), Scalar::bytes)?;
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        self.text(key);
        self.out.push(b':');
        match first(bytes, 2)? {
            Some(scalar) => self.value(kind, scalar, depth),
            None if kind == Kind::Bytes => {
                self.out.extend_from_slice(b"\"\"");
                Ok(())
            }
            None => {
                json::write(&kind.zero(), self.out);
                Ok(())
            }
        }
    }

    /// A field with one value, unless Go would leave it out; says whether it is shown.
    fn single(&mut self, field: &'static Field, scalar: Scalar<'_>, depth: usize) -> Result<bool, String> {
        let is_zero = match (field.kind, scalar) {
            (Kind::Float64, Scalar::Int(bits)) => f64::from_bits(bits) == 0.0,
            (Kind::Bool | Kind::Int32 | Kind::Int64, Scalar::Int(0)) | (Kind::String | Kind::Bytes | Kind::Strings, Scalar::Bytes([])) => {
                true
            }
            // Without a time, or without JSON inside, it is as if it were not there.
            (Kind::Time | Kind::MicroTime, Scalar::Bytes(bytes)) if time(field.kind, bytes)?.is_none() => return Ok(false),
            (Kind::RawExtension | Kind::FieldsV1 | Kind::Json, Scalar::Bytes(bytes)) if raw(bytes)?.is_none() => return Ok(false),
            _ => false,
        };
        if is_zero && !field.pointer && !field.always {
            return Ok(false);
        }
        let before = self.out.len();
        self.key(field.json_name);
        let start = self.out.len();
        self.value(field.kind, scalar, depth)?;
        if self.out[start..] == *b"null" {
            self.out.truncate(before);
            return Ok(false);
        }
        Ok(true)
    }

    fn value(&mut self, kind: Kind, scalar: Scalar<'_>, depth: usize) -> Result<(), String> {
        match kind {
            Kind::Bool => self.out.extend_from_slice(if scalar.int()? != 0 { b"true" } else { b"false" }),
            Kind::Int32 => json::write_int((scalar.int()? as i32).into(), self.out),
            Kind::Int64 => json::write_int(scalar.int()?, self.out),
            Kind::String => self.text(scalar.bytes()?),
            Kind::Message(ty) => return self.message(ty, scalar.bytes()?, depth + 1),
            Kind::Time | Kind::MicroTime => match time(kind, scalar.bytes()?)? {
                Some(text) => json::write_str(&text, self.out),
                None => self.out.extend_from_slice(b"null"),
            },
            Kind::RawExtension | Kind::FieldsV1 | Kind::Json => self.out.extend_from_slice(raw(scalar.bytes()?)?.unwrap_or(b"null")),
            kind => json::write(&read_single(kind, scalar, (depth, ALL))?, self.out),
        }
        Ok(())
    }

    fn text(&mut self, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => json::write_str(text, self.out),
            Err(_) => json::write_str(&String::from_utf8_lossy(bytes), self.out),
        }
    }
}

fn time(kind: Kind, bytes: &[u8]) -> Result<Option<String>, String> {
    Ok(match read_time(kind, bytes)? {
        Value::Str(text) => Some(text),
        _ => None,
    })
}

/// The JSON a message carries, if it carries any.
fn raw(bytes: &[u8]) -> Result<Option<&[u8]>, String> {
    let json = first(bytes, 1)?.map_or(Ok(&b""[..]), Scalar::bytes)?;
    Ok(Some(json).filter(|json| !json.is_empty() && *json != b"null"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::protobuf::encode;
    use crate::value;

    #[test]
    fn an_object_reads_as_its_tree_with_its_revision() {
        let ty = schema::type_of("apps/v1", "StatefulSet").unwrap();
        let mut value = value!({"metadata": {"name": "a", "labels": {"x": "y"}, "creationTimestamp": "2020-01-01T00:00:00Z",
            "managedFields": [{"manager": "m", "fieldsV1": {"f:metadata": {}}}]},
            "spec": {"replicas": 0, "template": {"metadata": {"name": "t"}, "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "v"}}]}});
        json::conform(ty, &mut value).unwrap();
        let bytes = encode(ty, &value);
        let mut out = b"before".to_vec();
        object(ty, &bytes, Head { type_meta: Some(("apps/v1", "StatefulSet")), revision: 7 }, &mut out).unwrap();
        value.set(&["apiVersion"], "apps/v1");
        value.set(&["kind"], "StatefulSet");
        value.set(&["metadata", "resourceVersion"], "7");
        let text = std::str::from_utf8(&out["before".len()..]).unwrap();
        assert!(text.starts_with(r#"{"kind":"StatefulSet","apiVersion":"apps/v1","metadata":{"name":"a""#), "{text}");
        assert_eq!(json::parse(text.as_bytes()).unwrap(), value, "{text}");
        let mut item = Vec::new();
        object(ty, &bytes, Head::default(), &mut item).unwrap();
        assert!(item.starts_with(br#"{"metadata":{"name":"a""#) && !item.windows(15).any(|w| w == b"resourceVersion"));
        let mut metadata = Vec::new();
        member(ty, &bytes, "metadata", 7, &mut metadata).unwrap();
        assert_eq!(&json::parse(&metadata).unwrap(), value.at(&["metadata"]).unwrap());
        assert!(object(ty, &bytes[..bytes.len() - 1], Head::default(), &mut out).is_err());
    }
}
