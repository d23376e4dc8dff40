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

/// Block style as upstream's writer has it, ending in a newline: keys in natural order, text without quotes wherever it would be
/// read back as the same text, lines folded where they pass [`WIDTH`].
pub fn write(value: &Value) -> Vec<u8> {
    let mut out = Writer(String::with_capacity(1024));
    match value {
        Value::Map(map) if !map.is_empty() => out.members(map, 0),
        Value::List(list) if !list.is_empty() => out.items(list, 0),
        value => {
            out.scalar(value, 1);
            out.0.push('\n');
        }
    }
    out.0.into_bytes()
}

/// A line is folded at the first space beyond.
const WIDTH: usize = 80;

struct Writer(String);

impl Writer {
    fn indent(&mut self, depth: usize) {
        self.0.extend(std::iter::repeat_n(' ', 2 * depth));
    }

    fn members(&mut self, map: &Map, depth: usize) {
        let mut sorted: Vec<(&str, &Value)> = map.iter().collect();
        sorted.sort_by(|(a, _), (b, _)| natural(a, b));
        for (i, (key, value)) in sorted.into_iter().enumerate() {
            // The first one stands behind the dash of a list or at the start of the text.
            if i > 0 {
                self.indent(depth);
            }
            self.string(key, None);
            self.0.push(':');
            match value {
                Value::Map(inner) if !inner.is_empty() => {
                    self.0.push('\n');
                    self.indent(depth + 1);
                    self.members(inner, depth + 1);
                }
                Value::List(list) if !list.is_empty() => {
                    self.0.push('\n');
                    self.indent(depth);
                    self.items(list, depth);
                }
                value => {
                    self.0.push(' ');
                    self.scalar(value, depth + 1);
                    self.0.push('\n');
                }
            }
        }
    }

    fn items(&mut self, list: &[Value], depth: usize) {
        for (i, item) in list.iter().enumerate() {
            if i > 0 {
                self.indent(depth);
            }
            self.0.push_str("- ");
            match item {
                Value::Map(inner) if !inner.is_empty() => self.members(inner, depth + 1),
                Value::List(inner) if !inner.is_empty() => self.items(inner, depth + 1),
                item => {
                    self.scalar(item, depth + 1);
                    self.0.push('\n');
                }
            }
        }
    }

    /// A value on its line, or lines `depth` deep; without the last newline.
    fn scalar(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Str(text) => self.string(text, Some(depth)),
            value => self.0.push_str(&value.to_string()),
        }
    }

    /// `depth` is that of lines to come; `None`: there may be none.
    fn string(&mut self, text: &str, depth: Option<usize>) {
        let looks = Looks::of(text);
        match depth {
            Some(depth) if text.contains('\n') && looks.block => self.block(text, depth),
            _ if text.contains('\n') || !is_string(text) => self.double_quoted(text, depth),
            _ if looks.plain => self.folded(text, depth),
            _ if looks.single_quoted => {
                self.0.push('\'');
                self.folded(&text.replace('\'', "''"), depth);
                self.0.push('\'');
            }
            _ => self.double_quoted(text, depth),
        }
    }

    /// Characters of the line so far.
    fn column(&self) -> usize {
        let line = self.0.rfind('\n').map_or(0, |i| i + 1);
        self.0[line..].chars().count()
    }

    fn folded(&mut self, text: &str, depth: Option<usize>) {
        let mut column = self.column();
        let chars: Vec<char> = text.chars().collect();
        for (i, c) in chars.iter().enumerate() {
            let single_space = *c == ' ' && (i == 0 || chars[i - 1] != ' ') && chars.get(i + 1).is_some_and(|next| *next != ' ');
            match depth {
                Some(depth) if single_space && column > WIDTH => {
                    self.0.push('\n');
                    self.indent(depth);
                    column = 2 * depth;
                }
                _ => {
                    self.0.push(*c);
                    column += 1;
                }
            }
        }
    }

    fn double_quoted(&mut self, text: &str, depth: Option<usize>) {
        self.0.push('"');
        let mut column = self.column();
        let chars: Vec<char> = text.chars().collect();
        for (i, c) in chars.iter().enumerate() {
            let inner = i > 0 && i + 1 < chars.len();
            let after_space = i > 0 && chars[i - 1] == ' ';
            if let Some(depth) = depth
                && *c == ' '
                && inner
                && !after_space
                && column > WIDTH
            {
                self.0.push('\n');
                self.indent(depth);
                column = 2 * depth;
                if chars[i + 1] == ' ' {
                    self.0.push('\\');
                    column += 1;
                }
                continue;
            }
            let before = self.0.len();
            self.escaped(*c);
            column += self.0[before..].chars().count();
        }
        self.0.push('"');
    }

    fn escaped(&mut self, c: char) {
        let short = match c {
            '\0' => '0',
            '\u{7}' => 'a',
            '\u{8}' => 'b',
            '\t' => 't',
            '\n' => 'n',
            '\u{b}' => 'v',
            '\u{c}' => 'f',
            '\r' => 'r',
            '\u{1b}' => 'e',
            '"' => '"',
            '\\' => '\\',
            '\u{85}' => 'N',
            '\u{a0}' => '_',
            '\u{2028}' => 'L',
            '\u{2029}' => 'P',
            c if is_printable(c) => return self.0.push(c),
            c => {
                let code = u32::from(c);
                self.0.push_str(&match code {
                    ..=0xff => format!("\\x{code:02X}"),
                    0x100..=0xffff => format!("\\u{code:04X}"),
                    _ => format!("\\U{code:08X}"),
                });
                return;
            }
        };
        self.0.push('\\');
        self.0.push(short);
    }

    /// Lines as they are.
    fn block(&mut self, text: &str, depth: usize) {
        self.0.push('|');
        if text.starts_with([' ', '\n']) {
            self.0.push('2');
        }
        match text.strip_suffix('\n') {
            None => self.0.push('-'),
            Some("") => self.0.push('+'),
            Some(rest) if rest.ends_with('\n') => self.0.push('+'),
            Some(_) => {}
        }
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            self.0.push('\n');
            if !line.is_empty() {
                self.indent(depth);
                self.0.push_str(line);
            }
        }
    }
}

/// Whether a scalar without quotes is read as the text it is.
fn is_string(text: &str) -> bool {
    const WORDS: [&str; 15] =
        ["", "~", "null", "Null", "NULL", "true", "True", "TRUE", "false", "False", "FALSE", "<<", ".nan", ".NaN", ".NAN"];
    let bare = text.strip_prefix(['+', '-']).unwrap_or(text);
    if WORDS.contains(&text) || matches!(bare, ".inf" | ".Inf" | ".INF") || resolve(text).is_some() {
        return false;
    }
    let starts_as_number = bare.starts_with(|c: char| c.is_ascii_digit());
    if bare.starts_with('.') || starts_as_number {
        let plain = text.replace('_', "");
        let shape = plain.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
        if shape && plain.parse::<f64>().is_ok() {
            return false;
        }
    }
    !(is_base_60(text) || is_time(text))
}

/// `1:30`: what used to be a number.
fn is_base_60(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut parts = digits.split(':');
    let first = parts.next().unwrap_or("");
    let number = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
    let rest: Vec<&str> = parts.collect();
    let sixty = |p: &str| number(p) && (p.len() == 1 || (p.len() == 2 && p.as_bytes()[0] < b'6'));
    let Some((last, inner)) = rest.split_last() else { return false };
    let last = last.split_once('.').map_or(*last, |(whole, _)| whole);
    first.starts_with(|c: char| c.is_ascii_digit()) && number(&first.replace('_', "")) && inner.iter().all(|p| sixty(p)) && sixty(last)
}

/// `2001-1-2` and `2001-1-2T15:4:5.9Z`, with a space instead of the `T`, too.
fn is_time(text: &str) -> bool {
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let number = |p: &str, most: usize| !p.is_empty() && p.len() <= most && p.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = date.split('-').collect();
    let is_date = matches!(parts.as_slice(), [y, m, d] if y.len() == 4 && number(y, 4) && number(m, 2) && number(d, 2));
    let is_time = time.is_none_or(|time| {
        let clock = time.trim_end_matches('Z');
        let clock = clock.rfind(['+', '-']).map_or(clock, |zone| &clock[..zone]);
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
        let parts: Vec<&str> = clock.split(':').collect();
        parts.len() == 3 && parts.iter().all(|p| number(p, 2)) && number(fraction, 9)
    });
    is_date && is_time
}

/// How a text may be written.
struct Looks {
    plain: bool,
    single_quoted: bool,
    block: bool,
}

impl Looks {
    fn of(text: &str) -> Looks {
        let chars: Vec<char> = text.chars().collect();
        let blank = |i: usize| chars.get(i).is_none_or(|c| matches!(c, ' ' | '\t' | '\n' | '\r'));
        let mut indicator = text.starts_with("---") || text.starts_with("...");
        for (i, c) in chars.iter().enumerate() {
            indicator |= match c {
                '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`' if i == 0 => true,
                '?' | '-' if i == 0 => blank(i + 1),
                ':' => blank(i + 1),
                '#' => blank(i - 1),
                _ => false,
            };
        }
        let special = !chars.iter().all(|c| *c == '\n' || is_printable(*c));
        let around = text.starts_with([' ', '\n']) || text.ends_with([' ', '\n']);
        let (space_break, break_space) = (text.contains(" \n"), text.contains("\n "));
        Looks {
            plain: !indicator && !special && !around && !text.contains('\n'),
            single_quoted: !special && !space_break && !break_space,
            block: !special && !space_break && !text.ends_with(' '),
        }
    }
}

/// What YAML prints as it is.
fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}')
}

/// Digits count as the numbers they make, and come before letters.
fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let Some(i) = a.iter().zip(&b).position(|(x, y)| x != y) else { return a.len().cmp(&b.len()) };
    let (x, y) = (a[i], b[i]);
    match (x.is_alphabetic(), y.is_alphabetic()) {
        (true, true) => return x.cmp(&y),
        (true, false) => return std::cmp::Ordering::Greater,
        (false, true) => return std::cmp::Ordering::Less,
        (false, false) => {}
    }
    // Zeros within a number are not at its start.
    let within = (x == '0' || y == '0') && a[..i].iter().rev().take_while(|c| c.is_ascii_digit()).any(|c| *c != '0');
    let number = |chars: &[char]| {
        let digits = chars[i..].iter().take_while(|c| c.is_ascii_digit());
        let start = i64::from(within);
        digits.fold((start, i), |(n, end), c| (n.wrapping_mul(10).wrapping_add(i64::from(u32::from(*c) - u32::from('0'))), end + 1))
    };
    number(&a).cmp(&number(&b)).then(x.cmp(&y))
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
    fn quotes_and_folds_are_upstreams() {
        for (text, expected) in [
            (".", "."),
            ("5e8c33a1-0000-4000-8000-000000000000", "5e8c33a1-0000-4000-8000-000000000000"),
            ("2020-01-02T03:04:05Z", "\"2020-01-02T03:04:05Z\""),
            ("*/5 * * * *", "'*/5 * * * *'"),
            ("", "\"\""),
            ("1:30", "\"1:30\""),
            ("10.0.0.1", "10.0.0.1"),
            ("k:{\"a\":1}", "k:{\"a\":1}"),
            ("a: b", "'a: b'"),
            ("it's: b", "'it''s: b'"),
            ("1e3", "\"1e3\""),
            ("n", "\"n\""),
        ] {
            assert_eq!(String::from_utf8(write(&value!({"a": text}))).unwrap(), format!("a: {expected}\n"));
        }
        let long = "This FlowSchema references the PriorityLevelConfiguration object named \"global-default\" and it exists";
        let tree = value!({"conditions": [{"message": long}]});
        let folded = "conditions:\n- message: This FlowSchema references the PriorityLevelConfiguration object named\n    \"global-default\" and it exists\n";
        assert_eq!(String::from_utf8(write(&tree)).unwrap(), folded);
        let keys = value!({"a10": 1, "a2": 1, "f:x": 1, ".": 1});
        assert_eq!(String::from_utf8(write(&keys)).unwrap(), ".: 1\na2: 1\na10: 1\nf:x: 1\n");
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
