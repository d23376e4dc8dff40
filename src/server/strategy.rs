//! What the pipeline asks of a kind: trait [`Strategy`], one implementation per group-resource, and [`Plugin`], one per
//! admission plugin. Every method has a default that suits a kind which is nothing but its schema.
//!
//! The order for a write (all of it is redone when the compare-and-swap fails, so every hook sees a fresh [`Context`]):
//! decode → `to_storage` → `default` → system metadata → plugins' `mutate` → `default` → `prepare_*` → `validate*` →
//! `canonicalize` → plugins' `validate` → `warnings` → one store batch with the [`Context::also`] effects in it.
//! Objects in hooks are trees of the *storage* version, with `apiVersion` and `kind`; old objects carry `resourceVersion`.
//! Hooks are not async and reach other objects through [`Access`], which reads the store's applied state.
//!
//! Who builds what: `kinds::rows(auth: &Arc<auth::Auth>) -> Vec<Box<dyn Strategy>>`, `admission::plugins(auth:
//! &Arc<auth::Auth>) -> Vec<Box<dyn Plugin>>` in upstream's order, and `auth::Auth::new(cluster: &Cluster, access:
//! Arc<dyn Access>) -> Result<Arc<Auth>, _>`. A resource without a row gets [`SchemaOnly`].

use std::sync::{Arc, Mutex};

use crate::api::client::{Client, Future, Transport};
use crate::api::object::Object;
use crate::api::request::{Options, PatchType, Response, User};
use crate::api::resource::Resource;
use crate::api::status::{FieldError, Result, Status};
use crate::api::time::Time;
use crate::api::value::{Map, Value};
use crate::store::Durability;

/// Facts about this cluster that hooks, authentication and bootstrap need. Plain data, made once at start.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Service CIDRs, primary first, such as `10.43.0.0/16`.
    pub service_cidrs: Vec<String>,
    /// Inclusive.
    pub node_ports: (u16, u16),
    pub domain: String,
    /// Address announced in Service `default/kubernetes`, and its port.
    pub advertise_address: String,
    pub port: u16,
    /// Watches open at the same time, over all clients.
    pub watches_max: usize,
    /// `iss` of service account tokens; also the only API audience.
    pub issuer: String,
    /// PEM: what `kube-root-ca.crt`, `extension-apiserver-authentication` and CSR signing need.
    pub cluster_ca: Pair,
    pub client_ca: Pair,
    pub front_proxy_ca: Pair,
    /// No controllers run here (`--disable-controller-manager`): whether anybody acts on a kind is not for us to say.
    pub is_alone: bool,
    /// Service account signing key (P-256, PKCS#8 PEM) with its public half.
    pub service_account_key: Pair,
}

/// A certificate or public key and its private key, both PEM. `Debug` shows neither.
#[derive(Clone, Default)]
pub struct Pair {
    pub public: String,
    pub private: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pair(..)")
    }
}

/// Reads of the applied state. Everything returned is in the storage version.
pub trait Access: Send + Sync {
    fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Option<Object>;
    /// Empty namespace: all of them.
    fn list(&self, resource: &'static Resource, namespace: &str) -> Vec<Object>;
    /// The revision of the applied state: caches over [`Access`] compare it to know whether they are current.
    fn revision(&self) -> u64;
    /// The highest revision among writes to this resource so far may be read off here, to invalidate derived caches.
    fn count(&self, resource: &'static Resource) -> usize;
}

/// What subresource handlers and reviews may do: any request (under any identity), and the one update primitive.
pub trait Calls: Transport {
    /// Read, change, compare-and-swap, retry, without admission or validation: the change *is* the decision. `change` must
    /// be repeatable. No write if it changes nothing; with `dry_run` nothing is stored.
    fn modify<'a>(
        &'a self,
        context: &'a Context,
        resource: &'static Resource,
        namespace: &'a str,
        name: &'a str,
        change: &'a (dyn Fn(&mut Value) -> Result<()> + Send + Sync),
    ) -> Future<'a, Result<Object>>;
    /// The same transport, to be kept: for [`Client`]s.
    fn transport(&self) -> Arc<dyn Transport>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As AdmissionReview and messages spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// One attempt at one request: the admission attributes, and what hooks may read and add to.
pub struct Context {
    pub operation: Operation,
    pub user: User,
    /// As requested (may be another served version than the storage one the trees are in).
    pub resource: &'static Resource,
    pub subresource: String,
    pub namespace: String,
    /// Empty while a `generateName` is not resolved yet.
    pub name: String,
    pub options: Options,
    /// Who owns the fields this request sets.
    pub manager: String,
    pub dry_run: bool,
    pub now: Time,
    pub cluster: Arc<Cluster>,
    pub access: Arc<dyn Access>,
    pub calls: Arc<dyn Calls>,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    warnings: Vec<String>,
    effects: Vec<Effect>,
}

/// A write to another object that must commit in the same batch, or not at all.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Fails (and the request is tried again from the start) if it exists. Metadata uid and creationTimestamp are filled in.
    Create { resource: &'static Resource, namespace: String, name: String, object: Value },
    /// Fails (ditto) if the object is no longer at `old.revision`.
    Update { old: Object, object: Value },
    /// The same, and what changed is the API server's, as if it had written `/status`.
    UpdateStatus { old: Object, object: Value },
    /// A missing object is fine.
    Delete { resource: &'static Resource, namespace: String, name: String },
    /// No write: the batch fails (ditto) unless the object is still at this revision.
    Unchanged { object: Object },
}

impl Context {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        operation: Operation,
        user: User,
        resource: &'static Resource,
        target: (String, String, String),
        options: Options,
        now: Time,
        cluster: Arc<Cluster>,
        access: Arc<dyn Access>,
        calls: Arc<dyn Calls>,
    ) -> Context {
        let (namespace, name, subresource) = target;
        let dry_run = !options.dry_run.is_empty();
        let notes = Mutex::default();
        let manager = String::new();
        Context { operation, user, resource, subresource, namespace, name, options, manager, dry_run, now, cluster, access, calls, notes }
    }

    /// A `Warning: 299` header on the answer. Twice the same is said once.
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut notes = self.notes.lock().expect("no panic under this lock");
        if !notes.warnings.contains(&text) {
            notes.warnings.push(text);
        }
    }

    /// Adds a write to this request's batch. Collected in dry-run, too, and then not written.
    pub fn also(&self, effect: Effect) {
        self.notes.lock().expect("no panic under this lock").effects.push(effect);
    }

    /// What hooks added so far; a retry starts from nothing. For the pipeline.
    pub fn take_effects(&self) -> Vec<Effect> {
        std::mem::take(&mut self.notes.lock().expect("no panic under this lock").effects)
    }

    /// For the pipeline.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.notes.lock().expect("no panic under this lock").warnings)
    }

    /// Effects already asked for by earlier hooks of this attempt (a quota charge must see the one before it).
    pub fn effects(&self) -> Vec<Effect> {
        self.notes.lock().expect("no panic under this lock").effects.clone()
    }

    /// A client under another identity, for handlers that need whole requests (eviction's delete, say).
    pub fn client(&self, user: User) -> Client {
        Client::new(self.calls.transport(), user)
    }

    pub fn is_main(&self) -> bool {
        self.subresource.is_empty()
    }
}

/// How a kind's names are checked, with upstream's messages.
#[derive(Clone, Copy)]
pub enum NameRule {
    /// RFC 1123 subdomain: most kinds.
    Subdomain,
    /// RFC 1123 label: namespaces, ….
    Label,
    /// RFC 1035 label: services before relaxed names.
    Label1035,
    /// A path segment: RBAC kinds.
    PathSegment,
    /// Any path segment, and nothing about the metadata is wrong unless all else is right: what upstream asks of every kind
    /// after the kind's own rules.
    Unchecked,
    /// The kind's own: name, and whether it is a `generateName` prefix, in; messages out.
    Custom(fn(name: &str, is_prefix: bool) -> Vec<String>),
}

/// One column of `kubectl get`.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date`, ….
    pub type_: &'static str,
    /// `name` for the Name column, else empty.
    pub format: &'static str,
    /// 0: always shown; 1: with `-o wide`.
    pub priority: i32,
    pub description: &'static str,
}

impl Column {
    pub const fn new(name: &'static str, type_: &'static str) -> Column {
        Column { name, type_, format: "", priority: 0, description: "" }
    }
    pub const fn wide(name: &'static str, type_: &'static str) -> Column {
        Column { name, type_, format: "", priority: 1, description: "" }
    }
    /// The first column of nearly every kind.
    pub const NAME: Column = Column {
        name: "Name",
        type_: "string",
        format: "name",
        priority: 0,
        description: "Name must be unique within a namespace. Is required when creating resources.",
    };
    pub const AGE: Column = Column::new("Age", "string");
}

/// One field label list and watch selectors may name, beyond `metadata.name` and `metadata.namespace`.
#[derive(Clone, Copy, Debug)]
pub struct Selectable {
    pub label: &'static str,
    /// Where it is in the *storage* version's tree; scalars of any type, read as text. Unused by kinds that override
    /// [`Strategy::selectable_value`].
    pub path: &'static [&'static str],
    /// The text of an absent field: `""`, `"false"`, `"0"`.
    pub absent: &'static str,
}

impl Selectable {
    pub const fn new(label: &'static str, path: &'static [&'static str]) -> Selectable {
        Selectable { label, path, absent: "" }
    }
}

/// What DELETE does to dependents when the request names no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Orphan,
    /// Its objects own nothing, or see to it themselves: policies asked for change nothing.
    Unsupported,
}

/// Resources whose objects have a generation.
const COUNTS_GENERATIONS: &[&str] = &[
    "cronjobs",
    "customresourcedefinitions",
    "daemonsets",
    "deployments",
    "deviceclasses",
    "endpointslices",
    "flowschemas",
    "ingressclasses",
    "ingresses",
    "jobs",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "mutatingwebhookconfigurations",
    "networkpolicies",
    "poddisruptionbudgets",
    "pods",
    "podtemplates",
    "priorityclasses",
    "prioritylevelconfigurations",
    "replicasets",
    "replicationcontrollers",
    "resourceslices",
    "statefulsets",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "validatingwebhookconfigurations",
];

/// How often a kind looks at metadata itself once an update of it has passed the general look: as an update, and whole, as when
/// it was created. Each look complains for itself, so that the causes of a refusal repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataLooks {
    pub as_update: usize,
    pub whole: usize,
}

/// Kinds that look otherwise than once, as an update.
const METADATA_LOOKS: &[(&[&str], MetadataLooks)] = &[
    (&["poddisruptionbudgets"], MetadataLooks { as_update: 0, whole: 0 }),
    (
        &[
            "csinodes",
            "endpointslices",
            "flowschemas",
            "limitranges",
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
            "mutatingwebhookconfigurations",
            "prioritylevelconfigurations",
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
            "validatingwebhookconfigurations",
            "volumeattachments",
        ],
        MetadataLooks { as_update: 0, whole: 1 },
    ),
    (
        &[
            "certificatesigningrequests",
            "clusterrolebindings",
            "clusterroles",
            "configmaps",
            "jobs",
            "namespaces",
            "nodes",
            "pods",
            "rolebindings",
            "roles",
            "secrets",
            "serviceaccounts",
            "services",
        ],
        MetadataLooks { as_update: 1, whole: 1 },
    ),
    (&["persistentvolumes"], MetadataLooks { as_update: 0, whole: 2 }),
];

/// Behaviour of one group-resource. All methods but `resource` have defaults.
#[allow(unused_variables)]
pub trait Strategy: Send + Sync {
    /// The storage row.
    fn resource(&self) -> &'static Resource;

    /// Whether anything in Coracle acts on the kind yet; if not, writes of it answer with a Warning saying so.
    fn is_acted_on(&self) -> bool {
        true
    }

    // --- versions: only for kinds served in more than one (autoscaling/v1, events.k8s.io/v1)

    /// Turns a tree of served version `from` into the storage version. `apiVersion` and `kind` are already rewritten.
    fn to_storage(&self, from: &'static Resource, object: &mut Value) -> Result<()> {
        Ok(())
    }
    /// The way back.
    #[allow(clippy::wrong_self_convention)] // named as the counterpart of to_storage
    fn from_storage(&self, to: &'static Resource, object: &mut Value) {}

    // --- writes

    /// After decoding, before admission and again after it; idempotent.
    fn default(&self, object: &mut Value) {}

    /// Called for creates after admission. The default drops `status` where the kind has the subresource, and sets
    /// `generation: 1` where the kind counts generations. Call [`begin_create`] for that when overriding.
    fn prepare_create(&self, context: &Context, object: &mut Value) -> Result<()> {
        begin_create(self, object);
        Ok(())
    }
    /// Main resource PUT and PATCH. The default restores `status` from `old` and counts the generation up if anything beside
    /// metadata and status changed: [`begin_update`].
    fn prepare_update(&self, context: &Context, new: &mut Value, old: &Value) -> Result<()> {
        begin_update(self, new, old);
        Ok(())
    }
    /// `/status`. The default keeps `status` and metadata (labels, annotations, …) of `new` and takes the rest from `old`:
    /// [`begin_status_update`].
    fn prepare_status_update(&self, context: &Context, new: &mut Value, old: &Value) -> Result<()> {
        begin_status_update(new, old);
        Ok(())
    }
    /// Update-like subresources that speak the kind itself, other than status: `ephemeralcontainers`, `resize`, `approval`,
    /// `finalize`. The default refuses.
    fn prepare_subresource_update(&self, context: &Context, new: &mut Value, old: &Value) -> Result<()> {
        Err(Status::method_not_allowed())
    }

    /// The kind's own rules. Object metadata (name, labels, annotations, owners, finalizers) is checked by the pipeline
    /// after this, through `validation::metadata` and [`Strategy::name_rule`].
    fn validate(&self, context: &Context, object: &Value) -> Vec<FieldError> {
        Vec::new()
    }
    /// Main resource; the immutable metadata is checked by the pipeline.
    fn validate_update(&self, context: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        self.validate(context, new)
    }
    fn validate_status_update(&self, context: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        Vec::new()
    }
    /// For the subresources of [`Strategy::prepare_subresource_update`]; `context.subresource` names it.
    fn validate_subresource_update(&self, context: &Context, new: &Value, old: &Value) -> Vec<FieldError> {
        Vec::new()
    }
    /// What the API server itself finds out about objects once this one is stored, for their status.
    fn findings(&self, context: &Context, object: &Value) -> Vec<Finding> {
        Vec::new()
    }
    /// Last touches on the valid object.
    fn canonicalize(&self, object: &mut Value) {}
    /// Texts for `Warning` headers; `old` is absent for creates.
    fn warnings(&self, context: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }
    /// Seconds after which the stored object goes away by itself: events.
    fn ttl_seconds(&self, object: &Value) -> Option<u32> {
        None
    }
    /// How long a write may be lost for: events and node leases.
    fn durability(&self, object: &Value) -> Durability {
        Durability::Now
    }

    // --- metadata and verbs

    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }
    /// Whether `metadata.generation` is kept. Default: as upstream, of which no rule can be made out.
    fn has_generation(&self) -> bool {
        COUNTS_GENERATIONS.contains(&self.resource().plural)
    }
    fn has_status(&self) -> bool {
        self.resource().subresource("status").is_some()
    }
    fn metadata_looks(&self, as_: &'static Resource) -> MetadataLooks {
        let known = METADATA_LOOKS.iter().find(|(plurals, _)| plurals.contains(&as_.plural));
        known.map_or(MetadataLooks { as_update: 1, whole: 0 }, |(_, looks)| *looks)
    }
    /// PUT to a name that is not there creates it.
    fn create_on_update(&self) -> bool {
        false
    }
    /// PUT without a resourceVersion is allowed.
    fn unconditional_update(&self) -> bool {
        true
    }
    /// DELETE answers with the object instead of a Status.
    fn returns_deleted(&self) -> bool {
        false
    }

    // --- deletion

    /// `None`: deletion does not wait (nearly all). `Some(n)`: it does, `n` seconds; 0 means at once, now that it is clear
    /// that nothing needs stopping. `requested` is `gracePeriodSeconds` of the request, negative already turned into 1.
    fn grace_seconds(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        None
    }
    fn propagation(&self, requested: &'static Resource) -> Propagation {
        Propagation::Background
    }
    /// Beside finalizers: namespaces stay while `spec.finalizers` is not empty.
    fn blocks_deletion(&self, object: &Value) -> bool {
        false
    }
    /// The object was just marked as being deleted: namespaces become Terminating.
    fn mark_deleting(&self, context: &Context, object: &mut Value) {}
    /// The object is about to be removed for good; [`Context::also`] gives back what it claimed.
    fn release(&self, context: &Context, object: &Value) {}

    // --- reads

    fn columns(&self) -> &'static [Column] {
        &[Column::NAME, Column::AGE]
    }
    /// Cells, as many as columns. The default prints the name and the age (`table::age`).
    fn row(&self, object: &Value, now: Time) -> Vec<Value> {
        crate::server::table::default_row(object, now)
    }
    /// What a Table says of the row as a whole: `(reason, message)` of something that has come to its end.
    fn completed(&self, object: &Value) -> Option<(&'static str, &'static str)> {
        None
    }
    /// `as_` is the requested version: `regarding.name` exists in events.k8s.io only.
    fn selectable(&self, as_: &'static Resource) -> &'static [Selectable] {
        &[]
    }
    /// The text of one of those fields. The default reads `field.path` from the stored bytes.
    fn selectable_value(&self, object: &Object, field: &Selectable) -> String {
        crate::server::registry::field_text(object, field)
    }

    // --- subresources and reviews

    /// What is left out of the body of a POST to a subresource.
    fn default_subresource(&self, subresource: &str, body: &mut Value) {}

    /// For `/scale` where it is not at `spec.replicas`, `status.replicas`, `spec.selector`.
    fn scale(&self) -> Scale {
        Scale::default()
    }
    /// POST to a subresource that is not stored as such: `binding`, `eviction`, `token`. `body` is decoded by the subresource's
    /// schema; `context.name` and `context.subresource` say where; mutating and validating admission have run on `body`.
    /// `None`: there is no such subresource (404).
    fn create_subresource<'a>(&'a self, context: &'a Context, body: Value) -> Option<Future<'a, Result<Response>>> {
        None
    }
    /// Kinds that are answered and never stored (access and token reviews): the answer to a POST of the validated object,
    /// status filled in. `None`: the kind is stored.
    fn review<'a>(&'a self, context: &'a Context, object: Value) -> Option<Future<'a, Result<Value>>> {
        None
    }
    /// Kinds whose objects are made up on reading (component statuses): all of them. `None`: they are stored.
    fn synthesize(&self, access: &dyn Access, cluster: &Cluster) -> Option<Vec<Value>> {
        None
    }
}

/// A condition the API server puts into an object's status.
#[derive(Clone, Debug)]
pub struct Finding {
    pub resource: &'static Resource,
    pub name: String,
    /// As whom it is said.
    pub manager: &'static str,
    /// Apply or merge: how upstream goes about it.
    pub patch_type: PatchType,
    pub condition: Value,
}

/// Where `/scale` finds its three values.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub replicas: &'static [&'static str],
    pub status_replicas: &'static [&'static str],
    /// A LabelSelector, or a plain map as ReplicationController has it.
    pub selector: &'static [&'static str],
}

impl Default for Scale {
    fn default() -> Scale {
        Scale { replicas: &["spec", "replicas"], status_replicas: &["status", "replicas"], selector: &["spec", "selector"] }
    }
}

/// The default of [`Strategy::prepare_create`].
pub fn begin_create<S: Strategy + ?Sized>(strategy: &S, object: &mut Value) {
    if strategy.has_status() {
        object.remove(&["status"]);
    }
    if strategy.has_generation() {
        object.set(&["metadata", "generation"], 1);
    }
}

/// The default of [`Strategy::prepare_update`]. The pipeline already restored `metadata.generation` from `old`.
pub fn begin_update<S: Strategy + ?Sized>(strategy: &S, new: &mut Value, old: &Value) {
    if strategy.has_status() {
        restore(new, old, "status");
    }
    if strategy.has_generation() {
        count_generation(new, old);
    }
}

/// `generation + 1` if anything beside apiVersion, kind, metadata and status differs. A list that is empty is one that is not there.
pub fn count_generation(new: &mut Value, old: &Value) {
    let other = |v: &Value| -> Map {
        let empty = Map::new();
        let skip = ["apiVersion", "kind", "metadata", "status"];
        let is_nothing = |v: &Value| v.is_null() || v.as_list().is_some_and(<[Value]>::is_empty);
        v.as_map()
            .unwrap_or(&empty)
            .iter()
            .filter(|(k, v)| !skip.contains(k) && !is_nothing(v))
            .map(|(k, v)| (k.to_string(), v.clone()))
            .collect()
    };
    if !crate::server::cursor::same(&Value::Map(other(new)), &Value::Map(other(old))) {
        let generation = old.i64_at(&["metadata", "generation"]).unwrap_or(0);
        new.set(&["metadata", "generation"], generation + 1);
    }
}

/// The default of [`Strategy::prepare_status_update`].
pub fn begin_status_update(new: &mut Value, old: &Value) {
    let Some(map) = new.as_map_mut() else { return };
    map.retain(|key, _| matches!(key, "apiVersion" | "kind" | "metadata" | "status"));
    let empty = Map::new();
    for (key, value) in old.as_map().unwrap_or(&empty).iter() {
        if !matches!(key, "apiVersion" | "kind" | "metadata" | "status") {
            map.insert(key.to_string(), value.clone());
        }
    }
}

/// `new[member]` becomes what `old` has there.
pub fn restore(new: &mut Value, old: &Value, member: &str) {
    let Some(map) = new.as_map_mut() else { return };
    match old.get(member) {
        Some(value) => {
            map.insert(member.to_string(), value.clone());
        }
        None => {
            map.remove(member);
        }
    }
}

/// A kind nothing acts on yet: its schema is its whole behaviour.
pub struct SchemaOnly(pub &'static Resource);

impl Strategy for SchemaOnly {
    fn resource(&self) -> &'static Resource {
        self.0
    }
    fn is_acted_on(&self) -> bool {
        false
    }
}

/// One admission plugin. Both phases see every create, update, delete and connect; a plugin looks at `context` and
/// decides whether the request is its business.
#[allow(unused_variables)]
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;
    /// Creates and updates, and bodies of create-subresources. `old` is absent for creates.
    fn mutate(&self, context: &Context, object: &mut Value, old: Option<&Value>) -> Result<()> {
        Ok(())
    }
    /// Sees the final object; for deletes, `object` is the one to be deleted (or `Null` for deletecollection and connects).
    fn validate(&self, context: &Context, object: &Value, old: Option<&Value>) -> Result<()> {
        Ok(())
    }
}
