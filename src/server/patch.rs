//! Pure: JSON patch, merge patch and strategic merge patch: a tree and a patch in, the patched tree out.
//!
//! Strategic merge takes merge keys and strategies from the schema table; the order of merged lists follows upstream
//! (patch items first, unless both sides know a server item's place). Directives: `$patch`, `$retainKeys`,
//! `$deleteFromPrimitiveList/x`, `$setElementOrder/x`. Malformed strategic patches are upstream's plain 500s.

use crate::api::schema::{Field, Kind, TypeRef};
use crate::api::status::{Result, Status};
use crate::api::value::{Map, Value};

/// Upstream's limit on the operations of one JSON patch.
const OPERATIONS_MAX: usize = 10_000;

// --- RFC 6902

/// Applies a JSON patch. A failing operation is a 422 that says nothing more, as upstream's.
pub fn json_patch(target: &mut Value, patch: &Value) -> Result<()> {
    let Value::List(operations) = patch else {
        let kind = go_kind(patch);
        return Err(Status::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {kind} into Go value of type []handlers.jsonPatchOp"
        )));
    };
    if operations.len() > OPERATIONS_MAX {
        let n = operations.len();
        let mut status = Status::new(413, "RequestEntityTooLarge", String::new());
        status.message = format!("Request entity too large: The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {n}");
        return Err(status);
    }
    for operation in operations {
        apply_operation(target, operation).ok_or_else(rejected)?;
    }
    Ok(())
}

/// Members of operations that RFC 6902 does not know, as field validation reports them.
pub fn unknown_operation_members(patch: &Value) -> Vec<String> {
    let known = ["op", "path", "from", "value"];
    let mut unknown = Vec::new();
    for (i, operation) in patch.as_list().unwrap_or(&[]).iter().enumerate() {
        for key in operation.as_map().into_iter().flat_map(Map::keys).filter(|k| !known.contains(k)) {
            unknown.push(format!("json patch unknown field \"[{i}].{key}\""));
        }
    }
    unknown
}

/// The containers a JSON patch goes into, as a tree of maps.
pub fn touched(patch: &Value) -> Value {
    let mut tree = Value::map();
    for operation in patch.as_list().unwrap_or(&[]) {
        for member in ["path", "from"] {
            let path = pointer(operation.str_at(&[member]));
            if let Some((_, parents)) = path.split_last() {
                let parents: Vec<&str> = parents.iter().map(String::as_str).collect();
                tree.make_map(&parents);
            }
        }
    }
    tree
}

fn rejected() -> Status {
    let mut status = Status::new(422, "Invalid", "the server rejected our request due to an error in our request");
    status.details = Some(Box::default());
    status
}

fn apply_operation(target: &mut Value, operation: &Value) -> Option<()> {
    let path = pointer(operation.get("path")?.as_str()?);
    match operation.get("op")?.as_str()? {
        "add" => add(target, &path, operation.get("value").cloned().unwrap_or_default()),
        "remove" => remove(target, &path).map(drop),
        "replace" => {
            let value = operation.get("value").cloned().unwrap_or_default();
            *find_mut(target, &path)? = value;
            Some(())
        }
        "move" => {
            let moved = remove(target, &pointer(operation.get("from")?.as_str()?))?;
            add(target, &path, moved)
        }
        "copy" => {
            let copied = find_mut(target, &pointer(operation.get("from")?.as_str()?))?.clone();
            add(target, &path, copied)
        }
        "test" => {
            let expected = operation.get("value").cloned().unwrap_or_default();
            let found = find_mut(target, &path).map_or(Value::Null, |v| v.clone());
            (found == expected).then_some(())
        }
        _ => None,
    }
}

/// Upstream drops whatever stands before the first slash.
fn pointer(path: &str) -> Vec<String> {
    path.split('/').skip(1).map(|p| p.replace("~1", "/").replace("~0", "~")).collect()
}

fn index(part: &str, len: usize) -> Option<usize> {
    let i: i64 = part.parse().ok()?;
    usize::try_from(if i < 0 { i + len as i64 } else { i }).ok()
}

fn find_mut<'a>(target: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(target, |v, part| match v {
        Value::Map(m) => m.get_mut(part),
        Value::List(l) => {
            let i = index(part, l.len())?;
            l.get_mut(i)
        }
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) => None,
    })
}

fn add(target: &mut Value, path: &[String], value: Value) -> Option<()> {
    let Some((last, parents)) = path.split_last() else {
        *target = value;
        return Some(());
    };
    match find_mut(target, parents)? {
        Value::Map(m) => {
            m.insert(last.to_string(), value);
            Some(())
        }
        Value::List(l) => {
            let i = if last == "-" { l.len() } else { index(last, l.len() + 1)? };
            (i <= l.len()).then(|| l.insert(i, value))
        }
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) => None,
    }
}

fn remove(target: &mut Value, path: &[String]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    match find_mut(target, parents)? {
        Value::Map(m) => m.remove(last),
        Value::List(l) => {
            let i = index(last, l.len())?;
            (i < l.len()).then(|| l.remove(i))
        }
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) => None,
    }
}

// --- RFC 7386

/// Applies a merge patch; `patch` is a map.
pub fn merge_patch(target: &mut Value, patch: &Value) -> Result<()> {
    match patch {
        Value::Map(_) => {
            merge(target, patch);
            Ok(())
        }
        Value::Null => Err(Status::bad_request("Invalid JSON Patch")),
        other => Err(not_a_map("error decoding patch: ", other)),
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Map(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !matches!(target, Value::Map(_)) {
        *target = Value::map();
    }
    let map = target.as_map_mut().expect("just made a map");
    for (key, value) in patch.iter() {
        match value {
            Value::Null => drop(map.remove(key)),
            value => merge(map.slot(key), value),
        }
    }
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Int(_) | Value::Float(_) => "number",
        Value::Str(_) => "string",
        Value::List(_) => "array",
        Value::Map(_) => "object",
    }
}

fn not_a_map(prefix: &str, value: &Value) -> Status {
    Status::bad_request(format!("{prefix}json: cannot unmarshal {} into Go value of type map[string]interface {{}}", go_kind(value)))
}

// --- strategic merge

/// Whether a tree can become an object of type `ty` the way upstream makes one of a merged tree, which has words of its own.
pub fn restorable(ty: TypeRef, value: &Value) -> std::result::Result<(), String> {
    let fields = ty.get().declared.iter().map(|i| &ty.get().fields[usize::from(*i)]);
    let found = |v: &Value| match v {
        Value::List(_) => "slice",
        Value::Str(_) => "string",
        Value::Bool(_) => "bool",
        Value::Int(_) => "int64",
        Value::Float(_) => "float64",
        Value::Map(_) | Value::Null => "map",
    };
    let Value::Map(members) = value else {
        return if value.is_null() { Ok(()) } else { Err(format!("cannot restore struct from: {}", found(value))) };
    };
    for (field, value) in fields.filter_map(|f| members.get(f.json_name).map(|v| (f, v))) {
        match (field.repeated, field.map, value) {
            (_, _, Value::Null) => {}
            (true, _, Value::List(items)) => items.iter().try_for_each(|item| restorable_one(field, item))?,
            (true, _, other) => return Err(format!("cannot restore slice from {}", found(other))),
            (_, true, Value::Map(entries)) => entries.iter().try_for_each(|(_, entry)| restorable_one(field, entry))?,
            (_, true, other) => return Err(format!("cannot restore map from {}", found(other))),
            (false, false, one) => restorable_one(field, one)?,
        }
    }
    Ok(())
}

fn restorable_one(field: &'static Field, value: &Value) -> std::result::Result<(), String> {
    let kind = match field.kind {
        Kind::Message(ty) => return restorable(ty, value),
        Kind::Bool => "bool",
        Kind::Int32 => "int32",
        Kind::Int64 => "int64",
        Kind::Float64 => "float64",
        Kind::String => "string",
        // These have decoders of their own.
        _ => return Ok(()),
    };
    match value {
        Value::Map(_) | Value::List(_) => Err(format!("unrecognized type: {kind}")),
        Value::Str(_) if kind != "string" => Err(format!("unrecognized type: {kind}")),
        Value::Bool(_) if kind != "bool" => Err(format!("unrecognized type: {kind}")),
        Value::Int(_) | Value::Float(_) if kind == "bool" => Err(format!("unrecognized type: {kind}")),
        Value::Int(_) if kind == "string" => Err(format!("cannot convert int64 to {}", field.element_go_type())),
        _ => Ok(()),
    }
}

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch to an object of type `ty`.
pub fn strategic(target: &mut Value, patch: &Value, ty: TypeRef) -> Result<()> {
    let Value::Map(patch) = patch else { return Err(not_a_map("", patch)) };
    if !matches!(target, Value::Map(_)) {
        *target = Value::map();
    }
    merge_map(target.as_map_mut().expect("just made a map"), patch, Some(ty))
}

/// A malformed patch: a 500 with no reason.
fn malformed(message: String) -> Status {
    Status::new(500, "", message)
}

/// What the schema says about one member.
#[derive(Clone, Copy, Default)]
struct Facts {
    /// The type of the value, or of a list's or map's elements.
    element: Option<TypeRef>,
    merges: bool,
    merge_key: Option<&'static str>,
    is_map: bool,
}

fn facts(ty: Option<TypeRef>, name: &str) -> Facts {
    let Some(field) = ty.and_then(|t| t.field(name)) else { return Facts::default() };
    let element = match field.kind {
        Kind::Message(t) => Some(t),
        _ => None,
    };
    let merges = field.patch_strategy.split(',').any(|s| s == "merge");
    let merge_key = Some(field.patch_merge_key).filter(|k| !k.is_empty());
    Facts { element, merges, merge_key, is_map: field.map }
}

fn merge_map(target: &mut Map, patch: &Map, ty: Option<TypeRef>) -> Result<()> {
    if let Some(directive) = patch.get(PATCH) {
        match directive.as_str() {
            Some("replace") => {
                *target = Map::new();
                for (key, value) in patch.iter().filter(|(k, _)| *k != PATCH) {
                    target.insert(key.to_string(), value.clone());
                }
            }
            Some("delete") => *target = Map::new(),
            _ => return Err(unknown_directive(directive, patch)),
        }
        return Ok(());
    }
    retain_keys(target, patch)?;
    for (key, value) in patch.iter() {
        if key == RETAIN {
            continue;
        }
        if let Some(name) = key.strip_prefix(DELETE) {
            let unwanted = value.as_list().unwrap_or(&[]);
            if let Some(Value::List(list)) = target.get_mut(name) {
                list.retain(|v| !unwanted.contains(v));
            }
            continue;
        }
        if let Some(name) = key.strip_prefix(ORDER) {
            // Where the patch holds the list, too, that member does the work.
            if !patch.contains_key(name) {
                merge_list(target, name, &[], Some(value), facts(ty, name))?;
            }
            continue;
        }
        let facts = facts(ty, key);
        match value {
            Value::Null => drop(target.remove(key)),
            Value::Map(changes) => match target.get_mut(key) {
                Some(Value::Map(old)) if facts.is_map => merge_values(old, changes, facts.element)?,
                Some(Value::Map(old)) => merge_map(old, changes, facts.element)?,
                Some(_) | None => drop(target.insert(key.to_string(), fresh(value)?)),
            },
            Value::List(items) if facts.merges => {
                let order = patch.get(&format!("{ORDER}{key}"));
                merge_list(target, key, items, order, facts)?;
            }
            value => drop(target.insert(key.to_string(), fresh(value)?)),
        }
    }
    Ok(())
}

/// A `map<string, T>`: members are not fields.
fn merge_values(target: &mut Map, patch: &Map, element: Option<TypeRef>) -> Result<()> {
    if patch.contains_key(PATCH) {
        return merge_map(target, patch, None);
    }
    for (key, value) in patch.iter() {
        match (value, target.get_mut(key)) {
            (Value::Null, _) => drop(target.remove(key)),
            (Value::Map(changes), Some(Value::Map(old))) => merge_map(old, changes, element)?,
            (value, _) => drop(target.insert(key.to_string(), fresh(value)?)),
        }
    }
    Ok(())
}

fn unknown_directive(directive: &Value, map: &Map) -> Status {
    malformed(format!("unknown patch type: {} in map: {}", go(directive), go_map(map)))
}

fn retain_keys(target: &mut Map, patch: &Map) -> Result<()> {
    let Some(retain) = patch.get(RETAIN) else { return Ok(()) };
    let keep = retain.as_list().ok_or_else(|| Status::bad_request("invalid patch format of retainKeys"))?;
    let is_kept = |key: &str| keep.iter().any(|k| k.as_str() == Some(key));
    if patch.iter().any(|(k, v)| !k.starts_with('$') && !v.is_null() && !is_kept(k)) {
        return Err(Status::bad_request("invalid patch format of retainKeys"));
    }
    target.retain(|key, _| is_kept(key));
    Ok(())
}

/// What a patch value becomes where nothing was: nulls and directives gone.
fn fresh(value: &Value) -> Result<Value> {
    Ok(match value {
        Value::Map(map) => {
            if let Some(directive) = map.get(PATCH) {
                match directive.as_str() {
                    Some("delete") => return Ok(Value::map()),
                    Some("replace") => {}
                    _ => return Err(unknown_directive(directive, map)),
                }
            }
            let mut out = Map::with_capacity(map.len());
            for (key, v) in map.iter().filter(|(k, v)| !k.starts_with('$') && !v.is_null()) {
                out.insert(key.to_string(), fresh(v)?);
            }
            Value::Map(out)
        }
        Value::List(list) => {
            let kept = list.iter().filter(|v| v.get(PATCH).is_none());
            Value::List(kept.map(fresh).collect::<Result<_>>()?)
        }
        other => other.clone(),
    })
}

fn merge_list(target: &mut Map, name: &str, items: &[Value], order: Option<&Value>, facts: Facts) -> Result<()> {
    let old: Vec<Value> = target.get(name).and_then(Value::as_list).unwrap_or(&[]).to_vec();
    if items.is_empty() && old.is_empty() {
        if order.is_none() {
            target.insert(name.to_string(), Value::List(Vec::new()));
        }
        return Ok(());
    }
    if let Some(some) = old.iter().chain(items).find(|v| !v.is_null()) {
        let same = |v: &Value| std::mem::discriminant(v) == std::mem::discriminant(some);
        if !old.iter().chain(items).all(same) {
            let shown: Vec<String> = [&old[..], items].iter().map(|l| go(&Value::List(l.to_vec()))).collect();
            return Err(malformed(format!("list element types are not identical: [{}]", shown.join(" "))));
        }
    }
    let merged = match facts.merge_key {
        Some(key) => merge_objects(old, items, order, key, facts.element)?,
        None => merge_primitives(old, items, order),
    };
    target.insert(name.to_string(), merged);
    Ok(())
}

fn merge_primitives(old: Vec<Value>, items: &[Value], order: Option<&Value>) -> Value {
    let wanted = order.and_then(Value::as_list).unwrap_or(items).to_vec();
    let mut merged = old.clone();
    for item in items.iter().filter(|i| !old.contains(i)) {
        if !merged.contains(item) {
            merged.push(item.clone());
        }
    }
    Value::List(ordered(merged, &wanted, &old, |a, b| a == b))
}

fn merge_objects(old: Vec<Value>, items: &[Value], order: Option<&Value>, key: &str, element: Option<TypeRef>) -> Result<Value> {
    let missing_key = |item: &Value| malformed(format!("map: {} does not contain declared merge key: {key}", go(item)));
    let mut kept: Vec<&Value> = Vec::new();
    let mut merged = old.clone();
    let mut replace = false;
    for item in items {
        match (item.get(PATCH), item) {
            (None, _) => kept.push(item),
            (Some(Value::Str(s)), _) if s == "replace" => replace = true,
            (Some(Value::Str(s)), _) if s == "delete" => {
                let value = item.get(key).ok_or_else(|| missing_key(item))?;
                merged.retain(|m| m.get(key) != Some(value));
            }
            (Some(directive), Value::Map(map)) => return Err(unknown_directive(directive, map)),
            (Some(directive), _) => return Err(malformed(format!("unknown patch type: {}", go(directive)))),
        }
    }
    if replace {
        return Ok(Value::List(kept.into_iter().map(fresh).collect::<Result<_>>()?));
    }
    if let Some(order) = order {
        check_order(&kept, order, key)?;
    }
    for item in &kept {
        let value = item.get(key).ok_or_else(|| missing_key(item))?;
        match (merged.iter_mut().find(|m| m.get(key) == Some(value)), item) {
            (Some(Value::Map(target)), Value::Map(changes)) => merge_map(target, changes, element)?,
            (Some(_), _) | (None, _) => merged.push(fresh(item)?),
        }
    }
    let wanted: Vec<Value> = match order.and_then(Value::as_list) {
        Some(order) => order.to_vec(),
        None => kept.into_iter().cloned().collect(),
    };
    Ok(Value::List(ordered(merged, &wanted, &old, |a, b| a.get(key) == b.get(key))))
}

/// The patch list must be a subsequence of `$setElementOrder`.
fn check_order(items: &[&Value], order: &Value, key: &str) -> Result<()> {
    let list = order.as_list().unwrap_or(&[]);
    let mut rest = list.iter();
    if items.iter().all(|item| rest.any(|o| o.get(key) == item.get(key))) {
        return Ok(());
    }
    let shown = go(&Value::List(items.iter().map(|v| (*v).clone()).collect()));
    Err(malformed(format!("The order in patch list:\n{shown}\n doesn't match $setElementOrder list:\n{}\n", go(order))))
}

/// Items named by `wanted` in that order, merged with the others in server order: an other item goes first only where the
/// server's list had it before.
fn ordered(merged: Vec<Value>, wanted: &[Value], server: &[Value], same: impl Fn(&Value, &Value) -> bool) -> Vec<Value> {
    let place = |list: &[Value], v: &Value| list.iter().position(|w| same(w, v));
    let (mut patch, others): (Vec<Value>, Vec<Value>) = merged.into_iter().partition(|v| place(wanted, v).is_some());
    patch.sort_by_key(|v| place(wanted, v));
    let mut out = Vec::with_capacity(patch.len() + others.len());
    let (mut left, mut right) = (others.into_iter().peekable(), patch.into_iter().peekable());
    loop {
        let take_left = match (left.peek(), right.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(l), Some(r)) => matches!((place(server, l), place(server, r)), (Some(a), Some(b)) if a < b),
        };
        out.extend(if take_left { left.next() } else { right.next() });
    }
}

/// How Go's `%v` shows a tree; some messages contain it.
pub fn go(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Int(i) => i.to_string(),
        Value::Float(f) => f.to_string(),
        Value::Str(s) => s.clone(),
        Value::List(l) => format!("[{}]", l.iter().map(go).collect::<Vec<_>>().join(" ")),
        Value::Map(m) => go_map(m),
    }
}

fn go_map(map: &Map) -> String {
    format!("map[{}]", map.iter().map(|(k, v)| format!("{k}:{}", go(v))).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::schema;
    use crate::value;

    #[test]
    fn json_patches() {
        let object = || value!({"data": {"a": "1", "b": "2"}, "list": [1, 2, 3]});
        for (patch, want) in [
            (
                value!([{"op": "add", "path": "/data/c", "value": "3"}]),
                Some(value!({"data": {"a": "1", "b": "2", "c": "3"}, "list": [1, 2, 3]})),
            ),
            (value!([{"op": "remove", "path": "/data/a"}]), Some(value!({"data": {"b": "2"}, "list": [1, 2, 3]}))),
            (value!([{"op": "remove", "path": "/data/zz"}]), None),
            (value!([{"op": "replace", "path": "/data/a", "value": "x"}]), Some(value!({"data": {"a": "x", "b": "2"}, "list": [1, 2, 3]}))),
            (value!([{"op": "add", "path": "/list/-", "value": 4}]), Some(value!({"data": {"a": "1", "b": "2"}, "list": [1, 2, 3, 4]}))),
            (value!([{"op": "add", "path": "/list/1", "value": 9}]), Some(value!({"data": {"a": "1", "b": "2"}, "list": [1, 9, 2, 3]}))),
            (value!([{"op": "add", "path": "/list/9", "value": 9}]), None),
            (value!([{"op": "remove", "path": "/list/-1"}]), Some(value!({"data": {"a": "1", "b": "2"}, "list": [1, 2]}))),
            (
                value!([{"op": "move", "from": "/data/a", "path": "/data/z"}]),
                Some(value!({"data": {"b": "2", "z": "1"}, "list": [1, 2, 3]})),
            ),
            (value!([{"op": "copy", "path": "/data/c"}]), None),
            (value!([{"op": "test", "path": "/data/a", "value": "7"}]), None),
            (value!([{"op": "test", "path": "/data/q", "value": null}]), Some(object())),
            (
                value!([{"op": "add", "path": "data/a", "value": "1"}]),
                Some(value!({"a": "1", "data": {"a": "1", "b": "2"}, "list": [1, 2, 3]})),
            ),
        ] {
            let mut target = object();
            match json_patch(&mut target, &patch) {
                Ok(()) => assert_eq!(Some(target), want, "{patch}"),
                Err(status) => assert_eq!((status.code, want), (422, None), "{patch}"),
            }
        }
        let status = json_patch(&mut object(), &value!({"op": "add"})).unwrap_err();
        assert_eq!(status.message, "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp");
    }

    #[test]
    fn merge_patches() {
        let mut target = value!({"a": {"b": 1, "c": 2}, "l": [1]});
        merge_patch(&mut target, &value!({"a": {"b": null, "d": {"x": null, "y": 1}}, "l": [2, 3]})).unwrap();
        assert_eq!(target, value!({"a": {"c": 2, "d": {"y": 1}}, "l": [2, 3]}));
        assert_eq!(merge_patch(&mut target, &Value::Null).unwrap_err().message, "Invalid JSON Patch");
    }

    /// Patches of a pod's spec; container names stand for containers.
    #[test]
    fn strategic_patches_of_containers() {
        let ty = schema::type_of("v1", "Pod").unwrap();
        let pod = || value!({"spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "args": ["x"]}, {"name": "d"}]}});
        let names = |v: &Value, path: &[&str]| -> String {
            v.list_at(path).iter().map(|c| c.str_at(&["name"]).to_string()).collect::<Vec<_>>().join(" ")
        };
        for (patch, want) in [
            (value!([{"name": "n"}]), "n c d"),
            (value!([{"name": "d", "$patch": "delete"}]), "c"),
            (value!([{"$patch": "replace"}, {"name": "only"}]), "only"),
            (value!([{"name": "d", "image": "x"}]), "c d"),
        ] {
            let mut target = pod();
            strategic(&mut target, &value!({"spec": {"containers": patch}}), ty).unwrap();
            assert_eq!(names(&target, &["spec", "containers"]), want);
        }
        let mut target = pod();
        let order =
            value!({"spec": {"$setElementOrder/containers": [{"name": "n"}, {"name": "d"}, {"name": "c"}], "containers": [{"name": "n"}]}});
        strategic(&mut target, &order, ty).unwrap();
        assert_eq!(names(&target, &["spec", "containers"]), "n d c");
        let mut target = pod();
        let env = value!({"spec": {"containers": [{"name": "c", "args": ["y", "z"], "env": [{"name": "B", "value": "9"}, {"name": "Z", "value": "3"}]}]}});
        strategic(&mut target, &env, ty).unwrap();
        let c = &target.list_at(&["spec", "containers"])[0];
        assert_eq!(names(c, &["env"]), "A B Z");
        assert_eq!(c.get("args"), Some(&value!(["y", "z"])), "atomic lists are replaced");
    }

    #[test]
    fn strategic_directives() {
        let ty = schema::type_of("apps/v1", "Deployment").unwrap();
        let object = || value!({"metadata": {"labels": {"a": "1"}, "finalizers": ["x/a", "x/b"]}, "spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let apply = |patch: Value| {
            let mut target = object();
            strategic(&mut target, &patch, ty).map(|()| target)
        };
        let after = apply(value!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}})).unwrap();
        assert_eq!(after.at(&["spec", "strategy"]), Some(&value!({"type": "Recreate"})));
        let after = apply(value!({"metadata": {"labels": {"$patch": "replace", "z": "1"}}})).unwrap();
        assert_eq!(after.at(&["metadata", "labels"]), Some(&value!({"z": "1"})));
        let after = apply(value!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x/a"]}})).unwrap();
        assert_eq!(after.at(&["metadata", "finalizers"]), Some(&value!(["x/b"])));
        let status = apply(value!({"metadata": {"labels": {"$patch": "frob"}}})).unwrap_err();
        assert_eq!((status.code, status.message.as_str()), (500, "unknown patch type: frob in map: map[$patch:frob]"));
        let status = apply(value!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}})).unwrap_err();
        assert_eq!((status.code, status.message.as_str()), (400, "invalid patch format of retainKeys"));
    }
}
