//! Pure: a pod's volumes in, what is to be set up for each out.

use crate::agent::kubelet::observe::Reason;
use crate::agent::kubelet::pod::{Pod, name_of};
use crate::agent::qos;
use crate::api::value::Value;

/// One volume and what it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub name: String,
    pub source: Source,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    EmptyDir { memory: bool, size_bytes: Option<u64> },
    HostPath { path: String, kind: String },
    Image { reference: String, pull_policy: String },
    Projected(Projection),
}

/// A directory of files made from API objects: configMap, secret, downwardAPI and projected are all this.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    pub default_mode: u32,
    pub parts: Vec<Part>,
    /// Holds secrets: kept in memory, never on a disk.
    pub secret: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    ConfigMap { name: String, items: Option<Vec<Item>>, optional: bool },
    Secret { name: String, items: Option<Vec<Item>>, optional: bool },
    Downward { items: Vec<Downward> },
    Token { path: String, audience: String, seconds: i64 },
}

/// One key under another path.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub key: String,
    pub path: String,
    pub mode: Option<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Downward {
    pub path: String,
    pub mode: Option<u32>,
    /// `fieldRef.fieldPath`, or empty for a `resourceFieldRef`.
    pub field: String,
    pub resource: Value,
}

pub fn wanted(pod: Pod) -> Result<Vec<Wanted>, Reason> {
    pod.volumes().iter().map(|v| Ok(Wanted { name: name_of(v).to_string(), source: source(v)? })).collect()
}

fn source(volume: &Value) -> Result<Source, Reason> {
    let secret_parts = |parts: &[Part]| parts.iter().any(|p| matches!(p, Part::Secret { .. } | Part::Token { .. }));
    let projection = |body: &Value, parts: Vec<Part>| {
        let default_mode = mode(body, "defaultMode").unwrap_or(0o644);
        Source::Projected(Projection { default_mode, secret: secret_parts(&parts), parts })
    };
    if let Some(v) = volume.at(&["hostPath"]) {
        return Ok(Source::HostPath { path: v.str_at(&["path"]).to_string(), kind: v.str_at(&["type"]).to_string() });
    }
    if let Some(v) = volume.at(&["image"]) {
        return Ok(Source::Image { reference: v.str_at(&["reference"]).to_string(), pull_policy: v.str_at(&["pullPolicy"]).to_string() });
    }
    if let Some(v) = volume.at(&["configMap"]) {
        return Ok(projection(v, vec![config_map(v)]));
    }
    if let Some(v) = volume.at(&["secret"]) {
        let part = Part::Secret { name: v.str_at(&["secretName"]).to_string(), items: items(v), optional: v.bool_at(&["optional"]) };
        return Ok(projection(v, vec![part]));
    }
    if let Some(v) = volume.at(&["downwardAPI"]) {
        return Ok(projection(v, vec![downward(v)]));
    }
    if let Some(v) = volume.at(&["projected"]) {
        let parts: Result<Vec<Part>, Reason> = v.list_at(&["sources"]).iter().map(part).collect();
        return Ok(projection(v, parts?));
    }
    match volume.as_map().and_then(|m| m.iter().find(|(k, v)| !matches!(*k, "name" | "emptyDir") && !v.is_null())) {
        Some((kind, _)) => Err(Reason {
            reason: "FailedMount".into(),
            message: format!("volume \"{}\": volumes of type {kind} are not supported yet by this version of Coracle", name_of(volume)),
        }),
        None => Ok(Source::EmptyDir {
            memory: volume.str_at(&["emptyDir", "medium"]) == "Memory",
            size_bytes: qos::units(volume.at(&["emptyDir", "sizeLimit"])).and_then(|b| u64::try_from(b).ok()).filter(|b| *b > 0),
        }),
    }
}

fn config_map(v: &Value) -> Part {
    Part::ConfigMap { name: name_of(v).to_string(), items: items(v), optional: v.bool_at(&["optional"]) }
}

fn part(source: &Value) -> Result<Part, Reason> {
    if let Some(v) = source.at(&["configMap"]) {
        return Ok(config_map(v));
    }
    if let Some(v) = source.at(&["secret"]) {
        return Ok(Part::Secret { name: name_of(v).to_string(), items: items(v), optional: v.bool_at(&["optional"]) });
    }
    if let Some(v) = source.at(&["downwardAPI"]) {
        return Ok(downward(v));
    }
    if let Some(v) = source.at(&["serviceAccountToken"]) {
        let seconds = v.i64_at(&["expirationSeconds"]).unwrap_or(3600);
        return Ok(Part::Token { path: v.str_at(&["path"]).to_string(), audience: v.str_at(&["audience"]).to_string(), seconds });
    }
    let kind = source.as_map().and_then(|m| m.iter().next()).map_or("nothing", |(k, _)| k);
    Err(Reason {
        reason: "FailedMount".into(),
        message: format!("projected source {kind} is not supported yet by this version of Coracle"),
    })
}

fn downward(v: &Value) -> Part {
    let items = v.list_at(&["items"]).iter().map(|i| Downward {
        path: i.str_at(&["path"]).to_string(),
        mode: mode(i, "mode"),
        field: i.str_at(&["fieldRef", "fieldPath"]).to_string(),
        resource: i.at(&["resourceFieldRef"]).cloned().unwrap_or_default(),
    });
    Part::Downward { items: items.collect() }
}

fn items(v: &Value) -> Option<Vec<Item>> {
    let list = v.list_at(&["items"]);
    let item = |i: &Value| Item { key: i.str_at(&["key"]).to_string(), path: i.str_at(&["path"]).to_string(), mode: mode(i, "mode") };
    (!list.is_empty()).then(|| list.iter().map(item).collect())
}

fn mode(v: &Value, key: &str) -> Option<u32> {
    v.i64_at(&[key]).and_then(|m| u32::try_from(m).ok())
}
