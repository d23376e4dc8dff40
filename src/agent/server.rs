//! The kubelet's own API, for the API server only: logs, exec, pods, statistics, health.
//!
//! Connections arrive with their TLS done; [`Peer`] is who the verified client certificate names. Everyone but the API server
//! is refused, except for `/healthz`.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::kubelet::Kubelet;
use super::kubelet::pod::Pod;
use super::logs;
use super::stats::Summaries;
use super::stream::{self, Protocol};
use crate::api::value::Value;
use crate::runtime::{ExecSpec, State};
use crate::value;

/// The other end of a connection, by its verified client certificate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peer {
    /// Common name.
    pub name: String,
    /// Organizations.
    pub groups: Vec<String>,
}

/// What the API server calls itself towards kubelets, as upstream's tools issue it.
pub const API_SERVER: &str = "kube-apiserver-kubelet-client";

impl Peer {
    /// From the leaf (DER) of a chain the handshake has verified; no certificate is nobody.
    pub fn of(chain: &[Vec<u8>]) -> Peer {
        let Some(leaf) = chain.first() else { return Peer::default() };
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(leaf) else { return Peer::default() };
        let subject = certificate.subject();
        let text = |a: &x509_parser::x509::AttributeTypeAndValue| a.as_str().unwrap_or("").to_string();
        Peer {
            name: subject.iter_common_name().next().map(text).unwrap_or_default(),
            groups: subject.iter_organization().map(text).collect(),
        }
    }

    fn is_api_server(&self) -> bool {
        self.name == API_SERVER || self.groups.iter().any(|g| g == "system:masters")
    }
}

type Body = BoxBody<Bytes, Infallible>;
type Reply = Response<Body>;

pub struct Server {
    pub kubelet: Arc<Kubelet>,
    pub summaries: Summaries,
    pub data_dir: PathBuf,
}

fn text(code: StatusCode, text: impl Into<String>) -> Reply {
    let body = Full::new(Bytes::from(text.into())).boxed();
    let mut reply = Response::new(body);
    *reply.status_mut() = code;
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}

fn json(value: &Value) -> Reply {
    let mut reply = text(StatusCode::OK, value.to_string());
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    reply
}

/// Percent-decoded query parameters in order.
fn query(uri: &http::Uri) -> Vec<(String, String)> {
    let pairs = uri.query().unwrap_or("").split('&').filter(|p| !p.is_empty());
    pairs.map(|p| p.split_once('=').unwrap_or((p, ""))).map(|(k, v)| (decode(k), decode(v))).collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%').then(|| text.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(h, 16).ok())).flatten();
        match (hex, bytes[i]) {
            (Some(byte), _) => {
                out.push(byte);
                i += 2;
            }
            (None, b'+') => out.push(b' '),
            (None, byte) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Server {
    /// Serves one connection to its end; upgraded ones live on in tasks of their own.
    pub async fn serve<S>(self: Arc<Self>, io: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let (server, peer) = (self.clone(), peer.clone());
            async move { Ok::<Reply, Infallible>(server.answer(request, &peer).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service).with_upgrades();
        if let Err(error) = connection.await {
            tracing::debug!(%error, "kubelet connection ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: &Peer) -> Reply {
        let path = request.uri().path().to_string();
        if path == "/healthz" {
            return text(StatusCode::OK, "ok");
        }
        if !peer.is_api_server() {
            let who = if peer.name.is_empty() { "an unnamed peer" } else { &peer.name };
            return text(StatusCode::FORBIDDEN, format!("Forbidden: {who} is not the API server"));
        }
        let parts: Vec<String> = path.split('/').skip(1).map(decode).collect();
        let words: Vec<&str> = parts.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["pods"] => json(&self.pods()),
            ["metrics"] => text(StatusCode::OK, crate::telemetry::render()),
            ["stats", "summary"] => json(&self.summaries.summary(self.kubelet.shared(), self.kubelet.pods(), &self.data_dir).await),
            ["containerLogs", namespace, pod, container] => self.logs(namespace, pod, container, request.uri()).await,
            ["exec", namespace, pod, container] => self.exec(namespace, pod, container, request).await,
            ["exec", namespace, pod, _uid, container] => self.exec(namespace, pod, container, request).await,
            ["attach" | "portForward", ..] => {
                text(StatusCode::NOT_IMPLEMENTED, format!("{} is not supported yet by this version of Coracle", words[0]))
            }
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }

    fn pods(&self) -> Value {
        let items: Vec<Value> = self.kubelet.pods().iter().map(|o| o.value()).collect();
        let mut list = value!({"kind": "PodList", "apiVersion": "v1", "metadata": {}});
        list.set(&["items"], items);
        list
    }

    async fn logs(&self, namespace: &str, name: &str, container: &str, uri: &http::Uri) -> Reply {
        let shared = self.kubelet.shared();
        let Some(pod) = self.kubelet.pod(namespace, name) else {
            return text(StatusCode::NOT_FOUND, format!("pod \"{name}\" does not exist"));
        };
        let options = match logs::Options::parse(&query(uri), shared.now()) {
            Ok(options) => options,
            Err(message) => return text(StatusCode::UNPROCESSABLE_ENTITY, message),
        };
        let pod = pod.value();
        let wanted = match logs::find(shared, Pod(&pod), container, options.previous).await {
            Ok(wanted) => wanted,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        let (to, from) = mpsc::channel::<Bytes>(8);
        crate::task::spawn("log-reader", logs::send(shared.clone(), wanted, options, to));
        let mut reply = Response::new(LogBody(from).boxed());
        reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
        reply
    }

    async fn exec(&self, namespace: &str, name: &str, container: &str, mut request: Request<Incoming>) -> Reply {
        let Some(pod) = self.kubelet.pod(namespace, name) else {
            return text(StatusCode::NOT_FOUND, format!("pod \"{name}\" does not exist"));
        };
        let spec = match exec_spec(&query(request.uri())) {
            Ok(spec) => spec,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        let runtime = &self.kubelet.shared().runtime;
        let list = runtime.list().await;
        let mut known = list.iter().filter(|s| s.info.id == pod.uid()).flat_map(|s| &s.containers);
        let running = known.find(|c| c.name == container && matches!(c.state, State::Running { .. }));
        let Some(id) = running.map(|c| c.id.clone()) else {
            return text(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")"));
        };
        let (protocol, key) = match handshake(request.method(), request.headers()) {
            Ok(agreed) => agreed,
            Err(refusal) => return *refusal,
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let runtime = runtime.clone();
        crate::task::spawn("exec", async move {
            // Executed only once the client's end is open: a refused upgrade runs nothing.
            let io = match upgrade.await {
                Ok(io) => TokioIo::new(io),
                Err(error) => return tracing::debug!(%error, "exec not upgraded"),
            };
            let session = runtime.exec(&id, spec).await;
            stream::serve(io, protocol, session).await;
        });
        let mut reply = text(StatusCode::SWITCHING_PROTOCOLS, "");
        let headers = reply.headers_mut();
        headers.clear();
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, header::HeaderValue::from_static(protocol.name()));
        let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, header::HeaderValue::from_str(&accept).expect("base64 is a header value"));
        reply
    }
}

/// Chunks as a reader task sends them.
struct LogBody(mpsc::Receiver<Bytes>);

impl hyper::body::Body for LogBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// The kubelet's parameter names and the API's are both understood.
fn exec_spec(query: &[(String, String)]) -> Result<ExecSpec, String> {
    let on = |names: &[&str]| query.iter().any(|(k, v)| names.contains(&k.as_str()) && matches!(v.as_str(), "1" | "true"));
    let command: Vec<String> = query.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.clone()).collect();
    let tty = on(&["tty"]);
    let spec = ExecSpec {
        stdin: on(&["stdin", "input"]),
        stdout: on(&["stdout", "output"]),
        stderr: on(&["stderr", "error"]) && !tty,
        command,
        tty,
    };
    match (spec.command.is_empty(), spec.stdin || spec.stdout || spec.stderr || tty) {
        (true, _) => Err("you must specify at least one command for the container".to_string()),
        (_, false) => Err("you must specify at least 1 of stdin, stdout, stderr".to_string()),
        _ => Ok(spec),
    }
}

/// The agreed subprotocol and the client's key, or the refusal.
fn handshake(method: &Method, headers: &HeaderMap) -> Result<(Protocol, String), Box<Reply>> {
    let get = |name: header::HeaderName| headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).collect::<Vec<_>>().join(",");
    let refuse = |code, message: &str| Err(Box::new(text(code, message)));
    let upgrade = get(header::UPGRADE).to_lowercase();
    if upgrade.contains("spdy") {
        return refuse(StatusCode::BAD_REQUEST, "SPDY is not supported yet by this version of Coracle: use a client that speaks WebSocket");
    }
    if method != Method::GET || !upgrade.contains("websocket") {
        return refuse(StatusCode::BAD_REQUEST, "Upgrade request required");
    }
    let key = get(header::SEC_WEBSOCKET_KEY);
    if key.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
    }
    let offered = get(header::SEC_WEBSOCKET_PROTOCOL);
    let protocol = if offered.is_empty() { Some(Protocol::V1) } else { Protocol::choose(&offered) };
    match protocol {
        Some(protocol) => Ok((protocol, key)),
        None => refuse(StatusCode::FORBIDDEN, &format!("unable to upgrade: none of the subprotocols {offered:?} is known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_both_spellings() {
        let uri: http::Uri = "/exec/a/b/c?command=sh&command=-c&command=echo%20a%2Bb&input=1&stdout=true&tty=0".parse().unwrap();
        let spec = exec_spec(&query(&uri)).unwrap();
        assert_eq!(spec.command, ["sh", "-c", "echo a+b"]);
        assert!(spec.stdin && spec.stdout && !spec.stderr && !spec.tty);
        assert!(exec_spec(&[("command".into(), "x".into())]).is_err());
    }

    #[test]
    fn only_the_api_server_is_let_in() {
        assert!(Peer { name: API_SERVER.into(), groups: vec![] }.is_api_server());
        assert!(!Peer { name: "system:node:n1".into(), groups: vec!["system:nodes".into()] }.is_api_server());
        assert!(!Peer::of(&[]).is_api_server());
    }
}
