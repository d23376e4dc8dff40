//! Pure: what is known here of one pod: the runtime's containers, what was set up, what failed and when.
//!
//! [`Observed`] and the Pod are all that `plan` and `status` see. The actor fills it from runtime events and from the
//! outcome of steps; after a restart of the daemon it is rebuilt from `Runtime::list` and the directories.

use std::collections::{BTreeMap, BTreeSet};

use super::restart::Backoff;
use crate::agent::clock::Millis;
use crate::runtime::Resources;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Why this node refused the pod, if it did.
    pub rejected: Option<Reason>,
    /// What the pod needs that this node cannot do yet.
    pub unsupported: Option<String>,
    pub volumes: Progress,
    pub sandbox: Progress,
    /// Something of the pod is left in the kernel or on disk (sandbox, network, mounts).
    pub set_up: bool,
    pub ips: Vec<String>,
    pub host_ips: Vec<String>,
    /// Every attempt of every container the runtime knows, by start order.
    pub containers: Vec<Container>,
    /// Why the next attempt of a container could not be started.
    pub failures: BTreeMap<String, Failure>,
    pub backoffs: BTreeMap<String, Backoff>,
    /// The API object is gone: nothing to report, nothing to delete.
    pub gone: bool,
    /// What `status` says now is what the API server has.
    pub reported: bool,
    /// Containers that were stopped to be started again.
    pub restarting: BTreeSet<String>,
    /// Those of them that start again whatever their restart policy says, and without a back-off.
    pub replaced: BTreeSet<String>,
    /// Limits of the pod as a whole, as the kernel has them.
    pub limits: Resources,
    /// What the spec asks for and this node cannot give now.
    pub resize: Resize,
    pub node_memory: i64,
    /// Why limits could not be changed.
    pub resize_failure: Option<Failure>,
}

/// A change of resources against what this node has.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Resize {
    /// The pod has, or is getting, what it asks for.
    #[default]
    Granted,
    /// Others have it now.
    Deferred(String),
    /// The node is too small.
    Infeasible(String),
}

/// A CamelCase reason and a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Reason {
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Progress {
    #[default]
    Absent,
    Ready,
    Failed(Failure),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
    /// How often in a row.
    pub tries: u32,
    /// When the next try is due.
    pub retry_at: Millis,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub attempt: u32,
    /// The image as the pod names it.
    pub image: String,
    pub image_id: String,
    pub started_at: Option<Millis>,
    pub finished_at: Option<Millis>,
    pub state: State,
    /// Its limits, as the kernel has them.
    pub limits: Resources,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    Created,
    Running,
    Exited { code: i32, signal: i32, reason: String, message: String },
}

impl Observed {
    /// The latest attempt of container `name`.
    pub fn latest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().filter(|c| c.name == name).max_by_key(|c| c.attempt)
    }

    /// The attempt before the latest one, if the runtime still knows it.
    pub fn previous(&self, name: &str) -> Option<&Container> {
        let latest = self.latest(name)?.attempt;
        self.containers.iter().filter(|c| c.name == name && c.attempt < latest).max_by_key(|c| c.attempt)
    }

    pub fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|c| c.is_running())
    }
}

impl Container {
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running)
    }

    pub fn exit_code(&self) -> Option<i32> {
        match self.state {
            State::Exited { code, .. } => Some(code),
            State::Created | State::Running => None,
        }
    }
}

impl Failure {
    /// The failure after `previous`; the wait doubles from `first_ms` to `max_ms`.
    pub fn after(previous: Option<&Failure>, reason: Reason, first_ms: Millis, max_ms: Millis, now: Millis) -> Failure {
        let tries = previous.map_or(0, |p| p.tries) + 1;
        let wait = first_ms.saturating_mul(1 << (tries - 1).min(16)).min(max_ms);
        Failure { reason: reason.reason, message: reason.message, tries, retry_at: now + wait }
    }
}

impl Progress {
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Progress::Failed(f) => Some(f),
            Progress::Absent | Progress::Ready => None,
        }
    }

    pub fn is_ready(&self) -> bool {
        matches!(self, Progress::Ready)
    }
}

/// What the probes of the running containers say, by container id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Probes(pub BTreeMap<String, Verdicts>);

/// The verdicts on one running container. A probe that is not there counts as passed.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdicts {
    pub started: bool,
    pub ready: bool,
    /// The container is to be killed for this probe; with the probe's own grace period.
    pub doomed: Option<Doom>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Doom {
    /// `liveness` or `startup`.
    pub probe: &'static str,
    pub grace_seconds: Option<i64>,
}

impl Probes {
    pub fn started(&self, id: &str) -> bool {
        self.0.get(id).is_none_or(|v| v.started)
    }

    pub fn ready(&self, id: &str) -> bool {
        self.0.get(id).is_none_or(|v| v.started && v.ready)
    }

    pub fn doomed(&self, id: &str) -> Option<&Doom> {
        self.0.get(id)?.doomed.as_ref()
    }
}
