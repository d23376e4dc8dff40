//! Client over HTTPS: the same requests as in process, sent to an API server as JSON over HTTP/2.
//!
//! One connection carries everything; it is dialled on first use and again after it broke. Watches stream line by line and
//! are given up when a line grows past a limit. Built for components that run apart from the server and for tools.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::Mutex;

use super::client::{Future, Transport};
use super::json;
use super::object::{Object, Revision};
use super::request::{Body, Event, Events, List, Options, Outcome, PatchType, Request, Response, Verb};
use super::resource::Resource;
use super::status::{Cause, Details, Result, Status};
use super::value::Value;
use crate::task;
use crate::transport::Connector;

/// The largest answer taken: lists are to be paged.
const ANSWER_MAX: usize = 256 << 20;
/// One watch event; objects are limited to 1.5 MB in storage and grow less than this in JSON.
const EVENT_MAX: usize = 16 << 20;

/// A connection to one API server under the connector's identity.
pub struct Remote {
    connector: Connector,
    /// `host:port`.
    address: String,
    server_name: String,
    sender: Mutex<Option<http2::SendRequest<Full<Bytes>>>>,
}

impl Remote {
    pub fn new(connector: Connector, address: &str, server_name: &str) -> Arc<Remote> {
        Arc::new(Remote { connector, address: address.into(), server_name: server_name.into(), sender: Mutex::default() })
    }

    async fn sender(&self) -> Result<http2::SendRequest<Full<Bytes>>> {
        let mut slot = self.sender.lock().await;
        if let Some(sender) = slot.as_ref().filter(|s| !s.is_closed()) {
            return Ok(sender.clone());
        }
        let stream =
            self.connector.connect(&self.address, &self.server_name).await.map_err(|e| Status::service_unavailable(e.to_string()))?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(unreachable_server)?;
        task::spawn("remote-connection", async move {
            // Its end shows as errors of the requests on it.
            let _ = connection.await;
        });
        *slot = Some(sender.clone());
        Ok(sender)
    }

    async fn send(&self, request: http::Request<Full<Bytes>>) -> Result<http::Response<Incoming>> {
        let mut sender = self.sender().await?;
        sender.send_request(request).await.map_err(unreachable_server)
    }

    async fn perform(&self, request: Request) -> Result<Outcome> {
        let resource = request.resource;
        let verb = request.verb;
        let answer = self.send(encode(&self.address, &request)?).await?;
        let code = answer.status().as_u16();
        if verb == Verb::Watch && code == 200 {
            return Ok(Outcome::Watch(events(resource, answer.into_body())));
        }
        let body = Limited::new(answer.into_body(), ANSWER_MAX)
            .collect()
            .await
            .map_err(|e| Status::service_unavailable(e.to_string()))?
            .to_bytes();
        let value =
            json::parse(&body).map_err(|e| Status::new(code, "InternalError", format!("the server answered {code} with no JSON: {e}")))?;
        if code >= 400 {
            return Err(status(code, &value));
        }
        Ok(Outcome::Unary(response(resource, verb, code, value)))
    }
}

impl Transport for Remote {
    fn call(&self, request: Request) -> Future<'_, Result<Outcome>> {
        Box::pin(self.perform(request))
    }
}

fn unreachable_server(error: hyper::Error) -> Status {
    Status::service_unavailable(format!("the API server cannot be reached: {error}"))
}

/// The identity is the connection's: `request.user` is not sent.
fn encode(address: &str, request: &Request) -> Result<http::Request<Full<Bytes>>> {
    let method = match request.verb {
        Verb::Get | Verb::List | Verb::Watch | Verb::Connect => http::Method::GET,
        Verb::Create => http::Method::POST,
        Verb::Update => http::Method::PUT,
        Verb::Patch => http::Method::PATCH,
        Verb::Delete | Verb::DeleteCollection => http::Method::DELETE,
    };
    let uri = format!("https://{address}{}", path(request));
    let (content_type, body) = match (&request.body, request.patch_type) {
        (Body::Empty, _) => ("application/json", Bytes::new()),
        (Body::Value(value), patch) => (patch.map_or("application/json", patch_media_type), json::to_vec(value).into()),
        (Body::Json(bytes), patch) => (patch.map_or("application/json", patch_media_type), bytes.clone()),
        (Body::Yaml(bytes), patch) => (patch.map_or("application/yaml", patch_media_type), bytes.clone()),
        (Body::Protobuf(bytes), _) => ("application/vnd.kubernetes.protobuf", bytes.clone()),
    };
    let built = http::Request::builder().method(method).uri(uri).header("accept", "application/json").header("content-type", content_type);
    built.header("user-agent", &request.user_agent).body(Full::new(body)).map_err(|e| Status::bad_request(e.to_string()))
}

fn patch_media_type(patch: PatchType) -> &'static str {
    match patch {
        PatchType::Json => "application/json-patch+json",
        PatchType::Merge => "application/merge-patch+json",
        PatchType::Strategic => "application/strategic-merge-patch+json",
        PatchType::Apply => "application/apply-patch+yaml",
    }
}

fn path(request: &Request) -> String {
    let Resource { group, version, plural, .. } = request.resource;
    let mut path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    if request.resource.namespaced && !request.namespace.is_empty() {
        path += &format!("/namespaces/{}", escape(&request.namespace));
    }
    path = [path.as_str(), plural].join("/");
    for part in [&request.name, &request.subresource, &request.path].into_iter().filter(|p| !p.is_empty()) {
        path = [path, escape(part)].join("/");
    }
    let query = query(request);
    if query.is_empty() { path } else { format!("{path}?{query}") }
}

fn query(request: &Request) -> String {
    let Options {
        label_selector, field_selector, resource_version, resource_version_match, limit, continue_token, timeout_seconds, ..
    } = &request.options;
    let options = &request.options;
    let number = |n: &Option<i64>| n.map(|n| n.to_string());
    let flag = |b: Option<bool>| b.map(|b| b.to_string());
    let pairs = [
        ("labelSelector", label_selector.clone()),
        ("fieldSelector", field_selector.clone()),
        ("resourceVersion", resource_version.clone()),
        ("resourceVersionMatch", resource_version_match.clone()),
        ("limit", number(limit)),
        ("continue", continue_token.clone()),
        ("timeoutSeconds", number(timeout_seconds)),
        ("watch", flag((request.verb == Verb::Watch).then_some(true))),
        ("allowWatchBookmarks", flag(options.allow_watch_bookmarks.then_some(true))),
        ("sendInitialEvents", flag(options.send_initial_events)),
        ("dryRun", options.dry_run.first().cloned()),
        ("fieldManager", options.field_manager.clone()),
        ("fieldValidation", options.field_validation.clone()),
        ("force", flag(options.force)),
        ("gracePeriodSeconds", number(&options.grace_period_seconds)),
        ("propagationPolicy", options.propagation_policy.clone()),
    ];
    let named = pairs.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", escape(&value?))));
    let raw = options.raw.iter().map(|(key, value)| format!("{}={}", escape(key), escape(value)));
    named.chain(raw).collect::<Vec<_>>().join("&")
}

/// Percent-encodes everything but unreserved characters and the slash (RFC 3986).
fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn revision(value: &Value) -> Revision {
    value.str_at(&["metadata", "resourceVersion"]).parse().unwrap_or(0)
}

fn object(resource: &'static Resource, value: &Value) -> Object {
    Object::from_value(resource, value, revision(value))
}

fn response(resource: &'static Resource, verb: Verb, code: u16, value: Value) -> Response {
    let kind = value.str_at(&["kind"]);
    if kind == resource.kind {
        return Response::Object { object: object(resource, &value), code };
    }
    if verb == Verb::List || kind == resource.list_kind() {
        let items = value.list_at(&["items"]).iter().map(|item| object(resource, item)).collect();
        let continue_token = value.str_at(&["metadata", "continue"]).to_string();
        let remaining = value.i64_at(&["metadata", "remainingItemCount"]);
        return Response::List(List { resource, items, revision: revision(&value), continue_token, remaining });
    }
    Response::Value { value, code }
}

fn status(code: u16, value: &Value) -> Status {
    // Reasons are compared with constants; the ones our own components act on are known by name.
    const REASONS: &[&str] = &[
        "NotFound",
        "AlreadyExists",
        "Conflict",
        "Invalid",
        "Expired",
        "Forbidden",
        "Unauthorized",
        "TooManyRequests",
        "Timeout",
        "BadRequest",
    ];
    let reason = REASONS.iter().find(|r| **r == value.str_at(&["reason"])).copied().unwrap_or("");
    let mut status = Status::new(code, reason, value.str_at(&["message"]));
    if let Some(details) = value.at(&["details"]) {
        let text = |key: &str| details.str_at(&[key]).to_string();
        let cause = |c: &Value| Cause {
            reason: c.str_at(&["reason"]).into(),
            message: c.str_at(&["message"]).into(),
            field: c.str_at(&["field"]).into(),
        };
        status.details = Some(Box::new(Details {
            name: text("name"),
            group: text("group"),
            kind: text("kind"),
            uid: text("uid"),
            causes: details.list_at(&["causes"]).iter().map(cause).collect(),
            continue_token: value.str_at(&["metadata", "continue"]).to_string(),
            retry_after_seconds: details.i64_at(&["retryAfterSeconds"]).and_then(|s| u32::try_from(s).ok()).unwrap_or(0),
        }));
    }
    status
}

/// One JSON document a line.
fn events(resource: &'static Resource, body: Incoming) -> Events {
    let state = (body, Vec::<u8>::new(), false);
    Box::pin(stream::unfold(state, move |(mut body, mut buffer, ended)| async move {
        if ended {
            return None;
        }
        loop {
            if let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let event = event(resource, &line);
                let ended = matches!(event, Event::Error(_));
                return Some((event, (body, buffer, ended)));
            }
            match body.frame().await {
                Some(Ok(frame)) => buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d)),
                Some(Err(_)) | None => return None,
            }
            if buffer.len() > EVENT_MAX {
                let error = Event::Error(Status::internal("a watch event is too large"));
                return Some((error, (body, Vec::new(), true)));
            }
        }
    }))
}

fn event(resource: &'static Resource, line: &[u8]) -> Event {
    let value = match json::parse(line) {
        Ok(value) => value,
        Err(error) => return Event::Error(Status::internal(format!("a watch event is no JSON: {error}"))),
    };
    let subject = value.at(&["object"]).cloned().unwrap_or_default();
    match value.str_at(&["type"]) {
        "ADDED" => Event::Added(object(resource, &subject)),
        "MODIFIED" => Event::Modified(object(resource, &subject)),
        "DELETED" => Event::Deleted(object(resource, &subject)),
        "BOOKMARK" => {
            let initial_end = subject.str_at(&["metadata", "annotations", "k8s.io/initial-events-end"]) == "true";
            Event::Bookmark { revision: revision(&subject), initial_end }
        }
        _ => Event::Error(status(subject.i64_at(&["code"]).and_then(|c| u16::try_from(c).ok()).unwrap_or(500), &subject)),
    }
}
