//! Pure: YAML bytes to tree and back, as the rest of the Kubernetes world reads YAML: version 1.1.
//!
//! [`parse`] takes `yes`, `no`, `on`, `off`, `y`, `n` without quotes for booleans and `0777` for octal, exactly as upstream's
//! reader does; what is quoted is a string. [`write`] quotes every string such a reader would take for something else.

use super::json::{self, DEPTH_MAX};
use super::value::{Map, Value};
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};

/// Reads YAML (or JSON, which is YAML), whole floats as the integers they become on upstream's way through JSON; the second part
/// has one text per repeated key.
pub fn parse(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{')
        && let Ok(mut value) = json::parse(bytes)
    {
        whole_floats_to_integers(&mut value);
        return Ok((value, Vec::new()));
    }
    let mut found = Found::default();
    let seed = Node { input: bytes, found: &mut found, depth: 0 };
    let value =
        seed.deserialize(serde_yaml_ng::Deserializer::from_slice(bytes)).map_err(|e| format!("yaml: {}", explain(&e.to_string())))?;
    Ok((value, found.repeated))
}

fn whole_floats_to_integers(value: &mut Value) {
    match value {
        Value::Float(f) => *value = whole(*f),
        Value::List(items) => items.iter_mut().for_each(whole_floats_to_integers),
        Value::Map(map) => map.iter_mut().for_each(|(_, v)| whole_floats_to_integers(v)),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Str(_) => {}
    }
}

/// A float, or the integer it is if floats can tell that from its neighbours.
fn whole(f: f64) -> Value {
    if f.fract() == 0.0 && f.abs() < 9e15 { Value::Int(f as i64) } else { Value::Float(f) }
}

/// libyaml's complaint the way Go's reader words it: the line the trouble is in, counted from where it is not the first.
fn explain(error: &str) -> String {
    let line_of = |text: &str| -> usize {
        let digits = text.split_once(" at line ").map_or("", |(_, rest)| rest);
        digits.split([' ', ',']).next().and_then(|n| n.parse().ok()).unwrap_or(1)
    };
    let (problem, context) = error.split_once(", while ").unwrap_or((error, ""));
    let words = problem.split(" at line ").next().unwrap_or(problem);
    let own = line_of(problem) - 1;
    let around = if context.contains(" at line ") { line_of(context) - 1 } else { own };
    let at = if around > 0 { around } else { own };
    // The scanner stops before it counts the line.
    let scans = context.starts_with("scanning") || words.ends_with("in this context");
    match (at, scans) {
        (0, _) => words.to_string(),
        (at, scans) => format!("line {}: {words}", at + usize::from(scans)),
    }
}

struct Node<'a> {
    /// The whole text: where a scalar stands in it tells whether it is quoted.
    input: &'a [u8],
    found: &'a mut Found,
    depth: usize,
}

/// What is noticed on the way.
#[derive(Default)]
struct Found {
    repeated: Vec<String>,
    /// Where the last scalar stands.
    at: usize,
}

impl Node<'_> {
    fn inner(&mut self) -> Node<'_> {
        Node { input: self.input, found: self.found, depth: self.depth + 1 }
    }

    /// `text` is a piece of the input: neither quoted nor tagged as a string.
    fn is_plain(&mut self, text: &str) -> bool {
        let at = (text.as_ptr() as usize).wrapping_sub(self.input.as_ptr() as usize);
        if at < self.input.len() {
            self.found.at = at;
        }
        let Some(before) = self.input.get(..at) else { return false };
        !matches!(before.last(), Some(b'"' | b'\'')) && !before.trim_ascii_end().ends_with(b"!!str")
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        if self.depth > DEPTH_MAX {
            return Err(D::Error::custom("exceeded max depth"));
        }
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any YAML value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }
    fn visit_i64<E>(self, i: i64) -> Result<Value, E> {
        Ok(Value::Int(i))
    }
    fn visit_u64<E>(self, u: u64) -> Result<Value, E> {
        Ok(i64::try_from(u).map_or(Value::Float(u as f64), Value::Int))
    }
    fn visit_f64<E>(self, f: f64) -> Result<Value, E> {
        Ok(whole(f))
    }
    fn visit_borrowed_str<E>(mut self, s: &'de str) -> Result<Value, E> {
        let resolved = if self.is_plain(s) { resolve(s) } else { None };
        Ok(match resolved {
            Some(Value::Float(f)) => whole(f),
            Some(value) => value,
            None => s.into(),
        })
    }
    fn visit_str<E>(self, s: &str) -> Result<Value, E> {
        Ok(s.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.inner())? {
            list.push(item);
        }
        Ok(Value::List(list))
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = members.next_key_seed(self.inner())? {
            let key = match key {
                Value::Str(s) => s,
                Value::Map(_) | Value::List(_) => return Err(A::Error::custom("a mapping key is not a scalar")),
                other => other.to_string(),
            };
            let at = self.found.at;
            let value = members.next_value_seed(self.inner())?;
            if map.contains_key(&key) {
                let line = self.input[..at].iter().filter(|b| **b == b'\n').count() + 1;
                self.found.repeated.push(format!("line {line}: key {key:?} already set in map"));
            }
            map.insert(key, value);
        }
        Ok(Value::Map(map))
    }
    /// A tagged value: the tag says nothing to us.
    fn visit_enum<A: EnumAccess<'de>>(mut self, tagged: A) -> Result<Value, A::Error> {
        let (_, variant) = tagged.variant::<serde::de::IgnoredAny>()?;
        variant.newtype_variant_seed(self.inner())
    }
}

/// What version 1.1 makes of a scalar without quotes that 1.2 calls a string.
fn resolve(text: &str) -> Option<Value> {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Some(Value::Bool(true)),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Some(Value::Bool(false)),
        _ => {}
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let plain = text.replace('_', "");
    integer(&plain).map(Value::Int).or_else(|| float(&plain).map(Value::Float))
}

/// `0b1`, `0o7`, `07` and `0xf` in either case, with a sign.
fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{digits}"), radix).ok()
}

fn float(text: &str) -> Option<f64> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    text.parse().ok().filter(|f: &f64| is_number && f.is_finite())
}

/// Block style, keys in order, ending in a newline.
pub fn write(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    match value {
        Value::Map(map) if !map.is_empty() => members(map, 0, &mut out),
        Value::List(list) if !list.is_empty() => items(list, 0, &mut out),
        value => {
            scalar(value, 1, &mut out);
            out.push(b'\n');
        }
    }
    out
}

fn indent(depth: usize, out: &mut Vec<u8>) {
    out.resize(out.len() + 2 * depth, b' ');
}

fn members(map: &Map, depth: usize, out: &mut Vec<u8>) {
    for (i, (key, value)) in map.iter().enumerate() {
        // The first one stands behind the dash of a list or at the start of the text.
        if i > 0 {
            indent(depth, out);
        }
        string(key, out);
        out.push(b':');
        match value {
            Value::Map(inner) if !inner.is_empty() => {
                out.push(b'\n');
                indent(depth + 1, out);
                members(inner, depth + 1, out);
            }
            Value::List(list) if !list.is_empty() => {
                out.push(b'\n');
                indent(depth, out);
                items(list, depth, out);
            }
            value => {
                out.push(b' ');
                scalar(value, depth + 1, out);
                out.push(b'\n');
            }
        }
    }
}

fn items(list: &[Value], depth: usize, out: &mut Vec<u8>) {
    for (i, item) in list.iter().enumerate() {
        if i > 0 {
            indent(depth, out);
        }
        out.extend_from_slice(b"- ");
        match item {
            Value::Map(inner) if !inner.is_empty() => members(inner, depth + 1, out),
            Value::List(inner) if !inner.is_empty() => items(inner, depth + 1, out),
            item => {
                scalar(item, depth + 1, out);
                out.push(b'\n');
            }
        }
    }
}

/// A value on its line, or a block of lines `depth` deep; without the last newline.
fn scalar(value: &Value, depth: usize, out: &mut Vec<u8>) {
    match value {
        Value::Str(text) if is_block(text) => {
            out.extend_from_slice(if text.ends_with('\n') { b"|" } else { b"|-" });
            for line in text.lines() {
                out.push(b'\n');
                if !line.is_empty() {
                    indent(depth, out);
                    out.extend_from_slice(line.as_bytes());
                }
            }
        }
        Value::Str(text) => string(text, out),
        value => json::write(value, out),
    }
}

/// Text that reads well as lines and comes back as it was.
fn is_block(text: &str) -> bool {
    let body = text.strip_suffix('\n').unwrap_or(text);
    body.contains('\n')
        && !body.ends_with('\n')
        && !body.starts_with([' ', '\n', '\t'])
        && text.chars().all(|c| c == '\n' || c == '\t' || (c >= ' ' && !is_special(c)))
}

/// What YAML does not print, or takes for the end of a line.
fn is_special(c: char) -> bool {
    matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// Without quotes where every reader agrees that it is a string.
fn string(text: &str, out: &mut Vec<u8>) {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ' ' | '(' | ')' | '=' | '+' | ':' | ',');
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '_'))
        && text.chars().all(word)
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && resolve(text).is_none()
        && !matches!(text.to_ascii_lowercase().as_str(), "true" | "false" | "null");
    if plain {
        out.extend_from_slice(text.as_bytes());
    } else {
        quoted(text, out);
    }
}

/// As JSON, whose escapes YAML shares.
fn quoted(text: &str, out: &mut Vec<u8>) {
    let start = out.len();
    json::write_str(text, out);
    if text.contains(is_special) {
        let escaped = text.chars().filter(|c| is_special(*c)).collect::<std::collections::BTreeSet<char>>();
        let written = String::from_utf8(out.split_off(start)).expect("JSON is UTF-8");
        let written = escaped.into_iter().fold(written, |text, c| text.replace(c, &format!("\\u{:04x}", u32::from(c))));
        out.extend_from_slice(written.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    fn read(text: &str) -> Value {
        parse(text.as_bytes()).unwrap().0
    }

    #[test]
    fn repeated_keys_are_told() {
        let (tree, repeated) = parse(b"a: 1\nb: [x, 'y', 1.5, null, true]\na: 2\nc:\n  d: |\n    text\n1: k\n").unwrap();
        assert_eq!(tree, value!({"a": 2, "b": ["x", "y", 1.5, null, true], "c": {"d": "text\n"}, "1": "k"}));
        assert_eq!(repeated, [r#"line 3: key "a" already set in map"#]);
        assert_eq!(parse(b"a: [").unwrap_err(), "yaml: line 1: did not find expected node content");
    }

    #[test]
    fn booleans_are_those_of_version_1_1() {
        for (text, expected) in [
            ("[yes, No, ON, off, y, N]", value!([true, false, true, false, true, false])),
            ("['yes', \"no\", !!str on, oN, yes sir]", value!(["yes", "no", "on", "oN", "yes sir"])),
            ("a: yes\nb: 'off'\nc: &x on\nd: *x", value!({"a": true, "b": "off", "c": true, "d": true})),
            ("on: 1\n\"no\": 2", value!({"true": 1, "no": 2})),
            ("{\"a\":yes,'b': no}", value!({"a": true, "b": false})),
            ("|\n  yes", value!("yes")),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_are_those_of_version_1_1() {
        for (text, expected) in [
            ("[0777, -010, 0o17, 0b11, 0x1F, 0X1f, 1_000]", value!([511, -8, 15, 3, 31, 31, 1000])),
            ("[08, 1.5, 1e3, '0777', 1.2.3, 10Gi, 2001-01-01]", value!([8, 1.5, 1000, "0777", "1.2.3", "10Gi", "2001-01-01"])),
            ("[500m, 0x, -, 1_0.5]", value!(["500m", "0x", "-", 10.5])),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_back_equal() {
        let tree = value!({"kind": "ConfigMap", "data": {"a": "yes", "b": "0777", "c": "", "d": "x: y", "e": "two\nlines\n", "f": "two\nlines",
            "g": " leading\nspace", "h": "a\n\n", "i": "tab\there", "j": "true", "k": "~", "l": "# no", "m": "a #b", "on": "k", "n": "ü", "o": "1e3",
            "p": "a\n  b\n\nc\n", "q": "\u{85}\u{7f}\u{feff}", "r": "- x", "s": "nan", "t": ".inf", "u": "null", "v": "a:", "w": "end ", "x": "10.0.0.1"},
            "list": [1, 2.5, null, false, [], {}, ["nested", ["more"]], {"a": 1, "b": [{"c": "d"}]}], "empty": {}, "none": []});
        let text = String::from_utf8(write(&tree)).unwrap();
        assert_eq!(read(&text), tree, "{text}");
        assert!(text.contains("a: \"yes\"\n") && text.contains("  e: |\n    two\n    lines\n"), "{text}");
        for value in [value!("x"), value!(["a"]), value!({}), value!(null), value!("multi\nline")] {
            assert_eq!(parse(&write(&value)).unwrap().0, value);
        }
    }
}
