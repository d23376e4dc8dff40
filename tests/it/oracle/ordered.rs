//! JSON with its members in the order they were written: what a server says of a request may depend on it.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::normal::Binder;

pub enum Ordered {
    /// No list and no map.
    Leaf(Value),
    List(Vec<Ordered>),
    Map(Vec<(String, Ordered)>),
}

impl Ordered {
    /// Its text with placeholders replaced, spaced as the recordings are (upstream keeps the spaces of raw JSON).
    pub fn to_text(&self, binder: &Binder) -> String {
        let mut out = String::new();
        self.write(binder, &mut out);
        out
    }

    fn write(&self, binder: &Binder, out: &mut String) {
        let quoted = |s: String| Value::String(s).to_string();
        match self {
            Ordered::Leaf(Value::String(s)) => match binder.number(s) {
                Some(number) => out.push_str(number),
                None => out.push_str(&quoted(binder.fill(s))),
            },
            Ordered::Leaf(value) => out.push_str(&value.to_string()),
            Ordered::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { ", " });
                    item.write(binder, out);
                }
                out.push(']');
            }
            Ordered::Map(members) => {
                out.push('{');
                for (i, (key, member)) in members.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { ", " });
                    out.push_str(&quoted(binder.fill(key)));
                    out.push_str(": ");
                    member.write(binder, out);
                }
                out.push('}');
            }
        }
    }
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Ordered, D::Error> {
        from.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Ordered;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E: Error>(self) -> Result<Ordered, E> {
        Ok(Ordered::Leaf(Value::Null))
    }
    fn visit_bool<E: Error>(self, v: bool) -> Result<Ordered, E> {
        Ok(Ordered::Leaf(v.into()))
    }
    fn visit_i64<E: Error>(self, v: i64) -> Result<Ordered, E> {
        Ok(Ordered::Leaf(v.into()))
    }
    fn visit_u64<E: Error>(self, v: u64) -> Result<Ordered, E> {
        Ok(Ordered::Leaf(v.into()))
    }
    fn visit_f64<E: Error>(self, v: f64) -> Result<Ordered, E> {
        Ok(Ordered::Leaf(v.into()))
    }
    fn visit_str<E: Error>(self, v: &str) -> Result<Ordered, E> {
        Ok(Ordered::Leaf(v.into()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Ordered, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = from.next_element()? {
            items.push(item);
        }
        Ok(Ordered::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Ordered, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = from.next_entry()? {
            members.push(member);
        }
        Ok(Ordered::Map(members))
    }
}
