//! Pure: the links of an HTML page, changed in place.
//!
//! Reads as much of HTML as finding attributes takes: tags, comments, and elements whose content is no markup. Everything
//! but the changed values stays byte for byte. Start at [`rewrite`].

/// Attributes that hold a URL, by element.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is text up to their end tag.
const TEXT: &[&str] = &["iframe", "noembed", "noframes", "noscript", "plaintext", "script", "style", "textarea", "title", "xmp"];

/// The page with every link replaced for which `link` has another.
pub fn rewrite(page: &[u8], link: &dyn Fn(&str) -> Option<String>) -> Vec<u8> {
    let mut out = Vec::with_capacity(page.len() + page.len() / 8);
    let mut scan = Scan { page, at: 0 };
    let mut copied = 0;
    while let Some(tag) = scan.next_tag() {
        let names = LINKS.iter().find(|(element, _)| *element == tag.name).map_or(&[][..], |(_, names)| names);
        for (name, value) in &tag.attributes {
            if !names.contains(&name.as_str()) {
                continue;
            }
            let changed = std::str::from_utf8(&page[value.clone()]).ok().and_then(link);
            if let Some(changed) = changed {
                out.extend_from_slice(&page[copied..value.start]);
                out.extend_from_slice(changed.as_bytes());
                copied = value.end;
            }
        }
        if TEXT.contains(&tag.name.as_str()) {
            scan.skip_text(&tag.name);
        }
    }
    out.extend_from_slice(&page[copied..]);
    out
}

struct Tag {
    name: String,
    /// Names and where their values are.
    attributes: Vec<(String, std::ops::Range<usize>)>,
}

struct Scan<'a> {
    page: &'a [u8],
    at: usize,
}

fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace()
}

impl Scan<'_> {
    fn find(&self, what: &[u8]) -> Option<usize> {
        self.page[self.at..].windows(what.len()).position(|w| w.eq_ignore_ascii_case(what)).map(|i| self.at + i)
    }

    fn take_while(&mut self, test: impl Fn(u8) -> bool) -> std::ops::Range<usize> {
        let start = self.at;
        while self.page.get(self.at).is_some_and(|b| test(*b)) {
            self.at += 1;
        }
        start..self.at
    }

    fn lower(&self, range: std::ops::Range<usize>) -> String {
        String::from_utf8_lossy(&self.page[range]).to_ascii_lowercase()
    }

    /// The next start tag; comments and everything else are passed over.
    fn next_tag(&mut self) -> Option<Tag> {
        loop {
            self.at = self.find(b"<")? + 1;
            let rest = &self.page[self.at..];
            if rest.starts_with(b"!--") {
                self.at += 3;
                self.at = self.find(b"-->")?;
            } else if rest.first().is_some_and(u8::is_ascii_alphabetic) {
                return self.tag();
            }
        }
    }

    /// None: the page ends inside it.
    fn tag(&mut self) -> Option<Tag> {
        let name = self.take_while(|b| !is_space(b) && b != b'/' && b != b'>');
        let mut tag = Tag { name: self.lower(name), attributes: Vec::new() };
        loop {
            self.take_while(|b| is_space(b) || b == b'/');
            if *self.page.get(self.at)? == b'>' {
                self.at += 1;
                return Some(tag);
            }
            let start = self.at;
            // A name may begin with an equals sign, nothing else.
            self.at += 1;
            self.take_while(|b| !is_space(b) && !matches!(b, b'/' | b'>' | b'='));
            let name = self.lower(start..self.at);
            self.take_while(is_space);
            if self.page.get(self.at) != Some(&b'=') {
                continue;
            }
            self.at += 1;
            self.take_while(is_space);
            let value = match *self.page.get(self.at)? {
                quote @ (b'"' | b'\'') => {
                    self.at += 1;
                    let value = self.take_while(|b| b != quote);
                    self.at += 1;
                    value
                }
                _ => self.take_while(|b| !is_space(b) && b != b'>'),
            };
            tag.attributes.push((name, value));
        }
    }

    fn skip_text(&mut self, element: &str) {
        self.at = self.find(format!("</{element}").as_bytes()).unwrap_or(self.page.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_change_and_nothing_else_does() {
        let link = |url: &str| url.starts_with('/').then(|| format!("/p{url}"));
        let check = |before: &str, after: &str| assert_eq!(String::from_utf8(rewrite(before.as_bytes(), &link)).unwrap(), after);
        check("<a href=\"/rewriteme\">test</a>", "<a href=\"/p/rewriteme\">test</a>");
        check("<A class=x HREF = '/a&amp;b' title=\"/no\">/no</A>", "<A class=x HREF = '/p/a&amp;b' title=\"/no\">/no</A>");
        check("<img src=/i usemap=x><link href=y>", "<img src=/p/i usemap=x><link href=y>");
        check("<!-- <a href=\"/no\"> --><br/><img src='/i'/>", "<!-- <a href=\"/no\"> --><br/><img src='/p/i'/>");
        check("<script src=\"/s\">a < b; '<a href=\"/no\">'</script>", "<script src=\"/p/s\">a < b; '<a href=\"/no\">'</script>");
        check("1 < 2 <a href='/x", "1 < 2 <a href='/x");
        check("<a href=\"/x\"", "<a href=\"/x\"");
    }
}
