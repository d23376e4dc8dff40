//! Pure: controllers and the engine that runs them.
//!
//! A [`Controller`] turns what is seen (a key and the [`World`]) into what should happen (a list of [`Action`]s). The
//! [`Engine`] decides when: one job per key at a time, changes during a job remembered, failures backed off, and two rules
//! that make lagging caches and lost replies harmless (DESIGN 2.8):
//!
//! - *Read your own writes*: a key is not decided again until the world has seen what its last job wrote ([`Gate`]).
//! - *Silence is not failure*: a job with an unknown outcome is sent again as it was, never decided again. So every action
//!   carries what makes a late duplicate harmless: a concrete name, a revision, a uid.
//!
//! `api::driver` is the async shell: it feeds changes in, carries jobs out, and hands back one [`Outcome`] per action.
//! Time comes in as milliseconds, randomness as a seed. Start at [`Controller`] and [`Engine::poll`].

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use super::events::Note;
use super::object::Revision;
use super::resource::Resource;
use super::status::Status;
use super::value::Value;
pub use super::world::{Gate, Key, Touched, World};

/// Decisions about one kind of object.
pub trait Controller: Send {
    /// Also the component of its events.
    fn name(&self) -> &'static str;
    /// It acts as `system:serviceaccount:kube-system:<identity>`.
    fn identity(&self) -> &'static str {
        self.name()
    }
    /// What it looks at.
    fn resources(&self) -> Vec<&'static Resource>;
    /// Nothing is decided before these are in sync; a controller that can do with less says so and asks the world itself.
    fn needs(&self) -> Vec<&'static Resource> {
        self.resources()
    }
    /// Which keys a change asks to look at again. The world already has the new state.
    fn touched(&self, change: &Touched, world: &World) -> Vec<Key>;
    /// What should happen. No clock but `turn.now_ms`, no randomness but `turn.seed`.
    fn reconcile(&self, key: &Key, world: &World, turn: &Turn) -> Vec<Action>;
    /// Larger goes first.
    fn priority(&self, _key: &Key, _world: &World) -> i64 {
        0
    }
    /// How many jobs may be under way.
    fn jobs_max(&self) -> usize {
        8
    }
    /// What to say about an action that failed; usually a warning event.
    fn failed(&self, _key: &Key, _action: &Action, _status: &Status, _world: &World) -> Option<Note> {
        None
    }
}

/// What a decision may know besides the world.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// Milliseconds since the epoch.
    pub now_ms: i64,
    /// Source of the names chosen in this decision.
    pub seed: u64,
    /// Why the last job of this key failed, until one succeeds.
    pub failure: Option<Status>,
}

impl Turn {
    /// Seconds since the epoch.
    pub fn now(&self) -> i64 {
        self.now_ms.div_euclid(1000)
    }

    /// The `n`th five-character suffix of this decision, as `generateName` makes them.
    pub fn suffix(&self, n: u64) -> String {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut x = mix(self.seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        (0..5)
            .map(|_| {
                let c = ALPHABET[(x % ALPHABET.len() as u64) as usize];
                x /= ALPHABET.len() as u64;
                c as char
            })
            .collect()
    }
}

/// splitmix64's finalizer.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// One thing to do. Everything a controller can do to the cluster is in this list.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// `object` has a concrete name. `then` is recorded once it landed.
    Create {
        resource: &'static Resource,
        object: Value,
        then: Option<Note>,
    },
    /// PUT of the object or a subresource (`status`, `finalize`); `object` carries its resourceVersion.
    Update {
        resource: &'static Resource,
        subresource: &'static str,
        object: Value,
        then: Option<Note>,
    },
    /// A merge patch with `metadata.uid` (and, where it matters, `metadata.resourceVersion`) inside.
    Patch {
        key: Key,
        subresource: &'static str,
        patch: Value,
    },
    /// With uid precondition, and revision precondition where given.
    Delete {
        key: Key,
        uid: String,
        revision: Option<Revision>,
        policy: DeletePolicy,
        then: Option<Note>,
    },
    /// Deletes everything of these kinds in a namespace; the rest of the job is only done if nothing is left.
    Empty {
        namespace: String,
        resources: Vec<&'static Resource>,
    },
    /// Reads `owner` from the API: the rest of the job is only done if it is absent, or (with a uid) another object has its
    /// name now.
    Absent {
        owner: Key,
        uid: String,
    },
    /// Assigns a pod to a node.
    Bind {
        pod: Key,
        uid: String,
        node: String,
        then: Option<Note>,
    },
    Event(Note),
    /// Look at this key again later. Carried out by the engine itself.
    RequeueAfter {
        ms: i64,
    },
}

/// How a deletion treats dependents and grace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeletePolicy {
    #[default]
    Default,
    Background,
    Foreground,
    Orphan,
    /// Background, and no grace: for pods whose node is gone.
    Force,
}

/// A decision on its way.
#[derive(Clone, Debug)]
pub struct Job {
    pub id: u64,
    pub key: Key,
    pub actions: Vec<Action>,
    /// 0 at first; more when what is in doubt is sent again.
    pub attempt: u32,
}

/// What became of one action.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is done; the world has to pass the gate before the key is decided again.
    Landed(Option<Gate>),
    /// The API refused it.
    Failed(Status),
    /// It is not known whether it happened.
    Unknown(Status),
    /// Not tried, because an earlier action stopped the job.
    Skipped,
}

/// Runs one controller.
pub struct Engine {
    controller: Box<dyn Controller>,
    resources: Vec<&'static Resource>,
    started: bool,
    keys: HashMap<Key, State>,
    ready: BTreeSet<(Reverse<i64>, u64, Key)>,
    timers: BTreeSet<(i64, Key)>,
    /// In order, so that a seed of the simulation means the same every time.
    gated: BTreeSet<Key>,
    world_version: u64,
    in_flight: usize,
    next_id: u64,
    seed: u64,
    notes: Vec<Note>,
}

#[derive(Default)]
struct State {
    /// Position in `ready`.
    ready: Option<(Reverse<i64>, u64)>,
    due_ms: Option<i64>,
    /// Changed since the last decision began.
    dirty: bool,
    job: Option<Sent>,
    gates: Vec<Gate>,
    /// When to stop waiting for [`Gate::Moved`]: a refusal may have had other reasons.
    patience_ms: i64,
    failures: u32,
    failure: Option<Status>,
}

struct Sent {
    /// Of a job that is sent again, only what is in doubt.
    job: Job,
    /// Waiting to be sent again.
    silent: bool,
    /// What the other actions of the job gave: a refusal; and whether some were not tried.
    failure: Option<Status>,
    cut: bool,
}

const BACKOFF_MS_MIN: i64 = 20;
const BACKOFF_MS_MAX: i64 = 60_000;
const RESEND_MS_MAX: i64 = 10_000;
const PATIENCE_MS: i64 = 10_000;

impl Engine {
    pub fn new(controller: Box<dyn Controller>, seed: u64) -> Engine {
        let resources = controller.resources();
        Engine {
            controller,
            resources,
            started: false,
            keys: HashMap::new(),
            ready: BTreeSet::new(),
            timers: BTreeSet::new(),
            gated: BTreeSet::new(),
            world_version: 0,
            in_flight: 0,
            next_id: 0,
            seed,
            notes: Vec::new(),
        }
    }

    pub fn name(&self) -> &'static str {
        self.controller.name()
    }

    pub fn resources(&self) -> &[&'static Resource] {
        &self.resources
    }

    /// Something changed in the world (which has it already).
    pub fn changed(&mut self, change: &Touched, world: &World) {
        if !self.resources.contains(&change.resource) {
            return;
        }
        for key in self.controller.touched(change, world) {
            self.enqueue(key, world);
        }
    }

    /// Look at `key` as soon as it may be.
    pub fn enqueue(&mut self, key: Key, world: &World) {
        self.next_id += 1;
        let state = self.keys.entry(key.clone()).or_default();
        if state.job.is_some() {
            state.dirty = true;
        } else if state.ready.is_none() {
            let place = (Reverse(self.controller.priority(&key, world)), self.next_id);
            state.ready = Some(place);
            self.ready.insert((place.0, place.1, key));
        }
    }

    /// The next job to carry out, if any. Call until `None`, after every change, outcome and due time.
    pub fn poll(&mut self, world: &mut World, now_ms: i64) -> Option<Job> {
        if !self.started {
            self.started = self.controller.needs().iter().all(|r| world.is_synced(r));
            if !self.started {
                return None;
            }
        }
        if let Some(job) = self.fire(world, now_ms) {
            return Some(job);
        }
        self.open_gates(world, now_ms);
        while self.in_flight < self.controller.jobs_max()
            && let Some((_, _, key)) = self.ready.pop_first()
        {
            let state = self.keys.get_mut(&key).expect("a ready key has a state");
            state.ready = None;
            let mut gates = std::mem::take(&mut state.gates);
            gates.retain(|gate| state.waits(gate, world, now_ms));
            state.gates = gates;
            if !state.gates.is_empty() {
                if state.patience_ms > now_ms {
                    set_timer(&mut self.timers, state, &key, state.patience_ms);
                }
                self.gated.insert(key);
                continue;
            }
            self.gated.remove(&key);
            if let Some(job) = self.decide(key, world, now_ms) {
                return Some(job);
            }
        }
        None
    }

    /// When [`Engine::poll`] has something to do even if nothing changes.
    pub fn due_ms(&self) -> Option<i64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Nothing under way, nothing waiting (timers aside): for tests.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.ready.is_empty() && self.gated.is_empty() && self.keys.values().all(|s| s.job.is_none())
    }

    /// What failed actions gave to say; the driver records them.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    fn fire(&mut self, world: &World, now_ms: i64) -> Option<Job> {
        while let Some((at, key)) = self.timers.first().cloned()
            && at <= now_ms
        {
            self.timers.pop_first();
            let state = self.keys.get_mut(&key).expect("a timed key has a state");
            state.due_ms = None;
            match &mut state.job {
                Some(sent) if sent.silent => {
                    sent.silent = false;
                    sent.job.attempt += 1;
                    return Some(sent.job.clone());
                }
                Some(_) => state.dirty = true,
                None => self.enqueue(key, world),
            }
        }
        None
    }

    fn open_gates(&mut self, world: &World, now_ms: i64) {
        if self.gated.is_empty() || self.world_version == world.version() {
            return;
        }
        self.world_version = world.version();
        let open: Vec<Key> = self
            .gated
            .iter()
            .filter(|key| self.keys.get(key).is_none_or(|s| !s.gates.iter().any(|gate| s.waits(gate, world, now_ms))))
            .cloned()
            .collect();
        for key in open {
            self.gated.remove(&key);
            self.enqueue(key, world);
        }
    }

    fn decide(&mut self, key: Key, world: &mut World, now_ms: i64) -> Option<Job> {
        self.next_id += 1;
        let id = self.next_id;
        let state = self.keys.get_mut(&key).expect("decided keys have a state");
        let turn = Turn { now_ms, seed: mix(self.seed ^ id), failure: state.failure.clone() };
        let mut actions = self.controller.reconcile(&key, world, &turn);
        let after = actions.iter().filter_map(|a| if let Action::RequeueAfter { ms } = a { Some(*ms) } else { None }).min();
        actions.retain(|a| !matches!(a, Action::RequeueAfter { .. }));
        let state = self.keys.get_mut(&key).expect("decided keys have a state");
        state.dirty = false;
        if let Some(ms) = after {
            set_timer(&mut self.timers, state, &key, now_ms + ms.max(1));
        }
        if actions.is_empty() {
            state.failures = 0;
            state.failure = None;
            self.tidy(&key);
            return None;
        }
        for action in &actions {
            world.assume(action);
        }
        let job = Job { id, key, actions, attempt: 0 };
        state.job = Some(Sent { job: job.clone(), silent: false, failure: None, cut: false });
        self.in_flight += 1;
        Some(job)
    }

    /// What became of the actions of job `id`, in their order.
    pub fn done(&mut self, key: &Key, id: u64, outcomes: Vec<Outcome>, world: &mut World, now_ms: i64) {
        let Some(state) = self.keys.get_mut(key) else { return };
        if state.job.as_ref().is_none_or(|sent| sent.job.id != id || sent.silent) {
            return;
        }
        let Sent { mut job, mut failure, mut cut, .. } = state.job.take().expect("just seen");
        let mut doubtful = Vec::new();
        for (action, outcome) in std::mem::take(&mut job.actions).into_iter().zip(outcomes) {
            match outcome {
                Outcome::Landed(gate) => state.gates.extend(gate),
                Outcome::Unknown(_) => doubtful.push(action),
                Outcome::Skipped => {
                    cut = true;
                    world.forget(&action);
                }
                Outcome::Failed(status) => {
                    world.forget(&action);
                    if let Some(gate) = moved(&action, &status, world) {
                        state.gates.push(gate);
                        state.patience_ms = now_ms + PATIENCE_MS;
                    }
                    self.notes.extend(self.controller.failed(key, &action, &status, world));
                    failure.get_or_insert(status);
                }
            }
        }
        // What may have happened is asked for until it is known; what was not tried is decided anew afterwards.
        if !doubtful.is_empty() {
            job.actions = doubtful;
            let delay = backoff(job.attempt, RESEND_MS_MAX);
            state.job = Some(Sent { job, silent: true, failure, cut });
            set_timer(&mut self.timers, state, key, now_ms + delay);
            return;
        }
        self.in_flight -= 1;
        let dirty = std::mem::take(&mut state.dirty);
        let incomplete = failure.is_some();
        if incomplete {
            state.failures += 1;
            state.failure = failure;
            let delay = backoff(state.failures - 1, BACKOFF_MS_MAX);
            set_timer(&mut self.timers, state, key, now_ms + delay);
        } else {
            state.failures = 0;
            state.failure = None;
        }
        // What was written comes back as a change and asks to look again; only what came before the answer is kept here. But
        // what was made and ended before we saw it does not come back where a list stands for the events in between.
        let unseen = state
            .gates
            .iter()
            .any(|gate| matches!(gate, Gate::Seen { key, .. } if world.follows(key.resource) && world.get(key).is_none()));
        if dirty || unseen || cut && !incomplete {
            self.enqueue(key.clone(), world);
        } else if !incomplete {
            self.tidy(key);
        }
    }

    fn tidy(&mut self, key: &Key) {
        let Some(state) = self.keys.get(key) else { return };
        let waits = state.ready.is_some() || state.due_ms.is_some() || state.job.is_some() || !state.gates.is_empty();
        if !waits && !self.gated.contains(key) {
            self.keys.remove(key);
        }
    }
}

impl State {
    fn waits(&self, gate: &Gate, world: &World, now_ms: i64) -> bool {
        let impatient = matches!(gate, Gate::Moved { .. }) && now_ms >= self.patience_ms;
        !impatient && !world.passed(gate)
    }
}

/// A write refused for its revision says that our view is old. The first sending of a job sent again may be why: deciding
/// from the same view once more would do twice what was done.
fn moved(action: &Action, status: &Status, world: &World) -> Option<Gate> {
    let revision_of = |object: &Value| object.str_at(&["metadata", "resourceVersion"]).parse::<Revision>().ok();
    let (key, revision) = match action {
        Action::Update { resource, object, .. } => {
            (Key::new(resource, object.str_at(&["metadata", "namespace"]), object.str_at(&["metadata", "name"])), revision_of(object)?)
        }
        Action::Patch { key, patch, .. } => (key.clone(), revision_of(patch)?),
        Action::Delete { key, revision, .. } => (key.clone(), (*revision)?),
        _ => return None,
    };
    let stale = status.reason == "Conflict" && world.get(&key).is_some_and(|row| row.object.revision <= revision);
    stale.then_some(Gate::Moved { key, revision })
}

/// One timer per key: the earlier one wins.
fn set_timer(timers: &mut BTreeSet<(i64, Key)>, state: &mut State, key: &Key, at: i64) {
    if let Some(old) = state.due_ms {
        if old <= at && state.job.is_none() {
            return;
        }
        timers.remove(&(old, key.clone()));
    }
    state.due_ms = Some(at);
    timers.insert((at, key.clone()));
}

fn backoff(failures: u32, max: i64) -> i64 {
    BACKOFF_MS_MIN.saturating_mul(1 << failures.min(20)).min(max)
}

#[cfg(test)]
mod tests {
    use super::super::object::Object;
    use super::super::resource::PODS;
    use super::super::world::Change;
    use super::*;
    use crate::value;

    const OWNER: &str = "owner";

    /// Wants one pod: creates it where there is none, marks the one there is.
    struct OnePod;

    impl Controller for OnePod {
        fn name(&self) -> &'static str {
            "one-pod"
        }
        fn resources(&self) -> Vec<&'static Resource> {
            vec![&PODS]
        }
        fn touched(&self, _: &Touched, _: &World) -> Vec<Key> {
            vec![Key::new(&PODS, "n", OWNER)]
        }
        fn reconcile(&self, _: &Key, world: &World, _: &Turn) -> Vec<Action> {
            match world.find(&PODS, "n", "p") {
                None => vec![Action::Create { resource: &PODS, object: pod(0).value(), then: None }],
                Some(row) if row.label("marked").is_some() => Vec::new(),
                Some(row) => {
                    let revision = row.object.revision.to_string();
                    let patch = value!({"metadata": {"resourceVersion": revision, "labels": {"marked": "yes"}}});
                    vec![Action::Patch { key: row.key(), subresource: "", patch }]
                }
            }
        }
    }

    fn pod(revision: Revision) -> Object {
        Object::from_value(&PODS, &value!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}), revision)
    }

    fn relist(engine: &mut Engine, world: &mut World, pods: &[Object], revision: Revision) {
        let sets = pods.iter().cloned().map(Change::Set);
        for change in [Change::Reset].into_iter().chain(sets).chain([Change::Synced(revision)]) {
            for touched in world.apply(&PODS, change) {
                engine.changed(&touched, world);
            }
        }
    }

    fn start(pods: &[Object]) -> (Engine, World) {
        let (mut engine, mut world) = (Engine::new(Box::new(OnePod), 1), World::new(&[&PODS]));
        relist(&mut engine, &mut world, pods, 5);
        engine.enqueue(Key::new(&PODS, "n", OWNER), &world);
        (engine, world)
    }

    #[test]
    fn what_was_made_and_ended_between_two_lists_is_made_again() {
        let (mut engine, mut world) = start(&[]);
        let job = engine.poll(&mut world, 0).expect("a pod is wanted");
        let gate = Gate::Seen { key: Key::new(&PODS, "n", "p"), revision: 6 };
        engine.done(&job.key, job.id, vec![Outcome::Landed(Some(gate))], &mut world, 0);
        assert!(engine.poll(&mut world, 0).is_none(), "not seen yet");
        relist(&mut engine, &mut world, &[], 9);
        assert!(engine.poll(&mut world, 0).is_some());
    }

    /// Wants four pods.
    struct Pods;

    impl Controller for Pods {
        fn name(&self) -> &'static str {
            "pods"
        }
        fn resources(&self) -> Vec<&'static Resource> {
            vec![&PODS]
        }
        fn touched(&self, _: &Touched, _: &World) -> Vec<Key> {
            vec![Key::new(&PODS, "n", OWNER)]
        }
        fn reconcile(&self, _: &Key, world: &World, _: &Turn) -> Vec<Action> {
            let wanted = ["a", "b", "c", "d"].iter().filter(|name| world.find(&PODS, "n", name).is_none());
            let object = |name: &&str| value!({"metadata": {"name": name.to_string(), "namespace": "n"}});
            wanted.map(|name| Action::Create { resource: &PODS, object: object(name), then: None }).collect()
        }
    }

    #[test]
    fn only_what_is_in_doubt_is_sent_again_and_a_refusal_beside_it_counts() {
        let (mut engine, mut world) = (Engine::new(Box::new(Pods), 1), World::new(&[&PODS]));
        relist(&mut engine, &mut world, &[], 5);
        engine.enqueue(Key::new(&PODS, "n", OWNER), &world);
        let job = engine.poll(&mut world, 0).expect("pods are wanted");
        let lost = || Outcome::Unknown(Status::timeout("lost", 1));
        let refused = || Outcome::Failed(Status::forbidden(&PODS, "p", "no"));
        engine.done(&job.key, job.id, vec![lost(), refused(), lost(), Outcome::Skipped], &mut world, 0);
        let again = engine.poll(&mut world, BACKOFF_MS_MIN).expect("sent again");
        let name = |action: &Action| match action {
            Action::Create { object, .. } => object.str_at(&["metadata", "name"]).to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!((again.attempt, again.actions.iter().map(name).collect::<Vec<_>>()), (1, vec!["a".into(), "c".into()]));
        let gate = Gate::Seen { key: Key::new(&PODS, "n", "c"), revision: 9 };
        engine.done(&job.key, job.id, vec![refused(), Outcome::Landed(Some(gate))], &mut world, 100);
        assert!(engine.poll(&mut world, 100).is_none(), "the refusals are backed off from");
        assert!(engine.poll(&mut world, 100 + BACKOFF_MS_MIN).is_none(), "what landed has not been seen");
        let there = Object::from_value(&PODS, &value!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}}), 9);
        relist(&mut engine, &mut world, &[there], 9);
        let new = engine.poll(&mut world, 200).expect("decided anew");
        assert_eq!(new.actions.iter().map(name).collect::<Vec<_>>(), ["a", "b", "d"]);
    }

    #[test]
    fn a_write_refused_for_its_revision_waits_for_a_newer_one_or_its_patience() {
        let refused = || vec![Outcome::Failed(Status::conflict(&PODS, "p", "modified"))];
        for (newer, later_ms) in [(true, 1000), (false, PATIENCE_MS)] {
            let (mut engine, mut world) = start(&[pod(4)]);
            let job = engine.poll(&mut world, 0).expect("it is not marked");
            engine.done(&job.key, job.id, refused(), &mut world, 0);
            assert!(engine.poll(&mut world, 500).is_none(), "after its back-off the view is still old");
            if newer {
                relist(&mut engine, &mut world, &[pod(7)], 7);
            }
            assert!(engine.due_ms().is_none_or(|due| due <= PATIENCE_MS), "somebody wakes us");
            assert!(engine.poll(&mut world, later_ms).is_some());
        }
    }
}
