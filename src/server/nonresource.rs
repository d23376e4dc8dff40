//! Paths that are no resources: discovery, OpenAPI, health, version, metrics and the token issuer's documents.

use http::Response;

use crate::api::status::{Result, Status};
use crate::api::value::Value;

use super::http::{Front, Head, ResponseBody, bytes_response, empty, set};
use super::negotiate::{self, Encoding, Kind, View};
use super::route::Info;
use super::{discovery, openapi};

const TEXT: &str = "text/plain; charset=utf-8";

/// Answers a path authorization has passed.
pub(super) fn answer(front: &Front, head: &Head<'_>, info: &Info) -> Result<Response<ResponseBody>> {
    let path = head.path;
    if path.starts_with("//") {
        return Ok(not_found());
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["healthz" | "livez" | "readyz", check @ ..] => return Ok(health(front, head, parts[0], check)),
        ["metrics"] => return Ok(plain(200, &metrics(front))),
        _ => {}
    }
    if info.is_resource {
        // A group nobody serves.
        return Ok(not_found());
    }
    let document = |value: Option<Value>| value.ok_or_else(Status::no_such_resource);
    match parts.as_slice() {
        ["api"] => discover(head, || discovery::aggregated(true), || discovery::versions(&address(front))),
        ["apis"] => discover(head, || discovery::aggregated(false), discovery::groups),
        ["api", version] => negotiated(head, document(discovery::resources("", version))?),
        ["apis", group] => match discovery::group(group) {
            Some(value) => negotiated(head, value),
            None => Ok(not_found()),
        },
        ["apis", group, _] if discovery::group(group).is_none() => Ok(not_found()),
        ["apis", group, version] => negotiated(head, document(discovery::resources(group, version))?),
        ["version"] => version(head),
        ["openapi", "v3"] => Ok(json(openapi::index(), head)).map(|mut r| {
            set(r.headers_mut(), "content-type", TEXT);
            r
        }),
        ["openapi", "v3", rest @ ..] => Ok(openapi_document(head, &rest.join("/"))),
        ["openapi", "v2"] => Ok(openapi_v2(head)),
        [".well-known", "openid-configuration"] => {
            issuer_document(head, negotiate::MEDIA[0], &front.pipeline.auth().openid_configuration())
        }
        ["openid", "v1", "jwks"] => issuer_document(head, "application/jwk-set+json", &front.pipeline.auth().jwks()),
        [""] => negotiated(head, root()),
        _ => Ok(not_found()),
    }
}

fn root() -> Value {
    crate::value!({"paths": ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2",
        "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"]})
}

fn address(front: &Front) -> String {
    let cluster = front.pipeline.cluster();
    format!("{}:{}", cluster.advertise_address, cluster.port)
}

fn only_get(head: &Head<'_>) -> Result<()> {
    if head.method == "GET" { Ok(()) } else { Err(Status::method_not_allowed()) }
}

/// `/api` and `/apis`: the legacy list, or the aggregated document where that is asked for.
fn discover(head: &Head<'_>, aggregated: impl FnOnce() -> Value, legacy: impl FnOnce() -> Value) -> Result<Response<ResponseBody>> {
    only_get(head)?;
    let accepted = negotiate::accept(head.accept, Kind::Discovery).map_err(|r| negotiate::not_acceptable(&r, Kind::Discovery))?;
    if accepted.view != View::Discovery {
        return negotiated(head, legacy());
    }
    let media = format!("{};g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", accepted.encoding.media_type());
    let body = negotiate::encode(&aggregated(), accepted.encoding, accepted.pretty);
    let etag = discovery::etag(&body);
    let mut response = if head.if_none_match == etag {
        let mut response = Response::new(empty());
        *response.status_mut() = http::StatusCode::NOT_MODIFIED;
        response
    } else {
        bytes_response(200, &media, body, head.accept_encoding.contains("gzip"))
    };
    set(response.headers_mut(), "etag", &etag);
    set(response.headers_mut(), "vary", "Accept");
    set(response.headers_mut(), "cache-control", "public");
    Ok(response)
}

fn negotiated(head: &Head<'_>, value: Value) -> Result<Response<ResponseBody>> {
    only_get(head)?;
    let accepted = negotiate::accept(head.accept, Kind::Discovery).map_err(|r| negotiate::not_acceptable(&r, Kind::Discovery))?;
    let body = negotiate::encode(&value, accepted.encoding, accepted.pretty);
    Ok(bytes_response(200, accepted.encoding.media_type(), body, head.accept_encoding.contains("gzip")))
}

/// What verifiers of tokens read; they may keep it for an hour.
fn issuer_document(head: &Head<'_>, media: &str, document: &Value) -> Result<Response<ResponseBody>> {
    only_get(head)?;
    if !negotiate::takes(head.accept, media) {
        return Err(negotiate::unavailable(&[media]));
    }
    let mut response = json(document.to_string().into_bytes(), head);
    set(response.headers_mut(), "content-type", media);
    set(response.headers_mut(), "cache-control", "public, max-age=3600");
    Ok(response)
}

fn json(body: Vec<u8>, head: &Head<'_>) -> Response<ResponseBody> {
    bytes_response(200, negotiate::MEDIA[0], body, head.accept_encoding.contains("gzip"))
}

fn version(head: &Head<'_>) -> Result<Response<ResponseBody>> {
    only_get(head)?;
    if !negotiate::accepts(head.accept, Encoding::Json) {
        return Err(negotiate::unavailable(&negotiate::MEDIA[..1]));
    }
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let document = crate::value!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": concat!("v1.36.3+coracle-", env!("CARGO_PKG_VERSION")), "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc", "platform": format!("linux/{arch}"),
    });
    Ok(bytes_response(200, negotiate::MEDIA[0], negotiate::encode(&document, Encoding::Json, true), false))
}

fn openapi_document(head: &Head<'_>, path: &str) -> Response<ResponseBody> {
    const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";
    let is_protobuf = head.accept.split(',').any(|clause| clause.split(';').next().unwrap_or("").trim() == PROTOBUF);
    let Some(document) = (if is_protobuf { openapi::v3_protobuf(path) } else { openapi::v3(path) }) else {
        return status_only(http::StatusCode::NOT_FOUND);
    };
    let media = if is_protobuf { PROTOBUF } else { negotiate::MEDIA[0] };
    let (etag, hash) = (format!("\"{}\"", document.hash), document.hash.as_str());
    let asked = head.query.iter().find(|(k, _)| k == "hash").map_or("", |(_, v)| v.as_str());
    let mut response = if !asked.is_empty() && asked != hash {
        let mut response = status_only(http::StatusCode::MOVED_PERMANENTLY);
        set(response.headers_mut(), "content-type", media);
        set(response.headers_mut(), "location", &format!("/openapi/v3/{path}?hash={hash}"));
        response
    } else if head.if_none_match == etag {
        status_only(http::StatusCode::NOT_MODIFIED)
    } else {
        let mut response = openapi_body(head, &document, media);
        if asked == hash {
            set(response.headers_mut(), "cache-control", "public, immutable");
        }
        response
    };
    set(response.headers_mut(), "etag", &etag);
    set(response.headers_mut(), "vary", "Accept");
    response
}

/// The one document of v2, as JSON or as gnostic's protobuf, which has gone by two names.
fn openapi_v2(head: &Head<'_>) -> Response<ResponseBody> {
    const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    const PROTOBUF_TOO: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let wanted = head.accept.split(',').find_map(|clause| match clause.split(';').next().unwrap_or("").trim() {
        "" | "*/*" | "application/*" | "application/json" => Some(negotiate::MEDIA[0]),
        PROTOBUF | PROTOBUF_TOO => Some(PROTOBUF),
        _ => None,
    });
    let mut response = match wanted {
        None => status_only(http::StatusCode::NOT_ACCEPTABLE),
        Some(media) => {
            let document = if media == PROTOBUF { openapi::v2_protobuf() } else { openapi::v2() };
            let etag = format!("\"{}\"", document.hash);
            let is_known = head.if_none_match == etag;
            let mut response = if is_known { status_only(http::StatusCode::NOT_MODIFIED) } else { openapi_body(head, &document, media) };
            set(response.headers_mut(), "etag", &etag);
            response
        }
    };
    set(response.headers_mut(), "vary", "Accept-Encoding, Accept");
    response
}

/// Documents are kept compressed, and go out so where that is taken.
fn openapi_body(head: &Head<'_>, document: &openapi::Document, media: &str) -> Response<ResponseBody> {
    if !head.accept_encoding.contains("gzip") {
        return bytes_response(200, media, openapi::inflated(&document.gzip), false);
    }
    let mut response = bytes_response(200, media, document.gzip.to_vec(), false);
    set(response.headers_mut(), "content-encoding", "gzip");
    response
}

fn status_only(status: http::StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(empty());
    *response.status_mut() = status;
    response
}

pub(super) fn plain(code: u16, body: &str) -> Response<ResponseBody> {
    let mut response = bytes_response(code, TEXT, body.as_bytes().to_vec(), false);
    set(response.headers_mut(), "x-content-type-options", "nosniff");
    response
}

fn not_found() -> Response<ResponseBody> {
    plain(404, "404 page not found\n")
}

/// The checks behind `/readyz`; the others know fewer names, but all are the same three questions.
const CHECKS: [&str; 6] = ["ping", "log", "etcd", "informer-sync", "poststarthook/rbac/bootstrap-roles", "shutdown"];

fn health(front: &Front, head: &Head<'_>, endpoint: &str, check: &[&str]) -> Response<ResponseBody> {
    let known = |name: &str| CHECKS.contains(&name);
    let store_ok = front.pipeline.store_works();
    let is_ok = |name: &str| !matches!(name, "etcd" | "informer-sync") || store_ok;
    if !check.is_empty() {
        let name = check.join("/");
        return match (known(&name), is_ok(&name)) {
            (false, _) => not_found(),
            (true, true) => plain(200, "ok"),
            (true, false) => plain(500, "internal server error: the store is not available\n"),
        };
    }
    let excluded: Vec<&str> = head.query.iter().filter(|(k, _)| k == "exclude").map(|(_, v)| v.as_str()).collect();
    let verbose = head.query.iter().any(|(k, _)| k == "verbose");
    let mut text = String::new();
    let mut failed = false;
    for name in CHECKS {
        if excluded.contains(&name) {
            text.push_str(&format!("[+]{name} excluded: ok\n"));
        } else if is_ok(name) {
            text.push_str(&format!("[+]{name} ok\n"));
        } else {
            failed = true;
            text.push_str(&format!("[-]{name} failed: reason withheld\n"));
        }
    }
    for name in excluded.iter().filter(|n| !known(n)) {
        text.push_str(&format!("warn: some health checks cannot be excluded: no matches for {name:?}\n"));
    }
    match (failed, verbose) {
        (true, _) => plain(500, &format!("{text}{endpoint} check failed\n")),
        (false, true) => plain(200, &format!("{text}{endpoint} check passed\n")),
        (false, false) => plain(200, "ok"),
    }
}

fn metrics(front: &Front) -> String {
    let p = &front.pipeline;
    let mut text = crate::telemetry::render();
    let mut line = |name: &str, kind: &str, value: u64| text.push_str(&format!("# TYPE {name} {kind}\n{name} {value}\n"));
    line("coracle_server_requests_total", "counter", p.served());
    line("apiserver_longrunning_requests", "gauge", p.watches_open() as u64);
    let stats = p.store().stats();
    line("coracle_store_revision", "gauge", stats.revision);
    line("coracle_store_keys", "gauge", stats.keys as u64);
    line("coracle_store_bytes", "gauge", stats.bytes as u64);
    line("coracle_store_history_bytes", "gauge", stats.history_bytes as u64);
    line("coracle_store_ring_bytes", "gauge", stats.ring_bytes as u64);
    line("coracle_server_uptime_seconds", "gauge", front.started.elapsed().as_secs());
    text
}
