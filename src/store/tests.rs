//! Cases for the whole store, without a disk.

use super::*;

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future);
}

fn config(disk: &fake::SimFs) -> Config {
    Config { fs: Arc::new(disk.clone()), wal_segment_bytes: 64 << 10, ..Config::memory() }
}

#[test]
fn writes_are_read_watched_and_found_again() {
    block_on(async {
        let disk = fake::SimFs::new();
        let store = Store::open(config(&disk)).await.unwrap();
        let mut watcher = store.watch(b"\0pods\0", store.revision()).unwrap();
        let written = store.write(Batch::put("\0pods\0a\0web", "1")).await.unwrap();
        assert_eq!(written.revisions, [1]);
        let events = watcher.next().await.unwrap();
        assert_eq!((events[0].revision, events[0].value.as_deref()), (1, Some(&b"1"[..])));
        let again = store.write(Batch::put("\0pods\0a\0web", "2").check("\0pods\0a\0web", Expect::Absent)).await;
        assert!(matches!(again, Err(Error::Conflict { current: Some(entry), .. }) if entry.mod_revision == 1));
        store.close().await;
        assert!(matches!(store.write(Batch::put("x", "y")).await, Err(Error::Closed)));

        let store = Store::open(config(&disk)).await.unwrap();
        assert_eq!(store.revision(), 1, "a clean end needs no jump");
        assert_eq!(store.get(b"\0pods\0a\0web").unwrap().value, "1");
        let page = store.range(Range::all("\0pods\0")).unwrap();
        assert_eq!((page.entries.len(), page.revision, page.more), (1, 1, false));
        store.close().await;
    });
}

#[test]
fn limits_are_refusals() {
    block_on(async {
        let store = Store::open(Config::memory()).await.unwrap();
        let large = Batch::put("k", vec![0; VALUE_BYTES_MAX + 1]);
        assert!(matches!(store.write(large).await, Err(Error::TooLarge)));
        store.write(Batch::put("k", vec![0; VALUE_BYTES_MAX])).await.unwrap();
        assert!(matches!(store.get_at(b"k", 5), Err(Error::Future { requested: 5, current: 1 })));
        store.write(Batch::put("k", "2")).await.unwrap();
        store.compact(2).await.unwrap();
        assert!(matches!(store.get_at(b"k", 1), Err(Error::Compacted { requested: 1, compacted: 2 })));
        assert!(matches!(store.range(Range { at: Some(1), ..Range::default() }), Err(Error::Compacted { .. })));
        store.health().unwrap();
        store.close().await;
    });
}

#[test]
fn long_lists_are_of_one_revision() {
    block_on(async {
        let store = Store::open(Config::memory()).await.unwrap();
        for i in 0..3 {
            let put = |n| Put { key: format!("\0pods\0a\0{n:05}").into(), value: format!("{i}").into(), ttl_seconds: None };
            store.write(Batch { puts: (0..1200).map(put).collect(), ..Batch::default() }).await.unwrap();
        }
        let page = store.range(Range { at: Some(1200), ..Range::all("\0pods\0") }).unwrap();
        assert_eq!((page.entries.len(), page.more), (1200, false));
        assert!(page.entries.iter().all(|entry| entry.value == "0"));
        let page = store.range(Range { limit: 700, ..Range::all("\0pods\0") }).unwrap();
        assert_eq!((page.entries.len(), page.more, page.revision), (700, true, 3600));
        assert_eq!(store.count(b"\0pods\0"), 1200);
        store.close().await;
    });
}

#[test]
fn relaxed_writes_cost_no_sync() {
    block_on(async {
        let disk = fake::SimFs::new();
        let store = Store::open(config(&disk)).await.unwrap();
        let before = disk.syncs();
        for i in 0..100 {
            store.write(Batch { durability: Durability::Soon, ..Batch::put("\0leases\0n\0a", format!("{i}")) }).await.unwrap();
        }
        assert_eq!(disk.syncs() - before, 0);
        store.write(Batch::put("\0pods\0a\0web", "1")).await.unwrap();
        assert_eq!(disk.syncs() - before, 1);
        store.close().await;
    });
}

/// A directory of this test's own, gone afterwards.
pub(super) struct TempDir(pub PathBuf);

impl TempDir {
    pub(super) fn new(name: &str) -> TempDir {
        let dir = std::env::temp_dir().join(format!("coracle-store-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        TempDir(dir)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // Nothing depends on it being gone.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn on_disk(dir: &TempDir) -> Config {
    Config { wal_segment_bytes: 64 << 10, reserve_bytes: 0, on_log_failure: |_| {}, ..Config::new(&dir.0) }
}

async fn fill(store: &Store, from: usize, to: usize) {
    for i in from..to {
        store.write(Batch::put(format!("\0pods\0a\0{:03}", i % 50), vec![i as u8; 700])).await.unwrap();
    }
}

fn dump(store: &Store) -> Vec<Entry> {
    store.range(Range::default()).unwrap().entries
}

#[test]
fn the_log_is_let_go_behind_two_copies_and_the_store_comes_back() {
    block_on(async {
        let dir = TempDir::new("let-go");
        let store = Store::open(on_disk(&dir)).await.unwrap();
        assert!(matches!(Store::open(on_disk(&dir)).await, Err(Error::Locked { .. })));
        for round in 0..4 {
            fill(&store, round * 300, round * 300 + 300).await;
            store.checkpoint().await.unwrap();
        }
        assert!(store.inner.wal.purged().unwrap().index > 800, "up to the checkpoint before the last");
        let (before, revision) = (dump(&store), store.revision());
        store.close().await;
        drop(store);
        let store = Store::open(on_disk(&dir)).await.unwrap();
        assert_eq!((dump(&store), store.revision()), (before.clone(), revision));
        let stats = store.stats();
        assert!(stats.keys == 50 && stats.disk_bytes > 0 && stats.prefixes.len() == 1, "{stats:?}");
        store.close().await;
        drop(store);

        // The checkpoint database gone bad, then gone, then the snapshot gone bad, too.
        for damage in ["bad", "gone"] {
            match damage {
                "bad" => {
                    let db = dir.0.join("sled/db");
                    let mut bytes = std::fs::read(&db).unwrap();
                    bytes.iter_mut().skip(100).step_by(1000).for_each(|byte| *byte ^= 1);
                    std::fs::write(&db, bytes).unwrap();
                }
                _ => std::fs::remove_dir_all(dir.0.join("sled")).unwrap(),
            }
            let store = Store::open(on_disk(&dir)).await.unwrap();
            assert_eq!((dump(&store), store.revision()), (before.clone(), revision), "sled {damage}");
            store.close().await;
        }
        std::fs::remove_dir_all(dir.0.join("sled")).unwrap();
        for file in std::fs::read_dir(dir.0.join("snap")).unwrap() {
            std::fs::write(file.unwrap().path(), b"nonsense").unwrap();
        }
        let refused = Store::open(on_disk(&dir)).await.unwrap_err();
        assert!(matches!(&refused, Error::Damaged { what } if what.contains("restore a snapshot")), "{refused}");
    });
}

#[test]
fn expired_keys_go_with_an_event() {
    block_on(async {
        let config = Config { now: || 1_000_000, ..Config::memory() };
        let store = Store::open(config).await.unwrap();
        let put = Put { key: "\0events\0a\0x".into(), value: "v".into(), ttl_seconds: Some(0) };
        let mut watcher = store.watch(b"\0events\0", 0).unwrap();
        store.write(Batch { puts: vec![put], durability: Durability::Soon, ..Batch::default() }).await.unwrap();
        let later = Put { key: "\0events\0a\0y".into(), value: "v".into(), ttl_seconds: Some(1) };
        store.write(Batch { puts: vec![later], durability: Durability::Soon, ..Batch::default() }).await.unwrap();
        let mut events = Vec::new();
        while events.len() < 3 {
            events.extend(watcher.next().await.unwrap());
        }
        assert_eq!(
            events.iter().map(|e| (e.key.as_ref(), e.value.is_some())).collect::<Vec<_>>(),
            [(&b"\0events\0a\0x"[..], true), (&b"\0events\0a\0y"[..], true), (&b"\0events\0a\0x"[..], false),]
        );
        assert_eq!(store.count(b"\0events\0"), 1);
        store.close().await;
    });
}

#[test]
fn an_idle_store_writes_nothing() {
    block_on(async {
        let disk = fake::SimFs::new();
        let store = Store::open(config(&disk)).await.unwrap();
        fill(&store, 0, 10).await;
        store.checkpoint().await.unwrap();
        let (appended, syncs) = (store.inner.wal.appended(), disk.syncs());
        // Long enough for raft's heartbeats and elections and two looks of the keeper.
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        assert_eq!((store.inner.wal.appended(), disk.syncs()), (appended, syncs));
        fill(&store, 0, 1).await;
        store.health().unwrap();
        store.close().await;
    });
}

/// What one key went through: operation `n` wrote `n` or, every fifth, deleted it.
#[derive(Clone, Copy, Default)]
struct Track {
    issued: u64,
    acked: u64,
}

fn operation(key: &str, n: u64) -> Batch {
    let durability = if key.contains("leases") { Durability::Soon } else { Durability::Now };
    let batch = if n.is_multiple_of(5) { Batch::delete(key.to_string()) } else { Batch::put(key.to_string(), format!("{n:0400}")) };
    Batch { durability, ..batch }
}

/// Which operation left the key as it is, if one in `from..=to` did.
fn explained(found: Option<&Entry>, from: u64, to: u64) -> bool {
    match found {
        Some(entry) => (from..=to).contains(&std::str::from_utf8(&entry.value).unwrap().parse().unwrap()),
        None => (from..=to).any(|n| n.is_multiple_of(5)),
    }
}

#[test]
fn power_cuts_lose_nothing_that_was_acknowledged() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async {
        let mut disk = fake::SimFs::new();
        let keys: Arc<Vec<String>> =
            Arc::new((0..6).map(|i| format!("\0pods\0a\0{i}")).chain((0..2).map(|i| format!("\0leases\0a\0{i}"))).collect());
        let tracks = Arc::new(std::sync::Mutex::new(vec![Track::default(); keys.len()]));
        let published = Arc::new(std::sync::atomic::AtomicU64::new(0));
        for round in 0..60u64 {
            let sim = Config { wal_segment_bytes: 16 << 10, on_log_failure: |_| {}, ..config(&disk) };
            let store = Store::open(sim).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
            // No revision is issued twice, and nothing acknowledged is missing.
            assert!(store.revision() >= published.load(Ordering::SeqCst), "round {round}");
            for (i, key) in keys.iter().enumerate() {
                let Track { issued, acked } = tracks.lock().unwrap()[i];
                // Relaxed writes may be lost, so for them any earlier state will do.
                let from = if key.contains("leases") { 0 } else { acked };
                let found = store.get(key.as_bytes());
                assert!(explained(found.as_ref(), from, issued), "round {round} {key}: {found:?}, acknowledged {acked} of {issued}");
                // From here the key is known to be as found; leave a gap so that stragglers are told apart.
                let base = (issued + 10).next_multiple_of(5) + 1;
                tracks.lock().unwrap()[i] = Track { issued: base, acked: base };
                store.write(operation(key, base)).await.unwrap();
            }
            store.inner.wal.sync_blocking().unwrap();
            let stop = Arc::new(AtomicBool::new(false));
            let mut writers = Vec::new();
            for i in 0..keys.len() {
                let (store, keys, tracks, stop, published) = (store.clone(), keys.clone(), tracks.clone(), stop.clone(), published.clone());
                writers.push(tokio::spawn(async move {
                    while !stop.load(Ordering::SeqCst) {
                        let n = {
                            let mut tracks = tracks.lock().unwrap();
                            tracks[i].issued += 1;
                            tracks[i].issued
                        };
                        let Ok(written) = store.write(operation(&keys[i], n)).await else { return };
                        let mut tracks = tracks.lock().unwrap();
                        // Answers after the cut are for a disk that is no more.
                        if !stop.load(Ordering::SeqCst) {
                            tracks[i].acked = n;
                            published.fetch_max(written.revisions[0], Ordering::SeqCst);
                        }
                    }
                }));
            }
            let cycles = 1 + round % 4;
            for _ in 0..cycles {
                tokio::time::sleep(std::time::Duration::from_millis(5 + round % 13)).await;
                if round % 3 > 0 {
                    store.checkpoint().await.unwrap();
                }
            }
            {
                // Acknowledged means: answered before the power went.
                let tracks = tracks.lock().unwrap();
                stop.store(true, Ordering::SeqCst);
                drop(tracks);
                disk = disk.cut(round);
            }
            for writer in writers {
                writer.await.unwrap();
            }
            store.close().await;
        }
    });
}

#[test]
fn a_snapshot_begins_another_store() {
    block_on(async {
        let disk = fake::SimFs::new();
        let store = Store::open(config(&disk)).await.unwrap();
        fill(&store, 0, 60).await;
        store.save_snapshot("/backup.ksnap".into()).await.unwrap();
        let before = dump(&store);
        store.close().await;
        let other = Config { dir: "/other".into(), ..config(&disk) };
        assert_eq!(Store::restore(&other, "/backup.ksnap".as_ref()).unwrap(), 1_000_000_060);
        assert!(Store::restore(&other, "/backup.ksnap".as_ref()).is_err(), "not into a directory in use");
        for _ in 0..2 {
            let store = Store::open(other.clone()).await.unwrap();
            assert_eq!(dump(&store)[1..], before[1..]);
            assert!(store.revision() >= 1_000_000_060);
            assert!(matches!(store.watch(b"\0pods\0", 60), Err(Error::Compacted { .. })));
            store.write(Batch::put("\0pods\0a\x00000", "new")).await.unwrap();
            store.close().await;
        }
    });
}

#[test]
fn a_store_let_go_without_close_ends_by_itself() {
    block_on(async {
        let dir = TempDir::new("let-fall");
        let store = Store::open(on_disk(&dir)).await.unwrap();
        fill(&store, 0, 10).await;
        drop(store);
        let store = loop {
            match Store::open(on_disk(&dir)).await {
                Err(Error::Locked { .. }) => tokio::task::yield_now().await,
                other => break other.unwrap(),
            }
        };
        assert_eq!((store.count(b"\0pods\0"), store.revision()), (10, 10), "and properly");
        store.close().await;
    });
}
