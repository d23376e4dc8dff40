//! One layer tar → one directory overlayfs can use as a lower one. No path ever leaves that directory.
//!
//! Every parent is opened with `openat2(RESOLVE_IN_ROOT)` below the layer, and the last part is then handled through
//! `/proc/self/fd/<parent>/<name>` by calls that do not follow it. Whiteouts become what overlayfs reads: a 0:0 character device
//! for a removed name, the `trusted.overlay.opaque` attribute for a replaced directory. Layers are unpacked apart from each other, so two things
//! look into the layers below: a directory the tar only implies copies its attributes from there, and so does a hard link's file.
//! Start at [`unpack`].
#![allow(unsafe_code)] // lsetxattr has no safe wrapper in our dependencies

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::Error;
use super::reference::Digest;
use super::store::LayerMeta;

/// Gzip, zstd or plain, told apart by their first bytes.
pub fn decompress<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::with_capacity(1 << 16, reader);
    let head = io::BufRead::fill_buf(&mut reader)?;
    if head.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader)))
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || (head.len() > 3 && head[1..4] == [0x2a, 0x4d, 0x18]) {
        Ok(Box::new(Zstd { frame: None, rest: Some(reader) }))
    } else {
        Ok(Box::new(reader))
    }
}

/// Zstandard frames one after another, skippable ones skipped.
struct Zstd<R: Read> {
    frame: Option<ruzstd::decoding::StreamingDecoder<BufReader<R>, ruzstd::decoding::FrameDecoder>>,
    /// Between two frames.
    rest: Option<BufReader<R>>,
}

impl<R: Read> Zstd<R> {
    /// False at the end of the input.
    fn next_frame(&mut self) -> io::Result<bool> {
        let Some(mut rest) = self.rest.take() else { return Ok(false) };
        loop {
            let head = io::BufRead::fill_buf(&mut rest)?;
            if head.is_empty() {
                return Ok(false);
            }
            if head[0] & 0xf0 != 0x50 || head.len() < 8 || head[1..4] != [0x2a, 0x4d, 0x18] {
                break;
            }
            let length = u32::from_le_bytes(head[4..8].try_into().expect("four bytes"));
            io::copy(&mut (&mut rest).take(8 + u64::from(length)), &mut io::sink())?;
        }
        self.frame = Some(ruzstd::decoding::StreamingDecoder::new(rest).map_err(io::Error::other)?);
        Ok(true)
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(frame) = &mut self.frame {
                let read = frame.read(buffer)?;
                if read > 0 {
                    return Ok(read);
                }
                self.rest = self.frame.take().map(ruzstd::decoding::StreamingDecoder::into_inner);
            }
            if !self.next_frame()? {
                return Ok(0);
            }
        }
    }
}

/// What unpacking a layer found out.
#[derive(Clone, Debug, PartialEq)]
pub struct Unpacked {
    pub diff_id: Digest,
    pub meta: LayerMeta,
}

/// Unpacks an uncompressed layer tar into the empty directory `root`. `lowers` are the layers below it, top first.
pub fn unpack(layer: &str, tar: impl Read, root: &Path, lowers: &[PathBuf]) -> Result<Unpacked, Error> {
    let failed = |source| Error::Entry { layer: layer.to_string(), entry: String::new(), source };
    let mut hashed = Hashed { reader: tar, hash: Sha256::new() };
    let mut target = Target::open(root, lowers).map_err(failed)?;
    {
        let mut archive = tar::Archive::new(&mut hashed);
        for entry in archive.entries().map_err(failed)? {
            let mut entry = entry.map_err(failed)?;
            let path = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
            target.entry(&path, &mut entry).map_err(|source| Error::Entry {
                layer: layer.to_string(),
                entry: path.display().to_string(),
                source,
            })?;
        }
    }
    // The digest covers what follows the end marker too.
    io::copy(&mut hashed, &mut io::sink()).map_err(failed)?;
    target.finish().map_err(failed)?;
    Ok(Unpacked { diff_id: Digest::from_hash(&hashed.hash.finalize()), meta: target.meta })
}

struct Hashed<R> {
    reader: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

struct Target<'a> {
    root: OwnedFd,
    lowers: &'a [PathBuf],
    /// Directories' times are set last: everything put into them changes them.
    directory_times: BTreeMap<PathBuf, i64>,
    meta: LayerMeta,
}

/// A name in an opened directory. The path is only good while `_parent` lives.
struct Place {
    _parent: OwnedFd,
    path: PathBuf,
}

impl<'a> Target<'a> {
    fn open(root: &Path, lowers: &'a [PathBuf]) -> io::Result<Target<'a>> {
        fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
        let root = fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(root)?;
        let mut target = Target { root: root.into(), lowers, directory_times: BTreeMap::new(), meta: LayerMeta::default() };
        if let Some(lower) = target.lower(Path::new("")) {
            // The root directory itself, if this layer does not say.
            let root = PathBuf::from(format!("/proc/self/fd/{}/.", target.root.as_raw_fd()));
            target.copy_attributes(&lower.1, &root, Path::new(""))?;
        }
        Ok(target)
    }

    fn entry<R: Read>(&mut self, path: &Path, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        let relative = clean(path)?;
        let Some(name) = relative.file_name().map(OsStr::to_owned) else {
            return self.root_entry(entry);
        };
        let parent = relative.parent().unwrap_or(Path::new("")).to_path_buf();
        let opened = self.make_parents(&parent)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(&parent, opened, hidden);
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd())).join(&name);
        let place = Place { _parent: opened, path };
        self.make_room(&place, kind)?;
        self.meta.inodes += 1;
        if kind == EntryType::Link {
            return self.hard_link(&place, entry);
        }
        self.create(&place, kind, entry)?;
        self.attributes(&relative, &place.path, kind, entry)
    }

    fn root_entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let path = PathBuf::from(format!("/proc/self/fd/{}/.", self.root.as_raw_fd()));
        self.attributes(Path::new(""), &path, EntryType::Directory, entry)
    }

    /// Opens a directory of the layer, making what is missing of it as the layers below have it.
    fn make_parents(&mut self, directory: &Path) -> io::Result<OwnedFd> {
        if let Ok(opened) = open_in(&self.root, directory, OFlag::O_DIRECTORY) {
            return Ok(opened);
        }
        let mut so_far = PathBuf::new();
        let mut opened = open_in(&self.root, Path::new(""), OFlag::O_DIRECTORY)?;
        for part in directory.components() {
            let name = part.as_os_str();
            so_far.push(name);
            opened = match open_in(&self.root, &so_far, OFlag::O_DIRECTORY) {
                Ok(opened) => opened,
                Err(_) => {
                    let path = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd())).join(name);
                    remove(&path)?;
                    fs::create_dir(&path)?;
                    self.meta.inodes += 1;
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                    if let Some((_, attributes)) = self.lower(&so_far).filter(|(_, found)| found.is_dir()) {
                        let relative = so_far.clone();
                        self.copy_attributes(&attributes, &path, &relative)?;
                    }
                    open_in(&self.root, &so_far, OFlag::O_DIRECTORY)?
                }
            };
        }
        Ok(opened)
    }

    /// The topmost layer below that has this path.
    fn lower(&self, relative: &Path) -> Option<(PathBuf, fs::Metadata)> {
        self.lowers.iter().find_map(|lower| {
            let root = fs::File::open(lower).ok()?;
            let found = open_in(&root, relative, OFlag::O_NOFOLLOW).ok()?;
            let metadata = fs::symlink_metadata(format!("/proc/self/fd/{}/.", found.as_raw_fd()))
                .or_else(|_| fs::metadata(format!("/proc/self/fd/{}", found.as_raw_fd())))
                .ok()?;
            Some((lower.clone(), metadata))
        })
    }

    fn copy_attributes(&mut self, from: &fs::Metadata, to: &Path, relative: &Path) -> io::Result<()> {
        lchown(to, Some(from.uid()), Some(from.gid()))?;
        fs::set_permissions(to, fs::Permissions::from_mode(from.mode() & 0o7777))?;
        self.directory_times.insert(relative.to_path_buf(), from.mtime());
        Ok(())
    }

    fn whiteout(&mut self, parent: &Path, opened: OwnedFd, hidden: &[u8]) -> io::Result<()> {
        let directory = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        if hidden == b".wh..opq" {
            let _ = parent;
            return set_xattr(&directory.join("."), OsStr::new("trusted.overlay.opaque"), b"y");
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." || hidden.starts_with(b".wh.") {
            // aufs' own bookkeeping (`.wh..wh.plnk`, …) has no meaning here.
            return Ok(());
        }
        let path = directory.join(OsStr::from_bytes(hidden));
        if fs::symlink_metadata(&path).is_ok() {
            // It hides the layers below only; this layer has put something there itself.
            if fs::symlink_metadata(&path)?.is_dir() {
                return set_xattr(&path, OsStr::new("trusted.overlay.opaque"), b"y");
            }
            return Ok(());
        }
        self.meta.inodes += 1;
        mknod(&path, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).map_err(io::Error::from)
    }

    /// A later entry replaces an earlier one of the same name; a directory entry keeps the directory that is there.
    fn make_room(&self, place: &Place, kind: EntryType) -> io::Result<()> {
        match fs::symlink_metadata(&place.path) {
            Err(_) => Ok(()),
            Ok(there) if there.is_dir() && kind == EntryType::Directory => Ok(()),
            Ok(there) => {
                let whiteout = there.rdev() == 0 && there.mode() & libc::S_IFMT == libc::S_IFCHR;
                remove(&place.path)?;
                if whiteout && kind == EntryType::Directory {
                    // Removed below and made again here: nothing from below may shine through.
                    fs::create_dir(&place.path)?;
                    set_xattr(&place.path, OsStr::new("trusted.overlay.opaque"), b"y")?;
                }
                Ok(())
            }
        }
    }

    fn hard_link<R: Read>(&mut self, place: &Place, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let link = entry.link_name_bytes().ok_or_else(|| io::Error::other("hard link without a target"))?;
        let link = clean(Path::new(OsStr::from_bytes(&link)))?;
        let name = link.file_name().ok_or_else(|| io::Error::other("hard link to the root"))?.to_owned();
        let parent = link.parent().unwrap_or(Path::new(""));
        if let Ok(directory) = open_in(&self.root, parent, OFlag::O_DIRECTORY) {
            let source = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(&name);
            match fs::hard_link(&source, &place.path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // The file is in a layer below: bring it up, as overlayfs would.
        let (lower, attributes) =
            self.lower(&link).ok_or_else(|| io::Error::other(format!("hard link target {} is missing", link.display())))?;
        let root = fs::File::open(lower)?;
        let source = open_in(&root, &link, OFlag::O_NOFOLLOW)?;
        if !attributes.is_file() {
            return Err(io::Error::other(format!("hard link target {} is not a file", link.display())));
        }
        let mut from = fs::File::open(format!("/proc/self/fd/{}", source.as_raw_fd()))?;
        let mut to = create_file(&place.path)?;
        self.meta.size += io::copy(&mut from, &mut to)?;
        lchown(&place.path, Some(attributes.uid()), Some(attributes.gid()))?;
        fs::set_permissions(&place.path, fs::Permissions::from_mode(attributes.mode() & 0o7777))?;
        set_mtime(&place.path, attributes.mtime())
    }

    fn create<R: Read>(&mut self, place: &Place, kind: EntryType, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let path = &place.path;
        match kind {
            EntryType::Directory => match fs::create_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            },
            EntryType::Symlink => {
                let link = entry.link_name_bytes().ok_or_else(|| io::Error::other("symlink without a target"))?;
                symlink(OsStr::from_bytes(&link), path)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let kind = match kind {
                    EntryType::Char => SFlag::S_IFCHR,
                    EntryType::Block => SFlag::S_IFBLK,
                    _ => SFlag::S_IFIFO,
                };
                let major = entry.header().device_major()?.unwrap_or(0);
                let minor = entry.header().device_minor()?.unwrap_or(0);
                mknod(path, kind, Mode::empty(), makedev(u64::from(major), u64::from(minor)))?;
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = create_file(path)?;
                self.meta.size += io::copy(entry, &mut file)?;
                Ok(())
            }
            other => Err(io::Error::other(format!("unsupported entry type {other:?}"))),
        }
    }

    /// Owner before mode (chown clears setuid), extended attributes after both, time last.
    fn attributes<R: Read>(&mut self, relative: &Path, path: &Path, kind: EntryType, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let header = entry.header();
        // Some writers leave fields empty; that means zero.
        let old = header.as_old();
        let number = |field: &[u8], value: io::Result<u64>| match field.iter().all(|byte| matches!(byte, 0 | b' ')) {
            true => Ok(0),
            false => value,
        };
        let (uid, gid) = (number(&old.uid, header.uid())? as u32, number(&old.gid, header.gid())? as u32);
        let (mode, mtime) = (header.mode()?, number(&old.mtime, header.mtime())? as i64);
        lchown(path, Some(uid), Some(gid))?;
        if kind != EntryType::Symlink {
            fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
        }
        for (name, value) in xattrs(entry)? {
            match set_xattr(path, OsStr::from_bytes(&name), &value) {
                // A file system without this kind of attribute; the file is still right.
                Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => {}
                other => other?,
            }
        }
        if kind == EntryType::Directory {
            self.directory_times.insert(relative.to_path_buf(), mtime);
            return Ok(());
        }
        set_mtime(path, mtime)
    }

    fn finish(&mut self) -> io::Result<()> {
        for (directory, mtime) in std::mem::take(&mut self.directory_times) {
            if let Ok(opened) = open_in(&self.root, &directory, OFlag::O_DIRECTORY) {
                set_mtime(&PathBuf::from(format!("/proc/self/fd/{}/.", opened.as_raw_fd())), mtime)?;
            }
        }
        Ok(())
    }
}

/// `./a//b/` → `a/b`; anything with `..` is refused.
fn clean(path: &Path) -> io::Result<PathBuf> {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => cleaned.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other("path leaves the layer"));
            }
        }
    }
    Ok(cleaned)
}

/// Opens a path with `root` as its `/`, whatever symlinks it goes through.
pub(crate) fn open_in(root: &impl std::os::fd::AsFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

fn create_file(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_NOFOLLOW).mode(0o600).open(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

fn set_mtime(path: &Path, mtime: i64) -> io::Result<()> {
    let time = TimeSpec::new(mtime, 0);
    Ok(utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

fn set_xattr(path: &Path, name: &OsStr, value: &[u8]) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = CString::new(name.as_bytes())?;
    // SAFETY: both strings are NUL-terminated and the value's length is its own.
    let result = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn xattrs<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    let Some(extensions) = entry.pax_extensions()? else { return Ok(found) };
    for extension in extensions {
        let extension = extension?;
        if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
            // An image must not speak overlayfs' own language.
            if !name.starts_with(b"trusted.overlay.") {
                found.push((name.to_vec(), extension.value_bytes().to_vec()));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
#[path = "unpack/tests.rs"]
mod tests;
