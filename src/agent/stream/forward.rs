//! Port-forwarding: for every connection of the client a pair of SPDY streams, `data` and `error`, joined by a `requestID`.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::CHUNK_BYTES;
use super::spdy::{self, Stream};
use crate::runtime::Runtime;

pub const PROTOCOL: &str = "portforward.k8s.io";
/// The same inside a WebSocket.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Streams whose other half has not come yet.
const HALVES_MAX: usize = 256;

/// The pod whose ports are meant.
pub struct Target {
    pub runtime: Arc<dyn Runtime>,
    pub sandbox: String,
    /// As error texts name it.
    pub pod: String,
}

/// Serves until the client is gone.
pub async fn serve<S>(io: S, target: Target)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let target = Arc::new(target);
    let mut streams = spdy::accept(io);
    let mut halves: HashMap<String, Stream> = HashMap::new();
    while let Some(stream) = streams.recv().await {
        let key = request(&stream);
        let Some(other) = halves.remove(&key) else {
            if halves.len() < HALVES_MAX {
                halves.insert(key, stream);
            }
            continue;
        };
        let (data, error) = if stream.header("streamtype") == "data" { (stream, other) } else { (other, stream) };
        crate::task::spawn("forward", forward(target.clone(), data, error));
    }
}

/// Old clients number nothing: they open the error stream just before the data stream.
fn request(stream: &Stream) -> String {
    match stream.header("requestid") {
        "" if stream.header("streamtype") == "data" => (stream.id.saturating_sub(2)).to_string(),
        "" => stream.id.to_string(),
        id => id.to_string(),
    }
}

async fn forward(target: Arc<Target>, data: Stream, error: Stream) {
    let asked = data.header("port").to_string();
    let Target { runtime, sandbox, pod } = &*target;
    let dialled = match asked.parse::<u16>() {
        Ok(port @ 1..) => runtime.dial(sandbox, port).await.map_err(|e| e.chain()),
        _ => Err("invalid port".to_string()),
    };
    match dialled {
        Ok(io) => couple(io, data).await,
        Err(why) => {
            error.sender.send(format!("error forwarding port {asked} to pod {pod}, uid {sandbox}: {why}").as_bytes()).await;
            data.sender.close().await;
        }
    }
    // Clients wait for it before they let their connection go.
    error.sender.close().await;
}

/// Until the pod has no more to say; the client's end is told to the pod.
async fn couple(io: impl AsyncRead + AsyncWrite, stream: Stream) {
    let Stream { mut data, sender, .. } = stream;
    let (mut read, mut write) = tokio::io::split(io);
    let to_pod = async {
        while let Some(bytes) = data.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
        std::future::pending::<()>().await;
    };
    let from_pod = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(n @ 1..) = read.read(&mut buffer).await {
            if !sender.send(&buffer[..n]).await {
                return;
            }
        }
        sender.close().await;
    };
    tokio::select! {
        () = to_pod => {}
        () = from_pod => {}
    }
}
