//! The codecs against what upstream answered: `tests/oracle/codec.jsonl.gz`, one recorded fact a line.
//!
//! `golden`: protobuf and JSON of the same object; `object`: an object as upstream prints it; `bad`: a refused body with the
//! text it was refused with. Times in the recordings are the placeholder `<time>`, which both encodings treat as no time.

use std::io::Read as _;

use base64::Engine as _;
use coracle::api::schema::{self, TypeRef};
use coracle::api::value::Value;
use coracle::api::{json, protobuf};

fn rows(kind: &str) -> Vec<Value> {
    let mut text = String::new();
    let packed = &include_bytes!("../oracle/codec.jsonl.gz")[..];
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    let all = text.lines().map(|line| json::parse(line.as_bytes()).unwrap());
    all.filter(|row| row.get(kind).is_some()).collect()
}

fn type_of(object: &Value) -> Option<TypeRef> {
    schema::type_of(object.str_at(&["apiVersion"]), object.str_at(&["kind"]))
}

/// Without nulls and time placeholders, and without what protobuf keeps in the envelope.
fn essence(value: &mut Value) {
    match value {
        Value::Map(map) => {
            map.retain(|_, v| !v.is_null() && !matches!(v.as_str(), Some("<time>" | "<microtime>")));
            map.iter_mut().for_each(|(_, v)| essence(v));
        }
        Value::List(items) => items.iter_mut().for_each(essence),
        _ => {}
    }
}

fn without_type(mut value: Value) -> Value {
    value.remove(&["apiVersion"]);
    value.remove(&["kind"]);
    value
}

/// Replaces the placeholders in `value` by times, so that it can be read strictly.
fn fill_times(value: &mut Value) {
    match value {
        Value::Map(map) => map.iter_mut().for_each(|(_, v)| fill_times(v)),
        Value::List(items) => items.iter_mut().for_each(fill_times),
        Value::Str(s) if s == "<time>" => *s = "2026-01-02T03:04:05Z".into(),
        Value::Str(s) if s == "<microtime>" => *s = "2026-01-02T03:04:05.678901Z".into(),
        _ => {}
    }
}

/// Tells each place where two trees differ.
fn differences(path: &str, ours: &Value, want: &Value, tell: &mut dyn FnMut(String)) {
    match (ours, want) {
        (Value::Map(a), Value::Map(b)) => {
            let keys: std::collections::BTreeSet<&str> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let null = &Value::Null;
                differences(&format!("{path}.{key}"), a.get(key).unwrap_or(null), b.get(key).unwrap_or(null), tell);
            }
        }
        (Value::List(a), Value::List(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| differences(&format!("{path}[{i}]"), a, b, tell));
        }
        (a, b) if a == b => {}
        (a, b) => tell(format!("{path}: {a}, not {b}")),
    }
}

fn report(failures: &[String], total: usize) {
    assert!(total > 50, "only {total} rows");
    assert!(failures.is_empty(), "{} of {total} differ:\n{}", failures.len(), failures[..failures.len().min(25)].join("\n"));
}

#[test]
fn golden_bytes_are_reproduced() {
    let rows = rows("golden");
    let mut failures = Vec::new();
    for row in &rows {
        let object = row.get("json").unwrap();
        let sealed = base64::engine::general_purpose::STANDARD.decode(row.str_at(&["golden"])).unwrap();
        let (api_version, kind, raw) = protobuf::open(&sealed).unwrap();
        let ty = type_of(object).unwrap();
        // Upstream keeps the white space of raw JSON (here: of requests recorded with `": "`); a tree cannot.
        let raw_json = ["ControllerRevision", "ResourceClaim", "ResourceClaimTemplate"].contains(&kind.as_str());
        let encoded = protobuf::encode(ty, object);
        if !raw_json && protobuf::seal(&api_version, &kind, &encoded) != sealed {
            let at = encoded.iter().zip(raw).take_while(|(a, b)| a == b).count();
            let from = at.saturating_sub(30);
            let show = |b: &[u8]| String::from_utf8_lossy(&b[from.min(b.len())..(at + 40).min(b.len())]).escape_debug().to_string();
            failures.push(format!("{api_version} {kind} at {at}:\n  ours {}\n  want {}", show(&encoded), show(raw)));
        }
        // Through text, where 1.0 and 1 are the same.
        let decoded = protobuf::decode(ty, raw).unwrap();
        let (mut decoded, mut want) = (json::parse(&json::to_vec(&decoded)).unwrap(), without_type(object.clone()));
        essence(&mut decoded);
        essence(&mut want);
        differences("", &decoded, &want, &mut |text| failures.push(format!("{api_version} {kind} decoded: {text}")));
    }
    report(&failures, rows.len());
}

#[test]
fn objects_round_trip_as_upstream_prints_them() {
    let rows = rows("object");
    let mut failures = Vec::new();
    for row in &rows {
        let mut object = row.get("object").unwrap().clone();
        fill_times(&mut object);
        let Some(ty) = type_of(&object) else { continue };
        match json::decode(ty, &json::to_vec(&object)) {
            Ok((read, reports)) if read == object && reports.is_empty() => {}
            other => failures.push(format!("read {other:?}\n  want {object}")),
        }
        let back = protobuf::decode(ty, &protobuf::encode(ty, &object)).unwrap();
        if back != without_type(object.clone()) {
            failures.push(format!("protobuf\n  ours {back}\n  want {object}"));
        }
    }
    report(&failures, rows.len());
}

#[test]
fn refusals_use_the_words_of_upstream() {
    let rows = rows("bad");
    let mut failures = Vec::new();
    for row in &rows {
        let kind = row.list_at(&["type"]);
        let Some(ty) = schema::type_of(kind[0].as_str().unwrap_or("v1"), kind[1].as_str().unwrap_or("")) else { continue };
        let text = match json::decode(ty, row.str_at(&["bad"]).as_bytes()) {
            Ok((_, reports)) => format!("strict decoding error: {}", reports.join(", ")),
            Err(error) => error,
        };
        if text != row.str_at(&["text"]) {
            failures.push(format!("{}\n  ours {text}\n  want {}", row.str_at(&["name"]), row.str_at(&["text"])));
        }
    }
    report(&failures, rows.len());
}
