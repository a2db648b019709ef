//! The two Secrets that are made once and never overwritten.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::labels::metadata;
use crate::validate::Order;

/// Key of the private signing key in its Secret.
pub const SIGNING_KEY: &str = "signing.pem";
/// Key of the internal token in its Secret.
pub(super) const INTERNAL_TOKEN: &str = "token";

/// Name of the Secret with the key that signs access tokens.
pub fn jwt_secret_name(cluster_name: &str) -> String {
    format!("{cluster_name}-jwt")
}

/// Name of the Secret with the token by which roles know each other.
pub fn internal_secret_name(cluster_name: &str) -> String {
    format!("{cluster_name}-internal")
}

/// The Secret of a signing key, PKCS#8 PEM.
pub fn jwt_secret(order: &Order, signing_key_pem: String) -> Secret {
    secret(
        order,
        jwt_secret_name(&order.name),
        "auth",
        SIGNING_KEY,
        signing_key_pem,
    )
}

/// The Secret of an internal token.
pub fn internal_secret(order: &Order, token: String) -> Secret {
    secret(
        order,
        internal_secret_name(&order.name),
        "platform",
        INTERNAL_TOKEN,
        token,
    )
}

fn secret(order: &Order, name: String, component: &str, key: &str, value: String) -> Secret {
    Secret {
        metadata: metadata(order, name, Some(component)),
        type_: Some("Opaque".to_owned()),
        // Replacing a key by accident would end every session: it is deleted and made anew, or not changed at all.
        immutable: Some(true),
        data: Some(BTreeMap::from([(
            key.to_owned(),
            ByteString(value.into_bytes()),
        )])),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use crate::build::tests::{SMALL, order_of, yaml_of};

    #[test]
    fn secrets() {
        let order = order_of(SMALL);
        insta::assert_snapshot!(yaml_of(&[
            super::jwt_secret(&order, "PEM".to_owned()),
            super::internal_secret(&order, "TOKEN".to_owned()),
        ]));
    }
}
