//! Certificate authorities, leaf certificates and kubeconfigs.
//!
//! Three P-256 authorities (cluster, client, front-proxy) and the ES256 service-account key live as PEM under
//! `<data>/pki`, mode 0600, made on first start. Leaves are issued anew at every start and live a year; nothing renews
//! them while running yet. Names follow upstream's kubeadm layout where one exists.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

const CA_DAYS: u64 = 3650;
const LEAF_DAYS: u64 = 365;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} holds no usable certificate or key", path.display())]
    Parse { path: PathBuf, source: rcgen::Error },
    #[error("cannot issue the certificate for {name}")]
    Issue { name: String, source: rcgen::Error },
}

/// A certificate with its key, PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// One certificate authority.
pub struct Authority {
    pub certificate: String,
    /// PKCS#8 PEM.
    pub key: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Everything under `<data>/pki`.
pub struct Pki {
    /// Signs serving certificates; what clients trust.
    pub cluster: Authority,
    /// Signs client certificates; what the API server trusts.
    pub client: Authority,
    /// Signs the front proxy's certificate (aggregated API servers).
    pub front_proxy: Authority,
    /// PKCS#8 PEM, P-256: signs service-account tokens.
    pub service_account_key: String,
    /// Its public half, SubjectPublicKeyInfo PEM.
    pub service_account_public: String,
}

impl Pki {
    /// Loads `<dir>`, making what is missing.
    pub fn load_or_create(dir: &Path) -> Result<Pki, Error> {
        std::fs::create_dir_all(dir).map_err(|source| Error::Write { path: dir.into(), source })?;
        let (service_account, service_account_key) = load_or_create_key(&dir.join("service-account.key"))?;
        Ok(Pki {
            cluster: Authority::load_or_create(dir, "cluster-ca", "coracle-cluster-ca")?,
            client: Authority::load_or_create(dir, "client-ca", "coracle-client-ca")?,
            front_proxy: Authority::load_or_create(dir, "front-proxy-ca", "coracle-front-proxy-ca")?,
            service_account_public: service_account.public_key_pem(),
            service_account_key,
        })
    }
}

impl Authority {
    fn load_or_create(dir: &Path, file: &str, name: &str) -> Result<Authority, Error> {
        let (key, key_pem) = load_or_create_key(&dir.join(format!("{file}.key")))?;
        let path = dir.join(format!("{file}.crt"));
        if !path.exists() {
            let mut params = named(name, &[]);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            set_validity(&mut params, CA_DAYS);
            let certificate = params.self_signed(&key).map_err(|source| Error::Issue { name: name.into(), source })?;
            write_private(&path, &certificate.pem())?;
        }
        let certificate = std::fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(|source| Error::Parse { path, source })?;
        Ok(Authority { certificate, key: key_pem, issuer })
    }

    /// A client certificate: `name` is the user, `groups` its groups.
    pub fn client(&self, name: &str, groups: &[&str]) -> Result<Identity, Error> {
        let mut params = named(name, groups);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, name)
    }

    /// A serving certificate for these names and addresses.
    pub fn serving(&self, name: &str, groups: &[&str], dns: &[String], addresses: &[IpAddr]) -> Result<Identity, Error> {
        let mut params = named(name, groups);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let names = dns.iter().map(|n| n.as_str().try_into().map(SanType::DnsName));
        let names = names.collect::<Result<Vec<_>, _>>().map_err(|source| Error::Issue { name: name.into(), source })?;
        params.subject_alt_names = names.into_iter().chain(addresses.iter().map(|a| SanType::IpAddress(*a))).collect();
        self.issue(params, name)
    }

    fn issue(&self, mut params: CertificateParams, name: &str) -> Result<Identity, Error> {
        let failed = |source| Error::Issue { name: name.into(), source };
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, LEAF_DAYS);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn named(name: &str, organizations: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    // x509 keeps one value per type here; Kubernetes reads each group from an O of its own, so more than one is refused.
    assert!(organizations.len() <= 1, "one group per certificate");
    for o in organizations {
        params.distinguished_name.push(DnType::OrganizationName, *o);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// From an hour ago (clocks differ) for `days`.
fn set_validity(params: &mut CertificateParams, days: u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + now.saturating_sub(Duration::from_secs(3600));
    params.not_after = params.not_before + Duration::from_secs(days * 86_400);
}

fn load_or_create_key(path: &Path) -> Result<(KeyPair, String), Error> {
    if !path.exists() {
        let key = KeyPair::generate().map_err(|source| Error::Issue { name: path.display().to_string(), source })?;
        write_private(path, &key.serialize_pem())?;
    }
    let pem = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let key = KeyPair::from_pem(&pem).map_err(|source| Error::Parse { path: path.into(), source })?;
    Ok((key, pem))
}

/// Writes a file only its owner can read, whole or not at all: temporary file, fsync, rename.
pub fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let write = || -> std::io::Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let temporary = path.with_extension("tmp");
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| Error::Write { path: path.into(), source })
}

/// What a kubeconfig says, with everything embedded.
pub struct Kubeconfig<'a> {
    /// Names the cluster, user and context entries.
    pub name: &'a str,
    pub server: &'a str,
    pub ca: &'a str,
    pub identity: &'a Identity,
}

impl Kubeconfig<'_> {
    pub fn to_yaml(&self) -> String {
        let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: {server}\n    certificate-authority-data: {ca}\n\
             users:\n- name: {name}\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n\
             contexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: {name}\ncurrent-context: {name}\n",
            name = self.name,
            server = self.server,
            ca = b64(self.ca),
            certificate = b64(&self.identity.certificate),
            key = b64(&self.identity.key),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_made_once_and_sign_what_they_are_asked() {
        let dir = std::env::temp_dir().join(format!("coracle-pki-{}", std::process::id()));
        let first = Pki::load_or_create(&dir).unwrap();
        let again = Pki::load_or_create(&dir).unwrap();
        assert_eq!(first.cluster.certificate, again.cluster.certificate);
        assert_eq!(first.service_account_key, again.service_account_key);
        let admin = again.client.client("system:admin", &["system:masters"]).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(admin.certificate.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let (_, ca) = x509_parser::pem::parse_x509_pem(first.client.certificate.as_bytes()).unwrap();
        assert_eq!(certificate.issuer(), ca.parse_x509().unwrap().subject());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(dir.join("client-ca.key")).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
