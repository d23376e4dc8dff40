//! Pure: the Pod Security Standards: what of a pod each level forbids, since which version, in upstream's words.
//!
//! [`CHECKS`] is the table, one function per rule; [`violations`] runs those that a level and version come to.

use std::collections::BTreeSet;
use std::fmt;

use crate::api::json::go_quote;
use crate::api::value::{Map, Value};

/// From what is allowed everything to what is allowed little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub fn parse(text: &str) -> Option<Level> {
        [Level::Privileged, Level::Baseline, Level::Restricted].into_iter().find(|level| level.name() == text)
    }

    pub fn name(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }
}

/// Which release's idea of the levels is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `v1.<minor>`; releases to come count as the newest there is.
    Minor(u32),
    Latest,
}

impl Version {
    /// `latest` or `v1.` and a number as it is written.
    pub fn parse(text: &str) -> Option<Version> {
        if text == "latest" {
            return Some(Version::Latest);
        }
        let digits = text.strip_prefix("v1.")?;
        let minor: u32 = digits.parse().ok()?;
        (minor.to_string() == digits).then_some(Version::Minor(minor))
    }

    fn covers(self, since: u32) -> bool {
        self >= Version::Minor(since)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standard {
    pub level: Level,
    pub version: Version,
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Version::Minor(minor) => write!(f, "{}:v1.{minor}", self.level.name()),
            Version::Latest => write!(f, "{}:latest", self.level.name()),
        }
    }
}

/// What is looked at: a pod or the template of one.
#[derive(Clone, Copy)]
pub struct Pod<'a> {
    annotations: Option<&'a Map>,
    spec: &'a Value,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: &'static str,
    pub detail: String,
}

type Rule = fn(&Pod) -> Option<Violation>;

struct Check {
    /// Upstream's name.
    id: &'static str,
    level: Level,
    /// Each holds from its minor version on, until the next.
    rules: &'static [(u32, Rule)],
    /// Pods nothing is asked of, from that version on.
    exempt: Option<(u32, fn(&Pod) -> bool)>,
    /// Where this one is asked, that one need not be.
    replaces: &'static str,
}

const fn baseline(id: &'static str, rules: &'static [(u32, Rule)]) -> Check {
    Check { id, level: Level::Baseline, rules, exempt: None, replaces: "" }
}

const fn restricted(id: &'static str, rules: &'static [(u32, Rule)]) -> Check {
    Check { id, level: Level::Restricted, rules, exempt: None, replaces: "" }
}

impl Check {
    const fn replacing(self, replaces: &'static str) -> Check {
        Check { replaces, ..self }
    }

    const fn but(self, since: u32, holds: fn(&Pod) -> bool) -> Check {
        Check { exempt: Some((since, holds)), ..self }
    }
}

/// In the order they are told: by level, then by name.
const CHECKS: &[Check] = &[
    baseline("appArmorProfile", &[(0, app_armor_profile)]),
    baseline("capabilities_baseline", &[(0, capabilities_baseline)]),
    baseline("hostNamespaces", &[(0, host_namespaces)]),
    baseline("hostPathVolumes", &[(0, host_path_volumes)]),
    baseline("hostPorts", &[(0, host_ports)]),
    baseline("hostProbesAndHostLifecycle", &[(34, host_probes)]),
    baseline("privileged", &[(0, privileged)]),
    baseline("procMount_baseline", &[(0, proc_mount)]).but(35, in_user_namespace),
    baseline("seLinuxOptions", &[(0, se_linux_options_1_0), (31, se_linux_options_1_31)]),
    baseline("seccompProfile_baseline", &[(0, seccomp_annotations), (19, seccomp_baseline)]),
    baseline("sysctls", &[(0, sysctls_1_0), (27, sysctls_1_27), (29, sysctls_1_29), (32, sysctls_1_32)]),
    baseline("windowsHostProcess", &[(0, windows_host_process)]),
    restricted("allowPrivilegeEscalation", &[(8, allow_privilege_escalation)]).but(25, on_windows),
    restricted("capabilities_restricted", &[(22, capabilities_restricted)]).but(25, on_windows).replacing("capabilities_baseline"),
    restricted("procMount_restricted", &[(35, proc_mount)]).replacing("procMount_baseline"),
    restricted("restrictedVolumes", &[(0, restricted_volumes)]).replacing("hostPathVolumes"),
    restricted("runAsNonRoot", &[(0, run_as_non_root)]).but(35, in_user_namespace),
    restricted("runAsUser", &[(23, run_as_user)]).but(35, in_user_namespace),
    restricted("seccompProfile_restricted", &[(19, seccomp_restricted)]).but(25, on_windows).replacing("seccompProfile_baseline"),
];

impl Check {
    fn rule(&self, standard: Standard) -> Option<Rule> {
        let asked = self.level <= standard.level;
        self.rules.iter().rev().find(|(since, _)| asked && standard.version.covers(*since)).map(|(_, rule)| *rule)
    }
}

/// Everything about the pod that the standard forbids.
pub fn violations(standard: Standard, pod: &Pod) -> Vec<Violation> {
    let asked = || CHECKS.iter().filter_map(|check| Some((check, check.rule(standard)?)));
    let is_replaced = |id: &str| asked().any(|(check, _)| check.replaces == id);
    let is_exempt = |check: &Check| check.exempt.is_some_and(|(since, holds)| standard.version.covers(since) && holds(pod));
    asked().filter(|(check, _)| !is_replaced(check.id) && !is_exempt(check)).filter_map(|(_, rule)| rule(pod)).collect()
}

/// The violations in one line.
pub fn in_detail(found: &[Violation]) -> String {
    let one = |v: &Violation| if v.detail.is_empty() { v.reason.to_string() } else { format!("{} ({})", v.reason, v.detail) };
    found.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Just what they are called.
pub fn in_short(found: &[Violation]) -> String {
    found.iter().map(|v| v.reason).collect::<Vec<_>>().join(", ")
}

impl<'a> Pod<'a> {
    /// A pod, or a template.
    pub fn of(object: &'a Value) -> Pod<'a> {
        static NOTHING: Value = Value::Null;
        Pod { annotations: object.map_at(&["metadata", "annotations"]), spec: object.get("spec").unwrap_or(&NOTHING) }
    }

    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(move |list| spec.list_at(&[list]))
    }

    /// Names of the containers of which that holds.
    fn named(&self, holds: impl Fn(&Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|c| holds(c)).map(|c| c.str_at(&["name"])).collect()
    }

    fn annotations(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.annotations.into_iter().flat_map(|m| m.iter()).map(|(key, value)| (key, value.as_str().unwrap_or("")))
    }
}

fn on_windows(pod: &Pod) -> bool {
    pod.spec.str_at(&["os", "name"]) == "windows"
}

fn in_user_namespace(pod: &Pod) -> bool {
    pod.spec.at(&["hostUsers"]) == Some(&Value::Bool(false))
}

// --- words

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

fn quoted<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    names.into_iter().map(|name| format!("\"{}\"", name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// `container "a"`, `containers "a", "b"`.
fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod`, `container "a"` or both; nothing for nobody.
fn setters(pod: bool, names: &[&str]) -> Option<String> {
    let mut all = Vec::new();
    if pod {
        all.push("pod".to_string());
    }
    if !names.is_empty() {
        all.push(containers(names));
    }
    (!all.is_empty()).then(|| all.join(" and "))
}

fn found(reason: &'static str, detail: String) -> Option<Violation> {
    Some(Violation { reason, detail })
}

/// A member of a security context, of a pod's spec or a container.
fn context<'a>(of: &'a Value, path: &[&str]) -> Option<&'a Value> {
    of.at(&["securityContext"])?.at(path)
}

fn context_str<'a>(of: &'a Value, path: &[&str]) -> &'a str {
    context(of, path).and_then(Value::as_str).unwrap_or("")
}

// --- baseline

fn app_armor_profile(pod: &Pod) -> Option<Violation> {
    const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
    let bad = |of: &Value| {
        let profile = context(of, &["appArmorProfile"])?.str_at(&["type"]);
        (!matches!(profile, "RuntimeDefault" | "Localhost")).then(|| profile.to_string())
    };
    let of_pod = bad(pod.spec);
    let names = pod.named(|c| bad(c).is_some());
    let mut values: Vec<String> = pod.containers().filter_map(bad).chain(of_pod.clone()).collect::<BTreeSet<_>>().into_iter().collect();
    let is_allowed = |profile: &str| matches!(profile, "" | "runtime/default") || profile.starts_with("localhost/");
    let annotated = pod.annotations().filter(|(key, profile)| key.starts_with(PREFIX) && !is_allowed(profile));
    let annotated: BTreeSet<String> = annotated.map(|(key, profile)| format!("{key}={}", go_quote(profile))).collect();
    let count = annotated.len();
    values.extend(annotated);
    let annotation = (count > 0).then(|| plural("annotation", "annotations", count).to_string());
    let all: Vec<String> = setters(of_pod.is_some(), &names).into_iter().chain(annotation).collect();
    if all.is_empty() {
        return None;
    }
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    found(reason, format!("{} must not set AppArmor profile type to {}", all.join(" and "), quoted(values)))
}

/// What the containers add beyond `allowed`: their names, and what it is.
fn added<'a>(pod: &Pod<'a>, allowed: &[&str]) -> Option<String> {
    let forbidden = |c: &'a Value| {
        let add = context(c, &["capabilities", "add"]).and_then(Value::as_list).unwrap_or(&[]);
        add.iter().filter_map(Value::as_str).filter(|name| !allowed.contains(name)).collect::<BTreeSet<&'a str>>()
    };
    let names: Vec<&str> = pod.containers().filter(|c| !forbidden(c).is_empty()).map(|c| c.str_at(&["name"])).collect();
    let all: BTreeSet<&str> = pod.containers().flat_map(forbidden).collect();
    (!names.is_empty()).then(|| format!("{} must not include {} in securityContext.capabilities.add", containers(&names), quoted(all)))
}

fn capabilities_baseline(pod: &Pod) -> Option<Violation> {
    const DEFAULT: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    found("non-default capabilities", added(pod, &DEFAULT)?)
}

fn host_namespaces(pod: &Pod) -> Option<Violation> {
    let set = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|member| pod.spec.bool_at(&[member]));
    let set: Vec<String> = set.map(|member| format!("{member}=true")).collect();
    if set.is_empty() { None } else { found("host namespaces", set.join(", ")) }
}

fn host_path_volumes(pod: &Pod) -> Option<Violation> {
    let volumes = pod.spec.list_at(&["volumes"]).iter().filter(|v| v.at(&["hostPath"]).is_some());
    let names: Vec<&str> = volumes.map(|v| v.str_at(&["name"])).collect();
    if names.is_empty() {
        return None;
    }
    found("hostPath volumes", format!("{} {}", plural("volume", "volumes", names.len()), quoted(names)))
}

fn host_ports(pod: &Pod) -> Option<Violation> {
    let ports = |c: &Value| -> BTreeSet<String> {
        let all = c.list_at(&["ports"]).iter().filter_map(|p| p.i64_at(&["hostPort"]));
        all.filter(|port| *port != 0).map(|port| port.to_string()).collect()
    };
    let names = pod.named(|c| !ports(c).is_empty());
    if names.is_empty() {
        return None;
    }
    let all: BTreeSet<String> = pod.containers().flat_map(ports).collect();
    let (uses, word) = (plural("uses", "use", names.len()), plural("hostPort", "hostPorts", all.len()));
    found("hostPort", format!("{} {uses} {word} {}", containers(&names), all.into_iter().collect::<Vec<_>>().join(", ")))
}

fn host_probes(pod: &Pod) -> Option<Violation> {
    const HANDLERS: [&[&str]; 5] =
        [&["livenessProbe"], &["readinessProbe"], &["startupProbe"], &["lifecycle", "postStart"], &["lifecycle", "preStop"]];
    fn hosts(container: &Value) -> impl Iterator<Item = &str> {
        let handlers = HANDLERS.iter().filter_map(|path| container.at(path));
        handlers.flat_map(|h| [h.str_at(&["httpGet", "host"]), h.str_at(&["tcpSocket", "host"])]).filter(|host| !host.is_empty())
    }
    let names: BTreeSet<&str> = pod.named(|c| hosts(c).next().is_some()).into_iter().collect();
    if names.is_empty() {
        return None;
    }
    let names: Vec<&str> = names.into_iter().collect();
    let all: BTreeSet<&str> = pod.containers().flat_map(hosts).collect();
    let uses = plural("uses", "use", names.len());
    let word = plural("probe or lifecycle host", "probe or lifecycle hosts", all.len());
    found("probe or lifecycle host", format!("{} {uses} {word} {}", containers(&names), quoted(all)))
}

fn privileged(pod: &Pod) -> Option<Violation> {
    let names = pod.named(|c| c.bool_at(&["securityContext", "privileged"]));
    if names.is_empty() {
        return None;
    }
    found("privileged", format!("{} must not set securityContext.privileged=true", containers(&names)))
}

/// Also the restricted one, which knows no exemption.
fn proc_mount(pod: &Pod) -> Option<Violation> {
    fn other(container: &Value) -> Option<&str> {
        context(container, &["procMount"]).and_then(Value::as_str).filter(|mount| *mount != "Default")
    }
    let names = pod.named(|c| other(c).is_some());
    if names.is_empty() {
        return None;
    }
    let mounts: BTreeSet<&str> = pod.containers().filter_map(other).collect();
    found("procMount", format!("{} must not set securityContext.procMount to {}", containers(&names), quoted(mounts)))
}

fn se_linux_options_1_0(pod: &Pod) -> Option<Violation> {
    se_linux_options(pod, &["", "container_t", "container_init_t", "container_kvm_t"])
}

fn se_linux_options_1_31(pod: &Pod) -> Option<Violation> {
    se_linux_options(pod, &["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"])
}

fn se_linux_options(pod: &Pod, types: &[&str]) -> Option<Violation> {
    let of = |what: &Value, member: &str| context_str(what, &["seLinuxOptions", member]).to_string();
    let is_bad = |what: &Value| !types.contains(&of(what, "type").as_str()) || ["user", "role"].iter().any(|m| !of(what, m).is_empty());
    let names = pod.named(is_bad);
    let who = setters(is_bad(pod.spec), &names)?;
    let everything = || pod.containers().chain([pod.spec]);
    let bad: BTreeSet<String> = everything().map(|what| of(what, "type")).filter(|t| !types.contains(&t.as_str())).collect();
    let mut what = Vec::new();
    if !bad.is_empty() {
        what.push(format!("{} {}", plural("type", "types", bad.len()), quoted(bad)));
    }
    for member in ["user", "role"] {
        if everything().any(|what| !of(what, member).is_empty()) {
            what.push(format!("{member} may not be set"));
        }
    }
    found("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; ")))
}

/// Before there was a field for it.
fn seccomp_annotations(pod: &Pod) -> Option<Violation> {
    let names: Vec<&str> = pod.containers().map(|c| c.str_at(&["name"])).collect();
    let is_meant = |key: &str| {
        key == "seccomp.security.alpha.kubernetes.io/pod"
            || key.strip_prefix("container.seccomp.security.alpha.kubernetes.io/").is_some_and(|name| names.contains(&name))
    };
    let is_allowed = |profile: &str| matches!(profile, "runtime/default" | "docker/default") || profile.starts_with("localhost/");
    let bad = pod.annotations().filter(|(key, profile)| is_meant(key) && !is_allowed(profile));
    let bad: BTreeSet<String> = bad.map(|(key, profile)| format!("{key}={}", go_quote(profile))).collect();
    if bad.is_empty() {
        return None;
    }
    let word = plural("annotation", "annotations", bad.len());
    found("seccompProfile", format!("forbidden {word} {}", bad.into_iter().collect::<Vec<_>>().join(", ")))
}

/// The profile somebody has, if one is set.
fn seccomp(of: &Value) -> Option<&str> {
    context(of, &["seccompProfile"]).map(|profile| profile.str_at(&["type"]))
}

fn is_confined(profile: &str) -> bool {
    matches!(profile, "Localhost" | "RuntimeDefault")
}

fn seccomp_baseline(pod: &Pod) -> Option<Violation> {
    fn bad(of: &Value) -> Option<&str> {
        seccomp(of).filter(|profile| !is_confined(profile))
    }
    let who = setters(bad(pod.spec).is_some(), &pod.named(|c| bad(c).is_some()))?;
    let values: BTreeSet<&str> = pod.containers().chain([pod.spec]).filter_map(bad).collect();
    found("seccompProfile", format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values)))
}

fn sysctls_1_0(pod: &Pod) -> Option<Violation> {
    sysctls(pod, 5)
}

fn sysctls_1_27(pod: &Pod) -> Option<Violation> {
    sysctls(pod, 6)
}

fn sysctls_1_29(pod: &Pod) -> Option<Violation> {
    sysctls(pod, 10)
}

fn sysctls_1_32(pod: &Pod) -> Option<Violation> {
    sysctls(pod, 12)
}

fn sysctls(pod: &Pod, known: usize) -> Option<Violation> {
    const SAFE: [&str; 12] = [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
    ];
    let all = pod.spec.list_at(&["securityContext", "sysctls"]).iter().map(|s| s.str_at(&["name"]));
    let bad: Vec<&str> = all.filter(|name| !SAFE[..known].contains(name)).collect();
    if bad.is_empty() { None } else { found("forbidden sysctls", bad.join(", ")) }
}

fn windows_host_process(pod: &Pod) -> Option<Violation> {
    let is_set = |of: &Value| of.bool_at(&["securityContext", "windowsOptions", "hostProcess"]);
    let who = setters(is_set(pod.spec), &pod.named(is_set))?;
    found("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}

// --- restricted

fn allow_privilege_escalation(pod: &Pod) -> Option<Violation> {
    let names = pod.named(|c| context(c, &["allowPrivilegeEscalation"]) != Some(&Value::Bool(false)));
    if names.is_empty() {
        return None;
    }
    let who = containers(&names);
    found("allowPrivilegeEscalation != false", format!("{who} must set securityContext.allowPrivilegeEscalation=false"))
}

fn capabilities_restricted(pod: &Pod) -> Option<Violation> {
    let drops_all = |c: &Value| {
        let dropped = context(c, &["capabilities", "drop"]).and_then(Value::as_list).unwrap_or(&[]);
        dropped.iter().any(|name| name.as_str() == Some("ALL"))
    };
    let keeping = pod.named(|c| !drops_all(c));
    let keeps = (!keeping.is_empty()).then(|| format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping)));
    let all: Vec<String> = keeps.into_iter().chain(added(pod, &["NET_BIND_SERVICE"])).collect();
    if all.is_empty() { None } else { found("unrestricted capabilities", all.join("; ")) }
}

fn restricted_volumes(pod: &Pod) -> Option<Violation> {
    const ALLOWED: [&str; 8] = ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];
    const NAMED: [&str; 21] = [
        "hostPath",
        "gcePersistentDisk",
        "awsElasticBlockStore",
        "gitRepo",
        "nfs",
        "iscsi",
        "glusterfs",
        "rbd",
        "flexVolume",
        "cinder",
        "cephfs",
        "flocker",
        "fc",
        "azureFile",
        "vsphereVolume",
        "quobyte",
        "azureDisk",
        "photonPersistentDisk",
        "portworxVolume",
        "scaleIO",
        "storageos",
    ];
    fn one_of<'a>(volume: &Value, sources: &[&'a str]) -> Option<&'a str> {
        sources.iter().find(|source| volume.at(&[source]).is_some()).copied()
    }
    let bad: Vec<&Value> = pod.spec.list_at(&["volumes"]).iter().filter(|v| one_of(v, &ALLOWED).is_none()).collect();
    if bad.is_empty() {
        return None;
    }
    let types: BTreeSet<&str> = bad.iter().map(|v| one_of(v, &NAMED).unwrap_or("unknown")).collect();
    let (volumes, uses) = (plural("volume", "volumes", bad.len()), plural("uses", "use", bad.len()));
    let word = plural("restricted volume type", "restricted volume types", types.len());
    let names = quoted(bad.iter().map(|v| v.str_at(&["name"])));
    found("restricted volume types", format!("{volumes} {names} {uses} {word} {}", quoted(types)))
}

fn run_as_non_root(pod: &Pod) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    let says = |of: &Value| context(of, &["runAsNonRoot"]).and_then(Value::as_bool);
    let of_pod = says(pod.spec);
    if let Some(who) = setters(of_pod == Some(false), &pod.named(|c| says(c) == Some(false))) {
        return found(REASON, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let silent = pod.named(|c| says(c).is_none());
    if silent.is_empty() || of_pod == Some(true) {
        return None;
    }
    found(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&silent)))
}

fn run_as_user(pod: &Pod) -> Option<Violation> {
    let is_root = |of: &Value| context(of, &["runAsUser"]).and_then(Value::as_i64) == Some(0);
    let who = setters(is_root(pod.spec), &pod.named(is_root))?;
    found("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

fn seccomp_restricted(pod: &Pod) -> Option<Violation> {
    if let Some(said) = seccomp_baseline(pod) {
        return Some(said);
    }
    let silent = pod.named(|c| seccomp(c).is_none());
    if silent.is_empty() || seccomp(pod.spec).is_some() {
        return None;
    }
    let who = containers(&silent);
    found("seccompProfile", format!("pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    fn told(standard: &str, pod: &Value) -> String {
        let (level, version) = standard.split_once(':').unwrap();
        let standard = Standard { level: Level::parse(level).unwrap(), version: Version::parse(version).unwrap() };
        in_detail(&violations(standard, &Pod::of(pod)))
    }

    #[test]
    fn the_table_is_in_order() {
        assert!(CHECKS.is_sorted_by_key(|check| (check.level, check.id)));
        for check in CHECKS {
            assert!(check.rules.is_sorted_by_key(|(since, _)| *since), "{}", check.id);
            assert!(
                check.replaces.is_empty() || CHECKS.iter().any(|other| other.id == check.replaces && other.level < check.level),
                "{}",
                check.id
            );
        }
    }

    #[test]
    fn versions_are_written_one_way() {
        assert_eq!(Version::parse("latest"), Some(Version::Latest));
        assert_eq!(Version::parse("v1.0"), Some(Version::Minor(0)));
        assert_eq!(Version::parse("v1.99"), Some(Version::Minor(99)));
        for wrong in ["", "1.2", "v1", "v1.", "v1.01", "v1.+1", "v2.0", "v1.2.3", "Latest"] {
            assert_eq!(Version::parse(wrong), None, "{wrong}");
        }
        assert!(Version::Latest > Version::Minor(u32::MAX));
    }

    #[test]
    fn standards() {
        let confined = value!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
            "seccompProfile": {"type": "RuntimeDefault"}});
        let of = |spec: Value| value!({"spec": spec});
        let one = |context: Value| of(value!({"containers": [{"name": "c", "securityContext": context}]}));
        let confined_and = |key: &str, v: Value| {
            let mut context = confined.clone();
            context.set(&[key], v);
            one(context)
        };
        let volume = |source: &str| {
            let mut volume = value!({"name": "v"});
            volume.set(&[source], Value::map());
            of(value!({"volumes": (Value::List(vec![volume]))}))
        };
        let sysctl = |name: &str| of(value!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}}));
        let annotated = |key: &str, text: &str| {
            let mut pod = of(value!({"containers": [{"name": "c"}]}));
            pod.set(&["metadata", "annotations", key], text);
            pod
        };
        let plain = "allowPrivilegeEscalation != false (containers \"a\", \"b\" must set securityContext.allowPrivilegeEscalation=false), \
            unrestricted capabilities (containers \"a\", \"b\" must set securityContext.capabilities.drop=[\"ALL\"]), \
            runAsNonRoot != true (pod or containers \"a\", \"b\" must set securityContext.runAsNonRoot=true), \
            seccompProfile (pod or containers \"a\", \"b\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")";
        let two = of(value!({"containers": [{"name": "b"}], "initContainers": [{"name": "a"}]}));
        let rooted =
            of(value!({"hostUsers": false, "containers": [{"name": "c", "securityContext": {"runAsUser": 0, "procMount": "Unmasked",
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "Localhost"}}}]}));
        let unmasked = "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")";
        for (standard, pod, wanted) in [
            ("privileged:latest", one(value!({"privileged": true})), ""),
            ("baseline:latest", two.clone(), ""),
            ("restricted:latest", two, plain),
            ("restricted:v1.99", one(confined.clone()), ""),
            (
                "restricted:latest",
                confined_and("runAsNonRoot", false.into()),
                "runAsNonRoot != true (container \"c\" must not set securityContext.runAsNonRoot=false)",
            ),
            ("restricted:v1.22", confined_and("runAsUser", 0.into()), ""),
            ("restricted:v1.23", confined_and("runAsUser", 0.into()), "runAsUser=0 (container \"c\" must not set runAsUser=0)"),
            (
                "restricted:v1.34",
                rooted.clone(),
                &format!(
                    "{unmasked}, runAsNonRoot != true (pod or container \"c\" must set \
                securityContext.runAsNonRoot=true), runAsUser=0 (container \"c\" must not set runAsUser=0)"
                ),
            ),
            ("restricted:v1.35", rooted.clone(), unmasked),
            ("baseline:v1.35", rooted, ""),
            ("baseline:latest", one(value!({"seLinuxOptions": {"type": "container_engine_t"}})), ""),
            (
                "baseline:v1.30",
                one(value!({"seLinuxOptions": {"type": "container_engine_t", "role": "r"}})),
                "seLinuxOptions (container \"c\" set forbidden securityContext.seLinuxOptions: type \"container_engine_t\"; role may not be set)",
            ),
            ("baseline:v1.28", sysctl("net.ipv4.tcp_fin_timeout"), "forbidden sysctls (net.ipv4.tcp_fin_timeout)"),
            ("baseline:v1.29", sysctl("net.ipv4.tcp_fin_timeout"), ""),
            ("baseline:v1.31", sysctl("net.ipv4.tcp_rmem"), "forbidden sysctls (net.ipv4.tcp_rmem)"),
            ("baseline:latest", volume("hostPath"), "hostPath volumes (volume \"v\")"),
            ("restricted:latest", volume("hostPath"), "restricted volume types (volume \"v\" uses restricted volume type \"hostPath\")"),
            ("restricted:latest", volume("image"), "restricted volume types (volume \"v\" uses restricted volume type \"unknown\")"),
            (
                "baseline:v1.18",
                annotated("seccomp.security.alpha.kubernetes.io/pod", "unconfined"),
                "seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")",
            ),
            ("baseline:v1.18", annotated("container.seccomp.security.alpha.kubernetes.io/other", "unconfined"), ""),
            ("baseline:v1.19", annotated("seccomp.security.alpha.kubernetes.io/pod", "unconfined"), ""),
            (
                "baseline:latest",
                annotated("container.apparmor.security.beta.kubernetes.io/c", "unconfined"),
                "forbidden AppArmor profile (annotation must not set AppArmor profile type to \
                \"container.apparmor.security.beta.kubernetes.io/c=\"unconfined\"\")",
            ),
            (
                "baseline:latest",
                of(value!({"containers": [{"name": "c", "ports": [{"hostPort": 90}, {"hostPort": 100}, {"containerPort": 1}]}]})),
                "hostPort (container \"c\" uses hostPorts 100, 90)",
            ),
            ("baseline:v1.33", of(value!({"containers": [{"name": "c", "livenessProbe": {"tcpSocket": {"host": "h"}}}]})), ""),
        ] {
            assert_eq!(told(standard, &pod), wanted, "{standard} {pod}");
        }
    }
}
