//! The front end: connections in; requests to the pipeline, its answers back as bytes. HTTP/1.1 and HTTP/2 alike.
//!
//! Order per request: identify (once per connection for certificates) → impersonate → route → authorize → read the body →
//! pipeline → encode. Everything has a limit: headers, bodies, streams, requests at a time, time. Paths that are no resources are
//! in `nonresource`. Start at [`Front::serve_connection`] and [`Front::handle`].

use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Body as HttpBody, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tracing::{debug, error};

use crate::api::request::{self, Body, Outcome, User, Verb};
use crate::api::status::{Result, Status};
use crate::task::Shutdown;
use crate::transport::Connector;

use super::auth::impersonation::Impersonation;
use super::auth::{Attributes, Credentials};
use super::encode::{self, Encoder};
use super::negotiate::{self, Encoding, Kind};
use super::pipeline::Pipeline;
use super::registry::Row;
use super::route::{self, Info};
use super::table::Include;
use super::verbs::watch::FramedEvents;
use super::{nonresource, proxy, verbs};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// Request bodies, as upstream.
const BODY_BYTES_MAX: usize = 3 << 20;
const HEADER_BYTES_MAX: usize = 1 << 20;
const STREAMS_MAX: u32 = 250;
/// HTTP/2 windows and frames.
const WINDOW_BYTES: u32 = 256 << 10;
/// Requests other than watches worked on at a time.
const REQUESTS_MAX: usize = 600;
/// Bodies from here on are compressed for those who accept it.
const GZIP_BYTES_MIN: usize = 128 << 10;
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(32);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// What a request other than a watch may take.
const REQUEST_SECONDS_MAX: f64 = 60.0;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The verified client certificate chain, leaf first, DER.
    pub certificates: Vec<Vec<u8>>,
    pub remote: SocketAddr,
}

/// A connection: its peer, and who that was found to be.
struct Caller {
    peer: Peer,
    user: OnceLock<User>,
}

/// Serves connections from one pipeline.
pub struct Front {
    pub(super) pipeline: Arc<Pipeline>,
    /// To kubelets and backends.
    connectors: proxy::Connectors,
    requests: Arc<Semaphore>,
    pub(super) started: std::time::Instant,
}

impl Front {
    pub fn new(pipeline: Arc<Pipeline>, kubelet: Connector) -> Arc<Front> {
        #[allow(clippy::disallowed_methods)] // Uptime alone; nothing decides by it.
        let started = std::time::Instant::now();
        let connectors = proxy::Connectors { kubelet, anyone: Connector::trusting_anyone() };
        Arc::new(Front { pipeline, connectors, requests: Arc::new(Semaphore::new(REQUESTS_MAX)), started })
    }

    /// Serves one connection until its peer closes it or `shutdown` does.
    pub async fn serve_connection<T>(self: Arc<Front>, io: T, peer: Peer, shutdown: Shutdown)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let remote = peer.remote;
        let caller = Arc::new(Caller { peer, user: OnceLock::new() });
        let service = service_fn(move |request: Request<Incoming>| {
            let (front, caller) = (self.clone(), caller.clone());
            async move { Ok::<_, Infallible>(front.caught(request, &caller).await) }
        });
        let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT).max_buf_size(HEADER_BYTES_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES * 16)
            .max_frame_size(WINDOW_BYTES)
            .max_header_list_size(HEADER_BYTES_MAX as u32)
            .keep_alive_interval(KEEP_ALIVE);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(%remote, %error, "connection ended");
        }
    }

    /// One request without a connection under it (no upgrades): for tests.
    pub async fn handle(&self, request: Request<Full<Bytes>>, peer: Peer) -> Response<ResponseBody> {
        self.answer(request, &Caller { peer, user: OnceLock::new() }).await
    }

    /// A panic outside the pipeline (which catches its own) is a 500, too, not the end of the process.
    async fn caught(&self, request: Request<Incoming>, caller: &Caller) -> Response<ResponseBody> {
        let answered = AssertUnwindSafe(self.answer(request, caller)).catch_unwind().await;
        answered.unwrap_or_else(|_| {
            error!(remote = %caller.peer.remote, "answering a request panicked");
            bytes_response(500, negotiate::MEDIA[0], encode::status(&Status::internal("the server panicked"), Encoding::Json), false)
        })
    }

    async fn answer<B>(&self, request: Request<B>, caller: &Caller) -> Response<ResponseBody>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + Upgradable + 'static,
        B::Error: Into<BoxError>,
    {
        let accept = text(request.headers(), &header::ACCEPT).to_string();
        let is_head = request.method() == http::Method::HEAD;
        let (audit, asked) = (verbs::uid(), text(request.headers(), &HeaderName::from_static("audit-id")).to_string());
        let mut response = match self.routed(request, caller).await {
            Ok(response) => response,
            Err(refused) => self.refusal(&refused, &accept),
        };
        if is_head {
            *response.body_mut() = empty();
        }
        let headers = response.headers_mut();
        let audit = if asked.is_empty() { audit } else { asked };
        set(headers, "audit-id", &audit);
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
        response
    }

    async fn routed<B>(&self, mut http: Request<B>, caller: &Caller) -> std::result::Result<Response<ResponseBody>, Refused>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + Upgradable + 'static,
        B::Error: Into<BoxError>,
    {
        let path = http.uri().path().to_string();
        let query = route::query(http.uri().query().unwrap_or(""));
        let info = Info::parse(http.method().as_str(), &path, &query);
        let user = self.identify(http.headers(), caller)?;
        let attributes = attributes(&info);
        let user = self.impersonate(http.headers(), user, &attributes).map_err(Refused::before_flow)?;
        let flow = !is_unmeasured(&info);
        let timeout = route::timeout_seconds(&query)?.filter(|t| *t > 0.0).map_or(REQUEST_SECONDS_MAX, |t| t.min(REQUEST_SECONDS_MAX));
        let timeout = Duration::from_secs_f64(timeout);
        if !info.is_resource || !self.pipeline.registry().has_group(&info.group) {
            self.pipeline.auth().require(&user, &attributes).map_err(|status| Refused { status, flow })?;
            return nonresource::answer(self, &http_head(&http), &info).map_err(Refused::flow).map(|r| self.with_flow_headers(r));
        }
        let row = self.pipeline.registry().find(&info.group, &info.version, &info.resource);
        let target = match info.target(http.method().as_str(), row.map(|r| r.resource)) {
            Ok(target) => target,
            Err(status) => {
                self.pipeline.auth().require(&user, &attributes)?;
                return Err(Refused { status, flow });
            }
        };
        let row = row.expect("a target has a row");
        let mut request = request::Request::new(&user, target.verb, target.resource, &info.namespace, &info.name);
        request.subresource = info.subresource.clone();
        request.path = info.rest.clone();
        request.user_agent = text(http.headers(), &header::USER_AGENT).to_string();
        if row.resource.plural == "namespaces" && row.resource.group.is_empty() {
            request.namespace.clear();
        }
        // A field selector fills the name in for authorization only.
        if matches!(target.verb, Verb::List | Verb::DeleteCollection) || (target.verb == Verb::Watch && !path.contains("/watch/")) {
            request.name.clear();
        }
        if target.verb == Verb::Connect {
            self.pipeline.auth().require(&user, &attributes).map_err(Refused::before_flow)?;
            request.options.raw = query;
            self.pipeline.admit_connect(&request).map_err(Refused::before_flow)?;
            let (head, body) = http.into_parts();
            let Some(incoming) = body.into_incoming() else { return Err(Status::bad_request("this request must be upgraded").into()) };
            let connected = {
                let http = Request::from_parts(head, incoming);
                proxy::connect(&self.connectors, &**self.pipeline.access(), &request, http, caller.peer.remote).await
            };
            return connected.map_err(Refused::before_flow);
        }
        request.options = route::options(target.verb, query).map_err(Refused::flow)?;
        let kind = match target.verb {
            Verb::Watch => Kind::Watch,
            _ if is_bare(row, &info.subresource) => Kind::Bare,
            _ => Kind::Object,
        };
        let accept = text(http.headers(), &header::ACCEPT).to_string();
        let mut accepted = negotiate::accept(&accept, kind).map_err(|r| Refused::flow(negotiate::not_acceptable(&r, kind)))?;
        accepted.pretty |= request.options.pretty;
        if matches!(target.verb, Verb::Create | Verb::Update | Verb::Patch | Verb::Delete | Verb::DeleteCollection) {
            let content_type = text(http.headers(), &header::CONTENT_TYPE).to_string();
            let bytes = read_body(http.body_mut()).await.map_err(Refused::flow)?;
            let deletes = matches!(target.verb, Verb::Delete | Verb::DeleteCollection);
            request.body = match target.verb {
                Verb::Patch => {
                    let (patch_type, body) = negotiate::patch(&content_type, bytes).map_err(Refused::flow)?;
                    request.patch_type = Some(patch_type);
                    body
                }
                _ if deletes && bytes.is_empty() => Body::Empty,
                _ => negotiate::body(&content_type, bytes).map_err(Refused::flow)?,
            };
        }
        let raw = |key: &str| request.options.raw.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v.as_str());
        let include = Include::parse(raw("includeObject"));
        let encoder = EncoderParts { accepted, include };
        if target.verb == Verb::Watch {
            return self.watch(row, request, encoder).await.map_err(Refused::flow);
        }
        let permit = self.requests.clone().try_acquire_owned();
        let _permit = permit.map_err(|_| Refused::flow(Status::too_many_requests("too many requests, please try again later.", 1)))?;
        let served = tokio::time::timeout(timeout, self.pipeline.serve(request)).await;
        let (outcome, mut warnings) =
            served.map_err(|_| Refused::flow(Status::timeout("Timeout: request did not complete within the allotted timeout", 0)))?;
        let mut response = match outcome {
            Ok(Outcome::Unary(request::Response::List(list)))
                if is_long(&list) && encoder.with(row, self.pipeline.clock().now()).streams_lists() =>
            {
                let gzip = text(http.headers(), &header::ACCEPT_ENCODING).contains("gzip");
                list_response(self.pipeline.clone(), row, list, encoder, gzip)
            }
            Ok(Outcome::Unary(response)) => {
                let answer = encoder.with(row, self.pipeline.clock().now()).response(&response);
                let gzip = text(http.headers(), &header::ACCEPT_ENCODING).contains("gzip");
                bytes_response(answer.code, accepted.encoding.media_type(), answer.body, gzip)
            }
            Ok(Outcome::Watch(_)) => return Err(Status::internal("a watch answered a unary request").into()),
            Err(status) => self.refusal(&Refused::flow(status), &accept),
        };
        // Who may not ask is not told of it.
        if response.status() != StatusCode::FORBIDDEN || self.pipeline.auth().require(&user, &attributes).is_ok() {
            warnings.extend(deprecation(row));
        }
        add_warnings(response.headers_mut(), warnings);
        Ok(self.with_flow_headers(response))
    }

    fn identify(&self, headers: &HeaderMap, caller: &Caller) -> Result<User> {
        if let Some(user) = caller.user.get() {
            return Ok(user.clone());
        }
        let certificate = caller.peer.certificates.first().map(Vec::as_slice);
        let authorization = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let user = self.pipeline.auth().authenticate(&Credentials { certificate, authorization }, self.pipeline.clock().now())?;
        if certificate.is_some() && authorization.is_none() {
            let _ = caller.user.set(user.clone());
        }
        Ok(user)
    }

    fn impersonate(&self, headers: &HeaderMap, user: User, attributes: &Attributes<'_>) -> Result<User> {
        let named = headers.iter().filter(|(name, _)| name.as_str().starts_with("impersonate-"));
        let wanted = Impersonation::from_headers(named.filter_map(|(name, value)| value.to_str().ok().map(|v| (name.as_str(), v))));
        if wanted.is_empty() { Ok(user) } else { self.pipeline.auth().impersonate(user, &wanted, attributes) }
    }

    async fn watch(&self, row: &Row, request: request::Request, parts: EncoderParts) -> Result<Response<ResponseBody>> {
        let events = self.pipeline.serve_watch(request)?;
        let media = match parts.accepted.encoding {
            Encoding::Protobuf => negotiate::MEDIA_WATCH[1],
            Encoding::Json | Encoding::Yaml => negotiate::MEDIA[0],
        };
        let body = frames(self.pipeline.clone(), row.resource, events, parts);
        let mut response = Response::new(body);
        set(response.headers_mut(), "content-type", media);
        add_warnings(response.headers_mut(), deprecation(row));
        Ok(self.with_flow_headers(response))
    }

    fn refusal(&self, refused: &Refused, accept: &str) -> Response<ResponseBody> {
        let status = &refused.status;
        let encoding = negotiate::error_encoding(accept);
        let mut response = bytes_response(status.code, encoding.media_type(), encode::status(status, encoding), false);
        if let Some(seconds) = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
            set(response.headers_mut(), "retry-after", &seconds.to_string());
        }
        if refused.flow { self.with_flow_headers(response) } else { response }
    }

    /// The priority-and-fairness headers: every request passes the catch-all flow.
    pub(super) fn with_flow_headers(&self, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
        let (schema, level) = self.pipeline.flow();
        set(response.headers_mut(), "x-kubernetes-pf-flowschema-uid", &schema);
        set(response.headers_mut(), "x-kubernetes-pf-prioritylevel-uid", &level);
        response
    }
}

/// A request that ends here: with or without the flow headers, which upstream adds once a request is admitted to a flow.
struct Refused {
    status: Status,
    flow: bool,
}

impl Refused {
    fn before_flow(status: Status) -> Refused {
        Refused { status, flow: false }
    }

    fn flow(status: Status) -> Refused {
        Refused { status, flow: true }
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Refused {
        // Authorization comes after the flow is chosen, authentication and timeouts before.
        let flow = matches!(status.code, 403 | 406);
        Refused { status, flow }
    }
}

/// Bodies that may carry an upgrade.
pub trait Upgradable {
    fn into_incoming(self) -> Option<Incoming>;
}

impl Upgradable for Incoming {
    fn into_incoming(self) -> Option<Incoming> {
        Some(self)
    }
}

impl Upgradable for Full<Bytes> {
    fn into_incoming(self) -> Option<Incoming> {
        None
    }
}

#[derive(Clone, Copy)]
struct EncoderParts {
    accepted: negotiate::Accepted,
    include: Include,
}

impl EncoderParts {
    fn with(self, row: &Row, now: crate::api::time::Time) -> Encoder<'_> {
        Encoder { row, accepted: self.accepted, include: self.include, now }
    }
}

/// Watch events as body frames, one each, so that each is flushed.
fn frames(
    pipeline: Arc<Pipeline>,
    resource: &'static crate::api::resource::Resource,
    events: FramedEvents,
    parts: EncoderParts,
) -> ResponseBody {
    let encoded = events.enumerate().map(move |(i, framed)| {
        let row = pipeline.registry().row(resource);
        let encoder = parts.with(row, pipeline.clock().now());
        Ok::<_, BoxError>(Frame::data(encoder.event(&framed.event, framed.frames.as_deref(), i == 0)))
    });
    StreamBody::new(encoded).boxed_unsync()
}

/// Lists longer than this are sent as they are written.
const WHOLE_BYTES_MAX: usize = 128 << 10;
/// How much is written before it is sent.
const CHUNK_BYTES: usize = 64 << 10;

fn is_long(list: &request::List) -> bool {
    list.items.iter().map(|o| o.bytes.len()).sum::<usize>() > WHOLE_BYTES_MAX
}

/// A list on its way: what is left of it, and the compressor.
struct Sending {
    pipeline: Arc<Pipeline>,
    parts: EncoderParts,
    now: crate::api::time::Time,
    list: request::List,
    /// Items sent; one more than there are once the tail is.
    sent: usize,
    gzip: Option<flate2::write::GzEncoder<Vec<u8>>>,
}

impl Sending {
    fn next_chunk(&mut self) -> Option<Bytes> {
        let pipeline = self.pipeline.clone();
        let row = pipeline.registry().row(self.list.resource);
        let encoder = self.parts.with(row, self.now);
        let total = self.list.items.len();
        // The compressor swallows chunks until it has something to show.
        while self.sent <= total {
            let mut chunk = if self.sent == 0 { encoder.list_head(&self.list) } else { Vec::with_capacity(CHUNK_BYTES * 5 / 4) };
            while self.sent < total && chunk.len() < CHUNK_BYTES {
                encoder.list_item(&self.list.items[self.sent], self.sent == 0, &mut chunk);
                self.sent += 1;
            }
            if self.sent == total {
                chunk.extend_from_slice(encoder.list_tail(&self.list));
                self.sent += 1;
            }
            let chunk = self.packed(chunk);
            if !chunk.is_empty() {
                return Some(chunk.into());
            }
        }
        None
    }

    fn packed(&mut self, chunk: Vec<u8>) -> Vec<u8> {
        use std::io::Write as _;
        let Some(mut gzip) = self.gzip.take() else { return chunk };
        gzip.write_all(&chunk).expect("memory takes all bytes");
        if self.sent > self.list.items.len() {
            return gzip.finish().expect("memory takes all bytes");
        }
        let out = std::mem::take(gzip.get_mut());
        self.gzip = Some(gzip);
        out
    }
}

fn list_response(pipeline: Arc<Pipeline>, row: &Row, list: request::List, parts: EncoderParts, gzip: bool) -> Response<ResponseBody> {
    let now = pipeline.clock().now();
    debug_assert!(*list.resource == *row.resource, "a list is of what was asked for");
    let compressor = gzip.then(|| flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1)));
    let sending = Sending { pipeline, parts, now, list, sent: 0, gzip: compressor };
    let chunks = futures_util::stream::unfold(sending, |mut sending| async move {
        let chunk = sending.next_chunk()?;
        Some((Ok::<_, BoxError>(Frame::data(chunk)), sending))
    });
    let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
    set(response.headers_mut(), "content-type", parts.accepted.encoding.media_type());
    if gzip {
        set(response.headers_mut(), "content-encoding", "gzip");
        set(response.headers_mut(), "vary", "Accept-Encoding");
    }
    response
}

/// Long-running requests other than watches pass no flow.
fn is_unmeasured(info: &Info) -> bool {
    let connects = info.is_resource && matches!(info.subresource.as_str(), "attach" | "exec" | "log" | "portforward" | "proxy");
    connects || info.path.starts_with("/debug/pprof/")
}

/// What authorization sees of a path.
fn attributes(info: &Info) -> Attributes<'_> {
    if !info.is_resource {
        return Attributes::of_path(&info.verb, &info.path);
    }
    Attributes {
        verb: &info.verb,
        group: &info.group,
        version: &info.version,
        resource: &info.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        ..Attributes::default()
    }
}

/// Kinds that are answers rather than objects have no Table.
fn is_bare(row: &Row, subresource: &str) -> bool {
    row.resource.verbs == ["create"] || matches!(subresource, "binding" | "eviction" | "token")
}

/// Upstream warns about these few on every use.
fn deprecation(row: &Row) -> Vec<String> {
    let text = match (row.resource.group, row.resource.plural) {
        ("", "componentstatuses") => "v1 ComponentStatus is deprecated in v1.19+",
        ("", "endpoints") => "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
        _ => return Vec::new(),
    };
    vec![text.to_string()]
}

async fn read_body<B>(body: &mut B) -> Result<Bytes>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(Status::too_large(BODY_BYTES_MAX));
    }
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Status::too_large(BODY_BYTES_MAX)),
        Err(error) => Err(Status::bad_request(format!("unable to read the request body: {error}"))),
    }
}

/// What the handlers of plain paths need of a request.
pub(super) struct Head<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: Vec<(String, String)>,
    pub accept: &'a str,
    pub accept_encoding: &'a str,
    pub if_none_match: &'a str,
}

fn http_head<B>(http: &Request<B>) -> Head<'_> {
    let headers = http.headers();
    Head {
        method: http.method().as_str(),
        path: http.uri().path(),
        query: route::query(http.uri().query().unwrap_or("")),
        accept: text(headers, &header::ACCEPT),
        accept_encoding: text(headers, &header::ACCEPT_ENCODING),
        if_none_match: text(headers, &header::IF_NONE_MATCH),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
}

pub(super) fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// Characters of all warnings of an answer; beyond that each is cut.
const WARNINGS_MAX: usize = 4096;
/// Characters of one warning, if there are that many.
const WARNING_MAX: usize = 256;

fn add_warnings(headers: &mut HeaderMap, warnings: Vec<String>) {
    let mut said: Vec<String> = Vec::with_capacity(warnings.len());
    for warning in warnings {
        if !warning.is_empty() && !said.contains(&warning) {
            said.push(warning);
        }
    }
    let too_much = said.iter().map(|w| w.chars().count()).sum::<usize>() > WARNINGS_MAX;
    let mut written = 0;
    for warning in said {
        if too_much && written >= WARNINGS_MAX {
            break;
        }
        let part: String = warning.chars().take(if too_much { WARNING_MAX } else { usize::MAX }).collect();
        written += part.chars().count();
        let clean: String = part.chars().filter(|c| !c.is_control()).collect();
        let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            headers.append(header::WARNING, value);
        }
    }
}

pub(super) fn empty() -> ResponseBody {
    Full::new(Bytes::new()).map_err(|e| match e {}).boxed_unsync()
}

/// A whole body, compressed if it is large and the client takes that.
pub(super) fn bytes_response(code: u16, media: &str, body: Vec<u8>, gzip: bool) -> Response<ResponseBody> {
    let compress = gzip && body.len() > GZIP_BYTES_MIN;
    let body = if compress { compressed(&body) } else { body };
    let length = body.len();
    let mut response = Response::new(Full::new(Bytes::from(body)).map_err(|e| match e {}).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    set(response.headers_mut(), "content-type", media);
    set(response.headers_mut(), "content-length", &length.to_string());
    if compress {
        set(response.headers_mut(), "content-encoding", "gzip");
        set(response.headers_mut(), "vary", "Accept-Encoding");
    }
    response
}

fn compressed(body: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 4), flate2::Compression::new(1));
    encoder.write_all(body).and_then(|()| encoder.finish()).expect("memory takes all bytes")
}
