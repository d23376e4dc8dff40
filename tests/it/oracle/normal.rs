//! Answers with everything that differs from run to run replaced by placeholders, and placeholders of requests by what they
//! stand for here. One [`Binder`] per scenario; the rules are numbered in `tests/oracle/README.md`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// What every unique name of the corpus contains; a run sends its own token of the same length.
pub const TOKEN: &str = "zq0000";
const AGE_COLUMNS: &[&str] = &["Age", "Last Seen", "First Seen", "Last Schedule", "Duration", "Created At"];
/// Suffixes of generated names are made of these.
const GENERATED: &str = "bcdfghjklmnpqrstvwxz2456789";

/// What a placeholder stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Uid,
    Rv,
    Name,
    Access,
    Svcip4,
    Svcip6,
    Nodeport,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Uid => "uid",
            Kind::Rv => "rv",
            Kind::Name => "name",
            Kind::Access => "access",
            Kind::Svcip4 => "svcip4",
            Kind::Svcip6 => "svcip6",
            Kind::Nodeport => "nodeport",
        }
    }
}

/// Two-way table between values of this run and placeholders.
#[derive(Clone, Default)]
pub struct Binder {
    token: String,
    placeholders: BTreeMap<(Kind, String), String>,
    values: BTreeMap<String, (Kind, String)>,
    counts: BTreeMap<Kind, usize>,
    /// Longest first.
    names: Vec<String>,
    /// What steps captured.
    pub captured: BTreeMap<String, String>,
    /// Columns of the last table that had some: later events of a watch have none.
    columns: Vec<String>,
    /// The document being normalised mentions the run's token.
    own: bool,
}

impl Binder {
    pub fn new(run: &str) -> Binder {
        Binder { token: format!("zq{run}"), ..Binder::default() }
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn bind(&mut self, kind: Kind, value: &str) -> String {
        let key = (kind, value.to_string());
        if let Some(found) = self.placeholders.get(&key) {
            return found.clone();
        }
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        let placeholder = format!("<{}:{count}>", kind.word());
        self.values.insert(placeholder.clone(), key.clone());
        self.placeholders.insert(key, placeholder.clone());
        if kind == Kind::Name {
            self.names.push(value.to_string());
            self.names.sort_by_key(|n| std::cmp::Reverse(n.chars().count()));
        }
        placeholder
    }

    fn bound(&self, kind: Kind, value: &str) -> Option<&String> {
        self.placeholders.get(&(kind, value.to_string()))
    }

    /// Rules 1–8 on one text.
    pub fn text(&mut self, text: &str) -> String {
        if text.chars().take(6).count() < 6 {
            return text.to_string();
        }
        let mut s = text.to_string();
        for name in self.names.clone() {
            if s.contains(&name) {
                s = s.replace(&name, &self.placeholders[&(Kind::Name, name.clone())]);
            }
        }
        if s.contains('-') || s.contains("Bad_") {
            s = replace(s, uid, |found| self.bind(Kind::Uid, found));
            s = replace(s, time, |found| if found.as_bytes()[19] == b'.' { "<microtime>".into() } else { "<time>".into() });
            s = replace(s, generated, |found| self.bind(Kind::Name, found));
            s = replace(s, access, |found| self.bind(Kind::Access, found));
        }
        if s.contains("10.96.") {
            s = replace(s, ip4, |found| match found {
                "10.96.0.1" | "10.96.0.10" => found.to_string(),
                _ => self.bind(Kind::Svcip4, found),
            });
        }
        if s.contains("fd00:") {
            s = replace(s, ip6, |found| self.bind(Kind::Svcip6, found));
        }
        if s.contains('/') {
            s = replace(s, node_port, |found| self.bind(Kind::Nodeport, found));
        }
        if s.contains("eyJ") {
            s = replace(s, jwt, |_| "<jwt>".into());
        }
        s = hide_hashes(s);
        s = replace(s, version_text, |found| self.version_text(found));
        s.replace(&self.token, TOKEN)
    }

    /// `introduction digits[ (digits)]`.
    fn version_text(&self, found: &str) -> String {
        let (found, extra) = match found.strip_suffix(')').and_then(|f| f.rsplit_once(" (")) {
            Some((found, _)) => (found, " (<n>)"),
            None => (found, ""),
        };
        let head = found.trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = &found[head.len()..];
        let shown = match () {
            () if digits.len() < 2 => digits,
            () if head == "current: " => "<n>",
            () => self.bound(Kind::Rv, digits).map_or("<n>", String::as_str),
        };
        format!("{head}{shown}{extra}")
    }

    /// Binds everything in a document, in the order placeholders are numbered; versions are left for later.
    fn collect(&mut self, value: &Value, versions: &mut BTreeSet<u128>) {
        match value {
            Value::Object(map) => {
                if let Some(name) = map.get("metadata").and_then(generated_name) {
                    self.bind(Kind::Name, name);
                }
                for (key, member) in map {
                    self.text(key);
                    match (key.as_str(), member) {
                        ("resourceVersion", Value::String(s)) if is_version(s) => {
                            versions.extend(s.parse::<u128>());
                        }
                        ("nodePort" | "healthCheckNodePort", Value::Number(n)) if is_node_port(n) => {
                            self.bind(Kind::Nodeport, &n.to_string());
                        }
                        _ => self.collect(member, versions),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.collect(item, versions)),
            Value::String(s) => drop(self.text(s)),
            _ => {}
        }
    }

    fn norm(&mut self, value: Value, key: &str) -> Value {
        match value {
            Value::Object(mut map) => {
                if map.get("kind").and_then(Value::as_str) == Some("Table") && map.contains_key("columnDefinitions") {
                    self.table(&mut map);
                }
                let members = map.into_iter().map(|(k, v)| (self.text(&k), self.norm(v, &k)));
                let mut out: Map<String, Value> = members.collect();
                if let Some(Value::Array(managed)) = out.get_mut("managedFields") {
                    managed.sort_by_cached_key(Value::to_string);
                }
                Value::Object(out)
            }
            Value::Array(items) => Value::Array(items.into_iter().map(|item| self.norm(item, "")).collect()),
            Value::String(s) => Value::String(match key {
                "resourceVersion" if is_version(&s) => self.bound(Kind::Rv, &s).cloned().unwrap_or("<rv:?>".into()),
                "continue" if !s.is_empty() => "<continue>".into(),
                "serverAddress" => "<address>".into(),
                "storageVersionHash" if self.own => "<hash>".into(),
                _ => self.text(&s),
            }),
            Value::Number(n) if matches!(key, "nodePort" | "healthCheckNodePort") => {
                self.bound(Kind::Nodeport, &n.to_string()).map_or(Value::Number(n), |p| Value::String(p.clone()))
            }
            other => other,
        }
    }

    /// Rule 10.
    fn table(&mut self, map: &mut Map<String, Value>) {
        if let Some(Value::Array(columns)) = map.get_mut("columnDefinitions")
            && !columns.is_empty()
        {
            self.columns = columns.iter().map(|c| c["name"].as_str().unwrap_or("").to_string()).collect();
            for column in columns.iter_mut().filter_map(Value::as_object_mut) {
                column.remove("description");
            }
        }
        let rows = map.entry("rows").or_insert(Value::Null);
        if rows.is_null() {
            *rows = Value::Array(Vec::new());
        }
        for row in rows.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            let cells = row.entry("cells").or_insert(Value::Null);
            if cells.is_null() {
                *cells = Value::Array(Vec::new());
            }
            for (i, cell) in cells.as_array_mut().into_iter().flatten().enumerate() {
                let is_age_column = self.columns.get(i).is_none_or(|c| AGE_COLUMNS.contains(&c.as_str()));
                if is_age_column && cell.as_str().is_some_and(is_age) {
                    *cell = "<age>".into();
                }
            }
        }
    }

    /// One JSON document; `event` is the type of the watch event it came in.
    pub fn body(&mut self, mut value: Value, event: Option<&str>) -> Value {
        let is_bookmark = event == Some("BOOKMARK");
        if is_bookmark {
            hide_versions(&mut value);
        }
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or("").to_string();
        let is_list = !is_bookmark && (kind.ends_with("List") || kind == "Table");
        let mut list_version = None;
        if is_list && let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            list_version = metadata.remove("resourceVersion");
            metadata.remove("selfLink");
        }
        let mut versions = BTreeSet::new();
        self.own = value.to_string().contains(&self.token);
        self.collect(&value, &mut versions);
        for version in &versions {
            self.bind(Kind::Rv, &version.to_string());
        }
        let mut out = self.norm(value, "");
        if let Some(found) = list_version {
            let number = found.as_str().filter(|s| is_version(s)).and_then(|s| s.parse::<u128>().ok());
            let is_free = event.is_some() || kind == "Table";
            let is_good = number.is_some_and(|n| n > 0 && (is_free || versions.last().is_none_or(|last| n >= *last)));
            let shown = if is_good { "<listrv>".into() } else { format!("<listrv:bad:{}>", found.as_str().unwrap_or("?")) };
            out["metadata"]["resourceVersion"] = shown.into();
        }
        out
    }

    /// A text that is no JSON: versions in YAML are bound, too.
    pub fn plain(&mut self, text: &str) -> String {
        for (at, head) in text.match_indices("resourceVersion: \"") {
            let digits: String = text[at + head.len()..].chars().take_while(char::is_ascii_digit).collect();
            if !digits.is_empty() && text[at + head.len() + digits.len()..].starts_with('"') {
                self.bind(Kind::Rv, &digits);
            }
        }
        self.text(text)
    }

    /// A text of a request with placeholders replaced.
    pub fn fill(&self, text: &str) -> String {
        let text = text.replace(TOKEN, &self.token);
        if !text.contains('<') {
            return text;
        }
        let mut out = String::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find('<') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            let end = rest.find('>').map_or(rest.len(), |e| e + 1);
            let (found, after) = rest.split_at(end);
            let captured = found.strip_prefix("<var:").and_then(|f| f.strip_suffix('>')).and_then(|name| self.captured.get(name));
            match self.values.get(found).map(|(_, value)| value).or(captured) {
                Some(value) => {
                    out.push_str(value);
                    rest = after;
                }
                None => {
                    out.push('<');
                    rest = &rest[1..];
                }
            }
        }
        out + rest
    }

    /// The number a text stands for, if it is the placeholder of one.
    pub fn number(&self, text: &str) -> Option<&str> {
        self.values.get(text).filter(|(kind, _)| *kind == Kind::Nodeport).map(|(_, value)| value.as_str())
    }
}

fn is_version(s: &str) -> bool {
    !s.is_empty() && s != "0" && s.bytes().all(|b| b.is_ascii_digit())
}

fn is_node_port(n: &serde_json::Number) -> bool {
    n.as_i64().is_some_and(|n| (30_000..=32_767).contains(&n))
}

fn generated_name(metadata: &Value) -> Option<&str> {
    let (prefix, name) = (metadata.get("generateName")?.as_str()?, metadata.get("name")?.as_str()?);
    name.strip_prefix(prefix).filter(|rest| rest.chars().count() == 5).map(|_| name)
}

/// In a bookmark every version is one of a list.
fn hide_versions(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, member) in map {
                match member {
                    Value::String(s) if key == "resourceVersion" && is_version(s) && !s.starts_with('0') => *s = "<listrv>".into(),
                    other => hide_versions(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_versions),
        _ => {}
    }
}

fn is_age(cell: &str) -> bool {
    let b = cell.as_bytes();
    let number = run(b, usize::from(b.first() == Some(&b'-')), u8::is_ascii_digit);
    let is_span = number > usize::from(b.first() == Some(&b'-')) && b.get(number).is_some_and(|c| b"smhdy".contains(c));
    is_span || cell.starts_with("<invalid>") || shaped(b, 0, "dddd-dd-ddT").is_some()
}

/// `hash=` and at least 16 upper-case hex digits.
pub fn hide_hashes(s: String) -> String {
    if !s.contains("hash=") {
        return s;
    }
    let hash = |b: &[u8], at: usize| {
        let from = after(b, at, "hash=")?;
        let end = run(b, from, |c| c.is_ascii_digit() || (b'A'..=b'F').contains(c));
        (end >= from + 16).then_some(end)
    };
    replace(s, hash, |_| "hash=<hash>".into())
}

// Scanners: the end of what starts at `at`, if it is there.

/// Every place a scanner finds, replaced.
fn replace(s: String, scan: impl Fn(&[u8], usize) -> Option<usize>, mut with: impl FnMut(&str) -> String) -> String {
    let b = s.as_bytes();
    let (mut at, mut done, mut out) = (0, 0, String::new());
    while at < b.len() {
        match scan(b, at) {
            Some(end) => {
                out.push_str(&s[done..at]);
                out.push_str(&with(&s[at..end]));
                (at, done) = (end, end);
            }
            None => at += 1,
        }
    }
    if done == 0 {
        return s;
    }
    out + &s[done..]
}

fn after(b: &[u8], at: usize, text: &str) -> Option<usize> {
    b[at.min(b.len())..].starts_with(text.as_bytes()).then_some(at + text.len())
}

/// The end of the run of bytes like these.
fn run(b: &[u8], at: usize, is: impl Fn(&u8) -> bool) -> usize {
    at + b[at.min(b.len())..].iter().take_while(|c| is(c)).count()
}

/// `d` a digit, `h` a lower-case hex digit, `?` either a T or a space, anything else itself.
fn shaped(b: &[u8], at: usize, shape: &str) -> Option<usize> {
    let end = at + shape.len();
    let is = |(c, s): (&u8, u8)| match s {
        b'd' => c.is_ascii_digit(),
        b'h' => c.is_ascii_digit() || (b'a'..=b'f').contains(c),
        b'?' => matches!(c, b'T' | b' '),
        other => *c == other,
    };
    b.get(at..end)?.iter().zip(shape.bytes()).all(is).then_some(end)
}

fn before(b: &[u8], at: usize) -> Option<u8> {
    at.checked_sub(1).map(|i| b[i])
}

/// A byte a Rust or Go name is made of; beyond ASCII all are.
fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_' || c >= 128
}

fn uid(b: &[u8], at: usize) -> Option<usize> {
    let end = shaped(b, at, "hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh")?;
    after(b, at, "00000000-").is_none().then_some(end)
}

fn time(b: &[u8], at: usize) -> Option<usize> {
    let mut end = shaped(b, at, "20dd-dd-dd?dd:dd:dd")?;
    if !(b[at + 2] >= b'3' || (b[at + 2] == b'2' && b[at + 3] >= b'4')) {
        return None;
    }
    let fraction = run(b, end + 1, u8::is_ascii_digit);
    if b.get(end) == Some(&b'.') && fraction > end + 1 {
        end = fraction;
    }
    let end = ["Z", " +0000 UTC", "+0000 UTC"].iter().find_map(|zone| after(b, end, zone))?;
    let monotonic = after(b, end, " m=+").or(after(b, end, " m=-"));
    let long = monotonic.map(|m| run(b, m, |c| c.is_ascii_digit() || *c == b'.')).filter(|e| Some(*e) > monotonic);
    Some(long.unwrap_or(end))
}

fn generated(b: &[u8], at: usize) -> Option<usize> {
    let is_inside = |c: u8| is_word(c) || c == b'-';
    let from = after(b, at, "gn-").or(after(b, at, "Bad_"))?;
    let suffix = b.get(from..from + 5)?;
    let is_free = !before(b, at).is_some_and(is_inside) && !b.get(from + 5).copied().is_some_and(is_inside);
    (is_free && suffix.iter().all(|c| GENERATED.as_bytes().contains(c))).then_some(from + 5)
}

fn access(b: &[u8], at: usize) -> Option<usize> {
    let from = after(b, at, "kube-api-access-")?;
    b.get(from..from + 5)?.iter().all(|c| c.is_ascii_digit() || c.is_ascii_lowercase()).then_some(from + 5)
}

fn ip4(b: &[u8], at: usize) -> Option<usize> {
    let from = after(b, at, "10.96.")?;
    let third = run(b, from, u8::is_ascii_digit);
    let last = after(b, third, ".").filter(|_| third > from)?;
    let end = run(b, last, u8::is_ascii_digit);
    let is_free = !before(b, at).is_some_and(|c| c.is_ascii_digit() || c == b'.') && !matches!(b.get(end), Some(b'.' | b'/'));
    (is_free && end > last).then_some(end)
}

fn ip6(b: &[u8], at: usize) -> Option<usize> {
    let is_inside = |c: &u8| c.is_ascii_digit() || (b'a'..=b'f').contains(c) || *c == b':';
    let from = after(b, at, "fd00:10:96::")?;
    let end = run(b, from, is_inside);
    let is_free = !before(b, at).is_some_and(|c| is_inside(&c)) && b.get(end) != Some(&b'/');
    (is_free && end > from).then_some(end)
}

fn node_port(b: &[u8], at: usize) -> Option<usize> {
    let end = shaped(b, at, "3dddd").filter(|_| b[at + 1] <= b'2' && before(b, at) == Some(b':'))?;
    ["/TCP", "/UDP", "/SCTP"].iter().any(|p| after(b, end, p).is_some()).then_some(end)
}

fn jwt(b: &[u8], at: usize) -> Option<usize> {
    let part = |from: usize| Some(run(b, from, |c| is_word(*c) || *c == b'-')).filter(|end| *end > from);
    let first = part(after(b, at, "eyJ")?)?;
    let second = part(after(b, first, ".")?)?;
    part(after(b, second, ".")?)
}

/// A version in a message.
fn version_text(b: &[u8], at: usize) -> Option<usize> {
    const HEADS: &[&str] = &[
        "ResourceVersion in precondition: ",
        "ResourceVersion in object meta: ",
        "current: ",
        "resource version: ",
        "resourceVersion",
        "storage RV: ",
        "in record (",
    ];
    if !matches!(b[at], b'R' | b'c' | b'r' | b's' | b'i') {
        return None;
    }
    let digits = |from: usize| Some(run(b, from, u8::is_ascii_digit)).filter(|end| *end > from);
    let quote = |from: usize| {
        let end = run(b, from, |c| *c == b'\\');
        after(b, end, "\"").unwrap_or(end)
    };
    let end = HEADS.iter().find_map(|head| {
        let mut from = after(b, at, head)?;
        if *head == "resourceVersion" {
            from = after(b, quote(from), ":")?;
            from = quote(after(b, from, " ").unwrap_or(from));
        }
        digits(from)
    })?;
    let extra = after(b, end, " (").and_then(digits).and_then(|e| after(b, e, ")"));
    Some(extra.unwrap_or(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_lose_what_is_of_this_run() {
        let mut binder = Binder::new("ab01");
        let cases = [
            ("uid 0b5e4d5c-aaaa-bbbb-cccc-0123456789ab of t1-zqab01", "uid <uid:1> of t1-zq0000"),
            ("00000000-aaaa-bbbb-cccc-0123456789ab", "00000000-aaaa-bbbb-cccc-0123456789ab"),
            ("at 2026-01-02T03:04:05Z, 2026-01-02T03:04:05.678901Z, 2020-01-02T03:04:05Z", "at <time>, <microtime>, 2020-01-02T03:04:05Z"),
            ("2026-01-02 03:04:05 +0000 UTC m=+1.5", "<time>"),
            ("10.96.3.4 10.96.0.1 10.96.0.0/16 110.96.3.4", "<svcip4:1> 10.96.0.1 10.96.0.0/16 110.96.3.4"),
            ("fd00:10:96::a1 fd00:10:96::/112", "<svcip6:1> fd00:10:96::/112"),
            ("80:31234/TCP 81:31234/UDP :33000/TCP", "80:<nodeport:1>/TCP 81:<nodeport:1>/UDP :33000/TCP"),
            ("token eyJa.eyJb.c-_ here", "token <jwt> here"),
            ("gn-bcdfg is gn-aaaaa, kube-api-access-a1b2c", "<name:1> is gn-aaaaa, <access:1>"),
            (
                "resourceVersion\\\": \\\"77\\\", current: 12, storage RV: 5",
                "resourceVersion\\\": \\\"<n>\\\", current: <n>, storage RV: 5",
            ),
            ("too old resource version: 12 (34)", "too old resource version: <n> (<n>)"),
        ];
        for (text, want) in cases {
            assert_eq!(binder.text(text), want);
        }
        assert_eq!(binder.fill("x-zq0000/<uid:1>/<uid:9>"), "x-zqab01/0b5e4d5c-aaaa-bbbb-cccc-0123456789ab/<uid:9>");
        assert_eq!(binder.number("<nodeport:1>"), Some("31234"));
    }
}
