//! Pure: label and field selectors: parsed from query strings and `LabelSelector` trees, matched against labels.
//!
//! Parsing follows upstream's lexer, so that the complaints are the ones clients know. Start at [`Selector::parse`],
//! [`Selector::from_value`] and [`FieldSelector::parse`].

use super::value::Value;

/// A conjunction of requirements on labels; empty selects everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selector {
    pub requirements: Vec<Requirement>,
    /// Selects nothing at all: what an absent LabelSelector means.
    nothing: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

impl Selector {
    /// Selects everything.
    pub fn everything() -> Selector {
        Selector::default()
    }

    /// Selects nothing.
    pub fn nothing() -> Selector {
        Selector { requirements: Vec::new(), nothing: true }
    }

    /// A `labelSelector` query parameter.
    pub fn parse(text: &str) -> Result<Selector, String> {
        let requirements = Parser { tokens: lex(text), at: 0 }.requirements()?;
        Ok(Selector { requirements, nothing: false })
    }

    /// A `metav1.LabelSelector` tree: absent selects nothing, empty selects everything. `Err` names the bad operator.
    pub fn from_value(value: Option<&Value>) -> Result<Selector, String> {
        let Some(value) = value.filter(|v| !v.is_null()) else { return Ok(Selector::nothing()) };
        let mut requirements = Vec::new();
        for (key, v) in value.map_at(&["matchLabels"]).into_iter().flat_map(|m| m.iter()) {
            let values = vec![v.as_str().unwrap_or("").to_string()];
            requirements.push(Requirement { key: key.to_string(), operator: Operator::In, values });
        }
        for e in value.list_at(&["matchExpressions"]) {
            let operator = match e.str_at(&["operator"]) {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                "Gt" => Operator::GreaterThan,
                "Lt" => Operator::LessThan,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            let values = e.list_at(&["values"]).iter().filter_map(Value::as_str).map(str::to_string).collect();
            requirements.push(Requirement { key: e.str_at(&["key"]).to_string(), operator, values });
        }
        Ok(Selector { requirements, nothing: false })
    }

    /// A plain map of labels, as Services and ReplicationControllers have it; an empty one selects nothing.
    pub fn from_map(value: Option<&Value>) -> Selector {
        let Some(map) = value.and_then(Value::as_map).filter(|m| !m.is_empty()) else { return Selector::nothing() };
        let requirement = |(k, v): (&str, &Value)| Requirement {
            key: k.to_string(),
            operator: Operator::In,
            values: vec![v.as_str().unwrap_or("").to_string()],
        };
        Selector { requirements: map.iter().map(requirement).collect(), nothing: false }
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// `label` looks a key up.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }

    pub fn matches_labels(&self, labels: &[(&str, &str)]) -> bool {
        self.matches(|key| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v))
    }

    /// Against `metadata.labels` of a tree.
    pub fn matches_value(&self, object: &Value) -> bool {
        let labels = object.map_at(&["metadata", "labels"]);
        self.matches(|key| labels.and_then(|m| m.get(key)).and_then(Value::as_str))
    }
}

impl Requirement {
    pub fn matches(&self, value: Option<&str>) -> bool {
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.iter().any(|x| x == v)),
            Operator::NotIn => value.is_none_or(|v| !self.values.iter().any(|x| x == v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => self.compare(value, |a, b| a > b),
            Operator::LessThan => self.compare(value, |a, b| a < b),
        }
    }

    fn compare(&self, value: Option<&str>, ok: impl Fn(i64, i64) -> bool) -> bool {
        let bound = self.values.first().and_then(|v| v.parse().ok());
        matches!((value.and_then(|v| v.parse().ok()), bound), (Some(a), Some(b)) if ok(a, b))
    }
}

/// As a query parameter; `Scale.status.selector` is written so, too.
impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted: Vec<&Requirement> = self.requirements.iter().collect();
        sorted.sort_by(|a, b| a.key.cmp(&b.key));
        let texts: Vec<String> = sorted.into_iter().map(Requirement::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

impl std::fmt::Display for Requirement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = &self.key;
        let mut values = self.values.clone();
        values.sort();
        let list = values.join(",");
        match self.operator {
            Operator::In if values.len() == 1 => write!(f, "{key}={list}"),
            Operator::In => write!(f, "{key} in ({list})"),
            Operator::NotIn if values.len() == 1 => write!(f, "{key}!={list}"),
            Operator::NotIn => write!(f, "{key} notin ({list})"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{list}"),
            Operator::LessThan => write!(f, "{key}<{list}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    /// `=`, `==`, `!=`, `!`, `,`, `(`, `)`, `<`, `>`, or a run of these that means nothing.
    Sign(&'static str),
    Bad(String),
}

const SIGNS: [&str; 9] = ["==", "!=", "=", "!", ",", "(", ")", "<", ">"];

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Word(w) | Token::Bad(w) => w,
            Token::Sign(s) => s,
        }
    }
}

fn lex(text: &str) -> Vec<Token> {
    let is_sign = |c: char| "=!,()<>".contains(c);
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches([' ', '\t', '\r', '\n']);
    while !rest.is_empty() {
        if rest.starts_with(is_sign) {
            match SIGNS.iter().find(|s| rest.starts_with(**s)) {
                Some(sign) => {
                    tokens.push(Token::Sign(sign));
                    rest = &rest[sign.len()..];
                }
                None => {
                    tokens.push(Token::Bad(rest[..1].to_string()));
                    rest = &rest[1..];
                }
            }
        } else {
            let end = rest.find(|c: char| is_sign(c) || " \t\r\n".contains(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_string()));
            rest = &rest[end..];
        }
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
    }
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.peek(), Some(Token::Sign(s)) if *s == sign)
    }

    fn text(token: Option<&Token>) -> String {
        token.map_or(String::new(), |t| t.text().to_string())
    }

    fn requirements(mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                None => return Ok(requirements),
                Some(Token::Word(_) | Token::Sign("!")) => {
                    let requirement = self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?;
                    requirements.push(requirement);
                    match self.next() {
                        None => return Ok(requirements),
                        Some(Token::Sign(",")) => match self.peek() {
                            Some(Token::Word(_) | Token::Sign("!")) => {}
                            other => return Err(format!("found '{}', expected: identifier after ','", Self::text(other))),
                        },
                        other => return Err(format!("found '{}', expected: ',' or 'end of string'", Self::text(other.as_ref()))),
                    }
                }
                other => return Err(format!("found '{}', expected: !, identifier, or 'end of string'", Self::text(other))),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut token = self.next();
        let absent = token == Some(Token::Sign("!"));
        if absent {
            token = self.next();
        }
        let Some(Token::Word(key)) = token else { return Err(format!("found '{}', expected: identifier", Self::text(token.as_ref()))) };
        let problems = qualified_name(&key);
        if !problems.is_empty() {
            return Err(format!("<nil>: Invalid value: {key:?}: {}", problems.join("; ")));
        }
        if absent {
            return Ok(Requirement { key, operator: Operator::DoesNotExist, values: Vec::new() });
        }
        if self.peek().is_none() || self.is_sign(",") {
            return Ok(Requirement { key, operator: Operator::Exists, values: Vec::new() });
        }
        let (operator, is_set) = match self.next() {
            Some(Token::Sign("=" | "==")) => (Operator::In, false),
            Some(Token::Sign("!=")) => (Operator::NotIn, false),
            Some(Token::Sign(">")) => (Operator::GreaterThan, false),
            Some(Token::Sign("<")) => (Operator::LessThan, false),
            Some(Token::Word(w)) if w == "in" => (Operator::In, true),
            Some(Token::Word(w)) if w == "notin" => (Operator::NotIn, true),
            other => return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", Self::text(other.as_ref()))),
        };
        let values = if is_set { self.set()? } else { vec![self.exact()?] };
        check_values(&key, operator, &values)?;
        Ok(Requirement { key, operator, values })
    }

    fn exact(&mut self) -> Result<String, String> {
        if self.peek().is_none() || self.is_sign(",") {
            return Ok(String::new());
        }
        match self.next() {
            Some(Token::Word(w)) => Ok(w),
            other => Err(format!("found '{}', expected: identifier", Self::text(other.as_ref()))),
        }
    }

    fn set(&mut self) -> Result<Vec<String>, String> {
        match self.next() {
            Some(Token::Sign("(")) => {}
            other => return Err(format!("found '{}' expected: '('", Self::text(other.as_ref()))),
        }
        let mut values: Vec<String> = Vec::new();
        let mut expect_value = true;
        loop {
            match self.next() {
                Some(Token::Word(w)) if expect_value => {
                    values.push(w);
                    expect_value = false;
                    if !self.is_sign(",") && !self.is_sign(")") {
                        return Err(format!("found '{}', expected: ',' or ')'", Self::text(self.peek())));
                    }
                }
                Some(Token::Sign(",")) => {
                    if expect_value {
                        values.push(String::new());
                    }
                    expect_value = true;
                }
                Some(Token::Sign(")")) => {
                    if expect_value {
                        values.push(String::new());
                    }
                    values.sort();
                    values.dedup();
                    return Ok(values);
                }
                other if values.is_empty() => {
                    return Err(format!("found '{}', expected: ',', ')' or identifier", Self::text(other.as_ref())));
                }
                other => return Err(format!("found '{}', expected: ',', or identifier", Self::text(other.as_ref()))),
            }
        }
    }
}

fn check_values(key: &str, operator: Operator, values: &[String]) -> Result<(), String> {
    if matches!(operator, Operator::GreaterThan | Operator::LessThan)
        && let Some(bad) = values.iter().find(|v| v.parse::<i64>().is_err())
    {
        return Err(format!("values[0]: Invalid value: {bad:?}: for 'Gt', 'Lt' operators, the value must be an integer"));
    }
    for (i, v) in values.iter().enumerate() {
        let problems = label_value(v);
        if !problems.is_empty() {
            return Err(format!("values[{i}][{key}]: Invalid value: {v:?}: {}", problems.join("; ")));
        }
    }
    Ok(())
}

const NAME_PART: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character \
                         (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and \
                         end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
                         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn is_name(text: &str) -> bool {
    let b = text.as_bytes();
    let ends = |c: &u8| c.is_ascii_alphanumeric();
    b.first().is_some_and(ends) && b.last().is_some_and(ends) && b.iter().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(c))
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(|l| {
        let b = l.as_bytes();
        let ends = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        b.first().is_some_and(ends) && b.last().is_some_and(ends) && b.iter().all(|c| ends(c) || *c == b'-')
    })
}

/// What is wrong with a label key, in upstream's words.
pub fn qualified_name(key: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let parts: Vec<&str> = key.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                problems.push("prefix part must be non-empty".to_string());
            } else {
                if prefix.len() > 253 {
                    problems.push("prefix part must be no more than 253 bytes".to_string());
                }
                if !is_subdomain(prefix) {
                    problems.push(format!("prefix part {SUBDOMAIN}"));
                }
            }
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {NAME_PART} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".to_string());
    } else if name.len() > 63 {
        problems.push("name part must be no more than 63 bytes".to_string());
    }
    if !is_name(name) {
        problems.push(format!("name part {NAME_PART}"));
    }
    problems
}

/// What is wrong with a label value, in upstream's words.
pub fn label_value(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.len() > 63 {
        problems.push("must be no more than 63 bytes".to_string());
    }
    if !value.is_empty() && !is_name(value) {
        problems.push(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
             alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
             '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .to_string(),
        );
    }
    problems
}

/// A conjunction of `field=value` and `field!=value`; empty selects everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldSelector {
    pub terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct FieldTerm {
    pub field: String,
    pub value: String,
    /// `=` or `==`, as against `!=`.
    pub equals: bool,
}

impl FieldSelector {
    /// A `fieldSelector` query parameter. Backslash escapes backslash, comma and equals sign in values.
    pub fn parse(text: &str) -> Result<FieldSelector, String> {
        let mut terms = Vec::new();
        for term in split_terms(text).into_iter().filter(|t| !t.is_empty()) {
            let found =
                term.char_indices().find_map(|(i, _)| ["!=", "==", "="].into_iter().find(|o| term[i..].starts_with(o)).map(|o| (i, o)));
            let Some((at, operator)) = found else { return Err(format!("invalid selector: '{text}'; can't understand '{term}'")) };
            let value = unescape(&term[at + operator.len()..])?;
            // Nothing asked of nothing is no demand.
            if at == 0 && value.is_empty() {
                continue;
            }
            terms.push(FieldTerm { field: term[..at].to_string(), value, equals: operator != "!=" });
        }
        Ok(FieldSelector { terms })
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// `field` looks a field's text up.
    pub fn matches(&self, field: impl Fn(&str) -> String) -> bool {
        self.terms.iter().all(|t| (field(&t.field) == t.value) == t.equals)
    }

    /// The value a field must have, if the selector pins it.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equals && t.field == field).map(|t| t.value.as_str())
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(e @ ('\\' | ',' | '=')) => out.push(e),
                Some(e) => return Err(format!("invalid field selector: invalid escape sequence: \\{e}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".to_string()),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {}", c as u32)),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn label_selectors_match_like_upstream() {
        let labels = [("a", "b"), ("n", "5")];
        for (text, want) in [
            ("", true),
            ("a=b", true),
            ("a==b", true),
            ("a!=b", false),
            ("z!=b", true),
            ("a in (b,c)", true),
            ("a notin (b,c)", false),
            ("z notin (b)", true),
            ("a", true),
            ("!a", false),
            ("!z", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("a=b,z", false),
            ("a in ()", false),
            ("z=", false),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches_labels(&labels), want, "{text}");
        }
    }

    #[test]
    fn complaints_are_upstreams() {
        for (text, want) in [
            ("a===b", "unable to parse requirement: found '=', expected: identifier"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            (
                "a>1,b<x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            assert_eq!(Selector::parse(text).unwrap_err(), want, "{text}");
        }
        assert!(
            Selector::parse("UPPER_//x")
                .unwrap_err()
                .starts_with("unable to parse requirement: <nil>: Invalid value: \"UPPER_//x\": a valid label key")
        );
    }

    #[test]
    fn an_absent_selector_selects_nothing_and_an_empty_one_everything() {
        assert!(!Selector::from_value(None).unwrap().matches_labels(&[]));
        assert!(Selector::from_value(Some(&value!({}))).unwrap().matches_labels(&[]));
        assert!(!Selector::from_map(Some(&value!({}))).matches_labels(&[]));
        let s = Selector::from_value(Some(
            &value!({"matchLabels": {"b": "1"}, "matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["y", "x"]}]}),
        ));
        assert_eq!(s.unwrap().to_string(), "a notin (x,y),b=1");
    }

    #[test]
    fn field_selectors() {
        let s = FieldSelector::parse("metadata.name=a\\,b,status.phase!=Running").unwrap();
        assert!(s.matches(|f| if f == "metadata.name" { "a,b".into() } else { "Pending".into() }));
        assert_eq!(s.required("metadata.name"), Some("a,b"));
        assert_eq!(
            FieldSelector::parse("metadata.name").unwrap_err(),
            "invalid selector: 'metadata.name'; can't understand 'metadata.name'"
        );
    }
}
