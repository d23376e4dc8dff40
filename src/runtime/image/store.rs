//! The images of this node: an index file, content-addressed blobs, unpacked layers by chain id.
//!
//! ```text
//! <root>/index.json            every image; replaced whole (tmp + rename)
//! <root>/blobs/sha256/<hex>    manifests and configs (layers are kept unpacked only)
//! <root>/layers/<chain id>/fs  one layer, immutable; `tmp-*` while unpacking
//! ```
//! *Invariant: what the index names is whole on disk*: layers and blobs are written, synced and renamed before the index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::reference::{Digest, Reference};
use super::{Error, Result, io};
use crate::runtime::{Image, ImageConfig, Usage};

pub struct Store {
    root: PathBuf,
    index: Mutex<Index>,
    /// Held while layers are on disk that the index does not name yet, and while such layers are swept away.
    unpacking: Mutex<()>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Index {
    /// By manifest digest.
    images: BTreeMap<String, Record>,
    /// The file this was read from: another process (`coracle images import`) may put a newer one in its place.
    #[serde(skip)]
    file: Option<(u64, std::time::SystemTime)>,
}

/// Tells one version of the index file from the next: each is a file of its own.
fn identity(path: &Path) -> Option<(u64, std::time::SystemTime)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.modified().ok()?))
}

fn read_index(path: &Path) -> Result<Index> {
    let file = identity(path);
    let index: Index = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| Error::Archive { archive: path.to_path_buf(), message: format!("unreadable index: {error}") })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Index::default(),
        Err(error) => return Err(io("read", path)(error)),
    };
    Ok(Index { file, ..index })
}

/// Excludes other threads and other processes while held.
pub struct Exclusive<'a> {
    _thread: MutexGuard<'a, ()>,
    /// Its lock goes with the descriptor. `None`: the file system has no locks, and one process must do.
    _process: Option<nix::fcntl::Flock<fs::File>>,
}

/// One image as the index keeps it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Tagged names; a name belongs to one image only.
    pub names: BTreeSet<String>,
    /// Repositories it is known in, without tag.
    pub repositories: BTreeSet<String>,
    pub config_digest: String,
    /// Chain ids (hex), bottom first.
    pub layers: Vec<String>,
    /// Of the unpacked layers.
    pub size: u64,
    pub inodes: u64,
    pub config: ImageConfig,
}

impl Record {
    fn image(&self, id: &str) -> Image {
        Image {
            id: id.to_string(),
            names: self.names.iter().cloned().collect(),
            digests: self.repositories.iter().map(|repository| format!("{repository}@{id}")).collect(),
            size: self.size,
            config: self.config.clone(),
        }
    }
}

/// What an unpacked layer weighs; written beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerMeta {
    pub size: u64,
    pub inodes: u64,
}

impl Store {
    /// Opens or makes the store and removes what an interrupted import left behind.
    pub fn open(root: &Path) -> Result<Store> {
        for directory in ["blobs/sha256", "layers"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(io("make", &path))?;
        }
        let index = read_index(&root.join("index.json"))?;
        let store = Store { root: root.to_path_buf(), index: Mutex::new(index), unpacking: Mutex::new(()) };
        {
            let _exclusive = store.exclusive();
            store.sweep();
        }
        Ok(store)
    }

    /// The index as it is on disk now.
    fn index(&self) -> MutexGuard<'_, Index> {
        let mut index = self.index.lock().expect("no panic while held");
        let path = self.root.join("index.json");
        if identity(&path) != index.file {
            match read_index(&path) {
                Ok(newer) => *index = newer,
                Err(error) => tracing::warn!(%error, "the image index another process wrote cannot be read"),
            }
        }
        index
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// One import at a time, over all processes that use this store; nothing is swept meanwhile.
    pub fn exclusive(&self) -> Exclusive<'_> {
        let thread = self.unpacking.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(self.root.join("lock"));
        let process = file.ok().and_then(|file| nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).ok());
        Exclusive { _thread: thread, _process: process }
    }

    /// Where the layer of this chain id is, or will be.
    pub fn layer_dir(&self, chain: &Digest) -> PathBuf {
        self.root.join("layers").join(chain.hex())
    }

    /// The layers of an image as overlay wants them: top first.
    pub fn lower_dirs(&self, id: &str) -> Option<Vec<PathBuf>> {
        let index = self.index();
        let layers = &index.images.get(id)?.layers;
        Some(layers.iter().rev().map(|chain| self.root.join("layers").join(chain).join("fs")).collect())
    }

    /// The stored image a reference means. `Err`: the reference itself is malformed.
    pub fn resolve(&self, reference: &str) -> std::result::Result<Option<Image>, String> {
        let index = self.index();
        if let Some(digest) = Digest::parse(reference) {
            let id = digest.to_string();
            return Ok(index.images.get(&id).map(|record| record.image(&id)));
        }
        let wanted = Reference::parse(reference)?.tagged();
        let mut best: Option<(u32, &String, &Record)> = None;
        for (id, record) in &index.images {
            if wanted.digest.as_ref().is_some_and(|digest| digest.to_string() != *id) {
                continue;
            }
            let names = record.names.iter().chain(if wanted.digest.is_some() { &record.repositories } else { &NONE });
            let ranks = names.filter_map(|name| wanted.match_rank(&Reference::parse(name).ok()?));
            if let Some(rank) = ranks.min()
                && best.is_none_or(|(other, ..)| rank < other)
            {
                best = Some((rank, id, record));
            }
        }
        Ok(best.map(|(_, id, record)| record.image(id)))
    }

    pub fn list(&self) -> Vec<Image> {
        let index = self.index();
        index.images.iter().map(|(id, record)| record.image(id)).collect()
    }

    pub fn usage(&self) -> Usage {
        let chains: BTreeSet<String> = {
            let index = self.index();
            index.images.values().flat_map(|record| record.layers.iter().cloned()).collect()
        };
        let mut usage = Usage::default();
        for chain in chains {
            if let Some(meta) = Digest::parse(&format!("sha256:{chain}")).and_then(|chain| self.layer_meta(&chain)) {
                usage.bytes += meta.size;
                usage.inodes += meta.inodes;
            }
        }
        usage
    }

    /// `None`: not unpacked (yet).
    pub fn layer_meta(&self, chain: &Digest) -> Option<LayerMeta> {
        serde_json::from_slice(&fs::read(self.layer_dir(chain).join("meta.json")).ok()?).ok()
    }

    /// A directory to unpack into, on the same file system as the layers.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join("layers").join(format!("tmp-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).map_err(io("make", &path))?;
        Ok(path)
    }

    pub fn write_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::from_hash(&Sha256::digest(bytes));
        let path = self.root.join("blobs/sha256").join(digest.hex());
        if !path.exists() {
            replace(&path, bytes)?;
        }
        Ok(digest)
    }

    /// Adds an image, or names to an image there is; a name moves here from whichever image had it.
    pub fn add(&self, id: &Digest, record: Record) -> Result<()> {
        let mut index = self.index();
        let mut next = index.clone();
        for other in next.images.values_mut() {
            other.names.retain(|name| !record.names.contains(name));
        }
        let entry = next.images.entry(id.to_string()).or_insert_with(|| Record {
            names: BTreeSet::new(),
            repositories: BTreeSet::new(),
            ..record.clone()
        });
        entry.names.extend(record.names);
        entry.repositories.extend(record.repositories);
        self.commit(&mut index, next)
    }

    /// `in_use` answers which container runs an image id. Nothing to remove is no error.
    pub fn remove(&self, reference: &str, in_use: impl Fn(&str) -> Option<String>) -> Result<()> {
        let found = match self.resolve(reference) {
            Ok(Some(image)) => image,
            Ok(None) | Err(_) => return Ok(()),
        };
        let mut index = self.index();
        let mut next = index.clone();
        let whole = Digest::parse(reference).is_some() || reference.contains('@') || found.names.len() <= 1;
        if whole {
            if let Some(container) = in_use(&found.id) {
                return Err(Error::InUse { image: reference.to_string(), container });
            }
            next.images.remove(&found.id);
        } else if let Some(record) = next.images.get_mut(&found.id) {
            let wanted = Reference::parse(reference).map(Reference::tagged);
            let wanted = wanted.as_ref();
            let matches =
                |name: &String| wanted.is_ok_and(|wanted| Reference::parse(name).is_ok_and(|name| wanted.match_rank(&name).is_some()));
            record.names.retain(|name| !matches(name));
        }
        self.commit(&mut index, next)?;
        drop(index);
        let _exclusive = self.exclusive();
        self.sweep();
        Ok(())
    }

    fn commit(&self, index: &mut Index, next: Index) -> Result<()> {
        let bytes = serde_json::to_vec(&next).expect("the index is plain data");
        let path = self.root.join("index.json");
        replace(&path, &bytes)?;
        *index = Index { file: identity(&path), ..next };
        Ok(())
    }

    /// Removes layers and blobs no image names. Best effort: what stays is tried again next time.
    fn sweep(&self) {
        let index = self.index();
        let mut keep: BTreeSet<String> = BTreeSet::new();
        for (id, record) in &index.images {
            keep.insert(id.trim_start_matches("sha256:").to_string());
            keep.insert(record.config_digest.trim_start_matches("sha256:").to_string());
            keep.extend(record.layers.iter().cloned());
        }
        for directory in ["layers", "blobs/sha256"] {
            let entries = fs::read_dir(self.root.join(directory)).into_iter().flatten().flatten();
            for entry in entries {
                let name = entry.file_name().to_string_lossy().into_owned();
                if keep.contains(&name) {
                    continue;
                }
                let path = entry.path();
                let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            }
        }
    }
}

static NONE: BTreeSet<String> = BTreeSet::new();

/// Writes a file so that it is either the old or the new one, whole, also after a crash.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let mut file = fs::File::create(&temporary).map_err(io("create", &temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(io("rename to", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("coracle-store-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn record(names: &[&str]) -> Record {
        Record { names: names.iter().map(|name| name.to_string()).collect(), ..Record::default() }
    }

    #[test]
    fn names_move_images_stay_until_their_last_name_goes() {
        let root = scratch("names");
        let (a, b) = (Digest::from_hash(&[1; 32]), Digest::from_hash(&[2; 32]));
        let store = Store::open(&root).unwrap();
        store.add(&a, record(&["app:1", "app:latest"])).unwrap();
        store.add(&b, record(&["app:latest"])).unwrap();
        assert_eq!(store.resolve("app").unwrap().unwrap().id, b.to_string());
        assert_eq!(store.resolve("app:1").unwrap().unwrap().id, a.to_string());
        assert!(store.resolve("APP").is_err());

        let store = Store::open(&root).unwrap();
        assert!(store.remove("app:1", |_| Some("c1".into())).is_err(), "in use");
        store.remove("app:1", |_| None).unwrap();
        assert_eq!(store.list().len(), 1);
        store.remove("app:1", |_| None).unwrap();
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn sweeping_removes_what_no_image_names() {
        let root = scratch("sweep");
        let store = Store::open(&root).unwrap();
        let kept = store.write_blob(b"manifest").unwrap();
        store.add(&kept, record(&["app:1"])).unwrap();
        store.write_blob(b"orphan").unwrap();
        fs::create_dir_all(root.join("layers/tmp-old-0/fs")).unwrap();
        drop(store);
        Store::open(&root).unwrap();
        assert_eq!(fs::read_dir(root.join("blobs/sha256")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(root.join("layers")).unwrap().count(), 0);
        fs::remove_dir_all(&root).unwrap();
    }
}
