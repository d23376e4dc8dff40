//! Pure: pod-template hashes and rollout arithmetic shared by workloads.

use super::meta::{RoundUp, scaled};
use crate::api::value::Value;

/// The `pod-template-hash` of a template: FNV-32a over its canonical JSON, written in characters safe for names.
pub fn template_hash(template: &Value, collisions: i64) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    feed(template.to_string().as_bytes());
    if collisions > 0 {
        feed(collisions.to_string().as_bytes());
    }
    safe_encode(&hash.to_string())
}

/// Replaces each character by one that forms no words.
fn safe_encode(text: &str) -> String {
    const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    text.bytes().map(|b| SAFE[usize::from(b) % SAFE.len()] as char).collect()
}

/// The template without what makes no difference: the hash label, absent and null members.
pub fn canonical(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template.at_mut(&["metadata", "labels"]).and_then(Value::as_map_mut) {
        labels.remove("pod-template-hash");
    }
    prune(&mut template);
    template
}

fn prune(value: &mut Value) {
    match value {
        Value::Map(map) => {
            map.iter_mut().for_each(|(_, v)| prune(v));
            map.retain(|_, v| !v.is_null());
        }
        Value::List(list) => list.iter_mut().for_each(prune),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) => {}
    }
}

/// How many pods a rolling update may add, and how many may be missing. Never both zero.
pub fn surge_and_unavailable(strategy: &Value, replicas: i64) -> (i64, i64) {
    let surge = scaled(strategy.at(&["maxSurge"]), replicas, RoundUp::Yes, "25%");
    let unavailable = scaled(strategy.at(&["maxUnavailable"]), replicas, RoundUp::No, "25%");
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_ignores_the_hash_label_and_sees_collisions() {
        let plain = crate::value!({"metadata": {"labels": {"a": "b"}}, "spec": {}});
        let marked = crate::value!({"metadata": {"labels": {"a": "b", "pod-template-hash": "x"}, "creationTimestamp": null}, "spec": {}});
        assert_eq!(canonical(&plain), canonical(&marked));
        let hash = template_hash(&canonical(&plain), 0);
        assert!((1..=10).contains(&hash.len()));
        assert_ne!(hash, template_hash(&canonical(&plain), 1));
    }

    #[test]
    fn percentages_round_away_from_harm() {
        let quarter = crate::value!({"maxSurge": "25%", "maxUnavailable": "25%"});
        assert_eq!(surge_and_unavailable(&quarter, 10), (3, 2));
        assert_eq!(surge_and_unavailable(&quarter, 1), (1, 0));
        assert_eq!(surge_and_unavailable(&crate::value!({"maxSurge": 0, "maxUnavailable": "10%"}), 1), (0, 1));
    }
}
