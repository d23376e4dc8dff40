//! Pure: a verified client certificate in, the user it names out: common name, organizations as groups, and upstream's
//! extension attribute for the uid.

use x509_parser::prelude::*;

use crate::api::request::User;

/// Attribute of the subject that carries the user's uid.
const UID_OID: &str = "1.3.6.1.4.1.57683.2";

/// `None` if it cannot be read or names nobody.
pub fn user(der: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_string();
    if name.is_empty() {
        return None;
    }
    let mut groups: Vec<String> = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_string).collect();
    groups.push("system:authenticated".to_string());
    let uid = subject.iter_attributes().find(|a| a.attr_type().to_id_string() == UID_OID);
    let uid = uid.and_then(|a| a.as_str().ok()).unwrap_or("").to_string();
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let extra = [("authentication.kubernetes.io/credential-id".to_string(), vec![format!("X509SHA256={hex}")])].into();
    Some(User { name, uid, groups, extra })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_groups_come_from_the_subject() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n1");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        let certificate = params.self_signed(&key).unwrap();
        let user = user(certificate.der()).unwrap();
        assert_eq!(user.name, "system:node:n1");
        assert_eq!(user.groups, ["system:nodes", "system:authenticated"]);
        assert!(user.extra["authentication.kubernetes.io/credential-id"][0].starts_with("X509SHA256="));
        assert_eq!(super::user(b"junk"), None);
    }
}
