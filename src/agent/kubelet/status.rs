//! Pure: pod, observed state, probe verdicts and the time in; the whole PodStatus out.
//!
//! Begins with what the API server has, so conditions of others (readiness gates, `DisruptionTarget`) and records of
//! containers the runtime has forgotten stay. Start at [`status`]; [`patch`] is the difference that is sent.

use super::observe::{Container, Observed, Probes, Resize, State};
use super::plan::is_overdue;
use super::pod::{Pod, is_sidecar, name_of};
use super::restart::{self, Init};
use super::spec;
use crate::agent::clock::{self, Millis};
use crate::agent::qos;
use crate::api::value::{Map, Value};
use crate::value;

/// Set by this kubelet; all other conditions belong to others.
const OURS: [&str; 7] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled", RESIZE_PENDING, RESIZE_IN_PROGRESS];
const RESIZE_PENDING: &str = "PodResizePending";
const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";

pub fn status(pod: Pod, observed: &Observed, probes: &Probes, now: Millis) -> Value {
    let mut status = pod.0.at(&["status"]).cloned().unwrap_or_else(Value::map);
    let at = clock::text(now);
    if status.str_at(&["startTime"]).is_empty() {
        status.set(&["startTime"], at.as_str());
    }
    let qos = qos::class(pod.0).name();
    if status.str_at(&["qosClass"]).is_empty() {
        status.set(&["qosClass"], qos);
    }
    if let Some(generation) = pod.0.i64_at(&["metadata", "generation"]).filter(|g| *g > 0) {
        status.set(&["observedGeneration"], generation);
    }
    if let Some(rejected) = &observed.rejected {
        status.set(&["phase"], "Failed");
        status.set(&["reason"], rejected.reason.as_str());
        status.set(&["message"], rejected.message.as_str());
        return status;
    }
    addresses(pod, observed, &mut status);
    if pod.is_terminal() && observed.containers.is_empty() {
        return status;
    }
    let init = restart::init(pod, observed, probes);
    let ended = pod.is_terminal() || pod.is_deleting() || is_overdue(pod, now) || matches!(init, Init::Failed(_));
    let view = View { pod, observed, probes, now, ended, init };
    let init_statuses: Vec<Value> = pod.init_containers().iter().map(|c| view.container(c)).collect();
    let statuses: Vec<Value> = pod.containers().iter().map(|c| view.container(c)).collect();
    let ephemeral: Vec<Value> = pod.ephemeral_containers().iter().map(|c| view.container(c)).collect();
    let phase = view.phase(&statuses);
    if is_overdue(pod, now) && phase == "Failed" && !pod.is_terminal() {
        status.set(&["reason"], "DeadlineExceeded");
        status.set(&["message"], "Pod was active on the node longer than the specified deadline");
    }
    status.set(&["phase"], phase);
    view.conditions(&mut status, phase, &init_statuses, &statuses);
    if !init_statuses.is_empty() {
        status.set(&["initContainerStatuses"], init_statuses);
    }
    if !ephemeral.is_empty() {
        status.set(&["ephemeralContainerStatuses"], ephemeral);
    }
    status.set(&["containerStatuses"], statuses);
    status
}

fn addresses(pod: Pod, observed: &Observed, status: &mut Value) {
    let entries = |ips: &[String]| ips.iter().map(|ip| value!({ "ip": ip })).collect::<Vec<Value>>();
    if let Some(first) = observed.host_ips.first() {
        status.set(&["hostIP"], first.as_str());
        status.set(&["hostIPs"], entries(&observed.host_ips));
    }
    let ips = if pod.host_network() { &observed.host_ips } else { &observed.ips };
    if let Some(first) = ips.first() {
        status.set(&["podIP"], first.as_str());
        status.set(&["podIPs"], entries(ips));
    }
}

struct View<'a> {
    pod: Pod<'a>,
    observed: &'a Observed,
    probes: &'a Probes,
    now: Millis,
    /// The pod is on its way out: what is not running will not run.
    ended: bool,
    init: Init,
}

impl View<'_> {
    fn container(&self, spec: &Value) -> Value {
        let name = name_of(spec);
        let old = self.pod.reported(name);
        if let Some(reported) = old.filter(|old| self.is_making_way(name, old)) {
            return reported.clone();
        }
        let latest = self.observed.latest(name);
        let mut out = value!({"name": name, "image": spec.str_at(&["image"]), "imageID": "", "ready": false, "started": false,
            "lastState": {}});
        let restarts = latest.map(|c| i64::from(c.attempt)).or(old.and_then(|o| o.i64_at(&["restartCount"]))).unwrap_or(0);
        out.set(&["restartCount"], restarts);
        if let Some(latest) = latest {
            out.set(&["image"], if latest.image.is_empty() { spec.str_at(&["image"]) } else { latest.image.as_str() });
            out.set(&["imageID"], latest.image_id.as_str());
            out.set(&["containerID"], container_id(&latest.id));
        } else if let Some(old) = old {
            for key in ["image", "imageID", "containerID"] {
                if let Some(v) = old.at(&[key]) {
                    out.set(&[key], v.clone());
                }
            }
        }
        let (state, last) = self.states(name, latest, old);
        out.set(&["state"], state);
        out.set(&["lastState"], last);
        let running = latest.filter(|c| c.is_running());
        let started = running.is_some_and(|c| self.probes.started(&c.id));
        out.set(&["started"], started);
        let ready = match (self.pod.is_init(name) && !is_sidecar(spec), latest) {
            _ if self.pod.is_ephemeral(name) => false,
            (true, latest) => latest.and_then(Container::exit_code) == Some(0),
            (false, Some(c)) => running.is_some() && self.probes.ready(&c.id),
            (false, None) => false,
        };
        out.set(&["ready"], ready);
        self.resources(spec, running, &mut out);
        mounts(spec, &mut out);
        out
    }

    /// Is the container reported as running the one whose next attempt is just being started?
    fn is_making_way(&self, name: &str, old: &Value) -> bool {
        let stopped = restart::making_way(self.pod, self.observed, name, self.now).filter(|_| !self.ended);
        stopped.is_some_and(|c| old.str_at(&["containerID"]) == container_id(&c.id)) && old.at(&["state", "running"]).is_some()
    }

    /// `state` and `lastState`.
    fn states(&self, name: &str, latest: Option<&Container>, old: Option<&Value>) -> (Value, Value) {
        let remembered = || old.and_then(|o| o.at(&["lastState"])).cloned().unwrap_or_else(Value::map);
        let before = || self.observed.previous(name).and_then(terminated).unwrap_or_else(remembered);
        match latest {
            Some(c) => match &c.state {
                State::Running => (value!({"running": {"startedAt": clock::text(c.started_at.unwrap_or(self.now))}}), before()),
                State::Created => (self.waiting(name), before()),
                State::Exited { code, .. } => {
                    let ended = terminated(c).expect("an exited container has a terminated state");
                    match self.pause(name, c, *code) {
                        Some(waiting) => (waiting, ended),
                        None => (ended, before()),
                    }
                }
            },
            None => self.forgotten(name, old, remembered()),
        }
    }

    /// States of a container the runtime knows nothing of.
    fn forgotten(&self, name: &str, old: Option<&Value>, last: Value) -> (Value, Value) {
        let Some(old) = old else { return (self.waiting(name), last) };
        if let Some(ended) = old.at(&["state", "terminated"]) {
            let done = self.ended || self.pod.is_ephemeral(name) || (self.pod.is_init(name) && !self.pod.is_sidecar(name));
            let ended = value!({ "terminated": serde_json::Value::from(ended) });
            return if done { (ended, last) } else { (self.waiting(name), ended) };
        }
        if old.at(&["state", "running"]).is_some() {
            // It was said to run and is gone: a reboot, or the shim was killed.
            let lost = value!({"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown",
                "message": "The container could not be located when the pod was terminated",
                "containerID": old.str_at(&["containerID"]), "startedAt": old.str_at(&["state", "running", "startedAt"]), "finishedAt": clock::text(self.now)}});
            return if self.ended { (lost, last) } else { (self.waiting(name), lost) };
        }
        (self.waiting(name), last)
    }

    /// The waiting state of an exited container that is to run again but not now.
    fn pause(&self, name: &str, container: &Container, code: i32) -> Option<Value> {
        let again = self.observed.replaced.contains(&container.id) || restart::restarts(self.pod, name, code);
        if !again || self.ended || restart::outcome(self.pod, self.observed).is_some() {
            return None;
        }
        if let Some(f) = self.observed.failures.get(name) {
            return Some(waiting(&f.reason, &f.message));
        }
        let backoff = self.observed.backoffs.get(name)?;
        restart::wait_until(self.observed, container, self.now)?;
        let delay = clock::duration_text(backoff.delay_ms);
        let message = format!("back-off {delay} restarting failed container={name} pod={}", self.pod.text());
        Some(waiting("CrashLoopBackOff", &message))
    }

    fn waiting(&self, name: &str) -> Value {
        if let Some(what) = &self.observed.unsupported {
            return waiting("Unsupported", what);
        }
        match self.observed.failures.get(name) {
            Some(f) => waiting(&f.reason, &f.message),
            None if !self.pod.init_containers().is_empty() => waiting("PodInitializing", ""),
            None => waiting("ContainerCreating", ""),
        }
    }

    /// `allocatedResources` is what the container was granted, `resources` what the kernel holds it to: the same once a change of
    /// limits has been carried out.
    fn resources(&self, spec: &Value, running: Option<&Container>, out: &mut Value) {
        let granted = spec.at(&["resources"]).cloned().unwrap_or_else(Value::map);
        if let Some(requests) = granted.map_at(&["requests"]).filter(|m| !m.is_empty()) {
            out.set(&["allocatedResources"], requests.clone());
        }
        let is_held = running.is_none_or(|c| spec::same_limits(&c.limits, &spec::limits(spec)));
        let reported = || self.pod.reported(name_of(spec)).and_then(|s| s.at(&["resources"])).cloned();
        let held = if is_held { granted } else { reported().unwrap_or(granted) };
        if running.is_some() || held.as_map().is_some_and(|m| !m.is_empty()) {
            out.set(&["resources"], held);
        }
    }

    /// PodResizePending or PodResizeInProgress, where one is due.
    fn resize(&self) -> Option<(&'static str, Condition)> {
        match &self.observed.resize {
            Resize::Deferred(why) => return Some((RESIZE_PENDING, (true, "Deferred".into(), why.clone()))),
            Resize::Infeasible(why) => return Some((RESIZE_PENDING, (true, "Infeasible".into(), why.clone()))),
            Resize::Granted => {}
        }
        let differs = |c: &Container| {
            let spec = self.pod.container(&c.name);
            spec.is_some_and(|spec| !spec::same_limits(&c.limits, &spec::limits(spec)))
        };
        let any = self.observed.running().any(differs);
        let whole = self.observed.running().next().is_some() && !spec::same_limits(&self.observed.limits, &spec::pod_limits(self.pod));
        let failure = self.observed.resize_failure.as_ref();
        let (reason, message) = failure.map_or_else(Default::default, |f| ("Error".to_string(), f.message.clone()));
        (!self.ended && (any || whole)).then_some((RESIZE_IN_PROGRESS, (true, reason, message)))
    }

    fn phase(&self, statuses: &[Value]) -> &'static str {
        match self.pod.phase() {
            "Succeeded" => return "Succeeded",
            "Failed" => return "Failed",
            _ => {}
        }
        let any_running = self.observed.running().any(|c| !self.pod.is_ephemeral(&c.name));
        if matches!(self.init, Init::Failed(_)) || (is_overdue(self.pod, self.now) && !any_running) {
            return "Failed";
        }
        let count = |kind: &str| statuses.iter().filter(|s| s.at(&["state", kind]).is_some()).count();
        let (running, stopped) = (count("running"), count("terminated"));
        let paused = statuses.iter().filter(|s| s.at(&["state", "waiting"]).is_some());
        let (back_off, fresh): (Vec<_>, Vec<_>) = paused.partition(|s| s.at(&["lastState", "terminated"]).is_some());
        if self.init != Init::Done || !fresh.is_empty() {
            return if self.ended && !any_running && stopped > 0 { "Failed" } else { "Pending" };
        }
        if running > 0 || !back_off.is_empty() {
            return "Running";
        }
        let clean = statuses.iter().all(|s| s.i64_at(&["state", "terminated", "exitCode"]) == Some(0));
        if any_running {
            // Sidecars end after the others.
            return "Running";
        }
        match restart::outcome(self.pod, self.observed) {
            Some(outcome) => outcome,
            None if self.ended && clean => "Succeeded",
            None if self.ended => "Failed",
            None => "Running",
        }
    }

    fn conditions(&self, status: &mut Value, phase: &str, init_statuses: &[Value], statuses: &[Value]) {
        let observed_generation = self.pod.0.i64_at(&["metadata", "generation"]);
        let old = status.list_at(&["conditions"]).to_vec();
        let sidecars = self.pod.init_containers().iter().zip(init_statuses).filter(|(c, _)| is_sidecar(c)).map(|(_, s)| s);
        let serving: Vec<&Value> = sidecars.chain(statuses).collect();
        let (ready, containers_ready) = self.readiness(phase, &serving, &old);
        let sandbox = self.observed.sandbox.is_ready();
        let wanted = [
            ("PodReadyToStartContainers", (sandbox, String::new(), String::new())),
            ("Initialized", self.initialized(phase)),
            ("Ready", ready),
            ("ContainersReady", containers_ready),
            ("PodScheduled", (true, String::new(), String::new())),
        ];
        let mut conditions: Vec<Value> = wanted
            .into_iter()
            .chain(self.resize())
            .map(|(kind, (on, reason, message))| {
                let word = if on { "True" } else { "False" };
                let was = old.iter().find(|c| c.str_at(&["type"]) == kind);
                let same =
                    was.filter(|c| c.str_at(&["status"]) == word).map(|c| c.str_at(&["lastTransitionTime"])).filter(|t| !t.is_empty());
                let since = same.map_or_else(|| clock::text(self.now), str::to_string);
                let mut c = value!({"type": kind, "status": word, "lastTransitionTime": since});
                for (key, text) in [("reason", reason), ("message", message)] {
                    if !text.is_empty() {
                        c.set(&[key], text);
                    }
                }
                if let Some(g) = observed_generation.filter(|g| *g > 0) {
                    c.set(&["observedGeneration"], g);
                }
                c
            })
            .collect();
        conditions.extend(old.into_iter().filter(|c| !OURS.contains(&c.str_at(&["type"]))));
        status.set(&["conditions"], conditions);
    }

    fn initialized(&self, phase: &str) -> Condition {
        if phase == "Succeeded" {
            return (true, "PodCompleted".into(), String::new());
        }
        let incomplete: Vec<&str> = match &self.init {
            Init::Done => Vec::new(),
            Init::At(name) | Init::Failed(name) => self.pod.init_containers().iter().map(name_of).skip_while(|n| n != name).collect(),
        };
        match incomplete.as_slice() {
            [] => (true, String::new(), String::new()),
            names => (false, "ContainersNotInitialized".into(), format!("containers with incomplete status: [{}]", names.join(" "))),
        }
    }

    /// The conditions Ready and ContainersReady.
    fn readiness(&self, phase: &str, statuses: &[&Value], conditions: &[Value]) -> (Condition, Condition) {
        match phase {
            "Succeeded" => return both(false, "PodCompleted", ""),
            "Failed" => return both(false, "PodFailed", ""),
            _ => {}
        }
        let unready: Vec<&str> = statuses.iter().filter(|s| !s.bool_at(&["ready"])).map(|s| name_of(s)).collect();
        if !unready.is_empty() {
            return both(false, "ContainersNotReady", &format!("containers with unready status: [{}]", unready.join(" ")));
        }
        let gate = self.pod.0.list_at(&["spec", "readinessGates"]).iter().find_map(|g| gate_text(g.str_at(&["conditionType"]), conditions));
        match gate {
            Some(text) => ((false, "ReadinessGatesNotReady".into(), text), (true, String::new(), String::new())),
            None => both(true, "", ""),
        }
    }
}

/// Status, reason, message.
type Condition = (bool, String, String);

fn both(on: bool, reason: &str, message: &str) -> (Condition, Condition) {
    let one = (on, reason.to_string(), message.to_string());
    (one.clone(), one)
}

fn gate_text(gate: &str, conditions: &[Value]) -> Option<String> {
    match conditions.iter().find(|c| c.str_at(&["type"]) == gate) {
        None => Some(format!("corresponding condition of pod readiness gate \"{gate}\" does not exist.")),
        Some(c) if c.str_at(&["status"]) != "True" => {
            let word = c.str_at(&["status"]);
            Some(format!("the status of pod readiness gate \"{gate}\" is not \"True\", but {word}"))
        }
        Some(_) => None,
    }
}

/// `coracle://<id>`, as `containerID` names a container.
pub fn container_id(id: &str) -> String {
    format!("coracle://{id}")
}

fn waiting(reason: &str, message: &str) -> Value {
    let mut w = Map::new();
    w.insert("reason", reason);
    if !message.is_empty() {
        w.insert("message", message);
    }
    value!({ "waiting": serde_json::Value::from(&Value::Map(w)) })
}

fn terminated(container: &Container) -> Option<Value> {
    let State::Exited { code, signal, reason, message } = &container.state else { return None };
    let mut t = value!({"exitCode": code, "reason": reason, "containerID": container_id(&container.id)});
    if *signal != 0 {
        t.set(&["signal"], *signal);
    }
    if !message.is_empty() {
        t.set(&["message"], message.as_str());
    }
    let finished = container.finished_at.unwrap_or(0);
    t.set(&["startedAt"], clock::text(container.started_at.unwrap_or(finished)));
    t.set(&["finishedAt"], clock::text(finished));
    Some(value!({ "terminated": serde_json::Value::from(&t) }))
}

fn mounts(spec: &Value, out: &mut Value) {
    let mounts: Vec<Value> = spec
        .list_at(&["volumeMounts"])
        .iter()
        .map(|m| {
            let mut v = value!({"name": name_of(m), "mountPath": m.str_at(&["mountPath"])});
            if m.bool_at(&["readOnly"]) {
                v.set(&["readOnly"], true);
                v.set(&["recursiveReadOnly"], "Disabled");
            }
            v
        })
        .collect();
    if !mounts.is_empty() {
        out.set(&["volumeMounts"], mounts);
    }
}

/// The patch of a list that is merged by `key`: an element that changed also says which of its fields are no more.
fn by_key(key: &str, had: &[Value], have: &Value) -> Value {
    let have = have.as_list().unwrap_or(&[]);
    let find = |list: &[Value], element: &Value| list.iter().find(|e| e.str_at(&[key]) == element.str_at(&[key])).cloned();
    let changed = have.iter().filter(|e| !had.contains(e)).map(|element| {
        let mut element = element.clone();
        let before = find(had, &element);
        for (field, _) in before.as_ref().and_then(Value::as_map).into_iter().flat_map(Map::iter) {
            if element.at(&[field]).is_none() {
                element.set(&[field], Value::Null);
            }
        }
        element
    });
    let gone = had.iter().filter(|e| find(have, e).is_none());
    Value::List(changed.chain(gone.map(|e| value!({key: e.str_at(&[key]), "$patch": "delete"}))).collect())
}

/// The strategic merge patch that turns `old` into `new`: top-level fields that differ, lists merged by a key one by one. `None`
/// when they are equal.
pub fn patch(old: &Value, new: &Value) -> Option<Value> {
    let empty = Map::new();
    let (was, is) = (old.as_map().unwrap_or(&empty), new.as_map().unwrap_or(&empty));
    let mut patch = Map::new();
    for (key, value) in is.iter().filter(|(k, v)| was.get(k) != Some(v)) {
        let send = match key {
            "conditions" => by_key("type", old.list_at(&[key]), value),
            "podIPs" | "hostIPs" => by_key("ip", old.list_at(&[key]), value),
            _ => value.clone(),
        };
        if send.as_list().is_none_or(|l| !l.is_empty()) {
            patch.insert(key.to_string(), send);
        }
    }
    for (key, _) in was.iter().filter(|(k, _)| !is.contains_key(k)) {
        patch.insert(key.to_string(), Value::Null);
    }
    (!patch.is_empty()).then_some(Value::Map(patch))
}

/// May this change wait for the next second? Readiness and phase may not.
pub fn is_urgent(old: &Value, new: &Value) -> bool {
    let ready =
        |s: &Value| s.list_at(&["conditions"]).iter().find(|c| c.str_at(&["type"]) == "Ready").map(|c| c.str_at(&["status"]).to_string());
    old.str_at(&["phase"]) != new.str_at(&["phase"]) || ready(old) != ready(new)
}

#[cfg(test)]
mod tests;
