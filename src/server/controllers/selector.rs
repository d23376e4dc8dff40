//! Pure: label selectors of objects (`matchLabels`, `matchExpressions`) against the labels of rows.

use crate::api::value::Value;

/// A parsed label selector. An absent one matches nothing; an empty one everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selector {
    nothing: bool,
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq)]
struct Term {
    key: String,
    op: Op,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
    /// Not an operator we know: matches nothing.
    Unknown,
}

impl Op {
    fn of(text: &str) -> Op {
        match text {
            "In" => Op::In,
            "NotIn" => Op::NotIn,
            "Exists" => Op::Exists,
            "DoesNotExist" => Op::DoesNotExist,
            "Gt" => Op::Gt,
            "Lt" => Op::Lt,
            _ => Op::Unknown,
        }
    }
}

impl Selector {
    /// From a `LabelSelector`.
    pub fn of(selector: Option<&Value>) -> Selector {
        let Some(selector) = selector.filter(|s| s.as_map().is_some()) else { return Selector { nothing: true, terms: Vec::new() } };
        let mut parsed = Selector::of_labels(selector.get("matchLabels"));
        parsed.nothing = false;
        parsed.terms.extend(selector.list_at(&["matchExpressions"]).iter().map(Term::of));
        parsed
    }

    /// From a map of labels that have to be there, as services have it; an absent map matches nothing.
    pub fn of_labels(labels: Option<&Value>) -> Selector {
        let Some(labels) = labels.and_then(Value::as_map) else { return Selector { nothing: true, terms: Vec::new() } };
        let terms = labels.iter().map(|(key, value)| Term {
            key: key.to_string(),
            op: Op::In,
            values: vec![value.as_str().unwrap_or("").to_string()],
        });
        Selector { nothing: false, terms: terms.collect() }
    }

    /// From a list of requirements (`matchExpressions` of node affinity).
    pub fn of_requirements(list: &[Value]) -> Selector {
        Selector { nothing: false, terms: list.iter().map(Term::of).collect() }
    }

    /// The same, and this label has this value.
    pub fn and(mut self, key: &str, value: &str) -> Selector {
        self.terms.push(Term { key: key.into(), op: Op::In, values: vec![value.into()] });
        self
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether it can match anything at all and says something.
    pub fn selects(&self) -> bool {
        !self.nothing && !self.terms.is_empty()
    }

    pub fn matches(&self, labels: &[(String, String)]) -> bool {
        !self.nothing && self.terms.iter().all(|term| term.matches(labels))
    }
}

impl Term {
    fn of(requirement: &Value) -> Term {
        let values = requirement.list_at(&["values"]).iter().filter_map(Value::as_str).map(str::to_string);
        Term { key: requirement.str_at(&["key"]).into(), op: Op::of(requirement.str_at(&["operator"])), values: values.collect() }
    }

    fn matches(&self, labels: &[(String, String)]) -> bool {
        let value = labels.iter().find(|(k, _)| *k == self.key).map(|(_, v)| v);
        match self.op {
            Op::In => value.is_some_and(|v| self.values.contains(v)),
            Op::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Op::Exists => value.is_some(),
            Op::DoesNotExist => value.is_none(),
            Op::Gt => self.compare(value, |a, b| a > b),
            Op::Lt => self.compare(value, |a, b| a < b),
            Op::Unknown => false,
        }
    }

    fn compare(&self, value: Option<&String>, test: fn(i64, i64) -> bool) -> bool {
        let number = |text: &String| text.parse::<i64>().ok();
        match (value.and_then(number), self.values.first().and_then(number)) {
            (Some(a), Some(b)) => test(a, b),
            _ => false,
        }
    }
}
