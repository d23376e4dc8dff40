//! Pure: the OpenID discovery documents that let others verify our service account tokens.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::token::Signer;
use crate::api::value::Value;
use crate::server::strategy::Cluster;
use crate::value;

/// `/.well-known/openid-configuration`.
pub fn configuration(cluster: &Cluster) -> Value {
    let host = if cluster.advertise_address.contains(':') {
        format!("[{}]", cluster.advertise_address)
    } else {
        cluster.advertise_address.clone()
    };
    let port = if cluster.port == 0 { 6443 } else { cluster.port };
    value!({
        "issuer": cluster.issuer,
        "jwks_uri": format!("https://{host}:{port}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

/// `/openid/v1/jwks`.
pub fn jwks(signer: &Signer) -> Value {
    let (x, y) = signer.coordinates();
    value!({"keys": [{"use": "sig", "kty": "EC", "kid": signer.key_id(), "crv": "P-256", "alg": "ES256",
        "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)}]})
}
