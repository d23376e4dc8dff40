//! Sessions of exec and attach, whatever carries them: [`websocket`] or [`spdy`]; and port-forwarding ([`forward`]).
//!
//! A carrier turns its frames into [`Input`] and [`Output`] into its frames; [`run`] couples them with the process. The last bytes
//! of a process are sent before its status, its status before the close.

pub mod forward;
pub mod spdy;
pub mod websocket;

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::api::value::Value;
use crate::runtime::{self, ExecSession};
use crate::value;

/// What the client sends.
#[derive(Debug, PartialEq)]
pub enum Input {
    Stdin(Bytes),
    StdinEnd,
    Resize { columns: u16, rows: u16 },
}

/// What the client gets. `End` comes last.
#[derive(Debug, PartialEq)]
pub enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    End(Ended),
}

/// The exit code, or why there is none.
pub type Ended = Result<i32, String>;

/// One client. Its input ends when it has gone; dropping its output closes the connection.
pub struct Client {
    pub input: mpsc::Receiver<Input>,
    pub output: mpsc::Sender<Output>,
}

/// Which streams a session has.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// How a session begins, once the client's end is open: a refused upgrade runs nothing.
pub type Start = runtime::BoxFuture<'static, Result<ExecSession, String>>;

const CHUNK_BYTES: usize = 32 << 10;
const QUEUE: usize = 16;
/// How long streams may stay open after the process ended: a grandchild may hold them for ever.
const DRAIN: Duration = Duration::from_millis(500);

/// The final Status of a process.
pub fn exit_status(result: &Ended) -> Value {
    match result {
        Ok(0) => value!({"metadata": {}, "status": "Success"}),
        Ok(code) => value!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": exit_text(*code),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}}),
        Err(message) => value!({"metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": format!("Internal error occurred: {message}"), "details": {"causes": [{"message": message.as_str()}]}}),
    }
}

fn exit_text(code: i32) -> String {
    format!("command terminated with non-zero exit code: exit status {code}")
}

/// `{"Width":80,"Height":24}`.
fn window(bytes: &[u8]) -> Option<Input> {
    let value: Value = serde_json::from_slice::<serde_json::Value>(bytes).ok()?.into();
    let side = |key: &str| u16::try_from(value.i64_at(&[key])?).ok();
    Some(Input::Resize { columns: side("Width")?, rows: side("Height")? })
}

/// Couples a process with a client until one of them is gone.
pub async fn run(session: Result<ExecSession, String>, mut client: Client) {
    let ended = match session {
        Ok(session) => couple(session, &mut client).await,
        Err(message) => Some(Err(message)),
    };
    if let Some(ended) = ended {
        // A client that is gone needs no status.
        let _ = client.output.send(Output::End(ended)).await;
    }
}

/// `None` if the client went away first.
async fn couple(session: ExecSession, client: &mut Client) -> Option<Ended> {
    let ExecSession { stdin, stdout, stderr, mut exit, control } = session;
    let pumps = [(Output::Stdout as fn(Bytes) -> Output, stdout), (Output::Stderr, stderr)].map(|(channel, stream)| {
        let out = client.output.clone();
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
            input = client.input.recv() => match input? {
                Input::Stdin(bytes) => {
                    if let Some(stdin) = &to_stdin {
                        tokio::select! {
                            sent = stdin.send(bytes) => if sent.is_err() { to_stdin = None },
                            code = &mut exit => break code,
                        }
                    }
                }
                Input::StdinEnd => to_stdin = None,
                Input::Resize { columns, rows } => control.resize(columns, rows),
            },
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

async fn pump(channel: fn(Bytes) -> Output, mut stream: Box<dyn AsyncRead + Send + Unpin>, out: mpsc::Sender<Output>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        if out.send(channel(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
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

    pub struct Nothing;
    impl ExecControl for Nothing {
        fn resize(&self, _: u16, _: u16) {}
        fn kill(&self) {}
    }

    /// What is typed comes back until typing ends; then it exits with 7.
    pub fn cat() -> Start {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (done, is_done) = tokio::sync::oneshot::channel::<()>();
        crate::task::spawn("test-cat", async move {
            let (mut read, mut write) = tokio::io::split(far);
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            drop((read, write));
            let _ = done.send(());
        });
        let (stdout, stdin) = tokio::io::split(near);
        let exit = Box::pin(async move {
            let _ = is_done.await;
            Ok(7)
        });
        let session =
            ExecSession { stdin: Some(Box::new(stdin)), stdout: Some(Box::new(stdout)), stderr: None, exit, control: Arc::new(Nothing) };
        Box::pin(std::future::ready(Ok(session)))
    }

    #[test]
    fn windows_and_statuses() {
        assert_eq!(window(br#"{"Width":80,"Height":24}"#), Some(Input::Resize { columns: 80, rows: 24 }));
        assert_eq!(window(b"{}"), None);
        assert_eq!(exit_status(&Ok(3)).list_at(&["details", "causes"])[0].str_at(&["message"]), "3");
    }
}
