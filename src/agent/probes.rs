//! Startup, liveness and readiness probes: one task per probe of a running container; thresholds are pure.
//!
//! A task tells its actor only when a verdict changes; it ends with its container ([`ProbeSet`] aborts it when dropped).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::kubelet::pod::name_of;
use crate::api::value::Value;
use crate::runtime::{self, Runtime};
use crate::transport::Connector;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// As events begin: `Liveness probe failed: …`.
    fn word(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// How something is asked: by probes and by lifecycle hooks.
#[derive(Clone, Debug, PartialEq)]
pub enum Handler {
    Exec {
        command: Vec<String>,
    },
    Http {
        tls: bool,
        host: String,
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    Tcp {
        host: String,
        port: u16,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        host: String,
        port: u16,
        service: String,
    },
    Sleep {
        seconds: u64,
    },
    /// It cannot be asked; this is why.
    Unreadable {
        why: String,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    pub kind: Kind,
    pub handler: Handler,
    pub initial_delay_seconds: u64,
    pub period_seconds: u64,
    pub timeout_seconds: u64,
    pub success_threshold: u32,
    pub failure_threshold: u32,
    pub grace_seconds: Option<i64>,
}

/// Reads a handler; `ip` is asked where it names no host. `Err` says what cannot be done.
pub fn handler(spec: &Value, container: &Value, ip: &str) -> Result<Handler, String> {
    let host = |v: &Value| match v.str_at(&["host"]) {
        "" => ip.to_string(),
        host => host.to_string(),
    };
    if let Some(exec) = spec.at(&["exec"]) {
        let command = exec.list_at(&["command"]).iter().filter_map(Value::as_str).map(str::to_string).collect();
        return Ok(Handler::Exec { command });
    }
    if let Some(http) = spec.at(&["httpGet"]) {
        let tls = http.str_at(&["scheme"]).eq_ignore_ascii_case("HTTPS");
        let headers = http.list_at(&["httpHeaders"]).iter().map(|h| (name_of(h).to_string(), h.str_at(&["value"]).to_string()));
        let path = match http.str_at(&["path"]) {
            "" => "/".to_string(),
            path if path.starts_with('/') => path.to_string(),
            path => format!("/{path}"),
        };
        return Ok(Handler::Http { tls, host: host(http), port: port(http, container)?, path, headers: headers.collect() });
    }
    if let Some(tcp) = spec.at(&["tcpSocket"]) {
        return Ok(Handler::Tcp { host: host(tcp), port: port(tcp, container)? });
    }
    if let Some(grpc) = spec.at(&["grpc"]) {
        let service = grpc.str_at(&["service"]).to_string();
        return Ok(Handler::Grpc { host: ip.to_string(), port: port(grpc, container)?, service });
    }
    if let Some(sleep) = spec.at(&["sleep"]) {
        return Ok(Handler::Sleep { seconds: sleep.i64_at(&["seconds"]).and_then(|s| u64::try_from(s).ok()).unwrap_or(0) });
    }
    Err("it has no handler this node knows".to_string())
}

/// A number, or the name of one of the container's ports.
fn port(handler: &Value, container: &Value) -> Result<u16, String> {
    match handler.at(&["port"]) {
        Some(Value::Int(n)) => u16::try_from(*n).map_err(|_| format!("invalid port {n}")),
        Some(Value::Str(name)) => {
            let named = container.list_at(&["ports"]).iter().find(|p| name_of(p) == name).and_then(|p| p.i64_at(&["containerPort"]));
            let number = named.and_then(|n| u16::try_from(n).ok()).or_else(|| name.parse().ok());
            number.ok_or_else(|| format!("couldn't find port: {name}"))
        }
        _ => Err("it names no port".to_string()),
    }
}

/// The probes of a container.
pub fn probes(container: &Value, ip: &str) -> Vec<Probe> {
    let kinds = [("startupProbe", Kind::Startup), ("livenessProbe", Kind::Liveness), ("readinessProbe", Kind::Readiness)];
    let mut all = Vec::new();
    for (key, kind) in kinds {
        let Some(spec) = container.at(&[key]) else { continue };
        let number = |key: &str, least: u64, default: u64| {
            spec.i64_at(&[key]).and_then(|n| u64::try_from(n).ok()).filter(|n| *n >= least).unwrap_or(default)
        };
        let threshold = |key: &str, default: u64| u32::try_from(number(key, 1, default)).unwrap_or(1);
        // `admit` has turned away what has no handler here; a named port that does not exist fails with its name.
        let handler = handler(spec, container, ip).unwrap_or_else(|why| Handler::Unreadable { why });
        all.push(Probe {
            kind,
            handler,
            initial_delay_seconds: number("initialDelaySeconds", 0, 0),
            period_seconds: number("periodSeconds", 1, 10),
            timeout_seconds: number("timeoutSeconds", 1, 1),
            success_threshold: threshold("successThreshold", 1),
            failure_threshold: threshold("failureThreshold", 3),
            grace_seconds: spec.i64_at(&["terminationGracePeriodSeconds"]),
        });
    }
    all
}

/// How often in a row the last result came.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Streak {
    ok: bool,
    length: u32,
}

impl Streak {
    /// Takes one result; `Some` once it has come often enough to count.
    pub fn take(&mut self, ok: bool, probe: &Probe) -> Option<bool> {
        *self =
            if self.length > 0 && self.ok == ok { Streak { ok, length: self.length.saturating_add(1) } } else { Streak { ok, length: 1 } };
        let threshold = if ok { probe.success_threshold } else { probe.failure_threshold };
        (self.length >= threshold).then_some(ok)
    }
}

/// What a probe task tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    Verdict {
        id: String,
        kind: Kind,
        ok: bool,
        grace_seconds: Option<i64>,
    },
    /// One try failed, or passed with something to say: an event.
    Said {
        name: String,
        reason: &'static str,
        message: String,
    },
}

/// The tasks of one running container.
pub struct ProbeSet {
    tasks: Vec<JoinHandle<()>>,
    started: watch::Sender<bool>,
}

impl Drop for ProbeSet {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

pub struct Target {
    pub id: String,
    pub name: String,
    /// How long the container has been running.
    pub age: Duration,
    pub started: bool,
}

impl ProbeSet {
    pub fn start(runtime: &Arc<dyn Runtime>, target: &Target, probes: Vec<Probe>, to: &mpsc::Sender<Told>) -> ProbeSet {
        let (started, follow) = watch::channel(target.started);
        let tasks = probes.into_iter().map(|probe| {
            let asker = Asker {
                runtime: runtime.clone(),
                id: target.id.clone(),
                name: target.name.clone(),
                wait: Duration::from_secs(probe.initial_delay_seconds).saturating_sub(target.age),
                probe,
                to: to.clone(),
            };
            crate::task::spawn("agent-probe", asker.run(follow.clone()))
        });
        ProbeSet { tasks: tasks.collect(), started }
    }

    /// The startup probe has passed: the others begin.
    pub fn set_started(&self) {
        self.started.send_replace(true);
    }
}

struct Asker {
    runtime: Arc<dyn Runtime>,
    id: String,
    name: String,
    wait: Duration,
    probe: Probe,
    to: mpsc::Sender<Told>,
}

impl Asker {
    async fn run(self, mut started: watch::Receiver<bool>) {
        let kind = self.probe.kind;
        if kind == Kind::Startup && *started.borrow() {
            return;
        }
        if kind != Kind::Startup && started.wait_for(|s| *s).await.is_err() {
            return;
        }
        tokio::time::sleep(self.wait).await;
        let mut every = tokio::time::interval(Duration::from_secs(self.probe.period_seconds));
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut streak, mut verdict) = (Streak::default(), None);
        loop {
            every.tick().await;
            let result = ask(&*self.runtime, &self.id, &self.probe.handler, Duration::from_secs(self.probe.timeout_seconds)).await;
            let said = match &result {
                Err(message) => Some(("Unhealthy", format!("{} probe failed: {message}", kind.word()))),
                Ok(Some(warning)) => Some(("ProbeWarning", format!("{} probe warning: {warning}", kind.word()))),
                Ok(None) => None,
            };
            if let Some((reason, message)) = said {
                let _ = self.to.send(Told::Said { name: self.name.clone(), reason, message }).await;
            }
            let now = streak.take(result.is_ok(), &self.probe);
            if now.is_none() || now == verdict {
                continue;
            }
            verdict = now;
            let ok = now == Some(true);
            let told = Told::Verdict { id: self.id.clone(), kind, ok, grace_seconds: self.probe.grace_seconds };
            let is_over = self.to.send(told).await.is_err() || (kind == Kind::Startup) || (kind == Kind::Liveness && !ok);
            if is_over {
                return;
            }
        }
    }
}

/// A warning, if there is one; the error is what the event says.
pub type Asked = Result<Option<String>, String>;

/// Asks once.
pub async fn ask(runtime: &dyn Runtime, container: &str, handler: &Handler, timeout: Duration) -> Asked {
    match handler {
        Handler::Exec { command } => {
            let output = runtime::exec_sync(runtime, container, command.clone(), timeout, 10 << 10).await.map_err(|e| e.chain())?;
            match (output.timed_out, output.code) {
                (true, _) => Err(format!("command timed out: \"{}\" timed out after {}s", command.join(" "), timeout.as_secs())),
                (false, 0) => Ok(None),
                (false, _) => Err(String::from_utf8_lossy(&output.output).into_owned()),
            }
        }
        Handler::Http { tls, host, port, path, headers } => {
            let scheme = if *tls { "https" } else { "http" };
            let url = format!("{scheme}://{}{path}", authority(host, *port));
            let late = || Err(format!("Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"));
            let answer = tokio::time::timeout(timeout, http_get(Place { tls: *tls, host, port: *port, path }, headers)).await;
            let answer =
                answer.unwrap_or_else(|_| late()).map_err(|e| if e.starts_with("Get ") { e } else { format!("Get \"{url}\": {e}") })?;
            match answer.code {
                200..300 => Ok(None),
                300..400 => Ok(Some(format!("Probe terminated redirects, Response body: {}", answer.body))),
                code => Err(format!("HTTP probe failed with statuscode: {code}")),
            }
        }
        Handler::Tcp { host, port } => {
            let connected = tokio::time::timeout(timeout, TcpStream::connect((host.as_str(), *port))).await;
            let address = authority(host, *port);
            match connected {
                Ok(Ok(_)) => Ok(None),
                Ok(Err(error)) => Err(format!("dial tcp {address}: {}", dial_text(&error))),
                Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
            }
        }
        Handler::Grpc { host, port, service } => {
            let address = authority(host, *port);
            match tokio::time::timeout(timeout, grpc_check(host, *port, service)).await {
                Ok(result) => result.map(|()| None),
                Err(_) => Err(format!(
                    "timeout: failed to connect service \"{address}\" within {}s: context deadline exceeded",
                    timeout.as_secs()
                )),
            }
        }
        Handler::Sleep { seconds } => {
            tokio::time::sleep(Duration::from_secs(*seconds)).await;
            Ok(None)
        }
        Handler::Unreadable { why } => Err(why.clone()),
    }
}

/// One health check over HTTP/2 without TLS.
async fn grpc_check(host: &str, port: u16, service: &str) -> Result<(), String> {
    let address = authority(host, port);
    let broken = |e: hyper::Error| format!("rpc error: code = Unavailable desc = {e}");
    let connected = TcpStream::connect((host, port)).await;
    let stream =
        connected.map_err(|e| format!("error: failed to connect service at \"{address}\": dial tcp {address}: {}", dial_text(&e)))?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(broken)?;
    let driving = crate::task::spawn("grpc-probe", async move {
        // How it ends shows on the request.
        let _ = connection.await;
    });
    let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36 grpc")
        .body(Full::new(Bytes::from(health_request(service))))
        .map_err(|e| e.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let head = response.headers().clone();
        let body = Limited::new(response.into_body(), 64 << 10)
            .collect()
            .await
            .map_err(|e| format!("rpc error: code = Unavailable desc = {e}"))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let said = |name: &str| {
            let value = trailers.get(name).or_else(|| head.get(name)).and_then(|v| v.to_str().ok());
            value.unwrap_or("").to_string()
        };
        Ok::<_, String>((status, said("grpc-status"), said("grpc-message"), body.to_bytes()))
    };
    let answer = answer.await;
    driving.abort();
    let (status, code, message, body) = answer?;
    match (status.as_u16(), code.as_str()) {
        (200, "0" | "") => {}
        (_, "12") => {
            return Err(format!("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"));
        }
        (_, code) => return Err(format!("error: health rpc failed: rpc error: code = {code} desc = {message}")),
    }
    match health_status(&body) {
        1 => Ok(()),
        status => {
            let name = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"].get(status).copied().unwrap_or("UNKNOWN");
            Err(format!("service unhealthy (responded with \"{name}\")"))
        }
    }
}

/// A gRPC message: not compressed, its length, `HealthCheckRequest{1: service}`.
fn health_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    framed.extend(message);
    framed
}

/// The status of a framed `HealthCheckResponse{1: status}`; an empty message is 0.
fn health_status(body: &[u8]) -> usize {
    match body.get(5..) {
        Some([0x08, status, ..]) => usize::from(*status),
        _ => 0,
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn dial_text(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_string(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_string(),
        std::io::ErrorKind::TimedOut => "i/o timeout".to_string(),
        _ => error.to_string(),
    }
}

/// Where a GET goes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Place<'a> {
    tls: bool,
    host: &'a str,
    port: u16,
    path: &'a str,
}

struct Answer {
    code: u16,
    location: String,
    /// Of a redirect only, and only its beginning.
    body: String,
}

const REDIRECTS_MAX: usize = 10;
const BODY_BYTES_MAX: u64 = 10 << 10;

/// Follows redirects on the same host; one that leads elsewhere is the answer.
async fn http_get(place: Place<'_>, headers: &[(String, String)]) -> Result<Answer, String> {
    let mut answer = get_once(place, headers).await?;
    let (mut tls, mut port) = (place.tls, place.port);
    for _ in 0..REDIRECTS_MAX {
        if !(300..400).contains(&answer.code) || answer.location.is_empty() {
            return Ok(answer);
        }
        let location = answer.location.clone();
        let Some(next) = redirect(&location, Place { tls, port, ..place }) else { return Ok(answer) };
        (tls, port) = (next.tls, next.port);
        answer = get_once(next, headers).await?;
    }
    Err("stopped after 10 redirects".to_string())
}

/// Where a `Location` leads; `None` if that is another host.
fn redirect<'a>(location: &'a str, from: Place<'a>) -> Option<Place<'a>> {
    let (tls, rest) = match location.split_once("://") {
        None if location.starts_with('/') => return Some(Place { path: location, ..from }),
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        _ => return None,
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (authority, if tls { 443 } else { 80 }),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (host == from.host).then_some(Place { tls, host, port, path: if path.is_empty() { "/" } else { path } })
}

/// One GET over a connection of its own.
async fn get_once(Place { tls, host, port, path }: Place<'_>, headers: &[(String, String)]) -> Result<Answer, String> {
    let address = authority(host, port);
    let connected = TcpStream::connect((host, port)).await;
    let stream = connected.map_err(|e| format!("dial tcp {address}: {}", dial_text(&e)))?;
    if !tls {
        return converse(stream, &address, path, headers).await;
    }
    let stream = Connector::trusting_anyone().secure(stream, host).await.map_err(|e| e.to_string())?;
    converse(stream, &address, path, headers).await
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    address: &str,
    path: &str,
    headers: &[(String, String)],
) -> Result<Answer, String> {
    let has = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n");
    for (name, value, wanted) in
        [("Host", address, !has("host")), ("User-Agent", "kube-probe/1.36", !has("user-agent")), ("Accept", "*/*", !has("accept"))]
    {
        if wanted {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for (name, value) in headers.iter().filter(|(n, v)| !n.contains(['\r', '\n', ':']) && !v.contains(['\r', '\n'])) {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut head = Vec::new();
    let mut buffer = [0; 512];
    let end = |head: &[u8]| head.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
    while end(&head).is_none() && head.len() < 64 << 10 {
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(n) => head.extend_from_slice(&buffer[..n]),
            Err(e) => return Err(format!("read tcp {address}: read: {e}")),
        }
    }
    let mut body = head.split_off(end(&head).unwrap_or(head.len()));
    let text = String::from_utf8_lossy(&head);
    let code = text.strip_prefix("HTTP/").and_then(|l| l.split(' ').nth(1)).and_then(|c| c.trim().parse().ok());
    let is_location = |line: &&str| line.split_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case("location"));
    let location = text.lines().find(is_location).and_then(|l| l.split_once(':')).map_or("", |(_, value)| value.trim());
    if code.is_some_and(|c: u16| (300..400).contains(&c)) {
        // The connection is closed behind it; what cannot be read is not shown.
        let _ = stream.take(BODY_BYTES_MAX).read_to_end(&mut body).await;
    }
    let answer = code.map(|code| Answer { code, location: location.to_string(), body: String::from_utf8_lossy(&body).into_owned() });
    answer.ok_or_else(|| {
        if head.is_empty() {
            "EOF".to_string()
        } else {
            "net/http: HTTP/1.x transport connection broken: malformed HTTP response".to_string()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn thresholds_count_results_in_a_row() {
        let container = value!({"livenessProbe": {"tcpSocket": {"port": 1}, "failureThreshold": 2}});
        let probe = probes(&container, "::1").remove(0);
        let mut streak = Streak::default();
        let told: Vec<Option<bool>> = [false, true, false, false, true].into_iter().map(|ok| streak.take(ok, &probe)).collect();
        assert_eq!(told, [None, Some(true), None, Some(false), Some(true)]);
        assert_eq!((probe.period_seconds, probe.timeout_seconds, probe.success_threshold), (10, 1, 1));
    }

    #[test]
    fn redirects_stay_on_their_host() {
        let from = Place { tls: false, host: "10.0.0.1", port: 8080, path: "/a" };
        assert_eq!(redirect("/b?c", from), Some(Place { path: "/b?c", ..from }));
        assert_eq!(redirect("https://10.0.0.1", from), Some(Place { tls: true, port: 443, path: "/", ..from }));
        assert_eq!(redirect("http://10.0.0.1:81/x", from), Some(Place { port: 81, path: "/x", ..from }));
        assert_eq!(redirect("http://0.0.0.0/", from), None);
    }

    #[test]
    fn named_ports_and_hosts() {
        let container = value!({"ports": [{"name": "web", "containerPort": 8080}]});
        let spec = value!({"httpGet": {"port": "web", "path": "x", "httpHeaders": [{"name": "A", "value": "b"}]}});
        let expected =
            Handler::Http { tls: false, host: "10.0.0.1".into(), port: 8080, path: "/x".into(), headers: vec![("A".into(), "b".into())] };
        assert_eq!(handler(&spec, &container, "10.0.0.1").unwrap(), expected);
    }

    #[tokio::test]
    async fn grpc_health_is_asked_for_a_service() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            for status in [1u8, 2] {
                let (stream, _) = listener.accept().await.unwrap();
                let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(&asked[..], b"\0\0\0\0\x04\x0a\x02up");
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                    let body = Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]));
                    Ok::<_, std::convert::Infallible>(http::Response::new(body.with_trailers(std::future::ready(Some(Ok(trailers))))))
                });
                let _ =
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            }
        });
        let grpc = handler(&value!({"grpc": {"port": i64::from(port), "service": "up"}}), &value!({}), "127.0.0.1").unwrap();
        let fake = runtime::fake::Fake::new();
        let wait = Duration::from_secs(5);
        assert_eq!(ask(&fake, "c", &grpc, wait).await, Ok(None));
        assert_eq!(ask(&fake, "c", &grpc, wait).await.unwrap_err(), "service unhealthy (responded with \"NOT_SERVING\")");
        server.await.unwrap();
        assert!(ask(&fake, "c", &grpc, wait).await.unwrap_err().contains("connection refused"));
    }

    #[test]
    fn a_port_nobody_named_is_named() {
        let all = probes(&value!({"livenessProbe": {"tcpSocket": {"port": "web"}}}), "10.0.0.1");
        assert_eq!(all[0].handler, Handler::Unreadable { why: "couldn't find port: web".into() });
    }

    #[tokio::test]
    async fn https_asks_without_judging_the_certificate() {
        let dir = std::env::temp_dir().join(format!("coracle-probe-{}", std::process::id()));
        let pki = crate::pki::Pki::load_or_create(&dir).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let identity = pki.cluster.serving("someone.else", &[], &["someone.else".to_string()], &[]).unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let port = crate::transport::Port::open(address).await.unwrap();
        let listener = crate::transport::Listener::new(port, &identity, &[&pki.client.certificate], &["h2", "http/1.1"]).unwrap();
        let port = listener.local_address().unwrap().port();
        let server = tokio::spawn(async move {
            let mut stream = listener.accept().await.handshake().await.unwrap().stream;
            let _ = stream.read(&mut [0; 1024]).await.unwrap();
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let spec = value!({"httpGet": {"port": i64::from(port), "scheme": "HTTPS"}});
        let https = handler(&spec, &value!({}), "127.0.0.1").unwrap();
        let fake = runtime::fake::Fake::new();
        assert_eq!(ask(&fake, "c", &https, Duration::from_secs(5)).await, Ok(None));
        server.await.unwrap();
        let refused = format!("Get \"https://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(ask(&fake, "c", &https, Duration::from_secs(5)).await.unwrap_err(), refused);
    }

    #[tokio::test]
    async fn http_and_tcp_say_what_went_wrong() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let local = format!("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{port}/ok\r\n\r\n");
            let foreign = "HTTP/1.1 302 Found\r\nlocation: http://0.0.0.0/\r\n\r\n<a>".to_string();
            let (ok, bad) = ("HTTP/1.1 200 OK\r\n\r\n".to_string(), "HTTP/1.1 503 No\r\n\r\n".to_string());
            for answer in [ok.clone(), bad, local, ok, foreign] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                let _ = stream.read(&mut buffer).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let http = Handler::Http { tls: false, host: "127.0.0.1".into(), port, path: "/".into(), headers: Vec::new() };
        let fake = runtime::fake::Fake::new();
        let wait = Duration::from_secs(5);
        assert_eq!(ask(&fake, "c", &http, wait).await, Ok(None));
        assert_eq!(ask(&fake, "c", &http, wait).await.unwrap_err(), "HTTP probe failed with statuscode: 503");
        assert_eq!(ask(&fake, "c", &http, wait).await, Ok(None), "redirected on the same host");
        let warning = "Probe terminated redirects, Response body: <a>".to_string();
        assert_eq!(ask(&fake, "c", &http, wait).await, Ok(Some(warning)));
        server.await.unwrap();
        let tcp = Handler::Tcp { host: "127.0.0.1".into(), port };
        let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(ask(&fake, "c", &tcp, wait).await.unwrap_err(), refused);
    }
}
