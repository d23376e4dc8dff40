//! emptyDir: a directory of the pod's own, on disk or in memory, writable by everyone whatever our umask.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Makes the directory; with `memory` a tmpfs is mounted on it. Idempotent.
pub fn set_up(dir: &Path, memory: bool, size_bytes: Option<u64>, group: Option<u32>) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    if memory && !is_mount_point(dir)? {
        let size = size_bytes.map(|b| format!(",size={b}")).unwrap_or_default();
        let options = format!("mode=0777{size}");
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))?;
    }
    own(dir, group, 0o777)
}

/// Mode and group of a volume's root: with an `fsGroup` new files inherit it.
pub fn own(dir: &Path, group: Option<u32>, mode: u32) -> io::Result<()> {
    if let Some(group) = group {
        std::os::unix::fs::chown(dir, None, Some(group))?;
    }
    let set_gid = if group.is_some() { 0o2070 } else { 0 };
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode | set_gid))
}

/// Is something mounted exactly here?
pub fn is_mount_point(dir: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let here = std::fs::metadata(dir)?;
    let above = std::fs::metadata(dir.join(".."))?;
    Ok(here.dev() != above.dev() || here.ino() == above.ino())
}

/// Unmounts what is mounted below `root` (deepest first), then removes everything. Idempotent.
///
/// Never removes through a mount: files of a host path or another file system stay where they are.
pub fn remove_tree(root: &Path) -> io::Result<()> {
    for target in mounts_below(root)? {
        umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    }
    match std::fs::remove_dir_all(root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn mounts_below(root: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<std::path::PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|target| std::path::PathBuf::from(unescape(target)))
        .filter(|target| target.starts_with(root))
        .collect();
    found.sort_by_key(|t| std::cmp::Reverse(t.components().count()));
    Ok(found)
}

/// The kernel writes blanks and backslashes in octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_writable_by_all_and_removed_whole() {
        let root = std::env::temp_dir().join(format!("coracle-empty-{}", std::process::id()));
        let dir = root.join("volumes/v");
        set_up(&dir, false, None, None).unwrap();
        assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o7777, 0o777);
        std::fs::write(dir.join("f"), "x").unwrap();
        remove_tree(&root).unwrap();
        assert!(!root.exists());
        remove_tree(&root).unwrap();
    }
}
