//! Tells when the image index was replaced, by this process or another (`coracle images import`).
#![allow(unsafe_code)] // waiting for a descriptor

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

pub struct Arrivals {
    inotify: Inotify,
    /// The same descriptor, for waiting.
    readable: AsyncFd<OwnedFd>,
}

impl Arrivals {
    /// Of the store in `root`. The index is put in place by a rename, which is all that is looked for.
    pub fn of(root: &Path) -> io::Result<Arrivals> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(root, AddWatchFlags::IN_MOVED_TO)?;
        let descriptor = inotify.as_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor is owned by what is registered, so it stays open as long as it is waited for.
        let readable = unsafe { AsyncFd::register(descriptor) }?;
        Ok(Arrivals { inotify, readable })
    }

    /// Waits for the next replacement; several at once may be told as one.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.readable.readable().await?;
            match guard.try_io(|_| self.inotify.read_events().map_err(io::Error::from)) {
                Ok(Ok(events)) if events.iter().any(|e| e.name.as_deref() == Some("index.json".as_ref())) => return Ok(()),
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_replaced_index_is_told() {
        let dir = std::env::temp_dir().join(format!("coracle-arrivals-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut arrivals = Arrivals::of(&dir).unwrap();
        for name in ["other", "index.json"] {
            std::fs::write(dir.join("tmp"), name).unwrap();
            std::fs::rename(dir.join("tmp"), dir.join(name)).unwrap();
        }
        tokio::time::timeout(std::time::Duration::from_secs(10), arrivals.next()).await.unwrap().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
