//! Decisions of controllers and scheduler as data: `tests/cases/controllers/<name>/<case>.yaml` holds objects, a time and a
//! key, and under `actions` what the controller decides. `UPDATE_EXPECT=1` writes what it decides now.
//!
//! A case is YAML: `reconcile: <plural> [namespace/]name`, `now`, `objects`; optionally `seed`, `failure` (code, reason, message
//! of the last job), and `earlier` (objects taken in that many `earlier_ms` before). Absent uids are `uid-<name>`. What is
//! decided must also be allowed by the controller's role of the bootstrap policy.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use coracle::api::controller::{Action, Controller, DeletePolicy, Key, Turn, World};
use coracle::api::events::Note;
use coracle::api::object::Object;
use coracle::api::resource::{self, Resource};
use coracle::api::status::Status;
use coracle::api::time::Time;
use coracle::api::value::{Map, Value};
use coracle::api::world::Change;
use coracle::api::yaml;
use coracle::server::{controllers, scheduler};

/// Folder → controller.
fn controller(folder: &str) -> Box<dyn Controller> {
    match folder {
        "scheduler" => Box::new(scheduler::Scheduler),
        "deployment" => Box::new(controllers::deployment::Deployments),
        "replicaset" => Box::new(controllers::replicaset::REPLICA_SETS),
        "replicationcontroller" => Box::new(controllers::replicaset::REPLICATION_CONTROLLERS),
        "endpointslice" => Box::new(controllers::endpointslice::EndpointSlices),
        "endpointslicemirroring" => Box::new(controllers::endpointslicemirroring::EndpointSliceMirroring),
        "endpoints" => Box::new(controllers::endpoints::Endpoints),
        "garbage_collector" => Box::new(controllers::garbage_collector::GarbageCollector::default()),
        "node_lifecycle" => Box::new(controllers::node_lifecycle::NodeLifecycle),
        "resource_quota" => Box::new(controllers::resource_quota::ResourceQuotas::default()),
        "pod_gc" => Box::new(controllers::pod_gc::PodGc),
        "cluster_role_aggregation" => Box::new(controllers::cluster_role_aggregation::ClusterRoleAggregation),
        "root_ca" => Box::new(controllers::root_ca::RootCa::new("PEM")),
        "claim_protection" => Box::new(controllers::storage_protection::CLAIMS),
        "volume_protection" => Box::new(controllers::storage_protection::VOLUMES),
        "attributes_protection" => Box::new(controllers::storage_protection::ATTRIBUTES),
        "taint_eviction" => Box::new(controllers::taint_eviction::TaintEviction),
        other => panic!("no controller for the folder {other}"),
    }
}

const ACTIONS: &str = "\nactions:";

#[test]
fn controllers_decide_as_their_cases_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/controllers");
    let update = std::env::var("UPDATE_EXPECT").is_ok_and(|v| v == "1");
    let mut wrong = Vec::new();
    let mut count = 0;
    for path in cases(&root) {
        count += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        let (given, expected) = text.split_once(ACTIONS).unwrap_or((text.trim_end(), ""));
        let folder = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let decided = decide(folder, &path, given);
        let shown: String = decided.lines().map(|l| format!("  {l}\n")).collect();
        let shown = if shown.is_empty() { " nothing\n".to_string() } else { format!(" |\n{shown}") };
        if shown == expected {
            continue;
        }
        if update {
            std::fs::write(&path, format!("{given}{ACTIONS}{shown}")).unwrap();
        } else {
            wrong.push(format!("{}\n  decided:{shown}\n  expected:{expected}", path.display()));
        }
    }
    assert!(count > 0 && wrong.is_empty(), "{} of {count} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn cases(root: &Path) -> Vec<PathBuf> {
    let inside = |dir: &Path| -> Vec<PathBuf> { std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect() };
    let mut all: Vec<PathBuf> = inside(root).iter().flat_map(|folder| inside(folder)).collect();
    all.sort();
    all
}

fn decide(folder: &str, path: &Path, given: &str) -> String {
    let (case, _) = yaml::parse(given.as_bytes()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let controller = controller(folder);
    let now = Time::parse(case.str_at(&["now"])).expect("`now` is a time");
    let now_ms = now.seconds * 1000;
    let mut world = World::new(&controller.resources());
    let mut revision = 0;
    let mut take = |world: &mut World, list: &[Value], at: i64| {
        world.tick(at);
        for object in list {
            revision += 1;
            let object = complete(object.clone(), revision);
            let resource = resource::by_kind(object.str_at(&["apiVersion"]), object.str_at(&["kind"])).expect("a served kind");
            world.apply(resource, Change::Set(Object::from_value(resource, &object, revision)));
        }
    };
    take(&mut world, case.list_at(&["earlier"]), now_ms - case.i64_at(&["earlier_ms"]).unwrap_or(0));
    take(&mut world, case.list_at(&["objects"]), now_ms);
    for resource in controller.resources() {
        world.apply(resource, Change::Synced(0));
    }
    world.tick(now_ms);
    let failure = case.at(&["failure"]).map(|f| {
        let reason = if f.str_at(&["reason"]) == "AlreadyExists" { "AlreadyExists" } else { "Forbidden" };
        Status::new(f.i64_at(&["code"]).unwrap_or(403) as u16, reason, f.str_at(&["message"]))
    });
    let turn = Turn { now_ms, seed: case.i64_at(&["seed"]).unwrap_or(1) as u64, failure };
    let actions = controller.reconcile(&key(case.str_at(&["reconcile"])), &world, &turn);
    let role = if folder == "scheduler" { "system:kube-scheduler".into() } else { format!("system:controller:{}", controller.identity()) };
    for (verb, group, what) in actions.iter().filter_map(asks) {
        assert!(is_allowed(&role, verb, group, &what), "{}: {role} may not {verb} {what} of group {group:?}", path.display());
    }
    actions.iter().map(|action| show(action, &world)).collect()
}

/// What the action needs the controller's role for: verb, group, resource with subresource.
fn asks(action: &Action) -> Option<(&'static str, &'static str, String)> {
    let sub = |resource: &Resource, sub: &str| match sub {
        "" => resource.plural.to_string(),
        sub => format!("{}/{sub}", resource.plural),
    };
    Some(match action {
        Action::Create { resource, .. } => ("create", resource.group, sub(resource, "")),
        Action::Update { resource, subresource, .. } => ("update", resource.group, sub(resource, subresource)),
        Action::Patch { key, subresource, .. } => ("patch", key.resource.group, sub(key.resource, subresource)),
        Action::Delete { key, .. } => ("delete", key.resource.group, sub(key.resource, "")),
        Action::Absent { owner, .. } => ("get", owner.resource.group, sub(owner.resource, "")),
        Action::Bind { .. } => ("create", "", "pods/binding".into()),
        Action::Event(_) => ("create", "", "events".into()),
        Action::Empty { .. } | Action::RequeueAfter { .. } => return None,
    })
}

/// Whether the bootstrap policy lets the role do that.
fn is_allowed(role: &str, verb: &str, group: &str, what: &str) -> bool {
    let policy = include_str!("../../src/server/bootstrap/rbac.tsv");
    let group = if group.is_empty() { "core" } else { group };
    let of_role = policy.lines().skip_while(|l| !l.starts_with(&format!("role\t-\t{role}\t"))).skip(1).take_while(|l| l.starts_with('\t'));
    let has = |list: &str, wanted: &str| list.split(',').any(|one| one == "*" || one == wanted);
    of_role
        .map(|l| l.trim_start().split('\t').collect::<Vec<_>>())
        .any(|rule| matches!(rule[..], [verbs, groups, resources, ..] if has(verbs, verb) && has(groups, group) && has(resources, what)))
}

/// `pods default/a`, `nodes n1`.
fn key(text: &str) -> Key {
    let (plural, name) = text.split_once(' ').expect("`reconcile` is a plural and a name");
    let resource = resource::ALL.iter().find(|r| r.plural == plural && r.version == r.storage_version && r.group == r.storage_group);
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Key::new(resource.expect("a served plural"), namespace, name)
}

fn complete(mut object: Value, revision: u64) -> Value {
    let name = object.str_at(&["metadata", "name"]).to_string();
    let metadata = object.make_map(&["metadata"]);
    metadata.insert_default("uid", format!("uid-{name}"));
    metadata.insert_default("creationTimestamp", "2024-01-01T00:00:00Z");
    metadata.insert("resourceVersion", revision.to_string());
    object
}

fn show(action: &Action, world: &World) -> String {
    let at = |key: &Key| format!("{} {}", key.resource.kind, key.name);
    let named = |resource: &Resource, object: &Value| {
        let name = coracle::api::object::Name::new(object.str_at(&["metadata", "namespace"]), object.str_at(&["metadata", "name"]));
        format!("{} {name}", resource.kind)
    };
    let mut out = String::new();
    match action {
        Action::Create { resource, object, .. } => {
            let mut rest = object.clone();
            for path in [&["apiVersion"][..], &["kind"], &["metadata", "name"], &["metadata", "namespace"], &["metadata", "generateName"]] {
                rest.remove(path);
            }
            let _ = writeln!(out, "create {} {rest}", named(resource, object));
        }
        Action::Update { resource, subresource, object, .. } => {
            let (namespace, name) = (object.str_at(&["metadata", "namespace"]), object.str_at(&["metadata", "name"]));
            let old = world.find(resource, namespace, name).map_or(Value::Null, |row| row.value());
            let _ = writeln!(out, "update {} {subresource} {}", named(resource, object), difference(&old, object));
        }
        Action::Patch { key, subresource, patch } => {
            let mut rest = patch.clone();
            let pinned = if rest.remove(&["metadata", "resourceVersion"]).is_some() { " @this" } else { "" };
            rest.remove(&["metadata", "uid"]);
            if rest.map_at(&["metadata"]).is_some_and(Map::is_empty) {
                rest.remove(&["metadata"]);
            }
            let _ = writeln!(out, "patch {}{pinned} {subresource} {rest}", at(key));
        }
        Action::Delete { key, uid, revision, policy, .. } => {
            let pinned = if revision.is_some() { " @this" } else { "" };
            let policy = if *policy == DeletePolicy::Default { String::new() } else { format!(" {policy:?}") };
            let _ = writeln!(out, "delete {} {uid}{pinned}{policy}", at(key));
        }
        Action::Empty { namespace, resources } => {
            let _ = writeln!(out, "empty {namespace} of {} kinds", resources.len());
        }
        Action::Absent { owner, uid } => {
            let _ = writeln!(out, "if absent: {} {uid}", at(owner));
        }
        Action::Bind { pod, node, .. } => {
            let _ = writeln!(out, "bind {} to {node}", at(pod));
        }
        Action::Event(note) => {
            let _ = writeln!(out, "{}", said(note));
        }
        Action::RequeueAfter { ms } => {
            let _ = writeln!(out, "look again in {ms} ms");
        }
    }
    match action {
        Action::Create { then: Some(note), .. }
        | Action::Update { then: Some(note), .. }
        | Action::Delete { then: Some(note), .. }
        | Action::Bind { then: Some(note), .. } => {
            let _ = writeln!(out, "  then {}", said(note));
        }
        _ => {}
    }
    // Trailing spaces do not survive editors.
    out.lines().map(|l| format!("{}\n", l.trim_end())).collect()
}

fn said(note: &Note) -> String {
    format!("event {:?} {} on {}: {}", note.type_, note.reason, note.object.kind, note.message)
}

/// What of `new` is not in `old`; absent members are null.
fn difference(old: &Value, new: &Value) -> Value {
    let (Some(before), Some(after)) = (old.as_map(), new.as_map()) else { return new.clone() };
    let mut out = Map::new();
    for (key, value) in after.iter() {
        match before.get(key) {
            Some(had) if had == value => {}
            Some(had) => drop(out.insert(key.to_string(), difference(had, value))),
            None => drop(out.insert(key.to_string(), value.clone())),
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(key)) {
        out.insert(key.to_string(), Value::Null);
    }
    Value::Map(out)
}
