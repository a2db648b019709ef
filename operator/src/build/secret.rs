//! The Secrets that the operator makes for itself and for pods. What is in them is decided by [`crate::keys`] and
//! [`crate::certificates`].

use std::collections::BTreeMap;

use carillon_crds::Role;
use k8s_openapi::api::core::v1::Secret;

use super::labels::metadata;
use super::object_name;
use crate::validate::Order;

/// Key of the private keys that sign and did, in their Secret.
pub const SIGNING_KEY: &str = "signing.pem";
/// Key of the private key that will sign, in the same Secret. No pod is given it.
pub const NEXT_SIGNING_KEY: &str = "next.pem";
/// Key of the authority's certificate in its Secret.
pub const AUTHORITY_CERTIFICATE: &str = "ca.crt";
/// Key of the authority's private key in its Secret.
pub const AUTHORITY_KEY: &str = "ca.key";
/// Key of the authorities that pods believe, in the Secret of certificates.
pub const TRUST: &str = "ca.crt";

/// Key of the certificate of `role` in the Secret of certificates.
pub fn certificate_key(role: Role) -> String {
    format!("{}.crt", role.name())
}

/// Key of the private key of `role` in the Secret of certificates.
pub fn private_key_key(role: Role) -> String {
    format!("{}.key", role.name())
}

/// Name of the Secret with the keys that sign access tokens.
pub fn jwt_secret_name(cluster_name: &str) -> String {
    format!("{cluster_name}-jwt")
}

/// Name of the Secret with the authority. No pod mounts it.
pub fn authority_secret_name(cluster_name: &str) -> String {
    format!("{cluster_name}-ca")
}

/// Name of the Secret with the certificates of the roles.
pub fn tls_secret_name(cluster_name: &str) -> String {
    // Not `-tls`: that is what people call the Secret of their Ingress.
    format!("{cluster_name}-certificates")
}

/// The DNS names in the certificate of each role. The first one is the one that other roles ask for; the others are how a Service is
/// called from nearer and farther away.
pub fn certificate_names(order: &Order) -> BTreeMap<Role, Vec<String>> {
    let names = |role: Role| {
        let service = object_name(order, role);
        let namespace = &order.namespace;
        vec![
            carillon_crds::certificate_name(&order.name, namespace, role),
            format!("{service}.{namespace}.svc.cluster.local"),
            format!("{service}.{namespace}"),
            service,
        ]
    };
    Role::ALL
        .into_iter()
        .map(|role| (role, names(role)))
        .collect()
}

/// A Secret of ours without anything in it yet.
pub fn own_secret(order: &Order, name: String, component: &str) -> Secret {
    Secret {
        metadata: metadata(order, name, Some(component)),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use crate::build::tests::{SMALL, order_of, yaml_of};

    #[test]
    fn secrets() {
        let order = order_of(SMALL);
        insta::assert_snapshot!(yaml_of(&[super::own_secret(
            &order,
            super::jwt_secret_name(&order.name),
            "auth",
        )]));
    }

    #[test]
    fn the_first_name_is_the_one_that_roles_ask_for() {
        let order = order_of(SMALL);
        let names = super::certificate_names(&order);
        let asked = &order.config.tls.as_ref().unwrap().names;
        for (role, asked) in [
            (carillon_crds::Role::Gateway, &asked.gateway),
            (carillon_crds::Role::Auth, &asked.auth),
            (carillon_crds::Role::Message, &asked.message),
            (carillon_crds::Role::Presence, &asked.presence),
            (carillon_crds::Role::Media, &asked.media),
            (carillon_crds::Role::Notification, &asked.notification),
        ] {
            assert_eq!(&names[&role][0], asked);
        }
    }
}
