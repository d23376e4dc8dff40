//! Service account tokens: signing, verifying, and what a verified token is still worth.
//!
//! JSON web tokens signed with ES256 by our own key; RS256 keys of a user's file can be added as verifiers. A token is
//! refused once the account, pod, secret or node it names is gone or has another uid. Start at [`Signer`] and [`check`].

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey};

use crate::api::request::User;
use crate::api::resource;
use crate::api::time::Time;
use crate::api::value::Value;
use crate::server::strategy::Access;
use crate::value;

/// Seconds added to what the standard projected volume asks for, as upstream does to protect clients that never re-read.
pub const EXPIRATION_FOR_POD_TOKENS: i64 = 365 * 24 * 3600;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("no PEM block")]
    Pem,
    #[error("not a P-256 key in PKCS#8")]
    Format,
}

/// Name and uid of something a token is bound to.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Ref {
    pub name: String,
    pub uid: String,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Claims {
    pub issuer: String,
    pub audiences: Vec<String>,
    /// Seconds since the epoch.
    pub issued_at: i64,
    pub not_before: i64,
    pub expires: i64,
    /// A random UUID: the credential id.
    pub id: String,
    pub namespace: String,
    pub service_account: Ref,
    pub pod: Option<Ref>,
    pub secret: Option<Ref>,
    pub node: Option<Ref>,
}

/// A token that counts, and for which of the asked audiences.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    pub user: User,
    pub audiences: Vec<String>,
}

/// Signs with our key and verifies what it signed.
pub struct Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
    key_id: String,
}

impl Signer {
    /// `pem`: the private key, PKCS#8.
    pub fn new(pem: &str) -> Result<Signer, KeyError> {
        let der = der_of(pem).ok_or(KeyError::Pem)?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &random).map_err(|_| KeyError::Format)?;
        let info = [SPKI_P256, key.public_key().as_ref()].concat();
        let digest = ring::digest::digest(&ring::digest::SHA256, &info);
        Ok(Signer { key_id: URL_SAFE_NO_PAD.encode(digest.as_ref()), key, random })
    }

    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The two coordinates of the public key.
    pub fn coordinates(&self) -> (&[u8], &[u8]) {
        let point = self.key.public_key().as_ref();
        (&point[1..33], &point[33..65])
    }

    pub fn sign(&self, claims: &Claims) -> String {
        let header = value!({"alg": "ES256", "kid": self.key_id});
        let body = format!("{}.{}", encode(&header), encode(&claims.to_value()));
        let signature = self.key.sign(&self.random, body.as_bytes()).expect("signing fails only without randomness");
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    /// The claims, if the signature is ours. Says nothing about whether they still hold: see [`check`].
    pub fn verify(&self, token: &str) -> Option<Claims> {
        let (body, signature) = token.rsplit_once('.')?;
        let (header, payload) = body.split_once('.')?;
        if decode(header)?.str_at(&["alg"]) != "ES256" {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        public.verify(body.as_bytes(), &signature).ok()?;
        Some(Claims::from_value(&decode(payload)?))
    }
}

/// DER header of a P-256 SubjectPublicKeyInfo; the uncompressed point follows.
const SPKI_P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01,
    0x07, 0x03, 0x42, 0x00,
];

/// The first PEM block.
fn der_of(pem: &str) -> Option<Vec<u8>> {
    let mut lines = pem.lines().map(str::trim).skip_while(|l| !l.starts_with("-----BEGIN"));
    lines.next()?;
    let body: String = lines.take_while(|l| !l.starts_with("-----END")).collect();
    STANDARD.decode(body).ok()
}

fn encode(v: &Value) -> String {
    URL_SAFE_NO_PAD.encode(v.to_string())
}

fn decode(part: &str) -> Option<Value> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice::<serde_json::Value>(&bytes).ok().map(Value::from)
}

impl Claims {
    fn to_value(&self) -> Value {
        let named = |r: &Ref| value!({"name": r.name, "uid": r.uid});
        let mut private = value!({"namespace": self.namespace});
        private.set(&["serviceaccount"], named(&self.service_account));
        for (key, bound) in [("pod", &self.pod), ("secret", &self.secret), ("node", &self.node)] {
            if let Some(r) = bound {
                private.set(&[key], named(r));
            }
        }
        let subject = format!("system:serviceaccount:{}:{}", self.namespace, self.service_account.name);
        let mut v = value!({"aud": self.audiences, "exp": self.expires, "iat": self.issued_at, "iss": self.issuer, "jti": self.id,
            "nbf": self.not_before, "sub": subject});
        v.set(&["kubernetes.io"], private);
        v
    }

    fn from_value(v: &Value) -> Claims {
        let named = |key: &str| -> Option<Ref> {
            let r = v.at(&["kubernetes.io", key])?;
            Some(Ref { name: r.str_at(&["name"]).to_string(), uid: r.str_at(&["uid"]).to_string() })
        };
        let audiences = match v.get("aud") {
            Some(Value::Str(one)) => vec![one.clone()],
            Some(Value::List(many)) => many.iter().filter_map(Value::as_str).map(str::to_string).collect(),
            Some(_) | None => Vec::new(),
        };
        Claims {
            issuer: v.str_at(&["iss"]).to_string(),
            audiences,
            issued_at: v.i64_at(&["iat"]).unwrap_or(0),
            not_before: v.i64_at(&["nbf"]).unwrap_or(0),
            expires: v.i64_at(&["exp"]).unwrap_or(0),
            id: v.str_at(&["jti"]).to_string(),
            namespace: v.str_at(&["kubernetes.io", "namespace"]).to_string(),
            service_account: named("serviceaccount").unwrap_or_default(),
            pod: named("pod"),
            secret: named("secret"),
            node: named("node"),
        }
    }

    /// The user these claims make: name, groups, uid of the account, and what the token is bound to as extras.
    pub fn user(&self) -> User {
        let mut user = User::service_account(&self.namespace, &self.service_account.name);
        user.uid = self.service_account.uid.clone();
        let mut extra = |key: &str, value: String| {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        if !self.id.is_empty() {
            extra("credential-id", format!("JTI={}", self.id));
        }
        if let Some(pod) = &self.pod {
            extra("pod-name", pod.name.clone());
            extra("pod-uid", pod.uid.clone());
        }
        if let Some(node) = &self.node {
            extra("node-name", node.name.clone());
            extra("node-uid", node.uid.clone());
        }
        user
    }
}

/// Whether signed claims count now, for one of `audiences`; the error is what a TokenReview shows.
pub fn check(claims: &Claims, issuer: &str, audiences: &[String], now: Time, access: &dyn Access) -> Result<Verified, String> {
    if claims.issuer != issuer {
        return Err("token was issued by someone else".to_string());
    }
    if now.seconds > claims.expires {
        return Err("service account token has expired".to_string());
    }
    if now.seconds < claims.not_before {
        return Err("service account token is not valid yet".to_string());
    }
    let matching: Vec<String> = claims.audiences.iter().filter(|a| audiences.contains(a)).cloned().collect();
    if matching.is_empty() {
        let list = |l: &[String]| l.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(" ");
        let (have, want) = (list(&claims.audiences), list(audiences));
        return Err(format!("token audiences [{have}] is invalid for the target audiences [{want}]"));
    }
    still_bound(claims, now, access)?;
    Ok(Verified { user: claims.user(), audiences: matching })
}

/// A deleted object keeps its tokens alive for its grace period and a little more, so that pods can shut down in order.
const LEEWAY_AFTER_DELETION_SECONDS: i64 = 60;

fn still_bound(claims: &Claims, now: Time, access: &dyn Access) -> Result<(), String> {
    let invalidated = || "service account token has been invalidated".to_string();
    let account = &claims.service_account;
    let found = access.get(&resource::SERVICEACCOUNTS, &claims.namespace, &account.name);
    let Some(found) = found else { return Err(format!("serviceaccounts \"{}\" not found", account.name)) };
    if found.uid() != account.uid {
        return Err(invalidated());
    }
    let bound = [
        (&claims.pod, &resource::PODS, claims.namespace.as_str()),
        (&claims.secret, &resource::SECRETS, claims.namespace.as_str()),
        (&claims.node, &resource::NODES, ""),
    ];
    // A node reference beside a pod is information only: the pod decides.
    let skip_node = claims.pod.is_some();
    for (reference, resource, namespace) in bound {
        let Some(reference) = reference else { continue };
        if skip_node && namespace.is_empty() {
            continue;
        }
        let object = access.get(resource, namespace, &reference.name).filter(|o| o.uid() == reference.uid).ok_or_else(invalidated)?;
        let deleted = Time::parse(object.str_at(&["metadata", "deletionTimestamp"])).ok();
        if deleted.is_some_and(|t| now.seconds > t.seconds + LEEWAY_AFTER_DELETION_SECONDS) {
            return Err(invalidated());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_read_back_and_nothing_else() {
        let key = rcgen::KeyPair::generate().unwrap();
        let signer = Signer::new(&key.serialize_pem()).unwrap();
        let claims = Claims {
            issuer: "https://kubernetes.default.svc".into(),
            audiences: vec!["a".into()],
            issued_at: 10,
            not_before: 10,
            expires: 3610,
            id: "00000000-0000-0000-0000-000000000001".into(),
            namespace: "ns".into(),
            service_account: Ref { name: "sa".into(), uid: "u1".into() },
            pod: Some(Ref { name: "p".into(), uid: "u2".into() }),
            ..Claims::default()
        };
        let token = signer.sign(&claims);
        assert_eq!(signer.verify(&token), Some(claims.clone()));
        assert_eq!(claims.user().name, "system:serviceaccount:ns:sa");
        assert_eq!(claims.user().extra["authentication.kubernetes.io/pod-uid"], ["u2"]);
        let other = Signer::new(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert_eq!(other.verify(&token), None, "another key's signature");
        assert_eq!(signer.verify("a.b.c"), None);
        assert_eq!(signer.verify("bad"), None);
        let mut forged = token.clone();
        forged.insert(token.find('.').unwrap() + 3, 'x');
        assert_eq!(signer.verify(&forged), None);
    }
}
