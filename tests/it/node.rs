//! The harness of the cluster tests: one node in network and mount namespaces of its own, driven with the real kubectl.
//!
//! A holder process keeps the namespaces; every command enters them with `nsenter`, a restarted daemon too. Dropping a
//! [`Node`] removes the instance and checks that neither process, mount, cgroup nor directory of it is left.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use coracle::config::instance_id;

pub const EXE: &str = env!("CARGO_BIN_EXE_coracle");

/// How long a condition may take on a busy two-core machine before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Node {
    holder: Child,
    daemon: Option<Child>,
    pub dir: PathBuf,
    /// Version of kubectl, such as `1.36`.
    pub kubectl_version: &'static str,
}

/// Polls `probe` until it gives `Ok`; fails the test with the last `Err` after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(why) if Instant::now() > end => panic!("{what}: {why}"),
            // Watching from outside the system under test: there is no event to wait for.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

impl Node {
    /// Makes the namespaces and starts `coracle server` in them; returns when the node is Ready.
    pub fn start(name: &str, arguments: &[&str]) -> Node {
        let mut node = Node::prepare(name);
        node.start_daemon(arguments);
        node.wait_ready();
        node
    }

    /// The namespaces with an uplink and a default route, and no daemon yet.
    pub fn prepare(name: &str) -> Node {
        assert!(nix::unistd::geteuid().is_root(), "cluster tests need root");
        let dir = PathBuf::from(format!("/var/tmp/coracle-it-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut holder = Command::new("unshare");
        holder.args(["--net", "--mount", "--propagation", "private", "sh", "-c"]);
        holder.arg(
            "set -e; ip link set lo up; ip link add up0 type veth peer name up1; ip addr add 198.18.0.2/24 dev up0; \
             ip link set up0 up; ip link set up1 up; ip route add default via 198.18.0.1; echo ready; exec sleep infinity",
        );
        let mut holder = holder.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().unwrap()), &mut line).unwrap();
        assert_eq!(line, "ready\n", "the namespaces could not be made");
        Node { holder, daemon: None, dir, kubectl_version: "1.36" }
    }

    /// `program` inside the node's namespaces.
    pub fn enter(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--net", "--mount", "--"]).arg(program);
        command.env("KUBECONFIG", self.kubeconfig()).env("CORACLE_DATA_DIR", self.data_dir()).env("HOME", &self.dir);
        command
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig.yaml")
    }

    pub fn start_daemon(&mut self, arguments: &[&str]) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut command = self.enter(EXE);
        command.args(["server", "--node-name", "node-1"]).arg("--write-kubeconfig").arg(self.kubeconfig()).args(arguments);
        command.env("CORACLE_LOG", "info").stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null());
        self.daemon = Some(command.spawn().unwrap());
    }

    pub fn wait_ready(&mut self) {
        eventually("the node becomes Ready", || {
            if let Some(status) = self.daemon.as_mut().and_then(|d| d.try_wait().unwrap()) {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            let wide = self.kubectl(&["get", "node", "node-1", "--no-headers"]);
            let text = text(&wide);
            if wide.status.success() && text.contains(" Ready ") { Ok(()) } else { Err(format!("{text}\n{}", self.log())) }
        });
    }

    /// The end of the daemon's log.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// `kill -9` of the daemon alone.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon runs");
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub fn kubectl_path(&self) -> PathBuf {
        let dir = std::env::var("CORACLE_KUBECTL_DIR").unwrap_or_else(|_| format!("{}/target/kubectl", env!("CARGO_MANIFEST_DIR")));
        let path = Path::new(&dir).join(format!("kubectl-{}", self.kubectl_version));
        assert!(path.exists(), "{} is missing: `make test` or `packaging/needs test` fetches it", path.display());
        path
    }

    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.enter(self.kubectl_path());
        command.args(arguments);
        command
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs kubectl, which must succeed; gives its standard output.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        assert!(output.status.success(), "kubectl {arguments:?}:\n{}\n-- daemon log:\n{}", text(&output), self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs kubectl, which must fail; gives what it printed.
    #[track_caller]
    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        assert!(!output.status.success(), "kubectl {arguments:?} succeeded:\n{}", text(&output));
        text(&output)
    }

    /// `kubectl <arguments> -f -` with `manifest` on standard input.
    pub fn feed(&self, arguments: &[&str], manifest: &str) -> Output {
        self.fed(&[arguments, &["-f", "-"]].concat(), manifest)
    }

    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        let output = self.feed(&["apply"], manifest);
        assert!(output.status.success(), "kubectl apply:\n{}\n-- daemon log:\n{}", text(&output), self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until `kubectl <arguments>` prints something that satisfies `wanted`.
    #[track_caller]
    pub fn until(&self, arguments: &[&str], wanted: impl Fn(&str) -> bool) -> String {
        eventually(&format!("kubectl {arguments:?}"), || {
            let output = self.kubectl(arguments);
            let printed = text(&output);
            if output.status.success() && wanted(&printed) {
                Ok(printed)
            } else {
                Err(format!("{printed}\n-- daemon log:\n{}", self.log()))
            }
        })
    }

    pub fn holder_pid(&self) -> u32 {
        self.holder.id()
    }

    /// Runs kubectl with `input` on standard input.
    pub fn fed(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.kubectl_command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Packs and imports `image`.
    pub fn import(&self, image: &crate::image::Image<'_>) {
        let archive = self.dir.join("image.tar");
        crate::image::pack(image, &archive);
        let output = self.enter(EXE).args(["images", "import"]).arg(&archive).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }

    /// Imports the sample image (this very executable).
    pub fn import_sample(&self) {
        let archive = self.dir.join("sample.tar");
        assert!(Command::new(EXE).arg("sample-image").arg(&archive).status().unwrap().success());
        let output = self.enter(EXE).args(["images", "import"]).arg(&archive).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let instance = instance_id(&self.data_dir());
        // A daemon that never came up has no data dir.
        let _ = std::fs::create_dir_all(self.data_dir());
        // The same clean-up `try` has, in the node's namespaces; it removes the data dir.
        let cleaned = self.enter(EXE).arg("try-holder").arg(self.data_dir()).stdin(Stdio::null()).output();
        let failing = std::thread::panicking();
        if let Ok(output) = cleaned
            && !output.status.success()
            && !failing
        {
            panic!("cleaning up failed: {}", text(&output));
        }
        let left = leftovers(&instance, self.holder.id());
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        if failing {
            eprintln!("the daemon's log is in {}", self.dir.join("log").display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
    }
}

/// Mounts (in the holder's namespace), cgroups and processes that name `instance`.
pub fn leftovers(instance: &str, holder: u32) -> Vec<String> {
    let mut left = Vec::new();
    let mounts = std::fs::read_to_string(format!("/proc/{holder}/mounts")).unwrap_or_default();
    left.extend(mounts.lines().filter(|l| l.contains(instance)).map(|l| format!("mount {l}")));
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let found = Command::new("find").arg(hierarchy.path()).args(["-type", "d", "-name"]).arg(format!("*{instance}*")).output().unwrap();
        left.extend(String::from_utf8_lossy(&found.stdout).lines().map(|l| format!("cgroup {l}")));
    }
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let cmdline = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        if cmdline.contains(&format!("/run/coracle/{instance}")) {
            left.push(format!("process {}: {cmdline}", process.file_name().to_string_lossy()));
        }
    }
    left
}

/// Both streams of a finished command.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
