//! hostPath: a file or directory of the node, checked or made as its `type` says.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub fn set_up(path: &str, kind: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    let meta = std::fs::metadata(&path);
    let is = |test: fn(&std::fs::FileType) -> bool| meta.as_ref().is_ok_and(|m| test(&m.file_type()));
    let refuse = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", path.display()));
    let made = match kind {
        "DirectoryOrCreate" if meta.is_err() => make_dir(&path),
        "FileOrCreate" if meta.is_err() => make_file(&path),
        "Directory" | "DirectoryOrCreate" if !is(std::fs::FileType::is_dir) => return refuse("a directory"),
        "File" | "FileOrCreate" if !is(std::fs::FileType::is_file) => return refuse("a file"),
        "Socket" if !is(FileTypeExt::is_socket) => return refuse("a socket file"),
        "CharDevice" if !is(FileTypeExt::is_char_device) => return refuse("a character device"),
        "BlockDevice" if !is(FileTypeExt::is_block_device) => return refuse("a block device"),
        // Without a type nothing is checked, and runtimes make a missing directory.
        "" if meta.is_err() => make_dir(&path),
        _ => Ok(()),
    };
    made.map(|()| path.clone()).map_err(|e| format!("cannot make host path {}: {e}", path.display()))
}

fn make_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn make_file(path: &Path) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked() {
        let dir = std::env::temp_dir().join(format!("coracle-host-{}", std::process::id()));
        let text = dir.to_string_lossy().into_owned();
        assert!(set_up(&text, "Directory").unwrap_err().ends_with("is not a directory"));
        assert_eq!(set_up(&text, "DirectoryOrCreate").unwrap(), dir);
        assert!(set_up(&text, "File").is_err());
        std::fs::remove_dir(&dir).unwrap();
        assert!(set_up("/dev/null", "CharDevice").is_ok());
    }
}
