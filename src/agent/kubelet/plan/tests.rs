//! Given a pod and what is observed, these are the steps.

use super::*;
use crate::agent::kubelet::observe::{Doom, Verdicts};
use crate::agent::kubelet::restart::Backoff;
use crate::api::value::Value;
use crate::value;

const NOW: Millis = 1_700_000_000_000;

fn pod(policy: &str) -> Value {
    value!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 30,
        "initContainers": [{"name": "i1", "image": "x"}, {"name": "i2", "image": "x"}],
        "containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]}})
}

fn ready() -> Observed {
    Observed { volumes: Progress::Ready, sandbox: Progress::Ready, set_up: true, ..Observed::default() }
}

fn container(name: &str, attempt: u32, state: State) -> Container {
    Container {
        id: format!("{name}{attempt}"),
        name: name.into(),
        attempt,
        image: "x".into(),
        image_id: "sha256:1".into(),
        started_at: Some(NOW - 5000),
        finished_at: matches!(state, State::Exited { .. }).then_some(NOW - 1000),
        state,
        limits: Resources::default(),
    }
}

fn exited(name: &str, attempt: u32, code: i32) -> Container {
    container(name, attempt, State::Exited { code, signal: 0, reason: "Error".into(), message: String::new() })
}

fn with(containers: Vec<Container>) -> Observed {
    Observed { containers, ..ready() }
}

fn run(pod: &Value, observed: &Observed) -> Vec<Step> {
    plan(Pod(pod), observed, &Probes::default(), NOW)
}

fn start(name: &str, attempt: u32) -> Step {
    Step::StartContainer { name: name.into(), attempt }
}

fn stop(name: &str, attempt: u32, grace_seconds: i64, why: Why) -> Step {
    Step::StopContainer { id: format!("{name}{attempt}"), name: name.into(), grace_seconds, why }
}

#[test]
fn a_new_pod_gets_volumes_and_sandbox_side_by_side() {
    assert_eq!(run(&pod("Always"), &Observed::default()), [Step::MountVolumes, Step::StartSandbox]);
}

#[test]
fn init_containers_run_one_after_the_other_then_all_others_together() {
    let p = pod("Always");
    assert_eq!(run(&p, &ready()), [start("i1", 0)]);
    assert_eq!(run(&p, &with(vec![container("i1", 0, State::Running)])), []);
    assert_eq!(run(&p, &with(vec![exited("i1", 0, 0)])), [start("i2", 0)]);
    assert_eq!(run(&p, &with(vec![exited("i1", 0, 0), exited("i2", 0, 0)])), [start("a", 0), start("b", 0)]);
}

#[test]
fn a_failing_init_container_is_tried_again_or_ends_the_pod() {
    assert_eq!(run(&pod("Always"), &with(vec![exited("i1", 0, 1)])), [start("i1", 1)]);
    // The outcome is reported first; only then things are taken down.
    assert_eq!(run(&pod("Never"), &with(vec![exited("i1", 0, 1)])), []);
}

#[test]
fn a_pod_that_is_right_needs_nothing() {
    let running = with(vec![container("a", 3, State::Running), container("b", 0, State::Running)]);
    assert_eq!(run(&pod("Always"), &running), []);
}

#[test]
fn exits_restart_by_policy_and_back_off() {
    let mut observed = with(vec![exited("a", 1, 1), container("b", 0, State::Running)]);
    assert_eq!(run(&pod("Always"), &observed), [start("a", 2)]);
    assert_eq!(run(&pod("Never"), &observed), []);
    let after = |attempt| Backoff { delay_ms: 20_000, updated: NOW - 3000, attempt };
    observed.backoffs.insert("a".into(), after(1));
    assert_eq!(run(&pod("OnFailure"), &observed), [start("a", 2)], "it is being started after this very exit");
    observed.backoffs.insert("a".into(), after(0));
    assert_eq!(run(&pod("OnFailure"), &observed), [Step::Wake { at: NOW - 1000 + 20_000 }]);
}

#[test]
fn a_failed_start_waits_for_its_time() {
    use crate::agent::kubelet::observe::Reason;
    let mut observed = with(vec![exited("i1", 0, 0), exited("i2", 0, 0), container("b", 0, State::Running)]);
    let reason = Reason { reason: "ErrImagePull".into(), message: "m".into() };
    observed.failures.insert("a".into(), Failure::after(None, reason, 10_000, 300_000, NOW));
    assert_eq!(run(&pod("Always"), &observed), [Step::Wake { at: NOW + 10_000 }]);
}

#[test]
fn deletion_stops_everything_then_takes_down_then_deletes() {
    let mut p = pod("Always");
    p.set(&["metadata", "deletionTimestamp"], "2023-11-14T22:13:20Z");
    p.set(&["metadata", "deletionGracePeriodSeconds"], 5);
    let running = with(vec![container("a", 0, State::Running), exited("b", 0, 0)]);
    assert_eq!(run(&p, &running), [stop("a", 0, 5, Why::Deleted)]);
    assert_eq!(run(&p, &with(vec![exited("a", 0, 0)])), [Step::Teardown]);
    let mut clean = Observed::default();
    assert_eq!(run(&p, &clean), []);
    clean.reported = true;
    assert_eq!(run(&p, &clean), [Step::DeletePod]);
    clean.gone = true;
    assert_eq!(run(&p, &clean), [Step::Forget]);
}

#[test]
fn a_finished_pod_is_taken_down_once_its_end_is_known_and_not_deleted() {
    let mut p = pod("Never");
    let observed = with(vec![exited("a", 0, 0), exited("b", 0, 0)]);
    assert_eq!(run(&p, &observed), []);
    p.set(&["status", "phase"], "Succeeded");
    assert_eq!(run(&p, &observed), [Step::Teardown]);
    assert_eq!(run(&p, &Observed::default()), []);
}

#[test]
fn a_doomed_container_is_stopped_with_the_probes_grace() {
    let observed = with(vec![container("a", 0, State::Running), container("b", 0, State::Running)]);
    let doomed = Some(Doom { probe: "liveness", grace_seconds: Some(3) });
    let probes = Probes([("a0".to_string(), Verdicts { started: true, ready: true, doomed })].into());
    assert_eq!(plan(Pod(&pod("Always")), &observed, &probes, NOW), [stop("a", 0, 3, Why::Probe("liveness"))]);
}

#[test]
fn the_active_deadline_ends_a_pod() {
    let mut p = pod("Always");
    p.set(&["spec", "activeDeadlineSeconds"], 60);
    p.set(&["status", "startTime"], "2023-11-14T22:13:00Z");
    let observed = with(vec![container("a", 0, State::Running), container("b", 0, State::Running)]);
    assert_eq!(run(&p, &observed), [Step::Wake { at: NOW + 40_000 }]);
    let late = plan(Pod(&p), &observed, &Probes::default(), NOW + 40_000);
    assert_eq!(late, [stop("a", 0, 30, Why::Ended), stop("b", 0, 30, Why::Ended)]);
}

#[test]
fn after_a_reboot_attempts_go_on_from_what_was_reported() {
    let mut p = pod("Always");
    p.set(
        &["status", "containerStatuses"],
        value!([{"name": "a", "restartCount": 4, "containerID": "coracle://old", "state": {"running": {}}}]),
    );
    p.set(&["status", "initContainerStatuses"], value!([]));
    let observed = with(vec![exited("i1", 0, 0), exited("i2", 0, 0)]);
    assert_eq!(run(&p, &observed), [start("a", 5), start("b", 0)]);
}

#[test]
fn what_is_not_supported_is_left_alone() {
    let observed = Observed { unsupported: Some("x".into()), ..Observed::default() };
    assert_eq!(run(&pod("Always"), &observed), []);
}

fn sidecar_pod() -> Value {
    value!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 30,
        "initContainers": [{"name": "s1", "image": "x", "restartPolicy": "Always"}, {"name": "i", "image": "x"}, {"name": "s2", "image": "x", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "x"}]}})
}

#[test]
fn sidecars_start_in_order_and_stay() {
    let p = sidecar_pod();
    let running = |name: &str| container(name, 0, State::Running);
    assert_eq!(run(&p, &ready()), [start("s1", 0)]);
    let unstarted = Probes([("s10".to_string(), Verdicts { started: false, ready: false, doomed: None })].into());
    assert_eq!(plan(Pod(&p), &with(vec![running("s1")]), &unstarted, NOW), [], "its startup probe has not passed");
    assert_eq!(run(&p, &with(vec![running("s1")])), [start("i", 0)]);
    assert_eq!(run(&p, &with(vec![exited("s1", 0, 1), running("i")])), [start("s1", 1)]);
    assert_eq!(run(&p, &with(vec![running("s1"), exited("i", 0, 0)])), [start("s2", 0)]);
    assert_eq!(run(&p, &with(vec![running("s1"), exited("i", 0, 0), running("s2")])), [start("a", 0)]);
    let all = with(vec![running("s1"), exited("i", 0, 0), exited("s2", 0, 0), running("a")]);
    assert_eq!(run(&p, &all), [start("s2", 1)]);
}

#[test]
fn sidecars_end_after_the_others_the_last_one_first() {
    let mut p = sidecar_pod();
    let running = |name: &str| container(name, 0, State::Running);
    let done = with(vec![running("s1"), exited("i", 0, 0), running("s2"), exited("a", 0, 0)]);
    assert_eq!(run(&p, &done), [stop("s2", 0, 30, Why::Ended)]);
    p.set(&["metadata", "deletionTimestamp"], "2023-11-14T22:13:25Z");
    p.set(&["metadata", "deletionGracePeriodSeconds"], 10);
    let all = with(vec![running("s1"), exited("i", 0, 0), running("s2"), running("a")]);
    assert_eq!(run(&p, &all), [stop("a", 0, 10, Why::Deleted), Step::Wake { at: NOW + 5000 }]);
    let last = with(vec![running("s1"), exited("s2", 0, 0), exited("a", 0, 0)]);
    assert_eq!(run(&p, &last), [stop("s1", 0, 5, Why::Deleted)]);
    let late = plan(Pod(&p), &all, &Probes::default(), NOW + 5000);
    assert_eq!(late, [stop("a", 0, 10, Why::Deleted), stop("s2", 0, 1, Why::Deleted), stop("s1", 0, 1, Why::Deleted)]);
}

#[test]
fn an_ephemeral_container_starts_once() {
    let mut p = pod("Always");
    p.set(&["spec", "ephemeralContainers"], value!([{"name": "e", "image": "x"}]));
    let rest = || vec![container("a", 0, State::Running), container("b", 0, State::Running)];
    assert_eq!(run(&p, &with(rest())), [start("e", 0)]);
    assert_eq!(run(&p, &with([rest(), vec![exited("e", 0, 1)]].concat())), []);
    p.set(&["status", "ephemeralContainerStatuses"], value!([{"name": "e", "containerID": "coracle://old"}]));
    assert_eq!(run(&p, &with(rest())), []);
}

#[test]
fn limits_widen_before_and_narrow_after_the_containers() {
    let spec = |cpu: &str, policy: &str| {
        value!({"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "a", "image": "x", "resizePolicy": [{"resourceName": "cpu", "restartPolicy": policy}],
            "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}}]}})
    };
    let (small, large) = (spec("100m", "NotRequired"), spec("200m", "NotRequired"));
    let held = |pod: &Value| {
        let running = Container { limits: spec::limits(&Pod(pod).containers()[0]), ..container("a", 0, State::Running) };
        Observed { limits: spec::pod_limits(Pod(pod)), ..with(vec![running]) }
    };
    assert_eq!(run(&small, &held(&small)), []);
    let change = |pod: &Value| Limits::Container { id: "a0".into(), resources: spec::resources(Pod(pod), &Pod(pod).containers()[0], 0) };
    let of_pod = |pod: &Value| Limits::Pod(spec::pod_limits(Pod(pod)));
    assert_eq!(run(&large, &held(&small)), [Step::SetLimits { changes: vec![of_pod(&large), change(&large)] }]);
    assert_eq!(run(&small, &held(&large)), [Step::SetLimits { changes: vec![change(&small), of_pod(&small)] }]);
    let restart = spec("200m", "RestartContainer");
    let steps = run(&restart, &held(&small));
    assert_eq!(steps, [stop("a", 0, 30, Why::Resized), Step::SetLimits { changes: vec![of_pod(&large)] }]);
    let mut stopped = held(&small);
    stopped.containers = vec![exited("a", 0, 0)];
    stopped.replaced.insert("a0".into());
    assert!(run(&restart, &stopped).contains(&start("a", 1)));
}

/// What the node may give to others.
#[test]
fn a_pod_has_stopped_when_it_is_leaving_and_nothing_runs() {
    let running = || with(vec![container("a", 0, State::Running), exited("b", 0, 0)]);
    let stopped = || with(vec![exited("a", 0, 0), exited("b", 0, 0)]);
    let plain = |_: &mut Value, _: &mut Observed| {};
    let deleted = |p: &mut Value, _: &mut Observed| p.set(&["metadata", "deletionTimestamp"], "2023-11-14T22:13:25Z");
    let gone = |_: &mut Value, o: &mut Observed| o.gone = true;
    let failed = |p: &mut Value, _: &mut Observed| p.set(&["status", "phase"], "Failed");
    let overdue = |p: &mut Value, _: &mut Observed| {
        p.set(&["spec", "activeDeadlineSeconds"], 1);
        p.set(&["status", "startTime"], "2023-11-14T22:13:00Z");
    };
    let refused = |_: &mut Value, o: &mut Observed| {
        o.rejected = Some(crate::agent::kubelet::observe::Reason { reason: "OutOfcpu".into(), message: String::new() })
    };
    type Change = fn(&mut Value, &mut Observed);
    for (case, policy, change, observed, expected) in [
        ("runs", "Always", plain as Change, running(), false),
        ("to be restarted", "Always", plain, stopped(), false),
        ("has not begun", "Never", plain, ready(), false),
        ("came to its end", "Never", plain, stopped(), true),
        ("half way to its end", "Never", plain, running(), false),
        ("deleted, still runs", "Always", deleted, running(), false),
        ("deleted", "Always", deleted, stopped(), true),
        ("deleted before it began", "Always", deleted, ready(), true),
        ("gone, still runs", "Always", gone, running(), false),
        ("failed by another, still runs", "Always", failed, running(), false),
        ("failed by another", "Always", failed, stopped(), true),
        ("overdue, still runs", "Always", overdue, running(), false),
        ("overdue", "Always", overdue, stopped(), true),
        ("refused", "Always", refused, Observed::default(), true),
    ] {
        let (mut p, mut observed) = (pod(policy), observed);
        change(&mut p, &mut observed);
        assert_eq!(has_stopped(Pod(&p), &observed, NOW), expected, "{case}");
    }
}
