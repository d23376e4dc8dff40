//! Containers: sandboxes, processes, images. Speaks OCI, knows nothing of Kubernetes.
//!
//! [`Runtime`] is the whole interface: shaped like the CRI, with our own types, object-safe. [`linux::Linux`] is the real one: a
//! directory per sandbox, one single-threaded [`shim`] process per sandbox that outlives the daemon. [`fake::Fake`] keeps
//! everything in memory, with scripted exits.
//!
//! Contract:
//! - Ids are opaque strings. A sandbox's id is its pod's uid, chosen by the caller; a container's id is chosen here.
//! - Every `remove_*` is idempotent: what is not there is removed.
//! - Events are hints ([`Runtime::subscribe`]): who lags behind relists with [`Runtime::list`]. An exit is durable before its
//!   event is sent.
//! - Timers are the caller's: `kill_container` sends one signal and returns.

pub mod cgroup;
pub mod fake;
pub mod image;
pub mod linux;
pub mod log;
pub mod oci;
pub mod seccomp;
pub mod shim;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::broadcast;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
pub type Result<T> = std::result::Result<T, Error>;
pub type ContainerId = String;

/// Everything a node can ask of its container runtime.
pub trait Runtime: Send + Sync + 'static {
    /// Makes the namespaces, the cgroup and the shim of one pod. Asking again for one that exists answers its info.
    fn create_sandbox(&self, spec: SandboxSpec) -> BoxFuture<'_, Result<SandboxInfo>>;
    /// Kills what is left, then removes mounts, cgroups and directories. Idempotent.
    fn remove_sandbox<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Everything up to, but not including, the user's process.
    fn create_container<'a>(&'a self, sandbox: &'a str, spec: ContainerSpec) -> BoxFuture<'a, Result<ContainerId>>;
    /// Returns once the process has been executed, or with [`Error::Start`] if it could not be.
    fn start_container<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>>;
    /// Sends one signal; `SIGKILL` reaches every process of the container. Not an error if the container has ended.
    fn kill_container<'a>(&'a self, id: &'a str, signal: i32) -> BoxFuture<'a, Result<()>>;
    /// Kills it if it still runs, then forgets it. Its log file stays. Idempotent.
    fn remove_container<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>>;
    /// New limits for a running container; what is `None` has none any more.
    fn update_container<'a>(&'a self, id: &'a str, resources: Resources) -> BoxFuture<'a, Result<()>>;
    /// New limits over all containers of a sandbox, likewise.
    fn update_sandbox<'a>(&'a self, id: &'a str, resources: Resources) -> BoxFuture<'a, Result<()>>;
    /// After the log file was renamed: further lines go to a new file at the old path.
    fn reopen_log<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Every sandbox there is, with every container in it, also after a restart of the daemon.
    fn list(&self) -> BoxFuture<'_, Vec<SandboxState>>;
    /// One of them.
    fn sandbox<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Option<SandboxState>>;
    fn exec<'a>(&'a self, container: &'a str, spec: ExecSpec) -> BoxFuture<'a, Result<ExecSession>>;
    /// Joins the streams of the container's own process from now on; the session ends with the container.
    fn attach<'a>(&'a self, container: &'a str, spec: AttachSpec) -> BoxFuture<'a, Result<ExecSession>>;
    /// A connection to a port on the sandbox's own loopback.
    fn dial<'a>(&'a self, sandbox: &'a str, port: u16) -> BoxFuture<'a, Result<Box<dyn Duplex>>>;
    fn stats<'a>(&'a self, sandbox: &'a str) -> BoxFuture<'a, Result<SandboxStats>>;
    fn subscribe(&self) -> broadcast::Receiver<RuntimeEvent>;

    /// By name (`busybox`, `host/path:tag`), by name and digest, or by id (`sha256:…`). `None`: not present on this node.
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<Option<Image>>>;
    /// Reads an OCI layout or `docker save` archive; answers the names it brought.
    fn import<'a>(&'a self, archive: &'a Path) -> BoxFuture<'a, Result<Vec<String>>>;
    fn list_images(&self) -> BoxFuture<'_, Vec<Image>>;
    /// By name: that name; by id: the image and all its names. Idempotent.
    fn remove_image<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<()>>;
    /// Bytes and files used by images on this node.
    fn image_usage(&self) -> BoxFuture<'_, Usage>;

    /// What this runtime cannot do here, one sentence each (for the node's conditions and the log).
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
    /// Name and version, as a node reports it.
    fn version(&self) -> String {
        format!("coracle://{}", env!("CARGO_PKG_VERSION"))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The pod's uid; names directories, so it may only hold letters, digits, `.`, `-` and `_`.
    pub id: String,
    pub namespace: String,
    pub name: String,
    pub hostname: String,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    /// All containers in one PID namespace, whose init is a pause process of ours.
    pub share_pid: bool,
    pub sysctls: BTreeMap<String, String>,
    /// Below the runtime's cgroup root, e.g. `besteffort` or `burstable`; empty for the root itself. The sandbox makes
    /// `pod<id>` in it.
    pub cgroup_parent: String,
    /// Limits on the pod's own cgroup, over all its containers.
    pub resources: Resources,
    /// Made by the runtime; container log paths are usually below it.
    pub log_dir: PathBuf,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxInfo {
    pub id: String,
    /// Where the network namespace is mounted; the daemon's own for `host_network`.
    pub netns: PathBuf,
    /// The shim's pid.
    pub pid: i32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub name: String,
    pub attempt: u32,
    /// An image's id or any of its names.
    pub image: String,
    /// Replaces the image's entrypoint (and then also its arguments) if not empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments if not empty.
    pub args: Vec<String>,
    /// Added to the image's; later entries win.
    pub env: Vec<(String, String)>,
    /// Replaces the image's working directory; made if it is missing.
    pub cwd: Option<String>,
    pub user: User,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub capabilities: Capabilities,
    pub privileged: bool,
    pub no_new_privileges: bool,
    pub read_only_root: bool,
    /// `procMount: Unmasked`.
    pub unmasked_proc: bool,
    #[serde(default)]
    pub seccomp: Seccomp,
    pub resources: Resources,
    /// The file itself; its directory is made.
    pub log_path: PathBuf,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// Replaces the image's; a name (`SIGTERM`) or a number.
    pub stop_signal: Option<String>,
    /// Joins the PID namespace of this container of the same sandbox (ephemeral containers).
    pub target_container: Option<ContainerId>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// Which system calls a container's processes may make. A privileged container makes any.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    Unconfined,
    RuntimeDefault,
    /// A profile file of the host, in the format of OCI tools.
    Localhost(PathBuf),
}

/// Numbers win over the image's `USER`, which is looked up in the image's own `/etc/passwd` and `/etc/group`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct User {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    /// Only the listed groups, none from the image's `/etc/group`.
    pub strict_groups: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    pub source: MountSource,
    /// In the container; absolute.
    pub target: String,
    pub readonly: bool,
    /// With `readonly`: also every mount below it (kernel 5.12).
    pub recursive_readonly: bool,
    pub propagation: Propagation,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MountSource {
    /// A file or directory of the host; must exist.
    Host(PathBuf),
    Tmpfs {
        size_bytes: Option<u64>,
        mode: u32,
    },
    /// The file system of an image present on this node, read-only.
    Image {
        reference: String,
        sub_path: String,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    pub host_path: PathBuf,
    pub container_path: String,
    /// Of `r`, `w`, `m`.
    pub permissions: String,
}

/// Names without `CAP_`, in capitals; `ALL` is understood in both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

/// Limits; `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    pub memory_limit_bytes: Option<u64>,
    /// In cgroup v1's terms (2..262144); translated to a weight on v2.
    pub cpu_shares: Option<u64>,
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub pids_limit: Option<i64>,
    pub oom_score_adj: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxState {
    pub info: SandboxInfo,
    pub namespace: String,
    pub name: String,
    pub created_at: SystemTime,
    /// False once its shim or its pause process is gone: no container can be created in it any more.
    pub ready: bool,
    /// Limits over all its containers.
    pub resources: Resources,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub containers: Vec<ContainerState>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerState {
    pub id: ContainerId,
    pub name: String,
    pub attempt: u32,
    /// As asked for.
    pub image: String,
    pub image_id: String,
    pub state: State,
    pub created_at: SystemTime,
    pub started_at: Option<SystemTime>,
    pub finished_at: Option<SystemTime>,
    /// Of an exit: `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`; else empty.
    pub reason: String,
    pub message: String,
    pub log_path: PathBuf,
    /// The signal that asks it to stop: the spec's, the image's, or SIGTERM.
    pub stop_signal: i32,
    pub resources: Resources,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Created,
    Running {
        pid: i32,
    },
    Exited {
        /// 128 + signal if a signal ended it.
        code: i32,
        /// 0 if it exited by itself.
        signal: i32,
        oom_killed: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuntimeEvent {
    Started {
        sandbox: String,
        container: ContainerId,
    },
    Exited {
        sandbox: String,
        container: ContainerId,
    },
    /// The kernel killed a process of the container for memory; the container itself may live on.
    OutOfMemory {
        sandbox: String,
        container: ContainerId,
    },
    /// The shim is gone; nothing in the sandbox runs any more.
    SandboxLost {
        sandbox: String,
    },
    /// Images came or went, perhaps by another process.
    ImagesChanged,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExecSpec {
    pub command: Vec<String>,
    pub tty: bool,
    /// Streams not asked for are `/dev/null`; with `tty` there is one stream both ways.
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// Which of a container's streams to join; with a terminal there is no stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AttachSpec {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// A byte stream both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A process beside the container's own, or with [`Runtime::attach`] that one. Dropping the session closes its streams; only [`ExecControl::kill`] ends the process.
pub struct ExecSession {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Never with a tty.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// The exit code (128 + signal for a signal).
    pub exit: BoxFuture<'static, Result<i32>>,
    pub control: Arc<dyn ExecControl>,
}

pub trait ExecControl: Send + Sync {
    /// Does nothing without a tty.
    fn resize(&self, columns: u16, rows: u16);
    fn kill(&self);
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    pub cpu_nanoseconds: u64,
    pub memory_usage_bytes: u64,
    /// Usage less inactive file pages: what eviction and `kubectl top` look at.
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    pub processes: u64,
    /// Of the writable layer; zero for a whole sandbox.
    pub writable: Usage,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SandboxStats {
    pub total: Stats,
    pub containers: Vec<(ContainerId, Stats)>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:…` of the manifest.
    pub id: String,
    pub names: Vec<String>,
    /// `name@sha256:…`
    pub digests: Vec<String>,
    pub size: u64,
    pub config: ImageConfig,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    /// As written in the image: `uid`, `name`, `uid:gid`, …; empty is root.
    pub user: String,
    pub workdir: String,
    pub stop_signal: String,
    pub volumes: Vec<String>,
    pub exposed_ports: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub architecture: String,
    pub os: String,
}

/// One variant per operation that failed; `Display` is what a pod's status shows.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("image {reference:?} is not present on this node")]
    ImageNotFound { reference: String },
    #[error("invalid image reference {reference:?}: {message}")]
    InvalidReference { reference: String, message: String },
    #[error("image {image:?}: {message}")]
    Image { image: String, message: String },
    #[error("sandbox {id} does not exist")]
    SandboxNotFound { id: String },
    #[error("container {id} does not exist")]
    ContainerNotFound { id: String },
    #[error("container {id} is not running")]
    NotRunning { id: String },
    #[error("sandbox {id}: {message}")]
    Sandbox { id: String, message: String },
    /// `CreateContainerError`.
    #[error("container {container}: {message}")]
    Create { container: String, message: String },
    /// `RunContainerError`; the code is what a shell would answer (127 not found, 126 not executable, 128 otherwise).
    #[error("{message}")]
    Start { container: String, message: String, code: i32 },
    /// The command of an exec could not be run; the code as in [`Error::Start`].
    #[error("{message}")]
    Exec { message: String, code: i32 },
    /// The text is what a client of the port is told.
    #[error("{message}")]
    Dial { message: String },
    #[error("shim of sandbox {sandbox}: {message}")]
    Shim { sandbox: String, message: String },
    #[error("{operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// The waiting reason a container's status shows for this error.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::ImageNotFound { .. } => "ErrImageNeverPull",
            Error::InvalidReference { .. } => "InvalidImageName",
            Error::Image { .. } => "ErrImagePull",
            Error::SandboxNotFound { .. } | Error::Sandbox { .. } | Error::Shim { .. } => "CreatePodSandboxError",
            Error::ContainerNotFound { .. } | Error::NotRunning { .. } | Error::Start { .. } | Error::Exec { .. } | Error::Dial { .. } => {
                "RunContainerError"
            }
            Error::Create { .. } | Error::Io { .. } => "CreateContainerError",
        }
    }

    /// The exit code a failed start or exec stands for.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Error::Start { code, .. } | Error::Exec { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The whole chain of causes on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }
}

/// What a finished [`exec_sync`] brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExecOutput {
    /// Standard output and error as they came, cut at the limit.
    pub output: Vec<u8>,
    pub code: i32,
    /// The process was killed because the time was over.
    pub timed_out: bool,
}

/// Runs a command in a container and waits for it: probes and hooks. At most `limit` bytes of output are kept.
pub async fn exec_sync(
    runtime: &dyn Runtime,
    container: &str,
    command: Vec<String>,
    timeout: Duration,
    limit: usize,
) -> Result<ExecOutput> {
    let spec = ExecSpec { command, stdout: true, stderr: true, ..ExecSpec::default() };
    let session = runtime.exec(container, spec).await?;
    let (mut stdout, mut stderr) = (session.stdout, session.stderr);
    let output = std::sync::Mutex::new(Vec::new());
    let drain = async {
        tokio::join!(collect(&mut stdout, &output, limit), collect(&mut stderr, &output, limit));
    };
    let mut exit = session.exit;
    let finished = async {
        // A grandchild may hold the pipe open for ever: what the process itself wrote is there once it has exited.
        let mut drain = std::pin::pin!(drain);
        tokio::select! {
            code = &mut exit => {
                let _ = tokio::time::timeout(Duration::from_millis(100), &mut drain).await;
                code
            }
            () = &mut drain => exit.await,
        }
    };
    let (code, timed_out) = match tokio::time::timeout(timeout, finished).await {
        Ok(code) => (code?, false),
        Err(_) => {
            session.control.kill();
            (137, true)
        }
    };
    Ok(ExecOutput { output: output.into_inner().expect("no one panicked holding it"), code, timed_out })
}

async fn collect(from: &mut Option<Box<dyn AsyncRead + Send + Unpin>>, into: &std::sync::Mutex<Vec<u8>>, limit: usize) {
    let Some(from) = from else { return };
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let mut output = into.lock().expect("no one panicked holding it");
        let room = limit.saturating_sub(output.len()).min(read);
        output.extend_from_slice(&buffer[..room]);
    }
}
