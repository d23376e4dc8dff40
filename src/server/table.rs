//! Pure: kubectl columns: objects in, `meta.k8s.io/v1` Tables out.

use crate::api::time::Time;
use crate::api::value::Value;

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
