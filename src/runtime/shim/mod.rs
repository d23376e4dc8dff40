//! `coracle shim`: one small single-threaded process per pod, which outlives the daemon.
//!
//! It owns what must survive a restart of the daemon: the sandbox's namespaces, the pipes of its containers, their exit codes. It polls,
//! reaps, writes logs and passes descriptors; every libcontainer call happens in a fork of it ([`helper`]). What the daemon must know
//! after the shim is gone is in files before it is said: `c/<id>/running`, `c/<id>/exit`.
//! Start at [`main`], then [`Shim::turn`].
#![allow(unsafe_code)] // one fork at start, and identity of the process

pub mod client;
mod executor;
mod helper;
pub mod protocol;
pub(crate) mod sandbox;
pub(crate) mod socket;
mod stdio;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{SockFlag, accept4};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2};

use self::helper::{Create, Exec, Helper, Stdio, parse_failure, set_oom_score};
use self::protocol::{Call, Failure, FailureKind, Reply, Setup, Status, encode};
use self::stdio::{Attached, Input, Log, Pump, Typed};
use super::State;
use super::cgroup::Cgroups;
use super::log::Stream;
use super::oci::Process;

const CONNECTIONS_MAX: usize = 256;
/// A create that hangs longer is killed; the slowest seen on a loaded machine took under two seconds.
const HELPER_SECONDS_MAX: u64 = 60;
const SHUTDOWN_SECONDS_MAX: u64 = 10;

/// Runs the shim of the sandbox whose directory is the only argument. Call it before any thread exists.
///
/// Says `ok` on its standard output once the sandbox is there, or why it could not be made.
pub fn main(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> ! {
    let Some(dir) = arguments.into_iter().next().map(PathBuf::from) else {
        eprintln!("usage: coracle shim <sandbox directory> (started by the daemon only)");
        std::process::exit(2);
    };
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("shim: {panic}");
        std::process::abort();
    }));
    // The first process goes at once, so that the daemon has no child to reap.
    // SAFETY: nothing has started a thread yet.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { .. }) => std::process::exit(0),
        Ok(ForkResult::Child) => {}
        Err(error) => {
            println!("fork: {error}");
            std::process::exit(1);
        }
    }
    let mut shim = match detach(&dir).and_then(|()| Shim::open(dir)) {
        Ok(shim) => shim,
        Err(error) => {
            println!("{error}");
            std::process::exit(1);
        }
    };
    println!("ok");
    let _ = shim.say_ready();
    loop {
        if let Err(error) = shim.turn() {
            eprintln!("shim: {error}");
        }
    }
}

/// Out of the daemon's session, directory, groups and descriptors.
fn detach(dir: &Path) -> io::Result<()> {
    nix::unistd::setsid()?;
    nix::unistd::chdir("/")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    nix::unistd::setgroups(&[])?;
    nix::sys::prctl::set_child_subreaper(true)?;
    nix::sys::prctl::set_name(c"coracle-shim")?;
    let log = File::options().create(true).append(true).open(dir.join("shim.log"))?;
    nix::unistd::dup2_stderr(&log)?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    // SAFETY: closes what the daemon may have leaked; nothing of ours is open beyond the three but the log just duplicated.
    unsafe {
        drop(log);
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
    }
    sandbox::ignore_signals();
    Ok(())
}

struct Shim {
    dir: PathBuf,
    cgroups: Cgroups,
    listener: OwnedFd,
    signals: SignalFd,
    serial: u64,
    connections: BTreeMap<u64, Connection>,
    containers: BTreeMap<String, Container>,
    helpers: Vec<Job>,
    /// Processes beside the containers' own, by pid, and who waits for them.
    execs: BTreeMap<i32, u64>,
    /// Children that ended before the helper that made them could name them.
    unclaimed: BTreeMap<i32, i32>,
    shutdown: Option<(u64, Instant)>,
}

struct Connection {
    socket: OwnedFd,
    subscribed: bool,
    /// The process of this connection's exec.
    exec: Option<i32>,
}

struct Container {
    status: Status,
    pid: i32,
    cgroup: String,
    shared_pids: bool,
    pumps: Vec<Pump>,
    log: Log,
    /// Kept open so that a reader of standard input waits instead of seeing its end.
    stdin: Option<Input>,
    /// Its standard streams are one terminal.
    terminal: bool,
    attached: Vec<Attached>,
    /// Where the waiting init will tell that it could not exec.
    errors: Option<OwnedFd>,
    start: Option<u64>,
    delete: Option<u64>,
}

struct Job {
    helper: Helper,
    connection: u64,
    deadline: Instant,
    kind: JobKind,
}

enum JobKind {
    Create(Box<Container>),
    Exec,
}

#[derive(Clone)]
enum Token {
    Listener,
    Signals,
    Connection(u64),
    Helper(i32),
    Start(String),
    Pump(String, usize),
    /// The container can take more.
    Input(String),
    /// The attached client of this connection typed.
    Typed(String, u64),
}

fn failure(kind: FailureKind, message: impl Into<String>) -> Reply {
    Reply::Failed(Failure { kind, message: message.into(), code: 128 })
}

impl Shim {
    fn open(dir: PathBuf) -> io::Result<Shim> {
        let setup: Setup = serde_json::from_slice(&fs::read(dir.join("sandbox.json"))?)?;
        let cgroups = Cgroups::detect(&setup.cgroup_root)?;
        let leaf = format!("{}/shim", setup.cgroup);
        cgroups.join(&leaf, std::process::id() as i32)?;
        sandbox::make(&dir, &setup)?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        if setup.sandbox.share_pid {
            let pause = sandbox::pause(&dir)?;
            fs::write(dir.join("pause.pid"), identity(pause.as_raw()))?;
        }
        let listener = socket::listener(&dir.join("shim.sock"))?;
        fs::write(dir.join("shim.pid"), identity(std::process::id() as i32))?;
        Ok(Shim {
            dir,
            cgroups,
            listener,
            signals,
            serial: 0,
            connections: BTreeMap::new(),
            containers: BTreeMap::new(),
            helpers: Vec::new(),
            execs: BTreeMap::new(),
            unclaimed: BTreeMap::new(),
            shutdown: None,
        })
    }

    /// Lets go of the pipe the daemon waits on.
    fn say_ready(&self) -> io::Result<()> {
        io::stdout().flush()?;
        nix::unistd::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        let ready = self.wait()?;
        for token in ready {
            match token {
                Token::Listener => self.accept(),
                Token::Signals => self.reap(),
                Token::Connection(id) => self.hear(id),
                Token::Helper(pid) => self.finish_helper(pid),
                Token::Start(id) => self.finish_start(&id),
                Token::Pump(id, at) => {
                    if let Some(Container { pumps, log, attached, .. }) = self.containers.get_mut(&id) {
                        pumps[at].turn(log, attached);
                    }
                }
                Token::Input(id) => self.give_input(&id),
                Token::Typed(id, connection) => self.take_input(&id, connection),
            }
        }
        self.expire();
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<Token>> {
        let mut tokens = vec![Token::Listener, Token::Signals];
        let mut polled = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN), PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let mut waiting_to_write = Vec::new();
        let mut add = |token, descriptor| {
            tokens.push(token);
            polled.push(PollFd::new(descriptor, PollFlags::POLLIN));
        };
        for (id, connection) in &self.connections {
            add(Token::Connection(*id), connection.socket.as_fd());
        }
        for job in &self.helpers {
            add(Token::Helper(job.helper.pid.as_raw()), job.helper.socket.as_fd());
        }
        for (id, container) in &self.containers {
            if let Some(errors) = container.errors.as_ref().filter(|_| container.start.is_some()) {
                add(Token::Start(id.clone()), errors.as_fd());
            }
            for (at, pump) in container.pumps.iter().enumerate() {
                if let Some(descriptor) = pump.descriptor() {
                    add(Token::Pump(id.clone(), at), descriptor);
                }
            }
            if let Some(input) = &container.stdin {
                // Nobody is read from while the container has not taken what was typed before.
                match input.waiting() {
                    Some(target) => waiting_to_write.push((Token::Input(id.clone()), target)),
                    None => {
                        for client in &container.attached {
                            if let Some(stdin) = &client.stdin {
                                add(Token::Typed(id.clone(), client.connection), stdin.as_fd());
                            }
                        }
                    }
                }
            }
        }
        for (token, target) in waiting_to_write {
            tokens.push(token);
            polled.push(PollFd::new(target, PollFlags::POLLOUT));
        }
        // Deadlines are rare and coarse: looking once a second while one is set is enough.
        let waiting = !self.helpers.is_empty() || self.shutdown.is_some();
        let timeout = if waiting { PollTimeout::from(1000u16) } else { PollTimeout::NONE };
        match poll(&mut polled, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let hot = |polled: &PollFd<'_>| polled.revents().is_some_and(|events| !events.is_empty());
        Ok(polled.iter().zip(tokens).filter(|(polled, _)| hot(polled)).map(|(_, token)| token).collect())
    }

    fn accept(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let Ok(raw) = accept4(self.listener.as_raw_fd(), flags) else { return };
        // SAFETY: the kernel just made this descriptor for us.
        let socket = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(raw) };
        if self.connections.len() >= CONNECTIONS_MAX {
            let busy = failure(FailureKind::Other, "too many connections to this shim");
            let _ = socket::send(&socket, &encode(&busy), &[]);
            return;
        }
        self.serial += 1;
        self.connections.insert(self.serial, Connection { socket, subscribed: false, exec: None });
    }

    fn hear(&mut self, id: u64) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (frame, descriptors) = match socket::receive(&connection.socket) {
            Ok(Some(received)) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // Who asked is gone; what was asked goes on.
            Ok(None) | Err(_) => {
                self.connections.remove(&id);
                self.detach(id);
                return;
            }
        };
        match protocol::decode_request(&frame) {
            Ok(call) => {
                if let Some(reply) = self.call(id, call, descriptors) {
                    self.answer(id, &reply);
                }
            }
            Err(message) => self.answer(id, &failure(FailureKind::Other, message)),
        }
    }

    fn answer(&mut self, id: u64, reply: &Reply) {
        if let Some(connection) = self.connections.get(&id)
            && socket::send(&connection.socket, &encode(reply), &[]).is_err()
        {
            // A subscriber that does not read is cut; it comes back and asks anew.
            self.connections.remove(&id);
        }
    }

    /// `None`: the answer comes later.
    fn call(&mut self, connection: u64, call: Call, descriptors: Vec<OwnedFd>) -> Option<Reply> {
        match call {
            Call::Create { id, cgroup, log_path, stdin, stdin_once, tty, shared_pids } => {
                if self.containers.contains_key(&id) || self.shutdown.is_some() {
                    return Some(failure(FailureKind::Create, format!("container {id} exists or the sandbox is going")));
                }
                let created = self.create(connection, &id, cgroup, &log_path, (stdin, stdin_once), tty, shared_pids);
                created.err().map(|error| failure(FailureKind::Create, error.to_string()))
            }
            Call::Start { id } => self.start(connection, &id).err(),
            Call::Kill { id, signal } => Some(self.kill(&id, signal)),
            Call::Delete { id } => self.delete(connection, &id),
            Call::Attach { id, stdin, stdout, stderr } => self.attach(connection, &id, [stdin, stdout, stderr], descriptors).err(),
            Call::Exec { id, process, tty } => self.exec(connection, &id, &process, tty, descriptors).err(),
            Call::KillExec => {
                if let Some(pid) = self.connections.get(&connection).and_then(|connection| connection.exec) {
                    // It leads a session of its own: its whole group goes.
                    let _ = kill(Pid::from_raw(-pid), Signal::SIGKILL);
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                None
            }
            Call::ReopenLog { id } => Some(match self.containers.get_mut(&id) {
                None => failure(FailureKind::NoSuchContainer, format!("no container {id}")),
                Some(container) => match container.log.reopen() {
                    Ok(()) => Reply::Done,
                    Err(error) => failure(FailureKind::Other, format!("reopen log: {error}")),
                },
            }),
            Call::Subscribe => {
                let connection = self.connections.get_mut(&connection)?;
                connection.subscribed = true;
                Some(Reply::Status(self.containers.values().map(|container| container.status.clone()).collect()))
            }
            Call::Shutdown => {
                self.shutdown = Some((connection, Instant::now() + Duration::from_secs(SHUTDOWN_SECONDS_MAX)));
                self.kill_all();
                self.finish_shutdown();
                None
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one call")]
    fn create(
        &mut self,
        connection: u64,
        id: &str,
        cgroup: String,
        log_path: &str,
        (stdin, stdin_once): (bool, bool),
        tty: bool,
        shared_pids: bool,
    ) -> io::Result<()> {
        let pipe = || pipe2(nix::fcntl::OFlag::O_CLOEXEC);
        let (errors, their_errors) = pipe()?;
        let mut pumps = Vec::new();
        let mut kept_stdin = None;
        let stdio = if tty {
            None
        } else {
            let (stdout, their_stdout) = pipe()?;
            let (stderr, their_stderr) = pipe()?;
            pumps.push(Pump::new(stdout, Stream::Stdout)?);
            pumps.push(Pump::new(stderr, Stream::Stderr)?);
            let their_stdin = if stdin {
                let (read, write) = pipe()?;
                kept_stdin = Some(Input::new(write, stdin_once)?);
                read
            } else {
                File::open("/dev/null")?.into()
            };
            Some(Stdio { stdin: their_stdin, stdout: their_stdout, stderr: their_stderr })
        };
        let container = Container {
            status: Status {
                id: id.to_string(),
                state: State::Created,
                started_at: None,
                finished_at: None,
                reason: String::new(),
                message: String::new(),
            },
            pid: 0,
            cgroup,
            shared_pids,
            pumps,
            log: Log::open(log_path)?,
            stdin: kept_stdin,
            terminal: false,
            attached: Vec::new(),
            errors: Some(errors),
            start: None,
            delete: None,
        };
        let helper = helper::create(Create {
            id,
            dir: self.dir.join("c").join(id),
            state: self.dir.join("rt"),
            stdio,
            errors: their_errors.as_raw_fd(),
        })?;
        let deadline = Instant::now() + Duration::from_secs(HELPER_SECONDS_MAX);
        self.helpers.push(Job { helper, connection, deadline, kind: JobKind::Create(Box::new(container)) });
        Ok(())
    }

    fn running(&self, id: &str) -> Result<&Container, Reply> {
        let container = self.containers.get(id);
        let container = container.ok_or_else(|| failure(FailureKind::NoSuchContainer, format!("no container {id}")))?;
        match container.status.state {
            State::Running { .. } => Ok(container),
            State::Created | State::Exited { .. } => Err(failure(FailureKind::NotRunning, format!("container {id} is not running"))),
        }
    }

    fn exec(&mut self, connection: u64, id: &str, process: &str, tty: bool, descriptors: Vec<OwnedFd>) -> Result<(), Reply> {
        let container = self.running(id)?;
        let stdio = match tty {
            true => None,
            false => {
                let stdio: Result<[OwnedFd; 3], _> = descriptors.try_into();
                Some(stdio.map_err(|_| failure(FailureKind::Other, "an exec needs three descriptors"))?)
            }
        };
        let helper = helper::exec(Exec {
            target: Pid::from_raw(container.pid),
            cgroups: &self.cgroups,
            cgroup: &container.cgroup,
            process: self.dir.join("c").join(id).join(process),
            stdio,
        });
        let helper = helper.map_err(|error| failure(FailureKind::Other, error.to_string()))?;
        let deadline = Instant::now() + Duration::from_secs(HELPER_SECONDS_MAX);
        self.helpers.push(Job { helper, connection, deadline, kind: JobKind::Exec });
        Ok(())
    }

    fn attach(&mut self, connection: u64, id: &str, wanted: [bool; 3], descriptors: Vec<OwnedFd>) -> Result<(), Reply> {
        self.running(id)?;
        let other = |error: io::Error| failure(FailureKind::Other, format!("attach to container {id}: {error}"));
        let streams: Result<[OwnedFd; 3], _> = descriptors.try_into();
        let streams = streams.map_err(|_| failure(FailureKind::Other, "an attach needs three descriptors"))?;
        let attached = Attached::new(connection, streams, wanted).map_err(other)?;
        let (Some(container), Some(one)) = (self.containers.get_mut(id), self.connections.get(&connection)) else { return Ok(()) };
        let reply = encode(&Reply::ExecStarted { pid: container.pid });
        let terminal: Vec<_> = container.terminal.then(|| container.stdin.as_ref().map(Input::descriptor)).flatten().into_iter().collect();
        socket::send(&one.socket, &reply, &terminal).map_err(other)?;
        container.attached.push(attached);
        Ok(())
    }

    /// Who asked is gone.
    fn detach(&mut self, connection: u64) {
        for container in self.containers.values_mut() {
            container.attached.retain(|client| client.connection != connection);
        }
    }

    fn give_input(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.stdin.as_mut().is_some_and(|input| input.give() == Typed::Closed) {
            container.stdin = None;
        }
    }

    fn take_input(&mut self, id: &str, connection: u64) {
        let Some(Container { stdin: Some(input), attached, .. }) = self.containers.get_mut(id) else { return };
        let Some(client) = attached.iter_mut().find(|client| client.connection == connection) else { return };
        let Some(from) = &mut client.stdin else { return };
        match input.take(from) {
            Typed::More => {}
            Typed::End => client.stdin = None,
            Typed::Closed => {
                client.stdin = None;
                if let Some(container) = self.containers.get_mut(id) {
                    container.stdin = None;
                }
            }
        }
    }

    fn finish_helper(&mut self, pid: i32) {
        let Some(at) = self.helpers.iter().position(|job| job.helper.pid.as_raw() == pid) else { return };
        let job = self.helpers.swap_remove(at);
        let (reply, descriptors) = match socket::receive(&job.helper.socket) {
            Ok(Some((frame, descriptors))) => (protocol::decode_reply(&frame), descriptors),
            Ok(None) => (Err("the helper ended without an answer".to_string()), Vec::new()),
            Err(error) => (Err(error.to_string()), Vec::new()),
        };
        let kind = match job.kind {
            JobKind::Create(_) => FailureKind::Create,
            JobKind::Exec => FailureKind::Other,
        };
        let reply = reply.unwrap_or_else(|message| failure(kind, message));
        match (job.kind, reply) {
            (JobKind::Create(container), Reply::Created { pid }) => self.created(job.connection, *container, pid, descriptors),
            (JobKind::Exec, Reply::ExecStarted { pid }) => self.exec_started(job.connection, pid, &descriptors),
            (JobKind::Create(container), reply) => {
                self.cgroups.kill(&container.cgroup);
                let _ = fs::remove_dir_all(self.dir.join("rt").join(&container.status.id));
                self.answer(job.connection, &reply);
            }
            (JobKind::Exec, reply) => self.answer(job.connection, &reply),
        }
    }

    fn created(&mut self, connection: u64, mut container: Container, pid: i32, descriptors: Vec<OwnedFd>) {
        container.pid = pid;
        for master in descriptors {
            container.terminal = true;
            container.stdin = master.try_clone().and_then(|input| Input::new(input, false)).ok();
            container.pumps.extend(Pump::new(master, Stream::Stdout));
        }
        let id = container.status.id.clone();
        self.containers.insert(id.clone(), container);
        self.answer(connection, &Reply::Created { pid });
        if let Some(code) = self.unclaimed.remove(&pid) {
            self.exited(&id, code);
        }
    }

    fn exec_started(&mut self, connection: u64, pid: i32, descriptors: &[OwnedFd]) {
        let reply = encode(&Reply::ExecStarted { pid });
        if let Some(one) = self.connections.get_mut(&connection) {
            one.exec = Some(pid);
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            let _ = socket::send(&one.socket, &reply, &descriptors);
        }
        match self.unclaimed.remove(&pid) {
            Some(code) => self.answer(connection, &Reply::ExecExited { code: shell_code(code) }),
            None => {
                self.execs.insert(pid, connection);
            }
        }
    }

    /// The waiting init listens on libcontainer's own socket.
    fn start(&mut self, connection: u64, id: &str) -> Result<(), Reply> {
        let dir = self.dir.join("rt").join(id);
        let process = self.dir.join("c").join(id).join("process.json");
        let container = self.containers.get_mut(id);
        let container = container.ok_or_else(|| failure(FailureKind::NoSuchContainer, format!("no container {id}")))?;
        if container.status.state != State::Created || container.start.is_some() {
            return Err(failure(FailureKind::Start, format!("container {id} was started already")));
        }
        let failed = |error: io::Error| failure(FailureKind::Start, format!("start container {id}: {error}"));
        let process: Process = fs::read(process).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)).map_err(failed)?;
        if let Some(score) = process.oom_score_adj {
            set_oom_score(&container.pid.to_string(), score);
        }
        // By descriptor: the path itself may be too long for a socket address.
        let opened = File::open(dir).map_err(failed)?;
        let path = format!("/proc/self/fd/{}/notify.sock", opened.as_raw_fd());
        let mut notify = std::os::unix::net::UnixStream::connect(path).map_err(failed)?;
        container.start = Some(connection);
        notify.write_all(b"start container").map_err(failed)
    }

    /// The pipe is closed by a successful exec, or by the end of the process.
    fn finish_start(&mut self, id: &str) {
        let dir = self.dir.join("c").join(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        let (Some(connection), Some(errors)) = (container.start.take(), container.errors.take()) else { return };
        let mut text = String::new();
        let _ = File::from(errors).read_to_string(&mut text);
        if let Some((code, message)) = parse_failure(&text) {
            container.status.reason = "StartError".to_string();
            container.status.message.clone_from(&message);
            // The exit itself follows; whoever asked may know now.
            self.answer(connection, &Reply::Failed(Failure { kind: FailureKind::Start, message, code }));
            return;
        }
        let started_at = SystemTime::now();
        container.status.started_at = Some(started_at);
        container.status.state = State::Running { pid: container.pid };
        let record = (container.status.clone(), identity(container.pid));
        if let Err(error) = write_record(&dir.join("running"), &record) {
            eprintln!("shim: record start of {id}: {error}");
        }
        self.answer(connection, &Reply::Done);
        self.publish(id);
    }

    fn publish(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else { return };
        let reply = Reply::Status(vec![container.status.clone()]);
        let subscribed = |(id, connection): (&u64, &Connection)| connection.subscribed.then_some(*id);
        for subscriber in self.connections.iter().filter_map(subscribed).collect::<Vec<_>>() {
            self.answer(subscriber, &reply);
        }
    }

    fn kill(&mut self, id: &str, signal: i32) -> Reply {
        let Some(container) = self.containers.get(id) else {
            return failure(FailureKind::NoSuchContainer, format!("no container {id}"));
        };
        if matches!(container.status.state, State::Exited { .. }) {
            return Reply::Done;
        }
        // Ours until it is reaped, so this pid cannot be another's.
        // SAFETY: sends a signal.
        let sent = unsafe { libc::kill(container.pid, signal) };
        let error = io::Error::last_os_error();
        if signal == libc::SIGKILL && container.shared_pids {
            self.cgroups.kill(&container.cgroup);
        }
        match sent {
            0 => Reply::Done,
            _ if error.raw_os_error() == Some(libc::ESRCH) => Reply::Done,
            _ => failure(FailureKind::Other, format!("kill container {id}: {error}")),
        }
    }

    fn delete(&mut self, connection: u64, id: &str) -> Option<Reply> {
        let Some(container) = self.containers.get_mut(id) else { return Some(Reply::Done) };
        if matches!(container.status.state, State::Exited { .. }) {
            self.forget(id);
            return Some(Reply::Done);
        }
        container.delete = Some(connection);
        self.kill(id, libc::SIGKILL);
        None
    }

    fn forget(&mut self, id: &str) {
        self.containers.remove(id);
        let _ = fs::remove_dir_all(self.dir.join("rt").join(id));
    }

    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code),
                // Told apart from an exit code by its size.
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 256 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(_) => continue,
            };
            if let Some(connection) = self.execs.remove(&pid) {
                if let Some(one) = self.connections.get_mut(&connection) {
                    one.exec = None;
                }
                self.answer(connection, &Reply::ExecExited { code: shell_code(code) });
                continue;
            }
            let owner = self.containers.iter().find(|(_, container)| container.pid == pid).map(|(id, _)| id.clone());
            match owner {
                Some(id) => self.exited(&id, code),
                None if !self.helpers.is_empty() => {
                    self.unclaimed.insert(pid, code);
                }
                None => {}
            }
        }
        if self.helpers.is_empty() {
            self.unclaimed.clear();
        }
        self.finish_shutdown();
    }

    /// Everything it wrote is in the log and its end is on disk before anyone hears of it.
    fn exited(&mut self, id: &str, code: i32) {
        if self.containers.get(id).is_some_and(|container| container.start.is_some()) {
            self.finish_start(id);
        }
        let dir = self.dir.join("c").join(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.shared_pids {
            self.cgroups.kill(&container.cgroup);
        }
        let Container { pumps, log, attached, .. } = container;
        pumps.iter_mut().for_each(|pump| pump.drain(log, attached));
        if log.lost_bytes > 0 {
            eprintln!("shim: {} bytes of the log of {id} could not be written", log.lost_bytes);
        }
        let signal = (code - 256).max(0);
        let oom_killed = code != 0 && self.cgroups.oom_kills(&container.cgroup) > 0;
        let status = &mut container.status;
        status.state = State::Exited { code: shell_code(code), signal, oom_killed };
        status.finished_at = Some(SystemTime::now());
        if status.reason.is_empty() {
            status.reason = match (code, oom_killed) {
                (_, true) => "OOMKilled",
                (0, false) => "Completed",
                _ => "Error",
            }
            .to_string();
        }
        if let Err(error) = write_record(&dir.join("exit"), status) {
            eprintln!("shim: record exit of {id}: {error}");
        }
        let delete = container.delete.take();
        container.stdin = None;
        let attached: Vec<u64> = container.attached.drain(..).map(|client| client.connection).collect();
        self.publish(id);
        for client in attached {
            self.answer(client, &Reply::ExecExited { code: shell_code(code) });
        }
        if let Some(connection) = delete {
            self.forget(id);
            self.answer(connection, &Reply::Done);
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let late: Vec<Pid> = self.helpers.iter().filter(|job| job.deadline <= now).map(|job| job.helper.pid).collect();
        for pid in late {
            // Its socket closes with it, which is then its answer.
            let _ = kill(pid, Signal::SIGKILL);
        }
        self.finish_shutdown();
    }

    fn kill_all(&mut self) {
        for job in &self.helpers {
            let _ = kill(job.helper.pid, Signal::SIGKILL);
        }
        for pid in self.execs.keys() {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        for container in self.containers.values() {
            if !matches!(container.status.state, State::Exited { .. }) {
                let _ = kill(Pid::from_raw(container.pid), Signal::SIGKILL);
            }
            if container.shared_pids {
                self.cgroups.kill(&container.cgroup);
            }
        }
    }

    fn finish_shutdown(&mut self) {
        let Some((connection, deadline)) = self.shutdown else { return };
        let alive = |container: &Container| !matches!(container.status.state, State::Exited { .. });
        if self.containers.values().any(alive) && Instant::now() < deadline {
            return;
        }
        self.answer(connection, &Reply::Done);
        std::process::exit(0);
    }
}

/// 128 + signal for a signal, as shells have it.
fn shell_code(code: i32) -> i32 {
    if code >= 256 { 128 + code - 256 } else { code }
}

/// `<pid> <start time>`: enough to tell a process from a later one of the same number.
pub(crate) fn identity(pid: i32) -> String {
    format!("{pid} {}", start_time(pid).unwrap_or(0))
}

/// In clock ticks since boot; `None` if there is no such process or it is a zombie.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; what follows the last bracket does not.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn write_record<T: serde::Serialize>(path: &Path, record: &T) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, encode(record))?;
    fs::rename(temporary, path)
}
