//! Pure: method, path and query in; what is asked for out.
//!
//! [`Info`] is what authorization sees, for served and unserved paths alike (upstream's RequestInfo); [`Info::target`]
//! finds the resource row and decides between 404 and 405; [`options`] reads the query. Start at [`Info::parse`].

use crate::api::request::{Options, Verb};
use crate::api::resource::Resource;
use crate::api::status::{Result, Status};

/// What a path says, before anyone asked whether it is served.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Info {
    pub is_resource: bool,
    /// `get`, `list`, …; the lower-case method for other paths.
    pub verb: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// What follows the subresource, as it came: for proxies.
    pub rest: String,
    /// The whole path.
    pub path: String,
    /// More path elements than any route but a proxy has.
    has_more: bool,
    /// Asked through the `/watch/` prefix.
    old_watch: bool,
}

/// A served resource and what to do with it.
pub struct Target {
    pub resource: &'static Resource,
    pub verb: Verb,
}

impl Info {
    pub fn parse(method: &str, path: &str, query: &[(String, String)]) -> Info {
        let verb = method.to_ascii_lowercase();
        let mut info = Info { verb, path: path.to_string(), ..Info::default() };
        if path.starts_with("//") {
            return info;
        }
        let trimmed = path.trim_matches('/');
        let raw: Vec<&str> = trimmed.split('/').collect();
        let parts: Vec<String> = raw.iter().map(|p| decode(p, Plus::Literal)).collect();
        let mut at = match parts[0].as_str() {
            "api" if parts.len() >= 3 => 1,
            "apis" if parts.len() >= 4 => {
                info.group = parts[1].clone();
                2
            }
            _ => return info,
        };
        info.is_resource = true;
        info.version = parts[at].clone();
        at += 1;
        if parts.get(at).is_some_and(|p| p == "watch") && parts.len() > at + 1 {
            info.old_watch = true;
            at += 1;
        }
        if parts[at] == "namespaces" && parts.len() > at + 1 {
            info.namespace = parts[at + 1].clone();
            let is_own = parts.get(at + 2).is_some_and(|p| matches!(p.as_str(), "status" | "finalize"));
            if parts.len() > at + 2 && !is_own {
                at += 2;
            }
        }
        let part = |i: usize| parts.get(at + i).cloned().unwrap_or_default();
        (info.resource, info.name, info.subresource) = (part(0), part(1), part(2));
        info.has_more = parts.len() > at + 3;
        if info.has_more {
            info.rest = raw[at + 3..].join("/");
        }
        if path.ends_with('/') && !info.subresource.is_empty() {
            info.rest.push('/');
        }
        let value = |key: &str| query.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        let is_watch = info.old_watch || value("watch").is_some_and(is_true);
        info.verb = match (method, info.name.is_empty()) {
            ("GET" | "HEAD", _) if info.old_watch => "watch",
            ("GET" | "HEAD", true) if is_watch => "watch",
            ("GET" | "HEAD", true) => "list",
            ("GET" | "HEAD", false) => "get",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", true) => "deletecollection",
            ("DELETE", false) => "delete",
            _ => "",
        }
        .to_string();
        if info.name.is_empty() && matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
            let pinned = value("fieldSelector").and_then(|s| crate::api::selector::FieldSelector::parse(s).ok());
            if let Some(name) = pinned.as_ref().and_then(|s| s.required("metadata.name")) {
                info.name = name.to_string();
            }
        }
        info
    }

    /// Whether the path itself names one object (as against a field selector doing so).
    fn names_object(&self) -> bool {
        !self.name.is_empty() && !matches!(self.verb.as_str(), "list" | "watch" | "deletecollection")
            || (self.old_watch && !self.name.is_empty())
    }

    /// The row and verb, given the row the registry knows for group, version and resource. `method` as it came.
    pub fn target(&self, method: &str, row: Option<&'static Resource>) -> Result<Target> {
        let resource = row.ok_or_else(Status::no_such_resource)?;
        // A namespace names itself.
        let namespace_given = !self.namespace.is_empty() && self.resource != "namespaces";
        if namespace_given && !resource.namespaced {
            return Err(Status::no_such_resource());
        }
        let is_connect = matches!(self.subresource.as_str(), "proxy" | "exec" | "attach" | "portforward" | "log");
        if self.has_more && (self.subresource != "proxy") {
            return Err(Status::no_such_resource());
        }
        if !self.subresource.is_empty() {
            let sub = resource.subresource(&self.subresource).ok_or_else(Status::no_such_resource)?;
            if resource.namespaced && !namespace_given {
                return Err(Status::no_such_resource());
            }
            if is_connect {
                return Ok(Target { resource, verb: Verb::Connect });
            }
            let verb = verb_of(&self.verb).filter(|_| method != "HEAD" && sub.verbs.contains(&self.verb.as_str()));
            return verb.map(|verb| Target { resource, verb }).ok_or_else(Status::method_not_allowed);
        }
        if self.names_object() && resource.namespaced && !namespace_given {
            return Err(Status::no_such_resource());
        }
        let across = resource.namespaced && !namespace_given;
        if across && !matches!(self.verb.as_str(), "list" | "watch") {
            return Err(Status::method_not_allowed());
        }
        // POST to an object's own path, PUT and PATCH to a collection: no such route.
        let fits = match self.verb.as_str() {
            "create" => self.name.is_empty() || (self.resource == "namespaces" && self.name.is_empty()),
            "update" | "patch" | "get" => !self.name.is_empty(),
            _ => true,
        };
        let verb = verb_of(&self.verb).filter(|_| fits && method != "HEAD" && resource.verbs.contains(&self.verb.as_str()));
        verb.map(|verb| Target { resource, verb }).ok_or_else(Status::method_not_allowed)
    }
}

fn verb_of(text: &str) -> Option<Verb> {
    Some(match text {
        "get" => Verb::Get,
        "list" => Verb::List,
        "watch" => Verb::Watch,
        "create" => Verb::Create,
        "update" => Verb::Update,
        "patch" => Verb::Patch,
        "delete" => Verb::Delete,
        "deletecollection" => Verb::DeleteCollection,
        _ => return None,
    })
}

/// The verb as authorization and messages spell it.
pub fn verb_text(verb: Verb) -> &'static str {
    match verb {
        Verb::Get => "get",
        Verb::List => "list",
        Verb::Watch => "watch",
        Verb::Create => "create",
        Verb::Update => "update",
        Verb::Patch => "patch",
        Verb::Delete => "delete",
        Verb::DeleteCollection => "deletecollection",
        Verb::Connect => "get",
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Plus {
    Literal,
    Space,
}

fn decode(text: &str, plus: Plus) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| (*b as char).to_digit(16));
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 3;
                continue;
            }
            (b'+', _, _) if plus == Plus::Space => out.push(b' '),
            (b, _, _) => out.push(b),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The query's parameters in order.
pub fn query(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter(|p| !p.is_empty());
    pairs
        .map(|p| {
            let (key, value) = p.split_once('=').unwrap_or((p, ""));
            (decode(key, Plus::Space), decode(value, Plus::Space))
        })
        .collect()
}

/// Upstream's idea of a boolean parameter: anything but `0` and `false`.
fn is_true(text: &str) -> bool {
    !matches!(text.to_ascii_lowercase().as_str(), "0" | "false")
}

fn int(text: &str) -> Result<i64> {
    text.parse().map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
}

/// The parameters the generic verbs understand. Malformed numbers are refused where the verb reads them.
pub fn options(verb: Verb, query: Vec<(String, String)>) -> Result<Options> {
    let mut o = Options::default();
    let reads = matches!(verb, Verb::List | Verb::Watch | Verb::DeleteCollection);
    let deletes = matches!(verb, Verb::Delete | Verb::DeleteCollection);
    for (key, value) in &query {
        let text = || Some(value.clone());
        match key.as_str() {
            "labelSelector" if reads => o.label_selector = o.label_selector.or_else(text),
            "fieldSelector" if reads => o.field_selector = o.field_selector.or_else(text),
            "resourceVersion" => o.resource_version = o.resource_version.or_else(text).filter(|v| !v.is_empty()),
            "resourceVersionMatch" => o.resource_version_match = o.resource_version_match.or_else(text).filter(|v| !v.is_empty()),
            "limit" if reads => o.limit = Some(int(value)?),
            "continue" if reads => o.continue_token = o.continue_token.or_else(text).filter(|v| !v.is_empty()),
            "timeoutSeconds" if reads => o.timeout_seconds = Some(int(value)?),
            "allowWatchBookmarks" => o.allow_watch_bookmarks = is_true(value),
            "sendInitialEvents" => o.send_initial_events = Some(is_true(value)),
            "dryRun" => o.dry_run.push(value.clone()),
            "fieldManager" => o.field_manager = o.field_manager.or_else(text).filter(|v| !v.is_empty()),
            "fieldValidation" => o.field_validation = o.field_validation.or_else(text).filter(|v| !v.is_empty()),
            "force" => o.force = Some(is_true(value)),
            "pretty" => o.pretty = is_true(value),
            "gracePeriodSeconds" if deletes => o.grace_period_seconds = Some(int(value)?),
            "propagationPolicy" if deletes => o.propagation_policy = o.propagation_policy.or_else(text).filter(|v| !v.is_empty()),
            "orphanDependents" if deletes => o.orphan_dependents = Some(is_true(value)),
            _ => {}
        }
    }
    o.raw = query;
    Ok(o)
}

/// `timeout` of non-watch requests, a Go duration.
pub fn timeout_seconds(query: &[(String, String)]) -> Result<Option<f64>> {
    let Some((_, text)) = query.iter().find(|(k, v)| k == "timeout" && !v.is_empty()) else { return Ok(None) };
    go_duration(text)
        .map(Some)
        .ok_or_else(|| Status::bad_request(format!("invalid timeout specified in the request URL - time: invalid duration {text:?}")))
}

/// Seconds of `1h2m3.5s`.
pub fn go_duration(text: &str) -> Option<f64> {
    let (mut rest, mut total) = (text, 0.0);
    if rest == "0" {
        return Some(0.0);
    }
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[unit_end..];
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::resource;

    fn info(method: &str, target: &str) -> Info {
        let (path, q) = target.split_once('?').unwrap_or((target, ""));
        Info::parse(method, path, &query(q))
    }

    #[test]
    fn paths_become_verbs() {
        for (method, target, want) in [
            ("GET", "/api/v1/namespaces/x/pods", "list - x pods - -"),
            ("GET", "/api/v1/namespaces/x/pods?watch=1", "watch - x pods - -"),
            ("GET", "/api/v1/namespaces/x/pods?watch=false", "list - x pods - -"),
            ("GET", "/api/v1/namespaces/x/pods?fieldSelector=metadata.name%3Da", "list - x pods a -"),
            ("GET", "/api/v1/namespaces/x", "get - x namespaces x -"),
            ("PUT", "/api/v1/namespaces/x/finalize", "update - x namespaces x finalize"),
            ("DELETE", "/apis/apps/v1/namespaces/x/deployments", "deletecollection apps x deployments - -"),
            ("POST", "/api/v1/namespaces/x/pods/a/eviction", "create - x pods a eviction"),
            ("GET", "/api/v1/watch/namespaces/x/pods/a", "watch - x pods a -"),
            ("GET", "/version", "get - - - - -"),
        ] {
            let i = info(method, target);
            let dash = |s: &str| if s.is_empty() { "-".to_string() } else { s.to_string() };
            let got = [&i.verb, &i.group, &i.namespace, &i.resource, &i.name, &i.subresource].map(|s| dash(s)).join(" ");
            assert_eq!(got, want, "{method} {target}");
        }
        assert_eq!(info("GET", "/api/v1/nodes/n/proxy/metrics/x/").rest, "metrics/x/");
    }

    #[test]
    fn unserved_is_404_and_wrong_methods_are_405() {
        for (method, target, want) in [
            ("GET", "/api/v1/foos", 404),
            ("GET", "/api/v1/pods/x", 404),
            ("POST", "/api/v1/pods", 405),
            ("DELETE", "/api/v1/pods", 405),
            ("DELETE", "/api/v1/namespaces", 405),
            ("PUT", "/api/v1/namespaces/x/configmaps", 405),
            ("POST", "/api/v1/namespaces/x/configmaps/a", 405),
            ("HEAD", "/api/v1/namespaces/x/configmaps/a", 405),
            ("FOO", "/api/v1/namespaces/x/configmaps/a", 405),
            ("GET", "/api/v1/namespaces/x/configmaps/a/status", 404),
            ("GET", "/api/v1/namespaces/x/configmaps/a/a/b/c", 404),
            ("GET", "/api/v1/namespaces/x/nodes", 404),
            ("GET", "/api/v1/namespaces/x/configmaps/a/", 200),
            ("POST", "/api/v1/namespaces", 200),
            ("PUT", "/api/v1/namespaces/x/finalize", 200),
            ("GET", "/api/v1/watch/namespaces/x/pods/a", 200),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Da", 200),
        ] {
            let i = info(method, target);
            let code = i.target(method, resource::find(&i.group, &i.version, &i.resource)).map_or_else(|s| s.code, |_| 200);
            assert_eq!(code, want, "{method} {target}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(go_duration("1m1.5s"), Some(61.5));
        assert_eq!(go_duration("abc"), None);
    }
}
