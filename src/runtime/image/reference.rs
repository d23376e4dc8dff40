//! Pure: image references: names, tags, digests, and which stored name one of them means.
//!
//! `[host[:port]/]path[:tag][@sha256:…]`. A first part counts as a host if it has a dot or a port or is `localhost`. No registry is
//! built in: a reference without a host means the stored image of that path, whatever host it was imported under, with one
//! stored without a host preferred.

use std::fmt;

/// The hex half of a `sha256:` digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

impl Digest {
    /// `sha256:` and 64 lower-case hex digits.
    pub fn parse(text: &str) -> Option<Digest> {
        let hex = text.strip_prefix("sha256:")?;
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (hex.len() == 64 && hex.bytes().all(lower_hex)).then(|| Digest(hex.to_string()))
    }

    pub fn from_hash(hash: &[u8]) -> Digest {
        assert_eq!(hash.len(), 32, "a sha256 has 32 bytes");
        Digest(hash.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub fn hex(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub host: Option<String>,
    pub path: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

impl Reference {
    pub fn parse(text: &str) -> Result<Reference, String> {
        let (name, digest) = match text.split_once('@') {
            None => (text, None),
            Some((name, digest)) => (name, Some(Digest::parse(digest).ok_or_else(|| format!("unsupported digest {digest:?}"))?)),
        };
        let slash = name.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match name[slash..].find(':') {
            None => (name, None),
            Some(colon) => (&name[..slash + colon], Some(&name[slash + colon + 1..])),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(format!("invalid tag {tag:?}"));
        }
        let (host, path) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
            _ => (None, name),
        };
        if path.is_empty() || path.len() > 255 || !path.split('/').all(is_component) {
            return Err("repository name must be lower-case letters, digits and separators".to_string());
        }
        Ok(Reference { host: host.map(str::to_string), path: path.to_string(), tag: tag.map(str::to_string), digest })
    }

    /// With the tag that is meant: `latest` if neither tag nor digest is given.
    pub fn tagged(mut self) -> Reference {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_string());
        }
        self
    }

    /// Without tag and digest.
    pub fn repository(&self) -> String {
        match &self.host {
            Some(host) => format!("{host}/{}", self.path),
            None => self.path.clone(),
        }
    }

    /// How well a stored, tagged name answers this reference: `None` not at all, lower is better.
    pub fn match_rank(&self, stored: &Reference) -> Option<u32> {
        if self.tag.is_some() && self.digest.is_none() && self.tag != stored.tag {
            return None;
        }
        match (&self.host, &stored.host) {
            (a, b) if a == b && self.path == stored.path => Some(0),
            (None, _) | (_, None) if short(&self.path) == short(&stored.path) => Some(1),
            _ => None,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// `library/` is what some tools put before a one-part name.
fn short(path: &str) -> &str {
    path.strip_prefix("library/").unwrap_or(path)
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let rest = |byte: u8| word(byte) || byte == b'.' || byte == b'-';
    (1..=128).contains(&tag.len()) && word(tag.as_bytes()[0]) && tag.bytes().all(rest)
}

fn is_component(part: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separator = |byte: u8| matches!(byte, b'.' | b'_' | b'-');
    let bytes = part.as_bytes();
    !bytes.is_empty() && letter(bytes[0]) && letter(bytes[bytes.len() - 1]) && bytes.iter().all(|&byte| letter(byte) || separator(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart_and_put_together() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, host, path, tag) in [
            ("busybox", None, "busybox", None),
            ("busybox:1.36", None, "busybox", Some("1.36")),
            ("example.test:5000/a/b:v1", Some("example.test:5000"), "a/b", Some("v1")),
            ("localhost/a", Some("localhost"), "a", None),
            ("a/b", None, "a/b", None),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.host.as_deref(), host, "{text}");
            assert_eq!((reference.path.as_str(), reference.tag.as_deref()), (path, tag), "{text}");
            assert_eq!(reference.to_string(), text);
        }
        let text = format!("a/b:v1@{digest}");
        assert_eq!(Reference::parse(&text).unwrap().to_string(), text);
        for bad in ["", "UPPER", "a//b", "a:", "a@sha256:12", "a/-b", ":tag", "a b"] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_without_host_means_any_but_prefers_its_own_kind() {
        let stored = |text: &str| Reference::parse(text).unwrap();
        let wanted = Reference::parse("busybox").unwrap().tagged();
        assert_eq!(wanted.match_rank(&stored("busybox:latest")), Some(0));
        assert_eq!(wanted.match_rank(&stored("example.test/library/busybox:latest")), Some(1));
        assert_eq!(wanted.match_rank(&stored("busybox:1")), None);
        assert_eq!(stored("a.test/x:1").match_rank(&stored("b.test/x:1")), None);
    }
}
