//! exec over a WebSocket: the channels of `v5.channel.k8s.io`, `v4.channel.k8s.io` and plain `channel.k8s.io`.
//!
//! Each message begins with its channel: 0 stdin, 1 stdout, 2 stderr, 3 the final Status, 4 window sizes; in v5 `255, n` closes
//! channel n. The last bytes of a process are sent before its status, its status before the close.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use crate::api::value::Value;
use crate::runtime::{self, ExecSession};
use crate::value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    V5,
    V4,
    /// No status, no window sizes.
    V1,
}

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

const CHUNK_BYTES: usize = 32 << 10;
const QUEUE: usize = 16;
/// How long streams may stay open after the process ended: a grandchild may hold them for ever.
const DRAIN: Duration = Duration::from_millis(500);

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Protocol::V5 => "v5.channel.k8s.io",
            Protocol::V4 => "v4.channel.k8s.io",
            Protocol::V1 => "channel.k8s.io",
        }
    }

    /// The best of those the client offers (`Sec-WebSocket-Protocol`), ours first.
    pub fn choose(offered: &str) -> Option<Protocol> {
        let offers: Vec<&str> = offered.split(',').map(str::trim).collect();
        [Protocol::V5, Protocol::V4, Protocol::V1].into_iter().find(|p| offers.contains(&p.name()))
    }
}

/// The final Status of a process.
pub fn exit_status(result: &Result<i32, String>) -> Value {
    match result {
        Ok(0) => value!({"metadata": {}, "status": "Success"}),
        Ok(code) => value!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}}),
        Err(message) => value!({"metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": format!("Internal error occurred: error executing command in container: {message}"),
            "details": {"causes": [{"message": format!("error executing command in container: {message}")}]}}),
    }
}

/// `{"Width":80,"Height":24}`.
fn window(bytes: &[u8]) -> Option<(u16, u16)> {
    let value: Value = serde_json::from_slice::<serde_json::Value>(bytes).ok()?.into();
    let side = |key: &str| u16::try_from(value.i64_at(&[key])?).ok();
    Some((side("Width")?, side("Height")?))
}

fn frame(channel: u8, bytes: &[u8]) -> Message {
    let mut framed = BytesMut::with_capacity(bytes.len() + 1);
    framed.put_u8(channel);
    framed.put_slice(bytes);
    Message::Binary(framed.freeze())
}

/// Serves one exec over an upgraded connection until process or client is gone.
pub async fn serve<S>(io: S, protocol: Protocol, session: runtime::Result<ExecSession>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = WebSocketConfig::default().max_message_size(Some(32 << 20));
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    let (sink, source) = socket.split();
    let (out, frames) = mpsc::channel(QUEUE);
    let writer = crate::task::spawn("exec-writer", write(sink, frames));
    if protocol == Protocol::V1 {
        // Clients of the first protocol wait for one empty message per channel.
        for channel in [STDOUT, STDERR] {
            let _ = out.send(frame(channel, b"")).await;
        }
    }
    let result = match session {
        Ok(session) => run(source, &out, protocol, session).await,
        Err(error) => Some(Err(error.chain())),
    };
    if let Some(result) = result {
        if protocol != Protocol::V1 {
            let _ = out.send(frame(ERROR, exit_status(&result).to_string().as_bytes())).await;
        } else if let Err(message) = &result {
            let _ = out.send(frame(ERROR, message.as_bytes())).await;
        }
        let _ = out.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))).await;
    }
    drop(out);
    let _ = writer.await;
}

async fn write<S>(mut sink: SplitSink<WebSocketStream<S>, Message>, mut frames: mpsc::Receiver<Message>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    while let Some(message) = frames.recv().await {
        if sink.send(message).await.is_err() {
            return;
        }
    }
}

/// `None` if the client went away first.
async fn run<S>(
    mut source: SplitStream<WebSocketStream<S>>,
    out: &mpsc::Sender<Message>,
    protocol: Protocol,
    session: ExecSession,
) -> Option<Result<i32, String>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let ExecSession { stdin, stdout, stderr, mut exit, control } = session;
    let pumps = [(STDOUT, stdout), (STDERR, stderr)].map(|(channel, stream)| {
        let out = out.clone();
        crate::task::spawn("exec-pump", async move {
            if let Some(stream) = stream {
                pump(channel, stream, out).await;
            }
        })
    });
    // stdin has a task of its own: a process that does not read must not keep us from seeing its exit or the client's end.
    let (to_stdin, from_client) = mpsc::channel::<Bytes>(QUEUE);
    let mut to_stdin = stdin.map(|stdin| {
        crate::task::spawn("exec-stdin", feed(stdin, from_client));
        to_stdin
    });
    let code = loop {
        tokio::select! {
            code = &mut exit => break code,
            message = source.next() => {
                let Some(Ok(message)) = message else { return None };
                let bytes = match message {
                    Message::Binary(bytes) => bytes,
                    Message::Text(text) => Bytes::from(text),
                    Message::Close(_) => return None,
                    Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
                };
                match bytes.first() {
                    Some(&STDIN) if bytes.len() > 1 => {
                        if let Some(stdin) = &to_stdin {
                            tokio::select! {
                                sent = stdin.send(bytes.slice(1..)) => if sent.is_err() { to_stdin = None },
                                code = &mut exit => break code,
                            }
                        }
                    }
                    Some(&RESIZE) => if let Some((columns, rows)) = window(&bytes[1..]) { control.resize(columns, rows) },
                    Some(&CLOSE) if protocol == Protocol::V5 && bytes.get(1) == Some(&STDIN) => to_stdin = None,
                    _ => {}
                }
            }
        }
    };
    let deadline = tokio::time::Instant::now() + DRAIN;
    for mut pump in pumps {
        // The pump waits for the client too, so it is only cut once the streams are idle that long.
        if tokio::time::timeout_at(deadline, &mut pump).await.is_err() {
            pump.abort();
        }
    }
    Some(code.map_err(|e| e.chain()))
}

async fn pump(channel: u8, mut stream: Box<dyn AsyncRead + Send + Unpin>, out: mpsc::Sender<Message>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        if out.send(frame(channel, &buffer[..n])).await.is_err() {
            return;
        }
    }
}

async fn feed(mut stdin: Box<dyn AsyncWrite + Send + Unpin>, mut from: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = from.recv().await {
        if stdin.write_all(&bytes).await.is_err() || stdin.flush().await.is_err() {
            return;
        }
    }
    let _ = stdin.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::runtime::ExecControl;

    struct Nothing;
    impl ExecControl for Nothing {
        fn resize(&self, _: u16, _: u16) {}
        fn kill(&self) {}
    }

    #[test]
    fn protocols_and_windows() {
        assert_eq!(Protocol::choose("v4.channel.k8s.io, v5.channel.k8s.io"), Some(Protocol::V5));
        assert_eq!(Protocol::choose("channel.k8s.io"), Some(Protocol::V1));
        assert_eq!(Protocol::choose("v9.channel.k8s.io"), None);
        assert_eq!(window(br#"{"Width":80,"Height":24}"#), Some((80, 24)));
    }

    /// `cat`: stdin comes back on stdout until stdin is closed with v5's close message.
    #[tokio::test]
    async fn stdin_comes_back_and_the_status_is_last() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (near, far) = tokio::io::duplex(1 << 16);
        let (done, is_done) = tokio::sync::oneshot::channel::<()>();
        let cat = tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(far);
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            drop((read, write));
            done.send(()).unwrap();
        });
        let (stdout, stdin) = tokio::io::split(near);
        let exit = Box::pin(async move {
            let _ = is_done.await;
            Ok(7)
        });
        let session =
            ExecSession { stdin: Some(Box::new(stdin)), stdout: Some(Box::new(stdout)), stderr: None, exit, control: Arc::new(Nothing) };
        let serving = tokio::spawn(serve(server, Protocol::V5, Ok(session)));
        let mut socket = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        socket.send(frame(STDIN, b"hello")).await.unwrap();
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
        cat.await.unwrap();
    }
}
