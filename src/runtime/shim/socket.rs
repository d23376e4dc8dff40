//! SEQPACKET sockets: one message, with descriptors beside it. Shared by shim and daemon; never blocks longer than its socket does.
#![allow(unsafe_code)] // received descriptors arrive as numbers

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, recvmsg,
    sendmsg, socket, socketpair,
};

use super::protocol::FRAME_BYTES_MAX;

fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

pub(super) fn listener(path: &Path) -> io::Result<OwnedFd> {
    let socket = open()?;
    let _ = std::fs::remove_file(path);
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(64)?)?;
    Ok(socket)
}

pub(crate) fn dial(path: &Path) -> io::Result<OwnedFd> {
    let socket = open()?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// Blocking ends, for a helper and the shim that waits for it in its poll loop.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

pub(crate) fn send(socket: impl AsFd, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights };
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(frame)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// `None`: the other end is closed. `WouldBlock` as the socket says.
pub(crate) fn receive(socket: impl AsFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut frame = vec![0; FRAME_BYTES_MAX];
    let mut control = nix::cmsg_space!([RawFd; 4]);
    let mut descriptors = Vec::new();
    let (length, truncated) = {
        let mut buffers = [IoSliceMut::new(&mut frame)];
        let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut buffers, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = part {
                // SAFETY: the kernel just installed these descriptors for us alone.
                descriptors.extend(received.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC))
    };
    if truncated {
        return Err(io::Error::other("frame is too long"));
    }
    frame.truncate(length);
    frame.shrink_to_fit();
    Ok((length > 0).then_some((frame, descriptors)))
}
