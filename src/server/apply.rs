//! Pure: who owns which fields: `metadata.managedFields` as every create, update and patch leaves it.
//!
//! A write is compared with what was there ([`diff`], one pass over both trees along the schema table); what it set becomes
//! its manager's and nobody else's, what it removed is nobody's ([`track`]). Field sets are kept as FieldsV1 has them: `f:`
//! a field or map key, `k:` an element of a list with keys, `v:` an element of a set, `.` the thing itself. Objects that
//! exist without managed fields stay untracked, as upstream has it. Applying (server-side apply) is not here yet.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::api::json;
use crate::api::schema::{self, Field, Kind, ListType, TypeRef};
use crate::api::value::{Map, Value};

/// Entries of operation Update an object carries before the oldest are merged.
const UPDATERS_MAX: usize = 10;
/// The manager the oldest are merged into.
const MERGED_MANAGER: &str = "ancient-changes";
/// Bytes of a manager's name.
const MANAGER_MAX: usize = 128;
/// Metadata nobody owns.
const UNOWNED_METADATA: &[&str] =
    &["clusterName", "creationTimestamp", "generation", "managedFields", "name", "namespace", "resourceVersion", "selfLink", "uid"];

/// A set of paths below one point.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set {
    here: bool,
    below: BTreeMap<String, Set>,
}

/// One comparison of two trees.
#[derive(Debug, Default)]
pub struct Diff {
    /// Added or changed.
    pub set: Set,
    pub removed: Set,
}

/// Who writes, and through what.
pub struct Write<'a> {
    pub manager: &'a str,
    pub subresource: &'a str,
    pub api_version: &'a str,
    /// RFC 3339, in seconds.
    pub now: &'a str,
}

/// One entry of `metadata.managedFields`.
#[derive(Clone, Debug)]
struct Entry {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: String,
    fields: Set,
}

/// The manager of requests that name none: the first part of the User-Agent.
pub fn manager_of(user_agent: &str) -> String {
    let mut manager = String::new();
    for c in user_agent.split('/').next().unwrap_or("").chars().filter(|c| !c.is_control()) {
        if manager.len() + c.len_utf8() > MANAGER_MAX {
            break;
        }
        manager.push(c);
    }
    manager
}

/// Sets `metadata.managedFields` of `new`, which holds what the client sent, if anything. `diff` compares the two objects in
/// an apiVersion; `None`: they cannot be compared, and ownership stays as it was.
pub fn track(old: Option<&Value>, new: &mut Value, write: &Write, diff: &dyn Fn(&str, &Value) -> Option<Diff>) {
    let sent = new.remove(&["metadata", "managedFields"]);
    let kept = old.and_then(|o| o.at(&["metadata", "managedFields"]));
    let chosen = start(sent.as_ref(), kept, !write.subresource.is_empty());
    let is_empty = chosen.as_ref().is_none_or(|v| v.as_list().is_none_or(<[Value]>::is_empty));
    if is_empty && old.is_some() {
        return;
    }
    let own = diff(write.api_version, new);
    let changes = own.as_ref().is_some_and(|d| !d.set.is_empty() || !d.removed.is_empty());
    match (changes, &chosen) {
        (false, Some(Cow::Borrowed(kept))) => {
            new.set(&["metadata", "managedFields"], (*kept).clone());
            return;
        }
        (false, None) => return,
        _ => {}
    }
    let mut entries = chosen.as_ref().and_then(|v| decode(v)).unwrap_or_default();
    if let Some(own) = own {
        let others: BTreeMap<String, Option<Diff>> = entries
            .iter()
            .filter(|e| e.api_version != write.api_version)
            .map(|e| (e.api_version.clone(), diff(&e.api_version, new)))
            .collect();
        for entry in &mut entries {
            let seen = if entry.api_version == write.api_version { Some(&own) } else { others[&entry.api_version].as_ref() };
            if let Some(seen) = seen {
                entry.fields.subtract(&seen.set);
                entry.fields.subtract(&seen.removed);
            }
        }
        if !own.set.is_empty() {
            take(&mut entries, write, own.set);
        }
        entries.retain(|e| !e.fields.is_empty());
        cap(&mut entries);
    }
    if !entries.is_empty() {
        new.set(&["metadata", "managedFields"], encode(entries));
    }
}

/// `new` is `old` but for the times in its managed fields: the write took nothing after all.
pub fn differ_in_times_only(new: &Value, old: &Value) -> bool {
    let without = |o: &Value| {
        let mut entries = o.list_at(&["metadata", "managedFields"]).to_vec();
        entries.iter_mut().for_each(|e| drop(e.remove(&["time"])));
        entries
    };
    let (Some(a), Some(b)) = (new.as_map(), old.as_map()) else { return false };
    let same_metadata = || {
        let empty = Map::new();
        let (a, b) = (new.map_at(&["metadata"]).unwrap_or(&empty), old.map_at(&["metadata"]).unwrap_or(&empty));
        let owned = |m: &'_ Map| m.iter().filter(|(k, _)| *k != "managedFields").count();
        owned(a) == owned(b) && a.iter().filter(|(k, _)| *k != "managedFields").all(|(k, v)| b.get(k) == Some(v))
    };
    a.len() == b.len() && a.iter().all(|(k, v)| k == "metadata" || b.get(k) == Some(v)) && same_metadata() && without(new) == without(old)
}

/// The managed fields to begin with: those sent, if they are well-formed; none after a reset; else those stored.
fn start<'a>(sent: Option<&Value>, kept: Option<&'a Value>, is_subresource: bool) -> Option<Cow<'a, Value>> {
    let kept = kept.map(Cow::Borrowed);
    let Some(entries) = sent.and_then(Value::as_list).filter(|_| !is_subresource) else { return kept };
    let is_reset = match entries {
        [] => true,
        [only] => only.as_map().is_some_and(Map::is_empty),
        _ => false,
    };
    if is_reset {
        return None;
    }
    let sent = Value::List(entries.to_vec());
    match kept {
        Some(kept) if *kept == sent => Some(kept),
        kept => {
            if decode(&sent).is_some() {
                Some(Cow::Owned(sent))
            } else {
                kept
            }
        }
    }
}

/// Adds what a write set to its manager's entry.
fn take(entries: &mut Vec<Entry>, write: &Write, fields: Set) {
    let is_own = |e: &&mut Entry| {
        e.manager == write.manager && e.operation == "Update" && e.api_version == write.api_version && e.subresource == write.subresource
    };
    if let Some(entry) = entries.iter_mut().find(is_own) {
        entry.fields.add(fields);
        entry.time = write.now.to_string();
        return;
    }
    entries.push(Entry {
        manager: write.manager.to_string(),
        operation: "Update".to_string(),
        api_version: write.api_version.to_string(),
        subresource: write.subresource.to_string(),
        time: write.now.to_string(),
        fields,
    });
}

/// Merges the oldest updaters, per apiVersion, until there are few enough.
fn cap(entries: &mut Vec<Entry>) {
    let mut left = entries.iter().filter(|e| e.operation == "Update").count();
    if left <= UPDATERS_MAX {
        return;
    }
    entries
        .sort_by(|a, b| (&a.time, &a.manager, &a.api_version, &a.subresource).cmp(&(&b.time, &b.manager, &b.api_version, &b.subresource)));
    let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
    // Per apiVersion the oldest entry, which becomes the merged one with the second.
    let mut oldest: BTreeMap<String, usize> = BTreeMap::new();
    for entry in entries.drain(..) {
        if entry.operation != "Update" || left <= UPDATERS_MAX {
            kept.push(entry);
            continue;
        }
        match oldest.get(&entry.api_version) {
            Some(first) => {
                let first = &mut kept[*first];
                first.manager = MERGED_MANAGER.to_string();
                first.subresource.clear();
                first.fields.add(entry.fields);
                first.time = entry.time;
                left -= 1;
            }
            None => {
                oldest.insert(entry.api_version.clone(), kept.len());
                kept.push(entry);
            }
        }
    }
    *entries = kept;
}

/// `None`: not managed fields anybody could have been given.
fn decode(list: &Value) -> Option<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    for item in list.as_list()? {
        let text = |field: &str| item.str_at(&[field]).to_string();
        let well_formed = matches!(item.str_at(&["operation"]), "Apply" | "Update") && item.str_at(&["fieldsType"]) == "FieldsV1";
        if !well_formed || item.str_at(&["apiVersion"]).is_empty() {
            return None;
        }
        let entry = Entry {
            manager: text("manager"),
            operation: text("operation"),
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            fields: item.get("fieldsV1").map_or(Some(Set::default()), |f| Set::decode(f, true))?,
        };
        entries.push(entry);
    }
    Some(entries)
}

fn encode(mut entries: Vec<Entry>) -> Value {
    entries.sort_by(|a, b| {
        let order = |e: &Entry| (e.operation.clone(), e.time.clone(), e.manager.clone(), e.api_version.clone(), e.subresource.clone());
        order(a).cmp(&order(b))
    });
    let encoded = entries.into_iter().map(|e| {
        let mut item = Map::new();
        item.insert("apiVersion", e.api_version);
        item.insert("fieldsType", "FieldsV1");
        item.insert("fieldsV1", e.fields.encode());
        for (field, text) in [("manager", e.manager), ("operation", e.operation), ("subresource", e.subresource), ("time", e.time)] {
            if !text.is_empty() {
                item.insert(field, text);
            }
        }
        Value::Map(item)
    });
    Value::List(encoded.collect())
}

impl Set {
    /// The one path that is this point.
    fn point() -> Set {
        Set { here: true, below: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        !self.here && self.below.is_empty()
    }

    fn put(&mut self, step: impl Into<String>, set: Set) {
        if !set.is_empty() {
            self.below.insert(step.into(), set);
        }
    }

    fn add(&mut self, other: Set) {
        self.here |= other.here;
        for (step, set) in other.below {
            self.below.entry(step).or_default().add(set);
        }
    }

    fn subtract(&mut self, other: &Set) {
        self.here &= !other.here;
        for (step, set) in &other.below {
            if let Some(own) = self.below.get_mut(step) {
                own.subtract(set);
                if own.is_empty() {
                    self.below.remove(step);
                }
            }
        }
    }

    /// Drops a path with all below it.
    fn cut(&mut self, path: &[&str]) {
        let [first, rest @ ..] = path else { return };
        let step = format!("f:{first}");
        if rest.is_empty() {
            self.below.remove(&step);
        } else if let Some(set) = self.below.get_mut(&step) {
            set.cut(rest);
            if set.is_empty() {
                self.below.remove(&step);
            }
        }
    }

    fn decode(fields: &Value, is_root: bool) -> Option<Set> {
        let map = fields.as_map()?;
        let mut set = Set { here: !is_root && map.is_empty(), below: BTreeMap::new() };
        for (step, value) in map.iter() {
            match step.split_at_checked(2) {
                Some(("f:" | "k:" | "v:" | "i:", _)) => drop(set.below.insert(step.to_string(), Set::decode(value, false)?)),
                _ if step == "." => set.here = true,
                _ => return None,
            }
        }
        Some(set)
    }

    fn encode(self) -> Value {
        let has_more = !self.below.is_empty();
        let own = (self.here && has_more).then(|| (".".to_string(), Value::map()));
        let below = self.below.into_iter().map(|(step, set)| (step, set.encode()));
        Value::Map(Map::from_sorted(own.into_iter().chain(below).collect()))
    }
}

/// What `new` set and removed of `old` (`None`: a create), without what nobody owns and what lies under `ignored` paths. `None`:
/// a list has an element without its keys.
pub fn diff(ty: TypeRef, old: Option<&Value>, new: &Value, ignored: &[&[&str]]) -> Option<Diff> {
    let nothing = Value::Map(if old.is_none() { schema::zero_struct(ty) } else { Map::new() });
    let mut found = of_struct(ty, Some(old.unwrap_or(&nothing)), Some(new))?;
    for set in [&mut found.set, &mut found.removed] {
        set.here = false;
        set.cut(&["apiVersion"]);
        set.cut(&["kind"]);
        UNOWNED_METADATA.iter().for_each(|field| set.cut(&["metadata", field]));
        if let Some(metadata) = set.below.get_mut("f:metadata") {
            metadata.here = false;
            if metadata.is_empty() {
                set.below.remove("f:metadata");
            }
        }
        ignored.iter().for_each(|path| set.cut(path));
    }
    Some(found)
}

fn leaf(old: Option<&Value>, new: Option<&Value>) -> Diff {
    match (old, new) {
        (None, Some(_)) => Diff { set: Set::point(), removed: Set::default() },
        (Some(_), None) => Diff { set: Set::default(), removed: Set::point() },
        (Some(old), Some(new)) if old != new => Diff { set: Set::point(), removed: Set::default() },
        _ => Diff::default(),
    }
}

impl Diff {
    fn put(&mut self, step: &str, of: Diff) {
        self.set.put(step, of.set);
        self.removed.put(step, of.removed);
    }

    /// The thing itself came or went.
    fn with_self(mut self, old: Option<&Value>, new: Option<&Value>) -> Diff {
        self.set.here |= old.is_none();
        self.removed.here |= new.is_none();
        self
    }
}

fn is_blank(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Map(m)) => m.is_empty(),
        Some(Value::List(l)) => l.is_empty(),
        Some(Value::Null) | None => true,
        Some(_) => false,
    }
}

fn of_field(field: &Field, old: Option<&Value>, new: Option<&Value>) -> Option<Diff> {
    if field.map_atomic {
        return Some(leaf(old, new));
    }
    match (field.repeated, field.map, field.list_type) {
        (true, _, ListType::Map) => of_items(old, new, &|item| key_of(field, item), &|old, new| of_kind(field.kind, old, new)),
        (true, _, ListType::Set) => of_items(old, new, &|item| Some(step_of_value(item)), &|old, new| Some(leaf(old, new))),
        (true, _, ListType::Unset | ListType::Atomic) => Some(leaf(old, new)),
        (false, true, _) => of_map(old, new, &|_, old, new| of_kind(field.kind, old, new)),
        (false, false, _) => of_kind(field.kind, old, new),
    }
}

fn of_kind(kind: Kind, old: Option<&Value>, new: Option<&Value>) -> Option<Diff> {
    match kind {
        Kind::Message(ty) => of_struct(ty, old, new),
        _ => Some(leaf(old, new)),
    }
}

fn of_struct(ty: TypeRef, old: Option<&Value>, new: Option<&Value>) -> Option<Diff> {
    let ty = ty.get();
    if ty.map_atomic {
        return Some(leaf(old, new));
    }
    of_map(old, new, &|name, old, new| ty.field(name).map_or(Some(Diff::default()), |field| of_field(field, old, new)))
}

type Compare<'a> = &'a dyn Fn(&str, Option<&Value>, Option<&Value>) -> Option<Diff>;

/// Both are sorted: one merge.
fn of_map(old: Option<&Value>, new: Option<&Value>, compare: Compare) -> Option<Diff> {
    if is_blank(old) && is_blank(new) {
        return Some(leaf(old, new));
    }
    let empty = Map::new();
    let (olds, news) = (old.and_then(Value::as_map).unwrap_or(&empty), new.and_then(Value::as_map).unwrap_or(&empty));
    let mut found = Diff::default();
    let (mut olds, mut news) = (olds.iter().peekable(), news.iter().peekable());
    loop {
        let order = match (olds.peek(), news.peek()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => break,
        };
        let was = if order.is_le() { olds.next() } else { None };
        let is = if order.is_ge() { news.next() } else { None };
        let Some((name, _)) = was.or(is) else { break };
        let of = compare(name, was.map(|w| w.1), is.map(|i| i.1))?;
        if !of.set.is_empty() || !of.removed.is_empty() {
            found.put(&format!("f:{name}"), of);
        }
    }
    Some(found.with_self(old, new))
}

/// Lists whose elements have names. Elements of the same name are compared together, as one value.
fn of_items(
    old: Option<&Value>,
    new: Option<&Value>,
    step: &dyn Fn(&Value) -> Option<String>,
    compare: &dyn Fn(Option<&Value>, Option<&Value>) -> Option<Diff>,
) -> Option<Diff> {
    if is_blank(old) && is_blank(new) {
        return Some(leaf(old, new));
    }
    let mut items: BTreeMap<String, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for item in old.and_then(Value::as_list).unwrap_or(&[]) {
        items.entry(step(item)?).or_default().0.push(item);
    }
    for item in new.and_then(Value::as_list).unwrap_or(&[]) {
        items.entry(step(item)?).or_default().1.push(item);
    }
    let mut found = Diff::default();
    for (step, (olds, news)) in items {
        let of = match (olds.as_slice(), news.as_slice()) {
            ([] | [_], [] | [_]) => compare(olds.first().copied(), news.first().copied())?,
            ([], _) => Diff { set: Set::point(), removed: Set::default() },
            (_, []) => Diff { set: Set::default(), removed: Set::point() },
            (olds, news) if olds != news => Diff { set: Set::point(), removed: Set::default() },
            _ => Diff::default(),
        };
        found.put(&step, of);
    }
    Some(found.with_self(old, new))
}

fn step_of_value(value: &Value) -> String {
    format!("v:{}", text(value))
}

/// `k:{"containerPort":80,"protocol":"TCP"}`.
fn key_of(field: &Field, item: &Value) -> Option<String> {
    let mut keys = Map::new();
    for key in &field.list_map_keys {
        let value = match item.get(key).filter(|v| !v.is_null()) {
            Some(value) => value.clone(),
            None => {
                let default = field.message()?.field(key)?.default;
                if default.is_empty() {
                    return None;
                }
                json::parse(default.as_bytes()).ok()?
            }
        };
        keys.insert(*key, value);
    }
    Some(format!("k:{}", text(&Value::Map(keys))))
}

fn text(value: &Value) -> String {
    String::from_utf8(json::to_vec(value)).expect("JSON is UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::resource;

    fn parse(text: &str) -> Value {
        json::parse(text.as_bytes()).unwrap()
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
            let before = old.clone();
            track(before.as_ref(), &mut new, &write, &|_, new| diff(ty, before.as_ref(), new, &[&["status"]]));
            old = Some(new);
        }
        let entries = old.unwrap();
        let shown = entries.list_at(&["metadata", "managedFields"]).iter();
        shown.map(|e| format!("{}={}", e.str_at(&["manager"]), text(e.get("fieldsV1").unwrap()))).collect::<Vec<_>>().join(" ")
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
        let states: Vec<String> = (0..12)
            .map(|i| format!(r#"{{"metadata":{{"name":"p","labels":{{{}}}}},"spec":{{"containers":null}}}}"#, labels(i + 1)))
            .collect();
        let writes: Vec<(&str, &str)> = managers.iter().map(String::as_str).zip(states.iter().map(String::as_str)).collect();
        let shown = after(&writes);
        assert_eq!(shown.split(' ').count(), 10);
        assert!(
            shown.starts_with(r#"ancient-changes={"f:metadata":{"f:labels":{".":{},"f:l00":{},"f:l01":{},"f:l02":{}}}} m03="#),
            "{shown}"
        );
    }

    #[test]
    fn managers_are_named_by_the_agent() {
        for (agent, want) in [("kubectl/v1.36.3 (linux)", "kubectl"), ("", ""), ("a\u{7}b", "ab")] {
            assert_eq!(manager_of(agent), want);
        }
        assert_eq!(manager_of(&"x".repeat(200)).len(), 128);
    }
}
