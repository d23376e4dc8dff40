//! The daemon's side of a sandbox's socket.
//!
//! One connection per request; the answer is waited for without blocking a thread. Nothing here retries: a shim that does not answer is
//! either being asked for something slow or is gone, and `linux.rs` knows how to tell.
#![allow(unsafe_code)] // tokio wants it promised that a registered descriptor stays open

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::protocol::{Call, Reply, Request, VERSION, decode_reply, encode};
use super::socket;

pub struct Connection {
    socket: AsyncFd<OwnedFd>,
}

impl Connection {
    /// Fails at once if nobody listens.
    pub fn open(path: &Path) -> io::Result<Connection> {
        Ok(Connection { socket: watched(socket::dial(path)?)? })
    }

    pub async fn send(&self, call: Call, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let frame = encode(&Request { version: VERSION, call });
        self.socket.async_io(Interest::WRITABLE, |socket| socket::send(socket, &frame, descriptors)).await
    }

    /// Without waiting: for frames so small that there is always room for them.
    pub fn send_now(&self, call: Call) -> io::Result<()> {
        socket::send(self.socket.get_ref(), &encode(&Request { version: VERSION, call }), &[])
    }

    /// `None`: the shim closed the connection.
    pub async fn receive(&self) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
        let received = self.socket.async_io(Interest::READABLE, |socket| socket::receive(socket)).await?;
        let Some((frame, descriptors)) = received else { return Ok(None) };
        Ok(Some((decode_reply(&frame).map_err(io::Error::other)?, descriptors)))
    }
}

/// Registers a non-blocking descriptor with the runtime.
pub(crate) fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` given away for good is open for as long as it exists, and nothing replaces it.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

/// One request, one answer.
pub async fn call(path: &Path, call: Call) -> io::Result<Reply> {
    let connection = Connection::open(path)?;
    connection.send(call, &[]).await?;
    match connection.receive().await? {
        Some((reply, _)) => Ok(reply),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the shim closed the connection")),
    }
}
