//! Keeps the resolver's sockets open while no daemon is there.
//!
//! `coracle hold <path>` is a process that does nothing but hold descriptors and listen on a Unix socket. The daemon puts the
//! resolver's sockets there ([`Holder::put`]); the next daemon takes them out again ([`Holder::take`]). So queries wait in the
//! kernel instead of being refused, and the network namespace the sockets live in stays. The words are one byte long and
//! will stay what they are: daemon and holder may be of different versions.
//!
//! Everything here blocks. Knows nothing of DNS.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// The hidden subcommand.
pub const COMMAND: &str = "hold";

const PUT: u8 = b'p';
const TAKE: u8 = b't';
const QUIT: u8 = b'q';
const DONE: u8 = b'k';
const DESCRIPTORS_MAX: usize = 8;
/// A peer that says nothing is no daemon of ours.
const PATIENCE: Duration = Duration::from_secs(5);

/// The process: `arguments` is the path to listen on.
#[allow(unsafe_code)] // fork
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ! {
    let Some(path) = arguments.next() else { std::process::exit(2) };
    let _ = std::fs::remove_file(&path);
    let listener = match UnixListener::bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            println!("listen on {}: {error}", Path::new(&path).display());
            std::process::exit(1);
        }
    };
    // The first process goes at once, so that the daemon has no child to reap.
    // SAFETY: nothing has started a thread yet.
    match unsafe { nix::unistd::fork() } {
        Ok(nix::unistd::ForkResult::Parent { .. }) => std::process::exit(0),
        Ok(nix::unistd::ForkResult::Child) => {}
        Err(error) => {
            println!("fork: {error}");
            std::process::exit(1);
        }
    }
    // Neither a terminal nor its signals are ours.
    let _ = nix::unistd::setsid();
    let held = hold(&listener, Path::new(&path));
    std::process::exit(i32::from(held.is_err()))
}

fn hold(listener: &UnixListener, path: &Path) -> io::Result<()> {
    // Whoever started us waits for the end of what we say.
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    let mut held = Vec::new();
    for stream in listener.incoming() {
        // A peer that goes wrong ends its conversation only.
        if stream.and_then(|stream| converse(&stream, &mut held)).unwrap_or(true) {
            continue;
        }
        return std::fs::remove_file(path);
    }
    Ok(())
}

/// Whether to go on.
fn converse(stream: &UnixStream, held: &mut Vec<OwnedFd>) -> io::Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let (word, given) = receive(stream)?;
    match word {
        PUT => *held = given,
        TAKE => {
            let fds: Vec<RawFd> = held.iter().map(|fd| fd.as_raw_fd()).collect();
            send(stream, DONE, &fds)?;
            return Ok(true);
        }
        _ => {}
    }
    let mut stream = stream;
    stream.write_all(&[DONE])?;
    Ok(word != QUIT)
}

fn send(stream: &UnixStream, word: u8, fds: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let with = if fds.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&[word])], with, MsgFlags::empty(), None)?;
    Ok(())
}

#[allow(unsafe_code)] // descriptors come as numbers
fn receive(stream: &UnixStream) -> io::Result<(u8, Vec<OwnedFd>)> {
    let mut word = [0];
    let mut space = cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let mut parts = [IoSliceMut::new(&mut word)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(list) = control {
            // SAFETY: the kernel made these descriptors for this very message; nobody else has their numbers.
            fds.extend(list.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    match message.bytes {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok((word[0], fds)),
    }
}

/// The daemon's side.
#[derive(Clone, Debug)]
pub struct Holder {
    path: PathBuf,
}

impl Holder {
    /// The one of the instance that lives in `run_dir`.
    pub fn of(run_dir: &Path) -> Holder {
        Holder { path: run_dir.join("resolver.sock") }
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Starts the process as `exe`; nothing may be held yet.
    pub fn start(&self, exe: &Path) -> io::Result<()> {
        let mut command = Command::new(exe);
        command.arg(COMMAND).arg(&self.path).env_clear().current_dir("/");
        let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(io::Error::other(String::from_utf8_lossy(&output.stdout).trim().to_string())),
        }
    }

    /// What the last daemon put there; none if nobody holds anything.
    pub fn take(&self) -> Vec<OwnedFd> {
        let asked = self.connect().and_then(|stream| send(&stream, TAKE, &[]).and_then(|()| receive(&stream)));
        asked.map(|(_, fds)| fds).unwrap_or_default()
    }

    /// Hands copies over, in place of what was held.
    pub fn put(&self, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let fds: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let stream = self.connect()?;
        send(&stream, PUT, &fds)?;
        receive(&stream).map(|_| ())
    }

    /// Ends the process, and with it what nobody else holds. Fine if there is none.
    pub fn end(&self) {
        // No answer is as good: it is gone.
        let _ = self.connect().and_then(|stream| send(&stream, QUIT, &[]).and_then(|()| receive(&stream)));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn what_was_put_can_be_taken_again_and_again() {
        let dir = std::env::temp_dir().join(format!("coracle-holder-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let holder = Holder::of(&dir);
        assert!(holder.take().is_empty(), "nobody is there");
        let path = holder.path.clone();
        let listener = UnixListener::bind(&path).unwrap();
        let process = std::thread::spawn(move || {
            let mut held = Vec::new();
            while converse(&listener.accept().unwrap().0, &mut held).unwrap_or(true) {}
        });
        assert!(holder.take().is_empty(), "nothing was put yet");
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        holder.put(&[socket.as_fd()]).unwrap();
        drop(socket);
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"queued", address).unwrap();
        for _ in 0..2 {
            let taken = std::net::UdpSocket::from(holder.take().remove(0));
            assert_eq!(taken.local_addr().unwrap(), address);
        }
        let taken = std::net::UdpSocket::from(holder.take().remove(0));
        let mut buffer = [0; 16];
        let n = taken.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"queued");
        holder.end();
        process.join().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
