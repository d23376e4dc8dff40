//! Pure: what a container should be → the OCI runtime spec libcontainer gets, and the [`Process`] our own executor becomes.
//!
//! The spec's process is deliberately not the user's: it is root with every capability we have, so that libcontainer can do its
//! work; identity, capabilities and `noNewPrivileges` are applied by the shim's executor just before the exec, for a container's
//! first process and for later ones alike. No `hostname` (the sandbox's UTS namespace has it), no `oomScoreAdj` and no rlimits (the
//! kernel may refuse them), no resources (the cgroup is filled before the container is made). Start at [`container`].

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Capabilities, ContainerSpec, ImageConfig, Propagation, SandboxSpec, User};

/// What the executor turns itself into. Written beside the container, so that the shim need not hold it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// Made if it is missing.
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Bit per capability: bounding, permitted and effective alike; nothing is inheritable or ambient.
    pub capabilities: u64,
    pub no_new_privileges: bool,
    /// A seccomp filter program in base64; empty is none.
    #[serde(default)]
    pub seccomp: String,
    pub tty: bool,
    pub oom_score_adj: Option<i32>,
    /// Mounts whose propagation libcontainer does not set, with the one they get.
    pub propagations: Vec<(String, Propagation)>,
}

/// A device node of the host.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceNode {
    pub path: String,
    /// `c` or `b`.
    pub kind: char,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Everything about the place a container is made in.
pub struct Context<'a> {
    pub sandbox: &'a SandboxSpec,
    pub container: &'a ContainerSpec,
    pub image: &'a ImageConfig,
    pub user: &'a ResolvedUser,
    pub rootfs: &'a Path,
    /// Mounted namespaces of the sandbox; `None` is the host's.
    pub network: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub pid: PidNamespace,
    /// The sandbox's `/dev/shm`.
    pub shm: &'a Path,
    pub cgroup: &'a str,
    /// Name and directory of each of the container's version 1 groups; empty on version 2.
    pub cgroup_hierarchies: &'a [(String, PathBuf)],
    /// Our own permitted capabilities: nobody can be given more.
    pub own_capabilities: u64,
    pub devices: &'a [DeviceNode],
    /// Sources of the spec's mounts, in its order; a mount without one is a tmpfs.
    pub sources: &'a [Option<PathBuf>],
}

#[derive(Clone, Debug, PartialEq)]
pub enum PidNamespace {
    Own,
    Host,
    Of(i32),
}

const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The bit of a capability, named with or without `CAP_`.
pub fn capability_bit(name: &str) -> Option<u64> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    NAMES.iter().position(|known| *known == name).map(|at| 1 << at)
}

/// What is left of the asked-for set within what we have ourselves. `Err` names an unknown capability.
pub fn capability_bits(asked: &Capabilities, privileged: bool, own: u64) -> Result<u64, String> {
    if privileged {
        return Ok(own);
    }
    let all = |names: &[String]| names.iter().any(|name| name == "ALL");
    let bits = |names: &[String]| {
        let known = names.iter().filter(|name| *name != "ALL");
        let mut bits = known.map(|name| capability_bit(name).ok_or_else(|| format!("unknown capability {name:?}")));
        bits.try_fold(0, |all, one| one.map(|one| all | one))
    };
    let (add, drop) = (bits(&asked.add)?, bits(&asked.drop)?);
    // Whatever the order in the spec: ALL first, then the single ones, added ones last.
    let mut set = DEFAULT.iter().filter_map(|name| capability_bit(name)).fold(0, |all, one| all | one);
    if all(&asked.add) {
        set = u64::MAX;
    }
    if all(&asked.drop) {
        set = 0;
    }
    Ok(((set & !drop) | add) & own)
}

fn capability_names(bits: u64) -> Vec<String> {
    let held = |(at, name): (usize, &&str)| (bits & (1 << at) != 0).then(|| format!("CAP_{name}"));
    NAMES.iter().enumerate().filter_map(held).collect()
}

/// The identity a process gets, with what `/etc/passwd` knows of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// Numbers asked for win over the image's `USER`; names are looked up in the image's own files.
pub fn resolve_user(asked: &User, image_user: &str, passwd: &str, group: &str) -> Result<ResolvedUser, String> {
    let (image_name, image_group) = match image_user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (image_user, None),
    };
    let entries = || passwd.lines().filter_map(passwd_entry);
    let wanted = match asked.uid {
        Some(uid) => uid.to_string(),
        None if image_name.is_empty() => "0".to_string(),
        None => image_name.to_string(),
    };
    let number = wanted.parse::<u32>().ok();
    let entry = entries().find(|entry| entry.name == wanted || Some(entry.uid) == number);
    let uid = match (&entry, number) {
        // A name made of digits is a number unless there is such a name.
        (Some(entry), _) if entry.name == wanted => entry.uid,
        (_, Some(uid)) => uid,
        (Some(entry), None) => entry.uid,
        (None, None) => return Err(format!("unable to find user {wanted}: no matching entries in passwd file")),
    };
    let gid = match (asked.gid, image_group.filter(|_| asked.uid.is_none())) {
        (Some(gid), _) => gid,
        (None, Some(name)) => group_id(name, group)?,
        (None, None) => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut groups = vec![gid];
    if !asked.strict_groups
        && let Some(entry) = &entry
    {
        groups.extend(group.lines().filter_map(|line| member_of(line, entry.name)));
    }
    groups.extend(&asked.supplemental_groups);
    groups.sort_unstable();
    groups.dedup();
    let home = entry.map_or("/", |entry| entry.home);
    Ok(ResolvedUser { uid, gid, groups, home: if home.is_empty() { "/" } else { home }.to_string() })
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_entry(line: &str) -> Option<PasswdEntry<'_>> {
    let mut fields = line.split(':');
    let (name, uid, gid) = (fields.next()?, fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(PasswdEntry { name, uid, gid, home: fields.nth(1).unwrap_or("/") })
}

fn group_id(name: &str, group: &str) -> Result<u32, String> {
    let entry = |line: &str| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    };
    let found = group.lines().find_map(entry).or_else(|| name.parse().ok());
    found.ok_or_else(|| format!("unable to find group {name}: no matching entries in group file"))
}

fn member_of(line: &str, user: &str) -> Option<u32> {
    let mut fields = line.split(':');
    let gid = fields.nth(2)?.parse().ok()?;
    fields.next()?.split(',').any(|member| member == user).then_some(gid)
}

/// `SIGTERM`, `TERM`, `15` and the like.
pub fn signal_number(name: &str) -> Option<i32> {
    const SIGNALS: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM", "STKFLT",
        "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = name.strip_prefix("SIG").unwrap_or(name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: i32 = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    SIGNALS.iter().position(|known| *known == name).map(|at| at as i32 + 1)
}

/// Entrypoint and arguments as the two sides together mean them.
pub fn arguments(container: &ContainerSpec, image: &ImageConfig) -> Vec<String> {
    if !container.command.is_empty() {
        return [&container.command[..], &container.args].concat();
    }
    let args = if container.args.is_empty() { &image.cmd } else { &container.args };
    [&image.entrypoint[..], args].concat()
}

fn environment(context: &Context<'_>) -> Vec<String> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value.to_string(),
        None => env.push((name.to_string(), value.to_string())),
    };
    set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    set("HOSTNAME", &context.sandbox.hostname);
    set("HOME", &context.user.home);
    if context.container.tty {
        set("TERM", "xterm");
    }
    for entry in &context.image.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        set(name, value);
    }
    for (name, value) in &context.container.env {
        set(name, value);
    }
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// The process of a container. `Err` is what a create error says.
pub fn process(context: &Context<'_>) -> Result<Process, String> {
    let (container, image) = (context.container, context.image);
    let args = arguments(container, image);
    if args.is_empty() {
        return Err("no command specified".to_string());
    }
    let cwd = container.cwd.as_deref().filter(|cwd| !cwd.is_empty()).unwrap_or(&image.workdir);
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    if !cwd.starts_with('/') {
        return Err(format!("working directory {cwd:?} is not absolute"));
    }
    if let Some(relative) = container.mounts.iter().find(|mount| !mount.target.starts_with('/')) {
        return Err(format!("mount path {:?} is not absolute", relative.target));
    }
    let shared = container.mounts.iter().any(|mount| mount.propagation != Propagation::Private);
    let propagations = container.mounts.iter().filter(|_| shared).map(|mount| (mount.target.clone(), mount.propagation));
    Ok(Process {
        args,
        env: environment(context),
        cwd: cwd.to_string(),
        uid: context.user.uid,
        gid: context.user.gid,
        groups: context.user.groups.clone(),
        capabilities: capability_bits(&container.capabilities, container.privileged, context.own_capabilities)?,
        no_new_privileges: container.no_new_privileges && !container.privileged,
        seccomp: String::new(),
        tty: container.tty,
        oom_score_adj: container.resources.oom_score_adj,
        propagations: propagations.collect(),
    })
}

/// The `config.json` of a container.
pub fn container(context: &Context<'_>) -> Value {
    let container = context.container;
    let all = capability_names(context.own_capabilities);
    let paths = |paths: &[&str]| if container.privileged { Vec::new() } else { paths.iter().map(|path| path.to_string()).collect() };
    let masked = if container.unmasked_proc { Vec::new() } else { paths(&MASKED) };
    let read_only = if container.unmasked_proc { Vec::new() } else { paths(&READ_ONLY) };
    let has = |wanted| container.mounts.iter().any(|mount| mount.propagation == wanted);
    let propagation = match (has(Propagation::Bidirectional), has(Propagation::HostToContainer)) {
        (true, _) => "shared",
        (false, true) => "slave",
        (false, false) => "private",
    };
    let device = |device: &DeviceNode| {
        json!({
            "path": device.path, "type": device.kind.to_string(), "major": device.major, "minor": device.minor,
            "fileMode": device.mode, "uid": device.uid, "gid": device.gid,
        })
    };
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": context.rootfs, "readonly": container.read_only_root},
        "process": {
            "terminal": container.tty,
            "user": {"uid": 0, "gid": 0},
            "args": ["coracle"],
            "env": [],
            "cwd": "/",
            "capabilities": {
                "bounding": all, "effective": all, "permitted": all, "inheritable": [], "ambient": [],
            },
        },
        "mounts": mounts(context),
        "linux": {
            "namespaces": namespaces(context),
            "cgroupsPath": context.cgroup,
            "rootfsPropagation": propagation,
            "maskedPaths": masked,
            "readonlyPaths": read_only,
            "devices": context.devices.iter().map(device).collect::<Vec<_>>(),
        },
    })
}

fn namespaces(context: &Context<'_>) -> Vec<Value> {
    let mut namespaces = vec![json!({"type": "mount"})];
    for (kind, path) in [("network", &context.network), ("ipc", &context.ipc), ("uts", &context.uts)] {
        namespaces.extend(path.as_ref().map(|path| json!({"type": kind, "path": path})));
    }
    match context.pid {
        PidNamespace::Own => namespaces.push(json!({"type": "pid"})),
        PidNamespace::Of(pid) => namespaces.push(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")})),
        PidNamespace::Host => {}
    }
    if context.cgroup_hierarchies.is_empty() && !context.container.privileged {
        namespaces.push(json!({"type": "cgroup"}));
    }
    namespaces
}

/// The usual ones first, then the container's own by depth, so that none hides another. A target named by both is the container's.
fn mounts(context: &Context<'_>) -> Vec<Value> {
    let container = context.container;
    let rw = if container.privileged { "rw" } else { "ro" };
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| {
        (target.to_string(), json!({"destination": target, "type": kind, "source": source, "options": options}))
    };
    let shm = context.shm.to_string_lossy();
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "bind", &shm, &["rbind", "nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", rw]),
    ];
    if context.cgroup_hierarchies.is_empty() {
        all.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", rw]));
    } else {
        // Not libcontainer's own way: in a joined PID namespace it looks for itself under the wrong number in the host's /proc.
        all.push(mount("/sys/fs/cgroup", "tmpfs", "tmpfs", &["nosuid", "noexec", "nodev", "mode=755"]));
        for (name, source) in context.cgroup_hierarchies {
            let target = format!("/sys/fs/cgroup/{name}");
            all.push(mount(&target, "bind", &source.to_string_lossy(), &["rbind", "nosuid", "noexec", "nodev", rw]));
        }
    }
    let normal = |target: &str| target.trim_end_matches('/').to_string();
    let own = |target: &str| container.mounts.iter().any(|mount| normal(&mount.target) == target);
    let group = |target: &str| target.starts_with("/sys/fs/cgroup/") && own("/sys/fs/cgroup");
    all.retain(|(target, _)| !own(target) && !group(target));
    let mut own: Vec<(usize, Value)> = Vec::new();
    for (mount, source) in container.mounts.iter().zip(context.sources) {
        let depth = mount.target.split('/').filter(|part| !part.is_empty()).count();
        own.push((depth, own_mount(mount, source.as_deref())));
    }
    own.sort_by_key(|(depth, _)| *depth);
    all.into_iter().map(|(_, mount)| mount).chain(own.into_iter().map(|(_, mount)| mount)).collect()
}

fn own_mount(mount: &super::Mount, source: Option<&Path>) -> Value {
    let mut options: Vec<String> = Vec::new();
    let read = match (mount.readonly, mount.recursive_readonly) {
        (false, _) => "rw",
        (true, false) => "ro",
        (true, true) => "rro",
    };
    options.push(read.to_string());
    match (source, &mount.source) {
        (Some(source), _) => {
            options.insert(0, "rbind".to_string());
            json!({"destination": mount.target, "type": "bind", "source": source, "options": options})
        }
        (None, super::MountSource::Tmpfs { size_bytes, mode }) => {
            options.extend(["nosuid".to_string(), "nodev".to_string(), format!("mode={mode:o}")]);
            options.extend(size_bytes.map(|size| format!("size={size}")));
            json!({"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options})
        }
        (None, _) => unreachable!("only a tmpfs has no source"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Mount, MountSource};

    fn caps(add: &[&str], drop: &[&str]) -> Capabilities {
        let own = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        Capabilities { add: own(add), drop: own(drop) }
    }

    #[test]
    fn capabilities_are_added_dropped_and_never_more_than_ours() {
        let default = capability_bits(&caps(&[], &[]), false, u64::MAX).unwrap();
        assert_eq!(default.count_ones(), 14);
        assert_eq!(capability_bits(&caps(&["NET_ADMIN"], &["ALL"]), false, u64::MAX), Ok(1 << 12));
        assert_eq!(capability_bits(&caps(&["CAP_CHOWN"], &["ALL"]), false, u64::MAX), Ok(1));
        assert_eq!(capability_bits(&caps(&["ALL"], &["CHOWN"]), false, 3), Ok(2));
        assert_eq!(capability_bits(&caps(&[], &[]), true, 7), Ok(7));
        assert!(capability_bits(&caps(&["FLY"], &[]), false, 1).unwrap_err().contains("FLY"));
    }

    #[test]
    fn users_come_from_the_spec_the_image_and_its_files() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n1000:x:77:77::/odd:\nbroken\n";
        let group = "root:x:0:\nwww:x:34:\nextra:x:50:root,web\nmore:x:51:web\n";
        let user = |uid, gid, groups: &[u32], image: &str| {
            let asked = User { uid, gid, supplemental_groups: groups.to_vec(), strict_groups: false };
            resolve_user(&asked, image, passwd, group).map(|user| (user.uid, user.gid, user.groups, user.home))
        };
        assert_eq!(user(None, None, &[], ""), Ok((0, 0, vec![0, 50], "/root".into())));
        assert_eq!(user(None, None, &[], "web"), Ok((33, 34, vec![34, 50, 51], "/srv".into())));
        assert_eq!(user(None, None, &[], "web:extra"), Ok((33, 50, vec![50, 51], "/srv".into())));
        assert_eq!(user(None, None, &[9], "5:6"), Ok((5, 6, vec![6, 9], "/".into())));
        assert_eq!(user(Some(33), None, &[], "ghost"), Ok((33, 34, vec![34, 50, 51], "/srv".into())));
        assert_eq!(user(Some(1), Some(2), &[3], "web:www"), Ok((1, 2, vec![2, 3], "/".into())));
        assert!(user(None, None, &[], "ghost").unwrap_err().contains("ghost"));
    }

    #[test]
    fn commands_replace_entrypoints_and_with_them_arguments() {
        let image = ImageConfig { entrypoint: vec!["e".into()], cmd: vec!["c".into()], ..ImageConfig::default() };
        let of = |command: &[&str], args: &[&str]| {
            let own = |words: &[&str]| words.iter().map(|word| word.to_string()).collect();
            arguments(&ContainerSpec { command: own(command), args: own(args), ..ContainerSpec::default() }, &image).join(" ")
        };
        assert_eq!([of(&[], &[]), of(&[], &["a"]), of(&["x"], &[]), of(&["x"], &["a"])], ["e c", "e a", "x", "x a"]);
    }

    #[test]
    fn signals_have_names_and_numbers() {
        let of = |name: &str| signal_number(name);
        assert_eq!([of("SIGTERM"), of("INT"), of("9"), of("SIGRTMIN+3")], [Some(15), Some(2), Some(9), Some(37)]);
        assert_eq!([of("SIGNOPE"), of("0"), of("")], [None, None, None]);
    }

    #[test]
    fn a_spec_has_what_libcontainer_must_have_and_nothing_it_must_not() {
        let bind = |target: &str, propagation| Mount {
            source: MountSource::Host("/x".into()),
            target: target.into(),
            readonly: true,
            recursive_readonly: false,
            propagation,
        };
        let container = ContainerSpec {
            mounts: vec![
                bind("/a/b/c", Propagation::Private),
                bind("/a", Propagation::HostToContainer),
                bind("/dev/shm", Propagation::Private),
            ],
            args: vec!["run".into()],
            ..ContainerSpec::default()
        };
        let sandbox = SandboxSpec { hostname: "h".into(), ..SandboxSpec::default() };
        let sources = vec![Some(PathBuf::from("/x")); 3];
        let context = Context {
            sandbox: &sandbox,
            container: &container,
            image: &ImageConfig::default(),
            user: &ResolvedUser::default(),
            rootfs: Path::new("/r"),
            network: Some("/n".into()),
            ipc: None,
            uts: None,
            pid: PidNamespace::Own,
            shm: Path::new("/shm"),
            cgroup: "/x/c",
            cgroup_hierarchies: &[("pids".to_string(), PathBuf::from("/cg/x/c"))],
            own_capabilities: 3,
            devices: &[],
            sources: &sources,
        };
        let spec = container_spec_of(&context);
        let targets: Vec<&str> = spec["mounts"].as_array().unwrap().iter().map(|mount| mount["destination"].as_str().unwrap()).collect();
        let expected =
            ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/a", "/dev/shm", "/a/b/c"];
        assert_eq!(targets, expected);
        assert_eq!(spec["linux"]["rootfsPropagation"], "slave");
        assert_eq!(spec["linux"]["namespaces"], json!([{"type": "mount"}, {"type": "network", "path": "/n"}, {"type": "pid"}]));
        let process = &spec["process"];
        assert!(process.get("noNewPrivileges").is_none() && process.get("oomScoreAdj").is_none() && process.get("rlimits").is_none());
        assert!(spec.get("hostname").is_none());
        let process = super::process(&context).unwrap();
        assert_eq!(process.propagations.len(), 3, "once one mount is shared, every other needs its own setting");
        assert!(process.env.contains(&"HOSTNAME=h".to_string()));
    }

    fn container_spec_of(context: &Context<'_>) -> Value {
        super::container(context)
    }
}
