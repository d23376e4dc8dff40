//! One validated [`Config`], from `/etc/coracle/config.yaml`, `CORACLE_*` variables and flags; flags win over variables,
//! variables over the file. k3s's key names where k3s has one. Nowhere else holds a default.
//!
//! A wrong value is an error that names the key and where it came from, before anything listens. Start at [`KEYS`]: a new
//! setting is one row there, one field, one line in [`Config::from_settings`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// Where the file is looked for unless `--config` names another.
pub const FILE: &str = "/etc/coracle/config.yaml";

/// One setting: the flag `--name`, the variable `CORACLE_NAME`, the key `name` of the file.
pub struct Key {
    pub name: &'static str,
    /// `true`/`false`; as a flag it needs no value.
    pub is_switch: bool,
    /// Shown in the help; empty where the default is found out at start.
    pub default: &'static str,
    pub help: &'static str,
}

const fn key(name: &'static str, default: &'static str, help: &'static str) -> Key {
    Key { name, is_switch: false, default, help }
}

const fn switch(name: &'static str, help: &'static str) -> Key {
    Key { name, is_switch: true, default: "false", help }
}

pub const KEYS: &[Key] = &[
    key("data-dir", "/var/lib/coracle", "Folder that holds all state"),
    key("https-listen-port", "6443", "Port of the API server"),
    key("bind-address", "0.0.0.0", "Address the API server listens on"),
    key("advertise-address", "", "Address the API server tells pods and nodes [default: node-ip]"),
    key("node-name", "", "Name of this node [default: the host name]"),
    key("node-ip", "", "Address of this node [default: that of the default route]"),
    key("kubelet-port", "10250", "Port of the kubelet API"),
    key("cluster-cidr", "10.42.0.0/16", "Range pods get addresses from"),
    key("service-cidr", "10.43.0.0/16", "Range services get addresses from; for dual stack an IPv6 range after a comma"),
    key("cluster-dns", "", "Address of the cluster's DNS [default: the tenth of service-cidr]"),
    key("cluster-domain", "cluster.local", "Domain of the cluster's names"),
    key("write-kubeconfig", "/etc/coracle/kubeconfig.yaml", "Where the administrator's kubeconfig is written (mode 0600)"),
    key("watches-max", "20000", "How many watches may be open at the same time; more are told to come back later"),
    switch("disable-agent", "Run no node here"),
    switch("disable-controller-manager", "Run no controllers"),
    switch("disable-scheduler", "Run no scheduler"),
];

/// Each watch takes some kilobytes and a place in an index: more than this is a mistake.
const WATCHES_MAX_MAX: usize = 1_000_000;

/// An address range such as `10.42.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Range {
    /// The `n`th address of an IPv4 range.
    pub fn nth(&self, n: u32) -> Option<IpAddr> {
        match self.address {
            IpAddr::V4(a) => Some(IpAddr::V4(Ipv4Addr::from(u32::from(a).checked_add(n)?))),
            IpAddr::V6(_) => None,
        }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(a)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                u32::from(net) & mask == u32::from(a) & mask
            }
            (IpAddr::V6(net), IpAddr::V6(a)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                u128::from(net) & mask == u128::from(a) & mask
            }
            (IpAddr::V6(_), IpAddr::V4(_)) | (IpAddr::V4(_), IpAddr::V6(_)) => false,
        }
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Everything the program can be told. Made once, handed down.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub data_dir: PathBuf,
    pub https_listen_port: u16,
    pub bind_address: IpAddr,
    pub advertise_address: IpAddr,
    pub node_name: String,
    pub node_ip: IpAddr,
    pub kubelet_port: u16,
    pub cluster_cidr: Range,
    pub service_cidr: Range,
    /// The IPv6 range of a dual-stack cluster. Only the API knows it yet: nodes route IPv4.
    pub service_cidr_v6: Option<Range>,
    pub cluster_dns: IpAddr,
    pub cluster_domain: String,
    pub write_kubeconfig: PathBuf,
    pub watches_max: usize,
    pub disable_agent: bool,
    pub disable_controller_manager: bool,
    pub disable_scheduler: bool,
    /// 8 hex digits of the data dir: names everything this instance makes in the kernel.
    pub instance: String,
    /// `/run/coracle/<instance>`: sockets and mounts, gone after a reboot.
    pub run_dir: PathBuf,
    /// The executable shims are started from; this program itself.
    pub shim_exe: PathBuf,
}

/// A setting that cannot be used; names the key and where the value came from.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Error {
    #[error("{key}: {why} ({source_name})")]
    Value { key: String, why: String, source_name: String },
    #[error("{file}: {why}")]
    File { file: String, why: String },
}

/// Raw settings: key → (value, where it came from).
#[derive(Default)]
pub struct Settings {
    values: BTreeMap<String, (String, String)>,
}

impl Settings {
    /// Reads the file (a missing default file is fine, a missing named one is not), then the variables.
    pub fn load(file: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Settings, Error> {
        let mut settings = Settings::default();
        settings.load_file(file)?;
        for (name, value) in env {
            let Some(rest) = name.strip_prefix("CORACLE_") else { continue };
            let key = rest.to_ascii_lowercase().replace('_', "-");
            if KEYS.iter().any(|k| k.name == key) {
                settings.set(&key, value, format!("from the variable {name}"));
            }
        }
        Ok(settings)
    }

    fn load_file(&mut self, file: Option<&Path>) -> Result<(), Error> {
        let path = file.unwrap_or(Path::new(FILE));
        let bad = |why: String| Error::File { file: path.display().to_string(), why };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if file.is_none() && e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(bad(format!("cannot be read: {e}"))),
        };
        let entries: BTreeMap<String, serde_yaml_ng::Value> =
            serde_yaml_ng::from_str::<Option<_>>(&text).map_err(|e| bad(e.to_string()))?.unwrap_or_default();
        for (name, value) in entries {
            let source = format!("in {}", path.display());
            if !KEYS.iter().any(|k| k.name == name) {
                return Err(Error::Value { key: name, why: "is not a setting".into(), source_name: source });
            }
            let text = match value {
                serde_yaml_ng::Value::String(s) => s,
                serde_yaml_ng::Value::Bool(b) => b.to_string(),
                serde_yaml_ng::Value::Number(n) => n.to_string(),
                _ => return Err(Error::Value { key: name, why: "wants one plain value".into(), source_name: source }),
            };
            self.set(&name, text, source);
        }
        Ok(())
    }

    /// Overrides `key`; `source` says where the value came from, for error messages.
    pub fn set(&mut self, key: &str, value: String, source: String) {
        self.values.insert(key.to_string(), (value, source));
    }

    fn text(&self, name: &str) -> (String, String) {
        self.values.get(name).cloned().unwrap_or_else(|| {
            let default = KEYS.iter().find(|k| k.name == name).map_or("", |k| k.default);
            (default.to_string(), "the default".to_string())
        })
    }

    fn parse<T>(&self, name: &str, wanted: &str) -> Result<T, Error>
    where
        T: FromStr,
    {
        let (text, source_name) = self.text(name);
        text.trim().parse().map_err(|_| Error::Value { key: name.into(), why: format!("{text:?} is not {wanted}"), source_name })
    }

    fn parse_or<T: FromStr>(&self, name: &str, wanted: &str, default: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        if self.text(name).0.is_empty() { default() } else { self.parse(name, wanted) }
    }

    /// An IPv4 range, and an IPv6 range after a comma.
    fn ranges(&self, name: &str) -> Result<(Range, Option<Range>), Error> {
        let (text, source_name) = self.text(name);
        let (v4, v6) = text.split_once(',').map_or((text.as_str(), None), |(v4, v6)| (v4, Some(v6.trim())));
        let v6 = v6.map(|v6| parse_range_v6(v6).map_err(|why| Error::Value { key: name.into(), why, source_name: source_name.clone() }));
        Ok((parse_range(name, v4.trim(), &source_name)?, v6.transpose()?))
    }

    fn range(&self, name: &str) -> Result<Range, Error> {
        let (text, source_name) = self.text(name);
        parse_range(name, &text, &source_name)
    }
}

fn parse_range_v6(text: &str) -> Result<Range, String> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| Some((address.parse::<Ipv6Addr>().ok()?, prefix.parse::<u8>().ok()?)));
    let Some((address, prefix)) = parsed else { return Err(format!("{text:?} is not an IPv6 range such as fd00:43::/112")) };
    if !(64..=124).contains(&prefix) {
        return Err(format!("{text:?} must have a prefix length between 64 and 124"));
    }
    if u128::from(address) & !(u128::MAX << (128 - u32::from(prefix))) != 0 {
        return Err(format!("{text:?} has bits set after its prefix"));
    }
    Ok(Range { address: address.into(), prefix })
}

fn parse_range(name: &str, text: &str, source_name: &str) -> Result<Range, Error> {
    let bad = |why: &str| Error::Value { key: name.into(), why: format!("{text:?} {why}"), source_name: source_name.to_string() };
    let (address, prefix) = text.split_once('/').ok_or_else(|| bad("is not a range such as 10.42.0.0/16"))?;
    let address: Ipv4Addr = address.parse().map_err(|_| bad("is not an IPv4 range such as 10.42.0.0/16"))?;
    let prefix: u8 = prefix.parse().map_err(|_| bad("has no number after the slash"))?;
    if !(8..=28).contains(&prefix) {
        return Err(bad("must have a prefix length between 8 and 28"));
    }
    let mask = u32::MAX << (32 - u32::from(prefix));
    if u32::from(address) & !mask != 0 {
        return Err(bad("has bits set after its prefix"));
    }
    Ok(Range { address: address.into(), prefix })
}

impl Config {
    /// Checks every setting and finds out the defaults that depend on the machine.
    pub fn from_settings(settings: &Settings) -> Result<Config, Error> {
        let data_dir = absolute(Path::new(&settings.text("data-dir").0));
        let (service_cidr, service_cidr_v6) = settings.ranges("service-cidr")?;
        let cluster_cidr = settings.range("cluster-cidr")?;
        let bind_address: IpAddr = settings.parse("bind-address", "an address")?;
        let node_ip = settings.parse_or("node-ip", "an address", || Ok(default_node_ip()))?;
        let advertise = || Ok(if bind_address.is_unspecified() { node_ip } else { bind_address });
        let cluster_dns =
            settings.parse_or("cluster-dns", "an address", || Ok(service_cidr.nth(10).expect("a range of at least 16 addresses")))?;
        let instance = instance_id(&data_dir);
        let config = Config {
            https_listen_port: settings.parse("https-listen-port", "a port")?,
            advertise_address: settings.parse_or("advertise-address", "an address", advertise)?,
            node_name: node_name(settings)?,
            kubelet_port: settings.parse("kubelet-port", "a port")?,
            cluster_domain: settings.text("cluster-domain").0,
            write_kubeconfig: absolute(Path::new(&settings.text("write-kubeconfig").0)),
            watches_max: settings.parse("watches-max", "a number")?,
            disable_agent: settings.parse("disable-agent", "true or false")?,
            disable_controller_manager: settings.parse("disable-controller-manager", "true or false")?,
            disable_scheduler: settings.parse("disable-scheduler", "true or false")?,
            run_dir: Path::new("/run/coracle").join(&instance),
            shim_exe: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe")),
            data_dir,
            bind_address,
            node_ip,
            cluster_cidr,
            service_cidr,
            service_cidr_v6,
            cluster_dns,
            instance,
        };
        config.check_together(settings)?;
        Ok(config)
    }

    fn check_together(&self, settings: &Settings) -> Result<(), Error> {
        let bad = |key: &str, why: String| Err(Error::Value { key: key.into(), why, source_name: settings.text(key).1 });
        if self.cluster_cidr.overlaps(&self.service_cidr) {
            return bad("service-cidr", format!("{} overlaps cluster-cidr {}", self.service_cidr, self.cluster_cidr));
        }
        if !self.service_cidr.contains(self.cluster_dns) {
            return bad("cluster-dns", format!("{} is outside service-cidr {}", self.cluster_dns, self.service_cidr));
        }
        if self.https_listen_port == self.kubelet_port && !self.disable_agent {
            return bad("kubelet-port", format!("{} is also https-listen-port", self.kubelet_port));
        }
        if !(1..=WATCHES_MAX_MAX).contains(&self.watches_max) {
            return bad("watches-max", format!("{} is not between 1 and {WATCHES_MAX_MAX}", self.watches_max));
        }
        let domain = &self.cluster_domain;
        if domain.is_empty() || !domain.split('.').all(is_label) {
            return bad("cluster-domain", format!("{domain:?} is not a DNS name"));
        }
        Ok(())
    }

    pub fn pki_dir(&self) -> PathBuf {
        self.data_dir.join("pki")
    }

    /// What clients on this machine dial.
    pub fn local_api(&self) -> SocketAddr {
        let host = if self.bind_address.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { self.bind_address };
        SocketAddr::new(host, self.https_listen_port)
    }

    /// The address of the `kubernetes` Service: the first of the range.
    pub fn kubernetes_service_ip(&self) -> IpAddr {
        self.service_cidr.nth(1).expect("a range of at least 16 addresses")
    }
}

/// The names of everything an instance makes in the kernel start from 8 hex digits of its data dir.
pub fn instance_id(data_dir: &Path) -> String {
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    digest.iter().take(4).map(|b| format!("{b:02x}")).collect()
}

/// RFC 1123 label.
fn is_label(label: &str) -> bool {
    let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = |c: char| ok(c) || c == '-';
    (1..=63).contains(&label.len()) && label.chars().all(inner) && label.starts_with(ok) && label.ends_with(ok)
}

fn node_name(settings: &Settings) -> Result<String, Error> {
    let (text, source_name) = settings.text("node-name");
    let name = if text.is_empty() { host_name().to_ascii_lowercase() } else { text };
    if name.len() <= 253 && name.split('.').all(is_label) {
        return Ok(name);
    }
    let why = format!("{name:?} is not a lower-case DNS name; choose one with --node-name");
    Err(Error::Value { key: "node-name".into(), why, source_name })
}

fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_default()
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// The source address of the default route: what a datagram to the outside would carry (none is sent).
fn default_node_ip() -> IpAddr {
    let outside = SocketAddr::from(([198, 51, 100, 1], 9));
    let probe = UdpSocket::bind("0.0.0.0:0").and_then(|s| s.connect(outside).and_then(|()| s.local_addr()));
    probe.map_or(Ipv4Addr::LOCALHOST.into(), |a| a.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let mut s = Settings::default();
        s.set("node-name", "n1".into(), "test".into());
        for (k, v) in pairs {
            s.set(k, v.to_string(), format!("from the flag --{k}"));
        }
        s
    }

    #[test]
    fn defaults_hold_together() {
        let c = Config::from_settings(&settings(&[])).unwrap();
        assert_eq!(c.cluster_dns.to_string(), "10.43.0.10");
        assert_eq!(c.kubernetes_service_ip().to_string(), "10.43.0.1");
        assert_eq!(c.instance.len(), 8);
        assert_eq!(c.run_dir, Path::new("/run/coracle").join(&c.instance));
    }

    #[test]
    fn a_wrong_value_names_its_key_and_its_source() {
        let cases = [
            ("https-listen-port", "70000", r#"https-listen-port: "70000" is not a port (from the flag --https-listen-port)"#),
            (
                "cluster-cidr",
                "10.42.0.1/16",
                r#"cluster-cidr: "10.42.0.1/16" has bits set after its prefix (from the flag --cluster-cidr)"#,
            ),
            (
                "service-cidr",
                "10.42.0.0/24",
                "service-cidr: 10.42.0.0/24 overlaps cluster-cidr 10.42.0.0/16 (from the flag --service-cidr)",
            ),
            (
                "node-name",
                "Not_A_Name",
                r#"node-name: "Not_A_Name" is not a lower-case DNS name; choose one with --node-name (from the flag --node-name)"#,
            ),
            (
                "service-cidr",
                "10.43.0.0/16,fd00::/16",
                r#"service-cidr: "fd00::/16" must have a prefix length between 64 and 124 (from the flag --service-cidr)"#,
            ),
            ("disable-agent", "maybe", r#"disable-agent: "maybe" is not true or false (from the flag --disable-agent)"#),
        ];
        for (key, value, message) in cases {
            let error = Config::from_settings(&settings(&[(key, value)])).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused_and_variables_win_over_it() {
        let dir = std::env::temp_dir().join(format!("coracle-config-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("config.yaml");
        std::fs::write(&file, "https-listen-port: 7443\n").unwrap();
        let env = [("CORACLE_HTTPS_LISTEN_PORT".to_string(), "8443".to_string())];
        let s = Settings::load(Some(&file), env.into_iter()).unwrap();
        assert_eq!(Config::from_settings(&s).map(|c| c.https_listen_port), Ok(8443));
        std::fs::write(&file, "https-listen-prot: 7443\n").unwrap();
        let error = Settings::load(Some(&file), std::iter::empty()).err().unwrap();
        assert!(error.to_string().starts_with("https-listen-prot: is not a setting (in "), "{error}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
