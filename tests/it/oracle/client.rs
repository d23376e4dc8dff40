//! Requests over real HTTPS connections, kept alive from step to step as clients do.

use std::time::Duration;

use bytes::Bytes;
use coracle::transport::Connector;
use http::HeaderMap;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

/// An answer that takes longer is none.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(70);
const WATCH_START_TIMEOUT: Duration = Duration::from_secs(15);

type Sender = http1::SendRequest<Full<Bytes>>;

/// Where the server is, and how it is spoken to: as the administrator, or as nobody.
pub struct Server {
    pub address: String,
    pub admin: Connector,
    pub nobody: Connector,
}

/// A request ready to be sent.
#[derive(Clone)]
pub struct Outgoing {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Option<Bytes>,
    pub anonymous: bool,
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// One worker's connections.
pub struct Client<'a> {
    server: &'a Server,
    kept: [Option<Sender>; 2],
}

impl Server {
    async fn connect(&self, anonymous: bool) -> Result<Sender, String> {
        let connector = if anonymous { &self.nobody } else { &self.admin };
        let stream = connector.connect(&self.address, "kubernetes").await.map_err(|e| e.to_string())?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        Ok(sender)
    }

    fn request(&self, outgoing: &Outgoing) -> Result<http::Request<Full<Bytes>>, String> {
        let method = http::Method::from_bytes(outgoing.method.as_bytes()).map_err(|e| e.to_string())?;
        let mut builder = http::Request::builder().method(method).uri(&outgoing.path).header("host", &self.address);
        builder = builder.header("accept-encoding", "identity");
        for (name, value) in &outgoing.headers {
            builder = builder.header(name, value);
        }
        builder.body(Full::new(outgoing.body.clone().unwrap_or_default())).map_err(|e| e.to_string())
    }

    /// A streaming answer on a connection of its own.
    pub async fn stream(&self, outgoing: &Outgoing) -> Result<http::Response<Incoming>, String> {
        let started = async {
            let mut sender = self.connect(outgoing.anonymous).await?;
            sender.send_request(self.request(outgoing)?).await.map_err(|e| e.to_string())
        };
        timeout(WATCH_START_TIMEOUT, started).await.map_err(|_| "no answer in time".to_string())?
    }
}

impl<'a> Client<'a> {
    pub fn new(server: &'a Server) -> Client<'a> {
        Client { server, kept: [None, None] }
    }

    pub fn server(&self) -> &'a Server {
        self.server
    }

    /// Sends it over the connection kept, or, if that broke meanwhile, over a new one.
    pub async fn send(&mut self, outgoing: &Outgoing) -> Result<Answer, String> {
        let slot = usize::from(outgoing.anonymous);
        if let Some(sender) = self.kept[slot].take()
            && let Ok(answer) = self.over(sender, outgoing).await
        {
            return Ok(answer);
        }
        let fresh = self.server.connect(outgoing.anonymous).await?;
        self.over(fresh, outgoing).await
    }

    async fn over(&mut self, mut sender: Sender, outgoing: &Outgoing) -> Result<Answer, String> {
        let request = self.server.request(outgoing)?;
        let answered = async {
            sender.ready().await.map_err(|e| e.to_string())?;
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
            Ok::<_, String>(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        let answer = timeout(ANSWER_TIMEOUT, answered).await.map_err(|_| "no answer in time".to_string())??;
        if answer.headers.get("connection").is_none_or(|c| c != "close") {
            self.kept[usize::from(outgoing.anonymous)] = Some(sender);
        }
        Ok(answer)
    }
}

/// What a watch is to be read for.
#[derive(Clone, Copy)]
pub struct Reading {
    pub events: usize,
    /// For the next event.
    pub wait: Duration,
    pub until_end: bool,
}

/// What was read of a watch.
pub struct Read {
    pub status: u16,
    pub headers: HeaderMap,
    /// The whole answer, if it was a refusal.
    pub refusal: Option<Bytes>,
    pub frames: Vec<Bytes>,
    pub is_protobuf: bool,
    pub ended_by: &'static str,
}

/// How long nothing more may come after the last event.
const GRACE: Duration = Duration::from_millis(250);

/// Reads the number of events, then looks whether more come, or on to the end.
pub async fn read(response: http::Response<Incoming>, reading: Reading) -> Result<Read, String> {
    let (head, mut body) = response.into_parts();
    let is_protobuf = head.headers.get("content-type").is_some_and(|t| t.to_str().unwrap_or("").contains("protobuf"));
    let mut read =
        Read { status: head.status.as_u16(), headers: head.headers, refusal: None, frames: Vec::new(), is_protobuf, ended_by: "client" };
    if read.status != 200 {
        read.refusal = Some(body.collect().await.map_err(|e| e.to_string())?.to_bytes());
        return Ok(read);
    }
    let mut pending = Vec::new();
    loop {
        while let Some(frame) = cut(&mut pending, is_protobuf) {
            read.frames.extend(Some(frame).filter(|f| !f.trim_ascii().is_empty()));
        }
        let patience = match (read.frames.len() >= reading.events, reading.until_end) {
            (true, false) => GRACE,
            (true, true) => Duration::from_secs(15),
            (false, _) => reading.wait,
        };
        match timeout(patience, body.frame()).await {
            Err(_) => return Ok(read),
            Ok(Some(Ok(frame))) => pending.extend_from_slice(frame.data_ref().map_or(&[], |d| d)),
            Ok(None) => {
                read.ended_by = "server";
                return Ok(read);
            }
            Ok(Some(Err(_))) => return Ok(read),
        }
    }
}

/// The next whole frame: a line, or what its length says.
fn cut(pending: &mut Vec<u8>, is_protobuf: bool) -> Option<Bytes> {
    if is_protobuf {
        let length = u32::from_be_bytes(pending.get(..4)?.try_into().expect("four bytes")) as usize;
        let frame = Bytes::copy_from_slice(pending.get(4..4 + length)?);
        pending.drain(..4 + length);
        return Some(frame);
    }
    let end = pending.iter().position(|b| *b == b'\n')? + 1;
    Some(pending.drain(..end).collect::<Vec<u8>>().into())
}
