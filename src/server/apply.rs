//! Pure: who owns which fields: `metadata.managedFields` as every write leaves it, and server-side apply.
//!
//! A write is compared with what was there, one pass over both trees along the schema; what it set becomes its manager's and
//! nobody else's, what it removed is nobody's ([`track`]). An apply merges a configuration into the object, takes out what its
//! manager applied before and now leaves out, and is refused where others own what it changes ([`apply`]). Objects that exist
//! without managed fields stay untracked until somebody applies to them. Parts: [`set`] the sets, [`typed`] the walks,
//! [`managers`] the entries, [`scale`] ownership across `/scale`. Knows no kinds: [`Versions`] brings types and conversions.

pub mod managers;
pub mod scale;
pub mod set;
pub mod typed;

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::api::json;
use crate::api::schema::{self, TypeRef};
use crate::api::status::{Result, Status};
use crate::api::value::{Map, Value};

use managers::{Entry, Identity, Operation};
use set::Set;
use typed::{Diff, Node};

/// Bytes of a manager's name.
const MANAGER_MAX: usize = 128;
/// Metadata nobody owns, and members that say what the object is.
const UNOWNED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];
const MANAGED: &[&str] = &["metadata", "managedFields"];
/// Owns what an untracked object held when it was first applied to.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The manager that moves from client-side apply to server-side apply without conflicts.
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &[&str] = &["metadata", "annotations", "kubectl.kubernetes.io/last-applied-configuration"];
/// Bytes of an object's annotations.
const ANNOTATIONS_MAX: usize = 256 << 10;

pub type Paths = &'static [&'static [&'static str]];

/// What writes through an object or one of its subresources can own.
#[derive(Clone, Copy, Debug)]
pub enum Ownable {
    /// All but these and what is below them, which such writes cannot set.
    Except(Paths),
    /// Only these and what is below them; `*` is any step.
    Only(Paths),
}

/// The versions of an object's group-resource.
pub trait Versions {
    /// `None`: not served (any more).
    fn type_of(&self, api_version: &str) -> Option<TypeRef>;
    fn convert(&self, tree: &Value, from: &str, to: &str) -> Option<Value>;
    fn ownable(&self) -> Ownable;
}

/// Who writes, and through what.
#[derive(Clone, Copy)]
pub struct Write<'a> {
    pub manager: &'a str,
    pub subresource: &'a str,
    pub api_version: &'a str,
    /// RFC 3339, in seconds.
    pub now: &'a str,
}

impl Write<'_> {
    fn identity(&self, operation: Operation) -> Identity {
        Identity::new(if self.manager.is_empty() { "unknown" } else { self.manager }, operation, self.api_version, self.subresource)
    }
}

impl Ownable {
    fn filter(self, set: &mut Set) {
        match self {
            Ownable::Except(paths) => paths.iter().for_each(|path| set.cut(path)),
            Ownable::Only(paths) => set.keep(paths),
        }
    }
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

fn strip(set: &mut Set) {
    UNOWNED.iter().for_each(|path| set.forget(path));
}

/// One change of one object, compared in the versions that are asked for.
struct Change<'a> {
    versions: &'a dyn Versions,
    /// The version of both trees.
    form: &'a str,
    old: Option<&'a Value>,
    new: &'a Value,
    /// `None`: the version is not served.
    seen: BTreeMap<String, Option<Diff>>,
}

impl<'a> Change<'a> {
    fn new(versions: &'a dyn Versions, form: &'a str, old: Option<&'a Value>, new: &'a Value) -> Change<'a> {
        Change { versions, form, old, new, seen: BTreeMap::new() }
    }

    fn diff(&mut self, api_version: &str) -> std::result::Result<Option<&Diff>, String> {
        if !self.seen.contains_key(api_version) {
            let diff = self.compare(api_version)?;
            self.seen.insert(api_version.to_string(), diff);
        }
        Ok(self.seen[api_version].as_ref())
    }

    fn compare(&self, api_version: &str) -> std::result::Result<Option<Diff>, String> {
        let Some(ty) = self.versions.type_of(api_version) else { return Ok(None) };
        let in_version = |tree: &'a Value| match api_version == self.form {
            true => Some(Cow::Borrowed(tree)),
            false => self.versions.convert(tree, self.form, api_version).map(Cow::Owned),
        };
        let nothing = || Cow::Owned(Value::Map(schema::zero_struct(ty)));
        let (Some(old), Some(new)) = (self.old.map_or_else(|| Some(nothing()), in_version), in_version(self.new)) else {
            return Ok(None);
        };
        let mut diff = typed::compare(Node::Type(ty), Some(&old), Some(&new))?;
        self.versions.ownable().filter(&mut diff.set);
        self.versions.ownable().filter(&mut diff.removed);
        Ok(Some(diff))
    }

    /// Takes what changed and what is gone from everybody but `me`. Entries of versions that are no longer served go.
    fn settle(&mut self, entries: &mut Vec<Entry>, me: Option<&Identity>, force: bool) -> std::result::Result<(), Refusal> {
        let is_other = |e: &Entry| Some(&e.identity) != me;
        let mut conflicts = Vec::new();
        let mut gone = Vec::new();
        for entry in entries.iter().filter(|e| is_other(e)) {
            match self.diff(&entry.api_version).map_err(|e| Refusal::broken("failed to compare objects", e))? {
                None => gone.push(entry.identity.clone()),
                Some(_) if force => {}
                Some(diff) => {
                    let taken = entry.set().intersection(&diff.set);
                    if !taken.is_empty() {
                        conflicts.push((entry.identity.clone(), taken));
                    }
                }
            }
        }
        if !conflicts.is_empty() {
            return Err(Refusal::Conflicts(conflicts));
        }
        entries.retain(|e| !gone.contains(&e.identity));
        for entry in entries.iter_mut().filter(|e| is_other(e)) {
            if let Some(Some(diff)) = self.seen.get(&entry.api_version) {
                entry.subtract(&diff.set);
                entry.subtract(&diff.removed);
            }
        }
        entries.retain(|e| !e.is_empty());
        Ok(())
    }
}

/// Sets `metadata.managedFields` of `new`, which holds what the client sent, if anything. Both trees are of version `form`.
pub fn track(old: Option<&Value>, new: &mut Value, write: &Write, form: &str, versions: &dyn Versions) {
    let sent = new.remove(MANAGED);
    let kept = old.and_then(|o| o.at(MANAGED));
    let chosen = start(sent.as_ref(), kept, !write.subresource.is_empty());
    let is_empty = chosen.as_ref().is_none_or(|v| v.as_list().is_none_or(<[Value]>::is_empty));
    if is_empty && old.is_some() {
        return;
    }
    if let Some(entries) = tracked(old, new, chosen.as_deref(), write, form, versions) {
        match entries {
            Tracked::Same => new.set(MANAGED, chosen.map(Cow::into_owned).unwrap_or_default()),
            Tracked::Entries(entries) if entries.is_empty() => {}
            Tracked::Entries(entries) => new.set(MANAGED, managers::encode(entries)),
        }
    }
}

enum Tracked {
    Same,
    Entries(Vec<Entry>),
}

/// `None`: the objects cannot be compared, and nobody owns anything.
fn tracked(
    old: Option<&Value>,
    new: &Value,
    chosen: Option<&Value>,
    write: &Write,
    form: &str,
    versions: &dyn Versions,
) -> Option<Tracked> {
    let mut change = Change::new(versions, form, old, new);
    let is_unchanged = change.diff(write.api_version).ok()??.is_empty();
    let items = chosen.and_then(Value::as_list).unwrap_or(&[]);
    if is_unchanged && !items.is_empty() && items.iter().all(|e| versions.type_of(e.str_at(&["apiVersion"])).is_some()) {
        return Some(Tracked::Same);
    }
    let mut entries = managers::decode(chosen).unwrap_or_default();
    if entries.is_empty() && old.is_some() {
        return Some(Tracked::Entries(entries));
    }
    change.settle(&mut entries, None, true).ok()?;
    let mut set = change.seen.remove(write.api_version).flatten().map(|d| d.set).unwrap_or_default();
    strip(&mut set);
    if !set.is_empty() {
        take(&mut entries, write, set);
    }
    managers::cap(&mut entries);
    Some(Tracked::Entries(entries))
}

/// Adds what a write set to its manager's entry.
fn take(entries: &mut Vec<Entry>, write: &Write, set: Set) {
    let identity = write.identity(Operation::Update);
    match entries.iter_mut().find(|e| e.identity == identity) {
        Some(entry) => {
            entry.add(set);
            entry.time = write.now.to_string();
        }
        None => entries.push(Entry::new(identity, write.api_version, write.now, set)),
    }
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
        kept if !managers::are_well_formed(&sent) => kept,
        _ => Some(Cow::Owned(sent)),
    }
}

/// `new` is `old` but for the times in its managed fields: the write took nothing after all.
pub fn differ_in_times_only(new: &Value, old: &Value) -> bool {
    let without = |o: &Value| {
        let mut entries = o.list_at(MANAGED).to_vec();
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

// --- apply

/// Why an apply cannot be.
enum Refusal {
    Conflicts(Vec<(Identity, Set)>),
    Broken(Status),
}

impl Refusal {
    /// A plain error of upstream's: a 500 without a reason.
    fn broken(doing: &str, why: String) -> Refusal {
        Refusal::Broken(Status::new(500, "", format!("{doing}: {why}")))
    }

    fn status(self) -> Status {
        match self {
            Refusal::Broken(status) => status,
            Refusal::Conflicts(conflicts) => conflict(conflicts),
        }
    }
}

/// What an apply is about: the configuration, and the kind it must be of.
pub struct Config<'a> {
    pub tree: &'a Value,
    pub kind: &'a str,
    pub force: bool,
}

/// The object after an apply, in the version of the write, as merged (not yet put through the schema), with its managed
/// fields. `live` is of that version, too; without it the configuration becomes a new object.
pub fn apply(live: Option<&Value>, config: &Config, write: &Write, versions: &dyn Versions) -> Result<Value> {
    let ty = versions.type_of(write.api_version).ok_or_else(|| Status::internal(format!("no schema for {}", write.api_version)))?;
    check_kind(config, write)?;
    let managed = live.and_then(|l| l.at(MANAGED));
    let mut entries = managers::decode(managed).ok_or_else(|| Status::new(500, "", "failed to decode managed fields"))?;
    let mut base = live.cloned().unwrap_or_else(|| Value::Map(schema::zero_struct(ty)));
    base.set(&["apiVersion"], write.api_version);
    base.set(&["kind"], config.kind);
    base.remove(MANAGED);
    if entries.is_empty() && live.is_some() {
        let mut change = Change::new(versions, write.api_version, None, &base);
        let diff =
            change.diff(write.api_version).map_err(|e| Refusal::broken("failed to create manager for existing fields", e).status())?;
        let mut set = diff.map(|d| d.set.clone()).unwrap_or_default();
        strip(&mut set);
        if !set.is_empty() {
            take(&mut entries, &Write { manager: BEFORE_FIRST_APPLY, ..*write }, set);
        }
    }
    if config.tree.at(MANAGED).is_some_and(|m| matches!(m, Value::List(_))) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    typed::check(Node::Type(ty), config.tree).map_err(|e| Refusal::broken(&not_typed(config, write), e).status())?;
    let attempt = |force| attempt(&base, config, entries.clone(), write, ty, versions, force);
    let (merged, entries) = match attempt(config.force) {
        Err(Refusal::Conflicts(conflicts)) if write.manager == KUBECTL => match conflicts_left(&base, conflicts, write, ty) {
            left if left.is_empty() => attempt(true).map_err(Refusal::status)?,
            left => return Err(conflict(left)),
        },
        outcome => outcome.map_err(Refusal::status)?,
    };
    let mut object = merged.unwrap_or(base);
    if !entries.is_empty() {
        object.set(MANAGED, managers::encode(entries));
    }
    if write.manager == KUBECTL && !object.str_at(LAST_APPLIED).is_empty() {
        set_last_applied(&mut object, config.tree);
    }
    Ok(object)
}

fn check_kind(config: &Config, write: &Write) -> Result<()> {
    let (version, kind) = (config.tree.str_at(&["apiVersion"]), config.tree.str_at(&["kind"]));
    if version == write.api_version && kind == config.kind {
        return Ok(());
    }
    let shown = match version.matches('/').count() {
        0 => format!("/{version}, Kind={kind}"),
        1 => format!("{version}, Kind={kind}"),
        _ => "/, Kind=".to_string(),
    };
    Err(Status::bad_request(format!("invalid object type: {shown}")))
}

fn not_typed(config: &Config, write: &Write) -> String {
    let (namespace, name) = (config.tree.str_at(&["metadata", "namespace"]), config.tree.str_at(&["metadata", "name"]));
    let group = if write.api_version.contains('/') { "" } else { "/" };
    format!("failed to create typed patch object ({namespace}/{name}; {group}{}, Kind={})", write.api_version, config.kind)
}

/// Merged, pruned, and settled with the others. No tree: nothing changed.
fn attempt(
    base: &Value,
    config: &Config,
    mut entries: Vec<Entry>,
    write: &Write,
    ty: TypeRef,
    versions: &dyn Versions,
    force: bool,
) -> std::result::Result<(Option<Value>, Vec<Entry>), Refusal> {
    let node = Node::Type(ty);
    let merged = typed::merge(node, Some(base), Some(config.tree)).map_err(|e| Refusal::broken("failed to merge config", e))?;
    let merged = merged.unwrap_or_else(Value::map);
    let me = write.identity(Operation::Apply);
    let last = entries.iter().position(|e| e.identity == me).map(|i| entries.remove(i));
    let mut set = typed::field_set(node, config.tree);
    versions.ownable().filter(&mut set);
    entries.push(Entry::new(me.clone(), write.api_version, last.as_ref().map_or("", |l| &l.time), set));
    let new = match last {
        Some(last) => prune(merged, &last, &entries, write.api_version, versions),
        None => merged,
    };
    Change::new(versions, write.api_version, Some(base), &new).settle(&mut entries, Some(&me), force)?;
    let is_changed = new != *base;
    if let Some(own) = entries.iter_mut().find(|e| e.identity == me) {
        let mut set = own.set();
        strip(&mut set);
        own.replace(set);
        if is_changed {
            own.time = write.now.to_string();
        }
    }
    entries.retain(|e| !e.is_empty());
    Ok((is_changed.then_some(new), entries))
}

/// Takes out what the manager applied before, applies no longer, and nobody else owns. The last entry is its new one.
fn prune(merged: Value, last: &Entry, entries: &[Entry], form: &str, versions: &dyn Versions) -> Value {
    let Some(ty) = versions.type_of(&last.api_version) else { return merged };
    let named = |ty: TypeRef, set: Set| typed::with_named_fields(Node::Type(ty), set);
    let last_set = named(ty, last.set());
    if let Some(new) = entries.last().filter(|e| e.api_version == last.api_version) {
        let mut dropped = last_set.clone();
        dropped.subtract(&named(ty, new.set()));
        if dropped.is_empty() {
            return merged;
        }
    }
    let convert = |tree: &Value, from: &str, to: &str| if from == to { Some(tree.clone()) } else { versions.convert(tree, from, to) };
    let Some(whole) = convert(&merged, form, &last.api_version) else { return merged };
    let mut pruned = typed::without(Node::Type(ty), &whole, &last_set);
    // What others own comes back, the version of the pruning first.
    let mut owned: BTreeMap<&str, Set> = BTreeMap::new();
    entries.iter().for_each(|e| owned.entry(&e.api_version).or_default().add(e.set()));
    let mut order: Vec<&str> = owned.keys().copied().filter(|v| *v == last.api_version).collect();
    order.extend(owned.keys().copied().filter(|v| *v != last.api_version));
    let (mut all, mut at) = (whole.clone(), last.api_version.as_str());
    for version in order {
        let Some(ty) = versions.type_of(version) else { continue };
        let (Some(all_there), Some(pruned_there)) = (convert(&all, at, version), convert(&pruned, at, version)) else { continue };
        let node = Node::Type(ty);
        let mut lost = named(ty, typed::field_set(node, &all_there));
        lost.subtract(&named(ty, typed::field_set(node, &pruned_there)));
        lost.subtract(&named(ty, owned[version].clone()));
        pruned = typed::without(node, &all_there, &lost);
        (all, at) = (all_there, version);
    }
    // What nobody owns, or nobody who applies, was not the manager's to take.
    let Some(pruned) = convert(&pruned, at, &last.api_version) else { return merged };
    let mut lost = named(ty, typed::field_set(Node::Type(ty), &whole));
    lost.subtract(&named(ty, typed::field_set(Node::Type(ty), &pruned)));
    let result = typed::without(Node::Type(ty), &whole, &lost.intersection(&last_set));
    convert(&result, &last.api_version, form).unwrap_or(merged)
}

/// Conflicts but for those over fields client-side apply set and nobody changed since.
fn conflicts_left(base: &Value, conflicts: Vec<(Identity, Set)>, write: &Write, ty: TypeRef) -> Vec<(Identity, Set)> {
    let node = Node::Type(ty);
    let allowed = || -> Option<Set> {
        let last = json::parse(base.str_at(LAST_APPLIED).as_bytes()).ok()?;
        if last.str_at(&["apiVersion"]) != write.api_version || typed::check(node, &last).is_err() || typed::check(node, base).is_err() {
            return None;
        }
        let mut set = typed::field_set(node, &last);
        let since = typed::compare(node, Some(&last), Some(base)).ok()?;
        set.subtract(&since.set);
        set.subtract(&since.removed);
        Some(set)
    };
    let Some(allowed) = allowed() else { return conflicts };
    let left = conflicts.into_iter().map(|(identity, mut set)| {
        set.subtract(&allowed);
        (identity, set)
    });
    left.filter(|(_, set)| !set.is_empty()).collect()
}

fn conflict(mut conflicts: Vec<(Identity, Set)>) -> Status {
    conflicts.sort_by(|a, b| a.0.cmp(&b.0));
    let shown: Vec<(String, Vec<String>)> = conflicts.iter().map(|(identity, set)| (identity.shown(), set.paths())).collect();
    let count: usize = shown.iter().map(|(_, paths)| paths.len()).sum();
    let message = match shown.as_slice() {
        [(manager, paths)] if count == 1 => format!("Apply failed with 1 conflict: conflict with {manager}: {}", paths[0]),
        all => {
            let groups: Vec<String> =
                all.iter().map(|(manager, paths)| format!("conflicts with {manager}:\n- {}", paths.join("\n- "))).collect();
            format!("Apply failed with {count} conflicts: {}", groups.join("\n"))
        }
    };
    let mut status = Status::new(409, "Conflict", message);
    for (manager, paths) in &shown {
        for path in paths {
            status = status.with_cause("FieldManagerConflict", format!("conflict with {manager}"), path);
        }
    }
    status
}

/// kubectl's annotation keeps up with what it applies, so that it can go back to client-side apply.
fn set_last_applied(object: &mut Value, config: &Value) {
    let mut config = config.clone();
    config.remove(LAST_APPLIED);
    let annotations = object.make_map(&LAST_APPLIED[..2]);
    let text = String::from_utf8(json::to_vec(&config)).expect("JSON is UTF-8");
    annotations.insert(LAST_APPLIED[2], format!("{text}\n"));
    if annotations.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum::<usize>() > ANNOTATIONS_MAX {
        annotations.remove(LAST_APPLIED[2]);
    }
}

#[cfg(test)]
mod tests;
