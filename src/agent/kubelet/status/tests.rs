//! Given a pod and what is observed, this is its status.

use super::*;
use crate::agent::kubelet::observe::{Failure, Progress, Reason, Verdicts};
use crate::agent::kubelet::restart::Backoff;

const NOW: Millis = 1_700_000_000_000;

fn pod(policy: &str) -> Value {
    value!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1}, "spec": {"restartPolicy": policy,
        "containers": [{"name": "a", "image": "x"}]}})
}

fn container(state: State) -> Container {
    Container {
        id: "c1".into(),
        name: "a".into(),
        attempt: 0,
        image: "x".into(),
        image_id: "sha256:1".into(),
        started_at: Some(NOW - 5000),
        finished_at: matches!(state, State::Exited { .. }).then_some(NOW - 1000),
        state,
        limits: crate::runtime::Resources::default(),
    }
}

fn exited(code: i32) -> Container {
    let reason = if code == 0 { "Completed" } else { "Error" };
    container(State::Exited { code, signal: 0, reason: reason.into(), message: "bye".into() })
}

fn observed(containers: Vec<Container>) -> Observed {
    Observed {
        volumes: Progress::Ready,
        sandbox: Progress::Ready,
        set_up: true,
        ips: vec!["10.42.0.2".into()],
        host_ips: vec!["10.0.0.1".into()],
        containers,
        ..Observed::default()
    }
}

fn run(pod: &Value, observed: &Observed) -> Value {
    status(Pod(pod), observed, &Probes::default(), NOW)
}

fn condition(status: &Value, kind: &str) -> (String, String, String) {
    let c = status.list_at(&["conditions"]).iter().find(|c| c.str_at(&["type"]) == kind).unwrap();
    (c.str_at(&["status"]).into(), c.str_at(&["reason"]).into(), c.str_at(&["message"]).into())
}

#[test]
fn a_running_pod_is_ready_with_addresses() {
    let s = run(&pod("Always"), &observed(vec![container(State::Running)]));
    assert_eq!((s.str_at(&["phase"]), s.str_at(&["podIP"]), s.str_at(&["hostIP"])), ("Running", "10.42.0.2", "10.0.0.1"));
    assert_eq!(condition(&s, "Ready").0, "True");
    let c = &s.list_at(&["containerStatuses"])[0];
    assert_eq!(c.str_at(&["containerID"]), "coracle://c1");
    assert!(c.bool_at(&["ready"]) && c.bool_at(&["started"]));
    assert_eq!(c.str_at(&["state", "running", "startedAt"]), "2023-11-14T22:13:15Z");
    assert_eq!(s.i64_at(&["observedGeneration"]), Some(1));
}

#[test]
fn the_same_again_is_no_patch_and_urgent_means_phase_or_readiness() {
    let mut p = pod("Always");
    let o = observed(vec![container(State::Running)]);
    let first = run(&p, &o);
    p.set(&["status"], first.clone());
    let second = status(Pod(&p), &o, &Probes::default(), NOW + 60_000);
    assert_eq!(patch(&first, &second), None);
    let unready = Probes([("c1".to_string(), Verdicts { started: true, ready: false, doomed: None })].into());
    let third = status(Pod(&p), &o, &unready, NOW + 60_000);
    assert!(is_urgent(&first, &third));
    let sent = patch(&first, &third).unwrap();
    let kinds: Vec<&str> = sent.list_at(&["conditions"]).iter().map(|c| c.str_at(&["type"])).collect();
    assert_eq!(kinds, ["Ready", "ContainersReady"]);
    assert_eq!(condition(&third, "Ready").2, "containers with unready status: [a]");
}

#[test]
fn a_crash_shows_the_exit_then_the_back_off() {
    let p = pod("Always");
    let mut o = observed(vec![exited(1)]);
    let s = run(&p, &o);
    assert!(s.i64_at(&["containerStatuses"]).is_none());
    let c = &s.list_at(&["containerStatuses"])[0];
    assert_eq!((c.i64_at(&["state", "terminated", "exitCode"]), s.str_at(&["phase"])), (Some(1), "Running"));
    o.backoffs.insert("a".into(), Backoff { delay_ms: 10_000, updated: NOW - 500, attempt: 0 });
    assert!(run(&p, &o).list_at(&["containerStatuses"])[0].at(&["state", "terminated"]).is_some(), "it is being started");
    o.containers[0].attempt = 1;
    o.backoffs.insert("a".into(), Backoff { delay_ms: 10_000, updated: NOW - 5000, attempt: 0 });
    let s = run(&p, &o);
    let c = &s.list_at(&["containerStatuses"])[0];
    assert_eq!(c.str_at(&["state", "waiting", "reason"]), "CrashLoopBackOff");
    assert_eq!(c.str_at(&["state", "waiting", "message"]), "back-off 10s restarting failed container=a pod=p_n(u)");
    assert_eq!((c.i64_at(&["lastState", "terminated", "exitCode"]), s.str_at(&["phase"])), (Some(1), "Running"));
}

#[test]
fn phases_at_the_end() {
    assert_eq!(run(&pod("Never"), &observed(vec![exited(0)])).str_at(&["phase"]), "Succeeded");
    assert_eq!(run(&pod("Never"), &observed(vec![exited(2)])).str_at(&["phase"]), "Failed");
    assert_eq!(run(&pod("OnFailure"), &observed(vec![exited(0)])).str_at(&["phase"]), "Succeeded");
    let s = run(&pod("Never"), &observed(vec![exited(0)]));
    assert_eq!(condition(&s, "Ready").1, "PodCompleted");
    let mut p = pod("Always");
    p.set(&["metadata", "deletionTimestamp"], "2023-11-14T22:13:20Z");
    assert_eq!(run(&p, &observed(vec![exited(0)])).str_at(&["phase"]), "Succeeded");
    assert_eq!(run(&p, &observed(vec![exited(137)])).str_at(&["phase"]), "Failed");
}

#[test]
fn waiting_names_the_failure_and_init_comes_first() {
    let mut p = pod("Always");
    p.set(&["spec", "initContainers"], value!([{"name": "i", "image": "x"}]));
    let mut o = observed(vec![]);
    let reason = Reason { reason: "ErrImagePull".into(), message: "no such image".into() };
    o.failures.insert("i".into(), Failure::after(None, reason, 10_000, 300_000, NOW));
    let s = run(&p, &o);
    assert_eq!(s.list_at(&["initContainerStatuses"])[0].str_at(&["state", "waiting", "reason"]), "ErrImagePull");
    assert_eq!(s.list_at(&["containerStatuses"])[0].str_at(&["state", "waiting", "reason"]), "PodInitializing");
    assert_eq!(s.str_at(&["phase"]), "Pending");
    assert_eq!(
        condition(&s, "Initialized"),
        ("False".into(), "ContainersNotInitialized".into(), "containers with incomplete status: [i]".into())
    );
}

#[test]
fn conditions_of_others_and_forgotten_containers_stay() {
    let mut p = pod("Never");
    p.set(
        &["status"],
        value!({"phase": "Succeeded", "conditions": [{"type": "Mine", "status": "True"}],
        "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 0}}}]}),
    );
    let s = run(&p, &Observed::default());
    assert_eq!(s.list_at(&["containerStatuses"])[0].i64_at(&["state", "terminated", "exitCode"]), Some(0));
    let mut p = pod("Always");
    p.set(&["status"], value!({"conditions": [{"type": "Mine", "status": "True"}]}));
    p.set(&["spec", "readinessGates"], value!([{"conditionType": "Yours"}]));
    let s = run(&p, &observed(vec![container(State::Running)]));
    assert_eq!(condition(&s, "Mine").0, "True");
    assert_eq!(condition(&s, "Ready").2, "corresponding condition of pod readiness gate \"Yours\" does not exist.");
    assert_eq!(condition(&s, "ContainersReady").0, "True");
}

#[test]
fn a_container_lost_in_a_reboot_becomes_the_last_state() {
    let mut p = pod("Always");
    p.set(
        &["status"],
        value!({"phase": "Running", "containerStatuses": [{"name": "a", "restartCount": 2, "containerID": "coracle://old",
        "state": {"running": {"startedAt": "2023-11-14T22:00:00Z"}}}]}),
    );
    let s = run(&p, &observed(vec![]));
    let c = &s.list_at(&["containerStatuses"])[0];
    assert_eq!(c.str_at(&["lastState", "terminated", "reason"]), "ContainerStatusUnknown");
    assert_eq!((c.i64_at(&["restartCount"]), c.i64_at(&["lastState", "terminated", "exitCode"])), (Some(2), Some(137)));
}

#[test]
fn sidecars_count_for_readiness_and_not_for_the_end() {
    let mut p = pod("Never");
    p.set(&["spec", "initContainers"], value!([{"name": "s", "image": "x", "restartPolicy": "Always"}]));
    let sidecar = || Container { id: "s1".into(), name: "s".into(), ..container(State::Running) };
    let s = run(&p, &observed(vec![sidecar(), container(State::Running)]));
    let side = &s.list_at(&["initContainerStatuses"])[0];
    assert!(side.bool_at(&["ready"]) && side.bool_at(&["started"]));
    assert_eq!((condition(&s, "Ready").0.as_str(), s.str_at(&["phase"])), ("True", "Running"));
    let unready = Probes([("s1".to_string(), Verdicts { started: true, ready: false, doomed: None })].into());
    let s = status(Pod(&p), &observed(vec![sidecar(), container(State::Running)]), &unready, NOW);
    assert_eq!(condition(&s, "ContainersReady").2, "containers with unready status: [s]");
    let s = run(&p, &observed(vec![sidecar(), exited(0)]));
    assert_eq!(s.str_at(&["phase"]), "Running", "the sidecar is still to be stopped");
    let ended = Container { id: "s1".into(), name: "s".into(), ..exited(143) };
    assert_eq!(run(&p, &observed(vec![ended, exited(0)])).str_at(&["phase"]), "Succeeded");
}

#[test]
fn a_resize_shows_until_it_is_done_or_says_why_it_waits() {
    let mut p = pod("Always");
    p.set(&["spec", "containers"], value!([{"name": "a", "image": "x", "resources": {"requests": {"cpu": "200m"}}}]));
    p.set(&["status", "containerStatuses"], value!([{"name": "a", "resources": {"requests": {"cpu": "100m"}}}]));
    let held = |cpu: &str| crate::runtime::Resources { ..spec::limits(&value!({"resources": {"requests": {"cpu": cpu}}})) };
    let with = |cpu: &str| {
        let running = Container { limits: held(cpu), ..container(State::Running) };
        Observed { limits: held(cpu), ..observed(vec![running]) }
    };
    let s = run(&p, &with("100m"));
    assert_eq!(condition(&s, "PodResizeInProgress").0, "True");
    let c = &s.list_at(&["containerStatuses"])[0];
    assert_eq!((c.str_at(&["allocatedResources", "cpu"]), c.str_at(&["resources", "requests", "cpu"])), ("200m", "100m"));
    p.set(&["status"], s.clone());
    let done = run(&p, &with("200m"));
    assert!(!done.list_at(&["conditions"]).iter().any(|c| c.str_at(&["type"]) == "PodResizeInProgress"));
    assert_eq!(done.list_at(&["containerStatuses"])[0].str_at(&["resources", "requests", "cpu"]), "200m");
    let sent = patch(&s, &done).unwrap();
    assert!(sent.list_at(&["conditions"]).contains(&value!({"type": "PodResizeInProgress", "$patch": "delete"})));
    let waiting = Observed { resize: Resize::Deferred("later".into()), ..with("200m") };
    assert_eq!(condition(&run(&p, &waiting), "PodResizePending"), ("True".into(), "Deferred".into(), "later".into()));
}

#[test]
fn a_container_making_way_for_its_next_attempt_is_as_it_was() {
    let first = run(&pod("Always"), &observed(vec![Container { attempt: 1, ..container(State::Running) }]));
    let once = || Container { attempt: 1, ..exited(0) };
    let created = || Container { id: "c2".into(), attempt: 2, ..container(State::Created) };
    let failure = || Failure::after(None, Reason { reason: "ErrImagePull".into(), message: String::new() }, 1000, 1000, NOW);
    let backoff = |attempt| Backoff { delay_ms: 10_000, updated: NOW - 100, attempt };
    type Change = fn(&mut Value, &mut Observed);
    let plain: Change = |_, _| {};
    let deleted: Change = |p, _| p.set(&["metadata", "deletionTimestamp"], "2023-11-14T22:13:20Z");
    let by_itself: Change = |_, o| o.restarting.clear();
    let replaced: Change = |_, o| o.replaced.extend(["c1".to_string()]);
    let lost: Change = |_, o| o.sandbox = Progress::Absent;
    let cases: [(&str, &str, Vec<Container>, Change, Option<Failure>, Option<Backoff>, bool); 11] = [
        ("just stopped", "Always", vec![once()], plain, None, None, true),
        ("the next one is there", "Always", vec![once(), created()], plain, None, None, true),
        ("being started", "Always", vec![once()], plain, None, Some(backoff(1)), true),
        ("by its policy it ends", "Never", vec![once()], plain, None, None, false),
        ("replaced in spite of its policy", "Never", vec![once()], replaced, None, None, true),
        ("it exited by itself", "Always", vec![once()], by_itself, None, None, false),
        ("the next one cannot start", "Always", vec![once()], plain, Some(failure()), None, false),
        ("it has to wait", "Always", vec![once()], plain, None, Some(backoff(0)), false),
        ("the pod is deleted", "Always", vec![once()], deleted, None, None, false),
        ("the sandbox is gone, too", "Always", vec![once()], lost, None, None, false),
        (
            "the next one could not be run",
            "Always",
            vec![once(), Container { id: "c2".into(), attempt: 2, ..exited(128) }],
            plain,
            None,
            None,
            false,
        ),
    ];
    for (case, policy, containers, change, failure, backoff, held) in cases {
        let mut p = pod(policy);
        p.set(&["status"], first.clone());
        let mut o = Observed { restarting: ["c1".to_string()].into(), ..observed(containers) };
        o.failures.extend(failure.map(|f| ("a".to_string(), f)));
        o.backoffs.extend(backoff.map(|b| ("a".to_string(), b)));
        change(&mut p, &mut o);
        let now = run(&p, &o);
        let same = now.list_at(&["containerStatuses"]) == first.list_at(&["containerStatuses"]);
        assert_eq!((same, condition(&now, "Ready").0 == "True"), (held, held), "{case}: {now}");
    }
}

/// Lists merged by a key keep what a patch does not name.
#[test]
fn what_is_no_more_is_patched_away() {
    for (key, had, have, expected) in [
        (
            "conditions",
            value!([{"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "a"}, {"type": "Same", "status": "True"}]),
            value!([{"type": "Ready", "status": "True"}, {"type": "Same", "status": "True"}]),
            value!([{"type": "Ready", "status": "True", "reason": null, "message": null}]),
        ),
        (
            "podIPs",
            value!([{"ip": "10.0.0.1"}]),
            value!([{"ip": "10.0.0.2"}]),
            value!([{"ip": "10.0.0.2"}, {"ip": "10.0.0.1", "$patch": "delete"}]),
        ),
        ("containerStatuses", value!([{"name": "a", "started": true}]), value!([{"name": "a"}]), value!([{"name": "a"}])),
    ] {
        let sent = patch(&value!({key: had.clone()}), &value!({key: have.clone()})).unwrap();
        assert_eq!(sent.at(&[key]), Some(&expected), "{key}");
        assert_eq!(patch(&value!({key: have.clone()}), &value!({key: have})), None, "{key}");
    }
}
