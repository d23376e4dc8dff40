//! Real clusters, real kubectl, real processes and traffic. Needs root; see `node` for how each is kept apart.

use crate::image;
use crate::node::{Node, eventually, text};

const ECHO_POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: "coracle.local/echo:1", command: [/coracle, version]}
"#;

fn sample_deployment() -> &'static str {
    coracle::sample::MANIFEST
}

#[test]
fn root_a_pod_runs_and_its_output_is_its_log() {
    let node = Node::start("pod", &[]);
    node.import_sample();
    node.apply(ECHO_POD);
    node.until(&["get", "pod", "once", "-o", "jsonpath={.status.phase}"], |phase| phase == "Succeeded");
    assert!(node.ok(&["logs", "once"]).starts_with("coracle "));
    let pod = node.ok(&["get", "pod", "once", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}"]);
    assert_eq!(pod, "0");
}

#[test]
fn root_a_deployment_answers_through_its_service_name() {
    let node = Node::start("svc", &[]);
    node.import_sample();
    node.apply(sample_deployment());
    node.ok(&["rollout", "status", "deployment/echo", "--timeout=60s"]);
    node.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  containers:
  - {name: main, image: "coracle.local/echo:1"}
"#,
    );
    node.ok(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"]);
    let answers: std::collections::BTreeSet<String> = eventually("three pods answer", || {
        let fetch = ["exec", "client", "--", "/coracle", "fetch", "http://echo.default.svc.cluster.local/"];
        let answers: std::collections::BTreeSet<String> = (0..20)
            .map(|_| node.kubectl(&fetch))
            .filter(|o| o.status.success())
            .map(|o| text(&o).split(' ').nth(1).unwrap_or_default().to_string())
            .collect();
        if answers.len() == 3 { Ok(answers) } else { Err(format!("{answers:?}")) }
    });
    assert!(answers.iter().all(|a| a.starts_with("echo-")), "{answers:?}");

    // The same through the API server: by service, by pod, and the node itself.
    let raw = |path: &str| node.ok(&["get", "--raw", path]);
    let by_service = raw("/api/v1/namespaces/default/services/echo:80/proxy/some/path?q=1");
    assert!(answers.iter().any(|pod| by_service.contains(pod.as_str())) && by_service.contains("/some/path"), "{by_service}");
    assert!(raw("/api/v1/namespaces/default/pods/http:client:8080/proxy/").contains(" client"));
    let name = node.ok(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    assert_eq!(raw(&format!("/api/v1/nodes/{name}/proxy/healthz")), "ok");
    let nobody = node.fails(&["get", "--raw", "/api/v1/namespaces/default/services/echo:81/proxy/"]);
    assert!(nobody.contains("no service port 81 found for service \"echo\""), "{nobody}");
    let range = node.ok(&["get", "nodes", "-o", "jsonpath={.items[0].spec.podCIDR}"]);
    assert!(node.ok(&["get", "pod", "client", "-o", "jsonpath={.status.podIP}"]).starts_with(range.trim_end_matches("0/24")), "{range}");
}

#[test]
fn root_killing_the_daemon_leaves_containers_running() {
    let mut node = Node::start("kill", &[]);
    node.import_sample();
    node.apply(sample_deployment());
    node.ok(&["rollout", "status", "deployment/echo", "--timeout=60s"]);
    let ids = [
        "get",
        "pods",
        "-l",
        "app=echo",
        "-o",
        "jsonpath={range .items[*]}{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}",
    ];
    let before = node.ok(&ids);
    node.kill_daemon();
    node.start_daemon(&[]);
    node.wait_ready();
    node.ok(&["wait", "--for=condition=Ready", "pod", "-l", "app=echo", "--timeout=60s"]);
    assert_eq!(node.ok(&ids), before, "the same containers, not restarted");
}

/// The commands a user types, with each supported kubectl.
#[test]
fn root_kubectl_tour() {
    let mut node = Node::start("tour", &[]);
    node.import(&image::NGINX);
    for (i, version) in ["1.34", "1.36", "1.37"].into_iter().enumerate() {
        node.kubectl_version = version;
        tour(&node, &format!("web{i}"));
    }
}

fn tour(node: &Node, name: &str) {
    let deployment = format!("deployment/{name}");
    node.ok(&["create", "deployment", name, "--image=test.local/nginx:1", "--replicas=2"]);
    node.ok(&["rollout", "status", &deployment, "--timeout=60s"]);
    let selector = format!("app={name}");
    let wide = node.ok(&["get", "pods", "-l", &selector, "-o", "wide"]);
    assert!(wide.contains("NOMINATED NODE") && wide.contains("node-1") && wide.matches(" Running ").count() == 2, "{wide}");
    assert!(node.ok(&["get", &deployment, "-o", "yaml"]).contains("observedGeneration: 1"));
    // From 1.36 kubectl leaves events out when it describes several.
    let described = node.ok(&["describe", "pod", "-l", &selector, "--show-events=true"]);
    for text in ["Scheduled", "Pulled", "Created", "Started", "QoS Class:"] {
        assert!(described.contains(text), "{text} is not in\n{described}");
    }
    // One more of everything a user changes things with.
    node.ok(&["label", &deployment, "tier=front"]);
    node.ok(&["annotate", &deployment, "note=x"]);
    node.ok(&["patch", &deployment, "-p", r#"{"spec":{"minReadySeconds":0,"template":{"metadata":{"annotations":{"n":"1"}}}}}"#]);
    node.ok(&["rollout", "status", &deployment, "--timeout=60s"]);
    node.ok(&["scale", &deployment, "--replicas=3"]);
    node.ok(&["wait", "--for=jsonpath={.status.readyReplicas}=3", &deployment, "--timeout=60s"]);
    assert!(node.ok(&["rollout", "history", &deployment]).contains('2'));
    node.ok(&["rollout", "undo", &deployment]);
    node.ok(&["rollout", "status", &deployment, "--timeout=60s"]);
    let manifest = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: \"1\"}}\n");
    assert!(node.apply(&manifest).contains("created"));
    let changed = manifest.replace("\"1\"", "\"2\"");
    let diff = node.feed(&["diff"], &changed);
    assert_eq!(diff.status.code(), Some(1), "{}", text(&diff));
    assert!(text(&diff).contains("+  a: \"2\""), "{}", text(&diff));
    assert!(node.apply(&changed).contains("configured"));
    assert!(node.apply(&changed).contains("unchanged"));
    let edited = node.kubectl_command(&["edit", "configmap", name]).env("KUBE_EDITOR", "sed -i /a:/s/2/3/").output().unwrap();
    assert!(text(&edited).contains("edited"), "{}", text(&edited));
    let pod = node.ok(&["get", "pods", "-l", &selector, "-o", "jsonpath={.items[0].metadata.name}"]);
    assert_eq!(node.ok(&["exec", &pod, "--", "hostname"]).trim(), pod);
    let failed = node.kubectl(&["exec", &pod, "--", "sh", "-c", "exit 7"]);
    assert_eq!(failed.status.code(), Some(7), "{}", text(&failed));
    let echoed = node.fed(&["exec", "-i", &pod, "--", "cat"], "through stdin\n");
    assert_eq!(text(&echoed), "through stdin\n");
    let file = node.dir.join("copied");
    std::fs::write(&file, "content\n").unwrap();
    node.ok(&["cp", file.to_str().unwrap(), &format!("{pod}:/tmp/copied")]);
    assert_eq!(node.ok(&["exec", &pod, "--", "cat", "/tmp/copied"]), "content\n");
    assert!(node.ok(&["api-resources"]).contains("deployments"));
    assert_eq!(node.ok(&["auth", "can-i", "create", "pods"]).trim(), "yes");
    assert!(node.fails(&["auth", "can-i", "create", "pods", "--as=nobody"]).contains("no"));
    assert!(node.ok(&["explain", "pod.spec.containers"]).contains("terminationMessagePath"));
    node.ok(&["delete", &deployment]);
    node.until(&["get", "pods", "-l", &selector], |printed| printed.contains("No resources found"));
}

/// Logs while they are written, and of the run before.
#[test]
fn root_logs_follow_and_previous() {
    let node = Node::start("logs", &[]);
    node.import(&image::NGINX);
    node.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: counter}
spec:
  containers:
  - {name: main, image: "test.local/nginx:1", command: [sh, -c, "i=0; while [ $i -lt 5 ]; do echo line $i; i=$((i+1)); sleep 0.2; done; exit 3"]}
"#,
    );
    node.until(&["get", "pod", "counter", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"], |n| {
        n.parse::<u32>().is_ok_and(|n| n >= 1)
    });
    let previous = node.ok(&["logs", "-p", "counter"]);
    assert_eq!(previous.lines().collect::<Vec<_>>(), ["line 0", "line 1", "line 2", "line 3", "line 4"]);
    assert_eq!(node.ok(&["logs", "-p", "--tail=1", "counter"]), "line 4\n");
    let last = node.ok(&["get", "pod", "counter", "-o", "jsonpath={.status.containerStatuses[0].lastState.terminated.exitCode}"]);
    assert_eq!(last, "3");
    node.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: "test.local/nginx:1", command: [sh, -c, "echo one; sleep 1; echo two"]}
"#,
    );
    node.ok(&["wait", "--for=condition=Ready", "pod/once", "--timeout=60s"]);
    assert_eq!(node.ok(&["logs", "-f", "once"]), "one\ntwo\n");
}

/// Volumes from configuration, updated in place; a bad reference is said in events and goes away when mended.
#[test]
fn root_configuration_reaches_pods_and_follows_changes() {
    let node = Node::start("conf", &[]);
    node.import(&image::NGINX);
    node.apply(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {key: before}
---
apiVersion: v1
kind: Secret
metadata: {name: secret}
stringData: {password: hidden}
---
apiVersion: v1
kind: Pod
metadata: {name: reader, labels: {colour: blue}}
spec:
  containers:
  - name: main
    image: test.local/nginx:1
    command: [sleep, "1000"]
    env:
    - {name: FROM_SECRET, valueFrom: {secretKeyRef: {name: secret, key: password}}}
    - {name: FROM_FIELD, valueFrom: {fieldRef: {fieldPath: "metadata.labels['colour']"}}}
    - {name: COMBINED, value: "$(FROM_SECRET)-$(FROM_FIELD)-$$(X)"}
    volumeMounts:
    - {name: conf, mountPath: /conf}
    - {name: scratch, mountPath: /scratch}
  volumes:
  - {name: conf, configMap: {name: conf}}
  - {name: scratch, emptyDir: {}}
"#,
    );
    node.ok(&["wait", "--for=condition=Ready", "pod/reader", "--timeout=60s"]);
    assert_eq!(
        node.ok(&["exec", "reader", "--", "sh", "-c", "echo $COMBINED; cat /conf/key; echo x > /scratch/f"]),
        "hidden-blue-$(X)\nbefore"
    );
    node.ok(&["patch", "configmap", "conf", "-p", r#"{"data":{"key":"after"}}"#]);
    node.until(&["exec", "reader", "--", "cat", "/conf/key"], |text| text == "after");
    let token = node.ok(&["exec", "reader", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"]);
    assert_eq!(token.split('.').count(), 3, "a signed token: {token}");
}

/// Every mistake of a user gets an answer that names it, and the server goes on.
#[test]
fn root_mistakes_are_named() {
    let node = Node::start("errors", &[]);
    let bad = |manifest: &str| {
        let output = node.feed(&["apply"], manifest);
        assert!(!output.status.success());
        text(&output)
    };
    let unknown = bad("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: x, imagePullPolcy: Never}]}\n");
    assert!(unknown.contains(r#"unknown field "spec.containers[0].imagePullPolcy""#), "{unknown}");
    let invalid = bad("apiVersion: v1\nkind: Pod\nmetadata: {name: P_}\nspec: {containers: [{name: c}]}\n");
    assert!(invalid.contains("metadata.name") && invalid.contains("spec.containers[0].image"), "{invalid}");
    node.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: missing}\nspec: {containers: [{name: c, image: nowhere/such:1}]}\n");
    let events = node.until(&["describe", "pod", "missing"], |t| t.contains("ErrImagePull") || t.contains("ImagePullBackOff"));
    assert!(events.contains("coracle images import"), "{events}");
    node.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: huge}\nspec: {containers: [{name: c, image: x, resources: {requests: {cpu: \"1000\"}}}]}\n");
    node.until(&["describe", "pod", "huge"], |t| t.contains("0/1 nodes are available: 1 Insufficient cpu."));
    let big = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: big}}\ndata: {{a: {}}}\n", "x".repeat(10 << 20));
    let output = node.feed(&["create"], &big);
    assert!(text(&output).contains("too large"), "{}", text(&output));
    let mut second = node.enter(crate::node::EXE);
    let second = second.args(["server", "--node-name", "x", "--data-dir"]).arg(node.dir.join("second")).output().unwrap();
    assert!(text(&second).contains("cannot listen on 0.0.0.0:6443"), "{}", text(&second));
    assert!(!node.dir.join("second").exists(), "a taken port is said before anything is written");
    node.ok(&["get", "nodes"]);
}

/// A pod that waits for its image starts when the image is imported, not at the end of its back-off.
#[test]
fn root_an_imported_image_ends_the_wait_for_it() {
    let node = Node::start("arrive", &[]);
    node.apply(ECHO_POD);
    let reason = ["get", "pod", "once", "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason}"];
    // The second try has failed: the next is 20 s away.
    node.until(&reason, |reason| reason == "ImagePullBackOff");
    node.import_sample();
    let before = std::time::Instant::now();
    node.until(&["get", "pod", "once", "-o", "jsonpath={.status.phase}"], |phase| phase == "Succeeded");
    assert!(before.elapsed().as_secs() < 10, "it waited for {:?}", before.elapsed());
}

/// A pod deleted by force leaves nothing of it in the kernel.
#[test]
fn root_a_forced_deletion_leaves_nothing_behind() {
    let node = Node::start("force", &[]);
    node.import_sample();
    node.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: gone}\nspec: {containers: [{name: c, image: \"coracle.local/echo:1\"}]}\n");
    node.ok(&["wait", "--for=condition=Ready", "pod/gone", "--timeout=60s"]);
    let uid = node.ok(&["get", "pod", "gone", "-o", "jsonpath={.metadata.uid}"]);
    let ip = node.ok(&["get", "pod", "gone", "-o", "jsonpath={.status.podIP}"]);
    node.ok(&["delete", "pod", "gone", "--force", "--grace-period=0"]);
    eventually("everything of the pod is gone", || {
        let mut left = crate::node::leftovers(&uid, node.holder_pid());
        let routes = node.enter("ip").args(["route", "show", &ip]).output().unwrap();
        left.extend(text(&routes).lines().map(|l| format!("route {l}")));
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    });
}

/// A rolling update under constant load from inside the cluster loses no request; killing the daemon loses no connection, and
/// names asked for while it is down are answered once it is back.
#[test]
fn root_no_request_is_lost_in_a_rolling_update() {
    let mut node = Node::start("roll", &[]);
    node.import(&image::NGINX);
    node.import_sample();
    node.apply(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: nginx
        image: test.local/nginx:1
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        lifecycle: {preStop: {exec: {command: [sleep, "2"]}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#,
    );
    node.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    for (name, host) in [("load", "web.default.svc.cluster.local"), ("load-ip", "$(WEB_SERVICE_HOST)")] {
        node.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{restartPolicy: Never, containers: [{{name: main, image: \"coracle.local/echo:1\", \
             command: [/coracle, load, \"http://{host}/\"]}}]}}\n"
        ));
        node.ok(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
    }
    let count = |name: &str, node: &Node| node.until(&["logs", "--tail=1", name], |t| t.contains("answered")).trim().to_string();
    let answered = |line: &str| line.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap();
    let goes_on = |name: &str, after: &str, node: &Node| {
        let start = answered(&count(name, node));
        let line = eventually("the load goes on", || {
            let line = count(name, node);
            if answered(&line) > start + 100 { Ok(line) } else { Err(line) }
        });
        if !line.ends_with("answered, 0 failed") {
            let said = node.ok(&["logs", "--timestamps", name]);
            let errors: Vec<&str> = said.lines().filter(|l| !l.contains("answered")).collect();
            panic!("{name}, after {after}: {line}: {errors:#?}\n{}\n{}", node.ok(&["get", "events", "-o", "yaml"]), node.log());
        }
    };
    node.ok(&["patch", "deployment", "web", "-p", r#"{"spec":{"template":{"metadata":{"annotations":{"round":"2"}}}}}"#]);
    node.ok(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    goes_on("load", "the rolling update", &node);
    goes_on("load-ip", "the rolling update", &node);
    node.kill_daemon();
    node.start_daemon(&[]);
    node.wait_ready();
    goes_on("load", "the restart", &node);
    goes_on("load-ip", "the restart", &node);
}
