//! The real [`Runtime`]: directories, cgroups, mounts and one shim per sandbox.
//!
//! ```text
//! <run>/pods/<uid>/sandbox.json shim.sock shim.pid shim.log ns/{net,ipc,uts} shm/ rt/<cid>/   (the shim's)
//! <run>/pods/<uid>/c/<cid>/container.json process.json bundle/config.json rootfs/ running exit
//! <data>/images/   <data>/snapshots/<cid>/{upper,work}
//! <cgroup root>/<parent>/pod<uid>/{shim,<cid>}
//! ```
//! The daemon makes and removes directories, mounts and cgroups; the shim has the processes. What is known about them is kept in one table,
//! fed by a task per sandbox that is subscribed to its shim; after a restart the table is read back from the directories.
//! *Invariant: a container's state only moves forward* (created, running, exited), whichever of answer and event comes first.
#![allow(unsafe_code)] // the read-only mount of our own executable, and a terminal's size

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, SystemTime};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::broadcast;

use super::cgroup::{ALL_DEVICES, Cgroups, DEFAULT_DEVICES, DeviceRule};
use super::image::arrivals::Arrivals;
use super::image::snapshot::{self, Snapshot, unmount};
use super::image::store::Store;
use super::image::unpack::open_in;
use super::image::{self, import};
use super::oci::{self, Context, DeviceNode, PidNamespace, Process};
use super::shim::client::{Connection, call, watched};
use super::shim::protocol::{Call, FailureKind, Reply, Setup, Status, VERSION};
use super::shim::{sandbox::own_namespaces, start_time};
use super::*;

#[derive(Clone, Debug)]
pub struct Config {
    /// Names what this instance has in the kernel.
    pub instance: String,
    /// Short: socket paths below it may not pass 107 bytes.
    pub run_dir: PathBuf,
    pub data_dir: PathBuf,
    /// Our own executable.
    pub shim_exe: PathBuf,
}

impl Config {
    fn cgroup_root(&self) -> String {
        format!("/coracle-{}", self.instance)
    }
}

pub struct Linux {
    inner: Arc<Inner>,
    arrivals: tokio::task::JoinHandle<()>,
}

impl Drop for Linux {
    fn drop(&mut self) {
        self.arrivals.abort();
    }
}

struct Inner {
    config: Config,
    cgroups: Cgroups,
    store: Store,
    exe: Exe,
    own_capabilities: u64,
    table: Mutex<BTreeMap<String, Sandbox>>,
    events: broadcast::Sender<RuntimeEvent>,
    serial: AtomicU64,
    warnings: Vec<String>,
}

/// What shims are executed from.
enum Exe {
    /// A detached read-only mount of the file: no container can write to it through `/proc/<pid>/exe`.
    Mounted(OwnedFd),
    Plain(PathBuf),
}

impl Exe {
    fn path(&self) -> PathBuf {
        match self {
            Exe::Mounted(descriptor) => PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd())),
            Exe::Plain(path) => path.clone(),
        }
    }
}

struct Sandbox {
    setup: Setup,
    /// The shim's.
    pid: i32,
    started: u64,
    ready: bool,
    containers: BTreeMap<String, Container>,
}

struct Container {
    record: Record,
    status: Status,
    /// False while it is being made: nobody has been told of it yet.
    listed: bool,
}

/// `container.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    id: String,
    spec: ContainerSpec,
    image_id: String,
    cgroup: String,
    created_at: SystemTime,
    stop_signal: i32,
}

fn io_error<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { operation, path: path.to_path_buf(), source }
}

/// Runs on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("blocking work does not panic and is not cancelled")
}

/// Says when images came or went. Should that fail, waiting pods still find out at their next try.
async fn tell_arrivals(mut arrivals: Arrivals, events: broadcast::Sender<RuntimeEvent>) {
    loop {
        match arrivals.next().await {
            // Nobody may be listening.
            Ok(()) => drop(events.send(RuntimeEvent::ImagesChanged)),
            Err(error) => return tracing::warn!(%error, "new images are not noticed at once any more"),
        }
    }
}

impl Linux {
    /// Opens the node's containers: finds the sandboxes that outlived the last daemon and follows them again.
    pub async fn open(config: Config) -> Result<Linux> {
        let inner = blocking(move || Inner::open(config)).await?;
        let inner = Arc::new(inner);
        let recovered = blocking({
            let inner = inner.clone();
            move || inner.recover()
        })
        .await?;
        for id in recovered {
            inner.follow(&id);
        }
        let images = inner.store.root().to_path_buf();
        let arrivals = Arrivals::of(&images).map_err(io_error("watch", &images))?;
        let arrivals = crate::task::spawn("runtime-images", tell_arrivals(arrivals, inner.events.clone()));
        Ok(Linux { inner, arrivals })
    }

    /// Removes every sandbox and what the instance itself has in the kernel: for `stop --all` and the end of a trial.
    pub async fn teardown(&self) -> Result<()> {
        let ids: Vec<String> = self.inner.table().keys().cloned().collect();
        for id in ids {
            self.remove_sandbox(&id).await?;
        }
        let inner = self.inner.clone();
        blocking(move || {
            unmount(&inner.config.run_dir);
            // In-memory volumes of pods the daemon was about to forget when it ended.
            unmount_below(&inner.config.data_dir.join("pods"));
            inner.cgroups.remove(inner.cgroups.root()).map_err(io_error("remove cgroup", Path::new(inner.cgroups.root())))
        })
        .await
    }

    async fn on_thread<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = self.inner.clone();
        blocking(move || work(&inner)).await
    }
}

impl Inner {
    fn open(config: Config) -> Result<Inner> {
        let pods = config.run_dir.join("pods");
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for path in [&config.run_dir, &pods, &config.data_dir.join("snapshots")] {
            builder.create(path).map_err(io_error("make", path))?;
        }
        make_private(&config.run_dir).map_err(io_error("make a private mount of", &config.run_dir))?;
        let cgroup_root = config.cgroup_root();
        let cgroups = Cgroups::detect(&cgroup_root).map_err(io_error("detect cgroups for", Path::new(&cgroup_root)))?;
        cgroups.create(&cgroup_root).map_err(io_error("make cgroup", Path::new(&cgroup_root)))?;
        let store = Store::open(&config.data_dir.join("images")).map_err(image_error("image store"))?;
        let mut warnings = Vec::new();
        let exe = match mount_executable(&config.shim_exe) {
            Ok(descriptor) => Exe::Mounted(descriptor),
            Err(error) => {
                warnings.push(format!("{} is executed by its plain path: {error}", config.shim_exe.display()));
                Exe::Plain(config.shim_exe.clone())
            }
        };
        for warning in &warnings {
            tracing::warn!(warning, "runtime");
        }
        Ok(Inner {
            cgroups,
            store,
            exe,
            own_capabilities: own_capabilities(),
            table: Mutex::new(BTreeMap::new()),
            events: broadcast::channel(1024).0,
            serial: AtomicU64::new(0),
            warnings,
            config,
        })
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Sandbox>> {
        self.table.lock().expect("no panic while held")
    }

    fn dir(&self, sandbox: &str) -> PathBuf {
        self.config.run_dir.join("pods").join(sandbox)
    }

    fn container_dir(&self, sandbox: &str, id: &str) -> PathBuf {
        self.dir(sandbox).join("c").join(id)
    }

    fn socket(&self, sandbox: &str) -> PathBuf {
        self.dir(sandbox).join("shim.sock")
    }

    fn snapshot(&self, id: &str) -> Snapshot {
        Snapshot { dir: self.config.data_dir.join("snapshots").join(id) }
    }

    /// The sandbox a container is in.
    fn owner(&self, id: &str) -> Result<String> {
        let table = self.table();
        let found = table.iter().find(|(_, sandbox)| sandbox.containers.get(id).is_some_and(|container| container.listed));
        found.map(|(sandbox, _)| sandbox.clone()).ok_or_else(|| Error::ContainerNotFound { id: id.to_string() })
    }

    // --- sandboxes

    fn make_sandbox(&self, spec: SandboxSpec) -> Result<SandboxInfo> {
        let id = spec.id.clone();
        let dir = self.dir(&id);
        let cgroup = [self.cgroups.root(), spec.cgroup_parent.trim_matches('/'), &format!("pod{id}")]
            .iter()
            .filter(|part| !part.is_empty())
            .copied()
            .collect::<Vec<_>>()
            .join("/");
        let fail = |message: String| Error::Sandbox { id: id.clone(), message };
        if dir.exists() {
            // A half-made one of a daemon that ended meanwhile.
            self.clear_sandbox(&id, Some(&cgroup), &[])?;
        }
        let resources = spec.resources.clone();
        let setup = Setup {
            version: VERSION,
            created_at: SystemTime::now(),
            cgroup: cgroup.clone(),
            cgroup_root: self.cgroups.root().to_string(),
            sandbox: spec,
        };
        let made = self.start_shim(&dir, &setup, &resources);
        let (pid, started) = match made {
            Ok(identity) => identity,
            Err(error) => {
                let _ = self.clear_sandbox(&id, Some(&cgroup), &[]);
                return Err(fail(error.to_string()));
            }
        };
        let info = self.info(&setup, pid);
        let sandbox = Sandbox { setup, pid, started, ready: true, containers: BTreeMap::new() };
        self.table().insert(id, sandbox);
        Ok(info)
    }

    fn start_shim(&self, dir: &Path, setup: &Setup, resources: &Resources) -> io::Result<(i32, u64)> {
        fs::create_dir_all(dir.join("c"))?;
        fs::create_dir_all(dir.join("rt"))?;
        if !setup.sandbox.log_dir.as_os_str().is_empty() {
            fs::create_dir_all(&setup.sandbox.log_dir)?;
        }
        self.cgroups.create(&format!("{}/shim", setup.cgroup))?;
        self.cgroups.set(&setup.cgroup, resources)?;
        write_json(&dir.join("sandbox.json"), setup)?;
        let output = Command::new(self.exe.path())
            .arg0("coracle")
            .arg("shim")
            .arg(dir)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        if said.trim() != "ok" {
            let log = fs::read_to_string(dir.join("shim.log")).unwrap_or_default();
            let said = if said.trim().is_empty() { "the shim ended without a word".into() } else { said.trim().to_string() };
            return Err(io::Error::other(format!("{said} {}", log.trim()).trim().to_string()));
        }
        read_identity(&dir.join("shim.pid")).ok_or_else(|| io::Error::other("the shim left no pid"))
    }

    fn info(&self, setup: &Setup, pid: i32) -> SandboxInfo {
        let netns = match setup.sandbox.host_network {
            true => PathBuf::from("/proc/self/ns/net"),
            false => self.dir(&setup.sandbox.id).join("ns/net"),
        };
        SandboxInfo { id: setup.sandbox.id.clone(), netns, pid }
    }

    /// Everything a sandbox may have left, whether or not it ever worked.
    fn clear_sandbox(&self, id: &str, cgroup: Option<&str>, containers: &[String]) -> Result<()> {
        let dir = self.dir(id);
        for name in ["shim.pid", "pause.pid"] {
            if let Some((pid, started)) = read_identity(&dir.join(name))
                && start_time(pid) == Some(started)
            {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        if let Some(cgroup) = cgroup {
            self.cgroups.remove(cgroup).map_err(io_error("remove cgroup", Path::new(cgroup)))?;
        }
        unmount_below(&dir);
        for container in containers {
            self.snapshot(container).remove().map_err(image_error(container))?;
        }
        snapshot::remove_tree(&dir).map_err(image_error(id))
    }

    // --- containers

    /// Directories, file system, cgroup and specs of a new container: everything but its process.
    fn prepare(&self, sandbox: &str, id: &str, spec: ContainerSpec) -> Result<(Record, Call)> {
        let fail = |message: String| Error::Create { container: spec.name.clone(), message };
        let image = self.find_image(&spec.image)?;
        let lowers = self.store.lower_dirs(&image.id).ok_or_else(|| Error::ImageNotFound { reference: spec.image.clone() })?;
        let setup = {
            let table = self.table();
            let found = table.get(sandbox).ok_or_else(|| Error::SandboxNotFound { id: sandbox.to_string() })?;
            if !found.ready {
                return Err(Error::Sandbox { id: sandbox.to_string(), message: "its shim is gone".to_string() });
            }
            found.setup.clone()
        };
        let dir = self.container_dir(sandbox, id);
        let (bundle, rootfs) = (dir.join("bundle"), dir.join("rootfs"));
        for path in [&bundle, &rootfs] {
            fs::create_dir_all(path).map_err(io_error("make", path))?;
        }
        self.snapshot(id).mount(&lowers, &rootfs).map_err(|error| fail(image_text(&error)))?;
        let user = oci::resolve_user(
            &spec.user,
            &image.config.user,
            &self.image_file(&rootfs, "etc/passwd"),
            &self.image_file(&rootfs, "etc/group"),
        )
        .map_err(fail)?;
        let sources = self.mount_sources(&dir, &spec)?;
        let devices = self.devices(&spec)?;
        let cgroup = format!("{}/{id}", setup.cgroup);
        let target = spec.target_container.as_ref().map(|target| self.pid_of(sandbox, target)).transpose()?;
        let pid = match (target, setup.sandbox.host_pid, setup.sandbox.share_pid) {
            (Some(pid), ..) => PidNamespace::Of(pid),
            (None, true, _) => PidNamespace::Host,
            (None, false, true) => {
                let pause = read_identity(&self.dir(sandbox).join("pause.pid"));
                PidNamespace::Of(pause.ok_or_else(|| fail("the sandbox has no pause process".to_string()))?.0)
            }
            (None, false, false) => PidNamespace::Own,
        };
        let own = own_namespaces(&setup.sandbox);
        let namespace = |name: &str| own.iter().any(|(own, _)| *own == name).then(|| self.dir(sandbox).join("ns").join(name));
        let shm = if setup.sandbox.host_ipc { PathBuf::from("/dev/shm") } else { self.dir(sandbox).join("shm") };
        let hierarchies = self.cgroups.hierarchies(&cgroup);
        let context = Context {
            sandbox: &setup.sandbox,
            container: &spec,
            image: &image.config,
            user: &user,
            rootfs: &rootfs,
            network: namespace("net"),
            ipc: namespace("ipc"),
            uts: namespace("uts"),
            shm: &shm,
            cgroup: &cgroup,
            cgroup_hierarchies: &hierarchies,
            own_capabilities: self.own_capabilities,
            devices: &devices,
            sources: &sources,
            pid: pid.clone(),
        };
        let mut process = oci::process(&context).map_err(fail)?;
        process.seccomp = seccomp_program(&spec, process.capabilities).map_err(fail)?;
        let config = oci::container(&context);
        self.fill_cgroup(&cgroup, &spec, &devices).map_err(|error| fail(error.to_string()))?;
        let stop_signal = spec.stop_signal.as_deref().unwrap_or(&image.config.stop_signal);
        let record = Record {
            id: id.to_string(),
            image_id: image.id,
            cgroup: cgroup.clone(),
            created_at: SystemTime::now(),
            stop_signal: oci::signal_number(stop_signal).unwrap_or(15),
            spec: spec.clone(),
        };
        write_json(&bundle.join("config.json"), &config).map_err(io_error("write", &bundle))?;
        write_json(&dir.join("process.json"), &process).map_err(io_error("write", &dir))?;
        write_json(&dir.join("container.json"), &record).map_err(io_error("write", &dir))?;
        let call = Call::Create {
            id: id.to_string(),
            cgroup,
            log_path: spec.log_path.display().to_string(),
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            tty: spec.tty,
            shared_pids: pid != PidNamespace::Own,
        };
        Ok((record, call))
    }

    fn find_image(&self, reference: &str) -> Result<Image> {
        let invalid = |message| Error::InvalidReference { reference: reference.to_string(), message };
        self.store.resolve(reference).map_err(invalid)?.ok_or_else(|| Error::ImageNotFound { reference: reference.to_string() })
    }

    /// A small file of the container's root, found without leaving it; missing is empty.
    fn image_file(&self, rootfs: &Path, path: &str) -> String {
        let read = || -> io::Result<String> {
            let root = fs::File::open(rootfs)?;
            let found = open_in(&root, Path::new(path), nix::fcntl::OFlag::empty())?;
            let file = fs::File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
            if !file.metadata()?.is_file() {
                return Ok(String::new());
            }
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(file, 4 << 20), &mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }

    fn mount_sources(&self, dir: &Path, spec: &ContainerSpec) -> Result<Vec<Option<PathBuf>>> {
        let mut sources = Vec::new();
        for (at, mount) in spec.mounts.iter().enumerate() {
            sources.push(match &mount.source {
                MountSource::Tmpfs { .. } => None,
                MountSource::Host(path) => {
                    fs::metadata(path).map_err(|error| Error::Create {
                        container: spec.name.clone(),
                        message: format!("mount source {}: {error}", path.display()),
                    })?;
                    Some(path.clone())
                }
                MountSource::Image { reference, sub_path } => {
                    let image = self.find_image(reference)?;
                    let lowers = self.store.lower_dirs(&image.id).unwrap_or_default();
                    let target = dir.join(format!("image-{at}"));
                    fs::create_dir_all(&target).map_err(io_error("make", &target))?;
                    snapshot::mount_image(&lowers, &target).map_err(image_error(reference))?;
                    let root = fs::File::open(&target).map_err(io_error("open", &target))?;
                    let inside = open_in(&root, Path::new(sub_path), nix::fcntl::OFlag::empty())
                        .map_err(|error| io_error("find in image", Path::new(sub_path))(error.into()))?;
                    let resolved = fs::read_link(format!("/proc/self/fd/{}", inside.as_raw_fd()));
                    Some(resolved.map_err(io_error("resolve", &target))?)
                }
            });
        }
        Ok(sources)
    }

    fn devices(&self, spec: &ContainerSpec) -> Result<Vec<DeviceNode>> {
        if spec.privileged {
            return Ok(host_devices(Path::new("/dev")));
        }
        let node = |device: &Device| {
            let path = device.host_path.as_path();
            let metadata = fs::metadata(path).map_err(io_error("find device", path))?;
            device_node(device.container_path.clone(), &metadata)
                .ok_or_else(|| Error::Create { container: spec.name.clone(), message: format!("{} is not a device", path.display()) })
        };
        spec.devices.iter().map(node).collect()
    }

    fn fill_cgroup(&self, cgroup: &str, spec: &ContainerSpec, devices: &[DeviceNode]) -> io::Result<()> {
        self.cgroups.create(cgroup)?;
        self.cgroups.set(cgroup, &spec.resources)?;
        self.cgroups.kill_as_one(cgroup);
        if spec.privileged {
            return self.cgroups.set_devices(cgroup, ALL_DEVICES);
        }
        let mut rules = DEFAULT_DEVICES.to_vec();
        for (node, asked) in devices.iter().zip(&spec.devices) {
            rules.push(DeviceRule {
                kind: node.kind,
                major: Some(node.major),
                minor: Some(node.minor),
                access: access(&asked.permissions),
            });
        }
        self.cgroups.set_devices(cgroup, &rules)
    }

    fn pid_of(&self, sandbox: &str, id: &str) -> Result<i32> {
        let table = self.table();
        let container = table.get(sandbox).and_then(|sandbox| sandbox.containers.get(id));
        match container.map(|container| container.status.state) {
            Some(State::Running { pid }) => Ok(pid),
            Some(State::Created | State::Exited { .. }) => Err(Error::NotRunning { id: id.to_string() }),
            None => Err(Error::ContainerNotFound { id: id.to_string() }),
        }
    }

    /// What [`Inner::prepare`] made, and what the container wrote.
    fn clear_container(&self, sandbox: &str, id: &str, cgroup: Option<&str>) -> Result<()> {
        let dir = self.container_dir(sandbox, id);
        unmount_below(&dir);
        if let Some(cgroup) = cgroup {
            self.cgroups.remove(cgroup).map_err(io_error("remove cgroup", Path::new(cgroup)))?;
        }
        self.snapshot(id).remove().map_err(image_error(id))?;
        snapshot::remove_tree(&dir).map_err(image_error(id))
    }

    // --- what the shims say

    /// Keeps a sandbox's part of the table true until the sandbox is removed.
    fn follow(self: &Arc<Inner>, id: &str) {
        let (inner, id) = (self.clone(), id.to_string());
        crate::task::spawn("runtime-follow", async move {
            while inner.follow_once(&id).await {
                // The socket is there but refused or closed: only a shim that cut a slow subscriber does that.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }

    /// False once there is nothing to follow.
    async fn follow_once(self: &Arc<Inner>, id: &str) -> bool {
        if let Ok(connection) = Connection::open(&self.socket(id))
            && connection.send(Call::Subscribe, &[]).await.is_ok()
        {
            while let Ok(Some((Reply::Status(statuses), _))) = connection.receive().await {
                for status in statuses {
                    self.apply(id, status);
                }
            }
        }
        let (pid, started) = match self.table().get(id) {
            Some(sandbox) if sandbox.ready => (sandbox.pid, sandbox.started),
            Some(_) | None => return false,
        };
        if start_time(pid) == Some(started) {
            return true;
        }
        let (inner, lost) = (self.clone(), id.to_string());
        blocking(move || inner.lose(&lost)).await;
        false
    }

    fn apply(&self, sandbox: &str, status: Status) {
        let events = {
            let mut table = self.table();
            let container = table.get_mut(sandbox).and_then(|sandbox| sandbox.containers.get_mut(&status.id));
            let Some(container) = container.filter(|container| rank(status.state) > rank(container.status.state)) else { return };
            container.status = status.clone();
            changes(sandbox, &status)
        };
        for event in events {
            let _ = self.events.send(event);
        }
    }

    /// The shim is gone and its containers with it, as far as that is in our hands.
    fn lose(&self, id: &str) {
        let cgroup = match self.table().get_mut(id) {
            None => return,
            Some(sandbox) => {
                sandbox.ready = false;
                sandbox.setup.cgroup.clone()
            }
        };
        tracing::warn!(sandbox = id, "its shim has ended; killing what it left");
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !self.cgroups.pids(&cgroup).is_empty() && std::time::Instant::now() < deadline {
            self.cgroups.kill(&cgroup);
            std::thread::sleep(Duration::from_millis(5));
        }
        let alive: Vec<String> = self.table().get(id).map(|sandbox| sandbox.containers.keys().cloned().collect()).unwrap_or_default();
        for container in alive {
            let status = self.last_status(id, &container, true);
            self.apply(id, status);
        }
        let _ = self.events.send(RuntimeEvent::SandboxLost { sandbox: id.to_string() });
    }

    /// What the files say of a container. `ended`: no shim will say more.
    fn last_status(&self, sandbox: &str, id: &str, ended: bool) -> Status {
        let dir = self.container_dir(sandbox, id);
        let read = |name: &str| fs::read(dir.join(name)).ok();
        if let Some(status) = read("exit").and_then(|bytes| serde_json::from_slice::<Status>(&bytes).ok()) {
            return status;
        }
        let running = read("running").and_then(|bytes| serde_json::from_slice::<(Status, String)>(&bytes).ok());
        let mut status = running.map(|(status, _)| status).unwrap_or_else(|| Status {
            id: id.to_string(),
            state: State::Created,
            started_at: None,
            finished_at: None,
            reason: String::new(),
            message: String::new(),
        });
        if ended {
            status.state = State::Exited { code: 137, signal: 0, oom_killed: false };
            status.finished_at = Some(SystemTime::now());
            status.reason = "ContainerStatusUnknown".to_string();
            status.message = "The container could not be located when its shim was lost".to_string();
        }
        status
    }

    // --- after a restart

    /// Fills the table from the directories; answers the sandboxes whose shims live.
    fn recover(&self) -> Result<Vec<String>> {
        let pods = self.config.run_dir.join("pods");
        let mut alive = Vec::new();
        let mut known: Vec<String> = Vec::new();
        for entry in fs::read_dir(&pods).map_err(io_error("read", &pods))?.flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            let Some(setup) = read_json::<Setup>(&entry.path().join("sandbox.json")) else {
                // Never finished.
                self.clear_sandbox(&id, None, &[])?;
                continue;
            };
            let containers = self.recover_containers(&id);
            known.extend(containers.keys().cloned());
            let (pid, started) = read_identity(&entry.path().join("shim.pid")).unwrap_or((0, 0));
            let ready = pid > 0 && start_time(pid) == Some(started);
            self.table().insert(id.clone(), Sandbox { setup, pid, started, ready, containers });
            if ready {
                alive.push(id);
            } else {
                self.lose(&id);
            }
        }
        let snapshots = self.config.data_dir.join("snapshots");
        for entry in fs::read_dir(&snapshots).map_err(io_error("read", &snapshots))?.flatten() {
            if !known.iter().any(|id| **id == *entry.file_name()) {
                snapshot::remove_tree(&entry.path()).map_err(image_error("snapshot"))?;
            }
        }
        Ok(alive)
    }

    fn recover_containers(&self, sandbox: &str) -> BTreeMap<String, Container> {
        let mut containers = BTreeMap::new();
        for entry in fs::read_dir(self.dir(sandbox).join("c")).into_iter().flatten().flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            match read_json::<Record>(&entry.path().join("container.json")) {
                Some(record) => {
                    let status = self.last_status(sandbox, &id, false);
                    containers.insert(id, Container { record, status, listed: true });
                }
                None => {
                    let _ = self.clear_container(sandbox, &id, None);
                }
            }
        }
        containers
    }

    fn state(&self, sandbox: &Sandbox) -> SandboxState {
        SandboxState {
            info: self.info(&sandbox.setup, sandbox.pid),
            namespace: sandbox.setup.sandbox.namespace.clone(),
            name: sandbox.setup.sandbox.name.clone(),
            created_at: sandbox.setup.created_at,
            ready: sandbox.ready,
            resources: sandbox.setup.sandbox.resources.clone(),
            labels: sandbox.setup.sandbox.labels.clone(),
            annotations: sandbox.setup.sandbox.annotations.clone(),
            containers: sandbox.containers.values().filter(|container| container.listed).map(container_state).collect(),
        }
    }
}

fn container_state(container: &Container) -> ContainerState {
    let Container { record, status, .. } = container;
    ContainerState {
        id: record.id.clone(),
        name: record.spec.name.clone(),
        attempt: record.spec.attempt,
        image: record.spec.image.clone(),
        image_id: record.image_id.clone(),
        state: status.state,
        created_at: record.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        reason: status.reason.clone(),
        message: status.message.clone(),
        log_path: record.spec.log_path.clone(),
        stop_signal: record.stop_signal,
        resources: record.spec.resources.clone(),
        labels: record.spec.labels.clone(),
        annotations: record.spec.annotations.clone(),
    }
}

fn rank(state: State) -> u8 {
    match state {
        State::Created => 0,
        State::Running { .. } => 1,
        State::Exited { .. } => 2,
    }
}

fn changes(sandbox: &str, status: &Status) -> Vec<RuntimeEvent> {
    let (sandbox, container) = (sandbox.to_string(), status.id.clone());
    match status.state {
        State::Created => Vec::new(),
        State::Running { .. } => vec![RuntimeEvent::Started { sandbox, container }],
        State::Exited { oom_killed: true, .. } => vec![
            RuntimeEvent::OutOfMemory { sandbox: sandbox.clone(), container: container.clone() },
            RuntimeEvent::Exited { sandbox, container },
        ],
        State::Exited { .. } => vec![RuntimeEvent::Exited { sandbox, container }],
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, serde_json::to_vec(value)?)?;
    fs::rename(temporary, path)
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn read_identity(path: &Path) -> Option<(i32, u64)> {
    let text = fs::read_to_string(path).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

fn image_text(error: &image::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

fn image_error(image: &str) -> impl FnOnce(image::Error) -> Error + '_ {
    move |error| Error::Image { image: image.to_string(), message: image_text(&error) }
}

/// The filter of a container's processes in base64; empty if they are not confined.
fn seccomp_program(spec: &ContainerSpec, capabilities: u64) -> std::result::Result<String, String> {
    let profile = match &spec.seccomp {
        _ if spec.privileged => return Ok(String::new()),
        Seccomp::Unconfined => return Ok(String::new()),
        Seccomp::RuntimeDefault => seccomp::runtime_default(capabilities),
        Seccomp::Localhost(path) => {
            let failed = |error: &dyn std::fmt::Display| format!("cannot load seccomp profile {}: {error}", path.display());
            let text = fs::read(path).map_err(|error| failed(&error))?;
            seccomp::Profile::parse(&text, capabilities).map_err(|error| failed(&error))?
        }
    };
    Ok(base64::Engine::encode(&base64::prelude::BASE64_STANDARD, profile.compile()))
}

fn access(permissions: &str) -> &'static str {
    let has = |letter| permissions.contains(letter);
    match (has('r'), has('w'), has('m')) {
        (true, true, true) => "rwm",
        (true, true, false) => "rw",
        (true, false, true) => "rm",
        (true, false, false) => "r",
        (false, true, true) => "wm",
        (false, true, false) => "w",
        (false, false, true) => "m",
        (false, false, false) => "rwm",
    }
}

fn device_node(path: String, metadata: &fs::Metadata) -> Option<DeviceNode> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => return None,
    };
    Some(DeviceNode {
        path,
        kind,
        major: nix::sys::stat::major(metadata.rdev()) as u32,
        minor: nix::sys::stat::minor(metadata.rdev()) as u32,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// All devices of the host but terminals, which a container has of its own.
fn host_devices(dir: &Path) -> Vec<DeviceNode> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let name = entry.file_name();
        if metadata.is_dir() {
            if !["pts", "shm", "mqueue", "fd"].iter().any(|skipped| name == *skipped) {
                found.extend(host_devices(&path));
            }
        } else if !["console", "ptmx"].iter().any(|skipped| name == *skipped) {
            found.extend(device_node(path.display().to_string(), &metadata));
        }
    }
    found
}

fn own_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}

fn mount_points() -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let unescape = |point: &str| point.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
    mountinfo.lines().filter_map(|line| Some(PathBuf::from(unescape(line.split(' ').nth(4)?)))).collect()
}

/// Detached, deepest first: nothing busy can keep a pod from going.
fn unmount_below(dir: &Path) {
    let mut points: Vec<PathBuf> = mount_points().into_iter().filter(|point| point.starts_with(dir)).collect();
    points.sort();
    for point in points.iter().rev() {
        let _ = umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
}

/// A mount of its own whose mounts reach no other namespace: systemd makes `/` shared, and a copy of a container's root in
/// somebody else's namespace would keep it busy for ever.
fn make_private(dir: &Path) -> io::Result<()> {
    let dir = fs::canonicalize(dir)?;
    if !mount_points().contains(&dir) {
        mount(Some(&dir), &dir, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    Ok(mount(None::<&str>, &dir, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)?)
}

fn mount_executable(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        namespace: u64,
    }
    const OPEN_TREE_CLONE: libc::c_long = 1;
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is NUL-terminated; the result is a new descriptor or negative.
    let tree =
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, name.as_ptr(), OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_long) };
    if tree < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    let tree = unsafe { OwnedFd::from_raw_fd(tree as i32) };
    let attributes = Attributes { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, namespace: 0 };
    // SAFETY: the structure is the kernel's first version of `mount_attr`, as its size says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if result == 0 { Ok(tree) } else { Err(io::Error::last_os_error()) }
}

/// A failed call's reply as the error it stands for.
fn refused(sandbox: &str, container: &str, reply: Reply) -> Error {
    match reply {
        Reply::Failed(failure) => match failure.kind {
            FailureKind::NoSuchContainer => Error::ContainerNotFound { id: container.to_string() },
            FailureKind::NotRunning => Error::NotRunning { id: container.to_string() },
            FailureKind::Create => Error::Create { container: container.to_string(), message: failure.message },
            FailureKind::Start => Error::Start { container: container.to_string(), message: failure.message, code: failure.code },
            FailureKind::Other => Error::Shim { sandbox: sandbox.to_string(), message: failure.message },
        },
        other => Error::Shim { sandbox: sandbox.to_string(), message: format!("unexpected reply {other:?}") },
    }
}

fn shim_error(sandbox: &str) -> impl Fn(io::Error) -> Error + '_ {
    move |error| Error::Shim { sandbox: sandbox.to_string(), message: error.to_string() }
}

impl Linux {
    async fn call(&self, sandbox: &str, container: &str, request: Call) -> Result<()> {
        match call(&self.inner.socket(sandbox), request).await.map_err(shim_error(sandbox))? {
            Reply::Done | Reply::Created { .. } => Ok(()),
            reply => Err(refused(sandbox, container, reply)),
        }
    }

    async fn create(&self, sandbox: &str, spec: ContainerSpec) -> Result<ContainerId> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).expect("the kernel has random bytes");
        let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let (of, name, new) = (sandbox.to_string(), spec.name.clone(), id.clone());
        let prepared = self.on_thread(move |inner| inner.prepare(&of, &new, spec)).await;
        let created = match prepared {
            Ok((record, request)) => {
                let status = self.inner.last_status(sandbox, &id, false);
                let container = Container { record, status, listed: false };
                match self.inner.table().get_mut(sandbox) {
                    Some(sandbox) => sandbox.containers.insert(id.clone(), container),
                    None => return Err(Error::SandboxNotFound { id: sandbox.to_string() }),
                };
                self.call(sandbox, &name, request).await
            }
            Err(error) => Err(error),
        };
        let mut failed_cgroup = None;
        if let Some(sandbox) = self.inner.table().get_mut(sandbox) {
            match &created {
                Ok(()) => {
                    if let Some(container) = sandbox.containers.get_mut(&id) {
                        container.listed = true;
                    }
                }
                Err(_) => {
                    sandbox.containers.remove(&id);
                    failed_cgroup = Some(format!("{}/{id}", sandbox.setup.cgroup));
                }
            }
        }
        if let Err(error) = created {
            let (of, gone) = (sandbox.to_string(), id);
            let cleared = self.on_thread(move |inner| inner.clear_container(&of, &gone, failed_cgroup.as_deref())).await;
            if let Err(also) = cleared {
                tracing::warn!(error = also.chain(), "clearing a container that could not be created");
            }
            return Err(error);
        }
        Ok(id)
    }

    async fn start(&self, id: &str) -> Result<()> {
        let sandbox = self.inner.owner(id)?;
        self.call(&sandbox, id, Call::Start { id: id.to_string() }).await?;
        // The event brings the state too, but whoever started it may ask before.
        if let Some(status) = read_json::<(Status, String)>(&self.inner.container_dir(&sandbox, id).join("running")) {
            self.inner.apply(&sandbox, status.0);
        }
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let Ok(sandbox) = self.inner.owner(id) else { return Ok(()) };
        let ready = self.inner.table().get(&sandbox).is_some_and(|sandbox| sandbox.ready);
        if ready {
            self.call(&sandbox, id, Call::Delete { id: id.to_string() }).await?;
        }
        let cgroup = {
            let mut table = self.inner.table();
            let container = table.get_mut(&sandbox).and_then(|sandbox| sandbox.containers.remove(id));
            container.map(|container| container.record.cgroup)
        };
        let (of, gone) = (sandbox, id.to_string());
        self.on_thread(move |inner| inner.clear_container(&of, &gone, cgroup.as_deref())).await
    }

    async fn remove_all(&self, id: &str) -> Result<()> {
        let (cgroup, containers, ready) = match self.inner.table().get_mut(id) {
            Some(sandbox) => {
                let ready = std::mem::replace(&mut sandbox.ready, false);
                (Some(sandbox.setup.cgroup.clone()), sandbox.containers.keys().cloned().collect(), ready)
            }
            None => (None, Vec::new(), false),
        };
        if ready {
            // What a shim does not manage in time the cgroup does.
            let _ = tokio::time::timeout(Duration::from_secs(15), call(&self.inner.socket(id), Call::Shutdown)).await;
        }
        let gone = id.to_string();
        self.on_thread(move |inner| inner.clear_sandbox(&gone, cgroup.as_deref(), &containers)).await?;
        self.inner.table().remove(id);
        Ok(())
    }

    async fn run_exec(&self, id: &str, spec: ExecSpec) -> Result<ExecSession> {
        let sandbox = self.inner.owner(id)?;
        self.inner.pid_of(&sandbox, id)?;
        let dir = self.inner.container_dir(&sandbox, id);
        let name = format!("exec-{}-{}.json", std::process::id(), self.inner.serial.fetch_add(1, Ordering::Relaxed));
        let mut process: Process = read_json(&dir.join("process.json")).ok_or_else(|| Error::ContainerNotFound { id: id.to_string() })?;
        process.args = spec.command;
        process.tty = spec.tty;
        process.propagations = Vec::new();
        if spec.tty && !process.env.iter().any(|entry| entry.starts_with("TERM=")) {
            process.env.push("TERM=xterm".to_string());
        }
        write_json(&dir.join(&name), &process).map_err(io_error("write", &dir))?;
        let result = self.exec_streams(&sandbox, id, &name, &ExecSpec { command: Vec::new(), ..spec }).await;
        let _ = fs::remove_file(dir.join(name));
        result
    }

    async fn exec_streams(&self, sandbox: &str, id: &str, process: &str, spec: &ExecSpec) -> Result<ExecSession> {
        let failed = shim_error(sandbox);
        let connection = Connection::open(&self.inner.socket(sandbox)).map_err(&failed)?;
        let request = Call::Exec { id: id.to_string(), process: process.to_string(), tty: spec.tty };
        let mut streams = Streams::default();
        if spec.tty {
            connection.send(request, &[]).await.map_err(&failed)?;
        } else {
            let theirs = streams.make(spec).map_err(&failed)?;
            connection.send(request, &[theirs[0].as_fd(), theirs[1].as_fd(), theirs[2].as_fd()]).await.map_err(&failed)?;
        }
        let (reply, mut descriptors) =
            connection.receive().await.map_err(&failed)?.ok_or_else(|| failed(io::Error::other("the shim closed the connection")))?;
        match reply {
            Reply::ExecStarted { .. } => {}
            Reply::Failed(failure) if failure.kind == FailureKind::Start => {
                return Err(Error::Exec { message: failure.message, code: failure.code });
            }
            reply => return Err(refused(sandbox, id, reply)),
        }
        let mut master = None;
        if spec.tty {
            let terminal = Terminal::new(descriptors.pop().ok_or_else(|| failed(io::Error::other("no terminal came back")))?);
            let terminal = Arc::new(terminal.map_err(&failed)?);
            streams.stdin = Some(Box::new(TerminalEnd(terminal.clone())));
            streams.stdout = Some(Box::new(TerminalEnd(terminal.clone())));
            master = Some(terminal);
        }
        Ok(session(sandbox, connection, streams, master, true))
    }

    async fn join_streams(&self, id: &str, spec: AttachSpec) -> Result<ExecSession> {
        let sandbox = self.inner.owner(id)?;
        self.inner.pid_of(&sandbox, id)?;
        let failed = shim_error(&sandbox);
        let connection = Connection::open(&self.inner.socket(&sandbox)).map_err(&failed)?;
        let mut streams = Streams::default();
        let AttachSpec { stdin, stdout, stderr } = spec;
        let theirs = streams.make(&ExecSpec { stdin, stdout, stderr, ..ExecSpec::default() }).map_err(&failed)?;
        let request = Call::Attach { id: id.to_string(), stdin, stdout, stderr };
        connection.send(request, &[theirs[0].as_fd(), theirs[1].as_fd(), theirs[2].as_fd()]).await.map_err(&failed)?;
        drop(theirs);
        let reply = connection.receive().await.map_err(&failed)?;
        match reply.ok_or_else(|| failed(io::Error::other("the shim closed the connection")))? {
            (Reply::ExecStarted { .. }, mut descriptors) => {
                let master = descriptors.pop().map(Terminal::new).transpose().map_err(&failed)?.map(Arc::new);
                Ok(session(&sandbox, connection, streams, master, false))
            }
            (reply, _) => Err(refused(&sandbox, id, reply)),
        }
    }

    async fn dial_inside(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>> {
        let info = {
            let table = self.inner.table();
            let found = table.get(sandbox).ok_or_else(|| Error::SandboxNotFound { id: sandbox.to_string() })?;
            self.inner.info(&found.setup, found.pid)
        };
        let (done, connected) = tokio::sync::oneshot::channel();
        // A thread of its own: a network namespace belongs to a thread, and this one ends with it.
        std::thread::Builder::new()
            .name("dial".to_string())
            .spawn(move || drop(done.send(dial(&info.netns, port))))
            .map_err(io_error("start thread for", Path::new("dial")))?;
        let stream = connected.await.map_err(|_| Error::Dial { message: "the dialling thread ended".to_string() })?;
        let stream = stream.map_err(|message| Error::Dial { message })?;
        let stream = tokio::net::TcpStream::from_std(stream).map_err(|error| Error::Dial { message: error.to_string() })?;
        Ok(Box::new(stream))
    }
}

/// A session whose end comes over the connection. The connection of one that is only attached goes with its control.
fn session(sandbox: &str, connection: Connection, streams: Streams, master: Option<Arc<Terminal>>, is_ours: bool) -> ExecSession {
    let connection = Arc::new(connection);
    let control = Arc::new(Control { connection: connection.clone(), master, is_ours });
    let sandbox = sandbox.to_string();
    let exit = Box::pin(async move {
        let failed = shim_error(&sandbox);
        match connection.receive().await.map_err(&failed)? {
            Some((Reply::ExecExited { code }, _)) => Ok(code),
            Some((reply, _)) => Err(refused(&sandbox, "", reply)),
            None => Err(failed(io::Error::other("the shim ended"))),
        }
    });
    ExecSession { stdin: streams.stdin, stdout: streams.stdout, stderr: streams.stderr, exit, control }
}

/// Connects within a network namespace to its own loopback, of either family.
fn dial(netns: &Path, port: u16) -> std::result::Result<std::net::TcpStream, String> {
    let namespace = fs::File::open(netns).map_err(|error| format!("open {}: {error}", netns.display()))?;
    nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).map_err(|error| format!("enter {}: {error}", netns.display()))?;
    let connect = |address: std::net::IpAddr| std::net::TcpStream::connect_timeout(&(address, port).into(), DIAL_TIMEOUT);
    let stream = connect(std::net::Ipv4Addr::LOCALHOST.into())
        .or_else(|first| connect(std::net::Ipv6Addr::LOCALHOST.into()).map_err(|_| first))
        .map_err(|error| format!("failed to connect to localhost:{port} inside the pod: {error}"))?;
    stream.set_nonblocking(true).map_err(|error| error.to_string())?;
    Ok(stream)
}

const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Streams {
    stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
}

impl Streams {
    /// Keeps our ends of what was asked for; answers the process's three.
    fn make(&mut self, spec: &ExecSpec) -> io::Result<[OwnedFd; 3]> {
        let null = || Ok::<OwnedFd, io::Error>(fs::File::options().read(true).write(true).open("/dev/null")?.into());
        let stdin = if spec.stdin {
            let (read, write) = io::pipe()?;
            self.stdin = Some(Box::new(pipe::Sender::from_owned_fd(write.into())?));
            read.into()
        } else {
            null()?
        };
        let output = |wanted: bool| -> io::Result<(OwnedFd, Option<Box<dyn AsyncRead + Send + Unpin>>)> {
            if !wanted {
                return Ok((null()?, None));
            }
            let (read, write) = io::pipe()?;
            Ok((write.into(), Some(Box::new(pipe::Receiver::from_owned_fd(read.into())?))))
        };
        let (stdout, ours) = output(spec.stdout)?;
        self.stdout = ours;
        let (stderr, ours) = output(spec.stderr)?;
        self.stderr = ours;
        Ok([stdin, stdout, stderr])
    }
}

struct Control {
    connection: Arc<Connection>,
    master: Option<Arc<Terminal>>,
    /// The process was started by this session.
    is_ours: bool,
}

impl ExecControl for Control {
    fn resize(&self, columns: u16, rows: u16) {
        if let Some(master) = &self.master {
            let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            // SAFETY: the kernel reads one winsize, which this is.
            unsafe { libc::ioctl(master.0.get_ref().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        }
    }

    fn kill(&self) {
        if self.is_ours {
            let _ = self.connection.send_now(Call::KillExec);
        }
    }
}

/// The master of a terminal: one descriptor, read and written.
struct Terminal(AsyncFd<OwnedFd>);

struct TerminalEnd(Arc<Terminal>);

impl Terminal {
    fn new(master: OwnedFd) -> io::Result<Terminal> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let flags = OFlag::from_bits_retain(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Terminal(watched(master)?))
    }
}

impl AsyncRead for TerminalEnd {
    fn poll_read(self: Pin<&mut Self>, context: &mut TaskContext<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = std::task::ready!(self.0.0.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            match guard.try_io(|master| Ok(nix::unistd::read(master.get_ref(), unfilled)?)) {
                Ok(Ok(read)) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                // What a terminal says once nobody has its other end open.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for TerminalEnd {
    fn poll_write(self: Pin<&mut Self>, context: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = std::task::ready!(self.0.0.poll_write_ready(context))?;
            match guard.try_io(|master| Ok(nix::unistd::write(master.get_ref(), bytes)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Names a directory and parts of socket and cgroup paths.
fn is_sandbox_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=63).contains(&id.len()) && id.bytes().all(allowed) && !id.starts_with('.')
}

impl Runtime for Linux {
    fn create_sandbox(&self, spec: SandboxSpec) -> BoxFuture<'_, Result<SandboxInfo>> {
        Box::pin(async move {
            let id = spec.id.clone();
            if !is_sandbox_id(&id) {
                return Err(Error::Sandbox { message: "the id cannot name a directory".to_string(), id });
            }
            if let Some(sandbox) = self.inner.table().get(&id) {
                return match sandbox.ready {
                    true => Ok(self.inner.info(&sandbox.setup, sandbox.pid)),
                    false => Err(Error::Sandbox { id, message: "it is lost or going; remove it first".to_string() }),
                };
            }
            let info = self.on_thread(move |inner| inner.make_sandbox(spec)).await?;
            self.inner.follow(&id);
            Ok(info)
        })
    }

    fn remove_sandbox<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if !is_sandbox_id(id) {
                return Ok(());
            }
            self.remove_all(id).await
        })
    }

    fn create_container<'a>(&'a self, sandbox: &'a str, spec: ContainerSpec) -> BoxFuture<'a, Result<ContainerId>> {
        Box::pin(self.create(sandbox, spec))
    }

    fn start_container<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.start(id))
    }

    fn kill_container<'a>(&'a self, id: &'a str, signal: i32) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let sandbox = self.inner.owner(id)?;
            let ready = self.inner.table().get(&sandbox).is_some_and(|sandbox| sandbox.ready);
            if !ready {
                return Ok(());
            }
            self.call(&sandbox, id, Call::Kill { id: id.to_string(), signal }).await
        })
    }

    fn remove_container<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.remove(id))
    }

    fn update_container<'a>(&'a self, id: &'a str, resources: Resources) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let sandbox = self.inner.owner(id)?;
            let (old, record) = {
                let mut table = self.inner.table();
                let container = table.get_mut(&sandbox).and_then(|sandbox| sandbox.containers.get_mut(id));
                let container = container.ok_or_else(|| Error::ContainerNotFound { id: id.to_string() })?;
                let spec = ContainerSpec { resources, ..container.record.spec.clone() };
                (container.record.spec.resources.clone(), Record { spec, ..container.record.clone() })
            };
            let (of, new) = (sandbox.clone(), record.clone());
            self.on_thread(move |inner| {
                let failed = io_error("set limits of", Path::new(&new.cgroup));
                inner.cgroups.change(&new.cgroup, &old, &new.spec.resources).map_err(failed)?;
                let path = inner.container_dir(&of, &new.id).join("container.json");
                write_json(&path, &new).map_err(io_error("write", &path))
            })
            .await?;
            let mut table = self.inner.table();
            if let Some(container) = table.get_mut(&sandbox).and_then(|sandbox| sandbox.containers.get_mut(id)) {
                container.record = record;
            }
            Ok(())
        })
    }

    fn update_sandbox<'a>(&'a self, id: &'a str, resources: Resources) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let setup = self.inner.table().get(id).map(|sandbox| sandbox.setup.clone());
            let old = setup.ok_or_else(|| Error::SandboxNotFound { id: id.to_string() })?;
            let new = Setup { sandbox: SandboxSpec { resources, ..old.sandbox.clone() }, ..old.clone() };
            let written = new.clone();
            self.on_thread(move |inner| {
                let failed = io_error("set limits of", Path::new(&new.cgroup));
                inner.cgroups.change(&new.cgroup, &old.sandbox.resources, &new.sandbox.resources).map_err(failed)?;
                let path = inner.dir(&new.sandbox.id).join("sandbox.json");
                write_json(&path, &new).map_err(io_error("write", &path))
            })
            .await?;
            if let Some(sandbox) = self.inner.table().get_mut(id) {
                sandbox.setup = written;
            }
            Ok(())
        })
    }

    fn reopen_log<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let sandbox = self.inner.owner(id)?;
            self.call(&sandbox, id, Call::ReopenLog { id: id.to_string() }).await
        })
    }

    fn list(&self) -> BoxFuture<'_, Vec<SandboxState>> {
        Box::pin(async move { self.inner.table().values().map(|sandbox| self.inner.state(sandbox)).collect() })
    }

    fn sandbox<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Option<SandboxState>> {
        Box::pin(async move { self.inner.table().get(id).map(|sandbox| self.inner.state(sandbox)) })
    }

    fn exec<'a>(&'a self, container: &'a str, spec: ExecSpec) -> BoxFuture<'a, Result<ExecSession>> {
        Box::pin(self.run_exec(container, spec))
    }

    fn attach<'a>(&'a self, container: &'a str, spec: AttachSpec) -> BoxFuture<'a, Result<ExecSession>> {
        Box::pin(self.join_streams(container, spec))
    }

    fn dial<'a>(&'a self, sandbox: &'a str, port: u16) -> BoxFuture<'a, Result<Box<dyn Duplex>>> {
        Box::pin(self.dial_inside(sandbox, port))
    }

    fn stats<'a>(&'a self, sandbox: &'a str) -> BoxFuture<'a, Result<SandboxStats>> {
        let id = sandbox.to_string();
        Box::pin(self.on_thread(move |inner| {
            let (cgroup, containers) = {
                let table = inner.table();
                let sandbox = table.get(&id).ok_or(Error::SandboxNotFound { id })?;
                let cgroups = sandbox.containers.values().filter(|container| container.listed);
                let cgroups = cgroups.map(|container| (container.record.id.clone(), container.record.cgroup.clone()));
                (sandbox.setup.cgroup.clone(), cgroups.collect::<Vec<_>>())
            };
            let one = |(id, cgroup): (String, String)| {
                let writable = snapshot::usage(&inner.snapshot(&id).upper());
                let stats = Stats { writable, ..inner.cgroups.stats(&cgroup) };
                (id, stats)
            };
            Ok(SandboxStats { total: inner.cgroups.stats(&cgroup), containers: containers.into_iter().map(one).collect() })
        }))
    }

    fn subscribe(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events.subscribe()
    }

    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<Option<Image>>> {
        let invalid = |message| Error::InvalidReference { reference: reference.to_string(), message };
        Box::pin(async move { self.inner.store.resolve(reference).map_err(invalid) })
    }

    fn import<'a>(&'a self, archive: &'a Path) -> BoxFuture<'a, Result<Vec<String>>> {
        let path = archive.to_path_buf();
        Box::pin(self.on_thread(move |inner| {
            let name = path.display().to_string();
            import::import(&inner.store, &path).map_err(image_error(&name))
        }))
    }

    fn list_images(&self) -> BoxFuture<'_, Vec<Image>> {
        Box::pin(async move { self.inner.store.list() })
    }

    fn remove_image<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<()>> {
        let reference = reference.to_string();
        Box::pin(self.on_thread(move |inner| {
            let user = |image: &str| {
                let table = inner.table();
                let mut containers = table.values().flat_map(|sandbox| sandbox.containers.values());
                containers.find(|container| container.record.image_id == image).map(|container| container.record.id.clone())
            };
            inner.store.remove(&reference, user).map_err(image_error(&reference))
        }))
    }

    fn image_usage(&self) -> BoxFuture<'_, Usage> {
        let inner = self.inner.clone();
        Box::pin(blocking(move || inner.store.usage()))
    }

    fn warnings(&self) -> Vec<String> {
        self.inner.warnings.clone()
    }
}
