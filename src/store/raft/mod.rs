//! Consensus: the openraft types, start-up, proposals. The crate is named nowhere outside this folder.
//!
//! One raft node per store, on a current-thread runtime of its own thread. With a single voter it elects itself at once;
//! it answers nothing before everything in its log has been applied. A storage error is fatal to the core and shows in
//! [`Node::health`]. Start at [`Node::start`].

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::impls::leader_id_std;
use openraft::vote::RaftLeaderId;
use openraft::{BasicNode, Raft, SnapshotPolicy};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::{error, info};

use super::Error;
use super::command::Command;
use super::state::Outcome;
use super::wal::{Position, Wal};

mod log;
mod machine;
mod network;

pub(crate) use machine::{Core, Members, Pin, Shared};
use types::Types;

type Committed = <leader_id_std::LeaderId<u64, u64> as RaftLeaderId>::Committed;
type LogId = openraft::LogId<Committed>;
type Payload = openraft::EntryPayload<Arc<Command>, u64, BasicNode>;
pub(crate) type LogEntry = openraft::Entry<Committed, Payload>;
type Vote = openraft::Vote<leader_id_std::LeaderId<u64, u64>>;
type Membership = openraft::Membership<u64, BasicNode>;
type StoredMembership = openraft::StoredMembership<Committed, u64, BasicNode>;
type SnapshotMeta = openraft::SnapshotMeta<Committed, u64, BasicNode>;
type Snapshot = openraft::Snapshot<Committed, u64, BasicNode, Pin>;

mod types {
    //! The macro's default for the runtime is marked deprecated in favour of a crate we do not name.
    #![allow(deprecated)]
    use std::sync::Arc;

    use openraft::impls::leader_id_std;

    use crate::store::command::Command;
    use crate::store::state::Outcome;

    openraft::declare_raft_types!(
        pub(crate) Types:
            D = Arc<Command>,
            R = Outcome,
            LeaderId = leader_id_std::LeaderId<Self::Term, Self::NodeId>,
    );
}

/// How long recovery of the log may take before it is called a failure.
const RECOVERY_MAX: Duration = Duration::from_secs(300);

fn log_id(at: Position) -> LogId {
    LogId::new_term_index(at.term, at.index)
}

fn position(id: &LogId) -> Position {
    Position { term: **id.committed_leader_id(), index: id.index() }
}

/// A running raft node.
pub(crate) struct Node {
    raft: Raft<Types, machine::Machine>,
    runtime: Handle,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What a raft node is made of.
pub(crate) struct Parts {
    pub id: u64,
    pub address: String,
    pub wal: Wal<LogEntry>,
    pub shared: Arc<Shared>,
    /// Held until everything else is gone.
    pub lock: Option<File>,
}

impl Node {
    /// Starts the node's thread; ready when all of the log has been applied. A fresh log begins a cluster of one.
    pub(crate) async fn start(parts: Parts) -> Result<Node, Error> {
        let (ready, started) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("store-raft".into())
            .spawn(move || run(parts, ready, stopped))
            .map_err(|source| Error::Io { doing: "start the raft thread".into(), source })?;
        let (raft, runtime) = started.await.map_err(|_| Error::Raft("the raft thread ended while starting".into()))??;
        Ok(Node { raft, runtime, stop: Mutex::new(Some(stop)), thread: Mutex::new(Some(thread)) })
    }

    /// Proposes a command; answered when it has been applied here.
    pub(crate) async fn propose(&self, command: Arc<Command>) -> Result<Outcome, Error> {
        match self.raft.client_write(command).await {
            Ok(response) => Ok(response.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(Error::NotLeader),
            Err(other) => Err(Error::Raft(other.to_string())),
        }
    }

    /// As `propose`, from a thread outside any runtime.
    pub(crate) fn propose_blocking(&self, command: Command) -> Result<Outcome, Error> {
        self.runtime.block_on(self.propose(Arc::new(command)))
    }

    /// Lets go of log entries up to `upto`: everything there is in durable checkpoints.
    pub(crate) fn purge_blocking(&self, upto: Position) -> Result<(), Error> {
        self.runtime.block_on(async {
            let fatal = |error: openraft::errors::Fatal<Types>| Error::Raft(error.to_string());
            self.raft.trigger().snapshot().await.map_err(fatal)?;
            let built = |m: &openraft::RaftMetrics<Types>| m.snapshot.as_ref().is_some_and(|s| s.index() >= upto.index);
            let wait = self.raft.wait(Some(Duration::from_secs(60))).metrics(built, "snapshot metadata").await;
            wait.map_err(|error| Error::Raft(error.to_string()))?;
            self.raft.trigger().purge_log(upto.index).await.map_err(fatal)?;
            let purged = |m: &openraft::RaftMetrics<Types>| m.purged.as_ref().is_some_and(|at| at.index() >= upto.index);
            let wait = self.raft.wait(Some(Duration::from_secs(60))).metrics(purged, "purge of the log").await;
            wait.map(|_| ()).map_err(|error| Error::Raft(error.to_string()))
        })
    }

    /// Why nothing can be written, if so.
    pub(crate) fn health(&self) -> Result<(), Error> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if let Err(fatal) = &metrics.running_state {
            return Err(Error::Raft(fatal.to_string()));
        }
        if metrics.current_leader.is_none() { Err(Error::NotLeader) } else { Ok(()) }
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.raft.is_leader()
    }

    /// Asks the node's thread to shut down; it closes the log behind it.
    pub(crate) fn stop(&self) -> Option<JoinHandle<()>> {
        if let Some(stop) = self.stop.lock().expect("no panic while the handle is locked").take() {
            // A thread that is gone already needs no telling.
            let _ = stop.send(());
        }
        self.thread.lock().expect("no panic while the handle is locked").take()
    }
}

type Started = Result<(Raft<Types, machine::Machine>, Handle), Error>;

fn run(parts: Parts, ready: oneshot::Sender<Started>, stopped: oneshot::Receiver<()>) {
    let wal = parts.wal.clone();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => runtime,
        Err(source) => {
            wal.close();
            let _ = ready.send(Err(Error::Io { doing: "start the raft runtime".into(), source }));
            return;
        }
    };
    runtime.block_on(async {
        let handle = runtime.handle().clone();
        match start(&parts).await {
            Ok(raft) => {
                if ready.send(Ok((raft.clone(), handle))).is_ok() {
                    // Ends also when the sender was dropped with the store.
                    let _ = stopped.await;
                }
                if let Err(error) = raft.shutdown().await {
                    error!(%error, "raft did not shut down properly");
                }
                wal.close();
            }
            Err(error) => {
                wal.close();
                let _ = ready.send(Err(error));
            }
        }
    });
    drop(runtime);
    // Another process may have the directory only now.
    drop(parts.lock);
}

async fn start(parts: &Parts) -> Result<Raft<Types, machine::Machine>, Error> {
    let failed = |what: &str, error: String| Error::Raft(format!("{what}: {error}"));
    let config = openraft::Config {
        cluster_name: "coracle".into(),
        heartbeat_interval: 500,
        election_timeout_min: 1500,
        election_timeout_max: 3000,
        snapshot_policy: SnapshotPolicy::Never,
        // The log is purged by hand, when checkpoints are known to be durable (`Node::purge_blocking`).
        max_in_snapshot_log_to_keep: u64::MAX / 2,
        enable_pre_vote: Some(true),
        ..openraft::Config::default()
    };
    let config = config.validate().map_err(|e| failed("configure raft", e.to_string()))?;
    let sole = Arc::new(AtomicBool::new(false));
    let log = log::Log::new(parts.wal.clone(), sole.clone());
    let machine = machine::Machine::new(parts.shared.clone());
    let raft = Raft::new(parts.id, Arc::new(config), network::Peers, log, machine).await;
    let raft = raft.map_err(|e| failed("start raft", e.to_string()))?;
    if !raft.is_initialized().await.map_err(|e| failed("start raft", e.to_string()))? {
        let members = BTreeMap::from([(parts.id, BasicNode::new(&parts.address))]);
        raft.initialize(members).await.map_err(|e| failed("begin a cluster", e.to_string()))?;
        info!(node = parts.id, "began a cluster of one");
    }
    let voters: Vec<u64> = raft.voter_ids().collect();
    if voters == [parts.id] {
        sole.store(true, Ordering::Release);
        // Nobody to wait for: no election timeout at every start.
        raft.trigger().elect(false).await.map_err(|e| failed("elect", e.to_string()))?;
    }
    raft.wait_for_recovery(Some(RECOVERY_MAX)).await.map_err(|e| failed("apply the log", e.to_string()))?;
    Ok(raft)
}

#[cfg(test)]
mod tests;
