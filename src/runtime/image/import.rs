//! Archives in and out: OCI layouts and `docker save`, packed or not.
//!
//! An archive is one tar whose members come in any order, so it is indexed first and then read by offset; a compressed one is
//! unpacked to a file beside the store before that. Every blob is checked against the digest that named it, every layer against the config's
//! diff id. [`pack`] writes the smallest archive that [`import`] reads: one layer of given files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::reference::{Digest, Reference};
use super::store::{LayerMeta, Record, Store};
use super::unpack::{decompress, unpack};
use super::{Error, Result, io as io_error};
use crate::runtime::ImageConfig;

/// No manifest, config or index is larger than this.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

#[derive(Deserialize)]
struct Descriptor {
    #[serde(default, rename = "mediaType")]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An index or a manifest: whichever fields are there.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<ProcessConfig>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// Fields may be present and null.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ProcessConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// One image of an archive, ready to be unpacked.
struct Found {
    id: Digest,
    manifest: Vec<u8>,
    config: Vec<u8>,
    /// Member and, if known, its digest; bottom first.
    layers: Vec<(PathBuf, Option<Digest>)>,
    names: BTreeSet<String>,
}

/// Reads every image of this machine's platform; answers their names (or ids, if an archive names none).
pub fn import(store: &Store, path: &Path) -> Result<Vec<String>> {
    let _exclusive = store.exclusive();
    let archive = Archive::open(store, path)?;
    let found = if archive.members.contains_key(Path::new("index.json")) {
        archive.oci_images()?
    } else if archive.members.contains_key(Path::new("manifest.json")) {
        archive.saved_images()?
    } else {
        return Err(archive.error("neither an OCI layout nor a `docker save` archive"));
    };
    if found.is_empty() {
        return Err(archive.error(format!("no image for linux/{}", architecture())));
    }
    let unpacked = found.into_iter().map(|image| archive.unpack_image(store, image)).collect::<Result<Vec<_>>>()?;
    // Once for all of them: what syncing takes does not depend on how much of it is ours.
    let root = File::open(store.root()).map_err(io_error("open", store.root()))?;
    nix::unistd::syncfs(&root).map_err(|error| io_error("sync", store.root())(error.into()))?;
    let mut names = Vec::new();
    for (id, record) in unpacked {
        names.extend(if record.names.is_empty() { vec![id.to_string()] } else { record.names.iter().cloned().collect() });
        store.add(&id, record)?;
    }
    Ok(names)
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

struct Archive {
    path: PathBuf,
    file: File,
    members: BTreeMap<PathBuf, Member>,
}

enum Member {
    File { offset: u64, size: u64 },
    Link(PathBuf),
}

/// A part of a file, read without moving the file's own position.
struct Slice<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Slice<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

struct Hashing<R> {
    reader: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

impl Archive {
    fn open(store: &Store, path: &Path) -> Result<Archive> {
        let mut file = File::open(path).map_err(io_error("open", path))?;
        let mut head = [0; 4];
        let read = file.read(&mut head).map_err(io_error("read", path))?;
        file.rewind().map_err(io_error("read", path))?;
        if head[..read].starts_with(&[0x1f, 0x8b]) || head[..read] == [0x28, 0xb5, 0x2f, 0xfd] {
            let scratch = store.scratch("archive")?;
            let plain = scratch.join("tar");
            let mut out = File::options().create_new(true).read(true).write(true).open(&plain).map_err(io_error("create", &plain))?;
            let copied = decompress(&file).and_then(|mut reader| io::copy(&mut reader, &mut out));
            // Unnamed from here on: it goes away with us.
            let _ = fs::remove_dir_all(&scratch);
            copied.map_err(io_error("decompress", path))?;
            out.seek(SeekFrom::Start(0)).map_err(io_error("read", path))?;
            file = out;
        }
        let members = members(&file).map_err(io_error("read archive", path))?;
        Ok(Archive { path: path.to_path_buf(), file, members })
    }

    fn error(&self, message: impl Into<String>) -> Error {
        Error::Archive { archive: self.path.clone(), message: message.into() }
    }

    /// A member's bytes; `docker save` stores a layer two images share as a link.
    fn reader(&self, member: &Path) -> Result<Slice<'_>> {
        let mut name = member.to_path_buf();
        for _ in 0..8 {
            match self.members.get(&name) {
                Some(Member::File { offset, size }) => {
                    return Ok(Slice { file: &self.file, offset: *offset, left: *size });
                }
                Some(Member::Link(target)) => name = target.clone(),
                None => break,
            }
        }
        Err(self.error(format!("member {} is missing", member.display())))
    }

    fn document(&self, member: &Path) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let reader = self.reader(member)?;
        if reader.left > DOCUMENT_BYTES_MAX {
            return Err(self.error(format!("member {} is too large", member.display())));
        }
        { reader }.read_to_end(&mut bytes).map_err(io_error("read", &self.path))?;
        Ok(bytes)
    }

    fn blob(&self, digest: &str) -> Result<(Digest, Vec<u8>)> {
        let digest = Digest::parse(digest).ok_or_else(|| self.error(format!("unsupported digest {digest:?}")))?;
        let bytes = self.document(&blob_path(&digest))?;
        let actual = Digest::from_hash(&Sha256::digest(&bytes));
        if actual != digest {
            return Err(Error::Digest { expected: digest.to_string(), actual: actual.to_string() });
        }
        Ok((digest, bytes))
    }

    fn parse<T: for<'a> Deserialize<'a>>(&self, what: &str, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|error| self.error(format!("{what}: {error}")))
    }

    fn oci_images(&self) -> Result<Vec<Found>> {
        let index: Document = self.parse("index.json", &self.document(Path::new("index.json"))?)?;
        // Newer `docker save` writes both; the names are clearer in the older of the two.
        let saved: Vec<SavedImage> = match self.members.contains_key(Path::new("manifest.json")) {
            true => self.parse("manifest.json", &self.document(Path::new("manifest.json"))?)?,
            false => Vec::new(),
        };
        let mut found = Vec::new();
        for descriptor in &index.manifests {
            let Some(mut image) = self.oci_image(descriptor, 0)? else { continue };
            image.names = self.oci_names(descriptor);
            let config = Digest::from_hash(&Sha256::digest(&image.config));
            let same = |entry: &&SavedImage| entry.config.contains(config.hex());
            let tags = saved.iter().filter(same).flat_map(|entry| entry.repo_tags.iter().flatten());
            image.names.extend(tags.filter_map(|tag| Some(Reference::parse(tag).ok()?.tagged().to_string())));
            found.push(image);
        }
        Ok(found)
    }

    fn oci_names(&self, descriptor: &Descriptor) -> BTreeSet<String> {
        let full = descriptor.annotations.get("io.containerd.image.name");
        let short = descriptor.annotations.get("org.opencontainers.image.ref.name");
        let name = match (full, short) {
            (Some(full), _) => full.clone(),
            (None, Some(short)) if short.contains([':', '/']) => short.clone(),
            (None, Some(tag)) => {
                let stem = self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                format!("{}:{tag}", stem.split('.').next().unwrap_or_default())
            }
            (None, None) => return BTreeSet::new(),
        };
        Reference::parse(&name).map(|name| name.tagged().to_string()).into_iter().collect()
    }

    /// `None`: for another platform, or not an image at all (attestations).
    fn oci_image(&self, descriptor: &Descriptor, depth: u32) -> Result<Option<Found>> {
        let other = |platform: &Platform| platform.os != "linux" || platform.architecture != architecture();
        if descriptor.platform.as_ref().is_some_and(other) {
            return Ok(None);
        }
        let (id, manifest) = self.blob(&descriptor.digest)?;
        let document: Document = self.parse(&descriptor.digest, &manifest)?;
        if document.config.is_none() && !document.manifests.is_empty() {
            if depth >= 3 {
                return Err(self.error("indexes are nested too deeply"));
            }
            for inner in &document.manifests {
                // An archive of one platform may still list the others, without their blobs.
                let present = Digest::parse(&inner.digest).is_some_and(|digest| self.members.contains_key(&blob_path(&digest)));
                if present && let Some(image) = self.oci_image(inner, depth + 1)? {
                    return Ok(Some(image));
                }
            }
            return Ok(None);
        }
        let config = document.config.ok_or_else(|| self.error(format!("manifest {id} has no config")))?;
        if !config.media_type.is_empty() && !config.media_type.contains("image") {
            return Ok(None);
        }
        let (_, config) = self.blob(&config.digest)?;
        let layer = |layer: &Descriptor| {
            let digest = Digest::parse(&layer.digest).ok_or_else(|| self.error(format!("unsupported digest {:?}", layer.digest)))?;
            Ok((blob_path(&digest), Some(digest)))
        };
        let layers = document.layers.iter().map(layer).collect::<Result<_>>()?;
        Ok(Some(Found { id, manifest, config, layers, names: BTreeSet::new() }))
    }

    fn saved_images(&self) -> Result<Vec<Found>> {
        let saved: Vec<SavedImage> = self.parse("manifest.json", &self.document(Path::new("manifest.json"))?)?;
        let mut found = Vec::new();
        for image in saved {
            let config = self.document(Path::new(&image.config))?;
            let parsed: ConfigFile = self.parse(&image.config, &config)?;
            // These archives have no manifest, and its digest is the image's id: write the one that would describe it.
            let digest = Digest::from_hash(&Sha256::digest(&config));
            let layers: Vec<serde_json::Value> =
                parsed.rootfs.diff_ids.iter().map(|diff| serde_json::json!({"mediaType": LAYER_TYPE, "digest": diff})).collect();
            let manifest = serde_json::to_vec(&serde_json::json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": {"mediaType": CONFIG_TYPE, "digest": digest.to_string(), "size": config.len()},
                "layers": layers,
            }))
            .expect("plain data");
            let names = image.repo_tags.iter().flatten();
            found.push(Found {
                id: Digest::from_hash(&Sha256::digest(&manifest)),
                manifest,
                config,
                layers: image.layers.iter().map(|layer| (PathBuf::from(layer), None)).collect(),
                names: names.filter_map(|name| Some(Reference::parse(name).ok()?.tagged().to_string())).collect(),
            });
        }
        Ok(found)
    }

    /// Unpacks what is missing; gives what the index is to say of the image once that is on disk.
    fn unpack_image(&self, store: &Store, image: Found) -> Result<(Digest, Record)> {
        let config: ConfigFile = self.parse("image config", &image.config)?;
        if !config.os.is_empty() && (config.os != "linux" || config.architecture != architecture()) {
            return Err(self.error(format!("image is for {}/{}, not linux/{}", config.os, config.architecture, architecture())));
        }
        if config.rootfs.diff_ids.len() != image.layers.len() {
            return Err(self.error("manifest and config disagree about the number of layers"));
        }
        let mut record = Record { config: image_config(&config), ..Record::default() };
        let mut chain: Option<Digest> = None;
        let mut lowers: Vec<PathBuf> = Vec::new();
        for ((member, digest), diff) in image.layers.iter().zip(&config.rootfs.diff_ids) {
            let diff = Digest::parse(diff).ok_or_else(|| self.error(format!("unsupported diff id {diff:?}")))?;
            let next = match &chain {
                None => diff.clone(),
                Some(below) => Digest::from_hash(&Sha256::digest(format!("{below} {diff}"))),
            };
            let meta = match store.layer_meta(&next) {
                Some(meta) => meta,
                None => self.unpack_layer(store, member, digest.as_ref(), &diff, &next, &lowers)?,
            };
            record.size += meta.size;
            record.inodes += meta.inodes;
            record.layers.push(next.hex().to_string());
            lowers.insert(0, store.layer_dir(&next).join("fs"));
            chain = Some(next);
        }
        store.write_blob(&image.manifest)?;
        record.config_digest = store.write_blob(&image.config)?.to_string();
        let repository = |name: &String| Some(Reference::parse(name).ok()?.repository());
        record.repositories = image.names.iter().filter_map(repository).collect();
        record.names = image.names;
        Ok((image.id, record))
    }

    fn unpack_layer(
        &self,
        store: &Store,
        member: &Path,
        digest: Option<&Digest>,
        diff: &Digest,
        chain: &Digest,
        lowers: &[PathBuf],
    ) -> Result<LayerMeta> {
        let scratch = store.scratch(chain.hex())?;
        let result = self.unpack_into(&scratch, member, digest, diff, lowers).and_then(|meta| {
            let target = store.layer_dir(chain);
            fs::rename(&scratch, &target).map_err(io_error("rename to", &target))?;
            Ok(meta)
        });
        if result.is_err() {
            let _ = fs::remove_dir_all(&scratch);
        }
        result
    }

    fn unpack_into(&self, scratch: &Path, member: &Path, digest: Option<&Digest>, diff: &Digest, lowers: &[PathBuf]) -> Result<LayerMeta> {
        let root = scratch.join("fs");
        fs::create_dir(&root).map_err(io_error("make", &root))?;
        let mut reader = Hashing { reader: self.reader(member)?, hash: Sha256::new() };
        let unpacked = {
            let tar = decompress(&mut reader).map_err(io_error("read", &self.path))?;
            unpack(diff.hex(), tar, &root, lowers)?
        };
        io::copy(&mut reader, &mut io::sink()).map_err(io_error("read", &self.path))?;
        let actual = Digest::from_hash(&reader.hash.finalize());
        if let Some(expected) = digest.filter(|expected| **expected != actual) {
            return Err(Error::Digest { expected: expected.to_string(), actual: actual.to_string() });
        }
        if unpacked.diff_id != *diff {
            return Err(Error::Digest { expected: diff.to_string(), actual: unpacked.diff_id.to_string() });
        }
        let path = scratch.join("meta.json");
        let meta = serde_json::to_vec(&unpacked.meta).expect("plain data");
        fs::write(&path, meta).map_err(io_error("write", &path))?;
        Ok(unpacked.meta)
    }
}

fn blob_path(digest: &Digest) -> PathBuf {
    Path::new("blobs/sha256").join(digest.hex())
}

fn members(file: &File) -> io::Result<BTreeMap<PathBuf, Member>> {
    let mut archive = tar::Archive::new(file);
    let mut members = BTreeMap::new();
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let name = normal(Path::new(std::ffi::OsStr::from_bytes(&entry.path_bytes())));
        let kind = entry.header().entry_type();
        if kind.is_file() {
            members.insert(name, Member::File { offset: entry.raw_file_position(), size: entry.size() });
        } else if let Some(link) = entry.link_name_bytes().filter(|_| kind.is_symlink() || kind.is_hard_link()) {
            let link = Path::new(std::ffi::OsStr::from_bytes(&link)).to_path_buf();
            let base = if kind.is_symlink() { name.parent().unwrap_or(Path::new("")) } else { Path::new("") };
            members.insert(name.clone(), Member::Link(normal(&base.join(link))));
        }
    }
    Ok(members)
}

/// `./a/../b` → `b`; only ever used as a key, never as a path on disk.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(name) => normal.push(name),
            std::path::Component::ParentDir => {
                normal.pop();
            }
            _ => {}
        }
    }
    normal
}

fn image_config(file: &ConfigFile) -> ImageConfig {
    let empty = ProcessConfig::default();
    let config = file.config.as_ref().unwrap_or(&empty);
    ImageConfig {
        entrypoint: config.entrypoint.clone().unwrap_or_default(),
        cmd: config.cmd.clone().unwrap_or_default(),
        env: config.env.clone().unwrap_or_default(),
        user: config.user.clone().unwrap_or_default(),
        workdir: config.working_dir.clone().unwrap_or_default(),
        stop_signal: config.stop_signal.clone().unwrap_or_default(),
        volumes: config.volumes.iter().flat_map(BTreeMap::keys).cloned().collect(),
        exposed_ports: config.exposed_ports.iter().flat_map(BTreeMap::keys).cloned().collect(),
        labels: config.labels.clone().unwrap_or_default(),
        architecture: file.architecture.clone(),
        os: file.os.clone(),
    }
}

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// Writes an OCI layout of one layer: `files` are (path in the image, file of the host), kept with their mode, owned by root.
pub fn pack(out: &Path, name: &str, files: &[(String, PathBuf)], config: &ImageConfig) -> Result<()> {
    let failed = || io_error("write", out);
    let mut layer = tar::Builder::new(Vec::new());
    for (path, source) in files {
        let mut file = File::open(source).map_err(io_error("open", source))?;
        let metadata = file.metadata().map_err(io_error("read", source))?;
        let mut header = tar::Header::new_gnu();
        header.set_size(metadata.len());
        header.set_mode(std::os::unix::fs::MetadataExt::mode(&metadata) & 0o7777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        layer.append_data(&mut header, path.trim_start_matches('/'), &mut file).map_err(failed())?;
    }
    let layer = layer.into_inner().map_err(failed())?;
    let layer_digest = Digest::from_hash(&Sha256::digest(&layer));
    let config = serde_json::json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": config.entrypoint, "Cmd": config.cmd, "Env": config.env, "User": config.user,
            "WorkingDir": config.workdir, "StopSignal": config.stop_signal, "Labels": config.labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [layer_digest.to_string()]},
    });
    let config = serde_json::to_vec(&config).expect("plain data");
    let config_digest = Digest::from_hash(&Sha256::digest(&config));
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": config_digest.to_string(), "size": config.len()},
        "layers": [{"mediaType": LAYER_TYPE, "digest": layer_digest.to_string(), "size": layer.len()}],
    }))
    .expect("plain data");
    let manifest_digest = Digest::from_hash(&Sha256::digest(&manifest));
    let index = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": MANIFEST_TYPE, "digest": manifest_digest.to_string(), "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": name},
        }],
    }))
    .expect("plain data");
    let mut archive = tar::Builder::new(File::create(out).map_err(failed())?);
    let blob = |digest: &Digest| blob_path(digest).display().to_string();
    for (path, bytes) in [
        ("oci-layout".to_string(), &b"{\"imageLayoutVersion\":\"1.0.0\"}"[..]),
        (blob(&layer_digest), &layer),
        (blob(&config_digest), &config),
        (blob(&manifest_digest), &manifest),
        ("index.json".to_string(), &index),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, bytes).map_err(failed())?;
    }
    archive.into_inner().map_err(failed())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("coracle-import-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_packed_image_comes_back_under_its_name() {
        let root = scratch("pack");
        fs::write(root.join("hello"), "hello").unwrap();
        let config = ImageConfig { cmd: vec!["/bin/hello".into()], ..ImageConfig::default() };
        let tar = root.join("app.tar");
        pack(&tar, "example.test/app:v1", &[("/bin/hello".into(), root.join("hello"))], &config).unwrap();
        let store = Store::open(&root.join("images")).unwrap();
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        assert_eq!(import(&store, &tar).unwrap(), ["example.test/app:v1"]);
        let image = store.resolve("app:v1").unwrap().unwrap();
        assert_eq!((image.config.cmd, image.size), (config.cmd.clone(), 5));
        let lower = store.lower_dirs(&image.id).unwrap();
        assert_eq!(fs::read_to_string(lower[0].join("bin/hello")).unwrap(), "hello");

        // Again, packed: nothing new.
        let bytes = fs::read(&tar).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, &bytes).unwrap();
        fs::write(root.join("app.tar.gz"), gzip.finish().unwrap()).unwrap();
        import(&store, &root.join("app.tar.gz")).unwrap();
        assert_eq!(store.list().len(), 1);

        // One changed byte in a layer is noticed.
        let mut broken = bytes.clone();
        let content = (0..broken.len()).step_by(512).find(|&at| broken[at..].starts_with(b"hello\0")).unwrap();
        broken[content] = b'j';
        fs::write(root.join("broken.tar"), broken).unwrap();
        let other = Store::open(&root.join("other")).unwrap();
        assert!(matches!(import(&other, &root.join("broken.tar")), Err(Error::Digest { .. })));
        assert!(other.list().is_empty());
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_docker_save_archive_is_read_through_its_links() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let root = scratch("save");
        let mut layer = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_mode(0o644);
        layer.append_data(&mut header, "etc/x", &b"hi"[..]).unwrap();
        let layer = layer.into_inner().unwrap();
        let diff = Digest::from_hash(&Sha256::digest(&layer)).to_string();
        let config = format!(
            r#"{{"architecture":"{}","os":"linux","config":{{"Cmd":["sh"],"Env":null}},"rootfs":{{"diff_ids":["{diff}"]}}}}"#,
            architecture()
        );
        let mut out = tar::Builder::new(File::create(root.join("s.tar")).unwrap());
        let mut add = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            out.append_data(&mut header, name, bytes).unwrap();
        };
        add("one/layer.tar", &layer);
        add("config.json", config.as_bytes());
        add("manifest.json", br#"[{"Config":"config.json","RepoTags":["app:latest"],"Layers":["two/layer.tar"]}]"#);
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        out.append_link(&mut header, "two/layer.tar", "../one/layer.tar").unwrap();
        out.into_inner().unwrap();
        let store = Store::open(&root.join("images")).unwrap();
        assert_eq!(import(&store, &root.join("s.tar")).unwrap(), ["app:latest"]);
        let image = store.resolve("app").unwrap().unwrap();
        assert!(image.id.starts_with("sha256:") && image.config.cmd == ["sh"]);
        store.remove("app", |_| None).unwrap();
        assert_eq!(fs::read_dir(root.join("images/layers")).unwrap().count(), 0);
        fs::remove_dir_all(&root).unwrap();
    }
}
