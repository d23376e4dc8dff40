//! Carrying out steps: the only place where a plan meets runtime, network and volumes. Makes no choices.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::env::{Contents, Inputs};
use super::observe::Reason;
use super::plan::Limits;
use super::pod::{Pod, name_of};
use super::spec::{ContainerInputs, Mounted, Place, SandboxInputs, bind};
use super::{Shared, admit, env, files, spec};
use crate::agent::volumes::{self, Outcome};
use crate::api::events::{EventType, Reference};
use crate::api::object::Object;
use crate::api::request::PatchType;
use crate::api::resource;
use crate::api::status::Status;
use crate::api::value::Value;
use crate::runtime::{ContainerId, Image, Mount, MountSource};
use crate::value;

/// What a container's start takes from what was there before.
#[derive(Default)]
pub struct Before {
    /// Of the same attempt, never started: removed first.
    pub leftovers: Vec<ContainerId>,
    pub target: Option<ContainerId>,
}

/// One pod at the time a step began.
pub struct Work {
    pub shared: Arc<Shared>,
    pub pod: Value,
    pub ips: Vec<String>,
}

impl Work {
    fn pod(&self) -> Pod<'_> {
        Pod(&self.pod)
    }

    pub fn event(&self, container: Option<&str>, type_: EventType, reason: &str, message: impl Into<String>) {
        event(&self.shared, &self.pod, container, type_, reason, message);
    }

    pub async fn mount_volumes(&self) -> Result<Outcome, Reason> {
        let outcome = self.shared.volumes.set_up(self.pod(), &self.shared.node, &self.ips, self.shared.now()).await;
        if let Err(reason) = &outcome {
            self.event(None, EventType::Warning, "FailedMount", reason.message.clone());
        }
        outcome
    }

    /// Namespaces, then the network. Both are idempotent. A dead sandbox is removed first.
    pub async fn start_sandbox(&self, stale: bool) -> Result<Vec<String>, Reason> {
        let shared = &self.shared;
        let pod = self.pod();
        let hostname = files::hostname(pod, &shared.dns.domain, &shared.node.name);
        let spec = spec::sandbox(SandboxInputs { pod, hostname, log_dir: shared.log_dir(pod) });
        let failed = |message: String| {
            self.event(None, EventType::Warning, "FailedCreatePodSandBox", format!("Failed to create pod sandbox: {message}"));
            Reason { reason: "CreatePodSandboxError".to_string(), message }
        };
        self.runtime_class().await.map_err(failed)?;
        if stale {
            shared.network.remove_pod(pod.uid()).await.map_err(failed)?;
            shared.runtime.remove_sandbox(pod.uid()).await.map_err(|e| failed(e.chain()))?;
        }
        let info = shared.runtime.create_sandbox(spec).await.map_err(|e| failed(e.chain()))?;
        if pod.host_network() {
            return Ok(Vec::new());
        }
        let ports = admit::host_ports(pod);
        shared.network.add_pod(pod.uid(), &info.netns, ports).await.map_err(failed)
    }

    /// Pods may ask for a runtime by the name of a class; this node has one.
    async fn runtime_class(&self) -> Result<(), String> {
        let class = self.pod().0.str_at(&["spec", "runtimeClassName"]);
        if class.is_empty() {
            return Ok(());
        }
        let found = self.shared.client.get(&resource::RUNTIMECLASSES, "", class).await;
        let found = found.map_err(|e| if e.code == 404 { format!("RuntimeClass \"{class}\" not found") } else { e.to_string() })?;
        match found.value().str_at(&["handler"]) {
            "coracle" | "runc" => Ok(()),
            handler => Err(format!("failed to get sandbox runtime: no runtime for \"{handler}\" is configured")),
        }
    }

    pub async fn set_limits(&self, changes: Vec<Limits>) -> Result<(), Reason> {
        for change in changes {
            let done = match change {
                Limits::Pod(resources) => self.shared.runtime.update_sandbox(self.pod().uid(), resources).await,
                Limits::Container { id, resources } => self.shared.runtime.update_container(&id, resources).await,
            };
            done.map_err(|e| Reason { reason: "ResizeError".into(), message: e.chain() })?;
        }
        Ok(())
    }

    /// Answers the new container's id; `Err` leaves no container behind, except one that could not be executed.
    pub async fn start_container(&self, name: &str, attempt: u32, before: Before) -> Result<String, Reason> {
        let result = self.create_and_start(name, attempt, before).await;
        if let Err(reason) = &result {
            let text = if reason.message.is_empty() { reason.reason.clone() } else { reason.message.clone() };
            match reason.reason.as_str() {
                "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName" => {
                    self.event(Some(name), EventType::Warning, "Failed", text);
                    self.event(Some(name), EventType::Warning, "Failed", format!("Error: {}", reason.reason));
                }
                _ => self.event(Some(name), EventType::Warning, "Failed", format!("Error: {text}")),
            }
        }
        result
    }

    async fn create_and_start(&self, name: &str, attempt: u32, before: Before) -> Result<String, Reason> {
        let (shared, pod) = (&self.shared, self.pod());
        let missing = || Reason { reason: "CreateContainerConfigError".into(), message: format!("container {name} is not in the pod") };
        let container = pod.container(name).ok_or_else(missing)?;
        for id in before.leftovers {
            shared.runtime.remove_container(&id).await.map_err(|e| runtime_reason(&e))?;
        }
        let image = self.image(name, container.str_at(&["image"]), container.str_at(&["imagePullPolicy"])).await?;
        let env = self.environment(container).await?;
        let mounts = self.mounts(container, attempt, &env).await?;
        let log_path = shared.log_path(pod, name, attempt);
        let node_memory = shared.node.memory_bytes;
        let target = before.target;
        let seccomp_dir = shared.seccomp_dir.as_path();
        let inputs = ContainerInputs { pod, container, attempt, image: &image, env, mounts, node_memory, log_path, seccomp_dir, target };
        let spec = spec::container(inputs)?;
        let id = shared.runtime.create_container(pod.uid(), spec).await.map_err(|e| runtime_reason(&e))?;
        self.event(Some(name), EventType::Normal, "Created", format!("Created container: {name}"));
        match shared.runtime.start_container(&id).await {
            Ok(()) => {
                self.event(Some(name), EventType::Normal, "Started", format!("Started container {name}"));
                Ok(id)
            }
            Err(error) => Err(Reason { reason: "RunContainerError".into(), message: error.chain() }),
        }
    }

    /// Images are only imported, never pulled yet: what is not here is an error that says so.
    async fn image(&self, container: &str, reference: &str, pull_policy: &str) -> Result<Image, Reason> {
        let found = self.shared.runtime.resolve(reference).await.map_err(|e| runtime_reason(&e))?;
        if let Some(image) = found {
            let message = format!("Container image \"{reference}\" already present on machine and can be accessed by the pod");
            self.event(Some(container), EventType::Normal, "Pulled", message);
            return Ok(image);
        }
        if pull_policy == "Never" {
            let message = format!("Container image \"{reference}\" is not present with pull policy of Never");
            return Err(Reason { reason: "ErrImageNeverPull".into(), message });
        }
        let message = format!(
            "Failed to pull image \"{reference}\": pulling from registries is not available yet in this version of Coracle; \
             import it on this node with `coracle images import`"
        );
        Err(Reason { reason: "ErrImagePull".into(), message })
    }

    async fn environment(&self, container: &Value) -> Result<Vec<(String, String)>, Reason> {
        let (shared, pod) = (&self.shared, self.pod());
        let mut contents = Contents::new();
        for (kind, name) in env::references(container) {
            let data = shared.volumes.sources().data(pod.uid(), kind, pod.namespace(), &name).await;
            if let Some(data) = data.map_err(|message| Reason { reason: "CreateContainerConfigError".into(), message })? {
                contents.insert((kind, name), data);
            }
        }
        let services = shared.services().await;
        env::environment(&Inputs { pod, container, contents: &contents, services: &services, node: &shared.node, pod_ips: &self.ips })
    }

    /// Volume mounts, and the files every container gets.
    async fn mounts(&self, container: &Value, attempt: u32, env: &[(String, String)]) -> Result<Vec<Mount>, Reason> {
        let (shared, pod) = (&self.shared, self.pod());
        let wanted = spec::wanted_mounts(container, env)?;
        let mounted = shared.volumes.set_up(pod, &shared.node, &self.ips, shared.now()).await?.mounted;
        for volume in wanted.iter().filter_map(|w| mounted.get(&w.volume)) {
            if let Place::Image { reference, pull_policy } = &volume.place {
                self.image(name_of(container), reference, pull_policy).await?;
            }
        }
        let own = Own {
            dir: shared.volumes.pod_dir(pod.uid()),
            hosts: files::hosts(pod, &self.ips, &shared.dns.domain, &read("/etc/hosts")),
            resolv: files::resolv_conf(pod, &shared.dns),
            hostname: format!("{}\n", files::hostname(pod, &shared.dns.domain, &shared.node.name)),
            container: name_of(container).to_string(),
            attempt,
            termination_path: match container.str_at(&["terminationMessagePath"]) {
                "" => "/dev/termination-log".to_string(),
                path => path.to_string(),
            },
        };
        let work = move || -> Result<Vec<Mount>, String> {
            let mut mounts = own.mounts().map_err(|e| e.to_string())?;
            mounts.retain(|m| !wanted.iter().any(|w| w.target.trim_end_matches('/') == m.target));
            for w in &wanted {
                mounts.push(mount(w, &mounted)?);
            }
            Ok(mounts)
        };
        let made = tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string()).and_then(|r| r);
        made.map_err(|message| Reason { reason: "CreateContainerConfigError".into(), message })
    }

    /// Runtime, network, volumes; each is idempotent, so a failure is repaired by doing it all again.
    pub async fn teardown(&self) -> Result<(), Reason> {
        let (shared, pod) = (&self.shared, self.pod());
        teardown(shared, pod.uid()).await.inspect_err(|reason| {
            self.event(None, EventType::Warning, "FailedKillPod", format!("error killing pod: {}", reason.message));
        })
    }

    /// The object may go. One that is gone already, or another of the same name, is as good.
    pub async fn delete_pod(&self) -> Result<(), Reason> {
        let pod = self.pod();
        let options = value!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid()}});
        match self.shared.client.delete(&resource::PODS, pod.namespace(), pod.name(), options).await {
            Err(status) if !matches!(status.code, 404 | 409) => Err(Reason { reason: "FailedDelete".into(), message: status.message }),
            _ => Ok(()),
        }
    }

    pub async fn write_status(&self, status: Value) -> Result<Object, Status> {
        let pod = self.pod();
        let mut patch = value!({"metadata": {"uid": pod.uid()}});
        patch.set(&["status"], status);
        self.shared.client.patch(&resource::PODS, pod.namespace(), pod.name(), "status", PatchType::Strategic, patch).await
    }
}

/// Everything of a pod but its logs.
pub async fn teardown(shared: &Shared, uid: &str) -> Result<(), Reason> {
    let failed = |message: String| Reason { reason: "FailedKillPod".to_string(), message };
    // The network first: its namespace ends with the sandbox.
    shared.network.remove_pod(uid).await.map_err(failed)?;
    shared.runtime.remove_sandbox(uid).await.map_err(|e| failed(e.chain()))?;
    shared.volumes.tear_down(uid).await
}

pub fn event(shared: &Shared, pod: &Value, container: Option<&str>, type_: EventType, reason: &str, message: impl Into<String>) {
    let mut about = Reference::of(pod);
    (about.api_version, about.kind) = ("v1".into(), "Pod".into());
    if let Some(name) = container {
        let pod = Pod(pod);
        let list = match (pod.is_init(name), pod.is_ephemeral(name)) {
            (true, _) => "initContainers",
            (_, true) => "ephemeralContainers",
            (false, false) => "containers",
        };
        about = about.with_field_path(format!("spec.{list}{{{name}}}"));
    }
    shared.recorder.event(&about, type_, reason, message);
}

fn runtime_reason(error: &crate::runtime::Error) -> Reason {
    Reason { reason: error.reason().to_string(), message: error.chain() }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The files a container gets besides its volumes.
struct Own {
    dir: PathBuf,
    hosts: String,
    resolv: String,
    hostname: String,
    container: String,
    attempt: u32,
    termination_path: String,
}

/// Where a container's termination message is written.
pub fn termination_log(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_dir.join("containers").join(container).join(format!("{attempt}.termination"))
}

impl Own {
    fn mounts(&self) -> std::io::Result<Vec<Mount>> {
        let etc = self.dir.join("etc");
        std::fs::create_dir_all(&etc)?;
        let mut mounts = Vec::new();
        for (name, text) in [("hosts", &self.hosts), ("resolv.conf", &self.resolv), ("hostname", &self.hostname)] {
            let path = etc.join(name);
            // In place, never by rename: other containers of the pod have this very file mounted.
            if std::fs::read_to_string(&path).ok().as_ref() != Some(text) {
                std::fs::write(&path, text)?;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
            }
            mounts.push(bind(path, &format!("/etc/{name}"), false));
        }
        let log = termination_log(&self.dir, &self.container, self.attempt);
        std::fs::create_dir_all(log.parent().expect("has a parent"))?;
        std::fs::write(&log, b"")?;
        std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o666))?;
        mounts.push(bind(log, &self.termination_path, false));
        Ok(mounts)
    }
}

fn mount(wanted: &spec::Wanted, mounted: &std::collections::BTreeMap<String, Mounted>) -> Result<Mount, String> {
    let volume = mounted.get(&wanted.volume).ok_or_else(|| format!("no volume named \"{}\"", wanted.volume))?;
    let source = match &volume.place {
        Place::Image { reference, .. } => MountSource::Image { reference: reference.clone(), sub_path: wanted.sub_path.clone() },
        Place::Directory(path) if wanted.sub_path.is_empty() => MountSource::Host(path.clone()),
        Place::Directory(path) => MountSource::Host(volumes::sub_path(path, &wanted.sub_path)?),
    };
    Ok(Mount {
        source,
        target: wanted.target.clone(),
        readonly: wanted.readonly || volume.readonly,
        recursive_readonly: wanted.recursive_readonly,
        propagation: wanted.propagation,
    })
}
