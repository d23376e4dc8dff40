//! Pure: wall-clock milliseconds, the unit the node's decisions count in, and their Kubernetes spelling.

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

/// `2006-01-02T15:04:05Z`, as `metav1.Time` is written.
pub fn text(at: Millis) -> String {
    let stamp = jiff::Timestamp::from_second(at.div_euclid(1000)).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    stamp.to_string()
}

/// `2006-01-02T15:04:05.000000Z`, as `metav1.MicroTime` is written.
pub fn micro_text(at: Millis) -> String {
    let base = text(at);
    format!("{}.{:06}Z", base.trim_end_matches('Z'), at.rem_euclid(1000) * 1000)
}

/// Milliseconds of an RFC 3339 text; `None` where it is absent or not a time.
pub fn parse(text: &str) -> Option<Millis> {
    text.parse::<jiff::Timestamp>().ok().map(|t| t.as_millisecond())
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
