//! Tests of the protobuf codec: golden bytes and the laws over every type of the table.

use super::*;
use crate::value;

#[test]
fn envelope() {
    let sealed = seal("v1", "Pod", b"\x0a\x00");
    assert_eq!(sealed, b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12\x02\x0a\x00\x1a\x00\x22\x00");
    assert_eq!(open(&sealed).unwrap(), ("v1".to_string(), "Pod".to_string(), &b"\x0a\x00"[..]));
    assert!(open(b"{}").is_err());
}

#[test]
fn revision_is_spliced_where_it_belongs() {
    let ty = schema::type_of("v1", "ConfigMap").unwrap();
    let mut value = value!({"metadata": {"name": "a", "uid": "u", "creationTimestamp": "2020-01-01T00:00:00Z"}, "data": {"k": "v"}});
    let raw = encode(ty, &value);
    let spliced = with_revision(ty, &raw, 1234);
    value.set(&["metadata", "resourceVersion"], "1234");
    assert_eq!(spliced, encode(ty, &value));
    assert_eq!(with_revision(ty, &spliced, 1234), spliced);
    assert_eq!(decode(ty, &spliced).unwrap(), value);
}

#[test]
fn peeks_through_messages_maps_and_embedded_structs() {
    let ty = schema::type_of("v1", "Pod").unwrap();
    let value = value!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"nodeName": "n", "hostNetwork": true, "priority": 7}});
    let raw = encode(ty, &value);
    let at = |path: &[&str]| peek(ty, &raw, path);
    assert_eq!(at(&["spec", "nodeName"]), Some(Peek::Str("n")));
    assert_eq!(at(&["spec", "hostNetwork"]), Some(Peek::Bool(true)));
    assert_eq!(at(&["spec", "priority"]), Some(Peek::Int(7)));
    assert_eq!(at(&["metadata", "labels", "x"]), Some(Peek::Str("y")));
    assert_eq!(at(&["metadata", "labels", "z"]), None);
    assert_eq!(at(&["spec", "nothing"]), None);
    let rule = schema::type_named("io.k8s.api.admissionregistration.v1.NamedRuleWithOperations").unwrap();
    let raw = encode(rule, &value!({"apiGroups": ["a"], "scope": "*"}));
    assert_eq!(peek(rule, &raw, &["scope"]), Some(Peek::Str("*")));
}

#[test]
fn garbage_is_an_error_and_never_a_panic() {
    let ty = schema::type_of("v1", "Pod").unwrap();
    let good = encode(ty, &value!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}}));
    for cut in 0..good.len() {
        let _ = decode(ty, &good[..cut]);
        for flip in [1u8, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[cut] ^= flip;
            let _ = decode(ty, &bad);
        }
    }
}

/// Values of every type, as random as the law tests need: small, and only what Go could hold after a round trip.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    fn text(&mut self) -> String {
        const ALPHABET: [&str; 12] = ["a", "b", "Z", "0", "-", ".", "é", "\"", "<", "\n", "\u{2028}", "😀"];
        (0..=self.next(6)).map(|_| ALPHABET[self.next(12) as usize]).collect()
    }

    fn message(&mut self, ty: TypeRef, depth: u32) -> Value {
        let mut slots = Slots::new(ty);
        for (i, field) in ty.fields().enumerate() {
            // Fields without a number (kind, apiVersion, tables) do not exist in protobuf.
            if field.number == 0 || self.next(u64::from(depth)) > 1 {
                continue;
            }
            let count = 1 + self.next(2);
            let value = match field {
                f if f.repeated => Value::List((0..count).map(|_| self.single(f.kind, depth)).collect()),
                f if f.map => Value::Map((0..count).map(|_| (self.text(), self.map_value(f, depth))).collect()),
                f => self.single(f.kind, depth),
            };
            *slots.slot(i as u16) = Some(value);
        }
        Value::Map(slots.finish())
    }

    fn map_value(&mut self, field: &Field, depth: u32) -> Value {
        match self.single(field.kind, depth) {
            Value::Null => field.kind.zero(),
            value => value,
        }
    }

    fn json(&mut self, depth: u32) -> Value {
        match self.next(if depth > 3 { 4 } else { 6 }) {
            0 => Value::Bool(true),
            1 => Value::Int(self.next(1 << 40) as i64 - (1 << 39)),
            2 => Value::Float(self.next(1000) as f64 + 0.5),
            3 => Value::Str(self.text()),
            4 => Value::List((0..self.next(3)).map(|_| self.json(depth + 1)).collect()),
            _ => Value::Map((0..self.next(3)).map(|_| (self.text(), self.json(depth + 1))).collect()),
        }
    }

    fn single(&mut self, kind: Kind, depth: u32) -> Value {
        let props = Kind::Message(schema::schema_props());
        match kind {
            Kind::Bool => Value::Bool(self.next(2) == 0),
            Kind::Int32 => Value::Int((self.next(1 << 32) as u32 as i32).into()),
            Kind::Int64 => Value::Int(self.next(u64::MAX) as i64),
            Kind::Float64 => Value::Float(self.next(1000) as f64 / 4.0),
            Kind::String => Value::Str(self.text()),
            Kind::Bytes => Value::Str(["", "YQ==", "AAEC/w=="][self.next(3) as usize].into()),
            Kind::Time => Value::Str(Time::from_seconds(self.next(4_000_000_000) as i64 - 1_000_000_000).to_string()),
            Kind::MicroTime => {
                Value::Str(Time { seconds: self.next(2_000_000_000) as i64, nanos: self.next(1_000_000) as u32 * 1000 }.micro())
            }
            Kind::Quantity => Value::Str(["0", "1", "250m", "1536Mi", "12e6", "3n"][self.next(5) as usize].into()),
            Kind::IntOrString => {
                if self.next(2) == 0 {
                    Value::Int(self.next(70_000) as i64)
                } else {
                    Value::Str(self.text())
                }
            }
            Kind::RawExtension | Kind::FieldsV1 | Kind::Json => Value::Map((0..2).map(|_| (self.text(), self.json(0))).collect()),
            Kind::Any => Value::Null,
            Kind::Strings => Value::List(vec![Value::Str(self.text())]),
            Kind::SchemaOrBool if depth > 2 || self.next(2) == 0 => Value::Bool(self.next(2) == 0),
            Kind::SchemaOrStrings if depth > 2 || self.next(2) == 0 => Value::List(vec![Value::Str(self.text())]),
            Kind::SchemaOrArray if depth > 2 || self.next(2) == 0 => Value::List(vec![self.single(props, depth + 1)]),
            Kind::SchemaOrBool | Kind::SchemaOrArray | Kind::SchemaOrStrings => self.single(props, depth + 1),
            Kind::Message(ty) if depth > 5 => Value::Map(schema::zero_struct(ty)),
            Kind::Message(ty) => self.message(ty, depth + 1),
        }
    }
}

/// An object's own resourceVersion is not in its stored bytes.
fn without_revision(ty: TypeRef, value: &Value) -> Value {
    let mut value = value.clone();
    if ty.field("metadata").and_then(Field::message) == Some(schema::object_meta()) {
        value.remove(&["metadata", "resourceVersion"]);
    }
    value
}

/// Every type: protobuf there and back is the identity, bytes are canonical, the tree conforms, JSON there and back too.
#[test]
fn laws_of_every_type() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x5eed_c0de_u64);
    println!("SEED={seed}");
    let mut random = Random(seed);
    for ty in schema::all() {
        for _ in 0..6 {
            let value = random.message(ty, 2);
            let raw = encode(ty, &value);
            let back = decode(ty, &raw).unwrap_or_else(|e| panic!("{ty:?}: {e}\n{value}"));
            assert_eq!(back, value, "{ty:?}");
            assert_eq!(encode(ty, &back), raw, "{ty:?}");
            let mut direct = Vec::new();
            transcode::object(ty, &raw, transcode::Head::default(), &mut direct).unwrap();
            let read = json::decode(ty, &direct).unwrap_or_else(|e| panic!("{ty:?}: {e}\n{}", String::from_utf8_lossy(&direct)));
            assert_eq!(read, (without_revision(ty, &value), Vec::new()), "{ty:?}");
            let (read, reports) = json::decode(ty, &json::to_vec(&value)).unwrap_or_else(|e| panic!("{ty:?}: {e}\n{value}"));
            assert_eq!((&read, reports), (&value, Vec::new()), "{ty:?}");
        }
        let zero = Value::Map(schema::zero_struct(ty));
        assert_eq!(decode(ty, &encode(ty, &zero)).unwrap(), zero, "{ty:?}");
        assert_eq!(decode(ty, b"").unwrap(), zero, "{ty:?}");
        assert_eq!(json::decode(ty, b"{}").unwrap().0, zero, "{ty:?}");
    }
}
