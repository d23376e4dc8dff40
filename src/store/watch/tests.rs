//! Cases for the hub: what each kind of watcher sees, and when it is cut.

use super::*;

fn change(revision: u64, key: &str) -> Change {
    Change { revision, key: Bytes::copy_from_slice(key.as_bytes()), value: Some("v".into()), previous: None }
}

fn publish(hub: &Hub, changes: &[(u64, &str)]) {
    let mut wakes = Wakes::default();
    let last = changes.last().map_or(0, |c| c.0);
    hub.publish(&mut changes.iter().map(|(r, k)| change(*r, k)).collect(), last, &mut wakes);
    wakes.wake();
}

fn revisions(watcher: &mut Watcher) -> Vec<u64> {
    watcher.try_next().unwrap().iter().map(|e| e.revision).collect()
}

fn hub(ring_bytes: usize) -> Arc<Hub> {
    Arc::new(Hub::new(0, ring_bytes))
}

#[test]
fn filters_by_resource_namespace_and_key() {
    let hub = hub(1 << 20);
    let mut all = hub.watch(b"g\0r\0", 0).unwrap();
    let mut namespace = hub.watch(b"g\0r\0a\0", 0).unwrap();
    let mut key = hub.watch(b"g\0r\0a\0web", 0).unwrap();
    publish(&hub, &[(1, "g\0r\0a\0web"), (2, "g\0r\0a\0web-2"), (3, "g\0r\0b\0web"), (4, "g\0s\0a\0web")]);
    assert_eq!(revisions(&mut all), [1, 2, 3]);
    assert_eq!(revisions(&mut namespace), [1, 2]);
    assert_eq!(revisions(&mut key), [1]);
    assert_eq!([all.progress(), namespace.progress(), key.progress()], [4, 4, 4], "idle watchers move with the store");
    assert_eq!(hub.watchers(), 3);
    drop((all, namespace, key));
    assert_eq!(hub.watchers(), 0);
}

#[test]
fn begins_after_the_given_revision() {
    let hub = hub(1 << 20);
    publish(&hub, &[(1, "g\0r\0a\x001"), (2, "g\0r\0a\x002"), (3, "g\0r\0a\x003")]);
    let mut watcher = hub.watch(b"g\0r\0", 2).unwrap();
    assert_eq!(watcher.progress(), 2, "an event is still to come");
    assert_eq!(revisions(&mut watcher), [3]);
    // A watcher that starts at a revision which apply has reached and the hub has not is not told of it twice.
    let mut ahead = hub.watch(b"g\0r\0", 4).unwrap();
    publish(&hub, &[(4, "g\0r\0a\x004"), (5, "g\0r\0a\x005")]);
    assert_eq!(revisions(&mut ahead), [5]);
}

#[test]
fn a_slow_watcher_is_cut_and_a_quiet_one_is_not() {
    let hub = hub(3 * EVENT_OVERHEAD_BYTES);
    let mut slow = hub.watch(b"g\0r\0", 0).unwrap();
    let mut quiet = hub.watch(b"g\0r\0z\0", 0).unwrap();
    for revision in 1..=9 {
        publish(&hub, &[(revision, "g\0r\0a\x001")]);
    }
    assert!(matches!(slow.try_next(), Err(Error::Compacted { requested: 0, compacted: 7 })));
    assert!(matches!(hub.watch(b"g\0r\0", 6), Err(Error::Compacted { requested: 6, compacted: 7 })));
    assert_eq!(revisions(&mut hub.watch(b"g\0r\0", 7).unwrap()), [8, 9]);
    assert_eq!(revisions(&mut quiet), [0u64; 0]);
    publish(&hub, &[(10, "g\0r\0z\x001")]);
    assert_eq!(revisions(&mut quiet), [10]);
}

#[test]
fn large_backlogs_come_in_pieces() {
    let hub = hub(1 << 20);
    let mut watcher = hub.watch(b"g\0r\0", 0).unwrap();
    let total = DELIVERY_MAX as u64 + 10;
    for revision in 1..=total {
        publish(&hub, &[(revision, "g\0r\0a\x001")]);
    }
    assert_eq!(revisions(&mut watcher).len(), DELIVERY_MAX);
    assert_eq!(watcher.progress(), DELIVERY_MAX as u64);
    assert_eq!(revisions(&mut watcher).len(), 10);
    assert_eq!(watcher.progress(), total);
}

#[test]
fn a_jump_cuts_everybody() {
    let hub = hub(1 << 20);
    let mut idle = hub.watch(b"g\0r\0", 0).unwrap();
    publish(&hub, &[(1, "g\0s\0a\x001")]);
    let mut wakes = Wakes::default();
    hub.reset(100, &mut wakes);
    assert!(matches!(idle.try_next(), Err(Error::Compacted { compacted: 100, .. })));
    assert!(matches!(hub.watch(b"g\0new\0", 99), Err(Error::Compacted { .. })));
    assert!(hub.watch(b"g\0new\0", 100).is_ok());
}

#[test]
fn a_waiting_watcher_wakes_only_for_its_own() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let hub = hub(1 << 20);
        let mut watcher = hub.watch(b"g\0r\0a\0", 0).unwrap();
        let task = tokio::spawn(async move { watcher.next().await.unwrap()[0].revision });
        tokio::task::yield_now().await;
        publish(&hub, &[(1, "g\0r\0b\x001")]);
        tokio::task::yield_now().await;
        assert!(!task.is_finished());
        publish(&hub, &[(2, "g\0r\0a\x001")]);
        assert_eq!(task.await.unwrap(), 2);
    });
}

#[test]
fn encodings_are_shared_while_an_event_is_new_then_let_go() {
    let hub = hub(1 << 20);
    let mut first = hub.watch(b"g\0r\0", 0).unwrap();
    let mut second = hub.watch(b"g\0r\0", 0).unwrap();
    publish(&hub, &[(1, "g\0r\0a\x001")]);
    let told = |watcher: &mut Watcher| watcher.try_next().unwrap().remove(0).frames.unwrap();
    let made = told(&mut first).get_or_init(0, || "made once".into());
    assert_eq!(told(&mut second).get_or_init(0, || unreachable!("it is there")), made);
    let held = Arc::downgrade(&told(&mut hub.watch(b"g\0r\0", 0).unwrap()));
    for revision in 2..=FRAMED_MAX as u64 {
        publish(&hub, &[(revision, "g\0r\0a\x001")]);
    }
    assert!(held.upgrade().is_some());
    publish(&hub, &[(FRAMED_MAX as u64 + 1, "g\0r\0a\x001")]);
    assert!(held.upgrade().is_none(), "no ring holds it any more");
    let late = hub.watch(b"g\0r\0", 0).unwrap().try_next().unwrap();
    assert_eq!(late.iter().map(|e| e.frames.is_some()).collect::<Vec<_>>()[..2], [false, true]);
}
