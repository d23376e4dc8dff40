//! Pure: pod, observed state, probe verdicts and the time in; the steps to take now out.
//!
//! Called again after every event; it may name a step that is already under way, the actor leaves those alone. A pod that
//! is right yields nothing, also to a daemon that has just been restarted. Start at [`plan`].

use super::observe::{Container, Failure, Observed, Probes, Progress, State};
use super::pod::{Pod, is_sidecar, name_of};
use super::restart::{self, Init};
use super::spec;
use crate::agent::clock::Millis;
use crate::api::value::Value;
use crate::runtime::Resources;

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
    /// New limits, one after the other: the pod's own are never narrower than what its containers have.
    SetLimits { changes: Vec<Limits> },
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
    Resized,
}

impl Why {
    /// Is the container stopped to be started again? After a failed postStart hook it is first seen to have failed.
    pub fn is_restart(&self) -> bool {
        match self {
            Why::Probe(probe) => *probe != "postStart",
            Why::Changed | Why::Resized => true,
            Why::Deleted | Why::Ended => false,
        }
    }

    /// Is another container wanted in its place, whatever the restart policy says?
    pub fn is_replacement(&self) -> bool {
        matches!(self, Why::Changed | Why::Resized)
    }
}

/// New limits of the pod's group or of a running container.
#[derive(Clone, Debug, PartialEq)]
pub enum Limits {
    Pod(Resources),
    Container { id: String, resources: Resources },
}

/// What makes two steps the same work, so that one under way is not started twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    Volumes,
    Sandbox,
    Container(String),
    Limits,
    Pod,
}

impl Step {
    pub fn key(&self) -> Key {
        match self {
            Step::MountVolumes => Key::Volumes,
            Step::StartSandbox => Key::Sandbox,
            Step::StartContainer { name, .. } | Step::StopContainer { name, .. } => Key::Container(name.clone()),
            Step::SetLimits { .. } => Key::Limits,
            Step::Teardown | Step::DeletePod | Step::Forget | Step::Wake { .. } => Key::Pod,
        }
    }
}

pub fn plan(pod: Pod, observed: &Observed, probes: &Probes, now: Millis) -> Vec<Step> {
    let mut plan = Plan { pod, observed, probes, now, steps: Vec::new(), wake: None };
    if is_ending(pod, observed, now) {
        plan.end();
    } else if observed.unsupported.is_none() {
        plan.go();
    }
    if let Some(at) = plan.wake {
        plan.steps.push(Step::Wake { at });
    }
    plan.steps
}

/// Is the pod on its way out with nothing of it running any more?
pub fn has_stopped(pod: Pod, observed: &Observed, now: Millis) -> bool {
    is_ending(pod, observed, now) && observed.running().next().is_none()
}

fn is_ending(pod: Pod, observed: &Observed, now: Millis) -> bool {
    pod.is_deleting()
        || observed.gone
        || observed.rejected.is_some()
        || pod.is_terminal()
        || is_overdue(pod, now)
        || restart::outcome(pod, observed).is_some()
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
    /// Containers first; then, once the outcome is told, everything else; the API object last.
    fn end(&mut self) {
        let leaving = self.pod.is_deleting() || self.observed.gone;
        let why = if leaving { Why::Deleted } else { Why::Ended };
        let grace_seconds = self.pod.grace_seconds();
        let running = self.observed.running().count();
        if running > 0 {
            self.stop_all(grace_seconds, &why);
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

    /// Sidecars serve the others to their end: they go last, the last one first, all within one grace period.
    fn stop_all(&mut self, grace_seconds: i64, why: &Why) {
        let deadline = self.pod.deletion_deadline().filter(|_| self.pod.is_deleting());
        let is_late = deadline.is_some_and(|at| at <= self.now);
        let others: Vec<&Container> = self.observed.running().filter(|c| !self.pod.is_sidecar(&c.name)).collect();
        let sidecars: Vec<&Container> =
            self.pod.sidecars().rev().filter_map(|c| self.observed.latest(name_of(c))).filter(|c| c.is_running()).collect();
        let left = deadline.map_or(grace_seconds, |at| ((at - self.now) / 1000).clamp(1, grace_seconds));
        let mut steps: Vec<Step> = others.iter().map(|c| stop(c, grace_seconds, why.clone())).collect();
        let turn = if is_late { sidecars.len() } else { usize::from(others.is_empty()) };
        steps.extend(sidecars.iter().take(turn).map(|c| stop(c, left, why.clone())));
        if let Some(at) = deadline.filter(|_| turn < sidecars.len()) {
            self.wake_at(at);
        }
        self.steps.extend(steps);
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
            match restart::init(self.pod, self.observed, self.probes) {
                Init::At(name) => {
                    // Sidecars before it have started and stay.
                    let before = self.pod.init_containers().iter().take_while(|c| name_of(c) != name);
                    before.filter(|c| is_sidecar(c)).for_each(|c| self.container(name_of(c)));
                    self.container(&name);
                }
                Init::Done => {
                    self.pod.sidecars().for_each(|c| self.container(name_of(c)));
                    self.pod.containers().iter().for_each(|c| self.container(name_of(c)));
                }
                Init::Failed(_) => {}
            }
            self.pod.ephemeral_containers().iter().for_each(|c| self.ephemeral(name_of(c)));
            self.limits();
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
                let again = self.observed.replaced.contains(&latest.id) || restart::restarts(self.pod, name, *code);
                match restart::wait_until(self.observed, latest, self.now) {
                    _ if !again => {}
                    Some(at) => self.wake_at(at),
                    None => self.start(name, latest.attempt + 1),
                }
            }
        }
    }

    /// Started once, never again.
    fn ephemeral(&mut self, name: &str) {
        let has_run = self.pod.reported(name).is_some_and(|s| !s.str_at(&["containerID"]).is_empty());
        match self.observed.latest(name).map(|c| (&c.state, c.attempt)) {
            None if !has_run => self.start(name, 0),
            Some((State::Created, attempt)) => self.start(name, attempt),
            _ => {}
        }
    }

    /// Limits that are not what the spec says. A container that wants a restart for it is stopped instead.
    fn limits(&mut self) {
        let wanted = spec::pod_limits(self.pod);
        let have = &self.observed.limits;
        let mut containers = Vec::new();
        let mut is_held = false;
        for container in self.observed.running() {
            let Some(c) = self.pod.container(&container.name) else { continue };
            let limits = spec::limits(c);
            if spec::same_limits(&container.limits, &limits) {
                continue;
            }
            if restarts_for(c, &container.limits, &limits) {
                self.steps.push(stop(container, self.pod.grace_seconds(), Why::Resized));
                is_held = true;
            } else {
                let resources = spec::resources(self.pod, c, self.observed.node_memory);
                containers.push(Limits::Container { id: container.id.clone(), resources });
            }
        }
        let wide = spec::wider(have, &wanted);
        let last = if is_held { &wide } else { &wanted };
        let mut changes = Vec::new();
        if !spec::same_limits(have, &wide) {
            changes.push(Limits::Pod(wide.clone()));
        }
        changes.extend(containers);
        if !spec::same_limits(have, last) && last != &wide {
            changes.push(Limits::Pod(last.clone()));
        }
        if !changes.is_empty() {
            let failure = self.observed.resize_failure.clone();
            self.when_due(failure.as_ref(), Step::SetLimits { changes });
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

/// Does the container's `resizePolicy` want a restart for this change?
fn restarts_for(container: &Value, have: &Resources, wanted: &Resources) -> bool {
    let policy = |resource: &str| {
        let policies = container.list_at(&["resizePolicy"]).iter();
        policies.filter(|p| p.str_at(&["resourceName"]) == resource).any(|p| p.str_at(&["restartPolicy"]) == "RestartContainer")
    };
    let memory = have.memory_limit_bytes != wanted.memory_limit_bytes;
    let cpu = (have.cpu_shares, have.cpu_quota_us) != (wanted.cpu_shares, wanted.cpu_quota_us);
    (memory && policy("memory")) || (cpu && policy("cpu"))
}

fn stop(container: &Container, grace_seconds: i64, why: Why) -> Step {
    Step::StopContainer { id: container.id.clone(), name: container.name.clone(), grace_seconds, why }
}

#[cfg(test)]
mod tests;
