//! Descriptions of types and members, from the typed-API crate at build time: what `kubectl explain` shows.
//!
//! Kept compressed in the executable and unpacked only while a document is built. Without them documents are the same but for
//! the words.

use std::collections::HashMap;

use super::schemas::Texts;

/// `type \t member \t text` a line, newlines in texts as `\n`, compressed by `build.rs`.
static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.gz"));

pub struct Descriptions {
    by_type: HashMap<String, HashMap<String, String>>,
}

pub fn load() -> Descriptions {
    let text = if PACKED.is_empty() { Vec::new() } else { super::inflated(PACKED) };
    let text = String::from_utf8(text).expect("build.rs wrote text");
    let mut by_type: HashMap<String, HashMap<String, String>> = HashMap::new();
    for line in text.lines() {
        let mut cells = line.splitn(3, '\t');
        if let (Some(name), Some(member), Some(text)) = (cells.next(), cells.next(), cells.next()) {
            by_type.entry(name.to_string()).or_default().insert(member.to_string(), text.replace("\\n", "\n"));
        }
    }
    Descriptions { by_type }
}

impl Texts for Descriptions {
    fn about(&self, type_name: &str, member: &str) -> Option<&str> {
        self.by_type.get(type_name)?.get(member).map(String::as_str)
    }
}
