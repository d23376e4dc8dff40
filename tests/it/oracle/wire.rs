//! Protobuf without its schema: fields as they come, rewritten and put together again with new lengths.

use super::normal::{Binder, Kind};

/// Field number, and its value under its wire type.
type Field = (u128, Wire);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Wire {
    Varint(u128),
    Eight(Vec<u8>),
    Bytes(Vec<u8>),
    Four(Vec<u8>),
}

const MAGIC: &[u8] = b"k8s\0";

fn take_varint(bytes: &[u8], at: &mut usize) -> Option<u128> {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = *bytes.get(*at).filter(|_| shift <= 63)?;
        *at += 1;
        value |= u128::from(byte & 127) << shift;
        shift += 7;
        if byte < 128 {
            return Some(value);
        }
    }
}

fn take<'a>(bytes: &'a [u8], at: &mut usize, n: usize) -> Option<&'a [u8]> {
    let taken = bytes.get(*at..at.checked_add(n)?)?;
    *at += n;
    Some(taken)
}

/// `None` if these bytes are no message.
fn parse(bytes: &[u8]) -> Option<Vec<Field>> {
    let (mut at, mut fields) = (0, Vec::new());
    while at < bytes.len() {
        let tag = take_varint(bytes, &mut at)?;
        let value = match tag & 7 {
            0 => Wire::Varint(take_varint(bytes, &mut at)?),
            1 => Wire::Eight(take(bytes, &mut at, 8)?.to_vec()),
            2 => {
                let length = usize::try_from(take_varint(bytes, &mut at)?).ok()?;
                Wire::Bytes(take(bytes, &mut at, length)?.to_vec())
            }
            5 => Wire::Four(take(bytes, &mut at, 4)?.to_vec()),
            _ => return None,
        };
        fields.push((Some(tag >> 3).filter(|f| *f > 0)?, value));
    }
    Some(fields)
}

fn put_varint(out: &mut Vec<u8>, mut value: u128) {
    while value > 127 {
        out.push((value & 127) as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

fn write(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, value) in fields {
        let mut put = |wire: u128, length: Option<usize>, bytes: &[u8]| {
            put_varint(&mut out, number << 3 | wire);
            if let Some(length) = length {
                put_varint(&mut out, length as u128);
            }
            out.extend_from_slice(bytes);
        };
        match value {
            Wire::Varint(v) => {
                put(0, None, &[]);
                put_varint(&mut out, *v);
            }
            Wire::Eight(b) => put(1, None, b),
            Wire::Bytes(b) => put(2, Some(b.len()), b),
            Wire::Four(b) => put(5, None, b),
        }
    }
    out
}

/// The members of `fields` that are bytes, rewritten; the others as they are.
fn map_bytes(fields: Vec<Field>, mut rewrite: impl FnMut(u128, Vec<u8>) -> Vec<u8>) -> Vec<Field> {
    let one = |(number, value)| match value {
        Wire::Bytes(b) => (number, Wire::Bytes(rewrite(number, b))),
        other => (number, other),
    };
    fields.into_iter().map(one).collect()
}

fn bytes_of(fields: &[Field], number: u128) -> Option<&[u8]> {
    fields.iter().find_map(|(n, v)| match v {
        Wire::Bytes(b) if *n == number => Some(b.as_slice()),
        _ => None,
    })
}

/// Whether a message in the envelope starts here.
pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// The type of a watch event, and the sealed object in it.
pub fn event(frame: &[u8]) -> (String, Vec<u8>) {
    let fields = parse(frame).unwrap_or_default();
    let kind = bytes_of(&fields, 1).map(|b| String::from_utf8_lossy(b).into_owned());
    let object = bytes_of(&fields, 2).and_then(parse).and_then(|raw| bytes_of(&raw, 1).map(<[u8]>::to_vec));
    (kind.unwrap_or_default(), object.unwrap_or_default())
}

/// A sealed message with everything of this run replaced by placeholders.
pub fn normalise(binder: &mut Binder, sealed: &[u8], bookmark: bool) -> Vec<u8> {
    let Some(envelope) = sealed.strip_prefix(MAGIC).and_then(parse) else { return sealed.to_vec() };
    let kind = bytes_of(&envelope, 1).and_then(parse).unwrap_or_default();
    let is_list = kind.iter().any(|(n, v)| *n == 2 && matches!(v, Wire::Bytes(b) if b.ends_with(b"List")));
    let envelope = map_bytes(envelope, |number, b| if number == 2 { object(binder, b, is_list, bookmark) } else { b });
    [MAGIC, &write(&envelope)].concat()
}

fn object(binder: &mut Binder, raw: Vec<u8>, is_list: bool, bookmark: bool) -> Vec<u8> {
    let Some(fields) = parse(&raw) else { return raw };
    write(&map_bytes(fields, |number, b| match number {
        1 => metadata(binder, b, is_list, bookmark),
        2 if is_list => object(binder, b, false, bookmark),
        _ => any(binder, b),
    }))
}

fn metadata(binder: &mut Binder, raw: Vec<u8>, is_list: bool, bookmark: bool) -> Vec<u8> {
    let Some(fields) = parse(&raw) else { return any(binder, raw) };
    let is_version = |b: &[u8]| !b.is_empty() && b.iter().all(u8::is_ascii_digit) && b != b"0";
    let mut fields = map_bytes(fields, |number, b| match (is_list, number) {
        (true, 2) if is_version(&b) => b"<listrv>".to_vec(),
        (true, 3) if !b.is_empty() => b"<continue>".to_vec(),
        (false, 6) if is_version(&b) && bookmark => b"<listrv>".to_vec(),
        (false, 6) if is_version(&b) => binder.bind(Kind::Rv, &String::from_utf8_lossy(&b)).into_bytes(),
        (true, 2 | 3) | (false, 6) => b,
        _ => any(binder, b),
    });
    if !is_list {
        let is_managed = |f: &Field| f.0 == 17 && matches!(f.1, Wire::Bytes(_));
        let mut managed: Vec<Field> = fields.iter().filter(|f| is_managed(f)).cloned().collect();
        managed.sort();
        let mut managed = managed.into_iter();
        for field in fields.iter_mut().filter(|f| is_managed(f)) {
            *field = managed.next().expect("as many as before");
        }
    }
    write(&fields)
}

fn any(binder: &mut Binder, bytes: Vec<u8>) -> Vec<u8> {
    let is_printable = |c: char| matches!(c, '\n' | '\t' | ' ') || !(c.is_control() || c.is_whitespace());
    if let Ok(text) = std::str::from_utf8(&bytes)
        && text.chars().all(is_printable)
    {
        return binder.text(text).into_bytes();
    }
    match parse(&bytes) {
        None => bytes,
        Some(fields) => {
            if let (1, Wire::Varint(seconds)) = &fields[0]
                && (1_700_000_001..4_000_000_000).contains(seconds)
                && fields.len() < 3
            {
                return Vec::new(); // A time of this run.
            }
            write(&map_bytes(fields, |_, b| any(binder, b)))
        }
    }
}
