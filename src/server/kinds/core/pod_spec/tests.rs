//! Each case: what is changed in a valid pod, and the complaints that follow.

use super::*;
use crate::server::kinds::core::pod_defaults;
use crate::value;

fn complaints(spec: Value) -> Vec<String> {
    let mut p = value!({"metadata": {"name": "p", "namespace": "n"}});
    p.set(&["spec"], spec);
    pod_defaults::pod(&mut p);
    pod(&p).iter().map(FieldError::to_string).collect()
}

fn with_container(extra: Value) -> Vec<String> {
    let mut c = value!({"name": "c", "image": "i:1"});
    for (key, v) in extra.as_map().unwrap().iter() {
        c.set(&[key], v.clone());
    }
    let mut spec = Value::map();
    spec.set(&["containers"], vec![c]);
    complaints(spec)
}

fn with_spec(extra: Value) -> Vec<String> {
    let mut spec = value!({"containers": [{"name": "c", "image": "i:1"}]});
    for (key, v) in extra.as_map().unwrap().iter() {
        spec.set(&[key], v.clone());
    }
    complaints(spec)
}

#[test]
fn a_minimal_pod_is_valid() {
    assert_eq!(with_container(value!({})), Vec::<String>::new());
}

#[test]
fn containers() {
    let at = "spec.containers[0]";
    let cases = [
        (value!({"image": ""}), format!("{at}.image: Required value")),
        (value!({"image": " i"}), format!("{at}.image: Invalid value: \" i\": must not have leading or trailing whitespace")),
        (
            value!({"imagePullPolicy": "X"}),
            format!("{at}.imagePullPolicy: Unsupported value: \"X\": supported values: \"Always\", \"IfNotPresent\", \"Never\""),
        ),
        (value!({"ports": [{"containerPort": 0}]}), format!("{at}.ports[0].containerPort: Required value")),
        (
            value!({"ports": [{"containerPort": 1, "hostPort": 70000}]}),
            format!("{at}.ports[0].hostPort: Invalid value: 70000: must be between 1 and 65535, inclusive"),
        ),
        (
            value!({"ports": [{"containerPort": 1, "hostPort": 80}, {"containerPort": 2, "hostPort": 80}]}),
            format!("{at}.ports[1].hostPort: Duplicate value: \"TCP//80\""),
        ),
        (value!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}), format!("{at}.volumeMounts[0].name: Not found: \"v\"")),
        (
            value!({"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            format!("{at}.env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"),
        ),
        (
            value!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.foo"}}}]}),
            format!(
                "{at}.env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.foo\": error converting fieldPath: field label not supported: spec.foo"
            ),
        ),
        (
            value!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
            format!("{at}.resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"),
        ),
        (value!({"livenessProbe": {}}), format!("{at}.livenessProbe: Required value: must specify a handler type")),
        (
            value!({"livenessProbe": {"exec": {"command": ["x"]}, "successThreshold": 2}}),
            format!("{at}.livenessProbe.successThreshold: Invalid value: 2: must be 1"),
        ),
        (
            value!({"lifecycle": {"preStop": {"sleep": {"seconds": 60}}}}),
            format!(
                "{at}.lifecycle.preStop.sleep: Invalid value: 60: must be non-negative and less than terminationGracePeriodSeconds (30)"
            ),
        ),
    ];
    for (change, want) in cases {
        assert_eq!(with_container(change.clone()), [want], "{change}");
    }
}

#[test]
fn specs() {
    let cases = [
        (
            value!({"restartPolicy": "X"}),
            "spec.restartPolicy: Unsupported value: \"X\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
        (value!({"dnsPolicy": "None"}), "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"),
        (value!({"volumes": [{"name": "v", "configMap": {}}]}), "spec.volumes[0].configMap.name: Required value"),
        (
            value!({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]}),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (value!({"subdomain": "a.b"}), "spec.subdomain: Invalid value: \"a.b\": must not contain dots"),
        (value!({"initContainers": [{"name": "c", "image": "i:1"}]}), "spec.initContainers[0].name: Duplicate value: \"c\""),
        (
            value!({"initContainers": [{"name": "d", "image": "i:1", "livenessProbe": {"exec": {"command": ["x"]}}}]}),
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ),
        (value!({"activeDeadlineSeconds": 0}), "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive"),
        (
            value!({"schedulingGates": [{"name": "a.b/c"}], "nodeName": "n"}),
            "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
        ),
    ];
    for (change, want) in cases {
        assert_eq!(with_spec(change.clone()), [want], "{change}");
    }
}
