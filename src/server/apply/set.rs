//! Pure: a set of field paths as FieldsV1 has it: a sorted trie.
//!
//! Steps are spelled as FieldsV1 spells them: `f:` a field or map key, `k:` an element of a list with keys, `v:` an element of
//! a set, `i:` an index. A node may be in the set itself (`.`, or `{}` where nothing is below it), have members below, or both.

use std::cmp::Ordering;

use crate::api::json;
use crate::api::value::{Key, Map, Value};

/// A set of paths below one point, and whether the point itself is in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set {
    pub here: bool,
    /// Sorted by step; none of them empty.
    below: Vec<(Key, Set)>,
}

impl Set {
    /// The one path that is this point.
    pub fn point() -> Set {
        Set { here: true, below: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        !self.here && self.below.is_empty()
    }

    pub fn has_below(&self) -> bool {
        !self.below.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Set)> {
        self.below.iter().map(|(step, set)| (&**step, set))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Set)> {
        self.below.iter_mut().map(|(step, set)| (&**step, set))
    }

    fn find(&self, step: &str) -> Result<usize, usize> {
        // Walks come in order, so the common place is the end.
        match self.below.last() {
            Some((last, _)) if **last < *step => Err(self.below.len()),
            _ => self.below.binary_search_by(|(s, _)| (**s).cmp(step)),
        }
    }

    /// The place of `f:name`.
    fn find_field(&self, name: &str) -> Option<usize> {
        let order = |step: &str| match step.strip_prefix("f:") {
            Some(own) => own.cmp(name),
            None if step < "f:" => Ordering::Less,
            None => Ordering::Greater,
        };
        self.below.binary_search_by(|(step, _)| order(step)).ok()
    }

    pub fn get(&self, step: &str) -> Option<&Set> {
        self.find(step).ok().map(|i| &self.below[i].1)
    }

    /// What is below `f:name`.
    pub fn get_field(&self, name: &str) -> Option<&Set> {
        self.find_field(name).map(|i| &self.below[i].1)
    }

    /// Adds what `set` has to the point `step` leads to.
    pub fn put(&mut self, step: impl Into<Key>, set: Set) {
        if set.is_empty() {
            return;
        }
        let step = step.into();
        match self.find(&step) {
            Ok(i) => self.below[i].1.add(set),
            Err(i) => self.below.insert(i, (step, set)),
        }
    }

    pub fn add(&mut self, other: Set) {
        self.here |= other.here;
        if self.below.is_empty() {
            self.below = other.below;
            return;
        }
        other.below.into_iter().for_each(|(step, set)| self.put(step, set));
    }

    /// Takes the members of `other` out. What is below a member stays.
    pub fn subtract(&mut self, other: &Set) {
        self.here &= !other.here;
        let both = self.below.iter_mut().filter_map(|(step, own)| other.get(step).map(|theirs| (own, theirs)));
        let mut emptied = false;
        for (own, theirs) in both {
            own.subtract(theirs);
            emptied |= own.is_empty();
        }
        if emptied {
            self.below.retain(|(_, set)| !set.is_empty());
        }
    }

    /// The members both have.
    pub fn intersection(&self, other: &Set) -> Set {
        let mut common = Set { here: self.here && other.here, below: Vec::new() };
        for (step, own) in self.iter() {
            if let Some(theirs) = other.get(step) {
                common.put(step.to_string(), own.intersection(theirs));
            }
        }
        common
    }

    /// Drops a point with all below it.
    pub fn cut(&mut self, path: &[&str]) {
        let [first, rest @ ..] = path else { return };
        let Some(i) = self.find_field(first) else { return };
        if !rest.is_empty() {
            self.below[i].1.cut(rest);
        }
        if rest.is_empty() || self.below[i].1.is_empty() {
            self.below.remove(i);
        }
    }

    /// Drops the point itself, not what is below.
    pub fn forget(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else {
            self.here = false;
            return;
        };
        let Some(i) = self.find_field(first) else { return };
        self.below[i].1.forget(rest);
        if self.below[i].1.is_empty() {
            self.below.remove(i);
        }
    }

    /// Keeps what lies at or below one of the paths; `*` is any step.
    pub fn keep(&mut self, paths: &[&[&str]]) {
        self.here = false;
        self.below.retain_mut(|(step, set)| {
            let onward: Vec<&[&str]> = paths
                .iter()
                .filter_map(|p| p.split_first())
                .filter(|(first, _)| **first == "*" || step.strip_prefix("f:") == Some(first))
                .map(|(_, rest)| rest)
                .collect();
            if !onward.iter().any(|rest| rest.is_empty()) {
                let was = set.here;
                set.keep(&onward);
                // A point on the way is kept where the pattern passes through it.
                set.here = was && !onward.is_empty();
            }
            !set.is_empty()
        });
    }

    pub fn has(&self, path: &[&str]) -> bool {
        let Some((first, rest)) = path.split_first() else { return self.here };
        self.get_field(first).is_some_and(|set| set.has(rest))
    }

    /// The set with this one path.
    pub fn of(path: &[&str]) -> Set {
        let Some((first, rest)) = path.split_first() else { return Set::point() };
        Set { here: false, below: vec![(format!("f:{first}").into(), Set::of(rest))] }
    }

    /// Whether subtracting this from the set `raw` encodes would take anything.
    pub fn touches(&self, raw: &Value) -> bool {
        let Some(map) = raw.as_map() else { return false };
        let is_in = map.is_empty() || map.contains_key(".");
        (self.here && is_in) || self.iter().any(|(step, set)| map.get(step).is_some_and(|below| set.touches(below)))
    }

    /// Every member in upstream's order: the members of a point before what is below them.
    pub fn paths(&self) -> Vec<String> {
        fn walk(set: &Set, prefix: &str, out: &mut Vec<String>) {
            out.extend(set.iter().filter(|(_, s)| s.here).map(|(step, _)| format!("{prefix}{}", show(step))));
            set.iter().for_each(|(step, s)| walk(s, &format!("{prefix}{}", show(step)), out));
        }
        let mut out = Vec::new();
        walk(self, "", &mut out);
        out
    }

    /// `None`: this is not FieldsV1.
    pub fn decode(fields: &Value) -> Option<Set> {
        Set::decode_node(fields, true)
    }

    fn decode_node(fields: &Value, is_root: bool) -> Option<Set> {
        let map = fields.as_map()?;
        let mut set = Set { here: !is_root && map.is_empty(), below: Vec::with_capacity(map.len()) };
        for (step, value) in map.iter() {
            match step.split_at_checked(2) {
                Some(("f:" | "k:" | "v:" | "i:", _)) => set.below.push((step.to_string().into(), Set::decode_node(value, false)?)),
                _ if step == "." => set.here = !is_root,
                _ => return None,
            }
        }
        Some(set)
    }

    pub fn encode(self) -> Value {
        let has_more = !self.below.is_empty();
        let own = (self.here && has_more).then(|| (".".into(), Value::map()));
        let below = self.below.into_iter().map(|(step, set)| (step, set.encode()));
        Value::Map(Map::from_sorted(own.into_iter().chain(below).collect()))
    }
}

/// A step as messages have it: `.name`, `[name="c"]`, `[="x"]`.
pub fn show(step: &str) -> String {
    let Some((kind, rest)) = step.split_at_checked(2) else { return format!(".{step}") };
    let parsed = || json::parse(rest.as_bytes()).unwrap_or_default();
    match kind {
        "k:" => {
            let keys: Vec<String> =
                parsed().as_map().into_iter().flat_map(Map::iter).map(|(name, value)| format!("{name}={}", show_value(value))).collect();
            format!("[{}]", keys.join(","))
        }
        "v:" => format!("[={}]", show_value(&parsed())),
        "i:" => format!("[{rest}]"),
        _ => format!(".{rest}"),
    }
}

fn show_value(value: &Value) -> String {
    match value {
        Value::Str(s) => format!("{s:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> Set {
        Set::decode(&json::parse(text.as_bytes()).unwrap()).unwrap()
    }

    fn text(set: Set) -> String {
        set.encode().to_string()
    }

    #[test]
    fn sets_combine() {
        let a = || set(r#"{"f:a":{".":{},"f:b":{}},"f:c":{}}"#);
        let b = || set(r#"{"f:a":{"f:b":{},"f:x":{}},"f:d":{}}"#);
        let mut sum = a();
        sum.add(b());
        assert_eq!(text(sum), r#"{"f:a":{".":{},"f:b":{},"f:x":{}},"f:c":{},"f:d":{}}"#);
        let mut rest = a();
        rest.subtract(&b());
        assert_eq!(text(rest), r#"{"f:a":{},"f:c":{}}"#);
        assert_eq!(text(a().intersection(&b())), r#"{"f:a":{"f:b":{}}}"#);
        assert!(b().touches(&a().encode()) && !set(r#"{"f:z":{}}"#).touches(&a().encode()));
    }

    #[test]
    fn points_go_with_or_without_what_is_below() {
        let s = || set(r#"{"f:m":{".":{},"f:l":{".":{},"f:a":{}}},"f:s":{"k:{\"n\":1}":{".":{},"f:r":{},"f:q":{}}}}"#);
        let mut cut = s();
        cut.cut(&["m", "l"]);
        assert_eq!(text(cut), r#"{"f:m":{},"f:s":{"k:{\"n\":1}":{".":{},"f:q":{},"f:r":{}}}}"#);
        let mut forgotten = s();
        forgotten.forget(&["m", "l"]);
        assert!(!forgotten.has(&["m", "l"]) && forgotten.has(&["m", "l", "a"]));
        let mut kept = s();
        kept.keep(&[&["s", "*", "r"]]);
        assert_eq!(text(kept), r#"{"f:s":{"k:{\"n\":1}":{".":{},"f:r":{}}}}"#);
        assert_eq!(s().paths(), [".m", ".m.l", ".m.l.a", ".s[n=1]", ".s[n=1].q", ".s[n=1].r"]);
    }
}
