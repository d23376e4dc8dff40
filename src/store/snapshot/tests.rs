//! Cases for snapshot files: they read back, or say they do not.

use bytes::Bytes;

use super::*;
use crate::store::command::{Batch, Command};
use crate::store::fake::SimFs;
use crate::store::raft::{Core, Shared};

fn shared(keys: u32) -> Arc<Shared> {
    let mut core = Core::default();
    for i in 0..keys {
        let value = Bytes::from(vec![i as u8; 10 + i as usize % 900]);
        let batch = Batch::put(format!("g\0r\0ns\0{i:06}"), value);
        core.state.apply(&Command::Batch { batch, expires: vec![0] }, &mut Vec::new());
    }
    Arc::new(Shared::new(core, 1 << 20))
}

#[test]
fn snapshots_read_back_and_only_two_are_kept() {
    let disk = SimFs::new();
    let dir = Path::new("/snap");
    for keys in [0, 1, 7000] {
        let shared = shared(keys);
        let saved = save(&disk, dir, 5, &shared.pin()).unwrap();
        let (head, rows) = load(&disk, &saved.path).unwrap();
        assert_eq!(head, saved.head);
        assert_eq!(super::head(&disk, &saved.path).unwrap(), saved.head);
        assert_eq!(rows, shared.pin().rows(0).flatten().collect::<Vec<_>>());
        assert_eq!(rows.len(), keys as usize);
    }
    let newest_first = list(&disk, dir).unwrap();
    assert_eq!(newest_first.len(), 2);
    assert_eq!(load(&disk, &newest_first[0]).unwrap().1.len(), 7000);
}

#[test]
fn a_flipped_bit_or_a_cut_file_is_refused() {
    let disk = SimFs::new();
    let saved = save(&disk, Path::new("/snap"), 5, &shared(40).pin()).unwrap();
    for bit in (0..saved.bytes * 8).step_by(3) {
        disk.flip(&saved.path, bit);
        let error = load(&disk, &saved.path).expect_err(&format!("bit {bit}"));
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().starts_with("/snap/"), "{error}");
        disk.flip(&saved.path, bit);
    }
    load(&disk, &saved.path).unwrap();
    let whole = crate::store::fs::read_all(disk.open(&saved.path).unwrap().as_ref()).unwrap();
    for length in (0..whole.len()).step_by(7) {
        disk.create(&saved.path).unwrap().write_at(&whole[..length], 0).unwrap();
        assert!(load(&disk, &saved.path).is_err(), "the first {length} bytes");
    }
}
