//! Real containers, as root: an image made of this machine's shell, run by the real binary's shims.
//!
//! Every test has its own mount namespace, run and data directory and instance id, and ends by checking that nothing is left:
//! no process, mount, cgroup or directory. Without root they pass by saying so.

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coracle::runtime::image::import::pack;
use coracle::runtime::linux::{Config, Linux};
use coracle::runtime::*;
use futures_util::FutureExt;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Node {
    root: PathBuf,
    config: Config,
    runtime: Linux,
}

/// Runs a story on threads that have a mount namespace of their own.
fn story<F: Future<Output = ()>>(shared: MsFlags, tell: impl FnOnce(Node) -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("needs root: not run");
        return;
    }
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let instance = format!("{:06x}{:02x}", std::process::id() & 0xff_ffff, SERIAL.fetch_add(1, Ordering::Relaxed));
    let told = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | shared, None::<&str>).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let root = std::env::temp_dir().join(format!("coracle-it-{instance}"));
        let config = Config {
            run_dir: PathBuf::from("/run/coracle-it").join(&instance),
            data_dir: root.join("data"),
            shim_exe: PathBuf::from(env!("CARGO_BIN_EXE_coracle")),
            instance: instance.clone(),
        };
        fs::create_dir_all(&root).unwrap();
        let told = runtime.block_on(async {
            let node = Node { root: root.clone(), runtime: Linux::open(config.clone()).await.unwrap(), config: config.clone() };
            node.import_shell().await;
            std::panic::AssertUnwindSafe(tell(node)).catch_unwind().await
        });
        // Also after a failure: the next test must not find our processes.
        runtime.block_on(async {
            let last = Linux::open(config.clone()).await.unwrap();
            last.teardown().await.unwrap();
            assert_nothing_left(&config);
            fs::remove_dir_all(&config.run_dir).unwrap();
            while nix::mount::umount2(&root.join("volume"), nix::mount::MntFlags::MNT_DETACH).is_ok() {}
            fs::remove_dir_all(&root).unwrap();
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
        told
    });
    if let Err(panic) = told.join().and_then(|told| told) {
        std::panic::resume_unwind(panic);
    }
}

fn assert_nothing_left(config: &Config) {
    let mountinfo = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let run = config.run_dir.display().to_string();
    let mounts: Vec<&str> = mountinfo.lines().filter(|line| line.contains(&run)).collect();
    assert!(mounts.is_empty(), "mounts left: {mounts:#?}");
    assert_eq!(fs::read_dir(config.run_dir.join("pods")).unwrap().count(), 0, "directories left");
    assert_eq!(fs::read_dir(config.data_dir.join("snapshots")).unwrap().count(), 0, "snapshots left");
    let group = format!("coracle-{}", config.instance);
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        assert!(!hierarchy.path().join(&group).exists(), "cgroup left in {}", hierarchy.path().display());
    }
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        assert!(!command.contains(&run), "process left: {command}");
    }
}

/// A program's file and those of the libraries it loads.
fn with_libraries(programs: &[&str]) -> Vec<(String, PathBuf)> {
    let mut files: BTreeSet<String> = BTreeSet::new();
    for program in programs {
        files.insert(program.to_string());
        let output = std::process::Command::new("ldd").arg(program).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        files.extend(text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_string));
    }
    files.into_iter().map(|file| (file.clone(), fs::canonicalize(&file).unwrap())).collect()
}

const SHELL: &str = "test/shell:1";

impl Node {
    async fn import_shell(&self) {
        let mut files = with_libraries(&[
            "/bin/sh",
            "/bin/sleep",
            "/bin/cat",
            "/usr/bin/id",
            "/usr/bin/head",
            "/usr/bin/tail",
            "/bin/mount",
            "/usr/bin/stty",
        ]);
        for (path, text) in [
            ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n"),
            ("/etc/group", "root:x:0:\nwww:x:34:\nextra:x:50:web\n"),
        ] {
            let source = self.root.join(path.trim_start_matches('/').replace('/', "-"));
            fs::write(&source, text).unwrap();
            files.push((path.to_string(), source));
        }
        let archive = self.root.join("shell.tar");
        let image = ImageConfig { env: vec!["FROM_IMAGE=yes".into()], cmd: vec!["/bin/sh".into()], ..ImageConfig::default() };
        pack(&archive, SHELL, &files, &image).unwrap();
        assert_eq!(self.runtime.import(&archive).await.unwrap(), [SHELL]);
        fs::remove_file(&archive).unwrap();
    }

    fn pod(&self, id: &str) -> SandboxSpec {
        SandboxSpec {
            id: id.into(),
            namespace: "default".into(),
            name: id.into(),
            hostname: format!("host-{id}"),
            cgroup_parent: "burstable".into(),
            log_dir: self.root.join("logs").join(id),
            ..SandboxSpec::default()
        }
    }

    fn shell(&self, name: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            name: name.into(),
            image: SHELL.into(),
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            log_path: self.root.join("logs").join(format!("{name}.log")),
            ..ContainerSpec::default()
        }
    }

    async fn run(&self, pod: &str, spec: ContainerSpec) -> String {
        let id = self.runtime.create_container(pod, spec).await.unwrap();
        self.runtime.start_container(&id).await.unwrap();
        id
    }

    async fn state(&self, id: &str) -> ContainerState {
        let sandboxes = self.runtime.list().await;
        sandboxes.into_iter().flat_map(|sandbox| sandbox.containers).find(|container| container.id == id).expect("it is listed")
    }

    async fn ended(&self, id: &str) -> ContainerState {
        let mut events = self.runtime.subscribe();
        tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                let state = self.state(id).await;
                if matches!(state.state, State::Exited { .. }) {
                    return state;
                }
                let _ = events.recv().await;
            }
        })
        .await
        .expect("the container ends")
    }

    /// What a container said, once it has ended.
    async fn said(&self, pod: &str, spec: ContainerSpec) -> String {
        let id = self.run(pod, spec).await;
        let state = self.ended(&id).await;
        self.runtime.remove_container(&id).await.unwrap();
        log_text(&state.log_path)
    }
}

fn log_text(path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    let mut text = String::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let line = log::parse(line).expect("every line is in the format");
        text.push_str(&String::from_utf8_lossy(line.text));
        text.push('\n');
    }
    fs::remove_file(path).unwrap();
    text
}

fn code(state: &ContainerState) -> (i32, i32, bool, &str) {
    match state.state {
        State::Exited { code, signal, oom_killed } => (code, signal, oom_killed, &state.reason),
        other => panic!("still {other:?}"),
    }
}

#[test]
fn root_a_container_runs_logs_and_exits() {
    story(MsFlags::MS_PRIVATE, |node| async move {
        let sandbox = node.runtime.create_sandbox(node.pod("p1")).await.unwrap();
        assert!(sandbox.netns.exists());
        let script = "echo out; echo err >&2; echo $FROM_IMAGE $EXTRA $HOSTNAME; echo -n unfinished; exit 42";
        let spec = ContainerSpec { env: vec![("EXTRA".into(), "more".into())], ..node.shell("c", script) };
        let id = node.run("p1", spec).await;
        let state = node.ended(&id).await;
        assert_eq!(code(&state), (42, 0, false, "Error"));
        assert!(state.started_at.is_some() && state.finished_at >= state.started_at && state.image_id.starts_with("sha256:"));
        let mut lines: Vec<String> = log_text(&state.log_path).lines().map(str::to_string).collect();
        lines.sort();
        assert_eq!(lines, ["err", "out", "unfinished", "yes more host-p1"]);

        // What it sees: its own processes, its name, a loopback that is up, no signals held back, and no capabilities beyond the usual.
        let script = "cat /proc/sys/kernel/hostname; echo $$; cat /proc/self/status | while read a b; do case $a in \
                      Sig*|Cap[EB]*|Seccomp:|NoNewPrivs:) echo $a $b;; esac; done; id; pwd";
        let said = node.said("p1", ContainerSpec { cwd: Some("/made/here".into()), ..node.shell("look", script) }).await;
        for expected in [
            "host-p1",
            "1",
            "SigBlk: 0000000000000000",
            "SigIgn: 0000000000000000",
            "CapEff: 00000000a80425fb",
            "CapBnd: 00000000a80425fb",
            "NoNewPrivs: 0",
            "uid=0(root) gid=0(root) groups=0(root)",
            "/made/here",
        ] {
            assert!(said.lines().any(|line| line == expected), "{expected:?} in {said}");
        }
        let user = User { uid: Some(33), supplemental_groups: vec![77], ..User::default() };
        let spec = ContainerSpec {
            user,
            no_new_privileges: true,
            read_only_root: true,
            ..node.shell("user", "id; cat /proc/self/status; echo x > /x")
        };
        let said = node.said("p1", spec).await;
        assert!(said.contains("uid=33(web) gid=34(www) groups=34(www),50(extra),77"), "{said}");
        assert!(
            said.contains("NoNewPrivs:\t1") && said.contains("CapEff:\t0000000000000000") && said.contains("Read-only file system"),
            "{said}"
        );
        node.runtime.remove_sandbox("p1").await.unwrap();
        node.runtime.remove_sandbox("p1").await.unwrap();
    });
}

#[test]
fn root_failed_starts_say_what_a_pod_should_show() {
    story(MsFlags::MS_PRIVATE, |node| async move {
        node.runtime.create_sandbox(node.pod("p2")).await.unwrap();
        let start = async |command: &str| {
            let spec = ContainerSpec { command: vec![command.into()], ..node.shell("c", "") };
            let id = node.runtime.create_container("p2", spec).await.unwrap();
            let error = node.runtime.start_container(&id).await.unwrap_err();
            let state = node.ended(&id).await;
            assert_eq!(state.reason, "StartError");
            node.runtime.remove_container(&id).await.unwrap();
            (error.to_string(), error.exit_code().unwrap(), error.reason())
        };
        assert_eq!(start("nope").await, ("exec: \"nope\": executable file not found in $PATH".into(), 127, "RunContainerError"));
        assert_eq!(start("/nope").await, ("exec: \"/nope\": stat /nope: no such file or directory".into(), 127, "RunContainerError"));
        assert_eq!(start("/etc/passwd").await, ("exec: \"/etc/passwd\": permission denied".into(), 126, "RunContainerError"));
        let missing = node.runtime.create_container("p2", ContainerSpec { image: "none".into(), ..node.shell("c", "") }).await;
        assert!(matches!(missing, Err(Error::ImageNotFound { .. })));
        let user = ContainerSpec {
            mounts: vec![Mount {
                source: MountSource::Host("/does/not/exist".into()),
                target: "/x".into(),
                readonly: false,
                recursive_readonly: false,
                propagation: Propagation::Private,
            }],
            ..node.shell("c", "")
        };
        let error = node.runtime.create_container("p2", user).await.unwrap_err();
        assert_eq!(error.reason(), "CreateContainerError");
        assert!(error.to_string().contains("/does/not/exist"), "{error}");
        assert!(node.runtime.list().await[0].containers.is_empty());
        node.runtime.remove_sandbox("p2").await.unwrap();
    });
}

#[test]
fn root_commands_join_a_running_container() {
    story(MsFlags::MS_PRIVATE, |node| async move {
        node.runtime.create_sandbox(node.pod("p3")).await.unwrap();
        let user = User { uid: Some(33), ..User::default() };
        let id = node.run("p3", ContainerSpec { user, ..node.shell("c", "sleep 1000") }).await;
        let sh = |script: &str| vec!["/bin/sh".to_string(), "-c".into(), script.into()];
        let run = async |script: &str| exec_sync(&node.runtime, &id, sh(script), Duration::from_secs(10), 4096).await.unwrap();
        let output = run("id; cat /proc/1/comm; cat /proc/self/status; echo $FROM_IMAGE; exit 7").await;
        let text = String::from_utf8_lossy(&output.output).into_owned();
        assert_eq!(output.code, 7);
        assert!(text.contains("uid=33(web) gid=34(www)") && text.contains("sh\n") && text.contains("yes\n"), "{text}");
        assert!(text.contains("SigIgn:\t0000000000000000") && text.contains("CapBnd:\t00000000a80425fb"), "{text}");
        assert_eq!(run("kill -9 $$").await.code, 137);

        let error = exec_sync(&node.runtime, &id, vec!["nope".into()], Duration::from_secs(5), 10).await.unwrap_err();
        assert!(matches!(&error, Error::Exec { code: 127, message } if message.contains("$PATH")), "{error}");
        let late = exec_sync(&node.runtime, &id, sh("sleep 100"), Duration::from_millis(200), 10).await.unwrap();
        assert!(late.timed_out);

        let spec = ExecSpec { command: vec!["cat".into()], stdin: true, stdout: true, ..ExecSpec::default() };
        let mut session = node.runtime.exec(&id, spec).await.unwrap();
        let mut stdin = session.stdin.take().unwrap();
        let sent = vec![b'x'; 1 << 20];
        let write = async {
            stdin.write_all(&sent).await.unwrap();
            drop(stdin);
        };
        let mut received = Vec::new();
        let mut stdout = session.stdout.take().unwrap();
        let (_, read) = tokio::join!(write, stdout.read_to_end(&mut received));
        assert_eq!((read.unwrap(), session.exit.await.unwrap()), (1 << 20, 0));

        let spec = ExecSpec {
            command: sh("read x; stty size; echo got $x; tty -s; exit 3"),
            tty: true,
            stdin: true,
            stdout: true,
            ..ExecSpec::default()
        };
        let mut session = node.runtime.exec(&id, spec).await.unwrap();
        session.control.resize(101, 33);
        session.stdin.take().unwrap().write_all(b"typed\n").await.unwrap();
        let mut text = String::new();
        session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
        assert!(text.contains("33 101") && text.contains("got typed"), "{text:?}");
        assert_eq!(session.exit.await.unwrap(), 3);
        node.runtime.remove_sandbox("p3").await.unwrap();
    });
}

#[test]
fn root_limits_hold_and_their_victims_are_named() {
    story(MsFlags::MS_PRIVATE, |node| async move {
        node.runtime.create_sandbox(node.pod("p4")).await.unwrap();
        let resources = Resources { memory_limit_bytes: Some(32 << 20), pids_limit: Some(20), ..Resources::default() };
        let hungry = "x=a; while true; do x=$x$x$x$x; done";
        let id = node.run("p4", ContainerSpec { resources: resources.clone(), ..node.shell("oom", hungry) }).await;
        assert_eq!(code(&node.ended(&id).await), (137, 9, true, "OOMKilled"));

        let id = node.run("p4", ContainerSpec { resources, ..node.shell("dev", "sleep 1000") }).await;
        let stats = node.runtime.stats("p4").await.unwrap();
        assert!(stats.containers.iter().any(|(of, stats)| *of == id && stats.memory_usage_bytes > 0 && stats.processes >= 1));
        let raised = Resources { memory_limit_bytes: Some(64 << 20), ..Resources::default() };
        node.runtime.update_container(&id, raised).await.unwrap();

        // Asked to stop, as PID 1 without a handler it does not; killed, it does.
        node.runtime.kill_container(&id, 15).await.unwrap();
        node.runtime.kill_container(&id, 9).await.unwrap();
        assert_eq!(code(&node.ended(&id).await), (137, 9, false, "Error"));
        node.runtime.kill_container(&id, 9).await.unwrap();
        node.runtime.remove_sandbox("p4").await.unwrap();
    });
}

#[test]
fn root_containers_outlive_the_daemon() {
    story(MsFlags::MS_PRIVATE, |node| async move {
        node.runtime.create_sandbox(node.pod("p5")).await.unwrap();
        let long = node.run("p5", node.shell("long", "echo before; while [ ! -e /go ]; do sleep 0.05; done; echo after; exit 9")).await;
        let short = node.run("p5", node.shell("short", "exit 4")).await;
        node.ended(&short).await;
        let node = Node { runtime: Linux::open(node.config.clone()).await.unwrap(), ..node };
        assert!(matches!(node.state(&long).await.state, State::Running { .. }));
        assert_eq!(code(&node.ended(&short).await), (4, 0, false, "Error"));
        let touched =
            exec_sync(&node.runtime, &long, vec!["/bin/sh".into(), "-c".into(), ": > /go".into()], Duration::from_secs(5), 10).await;
        assert_eq!(touched.unwrap().code, 0);
        let state = node.ended(&long).await;
        assert_eq!(code(&state), (9, 0, false, "Error"));
        assert_eq!(log_text(&state.log_path), "before\nafter\n");

        // A killed shim takes its containers with it, and everyone is told.
        let id = node.run("p5", node.shell("orphan", "sleep 1000")).await;
        let mut events = node.runtime.subscribe();
        let State::Running { pid } = node.state(&id).await.state else { panic!("it runs") };
        let shim = node.runtime.list().await[0].info.pid;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
        assert_eq!(code(&node.ended(&id).await), (137, 0, false, "ContainerStatusUnknown"));
        while events.recv().await.unwrap() != (RuntimeEvent::SandboxLost { sandbox: "p5".into() }) {}
        assert!(
            !Path::new(&format!("/proc/{pid}/status")).exists() || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z")
        );
        assert!(!node.runtime.list().await[0].ready);
        node.runtime.remove_sandbox("p5").await.unwrap();
    });
}

#[test]
fn root_mounts_are_as_asked_below_a_shared_root() {
    story(MsFlags::MS_SHARED, |node| async move {
        let volume = node.root.join("volume");
        fs::create_dir_all(&volume).unwrap();
        fs::write(volume.join("file"), "content").unwrap();
        mount(Some(&volume), &volume, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        mount(None::<&str>, &volume, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        let at = |target: &str, readonly, propagation| Mount {
            source: MountSource::Host(volume.clone()),
            target: target.into(),
            readonly,
            recursive_readonly: readonly,
            propagation,
        };
        node.runtime.create_sandbox(node.pod("p6")).await.unwrap();
        let before = fs::read_to_string("/proc/thread-self/mountinfo").unwrap().lines().count();
        let mounts = vec![
            at("/ro", true, Propagation::Private),
            at("/rw", false, Propagation::Private),
            Mount { source: MountSource::Host(volume.join("file")), target: "/etc/one".into(), ..at("", true, Propagation::Private) },
            Mount {
                source: MountSource::Tmpfs { size_bytes: Some(1 << 20), mode: 0o1777 },
                target: "/tmp".into(),
                ..at("", false, Propagation::Private)
            },
            Mount {
                source: MountSource::Image { reference: SHELL.into(), sub_path: "etc".into() },
                target: "/img".into(),
                ..at("", true, Propagation::Private)
            },
        ];
        let script = "cat /ro/file /etc/one; echo > /ro/x; echo > /rw/made && echo rw; echo > /tmp/t && echo tmp; cat /img/group; echo > /img/x; echo > /dev/shm/x && echo shm";
        let said = node.said("p6", ContainerSpec { mounts, ..node.shell("m", script) }).await;
        for expected in
            ["contentcontent", "/ro/x: Read-only file system", "rw\n", "\ntmp\n", "www:x:34:", "/img/x: Read-only file system", "\nshm\n"]
        {
            assert!(said.contains(expected), "{expected:?} in {said}");
        }
        assert!(volume.join("made").exists());
        let after = fs::read_to_string("/proc/thread-self/mountinfo").unwrap().lines().count();
        assert_eq!(before, after, "a container's mounts stay in it");

        // Only what is shared both ways comes out; what is mounted outside comes in where it was asked for.
        let (both, down, none) = (
            at("/both", false, Propagation::Bidirectional),
            at("/down", false, Propagation::HostToContainer),
            at("/none", false, Propagation::Private),
        );
        for dir in ["in", "out"] {
            fs::create_dir_all(volume.join(dir)).unwrap();
        }
        let spec = ContainerSpec { mounts: vec![both, down, none], privileged: true, ..node.shell("prop", "sleep 1000") };
        let id = node.run("p6", spec).await;
        let sh = async |script: &str| {
            let output = exec_sync(&node.runtime, &id, vec!["/bin/sh".into(), "-c".into(), script.into()], Duration::from_secs(5), 4096)
                .await
                .unwrap();
            String::from_utf8_lossy(&output.output).into_owned()
        };
        assert_eq!(sh("mount -t tmpfs t /both/out && : > /both/out/seen && mount -t tmpfs t /none/in && : > /none/in/hidden").await, "");
        assert!(volume.join("out/seen").exists() && !volume.join("in/hidden").exists());
        mount(Some("t"), &volume.join("in"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(volume.join("in/late"), "").unwrap();
        assert_eq!(sh("[ -e /down/in/late ] && echo down; [ -e /none/in/late ] || echo none").await, "down\nnone\n");
        node.runtime.remove_sandbox("p6").await.unwrap();
        for dir in ["in", "out", "."] {
            nix::mount::umount2(&volume.join(dir), nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    });
}

#[test]
fn root_shared_processes_host_namespaces_and_terminals() {
    story(MsFlags::MS_PRIVATE, |node| async move {
        let sysctls = [("net.ipv4.ip_unprivileged_port_start".to_string(), "81".to_string())].into();
        node.runtime.create_sandbox(SandboxSpec { share_pid: true, sysctls, ..node.pod("p7") }).await.unwrap();
        let first = node.run("p7", node.shell("first", "sleep 1000 & sleep 2000")).await;
        let said = node.said("p7", node.shell("second", "cat /proc/1/comm /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/*/comm; ls /proc/1/root/etc || cat /proc/1/root/etc/passwd")).await;
        assert!(said.starts_with("pause\n81\n") && said.matches("sleep").count() >= 2, "{said}");
        node.runtime.kill_container(&first, 9).await.unwrap();
        node.ended(&first).await;
        let said = node.said("p7", node.shell("third", "cat /proc/*/comm; cat /sys/fs/cgroup/pids/cgroup.procs")).await;
        assert_eq!(said.matches("sleep").count(), 0, "the first one's children went with it: {said}");

        let bad = SandboxSpec { sysctls: [("kernel.pid_max".to_string(), "9".to_string())].into(), ..node.pod("p8") };
        let error = node.runtime.create_sandbox(bad).await.unwrap_err();
        assert!(error.to_string().contains("kernel.pid_max"), "{error}");

        node.runtime.create_sandbox(SandboxSpec { host_network: true, host_pid: true, host_ipc: true, ..node.pod("p9") }).await.unwrap();
        let said = node.said("p9", node.shell("host", "cat /proc/sys/kernel/hostname; cat /proc/1/comm")).await;
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap() + &fs::read_to_string("/proc/1/comm").unwrap();
        assert_eq!(said, host);

        let spec = ContainerSpec { tty: true, stdin: true, ..node.shell("tty", "stty -a > /dev/null && echo terminal; sleep 0.1") };
        assert_eq!(node.said("p9", spec).await.trim_end_matches(['\n', '\r']), "terminal");
        for pod in ["p7", "p9"] {
            node.runtime.remove_sandbox(pod).await.unwrap();
        }
        assert!(node.runtime.list().await.is_empty());
    });
}

#[test]
fn root_no_container_can_write_to_our_executable() {
    story(MsFlags::MS_PRIVATE, |node| async move {
        node.runtime.create_sandbox(SandboxSpec { host_pid: true, ..node.pod("p10") }).await.unwrap();
        let shim = node.runtime.list().await[0].info.pid;
        let spec = ContainerSpec { privileged: true, ..node.shell("evil", &format!("echo x >> /proc/{shim}/exe && echo written")) };
        let said = node.said("p10", spec).await;
        assert!(said.contains("Read-only file system") || said.contains("Text file busy"), "{said}");
        assert!(node.runtime.warnings().iter().all(|warning| !warning.contains("plain path")));
        node.runtime.remove_sandbox("p10").await.unwrap();
    });
}

#[test]
fn root_many_at_once_and_how_long_one_takes() {
    story(MsFlags::MS_PRIVATE, |node| async move {
        node.runtime.create_sandbox(node.pod("p11")).await.unwrap();
        let mut times = Vec::new();
        for number in 0..20 {
            let spec = node.shell(&format!("t{number}"), "echo up; sleep 1000");
            let log = spec.log_path.clone();
            let begun = Instant::now();
            let id = node.run("p11", spec).await;
            while fs::metadata(&log).map_or(0, |metadata| metadata.len()) == 0 {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            times.push(begun.elapsed());
            node.runtime.remove_container(&id).await.unwrap();
        }
        times.sort();
        println!("create to first output: p50 {:?}, max {:?}", times[10], times[19]);
        let pods: Vec<String> = (0..8).map(|number| format!("q{number}")).collect();
        let begun = Instant::now();
        let node = &node;
        let all = pods.iter().map(|pod| async move {
            node.runtime.create_sandbox(node.pod(pod)).await.unwrap();
            let id = node.run(pod, node.shell(&format!("{pod}-c"), "exit 5")).await;
            assert_eq!(code(&node.ended(&id).await).0, 5);
            node.runtime.remove_sandbox(pod).await.unwrap();
        });
        futures_util::future::join_all(all).await;
        println!("8 pods at once, from nothing to nothing: {:?}", begun.elapsed());
        let shim = node.runtime.list().await[0].info.pid;
        let rollup = fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
        println!(
            "shim: {}",
            rollup.lines().filter(|line| line.starts_with("Pss:") || line.starts_with("Private_Dirty")).collect::<Vec<_>>().join(", ")
        );
        node.runtime.remove_sandbox("p11").await.unwrap();
    });
}
