//! Sends a request on to a pod, a service's endpoint or a node, and its answer back: the reverse proxy behind the `proxy`
//! subresources.
//!
//! Where to and under which path is decided by [`location`]; this dials, drops what belongs to one connection only, couples
//! upgraded connections, and mends redirects and HTML links that would lead past us. Bodies are streamed both ways; only pages
//! to be mended are held, up to a limit.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::api::request::Request;
use crate::api::status::{Result, Status};
use crate::server::strategy::Access;
use crate::task;

use super::location::{self, Links, Location};
use super::{Body, BoxError, Connectors, empty, html, splice};

const DIAL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
/// A page longer than this is passed on as it is, unless its length was not announced.
const PAGE_MAX: usize = 8 << 20;

/// What one connection's ends agree on is nobody else's business (RFC 9110 7.6.1).
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "proxy-connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// What other pages may do is for the API server to say, not for what it proxies.
const CORS: &[&str] =
    &["access-control-allow-credentials", "access-control-allow-headers", "access-control-allow-methods", "access-control-allow-origin"];

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Answers a request to a `proxy` subresource by what the backend answers.
pub async fn forward(
    connectors: &Connectors,
    access: &dyn Access,
    request: &Request,
    http: http::Request<Incoming>,
    remote: SocketAddr,
) -> Result<Response<Body>> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(Status::internal)?;
    let location = location::locate(access, request, u64::from_ne_bytes(seed))?;
    let original = http.uri().path().to_string();
    let query = http.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
    let upgrades = is_upgrade(http.headers());
    let path = match location::backend_path(&request.path, http.method().as_str()) {
        Some(path) => path,
        None if upgrades => "/".to_string(),
        None => return moved(&format!("{original}/{query}")),
    };
    let stream = dial(connectors, &location).await.map_err(|why| unreachable(upgrades, &why))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(upgrades, &e.to_string()))?;
    task::spawn("proxy-backend", async move {
        // How it ends shows on the request and its upgrade.
        let _ = connection.with_upgrades().await;
    });
    let asked = host(&http);
    let links = Links {
        prefix: original.strip_suffix(&request.path).unwrap_or(&original).trim_end_matches('/').to_string(),
        backend: location.address().unwrap_or_default(),
        asked: asked.clone(),
    };
    let (mut head, body) = http.into_parts();
    let client = upgrades.then(|| head.extensions.remove::<hyper::upgrade::OnUpgrade>()).flatten();
    let onward = onward(head, body, &format!("{path}{query}"), &original, &asked, remote)?;
    let is_head = onward.method() == Method::HEAD;
    let answer = sender.send_request(onward).await.map_err(|e| unreachable(upgrades, &e.to_string()))?;
    match (answer.status(), client) {
        (StatusCode::SWITCHING_PROTOCOLS, Some(client)) => Ok(splice(client, answer)),
        (status, _) if upgrades && !status.is_client_error() && !status.is_server_error() => {
            Err(Status::internal(format!("invalid upgrade response: status code {}", status.as_u16())))
        }
        (_, _) => back(answer, &links, is_head).await,
    }
}

fn unreachable(upgrades: bool, why: &str) -> Status {
    match upgrades {
        true => Status::internal(format!("error dialing backend: {why}")),
        false => Status::service_unavailable(format!("error trying to reach service: {why}")),
    }
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

fn moved(to: &str) -> Result<Response<Body>> {
    let response = Response::builder().status(StatusCode::MOVED_PERMANENTLY).header(header::LOCATION, to);
    response.body(empty()).map_err(|e| Status::bad_request(e.to_string()))
}

async fn dial(connectors: &Connectors, location: &Location) -> std::result::Result<Box<dyn Stream>, String> {
    let address = location.address()?;
    let said = |what: &str, why: &dyn std::fmt::Display| format!("{what} {address}: {why}");
    let dialled = async {
        if let Some(node) = &location.kubelet {
            let stream = connectors.kubelet.connect(&address, node).await.map_err(|e| e.to_string())?;
            return Ok(Box::new(stream) as Box<dyn Stream>);
        }
        let tcp = TcpStream::connect(&address).await.map_err(|e| said("dial tcp", &dial_error(&e)))?;
        let _ = tcp.set_nodelay(true);
        match location.tls {
            // Pods show certificates of their own making; upstream believes them, too.
            true => connectors.anyone.secure(tcp, &location.host).await.map(|s| Box::new(s) as _).map_err(|e| e.to_string()),
            false => Ok(Box::new(tcp) as _),
        }
    };
    match tokio::time::timeout(DIAL_TIMEOUT, dialled).await {
        Ok(dialled) => dialled,
        Err(_) => Err(said("dial tcp", &"i/o timeout")),
    }
}

/// As clients know these errors from upstream.
fn dial_error(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        ErrorKind::HostUnreachable => "connect: no route to host".into(),
        ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        ErrorKind::TimedOut => "i/o timeout".into(),
        _ => error.to_string(),
    }
}

fn host(http: &http::Request<Incoming>) -> String {
    let said = http.headers().get(header::HOST).and_then(|v| v.to_str().ok());
    said.or(http.uri().authority().map(|a| a.as_str())).unwrap_or("").to_string()
}

/// The request for the backend: method, body and the client's headers; no credentials of ours, and whence it came.
fn onward(
    head: http::request::Parts,
    body: Incoming,
    target: &str,
    original: &str,
    asked: &str,
    remote: SocketAddr,
) -> Result<http::Request<Incoming>> {
    let upgrade = is_upgrade(&head.headers).then(|| head.headers.get(header::UPGRADE).cloned()).flatten();
    let mut headers = end_to_end(&head.headers);
    let ours: Vec<HeaderName> = headers.keys().filter(|n| is_ours(n.as_str())).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
    let before = headers.get_all("x-forwarded-for").iter().filter_map(|v| v.to_str().ok()).map(str::to_string);
    let chain: Vec<String> = before.chain([remote.ip().to_string()]).collect();
    let value = |text: &str| HeaderValue::from_str(text).map_err(|e| Status::bad_request(e.to_string()));
    headers.insert("x-forwarded-for", value(&chain.join(", "))?);
    headers.insert("x-forwarded-uri", value(original)?);
    headers.insert(header::HOST, value(asked)?);
    let mut request =
        http::Request::builder().method(head.method).uri(target).body(body).map_err(|e| Status::bad_request(e.to_string()))?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Who the client is to us says nothing to a backend, which must not be able to act as the client.
fn is_ours(name: &str) -> bool {
    matches!(name, "authorization" | "host" | "expect") || name.starts_with("impersonate-")
}

/// The headers without those of the connection, and those it names.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let named: Vec<String> = named.flat_map(|v| v.split(',')).map(|t| t.trim().to_ascii_lowercase()).collect();
    let stays = |name: &str| !HOP_BY_HOP.contains(&name) && !named.iter().any(|n| n == name);
    headers.iter().filter(|(name, _)| stays(name.as_str())).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The backend's answer, with links that lead through us.
async fn back(answer: Response<Incoming>, links: &Links, is_head: bool) -> Result<Response<Body>> {
    let (head, body) = answer.into_parts();
    let mut headers = end_to_end(&head.headers);
    for name in CORS {
        headers.remove(*name);
    }
    let location = headers.get(header::LOCATION).and_then(|v| v.to_str().ok()).map(str::to_string);
    let mends = !is_head && location.is_none() && is_page(&headers);
    if let Some(through) = location.as_deref().and_then(|l| links.through(l)) {
        let value = HeaderValue::from_str(&through).map_err(|e| Status::internal(format!("error trying to parse Location header: {e}")))?;
        headers.insert(header::LOCATION, value);
    }
    let body = if mends {
        let page = Limited::new(body, PAGE_MAX).collect().await;
        let page = page.map_err(|e| Status::service_unavailable(format!("error trying to reach service: {e}")))?.to_bytes();
        let mended = mended(&page, headers.get(header::CONTENT_ENCODING), links).map_or(page, Bytes::from);
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(mended.len()));
        Full::new(mended).map_err(|never| match never {}).boxed_unsync()
    } else {
        body.map_err(BoxError::from).boxed_unsync()
    };
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn is_page(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
    let length = text(header::CONTENT_LENGTH).parse::<usize>().unwrap_or(0);
    text(header::CONTENT_TYPE).split(';').next().is_some_and(|t| t.trim() == "text/html") && length <= PAGE_MAX
}

/// None: packed in a way we do not know, or not as announced.
fn mended(page: &[u8], encoding: Option<&HeaderValue>, links: &Links) -> Option<Vec<u8>> {
    use flate2::Compression;
    let rewrite = |page: &[u8]| html::rewrite(page, &|url| links.through(url));
    let mut plain = Vec::new();
    match encoding.map_or(Some(""), |e| e.to_str().ok())? {
        "" => Some(rewrite(page)),
        "gzip" => {
            flate2::read::GzDecoder::new(page).take(PAGE_MAX as u64 * 4).read_to_end(&mut plain).ok()?;
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
            packed.write_all(&rewrite(&plain)).ok()?;
            packed.finish().ok()
        }
        "deflate" => {
            flate2::read::DeflateDecoder::new(page).take(PAGE_MAX as u64 * 4).read_to_end(&mut plain).ok()?;
            let mut packed = flate2::write::DeflateEncoder::new(Vec::new(), Compression::fast());
            packed.write_all(&rewrite(&plain)).ok()?;
            packed.finish().ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn headers_of_the_connection_end_here() {
        let all = headers(&[("connection", "close, X-Mine"), ("x-mine", "1"), ("te", "trailers"), ("x-other", "2")]);
        assert_eq!(end_to_end(&all), headers(&[("x-other", "2")]));
        assert!(is_upgrade(&headers(&[("connection", "keep-alive, Upgrade")])) && !is_upgrade(&headers(&[("upgrade", "x")])));
        assert!(is_ours("authorization") && is_ours("impersonate-user") && !is_ours("cookie"));
    }

    #[test]
    fn packed_pages_are_mended_packed() {
        let links = Links { prefix: "/p".into(), backend: String::new(), asked: String::new() };
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"<a href=\"/x\">").unwrap();
        let gzip = HeaderValue::from_static("gzip");
        let mended = mended(&packed.finish().unwrap(), Some(&gzip), &links).unwrap();
        let mut plain = String::new();
        flate2::read::GzDecoder::new(&mended[..]).read_to_string(&mut plain).unwrap();
        assert_eq!(plain, "<a href=\"/p/x\">");
        assert!(super::mended(b"x", Some(&HeaderValue::from_static("br")), &links).is_none());
    }
}
