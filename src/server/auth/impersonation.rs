//! Acting as somebody else: `Impersonate-*` headers in, the questions to be authorized and the resulting user out.
//!
//! Every name asked for is a question of its own under verb `impersonate`; if one is refused, upstream's constrained verbs
//! (`impersonate:user-info` with `impersonate-on:user-info:<verb>`) are tried before the request is.

use std::collections::BTreeMap;

use super::{Attributes, Auth, forbidden};
use crate::api::request::User;
use crate::api::status::{Result, Status};

/// The `Impersonate-*` headers of one request; extra keys unescaped and lower case.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Impersonation {
    pub user: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Impersonation {
    pub fn is_empty(&self) -> bool {
        self.user.is_empty() && self.uid.is_empty() && self.groups.is_empty() && self.extra.is_empty()
    }

    /// Reads headers, case-insensitively by name.
    pub fn from_headers<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Impersonation {
        let mut found = Impersonation::default();
        for (name, value) in headers {
            let name = name.to_ascii_lowercase();
            match name.as_str() {
                "impersonate-user" => found.user = value.to_string(),
                "impersonate-uid" => found.uid = value.to_string(),
                "impersonate-group" => found.groups.push(value.to_string()),
                _ => {
                    if let Some(key) = name.strip_prefix("impersonate-extra-") {
                        found.extra.entry(unescape(key)).or_default().push(value.to_string());
                    }
                }
            }
        }
        found
    }

    /// The user it makes.
    fn becomes(&self) -> User {
        let mut groups = self.groups.clone();
        if let (Some((namespace, _)), true) = (service_account(&self.user), groups.is_empty()) {
            groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
        }
        let anonymous = self.user == "system:anonymous";
        let class = if anonymous { "system:unauthenticated" } else { "system:authenticated" };
        let classified = groups.iter().any(|g| g == "system:authenticated" || g == "system:unauthenticated");
        if !classified {
            groups.push(class.to_string());
        }
        User { name: self.user.clone(), uid: self.uid.clone(), groups, extra: self.extra.clone() }
    }
}

fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

fn unescape(key: &str) -> String {
    let bytes = key.as_bytes();
    let (mut out, mut i) = (Vec::with_capacity(bytes.len()), 0);
    while i < bytes.len() {
        let hex = (bytes[i] == b'%').then(|| key.get(i + 1..i + 3)).flatten().and_then(|h| u8::from_str_radix(h, 16).ok());
        out.push(hex.unwrap_or(bytes[i]));
        i += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).to_lowercase()
}

impl Auth {
    /// The user to go on as; `target` is the request being made.
    pub fn impersonate(&self, requester: User, wanted: &Impersonation, target: &Attributes) -> Result<User> {
        if wanted.is_empty() {
            return Ok(requester);
        }
        if wanted.user.is_empty() {
            return Err(Status::bad_request("requested impersonation without impersonating a user name"));
        }
        if self.holds_all(&requester, wanted, "impersonate", "") {
            return Ok(wanted.becomes());
        }
        let mode = if service_account(&wanted.user).is_some() {
            "serviceaccount"
        } else if wanted.user.starts_with("system:node:") {
            "arbitrary-node"
        } else {
            "user-info"
        };
        let verb = format!("impersonate-on:{mode}:{}", target.verb);
        let on = Attributes { verb: &verb, ..*target };
        let decision = self.authorize(&requester, &on);
        if !decision.allowed {
            return Err(forbidden(&requester, &on, &decision.reason));
        }
        if self.holds_all(&requester, wanted, &format!("impersonate:{mode}"), "authentication.k8s.io") {
            return Ok(wanted.becomes());
        }
        let users = Attributes { verb: "impersonate", resource: "users", version: "v1", name: &wanted.user, ..Attributes::default() };
        Err(forbidden(&requester, &users, ""))
    }

    fn holds_all(&self, requester: &User, wanted: &Impersonation, verb: &str, identity_group: &str) -> bool {
        let base = Attributes { verb, group: identity_group, version: "v1", ..Attributes::default() };
        let who = match service_account(&wanted.user) {
            Some((namespace, name)) => Attributes { resource: "serviceaccounts", namespace, name, ..base },
            None => Attributes { resource: "users", name: &wanted.user, ..base },
        };
        let infos = Attributes { group: "authentication.k8s.io", ..base };
        let mut questions = vec![who];
        questions.extend(wanted.groups.iter().map(|g| Attributes { resource: "groups", name: g, ..base }));
        if !wanted.uid.is_empty() {
            questions.push(Attributes { resource: "uids", name: &wanted.uid, ..infos });
        }
        for (key, values) in &wanted.extra {
            questions.extend(values.iter().map(|v| Attributes { resource: "userextras", subresource: key, name: v, ..infos }));
        }
        questions.iter().all(|q| self.authorize(requester, q).allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_make_a_user() {
        let headers = [("Impersonate-User", "bob"), ("Impersonate-Uid", "5"), ("Impersonate-Extra-Some%2fKey", "val")];
        let user = Impersonation::from_headers(headers.into_iter()).becomes();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("bob", "5"));
        assert_eq!(user.groups, ["system:authenticated"]);
        assert_eq!(user.extra["some/key"], ["val"]);
        let of = |name: &str| Impersonation { user: name.into(), ..Impersonation::default() }.becomes().groups;
        assert_eq!(of("system:anonymous"), ["system:unauthenticated"]);
        assert_eq!(of("system:serviceaccount:a:b"), ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]);
        assert_eq!(of("system:serviceaccount:bad"), ["system:authenticated"]);
    }
}
