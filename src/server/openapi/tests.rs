//! The documents beside those upstream publishes.

use super::*;

/// Removes texts, which upstream's recorded documents do not have.
fn wordless(mut value: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                if map.get("description").is_some_and(Value::is_string) {
                    map.remove("description");
                }
                map.values_mut().for_each(strip);
            }
            Value::Array(list) => list.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut value);
    value
}

/// The first places where two trees differ.
fn differences(path: &str, want: &Value, got: &Value, out: &mut Vec<String>) {
    if out.len() > 40 {
        return;
    }
    match (want, got) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => differences(&format!("{path}/{key}"), a, b, out),
                    (Some(a), None) => out.push(format!("{path}/{key}: missing, want {}", brief(a))),
                    (None, Some(b)) => out.push(format!("{path}/{key}: unexpected {}", brief(b))),
                    (None, None) => {}
                }
            }
        }
        // Upstream lists the kinds of one type in no order.
        (Value::Array(a), Value::Array(b)) if path.ends_with("group-version-kind") => {
            let set = |l: &[Value]| l.iter().map(Value::to_string).collect::<BTreeSet<_>>();
            if set(a) != set(b) {
                out.push(format!("{path}: want {} got {}", brief(want), brief(got)));
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| differences(&format!("{path}/{i}"), a, b, out));
        }
        (a, b) if a != b => out.push(format!("{path}: want {} got {}", brief(a), brief(b))),
        _ => {}
    }
}

fn brief(value: &Value) -> String {
    value.to_string().chars().take(160).collect()
}

/// Upstream's documents, recorded, without texts: by `v2` or the path of a part.
fn recorded() -> BTreeMap<String, Value> {
    let packed = include_bytes!("../../../tests/oracle/files.jsonl.gz");
    let text = String::from_utf8(inflated(packed)).unwrap();
    let files = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let documents = files.filter_map(|mut file| {
        let request = file["do"].as_str().unwrap().strip_prefix("GET /openapi/")?.to_string();
        let path = request.strip_prefix("v3/").unwrap_or(&request);
        (path != "v3").then(|| (path.to_string(), file["want"].take()))
    });
    documents.collect()
}

#[test]
fn the_documents_are_upstreams() {
    let recorded = recorded();
    let mut out = Vec::new();
    for (path, want) in &recorded {
        let body = if path == "v2" { v2().gzip } else { v3(path).unwrap_or_else(|| panic!("no part {path}")).gzip };
        let got = wordless(serde_json::from_slice(&inflated(&body)).unwrap());
        differences(path, want, &got, &mut out);
    }
    assert!(out.is_empty(), "{}", out.join("\n"));
    let index: Value = serde_json::from_slice(&index()).unwrap();
    let mut parts: Vec<&str> = index["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    parts.push("v2");
    assert_eq!(parts.into_iter().collect::<BTreeSet<_>>(), recorded.keys().map(String::as_str).collect());
}

#[test]
fn members_are_explained() {
    let document: Value = serde_json::from_slice(&inflated(&v3("api/v1").unwrap().gzip)).unwrap();
    let pod = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"];
    assert!(pod["description"].is_string() && pod["properties"]["containers"]["description"].is_string());
}
