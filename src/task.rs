//! Named tasks, the cancellation tree, and what a panic does.
//!
//! Every task of the process starts here, so that each has a name and a counted life. A panic in a loop ends the process:
//! systemd starts it again, and pods live on under their shims. (A panic while answering a request is caught by the
//! server and becomes a 500.)

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Mutex;

use tokio::task::JoinHandle;
pub use tokio_util::sync::CancellationToken as Shutdown;

/// Live tasks by name: shown by `coracle status`.
static LIVE: Mutex<BTreeMap<&'static str, usize>> = Mutex::new(BTreeMap::new());

/// Starts `fut` under `name`. If it panics, the process ends with status 101 after the panic message was printed.
pub fn spawn<F>(name: &'static str, fut: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let alive = Alive::new(name);
    tokio::spawn(async move {
        let alive = alive;
        fut.await;
        drop(alive);
    })
}

/// How many tasks live under each name.
pub fn live() -> Vec<(&'static str, usize)> {
    let live = LIVE.lock().expect("no panic while counting");
    live.iter().map(|(name, n)| (*name, *n)).collect()
}

/// Counts one task while it lives; ends the process when dropped by a panic.
struct Alive(&'static str);

impl Alive {
    fn new(name: &'static str) -> Alive {
        *LIVE.lock().expect("no panic while counting").entry(name).or_insert(0) += 1;
        Alive(name)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("coracle: task {} panicked; ending the process", self.0);
            std::process::exit(101);
        }
        let mut live = LIVE.lock().expect("no panic while counting");
        if let Some(n) = live.get_mut(self.0) {
            *n -= 1;
            if *n == 0 {
                live.remove(self.0);
            }
        }
    }
}
