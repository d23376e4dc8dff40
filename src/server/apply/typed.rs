//! Pure: walks of trees along the schema: what differs, what an object names, what two make together, what is left of one.
//!
//! A [`Node`] is a place in the schema. Lists go by their keys or values or are one value; maps and structs go by member
//! unless they are one value; what has no schema goes by member in maps. Absent and null are different here. The decisions are
//! those of upstream's structured merge, duplicates in lists included.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::api::json;
use crate::api::schema::{Field, Kind, ListType, MapType, TypeRef};
use crate::api::value::{Key, Map, Value};
use crate::server::patch::go;

use super::set::{Set, show};

/// One comparison of two trees.
#[derive(Debug, Default)]
pub struct Diff {
    /// Added or changed.
    pub set: Set,
    pub removed: Set,
}

/// A place in the schema.
#[derive(Clone, Copy)]
pub enum Node {
    Type(TypeRef),
    /// A member of a struct.
    Field(&'static Field),
    /// One element of the list or map in a field.
    Element(&'static Field),
    /// No schema: maps go by member, lists are one value.
    Free,
    /// No schema, and one value whatever it is.
    Whole,
    Text,
}

/// What values a place takes.
#[derive(Clone, Copy)]
enum Shape {
    Scalar(Scalar),
    Struct(TypeRef),
    Map(Node),
    List(Names, Node),
    Free,
    Whole,
}

#[derive(Clone, Copy)]
enum Scalar {
    Boolean,
    Numeric,
    Text,
    Any,
}

/// How the elements of a list are told apart.
#[derive(Clone, Copy)]
enum Names {
    /// Not at all: the list is one value.
    Index,
    Value,
    Keys(&'static Field),
}

impl Node {
    /// The shape, and whether it is one value.
    fn shape(self) -> (Shape, bool) {
        match self {
            Node::Type(ty) if ty.get().fields.is_empty() => (Shape::Map(Node::Free), false),
            Node::Type(ty) => (Shape::Struct(ty), ty.get().map_atomic),
            Node::Field(field) if field.repeated => {
                let names = Names::of(field);
                (Shape::List(names, Node::Element(field)), matches!(names, Names::Index))
            }
            Node::Field(field) if field.map => (Shape::Map(Node::Element(field)), field.map_type == MapType::Atomic),
            Node::Field(field) => {
                let (shape, is_leaf) = shape_of(field.kind);
                match (field.map_type, shape) {
                    (MapType::Granular, Shape::Struct(_)) => (shape, false),
                    (MapType::Granular | MapType::Unset, _) => (shape, is_leaf),
                    (MapType::Atomic, _) => (shape, true),
                }
            }
            Node::Element(field) => shape_of(field.kind),
            Node::Free => (Shape::Free, false),
            Node::Whole => (Shape::Whole, true),
            Node::Text => (Shape::Scalar(Scalar::Text), true),
        }
    }

    /// Where a member's name leads, and whether the schema names it. `None`: nowhere.
    fn member(self, name: &str) -> Option<(Node, bool)> {
        match self.shape().0 {
            Shape::Struct(ty) => ty.field(name).map(|f| (Node::Field(f), true)),
            Shape::Map(element) => Some((element, false)),
            Shape::Free => Some((Node::Free, false)),
            Shape::Whole => Some((Node::Whole, false)),
            Shape::Scalar(_) | Shape::List(..) => None,
        }
    }

    /// The step to a member of this name, whose place this is.
    fn step_here(self, name: &str) -> Key {
        match self {
            Node::Field(field) => field.step.into(),
            Node::Type(_) | Node::Element(_) | Node::Free | Node::Whole | Node::Text => ["f:", name].concat().into(),
        }
    }

    /// Where a step leads.
    fn step(self, step: &str) -> Option<(Node, bool)> {
        match step.strip_prefix("f:") {
            Some(name) => self.member(name),
            None => match self.shape().0 {
                Shape::List(_, element) => Some((element, false)),
                _ => None,
            },
        }
    }
}

fn shape_of(kind: Kind) -> (Shape, bool) {
    let scalar = |s| (Shape::Scalar(s), true);
    match kind {
        Kind::Bool => scalar(Scalar::Boolean),
        Kind::Int32 | Kind::Int64 | Kind::Float64 => scalar(Scalar::Numeric),
        Kind::String | Kind::Bytes => scalar(Scalar::Text),
        Kind::Time | Kind::MicroTime | Kind::Quantity => scalar(Scalar::Any),
        Kind::RawExtension => (Shape::Whole, true),
        Kind::FieldsV1 => (Shape::Map(Node::Free), false),
        Kind::IntOrString | Kind::Json | Kind::Any | Kind::SchemaOrBool | Kind::SchemaOrArray | Kind::SchemaOrStrings => {
            (Shape::Free, false)
        }
        Kind::Strings => (Shape::List(Names::Index, Node::Text), true),
        Kind::Message(ty) => Node::Type(ty).shape(),
    }
}

impl Names {
    fn of(field: &'static Field) -> Names {
        match field.list_type {
            ListType::Map => Names::Keys(field),
            ListType::Set => Names::Value,
            ListType::Unset | ListType::Atomic => Names::Index,
        }
    }

    /// The step to an element.
    fn step(self, item: &Value) -> Result<String, String> {
        match self {
            Names::Keys(field) => step_of_keys(field, item),
            Names::Value | Names::Index => match item {
                Value::Map(_) => Err("associative list without keys has an element that's a map type".to_string()),
                Value::List(_) => Err("not supported: associative list with lists as elements".to_string()),
                Value::Null => Err("associative list without keys has an element that's an explicit null".to_string()),
                scalar => {
                    let mut step = b"v:".to_vec();
                    json::write(scalar, &mut step);
                    Ok(String::from_utf8(step).expect("JSON is UTF-8"))
                }
            },
        }
    }
}

/// `k:{"containerPort":80,"protocol":"TCP"}`: keys the element leaves out are their defaults, or not there.
fn step_of_keys(field: &'static Field, item: &Value) -> Result<String, String> {
    let Value::Map(members) = item else {
        let what = if item.is_null() { "a null element" } else { "non-map elements" };
        return Err(format!("associative list with keys may not have {what}"));
    };
    let default = |key: &str| field.message().and_then(|t| t.field(key)).map_or("", |f| f.default);
    let mut keys = Cow::from(&field.list_map_keys);
    if !keys.is_sorted() {
        keys.to_mut().sort_unstable();
    }
    let mut step = Vec::with_capacity(32);
    step.extend_from_slice(b"k:{");
    for key in keys.iter().copied() {
        let value = members.get(key);
        if value.is_none() && default(key).is_empty() {
            continue;
        }
        if step.len() > 3 {
            step.push(b',');
        }
        json::write_str(key, &mut step);
        step.push(b':');
        match value {
            Some(value) => json::write(value, &mut step),
            None => step.extend_from_slice(default(key).as_bytes()),
        }
    }
    if step.len() == 3 {
        let keys: Vec<String> = field.list_map_keys.iter().map(|k| format!("{k:?}")).collect();
        let why = "and doesn't have default values for any key fields";
        return Err(format!("associative list with keys has an element that omits all key fields [{}] ({why})", keys.join(" ")));
    }
    step.push(b'}');
    Ok(String::from_utf8(step).expect("JSON is UTF-8"))
}

/// Absent, null or empty.
fn is_blank(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Map(m)) => m.is_empty(),
        Some(Value::List(l)) => l.is_empty(),
        Some(Value::Null) | None => true,
        Some(_) => false,
    }
}

// --- comparison

fn leaf(old: Option<&Value>, new: Option<&Value>) -> Diff {
    match (old, new) {
        (None, Some(_)) => Diff { set: Set::point(), removed: Set::default() },
        (Some(_), None) => Diff { set: Set::default(), removed: Set::point() },
        (Some(old), Some(new)) if old != new => Diff { set: Set::point(), removed: Set::default() },
        _ => Diff::default(),
    }
}

impl Diff {
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }

    fn put(&mut self, step: Key, of: Diff) {
        match (of.set.is_empty(), of.removed.is_empty()) {
            (true, true) => {}
            (false, true) => self.set.put(step, of.set),
            (true, false) => self.removed.put(step, of.removed),
            (false, false) => {
                self.set.put(step.clone(), of.set);
                self.removed.put(step, of.removed);
            }
        }
    }

    /// The thing itself came or went.
    fn with_self(mut self, old: Option<&Value>, new: Option<&Value>) -> Diff {
        self.set.here |= old.is_none();
        self.removed.here |= new.is_none();
        self
    }
}

/// What `new` added, changed and removed. An error: a list has an element without a name.
pub fn compare(node: Node, old: Option<&Value>, new: Option<&Value>) -> Result<Diff, String> {
    let (shape, is_leaf) = node.shape();
    if is_leaf || (is_blank(old) && is_blank(new)) {
        return Ok(leaf(old, new));
    }
    match shape {
        Shape::Scalar(_) | Shape::Whole => Ok(leaf(old, new)),
        Shape::Struct(_) | Shape::Map(_) => compare_maps(node, old, new),
        Shape::List(names, element) => compare_lists(names, element, old, new),
        Shape::Free => compare_free(node, old, new),
    }
}

/// Both are sorted: one merge.
fn compare_maps(node: Node, old: Option<&Value>, new: Option<&Value>) -> Result<Diff, String> {
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
        let Some((member, _)) = node.member(name) else { continue };
        let of = compare(member, was.map(|w| w.1), is.map(|i| i.1))?;
        if !of.is_empty() {
            found.put(member.step_here(name), of);
        }
    }
    Ok(found.with_self(old, new))
}

fn compare_lists(names: Names, element: Node, old: Option<&Value>, new: Option<&Value>) -> Result<Diff, String> {
    let (olds, news) = (old.and_then(Value::as_list).unwrap_or(&[]), new.and_then(Value::as_list).unwrap_or(&[]));
    let mut items: Vec<(String, &Value, bool)> = Vec::with_capacity(olds.len() + news.len());
    for (list, is_new) in [(olds, false), (news, true)] {
        for item in list {
            items.push((names.step(item)?, item, is_new));
        }
    }
    items.sort_by(|a, b| a.0.cmp(&b.0));
    let mut found = Diff::default();
    for same in items.chunk_by(|a, b| a.0 == b.0) {
        let (olds, news) = same.split_at(same.iter().position(|i| i.2).unwrap_or(same.len()));
        let of = match (olds, news) {
            ([] | [_], [] | [_]) => compare(element, olds.first().map(|i| i.1), news.first().map(|i| i.1))?,
            ([_, _, ..], [_, _, ..]) => {
                let is_same = olds.len() == news.len() && olds.iter().zip(news).all(|(a, b)| a.1 == b.1);
                if is_same { Diff::default() } else { Diff { set: Set::point(), removed: Set::default() } }
            }
            // Duplicates that are no more: the one that is left is new.
            ([_, _, ..], news) => {
                let mut of = if news.is_empty() { Diff::default() } else { compare(element, None, news.first().map(|i| i.1))? };
                of.removed.here = true;
                of
            }
            (olds, _) => {
                let mut of = if olds.is_empty() { Diff::default() } else { compare(element, olds.first().map(|i| i.1), None)? };
                of.set.here = true;
                of
            }
        };
        found.put(same[0].0.clone().into(), of);
    }
    Ok(found.with_self(old, new))
}

/// Values of different kinds change as a whole, and what was or is a map goes by member, too.
fn compare_free(node: Node, old: Option<&Value>, new: Option<&Value>) -> Result<Diff, String> {
    let is_map = |v: Option<&Value>| matches!(v, Some(Value::Map(_)));
    let is_open = |v: Option<&Value>| matches!(v, Some(Value::Null) | None);
    match (is_map(old), is_map(new)) {
        (false, false) => Ok(leaf(old, new)),
        (true, is) if is || is_open(new) => compare_maps(node, old, new),
        (_, true) if is_open(old) => compare_maps(node, old, new),
        _ => {
            let mut found = compare_maps(node, old, new)?;
            found.set.here = true;
            Ok(found)
        }
    }
}

// --- the set of a tree

/// Every leaf and element a tree names, below the place itself.
pub fn field_set(node: Node, value: &Value) -> Set {
    let (shape, is_leaf) = node.shape();
    if is_leaf {
        return Set::point();
    }
    match (shape, value) {
        (Shape::List(names, element), Value::List(items)) => list_set(names, element, items),
        (Shape::Struct(_) | Shape::Map(_) | Shape::Free, Value::Map(members)) => {
            let mut set = Set::default();
            for (name, value) in members.iter() {
                let Some((member, is_declared)) = node.member(name) else { continue };
                let mut below = field_set(member, value);
                below.here |= !is_declared || value.is_null() || value.as_map().is_some_and(Map::is_empty);
                set.put(member.step_here(name), below);
            }
            set
        }
        (Shape::Free, Value::Null) => Set::default(),
        (Shape::Free | Shape::Scalar(_) | Shape::Whole, _) => Set::point(),
        _ => Set::default(),
    }
}

fn list_set(names: Names, element: Node, items: &[Value]) -> Set {
    let steps: Vec<Option<String>> = items.iter().map(|item| names.step(item).ok()).collect();
    let mut seen = BTreeSet::new();
    let repeated: BTreeSet<&String> = steps.iter().flatten().filter(|s| !seen.insert(*s)).collect();
    let mut set = Set::default();
    for (item, step) in items.iter().zip(&steps).filter_map(|(item, step)| step.as_ref().map(|s| (item, s))) {
        let mut below = if repeated.contains(step) { Set::default() } else { field_set(element, item) };
        below.here = true;
        set.put(step.clone(), below);
    }
    set
}

/// The set with all named fields on the way to its members, which are usually left out.
pub fn with_named_fields(node: Node, mut set: Set) -> Set {
    fn walk(node: Option<Node>, set: &mut Set) {
        for (step, below) in set.iter_mut() {
            let next = node.and_then(|n| n.step(step));
            below.here |= below.has_below() && next.is_some_and(|(_, is_declared)| is_declared);
            walk(next.map(|(n, _)| n), below);
        }
    }
    walk(Some(node), &mut set);
    set
}

// --- merging

/// `live` with what `config` says: nothing is removed; where both have a value, `config`'s stays.
pub fn merge(node: Node, live: Option<&Value>, config: Option<&Value>) -> Result<Option<Value>, String> {
    let (Some(old), Some(new)) = (live, config) else { return Ok(config.or(live).cloned()) };
    let (shape, is_leaf) = node.shape();
    if is_leaf || (is_blank(live) && is_blank(config)) {
        return Ok(Some(new.clone()));
    }
    match (shape, old, new) {
        (Shape::Free, _, Value::Map(_)) | (Shape::Struct(_) | Shape::Map(_), ..) => merge_maps(node, old, new),
        (Shape::List(names, element), ..) => merge_lists(names, element, old, new),
        (Shape::Free, Value::Map(_), Value::Null) => merge_maps(node, old, new),
        (Shape::Free | Shape::Scalar(_) | Shape::Whole, ..) => Ok(Some(new.clone())),
    }
}

fn merge_maps(node: Node, old: &Value, new: &Value) -> Result<Option<Value>, String> {
    let mut merged = old.as_map().cloned().unwrap_or_default();
    for (name, value) in new.as_map().into_iter().flat_map(Map::iter) {
        let Some((member, _)) = node.member(name) else { continue };
        match merge(member, merged.get(name), Some(value))? {
            Some(value) => drop(merged.insert(name.to_string(), value)),
            None => drop(merged.remove(name)),
        }
    }
    Ok((!merged.is_empty()).then_some(Value::Map(merged)))
}

/// Elements of both are in the order of the config; the others stay where they were, as far as that can be had.
fn merge_lists(names: Names, element: Node, old: &Value, new: &Value) -> Result<Option<Value>, String> {
    let (olds, news) = (old.as_list().unwrap_or(&[]), new.as_list().unwrap_or(&[]));
    let old_steps = olds.iter().map(|i| names.step(i)).collect::<Result<Vec<_>, _>>()?;
    let new_steps = news.iter().map(|i| names.step(i)).collect::<Result<Vec<_>, _>>()?;
    // Of elements that are there twice nothing is kept by a config that names them.
    let mut in_old: BTreeMap<&str, &Value> = BTreeMap::new();
    for (step, item) in old_steps.iter().zip(olds) {
        in_old.entry(step).and_modify(|v| *v = &Value::Null).or_insert(item);
    }
    let in_new: BTreeSet<&str> = new_steps.iter().map(String::as_str).collect();
    let mut shared = new_steps.iter().map(String::as_str).filter(|s| in_old.contains_key(s));
    let mut next_shared = shared.next();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut out: Vec<Value> = Vec::with_capacity(olds.len().max(news.len()));
    let (mut l, mut r) = (0, 0);
    while l < olds.len() || r < news.len() {
        if let (Some(old_step), Some(new_step)) = (old_steps.get(l), new_steps.get(r)) {
            if old_step == new_step {
                done.insert(old_step);
                out.extend(merge(element, in_old.get(old_step.as_str()).copied(), Some(&news[r]))?);
                (l, r) = (l + 1, r + 1);
                next_shared = shared.next();
                continue;
            }
            if in_new.contains(old_step.as_str()) && next_shared.is_some_and(|s| s != old_step) {
                l += 1;
                continue;
            }
        }
        if let Some(old_step) = old_steps.get(l) {
            if !in_new.contains(old_step.as_str()) {
                out.push(olds[l].clone());
                l += 1;
                continue;
            }
            if done.contains(old_step.as_str()) {
                l += 1;
            }
        }
        if let Some(new_step) = new_steps.get(r) {
            done.insert(new_step);
            out.extend(merge(element, in_old.get(new_step.as_str()).copied(), Some(&news[r]))?);
            r += 1;
            if next_shared == Some(new_step) {
                next_shared = shared.next();
            }
        }
    }
    Ok((!out.is_empty()).then_some(Value::List(out)))
}

/// What is left of a tree without the members of a set; null if nothing is.
pub fn without(node: Node, value: &Value, set: &Set) -> Value {
    let (shape, is_leaf) = node.shape();
    match (shape, value) {
        (Shape::Scalar(_), _) => value.clone(),
        (_, Value::Map(members)) if !is_leaf => {
            let mut kept = Map::with_capacity(members.len());
            for (name, value) in members.iter() {
                let step = set.get_field(name);
                match (step, node.member(name)) {
                    (Some(below), _) if below.here => {}
                    (Some(below), Some((member, _))) => drop(kept.insert(name.to_string(), without(member, value, below))),
                    _ => drop(kept.insert(name.to_string(), value.clone())),
                }
            }
            if kept.is_empty() { Value::Null } else { Value::Map(kept) }
        }
        (Shape::List(names, element), Value::List(items)) if !is_leaf => {
            let mut kept = Vec::with_capacity(items.len());
            for item in items {
                match names.step(item).ok().and_then(|step| set.get(&step)) {
                    Some(below) if below.here => {}
                    Some(below) => kept.push(without(element, item, below)),
                    None => kept.push(item.clone()),
                }
            }
            if kept.is_empty() { Value::Null } else { Value::List(kept) }
        }
        (Shape::Free | Shape::Whole, Value::Map(_) | Value::List(_)) => Value::Null,
        (Shape::Free | Shape::Whole, scalar) => scalar.clone(),
        _ => Value::Null,
    }
}

// --- checking

/// What in a config does not fit the schema: upstream's words, all together.
pub fn check(node: Node, value: &Value) -> Result<(), String> {
    let mut errors = Vec::new();
    check_at(node, value, "", &mut errors);
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        all => Err(format!("errors:\n  {}", all.join("\n  "))),
    }
}

fn check_at(node: Node, value: &Value, path: &str, errors: &mut Vec<String>) {
    let mut fail = |path: &str, why: String| errors.push(if path.is_empty() { why } else { format!("{path}: {why}") });
    match (node.shape().0, value) {
        (Shape::Free | Shape::Whole, _) | (_, Value::Null) => {}
        (Shape::Scalar(scalar), value) => {
            if let Some(why) = scalar.refuse(value) {
                fail(path, why);
            }
        }
        (Shape::Struct(_) | Shape::Map(_), Value::Map(members)) => {
            for (name, value) in members.iter() {
                let path = format!("{path}.{name}");
                match node.member(name) {
                    Some((member, _)) => check_at(member, value, &path, errors),
                    None => return errors.push(format!("{path}: field not declared in schema")),
                }
            }
        }
        (Shape::Struct(_) | Shape::Map(_), other) => fail(path, format!("expected map, got &{{{}}}", go(other))),
        (Shape::List(names, element), Value::List(items)) => {
            let mut seen = BTreeSet::new();
            for (i, item) in items.iter().enumerate() {
                let step = match names {
                    Names::Index => format!("i:{i}"),
                    Names::Value | Names::Keys(_) => match names.step(item) {
                        Ok(step) => step,
                        Err(why) => return errors.push(format!("{path}: element {i}: {why}")),
                    },
                };
                let shown = show(&step);
                if !seen.insert(step) {
                    errors.push(format!("{path}: duplicate entries for key {shown}"));
                }
                check_at(element, item, &format!("{path}{shown}"), errors);
            }
        }
        (Shape::List(..), other) => fail(path, format!("expected list, got &{{{}}}", go(other))),
    }
}

impl Scalar {
    fn refuse(self, value: &Value) -> Option<String> {
        match (self, value) {
            (Scalar::Boolean, Value::Bool(_)) | (Scalar::Numeric, Value::Int(_) | Value::Float(_)) | (Scalar::Text, Value::Str(_)) => None,
            (Scalar::Any, Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_)) => None,
            (Scalar::Boolean, other) => Some(format!("expected boolean, got &{{{}}}", go(other))),
            (Scalar::Numeric, other) => Some(format!("expected numeric (int or float), got {}", go_type(other))),
            (Scalar::Text, other) => Some(format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(other))),
            (Scalar::Any, other) => Some(format!("expected any scalar, got &{{{}}}", go(other))),
        }
    }
}

/// Go's name for the type of a decoded value.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Int(_) => "int64",
        Value::Float(_) => "float64",
        Value::Str(_) => "string",
        Value::List(_) => "[]interface {}",
        Value::Map(_) => "map[string]interface {}",
    }
}

/// How Go's `%#v` shows a decoded value.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_string(),
        Value::Str(s) => format!("{s:?}"),
        Value::List(l) => format!("[]interface {{}}{{{}}}", l.iter().map(go_syntax).collect::<Vec<_>>().join(", ")),
        Value::Map(m) => {
            let members: Vec<String> = m.iter().map(|(k, v)| format!("{k:?}:{}", go_syntax(v))).collect();
            format!("map[string]interface {{}}{{{}}}", members.join(", "))
        }
        scalar => go(scalar),
    }
}
