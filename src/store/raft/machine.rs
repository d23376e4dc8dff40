//! The state machine: committed commands into the state, events into the hub, outcomes to whoever waits.
//!
//! Events are published before the write is answered; watchers are woken after. A chunk of entries that is ready is
//! applied under one lock. Snapshots are pins: nothing is copied or written here, and building one cannot fail
//! (checkpoints are made elsewhere, `store::checkpoint`). Start at [`Shared`] and `Machine::apply`.

use std::io;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};

use super::types::Types;
use super::{LogId, Snapshot, SnapshotMeta, StoredMembership, log, log_id, position};
use crate::store::command::{Command, Input};
use crate::store::state::{Outcome, Row, State};
use crate::store::wal::Position;
use crate::store::watch::{Hub, Wakes};

/// Entries applied under one lock.
const CHUNK: usize = 256;
/// Rows copied under one lock.
const PAGE: usize = 512;

/// Who the voters and learners are, and since which entry; opaque outside raft.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Members(StoredMembership);

impl Members {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let at = self.0.log_id().as_ref().map_or(Position { term: u64::MAX, index: u64::MAX }, position);
        out.extend_from_slice(&at.term.to_le_bytes());
        out.extend_from_slice(&at.index.to_le_bytes());
        log::encode_membership(self.0.membership(), out);
    }

    pub(crate) fn decode(input: &mut Input) -> Option<Members> {
        let at = Position { term: input.u64()?, index: input.u64()? };
        let at = (at.index != u64::MAX).then(|| log_id(at));
        Some(Members(StoredMembership::new(at, log::decode_membership(input)?)))
    }
}

/// The applied state and where in the log it stands.
#[derive(Debug, Default)]
pub(crate) struct Core {
    pub state: State,
    pub applied: Option<Position>,
    pub members: Members,
    /// A snapshot exists or was installed; until then there is none to speak of.
    pub has_snapshot: bool,
}

/// What apply writes and everyone reads.
#[derive(Debug)]
pub(crate) struct Shared {
    core: RwLock<Core>,
    pub hub: Arc<Hub>,
}

impl Shared {
    pub(crate) fn new(core: Core, ring_bytes: usize) -> Shared {
        let hub = Arc::new(Hub::new(core.state.revision(), ring_bytes));
        Shared { core: RwLock::new(core), hub }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Core> {
        self.core.read().expect("no panic while the state is locked")
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Core> {
        self.core.write().expect("no panic while the state is locked")
    }

    /// Holds the present state for a checkpoint; with the rows replaced since the last attempt.
    pub(crate) fn begin_checkpoint(self: &Arc<Self>) -> (Pin, Vec<(Bytes, u64)>) {
        let mut core = self.write();
        let revision = core.state.revision();
        core.state.pin(revision);
        let superseded = core.state.begin_checkpoint();
        let pin = Pin { shared: self.clone(), revision, applied: core.applied, members: core.members.clone() };
        (pin, superseded)
    }

    /// Holds the present state for reading at leisure.
    pub(crate) fn pin(self: &Arc<Self>) -> Pin {
        let mut core = self.write();
        let revision = core.state.revision();
        core.state.pin(revision);
        Pin { shared: self.clone(), revision, applied: core.applied, members: core.members.clone() }
    }

    /// Holds the state as of an earlier revision that is not compacted.
    pub(crate) fn pin_at(self: &Arc<Self>, revision: u64) -> Pin {
        let mut core = self.write();
        core.state.pin(revision);
        Pin { shared: self.clone(), revision, applied: core.applied, members: core.members.clone() }
    }
}

/// The state as of one revision, kept readable until dropped. Also what openraft calls snapshot data.
#[derive(Debug)]
pub(crate) struct Pin {
    shared: Arc<Shared>,
    pub revision: u64,
    pub applied: Option<Position>,
    pub members: Members,
}

impl Pin {
    /// The key is there as of the pinned revision.
    pub(crate) fn has(&self, key: &[u8]) -> bool {
        self.shared.read().state.get_at(key, self.revision).is_some()
    }

    /// The rows written after `since`, in key order, a page at a time.
    pub(crate) fn rows(&self, since: u64) -> impl Iterator<Item = Vec<Row>> + '_ {
        let mut after = None;
        let mut finished = false;
        std::iter::from_fn(move || {
            if finished {
                return None;
            }
            let (rows, next) = self.shared.read().state.rows(after.as_deref(), self.revision, since, PAGE);
            finished = next.is_none();
            after = next;
            Some(rows)
        })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.shared.write().state.unpin(self.revision);
    }
}

#[derive(Clone)]
pub(super) struct Machine {
    shared: Arc<Shared>,
}

impl Machine {
    pub(super) fn new(shared: Arc<Shared>) -> Machine {
        Machine { shared }
    }

    fn snapshot(&self) -> Snapshot {
        let pin = self.shared.pin();
        let meta = SnapshotMeta { last_log_id: pin.applied.map(log_id), last_membership: pin.members.0.clone() };
        Snapshot { meta, snapshot: pin }
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Pin;
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let core = self.shared.read();
        Ok((core.applied.map(log_id), core.members.0.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(CHUNK);
        let mut changes = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let mut answers = Vec::with_capacity(chunk.len());
            let mut wakes = Wakes::default();
            let mut failure = None;
            let mut jumped = false;
            let mut core = self.shared.write();
            for item in chunk {
                let (entry, responder) = match item {
                    Ok(item) => item,
                    Err(error) => {
                        failure = Some(error);
                        break;
                    }
                };
                core.applied = Some(position(&entry.log_id()));
                let outcome = match &entry.payload {
                    EntryPayload::Blank => Outcome::Done,
                    EntryPayload::Normal(command) => {
                        jumped |= matches!(**command, Command::Jump { .. });
                        core.state.apply(command, &mut changes)
                    }
                    EntryPayload::Membership(members) => {
                        core.members = Members(StoredMembership::new(Some(entry.log_id()), members.clone()));
                        Outcome::Done
                    }
                };
                answers.extend(responder.map(|responder| (responder, outcome)));
            }
            let revision = core.state.revision();
            drop(core);
            self.shared.hub.publish(&mut changes, revision, &mut wakes);
            if jumped {
                self.shared.hub.reset(revision, &mut wakes);
            }
            for (responder, outcome) in answers {
                responder.send(outcome);
            }
            wakes.wake();
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, pin: Pin) -> io::Result<()> {
        let state = State::restore(pin.revision, pin.rows(0).flatten());
        let mut wakes = Wakes::default();
        *self.shared.write() = Core {
            state,
            applied: meta.last_log_id.as_ref().map(position),
            members: Members(meta.last_membership.clone()),
            has_snapshot: true,
        };
        self.shared.hub.reset(pin.revision, &mut wakes);
        wakes.wake();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let exists = self.shared.read().has_snapshot;
        Ok(exists.then(|| self.snapshot()))
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = Pin;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        self.shared.write().has_snapshot = true;
        Ok(self.snapshot())
    }
}
