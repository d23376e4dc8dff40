//! Sessions over SPDY/3.1, as clients before WebSocket speak it: one stream per channel, named by the header `streamType`.
//!
//! Of the protocol there is what these clients use: SYN_STREAM, SYN_REPLY, DATA, RST_STREAM, PING. They send no window updates and
//! heed none; a stream nobody reads holds the connection up until its reader is gone. Header blocks are zlib with a dictionary
//! both sides know; ours go out uncompressed, which is zlib too. Start at [`accept`].

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{CHUNK_BYTES, Client, Input, Output, QUEUE, Start, Wanted, exit_status, exit_text, run, window};

/// Subprotocols of exec and attach (`X-Stream-Protocol-Version`), the best first.
pub const PROTOCOLS: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const HEADERS: u16 = 8;
const FIN: u8 = 1;

const FRAME_BYTES_MAX: usize = 1 << 20;
const HEADER_BYTES_MAX: usize = 64 << 10;
const STREAMS_MAX: usize = 4096;
/// How long a client may take to open the streams it announced.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to close once everything is said.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream the client opened.
pub struct Stream {
    pub id: u32,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Ends when the client closes its side.
    pub data: mpsc::Receiver<Bytes>,
    pub sender: Sender,
}

/// Our side of a stream.
#[derive(Clone)]
pub struct Sender {
    id: u32,
    frames: mpsc::Sender<Bytes>,
}

impl Stream {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }
}

impl Sender {
    /// False once the client is gone.
    pub async fn send(&self, bytes: &[u8]) -> bool {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            if self.frames.send(data_frame(self.id, 0, chunk)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Nothing more comes on it.
    pub async fn close(&self) {
        let _ = self.frames.send(data_frame(self.id, FIN, &[])).await;
    }
}

fn data_frame(id: u32, flags: u8, bytes: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + bytes.len());
    frame.put_u32(id & 0x7fff_ffff);
    frame.put_u32(u32::from(flags) << 24 | u32::try_from(bytes.len()).expect("chunks are small"));
    frame.put_slice(bytes);
    frame.freeze()
}

fn control_frame(kind: u16, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + body.len());
    frame.put_u16(0x8003);
    frame.put_u16(kind);
    frame.put_u32(u32::try_from(body.len()).expect("bodies are small"));
    frame.put_slice(body);
    frame.freeze()
}

/// Speaks SPDY on a connection; answers the streams as the client opens them. Once the receiver and every stream are gone, so
/// is the connection.
pub fn accept<S>(io: S) -> mpsc::Receiver<Stream>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (read, write) = tokio::io::split(io);
    let (frames, queue) = mpsc::channel(QUEUE);
    let (opened, streams) = mpsc::channel(QUEUE);
    let written = crate::task::spawn("spdy-writer", write_frames(write, queue));
    crate::task::spawn("spdy-reader", async move {
        let listeners = opened.clone();
        let (inflate, replies) = (HeaderReader::new(), HeaderWriter::default());
        let reader = Reader { io: read, opened, frames: frames.downgrade(), inflate, replies, known: HashMap::new() };
        let mut reading = std::pin::pin!(reader.run());
        tokio::select! {
            () = &mut reading => return,
            () = listeners.closed() => {}
        }
        // Whoever served the streams is done: what is still queued goes out, what comes is read so that the client is not cut off.
        drop(frames);
        let closing = async {
            let _ = written.await;
            tokio::time::sleep(CLOSE_TIMEOUT).await;
        };
        tokio::select! {
            () = &mut reading => {}
            () = closing => {}
        }
    });
    streams
}

async fn write_frames(mut io: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Bytes>) {
    while let Some(frame) = queue.recv().await {
        if io.write_all(&frame).await.is_err() || (queue.is_empty() && io.flush().await.is_err()) {
            return;
        }
    }
    let _ = io.shutdown().await;
}

struct Reader<R> {
    io: R,
    opened: mpsc::Sender<Stream>,
    /// Weak: the streams decide how long there is something to write.
    frames: mpsc::WeakSender<Bytes>,
    inflate: HeaderReader,
    replies: HeaderWriter,
    known: HashMap<u32, mpsc::Sender<Bytes>>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(mut self) {
        loop {
            if let Err(error) = self.frame().await {
                return tracing::debug!(%error, "spdy connection ended");
            }
        }
    }

    async fn frame(&mut self) -> io::Result<()> {
        let mut head = [0; 8];
        self.io.read_exact(&mut head).await?;
        let length = usize::try_from(u32::from_be_bytes([0, head[5], head[6], head[7]])).expect("three bytes");
        if length > FRAME_BYTES_MAX {
            return Err(io::Error::other("frame too large"));
        }
        let mut body = vec![0; length];
        self.io.read_exact(&mut body).await?;
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        match word & 0x8000_0000 {
            0 => self.data(word, head[4], body.into()).await,
            _ => self.control(word as u16, head[4], body.into()).await?,
        }
        Ok(())
    }

    async fn data(&mut self, id: u32, flags: u8, body: Bytes) {
        if let Some(stream) = self.known.get(&id)
            && !body.is_empty()
            && stream.send(body).await.is_err()
        {
            self.known.remove(&id);
        }
        if flags & FIN != 0 {
            self.known.remove(&id);
        }
    }

    async fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> io::Result<()> {
        let short = || io::Error::other("short control frame");
        match kind {
            SYN_STREAM => {
                if body.len() < 10 {
                    return Err(short());
                }
                let id = body.get_u32() & 0x7fff_ffff;
                body.advance(6);
                let headers = self.inflate.read(&body)?;
                if self.known.len() >= STREAMS_MAX {
                    return Err(io::Error::other("too many streams"));
                }
                let Some(frames) = self.frames.upgrade() else { return Ok(()) };
                let mut reply = id.to_be_bytes().to_vec();
                reply.extend(self.replies.write(&[]));
                let _ = frames.send(control_frame(SYN_REPLY, &reply)).await;
                let (to, data) = mpsc::channel(QUEUE);
                if flags & FIN == 0 {
                    self.known.insert(id, to);
                }
                let _ = self.opened.send(Stream { id, headers, data, sender: Sender { id, frames } }).await;
            }
            // The dictionary grows with every block, read or not.
            HEADERS if body.len() >= 4 => drop(self.inflate.read(&body.slice(4..))?),
            RST_STREAM if body.len() >= 4 => drop(self.known.remove(&(body.get_u32() & 0x7fff_ffff))),
            PING => {
                if let Some(frames) = self.frames.upgrade() {
                    let _ = frames.send(control_frame(PING, &body)).await;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Words of the dictionary, each with its length before it, and the text they are followed by.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow \
    authorization cache-control connection content-base content-encoding content-language content-length content-location content-md5 \
    content-range content-type date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since \
    last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer \
    transfer-encoding upgrade user-agent vary via warning www-authenticate method get status";
const MORE_WORDS: [&str; 10] = ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin", "", ""];
const CODES: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505";
const TAIL: &str = "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 \
    Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,public\
    privatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// What SPDY/3 preloads both ends of the compression with (its specification, 2.6.10.1).
fn dictionary() -> Vec<u8> {
    let mut all = Vec::with_capacity(1423);
    for word in WORDS.split(' ').chain(MORE_WORDS.into_iter().filter(|w| !w.is_empty())) {
        all.put_u32(u32::try_from(word.len()).expect("words are short"));
        all.put_slice(word.as_bytes());
    }
    all.put_slice(CODES.as_bytes());
    all.put_slice(TAIL.as_bytes());
    all
}

/// Header blocks of a whole connection are one zlib stream.
struct HeaderReader {
    inflate: Decompress,
    /// The stream's own two bytes and the dictionary's checksum come first.
    skip: usize,
}

impl HeaderReader {
    fn new() -> HeaderReader {
        let mut inflate = Decompress::new(false);
        // A stored block is how the dictionary gets into the window of a raw stream.
        let dictionary = dictionary();
        let mut out = vec![0; dictionary.len()];
        inflate.decompress(&stored(&dictionary), &mut out, FlushDecompress::Sync).expect("a stored block is valid");
        HeaderReader { inflate, skip: 6 }
    }

    fn read(&mut self, block: &[u8]) -> io::Result<Vec<(String, String)>> {
        let bad = |what: &str| io::Error::other(format!("header block: {what}"));
        let skipped = self.skip.min(block.len());
        self.skip -= skipped;
        let mut input = &block[skipped..];
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
            self.inflate.decompress(input, &mut buffer, FlushDecompress::Sync).map_err(|e| bad(&e.to_string()))?;
            let taken = usize::try_from(self.inflate.total_in() - before_in).expect("no more than there was");
            let made = usize::try_from(self.inflate.total_out() - before_out).expect("no more than there was room");
            input = &input[taken..];
            text.extend_from_slice(&buffer[..made]);
            if text.len() > HEADER_BYTES_MAX {
                return Err(bad("too large"));
            }
            if taken == 0 && made == 0 || input.is_empty() && made < buffer.len() {
                break;
            }
        }
        pairs(&text).ok_or_else(|| bad("malformed"))
    }
}

fn pairs(mut text: &[u8]) -> Option<Vec<(String, String)>> {
    let number = |text: &mut &[u8]| -> Option<usize> {
        let (head, rest) = text.split_first_chunk::<4>()?;
        *text = rest;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    };
    let count = number(&mut text)?;
    let mut all = Vec::new();
    for _ in 0..count {
        let mut word = || -> Option<String> {
            let length = number(&mut text)?;
            let (word, rest) = text.split_at_checked(length)?;
            text = rest;
            Some(String::from_utf8_lossy(word).into_owned())
        };
        let (name, value) = (word()?, word()?);
        all.push((name.to_lowercase(), value));
    }
    Some(all)
}

/// One block of deflate that is not compressed.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("blocks are small");
    let mut block = vec![0];
    block.put_u16_le(length);
    block.put_u16_le(!length);
    block.put_slice(bytes);
    block
}

#[derive(Default)]
struct HeaderWriter {
    begun: bool,
}

impl HeaderWriter {
    fn write(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut text = Vec::new();
        text.put_u32(u32::try_from(headers.len()).expect("few"));
        for word in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.put_u32(u32::try_from(word.len()).expect("short"));
            text.put_slice(word.as_bytes());
        }
        // Without a preset dictionary, which the header says and every reader takes.
        let mut block = if std::mem::replace(&mut self.begun, true) { Vec::new() } else { vec![0x78, 0x01] };
        block.extend(stored(&text));
        // An empty block is what makes readers hand out what they have.
        block.extend(stored(&[]));
        block
    }
}

/// Serves one session over an upgraded connection until process or client is gone.
pub async fn serve<S>(io: S, protocol: &'static str, wanted: Wanted, start: Start)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut streams = accept(io);
    let channels = match tokio::time::timeout(STREAMS_TIMEOUT, channels(&mut streams, protocol, wanted)).await {
        Ok(Some(channels)) => channels,
        Ok(None) => return,
        Err(_) => return tracing::debug!("the client did not open the streams it asked for"),
    };
    let (output, outputs) = mpsc::channel(QUEUE);
    let (to_session, input) = mpsc::channel(QUEUE);
    let Channels { error, stdin, stdout, stderr, resize } = channels;
    if let Some(stdin) = stdin {
        crate::task::spawn("spdy-stdin", typed(stdin, to_session.clone()));
    }
    if let Some(resize) = resize {
        crate::task::spawn("spdy-resize", resized(resize, to_session.clone()));
    }
    // The client is gone when nothing can be opened any more.
    let gone = crate::task::spawn("spdy-gone", async move {
        let _to_session = to_session;
        while streams.recv().await.is_some() {}
    });
    let writer = crate::task::spawn("spdy-output", say(outputs, protocol, error, stdout, stderr));
    run(start.await, Client { input, output }).await;
    let _ = writer.await;
    gone.abort();
}

struct Channels {
    error: Stream,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

/// Waits until the client has opened all it asked for. `None`: it went away.
async fn channels(streams: &mut mpsc::Receiver<Stream>, protocol: &str, wanted: Wanted) -> Option<Channels> {
    let sizes = wanted.tty && matches!(protocol, "v3.channel.k8s.io" | "v4.channel.k8s.io");
    let names =
        [("error", true), ("stdin", wanted.stdin), ("stdout", wanted.stdout), ("stderr", wanted.stderr && !wanted.tty), ("resize", sizes)];
    let missing = |found: &HashMap<String, Stream>| names.iter().any(|(name, wanted)| *wanted && !found.contains_key(*name));
    let mut found: HashMap<String, Stream> = HashMap::new();
    while missing(&found) {
        let stream = streams.recv().await?;
        found.insert(stream.header("streamtype").to_string(), stream);
    }
    Some(Channels {
        error: found.remove("error")?,
        stdin: found.remove("stdin"),
        stdout: found.remove("stdout"),
        stderr: found.remove("stderr"),
        resize: found.remove("resize"),
    })
}

async fn typed(stream: Stream, to: mpsc::Sender<Input>) {
    // Our side of it goes at once: it must not keep the connection.
    let Stream { mut data, .. } = stream;
    while let Some(bytes) = data.recv().await {
        if to.send(Input::Stdin(bytes)).await.is_err() {
            return;
        }
    }
    let _ = to.send(Input::StdinEnd).await;
}

/// Sizes come one to a line.
async fn resized(stream: Stream, to: mpsc::Sender<Input>) {
    let Stream { mut data, .. } = stream;
    let mut text: Vec<u8> = Vec::new();
    while let Some(bytes) = data.recv().await {
        text.extend_from_slice(&bytes);
        while let Some(end) = text.iter().position(|b| *b == b'}') {
            let line: Vec<u8> = text.drain(..=end).collect();
            if let Some(size) = window(&line)
                && to.send(size).await.is_err()
            {
                return;
            }
        }
        if text.len() > 4096 {
            return;
        }
    }
}

async fn say(mut outputs: mpsc::Receiver<Output>, protocol: &str, error: Stream, stdout: Option<Stream>, stderr: Option<Stream>) {
    while let Some(output) = outputs.recv().await {
        let (stream, bytes) = match output {
            Output::Stdout(bytes) => (stdout.as_ref(), bytes),
            Output::Stderr(bytes) => (stderr.as_ref(), bytes),
            Output::End(ended) if protocol == "v4.channel.k8s.io" => (Some(&error), exit_status(&ended).to_string().into()),
            Output::End(Ok(0)) => continue,
            Output::End(Ok(code)) => (Some(&error), exit_text(code).into()),
            Output::End(Err(message)) => (Some(&error), message.into()),
        };
        if let Some(stream) = stream
            && !stream.sender.send(&bytes).await
        {
            return;
        }
    }
    for stream in [stdout, stderr, Some(error)].into_iter().flatten() {
        stream.sender.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::stream::tests::cat;
    use flate2::{Compress, Compression, FlushCompress};

    #[test]
    fn the_dictionary_is_the_specifications() {
        let dictionary = dictionary();
        // The checksum is in the header of every client's first block.
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &dictionary {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((dictionary.len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    /// As a client makes them: without the dictionary, which a reader must not mind, but with its six bytes in front.
    struct Peer {
        io: tokio::io::DuplexStream,
        deflate: Compress,
        first: bool,
    }

    impl Peer {
        async fn open(&mut self, id: u32, kind: &str) {
            let mut text = Vec::new();
            text.put_u32(1);
            for word in ["streamtype", kind] {
                text.put_u32(word.len() as u32);
                text.put_slice(word.as_bytes());
            }
            let mut block = vec![0; 1024];
            let before = self.deflate.total_out();
            self.deflate.compress(&text, &mut block, FlushCompress::Sync).unwrap();
            block.truncate((self.deflate.total_out() - before) as usize);
            let mut body = id.to_be_bytes().to_vec();
            body.extend([0; 6]);
            if std::mem::take(&mut self.first) {
                body.extend([0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2]);
            }
            body.extend(block);
            self.io.write_all(&control_frame(SYN_STREAM, &body)).await.unwrap();
        }

        async fn frame(&mut self) -> (u32, u8, Vec<u8>) {
            let mut head = [0; 8];
            self.io.read_exact(&mut head).await.unwrap();
            let mut body = vec![0; u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize];
            self.io.read_exact(&mut body).await.unwrap();
            (u32::from_be_bytes([head[0], head[1], head[2], head[3]]), head[4], body)
        }
    }

    #[tokio::test]
    async fn a_session_over_three_streams() {
        let (io, server) = tokio::io::duplex(1 << 16);
        let wanted = Wanted { stdin: true, stdout: true, ..Wanted::default() };
        let serving = tokio::spawn(serve(server, "v4.channel.k8s.io", wanted, cat()));
        let mut peer = Peer { io, deflate: Compress::new(Compression::default(), false), first: true };
        for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
            peer.open(id, kind).await;
            let (word, _, body) = peer.frame().await;
            assert_eq!((word, &body[..4]), (0x8003_0002, &u32::to_be_bytes(id)[..]));
        }
        peer.io.write_all(&data_frame(3, 0, b"hello")).await.unwrap();
        assert_eq!(peer.frame().await, (5, 0, b"hello".to_vec()));
        peer.io.write_all(&data_frame(3, FIN, b"")).await.unwrap();
        let (id, _, status) = peer.frame().await;
        assert_eq!(id, 1);
        assert!(String::from_utf8(status).unwrap().contains("exit status 7"));
        assert_eq!((peer.frame().await, peer.frame().await), ((5, FIN, vec![]), (1, FIN, vec![])));
        let mut rest = Vec::new();
        assert_eq!(peer.io.read_to_end(&mut rest).await.unwrap(), 0);
        serving.await.unwrap();
    }
}
