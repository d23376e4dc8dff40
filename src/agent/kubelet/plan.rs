//! Pure: pod, observed state, probe verdicts and the time in; the steps to take now out.
//!
//! Called again after every event; it may name a step that is already under way, the actor leaves those alone. A pod that
//! is right yields nothing, also to a daemon that has just been restarted. Start at [`plan`].

use super::observe::{Container, Failure, Observed, Probes, Progress, State};
use super::pod::{Pod, name_of};
use super::restart::{self, Init};
use crate::agent::clock::Millis;

/// One thing to do. The executor makes no choices.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Set up every volume of the pod.
    MountVolumes,
    /// Namespaces, cgroup, pod network.
    StartSandbox,
    /// Create and start one attempt of a container, then its postStart hook.
    StartContainer { name: String, attempt: u32 },
    /// preStop hook, stop signal, kill after the grace period.
    StopContainer { id: String, name: String, grace_seconds: i64, why: Why },
    /// Network, sandbox, mounts: everything but the logs.
    Teardown,
    /// The API object may go: grace 0, uid precondition.
    DeletePod,
    /// The actor may end: nothing is left here and the API object is gone.
    Forget,
    /// Nothing before this time, unless something happens.
    Wake { at: Millis },
}

/// Why a container is stopped; words the event.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    Deleted,
    Ended,
    Probe(&'static str),
    Changed,
}

/// What makes two steps the same work, so that one under way is not started twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    Volumes,
    Sandbox,
    Container(String),
    Pod,
}

impl Step {
    pub fn key(&self) -> Key {
        match self {
            Step::MountVolumes => Key::Volumes,
            Step::StartSandbox => Key::Sandbox,
            Step::StartContainer { name, .. } | Step::StopContainer { name, .. } => Key::Container(name.clone()),
            Step::Teardown | Step::DeletePod | Step::Forget | Step::Wake { .. } => Key::Pod,
        }
    }
}

pub fn plan(pod: Pod, observed: &Observed, probes: &Probes, now: Millis) -> Vec<Step> {
    let mut plan = Plan { pod, observed, probes, now, steps: Vec::new(), wake: None };
    if plan.is_ending() {
        plan.end();
    } else if observed.unsupported.is_none() {
        plan.go();
    }
    if let Some(at) = plan.wake {
        plan.steps.push(Step::Wake { at });
    }
    plan.steps
}

/// Past its `activeDeadlineSeconds`.
pub fn is_overdue(pod: Pod, now: Millis) -> bool {
    pod.deadline().is_some_and(|at| at <= now)
}

struct Plan<'a> {
    pod: Pod<'a>,
    observed: &'a Observed,
    probes: &'a Probes,
    now: Millis,
    steps: Vec<Step>,
    wake: Option<Millis>,
}

impl Plan<'_> {
    fn is_ending(&self) -> bool {
        self.pod.is_deleting()
            || self.observed.gone
            || self.observed.rejected.is_some()
            || self.pod.is_terminal()
            || is_overdue(self.pod, self.now)
            || restart::outcome(self.pod, self.observed).is_some()
    }

    /// Containers first; then, once the outcome is told, everything else; the API object last.
    fn end(&mut self) {
        let leaving = self.pod.is_deleting() || self.observed.gone;
        let why = if leaving { Why::Deleted } else { Why::Ended };
        let grace_seconds = self.pod.grace_seconds();
        let running: Vec<Step> = self.observed.running().map(|c| stop(c, grace_seconds, why.clone())).collect();
        if !running.is_empty() {
            self.steps.extend(running);
        } else if !leaving && !self.pod.is_terminal() {
            // The status with the outcome is being written; its echo brings us back here.
        } else if self.observed.set_up {
            // A failed teardown is tried again when its time has come.
            let due = self.observed.failures.get(TEARDOWN).cloned();
            self.when_due(due.as_ref(), Step::Teardown);
        } else if self.observed.gone {
            self.steps.push(Step::Forget);
        } else if self.pod.is_deleting() && self.observed.reported {
            let due = self.observed.failures.get(DELETE).cloned();
            self.when_due(due.as_ref(), Step::DeletePod);
        }
    }

    fn go(&mut self) {
        if let Some(at) = self.pod.deadline() {
            self.wake_at(at);
        }
        let volumes = self.observed.volumes.failure().cloned();
        let sandbox = self.observed.sandbox.failure().cloned();
        if !self.observed.volumes.is_ready() {
            self.when_due(volumes.as_ref(), Step::MountVolumes);
        }
        if !self.observed.sandbox.is_ready() {
            self.when_due(sandbox.as_ref(), Step::StartSandbox);
        }
        if self.observed.sandbox == Progress::Ready && self.observed.volumes.is_ready() {
            match restart::init(self.pod, self.observed) {
                Init::At(name) => self.container(&name),
                Init::Done => self.pod.containers().iter().for_each(|c| self.container(name_of(c))),
                Init::Failed(_) => {}
            }
        } else if self.observed.sandbox == Progress::Ready {
            self.observed.running().map(|c| c.name.clone()).collect::<Vec<_>>().iter().for_each(|name| self.container(name));
        }
    }

    fn container(&mut self, name: &str) {
        let Some(latest) = self.observed.latest(name) else {
            return self.start(name, restart::next_attempt(self.pod, self.observed, name));
        };
        match &latest.state {
            // Left behind between create and start: the executor removes it first.
            State::Created => self.start(name, latest.attempt),
            State::Running => self.running(latest),
            State::Exited { code, .. } => {
                let policy = self.pod.restart_policy();
                let again = if self.pod.is_init(name) { restart::init_restarts(policy, *code) } else { restart::restarts(policy, *code) };
                match restart::wait_until(self.observed, latest, self.now) {
                    _ if !again => {}
                    Some(at) => self.wake_at(at),
                    None => self.start(name, latest.attempt + 1),
                }
            }
        }
    }

    fn running(&mut self, container: &Container) {
        let spec_image = self.pod.container(&container.name).map_or("", |c| c.str_at(&["image"]));
        if let Some(doom) = self.probes.doomed(&container.id) {
            let grace = doom.grace_seconds.unwrap_or(self.pod.grace_seconds());
            self.steps.push(stop(container, grace, Why::Probe(doom.probe)));
        } else if !container.image.is_empty() && !spec_image.is_empty() && container.image != spec_image {
            self.steps.push(stop(container, self.pod.grace_seconds(), Why::Changed));
        }
    }

    fn start(&mut self, name: &str, attempt: u32) {
        let failure = self.observed.failures.get(name).cloned();
        self.when_due(failure.as_ref(), Step::StartContainer { name: name.to_string(), attempt });
    }

    fn when_due(&mut self, failure: Option<&Failure>, step: Step) {
        match failure {
            Some(f) if self.now < f.retry_at => self.wake_at(f.retry_at),
            _ => self.steps.push(step),
        }
    }

    fn wake_at(&mut self, at: Millis) {
        if at > self.now {
            self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
        }
    }
}

/// Keys in [`Observed::failures`] that no container can have as a name.
pub const TEARDOWN: &str = "/teardown";
pub const DELETE: &str = "/delete";

fn stop(container: &Container, grace_seconds: i64, why: Why) -> Step {
    Step::StopContainer { id: container.id.clone(), name: container.name.clone(), grace_seconds, why }
}

#[cfg(test)]
mod tests;
