//! The walls of the house, as a test: layers, headers, purity, crates that belong to few files, forgotten test modules.
//!
//! It reads text, so keep re-exports rare. A row of a table below is a decision of DESIGN 2.1; change both together.

use std::path::{Path, PathBuf};

/// Folder → folders of `src/` it may import from. Root leaves may be imported by all.
const LAYERS: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("store", &[]),
    ("runtime", &[]),
    ("net", &["api"]),
    ("server", &["api", "store"]),
    ("agent", &["api", "runtime", "net"]),
];
const LEAVES: &[&str] = &["config", "memory", "pki", "transport", "task", "telemetry"];
const FOLDERS: &[&str] = &["api", "store", "server", "runtime", "net", "agent"];

/// Crate → path prefixes that may name it.
const CRATES: &[(&str, &[&str])] = &[
    ("sled", &["src/store/checkpoint"]),
    ("openraft", &["src/store/raft/"]),
    ("libcontainer", &["src/runtime/shim/"]),
    ("nftables", &["tests/"]),
    ("rustls", &["src/transport.rs"]),
    ("k8s_openapi", &["src/api/types"]),
    ("hickory_server", &["src/net/dns/", "tests/"]),
    ("rcgen", &["src/pki.rs"]),
    ("clap", &["src/cli.rs"]),
];

fn sources(root: &str) -> Vec<(String, String)> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => walk(&path, out),
                false => out.push(path),
            }
        }
    }
    let base = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    walk(&base.join(root), &mut paths);
    paths.retain(|p| p.extension().is_some_and(|e| e == "rs"));
    paths.sort();
    let name = |p: &Path| p.strip_prefix(base).unwrap().to_string_lossy().into_owned();
    paths.iter().map(|p| (name(p), std::fs::read_to_string(p).unwrap())).collect()
}

/// The part of a file before its tests, without comments.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Every `crate::x` of a text, also in `use crate::{a, b}` groups.
fn crate_imports(text: &str) -> Vec<String> {
    let word = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.push(word(rest)),
            Some(group) => {
                let mut depth = 0;
                let mut start = true;
                for (i, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && !c.is_whitespace() => {
                            found.push(word(&group[i..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

#[test]
fn layers_are_kept() {
    let mut broken = Vec::new();
    for (path, text) in sources("src") {
        let text = code(&text);
        let folder = path.split('/').nth(1).unwrap();
        let allowed = LAYERS.iter().find(|(f, _)| *f == folder).map(|(_, allowed)| *allowed);
        let is_leaf = LEAVES.iter().any(|l| folder == format!("{l}.rs"));
        for import in crate_imports(&text).into_iter().filter(|i| FOLDERS.contains(&i.as_str())) {
            let ok = match allowed {
                Some(allowed) => import == folder || allowed.contains(&import.as_str()),
                None => !is_leaf,
            };
            if !ok {
                broken.push(format!("{path} imports crate::{import}"));
            }
        }
        if text.contains("super::super::") {
            broken.push(format!("{path} evades the walls with super::super::"));
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<String> =
        ["src", "tests"].iter().flat_map(|r| sources(r)).filter(|(_, text)| !text.starts_with("//!")).map(|(path, _)| path).collect();
    assert!(silent.is_empty(), "files without a //! header: {silent:#?}");
}

#[test]
fn pure_files_are_pure() {
    const FORBIDDEN: &[&str] =
        &["async ", "tokio::", "std::fs", "SystemTime::now", "Instant::now", "getrandom", "Command::new", "std::env::var", "std::net::Tcp"];
    let mut broken = Vec::new();
    for (path, text) in sources("src").into_iter().filter(|(_, text)| text.starts_with("//! Pure:")) {
        let text = code(&text);
        broken.extend(FORBIDDEN.iter().filter(|word| text.contains(**word)).map(|word| format!("{path} uses {word}")));
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn crates_stay_in_their_files() {
    let mut broken = Vec::new();
    for (path, text) in sources("src") {
        let text = code(&text);
        for (name, homes) in CRATES {
            let named = text.contains(&format!("{name}::")) || text.contains(&format!("use {name};"));
            if named && !homes.iter().any(|home| path.starts_with(home)) {
                broken.push(format!("{path} names the crate {name}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn no_test_file_is_forgotten_and_no_marker_left() {
    let main = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/main.rs")).unwrap();
    let mut broken = Vec::new();
    for (path, _) in sources("tests/it") {
        let stem = Path::new(&path).file_stem().unwrap().to_str().unwrap().to_string();
        let is_top = path.matches('/').count() == 2;
        if is_top && stem != "main" && !main.contains(&format!("mod {stem};")) {
            broken.push(format!("{path} is no module of tests/it/main.rs"));
        }
    }
    // Spelled apart so that this list does not find itself.
    let markers = [concat!("to", "do!("), concat!("unimpl", "emented!("), concat!("#[ig", "nore")];
    for (path, text) in ["src", "tests"].iter().flat_map(|r| sources(r)) {
        broken.extend(markers.iter().filter(|m| text.contains(**m)).map(|m| format!("{path} holds {m}")));
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn imports_are_found_in_groups() {
    assert_eq!(crate_imports("use crate::{api::{a, b}, store::x};\nuse crate::net;"), ["api", "store", "net"]);
}
