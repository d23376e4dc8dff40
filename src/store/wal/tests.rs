//! Cases for the log: what comes back after a proper end, a crash, and damage.

use std::sync::mpsc;

use super::*;
use crate::store::fake::SimFs;

fn options(disk: &SimFs) -> Options {
    let fs = Arc::new(disk.clone());
    Options { fs, dir: "/wal".into(), segment_bytes: 4096, reserve: None, on_failure: |_| {} }
}

fn open(disk: &SimFs) -> (Wal<u64>, Found) {
    Wal::open(options(disk)).unwrap()
}

fn append_as(wal: &Wal<u64>, indexes: std::ops::Range<u64>, size: usize, relaxed: Option<Relaxed>) {
    let (send, receive) = mpsc::channel();
    let entry = |index| (Position { term: 1, index }, vec![index as u8; size], index);
    wal.append(indexes.map(entry).collect(), relaxed, Box::new(move |result| send.send(result).unwrap())).unwrap();
    receive.recv().unwrap().unwrap();
}

fn append(wal: &Wal<u64>, indexes: std::ops::Range<u64>, size: usize) {
    append_as(wal, indexes, size, None);
}

fn wait(submit: impl FnOnce(Done)) {
    let (send, receive) = mpsc::channel();
    submit(Box::new(move |result| send.send(result).unwrap()));
    receive.recv().unwrap().unwrap();
}

/// Indexes of the entries there are, each checked for its contents.
fn entries(wal: &Wal<u64>) -> Vec<u64> {
    let check = |read| match read {
        Read::Cached(index) => index,
        Read::Encoded(at, body) => {
            assert!(body.iter().all(|byte| *byte == at.index as u8));
            at.index
        }
    };
    wal.read(0, u64::MAX).unwrap().into_iter().map(check).collect()
}

#[test]
fn entries_votes_and_positions_come_back() {
    let disk = SimFs::new();
    let (wal, found) = open(&disk);
    assert!(!found.existed);
    let vote = Ballot { term: 3, node: 1, committed: true };
    wait(|done| wal.save_vote(vote, done));
    for index in 0..40 {
        append(&wal, index..index + 1, 300);
    }
    wal.save_committed(Some(Position { term: 1, index: 30 }));
    wait(|done| wal.purge(Position { term: 1, index: 20 }, done));
    wal.close();
    let (wal, found) = open(&disk);
    assert!(found.existed && found.clean);
    assert_eq!(entries(&wal), (21..40).collect::<Vec<_>>());
    assert_eq!((wal.vote(), wal.purged().unwrap().index, wal.committed().unwrap().index), (Some(vote), 20, 30));
    assert_eq!(wal.last(), Some(Position { term: 1, index: 39 }));
    append(&wal, 40..45, 300);
    wal.close();
    assert_eq!(entries(&open(&disk).0), (21..45).collect::<Vec<_>>());
}

#[test]
fn segments_are_recycled() {
    let disk = SimFs::new();
    let (wal, _) = open(&disk);
    let mut largest = 0;
    for index in 0..500 {
        append(&wal, index..index + 1, 500);
        if index % 10 == 9 {
            wait(|done| wal.purge(Position { term: 1, index: index - 5 }, done));
        }
        largest = largest.max(disk.list("/wal".as_ref()).unwrap().len());
    }
    assert!(largest <= 6, "{largest} files at once");
    wal.close();
    assert_eq!(entries(&open(&disk).0).last(), Some(&499));
}

#[test]
fn truncated_entries_stay_away() {
    let disk = SimFs::new();
    let (wal, _) = open(&disk);
    append(&wal, 0..10, 100);
    wait(|done| wal.truncate(Some(Position { term: 1, index: 4 }), done));
    append(&wal, 5..7, 100);
    wal.close();
    assert_eq!(entries(&open(&disk).0), [0, 1, 2, 3, 4, 5, 6]);
}

/// Heartbeats alone write nothing, until they are many; what is written next takes them along.
#[test]
fn heartbeats_wait_in_memory_for_what_is_written_next() {
    let disk = SimFs::new();
    let large = || Options { segment_bytes: 1 << 20, ..options(&disk) };
    let (wal, _) = Wal::open(large()).unwrap();
    let heartbeat = Some(Relaxed { changes: 1, durability: Durability::Heartbeat });
    let (appended, syncs) = (wal.appended(), disk.syncs());
    for index in 0..20 {
        append_as(&wal, index..index + 1, 100, heartbeat);
    }
    assert_eq!((wal.appended(), disk.syncs()), (appended, syncs));
    append(&wal, 20..21, 100);
    assert_eq!(disk.syncs(), syncs + 1);
    assert_eq!(entries(&open(&disk.cut(1)).0), (0..21).collect::<Vec<_>>());
    for index in 21..21 + 2 * HEARTBEAT_BYTES_MAX as u64 / 1000 {
        append_as(&wal, index..index + 1, 1000, heartbeat);
    }
    assert!(disk.syncs() > syncs + 1, "many are written by themselves");
    wal.close();
    let written = entries(&open(&disk).0).len() as u64;
    assert_eq!(written, 21 + 2 * HEARTBEAT_BYTES_MAX as u64 / 1000);
}

#[test]
fn an_entry_larger_than_a_segment_gets_its_own() {
    let disk = SimFs::new();
    let (wal, _) = open(&disk);
    append(&wal, 0..1, 100);
    append(&wal, 1..2, 50_000);
    append(&wal, 2..3, 100);
    wal.close();
    assert_eq!(entries(&open(&disk).0), [0, 1, 2]);
}

#[test]
fn a_power_cut_loses_nothing_that_was_synced() {
    for seed in 0..300 {
        let disk = SimFs::new();
        let (wal, _) = open(&disk);
        let synced = 1 + seed % 17;
        for index in 0..synced {
            append(&wal, index..index + 1, 200 + 37 * (seed as usize % 40));
        }
        // Written and not synced: any part of it may be there after the cut.
        append_as(&wal, synced..synced + 12, 900, Some(Relaxed { changes: 12, durability: Durability::Soon }));
        let after = disk.cut(seed);
        wal.close();
        let (wal, found) = open(&after);
        let there = entries(&wal);
        assert!(there.len() as u64 >= synced, "seed {seed}: {} of {synced}", there.len());
        assert!(!found.clean);
        // What is appended now must not meet leftovers, not even after another cut.
        let next = there.len() as u64;
        append(&wal, next..next + 3, 64);
        let after = after.cut(seed);
        wal.close();
        assert_eq!(entries(&open(&after).0).len() as u64, next + 3, "seed {seed}");
    }
}

#[test]
fn a_flipped_bit_in_synced_data_is_refused_or_harmless() {
    let build = || {
        let disk = SimFs::new();
        let (wal, _) = open(&disk);
        for index in 0..20 {
            append(&wal, index..index + 1, 350);
        }
        wal.close();
        disk
    };
    let (mut refused, mut same) = (0, 0);
    let files: Vec<_> = build().list("/wal".as_ref()).unwrap();
    for name in files.iter().filter(|name| name.ends_with(".wal")) {
        for bit in (0..4096 * 8).step_by(29) {
            let disk = build();
            disk.flip(&std::path::Path::new("/wal").join(name), bit);
            match Wal::<u64>::open(options(&disk)) {
                Ok((wal, _)) => {
                    assert_eq!(entries(&wal), (0..20).collect::<Vec<_>>(), "{name} bit {bit}");
                    wal.close();
                    same += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                    assert!(error.to_string().contains("/wal/0000"), "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 100 && same > 10, "{refused} refused, {same} the same");
}

#[test]
fn a_missing_segment_is_refused() {
    let disk = SimFs::new();
    let (wal, _) = open(&disk);
    for index in 0..60 {
        append(&wal, index..index + 1, 300);
    }
    wal.close();
    for name in ["00000001.wal", "00000002.wal"] {
        let damaged = disk.cut(0);
        damaged.remove(&std::path::Path::new("/wal").join(name)).unwrap();
        let error = Wal::<u64>::open(options(&damaged)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{name}: {error}");
    }
}

#[test]
fn a_full_disk_is_announced_before_the_log_is() {
    let disk = SimFs::new();
    let (wal, _) = open(&disk);
    disk.set_full(true);
    let mut index = 0;
    while !wal.no_space() {
        append(&wal, index..index + 1, 100);
        index += 1;
        assert!(index < 40, "not announced while there was room");
        std::thread::yield_now();
        if index > 20 {
            // The thread that allocates may need a moment to be told no.
            while wal.shared.making_spare.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
        }
    }
    disk.set_full(false);
    assert!(!wal.has_failed());
    wal.close();
    assert_eq!(entries(&open(&disk).0).len() as u64, index);
}
