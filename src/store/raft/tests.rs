//! openraft's own suite over the log and the machine.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::machine::{Core, Machine, Shared};
use super::types::Types;
use super::{LogEntry, log::Log};
use crate::store::fake::SimFs;
use crate::store::wal::{Options, Wal};

struct Builder;

/// Ends the log's thread.
struct Close(Wal<LogEntry>);

impl Drop for Close {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl StoreBuilder<Types, Log, Machine, Close> for Builder {
    async fn build(&self) -> Result<(Close, Log, Machine), StorageError<Types>> {
        let options = Options {
            fs: Arc::new(SimFs::new()),
            dir: "/wal".into(),
            segment_bytes: 16 << 10,
            reserve: None,
            on_failure: |error| panic!("{error}"),
        };
        let (wal, _) = Wal::open(options).expect("a fresh log opens");
        let shared = Arc::new(Shared::new(Core::default(), 1 << 20));
        Ok((Close(wal.clone()), Log::new(wal, Arc::new(AtomicBool::new(true))), Machine::new(shared)))
    }
}

#[test]
fn openraft_suite() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}
