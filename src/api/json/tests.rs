//! Tests of the JSON codec: texts, numbers, refusals, and laws over random trees.

use super::*;
use crate::value;

fn pod() -> TypeRef {
    schema::type_of("v1", "Pod").unwrap()
}

fn decode_pod(text: &str) -> Result<(Value, Vec<String>), String> {
    decode(pod(), text.as_bytes())
}

#[test]
fn zero_values_follow_go() {
    let (tree, reports) = decode_pod(
        r#"{"metadata":{"name":"a","labels":{},"generation":0},"spec":{"hostNetwork":false,"terminationGracePeriodSeconds":0,
        "containers":[{"name":"c","stdin":false,"args":[],"env":null,"securityContext":{}}]}}"#,
    )
    .unwrap();
    assert_eq!(
        tree,
        value!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "resources": {}, "securityContext": {}}],
            "terminationGracePeriodSeconds": 0}, "status": {}})
    );
    assert!(reports.is_empty());
    let (empty, _) = decode_pod("{}").unwrap();
    assert_eq!(empty, value!({"metadata": {}, "spec": {"containers": null}, "status": {}}));
}

#[test]
fn strictness_reports_name_the_path() {
    let (tree, reports) = decode_pod(
        r#"{"zz":1,"metadata":{"name":"a","name":"b","labels":{"k":"1","k":"2"}},"spec":{"containers":[{"name":"c","Image":"x","ports":[{"zz":{"q":[1]}}]}]}}"#,
    )
    .unwrap();
    assert_eq!(
        reports,
        [
            r#"unknown field "zz""#,
            r#"duplicate field "metadata.name""#,
            r#"duplicate field "metadata.labels.k""#,
            r#"unknown field "spec.containers[0].Image""#,
            r#"unknown field "spec.containers[0].ports[0].zz""#
        ]
    );
    assert_eq!(tree.str_at(&["metadata", "name"]), "b");
    assert_eq!(tree.str_at(&["metadata", "labels", "k"]), "2");
}

#[test]
fn wrong_types_are_told_in_the_words_of_go() {
    let error = |text: &str| decode_pod(text).unwrap_err();
    assert_eq!(error(r#"[]"#), "json: cannot unmarshal array into Go value of type v1.Pod");
    assert_eq!(error(r#"{"spec":5}"#), "json: cannot unmarshal number into Go struct field Pod.spec of type v1.PodSpec");
    assert_eq!(
        error(r#"{"spec":{"containers":[{"ports":[{"containerPort":99999999999}]}]}}"#),
        "json: cannot unmarshal number 99999999999 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32"
    );
    assert_eq!(
        error(r#"{"metadata":{"labels":{"a":1}}}"#),
        "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"
    );
    assert_eq!(
        error(r#"{"metadata":{"creationTimestamp":1}}"#),
        "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.creationTimestamp of type string"
    );
    let quantity = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
    assert_eq!(error(r#"{"spec":{"overhead":{"cpu":"x"}}}"#), quantity);
    assert_eq!(error(r#"{"spec":5,"spec":{"overhead":{"cpu":{}}}}"#), quantity, "a leaf's own complaint wins over a saved one");
    assert_eq!(error(r#"{"spec":{"overhead":{"cpu":"x"}}"#), "unexpected end of JSON input", "and bad syntax over both");
}

#[test]
fn syntax_errors_in_the_words_of_go() {
    for (text, want) in [
        ("", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        ("x", "invalid character 'x' looking for beginning of value"),
        ("{x", "invalid character 'x' looking for beginning of object key string"),
        (r#"{"a" 1}"#, "invalid character '1' after object key"),
        (r#"{"a":1 "b"}"#, "invalid character '\"' after object key:value pair"),
        ("[1 2]", "invalid character '2' after array element"),
        ("[1,]", "invalid character ']' looking for beginning of value"),
        (r#"{"a":1,}"#, "invalid character '}' looking for beginning of object key string"),
        ("{} x", "invalid character 'x' after top-level value"),
        ("nul", "unexpected end of JSON input"),
        ("nux", "invalid character 'x' in literal null (expecting 'l')"),
        ("-x", "invalid character 'x' in numeric literal"),
        ("1.x", "invalid character 'x' after decimal point in numeric literal"),
        ("1ex", "invalid character 'x' in exponent of numeric literal"),
        ("01", "invalid character '1' after top-level value"),
        ("\"a\nb\"", "invalid character '\\n' in string literal"),
        (r#""\x""#, "invalid character 'x' in string escape code"),
        (r#""\u12x""#, "invalid character 'x' in \\u hexadecimal character escape"),
    ] {
        assert_eq!(parse(text.as_bytes()).unwrap_err(), want, "{text}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(parse(deep.as_bytes()).unwrap_err(), "exceeded max depth");
}

#[test]
fn strings_escape_like_go() {
    let text = "a<b>&\"\\\n\t\r\u{8}\u{c}\u{1}\u{7f}é\u{2028}\u{2027}😀";
    let mut out = Vec::new();
    write_str(text, &mut out);
    assert_eq!(
        String::from_utf8(out.clone()).unwrap(),
        "\"a\\u003cb\\u003e\\u0026\\\"\\\\\\n\\t\\r\\b\\f\\u0001\u{7f}é\\u2028\u{2027}😀\""
    );
    assert_eq!(parse(&out).unwrap(), Value::Str(text.to_string()));
    assert_eq!(parse(br#""\ud83d\ude00\ud83dx\/""#).unwrap(), Value::Str("😀\u{fffd}x/".to_string()));
}

#[test]
fn numbers_print_like_go() {
    for (f, want) in
        [(1.0, "1"), (0.1, "0.1"), (1e20, "100000000000000000000"), (1e21, "1e+21"), (1.5e-7, "1.5e-7"), (1e-6, "0.000001"), (-2.5, "-2.5")]
    {
        let mut out = Vec::new();
        write_float(f, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }
    assert_eq!(parse(b"[9223372036854775807,-9223372036854775808,1e3,9223372036854775808]").unwrap().list_at(&[])[1], Value::Int(i64::MIN));
    assert_eq!(to_vec(&value!([-7, i64::MIN, 0])), b"[-7,-9223372036854775808,0]");
}

#[test]
fn quantities_and_times_become_canonical() {
    let (tree, _) = decode_pod(
        r#"{"metadata":{"creationTimestamp":"2020-01-01T01:00:00.5+01:00"},"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":0.5,"memory":"1024Mi"}}}],
        "volumes":[{"name":"v","emptyDir":{"sizeLimit":"1000m"}}]}}"#,
    )
    .unwrap();
    assert_eq!(tree.str_at(&["metadata", "creationTimestamp"]), "2020-01-01T00:00:00Z");
    let container = &tree.list_at(&["spec", "containers"])[0];
    assert_eq!(container.at(&["resources", "limits"]).unwrap(), &value!({"cpu": "500m", "memory": "1Gi"}));
    assert_eq!(tree.list_at(&["spec", "volumes"])[0].str_at(&["emptyDir", "sizeLimit"]), "1");
}

#[test]
fn conform_is_idempotent() {
    let mut tree = value!({"spec": {"containers": [{"name": "c", "zz": 1}], "nodeName": null}});
    assert_eq!(conform(pod(), &mut tree).unwrap(), [r#"unknown field "spec.containers[0].zz""#]);
    let again = tree.clone();
    assert!(conform(pod(), &mut tree).unwrap().is_empty());
    assert_eq!(tree, again);
}

#[test]
fn base64_is_read_as_go_reads_it() {
    let whole = |text: &str| Ok(text.as_bytes().to_vec());
    for (text, wanted) in [
        ("", whole("")),
        ("YQ==", whole("a")),
        ("YWI=", whole("ab")),
        ("Y\nW\r\nJj", whole("abc")),
        ("YR==", whole("a")),
        ("1", Err(0)),
        ("YWJj1", Err(4)),
        ("YQ", Err(0)),
        ("YQ=", Err(3)),
        ("YQ=a", Err(2)),
        ("YQ==YQ==", Err(4)),
        ("Y!", Err(1)),
        ("=", Err(0)),
        ("YW-j", Err(2)),
    ] {
        assert_eq!(Base64::Standard.decode(text), wanted, "{text:?}");
    }
    for (text, wanted) in [("YQ", whole("a")), ("YWI", whole("ab")), ("--__", Ok(vec![0xfb, 0xef, 0xff])), ("YQ==", Err(2)), ("Y", Err(0))]
    {
        assert_eq!(Base64::UrlUnpadded.decode(text), wanted, "{text:?}");
    }
}
