//! Pure: wall-clock milliseconds, the unit the node's decisions count in, and their Kubernetes spelling.

use crate::api::time::Time;

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

/// `2006-01-02T15:04:05Z`, as `metav1.Time` is written.
pub fn text(at: Millis) -> String {
    Time::from_seconds(at.div_euclid(1000)).to_string()
}

/// `2006-01-02T15:04:05.000000Z`, as `metav1.MicroTime` is written.
pub fn micro_text(at: Millis) -> String {
    time(at).micro()
}

/// Milliseconds of an RFC 3339 text; `None` where it is absent or not a time.
pub fn parse(text: &str) -> Option<Millis> {
    Time::parse(text).ok().map(millis)
}

pub fn millis(time: Time) -> Millis {
    time.seconds * 1000 + i64::from(time.nanos / 1_000_000)
}

pub fn time(at: Millis) -> Time {
    let nanos = u32::try_from(at.rem_euclid(1000)).expect("below 1000") * 1_000_000;
    Time { seconds: at.div_euclid(1000), nanos }
}

/// Milliseconds of a file's or a container's time.
pub fn of_system(time: std::time::SystemTime) -> Millis {
    let since = time.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A duration as Go prints it: `10s`, `1m20s`, `5m0s`.
pub fn duration_text(ms: Millis) -> String {
    let seconds = ms / 1000;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelled_as_kubernetes_does() {
        assert_eq!(text(1_700_000_000_999), "2023-11-14T22:13:20Z");
        assert_eq!(micro_text(1_700_000_000_123), "2023-11-14T22:13:20.123000Z");
        assert_eq!(parse("2023-11-14T22:13:20Z"), Some(1_700_000_000_000));
        assert_eq!(duration_text(300_000), "5m0s");
    }
}
