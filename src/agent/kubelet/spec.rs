//! Pure: pod, container, environment and mounted volumes in; what the runtime is asked to run out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::env;
use super::observe::Reason;
use super::pod::{Pod, name_of};
use crate::agent::qos;
use crate::api::value::Value;
use crate::runtime::{
    self, Capabilities, ContainerId, ContainerSpec, Image, Mount, MountSource, Propagation, Resources, SandboxSpec, Seccomp,
};

/// Labels on sandboxes and containers that a restarted daemon reads back.
pub const LABEL_POD_IMAGE: &str = "coracle.io/pod-image";

pub struct SandboxInputs<'a> {
    pub pod: Pod<'a>,
    pub hostname: String,
    pub log_dir: PathBuf,
}

pub fn sandbox(inputs: SandboxInputs) -> SandboxSpec {
    let pod = inputs.pod;
    let class = qos::class(pod.0);
    let sysctls = pod.0.list_at(&["spec", "securityContext", "sysctls"]);
    SandboxSpec {
        id: pod.uid().to_string(),
        namespace: pod.namespace().to_string(),
        name: pod.name().to_string(),
        hostname: inputs.hostname,
        host_network: pod.host_network(),
        host_pid: pod.0.bool_at(&["spec", "hostPID"]),
        host_ipc: pod.0.bool_at(&["spec", "hostIPC"]),
        share_pid: pod.0.bool_at(&["spec", "shareProcessNamespace"]),
        sysctls: sysctls.iter().map(|s| (name_of(s).to_string(), s.str_at(&["value"]).to_string())).collect(),
        cgroup_parent: class.cgroup_parent().to_string(),
        resources: pod_limits(pod),
        log_dir: inputs.log_dir,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

/// Limits over all containers of the pod together. None on the number of processes: upstream's `podPidsLimit` is -1 unless someone
/// sets it, and then a pod's `pids.max` is left alone. What a node has for all is the kernel's `pid_max`.
pub fn pod_limits(pod: Pod) -> Resources {
    let (cpu, _) = qos::requests(pod.0);
    Resources {
        memory_limit_bytes: qos::pod_limit(pod.0, "memory", qos::units).and_then(|b| u64::try_from(b).ok()),
        cpu_shares: Some(qos::shares(cpu)),
        cpu_quota_us: qos::quota(qos::pod_limit(pod.0, "cpu", qos::millis)),
        cpu_period_us: Some(100_000),
        ..Resources::default()
    }
}

/// Do both mean the same to the kernel? Without shares they were never set by a kubelet, and are left alone.
pub fn same_limits(have: &Resources, want: &Resources) -> bool {
    let of = |r: &Resources| (r.memory_limit_bytes, r.cpu_shares, r.cpu_quota_us.filter(|q| *q > 0));
    have.cpu_shares.is_none() || of(have) == of(want)
}

/// Limits that hold no one back whom either would let go on.
pub fn wider(a: &Resources, b: &Resources) -> Resources {
    Resources {
        memory_limit_bytes: a.memory_limit_bytes.zip(b.memory_limit_bytes).map(|(a, b)| a.max(b)),
        cpu_shares: a.cpu_shares.max(b.cpu_shares),
        cpu_quota_us: a.cpu_quota_us.zip(b.cpu_quota_us).filter(|(a, b)| *a > 0 && *b > 0).map(|(a, b)| a.max(b)),
        ..b.clone()
    }
}

/// A volume as it is set up on this node.
#[derive(Clone, Debug, PartialEq)]
pub struct Mounted {
    pub place: Place,
    /// Read-only whatever the mount says (ConfigMaps, Secrets, …).
    pub readonly: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    Directory(PathBuf),
    /// The file system of an image, which the runtime mounts.
    Image {
        reference: String,
        pull_policy: String,
    },
}

pub struct ContainerInputs<'a> {
    pub pod: Pod<'a>,
    pub container: &'a Value,
    pub attempt: u32,
    pub image: &'a Image,
    pub env: Vec<(String, String)>,
    /// Volume mounts and the files every container gets, with host paths.
    pub mounts: Vec<Mount>,
    pub node_memory: i64,
    pub log_path: PathBuf,
    /// Where `Localhost` profiles are.
    pub seccomp_dir: &'a Path,
    /// The running container whose processes an ephemeral one is to see.
    pub target: Option<ContainerId>,
}

pub fn container(inputs: ContainerInputs) -> Result<ContainerSpec, Reason> {
    let (pod, c) = (inputs.pod, inputs.container);
    check_non_root(pod, c, inputs.image)?;
    let values: BTreeMap<&str, &str> = inputs.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expanded = |key: &str| -> Vec<String> {
        let lookup = |name: &str| values.get(name).map(|v| v.to_string());
        c.list_at(&[key]).iter().filter_map(Value::as_str).map(|text| env::expand(text, &lookup)).collect()
    };
    let (command, args) = (expanded("command"), expanded("args"));
    let privileged = c.bool_at(&["securityContext", "privileged"]);
    Ok(ContainerSpec {
        name: name_of(c).to_string(),
        attempt: inputs.attempt,
        image: inputs.image.id.clone(),
        command,
        args,
        cwd: Some(c.str_at(&["workingDir"]).to_string()).filter(|d| !d.is_empty()),
        user: user(pod, c),
        mounts: inputs.mounts,
        devices: Vec::new(),
        capabilities: capabilities(c),
        privileged,
        no_new_privileges: !privileged && c.at(&["securityContext", "allowPrivilegeEscalation"]) == Some(&Value::Bool(false)),
        read_only_root: c.bool_at(&["securityContext", "readOnlyRootFilesystem"]),
        seccomp: seccomp(pod, c, inputs.seccomp_dir),
        unmasked_proc: c.str_at(&["securityContext", "procMount"]) == "Unmasked",
        resources: resources(pod, c, inputs.node_memory),
        log_path: inputs.log_path,
        stdin: c.bool_at(&["stdin"]),
        stdin_once: c.bool_at(&["stdinOnce"]),
        tty: c.bool_at(&["tty"]),
        stop_signal: Some(c.str_at(&["lifecycle", "stopSignal"]).to_string()).filter(|s| !s.is_empty()),
        target_container: inputs.target,
        labels: BTreeMap::from([(LABEL_POD_IMAGE.to_string(), c.str_at(&["image"]).to_string())]),
        annotations: BTreeMap::new(),
        env: inputs.env,
    })
}

/// A setting of the container's security context, else of the pod's.
fn security<'a>(pod: Pod<'a>, container: &'a Value, key: &str) -> Option<&'a Value> {
    container.at(&["securityContext", key]).or_else(|| pod.0.at(&["spec", "securityContext", key]))
}

/// The container's profile, else the pod's; who names none is not confined.
fn seccomp(pod: Pod, container: &Value, dir: &Path) -> Seccomp {
    let profile = security(pod, container, "seccompProfile");
    match profile.map(|p| (p.str_at(&["type"]), p.str_at(&["localhostProfile"]))) {
        Some(("RuntimeDefault", _)) => Seccomp::RuntimeDefault,
        Some(("Localhost", name)) => Seccomp::Localhost(dir.join(name)),
        _ => Seccomp::Unconfined,
    }
}

fn id(value: Option<&Value>) -> Option<u32> {
    u32::try_from(value?.as_i64()?).ok()
}

fn user(pod: Pod, container: &Value) -> runtime::User {
    let groups = pod.0.list_at(&["spec", "securityContext", "supplementalGroups"]);
    let mut supplemental_groups: Vec<u32> = groups.iter().filter_map(|g| id(Some(g))).collect();
    supplemental_groups.extend(id(pod.0.at(&["spec", "securityContext", "fsGroup"])));
    supplemental_groups.dedup();
    runtime::User {
        uid: id(security(pod, container, "runAsUser")),
        gid: id(security(pod, container, "runAsGroup")),
        supplemental_groups,
        strict_groups: pod.0.str_at(&["spec", "securityContext", "supplementalGroupsPolicy"]) == "Strict",
    }
}

fn check_non_root(pod: Pod, container: &Value, image: &Image) -> Result<(), Reason> {
    if security(pod, container, "runAsNonRoot") != Some(&Value::Bool(true)) {
        return Ok(());
    }
    let refuse = |message: String| Err(Reason { reason: "CreateContainerConfigError".into(), message });
    let container_text = format!("pod: \"{}\", container: {}", pod.text(), name_of(container));
    if let Some(uid) = id(security(pod, container, "runAsUser")) {
        return match uid {
            0 => refuse(format!("container's runAsUser breaks non-root policy ({container_text})")),
            _ => Ok(()),
        };
    }
    match image.config.user.split(':').next().unwrap_or("") {
        "" | "0" | "root" => refuse(format!("container has runAsNonRoot and image will run as root ({container_text})")),
        user if user.parse::<u32>().is_err() => refuse(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root ({container_text})"
        )),
        _ => Ok(()),
    }
}

fn capabilities(container: &Value) -> Capabilities {
    let list = |key: &str| -> Vec<String> {
        let names = container.list_at(&["securityContext", "capabilities", key]).iter().filter_map(Value::as_str);
        names.map(|n| n.strip_prefix("CAP_").unwrap_or(n).to_uppercase()).collect()
    };
    Capabilities { add: list("add"), drop: list("drop") }
}

pub fn resources(pod: Pod, container: &Value, node_memory: i64) -> Resources {
    let memory_request = qos::units(container.at(&["resources", "requests", "memory"])).unwrap_or(0);
    let critical = pod.0.i64_at(&["spec", "priority"]).unwrap_or(0) >= 2_000_000_000;
    let class = qos::class(pod.0);
    Resources { oom_score_adj: Some(qos::oom_score(class, memory_request, node_memory, critical)), ..limits(container) }
}

/// The part of a container's resources that may change while it runs.
pub fn limits(container: &Value) -> Resources {
    let at = |kind: &str, what: &str| container.at(&["resources", kind, what]);
    let cpu_limit = qos::millis(at("limits", "cpu"));
    let cpu_request = qos::millis(at("requests", "cpu")).or(cpu_limit).unwrap_or(0);
    Resources {
        memory_limit_bytes: qos::units(at("limits", "memory")).filter(|b| *b > 0).and_then(|b| u64::try_from(b).ok()),
        cpu_shares: Some(qos::shares(cpu_request)),
        cpu_quota_us: qos::quota(cpu_limit),
        cpu_period_us: Some(100_000),
        ..Resources::default()
    }
}

/// One entry of `volumeMounts`, resolved as far as it can be without touching the disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub volume: String,
    /// Below the volume; expanded, relative, without `..`.
    pub sub_path: String,
    pub target: String,
    pub readonly: bool,
    pub recursive_readonly: bool,
    pub propagation: Propagation,
}

/// The container's volume mounts, shallow targets first.
pub fn wanted_mounts(container: &Value, env: &[(String, String)]) -> Result<Vec<Wanted>, Reason> {
    let values: BTreeMap<&str, &str> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let mut all = Vec::new();
    for mount in container.list_at(&["volumeMounts"]) {
        let sub_path = match mount.str_at(&["subPathExpr"]) {
            "" => mount.str_at(&["subPath"]).to_string(),
            text => expand_sub_path(text, &values)?,
        };
        if sub_path.starts_with('/') || sub_path.split('/').any(|part| part == "..") {
            let message =
                format!("failed to prepare subPath for volumeMount \"{}\" of container \"{}\"", name_of(mount), name_of(container));
            return Err(Reason { reason: "CreateContainerConfigError".into(), message });
        }
        let path = mount.str_at(&["mountPath"]);
        all.push(Wanted {
            volume: name_of(mount).to_string(),
            sub_path,
            target: if path.starts_with('/') { path.to_string() } else { format!("/{path}") },
            readonly: mount.bool_at(&["readOnly"]),
            recursive_readonly: matches!(mount.str_at(&["recursiveReadOnly"]), "Enabled" | "IfPossible"),
            propagation: match mount.str_at(&["mountPropagation"]) {
                "HostToContainer" => Propagation::HostToContainer,
                "Bidirectional" => Propagation::Bidirectional,
                _ => Propagation::Private,
            },
        });
    }
    all.sort_by_key(|m| m.target.split('/').filter(|p| !p.is_empty()).count());
    Ok(all)
}

/// Every variable must be there: a path with a hole is worse than none.
fn expand_sub_path(text: &str, values: &BTreeMap<&str, &str>) -> Result<String, Reason> {
    let missing = std::cell::Cell::new(false);
    let lookup = |name: &str| {
        let value = values.get(name).map(|v| v.to_string());
        missing.set(missing.get() || value.is_none());
        value
    };
    let path = env::expand(text, &lookup);
    match missing.get() {
        true => Err(Reason { reason: "CreateContainerConfigError".into(), message: format!("failed to expand subPathExpr \"{text}\"") }),
        false => Ok(path),
    }
}

/// A bind mount of a host path.
pub fn bind(source: PathBuf, target: &str, readonly: bool) -> Mount {
    let target = target.to_string();
    Mount { source: MountSource::Host(source), target, readonly, recursive_readonly: false, propagation: Propagation::Private }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    fn run(pod: &Value, image: &Image) -> Result<ContainerSpec, Reason> {
        let pod = Pod(pod);
        let env = vec![("A".to_string(), "1".to_string())];
        let log_path = PathBuf::from("/log");
        container(ContainerInputs {
            pod,
            container: &pod.containers()[0],
            attempt: 2,
            image,
            env,
            mounts: Vec::new(),
            node_memory: 1 << 32,
            log_path,
            target: None,
            seccomp_dir: Path::new("/seccomp"),
        })
    }

    #[test]
    fn security_context_and_resources_reach_the_runtime() {
        let pod = value!({"metadata": {"uid": "u"}, "spec": {"securityContext": {"runAsUser": 1000, "fsGroup": 7, "supplementalGroups": [5]},
            "containers": [{"name": "c", "image": "i", "command": ["$(A)", "$(B)", "$$(A)"], "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
            "securityContext": {"runAsUser": 2000, "allowPrivilegeEscalation": false, "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}}]}});
        let spec = run(&pod, &Image::default()).unwrap();
        assert_eq!(spec.command, ["1", "$(B)", "$(A)"]);
        assert_eq!((spec.user.uid, spec.user.supplemental_groups), (Some(2000), vec![5, 7]));
        assert!(spec.no_new_privileges);
        assert_eq!((spec.capabilities.add, spec.capabilities.drop), (vec!["NET_ADMIN".to_string()], vec!["ALL".to_string()]));
        let r = spec.resources;
        assert_eq!(
            (r.memory_limit_bytes, r.cpu_quota_us, r.cpu_shares, r.oom_score_adj),
            (Some(64 << 20), Some(50_000), Some(512), Some(-997))
        );
    }

    #[test]
    fn seccomp_profiles_are_the_containers_or_the_pods() {
        let of = |pod_type: &str, own: serde_json::Value| {
            let pod = value!({"spec": {"securityContext": {"seccompProfile": {"type": pod_type}}, "containers": [{"name": "c", "securityContext": own}]}});
            run(&pod, &Image::default()).unwrap().seccomp
        };
        assert_eq!(of("RuntimeDefault", serde_json::json!({})), Seccomp::RuntimeDefault);
        assert_eq!(of("RuntimeDefault", serde_json::json!({"seccompProfile": {"type": "Unconfined"}})), Seccomp::Unconfined);
        let local = serde_json::json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "p/x.json"}});
        assert_eq!(of("Unconfined", local), Seccomp::Localhost("/seccomp/p/x.json".into()));
    }

    #[test]
    fn non_root_is_checked_against_the_image() {
        let pod = value!({"spec": {"containers": [{"name": "c", "securityContext": {"runAsNonRoot": true}}]}});
        assert!(run(&pod, &Image::default()).unwrap_err().message.contains("image will run as root"));
        let mut image = Image::default();
        image.config.user = "1000:1000".into();
        assert!(run(&pod, &image).is_ok());
    }

    #[test]
    fn mounts_are_ordered_and_sub_paths_expanded() {
        let c = value!({"name": "c", "volumeMounts": [{"name": "a", "mountPath": "/x/y"}, {"name": "b", "mountPath": "/x", "subPathExpr": "$(A)/z"}]});
        let env = [("A".to_string(), "1".to_string())];
        let wanted = wanted_mounts(&c, &env).unwrap();
        assert_eq!(wanted.iter().map(|w| (w.target.as_str(), w.sub_path.as_str())).collect::<Vec<_>>(), [("/x", "1/z"), ("/x/y", "")]);
        assert!(wanted_mounts(&c, &[]).is_err());
        let c = value!({"name": "c", "volumeMounts": [{"name": "a", "mountPath": "/x", "subPath": "a/../.."}]});
        assert!(wanted_mounts(&c, &[]).is_err());
    }
}
