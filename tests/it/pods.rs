//! What of pods only a kernel and a real kubectl can show: sessions over both carriers, confinement, sidecars, resizes, debugging.

use std::io::BufRead as _;
use std::process::Stdio;

use crate::image;
use crate::node::{Node, text};

fn pod(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}\n")
}

const SHELL: &str = "image: test.local/nginx:1, command: [/bin/sh, -c";

/// kubectl speaks WebSocket by itself, and SPDY as older ones do when told so.
#[test]
fn root_sessions_are_carried_by_websocket_and_by_spdy() {
    let node = Node::start("sessions", &[]);
    node.import(&image::NGINX);
    node.apply(&pod("web", "  containers: [{name: main, image: test.local/nginx:1}]"));
    node.ok(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]);
    for websockets in ["true", "false"] {
        let kubectl = |arguments: &[&str]| {
            let mut command = node.kubectl_command(arguments);
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets).env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        };
        let fed = |arguments: &[&str], input: &str| {
            let mut child = kubectl(arguments).spawn().unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        };
        let output = fed(&["exec", "-i", "web", "--", "sh", "-c", "cat; echo problem >&2; exit 3"], "typed");
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
        assert_eq!(output.stdout, b"typed");
        assert!(String::from_utf8_lossy(&output.stderr).contains("problem"));
        // Runs, attaches, and ends with what it was fed.
        let name = format!("cat-{websockets}");
        let run = ["run", &name, "--rm", "-i", "--restart=Never", "--image=test.local/nginx:1", "--command", "--", "/bin/cat"];
        let output = fed(&run, "through the container\n");
        assert!(output.status.success() && text(&output).contains("through the container"), "{}", text(&output));
        let mut forward = kubectl(&["port-forward", "pod/web", ":8080", "--address=127.0.0.1"]).spawn().unwrap();
        let mut line = String::new();
        // kubectl goes on writing there: it stays open.
        let mut said = std::io::BufReader::new(forward.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).expect(&line).to_string();
        let get = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3");
        for _ in 0..2 {
            let output = node.enter("bash").args(["-c", &get]).output().unwrap();
            assert!(text(&output).ends_with("web\n"), "{}", text(&output));
        }
        forward.kill().unwrap();
        forward.wait().unwrap();
    }
}

#[test]
fn root_containers_are_confined_accompanied_resized_and_debugged() {
    let node = Node::start("pods", &[]);
    node.import(&image::NGINX);
    let profiles = node.data_dir().join("seccomp");
    std::fs::create_dir_all(&profiles).unwrap();
    let no_mkdir = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(profiles.join("no-mkdir.json"), no_mkdir).unwrap();
    let confined = |name: &str, profile: &str, script: &str| {
        pod(
            name,
            &format!(
                "  restartPolicy: Never\n  containers: [{{name: c, {SHELL}, '{script}'], securityContext: {{seccompProfile: {{{profile}}}}}}}]"
            ),
        )
    };
    node.apply(&confined("default", "type: RuntimeDefault", "cat /proc/self/status"));
    node.apply(&confined("local", "type: Localhost, localhostProfile: no-mkdir.json", "mkdir /tmp/x 2>/dev/null || echo refused"));
    node.apply(&confined("free", "type: Unconfined", "mkdir /tmp/x && cat /proc/self/status"));
    let side = format!("{{name: side, {SHELL}, 'echo up; exec sleep 1000'], restartPolicy: Always}}");
    node.apply(&pod(
        "pair",
        &format!("  restartPolicy: Never\n  initContainers: [{side}]\n  containers: [{{name: c, {SHELL}, 'exit 0']}}]"),
    ));
    let log = |name: &str| {
        node.until(&["get", "pod", name, "-o", "jsonpath={.status.phase}"], |phase| phase == "Succeeded");
        node.ok(&["logs", name, "-c", "c"])
    };
    assert!(log("default").contains("Seccomp:\t2"));
    assert_eq!(log("local").trim().lines().last(), Some("refused"));
    assert!(log("free").contains("Seccomp:\t0"));
    log("pair");
    assert_eq!(node.ok(&["logs", "pair", "-c", "side"]), "up\n", "the sidecar ran, and was ended after the other");

    let resources = "resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 500m, memory: 64Mi}}";
    node.apply(&pod("sized", &format!("  containers: [{{name: c, image: test.local/nginx:1, {resources}}}]")));
    node.ok(&["wait", "--for=condition=Ready", "pod/sized", "--timeout=60s"]);
    let larger = r#"{"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "200m"}, "limits": {"memory": "96Mi"}}}]}}"#;
    node.ok(&["patch", "pod", "sized", "--subresource=resize", "-p", larger]);
    let shown = "jsonpath={.status.containerStatuses[0].resources.limits.memory} {.status.containerStatuses[0].restartCount}";
    node.until(&["get", "pod", "sized", "-o", shown], |text| text == "96Mi 0");
    let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    assert_eq!(node.ok(&["exec", "sized", "--", "sh", "-c", limit]).trim(), (96 << 20).to_string());

    node.ok(&[
        "debug",
        "sized",
        "--image=test.local/nginx:1",
        "--target=c",
        "-c",
        "look",
        "--profile=general",
        "--",
        "cat",
        "/proc/1/comm",
    ]);
    let ended = "jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.reason}";
    node.until(&["get", "pod", "sized", "-o", ended], |reason| reason == "Completed");
    assert_eq!(node.ok(&["logs", "sized", "-c", "look"]), "nginx\n", "it sees the processes of its target");
}
