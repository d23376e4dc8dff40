//! What server-side apply makes of objects and owners, case by case.

use super::*;
use crate::api::resource;

/// One version of one kind.
struct Only(TypeRef, Ownable);

impl Versions for Only {
    fn type_of(&self, api_version: &str) -> Option<TypeRef> {
        self.0.get().kinds.iter().any(|(v, _)| *v == api_version).then_some(self.0)
    }
    fn convert(&self, tree: &Value, _: &str, _: &str) -> Option<Value> {
        Some(tree.clone())
    }
    fn ownable(&self) -> Ownable {
        self.1
    }
}

const MAIN: Ownable = Ownable::Except(&[&["status"]]);

fn parse(text: &str) -> Value {
    json::parse(text.as_bytes()).unwrap()
}

fn text(value: &Value) -> String {
    String::from_utf8(json::to_vec(value)).unwrap()
}

fn owners(object: &Value) -> String {
    let shown = object.list_at(MANAGED).iter();
    shown.map(|e| format!("{}={}", e.str_at(&["manager"]), text(e.get("fieldsV1").unwrap()))).collect::<Vec<_>>().join(" ")
}

/// Writes one state after the other and returns the managed fields, without times and constants.
fn after(writes: &[(&str, &str)]) -> String {
    let ty = resource::PODS.type_ref();
    let mut old: Option<Value> = None;
    for (i, (manager, object)) in writes.iter().enumerate() {
        let mut new = parse(object);
        json::conform(ty, &mut new).unwrap();
        let now = format!("2026-01-01T00:00:{i:02}Z");
        let write = Write { manager, subresource: "", api_version: "v1", now: &now };
        track(old.as_ref(), &mut new, &write, "v1", &Only(ty, MAIN));
        old = Some(new);
    }
    owners(&old.unwrap())
}

#[test]
fn each_write_owns_what_it_set() {
    let c = |more: &str| format!(r#"{{"metadata":{{"name":"p"{more}}},"spec":{{"containers":null}}}}"#);
    let plain = &c("");
    let a = &c(r#","labels":{"a":"1"}"#);
    let b = &c(r#","labels":{"a":"1","b":"2"}"#);
    let a2 = &c(r#","labels":{"a":"2"}"#);
    let held = &c(r#","labels":{"a":"1"},"finalizers":["x/y"]"#);
    let reset = &c(r#","labels":{"a":"3"},"managedFields":[]"#);
    let table: &[(&[(&str, &str)], &str)] = &[
        (&[("m", a)], r#"m={"f:metadata":{"f:labels":{".":{},"f:a":{}}}}"#),
        (&[("m", a), ("m", a)], r#"m={"f:metadata":{"f:labels":{".":{},"f:a":{}}}}"#),
        (&[("m", a), ("n", b)], r#"m={"f:metadata":{"f:labels":{".":{},"f:a":{}}}} n={"f:metadata":{"f:labels":{"f:b":{}}}}"#),
        (&[("m", a), ("n", a2)], r#"m={"f:metadata":{"f:labels":{}}} n={"f:metadata":{"f:labels":{"f:a":{}}}}"#),
        (&[("m", b), ("n", a)], r#"m={"f:metadata":{"f:labels":{".":{},"f:a":{}}}}"#),
        (
            &[("m", a), ("n", held)],
            r#"m={"f:metadata":{"f:labels":{".":{},"f:a":{}}}} n={"f:metadata":{"f:finalizers":{".":{},"v:\"x/y\"":{}}}}"#,
        ),
        (&[("m", a), ("n", plain)], ""),
        (&[("m", a), ("n", reset)], ""),
        (&[("m", a), ("n", reset), ("n", b)], ""),
    ];
    for (writes, want) in table {
        assert_eq!(after(writes), *want, "{writes:?}");
    }
}

#[test]
fn lists_go_by_their_keys() {
    let pod = r#"{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":80,"protocol":"TCP"}]}],
        "tolerations":[{"key":"k"}]}}"#;
    let want = r#"m={"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:name":{},"f:ports":{".":{},"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{},"f:protocol":{}}},"f:resources":{}}},"f:tolerations":{}}}"#;
    assert_eq!(after(&[("m", pod)]), want);
}

#[test]
fn the_oldest_updaters_are_merged() {
    let managers: Vec<String> = (0..12).map(|i| format!("m{i:02}")).collect();
    let labels = |n: usize| (0..n).map(|i| format!(r#""l{i:02}":"""#)).collect::<Vec<_>>().join(",");
    let states: Vec<String> =
        (0..12).map(|i| format!(r#"{{"metadata":{{"name":"p","labels":{{{}}}}},"spec":{{"containers":null}}}}"#, labels(i + 1))).collect();
    let writes: Vec<(&str, &str)> = managers.iter().map(String::as_str).zip(states.iter().map(String::as_str)).collect();
    let shown = after(&writes);
    assert_eq!(shown.split(' ').count(), 10);
    assert!(shown.starts_with(r#"ancient-changes={"f:metadata":{"f:labels":{".":{},"f:l00":{},"f:l01":{},"f:l02":{}}}} m03="#), "{shown}");
}

#[test]
fn managers_are_named_by_the_agent() {
    for (agent, want) in [("kubectl/v1.36.3 (linux)", "kubectl"), ("", ""), ("a\u{7}b", "ab")] {
        assert_eq!(manager_of(agent), want);
    }
    assert_eq!(manager_of(&"x".repeat(200)).len(), 128);
}

/// Applies one configuration after the other to a config map; `!` before a manager forces. The outcome: data and owners, or
/// the refusal.
fn applied(configs: &[(&str, &str)]) -> std::result::Result<(String, String), String> {
    let ty = resource::CONFIGMAPS.type_ref();
    let mut live: Option<Value> = None;
    for (i, (manager, config)) in configs.iter().enumerate() {
        let config = parse(&format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"x"}},{config}}}"#));
        let now = format!("2026-01-01T00:00:{i:02}Z");
        let write = Write { manager: manager.trim_start_matches('!'), subresource: "", api_version: "v1", now: &now };
        let config = Config { tree: &config, kind: "ConfigMap", force: manager.starts_with('!') };
        let mut object = apply(live.as_ref(), &config, &write, &Only(ty, MAIN)).map_err(|s| s.message)?;
        json::conform(ty, &mut object).map_err(|e| e.to_string())?;
        live = Some(object);
    }
    let live = live.unwrap();
    Ok((live.get("data").map_or_else(String::new, text), owners(&live)))
}

#[test]
fn an_apply_owns_what_it_names() {
    let one = r#""data":{"a":"1"}"#;
    let two = r#""data":{"a":"2"}"#;
    let both = r#""data":{"a":"1","b":"1"}"#;
    type Case<'a> = (&'a [(&'a str, &'a str)], std::result::Result<(&'a str, &'a str), &'a str>);
    let table: &[Case] = &[
        (&[("m", one)], Ok((r#"{"a":"1"}"#, r#"m={"f:data":{"f:a":{}}}"#))),
        (&[("m", one), ("n", one)], Ok((r#"{"a":"1"}"#, r#"n={"f:data":{"f:a":{}}} m={"f:data":{"f:a":{}}}"#))),
        (&[("m", one), ("n", two)], Err("Apply failed with 1 conflict: conflict with \"m\": .data.a")),
        (&[("m", one), ("!n", two)], Ok((r#"{"a":"2"}"#, r#"n={"f:data":{"f:a":{}}}"#))),
        (&[("m", both), ("m", one)], Ok((r#"{"a":"1"}"#, r#"m={"f:data":{"f:a":{}}}"#))),
        (
            &[("m", both), ("n", one), ("m", r#""data":{"b":"1"}"#)],
            Ok((r#"{"a":"1","b":"1"}"#, r#"n={"f:data":{"f:a":{}}} m={"f:data":{"f:b":{}}}"#)),
        ),
        (&[("m", both), ("m", r#""data":null"#)], Ok(("", r#"m={"f:data":{}}"#))),
        (&[("m", r#""zz":1"#)], Err("failed to create typed patch object (/x; /v1, Kind=ConfigMap): .zz: field not declared in schema")),
        (
            &[("m", r#""data":{"a":1}"#)],
            Err(
                "failed to create typed patch object (/x; /v1, Kind=ConfigMap): .data.a: expected string, got &value.valueUnstructured{Value:1}",
            ),
        ),
    ];
    for (configs, want) in table {
        let got = applied(configs);
        let got = got.as_ref().map(|(a, b)| (a.as_str(), b.as_str())).map_err(String::as_str);
        assert_eq!(got, *want, "{configs:?}");
    }
}

#[test]
fn many_conflicts_are_grouped() {
    let shown = applied(&[
        ("m", r#""data":{"a":"1","b":"1"}"#),
        ("k", r#""immutable":false"#),
        ("n", r#""data":{"a":"2","b":"2"},"immutable":true"#),
    ]);
    let want = "Apply failed with 3 conflicts: conflicts with \"k\":\n- .immutable\nconflicts with \"m\":\n- .data.a\n- .data.b";
    assert_eq!(shown.unwrap_err(), want);
}

/// Merged lists of containers, by name.
#[test]
fn lists_keep_the_order_of_the_config_where_both_have_an_element() {
    let ty = resource::PODS.type_ref();
    let pod = |names: &str| {
        let containers: Vec<Value> = names.chars().map(|c| crate::value!({"name": c.to_string()})).collect();
        crate::value!({"spec": {"containers": serde_json::Value::from(containers.iter().map(serde_json::Value::from).collect::<Vec<_>>())}})
    };
    for (live, config, want) in
        [("abc", "b", "abc"), ("abc", "cb", "acb"), ("ab", "xb", "axb"), ("", "ba", "ba"), ("abcd", "da", "bcda"), ("ab", "abz", "abz")]
    {
        let merged = typed::merge(Node::Type(ty), Some(&pod(live)), Some(&pod(config))).unwrap().unwrap();
        let got: String = merged.list_at(&["spec", "containers"]).iter().map(|c| c.str_at(&["name"])).collect();
        assert_eq!(got, want, "{live} + {config}");
    }
}

#[test]
fn kubectl_moves_over_from_client_side_apply() {
    let ty = resource::CONFIGMAPS.type_ref();
    let last = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"a":"1","b":"1"}}"#;
    let mut live = crate::value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "annotations": {}}, "data": {"a": "1", "b": "changed"}});
    live.set(LAST_APPLIED, last);
    let now = "2026-01-01T00:00:00Z";
    let write = Write { manager: "kubectl-client-side-apply", subresource: "", api_version: "v1", now };
    track(None, &mut live, &write, "v1", &Only(ty, MAIN));
    let kubectl = Write { manager: KUBECTL, ..write };
    let config = |data: &str| parse(&format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"x"}},"data":{data}}}"#));
    let run = |tree: &Value| apply(Some(&live), &Config { tree, kind: "ConfigMap", force: false }, &kubectl, &Only(ty, MAIN));
    let object = run(&config(r#"{"a":"2"}"#)).unwrap();
    assert_eq!(object.str_at(&["data", "a"]), "2");
    assert_eq!(
        object.str_at(LAST_APPLIED),
        "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"2\"},\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"x\"}}\n"
    );
    let refused = run(&config(r#"{"a":"2","b":"2"}"#)).unwrap_err();
    assert_eq!(refused.message, "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using v1: .data.b");
}
