//! From a container's pipes or terminal to its log file and to those attached; from them to its standard input.
//!
//! Reads are bounded per turn, so that one chatty container cannot starve the others of a pod. A log that cannot be written (disk full) loses
//! lines and counts them, an attached client that does not keep up is cut off; the container is never blocked by either.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::runtime::log::{Splitter, Stream};

const READ_BYTES: usize = 32 * 1024;

pub(super) struct Log {
    path: PathBuf,
    file: Option<File>,
    pub lost_bytes: u64,
}

impl Log {
    pub fn open(path: &str) -> io::Result<Log> {
        let mut log = Log { path: PathBuf::from(path), file: None, lost_bytes: 0 };
        log.reopen()?;
        Ok(log)
    }

    pub fn reopen(&mut self) -> io::Result<()> {
        if self.path.as_os_str().is_empty() {
            return Ok(());
        }
        fs::create_dir_all(self.path.parent().unwrap_or(Path::new("/")))?;
        let options = { File::options() }.create(true).append(true).to_owned();
        let file = std::os::unix::fs::OpenOptionsExt::mode(&mut { options }, 0o640).open(&self.path)?;
        self.file = Some(file);
        Ok(())
    }

    fn write(&mut self, lines: &[u8]) {
        if let Some(file) = &mut self.file
            && file.write_all(lines).is_err()
        {
            self.lost_bytes += lines.len() as u64;
        }
    }
}

/// One client at a container's streams.
pub(super) struct Attached {
    pub connection: u64,
    pub stdin: Option<File>,
    pub stdout: Option<File>,
    pub stderr: Option<File>,
}

/// What a client may lag behind.
const ATTACHED_BYTES: i32 = 1 << 20;

impl Attached {
    pub fn new(connection: u64, descriptors: [OwnedFd; 3], wanted: [bool; 3]) -> io::Result<Attached> {
        let [stdin, stdout, stderr] = descriptors;
        for output in [&stdout, &stderr] {
            set_nonblocking(output)?;
            // Less is no harm: it may be cut off sooner.
            let _ = fcntl(output, FcntlArg::F_SETPIPE_SZ(ATTACHED_BYTES));
        }
        set_nonblocking(&stdin)?;
        let keep = |descriptor: OwnedFd, wanted: bool| wanted.then(|| File::from(descriptor));
        Ok(Attached { connection, stdin: keep(stdin, wanted[0]), stdout: keep(stdout, wanted[1]), stderr: keep(stderr, wanted[2]) })
    }

    /// A client that reads too slowly, or not any more, loses the stream.
    fn hear(&mut self, stream: Stream, bytes: &[u8]) {
        let output = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        if let Some(file) = output
            && file.write_all(bytes).is_err()
        {
            *output = None;
        }
    }
}

fn set_nonblocking(descriptor: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL)?);
    fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// A container's standard input: its pipe or terminal, and what it has not taken yet.
pub(super) struct Input {
    target: File,
    pending: Vec<u8>,
    once: bool,
}

/// What reading from an attached client's standard input came to.
#[derive(PartialEq)]
pub(super) enum Typed {
    More,
    /// The client has no more to say.
    End,
    /// The container takes no more from anyone.
    Closed,
}

impl Input {
    pub fn new(target: OwnedFd, once: bool) -> io::Result<Input> {
        set_nonblocking(&target)?;
        Ok(Input { target: target.into(), pending: Vec::new(), once })
    }

    /// Where to wait until the container takes more; `None` if it has taken everything.
    pub fn waiting(&self) -> Option<BorrowedFd<'_>> {
        (!self.pending.is_empty()).then(|| self.target.as_fd())
    }

    /// Takes one read's worth from a client, once what came before is gone.
    pub fn take(&mut self, from: &mut File) -> Typed {
        let mut buffer = [0; READ_BYTES];
        match from.read(&mut buffer) {
            Ok(0) if self.once => Typed::Closed,
            Ok(0) => Typed::End,
            Ok(read) => {
                self.pending.extend_from_slice(&buffer[..read]);
                self.give()
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Typed::More,
            Err(_) => Typed::End,
        }
    }

    pub fn give(&mut self) -> Typed {
        match self.target.write(&self.pending) {
            Ok(written) => {
                self.pending.drain(..written);
                Typed::More
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Typed::More,
            Err(_) => Typed::Closed,
        }
    }

    /// The terminal, for who wants to set its size.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.target.as_fd()
    }
}

/// One stream of a container on its way into the log.
pub(super) struct Pump {
    source: Option<File>,
    stream: Stream,
    splitter: Splitter,
}

impl Pump {
    pub fn new(source: OwnedFd, stream: Stream) -> io::Result<Pump> {
        set_nonblocking(&source)?;
        Ok(Pump { source: Some(source.into()), stream, splitter: Splitter::new(stream) })
    }

    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(AsFd::as_fd)
    }

    /// One read's worth. False when there is nothing more for now, or ever.
    pub fn turn(&mut self, log: &mut Log, attached: &mut [Attached]) -> bool {
        let Some(source) = &mut self.source else { return false };
        let mut buffer = [0; READ_BYTES];
        match source.read(&mut buffer) {
            Ok(read @ 1..) => {
                let mut lines = Vec::with_capacity(read + read / 2 + 64);
                self.splitter.feed(&buffer[..read], now(), &mut lines);
                log.write(&lines);
                attached.iter_mut().for_each(|client| client.hear(self.stream, &buffer[..read]));
                true
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => false,
            // End of the pipe, or a terminal whose last user has gone.
            Ok(_) | Err(_) => {
                self.close(log);
                false
            }
        }
    }

    /// Takes what is there already, without waiting for those who may still hold the other end.
    pub fn drain(&mut self, log: &mut Log, attached: &mut [Attached]) {
        // A grandchild outside the container may keep writing: it is not waited for.
        for _ in 0..1024 {
            if !self.turn(log, attached) {
                break;
            }
        }
        self.close(log);
    }

    fn close(&mut self, log: &mut Log) {
        if self.source.take().is_some() {
            let mut lines = Vec::new();
            self.splitter.finish(now(), &mut lines);
            log.write(&lines);
        }
    }
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}
