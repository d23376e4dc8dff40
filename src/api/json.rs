//! Pure: JSON bytes to tree and back, strict, from the field table.
//!
//! [`decode`] reads an object as upstream's typed decoder would: unknown and repeated fields are reported, wrong types are
//! errors in Go's words with Go's idea of the path, and the resulting tree is what Go would print (zero values dropped or
//! shown as each field says, quantities and times canonical). [`parse`] reads any JSON. [`write`] escapes like Go.
//! One recursive parser over bytes serves both; depth is limited because callers choose it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::object::Object;
use super::protobuf;
use super::protobuf::transcode::Head;
use super::quantity::Quantity;
use super::resource::Resource;
use super::schema::{self, Field, Kind, Slots, TypeRef};
use super::time::Time;
use super::value::{Map, Value};

/// Nesting beyond which input is refused.
pub const DEPTH_MAX: usize = 400;
/// Strictness reports kept per object.
const REPORTS_MAX: usize = 100;

/// Reads any JSON.
pub fn parse(bytes: &[u8]) -> Result<Value, String> {
    let mut p = Parser::new(bytes);
    let value = p.any();
    p.end(value)
}

/// Reads an object of type `ty`: the tree, and one text per unknown or repeated field.
pub fn decode(ty: TypeRef, bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    let mut p = Parser::new(bytes);
    let value = p.typed_root(ty);
    match p.end(value) {
        Ok(_) if p.type_error.is_some() => Err(p.type_error.take().unwrap_or_default()),
        Ok(value) => Ok((value, p.reports)),
        Err(error) => Err(error),
    }
}

/// Puts a tree made by other means (a patch, YAML, code) through the same check; drops what [`decode`] would drop.
pub fn conform(ty: TypeRef, value: &mut Value) -> Result<Vec<String>, String> {
    let mut bytes = Vec::with_capacity(1024);
    write_as(value, Whole::AsFloat, &mut bytes);
    let (conformed, reports) = decode(ty, &bytes)?;
    *value = conformed;
    Ok(reports)
}

/// The stored object as JSON of resource `as_`, with `apiVersion`, `kind` and `metadata.resourceVersion`.
pub fn transcode(object: &Object, as_: &Resource, out: &mut Vec<u8>) {
    let api_version = as_.api_version();
    write_object(object, Some((&api_version, as_.kind)), out);
}

/// As lists of built-ins hold it: without `apiVersion` and `kind`.
pub fn transcode_item(object: &Object, out: &mut Vec<u8>) {
    write_object(object, None, out);
}

/// The metadata of a stored object as JSON.
pub fn transcode_metadata(object: &Object, out: &mut Vec<u8>) {
    if let (false, Some(ty)) = (object.is_json(), object.resource.known_type()) {
        let written = protobuf::transcode::member(ty, &object.bytes, "metadata", object.revision, out);
        return written.unwrap_or_else(|e| panic!("stored {} does not decode: {e}", object.resource));
    }
    write(object.value().at(&["metadata"]).unwrap_or(&Value::map()), out);
}

fn write_object(object: &Object, type_meta: Option<(&str, &str)>, out: &mut Vec<u8>) {
    if let (false, Some(ty)) = (object.is_json(), object.resource.known_type()) {
        let head = Head { type_meta, revision: object.revision };
        let written = protobuf::transcode::object(ty, &object.bytes, head, out);
        return written.unwrap_or_else(|e| panic!("stored {} does not decode: {e}", object.resource));
    }
    let mut value = object.value();
    match type_meta {
        Some((api_version, kind)) => {
            value.set(&["apiVersion"], api_version);
            value.set(&["kind"], kind);
        }
        None => {
            value.remove(&["apiVersion"]);
            value.remove(&["kind"]);
        }
    }
    write(&value, out);
}

pub fn to_vec(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    write(value, &mut out);
    out
}

/// Compact JSON, escaped as Go does.
pub fn write(value: &Value, out: &mut Vec<u8>) {
    write_as(value, Whole::AsInteger, out);
}

/// Compact JSON with members in the order of Go's structs, which is how upstream shows an object that a patch went into: what
/// the patch itself `touched` (a tree of maps) was taken apart and is sorted.
pub fn to_vec_in_go_order(ty: TypeRef, value: &Value, touched: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    write_in_go_order(Some(ty), value, Some(touched), &mut out);
    out
}

fn write_in_go_order(ty: Option<TypeRef>, value: &Value, touched: Option<&Value>, out: &mut Vec<u8>) {
    let below = |key: &str| touched.and_then(|t| t.get(key)).filter(|t| matches!(t, Value::Map(_)));
    match value {
        Value::Map(map) => {
            let mut members: Vec<(&str, &Value)> = map.iter().collect();
            if let (Some(ty), None) = (ty, touched) {
                let order: Vec<&str> = ty.get().declared.iter().map(|i| ty.get().fields[usize::from(*i)].json_name).collect();
                members.sort_by_key(|(key, _)| order.iter().position(|name| name == key).unwrap_or(order.len()));
            }
            out.push(b'{');
            for (i, (key, member)) in members.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_str(key, out);
                out.push(b':');
                let field = ty.and_then(|t| t.field(key));
                match (field, member) {
                    (Some(field), Value::Map(entries)) if field.map => write_entries(field.message(), entries, below(key), out),
                    _ => write_in_go_order(field.and_then(Field::message), member, below(key), out),
                }
            }
            out.push(b'}');
        }
        Value::List(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_in_go_order(ty, item, below(&i.to_string()), out);
            }
            out.push(b']');
        }
        scalar => write_as(scalar, Whole::AsFloat, out),
    }
}

/// The entries of a map: sorted, and each of type `ty`.
fn write_entries(ty: Option<TypeRef>, entries: &Map, touched: Option<&Value>, out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, (key, value)) in entries.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_str(key, out);
        out.push(b':');
        write_in_go_order(ty, value, touched.and_then(|t| t.get(key)), out);
    }
    out.push(b'}');
}

/// How floats without a fraction are written.
#[derive(Clone, Copy)]
enum Whole {
    /// `4`, as Go does.
    AsInteger,
    /// `4.0`: they stay what they are.
    AsFloat,
}

fn write_as(value: &Value, whole: Whole, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Int(i) => write_int(*i, out),
        Value::Float(f) => {
            let start = out.len();
            write_float(*f, out);
            if matches!(whole, Whole::AsFloat) && out[start..].iter().all(|b| b.is_ascii_digit() || *b == b'-') {
                out.extend_from_slice(b".0");
            }
        }
        Value::Str(s) => write_str(s, out),
        Value::List(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_as(item, whole, out);
            }
            out.push(b']');
        }
        Value::Map(map) => {
            out.push(b'{');
            for (i, (key, member)) in map.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_str(key, out);
                out.push(b':');
                write_as(member, whole, out);
            }
            out.push(b'}');
        }
    }
}

pub fn write_int(i: i64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = i.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if i < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

/// The shortest text that reads back equal; exponents outside 1e-6..1e21, as Go's.
pub fn write_float(f: f64, out: &mut Vec<u8>) {
    if !f.is_finite() {
        // JSON has no such number; upstream refuses to print it, we print nothing.
        return out.extend_from_slice(b"null");
    }
    let magnitude = f.abs();
    if f == 0.0 || (1e-6..1e21).contains(&magnitude) {
        return out.extend_from_slice(f.to_string().as_bytes());
    }
    let text = format!("{f:e}");
    match text.split_once('e') {
        Some((digits, exponent)) if !exponent.starts_with('-') => out.extend_from_slice(format!("{digits}e+{exponent}").as_bytes()),
        _ => out.extend_from_slice(text.as_bytes()),
    }
}

/// A quoted string: HTML characters and line separators escaped, as Go does by default.
pub fn write_str(s: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let bytes = s.as_bytes();
    let mut copied = 0;
    for (i, &b) in bytes.iter().enumerate() {
        if !NEEDS_ESCAPE[usize::from(b)] {
            continue;
        }
        let separator = b == 0xe2;
        if separator && !matches!(bytes.get(i + 1..i + 3), Some([0x80, 0xa8 | 0xa9])) {
            continue;
        }
        out.extend_from_slice(&bytes[copied..i]);
        copied = i + 1;
        match b {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', b]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            8 => out.extend_from_slice(b"\\b"),
            12 => out.extend_from_slice(b"\\f"),
            0xe2 => {
                out.extend_from_slice(if bytes[i + 2] == 0xa8 { b"\\u2028" } else { b"\\u2029" });
                copied = i + 3;
            }
            b => out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]),
        }
    }
    out.extend_from_slice(&bytes[copied..]);
    out.push(b'"');
}

/// Bytes a string may not hold as they are; 0xe2 starts the line separators.
static NEEDS_ESCAPE: [bool; 256] = {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 32 {
        table[i] = true;
        i += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table[b'<' as usize] = true;
    table[b'>' as usize] = true;
    table[b'&' as usize] = true;
    table[0xe2] = true;
    table
};

/// One step of the way to the value being read.
enum Step {
    Field(&'static schema::Type, &'static Field),
    Key(String),
    Index(usize),
}

/// Why reading stopped.
enum Stop {
    /// The bytes are not JSON.
    Syntax(String),
    /// Upstream's own decoder of a leaf refused: reported unless the rest of the bytes is not JSON.
    Value(String),
}

type Read<T> = Result<T, Stop>;

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    path: Vec<Step>,
    /// The first wrong type; reading goes on to find syntax errors, as Go does.
    type_error: Option<String>,
    reports: Vec<String>,
    /// Inside upstream's nested decoders, which are not strict.
    lenient: bool,
}

impl<'a> Parser<'a> {
    fn new(bytes: &'a [u8]) -> Parser<'a> {
        Parser { bytes, at: 0, depth: 0, path: Vec::new(), type_error: None, reports: Vec::new(), lenient: false }
    }

    fn end(&mut self, value: Read<Value>) -> Result<Value, String> {
        match value {
            Ok(value) => match self.peek() {
                Err(_) => Ok(value),
                Ok(b) => Err(format!("invalid character {} after top-level value", quote_char(b))),
            },
            Err(Stop::Syntax(error)) => Err(error),
            Err(Stop::Value(error)) => {
                let mut all = Parser::new(self.bytes);
                match all.skip() {
                    Err(Stop::Syntax(syntax)) => Err(syntax),
                    _ => Err(error),
                }
            }
        }
    }

    // ---- bytes

    /// The next byte that is not white space.
    fn peek(&mut self) -> Read<u8> {
        while let Some(&b) = self.bytes.get(self.at) {
            if !matches!(b, b' ' | b'\t' | b'\r' | b'\n') {
                return Ok(b);
            }
            self.at += 1;
        }
        Err(Stop::Syntax("unexpected end of JSON input".to_string()))
    }

    fn invalid<T>(&self, context: &str) -> Read<T> {
        Err(Stop::Syntax(match self.bytes.get(self.at) {
            Some(b) => format!("invalid character {} {context}", quote_char(*b)),
            None => "unexpected end of JSON input".to_string(),
        }))
    }

    fn enter(&mut self) -> Read<()> {
        self.at += 1;
        self.depth += 1;
        if self.depth > DEPTH_MAX { Err(Stop::Syntax("exceeded max depth".to_string())) } else { Ok(()) }
    }

    /// After `[` or an element: true if another element follows.
    fn element(&mut self, first: bool) -> Read<bool> {
        match (self.peek()?, first) {
            (b']', _) => {
                self.at += 1;
                self.depth -= 1;
                Ok(false)
            }
            (_, true) => Ok(true),
            (b',', false) => {
                self.at += 1;
                self.peek()?;
                Ok(true)
            }
            _ => self.invalid("after array element"),
        }
    }

    /// After `{` or a member: the next key, with the colon behind it read.
    fn key(&mut self, first: bool) -> Read<Option<std::borrow::Cow<'a, str>>> {
        match (self.peek()?, first) {
            (b'}', _) => {
                self.at += 1;
                self.depth -= 1;
                return Ok(None);
            }
            (_, true) => {}
            (b',', false) => {
                self.at += 1;
                self.peek()?;
            }
            _ => return self.invalid("after object key:value pair"),
        }
        if self.peek()? != b'"' {
            return self.invalid("looking for beginning of object key string");
        }
        let key = self.string()?;
        if self.peek()? != b':' {
            return self.invalid("after object key");
        }
        self.at += 1;
        Ok(Some(key))
    }

    /// At a quote.
    fn string(&mut self) -> Read<std::borrow::Cow<'a, str>> {
        let start = self.at + 1;
        let mut i = start;
        while let Some(&b) = self.bytes.get(i) {
            match b {
                b'"' => {
                    self.at = i + 1;
                    return Ok(String::from_utf8_lossy(&self.bytes[start..i]));
                }
                b'\\' => return self.escaped_string(start, i).map(Into::into),
                0..32 => {
                    self.at = i;
                    return self.invalid("in string literal");
                }
                _ => i += 1,
            }
        }
        self.at = self.bytes.len();
        self.invalid("in string literal")
    }

    fn escaped_string(&mut self, start: usize, first_escape: usize) -> Read<String> {
        let mut text: Vec<u8> = self.bytes[start..first_escape].to_vec();
        self.at = first_escape;
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(match String::from_utf8(text) {
                        Ok(text) => text,
                        Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
                    });
                }
                Some(b'\\') => {
                    self.at += 1;
                    let c = match self.bytes.get(self.at) {
                        Some(b'u') => {
                            let c = self.unicode_escape()?;
                            text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                            continue;
                        }
                        Some(c @ (b'"' | b'\\' | b'/')) => *c,
                        Some(b'b') => 8,
                        Some(b'f') => 12,
                        Some(b'n') => b'\n',
                        Some(b'r') => b'\r',
                        Some(b't') => b'\t',
                        _ => return self.invalid("in string escape code"),
                    };
                    text.push(c);
                    self.at += 1;
                }
                Some(0..32) | None => return self.invalid("in string literal"),
                Some(b) => {
                    text.push(*b);
                    self.at += 1;
                }
            }
        }
    }

    /// At the `u`; two halves of a surrogate pair are one character, a lone half is U+FFFD.
    fn unicode_escape(&mut self) -> Read<char> {
        self.at += 1;
        let unit = self.hex4()?;
        if (0xd800..0xdc00).contains(&unit) && self.bytes[self.at..].starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            let low = self.hex4()?;
            if (0xdc00..0xe000).contains(&low) {
                let c = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                return Ok(char::from_u32(c).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = back;
        }
        Ok(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex4(&mut self) -> Read<u32> {
        let mut unit = 0;
        for _ in 0..4 {
            match self.bytes.get(self.at).and_then(|b| char::from(*b).to_digit(16)) {
                Some(d) => unit = unit * 16 + d,
                None => return self.invalid("in \\u hexadecimal character escape"),
            }
            self.at += 1;
        }
        Ok(unit)
    }

    /// At a digit or minus: the text of the number.
    fn number(&mut self) -> Read<&'a str> {
        let start = self.at;
        if self.bytes[self.at] == b'-' {
            self.at += 1;
        }
        match self.bytes.get(self.at) {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return self.invalid("in numeric literal"),
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            if !self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
                return self.invalid("after decimal point in numeric literal");
            }
            self.digits();
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.bytes.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if !self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
                return self.invalid("in exponent of numeric literal");
            }
            self.digits();
        }
        Ok(std::str::from_utf8(&self.bytes[start..self.at]).expect("digits are ASCII"))
    }

    fn digits(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }

    fn literal(&mut self, word: &'static str) -> Read<()> {
        for expected in word.bytes() {
            if self.bytes.get(self.at) != Some(&expected) {
                return self.invalid(&format!("in literal {word} (expecting {})", quote_char(expected)));
            }
            self.at += 1;
        }
        Ok(())
    }

    /// Reads past any value and says what it was.
    fn skip(&mut self) -> Read<&'static str> {
        match self.peek()? {
            b'{' => {
                self.enter()?;
                let mut first = true;
                while self.key(first)?.is_some() {
                    self.skip()?;
                    first = false;
                }
                Ok("object")
            }
            b'[' => {
                self.enter()?;
                let mut first = true;
                while self.element(first)? {
                    self.skip()?;
                    first = false;
                }
                Ok("array")
            }
            b'"' => self.string().map(|_| "string"),
            b'-' | b'0'..=b'9' => self.number().map(|_| "number"),
            b't' => self.literal("true").map(|()| "bool"),
            b'f' => self.literal("false").map(|()| "bool"),
            b'n' => self.literal("null").map(|()| "null"),
            _ => self.invalid("looking for beginning of value"),
        }
    }

    fn any(&mut self) -> Read<Value> {
        match self.peek()? {
            b'{' => {
                self.enter()?;
                let mut entries = Vec::new();
                while let Some(key) = self.key(entries.is_empty())? {
                    entries.push((key.into_owned().into(), self.any()?));
                }
                Ok(Value::Map(Map::from_unsorted(entries)))
            }
            b'[' => {
                self.enter()?;
                let mut items = Vec::new();
                while self.element(items.is_empty())? {
                    items.push(self.any()?);
                }
                Ok(Value::List(items))
            }
            b'"' => Ok(Value::Str(self.string()?.into_owned())),
            b'-' | b'0'..=b'9' => {
                let text = self.number()?;
                Ok(match text.parse() {
                    Ok(i) => Value::Int(i),
                    Err(_) => Value::Float(text.parse().unwrap_or(f64::NAN)),
                })
            }
            b't' => self.literal("true").map(|()| Value::Bool(true)),
            b'f' => self.literal("false").map(|()| Value::Bool(false)),
            b'n' => self.literal("null").map(|()| Value::Null),
            _ => self.invalid("looking for beginning of value"),
        }
    }

    // ---- reports

    /// `spec.containers[0].x`: every step, as strictness reports name fields.
    fn report(&mut self, what: &str, field: &str) {
        if self.lenient || self.reports.len() >= REPORTS_MAX {
            return;
        }
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Index(i) => path.push_str(&format!("[{i}]")),
                Step::Field(_, f) => push_dotted(&mut path, f.json_name),
                Step::Key(k) => push_dotted(&mut path, k),
            }
        }
        push_dotted(&mut path, field);
        let text = format!("{what} field {}", go_quote(&path));
        if !self.reports.contains(&text) {
            self.reports.push(text);
        }
    }

    /// Go's message: the innermost struct, then the names of all fields on the way without indices and keys.
    fn mismatch(&self, found: &str, wanted: &str) -> String {
        let mut path = String::new();
        let mut innermost = "";
        for step in &self.path {
            if let Step::Field(ty, field) = step {
                innermost = ty.go_name;
                field.embedded_in.iter().for_each(|name| push_dotted(&mut path, name));
                push_dotted(&mut path, field.json_name);
            }
        }
        match innermost {
            "" => format!("json: cannot unmarshal {found} into Go value of type {wanted}"),
            _ => format!("json: cannot unmarshal {found} into Go struct field {innermost}.{path} of type {wanted}"),
        }
    }

    /// Records a wrong type if it is the first; the value is read past.
    fn wrong(&mut self, found: &str, wanted: &str) -> Value {
        if self.type_error.is_none() {
            self.type_error = Some(self.mismatch(found, wanted));
        }
        Value::Null
    }

    fn skip_wrong(&mut self, wanted: &str) -> Read<Value> {
        let found = self.skip()?;
        Ok(self.wrong(found, wanted))
    }

    // ---- types

    fn typed_root(&mut self, ty: TypeRef) -> Read<Value> {
        let go_type = format!("{}.{}", ty.name().rsplit('.').nth(1).unwrap_or(""), ty.get().go_name);
        self.message(ty, &go_type)
    }

    fn message(&mut self, ty: TypeRef, go_type: &str) -> Read<Value> {
        match self.peek()? {
            b'{' => self.enter()?,
            b'n' => {
                self.literal("null")?;
                return Ok(Value::Null);
            }
            _ => return self.skip_wrong(go_type),
        }
        let table = ty.get();
        let mut slots = Slots::new(ty);
        let mut first = true;
        while let Some(key) = self.key(first)? {
            first = false;
            let Some(index) = table.index(&key) else {
                self.report("unknown", &key);
                self.skip()?;
                continue;
            };
            let field = &table.fields[usize::from(index)];
            if slots.slot(index).is_some() {
                self.report("duplicate", &key);
            }
            self.path.push(Step::Field(table, field));
            let value = self.field(field)?;
            self.path.pop();
            *slots.slot(index) = Some(value);
        }
        Ok(Value::Map(slots.finish()))
    }

    fn field(&mut self, field: &'static Field) -> Read<Value> {
        if field.repeated {
            return self.list(field.kind, field.go_type, field.element_go_type());
        }
        if field.map {
            return self.map(field);
        }
        if field.pointer && self.peek()? == b'n' {
            self.literal("null")?;
            return Ok(Value::Null);
        }
        self.single(field.kind, field.go_type)
    }

    fn list(&mut self, kind: Kind, go_type: &str, element_type: &str) -> Read<Value> {
        match self.peek()? {
            b'[' => self.enter()?,
            b'n' => {
                self.literal("null")?;
                return Ok(Value::Null);
            }
            _ => return self.skip_wrong(go_type),
        }
        let mut items = Vec::new();
        while self.element(items.is_empty())? {
            self.path.push(Step::Index(items.len()));
            let item = self.single(kind, element_type)?;
            self.path.pop();
            items.push(if item.is_null() { kind.zero() } else { item });
        }
        Ok(Value::List(items))
    }

    fn map(&mut self, field: &'static Field) -> Read<Value> {
        match self.peek()? {
            b'{' => self.enter()?,
            b'n' => {
                self.literal("null")?;
                return Ok(Value::Null);
            }
            _ => return self.skip_wrong(field.go_type),
        }
        let element_type = field.element_go_type();
        let mut map = Map::new();
        let mut first = true;
        while let Some(key) = self.key(first)? {
            first = false;
            if map.contains_key(&key) {
                self.report("duplicate", &key);
            }
            self.path.push(Step::Key(key.into_owned()));
            let mut value = self.single(field.kind, element_type)?;
            if value.is_null() {
                value = field.kind.zero();
            }
            if let (true, Value::Str(text)) = (field.is_resource_list(), &mut value) {
                round_to_milli(text);
            }
            let Some(Step::Key(key)) = self.path.pop() else { unreachable!("pushed above") };
            map.insert(key, value);
        }
        Ok(Value::Map(map))
    }

    /// One value of a kind; null is Null, which the caller turns into the zero it needs.
    fn single(&mut self, kind: Kind, go_type: &str) -> Read<Value> {
        let b = self.peek()?;
        if b == b'n' {
            self.literal("null")?;
            return Ok(Value::Null);
        }
        match (kind, b) {
            (Kind::String, b'"') => Ok(Value::Str(self.string()?.into_owned())),
            (Kind::Bool, b't') => self.literal("true").map(|()| Value::Bool(true)),
            (Kind::Bool, b'f') => self.literal("false").map(|()| Value::Bool(false)),
            (Kind::Int32 | Kind::Int64, b'-' | b'0'..=b'9') => {
                let text = self.number()?;
                Ok(int(kind, text).unwrap_or_else(|| self.wrong(&format!("number {text}"), go_type)))
            }
            (Kind::Float64, b'-' | b'0'..=b'9') => {
                let text = self.number()?;
                match text.parse::<f64>() {
                    Ok(f) if f.is_finite() => Ok(Value::Float(f)),
                    _ => Ok(self.wrong(&format!("number {text}"), go_type)),
                }
            }
            (Kind::Message(ty), _) => self.message(ty, go_type),
            (Kind::Bytes, b'"') => self.base64(),
            (Kind::Quantity, _) => self.quantity(),
            (Kind::Time | Kind::MicroTime, b'"') => self.time(kind),
            (Kind::Time | Kind::MicroTime, _) => self.leaf_mismatch("string"),
            (Kind::IntOrString, b'"') => Ok(Value::Str(self.string()?.into_owned())),
            (Kind::IntOrString, b'-' | b'0'..=b'9') => {
                let text = self.number()?;
                int(Kind::Int32, text).ok_or_else(|| Stop::Value(self.mismatch(&format!("number {text}"), "int32")))
            }
            (Kind::IntOrString, _) => self.leaf_mismatch("int32"),
            (Kind::RawExtension | Kind::FieldsV1 | Kind::Json | Kind::Any, _) => self.any(),
            (Kind::Strings, _) => self.list(Kind::String, go_type, "string"),
            (Kind::SchemaOrBool | Kind::SchemaOrArray | Kind::SchemaOrStrings, _) => {
                let outer = std::mem::replace(&mut self.lenient, true);
                let value = self.schema_or(kind, b);
                self.lenient = outer;
                value
            }
            (Kind::String | Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Float64 | Kind::Bytes, _) => self.skip_wrong(go_type),
        }
    }

    /// A leaf's own decoder refuses the JSON type: this ends reading.
    fn leaf_mismatch(&mut self, wanted: &str) -> Read<Value> {
        let found = self.skip()?;
        Err(Stop::Value(self.mismatch(found, wanted)))
    }

    fn base64(&mut self) -> Read<Value> {
        let text = self.string()?;
        match decode_base64(&text) {
            Ok(bytes) => Ok(Value::Str(STANDARD.encode(bytes))),
            Err(offset) => {
                self.type_error.get_or_insert_with(|| format!("illegal base64 data at input byte {offset}"));
                Ok(Value::Null)
            }
        }
    }

    fn quantity(&mut self) -> Read<Value> {
        let start = self.at;
        self.skip()?;
        let text = String::from_utf8_lossy(&self.bytes[start..self.at]);
        let text = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(&text);
        match Quantity::parse(text.trim()) {
            Ok(quantity) => Ok(Value::Str(quantity.to_string())),
            Err(error) => Err(Stop::Value(error.to_string())),
        }
    }

    fn time(&mut self, kind: Kind) -> Read<Value> {
        let text = self.string()?;
        let canonical = match kind {
            Kind::MicroTime => Time::parse_micro(&text).map(|t| (t.is_go_zero(), t.micro())),
            _ => Time::parse(&text).map(|t| (t.truncated_to_seconds().is_go_zero(), t.to_string())),
        };
        match canonical {
            Ok((true, _)) => Ok(Value::Null),
            Ok((false, text)) => Ok(Value::Str(text)),
            Err(error) => Err(Stop::Value(error)),
        }
    }

    fn schema_or(&mut self, kind: Kind, b: u8) -> Read<Value> {
        let before = self.type_error.take();
        let value = match (kind, b) {
            (_, b'{') => self.message(schema::schema_props(), "v1.JSONSchemaProps")?,
            (Kind::SchemaOrBool, b't' | b'f') => self.any()?,
            (Kind::SchemaOrArray, b'[') => {
                let list = self.list(Kind::Message(schema::schema_props()), "[]v1.JSONSchemaProps", "v1.JSONSchemaProps")?;
                non_empty(list)
            }
            (Kind::SchemaOrStrings, b'[') => non_empty(self.list(Kind::String, "[]string", "string")?),
            (Kind::SchemaOrBool, _) => {
                self.skip()?;
                return Err(Stop::Value("boolean or JSON schema expected".to_string()));
            }
            _ => {
                self.skip()?;
                Value::Null
            }
        };
        match self.type_error.take() {
            Some(inner) => Err(Stop::Value(inner)),
            None => {
                self.type_error = before;
                Ok(value)
            }
        }
    }
}

fn non_empty(list: Value) -> Value {
    match list {
        Value::List(items) if items.is_empty() => Value::Null,
        other => other,
    }
}

fn push_dotted(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

fn int(kind: Kind, text: &str) -> Option<Value> {
    let i: i64 = text.parse().ok()?;
    if kind == Kind::Int32 && i32::try_from(i).is_err() { None } else { Some(Value::Int(i)) }
}

fn round_to_milli(text: &mut String) {
    if let Ok(mut quantity) = Quantity::parse(text) {
        quantity.round_up(-3);
        *text = quantity.to_string();
    }
}

/// The two ways upstream writes bytes as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base64 {
    /// `+` and `/`, padded with `=`.
    Standard,
    /// `-` and `_`, without padding.
    UrlUnpadded,
}

/// Standard base64 as Go reads it. The error is Go's offset.
pub fn decode_base64(text: &str) -> Result<Vec<u8>, usize> {
    STANDARD.decode(text).or_else(|_| Base64::Standard.decode(text))
}

impl Base64 {
    fn digit(self, byte: u8) -> Option<u8> {
        match (byte, self) {
            (b'A'..=b'Z', _) => Some(byte - b'A'),
            (b'a'..=b'z', _) => Some(byte - b'a' + 26),
            (b'0'..=b'9', _) => Some(byte - b'0' + 52),
            (b'+', Base64::Standard) | (b'-', Base64::UrlUnpadded) => Some(62),
            (b'/', Base64::Standard) | (b'_', Base64::UrlUnpadded) => Some(63),
            _ => None,
        }
    }

    /// As Go reads it: line breaks are skipped, bits left over are ignored, and the error is the offset Go would name.
    pub fn decode(self, text: &str) -> Result<Vec<u8>, usize> {
        let text = text.as_bytes();
        let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
        let mut at = 0;
        let skip_breaks = |at: usize| at + text[at..].iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        loop {
            // A quantum: up to four digits.
            let (mut bits, mut digits, mut ended) = (0u32, 0usize, false);
            while digits < 4 && !ended {
                let Some(&byte) = text.get(at) else {
                    match (digits, self) {
                        (0, _) => return Ok(out),
                        (1, _) | (_, Base64::Standard) => return Err(at - digits),
                        (_, Base64::UrlUnpadded) => ended = true,
                    }
                    continue;
                };
                at += 1;
                match (self.digit(byte), byte) {
                    (Some(digit), _) => (bits, digits) = (bits << 6 | u32::from(digit), digits + 1),
                    (None, b'\r' | b'\n') => {}
                    (None, b'=') if self == Base64::Standard && digits >= 2 => {
                        if digits == 2 {
                            at = skip_breaks(at);
                            match text.get(at) {
                                Some(b'=') => at += 1,
                                Some(_) => return Err(at - 1),
                                None => return Err(text.len()),
                            }
                        }
                        at = skip_breaks(at);
                        if at < text.len() {
                            return Err(at);
                        }
                        ended = true;
                    }
                    (None, _) => return Err(at - 1),
                }
            }
            let whole = (bits << (6 * (4 - digits))).to_be_bytes();
            out.extend_from_slice(&whole[1..digits.max(1)]);
            if ended {
                return Ok(out);
            }
        }
    }
}

/// A byte as Go's syntax errors show it.
fn quote_char(b: u8) -> String {
    match b {
        b'\'' => r"'\''".to_string(),
        b'"' => "'\"'".to_string(),
        b'\\' => r"'\\'".to_string(),
        b'\n' => r"'\n'".to_string(),
        b'\r' => r"'\r'".to_string(),
        b'\t' => r"'\t'".to_string(),
        b' '..=b'~' => format!("'{}'", char::from(b)),
        0..32 | 127 => format!("'\\x{b:02x}'"),
        // Go shows the byte as if it were Latin-1.
        b => match char::from(b) {
            c if c as u32 >= 0xa1 && c as u32 != 0xad => format!("'{c}'"),
            c => format!("'\\u{:04x}'", c as u32),
        },
    }
}

/// Go's `strconv.Quote`.
pub fn go_quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 32 || c as u32 == 127 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if (c as u32) < 127 || c.is_alphanumeric() => out.push(c),
            // Controls, spaces other than the one, and unassigned characters are not printable to Go.
            c if c.is_control()
                || c.is_whitespace()
                || matches!(c as u32, 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff) =>
            {
                match c as u32 {
                    n @ ..=0xffff => out.push_str(&format!("\\u{n:04x}")),
                    n => out.push_str(&format!("\\U{n:08x}")),
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The raw bytes of the member at `path` of a JSON object, without reading the rest: for stored custom resources.
pub fn raw_at<'a>(bytes: &'a [u8], path: &[&str]) -> Option<&'a [u8]> {
    let mut bytes = bytes;
    for name in path {
        bytes = raw_members(bytes).find(|(key, _)| key == name)?.1;
    }
    Some(bytes)
}

/// The string at `path` of a JSON object, if it has no escapes.
pub fn raw_str<'a>(bytes: &'a [u8], path: &[&str]) -> Option<&'a str> {
    let raw = raw_at(bytes, path)?;
    let text = raw.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if text.contains(&b'\\') { None } else { std::str::from_utf8(text).ok() }
}

/// The members of a JSON object with their raw values; empty for anything else.
pub fn raw_members(bytes: &[u8]) -> impl Iterator<Item = (std::borrow::Cow<'_, str>, &[u8])> {
    let mut p = Parser::new(bytes);
    let is_object = matches!(p.peek(), Ok(b'{')) && p.enter().is_ok();
    let mut first = true;
    std::iter::from_fn(move || {
        if !is_object {
            return None;
        }
        let key = p.key(first).ok()??;
        first = false;
        p.peek().ok()?;
        let start = p.at;
        p.skip().ok()?;
        Some((key, &p.bytes[start..p.at]))
    })
}

/// The elements of a JSON list, raw; empty for anything else.
pub fn raw_elements(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut p = Parser::new(bytes);
    let is_list = matches!(p.peek(), Ok(b'[')) && p.enter().is_ok();
    let mut first = true;
    std::iter::from_fn(move || {
        if !is_list || !p.element(first).ok()? {
            return None;
        }
        first = false;
        p.peek().ok()?;
        let start = p.at;
        p.skip().ok()?;
        Some(&p.bytes[start..p.at])
    })
}

#[cfg(test)]
mod tests;
