//! Pure: field ownership across `/scale`: the owners of an object's replicas as owners of a Scale's, and back.
//!
//! Entries made through the subresource carry no time, as upstream has it: the object never knew one for them.

use crate::api::value::Value;

use super::managers::{self, Entry, Identity};
use super::set::Set;

const SCALE_VERSION: &str = "autoscaling/v1";
const REPLICAS: &[&str] = &["spec", "replicas"];

/// The managed fields of the Scale: those who own the replicas. `is_known`: versions of the object's kind.
pub fn of_object(managed: Option<&Value>, replicas: &[&str], is_known: &dyn Fn(&str) -> bool) -> Value {
    let owners = managers::decode(managed).unwrap_or_default().into_iter();
    let owners = owners.filter(|e| is_known(&e.api_version) && e.set().has(replicas));
    managers::encode(owners.map(|e| Entry::new(e.identity, SCALE_VERSION, &e.time, Set::of(REPLICAS))).collect())
}

/// The object's managed fields after a write of the Scale left it with `scale`'s.
pub fn to_object(
    managed: Option<&Value>,
    scale: Option<&Value>,
    replicas: &[&str],
    api_version: &str,
    is_known: &dyn Fn(&str) -> bool,
) -> Value {
    let before = managers::decode(managed).unwrap_or_default();
    let times: Vec<(Identity, String)> = before.iter().map(|e| (e.identity.clone(), e.time.clone())).collect();
    let mut writers = managers::decode(scale).unwrap_or_default();
    let mut after = Vec::new();
    for mut entry in before.into_iter().filter(|e| is_known(&e.api_version)) {
        let set = entry.set();
        if set.has(replicas) {
            match writers.iter().position(|w| w.identity == entry.identity) {
                Some(i) => drop(writers.remove(i)),
                None => entry.subtract(&Set::of(replicas)),
            }
        }
        if !entry.is_empty() {
            after.push(entry);
        }
    }
    for writer in writers.into_iter().filter(|w| w.set().has(REPLICAS)) {
        let time = times.iter().find(|(identity, _)| *identity == writer.identity).map_or("", |(_, time)| time);
        let entry = Entry::new(writer.identity, api_version, time, Set::of(replicas));
        // One identity, one entry: the later of two is the one that counts.
        after.retain(|e: &Entry| e.identity != entry.identity);
        after.push(entry);
    }
    managers::encode(after)
}
