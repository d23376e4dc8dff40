//! Pure: may an exited container run again, when, and what does a pod come to when none may.
//!
//! The first restart is immediate, the following ones wait 10 s, 20 s, … 300 s counted from the exit; ten minutes without
//! a restart forget the count (what upstream's flow-control back-off does).

use super::observe::{Container, Observed, State};
use super::pod::{Pod, name_of};
use crate::agent::clock::Millis;

pub const FIRST_MS: Millis = 10_000;
pub const MAX_MS: Millis = 300_000;
const FORGET_MS: Millis = 2 * MAX_MS;

/// Back-off of one container: how long an exit must lie back before the next start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    pub delay_ms: Millis,
    /// When the container was last started again.
    pub updated: Millis,
}

impl Backoff {
    /// The back-off after another start at `now`, following an exit at `exited`.
    pub fn next(previous: Option<Backoff>, exited: Millis, now: Millis) -> Backoff {
        let delay_ms = match previous {
            Some(p) if exited - p.updated <= FORGET_MS => (p.delay_ms * 2).min(MAX_MS),
            _ => FIRST_MS,
        };
        Backoff { delay_ms, updated: now }
    }

    /// When a container that exited at `exited` may start; `None` means at once.
    pub fn until(self, exited: Millis, now: Millis) -> Option<Millis> {
        let until = exited + self.delay_ms;
        (exited - self.updated <= FORGET_MS && now < until).then_some(until)
    }
}

/// May a container that ended with `code` run again?
pub fn restarts(policy: &str, code: i32) -> bool {
    match policy {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

/// Init containers restart on failure only, whatever `Always` says of the others.
pub fn init_restarts(policy: &str, code: i32) -> bool {
    code != 0 && policy != "Never"
}

/// Where the init containers stand.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    Done,
    /// This one is to start (again) or runs.
    At(String),
    /// This one failed and may not run again.
    Failed(String),
}

pub fn init(pod: Pod, observed: &Observed) -> Init {
    // Application containers start only after the last init container: their presence says it is over.
    if pod.containers().iter().any(|c| observed.latest(name_of(c)).is_some()) {
        return Init::Done;
    }
    for container in pod.init_containers() {
        let name = name_of(container);
        match observed.latest(name).map(|c| &c.state) {
            Some(State::Exited { code: 0, .. }) => {}
            Some(State::Exited { code, .. }) if !init_restarts(pod.restart_policy(), *code) => return Init::Failed(name.to_string()),
            _ => return Init::At(name.to_string()),
        }
    }
    Init::Done
}

/// `Succeeded` or `Failed` when nothing of the pod runs or may run again.
pub fn outcome(pod: Pod, observed: &Observed) -> Option<&'static str> {
    if matches!(init(pod, observed), Init::Failed(_)) {
        return Some("Failed");
    }
    let mut failed = false;
    for container in pod.containers() {
        match observed.latest(name_of(container)).map(|c| &c.state) {
            Some(State::Exited { code, .. }) if !restarts(pod.restart_policy(), *code) => failed |= *code != 0,
            _ => return None,
        }
    }
    (!pod.containers().is_empty()).then_some(if failed { "Failed" } else { "Succeeded" })
}

/// The attempt number of the next start: one more than anything seen here or told to the API server.
pub fn next_attempt(pod: Pod, observed: &Observed, name: &str) -> u32 {
    let seen = observed.latest(name).map(|c| c.attempt + 1).unwrap_or(0);
    let reported = pod.reported(name);
    let ran = reported.is_some_and(|s| !s.str_at(&["containerID"]).is_empty());
    let told = match reported.and_then(|s| s.i64_at(&["restartCount"])) {
        Some(count) if ran => u32::try_from(count).unwrap_or(0) + 1,
        _ => 0,
    };
    // What runs now is told with a delay, so the own view wins while there is one.
    if observed.latest(name).is_some() { seen } else { told }
}

/// When the exit of `container` lets it start again; `None` means at once.
pub fn wait_until(observed: &Observed, container: &Container, now: Millis) -> Option<Millis> {
    observed.backoffs.get(&container.name)?.until(container.finished_at.unwrap_or(now), now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_from_ten_seconds_to_five_minutes_and_are_forgotten() {
        let mut now = 0;
        let mut backoff = None;
        let mut delays = Vec::new();
        for _ in 0..8 {
            let b = Backoff::next(backoff, now, now);
            backoff = Some(b);
            let exited = now + 1000;
            delays.push(b.until(exited, exited).map(|u| (u - exited) / 1000).unwrap_or(0));
            now = exited + b.delay_ms;
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300, 300]);
        let exited = now + FORGET_MS + 1;
        assert_eq!(backoff.and_then(|b| b.until(exited, exited)), None);
        assert_eq!(Backoff::next(backoff, exited, exited).delay_ms, FIRST_MS);
    }

    #[test]
    fn policies() {
        assert!(restarts("Always", 0) && restarts("OnFailure", 1));
        assert!(!restarts("OnFailure", 0) && !restarts("Never", 1));
        assert!(init_restarts("Always", 1) && !init_restarts("Always", 0) && !init_restarts("Never", 1));
    }
}
