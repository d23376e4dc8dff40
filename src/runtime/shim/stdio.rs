//! From a container's pipes or terminal to its log file.
//!
//! Reads are bounded per turn, so that one chatty container cannot starve the others of a pod. A log that cannot be written (disk full) loses
//! lines and counts them; the container is never blocked by it.

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

/// One stream of a container on its way into the log.
pub(super) struct Pump {
    source: Option<File>,
    splitter: Splitter,
}

impl Pump {
    pub fn new(source: OwnedFd, stream: Stream) -> io::Result<Pump> {
        let flags = OFlag::from_bits_retain(fcntl(&source, FcntlArg::F_GETFL)?);
        fcntl(&source, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Pump { source: Some(source.into()), splitter: Splitter::new(stream) })
    }

    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(AsFd::as_fd)
    }

    /// One read's worth. False when there is nothing more for now, or ever.
    pub fn turn(&mut self, log: &mut Log) -> bool {
        let Some(source) = &mut self.source else { return false };
        let mut buffer = [0; READ_BYTES];
        match source.read(&mut buffer) {
            Ok(read @ 1..) => {
                let mut lines = Vec::with_capacity(read + read / 2 + 64);
                self.splitter.feed(&buffer[..read], now(), &mut lines);
                log.write(&lines);
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
    pub fn drain(&mut self, log: &mut Log) {
        // A grandchild outside the container may keep writing: it is not waited for.
        for _ in 0..1024 {
            if !self.turn(log) {
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
