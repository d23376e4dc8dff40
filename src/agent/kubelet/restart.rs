//! Pure: may an exited container run again, when, and what does a pod come to when none may.
//!
//! The first restart is immediate, the following ones wait 10 s, 20 s, … 300 s counted from the exit; ten minutes without
//! a restart forget the count (what upstream's flow-control back-off does).

use super::observe::{Container, Observed, Probes, State};
use super::pod::{Pod, is_sidecar, name_of};
use crate::agent::clock::Millis;
use crate::api::value::Value;

pub const FIRST_MS: Millis = 10_000;
pub const MAX_MS: Millis = 300_000;
const FORGET_MS: Millis = 2 * MAX_MS;

/// Back-off of one container: how long an exit must lie back before the next start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    pub delay_ms: Millis,
    /// When the container was last started again, and after the exit of which attempt.
    pub updated: Millis,
    pub attempt: u32,
}

impl Backoff {
    /// The back-off after another start at `now`, following the exit of `attempt` at `exited`.
    pub fn next(previous: Option<Backoff>, attempt: u32, exited: Millis, now: Millis) -> Backoff {
        let delay_ms = match previous {
            Some(p) if exited - p.updated <= FORGET_MS => (p.delay_ms * 2).min(MAX_MS),
            _ => FIRST_MS,
        };
        Backoff { delay_ms, updated: now, attempt }
    }

    /// When a container that exited at `exited` may start; `None` means at once.
    pub fn until(self, exited: Millis, now: Millis) -> Option<Millis> {
        let until = exited + self.delay_ms;
        (exited - self.updated <= FORGET_MS && now < until).then_some(until)
    }
}

/// May container `name` run again after it ended with `code`? Its own rules come before its own policy, that before the pod's.
pub fn restarts(pod: Pod, name: &str, code: i32) -> bool {
    let Some(container) = pod.container(name).filter(|_| !pod.is_ephemeral(name)) else { return false };
    let by_rule =
        container.list_at(&["restartPolicyRules"]).iter().any(|rule| rule.str_at(&["action"]) == "Restart" && applies(rule, code));
    if by_rule {
        return true;
    }
    let is_init = pod.is_init(name);
    match (container.str_at(&["restartPolicy"]), pod.restart_policy()) {
        ("Always", _) => true,
        ("OnFailure", _) => code != 0,
        ("Never", _) | (_, "Never") => false,
        // Init containers restart on failure only, whatever `Always` says of the others.
        (_, "OnFailure") => code != 0,
        _ => code != 0 || !is_init,
    }
}

/// Does the rule speak of this exit code?
fn applies(rule: &Value, code: i32) -> bool {
    let listed = rule.list_at(&["exitCodes", "values"]).iter().any(|v| v.as_i64() == Some(i64::from(code)));
    match rule.str_at(&["exitCodes", "operator"]) {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    }
}

/// Where the init containers stand.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    Done,
    /// This one is to start (again), runs, or is a sidecar that has not started yet.
    At(String),
    /// This one failed and may not run again.
    Failed(String),
}

pub fn init(pod: Pod, observed: &Observed, probes: &Probes) -> Init {
    // Application containers start only after the last init container: their presence says it is over.
    if pod.containers().iter().any(|c| observed.latest(name_of(c)).is_some()) {
        return Init::Done;
    }
    if let Some(name) = failed_init(pod, observed) {
        return Init::Failed(name.to_string());
    }
    for container in pod.init_containers() {
        let name = name_of(container);
        let is_done = match observed.latest(name) {
            Some(c) if is_sidecar(container) => c.is_running() && probes.started(&c.id),
            Some(c) => c.exit_code() == Some(0),
            None => false,
        };
        if !is_done {
            return Init::At(name.to_string());
        }
    }
    Init::Done
}

fn failed_init<'a>(pod: Pod<'a>, observed: &Observed) -> Option<&'a str> {
    let has_failed = |name: &&str| match observed.latest(name).and_then(Container::exit_code) {
        Some(code) => code != 0 && !restarts(pod, name, code),
        None => false,
    };
    pod.init_containers().iter().map(name_of).find(has_failed)
}

/// `Succeeded` or `Failed` when nothing of the pod but sidecars runs or may run again.
pub fn outcome(pod: Pod, observed: &Observed) -> Option<&'static str> {
    let is_past_init = pod.containers().iter().any(|c| observed.latest(name_of(c)).is_some());
    if !is_past_init && failed_init(pod, observed).is_some() {
        return Some("Failed");
    }
    let mut failed = false;
    for container in pod.containers() {
        let name = name_of(container);
        match observed.latest(name) {
            Some(Container { id, state: State::Exited { code, .. }, .. })
                if !observed.replaced.contains(id) && !restarts(pod, name, *code) =>
            {
                failed |= *code != 0;
            }
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

/// When the exit of `container` lets it start again; `None` means at once, or that the start after it has been let go already.
pub fn wait_until(observed: &Observed, container: &Container, now: Millis) -> Option<Millis> {
    let backoff = observed.backoffs.get(&container.name).filter(|b| container.attempt > b.attempt)?;
    backoff.until(container.finished_at.unwrap_or(now), now)
}

/// The container of this name that was stopped to make way for its next attempt, until that one runs or something stands in its way.
///
/// Upstream stops and starts within one sync of the pod and looks only afterwards, so what the pod is said to be does not show the
/// gap between the two. Nor does ours: no Ready=False, and no endpoint taken out, for the moment an exchange takes.
pub fn making_way<'a>(pod: Pod, observed: &'a Observed, name: &str, now: Millis) -> Option<&'a Container> {
    let latest = observed.latest(name)?;
    let stopped = match latest.state {
        State::Running => return None,
        State::Created => observed.previous(name)?,
        State::Exited { .. } => latest,
    };
    let code = stopped.exit_code().filter(|_| observed.restarting.contains(&stopped.id))?;
    let is_free = observed.sandbox.is_ready()
        && observed.volumes.is_ready()
        && !observed.failures.contains_key(name)
        && wait_until(observed, stopped, now).is_none();
    let runs_again = observed.replaced.contains(&stopped.id) || restarts(pod, name, code);
    (is_free && runs_again).then_some(stopped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn delays_double_from_ten_seconds_to_five_minutes_and_are_forgotten() {
        let mut now = 0;
        let mut backoff = None;
        let mut delays = Vec::new();
        for _ in 0..8 {
            let b = Backoff::next(backoff, 0, now, now);
            backoff = Some(b);
            let exited = now + 1000;
            delays.push(b.until(exited, exited).map(|u| (u - exited) / 1000).unwrap_or(0));
            now = exited + b.delay_ms;
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300, 300]);
        let exited = now + FORGET_MS + 1;
        assert_eq!(backoff.and_then(|b| b.until(exited, exited)), None);
        assert_eq!(Backoff::next(backoff, 0, exited, exited).delay_ms, FIRST_MS);
    }

    #[test]
    fn policies() {
        let pod = |policy: &str| {
            value!({"spec": {"restartPolicy": policy, "containers": [{"name": "c"}, {"name": "never", "restartPolicy": "Never"},
                {"name": "rules", "restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}],
                "initContainers": [{"name": "i"}, {"name": "side", "restartPolicy": "Always"}], "ephemeralContainers": [{"name": "e"}]}})
        };
        let again = |policy: &str, name: &str, code: i32| restarts(Pod(&pod(policy)), name, code);
        for (policy, name, code, expected) in [
            ("Always", "c", 0, true),
            ("OnFailure", "c", 1, true),
            ("OnFailure", "c", 0, false),
            ("Never", "c", 1, false),
            ("Always", "i", 1, true),
            ("Always", "i", 0, false),
            ("Never", "i", 1, false),
            ("Never", "side", 0, true),
            ("Always", "never", 1, false),
            ("Never", "rules", 42, true),
            ("Always", "rules", 1, false),
            ("Always", "e", 1, false),
        ] {
            assert_eq!(again(policy, name, code), expected, "{policy} {name} {code}");
        }
    }
}
