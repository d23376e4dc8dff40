//! The last steps before a user's program runs, the same for a container's first process and for later ones.
//!
//! libcontainer brings a process into its namespaces, cgroup and root as root with everything we have; from there on it is ours:
//! signals back to their defaults, identity, capabilities, exec. libcontainer's own executor is not used: it leaves signals as the caller
//! had them, and its way of joining a container runs without what is set here (notes/runtime.md 4.1).
//! What goes wrong is written to a pipe that a successful exec closes: `<code> <message>`.
#![allow(unsafe_code)] // signals, identity and capabilities have no safe wrappers

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::mount::{MsFlags, mount};
use oci_spec::runtime::Spec;

use crate::runtime::Propagation;
use crate::runtime::oci::Process;

#[derive(Clone)]
pub(super) struct OwnExecutor {
    pub process: Process,
    /// Where a failed exec is told; open in the waiting init until then.
    pub errors: RawFd,
}

impl Executor for OwnExecutor {
    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        run(&self.process, self.errors)
    }

    /// Runs in the container's root, still as root: what a create error should tell is found here.
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| ExecutorValidationError::ArgValidationError(format!("{what}: {error}"));
        for (target, propagation) in &self.process.propagations {
            let flag = match propagation {
                Propagation::Private => MsFlags::MS_PRIVATE,
                Propagation::HostToContainer => MsFlags::MS_SLAVE,
                Propagation::Bidirectional => MsFlags::MS_SHARED,
            };
            mount(None::<&str>, target.as_str(), None::<&str>, flag | MsFlags::MS_REC, None::<&str>)
                .map_err(|error| failed(&format!("set propagation of {target}"), &error))?;
        }
        make_cwd(&self.process.cwd).map_err(|error| failed(&format!("make working directory {}", self.process.cwd), &error))
    }

    /// The environment goes with the exec; libcontainer's would change the process's own.
    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

fn make_cwd(cwd: &str) -> io::Result<()> {
    if Path::new(cwd).is_dir() { Ok(()) } else { std::fs::create_dir_all(cwd) }
}

/// Becomes the process or tells why not, and exits.
pub(super) fn run(process: &Process, errors: RawFd) -> ! {
    let (code, message) = match become_process(process) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let line = format!("{code} {message}");
    // SAFETY: writing our own bytes to a descriptor that is open or gives an error.
    unsafe { libc::write(errors, line.as_ptr().cast(), line.len()) };
    // SAFETY: no destructors or exit handlers may run in a process cloned from the shim.
    unsafe { libc::_exit(code) }
}

type Failure = (i32, String);

fn become_process(process: &Process) -> Result<std::convert::Infallible, Failure> {
    reset_signals();
    let step = |what: &'static str| move |error: io::Error| (128, format!("{what}: {error}"));
    change_directory(&process.cwd)
        .map_err(|error| (128, format!("chdir to cwd ({:?}) set in config.json failed: {error}", process.cwd)))?;
    if process.no_new_privileges {
        prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(step("set no_new_privs"))?;
    }
    // While we still may: later it would take no_new_privs. The default profile allows what follows.
    let own_profile_last = process.no_new_privileges;
    if !own_profile_last {
        confine(&process.seccomp)?;
    }
    for capability in 0..64 {
        if process.capabilities & (1 << capability) == 0 && prctl(libc::PR_CAPBSET_READ, capability).is_ok_and(|held| held == 1) {
            prctl(libc::PR_CAPBSET_DROP, capability).map_err(step("drop bounding capability"))?;
        }
    }
    prctl(libc::PR_SET_KEEPCAPS, 1).map_err(step("keep capabilities"))?;
    // SAFETY: plain system calls on our own process; the group list's length is its own.
    let identity = unsafe {
        check(libc::setgroups(process.groups.len(), process.groups.as_ptr()))
            .and_then(|()| check(libc::setresgid(process.gid, process.gid, process.gid)))
            .and_then(|()| check(libc::setresuid(process.uid, process.uid, process.uid)))
    };
    identity.map_err(step("set user and groups"))?;
    set_capabilities(process.capabilities).map_err(step("set capabilities"))?;
    let program = find_program(process)?;
    let text = |words: &[String]| words.iter().map(|word| CString::new(word.as_str())).collect::<Result<Vec<_>, _>>();
    let (Ok(arguments), Ok(environment), Ok(path)) = (text(&process.args), text(&process.env), CString::new(program.as_str())) else {
        return Err((128, "command or environment holds a NUL byte".to_string()));
    };
    if own_profile_last {
        confine(&process.seccomp)?;
    }
    let Err(errno) = nix::unistd::execve(&path, &arguments, &environment);
    let error = io::Error::from(errno);
    let code = if errno == nix::errno::Errno::ENOENT { 127 } else { 126 };
    Err((code, format!("exec {program}: {}", plain(&error))))
}

/// Loads the seccomp filter, if there is one.
fn confine(program: &str) -> Result<(), Failure> {
    if program.is_empty() {
        return Ok(());
    }
    let bytes =
        base64::Engine::decode(&base64::prelude::BASE64_STANDARD, program).map_err(|error| (128, format!("seccomp filter: {error}")))?;
    // Each instruction is eight bytes: `u16, u8, u8, u32` in our own byte order.
    let instruction = |i: &[u8]| libc::sock_filter {
        code: u16::from_ne_bytes([i[0], i[1]]),
        jt: i[2],
        jf: i[3],
        k: u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
    };
    let mut filter: Vec<libc::sock_filter> = bytes.chunks_exact(8).map(instruction).collect();
    let length = libc::c_ushort::try_from(filter.len()).map_err(|_| (128, "seccomp filter: too long".to_string()))?;
    let program = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
    const SET_MODE_FILTER: libc::c_long = 1;
    // SAFETY: the kernel copies a program of the length given, which is the vector's.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0, &raw const program) };
    check(result as i32).map_err(|error| (128, format!("load seccomp filter: {error}")))
}

/// What the shim ignores or blocks must not reach a user's program: it would never hear SIGPIPE.
fn reset_signals() {
    // All zero is the default action, without flags and mask. Not through the C library, which keeps two numbers to itself.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: reads one kernel `sigaction`, which this is; SIGKILL and SIGSTOP just fail.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), 8) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

fn change_directory(cwd: &str) -> io::Result<()> {
    make_cwd(cwd)?;
    std::env::set_current_dir(cwd)
}

fn prctl(option: i32, argument: u64) -> io::Result<i32> {
    // SAFETY: the options used here take one number and touch our own process only.
    let result = unsafe { libc::prctl(option, argument, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set_capabilities(bits: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let half = |bits: u64| Data { effective: bits as u32, permitted: bits as u32, inheritable: 0 };
    let data = [half(bits & 0xffff_ffff), half(bits >> 32)];
    // SAFETY: version 3 of the interface reads exactly this header and two of these.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    check(result as i32)
}

/// As a shell finds it, in the process's own PATH, with the texts people search for.
fn find_program(process: &Process) -> Result<String, Failure> {
    let name = process.args.first().map_or("", String::as_str);
    if name.contains('/') {
        return match examine(Path::new(name)) {
            Ok(()) => Ok(name.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err((127, format!("exec: {name:?}: stat {name}: no such file or directory")))
            }
            Err(error) => Err((126, format!("exec: {name:?}: {}", plain(&error)))),
        };
    }
    let path = process.env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("");
    let mut denied = None;
    for directory in path.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match examine(&candidate) {
            Ok(()) => return Ok(candidate.to_string_lossy().into_owned()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => denied = Some(error),
            Err(_) => {}
        }
    }
    match denied.filter(|_| !name.is_empty()) {
        Some(error) => Err((126, format!("exec: {name:?}: {}", plain(&error)))),
        None => Err((127, format!("exec: {name:?}: executable file not found in $PATH"))),
    }
}

fn examine(path: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(())
}

/// An error's text as C and Go programs print it: without Rust's number behind it, in lower case.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
