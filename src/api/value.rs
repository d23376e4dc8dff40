//! Pure: the transient JSON-shaped tree that patches, defaults, admission and typed views work on.
//!
//! Lives inside one request or one reconcile and is never cached (DESIGN decision 2). Maps are sorted by key, so equal
//! trees encode to equal bytes. Integers and floats stay apart as Kubernetes keeps them apart; byte strings are base64
//! text exactly as in JSON, which is what patches see. Start at [`Value`] and [`Map`].

use std::borrow::Cow;
use std::fmt;

/// The name of a member. Those the schema or the code names are not copied.
pub type Key = Cow<'static, str>;

/// One JSON value.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Value {
    #[default]
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    List(Vec<Value>),
    Map(Map),
}

/// Entries of a map that are looked through one by one.
const SCANNED_MAX: usize = 16;

/// A JSON object: entries sorted by key, keys unique.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Map {
    entries: Vec<(Key, Value)>,
}

impl Map {
    pub const EMPTY: Map = Map { entries: Vec::new() };

    pub fn new() -> Map {
        Map::default()
    }

    pub fn with_capacity(n: usize) -> Map {
        Map { entries: Vec::with_capacity(n) }
    }

    /// From entries already sorted by key without repetition, as decoders make them.
    pub fn from_sorted(entries: Vec<(Key, Value)>) -> Map {
        debug_assert!(entries.windows(2).all(|w| w[0].0 < w[1].0), "entries are sorted");
        Map { entries }
    }

    /// From entries in any order; of equal keys the last wins.
    pub fn from_unsorted(mut entries: Vec<(Key, Value)>) -> Map {
        if entries.windows(2).any(|w| w[0].0 >= w[1].0) {
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            entries.reverse();
            entries.dedup_by(|later, kept| later.0 == kept.0);
            entries.reverse();
        }
        Map { entries }
    }

    fn find(&self, key: &str) -> Result<usize, usize> {
        // Decoders append in key order, so the common insert position is the end.
        match self.entries.last() {
            Some((last, _)) if **last < *key => Err(self.entries.len()),
            _ => self.entries.binary_search_by(|(k, _)| (**k).cmp(key)),
        }
    }

    fn place(&self, key: &str) -> Option<usize> {
        // Of few names most differ in length, which is seen without a call; halving compares bytes every time.
        if self.entries.len() <= SCANNED_MAX {
            return self.entries.iter().position(|(k, _)| **k == *key);
        }
        self.find(key).ok()
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.place(key).map(|i| &self.entries[i].1)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.place(key).map(|i| &mut self.entries[i].1)
    }

    pub fn contains_key(&self, key: &str) -> bool {
        self.place(key).is_some()
    }

    /// Sets `key`; the value that was there before comes back.
    pub fn insert(&mut self, key: impl Into<Key>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        match self.find(&key) {
            Ok(i) => Some(std::mem::replace(&mut self.entries[i].1, value)),
            Err(i) => {
                self.entries.insert(i, (key, value));
                None
            }
        }
    }

    /// Sets `key` only where it is absent or null: how defaults are written.
    pub fn insert_default(&mut self, key: impl Into<Key>, value: impl Into<Value>) {
        let key = key.into();
        match self.find(&key) {
            Ok(i) if self.entries[i].1.is_null() => self.entries[i].1 = value.into(),
            Ok(_) => {}
            Err(i) => self.entries.insert(i, (key, value.into())),
        }
    }

    pub fn remove(&mut self, key: &str) -> Option<Value> {
        self.find(key).ok().map(|i| self.entries.remove(i).1)
    }

    /// The value under `key`, made `Null` first if absent.
    pub fn slot(&mut self, key: &str) -> &mut Value {
        let i = match self.find(key) {
            Ok(i) => i,
            Err(i) => {
                self.entries.insert(i, (key.to_string().into(), Value::Null));
                i
            }
        };
        &mut self.entries[i].1
    }

    /// The map under `key`; anything else there (or nothing) is replaced by an empty map.
    pub fn map_slot(&mut self, key: &str) -> &mut Map {
        let slot = self.slot(key);
        if !matches!(slot, Value::Map(_)) {
            *slot = Value::Map(Map::new());
        }
        slot.as_map_mut().expect("just made a map")
    }

    /// The list under `key`; anything else there (or nothing) is replaced by an empty list.
    pub fn list_slot(&mut self, key: &str) -> &mut Vec<Value> {
        let slot = self.slot(key);
        if !matches!(slot, Value::List(_)) {
            *slot = Value::List(Vec::new());
        }
        slot.as_list_mut().expect("just made a list")
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &Value)> + ExactSizeIterator {
        self.entries.iter().map(|(k, v)| (&**k, v))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Value)> {
        self.entries.iter_mut().map(|(k, v)| (&**k, v))
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(k, _)| &**k)
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&str, &mut Value) -> bool) {
        self.entries.retain_mut(|(k, v)| keep(k, v));
    }

    /// The string under `key`, or `""`: Go's view of an absent string.
    pub fn str(&self, key: &str) -> &str {
        self.get(key).and_then(Value::as_str).unwrap_or("")
    }
}

impl IntoIterator for Map {
    type Item = (Key, Value);
    type IntoIter = std::vec::IntoIter<(Key, Value)>;
    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

impl<K: Into<Key>, V: Into<Value>> FromIterator<(K, V)> for Map {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Map {
        let mut map = Map::new();
        for (k, v) in entries {
            map.insert(k, v);
        }
        map
    }
}

impl Value {
    pub fn map() -> Value {
        Value::Map(Map::new())
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Value::Int(i) => Some(*i),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(s) => Some(s),
            _ => None,
        }
    }

    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Value::List(l) => Some(l),
            _ => None,
        }
    }

    pub fn as_list_mut(&mut self) -> Option<&mut Vec<Value>> {
        match self {
            Value::List(l) => Some(l),
            _ => None,
        }
    }

    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Value::Map(m) => Some(m),
            _ => None,
        }
    }

    pub fn as_map_mut(&mut self) -> Option<&mut Map> {
        match self {
            Value::Map(m) => Some(m),
            _ => None,
        }
    }

    /// The member `key` of a map; `None` for anything else.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.as_map()?.get(key)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.as_map_mut()?.get_mut(key)
    }

    /// Follows member names: `at(&["spec", "nodeName"])`. Null counts as absent.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(self, |v, key| v.get(key)).filter(|v| !v.is_null())
    }

    pub fn at_mut(&mut self, path: &[&str]) -> Option<&mut Value> {
        path.iter().try_fold(self, |v, key| v.get_mut(key))
    }

    /// The string at `path`, or `""`: Go's view of an absent string.
    pub fn str_at(&self, path: &[&str]) -> &str {
        self.at(path).and_then(Value::as_str).unwrap_or("")
    }

    pub fn i64_at(&self, path: &[&str]) -> Option<i64> {
        self.at(path).and_then(Value::as_i64)
    }

    pub fn bool_at(&self, path: &[&str]) -> bool {
        self.at(path).and_then(Value::as_bool).unwrap_or(false)
    }

    /// The list at `path`; an absent one is empty.
    pub fn list_at(&self, path: &[&str]) -> &[Value] {
        self.at(path).and_then(Value::as_list).unwrap_or(&[])
    }

    pub fn map_at(&self, path: &[&str]) -> Option<&Map> {
        self.at(path).and_then(Value::as_map)
    }

    /// Sets the value at `path`, making the maps on the way.
    pub fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        let Some((last, parents)) = path.split_last() else {
            *self = value.into();
            return;
        };
        let map = self.make_map(parents);
        match map.get_mut(last) {
            Some(slot) => *slot = value.into(),
            None => drop(map.insert(last.to_string(), value)),
        }
    }

    /// The map at `path`, made (with the maps on the way) where absent.
    pub fn make_map(&mut self, path: &[&str]) -> &mut Map {
        if !matches!(self, Value::Map(_)) {
            *self = Value::map();
        }
        let root = self.as_map_mut().expect("just made a map");
        path.iter().fold(root, |m, key| m.map_slot(key))
    }

    /// Removes and returns what is at `path`.
    pub fn remove(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        self.at_mut(parents)?.as_map_mut()?.remove(last)
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Value {
        Value::Bool(b)
    }
}
impl From<i64> for Value {
    fn from(i: i64) -> Value {
        Value::Int(i)
    }
}
impl From<i32> for Value {
    fn from(i: i32) -> Value {
        Value::Int(i.into())
    }
}
impl From<f64> for Value {
    fn from(f: f64) -> Value {
        Value::Float(f)
    }
}
impl From<&str> for Value {
    fn from(s: &str) -> Value {
        Value::Str(s.to_string())
    }
}
impl From<String> for Value {
    fn from(s: String) -> Value {
        Value::Str(s)
    }
}
impl From<Map> for Value {
    fn from(m: Map) -> Value {
        Value::Map(m)
    }
}
impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(l: Vec<T>) -> Value {
        Value::List(l.into_iter().map(Into::into).collect())
    }
}
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(o: Option<T>) -> Value {
        o.map_or(Value::Null, Into::into)
    }
}

impl From<serde_json::Value> for Value {
    fn from(v: serde_json::Value) -> Value {
        match v {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(b) => Value::Bool(b),
            serde_json::Value::Number(n) => match n.as_i64() {
                Some(i) => Value::Int(i),
                None => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(s) => Value::Str(s),
            serde_json::Value::Array(l) => Value::List(l.into_iter().map(Value::from).collect()),
            serde_json::Value::Object(m) => Value::Map(m.into_iter().collect()),
        }
    }
}

impl From<&Value> for serde_json::Value {
    fn from(v: &Value) -> serde_json::Value {
        match v {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(i) => (*i).into(),
            Value::Float(f) => (*f).into(),
            Value::Str(s) => s.as_str().into(),
            Value::List(l) => l.iter().map(serde_json::Value::from).collect::<Vec<_>>().into(),
            Value::Map(m) => m.iter().map(|(k, v)| (k.to_string(), v.into())).collect::<serde_json::Map<_, _>>().into(),
        }
    }
}

/// Builds a [`Value`] from JSON-like syntax: `value!({"spec": {"replicas": n}})`. For literals in code and tests.
#[macro_export]
macro_rules! value {
    ($($json:tt)+) => { $crate::api::value::Value::from(serde_json::json!($($json)+)) };
}

impl fmt::Display for Value {
    /// Compact JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::Value::from(self).to_string())
    }
}

impl serde::Serialize for Value {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => s.serialize_unit(),
            Value::Bool(b) => s.serialize_bool(*b),
            Value::Int(i) => s.serialize_i64(*i),
            Value::Float(f) => s.serialize_f64(*f),
            Value::Str(t) => s.serialize_str(t),
            Value::List(l) => s.collect_seq(l),
            Value::Map(m) => s.collect_map(m.iter()),
        }
    }
}
