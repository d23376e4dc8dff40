//! Pure: seccomp profiles to the kernel's filter programs: a binary tree over call numbers, then comparisons of arguments.
//!
//! [`runtime_default`] is our own default: every known call but those that reach beyond the container, some of which come back
//! with the capability they need anyway; calls the table does not know are refused. [`Profile::parse`] reads the files of
//! `Localhost` profiles (the format of OCI tools). [`Profile::compile`] answers the program as bytes.

mod syscalls;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::oci::capability_bit;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action(u32);

impl Action {
    const ALLOW: Action = Action(0x7fff_0000);
    const fn errno(number: u32) -> Action {
        Action(0x0005_0000 | (number & 0xffff))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    index: u32,
    op: Op,
    value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    Ne,
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
    /// Equal to the value within this mask.
    Masked(u64),
}

/// What happens to one call: the first of these whose comparisons all hold.
type Cases = Vec<(Vec<Comparison>, Action)>;

#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    default: Action,
    rules: BTreeMap<u32, Cases>,
}

/// Calls of the default profile that take a capability.
const PRIVILEGED: [(&str, &[&str]); 11] = [
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    (
        "SYS_ADMIN",
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "listmount",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "statmount",
            "syslog",
            "umount2",
            "unshare",
        ],
    ),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_CHROOT", &["chroot"]),
    ("SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("SYS_NICE", &["get_mempolicy", "mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise"]),
    ("SYS_RAWIO", &["ioperm", "iopl"]),
    ("SYS_TIME", &["clock_adjtime", "clock_settime", "settimeofday"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
];

/// Calls nobody gets by the default profile.
const REFUSED: [&str; 30] = [
    "_sysctl",
    "add_key",
    "afs_syscall",
    "create_module",
    "epoll_ctl_old",
    "epoll_wait_old",
    "get_kernel_syms",
    "getpmsg",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lsm_set_self_attr",
    "memfd_secret",
    "nfsservctl",
    "pivot_root",
    "putpmsg",
    "query_module",
    "request_key",
    "security",
    "swapoff",
    "swapon",
    "sysfs",
    "tuxcall",
    "uselib",
    "userfaultfd",
    "ustat",
    "vserver",
];

/// Flags of clone that make namespaces.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
const AF_VSOCK: u64 = 40;

/// The default profile of a process with these capabilities (a bit each).
pub fn runtime_default(capabilities: u64) -> Profile {
    let allow = || vec![(Vec::new(), Action::ALLOW)];
    let held = |name: &str| capability_bit(name).is_some_and(|bit| capabilities & bit != 0);
    let mut rules: BTreeMap<u32, Cases> = BTreeMap::new();
    for (name, number) in syscalls::table() {
        let mut takes = PRIVILEGED.iter().filter(|(_, calls)| calls.contains(&name)).peekable();
        let granted = takes.peek().is_none() || takes.any(|(capability, _)| held(capability));
        let is_granted = granted
            || (name == "bpf" && held("BPF"))
            || (name == "perf_event_open" && held("PERFMON"))
            || (name == "syslog" && held("SYSLOG"));
        let compare = |op, value| Comparison { index: 0, op, value };
        let cases = match name {
            _ if REFUSED.contains(&name) => continue,
            "personality" => PERSONALITIES.iter().map(|p| (vec![compare(Op::Eq, *p)], Action::ALLOW)).collect(),
            "socket" => vec![(vec![compare(Op::Ne, AF_VSOCK)], Action::ALLOW)],
            "clone" if !is_granted => vec![(vec![compare(Op::Masked(CLONE_NAMESPACES), 0)], Action::ALLOW)],
            // Its flags are in memory, where a filter cannot look: programs then fall back to clone.
            "clone3" if !is_granted => vec![(Vec::new(), Action::errno(ENOSYS))],
            _ if is_granted => allow(),
            _ => continue,
        };
        rules.insert(number, cases);
    }
    Profile { default: Action::errno(EPERM), rules }
}

// === profiles from files ===

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<FileRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileRule {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<FileArgument>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileArgument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
struct Filter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
}

impl Filter {
    fn caps(&self) -> &[String] {
        self.caps.as_deref().unwrap_or(&[])
    }
    fn arches(&self) -> &[String] {
        self.arches.as_deref().unwrap_or(&[])
    }
}

const ARCH_NAMES: [&str; 2] = if cfg!(target_arch = "aarch64") { ["arm64", "aarch64"] } else { ["amd64", "x86_64"] };

impl Profile {
    /// Reads a profile file for a process with these capabilities. The error is for people.
    pub fn parse(text: &[u8], capabilities: u64) -> Result<Profile, String> {
        let file: File = serde_json::from_slice(text).map_err(|error| format!("malformed seccomp profile: {error}"))?;
        let mut profile = Profile { default: action(&file.default_action, file.default_errno_ret)?, rules: BTreeMap::new() };
        let numbers: BTreeMap<&str, u32> = syscalls::table().into_iter().collect();
        let held = |name: &String| capability_bit(name).is_some_and(|bit| capabilities & bit != 0);
        let here = |arch: &String| ARCH_NAMES.contains(&arch.as_str());
        for rule in &file.syscalls {
            let included =
                rule.includes.as_ref().is_none_or(|f| f.caps().iter().all(held) && (f.arches().is_empty() || f.arches().iter().any(here)));
            let excluded = rule.excludes.as_ref().is_some_and(|f| f.caps().iter().any(held) || f.arches().iter().any(here));
            if !included || excluded {
                continue;
            }
            let action = action(&rule.action, rule.errno_ret)?;
            let comparisons: Result<Vec<Comparison>, String> = rule.args.iter().flatten().map(comparison).collect();
            let comparisons = comparisons?;
            // A call this kernel or architecture has not, cannot be made either.
            for number in rule.names.iter().chain(&rule.name).filter_map(|name| numbers.get(name.as_str())) {
                profile.rules.entry(*number).or_default().push((comparisons.clone(), action));
            }
        }
        Ok(profile)
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<Action, String> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::ALLOW,
        "SCMP_ACT_ERRNO" => Action::errno(errno.unwrap_or(EPERM)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action(0),
        "SCMP_ACT_KILL_PROCESS" => Action(0x8000_0000),
        "SCMP_ACT_TRAP" => Action(0x0003_0000),
        "SCMP_ACT_TRACE" => Action(0x7ff0_0000 | (errno.unwrap_or(EPERM) & 0xffff)),
        "SCMP_ACT_LOG" => Action(0x7ffc_0000),
        other => return Err(format!("seccomp action {other:?} is not supported")),
    })
}

fn comparison(argument: &FileArgument) -> Result<Comparison, String> {
    let (op, value) = match argument.op.as_str() {
        "SCMP_CMP_NE" => (Op::Ne, argument.value),
        "SCMP_CMP_LT" => (Op::Lt, argument.value),
        "SCMP_CMP_LE" => (Op::Le, argument.value),
        "SCMP_CMP_EQ" => (Op::Eq, argument.value),
        "SCMP_CMP_GE" => (Op::Ge, argument.value),
        "SCMP_CMP_GT" => (Op::Gt, argument.value),
        "SCMP_CMP_MASKED_EQ" => (Op::Masked(argument.value), argument.value_two),
        other => return Err(format!("seccomp comparison {other:?} is not supported")),
    };
    if argument.index > 5 {
        return Err(format!("system calls have no argument {}", argument.index));
    }
    Ok(Comparison { index: argument.index, op, value })
}

// === the program ===

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Instruction {
    code: u16,
    on_true: u8,
    on_false: u8,
    k: u32,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Where `struct seccomp_data` has things.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const AUDIT_ARCH: u32 = if cfg!(target_arch = "aarch64") { 0xc000_00b7 } else { 0xc000_003e };

fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, on_true: 0, on_false: 0, k }
}

fn branch(code: u16, k: u32, on_true: usize, on_false: usize) -> Instruction {
    let near = |distance| u8::try_from(distance).expect("comparisons are short");
    Instruction { code, on_true: near(on_true), on_false: near(on_false), k }
}

impl Profile {
    /// The filter as the kernel reads it. Another architecture's calls, and numbers beyond every known one (among them x32's), do
    /// not exist.
    pub fn compile(&self) -> Vec<u8> {
        let mut program =
            vec![plain(LOAD, ARCH), branch(JEQ, AUDIT_ARCH, 1, 0), plain(RETURN, Action::errno(ENOSYS).0), plain(LOAD, NUMBER)];
        program.extend(tree(&self.ranges()));
        program.iter().flat_map(|i| [&i.code.to_ne_bytes()[..], &[i.on_true, i.on_false], &i.k.to_ne_bytes()].concat()).collect()
    }

    /// From which number on which cases hold.
    fn ranges(&self) -> Vec<(u32, Cases)> {
        let last = syscalls::table().last().map_or(0, |(_, number)| *number);
        let beyond = vec![(Vec::new(), if self.default == Action::ALLOW { self.default } else { Action::errno(ENOSYS) })];
        let mut ranges: Vec<(u32, Cases)> = Vec::new();
        for number in 0..=last + 1 {
            let mut cases = if number > last { beyond.clone() } else { self.rules.get(&number).cloned().unwrap_or_default() };
            // The ones with comparisons are asked first; who is left gets the unconditional one, or the default.
            cases.sort_by_key(|(comparisons, _)| comparisons.is_empty());
            cases.push((Vec::new(), self.default));
            let first = cases.iter().position(|(comparisons, _)| comparisons.is_empty()).expect("the default has none");
            cases.truncate(first + 1);
            if ranges.last().is_none_or(|(_, before)| *before != cases) {
                ranges.push((number, cases));
            }
        }
        ranges
    }
}

fn tree(ranges: &[(u32, Cases)]) -> Vec<Instruction> {
    if let [(_, cases)] = ranges {
        return verdict(cases);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (left, right) = (tree(low), tree(high));
    let mut program = Vec::with_capacity(left.len() + right.len() + 2);
    // Conditional jumps reach 255 instructions only, plain ones everywhere.
    program.push(branch(JGE, high[0].0, 0, 1));
    program.push(plain(JUMP, u32::try_from(left.len()).expect("programs are short")));
    program.extend(left);
    program.extend(right);
    program
}

fn verdict(cases: &Cases) -> Vec<Instruction> {
    let mut program = Vec::new();
    for (comparisons, action) in cases {
        let mut tests = vec![plain(RETURN, action.0)];
        // From the last to the first: each knows how far it is to the next case.
        for comparison in comparisons.iter().rev() {
            let next = tests.len();
            let mut test = compare(comparison, next);
            test.append(&mut tests);
            tests = test;
        }
        program.extend(tests);
    }
    program
}

/// Falls through if the comparison holds, else goes on `next` instructions behind itself.
fn compare(comparison: &Comparison, next: usize) -> Vec<Instruction> {
    let (low, high) = (ARGUMENTS + 8 * comparison.index, ARGUMENTS + 8 * comparison.index + 4);
    let halves = |value: u64| (value as u32, (value >> 32) as u32);
    let (value_low, value_high) = halves(comparison.value);
    match comparison.op {
        Op::Eq => vec![plain(LOAD, high), branch(JEQ, value_high, 0, next + 2), plain(LOAD, low), branch(JEQ, value_low, 0, next)],
        Op::Ne => vec![plain(LOAD, high), branch(JEQ, value_high, 0, 2), plain(LOAD, low), branch(JEQ, value_low, next, 0)],
        Op::Masked(mask) => {
            let (mask_low, mask_high) = halves(mask);
            vec![
                plain(LOAD, high),
                plain(AND, mask_high),
                branch(JEQ, value_high, 0, next + 3),
                plain(LOAD, low),
                plain(AND, mask_low),
                branch(JEQ, value_low, 0, next),
            ]
        }
        // A larger or smaller upper half decides; equal ones leave it to the lower half.
        Op::Gt | Op::Ge => {
            let code = if comparison.op == Op::Gt { JGT } else { JGE };
            vec![
                plain(LOAD, high),
                branch(JGT, value_high, 3, 0),
                branch(JEQ, value_high, 0, next + 2),
                plain(LOAD, low),
                branch(code, value_low, 0, next),
            ]
        }
        Op::Lt | Op::Le => {
            let code = if comparison.op == Op::Lt { JGE } else { JGT };
            vec![
                plain(LOAD, high),
                branch(JGT, value_high, next + 3, 0),
                branch(JEQ, value_high, 0, 2),
                plain(LOAD, low),
                branch(code, value_low, next, 0),
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with a program.
    fn run(program: &[u8], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [number.to_ne_bytes(), arch.to_ne_bytes(), [0; 4], [0; 4]].concat();
        data.extend(arguments.iter().flat_map(|a| a.to_ne_bytes()));
        let word = |at: usize| u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
        let (mut at, mut a) = (0, 0);
        loop {
            let i = &program[at * 8..at * 8 + 8];
            let (code, k) = (u16::from_ne_bytes([i[0], i[1]]), u32::from_ne_bytes(i[4..].try_into().unwrap()));
            let jump = |holds: bool| usize::from(if holds { i[2] } else { i[3] });
            at += 1;
            match code {
                LOAD => a = word(k as usize),
                AND => a &= k,
                JUMP => at += k as usize,
                JEQ => at += jump(a == k),
                JGT => at += jump(a > k),
                JGE => at += jump(a >= k),
                RETURN => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn number(name: &str) -> u32 {
        syscalls::table().into_iter().find(|(n, _)| *n == name).unwrap().1
    }

    fn verdicts(profile: &Profile) -> impl Fn(&str, u64) -> u32 + use<> {
        let program = profile.compile();
        assert_eq!(program.len() % 8, 0);
        assert!(program.len() / 8 <= 4096, "the kernel takes no more");
        move |name, first| run(&program, AUDIT_ARCH, number(name), [first, 0, 0, 0, 0, 0])
    }

    const ALLOW: u32 = 0x7fff_0000;
    const NO: u32 = 0x0005_0001;
    const NONE: u32 = 0x0005_0026;

    #[test]
    fn the_default_profile() {
        let ask = verdicts(&runtime_default(0));
        for (name, argument, expected) in [
            ("read", 0, ALLOW),
            ("execve", 0, ALLOW),
            ("capset", 0, ALLOW),
            ("setresuid", 0, ALLOW),
            ("mount", 0, NO),
            ("unshare", 0, NO),
            ("keyctl", 0, NO),
            ("io_uring_setup", 0, NO),
            ("clone", 17, ALLOW),
            ("clone", 0x1000_0000, NO),
            ("clone3", 0, NONE),
            ("personality", 0xffff_ffff, ALLOW),
            ("personality", 0x1_0000_0000, NO),
            ("personality", 4, NO),
            ("socket", 2, ALLOW),
            ("socket", 40, NO),
            ("reboot", 0, NO),
        ] {
            assert_eq!(ask(name, argument), expected, "{name} {argument}");
        }
        let admin = verdicts(&runtime_default(capability_bit("SYS_ADMIN").unwrap() | capability_bit("SYS_BOOT").unwrap()));
        assert_eq!([admin("mount", 0), admin("clone", 0x1000_0000), admin("clone3", 0), admin("reboot", 0)], [ALLOW; 4]);
        assert_eq!(admin("init_module", 0), NO);
        let program = runtime_default(0).compile();
        assert_eq!(run(&program, 3, 0, [0; 6]), NONE, "another architecture");
        assert_eq!(run(&program, AUDIT_ARCH, 0x4000_0000, [0; 6]), NONE, "x32");
        assert_eq!(run(&program, AUDIT_ARCH, 9999, [0; 6]), NONE, "a call of the future");
    }

    #[test]
    fn comparisons_are_of_64_bits() {
        let big = 0x1_0000_0005u64;
        for (op, value, two, yes, no) in [
            ("EQ", big, 0, big, 5),
            ("NE", big, 0, 5, big),
            ("LT", big, 0, big - 1, big),
            ("LE", big, 0, big, big + 1),
            ("GE", big, 0, 0x2_0000_0000, 0xffff_ffff),
            ("GT", big, 0, big + 1, big),
            ("MASKED_EQ", 0xf_0000_000f, big, big | 0xf0, 5),
        ] {
            let text = format!(
                r#"{{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13, "syscalls": [{{"names": ["read", "nosuch"], "action": "SCMP_ACT_ALLOW",
                "args": [{{"index": 0, "value": {value}, "valueTwo": {two}, "op": "SCMP_CMP_{op}"}}]}}]}}"#
            );
            let ask = verdicts(&Profile::parse(text.as_bytes(), 0).unwrap());
            assert_eq!((ask("read", yes), ask("read", no), ask("write", 0)), (ALLOW, 0x0005_000d, 0x0005_000d), "{op}");
        }
    }

    #[test]
    fn a_file_follows_capabilities_and_says_what_it_cannot() {
        let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["chmod"], "action": "SCMP_ACT_KILL_PROCESS", "includes": {"arches": ["s390x"]}}]}"#;
        let ask = |caps: u64| verdicts(&Profile::parse(text.as_bytes(), caps).unwrap());
        assert_eq!((ask(0)("mkdir", 0), ask(u64::MAX)("mkdir", 0), ask(0)("chmod", 0)), (NO, ALLOW, ALLOW));
        let program = Profile::parse(text.as_bytes(), 0).unwrap().compile();
        assert_eq!(run(&program, AUDIT_ARCH, 9999, [0; 6]), ALLOW, "what allows by default allows the unknown too");
        assert!(Profile::parse(br#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, 0).unwrap_err().contains("SCMP_ACT_NOTIFY"));
        assert!(Profile::parse(b"{}", 0).unwrap_err().contains("malformed"));
    }
}
