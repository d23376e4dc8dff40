//! Pure: kubectl columns: objects in, `meta.k8s.io/v1` Tables out.

use crate::api::time::Time;
use crate::api::value::Value;

use super::strategy::{Column, Strategy};

/// What a row carries of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

impl Include {
    /// The `includeObject` parameter.
    pub fn parse(text: &str) -> Include {
        match text {
            "None" => Include::None,
            "Object" => Include::Object,
            _ => Include::Metadata,
        }
    }
}

/// The empty Table of `version` of meta.k8s.io: rows go into `rows`.
pub fn table(version: &str, metadata: Value, columns: Option<&[Column]>) -> Value {
    let mut table = crate::value!({"kind": "Table", "apiVersion": format!("meta.k8s.io/{version}")});
    table.set(&["metadata"], metadata);
    let definitions = columns.map(|c| c.iter().map(definition).collect::<Vec<Value>>());
    table.set(&["columnDefinitions"], definitions.map_or(Value::Null, Value::List));
    table.set(&["rows"], Value::List(Vec::new()));
    table
}

fn definition(column: &Column) -> Value {
    let priority = i64::from(column.priority);
    crate::value!({"name": column.name, "type": column.type_, "format": column.format, "description": column.description, "priority": priority})
}

/// One row; `object` is a tree of the storage version, of which cells and metadata are, `shown` of the served one.
pub fn row(strategy: &dyn Strategy, object: &Value, shown: &Value, include: Include, version: &str, now: Time) -> Value {
    let mut row = row_of(strategy.row(object, now), object, shown, include, version);
    if let Some((reason, message)) = strategy.completed(object) {
        row.set(&["conditions"], crate::value!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]));
    }
    row
}

fn row_of(cells: Vec<Value>, object: &Value, shown: &Value, include: Include, version: &str) -> Value {
    let mut row = Value::map();
    row.set(&["cells"], Value::List(cells));
    match include {
        Include::None => {
            row.set(&["object"], Value::Null);
        }
        Include::Metadata => row.set(&["object"], partial(object, version)),
        Include::Object => row.set(&["object"], shown.clone()),
    }
    row
}

/// `PartialObjectMetadata` of an object.
pub fn partial(object: &Value, version: &str) -> Value {
    let mut partial = crate::value!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}")});
    partial.set(&["metadata"], object.get("metadata").cloned().unwrap_or_else(Value::map));
    if matches!(object.str_at(&["kind"]), "" | "DaemonSet") {
        // Upstream makes it up on converting the whole object.
        partial.remove(&["metadata", "annotations", "deprecated.daemonset.template.generation"]);
        if partial.map_at(&["metadata", "annotations"]).is_some_and(|m| m.is_empty()) {
            partial.remove(&["metadata", "annotations"]);
        }
    }
    partial
}

/// The Table of one Scale.
pub fn of_scale(scale: &Value, include: Include, version: &str, now: Time) -> Value {
    const COLUMNS: &[Column] = &[
        Column::new("Name", "string"),
        Column::new("Desired", "integer"),
        Column::new("Available", "integer"),
        Column::new("Age", "string"),
    ];
    let count = |member: &str| scale.i64_at(&[member, "replicas"]).unwrap_or(0);
    let cells: Vec<Value> =
        vec![scale.str_at(&["metadata", "name"]).into(), count("spec").into(), count("status").into(), age(scale, now).into()];
    let metadata = crate::value!({"resourceVersion": scale.str_at(&["metadata", "resourceVersion"])});
    let mut table = table(version, metadata, Some(COLUMNS));
    table.set(&["rows"], Value::List(vec![row_of(cells, scale, scale, include, version)]));
    table
}

/// Name and Age.
pub fn default_row(object: &Value, now: Time) -> Vec<Value> {
    vec![object.str_at(&["metadata", "name"]).into(), age(object, now).into()]
}

/// The age of an object, as kubectl prints it.
pub fn age(object: &Value, now: Time) -> String {
    since(object.str_at(&["metadata", "creationTimestamp"]), now)
}

/// Time passed since an RFC 3339 time; `<unknown>` for none.
pub fn since(time: &str, now: Time) -> String {
    match Time::parse(time) {
        Ok(then) => duration(now.seconds - then.seconds),
        Err(_) => "<unknown>".to_string(),
    }
}

/// `45s`, `3m12s`, `2h5m`, `3d4h`, `17d`: at most two units, the smaller one dropped where it says little.
pub fn duration(seconds: i64) -> String {
    match seconds {
        ..=-2 => "<invalid>".to_string(),
        -1 => "0s".to_string(),
        0..120 => format!("{seconds}s"),
        120..600 => pair(seconds / 60, "m", seconds % 60, "s"),
        600..10_800 => format!("{}m", seconds / 60),
        10_800..28_800 => pair(seconds / 3600, "h", seconds / 60 % 60, "m"),
        28_800..172_800 => format!("{}h", seconds / 3600),
        172_800..691_200 => pair(seconds / 86_400, "d", seconds / 3600 % 24, "h"),
        691_200..63_072_000 => format!("{}d", seconds / 86_400),
        63_072_000..252_288_000 => pair(seconds / 31_536_000, "y", seconds / 86_400 % 365, "d"),
        _ => format!("{}y", seconds / 31_536_000),
    }
}

fn pair(big: i64, big_unit: &str, small: i64, small_unit: &str) -> String {
    if small == 0 { format!("{big}{big_unit}") } else { format!("{big}{big_unit}{small}{small_unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_print_as_kubectl_does() {
        for (seconds, want) in [
            (0, "0s"),
            (-1, "0s"),
            (-5, "<invalid>"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_800, "3h"),
            (10_860, "3h1m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
            (252_288_000, "8y"),
        ] {
            assert_eq!(duration(seconds), want, "{seconds}");
        }
    }
}
