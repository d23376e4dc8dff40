//! The raft log over `wal`: entries encoded and decoded, appends answered from the log's thread.
//!
//! An append made only of relaxed entries need not be synced before it counts, as long as this node is the only voter:
//! then losing it loses nothing anybody else has seen, and start-up moves the revision past it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::{BasicNode, EntryPayload, LogState};
use tokio::sync::oneshot;

use super::types::Types;
use super::{LogEntry, LogId, Membership, Vote, log_id, position};
use crate::store::command::{Command, Input, Relaxed, put_bytes, put_u32};
use crate::store::wal::{Ballot, Position, Read, Wal};

#[derive(Clone)]
pub(super) struct Log {
    wal: Wal<LogEntry>,
    /// This node is the only voter.
    sole: Arc<AtomicBool>,
}

impl Log {
    pub(super) fn new(wal: Wal<LogEntry>, sole: Arc<AtomicBool>) -> Log {
        Log { wal, sole }
    }
}

/// Runs `submit` with a callback and waits for it to be called.
async fn done(submit: impl FnOnce(Box<dyn FnOnce(io::Result<()>) + Send>)) -> io::Result<()> {
    let (send, receive) = oneshot::channel();
    submit(Box::new(move |result| {
        // Nobody listens any more only while shutting down.
        let _ = send.send(result);
    }));
    receive.await.map_err(|_| io::Error::other("the log's thread is gone"))?
}

fn encode(entry: &LogEntry) -> Vec<u8> {
    let mut out = Vec::new();
    match &entry.payload {
        EntryPayload::Blank => out.push(0),
        EntryPayload::Normal(command) => {
            out.push(1);
            command.encode(&mut out);
        }
        EntryPayload::Membership(members) => {
            out.push(2);
            encode_membership(members, &mut out);
        }
    }
    out
}

fn decode(at: Position, body: &[u8]) -> io::Result<LogEntry> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("log entry {} cannot be decoded", at.index));
    let (kind, rest) = body.split_first().ok_or_else(damaged)?;
    let payload = match kind {
        0 => EntryPayload::Blank,
        1 => EntryPayload::Normal(Arc::new(Command::decode(rest).ok_or_else(damaged)?)),
        2 => EntryPayload::Membership(decode_membership(&mut Input(rest)).ok_or_else(damaged)?),
        _ => return Err(damaged()),
    };
    Ok(LogEntry { log_id: log_id(at), payload })
}

pub(super) fn encode_membership(members: &Membership, out: &mut Vec<u8>) {
    put_u32(out, members.get_joint_config().len());
    for config in members.get_joint_config() {
        put_u32(out, config.len());
        config.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
    }
    put_u32(out, members.nodes().count());
    for (id, node) in members.nodes() {
        out.extend_from_slice(&id.to_le_bytes());
        put_bytes(out, node.addr.as_bytes());
    }
}

pub(super) fn decode_membership(input: &mut Input) -> Option<Membership> {
    let mut configs = Vec::new();
    for _ in 0..input.u32()? {
        let n = input.u32()?;
        configs.push((0..n).map(|_| input.u64()).collect::<Option<_>>()?);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..input.u32()? {
        let id = input.u64()?;
        nodes.insert(id, BasicNode { addr: String::from_utf8(input.slice()?.to_vec()).ok()? });
    }
    if configs.is_empty() {
        return Some(Membership::default());
    }
    Membership::new(configs, nodes).ok()
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(&mut self, range: R) -> io::Result<Vec<LogEntry>> {
        let start = match range.start_bound() {
            Bound::Included(at) => *at,
            Bound::Excluded(at) => at + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(at) => at + 1,
            Bound::Excluded(at) => *at,
            Bound::Unbounded => u64::MAX,
        };
        let found = self.wal.read(start, end)?;
        let entry = |read| match read {
            Read::Cached(entry) => Ok(entry),
            Read::Encoded(at, body) => decode(at, &body),
        };
        found.into_iter().map(entry).collect()
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        let vote = |b: Ballot| if b.committed { Vote::new_committed(b.term, b.node) } else { Vote::new(b.term, b.node) };
        Ok(self.wal.vote().map(vote))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        Ok(LogState { last_purged_log_id: self.wal.purged().map(log_id), last_log_id: self.wal.last().map(log_id) })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let leader = vote.leader_id();
        let ballot = Ballot { term: leader.term, node: leader.voted_for, committed: vote.is_committed() };
        done(|callback| self.wal.save_vote(ballot, callback)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.wal.save_committed(committed.as_ref().map(position));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.wal.committed().map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = LogEntry> + Send,
        I::IntoIter: Send,
    {
        let mut relaxed = Some(Relaxed::NOTHING);
        let mut batch = Vec::new();
        for entry in entries {
            let this = match &entry.payload {
                EntryPayload::Normal(command) => command.relaxed(),
                EntryPayload::Blank => None,
                EntryPayload::Membership(members) => {
                    self.sole.store(members.voter_ids().count() == 1, Ordering::Release);
                    None
                }
            };
            relaxed = relaxed.zip(this).map(|(all, this)| all.and(this));
            batch.push((position(&entry.log_id()), encode(&entry), entry));
        }
        let relaxed = relaxed.filter(|_| self.sole.load(Ordering::Acquire));
        self.wal.append(batch, relaxed, Box::new(|result| callback.io_completed(result)))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        done(|callback| self.wal.truncate(last.as_ref().map(position), callback)).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        done(|callback| self.wal.purge(position(&upto), callback)).await
    }
}
