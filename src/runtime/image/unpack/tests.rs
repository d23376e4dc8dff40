//! Layers as tars built in memory, unpacked into a temporary directory. Root only for what the kernel asks root for (whiteouts).

use std::io::Write;

use super::*;

struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Layer {
        Layer(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, path: &str, kind: EntryType, content: &[u8]) -> Layer {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        // Not `set_path`: it refuses what a hostile archive would hold.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(if kind == EntryType::Directory { 0o750 } else { 0o4755 });
        header.set_mtime(1_000_000);
        header.set_uid(7);
        header.set_gid(8);
        match kind {
            EntryType::Symlink | EntryType::Link => {
                header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content);
                header.set_size(0);
                header.set_cksum();
                self.0.append(&header, &[][..]).unwrap();
            }
            _ => {
                header.set_size(content.len() as u64);
                header.set_cksum();
                self.0.append(&header, content).unwrap();
            }
        }
        self
    }

    fn file(self, path: &str, content: &str) -> Layer {
        self.add(path, EntryType::Regular, content.as_bytes())
    }

    fn unpack(self, root: &Path, lowers: &[PathBuf]) -> Result<Unpacked, Error> {
        fs::create_dir_all(root).unwrap();
        unpack("test", &self.0.into_inner().unwrap()[..], root, lowers)
    }
}

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("coracle-unpack-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn files_keep_mode_owner_and_time() {
    if !is_root() {
        return;
    }
    let root = scratch("plain");
    let layer = Layer::new().add("d/", EntryType::Directory, b"").file("d/f", "hello").add("d/l", EntryType::Symlink, b"f");
    let unpacked = layer.unpack(&root, &[]).unwrap();
    let file = fs::metadata(root.join("d/l")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid(), file.mtime()), (0o4755, 7, 8, 1_000_000));
    let directory = fs::metadata(root.join("d")).unwrap();
    assert_eq!((directory.mode() & 0o7777, directory.mtime()), (0o750, 1_000_000));
    assert_eq!(unpacked.meta, LayerMeta { size: 5, inodes: 3 });
    fs::remove_dir_all(&root).unwrap();
}

#[test]
fn no_path_leaves_the_layer() {
    if !is_root() {
        return;
    }
    let root = scratch("escape");
    let outside = scratch("outside");
    let target = outside.to_str().unwrap();
    assert!(Layer::new().file("../x", "evil").unpack(&root.join("a"), &[]).is_err());
    // Through an absolute symlink: resolved below the layer, so nothing appears outside.
    let layer = Layer::new().add("out", EntryType::Symlink, target.as_bytes()).file("out/x", "evil");
    layer.unpack(&root.join("b"), &[]).unwrap();
    let layer = Layer::new().add("out", EntryType::Symlink, target.as_bytes()).file("out", "evil");
    layer.unpack(&root.join("c"), &[]).unwrap();
    assert!(Layer::new().add("h", EntryType::Link, b"../../etc/passwd").unpack(&root.join("d"), &[]).is_err());
    assert!(Layer::new().add("h", EntryType::Link, b"/etc/passwd").unpack(&root.join("e"), &[]).is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    fs::remove_dir_all(&root).unwrap();
    fs::remove_dir_all(&outside).unwrap();
}

#[test]
fn whiteouts_become_overlays_own() {
    if !is_root() {
        return;
    }
    let root = scratch("whiteout");
    let layer = Layer::new().file("d/.wh.gone", "").file("e/.wh..wh..opq", "").file("e/new", "x").file(".wh..wh.plnk", "");
    layer.unpack(&root, &[]).unwrap();
    let gone = fs::symlink_metadata(root.join("d/gone")).unwrap();
    assert_eq!((gone.mode() & libc::S_IFMT, gone.rdev()), (libc::S_IFCHR, 0));
    let mut value = [0u8; 8];
    let path = CString::new(root.join("e").as_os_str().as_bytes()).unwrap();
    // SAFETY: NUL-terminated names, and the buffer's own length.
    let length = unsafe { libc::lgetxattr(path.as_ptr(), c"trusted.overlay.opaque".as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    assert_eq!((length, value[0]), (1, b'y'));
    assert_eq!(fs::read_dir(&root).unwrap().count(), 2);
    fs::remove_dir_all(&root).unwrap();
}

#[test]
fn implied_directories_and_hard_links_look_into_the_layers_below() {
    if !is_root() {
        return;
    }
    let root = scratch("lowers");
    let (below, above) = (root.join("below"), root.join("above"));
    Layer::new().add("d/", EntryType::Directory, b"").file("d/f", "shared").unpack(&below, &[]).unwrap();
    let layer = Layer::new().file("d/new", "x").add("d/link", EntryType::Link, b"d/f");
    layer.unpack(&above, std::slice::from_ref(&below)).unwrap();
    assert_eq!(fs::read_to_string(above.join("d/link")).unwrap(), "shared");
    let directory = fs::metadata(above.join("d")).unwrap();
    assert_eq!((directory.mode() & 0o7777, directory.uid(), directory.mtime()), (0o750, 7, 1_000_000));
    fs::remove_dir_all(&root).unwrap();
}

#[test]
fn compressions_are_told_apart_by_their_first_bytes() {
    let text = b"some text, some text, some text".repeat(100);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&text).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(&text[..], ruzstd::encoding::CompressionLevel::Uncompressed);
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd].concat();
    for (packed, times) in
        [(text.clone(), 1), (gzip.clone(), 1), ([&gzip[..], &gzip].concat(), 2), (zstd.clone(), 1), ([&zstd[..], &skippable].concat(), 2)]
    {
        let mut out = Vec::new();
        decompress(&packed[..]).unwrap().read_to_end(&mut out).unwrap();
        assert_eq!(out, text.repeat(times));
    }
}
