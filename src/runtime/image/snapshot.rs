//! A container's file system: the image's layers below, one writable directory above, by overlayfs.
//!
//! Through the new mount interface, one `lowerdir+` per layer: the classic one ends at 4,095 bytes of options, about forty layers.
//! Kernels before 6.8 get the classic call, and images too deep for it a clear refusal. `volatile`: a container's own layer need
//! not survive a power cut, so it never waits for the disk; its work directory is therefore made anew for every mount.
#![allow(unsafe_code)] // fsopen, fsconfig, fsmount, move_mount have no safe wrapper in our dependencies

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Result, io as io_error};

/// The directories of one container's snapshot.
pub struct Snapshot {
    pub dir: PathBuf,
}

impl Snapshot {
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// Mounts `lowers` (top first) below this snapshot's own directory at `target`, which must exist.
    pub fn mount(&self, lowers: &[PathBuf], target: &Path) -> Result<()> {
        let (upper, work) = (self.upper(), self.dir.join("work"));
        let _ = fs::remove_dir_all(&work);
        for path in [&upper, &work] {
            fs::create_dir_all(path).map_err(io_error("make", path))?;
        }
        // The root directory looks like the image's.
        if let Some(below) = lowers.first().and_then(|lower| fs::metadata(lower).ok()) {
            fs::set_permissions(&upper, fs::Permissions::from_mode(below.permissions().mode() & 0o7777))
                .map_err(io_error("set mode of", &upper))?;
        }
        let empty = self.dir.join("empty");
        let mut lowers = lowers.to_vec();
        if lowers.is_empty() {
            // An image without layers (`FROM scratch`): overlayfs wants at least one.
            fs::create_dir_all(&empty).map_err(io_error("make", &empty))?;
            lowers.push(empty);
        }
        overlay(&lowers, Some((&upper, &work)), target).map_err(io_error("mount overlay at", target))
    }

    pub fn remove(&self) -> Result<()> {
        remove_tree(&self.dir)
    }
}

/// The layers alone, read-only: an image as a volume.
pub fn mount_image(lowers: &[PathBuf], target: &Path) -> Result<()> {
    let result = match lowers {
        // One lower directory without an upper one is not an overlay.
        [only] => mount(Some(only), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).and_then(|()| {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
            mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        }),
        _ => return overlay(lowers, None, target).map_err(io_error("mount overlay at", target)),
    };
    result.map_err(|error| io_error("mount image at", target)(error.into()))
}

/// Nothing there, or nothing mounted there, is fine. Detached, so that a busy mount cannot keep a pod from going.
pub fn unmount(target: &Path) {
    while umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
}

/// `remove_dir_all` that does not mind a missing directory and never crosses into a mount that is still there.
pub fn remove_tree(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// Bytes and files of a directory tree.
pub fn usage(dir: &Path) -> crate::runtime::Usage {
    let mut usage = crate::runtime::Usage::default();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
            usage.inodes += 1;
            usage.bytes += std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    usage
}

fn overlay(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, target: &Path) -> io::Result<()> {
    match new_mount(lowers, upper, target) {
        // Before 6.8: no `lowerdir+`; before 5.2: no fsopen at all.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => classic_mount(lowers, upper, target)
            .map_err(|second| io::Error::new(second.kind(), format!("{error}; by the classic call: {second}"))),
        other => other,
    }
}

fn new_mount(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, target: &Path) -> io::Result<()> {
    const FSCONFIG_SET_FLAG: libc::c_long = 0;
    const FSCONFIG_SET_STRING: libc::c_long = 1;
    const FSCONFIG_CMD_CREATE: libc::c_long = 6;
    // SAFETY: the name is NUL-terminated; the result is a new descriptor or negative.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), 1) })?;
    let set = |command: libc::c_long, key: Option<&CStr>, value: Option<&CStr>| -> io::Result<()> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: the descriptor is open, the strings NUL-terminated or null as the command wants.
        let result = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, pointer(key), pointer(value), 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    let string = |key: &CStr, path: &Path| set(FSCONFIG_SET_STRING, Some(key), Some(&CString::new(path.as_os_str().as_bytes())?));
    for lower in lowers {
        string(c"lowerdir+", lower)?;
    }
    if let Some((upper, work)) = upper {
        string(c"upperdir", upper)?;
        string(c"workdir", work)?;
        set(FSCONFIG_SET_FLAG, Some(c"volatile"), None)?;
    }
    set(FSCONFIG_CMD_CREATE, None, None)?;
    let attributes = if upper.is_none() {
        0x1 /* MOUNT_ATTR_RDONLY */
    } else {
        0
    };
    // SAFETY: the descriptor is open; the result is a new descriptor or negative.
    let mount = owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, attributes) })?;
    let target = CString::new(target.as_os_str().as_bytes())?;
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_long = 4;
    // SAFETY: both paths are NUL-terminated, the descriptor is open.
    let result = unsafe {
        libc::syscall(libc::SYS_move_mount, mount.as_raw_fd(), c"".as_ptr(), libc::AT_FDCWD, target.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

fn classic_mount(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, target: &Path) -> io::Result<()> {
    let escape = |path: &Path| path.display().to_string().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,");
    let lower: Vec<String> = lowers.iter().map(|lower| escape(lower)).collect();
    let mut options = format!("lowerdir={}", lower.join(":"));
    if let Some((upper, work)) = upper {
        options.push_str(&format!(",upperdir={},workdir={}", escape(upper), escape(work)));
    }
    if options.len() > 4095 {
        return Err(io::Error::other(format!("{} layers are too many for this kernel's mount call", lowers.len())));
    }
    let flags = if upper.is_none() { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    Ok(mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str()))?)
}
