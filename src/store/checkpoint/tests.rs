//! Cases for checkpoints, on a real directory.

use std::sync::Arc;

use super::*;
use crate::store::command::{Batch, Command};
use crate::store::raft::{Core, Shared};
use crate::store::state::State;
use crate::store::tests::TempDir;

struct Bench {
    dir: TempDir,
    shared: Arc<Shared>,
    checkpoints: Checkpoints,
}

impl Bench {
    fn new(name: &str) -> Bench {
        let dir = TempDir::new(name);
        let checkpoints = Checkpoints::open(&dir.0.join("sled")).unwrap();
        Bench { dir, shared: Arc::new(Shared::new(Core::default(), 1 << 20)), checkpoints }
    }

    fn apply(&self, batch: Batch) {
        let expires = vec![0; batch.puts.len()];
        self.shared.write().state.apply(&Command::Batch { batch, expires }, &mut Vec::new());
    }

    fn put(&self, key: &str, value: Vec<u8>) {
        self.apply(Batch::put(key.to_string(), value));
    }

    fn save(&mut self) {
        let (pin, superseded) = self.shared.begin_checkpoint();
        self.checkpoints.save(1, &pin, &superseded).unwrap();
    }

    fn rows(&self) -> Vec<Row> {
        self.shared.pin().rows(0).flatten().collect()
    }

    /// Closes the database, opens it again and loads.
    fn reload(mut self) -> (Bench, Vec<Row>) {
        let path = self.dir.0.join("sled");
        drop(self.checkpoints);
        self.checkpoints = Checkpoints::open(&path).unwrap();
        let (head, rows) = self.checkpoints.load().unwrap().unwrap();
        let mut state = State::restore(head.revision, rows.clone());
        state.set_checkpoint(head.revision);
        self.shared = Arc::new(Shared::new(Core { state, ..Core::default() }, 1 << 20));
        (self, rows)
    }
}

#[test]
fn checkpoints_follow_the_state_and_leave_no_rubbish() {
    let mut bench = Bench::new("checkpoints-follow");
    for round in 0..6u32 {
        for i in 0..60 {
            bench.put(&format!("g\0r\0a\0{i:03}"), vec![round as u8; 40 * (1 + i as usize * i as usize)]);
        }
        for i in (round..60).step_by(7) {
            bench.apply(Batch::delete(format!("g\0r\0a\0{i:03}")));
        }
        bench.put("g\0r\0a\0come", vec![1]);
        bench.apply(Batch::delete("g\0r\0a\0come"));
        // Compaction forgets deleted keys altogether; the checkpoint must still learn of them.
        let revision = bench.shared.read().state.revision();
        bench.shared.write().state.apply(&Command::Compact { revision }, &mut Vec::new());
        bench.save();
        let expected = bench.rows();
        let (again, rows) = bench.reload();
        assert_eq!(rows, expected, "round {round}");
        bench = again;
    }
    bench.save();
    bench.save();
    let chunks: usize = bench.rows().iter().map(|row| encode_row(row, &mut Deflater::new()).len()).sum();
    assert_eq!(bench.checkpoints.rows.len(), chunks, "replaced rows and tombstones are gone");
    assert!(!bench.dir.0.join("sled/blobs").exists() || fs::read_dir(bench.dir.0.join("sled/blobs")).unwrap().count() == 0);
}

#[test]
fn large_values_never_become_blobs() {
    let mut bench = Bench::new("no-blobs");
    for i in 0..30u32 {
        let noise = (0..400_000u32).map(|n| (n.wrapping_mul(2_654_435_761).wrapping_add(i) >> 11) as u8).collect();
        bench.put(&format!("g\0r\0a\0{i:03}"), noise);
    }
    bench.save();
    let blobs = fs::read_dir(bench.dir.0.join("sled/blobs")).map_or(0, |dir| dir.count());
    assert_eq!(blobs, 0);
    let expected = bench.rows();
    assert_eq!(bench.reload().1, expected);
}

#[test]
fn a_failed_checkpoint_is_made_up_for() {
    let mut bench = Bench::new("failed-checkpoint");
    bench.put("a", vec![1]);
    bench.put("b", vec![1]);
    bench.save();
    bench.put("a", vec![2]);
    let (pin, superseded) = bench.shared.begin_checkpoint();
    // The rows were written and then the disk was full.
    let mut batch = Pending::default();
    for row in pin.rows(2).flatten() {
        batch.put(&bench.checkpoints.rows, row_key(&row.key, row.revision, 0), encode_row(&row, &mut Deflater::new()).concat()).unwrap();
    }
    batch.apply(&bench.checkpoints.rows).unwrap();
    drop(pin);
    bench.shared.write().state.abandon_checkpoint(superseded);
    bench.apply(Batch::delete("a"));
    bench.apply(Batch::delete("b"));
    bench.put("b", vec![3]);
    bench.save();
    let expected = bench.rows();
    let (mut bench, rows) = bench.reload();
    assert_eq!(rows, expected);
    bench.save();
    assert_eq!(bench.reload().1, expected);
}

#[test]
fn what_does_not_add_up_is_not_trusted() {
    let mut bench = Bench::new("not-trusted");
    for i in 0..20 {
        bench.put(&format!("k{i}"), vec![i; 10]);
    }
    bench.save();
    // A row lost without a word, as a flipped bit in sled's log does.
    bench.checkpoints.rows.remove(row_key(b"k7", 8, 0)).unwrap();
    bench.checkpoints.flush().unwrap();
    let path = bench.dir.0.join("sled");
    drop(bench.checkpoints);
    let error = Checkpoints::open(&path).unwrap().load().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(Checkpoints::start_over(&path).unwrap().load().unwrap().is_none());
    assert!(bench.dir.0.join("sled.bad").exists());
}

#[test]
fn half_written_recovery_files_do_no_harm() {
    let mut bench = Bench::new("generating");
    bench.put("a", vec![1]);
    bench.save();
    let path = bench.dir.0.join("sled");
    drop(bench.checkpoints);
    fs::write(path.join("snap.0000000000000001.generating"), b"half").unwrap();
    assert_eq!(Checkpoints::open(&path).unwrap().load().unwrap().unwrap().1.len(), 1);
}
