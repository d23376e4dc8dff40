//! Pure: the texts every pod gets as files: `/etc/hosts` and `/etc/resolv.conf`; and its host name.

use super::pod::{Pod, name_of};
use crate::api::value::Value;

/// Cluster DNS as this node hands it out, and the host's own resolver settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dns {
    pub servers: Vec<String>,
    pub domain: String,
    /// Contents of the host's resolv.conf.
    pub host: String,
}

/// The pod's host name: `spec.hostname` or the pod's name, at most 63 characters.
pub fn hostname(pod: Pod, cluster_domain: &str, node_name: &str) -> String {
    if let name @ [_, ..] = pod.0.str_at(&["spec", "hostnameOverride"]).as_bytes() {
        return String::from_utf8_lossy(name).into_owned();
    }
    if pod.host_network() {
        return node_name.to_string();
    }
    let short = short_hostname(pod);
    match domain(pod, cluster_domain) {
        Some(domain) if pod.0.bool_at(&["spec", "setHostnameAsFQDN"]) => format!("{short}.{domain}"),
        _ => short,
    }
}

fn short_hostname(pod: Pod) -> String {
    let name = match pod.0.str_at(&["spec", "hostname"]) {
        "" => pod.name(),
        name => name,
    };
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_string()
}

fn domain(pod: Pod, cluster_domain: &str) -> Option<String> {
    let subdomain = pod.0.str_at(&["spec", "subdomain"]);
    (!subdomain.is_empty()).then(|| format!("{subdomain}.{}.svc.{cluster_domain}", pod.namespace()))
}

pub fn hosts(pod: Pod, ips: &[String], cluster_domain: &str, host_file: &str) -> String {
    let mut text = if pod.host_network() {
        format!("# Kubernetes-managed hosts file (host network).\n{host_file}")
    } else {
        let mut text = String::from("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        text.push_str("fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
        let short = short_hostname(pod);
        for ip in ips {
            match domain(pod, cluster_domain) {
                Some(domain) => text.push_str(&format!("{ip}\t{short}.{domain}\t{short}\n")),
                None => text.push_str(&format!("{ip}\t{short}\n")),
            }
        }
        text
    };
    let aliases = pod.0.list_at(&["spec", "hostAliases"]);
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names: Vec<&str> = alias.list_at(&["hostnames"]).iter().filter_map(Value::as_str).collect();
        text.push_str(&format!("{}\t{}\n", alias.str_at(&["ip"]), names.join("\t")));
    }
    text
}

#[derive(Default)]
struct Resolv {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolv {
    fn parse(text: &str) -> Resolv {
        let mut parsed = Resolv::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let key = words.next();
            let rest = || words.map(str::to_string);
            match key {
                Some("nameserver") => parsed.servers.extend(rest().take(1)),
                Some("search" | "domain") => parsed.searches = rest().filter(|s| s != ".").collect(),
                Some("options") => parsed.options.extend(rest()),
                _ => {}
            }
        }
        parsed
    }

    fn option(&mut self, name: &str, value: &str) {
        self.options.retain(|o| o.split(':').next() != Some(name));
        self.options.push(if value.is_empty() { name.to_string() } else { format!("{name}:{value}") });
    }

    fn text(&self) -> String {
        let mut text: String = self.servers.iter().take(3).map(|s| format!("nameserver {s}\n")).collect();
        if !self.searches.is_empty() {
            text.insert_str(0, &format!("search {}\n", self.searches.iter().take(32).cloned().collect::<Vec<_>>().join(" ")));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

fn add_new(to: &mut Vec<String>, items: &[Value]) {
    for item in items.iter().filter_map(Value::as_str) {
        if !to.iter().any(|t| t == item) {
            to.push(item.to_string());
        }
    }
}

pub fn resolv_conf(pod: Pod, dns: &Dns) -> String {
    let host = Resolv::parse(&dns.host);
    let policy = match pod.0.str_at(&["spec", "dnsPolicy"]) {
        "None" => "None",
        "Default" => "Default",
        "ClusterFirstWithHostNet" => "ClusterFirst",
        _ if pod.host_network() => "Default",
        _ => "ClusterFirst",
    };
    let mut resolv = match policy {
        "None" => Resolv::default(),
        "Default" => host,
        _ => {
            let domain = &dns.domain;
            let mut searches = vec![format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.clone()];
            searches.extend(host.searches);
            Resolv { servers: dns.servers.clone(), searches, options: vec!["ndots:5".to_string()] }
        }
    };
    if let Some(config) = pod.0.at(&["spec", "dnsConfig"]) {
        add_new(&mut resolv.servers, config.list_at(&["nameservers"]));
        add_new(&mut resolv.searches, config.list_at(&["searches"]));
        for option in config.list_at(&["options"]) {
            resolv.option(name_of(option), option.str_at(&["value"]));
        }
    }
    resolv.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn hosts_file_names_pod_and_aliases() {
        let pod = value!({"metadata": {"name": "web-0", "namespace": "x"}, "spec": {"subdomain": "web",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}});
        let text = hosts(Pod(&pod), &["10.42.0.9".into()], "cluster.local", "");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.42.0.9\tweb-0.web.x.svc.cluster.local\tweb-0\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
    }

    #[test]
    fn resolver_follows_policy_and_config() {
        let dns = Dns {
            servers: vec!["10.43.0.10".into()],
            domain: "cluster.local".into(),
            host: "nameserver 9.9.9.9\nsearch corp\noptions timeout:1\n".into(),
        };
        let pod = value!({"metadata": {"namespace": "x"}, "spec": {}});
        let text = resolv_conf(Pod(&pod), &dns);
        assert_eq!(text, "search x.svc.cluster.local svc.cluster.local cluster.local corp\nnameserver 10.43.0.10\noptions ndots:5\n");
        let pod = value!({"metadata": {"namespace": "x"}, "spec": {"dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["z"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}});
        assert_eq!(resolv_conf(Pod(&pod), &dns), "search z\nnameserver 1.1.1.1\noptions ndots:2 edns0\n");
        let pod = value!({"spec": {"hostNetwork": true, "dnsPolicy": "ClusterFirst"}});
        assert_eq!(resolv_conf(Pod(&pod), &dns), "search corp\nnameserver 9.9.9.9\noptions timeout:1\n");
    }
}
