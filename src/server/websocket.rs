//! A body sent as WebSocket messages: logs for clients that ask so (`binary.k8s.io`, `base64.binary.k8s.io`).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{self, HeaderMap, HeaderValue};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::proxy::{Body, empty};
use crate::api::status::{Result, Status};
use crate::task;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    /// The client named none.
    Plain,
    Binary,
    Base64,
}

impl Protocol {
    fn name(self) -> Option<&'static str> {
        match self {
            Protocol::Plain => None,
            Protocol::Binary => Some("binary.k8s.io"),
            Protocol::Base64 => Some("base64.binary.k8s.io"),
        }
    }

    fn of(headers: &HeaderMap) -> Option<Protocol> {
        let offers: Vec<&str> = headers
            .get_all(header::SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .map(str::trim)
            .collect();
        if offers.is_empty() {
            return Some(Protocol::Plain);
        }
        [Protocol::Binary, Protocol::Base64].into_iter().find(|p| p.name().is_some_and(|name| offers.contains(&name)))
    }

    fn message(self, bytes: Bytes) -> Message {
        match self {
            Protocol::Plain | Protocol::Binary => Message::Binary(bytes),
            Protocol::Base64 => Message::text(BASE64_STANDARD.encode(&bytes)),
        }
    }
}

/// Switches the client's connection over and sends `body` on it to its end.
pub fn stream(client: http::Request<Incoming>, body: Incoming) -> Result<http::Response<Body>> {
    let key = client.headers().get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| Status::bad_request("Sec-WebSocket-Key is missing"))?;
    let protocol = Protocol::of(client.headers()).ok_or_else(|| Status::bad_request("requested protocol(s) are not supported"))?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).expect("base64 is a header value");
    let mut response = http::Response::new(empty());
    *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(name) = protocol.name() {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    task::spawn("websocket-body", async move {
        if let Ok(io) = hyper::upgrade::on(client).await {
            send(WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await, protocol, body).await;
        }
    });
    Ok(response)
}

async fn send<S>(socket: WebSocketStream<S>, protocol: Protocol, mut body: Incoming)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
{
    let (mut sink, mut source) = socket.split();
    // The first message is empty: clients wait for it to know that the stream has begun.
    if sink.send(protocol.message(Bytes::new())).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            frame = body.frame() => {
                let Some(Ok(frame)) = frame else { break };
                if let Ok(bytes) = frame.into_data()
                    && sink.send(protocol.message(bytes)).await.is_err()
                {
                    return;
                }
            }
            // Nothing is expected of the client but that it goes.
            message = source.next() => if !matches!(message, Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Text(_)))) { return },
        }
    }
    let _ = sink.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols() {
        let of = |offer: &str| {
            let mut headers = HeaderMap::new();
            if !offer.is_empty() {
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(offer).unwrap());
            }
            Protocol::of(&headers)
        };
        assert_eq!(
            [of(""), of("x, binary.k8s.io"), of("base64.binary.k8s.io"), of("x")],
            [Some(Protocol::Plain), Some(Protocol::Binary), Some(Protocol::Base64), None]
        );
        assert_eq!(Protocol::Base64.message("hi".into()), Message::text("aGk="));
    }
}
