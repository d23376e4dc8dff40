//! What a user does with the program around kubectl: terminals, throw-away clusters, kubeconfigs, two clusters on one
//! machine, and a machine that cannot run a node. Needs root; see `node` for how each is kept apart.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};

use coracle::config::instance_id;
use nix::poll::{PollFd, PollFlags, poll};

use crate::image;
use crate::node::{EXE, Node, eventually, leftovers, text};

const WAITING_POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: sleeper}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - \
                           {name: main, image: \"test.local/nginx:1\", command: [sleep, \"1000\"]}\n";

/// A child that is killed with its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn root_a_watch_shows_a_pod_come_and_go() {
    let node = Node::start("watch", &[]);
    node.import(&image::NGINX);
    let mut watch = Killed(node.kubectl_command(&["get", "pods", "-w", "--output-watch-events"]).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(watch.0.stdout.take().unwrap()).lines();
    node.apply(WAITING_POD);
    let mut seen = Vec::new();
    let mut until = |wanted: &str| {
        while !seen.last().is_some_and(|line: &String| line.contains(wanted)) {
            seen.push(lines.next().unwrap_or_else(|| panic!("the watch ended before {wanted}: {seen:#?}")).unwrap());
        }
    };
    until("Running");
    node.ok(&["delete", "pod", "sleeper"]);
    until("DELETED");
    assert!(seen.iter().any(|line| line.starts_with("ADDED") && line.contains("Pending")), "{seen:#?}");
}

/// An interactive shell on a terminal of 40 by 100, which is then made larger.
#[test]
fn root_exec_with_a_terminal() {
    let node = Node::start("tty", &[]);
    let programs = [image::NGINX.programs, &["/usr/bin/stty", "/usr/bin/tty"]].concat();
    node.import(&image::Image { programs: &programs, ..image::NGINX });
    node.apply(WAITING_POD);
    node.ok(&["wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s"]);
    let size = |rows, columns| nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(Some(&size(40, 100)), None).unwrap();
    let end = || Stdio::from(pty.slave.try_clone().unwrap());
    // In a session of its own, so that the terminal is its controlling one and says when its size changes.
    let mut command = node.enter("setsid");
    command.args(["--ctty", "--wait"]).arg(node.kubectl_path()).args(["exec", "-it", "sleeper", "--", "sh"]);
    let mut child = Killed(command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap());
    drop(command);
    let mut master = std::fs::File::from(pty.master.try_clone().unwrap());
    let mut seen = String::new();
    let mut expect = |wanted: &str| {
        let mut buffer = [0; 4096];
        let end = loop {
            if let Some(at) = seen.find(wanted) {
                break at + wanted.len();
            }
            let mut ready = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut ready, 60_000u16), Ok(1), "waiting for {wanted}: {seen}");
            let read = master.read(&mut buffer).unwrap_or_else(|e| panic!("{e} before {wanted}: {seen}"));
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        };
        // What came with it is the next one's.
        seen.drain(..end);
    };
    let mut keys = std::fs::File::from(pty.master.try_clone().unwrap());
    // A prompt first: what is typed before raw mode would be echoed twice.
    expect("# ");
    keys.write_all(b"tty; stty size\n").unwrap();
    expect("/dev/pts/");
    expect("40 100\r\n");
    let resized = Command::new("stty").args(["rows", "50", "cols", "120"]).stdin(pty.slave.try_clone().unwrap()).status().unwrap();
    assert!(resized.success(), "{}", pty.master.as_raw_fd());
    keys.write_all(b"until stty size | { read size; echo $size; test \"$size\" = '50 120'; }; do sleep 0.1; done; echo now $((1 + 1))\n")
        .unwrap();
    expect("now 2\r\n");
    keys.write_all(b"exit 3\n").unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(3));
}

#[test]
fn root_a_killed_try_leaves_nothing() {
    let node = Node::prepare("trykill");
    let mut command = node.enter(EXE);
    command.args(["try", "--node-name", "node-1", "--sample", "--", "sh", "-c", "echo $CORACLE_DATA_DIR $$; exec sleep 1000"]);
    let mut trial = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(trial.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let (dir, child) = line.trim().split_once(' ').unwrap_or_else(|| panic!("{line}"));
    let (dir, child) = (std::path::PathBuf::from(dir), child.to_string());
    let pods = || {
        let mut kubectl = node.kubectl_command(&["get", "pods", "--no-headers"]);
        text(&kubectl.env("KUBECONFIG", dir.join("kubeconfig.yaml")).output().unwrap())
    };
    eventually("the sample runs", || {
        let printed = pods();
        if printed.matches(" Running ").count() == 3 { Ok(()) } else { Err(printed) }
    });
    let instance = instance_id(&dir);
    assert!(!leftovers(&instance, node.holder_pid()).is_empty());
    trial.0.kill().unwrap();
    trial.0.wait().unwrap();
    eventually("nothing is left", || {
        let mut left = leftovers(&instance, node.holder_pid());
        left.extend(dir.exists().then(|| dir.display().to_string()));
        left.extend(std::path::Path::new("/proc").join(&child).exists().then(|| format!("the command, {child}")));
        for (what, arguments) in [("link", &["-brief", "link"][..]), ("route", &["route", "show", "table", "all"])] {
            let printed = text(&node.enter("ip").args(arguments).output().unwrap());
            let ours = |line: &&str| !["lo", "up0", "up1", "198.18.", "127.", "::1", "fe80", "ff00"].iter().any(|word| line.contains(word));
            left.extend(printed.lines().filter(ours).map(|line| format!("{what} {line}")));
        }
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    });
}

/// Two clusters on one machine; the kubeconfigs of both are merged into one file.
#[test]
fn root_two_clusters_side_by_side() {
    let mut first = Node::start("pair", &[]);
    first.import(&image::NGINX);
    let other = first.dir.join("other");
    let flags = ["--node-name", "node-2", "--https-listen-port", "7443", "--kubelet-port", "11250"];
    let ranges = ["--cluster-cidr", "10.52.0.0/16", "--service-cidr", "10.53.0.0/16"];
    let mut command = first.enter(EXE);
    command
        .arg("server")
        .args(flags)
        .args(ranges)
        .arg("--data-dir")
        .arg(&other)
        .arg("--write-kubeconfig")
        .arg(first.dir.join("other.yaml"));
    let log = std::fs::File::create(first.dir.join("other.log")).unwrap();
    let second = Killed(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    let config = first.dir.join("merged/.kube/config");
    let merge = |data_dir: &std::path::Path| {
        let mut command = first.enter(EXE);
        command
            .args(["kubeconfig", "--merge", "--data-dir"])
            .arg(data_dir)
            .env_remove("KUBECONFIG")
            .env_remove("SUDO_USER")
            .env("HOME", first.dir.join("merged"));
        let output = command.output().unwrap();
        if output.status.success() { Ok(text(&output)) } else { Err(text(&output)) }
    };
    assert!(merge(&first.data_dir()).unwrap().contains(config.to_str().unwrap()));
    eventually("the second cluster has a kubeconfig", || merge(&other));
    let kubectl = |node: &Node, context: &str, arguments: &[&str]| {
        let mut command = node.kubectl_command(&[&["--context", context], arguments].concat());
        command.env("KUBECONFIG", node.dir.join("merged/.kube/config"));
        text(&command.output().unwrap())
    };
    let contexts = [&first.data_dir(), &other].map(|dir| format!("coracle-{}", instance_id(dir)));
    let current = first.kubectl_command(&["config", "current-context"]).env("KUBECONFIG", &config).output().unwrap();
    assert_eq!(text(&current).trim(), contexts[1], "the one merged last is switched to");
    let archive = first.dir.join("image.tar");
    let imported = first.enter(EXE).args(["images", "import", "--data-dir"]).arg(&other).arg(archive).output().unwrap();
    assert!(imported.status.success(), "{}", text(&imported));
    for (context, name) in contexts.iter().zip(["node-1", "node-2"]) {
        eventually("the node is Ready", || {
            let printed = kubectl(&first, context, &["get", "nodes", "--no-headers"]);
            if printed.contains(name) && printed.contains(" Ready ") { Ok(()) } else { Err(printed) }
        });
        let manifest = first.dir.join("pod.yaml");
        std::fs::write(&manifest, WAITING_POD).unwrap();
        kubectl(&first, context, &["create", "-f", manifest.to_str().unwrap()]);
        let waited = kubectl(&first, context, &["wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s"]);
        assert!(waited.contains("condition met"), "{name}: {waited}");
        assert_eq!(kubectl(&first, context, &["exec", "sleeper", "--", "hostname"]), "sleeper\n");
    }
    // The end of one is nothing to the other.
    drop(second);
    let removed = first.enter(EXE).arg("try-holder").arg(&other).stdin(Stdio::null()).output().unwrap();
    assert!(removed.status.success(), "{}", text(&removed));
    let left = leftovers(&instance_id(&other), first.holder_pid());
    assert!(left.is_empty(), "{left:#?}");
    assert_eq!(kubectl(&first, &contexts[0], &["exec", "sleeper", "--", "hostname"]), "sleeper\n");
    first.kill_daemon();
    first.start_daemon(&[]);
    first.wait_ready();
    assert_eq!(kubectl(&first, &contexts[0], &["exec", "sleeper", "--", "hostname"]), "sleeper\n");
}

/// Said at once, by key and source, and nothing is written.
#[test]
fn root_what_cannot_work_is_said_first() {
    let node = Node::prepare("cannot");
    let run = |prepare: &dyn Fn(&mut Command)| {
        let mut command = node.enter(EXE);
        command.args(["server", "--node-name", "node-1"]);
        prepare(&mut command);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(!node.data_dir().exists(), "something was written");
        text(&output)
    };
    let said = run(&|c| {
        c.args(["--https-listen-port", "70000"]);
    });
    assert!(said.contains(r#"https-listen-port: "70000" is not a port (from the flag --https-listen-port)"#), "{said}");
    let said = run(&|c| {
        c.env("CORACLE_CLUSTER_CIDR", "10.42.0.1/16");
    });
    assert!(said.contains("cluster-cidr: ") && said.contains("(from the variable CORACLE_CLUSTER_CIDR)"), "{said}");
    let file = node.dir.join("config.yaml");
    std::fs::write(&file, "cluster-domain: \"not a name\"\n").unwrap();
    let said = run(&|c| {
        c.arg("--config").arg(&file);
    });
    assert!(said.contains("cluster-domain: ") && said.contains(&format!("(in {})", file.display())), "{said}");

    let mut nobody = node.enter("setpriv");
    nobody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", EXE, "server", "--node-name", "node-1"]);
    let nobody = nobody.output().unwrap();
    assert!(text(&nobody).contains("a node needs root to run containers; use sudo"), "{}", text(&nobody));

    // A kernel without overlay, as far as the program can tell in this mount namespace.
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap().replace("\toverlay\n", "\tnone\n");
    let file = node.dir.join("filesystems");
    std::fs::write(&file, filesystems).unwrap();
    let mounted = node.enter("mount").arg("--bind").arg(&file).arg("/proc/filesystems").status().unwrap();
    assert!(mounted.success());
    let said = run(&|_| {});
    assert!(said.contains("the kernel has no overlay file system (CONFIG_OVERLAY_FS)"), "{said}");
}
