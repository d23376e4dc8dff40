//! Pure: the checks many kinds share: names, labels, object metadata, ports, addresses, selectors. Strings in, upstream's
//! messages out; none means valid.
//!
//! Start at [`metadata`] and [`metadata_update`], which the pipeline calls for every kind.

use std::fmt::Display;

use crate::api::json::go_quote;
use crate::api::status::FieldError;
use crate::api::value::Value;
use crate::server::strategy::NameRule;

pub const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
    start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
pub const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end \
    with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
pub const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
    character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
    '[a-z]([-a-z0-9]*[a-z0-9])?')";
const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
    character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_KEY: &str = "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start \
    and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
    '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  \
    or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const HTTP_HEADER: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for \
    validation is '[-A-Za-z0-9]+')";
const ENV_NAME: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";
pub const IMMUTABLE: &str = "field is immutable";
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

type Messages = Vec<String>;

fn when(bad: bool, message: impl Into<String>) -> Messages {
    if bad { vec![message.into()] } else { Vec::new() }
}

fn is_label(s: &str) -> bool {
    let b = s.as_bytes();
    let inner = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-';
    !b.is_empty() && b.iter().all(inner) && b[0] != b'-' && b[b.len() - 1] != b'-'
}

/// `([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]`
fn is_name_part(s: &str) -> bool {
    let b = s.as_bytes();
    let inner = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    !b.is_empty() && b.iter().all(inner) && b[0].is_ascii_alphanumeric() && b[b.len() - 1].is_ascii_alphanumeric()
}

/// RFC 1123 subdomain.
pub fn subdomain(s: &str) -> Messages {
    let mut messages = when(s.len() > 253, "must be no more than 253 characters");
    messages.extend(when(!s.split('.').all(is_label), SUBDOMAIN));
    messages
}

/// [`subdomain`] in the words of kinds that are validated declaratively, which let prefixes be.
pub fn long_name(s: &str, is_prefix: bool) -> Messages {
    if is_prefix {
        return Messages::new();
    }
    subdomain(s).into_iter().map(|m| m.replace("253 characters", "253 bytes")).collect()
}

/// RFC 1123 label.
pub fn label(s: &str) -> Messages {
    let mut messages = when(s.len() > 63, "must be no more than 63 characters");
    if !is_label(s) {
        messages.push(if s.split('.').all(is_label) { "must not contain dots".to_string() } else { LABEL.to_string() });
    }
    messages
}

/// RFC 1035 label.
pub fn label_1035(s: &str) -> Messages {
    let mut messages = when(s.len() > 63, "must be no more than 63 characters");
    messages.extend(when(!is_label(s) || !s.starts_with(|c: char| c.is_ascii_lowercase()), LABEL_1035));
    messages
}

/// A path segment: what RBAC kinds are named.
pub fn path_segment(s: &str, is_prefix: bool) -> Messages {
    if !is_prefix && (s == "." || s == "..") {
        return vec![format!("may not be '{s}'")];
    }
    ["/", "%"].iter().flat_map(|bad| when(s.contains(bad), format!("may not contain '{bad}'"))).collect()
}

/// `[prefix/]name`: label keys, finalizers, resource names.
pub fn qualified_name(s: &str) -> Messages {
    let mut messages = Messages::new();
    let name = match s.split_once('/') {
        None => s,
        Some((_, rest)) if rest.contains('/') => return vec![LABEL_KEY.to_string()],
        Some((prefix, name)) => {
            if prefix.is_empty() {
                messages.push("prefix part must be non-empty".to_string());
            } else {
                messages.extend(subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
    };
    if name.is_empty() {
        messages.push("name part must be non-empty".to_string());
    } else if name.len() > 63 {
        messages.push("name part must be no more than 63 bytes".to_string());
    }
    messages.extend(when(!is_name_part(name), NAME_PART));
    messages
}

pub fn label_value(s: &str) -> Messages {
    let mut messages = when(s.len() > 63, "must be no more than 63 bytes");
    messages.extend(when(!s.is_empty() && !is_name_part(s), LABEL_VALUE));
    messages
}

/// Keys of ConfigMaps and Secrets.
pub fn config_key(s: &str) -> Messages {
    let mut messages = when(s.len() > 253, "must be no more than 253 characters");
    let charset = !s.is_empty() && s.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'));
    if !charset {
        messages.push(CONFIG_KEY.to_string());
    } else if s == "." || s == ".." {
        messages.push(format!("must not be '{s}'"));
    } else if s.starts_with("..") {
        messages.push("must not start with '..'".to_string());
    }
    messages
}

pub fn env_name(s: &str) -> Messages {
    when(s.is_empty() || !s.bytes().all(|c| (b' '..=b'~').contains(&c) && c != b'='), ENV_NAME)
}

pub fn http_header(s: &str) -> Messages {
    when(s.is_empty() || !s.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-'), HTTP_HEADER)
}

/// IANA service name: what named ports are called.
pub fn port_name(s: &str) -> Messages {
    let mut messages = when(s.len() > 15, "must be no more than 15 characters");
    if !s.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') {
        messages.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_string());
    }
    messages.extend(when(!s.bytes().any(|c| c.is_ascii_lowercase()), "must contain at least one letter (a-z)"));
    messages.extend(when(s.contains("--"), "must not contain consecutive hyphens"));
    messages.extend(when(s.starts_with('-') || s.ends_with('-'), "must not begin or end with a hyphen"));
    messages
}

pub fn port_number(n: i64) -> Messages {
    between(n, 1, 65535)
}

pub fn between(n: i64, low: i64, high: i64) -> Messages {
    when(n < low || n > high, format!("must be between {low} and {high}, inclusive"))
}

/// An address without leading zeros that is no IPv4 in IPv6's clothes.
pub fn ip(s: &str) -> Messages {
    match parse_ip(s) {
        Some(std::net::IpAddr::V6(v6)) => when(v6.to_ipv4_mapped().is_some(), "must not be an IPv4-mapped IPv6 address"),
        Some(std::net::IpAddr::V4(_)) => Messages::new(),
        None if parse_ip(&without_leading_zeros(s)).is_some() => vec!["must not have leading 0s".to_string()],
        None => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_string()],
    }
}

/// [`ip`], written the one way it is printed.
pub fn canonical_ip(s: &str) -> Messages {
    let messages = ip(s);
    match parse_ip(s).map(|ip| ip.to_string()) {
        Some(canonical) if messages.is_empty() => when(canonical != s, format!("must be in canonical form (\"{canonical}\")")),
        _ => messages,
    }
}

/// An address range with nothing behind the prefix.
pub fn cidr(s: &str) -> Messages {
    let one = |message: &str| vec![message.to_string()];
    let Some((address, length)) = parse_cidr(&without_leading_zeros(s)) else {
        return one("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
    };
    match () {
        () if parse_cidr(s).is_none() => one("must not have leading 0s in IP or prefix length"),
        () if matches!(address, std::net::IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) => {
            one("must not have an IPv4-mapped IPv6 address")
        }
        () if first_address(address, length) != address => one("must not have bits set beyond the prefix length"),
        () => Messages::new(),
    }
}

/// [`cidr`], written the one way it is printed.
pub fn canonical_cidr(s: &str) -> Messages {
    let messages = cidr(s);
    match parse_cidr(s).map(|(ip, length)| format!("{ip}/{length}")) {
        Some(canonical) if messages.is_empty() => when(canonical != s, format!("must be in canonical form (\"{canonical}\")")),
        _ => messages,
    }
}

/// A warning about an address that is valid and not written as it is printed.
pub fn ip_warning(at: &str, ip: &str) -> Option<String> {
    let canonical = parse_ip(ip)?.to_string();
    let text = "should be in RFC 5952 canonical format";
    (ip.contains(':') && canonical != ip).then(|| format!("{at}: IPv6 address {} {text} ({})", go_quote(ip), go_quote(&canonical)))
}

/// The same of a range.
pub fn cidr_warning(at: &str, range: &str) -> Option<String> {
    let (address, length) = parse_cidr(range)?;
    let first = first_address(address, length);
    if first != address {
        let all = if address.is_ipv4() { 32 } else { 128 };
        return Some(format!(
            "{at}: CIDR value {} is ambiguous in this context (should be \"{first}/{length}\" or \"{address}/{all}\"?)",
            go_quote(range)
        ));
    }
    let canonical = format!("{first}/{length}");
    let text = "should be in RFC 5952 canonical format";
    (range.contains(':') && canonical != range)
        .then(|| format!("{at}: IPv6 CIDR value {} {text} ({})", go_quote(range), go_quote(&canonical)))
}

/// Address and prefix length, as written.
pub fn parse_cidr(s: &str) -> Option<(std::net::IpAddr, u32)> {
    let (address, length) = s.split_once('/')?;
    let address = parse_ip(address)?;
    let plain = length == "0" || (!length.starts_with('0') && !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()));
    let length = length.parse().ok().filter(|n| plain && *n <= if address.is_ipv4() { 32 } else { 128 })?;
    Some((address, length))
}

/// The lowest address of a range.
pub fn first_address(address: std::net::IpAddr, length: u32) -> std::net::IpAddr {
    match address {
        std::net::IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            std::net::Ipv4Addr::from(u32::from(v4) & mask).into()
        }
        std::net::IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            std::net::Ipv6Addr::from(u128::from(v6) & mask).into()
        }
    }
}

/// Every run of decimal digits of an IPv4 address (and a prefix length) without its leading zeros.
fn without_leading_zeros(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for part in s.split_inclusive(['.', '/', ':']) {
        let (digits, end) = part.strip_suffix(['.', '/', ':']).map_or((part, ""), |d| (d, &part[d.len()..]));
        let trimmed = digits.trim_start_matches('0');
        let hex = end == ":" || (end.is_empty() && s.contains(':') && !s.contains('/') && !s.contains('.'));
        let numeric = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && !hex;
        out.push_str(match (numeric, trimmed) {
            (true, "") => "0",
            (true, trimmed) => trimmed,
            (false, _) => digits,
        });
        out.push_str(end);
    }
    out
}

/// RFC 1123 subdomain whose first label is `*`.
pub fn wildcard_subdomain(s: &str) -> Messages {
    const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of \
        lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for \
        validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    when(!s.strip_prefix("*.").is_some_and(|rest| rest.split('.').all(is_label)), WILDCARD)
}

/// [`path_segment`] of a whole name.
pub fn segment(s: &str) -> Messages {
    path_segment(s, false)
}

/// An address as Go's parser takes it: no leading zeros, no zone.
pub fn parse_ip(s: &str) -> Option<std::net::IpAddr> {
    s.parse().ok()
}

/// `strconv.Atoi`.
pub fn go_atoi(text: &str) -> Result<i64, String> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let syntax = digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit());
    let why = if syntax { "invalid syntax" } else { "value out of range" };
    let parsed = if syntax { None } else { text.parse().ok() };
    parsed.ok_or_else(|| format!("strconv.Atoi: parsing {}: {why}", go_quote(text)))
}

/// `time.ParseDuration`, in seconds.
pub fn go_duration(text: &str) -> Result<f64, String> {
    let wrong = || format!("time: invalid duration {}", go_quote(text));
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
    if rest == "0" {
        return Ok(0.0);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = rest[digits..].bytes().take_while(|b| !b.is_ascii_digit() && *b != b'.').count();
        let seconds = match &rest[digits..digits + unit] {
            "" => return Err(format!("time: missing unit in duration {}", go_quote(text))),
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            unit => return Err(format!("time: unknown unit {} in duration {}", go_quote(unit), go_quote(text))),
        };
        total += number * seconds;
        rest = &rest[digits + unit..];
    }
    Ok(sign * total)
}

/// Appends one Invalid per message.
pub fn invalid(errors: &mut Vec<FieldError>, field: impl Display, value: &str, messages: Messages) {
    errors.extend(messages.into_iter().map(|m| FieldError::invalid(&field, value, m)));
}

/// Appends Invalid for a number.
pub fn invalid_number(errors: &mut Vec<FieldError>, field: impl Display, value: i64, messages: Messages) {
    errors.extend(messages.into_iter().map(|m| FieldError::invalid(&field, value, m)));
}

/// `field: Unsupported value` unless `value` is one of `supported`.
pub fn one_of(errors: &mut Vec<FieldError>, field: impl Display, value: &str, supported: &[&str]) {
    if !supported.contains(&value) {
        errors.push(FieldError::not_supported(field, value, supported));
    }
}

/// `must be greater than or equal to 0`.
pub fn non_negative(errors: &mut Vec<FieldError>, field: impl Display, value: i64) {
    if value < 0 {
        errors.push(FieldError::invalid(field, value, "must be greater than or equal to 0"));
    }
}

/// Refuses any difference.
pub fn immutable(errors: &mut Vec<FieldError>, field: impl Display, new: Option<&Value>, old: Option<&Value>) {
    let (new, old) = (new.filter(|v| !v.is_null()), old.filter(|v| !v.is_null()));
    if new != old {
        errors.push(FieldError::invalid(field, new.cloned().unwrap_or_default(), IMMUTABLE));
    }
}

/// A map of labels.
pub fn labels(errors: &mut Vec<FieldError>, field: impl Display, labels: Option<&Value>) {
    for (key, value) in labels.and_then(Value::as_map).into_iter().flat_map(|m| m.iter()) {
        invalid(errors, &field, key, qualified_name(key));
        let value = value.as_str().unwrap_or("");
        invalid(errors, &field, value, label_value(value));
    }
}

pub fn annotations(errors: &mut Vec<FieldError>, field: impl Display, annotations: Option<&Value>) {
    let mut bytes = 0;
    for (key, value) in annotations.and_then(Value::as_map).into_iter().flat_map(|m| m.iter()) {
        invalid(errors, &field, key, qualified_name(&key.to_lowercase()));
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError::too_long(field, ANNOTATIONS_BYTES_MAX));
    }
}

/// A `metav1.LabelSelector`; `None` counts as valid.
pub fn label_selector(errors: &mut Vec<FieldError>, field: impl Display, selector: Option<&Value>) {
    let Some(selector) = selector else { return };
    labels(errors, format_args!("{field}.matchLabels"), selector.at(&["matchLabels"]));
    for (i, requirement) in selector.list_at(&["matchExpressions"]).iter().enumerate() {
        let at = format_args!("{field}.matchExpressions[{i}]");
        let values = requirement.list_at(&["values"]);
        match requirement.str_at(&["operator"]) {
            "In" | "NotIn" => {
                if values.is_empty() {
                    errors.push(FieldError::required(format_args!("{at}.values"), "must be specified when `operator` is 'In' or 'NotIn'"));
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(FieldError::forbidden(format_args!("{at}.values"), why));
                }
            }
            other => errors.push(FieldError::invalid(format_args!("{at}.operator"), other, "not a valid selector operator")),
        }
        let key = requirement.str_at(&["key"]);
        invalid(errors, format_args!("{at}.key"), key, qualified_name(key));
        for (n, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or("");
            invalid(errors, format_args!("{at}.values[{n}]"), value, label_value(value));
        }
    }
}

/// The messages a kind's rule has for a name.
pub fn name(rule: NameRule, name: &str, is_prefix: bool) -> Messages {
    // A prefix may end in a dash or dot: the random suffix follows.
    let masked = match name.strip_suffix(['-', '.']) {
        Some(head) if is_prefix => format!("{head}a"),
        Some(_) | None => name.to_string(),
    };
    match rule {
        NameRule::Subdomain => subdomain(&masked),
        NameRule::Label => label(&masked),
        NameRule::Label1035 => label_1035(&masked),
        NameRule::PathSegment | NameRule::Unchecked => path_segment(name, is_prefix),
        NameRule::Custom(check) => check(name, is_prefix),
    }
}

/// `ObjectMeta` of an object as it will be stored.
pub fn metadata(object: &Value, rule: NameRule, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let empty = Value::map();
    let meta = object.get("metadata").unwrap_or(&empty);
    let generate = meta.str_at(&["generateName"]);
    if !generate.is_empty() {
        invalid(&mut errors, "metadata.generateName", generate, name(rule, generate, true));
    }
    match meta.str_at(&["name"]) {
        "" => errors.push(FieldError::required("metadata.name", "name or generateName is required")),
        own => invalid(&mut errors, "metadata.name", own, name(rule, own, false)),
    }
    match (meta.str_at(&["namespace"]), namespaced) {
        ("", true) => errors.push(FieldError::required("metadata.namespace", "")),
        ("", false) => {}
        (namespace, true) => invalid(&mut errors, "metadata.namespace", namespace, label(namespace)),
        (_, false) => errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type")),
    }
    labels(&mut errors, "metadata.labels", meta.at(&["labels"]));
    annotations(&mut errors, "metadata.annotations", meta.at(&["annotations"]));
    owner_references(&mut errors, meta.list_at(&["ownerReferences"]));
    // Kinds outside the main server, and leases, are without upstream's stricter rule.
    let lax = ["coordination.k8s.io/v1", "apiregistration.k8s.io/v1", "apiextensions.k8s.io/v1"];
    let standard_only = !lax.contains(&object.str_at(&["apiVersion"])) && !matches!(rule, NameRule::Unchecked);
    finalizers(&mut errors, meta.list_at(&["finalizers"]), standard_only);
    errors
}

/// The members of an owner reference in the order messages show them.
const OWNER: [&str; 6] = ["apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"];

/// A map as JSON with its members in the given order, as messages show structs.
pub fn in_order(map: &Value, order: &[&str]) -> String {
    let members = order.iter().filter_map(|key| Some(format!("\"{key}\":{}", map.at(&[key])?)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// The same error with another text for the value.
pub fn shown_as(mut error: FieldError, shown: String) -> FieldError {
    error.shown = shown;
    error
}

/// A `metav1.LabelSelector` as messages show it.
pub fn show_selector(selector: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(labels) = selector.at(&["matchLabels"]) {
        parts.push(format!("\"matchLabels\":{labels}"));
    }
    let requirements = selector.list_at(&["matchExpressions"]);
    if !requirements.is_empty() {
        let all: Vec<String> = requirements.iter().map(show_requirement).collect();
        parts.push(format!("\"matchExpressions\":[{}]", all.join(",")));
    }
    format!("{{{}}}", parts.join(","))
}

fn show_requirement(requirement: &Value) -> String {
    let text = |key: &str| Value::from(requirement.str_at(&[key])).to_string();
    let mut shown = format!("{{\"key\":{},\"operator\":{}", text("key"), text("operator"));
    if let Some(values) = requirement.at(&["values"]) {
        shown = format!("{shown},\"values\":{values}");
    }
    shown + "}"
}

fn owner_references(errors: &mut Vec<FieldError>, owners: &[Value]) {
    const FIELD: &str = "metadata.ownerReferences";
    let mut controller: Option<String> = None;
    for owner in owners {
        let text = |key: &str| owner.str_at(&[key]);
        let version = match text("apiVersion").split('/').collect::<Vec<_>>()[..] {
            [version] | [_, version] => version,
            _ => "",
        };
        if version.is_empty() {
            errors.push(FieldError::invalid(format!("{FIELD}.apiVersion"), text("apiVersion"), "version must not be empty"));
        }
        for key in ["kind", "name", "uid"] {
            if text(key).is_empty() {
                errors.push(FieldError::invalid(format!("{FIELD}.{key}"), "", "must not be empty"));
            }
        }
        if text("apiVersion") == "v1" && text("kind") == "Event" {
            errors.push(shown_as(
                FieldError::invalid(FIELD, "", "/v1, Kind=Event is disallowed from being an owner"),
                in_order(owner, &OWNER),
            ));
        }
        if owner.bool_at(&["controller"]) {
            let this = format!("{}/{}", text("kind"), text("name"));
            match &controller {
                None => controller = Some(this),
                Some(first) => {
                    let why =
                        format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}");
                    let shown: Vec<String> = owners.iter().map(|o| in_order(o, &OWNER)).collect();
                    errors.push(shown_as(FieldError::invalid(FIELD, "", why), format!("[{}]", shown.join(","))));
                }
            }
        }
    }
}

fn finalizers(errors: &mut Vec<FieldError>, finalizers: &[Value], standard_only: bool) {
    const FIELD: &str = "metadata.finalizers";
    let names: Vec<&str> = finalizers.iter().filter_map(Value::as_str).collect();
    for (i, name) in names.iter().enumerate() {
        let at = format!("{FIELD}[{i}]");
        invalid(errors, FIELD, name, qualified_name(name));
        if standard_only && !name.contains('/') && !matches!(*name, "orphan" | "foregroundDeletion" | "kubernetes") {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(at, *name, why));
        }
    }
    if names.contains(&"orphan") && names.contains(&"foregroundDeletion") {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(FIELD, finalizers.to_vec(), why));
    }
}

/// What may not change in `ObjectMeta`, and what is wrong with what may.
pub fn metadata_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for key in ["name", "namespace", "uid", "creationTimestamp"] {
        let path = ["metadata", key];
        immutable(&mut errors, format_args!("metadata.{key}"), new.at(&path), old.at(&path));
    }
    if old.at(&["metadata", "deletionTimestamp"]).is_some() {
        let had = old.list_at(&["metadata", "finalizers"]);
        let added: Vec<String> =
            new.list_at(&["metadata", "finalizers"]).iter().filter(|f| !had.contains(f)).map(|f| format!("{f}")).collect();
        if !added.is_empty() {
            let list = added.join(", ");
            let why = format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}");
            errors.push(FieldError::forbidden("metadata.finalizers", why));
        }
    }
    labels(&mut errors, "metadata.labels", new.at(&["metadata", "labels"]));
    annotations(&mut errors, "metadata.annotations", new.at(&["metadata", "annotations"]));
    owner_references(&mut errors, new.list_at(&["metadata", "ownerReferences"]));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn names() {
        let ok: &[(&str, fn(&str) -> Messages)] = &[
            ("a.b-c.1", subdomain),
            ("a-1", label),
            ("a-1", label_1035),
            ("example.com/My_name.1", qualified_name),
            ("", label_value),
            ("a_b", label_value),
            ("k.e-y", config_key),
            ("A B", env_name),
            ("http", port_name),
            ("10.0.0.1", ip),
            ("::1", ip),
        ];
        for (text, check) in ok {
            assert_eq!(check(text), Messages::new(), "{text}");
        }
        let bad: &[(&str, fn(&str) -> Messages, &str)] = &[
            ("A", subdomain, SUBDOMAIN),
            ("a..b", subdomain, SUBDOMAIN),
            ("a.b", label, "must not contain dots"),
            ("-a", label, LABEL),
            ("1a", label_1035, LABEL_1035),
            ("a/b/c", qualified_name, LABEL_KEY),
            ("/a", qualified_name, "prefix part must be non-empty"),
            ("a b", label_value, LABEL_VALUE),
            ("..a", config_key, "must not start with '..'"),
            ("a=b", env_name, ENV_NAME),
            ("80", port_name, "must contain at least one letter (a-z)"),
            ("010.0.0.1", ip, "must not have leading 0s"),
            ("10.0.0", ip, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
            ("::ffff:1.2.3.4", ip, "must not be an IPv4-mapped IPv6 address"),
            ("2001:DB8::1", canonical_ip, "must be in canonical form (\"2001:db8::1\")"),
            ("10.0.0.1/08", cidr, "must not have leading 0s in IP or prefix length"),
            ("10.0.0.1/8", cidr, "must not have bits set beyond the prefix length"),
            ("10.0.0.0/33", cidr, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
        ];
        for (text, check, want) in bad {
            assert_eq!(check(text).first().map(String::as_str), Some(*want), "{text}");
        }
    }

    #[test]
    fn object_metadata() {
        let texts = |object: &Value| metadata(object, NameRule::Subdomain, true).iter().map(FieldError::to_string).collect::<Vec<_>>();
        let fine = value!({"metadata": {"name": "a", "namespace": "n", "labels": {"a": "b"}, "finalizers": ["example.com/f"]}});
        assert_eq!(texts(&fine), Vec::<String>::new());
        let bad = value!({"metadata": {"namespace": "n", "finalizers": ["x"], "ownerReferences": [{"apiVersion": "v1", "name": "p", "uid": "u"}]}});
        assert_eq!(
            texts(&bad),
            [
                "metadata.name: Required value: name or generateName is required",
                "metadata.ownerReferences.kind: Invalid value: \"\": must not be empty",
                "metadata.finalizers[0]: Invalid value: \"x\": name is neither a standard finalizer name nor is it fully qualified",
            ]
        );
        let prefix = value!({"metadata": {"generateName": "a-", "name": "a-x", "namespace": "n"}});
        assert_eq!(texts(&prefix), Vec::<String>::new());
    }
}
