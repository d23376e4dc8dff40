//! One pod's actor: gathers what happened, asks `plan` and `status`, starts steps, writes the status. Owns all state of its pod.
//!
//! Steps run in tasks of their own and report back; at most one is under way for each [`Key`]. Every turn of the loop begins with
//! the latest Pod and what the runtime says now, so an event lost or doubled changes nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::observe::{Container, Doom, Failure, Observed, Probes, Progress, Reason, Resize, State, Verdicts};
use super::plan::{DELETE, Key, Step, TEARDOWN, Why, has_stopped, plan};
use super::pod::{Pod, name_of};
use super::restart::Backoff;
use super::shutdown::{self, Stop};
use super::spec::LABEL_POD_IMAGE;
use super::step::{self, Before, Work};
use super::{Pods, Shared, Stage, admit, status};
use crate::agent::clock::{self, Millis};
use crate::agent::gc;
use crate::agent::probes::{self, Kind, ProbeSet, Target, Told};
use crate::agent::volumes::Outcome;
use crate::api::events::EventType;
use crate::api::object::Object;
use crate::api::status::Status;
use crate::api::value::{Map, Value};
use crate::runtime::{ContainerState, SandboxState, State as RuntimeState};

/// What the supervisor tells an actor.
#[derive(Debug)]
pub enum Input {
    Pod(Object),
    /// The API object is gone.
    Gone,
    /// Something happened in the runtime.
    Look,
    /// A ConfigMap or Secret the pod uses changed.
    Sources,
    /// Images came: one may be what a container waits for.
    Images,
    /// Another pod went: what it had is free.
    Room,
}

/// What a step's task reports.
enum Done {
    Volumes(Result<Outcome, Reason>),
    Refreshed(Result<Outcome, Reason>),
    Sandbox(Result<Vec<String>, Reason>),
    Started { name: String, attempt: u32, result: Result<String, Reason> },
    PostStart { id: String, name: String, result: Result<(), String> },
    Stopped { name: String, hook: Result<(), String> },
    Limited(Result<(), Reason>),
    TornDown(Result<(), Reason>),
    Deleted(Result<(), Reason>),
    Written(Box<Result<Object, Status>>),
}

struct Flight {
    task: JoinHandle<()>,
    /// Of a container being stopped: moved nearer when the grace period shrinks.
    deadline: Option<watch::Sender<Millis>>,
}

pub struct Actor {
    shared: Arc<Shared>,
    object: Object,
    observed: Observed,
    probes: Probes,
    sets: HashMap<String, ProbeSet>,
    flights: HashMap<Key, Flight>,
    /// postStart hooks by container id.
    hooks: HashMap<String, JoinHandle<()>>,
    refresh: Option<JoinHandle<()>>,
    refresh_at: Option<Millis>,
    done: mpsc::Sender<Done>,
    dones: Option<mpsc::Receiver<Done>>,
    told: mpsc::Sender<Told>,
    tolds: Option<mpsc::Receiver<Told>>,
    /// A status is on its way, and the hash of the last one the server took.
    writing: bool,
    sending: u64,
    sent: u64,
    write_after: Millis,
    /// Termination messages by container id, read once.
    messages: HashMap<String, String>,
    stop_signals: HashMap<String, i32>,
    /// The sandbox the runtime has is dead: to be removed before a new one.
    stale_sandbox: bool,
    /// What waiting reason each container showed last, for events.
    backing_off: HashMap<String, bool>,
    forgotten: bool,
    neighbours: Neighbours,
    /// Resources the containers were granted, by name, and for which spec that was judged last.
    granted: Option<Value>,
}

/// The node as one pod sees it: who else is here, what there is for all.
#[derive(Clone)]
pub struct Neighbours {
    pub pods: Pods,
    pub room: watch::Receiver<admit::Room>,
    /// A pod left off taking up room.
    pub freed: Arc<Notify>,
}

impl Neighbours {
    /// Pods that take up room beside the one named.
    pub fn others(&self, uid: &str) -> Vec<Value> {
        let known: Vec<Object> = {
            let pods = self.pods.lock().expect("nothing panics while holding it");
            pods.iter().filter(|(other, known)| *other != uid && known.takes_room()).map(|(_, known)| known.object.clone()).collect()
        };
        known.iter().map(Object::value).collect()
    }

    /// What the others are to know of this pod.
    fn tell(&self, uid: &str, has_stopped: bool, waits_for_room: bool) {
        if let Some(known) = self.pods.lock().expect("nothing panics while holding it").get_mut(uid) {
            known.waits_for_room = waits_for_room;
            let before = known.stage;
            known.stage = match (before, has_stopped) {
                (Stage::Gone, _) => Stage::Gone,
                (_, true) => Stage::Stopped,
                (_, false) => Stage::Active,
            };
            if before == Stage::Active && known.stage != Stage::Active {
                self.freed.notify_one();
            }
        }
    }
}

/// Status writes of one pod, except urgent ones.
const STATUS_INTERVAL: Millis = 1000;

impl Actor {
    pub fn new(shared: Arc<Shared>, object: Object, neighbours: Neighbours, rejected: Option<Reason>) -> Actor {
        let (done, dones) = mpsc::channel(64);
        let (told, tolds) = mpsc::channel(64);
        let (host_ips, node_memory) = (shared.node.host_ips.clone(), shared.node.memory_bytes);
        let observed = Observed { rejected, host_ips, node_memory, ..Observed::default() };
        Actor {
            shared,
            object,
            observed,
            probes: Probes::default(),
            sets: HashMap::new(),
            flights: HashMap::new(),
            hooks: HashMap::new(),
            refresh: None,
            refresh_at: None,
            done,
            dones: Some(dones),
            told,
            tolds: Some(tolds),
            writing: false,
            sending: 0,
            sent: 0,
            write_after: 0,
            messages: HashMap::new(),
            stop_signals: HashMap::new(),
            stale_sandbox: false,
            backing_off: HashMap::new(),
            forgotten: false,
            neighbours,
            granted: None,
        }
    }

    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut dones = self.dones.take().expect("taken once");
        let mut tolds = self.tolds.take().expect("taken once");
        self.adopt().await;
        loop {
            let wake = self.turn();
            if self.forgotten {
                return self.end().await;
            }
            let wait = wake.map(|at| Duration::from_millis(u64::try_from(at - self.shared.now()).unwrap_or(0).max(1)));
            tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => self.input(input).await,
                    None => return,
                },
                Some(done) = dones.recv() => self.done(done).await,
                Some(told) = tolds.recv() => self.told(told),
                () = sleep(wait) => {}
            }
            // What has come meanwhile is taken along: one decision for a burst.
            while let Ok(input) = inputs.try_recv() {
                self.input(input).await;
            }
            while let Ok(done) = dones.try_recv() {
                self.done(done).await;
            }
            while let Ok(told) = tolds.try_recv() {
                self.told(told);
            }
        }
    }

    /// The pod is no more: its logs go last.
    async fn end(self) {
        self.shared.volumes.sources().release(self.object.uid());
        let dir = self.shared.log_dir(Pod(&self.object.value()));
        match tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir)).await {
            Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => warn!(pod = %self.object.name(), %error, "logs not removed"),
            _ => {}
        }
    }

    /// Finds out what an earlier daemon left.
    async fn adopt(&mut self) {
        let uid = self.object.uid().to_string();
        self.look().await;
        if self.shared.volumes.is_set_up(&uid) {
            self.observed.volumes = Progress::Ready;
            self.observed.set_up = true;
            // Contents may have changed while nobody looked.
            self.refresh_at = Some(self.shared.now());
        }
    }

    async fn look(&mut self) {
        let uid = self.object.uid().to_string();
        let Some(state) = self.shared.runtime.sandbox(&uid).await else {
            self.observed.containers.clear();
            if self.observed.sandbox.is_ready() {
                self.observed.sandbox = Progress::Absent;
            }
            self.stale_sandbox = false;
            return;
        };
        self.observed.set_up = true;
        self.observed.limits = state.resources.clone();
        self.stale_sandbox = !state.ready;
        self.containers(&state).await;
        match (state.ready, self.observed.sandbox.is_ready()) {
            (false, _) if self.observed.sandbox.is_ready() => {
                self.observed.sandbox = Progress::Absent;
                self.event(None, EventType::Normal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.");
            }
            (true, false) if !self.flights.contains_key(&Key::Sandbox) => {
                let ips = self.shared.network.pod_ips(&uid);
                if !ips.is_empty() || Pod(&self.object.value()).host_network() {
                    self.observed.ips = ips;
                    self.observed.sandbox = Progress::Ready;
                }
            }
            _ => {}
        }
    }

    async fn containers(&mut self, state: &SandboxState) {
        let mut containers = Vec::with_capacity(state.containers.len());
        for c in &state.containers {
            if matches!(c.state, RuntimeState::Exited { .. }) && !self.messages.contains_key(&c.id) {
                let message = self.termination_message(c).await;
                self.messages.insert(c.id.clone(), message);
            }
            self.stop_signals.insert(c.id.clone(), c.stop_signal);
            containers.push(observed(c, self.messages.get(&c.id)));
        }
        let lives = |id: &String| state.containers.iter().any(|c| c.id == *id);
        self.messages.retain(|id, _| lives(id));
        self.stop_signals.retain(|id, _| lives(id));
        self.observed.restarting.retain(lives);
        self.observed.replaced.retain(lives);
        self.observed.containers = containers;
    }

    /// What the container wrote to its termination file, or the end of its log if the pod asks for that.
    async fn termination_message(&self, container: &ContainerState) -> String {
        if !container.message.is_empty() {
            return container.message.clone();
        }
        let pod = self.object.value();
        let fallback =
            Pod(&pod).container(&container.name).is_some_and(|c| c.str_at(&["terminationMessagePolicy"]) == "FallbackToLogsOnError");
        let failed = !matches!(container.state, RuntimeState::Exited { code: 0, .. });
        let file = step::termination_log(&self.shared.volumes.pod_dir(self.object.uid()), &container.name, container.attempt);
        let log = container.log_path.clone();
        let read =
            tokio::task::spawn_blocking(move || crate::agent::logs::termination_message(&file, (fallback && failed).then_some(&log)));
        read.await.unwrap_or_default()
    }

    async fn input(&mut self, input: Input) {
        match input {
            Input::Pod(object) => self.replace(object),
            Input::Gone => self.observed.gone = true,
            Input::Look => self.look().await,
            // The next turn judges anew.
            Input::Room => {}
            Input::Sources => {
                self.refresh_at = Some(self.shared.now());
                self.retry_now();
            }
            Input::Images => {
                let now = self.shared.now();
                for failure in self.observed.failures.values_mut().filter(|f| f.reason.contains("Image")) {
                    failure.retry_at = now;
                }
            }
        }
    }

    /// Takes a newer version of the pod; an echo older than our own write's answer is left alone.
    fn replace(&mut self, object: Object) {
        if object.revision <= self.object.revision {
            return;
        }
        let (old, new) = (self.object.value(), object.value());
        let differs = |path: &[&str]| old.at(path) != new.at(path);
        if differs(&["metadata", "labels"]) || differs(&["metadata", "annotations"]) || differs(&["spec"]) {
            self.refresh_at = Some(self.shared.now());
            self.retry_now();
        }
        self.object = object;
    }

    /// Something changed that may cure what failed; images do not come by themselves that way.
    fn retry_now(&mut self) {
        let now = self.shared.now();
        for failure in self.observed.failures.values_mut().filter(|f| !f.reason.contains("Image")) {
            failure.retry_at = now;
        }
        if let Progress::Failed(f) = &mut self.observed.volumes {
            f.retry_at = now;
        }
    }

    async fn done(&mut self, done: Done) {
        let now = self.shared.now();
        match done {
            Done::Volumes(result) => {
                self.flights.remove(&Key::Volumes);
                self.observed.set_up = true;
                self.observed.volumes = match result {
                    Ok(outcome) => {
                        self.refresh_at = outcome.refresh_at;
                        Progress::Ready
                    }
                    Err(reason) => Progress::Failed(Failure::after(self.observed.volumes.failure(), reason, 500, 30_000, now)),
                };
            }
            Done::Refreshed(result) => {
                self.refresh = None;
                let next = match result {
                    Ok(outcome) => outcome.refresh_at,
                    Err(_) => Some(now + 30_000),
                };
                // A change that came during the refresh stands.
                self.refresh_at = self.refresh_at.or(next);
            }
            Done::Sandbox(result) => {
                self.flights.remove(&Key::Sandbox);
                self.observed.set_up = true;
                match result {
                    Ok(ips) => {
                        self.observed.ips = ips;
                        self.observed.sandbox = Progress::Ready;
                    }
                    Err(reason) => {
                        self.observed.sandbox =
                            Progress::Failed(Failure::after(self.observed.sandbox.failure(), reason, 1000, 30_000, now));
                    }
                }
                self.look().await;
            }
            Done::Started { name, attempt, result } => {
                self.flights.remove(&Key::Container(name.clone()));
                self.look().await;
                self.started(name, attempt, result, now);
            }
            Done::PostStart { id, name, result } => {
                self.hooks.remove(&id);
                if let Err(message) = result {
                    self.event(Some(&name), EventType::Warning, "FailedPostStartHook", format!("PostStartHook failed: {message}"));
                    let verdicts = self.probes.0.entry(id).or_insert(Verdicts { started: true, ready: true, doomed: None });
                    verdicts.doomed = Some(Doom { probe: "postStart", grace_seconds: None });
                }
            }
            Done::Stopped { name, hook } => {
                self.flights.remove(&Key::Container(name.clone()));
                if let Err(message) = hook {
                    self.event(Some(&name), EventType::Warning, "FailedPreStopHook", format!("PreStopHook failed: {message}"));
                }
                self.look().await;
            }
            Done::Limited(result) => {
                self.flights.remove(&Key::Limits);
                let previous = self.observed.resize_failure.take();
                self.observed.resize_failure = result.err().map(|reason| Failure::after(previous.as_ref(), reason, 1000, 30_000, now));
                self.look().await;
            }
            Done::TornDown(result) => {
                self.flights.remove(&Key::Pod);
                match result {
                    Ok(()) => {
                        self.observed.failures.remove(TEARDOWN);
                        self.observed.set_up = false;
                        self.observed.volumes = Progress::Absent;
                        self.observed.sandbox = Progress::Absent;
                        self.look().await;
                    }
                    Err(reason) => self.fail(TEARDOWN, reason, 1000, 30_000, now),
                }
            }
            Done::Deleted(result) => {
                self.flights.remove(&Key::Pod);
                match result {
                    Ok(()) => self.observed.gone = true,
                    Err(reason) => self.fail(DELETE, reason, 1000, 30_000, now),
                }
            }
            Done::Written(result) => self.written(*result, now),
        }
    }

    fn fail(&mut self, key: &str, reason: Reason, first_ms: Millis, max_ms: Millis, now: Millis) {
        let failure = Failure::after(self.observed.failures.get(key), reason, first_ms, max_ms, now);
        self.observed.failures.insert(key.to_string(), failure);
    }

    fn started(&mut self, name: String, attempt: u32, result: Result<String, Reason>, now: Millis) {
        match result {
            Ok(id) => {
                self.observed.failures.remove(&name);
                self.post_start(&id, &name);
                self.forget_attempts(&name);
            }
            // It could not be executed: the runtime has it as an exit, and exits have a back-off of their own.
            Err(_) if self.observed.latest(&name).is_some_and(|c| c.attempt == attempt && c.exit_code().is_some()) => {
                self.observed.failures.remove(&name);
            }
            Err(reason) if reason.reason == "ErrImagePull" => {
                let tries = self.observed.failures.get(&name).map_or(0, |f| f.tries);
                let image = Pod(&self.object.value()).container(&name).map_or(String::new(), |c| c.str_at(&["image"]).to_string());
                let reason = match tries {
                    0 => reason,
                    _ => Reason {
                        reason: "ImagePullBackOff".into(),
                        message: format!("Back-off pulling image \"{image}\": {}: {}", reason.reason, reason.message),
                    },
                };
                self.fail(&name, reason, 10_000, 300_000, now);
            }
            Err(reason) => self.fail(&name, reason, 1000, 20_000, now),
        }
    }

    fn post_start(&mut self, id: &str, name: &str) {
        let pod = self.object.value();
        let Some(container) = Pod(&pod).container(name) else { return };
        let Some(hook) = shutdown::hook(container, "postStart", &self.ip()) else { return };
        let (shared, done) = (self.shared.clone(), self.done.clone());
        let (id, name) = (id.to_string(), name.to_string());
        let key = id.clone();
        let task = crate::task::spawn("pod-hook", async move {
            let result = match hook {
                // A postStart hook has no time limit of its own; it ends with its container.
                Ok(handler) => probes::ask(&*shared.runtime, &id, &handler, Duration::from_secs(24 * 3600)).await.map(drop),
                Err(message) => Err(message),
            };
            let _ = done.send(Done::PostStart { id, name, result }).await;
        });
        self.hooks.insert(key, task);
    }

    /// Of a container's attempts the latest two stay: the second for `lastState` and `kubectl logs --previous`.
    fn forget_attempts(&self, name: &str) {
        let old = gc::old_attempts(&self.observed.containers, name);
        if old.is_empty() {
            return;
        }
        let shared = self.shared.clone();
        let logs: Vec<_> = {
            let pod = self.object.value();
            old.iter().map(|(_, attempt)| shared.log_path(Pod(&pod), name, *attempt)).collect()
        };
        crate::task::spawn("pod-gc", async move {
            for (id, _) in old {
                if let Err(error) = shared.runtime.remove_container(&id).await {
                    warn!(container = %id, %error, "an old container could not be removed");
                }
            }
            gc::remove_logs(logs).await;
        });
    }

    fn written(&mut self, result: Result<Object, Status>, now: Millis) {
        self.writing = false;
        match result {
            Ok(object) => {
                self.sent = self.sending;
                self.write_after = now + STATUS_INTERVAL;
                if object.revision > self.object.revision {
                    self.object = object;
                }
            }
            Err(status) if status.code == 404 => self.observed.gone = true,
            Err(status) => {
                // 409: another pod has this name now; its event, or ours going, follows.
                debug!(pod = %self.object.name(), error = %status, "status not written");
                self.write_after = now + 2 * STATUS_INTERVAL;
            }
        }
    }

    fn told(&mut self, told: Told) {
        match told {
            Told::Said { name, reason, message } => self.event(Some(&name), EventType::Warning, reason, message),
            Told::Verdict { id, kind, ok, grace_seconds } => {
                let Some(verdicts) = self.probes.0.get_mut(&id) else { return };
                match (kind, ok) {
                    (Kind::Readiness, ok) => verdicts.ready = ok,
                    (Kind::Startup, true) => {
                        verdicts.started = true;
                        if let Some(set) = self.sets.get(&id) {
                            set.set_started();
                        }
                    }
                    (Kind::Liveness, true) => {}
                    (Kind::Startup, false) => verdicts.doomed = Some(Doom { probe: "startup", grace_seconds }),
                    (Kind::Liveness, false) => verdicts.doomed = Some(Doom { probe: "liveness", grace_seconds }),
                }
            }
        }
    }

    fn ip(&self) -> String {
        self.observed.ips.first().or(self.observed.host_ips.first()).cloned().unwrap_or_default()
    }

    /// Decides and starts what is to be done; answers when to look again if nothing happens.
    fn turn(&mut self) -> Option<Millis> {
        let mut pod = self.object.value();
        self.grant(&mut pod);
        let view = Pod(&pod);
        let now = self.shared.now();
        self.observed.unsupported = admit::unsupported(view);
        self.follow_probes(view, now);
        let mut wake: Option<Millis> = None;
        let mut wake_at = |at: Millis| wake = Some(wake.map_or(at, |w| w.min(at)));

        // Before the status with the outcome is written, or the object removed: others may be bound here for either.
        let has_stopped = has_stopped(view, &self.observed, now);
        self.neighbours.tell(self.object.uid(), has_stopped, matches!(self.observed.resize, Resize::Deferred(_)));

        let status = status::status(view, &self.observed, &self.probes, now);
        let (old, new) = (normal(pod.at(&["status"]).unwrap_or(&Value::Null)), normal(&status));
        let hash = hash(&new);
        let patch = status::patch(&old, &new).filter(|_| hash != self.sent);
        self.observed.reported = patch.is_none() && !self.writing;
        self.back_off_events(&pod, &status);

        for step in plan(view, &self.observed, &self.probes, now) {
            match step {
                Step::Wake { at } => wake_at(at),
                Step::Forget => self.forgotten = self.flights.is_empty() && !self.writing,
                step => self.launch(step, &pod, now),
            }
        }
        if let Some(patch) = patch.filter(|_| !self.writing && !self.observed.gone) {
            if now >= self.write_after || (status::is_urgent(&old, &new) && self.sent != 0) {
                self.write(patch, hash, &pod);
            } else {
                wake_at(self.write_after);
            }
        }
        if let Some(at) = self.refresh_at.filter(|_| self.observed.volumes.is_ready() && self.refresh.is_none()) {
            if view.is_terminal() || view.is_deleting() || self.observed.gone {
                self.refresh_at = None;
            } else if at <= now {
                self.refresh_volumes(&pod);
            } else {
                wake_at(at);
            }
        }
        wake
    }

    /// Leaves each container the resources it was granted; a change of them is granted, put off or refused as a whole.
    fn grant(&mut self, pod: &mut Value) {
        let wanted = granted(pod, |_| None);
        let had = self.granted.take().unwrap_or_else(|| {
            // After a restart: what was reported, for a change may have been waiting.
            granted(pod, |name| Pod(pod).reported(name).filter(|s| s.at(&["state", "running"]).is_some())?.at(&["resources"]))
        });
        if had == wanted {
            self.observed.resize = Resize::Granted;
            self.granted = Some(wanted);
            return;
        }
        let others = self.neighbours.others(self.object.uid());
        self.observed.resize = admit::resize(Pod(pod), &others, &self.neighbours.room.borrow());
        if self.observed.resize == Resize::Granted {
            self.granted = Some(wanted);
            return;
        }
        for list in ["initContainers", "containers"] {
            for c in pod.at_mut(&["spec", list]).and_then(Value::as_list_mut).into_iter().flatten() {
                let name = name_of(c).to_string();
                if let Some(resources) = had.at(&[&name]) {
                    c.set(&["resources"], resources.clone());
                }
            }
        }
        self.granted = Some(had);
    }

    fn write(&mut self, patch: Value, hash: u64, pod: &Value) {
        (self.writing, self.sending) = (true, hash);
        let (work, done) = (self.work(pod), self.done.clone());
        crate::task::spawn("pod-status", async move {
            let result = work.write_status(patch).await;
            let _ = done.send(Done::Written(Box::new(result))).await;
        });
    }

    fn refresh_volumes(&mut self, pod: &Value) {
        self.refresh_at = None;
        let (work, done) = (self.work(pod), self.done.clone());
        self.refresh = Some(crate::task::spawn("pod-refresh", async move {
            let result = work.mount_volumes().await;
            let _ = done.send(Done::Refreshed(result)).await;
        }));
    }

    fn work(&self, pod: &Value) -> Work {
        Work { shared: self.shared.clone(), pod: pod.clone(), ips: self.observed.ips.clone() }
    }

    fn event(&self, container: Option<&str>, type_: EventType, reason: &str, message: impl Into<String>) {
        step::event(&self.shared, &self.object.value(), container, type_, reason, message);
    }

    fn launch(&mut self, step: Step, pod: &Value, now: Millis) {
        let key = step.key();
        if let (Step::StopContainer { grace_seconds, .. }, Some(flight)) = (&step, self.flights.get(&key)) {
            if let Some(deadline) = &flight.deadline {
                let nearer = now + grace_seconds * 1000;
                deadline.send_if_modified(|at| {
                    nearer < *at && {
                        *at = nearer;
                        true
                    }
                });
            }
            return;
        }
        if self.flights.contains_key(&key) {
            return;
        }
        if matches!(step, Step::Teardown | Step::DeletePod) {
            // Waiting for a ConfigMap may take long and leaves nothing half done; everything else must end first.
            if let Some(flight) = self.flights.remove(&Key::Volumes) {
                flight.task.abort();
            }
            if let Some(task) = self.refresh.take() {
                task.abort();
            }
            if !self.flights.is_empty() {
                return;
            }
        }
        let (work, done) = (self.work(pod), self.done.clone());
        let mut deadline = None;
        let task = match step {
            Step::MountVolumes => spawn(done, async move { Done::Volumes(work.mount_volumes().await) }),
            Step::StartSandbox => {
                let stale = self.stale_sandbox;
                spawn(done, async move { Done::Sandbox(work.start_sandbox(stale).await) })
            }
            Step::SetLimits { changes } => spawn(done, async move { Done::Limited(work.set_limits(changes).await) }),
            Step::StartContainer { name, attempt } => {
                let before = self.prepare_start(pod, &name, attempt, now);
                spawn(done, async move {
                    let result = work.start_container(&name, attempt, before).await;
                    Done::Started { name, attempt, result }
                })
            }
            Step::StopContainer { id, name, grace_seconds, why } => {
                let (to, from) = watch::channel(now + grace_seconds * 1000);
                deadline = Some(to);
                if why.is_restart() {
                    self.observed.restarting.insert(id.clone());
                }
                if why.is_replacement() {
                    self.observed.replaced.insert(id.clone());
                    // What the old one came to says nothing of the new one.
                    self.observed.backoffs.remove(&name);
                }
                self.stop(pod, id, name, why, from, done)
            }
            Step::Teardown => spawn(done, async move { Done::TornDown(work.teardown().await) }),
            Step::DeletePod => spawn(done, async move { Done::Deleted(work.delete_pod().await) }),
            Step::Forget | Step::Wake { .. } => return,
        };
        self.flights.insert(key, Flight { task, deadline });
    }

    /// The back-off of a restart, what of the same attempt is to be removed first, and whose processes an ephemeral container sees.
    fn prepare_start(&mut self, pod: &Value, name: &str, attempt: u32, now: Millis) -> Before {
        let latest = self.observed.latest(name).cloned();
        let previous = self.observed.backoffs.get(name).copied();
        // Once for each exit, however often the start after it is tried.
        let is_new = |c: &Container| !self.observed.replaced.contains(&c.id) && previous.is_none_or(|b| c.attempt > b.attempt);
        if let Some(exited) = latest.filter(|c| c.exit_code().is_some() && is_new(c)) {
            let next = Backoff::next(previous, exited.attempt, exited.finished_at.unwrap_or(now), now);
            self.observed.backoffs.insert(name.to_string(), next);
        }
        let same = self.observed.containers.iter().filter(|c| c.name == name && c.attempt == attempt && c.state == State::Created);
        let leftovers = same.map(|c| c.id.clone()).collect();
        let target = Pod(pod).container(name).map_or("", |c| c.str_at(&["targetContainerName"]));
        let target = self.observed.latest(target).filter(|c| c.is_running()).map(|c| c.id.clone());
        Before { leftovers, target }
    }

    fn stop(
        &mut self,
        pod: &Value,
        id: String,
        name: String,
        why: Why,
        deadline: watch::Receiver<Millis>,
        done: mpsc::Sender<Done>,
    ) -> JoinHandle<()> {
        if let Some(task) = self.hooks.remove(&id) {
            task.abort();
        }
        self.event(Some(&name), EventType::Normal, "Killing", killing(&name, &why));
        let container = Pod(pod).container(&name);
        let pre_stop = container.and_then(|c| shutdown::hook(c, "preStop", &self.ip()));
        let (pre_stop, unreadable) = match pre_stop {
            Some(Ok(handler)) => (Some(handler), Ok(())),
            Some(Err(message)) => (None, Err(message)),
            None => (None, Ok(())),
        };
        let stop_signal = self.stop_signals.get(&id).copied().filter(|s| *s > 0).unwrap_or(15);
        let (shared, sandbox) = (self.shared.clone(), self.object.uid().to_string());
        spawn(done, async move {
            let hook = shutdown::stop(&shared, Stop { sandbox, id, stop_signal, pre_stop, deadline }).await;
            Done::Stopped { name, hook: unreadable.and(hook) }
        })
    }

    /// Starts the probes of containers that began to run, ends those of containers that do not.
    fn follow_probes(&mut self, pod: Pod, now: Millis) {
        let running: Vec<Container> = self.observed.running().cloned().collect();
        let runs = |id: &String| running.iter().any(|c| c.id == *id);
        self.sets.retain(|id, _| runs(id));
        self.probes.0.retain(|id, _| runs(id));
        for c in &running {
            if self.sets.contains_key(&c.id) || (pod.is_init(&c.name) && !pod.is_sidecar(&c.name)) {
                continue;
            }
            let Some(spec) = pod.container(&c.name) else { continue };
            let all = probes::probes(spec, &self.ip());
            // A restarted daemon believes what was reported until it has asked itself.
            let reported = pod.reported(&c.name).filter(|s| s.str_at(&["containerID"]) == status::container_id(&c.id));
            let was = |key: &str| reported.is_some_and(|s| s.bool_at(&[key]));
            let has = |kind: Kind| all.iter().any(|p| p.kind == kind);
            let started = !has(Kind::Startup) || was("started");
            let ready = !has(Kind::Readiness) || was("ready");
            let entry = self.probes.0.entry(c.id.clone()).or_insert(Verdicts { started, ready, doomed: None });
            (entry.started, entry.ready) = (started, ready);
            let age = Duration::from_millis(c.started_at.and_then(|at| u64::try_from(now - at).ok()).unwrap_or(0));
            let target = Target { id: c.id.clone(), name: c.name.clone(), age, started };
            self.sets.insert(c.id.clone(), ProbeSet::start(&self.shared.runtime, &target, all, &self.told));
        }
    }

    /// `BackOff` once per wait.
    fn back_off_events(&mut self, pod: &Value, status: &Value) {
        let lists = ["initContainerStatuses", "containerStatuses"];
        for s in lists.iter().flat_map(|l| status.list_at(&[l])) {
            let waits = s.str_at(&["state", "waiting", "reason"]) == "CrashLoopBackOff";
            let before = self.backing_off.insert(name_of(s).to_string(), waits).unwrap_or(false);
            if waits && !before {
                let message = format!("Back-off restarting failed container {} in pod {}", name_of(s), Pod(pod).text());
                self.event(Some(name_of(s)), EventType::Warning, "BackOff", message);
            }
        }
    }
}

fn spawn(done: mpsc::Sender<Done>, work: impl Future<Output = Done> + Send + 'static) -> JoinHandle<()> {
    crate::task::spawn("pod-step", async move {
        let result = work.await;
        // The actor is gone only when the daemon stops.
        let _ = done.send(result).await;
    })
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

fn killing(name: &str, why: &Why) -> String {
    match why {
        Why::Deleted | Why::Ended => format!("Stopping container {name}"),
        Why::Probe("postStart") => "FailedPostStartHook".to_string(),
        Why::Probe(probe) => format!("Container {name} failed {probe} probe, will be restarted"),
        Why::Changed => format!("Container {name} definition changed, will be restarted"),
        Why::Resized => format!("Container {name} resize requires restart"),
    }
}

fn observed(c: &ContainerState, message: Option<&String>) -> Container {
    let state = match c.state {
        RuntimeState::Created => State::Created,
        RuntimeState::Running { .. } => State::Running,
        RuntimeState::Exited { code, signal, oom_killed } => {
            let reason = match (c.reason.as_str(), oom_killed, code) {
                ("", true, _) => "OOMKilled",
                ("", false, 0) => "Completed",
                ("", false, _) => "Error",
                (reason, _, _) => reason,
            };
            State::Exited { code, signal, reason: reason.to_string(), message: message.cloned().unwrap_or_default() }
        }
    };
    Container {
        id: c.id.clone(),
        name: c.name.clone(),
        attempt: c.attempt,
        image: c.labels.get(LABEL_POD_IMAGE).unwrap_or(&c.image).clone(),
        image_id: c.image_id.clone(),
        started_at: c.started_at.map(clock::of_system),
        finished_at: c.finished_at.map(clock::of_system),
        state,
        limits: c.resources.clone(),
    }
}

/// Resources by container name, `other` before the spec's own.
fn granted<'a>(pod: &'a Value, other: impl Fn(&str) -> Option<&'a Value>) -> Value {
    let view = Pod(pod);
    let mut all = Value::map();
    for c in view.init_containers().iter().chain(view.containers()) {
        let resources = other(name_of(c)).or_else(|| c.at(&["resources"])).cloned().unwrap_or_else(Value::map);
        all.set(&[name_of(c)], resources);
    }
    all
}

/// Without what means nothing (null, empty text, map or list), so that a server that drops such members is not written to for ever.
/// Empty resources say that the container runs without any.
fn normal(value: &Value) -> Value {
    let keep = |k: &str, v: &Value| match v {
        Value::Null => false,
        Value::Str(s) => !s.is_empty(),
        Value::List(l) => !l.is_empty(),
        Value::Map(m) => !m.is_empty() || k == "resources",
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => true,
    };
    match value {
        Value::Map(m) => Value::Map(m.iter().map(|(k, v)| (k.to_string(), normal(v))).filter(|(k, v)| keep(k, v)).collect::<Map>()),
        Value::List(l) => Value::List(l.iter().map(normal).collect()),
        other => other.clone(),
    }
}

fn hash(value: &Value) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    hasher.finish().max(1)
}
