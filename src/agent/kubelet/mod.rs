//! The kubelet: one actor per pod around two pure functions.
//!
//! [`Kubelet::start`] follows the pods bound to this node and keeps one [`actor`] for each; an actor decides with
//! [`plan::plan`] and [`status::status`] after everything that happens to its pod and carries the steps out with [`step`]. A slow
//! pod holds up nobody else. What is left in the runtime or on disk of pods that do not exist any more is removed once the
//! first list is in: never before, and only by uid.

pub mod actor;
pub mod admit;
pub mod env;
pub mod files;
pub mod observe;
pub mod plan;
pub mod pod;
pub mod restart;
pub mod shutdown;
pub mod spec;
pub mod status;
pub mod step;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::{broadcast, mpsc, watch};
use tracing::{info, warn};

use crate::agent::PodNetwork;
use crate::agent::clock::{self, Millis};
use crate::agent::volumes::Volumes;
use crate::api::client::Client;
use crate::api::events::Recorder;
use crate::api::informer::{Change, informer};
use crate::api::object::Object;
use crate::api::request::Options;
use crate::api::resource;
use crate::api::time::Clock;
use crate::api::value::Value;
use crate::runtime::{Runtime, RuntimeEvent};
use crate::task::Shutdown;
use actor::{Input, Neighbours};
use admit::Room;
use env::{NodeFacts, Service};
use files::Dns;
use observe::Reason;
use pod::Pod;

/// What every actor uses.
pub struct Shared {
    pub runtime: Arc<dyn Runtime>,
    pub network: Arc<dyn PodNetwork>,
    pub client: Client,
    pub recorder: Recorder,
    pub clock: Arc<dyn Clock>,
    pub volumes: Volumes,
    pub dns: Dns,
    pub node: NodeFacts,
    /// `<logs>/<namespace>_<name>_<uid>/<container>/<attempt>.log`.
    pub log_root: PathBuf,
    /// Where seccomp profiles of type `Localhost` are.
    pub seccomp_dir: PathBuf,
    /// `None` until the first list of services is in.
    pub services: watch::Receiver<Option<Arc<Vec<Service>>>>,
}

impl Shared {
    pub fn now(&self) -> Millis {
        clock::millis(self.clock.now())
    }

    pub fn log_dir(&self, pod: Pod) -> PathBuf {
        self.log_root.join(format!("{}_{}_{}", pod.namespace(), pod.name(), pod.uid()))
    }

    pub fn log_path(&self, pod: Pod, container: &str, attempt: u32) -> PathBuf {
        self.log_dir(pod).join(container).join(format!("{attempt}.log"))
    }

    /// The cluster's services; waits for the first list, so that no container starts without its variables.
    pub async fn services(&self) -> Arc<Vec<Service>> {
        let mut services = self.services.clone();
        match services.wait_for(Option::is_some).await {
            Ok(known) => known.clone().unwrap_or_default(),
            Err(_) => Arc::default(),
        }
    }
}

/// Follows the services' variables.
pub fn follow_services(client: Client) -> watch::Receiver<Option<Arc<Vec<Service>>>> {
    let (to, services) = watch::channel(None);
    crate::task::spawn("agent-services", async move {
        let mut changes = informer(client, &resource::SERVICES, Options::default());
        let mut known: HashMap<(String, String), Option<Service>> = HashMap::new();
        let mut synced = false;
        while let Some(change) = changes.recv().await {
            match change {
                Change::Reset => {
                    known.clear();
                    synced = false;
                }
                Change::Set(object) => {
                    known.insert((object.namespace().into(), object.name().into()), Service::of(&object.value()));
                }
                Change::Gone(object) => {
                    known.remove(&(object.namespace().to_string(), object.name().to_string()));
                }
                Change::Synced(_) => synced = true,
            }
            if synced {
                let mut all: Vec<Service> = known.values().flatten().cloned().collect();
                all.sort();
                if to.send(Some(Arc::new(all))).is_err() {
                    return;
                }
            }
        }
    });
    services
}

/// The running kubelet.
pub struct Kubelet {
    shared: Arc<Shared>,
    pods: Pods,
    stop: Shutdown,
}

/// The pods here by uid: for each other and for the kubelet's own API.
pub type Pods = Arc<Mutex<HashMap<String, Known>>>;

/// A pod as the others here see it.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its latest version.
    pub object: Object,
    pub stage: Stage,
    /// A change of its resources waits for room.
    pub waits_for_room: bool,
}

/// How far a pod has come, for those who ask what it takes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It may run, or what ran is still being ended.
    Active,
    /// It is on its way out and nothing of it runs any more. The API object may still say otherwise.
    Stopped,
    /// Its API object is gone. What is left of it here is being removed.
    Gone,
}

impl Known {
    /// Does it count against what the node offers?
    ///
    /// It stops doing so no later than the scheduler leaves off counting it, which is when the API server knows it as ended or not
    /// at all: the outcome is written, and the object removed, only after the pod has stopped; and that an object is gone comes in
    /// order with the pods bound in its stead. Upstream counts the same: the pods of its manager but those known to have terminated.
    pub fn takes_room(&self) -> bool {
        self.stage == Stage::Active
    }
}

impl Kubelet {
    /// `changed` hears the uids of pods whose ConfigMaps or Secrets changed; `room` is what the node offers now.
    pub fn start(shared: Arc<Shared>, changed: mpsc::Receiver<Vec<String>>, room: watch::Receiver<Room>, stop: Shutdown) -> Kubelet {
        let pods = Pods::default();
        let neighbours = Neighbours { pods: pods.clone(), room, freed: Arc::default() };
        let supervisor =
            Supervisor { shared: shared.clone(), actors: HashMap::new(), pods: pods.clone(), neighbours, stop: stop.clone(), seen: None };
        crate::task::spawn("kubelet", supervisor.run(changed));
        Kubelet { shared, pods, stop }
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Every pod of this node.
    pub fn pods(&self) -> Vec<Object> {
        self.pods.lock().expect("nothing panics while holding it").values().map(|k| k.object.clone()).collect()
    }

    pub fn pod(&self, namespace: &str, name: &str) -> Option<Object> {
        let pods = self.pods.lock().expect("nothing panics while holding it");
        let mut named: Vec<&Known> = pods.values().filter(|k| k.object.namespace() == namespace && k.object.name() == name).collect();
        // One of the same name that is gone may still be on its way out.
        named.sort_by_key(|k| k.stage == Stage::Gone);
        named.first().map(|k| k.object.clone())
    }

    /// Ends the loops. Containers go on: the next start adopts them.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

struct Supervisor {
    shared: Arc<Shared>,
    actors: HashMap<String, mpsc::Sender<Input>>,
    pods: Pods,
    neighbours: Neighbours,
    stop: Shutdown,
    /// Uids set since the list began, until it is complete.
    seen: Option<BTreeSet<String>>,
}

impl Supervisor {
    async fn run(mut self, mut changed: mpsc::Receiver<Vec<String>>) {
        let node = &self.shared.node.name;
        let options = Options { field_selector: Some(format!("spec.nodeName={node}")), ..Options::default() };
        let mut events = self.shared.runtime.subscribe();
        let mut changes = informer(self.shared.client.clone(), &resource::PODS, options);
        let (ended, mut ends) = mpsc::channel::<String>(64);
        let stop = self.stop.clone();
        let freed = self.neighbours.freed.clone();
        let mut swept = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                change = changes.recv() => match change {
                    None => return,
                    Some(Change::Synced(_)) => {
                        self.synced().await;
                        if !swept {
                            swept = true;
                            self.sweep().await;
                        }
                    }
                    Some(change) => self.change(change, &ended).await,
                },
                event = events.recv() => match event {
                    Ok(event) => match sandbox_of(&event) {
                        Some(uid) => self.tell(uid, Input::Look).await,
                        None => self.tell_all(|| Input::Images).await,
                    },
                    Err(broadcast::error::RecvError::Lagged(_)) => self.tell_all(|| Input::Look).await,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                Some(uids) = changed.recv() => {
                    for uid in uids {
                        self.tell(&uid, Input::Sources).await;
                    }
                },
                Some(uid) = ends.recv() => {
                    self.actors.remove(&uid);
                    self.pods.lock().expect("nothing panics while holding it").remove(&uid);
                },
                () = freed.notified() => self.room().await,
            }
        }
    }

    async fn change(&mut self, change: Change, ended: &mpsc::Sender<String>) {
        match change {
            Change::Reset => self.seen = Some(BTreeSet::new()),
            Change::Set(object) => self.set(object, ended).await,
            Change::Gone(object) => self.gone(object.uid().to_string()).await,
            Change::Synced(_) => {}
        }
    }

    async fn set(&mut self, object: Object, ended: &mpsc::Sender<String>) {
        let uid = object.uid().to_string();
        if let Some(seen) = &mut self.seen {
            seen.insert(uid.clone());
        }
        if self.actors.contains_key(&uid) {
            if let Some(known) = self.pods.lock().expect("nothing panics while holding it").get_mut(&uid) {
                known.object = object.clone();
            }
            return self.tell(&uid, Input::Pod(object)).await;
        }
        let pod = object.value();
        let rejected = self.admit(&pod);
        let stage = if rejected.is_some() || Pod(&pod).is_terminal() { Stage::Stopped } else { Stage::Active };
        let known = Known { object: object.clone(), stage, waits_for_room: false };
        self.pods.lock().expect("nothing panics while holding it").insert(uid.clone(), known);
        let (to, inputs) = mpsc::channel(64);
        self.actors.insert(uid.clone(), to);
        let actor = actor::Actor::new(self.shared.clone(), object, self.neighbours.clone(), rejected);
        let (stop, ended) = (self.stop.clone(), ended.clone());
        crate::task::spawn("pod", async move {
            tokio::select! {
                () = stop.cancelled() => return,
                () = actor.run(inputs) => {}
            }
            // The supervisor may be gone already, and the list with it.
            let _ = ended.send(uid).await;
        });
    }

    /// Pods accepted before (they have a start time) are not judged again.
    fn admit(&self, pod: &Value) -> Option<Reason> {
        let view = Pod(pod);
        if view.start_time().is_some() || view.is_terminal() || view.is_deleting() {
            return None;
        }
        admit::admit(view, &self.neighbours.others(view.uid()), &self.neighbours.room.borrow()).err()
    }

    async fn gone(&mut self, uid: String) {
        if let Some(known) = self.pods.lock().expect("nothing panics while holding it").get_mut(&uid) {
            known.stage = Stage::Gone;
        }
        self.neighbours.freed.notify_one();
        self.tell(&uid, Input::Gone).await;
    }

    /// A resize may have waited for what another pod had.
    async fn room(&self) {
        let waiting: Vec<String> = {
            let pods = self.pods.lock().expect("nothing panics while holding it");
            pods.iter().filter(|(_, known)| known.waits_for_room).map(|(uid, _)| uid.clone()).collect()
        };
        for uid in waiting {
            self.tell(&uid, Input::Room).await;
        }
    }

    async fn synced(&mut self) {
        let Some(seen) = self.seen.take() else { return };
        let missing: Vec<String> = self.actors.keys().filter(|uid| !seen.contains(*uid)).cloned().collect();
        for uid in missing {
            self.gone(uid).await;
        }
    }

    /// Removes what belongs to no pod any more.
    async fn sweep(&mut self) {
        let mut left: BTreeSet<String> = self.shared.runtime.list().await.into_iter().map(|s| s.info.id).collect();
        left.extend(self.shared.volumes.known());
        for uid in left.into_iter().filter(|uid| !self.actors.contains_key(uid)) {
            info!(pod = %uid, "removing what is left of a pod that does not exist any more");
            let shared = self.shared.clone();
            crate::task::spawn("pod-orphan", async move {
                if let Err(reason) = step::teardown(&shared, &uid).await {
                    warn!(pod = %uid, error = %reason.message, "leftovers could not be removed");
                }
            });
        }
        crate::agent::gc::orphan_logs(&self.shared.log_root, &self.actors.keys().cloned().collect());
    }

    async fn tell(&self, uid: &str, input: Input) {
        if let Some(actor) = self.actors.get(uid) {
            // A closed channel is an actor that just ended.
            let _ = actor.send(input).await;
        }
    }

    async fn tell_all(&self, input: fn() -> Input) {
        for uid in self.actors.keys() {
            self.tell(uid, input()).await;
        }
    }
}

/// Whom an event is about; one about images is everyone's.
fn sandbox_of(event: &RuntimeEvent) -> Option<&str> {
    match event {
        RuntimeEvent::Started { sandbox, .. }
        | RuntimeEvent::Exited { sandbox, .. }
        | RuntimeEvent::OutOfMemory { sandbox, .. }
        | RuntimeEvent::SandboxLost { sandbox } => Some(sandbox),
        RuntimeEvent::ImagesChanged => None,
    }
}
