//! Acting as somebody else: `Impersonate-*` headers in, the questions to be authorized and the resulting user out.
//!
//! Every name asked for is a question of its own: under verb `impersonate`, or under the constrained verbs
//! (`impersonate:user-info` with `impersonate-on:user-info:<verb>`), which are tried first. Start at [`Auth::impersonate`].

use std::collections::BTreeMap;

use super::{Attributes, Auth, forbidden, quoted};
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

    /// The user it makes. Constrained modes give nodes their one group.
    fn becomes(&self, mode: Mode) -> User {
        let mut groups = self.groups.clone();
        match service_account(&self.user) {
            Some((namespace, _)) if groups.is_empty() => {
                groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
            }
            _ if mode != Mode::Legacy && node(&self.user).is_some() => groups = vec!["system:nodes".into()],
            _ => {}
        }
        let mut ensure = |group: &str| {
            if !groups.iter().any(|g| g == group) {
                groups.push(group.to_string());
            }
        };
        if self.user == "system:anonymous" {
            ensure("system:unauthenticated");
        } else if !self.groups.iter().any(|g| g == "system:unauthenticated") {
            ensure("system:authenticated");
        }
        User { name: self.user.clone(), uid: self.uid.clone(), groups, extra: self.extra.clone() }
    }

    fn is_name_only(&self) -> bool {
        self.uid.is_empty() && self.groups.is_empty() && self.extra.is_empty()
    }

    /// As Go prints it: upstream's refusal of headers that name no user.
    fn in_go(&self) -> String {
        let list = |items: &[String]| format!("[]string{{{}}}", items.iter().map(|i| quoted(i)).collect::<Vec<_>>().join(", "));
        let groups = if self.groups.is_empty() { "[]string(nil)".to_string() } else { list(&self.groups) };
        let extra = match self.extra.is_empty() {
            true => "map[string][]string(nil)".to_string(),
            false => {
                let pairs = self.extra.iter().map(|(key, values)| format!("{}:{}", quoted(key), list(values)));
                format!("map[string][]string{{{}}}", pairs.collect::<Vec<_>>().join(", "))
            }
        };
        let (name, uid) = (quoted(&self.user), quoted(&self.uid));
        format!("&user.DefaultInfo{{Name:{name}, UID:{uid}, Groups:{groups}, Extra:{extra}}}")
    }
}

/// The ways to be allowed, in the order they are tried. All but the last are bound to what is asked for, too
/// (`impersonate-on:<mode>:<verb>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    UserInfo,
    Legacy,
}

const MODES: [Mode; 5] = [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];
/// Requesters whose last successful mode is remembered.
const REMEMBERED_MAX: usize = 10_000;
/// What a service account token says of the node of its pod.
const NODE_OF_TOKEN: &str = "authentication.kubernetes.io/node-name";

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
            Mode::Legacy => "",
        }
    }

    fn fits(self, requester: &User, wanted: &Impersonation) -> bool {
        let (node, account) = (node(&wanted.user), service_account(&wanted.user));
        match self {
            Mode::AssociatedNode => {
                let own = requester.extra.get(NODE_OF_TOKEN).and_then(|values| values.first()).map(String::as_str);
                wanted.is_name_only() && service_account(&requester.name).is_some() && node.is_some() && node == own
            }
            Mode::ArbitraryNode => wanted.is_name_only() && node.is_some(),
            Mode::ServiceAccount => wanted.is_name_only() && account.is_some(),
            Mode::UserInfo => node.is_none() && account.is_none(),
            Mode::Legacy => true,
        }
    }
}

fn node(user: &str) -> Option<&str> {
    user.strip_prefix("system:node:").filter(|name| !name.is_empty())
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
    /// The user to go on as; `target` is the request being made. The mode that served a requester last is tried first; the
    /// first refusal is the one told.
    pub fn impersonate(&self, requester: User, wanted: &Impersonation, target: &Attributes) -> Result<User> {
        if wanted.is_empty() {
            return Ok(requester);
        }
        if wanted.user.is_empty() {
            return Err(Status::bad_request(format!("requested {} without impersonating a user name", wanted.in_go())));
        }
        let last = self.modes.lock().expect("no panic under this lock").get(&requester.name).copied();
        let mut refused = None;
        for mode in last.into_iter().chain(MODES.into_iter().filter(|m| Some(*m) != last)) {
            if !mode.fits(&requester, wanted) {
                continue;
            }
            match self.check_mode(mode, &requester, wanted, target) {
                Ok(()) => {
                    let mut modes = self.modes.lock().expect("no panic under this lock");
                    if modes.len() >= REMEMBERED_MAX {
                        modes.clear();
                    }
                    modes.insert(requester.name.clone(), mode);
                    return Ok(wanted.becomes(mode));
                }
                Err(status) => {
                    refused.get_or_insert(status);
                }
            }
        }
        Err(refused.unwrap_or_else(|| Status::internal("all impersonation modes failed")))
    }

    fn check_mode(&self, mode: Mode, requester: &User, wanted: &Impersonation, target: &Attributes) -> Result<()> {
        let legacy = mode == Mode::Legacy;
        let (on, verb) = (format!("impersonate-on:{}:{}", mode.name(), target.verb), format!("impersonate:{}", mode.name()));
        if !legacy {
            self.require(requester, &Attributes { verb: &on, ..*target })?;
        }
        let identities = "authentication.k8s.io";
        let (verb, group) = if legacy { ("impersonate", "") } else { (verb.as_str(), identities) };
        let base = Attributes { verb, group, version: "v1", ..Attributes::default() };
        let who = match (service_account(&wanted.user), node(&wanted.user)) {
            (Some((namespace, name)), _) => Attributes { resource: "serviceaccounts", namespace, name, ..base },
            (None, Some(_)) if mode == Mode::AssociatedNode => Attributes { resource: "nodes", name: "*", ..base },
            (None, Some(name)) if !legacy => Attributes { resource: "nodes", name, ..base },
            (None, _) => Attributes { resource: "users", name: &wanted.user, ..base },
        };
        self.require(requester, &who)?;
        if !wanted.uid.is_empty() {
            self.require(requester, &Attributes { group: identities, resource: "uids", name: &wanted.uid, ..base })?;
        }
        let groups = Attributes { resource: "groups", ..base };
        // What the new modes never allow.
        if !legacy && wanted.groups.iter().any(String::is_empty) {
            return Err(forbidden(requester, &groups, "impersonating the empty string group is not allowed"));
        }
        if !legacy && wanted.groups.iter().any(|g| g == "system:masters") {
            let groups = Attributes { name: "system:masters", ..groups };
            return Err(forbidden(requester, &groups, "impersonating the system:masters group is not allowed"));
        }
        let all_groups = !legacy && wanted.groups.len() >= MANY && self.authorize(requester, &Attributes { name: "*", ..groups }).allowed;
        if !all_groups {
            wanted.groups.iter().try_for_each(|name| self.require(requester, &Attributes { name, ..groups }))?;
        }
        let extras = Attributes { group: identities, resource: "userextras", ..base };
        if let Some(why) = check_extra(&wanted.extra).filter(|_| !legacy) {
            return Err(forbidden(requester, &extras, &why));
        }
        let values = || wanted.extra.iter().flat_map(|(key, values)| values.iter().map(move |value| (key, value)));
        let many = wanted.extra.len() >= MANY || values().count() >= MANY;
        let any = Attributes { subresource: "*", name: "*", ..extras };
        if !legacy && many && self.authorize(requester, &any).allowed {
            return Ok(());
        }
        values().try_for_each(|(key, name)| self.require(requester, &Attributes { subresource: key, name, ..extras }))
    }
}

/// From so many on, being allowed all is asked about first.
const MANY: usize = 4;

/// What the new modes refuse of extra fields.
fn check_extra(extra: &BTreeMap<String, Vec<String>>) -> Option<String> {
    extra.iter().find_map(|(key, values)| match () {
        () if key.is_empty() => Some("impersonating the empty string key in extra is not allowed".to_string()),
        () if *key != key.to_lowercase() => Some(format!("impersonating a non-lowercase key in extra is not allowed: {}", quoted(key))),
        () if values.is_empty() => Some("impersonating empty values in extra is not allowed".to_string()),
        () if values.iter().any(String::is_empty) => Some("impersonating the empty string value in extra is not allowed".to_string()),
        () => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_make_a_user() {
        let headers = [("Impersonate-User", "bob"), ("Impersonate-Uid", "5"), ("Impersonate-Extra-Some%2fKey", "val")];
        let user = Impersonation::from_headers(headers.into_iter()).becomes(Mode::UserInfo);
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("bob", "5"));
        assert_eq!(user.groups, ["system:authenticated"]);
        assert_eq!(user.extra["some/key"], ["val"]);
        let of = |name: &str| Impersonation { user: name.into(), ..Impersonation::default() }.becomes(Mode::Legacy).groups;
        assert_eq!(of("system:anonymous"), ["system:unauthenticated"]);
        assert_eq!(of("system:serviceaccount:a:b"), ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]);
        assert_eq!(of("system:serviceaccount:bad"), ["system:authenticated"]);
        let nobody = Impersonation { groups: vec!["g".into()], ..Impersonation::default() };
        let go = r#"&user.DefaultInfo{Name:"", UID:"", Groups:[]string{"g"}, Extra:map[string][]string(nil)}"#;
        assert_eq!(nobody.in_go(), go);
    }

    #[test]
    fn modes_fit_whom_they_are_for() {
        let wants = |name: &str, groups: &[&str]| Impersonation {
            user: name.into(),
            groups: groups.iter().map(|g| g.to_string()).collect(),
            ..Impersonation::default()
        };
        let agent = User {
            name: "system:serviceaccount:a:agent".into(),
            extra: [(NODE_OF_TOKEN.to_string(), vec!["n1".to_string()])].into(),
            ..User::default()
        };
        for (wanted, modes) in [
            (wants("bob", &["g"]), vec![Mode::UserInfo, Mode::Legacy]),
            (wants("system:node:n1", &[]), vec![Mode::AssociatedNode, Mode::ArbitraryNode, Mode::Legacy]),
            (wants("system:node:n2", &[]), vec![Mode::ArbitraryNode, Mode::Legacy]),
            (wants("system:node:n1", &["g"]), vec![Mode::Legacy]),
            (wants("system:serviceaccount:a:b", &[]), vec![Mode::ServiceAccount, Mode::Legacy]),
        ] {
            let found: Vec<Mode> = MODES.into_iter().filter(|m| m.fits(&agent, &wanted)).collect();
            assert_eq!(found, modes, "{wanted:?}");
        }
    }
}
