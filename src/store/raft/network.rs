//! Peer calls. A cluster has one voter so far, so there is nobody to call: every call is refused by name.
//!
//! *Invariant: an unreachable peer never counts as a granted vote* — openraft's default for `pre_vote` grants, hence all
//! methods are spelled out here.

use std::future::Future;

use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::raft::{TransferLeaderRequest, TransferLeaderResponse};
use openraft::{BasicNode, RaftNetworkFactory, RaftNetworkV2};

use super::types::Types;
use super::{Pin, Snapshot, Vote};

/// Makes a connection per peer.
pub(super) struct Peers;

/// The way to one peer.
pub(super) struct Peer {
    id: u64,
    address: String,
}

impl Peer {
    fn unreachable(&self) -> Unreachable<Types> {
        Unreachable::from_string(format!("store peer {} at {}: servers beyond the first are not supported yet", self.id, self.address))
    }
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        Peer { id: target, address: node.addr.clone() }
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = Pin;

    async fn append_entries(
        &mut self,
        _request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        Err(RPCError::Unreachable(self.unreachable()))
    }

    async fn vote(&mut self, _request: VoteRequest<Types>, _option: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(RPCError::Unreachable(self.unreachable()))
    }

    async fn pre_vote(&mut self, _request: VoteRequest<Types>, _option: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(RPCError::Unreachable(self.unreachable()))
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        _snapshot: Snapshot,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        Err(StreamingError::Unreachable(self.unreachable()))
    }

    async fn transfer_leader(
        &mut self,
        _request: TransferLeaderRequest<Types>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        Err(RPCError::Unreachable(self.unreachable()))
    }
}
