//! One scenario: its steps sent, each answer normalised and compared with what was recorded.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::client::{self, Answer, Client, Outgoing, Read, Reading};
use super::normal::{Binder, TOKEN};
use super::ordered::Ordered;
use super::wire;

/// Between tries of a step with `retry`.
const RETRY_EVERY: Duration = Duration::from_millis(100);
/// A scenario that failed already waits no longer than this for what may come late.
const RETRY_OF_THE_FAILED: f64 = 0.5;
/// For a watch in the background to end when it is collected.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(20);

const PRESENCE: &[&str] = &["Audit-Id", "X-Kubernetes-Pf-Flowschema-Uid", "X-Kubernetes-Pf-Prioritylevel-Uid", "Etag"];
/// Headers compared; with a value, the one assumed unless something else is recorded.
const HEADERS: &[(&str, Option<&str>)] = &[
    ("Content-Type", Some("application/json")),
    ("Cache-Control", Some("no-cache, private")),
    ("Audit-Id", Some("<present>")),
    ("X-Kubernetes-Pf-Flowschema-Uid", Some("<present>")),
    ("X-Kubernetes-Pf-Prioritylevel-Uid", Some("<present>")),
    ("Etag", None),
    ("Retry-After", None),
    ("Vary", None),
    ("Location", None),
    ("Allow", None),
    ("Www-Authenticate", None),
    ("Warning", None),
    ("Content-Encoding", None),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    #[serde(default)]
    pub ns: Option<String>,
    #[serde(default, rename = "nsLabels")]
    pub ns_labels: Value,
    #[serde(default)]
    pub flags: Vec<String>,
    pub steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    #[serde(default, rename = "do")]
    request: String,
    #[serde(default, deserialize_with = "also_null")]
    body: Option<Ordered>,
    raw: Option<String>,
    b64: Option<String>,
    fill: Option<Fill>,
    #[serde(rename = "type")]
    content_type: Option<String>,
    accept: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Option<String>>,
    auth: Option<String>,
    want: Option<Value>,
    #[serde(default)]
    unchecked: bool,
    only: Option<Vec<String>>,
    retry: Option<f64>,
    #[serde(default)]
    capture: BTreeMap<String, String>,
    watch: Option<usize>,
    wait: Option<f64>,
    #[serde(default)]
    until_end: bool,
    bg: Option<String>,
    collect: Option<String>,
    sleep: Option<f64>,
    #[serde(default, rename = "note")]
    _note: Value,
}

/// A long body: `pre`, `n` times `char`, `post`.
#[derive(Deserialize)]
struct Fill {
    pre: String,
    char: String,
    n: usize,
    post: String,
}

fn also_null<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Ordered>, D::Error> {
    Ordered::deserialize(from).map(Some)
}

/// What differed, a text per step; nothing if the scenario passed. `limit` bounds the lines of one step.
pub async fn run(client: &mut Client<'_>, scenario: &Scenario, run: &str, limit: usize) -> Vec<String> {
    let mut binder = Binder::new(run);
    let mut problems = Vec::new();
    if let Err(error) = prepare(client, scenario, &binder).await {
        return vec![format!("preparing: {error}")];
    }
    let mut running: BTreeMap<&str, (&Step, JoinHandle<Result<Read, String>>)> = BTreeMap::new();
    for (i, step) in scenario.steps.iter().enumerate() {
        let label = if step.request.is_empty() { step.collect.as_deref().unwrap_or("") } else { &step.request };
        let got = if let Some(seconds) = step.sleep {
            sleep(Duration::from_secs_f64(seconds)).await;
            continue;
        } else if let Some(name) = &step.collect {
            let Some((watch, mut task)) = running.remove(name.as_str()) else {
                problems.push(format!("step {i} {label}: no such watch"));
                break;
            };
            let read = match timeout(COLLECT_TIMEOUT, &mut task).await {
                Ok(read) => read.unwrap_or_else(|e| Err(e.to_string())),
                Err(_) => {
                    task.abort();
                    Err("it went on and on".to_string())
                }
            };
            watch_shape(&mut binder, watch, read)
        } else if let Some(events) = step.watch {
            let wait = Duration::from_secs_f64(step.wait.unwrap_or(8.0));
            let reading = Reading { events, wait, until_end: step.until_end };
            let started = client.server().stream(&outgoing(step, &binder)).await;
            let task = tokio::spawn(async move { client::read(started?, reading).await });
            if let Some(name) = &step.bg {
                running.insert(name, (step, task));
                continue;
            }
            watch_shape(&mut binder, step, task.await.unwrap_or_else(|e| Err(e.to_string())))
        } else {
            let patience = step.retry.map(|r| if problems.is_empty() { r } else { r.min(RETRY_OF_THE_FAILED) });
            match ask(client, step, &mut binder, patience).await {
                Ok(got) => got,
                Err(error) => {
                    problems.push(format!("step {i} {label}: {error}"));
                    break;
                }
            }
        };
        let Some(want) = step.want.as_ref().filter(|_| !step.unchecked) else { continue };
        if !matches(step, want, &got) {
            let mut lines = vec![format!("step {i} {label}")];
            differences(&canonical(want), &canonical(&got), "", &mut lines, limit + 1);
            problems.push(lines.join("\n      "));
        }
    }
    running.into_values().for_each(|(_, task)| task.abort());
    problems
}

/// The namespace, and in it the service account a controller would make.
async fn prepare(client: &mut Client<'_>, scenario: &Scenario, binder: &Binder) -> Result<(), String> {
    let Some(ns) = &scenario.ns else { return Ok(()) };
    let ns = binder.fill(ns);
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ns, "labels": fill(&scenario.ns_labels, binder)}});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    for (path, body) in [("/api/v1/namespaces".to_string(), namespace), (format!("/api/v1/namespaces/{ns}/serviceaccounts"), account)] {
        let headers = [("Content-Type", "application/json"), ("Accept", "application/json"), ("User-Agent", "setup/1")];
        let headers = headers.map(|(k, v)| (k.to_string(), v.to_string())).to_vec();
        let body = Some(body.to_string().into());
        client.send(&Outgoing { method: "POST".into(), path, headers, body, anonymous: false }).await?;
    }
    Ok(())
}

fn fill(value: &Value, binder: &Binder) -> Value {
    match value {
        Value::Object(map) => Value::Object(map.iter().map(|(k, v)| (binder.fill(k), fill(v, binder))).collect()),
        Value::String(s) => Value::String(binder.fill(s)),
        other => other.clone(),
    }
}

/// Sends a step, again and again for `patience` seconds until the answer is as recorded.
async fn ask(client: &mut Client<'_>, step: &Step, binder: &mut Binder, patience: Option<f64>) -> Result<Value, String> {
    let started = Instant::now();
    loop {
        let before = patience.map(|_| binder.clone());
        let answer = client.send(&outgoing(step, binder)).await?;
        let (got, document) = shape(binder, &answer);
        let is_over = match (patience, &step.want) {
            (Some(patience), Some(want)) => matches(step, want, &got) || started.elapsed().as_secs_f64() > patience,
            (_, _) => true,
        };
        if is_over {
            for (name, path) in &step.capture {
                if let Some(found) = pointer(&document, path) {
                    binder.captured.insert(name.clone(), found.as_str().map_or(found.to_string(), str::to_string));
                }
            }
            return Ok(got);
        }
        *binder = before.expect("kept while there is patience");
        sleep(RETRY_EVERY).await;
    }
}

fn outgoing(step: &Step, binder: &Binder) -> Outgoing {
    let (method, path) = step.request.split_once(' ').unwrap_or(("GET", "/"));
    let mut headers = BTreeMap::from([
        ("User-Agent".to_string(), Some("oracle/1".to_string())),
        ("Accept".to_string(), Some(step.accept.clone().unwrap_or("application/json".into()))),
    ]);
    let mut content_type = Some("application/json");
    let body: Option<Bytes> = if let Some(body) = &step.body {
        Some(body.to_text(binder).into())
    } else if let Some(raw) = &step.raw {
        Some(binder.fill(raw).into())
    } else if let Some(b64) = &step.b64 {
        content_type = Some("application/vnd.kubernetes.protobuf");
        Some(with_token(BASE64.decode(b64).expect("base64 in the corpus"), binder.token()).into())
    } else if let Some(f) = &step.fill {
        Some((binder.fill(&f.pre) + &f.char.repeat(f.n) + &binder.fill(&f.post)).into())
    } else {
        content_type = None;
        None
    };
    if let Some(content_type) = step.content_type.as_deref().or(content_type) {
        headers.insert("Content-Type".into(), Some(content_type.into()));
    }
    for (name, value) in &step.headers {
        headers.insert(name.clone(), value.as_ref().map(|v| binder.fill(v)));
    }
    let headers = headers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    Outgoing { method: method.into(), path: binder.fill(path), headers, body, anonymous: step.auth.as_deref() == Some("none") }
}

fn with_token(mut bytes: Vec<u8>, token: &str) -> Vec<u8> {
    for at in 0..bytes.len() {
        if bytes[at..].starts_with(TOKEN.as_bytes()) {
            bytes[at..at + token.len()].copy_from_slice(token.as_bytes());
        }
    }
    bytes
}

/// Only what differs from the default; `null` means absent.
fn header_shape(headers: &HeaderMap, mut text: impl FnMut(&str) -> String) -> Value {
    let mut out = Map::new();
    for (name, default) in HEADERS {
        let values: Vec<String> = headers.get_all(*name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect();
        let found: Value = match () {
            () if values.is_empty() => Value::Null,
            () if PRESENCE.contains(name) => "<present>".into(),
            () if *name == "Warning" => values.iter().map(|v| text(v)).collect::<Vec<_>>().into(),
            () => text(&values.join(", ")).into(),
        };
        if found != default.map_or(Value::Null, Value::from) {
            out.insert(name.to_string(), found);
        }
    }
    Value::Object(out)
}

/// An answer as it is stored under `want`, and the document in it.
fn shape(binder: &mut Binder, answer: &Answer) -> (Value, Value) {
    let headers = header_shape(&answer.headers, |s| binder.text(s));
    let mut out = json!({"status": answer.status, "headers": headers});
    let media = answer.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("");
    if answer.body.is_empty() {
        return (out, Value::Null);
    }
    if wire::is_sealed(&answer.body) {
        out["b64"] = BASE64.encode(wire::normalise(binder, &answer.body, false)).into();
        return (out, Value::Null);
    }
    if media.contains("json")
        && let Ok(document) = serde_json::from_slice::<Value>(&answer.body)
    {
        out["body"] = binder.body(document.clone(), None);
        return (out, document);
    }
    let text = String::from_utf8_lossy(&answer.body);
    out["text"] = binder.plain(&text).into();
    (out, text.into_owned().into())
}

fn watch_shape(binder: &mut Binder, step: &Step, read: Result<Read, String>) -> Value {
    let read = match read {
        Ok(read) => read,
        Err(error) => return json!({"error": error}),
    };
    if let Some(refusal) = read.refusal {
        return shape(binder, &Answer { status: read.status, headers: read.headers, body: refusal }).0;
    }
    let mut events = Vec::new();
    for frame in read.frames {
        if read.is_protobuf {
            let (kind, object) = wire::event(&frame);
            let object = BASE64.encode(wire::normalise(binder, &object, kind == "BOOKMARK"));
            events.push(json!({"type": kind, "b64": object}));
            continue;
        }
        let Ok(mut event) = serde_json::from_slice::<Value>(&frame) else { break };
        let kind = event["type"].take();
        let object = binder.body(event["object"].take(), kind.as_str());
        events.push(json!({"type": kind, "object": object}));
    }
    let mut out = json!({"status": read.status, "headers": header_shape(&read.headers, str::to_string), "events": events});
    if step.until_end {
        out["end"] = read.ended_by.into();
    }
    out
}

fn pointer<'a>(mut value: &'a Value, path: &str) -> Option<&'a Value> {
    for part in path.trim_matches('/').split('/') {
        value = match value {
            Value::Array(items) => items.get(part.parse::<usize>().ok()?)?,
            Value::Object(map) => map.get(part)?,
            _ => return None,
        };
    }
    Some(value)
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn matches(step: &Step, want: &Value, got: &Value) -> bool {
    let Some(only) = &step.only else { return canonical(want) == canonical(got) };
    let found = |value, path| pointer(value, path).filter(|v| !is_nothing(v)).map(canonical);
    only.iter().all(|path| found(want, path) == found(got, path))
}

/// The form for comparing: what upstream orders at random is ordered, periodic bookmarks are left out.
fn canonical(answer: &Value) -> Value {
    let mut out = answer.clone();
    sort_managers(&mut out);
    hide_certificates(&mut out);
    let Some(map) = out.as_object_mut() else { return out };
    map.retain(|key, value| key != "headers" || !is_nothing(value));
    if let Some(Value::Array(events)) = map.get_mut("events") {
        let is_end = |event: &Value| {
            let bytes = BASE64.decode(event["b64"].as_str().unwrap_or("")).unwrap_or_default();
            event.to_string().contains("initial-events-end") || String::from_utf8_lossy(&bytes).contains("initial-events-end")
        };
        events.retain(|event| event["type"] != "BOOKMARK" || is_end(event));
    }
    if let Some(body) = map.get_mut("body").filter(|b| b["kind"] == "Status") {
        sort_causes(body);
    }
    out
}

/// The client certificate of the recording is not ours: rule 14.
fn hide_certificates(value: &mut Value) {
    const HEAD: &str = "X509SHA256=";
    const DIGITS: usize = 64;
    let hide = |bytes: &mut Vec<u8>| {
        let starts: Vec<usize> =
            (0..bytes.len()).filter(|at| bytes[*at..].starts_with(HEAD.as_bytes())).map(|at| at + HEAD.len()).collect();
        starts.iter().filter_map(|at| bytes.get(*at..at + DIGITS).map(|_| *at)).collect::<Vec<_>>().into_iter().for_each(|at| {
            bytes[at..at + DIGITS].fill(b'0');
        });
        !starts.is_empty()
    };
    match value {
        Value::Object(map) => {
            for (key, member) in map {
                match member {
                    Value::String(s) if key == "b64" => {
                        let mut bytes = BASE64.decode(&*s).unwrap_or_default();
                        if hide(&mut bytes) {
                            *s = BASE64.encode(bytes);
                        }
                    }
                    other => hide_certificates(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_certificates),
        Value::String(s) if s.contains(HEAD) => {
            let mut bytes = std::mem::take(s).into_bytes();
            hide(&mut bytes);
            *s = String::from_utf8(bytes).expect("digits became digits");
        }
        _ => {}
    }
}

fn sort_managers(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, member) in map {
                match member {
                    Value::Array(entries) if key == "managedFields" => entries.sort_by_cached_key(Value::to_string),
                    other => sort_managers(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(sort_managers),
        _ => {}
    }
}

/// Rule 13.
fn sort_causes(status: &mut Value) {
    let Some(causes) = status.pointer_mut("/details/causes").and_then(Value::as_array_mut).filter(|c| c.len() > 1) else { return };
    causes.sort_by_cached_key(Value::to_string);
    let text = |cause: &Value, member: &str| cause[member].as_str().unwrap_or("").to_string();
    let piece = |cause: &Value| match text(cause, "field") {
        field if field.is_empty() => text(cause, "message"),
        field => format!("{field}: {}", text(cause, "message")),
    };
    let mut pieces: Vec<String> = causes.iter().map(piece).collect();
    pieces.sort();
    let message = status["message"].as_str().unwrap_or("").to_string();
    let Some((head, tail)) = message.split_once(" is invalid: ") else { return };
    let Some(inner) = tail.strip_prefix('[').and_then(|t| t.strip_suffix(']')) else { return };
    let mut rest = inner.to_string();
    let mut longest_first: Vec<&String> = pieces.iter().collect();
    longest_first.sort_by_key(|p| std::cmp::Reverse(p.len()));
    longest_first.dedup();
    for piece in longest_first {
        rest = rest.replacen(piece.as_str(), "", 1);
    }
    if rest.trim_matches([',', ' ']).is_empty() {
        status["message"] = format!("{head} is invalid: [{}]", pieces.join(", ")).into();
    }
}

/// Tells the places where two documents differ, until there are `limit` lines.
pub fn differences(want: &Value, got: &Value, path: &str, lines: &mut Vec<String>, limit: usize) {
    if lines.len() >= limit || want == got {
        return;
    }
    let readable = |value: &Value| match value.as_str().filter(|_| path.ends_with("/b64")).map(|s| BASE64.decode(s)) {
        Some(Ok(bytes)) => String::from_utf8_lossy(&bytes).escape_debug().to_string(),
        _ => value.to_string(),
    };
    let short = |value: &Value, n: usize| readable(value).chars().take(n * limit.min(40)).collect::<String>();
    match (want, got) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                if lines.len() >= limit {
                    return;
                }
                match (a.get(key), b.get(key)) {
                    (None, Some(found)) => lines.push(format!("{path}/{key}: unexpected {}", short(found, 50))),
                    (Some(wanted), None) => lines.push(format!("{path}/{key}: missing, want {}", short(wanted, 50))),
                    (Some(wanted), Some(found)) => differences(wanted, found, &format!("{path}/{key}"), lines, limit),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differences(a, b, &format!("{path}/{i}"), lines, limit);
            }
        }
        _ => lines.push(format!("{path}:\n        want {}\n        got  {}", short(want, 100), short(got, 100))),
    }
}
