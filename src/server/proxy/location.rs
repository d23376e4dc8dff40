//! Pure: where a request to a `proxy` subresource goes, and how its path and links change on the way.
//!
//! Pods, services and nodes are named `name`, `name:port` or `scheme:name:port`. A pod is reached at its address, a service
//! at one of its endpoints that is a pod, a node at its kubelet unless another port is asked for. Start at [`locate`].
//! Texts and choices are upstream's, which clients compare.

use std::net::IpAddr;

use crate::api::request::Request;
use crate::api::resource::{ENDPOINTS, NODES, PODS, SERVICES};
use crate::api::status::{Result, Status};
use crate::api::value::Value;
use crate::server::strategy::Access;

/// A name with its optional scheme and port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Id<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

impl<'a> Id<'a> {
    fn parse(text: &'a str) -> Option<Id<'a>> {
        let parts: Vec<&str> = text.split(':').collect();
        let id = match parts[..] {
            [name] => Id { name, ..Id::default() },
            [name, port] => Id { name, port, ..Id::default() },
            [scheme, name, port] => Id { scheme, name, port },
            _ => return None,
        };
        (!id.name.is_empty() && matches!(id.scheme, "" | "http" | "https")).then_some(id)
    }

    fn is_tls(&self) -> bool {
        self.scheme == "https"
    }
}

/// What to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub tls: bool,
    pub host: String,
    /// As asked for: a number, or a name nobody can dial. Empty: the scheme's own.
    pub port: String,
    /// Set for a kubelet: the node whose certificate it must show.
    pub kubelet: Option<String>,
}

impl Location {
    /// `host:port`, or why there is none.
    pub fn address(&self) -> std::result::Result<String, String> {
        let port = match self.port.as_str() {
            "" if self.tls => 443,
            "" => 80,
            port => port.parse::<u16>().map_err(|_| format!("dial tcp: lookup tcp/{port}: unknown port"))?,
        };
        Ok(if self.host.contains(':') { format!("[{}]:{port}", self.host) } else { format!("{}:{port}", self.host) })
    }
}

/// Finds the backend of a proxy request. `seed` chooses among equals.
pub fn locate(access: &dyn Access, request: &Request, seed: u64) -> Result<Location> {
    let kind = match request.resource.plural {
        "pods" => "pod",
        "services" => "service",
        _ => "node",
    };
    let id = Id::parse(&request.name).ok_or_else(|| Status::bad_request(format!("invalid {kind} request {:?}", request.name)))?;
    match kind {
        "pod" => {
            let pod = access.get(&PODS, &request.namespace, id.name).ok_or_else(|| Status::not_found(&PODS, id.name))?;
            pod_location(id, &pod.value())
        }
        "service" => {
            let missing = || Status::not_found(&SERVICES, id.name);
            let port = match id.port.parse::<i64>() {
                Ok(number) => {
                    let service = access.get(&SERVICES, &request.namespace, id.name).ok_or_else(missing)?;
                    port_name(&service.value(), number, id.name)?
                }
                Err(_) => id.port.to_string(),
            };
            let endpoints = access.get(&ENDPOINTS, &request.namespace, id.name).ok_or_else(missing)?.value();
            let is_pod = |address: &Value| is_pod(access, &request.namespace, address);
            service_location(id, &request.name, &port, &endpoints, &is_pod, seed)
        }
        _ => {
            let node = access.get(&NODES, "", id.name).ok_or_else(|| Status::not_found(&NODES, id.name))?;
            node_location(id, &node.value())
        }
    }
}

/// Addresses of the API server's own machine and links are not for proxying.
fn allowed(ip: &str) -> Result<()> {
    let global = match ip.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_link_local() || ip.is_broadcast()),
        Ok(IpAddr::V6(ip)) => !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_unicast_link_local()),
        Err(_) => false,
    };
    if global { Ok(()) } else { Err(Status::bad_request("address not allowed")) }
}

fn pod_location(id: Id, pod: &Value) -> Result<Location> {
    let host = match pod.list_at(&["status", "podIPs"]).first() {
        Some(first) => first.str_at(&["ip"]),
        None => pod.str_at(&["status", "podIP"]),
    };
    allowed(host)?;
    let mut ports = pod.list_at(&["spec", "containers"]).iter().filter_map(|c| c.list_at(&["ports"]).first());
    let port = match id.port {
        "" => ports.next().and_then(|p| p.i64_at(&["containerPort"])).map_or(String::new(), |p| p.to_string()),
        port => port.to_string(),
    };
    Ok(Location { tls: id.is_tls(), host: host.to_string(), port, kubelet: None })
}

/// A port number of a service stands for the port of that name.
fn port_name(service: &Value, number: i64, name: &str) -> Result<String> {
    let found = service.list_at(&["spec", "ports"]).iter().find(|p| p.i64_at(&["port"]) == Some(number));
    found
        .map(|p| p.str_at(&["name"]).to_string())
        .ok_or_else(|| Status::service_unavailable(format!("no service port {number} found for service {name:?}")))
}

fn service_location(id: Id, asked: &str, port: &str, endpoints: &Value, is_pod: &dyn Fn(&Value) -> bool, seed: u64) -> Result<Location> {
    let subsets = endpoints.list_at(&["subsets"]);
    if subsets.is_empty() {
        return Err(Status::service_unavailable(format!("no endpoints available for service {:?}", id.name)));
    }
    for subset in rotated(subsets, seed) {
        for port in subset.list_at(&["ports"]).iter().filter(|p| p.str_at(&["name"]) == port) {
            if let Some(address) = rotated(subset.list_at(&["addresses"]), seed).find(|a| is_pod(a)) {
                let port = port.i64_at(&["port"]).unwrap_or(0).to_string();
                return Ok(Location { tls: id.is_tls(), host: address.str_at(&["ip"]).to_string(), port, kubelet: None });
            }
        }
    }
    Err(Status::service_unavailable(format!("no endpoints available for service {asked:?}")))
}

/// Whoever may write Endpoints must not make the API server dial what is no pod of the namespace.
fn is_pod(access: &dyn Access, namespace: &str, address: &Value) -> bool {
    let target = (address.str_at(&["targetRef", "namespace"]), address.str_at(&["targetRef", "name"]));
    let Some(pod) = access.get(&PODS, namespace, target.1).filter(|_| target.0 == namespace) else { return false };
    pod.value().list_at(&["status", "podIPs"]).iter().any(|ip| ip.str_at(&["ip"]) == address.str_at(&["ip"]))
}

fn rotated(list: &[Value], seed: u64) -> impl Iterator<Item = &Value> {
    let start = (seed % list.len().max(1) as u64) as usize;
    list[start..].iter().chain(&list[..start])
}

fn node_location(id: Id, node: &Value) -> Result<Location> {
    let (host, port) = super::kubelet_address(node)?;
    allowed(&host)?;
    if id.port.is_empty() || id.port == port.to_string() {
        return Ok(Location { tls: true, host, port: port.to_string(), kubelet: Some(id.name.to_string()) });
    }
    Ok(Location { tls: id.is_tls(), host, port: id.port.to_string(), kubelet: None })
}

/// The path on the backend: what follows `proxy`, as the client wrote it. None: the client must first ask for `proxy/`, so
/// that relative links of what it gets lead through us.
pub fn backend_path(rest: &str, method: &str) -> Option<String> {
    match rest {
        "" if matches!(method, "GET" | "HEAD") => None,
        rest => Some(format!("/{}", rest.trim_start_matches('/'))),
    }
}

/// Links in answers that lead past us.
#[derive(Clone, Debug)]
pub struct Links {
    /// The path of the proxy resource, without a slash at the end.
    pub prefix: String,
    /// The backend's authority.
    pub backend: String,
    /// The host the client asked.
    pub asked: String,
}

impl Links {
    /// The link through us, if `url` is an absolute path of the backend that does not lead through us already.
    pub fn through(&self, url: &str) -> Option<String> {
        let (scheme, rest) = match url.split_once("://") {
            Some((scheme, rest)) if !scheme.contains(['/', '?', '#']) => (scheme, Some(rest)),
            _ => ("", url.strip_prefix("//")),
        };
        let (host, path) = match rest {
            Some(rest) => rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len())),
            None => ("", url),
        };
        if !host.is_empty() && host != self.backend && host != self.asked || !path.starts_with('/') {
            return None;
        }
        let origin = match (scheme, host) {
            (_, "") => String::new(),
            (_, host) if host != self.asked => String::new(),
            ("", host) => format!("//{host}"),
            (scheme, host) => format!("{scheme}://{host}"),
        };
        let prefix = if path.starts_with(&self.prefix) { "" } else { &self.prefix };
        Some(format!("{origin}{prefix}{path}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn names_carry_scheme_and_port() {
        let id = |scheme, name, port| Some(Id { scheme, name, port });
        assert_eq!(Id::parse("a"), id("", "a", ""));
        assert_eq!(Id::parse("a:80"), id("", "a", "80"));
        assert_eq!(Id::parse("https:a:web"), id("https", "a", "web"));
        assert_eq!((Id::parse("ftp:a:1"), Id::parse(":1"), Id::parse("a:b:c:d")), (None, None, None));
    }

    #[test]
    fn a_pod_is_dialled_at_its_first_port() {
        let pod = value!({"spec": {"containers": [{}, {"ports": [{"containerPort": 8080}]}]}, "status": {"podIPs": [{"ip": "10.42.0.5"}]}});
        let at = |id| pod_location(Id::parse(id).unwrap(), &pod).unwrap();
        assert_eq!(at("p").address().unwrap(), "10.42.0.5:8080");
        assert_eq!((at("https:p:443").address().unwrap(), at("https:p:443").tls), ("10.42.0.5:443".to_string(), true));
        assert_eq!(at("p:web").address().unwrap_err(), "dial tcp: lookup tcp/web: unknown port");
        let starting = value!({"status": {}});
        assert_eq!(pod_location(Id::parse("p").unwrap(), &starting).unwrap_err().message, "address not allowed");
        let portless = value!({"status": {"podIP": "fd00::1"}});
        assert_eq!(pod_location(Id::parse("https:p:").unwrap(), &portless).unwrap().address().unwrap(), "[fd00::1]:443");
    }

    #[test]
    fn a_service_is_dialled_at_an_endpoint_that_is_a_pod() {
        let endpoints = value!({"subsets": [
            {"addresses": [{"ip": "10.42.0.1"}, {"ip": "10.42.0.2"}], "ports": [{"name": "web", "port": 8080}, {"name": "tls", "port": 8443}]}]});
        let only = |ip: &'static str| move |a: &Value| a.str_at(&["ip"]) == ip;
        let at = |port, seed| service_location(Id::parse("s").unwrap(), "s:x", port, &endpoints, &only("10.42.0.2"), seed);
        for seed in 0..4 {
            assert_eq!(at("tls", seed).unwrap().address().unwrap(), "10.42.0.2:8443");
        }
        assert_eq!(at("nope", 0).unwrap_err().message, "no endpoints available for service \"s:x\"");
        let service = value!({"spec": {"ports": [{"name": "web", "port": 80}]}});
        assert_eq!(port_name(&service, 80, "s").unwrap(), "web");
        assert_eq!(port_name(&service, 99, "s").unwrap_err().message, "no service port 99 found for service \"s\"");
    }

    #[test]
    fn a_missing_slash_is_asked_for_and_paths_stay_as_they_came() {
        assert_eq!((backend_path("", "GET"), backend_path("", "HEAD")), (None, None));
        assert_eq!(backend_path("", "POST").unwrap(), "/");
        assert_eq!(backend_path("/", "GET").unwrap(), "/");
        assert_eq!(backend_path("a%2Fb/c/", "GET").unwrap(), "/a%2Fb/c/");
    }

    #[test]
    fn links_of_the_backend_lead_through_us() {
        let links = Links { prefix: "/api/v1/namespaces/n/pods/p/proxy".into(), backend: "10.42.0.5:80".into(), asked: "api:6443".into() };
        let through = |url: &str| links.through(url);
        let ours = |rest: &str| Some(format!("/api/v1/namespaces/n/pods/p/proxy{rest}"));
        assert_eq!(through("/x/?a=b#c"), ours("/x/?a=b#c"));
        assert_eq!(through("http://10.42.0.5:80/x"), ours("/x"));
        assert_eq!(through("https://api:6443/x"), ours("/x").map(|p| format!("https://api:6443{p}")));
        assert_eq!(through("/api/v1/namespaces/n/pods/p/proxy/x"), ours("/x"));
        for other in ["x/y", "", "?q", "http://example.org/x", "//example.org/x", "mailto:a@b", "http://10.42.0.5:80"] {
            assert_eq!(through(other), None, "{other}");
        }
    }
}
