//! Turns the fact tables under `src/api/facts` into Rust statics and one packed blob in `OUT_DIR`.
//!
//! `resources.tsv` becomes `resources.rs` (included by `api/resource.rs`); `types.tsv` becomes `types.txt`, the same rows with
//! type names replaced by numbers, indexed once by `api/schema.rs`. Standard library only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

fn main() {
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let facts = Path::new("src/api/facts");
    println!("cargo::rerun-if-changed=src/api/facts");
    println!("cargo::rerun-if-changed=build.rs");
    let resources = read(&facts.join("resources.tsv"));
    std::fs::write(Path::new(&out).join("resources.rs"), resource_statics(&resources)).expect("OUT_DIR is writable");
    std::fs::write(Path::new(&out).join("types.txt"), packed_types(&facts.join("types.tsv"))).expect("OUT_DIR is writable");
}

/// The rows without comments, with `=name` in the kind column replaced by `=number` of the type in table order.
fn packed_types(path: &Path) -> String {
    let rows = read(path);
    let names = rows.iter().filter(|r| r[0] == "T").map(|r| r[1].clone());
    let numbers: BTreeMap<String, usize> = names.enumerate().map(|(i, n)| (n, i)).collect();
    let mut text = String::new();
    for mut row in rows {
        if let Some((shape, name)) = row.get(3).filter(|_| row[0] == "F").and_then(|k| k.split_once('=')) {
            let number = numbers.get(name).unwrap_or_else(|| panic!("types.tsv names {name} without describing it"));
            row[3] = format!("{shape}={number}");
        }
        text.push_str(&row.join("\t"));
        text.push('\n');
    }
    text
}

/// The rows of a table: comments and empty lines dropped, split at tabs.
fn read(path: &Path) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let rows = text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
    rows.map(|l| l.split('\t').map(str::to_string).collect()).collect()
}

/// One `pub static` per row without a slash, its subresources inside, and `ALL` in table order.
fn resource_statics(rows: &[Vec<String>]) -> String {
    let mut code = String::new();
    let mut names: Vec<String> = Vec::new();
    let mut taken = BTreeSet::new();
    for row in rows.iter().filter(|r| !r[2].contains('/')) {
        let [group, version, plural, kind, singular, scope, verbs, short, categories, stored] = columns(row);
        // The first of a name in discovery order keeps the short one: core before groups, preferred versions first.
        let short_name = plural.to_uppercase();
        let group_first = format!("{}_{short_name}", group.to_uppercase().replace(['.', '-'], "_"));
        let version_too = format!("{}_{}_{short_name}", group.to_uppercase().replace(['.', '-'], "_"), version.to_uppercase());
        let free = |n: &String| !taken.contains(n);
        let same_group = rows.iter().any(|r| r[0] == group && r[2] == plural && r[1] != version);
        let candidates = if same_group { [short_name, version_too.clone(), version_too] } else { [short_name, group_first, version_too] };
        let name = candidates.into_iter().find(free).expect("resource rows are unique");
        taken.insert(name.clone());
        let (storage_group, storage_version) = stored.split_once('/').expect("stored as is group/version");
        let mut subs = String::new();
        for sub in rows.iter().filter(|r| r[0] == group && r[1] == version && r[2].starts_with(&format!("{plural}/"))) {
            let (sub_group, sub_version) = sub[9].split_once('/').expect("group/version of a subresource kind");
            let sub_name = sub[2].split_once('/').expect("filtered on the slash").1;
            let verbs = list(&sub[6]);
            let kind = &sub[3];
            writeln!(
                subs,
                "        Subresource {{ name: {sub_name:?}, group: {sub_group:?}, version: {sub_version:?}, kind: {kind:?}, verbs: {verbs} }},"
            )
            .expect("writing to a string");
        }
        let namespaced = scope == "Namespaced";
        let (verbs, short, categories) = (list(verbs), list(short), list(categories));
        writeln!(
            code,
            "/// `{plural}` of `{}`.\npub static {name}: Resource = Resource {{\n    group: {group:?},\n    version: {version:?},\n    \
             storage_version: {storage_version:?},\n    storage_group: {storage_group:?},\n    plural: {plural:?},\n    singular: {singular:?},\n    \
             kind: {kind:?},\n    namespaced: {namespaced},\n    short_names: {short},\n    categories: {categories},\n    verbs: {verbs},\n    \
             subresources: &[\n{subs}    ],\n}};\n",
            if group.is_empty() { version.to_string() } else { format!("{group}/{version}") },
        )
        .expect("writing to a string");
        names.push(name);
    }
    let all: Vec<String> = names.iter().map(|n| format!("&{n}")).collect();
    writeln!(
        code,
        "/// Every served built-in resource, in discovery order.\npub static ALL: &[&Resource] = &[\n    {},\n];",
        all.join(",\n    ")
    )
    .expect("writing to a string");
    code
}

fn columns(row: &[String]) -> [&str; 10] {
    let cells: Vec<&str> = row.iter().map(String::as_str).collect();
    cells.try_into().unwrap_or_else(|_| panic!("a row of resources.tsv has ten columns: {row:?}"))
}

fn list(cell: &str) -> String {
    let items: Vec<String> = cell.split(',').filter(|s| !s.is_empty()).map(|s| format!("{s:?}")).collect();
    format!("&[{}]", items.join(", "))
}
