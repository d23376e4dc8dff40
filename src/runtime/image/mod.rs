//! Images of this node: what they are called, where their layers lie, how they get in.
//!
//! [`store::Store`] is the handle: names to manifests, manifests to unpacked layers. [`import`] is the only way in for now (air-gap
//! archives); [`unpack`] writes one layer; [`snapshot`] mounts layers below a container's own writable one.
//! Everything here but [`arrivals`] blocks; callers are `linux.rs`' blocking tasks.

pub mod arrivals;
pub mod import;
pub mod reference;
pub mod snapshot;
pub mod store;
pub mod unpack;

use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("archive {}: {message}", archive.display())]
    Archive { archive: PathBuf, message: String },
    #[error("layer {layer}: entry {entry:?}")]
    Entry {
        layer: String,
        entry: String,
        #[source]
        source: std::io::Error,
    },
    #[error("digest mismatch: expected {expected}, content is {actual}")]
    Digest { expected: String, actual: String },
    #[error("image {image} is in use by container {container}")]
    InUse { image: String, container: String },
}

pub type Result<T> = std::result::Result<T, Error>;

/// `map_err` for an operation on a path.
pub(crate) fn io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |source| Error::Io { operation, path: path.to_path_buf(), source }
}
