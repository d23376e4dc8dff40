//! Pure: which operations the API has, from the resource table: every path with its methods, parameters, bodies and answers.
//!
//! What both OpenAPI versions say is said once here; `v2` and `v3` spell it. Parameters all operations of a path have belong to
//! the path, as upstream publishes them.

use crate::api::resource::{self, Resource, Subresource};
use crate::api::schema::{TypeRef, type_named, type_of_gvk};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

pub struct Item {
    pub path: String,
    pub parameters: Vec<&'static Parameter>,
    pub operations: Vec<Operation>,
}

pub struct Operation {
    pub method: &'static str,
    pub id: String,
    pub tag: String,
    /// `list`, `patch`, …; empty for what is no resource.
    pub action: &'static str,
    pub gvk: Option<(&'static str, &'static str, &'static str)>,
    pub parameters: Vec<&'static Parameter>,
    pub body: Body,
    /// Codes under which it answers what it answers; 401 is always possible.
    pub codes: &'static [u16],
    pub answer: Answer,
    pub media: Media,
}

/// One query or path parameter.
#[derive(Debug)]
pub struct Parameter {
    pub name: &'static str,
    pub is_path: bool,
    pub kind: &'static str,
    /// The name v2 shares it under ends in this; empty: v2 writes it out every time.
    pub shared: &'static str,
}

#[derive(Clone, Copy)]
pub enum Body {
    None,
    Of(TypeRef),
    Patch,
    Delete,
}

#[derive(Clone, Copy)]
pub enum Answer {
    Type(TypeRef),
    Text,
}

/// What an operation speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Media {
    Object,
    Stream,
    /// Like an object, and v2 says it is read so, too.
    Discovery,
    Log,
    Any,
    Json,
    /// JSON that v2 says nothing is read of.
    JsonOnly,
    Jwks,
}

impl Media {
    pub fn produces(self) -> &'static [&'static str] {
        match self {
            Media::Object | Media::Discovery => OBJECT,
            Media::Stream => STREAM,
            Media::Log => &["text/plain", "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"],
            Media::Any => &["*/*"],
            Media::Json | Media::JsonOnly => &["application/json"],
            Media::Jwks => &["application/jwk-set+json"],
        }
    }

    pub fn consumes(self) -> &'static [&'static str] {
        match self {
            Media::Object | Media::Stream | Media::Log | Media::Any => &["*/*"],
            Media::Discovery => OBJECT,
            Media::Json => &["application/json"],
            Media::JsonOnly | Media::Jwks => &[],
        }
    }
}

const OBJECT: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const STREAM: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
pub const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

const fn text(name: &'static str, shared: &'static str) -> Parameter {
    Parameter { name, is_path: false, kind: "string", shared }
}
const fn flag(name: &'static str, shared: &'static str) -> Parameter {
    Parameter { name, is_path: false, kind: "boolean", shared }
}
const fn number(name: &'static str, shared: &'static str) -> Parameter {
    Parameter { name, is_path: false, kind: "integer", shared }
}
const fn in_path(name: &'static str, shared: &'static str) -> Parameter {
    Parameter { name, is_path: true, kind: "string", shared }
}

type Parameters = &'static [Parameter];

const PRETTY: Parameters = &[text("pretty", "tJGM1-ng")];
const NAME: Parameters = &[in_path("name", "")];
const NAMESPACE: Parameters = &[in_path("namespace", "vgWSWtn3")];
const PATH: Parameters = &[in_path("path", "z6Ciiujn")];
const LIST: Parameters = &[
    flag("allowWatchBookmarks", "HC2hJt-J"),
    text("continue", "QfD61s0i"),
    text("fieldSelector", "xIcQKXFG"),
    text("labelSelector", "5Zw57w4C"),
    number("limit", "1NfNmdNH"),
    text("resourceVersion", "5WAnf1kx"),
    text("resourceVersionMatch", "t8XhRHeC"),
    flag("sendInitialEvents", "rLXlEK_k"),
    text("shardSelector", "Kgyki_3_"),
    number("timeoutSeconds", "yvYezaOC"),
    flag("watch", "XNNPZGbK"),
];
const DELETE_COLLECTION: Parameters = &[
    text("continue", "QfD61s0i"),
    text("fieldSelector", "xIcQKXFG"),
    text("labelSelector", "5Zw57w4C"),
    number("limit", "1NfNmdNH"),
    text("resourceVersion", "5WAnf1kx"),
    text("resourceVersionMatch", "t8XhRHeC"),
    flag("sendInitialEvents", "rLXlEK_k"),
    text("shardSelector", "Kgyki_3_"),
    number("timeoutSeconds", "yvYezaOC"),
];
const DELETE: Parameters = &[
    text("dryRun", ""),
    number("gracePeriodSeconds", "-K5HaBOS"),
    flag("ignoreStoreReadErrorWithClusterBreakingPotential", "QbNkfIqj"),
    flag("orphanDependents", "uRB25kX5"),
    text("propagationPolicy", "6jk3prlO"),
];
const WRITE: Parameters = &[text("dryRun", ""), text("fieldManager", "Qy4HdaTW"), text("fieldValidation", "")];
const PATCH: Parameters = &[text("dryRun", ""), text("fieldManager", "7c6nTn1T"), text("fieldValidation", ""), flag("force", "tOGGb0Yi")];
const LOG: Parameters = &[
    text("container", "1GeXxFDC"),
    flag("follow", "9OIXh_2R"),
    flag("insecureSkipTLSVerifyBackend", "gM00jVbe"),
    number("limitBytes", "zwd1RXuc"),
    flag("previous", "1jxDPu3y"),
    number("sinceSeconds", "vE2NLdnP"),
    text("stream", "l-48cgXv"),
    number("tailLines", "9xQLWHMV"),
    flag("timestamps", "c17fW1w_"),
];
const ATTACH: Parameters = &[
    text("container", "_Q-EJ3nR"),
    flag("stderr", "26jJhFUR"),
    flag("stdin", "sEFnN3IS"),
    flag("stdout", "005YMKE6"),
    flag("tty", "g7MlET_l"),
];
const EXEC: Parameters = &[
    text("command", "Py3eQybp"),
    text("container", "i5dOmRiM"),
    flag("stderr", "W_1TNlWc"),
    flag("stdin", "PSzNhyUC"),
    flag("stdout", "-EZLRwV1"),
    flag("tty", "s0flW37O"),
];
const PORTS: Parameters = &[number("ports", "91KROJmm")];
const POD_PROXY: Parameters = &[text("path", "oPbzgLUj")];
const SERVICE_PROXY: Parameters = &[text("path", "QCf0eosM")];
const NODE_PROXY: Parameters = &[text("path", "rFDtV0x9")];

/// Resources whose DELETE answers with the object.
const DELETE_ANSWERS_OBJECT: &[&str] = &[
    "csidrivers",
    "csinodes",
    "deviceclasses",
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "resourceclaims",
    "resourceclaimtemplates",
    "resourcequotas",
    "resourceslices",
    "serviceaccounts",
    "services",
    "storageclasses",
    "volumeattachments",
    "volumeattributesclasses",
];

/// One document of v3 and a part of v2: `api/v1`, `apis/apps`, `version`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    WellKnown,
    Core,
    Groups,
    Group(&'static str),
    Version(&'static str, &'static str),
    Jwks,
    Info,
}

/// Every part with its path below `/openapi/v3/`.
pub fn parts() -> Vec<(String, Part)> {
    let mut parts = vec![
        (".well-known/openid-configuration".to_string(), Part::WellKnown),
        ("api".to_string(), Part::Core),
        ("apis".to_string(), Part::Groups),
        ("openid/v1/jwks".to_string(), Part::Jwks),
        ("version".to_string(), Part::Info),
    ];
    for r in resource::ALL {
        let part = Part::Version(r.group, r.version);
        if parts.iter().any(|(_, p)| *p == part) {
            continue;
        }
        if r.group.is_empty() {
            parts.push((format!("api/{}", r.version), part));
        } else {
            if !parts.iter().any(|(_, p)| *p == Part::Group(r.group)) {
                parts.push((format!("apis/{}", r.group), Part::Group(r.group)));
            }
            parts.push((format!("apis/{}/{}", r.group, r.version), part));
        }
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    parts
}

pub fn items(part: Part) -> Vec<Item> {
    let meta = |name: &str| Answer::Type(meta_type(name));
    match part {
        Part::WellKnown => {
            vec![plain(
                "/.well-known/openid-configuration/",
                "getServiceAccountIssuerOpenIDConfiguration",
                "WellKnown",
                Answer::Text,
                Media::JsonOnly,
            )]
        }
        Part::Jwks => vec![plain("/openid/v1/jwks/", "getServiceAccountIssuerOpenIDKeyset", "openid", Answer::Text, Media::Jwks)],
        Part::Info => {
            let info = type_named("io.k8s.apimachinery.pkg.version.Info").expect("the version is in the table");
            vec![plain("/version/", "getCodeVersion", "version", Answer::Type(info), Media::Json)]
        }
        Part::Core => vec![plain("/api/", "getCoreAPIVersions", "core", meta("APIVersions"), Media::Discovery)],
        Part::Groups => vec![plain("/apis/", "getAPIVersions", "apis", meta("APIGroupList"), Media::Discovery)],
        Part::Group(group) => {
            let id = format!("get{}APIGroup", upper_first(&group_name(group)));
            vec![plain(&format!("/apis/{group}/"), &id, &group_name(group), meta("APIGroup"), Media::Discovery)]
        }
        Part::Version(group, version) => {
            let of = Version { group, version };
            let id = format!("get{}APIResources", of.in_id());
            let mut items = vec![plain(&format!("{}/", of.prefix()), &id, &of.tag(), meta("APIResourceList"), Media::Discovery)];
            for resource in resource::ALL.iter().filter(|r| r.group == group && r.version == version) {
                of.resource(resource, &mut items);
            }
            items
        }
    }
}

fn meta_type(name: &str) -> TypeRef {
    type_named(&format!("{META}.{name}")).expect("the meta kinds are in the table")
}

fn plain(path: &str, id: &str, tag: &str, answer: Answer, media: Media) -> Item {
    let operation = Operation {
        method: "get",
        id: id.to_string(),
        tag: tag.to_string(),
        action: "",
        gvk: None,
        parameters: Vec::new(),
        body: Body::None,
        codes: &[200],
        answer,
        media,
    };
    Item { path: path.to_string(), parameters: Vec::new(), operations: vec![operation] }
}

/// `rbacAuthorization` for `rbac.authorization.k8s.io`.
fn group_name(group: &str) -> String {
    let mut parts = group.strip_suffix(".k8s.io").unwrap_or(group).split('.');
    let first = parts.next().unwrap_or("").to_string();
    parts.fold(first, |name, part| name + &upper_first(part))
}

fn upper_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_ascii_uppercase().to_string() + chars.as_str())
}

struct Version {
    group: &'static str,
    version: &'static str,
}

/// One operation before it has a place.
struct Draft {
    method: &'static str,
    action: &'static str,
    id: String,
    parameters: &'static [Parameters],
    body: Body,
    codes: &'static [u16],
    answer: Answer,
    media: Media,
}

type Gvk = (&'static str, &'static str, &'static str);

impl Version {
    fn prefix(&self) -> String {
        if self.group.is_empty() { format!("/api/{}", self.version) } else { format!("/apis/{}/{}", self.group, self.version) }
    }

    fn name(&self) -> String {
        if self.group.is_empty() { "core".to_string() } else { group_name(self.group) }
    }

    fn in_id(&self) -> String {
        format!("{}{}", upper_first(&self.name()), upper_first(self.version))
    }

    fn tag(&self) -> String {
        format!("{}_{}", self.name(), self.version)
    }

    /// Puts operations under a path; what all of them take becomes the path's.
    fn put(&self, items: &mut Vec<Item>, path: String, gvk: Gvk, common: &[Parameters], drafts: Vec<Draft>) {
        if drafts.is_empty() {
            return;
        }
        let mut operations: Vec<Operation> = drafts
            .into_iter()
            .map(|d| Operation {
                method: d.method,
                id: d.id,
                tag: self.tag(),
                action: d.action,
                gvk: Some(gvk),
                parameters: d.parameters.iter().copied().flatten().collect(),
                body: d.body,
                codes: d.codes,
                answer: d.answer,
                media: d.media,
            })
            .collect();
        let key = |p: &&'static Parameter| (p.name, p.is_path, p.shared);
        let first = operations[0].parameters.clone();
        let shared: Vec<_> =
            first.into_iter().filter(|p| operations.iter().all(|o| o.parameters.iter().any(|q| key(q) == key(p)))).collect();
        for operation in &mut operations {
            operation.parameters.retain(|p| !shared.iter().any(|q| key(q) == key(p)));
            operation.parameters.sort_by_key(|p| (p.name, !p.is_path));
        }
        let mut parameters: Vec<&'static Parameter> = common.iter().copied().flatten().chain(shared).collect();
        parameters.sort_by_key(|p| (p.name, !p.is_path));
        items.push(Item { path, parameters, operations });
    }

    fn resource(&self, r: &'static Resource, items: &mut Vec<Item>) {
        let Some(ty) = type_of_gvk(r.group, r.version, r.kind) else { return };
        let list = type_of_gvk(r.group, r.version, &r.list_kind());
        let (prefix, ids) = (self.prefix(), self.in_id());
        let gvk = (r.group, r.version, r.kind);
        let (scope, scoped) = if r.namespaced { ("/namespaces/{namespace}", "Namespaced") } else { ("", "") };
        let has = |verb: &str| r.verbs.contains(&verb);
        let kind = r.kind;
        let collection = format!("{prefix}{scope}/{}", r.plural);
        let common: &[Parameters] = if r.namespaced { &[NAMESPACE, PRETTY] } else { &[PRETTY] };
        let common_one: &[Parameters] = if r.namespaced { &[NAME, NAMESPACE, PRETTY] } else { &[NAME, PRETTY] };
        let listing = |id: String, action: &'static str, answer: TypeRef| {
            draft("get", action, id, &[LIST], Body::None, &[200], Answer::Type(answer), Media::Stream)
        };

        let mut drafts = Vec::new();
        if let (true, Some(list)) = (has("list"), list) {
            drafts.push(listing(format!("list{ids}{scoped}{kind}"), "list", list));
        }
        if has("create") {
            drafts.push(draft(
                "post",
                "post",
                format!("create{ids}{scoped}{kind}"),
                &[WRITE],
                Body::Of(ty),
                &[200, 201, 202],
                Answer::Type(ty),
                Media::Object,
            ));
        }
        if has("deletecollection") {
            let id = format!("delete{ids}Collection{scoped}{kind}");
            let answer = Answer::Type(meta_type("Status"));
            drafts.push(draft("delete", "deletecollection", id, &[DELETE, DELETE_COLLECTION], Body::Delete, &[200], answer, Media::Object));
        }
        self.put(items, collection.clone(), gvk, common, drafts);

        let one = format!("{collection}/{{name}}");
        let mut drafts = Vec::new();
        if has("get") {
            drafts.push(draft("get", "get", format!("read{ids}{scoped}{kind}"), &[], Body::None, &[200], Answer::Type(ty), Media::Object));
        }
        if has("update") {
            drafts.push(draft(
                "put",
                "put",
                format!("replace{ids}{scoped}{kind}"),
                &[WRITE],
                Body::Of(ty),
                &[200, 201],
                Answer::Type(ty),
                Media::Object,
            ));
        }
        if has("delete") {
            let answer = if DELETE_ANSWERS_OBJECT.contains(&r.plural) { ty } else { meta_type("Status") };
            let id = format!("delete{ids}{scoped}{kind}");
            drafts.push(draft("delete", "delete", id, &[DELETE], Body::Delete, &[200, 202], Answer::Type(answer), Media::Object));
        }
        if has("patch") {
            drafts.push(draft(
                "patch",
                "patch",
                format!("patch{ids}{scoped}{kind}"),
                &[PATCH],
                Body::Patch,
                &[200, 201],
                Answer::Type(ty),
                Media::Object,
            ));
        }
        self.put(items, one.clone(), gvk, common_one, drafts);

        if let (true, true, Some(list)) = (r.namespaced, has("list"), list) {
            let all = listing(format!("list{ids}{kind}ForAllNamespaces"), "list", list);
            self.put(items, format!("{prefix}/{}", r.plural), gvk, &[PRETTY], vec![all]);
        }
        if has("watch") {
            let event = meta_type("WatchEvent");
            let many = listing(format!("watch{ids}{scoped}{kind}List"), "watchlist", event);
            self.put(items, format!("{prefix}/watch{scope}/{}", r.plural), gvk, common, vec![many]);
            let single = listing(format!("watch{ids}{scoped}{kind}"), "watch", event);
            self.put(items, format!("{prefix}/watch{scope}/{}/{{name}}", r.plural), gvk, common_one, vec![single]);
            if r.namespaced {
                let all = listing(format!("watch{ids}{kind}ListForAllNamespaces"), "watchlist", event);
                self.put(items, format!("{prefix}/watch/{}", r.plural), gvk, &[PRETTY], vec![all]);
            }
        }
        for sub in r.subresources {
            self.subresource(r, sub, &one, items);
        }
    }

    fn subresource(&self, r: &'static Resource, sub: &'static Subresource, one: &str, items: &mut Vec<Item>) {
        let gvk = (sub.group, sub.version, sub.kind);
        let scoped = if r.namespaced { "Namespaced" } else { "" };
        let name = format!("{scoped}{}{}", r.kind, upper_first(sub.name));
        let ids = self.in_id();
        let path = format!("{one}/{}", sub.name);
        let common: &[Parameters] = if r.namespaced { &[NAME, NAMESPACE, PRETTY] } else { &[NAME, PRETTY] };
        if let Some(options) = connects(r, sub) {
            return self.connect(r, sub, options, &path, &name, items);
        }
        let Some(ty) = type_of_gvk(sub.group, sub.version, sub.kind) else { return };
        let mut drafts = Vec::new();
        for verb in ["get", "update", "create", "patch"].into_iter().filter(|v| sub.verbs.contains(v)) {
            let answer = Answer::Type(ty);
            drafts.push(match verb {
                "get" if sub.name == "log" => {
                    draft("get", "get", format!("read{ids}{name}"), &[LOG], Body::None, &[200], Answer::Text, Media::Log)
                }
                "get" => draft("get", "get", format!("read{ids}{name}"), &[], Body::None, &[200], answer, Media::Object),
                "update" => draft("put", "put", format!("replace{ids}{name}"), &[WRITE], Body::Of(ty), &[200, 201], answer, Media::Object),
                "create" => {
                    draft("post", "post", format!("create{ids}{name}"), &[WRITE], Body::Of(ty), &[200, 201, 202], answer, Media::Object)
                }
                _ => draft("patch", "patch", format!("patch{ids}{name}"), &[PATCH], Body::Patch, &[200, 201], answer, Media::Object),
            });
        }
        self.put(items, path, gvk, common, drafts);
    }

    /// exec, attach, port-forward and proxy: any method that can be connected.
    fn connect(&self, r: &Resource, sub: &'static Subresource, options: Parameters, path: &str, name: &str, items: &mut Vec<Item>) {
        let gvk = (sub.group, sub.version, sub.kind);
        let ids = self.in_id();
        let is_proxy = sub.name == "proxy";
        let methods: &[&'static str] =
            if is_proxy { &["get", "put", "post", "delete", "options", "head", "patch"] } else { &["get", "post"] };
        let drafts = |suffix: &str| -> Vec<Draft> {
            let id = |method: &str| format!("connect{ids}{}{name}{suffix}", upper_first(method));
            methods.iter().map(|m| draft(m, "connect", id(m), &[], Body::None, &[200], Answer::Text, Media::Any)).collect()
        };
        let common: &[Parameters] = if r.namespaced { &[NAME, NAMESPACE, options] } else { &[NAME, options] };
        self.put(items, path.to_string(), gvk, common, drafts(""));
        if is_proxy {
            let common: &[Parameters] = if r.namespaced { &[NAME, NAMESPACE, options, PATH] } else { &[NAME, options, PATH] };
            self.put(items, format!("{path}/{{path}}"), gvk, common, drafts("WithPath"));
        }
    }
}

fn connects(r: &Resource, sub: &Subresource) -> Option<Parameters> {
    Some(match (r.plural, sub.name) {
        ("pods", "attach") => ATTACH,
        ("pods", "exec") => EXEC,
        ("pods", "portforward") => PORTS,
        ("pods", "proxy") => POD_PROXY,
        ("services", "proxy") => SERVICE_PROXY,
        ("nodes", "proxy") => NODE_PROXY,
        _ => return None,
    })
}

#[allow(clippy::too_many_arguments)] // one row of a table
fn draft(
    method: &'static str,
    action: &'static str,
    id: String,
    parameters: &'static [Parameters],
    body: Body,
    codes: &'static [u16],
    answer: Answer,
    media: Media,
) -> Draft {
    Draft { method, action, id, parameters, body, codes, answer, media }
}
