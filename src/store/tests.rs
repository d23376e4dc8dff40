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
            store.write(Batch { relaxed: true, ..Batch::put("\0leases\0n\0a", format!("{i}")) }).await.unwrap();
        }
        assert_eq!(disk.syncs() - before, 0);
        store.write(Batch::put("\0pods\0a\0web", "1")).await.unwrap();
        assert_eq!(disk.syncs() - before, 1);
        store.close().await;
    });
}
