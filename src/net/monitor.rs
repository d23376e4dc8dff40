//! Hears of other people's changes to nftables.
//!
//! The kernel announces every change of every table of a network namespace. Our own changes are told apart by their netlink
//! port. `nft flush ruleset` by an administrator is what this is for: the proxy puts the table back.
#![allow(unsafe_code)] // registering a descriptor of our own with the runtime

use std::os::fd::{AsRawFd, RawFd};

use nix::sys::socket::MsgFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::nft::{CHANGES, Error, Socket, is_damage, messages};

/// What was heard about one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Somebody else removed something of it.
    Damage,
    /// The queue overflowed: anything may have happened.
    Lost,
    Nothing,
}

/// A subscription, in the network namespace of the thread that opened it.
pub struct Monitor {
    socket: AsyncFd<Subscribed>,
}

struct Subscribed(Socket);

impl AsRawFd for Subscribed {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd.as_raw_fd()
    }
}

impl Monitor {
    pub fn open() -> Result<Monitor, Error> {
        let socket = Subscribed(Socket::open(CHANGES)?);
        // SAFETY: the descriptor is owned by the value that is registered, and that never exchanges it.
        let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Monitor { socket: registered.map_err(|e| Error::Open(e.into()))? })
    }

    /// Waits for news and reads all of it. `own` is the netlink port of our own changes. Safe to cancel.
    pub async fn hear(&mut self, table: &str, own: u32) -> Result<Heard, Error> {
        let mut ready = self.socket.readable_mut().await.map_err(Error::Receive)?;
        ready.clear_ready();
        drain(&mut self.socket.get_mut().0, table, own)
    }
}

fn drain(socket: &mut Socket, table: &str, own: u32) -> Result<Heard, Error> {
    let mut heard = Heard::Nothing;
    loop {
        match socket.fill(MsgFlags::MSG_DONTWAIT) {
            Ok(n) => {
                if messages(&socket.buffer[..n]).any(|message| is_damage(&message, table, own)) {
                    heard = Heard::Damage;
                }
            }
            Err(nix::Error::EAGAIN) => return Ok(heard),
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::ENOBUFS) if heard == Heard::Damage => {}
            Err(nix::Error::ENOBUFS) => heard = Heard::Lost,
            Err(error) => return Err(Error::Receive(error.into())),
        }
    }
}
