//! The kubelet's own API, for the API server only: logs, exec, attach, port-forwarding, pods, statistics, health.
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
use super::stream::{Start, Wanted, forward, spdy, websocket};
use crate::api::value::Value;
use crate::runtime::{AttachSpec, ContainerId, ExecSpec, State};
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
            ["attach", namespace, pod, container] => self.attach(namespace, pod, container, request).await,
            ["attach", namespace, pod, _uid, container] => self.attach(namespace, pod, container, request).await,
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => self.forward(namespace, pod, request).await,
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

    async fn exec(&self, namespace: &str, name: &str, container: &str, request: Request<Incoming>) -> Reply {
        let wanted = match wanted(&query(request.uri())) {
            Ok(wanted) => wanted,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        let command: Vec<String> = query(request.uri()).into_iter().filter(|(k, _)| k == "command").map(|(_, v)| v).collect();
        if command.is_empty() {
            return text(StatusCode::BAD_REQUEST, "you must specify at least one command for the container");
        }
        let id = match self.running(namespace, name, container).await {
            Ok((id, _)) => id,
            Err(refusal) => return *refusal,
        };
        let runtime = self.kubelet.shared().runtime.clone();
        let Wanted { stdin, stdout, stderr, tty } = wanted;
        let start: Start = Box::pin(async move {
            let session = runtime.exec(&id, ExecSpec { command, tty, stdin, stdout, stderr }).await;
            session.map_err(|e| format!("error executing command in container: {}", e.chain()))
        });
        serve_session(request, wanted, start)
    }

    async fn attach(&self, namespace: &str, name: &str, container: &str, request: Request<Incoming>) -> Reply {
        let asked = match wanted(&query(request.uri())) {
            Ok(wanted) => wanted,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        let (id, tty) = match self.running(namespace, name, container).await {
            Ok(found) => found,
            Err(refusal) => return *refusal,
        };
        // Whether there is a terminal is the container's, not the client's.
        let wanted = Wanted { tty, stderr: asked.stderr && !tty, ..asked };
        let runtime = self.kubelet.shared().runtime.clone();
        let Wanted { stdin, stdout, stderr, .. } = wanted;
        let start: Start = Box::pin(async move {
            let session = runtime.attach(&id, AttachSpec { stdin, stdout, stderr }).await;
            let mut session = session.map_err(|e| format!("error attaching to container: {}", e.chain()))?;
            // How the container ended is told by its status, not by those who watched.
            let exit = session.exit;
            session.exit = Box::pin(async move { exit.await.map(|_| 0) });
            Ok(session)
        });
        serve_session(request, wanted, start)
    }

    async fn forward(&self, namespace: &str, name: &str, mut request: Request<Incoming>) -> Reply {
        let Some(pod) = self.kubelet.pod(namespace, name) else {
            return text(StatusCode::NOT_FOUND, format!("pod \"{name}\" does not exist"));
        };
        let agreed = match handshake(request.method(), request.headers(), &[forward::TUNNEL], &[forward::PROTOCOL]) {
            Ok(agreed) => agreed,
            Err(refusal) => return *refusal,
        };
        let runtime = self.kubelet.shared().runtime.clone();
        let target = forward::Target { runtime, sandbox: pod.uid().to_string(), pod: format!("{name}_{namespace}") };
        let (upgrade, tunnelled) = (hyper::upgrade::on(&mut request), matches!(agreed, Upgrade::WebSocket { .. }));
        crate::task::spawn("port-forward", async move {
            match upgrade.await {
                Ok(io) if tunnelled => forward::serve(websocket::tunnel(TokioIo::new(io)).await, target).await,
                Ok(io) => forward::serve(TokioIo::new(io), target).await,
                Err(error) => tracing::debug!(%error, "port-forward not upgraded"),
            }
        });
        agreed.reply()
    }

    /// The running container of this name and whether it has a terminal, or what is said instead.
    async fn running(&self, namespace: &str, name: &str, container: &str) -> Result<(ContainerId, bool), Box<Reply>> {
        let missing = |message: String| Box::new(text(StatusCode::NOT_FOUND, message));
        let pod = self.kubelet.pod(namespace, name).ok_or_else(|| missing(format!("pod \"{name}\" does not exist")))?;
        let sandbox = self.kubelet.shared().runtime.sandbox(pod.uid()).await;
        let mut known = sandbox.iter().flat_map(|s| &s.containers);
        let running = known.find(|c| c.name == container && matches!(c.state, State::Running { .. }));
        let id = running.map(|c| c.id.clone()).ok_or_else(|| missing(format!("container not found (\"{container}\")")))?;
        let tty = Pod(&pod.value()).container(container).is_some_and(|c| c.bool_at(&["tty"]));
        Ok((id, tty))
    }
}

/// Agrees on how to speak, then serves the session in a task of its own.
fn serve_session(mut request: Request<Incoming>, wanted: Wanted, start: Start) -> Reply {
    let channels = websocket::Protocol::ALL.map(websocket::Protocol::name);
    let agreed = match handshake(request.method(), request.headers(), &channels, &spdy::PROTOCOLS) {
        Ok(agreed) => agreed,
        Err(refusal) => return *refusal,
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let protocol = agreed.protocol();
    let over_websocket = matches!(agreed, Upgrade::WebSocket { .. });
    crate::task::spawn("session", async move {
        let io = match upgrade.await {
            Ok(io) => TokioIo::new(io),
            Err(error) => return tracing::debug!(%error, "session not upgraded"),
        };
        match websocket::Protocol::choose(protocol) {
            Some(protocol) if over_websocket => websocket::serve(io, protocol, start).await,
            _ => spdy::serve(io, protocol, wanted, start).await,
        }
    });
    agreed.reply()
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
fn wanted(query: &[(String, String)]) -> Result<Wanted, String> {
    let on = |names: &[&str]| query.iter().any(|(k, v)| names.contains(&k.as_str()) && matches!(v.as_str(), "1" | "true"));
    let tty = on(&["tty"]);
    let (stdin, stdout) = (on(&["stdin", "input"]), on(&["stdout", "output"]));
    let wanted = Wanted { stdin, stdout, stderr: on(&["stderr", "error"]) && !tty, tty };
    match wanted {
        Wanted { stdin: false, stdout: false, stderr: false, tty: false } => {
            Err("you must specify at least 1 of stdin, stdout, stderr".to_string())
        }
        _ => Ok(wanted),
    }
}

/// How a connection goes on after its request.
#[derive(Debug)]
enum Upgrade {
    WebSocket { protocol: &'static str, key: String },
    Spdy { protocol: &'static str },
}

impl Upgrade {
    fn protocol(&self) -> &'static str {
        match self {
            Upgrade::WebSocket { protocol, .. } | Upgrade::Spdy { protocol } => protocol,
        }
    }

    fn reply(self) -> Reply {
        let mut reply = text(StatusCode::SWITCHING_PROTOCOLS, "");
        let headers = reply.headers_mut();
        headers.clear();
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
        match self {
            Upgrade::WebSocket { protocol, key } => {
                headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, header::HeaderValue::from_static(protocol));
                let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
                headers.insert(header::SEC_WEBSOCKET_ACCEPT, header::HeaderValue::from_str(&accept).expect("base64 is a header value"));
            }
            Upgrade::Spdy { protocol } => {
                headers.insert(header::UPGRADE, header::HeaderValue::from_static("SPDY/3.1"));
                headers.insert(STREAM_PROTOCOL, header::HeaderValue::from_static(protocol));
            }
        }
        reply
    }
}

const STREAM_PROTOCOL: header::HeaderName = header::HeaderName::from_static("x-stream-protocol-version");

/// What both sides can speak, by our preference over WebSocket and by the client's over SPDY; or the refusal.
fn handshake(method: &Method, headers: &HeaderMap, websocket: &[&'static str], spdy: &[&'static str]) -> Result<Upgrade, Box<Reply>> {
    let get = |name: header::HeaderName| headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).collect::<Vec<_>>().join(",");
    let refuse = |code, message: &str| Err(Box::new(text(code, message)));
    let upgrade = get(header::UPGRADE).to_lowercase();
    let known = |offered: &str, ours: &[&'static str]| {
        let message = format!("unable to upgrade: unable to negotiate protocol: client supports {offered}, server accepts {ours:?}");
        Box::new(text(StatusCode::FORBIDDEN, message))
    };
    if upgrade.contains("spdy/3.1") {
        let offered = get(STREAM_PROTOCOL);
        let mut offers = offered.split(',').map(str::trim).filter(|o| !o.is_empty()).peekable();
        // A client that names none speaks the first.
        let agreed = match offers.peek() {
            None => spdy.last().copied(),
            Some(_) => offers.find_map(|o| spdy.iter().find(|p| **p == o).copied()),
        };
        return agreed.map(|protocol| Upgrade::Spdy { protocol }).ok_or_else(|| known(&offered, spdy));
    }
    if method != Method::GET || !upgrade.contains("websocket") {
        return refuse(StatusCode::BAD_REQUEST, "Upgrade request required");
    }
    let key = get(header::SEC_WEBSOCKET_KEY);
    if key.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
    }
    let offered = get(header::SEC_WEBSOCKET_PROTOCOL);
    let offers: Vec<&str> = offered.split(',').map(str::trim).filter(|o| !o.is_empty()).collect();
    let agreed = match offers.is_empty() {
        true => websocket.iter().find(|p| **p == websocket::Protocol::V1.name()).copied(),
        false => websocket.iter().find(|p| offers.contains(p)).copied(),
    };
    agreed.map(|protocol| Upgrade::WebSocket { protocol, key }).ok_or_else(|| known(&offered, websocket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_both_spellings() {
        let uri: http::Uri = "/exec/a/b/c?command=sh&command=-c&command=echo%20a%2Bb&input=1&stdout=true&tty=0".parse().unwrap();
        let all = query(&uri);
        assert_eq!(all[2].1, "echo a+b");
        assert_eq!(wanted(&all).unwrap(), Wanted { stdin: true, stdout: true, ..Wanted::default() });
        assert!(wanted(&[("command".into(), "x".into())]).is_err());
    }

    #[test]
    fn both_ways_of_upgrading_agree_on_a_protocol() {
        let agree = |method: Method, pairs: &[(&'static str, &str)]| {
            let headers: HeaderMap =
                pairs.iter().map(|(k, v)| (header::HeaderName::from_static(k), header::HeaderValue::from_str(v).unwrap())).collect();
            let channels = websocket::Protocol::ALL.map(websocket::Protocol::name);
            handshake(&method, &headers, &channels, &spdy::PROTOCOLS).map(|u| u.protocol()).map_err(|r| r.status().as_u16())
        };
        let spdy = |versions: &str| agree(Method::POST, &[("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", versions)]);
        assert_eq!(spdy("v9, v3.channel.k8s.io, v4.channel.k8s.io"), Ok("v3.channel.k8s.io"));
        assert_eq!(spdy(""), Ok("channel.k8s.io"));
        assert_eq!(spdy("v9"), Err(403));
        let ws =
            |offers: &str| agree(Method::GET, &[("upgrade", "websocket"), ("sec-websocket-key", "k"), ("sec-websocket-protocol", offers)]);
        assert_eq!(ws("channel.k8s.io, v5.channel.k8s.io"), Ok("v5.channel.k8s.io"));
        assert_eq!(ws("v9"), Err(403));
        assert_eq!(agree(Method::GET, &[]), Err(400));
    }

    #[test]
    fn only_the_api_server_is_let_in() {
        assert!(Peer { name: API_SERVER.into(), groups: vec![] }.is_api_server());
        assert!(!Peer { name: "system:node:n1".into(), groups: vec!["system:nodes".into()] }.is_api_server());
        assert!(!Peer::of(&[]).is_api_server());
    }
}
