//! Turns the fact tables under `src/api/facts` into Rust statics and one packed blob in `OUT_DIR`.
//!
//! `resources.tsv` becomes `resources.rs` (included by `api/resource.rs`); `types.tsv` becomes `types.txt`, the same rows with
//! type names replaced by numbers, indexed once by `api/schema.rs`. The words of `kubectl explain` come from the source of the
//! typed-API crate into `descriptions.gz`. Standard library, and the compressor the program has anyway.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() {
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let facts = Path::new("src/api/facts");
    println!("cargo::rerun-if-changed=src/api/facts");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=Cargo.lock");
    let resources = read(&facts.join("resources.tsv"));
    std::fs::write(Path::new(&out).join("resources.rs"), resource_statics(&resources)).expect("OUT_DIR is writable");
    std::fs::write(Path::new(&out).join("types.txt"), packed_types(&facts.join("types.tsv"))).expect("OUT_DIR is writable");
    std::fs::write(Path::new(&out).join("descriptions.gz"), descriptions()).expect("OUT_DIR is writable");
}

/// What the typed-API crate says about types and members: `type \t member \t text` a line, compressed; nothing if its source
/// cannot be found.
fn descriptions() -> Vec<u8> {
    let Some(source) = typed_api_source() else {
        println!("cargo::warning=the source of k8s-openapi was not found: kubectl explain will have no words");
        return Vec::new();
    };
    let mut files = Vec::new();
    rust_files(&source.join("src/v1_36"), &mut files);
    files.sort();
    let mut lines = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        describe(&text, &mut lines);
    }
    let text: String = lines.into_iter().collect();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(9));
    std::io::Write::write_all(&mut packed, text.as_bytes()).and_then(|()| packed.finish()).expect("memory takes all bytes")
}

/// Where cargo unpacked the crate; what is vendored elsewhere, cargo itself knows.
fn typed_api_source() -> Option<PathBuf> {
    let lock = std::fs::read_to_string("Cargo.lock").ok()?;
    let version = lock.split("name = \"k8s-openapi\"\nversion = \"").nth(1)?.split('"').next()?;
    let home =
        std::env::var("CARGO_HOME").map(PathBuf::from).or_else(|_| std::env::var("HOME").map(|h| Path::new(&h).join(".cargo"))).ok()?;
    let registries = std::fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten();
    let mut unpacked = registries.map(|r| r.path().join(format!("k8s-openapi-{version}"))).filter(|p| p.is_dir());
    unpacked.next().or_else(|| {
        let mut cargo = std::process::Command::new(std::env::var("CARGO").ok()?);
        let target = std::env::var("TARGET").ok()?;
        let output = cargo.args(["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", &target]).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let paths = text.split("\"manifest_path\":\"").skip(1).filter_map(|rest| rest.split('"').next());
        let is_crate = |p: &&Path| p.parent().and_then(Path::file_name).is_some_and(|n| n.to_string_lossy().starts_with("k8s-openapi"));
        paths.map(Path::new).find(is_crate)?.parent().map(Path::to_path_buf)
    })
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// The crate's generated schemas are laid out one member a line; depth of indentation tells types from members.
fn describe(source: &str, lines: &mut BTreeSet<String>) {
    let (mut type_name, mut member, mut names_next) = (String::new(), String::new(), false);
    for line in source.lines() {
        let code = line.trim_start();
        let depth = line.len() - code.len();
        if names_next {
            type_name = literal(code).unwrap_or_default();
            member.clear();
        }
        names_next = code.starts_with("fn schema_name()");
        if depth == 16 && code.starts_with('"') {
            member = literal(code).unwrap_or_default();
        }
        let text = match (depth, code.strip_prefix("\"description\": "), code.split_once(".insert(\"description\".into(), ")) {
            (12, Some(text), _) => Some((literal(text), "")),
            (20, Some(text), _) | (20, _, Some((_, text))) => Some((literal(text), member.as_str())),
            _ => None,
        };
        if let (Some((Some(text), member)), false) = (text, type_name.is_empty()) {
            lines.insert(format!("{type_name}\t{member}\t{}\n", text.replace('\t', " ").replace('\n', "\\n")));
        }
    }
}

/// The Rust string literal a piece of code begins with.
fn literal(code: &str) -> Option<String> {
    let mut chars = code.strip_prefix('"')?.chars();
    let mut text = String::new();
    loop {
        match chars.next()? {
            '"' => return Some(text),
            '\\' => match chars.next()? {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                'r' => {}
                'u' => {
                    let digits: String = chars.by_ref().skip(1).take_while(|c| *c != '}').collect();
                    text.push(u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32)?);
                }
                c => text.push(c),
            },
            c => text.push(c),
        }
    }
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
        // Names stand there as steps of FieldsV1, which end in the name.
        if row[0] == "F" {
            row[1] = format!("f:{}", row[1]);
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
