//! Pure: reading a Pod tree. One place knows where in a Pod things stand and what an absent field means.

use crate::agent::clock::{self, Millis};
use crate::api::value::Value;

/// A decoded Pod, borrowed for one decision.
#[derive(Clone, Copy)]
pub struct Pod<'a>(pub &'a Value);

impl<'a> Pod<'a> {
    pub fn uid(self) -> &'a str {
        self.0.str_at(&["metadata", "uid"])
    }
    pub fn name(self) -> &'a str {
        self.0.str_at(&["metadata", "name"])
    }
    pub fn namespace(self) -> &'a str {
        self.0.str_at(&["metadata", "namespace"])
    }
    /// `name_namespace(uid)`, as event and back-off texts name a pod.
    pub fn text(self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }
    pub fn containers(self) -> &'a [Value] {
        self.0.list_at(&["spec", "containers"])
    }
    pub fn init_containers(self) -> &'a [Value] {
        self.0.list_at(&["spec", "initContainers"])
    }
    pub fn ephemeral_containers(self) -> &'a [Value] {
        self.0.list_at(&["spec", "ephemeralContainers"])
    }
    /// The spec of container `name` of any kind.
    pub fn container(self, name: &str) -> Option<&'a Value> {
        let mut all = self.init_containers().iter().chain(self.containers()).chain(self.ephemeral_containers());
        all.find(|c| c.str_at(&["name"]) == name)
    }
    /// Init containers that go on running beside the others.
    pub fn sidecars(self) -> impl DoubleEndedIterator<Item = &'a Value> {
        self.init_containers().iter().filter(|c| is_sidecar(c))
    }
    pub fn volumes(self) -> &'a [Value] {
        self.0.list_at(&["spec", "volumes"])
    }
    pub fn restart_policy(self) -> &'a str {
        match self.0.str_at(&["spec", "restartPolicy"]) {
            "" => "Always",
            policy => policy,
        }
    }
    pub fn host_network(self) -> bool {
        self.0.bool_at(&["spec", "hostNetwork"])
    }
    pub fn is_deleting(self) -> bool {
        self.0.at(&["metadata", "deletionTimestamp"]).is_some()
    }
    pub fn phase(self) -> &'a str {
        self.0.str_at(&["status", "phase"])
    }
    /// Succeeded or Failed as the API server knows it: such a pod never runs again.
    pub fn is_terminal(self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
    }
    /// Seconds between the stop signal and the kill: of the deletion if there is one, else of the spec.
    pub fn grace_seconds(self) -> i64 {
        let deletion = self.0.i64_at(&["metadata", "deletionGracePeriodSeconds"]);
        let spec = self.0.i64_at(&["spec", "terminationGracePeriodSeconds"]);
        deletion.filter(|_| self.is_deleting()).or(spec).unwrap_or(30).max(1)
    }
    pub fn start_time(self) -> Option<Millis> {
        clock::parse(self.0.str_at(&["status", "startTime"]))
    }
    /// When `activeDeadlineSeconds` ends the pod.
    pub fn deadline(self) -> Option<Millis> {
        let seconds = self.0.i64_at(&["spec", "activeDeadlineSeconds"])?;
        Some(self.start_time()?.saturating_add(seconds.saturating_mul(1000)))
    }
    /// What the API server was last told of container `name`.
    pub fn reported(self, name: &str) -> Option<&'a Value> {
        let find = |list: &'static str| self.0.list_at(&["status", list]).iter().find(|s| s.str_at(&["name"]) == name);
        find("containerStatuses").or_else(|| find("initContainerStatuses")).or_else(|| find("ephemeralContainerStatuses"))
    }
    pub fn is_init(self, name: &str) -> bool {
        self.init_containers().iter().any(|c| c.str_at(&["name"]) == name)
    }
    pub fn is_ephemeral(self, name: &str) -> bool {
        self.ephemeral_containers().iter().any(|c| c.str_at(&["name"]) == name)
    }
    pub fn is_sidecar(self, name: &str) -> bool {
        self.sidecars().any(|c| c.str_at(&["name"]) == name)
    }
    /// When a pod being deleted is to have ended.
    pub fn deletion_deadline(self) -> Option<Millis> {
        clock::parse(self.0.str_at(&["metadata", "deletionTimestamp"]))
    }
}

/// Of an init container: does it go on running beside the others?
pub fn is_sidecar(container: &Value) -> bool {
    container.str_at(&["restartPolicy"]) == "Always"
}

/// The name of a container, volume, port …
pub fn name_of(value: &Value) -> &str {
    value.str_at(&["name"])
}
