//! Pure: `Accept` and `Content-Type` headers in, encodings and views out.
//!
//! Clauses are tried by quality, then order; the first that names an encoding and a view we have wins. Start at [`accept`].

use crate::api::request::{Body, PatchType};
use crate::api::status::{Result, Status};
use crate::api::value::Value;
use crate::api::{json, protobuf, schema, yaml};

use bytes::Bytes;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

pub const MEDIA: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
pub const MEDIA_WATCH: [&str; 2] = ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];

impl Encoding {
    pub fn media_type(self) -> &'static str {
        match self {
            Encoding::Json => MEDIA[0],
            Encoding::Yaml => MEDIA[1],
            Encoding::Protobuf => MEDIA[2],
        }
    }
}

/// The shape of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum View {
    Plain,
    /// The string is the meta.k8s.io version asked for.
    Table(&'static str),
    Partial(&'static str),
    PartialList(&'static str),
    /// Aggregated discovery v2.
    Discovery,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accepted {
    pub encoding: Encoding,
    pub view: View,
    pub pretty: bool,
}

/// Why nothing fits: upstream answers the two in different words.
#[derive(Debug, PartialEq)]
pub enum Refused {
    /// No clause names a media type we speak.
    Media,
    /// One does, but with parameters (a view) we cannot give here.
    View,
}

/// What is asked, as far as negotiation cares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// An object or a list: Table and partial views exist.
    Object,
    /// Neither: statuses, reviews, plain discovery.
    Bare,
    /// `/api` and `/apis`.
    Discovery,
    Watch,
}

struct Clause<'a> {
    media: &'a str,
    params: Vec<(&'a str, &'a str)>,
    quality: f64,
}

fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = header
        .split(',')
        .map(str::trim)
        .filter(|c| !c.is_empty())
        .map(|clause| {
            let mut pieces = clause.split(';').map(str::trim);
            let media = pieces.next().unwrap_or("");
            let params: Vec<(&str, &str)> =
                pieces.filter_map(|p| p.split_once('=')).map(|(k, v)| (k.trim(), v.trim().trim_matches('"'))).collect();
            let quality = params.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse().ok()).unwrap_or(1.0);
            Clause { media, params, quality }
        })
        .collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
}

/// Picks an encoding and a view; an empty header takes JSON.
pub fn accept(header: &str, kind: Kind) -> std::result::Result<Accepted, Refused> {
    let clauses = clauses(header);
    if clauses.is_empty() {
        return Ok(Accepted { encoding: Encoding::Json, view: View::Plain, pretty: false });
    }
    let mut refused = Refused::Media;
    for clause in &clauses {
        for encoding in [Encoding::Json, Encoding::Yaml, Encoding::Protobuf] {
            if !matches(clause.media, encoding) {
                continue;
            }
            refused = Refused::View;
            if encoding == Encoding::Yaml && kind == Kind::Watch {
                continue;
            }
            if let Some(accepted) = with_view(clause, encoding, kind) {
                return Ok(accepted);
            }
        }
    }
    Err(refused)
}

/// May a route that has one encoding only answer? Whatever else is asked for, however much it is preferred.
pub fn accepts(header: &str, encoding: Encoding) -> bool {
    let clauses = clauses(header);
    clauses.is_empty() || clauses.iter().any(|clause| matches(clause.media, encoding))
}

fn matches(media: &str, encoding: Encoding) -> bool {
    let own = encoding.media_type();
    media == own || media == "*/*" || media == "application/*"
}

fn with_view(clause: &Clause<'_>, encoding: Encoding, kind: Kind) -> Option<Accepted> {
    let param = |key: &str| clause.params.iter().find(|(k, _)| *k == key).map_or("", |(_, v)| *v);
    let pretty = matches!(param("pretty"), "1" | "true");
    let plain = Accepted { encoding, view: View::Plain, pretty };
    let (target, group, version) = (param("as"), param("g"), param("v"));
    if target.is_empty() {
        return Some(plain);
    }
    if kind == Kind::Discovery {
        let known = (target, group, version) == ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2");
        return known.then_some(Accepted { view: View::Discovery, ..plain });
    }
    let version = match version {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ => return None,
    };
    if group != "meta.k8s.io" || kind == Kind::Bare {
        return None;
    }
    let view = match target {
        "Table" if encoding != Encoding::Protobuf => View::Table(version),
        "PartialObjectMetadata" => View::Partial(version),
        "PartialObjectMetadataList" => View::PartialList(version),
        _ => return None,
    };
    Some(Accepted { view, ..plain })
}

/// The 406 for a refusal.
pub fn not_acceptable(refused: &Refused, kind: Kind) -> Status {
    match (refused, kind) {
        (Refused::View, Kind::Watch) => Status::not_acceptable(&MEDIA_WATCH),
        (Refused::View, _) => Status::not_acceptable(&MEDIA),
        (Refused::Media, _) => unavailable(&MEDIA),
    }
}

/// The router's 406, which lists what the route can produce.
pub fn unavailable(available: &[&str]) -> Status {
    let message = format!("406: Not Acceptable\n\nAvailable representations: {}", available.join(", "));
    let mut status = Status::new(406, "NotAcceptable", message);
    status.details = Some(Box::default());
    status
}

/// Whether a document that exists as `media` only will do.
pub fn takes(header: &str, media: &str) -> bool {
    let clauses = clauses(header);
    clauses.is_empty() || clauses.iter().any(|c| c.media == media || matches!(c.media, "*/*" | "application/*"))
}

/// The encoding errors are written in: what was asked, JSON if that makes no sense.
pub fn error_encoding(header: &str) -> Encoding {
    for clause in clauses(header) {
        for encoding in [Encoding::Json, Encoding::Yaml, Encoding::Protobuf] {
            if matches(clause.media, encoding) {
                return encoding;
            }
        }
    }
    Encoding::Json
}

fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or("").trim()
}

/// A request body by its Content-Type; absent means JSON.
pub fn body(content_type: &str, bytes: Bytes) -> Result<Body> {
    match essence(content_type) {
        "" | "application/json" => Ok(Body::Json(bytes)),
        "application/yaml" => Ok(Body::Yaml(bytes)),
        "application/vnd.kubernetes.protobuf" => Ok(Body::Protobuf(bytes)),
        _ => Err(Status::unsupported_media_type(&MEDIA)),
    }
}

/// A patch type by its Content-Type, and the body as the bytes it is in.
pub fn patch(content_type: &str, bytes: Bytes) -> Result<(PatchType, Body)> {
    let patch_type = match essence(content_type) {
        "application/json-patch+json" => PatchType::Json,
        "application/merge-patch+json" => PatchType::Merge,
        "application/strategic-merge-patch+json" => PatchType::Strategic,
        "application/apply-patch+yaml" => return Ok((PatchType::Apply, Body::Yaml(bytes))),
        _ => {
            let mut status = Status::new(415, "UnsupportedMediaType", "415: Unsupported Media Type");
            status.details = Some(Box::default());
            return Err(status);
        }
    };
    Ok((patch_type, Body::Json(bytes)))
}

/// A tree with `apiVersion` and `kind` in the encoding asked for.
pub fn encode(value: &Value, encoding: Encoding, pretty: bool) -> Vec<u8> {
    match encoding {
        Encoding::Json if pretty => {
            let mut out = serde_json::to_vec_pretty(&serde_json::Value::from(value)).expect("a tree is JSON");
            out.push(b'\n');
            out
        }
        Encoding::Json => {
            let mut out = json::to_vec(value);
            out.push(b'\n');
            out
        }
        Encoding::Yaml => yaml::write(value),
        Encoding::Protobuf => protobuf_of(value),
    }
}

/// With the envelope. Kinds the schema table does not know are wrapped as JSON, which the envelope allows.
fn protobuf_of(value: &Value) -> Vec<u8> {
    let (api_version, kind) = (value.str_at(&["apiVersion"]), value.str_at(&["kind"]));
    // The core group's discovery names no version.
    match schema::type_of(if api_version.is_empty() { "v1" } else { api_version }, kind) {
        Some(ty) => protobuf::seal(api_version, kind, &protobuf::encode(ty, value)),
        None => protobuf::seal(api_version, kind, &json::to_vec(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_acceptable_clause_wins() {
        use {Encoding::*, View::*};
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        for (header, kind, want) in [
            ("", Kind::Object, Ok((Json, Plain))),
            ("*/*", Kind::Object, Ok((Json, Plain))),
            (table, Kind::Object, Ok((Json, Table("v1")))),
            (table, Kind::Bare, Ok((Json, Plain))),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", Kind::Object, Err(Refused::View)),
            ("application/vnd.kubernetes.protobuf,application/json", Kind::Object, Ok((Protobuf, Plain))),
            ("application/json;q=0.5, application/yaml", Kind::Object, Ok((Yaml, Plain))),
            ("application/yaml", Kind::Watch, Err(Refused::View)),
            ("text/html", Kind::Object, Err(Refused::Media)),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json",
                Kind::Discovery,
                Ok((Json, Plain)),
            ),
            ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", Kind::Discovery, Ok((Json, Discovery))),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1beta1", Kind::Object, Ok((Json, PartialList("v1beta1")))),
        ] {
            let got = accept(header, kind).map(|a| (a.encoding, a.view));
            assert_eq!(got, want, "{header}");
        }
    }

    #[test]
    fn a_route_of_one_encoding_takes_any_clause_that_allows_it() {
        for (header, want) in
            [("", true), ("application/vnd.kubernetes.protobuf,*/*", true), ("application/vnd.kubernetes.protobuf", false)]
        {
            assert_eq!(accepts(header, Encoding::Json), want, "{header}");
        }
    }

    #[test]
    fn what_names_no_version_is_encoded_as_its_type() {
        let list = crate::value!({"kind": "APIResourceList", "groupVersion": "v1", "resources": []});
        let bytes = encode(&list, Encoding::Protobuf, false);
        assert!(!bytes.contains(&b'{'), "JSON in the envelope");
    }
}
