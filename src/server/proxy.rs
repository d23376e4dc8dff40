//! Connect subresources: `log` is streamed from, `exec`, `attach` and `portforward` are spliced to, the kubelet of the pod's node
//! over mutual TLS; `proxy` goes to pods, services and nodes themselves ([`backend`]).
//!
//! Which node, container and path is decided by the plain functions [`kubelet_address`] and [`kubelet_path`]; [`connect`]
//! dials, sends the request on and couples the two connections. Error texts are upstream's, which kubectl prints as they are.

mod backend;
mod html;
mod location;

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderMap, UPGRADE};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use crate::api::request::Request;
use crate::api::resource;
use crate::api::status::{FieldError, Result, Status};
use crate::api::value::Value;
use crate::server::strategy::Access;
use crate::server::websocket;
use crate::task;
use crate::transport::Connector;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A kubelet's error text is one line.
const ERROR_MAX: usize = 64 * 1024;
/// What both directions of a spliced connection may hold.
const SPLICE_BUFFER: usize = 32 * 1024;

/// The ways out of the API server.
pub struct Connectors {
    /// Mutual TLS, as whom kubelets obey.
    pub kubelet: Connector,
    /// To backends whose certificates nobody can check.
    pub anyone: Connector,
}

/// Answers a connect request by what the node's kubelet, or the backend of a `proxy`, answers.
pub async fn connect(
    connectors: &Connectors,
    access: &dyn Access,
    request: &Request,
    http: http::Request<Incoming>,
    remote: SocketAddr,
) -> Result<http::Response<Body>> {
    if request.subresource == "proxy" {
        return backend::forward(connectors, access, request, http, remote).await;
    }
    if request.subresource == "log" {
        check_log_options(&request.name, &request.options.raw)?;
    }
    let pod = access
        .get(&resource::PODS, &request.namespace, &request.name)
        .ok_or_else(|| Status::not_found(&resource::PODS, &request.name))?
        .value();
    let container = match request.subresource.as_str() {
        "portforward" => String::new(),
        _ => container(&pod, &request.options.raw)?,
    };
    if pod.str_at(&["spec", "nodeName"]).is_empty() {
        // Logs of a pod that runs nowhere yet are empty; exec has nowhere to go.
        if request.subresource == "log" {
            let mut nothing = http::Response::new(empty());
            *nothing.status_mut() = http::StatusCode::NO_CONTENT;
            return Ok(nothing);
        }
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", request.name)));
    }
    let node = pod.str_at(&["spec", "nodeName"]);
    let node_object = access.get(&resource::NODES, "", node).ok_or_else(|| Status::not_found(&resource::NODES, node))?;
    let (host, port) = kubelet_address(&node_object.value())?;
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let path = kubelet_path(request, &container)?;
    let upgrades = http.headers().contains_key(UPGRADE);
    if request.subresource != "log" && !upgrades {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let stream = connectors.kubelet.connect(&address, node).await.map_err(|e| dial_failed(node, &e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| dial_failed(node, &e))?;
    task::spawn("kubelet-client", async move {
        // How it ends shows on the request and its upgrade.
        let _ = connection.with_upgrades().await;
    });
    // A log is streamed; whether the client gets it in frames is between it and us.
    let onward = onward(&http, &path, node, request.subresource != "log")?;
    let answer = sender.send_request(onward).await.map_err(|e| dial_failed(node, &e))?;
    match answer.status() {
        status if status.is_success() && upgrades && request.subresource == "log" => websocket::stream(http, answer.into_body()),
        http::StatusCode::SWITCHING_PROTOCOLS => Ok(splice(hyper::upgrade::on(http), answer)),
        status if status.is_success() => Ok(stream_back(answer)),
        status => Err(kubelet_error(status.as_u16(), answer).await),
    }
}

fn dial_failed(node: &str, error: &dyn std::fmt::Display) -> Status {
    Status::internal(format!("error dialing backend: node {node}: {error}"))
}

/// The container asked for, or the only one, or an error that lists the choices.
fn container(pod: &Value, query: &[(String, String)]) -> Result<String> {
    let name = pod.str_at(&["metadata", "name"]);
    let names = |list: &str| -> Vec<String> { pod.list_at(&["spec", list]).iter().map(|c| c.str_at(&["name"]).to_string()).collect() };
    let (init, main, ephemeral) = (names("initContainers"), names("containers"), names("ephemeralContainers"));
    let asked = query.iter().find(|(key, _)| key == "container").map_or("", |(_, value)| value.as_str());
    if !asked.is_empty() {
        return match [&init, &main, &ephemeral].iter().any(|list| list.iter().any(|n| n == asked)) {
            true => Ok(asked.to_string()),
            false => Err(Status::bad_request(format!("container {asked} is not valid for pod {name}"))),
        };
    }
    if let [only] = main.as_slice() {
        return Ok(only.clone());
    }
    let mut text = format!("a container name must be specified for pod {name}, choose one of: [{}]", main.join(" "));
    if !init.is_empty() {
        text += &format!(" or one of the init containers: [{}]", init.join(" "));
    }
    Err(Status::bad_request(text))
}

/// Host and port of a node's kubelet.
fn kubelet_address(node: &Value) -> Result<(String, i64)> {
    let addresses = node.list_at(&["status", "addresses"]);
    let preferred = ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"];
    // Names of nodes are not in any DNS of ours, so addresses go first.
    let by_type = |wanted: &&str| addresses.iter().find(|a| a.str_at(&["type"]) == *wanted).map(|a| a.str_at(&["address"]));
    let host = ["InternalIP", "ExternalIP"].iter().chain(&preferred).find_map(by_type);
    let host = host.ok_or_else(|| Status::internal(format!("node {} has no address", node.str_at(&["metadata", "name"]))))?;
    let port = node.i64_at(&["status", "daemonEndpoints", "kubeletEndpoint", "Port"]).filter(|p| *p > 0).unwrap_or(10250);
    Ok((host.to_string(), port))
}

/// Path and query on the kubelet; the query goes along as it came, less `container`.
/// The parameters of `log`, before anybody is asked for lines.
fn check_log_options(pod: &str, query: &[(String, String)]) -> Result<()> {
    let text = |key: &str| query.iter().find(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.as_str());
    let number = |key: &str| -> Result<Option<i64>> {
        let bad = |text: &str| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
        text(key).map(|t| t.parse::<i64>().map_err(|_| bad(t))).transpose()
    };
    let (tail, since, limit) = (number("tailLines")?, number("sinceSeconds")?, number("limitBytes")?);
    let mut errors = Vec::new();
    if let Some(n) = tail.filter(|n| *n < 0) {
        errors.push(FieldError::invalid("tailLines", n, "must be greater than or equal to 0"));
    }
    if let Some(n) = limit.filter(|n| *n < 1) {
        errors.push(FieldError::invalid("limitBytes", n, "must be greater than 0"));
    }
    if since.is_some() && text("sinceTime").is_some() {
        errors.push(FieldError::forbidden("[]", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    } else if let Some(n) = since.filter(|n| *n < 1) {
        errors.push(FieldError::invalid("sinceSeconds", n, "must be greater than 0"));
    }
    if text("stream").is_some() {
        errors.push(FieldError::forbidden("stream", "may not be specified"));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid_kind("", "PodLogOptions", pod, &errors)) }
}

fn kubelet_path(request: &Request, container: &str) -> Result<String> {
    let (folder, container) = match request.subresource.as_str() {
        "log" => ("containerLogs", format!("/{container}")),
        "exec" => ("exec", format!("/{container}")),
        "attach" => ("attach", format!("/{container}")),
        "portforward" => ("portForward", String::new()),
        other => {
            let text = format!("{other} is not implemented by this version of Coracle");
            return Err(Status::new(501, "NotImplemented", text));
        }
    };
    let raw = request.options.raw.iter().filter(|(key, _)| key != "container");
    let query: Vec<String> = raw.map(|(key, value)| format!("{}={}", escape(key), escape(value))).collect();
    let path = format!("/{folder}/{}/{}{container}", request.namespace, request.name);
    Ok(if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) })
}

/// Percent-encodes everything but unreserved characters (RFC 3986).
fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The request for the kubelet: same method, the headers that negotiate the upgrade, no credentials.
fn onward(http: &http::Request<Incoming>, path: &str, node: &str, upgrade: bool) -> Result<http::Request<Empty<Bytes>>> {
    let mut request = http::Request::builder().method(http.method()).uri(path).header("host", node);
    let copied = |name: &str| {
        name == "upgrade" || name == "connection" || name.starts_with("sec-websocket-") || name.starts_with("x-stream-protocol")
    };
    for (name, value) in http.headers().iter().filter(|(name, _)| upgrade && copied(name.as_str())) {
        request = request.header(name, value);
    }
    request.body(Empty::new()).map_err(|e| Status::bad_request(e.to_string()))
}

/// Couples the client's connection with the kubelet's once both have switched protocols.
fn splice(client: hyper::upgrade::OnUpgrade, answer: http::Response<Incoming>) -> http::Response<Body> {
    let mut response = http::Response::builder().status(answer.status());
    let kept = |name: &str| {
        name == "upgrade" || name == "connection" || name.starts_with("sec-websocket-") || name.starts_with("x-stream-protocol")
    };
    for (name, value) in answer.headers().iter().filter(|(name, _)| kept(name.as_str())) {
        response = response.header(name, value);
    }
    task::spawn("splice", async move {
        let (Ok(client), Ok(kubelet)) = tokio::join!(client, hyper::upgrade::on(answer)) else { return };
        let (mut client, mut kubelet) = (TokioIo::new(client), TokioIo::new(kubelet));
        // Either side closing is how sessions end.
        let _ = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut kubelet, SPLICE_BUFFER, SPLICE_BUFFER).await;
    });
    response.body(empty()).expect("headers of a valid response")
}

fn stream_back(answer: http::Response<Incoming>) -> http::Response<Body> {
    let content_type = answer.headers().get(CONTENT_TYPE).cloned();
    let mut response = http::Response::new(answer.into_body().map_err(BoxError::from).boxed_unsync());
    let headers: &mut HeaderMap = response.headers_mut();
    headers.remove(CONNECTION);
    headers.extend(content_type.map(|value| (CONTENT_TYPE, value)));
    response
}

/// The kubelet's text becomes the message of a Status of the same code.
async fn kubelet_error(code: u16, answer: http::Response<Incoming>) -> Status {
    let text = match Limited::new(answer.into_body(), ERROR_MAX).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim_end().to_string(),
        Err(_) => "the kubelet's answer could not be read".to_string(),
    };
    let reason = match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        _ => "InternalError",
    };
    Status::new(code, reason, text)
}

pub fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    fn pod() -> Value {
        value!({"metadata": {"name": "p"}, "spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b"}]}})
    }

    #[test]
    fn a_container_is_chosen_or_the_choices_are_named() {
        let asked = |name: &str| container(&pod(), &[("container".to_string(), name.to_string())]);
        assert_eq!(asked("i").unwrap(), "i");
        assert_eq!(asked("x").unwrap_err().message, "container x is not valid for pod p");
        let text = "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]";
        assert_eq!(container(&pod(), &[]).unwrap_err().message, text);
    }

    #[test]
    fn the_kubelet_is_found_by_address_and_announced_port() {
        let node = value!({"metadata": {"name": "n"}, "status": {"addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "192.0.2.7"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10260}}}});
        assert_eq!(kubelet_address(&node).unwrap(), ("192.0.2.7".to_string(), 10260));
    }
}
