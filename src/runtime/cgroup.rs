//! Control groups, version 1 (split hierarchies, also hybrid) and version 2, through plain files.
//!
//! One [`Cgroups`] knows where the controllers are mounted and below which root this instance keeps its groups; a group is named by
//! its path (`/coracle-x/burstable/pod1/c1`), the same in every hierarchy. Limits of controllers that are not there are skipped.
//! Nothing here trusts that a group is empty: [`Cgroups::remove`] kills first and removes bottom-up. Everything blocks.
#![allow(unsafe_code)] // bpf(2): version 2 has no file for device rules

use std::ffi::CStr;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Resources, Stats};

#[derive(Clone, Debug, PartialEq)]
pub enum Layout {
    /// Controllers and where their hierarchies are mounted; co-mounted ones share a path.
    V1(Vec<(String, PathBuf)>),
    V2(PathBuf),
}

#[derive(Clone, Debug)]
pub struct Cgroups {
    layout: Layout,
    root: String,
}

/// What a container may do with devices; anything not listed is refused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceRule {
    /// `c`, `b`, or `a` for both.
    pub kind: char,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: &'static str,
}

const fn rule(kind: char, major: Option<u32>, minor: Option<u32>, access: &'static str) -> DeviceRule {
    DeviceRule { kind, major, minor, access }
}

/// What every container gets: making nodes (useless without a rule to open them), the harmless character devices, terminals.
pub const DEFAULT_DEVICES: &[DeviceRule] = &[
    rule('c', None, None, "m"),
    rule('b', None, None, "m"),
    rule('c', Some(1), Some(3), "rwm"),
    rule('c', Some(1), Some(5), "rwm"),
    rule('c', Some(1), Some(7), "rwm"),
    rule('c', Some(1), Some(8), "rwm"),
    rule('c', Some(1), Some(9), "rwm"),
    rule('c', Some(5), Some(0), "rwm"),
    rule('c', Some(5), Some(1), "rwm"),
    rule('c', Some(5), Some(2), "rwm"),
    rule('c', Some(136), None, "rwm"),
];

pub const ALL_DEVICES: &[DeviceRule] = &[rule('a', None, None, "rwm")];

/// As a memory limit: none.
const UNLIMITED: u64 = u64::MAX;

const CONTROLLERS: &[&str] =
    &["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "net_cls", "net_prio", "perf_event"];

/// Which layout a `/proc/<pid>/mountinfo` describes. `None`: no controllers are mounted.
pub fn layout(mountinfo: &str) -> Option<Layout> {
    let mut controllers = Vec::new();
    for line in mountinfo.lines() {
        let (left, right) = line.split_once(" - ")?;
        let mount_point = left.split(' ').nth(4)?;
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1).unwrap_or(""));
        if kind == "cgroup2" && mount_point == "/sys/fs/cgroup" {
            return Some(Layout::V2(PathBuf::from(mount_point)));
        }
        if kind == "cgroup" {
            let known = options.split(',').filter(|option| CONTROLLERS.contains(option));
            controllers.extend(known.map(|name| (name.to_string(), PathBuf::from(mount_point))));
        }
    }
    (!controllers.is_empty()).then_some(Layout::V1(controllers))
}

impl Cgroups {
    /// `root` is this instance's own group, e.g. `/coracle-1a2b3c4d`.
    pub fn detect(root: &str) -> io::Result<Cgroups> {
        let mountinfo = fs::read_to_string("/proc/thread-self/mountinfo")?;
        let layout = layout(&mountinfo).ok_or_else(|| io::Error::other("no cgroup controllers are mounted"))?;
        Ok(Cgroups { layout, root: root.to_string() })
    }

    #[cfg(test)]
    fn with_layout(layout: Layout, root: &str) -> Cgroups {
        Cgroups { layout, root: root.to_string() }
    }

    pub fn root(&self) -> &str {
        &self.root
    }

    pub fn is_v2(&self) -> bool {
        matches!(self.layout, Layout::V2(_))
    }

    /// Every directory the group has, one per hierarchy.
    fn dirs(&self, group: &str) -> Vec<PathBuf> {
        let relative = group.trim_start_matches('/');
        match &self.layout {
            Layout::V2(mount) => vec![mount.join(relative)],
            Layout::V1(controllers) => {
                let mut dirs: Vec<PathBuf> = controllers.iter().map(|(_, mount)| mount.join(relative)).collect();
                dirs.dedup();
                dirs
            }
        }
    }

    /// Version 1: the group's directories and what a container's `/sys/fs/cgroup` calls them. Empty on version 2.
    pub fn hierarchies(&self, group: &str) -> Vec<(String, PathBuf)> {
        let Layout::V1(controllers) = &self.layout else { return Vec::new() };
        let mut found: Vec<(String, PathBuf)> = Vec::new();
        for (_, mount) in controllers {
            let name = mount.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !found.iter().any(|(known, _)| *known == name) {
                found.push((name, mount.join(group.trim_start_matches('/'))));
            }
        }
        found
    }

    /// The directory that has a controller's files.
    fn dir(&self, group: &str, controller: &str) -> Option<PathBuf> {
        let relative = group.trim_start_matches('/');
        match &self.layout {
            Layout::V2(mount) => Some(mount.join(relative)),
            Layout::V1(controllers) => {
                let (_, mount) = controllers.iter().find(|(name, _)| name == controller)?;
                Some(mount.join(relative))
            }
        }
    }

    /// The directory whose `cgroup.procs` counts: any hierarchy of version 1 will do.
    fn procs_dir(&self, group: &str) -> PathBuf {
        self.dir(group, "pids").unwrap_or_else(|| self.dirs(group).swap_remove(0))
    }

    /// Makes the group and what is missing above it, with the controllers passed down.
    pub fn create(&self, group: &str) -> io::Result<()> {
        let parts: Vec<&str> = group.split('/').filter(|part| !part.is_empty()).collect();
        for depth in 1..=parts.len() {
            let group = parts[..depth].join("/");
            for dir in self.dirs(&group) {
                match fs::create_dir(&dir) {
                    Ok(()) => self.inherit(&dir)?,
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(io::Error::new(error.kind(), format!("make {}: {error}", dir.display()))),
                }
            }
        }
        Ok(())
    }

    fn inherit(&self, dir: &Path) -> io::Result<()> {
        let parent = dir.parent().unwrap_or(dir);
        match &self.layout {
            Layout::V2(_) => {
                let available = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
                for controller in available.split_whitespace() {
                    // A controller the parent cannot pass down (threaded, busy) is one we do without.
                    let _ = write(&parent.join("cgroup.subtree_control"), &format!("+{controller}"));
                }
            }
            Layout::V1(_) => {
                // A new cpuset is empty and takes no process until it is filled.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    if let Ok(own) = fs::read_to_string(dir.join(file))
                        && own.trim().is_empty()
                    {
                        write(&dir.join(file), fs::read_to_string(parent.join(file))?.trim())?;
                    }
                }
            }
        }
        Ok(())
    }

    pub fn set(&self, group: &str, resources: &Resources) -> io::Result<()> {
        match &self.layout {
            Layout::V1(_) => self.set_v1(group, resources),
            Layout::V2(_) => self.set_v2(group, resources),
        }
    }

    /// From one set of limits to another: what was limited and is no longer is set free.
    pub fn change(&self, group: &str, from: &Resources, to: &Resources) -> io::Result<()> {
        let mut set = to.clone();
        if to.memory_limit_bytes.is_none() && from.memory_limit_bytes.is_some() {
            set.memory_limit_bytes = Some(UNLIMITED);
        }
        if to.cpu_quota_us.is_none() && from.cpu_quota_us.is_some() {
            set.cpu_quota_us = Some(-1);
        }
        self.set(group, &set)
    }

    fn set_v1(&self, group: &str, resources: &Resources) -> io::Result<()> {
        let put = |controller: &str, file: &str, value: String| match self.dir(group, controller) {
            Some(dir) if dir.join(file).exists() => write(&dir.join(file), &value),
            _ => Ok(()),
        };
        if let Some(limit) = resources.memory_limit_bytes {
            let limit = if limit == UNLIMITED { "-1".to_string() } else { limit.to_string() };
            // memory+swap may never be below memory: which goes first depends on the direction.
            if put("memory", "memory.limit_in_bytes", limit.clone()).is_err() {
                put("memory", "memory.memsw.limit_in_bytes", limit.clone())?;
                put("memory", "memory.limit_in_bytes", limit)?;
            } else {
                put("memory", "memory.memsw.limit_in_bytes", limit)?;
            }
        }
        if let Some(shares) = resources.cpu_shares {
            put("cpu", "cpu.shares", shares.to_string())?;
        }
        if let Some(period) = resources.cpu_period_us {
            put("cpu", "cpu.cfs_period_us", period.to_string())?;
        }
        if let Some(quota) = resources.cpu_quota_us {
            put("cpu", "cpu.cfs_quota_us", quota.to_string())?;
        }
        if let Some(cpus) = resources.cpuset_cpus.as_ref().filter(|cpus| !cpus.is_empty()) {
            put("cpuset", "cpuset.cpus", cpus.clone())?;
        }
        if let Some(mems) = resources.cpuset_mems.as_ref().filter(|mems| !mems.is_empty()) {
            put("cpuset", "cpuset.mems", mems.clone())?;
        }
        if let Some(limit) = resources.pids_limit {
            put("pids", "pids.max", pids_max(limit))?;
        }
        Ok(())
    }

    fn set_v2(&self, group: &str, resources: &Resources) -> io::Result<()> {
        let dir = self.dirs(group).swap_remove(0);
        let put = |file: &str, value: String| match dir.join(file) {
            path if path.exists() => write(&path, &value),
            _ => Ok(()),
        };
        if let Some(limit) = resources.memory_limit_bytes {
            let is_free = limit == UNLIMITED;
            put("memory.max", if is_free { "max".to_string() } else { limit.to_string() })?;
            put("memory.swap.max", if is_free { "max".to_string() } else { "0".to_string() })?;
        }
        if let Some(shares) = resources.cpu_shares {
            put("cpu.weight", cpu_weight(shares).to_string())?;
        }
        if let Some(quota) = resources.cpu_quota_us {
            let period = resources.cpu_period_us.unwrap_or(100_000);
            let quota = if quota > 0 { quota.to_string() } else { "max".to_string() };
            put("cpu.max", format!("{quota} {period}"))?;
        }
        if let Some(cpus) = resources.cpuset_cpus.as_ref().filter(|cpus| !cpus.is_empty()) {
            put("cpuset.cpus", cpus.clone())?;
        }
        if let Some(mems) = resources.cpuset_mems.as_ref().filter(|mems| !mems.is_empty()) {
            put("cpuset.mems", mems.clone())?;
        }
        if let Some(limit) = resources.pids_limit {
            put("pids.max", pids_max(limit))?;
        }
        Ok(())
    }

    /// Version 2: an out-of-memory kill takes the whole group, not one process of it.
    pub fn kill_as_one(&self, group: &str) {
        if self.is_v2() {
            let _ = write(&self.dirs(group)[0].join("memory.oom.group"), "1");
        }
    }

    pub fn set_devices(&self, group: &str, rules: &[DeviceRule]) -> io::Result<()> {
        if let Layout::V2(_) = &self.layout {
            return attach_device_program(&self.dirs(group)[0], rules);
        }
        let Some(dir) = self.dir(group, "devices") else {
            return Err(io::Error::other("the devices controller is not mounted"));
        };
        write(&dir.join("devices.deny"), "a")?;
        for rule in rules {
            let number = |part: Option<u32>| part.map_or("*".to_string(), |part| part.to_string());
            let line = match rule.kind {
                'a' => "a".to_string(),
                kind => format!("{kind} {}:{} {}", number(rule.major), number(rule.minor), rule.access),
            };
            write(&dir.join("devices.allow"), &line)?;
        }
        Ok(())
    }

    /// Moves a process into the group in every hierarchy.
    pub fn join(&self, group: &str, pid: i32) -> io::Result<()> {
        for dir in self.dirs(group) {
            write(&dir.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// The processes of the group and of every group below it.
    pub fn pids(&self, group: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        let mut pending = vec![self.procs_dir(group)];
        while let Some(dir) = pending.pop() {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
            pending.extend(subdirs(&dir));
        }
        pids
    }

    /// SIGKILL to everything in the group. Does not wait for the processes to be gone.
    pub fn kill(&self, group: &str) {
        if let Layout::V2(_) = &self.layout
            && write(&self.dirs(group)[0].join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        // Frozen processes cannot fork away from under us; they die when they are thawed.
        let freezer = self.dir(group, "freezer").map(|dir| dir.join("freezer.state")).filter(|path| path.exists());
        if let Some(freezer) = &freezer {
            let _ = write(freezer, "FROZEN");
        }
        for pid in self.pids(group) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        if let Some(freezer) = &freezer {
            let _ = write(freezer, "THAWED");
        }
    }

    /// Kills what is in the group and removes it with all below it, in every hierarchy. Missing is fine.
    pub fn remove(&self, group: &str) -> io::Result<()> {
        if self.dirs(group).iter().all(|dir| !dir.exists()) {
            return Ok(());
        }
        let mut last = Ok(());
        for attempt in 0..200 {
            if !self.pids(group).is_empty() {
                self.kill(group);
            }
            last = self.dirs(group).iter().try_for_each(|dir| remove_dirs(dir));
            if last.is_ok() {
                return Ok(());
            }
            // A killed process leaves its group when it has been reaped or its exit has finished: there is nothing to wait on.
            std::thread::sleep(Duration::from_millis(if attempt < 20 { 2 } else { 20 }));
        }
        last
    }

    /// How many processes of the group the kernel has killed for memory.
    pub fn oom_kills(&self, group: &str) -> u64 {
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        let Some(dir) = self.dir(group, "memory") else { return 0 };
        field(&fs::read_to_string(dir.join(file)).unwrap_or_default(), "oom_kill")
    }

    pub fn stats(&self, group: &str) -> Stats {
        let read = |controller: &str, file: &str| {
            let path = self.dir(group, controller).map(|dir| dir.join(file));
            path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default()
        };
        let number = |controller: &str, file: &str| read(controller, file).trim().parse::<u64>().unwrap_or(0);
        let memory = read("memory", "memory.stat");
        let (cpu_nanoseconds, usage, inactive, rss) = match &self.layout {
            Layout::V1(_) => (
                number("cpuacct", "cpuacct.usage"),
                number("memory", "memory.usage_in_bytes"),
                field(&memory, "total_inactive_file"),
                field(&memory, "total_rss"),
            ),
            Layout::V2(_) => (
                field(&read("cpu", "cpu.stat"), "usage_usec") * 1000,
                number("memory", "memory.current"),
                field(&memory, "inactive_file"),
                field(&memory, "anon"),
            ),
        };
        Stats {
            cpu_nanoseconds,
            memory_usage_bytes: usage,
            memory_working_set_bytes: usage.saturating_sub(inactive),
            memory_rss_bytes: rss,
            processes: number("pids", "pids.current"),
            writable: Default::default(),
        }
    }
}

fn pids_max(limit: i64) -> String {
    if limit > 0 { limit.to_string() } else { "max".to_string() }
}

/// Version 1's shares (2..262144) on version 2's scale (1..10000).
fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// The number after a word in `word number` lines.
fn field(text: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("write {value:?} to {}: {error}", path.display()));
    fs::OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(value.as_bytes())).map_err(named)
}

fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn remove_dirs(dir: &Path) -> io::Result<()> {
    for below in subdirs(dir) {
        remove_dirs(&below)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("remove {}: {error}", dir.display())))
        }
        _ => Ok(()),
    }
}

/// One instruction as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

/// Allows an access if one rule covers all of it, else refuses. Registers: 2 kind, 3 access, 4 major, 5 minor, 6 scratch.
fn device_program(rules: &[DeviceRule]) -> Vec<Instruction> {
    const LOAD: u8 = 0x61;
    const AND: u8 = 0x54;
    const SHIFT: u8 = 0x74;
    const COPY: u8 = 0xbc;
    const SET: u8 = 0xb4;
    const UNLESS: u8 = 0x55;
    const UNLESS_SAME: u8 = 0x5d;
    const EXIT: u8 = 0x95;
    let op = |code: u8, to: u8, from: u8, offset: i16, value: i32| Instruction { code, registers: to | from << 4, offset, value };
    let mut program = vec![
        op(LOAD, 2, 1, 0, 0),
        op(COPY, 3, 2, 0, 0),
        op(AND, 2, 0, 0, 0xffff),
        op(SHIFT, 3, 0, 0, 16),
        op(LOAD, 4, 1, 4, 0),
        op(LOAD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let bits = |letter: char| match letter {
            'm' => 1,
            'r' => 2,
            _ => 4,
        };
        let access = rule.access.chars().map(bits).sum::<i32>();
        // Each test jumps over the rest of its block if it fails; the distances are filled in below.
        let mut block = Vec::new();
        match rule.kind {
            'b' => block.push(op(UNLESS, 2, 0, 0, 1)),
            'c' => block.push(op(UNLESS, 2, 0, 0, 2)),
            _ => {}
        }
        if access != 7 {
            block.push(op(COPY, 6, 3, 0, 0));
            block.push(op(AND, 6, 0, 0, access));
            block.push(op(UNLESS_SAME, 6, 3, 0, 0));
        }
        block.extend(rule.major.map(|major| op(UNLESS, 4, 0, 0, major as i32)));
        block.extend(rule.minor.map(|minor| op(UNLESS, 5, 0, 0, minor as i32)));
        block.push(op(SET, 0, 0, 0, 1));
        block.push(op(EXIT, 0, 0, 0, 0));
        let length = block.len();
        for (at, instruction) in block.iter_mut().enumerate() {
            if matches!(instruction.code, UNLESS | UNLESS_SAME) {
                instruction.offset = (length - at - 1) as i16;
            }
        }
        program.extend(block);
    }
    program.extend([op(SET, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    program
}

fn attach_device_program(dir: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    const PROG_LOAD: libc::c_long = 5;
    const PROG_ATTACH: libc::c_long = 8;
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u64; 2],
        version: u32,
        flags: u32,
        rest: [u64; 8],
    }
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
        rest: [u64; 12],
    }
    let license: &CStr = c"Apache-2.0";
    let program = device_program(rules);
    let load = Load {
        kind: 15,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log: [0; 2],
        version: 0,
        flags: 0,
        rest: [0; 8],
    };
    // SAFETY: the structure is the head of the kernel's `bpf_attr`, zero beyond it; its pointers live until the call returns.
    let loaded = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    if loaded < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    let loaded = unsafe { OwnedFd::from_raw_fd(loaded as i32) };
    let target = fs::File::open(dir)?;
    let attach = Attach { target: target.as_raw_fd() as u32, program: loaded.as_raw_fd() as u32, kind: 6, flags: 0, rest: [0; 12] };
    // SAFETY: as above; both descriptors are open.
    let attached = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of::<Attach>()) };
    if attached < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_told_apart() {
        let split = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let path = PathBuf::from("/sys/fs/cgroup/cpu,cpuacct");
        let expected = vec![("cpu".to_string(), path.clone()), ("cpuacct".to_string(), path)];
        assert_eq!(layout(split), Some(Layout::V1(expected)));
        let unified = "31 23 0:28 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(layout(unified), Some(Layout::V2(PathBuf::from("/sys/fs/cgroup"))));
        assert_eq!(layout("1 1 0:1 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn version_2_writes_what_its_controllers_offer() {
        let root = std::env::temp_dir().join(format!("coracle-cgroup-{}", std::process::id()));
        let group = root.join("r/pod");
        fs::create_dir_all(&group).unwrap();
        for file in ["memory.max", "cpu.weight", "cpu.max"] {
            fs::write(group.join(file), "").unwrap();
        }
        let cgroups = Cgroups::with_layout(Layout::V2(root.clone()), "/r");
        let resources = Resources {
            memory_limit_bytes: Some(1 << 20),
            cpu_shares: Some(1024),
            cpu_quota_us: Some(-1),
            pids_limit: Some(7),
            ..Resources::default()
        };
        cgroups.set("/r/pod", &resources).unwrap();
        let read = |file: &str| fs::read_to_string(group.join(file)).unwrap();
        assert_eq!((read("memory.max"), read("cpu.weight"), read("cpu.max")), ("1048576".into(), "39".into(), "max 100000".into()));
        assert!(!group.join("pids.max").exists(), "a controller that is not there is skipped");
        fs::write(group.join("memory.events"), "oom 3\noom_kill 2\n").unwrap();
        assert_eq!(cgroups.oom_kills("/r/pod"), 2);
        fs::remove_dir_all(&root).unwrap();
    }

    /// What the program answers, by a reading of it independent of how it was written.
    fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> u32 {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u32; 16];
        let mut at = 0;
        loop {
            let Instruction { code, registers: both, offset, value } = program[at];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            at += 1;
            match code {
                0x61 => registers[to] = context[offset as usize / 4],
                0x54 => registers[to] &= value as u32,
                0x74 => registers[to] >>= value,
                0xbc => registers[to] = registers[from],
                0xb4 => registers[to] = value as u32,
                0x55 if registers[to] != value as u32 => at += offset as usize,
                0x5d if registers[to] != registers[from] => at += offset as usize,
                0x55 | 0x5d => {}
                0x95 => return registers[0],
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn device_rules_allow_what_they_list_and_nothing_else() {
        let program = device_program(DEFAULT_DEVICES);
        assert_eq!(run(&program, 2, 2 | 4, 1, 3), 1, "read and write /dev/null");
        assert_eq!(run(&program, 2, 1, 10, 229), 1, "make any node");
        assert_eq!(run(&program, 2, 2, 10, 229), 0, "read /dev/fuse");
        assert_eq!(run(&program, 1, 2, 8, 0), 0, "read a disk");
        assert_eq!(run(&program, 2, 4, 136, 42), 1, "write a terminal");
        assert_eq!(run(&device_program(ALL_DEVICES), 1, 2, 8, 0), 1);
    }
}
