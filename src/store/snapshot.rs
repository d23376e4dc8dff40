//! Snapshot files (`.ksnap`): the whole state at one revision in one verified file.
//!
//! It is the second copy should the checkpoint database turn out bad, and the backup format. Written beside, synced,
//! renamed, then read back and verified; the newest two are kept. Frames of about a megabyte of deflated rows, each with a
//! CRC; the last frame holds the row count, the set hash and a SHA-256 over everything before it.
//! Start at [`save`] and [`load`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::command::{Input, put_bytes, put_u32};
use super::fs::{Fs, FsFile};
use super::raft::Pin;
use super::state::Row;
use super::tables::{Deflater, Head, Sum, decode_plain, encode_plain, inflate};

const MAGIC: &[u8; 8] = b"CORAKSN1";
const FRAME_BYTES: usize = 1 << 20;
/// No frame is longer: a value at its largest, and what was there before it.
const FRAME_BYTES_MAX: usize = 8 << 20;
const KEPT: usize = 2;

/// A verified snapshot on disk.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    pub path: PathBuf,
    pub head: Head,
    pub bytes: u64,
}

struct Output {
    file: Arc<dyn FsFile>,
    at: u64,
    digest: Sha256,
}

impl Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        self.digest.update(bytes);
        Ok(())
    }

    fn frame(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        let mut out = Vec::with_capacity(body.len() + 9);
        put_u32(&mut out, body.len());
        out.push(kind);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&out), body);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(body);
        self.write(&out)
    }

    fn rows(&mut self, plain: &mut Vec<u8>) -> io::Result<()> {
        let mut body = Vec::new();
        put_u32(&mut body, plain.len());
        body.extend(Deflater::new().deflate(plain));
        plain.clear();
        self.frame(2, &body)
    }
}

/// Writes and verifies a snapshot of the pinned state in `dir`, then removes all but the newest ones.
pub(crate) fn save(fs: &dyn Fs, dir: &Path, cluster: u128, pin: &Pin) -> io::Result<Saved> {
    fs.create_dir_all(dir)?;
    let index = pin.applied.map_or(0, |at| at.index);
    let saved = write(fs, &dir.join(format!("{index:020}-{}.ksnap", pin.revision)), cluster, pin)?;
    prune(fs, dir)?;
    Ok(saved)
}

/// Writes and verifies a snapshot of the pinned state as `path`.
pub(crate) fn write(fs: &dyn Fs, path: &Path, cluster: u128, pin: &Pin) -> io::Result<Saved> {
    let head = Head { cluster, applied: pin.applied, members: pin.members.clone(), revision: pin.revision };
    let beside = path.with_extension("ksnap.tmp");
    let mut output = Output { file: fs.create(&beside)?, at: 0, digest: Sha256::new() };
    output.write(MAGIC)?;
    let mut body = Vec::new();
    head.encode(&mut body);
    output.frame(1, &body)?;
    let mut sum = Sum::default();
    let mut plain = Vec::new();
    for row in pin.rows(0).flatten() {
        sum.add(&row.key, row.revision);
        encode_plain(&row, &mut plain);
        if plain.len() >= FRAME_BYTES {
            output.rows(&mut plain)?;
        }
    }
    if !plain.is_empty() {
        output.rows(&mut plain)?;
    }
    let mut end = Vec::new();
    sum.encode(&mut end);
    put_bytes(&mut end, &output.digest.clone().finalize());
    output.frame(3, &end)?;
    output.file.sync()?;
    fs.rename(&beside, path)?;
    fs.sync_dir(path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    let verified = read(fs, path, |_| {})?;
    if verified != head {
        return Err(damaged(path, "it does not read back as written"));
    }
    Ok(Saved { path: path.to_path_buf(), head, bytes: output.at })
}

fn damaged(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

/// Reads a snapshot and checks all of it.
pub(crate) fn load(fs: &dyn Fs, path: &Path) -> io::Result<(Head, Vec<Row>)> {
    let mut rows = Vec::new();
    let head = read(fs, path, |row| rows.push(row))?;
    Ok((head, rows))
}

struct Source<'a> {
    file: Arc<dyn FsFile>,
    at: u64,
    digest: Sha256,
    path: &'a Path,
}

impl Source<'_> {
    fn take(&mut self, n: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; n];
        if self.file.read_at(&mut bytes, self.at)? < n {
            return Err(damaged(self.path, "it ends too early"));
        }
        self.at += n as u64;
        Ok(bytes)
    }

    /// Kind and body of the next frame. The digest lags by the frame, which the end frame needs.
    fn frame(&mut self) -> io::Result<(u8, Vec<u8>, Vec<u8>)> {
        let header = self.take(9)?;
        let length = u32::from_le_bytes(header[..4].try_into().expect("four bytes")) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(damaged(self.path, "a frame has an impossible length"));
        }
        let body = self.take(length)?;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..5]), &body);
        if header[5..] != crc.to_le_bytes() {
            return Err(damaged(self.path, &format!("the frame before offset {} is damaged", self.at)));
        }
        Ok((header[4], header, body))
    }
}

/// The heading alone, for what a snapshot covers.
pub(crate) fn head(fs: &dyn Fs, path: &Path) -> io::Result<Head> {
    let mut source = Source { file: fs.open(path)?, at: 8, digest: Sha256::new(), path };
    let (kind, _, body) = source.frame()?;
    let head = (kind == 1).then(|| Head::decode(&mut Input(&body))).flatten();
    head.ok_or_else(|| damaged(path, "it has no heading"))
}

fn read(fs: &dyn Fs, path: &Path, mut row: impl FnMut(Row)) -> io::Result<Head> {
    let mut source = Source { file: fs.open(path)?, at: 0, digest: Sha256::new(), path };
    let magic = source.take(8)?;
    if magic != MAGIC {
        return Err(damaged(path, "it is not a store snapshot of this format"));
    }
    source.digest.update(&magic);
    let mut head = None;
    let mut sum = Sum::default();
    loop {
        let (kind, header, body) = source.frame()?;
        let mut input = Input(&body);
        match kind {
            1 => head = Head::decode(&mut input).filter(|_| input.0.is_empty()),
            2 => {
                let length = input.u32().ok_or_else(|| damaged(path, "an empty frame"))? as usize;
                let plain = (length <= FRAME_BYTES_MAX).then(|| inflate(input.0, length)).flatten();
                let plain = plain.ok_or_else(|| damaged(path, "a frame cannot be inflated"))?;
                let mut input = Input(&plain);
                while !input.0.is_empty() {
                    let next = decode_plain(&mut input).ok_or_else(|| damaged(path, "a row is cut short"))?;
                    sum.add(&next.key, next.revision);
                    row(next);
                }
            }
            3 => {
                let expected = Sum::decode(&mut input);
                let digest = input.slice();
                let whole = source.file.size()? == source.at && input.0.is_empty();
                if !whole || expected != Some(sum) || digest != Some(&source.digest.clone().finalize()[..]) {
                    return Err(damaged(path, "its contents do not add up"));
                }
                return head.ok_or_else(|| damaged(path, "it has no heading"));
            }
            _ => return Err(damaged(path, "a frame of unknown kind")),
        }
        source.digest.update(&header);
        source.digest.update(&body);
    }
}

/// Snapshot files, newest first.
pub(crate) fn list(fs: &dyn Fs, dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = match fs.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    names.retain(|name| name.ends_with(".ksnap"));
    Ok(names.iter().rev().map(|name| dir.join(name)).collect())
}

fn prune(fs: &dyn Fs, dir: &Path) -> io::Result<()> {
    for path in list(fs, dir)?.iter().skip(KEPT) {
        fs.remove(path)?;
    }
    for name in fs.list(dir)?.iter().filter(|name| name.ends_with(".tmp")) {
        fs.remove(&dir.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
