//! Sessions over a WebSocket: the channels of `v5.channel.k8s.io`, `v4.channel.k8s.io` and plain `channel.k8s.io`; the latter two
//! also in base64. And [`tunnel`]: a plain byte stream in binary messages.
//!
//! Each message begins with its channel: 0 stdin, 1 stdout, 2 stderr, 3 the final Status, 4 window sizes; in v5 `255, n` closes
//! channel n.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::{CHUNK_BYTES, Client, Input, Output, QUEUE, Start, exit_status, run, window};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    V5,
    V4,
    V4Base64,
    /// No status, no window sizes.
    V1,
    V1Base64,
}

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

const MESSAGE_BYTES_MAX: usize = 32 << 20;

impl Protocol {
    /// Ours, the best first.
    pub const ALL: [Protocol; 5] = [Protocol::V5, Protocol::V4, Protocol::V4Base64, Protocol::V1, Protocol::V1Base64];

    pub fn name(self) -> &'static str {
        match self {
            Protocol::V5 => "v5.channel.k8s.io",
            Protocol::V4 => "v4.channel.k8s.io",
            Protocol::V4Base64 => "v4.base64.channel.k8s.io",
            Protocol::V1 => "channel.k8s.io",
            Protocol::V1Base64 => "base64.channel.k8s.io",
        }
    }

    /// The best of those the client offers (`Sec-WebSocket-Protocol`).
    pub fn choose(offered: &str) -> Option<Protocol> {
        let offers: Vec<&str> = offered.split(',').map(str::trim).collect();
        Protocol::ALL.into_iter().find(|p| offers.contains(&p.name()))
    }

    fn has_status(self) -> bool {
        !matches!(self, Protocol::V1 | Protocol::V1Base64)
    }

    /// In base64 the channel is a digit before the text.
    fn is_text(self) -> bool {
        matches!(self, Protocol::V4Base64 | Protocol::V1Base64)
    }

    fn frame(self, channel: u8, bytes: &[u8]) -> Message {
        if self.is_text() {
            return Message::text(format!("{channel}{}", BASE64_STANDARD.encode(bytes)));
        }
        let mut framed = BytesMut::with_capacity(bytes.len() + 1);
        framed.put_u8(channel);
        framed.put_slice(bytes);
        Message::Binary(framed.freeze())
    }

    fn read(self, message: Bytes) -> Option<(u8, Bytes)> {
        let (first, rest) = (*message.first()?, message.slice(1..));
        if !self.is_text() {
            return Some((first, rest));
        }
        Some((first.checked_sub(b'0')?, BASE64_STANDARD.decode(&rest).ok()?.into()))
    }

    fn input(self, message: Bytes) -> Option<Input> {
        let (channel, bytes) = self.read(message)?;
        match channel {
            STDIN if !bytes.is_empty() => Some(Input::Stdin(bytes)),
            RESIZE => window(&bytes),
            CLOSE if self == Protocol::V5 && bytes.first() == Some(&STDIN) => Some(Input::StdinEnd),
            _ => None,
        }
    }

    fn output(self, output: Output) -> Option<Message> {
        match output {
            Output::Stdout(bytes) => Some(self.frame(STDOUT, &bytes)),
            Output::Stderr(bytes) => Some(self.frame(STDERR, &bytes)),
            Output::End(ended) if self.has_status() => Some(self.frame(ERROR, exit_status(&ended).to_string().as_bytes())),
            Output::End(Err(message)) => Some(self.frame(ERROR, message.as_bytes())),
            Output::End(Ok(_)) => None,
        }
    }
}

/// Serves one session over an upgraded connection until process or client is gone.
pub async fn serve<S>(io: S, protocol: Protocol, start: Start)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, source) = socket(io).await.split();
    let (output, outputs) = mpsc::channel(QUEUE);
    let (to_session, input) = mpsc::channel(QUEUE);
    let writer = crate::task::spawn("exec-writer", write(sink, protocol, outputs));
    let reader = crate::task::spawn("exec-reader", read(source, protocol, to_session));
    run(start.await, Client { input, output }).await;
    let _ = writer.await;
    reader.abort();
}

async fn socket<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

fn close() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

async fn write<S>(mut sink: SplitSink<WebSocketStream<S>, Message>, protocol: Protocol, mut outputs: mpsc::Receiver<Output>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    if !protocol.has_status() {
        // Clients of the first protocol wait for one empty message per channel.
        for channel in [STDIN, STDOUT, STDERR] {
            if sink.send(protocol.frame(channel, b"")).await.is_err() {
                return;
            }
        }
    }
    while let Some(output) = outputs.recv().await {
        if let Some(message) = protocol.output(output)
            && sink.send(message).await.is_err()
        {
            return;
        }
    }
    let _ = sink.send(close()).await;
}

async fn read<S>(mut source: SplitStream<WebSocketStream<S>>, protocol: Protocol, to: mpsc::Sender<Input>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    while let Some(Ok(message)) = source.next().await {
        let Some(bytes) = payload(message) else { return };
        if let Some(input) = protocol.input(bytes)
            && to.send(input).await.is_err()
        {
            return;
        }
    }
}

/// What a message carries, perhaps nothing; `None` for one that closes.
fn payload(message: Message) -> Option<Bytes> {
    match message {
        Message::Binary(bytes) => Some(bytes),
        Message::Text(text) => Some(Bytes::from(text)),
        Message::Close(_) => None,
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Some(Bytes::new()),
    }
}

/// The byte stream that a WebSocket's binary messages are.
pub async fn tunnel<S>(io: S) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sink, mut source) = socket(io).await.split();
    let (near, far) = tokio::io::duplex(2 * CHUNK_BYTES);
    let (mut from, mut to) = tokio::io::split(far);
    crate::task::spawn("tunnel-in", async move {
        while let Some(Ok(message)) = source.next().await {
            let Some(bytes) = payload(message) else { break };
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    });
    crate::task::spawn("tunnel-out", async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                return;
            }
        }
        let _ = sink.send(close()).await;
    });
    near
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::stream::tests::cat;

    #[test]
    fn the_best_protocol_is_chosen() {
        assert_eq!(Protocol::choose("v4.channel.k8s.io, v5.channel.k8s.io"), Some(Protocol::V5));
        assert_eq!(Protocol::choose("channel.k8s.io"), Some(Protocol::V1));
        assert_eq!(Protocol::choose("v9.channel.k8s.io"), None);
    }

    #[test]
    fn base64_has_a_digit_for_its_channel() {
        assert_eq!(Protocol::V1Base64.frame(STDOUT, b"hi"), Message::text("1aGk="));
        assert_eq!(Protocol::V4Base64.input("0aGk=".into()), Some(Input::Stdin("hi".into())));
        assert_eq!(Protocol::V4.input(Bytes::from_static(b"\0hi")), Some(Input::Stdin("hi".into())));
    }

    /// What is typed comes back until stdin is closed with v5's close message.
    #[tokio::test]
    async fn stdin_comes_back_and_the_status_is_last() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let serving = tokio::spawn(serve(server, Protocol::V5, cat()));
        let mut socket = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        socket.send(Protocol::V5.frame(STDIN, b"hello")).await.unwrap();
        socket.send(Message::Binary(Bytes::from_static(&[CLOSE, STDIN]))).await.unwrap();
        let mut seen = Vec::new();
        while let Some(Ok(Message::Binary(bytes))) = socket.next().await {
            seen.push((bytes[0], String::from_utf8_lossy(&bytes[1..]).into_owned()));
        }
        assert_eq!(seen[0], (STDOUT, "hello".to_string()));
        let (channel, status) = seen.last().unwrap();
        assert_eq!(*channel, ERROR);
        assert!(status.contains(r#""reason":"ExitCode""#) && status.contains(r#""message":"7""#), "{status}");
        let _ = socket.close(None).await;
        serving.await.unwrap();
    }
}
