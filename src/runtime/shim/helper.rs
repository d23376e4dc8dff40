//! The short-lived forks of the shim in which containers are made and joined.
//!
//! libcontainer changes directories, is undumpable, allocates and clones: in a fork of the shim all of that is gone ten milliseconds
//! later, and the processes it leaves are the shim's own children (`CLONE_PARENT`). A helper answers with one frame on its socket.
#![allow(unsafe_code)] // fork, clone, setns and terminal ioctls

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{ForkResult, Pid, fork, pipe2};

use super::executor::{OwnExecutor, run};
use super::protocol::{Failure, FailureKind, Reply, encode};
use super::socket;
use crate::runtime::cgroup::Cgroups;
use crate::runtime::oci::Process;

/// A helper under way.
pub(super) struct Helper {
    pub pid: Pid,
    pub socket: OwnedFd,
}

type Outcome = Result<(i32, Option<OwnedFd>), Failure>;

/// Forks; the child runs `work` and answers, the parent gets where the answer will come.
fn spawn(work: impl FnOnce() -> Outcome, success: fn(i32) -> Reply) -> io::Result<Helper> {
    let (ours, theirs) = socket::pair()?;
    // SAFETY: the shim has one thread, so the child may do whatever it could.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Helper { pid: child, socket: ours }),
        ForkResult::Child => {
            drop(ours);
            let causes = keep_causes();
            let (reply, master) = match work() {
                Ok((pid, master)) => (success(pid), master),
                Err(mut failure) => {
                    failure.message.push_str(&first_cause(causes));
                    (Reply::Failed(failure), None)
                }
            };
            let descriptors: Vec<BorrowedFd<'_>> = master.iter().map(AsFd::as_fd).collect();
            let _ = socket::send(&theirs, &encode(&reply), &descriptors);
            // SAFETY: leaves without running the parent's destructors.
            unsafe { libc::_exit(0) }
        }
    }
}

/// libcontainer tells causes to its log only, also those its clones meet: they go to memory shared with them.
fn keep_causes() -> Option<File> {
    let kept = File::from(memfd_create(c"log", MFdFlags::MFD_CLOEXEC).ok()?);
    let writer = std::sync::Mutex::new(kept.try_clone().ok()?);
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).with_ansi(false).with_target(false);
    log.without_time().with_level(false).with_writer(writer).try_init().ok()?;
    Some(kept)
}

/// The first thing that went wrong is the one the others follow from.
fn first_cause(kept: Option<File>) -> String {
    let mut text = String::new();
    if let Some(mut kept) = kept {
        let _ = kept.rewind();
        let _ = kept.read_to_string(&mut text);
    }
    text.lines().next().map(|line| format!(": {line}")).unwrap_or_default()
}

fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure { kind, message: message.into(), code: 128 }
}

/// Everything a new container's first process gets from the shim.
pub(super) struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

pub(super) struct Create<'a> {
    pub id: &'a str,
    /// `c/<id>` of the sandbox.
    pub dir: PathBuf,
    /// libcontainer's own directory, one per sandbox.
    pub state: PathBuf,
    /// `None` with a terminal.
    pub stdio: Option<Stdio>,
    pub errors: RawFd,
}

pub(super) fn create(create: Create<'_>) -> io::Result<Helper> {
    spawn(move || make_container(create), |pid| Reply::Created { pid })
}

fn read_process(path: &Path) -> Result<Process, Failure> {
    let unreadable = |error: String| failure(FailureKind::Other, format!("{}: {error}", path.display()));
    let bytes = fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))
}

fn make_container(create: Create<'_>) -> Outcome {
    let process = read_process(&create.dir.join("process.json"))?;
    let failed = |error: &dyn std::error::Error| failure(FailureKind::Create, chain(error));
    let executor = OwnExecutor { process, errors: create.errors };
    let mut builder = ContainerBuilder::new(create.id.to_string(), SyscallType::default())
        .with_executor(executor)
        .with_root_path(&create.state)
        .and_then(ContainerBuilder::validate_id)
        .map_err(|error| failed(&error))?;
    let console = match create.stdio {
        Some(stdio) => {
            builder = builder.with_stdin(stdio.stdin).with_stdout(stdio.stdout).with_stderr(stdio.stderr);
            None
        }
        None => {
            let path = create.dir.join("tty");
            let _ = fs::remove_file(&path);
            let listener = UnixListener::bind(&path).map_err(|error| failed(&error))?;
            builder = builder.with_console_socket(Some(&path));
            Some(listener)
        }
    };
    let container = builder
        .as_init(create.dir.join("bundle"))
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(|error| failed(&error))?;
    let pid = container.pid().ok_or_else(|| failure(FailureKind::Create, "libcontainer reports no pid"))?.as_raw();
    let master = console.map(|listener| receive_console(&listener)).transpose().map_err(|error| failed(&error))?;
    Ok((pid, master))
}

fn receive_console(listener: &UnixListener) -> io::Result<OwnedFd> {
    let (stream, _) = listener.accept()?;
    let received = socket::receive(&stream)?;
    received.and_then(|(_, mut descriptors)| descriptors.pop()).ok_or_else(|| io::Error::other("no terminal was sent"))
}

/// An error and its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

pub(super) struct Exec<'a> {
    /// The container's first process.
    pub target: Pid,
    pub cgroups: &'a Cgroups,
    pub cgroup: &'a str,
    pub process: PathBuf,
    /// Not with a terminal.
    pub stdio: Option<[OwnedFd; 3]>,
}

pub(super) fn exec(exec: Exec<'_>) -> io::Result<Helper> {
    spawn(move || join_container(exec), |pid| Reply::ExecStarted { pid })
}

/// Own code instead of libcontainer's: by pidfd there is no mistaking a reused pid, and nothing of the container is skipped.
fn join_container(exec: Exec<'_>) -> Outcome {
    let process = read_process(&exec.process)?;
    let _ = fs::remove_file(&exec.process);
    let failed = |what: &str, error: io::Error| failure(FailureKind::Other, format!("{what}: {error}"));
    // SAFETY: takes a pid and flags, gives a descriptor or an error.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, exec.target.as_raw(), 0) };
    if pidfd < 0 {
        return Err(failed("open container process", io::Error::last_os_error()));
    }
    // SAFETY: the kernel just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as i32) };
    exec.cgroups.join(exec.cgroup, std::process::id() as i32).map_err(|error| failed("join cgroup", error))?;
    if let Some(score) = process.oom_score_adj {
        set_oom_score("self", score);
    }
    // SAFETY: undumpable, so that the container cannot look into us once we are in it.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    let namespaces =
        libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    // SAFETY: moves this process only, which does nothing else afterwards.
    if unsafe { libc::setns(pidfd.as_raw_fd(), namespaces) } != 0 {
        return Err(failed("join namespaces", io::Error::last_os_error()));
    }
    let terminal = match &exec.stdio {
        Some(_) => None,
        None => Some(open_terminal().map_err(|error| failed("open terminal", error))?),
    };
    let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|error| failed("pipe", error.into()))?;
    // SAFETY: without a new stack this is a fork, as a child of the shim; there is one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0) };
    if pid < 0 {
        return Err(failed("fork", io::Error::last_os_error()));
    }
    if pid == 0 {
        let streams = match (&exec.stdio, &terminal) {
            (Some([stdin, stdout, stderr]), _) => [stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()],
            (None, Some((_, slave))) => [slave.as_raw_fd(); 3],
            (None, None) => unreachable!("either streams or a terminal"),
        };
        take_streams(streams, terminal.is_some());
        run(&process, write.as_raw_fd());
    }
    drop(write);
    let mut error = String::new();
    let _ = File::from(read).read_to_string(&mut error);
    match parse_failure(&error) {
        None => Ok((pid as i32, terminal.map(|(master, _)| master))),
        Some((code, message)) => Err(Failure { kind: FailureKind::Start, message, code }),
    }
}

/// What the executor writes when an exec fails; nothing if it did not.
pub(super) fn parse_failure(text: &str) -> Option<(i32, String)> {
    let (code, message) = text.split_once(' ')?;
    Some((code.parse().ok()?, message.to_string()))
}

/// The kernel lets anyone raise it and few lower it; what it refuses is left as it is.
pub(super) fn set_oom_score(process: &str, score: i32) {
    let path = format!("/proc/{process}/oom_score_adj");
    if fs::write(&path, score.to_string()).is_err() && score < 0 {
        let _ = fs::write(&path, "0");
    }
}

fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let master = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/pts/ptmx")?;
    let unlock: libc::c_int = 0;
    // SAFETY: reads one int.
    if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: gives a descriptor of the other end or an error.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if slave < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok((master.into(), unsafe { OwnedFd::from_raw_fd(slave) }))
}

fn take_streams(streams: [RawFd; 3], terminal: bool) {
    // SAFETY: plain system calls on our own descriptors in a process that is about to exec.
    unsafe {
        libc::setsid();
        for (to, from) in streams.into_iter().enumerate() {
            libc::dup2(from, to as i32);
        }
        if terminal {
            libc::ioctl(0, libc::TIOCSCTTY, 0);
        }
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}
