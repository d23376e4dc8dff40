//! Time as the API writes it, and the clock everything is given.
//!
//! [`Time`] is a point in UTC with nanoseconds; [`Time::parse`] takes RFC 3339 and complains in Go's words, because
//! clients are shown them. Only [`SystemClock`] looks at the system's clock.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

/// A point in time, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    pub nanos: u32,
}

const LAYOUT: &str = "2006-01-02T15:04:05Z07:00";
const LAYOUT_MICRO: &str = "2006-01-02T15:04:05.000000Z07:00";
/// `0001-01-01T00:00:00Z`, Go's zero time, which the API writes as null.
const GO_ZERO_SECONDS: i64 = -62_135_596_800;

impl Time {
    pub fn from_seconds(seconds: i64) -> Time {
        Time { seconds, nanos: 0 }
    }

    pub fn is_go_zero(self) -> bool {
        self.seconds == GO_ZERO_SECONDS && self.nanos == 0
    }

    /// RFC 3339 with any fraction and offset, as `metav1.Time` reads it.
    pub fn parse(text: &str) -> Result<Time, String> {
        Parser { text, rest: text, layout: LAYOUT }.run(Fraction::Any)
    }

    /// With exactly six digits of fraction, as `metav1.MicroTime` reads it.
    pub fn parse_micro(text: &str) -> Result<Time, String> {
        Parser { text, rest: text, layout: LAYOUT_MICRO }.run(Fraction::Six)
    }

    /// Seconds and nanoseconds as JSON's `float64`: for metrics and rates.
    pub fn as_f64(self) -> f64 {
        self.seconds as f64 + f64::from(self.nanos) / 1e9
    }

    pub fn truncated_to_seconds(self) -> Time {
        Time { nanos: 0, ..self }
    }

    /// `2006-01-02T15:04:05.000000Z`.
    pub fn micro(self) -> String {
        let text = self.to_string();
        format!("{}.{:06}Z", &text[..text.len() - 1], self.nanos / 1000)
    }

    /// Whole seconds from `earlier` to here, negative if it is later.
    pub fn seconds_since(self, earlier: Time) -> i64 {
        self.since(earlier).map_or_else(|d| -(d.as_secs() as i64), |d| d.as_secs() as i64)
    }

    /// The time from `earlier` to here; `Err` holds how much later it is.
    pub fn since(self, earlier: Time) -> Result<Duration, Duration> {
        let nanos = |t: Time| i128::from(t.seconds) * 1_000_000_000 + i128::from(t.nanos);
        let d = nanos(self) - nanos(earlier);
        let duration = Duration::from_nanos(d.unsigned_abs().try_into().unwrap_or(u64::MAX));
        if d < 0 { Err(duration) } else { Ok(duration) }
    }

    /// Year, month, day, hour, minute, second.
    pub fn civil(self) -> (i64, u32, u32, u32, u32, u32) {
        let (days, second) = (self.seconds.div_euclid(86_400), self.seconds.rem_euclid(86_400) as u32);
        let (year, month, day) = civil_from_days(days);
        (year, month, day, second / 3600, second / 60 % 60, second % 60)
    }

    /// 0 is Sunday.
    pub fn weekday(self) -> u32 {
        (self.seconds.div_euclid(86_400) + 4).rem_euclid(7) as u32
    }

    pub fn from_civil(year: i64, month: u32, day: u32, hour: u32, minute: u32, second: u32) -> Time {
        Time::from_seconds(days_from_civil(year, month, day) * 86_400 + i64::from(hour * 3600 + minute * 60 + second))
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Time;
    fn add(self, d: Duration) -> Time {
        let nanos = self.nanos + d.subsec_nanos();
        let seconds = self.seconds.saturating_add_unsigned(d.as_secs()).saturating_add(i64::from(nanos / 1_000_000_000));
        Time { seconds, nanos: nanos % 1_000_000_000 }
    }
}

impl std::ops::Sub<Duration> for Time {
    type Output = Time;
    fn sub(self, d: Duration) -> Time {
        let borrow = i64::from(self.nanos < d.subsec_nanos());
        let nanos = self.nanos + borrow as u32 * 1_000_000_000 - d.subsec_nanos();
        Time { seconds: self.seconds.saturating_sub_unsigned(d.as_secs()).saturating_sub(borrow), nanos }
    }
}

/// `2006-01-02T15:04:05Z`: seconds only, as `metav1.Time` writes it.
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day, hour, minute, second) = self.civil();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl From<std::time::SystemTime> for Time {
    fn from(t: std::time::SystemTime) -> Time {
        match t.duration_since(std::time::UNIX_EPOCH) {
            Ok(d) => Time::default() + d,
            Err(e) => Time::default() - e.duration(),
        }
    }
}

fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let day_of_year = (153 * i64::from((month + 9) % 12) + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let month = if m < 10 { m + 3 } else { m - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month as u32, (day_of_year - (153 * m + 2) / 5 + 1) as u32)
}

/// Days in a month; months count from 1.
pub fn days_in_month(year: i64, month: u32) -> u32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Fraction {
    Any,
    Six,
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    layout: &'static str,
}

impl<'a> Parser<'a> {
    fn bad<T>(&self, at: &str, element: &str) -> Result<T, String> {
        Err(format!(
            "parsing time {} as {}: cannot parse {} as {}",
            go_quote(self.text),
            go_quote(self.layout),
            go_quote(at),
            go_quote(element)
        ))
    }

    fn out_of_range<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("parsing time {}: {what} out of range", go_quote(self.text)))
    }

    /// `count` digits standing for the layout's `element`.
    fn number(&mut self, count: usize, element: &str) -> Result<u32, String> {
        let at = self.rest;
        match at.get(..count).filter(|d| d.bytes().all(|b| b.is_ascii_digit())) {
            Some(digits) => {
                self.rest = &at[count..];
                Ok(digits.parse().expect("a few digits fit"))
            }
            None => self.bad(at, element),
        }
    }

    fn literal(&mut self, c: char) -> Result<(), String> {
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => self.bad(self.rest, &c.to_string()),
        }
    }

    fn fraction(&mut self, fraction: Fraction) -> Result<u32, String> {
        let digits = self.rest.strip_prefix(['.', ',']).map_or(0, |r| r.bytes().take_while(u8::is_ascii_digit).count());
        let take = match fraction {
            Fraction::Any => digits,
            Fraction::Six if digits < 6 => return self.bad(self.rest, ".000000"),
            Fraction::Six => 6,
        };
        if take == 0 {
            return Ok(0);
        }
        let nanos: String = self.rest[1..=take].chars().chain("000000000".chars()).take(9).collect();
        self.rest = &self.rest[1 + take..];
        Ok(nanos.parse().expect("nine digits fit"))
    }

    fn offset_seconds(&mut self) -> Result<i64, String> {
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let at = self.rest;
        let bytes = at.as_bytes();
        let shaped = bytes.len() >= 6 && matches!(bytes[0], b'+' | b'-') && bytes[3] == b':';
        let pair = |i: usize| at.get(i..i + 2).filter(|d| d.bytes().all(|b| b.is_ascii_digit())).and_then(|d| d.parse::<i64>().ok());
        let (Some(hours), Some(minutes), true) = (pair(1), pair(4), shaped) else { return self.bad(at, "Z07:00") };
        if hours > 24 {
            return self.out_of_range("time zone offset hour");
        }
        if minutes > 60 {
            return self.out_of_range("time zone offset minute");
        }
        self.rest = &at[6..];
        let seconds = hours * 3600 + minutes * 60;
        Ok(if bytes[0] == b'-' { -seconds } else { seconds })
    }

    fn run(mut self, fraction: Fraction) -> Result<Time, String> {
        let year = self.number(4, "2006")?;
        self.literal('-')?;
        let month = self.number(2, "01")?;
        if !(1..=12).contains(&month) {
            return self.out_of_range("month");
        }
        self.literal('-')?;
        let day = self.number(2, "02")?;
        self.literal('T')?;
        // Upstream's hour accepts one digit.
        let one_digit =
            self.rest.as_bytes().first().is_some_and(u8::is_ascii_digit) && !self.rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
        let hour = self.number(if one_digit { 1 } else { 2 }, "15")?;
        if hour > 23 {
            return self.out_of_range("hour");
        }
        self.literal(':')?;
        let minute = self.number(2, "04")?;
        if minute > 59 {
            return self.out_of_range("minute");
        }
        self.literal(':')?;
        let second = self.number(2, "05")?;
        if second > 59 {
            return self.out_of_range("second");
        }
        let nanos = self.fraction(fraction)?;
        let offset = self.offset_seconds()?;
        if !self.rest.is_empty() {
            return Err(format!("parsing time {}: extra text: {}", go_quote(self.text), go_quote(self.rest)));
        }
        if day < 1 || day > days_in_month(year.into(), month) {
            return self.out_of_range("day");
        }
        let local = Time::from_civil(year.into(), month, day, hour, minute, second);
        Ok(Time { seconds: local.seconds - offset, nanos })
    }
}

/// Go's `time` package quotes only what it must.
fn go_quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c => c.to_string().bytes().for_each(|b| out.push_str(&format!("\\x{b:02x}"))),
        }
    }
    out.push('"');
    out
}

/// Where the present comes from.
pub trait Clock: Send + Sync {
    fn now(&self) -> Time;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // The one home of the system clock.
    fn now(&self) -> Time {
        std::time::SystemTime::now().into()
    }
}

/// A clock that moves only when told, for tests and simulation.
#[derive(Debug)]
pub struct ManualClock(Mutex<Time>);

impl ManualClock {
    pub fn new(start: Time) -> ManualClock {
        ManualClock(Mutex::new(start))
    }

    pub fn advance(&self, by: Duration) {
        let mut now = self.0.lock().expect("nothing panics while holding it");
        *now = *now + by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        *self.0.lock().expect("nothing panics while holding it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2024-02-29T12:34:56Z", 1_709_210_096),
            ("0001-01-01T00:00:00Z", GO_ZERO_SECONDS),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(Time::parse(text).unwrap().seconds, seconds);
            assert_eq!(Time::from_seconds(seconds).to_string(), text);
        }
        assert_eq!(Time::parse("2020-01-01T02:00:00.5+02:00").unwrap(), Time { seconds: 1_577_836_800, nanos: 500_000_000 });
        assert_eq!(Time::parse_micro("2020-01-01T00:00:00.123456Z").unwrap().micro(), "2020-01-01T00:00:00.123456Z");
    }

    #[test]
    fn complains_in_the_words_of_go() {
        let error = |t: &str| Time::parse(t).unwrap_err();
        assert_eq!(error("x"), r#"parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006""#);
        assert_eq!(error("2020-13-01T00:00:00Z"), r#"parsing time "2020-13-01T00:00:00Z": month out of range"#);
        assert_eq!(error("2021-02-29T00:00:00Z"), r#"parsing time "2021-02-29T00:00:00Z": day out of range"#);
        assert_eq!(error("2020-01-01"), r#"parsing time "2020-01-01" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#);
        assert_eq!(error("2020-01-01T00:00:00Zz"), r#"parsing time "2020-01-01T00:00:00Zz": extra text: "z""#);
    }

    #[test]
    fn moves_by_durations() {
        let t = Time { seconds: 10, nanos: 500 };
        let d = Duration::new(3, 999_999_999);
        assert_eq!(t + d - d, t);
        assert_eq!((t + d).seconds_since(t), 3);
        assert_eq!(t.seconds_since(t + d), -3);
    }
}
