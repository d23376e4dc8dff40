//! Pure: resource quantities, exact and in Kubernetes' canonical form (`1500m`, `1536Mi`, `12e6`).
//!
//! A quantity is `unscaled * 10^scale` with the format it was written in. Text that already is canonical by upstream's
//! quick test is kept as it came, so `+5` stays `+5`; everything else is rewritten. Arithmetic is on 128 bits and
//! saturates far beyond what the API admits. Start at [`Quantity::parse`].

use std::cmp::Ordering;
use std::fmt;

/// The three ways to write a quantity; a result keeps that of its left operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    DecimalExponent,
    BinarySi,
    DecimalSi,
}

/// An exact amount.
#[derive(Clone, Debug)]
pub struct Quantity {
    unscaled: i128,
    scale: i32,
    format: Format,
    /// The text it was parsed from, where that counts as canonical.
    text: Option<Box<str>>,
}

/// Upstream's three complaints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const NANO: i32 = -9;
/// Decimal digits that surely fit an `i64`.
const DIGITS_MAX: i32 = 18;
/// Magnitudes from which on arithmetic saturates.
const LIMIT: i128 = i128::MAX / 2;

impl Quantity {
    pub const ZERO: Quantity = Quantity { unscaled: 0, scale: 0, format: Format::DecimalSi, text: None };

    /// Whole units.
    pub fn new(value: i64) -> Quantity {
        Quantity { unscaled: value.into(), ..Quantity::ZERO }
    }

    /// Thousandths: what CPU is counted in.
    pub fn from_milli(value: i64) -> Quantity {
        Quantity { unscaled: value.into(), scale: -3, ..Quantity::ZERO }
    }

    /// Bytes, printed with binary suffixes.
    pub fn from_bytes(value: i64) -> Quantity {
        Quantity { unscaled: value.into(), format: Format::BinarySi, ..Quantity::ZERO }
    }

    pub fn parse(text: &str) -> Result<Quantity, Error> {
        if text.is_empty() {
            return Err(Error::Format);
        }
        let parts = split(text)?;
        let (base, exponent, format) = interpret(parts.suffix).ok_or(Error::Suffix)?;
        let digits = (parts.num.len() + parts.denom.len()) as i32;
        let fraction = parts.denom.len() as i32;
        let quick = match format {
            Format::BinarySi => parts.denom.is_empty() && 15 - parts.num.len() as i32 - exponent * 3 / 10 > 0,
            Format::DecimalSi | Format::DecimalExponent => digits <= DIGITS_MAX && exponent.saturating_sub(fraction) >= NANO,
        };
        let all_digits: String = [parts.num, parts.denom].concat();
        let sign = if parts.negative { -1 } else { 1 };
        if quick {
            let value: i128 = all_digits.parse().map_err(|_| Error::Numeric)?;
            let scale = if base == 10 { exponent - fraction } else { 0 };
            let canonical = match format {
                Format::BinarySi => exponent % 10 == 0 && value & 7 != 0,
                _ => scale % 3 == 0 && !all_digits.ends_with("000") && !all_digits.starts_with('0'),
            };
            let unscaled = sign * if base == 2 { value << exponent } else { value };
            return Ok(Quantity { unscaled, scale, format, text: canonical.then(|| text.into()) });
        }
        if parts.value_is_malformed {
            return Err(Error::Numeric);
        }
        let amount = Quantity { unscaled: 0, scale: 0, format, text: None };
        Ok(amount.with_big(&all_digits, fraction, base, exponent, sign))
    }

    /// The slow way: any number of digits, rounded up to the nano, binary amounts capped at 2^63-1.
    fn with_big(mut self, digits: &str, fraction: i32, base: u32, exponent: i32, sign: i128) -> Quantity {
        let trimmed = digits.trim_start_matches('0');
        let kept = &trimmed[..trimmed.len().min(36)];
        let dropped = trimmed.len() - kept.len();
        let mut value: i128 = kept.parse().unwrap_or(0);
        if trimmed[kept.len()..].bytes().any(|b| b != b'0') {
            value += 1;
        }
        let mut scale = (dropped as i32).saturating_sub(fraction);
        if base == 2 {
            value = value.checked_shl(exponent as u32).filter(|v| v >> exponent == value).unwrap_or(LIMIT);
        } else {
            scale = scale.saturating_add(exponent);
        }
        self.unscaled = value;
        self.scale = scale;
        if value != 0 {
            self.round_up(NANO);
        }
        if self.format == Format::BinarySi {
            let (max, one) = (Quantity::new(i64::MAX), Quantity::new(1));
            if self > max {
                (self.unscaled, self.scale) = (max.unscaled, 0);
            } else if !self.is_zero() && self < one {
                self.format = Format::DecimalSi;
            }
        }
        self.unscaled *= sign;
        self
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn with_format(mut self, format: Format) -> Quantity {
        self.text = None;
        self.format = format;
        self
    }

    pub fn is_zero(&self) -> bool {
        self.unscaled == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.unscaled.signum() as i32
    }

    /// Whole units, rounded away from zero.
    pub fn value(&self) -> i128 {
        self.scaled(0)
    }

    /// Thousandths, rounded away from zero.
    pub fn milli_value(&self) -> i128 {
        self.scaled(-3)
    }

    /// The amount in units of `10^scale`, rounded away from zero.
    pub fn scaled(&self, scale: i32) -> i128 {
        let shift = self.scale.saturating_sub(scale);
        if shift >= 0 { times_ten(self.unscaled, shift) } else { divide_up(self.unscaled, -shift) }
    }

    /// Rounds away from zero to a multiple of `10^scale`; coarser amounts stay untouched, text included.
    pub fn round_up(&mut self, scale: i32) {
        if self.scale < scale {
            self.text = None;
            self.unscaled = self.scaled(scale);
            self.scale = scale;
        }
    }

    pub fn add(&self, other: &Quantity) -> Quantity {
        self.combine(other, 1)
    }

    pub fn sub(&self, other: &Quantity) -> Quantity {
        self.combine(other, -1)
    }

    fn combine(&self, other: &Quantity, sign: i128) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        let (left, right, scale) = self.aligned(other);
        let sum = left.saturating_add(sign * right).clamp(-LIMIT, LIMIT);
        Quantity { unscaled: sum, scale, format, text: None }
    }

    /// The amount times a whole number.
    pub fn times(&self, factor: i64) -> Quantity {
        let unscaled = self.unscaled.saturating_mul(factor.into()).clamp(-LIMIT, LIMIT);
        Quantity { unscaled, text: None, ..self.clone() }
    }

    /// Both amounts in units of the finer scale.
    fn aligned(&self, other: &Quantity) -> (i128, i128, i32) {
        if self.is_zero() {
            return (0, other.unscaled, other.scale);
        }
        if other.is_zero() {
            return (self.unscaled, 0, self.scale);
        }
        let scale = self.scale.min(other.scale);
        (times_ten(self.unscaled, self.scale - scale), times_ten(other.unscaled, other.scale - scale), scale)
    }

    /// An approximation, for ratios and metrics.
    pub fn as_f64(&self) -> f64 {
        self.unscaled as f64 * 10f64.powi(self.scale)
    }

    fn write_decimal(&self, f: &mut fmt::Formatter<'_>, format: Format) -> fmt::Result {
        let (mut amount, mut exponent) = (self.unscaled, self.scale);
        while amount % 10 == 0 {
            amount /= 10;
            exponent += 1;
        }
        while exponent % 3 != 0 {
            amount *= 10;
            exponent -= 1;
        }
        write!(f, "{amount}")?;
        match (format, exponent) {
            (_, 0) => Ok(()),
            (Format::DecimalExponent, e) => write!(f, "e{e}"),
            // A suffix that does not exist is left out, as upstream does.
            (_, e) => f.write_str(DECIMAL.iter().find(|(_, x)| *x == e).map_or("", |(s, _)| s)),
        }
    }
}

fn times_ten(value: i128, times: i32) -> i128 {
    if value == 0 {
        return 0;
    }
    let limit = value.signum() * LIMIT;
    let factor = u32::try_from(times).ok().and_then(|t| 10i128.checked_pow(t));
    factor.and_then(|p| value.checked_mul(p)).map_or(limit, |v| v.clamp(-LIMIT, LIMIT))
}

fn divide_up(value: i128, times: i32) -> i128 {
    match u32::try_from(times).ok().and_then(|t| 10i128.checked_pow(t)) {
        Some(p) if value % p == 0 => value / p,
        Some(p) => value / p + value.signum(),
        None => value.signum(),
    }
}

const DECIMAL: &[(&str, i32)] = &[("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: &[(&str, i32)] = &[("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

/// Base, exponent and format of a suffix.
fn interpret(suffix: &str) -> Option<(u32, i32, Format)> {
    if let Some((_, e)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some((10, *e, Format::DecimalSi));
    }
    if let Some((_, e)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Some((2, *e, Format::BinarySi));
    }
    let number = suffix.strip_prefix(['e', 'E']).filter(|n| !n.is_empty())?;
    let exponent: i64 = number.parse().ok()?;
    Some((10, exponent.clamp(-1_000_000, 1_000_000) as i32, Format::DecimalExponent))
}

struct Parts<'a> {
    negative: bool,
    num: &'a str,
    denom: &'a str,
    suffix: &'a str,
    /// A lone sign or dot: only the slow way notices, as upstream.
    value_is_malformed: bool,
}

fn split(text: &str) -> Result<Parts<'_>, Error> {
    let negative = text.starts_with('-');
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let significant = unsigned.trim_start_matches('0');
    if significant.is_empty() {
        return Ok(Parts { negative, num: "0", denom: "", suffix: "", value_is_malformed: false });
    }
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let (num, rest) = significant.split_at(digits(significant));
    let (denom, suffix) = match rest.strip_prefix('.') {
        Some(fraction) => fraction.split_at(digits(fraction)),
        None => ("", rest),
    };
    let letters = suffix.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let after = suffix[letters..].strip_prefix(['-', '+']).unwrap_or(&suffix[letters..]);
    if digits(after) != after.len() {
        return Err(Error::Format);
    }
    let any_digit = unsigned.starts_with(|c: char| c.is_ascii_digit()) || !denom.is_empty();
    Ok(Parts { negative, num: if num.is_empty() { "0" } else { num }, denom, suffix, value_is_malformed: !any_digit })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            return f.write_str(text);
        }
        if self.is_zero() {
            return f.write_str("0");
        }
        let whole = self.scaled(0);
        let exact = self.scale >= 0 || times_ten(whole, -self.scale) == self.unscaled;
        if self.format != Format::BinarySi || (-1023..=1023).contains(&whole) || !exact {
            let format = if self.format == Format::BinarySi { Format::DecimalSi } else { self.format };
            return self.write_decimal(f, format);
        }
        let (mut amount, mut exponent) = (whole, 0);
        while amount % 1024 == 0 {
            amount /= 1024;
            exponent += 10;
        }
        write!(f, "{amount}{}", BINARY.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| s))
    }
}

/// By amount: `1` equals `1000m`.
impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        let (left, right, _) = self.aligned(other);
        left.cmp(&right)
    }
}

impl std::str::FromStr for Quantity {
    type Err = Error;
    fn from_str(text: &str) -> Result<Quantity, Error> {
        Quantity::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        Quantity::parse(text).unwrap().to_string()
    }

    #[test]
    fn canonical_form() {
        for (text, want) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1000Mi", "1000Mi"),
            ("1Gi", "1Gi"),
            ("12e6", "12e6"),
            ("1e3", "1e3"),
            ("1E3", "1E3"),
            ("1e4", "10e3"),
            ("1000k", "1M"),
            ("100", "100"),
            ("1000", "1k"),
            ("512", "512"),
            ("-1.5", "-1500m"),
            ("0.1n", "1n"),
            ("1.1n", "2n"),
            ("0.0000000001", "1n"),
            ("1Ei", "1Ei"),
            ("16Ei", "9223372036854775807"),
            ("0.5Ki", "512"),
            ("1.1Ki", "1126400m"),
            ("0.5Mi", "512Ki"),
            ("512Ki", "512Ki"),
            ("8Ki", "8Ki"),
            ("100000000000000000000", "100E"),
            ("9E", "9E"),
            ("+5", "+5"),
            ("5.", "5."),
            (".5", "500m"),
            ("3000m", "3"),
            ("1.500", "1.500"),
            ("0.5u", "500n"),
            ("10u", "10u"),
            ("0.025Ti", "26843545600m"),
            ("500e-3", "500e-3"),
            ("1048576", "1048576"),
            ("2Ti", "2Ti"),
        ] {
            // 0.025Ti is not whole bytes: it is shown in decimal so that nothing is lost.
            let want = if text == "0.025Ti" { "27487790694400m" } else { want };
            assert_eq!(canonical(text), want, "{text}");
        }
    }

    #[test]
    fn refused() {
        for (text, error) in [
            ("", Error::Format),
            ("1.2.3", Error::Format),
            ("a", Error::Format),
            ("1x", Error::Format),
            ("1mm", Error::Suffix),
            ("1Kib", Error::Format),
            ("1 Gi", Error::Format),
            ("1e", Error::Suffix),
            ("1i", Error::Suffix),
            ("1K", Error::Suffix),
            ("--1", Error::Suffix),
            ("m", Error::Suffix),
        ] {
            let got = Quantity::parse(text).map(|q| q.to_string());
            if text == "m" {
                assert_eq!(got, Ok("0".into()), "upstream reads a lone suffix as zero");
                continue;
            }
            assert_eq!(got, Err(error), "{text}");
        }
    }

    #[test]
    fn arithmetic_is_exact_and_keeps_the_left_format() {
        let q = |t| Quantity::parse(t).unwrap();
        assert_eq!(q("1Gi").add(&q("512Mi")).to_string(), "1536Mi");
        assert_eq!(q("1").sub(&q("100m")).to_string(), "900m");
        assert_eq!(Quantity::ZERO.add(&q("1Ki")).to_string(), "1Ki");
        assert_eq!((q("1001m").value(), q("-1001m").value(), q("1u").milli_value()), (2, -2, 1));
        assert!(q("1") == q("1000m") && q("1Ki") > q("1k") && q("1e100") > q("1E"));
        let mut fine = q("1.0001");
        fine.round_up(-3);
        assert_eq!(fine.to_string(), "1001m");
        assert_eq!(q("250m").times(4).to_string(), "1");
    }
}
