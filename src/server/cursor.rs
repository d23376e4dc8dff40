//! Pure: a cursor over an object being validated: it knows the value, its path and its type, so that a rule is one line.
//!
//! [`At::root`] starts; [`At::get`], [`At::each`] and [`At::entries`] walk; the other methods look at the value or
//! complain about it in upstream's words. Complaints show values as upstream's Go types print ([`schema::show`]).

use std::cell::RefCell;
use std::fmt::{self, Display};

use crate::api::quantity::Quantity;
use crate::api::schema::{self, Shape, TypeRef};
use crate::api::status::{FieldError, FieldReason};
use crate::api::value::Value;

use super::validation as check;

/// What is wrong so far, and the steps of all paths walked: they become text only in complaints.
#[derive(Default)]
pub struct Errors {
    found: RefCell<Vec<FieldError>>,
    /// Step 0 is before the first.
    steps: RefCell<Vec<Taken>>,
}

/// A step, and the numbers of those before it.
struct Taken {
    /// As the path is shown.
    shown: u32,
    /// From the root of the object, whatever places are called.
    real: u32,
    step: Step,
}

enum Step {
    Key(&'static str),
    Member(Box<str>),
    Index(usize),
    Entry(Box<str>),
    /// A whole path.
    Called(Box<str>),
}

/// The path to a place, shown as `spec.containers[0].image`.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    errors: &'a Errors,
    last: u32,
}

static NULL: Value = Value::Null;

/// A place in the object.
#[derive(Clone, Copy)]
pub struct At<'a> {
    /// Null where the object has nothing.
    pub value: &'a Value,
    /// As complaints have it.
    pub path: Path<'a>,
    /// What type the place has is looked up in complaints only: the root's, and the last step from there.
    root: TypeRef,
    way: u32,
}

/// Runs `rules` from the root of an object of type `ty`.
pub fn validate(ty: TypeRef, object: &Value, rules: impl FnOnce(&At)) -> Vec<FieldError> {
    let errors = Errors::default();
    rules(&At::root(&errors, ty, object));
    errors.found.into_inner()
}

/// The same from a place within: `value` is of the named type and at `path`.
pub fn part(errors: &mut Vec<FieldError>, type_name: &str, path: impl Display, value: &Value, rules: impl FnOnce(&At)) {
    let own = Errors { found: RefCell::new(std::mem::take(errors)), ..Errors::default() };
    let ty = schema::type_named(type_name).expect("named from the table");
    rules(&At::root(&own, ty, value).called(path));
    *errors = own.found.into_inner();
}

impl<'a> Path<'a> {
    fn then(self, step: Step, real: u32) -> Path<'a> {
        let mut steps = self.errors.steps.borrow_mut();
        steps.push(Taken { shown: self.last, real, step });
        Path { last: steps.len() as u32, ..self }
    }

    /// The path to a member, without a place there.
    pub fn key(self, key: &'static str) -> Path<'a> {
        self.then(Step::Key(key), 0)
    }
}

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.errors.steps.borrow();
        let mut way = Vec::new();
        let mut at = self.last;
        while let Some(taken) = (at as usize).checked_sub(1).map(|i| &steps[i]) {
            way.push(&taken.step);
            at = taken.shown;
        }
        let mut dot = "";
        for step in way.iter().rev() {
            match step {
                Step::Key(key) => write!(f, "{dot}{key}")?,
                Step::Member(key) => write!(f, "{dot}{key}")?,
                Step::Index(n) => write!(f, "[{n}]")?,
                Step::Entry(key) => write!(f, "[{key}]")?,
                Step::Called(path) => f.write_str(path)?,
            }
            dot = if matches!(step, Step::Called(path) if path.is_empty()) { "" } else { "." };
        }
        Ok(())
    }
}

impl<'a> At<'a> {
    pub fn root(errors: &'a Errors, ty: TypeRef, value: &'a Value) -> At<'a> {
        At { value, path: Path { errors, last: 0 }, root: ty, way: 0 }
    }

    /// One step on, to `value`.
    fn then(&self, step: Step, value: &'a Value) -> At<'a> {
        let path = self.path.then(step, self.way);
        At { value, path, way: path.last, ..*self }
    }

    fn shape(&self) -> Shape {
        let steps = self.path.errors.steps.borrow();
        let mut way = Vec::new();
        let mut at = self.way;
        while let Some(taken) = (at as usize).checked_sub(1).map(|i| &steps[i]) {
            way.push(&taken.step);
            at = taken.real;
        }
        way.iter().rev().fold(Shape::of(self.root), |shape, step| match step {
            Step::Key(key) => shape.member(key),
            Step::Member(key) => shape.member(key),
            Step::Index(_) | Step::Entry(_) => shape.element(),
            Step::Called(_) => shape,
        })
    }

    // --- walking

    /// A member by its JSON name.
    pub fn get(&self, key: &'static str) -> At<'a> {
        self.then(Step::Key(key), self.value.get(key).unwrap_or(&NULL))
    }

    /// A member whose name only the object knows.
    pub fn member(&self, key: &str) -> At<'a> {
        self.then(Step::Member(key.into()), self.value.get(key).unwrap_or(&NULL))
    }

    /// Member of member.
    pub fn at(&self, keys: &[&'static str]) -> At<'a> {
        keys.iter().fold(*self, |at, key| at.get(key))
    }

    /// The items of a list.
    pub fn each(&self) -> Vec<At<'a>> {
        let items = self.value.as_list().unwrap_or(&[]).iter().enumerate();
        items.map(|(i, value)| self.then(Step::Index(i), value)).collect()
    }

    /// The entries of a map, at `path[key]`.
    pub fn entries(&self) -> Vec<(&'a str, At<'a>)> {
        let entries = self.value.as_map().into_iter().flat_map(|m| m.iter());
        entries.map(|(key, value)| (key, self.then(Step::Entry(key.into()), value))).collect()
    }

    /// The same value under another path: upstream names some places oddly.
    pub fn called(&self, path: impl Display) -> At<'a> {
        let root = Path { last: 0, ..self.path };
        At { path: root.then(Step::Called(path.to_string().into()), 0), ..*self }
    }

    /// The same value under the path of another place.
    pub fn as_at(&self, path: Path<'a>) -> At<'a> {
        At { path, ..*self }
    }

    /// The same place in another object, the old one say.
    pub fn over(&self, value: Option<&'a Value>) -> At<'a> {
        At { value: value.unwrap_or(&NULL), ..*self }
    }

    /// The path of the place above, as far as it goes (the value there is not known).
    pub fn parent_path(&self) -> String {
        self.path.to_string().rsplit_once('.').map_or_else(String::new, |(parent, _)| parent.to_string())
    }

    // --- looking

    /// Present and not null.
    pub fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Absent, or an empty string, list or map.
    pub fn is_empty(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::Str(s) => s.is_empty(),
            Value::List(l) => l.is_empty(),
            Value::Map(m) => m.is_empty(),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => false,
        }
    }

    pub fn str(&self) -> &'a str {
        self.value.as_str().unwrap_or("")
    }

    pub fn int(&self) -> i64 {
        self.value.as_i64().unwrap_or(0)
    }

    pub fn flag(&self) -> bool {
        self.value.as_bool().unwrap_or(false)
    }

    pub fn len(&self) -> usize {
        match self.value {
            Value::List(l) => l.len(),
            Value::Map(m) => m.len(),
            Value::Str(s) => s.len(),
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) => 0,
        }
    }

    pub fn quantity(&self) -> Option<Quantity> {
        Quantity::parse(self.value.as_str()?).ok()
    }

    /// The strings of a list.
    pub fn strings(&self) -> Vec<&'a str> {
        self.value.as_list().unwrap_or(&[]).iter().filter_map(Value::as_str).collect()
    }

    /// The value as messages show it.
    pub fn shown(&self) -> String {
        schema::show(self.shape(), self.value)
    }

    /// How many complaints there are.
    pub fn complaints(&self) -> usize {
        self.path.errors.found.borrow().len()
    }

    // --- complaining

    pub fn push(&self, error: FieldError) {
        self.path.errors.found.borrow_mut().push(error);
    }

    /// For checks that are written without cursors.
    pub fn with(&self, rules: impl FnOnce(&mut Vec<FieldError>, &dyn Display)) {
        rules(&mut self.path.errors.found.borrow_mut(), &self.path);
    }

    fn complain(&self, reason: FieldReason, shown: String, why: impl Into<String>) {
        self.push(FieldError { reason, field: self.path.to_string(), shown, detail: why.into() });
    }

    pub fn required(&self, why: impl Into<String>) {
        self.complain(FieldReason::Required, String::new(), why);
    }

    pub fn forbidden(&self, why: impl Into<String>) {
        self.complain(FieldReason::Forbidden, String::new(), why);
    }

    pub fn invalid(&self, why: impl Into<String>) {
        self.complain(FieldReason::Invalid, self.shown(), why);
    }

    /// Invalid, showing something else than what is there.
    pub fn invalid_as(&self, shown: impl Into<Value>, why: impl Into<String>) {
        self.push(FieldError::invalid(self.path, shown, why));
    }

    /// Invalid, showing no value.
    pub fn invalid_bare(&self, why: impl Into<String>) {
        self.complain(FieldReason::Invalid, String::new(), why);
    }

    pub fn duplicate(&self) {
        self.duplicate_because("");
    }

    pub fn duplicate_because(&self, why: &str) {
        self.complain(FieldReason::Duplicate, self.shown(), why);
    }

    pub fn not_found(&self, why: impl Into<String>) {
        self.complain(FieldReason::NotFound, self.shown(), why);
    }

    pub fn unsupported(&self, supported: &[&str]) {
        let mut error = FieldError::not_supported(self.path, Value::Null, supported);
        error.shown = self.shown();
        self.push(error);
    }

    pub fn too_long(&self, max_bytes: usize) {
        self.push(FieldError::too_long(self.path, max_bytes));
    }

    pub fn too_many(&self, max: usize) {
        self.push(FieldError::too_many(self.path, self.len(), max));
    }

    // --- rules

    /// `example.com/path`.
    pub fn domain_prefixed_path(&self) {
        const PATH: &str = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        if !self.must() {
            return;
        }
        match self.str().split_once('/').filter(|(host, path)| !host.is_empty() && !path.is_empty()) {
            None => self.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")"),
            Some((host, path)) => {
                check::subdomain(host).into_iter().for_each(|m| self.invalid_as(host, m));
                if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
                    self.invalid_as(path, PATH);
                }
            }
        }
    }

    /// Required if empty; whether there is something.
    pub fn must(&self) -> bool {
        self.must_because("")
    }

    pub fn must_because(&self, why: &str) -> bool {
        if self.is_empty() {
            self.required(why);
        }
        !self.is_empty()
    }

    /// Invalid once per message about the string.
    pub fn ok(&self, rule: fn(&str) -> Vec<String>) -> bool {
        let messages = rule(self.str());
        let fine = messages.is_empty();
        messages.into_iter().for_each(|m| self.invalid_as(self.str(), m));
        fine
    }

    /// Required, and then checked.
    pub fn must_be(&self, rule: fn(&str) -> Vec<String>) {
        if self.must() {
            self.ok(rule);
        }
    }

    /// Checked if there is something.
    pub fn may_be(&self, rule: fn(&str) -> Vec<String>) {
        if !self.is_empty() {
            self.ok(rule);
        }
    }

    /// One of `supported`, listed as given.
    pub fn one_of(&self, supported: &[&str]) -> bool {
        let fine = supported.contains(&self.str());
        if !fine {
            self.unsupported_str(supported);
        }
        fine
    }

    fn unsupported_str(&self, supported: &[&str]) {
        self.push(FieldError::not_supported(self.path, self.str(), supported));
    }

    /// [`At::one_of`], or absent.
    pub fn maybe_one_of(&self, supported: &[&str]) {
        if self.is_set() {
            self.one_of(supported);
        }
    }

    /// Required if empty, else [`At::one_of`].
    pub fn must_one_of(&self, supported: &[&str]) {
        if self.must() {
            self.one_of(supported);
        }
    }

    /// A number not below zero (absent counts as zero).
    pub fn not_negative(&self) {
        if self.int() < 0 {
            self.invalid("must be greater than or equal to 0");
        }
    }

    pub fn positive(&self) {
        if self.int() <= 0 {
            self.invalid_as(self.int(), "must be greater than zero");
        }
    }

    pub fn between(&self, low: i64, high: i64) {
        check::between(self.int(), low, high).into_iter().for_each(|m| self.invalid_as(self.int(), m));
    }

    /// Not what it was.
    pub fn immutable(&self, old: &At) {
        if !same(self.value, old.value) {
            self.invalid(check::IMMUTABLE);
        }
    }

    /// Complains about items that were there before; what makes an item itself is `key`.
    pub fn unique<K: PartialEq>(&self, key: impl Fn(&At<'a>) -> K) {
        let items = self.each();
        let mut seen: Vec<K> = Vec::with_capacity(items.len());
        for item in &items {
            let k = key(item);
            if seen.contains(&k) {
                item.duplicate();
            }
            seen.push(k);
        }
    }

    /// A map of labels.
    pub fn labels(&self) {
        self.with(|errors, at| check::labels(errors, at, Some(self.value)));
    }

    /// A `metav1.LabelSelector`; absent is fine.
    pub fn label_selector(&self) {
        if self.is_set() {
            self.with(|errors, at| check::label_selector(errors, at, Some(self.value)));
        }
    }

    /// A percentage or a number not below zero.
    pub fn int_or_percent(&self) {
        match self.value {
            Value::Int(n) if *n < 0 => self.invalid("must be greater than or equal to 0"),
            Value::Str(s) if percent(s).is_none() => self.invalid(PERCENT),
            _ => {}
        }
    }

    /// How much a percentage is, if it is one.
    pub fn percent(&self) -> Option<i64> {
        percent(self.value.as_str()?)
    }
}

const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for \
    validation is '[0-9]+%')";

fn percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%').filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

/// Equal as upstream compares: absent, empty list and empty map are the same.
pub fn same(a: &Value, b: &Value) -> bool {
    let empty = |v: &Value| match v {
        Value::Null => true,
        Value::List(l) => l.is_empty(),
        Value::Map(m) => m.is_empty(),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) => false,
    };
    match (a, b) {
        (Value::Map(a), Value::Map(b)) => {
            let one_way = |a: &crate::api::value::Map, b: &crate::api::value::Map| {
                a.iter().all(|(key, v)| match b.get(key) {
                    Some(w) => same(v, w),
                    None => matches!(v, Value::Null) || matches!(v, Value::List(l) if l.is_empty()),
                })
            };
            one_way(a, b) && one_way(b, a)
        }
        (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) => a == b || (!matches!((a, b), (Value::Map(_), _) | (_, Value::Map(_))) && empty(a) && empty(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    fn texts(object: Value, rules: impl FnOnce(&At)) -> Vec<String> {
        validate(schema::type_of("v1", "Pod").unwrap(), &object, rules).iter().map(FieldError::to_string).collect()
    }

    #[test]
    fn rules_name_their_place_and_show_what_is_there() {
        let pod =
            value!({"spec": {"containers": [{"name": "A", "ports": [{"containerPort": 0, "name": "x"}]}], "restartPolicy": "Sometimes"}});
        let found = texts(pod, |pod| {
            let spec = pod.get("spec");
            spec.get("restartPolicy").one_of(&["Always", "Never"]);
            for c in spec.get("containers").each() {
                c.get("name").must_be(check::label);
                c.get("image").must();
                c.get("ports").each()[0].invalid("odd");
            }
        });
        assert_eq!(found[0], "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\"");
        assert!(found[1].starts_with("spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label"), "{}", found[1]);
        assert_eq!(found[2], "spec.containers[0].image: Required value");
        assert_eq!(
            found[3],
            "spec.containers[0].ports[0]: Invalid value: {\"Name\":\"x\",\"HostPort\":0,\"ContainerPort\":0,\"Protocol\":\"\",\"HostIP\":\"\"}: odd"
        );
    }

    #[test]
    fn sameness() {
        assert!(same(&value!({"a": []}), &value!({})));
        assert!(!same(&value!({"a": {}}), &value!({})), "an empty struct is set");
        assert!(!same(&value!({"a": 1}), &value!({"a": 2})));
    }
}
